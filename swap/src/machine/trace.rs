//! A task that does what a recorded program did: its trace of accesses becomes page touches.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};

use super::program::{Program, Step};
use crate::Access;
use crate::lackey::{AccessKind, PageAccess};

/// Where the accesses come from: streamed, so a trace may be longer than memory.
pub type TraceSource = Box<dyn Iterator<Item = PageAccess>>;

/// Page numbers are spread well enough by a multiplication; the order of the map is never used.
#[derive(Default)]
struct PageHasher(u64);

impl Hasher for PageHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64(u64::from(*byte));
        }
    }

    fn write_u64(&mut self, n: u64) {
        self.0 = (self.0 ^ n).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}

/// Replays a trace. Pages whose first access is an instruction fetch are file pages (text): clean,
/// dropped without a write and read back; all others are anonymous.
pub struct TraceProgram {
    accesses: TraceSource,
    pages: HashMap<u64, u32, BuildHasherDefault<PageHasher>>,
    pending: Option<Step>,
}

impl TraceProgram {
    /// Replays `accesses`.
    pub fn new(accesses: TraceSource) -> TraceProgram {
        TraceProgram { accesses, pages: HashMap::default(), pending: None }
    }
}

impl Program for TraceProgram {
    fn next(&mut self) -> Step {
        if let Some(step) = self.pending.take() {
            return step;
        }
        let Some(PageAccess { vpn, kind, .. }) = self.accesses.next() else { return Step::Done };
        let access = match kind {
            AccessKind::Fetch | AccessKind::Load => Access::Read,
            AccessKind::Store | AccessKind::Modify => Access::Write,
        };
        let next = self.pages.len() as u32;
        let page = *self.pages.entry(vpn).or_insert(next);
        let touch = Step::Touch { page, access };
        if page < next {
            return touch;
        }
        self.pending = Some(touch);
        Step::Grow { file: kind == AccessKind::Fetch }
    }
}
