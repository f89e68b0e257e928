//! Transactions of tasks: some pages that must not fail, taken one after the other and kept until the
//! transaction ends. What a journalling file system does between two accesses of a program.
//!
//! A transaction that has begun cannot back out: what it changed already is not consistent without the
//! rest. So it keeps the pages it has while it asks for the next one, and nothing can reclaim them
//! before its log is written. There are two ways to get the pages, [`Way`]. The pages are the pool's, as
//! those of the pager are; nothing else is set aside for them.
//!
//! Invariants:
//! - A transaction touches no page of the task's mapping: a task that faulted would hold and wait, whichever
//!   way it has. File systems touch what they copy from before they begin, too.
//! - Whoever waits for memory is served when some is free, at the next poll, and asks reclaim to run
//!   every [`RETRY`]. Faults, which the pager serves, come first.
//! - Reservations are made in order of arrival; loops have no order, but are looked at in order.
//! - What a page was filled with is compared when its log is written.
//!
//! ```text
//!   begins --Reserve--> waits until it is promised --> takes its pages ------> writes its log --> ends
//!      |                                                                            ^
//!      +-----Loop------> takes a page <--> waits for the next, keeping those it has +
//! ```

use std::collections::VecDeque;

use netswap_reserve::{
    Frame, Gfp, PagePool, Reservation, ReservationError, ReservationSpec, Span, Time,
};

use super::{Machine, MachineEvent, PageTables, TaskState, pattern};
use crate::TaskId;
use crate::backend::SwapBackend;
use crate::pager::Pager;

/// How long who waits for memory sleeps before it asks reclaim again: a fiftieth of a second, as the
/// kernel's page allocator does for allocations that must not fail (`HZ/50`).
const RETRY: Span = Span::from_millis(20);

/// How a transaction gets memory that must not fail.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    /// Reserves all of it before it takes any, and waits for that while it holds nothing.
    Reserve,
    /// Tries again until each page is there, and keeps those it has: `__GFP_NOFAIL`.
    Loop,
}

/// What the transactions of a machine are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TransactionConfig {
    /// Pages each of them takes. With [`Way::Reserve`] not more than the pool could ever promise: [`Machine::poll`]
    /// panics then, as no waiting would help. With [`Way::Loop`] a task waits for ever.
    pub pages: u32,
    /// How it gets them.
    pub way: Way,
    /// How long its log takes to be written, once it has them all.
    pub log_write: Span,
}

impl TransactionConfig {
    /// Transactions of `pages` pages, whose log is on a device of its own that takes a millisecond: a
    /// write with a flush to a common solid-state disk.
    pub fn new(pages: u32, way: Way) -> TransactionConfig {
        TransactionConfig { pages, way, log_write: Span::from_millis(1) }
    }

    /// Frames that who waits asks for at once.
    fn at_once(&self) -> u32 {
        match self.way {
            Way::Reserve => self.pages,
            Way::Loop => 1,
        }
    }
}

/// What a task in a transaction waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TransactionWait {
    /// The promise of all its pages.
    Reservation,
    /// The next page.
    Page,
    /// Its log, until this time.
    Log {
        /// When it is written.
        until: Time,
    },
}

/// A transaction that has begun and not ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct OpenTransaction {
    /// Whose.
    pub task: TaskId,
    /// Pages that it has.
    pub held: u32,
    /// Pages that it needs in all.
    pub pages: u32,
    /// Whether they are promised to it.
    pub is_reserved: bool,
}

/// The part of a task that is its transaction. Empty between two.
pub(super) struct Transaction {
    reservation: Option<Reservation<'static>>,
    pages: Vec<Frame>,
    /// Whether the log is, with which it ends.
    is_written: bool,
    /// Transactions that the task has ended: so that each writes something else.
    number: u64,
}

/// How far one turn of a transaction got.
pub(super) enum Turn {
    /// It took a page.
    Took,
    /// It has to wait.
    Waits(TransactionWait),
    /// It is over.
    Ended,
}

