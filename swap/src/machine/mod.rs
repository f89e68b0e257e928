//! The simulated machine: tasks on CPUs over page tables, in virtual time. A driver of the pager.
//!
//! It exists so that a pager can be put under memory pressure without real memory pressure, and so
//! that every byte a task wrote can be checked when it reads it again. It knows nothing of networks:
//! what a task receives from outside comes through [`Outside`].
//!
//! Rules that keep it honest:
//! - a fault is handled at the very instant it happens; only accesses to mapped pages are run ahead,
//!   for at most [`MachineConfig::slice`];
//! - a task that faults holds what it holds (a datagram waits in its queue until the page it is to be
//!   stored in is there);
//! - entitlement does not leak into tasks: the ambient emergency scope is saved before a task runs and
//!   restored after it;
//! - transactions ([`Step::Transact`]) take frames of the same pool as the pager: see `transaction`.
//!
//! ```text
//!   ready --> on a CPU --> ready          slice used up
//!     ^          |-------> waits (fault)  PagerEvent::FaultDone wakes it
//!     |          |-------> waits (data)   wake_channel wakes it
//!     |          |-------> waits (memory, log of a transaction)   poll wakes it
//!     +----------+         done, killed
//! ```

mod pattern;
mod program;
mod tables;
mod trace;
mod transaction;

use std::collections::VecDeque;

use netswap_reserve::{EmergencyScope, Span, Time};

pub use pattern::{PatternDisk, page_key};
pub use program::{ChannelId, Linear, Program, Reader, Step, Transacting};
pub use tables::PageTables;
pub use trace::{TraceProgram, TraceSource};
pub use transaction::{OpenTransaction, TransactionConfig, TransactionWait, Way};

use transaction::{Transaction, Turn, Waiting};

use crate::backend::{Slot, SwapBackend};
use crate::pager::{Pager, PagerEvent};
use crate::{Access, AreaId, Fault, MapError, PageError, PageId, TaskId};

/// How a machine is set up.
#[derive(Clone, Debug)]
pub struct MachineConfig {
    /// Processors.
    pub cpus: usize,
    /// Virtual time to touch a mapped page from end to end.
    pub access_cost: Span,
    /// Virtual time of a fault that needs no I/O.
    pub fault_cost: Span,
    /// How far a task may run ahead on mapped pages, and the longest it keeps a CPU that another
    /// task waits for.
    pub slice: Span,
    /// Makes the content of every page this machine's own.
    pub seed: u64,
    /// Where file pages of traces come from, if there is such an area.
    pub file_area: Option<AreaId>,
    /// What [`Step::Transact`] does, if anything.
    pub transactions: Option<TransactionConfig>,
}

impl Default for MachineConfig {
    fn default() -> MachineConfig {
        MachineConfig {
            cpus: 2,
            // About what reading or writing 4 KiB that is not in the cache costs.
            access_cost: Span::from_nanos(500),
            // A kernel anonymous minor fault.
            fault_cost: Span::from_nanos(1_200),
            // Short against the round trip of a page (some 400 us), long against an access.
            slice: Span::from_micros(20),
            seed: 0,
            file_area: None,
            transactions: None,
        }
    }
}

/// What tasks receive from outside the machine.
pub trait Outside {
    /// Whether something waits in `channel`.
    fn is_waiting(&mut self, channel: ChannelId) -> bool;

    /// Takes what waits first in `channel`; its length in bytes.
    fn take(&mut self, channel: ChannelId) -> Option<usize>;
}

/// An [`Outside`] that never has anything.
#[derive(Debug, Default)]
pub struct Nothing;

impl Outside for Nothing {
    fn is_waiting(&mut self, _channel: ChannelId) -> bool {
        false
    }

    fn take(&mut self, _channel: ChannelId) -> Option<usize> {
        None
    }
}

/// What a task is doing.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TaskState {
    /// On a CPU or in line for one.
    Ready,
    /// Waits for a page since `since`.
    Faulting {
        /// The page.
        page: PageId,
        /// When it faulted.
        since: Time,
    },
    /// Waits for something to arrive in a channel.
    Receiving(ChannelId),
    /// Waits in a transaction.
    Transacting(TransactionWait),
    /// Finished.
    Done,
    /// Ended by a page that could not be had.
    Killed,
}

