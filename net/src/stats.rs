//! Counters of the stack: every packet that does not reach a reader is counted by its reason.

/// Why a packet was dropped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum DropReason {
    /// Emergency, for an untagged socket.
    EmergencyUntagged,
    /// Emergency, for no socket at all.
    EmergencyNoSocket,
    /// Emergency ARP that no tagged socket needs.
    EmergencyArp,
    /// Emergency fragment that cannot belong to a tagged socket.
    EmergencyFragment,
    /// Emergency, of a protocol that no tagged socket speaks.
    EmergencyProtocol,
    /// Another station's, by its Ethernet address.
    OtherStation,
    /// Another host's, by its IP address.
    OtherHost,
    /// Neither ARP nor IPv4.
    EtherType,
    /// In a VLAN.
    Vlan,
    /// Lengths or fields that contradict each other.
    Malformed,
    /// The IP header's checksum is wrong.
    IpChecksum,
    /// The TCP or UDP checksum is wrong.
    TransportChecksum,
    /// No socket wants it.
    NoSocket,
    /// Its datagram socket's queue is full.
    UdpSocketFull,
    /// All datagram sockets together hold as much as the host allows.
    UdpHostFull,
    /// A fragment, and every reassembly context is in use.
    ReassemblyFull,
    /// A fragment of a datagram that does not fit a frame.
    ReassemblyTooLarge,
    /// A fragment that overlaps another in part, or contradicts the length.
    ReassemblyOverlap,
    /// A datagram whose other fragments did not come in time.
    ReassemblyTimeout,
    /// A fragment, and no frame for its datagram could be had.
    ReassemblyNoBuffer,
    /// To be sent, and no packet buffer could be had.
    TxNoBuffer,
    /// To be sent, and the card's queue is full.
    TxQueueFull,
    /// To be sent, and there is no route.
    NoRoute,
    /// To be sent, and as many neighbours as there is room for are unresolved.
    NeighbourTableFull,
    /// Replaced by a newer packet while its neighbour was being resolved, or never resolved.
    NeighbourUnresolved,
}

impl DropReason {
    /// All reasons, in the order of their counters.
    pub const ALL: [DropReason; 25] = [
        DropReason::EmergencyUntagged,
        DropReason::EmergencyNoSocket,
        DropReason::EmergencyArp,
        DropReason::EmergencyFragment,
        DropReason::EmergencyProtocol,
        DropReason::OtherStation,
        DropReason::OtherHost,
        DropReason::EtherType,
        DropReason::Vlan,
        DropReason::Malformed,
        DropReason::IpChecksum,
        DropReason::TransportChecksum,
        DropReason::NoSocket,
        DropReason::UdpSocketFull,
        DropReason::UdpHostFull,
        DropReason::ReassemblyFull,
        DropReason::ReassemblyTooLarge,
        DropReason::ReassemblyOverlap,
        DropReason::ReassemblyTimeout,
        DropReason::ReassemblyNoBuffer,
        DropReason::TxNoBuffer,
        DropReason::TxQueueFull,
        DropReason::NoRoute,
        DropReason::NeighbourTableFull,
        DropReason::NeighbourUnresolved,
    ];

    /// The name it is reported under.
    pub fn name(self) -> &'static str {
        match self {
            DropReason::EmergencyUntagged => "emergency_untagged",
            DropReason::EmergencyNoSocket => "emergency_no_socket",
            DropReason::EmergencyArp => "emergency_arp",
            DropReason::EmergencyFragment => "emergency_fragment",
            DropReason::EmergencyProtocol => "emergency_protocol",
            DropReason::OtherStation => "other_station",
            DropReason::OtherHost => "other_host",
            DropReason::EtherType => "ethertype",
            DropReason::Vlan => "vlan",
            DropReason::Malformed => "malformed",
            DropReason::IpChecksum => "ip_checksum",
            DropReason::TransportChecksum => "transport_checksum",
            DropReason::NoSocket => "no_socket",
            DropReason::UdpSocketFull => "udp_socket_full",
            DropReason::UdpHostFull => "udp_host_full",
            DropReason::ReassemblyFull => "reassembly_full",
            DropReason::ReassemblyTooLarge => "reassembly_too_large",
            DropReason::ReassemblyOverlap => "reassembly_overlap",
            DropReason::ReassemblyTimeout => "reassembly_timeout",
            DropReason::ReassemblyNoBuffer => "reassembly_no_buffer",
            DropReason::TxNoBuffer => "tx_no_buffer",
            DropReason::TxQueueFull => "tx_queue_full",
            DropReason::NoRoute => "no_route",
            DropReason::NeighbourTableFull => "neighbour_table_full",
            DropReason::NeighbourUnresolved => "neighbour_unresolved",
        }
    }
}

/// Counters of one stack since its start.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StackStats {
    /// Packets taken from the receive ring.
    pub received: u64,
    /// Packets given to the card.
    pub transmitted: u64,
    /// Packets received into charged buffers.
    pub emergency_received: u64,
    /// Of these, dropped by the filter.
    pub emergency_dropped: u64,
    /// Of these, let through by it.
    pub emergency_passed: u64,
    /// Datagrams queued for a reader.
    pub udp_queued: u64,
    /// Datagrams put together from fragments.
    pub reassembled: u64,
    /// ARP requests sent.
    pub arp_requests: u64,
    /// ARP replies sent.
    pub arp_replies: u64,
    /// Receive buffers that could not be had.
    pub refill_failed: u64,
    /// The fewest buffers that the receive ring ever had after a refill.
    pub lowest_ring_fill: usize,
    pub(crate) drops: [u64; DropReason::ALL.len()],
}

impl StackStats {
    /// How many packets were dropped for `reason`.
    pub fn dropped(&self, reason: DropReason) -> u64 {
        self.drops[reason as usize]
    }

    /// Every reason's name and count, zeros included.
    pub fn drops(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        DropReason::ALL.into_iter().map(|r| (r.name(), self.dropped(r)))
    }

    /// Packets dropped for a wrong checksum.
    pub fn checksum_errors(&self) -> u64 {
        self.dropped(DropReason::IpChecksum) + self.dropped(DropReason::TransportChecksum)
    }

    pub(crate) fn count(&mut self, reason: DropReason) {
        self.drops[reason as usize] += 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_its_own_counter_and_name() {
        let mut names = std::collections::BTreeSet::new();
        for (i, reason) in DropReason::ALL.into_iter().enumerate() {
            assert_eq!(reason as usize, i);
            assert!(names.insert(reason.name()));
        }
    }
}
