//! Goal: whatever the connection or the server does, no page is lost and none is wrong; what cannot be
//! done ends with a typed error.
//! Method: the random workload against its model, with one kind of fault a test; each fault is counted
//! by whoever makes it, and a test fails if its fault did not happen often enough.

mod common;

use common::{Workload, World, config};
use netswap_net::{Action, Disconnect};
use netswap_nfs::{NfsServerConfig, ServerFaults};
use netswap_reserve::Span;
use netswap_swap::{BackendState, Op, StoreError, SwapBackend};

const LATE: ServerFaults = ServerFaults {
    late_ppm: 30_000,
    late_by: Span::from_millis(700),
    twice_ppm: 50_000,
    garbage_ppm: 0,
    jukebox_ppm: 20_000,
    short_write_ppm: 50_000,
    short_read_ppm: 50_000,
    forget_ppm: 0,
    weak_ppm: 0,
    held_ppm: 0,
    held_for: Span::ZERO,
};

fn world(faults: ServerFaults, seed: u64) -> World {
    let mut w = World::new(config(), NfsServerConfig { seed, ..Default::default() }, seed);
    w.start();
    w.server.set_faults(faults);
    w
}

fn load(w: &World) -> Workload {
    Workload::new(common::SLOTS, w.client.limits().in_flight)
}

#[test]
fn connections_that_break_at_any_byte_lose_nothing() {
    for seed in 0..12 {
        let mut w = world(ServerFaults::default(), seed);
        w.chunk = [50, 700, 9000, 80_000][seed as usize % 4];
        let mut load = load(&w);
        let mut cuts = 0;
        let every = 3 + 400_000 / w.chunk;
        w.run(4_000_000, |w| {
            if w.connected && w.rng.below(every) == 0 {
                cuts += 1;
                w.cut(Disconnect::Reset);
            }
            load.poll(w, 300)
        });
        assert_eq!(load.failed, []);
        assert!(cuts > 10, "{cuts} cuts with seed {seed}");
        assert!(load.replayed > 0, "seed {seed}");
        assert_eq!(w.client.stats().garbage, 0);
        // Every connection after the first asks for the port that the server knows.
        let asked = |same| move |a: &&Action| matches!(a, Action::Connect { same_port, .. } if *same_port == same);
        assert_eq!(w.connects.iter().filter(asked(false)).count(), 1);
        assert!(w.connects.iter().filter(asked(true)).count() > 10);
    }
}

#[test]
fn a_server_that_restarts_forgets_connections_and_no_page() {
    for seed in 0..6 {
        let mut w = world(LATE, seed);
        w.chunk = 30_000;
        let mut load = load(&w);
        let mut restarts = 0;
        w.run(4_000_000, |w| {
            if w.rng.below(60) == 0 {
                restarts += 1;
                w.server.restart(w.now);
            }
            load.poll(w, 400)
        });
        assert_eq!(load.failed, []);
        let seen = w.client.stats().verifier_changes;
        assert!(restarts > 5 && seen > 3 && seen <= restarts, "{restarts} restarts, {seen} seen");
    }
}

#[test]
fn late_and_double_answers_jukebox_and_short_ones_are_only_slow() {
    for seed in 0..6 {
        let mut w = world(ServerFaults { late_by: Span::from_millis(100), ..LATE }, seed);
        let mut load = load(&w);
        w.run(4_000_000, |w| load.poll(w, 800));
        assert_eq!(load.failed, []);
        let (made, seen) = (w.server.fault_counts(), w.client.stats());
        assert!(made.late > 10 && made.twice > 10 && made.jukebox > 5);
        // The copy of a reply finds no call, unless it comes after the test has ended.
        assert!(seen.unknown_xids > 0 && seen.unknown_xids <= made.twice, "{seen:?} {made:?}");
        assert_eq!(seen.jukebox, made.jukebox);
        assert_eq!(seen.garbage, 0);
        assert_eq!(load.replayed, 0, "nothing was repeated, for nothing took a second");
    }
}

#[test]
fn an_answer_that_is_later_than_the_timeout_is_asked_for_again_by_its_xid_alone() {
    let faults = ServerFaults { late_ppm: 20_000, late_by: Span::from_millis(1500), ..LATE };
    for (seed, remembered) in [(0, 64), (1, 64), (2, 0), (3, 0)] {
        let server = NfsServerConfig { seed, remembered, ..Default::default() };
        let mut w = World::new(config(), server, seed);
        w.start();
        w.server.set_faults(faults);
        let mut load = load(&w);
        w.run(4_000_000, |w| load.poll(w, 800));
        assert_eq!(load.failed, []);
        let stats = w.client.stats();
        assert!(stats.retransmissions > 5, "{stats:?}");
        assert!(load.replayed > 0 && u64::from(load.replayed) <= stats.retransmissions);
        let cached = w.server.stats().cached;
        assert_eq!(
            cached > 0,
            remembered > 0,
            "the duplicate request cache answers repeated WRITEs"
        );
    }
}

