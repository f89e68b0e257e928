//! Goal: a bad server loses no page and damages none; one that only ever answers garbage ends in a
//! typed error that names area, slot and server.
//! Method: one fault at a time over both stores; the fault must have happened.

mod common;

use common::survives;
use netswap::report::Outcome;
use netswap::scenario::{NfsWrite, OnFailure, Store};
use netswap::units::{Nanos, Share};
use netswap::world::{RunSpec, run};

#[test]
fn restarts_that_forget_connections() {
    survives("server restart", |s| {
        s.server.restart_at = vec![Nanos(30_000_000), Nanos(60_000_000)];
    });
}

#[test]
fn unstable_writes_over_a_server_that_restarts_and_forgets_them() {
    let mut scenario = common::small();
    scenario.host.nfs_write = NfsWrite::Unstable;
    scenario.server.forget = Share(20_000);
    scenario.server.restart_at = [30, 60, 61, 90].map(|ms| Nanos(ms * 1_000_000)).to_vec();
    let row = common::must_complete(&scenario, Store::Nfs);
    assert!(
        row.faults["server forgot"] > 5 && row.faults["server restart"] == 4,
        "{:?}",
        row.faults
    );
    assert_eq!(common::must_complete(&scenario, Store::Nfs).trace_hash, row.trace_hash);
}

#[test]
fn late_answers() {
    survives("server late", |s| {
        s.server.late = Share(5_000);
        s.server.late_by = Nanos(8_000_000_000);
    });
}

#[test]
fn answers_that_come_twice() {
    survives("server twice", |s| s.server.twice = Share(20_000));
}

#[test]
fn garbage_now_and_then() {
    survives("server garbage", |s| s.server.garbage = Share(5_000));
}

#[test]
fn nothing_but_garbage_is_a_typed_error() {
    let mut scenario = common::small();
    scenario.server.garbage = Share(1_000_000);
    scenario.host.on_failure = OnFailure::Poison;
    for store in Store::ALL {
        let row = run(&RunSpec::protected(scenario.clone(), store), &mut |_| {}).unwrap();
        assert_eq!(row.outcome, Outcome::Failed);
        let reason = row.reason.unwrap();
        let server = match store {
            Store::Nfs => "nfs://",
            Store::Iscsi => "iscsi://",
        };
        for part in ["garbage", "area area0 slot", server] {
            assert!(reason.contains(part), "no {part:?} in {reason:?}");
        }
    }
}
