//! What a network card is to the stack: a receive ring filled with frames of the pool, and a
//! bounded transmit queue.

use std::fmt;

use netswap_reserve::{Frame, Time};

use crate::packet::PacketBuf;

/// An Ethernet address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MacAddr(pub [u8; 6]);

impl MacAddr {
    /// All stations.
    pub const BROADCAST: MacAddr = MacAddr([0xff; 6]);

    /// Whether this is one station's address (IEEE 802: the group bit is clear).
    pub fn is_unicast(self) -> bool {
        self.0[0] & 1 == 0
    }
}

impl fmt::Display for MacAddr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A network card. Packets in both directions are whole Ethernet frames without their check sequence.
pub trait Device {
    /// The card's own address.
    fn mac(&self) -> MacAddr;

    /// The largest IP packet it carries, in bytes.
    fn mtu(&self) -> usize;

    /// Slots of the receive ring.
    fn rx_ring(&self) -> usize;

    /// Slots of the receive ring that have no buffer.
    fn rx_unfilled(&self) -> usize;

    /// Gives the receive ring a buffer.
    ///
    /// # Errors
    /// The frame is handed back if the ring has no empty slot.
    fn post_rx(&mut self, frame: Frame) -> Result<(), Frame>;

    /// The next packet received.
    fn poll_rx(&mut self, now: Time) -> Option<PacketBuf>;

    /// Packets that [`Device::transmit`] would take now.
    fn tx_room(&self) -> usize;

    /// Queues a packet. Its frame is freed when it has been sent.
    ///
    /// # Errors
    /// The packet is handed back if the queue is full.
    fn transmit(&mut self, now: Time, packet: PacketBuf) -> Result<(), PacketBuf>;

    /// When the card has something to do by itself, if it knows.
    fn poll_deadline(&self) -> Option<Time>;
}
