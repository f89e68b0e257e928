//! Requests as they come in and go out: over pages of any kind, and, for frames, as a [`SwapBackend`].

use arrayvec::ArrayVec;
use netswap_reserve::Time;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_swap::queue::Turn;
use netswap_swap::{
    BackendLimits, BackendState, Completion, Op, Outstanding, Request, RequestId, Slot, StoreError,
    Stored, SubmitError, SwapBackend, backend::BATCH_PAGES_MAX,
};

use super::{Call, CallState, NfsBackend, Verb};

/// A request over pages that need not be frames; otherwise as [`Request`].
#[derive(Debug)]
pub struct PageRequest<P> {
    /// Comes back with the completion.
    pub id: RequestId,
    /// What to do.
    pub op: Op,
    /// The first slot.
    pub first: Slot,
    /// The pages: moved in, unmapped, and moved out by the completion.
    pub pages: ArrayVec<P, BATCH_PAGES_MAX>,
    /// When it ends with [`StoreError::TimedOut`], if not before.
    pub deadline: Option<Time>,
}

/// The end of a [`PageRequest`].
#[derive(Debug)]
pub struct PageCompletion<P> {
    /// The request that ended.
    pub id: RequestId,
    /// Its pages.
    pub pages: ArrayVec<P, BATCH_PAGES_MAX>,
    /// What became of it.
    pub outcome: Result<Stored, StoreError>,
    /// As [`Completion::is_loose`].
    pub is_loose: bool,
}

/// Why a [`PageRequest`] was not taken. It is handed back whole.
#[derive(Debug)]
pub enum PageSubmitError<P> {
    /// As many requests are outstanding as the backend takes; try again after a completion.
    Full(PageRequest<P>),
    /// The backend is not [`BackendState::Ready`].
    NotReady(PageRequest<P>),
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// Takes a request, as [`SwapBackend::submit`] does. No page of it is mapped.
    ///
    /// # Errors
    /// When it cannot be taken now.
    ///
    /// # Panics
    /// If it has no pages.
    pub fn submit_pages(
        &mut self,
        now: Time,
        request: PageRequest<P>,
    ) -> Result<(), PageSubmitError<P>> {
        assert!(!request.pages.is_empty(), "a request without pages");
        if !matches!(self.state, BackendState::Ready { .. }) {
            return Err(PageSubmitError::NotReady(request));
        }
        let Some(place) = self.free.pop() else { return Err(PageSubmitError::Full(request)) };
        let PageRequest { id, op, first, pages, deadline } = request;
        self.admit(now, place, (id, op, first), pages, deadline);
        Ok(())
    }

    #[inline]
    fn admit(
        &mut self,
        now: Time,
        place: u16,
        (id, op, first): (RequestId, Op, Slot),
        pages: ArrayVec<P, BATCH_PAGES_MAX>,
        deadline: Option<Time>,
    ) {
        let i = usize::from(place);
        let end = u64::from(first.0) + pages.len() as u64;
        self.seq += 1;
        self.calls[i] = Call {
            state: CallState::Pending,
            id,
            first,
            pages,
            deadline: deadline.unwrap_or(Time::MAX),
            turn: Turn { seq: self.seq, ..Turn::default() },
            ..Call::new(match op {
                Op::Read => Verb::Read,
                Op::Write => Verb::Write,
            })
        };
        if end > u64::from(self.slots) {
            let slot = self.slots.max(first.0);
            self.finish(now, i, Err(StoreError::OutOfRange { slot }));
            return;
        }
        self.arm(self.calls[i].deadline);
        let (slots, is_read) = (self.calls[i].slots(), op == Op::Read);
        let is_blocked = self.touched.may_conflict(slots.clone(), is_read) && self.is_blocked(i);
        self.touched.add(slots, is_read);
        self.calls[i].touches = true;
        if is_blocked {
            self.calls[i].state = CallState::Blocked;
            self.blocked += 1;
            self.unsettled = true;
            self.settle(now);
        } else {
            self.start(now, i);
        }
    }

    /// Takes the next request that has ended, as [`SwapBackend::poll_completion`] does.
    #[inline]
    pub fn poll_pages(&mut self, now: Time) -> Option<PageCompletion<P>> {
        self.tick(now);
        let place = self.done.pop_front()?;
        self.free.push(place);
        let call = &mut self.calls[usize::from(place)];
        call.state = CallState::Free;
        // Found out here: a restart that was proven since it ended has made its copies harmless.
        let is_loose = match call.verb {
            Verb::Write => self.fence.give(call.loose),
            _ => self.fence.is_loose(call.loose),
        };
        let pages = std::mem::take(&mut call.pages);
        let outcome = call.outcome.map(|_| Stored { replayed: is_loose });
        Some(PageCompletion { id: call.id, pages, outcome, is_loose })
    }
}

impl SwapBackend for NfsBackend {
    fn state(&self) -> BackendState {
        self.state
    }

    fn limits(&self) -> BackendLimits {
        NfsBackend::limits(self)
    }

    fn server(&self) -> &str {
        &self.config.label
    }

    fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError> {
        assert!(!request.pages.is_empty(), "a request without pages");
        if !matches!(self.state, BackendState::Ready { .. }) {
            return Err(SubmitError::NotReady(request));
        }
        let Some(place) = self.free.pop() else { return Err(SubmitError::Full(request)) };
        let Request { id, op, first, pages, deadline } = request;
        self.admit(now, place, (id, op, first), pages, deadline);
        Ok(())
    }

    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        let PageCompletion { id, pages, outcome, is_loose } = self.poll_pages(now)?;
        Some(Completion { id, pages, outcome, is_loose })
    }

    fn poll_deadline(&self) -> Option<Time> {
        (self.next_deadline < Time::MAX).then_some(self.next_deadline)
    }

    fn fences(&self) -> u64 {
        self.fence.count()
    }

    fn shutdown(&mut self, now: Time) {
        NfsBackend::shutdown(self, now);
    }

    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        NfsBackend::outstanding(self, visit);
    }
}
