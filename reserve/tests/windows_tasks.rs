//! Several windows at a time: with the reservation of a task's maximum only its first mapping waits, and
//! no set of tasks can lock itself up. Without it, it does, and the graph of waiting says so.
//!
//! Method: tasks as state machines. Each maps its pages one after the other, does a round of work, and
//! unmaps them. They are polled in turn, and in random order; when a whole round moves nobody, the graph is
//! drawn. The switch `WindowsConfig::reservation` is the ablation: the same tasks then must deadlock. The
//! good case runs once more on real threads.

use std::sync::Barrier;
use std::task::Poll;
use std::time::Duration;

use netswap_reserve::explain::NodeKind;
use netswap_reserve::windows::{
    HighPage, HighPool, MapError, MapWindows, Mapped, TaskWindows, Ticket, WindowsConfig,
    WindowsError,
};
use netswap_reserve::{Verdict, WaitGraph};
use proptest::prelude::*;

struct World {
    windows: MapWindows,
    tasks: Vec<TaskWindows>,
    pages: Vec<HighPage>,
}

/// `needs[k]` pages at a time for task `k`.
fn world(count: u32, needs: &[u32], reservation: bool) -> World {
    let high = HighPool::new(needs.iter().sum()).unwrap();
    let config = WindowsConfig { reservation, ..WindowsConfig::new(count) };
    let windows = MapWindows::new(&high, config).unwrap();
    let name = |k: usize| format!("task {k}");
    let tasks = needs.iter().enumerate();
    let tasks = tasks.map(|(k, &need)| windows.task(name(k), need).unwrap()).collect();
    let pages = std::iter::from_fn(|| high.alloc().ok()).collect();
    World { windows, tasks, pages }
}

/// A task at work: it holds some of its mappings and may wait for the next.
struct Machine<'w> {
    task: &'w TaskWindows,
    pages: &'w [HighPage],
    held: Vec<Mapped<'w>>,
    ticket: Option<Ticket>,
    rounds: u32,
    /// Mappings that had to wait though the task held others.
    waited_holding: u32,
}

