//! Slots of one area that became free and are to be discarded: a bounded table of runs, and the discard that is with
//! the store.
//!
//! Invariants: no two runs have a slot in common, and no two that are in the table touch each other.

use arrayvec::ArrayVec;
use netswap_reserve::Time;

use crate::backend::{DiscardLimits, RequestId, Run, RunVec, Slot};

/// Runs that are remembered. Picked by eye: four discards of the most runs. What does not fit is free at once.
const RUNS_MAX: usize = 64;

/// What an area has to discard.
#[derive(Debug, Default)]
pub(crate) struct Gathered {
    runs: ArrayVec<Run, RUNS_MAX>,
    slots: u32,
    /// When the first of them was seen.
    pub(crate) since: Option<Time>,
    /// The discard that is with the store.
    pub(crate) sent: Option<(RequestId, RunVec)>,
    /// Discards so far, part of the request id.
    pub(crate) count: u16,
    /// Discards that failed since the last that did not.
    pub(crate) failures: u8,
    /// The store takes none: what became free is free.
    pub(crate) is_off: bool,
}

impl Gathered {
    /// Slots that wait.
    pub(crate) fn slots(&self) -> u32 {
        self.slots
    }

    /// Whether no run more fits.
    pub(crate) fn is_full(&self) -> bool {
        self.runs.is_full()
    }

    /// Adds a slot; false if there is no place for it.
    pub(crate) fn add(&mut self, slot: Slot) -> bool {
        let before = self.runs.iter().position(|run| run.first.0 + run.slots == slot.0);
        let after = self.runs.iter().position(|run| run.first.0 == slot.0 + 1);
        match (before, after) {
            (Some(before), Some(after)) => {
                self.runs[before].slots += 1 + self.runs[after].slots;
                self.runs.swap_remove(after);
            }
            (Some(before), None) => self.runs[before].slots += 1,
            (None, Some(after)) => {
                self.runs[after].first = slot;
                self.runs[after].slots += 1;
            }
            (None, None) if self.is_full() => return false,
            (None, None) => self.runs.push(Run { first: slot, slots: 1 }),
        }
        self.slots += 1;
        true
    }

    /// Takes out as many as one discard may have, the runs that were begun last first.
    pub(crate) fn take(&mut self, limits: DiscardLimits) -> RunVec {
        let mut taken = RunVec::new();
        let mut room = limits.slots;
        while taken.len() < limits.runs.min(taken.capacity())
            && room > 0
            && let Some(mut run) = self.runs.pop()
        {
            let rest = run.slots.saturating_sub(room);
            if rest > 0 {
                run.slots = room;
                let first = Slot(run.first.0 + room);
                self.runs.push(Run { first, slots: rest });
            }
            room -= run.slots;
            self.slots -= run.slots;
            taken.push(run);
        }
        taken
    }

    /// Takes everything out that waits.
    pub(crate) fn drain(&mut self) -> ArrayVec<Run, RUNS_MAX> {
        self.slots = 0;
        self.since = None;
        std::mem::take(&mut self.runs)
    }
}

/// Each slot of a run.
pub(crate) fn slots_of(run: Run) -> impl Iterator<Item = Slot> {
    (run.first.0..run.first.0 + run.slots).map(Slot)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::BTreeSet;

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(300) })]
        /// Against a set of slots: nothing is lost, nothing comes twice, bounds are kept.
        #[test]
        fn it_agrees_with_a_set(
            steps in proptest::collection::vec((0..300u32, any::<bool>(), 1..20u32, 1..20usize), 1..400)
        ) {
            let (mut gathered, mut set) = (Gathered::default(), BTreeSet::new());
            for (slot, takes, slots, runs) in steps {
                if !takes {
                    if set.insert(slot) && !gathered.add(Slot(slot)) {
                        prop_assert!(gathered.is_full());
                        set.remove(&slot);
                    }
                } else if slot % 8 == 0 {
                    let taken = gathered.take(DiscardLimits { runs, slots });
                    prop_assert!(taken.len() <= runs);
                    prop_assert!(taken.iter().map(|run| run.slots).sum::<u32>() <= slots);
                    for slot in taken.into_iter().flat_map(slots_of) {
                        prop_assert!(set.remove(&slot.0));
                    }
                }
                prop_assert_eq!(gathered.slots() as usize, set.len());
            }
            for slot in gathered.drain().into_iter().flat_map(slots_of) {
                prop_assert!(set.remove(&slot.0));
            }
            prop_assert!(set.is_empty());
        }
    }
}
