//! Collections in reserve memory: maps and vectors behave as std's do, fail cleanly when memory or runs are
//! out, and give every frame back.
//!
//! Method: random operations on a hashbrown map, a vector and raw blocks of a [`ReserveHeap`], each beside
//! its std counterpart. Raw blocks are filled with a pattern that is checked at every move, so blocks that
//! overlap, or a copy that is too short, show. All fallible operations may fail, and then change nothing.

mod common;

use std::alloc::Layout;
use std::collections::BTreeMap;
use std::ptr::NonNull;

use allocator_api2::alloc::Allocator;
use allocator_api2::vec::Vec as HeapVec;
use common::cases;
use hashbrown::{DefaultHashBuilder, HashMap};
use netswap_reserve::{Gfp, HeapConfig, PAGE_SIZE, PagePool, PoolConfig, ReserveHeap, ReserveId};
use proptest::prelude::*;

const FRAMES: u32 = 192;
const RUN_FRAMES: u32 = 64;

#[derive(Clone, Debug)]
enum Op {
    Insert(u16, u32),
    Remove(u16),
    MapShrink,
    MapClear,
    Push(u16),
    Truncate(u16),
    VecShrink,
    Allocate(Size),
    Grow(usize, Size, bool),
    Shrink(usize, Size),
    Deallocate(usize),
    TakeMemory(u8),
    GiveMemory,
}

#[derive(Clone, Copy, Debug)]
struct Size(usize, u8);

impl Size {
    fn layout(self) -> Layout {
        Layout::from_size_align(self.0, 1 << self.1).unwrap()
    }
}

fn size() -> impl Strategy<Value = Size> {
    let bytes = prop_oneof![
        1 => Just(0usize),
        8 => 1..200usize,
        4 => 200..2100usize,
        3 => 2000..4200usize,
        2 => 4000..40_000usize,
    ];
    (bytes, prop_oneof![6 => 0..5u8, 1 => 5..15u8]).prop_map(|(bytes, align)| Size(bytes, align))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        20 => (0..400u16, any::<u32>()).prop_map(|(k, v)| Op::Insert(k, v)),
        8 => (0..400u16).prop_map(Op::Remove),
        1 => Just(Op::MapShrink),
        1 => Just(Op::MapClear),
        6 => (1..800u16).prop_map(Op::Push),
        3 => (0..900u16).prop_map(Op::Truncate),
        1 => Just(Op::VecShrink),
        10 => size().prop_map(Op::Allocate),
        6 => (0..100usize, size(), any::<bool>()).prop_map(|(i, s, z)| Op::Grow(i, s, z)),
        6 => (0..100usize, size()).prop_map(|(i, s)| Op::Shrink(i, s)),
        8 => (0..100usize).prop_map(Op::Deallocate),
        1 => (1..80u8).prop_map(Op::TakeMemory),
        1 => Just(Op::GiveMemory),
    ]
}

/// A block that is used directly, with the pattern that lies in it.
struct Block {
    at: NonNull<u8>,
    layout: Layout,
    mark: u8,
}

impl Block {
    fn fill(&self) {
        // SAFETY: the block has so many bytes and is this test's own.
        unsafe { self.at.write_bytes(self.mark, self.layout.size()) }
    }

    fn check(&self, bytes: usize) {
        // SAFETY: `fill` wrote so many bytes.
        let content = unsafe { std::slice::from_raw_parts(self.at.as_ptr(), bytes) };
        assert!(content.iter().all(|&b| b == self.mark), "somebody wrote over a block");
    }
}

fn take(block: NonNull<[u8]>, layout: Layout, mark: u8) -> Block {
    assert!(block.len() >= layout.size());
    assert_eq!(block.cast::<u8>().addr().get() % layout.align(), 0);
    Block { at: block.cast(), layout, mark }
}

