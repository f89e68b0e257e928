//! Goal: every page read is the page that was written last, on any cut of the byte streams.
//! Method: random requests of 1 to 16 pages over random slots against a model of each slot; bytes move
//! in chunks of random size, whole or in random record fragments; servers of every limit.

mod common;

use common::{SLOTS, Workload, World, config};
use netswap_nfs::{NfsServerConfig, ServerFaults};
use netswap_reserve::{Span, Time};
use netswap_swap::{Op, Phase, Request, RequestId, Slot, StoreError, SwapBackend};

fn run(mut w: World, total: u32) -> (World, Workload) {
    let slots = w.start();
    let mut load = Workload::new(slots, w.client.limits().in_flight);
    w.run(4_000_000, |w| load.poll(w, total));
    assert_eq!(load.failed, []);
    (w, load)
}

#[test]
fn whole_records_in_chunks_of_every_size() {
    for (seed, chunk) in [(1, 200_000), (2, 5_000), (3, 300)] {
        let mut w = World::new(config(), NfsServerConfig::default(), seed);
        w.chunk = chunk;
        let (w, load) = run(w, 1500);
        assert_eq!(load.replayed, 0);
        assert_eq!(w.client.stats().garbage + w.client.stats().unknown_xids, 0);
        assert_eq!(w.client.stats().retransmissions, 0);
    }
}

#[test]
fn records_in_fragments_of_every_size_in_both_directions() {
    for seed in 0..4 {
        let mut w = World::new(config(), NfsServerConfig::default(), seed);
        w.refragment = true;
        w.chunk = 20_000;
        let (w, _) = run(w, 400);
        assert_eq!(w.client.stats().garbage, 0);
    }
}

#[test]
fn a_server_whose_limits_are_below_a_batch_gets_more_calls() {
    for (rtmax, wtmax, batch) in
        [(8192, 65_536, 2), (65_536, 4096, 1), (1000, 777, 1), (1, 4096, 1)]
    {
        let server = NfsServerConfig { rtmax, wtmax, ..Default::default() };
        let w = World::new(config(), server, u64::from(rtmax));
        let (w, _) = run(w, if rtmax == 1 { 4 } else { 150 });
        assert_eq!(w.client.limits().batch_pages, batch);
    }
}

#[test]
fn short_reads_and_writes_are_continued() {
    let faults = ServerFaults {
        short_read_ppm: 500_000,
        short_write_ppm: 500_000,
        ..ServerFaults::default()
    };
    let w = World::new(config(), NfsServerConfig { faults, ..Default::default() }, 7);
    let (w, load) = run(w, 600);
    let (client, server) = (w.client.stats(), w.server.fault_counts());
    assert!(server.short_reads > 100 && server.short_writes > 100);
    assert_eq!(client.short_writes, server.short_writes);
    assert_eq!(client.short_reads, server.short_reads);
    assert_eq!(load.replayed, 0);
}

#[test]
fn a_file_that_ends_early_is_a_short_read_never_a_page() {
    let mut w = World::new(config(), NfsServerConfig::default(), 8);
    w.start();
    use netswap_swap::Disk;
    w.server.disk_mut("area0").unwrap().set_len(10 * 4096 + 100).unwrap();
    let pages = w.pages(4);
    let end = w.one(Op::Read, 8, pages);
    assert_eq!(end.outcome, Err(StoreError::ShortRead { got: 8292, wanted: 16_384 }));
    let pages = w.pages(1);
    let end = w.one(Op::Read, 20, pages);
    assert_eq!(end.outcome, Err(StoreError::ShortRead { got: 0, wanted: 4096 }));
}

#[test]
fn slots_beyond_the_end_are_refused_here() {
    let mut w = World::new(config(), NfsServerConfig::default(), 9);
    w.start();
    let pages = w.pages(2);
    let end = w.one(Op::Write, SLOTS - 1, pages);
    assert_eq!(end.outcome, Err(StoreError::OutOfRange { slot: SLOTS }));
}

