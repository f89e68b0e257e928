//! The end of `GFP_NOFAIL`, beside what it ends: operations that each need some pages for good, and cannot
//! back out once they have begun, on memory that does not hold all of them at once.
//!
//! Method: the operations are state machines that take turns; a turn takes one page. What an operation
//! wrote can be reclaimed when it is complete, not before. Two ways to get the pages:
//!
//! - *loop*: an allocation that fails is tried again at the next turn (what `__GFP_NOFAIL` does);
//! - *reserve*: nothing is taken before the worst case is reserved.
//!
//! Looping ends with every operation holding a part and waiting for the rest: the wait graph shows the
//! cycle. With reservations those that have one complete, and those that have none hold nothing.

mod common;

use common::cases;
use netswap_reserve::explain::NodeKind;
use netswap_reserve::{
    Frame, Gfp, PagePool, PoolConfig, Reservation, ReservationSpec, Verdict, WaitGraph,
};
use proptest::prelude::*;

/// What an operation does when a page cannot be had.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Way {
    Loop,
    Reserve,
}

struct Operation {
    needs: u32,
    reservation: Option<Reservation<'static>>,
    pages: Vec<Frame>,
    complete: bool,
}

struct World {
    pool: PagePool,
    way: Way,
    operations: Vec<Operation>,
}

impl World {
    /// `frames` of ordinary memory for operations that need `needs` each.
    fn new(way: Way, frames: u32, needs: &[u32]) -> World {
        let pool = PagePool::new(PoolConfig {
            headroom: 0,
            low_gap: 0,
            high_gap: 0,
            magazine: 0,
            ..PoolConfig::new(frames)
        });
        let operation = |&needs: &u32| Operation {
            needs,
            reservation: None,
            pages: Vec::new(),
            complete: false,
        };
        World { pool, way, operations: needs.iter().map(operation).collect() }
    }

    /// One turn of one operation. Returns whether it moved.
    fn turn(&mut self, at: usize) -> bool {
        let World { pool, way, operations } = self;
        let operation = &mut operations[at];
        if operation.complete {
            return false;
        }
        if *way == Way::Reserve && operation.reservation.is_none() {
            operation.reservation = pool.reserve(ReservationSpec::pages(operation.needs)).ok();
            return operation.reservation.is_some();
        }
        let page = match &mut operation.reservation {
            Some(reservation) => Some(reservation.page()),
            None => pool.alloc(Gfp::KERNEL).ok(),
        };
        let moved = page.is_some();
        operation.pages.extend(page);
        if operation.pages.len() as u32 == operation.needs {
            operation.complete = true;
            // Clean now, so reclaim takes it at once.
            operation.pages.clear();
            operation.reservation = None;
        }
        moved
    }

    /// Turns in the order of `schedule`, over and over. Returns whether all operations completed.
    fn run(&mut self, schedule: &[usize]) -> bool {
        loop {
            let mut moved = false;
            let count = self.operations.len();
            for at in schedule.iter().map(|at| at % count).chain(0..count) {
                moved |= self.turn(at);
            }
            if self.operations.iter().all(|o| o.complete) {
                return true;
            }
            if !moved {
                return false;
            }
        }
    }

    /// Who waits for what, at this moment.
    fn explain(&self) -> WaitGraph {
        let mut graph = WaitGraph::new();
        let reclaim = graph.node("reclaim", NodeKind::Any);
        let free = format!("{} of {} free", self.pool.free_frames(), self.pool.frames());
        for (at, operation) in self.operations.iter().enumerate().filter(|(_, o)| !o.complete) {
            let held = operation.pages.len();
            // Who has reserved waits for nothing.
            let goes_on = operation.reservation.is_some();
            let kind = if goes_on { NodeKind::Moving } else { NodeKind::Any };
            let task = graph.node(format!("operation {at}"), kind);
            let what = match self.way {
                Way::Loop => "loops for a frame",
                Way::Reserve => "waits for a reservation",
            };
            if !goes_on {
                graph.edge(task, reclaim, what, free.clone());
            }
            if held > 0 {
                let frames = graph.node(format!("frames of operation {at}"), NodeKind::Any);
                graph.memory(frames);
                graph.allowed_by(frames, "an operation that begins without a reservation");
                graph.edge(reclaim, frames, "waits until it is written", format!("{held} frames"));
                graph.edge(frames, task, "complete with it", "");
            }
        }
        graph
    }
}

#[test]
fn looping_deadlocks_and_the_reservation_completes() {
    let needs = [6; 4];
    let turns = [0, 1, 2, 3];
    let mut looping = World::new(Way::Loop, 16, &needs);
    assert!(!looping.run(&turns), "16 frames for 4 operations of 6, one page a turn each");
    assert_eq!(looping.pool.free_frames(), 0);
    let Verdict::Deadlock(cycle) = looping.explain().analyse() else {
        panic!("a deadlock over memory is told as one");
    };
    let told = cycle.to_string();
    assert!(told.contains("loops for a frame") && told.contains("4 frames"), "{told}");

    let mut reserving = World::new(Way::Reserve, 16, &needs);
    (0..4).for_each(|at| assert_eq!(reserving.turn(at), at < 2, "16 frames for two of them"));
    (0..4).for_each(|at| assert_eq!(reserving.turn(at), at < 2, "which take their pages"));
    assert_eq!(reserving.explain().analyse(), Verdict::Moves, "two wait, and hold nothing");
    assert!(reserving.run(&turns));
    assert_eq!(reserving.pool.free_frames(), 16);
}

proptest! {
    #![proptest_config(cases(256))]

    /// Whatever the order of turns, and whatever each needs, as long as the largest fits alone.
    #[test]
    fn a_reservation_completes_whatever_the_order(
        needs in prop::collection::vec(1..12u32, 1..8),
        frames in 11..40u32,
        schedule in prop::collection::vec(0..8usize, 0..40),
    ) {
        let mut reserving = World::new(Way::Reserve, frames, &needs);
        prop_assert!(reserving.run(&schedule));
        // Looping completes or not; when it does not, the reason is a cycle through memory.
        let mut looping = World::new(Way::Loop, frames, &needs);
        if !looping.run(&schedule) {
            let told = looping.explain().analyse();
            prop_assert!(matches!(told, Verdict::Deadlock(_)), "{told:?}");
            prop_assert!(needs.iter().sum::<u32>() > frames, "with memory for all it cannot");
        }
    }
}
