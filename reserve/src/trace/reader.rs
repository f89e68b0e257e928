//! Reads a trace, an operation at a time, and believes nothing of it.

use std::io::{self, BufRead, BufReader, Read};

use super::wire::{self, Bytes, Known};
use super::{TraceHeader, TraceOp};

/// Nodes that a tree may have; see [`PagePool::add_reserve`](crate::PagePool::add_reserve).
const NODES_MAX: u32 = 65_534;

/// Why bytes are not a trace.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// They cannot be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
    /// They do not begin as a trace does.
    #[error("not an allocator trace")]
    NotATrace,
    /// They are of a version that this one does not read.
    #[error("an allocator trace of version {version}; only {} can be read", super::VERSION)]
    Version {
        /// The version.
        version: u8,
    },
    /// They end before the trace does: it was cut, or its recording was not finished.
    #[error("cut at byte {at}: the trace has no end")]
    Truncated {
        /// Bytes there are.
        at: u64,
    },
    /// A number has no meaning where it stands.
    #[error("byte {at}: bad {what}: {value}")]
    Bad {
        /// Where the number ends.
        at: u64,
        /// What it should be.
        what: &'static str,
        /// What it is.
        value: u64,
    },
    /// The end counts other operations than there were.
    #[error("the trace counts {counted} operations and has {read}")]
    Count {
        /// Operations according to the end.
        counted: u64,
        /// Operations before it.
        read: u64,
    },
    /// Something follows the end.
    #[error("byte {at}: something follows the end of the trace")]
    Trailing {
        /// Where.
        at: u64,
    },
}

/// Reads a trace. Memory is bounded by the buffer, whatever the input says.
///
/// An iterator over the operations; it ends after the first error. Numbers are in range: frames below
/// [`TraceHeader::frames`], nodes among those added so far. Whether the operations make sense in their
/// order (a frame freed twice, say) is for the replay to see.
///
/// ```
/// use netswap_reserve::trace::{TraceOp, TraceReader};
/// use netswap_reserve::{Gfp, PagePool, PoolConfig};
///
/// let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
/// let mut recording = pool.record(4096)?;
/// drop(pool.alloc(Gfp::KERNEL)?);
/// let mut bytes = Vec::new();
/// recording.drain(&mut bytes)?;
/// assert_eq!(recording.finish(&mut bytes)?, 2);
///
/// let trace = TraceReader::new(&bytes[..])?;
/// assert_eq!(trace.header().frames, 64);
/// let ops: Vec<TraceOp> = trace.collect::<Result<_, _>>()?;
/// assert!(matches!(ops[..], [TraceOp::Alloc { .. }, TraceOp::Free { frame: 0, more: false }]));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct TraceReader<R> {
    from: Source<R>,
    header: TraceHeader,
    nodes: u32,
    ops: u64,
    ended: bool,
}

#[derive(Debug)]
struct Source<R> {
    from: BufReader<R>,
    at: u64,
}

impl<R: Read> Source<R> {
    /// The next byte, or `None` at the end of the input.
    fn next(&mut self) -> Result<Option<u8>, TraceError> {
        loop {
            match self.from.fill_buf() {
                Ok(bytes) => {
                    let byte = bytes.first().copied();
                    if byte.is_some() {
                        self.from.consume(1);
                        self.at += 1;
                    }
                    return Ok(byte);
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

impl<R: Read> Bytes for Source<R> {
    fn byte(&mut self) -> Result<u8, TraceError> {
        self.next()?.ok_or(TraceError::Truncated { at: self.at })
    }

    fn bad(&self, what: &'static str, value: u64) -> TraceError {
        TraceError::Bad { at: self.at, what, value }
    }
}

impl<R: Read> TraceReader<R> {
    /// Reads the header.
    ///
    /// # Errors
    /// When the input is no trace, or one of another version.
    pub fn new(from: R) -> Result<TraceReader<R>, TraceError> {
        let mut from = Source { from: BufReader::new(from), at: 0 };
        let header = wire::header(&mut from)?;
        Ok(TraceReader { from, header, nodes: 1, ops: 0, ended: false })
    }

    /// The pool that the trace was recorded from.
    pub fn header(&self) -> TraceHeader {
        self.header
    }

    /// Operations read so far, checks included.
    pub fn ops(&self) -> u64 {
        self.ops
    }

    fn read(&mut self) -> Result<Option<TraceOp>, TraceError> {
        let first = self.from.byte()?;
        let known = Known { frames: self.header.frames, nodes: self.nodes };
        let Some(op) = wire::op(&mut self.from, first, &known)? else {
            let counted = wire::number(&mut self.from, 64, "count")?;
            if counted != self.ops {
                return Err(TraceError::Count { counted, read: self.ops });
            }
            return match self.from.next()? {
                None => Ok(None),
                Some(_) => Err(TraceError::Trailing { at: self.from.at }),
            };
        };
        if let TraceOp::AddReserve { .. } = op {
            self.nodes += 1;
            if self.nodes > NODES_MAX {
                return Err(self.from.bad("nodes", self.nodes.into()));
            }
        }
        self.ops += 1;
        Ok(Some(op))
    }
}

impl<R: Read> Iterator for TraceReader<R> {
    type Item = Result<TraceOp, TraceError>;

    fn next(&mut self) -> Option<Result<TraceOp, TraceError>> {
        if self.ended {
            return None;
        }
        let read = self.read().transpose();
        self.ended = !matches!(read, Some(Ok(_)));
        read
    }
}

#[cfg(test)]
mod tests;
