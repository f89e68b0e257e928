//! What a page, an object and an entitlement cost, on one thread: beside mimalloc's 4 KiB pair and its
//! 64-byte pair in the same run. Then what a second thread costs the first.
//!
//! Pin it: `taskset -c 1 cargo bench --bench reserve`; the last group, `threads`, pins itself.

use std::alloc::{GlobalAlloc, Layout};
use std::hint::black_box;
use std::mem::MaybeUninit;
use std::sync::Barrier;
use std::time::{Duration, Instant};

use allocator_api2::alloc::Allocator;
use criterion::{Criterion, criterion_group, criterion_main};
use mimalloc::MiMalloc;
use netswap_reserve::{
    EmergencyScope, Frame, Gfp, HeapConfig, Mempool, MempoolConfig, PagePool, PoolConfig,
    ReservationSpec, ReserveHeap, ReserveId, SlabBox, SlabCache, WaitGraph,
};
use rustix::thread::{CpuSet, sched_setaffinity};

fn pool(magazine: u32) -> PagePool {
    PagePool::new(PoolConfig { magazine, ..PoolConfig::new(4096) })
}

/// A pool whose ordinary memory is used up down to the atomic mark, with `net.rx` of 128 frames.
fn pool_at_the_floor() -> (PagePool, ReserveId, Vec<Frame>) {
    let pool = pool(0);
    let net = pool.add_reserve(ReserveId::ROOT, "net", 0);
    let rx = pool.add_reserve(net, "net.rx", 128);
    pool.connect(net).expect("the pool is empty");
    let rest = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    (pool, rx, rest)
}

fn pages(c: &mut Criterion) {
    let mut group = c.benchmark_group("page");
    let layout = Layout::from_size_align(4096, 4096).expect("a valid layout");
    group.bench_function("mimalloc 4 KiB pair", |b| {
        b.iter(|| {
            // SAFETY: a layout of non-zero size; freed once, with the same layout.
            unsafe {
                let p = black_box(MiMalloc.alloc(layout));
                MiMalloc.dealloc(p, layout);
            }
        })
    });
    let magazine = pool(32);
    group.bench_function("pool pair, magazine 32", |b| {
        b.iter(|| drop(black_box(magazine.alloc(Gfp::KERNEL))))
    });
    let exact = pool(0);
    group.bench_function("pool pair, exact", |b| {
        b.iter(|| drop(black_box(exact.alloc(Gfp::KERNEL))))
    });
    // 64 out at a time: more than a magazine holds, so this one pays for refills.
    let mut held: Vec<Frame> = Vec::with_capacity(64);
    group.bench_function("pool, magazine 32, 64 pages out and back", |b| {
        b.iter(|| {
            held.extend((0..64).map(|_| magazine.alloc(Gfp::KERNEL).expect("plenty")));
            held.clear();
        })
    });
    group.bench_function("page reference, shared and dropped", |b| {
        let page = exact.alloc(Gfp::KERNEL).expect("plenty").share();
        b.iter(|| drop(black_box(page.clone())))
    });
    let mut parked = Some(exact.alloc(Gfp::KERNEL).expect("plenty"));
    group.bench_function("park and unpark", |b| {
        b.iter(|| {
            let id = parked.take().expect("taken back below").park();
            parked = exact.unpark(black_box(id));
        })
    });
    group.finish();
}

fn emergency(c: &mut Criterion) {
    let mut group = c.benchmark_group("emergency");
    let (pool, rx, _rest) = pool_at_the_floor();
    group.bench_function("charged pair at the floor, three nodes deep", |b| {
        b.iter(|| drop(black_box(pool.alloc_from(Gfp::ATOMIC, rx))))
    });
    let mut burst: Vec<Frame> = Vec::with_capacity(32);
    group.bench_function("charged burst of 32 at the floor (whole burst)", |b| {
        b.iter(|| {
            pool.alloc_burst_from(Gfp::ATOMIC, rx, 32, |f| burst.push(f)).expect("128 promised");
            pool.free_burst(burst.drain(..));
        })
    });
    group.bench_function("scope enter and exit", |b| {
        b.iter(|| {
            let scope = EmergencyScope::enter(&pool, rx);
            // What runs inside may look at the pool; the guard itself stays in registers.
            black_box(&pool);
            drop(scope);
        })
    });
    group.bench_function("charge of an object", |b| b.iter(|| drop(black_box(pool.charge(rx, 1)))));
    // Promise 9: with memory plentiful a connected reserve costs an ordinary allocation nothing.
    let plenty = self::pool(0);
    let out = plenty.add_reserve(ReserveId::ROOT, "swap.out", 128);
    plenty.connect(out).expect("the pool is empty");
    group.bench_function("plenty: exact pair inside a scope", |b| {
        let _scope = EmergencyScope::enter(&plenty, out);
        b.iter(|| drop(black_box(plenty.alloc(Gfp::KERNEL))))
    });
    group.finish();
}

