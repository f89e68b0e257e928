//! A third host that floods: seeded, bursty UDP traffic from one address to the ports of the host.
//!
//! Time is cut into periods. In each one burst begins at a random moment and sends at nearly the full
//! rate of the link until the period's share is spent; what a burst overdraws or leaves is carried to
//! the next period, so that the average is the share. Frames are made once, with right checksums,
//! and nothing is allocated or summed up for each packet.

use std::net::Ipv4Addr;

use netswap_reserve::{Span, Time};
use rand_xoshiro::Xoshiro256PlusPlus;
use rand_xoshiro::rand_core::{Rng, SeedableRng};

use crate::device::MacAddr;
use crate::headers::{
    ETH_LEN, ETHERTYPE_IPV4, EthHeader, IPV4_LEN, Ipv4Header, PROTO_UDP, UDP_LEN,
    fill_transport_checksum,
};
use crate::sim_link::{End, SimLink};

/// Bytes that a frame takes on the wire beside its own.
const WIRE_OVERHEAD: u64 = 24;
/// Payload of a fragment on a link of 1500 bytes, a multiple of 8.
const FRAGMENT: usize = 1480;
/// Frames handed to the link at once, at most.
const BATCH: usize = 64;

/// What the flood is like.
#[derive(Clone, Debug, PartialEq)]
pub struct FloodConfig {
    /// Which end it is sent to.
    pub towards: End,
    /// Ethernet address it comes from.
    pub from_mac: MacAddr,
    /// IP address it comes from.
    pub from: Ipv4Addr,
    /// Ethernet address of the victim.
    pub to_mac: MacAddr,
    /// IP address of the victim.
    pub to: Ipv4Addr,
    /// The first flow is sent to this port, the next to the next.
    pub first_port: u16,
    /// Flows.
    pub flows: u16,
    /// Share of the link's rate, in percent, on average.
    pub share_percent: u32,
    /// Smallest UDP payload, in bytes.
    pub payload_min: usize,
    /// Largest UDP payload, in bytes, of datagrams that are not fragmented.
    pub payload_max: usize,
    /// One burst begins in each period.
    pub period: Span,
    /// Datagrams in a million that are 1500 to 4000 bytes long and sent in fragments.
    pub fragmented_ppm: u32,
    /// Nothing is sent before.
    pub start: Time,
    /// Nothing is sent from then on.
    pub stop: Time,
}

impl FloodConfig {
    /// 30 % of the link in bursts of 10 ms, to 8 ports from 7000 on.
    pub fn new(to_mac: MacAddr, to: Ipv4Addr, from: Ipv4Addr) -> FloodConfig {
        FloodConfig {
            towards: End::A,
            from_mac: MacAddr([2, 0, 0, 0, 0xf1, 0x0d]),
            from,
            to_mac,
            to,
            first_port: 7000,
            flows: 8,
            share_percent: 30,
            payload_min: 200,
            payload_max: 1400,
            period: Span::from_millis(10),
            fragmented_ppm: 0,
            start: Time::ZERO,
            stop: Time::MAX,
        }
    }
}

/// One datagram: a template, as a run of frames.
#[derive(Debug)]
struct Template {
    first: usize,
    frames: usize,
    fragmented: bool,
}

/// The generator.
#[derive(Debug)]
pub struct Flood {
    config: FloodConfig,
    rng: Xoshiro256PlusPlus,
    frames: Vec<Box<[u8]>>,
    whole: Vec<Template>,
    fragmented: Vec<Template>,
    nanos_per_byte_e6: u64,
    /// Bytes that may still be sent, with what earlier periods left.
    credit: i64,
    period_end: Time,
    next: Time,
    id: u16,
    sent_datagrams: u64,
    sent_bytes: u64,
}

impl Flood {
    /// A flood over a link of `rate_bps`, drawn from `seed`.
    pub fn new(config: FloodConfig, rate_bps: u64, seed: u64) -> Flood {
        let mut flood = Flood {
            rng: Xoshiro256PlusPlus::seed_from_u64(seed ^ 0x66_6c6f_6f64),
            frames: Vec::new(),
            whole: Vec::new(),
            fragmented: Vec::new(),
            nanos_per_byte_e6: 8_000_000_000_000_000 / rate_bps.max(1),
            credit: 0,
            period_end: config.start,
            next: config.start,
            id: 0,
            sent_datagrams: 0,
            sent_bytes: 0,
            config,
        };
        flood.make_templates();
        flood
    }

    fn make_templates(&mut self) {
        let (min, max) = (self.config.payload_min, self.config.payload_max);
        let max = max.clamp(1, FRAGMENT - UDP_LEN).max(min.min(FRAGMENT - UDP_LEN));
        for flow in 0..self.config.flows.max(1) {
            for step in 0..8 {
                let len = min.min(max) + (max - min.min(max)) * step / 7;
                let template = self.make_template(flow, len);
                self.whole.push(template);
            }
            for len in [1600, 2400, 3200, 3960] {
                let template = self.make_template(flow, len);
                self.fragmented.push(template);
            }
        }
    }

