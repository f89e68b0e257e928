//! A task that needs several windows at a time takes them all or none, at its first.
//!
//! If each task takes its windows one by one, tasks that hold one and wait for the next can hold all of
//! them between them, and wait for each other for ever. Here a task declares once how many pages it maps
//! at a time; its first mapping takes the right to that many, or waits without holding anything. So only
//! first mappings ever wait, whatever the order in which pages are mapped.
//!
//! What is taken is a right, not windows: one number under a lock that the mapping needs anyway. Nobody
//! looks for free windows that may never be used.

use std::fmt;
use std::sync::Arc;
use std::task::Poll;
use std::time::Duration;

use crate::explain::{NodeId, NodeKind, WaitGraph};
use crate::windows::error::{MapError, WindowsError};
use crate::windows::map::{MapWindows, Shared, Ticket};
use crate::windows::mapped::{Mapped, MappedMut};
use crate::windows::page::{MapPage, MapPageMut};
use crate::windows::state::NONE;

/// Names a task of a set of windows, while it lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(u32);

/// A task that maps up to a declared number of pages at a time.
///
/// A mapping beyond that number is made if a window is there, is counted, and is told once
/// as a warning; it may have to wait, as if the task had not declared anything. It is not a crash: the
/// declaration was wrong, but most likely nothing bad comes of it.
///
/// ```
/// use netswap_reserve::windows::{HighPool, MapError, MapWindows, WindowsConfig};
///
/// let high = HighPool::new(8)?;
/// let windows = MapWindows::new(&high, WindowsConfig::new(4))?;
/// let (copy, check) = (windows.task("copy", 2)?, windows.task("check", 3)?);
/// let (from, to) = (high.alloc()?, high.alloc()?);
/// let first = copy.try_map(&from)?;
/// // Two of four are promised, though one is used: three cannot be had.
/// assert!(matches!(check.try_map(&from), Err(MapError::Full { wanted: 3, taken: 2, .. })));
/// let second = copy.try_map(&to)?; // cannot fail
/// drop((first, second));
/// assert!(check.try_map(&from).is_ok());
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct TaskWindows {
    shared: Arc<Shared>,
    id: u32,
    max: u32,
}

impl MapWindows {
    /// Declares a task that maps at most `max` pages at a time. Its name is for reports.
    ///
    /// # Errors
    /// When that is none or more than there are windows, or the table of tasks is full.
    pub fn task(&self, name: impl Into<String>, max: u32) -> Result<TaskWindows, WindowsError> {
        let config = &self.shared.config;
        if max == 0 || max > config.windows {
            return Err(WindowsError::Declared { declared: max, windows: config.windows });
        }
        let name = name.into().into_boxed_str();
        let id = self.shared.state.lock().add_task(name, max);
        let id = id.ok_or(WindowsError::TooManyTasks { tasks: config.tasks })?;
        Ok(TaskWindows { shared: self.shared.clone(), id, max })
    }

    /// Draws who waits for windows, and who holds them, into a graph of waiting. `tasks` says which nodes
    /// the tasks are; edges of tasks that are not named are left out. What holds windows is memory.
    pub fn draw(&self, graph: &mut WaitGraph, tasks: &[(TaskId, NodeId)]) {
        let state = self.shared.state.lock();
        let usage = state.usage(&self.shared.tables);
        let holders: Vec<(Option<NodeId>, NodeId)> = tasks
            .iter()
            .filter(|(id, _)| state.tasks[id.0 as usize].held > 0)
            .map(|&(id, task)| {
                let held = state.tasks[id.0 as usize].held;
                let windows = graph.node(count(held), NodeKind::Any);
                let name = state.tasks[id.0 as usize].name.as_deref().unwrap_or("a task");
                graph.edge(windows, task, format!("held by {name}"), "");
                (Some(task), windows)
            })
            .collect();
        let outside = state.held_outside_tasks(&self.shared.tables);
        let outside = (outside > 0).then(|| {
            (None, graph.node(format!("{}, held by no task", count(outside)), NodeKind::Moving))
        });
        for waiter in &state.line {
            let Some(&(_, task)) = tasks.iter().find(|(id, _)| id.0 == waiter.task) else {
                continue;
            };
            for &(holder, windows) in holders.iter().chain(&outside) {
                graph.memory(windows);
                let phrase = "waits for a mapping window";
                let (wanted, taken) = (waiter.wanted, usage.taken);
                let detail = format!("wants {wanted}, {taken} of {} taken", usage.windows);
                // It waits for its own as well, but there is more to be told of the others'.
                if holder == Some(task) {
                    graph.edge_aside(task, windows, phrase, detail);
                } else {
                    graph.edge(task, windows, phrase, detail);
                }
            }
            if !self.shared.config.reservation {
                graph.allowed_by(task, "--ablate window-reservation");
            }
        }
    }
}

