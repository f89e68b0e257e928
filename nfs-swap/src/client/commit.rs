//! The write policy: what a WRITE asks for, and how what is UNSTABLE comes to last (RFC 1813 sections
//! 3.3.7, 3.3.21 and 4.8).
//!
//! # Why
//! A FILE_SYNC write costs the server a flush each. An UNSTABLE one costs it nothing until a COMMIT
//! flushes many at once; but until that is answered the server may lose the page, so the page stays
//! with its request, and the request does not end.
//!
//! # When a COMMIT is sent
//! One is outstanding at a time, over the whole range of what was written before it was sent:
//! - when nothing else is to be written, or something waits for what is uncommitted;
//! - when half of the requests, or half of [`NfsConfig::uncommitted_max`](super::NfsConfig), are
//!   uncommitted: writing goes on meanwhile, into the other half;
//! - when a page has waited for [`NfsConfig::commit_delay`](super::NfsConfig).
//!
//! # Invariants
//! - A request ends only if the COMMIT was sent after its last WRITE was answered, and has the
//!   verifier that all its UNSTABLE WRITEs had.
//! - A new verifier, on WRITE or COMMIT, writes all again that has another one. So does a connection
//!   that was lost, for a verifier that counts whole seconds, or is pinned, hides a restart.
//! - That ends: a request that met a new verifier [`REWRITES_MAX`] times is written FILE_SYNC.

use std::str::FromStr;

use netswap_reserve::Time;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_swap::{BackendState, StoreError};

use super::calls::{Garbage, garbage};
use super::order::Order;
use super::{Call, CallState, NfsBackend, Verb};
use crate::message::encode_message;
use crate::proto::{self, StableHow, procs};
use crate::rpc;
use crate::xdr::Decoder;

/// New verifiers that a request meets before it is written FILE_SYNC. Picked by eye: a server that
/// restarts as often within one page-out does not keep what it promises.
const REWRITES_MAX: u8 = 8;

/// How stable a WRITE is asked to be.
///
/// ```
/// use netswap_nfs::WritePolicy;
/// assert_eq!("unstable".parse(), Ok(WritePolicy::Unstable));
/// assert_eq!(WritePolicy::default().name(), "file_sync");
/// let error = "fast".parse::<WritePolicy>().unwrap_err();
/// assert_eq!(error.to_string(), "unknown write policy \"fast\"; known: file_sync, unstable");
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WritePolicy {
    /// FILE_SYNC: a WRITE that was answered lasts.
    #[default]
    FileSync,
    /// UNSTABLE, and a COMMIT for many: pages are kept until it is answered.
    Unstable,
}

/// A write policy that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown write policy {name:?}; known: file_sync, unstable")]
pub struct UnknownPolicy {
    /// The name given.
    pub name: String,
}

impl WritePolicy {
    /// Its name, as a URL has it.
    pub fn name(self) -> &'static str {
        match self {
            WritePolicy::FileSync => "file_sync",
            WritePolicy::Unstable => "unstable",
        }
    }

    /// What a request asks for that met a new verifier `rewrites` times.
    pub(super) fn stable_how(self, rewrites: u8) -> StableHow {
        match self {
            WritePolicy::Unstable if rewrites < REWRITES_MAX => StableHow::Unstable,
            _ => StableHow::FileSync,
        }
    }
}

impl FromStr for WritePolicy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<WritePolicy, UnknownPolicy> {
        [WritePolicy::FileSync, WritePolicy::Unstable]
            .into_iter()
            .find(|policy| policy.name() == name)
            .ok_or_else(|| UnknownPolicy { name: name.into() })
    }
}

/// What is being written, is uncommitted, or waits to be written, kept up to date: so that neither a WRITE nor its
/// reply walks the table of requests. Used with [`WritePolicy::Unstable`] only.
#[derive(Debug)]
pub(super) struct Ledger {
    /// Requests that are [`CallState::Uncommitted`], in the order in which they came to be; so those that a COMMIT
    /// covers are the first.
    uncommitted: Order,
    uncommitted_pages: usize,
    /// Requests that are [`CallState::Held`], in the order of submission.
    held: Order,
    /// WRITEs that have room: from their first call to their end.
    requests: usize,
    /// Pages of them.
    pages: usize,
}

impl Ledger {
    pub(super) fn new(rows: usize) -> Ledger {
        let (uncommitted, held) = (Order::new(rows), Order::new(rows));
        Ledger { uncommitted, uncommitted_pages: 0, held, requests: 0, pages: 0 }
    }

    fn take_room<P>(&mut self, call: &mut Call<P>) {
        call.has_room = true;
        self.requests += 1;
        self.pages += call.pages.len();
    }

    fn give_room_back<P>(&mut self, call: &mut Call<P>) {
        if std::mem::take(&mut call.has_room) {
            self.requests -= 1;
            self.pages -= call.pages.len();
        }
    }

    fn add_uncommitted<P>(&mut self, i: usize, call: &Call<P>) {
        self.uncommitted.push(i);
        self.uncommitted_pages += call.pages.len();
    }

