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

use std::net::Ipv4Addr;

use netswap_reserve::{AllocError, Gfp, PagePool, ReserveError, ReserveId, Span, Time};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::SeedableRng;
use smoltcp::iface::{Config, Interface, SocketSet};
use smoltcp::time::Instant;
use smoltcp::wire::{HardwareAddress, IpCidr, Ipv4Cidr};

use crate::device::{Device, MacAddr};
use crate::packet::PacketBuf;
use crate::phy::{Link, Phy, SEGMENT_HEAD};
use crate::reassembly::Reassembly;
use crate::stats::{DropReason, StackStats};
use crate::stream::Stream;
pub use crate::stream::{Phase, StreamId, StreamInfo};
use crate::udp::UdpSockets;

mod connections;
mod datagrams;
mod receive;
mod send;
mod sockets;
mod streams;

/// Places of the card's queue that are left for answers to what is being received.
const TX_SLACK: usize = 4;

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

    /// The same for a link where an answer takes `round_trip`: the first retransmission timeout is four
    /// of them at least, as long as smoltcp's own (1 s) allows, and 20 ms at least. A timeout shorter
    /// than the link has everything sent several times, and the link is never caught up with.
    pub fn round_trip(self, round_trip: Span) -> StackConfig {
        let fits = Span::from_secs(1).as_nanos() / (round_trip * 4).as_nanos().max(1);
        let most = u64::from(self.timer_scale);
        StackConfig {
            timer_scale: fits.clamp(1, most) as u32,
            connect_timeout: self.connect_timeout.max(round_trip * 16),
            keep_alive: self.keep_alive.max(round_trip * 64),
            ..self
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
///
/// ```
/// use netswap_net::{Device, End, LinkConfig, MacAddr, SimLink, SimNic, Stack, StackConfig};
/// use netswap_reserve::{PagePool, PoolConfig, Span, Time};
///
/// let mac = MacAddr([2, 0, 0, 0, 0, 1]);
/// let pool = PagePool::new(PoolConfig::new(256));
/// let mut far = SimNic::new(MacAddr([2, 0, 0, 0, 0, 2]), 1500, 16, 16);
/// let mut link = SimLink::new(LinkConfig::default(), 1);
///
/// let card = SimNic::new(mac, 1500, 16, 16);
/// let config = StackConfig::new(mac, [10, 0, 0, 1].into());
/// let mut host = Stack::new(config, card, pool, None);
/// let socket = host.udp_bind(7000);
/// host.poll(Time::ZERO);
/// assert_eq!(host.ring_unfilled(), 0, "the receive ring is filled from the pool");
///
/// // The loop of a driver: move packets, let the host work, go on to the next deadline.
/// link.inject(Time::ZERO, End::A, &[0; 60]);
/// let mut now = Time::ZERO;
/// while let Some(at) = link.poll_deadline() {
///     now = at;
///     link.poll(now, host.device_mut(), &mut far);
///     host.poll(now);
/// }
/// assert_eq!((host.stats().received, host.udp_len(socket)), (1, 0), "it was not for us");
/// ```
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
        let unfilled = self.link.device.rx_unfilled();
        if unfilled == 0 {
            return;
        }
        let device = &mut self.link.device;
        let result = match self.link.reserves {
            // Takes ordinary frames as far as it may, and only then those of the reserve.
            Some(reserves) if self.tagged > 0 => {
                let gfp = Gfp::ATOMIC | Gfp::MEMALLOC;
                self.link.pool.alloc_burst_from(gfp, reserves.rx, unfilled, |frame| {
                    // There is room for as many as were asked for.
                    let _ = device.post_rx(frame);
                })
            }
            _ => (0..unfilled).try_for_each(|_| {
                let frame = self.link.pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC)?;
                let _ = device.post_rx(frame);
                Ok(())
            }),
        };
        self.link.stats.refill_failed += u64::from(result.is_err());
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
        let received = self.link.stats.received;
        self.more_rx = self.ingress(now);
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
        let timers = [
            self.reassembly.poll_deadline(),
            self.link.neighbours.poll_deadline(),
            self.link.device.poll_deadline(),
        ];
        for timer in timers.into_iter().flatten() {
            at = at.min(timer);
        }
        (at < Time::MAX).then_some(at)
    }
}