fn count(windows: u32) -> String {
    format!("{windows} window{}", if windows == 1 { "" } else { "s" })
}

impl TaskWindows {
    /// Names the task in [`MapWindows::draw`].
    pub fn id(&self) -> TaskId {
        TaskId(self.id)
    }

    /// Pages it maps at a time, as declared.
    pub fn max(&self) -> u32 {
        self.max
    }

    /// Its live mappings.
    pub fn held(&self) -> u32 {
        self.shared.state.lock().task_counts(self.id).0
    }

    /// Windows promised to it now: its maximum from its first mapping to its last, 0 otherwise.
    pub fn promised(&self) -> u32 {
        self.shared.state.lock().task_counts(self.id).1
    }

    /// Mappings that it made beyond its maximum.
    pub fn overruns(&self) -> u64 {
        self.shared.state.lock().task_counts(self.id).2
    }

    /// Maps a page to be read, if that needs no waiting. After the first and up to the declared maximum,
    /// it never does.
    ///
    /// # Errors
    /// [`MapError::Full`] when the promise, or a window beyond it, cannot be had now.
    #[inline]
    pub fn try_map<'a, P: MapPage + ?Sized>(&'a self, page: &'a P) -> Result<Mapped<'a>, MapError> {
        self.shared.try_map(page, self.id)
    }

    /// Maps a page to be written, if that needs no waiting.
    ///
    /// # Errors
    /// As [`TaskWindows::try_map`].
    #[inline]
    pub fn try_map_mut<'a, P: MapPageMut + ?Sized>(
        &'a self,
        page: &'a mut P,
    ) -> Result<MappedMut<'a>, MapError> {
        self.shared.try_map_mut(page, self.id)
    }

    /// Maps a page to be read; the first one waits for the promise, for at most `timeout`.
    ///
    /// # Errors
    /// [`MapError::TimedOut`] when it did not come, [`MapError::LineFull`] when too many wait already.
    #[inline]
    pub fn map<'a, P: MapPage + ?Sized>(
        &'a self,
        page: &'a P,
        timeout: Duration,
    ) -> Result<Mapped<'a>, MapError> {
        self.shared.map(page, self.id, timeout)
    }

    /// Maps a page to be written; the first one waits for the promise, for at most `timeout`.
    ///
    /// # Errors
    /// As [`TaskWindows::map`].
    #[inline]
    pub fn map_mut<'a, P: MapPageMut + ?Sized>(
        &'a self,
        page: &'a mut P,
        timeout: Duration,
    ) -> Result<MappedMut<'a>, MapError> {
        self.shared.map_mut(page, self.id, timeout)
    }

    /// For state machines: see [`MapWindows::poll_map`].
    ///
    /// # Errors
    /// Ready with [`MapError::LineFull`] when too many wait already.
    pub fn poll_map<'a, P: MapPage + ?Sized>(
        &'a self,
        page: &'a P,
        ticket: &mut Option<Ticket>,
    ) -> Poll<Result<Mapped<'a>, MapError>> {
        self.shared.poll_map(page, self.id, ticket)
    }
}

impl Drop for TaskWindows {
    fn drop(&mut self) {
        debug_assert!(self.id != NONE);
        let ended = self.shared.state.lock().end_task(self.id);
        if !ended {
            tracing::warn!(task = self.id, "a task ended whose mappings were forgotten");
        }
    }
}

impl fmt::Debug for TaskWindows {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (held, promised, overruns) = self.shared.state.lock().task_counts(self.id);
        f.debug_struct("TaskWindows")
            .field("max", &self.max)
            .field("held", &held)
            .field("promised", &promised)
            .field("overruns", &overruns)
            .finish()
    }
}
