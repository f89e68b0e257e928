//! Goal: what the store gives back wrong is never data. Method: damage slots behind the pager's
//! back, lose writes, flip bits in transit, answer short or with garbage.

mod common;

use common::World;
use netswap_swap::*;

/// A world of which `page` has been paged out, with the slot that holds it.
fn paged_out() -> (World, AreaId, std::ops::Range<PageId>) {
    let mut world = World::new(128, 2, 1000);
    let id = world.area(MemBackend::formatted(600), AreaOptions::new("area0"));
    let range = world.map(400);
    world.write_all(&range);
    world.settle();
    assert!(world.pager.page(range.start).is_none(), "the first page is out");
    (world, id, range)
}

#[test]
fn a_store_that_damaged_a_page_is_asked_four_times_and_then_named() {
    let (mut world, id, range) = paged_out();
    let slots = world.info(id).slots;
    for slot in 1..slots {
        world.pager.backend_mut(id).slot_mut(slot)[100] ^= 1;
    }
    let error = world.touch_and_wait(range.start, None).unwrap_err();
    let PageError::Damaged { place, reads: 4 } = &error else { panic!("{error:?}") };
    assert_eq!((place.area, &*place.name, &*place.server), (id, "area0", "mem://"));
    assert_eq!(world.pager.stats().rereads, 3);
    assert!(error.to_string().starts_with("area area0 slot "), "{error}");
    // It stays an error, without asking again, and does not block what is sound.
    let requests = world.pager.backend_mut(id).requests();
    assert_eq!(world.touch_and_wait(range.start, None), Err(error));
    assert_eq!(world.pager.backend_mut(id).requests(), requests);
    world.finish();
}

#[test]
fn a_bit_flipped_on_the_way_is_read_again_and_nobody_notices() {
    let (mut world, id, range) = paged_out();
    let faults = MemFaults { damaged_read: 4000, short_read: 2000, ..MemFaults::default() };
    world.pager.backend_mut(id).set_faults(faults);
    world.read_all(&range);
    let stats = world.pager.stats();
    assert!(stats.checksum_errors > 0 && stats.rereads > 0, "{stats:?}");
    assert_eq!(stats.damaged_pages, 0);
    world.finish();
}

#[test]
fn a_write_that_the_store_lost_is_found_by_its_checksum() {
    let mut world = World::new(128, 1, 1000);
    let id = world.area(MemBackend::formatted(600), AreaOptions::new("liar"));
    let faults = MemFaults { lost_write: 65535, ..MemFaults::default() };
    world.pager.backend_mut(id).set_faults(faults);
    let range = world.map(400);
    world.write_all(&range);
    let error = world.touch_and_wait(range.start, None).unwrap_err();
    assert!(matches!(error, PageError::Damaged { reads: 4, .. }), "{error:?}");
    world.finish();
}

#[test]
fn garbage_and_short_reads_that_stay_are_errors_that_name_the_place() {
    for wrong in [
        StoreError::Garbage { what: "test" },
        StoreError::ShortRead { got: 0, wanted: 4096 },
        StoreError::OutOfRange { slot: 7 },
    ] {
        let (mut world, id, range) = paged_out();
        world.pager.backend_mut(id).fail_next(Op::Read, wrong, u32::MAX);
        let error = world.touch_and_wait(range.start, None).unwrap_err();
        let PageError::Store { place, error } = error else { panic!("{error:?}") };
        assert_eq!((place.area, error), (id, wrong));
        // The store comes to its senses: the page is there.
        world.pager.backend_mut(id).fail_next(Op::Read, wrong, 1);
        world.read_all(&range);
        world.finish();
    }
}

#[test]
fn a_damaged_page_that_was_only_read_ahead_hurts_nobody_until_it_is_touched() {
    let (mut world, id, range) = paged_out();
    // Pages keep their place in the clusters: page n is in slot n of its cluster.
    let target = PageId(range.start.0 + 10);
    let slot = (1..600).find(|slot| {
        let mut want = [0; 4096];
        common::fill(world.model[&target.0], &mut want);
        world.pager.backend_mut(id).slot_mut(*slot) == want
    });
    world.pager.backend_mut(id).slot_mut(slot.unwrap())[0] ^= 0xff;
    for page in range.start.0..target.0 {
        world.touch_and_wait(PageId(page), None).unwrap();
    }
    assert!(world.touch_and_wait(target, None).is_err());
    for page in target.0 + 1..target.0 + 30 {
        world.touch_and_wait(PageId(page), None).unwrap();
    }
    world.finish();
}
