//! The emergency filter: what a received packet is, and whether it may go on if its buffer came out
//! of the reserve.
//!
//! It runs before any protocol work and allocates nothing. An emergency packet goes on only if it
//! belongs to a tagged socket, is ARP that a tagged socket needs, or is a fragment that may belong to
//! one. Everything else is freed at once: dropping is right because networks lose packets anyway, and
//! senders of untagged traffic send again when memory is back.

use std::net::Ipv4Addr;

use arrayvec::ArrayVec;

use crate::device::MacAddr;
use crate::headers::{
    ARP_LEN, ArpPacket, ETHERTYPE_ARP, ETHERTYPE_IPV4, EthHeader, Ipv4Header, PROTO_TCP, PROTO_UDP,
    be16,
};
use crate::stats::DropReason;
use crate::table::{Entry, Key, SocketTable};

/// Peers of tagged sockets at once: far more than a host has paging connections.
pub const TAGGED_PEERS_MAX: usize = 64;

/// What a received packet is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Class {
    /// ARP.
    Arp(ArpPacket),
    /// A part of an IPv4 datagram.
    Fragment(Ipv4Header),
    /// A TCP segment, and the socket it belongs to.
    Tcp(Ipv4Header, Option<Entry>),
    /// A UDP datagram, and the socket it belongs to.
    Udp(Ipv4Header, Option<Entry>),
    /// Another protocol over IPv4.
    Other(Ipv4Header),
}

/// Looks at the headers of every packet of a burst, before any is judged: so the cache misses of a
/// burst overlap instead of following each other.
#[inline]
pub fn touch<'a>(frames: impl Iterator<Item = &'a [u8]>) {
    let first = frames.map(|frame| frame.first().copied().unwrap_or(0));
    std::hint::black_box(first.fold(0u8, |all, byte| all ^ byte));
}

/// What packets are matched against.
#[derive(Debug)]
pub struct Filter {
    mac: MacAddr,
    addr: Ipv4Addr,
    /// All sockets.
    pub(crate) table: SocketTable,
    /// Addresses that tagged sockets talk to, and the neighbours on the way there, with a count.
    peers: ArrayVec<(Ipv4Addr, u32), TAGGED_PEERS_MAX>,
    tagged_listeners: u32,
}

impl Filter {
    /// A filter for the host `mac`, `addr` with up to `sockets` sockets.
    pub fn new(mac: MacAddr, addr: Ipv4Addr, sockets: usize) -> Filter {
        Filter {
            mac,
            addr,
            table: SocketTable::new(sockets),
            peers: ArrayVec::new(),
            tagged_listeners: 0,
        }
    }

    /// The sockets.
    pub fn table(&self) -> &SocketTable {
        &self.table
    }

    /// The sockets, to be changed: for those who use the filter without a stack.
    pub fn table_mut(&mut self) -> &mut SocketTable {
        &mut self.table
    }

    /// A tagged socket begins to talk to `peer` (or needs it on the way). `false` if there is no room
    /// to remember it.
    pub fn add_peer(&mut self, peer: Ipv4Addr) -> bool {
        match self.peers.iter_mut().find(|p| p.0 == peer) {
            Some(known) => known.1 += 1,
            None => return self.peers.try_push((peer, 1)).is_ok(),
        }
        true
    }

    /// A tagged socket no longer talks to `peer`.
    pub fn remove_peer(&mut self, peer: Ipv4Addr) {
        if let Some(at) = self.peers.iter().position(|p| p.0 == peer) {
            self.peers[at].1 -= 1;
            if self.peers[at].1 == 0 {
                self.peers.swap_remove(at);
            }
        }
    }

    /// One tagged socket more (or less) listens.
    pub fn count_tagged_listener(&mut self, more: bool) {
        match more {
            true => self.tagged_listeners += 1,
            false => self.tagged_listeners -= 1,
        }
    }

    /// Whether a tagged socket needs `ip`.
    pub fn is_tagged_peer(&self, ip: Ipv4Addr) -> bool {
        self.peers.iter().any(|p| p.0 == ip)
    }

    /// What is to become of an emergency packet: [`Filter::classify`] and [`Filter::admit`] in one,
    /// for the case that counts, a packet that is dropped.
    ///
    /// # Errors
    /// Why it is to be freed at once.
    #[inline]
    pub fn judge(&self, frame: &[u8]) -> Result<(), DropReason> {
        // Most of a flood is plain UDP: one look at the fixed places decides.
        if let Some(head) = frame.first_chunk::<42>()
            && head[12..15] == [0x08, 0x00, 0x45]
            && head[23] == PROTO_UDP
            && head[20] & 0x3f == 0
            && head[21] == 0
            && head[..6] == self.mac.0
            && head[30..34] == self.addr.octets()
        {
            let port = u16::from_be_bytes([head[36], head[37]]);
            return match self.table.find(Key::Udp { port }) {
                Some(entry) if entry.tagged => Ok(()),
                Some(_) => Err(DropReason::EmergencyUntagged),
                None => Err(DropReason::EmergencyNoSocket),
            };
        }
        self.classify(frame).and_then(|(_, class)| self.admit(&class))
    }

