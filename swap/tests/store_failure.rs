//! Goal: each failure policy does what it says. Method: a store that fails on order.

mod common;

use common::World;
use netswap_reserve::Span;
use netswap_swap::*;

fn fail_over() -> FailurePolicy {
    FailurePolicy::FailOver { attempts: 3, backoff: Span::from_millis(5) }
}

fn options(name: &str, priority: i16, on_failure: FailurePolicy) -> AreaOptions {
    AreaOptions { priority, on_failure, ..AreaOptions::new(name) }
}

#[test]
fn retry_outlasts_a_failure_of_any_length_without_losing_a_page() {
    let mut world = World::new(128, 1, 1000);
    let id = world.area(MemBackend::formatted(600), AreaOptions::new("area0"));
    let range = world.map(400);
    world.pager.backend_mut(id).fail_next(Op::Write, StoreError::Io, 500);
    world.write_all(&range);
    world.pager.backend_mut(id).fail_next(Op::Read, StoreError::Refused { code: 5 }, 50);
    world.read_all(&range);
    assert!(world.pager.stats().retries > 50);
    assert!(world.now.as_secs_f64() > 10.0, "it waited in between");
    world.finish();
}

#[test]
fn a_page_whose_write_is_backing_off_is_given_back_at_a_touch() {
    let mut world = World::new(128, 1, 1000);
    let id = world.area(MemBackend::formatted(600), AreaOptions::new("area0"));
    world.pager.backend_mut(id).fail_next(Op::Write, StoreError::Io, u32::MAX);
    let range = world.map(108);
    for page in range.start.0..range.end.0 {
        world.touch(0, PageId(page), Some(5));
    }
    world.poll();
    assert!(world.pager.writeback_pages() > 0);
    let out = (range.start.0..range.end.0).find(|page| world.pager.page(PageId(*page)).is_none());
    assert_eq!(world.touch(0, PageId(out.unwrap()), None), Fault::Done);
    assert_eq!(world.pager.stats().writes_taken_back, 1);
    world.finish();
}

#[test]
fn fail_over_moves_pages_to_another_area_and_tells_once() {
    let mut world = World::new(128, 1, 1000);
    let bad = world.area(MemBackend::formatted(600), options("bad", 9, fail_over()));
    let good = world.area(MemBackend::formatted(600), AreaOptions::new("good"));
    world.pager.backend_mut(bad).fail_next(Op::Write, StoreError::Io, u32::MAX);
    world.events.clear();
    let range = world.map(400);
    world.write_all(&range);
    world.read_all(&range);
    assert_eq!(world.events, [PagerEvent::AreaFailed { area: bad, error: StoreError::Io }]);
    assert_eq!(world.info(bad).state, AreaState::Failed);
    assert_eq!(world.info(bad).used, 0);
    assert!(world.info(good).used > 200 && world.pager.stats().failed_over > 0);
    world.finish();
}

const GONE: StoreError = StoreError::Gone { how: Gone::Removed };

#[test]
fn a_store_that_fails_as_a_whole_ends_every_wait_whatever_the_policy() {
    for policy in [FailurePolicy::default(), fail_over(), FailurePolicy::Poison] {
        let mut world = World::new(128, 1, 1000);
        let latency = Span::from_millis(1);
        let backend = MemBackend::formatted(600).with_latency(latency, latency);
        let bad = world.area(backend, options("bad", 9, policy));
        let good = world.area(MemBackend::formatted(900), AreaOptions::new("good"));
        let range = world.map(400);
        world.write_all(&range);
        world.settle();
        // Writes are with the store, and more wait for it.
        let more = world.map(100);
        for page in more.start.0..more.end.0 {
            let stamp = world.fresh_stamp();
            if world.touch(0, PageId(page), Some(stamp)) == Fault::Waits {
                break;
            }
        }
        assert!(world.pager.writeback_pages() > 0 && world.info(good).used == 0);
        world.events.clear();
        world.pager.backend_mut(bad).fail(GONE);
        world.settle();
        assert_eq!(world.events, [PagerEvent::AreaFailed { area: bad, error: GONE }]);
        assert_eq!(world.info(bad).state, AreaState::Failed);
        assert_eq!(world.pager.writeback_pages(), 0);
        assert_eq!(world.pager.stats().poisoned_pages > 0, policy == FailurePolicy::Poison);
        // Each page is there as it was, or has its error, at once; then it can be touched no more.
        let (mut lost, begun) = (0, world.now);
        for page in range.start.0..more.end.0 {
            match world.touch_and_wait(PageId(page), None) {
                Ok(()) => {}
                Err(PageError::Store { place, error }) => {
                    assert_eq!((place.area, error), (bad, GONE));
                    lost += 1;
                }
                Err(PageError::Poisoned { place, cause }) => {
                    assert_eq!(
                        (place.area, cause, policy),
                        (bad, Some(GONE), FailurePolicy::Poison)
                    );
                }
                Err(other) => panic!("{other}"),
            }
        }
        assert!(lost > 200, "{lost}");
        assert_eq!(world.now, begun, "nobody waited");
        // Memory goes round by way of the other area.
        let fresh = world.map(300);
        world.write_all(&fresh);
        world.read_all(&fresh);
        assert!(world.info(good).used > 100);
        world.unmap(range);
        world.unmap(more);
        world.finish();
    }
}

