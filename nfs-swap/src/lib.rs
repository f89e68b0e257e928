//! Swap over NFSv3: a client that never allocates after its start, and a server to test it against.
//!
//! Both are sans-IO state machines. Read them from the wire up:
//!
//! - [`xdr`]: XDR over a head, a page vector and a tail;
//! - [`rpc`]: call and reply headers, AUTH_SYS, record marking, the xid table;
//! - [`proto`]: the types and results of NFSv3; [`mount`]: those of MOUNT;
//! - [`dir`]: READDIR and READDIRPLUS, read from a page vector;
//! - [`url`]: what names a swap file;
//! - [`client`]: [`NfsBackend`], a swap backend and one end of a byte stream;
//! - [`lister`]: [`NfsLister`], which lists a directory of an export;
//! - [`server`]: [`NfsServer`], which serves files on disks, with faults on demand.
#![forbid(unsafe_code)]

pub mod client;
pub mod dir;
mod link;
pub mod lister;
mod message;
pub mod mount;
mod pages;
pub mod proto;
pub mod rpc;
pub mod server;
pub mod url;
pub mod xdr;

pub use client::{
    NfsBackend, NfsConfig, NfsFacts, NfsStats, PageCompletion, PageRequest, PageSubmitError,
    UnknownPolicy, WritePolicy,
};
pub use lister::{ListError, ListEvent, ListStats, ListerConfig, NfsLister};
pub use netswap_net::UrlHost;
pub use server::{
    FAULT_NAMES, FaultCounts, NfsServer, NfsServerConfig, ServerFaults, ServerSession, ServerStats,
    UnknownFault,
};
pub use url::{NfsUrl, UrlError};
