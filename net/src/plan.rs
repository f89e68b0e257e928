//! How much memory networking needs set aside before a host may page over it.
//!
//! Receive holds enough to fill the card's ring and every reassembly context, once for the host: what
//! a packet is processed with is freed before the next is taken, so nothing else accumulates. Send
//! holds one window's worth of packets for each tagged stream, and the packet that waits while a
//! neighbour is asked for: what is sent leaves its frame when the card has sent it, so more than a
//! window cannot be outstanding.

use netswap_reserve::{PAGE_SIZE, ReservePlan};

use crate::headers::{IPV4_LEN, TCP_LEN};

/// Packets of a stream beside its window: acknowledgements that wait for the card, a reset, a request
/// for a neighbour. Picked by eye: they are short, and leave the card in less than a microsecond each.
pub const CONTROL_PACKETS: u32 = 8;

/// What the plan depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetPlanConfig {
    /// Slots of the card's receive ring.
    pub ring: u32,
    /// Datagrams that may be incomplete at once.
    pub reassembly_contexts: u32,
    /// Streams that serve paging.
    pub tagged_streams: u32,
    /// Bytes of each of a tagged stream's two buffers.
    pub window_bytes: u32,
    /// Largest IP packet, in bytes.
    pub mtu: u32,
}

impl Default for NetPlanConfig {
    fn default() -> NetPlanConfig {
        NetPlanConfig {
            ring: 64,
            reassembly_contexts: 16,
            tagged_streams: 1,
            window_bytes: 64 << 10,
            mtu: 1500,
        }
    }
}

/// Adds the network's terms: `net.rx` and `net.tx` of the reserve, and the streams' buffers.
///
/// ```
/// use netswap_net::{NetPlanConfig, plan};
/// use netswap_reserve::ReservePlan;
///
/// let mut sum = ReservePlan::new();
/// plan::plan(&mut sum, &NetPlanConfig::default());
/// assert_eq!((sum.limit_of("net.rx"), sum.limit_of("net.tx")), (80, 54));
/// assert_eq!(sum.frames(), 80 + 54 + 32);
/// ```
pub fn plan(plan: &mut ReservePlan, config: &NetPlanConfig) {
    let segment = config.mtu.saturating_sub((IPV4_LEN + TCP_LEN) as u32).max(1);
    let streams = config.tagged_streams;
    let window = config.window_bytes.div_ceil(segment).saturating_mul(streams);
    let buffers = config.window_bytes.div_ceil(PAGE_SIZE as u32).saturating_mul(2 * streams);
    plan.term("net.rx", "ring", config.ring, "a frame for each slot of the receive ring")
        .term(
            "net.rx",
            "reassembly",
            config.reassembly_contexts,
            "a frame for each datagram that may be incomplete at once",
        )
        .term("net.tx", "window", window, "a full window of segments for each tagged stream")
        .term(
            "net.tx",
            "control",
            CONTROL_PACKETS.saturating_mul(streams),
            "acknowledgements, resets and ARP for each tagged stream",
        )
        .term("net.tx", "neighbour", 1, "the packet that waits for a neighbour's address")
        .set_aside(
            "tagged TCP buffers",
            buffers,
            "a send and a receive window for each tagged stream, kept for its life",
        );
}
