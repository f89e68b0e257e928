//! What a mapping costs: hit, miss, wrap, with and without a task's reservation, beside the bare system
//! call and a low page in the same run.
//!
//! Pin it: `taskset -c 1 cargo bench --bench windows`.

use std::hint::black_box;
use std::time::{Duration, Instant};

use criterion::{BenchmarkGroup, Criterion, criterion_group, criterion_main};
use netswap_reserve::windows::{
    HighPage, HighPool, LocalWindows, MapWindows, Mapped, PageCursor, TaskWindows, WindowsConfig,
    vmap,
};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig};
use rustix::fs::{MemfdFlags, fallocate, ftruncate, memfd_create};
use rustix::mm::{MapFlags, ProtFlags, mmap, mmap_anonymous, munmap};

/// The kernel's `LAST_PKMAP`.
const WINDOWS: u32 = 1024;
/// Twice as many, so that going round maps each of them anew.
const PAGES: u32 = 2 * WINDOWS;

type Group<'a> = BenchmarkGroup<'a, criterion::measurement::WallTime>;

fn world(reservation: bool) -> (MapWindows, Vec<HighPage>) {
    let high = HighPool::new(PAGES).expect("a memfd");
    let config = WindowsConfig { reservation, ..WindowsConfig::new(WINDOWS) };
    let windows = MapWindows::new(&high, config).expect("address space");
    let pages = std::iter::from_fn(|| high.alloc().ok()).collect();
    (windows, pages)
}

/// Maps, shows the address to the world, unmaps.
fn pair<'a>(group: &mut Group<'_>, name: &str, mut map: impl FnMut() -> Mapped<'a>) {
    group.bench_function(name, |b| {
        b.iter(|| {
            black_box(map().as_ptr());
        })
    });
}

fn hits(c: &mut Criterion) {
    let mut group = c.benchmark_group("window hit");
    let (windows, pages) = world(true);
    let pool = PagePool::new(PoolConfig::new(256));
    let low = pool.alloc(Gfp::KERNEL).expect("plenty");
    pair(&mut group, "low page", || windows.try_map(black_box(&low)).expect("always"));
    pair(&mut group, "high page", || windows.try_map(black_box(&pages[0])).expect("room"));
    let wait = Duration::from_secs(1);
    pair(&mut group, "high page, may wait", || windows.map(&pages[0], wait).expect("room"));
    let task = windows.task("one", 3).expect("room");
    pair(&mut group, "task, first mapping: takes and gives back 3", || {
        task.try_map(black_box(&pages[0])).expect("room")
    });
    let first = task.try_map(&pages[1]).expect("room");
    pair(&mut group, "task, a later mapping", || {
        task.try_map(black_box(&pages[0])).expect("promised")
    });
    drop(first);
    let (plain, of_plain) = world(false);
    let task = plain.task("one", 3).expect("room");
    pair(&mut group, "task, no reservation (ablation)", || {
        task.try_map(black_box(&of_plain[0])).expect("room")
    });
    let three = |task: &TaskWindows, pages: &[HighPage]| {
        let map = |k: usize| task.try_map(&pages[k]).expect("room");
        let (one, two, three) = (map(0), map(1), map(2));
        black_box((one.as_ptr(), two.as_ptr(), three.as_ptr()));
    };
    group.bench_function("three at a time, no reservation (ablation)", |b| {
        b.iter(|| three(&task, black_box(&of_plain)))
    });
    let task = windows.task("three", 3).expect("room");
    group.bench_function("three at a time, reserved", |b| {
        b.iter(|| three(&task, black_box(&pages)))
    });
    let high = HighPool::new(1).expect("a memfd");
    let page = high.alloc().expect("one");
    let mut local = LocalWindows::new(&high, 4).expect("address space");
    group.bench_function("local window", |b| {
        b.iter(|| {
            black_box(local.map(black_box(&page)).expect("room").as_ptr());
        })
    });
    group.finish();
}

