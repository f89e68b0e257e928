//! Mapping windows: what a bounded set of them does, alone and when it is full.
//!
//! Method: one thread maps and unmaps by hand and checks counters and usage after each step; then a
//! second thread waits for a window that the first one gives back. A set that is full blocks until a
//! deadline or reports; it never fails silently, and low pages do not notice.

use std::sync::mpsc;
use std::task::Poll;
use std::time::Duration;

use netswap_reserve::windows::{
    Direct, HighPage, HighPool, MapError, MapPage, MapWindows, Mapper, Page, WindowCounters,
    WindowsConfig, WindowsError,
};
use netswap_reserve::{Gfp, PagePool, PoolConfig};

const LONG: Duration = Duration::from_secs(60);

fn world(pages: u32, windows: u32) -> (Vec<HighPage>, MapWindows) {
    let high = HighPool::new(pages).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(windows)).unwrap();
    let mut all: Vec<HighPage> = (0..pages).map(|_| high.alloc().unwrap()).collect();
    for page in &mut all {
        let number = page.index().to_le_bytes();
        windows.try_map_mut(page).unwrap()[100..104].copy_from_slice(&number);
    }
    (all, windows)
}

fn shows(bytes: &[u8], page: &HighPage) -> bool {
    bytes[100..104] == page.index().to_le_bytes()
}

#[test]
fn a_page_that_a_window_still_shows_is_a_hit_and_idle_windows_are_cleared_together_at_the_wrap() {
    let (pages, windows) = world(12, 4);
    // Filling the pages: 12 misses through 4 windows are 2 wraps, each of 4 neighbours in one call.
    let filled =
        WindowCounters { misses: 12, wraps: 2, cleared: 8, clear_calls: 2, ..Default::default() };
    assert_eq!(windows.counters(), filled);
    // Pages 8 to 11 are idle in their windows.
    for page in &pages[8..] {
        assert!(shows(&*windows.try_map(page).unwrap(), page));
    }
    assert_eq!(windows.counters(), WindowCounters { hits: 4, ..filled });
    assert_eq!((windows.usage().held, windows.usage().idle), (0, 4));

    // Two that are held across the wrap keep their bytes; the two others are cleared, which are no
    // neighbours: two calls.
    let held = [windows.try_map(&pages[8]).unwrap(), windows.try_map(&pages[10]).unwrap()];
    assert!(shows(&*windows.try_map(&pages[0]).unwrap(), &pages[0]));
    let counters = windows.counters();
    assert_eq!((counters.wraps, counters.cleared, counters.clear_calls), (3, 10, 4));
    assert!(shows(&*held[0], &pages[8]) && shows(&*held[1], &pages[10]));
    assert_eq!((windows.usage().held, windows.usage().idle), (2, 1));
    drop(held);
    assert_eq!((windows.usage().held, windows.usage().idle, windows.usage().taken), (0, 3, 0));
}

#[test]
fn one_page_mapped_many_times_takes_one_window() {
    let (pages, windows) = world(2, 1);
    let first = windows.try_map(&pages[1]).unwrap();
    let second = windows.try_map(&pages[1]).unwrap();
    assert_eq!(windows.usage().held, 1);
    assert!(matches!(windows.try_map(&pages[0]), Err(MapError::Full { .. })));
    drop(first);
    assert!(matches!(windows.try_map(&pages[0]), Err(MapError::Full { .. })));
    assert!(shows(&*second, &pages[1]));
    drop(second);
    assert!(shows(&*windows.try_map(&pages[0]).unwrap(), &pages[0]));
}

#[test]
fn full_is_reported_by_who_cannot_wait_and_by_who_has_waited_in_vain() {
    let (pages, windows) = world(3, 2);
    let held = [windows.try_map(&pages[0]).unwrap(), windows.try_map(&pages[1]).unwrap()];
    let full = MapError::Full { wanted: 1, taken: 2, windows: 2, waiting: 0 };
    assert_eq!(windows.try_map(&pages[2]).unwrap_err(), full);
    assert_eq!(windows.counters().refusals, 1);
    let error = windows.map(&pages[2], Duration::from_millis(2)).unwrap_err();
    assert!(matches!(error, MapError::TimedOut { wanted: 1, taken: 2, windows: 2, .. }), "{error}");
    assert_eq!((windows.counters().waits, windows.counters().timeouts), (1, 1));
    assert_eq!(windows.usage().waiting, 0);
    drop(held);
}

#[test]
fn who_waits_gets_the_window_that_is_given_back() {
    let (pages, windows) = world(2, 1);
    let held = windows.try_map(&pages[0]).unwrap();
    let (started, starts) = mpsc::channel();
    std::thread::scope(|s| {
        let waiter = s.spawn(|| {
            started.send(()).unwrap();
            shows(&*windows.map(&pages[1], LONG).unwrap(), &pages[1])
        });
        starts.recv().unwrap();
        while windows.usage().waiting == 0 {
            std::thread::yield_now();
        }
        drop(held);
        assert!(waiter.join().unwrap());
    });
    assert_eq!(windows.counters().waits, 1);
    assert_eq!(windows.usage().taken, 0);
}

