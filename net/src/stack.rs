//! The host: a receive ring kept full from the pool, the emergency filter, streams and datagrams.
//!
//! # What it promises
//! - An emergency packet reaches a tagged socket or nothing: the filter runs before any protocol work
//!   (unless [`StackConfig::drop`] is off, which is there to show why).
//! - What is sent for a tagged stream, and what is received for one, is processed inside the emergency
//!   scope of its reserve, whoever polls; everything else is not entitled, whoever polls.
//! - The network reserve is connected while there is a tagged stream, and a reconnect does not move it.
//! - No heap allocation after the sockets have been added. Work per call is bounded.
//!
//! # smoltcp's clock
//! smoltcp's smallest retransmission timeout is a fixed second, which on a link of 200 us is an age.
//! Its clock is whatever it is given, so it is given one that runs [`StackConfig::timer_scale`] times
//! faster: with 50 the timeout starts at 20 ms, grows to 1.2 s at most, TIME-WAIT takes 200 ms.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use netswap_reserve::{
    AllocError, EmergencyScope, Gfp, PagePool, ReserveError, ReserveId, Span, Time,
};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};
use smoltcp::iface::{Config, Interface, PollResult, SocketSet};
use smoltcp::socket::tcp::State;
use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{HardwareAddress, IpAddress, IpCidr, IpEndpoint, Ipv4Cidr};

use crate::device::{Device, MacAddr};
use crate::filter::Class;
use crate::headers::{EthHeader, Ipv4Header, UDP_LEN, be16, transport_checksum_ok};
use crate::packet::PacketBuf;
use crate::phy::{Link, Phy, SEGMENT_HEAD};
use crate::reassembly::Reassembly;
use crate::session::{Action, Disconnect, SendVec, Session};
use crate::stats::{DropReason, StackStats};
use crate::stream::Stream;
pub use crate::stream::{Phase, StreamId, StreamInfo};
use crate::table::{Entry, Key};
use crate::udp::{Datagram, UdpSockets};

/// Packets taken from the ring in one call of [`Stack::poll`].
const INGRESS_MAX: usize = 256;
/// Places of the card's queue that are left for answers to what is being received.
const TX_SLACK: usize = 4;
/// The least time between two challenges of one stream: picked by eye, half of a retransmission.
const CHALLENGE_GAP: Span = Span::from_millis(10);
/// The first port given to connections (RFC 6335 section 6).
const EPHEMERAL_FIRST: u16 = 49_152;

/// How a stack is set up.
#[derive(Clone, Debug)]
pub struct StackConfig {
    /// Its Ethernet address.
    pub mac: MacAddr,
    /// Its IP address.
    pub addr: Ipv4Addr,
    /// How many bits of the address name the link.
    pub prefix_len: u8,
    /// Where packets for other links go, if anywhere.
    pub gateway: Option<Ipv4Addr>,
    /// Ablation: without it tagged streams open untagged, and the reserve never connects.
    pub tag: bool,
    /// Ablation: without it untagged emergency packets are queued and keep their charge.
    pub drop: bool,
    /// Bytes that one datagram socket may hold, counting a frame a packet.
    pub udp_socket_bytes_max: usize,
    /// Frames that all datagram sockets together may hold.
    pub udp_host_frames_max: usize,
    /// Sockets of all kinds.
    pub sockets_max: usize,
    /// Neighbours remembered (255 at most).
    pub neighbours_max: usize,
    /// Datagrams that may be incomplete at once.
    pub reassembly_contexts: usize,
    /// How much faster than ours smoltcp's clock runs.
    pub timer_scale: u32,
    /// How long an acknowledgement may wait for data to ride on, in our time.
    pub ack_delay: Span,
    /// A connection that has not been answered by then has failed.
    pub connect_timeout: Span,
    /// A peer of a listening stream that is silent for a third of this is asked for a sign of life,
    /// and given up after all of it.
    pub keep_alive: Span,
    /// How long to wait for memory before trying again: refilling the ring, sending.
    pub retry_interval: Span,
    /// Where sequence numbers and ports come from.
    pub seed: u64,
}

impl StackConfig {
    /// The defaults for a host `mac`, `addr` on a link of 256 addresses.
    pub fn new(mac: MacAddr, addr: Ipv4Addr) -> StackConfig {
        StackConfig {
            mac,
            addr,
            prefix_len: 24,
            gateway: None,
            tag: true,
            drop: true,
            udp_socket_bytes_max: 212_992,
            udp_host_frames_max: 2048,
            sockets_max: 1024,
            neighbours_max: 64,
            reassembly_contexts: 16,
            timer_scale: 50,
            ack_delay: Span::from_micros(200),
            connect_timeout: Span::from_secs(3),
            keep_alive: Span::from_secs(30),
            retry_interval: Span::from_millis(1),
            seed: 1,
        }
    }
}

