//! Goal: slots that became free are discarded, and no page is ever lost by it. Method: pagers over a backend in
//! memory whose discards are slow, refused, given up, and carried out long after that. The canary takes the quarantine of
//! discards away, and its pages are lost.

mod common;

use common::World;
use netswap_reserve::Span;
use netswap_swap::*;
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const LIMITS: DiscardLimits = DiscardLimits { runs: 16, slots: 300 };
const SLOTS: u32 = 2048;

fn options() -> AreaOptions {
    AreaOptions { discard: true, quarantine_max: Some(u32::MAX), ..AreaOptions::new("area0") }
}

fn backend() -> MemBackend {
    MemBackend::formatted(SLOTS)
        .with_latency(Span::from_micros(50), Span::from_micros(400))
        .with_discards(LIMITS)
}

fn world(quarantine: bool) -> World {
    World::with(PagerConfig { quarantine, ..PagerConfig::new(2, 4096) }, 96)
}

/// Every slot is counted, once.
fn check_slots(world: &World, area: AreaId) -> AreaInfo {
    let info = world.info(area);
    let AreaInfo { slots, used, free, quarantined, discarding, .. } = info;
    assert_eq!(used + free + quarantined + discarding + 1, slots, "{info:?}");
    info
}

#[test]
fn what_becomes_free_is_discarded_in_few_requests() {
    let mut world = world(true);
    let area = world.area(backend(), options());
    let pages = world.map(900);
    world.write_all(&pages);
    world.settle();
    let used = check_slots(&world, area).used;
    assert!(used > 700, "{used}");
    for slot in 1..SLOTS {
        world.pager.backend_mut(area).slot_mut(slot)[0] |= 1;
    }
    world.unmap(pages);
    let info = check_slots(&world, area);
    assert_eq!((info.used, info.discarding > 600), (0, true), "{info:?}");
    world.pass(Span::from_secs(10));
    let (info, stats) = (check_slots(&world, area), *world.pager.stats());
    assert_eq!((info.discarding, info.free), (0, SLOTS - 1));
    assert!(stats.discarded_slots >= u64::from(used) && stats.discards <= 12, "{stats:?}");
    let backend = world.pager.backend_mut(area);
    let zeros = (1..SLOTS).filter(|slot| backend.slot_mut(*slot).iter().all(|b| *b == 0)).count();
    assert!(zeros >= used as usize, "{zeros} of {used}");
    world.finish();
}

#[test]
fn without_the_option_nothing_is_discarded() {
    let mut world = world(true);
    let area = world.area(backend(), AreaOptions::new("area0"));
    let pages = world.map(600);
    world.write_all(&pages);
    world.unmap(pages);
    assert_eq!(check_slots(&world, area).discarding, 0);
    world.pass(Span::from_secs(10));
    assert_eq!(world.pager.stats().discards, 0);
    world.finish();
}

#[test]
fn a_slot_is_not_free_before_its_discard_has_ended() {
    let mut world = world(true);
    let area = world.area(backend(), options());
    let pages = world.map(400);
    world.write_all(&pages);
    world.pass(Span::from_secs(1));
    world.pager.backend_mut(area).hold(true);
    world.unmap(pages);
    world.pass(Span::from_secs(30));
    let info = check_slots(&world, area);
    assert!(info.discarding >= 300, "with the store: {info:?}");
    assert!(!world.pager.is_idle());
    world.pager.backend_mut(area).hold(false);
    world.pass(Span::from_secs(10));
    assert_eq!(check_slots(&world, area).free, SLOTS - 1);
    world.finish();
}

#[test]
fn no_page_goes_without_a_slot_for_it() {
    let mut world = world(true);
    let area = world.area(backend(), options());
    let first = world.map(700);
    world.write_all(&first);
    world.unmap(first);
    assert!(check_slots(&world, area).discarding > 0);
    // All slots are needed, and time does not pass for a discard to be due in.
    let all = world.map(SLOTS + 40);
    world.write_all(&all);
    let info = check_slots(&world, area);
    assert!(info.used > SLOTS - 80 && info.discarding == 0, "{info:?}");
    assert_eq!(world.pager.stats().out_of_swap, 0);
    world.read_all(&all);
    world.finish();
}

#[test]
fn a_discard_that_ran_out_of_time_costs_its_slots_until_the_proof() {
    let mut world = world(true);
    let options = AreaOptions { request_timeout: Some(Span::from_secs(3)), ..options() };
    let area = world.area(backend(), options);
    let pages = world.map(400);
    world.write_all(&pages);
    world.pager.backend_mut(area).hold(true);
    world.unmap(pages);
    world.pass(Span::from_secs(20));
    let info = check_slots(&world, area);
    assert!(info.quarantined >= 300, "{info:?}");
    assert!(world.pager.stats().discards_failed > 0);
    world.pager.backend_mut(area).hold(false);
    world.pager.release_quarantine(area);
    world.pass(Span::from_secs(20));
    assert_eq!(check_slots(&world, area).free, SLOTS - 1);
    world.finish();
}

#[test]
fn discards_that_ran_out_of_time_do_not_fill_the_area() {
    let mut world = world(true);
    let options = AreaOptions {
        request_timeout: Some(Span::from_secs(3)),
        quarantine_max: None,
        ..options()
    };
    let area = world.area(backend(), options);
    for _ in 0..6 {
        let pages = world.map(900);
        world.write_all(&pages);
        world.pass(Span::from_secs(1));
        world.pager.backend_mut(area).hold(true);
        world.unmap(pages);
        world.pass(Span::from_secs(20));
        world.pager.backend_mut(area).hold(false);
        world.pass(Span::from_secs(20));
    }
    let info = check_slots(&world, area);
    assert!(info.quarantined > 200 && info.quarantined <= SLOTS / 4, "{info:?}");
    let full = world.events.iter().any(|e| matches!(e, PagerEvent::QuarantineFull { .. }));
    assert!(!full, "{:?}", world.events);
    world.finish();
}

