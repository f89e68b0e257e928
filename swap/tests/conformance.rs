//! Goal: the suite passes what conforms and catches what does not. Method: the backend in memory in
//! several shapes, and wrappers that break one rule each.

use std::panic::{AssertUnwindSafe, catch_unwind};

use netswap_reserve::{PagePool, PoolConfig, Span, Time};
use netswap_swap::*;

fn pool() -> PagePool {
    PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(256) })
}

fn drive<B>(_: &mut B, now: &mut Time) {
    *now += Span::from_millis(1);
}

#[test]
fn the_backend_in_memory_conforms_in_every_shape() {
    for (batch_pages, in_flight) in [(16, 32), (1, 1), (3, 2), (16, 500)] {
        let make = || {
            MemBackend::new(70)
                .with_limits(BackendLimits { batch_pages, in_flight })
                .with_latency(Span::from_millis(1), Span::from_millis(9))
        };
        let pool = pool();
        conformance::check(&pool, make, drive);
        assert_eq!(pool.free_frames(), 256);
    }
}

#[test]
fn discards_conform_with_and_without_bounds_and_when_they_are_refused() {
    for (runs, slots, refuses) in [(16, 300, false), (1, 1, false), (3, 5, false), (16, 300, true)]
    {
        let limits = DiscardLimits { runs, slots };
        let make = || {
            let backend = MemBackend::new(70)
                .with_latency(Span::from_millis(1), Span::from_millis(9))
                .with_discards(limits);
            if refuses { backend.refusing_discards(limits) } else { backend }
        };
        conformance::check(&pool(), make, drive);
    }
}

/// What a wrapper does wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    SwapsPages,
    LosesARequest,
    EndsTwice,
    ForgetsToCancel,
    IgnoresTheEnd,
    DropsAPage,
    AnnouncesNothing,
    AnnouncesDeadlinesOnly,
    AnnouncesTooLate,
    IgnoresDeadlines,
    ListsNothing,
    ListsWhatEnded,
    ListsTwice,
    StaysReady,
}

struct Broken {
    inner: MemBackend,
    wrong: Wrong,
    seen: u32,
    /// The deadline of the last request.
    deadline: Option<Time>,
    ended: Option<Outstanding>,
}

impl SwapBackend for Broken {
    fn state(&self) -> BackendState {
        match self.wrong {
            Wrong::StaysReady => BackendState::Ready { slots: 70 },
            _ => self.inner.state(),
        }
    }
    fn limits(&self) -> BackendLimits {
        self.inner.limits()
    }
    fn server(&self) -> &str {
        self.inner.server()
    }
    fn submit(&mut self, now: Time, mut request: Request) -> Result<(), SubmitError> {
        self.seen += 1;
        self.deadline = request.deadline;
        match self.wrong {
            Wrong::IgnoresDeadlines => request.deadline = None,
            Wrong::LosesARequest if self.seen == 5 => return Ok(()),
            Wrong::IgnoresTheEnd if request.first.0 >= 70 => request.first = Slot(3),
            _ => {}
        }
        self.inner.submit(now, request)
    }
    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        let mut before = Vec::new();
        self.inner.outstanding(&mut |o| before.push(o));
        let mut completion = self.inner.poll_completion(now)?;
        self.ended = before.into_iter().find(|o| o.id == completion.id);
        match self.wrong {
            Wrong::SwapsPages if completion.pages.len() > 1 => completion.pages.swap(0, 1),
            Wrong::EndsTwice if self.seen == 6 => completion.id = RequestId(completion.id.0 - 1),
            Wrong::DropsAPage if completion.pages.len() > 2 => drop(completion.pages.pop()),
            _ => {}
        }
        Some(completion)
    }
    fn poll_deadline(&self) -> Option<Time> {
        let at = self.inner.poll_deadline();
        match self.wrong {
            Wrong::AnnouncesNothing => None,
            Wrong::AnnouncesDeadlinesOnly => at.and(self.deadline),
            Wrong::AnnouncesTooLate => at.map(|at| at + Span::from_secs(1)),
            _ => at,
        }
    }
    fn shutdown(&mut self, now: Time) {
        if !matches!(self.wrong, Wrong::ForgetsToCancel) {
            self.inner.shutdown(now);
        }
    }
    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        match self.wrong {
            Wrong::ListsNothing => {}
            Wrong::ListsTwice => {
                self.inner.outstanding(visit);
                self.inner.outstanding(visit);
            }
            Wrong::ListsWhatEnded => {
                self.inner.outstanding(visit);
                self.ended.into_iter().for_each(visit);
            }
            _ => self.inner.outstanding(visit),
        }
    }
}

#[test]
fn each_broken_rule_is_caught() {
    let all = [
        (Wrong::SwapsPages, "other content"),
        (Wrong::LosesARequest, "listed: {}"),
        (Wrong::EndsTwice, "ends twice"),
        (Wrong::ForgetsToCancel, "after shutdown"),
        (Wrong::IgnoresTheEnd, "of 70"),
        (Wrong::DropsAPage, "the pages come back"),
        (Wrong::AnnouncesNothing, "poll_deadline() was None"),
        (Wrong::AnnouncesDeadlinesOnly, "poll_deadline() was None"),
        (Wrong::AnnouncesTooLate, "gives up at"),
        (Wrong::IgnoresDeadlines, "gives up at"),
        (Wrong::ListsNothing, "listed: {}"),
        (Wrong::ListsWhatEnded, "listed: {"),
        (Wrong::ListsTwice, "listed twice"),
        (Wrong::StaysReady, "after shutdown"),
    ];
    std::panic::set_hook(Box::new(|_| {}));
    let mut missed = Vec::new();
    for (wrong, message) in all {
        let make = || {
            // What is done at once is not listed: then only the outcome tells.
            let least = Span::from_millis(u64::from(!matches!(wrong, Wrong::IgnoresTheEnd)));
            let inner = MemBackend::new(70).with_latency(least, least * 9);
            Broken { inner, wrong, seen: 0, deadline: None, ended: None }
        };
        let outcome = catch_unwind(AssertUnwindSafe(|| conformance::check(&pool(), make, drive)));
        let said = outcome.map_err(|panic| {
            let text = panic.downcast_ref::<&str>().map(|text| text.to_string());
            text.or_else(|| panic.downcast_ref::<String>().cloned())
        });
        if !matches!(&said, Err(Some(said)) if said.contains(message)) {
            missed.push((wrong, message, said));
        }
    }
    drop(std::panic::take_hook());
    assert!(missed.is_empty(), "not caught, or for another reason: {missed:#?}");
}
