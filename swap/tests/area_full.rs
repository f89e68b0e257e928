//! Goal: a full area sends pages to the next, and when all are full it ends in a typed error, not in
//! a hang. Method: fill areas of different priority, then more than all memory holds.

mod common;

use common::World;
use netswap_reserve::Span;
use netswap_swap::*;

fn options(name: &str, priority: i16) -> AreaOptions {
    AreaOptions { priority, ..AreaOptions::new(name) }
}

#[test]
fn the_next_area_by_priority_takes_what_the_first_has_no_room_for() {
    let mut world = World::new(128, 1, 1000);
    let low = world.area(MemBackend::formatted(600), options("low", -1));
    let high = world.area(MemBackend::formatted(101), options("high", 10));
    let range = world.map(500);
    world.write_all(&range);
    world.settle();
    assert_eq!(world.info(high).free, 0, "the area of high priority is full");
    assert!(world.info(low).used > 200);
    world.read_all(&range);
    world.finish();
}

#[test]
fn a_lower_area_is_not_used_while_the_higher_has_room() {
    let mut world = World::new(128, 1, 1000);
    let low = world.area(MemBackend::formatted(600), options("low", 0));
    let high = world.area(MemBackend::formatted(600), options("high", 1));
    let range = world.map(500);
    world.write_all(&range);
    world.read_all(&range);
    assert_eq!(world.info(low).used, 0);
    assert!(world.info(high).used > 300);
    world.finish();
}

#[test]
fn out_of_swap_is_an_error_for_the_task_that_waits_and_memory_given_back_cures_it() {
    let mut world = World::new(128, 2, 1000);
    world.area(MemBackend::formatted(101), AreaOptions::new("small"));
    let range = world.map(150);
    world.write_all(&range);
    let more = world.map(400);
    let mut error = None;
    for page in more.start.0..more.end.0 {
        let stamp = world.fresh_stamp();
        let before = world.now;
        if let Err(e) = world.touch_and_wait(PageId(page), Some(stamp)) {
            assert!(world.now.since(before) >= Span::from_secs(1), "it waited before it gave up");
            error = Some(e);
            break;
        }
    }
    assert_eq!(error, Some(PageError::OutOfSwap { quarantined: 0 }));
    assert_eq!(world.pager.stats().out_of_swap, 1);
    world.unmap(more);
    world.read_all(&range);
    let again = world.map(20);
    world.write_all(&again);
    world.finish();
}

#[test]
fn without_any_area_it_is_out_of_swap_too_and_zero_pages_do_not_count() {
    let mut world = World::new(128, 1, 1000);
    let range = world.map(900);
    world.read_all(&range);
    assert!(world.pager.stats().zero_pages_not_stored > 700, "zeros need no slot");
    world.unmap(range);
    let written = world.map(150);
    let outcome = (written.start.0..written.end.0)
        .map(|page| world.touch_and_wait(PageId(page), Some(77)))
        .find(Result::is_err);
    assert_eq!(outcome, Some(Err(PageError::OutOfSwap { quarantined: 0 })));
    world.finish();
}

#[test]
fn slots_of_clean_resident_pages_are_given_up_when_slots_run_short() {
    let mut world = World::new(256, 1, 1000);
    let id = world.area(MemBackend::formatted(161), AreaOptions::new("tight"));
    let range = world.map(300);
    world.write_all(&range);
    // Pages that come back keep their slots, until others need them.
    for _ in 0..3 {
        world.read_all(&range);
    }
    let more = world.map(30);
    world.write_all(&more);
    world.read_all(&range);
    world.read_all(&more);
    assert!(world.pager.stats().slots_given_up > 0, "{:?}", world.info(id));
    world.finish();
}