fn run(ops: &[Op], magazine: u32, reserve_frames: u32) {
    let pool = PagePool::new(PoolConfig { magazine, headroom: 4, ..PoolConfig::new(FRAMES) });
    let reserve = pool.add_reserve(ReserveId::ROOT, "tables", reserve_frames);
    pool.connect(reserve).unwrap();
    let config = HeapConfig {
        run_frames: RUN_FRAMES,
        reserve: (reserve_frames > 0).then_some(reserve),
        ..HeapConfig::default()
    };
    let heap = ReserveHeap::new(&pool, config).unwrap();
    let free = pool.free_frames();
    assert_eq!(free, FRAMES - RUN_FRAMES);
    let mut map = HashMap::with_hasher_in(DefaultHashBuilder::default(), heap.clone());
    let mut std_map = BTreeMap::new();
    let mut vec: HeapVec<u64, ReserveHeap> = HeapVec::new_in(heap.clone());
    let mut std_vec: Vec<u64> = Vec::new();
    let mut blocks: Vec<Block> = Vec::new();
    let mut hog = Vec::new();
    let mut mark = 0u8;
    for op in ops {
        let failures = heap.usage().failures + heap.usage().run_failures;
        let failed = || heap.usage().failures + heap.usage().run_failures == failures + 1;
        match *op {
            Op::Insert(key, value) => {
                if map.try_reserve(1).is_ok() {
                    assert_eq!(map.insert(key, [value; 9]), std_map.insert(key, [value; 9]));
                } else {
                    assert!(failed());
                }
            }
            Op::Remove(key) => assert_eq!(map.remove(&key), std_map.remove(&key)),
            // A map that shrinks takes a new table first; without memory for it, hashbrown gives up.
            Op::MapShrink if hog.is_empty() && heap.usage().run_frames_used < 16 => {
                map.shrink_to_fit()
            }
            Op::MapShrink => {}
            Op::MapClear => {
                map.clear();
                std_map.clear();
            }
            Op::Push(n) => {
                if vec.try_reserve(n.into()).is_ok() {
                    let more = (0..u64::from(n)).map(|i| i * 31 + std_vec.len() as u64);
                    let more: Vec<u64> = more.collect();
                    vec.extend_from_slice(&more);
                    std_vec.extend_from_slice(&more);
                } else {
                    assert!(failed());
                }
            }
            Op::Truncate(n) => {
                vec.truncate(n.into());
                std_vec.truncate(n.into());
            }
            Op::VecShrink => vec.shrink_to_fit(),
            Op::Allocate(size) => {
                let layout = size.layout();
                mark = mark.wrapping_add(1);
                match heap.allocate(layout) {
                    Ok(block) => {
                        blocks.push(take(block, layout, mark));
                        blocks.last().unwrap().fill();
                    }
                    Err(_) => assert!(layout.size() > 0 && failed()),
                }
            }
            Op::Grow(i, size, zeroed) if !blocks.is_empty() => {
                let i = i % blocks.len();
                let old = &blocks[i];
                let bytes = old.layout.size().max(size.0);
                let layout = Layout::from_size_align(bytes, size.layout().align()).unwrap();
                // SAFETY: the block is the heap's, of this layout, and the new one is not smaller.
                let grown = unsafe {
                    match zeroed {
                        true => heap.grow_zeroed(old.at, old.layout, layout),
                        false => heap.grow(old.at, old.layout, layout),
                    }
                };
                let Ok(grown) = grown else {
                    assert!(failed());
                    old.check(old.layout.size());
                    continue;
                };
                let kept = old.layout.size();
                let new = take(grown, layout, old.mark);
                new.check(kept);
                if zeroed {
                    let rest = kept..bytes;
                    // SAFETY: the block has `bytes` bytes, all written.
                    let content = unsafe { std::slice::from_raw_parts(new.at.as_ptr(), bytes) };
                    assert!(content[rest].iter().all(|&b| b == 0));
                }
                new.fill();
                blocks[i] = new;
            }
            Op::Shrink(i, size) if !blocks.is_empty() => {
                let i = i % blocks.len();
                let old = &blocks[i];
                let bytes = old.layout.size().min(size.0);
                let layout = Layout::from_size_align(bytes, size.layout().align()).unwrap();
                // SAFETY: the block is the heap's, of this layout, and the new one is not larger.
                let Ok(block) = (unsafe { heap.shrink(old.at, old.layout, layout) }) else {
                    assert!(layout.align() > old.layout.align() && failed());
                    old.check(old.layout.size());
                    continue;
                };
                let new = take(block, layout, old.mark);
                new.check(bytes);
                blocks[i] = new;
            }
            Op::Deallocate(i) if !blocks.is_empty() => {
                let block = blocks.swap_remove(i % blocks.len());
                block.check(block.layout.size());
                // SAFETY: the block is the heap's, of this layout, and not used again.
                unsafe { heap.deallocate(block.at, block.layout) }
            }
            Op::Grow(..) | Op::Shrink(..) | Op::Deallocate(_) => {}
            Op::TakeMemory(n) => {
                hog.extend((0..n).map_while(|_| pool.alloc(Gfp::KERNEL).ok()));
            }
            Op::GiveMemory => hog.clear(),
        }
        assert_eq!(vec[..], std_vec[..]);
        assert_eq!(map.len(), std_map.len());
        // Every frame is where the heap says.
        let usage = heap.usage();
        let taken = usage.slab_pages + usage.whole_pages + hog.len() as u32;
        assert_eq!(pool.free_frames(), free - taken);
    }
    assert!(std_map.iter().all(|(key, value)| map.get(key) == Some(value)));
    for block in blocks {
        block.check(block.layout.size());
        // SAFETY: as above.
        unsafe { heap.deallocate(block.at, block.layout) }
    }
    drop((map, vec, hog));
    heap.shrink_caches();
    let usage = heap.usage();
    assert_eq!((usage.objects, usage.object_bytes, usage.cached), (0, 0, 0));
    assert_eq!((usage.slab_pages, usage.whole_pages, usage.run_frames_used), (0, 0, 0));
    assert_eq!(pool.free_frames(), free);
    assert_eq!(pool.reserve_usage(reserve), 0);
    drop(heap);
    assert_eq!(pool.free_frames(), FRAMES);
}

