//! Units of the pool: each property in its plainest form. The promises under random operations are in
//! `tests/`.

use super::*;
use crate::EmergencyScope;

fn exact(frames: u32) -> PagePool {
    PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(frames) })
}

fn drain(pool: &PagePool, gfp: Gfp) -> Vec<Frame> {
    std::iter::from_fn(|| pool.alloc(gfp).ok()).collect()
}

#[test]
fn each_kind_of_caller_stops_at_its_watermark() {
    let pool = exact(256);
    pool.resize(ReserveId::ROOT, 20).unwrap();
    let marks = pool.watermarks();
    assert_eq!((marks.floor, marks.atomic, marks.min, marks.low), (20, 28, 36, 44));
    let mut held = drain(&pool, Gfp::SPECULATIVE);
    assert_eq!(pool.free_frames(), marks.low);
    held.extend(drain(&pool, Gfp::KERNEL));
    assert_eq!(pool.free_frames(), marks.min);
    held.extend(drain(&pool, Gfp::ATOMIC));
    assert_eq!(pool.free_frames(), marks.atomic);
    assert!(pool.take_pressure());
    assert!(!pool.take_pressure());
    held.extend(drain(&pool, Gfp::MEMALLOC));
    // The whole floor, by the root's limit: what lies between atomic and floor is nobody's.
    assert_eq!(pool.free_frames(), marks.atomic - 20);
    assert_eq!(pool.reserve_usage(ReserveId::ROOT), 20);
    assert_eq!(
        pool.alloc(Gfp::MEMALLOC).unwrap_err(),
        AllocError::ReserveUsedUp { reserve: ReserveId::ROOT }
    );
    assert!(matches!(
        pool.alloc(Gfp::MEMALLOC | Gfp::NOMEMALLOC),
        Err(AllocError::AtWatermark { .. })
    ));
    drop(held);
    assert_eq!(pool.free_frames(), 256);
    assert_eq!(pool.reserve_usage(ReserveId::ROOT), 0);
}

#[test]
fn sizes_that_cannot_be_are_typed_errors() {
    let make = |frames| PagePool::try_new(PoolConfig { frames, ..PoolConfig::new(1) });
    assert!(matches!(make(0), Err(PoolError::NoFrames)));
    assert!(matches!(make(u32::MAX), Err(PoolError::TooManyFrames { .. })));
    assert!(make(1).is_ok());
}

#[test]
fn a_parked_frame_is_taken_back_once_and_keeps_content_and_charge() {
    let pool = exact(64);
    pool.resize(ReserveId::ROOT, 4).unwrap();
    let _rest = drain(&pool, Gfp::KERNEL);
    let mut frame = pool.alloc(Gfp::MEMALLOC).unwrap();
    frame.bytes_mut().fill(7);
    let id = frame.park();
    assert_eq!(pool.reserve_usage(ReserveId::ROOT), 1);
    let frame = pool.unpark(id).unwrap();
    assert!(pool.unpark(id).is_none());
    assert!(pool.unpark(FrameId::from_index(64)).is_none());
    assert_eq!((frame.bytes()[4095], frame.charged_to()), (7, Some(ReserveId::ROOT)));
    drop(frame);
    assert!(pool.unpark(id).is_none(), "a freed frame is not parked");
}

#[test]
fn a_pool_outlives_its_handles_while_something_is_out() {
    let pool = exact(64);
    pool.resize(ReserveId::ROOT, 4).unwrap();
    let charge = pool.charge(ReserveId::ROOT, 2).unwrap();
    let mut frame = pool.alloc(Gfp::KERNEL).unwrap();
    pool.alloc(Gfp::KERNEL).unwrap().park();
    drop(pool);
    frame.bytes_mut().fill(1);
    assert_eq!(frame.bytes()[0], 1);
    let shared = frame.share();
    let other = shared.clone();
    drop(shared);
    drop(charge);
    assert_eq!(other.bytes()[4095], 1);
    // Parking a frame of a closed pool frees it, and here the pool with it.
    other.try_unshare().unwrap().park();
}

