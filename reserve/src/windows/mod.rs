//! Mapping windows: how pages are touched that have no address of their own.
//!
//! Pages are *low*, in the region of a [`PagePool`](crate::PagePool) and always mapped, or *high*, in a
//! memfd and mapped nowhere until somebody looks. A mapping copies nothing: it shows the page at an address
//! for a while. Addresses for that are few, which is what this module is about.
//!
//! - [`high`]: [`HighPool`] and [`HighPage`], the memory;
//! - [`page`]: low and high pages alike;
//! - [`map`]: [`MapWindows`], the windows that threads share;
//! - [`task`]: [`TaskWindows`], several windows at a time without deadlock;
//! - [`local`]: [`LocalWindows`], a thread's own, without locks;
//! - [`cursor`]: [`PageCursor`], bytes of a page vector that travels unmapped;
//! - [`vmap`](mod@vmap): a page vector as one range;
//! - [`alias`]: what two addresses of one page mean on a virtually indexed cache.

pub mod alias;
pub mod cursor;
pub mod error;
pub mod high;
pub mod local;
pub mod map;
pub mod mapped;
pub mod page;
mod space;
mod state;
pub mod task;
pub mod vmap;

pub use alias::{AliasModel, Cache, Missing, StaleRead};
pub use cursor::{CursorError, Direct, Mapper, PageCursor, PageCursorMut};
pub use error::{MapError, WindowsError};
pub use high::{HighExhausted, HighPage, HighPool, HighPoolError};
pub use local::{LocalMap, LocalMapMut, LocalWindows};
pub use map::{MapWindows, Ticket, WindowCounters, WindowUsage, WindowsConfig};
pub use mapped::{Mapped, MappedMut};
pub use page::{MapPage, MapPageMut, Page, PageView, PageViewMut};
pub use task::{TaskId, TaskWindows};
pub use vmap::{Vmap, VmapError, VmapMut, vmap, vmap_mut};

#[cfg(test)]
mod tests;
