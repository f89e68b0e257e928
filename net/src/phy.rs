//! The link layer below smoltcp: packet buffers from the pool, Ethernet headers, neighbours; and the
//! tokens through which smoltcp reaches it.
//!
//! A transmit token is never refused: smoltcp can hang a connection whose fast retransmit met a
//! refusal. If no packet buffer can be had the packet is built in a scratch buffer, dropped and
//! counted, as if the wire had lost it.

use std::net::Ipv4Addr;

use netswap_reserve::{AllocError, EmergencyScope, Frame, Gfp, PAGE_SIZE, PagePool, Time};
use smoltcp::phy::{ChecksumCapabilities, DeviceCapabilities, Medium};

use crate::arp::{Neighbours, Resolved};
use crate::device::{Device, MacAddr};
use crate::filter::Filter;
use crate::headers::{
    ARP_LEN, ArpPacket, ETH_LEN, ETHERTYPE_ARP, ETHERTYPE_IPV4, EthHeader, IPV4_LEN, PROTO_TCP,
    TCP_LEN, fill_transport_checksum,
};
use crate::packet::{HEADROOM, PacketBuf};
use crate::stack::{NetReserves, TxFailure};
use crate::stats::{DropReason, StackStats};
use crate::stream::StreamId;

/// Bytes of an IPv4 and a TCP header without options.
pub(crate) const SEGMENT_HEAD: usize = IPV4_LEN + TCP_LEN;

/// What sending needs: all of a stack but its sockets.
pub(crate) struct Link<D> {
    pub(crate) device: D,
    pub(crate) pool: PagePool,
    pub(crate) reserves: Option<NetReserves>,
    pub(crate) filter: Filter,
    pub(crate) neighbours: Neighbours,
    pub(crate) stats: StackStats,
    pub(crate) mac: MacAddr,
    pub(crate) addr: Ipv4Addr,
    pub(crate) prefix_len: u8,
    pub(crate) gateway: Option<Ipv4Addr>,
    /// The last time that no packet buffer could be had.
    pub(crate) failure: Option<TxFailure>,
    /// The last failure of each stream.
    pub(crate) failures: Vec<Option<TxFailure>>,
    /// Whether that happened since this was last cleared.
    pub(crate) failed: bool,
    /// For each stream the header of the last segment it sent: what a challenge is made of.
    pub(crate) last_sent: Vec<[u8; SEGMENT_HEAD]>,
    scratch: Box<[u8; PAGE_SIZE]>,
}

impl<D: Device> Link<D> {
    pub(crate) fn new(
        config: &crate::stack::StackConfig,
        device: D,
        pool: PagePool,
        reserves: Option<NetReserves>,
    ) -> Link<D> {
        Link {
            device,
            pool,
            reserves,
            filter: Filter::new(config.mac, config.addr, config.sockets_max),
            neighbours: Neighbours::new(config.neighbours_max),
            stats: StackStats::default(),
            mac: config.mac,
            addr: config.addr,
            prefix_len: config.prefix_len,
            gateway: config.gateway,
            failure: None,
            failures: Vec::new(),
            failed: false,
            last_sent: Vec::new(),
            scratch: Box::new([0; PAGE_SIZE]),
        }
    }

    /// Where a packet for `dst` goes next: itself on this link, else the gateway.
    pub(crate) fn next_hop(&self, dst: Ipv4Addr) -> Option<Ipv4Addr> {
        let mask = u32::MAX.checked_shl(32 - u32::from(self.prefix_len.min(32))).unwrap_or(0);
        if (u32::from(dst) ^ u32::from(self.addr)) & mask == 0 { Some(dst) } else { self.gateway }
    }

