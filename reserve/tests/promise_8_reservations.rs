//! Promise 8, reservations: what was reserved can be drawn, whatever happens in between; what is not drawn
//! is given back; and nothing but a draw goes below.
//!
//! Method: random operations on pages and on objects of two caches, by reservations and by everybody else,
//! with emergency scopes entered around them, on a pool that is nearly full. A draw of what is left
//! panics if it fails. At the end all ordinary memory and all free slots are taken away, and all that
//! is reserved is drawn. Pages alone also run in the naive model (`netswap_reserve_model`), which knows each
//! counter exactly; here the pool's number is checked from both sides.

mod common;

use common::cases;
use netswap_reserve::{
    EmergencyScope, Frame, Gfp, PagePool, PoolConfig, Reservation, ReservationError,
    ReservationSpec, ReserveId, SlabBox, SlabCache,
};
use netswap_reserve_model::{config, gfp};
use proptest::prelude::*;

type Small = [u64; 32];
type Large = [u64; 128];

#[derive(Clone, Copy, Debug)]
enum Op {
    Reserve { pages: u32, small: u32, large: u32, scope: bool },
    Page { at: usize, scope: bool },
    Small { at: usize, scope: bool },
    Large { at: usize, scope: bool },
    End(usize),
    Take { frames: u8, gfp: u8, scope: bool },
    Give(u8),
    Object { scope: bool },
    FreeSmall(usize),
    FreeLarge(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let at = || (0..1_000usize, any::<bool>());
    prop_oneof![
        4 => (0..10u32, 0..40u32, 0..8u32, any::<bool>())
            .prop_map(|(pages, small, large, scope)| Op::Reserve { pages, small, large, scope }),
        8 => at().prop_map(|(at, scope)| Op::Page { at, scope }),
        12 => at().prop_map(|(at, scope)| Op::Small { at, scope }),
        8 => at().prop_map(|(at, scope)| Op::Large { at, scope }),
        3 => (0..1_000usize).prop_map(Op::End),
        4 => (1..60u8, 0..4u8, any::<bool>())
            .prop_map(|(frames, gfp, scope)| Op::Take { frames, gfp, scope }),
        3 => (1..20u8).prop_map(Op::Give),
        6 => any::<bool>().prop_map(|scope| Op::Object { scope }),
        8 => (0..1_000usize).prop_map(Op::FreeSmall),
        6 => (0..1_000usize).prop_map(Op::FreeLarge),
    ]
}

struct Held<T> {
    objects: Vec<(u64, SlabBox<T>)>,
    check: fn(&T) -> u64,
}

impl<T> Held<T> {
    fn free(&mut self, at: usize) {
        if !self.objects.is_empty() {
            let at = at % self.objects.len();
            let (serial, object) = self.objects.swap_remove(at);
            assert_eq!((self.check)(&object), serial, "nobody else wrote to it");
        }
    }
}

/// Reservations end before the things they borrow.
struct World<'c> {
    pool: &'c PagePool,
    reserve: ReserveId,
    small: &'c SlabCache<Small>,
    large: &'c SlabCache<Large>,
    reservations: Vec<Reservation<'c>>,
    smalls: Held<Small>,
    larges: Held<Large>,
    frames: Vec<Frame>,
    serial: u64,
    /// By how much the pool's number may lag behind a handle.
    lag: u32,
}

