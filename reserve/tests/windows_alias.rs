//! Two addresses of one page on virtually and physically indexed caches: which flush and which
//! invalidation are needed, and that the checker tells exactly the reads that are stale.
//!
//! Method: the loop that fills a page vector through the direct mapping and reads it through a range
//! that was mapped once, outside; with all four combinations of flush and invalidation, on both caches.
//! Then random operations beside a naive cache that keeps real bytes, where each write writes a value of its
//! own: the model calls a read stale if and only if the bytes are.

use std::collections::HashMap;

use netswap_reserve::PAGE_SIZE;
use netswap_reserve::windows::alias::{AliasModel, Cache, LINE_BYTES, Missing, StaleRead, Via};
use proptest::prelude::*;

const PAGES: usize = 3;
const BYTES: usize = PAGES * PAGE_SIZE;

#[derive(Clone, Copy, PartialEq)]
enum When {
    Never,
    Once,
    EachTime,
}

/// The loop of a directory that is read reply by reply. Fails in the round it says.
fn rounds(mut model: AliasModel, flush: bool, invalidate: When) -> Result<(), (u32, StaleRead)> {
    for round in 0..4 {
        for page in 0..PAGES {
            model.write_direct(page * PAGE_SIZE..page * PAGE_SIZE + 3000);
            if flush {
                model.flush_kernel_dcache_page(page);
            }
        }
        if invalidate == When::EachTime || invalidate == When::Once && round == 0 {
            model.invalidate_kernel_vmap_range(0..BYTES);
        }
        model.read_range(0..BYTES).map_err(|stale| (round, stale))?;
    }
    Ok(())
}

#[test]
fn on_a_virtually_indexed_cache_exactly_flush_and_invalidate_is_clean() {
    let run = |flush, invalidate| rounds(AliasModel::new(Cache::Vivt, PAGES), flush, invalidate);
    assert_eq!(run(true, When::EachTime), Ok(()));
    // Without the flush the first read of all is stale already.
    let (round, stale) = run(false, When::EachTime).unwrap_err();
    assert_eq!((round, stale.missing), (0, Missing::Flush));
    let (round, stale) = run(false, When::Never).unwrap_err();
    assert_eq!((round, stale.missing), (0, Missing::Flush));
    // Without the invalidation the new range has no lines yet: the second one is.
    let (round, stale) = run(true, When::Never).unwrap_err();
    assert_eq!((round, stale.missing), (1, Missing::Invalidate));
    assert_eq!((stale.via, stale.page, stale.line), (Via::Range, 0, 0));
    assert_eq!((stale.found, stale.latest), (1, 4));
    let told = "stale read through the range: page 0 line 0 is of write 1, not 4; the reader's address \
                was not invalidated";
    assert_eq!(stale.to_string(), told);
}

#[test]
fn on_a_physically_indexed_cache_all_four_are_clean() {
    for flush in [false, true] {
        for invalidate in [When::Never, When::Once, When::EachTime] {
            assert_eq!(rounds(AliasModel::new(Cache::Pipt, PAGES), flush, invalidate), Ok(()));
            let speculative = AliasModel::new(Cache::Pipt, PAGES).speculative();
            assert_eq!(rounds(speculative, flush, invalidate), Ok(()));
        }
    }
}

#[test]
fn invalidating_once_instead_of_before_each_read_is_caught() {
    let caught = rounds(AliasModel::new(Cache::Vivt, PAGES), true, When::Once);
    let (round, stale) = caught.unwrap_err();
    assert_eq!((round, stale.missing), (1, Missing::Invalidate));
}

#[test]
fn invalidating_before_the_flush_is_right_by_luck_only() {
    for (speculative, flush_first) in [(false, false), (false, true), (true, false), (true, true)] {
        let mut model = AliasModel::new(Cache::Vivt, 1);
        if speculative {
            model = model.speculative();
        }
        model.write_direct(0..100);
        if flush_first {
            model.flush_kernel_dcache_page(0);
        }
        model.invalidate_kernel_vmap_range(0..PAGE_SIZE);
        if !flush_first {
            model.flush_kernel_dcache_page(0);
        }
        let read = model.read_range(0..PAGE_SIZE);
        // A prefetcher may fetch what is not flushed yet.
        let caught = read.map_err(|stale| stale.missing);
        let want = if speculative && !flush_first { Err(Missing::Invalidate) } else { Ok(()) };
        assert_eq!(caught, want);
    }
}

