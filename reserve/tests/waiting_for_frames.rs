//! Waiting for a change of the reserve tree, and for a reservation: it is all or nothing too; it is granted
//! as soon as the frames are there, in order of arrival; it ends with its deadline.
//!
//! Method: threads wait, the test frees frames. That a thread waits is seen at the counter of waits, which
//! moves when no wakeup can be missed any more; nothing sleeps to find out. The property holds a pool
//! full, lets some threads wait for random amounts and frees one frame after the other: each change that
//! was made is covered at that moment, and in the end all are made.

mod common;

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use common::cases;
use netswap_reserve::{
    Frame, Gfp, PagePool, ReservationError, ReservationSpec, ReserveError, ReserveId,
};
use netswap_reserve_model::config;
use proptest::prelude::*;

fn full() -> (PagePool, Vec<Frame>) {
    let pool = PagePool::new(config());
    let held = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    (pool, held)
}

/// Far enough that only a hang reaches it.
fn far() -> Instant {
    Instant::now() + Duration::from_secs(60)
}

fn until(done: impl Fn() -> bool) {
    while !done() {
        std::thread::yield_now();
    }
}

fn waits(pool: &PagePool) -> u64 {
    let tree: u64 = pool.reserve_info().iter().map(|i| i.waits).sum();
    tree + pool.reservation_stats().waits
}

