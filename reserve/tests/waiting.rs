//! Allocations that wait: served in order, reclaim called for them within its limits, an end by the
//! deadline.
//!
//! Method: threads queue one after the other, each seen in `stats().waiting` before the next starts; frames
//! are then freed one by one. Hooks record what they are told. Nothing sleeps to be in time: what is waited
//! for is a count, and deadlines are either long (never reached) or expected to pass.

use std::sync::atomic::{AtomicBool, AtomicU32, Ordering::SeqCst};
use std::sync::{Arc, Mutex, mpsc};
use std::time::{Duration, Instant};

use netswap_reserve::{
    AllocError, Deadline, EmergencyScope, Frame, Gfp, NoFsScope, NoIoScope, PagePool, PoolConfig,
    Reclaim, ReclaimThread, ReserveId, WaitError,
};

const LONG: Duration = Duration::from_secs(60);
const SHORT: Duration = Duration::from_millis(20);

fn pool(magazine: u32) -> PagePool {
    PagePool::new(PoolConfig { magazine, ..PoolConfig::new(128) })
}

/// Takes all that an ordinary caller gets.
fn fill(pool: &PagePool) -> Vec<Frame> {
    std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect()
}

fn until(what: impl Fn() -> bool) {
    while !what() {
        std::thread::yield_now();
    }
}

/// A hook made of closures.
struct Hook<D: Fn(&PagePool, Gfp, u32) -> u32>(D);

impl<D: Fn(&PagePool, Gfp, u32) -> u32 + Send + Sync> Reclaim for Hook<D> {
    fn background(&self, pool: &PagePool, wanted: u32) -> u32 {
        (self.0)(pool, Gfp::KERNEL, wanted)
    }

    fn direct(&self, pool: &PagePool, gfp: Gfp, wanted: u32) -> u32 {
        (self.0)(pool, gfp, wanted)
    }
}

#[test]
fn first_come_first_served_and_entitled_before_all() {
    let pool = pool(0);
    let reserve = pool.add_reserve(ReserveId::ROOT, "r", 1);
    pool.connect(reserve).unwrap();
    let mut all = fill(&pool);
    let dipped = pool.alloc_from(Gfp::KERNEL, reserve).unwrap();
    let (send, order) = mpsc::channel();
    let mut threads = Vec::new();
    // Two ordinary ones, then one that is entitled to a reserve that is used up, then again two.
    for (i, entitled) in [false, false, true, false, true].into_iter().enumerate() {
        let (own, send) = (pool.clone(), send.clone());
        threads.push(std::thread::spawn(move || {
            let frame = if entitled {
                own.alloc_wait_from(Gfp::KERNEL, reserve, LONG)
            } else {
                own.alloc_wait(Gfp::KERNEL, LONG)
            };
            send.send((i, frame.unwrap())).unwrap();
        }));
        until(|| pool.stats().waiting == i as u32 + 1);
    }
    // The frame that the reserve gave is missing from those that ordinary callers may have.
    drop(all.pop());
    let mut served = Vec::new();
    let mut frames = Vec::new();
    for _ in 0..5 {
        drop(all.pop());
        let (i, frame) = order.recv().unwrap();
        served.push(i);
        frames.push(frame);
    }
    assert_eq!(served, [2, 4, 0, 1, 3]);
    assert!(frames.iter().all(|f| f.charged_to().is_none()), "ordinary memory is tried first");
    threads.into_iter().for_each(|t| t.join().unwrap());
    let stats = pool.stats();
    assert_eq!((stats.waits, stats.waiting, stats.longest_queue), (5, 0, 5));
    assert_eq!((stats.handed_over, stats.timeouts), (5, 0));
    drop(dipped);
}

