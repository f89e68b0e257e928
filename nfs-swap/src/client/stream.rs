//! The session: connecting, sending, and everything that happens by time.
//!
//! # Repeating a call
//! TCP loses nothing, so an unanswered call has three causes: the server is slow, it lost the call
//! (or answered it with an xid that is not ours), or the connection is dead. The first time a call
//! times out while other bytes still arrive, it alone is sent again on the same connection, with the
//! same xid: a reconnect would send *every* outstanding call again, and each slot of a repeated WRITE
//! must be quarantined by its owner. The second time, or when nothing has arrived since it was sent,
//! the connection is given up: all calls are repeated on a new one from the same source port, which is
//! what a server's duplicate request cache knows us by.

use std::net::SocketAddr;

use netswap_net::{Action, Answers, Disconnect, RecvVec, SendVec, Session};
use netswap_reserve::Time;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_swap::{BackendState, StoreError};

use super::startup::Step;
use super::{CallState, NfsBackend, NfsConfig, Verb};
use crate::link::Target;
use crate::pages::MAP_RETRY;

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// Something is due at `at`.
    pub(super) fn arm(&mut self, at: Time) {
        self.next_deadline = self.next_deadline.min(at);
    }

    /// Gives up the connection by `action`, if there is one. The calls on it wait for the next.
    pub(super) fn drop_connection(&mut self, action: Action) {
        self.link.give_up(action);
        self.detach();
    }

    fn detach(&mut self) {
        for call in &mut self.calls {
            if matches!(call.state, CallState::Queued | CallState::Sent { .. }) {
                call.state = CallState::Pending;
            }
        }
        self.sendq.clear();
        self.sent_front = 0;
        self.rx.reset();
        self.distrust_uncommitted();
        let now = self.progress_at;
        for i in 0..self.requests() {
            // Its bytes are gone, so it cannot be sent again.
            if self.calls[i].holes && self.calls[i].verb == Verb::Write {
                self.take_apart(i, |this, i| this.await_wire(now, i));
            }
        }
    }

    /// Does what is due. Cheap if nothing is.
    pub(super) fn tick(&mut self, now: Time) {
        if now < self.next_deadline {
            return;
        }
        if self.map_retry_at <= now {
            // What waits to be sent is asked for again by the transport.
            self.map_retry_at = Time::MAX;
            self.receive_bounced(now);
        }
        for i in 0..self.requests() {
            // When the leader of a call leaves, the row has another request.
            while self.calls[i].is_active() && self.calls[i].deadline <= now {
                let gone = self.leave(now, i);
                self.finish(now, gone, Err(StoreError::TimedOut));
            }
        }
        if self.link.is_late(now, self.config.request_timeout) || self.is_stalled(now) {
            self.drop_connection(Action::Abort);
        }
        for i in 0..self.calls.len() {
            match self.calls[i].state {
                CallState::Backoff { until } if until <= now => {
                    if i == self.control() {
                        self.begin_step(now);
                    } else {
                        self.reissue(now, i);
                    }
                }
                CallState::Sent { at } if at + self.patience(&self.calls[i]) <= now => {
                    self.handle_silence(now, i, at);
                }
                _ => {}
            }
        }
        self.unsettled = true;
        self.settle(now);
        self.rearm();
    }

    /// There is no window for a copy.
    #[cold]
    pub(super) fn await_window(&mut self, now: Time) {
        self.stats.map_waits += 1;
        self.map_retry_at = now + MAP_RETRY;
        self.arm(self.map_retry_at);
    }

    pub(super) fn is_sending(&self) -> bool {
        self.link.is_open() && (!self.sendq.is_empty() || self.is_held_up())
    }

    /// The transport has had something to take for a long time, and no byte went either way.
    fn is_stalled(&self, now: Time) -> bool {
        self.is_sending() && self.progress_at + self.config.request_timeout <= now
    }

    fn handle_silence(&mut self, now: Time, i: usize, sent_at: Time) {
        let alive = self.received_at > sent_at;
        if self.rx.is_for(i) && alive {
            // Its reply is on the way in.
            self.calls[i].state = CallState::Sent { at: self.received_at };
            return;
        }
        self.calls[i].timeouts += 1;
        let has_bytes = self.calls[i].verb != Verb::Write || !self.calls[i].holes;
        if alive && has_bytes && self.calls[i].timeouts % 2 == 1 {
            self.enqueue(now, i);
        } else {
            tracing::info!(server = %self.config.label, xid = self.xids.xid(i), "no answer, reconnecting");
            self.drop_connection(Action::Abort);
        }
    }

    fn rearm(&mut self) {
        let timeout = self.config.request_timeout;
        let mut next = self.link.deadline(self.wants_connection(), timeout).min(self.map_retry_at);
        if self.is_sending() {
            next = next.min(self.progress_at + timeout);
        }
        for call in &self.calls {
            if !call.is_active() {
                continue;
            }
            next = next.min(call.deadline);
            match call.state {
                CallState::Backoff { until } => next = next.min(until),
                CallState::Sent { at } => next = next.min(at + self.patience(call)),
                CallState::Uncommitted { since } if !self.is_committing() => {
                    next = next.min(since + self.config.commit_delay);
                }
                _ => {}
            }
        }
        self.next_deadline = next;
    }

    /// Where the service is that the connection goes to.
    fn remote(&self) -> SocketAddr {
        let NfsConfig { server, mount, portmap, .. } = self.config;
        match self.link.target() {
            Target::Portmap => portmap.unwrap_or(server),
            Target::Mount => mount.unwrap_or(server),
            Target::Nfs => server,
        }
    }

    fn wants_connection(&self) -> bool {
        matches!(self.state, BackendState::Starting | BackendState::Ready { .. })
    }
}

