//! Faults that were found in the reserve patches of the kernel, or after them: each must stay away.
//!
//! Method: the situation of each fault, in its plainest form.

use netswap_reserve::{
    AllocError, EmergencyScope, Frame, Gfp, PagePool, PoolConfig, ReserveError, ReserveId,
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
