//! Units of the slab caches: the fairness rule, the exchange, and that objects are what they seem.

use super::*;
use crate::frame::Frame;
use crate::{EmergencyScope, PoolConfig};
use std::rc::Rc;
use std::sync::Arc;

type Object = [u64; 16];

/// A pool whose ordinary memory is used up, and a reserve of `reserve` frames that is not.
fn at_the_floor(reserve: u32) -> (PagePool, ReserveId, Vec<Frame>) {
    let pool = PagePool::new(PoolConfig { magazine: 0, headroom: 0, ..PoolConfig::new(64) });
    let id = pool.add_reserve(ReserveId::ROOT, "objects", reserve);
    pool.connect(id).unwrap();
    let rest = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    (pool, id, rest)
}

/// An entitled caller takes one object, an unentitled one all it can get, then the entitled one wants
/// the rest of its page. Returns what each got.
fn contest(fairness: bool) -> (u32, u32) {
    let (pool, reserve, _rest) = at_the_floor(1);
    let cache =
        SlabCache::<Object>::with_config(&pool, SlabConfig { fairness, ..SlabConfig::default() });
    let first = cache.alloc_from(Gfp::KERNEL, reserve, [0; 16]).unwrap();
    let eaten: Vec<_> = std::iter::from_fn(|| cache.alloc(Gfp::KERNEL, [0; 16]).ok()).collect();
    let scope = EmergencyScope::enter(&pool, reserve);
    let got: Vec<_> = std::iter::from_fn(|| cache.alloc(Gfp::KERNEL, [0; 16]).ok()).collect();
    drop(scope);
    assert_eq!(pool.reserve_usage(reserve), 1);
    drop(first);
    (eaten.len() as u32, got.len() as u32)
}

#[test]
fn objects_of_a_reserve_page_go_to_entitled_callers_only() {
    assert_eq!(contest(true), (0, SlabCache::<Object>::PER_PAGE - 1));
}

#[test]
fn without_fairness_an_unentitled_caller_eats_the_reserve() {
    assert_eq!(contest(false), (SlabCache::<Object>::PER_PAGE - 1, 0));
}

#[test]
fn a_reserve_page_is_charged_until_it_is_wholly_free() {
    let (pool, reserve, _rest) = at_the_floor(2);
    let cache = SlabCache::<Object>::new(&pool);
    let a = cache.alloc_from(Gfp::KERNEL, reserve, [1; 16]).unwrap();
    let b = cache.alloc_from(Gfp::KERNEL, reserve, [2; 16]).unwrap();
    drop(a);
    assert_eq!(pool.reserve_usage(reserve), 1);
    assert_eq!(*b, [2; 16]);
    drop(b);
    assert_eq!(pool.reserve_usage(reserve), 0);
    assert_eq!(cache.usage(), SlabUsage::default());
}

#[test]
fn when_ordinary_memory_is_back_a_reserve_page_is_exchanged() {
    let (pool, reserve, mut rest) = at_the_floor(2);
    let cache = SlabCache::<Object>::new(&pool);
    let kept = cache.alloc_from(Gfp::KERNEL, reserve, [0; 16]).unwrap();
    assert_eq!(cache.try_exchange(Gfp::KERNEL), 0);
    rest.pop();
    // The first frame that comes back only restores the floor.
    assert_eq!((pool.free_frames(), cache.try_exchange(Gfp::KERNEL)), (2, 0));
    rest.pop();
    let other = cache.alloc(Gfp::KERNEL, [0; 16]).unwrap();
    assert_eq!((pool.reserve_usage(reserve), pool.free_frames()), (0, 3));
    assert_eq!(cache.usage(), SlabUsage { objects: 2, cached: 0, pages: 1, reserve_pages: 0 });
    drop((kept, other));
    assert_eq!(pool.free_frames(), 4);
}

