//! The accounts of a set of windows: who holds which, who was promised how many, who waits.
//!
//! A window is *held* while a mapping of it lives, *idle* while none does but it still shows its page, and
//! *free* otherwise. Idle windows become free all at once, when there is no free one left: the wrap.
//!
//! ```text
//!            first mapping (miss)          last mapping dropped
//!   free ------------------------> held <----------------------> idle
//!     ^                                  mapped again (hit)        |
//!     +------------------------------------------------------------+
//!                                 wrap
//! ```
//!
//! Invariants:
//! - `taken` is what all tasks with a mapping were promised, and one for each window with a plain mapping;
//!   it never exceeds the windows there are.
//! - So fewer windows are held than there are while somebody still has a right to one, and a mapping that
//!   was promised finds one that is free or idle. It never waits.
//! - Who waits is served in order of arrival. A task that holds windows already and wants more than it
//!   declared goes first: it will give back the sooner.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use crate::windows::error::MapError;
use crate::windows::map::{WindowCounters, WindowUsage, WindowsConfig};

/// No window, no page, no task.
pub(super) const NONE: u32 = u32::MAX;

pub(super) struct Window {
    /// Mappings that were promised to nobody. With the first of them the window counts in `taken`.
    plain: Plain,
    /// What it shows, if it is not free.
    page: AtomicU32,
    /// Mappings within a task's promise.
    promised: AtomicU32,
}

/// The live plain mappings of a window, in the low half, and in the high half its hits that the counters do
/// not have yet: a hit counts both by one store.
struct Plain(AtomicU64);

const HIT: u64 = 1 << 32;

impl Plain {
    fn live(&self) -> u32 {
        self.0.load(Ordering::Relaxed) as u32
    }

    fn hits(&self) -> u64 {
        self.0.load(Ordering::Relaxed) >> 32
    }

    /// Counts a mapping. True if the hits are to be taken, long before they would overflow.
    #[inline]
    fn add(&self, mapping: u64) -> bool {
        let new = self.0.load(Ordering::Relaxed) + mapping;
        self.0.store(new, Ordering::Relaxed);
        new > u64::MAX / 2
    }

    /// Ends a mapping. True if it was the last.
    #[inline]
    fn end(&self) -> bool {
        let new = self.0.load(Ordering::Relaxed) - 1;
        self.0.store(new, Ordering::Relaxed);
        new as u32 == 0
    }

    fn take_hits(&self) -> u64 {
        let hits = self.hits();
        self.0.store(u64::from(self.live()), Ordering::Relaxed);
        hits
    }
}

/// What is kept for each page and window. It is read and written under the lock of the [`State`] alone; it
/// is beside it, and so of atomics, in order that a hit need not read where it is after it has the lock.
pub(super) struct Tables {
    /// For each page of the pool the window that shows it.
    window_of: Box<[AtomicU32]>,
    windows: Box<[Window]>,
}

impl Tables {
    /// The tables of `windows` empty windows onto a pool of `pages` pages.
    pub(super) fn new(pages: u32, windows: u32) -> Tables {
        let window = |_| Window {
            plain: Plain(AtomicU64::new(0)),
            page: AtomicU32::new(NONE),
            promised: AtomicU32::new(0),
        };
        Tables {
            window_of: (0..pages).map(|_| AtomicU32::new(NONE)).collect(),
            windows: (0..windows).map(window).collect(),
        }
    }

    #[inline]
    fn window_of(&self, page: u32) -> u32 {
        read(&self.window_of[page as usize])
    }

    #[inline]
    pub(super) fn window(&self, window: u32) -> &Window {
        &self.windows[window as usize]
    }

    /// The window that seems to show `page`. Read without the lock, so that the locked section begins with
    /// the window itself and not with the way to it; [`State::hit`] looks whether it is still so.
    #[inline]
    pub(super) fn guess(&self, page: u32) -> Option<Guess<'_>> {
        let window = self.window_of(page);
        // `NONE` is beyond all windows.
        self.windows.get(window as usize).map(|of| Guess { of, window, page })
    }
}

/// A window, and the page it may show.
pub(super) struct Guess<'a> {
    of: &'a Window,
    window: u32,
    page: u32,
}

impl Window {
    fn mappings(&self) -> u32 {
        self.plain.live() + read(&self.promised)
    }
}

#[inline]
fn read(of: &AtomicU32) -> u32 {
    of.load(Ordering::Relaxed)
}

