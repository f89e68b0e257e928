//! Goal: requests that are merged keep every promise that single ones keep: what is read is what was written,
//! each ends once, with its own pages and its own outcome; and there are fewer calls.
//! Method: random requests, single and of several pages, in runs of neighbours, some with deadlines, over a server
//! with all its faults, against a model of each slot; then scripts for what a member can meet in a call.

mod common;

use std::collections::VecDeque;

use common::{Rng, SLOTS, World, config, fill, holds};
use netswap_net::Disconnect;
use netswap_nfs::{NfsConfig, NfsServerConfig, ServerFaults, WritePolicy};
use netswap_reserve::{Span, Time};
use netswap_swap::{
    Completion, Disk, Op, PageVec, Phase, Request, RequestId, Slot, StoreError, SwapBackend,
};
use proptest::prelude::*;

struct Issued {
    first: u32,
    pages: usize,
    op: Op,
    version: u32,
    deadline: Option<Time>,
}

/// Runs of neighbours, each request of 1 to 4 pages.
struct Runs {
    /// The version that each slot holds.
    held: Vec<u32>,
    busy: Vec<bool>,
    /// A WRITE to it failed, so it is given to nobody, as in the pager.
    lost: Vec<bool>,
    issued: Vec<Option<Issued>>,
    next: VecDeque<(u32, usize, Op)>,
    version: u32,
    submitted: u32,
    ended: u32,
    deadlines: bool,
}

impl Runs {
    fn new(in_flight: usize, deadlines: bool) -> Runs {
        Runs {
            held: vec![0; SLOTS as usize],
            busy: vec![false; SLOTS as usize],
            lost: vec![false; SLOTS as usize],
            issued: (0..in_flight).map(|_| None).collect(),
            next: VecDeque::new(),
            version: 0,
            submitted: 0,
            ended: 0,
            deadlines,
        }
    }

    fn plan(&mut self, rng: &mut Rng) {
        let op = if rng.below(2) == 0 { Op::Read } else { Op::Write };
        let mut first = rng.below(u64::from(SLOTS)) as u32;
        let mut run = vec![];
        for _ in 0..1 + rng.below(24) {
            let pages = 1 + if rng.below(2) == 0 { 0 } else { rng.below(4) as usize };
            if first as usize + pages > SLOTS as usize {
                break;
            }
            run.push((first, pages, op));
            first += pages as u32;
        }
        match rng.below(3) {
            0 => run.reverse(),
            1 => (1..run.len()).for_each(|i| run.swap(i, rng.below(i as u64 + 1) as usize)),
            _ => {}
        }
        self.next.extend(run);
    }

    fn poll(&mut self, w: &mut World, total: u32) -> bool {
        while let Some(end) = w.client.poll_completion(w.now) {
            self.end(end, w.now);
        }
        while self.submitted < total {
            if self.next.is_empty() {
                self.plan(&mut w.rng);
            }
            let Some(&(first, n, op)) = self.next.front() else { continue };
            if self.lost[first as usize..first as usize + n].contains(&true) {
                self.next.pop_front();
                continue;
            }
            let Some(id) = self.issued.iter().position(Option::is_none) else { break };
            let slots = first as usize..first as usize + n;
            if self.busy[slots.clone()].contains(&true) {
                break;
            }
            self.next.pop_front();
            self.busy[slots].fill(true);
            self.version += 1;
            let mut pages = w.pages(n);
            for (i, page) in pages.iter_mut().enumerate() {
                match op {
                    Op::Write => fill(page, first + i as u32, self.version),
                    Op::Read => page.bytes_mut().fill(0xEE),
                }
            }
            let deadline = (self.deadlines && w.rng.below(8) == 0)
                .then(|| w.now + Span::from_micros(w.rng.below(2_500_000)));
            let version = self.version;
            self.issued[id] = Some(Issued { first, pages: n, op, version, deadline });
            self.submitted += 1;
            let id = RequestId(id as u32);
            let request = Request { id, op, first: Slot(first), pages, deadline };
            w.client.submit(w.now, request).unwrap();
        }
        self.ended == total
    }