    /// What `frame` is, with its Ethernet header.
    ///
    /// # Errors
    /// Why it is of no use to anyone here.
    #[inline]
    pub fn classify(&self, frame: &[u8]) -> Result<(EthHeader, Class), DropReason> {
        let eth = EthHeader::parse(frame).ok_or(DropReason::Malformed)?;
        if eth.dst != self.mac && eth.dst != MacAddr::BROADCAST {
            return Err(DropReason::OtherStation);
        }
        if eth.vlan != 0 {
            return Err(DropReason::Vlan);
        }
        let payload = &frame[eth.len..];
        match eth.ethertype {
            ETHERTYPE_IPV4 => self.classify_ip(payload).map(|class| (eth, class)),
            ETHERTYPE_ARP if payload.len() >= ARP_LEN => {
                let arp = ArpPacket::parse(payload).ok_or(DropReason::Malformed)?;
                Ok((eth, Class::Arp(arp)))
            }
            ETHERTYPE_ARP => Err(DropReason::Malformed),
            _ => Err(DropReason::EtherType),
        }
    }

    /// What the IPv4 packet `packet` is.
    ///
    /// # Errors
    /// As [`Filter::classify`].
    #[inline]
    pub fn classify_ip(&self, packet: &[u8]) -> Result<Class, DropReason> {
        let ip = Ipv4Header::parse(packet).ok_or(DropReason::Malformed)?;
        if ip.dst != self.addr {
            return Err(DropReason::OtherHost);
        }
        if ip.is_fragment() {
            return Ok(Class::Fragment(ip));
        }
        let segment = &packet[ip.header_len..ip.total_len];
        match ip.protocol {
            PROTO_TCP => Ok(Class::Tcp(ip, self.find_tcp(&ip, segment)?)),
            PROTO_UDP => {
                let port = be16(segment, 2).ok_or(DropReason::Malformed)?;
                Ok(Class::Udp(ip, self.table.find(Key::Udp { port })))
            }
            _ => Ok(Class::Other(ip)),
        }
    }

    #[inline]
    fn find_tcp(&self, ip: &Ipv4Header, segment: &[u8]) -> Result<Option<Entry>, DropReason> {
        let header: &[u8; 20] =
            segment.get(..20).and_then(|h| h.try_into().ok()).ok_or(DropReason::Malformed)?;
        let remote_port = u16::from_be_bytes([header[0], header[1]]);
        let port = u16::from_be_bytes([header[2], header[3]]);
        let exact = self.table.find(Key::Tcp { remote: ip.src, remote_port, port });
        let opens = header[13] & 0x12 == 0x02;
        Ok(exact.or_else(|| if opens { self.table.find(Key::TcpListen { port }) } else { None }))
    }

