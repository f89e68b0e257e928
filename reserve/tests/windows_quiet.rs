//! Mapping makes no heap allocation, and a task that maps more than it declared is warned of once.
//!
//! Method: this binary's own allocator counts, for the thread that asks, and is first shown to catch a
//! planted allocation. A subscriber of its own counts warnings.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use netswap_reserve::windows::{
    HighPage, HighPool, LocalWindows, MapWindows, PageCursor, PageCursorMut, WindowsConfig, vmap,
};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Level, Metadata, Subscriber};

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: everything is passed on to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // Not counted while a thread ends, when the counter is gone.
        let _ = ALLOCATIONS.try_with(|n| n.set(n.get() + 1));
        // SAFETY: the caller's layout, passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: allocated by `alloc` above, so by the system, with this layout.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static HEAP: Counting = Counting;

fn allocations(work: impl FnOnce()) -> u64 {
    let before = ALLOCATIONS.get();
    work();
    ALLOCATIONS.get() - before
}

#[test]
fn mapping_waiting_and_copying_make_no_heap_allocation() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1, "a planted one");

    let high = HighPool::new(8).unwrap();
    let mut windows = MapWindows::new(&high, WindowsConfig::new(3)).unwrap();
    let mut local = LocalWindows::new(&high, 2).unwrap();
    let task = windows.task("t", 2).unwrap();
    let mut pages: Vec<HighPage> = (0..7).map(|_| high.alloc().unwrap()).collect();
    let none = allocations(|| {
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

struct Warnings(&'static AtomicU32);

impl Subscriber for Warnings {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }
    fn new_span(&self, _: &Attributes<'_>) -> Id {
        Id::from_u64(1)
    }
    fn record(&self, _: &Id, _: &Record<'_>) {}
    fn record_follows_from(&self, _: &Id, _: &Id) {}
    fn event(&self, event: &Event<'_>) {
        if *event.metadata().level() == Level::WARN {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }
    fn enter(&self, _: &Id) {}
    fn exit(&self, _: &Id) {}
}

#[test]
fn exceeding_the_maximum_warns_once_a_task() {
    static WARNED: AtomicU32 = AtomicU32::new(0);
    let warned = || WARNED.load(Ordering::Relaxed);
    let high = HighPool::new(3).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(3)).unwrap();
    let pages = [high.alloc().unwrap(), high.alloc().unwrap(), high.alloc().unwrap()];
    tracing::subscriber::with_default(Warnings(&WARNED), || {
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
