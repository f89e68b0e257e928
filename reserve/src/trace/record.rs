//! Records a trace.
//!
//! The pool notes each operation under its lock, into a buffer that was allocated before: nothing is
//! called, written or allocated there. Whoever records empties the buffer outside the lock, often
//! enough. A buffer that is full loses operations, which is an error when it is next emptied: a trace
//! with a hole cannot be replayed.

use std::io::{self, Write};

use super::wire::{self, HEADER_BYTES_MAX, OP_BYTES_MAX};
use super::{Changed, TraceHeader, TraceOp, Who};
use crate::inner::Inner;
use crate::pool::PagePool;
use crate::reserves::{Change, ReserveError};
use crate::state::{Caller, State};

/// The smallest buffer that [`PagePool::record`] makes: some hundred operations.
pub const RECORD_BUFFER_MIN: usize = 4096;

/// Operations between two checks. Picked by eye: a check costs as much as an operation.
const CHECK_EVERY: u64 = 1024;

/// Why a recording could not be made or finished.
#[derive(Debug, thiserror::Error)]
pub enum RecordError {
    /// Threads of the pool keep frames for themselves, which no order contains.
    #[error("a pool with magazines cannot be recorded: set `magazine` to 0")]
    NotExact,
    /// The pool was used before: its frames are not all free, or it has reserves.
    #[error("a pool is recorded from its start, and this one was used before")]
    NotFresh,
    /// Another recording of this pool is running.
    #[error("this pool is being recorded already")]
    Running,
    /// The buffer was full: operations are missing.
    #[error("the buffer was not emptied in time: {lost} operations are missing")]
    Overflow {
        /// Operations that were not noted.
        lost: u64,
    },
    /// The trace cannot be written.
    #[error("cannot write: {0}")]
    Io(#[from] io::Error),
}

/// The part of a recording that the pool writes to, under its lock.
pub(crate) struct Recorder {
    /// Never grows: its capacity is the bound.
    bytes: Vec<u8>,
    ops: u64,
    /// Operations since the last check.
    unchecked: u64,
    lost: u64,
}

impl Recorder {
    fn failure(&self) -> Result<(), RecordError> {
        if self.lost > 0 {
            return Err(RecordError::Overflow { lost: self.lost });
        }
        Ok(())
    }

    fn push(&mut self, op: &TraceOp) {
        if self.lost > 0 || self.bytes.capacity() - self.bytes.len() < OP_BYTES_MAX {
            self.lost += 1;
            return;
        }
        wire::put_op(&mut self.bytes, op);
        self.ops += 1;
        self.unchecked += 1;
    }
}

impl State {
    /// Notes an operation that has just been carried out.
    #[cold]
    #[inline(never)]
    pub(crate) fn note(&mut self, op: TraceOp) {
        if let Some(recorder) = &mut self.recorder {
            recorder.push(&op);
        }
    }

    /// Notes what became of a change of the tree.
    #[inline]
    pub(crate) fn note_change(&mut self, change: &Change, result: &Result<(), ReserveError>) {
        if self.recorder.is_none() {
            return;
        }
        let changed = Changed::of(result);
        self.note(match *change {
            Change::Connect(node) => TraceOp::Connect { node, changed },
            Change::Disconnect(node) => TraceOp::Disconnect { node, changed },
            Change::Resize(node, own) => TraceOp::Resize { node, own, changed },
        });
    }

    /// Notes that frames of a promise were given back.
    #[cold]
    #[inline(never)]
    pub(crate) fn note_unreserve(&mut self, from: Option<u16>, frames: u32) {
        if frames > 0 {
            self.note(TraceOp::Unreserve { from, frames });
        }
    }

