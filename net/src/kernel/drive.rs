//! One turn of one connection: what happened, what the session wants, bytes in, bytes out.

use std::io::IoSlice;

use arrayvec::ArrayVec;
use netswap_reserve::{Span, Time};
use rustix::io::{Errno, readv};
use rustix::net::{
    RecvFlags, SendAncillaryBuffer, SendFlags, Shutdown, recv, sendmsg, shutdown, sockopt,
};

use super::conn::{Conn, ConnPhase, meaning};
use super::{ConnId, KernelNet};
use crate::session::{Action, Disconnect, RecvVec, SLICES_MAX, SendVec, Session};

/// System calls in each direction that a turn makes at most, for sessions that take or give a few
/// bytes at a time. Picked by eye.
const TURN_CALLS: u32 = 64;
/// How long sending rests when the kernel has no memory for it. Picked by eye: reclaim takes about so
/// long to free some.
const SEND_PAUSE: Span = Span::from_millis(5);

/// What is left of a turn.
struct Budget {
    bytes: usize,
    calls: u32,
}

impl Budget {
    fn is_spent(&self) -> bool {
        self.bytes == 0 || self.calls == 0
    }

    fn call(&mut self) {
        self.calls -= 1;
    }

    fn moved(&mut self, n: usize) {
        self.bytes = self.bytes.saturating_sub(n);
    }
}

/// What came of moving bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Moved {
    Nothing,
    Some,
    /// The connection is gone.
    Ended(Disconnect),
}

impl KernelNet {
    /// Runs a connection's session: tells it what happened, moves bytes both ways, does what it asks
    /// for. To be called for what [`KernelNet::next_ready`] names; it does no harm at any other time,
    /// and saves a turn right after the session was given something.
    ///
    /// # Panics
    /// If the session of a listener's slot wants to connect.
    pub fn drive<S: Session + ?Sized>(&mut self, now: Time, id: ConnId, session: &mut S) {
        let bytes = self.config.turn_bytes;
        let mut budgets = [(); 2].map(|()| Budget { bytes, calls: TURN_CALLS });
        let [input, output] = &mut budgets;
        let mut rests = false;
        // Each round lets what the session just did have its effect.
        for _ in 0..TURN_CALLS {
            let mut moved = self.settle(now, id, session);
            if session.poll_deadline().is_some_and(|at| at <= now) {
                session.handle_deadline(now);
            }
            while let Some(action) = session.poll_action(now) {
                moved = true;
                if !self.carry_out(now, id, action, session) {
                    break;
                }
            }
            let conn = &mut self.conns[id.index()];
            for step in [conn.pump_in(now, session, input), conn.pump_out(now, session, output)] {
                match step {
                    Moved::Nothing => {}
                    Moved::Some => moved = true,
                    Moved::Ended(why) => {
                        moved = true;
                        self.end(now, id, false, why, session);
                        break;
                    }
                }
            }
            if !moved {
                rests = true;
                break;
            }
        }
        if !rests || budgets.iter().any(Budget::is_spent) {
            self.make_ready(id);
        }
        let answers = session.answers();
        let before = std::mem::replace(&mut self.conns[id.index()].answers, answers);
        self.pace.update(before, answers);
        let due = session.poll_deadline().unwrap_or(Time::MAX);
        let due = due.min(self.conns[id.index()].next_at());
        self.deadlines[id.index()] = due;
        self.earliest = self.earliest.min(due);
    }

    /// Tells the session what became of its connection, if that does not show by reading.
    fn settle<S: Session + ?Sized>(&mut self, now: Time, id: ConnId, session: &mut S) -> bool {
        let conn = &mut self.conns[id.index()];
        match conn.phase {
            ConnPhase::Accepted => {
                conn.phase = ConnPhase::Open;
                session.handle_connected(now);
            }
            ConnPhase::Connecting if conn.writable || conn.error => match conn.outcome() {
                Ok(()) => {
                    conn.phase = ConnPhase::Open;
                    conn.give_up_at = Time::MAX;
                    conn.stats.connects += 1;
                    session.handle_connected(now);
                }
                Err(errno) => return self.next_address(now, id, errno, session),
            },
            ConnPhase::Connecting if conn.give_up_at <= now => {
                return self.next_address(now, id, Errno::TIMEDOUT, session);
            }
            ConnPhase::Closing if conn.give_up_at <= now => {
                self.end(now, id, true, Disconnect::BySelf, session);
            }
            _ => return false,
        }
        true
    }

    fn next_address<S: Session + ?Sized>(
        &mut self,
        now: Time,
        id: ConnId,
        errno: Errno,
        session: &mut S,
    ) -> bool {
        if let Err(why) = self.connect_failed(now, id, errno) {
            session.handle_disconnected(now, why);
        }
        true
    }

    /// The connection is gone: closes its socket and tells the session.
    fn end<S: Session + ?Sized>(
        &mut self,
        now: Time,
        id: ConnId,
        reset: bool,
        why: Disconnect,
        session: &mut S,
    ) {
        let conn = &mut self.conns[id.index()];
        conn.close(reset);
        conn.stats.disconnects += 1;
        if let Some(listener) = conn.listener {
            self.give_back(listener, id);
        }
        session.handle_disconnected(now, why);
    }

