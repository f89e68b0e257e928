//! Threads' caches of slots: what a thread keeps is there for others when it is wanted.
//!
//! Method: threads that stand still with full caches, at barriers, while another wants the memory; threads
//! that allocate, free for each other and shrink at once, with every object stamped; caches that end while
//! other threads keep slots of theirs. At the end every frame is back, whatever threads still live.

mod common;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, mpsc};

use common::cases;
use netswap_reserve::{
    Gfp, PagePool, PoolConfig, ReserveId, SlabBox, SlabCache, SlabConfig, SlabUsage,
};
use proptest::prelude::*;

const FRAMES: u32 = 256;

type Object = [u64; 8];

fn pool() -> PagePool {
    PagePool::new(PoolConfig { magazine: 8, ..PoolConfig::new(FRAMES) })
}

/// Runs `f` while `n` other threads each keep free slots of `cache` and do nothing.
fn beside_idle_threads<R>(cache: &SlabCache<Object>, n: usize, f: impl FnOnce() -> R) -> R {
    let (full, done) = (Barrier::new(n + 1), Barrier::new(n + 1));
    std::thread::scope(|s| {
        let spawn = |_| {
            s.spawn(|| {
                let held: Vec<_> =
                    (0..200).map(|i| cache.alloc(Gfp::KERNEL, [i; 8]).unwrap()).collect();
                drop(held);
                full.wait();
                done.wait();
            })
        };
        let threads: Vec<_> = (0..n).map(spawn).collect();
        full.wait();
        let result = f();
        done.wait();
        // A scope may be over before its threads have given back what they kept; a join is not.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
        result
    })
}

/// Who waits for a frame gets the pages that idle threads keep slots of, of any cache of the pool.
#[test]
fn a_waiter_gets_what_idle_threads_keep() {
    let pool = pool();
    let (cache, other) = (SlabCache::<Object>::new(&pool), SlabCache::<[u64; 32]>::new(&pool));
    drop(other.alloc(Gfp::KERNEL, [0; 32]).unwrap());
    beside_idle_threads(&cache, 3, || {
        let kept = cache.usage().pages + other.usage().pages;
        assert!(kept >= 2);
        let hog: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
        assert!(pool.alloc(Gfp::KERNEL).is_err());
        let waited = pool.alloc_wait(Gfp::KERNEL, std::time::Duration::from_secs(60)).unwrap();
        assert_eq!(cache.usage().pages + other.usage().pages, 0);
        drop((hog, waited));
    });
}

#[test]
fn what_idle_threads_keep_is_counted_and_taken_back() {
    let pool = pool();
    let cache = SlabCache::<Object>::new(&pool);
    beside_idle_threads(&cache, 3, || {
        let usage = cache.usage();
        assert_eq!(usage.objects, 0);
        assert!(usage.cached >= 3 * 15, "threads keep half a cache at least: {usage:?}");
        assert_eq!(cache.shrink(), usage.pages);
        assert_eq!(cache.usage(), SlabUsage::default());
        assert_eq!(cache.shrink(), 0);
    });
    pool.flush_magazine();
    assert_eq!(pool.free_frames(), FRAMES);
}

/// Slots of reserve pages are never kept: the charge is released with the last object, at once.
#[test]
fn reserve_pages_wait_for_no_thread() {
    let pool = pool();
    let reserve = pool.add_reserve(ReserveId::ROOT, "objects", 4);
    pool.connect(reserve).unwrap();
    let cache = SlabCache::<Object>::new(&pool);
    let mut rest: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    let objects: Vec<_> =
        (0..200).map(|i| cache.alloc_from(Gfp::KERNEL, reserve, [i; 8]).unwrap()).collect();
    assert_eq!((pool.reserve_usage(reserve), cache.usage().cached), (4, 0));
    // Memory is plentiful again, but nobody has exchanged the pages.
    rest.clear();
    drop(objects);
    assert_eq!((pool.reserve_usage(reserve), cache.usage()), (0, SlabUsage::default()));
}