impl World<'_> {
    fn run(config: PoolConfig, ops: Vec<Op>) {
        let lag = if config.magazine == 0 { 0 } else { 33 };
        let pool = PagePool::new(config);
        let reserve = pool.add_reserve(ReserveId::ROOT, "work", 12);
        pool.connect(reserve).unwrap();
        let (small, large) = (SlabCache::new(&pool), SlabCache::new(&pool));
        let mut world = World {
            pool: &pool,
            reserve,
            small: &small,
            large: &large,
            reservations: Vec::new(),
            smalls: Held { objects: Vec::new(), check: |o: &Small| o[31] },
            larges: Held { objects: Vec::new(), check: |o: &Large| o[127] },
            frames: Vec::new(),
            serial: 0,
            lag,
        };
        for op in ops {
            world.step(op);
            world.check();
        }
        world.draw_all_at_the_worst_moment();
        drop(world);
        drop((small, large));
        pool.flush_magazine();
        assert_eq!(pool.free_frames(), pool.frames());
        assert_eq!(pool.reservation_stats().frames, 0);
        assert_eq!(pool.reserve_usage(ReserveId::ROOT), 0);
    }

    fn scope(&self, enter: bool) -> Option<EmergencyScope> {
        enter.then(|| EmergencyScope::enter(self.pool, self.reserve))
    }

    fn next(&mut self) -> u64 {
        self.serial += 1;
        self.serial
    }

    fn step(&mut self, op: Op) {
        let count = self.reservations.len().max(1);
        match op {
            Op::Reserve { pages, small, large, scope } => {
                let _scope = self.scope(scope);
                let spec = ReservationSpec::pages(pages)
                    .objects(self.small, small)
                    .objects(self.large, large);
                let (free, min) = (self.pool.free_frames(), self.pool.watermarks().min);
                match self.pool.reserve(spec) {
                    Ok(reservation) => self.reservations.push(reservation),
                    Err(_) => {
                        assert!(free < min + spec.frames());
                        assert!(self.pool.take_pressure(), "a failure asks for reclaim");
                    }
                }
            }
            Op::Page { at, scope } => {
                let _scope = self.scope(scope);
                if let Some(r) = self.reservations.get_mut(at % count) {
                    let left = r.pages_left();
                    let frame = r.try_page();
                    assert_eq!(frame.is_some(), left > 0);
                    self.frames.extend(frame);
                }
            }
            Op::Small { at, scope } => {
                let _scope = self.scope(scope);
                let serial = self.next();
                if let Some(r) = self.reservations.get_mut(at % count) {
                    let left = r.objects_left(self.small);
                    let object = r.try_object(self.small, [serial; 32]);
                    assert_eq!(object.is_ok(), left > 0);
                    self.smalls.objects.extend(object.ok().map(|o| (serial, o)));
                }
            }
            Op::Large { at, scope } => {
                let _scope = self.scope(scope);
                let serial = self.next();
                if let Some(r) = self.reservations.get_mut(at % count) {
                    let left = r.objects_left(self.large);
                    let object = r.try_object(self.large, [serial; 128]);
                    assert_eq!(object.is_ok(), left > 0);
                    self.larges.objects.extend(object.ok().map(|o| (serial, o)));
                }
            }
            Op::End(at) => {
                if !self.reservations.is_empty() {
                    drop(self.reservations.swap_remove(at % count));
                }
            }
            Op::Take { frames, gfp: bits, scope } => {
                let _scope = self.scope(scope);
                let gfp = gfp(bits);
                self.frames.extend((0..frames).map_while(|_| self.pool.alloc(gfp).ok()));
            }
            Op::Give(frames) => {
                let left = self.frames.len().saturating_sub(frames.into());
                self.frames.truncate(left);
            }
            Op::Object { scope } => {
                let _scope = self.scope(scope);
                let serial = self.next();
                let object = self.small.alloc(Gfp::KERNEL, [serial; 32]);
                self.smalls.objects.extend(object.ok().map(|o| (serial, o)));
            }
            Op::FreeSmall(at) => self.smalls.free(at),
            Op::FreeLarge(at) => self.larges.free(at),
        }
    }

    /// The pool keeps no less than the pages, and with exact counts no more than the worst case.
    fn check(&self) {
        let ordinary = || self.reservations.iter().filter(|r| r.charged_to().is_none());
        let reserved = self.pool.reservation_stats().frames;
        assert!(reserved >= ordinary().map(|r| r.pages_left()).sum::<u32>());
        let most = |r: &Reservation<'_>| {
            let spec = ReservationSpec::pages(r.pages_left())
                .objects(self.small, r.objects_left(self.small))
                .objects(self.large, r.objects_left(self.large));
            spec.frames()
        };
        let lag = self.lag * ordinary().count() as u32;
        assert!(reserved <= ordinary().map(most).sum::<u32>() + lag);
    }

    fn draw_all_at_the_worst_moment(&mut self) {
        while let Ok(frame) = self.pool.alloc(Gfp::ATOMIC) {
            self.frames.push(frame);
        }
        {
            let _scope = EmergencyScope::enter(self.pool, self.reserve);
            while let Ok(frame) = self.pool.alloc(Gfp::ATOMIC) {
                self.frames.push(frame);
            }
        }
        while let Ok(object) = self.small.alloc(Gfp::ATOMIC, [0; 32]) {
            self.smalls.objects.push((0, object));
        }
        while let Ok(object) = self.large.alloc(Gfp::ATOMIC, [0; 128]) {
            self.larges.objects.push((0, object));
        }
        let mut rest = std::mem::take(&mut self.reservations);
        // In turns, so that they share what there is.
        while !rest.is_empty() {
            for r in &mut rest {
                if r.pages_left() > 0 {
                    self.frames.push(r.page());
                }
                if r.objects_left(self.small) > 0 {
                    self.smalls.objects.push((0, r.object(self.small, [0; 32])));
                }
                if r.objects_left(self.large) > 0 {
                    self.larges.objects.push((0, r.object(self.large, [0; 128])));
                }
            }
            let done = |r: &Reservation<'_>| {
                r.pages_left() + r.objects_left(self.small) + r.objects_left(self.large) == 0
            };
            rest.retain(|r| !done(r));
        }
    }
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn what_is_reserved_can_be_drawn(ops in prop::collection::vec(op(), 1..200)) {
        World::run(config(), ops);
    }

    #[test]
    fn and_with_magazines(ops in prop::collection::vec(op(), 1..200), magazine in 1..64u32) {
        World::run(PoolConfig { magazine, frames: 200, ..config() }, ops);
    }
}

