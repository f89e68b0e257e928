//! Goal: after its start, neither the client nor the server allocates heap memory: not when pages move,
//! not when calls are repeated, connections are lost and made again, garbage comes, handles go stale.
//! Method: what the test's own thread asks for while it is armed is counted, of Rust and of C. The counter is first
//! shown to catch planted allocations.

mod common;
mod counting;

use common::kernel::Real;
use common::{Workload, World, config, server};
use counting::{NOTHING, allocations};
use netswap_net::Disconnect;
use netswap_net::kernel::SocketOptions;
use netswap_nfs::{
    ListEvent, ListerConfig, NfsBackend, NfsConfig, NfsLister, NfsServerConfig, PageRequest,
    ServerFaults, WritePolicy,
};
use netswap_reserve::windows::{HighPool, MapWindows, WindowsConfig};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap_swap::{BackendState, MemDisk, Op, RequestId, Slot, StoreError, SwapBackend};

#[test]
fn the_counter_catches_planted_allocations() {
    counting::must_catch_planted_ones();
}

fn world(seed: u64) -> (World, Workload) {
    world_with(config(), seed)
}

fn world_with(config: NfsConfig, seed: u64) -> (World, Workload) {
    let mut w = World::new(config, NfsServerConfig { seed, ..Default::default() }, seed);
    w.start();
    w.chunk = 20_000;
    let load = Workload::new(common::SLOTS, w.client.limits().in_flight);
    (w, load)
}

#[test]
fn moving_pages_allocates_nothing() {
    let (mut w, mut load) = world(1);
    assert_eq!(allocations(|| w.run(1_000_000, |w| load.poll(w, 3000))), NOTHING);
    assert_eq!(load.failed, []);
}

#[test]
fn faults_of_every_kind_allocate_nothing() {
    for merge in [false, true] {
        let config = NfsConfig { merge, merge_after: 1, wire_max: 4, ..config() };
        faults_allocate_nothing(world_with(config, 2));
    }
}

fn faults_allocate_nothing((mut w, mut load): (World, Workload)) {
    w.server.set_faults(ServerFaults {
        late_ppm: 20_000,
        late_by: Span::from_millis(1500),
        twice_ppm: 20_000,
        garbage_ppm: 20_000,
        jukebox_ppm: 20_000,
        short_write_ppm: 20_000,
        short_read_ppm: 20_000,
        ..ServerFaults::default()
    });
    let count = allocations(|| {
        w.run(4_000_000, |w| {
            match w.rng.below(300) {
                0 => w.cut(Disconnect::Reset),
                1 => w.server.restart(w.now),
                2 => w.server.renew_handles(),
                _ => {}
            }
            load.poll(w, 2000)
        });
    });
    assert_eq!(count, NOTHING);
    let stats = w.client.stats();
    assert!(stats.retransmissions > 20 && stats.connections > 20 && stats.garbage > 20);
    assert!(stats.remounts > 3 && stats.jukebox > 20 && stats.verifier_changes > 3);
    // Handles go stale so often here that a request can meet it twice.
    let stale = StoreError::Refused { code: 70 };
    let excused = |e: &StoreError| matches!(e, StoreError::Garbage { .. }) || *e == stale;
    assert!(load.failed.iter().all(excused), "{:?}", load.failed);
}

#[test]
fn unstable_writes_and_what_a_server_forgets_of_them_allocate_nothing() {
    let config = NfsConfig { write: WritePolicy::Unstable, uncommitted_max: 100, ..config() };
    let (mut w, mut load) = world_with(config, 6);
    w.server.set_faults(ServerFaults { forget_ppm: 20_000, ..ServerFaults::default() });
    let count = allocations(|| {
        w.run(4_000_000, |w| {
            match w.rng.below(300) {
                0 => w.cut(Disconnect::Reset),
                1 => w.server.restart(w.now),
                _ => {}
            }
            load.poll(w, 2000)
        });
    });
    assert_eq!((count, load.failed.len()), (NOTHING, 0));
    let stats = w.client.stats();
    assert!(stats.commits > 100 && stats.rewritten > 20 && stats.connections > 3, "{stats:?}");
}

#[test]
fn moving_high_pages_allocates_nothing() {
    let high = HighPool::new(64).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(2)).unwrap();
    let mut server = server(NfsServerConfig::default());
    server.add_file("area0", MemDisk::new(u64::from(common::SLOTS) * PAGE_SIZE as u64));
    let mut w = World::joined(NfsBackend::over(config(), windows), server, 4);
    w.run(10_000, |w| w.client.state() != BackendState::Starting);
    w.chunk = 20_000;
    let (mut submitted, mut ended) = (0, 0);
    let count = allocations(|| {
        w.run(1_000_000, |w| {
            while submitted < 500 && submitted < ended + 3 {
                let op = if submitted % 2 == 0 { Op::Write } else { Op::Read };
                let pages = (0..16).map(|_| high.alloc().unwrap()).collect();
                let (id, first) = (RequestId(submitted), Slot(submitted % 16 * 16));
                let request = PageRequest { id, op, first, pages, deadline: None };
                w.client.submit_pages(w.now, request).unwrap();
                submitted += 1;
            }
            while let Some(end) = w.client.poll_pages(w.now) {
                assert!(end.outcome.is_ok());
                ended += 1;
            }
            if w.rng.below(300) == 0 {
                w.cut(Disconnect::Reset);
            }
            ended == 500
        });
    });
    assert_eq!(count, NOTHING);
}

