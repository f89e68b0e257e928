//! Discards: the store is told of slots that became free, so that it can give back what they take.
//!
//! # The danger
//! A discard that is carried out late destroys the page that has the slot by then. So it is treated as a write is: a slot
//! is not free from the moment it is gathered until the discard has ended; if a late copy of it may still be carried
//! out, it goes to quarantine, and waits for the proof that there is none (`crate::fence`).
//!
//! ```text
//!   in use --> held (gathered) --> held (with the store) --ended, refused--> free
//!                 | slots run short: without a discard         | loose, timed out
//!                 '--------------> free                        '------> quarantine --fence--> free
//! ```
//!
//! # It never costs what it is not worth
//! - Slots are gathered only while many are free, and let go, undiscarded, as soon as they are not: no page fails to
//!   get a slot for it.
//! - A discard has at most half of the slots that may still go to quarantine, as all of its own may.
//! - One discard an area is with its store, when no page-in or page-out waits to be given to that; the backend lets it
//!   wait behind those it has.
//! - It is never tried again. A store that does not take it, or fails several in a row, is told no more.

use netswap_reserve::{Span, Time};

use super::Pager;
use crate::area::AreaState;
use crate::backend::{
    BackendState, Completion, Discard, DiscardLimits, RequestId, Run, Slot, StoreError, Stored,
    SwapBackend,
};
use crate::gathered::slots_of;
use crate::page::{AreaId, NONE};

/// Slots for which it is worth a discard, before [`GATHER_FOR`] is over. Picked by eye: 1 MiB.
const SLOTS_DUE: u32 = 256;
/// How long slots are gathered. Picked by eye: a page that is changed again and again gives up a slot each time.
const GATHER_FOR: Span = Span::from_secs(1);
/// With fewer free slots than this none is gathered: more than reclaim wants at once, twice. Or an eighth of all.
const PLENTY: u32 = 128;
/// Discards in a row that fail before there are no more of them. Picked by eye.
const FAILURES_MAX: u8 = 8;
/// The row of the table of I/Os that there never is: that of discards in request ids.
const ROW: u32 = u16::MAX as u32;

impl<B: SwapBackend> Pager<B> {
    /// Whether a discard is with a store.
    pub(super) fn is_discarding(&self) -> bool {
        self.areas.iter().any(|area| area.gathered.sent.is_some())
    }

    fn may_gather(&self, id: AreaId) -> bool {
        let area = self.area(id);
        area.options.discard
            && !area.gathered.is_off
            && area.state == AreaState::On
            && !self.shut_down
            && area.slots.free() > (area.slots.len() / 8).max(PLENTY)
            && self.areas.iter().all(|other| other.state != AreaState::Leaving)
    }

    /// A slot became free: keeps it, to be discarded, if that is wanted and costs nothing.
    pub(super) fn gather(&mut self, id: AreaId, slot: Slot) {
        if self.may_gather(id) {
            let area = self.area_mut(id);
            if area.backend.discards().is_some() && area.gathered.add(slot) {
                area.slots.hold(slot);
            }
        }
    }

    /// A slot was given out: when few are left, those that are gathered are free.
    pub(super) fn keep_plenty(&mut self, id: AreaId) {
        if self.area(id).gathered.slots() > 0 && !self.may_gather(id) {
            self.let_go_gathered(id);
        }
    }

    fn let_go_gathered(&mut self, id: AreaId) {
        let runs = self.area_mut(id).gathered.drain();
        self.let_go(id, &runs, false);
    }

    /// No slot is gathered any more, in any area.
    pub(super) fn give_back_gathered(&mut self) {
        for id in self.area_ids() {
            self.let_go_gathered(id);
        }
    }

    fn let_go(&mut self, id: AreaId, runs: &[Run], quarantine: bool) {
        let area = self.area_mut(id);
        let mut slots = 0;
        for slot in runs.iter().copied().flat_map(slots_of) {
            area.slots.let_go(slot, quarantine);
            slots += 1;
        }
        if slots > 0 {
            if quarantine {
                self.note_quarantined(id, slots);
            }
            self.reclaim_may_work();
        }
    }

