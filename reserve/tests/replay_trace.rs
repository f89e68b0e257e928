//! Goal: a recorded load goes the same way again, against a fresh pool and against the naive model, and
//! whatever goes another way is noticed.
//!
//! Method: random operations on a world are recorded and replayed, reservations and all kinds of charges
//! among them. Then faults are planted: into the model, into single outcomes of a trace, and into the order
//! of its operations.

mod common;

use std::time::{Duration, Instant};

use common::{cases, op};
use netswap_reserve::trace::{
    Changed, NotReserved, Refusal, Taken, TraceHeader, TraceOp, TraceReader, Who,
};
use netswap_reserve::{
    EmergencyScope, Gfp, PagePool, PoolConfig, ReservationSpec, ReserveId, SlabCache,
};
use netswap_reserve_model::replay::By;
use netswap_reserve_model::{Model, Planted, Replay, ReplayError, Replayed, World, config, replay};
use proptest::prelude::*;

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn what_was_recorded_goes_the_same_way_again(
        ops in prop::collection::vec(op(), 1..300),
        reserve in prop::bool::weighted(0.8),
        scope in prop::bool::weighted(0.8),
    ) {
        let mut world = World::with(PoolConfig { reserve, scope, ..config() });
        let recording = world.pool.record(1 << 16).unwrap();
        for op in ops {
            world.step(op);
        }
        let (lowest, tree) = (world.pool.lowest_free(), world.pool.reserve_report());
        world.finish();
        let mut trace = Vec::new();
        recording.finish(&mut trace).unwrap();
        let alone = replay(&trace[..], |_| None).unwrap();
        let with_model = replay(&trace[..], |header| Some(Model::new(header))).unwrap();
        prop_assert_eq!(alone, with_model);
        prop_assert_eq!(alone.lowest_free, lowest, "{}", tree);
    }
}

/// A load with everything in it but reservations: all kinds of callers, refusals, a draining node, bursts, runs, charges,
/// guesses, an exchange.
fn load(config: PoolConfig) -> Vec<u8> {
    let is_ablated = !(config.reserve && config.scope);
    let secured = config.reserve;
    let pool = PagePool::new(config);
    let mut recording = pool.record(0).unwrap();
    let mut trace = Vec::new();
    let run = pool.set_aside(6).unwrap();
    let out = pool.add_reserve(ReserveId::ROOT, "out", 6);
    let net = pool.add_reserve(ReserveId::ROOT, "net", 0);
    let rx = pool.add_reserve(net, "net.rx", 8);
    pool.connect(out).unwrap();
    pool.connect(net).unwrap();
    assert_eq!(pool.resize(out, 900).is_err(), secured, "frames that are not there");
    pool.resize(out, 7).unwrap();
    let mut guesses: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::SPECULATIVE).ok()).collect();
    recording.drain(&mut trace).unwrap();
    let ordinary: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    let atomic: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    let scope = EmergencyScope::enter(&pool, out);
    let mut urgent: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    pool.alloc(Gfp::NOMEMALLOC).unwrap_err();
    drop(scope);
    let charge = pool.charge(rx, 2);
    let mut burst = Vec::new();
    let all = pool.alloc_burst_from(Gfp::ATOMIC, rx, 9, |frame| burst.push(frame));
    assert!(all.is_err(), "more than its reserve");
    pool.alloc(Gfp::MEMALLOC).map(|frame| urgent.push(frame)).unwrap_or_default();
    pool.disconnect(net).unwrap();
    pool.charge(rx, 1).unwrap_err();
    drop(charge);
    let early = urgent.last_mut().is_none_or(|frame| frame.exchange(Gfp::KERNEL));
    assert!(!early || is_ablated, "there is no ordinary memory yet");
    guesses.truncate(3);
    drop(run);
    assert!(urgent.last_mut().is_none_or(|frame| frame.exchange(Gfp::KERNEL)));
    pool.free_burst(burst);
    drop((ordinary, atomic, urgent, guesses));
    recording.finish(&mut trace).unwrap();
    trace
}

