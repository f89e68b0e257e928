//! Waiting for a window: the line, served in order of arrival.
//!
//! A [`Ticket`] is a place in it. Who waits on its thread sleeps until it is woken and asks again with its
//! ticket ([`Shared::wait_in_line`]); a state machine keeps the ticket and asks when it likes
//! ([`Shared::poll_hold`]). Nobody is handed a window: who is woken and finds itself first takes it. Whatever
//! may make somebody else first wakes all: a window given back, a place in the line given up.

use std::fmt;
use std::sync::{Arc, PoisonError};
use std::task::Poll;
use std::time::{Duration, Instant};

use super::{Hold, Shared, Tried, lock};
use crate::windows::error::MapError;
use crate::windows::high::HighPage;

/// A place in the line of those who wait for windows. Dropping it leaves the line.
pub struct Ticket {
    shared: Arc<Shared>,
    task: u32,
    number: u64,
    wanted: u32,
}

impl Ticket {
    /// Windows wanted: 1, or all that the task declared.
    pub fn wanted(&self) -> u32 {
        self.wanted
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let first = self.shared.state.lock().leave(self.number);
        if first {
            self.shared.wake();
        }
    }
}

impl fmt::Debug for Ticket {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ticket")
            .field("number", &self.number)
            .field("wanted", &self.wanted)
            .finish()
    }
}

impl Shared {
    /// Maps `page`, or takes a place in the line.
    pub(super) fn poll_hold<'a>(
        self: &'a Arc<Shared>,
        page: &HighPage,
        task: u32,
        ticket: &mut Option<Ticket>,
    ) -> Poll<Result<Hold<'a>, MapError>> {
        ticket.take_if(|t| !Arc::ptr_eq(&t.shared, self) || t.task != task);
        loop {
            match self.attempt(page, task, ticket.as_ref().map(|t| t.number)) {
                Ok(Tried::Held(hold)) => {
                    *ticket = None;
                    return Poll::Ready(Ok(hold));
                }
                Ok(Tried::Full(_)) if ticket.is_some() => return Poll::Pending,
                // Once more from the line: what was given back before it was joined woke nobody.
                Ok(Tried::Full(wanted)) => match self.state.lock().join(task, wanted) {
                    Ok(number) => {
                        *ticket = Some(Ticket { shared: self.clone(), task, number, wanted });
                    }
                    Err(error) => return Poll::Ready(Err(error)),
                },
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
    }

    #[cold]
    pub(super) fn wait_in_line(
        self: &Arc<Shared>,
        page: &HighPage,
        task: u32,
        timeout: Duration,
    ) -> Result<Hold<'_>, MapError> {
        let began = Instant::now();
        let mut ticket = None;
        loop {
            let seen = *lock(&self.woken);
            if let Poll::Ready(result) = self.poll_hold(page, task, &mut ticket) {
                return result;
            }
            let mut woken = lock(&self.woken);
            while *woken == seen {
                let waited = began.elapsed();
                let Some(left) = timeout.checked_sub(waited).filter(|l| !l.is_zero()) else {
                    drop(woken);
                    let wanted = ticket.as_ref().map_or(1, |t| t.wanted);
                    return Err(self.timed_out(wanted, waited));
                };
                let result = self.wake.wait_timeout(woken, left);
                woken = result.unwrap_or_else(PoisonError::into_inner).0;
            }
        }
    }

    fn timed_out(&self, wanted: u32, waited: Duration) -> MapError {
        let mut state = self.state.lock();
        state.counters.timeouts += 1;
        let usage = state.usage(&self.tables);
        MapError::TimedOut { wanted, taken: usage.taken, windows: usage.windows, waited }
    }
}
