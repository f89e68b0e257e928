//! Promise 6, slab fairness: objects of a page that came from a reserve go only to entitled callers until
//! the page is wholly free; it is charged as a page until then, or until it is exchanged.
//!
//! Method: random allocations and frees by entitled and other callers, while ordinary memory comes and
//! goes. Pages are told apart by the addresses of their objects. After every step the charged pages are
//! exactly the reserve's usage; an object that somebody without entitlement got is in no charged page.

mod common;

use std::collections::BTreeMap;

use common::cases;
use netswap_reserve::{
    EmergencyScope, Frame, Gfp, PAGE_SIZE, PagePool, ReserveId, SlabBox, SlabCache, SlabConfig,
};
use netswap_reserve_model::{FRAMES, config};
use proptest::prelude::*;

type Object = [u64; 64];

#[derive(Clone, Copy, Debug)]
enum Op {
    Object { entitled: bool, by_scope: bool },
    Free(usize),
    TakeMemory(u8),
    GiveMemory(u8),
    Exchange,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        10 => (any::<bool>(), any::<bool>())
            .prop_map(|(entitled, by_scope)| Op::Object { entitled, by_scope }),
        7 => (0..1_000usize).prop_map(Op::Free),
        2 => (1..30u8).prop_map(Op::TakeMemory),
        2 => (1..6u8).prop_map(Op::GiveMemory),
        1 => Just(Op::Exchange),
    ]
}

struct World {
    pool: PagePool,
    reserve: ReserveId,
    cache: SlabCache<Object>,
    objects: Vec<(u64, SlabBox<Object>)>,
    rest: Vec<Frame>,
    serial: u64,
}

impl World {
    fn new(fairness: bool) -> World {
        let pool = PagePool::new(config());
        let reserve = pool.add_reserve(ReserveId::ROOT, "objects", 5);
        pool.connect(reserve).unwrap();
        let cache = SlabCache::with_config(&pool, SlabConfig { fairness, ..SlabConfig::default() });
        World { pool, reserve, cache, objects: Vec::new(), rest: Vec::new(), serial: 0 }
    }

    /// Returns whether the promise was kept.
    fn step(&mut self, op: Op) -> bool {
        let mut kept = true;
        match op {
            Op::Object { entitled, by_scope } => {
                self.serial += 1;
                let value = [self.serial; 64];
                let before = self.cache.usage();
                let got = match (entitled, by_scope) {
                    (false, _) => self.cache.alloc(Gfp::KERNEL, value),
                    (true, false) => self.cache.alloc_from(Gfp::KERNEL, self.reserve, value),
                    (true, true) => {
                        let _scope = EmergencyScope::enter(&self.pool, self.reserve);
                        self.cache.alloc(Gfp::KERNEL, value)
                    }
                };
                match got {
                    Ok(object) => {
                        kept = entitled || object.charged_to().is_none();
                        self.objects.push((self.serial, object));
                    }
                    Err(refused) => {
                        assert_eq!(refused.value, value);
                        assert_eq!(self.cache.usage(), before);
                        assert!(!entitled || self.pool.reserve_usage(self.reserve) == 5);
                    }
                }
            }
            Op::Free(i) => {
                if !self.objects.is_empty() {
                    let at = i % self.objects.len();
                    let (serial, object) = self.objects.swap_remove(at);
                    assert_eq!(*object, [serial; 64], "nobody wrote over it");
                }
            }
            Op::TakeMemory(n) => {
                let more = (0..n).map_while(|_| self.pool.alloc(Gfp::KERNEL).ok());
                self.rest.extend(more);
            }
            Op::GiveMemory(n) => {
                self.rest.truncate(self.rest.len().saturating_sub(n.into()));
            }
            Op::Exchange => {
                let before = self.cache.usage().reserve_pages;
                let exchanged = self.cache.try_exchange(Gfp::KERNEL);
                assert_eq!(self.cache.usage().reserve_pages, before - exchanged);
                let marks = self.pool.watermarks();
                assert!(exchanged == before || self.pool.free_frames() <= marks.min);
            }
        }
        self.check();
        kept
    }

    fn check(&self) {
        let mut pages = BTreeMap::new();
        for (_, object) in &self.objects {
            let page = &**object as *const Object as usize / PAGE_SIZE;
            let charged = object.charged_to().is_some();
            assert_eq!(*pages.entry(page).or_insert(charged), charged);
        }
        let usage = self.cache.usage();
        let charged = pages.values().filter(|&&charged| charged).count() as u32;
        assert_eq!(usage.objects as usize, self.objects.len());
        assert_eq!(usage.pages as usize, pages.len(), "a page without objects is given back");
        assert_eq!(usage.reserve_pages, charged);
        assert_eq!(self.pool.reserve_usage(self.reserve), charged);
        assert_eq!(self.pool.free_frames(), FRAMES - usage.pages - self.rest.len() as u32);
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn reserve_pages_are_for_the_entitled(ops in prop::collection::vec(op(), 1..400)) {
        let mut world = World::new(true);
        for op in ops {
            prop_assert!(world.step(op));
        }
        world.objects.clear();
        world.check();
    }
}

/// Canary: without the rule the same check finds an object that eats the reserve.
#[test]
fn the_check_sees_unfairness() {
    let mut world = World::new(false);
    world.step(Op::TakeMemory(u8::MAX));
    assert!(world.step(Op::Object { entitled: true, by_scope: false }));
    assert!(!world.step(Op::Object { entitled: false, by_scope: false }));
}