/// The nodes of the reserve tree that networking is charged to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NetReserves {
    /// The parent of the other two, connected while there is a tagged stream.
    pub net: ReserveId,
    /// Receive buffers and what processing them needs.
    pub rx: ReserveId,
    /// Packets to send.
    pub tx: ReserveId,
}

/// A packet that was not sent because no buffer could be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TxFailure {
    /// Whose packet it was; `None` for one of the stack's own.
    pub stream: Option<StreamId>,
    /// When.
    pub at: Time,
    /// Why.
    pub error: AllocError,
}

/// Names a datagram socket of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct UdpId(u16);

/// A host's network stack over one card. See the module's documentation.
pub struct Stack<'b, D> {
    config: StackConfig,
    link: Link<D>,
    iface: Interface,
    /// Sockets for packets that belong to none: smoltcp answers them (RST, echo).
    nobody: SocketSet<'b>,
    streams: Vec<Stream<'b>>,
    udp: UdpSockets,
    reassembly: Reassembly,
    rng: Xoshiro256PlusPlus,
    tagged: u32,
    connected: bool,
    /// The earliest `poll_at` of all streams.
    next_stream_at: Time,
    any_dirty: bool,
    refill_at: Time,
    more_rx: bool,
    lost: Option<PacketBuf>,
}