fn objects(c: &mut Criterion) {
    type Object = [u64; 8];
    type Bytes = MaybeUninit<Object>;
    let mut group = c.benchmark_group("object of 64 bytes");
    let layout = Layout::new::<Object>();
    group.bench_function("mimalloc pair", |b| {
        b.iter(|| {
            // SAFETY: a layout of non-zero size; freed once, with the same layout.
            unsafe {
                let p = black_box(MiMalloc.alloc(layout));
                MiMalloc.dealloc(p, layout);
            }
        })
    });
    let pool = pool(32);
    let cache = SlabCache::<Bytes>::new(&pool);
    group.bench_function("slab pair", |b| {
        b.iter(|| drop(black_box(cache.alloc(Gfp::KERNEL, MaybeUninit::uninit()).ok())))
    });
    group.bench_function("mimalloc pair, written", |b| {
        b.iter(|| {
            // SAFETY: as above; the block has room for an object.
            unsafe {
                let p = black_box(MiMalloc.alloc(layout));
                p.cast::<Object>().write([0; 8]);
                MiMalloc.dealloc(black_box(p), layout);
            }
        })
    });
    let written = SlabCache::<Object>::new(&pool);
    group.bench_function("slab pair, written", |b| {
        b.iter(|| drop(black_box(written.alloc(Gfp::KERNEL, [0; 8]).ok())))
    });
    let mut table = slab::Slab::<Object>::with_capacity(64);
    group.bench_function("crate slab, pair, written", |b| {
        b.iter(|| {
            let key = black_box(table.insert([0; 8]));
            table.remove(key)
        })
    });
    // 100 out at a time: more than a thread keeps, so these pay for the shared lists.
    let mut blocks = Vec::with_capacity(100);
    group.bench_function("mimalloc, 100 out and back", |b| {
        b.iter(|| {
            // SAFETY: a layout of non-zero size; each is freed once, with the same layout.
            unsafe {
                blocks.extend((0..100).map(|_| MiMalloc.alloc(layout)));
                blocks.drain(..).for_each(|p| MiMalloc.dealloc(p, layout));
            }
        })
    });
    let mut held = Vec::with_capacity(100);
    group.bench_function("slab, 100 out and back", |b| {
        b.iter(|| {
            held.extend((0..100).map(|_| cache.alloc(Gfp::KERNEL, MaybeUninit::uninit()).ok()));
            held.clear();
        })
    });
    let exact_pool = self::pool(0);
    let exact = SlabCache::<Bytes>::new(&exact_pool);
    let _other = exact.alloc(Gfp::KERNEL, MaybeUninit::uninit());
    group.bench_function("slab pair, exact counts", |b| {
        b.iter(|| drop(black_box(exact.alloc(Gfp::KERNEL, MaybeUninit::uninit()).ok())))
    });
    let mempool =
        Mempool::<Bytes>::new(&pool, MempoolConfig { min: 4, reserve: None }).expect("plenty");
    group.bench_function("mempool pair", |b| {
        b.iter(|| drop(black_box(mempool.alloc(Gfp::KERNEL, MaybeUninit::uninit()).ok())))
    });
    let heap = ReserveHeap::new(&pool, HeapConfig::default()).expect("plenty");
    group.bench_function("heap pair", |b| {
        b.iter(|| {
            let block = black_box(heap.allocate(layout).expect("plenty"));
            // SAFETY: the heap's block, of this layout, given up here.
            unsafe { heap.deallocate(block.cast(), layout) }
        })
    });
    group.finish();
}

fn explain(c: &mut Criterion) {
    use netswap_reserve::explain::NodeKind;
    c.bench_function("wait graph of 1,000 tasks, drawn and analysed", |b| {
        b.iter(|| {
            let mut g = WaitGraph::new();
            let reclaim = g.node("reclaim", NodeKind::Any);
            let frames = g.node("frames", NodeKind::Any);
            g.memory(frames);
            g.edge(reclaim, frames, "waits for a buffer", "");
            for i in 0..1_000 {
                let task = g.node(format!("task {i}"), NodeKind::Any);
                g.edge(task, reclaim, "waits for a frame", "");
                g.edge(frames, task, "held by its socket", "");
            }
            black_box(g.analyse())
        })
    });
}

