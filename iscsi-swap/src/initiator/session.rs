//! The connection: opening, timers, and what happens when it ends.

use std::io::IoSliceMut;

use netswap_net::{Action, Answers, Disconnect, RecvVec, SendVec, Session};
use netswap_reserve::{Span, Time};
use netswap_swap::{BackendState, StoreError};

use super::receive::Violation;
use super::task::{Kind, PROBE, Step, TaskState};
use super::task_management::ABORTS_MAX;
use super::unit::Durability;
use super::{IscsiBackend, Link};

impl Session for IscsiBackend {
    fn handle_connected(&mut self, now: Time) {
        if self.link != Link::Connecting {
            return;
        }
        self.rx.reset();
        self.last_heard = now;
        self.connection += 1;
        self.start_login(now);
    }

    fn handle_disconnected(&mut self, now: Time, why: Disconnect) {
        if matches!(self.link, Link::Waiting { .. } | Link::Stopped) {
            return;
        }
        if self.link != Link::Leaving {
            tracing::debug!(server = %self.label, %why, "connection lost");
            self.stats.disconnects += 1;
            self.forget_connection();
        }
        self.action = None;
        if self.stopping {
            self.link = Link::Stopped;
            return;
        }
        if self.moved_to.is_some() {
            // Elsewhere somebody waits: at once.
            self.enter(now, Link::Waiting { until: now });
            return self.arm(now);
        }
        let until = (now + self.backoff).max(self.not_before);
        if self.portals.turn() {
            let doubled = self.backoff * 2;
            self.backoff = doubled.min(self.config.backoff_max).max(self.config.backoff_min);
        }
        self.enter(now, Link::Waiting { until });
        self.arm(until);
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        if let Some(ahead) = &mut self.rx.ahead {
            ahead.clear();
        }
        if !self.is_receiving() {
            return &mut [];
        }
        self.rx.buffer(&mut self.tasks)
    }

    fn recv_buffers<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        if self.look_ahead() {
            return self.show_ahead(out);
        }
        let buffer = self.recv_buffer();
        if !buffer.is_empty() {
            // An empty vector has room for it.
            let _ = out.try_push(IoSliceMut::new(buffer));
        }
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        assert!(n <= self.rx.shown, "more was received than there was room for");
        self.rx.shown = 0;
        if n > 0 {
            self.last_heard = now;
        }
        if !self.is_receiving() {
            // What follows the end of a connection is nobody's.
            return;
        }
        let result = self.receive_ahead(now, n).and_then(|done| match done || n == 0 {
            true => Ok(()),
            false => self.receive(now, n),
        });
        if let Err(violation) = result {
            self.drop_garbage(now, violation);
        }
    }

    fn poll_send<'a>(&'a mut self, now: Time, out: &mut SendVec<'a>) {
        self.refill(now);
        self.show(out);
    }

    fn handle_sent(&mut self, now: Time, n: usize) {
        if let Err(violation) = self.take_sent(now, n) {
            self.drop_garbage(now, violation);
        }
    }

    fn poll_action(&mut self, now: Time) -> Option<Action> {
        if let Some(action) = self.action.take() {
            return Some(action);
        }
        match self.link {
            Link::Waiting { until } if until <= now => {
                self.enter(now, Link::Connecting);
                self.remote = self.moved_to.take().unwrap_or(self.portals.current());
                Some(Action::Connect { remote: self.remote, same_port: false })
            }
            _ => None,
        }
    }

    fn answers(&self) -> Answers {
        // A flush that follows each write waits for its answer: whoever rests meanwhile delays both.
        let is_chain = self.unit.durability(self.config.write_policy) == Durability::Sync;
        let is_plain = self.link == Link::Ready && !is_chain;
        let outstanding = if is_plain { self.wire as u32 } else { 0 };
        Answers { outstanding, come: self.answered }
    }

    fn poll_deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn handle_deadline(&mut self, now: Time) {
        if self.deadline.is_none_or(|d| d > now) {
            return;
        }
        self.expire(now);
        self.deadline = self.next_timer(now);
    }
}

impl IscsiBackend {
    pub(super) fn is_receiving(&self) -> bool {
        matches!(self.link, Link::Login | Link::Probe | Link::Ready | Link::LoggingOut)
    }

