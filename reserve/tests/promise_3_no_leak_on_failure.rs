//! Promise 3: what fails leaves nothing behind. An allocation that fails after charging has released its
//! charge; a charge that a node high up refuses is at none of those below it.
//!
//! Method: random operations; whenever one fails, everything that the pool shows of frames, limits and
//! usage is as it was before.

mod common;

use common::{cases, op};
use netswap_reserve::{AllocError, Gfp, PagePool, ReserveId};
use netswap_reserve_model::{FRAMES, Outcome, World, config};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(256))]

    #[test]
    fn failing_changes_nothing(ops in prop::collection::vec(op(), 1..300)) {
        let mut world = World::new();
        for op in ops {
            let before = world.shown();
            if world.step(op) == Outcome::Failed {
                prop_assert_eq!(before, world.shown());
            }
        }
        world.finish();
    }
}

/// The last frame and the last charge go together: whoever comes after leaves no trace.
#[test]
fn a_charge_for_a_frame_that_is_not_there_is_not_kept() {
    let pool = PagePool::new(netswap_reserve::PoolConfig { headroom: 0, ..config() });
    let node = pool.add_reserve(ReserveId::ROOT, "node", FRAMES);
    pool.connect(node).unwrap();
    let frames: Vec<_> = std::iter::from_fn(|| pool.alloc_from(Gfp::KERNEL, node).ok()).collect();
    assert_eq!(frames.len() as u32, FRAMES);
    for _ in 0..3 {
        assert_eq!(pool.alloc_from(Gfp::KERNEL, node).unwrap_err(), AllocError::Exhausted);
        assert_eq!(pool.reserve_usage(node), FRAMES);
    }
    drop(frames);
    assert_eq!(pool.reserve_usage(node), 0);
}