/// A released charge is as good as a free frame for who is entitled, and passes ordinary waiters by.
#[test]
fn a_released_charge_serves_the_entitled_waiter_of_that_reserve() {
    let pool = pool(0);
    let [a, b] = ["a", "b"].map(|name| pool.add_reserve(ReserveId::ROOT, name, 1));
    pool.connect(a).unwrap();
    pool.connect(b).unwrap();
    let all = fill(&pool);
    let holds = [a, b].map(|r| pool.alloc_from(Gfp::KERNEL, r).unwrap());
    let [on_a, on_b] = holds;
    std::thread::scope(|s| {
        let ordinary = s.spawn(|| pool.alloc_wait(Gfp::KERNEL, LONG));
        until(|| pool.stats().waiting == 1);
        let on_a_next = s.spawn(|| pool.alloc_wait_from(Gfp::KERNEL, a, LONG));
        until(|| pool.stats().waiting == 2);
        let on_b_next = s.spawn(|| pool.alloc_wait_from(Gfp::KERNEL, b, LONG));
        until(|| pool.stats().waiting == 3);
        drop(on_b);
        let frame = on_b_next.join().unwrap().unwrap();
        assert_eq!(frame.charged_to(), Some(b), "it does not wait behind the waiter for a");
        drop(on_a);
        assert_eq!(on_a_next.join().unwrap().unwrap().charged_to(), Some(a));
        assert!(!ordinary.is_finished());
        drop(all);
        assert!(ordinary.join().unwrap().is_ok());
    });
}

#[test]
fn a_call_that_does_not_wait_takes_nothing_from_those_who_do() {
    let pool = pool(0);
    let mut all = fill(&pool);
    std::thread::scope(|s| {
        let waiter = s.spawn(|| pool.alloc_wait(Gfp::KERNEL, LONG));
        until(|| pool.stats().waiting == 1);
        drop(all.pop());
        // Whether the waiter has woken yet or not: the frame is its own already.
        assert!(matches!(pool.alloc(Gfp::KERNEL), Err(AllocError::AtWatermark { .. })));
        assert!(waiter.join().unwrap().is_ok());
    });
}

#[test]
fn a_deadline_that_passes_is_a_typed_error_and_leaves_nothing() {
    let pool = pool(0);
    let all = fill(&pool);
    match pool.alloc_wait(Gfp::KERNEL, SHORT).unwrap_err() {
        WaitError::TimedOut {
            refused: AllocError::AtWatermark { .. },
            waited,
            reclaims,
            freed,
        } => {
            assert!(waited >= SHORT, "{waited:?}");
            assert_eq!((reclaims, freed), (0, 0));
        }
        other => panic!("{other}"),
    }
    let stats = pool.stats();
    assert_eq!((stats.waits, stats.waiting, stats.timeouts, stats.handed_over), (1, 0, 1, 0));
    drop(all);
    assert_eq!(pool.free_frames(), 128);
}

/// Counts from when it is made into a deadline, and takes half of the time for that.
struct Dawdling;

impl From<Dawdling> for Deadline {
    fn from(_: Dawdling) -> Deadline {
        let at = Instant::now() + SHORT;
        while Instant::now() + SHORT / 2 < at {
            std::thread::yield_now();
        }
        at.into()
    }
}

#[test]
fn a_wait_is_told_from_before_its_deadline_was_counted() {
    let pool = pool(0);
    let _all = fill(&pool);
    match pool.alloc_wait(Gfp::KERNEL, Dawdling).unwrap_err() {
        WaitError::TimedOut { waited, .. } => assert!(waited >= SHORT, "{waited:?}"),
        other => panic!("{other}"),
    }
}

#[test]
fn calls_that_cannot_wait_are_refused_at_once() {
    let pool = pool(0);
    let _all = fill(&pool);
    // Atomic ones go further first.
    let _more: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    for gfp in [Gfp::ATOMIC, Gfp::NOWAIT, Gfp::SPECULATIVE] {
        let error = pool.alloc_wait(gfp, LONG).unwrap_err();
        assert!(matches!(error, WaitError::Refused(AllocError::AtWatermark { .. })), "{gfp:?}");
    }
    assert_eq!(pool.stats().waits, 0);
}

/// A thread that holds frames back in its magazine, lives, and does nothing until it is told to end.
struct IdleThread {
    stop: mpsc::Sender<()>,
    thread: std::thread::JoinHandle<()>,
}

