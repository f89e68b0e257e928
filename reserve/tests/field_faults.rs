//! Faults that were found in the reserve patches of the kernel, or after them: each must stay away.
//!
//! Method: the situation of each fault, in its plainest form, as far as it touches allocation. Those that
//! do not: ablation flags that are ignored (9) are the command's, short reads (10) are the pager's.

use netswap_reserve::{
    AllocError, EmergencyScope, Frame, Gfp, PagePool, PoolConfig, ReservationSpec, ReserveError,
    ReserveId,
};

fn pool() -> PagePool {
    PagePool::new(PoolConfig { headroom: 0, low_gap: 0, magazine: 0, ..PoolConfig::new(64) })
}

fn drain(pool: &PagePool) -> Vec<Frame> {
    std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect()
}

/// A charge of `size` that failed was taken back by 1 instead of by `size`.
#[test]
fn fault_1_a_failed_charge_of_many_leaves_nothing() {
    let pool = pool();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 0);
    let rx = pool.add_reserve(net, "net.rx", 10);
    let tx = pool.add_reserve(net, "net.tx", 10);
    pool.connect(net).unwrap();
    // The node itself has room for what the one above it refuses, where something is charged directly.
    let _direct = pool.charge(net, 13).unwrap();
    for size in [8, 9, 10] {
        assert!(matches!(pool.charge(rx, size), Err(ReserveError::AtLimit { .. })));
        assert_eq!((pool.reserve_usage(rx), pool.reserve_usage(tx)), (0, 0));
        assert_eq!(pool.reserve_usage(net), 13);
    }
    assert!(pool.charge(rx, 7).is_ok());
}

/// The emergency flag was set in the saved copy only: not active during the connect, and left behind
/// after it.
#[test]
fn fault_2_a_scope_is_active_inside_and_gone_after() {
    let pool = pool();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 2);
    pool.connect(net).unwrap();
    let _rest = drain(&pool);
    let connect = || pool.alloc(Gfp::KERNEL).map(|frame| frame.charged_to());
    {
        let _scope = EmergencyScope::enter(&pool, net);
        assert_eq!(connect(), Ok(Some(net)));
        let other_work = EmergencyScope::save();
        assert!(connect().is_err());
        other_work.restore();
        assert_eq!(connect(), Ok(Some(net)));
    }
    assert!(connect().is_err());
}

/// `usage + charge < limit` refused a charge that exactly fills the limit.
#[test]
fn fault_3_an_exact_fill_succeeds() {
    let pool = pool();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 8);
    pool.connect(net).unwrap();
    assert!(pool.charge(net, 8).is_ok());
    let _rest = drain(&pool);
    let frames: Vec<_> = (0..8).map(|_| pool.alloc_from(Gfp::KERNEL, net).unwrap()).collect();
    assert_eq!(pool.reserve_usage(net), 8);
    assert!(pool.alloc_from(Gfp::KERNEL, net).is_err());
    drop(frames);
}

/// Usage below zero was clamped to 0, which hid a double uncharge. Here one cannot be written: a charge
/// ends with its one owner, and a frame that is taken out of a table twice is there once.
///
/// (That a count below zero stops the run is a unit test beside the tree, which alone can try.)
#[test]
fn fault_4_nothing_is_uncharged_twice() {
    let pool = pool();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 8);
    pool.connect(net).unwrap();
    let _rest = drain(&pool);
    let other = pool.alloc_from(Gfp::KERNEL, net).unwrap();
    let id = pool.alloc_from(Gfp::KERNEL, net).unwrap().park();
    drop(pool.unpark(id));
    drop(pool.unpark(id));
    assert_eq!(pool.reserve_usage(net), 1);
    let page = other.share();
    let copy = page.clone();
    drop(page);
    assert_eq!(pool.reserve_usage(net), 1);
    drop(copy);
    assert_eq!(pool.reserve_usage(net), 0);
}

/// An emergency allocation that failed kept its charge.
#[test]
fn fault_5_a_failed_emergency_allocation_is_not_charged() {
    let pool = pool();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 4);
    let rx = pool.add_reserve(net, "net.rx", 60);
    pool.connect(net).unwrap();
    let frames: Vec<_> = std::iter::from_fn(|| pool.alloc_from(Gfp::KERNEL, rx).ok()).collect();
    let (usage, free) = (pool.reserve_usage(rx), pool.free_frames());
    for _ in 0..5 {
        let refused = pool.alloc_from(Gfp::KERNEL, rx).unwrap_err();
        assert_eq!(refused, AllocError::ReserveUsedUp { reserve: rx });
        assert_eq!((pool.reserve_usage(rx), pool.free_frames()), (usage, free));
    }
    drop(frames);
    assert_eq!(pool.reserve_usage(ReserveId::ROOT), 0);
}

