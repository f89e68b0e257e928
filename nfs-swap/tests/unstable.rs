//! Goal: with UNSTABLE writes a request ends only when its pages last: whatever the server forgets
//! afterwards, they are there; and whatever it forgot before, they were written again.
//! Method: the random workload against its model, over a server that keeps up to 64 uncommitted writes
//! and really loses them; scripted restarts and new verifiers. The canary is a server that lies.

mod common;

use common::{Workload, World, config};
use netswap_net::Disconnect;
use netswap_nfs::{NfsConfig, NfsServerConfig, ServerFaults, WritePolicy};
use netswap_reserve::Span;
use netswap_swap::{Op, Phase, StoreError, SwapBackend};

fn unstable() -> NfsConfig {
    NfsConfig { write: WritePolicy::Unstable, ..config() }
}

fn world(config: NfsConfig, server: NfsServerConfig, seed: u64) -> (World, Workload) {
    let server = NfsServerConfig { seed, unstable: 64, ..server };
    let mut w = World::new(config, server, seed);
    w.start();
    let load = Workload::new(common::SLOTS, w.client.limits().in_flight);
    (w, load)
}

#[test]
fn many_writes_share_a_commit() {
    let (mut w, mut load) = world(unstable(), NfsServerConfig::default(), 1);
    w.run(1_000_000, |w| load.poll(w, 3000));
    assert_eq!(load.failed, []);
    let stats = w.client.stats();
    let writes = w.server.stats().writes;
    assert!(stats.commits > 10 && stats.commits * 4 < writes, "{stats:?}, {writes} writes");
    assert_eq!((stats.rewritten, load.replayed), (0, 0));
    assert_eq!(w.server.stats().lost, 0);
}

#[test]
fn what_a_server_forgets_before_the_commit_is_written_again() {
    for seed in 0..6 {
        let (mut w, mut load) = world(unstable(), NfsServerConfig::default(), seed);
        w.server.set_faults(ServerFaults {
            forget_ppm: 30_000,
            short_write_ppm: 100_000,
            late_ppm: 50_000,
            late_by: Span::from_millis(3),
            jukebox_ppm: 20_000,
            ..ServerFaults::default()
        });
        w.run(4_000_000, |w| load.poll(w, 1500));
        assert_eq!(load.failed, []);
        let (stats, server) = (w.client.stats(), w.server.stats());
        assert!(server.lost > 30 && stats.rewritten > 30, "{stats:?} {server:?}");
        assert_eq!(stats.connections, 1);
    }
}

#[test]
fn restarts_and_lost_connections_lose_no_page_even_if_the_verifier_is_pinned() {
    for seed in 0..8 {
        let server = NfsServerConfig { pinned_verifier: seed % 2 == 0, ..Default::default() };
        let (mut w, mut load) = world(unstable(), server, seed);
        w.chunk = 30_000;
        let mut restarts = 0;
        w.run(4_000_000, |w| {
            match w.rng.below(60) {
                0 => {
                    restarts += 1;
                    w.server.restart(w.now);
                }
                1 => w.cut(Disconnect::Reset),
                2 if w.rng.below(40) == 0 => w.server.renew_handles(),
                _ => {}
            }
            load.poll(w, 800)
        });
        assert!(
            load.failed.iter().all(|e| *e == StoreError::Refused { code: 70 }),
            "{:?}",
            load.failed
        );
        assert!(load.failed.len() < 20);
        assert!(restarts > 5 && w.server.stats().lost > 5 && w.client.stats().rewritten > 5);
        assert_eq!(w.client.stats().verifier_changes == 0, seed % 2 == 0);
    }
}

#[test]
#[should_panic(expected = "slot ")]
fn canary_a_server_that_forgets_and_keeps_its_verifier_is_noticed_by_the_model() {
    let (mut w, mut load) = world(unstable(), NfsServerConfig::default(), 3);
    w.run(4_000_000, |w| {
        w.server.forget_silently();
        load.poll(w, 1500)
    });
}

#[test]
fn a_server_that_never_keeps_its_verifier_is_written_to_synchronously_in_the_end() {
    let (mut w, _) = world(unstable(), NfsServerConfig::default(), 4);
    w.server.set_faults(ServerFaults { forget_ppm: 1_000_000, ..ServerFaults::default() });
    let mut pages = w.pages(16);
    pages.iter_mut().enumerate().for_each(|(i, page)| common::fill(page, i as u32, 1));
    let end = w.one(Op::Write, 0, pages);
    assert!(end.outcome.is_ok());
    assert_eq!(w.client.stats().rewritten, 8);
    let pages = w.pages(16);
    let read = w.one(Op::Read, 0, pages);
    assert!(read.pages.iter().enumerate().all(|(i, page)| common::holds(page, i as u32, 1)));
}

