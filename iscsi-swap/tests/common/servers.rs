//! tgt and istgt, as the end-to-end tests start them, each with a unit of the same size.

#![allow(dead_code, unreachable_pub)]

#[path = "../../../tests/common/daemon.rs"]
pub(crate) mod daemon;
#[path = "../../../tests/common/istgt.rs"]
pub(crate) mod istgt;
#[path = "../../../tests/common/skip.rs"]
pub(crate) mod skip;
#[path = "../../../tests/common/tgt.rs"]
pub(crate) mod tgt;

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::sync::atomic::{AtomicU32, Ordering};

use istgt::{Accounts, Istgt};
use tgt::{Target, Tgt};

/// Bytes of each unit.
pub const UNIT_BYTES: u64 = 32 << 20;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With its keys raised, as an administrator would who cares for speed.
    Tgt,
    /// With a data segment of 8192 bytes, R2Ts, and 2 s that a client is to wait.
    TgtAsItComes,
    Istgt,
}

enum Of {
    Tgt(Tgt),
    Istgt(Istgt),
}

pub struct Server(Of);

fn name() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!("iscsi-{}", NEXT.fetch_add(1, Ordering::Relaxed))
}

impl Server {
    /// With one target; `None`, and a word about it, if the machine has no such program.
    pub fn start(kind: Kind) -> Option<Server> {
        let mut target = Target::new("disk1", UNIT_BYTES);
        if kind == Kind::TgtAsItComes {
            target.keys.clear();
        }
        skip::or_skip(match kind {
            Kind::Istgt => Istgt::with_area(&name(), UNIT_BYTES).map(Of::Istgt),
            _ => Tgt::start(&name(), vec![target]).map(Of::Tgt),
        })
        .map(Server)
    }

    /// With two more targets: `chap`, which wants these accounts, and `digest`, which wants both digests.
    pub fn with_chap(kind: Kind, accounts: Accounts) -> Option<Server> {
        let target = |name| Target::new(name, UNIT_BYTES);
        let digests = ["HeaderDigest", "DataDigest"].map(|key| (key, "CRC32C"));
        let mut digest = target("digest");
        digest.keys.extend(digests);
        let chap = Target { accounts: accounts.to_vec(), ..target("chap") };
        skip::or_skip(match kind {
            Kind::Istgt => Istgt::with_chap(&name(), UNIT_BYTES, accounts).map(Of::Istgt),
            _ => Tgt::start(&name(), vec![target("disk1"), chap, digest]).map(Of::Tgt),
        })
        .map(Server)
    }

    /// The URL of the unit of a target.
    pub fn url(&self, target: &str) -> String {
        match &self.0 {
            Of::Tgt(tgt) => tgt.url(target),
            Of::Istgt(istgt) => istgt.url_of(target),
        }
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        match &mut self.0 {
            Of::Tgt(tgt) => tgt.kill(),
            Of::Istgt(istgt) => istgt.kill(),
        }
    }

    /// Starts it again, over the same disk.
    pub fn run(&mut self) {
        match &mut self.0 {
            Of::Tgt(tgt) => tgt.start_server(),
            Of::Istgt(istgt) => istgt.start_server(),
        }
        .unwrap();
    }

    /// A byte range of the unit of `disk1`.
    pub fn disk(&self, at: u64, len: usize) -> Vec<u8> {
        let file = match &self.0 {
            Of::Tgt(tgt) => tgt.file("disk1"),
            Of::Istgt(istgt) => istgt.file(),
        };
        let mut out = vec![0; len];
        File::open(file).unwrap().read_exact_at(&mut out, at).unwrap();
        out
    }
}