#[test]
fn an_area_that_failed_and_left_no_room_is_named_by_the_error_of_who_waits() {
    for others in [0, 1] {
        let mut world = World::new(128, 1, 1000);
        let bad = world.area(MemBackend::formatted(600), options("bad", 9, fail_over()));
        for _ in 0..others {
            // It has room for a few pages, and then it is full.
            world.area(MemBackend::formatted(21), AreaOptions::new("small"));
        }
        world.pager.backend_mut(bad).fail_next(Op::Write, StoreError::Io, u32::MAX);
        let range = world.map(400);
        let error = (range.start.0..range.end.0).find_map(|page| {
            let stamp = world.fresh_stamp();
            world.touch_and_wait(PageId(page), Some(stamp)).err()
        });
        let error = error.expect("memory has an end");
        assert!(
            matches!(&error, PageError::AreaFailed { area, error: StoreError::Io, .. } if *area == bad),
            "{error:?}"
        );
        assert_eq!(
            error.to_string(),
            "area bad on mem:// failed (I/O error of the store), and no other area has room: no frame can be \
             freed (0 slots are quarantined)"
        );
        // What is in memory stays there, and gives room to others when it is not needed any more.
        world.unmap(range);
        world.finish();
    }
}

#[test]
fn a_read_under_fail_over_ends_in_an_error_and_works_again_when_the_store_does() {
    let mut world = World::new(128, 1, 1000);
    let id = world.area(MemBackend::formatted(600), options("area0", 0, fail_over()));
    let range = world.map(400);
    world.write_all(&range);
    // The first request has company and is split; then three attempts for the page alone.
    world.pager.backend_mut(id).fail_next(Op::Read, StoreError::Io, 4);
    let error = (0..2).find_map(|i| world.touch_and_wait(PageId(range.start.0 + i), None).err());
    assert!(matches!(error, Some(PageError::Store { error: StoreError::Io, .. })), "{error:?}");
    world.pager.backend_mut(id).set_faults(MemFaults::default());
    world.pager.backend_mut(id).fail_next(Op::Read, StoreError::Io, 1);
    world.read_all(&range);
    world.finish();
}

#[test]
fn poison_frees_memory_at_once_and_the_touching_task_gets_the_error() {
    let mut world = World::new(128, 1, 1000);
    let id = world.area(MemBackend::formatted(600), options("area0", 0, FailurePolicy::Poison));
    world.pager.backend_mut(id).fail_next(Op::Write, StoreError::Io, 1);
    let range = world.map(400);
    world.write_all(&range);
    let lost = world.pager.stats().poisoned_pages;
    assert!(lost > 0);
    let errors: Vec<PageError> = (range.start.0..range.end.0)
        .filter_map(|page| world.touch_and_wait(PageId(page), None).err())
        .collect();
    assert_eq!(errors.len() as u64, lost);
    assert!(
        errors.iter().all(|e| matches!(e, PageError::Poisoned { place, .. } if place.area == id))
    );
    world.finish();
}

#[test]
fn slots_of_writes_that_timed_out_or_were_replayed_are_never_used_again() {
    let mut world = World::new(128, 1, 1000);
    let mut options = AreaOptions::new("area0");
    options.request_timeout = Some(Span::from_millis(100));
    options.quarantine_max = Some(1500);
    let id = world.area(MemBackend::formatted(2000), options);
    let faults = MemFaults { timed_out: 6000, replayed: 6000, ..MemFaults::default() };
    world.pager.backend_mut(id).set_faults(faults);
    let range = world.map(400);
    for _ in 0..3 {
        world.write_all(&range);
    }
    world.read_all(&range);
    let info = world.info(id);
    assert!(info.quarantined > 0, "{info:?}");
    assert_eq!(u64::from(info.quarantined), world.pager.stats().quarantined_slots);
    world.pager.release_quarantine(id);
    assert_eq!(world.info(id).quarantined, 0);
    world.finish();
}

#[test]
fn a_quarantine_that_is_full_is_told_once_and_closes_the_area() {
    let mut world = World::new(128, 1, 1000);
    let mut options = AreaOptions::new("area0");
    options.quarantine_max = Some(8);
    let id = world.area(MemBackend::formatted(900), options);
    let faults = MemFaults { replayed: 65535, ..MemFaults::default() };
    world.pager.backend_mut(id).set_faults(faults);
    world.events.clear();
    let range = world.map(400);
    world.write_all(&range);
    let mut error = None;
    for page in range.start.0..range.end.0 {
        let stamp = world.fresh_stamp();
        error = error.or(world.touch_and_wait(PageId(page), Some(stamp)).err());
        if error.is_some() {
            break;
        }
    }
    assert!(matches!(error, Some(PageError::OutOfSwap { quarantined: 9.. })), "{error:?}");
    assert!(matches!(world.events[..], [PagerEvent::QuarantineFull { slots: 9, .. }]));
    world.finish();
}

#[test]
fn a_store_without_space_sends_pages_elsewhere() {
    let mut world = World::new(128, 1, 1000);
    let thin = world.area(MemBackend::formatted(600), options("thin", 5, FailurePolicy::default()));
    let thick = world.area(MemBackend::formatted(600), AreaOptions::new("thick"));
    world.pager.backend_mut(thin).fail_next(Op::Write, StoreError::NoSpace, u32::MAX);
    let range = world.map(400);
    world.write_all(&range);
    world.read_all(&range);
    assert!(world.info(thick).used > 0);
    world.finish();
}