#[test]
fn those_who_wait_are_served_in_order_of_arrival_and_newcomers_do_not_overtake() {
    let (pages, windows) = world(4, 1);
    let held = windows.try_map(&pages[0]).unwrap();
    let (mut first, mut second) = (None, None);
    assert!(windows.poll_map(&pages[1], &mut first).is_pending());
    assert!(windows.poll_map(&pages[2], &mut second).is_pending());
    drop(held);
    assert!(windows.poll_map(&pages[2], &mut second).is_pending(), "the other one came first");
    let late = windows.try_map(&pages[3]).unwrap_err();
    assert_eq!(late, MapError::Full { wanted: 1, taken: 0, windows: 1, waiting: 2 });
    let Poll::Ready(Ok(mapped)) = windows.poll_map(&pages[1], &mut first) else { panic!() };
    assert!(first.is_none());
    drop(mapped);
    // Who gives up makes room for who is behind.
    assert!(windows.poll_map(&pages[1], &mut first).is_pending());
    drop(second.take());
    assert!(windows.poll_map(&pages[1], &mut first).is_ready());
}

#[test]
fn the_line_is_bounded_and_says_so() {
    let high = HighPool::new(2).unwrap();
    let config = WindowsConfig { waiters: 1, ..WindowsConfig::new(1) };
    let windows = MapWindows::new(&high, config).unwrap();
    let pages = [high.alloc().unwrap(), high.alloc().unwrap()];
    let _held = windows.try_map(&pages[0]).unwrap();
    let (mut first, mut second) = (None, None);
    assert!(windows.poll_map(&pages[1], &mut first).is_pending());
    let Poll::Ready(Err(error)) = windows.poll_map(&pages[1], &mut second) else { panic!() };
    assert_eq!(error, MapError::LineFull { waiting: 1 });
    assert_eq!(windows.map(&pages[1], LONG).unwrap_err(), MapError::LineFull { waiting: 1 });
}

#[test]
fn a_low_page_takes_no_window_and_is_mapped_when_all_are_held() {
    let (pages, mut windows) = world(1, 1);
    let pool = PagePool::new(PoolConfig::new(128));
    let mut frame = pool.alloc(Gfp::KERNEL).unwrap();
    frame.bytes_mut()[7] = 7;
    let address = frame.bytes().as_ptr();
    let before = windows.counters();
    let holder = windows.clone();
    let held = holder.try_map(&pages[0]).unwrap();
    // A mapping copies nothing: the bytes are the frame's own.
    assert_eq!(windows.try_map(&frame).unwrap().as_ptr(), address);
    windows.map_mut(&mut frame, LONG).unwrap()[7] += 1;
    assert_eq!(windows.try_map(&frame).unwrap()[7], 8);
    drop(held);
    assert_eq!(windows.counters(), WindowCounters { hits: before.hits + 1, ..before });

    // The same code takes either kind, and a vector may mix them.
    let mut mixed = [Page::from(frame), Page::from(pages.into_iter().next().unwrap())];
    assert_eq!(mixed.each_ref().map(Page::is_high), [false, true]);
    for page in &mut mixed {
        windows.with_mut(page, |bytes| bytes[9] = 9).unwrap();
        assert_eq!(windows.with(page, |bytes| bytes[9]), Ok(9));
    }
    assert_eq!(Direct.with(&mixed[0], |bytes| bytes[9]), Ok(9));
    assert_eq!(Direct.with(&mixed[1], |bytes| bytes[9]), Err(MapError::NoWindows));
    fn is_a_page(_: &impl MapPage) {}
    is_a_page(&pool.alloc(Gfp::KERNEL).unwrap().share());
}

#[test]
fn a_mapping_may_go_to_another_thread_and_be_dropped_there() {
    let (mut pages, windows) = world(2, 2);
    std::thread::scope(|s| {
        let mut mapped = windows.try_map_mut(&mut pages[0]).unwrap();
        s.spawn(move || mapped[0] = 42).join().unwrap();
    });
    assert_eq!(windows.try_map(&pages[0]).unwrap()[0], 42);
    assert_eq!(windows.usage().taken, 0);
}

#[test]
fn a_page_number_that_changes_hands_shows_the_same_page_to_the_next_owner() {
    let high = HighPool::new(1).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    let mut page = high.alloc().unwrap();
    windows.try_map_mut(&mut page).unwrap()[0] = 1;
    drop(page);
    let page = high.alloc().unwrap();
    assert_eq!(windows.try_map(&page).unwrap()[0], 1);
    assert_eq!((windows.counters().hits, windows.counters().misses), (1, 1));
}

#[test]
fn pages_of_another_pool_and_absurd_sizes_are_refused() {
    let (high, other) = (HighPool::new(1).unwrap(), HighPool::new(1).unwrap());
    let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    assert_eq!(windows.try_map(&other.alloc().unwrap()).unwrap_err(), MapError::OtherPool);
    for size in [0, u32::MAX] {
        let refused = MapWindows::new(&high, WindowsConfig::new(size)).unwrap_err();
        assert_eq!(refused, WindowsError::Size { windows: size });
    }
}