    /// Does what the session asks for; `false` if it has been answered already.
    fn carry_out<S: Session + ?Sized>(
        &mut self,
        now: Time,
        id: ConnId,
        action: Action,
        session: &mut S,
    ) -> bool {
        let give_up_at = now + self.config.close_timeout;
        let conn = &mut self.conns[id.index()];
        match (action, conn.phase) {
            (Action::Connect { remote, same_port }, _) => {
                if let Err(why) = self.begin_connect(now, id, remote, same_port) {
                    session.handle_disconnected(now, why);
                    return false;
                }
            }
            (Action::Close, ConnPhase::Open) => {
                if conn.fd.as_ref().is_none_or(|fd| shutdown(fd, Shutdown::Write).is_err()) {
                    // The peer has reset it meanwhile.
                    self.end(now, id, true, Disconnect::BySelf, session);
                    return false;
                }
                conn.phase = ConnPhase::Closing;
                conn.give_up_at = give_up_at;
            }
            (Action::Close | Action::Abort, ConnPhase::Connecting) => {
                // An address that was not there by now is not tried first again.
                conn.attempt_failed(Errno::TIMEDOUT);
                conn.close(true);
                session.handle_disconnected(now, Disconnect::BySelf);
                return false;
            }
            (Action::Abort, ConnPhase::Open | ConnPhase::Closing | ConnPhase::Accepted) => {
                self.end(now, id, true, Disconnect::BySelf, session);
                return false;
            }
            (Action::Close, ConnPhase::Closing | ConnPhase::Accepted) => {}
            (Action::Close | Action::Abort, ConnPhase::Idle) => {}
        }
        true
    }
}

impl Conn {
    /// Moves received bytes to where the session wants them.
    fn pump_in<S: Session + ?Sized>(
        &mut self,
        now: Time,
        session: &mut S,
        budget: &mut Budget,
    ) -> Moved {
        let Some(fd) = &self.fd else { return Moved::Nothing };
        if !matches!(self.phase, ConnPhase::Open | ConnPhase::Closing) {
            return Moved::Nothing;
        }
        let mut moved = Moved::Nothing;
        while self.readable && !budget.is_spent() {
            let mut shown = RecvVec::new();
            session.recv_buffers(&mut shown);
            let want: usize = shown.iter().map(|buffer| buffer.len()).sum();
            let discard = want == 0 && self.phase == ConnPhase::Closing;
            if want == 0 && !discard {
                break;
            }
            budget.call();
            self.stats.recv_calls += 1;
            let result = if discard {
                // The session has closed the stream and takes nothing more; its end is waited for.
                let mut scratch = [0; 4096];
                recv(fd, &mut scratch[..], RecvFlags::empty()).map(|(n, _)| n)
            } else {
                readv(fd, &mut shown)
            };
            drop(shown);
            match result {
                Ok(0) => return Moved::Ended(self.blame(Disconnect::ByPeer)),
                Ok(n) => {
                    moved = Moved::Some;
                    budget.moved(n);
                    if discard {
                        self.stats.bytes_copied += n as u64;
                        continue;
                    }
                    self.stats.bytes_received += n as u64;
                    if n < want && !self.odd {
                        // All that was there. What comes now is a new event.
                        self.readable = false;
                    }
                    session.handle_received(now, n);
                }
                Err(Errno::AGAIN) => self.readable = false,
                Err(Errno::INTR) => {}
                Err(errno) => return self.lost(errno),
            }
        }
        if self.error && self.readable && moved == Moved::Nothing {
            // The session takes nothing, so reading does not show what is broken.
            match sockopt::socket_error(fd) {
                Ok(Ok(())) => self.error = false,
                Ok(Err(errno)) | Err(errno) => return self.lost(errno),
            }
        }
        moved
    }

    /// Gives the kernel what the session has to send, as far as there is room.
    fn pump_out<S: Session + ?Sized>(
        &mut self,
        now: Time,
        session: &mut S,
        budget: &mut Budget,
    ) -> Moved {
        let Some(fd) = &self.fd else { return Moved::Nothing };
        if self.phase != ConnPhase::Open || self.retry_at > now && self.retry_at < Time::MAX {
            return Moved::Nothing;
        }
        self.retry_at = Time::MAX;
        let mut moved = Moved::Nothing;
        while self.writable && !budget.is_spent() {
            let mut slices = SendVec::new();
            session.poll_send(now, &mut slices);
            let shown: usize = slices.iter().map(|slice| slice.len()).sum();
            if shown == 0 {
                break;
            }
            let vector: ArrayVec<IoSlice<'_>, SLICES_MAX> =
                slices.iter().map(|slice| IoSlice::new(slice)).collect();
            budget.call();
            self.stats.send_calls += 1;
            let mut nothing = SendAncillaryBuffer::default();
            let result = sendmsg(fd, &vector, &mut nothing, SendFlags::NOSIGNAL);
            drop((vector, slices));
            match result {
                Ok(n) => {
                    moved = Moved::Some;
                    budget.moved(n);
                    self.stats.bytes_sent += n as u64;
                    if n < shown {
                        self.writable = false;
                        self.stats.short_sends += 1;
                    }
                    session.handle_sent(now, n);
                }
                Err(Errno::AGAIN) => self.writable = false,
                Err(Errno::INTR) => {}
                Err(Errno::NOBUFS | Errno::NOMEM) => {
                    self.stats.send_no_memory += 1;
                    self.retry_at = now + SEND_PAUSE;
                    break;
                }
                Err(errno) => return self.lost(errno),
            }
        }
        moved
    }

    fn lost(&mut self, errno: Errno) -> Moved {
        self.last_error = Some(errno.into());
        Moved::Ended(self.blame(meaning(errno)))
    }

    /// However a stream ends that its session has closed, it was the session's doing.
    fn blame(&self, why: Disconnect) -> Disconnect {
        if self.phase == ConnPhase::Closing { Disconnect::BySelf } else { why }
    }
}
