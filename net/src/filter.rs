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