#[test]
fn garbage_costs_a_connection_and_at_worst_one_request() {
    let mut kinds = [0; 5];
    for seed in 0..8 {
        let mut w = world(ServerFaults { garbage_ppm: 30_000, ..LATE }, seed);
        w.chunk = [100, 5000, 100_000, 1000][seed as usize % 4];
        let mut load = load(&w);
        w.run(8_000_000, |w| load.poll(w, 500));
        for error in &load.failed {
            assert!(matches!(error, StoreError::Garbage { .. }), "{error:?}");
        }
        assert!(load.failed.len() < 20, "{:?}", load.failed);
        let made = w.server.fault_counts();
        let seen = w.client.stats();
        assert!(seen.garbage > 5 && seen.connections > 5, "{seen:?}");
        for (sum, one) in kinds.iter_mut().zip([
            made.truncated,
            made.lying_length,
            made.wrong_xid,
            made.wrong_mark,
            made.junk_status,
        ]) {
            *sum += one;
        }
    }
    assert!(kinds.iter().all(|kind| *kind >= 10), "{kinds:?}");
}

#[test]
fn nothing_but_garbage_is_a_typed_error_for_each_request_and_heals() {
    for seed in 0..10 {
        let mut w = world(ServerFaults { garbage_ppm: 1_000_000, ..ServerFaults::default() }, seed);
        let mut load = load(&w);
        w.run(2_000_000, |w| load.poll(w, 60));
        assert_eq!(load.failed.len() + load.ended as usize - 60, load.failed.len());
        assert!(!load.failed.is_empty());
        assert!(load.failed.iter().all(|e| matches!(e, StoreError::Garbage { .. })));
        w.server.set_faults(ServerFaults::default());
        let pages = w.pages(16);
        let end = w.one(Op::Write, 0, pages);
        assert!(end.outcome.is_ok(), "{:?}", end.outcome);
        assert_eq!(w.pool.free_frames() + 16, w.pool.frames(), "every page came back");
    }
}

#[test]
fn a_server_of_garbage_fails_the_start_with_a_typed_error() {
    for seed in 0..20 {
        let faults = ServerFaults { garbage_ppm: 1_000_000, ..ServerFaults::default() };
        let server = NfsServerConfig { seed, faults, ..Default::default() };
        let mut w = World::new(config(), server, seed);
        w.run(100_000, |w| w.client.state() != BackendState::Starting);
        assert!(matches!(w.client.state(), BackendState::Failed(StoreError::Garbage { .. })));
    }
}

#[test]
fn a_partition_of_five_seconds_is_survived() {
    for seed in 0..6 {
        let mut w = world(ServerFaults::default(), seed);
        w.chunk = 20_000;
        let mut load = load(&w);
        w.run(100_000, |w| {
            load.poll(w, 600);
            load.ended > 100
        });
        w.black_hole = true;
        let (since, ended) = (w.now, load.ended);
        w.run(100_000, |w| {
            load.poll(w, 600);
            w.now.since(since) >= Span::from_secs(5)
        });
        assert!(load.ended < ended + 32, "nothing went through");
        w.black_hole = false;
        w.run(1_000_000, |w| load.poll(w, 600));
        assert_eq!(load.failed, []);
        assert!(load.replayed > 0);
        assert!(w.now.since(since) < Span::from_secs(15));
    }
}

#[test]
fn a_stale_handle_is_fetched_again_once_for_all_who_wait_for_it() {
    for mount in [None, Some("10.0.0.2:20048".parse().unwrap())] {
        let mut config = config();
        config.mount = mount;
        let mut w = World::new(config, NfsServerConfig::default(), 21);
        w.start();
        let mut load = load(&w);
        let mut renewals = 0;
        w.run(1_000_000, |w| {
            if load.ended / 100 > renewals {
                renewals += 1;
                w.server.renew_handles();
            }
            load.poll(w, 1000)
        });
        assert_eq!(load.failed, []);
        // The last renewals may have met no call.
        let remounts = w.client.stats().remounts;
        assert!(remounts <= u64::from(renewals) && remounts + 2 >= u64::from(renewals));
    }
}

#[test]
fn a_stale_file_that_cannot_be_mounted_again_is_refused_as_stale() {
    let mut w = world(ServerFaults::default(), 22);
    let pages = w.pages(1);
    w.submit(1, Op::Read, 0, pages);
    w.server.renew_handles();
    w.run(100, |w| w.client.stats().remounts == 1);
    w.server.set_faults(ServerFaults { garbage_ppm: 1_000_000, ..ServerFaults::default() });
    let mut end = None;
    w.run(10_000, |w| {
        end = w.client.poll_completion(w.now);
        end.is_some()
    });
    assert_eq!(end.unwrap().outcome, Err(StoreError::Refused { code: 70 }));
    assert!(matches!(w.client.state(), BackendState::Ready { .. }));
    w.server.set_faults(ServerFaults::default());
    let pages = w.pages(1);
    assert!(w.one(Op::Read, 0, pages).outcome.is_ok());
}