struct Task {
    program: Box<dyn Program>,
    state: TaskState,
    /// The step that was begun and not finished.
    step: Option<Step>,
    /// Page index in the mapping -> page of the pager.
    pages: Vec<PageId>,
    /// Whether the machine's end does not wait for this task.
    daemon: bool,
    received: u64,
    transaction: Transaction,
}

/// Figures of a machine.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MachineStats {
    /// Pages whose whole content was compared with what was written.
    pub pages_verified: u64,
    /// Pages whose content was not what was written.
    pub pages_wrong: u64,
    /// Faults that had to wait.
    pub major_faults: u64,
    /// Faults that were done at once.
    pub minor_faults: u64,
    /// Accesses.
    pub accesses: u64,
    /// Transactions that ended, each with all its pages.
    pub transactions: u64,
}

/// What a machine reports to whoever drives it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum MachineEvent {
    /// A major fault ended after this long.
    FaultServed {
        /// Whose.
        task: TaskId,
        /// Which page.
        page: PageId,
        /// How long the task waited.
        waited: Span,
    },
    /// A task finished.
    Finished(TaskId),
    /// A task was ended by a page that could not be had.
    Killed(TaskId, PageError),
    /// A task was ended because its mapping could not grow.
    NoPages(TaskId, MapError),
    /// A page had not the content that was written to it.
    WrongContent(TaskId, PageId),
    /// A transaction of a task ended.
    Transacted(TaskId),
}

struct Cpu {
    busy_until: Time,
    idle: bool,
}

/// Tasks on CPUs over page tables, in virtual time.
pub struct Machine {
    config: MachineConfig,
    tables: PageTables,
    tasks: Vec<Task>,
    ready: VecDeque<TaskId>,
    waiting: Waiting,
    cpus: Vec<Cpu>,
    events: VecDeque<MachineEvent>,
    stats: MachineStats,
    unfinished: usize,
    next_file_slot: u32,
}

impl Machine {
    /// A machine without tasks.
    pub fn new(config: MachineConfig) -> Machine {
        let cpus = (0..config.cpus).map(|_| Cpu { busy_until: Time::ZERO, idle: true }).collect();
        Machine {
            tables: PageTables::new(config.seed),
            config,
            tasks: Vec::new(),
            ready: VecDeque::new(),
            waiting: Waiting::default(),
            cpus,
            events: VecDeque::new(),
            stats: MachineStats::default(),
            unfinished: 0,
            next_file_slot: 0,
        }
    }

    /// Starts a task over `pages`. A `daemon` does not keep the machine from being done.
    pub fn spawn(
        &mut self,
        program: Box<dyn Program>,
        pages: std::ops::Range<PageId>,
        daemon: bool,
    ) -> TaskId {
        let id = TaskId(self.tasks.len() as u32);
        self.tables.cover(pages.end);
        self.tasks.push(Task {
            program,
            state: TaskState::Ready,
            step: None,
            pages: (pages.start.0..pages.end.0).map(PageId).collect(),
            daemon,
            received: 0,
            transaction: Transaction::new(self.config.transactions.as_ref()),
        });
        self.waiting.cover(self.tasks.len());
        self.ready.push_back(id);
        self.events.reserve(2);
        if !daemon {
            self.unfinished += 1;
        }
        id
    }

    /// The page tables: what the pager's calls take as [`crate::Mmu`].
    pub fn tables(&mut self) -> &mut PageTables {
        &mut self.tables
    }

    /// Figures so far.
    pub fn stats(&self) -> &MachineStats {
        &self.stats
    }

    /// Whether every task that is not a daemon has ended.
    pub fn is_done(&self) -> bool {
        self.unfinished == 0
    }

    /// How many tasks there are.
    pub fn tasks(&self) -> usize {
        self.tasks.len()
    }

    /// What `task` is doing.
    pub fn state(&self, task: TaskId) -> &TaskState {
        &self.tasks[task.0 as usize].state
    }

    /// Bytes that `task` has received from outside.
    pub fn received(&self, task: TaskId) -> u64 {
        self.tasks[task.0 as usize].received
    }

    /// The pages of `task`.
    pub fn pages(&self, task: TaskId) -> &[PageId] {
        &self.tasks[task.0 as usize].pages
    }

    /// The mappings of `task`, as ranges of adjacent pages.
    pub fn mappings(&self, task: TaskId) -> Vec<std::ops::Range<PageId>> {
        let mut ranges: Vec<std::ops::Range<PageId>> = Vec::new();
        for page in self.pages(task) {
            match ranges.last_mut().filter(|range| range.end == *page) {
                Some(range) => range.end.0 += 1,
                None => ranges.push(*page..PageId(page.0 + 1)),
            }
        }
        ranges
    }