    fn end(&mut self, end: Completion, now: Time) {
        let of = self.issued[end.id.0 as usize].take().expect("a request ends once");
        assert_eq!(end.pages.len(), of.pages, "pages come back");
        self.ended += 1;
        let slots = of.first as usize..of.first as usize + of.pages;
        self.busy[slots.clone()].fill(false);
        let wrote = of.op == Op::Write;
        for (slot, page) in (of.first..).zip(&end.pages) {
            assert!(!wrote || holds(page, slot, of.version), "a page changed while written");
            if end.outcome.is_ok() && !wrote {
                let version = self.held[slot as usize];
                assert!(holds(page, slot, version), "slot {slot}, version {version}");
            }
        }
        match end.outcome {
            Ok(_) if wrote => self.held[slots].fill(of.version),
            Ok(_) => {}
            Err(error) => {
                // Handles go stale so often here that a request can meet it twice.
                let is_excused = match error {
                    StoreError::TimedOut => of.deadline.is_some_and(|at| at <= now),
                    StoreError::Garbage { .. } | StoreError::Refused { code: 70 } => true,
                    _ => false,
                };
                assert!(is_excused, "{error}");
                if wrote {
                    self.lost[slots].fill(true);
                }
            }
        }
    }
}

fn merging(write: WritePolicy, merge_after: usize, wire_max: usize) -> NfsConfig {
    NfsConfig { write, merge: true, merge_after, wire_max, overtakes_max: 16, ..config() }
}

fn all_faults(ppm: u32) -> ServerFaults {
    ServerFaults {
        late_ppm: ppm,
        late_by: Span::from_millis(1500),
        twice_ppm: ppm,
        jukebox_ppm: ppm,
        short_write_ppm: 3 * ppm,
        short_read_ppm: 3 * ppm,
        forget_ppm: ppm / 4,
        ..ServerFaults::default()
    }
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(24) })]
    #[test]
    fn what_is_read_is_what_was_written(
        seed in 0..1_000_000u64,
        unstable in any::<bool>(),
        merge_after in 1..6usize,
        wire_max in 1..40usize,
        limit in prop::sample::select(vec![4096u32, 8192, 20_000, 65_536, 262_144]),
        ppm in prop::sample::select(vec![0u32, 10_000, 60_000]),
        garbage in any::<bool>(),
        refragment in any::<bool>(),
    ) {
        let write = if unstable { WritePolicy::Unstable } else { WritePolicy::FileSync };
        let faults = ServerFaults {
            garbage_ppm: if garbage { ppm / 10 } else { 0 },
            ..all_faults(ppm)
        };
        let server = NfsServerConfig { rtmax: limit, wtmax: limit, seed, ..Default::default() };
        let mut w = World::new(merging(write, merge_after, wire_max), server, seed);
        w.start();
        w.server.set_faults(faults);
        w.refragment = refragment;
        w.chunk = [3_000, 20_000, 200_000][(seed % 3) as usize];
        let mut runs = Runs::new(w.client.limits().in_flight, ppm > 0);
        w.run(8_000_000, |w| {
            if ppm > 0 {
                match w.rng.below(3000) {
                    0 => w.cut(Disconnect::Reset),
                    1 => w.server.restart(w.now),
                    2 => w.server.renew_handles(),
                    _ => {}
                }
            }
            runs.poll(w, 600)
        });
        prop_assert_eq!(w.pool.free_frames(), w.pool.frames(), "all pages are back");
        prop_assert!(limit == 4096 || w.client.stats().joined > 0);
    }
}

/// A world whose connection takes a page's worth of bytes a turn.
fn slow_world(config: NfsConfig) -> World {
    let mut w = World::new(
        config,
        NfsServerConfig { rtmax: 262_144, wtmax: 262_144, ..Default::default() },
        5,
    );
    w.start();
    w.chunk = 4096;
    w
}

fn versioned(w: &World, first: u32, n: u32, version: u32) -> PageVec {
    let mut pages = w.pages(n as usize);
    pages.iter_mut().zip(first..).for_each(|(page, slot)| fill(page, slot, version));
    pages
}

