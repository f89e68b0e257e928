//! Goal: with all protections on, a host under pressure completes over either store, every page is
//! what was written, every charge is released and every frame comes back; and the same seed is the
//! same run.
//! Method: a small scenario under flood, twice; another seed must differ.

mod common;

use netswap::scenario::Store;

#[test]
fn over_both_stores_and_every_page_is_verified() {
    let scenario = common::small();
    for row in common::must_complete_on_both(&scenario) {
        let pages = u64::from(scenario.workers() * scenario.pages_per_worker());
        assert!(row.pages_verified >= 2 * pages, "{} of {}", row.pages_verified, 2 * pages);
    }
}

#[test]
fn the_same_seed_is_the_same_run_and_another_is_not() {
    let mut scenario = common::small();
    scenario.host.ram = "4MiB".parse().unwrap();
    let first = common::must_complete(&scenario, Store::Nfs);
    let again = common::must_complete(&scenario, Store::Nfs);
    assert_eq!(first.trace_hash, again.trace_hash);
    scenario.seed = 1;
    let other = common::must_complete(&scenario, Store::Nfs);
    assert_ne!(first.trace_hash, other.trace_hash);
}

#[test]
fn with_later_rounds_that_write_again() {
    let mut scenario = common::small();
    scenario.host.dirty_percent = 50;
    common::must_complete_on_both(&scenario);
}

#[test]
fn without_a_flood_and_without_readahead() {
    let mut scenario = common::small();
    scenario.flood.percent = 0;
    scenario.host.readahead_pages = 0;
    common::must_complete_on_both(&scenario);
}
