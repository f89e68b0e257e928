//! The hand-over to waiters, and the lock, under every order that the memory model allows.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::lock::SpinLock;

fn node() -> Node {
    Node::new(Want::Frame, Gfp::KERNEL, Caller { entitled: None, by_scope: false })
}

/// As `Inner::put`: the first waiter gets the frame, or the list does.
fn free(pool: &SpinLock<(WaitQueue, Vec<u32>)>, frame: u32) {
    let mut woken = Woken::none();
    {
        let mut state = pool.lock();
        match state.0.first(Line::Frames) {
            Some(first) => state.0.grant(first, frame, &mut woken),
            None => state.1.push(frame),
        }
    }
    woken.wake();
}

/// As `wait`, without reclaim.
fn wait(pool: &SpinLock<(WaitQueue, Vec<u32>)>) -> u32 {
    let node = node();
    {
        let mut state = pool.lock();
        if let Some(frame) = state.1.pop() {
            return frame;
        }
        // SAFETY: the node stays here until it is woken.
        unsafe { state.0.join(&node) }
    }
    loop {
        if let Some(frame) = node.granted() {
            return frame;
        }
        thread::park();
    }
}

/// Nobody sleeps for ever, whichever of freeing and queueing comes first.
#[test]
fn loom_no_wake_up_is_lost() {
    crate::sync::model(|| {
        let pool = Arc::new(SpinLock::new((WaitQueue::new(), Vec::new())));
        let waiter = {
            let pool = pool.clone();
            thread::spawn(move || wait(&pool))
        };
        free(&pool, 7);
        assert_eq!(waiter.join().unwrap(), 7);
        let state = pool.lock();
        assert!(state.0.is_empty() && state.1.is_empty());
    });
}

/// A waiter that gives up at the moment of the grant: it has the frame, or it is on the list; and the
/// waker never looks at a waiter that has gone (its node is made unusable when it goes).
#[test]
fn loom_giving_up_meets_a_grant() {
    crate::sync::model(|| {
        let pool = Arc::new(SpinLock::new((WaitQueue::new(), Vec::new())));
        let waiter = {
            let pool = pool.clone();
            thread::spawn(move || {
                let node = node();
                // SAFETY: the node stays here until it has left or is woken.
                unsafe { pool.lock().0.join(&node) }
                let left = pool.lock().0.leave(&node);
                let frame = if left { None } else { Some(node.wait_woken()) };
                // Everything that others did to the node is before this, or loom says so.
                node.grant.set(u32::MAX);
                frame
            })
        };
        free(&pool, 7);
        let got = waiter.join().unwrap();
        let state = pool.lock();
        assert!(state.0.is_empty());
        assert_eq!(got.into_iter().chain(state.1.iter().copied()).collect::<Vec<_>>(), [7]);
    });
}

/// The canary: a waiter that trusts a look at the queue without the lock's order.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_finds_a_grant_that_is_not_released() {
    crate::sync::model(|| {
        let node = Arc::new(NodeForAll(node()));
        let waker = {
            let node = node.clone();
            thread::spawn(move || {
                node.0.grant.set(7);
                node.0.woken.store(true, Ordering::Relaxed);
            })
        };
        if node.0.woken.load(Ordering::Relaxed) {
            assert_eq!(node.0.grant.get(), 7);
        }
        waker.join().unwrap();
    });
}

/// A node that the canary shares by hand.
struct NodeForAll(Node);
// SAFETY: for the model checker, which is to find that this is wrong.
unsafe impl Send for NodeForAll {}
// SAFETY: as above.
unsafe impl Sync for NodeForAll {}

/// Sections do not overlap, and see each other.
#[test]
fn loom_the_lock_excludes() {
    crate::sync::model(|| {
        let lock = Arc::new(SpinLock::new(0));
        let other = {
            let lock = lock.clone();
            thread::spawn(move || *lock.lock() += 1)
        };
        *lock.lock() += 1;
        other.join().unwrap();
        assert_eq!(*lock.lock(), 2);
    });
}
