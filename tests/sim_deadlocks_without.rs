//! Goal: each protection is needed. Without it the load of the headline test ends in a cycle through
//! memory, and the cycle found in the wait queues names the protection that is missing.
//! Method: the headline scenario, one protection off at a time, over both stores. These are the
//! canaries of the whole project: if one of them completes, the protected rows prove nothing.

use netswap::report::Outcome;
use netswap::scenario::{Ablation, Scenario, Store};
use netswap::world::{RunSpec, run};

fn deadlocks_without(ablation: Ablation) {
    for store in Store::ALL {
        let spec =
            RunSpec { ablate: vec![ablation], ..RunSpec::protected(Scenario::default(), store) };
        let row = run(&spec, &mut |_| {}).unwrap();
        let explanation = row.explanation.unwrap_or_default();
        assert_eq!(row.outcome, Outcome::Deadlock, "{}: {:?}", store.name(), row.reason);
        let named = format!("--ablate {}", ablation.name());
        assert!(explanation.contains(&named), "no {named} in:\n{explanation}");
        assert!(explanation.contains("closes the cycle"), "{explanation}");
    }
}

#[test]
fn the_reserve() {
    deadlocks_without(Ablation::Reserve);
}

#[test]
fn the_tag() {
    deadlocks_without(Ablation::Tag);
}

#[test]
fn dropping() {
    deadlocks_without(Ablation::Drop);
}

#[test]
fn the_emergency_scope() {
    deadlocks_without(Ablation::Scope);
}