/// Not a read-modify-write of the processor: the lock is held.
#[inline]
fn change(of: &AtomicU32, by: i32) {
    of.store(read(of).wrapping_add_signed(by), Ordering::Relaxed);
}

#[derive(Default)]
pub(super) struct TaskEntry {
    /// Empty if the entry is free.
    pub(super) name: Option<Box<str>>,
    max: u32,
    /// What it has in `taken`: its maximum from its first mapping to its last, otherwise 0.
    reserved: u32,
    /// Live mappings within the promise.
    promised: u32,
    /// All live mappings.
    pub(super) held: u32,
    overruns: u64,
}

#[derive(Clone, Copy)]
pub(super) struct Waiter {
    ticket: u64,
    pub(super) task: u32,
    pub(super) wanted: u32,
}

/// What somebody asks for.
#[derive(Clone, Copy)]
pub(super) struct Ask {
    pub(super) page: u32,
    /// The task that asks, or `NONE`.
    pub(super) task: u32,
    /// Its place in the line, if it has waited.
    pub(super) ticket: Option<u64>,
}

/// How a live mapping is accounted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Account {
    Plain,
    Promised,
}

/// Who a live mapping is accounted to, and how, in one word: what is written in pieces and moved as a whole
/// costs the processor a dozen cycles.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Holder(u32);

impl Holder {
    /// No task.
    pub(super) const NOBODY: Holder = Holder(NONE << 1 | Account::Plain as u32);

    /// `task` may be `NONE`. A table of 2^31 tasks does not exist: it would take 128 GiB.
    #[inline]
    fn new(task: u32, account: Account) -> Holder {
        Holder(task << 1 | account as u32)
    }

    /// The task, or `NONE`.
    #[inline]
    fn task(self) -> u32 {
        let task = self.0 >> 1;
        if task == NONE >> 1 { NONE } else { task }
    }

    #[inline]
    fn account(self) -> Account {
        if self.0 & 1 == 0 { Account::Plain } else { Account::Promised }
    }
}

/// A mapping that was granted.
#[derive(Clone, Copy)]
pub(super) struct Grant {
    pub(super) window: u32,
    pub(super) holder: Holder,
    /// The task's first mapping above its maximum: to be told once.
    pub(super) warn: bool,
}

/// What came of an attempt that may not change what is mapped.
pub(super) enum Attempt {
    Hit(Grant),
    /// The right is there, but the page is in no window.
    Miss,
    /// No right, and so many windows are wanted.
    Full(u32),
}

struct Terms {
    account: Account,
    /// What has to be taken for it.
    credit: u32,
    first: bool,
    overrun: bool,
}

pub(super) struct State {
    /// Windows that can be used: all, less those lost to the system's refusals.
    capacity: u32,
    taken: u32,
    pub(super) line: VecDeque<Waiter>,
    line_max: usize,
    next_ticket: u64,
    pub(super) tasks: Box<[TaskEntry]>,
    reservation: bool,
    /// Without the hits that the windows have still to report.
    pub(super) counters: WindowCounters,
}

impl State {
    /// The accounts of empty windows.
    pub(super) fn new(config: &WindowsConfig) -> State {
        State {
            capacity: config.windows,
            taken: 0,
            line: VecDeque::with_capacity(config.waiters as usize),
            line_max: config.waiters as usize,
            next_ticket: 0,
            tasks: (0..config.tasks).map(|_| TaskEntry::default()).collect(),
            reservation: config.reservation,
            counters: WindowCounters::default(),
        }
    }

    /// On which terms `ask` may be granted, if its page is in `window`.
    fn terms(&self, tables: &Tables, ask: &Ask, window: u32) -> Terms {
        // A window that counts already costs nothing more.
        let counts = window != NONE && tables.windows[window as usize].plain.live() > 0;
        let plain = Terms {
            account: Account::Plain,
            credit: u32::from(!counts),
            first: false,
            overrun: false,
        };
        if ask.task == NONE || !self.reservation {
            return plain;
        }
        let task = &self.tasks[ask.task as usize];
        let first = task.held == 0;
        if first || task.promised < task.max {
            let credit = if first { task.max } else { 0 };
            return Terms { account: Account::Promised, credit, first, overrun: false };
        }
        Terms { overrun: true, ..plain }
    }

    fn may_take(&self, ask: &Ask, terms: &Terms) -> bool {
        if terms.credit == 0 {
            return true;
        }
        self.taken + terms.credit <= self.capacity && (self.is_next(ask) || self.holds(ask))
    }

    fn is_next(&self, ask: &Ask) -> bool {
        self.line.front().is_none_or(|first| Some(first.ticket) == ask.ticket)
    }

