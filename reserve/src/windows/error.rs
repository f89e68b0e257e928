//! Why a page could not be mapped.

use std::time::Duration;

/// Why a page could not be mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    /// All windows are in use, or promised to tasks, or wanted by others who came first.
    #[error("{wanted} windows wanted, {taken} of {windows} in use or promised, {waiting} wait")]
    Full {
        /// Windows wanted: 1, or all that the task declared.
        wanted: u32,
        /// Windows that are in use or promised.
        taken: u32,
        /// Windows there are.
        windows: u32,
        /// Who waits already.
        waiting: u32,
    },
    /// As `Full`, and so it stayed.
    #[error("{wanted} windows wanted, and not had in {waited:?}: {taken} of {windows} taken")]
    TimedOut {
        /// Windows wanted.
        wanted: u32,
        /// Windows that were in use or promised at the end.
        taken: u32,
        /// Windows there are.
        windows: u32,
        /// How long it was waited.
        waited: Duration,
    },
    /// Nobody more may wait: the line is as long as it may be.
    #[error("{waiting} wait for a window already, and no more may")]
    LineFull {
        /// Who waits already.
        waiting: u32,
    },
    /// The local windows are as deep as they go.
    #[error("all {depth} local windows are in use")]
    TooDeep {
        /// Local windows there are.
        depth: u32,
    },
    /// The page is a high page, and this mapper has no windows.
    #[error("a high page cannot be reached without a window")]
    NoWindows,
    /// The page belongs to another pool than the windows.
    #[error("the page belongs to another pool than the windows")]
    OtherPool,
    /// The system refused the mapping (`vm.max_map_count` bounds how many there may be).
    #[error("the system refused a mapping: {}", std::io::Error::from_raw_os_error(*code))]
    Refused {
        /// The system's error number.
        code: i32,
    },
}

/// Why a set of windows could not be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum WindowsError {
    /// There is at least one window, and at most 2^20.
    #[error("there are between 1 and 2^20 windows, not {windows}")]
    Size {
        /// Windows asked for.
        windows: u32,
    },
    /// The system refused the range of address space.
    #[error("cannot reserve a range for {windows} windows: {}", std::io::Error::from_raw_os_error(*code))]
    Reserve {
        /// Windows asked for.
        windows: u32,
        /// The system's error number.
        code: i32,
    },
    /// A task declares at least one window, and no more than there are.
    #[error("a task may declare between 1 and {windows} windows, not {declared}")]
    Declared {
        /// Windows the task declared.
        declared: u32,
        /// Windows there are.
        windows: u32,
    },
    /// The table of tasks is full.
    #[error("the table of {tasks} tasks is full")]
    TooManyTasks {
        /// Entries of the table.
        tasks: u32,
    },
}
