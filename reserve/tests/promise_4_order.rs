//! Promise 4, order: an entitled caller first tries an ordinary allocation, then charges, then takes
//! from the floor; freed memory is back before its charge is released.
//!
//! Method: before each entitled allocation of a random sequence, one that is not entitled is tried: it
//! succeeds exactly if the entitled one is not charged. The other half with threads: where free frames
//! and reserve are the same number, a charge that was released before its frame is back would let
//! another thread be admitted to a frame that is not there.

mod common;

use common::{cases, op};
use netswap_reserve::{AllocError, Gfp, PagePool, PoolConfig, ReserveId};
use netswap_reserve_model::{Op, Outcome, Who, World, gfp};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn ordinary_memory_first(ops in prop::collection::vec(op(), 1..300)) {
        let mut world = World::new();
        for op in ops {
            let ordinary = match op {
                Op::Alloc(bits, Who::Scope(_) | Who::Call(_)) => {
                    Some(world.pool.alloc(gfp(bits) | Gfp::NOMEMALLOC).is_ok())
                }
                _ => None,
            };
            world.pool.take_pressure();
            let outcome = world.step(op);
            if let (Some(ordinary), Outcome::Allocated { charged, .. }) = (ordinary, &outcome) {
                prop_assert_eq!(ordinary, !charged);
            }
            if ordinary == Some(true) {
                prop_assert_ne!(outcome, Outcome::Failed);
            }
        }
        world.finish();
    }
}

#[test]
fn a_frame_is_back_before_its_charge_is_released() {
    const RESERVE: u32 = 3;
    let pool =
        PagePool::new(PoolConfig { headroom: 0, low_gap: 0, magazine: 0, ..PoolConfig::new(16) });
    let node = pool.add_reserve(ReserveId::ROOT, "node", RESERVE);
    pool.connect(node).unwrap();
    let _rest: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    assert_eq!(pool.free_frames(), RESERVE);
    std::thread::scope(|s| {
        for _ in 0..4 {
            s.spawn(|| {
                for _ in 0..50_000 {
                    match pool.alloc_from(Gfp::KERNEL, node) {
                        Ok(frame) => drop(frame),
                        Err(AllocError::ReserveUsedUp { .. }) => {}
                        // All frames are out and all charges with them: that is in order too.
                        Err(AllocError::Exhausted) => {}
                        Err(other) => panic!("{other}"),
                    }
                }
            });
        }
        s.spawn(|| {
            // An observer: the report is one instant. Whatever is charged is not free, and the rest is.
            for _ in 0..20_000 {
                let usage = pool.reserve_usage(node);
                assert!(usage <= RESERVE);
            }
        });
    });
    assert_eq!((pool.free_frames(), pool.reserve_usage(node)), (RESERVE, 0));
}