impl<'w> Machine<'w> {
    fn all(world: &'w World, needs: &[u32], rounds: u32) -> Vec<Machine<'w>> {
        let mut rest = &world.pages[..];
        let tasks = world.tasks.iter().zip(needs);
        let start = |(task, &need): (&'w TaskWindows, &u32)| {
            let (pages, others) = rest.split_at(need as usize);
            rest = others;
            let (held, ticket) = (Vec::new(), None);
            Machine { task, pages, held, ticket, rounds, waited_holding: 0 }
        };
        tasks.map(start).collect()
    }

    /// One step. True if it moved.
    fn step(&mut self) -> bool {
        if self.rounds == 0 {
            return false;
        }
        if self.held.len() == self.pages.len() {
            self.held.clear();
            self.rounds -= 1;
            return true;
        }
        match self.task.poll_map(&self.pages[self.held.len()], &mut self.ticket) {
            Poll::Ready(mapped) => {
                self.held.push(mapped.unwrap());
                true
            }
            Poll::Pending => {
                self.waited_holding += u32::from(!self.held.is_empty());
                false
            }
        }
    }
}

/// Polls in turn until all are done or nobody moves. True if all are done.
fn run(machines: &mut [Machine<'_>]) -> bool {
    loop {
        let moved = machines.iter_mut().fold(false, |moved, m| m.step() | moved);
        if !moved {
            return machines.iter().all(|m| m.rounds == 0);
        }
    }
}

fn explain(windows: &MapWindows, machines: &[Machine<'_>]) -> Verdict {
    let mut graph = WaitGraph::new();
    let mut node = |(k, m): (usize, &Machine<'_>)| {
        let kind = if m.ticket.is_some() { NodeKind::Any } else { NodeKind::Moving };
        (m.task.id(), graph.node(format!("task {k}"), kind))
    };
    let nodes: Vec<_> = machines.iter().enumerate().map(&mut node).collect();
    windows.draw(&mut graph, &nodes);
    graph.analyse()
}

#[test]
fn without_the_reservation_tasks_that_hold_one_and_want_another_wait_for_ever() {
    let needs = [2, 2, 2, 2];
    let world = world(4, &needs, false);
    let mut machines = Machine::all(&world, &needs, 3);
    assert!(!run(&mut machines), "four tasks hold all four windows");
    assert!(machines.iter().all(|m| m.held.len() == 1 && m.waited_holding > 0));
    let Verdict::Deadlock(cycle) = explain(&world.windows, &machines) else { panic!() };
    assert_eq!(cycle.protections(), ["--ablate window-reservation"]);
    let told = cycle.to_string();
    let lines: Vec<&str> = told.lines().collect();
    assert!(lines[0].starts_with("  task 0 waits for a mapping window"), "{told}");
    assert!(lines[0].ends_with("wants 1, 4 of 4 taken"), "{told}");
    assert!(lines[1].contains("1 window held by task 1"), "{told}");
    assert!(lines[2].contains("task 1 waits for a mapping window"), "{told}");
    assert!(lines[3].contains("1 window held by task 0"), "{told}");
}

#[test]
fn with_the_reservation_the_same_tasks_finish_and_only_first_mappings_waited() {
    let needs = [2, 2, 2, 2];
    let world = world(4, &needs, true);
    let mut machines = Machine::all(&world, &needs, 3);
    assert!(run(&mut machines));
    assert!(machines.iter().all(|m| m.waited_holding == 0));
    assert!(world.windows.counters().waits > 0, "there was something to wait for");
    assert_eq!(world.windows.usage().taken, 0);
    assert_eq!(explain(&world.windows, &machines), Verdict::Moves);
}

#[test]
fn a_promise_is_all_or_nothing_and_lasts_from_the_first_mapping_to_the_last() {
    let world = world(4, &[3, 2], true);
    let [a, b] = &world.tasks[..] else { panic!() };
    let first = a.try_map(&world.pages[0]).unwrap();
    assert_eq!((a.promised(), world.windows.usage().taken, world.windows.usage().held), (3, 3, 1));
    // One is left, and two are wanted: nothing is taken.
    let full = MapError::Full { wanted: 2, taken: 3, windows: 4, waiting: 0 };
    assert_eq!(b.try_map(&world.pages[3]).unwrap_err(), full);
    assert_eq!((b.promised(), world.windows.usage().taken), (0, 3));
    // Somebody who wants one only gets it, and the promise still holds.
    let plain = world.windows.try_map(&world.pages[4]).unwrap();
    assert!(world.windows.try_map(&world.pages[3]).is_err());
    let second = a.try_map(&world.pages[1]).unwrap();
    drop(first);
    let again = a.try_map(&world.pages[2]).unwrap();
    assert_eq!((a.held(), a.promised()), (2, 3));
    drop((second, again));
    assert_eq!((a.promised(), world.windows.usage().taken), (0, 1));
    drop(plain);
}

#[test]
fn a_shared_window_counts_for_each_task_that_may_be_left_with_it() {
    // Task 1 maps the page that task 0 has mapped already: no window more, but when task 0 goes on to
    // others, it is task 1 that holds it.
    let world = world(3, &[2, 1], true);
    let [a, b] = &world.tasks[..] else { panic!() };
    let one = a.try_map(&world.pages[0]).unwrap();
    let two = b.try_map(&world.pages[0]).unwrap();
    assert_eq!((world.windows.usage().held, world.windows.usage().taken), (1, 3));
    drop(one);
    let more = [a.try_map(&world.pages[1]).unwrap(), a.try_map(&world.pages[2]).unwrap()];
    assert_eq!((world.windows.usage().held, world.windows.usage().taken), (3, 3));
    drop((two, more));
}

#[test]
fn a_task_that_exceeds_its_maximum_is_counted_and_goes_on() {
    let world = world(4, &[1, 3], true);
    let (task, pages) = (&world.tasks[0], &world.pages);
    let first = task.try_map(&pages[0]).unwrap();
    let second = task.try_map(&pages[1]).unwrap();
    let third = task.try_map(&pages[2]).unwrap();
    assert_eq!((task.overruns(), world.windows.counters().overruns), (2, 2));
    assert_eq!((task.held(), task.promised(), world.windows.usage().taken), (3, 1, 3));
    // Beyond the windows there are it is an error, as for anybody.
    let fourth = task.try_map(&pages[3]).unwrap();
    let other = world.windows.try_map(&pages[0]);
    assert!(matches!(other, Err(MapError::Full { .. })));
    // Its promise ends with its last mapping, whichever that is.
    drop(first);
    assert_eq!((task.promised(), world.windows.usage().taken), (1, 4));
    drop((second, third, fourth));
    assert_eq!((task.promised(), world.windows.usage().taken), (0, 0));
    drop(world.tasks[1].try_map(&pages[0]).unwrap());
}

#[test]
fn a_task_that_waits_beyond_its_maximum_goes_before_those_that_hold_nothing() {
    let world = world(2, &[1, 2], true);
    let [a, b] = &world.tasks[..] else { panic!() };
    let first = a.try_map(&world.pages[0]).unwrap();
    let plain = world.windows.try_map(&world.pages[1]).unwrap();
    let (mut of_a, mut of_b) = (None, None);
    assert!(b.poll_map(&world.pages[2], &mut of_b).is_pending());
    assert!(a.poll_map(&world.pages[2], &mut of_a).is_pending());
    drop(plain);
    // Nobody can help b before a is done, so a need not wait for b.
    let Poll::Ready(Ok(second)) = a.poll_map(&world.pages[2], &mut of_a) else { panic!() };
    drop((first, second));
    assert!(b.poll_map(&world.pages[2], &mut of_b).is_ready());
}

#[test]
fn a_task_alone_that_wants_more_than_there_are_is_told_as_waiting_for_itself() {
    let world = world(1, &[1], true);
    let high = HighPool::new(2).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    drop(world);
    let task = windows.task("copy", 1).unwrap();
    let pages = [high.alloc().unwrap(), high.alloc().unwrap()];
    let _first = task.try_map(&pages[0]).unwrap();
    let mut ticket = None;
    assert!(task.poll_map(&pages[1], &mut ticket).is_pending());
    let mut graph = WaitGraph::new();
    let node = graph.node("copy", NodeKind::Any);
    windows.draw(&mut graph, &[(task.id(), node)]);
    let Verdict::Deadlock(cycle) = graph.analyse() else { panic!() };
    assert!(cycle.to_string().contains("1 window held by copy"), "{cycle}");
    assert!(cycle.protections().is_empty());
}

#[test]
fn declarations_are_checked_and_the_table_is_bounded() {
    let high = HighPool::new(1).unwrap();
    let config = WindowsConfig { tasks: 1, ..WindowsConfig::new(2) };
    let windows = MapWindows::new(&high, config).unwrap();
    for declared in [0, 3] {
        let refused = windows.task("t", declared).unwrap_err();
        assert_eq!(refused, WindowsError::Declared { declared, windows: 2 });
    }
    let task = windows.task("t", 2).unwrap();
    assert_eq!(windows.task("u", 1).unwrap_err(), WindowsError::TooManyTasks { tasks: 1 });
    drop(task);
    assert!(windows.task("u", 1).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 64,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x3a9),
        ..ProptestConfig::default()
    })]

