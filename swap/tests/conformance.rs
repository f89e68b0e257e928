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

/// What a wrapper does wrong.
#[derive(Clone, Copy, Debug)]
enum Wrong {
    SwapsPages,
    LosesARequest,
    EndsTwice,
    ForgetsToCancel,
    IgnoresTheEnd,
    DropsAPage,
}

struct Broken {
    inner: MemBackend,
    wrong: Wrong,
    seen: u32,
}

impl SwapBackend for Broken {
    fn state(&self) -> BackendState {
        self.inner.state()
    }
    fn limits(&self) -> BackendLimits {
        self.inner.limits()
    }
    fn server(&self) -> &str {
        self.inner.server()
    }
    fn submit(&mut self, now: Time, mut request: Request) -> Result<(), SubmitError> {
        self.seen += 1;
        match self.wrong {
            Wrong::LosesARequest if self.seen == 5 => return Ok(()),
            Wrong::IgnoresTheEnd if request.first.0 >= 70 => request.first = Slot(3),
            _ => {}
        }
        self.inner.submit(now, request)
    }
    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        let mut completion = self.inner.poll_completion(now)?;
        match self.wrong {
            Wrong::SwapsPages if completion.pages.len() > 1 => completion.pages.swap(0, 1),
            Wrong::EndsTwice if self.seen == 6 => completion.id = RequestId(completion.id.0 - 1),
            Wrong::DropsAPage if completion.pages.len() > 2 => drop(completion.pages.pop()),
            _ => {}
        }
        Some(completion)
    }
    fn poll_deadline(&self) -> Option<Time> {
        self.inner.poll_deadline()
    }
    fn shutdown(&mut self, now: Time) {
        if !matches!(self.wrong, Wrong::ForgetsToCancel) {
            self.inner.shutdown(now);
        }
    }
    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        self.inner.outstanding(visit);
    }
}

#[test]
fn each_broken_rule_is_caught() {
    let all = [
        Wrong::SwapsPages,
        Wrong::LosesARequest,
        Wrong::EndsTwice,
        Wrong::ForgetsToCancel,
        Wrong::IgnoresTheEnd,
        Wrong::DropsAPage,
    ];
    std::panic::set_hook(Box::new(|_| {}));
    for wrong in all {
        let make = || Broken { inner: MemBackend::new(70), wrong, seen: 0 };
        let outcome = catch_unwind(AssertUnwindSafe(|| conformance::check(&pool(), make, drive)));
        assert!(outcome.is_err(), "{wrong:?} was not caught");
    }
}