    /// Whether an emergency packet of this class may go on.
    ///
    /// # Errors
    /// Why not: it is to be freed at once.
    #[inline]
    pub fn admit(&self, class: &Class) -> Result<(), DropReason> {
        match class {
            Class::Tcp(_, Some(entry)) | Class::Udp(_, Some(entry)) if entry.tagged => Ok(()),
            Class::Tcp(_, Some(_)) | Class::Udp(_, Some(_)) => Err(DropReason::EmergencyUntagged),
            Class::Tcp(_, None) | Class::Udp(_, None) => Err(DropReason::EmergencyNoSocket),
            Class::Arp(arp) => {
                let ours = arp.target_ip == self.addr;
                let wanted = self.is_tagged_peer(arp.sender_ip) || self.tagged_listeners > 0;
                if ours && wanted { Ok(()) } else { Err(DropReason::EmergencyArp) }
            }
            // No tagged socket speaks anything but TCP, so only TCP from a tagged peer may be one of
            // its fragments; for the whole datagram the question is asked again.
            Class::Fragment(ip) if ip.protocol == PROTO_TCP && self.is_tagged_peer(ip.src) => {
                Ok(())
            }
            Class::Fragment(_) => Err(DropReason::EmergencyFragment),
            Class::Other(_) => Err(DropReason::EmergencyProtocol),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::headers::{
        ETH_LEN, ETHERTYPE_VLAN, IPV4_LEN, PROTO_ICMP, TCP_LEN, UDP_LEN, fill_transport_checksum,
    };

    const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
    const PEER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);

    /// UDP 7000 and TCP 80 untagged, a tagged connection to `PEER` port 2049 from 900.
    fn filter() -> Filter {
        let mut filter = Filter::new(MAC, HOST, 16);
        let entry = |index, tagged| Entry { index, tagged };
        let table = filter.table_mut();
        table.insert(Key::Udp { port: 7000 }, entry(0, false)).unwrap();
        table.insert(Key::TcpListen { port: 80 }, entry(1, false)).unwrap();
        let paging = Key::Tcp { remote: PEER, remote_port: 2049, port: 900 };
        table.insert(paging, entry(2, true)).unwrap();
        filter.add_peer(PEER);
        filter
    }

    /// A frame of 20 bytes of transport header.
    fn frame(src: Ipv4Addr, protocol: u8, ports: (u16, u16), flags: u8, id_flags: u16) -> Vec<u8> {
        let mut frame = vec![0; ETH_LEN + IPV4_LEN + TCP_LEN];
        EthHeader::emit(&mut frame, MAC, MacAddr([2; 6]), ETHERTYPE_IPV4);
        let ip = Ipv4Header {
            src,
            dst: HOST,
            protocol,
            header_len: IPV4_LEN,
            total_len: IPV4_LEN + TCP_LEN,
            id: 0,
            more_fragments: id_flags & 0x2000 != 0,
            fragment_offset: usize::from(id_flags & 0x1fff) * 8,
        };
        ip.emit(&mut frame[ETH_LEN..]);
        let segment = &mut frame[ETH_LEN + IPV4_LEN..];
        segment[..2].copy_from_slice(&ports.0.to_be_bytes());
        segment[2..4].copy_from_slice(&ports.1.to_be_bytes());
        match protocol {
            PROTO_UDP => segment[4..6].copy_from_slice(&((UDP_LEN + 12) as u16).to_be_bytes()),
            _ => (segment[12], segment[13]) = (0x50, flags),
        }
        fill_transport_checksum(&mut frame[ETH_LEN..]);
        frame
    }

    #[test]
    fn only_what_serves_a_tagged_socket_goes_on() {
        let filter = filter();
        let cases = [
            (frame(PEER, PROTO_TCP, (2049, 900), 0x10, 0), Ok(())),
            (frame(PEER, PROTO_TCP, (2049, 901), 0x10, 0), Err(DropReason::EmergencyNoSocket)),
            (frame(HOST, PROTO_TCP, (2049, 900), 0x10, 0), Err(DropReason::EmergencyNoSocket)),
            (frame(PEER, PROTO_TCP, (5, 80), 0x02, 0), Err(DropReason::EmergencyUntagged)),
            (frame(PEER, PROTO_TCP, (5, 80), 0x10, 0), Err(DropReason::EmergencyNoSocket)),
            (frame(PEER, PROTO_UDP, (5, 7000), 0, 0), Err(DropReason::EmergencyUntagged)),
            (frame(PEER, PROTO_UDP, (2049, 900), 0, 0), Err(DropReason::EmergencyNoSocket)),
            (frame(PEER, PROTO_TCP, (2049, 900), 0x10, 0x2000), Ok(())),
            (frame(PEER, PROTO_TCP, (0, 0), 0, 100), Ok(())),
            (frame(HOST, PROTO_TCP, (0, 0), 0, 100), Err(DropReason::EmergencyFragment)),
            (frame(PEER, PROTO_UDP, (0, 7000), 0, 0x2000), Err(DropReason::EmergencyFragment)),
            (frame(PEER, PROTO_ICMP, (0, 0), 0, 0), Err(DropReason::EmergencyProtocol)),
        ];
        for (i, (frame, verdict)) in cases.into_iter().enumerate() {
            assert_eq!(filter.judge(&frame), verdict, "case {i}");
        }
    }

    #[test]
    fn peers_are_counted() {
        let mut filter = filter();
        filter.add_peer(PEER);
        filter.remove_peer(PEER);
        assert!(filter.is_tagged_peer(PEER), "two sockets, one left");
        filter.remove_peer(PEER);
        assert!(!filter.is_tagged_peer(PEER));
        filter.remove_peer(PEER);
    }

    proptest! {
        #![proptest_config(ProptestConfig {
            failure_persistence: None,
            cases: 2000,
            ..ProptestConfig::default()
        })]

        /// The short way for plain UDP never lets anything through that the long way would not.
        #[test]
        fn the_short_way_agrees_with_the_long_one(
            udp in any::<bool>(),
            ports in (0u16..4, prop_oneof![Just(7000u16), Just(80), Just(900), any::<u16>()]),
            tag in any::<bool>(),
            damage in proptest::option::of((0usize..50, any::<u8>())),
            cut in 0usize..60,
        ) {
            let filter = filter();
            let protocol = if udp { PROTO_UDP } else { PROTO_TCP };
            let mut bytes = frame(PEER, protocol, ports, 0x02, 0);
            if tag {
                bytes.splice(12..12, [(ETHERTYPE_VLAN >> 8) as u8, 0, 0, 0]);
            }
            if let Some((at, value)) = damage {
                bytes[at] ^= value;
            }
            bytes.truncate(bytes.len().max(cut) - cut);
            let long = filter.classify(&bytes).and_then(|(_, class)| filter.admit(&class));
            prop_assert_eq!(filter.judge(&bytes).is_ok(), long.is_ok());
        }
    }
}
