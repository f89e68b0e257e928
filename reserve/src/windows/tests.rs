//! What is done when the system refuses a change of the address space: failures are planted.

use std::sync::atomic::Ordering;

use super::*;

fn world(windows: u32) -> (HighPool, MapWindows, Vec<HighPage>) {
    let high = HighPool::new(8).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(windows)).unwrap();
    let pages = std::iter::from_fn(|| high.alloc().ok()).collect();
    (high, windows, pages)
}

fn plant(windows: &MapWindows) {
    windows.shared.range.fail_next.store(true, Ordering::Relaxed);
}

#[test]
fn a_window_that_cannot_be_mapped_is_lost_and_the_others_go_on() {
    let (_high, windows, pages) = world(2);
    plant(&windows);
    assert_eq!(windows.try_map(&pages[0]).unwrap_err(), MapError::Refused { code: 12 });
    assert_eq!(windows.counters().lost, 1);
    let usage = windows.usage();
    assert_eq!((usage.windows, usage.held, usage.idle, usage.taken), (1, 0, 0, 0));
    for page in &pages {
        assert_eq!(windows.try_map(page).unwrap()[0], 0);
    }
    // What is left is what there is.
    let held = windows.try_map(&pages[0]).unwrap();
    let full = MapError::Full { wanted: 1, taken: 1, windows: 1, waiting: 0 };
    assert_eq!(windows.try_map(&pages[1]).unwrap_err(), full);
    drop(held);
}

#[test]
fn windows_that_cannot_be_cleared_are_lost_and_the_rest_of_the_wrap_is_used() {
    let (_high, windows, pages) = world(3);
    // Window 1 is held, so that windows 0 and 2 are runs of their own.
    drop(windows.try_map(&pages[0]).unwrap());
    let held = windows.try_map(&pages[1]).unwrap();
    drop(windows.try_map(&pages[2]).unwrap());
    plant(&windows);
    assert_eq!(windows.try_map(&pages[3]).unwrap()[0], 0);
    let counters = windows.counters();
    assert_eq!((counters.wraps, counters.cleared, counters.lost), (1, 1, 1));
    assert_eq!(windows.usage().windows, 2);
    drop(held);
}

#[test]
fn a_task_whose_first_mapping_is_refused_was_promised_nothing() {
    let (_high, windows, pages) = world(3);
    let task = windows.task("t", 3).unwrap();
    plant(&windows);
    assert_eq!(task.try_map(&pages[0]).unwrap_err(), MapError::Refused { code: 12 });
    assert_eq!((task.held(), task.promised(), windows.usage().taken), (0, 0, 0));
    // It declared more than is left now: said, not waited for.
    let full = MapError::Full { wanted: 3, taken: 0, windows: 2, waiting: 0 };
    assert_eq!(task.try_map(&pages[0]).unwrap_err(), full);
}

#[test]
fn a_promise_to_windows_that_were_lost_is_an_error_of_its_own() {
    let (_high, windows, pages) = world(2);
    let task = windows.task("t", 2).unwrap();
    let first = task.try_map(&pages[0]).unwrap();
    plant(&windows);
    assert_eq!(task.try_map(&pages[1]).unwrap_err(), MapError::Refused { code: 12 });
    assert_eq!(task.try_map(&pages[1]).unwrap_err(), MapError::Refused { code: 12 });
    assert_eq!((task.held(), first[0]), (1, 0));
}

#[test]
fn a_local_window_that_was_refused_is_tried_again() {
    let (high, _windows, pages) = world(1);
    let mut local = LocalWindows::new(&high, 1).unwrap();
    local.range.fail_next.store(true, Ordering::Relaxed);
    assert_eq!(local.map(&pages[0]).unwrap_err(), MapError::Refused { code: 12 });
    assert_eq!(local.used(), 0);
    assert_eq!(local.map(&pages[0]).unwrap()[0], 0);
}
