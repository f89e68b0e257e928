//! Goal: the mechanisms of paging, one each. Method: a small machine, and the pager's counters.

mod common;

use std::ops::Range;

use common::World;
use netswap_reserve::{Span, Time};
use netswap_swap::*;

/// A formatted store that takes a while for each request.
fn slow_store(slots: u32) -> MemBackend {
    MemBackend::formatted(slots).with_latency(Span::from_micros(100), Span::from_micros(100))
}

/// Two tasks, an area, and 400 pages that were written, of which memory holds a third.
fn under_pressure() -> (World, AreaId, Range<PageId>) {
    let mut world = World::new(128, 2, 600);
    let id = world.area(slow_store(800), AreaOptions::new("a"));
    let range = world.map(400);
    world.write_all(&range);
    (world, id, range)
}

#[test]
fn a_page_under_writeback_is_mapped_back_without_a_read() {
    let mut world = World::new(128, 1, 400);
    let id = world.area(slow_store(600), AreaOptions::new("a"));
    let range = world.map(110);
    for page in range.start.0..range.end.0 {
        world.touch(0, PageId(page), Some(9));
    }
    world.poll();
    let mut writing = None;
    world.pager.visit_waits(&mut |wait| {
        if let PagerWait::Reclaim { phase: IoPhase::Submitted, .. } = wait {
            writing = Some(());
        }
    });
    writing.expect("reclaim writes");
    let out =
        (range.start.0..range.end.0).find(|p| world.pager.page(PageId(*p)).is_none()).unwrap();
    world.touch_and_wait(PageId(out), None).unwrap();
    let stats = *world.pager.stats();
    assert_eq!((stats.page_ins, stats.major_faults, stats.writeback_waits), (0, 0, 1));
    // It has a copy in a slot now: dropping it again costs no write.
    assert!(world.info(id).used > 0);
    world.finish();
}

#[test]
fn clean_pages_are_dropped_without_a_write_and_dirtied_ones_are_written_again() {
    let mut world = World::new(128, 1, 600);
    world.area(MemBackend::formatted(800), AreaOptions::new("a"));
    let range = world.map(400);
    world.write_all(&range);
    world.read_all(&range);
    world.settle();
    let before = *world.pager.stats();
    world.read_all(&range);
    world.read_all(&range);
    let after = *world.pager.stats();
    assert_eq!(after.page_outs, before.page_outs, "reading writes nothing");
    assert!(after.clean_drops > before.clean_drops + 400);
    for page in range.start.0..range.start.0 + 50 {
        world.touch_and_wait(PageId(page), None).unwrap();
        world.touch_and_wait(PageId(page), Some(u64::from(page) + 1)).unwrap();
    }
    world.read_all(&range);
    let last = *world.pager.stats();
    assert!(
        last.page_outs >= after.page_outs + 50 && last.write_faults == 50,
        "{after:?} {last:?}"
    );
    world.finish();
}

#[test]
fn many_tasks_that_scan_at_once_are_read_ahead_in_long_requests() {
    let (tasks, each) = (16, 256);
    let mut world = World::new(1024, tasks, tasks * each);
    let backend = slow_store(tasks * each + 100);
    world.area(backend, AreaOptions::new("a"));
    let parts: Vec<_> = (0..tasks).map(|_| world.map(each)).collect();
    let mut at = vec![0; tasks as usize];
    for round in 0..3 {
        while at.iter().any(|at| *at < each) {
            let before: u32 = at.iter().sum();
            for task in 0..tasks {
                if !world.waiting.contains_key(&task) && at[task as usize] < each {
                    let page = PageId(parts[task as usize].start.0 + at[task as usize]);
                    let stamp = (round == 0).then(|| world.fresh_stamp());
                    at[task as usize] += 1;
                    world.touch(task, page, stamp);
                }
            }
            world.poll();
            if at.iter().sum::<u32>() == before {
                world.advance();
            }
        }
        at.fill(0);
    }
    world.settle();
    let stats = world.pager.stats();
    assert!(stats.page_ins > 2 * 3000, "{stats:?}");
    assert!(stats.page_ins / stats.read_requests >= 8, "pages a read request: {stats:?}");
    assert!(stats.page_outs / stats.write_requests >= 8, "pages a write request: {stats:?}");
    assert!(stats.readahead_used * 10 >= stats.readahead_pages * 9, "{stats:?}");
    world.finish();
}

