//! The simulated link: two network cards, a full-duplex wire between them, and a switch port on
//! each side through which a third host can send.
//!
//! # Fault model
//! A frame may be lost, duplicated, delayed by jitter, delayed enough to be overtaken (reordered),
//! have one bit flipped, or be cut off by a partition. Each is drawn from the link's own seeded
//! generator, per direction, and counted. A flipped bit is not seen by the card unless
//! [`LinkConfig::corrupt_passes_fcs`] is off: it is there to try the checksums above. Nothing
//! must survive: the link promises no delivery at all.
//!
//! # Memory
//! A sender's frame is freed when it has been put on the wire at the link's rate. Bytes in flight
//! live in the wire's own slots, made at start: the wire is not host memory. On arrival they are
//! copied into the next buffer of the receiver's ring; without one they are lost and counted.

use std::collections::VecDeque;

use netswap_reserve::{Frame, Span, Time, ZeroedBytes};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::device::{Device, MacAddr};
use crate::headers::{ETH_LEN, VLAN_LEN};
use crate::packet::{HEADROOM, PacketBuf};

/// Bytes that a frame takes on the wire beside its own: preamble, check sequence, gap.
const WIRE_OVERHEAD: u64 = 24;

/// A simulated network card.
#[derive(Debug)]
pub struct SimNic {
    mac: MacAddr,
    mtu: usize,
    ring: usize,
    tx_queue: usize,
    posted: VecDeque<Frame>,
    filled: VecDeque<PacketBuf>,
    tx: VecDeque<(Time, PacketBuf)>,
}

impl SimNic {
    /// A card with `ring` receive slots and room for `tx_queue` packets to send.
    ///
    /// # Panics
    /// If a packet of `mtu` bytes does not fit a pool frame.
    pub fn new(mac: MacAddr, mtu: usize, ring: usize, tx_queue: usize) -> SimNic {
        let need = HEADROOM + ETH_LEN + VLAN_LEN + mtu;
        assert!(need <= netswap_reserve::PAGE_SIZE, "a packet must fit a frame");
        SimNic {
            mac,
            mtu,
            ring,
            tx_queue,
            posted: VecDeque::with_capacity(ring),
            filled: VecDeque::with_capacity(ring),
            tx: VecDeque::with_capacity(tx_queue),
        }
    }

    /// Packets received and not yet taken.
    pub fn rx_waiting(&self) -> usize {
        self.filled.len()
    }

    /// Packets queued to be sent, which hold frames.
    pub fn tx_waiting(&self) -> usize {
        self.tx.len()
    }

    /// A frame from the wire, into the next buffer; `false` if there is none.
    #[inline]
    fn receive(&mut self, bytes: &[u8]) -> bool {
        if bytes.len() > ETH_LEN + VLAN_LEN + self.mtu {
            return false;
        }
        let Some(mut frame) = self.posted.pop_front() else { return false };
        frame.bytes_mut()[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(bytes);
        self.filled.push_back(PacketBuf::from_frame(frame, HEADROOM, bytes.len()));
        true
    }
}

impl Device for SimNic {
    fn mac(&self) -> MacAddr {
        self.mac
    }

    fn mtu(&self) -> usize {
        self.mtu
    }

    fn rx_ring(&self) -> usize {
        self.ring
    }

    fn rx_unfilled(&self) -> usize {
        self.ring - self.posted.len() - self.filled.len()
    }

    fn post_rx(&mut self, frame: Frame) -> Result<(), Frame> {
        if self.rx_unfilled() == 0 {
            return Err(frame);
        }
        self.posted.push_back(frame);
        Ok(())
    }

    fn poll_rx(&mut self, _now: Time) -> Option<PacketBuf> {
        self.filled.pop_front()
    }

    fn tx_room(&self) -> usize {
        self.tx_queue - self.tx.len()
    }

    fn transmit(&mut self, now: Time, packet: PacketBuf) -> Result<(), PacketBuf> {
        if self.tx_room() == 0 {
            return Err(packet);
        }
        self.tx.push_back((now, packet));
        Ok(())
    }