#[test]
fn a_node_is_connected_when_its_frames_are_there() {
    let (pool, mut held) = full();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 20);
    let missing = 20 - pool.free_frames();
    pool.take_pressure();
    std::thread::scope(|s| {
        let waiter = s.spawn(|| pool.connect_until(net, far()));
        until(|| pool.reserve_waits(net) == 1);
        assert!(pool.take_pressure(), "reclaim is asked");
        for _ in 1..missing {
            held.pop();
            assert_eq!(pool.watermarks().floor, 0, "all or nothing");
        }
        held.pop();
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
    assert_eq!((pool.watermarks().floor, pool.free_frames()), (20, 20));
    assert!(pool.reserve_report().contains("waits"));
}

#[test]
fn a_limit_is_raised_when_its_frames_are_there() {
    let (pool, mut held) = full();
    std::thread::scope(|s| {
        let waiter = s.spawn(|| pool.resize_until(ReserveId::ROOT, 15, far()));
        until(|| pool.reserve_waits(ReserveId::ROOT) == 1);
        held.truncate(held.len() - 5);
        assert_eq!(waiter.join().unwrap(), Ok(()));
    });
    assert_eq!(pool.resize_until(ReserveId::ROOT, 3, far()), Ok(()), "lowering does not wait");
    let charge = pool.charge(ReserveId::ROOT, 3).unwrap();
    let refused = pool.resize_until(ReserveId::ROOT, 2, far());
    assert!(matches!(refused, Err(ReserveError::InUse { .. })), "nor does what never comes");
    drop(charge);
    let refused = pool.resize_until(ReserveId::ROOT, 97, far());
    assert!(matches!(refused, Err(ReserveError::CannotSecure { .. })), "more than all memory");
}

#[test]
fn a_deadline_ends_it_and_nothing_is_changed() {
    let (pool, held) = full();
    let soon = || Instant::now() + Duration::from_millis(5);
    let before = pool.reserve_info();
    let deadline = soon();
    let refused = pool.resize_until(ReserveId::ROOT, 50, deadline);
    assert!(Instant::now() >= deadline);
    assert!(matches!(refused, Err(ReserveError::CannotSecure { wanted: 50, .. })));
    let refused = pool.reserve_until(ReservationSpec::pages(5), soon()).unwrap_err();
    assert!(matches!(refused, ReservationError::Short { wanted: 5, .. }));
    let after = pool.reserve_info();
    assert_eq!((before[0].limit, before[0].own), (after[0].limit, after[0].own));
    assert_eq!(after[0].waits, 1);
    assert_eq!(pool.reservation_stats().frames, 0);
    drop(held);
    assert!(pool.reserve_until(ReservationSpec::pages(5), soon()).is_ok(), "nobody stands in line");
}

#[test]
fn reservations_are_granted_in_order_of_arrival() {
    let (pool, mut held) = full();
    let (done, order) = mpsc::channel();
    std::thread::scope(|s| {
        // The first wants the most, so that the others could all overtake it.
        for (place, pages) in [30, 5, 1].into_iter().enumerate() {
            let (pool, done) = (&pool, done.clone());
            s.spawn(move || {
                let reservation = pool.reserve_until(ReservationSpec::pages(pages), far());
                done.send(place).unwrap();
                std::mem::forget(reservation);
            });
            until(|| pool.reservation_stats().waits == place as u64 + 1);
        }
        held.truncate(held.len() - 29);
        assert!(order.try_recv().is_err());
        held.pop();
        assert_eq!(order.recv(), Ok(0));
        held.truncate(held.len() - 6);
        let mut rest = [order.recv().unwrap(), order.recv().unwrap()];
        rest.sort_unstable();
        assert_eq!(rest, [1, 2]);
    });
}

/// What is given back without a frame moving is memory for others too.
#[test]
fn a_reservation_that_ends_and_a_floor_that_falls_wake_those_who_wait() {
    let (pool, held) = full();
    drop(held);
    let most = pool.frames() - pool.watermarks().min;
    let all = pool.reserve(ReservationSpec::pages(most)).unwrap();
    std::thread::scope(|s| {
        let waiter = s.spawn(|| pool.reserve_until(ReservationSpec::pages(most), far()).is_ok());
        until(|| pool.reservation_stats().waits == 1);
        drop(all);
        assert!(waiter.join().unwrap());
    });
    let net = pool.add_reserve(ReserveId::ROOT, "net", most);
    pool.connect(net).unwrap();
    std::thread::scope(|s| {
        let waiter = s.spawn(|| pool.reserve_until(ReservationSpec::pages(9), far()));
        // It is more than the pool can have beside the reserve: that is told at once, not waited for.
        assert!(matches!(waiter.join().unwrap(), Err(ReservationError::TooLarge { .. })));
    });
    pool.resize(net, most - 9).unwrap();
    let charge = pool.charge(net, most - 9).unwrap();
    let _nine = pool.reserve(ReservationSpec::pages(9)).unwrap();
    std::thread::scope(|s| {
        let waiter = s.spawn(|| pool.reserve_until(ReservationSpec::pages(5), far()).is_ok());
        until(|| pool.reservation_stats().waits == 2);
        // It drains: the floor falls with the charge.
        pool.disconnect(net).unwrap();
        drop(charge);
        assert!(waiter.join().unwrap());
    });
}

proptest! {
    #![proptest_config(cases(48))]

    #[test]
    fn all_are_served_and_each_is_covered(
        wants in prop::collection::vec((any::<bool>(), 1..12u32), 1..5),
    ) {
        let (pool, mut held) = full();
        let served = AtomicU32::new(0);
        std::thread::scope(|s| {
            for (place, &(tree, n)) in wants.iter().enumerate() {
                let (pool, served) = (&pool, &served);
                let before = waits(pool);
                s.spawn(move || {
                    if tree {
                        let node = pool.add_reserve(ReserveId::ROOT, "node", n);
                        pool.connect_until(node, far()).unwrap();
                    } else {
                        let spec = ReservationSpec::pages(n);
                        std::mem::forget(pool.reserve_until(spec, far()).unwrap());
                    }
                    served.fetch_add(1, Ordering::Relaxed);
                });
                until(|| waits(pool) > before || served.load(Ordering::Relaxed) > place as u32);
            }
            while served.load(Ordering::Relaxed) < wants.len() as u32 {
                if held.pop().is_none() {
                    std::thread::yield_now();
                }
                let marks = pool.watermarks();
                assert!(marks.floor + marks.reserved <= pool.frames());
            }
        });
        let marks = pool.watermarks();
        let wanted = |tree| wants.iter().filter(|w| w.0 == tree).map(|w| w.1).sum::<u32>();
        prop_assert_eq!((marks.floor, marks.reserved), (wanted(true), wanted(false)));
        prop_assert!(pool.free_frames() >= marks.floor + marks.reserved);
    }
}
