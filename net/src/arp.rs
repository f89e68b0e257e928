//! Neighbours: which Ethernet address an IP address on the link has (RFC 826).
//!
//! The table has a fixed size. Requests are limited per neighbour, not for the whole host: the first
//! ones follow each other quickly, so that a lost one costs little, then one a second (RFC 1122
//! section 2.3.2.1). While an address is being resolved one packet waits for it, the newest.
//!
//! ARP has no checksum, so a damaged reply can enter a wrong address. An entry is therefore confirmed
//! only by traffic that came from it (an IP packet from that address by that station), and is asked
//! for again when it has not been confirmed for a while: a wrong one heals by itself.

use std::net::Ipv4Addr;

use netswap_reserve::{Span, Time};

use crate::device::MacAddr;
use crate::packet::PacketBuf;

/// An entry not confirmed for this long is asked for again while it is used.
pub const STALE_AFTER: Span = Span::from_secs(5);
/// The first request is repeated after this; the span doubles up to [`RETRY_MAX`].
pub const RETRY_FIRST: Span = Span::from_millis(50);
/// The longest span between two requests for one neighbour.
pub const RETRY_MAX: Span = Span::from_secs(1);
/// Unanswered requests after which an address counts as unknown, and what waits for it is dropped.
pub const TRIES_MAX: u8 = 8;

#[derive(Debug)]
struct Neighbour {
    ip: Ipv4Addr,
    mac: Option<MacAddr>,
    confirmed: Time,
    tries: u8,
    next_try: Time,
    waiting: Option<PacketBuf>,
}

/// What is known of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Resolved {
    /// Send there; `ask` says that a request is due because the entry is stale.
    Known {
        /// The station.
        mac: MacAddr,
        /// Whether to send a request as well.
        ask: bool,
    },
    /// Hold the packet with [`Neighbours::hold`]; `ask` says that a request is due.
    Wait {
        /// Whether to send a request now.
        ask: bool,
    },
    /// There is no room to resolve another address.
    Full,
}

/// The table of neighbours.
#[derive(Debug)]
pub struct Neighbours {
    entries: Vec<Neighbour>,
    max: usize,
    /// Where the entry for an address with this last byte was seen: a guess that is checked.
    hint: [u8; 256],
    /// No timer is due before this.
    next: Time,
}

impl Neighbours {
    /// A table for `max` neighbours (255 at most).
    pub fn new(max: usize) -> Neighbours {
        let max = max.clamp(1, 255);
        Neighbours { entries: Vec::with_capacity(max), max, hint: [0; 256], next: Time::MAX }
    }