    /// A packet buffer to send with, entitled to the transmit reserve if `tagged`.
    fn alloc_tx(&mut self, tagged: bool) -> Result<Frame, AllocError> {
        match (tagged, self.reserves) {
            (true, Some(reserves)) => {
                let _scope = EmergencyScope::enter(&self.pool, reserves.tx);
                self.pool.alloc(Gfp::ATOMIC)
            }
            _ => self.pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC),
        }
    }

    fn tx_failed(&mut self, now: Time, stream: Option<StreamId>, error: AllocError) {
        self.stats.count(DropReason::TxNoBuffer);
        let failure = Some(TxFailure { stream, at: now, error });
        if let Some(last) = stream.and_then(|stream| self.failures.get_mut(stream.index())) {
            *last = failure;
        }
        self.failure = failure;
        self.failed = true;
    }

    /// Sends an IP packet: finds its neighbour, or holds it while that is asked for.
    fn send_ip(&mut self, now: Time, packet: PacketBuf, tagged: bool) {
        let dst = packet.data().get(16..IPV4_LEN).and_then(|d| <[u8; 4]>::try_from(d).ok());
        let Some(hop) = dst.and_then(|dst| self.next_hop(dst.into())) else {
            return self.stats.count(DropReason::NoRoute);
        };
        let filter = &self.filter;
        match self.neighbours.resolve(now, hop, |ip| filter.is_tagged_peer(ip)) {
            Resolved::Known { mac, ask } => {
                self.send_eth(now, packet, mac);
                if ask {
                    self.send_arp_request(now, hop, tagged);
                }
            }
            Resolved::Wait { ask } => {
                if self.neighbours.hold(hop, packet).is_some() {
                    self.stats.count(DropReason::NeighbourUnresolved);
                }
                if ask {
                    self.send_arp_request(now, hop, tagged);
                }
            }
            Resolved::Full => self.stats.count(DropReason::NeighbourTableFull),
        }
    }

    /// Sends an IP packet to a station.
    pub(crate) fn send_eth(&mut self, now: Time, mut packet: PacketBuf, to: MacAddr) {
        // The packet was built here with headroom and has one handle; were it otherwise, it is lost
        // as on the wire.
        let Some(bytes) = packet.push_front(ETH_LEN) else {
            return self.stats.count(DropReason::Malformed);
        };
        EthHeader::emit(bytes, to, self.mac, ETHERTYPE_IPV4);
        self.transmit(now, packet);
    }

    fn transmit(&mut self, now: Time, packet: PacketBuf) {
        match self.device.transmit(now, packet) {
            Ok(()) => self.stats.transmitted += 1,
            Err(_full) => self.stats.count(DropReason::TxQueueFull),
        }
    }

    /// Remembers the head of a segment as a pure acknowledgement of what follows it.
    fn remember(&mut self, stream: Option<StreamId>, packet: &[u8]) {
        let last = stream.and_then(|stream| self.last_sent.get_mut(stream.index()));
        let (Some(last), Some(head)) = (last, packet.first_chunk::<SEGMENT_HEAD>()) else { return };
        if head[0] != 0x45 || head[9] != PROTO_TCP || head[33] & 0x14 != 0x10 {
            return;
        }
        *last = *head;
        let data = packet.len().saturating_sub(IPV4_LEN + usize::from(head[32] >> 4) * 4);
        // SYN and FIN take a place in the sequence too (RFC 9293 section 3.4).
        let taken = data as u32 + u32::from(head[33] & 1) + u32::from(head[33] >> 1 & 1);
        let next = u32::from_be_bytes([head[24], head[25], head[26], head[27]]).wrapping_add(taken);
        last[24..28].copy_from_slice(&next.to_be_bytes());
        last[2..4].copy_from_slice(&(SEGMENT_HEAD as u16).to_be_bytes());
        last[32] = 0x50;
        last[33] = 0x10;
    }

    /// Sends the challenge of RFC 5961 section 4.2: an acknowledgement of what was really received, to
    /// a peer that opens a connection which is open. A peer that has lost it answers with a reset
    /// that fits. smoltcp drops such a packet in silence, which would keep the peer out for good.
    pub(crate) fn send_challenge(&mut self, now: Time, stream: StreamId, tagged: bool) {
        let Some(head) = self.last_sent.get(stream.index()).copied().filter(|h| h[0] != 0) else {
            return;
        };
        match self.alloc_tx(tagged) {
            Ok(mut frame) => {
                let bytes = &mut frame.bytes_mut()[HEADROOM..HEADROOM + SEGMENT_HEAD];
                bytes.copy_from_slice(&head);
                fill_ip_checksum(bytes);
                fill_transport_checksum(bytes);
                let packet = PacketBuf::from_frame(frame, HEADROOM, SEGMENT_HEAD);
                self.send_ip(now, packet, tagged);
            }
            Err(error) => self.tx_failed(now, Some(stream), error),
        }
    }

    /// Asks who has `ip`.
    pub(crate) fn send_arp_request(&mut self, now: Time, ip: Ipv4Addr, tagged: bool) {
        let ask = ArpPacket {
            is_request: true,
            sender_mac: self.mac,
            sender_ip: self.addr,
            target_mac: MacAddr::default(),
            target_ip: ip,
        };
        if self.send_arp(now, &ask, MacAddr::BROADCAST, tagged) {
            self.stats.arp_requests += 1;
        }
    }

    /// Answers `request`, which asked for our address.
    pub(crate) fn send_arp_reply(&mut self, now: Time, request: &ArpPacket, tagged: bool) {
        let answer = ArpPacket {
            is_request: false,
            sender_mac: self.mac,
            sender_ip: self.addr,
            target_mac: request.sender_mac,
            target_ip: request.sender_ip,
        };
        if self.send_arp(now, &answer, request.sender_mac, tagged) {
            self.stats.arp_replies += 1;
        }
    }

    fn send_arp(&mut self, now: Time, arp: &ArpPacket, to: MacAddr, tagged: bool) -> bool {
        match self.alloc_tx(tagged) {
            Ok(mut frame) => {
                let bytes = &mut frame.bytes_mut()[HEADROOM..HEADROOM + ETH_LEN + ARP_LEN];
                EthHeader::emit(bytes, to, self.mac, ETHERTYPE_ARP);
                arp.emit(&mut bytes[ETH_LEN..]);
                self.transmit(now, PacketBuf::from_frame(frame, HEADROOM, ETH_LEN + ARP_LEN));
                true
            }
            Err(error) => {
                self.tx_failed(now, None, error);
                false
            }
        }
    }
}

