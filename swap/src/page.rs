//! Names of pages, areas and tasks, and the page tables as the pager sees them.

use crate::error::PageError;

/// A virtual page known to the pager: an index over all mappings.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct PageId(pub u32);

/// A swap or file area of a pager.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AreaId(pub u8);

/// A task whose faults the pager serves; below [`crate::PagerConfig::max_tasks`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TaskId(pub u32);

/// What a task wanted to do when it faulted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// Read the page.
    Read,
    /// Write the page.
    Write,
}

/// Whoever holds the page tables: a simulated machine, or a driver of real memory.
///
/// A page of the pager is mapped by one page table entry at most. The pager maps a page read-only
/// as long as a slot holds a copy of it; the write fault that follows gives the copy up.
pub trait Mmu {
    /// Makes `page` accessible, or changes whether it is writable. The content is
    /// [`crate::Pager::page`]. The entry starts clean and counts as accessed.
    fn map(&mut self, page: PageId, writable: bool);

    /// Makes `page` inaccessible. Tells whether it was written since it was mapped.
    fn unmap(&mut self, page: PageId) -> bool;

    /// Whether `page` was accessed since it was mapped or since the last call.
    fn test_and_clear_accessed(&mut self, page: PageId) -> bool;
}

/// What became of a fault.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The page is mapped: go on.
    Done,
    /// The task waits. It ends by [`crate::PagerEvent::FaultDone`] or
    /// [`crate::PagerEvent::FaultFailed`].
    Waits,
    /// The page cannot be had.
    Failed(PageError),
}

/// No page, no frame, no task: the end of a list.
pub(crate) const NONE: u32 = u32::MAX;

/// A page table entry of the pager.
///
/// ```text
///   Unmapped -> Zero -> Resident -> Busy (write) -> Swapped -> Busy (read) -> Resident
///                ^---------'  '------------------------^   Swapped -> Lost
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Pte {
    /// Not part of a mapping.
    Unmapped,
    /// All zeros; holds nothing.
    Zero,
    /// In a frame that is parked in the pool.
    Resident {
        /// Index of the frame.
        frame: u32,
    },
    /// In a slot only.
    Swapped {
        /// The area.
        area: AreaId,
        /// The slot.
        slot: Slot,
    },
    /// Its frame is owned by a request.
    Busy {
        /// Index in the table of I/Os.
        io: u16,
        /// Which page of the request.
        at: u8,
    },
    /// Its content is lost; touching it is an error that names where it was.
    Lost {
        /// The area it was in.
        area: AreaId,
        /// The slot it was in.
        slot: Slot,
    },
}

use crate::backend::Slot;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_entry_has_eight_bytes_as_a_page_table_entry_has() {
        assert_eq!(size_of::<Pte>(), 8);
    }
}