    /// Neighbours in the table, resolved or not.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether the table is empty.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    fn find(&mut self, ip: Ipv4Addr) -> Option<usize> {
        let last = usize::from(ip.octets()[3]);
        let guess = usize::from(self.hint[last]);
        if self.entries.get(guess).is_some_and(|n| n.ip == ip) {
            return Some(guess);
        }
        let at = self.entries.iter().position(|n| n.ip == ip)?;
        self.hint[last] = at as u8;
        Some(at)
    }

    /// A place for a new neighbour; entries that `needed` names are not pushed out for it.
    fn insert(&mut self, ip: Ipv4Addr, needed: impl Fn(Ipv4Addr) -> bool) -> Option<usize> {
        let new = Neighbour {
            ip,
            mac: None,
            confirmed: Time::ZERO,
            tries: 0,
            next_try: Time::ZERO,
            waiting: None,
        };
        if self.entries.len() < self.max {
            self.entries.push(new);
            return Some(self.entries.len() - 1);
        }
        let candidates = self.entries.iter().enumerate();
        let oldest = candidates
            .filter(|(_, n)| n.waiting.is_none() && !needed(n.ip))
            .min_by_key(|(_, n)| n.confirmed)
            .map(|(at, _)| at)?;
        self.entries[oldest] = new;
        Some(oldest)
    }

    fn retry(&mut self, at: usize, now: Time) {
        let n = &mut self.entries[at];
        let shift = u32::from(n.tries.min(16));
        let span = Span::from_nanos((RETRY_FIRST.as_nanos() << shift).min(RETRY_MAX.as_nanos()));
        n.tries = n.tries.saturating_add(1);
        n.next_try = now + span;
        if n.waiting.is_some() || n.mac.is_none() {
            self.next = self.next.min(n.next_try);
        }
    }

    /// What is known of `ip`, to which a packet is to be sent.
    pub fn resolve(
        &mut self,
        now: Time,
        ip: Ipv4Addr,
        needed: impl Fn(Ipv4Addr) -> bool,
    ) -> Resolved {
        let Some(at) = self.find(ip).or_else(|| self.insert(ip, needed)) else {
            return Resolved::Full;
        };
        let n = &mut self.entries[at];
        let due = now >= n.next_try;
        match n.mac {
            Some(mac) if now.since(n.confirmed) < STALE_AFTER => {
                Resolved::Known { mac, ask: false }
            }
            Some(_) if n.tries >= TRIES_MAX => {
                n.mac = None;
                n.tries = 0;
                self.retry(at, now);
                Resolved::Wait { ask: true }
            }
            Some(mac) => {
                if due {
                    self.retry(at, now);
                }
                Resolved::Known { mac, ask: due }
            }
            None => {
                if due {
                    self.retry(at, now);
                }
                Resolved::Wait { ask: due }
            }
        }
    }

    /// Keeps `packet` until `ip` is resolved; returns the one it replaces, or itself if `ip` is not
    /// being resolved.
    pub fn hold(&mut self, ip: Ipv4Addr, packet: PacketBuf) -> Option<PacketBuf> {
        let Some(at) = self.find(ip) else { return Some(packet) };
        let n = &mut self.entries[at];
        self.next = self.next.min(n.next_try);
        n.waiting.replace(packet)
    }

    /// An ARP packet to us said that `ip` is at `mac`. Answers count only if we asked; requests enter
    /// new neighbours, but do not replace one that is in good standing. Returns the packet that
    /// waited for it.
    pub fn learn(
        &mut self,
        now: Time,
        ip: Ipv4Addr,
        mac: MacAddr,
        asked_us: bool,
        needed: impl Fn(Ipv4Addr) -> bool,
    ) -> Option<PacketBuf> {
        let at = match self.find(ip) {
            Some(at) => at,
            None if asked_us => self.insert(ip, needed)?,
            None => return None,
        };
        let n = &mut self.entries[at];
        let fresh = n.mac.is_some() && now.since(n.confirmed) < STALE_AFTER;
        if (asked_us && fresh) || (!asked_us && n.tries == 0) {
            return None;
        }
        n.mac = Some(mac);
        n.confirmed = now;
        n.tries = 0;
        n.next_try = now;
        n.waiting.take()
    }

    /// A valid IP packet came from `ip` by station `mac`.
    #[inline]
    pub fn confirm(&mut self, now: Time, ip: Ipv4Addr, mac: MacAddr) {
        if let Some(at) = self.find(ip)
            && self.entries[at].mac == Some(mac)
        {
            self.entries[at].confirmed = now;
            self.entries[at].tries = 0;
        }
    }

    /// The next address that a request is due for, because a packet waits. What has waited too long
    /// is put into `dropped`.
    pub fn poll(&mut self, now: Time, dropped: &mut Option<PacketBuf>) -> Option<Ipv4Addr> {
        if now < self.next {
            return None;
        }
        for at in 0..self.entries.len() {
            let n = &mut self.entries[at];
            if n.waiting.is_none() || now < n.next_try {
                continue;
            }
            if n.tries >= TRIES_MAX {
                *dropped = n.waiting.take();
                n.tries = 0;
                return None;
            }
            let ip = n.ip;
            self.retry(at, now);
            return Some(ip);
        }
        let waiting = self.entries.iter().filter(|n| n.waiting.is_some());
        self.next = waiting.map(|n| n.next_try).min().unwrap_or(Time::MAX);
        None
    }

    /// When [`Neighbours::poll`] has something to do.
    pub fn poll_deadline(&self) -> Option<Time> {
        (self.next < Time::MAX).then_some(self.next)
    }

    /// Packets that wait for an address, each holding a frame.
    pub fn waiting(&self) -> usize {
        self.entries.iter().filter(|n| n.waiting.is_some()).count()
    }
}

#[cfg(test)]
mod tests {
    use netswap_reserve::{Gfp, PagePool, PoolConfig};

    use super::*;

