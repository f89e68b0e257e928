//! Ethernet, ARP, IPv4, TCP and UDP headers: checked views and builders of what this layer reads
//! and writes itself. Nothing here trusts a length that came from the wire.

use std::net::Ipv4Addr;

use crate::checksum;
use crate::device::MacAddr;

/// Bytes of an Ethernet header without a tag.
pub const ETH_LEN: usize = 14;
/// Bytes that an 802.1Q tag adds.
pub const VLAN_LEN: usize = 4;
/// Bytes of an IPv4 header without options (RFC 791 section 3.1).
pub const IPV4_LEN: usize = 20;
/// Bytes of a UDP header (RFC 768).
pub const UDP_LEN: usize = 8;
/// Bytes of a TCP header without options (RFC 9293 section 3.1).
pub const TCP_LEN: usize = 20;
/// Bytes of an ARP packet for IPv4 over Ethernet (RFC 826).
pub const ARP_LEN: usize = 28;

/// EtherType of IPv4.
pub const ETHERTYPE_IPV4: u16 = 0x0800;
/// EtherType of ARP.
pub const ETHERTYPE_ARP: u16 = 0x0806;
/// EtherType of an 802.1Q tag.
pub const ETHERTYPE_VLAN: u16 = 0x8100;

/// Protocol number of ICMP.
pub const PROTO_ICMP: u8 = 1;
/// Protocol number of TCP.
pub const PROTO_TCP: u8 = 6;
/// Protocol number of UDP.
pub const PROTO_UDP: u8 = 17;

/// Reads two bytes at `at`, in network order.
pub fn be16(bytes: &[u8], at: usize) -> Option<u16> {
    let b = bytes.get(at..at + 2)?;
    Some(u16::from_be_bytes([b[0], b[1]]))
}

fn addr(bytes: &[u8], at: usize) -> Option<Ipv4Addr> {
    let b = bytes.get(at..at + 4)?;
    Some(Ipv4Addr::new(b[0], b[1], b[2], b[3]))
}

fn mac(bytes: &[u8], at: usize) -> Option<MacAddr> {
    bytes.get(at..at + 6)?.try_into().ok().map(MacAddr)
}

/// An Ethernet header, a priority tag (802.1Q with VLAN 0) already looked through.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct EthHeader {
    /// Destination.
    pub dst: MacAddr,
    /// Source.
    pub src: MacAddr,
    /// What the payload is.
    pub ethertype: u16,
    /// Where the payload starts.
    pub len: usize,
    /// The VLAN of the tag; 0 if there is none.
    pub vlan: u16,
}

impl EthHeader {
    /// Parses the start of a frame; `None` if it is too short.
    #[inline]
    pub fn parse(frame: &[u8]) -> Option<EthHeader> {
        let (dst, src) = (mac(frame, 0)?, mac(frame, 6)?);
        let mut ethertype = be16(frame, 12)?;
        let (mut len, mut vlan) = (ETH_LEN, 0);
        if ethertype == ETHERTYPE_VLAN {
            vlan = be16(frame, ETH_LEN)? & 0x0fff;
            ethertype = be16(frame, ETH_LEN + 2)?;
            len += VLAN_LEN;
        }
        Some(EthHeader { dst, src, ethertype, len, vlan })
    }

    /// Writes an untagged header.
    ///
    /// # Panics
    /// If `out` is shorter than [`ETH_LEN`].
    pub fn emit(out: &mut [u8], dst: MacAddr, src: MacAddr, ethertype: u16) {
        out[..6].copy_from_slice(&dst.0);
        out[6..12].copy_from_slice(&src.0);
        out[12..14].copy_from_slice(&ethertype.to_be_bytes());
    }
}

/// The fields of an IPv4 header that this layer acts on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ipv4Header {
    /// Source.
    pub src: Ipv4Addr,
    /// Destination.
    pub dst: Ipv4Addr,
    /// Protocol of the payload.
    pub protocol: u8,
    /// Bytes of the header, options included.
    pub header_len: usize,
    /// Bytes of header and payload.
    pub total_len: usize,
    /// Identification, which fragments of a datagram share.
    pub id: u16,
    /// Whether fragments follow.
    pub more_fragments: bool,
    /// Where this fragment's payload belongs, in bytes.
    pub fragment_offset: usize,
}

