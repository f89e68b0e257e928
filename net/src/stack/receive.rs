//! Receiving: what becomes of a packet between the ring and its socket.

use std::net::SocketAddrV4;

use arrayvec::ArrayVec;
use netswap_reserve::{EmergencyScope, Frame, Gfp, Span, Time};

use super::{Stack, StreamId};
use crate::device::{Device, MacAddr};
use crate::filter::{Class, touch};
use crate::headers::{
    ArpPacket, EthHeader, IPV4_LEN, Ipv4Header, TCP_LEN, UDP_LEN, be16, transport_checksum_ok,
};
use crate::packet::PacketBuf;
use crate::phy::{Phy, SEGMENT_HEAD};
use crate::stats::DropReason;
use crate::table::Entry;
use crate::udp::Datagram;

/// The least time between two challenges of one stream: picked by eye, half of a retransmission.
const CHALLENGE_GAP: Span = Span::from_millis(10);

/// Packets taken from the ring in one call of [`Stack::poll`], at most.
const INGRESS_MAX: usize = 256;
/// Packets that are looked at together.
const BURST: usize = 32;

impl<'b, D: Device> Stack<'b, D> {
    /// Takes up to [`INGRESS_MAX`] packets from the card; whether there may be more.
    pub(super) fn ingress(&mut self, now: Time) -> bool {
        let mut left = INGRESS_MAX;
        let mut burst = ArrayVec::<PacketBuf, BURST>::new();
        while left > 0 {
            while burst.len() < BURST.min(left)
                && let Some(packet) = self.link.device.poll_rx(now)
            {
                burst.push(packet);
            }
            let more = burst.len() == BURST;
            left -= burst.len();
            self.handle_burst(now, &mut burst);
            if !more {
                return left == 0;
            }
        }
        true
    }

    /// Processes a burst. What the filter drops is freed before anything else is processed, and in
    /// one go with its neighbours: a flood is nothing but such packets.
    fn handle_burst(&mut self, now: Time, burst: &mut ArrayVec<PacketBuf, BURST>) {
        touch(burst.iter().map(PacketBuf::data));
        self.link.stats.received += burst.len() as u64;
        let mut dropped = ArrayVec::<Frame, BURST>::new();
        for packet in burst.drain(..) {
            let emergency = packet.is_emergency();
            if emergency && let Err(reason) = self.judge(packet.data()) {
                self.link.stats.count(reason);
                if let Ok(frame) = packet.into_frame() {
                    dropped.push(frame);
                }
                continue;
            }
            if !dropped.is_empty() {
                self.link.pool.free_burst(dropped.drain(..));
            }
            match self.link.filter.classify(packet.data()) {
                Ok((eth, class)) => {
                    let mut packet = packet;
                    packet.trim_front(eth.len);
                    self.dispatch(now, packet, &eth, class, emergency);
                }
                Err(reason) => self.link.stats.count(reason),
            }
        }
        if !dropped.is_empty() {
            self.link.pool.free_burst(dropped.drain(..));
        }
    }

    /// The filter, and its counters.
    #[inline]
    fn judge(&mut self, frame: &[u8]) -> Result<(), DropReason> {
        let stats = &mut self.link.stats;
        stats.emergency_received += 1;
        let verdict = if self.config.drop { self.link.filter.judge(frame) } else { Ok(()) };
        match verdict {
            Ok(()) => stats.emergency_passed += 1,
            Err(_) => stats.emergency_dropped += 1,
        }
        verdict
    }

    fn dispatch(
        &mut self,
        now: Time,
        packet: PacketBuf,
        eth: &EthHeader,
        class: Class,
        emergency: bool,
    ) {
        match class {
            Class::Arp(arp) => {
                let to_us = arp.target_ip == self.config.addr && arp.sender_mac.is_unicast();
                if to_us && !arp.sender_ip.is_unspecified() {
                    self.handle_arp(now, &arp);
                }
            }
            Class::Fragment(ip) => self.handle_fragment(now, &packet, eth, &ip, emergency),
            Class::Tcp(ip, _) | Class::Udp(ip, _) | Class::Other(ip) => {
                if !ip.checksum_ok(packet.data()) {
                    return self.link.stats.count(DropReason::IpChecksum);
                }
                self.handle_ip(now, packet, Some(eth.src), &ip, class);
            }
        }
    }

    fn handle_arp(&mut self, now: Time, arp: &ArpPacket) {
        let tagged = self.link.filter.is_tagged_peer(arp.sender_ip);
        let filter = &self.link.filter;
        let waiting =
            self.link.neighbours.learn(now, arp.sender_ip, arp.sender_mac, arp.is_request, |ip| {
                filter.is_tagged_peer(ip)
            });
        if let Some(packet) = waiting {
            self.link.send_eth(now, packet, arp.sender_mac);
        }
        if arp.is_request {
            self.link.send_arp_reply(now, arp, tagged);
        }
    }