fn ends(w: &mut World, n: usize) -> Vec<Completion> {
    let mut all = vec![];
    w.run(1_000_000, |w| {
        all.extend(std::iter::from_fn(|| w.client.poll_completion(w.now)));
        all.len() == n
    });
    all.sort_by_key(|end| end.id.0);
    all
}

#[test]
fn what_is_submitted_in_one_go_is_one_call() {
    for order in [[0, 1, 2, 3, 4, 5], [5, 4, 3, 2, 1, 0], [2, 5, 0, 3, 1, 4]] {
        let mut w = slow_world(merging(WritePolicy::FileSync, 4, 64));
        let calls = w.server.stats().writes;
        for i in order {
            let pages = versioned(&w, 10 + 2 * i, 2, 1);
            w.submit(i, Op::Write, 10 + 2 * i, pages);
        }
        assert!(ends(&mut w, 6).iter().all(|end| end.outcome.is_ok()));
        assert_eq!(w.server.stats().writes - calls, 1);
        for i in order {
            let pages = w.pages(2);
            w.submit(i, Op::Read, 10 + 2 * i, pages);
        }
        for end in ends(&mut w, 6) {
            let slot = 10 + 2 * end.id.0;
            assert!(holds(&end.pages[0], slot, 1) && holds(&end.pages[1], slot + 1, 1));
        }
        assert_eq!(w.server.stats().reads, 1);
        assert_eq!((w.client.stats().merged, w.client.stats().joined), (2, 10));
    }
}

#[test]
fn a_busy_wire_holds_neighbours_and_nobody_else() {
    let mut w = slow_world(merging(WritePolicy::FileSync, 2, 64));
    for id in 0..30 {
        // One by one, with a turn in between: even ones are neighbours, odd ones are not.
        let slot = if id % 2 == 0 { id / 2 } else { 50 + 6 * id };
        let pages = versioned(&w, slot, 1, 1);
        w.submit(id, Op::Write, slot, pages);
        w.step();
    }
    assert!(ends(&mut w, 30).iter().all(|end| end.outcome.is_ok()));
    assert!((17..25).contains(&w.server.stats().writes), "{:?}", w.server.stats());
}

#[test]
fn no_more_calls_than_allowed_are_on_the_wire() {
    let mut w = slow_world(merging(WritePolicy::FileSync, 64, 3));
    for id in 0..32 {
        let pages = versioned(&w, 5 * id, 1, 1);
        w.submit(id, Op::Write, 5 * id, pages);
    }
    let (mut ended, mut most) = (0, 0);
    w.run(100_000, |w| {
        while let Some(end) = w.client.poll_completion(w.now) {
            assert!(end.outcome.is_ok());
            ended += 1;
        }
        let mut sent = 0;
        w.client.outstanding(&mut |o| sent += u32::from(o.phase == Phase::Sent));
        most = most.max(sent);
        ended == 32
    });
    assert_eq!((most, w.client.stats().merged), (3, 0));
}

#[test]
fn a_refused_call_is_asked_for_again_request_by_request() {
    let mut w = slow_world(merging(WritePolicy::FileSync, 4, 64));
    // The file ends in the middle: of eight reads, five find their page, one a part, and two nothing.
    w.server.disk_mut("area0").unwrap().set_len(5 * 4096 + 100).unwrap();
    for id in 0..8 {
        let pages = w.pages(1);
        w.submit(id, Op::Read, id, pages);
    }
    let outcomes: Vec<_> = ends(&mut w, 8).iter().map(|end| end.outcome.err()).collect();
    let short = |got| Some(StoreError::ShortRead { got, wanted: 4096 });
    assert_eq!(outcomes, [None, None, None, None, None, short(100), short(0), short(0)]);
}