impl Ipv4Header {
    /// Parses the start of `packet`; `None` unless version and lengths are consistent with it. The
    /// checksum is not looked at: see [`Ipv4Header::checksum_ok`].
    #[inline]
    pub fn parse(packet: &[u8]) -> Option<Ipv4Header> {
        let fixed: &[u8; IPV4_LEN] = packet.get(..IPV4_LEN)?.try_into().ok()?;
        let header_len = usize::from(fixed[0] & 0x0f) * 4;
        let total_len = usize::from(u16::from_be_bytes([fixed[2], fixed[3]]));
        if fixed[0] >> 4 != 4
            || header_len < IPV4_LEN
            || total_len < header_len
            || total_len > packet.len()
        {
            return None;
        }
        let flags = u16::from_be_bytes([fixed[6], fixed[7]]);
        Some(Ipv4Header {
            src: Ipv4Addr::new(fixed[12], fixed[13], fixed[14], fixed[15]),
            dst: Ipv4Addr::new(fixed[16], fixed[17], fixed[18], fixed[19]),
            protocol: fixed[9],
            header_len,
            total_len,
            id: u16::from_be_bytes([fixed[4], fixed[5]]),
            more_fragments: flags & 0x2000 != 0,
            fragment_offset: usize::from(flags & 0x1fff) * 8,
        })
    }

    /// Whether this is a part of a datagram.
    pub fn is_fragment(&self) -> bool {
        self.more_fragments || self.fragment_offset != 0
    }

    /// Whether the header of `packet`, which this was parsed from, sums up (RFC 791).
    pub fn checksum_ok(&self, packet: &[u8]) -> bool {
        packet.get(..self.header_len).is_some_and(|h| checksum::sum(h) == 0xffff)
    }

    /// Writes a header without options, its checksum filled in, a time to live of 64.
    ///
    /// # Panics
    /// If `out` is shorter than [`IPV4_LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        let flags = u16::from(self.more_fragments) << 13 | (self.fragment_offset / 8) as u16;
        out[0] = 0x45;
        out[1] = 0;
        out[2..4].copy_from_slice(&(self.total_len as u16).to_be_bytes());
        out[4..6].copy_from_slice(&self.id.to_be_bytes());
        out[6..8].copy_from_slice(&flags.to_be_bytes());
        out[8] = 64;
        out[9] = self.protocol;
        out[10..12].fill(0);
        out[12..16].copy_from_slice(&self.src.octets());
        out[16..20].copy_from_slice(&self.dst.octets());
        let sum = checksum::checksum(&out[..IPV4_LEN]);
        out[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}

/// Whether the checksum of a TCP segment or UDP datagram is right. A UDP checksum of zero means that
/// there is none (RFC 768).
pub fn transport_checksum_ok(ip: &Ipv4Header, segment: &[u8]) -> bool {
    if ip.protocol == PROTO_UDP && be16(segment, 6) == Some(0) {
        return true;
    }
    checksum::sum_with_pseudo(ip.src.octets(), ip.dst.octets(), ip.protocol, segment) == 0xffff
}

/// Fills in the checksum of the TCP segment or UDP datagram in a whole IPv4 packet; other protocols
/// are left alone.
pub fn fill_transport_checksum(packet: &mut [u8]) {
    let Some(ip) = Ipv4Header::parse(packet) else { return };
    let at = match ip.protocol {
        PROTO_TCP => 16,
        PROTO_UDP => 6,
        _ => return,
    };
    let segment = &mut packet[ip.header_len..ip.total_len];
    if segment.len() < at + 2 {
        return;
    }
    segment[at..at + 2].fill(0);
    let sum = checksum::sum_with_pseudo(ip.src.octets(), ip.dst.octets(), ip.protocol, segment);
    // RFC 768: a computed zero is sent as all ones, since zero means that there is none.
    let sum = if ip.protocol == PROTO_UDP && sum == 0xffff { 0xffff } else { !sum };
    segment[at..at + 2].copy_from_slice(&sum.to_be_bytes());
}

/// An ARP packet for IPv4 over Ethernet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ArpPacket {
    /// Whether it asks, or answers.
    pub is_request: bool,
    /// Hardware address of the sender.
    pub sender_mac: MacAddr,
    /// Protocol address of the sender.
    pub sender_ip: Ipv4Addr,
    /// Hardware address of the target.
    pub target_mac: MacAddr,
    /// Protocol address of the target.
    pub target_ip: Ipv4Addr,
}

