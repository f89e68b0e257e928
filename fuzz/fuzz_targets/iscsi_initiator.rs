//! Any bytes, and what they do to the initiator that swaps: see the module for what must hold.

#![no_main]

#[path = "../../iscsi-swap/tests/fuzz/mod.rs"]
mod iscsi;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    iscsi::initiator(bytes);
});
