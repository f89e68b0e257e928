//! Goal: replies that come in another order, or of another length, than was expected when the transport was
//! shown where they belong, fill the right pages; nothing is copied for another order alone.
//! Method: single pages against a model of each slot, over a server that answers late, short, twice, with
//! attributes or without; the counters say that the paths in question were taken. The pump shows several buffers every
//! other time.

mod common;

use common::{SLOTS, Workload, World, config, fill, holds};
use netswap_nfs::{NfsConfig, NfsServerConfig, NfsStats, ServerFaults};
use netswap_reserve::Span;
use netswap_swap::{Op, Phase, SwapBackend};

/// Runs requests of up to `pages` pages; returns what the client counted.
fn run(faults: ServerFaults, pages: u64, merge: bool, seed: u64) -> NfsStats {
    let config = NfsConfig { merge, merge_after: 2, ..config() };
    let server = NfsServerConfig { records: 32, seed, ..NfsServerConfig::default() };
    let mut w = World::new(config, server, seed);
    let slots = w.start();
    w.server.set_faults(faults);
    let mut load = Workload::new(slots, w.client.limits().in_flight);
    load.pages_max = pages;
    w.run(4_000_000, |w| load.poll(w, 4000));
    assert_eq!(load.failed, []);
    w.client.stats()
}

#[test]
fn replies_in_order_are_where_they_belong() {
    for (seed, merge) in [(1, false), (2, true)] {
        let stats = run(ServerFaults::default(), 1, merge, seed);
        assert_eq!(stats.exchanged, 0);
        // Only until the lengths of heads are known.
        assert!(stats.spilled_bytes < 20_000, "{stats:?}");
    }
}

#[test]
fn replies_in_another_order_change_pages_and_are_not_copied() {
    let faults = ServerFaults {
        late_ppm: 300_000,
        late_by: Span::from_micros(1),
        ..ServerFaults::default()
    };
    for (seed, merge) in [(3, false), (4, true)] {
        let stats = run(faults, 1, merge, seed);
        assert!(stats.exchanged > 50, "{stats:?}");
    }
}

#[test]
fn reads_only_in_another_order_copy_nothing() {
    let server = NfsServerConfig { records: 32, ..NfsServerConfig::default() };
    let mut w = World::new(config(), server, 5);
    w.start();
    for slot in 0..32 {
        let mut page = w.pages(1);
        fill(&mut page[0], slot, 1);
        assert!(w.one(Op::Write, slot, page).outcome.is_ok());
    }
    let page = w.pages(1);
    assert!(w.one(Op::Read, 0, page).outcome.is_ok());
    let before = w.client.stats().spilled_bytes;
    w.server.set_faults(ServerFaults {
        late_ppm: 300_000,
        late_by: Span::from_micros(1),
        ..ServerFaults::default()
    });
    for round in 0..50 {
        for slot in 0..32 {
            let page = w.pages(1);
            w.submit(slot, Op::Read, (slot * 7 + round) % 32, page);
        }
        let mut ended = 0;
        w.run(100_000, |w| {
            while let Some(end) = w.client.poll_completion(w.now) {
                assert!(end.outcome.is_ok());
                assert!(holds(&end.pages[0], (end.id.0 * 7 + round) % 32, 1));
                ended += 1;
            }
            ended == 32
        });
    }
    let stats = w.client.stats();
    assert!(stats.exchanged > 200, "{stats:?}");
    assert_eq!(stats.spilled_bytes, before);
}

#[test]
fn replies_of_another_length_are_put_right() {
    let faults = ServerFaults {
        late_ppm: 100_000,
        late_by: Span::from_micros(1),
        twice_ppm: 100_000,
        short_read_ppm: 200_000,
        jukebox_ppm: 50_000,
        ..ServerFaults::default()
    };
    for seed in 6..12 {
        let stats = run(faults, 1 + seed % 6, seed % 2 == 0, seed);
        assert!(stats.spilled_bytes > 10_000 && stats.garbage == 0, "{stats:?}");
    }
}

#[test]
fn a_request_that_ends_while_replies_are_on_the_way_keeps_its_page_to_itself() {
    for turns in 0..12 {
        let mut w = World::new(config(), NfsServerConfig::default(), 7 + turns);
        w.start();
        w.chunk = 2500;
        for slot in 0..16 {
            let page = w.pages(1);
            assert!(w.one(Op::Read, slot, page).outcome.is_ok());
        }
        let deadline = w.now + Span::from_micros(1);
        for slot in 0..16 {
            let request = netswap_swap::Request {
                id: netswap_swap::RequestId(slot),
                op: Op::Read,
                first: netswap_swap::Slot(slot % SLOTS),
                pages: w.pages(1),
                deadline: (slot % 3 == 0).then_some(deadline),
            };
            w.client.submit(w.now, request).unwrap();
        }
        for _ in 0..4 * turns {
            w.step();
        }
        w.now = w.now.max(deadline);
        let mut given_back = vec![];
        given_back.extend(std::iter::from_fn(|| w.client.poll_completion(w.now)));
        for end in &mut given_back {
            end.pages[0].bytes_mut().fill(0x77);
        }
        let left = 16 - given_back.len();
        let mut others = vec![];
        w.run(100_000, |w| {
            others.extend(std::iter::from_fn(|| w.client.poll_completion(w.now)));
            others.len() == left
        });
        assert!(others.iter().all(|end| holds(&end.pages[0], end.id.0, 0)));
        for end in given_back {
            assert!(end.pages[0].bytes().iter().all(|byte| *byte == 0x77));
        }
        let mut sent = 0;
        w.client.outstanding(&mut |o| sent += u32::from(o.phase == Phase::Sent));
        assert_eq!(sent, 0);
    }
}