impl ArpPacket {
    /// Parses an ARP packet; `None` if it is none, or not for IPv4 over Ethernet.
    pub fn parse(packet: &[u8]) -> Option<ArpPacket> {
        if packet.get(..6)? != [0, 1, 8, 0, 6, 4] {
            return None;
        }
        let is_request = match be16(packet, 6)? {
            1 => true,
            2 => false,
            _ => return None,
        };
        Some(ArpPacket {
            is_request,
            sender_mac: mac(packet, 8)?,
            sender_ip: addr(packet, 14)?,
            target_mac: mac(packet, 18)?,
            target_ip: addr(packet, 24)?,
        })
    }

    /// Writes it.
    ///
    /// # Panics
    /// If `out` is shorter than [`ARP_LEN`].
    pub fn emit(&self, out: &mut [u8]) {
        out[..6].copy_from_slice(&[0, 1, 8, 0, 6, 4]);
        out[6..8].copy_from_slice(&(2 - u16::from(self.is_request)).to_be_bytes());
        out[8..14].copy_from_slice(&self.sender_mac.0);
        out[14..18].copy_from_slice(&self.sender_ip.octets());
        out[18..24].copy_from_slice(&self.target_mac.0);
        out[24..28].copy_from_slice(&self.target_ip.octets());
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn headers_read_back_as_written() {
        let ip = Ipv4Header {
            src: Ipv4Addr::new(10, 0, 0, 1),
            dst: Ipv4Addr::new(10, 0, 0, 2),
            protocol: PROTO_UDP,
            header_len: 20,
            total_len: 28,
            id: 7,
            more_fragments: true,
            fragment_offset: 1480,
        };
        let mut out = [0; 28];
        ip.emit(&mut out);
        assert_eq!(Ipv4Header::parse(&out), Some(ip));
        assert!(ip.checksum_ok(&out));
        out[15] ^= 1;
        assert!(!ip.checksum_ok(&out));
        let arp = ArpPacket {
            is_request: true,
            sender_mac: MacAddr([2, 0, 0, 0, 0, 1]),
            sender_ip: ip.src,
            target_mac: MacAddr::default(),
            target_ip: ip.dst,
        };
        arp.emit(&mut out);
        assert_eq!(ArpPacket::parse(&out), Some(arp));
    }

    #[test]
    fn a_priority_tag_is_looked_through() {
        let mut frame = [0u8; 18];
        EthHeader::emit(&mut frame, MacAddr::BROADCAST, MacAddr([2; 6]), ETHERTYPE_VLAN);
        frame[14..18].copy_from_slice(&[0xe0, 0, 8, 0]);
        let eth = EthHeader::parse(&frame).unwrap();
        assert_eq!((eth.ethertype, eth.len, eth.vlan), (ETHERTYPE_IPV4, 18, 0));
        frame[15] = 5;
        assert_eq!(EthHeader::parse(&frame).unwrap().vlan, 5);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let _ = EthHeader::parse(&bytes);
            let _ = ArpPacket::parse(&bytes);
            if let Some(ip) = Ipv4Header::parse(&bytes) {
                let _ = ip.checksum_ok(&bytes);
                let mut copy = bytes.clone();
                fill_transport_checksum(&mut copy);
            }
        }
    }
}
