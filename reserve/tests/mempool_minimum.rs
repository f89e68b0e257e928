//! Mempools: of what one gives out, its minimum can be out at once whatever memory does; what is freed fills
//! it first; a charged element is never kept.
//!
//! Method: random allocations and frees while ordinary memory comes and goes, against a count of kept
//! elements worked out from the rules. Threads then take and free beside each other with memory gone, where
//! each is owed its share of the minimum.

mod common;

use std::sync::Barrier;

use common::cases;
use netswap_reserve::{
    Frame, Gfp, Mempool, MempoolBox, MempoolConfig, PageMempool, PagePool, ReserveId,
};
use netswap_reserve_model::{FRAMES, config};
use proptest::prelude::*;

const MIN: u32 = 3;
const RESERVE: u32 = 4;

#[derive(Clone, Copy, Debug)]
enum Op {
    Page,
    FreePage(usize),
    TakeMemory(u8),
    GiveMemory(u8),
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        5 => Just(Op::Page),
        4 => (0..100usize).prop_map(Op::FreePage),
        1 => (1..60u8).prop_map(Op::TakeMemory),
        1 => (1..6u8).prop_map(Op::GiveMemory),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn the_order_is_ordinary_kept_reserve(ops in prop::collection::vec(op(), 1..200)) {
        let pool = PagePool::new(config());
        let reserve = pool.add_reserve(ReserveId::ROOT, "pages", RESERVE);
        pool.connect(reserve).unwrap();
        let mempool = PageMempool::new(&pool, MempoolConfig { min: MIN, reserve: Some(reserve) }).unwrap();
        let mut kept = MIN;
        let mut held = Vec::new();
        let mut rest: Vec<Frame> = Vec::new();
        for op in ops {
            let before = mempool.stats();
            match op {
                Op::Page => {
                    let ordinary = pool.free_frames() > pool.watermarks().min;
                    let charged = pool.reserve_usage(reserve);
                    match mempool.alloc(Gfp::KERNEL) {
                        Ok(page) => {
                            prop_assert_eq!(page.charged_to().is_some(), !ordinary && kept == 0);
                            kept -= u32::from(!ordinary && kept > 0);
                            held.push(page);
                        }
                        Err(_) => {
                            prop_assert!(!ordinary && kept == 0 && charged == RESERVE);
                            prop_assert_eq!(mempool.stats().failures, before.failures + 1);
                        }
                    }
                }
                Op::FreePage(i) if !held.is_empty() => {
                    let page = held.swap_remove(i % held.len());
                    kept += u32::from(page.charged_to().is_none() && kept < MIN);
                }
                Op::FreePage(_) => {}
                Op::TakeMemory(n) => rest.extend((0..n).map_while(|_| pool.alloc(Gfp::KERNEL).ok())),
                Op::GiveMemory(n) => rest.truncate(rest.len().saturating_sub(n.into())),
            }
            prop_assert_eq!(mempool.stats().kept, kept);
        }
        drop((held, rest));
        prop_assert_eq!(mempool.stats().kept, MIN);
        prop_assert_eq!(pool.reserve_usage(reserve), 0);
        drop(mempool);
        prop_assert_eq!(pool.free_frames(), FRAMES);
    }
}

#[test]
fn each_thread_gets_its_share_of_the_minimum() {
    const THREADS: u32 = 3;
    for magazine in [0, 32] {
        let pool = PagePool::new(netswap_reserve::PoolConfig { magazine, ..config() });
        let mempool =
            Mempool::<[u64; 8]>::new(&pool, MempoolConfig { min: 2 * THREADS, reserve: None });
        let mempool = mempool.unwrap();
        let hog: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
        // Slots of the page that the kept ones lie in.
        let mut others: Vec<MempoolBox<_>> = Vec::new();
        while mempool.stats().kept == 2 * THREADS {
            others.push(mempool.alloc(Gfp::KERNEL, [0; 8]).unwrap());
        }
        others.pop();
        let start = Barrier::new(THREADS as usize);
        std::thread::scope(|s| {
            for t in 0..u64::from(THREADS) {
                let (mempool, start) = (&mempool, &start);
                s.spawn(move || {
                    start.wait();
                    for turn in 0..20_000 {
                        let a = mempool.alloc(Gfp::KERNEL, [t; 8]).expect("the minimum");
                        let b = mempool.alloc(Gfp::KERNEL, [turn; 8]).expect("the minimum");
                        assert_eq!((*a, *b), ([t; 8], [turn; 8]));
                    }
                });
            }
        });
        let stats = mempool.stats();
        assert_eq!((stats.kept, stats.failures), (2 * THREADS, 0));
        assert!(stats.from_kept > 0, "memory was not gone: this proved nothing");
        drop((others, hog, mempool));
        assert_eq!(pool.free_frames(), FRAMES);
    }
}

#[test]
fn values_are_dropped_once_and_handed_back() {
    use std::rc::Rc;
    let pool = PagePool::new(config());
    let mempool = Mempool::<Rc<u8>>::new(&pool, MempoolConfig { min: 1, reserve: None }).unwrap();
    let value = Rc::new(1);
    let object = mempool.alloc(Gfp::KERNEL, value.clone()).unwrap();
    assert_eq!((Rc::strong_count(&value), **object), (2, 1));
    let _hog: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    let mut held: Vec<_> =
        std::iter::from_fn(|| mempool.alloc(Gfp::KERNEL, value.clone()).ok()).collect();
    assert_eq!(mempool.stats().kept, 0);
    let refused = mempool.alloc(Gfp::KERNEL, value.clone()).unwrap_err();
    assert!(Rc::ptr_eq(&refused.value, &value));
    drop(refused);
    held.clear();
    drop(object);
    assert_eq!((Rc::strong_count(&value), mempool.stats().kept), (1, 1));
}
