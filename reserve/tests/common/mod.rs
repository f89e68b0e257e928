//! What drives the property tests: how many cases, and random operations for a
//! [`World`](netswap_reserve_model::World), which is a pool beside its naive model.

#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate and uses its own part")]

use netswap_reserve::PAGE_SIZE;
use netswap_reserve_model::{Op, Who};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5eed),
        ..ProptestConfig::default()
    }
}

pub fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        2 => Just(Who::Nobody),
        1 => (0..8usize).prop_map(Who::Scope),
        1 => (0..8usize).prop_map(Who::Call),
    ]
}

/// Operations, allocations more often than the rest so that memory does run out.
pub fn op() -> impl Strategy<Value = Op> {
    let i = 0..1_000usize;
    prop_oneof![
        16 => (0..16u8, who()).prop_map(|(gfp, who)| Op::Alloc(gfp, who)),
        3 => (0..16u8, i.clone(), 1..48u8).prop_map(|(gfp, r, n)| Op::Burst(gfp, r, n)),
        6 => i.clone().prop_map(Op::Free),
        1 => (i.clone(), 1..48u8).prop_map(|(at, n)| Op::FreeBurst(at, n)),
        2 => i.clone().prop_map(Op::Park),
        2 => i.clone().prop_map(Op::Unpark),
        2 => i.clone().prop_map(Op::Share),
        2 => i.clone().prop_map(Op::Clone),
        2 => i.clone().prop_map(Op::Unshare),
        2 => (i.clone(), 0..16u8).prop_map(|(at, gfp)| Op::Exchange(at, gfp)),
        1 => (i.clone(), 0..12u32).prop_map(|(at, n)| Op::Add(at, n)),
        3 => i.clone().prop_map(Op::Connect),
        2 => i.clone().prop_map(Op::Disconnect),
        2 => (i.clone(), 0..40u32).prop_map(|(at, n)| Op::Resize(at, n)),
        4 => (i.clone(), 0..8u32).prop_map(|(at, n)| Op::Charge(at, n)),
        2 => (i.clone(), 0..5 * PAGE_SIZE).prop_map(|(at, n)| Op::ChargeBytes(at, n)),
        4 => (i.clone(), 0..12u32).prop_map(|(at, n)| Op::ChargeObjects(at, n)),
        6 => i.clone().prop_map(Op::Uncharge),
        4 => (0..24u32, who()).prop_map(|(n, who)| Op::Reserve(n, who)),
        8 => (i.clone(), prop::option::of(0..8usize)).prop_map(|(at, scope)| Op::Draw(at, scope)),
        1 => (i.clone(), 0..12u32).prop_map(|(at, n)| Op::Split(at, n)),
        3 => i.clone().prop_map(Op::EndReservation),
        1 => (0..20u32).prop_map(Op::SetAside),
        1 => i.prop_map(Op::FreeRun),
    ]
}