    pub(super) fn enter(&mut self, now: Time, link: Link) {
        self.link = link;
        self.since = now;
        if !matches!(link, Link::Stopped | Link::Waiting { .. }) {
            self.arm(now + self.config.request_timeout);
        }
    }

    /// Ends the connection: by `Close` once all is sent, by `Abort` at once.
    pub(super) fn leave(&mut self, now: Time, action: Action) {
        match self.link {
            Link::Waiting { .. } => {
                self.forget_connection();
                if self.stopping {
                    self.link = Link::Stopped;
                }
            }
            Link::Stopped => {}
            Link::Leaving => self.action = Some(action),
            _ => {
                self.forget_connection();
                self.action = Some(action);
                self.enter(now, Link::Leaving);
            }
        }
    }

    /// Nothing of this connection counts any more: what was on its way will be issued again.
    fn forget_connection(&mut self) {
        self.tx.clear();
        self.rx.reset();
        self.pongs.clear();
        self.bursts.clear();
        self.login_due = false;
        self.ping_due = false;
        self.ping_tag = None;
        self.logout_due = false;
        self.logout_tag = None;
        self.ack_due = false;
        self.tmf = None;
        self.passes = 0;
        while let Some(index) = self.syncs.pop_front() {
            self.take_apart(usize::from(index), Self::enqueue);
        }
        for index in 0..self.tasks.len() {
            let task = &mut self.tasks[index];
            task.bursts = 0;
            task.ending = None;
            task.stale = false;
            task.timeouts = 0;
            let shown = std::mem::take(&mut task.shown);
            task.retry_at = Time::ZERO;
            // A target that restarts loses its cache, so a write whose SYNCHRONIZE CACHE is
            // outstanding starts over.
            task.step = Step::Command;
            match task.state {
                TaskState::Sent if index == PROBE => task.state = TaskState::Free,
                TaskState::Sent => self.take_apart(index, |this, row| {
                    this.stats.reissued += 1;
                    this.tasks[row].step = Step::Command;
                    this.enqueue(row);
                }),
                TaskState::Ended if shown > 0 => self.done.push_back(index as u16),
                _ => {}
            }
        }
    }

    /// The target broke the protocol. The command it concerns, or else all that were sent, count it.
    fn drop_garbage(&mut self, now: Time, violation: Violation) {
        tracing::warn!(server = %self.label, %violation, "dropping the connection");
        let what = violation.what();
        // Damage on the way is no command's fault: however often it happens, none fails for it.
        if violation.is_damage() && self.state != BackendState::Starting {
            self.stats.digest_errors += 1;
            return self.leave(now, Action::Abort);
        }
        self.stats.garbage += 1;
        let limit = self.config.garbage_limit;
        let blamed = self.rx.tag().and_then(|tag| self.sent_task(tag).ok());
        let ready = self.link == Link::Ready;
        for index in 1..self.tasks.len() {
            let of = match self.tasks[index].state {
                TaskState::Joined { leader } => usize::from(leader),
                _ => index,
            };
            let is_sent = self.tasks[of].state == TaskState::Sent;
            let task = &mut self.tasks[index];
            let counts = task.is_active()
                && match blamed {
                    Some(one) => one == of,
                    // Without a session every request suffers.
                    None => !ready || is_sent,
                };
            task.garbage += u8::from(counts);
        }
        if self.state == BackendState::Starting {
            self.setup_garbage += 1;
            if self.setup_garbage >= limit {
                return self.fail(now, StoreError::Garbage { what });
            }
        }
        self.leave(now, Action::Abort);
        for index in 1..self.tasks.len() {
            if self.tasks[index].is_active() && self.tasks[index].garbage >= limit {
                self.end(index, Err(StoreError::Garbage { what }));
            }
        }
    }

