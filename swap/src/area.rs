//! Areas: a backend, its slots, and how far the area is.
//!
//! ```text
//!   Starting --ready--> Checking --signature--> On --swapoff--> Leaving --empty--> Off
//!      |  (read-only: straight to On)  |         ^------refused-----'
//!      '--------> Refused <------------'         On --store failed--> Failed
//! ```
//! A store fails too often, which is for the policy to say, or as a whole ([`crate::BackendState::Failed`]), which no policy
//! outlasts. A failed area is read from, but takes no more pages; it can be taken out.

use std::sync::Arc;

use netswap_reserve::{Span, Time};

use crate::backend::{BackendState, Slot, SwapBackend};
use crate::error::Place;
use crate::gathered::Gathered;
use crate::page::{AreaId, NONE};
use crate::slots::SlotTable;

/// The most areas a pager has in its life.
pub const AREAS_MAX: usize = 32;

/// What is done when the store does not do what it is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FailurePolicy {
    /// Ask again, for ever, waiting `first` at first, twice as long each time, `max` at most. (Unless the
    /// store has failed as a whole: that is as if the last attempt of [`FailurePolicy::FailOver`] had failed.)
    Retry {
        /// Before the second attempt.
        first: Span,
        /// The longest wait.
        max: Span,
    },
    /// Ask `attempts` times in all, waiting `backoff` in between. Then pages to be written go to
    /// other areas, and this one takes no more; a page to be read is an error for who touches it.
    FailOver {
        /// Attempts, at least 1.
        attempts: u32,
        /// Between attempts.
        backoff: Span,
    },
    /// Give the page up at once: who touches it gets the error. Memory is freed whatever the store
    /// does, at the price of the data.
    Poison,
}

impl Default for FailurePolicy {
    fn default() -> FailurePolicy {
        FailurePolicy::Retry { first: Span::from_millis(10), max: Span::from_secs(10) }
    }
}

/// How an area is used.
#[derive(Clone, Debug)]
pub struct AreaOptions {
    /// Its name in messages.
    pub name: String,
    /// Areas of higher priority are filled first.
    pub priority: i16,
    /// What is done when the store fails.
    pub on_failure: FailurePolicy,
    /// An area of files: it has no signature, is never written, and pages are mapped from it.
    pub read_only: bool,
    /// How long the store has for a request; `None` is for ever. A write that ran out of time costs
    /// its slots, see `quarantine_max`.
    pub request_timeout: Option<Span>,
    /// The most slots that may be in quarantine, since a late copy of a write may still reach them;
    /// with more, the area takes no more pages. `None` is a quarter of the slots.
    pub quarantine_max: Option<u32>,
    /// Tell the store of slots that became free, so that it can give back what they take; if the store takes it
    /// ([`SwapBackend::discards`]). It is batched, and comes after everything else: see `pager/discard.rs`.
    pub discard: bool,
}

impl AreaOptions {
    /// An area of this name, of priority 0, that is tried for ever.
    pub fn new(name: &str) -> AreaOptions {
        AreaOptions {
            name: name.into(),
            priority: 0,
            on_failure: FailurePolicy::default(),
            read_only: false,
            request_timeout: None,
            quarantine_max: None,
            discard: false,
        }
    }
}

/// How far an area is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AreaState {
    /// Waits for the store.
    Starting,
    /// Its header is being read.
    Checking,
    /// Not taken into use.
    Refused,
    /// In use.
    On,
    /// In use for reading; its store failed too often for new pages.
    Failed,
    /// Being taken out: pages leave, none enter.
    Leaving,
    /// Taken out.
    Off,
}

/// An area as [`crate::Pager::areas`] lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AreaInfo {
    /// Which.
    pub id: AreaId,
    /// Its name.
    pub name: Arc<str>,
    /// Its server.
    pub server: Arc<str>,
    /// How far it is.
    pub state: AreaState,
    /// Its priority.
    pub priority: i16,
    /// An area of files.
    pub read_only: bool,
    /// Slots, the header's included; 0 before it is on.
    pub slots: u32,
    /// Slots that hold a page.
    pub used: u32,
    /// Slots that are free.
    pub free: u32,
    /// Slots in quarantine.
    pub quarantined: u32,
    /// Slots that hold no page, and wait to be discarded or for the end of that; then they are free.
    pub discarding: u32,
}

