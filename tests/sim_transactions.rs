//! Goal: memory that must not fail is had by reserving it, and not by trying again. Tasks run transactions that
//! keep the pages they have until they end. Where those of all need more than there is, reserving completes,
//! and looping (`GFP_NOFAIL`) ends in a cycle that the waiting tasks and the holders of frames show.
//! Method: `scenarios/transactions.toml` over both stores, reserving and looping. Canary: looping where
//! there is memory for all completes, so it is not the looping itself that is told as a deadlock.

use std::path::Path;

use netswap::report::{Outcome, Row};
use netswap::scenario::{Ablation, Scenario, Store};
use netswap::world::{RunError, RunSpec, run};

fn scenario() -> Scenario {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/transactions.toml");
    Scenario::read(&path).unwrap()
}

fn run_without(scenario: &Scenario, store: Store, ablate: &[Ablation]) -> Row {
    let spec = RunSpec { ablate: ablate.to_vec(), ..RunSpec::protected(scenario.clone(), store) };
    run(&spec, &mut |_| {}).unwrap()
}

/// Transactions of all tasks, from beginning to end.
fn transactions(scenario: &Scenario) -> u64 {
    let accesses = scenario.pages_per_worker() * (1 + scenario.host.rounds);
    u64::from(scenario.workers() * (accesses / scenario.host.transaction_every))
}

fn must_complete(scenario: &Scenario, store: Store, ablate: &[Ablation]) -> Row {
    let row = run_without(scenario, store, ablate);
    assert_eq!(
        row.outcome,
        Outcome::Completed,
        "{} seed {}: {:?} {:?}",
        store.name(),
        scenario.seed,
        row.reason,
        row.explanation
    );
    assert_eq!(row.transactions, transactions(scenario));
    let in_transactions = row.transactions * u64::from(scenario.host.transaction_pages);
    assert!(row.pages_verified > in_transactions, "all of those, and those of the tasks");
    assert!(row.page_outs > 0 && row.page_ins > 0, "there was pressure");
    row
}

#[test]
fn with_reservations_every_transaction_ends() {
    for store in Store::ALL {
        let row = must_complete(&scenario(), store, &[]);
        assert!(row.exercise.is_full(), "{:?}", row.exercise.missing());
        assert_eq!(must_complete(&scenario(), store, &[]).trace_hash, row.trace_hash);
        for seed in 1..4 {
            must_complete(&Scenario { seed, ..scenario() }, store, &[]);
        }
    }
}

#[test]
fn looping_deadlocks_and_the_cycle_says_who_holds_what() {
    for store in Store::ALL {
        for seed in 0..4 {
            let row =
                run_without(&Scenario { seed, ..scenario() }, store, &[Ablation::Reservation]);
            let told = row.explanation.unwrap_or_default();
            assert_eq!(row.outcome, Outcome::Deadlock, "{}: {:?}", store.name(), row.reason);
            for part in [
                "tries again for a page",
                "reclaim lacks the frames of 64 transactions",
                "of 64 pages",
                "closes the cycle",
                "allowed by: --ablate reservation\n",
            ] {
                assert!(told.contains(part), "no {part} in:\n{told}");
            }
            assert!(row.transactions < transactions(&scenario()) / 4, "{}", row.transactions);
        }
    }
}

#[test]
fn it_is_the_transactions_alone_that_deadlock() {
    let mut scenario = scenario();
    scenario.flood.percent = 0;
    must_complete(&scenario, Store::Nfs, &[]);
    let row = run_without(&scenario, Store::Nfs, &[Ablation::Reservation]);
    assert_eq!(row.outcome, Outcome::Deadlock, "{:?}", row.reason);
}

#[test]
fn looping_completes_where_there_is_memory_for_all() {
    let mut scenario = scenario();
    scenario.host.transaction_pages = 16;
    for store in Store::ALL {
        must_complete(&scenario, store, &[Ablation::Reservation]);
    }
}

#[test]
fn the_other_protections_are_missed_as_ever() {
    for ablation in Ablation::ALL.into_iter().filter(|a| scenario().has_use_for(*a)) {
        let row = run_without(&scenario(), Store::Nfs, &[ablation]);
        let told = row.explanation.unwrap_or_default();
        assert_eq!(row.outcome, Outcome::Deadlock, "{ablation:?}: {:?}", row.reason);
        assert!(told.contains(&format!("--ablate {}\n", ablation.name())), "{told}");
    }
}

#[test]
fn what_cannot_be_meant_is_refused() {
    let plain = RunSpec {
        ablate: vec![Ablation::Reservation],
        ..RunSpec::protected(Scenario::default(), Store::Nfs)
    };
    let error = run(&plain, &mut |_| {}).unwrap_err();
    assert!(matches!(error, RunError::NothingToAblate { .. }), "{error}");
    let mut scenario = scenario();
    scenario.host.transaction_pages = 129;
    let error = scenario.check_ranges().unwrap_err().to_string();
    assert_eq!(error, "transaction-pages is 129, must be 0 to 128");
}