impl Transaction {
    pub(super) fn new(config: Option<&TransactionConfig>) -> Transaction {
        let pages = Vec::with_capacity(config.map_or(0, |config| config.pages as usize));
        Transaction { reservation: None, pages, is_written: false, number: 0 }
    }

    fn has_begun(&self) -> bool {
        self.reservation.is_some() || !self.pages.is_empty()
    }

    /// Begins, takes the next page, or finds that it has all of them.
    fn turn(
        &mut self,
        config: &TransactionConfig,
        pool: &PagePool,
        now: Time,
        task: TaskId,
    ) -> Turn {
        if self.pages.len() as u32 == config.pages {
            return Turn::Waits(TransactionWait::Log { until: now + config.log_write });
        }
        if config.way == Way::Reserve && !self.reserve(config, pool) {
            return Turn::Waits(TransactionWait::Reservation);
        }
        if self.take(pool, task) { Turn::Took } else { Turn::Waits(TransactionWait::Page) }
    }

    /// Whether all pages are promised, now or before.
    ///
    /// # Panics
    /// If the pool could never promise so many.
    fn reserve(&mut self, config: &TransactionConfig, pool: &PagePool) -> bool {
        if self.reservation.is_none() {
            self.reservation = match pool.reserve(ReservationSpec::pages(config.pages)) {
                Ok(reservation) => Some(reservation),
                Err(ReservationError::Short { .. }) => None,
                Err(error @ ReservationError::TooLarge { .. }) => {
                    panic!("transactions of {} pages: {error}", config.pages)
                }
            };
        }
        self.reservation.is_some()
    }

    /// Takes the next page and writes it, if it can be had.
    fn take(&mut self, pool: &PagePool, task: TaskId) -> bool {
        let frame = match &mut self.reservation {
            Some(reservation) => reservation.page(),
            None => match pool.alloc(Gfp::KERNEL) {
                Ok(frame) => frame,
                Err(_) => return false,
            },
        };
        self.pages.push(frame);
        let at = self.pages.len() - 1;
        let key = self.key(task, at);
        pattern::fill(self.pages[at].bytes_mut(), key);
        true
    }

    /// Gives everything back. Returns how many pages were compared, and how many were wrong.
    fn end(&mut self, task: TaskId) -> (u64, u64) {
        let mut wrong = 0;
        for (at, page) in self.pages.iter().enumerate() {
            wrong += u64::from(!pattern::matches(page.bytes(), self.key(task, at)));
        }
        let compared = self.pages.len() as u64;
        self.pages.clear();
        self.reservation = None;
        self.is_written = false;
        self.number += 1;
        (compared, wrong)
    }

    fn key(&self, task: TaskId, at: usize) -> u64 {
        pattern::page_key(self.number << 32 | u64::from(task.0), at as u32, 1)
    }

    fn open(&self, task: TaskId, config: &TransactionConfig) -> Option<OpenTransaction> {
        self.has_begun().then_some(OpenTransaction {
            task,
            held: self.pages.len() as u32,
            pages: config.pages,
            is_reserved: self.reservation.is_some(),
        })
    }
}

/// Those of a machine's tasks that wait in a transaction.
#[derive(Default)]
pub(super) struct Waiting {
    /// For memory, in order of arrival.
    memory: VecDeque<TaskId>,
    /// For their log, the first to be written first.
    log: VecDeque<(Time, TaskId)>,
    /// When reclaim is asked again, if somebody waits for memory.
    retry_at: Time,
}

impl Waiting {
    /// Room for another task.
    pub(super) fn cover(&mut self, tasks: usize) {
        self.memory.reserve(tasks.saturating_sub(self.memory.len()));
        self.log.reserve(tasks.saturating_sub(self.log.len()));
    }

    pub(super) fn add(&mut self, now: Time, task: TaskId, wait: TransactionWait) {
        if let TransactionWait::Log { until } = wait {
            self.log.push_back((until, task));
            return;
        }
        if self.memory.is_empty() {
            self.retry_at = now + RETRY;
        }
        self.memory.push_back(task);
    }