/// A queue of I/Os, linked through the table of I/Os.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Queue {
    pub(crate) head: u32,
    pub(crate) tail: u32,
}

impl Queue {
    pub(crate) const EMPTY: Queue = Queue { head: NONE, tail: NONE };
}

#[derive(Debug)]
pub(crate) struct Area<B> {
    pub(crate) backend: B,
    pub(crate) state: AreaState,
    pub(crate) name: Arc<str>,
    pub(crate) server: Arc<str>,
    pub(crate) options: AreaOptions,
    pub(crate) slots: SlotTable,
    /// Slots that are to be discarded.
    pub(crate) gathered: Gathered,
    /// Reads and writes that wait to be submitted, by [`crate::Op`].
    pub(crate) queues: [Queue; 2],
    /// I/Os of this area, queued ones included.
    pub(crate) ios: u32,
    /// Writes with the store.
    pub(crate) writes_submitted: usize,
    /// Writes that failed since the last that did not.
    pub(crate) write_failures: u32,
    /// Why it takes no more pages, if it has failed.
    pub(crate) failed_by: Option<crate::backend::StoreError>,
    /// Why pages were last given up.
    pub(crate) poisoned_by: Option<crate::backend::StoreError>,
    /// The store had no space: no new pages before this.
    pub(crate) full_until: Time,
    pub(crate) quarantine_told: bool,
    /// [`crate::SwapBackend::fences`] when the quarantine was last released.
    pub(crate) fences: u64,
    /// `swapoff`: the next page to look at, and what stopped it.
    pub(crate) leave_cursor: u32,
    pub(crate) leave_error: Option<(Slot, crate::backend::StoreError)>,
    pub(crate) leave_from: AreaState,
    /// Reading the header again is not due before this.
    pub(crate) check_at: Time,
    pub(crate) checks: u32,
}

impl<B> Area<B> {
    pub(crate) fn new(backend: B, server: &str, options: AreaOptions) -> Area<B> {
        Area {
            backend,
            state: AreaState::Starting,
            name: options.name.as_str().into(),
            server: server.into(),
            options,
            slots: SlotTable::default(),
            gathered: Gathered::default(),
            queues: [Queue::EMPTY; 2],
            ios: 0,
            writes_submitted: 0,
            write_failures: 0,
            failed_by: None,
            poisoned_by: None,
            full_until: Time::ZERO,
            quarantine_told: false,
            fences: 0,
            leave_cursor: 0,
            leave_error: None,
            leave_from: AreaState::On,
            check_at: Time::ZERO,
            checks: 0,
        }
    }

    pub(crate) fn place(&self, id: AreaId, slot: Slot) -> Place {
        Place { area: id, name: self.name.clone(), server: self.server.clone(), slot }
    }

    pub(crate) fn quarantine_max(&self) -> u32 {
        self.options.quarantine_max.unwrap_or(self.slots.len() / 4)
    }

    /// Slots that new pages may get now.
    pub(crate) fn room(&self, now: Time) -> u32 {
        let open = self.state == AreaState::On
            && !self.options.read_only
            && now >= self.full_until
            && self.slots.quarantined() <= self.quarantine_max();
        if open { self.slots.free() } else { 0 }
    }

    /// The wait before attempt `attempts + 1`, or `None` if there is none.
    pub(crate) fn backoff(&self, attempts: u32) -> Option<Span>
    where
        B: SwapBackend,
    {
        if matches!(self.backend.state(), BackendState::Failed(_)) {
            // It does not come back by itself: to ask again is to wait for ever.
            return None;
        }
        match self.options.on_failure {
            FailurePolicy::Retry { first, max } => {
                Some((first * (1 << attempts.saturating_sub(1).min(40))).min(max))
            }
            FailurePolicy::FailOver { attempts: most, backoff } => {
                (attempts < most).then_some(backoff)
            }
            FailurePolicy::Poison => None,
        }
    }
}
