//! Promise 7, the scope: entitlement is the current thread's, nests, ends on unwind, is not inherited by
//! a thread started inside, and is away while other work runs in between.
//!
//! Method: random entering, leaving in and out of turn, forgetting, unwinding and switching between
//! contexts, beside a model that is a stack of scopes for each context. The model is asked after every
//! step.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::cases;
use netswap_reserve::{EmergencyScope, Gfp, PagePool, ReserveId, SavedScope};
use netswap_reserve_model::config;
use proptest::prelude::*;

const RESERVES: usize = 4;
const CONTEXTS: usize = 3;

#[derive(Clone, Copy, Debug)]
enum Op {
    Enter(usize),
    /// Drops the innermost guard.
    Leave,
    /// Drops any guard of the context.
    LeaveAny(usize),
    /// Forgets the innermost guard.
    Forget,
    Switch(usize),
    /// Enters two scopes and unwinds through them.
    Unwind(usize),
    Spawn,
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        6 => (0..RESERVES).prop_map(Op::Enter),
        4 => Just(Op::Leave),
        1 => Just(Op::Forget),
        3 => (0..CONTEXTS).prop_map(Op::Switch),
        1 => (0..RESERVES).prop_map(Op::Unwind),
    ]
}

fn op_in_any_order() -> impl Strategy<Value = Op> {
    prop_oneof![5 => op(), 1 => (0..100usize).prop_map(Op::LeaveAny)]
}

/// What a context holds: guards in the order they were entered, ended ones too, and the model's stack
/// of the scopes that are alive, by serial.
#[derive(Default)]
struct Context {
    guards: Vec<(u64, EmergencyScope)>,
    stack: Vec<(u64, usize)>,
    saved: Option<SavedScope>,
}

struct World {
    pool: PagePool,
    reserves: Vec<ReserveId>,
    contexts: Vec<Context>,
    now: usize,
    serial: u64,
}

impl World {
    fn new() -> World {
        // Whatever a case before this one forgot.
        SavedScope::none().restore();
        let pool = PagePool::new(config());
        let reserves: Vec<_> =
            (0..RESERVES).map(|i| pool.add_reserve(ReserveId::ROOT, &format!("r{i}"), 8)).collect();
        pool.connect(ReserveId::ROOT).unwrap();
        let contexts = (0..CONTEXTS)
            .map(|_| Context { saved: Some(SavedScope::none()), ..Context::default() })
            .collect();
        World { pool, reserves, contexts, now: 0, serial: 0 }
    }

    /// The reserve that an allocation of this thread is charged to: what entitlement means.
    fn entitled_to(&self) -> Option<usize> {
        let frame = self.pool.alloc(Gfp::KERNEL).ok()?;
        self.reserves.iter().position(|&r| Some(r) == frame.charged_to())
    }

    fn step(&mut self, op: Op) {
        self.serial += 1;
        let serial = self.serial;
        let context = &mut self.contexts[self.now];
        match op {
            Op::Enter(r) => {
                let guard = EmergencyScope::enter(&self.pool, self.reserves[r]);
                context.guards.push((serial, guard));
                context.stack.push((serial, r));
            }
            Op::Leave => {
                if let Some((serial, guard)) = context.guards.pop() {
                    drop(guard);
                    context.end(serial);
                }
            }
            Op::LeaveAny(i) => {
                if !context.guards.is_empty() {
                    let at = i % context.guards.len();
                    let (serial, guard) = context.guards.remove(at);
                    drop(guard);
                    context.end(serial);
                }
            }
            Op::Forget => {
                if let Some((_, guard)) = context.guards.pop() {
                    std::mem::forget(guard);
                }
            }
            Op::Switch(to) => {
                if to != self.now {
                    context.saved = Some(EmergencyScope::save());
                    assert_eq!(self.entitled_to(), None, "nothing while other work runs");
                    self.now = to;
                    self.contexts[to].saved.take().unwrap().restore();
                }
            }
            Op::Unwind(r) => {
                let result = catch_unwind(AssertUnwindSafe(|| {
                    let _outer = EmergencyScope::enter(&self.pool, self.reserves[r]);
                    let _inner = EmergencyScope::enter(&self.pool, ReserveId::ROOT);
                    std::panic::resume_unwind(Box::new(()));
                }));
                assert!(result.is_err());
            }
            Op::Spawn => {
                let inherited = std::thread::scope(|s| {
                    s.spawn(|| EmergencyScope::is_entitled(&self.pool)).join().unwrap()
                });
                assert!(!inherited);
            }
        }
    }

    fn expected(&self) -> Option<usize> {
        self.contexts[self.now].stack.last().map(|&(_, r)| r)
    }

    fn finish(mut self) {
        for to in 0..CONTEXTS {
            self.step(Op::Switch(to));
            while !self.contexts[to].guards.is_empty() {
                self.step(Op::Leave);
            }
        }
        SavedScope::none().restore();
        // Guards forgotten at the outermost level entitle their own context and no other.
        assert_eq!(self.entitled_to(), None);
    }
}

impl Context {
    /// The model of leaving: the scope ends with all inside; a scope that has ended ends nothing.
    fn end(&mut self, serial: u64) {
        if let Some(at) = self.stack.iter().position(|&(s, _)| s == serial) {
            self.stack.truncate(at);
        }
    }
}

/// Uses ordinary memory up, so that an allocation shows what the thread is entitled to.
fn drained() -> (World, Vec<netswap_reserve::Frame>) {
    let world = World::new();
    let rest = std::iter::from_fn(|| world.pool.alloc(Gfp::KERNEL).ok()).collect();
    (world, rest)
}

proptest! {
    #![proptest_config(cases(512))]

    #[test]
    fn scopes_are_stacks_of_their_contexts(ops in prop::collection::vec(op(), 1..120)) {
        run(ops)?;
    }

    #[test]
    fn no_entitlement_outlives_its_guard(ops in prop::collection::vec(op_in_any_order(), 1..120)) {
        run(ops)?;
    }
}

/// Exact as long as scopes are at most eight deep (forgotten ones count); deeper, there is never an
/// entitlement that should have ended, but it may end early: see the module.
fn run(ops: Vec<Op>) -> Result<(), TestCaseError> {
    let (mut world, _rest) = drained();
    let mut deepest = 0;
    for op in ops {
        world.step(op);
        deepest = deepest.max(world.contexts.iter().map(|c| c.stack.len()).max().unwrap_or(0));
        let (got, expected) = (world.entitled_to(), world.expected());
        if deepest > 8 && got.is_none() {
            // The whole context ended; what is entered from here on starts anew.
            world.contexts[world.now].stack.clear();
        } else {
            prop_assert_eq!(got, expected);
        }
    }
    world.finish();
    Ok(())
}

#[test]
fn a_thread_started_inside_is_not_entitled() {
    let (mut world, _rest) = drained();
    world.step(Op::Enter(0));
    world.step(Op::Spawn);
    assert_eq!(world.entitled_to(), Some(0));
    world.finish();
}

/// Canary: an entitlement that outlives its guard is seen.
#[test]
fn the_check_sees_an_entitlement_that_was_not_ended() {
    let (mut world, _rest) = drained();
    let guard = EmergencyScope::enter(&world.pool, world.reserves[1]);
    assert_ne!(world.entitled_to(), world.expected());
    drop(guard);
    assert_eq!(world.entitled_to(), world.expected());
    world.step(Op::Leave);
}