    pub(super) fn poll_deadline(&self) -> Option<Time> {
        let retry = (!self.memory.is_empty()).then_some(self.retry_at);
        self.log.front().map(|(until, _)| *until).into_iter().chain(retry).min()
    }
}

impl Machine {
    /// Calls `visit` for each transaction that is open, in the order of tasks.
    pub fn visit_transactions(&self, visit: &mut dyn FnMut(OpenTransaction)) {
        let Some(config) = &self.config.transactions else { return };
        for (at, task) in self.tasks.iter().enumerate() {
            if let Some(open) = task.transaction.open(TaskId(at as u32), config) {
                visit(open);
            }
        }
    }

    /// One turn of the transaction of `task`. What is missing is reclaimed first, as a fault does.
    pub(super) fn transact<B: SwapBackend>(
        &mut self,
        now: Time,
        id: TaskId,
        pager: &mut Pager<B>,
    ) -> Turn {
        let Some(config) = self.config.transactions else { return Turn::Ended };
        let task = &mut self.tasks[id.0 as usize];
        if task.transaction.is_written {
            self.end_transaction(id);
            return Turn::Ended;
        }
        // Who comes later does not reserve before those who wait.
        let is_behind = config.way == Way::Reserve && !self.waiting.memory.is_empty();
        if is_behind && !task.transaction.has_begun() {
            return Turn::Waits(TransactionWait::Reservation);
        }
        match task.transaction.turn(&config, pager.pool(), now, id) {
            Turn::Waits(TransactionWait::Reservation | TransactionWait::Page) => {
                reclaim_for(now, &config, pager, &mut self.tables);
                self.tasks[id.0 as usize].transaction.turn(&config, pager.pool(), now, id)
            }
            turn => turn,
        }
    }

    fn end_transaction(&mut self, id: TaskId) {
        let (compared, wrong) = self.tasks[id.0 as usize].transaction.end(id);
        self.stats.transactions += 1;
        self.stats.pages_verified += compared;
        self.stats.pages_wrong += wrong;
        self.events.push_back(MachineEvent::Transacted(id));
    }

    /// Wakes those whose log is written, and serves those who wait for memory as far as it goes.
    pub(super) fn poll_transactions<B: SwapBackend>(&mut self, now: Time, pager: &mut Pager<B>) {
        let Some(config) = self.config.transactions else { return };
        while let Some((_, id)) = self.waiting.log.pop_front_if(|(until, _)| *until <= now) {
            self.tasks[id.0 as usize].transaction.is_written = true;
            self.wake_transacting(id);
        }
        if self.waiting.memory.is_empty() {
            return;
        }
        if self.waiting.retry_at <= now {
            self.waiting.retry_at = now + RETRY;
            reclaim_for(now, &config, pager, &mut self.tables);
        }
        while let Some(id) = self.waiting.memory.front().copied() {
            let (transaction, pool) = (&mut self.tasks[id.0 as usize].transaction, pager.pool());
            let is_served = free_above_min(pool) >= config.at_once()
                && match config.way {
                    Way::Reserve => transaction.reserve(&config, pool),
                    Way::Loop => transaction.take(pool, id),
                };
            if !is_served {
                break;
            }
            self.waiting.memory.pop_front();
            self.wake_transacting(id);
        }
    }

    fn wake_transacting(&mut self, id: TaskId) {
        self.tasks[id.0 as usize].state = TaskState::Ready;
        self.ready.push_back(id);
    }
}

/// Frames that ordinary allocations can have.
fn free_above_min(pool: &PagePool) -> u32 {
    pool.free_frames().saturating_sub(pool.watermarks().min)
}

/// Has reclaim free what one who waits asks for at once, as far as it is not on its way.
fn reclaim_for<B: SwapBackend>(
    now: Time,
    config: &TransactionConfig,
    pager: &mut Pager<B>,
    tables: &mut PageTables,
) {
    let coming = free_above_min(pager.pool()) + pager.writeback_pages();
    pager.reclaim(now, tables, config.at_once().saturating_sub(coming));
}
