//! What this driver needs of a store's client beside its two interfaces: what it knows of its store, what
//! it has counted, and what to do about an error.
//!
//! All of it is asked for before pages move, or after; what is called while they move are
//! [`Session`] and [`SwapBackend`], through one pointer, a call for a packet or a request and none for a byte.

use std::any::Any;
use std::borrow::Cow;

use netswap_net::Session;
use netswap_swap::{StoreError, SwapBackend};

/// The client of a store of any kind.
///
/// A client of your own needs none of these methods: each says that there is nothing to say.
pub trait RealClient: Session + SwapBackend + Any {
    /// What is known of the store; whole once it is ready.
    fn facts(&self) -> StoreFacts {
        StoreFacts::default()
    }

    /// What was counted since it was made.
    fn counters(&self) -> Counters {
        Counters::default()
    }

    /// How the writes that have ended were made to last.
    fn write_proof(&self) -> WriteProof {
        WriteProof { how: "the write was answered".into(), epoch: None, restarts: 0 }
    }

    /// What a user can do about an error that ended the client.
    fn advice(&self, error: &StoreError) -> Cow<'static, str> {
        let _ = error;
        "see the server's log".into()
    }
}

/// What is known of a store.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StoreFacts {
    /// This client gave it its length: it was absent or empty, so nothing in it is anybody's.
    pub is_new: bool,
    /// What its server said.
    pub said: Vec<Fact>,
    /// What that means for swapping.
    pub findings: Vec<Finding>,
}

/// Something that a server said.
#[derive(Clone, Debug, PartialEq)]
pub struct Fact {
    /// What about.
    pub name: &'static str,
    /// For people.
    pub text: String,
    /// For programs.
    pub value: serde_json::Value,
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It was not looked at, or can be lived with.
    Warning,
    /// Not to be swapped on.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub what: String,
}

impl Finding {
    /// A finding.
    pub fn new(name: &'static str, verdict: Verdict, what: impl Into<String>) -> Finding {
        Finding { name, verdict, what: what.into() }
    }
}

/// What a client has counted.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Counters {
    /// Connections opened, or sessions, the first included.
    pub connections: u64,
    /// Requests that were sent again.
    pub resent: u64,
    /// Requests that went to the server together with another.
    pub joined: u64,
    /// Connections given up since what came was not the protocol.
    pub garbage: u64,
}

/// What makes a write last.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Durability {
    /// Each write by itself, before it is answered.
    WithWrite,
    /// A flush that follows it.
    ByFlush,
}

/// How writes that have ended were made to last.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct WriteProof {
    /// In words.
    pub how: String,
    /// A number of the server that changes when it may have lost what it had not been asked to keep, if it
    /// has one.
    pub epoch: Option<u64>,
    /// How often that number has changed.
    pub restarts: u64,
}
