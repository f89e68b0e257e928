//! A backend in memory, with latency, and with faults to order or at random.
//!
//! Fault model: a request may fail with any [`StoreError`]; a read may bring damaged pages or too
//! few bytes; a write may be reported as replayed, or be lost although it was reported as done. All
//! is drawn from a seed. A request is never lost, and never ends twice. A discard may be carried out long after it was
//! given up, which destroys what was written since.

use netswap_reserve::{PAGE_SIZE, Span, Time};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::backend::{
    BATCH_PAGES_MAX, BackendLimits, BackendState, Completion, Discard, DiscardLimits, Op,
    Outstanding, PageVec, Phase, Request, RunVec, StoreError, Stored, SubmitError, SwapBackend,
};
use crate::signature::Header;

/// How often each fault occurs, in requests (damage: pages) of 65,536.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MemFaults {
    /// The request fails with [`StoreError::Io`].
    pub io_error: u16,
    /// The read fails with [`StoreError::ShortRead`].
    pub short_read: u16,
    /// A page that is read has a bit flipped; the store itself is sound.
    pub damaged_read: u16,
    /// The write is done, and reported as replayed.
    pub replayed: u16,
    /// The write is done, and reported as [`StoreError::TimedOut`].
    pub timed_out: u16,
    /// The write is reported as done, and is not.
    pub lost_write: u16,
    /// The discard is reported as [`StoreError::TimedOut`], and carried out 64 requests later.
    pub late_discard: u16,
}

/// After so many requests a late discard is carried out: long enough for its slots to have other pages.
const LATE_BY: u64 = 64;

/// A discard that is outstanding: when it is due, and how it has ended if by itself.
#[derive(Debug)]
struct Discarding {
    due: Time,
    discard: Discard,
    error: Option<StoreError>,
}

/// A backend in memory.
///
/// ```
/// use netswap_swap::{BackendState, MemBackend, SwapBackend};
/// let backend = MemBackend::formatted(64);
/// assert_eq!(backend.state(), BackendState::Ready { slots: 64 });
/// ```
#[derive(Debug)]
pub struct MemBackend {
    server: String,
    bytes: Vec<u8>,
    slots: u32,
    state: BackendState,
    limits: BackendLimits,
    latency: (Span, Span),
    faults: MemFaults,
    rng: Xoshiro256PlusPlus,
    /// Errors ordered for the next requests.
    ordered: Option<(Op, StoreError, u32)>,
    /// Ordered for all writes: the store is full.
    held: bool,
    outstanding: Vec<(Time, Request, Option<StoreError>)>,
    requests: u64,
    discards: Option<DiscardLimits>,
    refuses_discards: bool,
    discarding: Option<Discarding>,
    /// Discards that are late: carried out when so many requests were taken.
    late: Vec<(u64, RunVec)>,
    late_discards: u64,
}

impl MemBackend {
    /// A store of `slots` slots of zeros, ready, immediate, without faults; 32 requests at once.
    pub fn new(slots: u32) -> MemBackend {
        let in_flight = 32;
        MemBackend {
            server: "mem://".into(),
            bytes: vec![0; slots as usize * PAGE_SIZE],
            slots,
            state: BackendState::Ready { slots },
            limits: BackendLimits { batch_pages: BATCH_PAGES_MAX, in_flight },
            latency: (Span::ZERO, Span::ZERO),
            faults: MemFaults::default(),
            rng: Xoshiro256PlusPlus::seed_from_u64(0),
            ordered: None,
            held: false,
            outstanding: Vec::with_capacity(in_flight),
            requests: 0,
            discards: None,
            refuses_discards: false,
            discarding: None,
            late: Vec::new(),
            late_discards: 0,
        }
    }

    /// As [`MemBackend::new`], with the header of a swap area in slot 0.
    pub fn formatted(slots: u32) -> MemBackend {
        let mut backend = MemBackend::new(slots);
        let mut header = [0; PAGE_SIZE];
        Header::new(slots).write(&mut header);
        backend.slot_mut(0).copy_from_slice(&header);
        backend
    }

    /// Each request takes a time between these.
    pub fn with_latency(mut self, least: Span, most: Span) -> MemBackend {
        self.latency = (least, most);
        self
    }

    /// Faults at random.
    pub fn with_faults(mut self, seed: u64, faults: MemFaults) -> MemBackend {
        self.rng = Xoshiro256PlusPlus::seed_from_u64(seed);
        self.faults = faults;
        self
    }

    /// Takes requests of at most so many pages, and so many at once.
    pub fn with_limits(mut self, limits: BackendLimits) -> MemBackend {
        self.outstanding.reserve(limits.in_flight);
        self.limits = limits;
        self
    }