    fn poll_deadline(&self) -> Option<Time> {
        None
    }
}

/// How long after a frame has left its buffer comes back to the host at the latest, if the link's
/// latency is no shorter: the transmit interrupt moderation of common cards.
const TX_REPORT: Span = Span::from_micros(20);

/// An end of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The host.
    A,
    /// The far side.
    B,
}

/// What a link is like. Both directions are alike; rates of faults are in parts per million frames.
#[derive(Clone, Debug, PartialEq)]
pub struct LinkConfig {
    /// Bits a second.
    pub rate_bps: u64,
    /// Time from the last bit sent to the arrival.
    pub latency: Span,
    /// Each frame is late by up to this more, evenly spread.
    pub jitter: Span,
    /// Frames lost.
    pub loss_ppm: u32,
    /// Frames that arrive twice.
    pub duplicate_ppm: u32,
    /// Frames held back by `reorder_by`.
    pub reorder_ppm: u32,
    /// How long such a frame is held back.
    pub reorder_by: Span,
    /// Frames with one bit flipped.
    pub corrupt_ppm: u32,
    /// Whether a frame with a flipped bit reaches the host. A real card would see it by the check
    /// sequence and drop it; bits also flip inside of cards and switches, where nothing looks.
    pub corrupt_passes_fcs: bool,
    /// The largest IP packet carried.
    pub mtu: usize,
    /// Frames of a third host that may wait for the wire, for each direction; more are dropped at
    /// the tail.
    pub queue_frames: usize,
    /// Frames in flight or waiting at most, for each direction: the wire's own memory.
    pub slots: usize,
}

impl Default for LinkConfig {
    /// 1 Gbit/s, 100 us one way, no faults.
    fn default() -> LinkConfig {
        LinkConfig {
            rate_bps: 1_000_000_000,
            latency: Span::from_micros(100),
            jitter: Span::ZERO,
            loss_ppm: 0,
            duplicate_ppm: 0,
            reorder_ppm: 0,
            reorder_by: Span::from_micros(200),
            corrupt_ppm: 0,
            corrupt_passes_fcs: true,
            mtu: 1500,
            queue_frames: 256,
            slots: 768,
        }
    }
}

/// What happened to the frames of one direction.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WireStats {
    /// Frames put on the wire.
    pub sent: u64,
    /// Frames that reached a receive buffer, duplicates included.
    pub delivered: u64,
    /// Lost by chance.
    pub lost: u64,
    /// Doubled.
    pub duplicated: u64,
    /// Held back.
    pub reordered: u64,
    /// Had a bit flipped.
    pub corrupted: u64,
    /// Lost to a partition.
    pub partitioned: u64,
    /// Lost for want of a receive buffer.
    pub no_rx_buffer: u64,
    /// Dropped at the tail of a queue.
    pub queue_full: u64,
}

impl WireStats {
    /// Names and values, to be printed.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        [
            ("sent", self.sent),
            ("delivered", self.delivered),
            ("lost", self.lost),
            ("duplicated", self.duplicated),
            ("reordered", self.reordered),
            ("corrupted", self.corrupted),
            ("partitioned", self.partitioned),
            ("no_rx_buffer", self.no_rx_buffer),
            ("queue_full", self.queue_full),
        ]
        .into_iter()
    }

    fn plus(&self, other: &WireStats) -> WireStats {
        WireStats {
            sent: self.sent + other.sent,
            delivered: self.delivered + other.delivered,
            lost: self.lost + other.lost,
            duplicated: self.duplicated + other.duplicated,
            reordered: self.reordered + other.reordered,
            corrupted: self.corrupted + other.corrupted,
            partitioned: self.partitioned + other.partitioned,
            no_rx_buffer: self.no_rx_buffer + other.no_rx_buffer,
            queue_full: self.queue_full + other.queue_full,
        }
    }
}

/// What happened to the frames of both directions.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LinkStats {
    /// From the host to the far side.
    pub a_to_b: WireStats,
    /// From the far side to the host.
    pub b_to_a: WireStats,
}

impl LinkStats {
    /// Both directions together.
    pub fn total(&self) -> WireStats {
        self.a_to_b.plus(&self.b_to_a)
    }
}