#[test]
fn pages_of_a_file_are_read_dropped_and_private_once_written() {
    let mut world = World::new(128, 1, 1000);
    world.area(MemBackend::formatted(800), AreaOptions::new("swap"));
    let mut store = MemBackend::new(300);
    let mut sums = Vec::new();
    for slot in 0..300u32 {
        let mut page = [0; 4096];
        common::fill(u64::from(slot) + 1, &mut page);
        sums.push(checksum(&page));
        store.slot_mut(slot).copy_from_slice(&page);
    }
    let options = AreaOptions { read_only: true, ..AreaOptions::new("file") };
    let file = world.area(store, options);
    assert_eq!(world.info(file).state, AreaState::On);
    let sum = |i: u32| sums[i as usize + 10];
    let ranges: Vec<_> = (0..2).map(|_| world.pager.map_file(file, Slot(10), 290, &sum)).collect();
    for range in &ranges {
        for (i, page) in (range.start.0..range.end.0).enumerate() {
            world.model.insert(page, i as u64 + 11);
        }
        world.read_all(range);
    }
    world.touch_and_wait(ranges[0].start, Some(1_000_003)).unwrap();
    world.read_all(&ranges[0]);
    world.read_all(&ranges[1]);
    assert!(world.pager.stats().page_outs >= 1, "the private page went to the swap area");
    assert_eq!(world.model[&ranges[1].start.0], 11, "the other mapping kept the file's");
    world.pager.swapoff(world.now, file);
    world.settle();
    let end = world.events.last();
    assert!(matches!(
        end,
        Some(PagerEvent::SwapoffRefused { error: SwapoffError::InUse { .. }, .. })
    ));
    let mistake = world.pager.try_map_file(file, Slot(299), 2, &sum);
    assert_eq!(mistake, Err(MapError::OutOfRange { first: 299, end: 301, slots: 300 }));
    world.finish();
}

#[test]
fn unmapping_while_pages_are_in_transit_frees_them_when_their_requests_end() {
    let (mut world, id, range) = under_pressure();
    world.settle();
    assert_eq!(world.touch(1, range.start, None), Fault::Waits);
    world.pager.backend_mut(id).hold(true);
    world.unmap(range.clone());
    assert_eq!(world.failed.pop(), Some((TaskId(1), range.start, PageError::NotMapped)));
    assert_eq!(world.info(id).used, 1, "the slot that is being read");
    world.pager.backend_mut(id).hold(false);
    world.settle();
    assert_eq!((world.info(id).used, world.pool.free_frames()), (0, 128));
    world.finish();
}

#[test]
fn shutdown_fails_who_waits_and_gives_everything_back() {
    let (mut world, id, range) = under_pressure();
    assert_eq!(world.touch(1, range.start, None), Fault::Waits);
    world.pager.shutdown(world.now, &mut world.tables);
    world.settle();
    let (task, _, error) = world.failed.pop().unwrap();
    assert_eq!(task, TaskId(1));
    assert!(matches!(error, PageError::NotMapped | PageError::ShutDown), "{error:?}");
    assert_eq!(world.pool.free_frames(), 128);
    assert_eq!(world.info(id).used, 0);
    assert_eq!(world.touch(0, range.start, None), Fault::Failed(PageError::ShutDown));
}

#[test]
fn a_server_that_does_not_answer_is_named_by_what_waits_for_it() {
    let mut world = World::new(128, 3, 900);
    let id = world.area(MemBackend::formatted(1000), AreaOptions::new("a"));
    let range = world.map(500);
    world.write_all(&range);
    world.settle();
    world.pager.backend_mut(id).hold(true);
    let page = range.start;
    assert_eq!(world.touch(0, page, None), Fault::Waits);
    let fresh = world.map(300);
    let mut at = fresh.start.0;
    while world.touch(1, PageId(at), Some(3)) == Fault::Done {
        at += 1;
        world.poll();
    }
    let waits = world.waits();
    let is_read = |w: &PagerWait| matches!(w, PagerWait::Io { task: TaskId(0), op: Op::Read, .. });
    let is_frame = |w: &PagerWait| *w == PagerWait::Frame { task: TaskId(1), page: PageId(at) };
    let is_write =
        |w: &PagerWait| matches!(w, PagerWait::Reclaim { phase: IoPhase::Submitted, .. });
    assert!(waits.iter().any(is_read) && waits.iter().any(is_frame), "{waits:?}");
    assert!(waits.iter().any(is_write), "{waits:?}");
    world.pager.backend_mut(id).hold(false);
    world.settle();
    world.finish();
}

#[test]
fn waiters_for_a_frame_are_served_in_the_order_they_came() {
    let mut world = World::new(128, 8, 900);
    let id = world.area(MemBackend::formatted(1000), AreaOptions::new("a"));
    world.pager.backend_mut(id).hold(true);
    let range = world.map(500);
    let mut at = range.start.0;
    let mut waiting = 0;
    while waiting < 8 {
        match world.touch(waiting, PageId(at), Some(3)) {
            Fault::Waits => waiting += 1,
            _ => world.poll(),
        }
        at += 1;
    }
    world.pager.backend_mut(id).hold(false);
    let mut order = Vec::new();
    while order.len() < 8 {
        while let Some(event) = world.pager.poll(world.now, &mut world.tables) {
            let PagerEvent::FaultDone { task, .. } = event else { panic!("{event:?}") };
            order.push(task.0);
        }
        world.now = world.pager.poll_deadline().unwrap_or(Time::MAX);
    }
    assert_eq!(order, [0, 1, 2, 3, 4, 5, 6, 7]);
}

#[test]
fn what_the_pager_holds_stays_above_the_min_watermark() {
    let mut world = World::new(256, 2, 2000);
    world.area(slow_store(2100), AreaOptions::new("a"));
    let range = world.map(1500);
    world.write_all(&range);
    world.read_all(&range);
    assert!(world.pool.lowest_free() >= world.pool.watermarks().min);
    assert!(world.pager.stats().page_ins > 1000);
    world.finish();
}