impl IdleThread {
    fn of(pool: &PagePool) -> IdleThread {
        let (idle, parked) = mpsc::channel();
        let (stop, stopped) = mpsc::channel::<()>();
        let pool = pool.clone();
        let thread = std::thread::spawn(move || {
            // A thread that finds another one at the table of magazines does without one for that time.
            (0..100).for_each(|_| drop(pool.alloc(Gfp::KERNEL).unwrap()));
            idle.send(pool.frames() - pool.free_frames()).unwrap();
            let _ = stopped.recv();
        });
        assert_eq!(parked.recv().unwrap(), 0, "the thread itself counts what it holds back");
        IdleThread { stop, thread }
    }

    fn end(self) {
        drop(self.stop);
        self.thread.join().unwrap();
    }
}

/// The memory of other threads, idle ones too, is not out of reach.
#[test]
fn idle_magazines_are_drained_for_who_is_short() {
    let pool = pool(32);
    let idle = IdleThread::of(&pool);
    let held = 128 - pool.free_frames();
    assert!(held > 1, "nothing was held back: this proves nothing");
    let all = fill(&pool);
    assert_eq!(all.len() as u32, 128 - pool.watermarks().min, "all there is, the idle ones too");
    let stats = pool.stats();
    // What this thread itself held back when memory became short is among them.
    assert!(stats.drained_frames >= held.into(), "{stats:?}");
    assert!(pool.alloc(Gfp::KERNEL).is_err());
    assert_eq!(pool.stats().drains, stats.drains, "nothing to drain, and that is known");
    idle.end();
    drop(all);
    pool.flush_magazine();
    assert_eq!(pool.free_frames(), 128);
}

/// Promising frames looks into all magazines, too.
#[test]
fn idle_magazines_are_drained_for_a_promise() {
    let pool = pool(32);
    let idle = IdleThread::of(&pool);
    assert!(pool.free_frames() < 128);
    pool.resize(ReserveId::ROOT, 128).unwrap();
    assert_eq!(pool.free_frames(), 128);
    idle.end();
}

#[test]
fn direct_reclaim_is_told_the_limits_and_serves_its_caller() {
    let pool = pool(0);
    let kept = Mutex::new(fill(&pool));
    let kept = Arc::new(kept);
    let told = Arc::new(Mutex::new(Vec::new()));
    let hook = {
        let (kept, told) = (kept.clone(), told.clone());
        Hook(move |_: &PagePool, gfp: Gfp, wanted| {
            told.lock().unwrap().push((gfp.may_io(), gfp.may_fs()));
            let mut kept = kept.lock().unwrap();
            let rest = kept.len().saturating_sub(wanted as usize);
            let freed = kept.split_off(rest);
            freed.len() as u32
        })
    };
    let registered = pool.register_reclaim(Arc::new(hook));
    let mut held = vec![pool.alloc_wait(Gfp::KERNEL, LONG).unwrap()];
    held.push(pool.alloc_wait(Gfp::NOFS, LONG).unwrap());
    held.push(pool.alloc_wait(Gfp::NOIO, LONG).unwrap());
    {
        let outer = NoIoScope::enter();
        let _inner = NoFsScope::enter();
        held.push(pool.alloc_wait(Gfp::KERNEL, LONG).unwrap());
        drop(outer);
        held.push(pool.alloc_wait(Gfp::KERNEL, LONG).unwrap());
    }
    held.push(pool.alloc_wait(Gfp::KERNEL, LONG).unwrap());
    let yes_no = [(true, true), (true, false), (false, false), (false, false), (true, false)];
    assert_eq!(told.lock().unwrap()[..5], yes_no);
    assert_eq!(told.lock().unwrap()[5..], [(true, true)]);
    assert_eq!((pool.stats().direct_reclaims, pool.stats().direct_reclaimed), (6, 6));
    // Taken away, it is not called any more.
    drop(registered);
    assert!(pool.alloc_wait(Gfp::KERNEL, SHORT).is_err());
    assert_eq!(told.lock().unwrap().len(), 6);
}