/// Promises, of ordinary memory, of a reserve, refused; split, drawn from above and below the watermark, as
/// pages and as objects, and given back; objects charged to nodes.
fn promises(config: PoolConfig) -> Vec<u8> {
    let (secured, scoped) = (config.reserve, config.scope);
    let pool = PagePool::new(config);
    pool.count_objects(ReserveId::ROOT, 8);
    let recording = pool.record(1 << 16).unwrap();
    let node = pool.add_reserve(ReserveId::ROOT, "node", 12);
    pool.count_objects(node, 10);
    pool.connect(node).unwrap();
    let cache = SlabCache::<[u64; 128]>::new(&pool);

    let few = pool.charge_objects(node, 9).unwrap();
    let many = pool.charge_objects(node, 11).unwrap();
    pool.charge_objects(node, 200).unwrap_err();
    let bytes = pool.charge_bytes(node, 5000).unwrap();
    let error = pool.reserve(ReservationSpec::pages(5000)).unwrap_err();
    assert!(matches!(NotReserved::from(error), NotReserved::TooLarge { .. }));
    let mut whole = pool.reserve(ReservationSpec::pages(9).objects(&cache, 10)).unwrap();
    let mut part = whole.split(4).unwrap();
    let mut ordinary: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    let error = pool.reserve(ReservationSpec::pages(1)).unwrap_err();
    assert!(matches!(NotReserved::from(error), NotReserved::Short { .. }));
    let scope = EmergencyScope::enter(&pool, node);
    let urgent = pool.reserve(ReservationSpec::pages(3));
    drop(scope);
    assert_eq!(urgent.is_ok(), scoped);
    let named = pool.reserve_from(ReservationSpec::pages(3), node);
    assert_eq!(named.is_ok(), secured);
    let mut drawn = vec![whole.page(), part.page(), part.page()];
    let mut objects: Vec<_> = (0..8).map(|i| whole.object(&cache, [i; 128])).collect();
    drop(part);
    for mut reservation in [urgent, named].into_iter().flatten() {
        ordinary.extend(std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()));
        drawn.push(reservation.page());
        // Again there is ordinary memory, and what is drawn now is charged to nothing.
        ordinary.truncate(ordinary.len() - 14);
        drawn.push(reservation.page());
    }
    assert_eq!(drawn.iter().any(|frame| frame.charged_to().is_some()), secured);
    pool.disconnect(node).unwrap();
    drop((few, bytes));
    pool.charge_objects(ReserveId::ROOT, 1).unwrap_err();
    objects.truncate(3);
    drop((whole, many, ordinary, drawn, objects));
    drop(cache);
    let mut trace = Vec::new();
    recording.finish(&mut trace).unwrap();
    trace
}

/// The pool of the tests, and the same with each protection off, and both.
fn ablations() -> [PoolConfig; 4] {
    [(true, true), (true, false), (false, true), (false, false)]
        .map(|(reserve, scope)| PoolConfig { reserve, scope, ..config() })
}

#[test]
fn a_load_with_everything_in_it_replays() {
    for config in ablations() {
        let trace = load(config);
        let replayed = replay(&trace[..], |header| Some(Model::new(header))).unwrap();
        assert_eq!(replayed.frames + 6, replayed.freed, "all came back");
        assert!(replayed.refused > 3);
    }
}

#[test]
fn reservations_and_charges_of_objects_replay() {
    for config in ablations() {
        let trace = promises(config);
        let alone = replay(&trace[..], |_| None).unwrap();
        assert_eq!(alone.frames, alone.freed, "all came back");
        assert_eq!(replay(&trace[..], |header| Some(Model::new(header))).unwrap(), alone);
    }
}

#[test]
fn a_fault_planted_into_the_model_is_found() {
    let with = |trace: &[u8], fault| -> Result<Replayed, ReplayError> {
        replay(trace, |header: TraceHeader| Some(Model::new(header).planting(fault)))
    };
    let (frames, promises) = (load(config()), promises(config()));
    for fault in Planted::ALL {
        let trace = match fault {
            Planted::ForgetReserved | Planted::RoundObjectsEach => &promises,
            _ => &frames,
        };
        let error = with(trace, fault).expect_err("a wrong model differs");
        let found = matches!(
            error,
            ReplayError::Differs { by: By::Model, .. } | ReplayError::Counters { .. }
        );
        assert!(found, "{fault:?}: {error}");
    }
}

