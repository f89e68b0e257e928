//! Many threads on one pool: the floor is never broken, a promise is always kept, content is never shared
//! by mistake, and everything is back at the end.
//!
//! Method: real threads that allocate, hold, pass on, share, park and free, each with its own seeded
//! choices; with exact counts and with magazines. How the threads interleave is not seeded, so what is
//! asserted holds for every interleaving.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc;

use netswap_reserve::{
    AllocError, EmergencyScope, Frame, Gfp, PagePool, PoolConfig, ReserveId, SlabCache,
};

const FRAMES: u32 = 512;
const TURNS: u32 = 30_000;

/// A small generator, so that a thread's choices repeat.
struct Choices(u64);

impl Choices {
    fn below(&mut self, n: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % n
    }
}

fn stamp(frame: &mut Frame, thread: u64, turn: u64) {
    frame.bytes_mut()[..8].copy_from_slice(&(thread << 32 | turn).to_le_bytes());
    frame.bytes_mut()[4088..].copy_from_slice(&(thread << 32 | turn).to_le_bytes());
}

fn check(bytes: &[u8; 4096]) {
    assert_eq!(bytes[..8], bytes[4088..], "two owners of one frame");
}

fn unentitled_threads(magazine: u32) {
    let pool = PagePool::new(PoolConfig { magazine, ..PoolConfig::new(FRAMES) });
    pool.resize(ReserveId::ROOT, 64).unwrap();
    let marks = pool.watermarks();
    let threads: Vec<_> = (1..=4u64)
        .map(|t| {
            let pool = pool.clone();
            std::thread::spawn(move || {
                let mut choices = Choices(t * 7_919);
                let mut held = Vec::new();
                for turn in 0..TURNS {
                    let gfp =
                        [Gfp::KERNEL, Gfp::ATOMIC, Gfp::SPECULATIVE][choices.below(3) as usize];
                    match choices.below(5) {
                        0..3 => match pool.alloc(gfp) {
                            Ok(mut frame) => {
                                stamp(&mut frame, t, turn.into());
                                held.push(frame);
                            }
                            // Only those that get furthest make room again, so that it is short.
                            Err(AllocError::AtWatermark { .. }) if gfp == Gfp::ATOMIC => {
                                held.truncate(held.len() / 2);
                            }
                            Err(AllocError::AtWatermark { .. }) => {}
                            Err(other) => panic!("{other}"),
                        },
                        3 if !held.is_empty() => {
                            let frame = held.swap_remove(choices.below(held.len() as u64) as usize);
                            let id = frame.park();
                            let frame = pool.unpark(id).expect("parked by this thread");
                            check(frame.bytes());
                        }
                        _ => drop(held.pop()),
                    }
                }
                held.iter().for_each(|f| check(f.bytes()));
            })
        })
        .collect();
    threads.into_iter().for_each(|t| t.join().unwrap());
    assert!(pool.lowest_free() >= marks.atomic, "{} free", pool.lowest_free());
    assert!(pool.lowest_free() < marks.min, "the pool was not used up: this proved nothing");
    assert_eq!(pool.free_frames(), FRAMES);
}

#[test]
fn unentitled_threads_do_not_break_the_floor() {
    unentitled_threads(0);
}

#[test]
fn unentitled_threads_with_magazines_do_not_break_the_floor() {
    unentitled_threads(32);
}

/// Entitled threads stay within their own reserves: they must always get what was promised them,
/// however much the others want.
fn promised_threads(magazine: u32) {
    const RESERVE: u64 = 20;
    let pool = PagePool::new(PoolConfig { magazine, ..PoolConfig::new(FRAMES) });
    let reserves: Vec<_> = (0..2)
        .map(|i| pool.add_reserve(ReserveId::ROOT, &format!("r{i}"), RESERVE as u32))
        .collect();
    pool.connect(ReserveId::ROOT).unwrap();
    reserves.iter().for_each(|&r| pool.connect(r).unwrap());
    // Most memory is gone from the start, so that it is short whoever runs first.
    let rest: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::SPECULATIVE).ok()).collect();
    // Frames travel: a thread that takes them sends them to one that frees them.
    let (send, receive) = mpsc::channel::<netswap_reserve::PageRef>();
    let mut threads = Vec::new();
    for t in 1..=2u64 {
        let (pool, send) = (pool.clone(), send.clone());
        threads.push(std::thread::spawn(move || {
            let mut held = Vec::new();
            for turn in 0..TURNS {
                match pool.alloc(Gfp::ATOMIC) {
                    Ok(mut frame) => {
                        stamp(&mut frame, t, turn.into());
                        let page = frame.share();
                        send.send(page.clone()).unwrap();
                        held.push(page);
                    }
                    Err(_) => held.truncate(held.len() / 2),
                }
            }
        }));
    }
    drop(send);
    threads.push(std::thread::spawn(move || {
        for page in receive {
            check(page.bytes());
        }
    }));
    for (t, &reserve) in reserves.iter().enumerate() {
        let pool = pool.clone();
        threads.push(std::thread::spawn(move || {
            let mut choices = Choices(t as u64 * 104_729 + 1);
            let mut held: Vec<Frame> = Vec::new();
            for turn in 0..TURNS {
                if (held.len() as u64) < RESERVE && choices.below(2) == 0 {
                    let frame = if choices.below(2) == 0 {
                        let _scope = EmergencyScope::enter(&pool, reserve);
                        pool.alloc(Gfp::KERNEL)
                    } else {
                        pool.alloc_from(Gfp::KERNEL, reserve)
                    };
                    let mut frame = frame.expect("what was promised");
                    stamp(&mut frame, t as u64 + 10, turn.into());
                    held.push(frame);
                } else {
                    let at = choices.below(held.len().max(1) as u64) as usize;
                    if at < held.len() {
                        check(held.swap_remove(at).bytes());
                    }
                }
            }
        }));
    }
    threads.into_iter().for_each(|t| t.join().unwrap());
    drop(rest);
    assert_eq!(pool.free_frames(), FRAMES);
    for info in pool.reserve_info() {
        assert_eq!(info.usage, 0);
        assert_eq!(info.failures, 0, "a promise was not kept");
    }
    assert!(pool.reserve_peak(ReserveId::ROOT) > 0, "no reserve was used: this proved nothing");
}