#[test]
fn the_page_and_the_line_that_were_forgotten_are_told() {
    let mut model = AliasModel::new(Cache::Vivt, PAGES);
    model.read_range(0..BYTES).unwrap();
    model.write_direct(PAGE_SIZE + 200..PAGE_SIZE + 201);
    let stale = model.read_range(0..BYTES).unwrap_err();
    assert_eq!((stale.page, stale.line, stale.missing), (1, 3, Missing::Both));
    // What is read beside it is right.
    model.read_range(0..PAGE_SIZE + 192).unwrap();
    model.read_range(PAGE_SIZE + 256..BYTES).unwrap();
}

#[derive(Clone, Debug)]
enum Op {
    Write(Via, usize, usize),
    Read(Via, usize, usize),
    FlushPage(usize),
    FlushRange(usize, usize),
    Invalidate(usize, usize),
}

fn op() -> impl Strategy<Value = Op> {
    let via = prop_oneof![3 => Just(Via::Direct), 1 => Just(Via::Range)];
    // Whole lines: what a line keeps of an older write is not the checker's subject.
    let lines = BYTES / LINE_BYTES;
    let stretch = (0..lines, 1..4usize)
        .prop_map(move |(at, n)| (at * LINE_BYTES, (at + n).min(lines) * LINE_BYTES));
    prop_oneof![
        4 => (via.clone(), stretch.clone()).prop_map(|(v, (a, b))| Op::Write(v, a, b)),
        4 => (via, stretch.clone()).prop_map(|(v, (a, b))| Op::Read(v, a, b)),
        2 => (0..PAGES).prop_map(Op::FlushPage),
        1 => stretch.clone().prop_map(|(a, b)| Op::FlushRange(a, b)),
        2 => stretch.prop_map(|(a, b)| Op::Invalidate(a, b)),
    ]
}

/// A cache that keeps bytes: lines by virtual address (VIVT) or by physical address (PIPT).
struct Naive {
    cache: Cache,
    memory: Vec<u8>,
    truth: Vec<u8>,
    lines: HashMap<(bool, usize), (u8, bool)>,
}

impl Naive {
    fn key(&self, via: Via, line: usize) -> (bool, usize) {
        (self.cache == Cache::Vivt && via == Via::Range, line)
    }

    fn drop_line(&mut self, key: (bool, usize), write_back: bool) {
        if let Some((byte, true)) = self.lines.remove(&key)
            && write_back
        {
            self.memory[key.1] = byte;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        cases: 256,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(0xa11a5),
        ..ProptestConfig::default()
    })]

    #[test]
    fn a_read_is_called_stale_if_and_only_if_its_bytes_are(
        cache in prop_oneof![3 => Just(Cache::Vivt), 1 => Just(Cache::Pipt)],
        ops in proptest::collection::vec(op(), 1..200),
    ) {
        let mut model = AliasModel::new(cache, PAGES);
        let lines = BYTES / LINE_BYTES;
        let (memory, truth) = (vec![0; lines], vec![0; lines]);
        let mut naive = Naive { cache, memory, truth, lines: HashMap::new() };
        for (value, op) in (1u8..).zip(ops) {
            match op {
                Op::Write(via, a, b) => {
                    match via {
                        Via::Direct => model.write_direct(a..b),
                        Via::Range => model.write_range(a..b),
                    }
                    for line in a / LINE_BYTES..b / LINE_BYTES {
                        naive.truth[line] = value;
                        naive.lines.insert(naive.key(via, line), (value, true));
                    }
                }
                Op::Read(via, a, b) => {
                    let read = match via {
                        Via::Direct => model.read_direct(a..b),
                        Via::Range => model.read_range(a..b),
                    };
                    let mut first = None;
                    for line in a / LINE_BYTES..b / LINE_BYTES {
                        let key = naive.key(via, line);
                        let memory = naive.memory[line];
                        let (byte, _) = *naive.lines.entry(key).or_insert((memory, false));
                        if byte != naive.truth[line] {
                            first = Some((line * LINE_BYTES / PAGE_SIZE, line % 64));
                            break;
                        }
                    }
                    prop_assert_eq!(read.err().map(|stale| (stale.page, stale.line)), first);
                }
                Op::FlushPage(page) => {
                    model.flush_kernel_dcache_page(page);
                    for line in page * 64..(page + 1) * 64 {
                        naive.drop_line(naive.key(Via::Direct, line), true);
                    }
                }
                Op::FlushRange(a, b) => {
                    model.flush_kernel_vmap_range(a..b);
                    for line in a / LINE_BYTES..b / LINE_BYTES {
                        naive.drop_line(naive.key(Via::Range, line), true);
                    }
                }
                Op::Invalidate(a, b) => {
                    model.invalidate_kernel_vmap_range(a..b);
                    if cache == Cache::Vivt {
                        for line in a / LINE_BYTES..b / LINE_BYTES {
                            naive.drop_line(naive.key(Via::Range, line), false);
                        }
                    }
                }
            }
        }
    }
}
