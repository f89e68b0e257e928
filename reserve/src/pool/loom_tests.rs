//! The end of a pool, under every order that the memory model allows: handles, frames, charges and parked
//! frames that go on several threads free it once, after everything else.

use loom::sync::Arc;
use loom::thread;

use super::*;

fn pool() -> PagePool {
    PagePool::new(PoolConfig { magazine: 0, headroom: 0, ..PoolConfig::new(2) })
}

/// Runs a model and checks that each pool it makes is freed, once.
fn model(f: impl Fn() + Sync + Send + 'static) {
    crate::sync::model(move || {
        let before = crate::inner::DESTROYED.load(std::sync::atomic::Ordering::Relaxed);
        f();
        let after = crate::inner::DESTROYED.load(std::sync::atomic::Ordering::Relaxed);
        assert_eq!(after - before, 1);
    });
}

#[test]
fn loom_the_last_handle_meets_the_last_frame() {
    model(|| {
        let pool = pool();
        let frame = pool.alloc(Gfp::ATOMIC).unwrap();
        let other = thread::spawn(move || drop(frame));
        drop(pool);
        other.join().unwrap();
    });
}

#[test]
fn loom_the_last_handles_meet() {
    model(|| {
        let pool = pool();
        let handle = pool.clone();
        let other = thread::spawn(move || drop(handle));
        drop(pool);
        other.join().unwrap();
    });
}

#[test]
fn loom_a_frame_is_parked_while_the_last_handle_goes() {
    model(|| {
        let pool = pool();
        let frame = pool.alloc(Gfp::ATOMIC).unwrap();
        let other = thread::spawn(move || {
            frame.park();
        });
        drop(pool);
        other.join().unwrap();
    });
}

/// Of two that take a parked frame back one gets it, and sees what was written before it was parked.
#[test]
fn loom_a_parked_frame_has_one_owner() {
    model(|| {
        let pool = Arc::new(pool());
        let mut frame = pool.alloc(Gfp::ATOMIC).unwrap();
        frame.bytes_mut()[0] = 1;
        let id = frame.park();
        let other = {
            let pool = pool.clone();
            thread::spawn(move || pool.unpark(id).is_some())
        };
        let here = pool.unpark(id).is_some();
        // Each drops what it got at once, so the second may find it parked no more.
        assert!(here ^ other.join().unwrap());
    });
}

#[test]
fn loom_the_last_references_to_a_page_meet() {
    model(|| {
        let pool = pool();
        let page = pool.alloc(Gfp::ATOMIC).unwrap().share();
        let second = page.clone();
        let other = thread::spawn(move || drop(second));
        drop(page);
        other.join().unwrap();
        assert_eq!(pool.free_frames(), 2);
    });
}
