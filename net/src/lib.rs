//! The packet layer of netswap: packets in pool memory, the emergency filter, tagged sockets, and
//! a TCP/IP stack that is polled.
//!
//! A host that swaps over the network needs packet buffers to free memory. This crate sees to it that
//! only packets that serve paging may live in the emergency reserve. Read it top down:
//!
//! - [`stack`]: [`Stack`], the host: receive ring, filter, streams, datagrams;
//! - [`filter`]: what an emergency packet may go on as, and the table of sockets it is looked up in;
//! - [`session`]: [`Session`], what a stream's user implements;
//! - [`ahead`]: where the answers belong that a session expects next;
//! - [`kernel`]: [`KernelNet`], the same sessions on TCP sockets of the kernel;
//! - [`host`]: what a URL says about where a server is;
//! - [`packet`]: [`PacketBuf`], one pool frame a packet;
//! - [`device`]: [`Device`], what a network card is to the stack;
//! - [`sim_link`] and [`flood`]: the simulated link with its faults, and a third host that floods it;
//! - [`arp`], [`reassembly`], [`udp`]: the parts of IP that smoltcp is not trusted with here;
//! - [`headers`] and [`checksum`]: wire formats;
//! - [`plan`]: how much must be set aside for all this.
#![forbid(unsafe_code)]

pub mod ahead;
pub mod arp;
pub mod checksum;
pub mod device;
pub mod filter;
pub mod flood;
pub mod headers;
pub mod host;
pub mod kernel;
pub mod packet;
mod phy;
pub mod plan;
pub mod reassembly;
pub mod session;
pub mod sim_link;
pub mod stack;
pub mod stats;
mod stream;
pub mod table;
pub mod udp;

pub use device::{Device, MacAddr};
pub use flood::{Flood, FloodConfig};
pub use host::{HostError, UrlHost};
pub use kernel::KernelNet;
pub use packet::PacketBuf;
pub use plan::NetPlanConfig;
pub use session::{Action, Answers, Disconnect, RecvVec, SLICES_MAX, SendVec, Session};
pub use sim_link::{End, LinkConfig, LinkStats, SimLink, SimNic};
pub use stack::{NetReserves, Phase, Stack, StackConfig, StreamId, StreamInfo, TxFailure, UdpId};
pub use stats::{DropReason, StackStats};
pub use udp::Datagram;
