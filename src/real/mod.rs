//! Real stores: a client over sockets of the kernel, in real time. What every command that
//! takes a URL is built on.
//!
//! There is no mechanism here, and no protocol. Read it from the URL down:
//!
//! - [`scheme`]: the one table of what a URL may begin with, and what makes a client of it;
//! - [`nfs`], [`iscsi`]: the stores there are, as the table sees them;
//! - [`client`]: what is needed of a store's client beside its two interfaces;
//! - [`store`]: [`RealStore`], a client with its connection, thread and clock;
//! - [`area`]: whether what is in a store may be written, and its header;
//! - [`check`]: whether a store is fit to swap on;
//! - [`load`]: a load with verification;
//! - [`paging`]: the simulated machine over a real store, in real time;
//! - [`interrupt`]: what ends a long run before its end;
//! - `pump`: the event loop of one connection, for whatever session it is;
//! - [`mkswap`]: a swap area is made; [`list`]: what a server has;
//! - [`error`]: why a store cannot be used, and what to do next;
//! - [`local`]: whether a server runs on this very host.
//!
//! # Invariants
//! - A host name is looked up once, when a store is opened. Reconnecting uses what was found.
//! - What the kernel offers to keep the path alive is asked for before the first connection, and what
//!   became of it is kept for a report.
//! - Whoever waits has a deadline; what ends it is a typed error that says what to do next.
//! - Nothing is allocated from the heap while requests move.

pub mod area;
pub mod check;
pub mod client;
pub mod error;
pub mod interrupt;
pub mod iscsi;
pub mod list;
pub mod load;
pub mod local;
pub mod mkswap;
pub mod nfs;
pub mod paging;
mod pump;
pub mod scheme;
pub mod store;

pub use area::{AreaFacts, FitError, area_to_read, fit_to_write};
pub use client::{Counters, Durability, Fact, RealClient, StoreFacts, WriteProof};
pub use error::{NotReady, OpenError, StoreUrlError, TransferError};
pub use interrupt::Interrupt;
pub use list::{Entry, ListFailure, ListOptions, Listing};
pub use local::is_this_host;
pub use mkswap::{Made, MkswapError, MkswapOptions, Progress, make_area, make_area_if_absent};
pub use scheme::{Location, Scheme, SchemeTable, SchemeTaken, StoreUrl, UrlProblem, redacted};
pub use store::{OpenOptions, RealStore};