/// Sends ten WRITEs or READs of a page in one call, to a server that answers late; the third and, if `leader`, the first have
/// deadlines that pass meanwhile. `turns` is how far the call has come by then.
fn leave(op: Op, leader: bool, turns: u32, repeat: bool) {
    let mut w = slow_world(merging(WritePolicy::FileSync, 4, 64));
    for slot in 0..10 {
        let pages = versioned(&w, slot, 1, 1);
        assert!(w.one(Op::Write, slot, pages).outcome.is_ok());
    }
    let late_by = Span::from_millis(if repeat { 2500 } else { 500 });
    w.server.set_faults(ServerFaults { late_ppm: 1_000_000, late_by, ..ServerFaults::default() });
    let deadline = w.now + Span::from_millis(300);
    for slot in 0..10 {
        let version = if op == Op::Write { 2 } else { 9 };
        let pages = versioned(&w, slot, 1, version);
        let leaves = slot == 3 || leader && slot == 0;
        let deadline = leaves.then_some(deadline);
        let (id, first) = (RequestId(slot), Slot(slot));
        w.client.submit(w.now, Request { id, op, first, pages, deadline }).unwrap();
    }
    for _ in 0..turns {
        w.step();
    }
    w.now = w.now.max(deadline);
    let mut gone = vec![];
    gone.extend(std::iter::from_fn(|| w.client.poll_completion(w.now)));
    gone.sort_by_key(|end| end.id.0);
    let ids: Vec<u32> = gone.iter().map(|end| end.id.0).collect();
    assert_eq!(ids, if leader { vec![0, 3] } else { vec![3] });
    for end in &mut gone {
        assert_eq!(end.outcome, Err(StoreError::TimedOut));
        // It is ours again: nothing is sent from it, and nothing arrives in it.
        end.pages[0].bytes_mut().fill(0x77);
    }
    let left = 10 - gone.len();
    if repeat {
        w.server.set_faults(ServerFaults::default());
    }
    let others = ends(&mut w, left);
    assert!(gone.iter().all(|end| end.pages[0].bytes().iter().all(|byte| *byte == 0x77)));
    let version = if op == Op::Write { 2 } else { 1 };
    for end in &others {
        assert!(end.outcome.is_ok());
        assert!(holds(&end.pages[0], end.id.0, version), "{op:?} of slot {}", end.id.0);
    }
    w.server.set_faults(ServerFaults::default());
    for end in others {
        let page = w.pages(1);
        assert!(holds(&w.one(Op::Read, end.id.0, page).pages[0], end.id.0, version));
    }
    for end in gone {
        let page = w.pages(1);
        let page = &w.one(Op::Read, end.id.0, page).pages[0];
        assert!(holds(page, end.id.0, 1) || op == Op::Write && holds(page, end.id.0, 2));
    }
}

#[test]
fn a_deadline_takes_one_request_out_of_a_call_wherever_that_is() {
    for op in [Op::Read, Op::Write] {
        for leader in [false, true] {
            for turns in [0, 1, 2, 3, 5, 8, 13, 40] {
                for repeat in [false, true] {
                    leave(op, leader, turns, repeat);
                }
            }
        }
    }
}

#[test]
fn shutdown_ends_each_request_of_a_call_with_its_pages() {
    for turns in [0, 1, 2, 3, 5, 8, 13] {
        let mut w = slow_world(merging(WritePolicy::FileSync, 1, 2));
        for id in 0..32 {
            let pages = w.pages(4);
            w.submit(id, if id < 16 { Op::Write } else { Op::Read }, 4 * id, pages);
        }
        for _ in 0..turns {
            w.turn();
        }
        w.client.shutdown(w.now);
        let all: Vec<_> = std::iter::from_fn(|| w.client.poll_completion(w.now)).collect();
        assert_eq!(all.len(), 32);
        assert!(all.iter().all(|end| matches!(end.outcome, Ok(_) | Err(StoreError::Cancelled))));
        drop(all);
        assert_eq!(w.pool.free_frames(), w.pool.frames());
        while w.turn() {}
        assert!(!w.connected);
    }
}

#[test]
#[should_panic(expected = "slot ")]
fn canary_a_page_that_is_damaged_at_the_server_is_noticed_by_the_model() {
    let mut w = World::new(merging(WritePolicy::FileSync, 2, 64), NfsServerConfig::default(), 13);
    w.start();
    let mut runs = Runs::new(w.client.limits().in_flight, false);
    w.run(4_000_000, |w| {
        let at = 8 * w.rng.below(u64::from(SLOTS) * 512);
        w.server.disk_mut("area0").unwrap().write_at(at, &[0x55]).unwrap();
        runs.poll(w, 2000)
    });
}
