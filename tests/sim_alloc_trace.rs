//! Goal: what the simulation does to its page pool can be recorded and done again without it: against the
//! pool alone and against the naive model, with every outcome the same. Recording changes no run.
//!
//! Method: small hosts over both stores, protected and with each protection off, are recorded, twice, and
//! replayed. The committed traces (`tests/data`) are replayed too; they are what the fuzz target starts from.

mod common;

use std::fs::File;
use std::path::{Path, PathBuf};

use netswap::report::Outcome;
use netswap::scenario::{Ablation, Scenario, Store};
use netswap::world::{RunError, RunSpec, run};
use netswap_reserve_model::{Model, Planted, ReplayError, Replayed, fuzz, replay};

fn data(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data").join(name)
}

fn small() -> Scenario {
    Scenario::read(&data("alloc-small.toml")).unwrap()
}

/// Runs, and gives the hash of the run and its trace.
fn record(name: &str, scenario: Scenario, store: Store, ablate: &[Ablation]) -> (String, Vec<u8>) {
    let path = std::env::temp_dir().join(format!("netswap-{}-{name}", std::process::id()));
    let spec = RunSpec {
        ablate: ablate.to_vec(),
        alloc_trace: Some(path.clone()),
        ..RunSpec::protected(scenario, store)
    };
    let row = run(&spec, &mut |_| {}).unwrap();
    let trace = std::fs::read(&path).unwrap();
    std::fs::remove_file(path).unwrap();
    (row.trace_hash, trace)
}

#[test]
fn a_protected_run_replays_against_pool_and_model() {
    for store in Store::ALL {
        let plain = run(&RunSpec::protected(small(), store), &mut |_| {}).unwrap();
        assert_eq!(plain.outcome, Outcome::Completed, "{:?}", plain.reason);
        let name = store.name();
        let (hash, trace) = record(name, small(), store, &[]);
        assert_eq!(hash, plain.trace_hash, "recording changes nothing");
        assert_eq!(record(name, small(), store, &[]).1, trace, "same seed, same bytes");

        let alone = replay(&trace[..], |_| None).unwrap();
        assert_eq!(replay(&trace[..], |header| Some(Model::new(header))).unwrap(), alone);
        assert_eq!(alone.frames, alone.freed, "the host gave everything back");
        assert!(alone.charged > 1000 && alone.refused > 1000, "{alone:?}: memory was short");

        let packed = record(&format!("{name}.zst"), small(), store, &[]).1;
        assert!(packed.len() * 2 < trace.len());
        assert_eq!(zstd::decode_all(&packed[..]).unwrap(), trace);
    }
}

#[test]
fn a_run_without_a_protection_replays_too() {
    // Such a run may go on for long: a short one of each kind is enough.
    let scenario = Scenario { seed: 3, ..small() };
    for ablation in [Ablation::Reserve, Ablation::Drop] {
        let (_, trace) = record(ablation.name(), scenario.clone(), Store::Nfs, &[ablation]);
        let replayed = replay(&trace[..], |header| Some(Model::new(header))).unwrap();
        assert_eq!(replayed.charged == 0, ablation == Ablation::Reserve, "{replayed:?}");
    }
}

#[test]
fn the_committed_traces_replay() {
    for (name, ops, frames, charged, refused) in [
        ("alloc-nfs.tr.zst", 26_761, 11_977, 1_850, 2_774),
        ("alloc-iscsi.tr.zst", 27_260, 12_289, 1_639, 2_648),
    ] {
        let open = || zstd::Decoder::new(File::open(data(name)).unwrap()).unwrap();
        let replayed = replay(open(), |header| Some(Model::new(header))).unwrap();
        let Replayed { lowest_free, .. } = replayed;
        assert_eq!(
            replayed,
            Replayed { ops, frames, charged, refused, freed: frames, lowest_free }
        );

        // Canary: a model that is wrong in one thing does not agree.
        let wrong = |header| Some(Model::new(header).planting(Planted::AtomicStopsAtMin));
        let error = replay(open(), wrong).expect_err("a fault is planted");
        assert!(matches!(error, ReplayError::Differs { .. }), "{error}");

        // As the fuzz target runs them.
        for seed in fuzz::seeds(|| Ok(open()), 400, 10).unwrap() {
            fuzz::run(&seed, None);
        }
    }
}

#[test]
fn a_trace_that_cannot_be_written_is_said_before_anything_runs() {
    let alloc_trace = Some(PathBuf::from("/nonexistent/trace"));
    let spec = RunSpec { alloc_trace, ..RunSpec::protected(small(), Store::Nfs) };
    let error = run(&spec, &mut |_| {}).unwrap_err();
    assert!(matches!(error, RunError::AllocTrace { .. }), "{error}");
}
