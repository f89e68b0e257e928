//! Any bytes, as operations on a pool, against the naive model: both answer the same after each.

#![no_main]

use libfuzzer_sys::fuzz_target;
use netswap_reserve_model::{Planted, fuzz};

fuzz_target!(|bytes: &[u8]| {
    fuzz::run(bytes, cfg!(feature = "planted").then_some(Planted::RefuseExactFill));
});
