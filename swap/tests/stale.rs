//! Goal: a completion that belongs to an earlier use of a slot is never taken for data. Method: a
//! backend that ends each request a second time, later, with other bytes in the pages.

use std::collections::VecDeque;

use netswap_reserve::{Gfp, PagePool, PoolConfig, Time};
use netswap_swap::*;

struct Twice {
    inner: MemBackend,
    pool: PagePool,
    again: VecDeque<(RequestId, usize)>,
}

impl SwapBackend for Twice {
    fn state(&self) -> BackendState {
        self.inner.state()
    }
    fn limits(&self) -> BackendLimits {
        self.inner.limits()
    }
    fn server(&self) -> &str {
        "twice"
    }
    fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError> {
        self.inner.submit(now, request)
    }
    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        if self.again.len() > 3 {
            let (id, count) = self.again.pop_front()?;
            let pages = (0..count).map_while(|_| self.pool.alloc(Gfp::ATOMIC).ok()).collect();
            return Some(Completion { id, pages, outcome: Ok(Stored::default()), is_loose: false });
        }
        let completion = self.inner.poll_completion(now)?;
        self.again.push_back((completion.id, completion.pages.len()));
        Some(completion)
    }
    fn poll_deadline(&self) -> Option<Time> {
        self.inner.poll_deadline()
    }
    fn shutdown(&mut self, now: Time) {
        self.inner.shutdown(now);
    }
    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        self.inner.outstanding(visit);
    }
}

struct Tables(Vec<bool>);

impl Mmu for Tables {
    fn map(&mut self, page: PageId, _writable: bool) {
        self.0[page.0 as usize] = true;
    }
    fn unmap(&mut self, page: PageId) -> bool {
        self.0[page.0 as usize] = false;
        true
    }
    fn test_and_clear_accessed(&mut self, _page: PageId) -> bool {
        false
    }
}

#[test]
fn a_request_that_ends_twice_changes_nothing_the_second_time() {
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(128) });
    let mut tables = Tables(vec![false; 400]);
    let mut pager = Pager::new(pool.clone(), PagerConfig::new(1, 400));
    let inner = MemBackend::formatted(500);
    let twice = Twice { inner, pool: pool.clone(), again: VecDeque::new() };
    pager.add_area(Time::ZERO, twice, AreaOptions::new("a"));
    while pager.poll(Time::ZERO, &mut tables).is_some() {}
    let range = pager.map_anonymous(400);
    for round in 0..4u64 {
        for page in (range.start.0..range.end.0).map(PageId) {
            let access = if round % 2 == 0 { Access::Write } else { Access::Read };
            let fault = pager.handle_fault(Time::ZERO, &mut tables, TaskId(0), page, access);
            assert!(!matches!(fault, Fault::Failed(_)), "{fault:?}");
            if let Some(event) = pager.poll(Time::ZERO, &mut tables) {
                let done = PagerEvent::FaultDone { task: TaskId(0), page };
                assert_eq!((event, &fault), (done, &Fault::Waits));
            }
            let stamp = (u64::from(page.0) + 1) * 1000;
            let bytes = pager.page(page).expect("the fault ended");
            if round > 0 {
                let before = stamp + (round - 1) / 2 * 2;
                assert_eq!(bytes[..8], before.to_le_bytes(), "page {} round {round}", page.0);
            }
            if access == Access::Write {
                bytes[..8].copy_from_slice(&(stamp + round).to_le_bytes());
            }
        }
    }
    assert!(pager.stats().stale_completions > 100, "{:?}", pager.stats());
    assert_eq!(pager.stats().checksum_errors, 0);
    pager.shutdown(Time::ZERO, &mut tables);
    while pager.poll(Time::ZERO, &mut tables).is_some() {}
    assert_eq!(pool.free_frames(), 128);
}