    fn holds(&self, ask: &Ask) -> bool {
        ask.task != NONE && self.tasks[ask.task as usize].held > 0
    }

    /// Grants `ask` if it has the right and its page is in a window; changes nothing otherwise.
    pub(super) fn attempt(&mut self, tables: &Tables, ask: &Ask) -> Attempt {
        let window = tables.window_of(ask.page);
        let terms = self.terms(tables, ask, window);
        if !self.may_take(ask, &terms) {
            return Attempt::Full(terms.credit);
        }
        if window == NONE {
            return Attempt::Miss;
        }
        self.counters.hits += 1;
        Attempt::Hit(self.grant(tables, ask, window, &terms))
    }

    /// Grants `ask`, which [`State::attempt`] called a miss, the free window `window`. The window shows
    /// the page only after [`State::publish`].
    pub(super) fn grant_miss(&mut self, tables: &Tables, ask: &Ask, window: u32) -> Grant {
        let terms = self.terms(tables, ask, NONE);
        self.counters.misses += 1;
        self.grant(tables, ask, window, &terms)
    }

    fn grant(&mut self, tables: &Tables, ask: &Ask, window: u32, terms: &Terms) -> Grant {
        self.taken += terms.credit;
        if let Some(ticket) = ask.ticket {
            self.leave(ticket);
        }
        let of = &tables.windows[window as usize];
        match terms.account {
            // Counted apart, and a hit or not.
            Account::Plain => _ = of.plain.add(1),
            Account::Promised => change(&of.promised, 1),
        }
        let mut warn = false;
        if ask.task != NONE {
            let task = &mut self.tasks[ask.task as usize];
            task.held += 1;
            task.promised += u32::from(terms.account == Account::Promised);
            if terms.first {
                task.reserved = terms.credit;
            }
            if terms.overrun {
                warn = task.overruns == 0;
                task.overruns += 1;
                self.counters.overruns += 1;
            }
        }
        Grant { window, holder: Holder::new(ask.task, terms.account), warn }
    }

    pub(super) fn publish(&mut self, tables: &Tables, page: u32, window: u32) {
        tables.window_of[page as usize].store(window, Ordering::Relaxed);
        tables.windows[window as usize].page.store(page, Ordering::Relaxed);
    }

    /// Grants a hit of the common kind, or nothing: then [`State::attempt`] has to be asked. It is what
    /// `attempt` and `grant` would do, without what they look at for the other kinds.
    #[inline]
    pub(super) fn hit(&mut self, guess: &Guess<'_>, task: u32) -> Option<(u32, Holder)> {
        let &Guess { of, window, page } = guess;
        if read(&of.page) != page {
            return None;
        }
        if task != NONE {
            let entry = &mut self.tasks[task as usize];
            if self.reservation {
                if entry.promised == entry.max {
                    return None;
                }
                if entry.held == 0 {
                    if self.taken + entry.max > self.capacity || !self.line.is_empty() {
                        return None;
                    }
                    self.taken += entry.max;
                    entry.reserved = entry.max;
                }
                entry.held += 1;
                entry.promised += 1;
                change(&of.promised, 1);
                self.counters.hits += 1;
                return Some((window, Holder::new(task, Account::Promised)));
            }
        }
        if of.plain.live() == 0 {
            if self.taken >= self.capacity || !self.line.is_empty() {
                return None;
            }
            self.taken += 1;
        }
        if task != NONE {
            self.tasks[task as usize].held += 1;
        }
        if of.plain.add(HIT + 1) {
            self.counters.hits += of.plain.take_hits();
        }
        Some((window, Holder::new(task, Account::Plain)))
    }

    /// Ends a mapping of nobody's, as [`State::release`] does.
    #[inline]
    pub(super) fn release_plain(&mut self, of: &Window) -> bool {
        let last = of.plain.end();
        self.taken -= u32::from(last);
        last && !self.line.is_empty()
    }

    /// Ends a mapping. True if somebody who waits may have what it gave back.
    #[inline]
    pub(super) fn release(&mut self, tables: &Tables, window: u32, holder: Holder) -> bool {
        let (task, account) = (holder.task(), holder.account());
        let of = &tables.windows[window as usize];
        let mut back = match account {
            Account::Plain => u32::from(of.plain.end()),
            Account::Promised => {
                change(&of.promised, -1);
                0
            }
        };
        if task != NONE {
            let task = &mut self.tasks[task as usize];
            task.held -= 1;
            task.promised -= u32::from(account == Account::Promised);
            if task.held == 0 {
                back += task.reserved;
                task.reserved = 0;
            }
        }
        self.taken -= back;
        back > 0 && !self.line.is_empty()
    }

