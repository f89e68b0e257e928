//! SYNCHRONIZE CACHE behind writes, for units that cache them and take no FUA.
//!
//! # Several writes, one flush
//! With merging there is one SYNCHRONIZE CACHE on the wire at a time. Writes that are answered meanwhile wait, and go together
//! behind it, by one over the whole unit: at depth 64 one for some ten writes, which a target that calls fsync for
//! each is glad of. They are members of one command then, as those of a merged one (`merge`), and are taken apart by the same
//! rules: what is not plain success, and each loss of the connection, writes all of them again.
//!
//! # Invariant
//! A write ends well only when a SYNCHRONIZE CACHE was answered that was sent after the write had been answered.

use netswap_swap::queue::NONE;

use super::IscsiBackend;
use super::task::{Step, TaskState};

impl IscsiBackend {
    /// The write of `index` is done, and not durable: its SYNCHRONIZE CACHE is to follow.
    pub(super) fn enqueue_sync(&mut self, index: usize) {
        self.tasks[index].step = Step::Sync;
        if self.queues {
            self.tasks[index].state = TaskState::Queued;
            self.syncs.push_back(index as u16);
        } else {
            self.enqueue(index);
        }
    }

    /// The next SYNCHRONIZE CACHE that may be sent: its task, in which are all that wait for one.
    pub(super) fn next_sync(&mut self) -> Option<usize> {
        if !self.config.merge {
            return self.syncs.pop_front().map(usize::from);
        }
        if self.syncing.is_some() {
            return None;
        }
        let leader = usize::from(self.syncs.pop_front()?);
        self.syncing = Some(leader);
        if !self.tasks[leader].alone {
            self.join_syncs(leader);
        }
        Some(leader)
    }

    fn join_syncs(&mut self, leader: usize) {
        let mut last = leader;
        self.each_member(leader, |_, row| last = row);
        for _ in 0..self.syncs.len() {
            let Some(index) = self.syncs.pop_front() else { return };
            let other = usize::from(index);
            if self.tasks[other].alone {
                self.syncs.push_back(index);
                continue;
            }
            self.tasks[leader].whole = true;
            self.tasks[leader].stale |= std::mem::take(&mut self.tasks[other].stale);
            debug_assert_eq!(self.tasks[last].next, NONE);
            self.tasks[last].next = index;
            self.each_member(other, |this, row| {
                this.tasks[row].state = TaskState::Joined { leader: leader as u16 };
                last = row;
            });
            self.stats.flushed_together += 1;
        }
    }
}