fn pool() -> PagePool {
    PagePool::new(config())
}

fn drain(pool: &PagePool) -> Vec<Frame> {
    std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect()
}

/// Canary: looking whether there is enough, and then trusting it, is what the promise is not.
#[test]
fn a_look_up_front_is_no_reservation() {
    let kept = |promise: bool| {
        let pool = pool();
        let mut reservation = promise.then(|| pool.reserve(ReservationSpec::pages(8)).unwrap());
        assert!(pool.free_frames() >= pool.watermarks().min + 8, "there is enough for eight");
        let _others = drain(&pool);
        (0..8).all(|_| match &mut reservation {
            Some(reservation) => reservation.try_page().is_some(),
            None => pool.alloc(Gfp::KERNEL).is_ok(),
        })
    };
    assert!(kept(true));
    assert!(!kept(false));
}

#[test]
fn a_reservation_inside_an_emergency_scope_is_charged_when_ordinary_memory_is_out() {
    let pool = pool();
    let out = pool.add_reserve(ReserveId::ROOT, "swap.out", 10);
    pool.connect(out).unwrap();
    let mut others = drain(&pool);
    assert!(pool.reserve(ReservationSpec::pages(4)).is_err(), "nobody is entitled");
    let mut reservation = {
        let _scope = EmergencyScope::enter(&pool, out);
        pool.reserve(ReservationSpec::pages(4)).unwrap()
    };
    assert_eq!(reservation.charged_to(), Some(out));
    assert_eq!((pool.reserve_usage(out), pool.reservation_stats().frames), (4, 0));
    // The rest of the reserve is used up; what was reserved is not.
    let rest: Vec<_> = std::iter::from_fn(|| pool.alloc_from(Gfp::KERNEL, out).ok()).collect();
    assert_eq!(rest.len(), 6);
    let page = reservation.page();
    assert_eq!((page.charged_to(), pool.reserve_usage(out)), (Some(out), 10));
    // Ordinary memory is back: then a draw is ordinary, and the charge is released.
    others.truncate(others.len() / 2);
    let other = reservation.page();
    assert_eq!((other.charged_to(), pool.reserve_usage(out)), (None, 9));
    drop(reservation);
    assert_eq!(pool.reserve_usage(out), 7);
    drop((page, rest));
    assert_eq!(pool.reserve_usage(out), 0);
}

