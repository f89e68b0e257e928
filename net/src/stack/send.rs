//! Sending: what streams have to send, as far as the card and memory allow.

use netswap_reserve::Time;
use smoltcp::iface::PollResult;
use smoltcp::socket::tcp::State;
use smoltcp::time::Instant;

use super::{Stack, StreamId, TX_SLACK, TxFailure};
use crate::device::Device;
use crate::phy::Phy;

impl<'b, D: Device> Stack<'b, D> {
    pub(super) fn scaled(&self, now: Time) -> Instant {
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
    pub(super) fn egress_all(&mut self, now: Time) {
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
    pub(super) fn egress(&mut self, now: Time, index: u16) {
        let at = self.scaled(now);
        let stream = &mut self.streams[usize::from(index)];
        let before = stream.poll_at;
        stream.dirty = false;
        stream.watch();
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
}