    /// The next thing to report.
    pub fn poll_event(&mut self) -> Option<MachineEvent> {
        self.events.pop_front()
    }

    /// When a CPU has to be looked at again.
    pub fn poll_deadline(&self) -> Option<Time> {
        let waiting = !self.ready.is_empty();
        let cpus = self.cpus.iter().filter(|cpu| !cpu.idle || waiting).map(|cpu| cpu.busy_until);
        cpus.chain(self.waiting.poll_deadline()).min()
    }

    /// Something arrived in `channel`: whoever waits for it goes on.
    pub fn wake_channel(&mut self, channel: ChannelId) {
        for (i, task) in self.tasks.iter_mut().enumerate() {
            if task.state == TaskState::Receiving(channel) {
                task.state = TaskState::Ready;
                self.ready.push_back(TaskId(i as u32));
            }
        }
    }

    /// Wakes `task` if it waits for a channel.
    pub fn wake_receiver(&mut self, task: TaskId) {
        let t = &mut self.tasks[task.0 as usize];
        if matches!(t.state, TaskState::Receiving(_)) {
            t.state = TaskState::Ready;
            self.ready.push_back(task);
        }
    }

    /// Ends every daemon that still lives: nothing will arrive any more.
    pub fn end_daemons(&mut self) {
        for task in self.tasks.iter_mut().filter(|t| t.daemon) {
            if task.state != TaskState::Killed {
                task.state = TaskState::Done;
            }
        }
        self.ready.clear();
    }

    /// Takes an event of the pager that concerns a task; others are ignored.
    pub fn handle_pager_event(&mut self, now: Time, event: &PagerEvent) {
        match event {
            PagerEvent::FaultDone { task, .. } => self.wake_faulting(now, *task),
            PagerEvent::FaultFailed { task, error, .. } => self.kill(*task, error.clone()),
            _ => {}
        }
    }

    fn wake_faulting(&mut self, now: Time, id: TaskId) {
        let task = &mut self.tasks[id.0 as usize];
        let TaskState::Faulting { page, since } = task.state else { return };
        task.state = TaskState::Ready;
        self.ready.push_back(id);
        self.events.push_back(MachineEvent::FaultServed {
            task: id,
            page,
            waited: now.since(since),
        });
    }

    fn kill(&mut self, id: TaskId, error: PageError) {
        if matches!(self.state(id), TaskState::Done | TaskState::Killed) {
            return;
        }
        self.end(id, TaskState::Killed);
        self.events.push_back(MachineEvent::Killed(id, error));
    }

    /// Runs tasks on the CPUs that are free at `now`. Returns whether any task ran.
    ///
    /// # Panics
    /// If transactions reserve more pages than the pool could ever promise.
    pub fn poll<B: SwapBackend>(
        &mut self,
        now: Time,
        pager: &mut Pager<B>,
        outside: &mut impl Outside,
    ) -> bool {
        let saved = EmergencyScope::save();
        self.poll_transactions(now, pager);
        let mut ran = false;
        for cpu in 0..self.cpus.len() {
            while self.cpus[cpu].busy_until <= now {
                let Some(id) = self.ready.pop_front() else {
                    self.cpus[cpu].idle = true;
                    break;
                };
                if self.tasks[id.0 as usize].state != TaskState::Ready {
                    continue;
                }
                let used = self.run(now, id, pager, outside);
                let cpu = &mut self.cpus[cpu];
                cpu.idle = false;
                cpu.busy_until = now + used;
                ran = true;
            }
        }
        saved.restore();
        ran
    }

