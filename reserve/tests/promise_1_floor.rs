//! Promise 1, the floor: no sequence of allocations that are not entitled takes free frames below it.
//!
//! Method: random operations on a pool and its naive model; after every allocation that is not charged
//! free frames are at the floor or above. And however it went, what is promised is there: entitled
//! callers can take every frame that their reserves still hold.

mod common;

use common::{cases, op};
use netswap_reserve::{Gfp, PagePool, PoolConfig, ReserveId};
use netswap_reserve_model::{Op, Outcome, Who, World, config};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn no_unentitled_allocation_breaks_the_floor(ops in prop::collection::vec(op(), 1..300)) {
        let mut world = World::new();
        for op in ops {
            let outcome = world.step(op);
            if let Outcome::Allocated { charged: false, .. } = outcome {
                prop_assert!(world.pool.free_frames() >= world.pool.watermarks().floor);
            }
            let promised = world.model.free() + world.model.charged_frames();
            let kept = world.model.floor() + world.model.reserved();
            prop_assert!(promised >= kept, "each promised frame is free or in use");
        }
        world.finish();
    }

    #[test]
    fn what_is_promised_can_be_had(ops in prop::collection::vec(op(), 1..200)) {
        let mut world = World::new();
        for op in ops {
            world.step(op);
        }
        // Charges without frames hold promises that no frame of theirs can use up.
        for i in 0..world.ids.len() {
            loop {
                let room = world.model.nodes[i].connected
                    && (0..world.ids.len())
                        .filter(|&n| world.model.is_within(i, n))
                        .all(|n| world.model.usage(n) < world.model.limit(n));
                let outcome = world.step(Op::Alloc(0, Who::Call(i)));
                if room {
                    prop_assert_ne!(&outcome, &Outcome::Failed, "node {} has room", i);
                }
                if outcome == Outcome::Failed {
                    break;
                }
            }
        }
        world.finish();
    }
}

/// Canary: without the floor the same check fails.
#[test]
fn the_check_sees_a_broken_floor() {
    let lowest = |reserve: bool| {
        let pool = PagePool::new(PoolConfig { reserve, ..config() });
        let node = pool.add_reserve(ReserveId::ROOT, "node", 20);
        pool.connect(node).unwrap();
        let _all: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
        pool.lowest_free() >= pool.reserve_limit(ReserveId::ROOT)
    };
    assert!(lowest(true));
    assert!(!lowest(false));
}
