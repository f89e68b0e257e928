//! Goal: metadata stays small: 32 bytes a frame and 16 bytes a slot at most, all included.
//! Method: the sums of what each crate says it keeps. Each crate holds its own figure against its
//! tables.

use netswap::{reserve, swap};

#[test]
fn a_frame_costs_at_most_32_bytes() {
    let (pool, pager) = (reserve::META_BYTES_PER_FRAME, swap::FRAME_BYTES);
    let all = pool + pager;
    assert!(all <= 32, "{pool} + {pager}");
}

#[test]
fn a_slot_costs_at_most_16_bytes() {
    let slot = swap::SLOT_BYTES;
    assert!(slot <= 16, "{slot}");
}