    /// As [`State::note`], where nothing else of the same turn of the lock is still to come.
    #[cold]
    #[inline(never)]
    pub(crate) fn note_and_check(&mut self, op: TraceOp) {
        let (free, floor, usage) = (self.free, self.marks.floor, self.tree.counters(0).0);
        if let Some(recorder) = &mut self.recorder {
            recorder.push(&op);
            if recorder.unchecked >= CHECK_EVERY {
                recorder.push(&TraceOp::Check { free, floor, usage });
                recorder.unchecked = 0;
            }
        }
    }
}

impl Inner {
    /// Who asks, as a trace has it.
    #[cold]
    pub(crate) fn who(&self, caller: Caller) -> Who {
        match caller.entitled.map(|reserve| reserve.node(self.id)) {
            None => Who::Nobody,
            Some(node) if caller.by_scope => Who::Scope(node),
            Some(node) => Who::Call(node),
        }
    }
}

/// A trace that is being recorded. Dropping it ends the recording, and leaves the trace without an end.
///
/// Made by [`PagePool::record`].
#[derive(Debug)]
pub struct Recording {
    pool: PagePool,
    /// Changes places with the pool's buffer whenever that is emptied.
    spare: Vec<u8>,
}

impl PagePool {
    /// Records every operation of this pool from now on, into a buffer of `buffer_bytes` bytes (two of
    /// them in fact, and at least [`RECORD_BUFFER_MIN`]) that [`Recording::drain`] empties. An operation
    /// takes 3 to 6 bytes, mostly.
    ///
    /// # Errors
    /// When the pool has magazines, was used before, or is being recorded.
    pub fn record(&self, buffer_bytes: usize) -> Result<Recording, RecordError> {
        let inner = self.inner();
        if inner.magazine > 0 {
            return Err(RecordError::NotExact);
        }
        const { assert!(RECORD_BUFFER_MIN > HEADER_BYTES_MAX + OP_BYTES_MAX) };
        let capacity = buffer_bytes.max(RECORD_BUFFER_MIN);
        let mut bytes = Vec::with_capacity(capacity);
        wire::put_header(&mut bytes, &TraceHeader::of(&inner.config));
        let recorder = Box::new(Recorder { bytes, ops: 0, unchecked: 0, lost: 0 });
        let spare = Vec::with_capacity(capacity);
        let mut state = inner.lock();
        let refused = if state.recorder.is_some() {
            RecordError::Running
        } else if state.free < inner.config.frames
            || state.charges > 0
            || state.tree.len() > 1
            || state.tree.floor() > 0
        {
            RecordError::NotFresh
        } else {
            state.recorder = Some(recorder);
            // The one thing that a root may have been told before.
            if let Some(per_frame) = state.tree.counts_objects(0) {
                state.note(TraceOp::CountObjects { node: 0, per_frame });
            }
            drop(state);
            return Ok(Recording { pool: self.clone(), spare });
        };
        // Unlocked before the buffers are freed.
        drop(state);
        Err(refused)
    }
}

impl Recording {
    /// Whether half of the buffer is full: time to drain it.
    pub fn is_half_full(&self) -> bool {
        let state = self.pool.inner().lock();
        state.recorder.as_ref().is_some_and(|r| r.bytes.len() > r.bytes.capacity() / 2)
    }

    /// Empties the buffer into `out`. The pool goes on meanwhile, into the other buffer.
    ///
    /// # Errors
    /// When `out` cannot be written to, or operations were lost because the buffer was full. The trace
    /// is useless then.
    pub fn drain(&mut self, out: &mut impl Write) -> Result<(), RecordError> {
        self.spare.clear();
        let mut failure = Ok(());
        if let Some(recorder) = &mut self.pool.inner().lock().recorder {
            std::mem::swap(&mut recorder.bytes, &mut self.spare);
            failure = recorder.failure();
        }
        failure?;
        Ok(out.write_all(&self.spare)?)
    }

    /// Ends the recording: writes what is left, and the end. Returns how many operations the trace has,
    /// checks included.
    ///
    /// # Errors
    /// As [`Recording::drain`].
    pub fn finish(mut self, out: &mut impl Write) -> Result<u64, RecordError> {
        let Some(recorder) = self.stop() else { unreachable!("only `stop` ends it, once") };
        recorder.failure()?;
        out.write_all(&recorder.bytes)?;
        self.spare.clear();
        wire::put_end(&mut self.spare, recorder.ops);
        out.write_all(&self.spare)?;
        Ok(recorder.ops)
    }