/// Memory that cannot fail: reserved up front, beside allocations that loop until they succeed (what
/// `__GFP_NOFAIL` does) and plain ones. All with plenty of memory, where looping never loops.
fn reservation(c: &mut Criterion) {
    fn nofail_loop(pool: &PagePool) -> Frame {
        loop {
            if let Ok(frame) = pool.alloc(Gfp::KERNEL) {
                return frame;
            }
        }
    }
    let mut group = c.benchmark_group("reservation");
    let mut held: Vec<Frame> = Vec::with_capacity(64);
    for magazine in [32, 0] {
        let pool = pool(magazine);
        let name = |what| format!("{what}, magazine {magazine}");
        group.bench_function(name("64 plain pages"), |b| {
            b.iter(|| {
                held.extend((0..64).map(|_| pool.alloc(Gfp::KERNEL).expect("plenty")));
                held.clear();
            })
        });
        group.bench_function(name("64 looping pages"), |b| {
            b.iter(|| {
                held.extend((0..64).map(|_| nofail_loop(&pool)));
                held.clear();
            })
        });
        group.bench_function(name("64 reserved pages"), |b| {
            b.iter(|| {
                let mut all = pool.reserve(ReservationSpec::pages(64)).expect("plenty");
                held.extend((0..64).map(|_| all.page()));
                drop(all);
                held.clear();
            })
        });
    }
    let pool = pool(32);
    let cache = SlabCache::<[u64; 8]>::new(&pool);
    let mut objects: Vec<SlabBox<[u64; 8]>> = Vec::with_capacity(64);
    group.bench_function("64 plain objects", |b| {
        b.iter(|| {
            objects.extend((0..64).map(|_| cache.alloc(Gfp::KERNEL, [0; 8]).expect("plenty")));
            objects.clear();
        })
    });
    group.bench_function("64 reserved objects", |b| {
        b.iter(|| {
            let spec = ReservationSpec::pages(0).objects(&cache, 64);
            let mut all = pool.reserve(spec).expect("plenty");
            objects.extend((0..64).map(|_| all.object(&cache, [0; 8])));
            drop(all);
            objects.clear();
        })
    });
    group.finish();
}

/// Promise 9: with memory plentiful, a reserve that is connected and not used costs nothing measurable.
fn plenty(c: &mut Criterion) {
    let mut group = c.benchmark_group("plenty");
    for magazine in [32, 0] {
        for reserve in [false, true] {
            let pool = pool(magazine);
            let node = pool.add_reserve(ReserveId::ROOT, "swap.out", 128);
            if reserve {
                pool.connect(node).expect("the pool is empty");
            }
            let idle = if reserve { "a reserve idle" } else { "no reserve" };
            group.bench_function(format!("pair, magazine {magazine}, {idle}"), |b| {
                b.iter(|| drop(black_box(pool.alloc(Gfp::KERNEL))))
            });
        }
    }
    group.finish();
}

/// Calls `work` so many times on each of `threads` threads, kept to a processor each; the time of the slowest.
fn on_threads<S>(
    threads: usize,
    times: u64,
    start: impl Fn() -> S + Sync,
    work: impl Fn(&mut S) + Sync,
) -> Duration {
    let together = Barrier::new(threads);
    let one = |cpu: usize| {
        let mut set = CpuSet::new();
        set.set(cpu);
        // Where the machine has fewer processors the threads share them, as the figures then show.
        let _ = sched_setaffinity(None, &set);
        let mut state = start();
        together.wait();
        let began = Instant::now();
        for _ in 0..times {
            work(&mut state);
        }
        began.elapsed()
    };
    std::thread::scope(|s| {
        let one = &one;
        let running: Vec<_> = (0..threads).map(|cpu| s.spawn(move || one(cpu))).collect();
        running.into_iter().map(|t| t.join().expect("a thread of the benchmark")).max()
    })
    .expect("a thread at least")
}

/// What a second thread does to the first: time for the same work *each*, on one thread and on two. The
/// arithmetic loop shows what the machine itself can do. Not to be pinned from outside.
fn scaling(c: &mut Criterion) {
    let mut group = c.benchmark_group("threads");
    group.sample_size(60);
    for threads in [1, 2] {
        group.bench_function(format!("arithmetic, {threads}"), |b| {
            b.iter_custom(|n| {
                on_threads(
                    threads,
                    n,
                    || 1u64,
                    |x| {
                        // As long as a page pair takes: eight steps that wait for each other.
                        for _ in 0..8 {
                            *x = black_box(*x).wrapping_mul(6_364_136_223_846_793_005) ^ *x >> 29;
                        }
                    },
                )
            })
        });
        let magazine = pool(32);
        group.bench_function(format!("page pair, magazine 32, {threads}"), |b| {
            b.iter_custom(|n| {
                on_threads(threads, n, || (), |()| drop(black_box(magazine.alloc(Gfp::KERNEL))))
            })
        });
        let cache = SlabCache::<[u64; 8]>::new(&magazine);
        group.bench_function(format!("slab pair, {threads}"), |b| {
            b.iter_custom(|n| {
                on_threads(
                    threads,
                    n,
                    || (),
                    |()| drop(black_box(cache.alloc(Gfp::KERNEL, [0; 8]))),
                )
            })
        });
        let exact = pool(0);
        group.bench_function(format!("page pair, exact, {threads}"), |b| {
            b.iter_custom(|n| {
                on_threads(threads, n, || (), |()| drop(black_box(exact.alloc(Gfp::KERNEL))))
            })
        });
        let layout = Layout::from_size_align(4096, 4096).expect("a valid layout");
        group.bench_function(format!("mimalloc 4 KiB pair, {threads}"), |b| {
            b.iter_custom(|n| {
                on_threads(
                    threads,
                    n,
                    || (),
                    |()| {
                        // SAFETY: a layout of non-zero size; freed once, with the same layout.
                        unsafe {
                            let p = black_box(MiMalloc.alloc(layout));
                            MiMalloc.dealloc(p, layout);
                        }
                    },
                )
            })
        });
    }
}

criterion_group!(benches, pages, emergency, objects, explain, reservation, plenty, scaling);
criterion_main!(benches);
