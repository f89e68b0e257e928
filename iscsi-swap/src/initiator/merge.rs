//! Merging: requests that wait for the wire and have adjacent slots go in one command.
//!
//! # When
//! As in the NFS client: what was submitted in one go is merged at no cost, since commands are made when the transport
//! asks for bytes. From [`InitiatorConfig::merge_after`](super::InitiatorConfig) commands on the wire on, a request that
//! has a neighbour waits to be merged (`netswap_swap::queue`).
//!
//! # A merged command
//! ```text
//!   task 7, the leader: Sent    task 2: Joined     task 9: Joined     `next` leads 7 -> 2 -> 9
//!   slots 40..44                slots 44..45       slots 45..61       one tag, one CDB: those of task 7
//! ```
//! Members stay together until the command has ended. Plain success is that of each. Anything else takes the command
//! apart, and says nothing about its members: those of one that failed are asked for again, each alone. A lost
//! connection takes apart as well.
//!
//! # Invariants
//! - To the caller, and to the rule of conflicts, each member is a request of its own.
//! - No member ends while a PDU in the ring shows a page of the command: its end waits in `Task::ending`.

use netswap_net::SendVec;
use netswap_reserve::{PAGE_SIZE, Time};
use netswap_swap::queue::{Lane, NONE, Policy};

use super::task::{Kind, Step, Task, TaskState};
use super::{InitiatorConfig, IscsiBackend};

impl IscsiBackend {
    /// Task `index` is not on the wire from now on.
    pub(super) fn release(&mut self, index: usize) {
        self.syncing.take_if(|syncing| *syncing == index);
        self.wire -= usize::from(std::mem::take(&mut self.tasks[index].on_wire));
    }

    /// Task `index` may be issued as soon as its time has come and no earlier request is in its way.
    pub(super) fn may_go(&mut self, now: Time, index: usize) -> bool {
        let task = &self.tasks[index];
        if task.retry_at > now {
            return false;
        }
        if task.may_conflict {
            let earlier = |t: &Task| t.is_active() && t.turn.seq < task.turn.seq;
            if self.tasks[1..].iter().any(|t| earlier(t) && t.conflicts(task, self.unmap.runs())) {
                return false;
            }
            // Who comes later waits for it.
            self.tasks[index].may_conflict = false;
        }
        true
    }

    /// Puts what may be issued now in line.
    fn sort_out(&mut self, now: Time) {
        if !std::mem::take(&mut self.unsorted) {
            return;
        }
        let mut at = 0;
        while let Some(index) = self.queue.get(at).copied() {
            let row = usize::from(index);
            if !self.may_go(now, row) {
                at += 1;
                continue;
            }
            self.queue.remove(at);
            let task = &self.tasks[row];
            if task.step == Step::Sync {
                self.syncs.push_back(index);
                continue;
            }
            let (slots, is_read) = (task.slots(), task.kind == Kind::Read);
            let in_stream = self.config.merge
                && !task.alone
                && (self.touched.has(slots.end, is_read)
                    || slots.start.checked_sub(1).is_some_and(|s| self.touched.has(s, is_read)));
            self.waiting.push(row, task.first, task.pages.len(), Lane { is_read, in_stream });
        }
    }

    fn policy(&self) -> Policy {
        let InitiatorConfig { overtakes_max, merge_after, wire_max, .. } = self.config;
        Policy { overtakes_max, merge_after, wire_max }
    }

    /// Takes the next command out of the line, merged with its neighbours; with `reads`, only if it reads. Returns
    /// its leader.
    pub(super) fn next_in_line(&mut self, now: Time, reads: bool) -> Option<usize> {
        self.sort_out(now);
        let policy = self.policy();
        let next = self.waiting.next(&policy, self.wire, |row| self.tasks[row].turn)?;
        if reads && self.tasks[next].kind != Kind::Read {
            return None;
        }
        self.waiting.remove(next);
        let is_read = self.tasks[next].kind == Kind::Read;
        if let Some(held) = self.waiting.front(Lane { is_read, in_stream: true }) {
            self.tasks[held].turn.passed += 1;
        }
        if is_read {
            let turn = |row: usize| self.tasks[row].turn;
            if let Some(write) = self.waiting.next_of(false, &policy, self.wire, turn) {
                self.tasks[write].turn.overtaken += 1;
            }
        }
        Some(if self.config.merge && !self.tasks[next].alone { self.join(next) } else { next })
    }

