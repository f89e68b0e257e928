//! Mapping windows beside a naive model, and under threads.
//!
//! Method: random mapping and unmapping, plain and by tasks, within their maximum and beyond. The model
//! keeps a list of live mappings and a set of shown pages, and works everything out anew at each step: who may
//! map, hit or miss, when the range wraps and how many calls that takes. Bytes are checked through each
//! mapping. Then threads that share four windows and write pages of their own.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Barrier;
use std::time::Duration;

use netswap_reserve::windows::{
    HighPage, HighPool, MapError, MapWindows, Mapped, TaskWindows, WindowCounters, WindowsConfig,
};
use proptest::prelude::*;

const PAGES: u32 = 10;
const WINDOWS: u32 = 5;
const MAX: [u32; 3] = [1, 2, 3];

#[derive(Clone, Debug)]
enum Op {
    Map(Option<usize>, usize),
    Unmap(usize),
}

fn op() -> impl Strategy<Value = Op> {
    let who = prop_oneof![1 => Just(None), 2 => (0..MAX.len()).prop_map(Some)];
    prop_oneof![
        3 => (who, 0..PAGES as usize).prop_map(|(who, page)| Op::Map(who, page)),
        2 => any::<usize>().prop_map(Op::Unmap),
    ]
}

struct Live<'w> {
    who: Option<usize>,
    page: usize,
    promised: bool,
    mapped: Mapped<'w>,
}

struct World<'w> {
    windows: &'w MapWindows,
    tasks: &'w [TaskWindows],
    pages: &'w [HighPage],
    reservation: bool,
    live: Vec<Live<'w>>,
    /// Page by window.
    shown: BTreeMap<u32, usize>,
    counters: WindowCounters,
}

impl<'w> World<'w> {
    fn held_by(&self, who: usize) -> u32 {
        self.live.iter().filter(|l| l.who == Some(who)).count() as u32
    }

    fn promised_to(&self, who: usize) -> u32 {
        if self.reservation && self.held_by(who) > 0 { MAX[who] } else { 0 }
    }

    fn has_plain(&self, page: usize) -> bool {
        self.live.iter().any(|l| l.page == page && !l.promised)
    }

    fn taken(&self) -> u32 {
        let plain: BTreeSet<usize> =
            self.live.iter().filter(|l| !l.promised).map(|l| l.page).collect();
        let promised: u32 = (0..MAX.len()).map(|k| self.promised_to(k)).sum();
        plain.len() as u32 + promised
    }

    fn held_pages(&self) -> BTreeSet<usize> {
        self.live.iter().map(|l| l.page).collect()
    }

    /// The windows wanted, and whether the mapping is within a promise and beyond a maximum.
    fn terms(&self, who: Option<usize>, page: usize) -> (u32, bool, bool) {
        let plain = u32::from(!self.has_plain(page));
        let Some(k) = who.filter(|_| self.reservation) else { return (plain, false, false) };
        let within = self.live.iter().filter(|l| l.who == Some(k) && l.promised).count() as u32;
        if self.held_by(k) == 0 {
            (MAX[k], true, false)
        } else if within < MAX[k] {
            (0, true, false)
        } else {
            (plain, false, true)
        }
    }

    fn wrap(&mut self) {
        let held = self.held_pages();
        let cleared: Vec<u32> =
            self.shown.iter().filter(|(_, p)| !held.contains(p)).map(|(&w, _)| w).collect();
        self.counters.wraps += 1;
        self.counters.cleared += cleared.len() as u64;
        let runs = cleared.iter().enumerate().filter(|(i, w)| *i == 0 || cleared[i - 1] + 1 != **w);
        self.counters.clear_calls += runs.count() as u64;
        self.shown.retain(|_, page| held.contains(page));
    }

    fn map(&mut self, who: Option<usize>, page: usize) {
        let (wanted, promised, overrun) = self.terms(who, page);
        let taken = self.taken();
        let got = match who {
            None => self.windows.try_map(&self.pages[page]),
            Some(k) => self.tasks[k].try_map(&self.pages[page]),
        };
        if wanted > 0 && taken + wanted > WINDOWS {
            self.counters.refusals += 1;
            let full = MapError::Full { wanted, taken, windows: WINDOWS, waiting: 0 };
            assert_eq!(got.unwrap_err(), full);
            return;
        }
        let mapped = got.expect("the model has room for it");
        assert_eq!(mapped[..4], (page as u32).to_le_bytes());
        self.counters.overruns += u64::from(overrun);
        if self.shown.values().any(|&p| p == page) {
            self.counters.hits += 1;
        } else {
            self.counters.misses += 1;
            if self.shown.len() == WINDOWS as usize {
                self.wrap();
            }
            // The lowest window that was made free by the last wrap; later ones follow in order.
            let free = (0..WINDOWS).find(|w| !self.shown.contains_key(w)).unwrap();
            self.shown.insert(free, page);
        }
        self.live.push(Live { who, page, promised, mapped });
    }

