//! Promise 5, all or nothing: raising a limit secures the frames first, waking reclaim, or fails and
//! changes nothing.
//!
//! Method: random sequences that are mostly changes of the tree, on a pool that is nearly full. A change
//! that succeeds is covered by frames; one that fails has changed nothing and asked for reclaim (which
//! the world checks).

mod common;

use common::{cases, op};
use netswap_reserve::{Gfp, PagePool, ReserveError, ReserveId};
use netswap_reserve_model::{Op, Outcome, World, config};
use proptest::prelude::*;

fn tree_op() -> impl Strategy<Value = Op> {
    let i = 0..1_000usize;
    prop_oneof![
        2 => (i.clone(), 0..40u32).prop_map(|(at, n)| Op::Add(at, n)),
        4 => i.clone().prop_map(Op::Connect),
        2 => i.clone().prop_map(Op::Disconnect),
        4 => (i.clone(), 0..60u32).prop_map(|(at, n)| Op::Resize(at, n)),
        8 => op(),
    ]
}

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn a_promise_is_covered_or_not_made(ops in prop::collection::vec(tree_op(), 1..300)) {
        let mut world = World::new();
        for op in ops {
            let before = world.shown();
            let floor = world.pool.watermarks().floor;
            world.pool.take_pressure();
            let outcome = world.step(op);
            world.check();
            if matches!(op, Op::Connect(_) | Op::Resize(..)) {
                if outcome == Outcome::Failed {
                    prop_assert_eq!(before, world.shown());
                } else if world.pool.watermarks().floor > floor {
                    let covered = world.model.free() + world.model.charged_frames();
                    let floor = world.pool.watermarks().floor;
                    prop_assert!(covered >= floor + world.model.reserved());
                }
            }
        }
        world.finish();
    }
}

#[test]
fn reclaim_is_asked_and_then_it_can_be_connected() {
    let pool = PagePool::new(config());
    let mut held: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    pool.take_pressure();
    let node = pool.add_reserve(ReserveId::ROOT, "net", 30);
    let free = pool.free_frames();
    assert_eq!(
        pool.connect(node),
        Err(ReserveError::CannotSecure { name: "net".into(), wanted: 30, free })
    );
    assert!(pool.take_pressure());
    assert_eq!(pool.watermarks().floor, 0);
    held.truncate(held.len() - (30 - free) as usize);
    assert_eq!(pool.connect(node), Ok(()), "exactly enough is enough");
    assert_eq!(pool.watermarks().floor, 30);
}

#[test]
fn a_node_that_is_disconnected_in_use_drains() {
    let pool = PagePool::new(config());
    let node = pool.add_reserve(ReserveId::ROOT, "net", 10);
    pool.connect(node).unwrap();
    let mut charges: Vec<_> = (0..6).map(|_| pool.charge(node, 1).unwrap()).collect();
    pool.disconnect(node).unwrap();
    for left in (0..6).rev() {
        assert_eq!(pool.watermarks().floor, left + 1);
        assert!(pool.charge(node, 1).is_err());
        charges.pop();
        assert_eq!(pool.watermarks().floor, left);
    }
    pool.connect(node).unwrap();
    assert_eq!(pool.watermarks().floor, 10);
}