    /// Takes discards of at most so much: their slots are zeros then.
    pub fn with_discards(mut self, limits: DiscardLimits) -> MemBackend {
        self.discards = Some(limits);
        self
    }

    /// Seems to take discards, and refuses the first: from then on it takes none.
    pub fn refusing_discards(mut self, limits: DiscardLimits) -> MemBackend {
        (self.discards, self.refuses_discards) = (Some(limits), true);
        self
    }

    /// Discards that were carried out late so far.
    pub fn late_discards(&self) -> u64 {
        self.late_discards
    }

    /// Is in this state: starting, failed.
    pub fn with_state(mut self, state: BackendState) -> MemBackend {
        self.state = state;
        self
    }

    /// From now on it is in this state.
    pub fn set_state(&mut self, state: BackendState) {
        self.state = state;
    }

    /// From now on these faults occur at random.
    pub fn set_faults(&mut self, faults: MemFaults) {
        self.faults = faults;
    }

    /// The next `times` requests of this kind fail like that.
    pub fn fail_next(&mut self, op: Op, error: StoreError, times: u32) {
        self.ordered = Some((op, error, times));
    }

    /// While held, nothing completes: the server does not answer.
    pub fn hold(&mut self, held: bool) {
        self.held = held;
    }

    /// Requests taken so far.
    pub fn requests(&self) -> u64 {
        self.requests
    }

    /// The content of a slot, to be looked at or damaged.
    ///
    /// # Panics
    /// If there is no such slot.
    pub fn slot_mut(&mut self, slot: u32) -> &mut [u8] {
        &mut self.bytes[slot as usize * PAGE_SIZE..][..PAGE_SIZE]
    }

    /// The store fails as a whole: what is outstanding ends with `error`, and nothing is taken any more.
    pub fn fail(&mut self, error: StoreError) {
        self.state = BackendState::Failed(error);
        self.outstanding.iter_mut().for_each(|(.., ended)| *ended = Some(error));
        self.discarding.iter_mut().for_each(|discarding| discarding.error = Some(error));
    }

    fn due(&mut self, now: Time) -> Time {
        let (least, most) = self.latency;
        let range = (most - least).as_nanos() + 1;
        now + least + Span::from_nanos(self.rng.next_u64() % range)
    }

    fn zero(&mut self, runs: &RunVec) {
        for run in runs {
            let first = run.first.0 as usize * PAGE_SIZE;
            self.bytes[first..][..run.slots as usize * PAGE_SIZE].fill(0);
        }
    }

    /// What was given up as discards long ago is carried out now.
    fn carry_out_late(&mut self) {
        while let Some(at) = self.late.iter().position(|(at, _)| *at <= self.requests) {
            let (_, runs) = self.late.swap_remove(at);
            self.zero(&runs);
            self.late_discards += 1;
        }
    }

    fn carry_out_discard(&mut self, discard: &Discard) -> Result<Stored, StoreError> {
        let end = |run: &crate::backend::Run| u64::from(run.first.0) + u64::from(run.slots);
        if let Some(run) = discard.runs.iter().find(|run| end(run) > u64::from(self.slots)) {
            return Err(StoreError::OutOfRange { slot: run.first.0.max(self.slots) });
        }
        if self.refuses_discards {
            self.discards = None;
            return Err(StoreError::Refused { code: 0x05_2000 });
        }
        if self.draw(self.faults.io_error) {
            return Err(StoreError::Io);
        }
        if self.draw(self.faults.late_discard) {
            self.late.push((self.requests + LATE_BY, discard.runs.clone()));
            return Err(StoreError::TimedOut);
        }
        self.zero(&discard.runs);
        Ok(Stored { replayed: self.draw(self.faults.replayed) })
    }

    fn poll_discard(&mut self, now: Time) -> Option<Completion> {
        let held = self.held;
        let ended = |d: &mut Discarding| {
            d.error.is_some()
                || d.discard.deadline.is_some_and(|at| at <= now)
                || (!held && d.due <= now)
        };
        let Discarding { due, discard, error } = self.discarding.take_if(ended)?;
        let outcome = match error {
            Some(error) => Err(error),
            None if held || due > now => Err(StoreError::TimedOut),
            None => self.carry_out_discard(&discard),
        };
        Some(Completion { id: discard.id, pages: PageVec::new(), outcome, is_loose: false })
    }

    fn draw(&mut self, of_65536: u16) -> bool {
        of_65536 > 0 && (self.rng.next_u32() & 0xffff) < u32::from(of_65536)
    }