    /// Runs one task from `now` until it blocks, ends, or its slice is used up; the time it used.
    fn run<B: SwapBackend>(
        &mut self,
        now: Time,
        id: TaskId,
        pager: &mut Pager<B>,
        outside: &mut impl Outside,
    ) -> Span {
        let mut used = Span::ZERO;
        loop {
            if used >= self.config.slice {
                self.ready.push_back(id);
                return used;
            }
            let task = &mut self.tasks[id.0 as usize];
            let step = match task.step.take() {
                Some(step) => step,
                None => task.program.next(),
            };
            let (index, access) = match step {
                Step::Done => {
                    self.end(id, TaskState::Done);
                    self.events.push_back(MachineEvent::Finished(id));
                    return used;
                }
                Step::Touch { page, access } => (page, access),
                Step::Receive { channel, page, .. } => {
                    if !outside.is_waiting(channel) {
                        task.step = Some(step);
                        task.state = TaskState::Receiving(channel);
                        return used;
                    }
                    (page, Access::Write)
                }
                Step::Grow { file } => {
                    if let Err(error) = self.grow(id, file, pager) {
                        self.end(id, TaskState::Killed);
                        self.events.push_back(MachineEvent::NoPages(id, error));
                        return used;
                    }
                    continue;
                }
                Step::Transact => {
                    // Memory is asked for at the present instant, as by a fault.
                    if used > Span::ZERO {
                        task.step = Some(step);
                        self.ready.push_front(id);
                        return used;
                    }
                    match self.transact(now, id, pager) {
                        Turn::Ended => {}
                        Turn::Took => {
                            used = used + self.config.access_cost;
                            self.tasks[id.0 as usize].step = Some(step);
                        }
                        Turn::Waits(wait) => {
                            let task = &mut self.tasks[id.0 as usize];
                            task.step = Some(step);
                            task.state = TaskState::Transacting(wait);
                            self.waiting.add(now, id, wait);
                            return used;
                        }
                    }
                    continue;
                }
            };
            let page = self.tasks[id.0 as usize].pages[index as usize];
            if !self.tables.allows(page, access) {
                // Faults happen at the present instant, not at the end of what was run ahead.
                if used > Span::ZERO {
                    self.tasks[id.0 as usize].step = Some(step);
                    self.ready.push_front(id);
                    return used;
                }
                match pager.handle_fault(now, &mut self.tables, id, page, access) {
                    Fault::Done => {
                        self.stats.minor_faults += 1;
                        used = used + self.config.fault_cost;
                    }
                    Fault::Waits => {
                        self.stats.major_faults += 1;
                        let task = &mut self.tasks[id.0 as usize];
                        task.step = Some(step);
                        task.state = TaskState::Faulting { page, since: now };
                        return used;
                    }
                    Fault::Failed(error) => {
                        self.kill(id, error);
                        return used;
                    }
                }
            }
            used = used + self.config.access_cost;
            if let Step::Receive { fresh: false, .. } = step {
                self.stats.accesses += 1;
                self.tables.touch(page, access);
            } else {
                self.access(id, page, access, pager);
            }
            if let Step::Receive { channel, .. } = step
                && let Some(len) = outside.take(channel)
            {
                let task = &mut self.tasks[id.0 as usize];
                task.received += len as u64;
                task.program.handle_received(len);
            }
        }
    }

    fn access<B: SwapBackend>(
        &mut self,
        id: TaskId,
        page: PageId,
        access: Access,
        pager: &mut Pager<B>,
    ) {
        self.stats.accesses += 1;
        let bytes = pager.page(page).expect("a page that is mapped is resident");
        self.stats.pages_verified += 1;
        if !self.tables.verify(page, bytes) {
            self.stats.pages_wrong += 1;
            self.events.push_back(MachineEvent::WrongContent(id, page));
        }
        self.tables.touch(page, access);
        if access == Access::Write {
            self.tables.write(page, bytes);
        }
    }

    /// Adds a page to the mapping of `id`.
    ///
    /// # Errors
    /// If the pager has no page left, or the file area no slot.
    fn grow<B: SwapBackend>(
        &mut self,
        id: TaskId,
        file: bool,
        pager: &mut Pager<B>,
    ) -> Result<(), MapError> {
        let page = match self.config.file_area.filter(|_| file) {
            Some(area) => {
                let slot = Slot(self.next_file_slot);
                let checksum = |_| pattern::file_page_checksum(slot.0);
                let page = pager.try_map_file(area, slot, 1, &checksum)?.start;
                self.next_file_slot += 1;
                self.tables.cover(PageId(page.0 + 1));
                self.tables.set_file(page, slot);
                page
            }
            None => pager.try_map_anonymous(1)?.start,
        };
        self.tables.cover(PageId(page.0 + 1));
        self.tasks[id.0 as usize].pages.push(page);
        Ok(())
    }

    fn end(&mut self, id: TaskId, state: TaskState) {
        let task = &mut self.tasks[id.0 as usize];
        task.state = state;
        if !task.daemon {
            self.unfinished -= 1;
        }
    }
}
