//! Goal: a recorded load goes the same way again, against a fresh pool and against the naive model, and
//! whatever goes another way is noticed.
//!
//! Method: random operations on a world are recorded and replayed. Then faults are planted: into the
//! model, into single outcomes of a trace, and into the order of its operations.

mod traced;

use std::time::{Duration, Instant};

use netswap_reserve::trace::{Changed, Refusal, Taken, TraceOp, TraceReader, Who};
use netswap_reserve::{EmergencyScope, Gfp, PagePool, PoolConfig, ReserveId};
use netswap_reserve_model::replay::By;
use netswap_reserve_model::{Model, Planted, Replay, ReplayError, replay};
use proptest::prelude::*;
use traced::{World, cases, config, op};

proptest! {
    #![proptest_config(cases(128))]

    #[test]
    fn what_was_recorded_goes_the_same_way_again(ops in prop::collection::vec(op(), 1..300)) {
        let mut world = World::new();
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

/// A load with everything in it: all kinds of callers, refusals, a draining node, bursts, runs, charges,
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

#[test]
fn a_load_with_everything_in_it_replays() {
    let off = |reserve, scope| PoolConfig { reserve, scope, ..config() };
    for config in [config(), off(true, false), off(false, true), off(false, false)] {
        let trace = load(config);
        let replayed = replay(&trace[..], |header| Some(Model::new(header))).unwrap();
        assert_eq!(replayed.frames + 6, replayed.freed, "all came back");
        assert!(replayed.refused > 3);
    }
}

#[test]
fn a_fault_planted_into_the_model_is_found() {
    let trace = load(config());
    for fault in [
        Planted::RefuseExactFill,
        Planted::AtomicStopsAtMin,
        Planted::GuessStopsAtMin,
        Planted::ForgetDraining,
    ] {
        let result = replay(&trace[..], |header| Some(Model::new(header).planting(fault)));
        let error = result.expect_err("a wrong model differs");
        let found = matches!(
            error,
            ReplayError::Differs { by: By::Model, .. } | ReplayError::Counters { .. }
        );
        assert!(found, "{fault:?}: {error}");
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

/// Each outcome of the load, turned into another, is noticed at that very operation.
#[test]
fn an_outcome_that_was_changed_is_found() {
    let trace = load(config());
    let ops: Vec<TraceOp> = TraceReader::new(&trace[..]).unwrap().map(Result::unwrap).collect();
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
            TraceOp::Exchange { done, .. } | TraceOp::Charge { done, .. } => *done = !*done,
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
    assert!(planted > 15, "{planted}");
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
    let cases: [&[TraceOp]; 9] = [
        &[free(0, false)],
        &[alloc(0, false), free(0, false), free(0, false)],
        &[alloc(0, false), alloc(0, false)],
        &[alloc(0, false), alloc(1, true)],
        &[alloc(0, true)],
        &[alloc(0, false), free(0, true)],
        &[TraceOp::SetAside { frames: 2, outcome: Ok(4) }, free(4, false)],
        &[TraceOp::Uncharge { node: 0, frames: 1 }],
        &[alloc(0, false), TraceOp::Exchange { frame: 0, gfp: Gfp::KERNEL, done: true }],
    ];
    for ops in cases {
        let error = replay_ops(ops).expect_err("it cannot be");
        assert!(matches!(error, ReplayError::Impossible { .. }), "{ops:?}: {error}");
    }
    let run = TraceOp::SetAside { frames: 2, outcome: Ok(4) };
    assert_eq!(replay_ops(&[run, free(4, false), free(5, true)]).unwrap(), 3);
}