/// A reconnect that replaced the socket leaked the count of the tag, and a reserve that dips when the old
/// holder lets go before the new one has taken hold fails just then. Here the new socket's share is
/// connected, or charged, before the old one's ends, and both are one each whatever the order.
#[test]
fn fault_6_a_holder_that_is_replaced_leaves_nothing_and_the_floor_does_not_dip() {
    let pool = pool();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 4);
    pool.connect(net).unwrap();
    let sockets = [0, 1].map(|_| pool.add_reserve(net, "net.tx", 8));
    pool.connect(sockets[0]).unwrap();
    for round in 1..10 {
        let (new, old) = (sockets[round % 2], sockets[(round + 1) % 2]);
        let in_flight = pool.charge(old, 3).unwrap();
        pool.connect(new).unwrap();
        assert_eq!(pool.watermarks().floor, 4 + 8 + 8);
        pool.disconnect(old).unwrap();
        assert_eq!(pool.watermarks().floor, 4 + 8 + 3, "what is in flight stays promised");
        drop(in_flight);
        assert_eq!(pool.watermarks().floor, 4 + 8);
    }
    pool.disconnect(net).unwrap();
    assert_eq!((pool.watermarks().floor, pool.reserve_usage(ReserveId::ROOT)), (0, 0));
}

/// What recovers could not start under pressure, as starting it took memory. What it takes is promised up
/// front: then it starts with nothing free, and what it did not need is back when it ends.
#[test]
fn fault_7_what_recovers_can_start_with_nothing_free_and_leaves_nothing() {
    let pool = pool();
    let mut start = pool.reserve(ReservationSpec::pages(3)).unwrap();
    let _rest = drain(&pool);
    assert!(pool.alloc(Gfp::KERNEL).is_err());
    let state: Vec<_> = (0..2).map(|_| start.page()).collect();
    drop((state, start));
    assert_eq!(pool.reservation_stats().frames, 0);
    assert_eq!(drain(&pool).len(), 3);
}

/// What was in flight was not bounded. A reserve is a bound: the write that would be one too many is
/// refused, counted and told by name, and goes on when one of those before it is done.
#[test]
fn fault_8_what_is_in_flight_is_bounded_and_counted() {
    let pool = pool();
    let out = pool.add_reserve(ReserveId::ROOT, "swap.out", 4);
    pool.connect(out).unwrap();
    let mut in_flight: Vec<_> = (0..4).map(|_| pool.charge(out, 1).unwrap()).collect();
    let refused = pool.charge(out, 1).unwrap_err();
    assert_eq!(refused, ReserveError::AtLimit { name: "swap.out".into(), usage: 4, limit: 4 });
    assert_eq!((pool.reserve_failures(out), pool.reserve_peak(out)), (1, 4));
    in_flight.pop();
    assert!(pool.charge(out, 1).is_ok());
}

/// A descriptor that was freed too late blocked the only thread that could free it. What allocates under
/// the pool's lock would do the same: nothing is called under it, so the pool can be used from inside
/// everything that it calls.
#[test]
fn fault_11_the_pool_can_be_used_from_inside_what_it_calls() {
    let pool = pool();
    let net = pool.add_reserve(ReserveId::ROOT, "net", 8);
    pool.connect(net).unwrap();
    let _rest = drain(&pool);
    let mut frames = Vec::new();
    let burst = pool.alloc_burst_from(Gfp::KERNEL, net, 4, |frame| {
        frames.push(frame);
        frames.push(pool.alloc_from(Gfp::KERNEL, net).unwrap());
    });
    assert_eq!((burst, frames.len()), (Ok(()), 8));
    // Freed one by one while others are handed over: an iterator that allocates.
    pool.free_burst(std::iter::from_fn(|| {
        drop(frames.pop()?);
        pool.alloc_from(Gfp::KERNEL, net).ok()
    }));
    assert_eq!(pool.reserve_usage(net), 0);
}
