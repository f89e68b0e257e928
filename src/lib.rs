//! Swap over a network without the deadlock: the facade of the netswap crates, and the simulated
//! worlds that the `netswap` command runs.
//!
//! - To use the allocator alone, take [`reserve`].
//! - To put a pager into a simulation of your own, take [`swap`]: [`swap::Pager`], driven by anything
//!   that implements [`swap::Mmu`], over anything that implements [`swap::SwapBackend`].
//! - To swap to a store of your own, implement [`swap::SwapBackend`].
//! - To reach a real server over sockets of the kernel, take [`real`].
//! - To run whole worlds, host and link and far side, take [`world`] with a [`scenario`].
//!
//! ```
//! use netswap::scenario::{Scenario, Store};
//! use netswap::world::{RunSpec, run};
//!
//! let mut scenario = Scenario::default();
//! scenario.host.ram = "4MiB".parse()?;
//! scenario.host.overcommit = 1.5;
//! scenario.host.rounds = 1;
//! let spec = RunSpec::protected(scenario, Store::Nfs);
//! let row = run(&spec, &mut |_share| {})?;
//! println!("{}: {} pages read back, {} verified", row.outcome, row.page_ins, row.pages_verified);
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
#![forbid(unsafe_code)]

pub mod plan;
pub mod real;
pub mod report;
pub mod scenario;
pub mod units;
pub mod world;

pub use netswap_iscsi as iscsi;
pub use netswap_net as net;
pub use netswap_nfs as nfs;
pub use netswap_reserve as reserve;
pub use netswap_swap as swap;
