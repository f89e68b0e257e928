//! Counters of what is rare: waiting, reclaim, drains. Nothing on the way of an allocation that
//! succeeds at once is counted here.

use std::sync::atomic::{AtomicU64, Ordering};

/// What a pool has gone through, as [`PagePool::stats`](crate::PagePool::stats) reports it. Each number is
/// exact; together they are not of one instant.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct PoolStats {
    /// Allocations that had to queue.
    pub waits: u64,
    /// Those that queue now.
    pub waiting: u32,
    /// The most that ever queued at once.
    pub longest_queue: u64,
    /// Frames that were handed to a waiter.
    pub handed_over: u64,
    /// Waiters whose deadline passed.
    pub timeouts: u64,
    /// Times that a direct reclaimer was held back because half of the floor was used.
    pub throttled: u64,
    /// Times that a waiting allocation called the reclaim hooks itself.
    pub direct_reclaims: u64,
    /// Frames that the hooks said they freed there.
    pub direct_reclaimed: u64,
    /// Turns of background reclaim.
    pub background_reclaims: u64,
    /// Frames that the hooks said they freed there.
    pub background_reclaimed: u64,
    /// Times that the magazines of all threads were emptied.
    pub drains: u64,
    /// Frames that came out of them.
    pub drained_frames: u64,
}

#[derive(Default)]
pub(crate) struct Counter(AtomicU64);

impl Counter {
    pub(crate) fn add(&self, n: u64) {
        self.0.fetch_add(n, Ordering::Relaxed);
    }

    pub(crate) fn max(&self, n: u64) {
        self.0.fetch_max(n, Ordering::Relaxed);
    }

    fn now(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[derive(Default)]
pub(crate) struct Counters {
    pub(crate) waits: Counter,
    pub(crate) longest_queue: Counter,
    pub(crate) handed_over: Counter,
    pub(crate) timeouts: Counter,
    pub(crate) throttled: Counter,
    pub(crate) direct_reclaims: Counter,
    pub(crate) direct_reclaimed: Counter,
    pub(crate) background_reclaims: Counter,
    pub(crate) background_reclaimed: Counter,
    pub(crate) drains: Counter,
    pub(crate) drained_frames: Counter,
}

impl Counters {
    pub(crate) fn stats(&self, waiting: u32) -> PoolStats {
        PoolStats {
            waits: self.waits.now(),
            waiting,
            longest_queue: self.longest_queue.now(),
            handed_over: self.handed_over.now(),
            timeouts: self.timeouts.now(),
            throttled: self.throttled.now(),
            direct_reclaims: self.direct_reclaims.now(),
            direct_reclaimed: self.direct_reclaimed.now(),
            background_reclaims: self.background_reclaims.now(),
            background_reclaimed: self.background_reclaimed.now(),
            drains: self.drains.now(),
            drained_frames: self.drained_frames.now(),
        }
    }
}
