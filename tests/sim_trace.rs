//! Goal: the memory of a real program is paged: every page it touches is right, text pages are
//! dropped and read back without ever being written, and a file that is no trace is refused.
//! Method: the committed trace of a real program on a host too small for it, alone and twice at once,
//! under flood, over both stores.

mod common;

use std::path::PathBuf;

use netswap::report::Outcome;
use netswap::scenario::{Scenario, Store};
use netswap::world::{RunError, RunSpec, run};

/// Page accesses of the trace after folding, as `tests/data/README.md` states them.
const PAGE_ACCESSES: u64 = 521_048;

fn trace() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/data/perl-sort.lackey.zst")
}

fn spec(ram: &str, copies: usize, store: Store) -> RunSpec {
    let mut scenario = Scenario::default();
    scenario.host.ram = ram.parse().unwrap();
    scenario.flood.liveness_bytes = "64KiB".parse().unwrap();
    scenario.flood.flows = 8;
    RunSpec { traces: vec![trace(); copies], ..RunSpec::protected(scenario, store) }
}

#[test]
fn a_real_program_pages_over_both_stores() {
    for store in Store::ALL {
        let row = run(&spec("2MiB", 1, store), &mut |_| {}).unwrap();
        assert_eq!(row.outcome, Outcome::Completed, "{:?}", row.reason);
        assert!(row.pages_verified >= PAGE_ACCESSES, "{}", row.pages_verified);
        // 299 of its pages are text: they are read, but never written.
        assert!(row.page_ins > 299 && row.page_outs > 0);
        assert_eq!(row.malformed_lines, 0);
    }
}

#[test]
fn the_same_program_twice_is_two_tasks() {
    let row = run(&spec("3MiB", 2, Store::Nfs), &mut |_| {}).unwrap();
    assert_eq!(row.outcome, Outcome::Completed, "{:?}", row.reason);
    assert!(row.pages_verified >= 2 * PAGE_ACCESSES, "{}", row.pages_verified);
}

#[test]
fn a_file_that_is_no_trace_is_refused_before_anything_runs() {
    let mut spec = spec("2MiB", 0, Store::Nfs);
    spec.traces = vec![PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("Cargo.toml")];
    let error = run(&spec, &mut |_| {}).unwrap_err();
    assert!(matches!(error, RunError::Trace { .. }), "{error}");
}