/// The system call alone: one page of a memfd after the other, at one address after the other.
fn raw(group: &mut Group<'_>) {
    let file = memfd_create("raw", MemfdFlags::CLOEXEC).expect("a memfd");
    let bytes = PAGES as usize * PAGE_SIZE;
    ftruncate(&file, bytes as u64).expect("room");
    fallocate(&file, rustix::fs::FallocateFlags::empty(), 0, bytes as u64).expect("memory");
    let prot = ProtFlags::READ | ProtFlags::WRITE;
    let len = WINDOWS as usize * PAGE_SIZE;
    let reserve = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // SAFETY: a fresh mapping replaces nothing.
    let base = unsafe { mmap_anonymous(std::ptr::null_mut(), len, ProtFlags::empty(), reserve) };
    let base = base.expect("address space");
    for (name, populate) in [
        ("mmap call alone, page tables filled", MapFlags::POPULATE),
        ("mmap call alone, page tables not filled", MapFlags::empty()),
    ] {
        let mut at = 0usize;
        let clear = |at: usize| {
            if at.is_multiple_of(WINDOWS as usize) {
                // SAFETY: the range is ours, and nobody uses what is mapped there.
                let cleared = unsafe {
                    mmap_anonymous(base, len, ProtFlags::empty(), reserve | MapFlags::FIXED)
                };
                cleared.expect("room");
            }
        };
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    clear(at);
                    let start = Instant::now();
                    // SAFETY: inside the range that is ours; nobody uses what is mapped there.
                    let mapped = unsafe {
                        mmap(
                            base.byte_add(at % WINDOWS as usize * PAGE_SIZE),
                            PAGE_SIZE,
                            prot,
                            MapFlags::SHARED | MapFlags::FIXED | populate,
                            &file,
                            (at % PAGES as usize * PAGE_SIZE) as u64,
                        )
                    };
                    spent += start.elapsed();
                    mapped.expect("room");
                    at += 1;
                }
                spent
            })
        });
    }
    // SAFETY: the range is ours, and nobody uses what is mapped there.
    unsafe { munmap(base, len) }.expect("mapped above");
}

fn misses(c: &mut Criterion) {
    let mut group = c.benchmark_group("window miss");
    raw(&mut group);
    group.bench_function("reading the clock, which the calls alone include", |b| {
        b.iter(|| black_box(Instant::now()).elapsed())
    });
    let (windows, pages) = world(true);
    let mut round = pages.iter().cycle();
    pair(&mut group, "miss, its share of a wrap of 1024 included", || {
        windows.try_map(round.next().expect("endless")).expect("room")
    });
    let task = windows.task("one", 3).expect("room");
    pair(&mut group, "miss in a task, first mapping, wrap included", || {
        task.try_map(round.next().expect("endless")).expect("room")
    });
    let counters = windows.counters();
    assert_eq!(counters.hits, 0, "every mapping was a miss");
    assert!(counters.clear_calls == counters.wraps);

    // The one mapping in 1,024 that finds no free window; with `held` others kept across it.
    for (name, held) in [("wrap, 1024 idle", 0), ("wrap, every 32nd of 1024 held", 32)] {
        let (windows, pages) = world(true);
        let mut at = 0;
        group.bench_function(name, |b| {
            b.iter_custom(|iterations| {
                let mut spent = Duration::ZERO;
                for _ in 0..iterations {
                    let before = windows.counters().wraps;
                    let mut kept: Vec<Mapped<'_>> = Vec::new();
                    let mut next = || {
                        at = (at + 1) % pages.len();
                        (at, windows.try_map(&pages[at]).expect("room"))
                    };
                    // From one wrap to just before the next one.
                    while windows.usage().idle + windows.usage().held < WINDOWS {
                        let (at, mapped) = next();
                        if held > 0 && at % held == 0 {
                            kept.push(mapped);
                        }
                    }
                    let start = Instant::now();
                    let (_, mapped) = next();
                    spent += start.elapsed();
                    assert_eq!(windows.counters().wraps, before + 1);
                    drop(kept);
                    drop(mapped);
                }
                spent
            })
        });
    }

    let high = HighPool::new(2).expect("a memfd");
    let both = [high.alloc().expect("two"), high.alloc().expect("two")];
    let mut local = LocalWindows::new(&high, 1).expect("address space");
    let mut turn = both.iter().cycle();
    group.bench_function("local window, miss", |b| {
        b.iter(|| drop(black_box(local.map(turn.next().expect("endless")).expect("room"))))
    });
    group.finish();
}

fn vectors(c: &mut Criterion) {
    let mut group = c.benchmark_group("page vector of 16");
    let (mut windows, pages) = world(true);
    let near = &pages[..16];
    let apart: Vec<&HighPage> = pages.iter().step_by(3).take(16).collect();
    group.bench_function("vmap, neighbours in the file", |b| {
        b.iter(|| drop(black_box(vmap(black_box(near)).expect("room"))))
    });
    group.bench_function("vmap, apart in the file", |b| {
        b.iter(|| drop(black_box(vmap(black_box(&apart)).expect("room"))))
    });
    let mut records = |b: &mut criterion::Bencher<'_>, len: usize| {
        let mut scratch = [0; 512];
        b.iter(|| {
            let mut cursor = PageCursor::new(near, 0, 16 * PAGE_SIZE).expect("16 pages");
            let mut sum = 0u64;
            while cursor.remaining() >= len {
                let first = |record: &[u8]| u64::from(record[0]);
                sum += cursor.take(&mut windows, len, &mut scratch, first).expect("room");
            }
            sum
        })
    };
    group.bench_function("cursor, 65536 bytes as records of 200", |b| records(b, 200));
    group.bench_function("vmap and the same records", |b| {
        b.iter(|| {
            let range = vmap(black_box(near)).expect("room");
            range.chunks_exact(200).map(|record| u64::from(record[0])).sum::<u64>()
        })
    });
    group.finish();
}

criterion_group!(benches, hits, misses, vectors);
criterion_main!(benches);