#[test]
fn reclaim_is_never_entered_from_inside_reclaim() {
    let pool = pool(0);
    let _all = fill(&pool);
    let depth = Arc::new(AtomicU32::new(0));
    let calls = Arc::new(AtomicU32::new(0));
    let hook = {
        let (depth, calls) = (depth.clone(), calls.clone());
        Hook(move |pool: &PagePool, _, _| {
            assert_eq!(depth.fetch_add(1, SeqCst), 0, "reclaim inside reclaim");
            calls.fetch_add(1, SeqCst);
            // Long enough that waiting would be noticed: it is refused at once instead.
            let inner = pool.alloc_wait(Gfp::KERNEL, LONG);
            assert!(matches!(inner, Err(WaitError::Refused(_))));
            assert_eq!(pool.reclaim(), 0);
            depth.fetch_sub(1, SeqCst);
            0
        })
    };
    let _registered = pool.register_reclaim(Arc::new(hook));
    let error = pool.alloc_wait(Gfp::KERNEL, SHORT).unwrap_err();
    let WaitError::TimedOut { reclaims, freed: 0, .. } = error else { panic!("{error}") };
    assert!(reclaims >= 1);
    let _ = pool.reclaim();
    assert_eq!(calls.load(SeqCst), reclaims + 1);
}

#[test]
fn direct_reclaimers_take_turns_once_half_of_the_floor_is_used() {
    let pool = pool(0);
    let reserve = pool.add_reserve(ReserveId::ROOT, "r", 4);
    pool.connect(reserve).unwrap();
    let calls = Arc::new(AtomicU32::new(0));
    let hook = {
        let calls = calls.clone();
        Hook(move |_: &PagePool, _, _| {
            calls.fetch_add(1, SeqCst);
            0
        })
    };
    let _registered = pool.register_reclaim(Arc::new(hook));
    let all = fill(&pool);
    let mut dipped: Vec<_> =
        (0..2).map(|_| pool.alloc_from(Gfp::KERNEL, reserve).unwrap()).collect();
    // Half is used: held back, up to the deadline.
    let error = pool.alloc_wait(Gfp::KERNEL, SHORT).unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { reclaims: 0, .. }), "{error}");
    assert_eq!((pool.stats().throttled, calls.load(SeqCst)), (1, 0));
    // Entitled by the call: never held back, though its reserve is used up.
    dipped.extend((0..2).map(|_| pool.alloc_from(Gfp::KERNEL, reserve).unwrap()));
    let error = pool.alloc_wait_from(Gfp::KERNEL, reserve, SHORT).unwrap_err();
    assert!(matches!(error, WaitError::TimedOut { reclaims: 1.., .. }), "{error}");
    let entitled_calls = calls.load(SeqCst);
    assert_eq!(pool.stats().throttled, 1);
    // Entitled by its scope: that is what reclaim runs in, so it calls none.
    {
        let _scope = EmergencyScope::enter(&pool, reserve);
        assert!(pool.alloc_wait(Gfp::KERNEL, SHORT).is_err());
        assert_eq!(calls.load(SeqCst), entitled_calls);
    }
    // Less than half again: whoever was held back goes on.
    std::thread::scope(|s| {
        let waiter = s.spawn(|| pool.alloc_wait(Gfp::KERNEL, LONG));
        until(|| pool.stats().throttled == 2);
        assert_eq!(calls.load(SeqCst), entitled_calls);
        dipped.truncate(1);
        until(|| calls.load(SeqCst) > entitled_calls);
        drop(all);
        assert!(waiter.join().unwrap().is_ok());
    });
}

#[test]
fn a_hook_that_panics_leaves_the_queue_as_it_was() {
    let pool = pool(0);
    let all = fill(&pool);
    let registered =
        pool.register_reclaim(Arc::new(Hook(|_: &PagePool, _, _| panic!("planted by the test"))));
    std::thread::scope(|s| {
        assert!(s.spawn(|| pool.alloc_wait(Gfp::KERNEL, LONG)).join().is_err());
    });
    assert_eq!(pool.stats().waiting, 0);
    drop(registered);
    drop(all);
    assert_eq!(pool.free_frames(), 128);
    assert!(pool.alloc_wait(Gfp::KERNEL, LONG).is_ok());
}

