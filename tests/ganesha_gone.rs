//! Goal: a server that is gone for good has the outcome that its area's policy names: with retry everything waits, and
//! is right when there is a server again after all; with fail over page-outs go on in a second area; whoever touches
//! what only the dead server has gets a typed error within a deadline. A file that was removed, or replaced, while the
//! server was down ends its area as a whole.
//! Method: the pager over nfs-ganesha, killed with pages in its area, more pages than memory.

mod common;

use std::ops::Range;
use std::time::{Duration, Instant};

use common::ganesha::Ganesha;
use common::pager::RealPager;
use common::skip::or_skip;
use netswap::real::area::read_header_page;
use netswap::real::{OpenOptions, RealStore, StoreUrl, TransferError, fit_to_write};
use netswap::reserve::Span;
use netswap::swap::{
    AreaId, AreaOptions, AreaState, BackendState, FailurePolicy, Gone, PageError, StoreError,
};

const FRAMES: u32 = 160;
const PAGES: u32 = 400;
const SLOTS: u64 = 4096;
const REQUEST_TIMEOUT: Span = Span::from_secs(1);

/// A file of the export with the header of an area.
fn area(ganesha: &Ganesha) -> String {
    let url = ganesha.url("area0");
    let options = OpenOptions { create_bytes: Some(SLOTS << 12), ..OpenOptions::default() };
    let store: StoreUrl = url.parse().unwrap();
    let mut store = RealStore::open(&store, &options).unwrap();
    fit_to_write(&mut store, false).unwrap();
    store.shutdown();
    url
}

fn options(name: &str, priority: i16, on_failure: FailurePolicy) -> AreaOptions {
    AreaOptions { priority, on_failure, ..AreaOptions::new(name) }
}

fn write(world: &mut RealPager, pages: Range<u32>) {
    pages.for_each(|page| world.write(page).unwrap());
}

fn read(world: &mut RealPager, pages: Range<u32>) {
    pages.for_each(|page| world.read(page).unwrap());
}

/// Touches pages of an area whose server is gone until 4 touches have failed, each as it must and within a
/// deadline; the longest of them.
fn must_fail(world: &mut RealPager, area: AreaId, why: StoreError) -> Duration {
    let (mut failed, mut longest) = (0, Duration::ZERO);
    for page in 0..PAGES {
        let begun = Instant::now();
        match world.read(page) {
            Ok(()) => continue,
            Err(PageError::Store { place, error }) => {
                assert_eq!((place.area, error), (area, why));
            }
            Err(PageError::Poisoned { place, cause }) => {
                assert_eq!((place.area, cause), (area, Some(why)));
            }
            // It has failed, and there is no other to make room in.
            Err(PageError::AreaFailed { area: failed, error, .. }) => {
                assert_eq!((failed, error), (area, why));
            }
            Err(other) => panic!("{other}"),
        }
        longest = longest.max(begun.elapsed());
        failed += 1;
        if failed == 4 {
            assert!(longest < Duration::from_secs(10), "{longest:?}");
            return longest;
        }
    }
    panic!("{failed} touches failed");
}

#[test]
fn with_retry_everything_waits_and_nothing_is_lost() {
    let Some(mut ganesha) = or_skip(Ganesha::start("gone-retry")) else { return };
    let url = area(&ganesha);
    let mut world = RealPager::new(FRAMES, 2 * PAGES);
    let retry = FailurePolicy::Retry { first: Span::from_millis(10), max: Span::from_millis(200) };
    let id = world.area(&url, options("area0", 0, retry));
    write(&mut world, 0..PAGES);
    ganesha.kill();
    let before = world.pager.backend(id).stats().connections;
    world.events.clear();
    world.run_for(Duration::from_secs(2));
    assert_eq!(world.events, [], "nothing fails");
    assert_eq!(world.info(id).state, AreaState::On);
    assert_eq!(world.pager.backend(id).stats().connections, before, "nobody is there");
    ganesha.start_server().unwrap();
    let back = Instant::now();
    let ins = world.pager.stats().page_ins;
    let from_server = (0..PAGES).find(|page| {
        world.read(*page).unwrap();
        world.pager.stats().page_ins > ins
    });
    let resumed = back.elapsed();
    assert!(from_server.is_some());
    eprintln!("retry: a page came {resumed:?} after the server was there again");
    read(&mut world, 0..PAGES);
    write(&mut world, 0..PAGES);
    read(&mut world, 0..PAGES);
}