    fn carry_out(&mut self, request: &mut Request) -> Result<Stored, StoreError> {
        let (first, count) = (request.first.0, request.pages.len() as u32);
        if u64::from(first) + u64::from(count) > u64::from(self.slots) {
            return Err(StoreError::OutOfRange { slot: first.max(self.slots) });
        }
        if let Some((op, error, times)) = self.ordered.filter(|(op, ..)| *op == request.op) {
            self.ordered = (times > 1).then_some((op, error, times - 1));
            return Err(error);
        }
        let faults = self.faults;
        if self.draw(faults.io_error) {
            return Err(StoreError::Io);
        }
        if request.op == Op::Read && self.draw(faults.short_read) {
            let wanted = count * PAGE_SIZE as u32;
            return Err(StoreError::ShortRead { got: wanted / 2, wanted });
        }
        let lost = request.op == Op::Write && self.draw(faults.lost_write);
        for (i, page) in request.pages.iter_mut().enumerate() {
            match request.op {
                Op::Read => {
                    page.bytes_mut().copy_from_slice(self.slot_mut(first + i as u32));
                    if self.draw(faults.damaged_read) {
                        let at = self.rng.next_u32() as usize;
                        page.bytes_mut()[at % PAGE_SIZE] ^= 1 << (at >> 29);
                    }
                }
                Op::Write if lost => {}
                Op::Write => self.slot_mut(first + i as u32).copy_from_slice(page.bytes()),
            }
        }
        if request.op == Op::Write && self.draw(faults.timed_out) {
            return Err(StoreError::TimedOut);
        }
        Ok(Stored { replayed: request.op == Op::Write && self.draw(faults.replayed) })
    }
}

impl SwapBackend for MemBackend {
    fn state(&self) -> BackendState {
        self.state
    }

    fn limits(&self) -> BackendLimits {
        self.limits
    }

    fn server(&self) -> &str {
        &self.server
    }

    fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError> {
        if !matches!(self.state, BackendState::Ready { .. }) {
            return Err(SubmitError::NotReady(request));
        }
        if self.outstanding.len() >= self.limits.in_flight {
            return Err(SubmitError::Full(request));
        }
        let due = self.due(now);
        self.requests += 1;
        self.outstanding.push((due, request, None));
        Ok(())
    }

    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        self.carry_out_late();
        if let Some(completion) = self.poll_discard(now) {
            return Some(completion);
        }
        let held = self.held;
        let ended = |(due, request, error): &(Time, Request, Option<StoreError>)| {
            error.is_some()
                || request.deadline.is_some_and(|at| at <= now)
                || (!held && *due <= now)
        };
        let at = self.outstanding.iter().position(ended)?;
        let (due, mut request, error) = self.outstanding.remove(at);
        let outcome = match error {
            Some(error) => Err(error),
            None if held || due > now => Err(StoreError::TimedOut),
            None => self.carry_out(&mut request),
        };
        Some(Completion { id: request.id, pages: request.pages, outcome, is_loose: false })
    }

    fn poll_deadline(&self) -> Option<Time> {
        let due = |(due, request, error): &(Time, Request, Option<StoreError>)| match error {
            Some(_) => Some(Time::ZERO),
            None if self.held => request.deadline,
            None => Some(request.deadline.map_or(*due, |at| at.min(*due))),
        };
        let discard = self.discarding.as_ref().and_then(|d| match d.error {
            Some(_) => Some(Time::ZERO),
            None if self.held => d.discard.deadline,
            None => Some(d.discard.deadline.map_or(d.due, |at| at.min(d.due))),
        });
        self.outstanding.iter().filter_map(due).chain(discard).min()
    }

    fn discards(&self) -> Option<DiscardLimits> {
        self.discards
    }

    fn discard(&mut self, now: Time, discard: Discard) -> Result<(), Discard> {
        let is_ready = matches!(self.state, BackendState::Ready { .. });
        if !is_ready || self.discards.is_none() || self.discarding.is_some() {
            return Err(discard);
        }
        let due = self.due(now);
        self.discarding = Some(Discarding { due, discard, error: None });
        Ok(())
    }

    fn shutdown(&mut self, _now: Time) {
        self.state = BackendState::Stopped;
        for (.., error) in &mut self.outstanding {
            *error = Some(StoreError::Cancelled);
        }
        if let Some(discarding) = &mut self.discarding {
            discarding.error = Some(StoreError::Cancelled);
        }
    }

    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        for (_, request, _) in &self.outstanding {
            visit(Outstanding {
                id: request.id,
                first: request.first,
                pages: request.pages.len() as u32,
                verb: if request.op == Op::Read { "READ" } else { "WRITE" },
                tag_name: "request",
                tag: request.id.0,
                phase: Phase::Sent,
            });
        }
        if let Some(Discarding { discard, .. }) = &self.discarding {
            visit(Outstanding {
                id: discard.id,
                first: discard.runs[0].first,
                pages: discard.slots(),
                verb: "DISCARD",
                tag_name: "request",
                tag: discard.id.0,
                phase: Phase::Sent,
            });
        }
    }
}