    fn handle_fragment(
        &mut self,
        now: Time,
        packet: &PacketBuf,
        eth: &EthHeader,
        ip: &Ipv4Header,
        emergency: bool,
    ) {
        if !ip.checksum_ok(packet.data()) {
            return self.link.stats.count(DropReason::IpChecksum);
        }
        let (pool, rx) = (&self.link.pool, self.link.reserves.map(|r| r.rx));
        let alloc = || match rx {
            Some(rx) if emergency => {
                let _scope = EmergencyScope::enter(pool, rx);
                pool.alloc(Gfp::ATOMIC).ok()
            }
            _ => pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC).ok(),
        };
        let added = self.reassembly.handle_fragment(now, ip, packet.data(), emergency, alloc);
        let whole = match added {
            Ok(Some(whole)) => whole,
            Ok(None) => return,
            Err(reason) => return self.link.stats.count(reason),
        };
        self.link.stats.reassembled += 1;
        let class = self.link.filter.classify_ip(whole.packet.data());
        let emergency = whole.emergency || whole.packet.is_emergency();
        let admitted = match class {
            Ok(class) if emergency && self.config.drop => self.link.filter.admit(&class),
            Ok(_) => Ok(()),
            Err(reason) => Err(reason),
        };
        match (class, admitted) {
            (Ok(class @ (Class::Tcp(ip, _) | Class::Udp(ip, _) | Class::Other(ip))), Ok(())) => {
                self.handle_ip(now, whole.packet, Some(eth.src), &ip, class);
            }
            (Err(reason), _) | (_, Err(reason)) => self.link.stats.count(reason),
            _ => self.link.stats.count(DropReason::Malformed),
        }
    }

    /// A whole IPv4 packet for this host, its header verified.
    fn handle_ip(
        &mut self,
        now: Time,
        mut packet: PacketBuf,
        from: Option<MacAddr>,
        ip: &Ipv4Header,
        class: Class,
    ) {
        packet.truncate(ip.total_len);
        let ok = match class {
            Class::Tcp(..) | Class::Udp(..) => {
                transport_checksum_ok(ip, &packet.data()[ip.header_len..])
            }
            _ => true,
        };
        if !ok {
            return self.link.stats.count(DropReason::TransportChecksum);
        }
        match class {
            Class::Udp(_, Some(entry)) => self.handle_udp(now, packet, ip, entry),
            Class::Udp(_, None) => self.link.stats.count(DropReason::NoSocket),
            Class::Tcp(_, entry) => {
                if let Some(mac) = from {
                    self.link.neighbours.confirm(now, ip.src, mac);
                }
                if entry.is_none() {
                    self.link.stats.count(DropReason::NoSocket);
                }
                self.handle_smoltcp(now, packet, entry);
            }
            _ => self.handle_smoltcp(now, packet, None),
        }
    }

    fn handle_udp(&mut self, now: Time, mut packet: PacketBuf, ip: &Ipv4Header, entry: Entry) {
        packet.trim_front(ip.header_len);
        let len = be16(packet.data(), 4).map_or(0, usize::from);
        if len < UDP_LEN || len > packet.len() {
            return self.link.stats.count(DropReason::Malformed);
        }
        packet.truncate(len);
        let port = be16(packet.data(), 0).unwrap_or(0);
        packet.trim_front(UDP_LEN);
        let from = SocketAddrV4::new(ip.src, port);
        let datagram = Datagram { from, received: now, payload: packet };
        match self.udp.push(usize::from(entry.index), datagram) {
            Ok(()) => self.link.stats.udp_queued += 1,
            Err(reason) => self.link.stats.count(reason),
        }
    }

    /// Hands a packet to the stream it belongs to, or to nobody, who answers with a reset or an echo.
    fn handle_smoltcp(&mut self, now: Time, mut packet: PacketBuf, entry: Option<Entry>) {
        let at = self.scaled(now);
        let stream = entry.map(|entry| entry.index);
        let tagged = entry.is_some_and(|entry| entry.tagged);
        let _scope = match (tagged, self.link.reserves) {
            (true, Some(reserves)) => Some(EmergencyScope::enter(&self.link.pool, reserves.rx)),
            _ => None,
        };
        if let Some(index) = stream.filter(|_| opens(packet.data())) {
            let stream = &mut self.streams[usize::from(index)];
            if stream.is_synchronized() {
                if stream.challenge_at <= now {
                    stream.challenge_at = now + CHALLENGE_GAP;
                    self.link.send_challenge(now, StreamId(index), tagged);
                }
                return;
            }
        }
        if let Some(index) = stream {
            let capacity = self.streams[usize::from(index)].socket().recv_capacity();
            if let Some((head, bytes)) =
                self.link.last_sent.get(usize::from(index)).zip(packet.data_mut())
            {
                pull_into_window(bytes, head, capacity);
            }
        }
        let set = match stream {
            Some(index) => &mut self.streams[usize::from(index)].set,
            None => &mut self.nobody,
        };
        let stream_id = stream.map(StreamId);
        let mut phy =
            Phy { link: &mut self.link, now, rx: Some(packet.data()), tagged, stream: stream_id };
        self.iface.poll_ingress_single(at, &mut phy, set);
        if let Some(index) = stream {
            let stream = &mut self.streams[usize::from(index)];
            stream.ready = true;
            stream.dirty = true;
            self.any_dirty = true;
            if stream.state_moved() {
                self.sync(index);
            }
        }
    }
}