    /// Any tasks, any order of polling: all finish, and nobody waits while holding.
    #[test]
    fn no_order_locks_up_tasks_with_a_reservation(
        needs in proptest::collection::vec(1u32..=4, 2..8),
        order in proptest::collection::vec(0usize..8, 0..200),
    ) {
        let world = world(4, &needs, true);
        let mut machines = Machine::all(&world, &needs, 2);
        for k in order {
            let k = k % machines.len();
            machines[k].step();
            prop_assert!(world.windows.usage().held <= world.windows.usage().taken);
            prop_assert!(world.windows.usage().taken <= 4);
        }
        prop_assert!(run(&mut machines));
        prop_assert!(machines.iter().all(|m| m.waited_holding == 0));
        prop_assert_eq!(world.windows.usage().taken, 0);
    }
}

#[test]
fn threads_that_each_need_several_windows_finish() {
    const THREADS: usize = 4;
    const ROUNDS: u32 = 300;
    let needs = [2; THREADS];
    let world = world(4, &needs, true);
    let barrier = Barrier::new(THREADS);
    let long = Duration::from_secs(60);
    std::thread::scope(|s| {
        for (k, task) in world.tasks.iter().enumerate() {
            let (barrier, pages) = (&barrier, &world.pages);
            s.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS as usize {
                    // In opposite orders, and on pages of others too.
                    let at = if k % 2 == 0 { round } else { usize::MAX / 2 - round };
                    let one = task.map(&pages[at % pages.len()], long).unwrap();
                    let two = task.try_map(&pages[(at + 3) % pages.len()]).unwrap();
                    assert_eq!(one[..], two[..], "all pages are zeros");
                }
            });
        }
    });
    let counters = world.windows.counters();
    assert_eq!(counters.hits + counters.misses, 2 * THREADS as u64 * u64::from(ROUNDS));
    assert_eq!((world.windows.usage().taken, counters.overruns), (0, 0));
}