/// The world has to find them too: it is what the other property tests and the fuzz target rest on.
#[test]
fn a_fault_planted_into_the_model_is_found_by_random_operations() {
    use proptest::strategy::{Strategy, ValueTree};
    use proptest::test_runner::TestRunner;
    use std::panic::{AssertUnwindSafe, catch_unwind};

    // Nothing planted, nothing found.
    for fault in Planted::ALL.map(Some).into_iter().chain([None]) {
        let mut runner = TestRunner::new(cases(1));
        let is_found = (0..40).any(|_| {
            let ops = prop::collection::vec(op(), 300).new_tree(&mut runner).unwrap().current();
            let run = || {
                let mut world = World::new();
                world.model.planted = fault;
                for op in ops {
                    world.step(op);
                    world.check();
                }
            };
            catch_unwind(AssertUnwindSafe(run)).is_err()
        });
        assert_eq!(is_found, fault.is_some(), "{fault:?}");
    }
}

/// Threads that wait for frames, and one for a change of the tree: what they are given is in the trace, where
/// it was given.
#[test]
fn what_was_waited_for_replays() {
    let pool = PagePool::new(config());
    let recording = pool.record(1 << 16).unwrap();
    let urgent = pool.add_reserve(ReserveId::ROOT, "urgent", 2);
    pool.connect(urgent).unwrap();
    let grown = pool.add_reserve(ReserveId::ROOT, "grown", 4);
    let mut ordinary: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    let charged: Vec<_> =
        std::iter::from_fn(|| pool.alloc_from(Gfp::ATOMIC, urgent).ok()).collect();
    let until = Instant::now() + Duration::from_secs(60);
    let waited = std::thread::scope(|scope| {
        let ordinary_one = || pool.alloc_wait(Gfp::KERNEL, until).unwrap();
        let urgent_one = || pool.alloc_wait_from(Gfp::KERNEL, urgent, until).unwrap();
        let frames =
            [scope.spawn(ordinary_one), scope.spawn(urgent_one), scope.spawn(ordinary_one)];
        while pool.stats().waiting < 3 {
            std::thread::yield_now();
        }
        // Below the floor that it wants: it waits, or comes when there is enough already.
        let change = scope.spawn(|| pool.connect_until(grown, until));
        drop(charged);
        while !ordinary.is_empty() {
            pool.free_burst(ordinary.split_off(ordinary.len() - 3.min(ordinary.len())));
        }
        change.join().unwrap().unwrap();
        frames.map(|thread| thread.join().unwrap())
    });
    assert_eq!(pool.stats().handed_over, 3);
    drop(waited);
    let lowest = pool.lowest_free();
    let mut trace = Vec::new();
    recording.finish(&mut trace).unwrap();
    let replayed = replay(&trace[..], |header| Some(Model::new(header))).unwrap();
    assert_eq!((replayed.frames, replayed.lowest_free), (replayed.freed, lowest));
}

fn replay_ops(ops: &[TraceOp]) -> Result<u64, ReplayError> {
    let mut replay = Replay::new(PagePool::new(config()));
    for &op in ops {
        replay.step(op)?;
    }
    Ok(replay.finish()?.ops)
}

/// Each outcome of the loads, turned into another, is noticed at that very operation.
#[test]
fn an_outcome_that_was_changed_is_found() {
    assert!(changed_outcomes(&load(config())) > 15);
    assert!(changed_outcomes(&promises(config())) > 15);
}

