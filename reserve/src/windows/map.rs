//! `MapWindows`: the bounded range of address space through which high pages are seen, as `kmap`.
//!
//! Mapping a page that a window still shows (a hit) is one turn of a spin lock, and so is unmapping.
//! A miss takes a free window and one `mmap`; the spin lock is not held during the call, so hits go on
//! meanwhile. Unmapping leaves the page in its window, which is idle then. When no window is free, all idle
//! ones are cleared together, a run of neighbours in one call: the wrap. So a mapping costs at most one call of its own
//! and a share of the wrap's.
//!
//! Two locks. `miss` is taken by misses alone, around the system calls; `state` inside it and alone, for a
//! few dozen instructions. A page that another thread is just mapping is in no window yet: whoever wants it
//! too waits for `miss`, then finds it.
//!
//! Those for whom there is no window stand in a line; the private module `line` is about them.

mod line;

use std::fmt;
use std::ptr::NonNull;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::task::Poll;
use std::time::Duration;

use rustix::io::Errno;

use crate::PAGE_SIZE;
use crate::lock::SpinLock;
use crate::windows::error::{MapError, WindowsError};
use crate::windows::high::{HighPage, HighPool};
use crate::windows::mapped::{Mapped, MappedMut};
use crate::windows::page::{MapPage, MapPageMut, PageView, PageViewMut};
use crate::windows::space::{AddressRange, Refused};
use crate::windows::state::{Ask, Attempt, Grant, Holder, NONE, State, Tables};

pub use line::Ticket;

/// How a set of windows is made.
#[derive(Clone, Copy, Debug)]
pub struct WindowsConfig {
    /// Windows: pages of address space. The kernel's `LAST_PKMAP` is 512 or 1024.
    pub windows: u32,
    /// Who may wait at a time; one more is an error.
    pub waiters: u32,
    /// Tasks that may be declared at a time.
    pub tasks: u32,
    /// Off: a task's declared maximum promises nothing, and each of its mappings may have to wait. Tasks
    /// that hold one window and wait for another can then wait for each other for ever: an ablation.
    pub reservation: bool,
}

impl WindowsConfig {
    /// `windows` windows, with room for 64 waiters and 64 tasks.
    pub fn new(windows: u32) -> WindowsConfig {
        WindowsConfig { windows, waiters: 64, tasks: 64, reservation: true }
    }
}

/// What has happened since the windows were made. Low pages are not counted: nothing happens for them.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct WindowCounters {
    /// Mappings of a page that a window still showed.
    pub hits: u64,
    /// Mappings that took a free window and an `mmap`.
    pub misses: u64,
    /// Times that no window was free, and all idle ones were cleared.
    pub wraps: u64,
    /// Windows cleared by wraps.
    pub cleared: u64,
    /// System calls that it took.
    pub clear_calls: u64,
    /// Mappings that had to wait.
    pub waits: u64,
    /// Of these, those that gave up.
    pub timeouts: u64,
    /// Mappings that were refused because they could not wait.
    pub refusals: u64,
    /// Mappings beyond the maximum that their task had declared.
    pub overruns: u64,
    /// Windows out of use for ever, because the system refused a change to them.
    pub lost: u64,
}

/// How the windows are used at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct WindowUsage {
    /// Windows there are.
    pub windows: u32,
    /// Windows with a live mapping.
    pub held: u32,
    /// Windows without one, which still show a page.
    pub idle: u32,
    /// Windows that are held or promised: what a newcomer cannot have.
    pub taken: u32,
    /// Who waits.
    pub waiting: u32,
}

/// What only misses use: the windows that show nothing, the next one last.
struct Misses {
    free: Vec<u32>,
}

pub(super) struct Shared {
    high: HighPool,
    pub(super) range: AddressRange,
    pub(super) tables: Tables,
    pub(super) state: SpinLock<State>,
    miss: Mutex<Misses>,
    /// How often those who wait were woken.
    woken: Mutex<u64>,
    wake: Condvar,
    pub(super) config: WindowsConfig,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A panic while it was held left nothing half done: sections end with their writes.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What came of an attempt to map a high page.
enum Tried<'a> {
    Held(Hold<'a>),
    /// So many windows are wanted, and cannot be had now.
    Full(u32),
}

impl Shared {
    /// Maps `page` if that needs no waiting.
    fn attempt(
        &self,
        page: &HighPage,
        task: u32,
        ticket: Option<u64>,
    ) -> Result<Tried<'_>, MapError> {
        if !page.is_of(&self.high) {
            return Err(MapError::OtherPool);
        }
        let ask = Ask { page: page.index(), task, ticket };
        let attempt = self.state.lock().attempt(&self.tables, &ask);
        match attempt {
            Attempt::Hit(grant) => Ok(Tried::Held(self.hold(&ask, grant))),
            Attempt::Full(wanted) => Ok(Tried::Full(wanted)),
            Attempt::Miss => self.miss(&ask),
        }
    }

