//! Goal: after an area is in use, the pager allocates nothing on the heap: not for faults, reclaim,
//! page-outs, page-ins, readahead, failures that are retried, nor for swapoff.
//!
//! Method: a global allocator counts what this thread allocates, and is first shown to catch a
//! planted allocation. The backend keeps its requests in an array.

mod counting;

use counting::allocations;
use netswap_reserve::{PagePool, PoolConfig, Span, Time};
use netswap_swap::*;

struct Bits(Vec<(bool, bool)>);

impl Mmu for Bits {
    fn map(&mut self, page: PageId, _writable: bool) {
        self.0[page.0 as usize] = (true, true);
    }
    fn unmap(&mut self, page: PageId) -> bool {
        self.0[page.0 as usize] = (false, false);
        false
    }
    fn test_and_clear_accessed(&mut self, page: PageId) -> bool {
        std::mem::take(&mut self.0[page.0 as usize].1)
    }
}

struct Run {
    pager: Pager<MemBackend>,
    bits: Bits,
    now: Time,
}

impl Run {
    fn settle(&mut self, until: impl Fn(&PagerEvent) -> bool) {
        for _ in 0..100_000 {
            while let Some(event) = self.pager.poll(self.now, &mut self.bits) {
                if until(&event) {
                    return;
                }
            }
            self.now = self.pager.poll_deadline().expect("something happens").max(self.now);
        }
        panic!("nothing happens");
    }

    fn touch(&mut self, page: u32, access: Access) {
        let page = PageId(page);
        match self.pager.handle_fault(self.now, &mut self.bits, TaskId(0), page, access) {
            Fault::Done => while self.pager.poll(self.now, &mut self.bits).is_some() {},
            Fault::Waits => self.settle(|event| matches!(event, PagerEvent::FaultDone { .. })),
            Fault::Failed(error) => panic!("{error}"),
        }
        if access == Access::Write {
            self.pager.page(page).expect("resident")[7] = 1 + page.0 as u8 % 200;
        }
    }
}

#[test]
fn the_counter_catches_a_planted_allocation() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
}

#[test]
fn paging_allocates_nothing() {
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(128) });
    let pager = Pager::new(pool, PagerConfig::new(2, 600));
    let mut run = Run { pager, bits: Bits(vec![(false, false); 600]), now: Time::ZERO };
    let mut ids = Vec::new();
    for name in ["first", "second"] {
        let backend = MemBackend::formatted(700)
            .with_latency(Span::from_micros(50), Span::from_micros(500))
            .with_discards(DiscardLimits { runs: 16, slots: 100 });
        let options = AreaOptions { discard: true, ..AreaOptions::new(name) };
        ids.push(run.pager.add_area(run.now, backend, options));
        run.settle(|event| matches!(event, PagerEvent::AreaOn { .. }));
    }
    let count = allocations(|| {
        let range = run.pager.map_anonymous(500);
        for round in 0..4 {
            for page in range.start.0..range.end.0 {
                run.touch(page, if round % 2 == 0 { Access::Write } else { Access::Read });
            }
            // What was gathered is due.
            run.now += Span::from_secs(2);
            let faults = MemFaults {
                io_error: 3000,
                replayed: 300,
                damaged_read: 200,
                ..MemFaults::default()
            };
            run.pager.backend_mut(ids[0]).set_faults(faults);
        }
        run.pager.backend_mut(ids[0]).set_faults(MemFaults::default());
        run.pager.swapoff(run.now, ids[0]);
        run.settle(|event| matches!(event, PagerEvent::AreaOff { .. }));
        run.pager.unmap(run.now, &mut run.bits, range);
    });
    let stats = *run.pager.stats();
    assert_eq!(count, 0, "{stats:?}");
    assert!(
        stats.page_ins > 500 && stats.page_outs > 500 && stats.retries > 0 && stats.rereads > 0
    );
    assert!(stats.discards > 0, "{stats:?}");
}