#[test]
fn listing_allocates_nothing() {
    let mut server = server(NfsServerConfig::default());
    (0..200).for_each(|i| server.add_file(&format!("area{i}"), MemDisk::new(0)));
    let pool = PagePool::new(PoolConfig::new(128));
    let pages = (0..2).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    let mut list = ListerConfig::new("10.0.0.2:2049".parse().unwrap(), "/swap", ".");
    list.mount = Some("10.0.0.2:20048".parse().unwrap());
    list.request_timeout = Span::from_secs(1);
    let mut w = World::joined(NfsLister::new(list, pages, Time::ZERO), server, 5);
    w.chunk = 2000;
    w.server.set_faults(ServerFaults {
        late_ppm: 50_000,
        late_by: Span::from_millis(1500),
        garbage_ppm: 50_000,
        jukebox_ppm: 50_000,
        ..ServerFaults::default()
    });
    let mut entries = 0;
    let count = allocations(|| {
        w.run(1_000_000, |w| {
            if w.client.stats().pages == 2 && w.client.stats().restarts == 0 {
                w.server.renew_cookies();
            }
            loop {
                match w.client.poll_event(w.now) {
                    Some(ListEvent::Entry(_)) => entries += 1,
                    Some(ListEvent::Restarted) => entries = 0,
                    Some(ListEvent::End(end)) => {
                        assert!(end.is_ok());
                        return true;
                    }
                    None => return false,
                }
            }
        });
    });
    assert_eq!((count, entries), (NOTHING, 202));
    let stats = w.client.stats();
    assert!(stats.garbage > 0 && stats.restarts == 1, "{stats:?}");
}

#[test]
fn shutting_down_allocates_nothing() {
    let (mut w, _) = world(3);
    for id in 0..32 {
        let pages = w.pages(16);
        w.submit(id, Op::Write, 16 * (id % 16), pages);
    }
    let count = allocations(|| {
        for _ in 0..5 {
            w.turn();
        }
        w.client.shutdown(w.now);
        while let Some(end) = w.client.poll_completion(w.now) {
            drop(end);
        }
    });
    assert_eq!(count, NOTHING);
}

#[test]
fn on_sockets_of_the_kernel_nothing_is_allocated_either() {
    let mut real = Real::with(SocketOptions::default(), |config| {
        config.request_timeout = Span::from_millis(20);
    });
    real.start();
    real.move_all(Op::Write, 1, |_, _| ());
    // Late by more than the client waits, so calls are repeated; garbage, so connections are reset.
    real.server.set_faults(ServerFaults {
        late_ppm: 50_000,
        late_by: Span::from_millis(50),
        garbage_ppm: 20_000,
        ..ServerFaults::default()
    });
    let mut version = 1;
    let mut went_on = |real: &mut Real| {
        version += 1;
        real.move_all(Op::Write, version, |real, ended| {
            if ended % 10 == 0 {
                real.restart_server();
            }
        });
        real.move_all(Op::Read, version, |_, _| ());
    };
    let count = allocations(|| {
        // As many rounds as it takes until everything has happened; a slow machine orders it in another way.
        for round in 0..200 {
            went_on(&mut real);
            let (stats, conn) = (real.watched.client.stats(), real.net.conn_stats(real.conn));
            let all = stats.garbage.min(stats.verifier_changes).min(stats.retransmissions) > 3
                && real.server.fault_counts().late > 3
                && conn.disconnects >= 8
                && real.loose > 0
                && real.watched.client.fences() > 0;
            if round >= 8 && all {
                break;
            }
        }
    });
    assert_eq!(count, NOTHING);
    let (stats, conn) = (real.watched.client.stats(), real.net.conn_stats(real.conn));
    assert!(stats.retransmissions > 3 && stats.garbage > 3, "{stats:?}");
    // A restart in the middle of a reconnect is none of its own.
    assert!(conn.disconnects >= 8 && conn.connects > conn.disconnects, "{conn:?}");
    assert!(stats.verifier_changes > 3 && real.server.fault_counts().late > 3, "{stats:?}");
    // What a quarantine goes by: late copies are told, and when none is left.
    assert!(real.loose > 0 && real.watched.client.fences() > 0, "{stats:?}");
}