    /// Makes all idle windows free and hands them to `free`, the lowest last.
    pub(super) fn sweep(&mut self, tables: &Tables, free: &mut Vec<u32>) {
        self.counters.wraps += 1;
        for (number, window) in (0..tables.windows.len() as u32).zip(&tables.windows).rev() {
            let page = read(&window.page);
            if page != NONE && window.mappings() == 0 {
                tables.window_of[page as usize].store(NONE, Ordering::Relaxed);
                window.page.store(NONE, Ordering::Relaxed);
                free.push(number);
            }
        }
    }

    /// Takes `count` windows out of use for ever.
    pub(super) fn lose(&mut self, count: u32) {
        self.capacity -= count;
        self.counters.lost += u64::from(count);
    }

    /// A place in the line for `task`, which wants `wanted` windows.
    pub(super) fn join(&mut self, task: u32, wanted: u32) -> Result<u64, MapError> {
        if self.line.len() >= self.line_max {
            return Err(MapError::LineFull { waiting: self.line.len() as u32 });
        }
        let ticket = self.next_ticket;
        self.next_ticket += 1;
        self.line.push_back(Waiter { ticket, task, wanted });
        self.counters.waits += 1;
        Ok(ticket)
    }

    /// Leaves the line. True if those behind may have become first.
    pub(super) fn leave(&mut self, ticket: u64) -> bool {
        let place = self.line.iter().position(|w| w.ticket == ticket);
        place.and_then(|at| self.line.remove(at)).is_some() && !self.line.is_empty()
    }

    pub(super) fn full(&self, wanted: u32) -> MapError {
        MapError::Full {
            wanted,
            taken: self.taken,
            windows: self.capacity,
            waiting: self.line.len() as u32,
        }
    }

    pub(super) fn counters(&self, tables: &Tables) -> WindowCounters {
        let hits: u64 = tables.windows.iter().map(|w| w.plain.hits()).sum();
        WindowCounters { hits: self.counters.hits + hits, ..self.counters }
    }

    pub(super) fn usage(&self, tables: &Tables) -> WindowUsage {
        let shown = |w: &&Window| read(&w.page) != NONE;
        let held = tables.windows.iter().filter(|w| w.mappings() > 0).count() as u32;
        let idle = tables.windows.iter().filter(shown).filter(|w| w.mappings() == 0).count();
        WindowUsage {
            windows: self.capacity,
            held,
            idle: idle as u32,
            taken: self.taken,
            waiting: self.line.len() as u32,
        }
    }

    /// Mappings of no task.
    pub(super) fn held_outside_tasks(&self, tables: &Tables) -> u32 {
        let of_tasks: u32 = self.tasks.iter().map(|t| t.held).sum();
        let mappings: u32 = tables.windows.iter().map(Window::mappings).sum();
        mappings - of_tasks
    }

    pub(super) fn add_task(&mut self, name: Box<str>, max: u32) -> Option<u32> {
        let index = self.tasks.iter().position(|t| t.name.is_none())?;
        self.tasks[index] = TaskEntry { name: Some(name), max, ..TaskEntry::default() };
        Some(index as u32)
    }

    /// Ends a task. False if mappings of it are left, which can only have been forgotten: then its entry,
    /// its windows and its promise stay taken.
    pub(super) fn end_task(&mut self, task: u32) -> bool {
        let entry = &mut self.tasks[task as usize];
        if entry.held > 0 {
            return false;
        }
        *entry = TaskEntry::default();
        true
    }

    pub(super) fn task_counts(&self, task: u32) -> (u32, u32, u64) {
        let task = &self.tasks[task as usize];
        (task.held, task.reserved, task.overruns)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hits_of_a_window_are_taken_before_they_overflow() {
        let config = WindowsConfig::new(1);
        let (mut state, tables) = (State::new(&config), Tables::new(1, 1));
        state.publish(&tables, 0, 0);
        tables.windows[0].plain.0.store((u64::MAX >> 33) * HIT, Ordering::Relaxed);
        for _ in 0..3 {
            assert!(state.hit(&tables.guess(0).unwrap(), NONE).is_some());
        }
        assert_eq!(state.counters(&tables).hits, (u64::MAX >> 33) + 3);
        assert_eq!(tables.windows[0].mappings(), 3);
        assert_eq!(tables.windows[0].plain.hits(), 2);
    }
}