    fn remove_uncommitted<P>(&mut self, i: usize, call: &Call<P>) {
        if self.uncommitted.remove(i) {
            self.uncommitted_pages -= call.pages.len();
        }
    }
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    fn is_unstable(&self) -> bool {
        self.config.write == WritePolicy::Unstable
    }

    /// Whether a COMMIT is outstanding.
    pub(super) fn is_committing(&self) -> bool {
        self.commit_row().is_some_and(|row| self.calls[row].is_active())
    }

    /// Issues the first call of request `i`, or holds it until there is room for what it writes.
    pub(super) fn start(&mut self, now: Time, i: usize) {
        if self.calls[i].verb != Verb::Write || !self.is_unstable() {
            self.issue(now, i);
        } else if self.has_room(i) {
            self.ledger.take_room(&mut self.calls[i]);
            self.issue(now, i);
        } else {
            self.calls[i].state = CallState::Held;
            let (calls, seq) = (&self.calls, self.calls[i].turn.seq);
            self.ledger.held.insert(i, |other| calls[other].turn.seq > seq);
            self.unsettled = true;
            self.settle(now);
        }
    }

    /// Whether request `i` may be written beside what is uncommitted. Who waits longer goes first.
    fn has_room(&self, i: usize) -> bool {
        let Ledger { held, requests, pages, .. } = &self.ledger;
        let is_next =
            held.first().is_none_or(|first| self.calls[first].turn.seq >= self.calls[i].turn.seq);
        let fits = pages + self.calls[i].pages.len() <= self.config.uncommitted_max;
        is_next && (*requests == 0 || fits)
    }

    /// Issues the current call of `i` once more, under a new xid.
    pub(super) fn reissue(&mut self, now: Time, i: usize) {
        if self.is_request(i) { self.issue(now, i) } else { self.issue_commit(now, i) }
    }

    /// All of request `i` was written.
    pub(super) fn written_whole(&mut self, now: Time, i: usize) {
        if self.calls[i].unstable.is_none() {
            self.succeed(now, i);
            return;
        }
        self.release(i);
        self.calls[i].state = CallState::Uncommitted { since: now };
        self.ledger.add_uncommitted(i, &self.calls[i]);
        self.arm(now + self.config.commit_delay);
        self.unsettled = true;
    }

    /// Writes request `i` from its start, since the server may have lost of it what it took.
    pub(super) fn write_again(&mut self, now: Time, i: usize) {
        self.calls[i].rewrites = self.calls[i].rewrites.saturating_add(1);
        self.write_once_more(now, i);
    }

    pub(super) fn write_once_more(&mut self, now: Time, i: usize) {
        self.stats.rewritten += 1;
        self.ledger.remove_uncommitted(i, &self.calls[i]);
        let call = &mut self.calls[i];
        call.done = 0;
        call.unstable = None;
        call.covered = false;
        call.renewals = 0;
        self.issue(now, i);
    }

    fn is_uncommitted(&self, i: usize) -> bool {
        matches!(self.calls[i].state, CallState::Uncommitted { .. })
    }

    /// Writes again what is uncommitted and has another verifier than this.
    pub(super) fn write_again_unless(&mut self, now: Time, verifier: [u8; 8]) {
        for i in 0..self.requests() {
            if self.is_uncommitted(i) && self.calls[i].unstable != Some(verifier) {
                self.write_again(now, i);
            }
        }
    }

    /// The connection is gone: perhaps its server, and with it what is uncommitted, is too.
    pub(super) fn distrust_uncommitted(&mut self) {
        let Some(row) = self.commit_row() else { return };
        self.rewrite_all |= self.calls[..row].iter().any(|call| call.unstable.is_some());
        // A COMMIT would be for nothing, whoever answers it.
        self.release(row);
        self.calls[row].state = CallState::Free;
    }

    /// There is a connection again.
    pub(super) fn write_again_after_loss(&mut self, now: Time) {
        if !std::mem::take(&mut self.rewrite_all) {
            return;
        }
        for i in 0..self.requests() {
            if self.is_uncommitted(i) {
                self.write_once_more(now, i);
            } else if self.calls[i].is_active() && self.calls[i].unstable.is_some() {
                self.calls[i].from_start = true;
            }
        }
    }

    /// Sees to what has become possible or due: held requests, and a COMMIT. Cheap if nothing changed.
    #[inline]
    pub(super) fn settle(&mut self, now: Time) {
        if self.unsettled {
            self.unsettled = false;
            if self.is_unstable() && matches!(self.state, BackendState::Ready { .. }) {
                self.release_held(now);
                self.commit_if_due(now);
            }
        }
    }

    fn release_held(&mut self, now: Time) {
        while let Some(i) = self.ledger.held.first()
            && self.has_room(i)
        {
            self.ledger.held.remove(i);
            self.ledger.take_room(&mut self.calls[i]);
            self.issue(now, i);
        }
    }

