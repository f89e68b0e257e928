//! After start nothing here takes the heap: scopes, charges in every unit, levels that are passed,
//! reservations and what is drawn from them, and changes of the tree that fail.
//!
//! Method: the global allocator of this binary counts. It is first shown to count one that was planted.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use netswap_reserve::{
    EmergencyScope, Frame, Gfp, PagePool, PoolConfig, ReservationSpec, ReserveId, SlabBox,
    SlabCache,
};

struct Counting;

thread_local! {
    static COUNT: Cell<u64> = const { Cell::new(0) };
}

// SAFETY: everything is handed to the system's allocator; counting touches a thread's own number, which
// has no destructor and takes no heap.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: as the caller promises.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, p: *mut u8, layout: Layout) {
        // SAFETY: as the caller promises.
        unsafe { System.dealloc(p, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    let before = COUNT.get();
    work();
    COUNT.get() - before
}

#[test]
fn nothing_takes_the_heap_after_start() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1, "the detector detects");

    for magazine in [0, 16] {
        let pool = PagePool::new(PoolConfig { magazine, ..PoolConfig::new(256) });
        let net = pool.add_reserve(ReserveId::ROOT, "net", 16);
        pool.count_objects(net, 8);
        pool.connect(net).unwrap();
        let cache = SlabCache::<[u64; 16]>::new(&pool);
        let mut frames: Vec<Frame> = Vec::with_capacity(512);
        let mut objects: Vec<SlabBox<[u64; 16]>> = Vec::with_capacity(512);
        // The first time on a thread lists it.
        drop(EmergencyScope::enter(&pool, net));
        let mut round = || {
            let spec = ReservationSpec::pages(20).objects(&cache, 100);
            let mut reservation = pool.reserve(spec).unwrap();
            let mut part = reservation.split(4).unwrap();
            while let Ok(frame) = pool.alloc(Gfp::KERNEL) {
                frames.push(frame);
            }
            assert!(pool.reserve(spec).is_err());
            frames.extend((0..4).map(|_| part.page()));
            frames.extend((0..16).map(|_| reservation.page()));
            objects.extend((0..100).map(|_| reservation.object(&cache, [0; 16])));
            {
                let _scope = EmergencyScope::enter(&pool, net);
                let mut charged = pool.reserve(ReservationSpec::pages(8)).unwrap();
                let saved = EmergencyScope::save();
                saved.restore();
                frames.extend((0..8).map(|_| charged.page()));
                drop(pool.charge_bytes(net, 5 * 4096).unwrap());
                drop(pool.charge_objects(net, 64).unwrap());
                assert!(pool.charge(net, 100).is_err());
                while let Ok(frame) = pool.alloc(Gfp::KERNEL) {
                    frames.push(frame);
                }
            }
            assert!(pool.resize(net, 1_000).is_err());
            drop((reservation, part));
            frames.clear();
            objects.clear();
        };
        round();
        assert_eq!(allocations(|| (0..20).for_each(|_| round())), 0, "magazine {magazine}");
    }
}