#[test]
fn full_reserve_pages_are_exchanged_on_request() {
    let (pool, reserve, mut rest) = at_the_floor(3);
    let cache = SlabCache::<Object>::new(&pool);
    let n = 2 * SlabCache::<Object>::PER_PAGE;
    let held: Vec<_> =
        (0..n).map(|_| cache.alloc_from(Gfp::KERNEL, reserve, [0; 16]).unwrap()).collect();
    assert_eq!((cache.usage().reserve_pages, pool.reserve_usage(reserve)), (2, 2));
    rest.truncate(rest.len() - 3);
    assert_eq!(pool.free_frames(), 4);
    assert_eq!(cache.try_exchange(Gfp::KERNEL), 2);
    assert_eq!((cache.usage().reserve_pages, pool.reserve_usage(reserve)), (0, 0));
    drop(held);
    assert_eq!(pool.free_frames(), 6);
}

#[test]
fn the_estimate_is_exact() {
    for objects in [0, 1, 30, 31, 32, 33, 62, 63, 64, 200] {
        let pages = SlabCache::<Object>::estimate_pages(objects);
        let (pool, reserve, _rest) = at_the_floor(pages);
        let cache = SlabCache::<Object>::new(&pool);
        let held: Vec<_> = (0..objects)
            .map(|_| cache.alloc_from(Gfp::KERNEL, reserve, [0; 16]).unwrap())
            .collect();
        assert_eq!(cache.usage().pages, pages, "{objects} objects");
        assert_eq!(pool.reserve_usage(reserve), pages);
        drop(held);
    }
}

#[test]
fn values_are_dropped_once_and_handed_back_when_refused() {
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
    let cache = SlabCache::<Rc<u8>>::new(&pool);
    let value = Rc::new(1);
    let object = cache.alloc(Gfp::KERNEL, value.clone()).unwrap();
    assert_eq!(Rc::strong_count(&value), 2);
    drop(object);
    assert_eq!(Rc::strong_count(&value), 1);
    let object = cache.alloc(Gfp::KERNEL, value.clone()).unwrap();
    assert!(Rc::ptr_eq(&object.into_inner(), &value));
    assert_eq!((Rc::strong_count(&value), cache.usage().objects), (1, 0));
    let _rest: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    let refused = cache.alloc(Gfp::KERNEL, value.clone()).unwrap_err();
    assert!(Rc::ptr_eq(&refused.value, &value));
}

#[test]
fn a_panic_in_a_drop_gives_the_slot_back() {
    struct Bomb;
    impl Drop for Bomb {
        fn drop(&mut self) {
            panic!("bomb");
        }
    }
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
    let cache = SlabCache::<Bomb>::new(&pool);
    let object = cache.alloc(Gfp::KERNEL, Bomb).unwrap();
    let result = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| drop(object)));
    assert!(result.is_err());
    assert_eq!((cache.usage(), pool.free_frames()), (SlabUsage::default(), 64));
}

#[test]
fn objects_are_aligned_and_apart_and_outlive_handles() {
    #[repr(align(64))]
    struct Wide([u8; 65]);
    let pool = PagePool::new(PoolConfig::new(64));
    let cache = SlabCache::<Wide>::new(&pool);
    let mut held: Vec<_> =
        (0..100u8).map(|i| cache.alloc(Gfp::KERNEL, Wide([i; 65])).unwrap()).collect();
    drop(cache);
    drop(pool);
    held.retain(|w| w.0[0] % 3 != 0);
    for object in &held {
        assert_eq!(object.object.as_ptr() as usize % 64, 0);
        assert!(object.0.iter().all(|&b| b == object.0[0]));
    }
}

#[test]
fn many_threads_share_a_cache_and_all_comes_back() {
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(256) });
    let cache = Arc::new(SlabCache::<[u64; 3]>::new(&pool));
    let threads: Vec<_> = (0..4u64)
        .map(|t| {
            let cache = cache.clone();
            std::thread::spawn(move || {
                let mut held = Vec::new();
                for i in 0..20_000u64 {
                    held.push(cache.alloc(Gfp::KERNEL, [t, i, t ^ i]).unwrap());
                    if held.len() > 50 {
                        let object = held.swap_remove((i % 50) as usize);
                        assert_eq!(object[2], object[0] ^ object[1]);
                    }
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert_eq!((cache.usage(), pool.free_frames()), (SlabUsage::default(), 256));
}