/// The estimate holds at the floor, although idle threads keep slots when the need comes.
#[test]
fn a_cache_asks_other_threads_before_it_takes_a_page() {
    let pool = pool();
    let objects = 5 * SlabCache::<Object>::PER_PAGE;
    let reserve = pool.add_reserve(ReserveId::ROOT, "objects", 5);
    pool.connect(reserve).unwrap();
    let cache = SlabCache::<Object>::new(&pool);
    beside_idle_threads(&cache, 2, || {
        let _rest: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
        let kept = cache.usage();
        assert!(kept.cached > 0);
        let held: Vec<_> =
            std::iter::from_fn(|| cache.alloc_from(Gfp::KERNEL, reserve, [7; 8]).ok())
                .take(objects as usize)
                .collect();
        assert_eq!(held.len() as u32, objects);
        let usage = cache.usage();
        assert_eq!((usage.cached, usage.objects), (0, objects));
        // Ordinary pages that were there, and no more of the reserve than the rest needs.
        assert!(usage.reserve_pages <= 5 - kept.pages.min(5), "{kept:?} {usage:?}");
    });
}

/// An object in use is no kept slot.
#[test]
fn objects_in_use_are_not_taken_back() {
    let pool = pool();
    let cache = SlabCache::<Object>::new(&pool);
    let held = cache.alloc(Gfp::KERNEL, [1; 8]).unwrap();
    assert_eq!(cache.shrink(), 0);
    assert_eq!((cache.usage().objects, cache.usage().pages), (1, 1));
    drop(held);
    assert_eq!(cache.shrink(), 1);
}

#[test]
fn caches_end_while_threads_keep_slots() {
    let pool = pool();
    let (send, receive) = mpsc::sync_channel::<SlabBox<Object>>(4);
    let worker = std::thread::spawn(move || {
        for object in receive {
            assert_eq!(object[0], object[7]);
        }
    });
    for round in 0..300 {
        let cache = SlabCache::<Object>::new(&pool);
        for i in 0..40 {
            send.send(cache.alloc(Gfp::KERNEL, [round * i; 8]).unwrap()).unwrap();
        }
        // The worker keeps slots of it now, or frees the last objects after this.
    }
    drop(send);
    worker.join().unwrap();
    pool.flush_magazine();
    assert_eq!(pool.free_frames(), FRAMES);
}

#[test]
fn many_caches_share_a_table() {
    let pool = PagePool::new(PoolConfig { magazine: 8, ..PoolConfig::new(2048) });
    let caches: Vec<_> = (0..70).map(|_| SlabCache::<Object>::new(&pool)).collect();
    for turn in 0..200u64 {
        for (i, cache) in caches.iter().enumerate() {
            let object = cache.alloc(Gfp::KERNEL, [turn; 8]).unwrap();
            let other = caches[(i + 32) % caches.len()].alloc(Gfp::KERNEL, [turn; 8]).unwrap();
            assert_eq!(*object, *other);
        }
    }
    caches.iter().for_each(|cache| assert_eq!(cache.usage().objects, 0));
    drop(caches);
    pool.flush_magazine();
    assert_eq!(pool.free_frames(), 2048);
}

#[derive(Clone, Copy, Debug)]
enum Op {
    Alloc(bool),
    Free(usize),
    Send(usize),
    TakeMemory(u8),
    GiveMemory(u8),
    Shrink,
    Exchange,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        12 => any::<bool>().prop_map(Op::Alloc),
        6 => (0..1_000usize).prop_map(Op::Free),
        6 => (0..1_000usize).prop_map(Op::Send),
        1 => (1..120u8).prop_map(Op::TakeMemory),
        1 => (1..60u8).prop_map(Op::GiveMemory),
        1 => Just(Op::Shrink),
        1 => Just(Op::Exchange),
    ]
}