    fn check(&self) {
        let usage = self.windows.usage();
        let held = self.held_pages().len();
        assert_eq!((usage.held, usage.idle), (held as u32, (self.shown.len() - held) as u32));
        assert_eq!((usage.taken, usage.waiting), (self.taken(), 0));
        assert!(usage.held <= usage.taken && usage.taken <= WINDOWS);
        assert_eq!(self.windows.counters(), self.counters);
        for (k, task) in self.tasks.iter().enumerate() {
            assert_eq!((task.held(), task.promised()), (self.held_by(k), self.promised_to(k)));
        }
        // What is mapped stays so, whatever was mapped and cleared beside it.
        for live in &self.live {
            assert_eq!(live.mapped[..4], (live.page as u32).to_le_bytes());
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 128,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0x3a90),
        ..ProptestConfig::default()
    })]

    #[test]
    fn the_windows_do_what_a_naive_model_does(
        reservation in prop_oneof![3 => Just(true), 1 => Just(false)],
        ops in proptest::collection::vec(op(), 1..150),
    ) {
        let high = HighPool::new(PAGES).unwrap();
        let config = WindowsConfig { reservation, ..WindowsConfig::new(WINDOWS) };
        let windows = MapWindows::new(&high, config).unwrap();
        let filler = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
        let mut pages: Vec<HighPage> = (0..PAGES).map(|_| high.alloc().unwrap()).collect();
        for (number, page) in (0u32..).zip(&mut pages) {
            filler.try_map_mut(page).unwrap()[..4].copy_from_slice(&number.to_le_bytes());
        }
        let tasks: Vec<_> = MAX.iter().map(|&max| windows.task("t", max).unwrap()).collect();
        let mut world = World {
            windows: &windows,
            tasks: &tasks,
            pages: &pages,
            reservation,
            live: Vec::new(),
            shown: BTreeMap::new(),
            counters: WindowCounters::default(),
        };
        for op in ops {
            match op {
                Op::Map(who, page) => world.map(who, page),
                Op::Unmap(_) if world.live.is_empty() => {}
                Op::Unmap(at) => drop(world.live.swap_remove(at % world.live.len())),
            }
            world.check();
        }
        world.live.clear();
        world.check();
    }
}

#[test]
fn threads_that_share_few_windows_see_their_own_bytes() {
    const THREADS: usize = 4;
    const EACH: usize = 6;
    const ROUNDS: usize = 400;
    let high = HighPool::new((THREADS * EACH) as u32 + 1).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(5)).unwrap();
    let shared = high.alloc().unwrap();
    let barrier = Barrier::new(THREADS);
    let long = Duration::from_secs(60);
    std::thread::scope(|s| {
        for thread in 0..THREADS {
            let (windows, shared, barrier) = (&windows, &shared, &barrier);
            let mut pages: Vec<HighPage> = (0..EACH).map(|_| high.alloc().unwrap()).collect();
            s.spawn(move || {
                barrier.wait();
                for round in 0..ROUNDS {
                    let page = &mut pages[round % EACH];
                    let mut mapped = windows.map_mut(page, long).unwrap();
                    let before = if round < EACH { 0 } else { (round - EACH + 1) as u32 };
                    let stamp = [thread as u32 * u32::from(before > 0), before];
                    assert_eq!(mapped[..4], stamp[0].to_le_bytes());
                    assert_eq!(mapped[4092..], stamp[1].to_le_bytes());
                    mapped[..4].copy_from_slice(&(thread as u32).to_le_bytes());
                    mapped[4092..].copy_from_slice(&(round as u32 + 1).to_le_bytes());
                    drop(mapped);
                    // One page that all look at, which is mapped by several at a time.
                    assert_eq!(windows.map(shared, long).unwrap()[0], 0);
                }
            });
        }
    });
    let counters = windows.counters();
    assert_eq!(counters.hits + counters.misses, (2 * THREADS * ROUNDS) as u64);
    assert!(counters.wraps > 0 && counters.hits > 0);
    assert_eq!((windows.usage().held, windows.usage().taken, windows.usage().waiting), (0, 0, 0));
}
