//! What the end-to-end tests share.
#![allow(dead_code)]

pub(crate) mod command;
pub(crate) mod daemon;
pub(crate) mod ganesha;
pub(crate) mod iscsi_wire;
pub(crate) mod istgt;
pub(crate) mod nfs;
pub(crate) mod nfs_wire;
pub(crate) mod pager;
pub(crate) mod pages;
pub(crate) mod proof;
pub(crate) mod proxy;
pub(crate) mod qemu;
pub(crate) mod record_log;
pub(crate) mod skip;
pub(crate) mod tgt;
pub(crate) mod tshark;

use netswap::report::{Outcome, Row};
use netswap::scenario::{Scenario, Store};
use netswap::world::{RunSpec, run};

/// A host small enough for a test in a debug build, under real pressure.
pub(crate) fn small() -> Scenario {
    let mut scenario = Scenario::default();
    scenario.host.ram = "8MiB".parse().unwrap();
    scenario.host.overcommit = 2.0;
    scenario.host.rounds = 1;
    scenario.flood.reader_pages = 16;
    scenario.flood.flows = 24;
    scenario.flood.liveness_bytes = "64KiB".parse().unwrap();
    scenario
}

/// Runs it and insists that it completes with every page right.
pub(crate) fn must_complete(scenario: &Scenario, store: Store) -> Row {
    let row = run(&RunSpec::protected(scenario.clone(), store), &mut |_| {}).unwrap();
    assert_eq!(
        row.outcome,
        Outcome::Completed,
        "{} seed {}: {:?}\n{}",
        store.name(),
        scenario.seed,
        row.reason,
        row.explanation.as_deref().unwrap_or(""),
    );
    assert!(row.pages_verified > 0 && row.page_outs > 0 && row.page_ins > 0);
    assert_eq!(row.liveness_bytes, scenario.flood.liveness_bytes.0);
    row
}

/// Runs it over both stores.
pub(crate) fn must_complete_on_both(scenario: &Scenario) -> [Row; 2] {
    Store::ALL.map(|store| must_complete(scenario, store))
}

/// A small host completes over both stores with the fault that `change` asks for, and the fault happened.
pub(crate) fn survives(fault: &'static str, change: impl FnOnce(&mut Scenario)) {
    let mut scenario = small();
    change(&mut scenario);
    for row in must_complete_on_both(&scenario) {
        assert!(row.faults[fault] > 0, "{fault} never happened: {:?}", row.faults);
    }
}