    fn stop(&mut self) -> Option<Box<Recorder>> {
        self.pool.inner().lock().recorder.take()
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Freed outside the lock.
        drop(self.stop());
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::trace::{NotReserved, TraceError, TraceReader};
    use crate::{Gfp, PoolConfig, ReservationSpec, ReserveId, SlabCache};

    fn pool_config() -> PoolConfig {
        PoolConfig { magazine: 0, ..PoolConfig::new(64) }
    }

    fn pool() -> PagePool {
        PagePool::new(pool_config())
    }

    #[test]
    fn what_cannot_be_replayed_is_not_recorded() {
        let refused = |pool: &PagePool| pool.record(0).err().map(|e| e.to_string());
        let held_back = PagePool::new(PoolConfig::new(64));
        assert!(refused(&held_back).unwrap().contains("magazine"));
        let used = pool();
        let frame = used.alloc(Gfp::KERNEL).unwrap();
        assert!(refused(&used).unwrap().contains("used before"));
        drop(frame);
        let recording = used.record(0).unwrap();
        assert!(refused(&used).unwrap().contains("already"));
        drop(recording);
        assert_eq!(refused(&used), None);
        used.add_reserve(ReserveId::ROOT, "node", 1);
        assert!(refused(&used).unwrap().contains("used before"));
    }

    #[test]
    fn a_full_buffer_loses_operations_and_says_so() {
        let pool = pool();
        let mut recording = pool.record(0).unwrap();
        let mut bytes = Vec::new();
        while !recording.is_half_full() {
            drop(pool.alloc(Gfp::KERNEL));
        }
        recording.drain(&mut bytes).unwrap();
        assert!(!recording.is_half_full());
        for _ in 0..RECORD_BUFFER_MIN {
            drop(pool.alloc(Gfp::KERNEL));
        }
        assert!(matches!(recording.drain(&mut bytes), Err(RecordError::Overflow { lost: 1.. })));
        assert!(matches!(recording.finish(&mut bytes), Err(RecordError::Overflow { .. })));
        let last = TraceReader::new(&bytes[..]).unwrap().last().unwrap();
        assert!(matches!(last, Err(TraceError::Truncated { .. })));
    }

    #[test]
    fn it_is_checked_now_and_then() {
        let pool = pool();
        let recording = pool.record(1 << 16).unwrap();
        for _ in 0..2 * CHECK_EVERY {
            drop(pool.alloc(Gfp::KERNEL));
        }
        let mut bytes = Vec::new();
        let ops = recording.finish(&mut bytes).unwrap();
        let is_check = |op: &TraceOp| matches!(op, TraceOp::Check { free: 63, .. });
        let trace: Vec<_> = TraceReader::new(&bytes[..]).unwrap().map(Result::unwrap).collect();
        assert_eq!(trace.len() as u64, ops);
        let checks = trace.iter().filter(|op| is_check(op)).count() as u64;
        assert_eq!(ops, 4 * CHECK_EVERY + checks);
        assert!((2..=4).contains(&checks), "{checks}");
    }

    #[test]
    fn a_root_that_was_set_up_before_is_noted_or_refused() {
        let pool = pool();
        pool.count_objects(ReserveId::ROOT, 4);
        let recording = pool.record(0).unwrap();
        let mut bytes = Vec::new();
        recording.finish(&mut bytes).unwrap();
        let ops: Vec<_> = TraceReader::new(&bytes[..]).unwrap().map(Result::unwrap).collect();
        assert_eq!(ops, [TraceOp::CountObjects { node: 0, per_frame: 4 }]);
        pool.resize(ReserveId::ROOT, 1).unwrap();
        assert!(matches!(pool.record(0), Err(RecordError::NotFresh)));
    }

    #[test]
    fn a_reservation_is_what_it_does_to_the_pool() {
        let pool = PagePool::new(PoolConfig { headroom: 4, ..pool_config() });
        let cache = SlabCache::<[u64; 128]>::new(&pool);
        let recording = pool.record(0).unwrap();
        let who = Who::Nobody;
        let mut whole = pool.reserve(ReservationSpec::pages(3).objects(&cache, 4)).unwrap();
        let part = whole.split(2).unwrap();
        let page = whole.page();
        let object = whole.object(&cache, [0; 128]);
        pool.reserve(ReservationSpec::pages(60)).unwrap_err();
        drop(part);
        drop(whole);
        drop((page, object));
        let mut bytes = Vec::new();
        recording.finish(&mut bytes).unwrap();
        let ops: Vec<_> = TraceReader::new(&bytes[..]).unwrap().map(Result::unwrap).collect();
        let [reserved, drawn, slab_page, object, short, rest @ ..] = &ops[..] else {
            panic!("{ops:?}")
        };
        // Three such objects fit a page: four need two, and one less needs one less.
        assert_eq!(*reserved, TraceOp::Reserve { who, frames: 5, outcome: Ok(None) });
        assert_eq!(*drawn, TraceOp::Draw { from: None, frame: 0, charged: false });
        assert!(matches!(slab_page, TraceOp::Alloc { outcome: Ok(_), .. }), "{slab_page:?}");
        assert_eq!(*object, TraceOp::Unreserve { from: None, frames: 1 });
        let outcome = Err(NotReserved::Short { free: 62, watermark: 7 });
        assert_eq!(*short, TraceOp::Reserve { who, frames: 60, outcome });
        let [part, whole, frames @ ..] = rest else { panic!("{rest:?}") };
        assert_eq!(*part, TraceOp::Unreserve { from: None, frames: 2 });
        assert_eq!(*whole, TraceOp::Unreserve { from: None, frames: 1 });
        assert!(frames.iter().all(|op| matches!(op, TraceOp::Free { .. })), "{frames:?}");
    }
}