/// Changes the outcomes of a trace, one at a time; returns how many.
fn changed_outcomes(trace: &[u8]) -> u32 {
    let ops: Vec<TraceOp> = TraceReader::new(trace).unwrap().map(Result::unwrap).collect();
    assert_eq!(replay_ops(&ops).unwrap(), ops.len() as u64);
    let mut planted = 0;
    for at in 0..ops.len() {
        let mut changed = ops.clone();
        match &mut changed[at] {
            TraceOp::Alloc { outcome: Ok(Taken { charged, .. }), who, .. }
                if who.node().is_some() =>
            {
                *charged = !*charged;
            }
            TraceOp::Alloc { outcome: Err(Refusal::AtWatermark { free: n, .. }), .. }
            | TraceOp::SetAside {
                outcome: Err(Refusal::AtWatermark { watermark: n, .. }), ..
            }
            | TraceOp::Check { free: n, .. } => *n += 1,
            TraceOp::Alloc { outcome: outcome @ Err(_), .. } => {
                *outcome = Ok(Taken { frame: 95, charged: true })
            }
            TraceOp::Exchange { done, .. }
            | TraceOp::Charge { done, .. }
            | TraceOp::ChargeObjects { done, .. } => *done = !*done,
            TraceOp::Draw { from: Some(_), charged, .. } => *charged = !*charged,
            TraceOp::Reserve {
                outcome:
                    Err(NotReserved::Short { watermark: n, .. } | NotReserved::TooLarge { most: n }),
                ..
            } => *n += 1,
            TraceOp::Reserve { who, outcome: Ok(from), .. } if who.node().is_some() => {
                *from = from.xor(who.node());
            }
            TraceOp::Connect { changed, .. } => *changed = Changed::InUse,
            TraceOp::Disconnect { changed, .. } => *changed = Changed::CannotSecure,
            TraceOp::Resize { changed: changed @ Changed::CannotSecure, .. } => {
                *changed = Changed::Done
            }
            _ => continue,
        }
        planted += 1;
        let error = replay_ops(&changed).expect_err("a changed outcome differs");
        let is_there =
            matches!(error, ReplayError::Differs { op, by: By::Pool, .. } if op == at as u64 + 1);
        assert!(is_there, "{at}: {:?}: {error}", changed[at]);
    }
    planted
}

#[test]
fn operations_that_cannot_be_are_refused() {
    let alloc = |frame, more| TraceOp::Alloc {
        gfp: Gfp::KERNEL,
        who: Who::Nobody,
        more,
        outcome: Ok(Taken { frame, charged: false }),
    };
    let free = |frame, more| TraceOp::Free { frame, more };
    let reserve = TraceOp::Reserve { who: Who::Nobody, frames: 2, outcome: Ok(None) };
    let draw = |from, frame| TraceOp::Draw { from, frame, charged: false };
    let count = |per_frame| TraceOp::CountObjects { node: 0, per_frame };
    let charge = TraceOp::ChargeObjects { node: 0, objects: 1, done: true };
    let cases: [&[TraceOp]; 16] = [
        &[free(0, false)],
        &[alloc(0, false), free(0, false), free(0, false)],
        &[alloc(0, false), alloc(0, false)],
        &[alloc(0, false), alloc(1, true)],
        &[alloc(0, true)],
        &[alloc(0, false), free(0, true)],
        &[TraceOp::SetAside { frames: 2, outcome: Ok(4) }, free(4, false)],
        &[TraceOp::Uncharge { node: 0, frames: 1 }],
        &[alloc(0, false), TraceOp::Exchange { frame: 0, gfp: Gfp::KERNEL, done: true }],
        &[draw(None, 0)],
        &[reserve, draw(None, 0), draw(None, 1), draw(None, 2)],
        &[reserve, alloc(0, false), draw(None, 0)],
        &[reserve, TraceOp::Unreserve { from: None, frames: 3 }],
        &[charge],
        &[TraceOp::Resize { node: 0, own: 1, changed: Changed::Done }, count(1), charge, count(2)],
        &[count(1), TraceOp::UnchargeObjects { node: 0, objects: 1 }],
    ];
    for ops in cases {
        let error = replay_ops(ops).expect_err("it cannot be");
        assert!(matches!(error, ReplayError::Impossible { .. }), "{ops:?}: {error}");
    }
    let run = TraceOp::SetAside { frames: 2, outcome: Ok(4) };
    assert_eq!(replay_ops(&[run, free(4, false), free(5, true)]).unwrap(), 3);
}