#[test]
fn a_store_that_refuses_is_told_no_more() {
    let mut world = world(true);
    let area = world.area(backend().refusing_discards(LIMITS), options());
    for _ in 0..3 {
        let pages = world.map(900);
        world.write_all(&pages);
        world.unmap(pages);
        world.pass(Span::from_secs(5));
        assert_eq!(check_slots(&world, area).free, SLOTS - 1);
    }
    let stats = world.pager.stats();
    assert_eq!((stats.discards, stats.discards_failed), (0, 1));
    world.finish();
}

#[test]
fn a_store_that_fails_them_all_is_told_no_more() {
    let mut world = world(true);
    let area = world.area(backend(), options());
    for _ in 0..20 {
        let pages = world.map(400);
        world.write_all(&pages);
        world.pass(Span::from_secs(1));
        world
            .pager
            .backend_mut(area)
            .set_faults(MemFaults { io_error: u16::MAX, ..Default::default() });
        world.unmap(pages);
        world.pass(Span::from_secs(5));
        world.pager.backend_mut(area).set_faults(MemFaults::default());
    }
    let failed = world.pager.stats().discards_failed;
    assert!((8..10).contains(&failed), "{failed}");
    assert_eq!(check_slots(&world, area).free, SLOTS - 1);
    world.finish();
}

#[test]
fn swapoff_does_not_wait_for_discards() {
    for sent in [false, true] {
        let mut world = world(true);
        let area = world.area(backend(), AreaOptions { priority: 5, ..options() });
        world.area(backend(), AreaOptions { discard: false, ..options() });
        let (stays, goes) = (world.map(300), world.map(400));
        world.write_all(&stays);
        world.write_all(&goes);
        if sent {
            world.pager.backend_mut(area).hold(true);
        }
        world.unmap(goes);
        if sent {
            world.pass(Span::from_secs(4));
            assert!(!world.pager.is_idle());
            world.pager.backend_mut(area).hold(false);
        }
        assert!(check_slots(&world, area).discarding > 0);
        world.pager.swapoff(world.now, area);
        world.settle();
        let info = check_slots(&world, area);
        assert_eq!((info.state, info.used, info.discarding), (AreaState::Off, 0, 0));
        assert!(world.pager.is_idle());
        world.read_all(&stays);
        world.finish();
    }
}

#[test]
fn shutdown_ends_a_discard() {
    let mut world = world(true);
    let area = world.area(backend(), options());
    let pages = world.map(400);
    world.write_all(&pages);
    world.pager.backend_mut(area).hold(true);
    world.unmap(pages);
    world.pass(Span::from_secs(4));
    assert!(!world.pager.is_idle());
    world.pager.shutdown(world.now, &mut world.tables);
    world.poll();
    assert!(world.pager.is_idle());
    assert_eq!(check_slots(&world, area).discarding, 0);
}

/// A random load with discards of every fate. What was lost, as the checksums found it.
fn random_load(seed: u64, quarantine: bool) -> (Vec<PageError>, PagerStats) {
    let mut world = world(quarantine);
    let area = world.area(backend().with_faults(seed, MemFaults::default()), options());
    let faults =
        MemFaults { io_error: 500, late_discard: 30_000, replayed: 500, ..MemFaults::default() };
    world.pager.backend_mut(area).set_faults(faults);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(seed);
    let pages = world.map(500);
    let mut lost = Vec::new();
    for round in 0..4000u32 {
        let page = PageId(pages.start.0 + rng.next_u32() % 500);
        let stamp = (rng.next_u32() % 3 != 0).then(|| world.fresh_stamp());
        for i in 0..1 + rng.next_u32() % 24 {
            let page = PageId((page.0 + i).min(pages.end.0 - 1));
            lost.extend(world.touch_and_wait(page, stamp.map(|stamp| stamp + u64::from(i))).err());
        }
        if round % 40 == 0 {
            world.pass(Span::from_millis(1100));
            check_slots(&world, area);
        }
        if !lost.is_empty() {
            return (lost, *world.pager.stats());
        }
    }
    let late = world.pager.backend(area).late_discards();
    assert!(late > 3, "late discards were carried out: {late}");
    let stats = *world.pager.stats();
    world.read_all(&pages);
    world.settle();
    world.finish();
    (lost, stats)
}

#[test]
fn late_discards_destroy_nothing() {
    for seed in 0..6 {
        let (lost, stats) = random_load(seed, true);
        assert_eq!(lost, [], "seed {seed}");
        assert!(stats.discards > 5 && stats.discards_failed > 3, "{stats:?}");
        assert!(stats.quarantined_slots > 50, "{stats:?}");
        assert_eq!(stats.damaged_pages, 0);
    }
}

#[test]
fn without_the_quarantine_of_discards_pages_are_lost_and_it_is_noticed() {
    let lost = (0..6).filter(|seed| {
        let (lost, stats) = random_load(*seed, false);
        lost.iter().all(|error| matches!(error, PageError::Damaged { .. }))
            && !lost.is_empty()
            && stats.damaged_pages > 0
    });
    assert!(lost.count() > 0, "the canary sings");
}
