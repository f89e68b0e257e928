//! Goal: a write that the server carries out a second time, after a newer one, harms no page; without the
//! quarantine of its slot it does, and the checksum finds it.
//! Method: a server that puts writes aside, so that the client repeats them, and carries the old ones out a
//! little later over whatever is there by then. Every page is written again and again, so slots are reused.

mod common;

use netswap::report::Outcome;
use netswap::scenario::{Ablation, NfsWrite, Scenario, Store};
use netswap::units::{Nanos, Share};
use netswap::world::{RunSpec, run};

fn scenario() -> Scenario {
    let mut scenario = common::small();
    scenario.host.dirty_percent = 100;
    scenario.host.rounds = 4;
    scenario.server.held = Share(10_000);
    scenario.server.held_for = Nanos(5_100_000_000);
    scenario
}

#[test]
fn slots_of_writes_that_were_repeated_are_not_used_again() {
    for nfs_write in [NfsWrite::FileSync, NfsWrite::Unstable] {
        let mut scenario = scenario();
        scenario.host.nfs_write = nfs_write;
        let row = common::must_complete(&scenario, Store::Nfs);
        assert!(row.faults["server held"] > 3, "{:?}", row.faults);
    }
}

#[test]
fn without_the_quarantine_the_checksum_finds_the_damage() {
    let spec = RunSpec {
        ablate: vec![Ablation::Quarantine],
        ..RunSpec::protected(scenario(), Store::Nfs)
    };
    let row = run(&spec, &mut |_| {}).unwrap();
    assert_eq!(row.outcome, Outcome::Failed);
    let reason = row.reason.unwrap();
    assert!(reason.contains("damaged"), "{reason}");
}
