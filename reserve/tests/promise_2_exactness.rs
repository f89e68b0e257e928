//! Promise 2, exactness: a node's usage is the sum of the live charges at and below it, and 0 when they
//! are dropped; a charge that exactly fills a limit succeeds; nothing is clamped.
//!
//! Method: random operations on a pool and its naive model, which sums the live charges anew; both
//! agree on every counter after every operation.

mod common;

use common::{cases, op};
use netswap_reserve::{Gfp, PagePool, ReserveError, ReserveId};
use netswap_reserve_model::{World, config};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn counters_are_sums_of_what_is_alive(ops in prop::collection::vec(op(), 1..300)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
            world.check();
        }
        world.finish();
    }

    #[test]
    fn a_limit_can_be_filled_exactly_and_not_by_one_more(own in 0..40u32, parts in 1..5u32) {
        let pool = PagePool::new(config());
        let node = pool.add_reserve(ReserveId::ROOT, "node", own);
        pool.connect(node).unwrap();
        let mut charges: Vec<_> =
            (0..parts).map(|_| pool.charge(node, own / parts).unwrap()).collect();
        charges.push(pool.charge(node, own - own / parts * parts).unwrap());
        prop_assert_eq!(pool.reserve_usage(node), own);
        let refused = matches!(pool.charge(node, 1), Err(ReserveError::AtLimit { .. }));
        prop_assert!(refused);
        prop_assert_eq!(pool.reserve_usage(ReserveId::ROOT), own);
        drop(charges);
        prop_assert_eq!(pool.reserve_usage(ReserveId::ROOT), 0);
        prop_assert_eq!(pool.reserve_peak(node), own);
    }
}

/// Canary: a charge that is lost is seen.
#[test]
#[should_panic(expected = "all frames are back")]
fn the_check_sees_a_lost_frame() {
    let world = World::new();
    std::mem::forget(world.pool.alloc(Gfp::KERNEL));
    world.finish();
}

/// Canary: a model that sums wrongly disagrees.
#[test]
#[should_panic(expected = "usage of node 0")]
fn the_check_sees_a_charge_that_is_not_counted() {
    let world = World::new();
    world.pool.resize(ReserveId::ROOT, 1).unwrap();
    let _charge = world.pool.charge(ReserveId::ROOT, 1).unwrap();
    world.check();
}