#[test]
fn an_emergency_scope_inside_a_reservation_takes_nothing_of_it() {
    let pool = pool();
    let out = pool.add_reserve(ReserveId::ROOT, "swap.out", 10);
    pool.connect(out).unwrap();
    let mut reservation = pool.reserve(ReservationSpec::pages(8)).unwrap();
    let _others = drain(&pool);
    let _scope = EmergencyScope::enter(&pool, out);
    let emergency: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    assert_eq!(emergency.len(), 10, "its own reserve, to the last frame");
    let drawn: Vec<_> = (0..8).map(|_| reservation.page()).collect();
    assert!(drawn.iter().all(|page| page.charged_to().is_none()), "and these cost it nothing");
}

#[test]
fn a_nested_reservation_that_fails_or_succeeds_leaves_the_outer_one() {
    let pool = pool();
    let mut outer = pool.reserve(ReservationSpec::pages(8)).unwrap();
    {
        let mut inner = pool.reserve(ReservationSpec::pages(8)).unwrap();
        let _others = drain(&pool);
        assert!(pool.reserve(ReservationSpec::pages(1)).is_err());
        let _one = inner.page();
        let mut part = outer.split(3).unwrap();
        assert!(outer.split(6).is_none());
        let _three: Vec<_> = (0..3).map(|_| part.page()).collect();
        assert!(part.try_page().is_none(), "an inner scope cannot draw more than its part");
    }
    let _others = drain(&pool);
    assert_eq!(outer.pages_left(), 5);
    let _drawn: Vec<_> = (0..5).map(|_| outer.page()).collect();
}

#[test]
#[should_panic(expected = "no more often than its spec says")]
fn drawing_more_than_was_reserved_is_a_mistake_that_shows() {
    let pool = pool();
    let mut reservation = pool.reserve(ReservationSpec::pages(1)).unwrap();
    let _one = reservation.page();
    let _two = reservation.page();
}

/// A thousand blocks are read on the way, ten are changed: ten are reserved.
#[test]
fn reclaimable_memory_read_on_the_way_is_not_charged_to_it() {
    let pool = pool();
    let mut reservation = pool.reserve(ReservationSpec::pages(10)).unwrap();
    let mut changed = Vec::new();
    let mut read: Vec<Frame> = Vec::new();
    for block in 0..1_010 {
        if block % 101 == 0 {
            changed.push(reservation.page());
        } else {
            if let Err(_short) = pool.alloc(Gfp::KERNEL).map(|frame| read.push(frame)) {
                // What was read can be dropped at any time.
                read.truncate(read.len() / 2);
                read.push(pool.alloc(Gfp::KERNEL).unwrap());
            }
        }
    }
    assert_eq!((changed.len(), reservation.pages_left()), (10, 0));
}

#[test]
fn objects_need_exactly_the_pages_of_the_estimate() {
    let pool = pool();
    let cache = SlabCache::<Large>::new(&pool);
    let most = pool.free_frames() - pool.watermarks().min;
    let all = most * SlabCache::<Large>::PER_PAGE;
    assert!(pool.reserve(ReservationSpec::pages(0).objects(&cache, all + 1)).is_err());
    let mut reservation = pool.reserve(ReservationSpec::pages(0).objects(&cache, all)).unwrap();
    let objects: Vec<_> = (0..all).map(|_| reservation.object(&cache, [1; 128])).collect();
    assert_eq!(cache.usage().pages, SlabCache::<Large>::estimate_pages(all));
    assert_eq!((reservation.objects_left(&cache), pool.reservation_stats().frames), (0, 0));
    drop(objects);
    drop(reservation);
    assert_eq!(cache.usage().pages, 0);
}