/// Whether an IPv4 packet, already found to carry a whole TCP header, opens a connection: SYN, no ACK.
fn opens(packet: &[u8]) -> bool {
    let header = usize::from(packet.first().copied().unwrap_or(0) & 0x0f) * 4;
    packet.get(header + 13).is_some_and(|flags| flags & 0x16 == 0x02)
}

/// Makes a pure acknowledgement acceptable that lies beyond the window which the last segment sent,
/// `sent`, announced for a receive buffer of `capacity` bytes.
///
/// A sender whose data went beyond our window (see [`Stream::watch`](crate::stream::Stream::watch))
/// acknowledges from there. RFC 9293 section 3.10.7.4 makes a special allowance for valid
/// acknowledgements then, as both ends wait for ever without; smoltcp drops them. The packet's checksum
/// was verified before, and is not looked at again.
fn pull_into_window(packet: &mut [u8], sent: &[u8; SEGMENT_HEAD], capacity: usize) {
    let header = usize::from(packet.first().copied().unwrap_or(0) & 0x0f) * 4;
    let Some(tcp) = packet.get(header..header + TCP_LEN) else { return };
    let is_pure = tcp[13] & 0x17 == 0x10
        && packet.len() == header + usize::from(tcp[12] >> 4) * 4
        && sent[0] != 0;
    if !is_pure {
        return;
    }
    let word = |b: &[u8], at: usize| u32::from_be_bytes([b[at], b[at + 1], b[at + 2], b[at + 3]]);
    let expected = word(sent, IPV4_LEN + 8);
    let shift = (usize::BITS - capacity.leading_zeros()).saturating_sub(16);
    let window = u32::from(u16::from_be_bytes([sent[34], sent[35]])) << shift;
    let ahead = word(tcp, 4).wrapping_sub(expected);
    // A probe of a closed window that was taken and not yet acknowledged shows as one byte more. What
    // lies behind is old and looks very far ahead.
    if ahead > window + 1 && ahead < 1 << 31 {
        packet[header + 4..header + 8].copy_from_slice(&expected.to_be_bytes());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A segment of `data` bytes with `flags` and sequence number `seq`; the window field is 216.
    fn segment(seq: u32, flags: u8, data: usize) -> Vec<u8> {
        let mut packet = vec![0; SEGMENT_HEAD + data];
        packet[0] = 0x45;
        packet[IPV4_LEN + 4..IPV4_LEN + 8].copy_from_slice(&seq.to_be_bytes());
        packet[IPV4_LEN + 8..IPV4_LEN + 12].copy_from_slice(&1_000u32.to_be_bytes());
        packet[IPV4_LEN + 12] = 0x50;
        packet[IPV4_LEN + 13] = flags;
        packet[IPV4_LEN + 14..IPV4_LEN + 16].copy_from_slice(&216u16.to_be_bytes());
        packet
    }

    #[test]
    fn only_pure_acknowledgements_from_beyond_the_window_are_pulled_in() {
        // What we sent last acknowledged 1000 and announced 216 << 1 bytes.
        let sent = segment(7, 0x10, 0);
        let pulled = |mut packet: Vec<u8>| {
            let before = packet.clone();
            pull_into_window(&mut packet, sent.first_chunk().unwrap(), 65_536);
            packet != before
        };
        assert!(pulled(segment(1_434, 0x10, 0)));
        assert!(pulled(segment(2_000, 0x18, 0)));
        assert!(!pulled(segment(1_432, 0x10, 0)), "still in the window");
        assert!(!pulled(segment(1_433, 0x10, 0)), "a probe was taken");
        assert!(!pulled(segment(999, 0x10, 0)), "old");
        assert!(!pulled(segment(2_000, 0x10, 1)), "data");
        assert!(!pulled(segment(2_000, 0x14, 0)), "a reset");
        assert!(!pulled(segment(2_000, 0x11, 0)), "an end");
        assert!(!pulled(vec![0x4f; 30]) && !pulled(Vec::new()), "cut short");
    }
}
