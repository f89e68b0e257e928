//! Tells when a node of the reserve tree fills up: a `tracing` event as it passes 50, 90 and 100 % of its
//! limit, upwards.
//!
//! A level that was passed is told again only after usage has fallen below it by an eighth of the limit
//! (one frame at least). A node that goes all the way up and down for each piece of work passes it every
//! time all the same; so after [`ALWAYS`] events of a level, only each power of two is told (the 16th,
//! 32nd, 64th ... time). The event says which time it is.
//!
//! The tree only notes that there is something to tell, under the pool's lock and in one comparison; it
//! is told after the lock is given back. Nothing is formatted or allocated here: the event borrows the
//! node's name.

use std::sync::Arc;

use crate::inner::Inner;

/// The levels, in percent of the limit.
pub(crate) const LEVELS: [u8; 3] = [50, 90, 100];

/// Times that a level is told without gaps. Picked by eye.
const ALWAYS: u32 = 8;

/// Where one node stands.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Alarm {
    /// Usage at which the next level is passed.
    above: u32,
    /// Usage below which the last level passed can be passed again.
    below: u32,
    /// Levels passed.
    level: u8,
    /// Levels to be told, one bit each.
    pending: u8,
    times: [u32; LEVELS.len()],
}

/// One event.
pub(crate) struct Told {
    pub(crate) name: Arc<str>,
    pub(crate) percent: u8,
    pub(crate) usage: u32,
    pub(crate) limit: u32,
    pub(crate) times: u32,
}

/// Usage at which a level is reached: `percent` of `limit` or more.
fn reached_at(limit: u32, level: usize) -> u32 {
    let frames = (u64::from(limit) * u64::from(LEVELS[level])).div_ceil(100);
    // At most `limit`, as no level is above 100 %.
    frames as u32
}

/// Usage below which it can be reached again.
fn again_below(limit: u32, level: usize) -> u32 {
    reached_at(limit, level).saturating_sub((limit / 8).max(1) - 1).max(1)
}

impl Alarm {
    pub(crate) const fn new() -> Alarm {
        Alarm { above: u32::MAX, below: 0, level: 0, pending: 0, times: [0; LEVELS.len()] }
    }

    /// Usage from which on, and below which, [`Alarm::follow`] has something to do.
    pub(crate) fn bounds(&self) -> (u32, u32) {
        (self.above, self.below)
    }

    /// Follows usage and limit. Returns whether there is something to tell. A limit of 0 has no levels.
    pub(crate) fn follow(&mut self, usage: u32, limit: u32) -> bool {
        let mut level = usize::from(self.level);
        while level > 0 && (limit == 0 || usage < again_below(limit, level - 1)) {
            level -= 1;
        }
        while limit > 0 && level < LEVELS.len() && usage >= reached_at(limit, level) {
            self.times[level] = self.times[level].saturating_add(1);
            if self.times[level] <= ALWAYS || self.times[level].is_power_of_two() {
                self.pending |= 1 << level;
            }
            level += 1;
        }
        self.level = level as u8;
        let next = limit > 0 && level < LEVELS.len();
        self.above = if next { reached_at(limit, level) } else { u32::MAX };
        self.below = if level > 0 { again_below(limit, level - 1) } else { 0 };
        self.pending != 0
    }

    /// The lowest level to be told, and how often it was passed.
    pub(crate) fn take(&mut self) -> Option<(u8, u32)> {
        let level = self.pending.trailing_zeros() as usize;
        let percent = *LEVELS.get(level)?;
        self.pending &= !(1 << level);
        Some((percent, self.times[level]))
    }
}

impl Told {
    fn tell(&self) {
        let Told { name, percent, usage, limit, times } = self;
        // Full is what makes allocations fail; the others are early signs.
        match percent {
            100 => {
                tracing::warn!(reserve = &**name, percent, usage, limit, times, "a reserve is full")
            }
            90 => tracing::info!(
                reserve = &**name,
                percent,
                usage,
                limit,
                times,
                "a reserve fills up"
            ),
            _ => tracing::debug!(
                reserve = &**name,
                percent,
                usage,
                limit,
                times,
                "a reserve is in use"
            ),
        }
    }
}

impl Inner {
    /// Tells what the tree has noted. To be called without the lock.
    #[cold]
    pub(crate) fn tell_alarms(&self) {
        loop {
            // In a statement of its own: the guard ends with it.
            let told = self.lock().tree.take_alarm();
            match told {
                Some(told) => told.tell(),
                None => return,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Levels told on the way through `usages`.
    fn told(limit: u32, usages: impl IntoIterator<Item = u32>) -> Vec<(u8, u32)> {
        let mut alarm = Alarm::new();
        alarm.follow(0, limit);
        let mut told = Vec::new();
        for usage in usages {
            let (above, below) = alarm.bounds();
            if usage >= above || usage < below {
                alarm.follow(usage, limit);
            }
            told.extend(std::iter::from_fn(|| alarm.take()));
        }
        told
    }

    #[test]
    fn each_level_is_told_once_on_the_way_up() {
        assert_eq!(told(100, 0..=100), [(50, 1), (90, 1), (100, 1)]);
        assert_eq!(told(100, [49, 50, 89, 90, 99, 100]), [(50, 1), (90, 1), (100, 1)]);
        assert_eq!(told(100, [100]), [(50, 1), (90, 1), (100, 1)], "all at once");
        assert_eq!(told(100, 0..50), []);
        assert_eq!(told(1, [1]), [(50, 1), (90, 1), (100, 1)]);
        assert_eq!(told(0, [0, 0]), []);
    }

    #[test]
    fn going_up_and_down_around_a_level_is_told_once() {
        assert_eq!(told(100, [50, 49, 50, 45, 50, 40, 50]), [(50, 1)]);
        assert_eq!(told(100, [50, 38, 50]), [(50, 1), (50, 2)], "an eighth of the limit below");
        assert_eq!(told(8, [4, 3, 4, 2, 4]), [(50, 1), (50, 2), (50, 3)]);
    }

    #[test]
    fn what_happens_all_the_time_is_told_ever_less() {
        let told = told(100, (0..1_000).flat_map(|_| [0, 60]));
        let times: Vec<u32> = told.iter().map(|t| t.1).collect();
        assert_eq!(times, [1, 2, 3, 4, 5, 6, 7, 8, 16, 32, 64, 128, 256, 512]);
    }

    #[test]
    fn a_limit_that_moves_moves_the_levels() {
        let mut alarm = Alarm::new();
        alarm.follow(0, 10);
        assert!(alarm.follow(6, 10));
        assert_eq!(alarm.take(), Some((50, 1)));
        assert!(!alarm.follow(6, 100), "now it is little again");
        assert_eq!(alarm.bounds().0, 50);
        assert!(alarm.follow(6, 6), "a smaller limit is passed too");
        assert_eq!(std::iter::from_fn(|| alarm.take()).count(), 3);
        assert!(!alarm.follow(0, 0));
        assert_eq!(alarm.bounds(), (u32::MAX, 0));
    }
}
