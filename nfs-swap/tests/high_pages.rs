//! Goal: requests over high pages end as those over frames do, byte for byte, with a single window and
//! whatever the transport does, merged or not; no window is held between two events; nothing is lost while there is none.
//! Method: a client over high pages, or a mixture of both kinds, joined with a server by the pump; what
//! is written is compared with the server's disk, what is read with what was written.

mod common;

use std::cell::Cell;
use std::rc::Rc;

use common::{SLOTS, World, config, server};
use netswap_net::Disconnect;
use netswap_nfs::{NfsBackend, NfsConfig, NfsServerConfig, PageRequest, ServerFaults};
use netswap_reserve::windows::{
    HighPage, HighPool, MapError, MapPage, MapPageMut, MapWindows, Mapper, Page, WindowsConfig,
};
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
    mapped(config(), windows.clone(), seed)
}

fn mapped<P: MapPageMut + std::fmt::Debug, M: Mapper + std::fmt::Debug>(
    config: NfsConfig,
    mapper: M,
    seed: u64,
) -> World<NfsBackend<P, M>> {
    let limits = NfsServerConfig { rtmax: 262_144, wtmax: 262_144, ..Default::default() };
    let mut server = server(NfsServerConfig { seed, ..limits });
    server.add_file("area0", MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64));
    let mut w = World::joined(NfsBackend::over(config, mapper), server, seed);
    w.run(10_000, |w| w.client.state() != BackendState::Starting);
    w
}

fn merging() -> NfsConfig {
    NfsConfig { merge: true, in_flight: 64, overtakes_max: 16, ..config() }
}

