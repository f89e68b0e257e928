//! Goal: while a server is down, calls that wait for it hold no mapping window, however many they are;
//! so an unrelated mapping succeeds. (The deadlock on `kmap` in the RPC layer of Linux 2.4: "each
//! read/write kmap()s the pages at the beginning of the RPC call, and only kunmap()s at the end".)
//! Method: a client with more calls outstanding than there are windows, over high pages, and a server
//! that has gone silent. The ablation is the same client, given pages at addresses, as the old RPC layer
//! was: its pages are mapped when the call is made, and unmapped when it has ended.

mod common;

use std::time::Duration;

use common::{SLOTS, World, config, server};
use netswap_net::Disconnect;
use netswap_nfs::{NfsBackend, NfsServerConfig, PageRequest};
use netswap_reserve::windows::{
    Direct, HighPool, MapError, MapPage, MapPageMut, MapWindows, MappedMut, Mapper, PageView,
    PageViewMut, WindowsConfig,
};
use netswap_reserve::{PAGE_SIZE, Span};
use netswap_swap::{BackendState, Disk, MemDisk, Op, RequestId, Slot};

const WINDOWS: u32 = 8;
const CALLS: u32 = 32;
const CALL_PAGES: u32 = 4;

fn world<P: MapPageMut + std::fmt::Debug, M: Mapper + std::fmt::Debug>(
    mapper: M,
) -> World<NfsBackend<P, M>> {
    let mut server = server(NfsServerConfig::default());
    server.add_file("area0", MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64));
    let mut w = World::joined(NfsBackend::over(config(), mapper), server, 1);
    w.run(10_000, |w| w.client.state() != BackendState::Starting);
    w
}

/// Every second call is a WRITE, the others are READs.
fn request<P>(i: u32, pages: impl IntoIterator<Item = P>) -> PageRequest<P> {
    PageRequest {
        id: RequestId(i),
        op: if i.is_multiple_of(2) { Op::Write } else { Op::Read },
        first: Slot(i * CALL_PAGES),
        pages: pages.into_iter().collect(),
        deadline: None,
    }
}

/// The server is silent for a minute: connections are tried, calls are repeated, nothing is answered.
fn a_minute_of_silence<P: MapPageMut + std::fmt::Debug, M: Mapper + std::fmt::Debug>(
    w: &mut World<NfsBackend<P, M>>,
    mut check: impl FnMut(),
) {
    w.black_hole = true;
    let until = w.now + Span::from_secs(60);
    w.run(1_000_000, |w| {
        check();
        w.now >= until
    });
}

fn back_again<P: MapPageMut + std::fmt::Debug, M: Mapper + std::fmt::Debug>(
    w: &mut World<NfsBackend<P, M>>,
) {
    w.black_hole = false;
    w.cut(Disconnect::Reset);
}

#[test]
fn calls_that_wait_for_a_server_hold_no_window() {
    let high = HighPool::new(CALLS * CALL_PAGES + 1).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(WINDOWS)).unwrap();
    let unrelated = high.alloc().unwrap();
    let mut w = world(windows.clone());
    for i in 0..CALLS {
        let pages = (0..CALL_PAGES).map(|_| {
            let mut page = high.alloc().unwrap();
            windows.try_map_mut(&mut page).unwrap().fill(i as u8);
            page
        });
        w.client.submit_pages(w.now, request(i, pages)).unwrap();
    }
    a_minute_of_silence(&mut w, || {
        assert_eq!(windows.usage().held, 0);
        windows.try_map(&unrelated).expect("an unrelated mapping succeeds");
    });
    let mut outstanding = 0;
    w.client.outstanding(&mut |o| outstanding += o.pages);
    assert_eq!(outstanding, CALLS * CALL_PAGES, "sixteen times as many pages as windows");
    back_again(&mut w);
    let mut ended = 0;
    w.run(1_000_000, |w| {
        while let Some(end) = w.client.poll_pages(w.now) {
            assert!(end.outcome.is_ok());
            let expected = if end.id.0.is_multiple_of(2) { end.id.0 as u8 } else { 0 };
            for page in &end.pages {
                assert!(windows.try_map(page).unwrap().iter().all(|byte| *byte == expected));
            }
            ended += 1;
        }
        ended == CALLS
    });
    let mut disk = [0; PAGE_SIZE];
    for i in (0..CALLS).step_by(2) {
        let at = u64::from(i * CALL_PAGES) * PAGE_SIZE as u64;
        w.server.disk_mut("area0").unwrap().read_at(at, &mut disk).unwrap();
        assert_eq!(disk, [i as u8; PAGE_SIZE]);
    }
    assert_eq!(windows.usage().held, 0);
}

/// A page as the old RPC layer knew it: an address.
#[derive(Debug)]
struct AtAddress<'w>(MappedMut<'w>);

impl MapPage for AtAddress<'_> {
    fn view(&self) -> PageView<'_> {
        PageView::Low(&self.0)
    }
}

impl MapPageMut for AtAddress<'_> {
    fn view_mut(&mut self) -> PageViewMut<'_> {
        PageViewMut::Low(&mut self.0)
    }
}

#[test]
fn ablation_mapped_from_call_to_return_they_hold_them_all() {
    let high = HighPool::new(CALLS * CALL_PAGES + 1).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(WINDOWS)).unwrap();
    let unrelated = high.alloc().unwrap();
    let mut pages: Vec<_> = (0..CALLS * CALL_PAGES).map(|_| high.alloc().unwrap()).collect();
    let mut w = world(Direct);
    let mut calls = 0;
    for (i, pages) in pages.chunks_mut(CALL_PAGES as usize).enumerate() {
        // Map at call: with the server down, so the windows of earlier calls are not given back.
        let mapped: Result<Vec<_>, MapError> =
            pages.iter_mut().map(|page| windows.try_map_mut(page).map(AtAddress)).collect();
        let Ok(mapped) = mapped else { break };
        w.client.submit_pages(w.now, request(i as u32, mapped)).unwrap();
        calls += 1;
    }
    assert_eq!(calls, WINDOWS / CALL_PAGES, "no more calls can be made");
    a_minute_of_silence(&mut w, || {
        assert_eq!(windows.usage().held, WINDOWS);
        assert!(matches!(windows.try_map(&unrelated), Err(MapError::Full { taken: WINDOWS, .. })));
    });
    // Waiting helps as little, for as long as the server is down.
    let waited = windows.map(&unrelated, Duration::from_millis(50));
    assert!(matches!(waited, Err(MapError::TimedOut { taken: WINDOWS, .. })));
    // It was the calls that held them: when the server answers and they return, there are windows.
    back_again(&mut w);
    let mut ended = 0;
    w.run(1_000_000, |w| {
        while let Some(end) = w.client.poll_pages(w.now) {
            assert!(end.outcome.is_ok());
            ended += 1;
        }
        ended == calls
    });
    assert!(windows.try_map(&unrelated).is_ok());
}