    fn hold(&self, ask: &Ask, grant: Grant) -> Hold<'_> {
        if grant.warn {
            self.warn(ask.task);
        }
        if ask.ticket.is_some() {
            // It has left the line, and the next one may fit as well.
            self.wake();
        }
        Hold { shared: self, window: grant.window, holder: grant.holder }
    }

    #[cold]
    fn warn(&self, task: u32) {
        tracing::warn!(task, "a task maps more pages at a time than it declared");
    }

    #[cold]
    fn miss(&self, ask: &Ask) -> Result<Tried<'_>, MapError> {
        let mut misses = lock(&self.miss);
        let grant = loop {
            let mut state = self.state.lock();
            // Again: others may have come first, and hits and releases go on during a wrap.
            match state.attempt(&self.tables, ask) {
                Attempt::Hit(grant) => {
                    drop(state);
                    return Ok(Tried::Held(self.hold(ask, grant)));
                }
                Attempt::Full(wanted) => return Ok(Tried::Full(wanted)),
                Attempt::Miss => {}
            }
            if let Some(window) = misses.free.pop() {
                break state.grant_miss(&self.tables, ask, window);
            }
            drop(state);
            self.wrap(&mut misses)?;
        };
        // SAFETY: the window was free: no mapping of it lives, and none can begin before `publish`.
        let mapped = unsafe { self.range.map(grant.window, 1, self.high.file(), ask.page) };
        let mut state = self.state.lock();
        match mapped {
            Ok(()) => {
                state.publish(&self.tables, ask.page, grant.window);
                drop(state);
                Ok(Tried::Held(self.hold(ask, grant)))
            }
            Err(Refused(code)) => {
                state.release(&self.tables, grant.window, grant.holder);
                state.lose(1);
                drop(state);
                self.wake();
                Err(MapError::Refused { code })
            }
        }
    }

    /// Clears all idle windows, a run of neighbours in one call. Afterwards at least one is free.
    fn wrap(&self, misses: &mut Misses) -> Result<(), MapError> {
        let free = &mut misses.free;
        self.state.lock().sweep(&self.tables, free);
        let (mut calls, mut cleared) = (0, 0);
        // There is one, unless windows were lost after they had been promised.
        let mut refused = Errno::NOMEM.raw_os_error();
        // The lowest window is the last: from there on, run by run.
        let mut at = free.len();
        while at > 0 {
            let end = at;
            at -= 1;
            while at > 0 && free[at - 1] == free[at] + 1 {
                at -= 1;
            }
            let count = (end - at) as u32;
            calls += 1;
            // SAFETY: the sweep found these windows idle and took their pages out of the table, so no
            // mapping of them lives, and none begins before they are mapped anew, under `miss`.
            match unsafe { self.range.clear(free[end - 1], count) } {
                Ok(()) => cleared += u64::from(count),
                Err(Refused(code)) => {
                    free.drain(at..end);
                    self.state.lock().lose(count);
                    refused = code;
                }
            }
        }
        let mut state = self.state.lock();
        state.counters.clear_calls += calls;
        state.counters.cleared += cleared;
        if free.is_empty() { Err(MapError::Refused { code: refused }) } else { Ok(()) }
    }

    #[cold]
    fn wake(&self) {
        *lock(&self.woken) += 1;
        self.wake.notify_all();
    }

    /// Maps `page` if a window shows it and nothing else is to be looked at.
    #[inline]
    fn hit(&self, page: &HighPage, task: u32) -> Option<Hold<'_>> {
        if !page.is_of(&self.high) {
            return None;
        }
        let guess = self.tables.guess(page.index())?;
        let (window, holder) = self.state.lock().hit(&guess, task)?;
        Some(Hold { shared: self, window, holder })
    }

    /// Maps `page`, or says that it is full.
    #[inline]
    fn try_hold(&self, page: &HighPage, task: u32) -> Result<Hold<'_>, MapError> {
        match self.hit(page, task) {
            Some(hold) => Ok(hold),
            None => self.try_hold_else(page, task),
        }
    }

    #[cold]
    fn try_hold_else(&self, page: &HighPage, task: u32) -> Result<Hold<'_>, MapError> {
        match self.attempt(page, task, None)? {
            Tried::Held(hold) => Ok(hold),
            Tried::Full(wanted) => {
                let mut state = self.state.lock();
                state.counters.refusals += 1;
                Err(state.full(wanted))
            }
        }
    }

    /// Maps `page`, and waits for a window if need be.
    #[inline]
    fn wait_hold(
        self: &Arc<Shared>,
        page: &HighPage,
        task: u32,
        timeout: Duration,
    ) -> Result<Hold<'_>, MapError> {
        match self.hit(page, task) {
            Some(hold) => Ok(hold),
            None => self.wait_hold_else(page, task, timeout),
        }
    }

    #[cold]
    fn wait_hold_else(
        self: &Arc<Shared>,
        page: &HighPage,
        task: u32,
        timeout: Duration,
    ) -> Result<Hold<'_>, MapError> {
        match self.attempt(page, task, None)? {
            Tried::Held(hold) => Ok(hold),
            Tried::Full(_) => self.wait_in_line(page, task, timeout),
        }
    }
}

