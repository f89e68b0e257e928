//! Records a trace.
//!
//! The pool notes each operation under its lock, into a buffer that was allocated before: nothing is
//! called, written or allocated there. Whoever records empties the buffer outside the lock, often
//! enough. A buffer that is full loses operations, which is an error when it is next emptied: a trace
//! with a hole cannot be replayed.

use std::io::{self, Write};

use super::wire::{self, HEADER_BYTES_MAX, OP_BYTES_MAX};
use super::{Changed, TraceHeader, TraceOp};
use crate::pool::PagePool;
use crate::reserves::{Change, ReserveError};
use crate::state::State;

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
    /// The pool was used in a way that a trace has no operation for.
    #[error("reservations, and charges in objects, cannot be recorded")]
    Foreign,
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
    /// Something happened that no operation of a trace says; nothing is noted from then on.
    foreign: bool,
}

impl Recorder {
    fn failure(&self) -> Result<(), RecordError> {
        if self.foreign {
            return Err(RecordError::Foreign);
        }
        if self.lost > 0 {
            return Err(RecordError::Overflow { lost: self.lost });
        }
        Ok(())
    }

    fn push(&mut self, op: &TraceOp) {
        if self.foreign {
            return;
        }
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

    /// Ends what can be recorded: something was done that a trace has no operation for.
    #[cold]
    #[inline(never)]
    pub(crate) fn note_foreign(&mut self) {
        if let Some(recorder) = &mut self.recorder {
            recorder.foreign = true;
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
        let recorder = Box::new(Recorder { bytes, ops: 0, unchecked: 0, lost: 0, foreign: false });
        let spare = Vec::with_capacity(capacity);
        let mut state = inner.lock();
        let refused = if state.recorder.is_some() {
            RecordError::Running
        } else if state.free < inner.config.frames || state.charges > 0 || state.tree.len() > 1 {
            RecordError::NotFresh
        } else {
            state.recorder = Some(recorder);
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
    use crate::trace::{TraceError, TraceReader};
    use crate::{Gfp, PoolConfig, ReservationSpec, ReserveId};

    fn pool() -> PagePool {
        PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) })
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
    fn what_a_trace_has_no_operation_for_ends_the_recording() {
        let charge: fn(&PagePool) = |pool| {
            pool.count_objects(ReserveId::ROOT, 4);
            drop(pool.charge_objects(ReserveId::ROOT, 1));
        };
        let reserve: fn(&PagePool) = |pool| drop(pool.reserve(ReservationSpec::pages(1)).unwrap());
        for foreign in [charge, reserve] {
            let pool = pool();
            let mut recording = pool.record(0).unwrap();
            drop(pool.alloc(Gfp::KERNEL));
            foreign(&pool);
            drop(pool.alloc(Gfp::KERNEL));
            let mut bytes = Vec::new();
            assert!(matches!(recording.drain(&mut bytes), Err(RecordError::Foreign)));
            assert!(matches!(recording.finish(&mut bytes), Err(RecordError::Foreign)));
            assert!(bytes.is_empty());
        }
    }
}
