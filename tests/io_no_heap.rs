//! Goal: from its first request to its last completion, a load on a real store asks nobody for heap memory, neither
//! Rust's allocator nor the C library: not when calls are repeated, connections are lost and made again, garbage
//! comes, slots are quarantined and released. So the server's name is looked up once.
//! Method: what `netswap io` runs, over sockets, against the embedded server in a thread of its own that restarts and
//! makes faults; what the load's own thread allocates is counted, by a counter that is shown to catch planted
//! allocations.

mod common;
#[path = "../nfs-swap/tests/counting/mod.rs"]
mod counting;

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::nfs::{Served, area};
use counting::{NOTHING, allocations};
use netswap::nfs::{NfsBackend, NfsServerConfig, NfsStats, ServerFaults};
use netswap::real::load::{Load, LoadReport, LoadSpec, Pattern, Stop};
use netswap::real::{OpenOptions, RealStore, StoreUrl};
use netswap::reserve::Span;
use netswap::swap::SwapBackend;

/// Slots of the area; 64 MiB. So many that no quarantine uses them up.
const SLOTS: u32 = 16_384;

#[test]
fn the_counter_catches_planted_allocations() {
    counting::must_catch_planted_ones();
}

/// Restarts the server when nothing has moved for a while, as it does after a reply that was lost: the client would
/// wait longer.
fn keep_moving(served: &Served, over: &AtomicBool) {
    while !over.load(Ordering::Acquire) {
        let calls = || served.with(|server| server.stats().calls);
        let (before, since) = (calls(), Instant::now());
        while since.elapsed() < Duration::from_millis(200) {
            if over.load(Ordering::Acquire) {
                return;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        if calls() == before {
            served.restart();
        }
    }
}

fn run(pinned_verifier: bool, write: &str) -> (LoadReport, NfsStats, u64) {
    let config = NfsServerConfig { pinned_verifier, ..NfsServerConfig::default() };
    let served = Served::with_config(config, vec![("area0", area(SLOTS))]);
    // By name: what is looked up again would be seen.
    let url = format!("nfs://localhost:{}/swap/area0?write={write}", served.addr.port());
    let url: StoreUrl = url.parse().unwrap();
    let options = OpenOptions { in_flight: 16, ..OpenOptions::default() };
    let mut store = RealStore::open(&url, &options).unwrap();
    served.with(|server| {
        server.set_faults(ServerFaults {
            late_ppm: 20_000,
            late_by: Span::from_millis(5),
            twice_ppm: 10_000,
            garbage_ppm: 10_000,
            jukebox_ppm: 5_000,
            short_write_ppm: 10_000,
            short_read_ppm: 10_000,
            ..ServerFaults::default()
        });
    });
    let load = Load::new(LoadSpec {
        pattern: Pattern::Mixed,
        block_pages: 2,
        depth: 16,
        stride_blocks: 1,
        slots: SLOTS - 1,
        first_slot: 1,
        stop: Stop::Ops(4000),
        verify: true,
        run: 1,
        seed: 1,
        request_timeout: None,
    })
    .unwrap();
    served.restart_every(300);
    let over = AtomicBool::new(false);
    let mut report = None;
    std::thread::scope(|scope| {
        scope.spawn(|| keep_moving(&served, &over));
        let count = allocations(|| report = Some(load.run(&mut store, &mut |_| ())));
        over.store(true, Ordering::Release);
        assert_eq!(count, NOTHING);
    });
    let report = report.unwrap().unwrap();
    let client = store.client_as::<NfsBackend>().unwrap();
    let (stats, fences) = (client.stats(), client.fences());
    assert!(report.is_fine() && report.ops() == 4000, "{report:?}");
    assert!(report.pages_verified > 2000, "{report:?}");
    assert!(stats.retransmissions > 5 && stats.connections > 5 && stats.garbage > 5, "{stats:?}");
    assert!(stats.jukebox > 0, "{stats:?}");
    (report, stats, fences)
}

#[test]
fn a_load_over_a_server_that_restarts_allocates_nothing() {
    for write in ["file_sync", "unstable"] {
        let (_, stats, fences) = run(false, write);
        assert!(stats.verifier_changes > 3, "{stats:?}");
        assert!(fences > 0, "a quarantine was in use, and released: {stats:?}");
    }
}

#[test]
fn a_load_with_a_quarantine_that_stays_allocates_nothing() {
    let (report, stats, fences) = run(true, "file_sync");
    assert_eq!((stats.verifier_changes, fences), (0, 0));
    assert!(report.quarantined > 10, "{report:?}");
}
