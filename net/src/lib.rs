//! The packet layer: packets in pool memory, the emergency filter, tagged sockets. SKELETON.
#![forbid(unsafe_code)]

pub mod session;

pub use session::{Action, Disconnect, SendVec, Session};