#[test]
fn slots_of_a_page_that_was_drawn_go_to_nobody_else() {
    let pool = pool();
    let cache = SlabCache::<Small>::new(&pool);
    let per_page = SlabCache::<Small>::PER_PAGE;
    let spec = ReservationSpec::pages(0).objects(&cache, per_page);
    let mut reservation = pool.reserve(spec).unwrap();
    let _others = drain(&pool);
    let first = reservation.object(&cache, [0; 32]);
    assert!(cache.alloc(Gfp::ATOMIC, [0; 32]).is_err(), "the other slots are promised");
    let rest: Vec<_> = (1..per_page).map(|_| reservation.object(&cache, [0; 32])).collect();
    drop(first);
    drop(reservation);
    assert!(cache.alloc(Gfp::ATOMIC, [0; 32]).is_ok(), "now the page is one like others");
    drop(rest);
}

#[test]
fn what_can_never_be_had_is_told_at_once() {
    let pool = pool();
    let most = pool.frames() - pool.watermarks().min;
    let error = pool.reserve(ReservationSpec::pages(most + 1)).unwrap_err();
    assert_eq!(error, ReservationError::TooLarge { wanted: most + 1, most });
    let all = pool.reserve(ReservationSpec::pages(most)).unwrap();
    let error = pool.reserve(ReservationSpec::pages(1)).unwrap_err();
    assert!(matches!(error, ReservationError::Short { wanted: 1, .. }));
    let huge = ReservationSpec::pages(u32::MAX);
    assert!(pool.reserve(huge).is_err());
    drop(all);
}

/// A reservation keeps the pool alive as a frame does, and can be used on any thread.
#[test]
fn a_reservation_outlives_the_handle_of_its_pool() {
    let pool = pool();
    let mut reservation = pool.reserve(ReservationSpec::pages(2)).unwrap();
    let _others = drain(&pool);
    drop(pool);
    let page = std::thread::spawn(move || {
        let mut page = reservation.page();
        page.bytes_mut()[0] = 1;
        page
    });
    assert_eq!(page.join().unwrap().bytes()[0], 1);
}

/// Frames in the magazines of other threads count as taken.
#[test]
fn threads_draw_what_they_reserved_while_others_take_all_they_can() {
    let pool = PagePool::new(PoolConfig { magazine: 16, frames: 400, ..config() });
    let cache = SlabCache::<Small>::new(&pool);
    let start = std::sync::Barrier::new(4);
    let drawn = std::sync::atomic::AtomicU32::new(0);
    std::thread::scope(|s| {
        for thread in 0..2u32 {
            let (pool, cache, start, drawn) = (&pool, &cache, &start, &drawn);
            s.spawn(move || {
                start.wait();
                // Until some could be had: how the threads are scheduled must not decide.
                let mut rounds = 0..2_000u32;
                let none_yet = || drawn.load(std::sync::atomic::Ordering::Relaxed) == 0;
                while let Some(round) = rounds.next().or_else(|| none_yet().then_some(1)) {
                    let pages = (round * 7 + thread) % 24;
                    let spec = ReservationSpec::pages(pages).objects(cache, round % 40);
                    let Ok(mut reservation) = pool.reserve(spec) else { continue };
                    let objects: Vec<_> =
                        (0..round % 40).map(|_| reservation.object(cache, [0; 32])).collect();
                    let frames: Vec<_> = (0..pages).map(|_| reservation.page()).collect();
                    drawn.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    drop((reservation, objects, frames));
                }
                // A scope is over before its threads have ended.
                pool.flush_magazine();
            });
            s.spawn(move || {
                start.wait();
                let mut held = Vec::new();
                for round in 0..4_000 {
                    held.extend((0..round % 64).map_while(|_| pool.alloc(Gfp::ATOMIC).ok()));
                    if round % 8 == 0 {
                        held.clear();
                    }
                }
                drop(held);
                pool.flush_magazine();
            });
        }
    });
    assert!(drawn.into_inner() > 0, "some could be had");
    pool.flush_magazine();
    drop(cache);
    assert_eq!((pool.free_frames(), pool.reservation_stats().frames), (400, 0));
}