impl<P: MapPageMut, M: Mapper> Session for NfsBackend<P, M> {
    fn handle_connected(&mut self, now: Time) {
        if !self.link.handle_connected() {
            return;
        }
        self.stats.connections += 1;
        self.connection += 1;
        self.progress_at = now;
        self.received_at = now;
        let control = self.control();
        if self.calls[control].state == CallState::Pending {
            self.enqueue(now, control);
        } else if self.step != Step::Idle && self.calls[control].state == CallState::Free {
            self.begin_step(now);
        }
        if self.link.target() == Target::Nfs {
            for i in (0..self.calls.len()).filter(|i| *i != control) {
                if self.calls[i].state == CallState::Pending {
                    self.enqueue(now, i);
                }
            }
            self.write_again_after_loss(now);
            if !self.waiting.is_empty() {
                self.arm(now + self.config.request_timeout);
            }
            self.look_for_restart(now);
            self.settle(now);
        }
    }

    fn handle_disconnected(&mut self, now: Time, why: Disconnect) {
        if !self.link.is_switching() {
            tracing::debug!(server = %self.config.label, %why, "disconnected");
        }
        self.detach();
        let retry_at = self.link.handle_disconnected(now, self.config.reconnect_max);
        if self.wants_connection() {
            self.arm(retry_at);
        }
    }

    fn answers(&self) -> Answers {
        let outstanding = if self.link.is_open() { self.wire as u32 } else { 0 };
        Answers { outstanding, come: self.stats.replies }
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        if !self.link.is_open() {
            return &mut [];
        }
        self.receive_into()
    }

    fn recv_buffers<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        if self.link.is_open() {
            self.receive_into_all(out);
        }
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        if n == 0 {
            return;
        }
        assert!(self.link.is_open(), "bytes received without a buffer");
        self.progress_at = now;
        self.received_at = now;
        self.receive(now, n);
        self.settle(now);
    }

    fn poll_send<'a>(&'a mut self, now: Time, out: &mut SendVec<'a>) {
        if !self.link.is_open() {
            return;
        }
        self.dispatch(now);
        if let Some(front) = self.sendq.front() {
            let i = usize::from(*front);
            if self.sends_high(i) {
                let n = self.fill_stage(now, i);
                if n > 0 {
                    // An empty vector has room for it.
                    let _ = out.try_push(&self.stage[..n]);
                }
                return;
            }
        }
        let this: &'a NfsBackend<P, M> = self;
        let mut skip = this.sent_front;
        for place in &this.sendq {
            if !this.push_message(usize::from(*place), skip, out) {
                break;
            }
            skip = 0;
        }
    }

    fn handle_sent(&mut self, now: Time, n: usize) {
        if n == 0 {
            return;
        }
        self.progress_at = now;
        let mut left = n;
        while left > 0 {
            let place = *self.sendq.front().expect("more bytes taken than were shown");
            let i = usize::from(place);
            let rest = self.message_len(i) - self.sent_front;
            if left < rest {
                self.sent_front += left;
                break;
            }
            left -= rest;
            self.sent_front = 0;
            self.sendq.pop_front();
            self.stats.calls += 1;
            // Only a whole record can be executed, so a call that was cut off while it was being
            // sent for the first time does not count.
            if self.calls[i].sends > 0 {
                self.let_all_go(i);
                self.stats.retransmissions += 1;
            }
            let call = &mut self.calls[i];
            let is_expected = call.sends > 0 && call.sent_over == self.connection;
            call.state = CallState::Sent { at: now };
            call.sends += 1;
            call.sent_over = self.connection;
            if !is_expected {
                self.expect_reply(i);
            }
            let due = now + self.patience(&self.calls[i]);
            self.arm(due);
        }
    }

    fn poll_action(&mut self, now: Time) -> Option<Action> {
        let wanted = self.wants_connection();
        let action = self.link.poll_action(now, wanted, self.remote());
        if matches!(action, Some(Action::Connect { .. })) {
            self.arm(now + self.config.request_timeout);
        }
        action
    }

    fn poll_deadline(&self) -> Option<Time> {
        (self.next_deadline < Time::MAX).then_some(self.next_deadline)
    }

    fn handle_deadline(&mut self, now: Time) {
        self.tick(now);
    }
}
