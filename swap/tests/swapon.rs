//! Goal: only swap areas are written to. Method: stores without, with a wrong and with a right
//! header; stores that fail or are not there.

mod common;

use common::World;
use netswap_swap::signature::SignatureError;
use netswap_swap::*;

fn refusal(backend: MemBackend) -> AreaError {
    let mut world = World::new(128, 1, 100);
    let id = world.area(backend, AreaOptions::new("area0"));
    assert_eq!(world.info(id).state, AreaState::Refused);
    let [PagerEvent::AreaRefused { area, error }] = &world.events[..] else {
        panic!("{:?}", world.events)
    };
    assert_eq!(*area, id);
    let error = error.clone();
    world.finish();
    error
}

#[test]
fn a_store_without_the_signature_is_refused_and_not_written() {
    let missing = AreaError::Signature(SignatureError::Missing);
    assert_eq!(refusal(MemBackend::new(100)), missing);
}

#[test]
fn a_header_that_says_more_than_the_store_has_is_refused() {
    let mut backend = MemBackend::new(100);
    let mut page = [0; 4096];
    signature::Header::new(101).write(&mut page);
    backend.slot_mut(0).copy_from_slice(&page);
    assert_eq!(refusal(backend), AreaError::TooShort { pages: 101, slots: 100 });
}

#[test]
fn a_store_that_fails_before_it_is_ready_is_refused_with_its_reason() {
    let error = StoreError::Refused { code: 13 };
    let backend = MemBackend::formatted(100).with_state(BackendState::Failed(error));
    assert_eq!(refusal(backend), AreaError::Store(error));
}

#[test]
fn a_header_that_cannot_be_read_is_tried_four_times() {
    let mut backend = MemBackend::formatted(100);
    backend.fail_next(Op::Read, StoreError::Io, 4);
    assert_eq!(refusal(backend), AreaError::Store(StoreError::Io));
    let mut backend = MemBackend::formatted(100);
    backend.fail_next(Op::Read, StoreError::Io, 3);
    let mut world = World::new(128, 1, 100);
    let id = world.area(backend, AreaOptions::new("area0"));
    assert_eq!(world.info(id).state, AreaState::On);
}

#[test]
fn a_store_that_becomes_ready_later_is_taken_then() {
    let mut world = World::new(128, 1, 100);
    let backend = MemBackend::formatted(100).with_state(BackendState::Starting);
    let id = world.area(backend, AreaOptions::new("late"));
    assert_eq!(world.info(id).state, AreaState::Starting);
    world.pager.backend_mut(id).set_state(BackendState::Ready { slots: 100 });
    world.settle();
    assert_eq!(world.events, [PagerEvent::AreaOn { area: id }]);
    let info = world.info(id);
    assert_eq!((info.slots, info.free), (100, 99), "slot 0 holds the header");
}

#[test]
fn bad_pages_of_the_header_get_no_page() {
    let mut backend = MemBackend::formatted(300);
    backend.slot_mut(0)[1032..1036].copy_from_slice(&2u32.to_le_bytes());
    backend.slot_mut(0)[1536..1540].copy_from_slice(&5u32.to_le_bytes());
    backend.slot_mut(0)[1540..1544].copy_from_slice(&9u32.to_le_bytes());
    let mut world = World::new(128, 1, 400);
    let id = world.area(backend, AreaOptions::new("area0"));
    assert_eq!(world.info(id).free, 297);
    let range = world.map(350);
    world.write_all(&range);
    world.read_all(&range);
    for bad in [5, 9] {
        assert!(world.pager.backend_mut(id).slot_mut(bad).iter().all(|b| *b == 0), "slot {bad}");
    }
    world.finish();
}