#[test]
fn with_fail_over_pages_go_to_the_second_area() {
    let Some(mut first) = or_skip(Ganesha::start("gone-first")) else { return };
    let Some(second) = or_skip(Ganesha::start("gone-second")) else { return };
    let (url, other_url) = (area(&first), area(&second));
    let mut world = RealPager::new(FRAMES, 2 * PAGES);
    let fail_over = FailurePolicy::FailOver { attempts: 2, backoff: Span::from_millis(50) };
    let bad = world.area(
        &url,
        AreaOptions { request_timeout: Some(REQUEST_TIMEOUT), ..options("first", 5, fail_over) },
    );
    let good = world.area(&other_url, options("second", 0, FailurePolicy::default()));
    write(&mut world, 0..PAGES);
    assert!(world.info(bad).used > 0 && world.info(good).used == 0);
    first.kill();
    let begun = Instant::now();
    // Pages that were never written: nothing has to be read for them, others have to go out.
    let fresh = PAGES..2 * PAGES;
    let mut given_up = None;
    for page in fresh.clone() {
        world.write(page).unwrap();
        if given_up.is_none() && world.info(bad).state == AreaState::Failed {
            given_up = Some(begun.elapsed());
        }
    }
    read(&mut world, fresh);
    let given_up = given_up.expect("the area failed");
    assert!(world.info(good).used > 0 && world.pager.stats().failed_over > 0);
    let longest = must_fail(&mut world, bad, StoreError::TimedOut);
    eprintln!(
        "fail over: the area was given up {given_up:?} after the kill, {} pages went elsewhere; a touch of \
         one that did not ended after {longest:?}",
        world.pager.stats().failed_over
    );
}

#[test]
fn with_a_deadline_a_touch_ends_in_a_typed_error() {
    let Some(mut ganesha) = or_skip(Ganesha::start("gone-error")) else { return };
    let url = area(&ganesha);
    for policy in [
        FailurePolicy::Poison,
        FailurePolicy::FailOver { attempts: 1, backoff: Span::from_millis(10) },
    ] {
        let mut world = RealPager::new(FRAMES, 2 * PAGES);
        let id = world.area(
            &url,
            AreaOptions { request_timeout: Some(REQUEST_TIMEOUT), ..options("area0", 0, policy) },
        );
        write(&mut world, 0..PAGES);
        ganesha.kill();
        let longest = must_fail(&mut world, id, StoreError::TimedOut);
        eprintln!("{policy:?}: the longest touch ended after {longest:?}");
        ganesha.start_server().unwrap();
    }
}

#[test]
fn a_file_that_is_gone_after_a_restart_ends_the_area() {
    let Some(mut ganesha) = or_skip(Ganesha::start("gone-file")) else { return };
    for how in [Gone::Removed, Gone::Replaced] {
        let url: StoreUrl = area(&ganesha).parse().unwrap();
        let mut store = RealStore::open(&url, &OpenOptions::default()).unwrap();
        let file = ganesha.export().join("area0");
        match how {
            Gone::Replaced => {
                // The old one lives on, so the new one cannot have its inode.
                std::fs::rename(&file, ganesha.export().join("old")).unwrap();
                std::fs::write(&file, [0; 1 << 16]).unwrap();
                std::fs::remove_file(ganesha.export().join("old")).unwrap();
            }
            _ => std::fs::remove_file(&file).unwrap(),
        }
        ganesha.kill();
        ganesha.start_server().unwrap();
        for _ in 0..3 {
            let begun = Instant::now();
            let error = read_header_page(&mut store).unwrap_err();
            let took = begun.elapsed();
            eprintln!("file gone: {error} after {took:?}");
            assert_eq!(error, TransferError::Store(StoreError::Gone { how }));
            assert!(took < Duration::from_secs(20));
        }
        assert_eq!(store.state(), BackendState::Failed(StoreError::Gone { how }));
        let _ = std::fs::remove_file(&file);
    }
}

#[test]
fn a_file_that_is_gone_under_the_pager_fails_the_area_whatever_its_policy() {
    let Some(mut ganesha) = or_skip(Ganesha::start("gone-pager")) else { return };
    for policy in [FailurePolicy::default(), FailurePolicy::Poison] {
        let url = area(&ganesha);
        let mut world = RealPager::new(FRAMES, 2 * PAGES);
        let id = world.area(&url, options("area0", 0, policy));
        write(&mut world, 0..PAGES);
        std::fs::remove_file(ganesha.export().join("area0")).unwrap();
        ganesha.kill();
        ganesha.start_server().unwrap();
        let longest = must_fail(&mut world, id, StoreError::Gone { how: Gone::Removed });
        assert_eq!(world.info(id).state, AreaState::Failed);
        eprintln!("file gone, {policy:?}: the longest touch ended after {longest:?}");
    }
}