#[test]
fn background_reclaim_runs_from_low_to_high() {
    let pool = pool(32);
    let marks = pool.watermarks();
    let kept = Arc::new(Mutex::new(Vec::new()));
    let (told, wants) = mpsc::channel();
    let hook = {
        let kept = kept.clone();
        Hook(move |_: &PagePool, _, wanted| {
            told.send(wanted).unwrap();
            // One at a time: that it goes on until high is for the pool to see to.
            u32::from(kept.lock().unwrap().pop().is_some())
        })
    };
    let _registered = pool.register_reclaim(Arc::new(hook));
    let thread = ReclaimThread::spawn(&pool).unwrap();
    assert!(ReclaimThread::spawn(&pool).is_err(), "one for each pool");
    {
        // What is filled in counts only once all of it is there.
        let mut kept = kept.lock().unwrap();
        *kept = fill(&pool);
    }
    for _ in marks.min..marks.high {
        assert!(wants.recv().unwrap() <= marks.high - marks.min);
    }
    until(|| pool.free_frames() >= marks.high);
    assert!(pool.stats().background_reclaims > 0);
    assert_eq!(pool.poll_reclaim(), 0);
    drop(thread);
    // Without the thread an embedder polls.
    let _more = fill(&pool);
    assert_eq!(pool.poll_reclaim(), marks.high - pool.free_frames());
    assert_eq!(pool.reclaim(), 1);
}

/// Threads that take, wait, time out and free in all ways at once: nobody is forgotten, nothing is lost.
#[test]
fn many_wait_at_once() {
    const TURNS: u32 = if cfg!(miri) { 20 } else { 3_000 };
    for magazine in [0, 8] {
        let pool = PagePool::new(PoolConfig { magazine, ..PoolConfig::new(96) });
        let reserve = pool.add_reserve(ReserveId::ROOT, "r", 4);
        pool.connect(reserve).unwrap();
        let stop = AtomicBool::new(false);
        let reclaimed = Arc::new(Mutex::new(Vec::<Frame>::new()));
        let hook = {
            let reclaimed = reclaimed.clone();
            Hook(move |_: &PagePool, _, _| {
                let taken = std::mem::take(&mut *reclaimed.lock().unwrap());
                taken.len() as u32
            })
        };
        let registered = pool.register_reclaim(Arc::new(hook));
        let thread = ReclaimThread::spawn(&pool).unwrap();
        std::thread::scope(|s| {
            let workers: Vec<_> = (0..4u64)
                .map(|t| {
                    let (pool, reclaimed) = (&pool, &reclaimed);
                    s.spawn(move || {
                        let mut held = Vec::new();
                        for turn in 0..TURNS {
                            let frame = match (t + u64::from(turn)) % 5 {
                                0 => pool.alloc_wait(Gfp::KERNEL, Duration::from_micros(200)),
                                1 => pool.alloc_wait_from(Gfp::KERNEL, reserve, LONG),
                                2 => pool.alloc(Gfp::ATOMIC).map_err(WaitError::Refused),
                                _ => pool.alloc_wait(Gfp::NOIO, LONG),
                            };
                            held.extend(frame);
                            // Never more held by all than leaves a frame for one who waits.
                            if held.len() > 14 {
                                let cache = held.split_off(4);
                                reclaimed.lock().unwrap().extend(cache);
                            }
                        }
                        reclaimed.lock().unwrap().extend(held);
                    })
                })
                .collect();
            workers.into_iter().for_each(|w| w.join().unwrap());
            stop.store(true, SeqCst);
        });
        drop((thread, registered));
        reclaimed.lock().unwrap().clear();
        pool.flush_magazine();
        let stats = pool.stats();
        assert_eq!(pool.free_frames(), 96, "{stats:?}");
        assert_eq!(stats.waiting, 0);
        assert!(stats.waits > 0 && stats.handed_over > 0, "{stats:?}: this proved nothing");
        assert_eq!(pool.reserve_usage(ReserveId::ROOT), 0);
    }
}