    /// Joins task `index`, which waited until now, with its neighbours that wait.
    fn join(&mut self, index: usize) -> usize {
        let is_read = self.tasks[index].kind == Kind::Read;
        let most = self.unit.transfer_max(self.config.merge_bytes_max);
        let fits = |tasks: &[Task], row: usize, bytes: u32| {
            !tasks[row].alone && bytes.saturating_add(tasks[row].own_len()) <= most
        };
        let mut bytes = self.tasks[index].own_len();
        let (mut leader, mut last) = (index, index);
        while let Some(row) = self.waiting.ending_at(self.tasks[leader].slots().start, is_read)
            && fits(&self.tasks, row, bytes)
        {
            self.waiting.remove(row);
            bytes += self.tasks[row].own_len();
            self.tasks[row].next = leader as u16;
            leader = row;
        }
        while let Some(row) = self.waiting.beginning_at(self.tasks[last].slots().end, is_read)
            && fits(&self.tasks, row, bytes)
        {
            self.waiting.remove(row);
            bytes += self.tasks[row].own_len();
            self.tasks[last].next = row as u16;
            last = row;
        }
        if leader == last {
            return leader;
        }
        self.stats.merged += 1;
        self.tasks[leader].len = bytes;
        self.each_member(leader, |this, row| {
            if row != leader {
                this.stats.joined += 1;
                this.tasks[row].state = TaskState::Joined { leader: leader as u16 };
            }
        });
        leader
    }

    /// Calls `each` for the leader and then for each member. It may take the member out.
    pub(super) fn each_member(&mut self, leader: usize, mut each: impl FnMut(&mut Self, usize)) {
        let mut row = leader as u16;
        while row != NONE {
            let at = usize::from(row);
            row = self.tasks[at].next;
            each(self, at);
        }
    }

    /// The command of `leader` is over: makes its members requests of their own again, and calls `each` for each
    /// of them, which is in no queue then.
    pub(super) fn take_apart(&mut self, leader: usize, mut each: impl FnMut(&mut Self, usize)) {
        self.release(leader);
        self.drop_bursts(leader);
        let Task { step, stale, backoff, retries, timeouts, .. } = self.tasks[leader];
        self.each_member(leader, |this, row| {
            let task = &mut this.tasks[row];
            task.next = NONE;
            task.ending = None;
            task.whole = false;
            // The others have data of another kind.
            if !task.pages.is_empty() {
                task.len = task.own_len();
            }
            task.state = TaskState::Sent;
            (task.step, task.stale) = (step, stale);
            (task.backoff, task.retries, task.timeouts) = (backoff, retries, timeouts);
            each(this, row);
        });
    }
}

/// The task that has byte `at` of the command of `leader`, and which byte of its pages that is.
pub(super) fn locate(tasks: &[Task], leader: usize, at: usize) -> (usize, usize) {
    let (mut row, mut at) = (leader, at);
    loop {
        let task = &tasks[row];
        let own = task.pages.len() * PAGE_SIZE;
        if at < own || task.next == NONE {
            return (row, at);
        }
        at -= own;
        row = usize::from(task.next);
    }
}

/// Calls `each` for the bytes `from..end` of the command of `leader`, piece by piece as they lie in its pages, until it
/// says no; whether it never did.
pub(super) fn each_slice<'a>(
    tasks: &'a [Task],
    leader: usize,
    mut from: usize,
    end: usize,
    mut each: impl FnMut(&'a [u8]) -> bool,
) -> bool {
    if from >= end {
        return true;
    }
    let (mut row, mut at) = locate(tasks, leader, from);
    while from < end {
        let task = &tasks[row];
        if at == task.pages.len() * PAGE_SIZE {
            (row, at) = (usize::from(task.next), 0);
            continue;
        }
        let start = at % PAGE_SIZE;
        let len = (PAGE_SIZE - start).min(end - from);
        if !each(&task.pages[at / PAGE_SIZE].bytes()[start..start + len]) {
            return false;
        }
        (from, at) = (from + len, at + len);
    }
    true
}

/// Appends the bytes `from..end` of the command of `leader` as slices of its pages; whether all fitted.
pub(super) fn push_pages<'a>(
    tasks: &'a [Task],
    leader: usize,
    from: usize,
    end: usize,
    out: &mut SendVec<'a>,
) -> bool {
    each_slice(tasks, leader, from, end, |bytes| out.try_push(bytes).is_ok())
}
