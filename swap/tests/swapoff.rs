//! Goal: an area is taken out wholly, or is on again with a reason. Method: swapoff with room in
//! other areas, in memory, nowhere; with unreadable pages; while tasks fault.

mod common;

use common::World;
use netswap_reserve::Span;
use netswap_swap::*;

fn slow(slots: u32) -> MemBackend {
    MemBackend::formatted(slots).with_latency(Span::from_micros(50), Span::from_micros(300))
}

#[test]
fn pages_move_to_another_area_and_the_store_is_let_go() {
    let mut world = World::new(128, 1, 1000);
    let first = world.area(slow(600), AreaOptions { priority: 3, ..AreaOptions::new("first") });
    let second = world.area(slow(600), AreaOptions::new("second"));
    let range = world.map(500);
    world.write_all(&range);
    assert_eq!(world.info(second).used, 0);
    world.pager.swapoff(world.now, first);
    world.settle();
    assert_eq!(world.events.last(), Some(&PagerEvent::AreaOff { area: first }));
    assert_eq!((world.info(first).used, world.info(first).state), (0, AreaState::Off));
    assert_eq!(world.pager.backend(first).state(), BackendState::Stopped);
    world.read_all(&range);
    world.finish();
}

#[test]
fn pages_that_fit_memory_need_no_other_area() {
    let mut world = World::new(256, 1, 1000);
    let id = world.area(slow(600), AreaOptions::new("only"));
    let keep = world.map(100);
    let fill = world.map(300);
    world.write_all(&keep);
    world.write_all(&fill);
    world.unmap(fill);
    world.settle();
    assert!(world.info(id).used > 0);
    world.pager.swapoff(world.now, id);
    world.settle();
    assert_eq!(world.events.last(), Some(&PagerEvent::AreaOff { area: id }));
    world.read_all(&keep);
    world.finish();
}

#[test]
fn swapoff_without_room_is_refused_and_the_area_works_on() {
    let mut world = World::new(128, 1, 1000);
    let id = world.area(slow(600), AreaOptions::new("only"));
    let range = world.map(400);
    world.write_all(&range);
    world.pager.swapoff(world.now, id);
    world.settle();
    let refused = world.events.last();
    assert!(
        matches!(
            refused,
            Some(PagerEvent::SwapoffRefused { error: SwapoffError::NoRoom { .. }, .. })
        ),
        "{refused:?}"
    );
    assert_eq!(world.info(id).state, AreaState::On);
    world.read_all(&range);
    world.finish();
}

#[test]
fn room_that_others_take_meanwhile_ends_in_a_refusal_not_in_a_hang() {
    let mut world = World::new(128, 2, 2000);
    let first = world.area(slow(900), AreaOptions { priority: 3, ..AreaOptions::new("first") });
    let range = world.map(400);
    world.write_all(&range);
    let _second = world.area(slow(400), AreaOptions::new("second"));
    world.pager.swapoff(world.now, first);
    world.poll();
    // A task dirties more while the pages move: slots run out everywhere.
    let more = world.map(300);
    for page in more.start.0..more.end.0 {
        let stamp = world.fresh_stamp();
        if world.touch_and_wait(PageId(page), Some(stamp)).is_err() {
            break;
        }
    }
    world.settle();
    let end = world.events.last().unwrap();
    assert!(
        matches!(end, PagerEvent::SwapoffRefused { error: SwapoffError::NoRoom { .. }, .. }),
        "{end:?}"
    );
    assert_eq!(world.info(first).state, AreaState::On);
    world.read_all(&range);
    world.finish();
}

#[test]
fn tasks_fault_and_write_while_an_area_leaves() {
    let mut world = World::new(128, 4, 1000);
    let first = world.area(slow(600), AreaOptions { priority: 3, ..AreaOptions::new("first") });
    world.area(slow(900), AreaOptions::new("second"));
    let range = world.map(400);
    world.write_all(&range);
    world.pager.swapoff(world.now, first);
    for page in range.start.0..range.end.0 {
        let stamp = (page % 3 == 0).then(|| world.fresh_stamp());
        world.touch_and_wait(PageId(page), stamp).unwrap();
    }
    world.settle();
    assert_eq!(world.events.last(), Some(&PagerEvent::AreaOff { area: first }));
    world.read_all(&range);
    world.finish();
}

#[test]
fn an_unreadable_page_keeps_its_area_on_and_a_damaged_one_is_lost_by_name() {
    let mut world = World::new(128, 1, 1000);
    let policy = FailurePolicy::FailOver { attempts: 2, backoff: Span::from_millis(1) };
    let options = AreaOptions { priority: 3, on_failure: policy, ..AreaOptions::new("first") };
    let first = world.area(slow(600), options);
    world.area(slow(900), AreaOptions::new("second"));
    let range = world.map(400);
    world.write_all(&range);
    world.settle();
    world.pager.backend_mut(first).fail_next(Op::Read, StoreError::Io, 1000);
    world.pager.swapoff(world.now, first);
    world.settle();
    let end = world.events.last().unwrap();
    assert!(
        matches!(end, PagerEvent::SwapoffRefused { error: SwapoffError::Unreadable { .. }, .. }),
        "{end:?}"
    );
    world.pager.backend_mut(first).fail_next(Op::Read, StoreError::Io, 1);
    world.settle();
    let mut want = [0; 4096];
    common::fill(world.model[&range.start.0], &mut want);
    let store = world.pager.backend_mut(first);
    let slot = (1..600).find(|slot| store.slot_mut(*slot) == want).unwrap();
    store.slot_mut(slot)[5] ^= 8;
    world.pager.swapoff(world.now, first);
    world.settle();
    assert_eq!(world.events.last(), Some(&PagerEvent::AreaOff { area: first }));
    let error = world.touch_and_wait(range.start, None).unwrap_err();
    assert!(
        matches!(&error, PageError::Poisoned { place, .. } if place.slot == Slot(slot)),
        "{error:?}"
    );
    world.finish();
}

#[test]
fn an_area_that_is_not_on_cannot_be_taken_out() {
    let mut world = World::new(128, 1, 100);
    let id = world.area(MemBackend::new(64), AreaOptions::new("no swap"));
    world.pager.swapoff(world.now, id);
    world.settle();
    let error = SwapoffError::NotOn;
    assert_eq!(world.events.last(), Some(&PagerEvent::SwapoffRefused { area: id, error }));
    world.finish();
}