/// One thread's part of a run: its objects are stamped, and some are freed by whoever receives them.
fn part(
    ops: &[Op],
    pool: &PagePool,
    cache: &SlabCache<Object>,
    reserve: ReserveId,
    to: &mpsc::Sender<SlabBox<Object>>,
) {
    let mut held: Vec<(u64, SlabBox<Object>)> = Vec::new();
    let mut rest = Vec::new();
    for (serial, &op) in ops.iter().enumerate() {
        let serial = serial as u64;
        match op {
            Op::Alloc(entitled) => {
                let got = if entitled {
                    cache.alloc_from(Gfp::KERNEL, reserve, [serial; 8])
                } else {
                    cache.alloc(Gfp::KERNEL, [serial; 8])
                };
                if let Ok(object) = got {
                    assert!(entitled || object.charged_to().is_none(), "promise 6");
                    held.push((serial, object));
                }
            }
            Op::Free(i) | Op::Send(i) if !held.is_empty() => {
                let (serial, object) = held.swap_remove(i % held.len());
                assert_eq!(*object, [serial; 8], "nobody wrote over it");
                if matches!(op, Op::Send(_)) {
                    to.send(object).unwrap();
                }
            }
            Op::Free(_) | Op::Send(_) => {}
            Op::TakeMemory(n) => rest.extend((0..n).map_while(|_| pool.alloc(Gfp::KERNEL).ok())),
            Op::GiveMemory(n) => rest.truncate(rest.len().saturating_sub(n.into())),
            Op::Shrink => {
                cache.shrink();
            }
            Op::Exchange => {
                cache.try_exchange(Gfp::KERNEL);
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(64))]

    #[test]
    fn threads_share_a_cache(
        scripts in prop::array::uniform3(prop::collection::vec(op(), 1..600)),
        thread_slots in prop_oneof![Just(30u32), Just(2), Just(0)],
    ) {
        let pool = PagePool::new(PoolConfig { magazine: 8, ..PoolConfig::new(96) });
        let reserve = pool.add_reserve(ReserveId::ROOT, "objects", 6);
        pool.connect(reserve).unwrap();
        let config = SlabConfig { thread_slots, ..SlabConfig::default() };
        let cache = SlabCache::<Object>::with_config(&pool, config);
        let ends = [mpsc::channel(), mpsc::channel(), mpsc::channel()];
        let (senders, receivers): (Vec<_>, Vec<_>) = ends.into_iter().unzip();
        std::thread::scope(|s| {
            for (i, (script, receiver)) in scripts.iter().zip(receivers).enumerate() {
                let to = senders[(i + 1) % 3].clone();
                let (pool, cache) = (&pool, &cache);
                s.spawn(move || {
                    for ops in script.chunks(40) {
                        part(ops, pool, cache, reserve, &to);
                        receiver.try_iter().for_each(drop);
                    }
                    drop(to);
                    receiver.iter().for_each(drop);
                });
            }
            drop(senders);
        });
        prop_assert_eq!(pool.reserve_usage(reserve), 0);
        cache.shrink();
        prop_assert_eq!(cache.usage(), SlabUsage::default());
        drop(cache);
    }
}

/// A thread shrinks without a pause while others run at full speed: the two sides of the lock meet often.
#[test]
fn shrinking_beside_a_running_thread() {
    let pool = pool();
    let cache = SlabCache::<Object>::new(&pool);
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        for t in 0..2u64 {
            let (cache, stop) = (&cache, &stop);
            s.spawn(move || {
                let mut held = Vec::new();
                let mut turn = t;
                while !stop.load(Ordering::Relaxed) {
                    held.push((turn, cache.alloc(Gfp::KERNEL, [turn; 8]).unwrap()));
                    turn += 2;
                    if held.len() > (turn % 90) as usize {
                        for (turn, object) in held.drain(..) {
                            assert_eq!(*object, [turn; 8]);
                        }
                    }
                }
            });
        }
        let mut pages = 0;
        while pages < 100 {
            pages += cache.shrink();
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
    });
    cache.shrink();
    assert_eq!(cache.usage(), SlabUsage::default());
}