    fn make_template(&mut self, flow: u16, len: usize) -> Template {
        let c = &self.config;
        let mut packet = vec![0; IPV4_LEN + UDP_LEN + len];
        let mut ip = Ipv4Header {
            src: c.from,
            dst: c.to,
            protocol: PROTO_UDP,
            header_len: IPV4_LEN,
            total_len: packet.len(),
            id: 0,
            more_fragments: false,
            fragment_offset: 0,
        };
        ip.emit(&mut packet);
        let port = c.first_port.wrapping_add(flow);
        packet[IPV4_LEN..IPV4_LEN + 2].copy_from_slice(&(40_000 + flow % 1000).to_be_bytes());
        packet[IPV4_LEN + 2..IPV4_LEN + 4].copy_from_slice(&port.to_be_bytes());
        packet[IPV4_LEN + 4..IPV4_LEN + 6].copy_from_slice(&((UDP_LEN + len) as u16).to_be_bytes());
        for (i, byte) in packet[IPV4_LEN + UDP_LEN..].iter_mut().enumerate() {
            *byte = (i as u8) ^ (flow as u8);
        }
        fill_transport_checksum(&mut packet);
        let segment = &packet[IPV4_LEN..];
        let first = self.frames.len();
        for (i, part) in segment.chunks(FRAGMENT).enumerate() {
            ip.total_len = IPV4_LEN + part.len();
            ip.fragment_offset = i * FRAGMENT;
            ip.more_fragments = ip.fragment_offset + part.len() < segment.len();
            let mut frame = vec![0; ETH_LEN + ip.total_len];
            EthHeader::emit(&mut frame, c.to_mac, c.from_mac, ETHERTYPE_IPV4);
            ip.emit(&mut frame[ETH_LEN..]);
            frame[ETH_LEN + IPV4_LEN..].copy_from_slice(part);
            self.frames.push(frame.into_boxed_slice());
        }
        let frames = self.frames.len() - first;
        Template { first, frames, fragmented: frames > 1 }
    }

    /// Hands the link what is due at `now`, and a little of what is due soon, with its time.
    pub fn poll(&mut self, now: Time, link: &mut SimLink) {
        for _ in 0..BATCH {
            if self.next > now || self.next >= self.config.stop {
                return;
            }
            let credit_before = self.credit;
            if self.next >= self.period_end {
                self.begin_period();
                continue;
            }
            if credit_before <= 0 {
                self.next = self.period_end;
                continue;
            }
            let wire_bytes = self.send_one(link);
            self.credit -= wire_bytes as i64;
            self.next += Span::from_nanos(wire_bytes * self.nanos_per_byte_e6 / 1_000_000);
        }
    }

    /// A new period: its share is added, and the burst begins somewhere in the part of the period that
    /// it leaves free.
    fn begin_period(&mut self) {
        let from = self.period_end.max(self.next);
        let period = self.config.period.as_nanos().max(1000);
        let per_byte = self.nanos_per_byte_e6.max(1);
        let capacity = (u128::from(period) * 1_000_000 / u128::from(per_byte)) as u64;
        self.credit += (capacity * u64::from(self.config.share_percent.min(100)) / 100) as i64;
        let burst = (self.credit.max(0) as u64).saturating_mul(per_byte) / 1_000_000;
        let free = period.saturating_sub(burst);
        let offset = if free == 0 { 0 } else { self.rng.next_u64() % free };
        self.period_end = from + Span::from_nanos(period);
        self.next = from + Span::from_nanos(offset);
    }

    fn send_one(&mut self, link: &mut SimLink) -> u64 {
        let draw = self.rng.next_u64();
        let ppm = ((draw & 0xffff_ffff) * 1_000_000) >> 32;
        let list = if ppm < u64::from(self.config.fragmented_ppm) {
            &self.fragmented
        } else {
            &self.whole
        };
        let template = &list[((draw >> 32) as usize) % list.len()];
        self.id = self.id.wrapping_add(1);
        let mut wire_bytes = 0;
        for frame in &mut self.frames[template.first..template.first + template.frames] {
            if template.fragmented {
                set_id(&mut frame[ETH_LEN..ETH_LEN + IPV4_LEN], self.id);
            }
            link.inject(self.next, self.config.towards, frame);
            wire_bytes += frame.len() as u64 + WIRE_OVERHEAD;
        }
        self.sent_datagrams += 1;
        self.sent_bytes += wire_bytes;
        wire_bytes
    }

    /// When [`Flood::poll`] has something to do.
    pub fn poll_deadline(&self) -> Option<Time> {
        (self.next < self.config.stop).then_some(self.next)
    }

    /// Datagrams sent so far.
    pub fn sent_datagrams(&self) -> u64 {
        self.sent_datagrams
    }

    /// Bytes sent so far, as the wire counts them.
    pub fn sent_wire_bytes(&self) -> u64 {
        self.sent_bytes
    }
}

/// Gives a header another identification and corrects its checksum (RFC 1624, equation 3).
fn set_id(header: &mut [u8], id: u16) {
    let word = |at: usize| u32::from(u16::from_be_bytes([header[at], header[at + 1]]));
    let (sum, old) = (word(10), word(4));
    let mut new = (!sum & 0xffff) + (!old & 0xffff) + u32::from(id);
    while new > 0xffff {
        new = (new & 0xffff) + (new >> 16);
    }
    header[4..6].copy_from_slice(&id.to_be_bytes());
    header[10..12].copy_from_slice(&(!(new as u16)).to_be_bytes());
}