    fn expire(&mut self, now: Time) {
        let timeout = self.config.request_timeout;
        self.unsorted = true;
        let mut overdue = false;
        let mut aborts = false;
        let mut ends = false;
        // A connection over which nothing comes is not worth asking.
        let silent = self.last_heard + timeout <= now;
        for task in &self.tasks[1..] {
            if !task.is_active() {
                continue;
            }
            let sent = task.state == TaskState::Sent;
            if task.deadline.is_some_and(|d| d <= now) {
                // It may still be carried out: dropping the connection, and reinstating the session
                // before anything else is sent, makes sure that it is not carried out late.
                overdue |= sent || !task.is_single();
                ends = true;
            } else if sent && task.due <= now {
                let may = self.config.task_management && self.link == Link::Ready && !silent;
                let abort = may && task.shown == 0 && task.timeouts < ABORTS_MAX;
                aborts |= abort;
                overdue |= !abort;
            }
        }
        overdue |= self.tmf.is_some_and(|tmf| tmf.due <= now);
        let probe = &self.tasks[PROBE];
        overdue |= probe.state == TaskState::Sent && probe.due <= now;
        if let Some(after) = self.config.ack_after {
            self.ack_due |=
                self.acked_stat_sn != self.exp_stat_sn && self.last_heard + after <= now;
        }
        let waited = now.since(self.since) >= timeout;
        match self.link {
            Link::Connecting | Link::Login | Link::LoggingOut if waited => overdue = true,
            Link::Leaving if waited => {
                // An orderly close that does not come to its end.
                self.action = Some(Action::Abort);
                self.since = now;
            }
            Link::Probe | Link::Ready => overdue |= self.check_alive(now),
            _ => {}
        }
        let open = !matches!(self.link, Link::Waiting { .. } | Link::Stopped | Link::Leaving);
        if overdue && open {
            tracing::debug!(server = %self.label, "no answer in time, dropping the connection");
            self.stats.timeouts += 1;
            self.leave(now, Action::Abort);
        } else if aborts {
            self.abort_overdue(now);
        }
        for index in 1..self.tasks.len() {
            let task = &self.tasks[index];
            if ends && task.is_active() && task.deadline.is_some_and(|d| d <= now) {
                self.end(index, Err(self.out_of_time(index)));
            }
        }
    }

    /// How a request ends whose deadline has come. A discard of which no copy is on its way is no late one.
    fn out_of_time(&self, index: usize) -> StoreError {
        let task = &self.tasks[index];
        match task.kind {
            Kind::Discard if task.sent_over.max(task.left_over) == 0 => StoreError::Cancelled,
            _ => StoreError::TimedOut,
        }
    }

    /// Pings a silent target; whether it left a ping unanswered for too long.
    fn check_alive(&mut self, now: Time) -> bool {
        if self.ping_tag.is_some() {
            return self.ping_since + self.config.request_timeout <= now;
        }
        if self.last_heard + self.config.nop_interval <= now {
            self.ping_due = true;
        }
        false
    }

    fn next_timer(&self, now: Time) -> Option<Time> {
        let timeout = self.config.request_timeout;
        let link = match self.link {
            Link::Waiting { until } => Some(until),
            Link::Connecting | Link::Login | Link::LoggingOut | Link::Leaving => {
                Some(self.since + timeout)
            }
            Link::Probe | Link::Ready if self.ping_due => None,
            Link::Probe | Link::Ready if self.ping_tag.is_some() => Some(self.ping_since + timeout),
            Link::Probe | Link::Ready => Some(self.last_heard + self.config.nop_interval),
            Link::Stopped => None,
        };
        let tasks = self.tasks.iter().filter(|t| t.is_active()).flat_map(|t| {
            let retry = (t.retry_at > now).then_some(t.retry_at);
            match t.state {
                // One that is overdue waits for the answer to a task management function.
                TaskState::Sent => [t.deadline, Some(t.due).filter(|due| *due > now)],
                _ => [t.deadline, retry],
            }
        });
        let session = matches!(self.link, Link::Probe | Link::Ready);
        let unacked = session && self.acked_stat_sn != self.exp_stat_sn && !self.ack_due;
        let ack = self.config.ack_after.filter(|_| unacked).map(|after| self.last_heard + after);
        tasks.flatten().chain(link).chain(ack).chain(self.tmf.map(|tmf| tmf.due)).min()
    }

    /// The next wait doubles, up to the limit.
    pub(super) fn next_backoff(&self, before: Span) -> Span {
        (before * 2).max(self.config.busy_backoff).min(self.config.backoff_max)
    }
}