/// A live mapping, accounted.
pub(super) struct Hold<'a> {
    shared: &'a Shared,
    window: u32,
    holder: Holder,
}

impl Hold<'_> {
    /// Where its page is.
    #[inline]
    pub(super) fn page(&self) -> NonNull<[u8; PAGE_SIZE]> {
        self.shared.range.page(self.window)
    }
}

impl Drop for Hold<'_> {
    #[inline]
    fn drop(&mut self) {
        if self.holder == Holder::NOBODY {
            let shared = self.shared;
            let of = shared.tables.window(self.window);
            let wanted = shared.state.lock().release_plain(of);
            if wanted {
                shared.wake();
            }
        } else {
            self.drop_promised();
        }
    }
}

impl Hold<'_> {
    /// Out of line, so that the drop of the common kind is inlined, and the hold stays in registers.
    #[inline(never)]
    fn drop_promised(&mut self) {
        let shared = self.shared;
        let wanted = shared.state.lock().release(&shared.tables, self.window, self.holder);
        if wanted {
            shared.wake();
        }
    }
}

/// A bounded set of windows onto the pages of one [`HighPool`]. Cloning gives another handle.
///
/// A mapping made here is one of its own: whoever holds one and waits for another may wait for ever, if
/// enough others do the same. Who needs several at a time declares a task ([`MapWindows::task`]).
///
/// ```
/// use netswap_reserve::windows::{HighPool, MapError, MapWindows, WindowsConfig};
///
/// let high = HighPool::new(8)?;
/// let windows = MapWindows::new(&high, WindowsConfig::new(2))?;
/// let pages = [high.alloc()?, high.alloc()?, high.alloc()?];
/// let first = windows.try_map(&pages[0])?;
/// let second = windows.try_map(&pages[1])?;
/// // Full is said, never hidden.
/// assert!(matches!(windows.try_map(&pages[2]), Err(MapError::Full { .. })));
/// drop(first);
/// let third = windows.try_map(&pages[2])?;
/// # drop((second, third));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone)]
pub struct MapWindows {
    pub(super) shared: Arc<Shared>,
}

impl MapWindows {
    /// Reserves the address space for the windows. Tables are made at full size here.
    ///
    /// # Errors
    /// When the number is out of range, or the system refuses the address space.
    pub fn new(high: &HighPool, config: WindowsConfig) -> Result<MapWindows, WindowsError> {
        let windows = config.windows;
        if windows == 0 || windows > 1 << 20 {
            return Err(WindowsError::Size { windows });
        }
        let range = AddressRange::reserve(windows)
            .map_err(|Refused(code)| WindowsError::Reserve { windows, code })?;
        Ok(MapWindows {
            shared: Arc::new(Shared {
                high: high.clone(),
                range,
                tables: Tables::new(high.pages(), windows),
                state: SpinLock::new(State::new(&config)),
                miss: Mutex::new(Misses { free: (0..windows).rev().collect() }),
                woken: Mutex::new(0),
                wake: Condvar::new(),
                config,
            }),
        })
    }

    /// Maps a page to be read, if that needs no waiting.
    ///
    /// # Errors
    /// [`MapError::Full`] when there is no window for it now; never for a low page.
    #[inline]
    pub fn try_map<'a, P: MapPage + ?Sized>(&'a self, page: &'a P) -> Result<Mapped<'a>, MapError> {
        self.shared.try_map(page, NONE)
    }