#[test]
fn two_requests_for_one_slot_are_never_on_the_wire_together_if_one_writes() {
    let mut w = World::new(config(), NfsServerConfig::default(), 10);
    w.start();
    let fresh = |w: &World, version| {
        let mut pages = w.pages(2);
        pages.iter_mut().enumerate().for_each(|(i, p)| common::fill(p, 5 + i as u32, version));
        pages
    };
    let (first, second, read, two) = (fresh(&w, 1), fresh(&w, 2), w.pages(1), w.pages(1));
    w.submit(1, Op::Write, 5, first);
    w.submit(2, Op::Write, 5, second);
    w.submit(3, Op::Read, 6, read);
    w.submit(4, Op::Read, 6, two);
    for _ in 0..1000 {
        let mut sent = vec![];
        w.client.outstanding(&mut |o| {
            if o.phase == Phase::Sent {
                sent.push(o.verb);
            }
        });
        assert!(sent.iter().filter(|verb| **verb == "WRITE").count() <= 1);
        assert!(!sent.contains(&"WRITE") || sent.len() == 1);
        w.turn();
    }
    let order: Vec<_> = std::iter::from_fn(|| w.client.poll_completion(w.now)).collect();
    let ids: Vec<u32> = order.iter().map(|end| end.id.0).collect();
    assert_eq!(ids[..2], [1, 2]);
    assert!(order[2..].iter().all(|end| common::holds(&end.pages[0], 6, 2)));
    assert_eq!(order.len(), 4);
}

#[test]
fn a_deadline_ends_a_request_whatever_the_server_does() {
    let faults = ServerFaults {
        late_ppm: 1_000_000,
        late_by: Span::from_secs(100),
        ..ServerFaults::default()
    };
    let mut w = World::new(config(), NfsServerConfig::default(), 11);
    w.start();
    w.server.set_faults(faults);
    let deadline = w.now + Span::from_millis(500);
    for id in 0..20 {
        let request = Request {
            id: RequestId(id),
            op: if id % 2 == 0 { Op::Write } else { Op::Read },
            first: Slot(id % 7),
            pages: w.pages(16),
            deadline: Some(deadline),
        };
        w.client.submit(w.now, request).unwrap();
    }
    let mut ended = 0;
    w.run(100_000, |w| {
        while let Some(end) = w.client.poll_completion(w.now) {
            assert_eq!(end.outcome, Err(StoreError::TimedOut));
            assert_eq!(end.pages.len(), 16);
            ended += 1;
        }
        ended == 20
    });
    assert_eq!(w.now, deadline);
    // The late answers do no harm, and the backend goes on.
    w.server.set_faults(ServerFaults::default());
    let pages = w.pages(16);
    assert!(w.one(Op::Read, 0, pages).outcome.is_ok());
}

#[test]
fn shutdown_cancels_everything_and_gives_every_page_back() {
    for turns in [0, 1, 2, 3, 5, 8, 13] {
        let mut w = World::new(config(), NfsServerConfig::default(), 12);
        w.start();
        w.chunk = 3000;
        for id in 0..32 {
            let pages = w.pages(16);
            w.submit(id, if id % 2 == 0 { Op::Write } else { Op::Read }, id / 3, pages);
        }
        assert_eq!(w.pool.free_frames(), w.pool.frames() - 32 * 16);
        for _ in 0..turns {
            w.turn();
        }
        w.client.shutdown(w.now);
        let mut ended = 0;
        while let Some(end) = w.client.poll_completion(w.now) {
            assert!(matches!(end.outcome, Ok(_) | Err(StoreError::Cancelled)));
            ended += 1;
        }
        assert_eq!(ended, 32);
        assert_eq!(w.pool.free_frames(), w.pool.frames());
        while w.turn() {}
        assert!(!w.connected, "the server was let go of");
        assert!(w.now < Time::ZERO + Span::from_secs(1));
    }
}

#[test]
#[should_panic(expected = "slot ")]
fn canary_a_page_that_is_damaged_at_the_server_is_noticed_by_the_model() {
    use netswap_swap::Disk;
    let mut w = World::new(config(), NfsServerConfig::default(), 13);
    let slots = w.start();
    let mut load = Workload::new(slots, w.client.limits().in_flight);
    w.run(4_000_000, |w| {
        let at = 8 * w.rng.below(u64::from(slots) * 512);
        w.server.disk_mut("area0").unwrap().write_at(at, &[0x55]).unwrap();
        load.poll(w, 2000)
    });
}