/// A frame in a slot of the wire, and when it is due.
#[derive(Clone, Copy, Debug)]
struct Slotted {
    at: Time,
    slot: u16,
    len: u16,
}

#[derive(Debug)]
struct Wire {
    rng: Xoshiro256PlusPlus,
    slot_bytes: usize,
    bytes: ZeroedBytes,
    free: Vec<u16>,
    /// Frames of the third host waiting for the wire, by the time they were handed in.
    queue: VecDeque<Slotted>,
    /// Frames in flight, by the time they arrive.
    flying: VecDeque<Slotted>,
    /// When the wire has sent what was put on it.
    idle_at: Time,
    /// When the frame that is next on the wire will have been sent, as of the last poll.
    sending: Option<Time>,
    /// The last frame length and what it takes to send: most frames are alike.
    last: (usize, Span),
}

/// A full-duplex link between two cards.
///
/// ```
/// use netswap_net::{Device, End, LinkConfig, MacAddr, SimLink, SimNic};
/// use netswap_reserve::{Gfp, PagePool, PoolConfig, Time};
///
/// let pool = PagePool::new(PoolConfig::new(64));
/// let mut a = SimNic::new(MacAddr([2, 0, 0, 0, 0, 1]), 1500, 8, 8);
/// let mut b = SimNic::new(MacAddr([2, 0, 0, 0, 0, 2]), 1500, 8, 8);
/// b.post_rx(pool.alloc(Gfp::ATOMIC)?).unwrap();
/// let mut link = SimLink::new(LinkConfig::default(), 1);
/// link.inject(Time::ZERO, End::B, &[0; 60]);
/// while let Some(at) = link.poll_deadline() {
///     link.poll(at, &mut a, &mut b);
/// }
/// assert_eq!(b.poll_rx(Time::MAX).unwrap().len(), 60);
/// # Ok::<(), netswap_reserve::AllocError>(())
/// ```
#[derive(Debug)]
pub struct SimLink {
    config: LinkConfig,
    a_to_b: Wire,
    b_to_a: Wire,
    partitions: Vec<(Time, Time)>,
    stats: LinkStats,
}

impl SimLink {
    /// A link whose faults are drawn from `seed`.
    pub fn new(config: LinkConfig, seed: u64) -> SimLink {
        SimLink {
            a_to_b: Wire::new(&config, seed ^ 0x0061_3262),
            b_to_a: Wire::new(&config, seed ^ 0x0062_3261),
            config,
            partitions: Vec::with_capacity(16),
            stats: LinkStats::default(),
        }
    }

    /// What the link is like.
    pub fn config(&self) -> &LinkConfig {
        &self.config
    }

    /// From `from` until `until` every frame that has been put on the wire is lost.
    pub fn partition(&mut self, from: Time, until: Time) {
        self.partitions.push((from, until));
    }

    /// What happened so far.
    pub fn stats(&self) -> &LinkStats {
        &self.stats
    }

    /// A frame of a third host, which shares the rate of the direction and waits in a bounded queue
    /// of the switch. `now` may lie ahead, so that a generator can hand in a batch: the frame is
    /// sent no earlier.
    pub fn inject(&mut self, now: Time, towards: End, frame: &[u8]) {
        let (wire, stats) = match towards {
            End::A => (&mut self.b_to_a, &mut self.stats.b_to_a),
            End::B => (&mut self.a_to_b, &mut self.stats.a_to_b),
        };
        let full = wire.queue.len() >= self.config.queue_frames;
        match (!full).then(|| wire.store(frame)).flatten() {
            Some(slot) => wire.queue.push_back(Slotted { at: now, slot, len: frame.len() as u16 }),
            None => stats.queue_full += 1,
        }
    }