#[test]
fn what_is_promised_to_one_thread_is_kept_from_others() {
    promised_threads(0);
}

#[test]
fn what_is_promised_is_kept_from_threads_with_magazines() {
    promised_threads(32);
}

/// Pools that go while other threads still hold their frames, objects and charges.
#[test]
fn pools_end_on_whatever_thread_is_last() {
    for round in 0..200u32 {
        let pool = PagePool::new(PoolConfig { magazine: round % 3 * 8, ..PoolConfig::new(128) });
        pool.resize(ReserveId::ROOT, 4).unwrap();
        let cache = SlabCache::<[u64; 9]>::new(&pool);
        let (send, receive) = mpsc::channel();
        let thread = std::thread::spawn(move || {
            for thing in receive {
                drop::<(Frame, Frame, netswap_reserve::SlabBox<_>, netswap_reserve::Charge)>(thing);
            }
        });
        for _ in 0..4 {
            let thing = (
                pool.alloc(Gfp::KERNEL).unwrap(),
                pool.alloc(Gfp::KERNEL).unwrap(),
                cache.alloc(Gfp::KERNEL, [1; 9]).unwrap(),
                pool.charge(ReserveId::ROOT, 1).unwrap(),
            );
            send.send(thing).unwrap();
        }
        pool.alloc(Gfp::KERNEL).unwrap().park();
        drop((pool, cache, send));
        thread.join().unwrap();
    }
}

/// Raising and lowering the floor beside allocations: never a promise that is not covered.
#[test]
fn the_floor_moves_while_threads_allocate() {
    let pool = PagePool::new(PoolConfig { magazine: 16, ..PoolConfig::new(FRAMES) });
    let net = pool.add_reserve(ReserveId::ROOT, "net", 100);
    let stop = std::sync::atomic::AtomicBool::new(false);
    std::thread::scope(|s| {
        for t in 0..2 {
            let (pool, stop) = (&pool, &stop);
            s.spawn(move || {
                let mut choices = Choices(t + 99);
                let mut held = Vec::new();
                while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                    match pool.alloc(Gfp::ATOMIC) {
                        Ok(frame) => held.push(frame),
                        Err(_) => held.truncate(choices.below(200) as usize),
                    }
                }
            });
        }
        let (mut connected, mut rounds) = (0, 0);
        // Until it was connected once: how the threads are scheduled must not decide.
        while rounds < 5_000 || connected == 0 {
            rounds += 1;
            if pool.connect(net).is_ok() {
                connected += 1;
                // All that was promised, at once.
                let frames: Vec<_> =
                    (0..100).map(|_| pool.alloc_from(Gfp::KERNEL, net).unwrap()).collect();
                pool.free_burst(frames);
                pool.disconnect(net).unwrap();
            } else {
                std::thread::yield_now();
            }
        }
        stop.store(true, std::sync::atomic::Ordering::Relaxed);
    });
    assert_eq!(pool.watermarks().floor, 0);
}

/// What is in a magazine goes to who is refused, also while somebody else is just draining it.
#[test]
fn who_is_refused_during_a_drain_gets_what_it_brings() {
    const ROUNDS: u32 = if cfg!(miri) { 20 } else { 100_000 };
    let pool = PagePool::new(PoolConfig { magazine: 32, ..PoolConfig::new(128) });
    let min = pool.watermarks().min;
    let stop = AtomicBool::new(false);
    let mut early = None;
    std::thread::scope(|s| {
        s.spawn(|| {
            while !stop.load(Relaxed) {
                if pool.reclaim() == 0 {
                    std::thread::yield_now();
                }
            }
        });
        for round in 0..ROUNDS {
            let all: Vec<Frame> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
            if all.len() as u32 != pool.frames() - min {
                early.get_or_insert((round, all.len()));
            }
        }
        stop.store(true, Relaxed);
    });
    assert_eq!(early, None, "the round, and how many frames there were to be had");
}
