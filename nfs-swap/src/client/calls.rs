//! Requests as series of calls, and what their replies mean.
//!
//! A request has at most one call outstanding. A short READ or WRITE, or a server whose limits are
//! below a batch, makes the next call start where the last one ended.

use netswap_net::Action;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_reserve::{PAGE_SIZE, Span, Time};
use netswap_swap::{BackendState, Gone, StoreError, Stored, backend::BATCH_PAGES_MAX};

use super::merge::MERGED_PAGES_MAX;
use super::{Call, CallState, GARBAGE_MAX, HEAD_BYTES, NfsBackend, STALE_MAX, Verb, total_bytes};
use crate::link::Target;
use crate::message::{CONTROL_HEAD_BYTES, encode_message};
use crate::proto::{self, Nfsstat3, ReadOk, StableHow, WriteOk, procs};
use crate::rpc::{self, AcceptStat, ReplyStat};
use crate::xdr::{Decoder, XdrError, padding};

/// Bytes that were no valid reply, in fixed words.
pub(super) type Garbage = &'static str;

pub(super) fn garbage(error: XdrError) -> Garbage {
    error.what()
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    pub(super) fn head_range(&self, i: usize) -> std::ops::Range<usize> {
        // The control call is the only one with a longer head; the COMMIT comes behind it.
        let past = i > self.control();
        let start = i * HEAD_BYTES + usize::from(past) * (CONTROL_HEAD_BYTES - HEAD_BYTES);
        let len = if i == self.control() { CONTROL_HEAD_BYTES } else { HEAD_BYTES };
        start..start + len
    }

    /// Whether an older request that is not done touches a slot of this one, and one of them writes.
    pub(super) fn is_blocked(&self, i: usize) -> bool {
        let call = &self.calls[i];
        self.calls[..self.requests()].iter().any(|other| {
            other.is_active() && other.turn.seq < call.turn.seq && other.conflicts(call)
        })
    }

    /// Makes the next call of request `i` when there is room on the wire.
    pub(super) fn issue(&mut self, now: Time, i: usize) {
        if self.queues { self.await_wire(now, i) } else { self.encode(now, i) }
    }

    /// Encodes the next call of request `i`, and of those that have joined it, under a new xid and queues it.
    pub(super) fn encode(&mut self, now: Time, i: usize) {
        let xid = self.xids.assign(i);
        let head = self.head_range(i);
        let (offset, want) = self.extent(i);
        let call = &mut self.calls[i];
        self.wire += usize::from(!std::mem::replace(&mut call.on_wire, true));
        (call.from, call.want) = (offset, want);
        call.sends = 0;
        call.timeouts = 0;
        call.handle_generation = self.handle_generation;
        let stable = self.config.write.stable_how(call.rewrites);
        let procedure = if call.verb == Verb::Read { procs::READ } else { procs::WRITE };
        let (file, auth, want, verb) = (self.file, &self.auth, want as u32, call.verb);
        let bulk = if verb == Verb::Write { call.want + padding(call.want) } else { 0 };
        call.head_len = encode_message(&mut self.heads[head], bulk, |out| {
            rpc::encode_call(out, xid, (proto::PROGRAM, proto::VERSION, procedure), auth)?;
            file.encode(out)?;
            out.u64(offset)?;
            out.u32(want)?;
            if verb == Verb::Write {
                out.u32(stable as u32)?;
                out.u32(want)?;
            }
            Ok(())
        });
        self.enqueue(now, i);
    }

    /// Queues the encoded call of `i`, or lets it wait for a connection.
    pub(super) fn enqueue(&mut self, now: Time, i: usize) {
        let usable =
            self.link.is_open() && (i == self.control() || self.link.target() == Target::Nfs);
        if !usable {
            self.calls[i].state = CallState::Pending;
            return;
        }
        if self.sendq.is_empty() {
            self.progress_at = now;
            self.arm(now + self.config.request_timeout);
        }
        self.calls[i].state = CallState::Queued;
        let place =
            if self.calls[i].verb == Verb::Read { self.overtake() } else { self.sendq.len() };
        self.sendq.insert(place, i as u16);
    }

    /// Where in the send queue a READ goes: before the WRITEs at its end that may still be overtaken.
    /// They never touch its slots: such a READ waits for them.
    fn overtake(&mut self) -> usize {
        let mut place = self.sendq.len();
        let begun = usize::from(self.sent_front > 0);
        while place > begun {
            let before = &mut self.calls[usize::from(self.sendq[place - 1])];
            if before.verb != Verb::Write || before.turn.overtaken >= self.config.overtakes_max {
                break;
            }
            before.turn.overtaken += 1;
            place -= 1;
        }
        place
    }

    /// Whether some bytes of the call, but not all, were given to the transport.
    pub(super) fn is_half_sent(&self, i: usize) -> bool {
        self.sent_front > 0 && self.sendq.front() == Some(&(i as u16))
    }

    pub(super) fn unqueue(&mut self, i: usize) {
        assert!(!self.is_half_sent(i), "a half-sent call taken out of the send queue");
        self.sendq.retain(|place| usize::from(*place) != i);
    }

    /// Ends request `i`. Its call must not be half sent.
    pub(super) fn finish(&mut self, now: Time, i: usize, outcome: Result<Stored, StoreError>) {
        debug_assert!(self.calls[i].is_active() && self.is_request(i));
        self.unsettled = true;
        match self.calls[i].state {
            CallState::Queued => self.unqueue(i),
            CallState::Blocked => self.blocked -= 1,
            CallState::Waiting => {
                self.waiting.remove(i);
            }
            CallState::Joined { .. } => unreachable!("a member that has not left its call"),
            _ => {}
        }
        if std::mem::take(&mut self.calls[i].touches) {
            let is_read = self.calls[i].verb == Verb::Read;
            self.touched.remove(self.calls[i].slots(), is_read);
        }
        // A call whose last member ends may have a hole; its reply goes nowhere.
        self.calls[i].holes = false;
        self.leave_ledger(i);
        self.rx.forget(i);
        self.release(i);
        self.let_go(i);
        self.calls[i].state = CallState::Done;
        self.calls[i].outcome = outcome;
        self.done.push_back(i as u16);
        if self.blocked > 0 {
            for other in 0..self.requests() {
                if self.calls[other].state == CallState::Blocked && !self.is_blocked(other) {
                    self.blocked -= 1;
                    self.start(now, other);
                }
            }
        }
    }

    /// Ends everything: the backend is `state` from now on, and each request ends with `error`.
    pub(super) fn end(&mut self, now: Time, state: BackendState, error: StoreError) {
        self.state = state;
        let half_sent = self.sent_front > 0;
        self.drop_connection(if half_sent { Action::Abort } else { Action::Close });
        self.take_all_apart();
        for i in 0..self.requests() {
            // Nothing is to be issued on the way.
            if self.calls[i].state == CallState::Blocked {
                self.blocked -= 1;
                self.calls[i].state = CallState::Pending;
            }
        }
        for i in 0..self.requests() {
            if self.calls[i].is_active() {
                self.finish(now, i, Err(error));
            }
        }
        for i in self.requests()..self.calls.len() {
            self.release(i);
            self.calls[i].state = CallState::Free;
        }
    }

    /// The reply to call `i` has come whole, or, for a READ with data, up to its data.
    pub(super) fn handle_reply(
        &mut self,
        now: Time,
        i: usize,
        bytes: &[u8],
    ) -> Result<(), Garbage> {
        let mut dec = Decoder::new(bytes);
        let (_, stat) = rpc::decode_reply(&mut dec).map_err(garbage)?;
        if stat != ReplyStat::Accepted(AcceptStat::Success) {
            dec.end().map_err(garbage)?;
            self.good_reply(i);
            if stat == ReplyStat::Accepted(AcceptStat::SystemErr) {
                // Nothing is said about execution: the call may have been carried out.
                self.stats.jukebox += 1;
                self.take_apart(i, |this, i| {
                    this.calls[i].loose = this.connection;
                    this.back_off(now, i);
                });
            } else {
                tracing::warn!(server = %self.config.label, ?stat, "call refused");
                self.refuse(now, i, self.call_refused(i, stat));
            }
            return Ok(());
        }
        let outcome = match self.calls[i].verb {
            Verb::Control => return self.handle_control(now, dec),
            Verb::Commit => return self.handle_commit(now, i, dec),
            Verb::Read => {
                let max = self.calls[i].want as u32;
                let read = ReadOk::decode(&mut dec, max).map_err(garbage)?;
                debug_assert!(read.is_err(), "data is received in place");
                read.map(|_| ())
            }
            Verb::Write => {
                let write = WriteOk::decode(&mut dec).map_err(garbage)?;
                dec.end().map_err(garbage)?;
                if let Ok(write) = write {
                    return self.written(now, i, write);
                }
                write.map(|_| ())
            }
        };
        dec.end().map_err(garbage)?;
        self.good_reply(i);
        if let Err(status) = outcome {
            self.failed(now, i, status);
        }
        Ok(())
    }

    /// A READ's data has come, in place.
    pub(super) fn handle_read(&mut self, now: Time, i: usize, read: ReadOk) {
        self.good_reply(i);
        self.stale_streak = 0;
        let Call { from, want, .. } = self.calls[i];
        let stops = read.count == 0 || read.eof;
        self.stats.short_reads += u64::from(!stops && (read.count as usize) < want);
        let end = from + u64::from(read.count);
        self.take_apart(i, |this, i| {
            let (got, is_reached) = this.share(i, end);
            let (got, wanted) = (this.calls[i].done + got, total_bytes(&this.calls[i]));
            if got == wanted {
                this.succeed(now, i);
            } else if is_reached && stops {
                let (got, wanted) = (got as u32, wanted as u32);
                this.finish(now, i, Err(StoreError::ShortRead { got, wanted }));
            } else {
                this.go_on(now, i, got - this.calls[i].done);
            }
        });
    }

    /// How much of what is left of request `i` was done by a call that came to byte `end` of the file, and
    /// whether it came so far at all.
    fn share(&self, i: usize, end: u64) -> (usize, bool) {
        let call = &self.calls[i];
        let start = call.first.offset() + call.done as u64;
        let left = (total_bytes(call) - call.done) as u64;
        (end.saturating_sub(start).min(left) as usize, start <= end)
    }

    fn written(&mut self, now: Time, i: usize, write: WriteOk) -> Result<(), Garbage> {
        let want = self.calls[i].want;
        if write.count as usize > want {
            return Err("a WRITE of more than was given");
        }
        if write.count == 0 {
            return Err("a WRITE of nothing");
        }
        if write.committed < self.config.write.stable_how(self.calls[i].rewrites) {
            return Err("a WRITE less stable than was asked for");
        }
        self.good_reply(i);
        self.stale_streak = 0;
        self.see_verifier(now, write.verifier);
        self.stats.short_writes += u64::from((write.count as usize) < want);
        let end = self.calls[i].from + u64::from(write.count);
        self.take_apart(i, |this, i| {
            let (got, _) = this.share(i, end);
            this.written_part(now, i, got, &write);
        });
        Ok(())
    }

    /// `got` bytes of what is left of request `i` were written.
    fn written_part(&mut self, now: Time, i: usize, got: usize, write: &WriteOk) {
        if std::mem::take(&mut self.calls[i].from_start) {
            self.write_once_more(now, i);
            return;
        }
        if self.calls[i].unstable.is_some_and(|of| of != write.verifier) {
            // What was written of it before may be lost.
            self.write_again(now, i);
            return;
        }
        if got > 0 && write.committed == StableHow::Unstable {
            self.calls[i].unstable = Some(write.verifier);
        }
        if self.calls[i].done + got == total_bytes(&self.calls[i]) {
            self.written_whole(now, i);
        } else {
            self.go_on(now, i, got);
        }
    }

    /// A change of the verifier says that the server may have lost what is uncommitted.
    pub(super) fn see_verifier(&mut self, now: Time, verifier: [u8; 8]) {
        let old = self.verifier.replace(verifier);
        let old_over = std::mem::replace(&mut self.verifier_over, self.connection);
        if old.is_some_and(|old| old != verifier) {
            self.stats.verifier_changes += 1;
            tracing::info!(server = %self.config.label, "write verifier changed");
            self.see_restart(old_over);
            self.write_again_unless(now, verifier);
        }
    }

    pub(super) fn succeed(&mut self, now: Time, i: usize) {
        self.finish(now, i, Ok(Stored { replayed: false }));
    }

    fn go_on(&mut self, now: Time, i: usize, got: usize) {
        let call = &mut self.calls[i];
        call.done += got;
        call.jukebox = 0;
        self.issue(now, i);
    }

    pub(super) fn good_reply(&mut self, i: usize) {
        self.stats.replies += 1;
        self.garbage_streak = 0;
        self.calls[i].garbage = 0;
        self.calls[i].sends = 0;
        self.link.reset_backoff(self.config.reconnect_min);
    }

    /// A READ, WRITE or COMMIT failed with a status.
    pub(super) fn failed(&mut self, now: Time, i: usize, status: Nfsstat3) {
        self.stats.jukebox += u64::from(status == Nfsstat3::Jukebox);
        match status {
            // The handle is of the last remount, and none since the first was good for anything.
            Nfsstat3::Stale
                if !self.remount
                    && self.stale_streak >= STALE_MAX
                    && self.calls[i].handle_generation == self.handle_generation =>
            {
                self.lose(now, Gone::Stale);
            }
            Nfsstat3::Jukebox | Nfsstat3::Stale => {
                self.take_apart(i, |this, i| this.failed_for_now(now, i, status));
            }
            status => self.refuse(now, i, store_error(status)),
        }
    }

    fn failed_for_now(&mut self, now: Time, i: usize, status: Nfsstat3) {
        match status {
            Nfsstat3::Jukebox => self.back_off(now, i),
            Nfsstat3::Stale if self.calls[i].handle_generation != self.handle_generation => {
                self.reissue(now, i);
            }
            Nfsstat3::Stale if self.calls[i].renewals < STALE_MAX => {
                self.calls[i].renewals += 1;
                self.calls[i].state = CallState::Stale;
                self.release(i);
                self.start_remount(now);
            }
            status => self.refuse(now, i, store_error(status)),
        }
    }

    /// Ends a request, or what the control call was for, with an error.
    pub(super) fn refuse(&mut self, now: Time, i: usize, error: StoreError) {
        if self.is_merged(i) {
            let is_final = matches!(error, StoreError::Garbage { .. });
            self.take_apart(i, |this, i| {
                if is_final {
                    this.finish(now, i, Err(error));
                } else {
                    this.calls[i].alone = true;
                    this.issue(now, i);
                }
            });
        } else if i == self.control() {
            self.control_failed(now, error);
        } else if self.is_request(i) {
            self.finish(now, i, Err(error));
        } else {
            self.commit_failed(now, i, error);
        }
    }

    /// The server asks to try again later (NFS3ERR_JUKEBOX): under a new xid, as RFC 1813 section
    /// 2.6 wants it, so that its duplicate request cache does not answer.
    pub(super) fn back_off(&mut self, now: Time, i: usize) {
        self.release(i);
        let call = &mut self.calls[i];
        let until = now + self.config.jukebox_delay * (1 << call.jukebox.min(4));
        call.jukebox += 1;
        call.state = CallState::Backoff { until };
        self.arm(until);
    }

    /// Something came that is not the protocol. The stream cannot be trusted any more, so the
    /// connection goes; the calls are sent again on the next.
    pub(super) fn handle_garbage(&mut self, now: Time, about: Option<usize>, what: Garbage) {
        self.stats.garbage += 1;
        tracing::warn!(server = %self.config.label, what, "garbage from the server");
        self.drop_connection(Action::Abort);
        match about {
            Some(i) => {
                self.calls[i].garbage += 1;
                if self.calls[i].garbage >= GARBAGE_MAX {
                    self.refuse(now, i, StoreError::Garbage { what });
                }
            }
            None => {
                self.garbage_streak += 1;
                if self.garbage_streak >= GARBAGE_MAX {
                    self.garbage_streak = 0;
                    self.take_all_apart();
                    for i in 0..self.requests() {
                        if self.calls[i].is_active() {
                            self.finish(now, i, Err(StoreError::Garbage { what }));
                        }
                    }
                    if self.calls[self.control()].is_active() {
                        self.control_failed(now, StoreError::Garbage { what });
                    }
                }
            }
        }
    }

    /// How long call `i` may stay unanswered.
    pub(super) fn patience(&self, call: &Call<P>) -> Span {
        self.config.request_timeout * (1 << call.timeouts.min(4))
    }

    /// Sets what a batch may be, from the limits of the server.
    pub(super) fn set_limits(&mut self, rtmax: u32, wtmax: u32) {
        let whole = BATCH_PAGES_MAX * PAGE_SIZE;
        let chunk = |max: u32| {
            let max = (max as usize).min(whole);
            if max >= PAGE_SIZE { max - max % PAGE_SIZE } else { max }
        };
        self.read_chunk = chunk(rtmax);
        self.write_chunk = chunk(wtmax);
        let merged = |max: u32, chunk: usize| {
            chunk.max((max as usize).min(MERGED_PAGES_MAX * PAGE_SIZE) / PAGE_SIZE * PAGE_SIZE)
        };
        self.read_merged = merged(rtmax, self.read_chunk);
        self.write_merged = merged(wtmax, self.write_chunk);
        self.batch_pages =
            (self.read_chunk.min(self.write_chunk) / PAGE_SIZE).clamp(1, BATCH_PAGES_MAX);
    }
}

/// What a status says of the store. Those that are tried again are not among them.
pub(super) fn store_error(status: Nfsstat3) -> StoreError {
    let code = status as u32;
    match status {
        Nfsstat3::NoSpc | Nfsstat3::DQuot => StoreError::NoSpace,
        Nfsstat3::Acces | Nfsstat3::Perm => StoreError::Denied { code },
        Nfsstat3::RoFs => StoreError::ReadOnly,
        _ => StoreError::Refused { code },
    }
}