#[test]
fn runs_are_contiguous_and_failing_changes_nothing() {
    let pool = exact(256);
    let mut held: Vec<_> = (0..200).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    // Frees every other frame of the first hundred, and ten neighbours.
    for i in (0..100).rev().step_by(2) {
        drop(held.remove(i));
    }
    held.drain(60..70);
    let free = pool.free_frames();
    assert_eq!(pool.set_aside(60).unwrap_err(), AllocError::Exhausted);
    assert_eq!(
        pool.set_aside(free).unwrap_err(),
        AllocError::AtWatermark { free, watermark: pool.watermarks().min }
    );
    assert_eq!(pool.free_frames(), free);
    let fresh = pool.set_aside(56).unwrap();
    let mut run = pool.set_aside(10).unwrap();
    assert_eq!(pool.free_frames(), free - 66);
    run.bytes_mut().fill(9);
    assert_eq!(run.bytes().len(), 10 * crate::PAGE_SIZE);
    assert!(held.iter().all(|f| f.bytes()[0] == 0), "a run overlaps no frame");
    // What is left is handed out once each.
    let rest = drain(&pool, Gfp::KERNEL);
    let mut ids: Vec<_> = rest.iter().chain(&held).map(Frame::id).collect();
    ids.sort_unstable();
    ids.dedup();
    assert_eq!(ids.len(), rest.len() + held.len());
    drop((run, fresh, rest, held));
    assert_eq!(pool.free_frames(), 256);
    assert_eq!(pool.set_aside(0).unwrap().bytes().len(), 0);
}

#[test]
fn magazines_give_back_at_the_end_of_a_thread_and_on_request() {
    let pool = PagePool::new(PoolConfig { magazine: 32, ..PoolConfig::new(1024) });
    let frame = pool.alloc(Gfp::KERNEL).unwrap();
    assert_eq!(pool.free_frames(), 1023, "what this thread holds back counts as free to it");
    drop(frame);
    assert_eq!(pool.free_frames(), 1024);
    std::thread::scope(|s| {
        let thread = s.spawn(|| drop(pool.alloc(Gfp::KERNEL).unwrap()));
        thread.join().unwrap();
    });
    assert_eq!(pool.free_frames(), 1024);
    assert!(pool.lowest_free() < 1023, "a refill takes a batch");
    pool.flush_magazine();
    assert_eq!(pool.inner().lock().free, 1024);
}

#[test]
fn magazines_hold_nothing_while_memory_is_short() {
    let pool = PagePool::new(PoolConfig { magazine: 32, ..PoolConfig::new(256) });
    let mut held = drain(&pool, Gfp::KERNEL);
    assert_eq!(pool.free_frames(), pool.watermarks().min);
    assert_eq!(magazine::held(&pool), 0);
    let frees = pool.frees();
    held.pop();
    assert_eq!(pool.frees(), frees + 1, "a waiter sees a frame that comes back");
    held.clear();
    assert!(magazine::held(&pool) > 0);
    assert_eq!(pool.free_frames(), 256);
}

#[test]
fn bursts_are_what_single_calls_are() {
    let pool = exact(256);
    let rx = pool.add_reserve(ReserveId::ROOT, "rx", 40);
    pool.connect(rx).unwrap();
    let _rest = drain(&pool, Gfp::ATOMIC);
    let mut frames = Vec::new();
    let result = pool.alloc_burst_from(Gfp::ATOMIC, rx, 100, |f| frames.push(f));
    assert_eq!(result, Err(AllocError::ReserveUsedUp { reserve: rx }));
    assert_eq!((frames.len(), pool.reserve_usage(rx)), (40, 40));
    let free = pool.free_frames();
    pool.free_burst(frames);
    assert_eq!((pool.free_frames(), pool.reserve_usage(rx)), (free + 40, 0));
}

#[test]
fn without_the_reserve_a_scope_takes_everything_uncharged() {
    let pool = PagePool::new(PoolConfig { reserve: false, magazine: 0, ..PoolConfig::new(64) });
    let rx = pool.add_reserve(ReserveId::ROOT, "rx", 1000);
    pool.connect(rx).unwrap();
    assert_eq!(pool.watermarks().floor, 0);
    let scope = EmergencyScope::enter(&pool, rx);
    let frames = drain(&pool, Gfp::KERNEL);
    assert_eq!((frames.len(), pool.reserve_usage(rx)), (64, 0));
    assert_eq!(pool.alloc(Gfp::KERNEL).unwrap_err(), AllocError::Exhausted);
    drop(scope);
}

#[test]
#[should_panic(expected = "another pool")]
fn a_reserve_of_another_pool_is_caught() {
    let (a, b) = (exact(64), exact(64));
    let rx = a.add_reserve(ReserveId::ROOT, "rx", 1);
    let _ = b.connect(rx);
}

#[test]
fn the_report_shows_the_tree() {
    let pool = exact(256);
    let net = pool.add_reserve(ReserveId::ROOT, "net", 0);
    let out = pool.add_reserve(ReserveId::ROOT, "swap.out", 8);
    pool.add_reserve(net, "net.rx", 64);
    pool.connect(net).unwrap();
    let _charge = pool.charge(out, 1).unwrap_err();
    let expected = "\
reserve       usage     peak    limit failures    waits  state
total             0        0       64        0        0  connected
  net             0        0       64        0        0  connected
    net.rx        0        0       64        0        0  connected
  swap.out        0        0        0        1        0  not connected
";
    assert_eq!(pool.reserve_report(), expected);
}
