//! The untagged TCP flow that shows that ordinary traffic survives: a peer that sends a known pattern
//! in pieces, and a sink that checks every byte.

use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_reserve::{Span, Time};

const PERIOD: usize = 251;

/// Byte `at` of the pattern. Its period is prime, so that no power-of-two shift goes unnoticed.
fn pattern(at: u64) -> u8 {
    (at % PERIOD as u64) as u8
}

/// Sends the pattern, a piece every [`PatternSource::INTERVAL`].
pub(crate) struct PatternSource {
    remote: std::net::SocketAddr,
    total: u64,
    sent: u64,
    /// Bytes that may have been sent by now.
    allowed: u64,
    next: Time,
    open: bool,
    connecting: bool,
    table: Vec<u8>,
}

impl PatternSource {
    /// Time between two pieces.
    const INTERVAL: Span = Span::from_millis(20);
    /// Bytes of a piece.
    const PIECE: u64 = 4096;

    pub(crate) fn new(remote: std::net::SocketAddr, total: u64) -> PatternSource {
        PatternSource {
            remote,
            total,
            sent: 0,
            allowed: 0,
            next: Time::ZERO,
            open: false,
            connecting: false,
            table: (0..PERIOD + Self::PIECE as usize).map(|i| pattern(i as u64)).collect(),
        }
    }
}

impl Session for PatternSource {
    fn handle_connected(&mut self, now: Time) {
        self.open = true;
        self.next = now;
    }

    fn handle_disconnected(&mut self, now: Time, _why: Disconnect) {
        self.open = false;
        self.connecting = false;
        self.next = now + Self::INTERVAL;
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        &mut []
    }

    fn handle_received(&mut self, _now: Time, n: usize) {
        assert_eq!(n, 0, "the source takes no input");
    }

    fn poll_send<'a>(&'a mut self, _now: Time, out: &mut SendVec<'a>) {
        if !self.open {
            return;
        }
        let n = (self.allowed - self.sent).min(Self::PIECE) as usize;
        let from = (self.sent % PERIOD as u64) as usize;
        if n > 0 {
            out.push(&self.table[from..from + n]);
        }
    }

    fn handle_sent(&mut self, _now: Time, n: usize) {
        self.sent += n as u64;
    }

    fn poll_action(&mut self, now: Time) -> Option<Action> {
        if self.connecting || now < self.next || self.sent == self.total {
            return None;
        }
        self.connecting = true;
        Some(Action::Connect { remote: self.remote, same_port: false })
    }

    fn poll_deadline(&self) -> Option<Time> {
        (self.allowed < self.total && (self.open || !self.connecting)).then_some(self.next)
    }

    fn handle_deadline(&mut self, now: Time) {
        if self.open && now >= self.next && self.allowed < self.total {
            self.allowed = (self.allowed + Self::PIECE).min(self.total);
            self.next = now + Self::INTERVAL;
        }
    }
}

/// Receives the pattern and checks every byte.
pub(crate) struct PatternSink {
    total: u64,
    received: u64,
    wrong: u64,
    buffer: Vec<u8>,
}

impl PatternSink {
    pub(crate) fn new(total: u64) -> PatternSink {
        PatternSink { total, received: 0, wrong: 0, buffer: vec![0; 4096] }
    }

    /// Bytes that arrived.
    pub(crate) fn received(&self) -> u64 {
        self.received
    }

    /// Bytes that were not those sent.
    pub(crate) fn wrong(&self) -> u64 {
        self.wrong
    }

    /// Whether all has arrived.
    pub(crate) fn is_complete(&self) -> bool {
        self.received >= self.total
    }
}

impl Session for PatternSink {
    fn handle_connected(&mut self, _now: Time) {}

    fn handle_disconnected(&mut self, _now: Time, _why: Disconnect) {}

    fn recv_buffer(&mut self) -> &mut [u8] {
        &mut self.buffer
    }

    fn handle_received(&mut self, _now: Time, n: usize) {
        for (i, byte) in self.buffer[..n].iter().enumerate() {
            self.wrong += u64::from(*byte != pattern(self.received + i as u64));
        }
        self.received += n as u64;
    }

    fn poll_send<'a>(&'a mut self, _now: Time, _out: &mut SendVec<'a>) {}

    fn handle_sent(&mut self, _now: Time, n: usize) {
        assert_eq!(n, 0, "the sink sends nothing");
    }

    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        None
    }

    fn poll_deadline(&self) -> Option<Time> {
        None
    }

    fn handle_deadline(&mut self, _now: Time) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sink_notices_a_byte_that_is_not_the_patterns() {
        let mut sink = PatternSink::new(4);
        sink.recv_buffer()[..3].copy_from_slice(&[0, 1, 9]);
        sink.handle_received(Time::ZERO, 3);
        assert_eq!((sink.received(), sink.wrong()), (3, 1));
        assert!(!sink.is_complete());
    }

    #[test]
    fn the_source_sends_the_pattern_in_paced_pieces() {
        let mut source = PatternSource::new("10.0.0.1:9".parse().unwrap(), 10_000);
        let mut sink = PatternSink::new(10_000);
        assert!(source.poll_action(Time::ZERO).is_some());
        source.handle_connected(Time::ZERO);
        let mut now = Time::ZERO;
        while let Some(deadline) = source.poll_deadline() {
            now = now.max(deadline);
            source.handle_deadline(now);
            let bytes = {
                let mut out = SendVec::new();
                source.poll_send(now, &mut out);
                out.concat()
            };
            sink.recv_buffer()[..bytes.len()].copy_from_slice(&bytes);
            sink.handle_received(now, bytes.len());
            source.handle_sent(now, bytes.len());
        }
        assert!(sink.is_complete());
        assert_eq!(sink.wrong(), 0);
        assert_eq!(now, Time::ZERO + PatternSource::INTERVAL * 2);
    }
}