proptest! {
    #![proptest_config(cases(192))]

    #[test]
    fn collections_are_those_of_std(
        ops in prop::collection::vec(op(), 1..150),
        magazine in prop_oneof![Just(0u32), Just(8)],
        reserve in prop_oneof![Just(0u32), Just(12)],
    ) {
        run(&ops, magazine, reserve);
    }

    /// The estimate for known layouts is what they take, and the one for bytes never less.
    #[test]
    fn estimates_are_exact_and_never_under(
        sizes in prop::collection::vec(1..=PAGE_SIZE, 1..120),
        small in prop::collection::vec(1..100usize, 0..600),
        smallest in prop_oneof![Just(1usize), 1..400usize],
    ) {
        let sizes: Vec<usize> = sizes.into_iter().chain(small).map(|s| s.max(smallest)).collect();
        let layouts: Vec<Layout> = sizes.iter().map(|&s| Layout::from_size_align(s, 8).unwrap()).collect();
        let exact = ReserveHeap::estimate(layouts.iter().copied());
        let bound = ReserveHeap::estimate_pages_for_bytes(sizes.iter().sum(), smallest);
        let pool = PagePool::new(PoolConfig { magazine: 0, headroom: 0, ..PoolConfig::new(1024) });
        let reserve = pool.add_reserve(ReserveId::ROOT, "blocks", exact.pages);
        pool.connect(reserve).unwrap();
        let config = HeapConfig { reserve: Some(reserve), ..HeapConfig::default() };
        let heap = ReserveHeap::new(&pool, config).unwrap();
        let hog: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
        let blocks: Vec<_> = layouts.iter().map(|&l| heap.allocate(l).expect("estimated")).collect();
        prop_assert_eq!(pool.reserve_usage(reserve), exact.pages);
        prop_assert!(bound >= exact.pages, "{} pages, {} estimated by bytes", exact.pages, bound);
        for (block, layout) in blocks.into_iter().zip(layouts) {
            // SAFETY: the block is the heap's, of this layout, and not used again.
            unsafe { heap.deallocate(block.cast(), layout) }
        }
        prop_assert_eq!(pool.reserve_usage(reserve), 0);
        drop(hog);
    }
}

#[test]
fn a_vector_in_the_run_area_grows_and_shrinks_in_place() {
    let pool = PagePool::new(PoolConfig::new(256));
    let config = HeapConfig { run_frames: 16, ..HeapConfig::default() };
    let heap = ReserveHeap::new(&pool, config).unwrap();
    let mut vec: HeapVec<u8, ReserveHeap> = HeapVec::with_capacity_in(2 * PAGE_SIZE, heap.clone());
    vec.resize(2 * PAGE_SIZE, 7);
    let at = vec.as_ptr();
    vec.try_reserve_exact(14 * PAGE_SIZE).unwrap();
    assert_eq!((vec.as_ptr(), heap.usage().run_frames_used), (at, 16));
    assert!(vec.try_reserve_exact(14 * PAGE_SIZE + 1).is_err());
    assert_eq!(heap.usage().run_failures, 1);
    vec.shrink_to_fit();
    assert_eq!((vec.as_ptr(), heap.usage().run_frames_used), (at, 2));
    assert!(vec.iter().all(|&b| b == 7));
}

/// Blocks that are freed on another thread than the one that took them.
#[test]
fn blocks_travel_between_threads() {
    let pool = PagePool::new(PoolConfig::new(2048));
    let config = HeapConfig { run_frames: 128, ..HeapConfig::default() };
    let heap = ReserveHeap::new(&pool, config).unwrap();
    let (send, receive) = std::sync::mpsc::sync_channel::<HeapVec<u32, ReserveHeap>>(16);
    std::thread::scope(|s| {
        s.spawn(|| {
            for vec in receive {
                assert!(vec.iter().all(|&v| v as usize == vec.len()));
            }
        });
        for t in 0..2usize {
            let (heap, send) = (heap.clone(), send.clone());
            s.spawn(move || {
                for turn in 0..3_000usize {
                    let n = (turn * 37 + t * 11) % 1500 + 1;
                    let mut vec = HeapVec::new_in(heap.clone());
                    if vec.try_reserve_exact(n).is_ok() {
                        vec.resize(n, n as u32);
                        send.send(vec).unwrap();
                    }
                }
            });
        }
        drop(send);
    });
    heap.shrink_caches();
    let usage = heap.usage();
    assert_eq!((usage.objects, usage.slab_pages, usage.run_frames_used), (0, 0, 0));
}