/// Random requests, 8 outstanding, one a slot, every second one beside the last; `page` makes a page, `disturb` is called at each turn and
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
    let (mut submitted, mut ended, mut last) = (0, 0, None);
    w.run(4_000_000, |w| {
        let mut unanswered = 0;
        w.client.outstanding(&mut |_| unanswered += 1);
        while !disturb(w) {
            if unanswered > 0 {
                return false;
            }
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
            let random = w.rng.below(u64::from(SLOTS) - n as u64) as u32;
            let goes_on = last.filter(|(first, _)| *first as usize + n <= SLOTS as usize);
            let (first, op) = match goes_on.filter(|_| w.rng.below(2) == 0) {
                Some(beside) => beside,
                None => (random, if w.rng.below(2) == 0 { Op::Read } else { Op::Write }),
            };
            let clash = outstanding
                .iter()
                .flatten()
                .any(|(other, len, _)| *other < first + n as u32 && first < other + *len as u32);
            if clash {
                break;
            }
            last = Some((first + n as u32, op));
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
    let turn = Cell::new(0);
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

/// Windows that count what they are asked for.
#[derive(Debug)]
struct Counted {
    windows: MapWindows,
    maps: Rc<Cell<usize>>,
}

impl Mapper for Counted {
    fn with<P: MapPage + ?Sized, R>(
        &mut self,
        page: &P,
        look: impl FnOnce(&[u8; PAGE_SIZE]) -> R,
    ) -> Result<R, MapError> {
        self.maps.set(self.maps.get() + 1);
        self.windows.with(page, look)
    }

    fn with_mut<P: MapPageMut + ?Sized, R>(
        &mut self,
        page: &mut P,
        change: impl FnOnce(&mut [u8; PAGE_SIZE]) -> R,
    ) -> Result<R, MapError> {
        self.maps.set(self.maps.get() + 1);
        self.windows.with_mut(page, change)
    }
}

/// 48 requests of a high page each, in one WRITE and one READ. Each page is mapped once for its one copy, and
/// once more where a stage or what has arrived ends within it.
#[test]
fn merged_requests_over_high_pages_are_copied_once() {
    const N: u32 = 48;
    let high = HighPool::new(64).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    let maps = Rc::new(Cell::new(0));
    let mapper = Counted { windows: windows.clone(), maps: maps.clone() };
    let mut w: World<NfsBackend<HighPage, Counted>> = mapped(merging(), mapper, 6);
    w.chunk = 1_000_000;
    for (op, fills) in [(Op::Write, 0), (Op::Read, 0xEE)] {
        for i in 0..N {
            // Neighbours, in an order of their own.
            let slot = i * 29 % N;
            let mut page = high.alloc().unwrap();
            windows.try_map_mut(&mut page).unwrap().fill(fills);
            if op == Op::Write {
                *windows.try_map_mut(&mut page).unwrap() = pattern(slot, 1);
            }
            let (id, first) = (RequestId(slot), Slot(10 + slot));
            let pages = [page].into_iter().collect();
            let request = PageRequest { id, op, first, pages, deadline: None };
            w.client.submit_pages(w.now, request).unwrap();
        }
        maps.set(0);
        let (mut ended, mut turns) = (0, 0);
        w.run(10_000, |w| {
            turns += 1;
            assert_eq!(windows.usage().held, 0);
            while let Some(end) = w.client.poll_pages(w.now) {
                assert!(end.outcome.is_ok(), "{:?}", end.outcome);
                let bytes = windows.try_map(&end.pages[0]).unwrap();
                assert!(*bytes == pattern(end.id.0, 1), "slot {} after {op:?}", end.id.0);
                ended += 1;
            }
            ended == N
        });
        let (maps, pages) = (maps.get(), N as usize);
        let stages = pages * PAGE_SIZE / (16 << 10) + 1;
        let most = pages + if op == Op::Write { stages } else { turns };
        assert!((pages..=most).contains(&maps), "{maps} of {pages} pages in {turns} turns");
    }
    let (client, server) = (w.client.stats(), w.server.stats());
    assert_eq!((server.writes, server.reads), (1, 1));
    assert_eq!((client.merged, client.joined, client.spilled_bytes), (2, 2 * u64::from(N - 1), 0));
    let mut disk = [0; PAGE_SIZE];
    for slot in 0..N {
        let area = w.server.disk_mut("area0").unwrap();
        area.read_at((10 + u64::from(slot)) * PAGE_SIZE as u64, &mut disk).unwrap();
        assert!(disk == pattern(slot, 1), "slot {slot} on the disk");
    }
}

/// As above, at random: both kinds of pages, faults, lost connections, and a window that somebody else has for
/// some turns again and again.
#[test]
fn merged_requests_over_any_pages_survive_faults_and_a_window_that_is_taken() {
    let high = HighPool::new(256).unwrap();
    let low = PagePool::new(PoolConfig::new(512));
    let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    let other = high.alloc().unwrap();
    let mut w: High<Page> = mapped(merging(), windows.clone(), 7);
    w.chunk = 20_000;
    w.server.set_faults(faults());
    let turn = Cell::new(0);
    let page = || {
        turn.set(turn.get() + 1);
        match turn.get() % 3 {
            0 => Page::from(low.alloc(Gfp::KERNEL).unwrap()),
            _ => Page::from(high.alloc().unwrap()),
        }
    };
    let (mut held, mut turns) = (None, 0);
    work(&mut w, &windows, 400, page, |w| {
        if turns > 0 {
            turns -= 1;
        } else if held.take().is_none() && w.rng.below(3) == 0 {
            held = windows.try_map(&other).ok();
            turns = w.rng.below(10);
        }
        if w.rng.below(300) == 0 {
            w.cut(Disconnect::Reset);
        }
        held.is_none()
    });
    let stats = w.client.stats();
    assert!(stats.merged > 10 && stats.map_waits > 10 && stats.connections > 3, "{stats:?}");
}

fn faults() -> ServerFaults {
    ServerFaults {
        late_ppm: 20_000,
        late_by: Span::from_millis(1500),
        twice_ppm: 20_000,
        jukebox_ppm: 20_000,
        short_write_ppm: 100_000,
        short_read_ppm: 100_000,
        ..ServerFaults::default()
    }
}

#[test]
fn faults_and_lost_connections_do_no_harm() {
    let high = HighPool::new(256).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(2)).unwrap();
    let mut w = world(&windows, 4);
    w.chunk = 20_000;
    w.server.set_faults(faults());
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
        200,
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
