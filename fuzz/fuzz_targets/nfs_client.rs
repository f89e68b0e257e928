//! Any bytes, and what they do to a swap client: see the module for what must hold.

#![no_main]

#[path = "../../nfs-swap/tests/fuzz/mod.rs"]
mod nfs;

use libfuzzer_sys::fuzz_target;

fuzz_target!(|bytes: &[u8]| {
    nfs::client(bytes);
});