    const MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 9]);

    fn ip(n: u8) -> Ipv4Addr {
        Ipv4Addr::new(10, 0, 0, n)
    }

    fn at(ms: u64) -> Time {
        Time::ZERO + Span::from_millis(ms)
    }

    fn packet(pool: &PagePool) -> PacketBuf {
        PacketBuf::from_frame(pool.alloc(Gfp::KERNEL).unwrap(), 64, 20)
    }

    #[test]
    fn requests_are_limited_per_neighbour_not_for_all() {
        let mut table = Neighbours::new(16);
        for n in 1..=10 {
            assert_eq!(table.resolve(at(0), ip(n), |_| false), Resolved::Wait { ask: true });
            assert_eq!(table.resolve(at(1), ip(n), |_| false), Resolved::Wait { ask: false });
        }
        assert_eq!(table.resolve(at(50), ip(3), |_| false), Resolved::Wait { ask: true });
    }

    #[test]
    fn more_neighbours_than_eight_are_remembered() {
        let mut table = Neighbours::new(64);
        for n in 1..=60 {
            table.learn(at(0), ip(n), MacAddr([2, 0, 0, 0, 0, n]), true, |_| false);
        }
        for n in 1..=60 {
            let mac = MacAddr([2, 0, 0, 0, 0, n]);
            assert_eq!(table.resolve(at(1), ip(n), |_| false), Resolved::Known { mac, ask: false });
        }
    }

    #[test]
    fn a_waiting_packet_is_sent_when_the_answer_comes() {
        let pool = PagePool::new(PoolConfig::new(64));
        let mut table = Neighbours::new(4);
        table.resolve(at(0), ip(1), |_| false);
        assert!(table.hold(ip(1), packet(&pool)).is_none());
        assert!(table.hold(ip(1), packet(&pool)).is_some(), "one waits, the newest");
        assert!(table.learn(at(5), ip(1), MAC, false, |_| false).is_some());
        assert_eq!(table.poll_deadline().and_then(|_| table.poll(at(60), &mut None)), None);
    }

    #[test]
    fn an_unanswered_request_is_repeated_then_given_up() {
        let pool = PagePool::new(PoolConfig::new(64));
        let mut table = Neighbours::new(4);
        table.resolve(at(0), ip(1), |_| false);
        table.hold(ip(1), packet(&pool));
        let (mut asked, mut dropped) = (1, None);
        while let Some(deadline) = table.poll_deadline() {
            asked += usize::from(table.poll(deadline, &mut dropped).is_some());
        }
        assert_eq!((asked, dropped.is_some()), (usize::from(TRIES_MAX), true));
        assert_eq!(table.waiting(), 0);
    }

    #[test]
    fn an_answer_nobody_asked_for_is_ignored() {
        let mut table = Neighbours::new(4);
        table.learn(at(0), ip(1), MAC, false, |_| false);
        assert!(table.is_empty());
        table.learn(at(0), ip(1), MAC, true, |_| false);
        table.learn(at(1), ip(1), MacAddr([6; 6]), true, |_| false);
        table.learn(at(1), ip(1), MacAddr([6; 6]), false, |_| false);
        let known = Resolved::Known { mac: MAC, ask: false };
        assert_eq!(table.resolve(at(2), ip(1), |_| false), known);
    }

    #[test]
    fn a_wrong_address_heals_because_nothing_confirms_it() {
        let mut table = Neighbours::new(4);
        let wrong = MacAddr([4; 6]);
        table.resolve(at(0), ip(1), |_| false);
        table.learn(at(1), ip(1), wrong, false, |_| false);
        table.confirm(at(4000), ip(1), MAC);
        let known = |mac, ask| Resolved::Known { mac, ask };
        assert_eq!(table.resolve(at(4900), ip(1), |_| false), known(wrong, false));
        assert_eq!(table.resolve(at(5100), ip(1), |_| false), known(wrong, true));
        table.learn(at(5200), ip(1), MAC, false, |_| false);
        assert_eq!(table.resolve(at(5300), ip(1), |_| false), known(MAC, false));
        table.confirm(at(9000), ip(1), MAC);
        assert_eq!(table.resolve(at(13_000), ip(1), |_| false), known(MAC, false));
    }

    #[test]
    fn a_full_table_pushes_out_only_what_is_not_needed() {
        let mut table = Neighbours::new(2);
        table.learn(at(0), ip(1), MAC, true, |_| false);
        table.learn(at(1), ip(2), MAC, true, |_| false);
        table.learn(at(2), ip(3), MAC, true, |n| n == ip(1));
        assert!(matches!(table.resolve(at(3), ip(1), |_| true), Resolved::Known { .. }));
        assert_eq!(table.resolve(at(3), ip(2), |_| true), Resolved::Full);
    }
}
