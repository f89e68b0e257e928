//! Nothing here touches the process's heap once it is set up: slab objects, mempools, and collections in
//! reserve memory; scopes, charges in every unit, levels that are passed, reservations and what is drawn from
//! them, and changes of the tree that fail.
//!
//! Method: a global allocator that counts calls of the current thread while it watches. It is first shown to
//! see a planted one.

mod counting;

use allocator_api2::vec::Vec as HeapVec;
use counting::calls;
use hashbrown::{DefaultHashBuilder, HashMap};
use netswap_reserve::{
    EmergencyScope, Frame, Gfp, HeapConfig, Mempool, MempoolConfig, PageMempool, PagePool,
    PoolConfig, ReservationSpec, ReserveHeap, ReserveId, SlabBox, SlabCache,
};

#[test]
fn the_watch_sees_a_planted_allocation() {
    assert_eq!(calls(|| drop(std::hint::black_box(Box::new(1)))), 2);
}

#[test]
fn objects_mempools_and_collections_stay_in_the_pool() {
    for magazine in [0, 32] {
        let pool = PagePool::new(PoolConfig { magazine, ..PoolConfig::new(2048) });
        let cache = SlabCache::<[u64; 8]>::new(&pool);
        let config = MempoolConfig { min: 4, reserve: None };
        let objects = Mempool::<[u64; 4]>::new(&pool, config).unwrap();
        let pages = PageMempool::new(&pool, config).unwrap();
        let config = HeapConfig { run_frames: 256, ..HeapConfig::default() };
        let heap = ReserveHeap::new(&pool, config).unwrap();
        let mut held = Vec::with_capacity(1000);
        let mut hog = Vec::with_capacity(2048);
        let touched = calls(|| {
            held.extend((0..500).map(|i| cache.alloc(Gfp::KERNEL, [i; 8]).unwrap()));
            held.clear();
            cache.shrink();
            let mut map = HashMap::with_hasher_in(DefaultHashBuilder::default(), heap.clone());
            for i in 0..10_000u32 {
                map.insert(i, i);
            }
            map.retain(|key, _| key % 3 == 0);
            map.shrink_to_fit();
            let mut vec = HeapVec::new_in(heap.clone());
            vec.extend(map.keys().copied());
            vec.sort_unstable();
            drop((map, vec));
            heap.shrink_caches();
            hog.extend(std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()));
            for _ in 0..100 {
                drop((objects.alloc(Gfp::KERNEL, [1; 4]), pages.alloc(Gfp::KERNEL)));
                assert!(cache.alloc(Gfp::KERNEL, [1; 8]).is_err());
            }
            let _ = (cache.usage(), heap.usage(), objects.stats(), pages.stats());
        });
        assert_eq!(touched, 0, "with magazines of {magazine}");
        assert!(pages.stats().from_kept > 0);
    }
}

#[test]
fn promises_and_charges_stay_in_the_pool() {
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
        assert_eq!(calls(|| (0..20).for_each(|_| round())), 0, "magazine {magazine}");
    }
}