#[test]
fn uncommitted_pages_are_bounded_and_a_lone_request_is_taken_whatever_its_length() {
    for max in [1, 16, 40, 100] {
        let config = NfsConfig { uncommitted_max: max, ..unstable() };
        let (mut w, mut load) = world(config, NfsServerConfig::default(), max as u64);
        let mut most = 0;
        w.run(4_000_000, |w| {
            let (mut writing, mut requests) = (0, 0);
            w.client.outstanding(&mut |o| {
                // What is sent or waits for its COMMIT; the rest waits for room.
                if o.verb == "COMMIT" || (o.verb == "WRITE" && o.phase == Phase::Sent) {
                    writing += o.pages as usize;
                    requests += 1;
                }
            });
            assert!(writing <= max || requests == 1, "{writing} pages of {requests} requests");
            most = most.max(writing);
            load.poll(w, 1500)
        });
        assert_eq!(load.failed, []);
        assert!(most >= max.min(16), "{most} of {max}");
    }
}

#[test]
fn a_page_waits_for_its_commit_no_longer_than_the_delay_while_others_are_written() {
    let (mut w, _) = world(unstable(), NfsServerConfig::default(), 6);
    // One write never gets its answer, so there is always something to be written.
    let stuck = w.pages(1);
    w.server.set_faults(ServerFaults {
        late_ppm: 1_000_000,
        late_by: Span::from_millis(500),
        ..ServerFaults::default()
    });
    w.submit(1, Op::Write, 100, stuck);
    w.step();
    w.server.set_faults(ServerFaults::default());
    let since = w.now;
    let page = w.pages(1);
    let end = w.one(Op::Write, 5, page);
    assert!(end.outcome.is_ok());
    assert_eq!(w.now.since(since), Span::from_millis(10));
}

#[test]
fn a_server_that_makes_everything_stable_is_asked_for_no_commit() {
    let server = NfsServerConfig { unstable: 0, ..Default::default() };
    let mut w = World::new(unstable(), server, 7);
    w.start();
    let mut load = Workload::new(common::SLOTS, w.client.limits().in_flight);
    w.run(1_000_000, |w| load.poll(w, 500));
    assert_eq!(load.failed, []);
    assert_eq!(w.client.stats().commits, 0);
}

#[test]
fn a_read_of_a_page_that_is_uncommitted_has_it_committed_first() {
    let (mut w, _) = world(unstable(), NfsServerConfig::default(), 8);
    let mut page = w.pages(1);
    common::fill(&mut page[0], 9, 1);
    w.submit(1, Op::Write, 9, page);
    let read = w.pages(1);
    w.submit(2, Op::Read, 9, read);
    let mut ends = vec![];
    w.run(1000, |w| {
        ends.extend(w.client.poll_completion(w.now));
        ends.len() == 2
    });
    assert_eq!(ends.iter().map(|end| end.id.0).collect::<Vec<_>>(), [1, 2]);
    assert!(common::holds(&ends[1].pages[0], 9, 1));
    assert_eq!(w.client.stats().commits, 1);
}

#[test]
fn a_write_less_stable_than_asked_is_a_typed_error_and_loses_no_page() {
    let (mut w, _) = world(config(), NfsServerConfig::default(), 9);
    w.server.set_faults(ServerFaults { weak_ppm: 1_000_000, ..ServerFaults::default() });
    let page = w.pages(1);
    let end = w.one(Op::Write, 3, page);
    assert!(matches!(end.outcome, Err(StoreError::Garbage { what }) if what.contains("stable")));
    assert_eq!(end.pages.len(), 1);
    w.server.set_faults(ServerFaults::default());
    assert!(w.one(Op::Write, 3, end.pages).outcome.is_ok());
}

/// Requests of a page that are uncommitted: they say that they wait for a COMMIT.
fn uncommitted(w: &World) -> Vec<u32> {
    let mut ids = vec![];
    w.client.outstanding(&mut |o| ids.extend((o.verb == "COMMIT").then_some(o.id.0)));
    ids.sort_unstable();
    ids
}

/// What ends by a COMMIT unblocks a request that makes the next COMMIT due at once: in the midst of the first one.
#[test]
fn a_commit_that_another_one_follows_at_once_ends_only_what_it_covered() {
    let config = NfsConfig { uncommitted_max: 2, ..unstable() };
    let (mut w, _) = world(config, NfsServerConfig::default(), 10);
    let late_by = Span::from_millis(500);
    let page = w.pages(1);
    w.submit(1, Op::Write, 1, page);
    w.run(1000, |w| uncommitted(w) == [1]);
    w.server.set_faults(ServerFaults { late_ppm: 1_000_000, late_by, ..Default::default() });
    let calls = w.server.stats().calls;
    w.run(1000, |w| w.server.stats().calls > calls);
    w.server.set_faults(ServerFaults::default());
    // Written after the COMMIT was sent; then one that waits for the first page, and is too much beside it.
    let page = w.pages(1);
    w.submit(2, Op::Write, 2, page);
    w.run(1000, |w| uncommitted(w) == [1, 2]);
    let pages = w.pages(2);
    w.submit(3, Op::Write, 0, pages);
    let mut ends = vec![];
    w.run(100_000, |w| {
        while let Some(end) = w.client.poll_completion(w.now) {
            assert!(end.outcome.is_ok());
            ends.push((end.id.0, w.client.stats().commits));
        }
        ends.len() == 3
    });
    assert_eq!(ends, [(1, 1), (2, 2), (3, 3)]);
}
