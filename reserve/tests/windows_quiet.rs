//! Mapping makes no heap allocation, and a task that maps more than it declared is warned of once.
//!
//! Method: this binary's own allocator counts, for the thread that asks, and is first shown to catch a
//! planted allocation. A subscriber of its own counts warnings.

mod counting;
mod events;

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use counting::calls;
use netswap_reserve::windows::{
    HighPage, HighPool, LocalWindows, MapWindows, PageCursor, PageCursorMut, WindowsConfig, vmap,
};
use tracing::{Event, Level};

#[test]
fn mapping_waiting_and_copying_make_no_heap_allocation() {
    assert_eq!(calls(|| drop(std::hint::black_box(Box::new(1)))), 2, "a planted one");

    let high = HighPool::new(8).unwrap();
    let mut windows = MapWindows::new(&high, WindowsConfig::new(3)).unwrap();
    let mut local = LocalWindows::new(&high, 2).unwrap();
    let task = windows.task("t", 2).unwrap();
    let mut pages: Vec<HighPage> = (0..7).map(|_| high.alloc().unwrap()).collect();
    let none = calls(|| {
        drop(high.alloc().unwrap());
        // Hits, misses and wraps; a promise; a line that is joined and left; a wait that times out.
        for page in pages.iter().chain(&pages) {
            drop(windows.try_map(page).unwrap());
            drop((task.try_map(page).unwrap(), task.try_map(&pages[0]).unwrap()));
        }
        let held: [_; 3] = std::array::from_fn(|k| windows.try_map(&pages[k]).unwrap());
        assert!(windows.try_map(&pages[4]).is_err());
        let mut ticket = None;
        assert!(task.poll_map(&pages[4], &mut ticket).is_pending());
        assert!(windows.map(&pages[4], Duration::from_millis(1)).is_err());
        drop((held, ticket));
        let mut scratch = [0; 6000];
        PageCursorMut::new(&mut pages, 1, 9000).unwrap().copy_from(&mut windows, &scratch).unwrap();
        PageCursor::new(&pages, 1, 9000).unwrap().copy_to(&mut local, &mut scratch).unwrap();
        let mut cursor = PageCursor::new(&pages, 4000, 9000).unwrap();
        cursor.take(&mut windows, 300, &mut scratch, |_| ()).unwrap();
        drop(vmap(&pages).unwrap());
    });
    assert_eq!(none, 0);
}

#[test]
fn exceeding_the_maximum_warns_once_a_task() {
    static WARNED: AtomicU32 = AtomicU32::new(0);
    let warned = || WARNED.load(Ordering::Relaxed);
    let high = HighPool::new(3).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(3)).unwrap();
    let pages = [high.alloc().unwrap(), high.alloc().unwrap(), high.alloc().unwrap()];
    let count = |event: &Event<'_>| {
        if *event.metadata().level() == Level::WARN {
            WARNED.fetch_add(1, Ordering::Relaxed);
        }
    };
    events::watch(count, || {
        let task = windows.task("careless", 1).unwrap();
        let first = task.try_map(&pages[0]).unwrap();
        assert_eq!(warned(), 0);
        let second = task.try_map(&pages[1]).unwrap();
        assert_eq!(warned(), 1);
        drop(second);
        let more = [task.try_map(&pages[1]).unwrap(), task.try_map(&pages[2]).unwrap()];
        assert_eq!((warned(), task.overruns()), (1, 3));
        drop((first, more));
        drop(task);
        let again = windows.task("as careless", 1).unwrap();
        let first = again.try_map(&pages[0]).unwrap();
        let second = again.try_map(&pages[1]).unwrap();
        assert_eq!(warned(), 2);
        // A mapping that is forgotten keeps its window, and its task's entry; that is told too.
        std::mem::forget(first);
        drop(second);
        drop(again);
        assert_eq!((warned(), windows.usage().held, windows.usage().taken), (3, 1, 1));
    });
}