    /// Moves what is due at `now`: frames leave the cards' queues and the switch at the link's rate,
    /// and arrive.
    pub fn poll(&mut self, now: Time, a: &mut SimNic, b: &mut SimNic) {
        let config = &self.config;
        let cut = &self.partitions[..];
        let from_a = self.a_to_b.send(now, config, cut, a, &mut self.stats.a_to_b);
        let from_b = self.b_to_a.send(now, config, cut, b, &mut self.stats.b_to_a);
        self.a_to_b.deliver(now, b, &mut self.stats.a_to_b);
        self.b_to_a.deliver(now, a, &mut self.stats.b_to_a);
        // Cards report what they have sent in groups, so nobody has to look in for each frame.
        let lag = TX_REPORT.min(self.config.latency);
        self.a_to_b.sending = from_a.map(|at| at + lag);
        self.b_to_a.sending = from_b.map(|at| at + lag);
    }

    /// When [`SimLink::poll`] has something to do. A packet that a card has taken since the last poll
    /// is not known yet: poll once after every transmit.
    pub fn poll_deadline(&self) -> Option<Time> {
        let arriving = earlier(self.arrival(End::A), self.arrival(End::B));
        earlier(self.send_deadline(), arriving)
    }

    /// The part of [`SimLink::poll_deadline`] that is about sending: when a card has a frame to report
    /// as sent. A driver that looks at a card some time after a frame's arrival, as interrupts that are
    /// held back make it, has no need to be there at each [`SimLink::arrival`].
    pub fn send_deadline(&self) -> Option<Time> {
        let lag = TX_REPORT.min(self.config.latency);
        let on = |wire: &Wire| {
            // While a card's frame is being sent, what a third host queued waits behind it.
            let queued = || wire.queue.front().map(|q| wire.sent_at(&self.config, *q) + lag);
            wire.sending.or_else(queued)
        };
        earlier(on(&self.a_to_b), on(&self.b_to_a))
    }

    /// When the next frame in flight towards a card arrives there.
    #[inline]
    pub fn arrival(&self, towards: End) -> Option<Time> {
        let wire = match towards {
            End::A => &self.b_to_a,
            End::B => &self.a_to_b,
        };
        wire.flying.front().map(|f| f.at)
    }

    /// Whether nothing waits for the wire or is in flight.
    pub fn is_idle(&self) -> bool {
        self.poll_deadline().is_none()
    }
}

fn earlier(a: Option<Time>, b: Option<Time>) -> Option<Time> {
    match (a, b) {
        (Some(a), Some(b)) => Some(a.min(b)),
        (a, b) => a.or(b),
    }
}

impl Wire {
    fn new(config: &LinkConfig, seed: u64) -> Wire {
        let slot_bytes = (ETH_LEN + VLAN_LEN + config.mtu).next_multiple_of(64);
        let slots = config.slots.min(usize::from(u16::MAX));
        Wire {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            slot_bytes,
            bytes: ZeroedBytes::new(slots * slot_bytes)
                .expect("a link's buffers are at most 65,535 frames"),
            free: (0..slots as u16).rev().collect(),
            queue: VecDeque::with_capacity(config.queue_frames.min(slots)),
            flying: VecDeque::with_capacity(slots),
            idle_at: Time::ZERO,
            sending: None,
            last: (0, Span::ZERO),
        }
    }

    fn slot(&mut self, slot: u16) -> &mut [u8] {
        let at = usize::from(slot) * self.slot_bytes;
        &mut self.bytes[at..at + self.slot_bytes]
    }

    fn store(&mut self, frame: &[u8]) -> Option<u16> {
        if frame.len() > self.slot_bytes {
            return None;
        }
        let slot = self.free.pop()?;
        self.slot(slot)[..frame.len()].copy_from_slice(frame);
        Some(slot)
    }

    fn time_to_send(config: &LinkConfig, len: usize) -> Span {
        let bits = (len as u64 + WIRE_OVERHEAD) * 8;
        Span::from_nanos(bits * 1_000_000_000 / config.rate_bps.max(1))
    }

    fn sent_at(&self, config: &LinkConfig, first: Slotted) -> Time {
        self.idle_at.max(first.at) + Self::time_to_send(config, usize::from(first.len))
    }