    fn commit_if_due(&mut self, now: Time) {
        let Some(row) = self.commit_row().filter(|row| !self.calls[*row].is_active()) else {
            return;
        };
        debug_assert!(self.ledger_is_right(), "{:?}", self.ledger);
        let Ledger { uncommitted, uncommitted_pages, held, requests, .. } = &self.ledger;
        let Some(oldest) = uncommitted.first() else { return };
        let CallState::Uncommitted { since } = self.calls[oldest].state else {
            unreachable!("a request among the uncommitted that is not");
        };
        let at = since + self.config.commit_delay;
        let is_awaited = self.blocked > 0 || !held.is_empty();
        let is_writing = *requests > uncommitted.len();
        let half = uncommitted.len() * 2 >= self.requests()
            || uncommitted_pages * 2 >= self.config.uncommitted_max;
        if half || is_awaited || !is_writing || at <= now {
            for i in uncommitted.iter() {
                self.calls[i].covered = true;
            }
            self.calls[row] = Call::new(Verb::Commit);
            self.issue_commit(now, row);
        } else {
            self.arm(at);
        }
    }

    /// Whether the ledger says what a walk of the table does.
    fn ledger_is_right(&self) -> bool {
        let calls = || self.calls[..self.requests()].iter();
        let with_room = || calls().filter(|call| call.has_room);
        let uncommitted =
            || with_room().filter(|c| matches!(c.state, CallState::Uncommitted { .. }));
        let Ledger { held, requests, pages, .. } = &self.ledger;
        (*requests, *pages) == (with_room().count(), with_room().map(|c| c.pages.len()).sum())
            && self.ledger.uncommitted.len() == uncommitted().count()
            && self.ledger.uncommitted_pages == uncommitted().map(|c| c.pages.len()).sum()
            && held.len() == calls().filter(|call| call.state == CallState::Held).count()
    }

    /// Encodes and queues the COMMIT of all that is covered.
    fn issue_commit(&mut self, now: Time, row: usize) {
        let xid = self.xids.assign(row);
        let head = self.head_range(row);
        let uncommitted = || self.ledger.uncommitted.iter().map(|i| &self.calls[i]);
        let covered = || uncommitted().take_while(|call| call.covered);
        let start = covered().map(|call| call.slots().start).min().unwrap_or(0);
        let end = covered().map(|call| call.slots().end).max().unwrap_or(start);
        let offset = start * netswap_reserve::PAGE_SIZE as u64;
        // Count 0 is to the end of the file.
        let bytes = (end - start) * netswap_reserve::PAGE_SIZE as u64;
        let count = u32::try_from(bytes).unwrap_or(0);
        let (file, auth) = (self.file, &self.auth);
        let head_len = encode_message(&mut self.heads[head], 0, |out| {
            rpc::encode_call(out, xid, (proto::PROGRAM, proto::VERSION, procs::COMMIT), auth)?;
            file.encode(out)?;
            out.u64(offset)?;
            out.u32(count)
        });
        let call = &mut self.calls[row];
        call.head_len = head_len;
        call.sends = 0;
        call.timeouts = 0;
        call.handle_generation = self.handle_generation;
        self.enqueue(now, row);
    }

    /// The COMMIT was answered.
    pub(super) fn handle_commit(
        &mut self,
        now: Time,
        row: usize,
        mut dec: Decoder<'_>,
    ) -> Result<(), Garbage> {
        let commit = proto::decode_commit(&mut dec).map_err(garbage)?;
        dec.end().map_err(garbage)?;
        self.good_reply(row);
        let verifier = match commit {
            Ok(verifier) => verifier,
            Err(status) => {
                self.failed(now, row, status);
                return Ok(());
            }
        };
        self.stale_streak = 0;
        self.stats.commits += 1;
        // What has another verifier is written again here, and not covered any more.
        self.see_verifier(now, verifier);
        while let Some(i) = self.first_covered() {
            if self.calls[i].unstable == Some(verifier) {
                self.succeed(now, i);
            } else {
                self.write_again(now, i);
            }
        }
        // Only now may another COMMIT cover what this one did not: what has ended may make one due.
        self.end_commit(row);
        Ok(())
    }

    fn end_commit(&mut self, row: usize) {
        self.release(row);
        self.calls[row].state = CallState::Free;
        self.unsettled = true;
    }

    /// The COMMIT cannot be had: what it was for may be lost, so its requests end with the error, and
    /// their owner has the pages.
    pub(super) fn commit_failed(&mut self, now: Time, row: usize, error: StoreError) {
        if self.calls[row].state == CallState::Queued {
            self.unqueue(row);
        }
        self.rx.forget(row);
        while let Some(i) = self.first_covered() {
            self.finish(now, i, Err(error));
        }
        self.end_commit(row);
    }

    /// The oldest request that the COMMIT covers: these come before all others.
    fn first_covered(&self) -> Option<usize> {
        self.ledger.uncommitted.first().filter(|i| self.calls[*i].covered)
    }

    /// Request `i` has ended, or will at once.
    pub(super) fn leave_ledger(&mut self, i: usize) {
        if self.is_unstable() {
            self.ledger.held.remove(i);
            self.ledger.remove_uncommitted(i, &self.calls[i]);
            self.ledger.give_room_back(&mut self.calls[i]);
        }
    }
}