    /// Maps a page to be written, if that needs no waiting.
    ///
    /// # Errors
    /// As [`MapWindows::try_map`].
    #[inline]
    pub fn try_map_mut<'a, P: MapPageMut + ?Sized>(
        &'a self,
        page: &'a mut P,
    ) -> Result<MappedMut<'a>, MapError> {
        self.shared.try_map_mut(page, NONE)
    }

    /// Maps a page to be read; waits for a window for at most `timeout`, in order of arrival.
    ///
    /// # Errors
    /// [`MapError::TimedOut`] when none came, [`MapError::LineFull`] when too many wait already.
    #[inline]
    pub fn map<'a, P: MapPage + ?Sized>(
        &'a self,
        page: &'a P,
        timeout: Duration,
    ) -> Result<Mapped<'a>, MapError> {
        self.shared.map(page, NONE, timeout)
    }

    /// Maps a page to be written; waits for a window for at most `timeout`, in order of arrival.
    ///
    /// # Errors
    /// As [`MapWindows::map`].
    #[inline]
    pub fn map_mut<'a, P: MapPageMut + ?Sized>(
        &'a self,
        page: &'a mut P,
        timeout: Duration,
    ) -> Result<MappedMut<'a>, MapError> {
        self.shared.map_mut(page, NONE, timeout)
    }

    /// For state machines: maps a page to be read, or takes a place in the line, which `ticket` keeps.
    /// Call again when windows have been given back; drop the ticket to give up.
    ///
    /// # Errors
    /// Ready with [`MapError::LineFull`] when too many wait already.
    pub fn poll_map<'a, P: MapPage + ?Sized>(
        &'a self,
        page: &'a P,
        ticket: &mut Option<Ticket>,
    ) -> Poll<Result<Mapped<'a>, MapError>> {
        self.shared.poll_map(page, NONE, ticket)
    }

    /// What has happened so far.
    pub fn counters(&self) -> WindowCounters {
        self.shared.state.lock().counters(&self.shared.tables)
    }

    /// How the windows are used now.
    pub fn usage(&self) -> WindowUsage {
        self.shared.state.lock().usage(&self.shared.tables)
    }
}

impl fmt::Debug for MapWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("MapWindows").field("usage", &self.usage()).finish()
    }
}

impl Shared {
    #[inline]
    pub(super) fn try_map<'a, P: MapPage + ?Sized>(
        &'a self,
        page: &'a P,
        task: u32,
    ) -> Result<Mapped<'a>, MapError> {
        match page.view() {
            PageView::Low(bytes) => Ok(Mapped::low(bytes)),
            PageView::High(page) => self.try_hold(page, task).map(Mapped::high),
        }
    }

    #[inline]
    pub(super) fn try_map_mut<'a, P: MapPageMut + ?Sized>(
        &'a self,
        page: &'a mut P,
        task: u32,
    ) -> Result<MappedMut<'a>, MapError> {
        match page.view_mut() {
            PageViewMut::Low(bytes) => Ok(MappedMut::low(bytes)),
            PageViewMut::High(page) => self.try_hold(page, task).map(MappedMut::high),
        }
    }

    #[inline]
    pub(super) fn map<'a, P: MapPage + ?Sized>(
        self: &'a Arc<Shared>,
        page: &'a P,
        task: u32,
        timeout: Duration,
    ) -> Result<Mapped<'a>, MapError> {
        match page.view() {
            PageView::Low(bytes) => Ok(Mapped::low(bytes)),
            PageView::High(page) => self.wait_hold(page, task, timeout).map(Mapped::high),
        }
    }

    #[inline]
    pub(super) fn map_mut<'a, P: MapPageMut + ?Sized>(
        self: &'a Arc<Shared>,
        page: &'a mut P,
        task: u32,
        timeout: Duration,
    ) -> Result<MappedMut<'a>, MapError> {
        match page.view_mut() {
            PageViewMut::Low(bytes) => Ok(MappedMut::low(bytes)),
            PageViewMut::High(page) => self.wait_hold(page, task, timeout).map(MappedMut::high),
        }
    }

    pub(super) fn poll_map<'a, P: MapPage + ?Sized>(
        self: &'a Arc<Shared>,
        page: &'a P,
        task: u32,
        ticket: &mut Option<Ticket>,
    ) -> Poll<Result<Mapped<'a>, MapError>> {
        match page.view() {
            PageView::Low(bytes) => Poll::Ready(Ok(Mapped::low(bytes))),
            PageView::High(page) => {
                self.poll_hold(page, task, ticket).map(|held| held.map(Mapped::high))
            }
        }
    }
}