    /// Puts on the wire what has been sent by `now`; returns when the next frame will have been.
    fn send(
        &mut self,
        now: Time,
        config: &LinkConfig,
        cut: &[(Time, Time)],
        from: &mut SimNic,
        stats: &mut WireStats,
    ) -> Option<Time> {
        loop {
            let card = from.tx.front().map(|(at, packet)| (*at, packet.len()));
            let third = self.queue.front().map(|q| (q.at, usize::from(q.len)));
            let (from_card, (at, len)) = match (card, third) {
                (Some(card), Some(third)) if card.0 <= third.0 => (true, card),
                (_, Some(third)) => (false, third),
                (Some(card), None) => (true, card),
                (None, None) => return None,
            };
            if self.last.0 != len {
                self.last = (len, Self::time_to_send(config, len));
            }
            let done = self.idle_at.max(at) + self.last.1;
            if done > now {
                return Some(done);
            }
            self.idle_at = done;
            stats.sent += 1;
            // Both lists have a front of the kind chosen above.
            let slot = if from_card {
                let stored = from.tx.pop_front().and_then(|(_, packet)| self.store(packet.data()));
                if stored.is_none() {
                    stats.queue_full += 1;
                }
                stored
            } else {
                self.queue.pop_front().map(|q| q.slot)
            };
            if let Some(slot) = slot {
                self.fly(done, config, cut, slot, len, stats);
            }
        }
    }

    fn hit(&mut self, ppm: u32) -> bool {
        ppm > 0 && (u64::from(self.rng.next_u32()) * 1_000_000) >> 32 < u64::from(ppm)
    }

    /// A frame that left at `sent`: draws what happens to it.
    fn fly(
        &mut self,
        sent: Time,
        config: &LinkConfig,
        cut: &[(Time, Time)],
        slot: u16,
        len: usize,
        stats: &mut WireStats,
    ) {
        if cut.iter().any(|(from, until)| *from <= sent && sent < *until) {
            stats.partitioned += 1;
            return self.free.push(slot);
        }
        if self.hit(config.loss_ppm) {
            stats.lost += 1;
            return self.free.push(slot);
        }
        if self.hit(config.corrupt_ppm) {
            stats.corrupted += 1;
            if !config.corrupt_passes_fcs {
                return self.free.push(slot);
            }
            let bit = self.below(len as u64 * 8);
            self.slot(slot)[(bit / 8) as usize] ^= 1 << (bit % 8);
        }
        if self.hit(config.duplicate_ppm)
            && let Some(copy) = self.free.pop()
        {
            stats.duplicated += 1;
            let at = usize::from(slot) * self.slot_bytes;
            let to = usize::from(copy) * self.slot_bytes;
            self.bytes.copy_within(at..at + len, to);
            self.arrive(sent, config, copy, len);
        }
        let mut sent = sent;
        if self.hit(config.reorder_ppm) {
            stats.reordered += 1;
            sent += config.reorder_by;
        }
        self.arrive(sent, config, slot, len);
    }

    fn below(&mut self, bound: u64) -> u64 {
        ((u128::from(self.rng.next_u64()) * u128::from(bound)) >> 64) as u64
    }

    fn arrive(&mut self, sent: Time, config: &LinkConfig, slot: u16, len: usize) {
        let mut at = sent + config.latency;
        if config.jitter > Span::ZERO {
            at += Span::from_nanos(self.below(config.jitter.as_nanos() + 1));
        }
        let frame = Slotted { at, slot, len: len as u16 };
        // Nearly all frames arrive after those already in flight: look from the back.
        if self.flying.back().is_none_or(|last| last.at <= at) {
            return self.flying.push_back(frame);
        }
        let behind = self.flying.iter().rev().take_while(|f| f.at > at).count();
        self.flying.insert(self.flying.len() - behind, frame);
    }

    fn deliver(&mut self, now: Time, to: &mut SimNic, stats: &mut WireStats) {
        while let Some(first) = self.flying.front().filter(|f| f.at <= now) {
            let (slot, len) = (first.slot, usize::from(first.len));
            let at = usize::from(slot) * self.slot_bytes;
            if to.receive(&self.bytes[at..at + len]) {
                stats.delivered += 1;
            } else {
                stats.no_rx_buffer += 1;
            }
            self.flying.pop_front();
            self.free.push(slot);
        }
    }
}
