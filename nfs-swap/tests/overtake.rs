//! Goal: a page-in does not wait for the page-outs that are queued before it, and page-outs do not starve.
//! Method: a link that takes one page's worth of bytes a turn, always with 24 page-outs of 64 KiB queued.
//! Turns until a READ of a page is answered, with and without overtaking; then READs without end.

mod common;

use common::{World, config};
use netswap_nfs::{NfsConfig, NfsServerConfig};
use netswap_swap::{Op, SwapBackend};

const WRITES: u32 = 24;

fn world(overtakes_max: u32) -> World {
    let config = NfsConfig { overtakes_max, ..config() };
    let mut w = World::new(config, NfsServerConfig::default(), 1);
    w.start();
    w.chunk = 4096;
    w
}

/// Keeps `WRITES` page-outs outstanding, to slots from 16 on. Returns how many ended, and whether `read` did.
fn saturate(w: &mut World, next: &mut u32, read: u32) -> (u32, bool) {
    let (mut ended, mut is_read) = (0, false);
    while let Some(end) = w.client.poll_completion(w.now) {
        assert!(end.outcome.is_ok());
        is_read |= end.id.0 == read;
        ended += u32::from(end.id.0 != read);
    }
    let mut outstanding = 0;
    w.client.outstanding(&mut |o| outstanding += u32::from(o.verb == "WRITE"));
    for _ in outstanding..WRITES {
        let pages = w.pages(16);
        *next += 1;
        w.submit(1000 + *next, Op::Write, 16 + 16 * (*next % 15), pages);
    }
    (ended, is_read)
}

/// The most turns that one of 50 READs takes under page-outs without end.
fn slowest_read(overtakes_max: u32) -> u32 {
    let mut w = world(overtakes_max);
    let mut next = 0;
    let mut slowest = 0;
    for id in 0..50 {
        for _ in 0..200 {
            saturate(&mut w, &mut next, id);
            w.turn();
        }
        let page = w.pages(1);
        w.submit(id, Op::Read, id % 16, page);
        let mut turns = 0;
        while !saturate(&mut w, &mut next, id).1 {
            assert!(w.turn());
            turns += 1;
        }
        slowest = slowest.max(turns);
    }
    slowest
}

#[test]
fn a_read_waits_for_one_write_not_for_all() {
    let (first, last) = (slowest_read(16), slowest_read(0));
    // What is left is what the transport had taken: up to 256 KiB.
    assert!(first * 3 <= last, "{first} turns, {last} in the order of submission");
}

#[test]
fn reads_without_end_do_not_starve_the_writes() {
    let mut w = world(16);
    let mut next = 0;
    let mut ended = 0;
    for turn in 0..20_000 {
        ended += saturate(&mut w, &mut next, u32::MAX).0;
        let mut reads = 0;
        w.client.outstanding(&mut |o| reads += u32::from(o.verb == "READ"));
        for id in reads..4 {
            let page = w.pages(1);
            w.submit(u32::MAX, Op::Read, (turn + id) % 16, page);
        }
        w.turn();
    }
    assert!(ended > 100, "{ended} page-outs in 20000 turns");
}
