//! A naive model of `netswap-reserve`'s pool, and what runs both side by side.
//!
//! Not part of the allocator: its property tests, its fuzz target and the command's replay of traces
//! share this one model. Nothing depends on it at run time but the command.
//!
//! - [`Model`]: what a pool should do (frames, the tree, charges in pages, bytes and objects, reservations),
//!   recomputed from what is alive;
//! - [`World`]: a pool and its model; each [`Op`] is done to both, and a difference panics;
//! - [`fuzz`]: operations as bytes, any bytes, and a trace as such bytes;
//! - [`mod@replay`]: a recorded trace, done to a pool and, if asked, to the model.
#![forbid(unsafe_code)]

pub mod fuzz;
mod model;
mod op;
pub mod replay;
mod world;

pub use model::{Change, ChangeRefused, Held, Model, Node, Planted, Refused};
pub use op::{Op, Who, gfp};
pub use replay::{Replay, ReplayError, Replayed, replay};
pub use world::{FRAMES, Object, Outcome, PER_FRAME, Shown, World, config};
