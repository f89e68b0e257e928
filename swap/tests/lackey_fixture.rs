//! Goal: the trace of a real program, as it lies in the repository, is read whole and right.
//!
//! Method: `tests/data/perl-sort.lackey.zst` is read, and what it holds compared with figures that
//! a few lines of Python, which share nothing with the reader, counted in the same text. `tests/data/README.md` says how it was made.

use std::collections::BTreeMap;
use std::path::PathBuf;

use netswap_swap::lackey::{self, AccessKind, TraceError};

/// Accesses in the trace, by kind.
const FETCHES: u64 = 1_918_132;
const LOADS: u64 = 433_059;
const STORES: u64 = 321_694;
const MODIFIES: u64 = 7_830;
const ACCESSES: u64 = FETCHES + LOADS + STORES + MODIFIES;
/// Accesses that touch two pages.
const STRADDLING: u64 = 1_241;
/// Lines that valgrind wrote about itself.
const CHATTER: u64 = 25;
/// Distinct pages: in all, fetched from, written to.
const PAGES: usize = 639;
const PAGES_FETCHED: usize = 299;
const PAGES_WRITTEN: usize = 150;
/// What folding leaves.
const PAGE_ACCESSES: u64 = 521_048;

fn fixture() -> PathBuf {
    PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/data/perl-sort.lackey.zst"))
}

#[test]
fn the_fixture_holds_what_was_counted_in_it() -> Result<(), TraceError> {
    let mut trace = lackey::open(&fixture())?;
    assert!(trace.is_compressed());
    let mut touches = 0;
    let mut pages: BTreeMap<u64, (bool, bool)> = BTreeMap::new();
    for access in trace.by_ref() {
        let access = access?;
        touches += u64::from(access.count);
        let (fetched, written) = pages.entry(access.vpn).or_default();
        *fetched |= access.kind == AccessKind::Fetch;
        *written |= access.kind.is_write();
    }
    assert_eq!(pages.len(), PAGES);
    assert_eq!(pages.values().filter(|(fetched, _)| *fetched).count(), PAGES_FETCHED);
    assert_eq!(pages.values().filter(|(_, written)| *written).count(), PAGES_WRITTEN);
    assert!(pages.values().all(|(fetched, written)| !(fetched & written)), "text stays clean");

    let stats = trace.stats();
    assert_eq!((stats.accesses, stats.straddling), (ACCESSES, STRADDLING));
    assert_eq!(touches, ACCESSES + STRADDLING);
    assert_eq!((stats.chatter, stats.superblocks, stats.malformed), (CHATTER, 0, 0));
    assert_eq!(stats.lines, ACCESSES + CHATTER);
    assert_eq!(stats.page_accesses, PAGE_ACCESSES);
    Ok(())
}

/// The text pages, the heap and the stack are three places: a trace that lacks one is no test of a
/// pager.
#[test]
fn the_fixture_has_text_heap_and_stack() -> Result<(), TraceError> {
    let (mut text, mut heap, mut stack) = (0, 0, 0);
    for access in lackey::open(&fixture())? {
        let access = access?;
        match access.vpn {
            // The program itself is linked to 0x108000, its heap follows, its libraries and what
            // it maps are at 0x4000000, its stack ends at page 0x1fff000: valgrind's layout.
            0x01ff_e000..=0x01ff_f000 => stack += 1,
            _ if access.kind == AccessKind::Fetch => text += 1,
            _ if access.kind.is_write() => heap += 1,
            _ => {}
        }
    }
    assert!(text > 10_000 && heap > 10_000 && stack > 10_000, "{text} {heap} {stack}");
    Ok(())
}
