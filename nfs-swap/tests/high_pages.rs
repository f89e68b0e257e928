//! Goal: requests over high pages end as those over frames do, byte for byte, with a single window and
//! whatever the transport does; no window is held between two events; nothing is lost while there is none.
//! Method: a client over high pages, or a mixture of both kinds, joined with a server by the pump; what
//! is written is compared with the server's disk, what is read with what was written.

mod common;

use common::{SLOTS, World, config, server};
use netswap_net::Disconnect;
use netswap_nfs::{NfsBackend, NfsServerConfig, PageRequest, ServerFaults};
use netswap_reserve::windows::{HighPool, MapPageMut, MapWindows, Page, WindowsConfig};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::{BackendState, Disk, MemDisk, Op, RequestId, Slot};

type High<P> = World<NfsBackend<P, MapWindows>>;

fn pattern(slot: u32, version: u32) -> [u8; PAGE_SIZE] {
    let mut page = [0; PAGE_SIZE];
    for (i, word) in page.chunks_exact_mut(8).enumerate() {
        let value = (u64::from(slot) << 40 | u64::from(version) << 10 | i as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
    page
}

fn world<P: MapPageMut + std::fmt::Debug>(windows: &MapWindows, seed: u64) -> High<P> {
    let mut server = server(NfsServerConfig { seed, ..Default::default() });
    server.add_file("area0", MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64));
    let mut w = World::joined(NfsBackend::over(config(), windows.clone()), server, seed);
    w.run(10_000, |w| w.client.state() != BackendState::Starting);
    w
}

/// Random requests, 8 outstanding, one a slot; `page` makes a page, `disturb` is called at each turn and
/// says whether there are windows now to look at pages here.
fn work<P: MapPageMut + std::fmt::Debug>(
    w: &mut High<P>,
    windows: &MapWindows,
    total: u32,
    page: impl Fn() -> P,
    mut disturb: impl FnMut(&mut High<P>) -> bool,
) {
    let mut versions = vec![0u32; SLOTS as usize];
    let mut outstanding: Vec<Option<(u32, usize, Op)>> = vec![None; 8];
    let (mut submitted, mut ended) = (0, 0);
    w.run(4_000_000, |w| {
        if !disturb(w) {
            return false;
        }
        while let Some(end) = w.client.poll_pages(w.now) {
            let (first, n, op) = outstanding[end.id.0 as usize].take().unwrap();
            assert_eq!(end.pages.len(), n);
            assert!(end.outcome.is_ok(), "{:?}", end.outcome);
            for (i, page) in end.pages.iter().enumerate() {
                let slot = first + i as u32;
                let expected = match versions[slot as usize] {
                    0 => [0; PAGE_SIZE],
                    version => pattern(slot, version),
                };
                let bytes = windows.try_map(page).unwrap();
                assert!(*bytes == expected, "slot {slot} after {op:?}");
            }
            ended += 1;
        }
        while submitted < total {
            let Some(id) = outstanding.iter().position(Option::is_none) else { break };
            let n = 1 + w.rng.below(16) as usize;
            let first = w.rng.below(u64::from(SLOTS) - n as u64) as u32;
            let clash = outstanding
                .iter()
                .flatten()
                .any(|(other, len, _)| *other < first + n as u32 && first < other + *len as u32);
            if clash {
                break;
            }
            let op = if w.rng.below(2) == 0 { Op::Read } else { Op::Write };
            submitted += 1;
            let pages = (0..n as u32)
                .map(|i| {
                    let mut page = page();
                    let mut bytes = windows.try_map_mut(&mut page).unwrap();
                    bytes.fill(0xEE);
                    if op == Op::Write {
                        versions[(first + i) as usize] = submitted;
                        *bytes = pattern(first + i, submitted);
                    }
                    drop(bytes);
                    page
                })
                .collect();
            outstanding[id] = Some((first, n, op));
            let (id, first) = (RequestId(id as u32), Slot(first));
            let request = PageRequest { id, op, first, pages, deadline: None };
            w.client.submit_pages(w.now, request).unwrap();
        }
        ended == total
    });
    let mut disk = [0; PAGE_SIZE];
    for (slot, version) in versions.iter().enumerate().filter(|(_, version)| **version > 0) {
        let area = w.server.disk_mut("area0").unwrap();
        area.read_at((slot * PAGE_SIZE) as u64, &mut disk).unwrap();
        assert!(disk == pattern(slot as u32, *version), "slot {slot} on the disk");
    }
}

#[test]
fn pages_move_through_one_window_that_is_never_held() {
    for (chunk, refragment) in [(100_000, false), (3000, false), (20_000, true)] {
        let high = HighPool::new(256).unwrap();
        let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
        let mut w = world(&windows, chunk);
        (w.chunk, w.refragment) = (chunk, refragment);
        work(
            &mut w,
            &windows,
            300,
            || high.alloc().unwrap(),
            |_| {
                assert_eq!(windows.usage().held, 0);
                true
            },
        );
        assert_eq!(w.client.stats().map_waits, 0);
        assert_eq!(w.client.stats().garbage, 0);
    }
}

#[test]
fn low_and_high_pages_mix_in_a_request() {
    let high = HighPool::new(256).unwrap();
    let low = PagePool::new(PoolConfig::new(512));
    let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    let mut w = world(&windows, 3);
    w.chunk = 9000;
    let turn = std::cell::Cell::new(0);
    let page = || {
        turn.set(turn.get() + 1);
        if turn.get() % 3 == 0 {
            Page::from(high.alloc().unwrap())
        } else {
            Page::from(low.alloc(Gfp::KERNEL).unwrap())
        }
    };
    work(&mut w, &windows, 300, page, |_| true);
}

#[test]
fn faults_and_lost_connections_do_no_harm() {
    let high = HighPool::new(256).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(2)).unwrap();
    let mut w = world(&windows, 4);
    w.chunk = 20_000;
    w.server.set_faults(ServerFaults {
        late_ppm: 20_000,
        late_by: Span::from_millis(1500),
        twice_ppm: 20_000,
        jukebox_ppm: 20_000,
        short_write_ppm: 100_000,
        short_read_ppm: 100_000,
        ..ServerFaults::default()
    });
    work(
        &mut w,
        &windows,
        300,
        || high.alloc().unwrap(),
        |w| {
            if w.rng.below(300) == 0 {
                w.cut(Disconnect::Reset);
            }
            true
        },
    );
    let stats = w.client.stats();
    assert!(stats.connections > 3 && stats.short_writes > 3 && stats.short_reads > 3);
}

/// Somebody else holds the only window, again and again, for some turns each. Copies wait for it, and
/// nothing is lost.
#[test]
fn a_copy_waits_for_a_window_and_goes_on() {
    let high = HighPool::new(256).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    let other = high.alloc().unwrap();
    let mut w = world(&windows, 5);
    w.chunk = 20_000;
    let (mut held, mut turns) = (None, 0);
    work(
        &mut w,
        &windows,
        100,
        || high.alloc().unwrap(),
        |w| {
            if turns > 0 {
                turns -= 1;
            } else if held.take().is_none() && w.rng.below(3) == 0 {
                held = windows.try_map(&other).ok();
                turns = w.rng.below(10);
            }
            held.is_none()
        },
    );
    assert!(w.client.stats().map_waits > 10, "{:?}", w.client.stats());
}