    pub(super) fn discard_deadline(&self) -> Option<Time> {
        let gathers = |area: &&crate::area::Area<B>| area.gathered.sent.is_none();
        let since = self.areas.iter().filter(gathers).filter_map(|area| area.gathered.since);
        since.map(|since| since + GATHER_FOR).min()
    }

    /// Gives gathered slots to their stores when it is time to.
    pub(super) fn poll_discards(&mut self, now: Time) -> bool {
        let mut moved = false;
        for id in self.area_ids() {
            let area = self.area_mut(id);
            if area.gathered.slots() == 0 {
                continue;
            }
            let since = *area.gathered.since.get_or_insert(now);
            // All of it may go to quarantine: that must not make the area full, nor leave no room for writes there.
            let spare = area.quarantine_max().saturating_sub(area.slots.quarantined()) / 2;
            let limits = area.backend.discards();
            let limits = limits.map(|most| DiscardLimits { slots: most.slots.min(spare), ..most });
            let limits = limits.filter(|most| most.slots > 0 && self.may_gather(id));
            let Some(limits) = limits else {
                self.let_go_gathered(id);
                moved = true;
                continue;
            };
            let area = self.area(id);
            let is_due = now.since(since) >= GATHER_FOR
                || area.gathered.slots() >= SLOTS_DUE
                || area.gathered.is_full();
            let is_quiet = area.queues.iter().all(|queue| queue.head == NONE)
                && matches!(area.backend.state(), BackendState::Ready { .. });
            if !is_due || area.gathered.sent.is_some() {
                continue;
            }
            if is_quiet {
                moved |= self.send_discard(now, id, limits);
            } else {
                // Its time comes again, not at once.
                self.area_mut(id).gathered.since = Some(now);
            }
        }
        moved
    }

    fn send_discard(&mut self, now: Time, id: AreaId, limits: DiscardLimits) -> bool {
        let area = self.area_mut(id);
        let gathered = &mut area.gathered;
        let runs = gathered.take(limits);
        gathered.since = (gathered.slots() > 0).then_some(now);
        gathered.count = gathered.count.wrapping_add(1);
        let request = RequestId(u32::from(gathered.count) << 16 | ROW);
        gathered.sent = Some((request, runs.clone()));
        let deadline = area.options.request_timeout.map(|timeout| now + timeout);
        let discard = Discard { id: request, runs: runs.clone(), deadline };
        if runs.is_empty() || area.backend.discard(now, discard).is_err() {
            // It can now not be told; another time there are others.
            area.gathered.sent = None;
            self.let_go(id, &runs, false);
        }
        true
    }

    /// The end of a discard; false if it is that of another request.
    pub(super) fn complete_discard(&mut self, id: AreaId, completion: &Completion) -> bool {
        if completion.id.0 & ROW != ROW {
            return false;
        }
        let gathered = &mut self.area_mut(id).gathered;
        let Some((_, runs)) = gathered.sent.take_if(|(sent, _)| *sent == completion.id) else {
            return false;
        };
        gathered.failures = if completion.outcome.is_ok() { 0 } else { gathered.failures + 1 };
        gathered.is_off = gathered.failures >= FAILURES_MAX;
        match completion.outcome {
            Ok(_) => {
                self.stats.discards += 1;
                self.stats.discarded_slots +=
                    runs.iter().map(|run| u64::from(run.slots)).sum::<u64>();
            }
            Err(error) => {
                tracing::debug!(area = &*self.area(id).name, %error, "discard failed");
                self.stats.discards_failed += 1;
            }
        }
        let may_be_late =
            matches!(completion.outcome, Ok(Stored { replayed: true }) | Err(StoreError::TimedOut));
        let quarantine = (completion.is_loose || may_be_late) && self.config.quarantine;
        self.let_go(id, &runs, quarantine);
        true
    }
}