impl<'b, D: Device> Stack<'b, D> {
    /// A stack over `device` with all its memory from `pool`; a far side that does not page needs no
    /// `reserves`.
    pub fn new(
        config: StackConfig,
        device: D,
        pool: PagePool,
        reserves: Option<NetReserves>,
    ) -> Stack<'b, D> {
        let mut link = Link::new(&config, device, pool, reserves);
        link.stats.lowest_ring_fill = usize::MAX;
        let mut iface_config = Config::new(HardwareAddress::Ip);
        iface_config.random_seed = config.seed;
        let mut phy =
            Phy { link: &mut link, now: Time::ZERO, rx: None, tagged: false, stream: None };
        let mut iface = Interface::new(iface_config, &mut phy, Instant::ZERO);
        iface.update_ip_addrs(|addrs| {
            // The list is empty and holds at least one.
            let _ = addrs.push(IpCidr::Ipv4(Ipv4Cidr::new(config.addr, config.prefix_len)));
        });
        Stack {
            link,
            iface,
            nobody: SocketSet::new(Vec::new()),
            streams: Vec::new(),
            udp: UdpSockets::new(config.udp_socket_bytes_max, config.udp_host_frames_max),
            reassembly: Reassembly::new(config.reassembly_contexts),
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            tagged: 0,
            connected: false,
            next_stream_at: Time::MAX,
            any_dirty: false,
            refill_at: Time::MAX,
            more_rx: false,
            lost: None,
            config,
        }
    }

    /// The card.
    pub fn device(&self) -> &D {
        &self.link.device
    }

    /// The card, for whoever moves its packets.
    pub fn device_mut(&mut self) -> &mut D {
        &mut self.link.device
    }

    /// The pool.
    pub fn pool(&self) -> &PagePool {
        &self.link.pool
    }

    /// How it was set up.
    pub fn config(&self) -> &StackConfig {
        &self.config
    }

    /// Counters.
    pub fn stats(&self) -> &StackStats {
        &self.link.stats
    }

    // ---- tags -----------------------------------------------------------------------------------

    /// Adds a stream with the buffers `rx` and `tx`, which it keeps for life: slices of pool frames
    /// that were set aside. The tag is set here, before any connection.
    ///
    /// # Panics
    /// If the network reserve cannot be connected: see [`Stack::try_add_stream`].
    pub fn add_stream(&mut self, rx: &'b mut [u8], tx: &'b mut [u8], tagged: bool) -> StreamId {
        self.try_add_stream(rx, tx, tagged).expect("the network reserve can be connected at start")
    }

    /// As [`Stack::add_stream`].
    ///
    /// # Errors
    /// If it is the first tagged stream and the frames of the network reserve cannot be secured.
    pub fn try_add_stream(
        &mut self,
        rx: &'b mut [u8],
        tx: &'b mut [u8],
        tagged: bool,
    ) -> Result<StreamId, ReserveError> {
        let delay = self.config.ack_delay * u64::from(self.config.timer_scale);
        self.streams.push(Stream::new(rx, tx, false, delay));
        self.link.failures.push(None);
        self.link.last_sent.push([0; SEGMENT_HEAD]);
        let id = StreamId((self.streams.len() - 1) as u16);
        if let Err(error) = self.set_tagged(id, tagged) {
            self.streams.pop();
            self.link.failures.pop();
            self.link.last_sent.pop();
            return Err(error);
        }
        Ok(id)
    }

    /// Sets or clears the tag of a stream. The first tagged stream connects the network reserve, the
    /// last one disconnects it. To move the tag from one stream to another without dipping, set the
    /// new one first.
    ///
    /// # Errors
    /// If the frames of the reserve cannot be secured; nothing is changed then.
    pub fn set_tagged(&mut self, id: StreamId, tagged: bool) -> Result<(), ReserveError> {
        let tagged = tagged && self.config.tag;
        if self.streams[id.index()].tagged == tagged {
            return Ok(());
        }
        if tagged && !self.connected {
            if let Some(reserves) = self.link.reserves {
                self.link.pool.connect(reserves.net)?;
            }
            self.connected = true;
        }
        self.unregister(id.0);
        self.streams[id.index()].tagged = tagged;
        self.tagged = if tagged { self.tagged + 1 } else { self.tagged - 1 };
        self.register(id.0);
        if self.tagged == 0 {
            self.try_disconnect();
        }
        Ok(())
    }

    /// Disconnects the reserve after the last tag is gone. What is still charged, in the receive ring
    /// perhaps, stays promised until it is released.
    fn try_disconnect(&mut self) {
        self.connected = match self.link.reserves {
            Some(reserves) => self.link.pool.disconnect(reserves.net).is_err(),
            None => false,
        };
    }

    /// Tagged streams.
    pub fn tagged_streams(&self) -> u32 {
        self.tagged
    }

    /// Whether the network reserve is connected.
    pub fn is_reserve_connected(&self) -> bool {
        self.connected
    }

    // ---- the receive ring -----------------------------------------------------------------------

    /// Slots of the receive ring without a buffer.
    pub fn ring_unfilled(&self) -> usize {
        self.link.device.rx_unfilled()
    }

    /// Fills the receive ring: ordinary frames first, then, if there is a tagged stream, frames charged
    /// to the receive reserve. Cheap if nothing is unfilled.
    pub fn refill(&mut self) {
        let mut unfilled = self.link.device.rx_unfilled();
        while unfilled > 0 {
            let frame = match self.link.reserves {
                // Takes an ordinary frame if it may, and only then one of the reserve.
                Some(reserves) if self.tagged > 0 => {
                    self.link.pool.alloc_from(Gfp::ATOMIC | Gfp::MEMALLOC, reserves.rx)
                }
                _ => self.link.pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC),
            };
            let posted = match frame {
                Ok(frame) => self.link.device.post_rx(frame).is_ok(),
                Err(_) => {
                    self.link.stats.refill_failed += 1;
                    false
                }
            };
            if !posted {
                break;
            }
            unfilled -= 1;
        }
    }

    fn refill_at(&mut self, now: Time) {
        self.refill();
        let unfilled = self.link.device.rx_unfilled();
        let fill = self.link.device.rx_ring() - unfilled;
        self.link.stats.lowest_ring_fill = self.link.stats.lowest_ring_fill.min(fill);
        self.refill_at = if unfilled > 0 { now + self.config.retry_interval } else { Time::MAX };
    }

    // ---- polling --------------------------------------------------------------------------------

    /// Fills the ring, processes what was received (a bounded number of packets), sends what is due.
    pub fn poll(&mut self, now: Time) {
        self.refill_at(now);
        self.more_rx = true;
        let received = self.link.stats.received;
        for _ in 0..INGRESS_MAX {
            let Some(packet) = self.link.device.poll_rx(now) else {
                self.more_rx = false;
                break;
            };
            self.handle_packet(now, packet);
        }
        self.poll_timers(now);
        if self.any_dirty || self.next_stream_at <= now {
            self.egress_all(now);
        }
        if self.connected && self.tagged == 0 {
            self.try_disconnect();
        }
        if self.link.stats.received != received {
            self.refill_at(now);
        }
    }

    fn poll_timers(&mut self, now: Time) {
        if self.reassembly.poll_deadline().is_some_and(|at| at <= now) {
            let reason = DropReason::ReassemblyTimeout as usize;
            self.link.stats.drops[reason] += self.reassembly.expire(now);
        }
        while self.link.neighbours.poll_deadline().is_some_and(|at| at <= now) {
            let asked = self.link.neighbours.poll(now, &mut self.lost);
            if self.lost.take().is_some() {
                self.link.stats.count(DropReason::NeighbourUnresolved);
            }
            if let Some(ip) = asked {
                let tagged = self.link.filter.is_tagged_peer(ip);
                self.link.send_arp_request(now, ip, tagged);
            }
        }
    }

    /// When [`Stack::poll`] has something to do by itself. Packets moved by the card's owner, freed
    /// memory and calls of [`Stack::drive`] give it something to do at once.
    pub fn poll_deadline(&self, now: Time) -> Option<Time> {
        if self.more_rx {
            return Some(now);
        }
        let mut at = self.next_stream_at.min(self.refill_at);
        if self.any_dirty && self.link.device.tx_room() > TX_SLACK {
            at = at.min(now);
        }
        for timer in [
            self.reassembly.poll_deadline(),
            self.link.neighbours.poll_deadline(),
            self.link.device.poll_deadline(),
        ] {
            if let Some(timer) = timer {
                at = at.min(timer);
            }
        }
        (at < Time::MAX).then_some(at)
    }

    // ---- receiving ------------------------------------------------------------------------------

    fn handle_packet(&mut self, now: Time, packet: PacketBuf) {
        self.link.stats.received += 1;
        let emergency = packet.is_emergency();
        let class = self.link.filter.classify(packet.data());
        let admitted = self.admit(emergency, class.map(|c| c.1));
        match (class, admitted) {
            (Ok((eth, class)), Ok(())) => {
                let mut packet = packet;
                packet.trim_front(eth.len);
                self.dispatch(now, packet, &eth, class, emergency);
            }
            (Err(reason), _) | (_, Err(reason)) => self.link.stats.count(reason),
        }
    }

    /// The filter, and its counters.
    fn admit(
        &mut self,
        emergency: bool,
        class: Result<Class, DropReason>,
    ) -> Result<(), DropReason> {
        if !emergency {
            return Ok(());
        }
        self.link.stats.emergency_received += 1;
        let admitted = class.and_then(|class| self.link.filter.admit(&class));
        match admitted {
            Err(_) if self.config.drop || class.is_err() => {
                self.link.stats.emergency_dropped += 1;
                admitted
            }
            _ => {
                self.link.stats.emergency_passed += 1;
                Ok(())
            }
        }
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

    fn handle_arp(&mut self, now: Time, arp: &crate::headers::ArpPacket) {
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
                self.handle_smoltcp(now, &packet, entry);
            }
            _ => self.handle_smoltcp(now, &packet, None),
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
    fn handle_smoltcp(&mut self, now: Time, packet: &PacketBuf, entry: Option<Entry>) {
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

    // ---- the table of sockets -------------------------------------------------------------------

    /// Brings the table in line with the state of a stream's socket.
    fn sync(&mut self, index: u16) {
        let stream = &mut self.streams[usize::from(index)];
        stream.ready = true;
        if stream.key() != stream.registered {
            self.unregister(index);
            self.register(index);
        }
    }

    fn register(&mut self, index: u16) {
        let stream = &self.streams[usize::from(index)];
        let (key, tagged) = (stream.key(), stream.tagged);
        let Some(key) = key else { return };
        let filter = &mut self.link.filter;
        match key {
            Key::TcpListen { .. } => {
                let head = filter.table.find(key).map(|entry| entry.index);
                self.streams[usize::from(index)].next_listener = head;
                if tagged {
                    filter.count_tagged_listener(true);
                }
            }
            Key::Tcp { remote, .. } if tagged => {
                filter.add_peer(remote);
                if let Some(hop) = self.link.next_hop(remote).filter(|hop| *hop != remote) {
                    self.link.filter.add_peer(hop);
                }
            }
            _ => {}
        }
        // A full table means that packets for this stream find nobody: its peer is reset, as it
        // would be by a host without the socket.
        let _ = self.link.filter.table.insert(key, Entry { index, tagged });
        self.streams[usize::from(index)].registered = Some(key);
    }

    fn unregister(&mut self, index: u16) {
        let Some(key) = self.streams[usize::from(index)].registered.take() else { return };
        let tagged = self.streams[usize::from(index)].tagged;
        match key {
            Key::TcpListen { .. } => {
                self.unlink_listener(key, index);
                if tagged {
                    self.link.filter.count_tagged_listener(false);
                }
                return;
            }
            Key::Tcp { remote, .. } if tagged => {
                self.link.filter.remove_peer(remote);
                if let Some(hop) = self.link.next_hop(remote).filter(|hop| *hop != remote) {
                    self.link.filter.remove_peer(hop);
                }
            }
            _ => {}
        }
        if self.link.filter.table.find(key).is_some_and(|entry| entry.index == index) {
            self.link.filter.table.remove(key);
        }
    }

    /// Takes a stream out of the list of those that listen on one port.
    fn unlink_listener(&mut self, key: Key, index: u16) {
        let next = self.streams[usize::from(index)].next_listener.take();
        let Some(head) = self.link.filter.table.find(key) else { return };
        if head.index == index {
            match next {
                Some(next) => {
                    let tagged = self.streams[usize::from(next)].tagged;
                    let _ = self.link.filter.table.insert(key, Entry { index: next, tagged });
                }
                None => {
                    self.link.filter.table.remove(key);
                }
            }
            return;
        }
        let mut at = head.index;
        while let Some(other) = self.streams[usize::from(at)].next_listener {
            if other == index {
                self.streams[usize::from(at)].next_listener = next;
                return;
            }
            at = other;
        }
    }

    // ---- sending --------------------------------------------------------------------------------

    fn scaled(&self, now: Time) -> Instant {
        let micros = now.as_nanos() / 1000 * u64::from(self.config.timer_scale)
            + now.as_nanos() % 1000 * u64::from(self.config.timer_scale) / 1000;
        Instant::from_micros_const(micros.min(i64::MAX as u64) as i64)
    }

    fn unscaled(&self, at: Instant) -> Time {
        let micros = at.total_micros().max(0) as u64;
        let scale = u64::from(self.config.timer_scale);
        Time::from_nanos(
            (micros / scale).saturating_mul(1000) + (micros % scale * 1000).div_ceil(scale),
        )
    }

    /// Sends what all streams have to send, the tagged ones first.
    fn egress_all(&mut self, now: Time) {
        self.any_dirty = false;
        for tagged in [true, false] {
            for index in 0..self.streams.len() {
                let stream = &self.streams[index];
                if stream.tagged == tagged && (stream.dirty || stream.poll_at <= now) {
                    self.egress(now, index as u16);
                }
            }
        }
    }

    /// Sends what one stream has to send, as far as the card and memory allow.
    fn egress(&mut self, now: Time, index: u16) {
        let at = self.scaled(now);
        let stream = &mut self.streams[usize::from(index)];
        let before = stream.poll_at;
        stream.dirty = false;
        let mut tried = false;
        let next = loop {
            let stream = &mut self.streams[usize::from(index)];
            if stream.blocked_until > now {
                break stream.blocked_until;
            }
            // Asking first is cheaper than trying: most packets call for no answer at once.
            let wanted = match self.iface.poll_at(at, &stream.set) {
                None => break Time::MAX,
                Some(wanted) => self.unscaled(wanted),
            };
            let stream = &mut self.streams[usize::from(index)];
            if wanted > now {
                break wanted;
            }
            if tried {
                // smoltcp had its chance and sent nothing: what it still calls due is due later,
                // never in a loop.
                break now + self.config.retry_interval;
            }
            if self.link.device.tx_room() <= TX_SLACK {
                stream.dirty = true;
                self.any_dirty = true;
                break Time::MAX;
            }
            self.link.failed = false;
            let tagged = stream.tagged;
            let mut phy =
                Phy { link: &mut self.link, now, rx: None, tagged, stream: Some(StreamId(index)) };
            tried = self.iface.poll_egress(at, &mut phy, &mut stream.set) == PollResult::None;
            if self.link.failed {
                stream.blocked_until = now + self.config.retry_interval;
            }
            if stream.state_moved() {
                // A connection that ends while sending was given up by smoltcp's own timer.
                stream.timed_out |= stream.socket().state() == State::Closed;
                self.sync(index);
            }
        };
        let stream = &mut self.streams[usize::from(index)];
        stream.poll_at = next.min(stream.give_up_at);
        if stream.poll_at < self.next_stream_at {
            self.next_stream_at = stream.poll_at;
        } else if before == self.next_stream_at && stream.poll_at != before {
            self.next_stream_at = self.streams.iter().map(|s| s.poll_at).min().unwrap_or(Time::MAX);
        }
    }

    /// The last packet that was not sent for want of a buffer, so that a stuck machine can say so.
    pub fn last_tx_alloc_failure(&self) -> Option<TxFailure> {
        self.link.failure
    }

    /// The last packet of a stream that was not sent for want of a buffer.
    pub fn tx_alloc_failure_of(&self, id: StreamId) -> Option<TxFailure> {
        *self.link.failures.get(id.index())?
    }

    // ---- datagrams ------------------------------------------------------------------------------

    /// Opens an untagged datagram socket. To be called at start: its queue is made here.
    ///
    /// # Panics
    /// If the port is taken or the table of sockets full.
    pub fn udp_bind(&mut self, port: u16) -> UdpId {
        let key = Key::Udp { port };
        assert!(self.link.filter.table.find(key).is_none(), "UDP port {port} is taken");
        let index = self.udp.bind(port) as u16;
        let entry = Entry { index, tagged: false };
        self.link.filter.table.insert(key, entry).expect("the table of sockets has room");
        UdpId(index)
    }

    /// Closes a datagram socket and frees what it holds.
    pub fn udp_unbind(&mut self, id: UdpId) {
        if let Some(port) = self.udp.unbind(usize::from(id.0)) {
            self.link.filter.table.remove(Key::Udp { port });
        }
    }

    /// The next datagram of a socket.
    pub fn udp_recv(&mut self, id: UdpId) -> Option<Datagram> {
        self.udp.pop(usize::from(id.0))
    }

    /// Datagrams that wait at a socket, each holding a frame.
    pub fn udp_len(&self, id: UdpId) -> usize {
        self.udp.len(usize::from(id.0))
    }

    /// Datagrams that one socket may hold.
    pub fn udp_socket_frames_max(&self) -> usize {
        self.udp.per_socket()
    }

    /// Frames that all datagram sockets hold.
    pub fn udp_held(&self) -> usize {
        self.udp.held()
    }

    /// Each datagram socket with its port and the frames it holds.
    pub fn udp_holders(&self) -> impl Iterator<Item = (UdpId, u16, usize)> + '_ {
        self.udp.holders().map(|(index, port, held)| (UdpId(index as u16), port, held))
    }

    // ---- streams --------------------------------------------------------------------------------

    /// Lets a stream wait for peers on `port`. It returns to that whenever a connection has ended.
    /// Several streams may listen on one port, for as many connections.
    pub fn listen(&mut self, id: StreamId, port: u16) {
        let timeout = self.config.keep_alive * u64::from(self.config.timer_scale);
        let timeout = Duration::from_micros(timeout.as_nanos() / 1000);
        let stream = &mut self.streams[id.index()];
        stream.listen = Some(port);
        stream.socket_mut().set_keep_alive(Some(timeout / 3));
        stream.socket_mut().set_timeout(Some(timeout));
        if !stream.socket().is_open() {
            let _ = stream.socket_mut().listen(port);
            stream.phase = Phase::Listening;
        }
        self.sync(id.0);
    }

    /// Forgets a stream's connection without a word to the peer, as a host does that restarts. The
    /// session is told at the next [`Stack::drive`] that this side ended it.
    pub fn reset_stream(&mut self, id: StreamId) {
        let stream = &mut self.streams[id.index()];
        stream.forget();
        self.link.last_sent[id.index()] = [0; SEGMENT_HEAD];
        stream.forgotten = match stream.phase {
            Phase::Open | Phase::Connecting | Phase::Closing => Some(Disconnect::BySelf),
            _ => stream.forgotten,
        };
        stream.phase = Phase::Closed;
        stream.give_up_at = Time::MAX;
        stream.ready = true;
        if let Some(port) = stream.listen {
            self.listen(id, port);
        }
        self.sync(id.0);
    }

    /// Whether something happened to a stream since it was last driven.
    pub fn is_ready(&self, id: StreamId) -> bool {
        self.streams[id.index()].ready
    }

    /// What a stream is doing.
    pub fn stream_info(&self, id: StreamId) -> StreamInfo {
        let stream = &self.streams[id.index()];
        let socket = stream.socket();
        let remote = socket.remote_endpoint().map(|e| {
            let IpAddress::Ipv4(addr) = e.addr;
            (addr, e.port)
        });
        StreamInfo {
            phase: stream.phase,
            tagged: stream.tagged,
            remote,
            local_port: socket.local_endpoint().map_or(0, |e| e.port),
            unacknowledged: socket.send_queue(),
            unread: socket.recv_queue(),
        }
    }

    /// Whether no stream has bytes that its peer has not acknowledged or its session not taken, and no
    /// packet waits anywhere in the stack.
    pub fn is_drained(&self) -> bool {
        self.udp.held() == 0
            && self.reassembly.is_empty()
            && self.link.neighbours.waiting() == 0
            && self.streams.iter().all(|s| {
                let socket = s.socket();
                socket.send_queue() == 0 && socket.recv_queue() == 0
            })
    }

    /// Runs a stream's session: tells it what happened, moves bytes both ways, does what it asks for,
    /// sends. To be called when [`Stack::is_ready`] says so, when the session's own deadline has come,
    /// and after anything else was handed to the session.
    pub fn drive<S: Session + ?Sized>(&mut self, now: Time, id: StreamId, session: &mut S) {
        let index = id.0;
        self.streams[id.index()].ready = false;
        let mut anything = false;
        if let Some(why) = self.streams[id.index()].forgotten.take() {
            session.handle_disconnected(now, why);
        }
        // Each round lets what the session just did have its effect; a session that never rests
        // goes on at the next call.
        for _ in 0..64 {
            let mut moved = self.settle(now, index, session);
            if session.poll_deadline().is_some_and(|at| at <= now) {
                session.handle_deadline(now);
            }
            while let Some(action) = session.poll_action(now) {
                moved = true;
                if !self.carry_out(now, index, action, session) {
                    break;
                }
            }
            moved |= self.pump_in(now, index, session);
            moved |= self.pump_out(now, index, session);
            if !moved {
                break;
            }
            anything = true;
        }
        let stream = &mut self.streams[id.index()];
        if stream.state_moved() {
            self.sync(index);
            self.streams[id.index()].ready = false;
        }
        let stream = &self.streams[id.index()];
        if anything || stream.dirty || stream.poll_at <= now {
            self.egress(now, index);
        }
    }

    /// Tells the session what became of its connection.
    fn settle<S: Session + ?Sized>(&mut self, now: Time, index: u16, session: &mut S) -> bool {
        let stream = &mut self.streams[usize::from(index)];
        let state = stream.socket().state();
        let open = matches!(state, State::Established | State::CloseWait);
        let gone = if stream.timed_out { Disconnect::TimedOut } else { Disconnect::Reset };
        match stream.phase {
            Phase::Listening | Phase::Connecting if open => {
                stream.phase = Phase::Open;
                stream.give_up_at = Time::MAX;
                session.handle_connected(now);
            }
            Phase::Connecting if state == State::Closed => {
                self.end(index);
                session.handle_disconnected(now, gone);
            }
            Phase::Connecting if now >= stream.give_up_at => {
                stream.socket_mut().abort();
                self.farewell(now, index);
                self.end(index);
                session.handle_disconnected(now, Disconnect::TimedOut);
            }
            Phase::Open if state == State::Closed => {
                self.farewell(now, index);
                self.end(index);
                session.handle_disconnected(now, gone);
            }
            Phase::Open if state == State::CloseWait && stream.socket().recv_queue() == 0 => {
                stream.socket_mut().close();
                stream.phase = Phase::Draining;
                stream.give_up_at = now + self.config.connect_timeout;
                session.handle_disconnected(now, Disconnect::ByPeer);
            }
            Phase::Closing if matches!(state, State::Closed | State::TimeWait) => {
                self.end(index);
                session.handle_disconnected(now, Disconnect::BySelf);
            }
            Phase::Closing if now >= stream.give_up_at => {
                stream.socket_mut().abort();
                self.farewell(now, index);
                self.end(index);
                session.handle_disconnected(now, Disconnect::BySelf);
            }
            Phase::Draining if state == State::Closed => self.end(index),
            Phase::Draining if now >= stream.give_up_at => {
                stream.socket_mut().abort();
                self.farewell(now, index);
                self.end(index);
            }
            // A listener whose half-open connection timed out.
            Phase::Listening if state == State::Closed => {
                self.farewell(now, index);
                self.end(index);
            }
            _ => return false,
        }
        true
    }

    /// Sends the reset of a connection that was aborted, before its socket is used again.
    fn farewell(&mut self, now: Time, index: u16) {
        self.streams[usize::from(index)].blocked_until = Time::ZERO;
        self.egress(now, index);
    }

    /// The connection is gone: back to listening, or to nothing.
    fn end(&mut self, index: u16) {
        let stream = &mut self.streams[usize::from(index)];
        stream.give_up_at = Time::MAX;
        stream.timed_out = false;
        stream.phase = Phase::Closed;
        if let Some(port) = stream.listen {
            // TIME-WAIT is cut short: a peer that comes back from the same port is answered as new.
            if stream.socket_mut().listen(port).is_ok() {
                stream.phase = Phase::Listening;
            }
        }
        self.sync(index);
    }

    /// Does what the session asks for; `false` if it has been answered already.
    fn carry_out<S: Session + ?Sized>(
        &mut self,
        now: Time,
        index: u16,
        action: Action,
        session: &mut S,
    ) -> bool {
        match action {
            Action::Connect { remote, same_port } => {
                if !self.connect(now, index, remote, same_port) {
                    self.end(index);
                    session.handle_disconnected(now, Disconnect::Reset);
                    return false;
                }
            }
            Action::Close => {
                let timeout = self.config.connect_timeout;
                let stream = &mut self.streams[usize::from(index)];
                if matches!(stream.phase, Phase::Open | Phase::Connecting) {
                    stream.socket_mut().close();
                    stream.phase = Phase::Closing;
                    stream.give_up_at = now + timeout;
                }
            }
            Action::Abort => {
                let stream = &mut self.streams[usize::from(index)];
                if matches!(stream.phase, Phase::Open | Phase::Connecting | Phase::Closing) {
                    stream.socket_mut().abort();
                    self.farewell(now, index);
                    self.end(index);
                    session.handle_disconnected(now, Disconnect::BySelf);
                    return false;
                }
            }
        }
        true
    }

    /// Opens a connection on a stream's own socket, whose buffers are used again.
    fn connect(&mut self, now: Time, index: u16, remote: SocketAddr, same_port: bool) -> bool {
        let SocketAddr::V4(remote) = remote else { return false };
        if self.streams[usize::from(index)].socket().is_open() {
            self.streams[usize::from(index)].socket_mut().abort();
            self.farewell(now, index);
            // If the card was full the reset is not out; the peer will get it as an answer.
            self.streams[usize::from(index)].forget();
        }
        let last = self.streams[usize::from(index)].port;
        let port = if same_port && last != 0 { last } else { self.free_port(remote, index) };
        let stream = &mut self.streams[usize::from(index)];
        let socket = stream.set.get_mut::<smoltcp::socket::tcp::Socket<'_>>(stream.handle);
        let to = IpEndpoint::new(IpAddress::Ipv4(*remote.ip()), remote.port());
        if socket.connect(self.iface.context(), to, port).is_err() {
            return false;
        }
        stream.port = port;
        stream.timed_out = false;
        stream.phase = Phase::Connecting;
        stream.give_up_at = now + self.config.connect_timeout;
        stream.blocked_until = Time::ZERO;
        // The filter must know the stream before its first packet is answered.
        self.sync(index);
        true
    }

    /// A source port that no other stream uses towards `remote`.
    fn free_port(&mut self, remote: SocketAddrV4, index: u16) -> u16 {
        let span = u32::from(u16::MAX - EPHEMERAL_FIRST) + 1;
        let start = self.rng.next_u32() % span;
        let last = self.streams[usize::from(index)].port;
        let ports = (0..span).map(|i| EPHEMERAL_FIRST + ((start + i) % span) as u16);
        let (addr, remote_port) = (*remote.ip(), remote.port());
        let table = &self.link.filter.table;
        let mut free = ports.filter(|&port| {
            port != last && table.find(Key::Tcp { remote: addr, remote_port, port }).is_none()
        });
        free.next().unwrap_or(EPHEMERAL_FIRST)
    }

    /// Moves received bytes to where the session wants them.
    fn pump_in<S: Session + ?Sized>(&mut self, now: Time, index: u16, session: &mut S) -> bool {
        let stream = &mut self.streams[usize::from(index)];
        if !matches!(stream.phase, Phase::Open | Phase::Closing) {
            return false;
        }
        let mut moved = false;
        let socket = stream.socket_mut();
        while socket.can_recv() {
            let buffer = session.recv_buffer();
            if buffer.is_empty() {
                break;
            }
            let n = socket.recv_slice(buffer).unwrap_or(0);
            if n == 0 {
                break;
            }
            moved = true;
            session.handle_received(now, n);
        }
        moved
    }

    /// Queues what the session has to send, as far as there is room.
    fn pump_out<S: Session + ?Sized>(&mut self, now: Time, index: u16, session: &mut S) -> bool {
        let stream = &mut self.streams[usize::from(index)];
        if stream.phase != Phase::Open {
            return false;
        }
        let mut moved = false;
        let socket = stream.socket_mut();
        while socket.can_send() {
            let mut slices = SendVec::new();
            session.poll_send(now, &mut slices);
            let (mut taken, mut shown) = (0, 0);
            for slice in &slices {
                shown += slice.len();
                taken += socket.send_slice(slice).unwrap_or(0);
                if taken < shown {
                    break;
                }
            }
            drop(slices);
            if taken == 0 {
                break;
            }
            moved = true;
            session.handle_sent(now, taken);
            if taken < shown {
                break;
            }
        }
        moved
    }
}

/// Whether an IPv4 packet, already found to carry a whole TCP header, opens a connection: SYN, no ACK.
fn opens(packet: &[u8]) -> bool {
    let header = usize::from(packet.first().copied().unwrap_or(0) & 0x0f) * 4;
    packet.get(header + 13).is_some_and(|flags| flags & 0x16 == 0x02)
}