/// smoltcp's view of the link for the time of one call: at most one packet to receive.
pub(crate) struct Phy<'a, D> {
    pub(crate) link: &'a mut Link<D>,
    pub(crate) now: Time,
    /// An IP packet, all its checksums verified.
    pub(crate) rx: Option<&'a [u8]>,
    pub(crate) tagged: bool,
    pub(crate) stream: Option<StreamId>,
}

impl<D: Device> smoltcp::phy::Device for Phy<'_, D> {
    type RxToken<'a>
        = Rx<'a>
    where
        Self: 'a;
    type TxToken<'a>
        = Tx<'a, D>
    where
        Self: 'a;

    fn receive(&mut self, now: smoltcp::time::Instant) -> Option<(Rx<'_>, Tx<'_, D>)> {
        let rx = self.rx.take()?;
        self.transmit(now).map(|tx| (Rx(rx), tx))
    }

    fn transmit(&mut self, _now: smoltcp::time::Instant) -> Option<Tx<'_, D>> {
        let Phy { now, tagged, stream, .. } = *self;
        Some(Tx { link: self.link, now, tagged, stream })
    }

    fn capabilities(&self) -> DeviceCapabilities {
        let mut caps = DeviceCapabilities::default();
        caps.medium = Medium::Ip;
        caps.max_transmission_unit = self.link.device.mtu();
        // Ours are verified before smoltcp sees a packet, and filled in after it has built one.
        caps.checksum = ChecksumCapabilities::ignored();
        caps.checksum.icmpv4 = smoltcp::phy::Checksum::Both;
        caps
    }
}

pub(crate) struct Rx<'a>(&'a [u8]);

impl smoltcp::phy::RxToken for Rx<'_> {
    fn consume<R, F>(self, f: F) -> R
    where
        F: FnOnce(&[u8]) -> R,
    {
        f(self.0)
    }
}

pub(crate) struct Tx<'a, D> {
    link: &'a mut Link<D>,
    now: Time,
    tagged: bool,
    stream: Option<StreamId>,
}

impl<D: Device> smoltcp::phy::TxToken for Tx<'_, D> {
    fn consume<R, F>(self, len: usize, f: F) -> R
    where
        F: FnOnce(&mut [u8]) -> R,
    {
        debug_assert!(len <= PAGE_SIZE - HEADROOM, "smoltcp keeps to the MTU");
        match self.link.alloc_tx(self.tagged) {
            Ok(mut frame) => {
                let bytes = &mut frame.bytes_mut()[HEADROOM..HEADROOM + len];
                let result = f(bytes);
                fill_ip_checksum(bytes);
                fill_transport_checksum(bytes);
                self.link.remember(self.stream, bytes);
                let packet = PacketBuf::from_frame(frame, HEADROOM, len);
                self.link.send_ip(self.now, packet, self.tagged);
                result
            }
            Err(error) => {
                self.link.tx_failed(self.now, self.stream, error);
                f(&mut self.link.scratch[..len])
            }
        }
    }
}

fn fill_ip_checksum(packet: &mut [u8]) {
    if let Some(header) = packet.get_mut(..IPV4_LEN) {
        header[10..12].fill(0);
        let sum = crate::checksum::checksum(header);
        header[10..12].copy_from_slice(&sum.to_be_bytes());
    }
}
