//! Writes the allocator trace of a run: every operation of the host's page pool, as it happens.
//!
//! The pool notes operations into a buffer; this empties it between two instants of the simulation.
//! Nothing of it depends on the machine, so the same seed and options give the same bytes.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;

use netswap_reserve::trace::{RecordError, Recording};

use super::assemble::Memory;
use super::run::{RunError, RunSpec};

/// Plain, or compressed as it is written.
enum Sink {
    Plain(BufWriter<File>),
    Zstd(Box<zstd::Encoder<'static, BufWriter<File>>>),
}

impl Sink {
    fn create(path: &Path) -> io::Result<Sink> {
        let file = BufWriter::new(File::create(path)?);
        if path.extension().is_some_and(|extension| extension == "zst") {
            let mut encoder = zstd::Encoder::new(file, LEVEL)?;
            encoder.include_checksum(true)?;
            return Ok(Sink::Zstd(Box::new(encoder)));
        }
        Ok(Sink::Plain(file))
    }

    fn end(self) -> io::Result<()> {
        match self {
            Sink::Plain(mut file) => file.flush(),
            Sink::Zstd(encoder) => encoder.finish()?.flush(),
        }
    }
}

impl Write for Sink {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        match self {
            Sink::Plain(file) => file.write(bytes),
            Sink::Zstd(encoder) => encoder.write(bytes),
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        match self {
            Sink::Plain(file) => file.flush(),
            Sink::Zstd(encoder) => encoder.flush(),
        }
    }
}

/// Fast, and still four times smaller than plain.
const LEVEL: i32 = 3;

/// An allocator trace that is being written.
pub(super) struct AllocTrace {
    recording: Recording,
    sink: Sink,
    /// The first thing that went wrong; nothing is written after it.
    error: Option<RecordError>,
}

impl AllocTrace {
    /// Begins the trace that `spec` wants, if it wants one.
    pub(super) fn open(
        spec: &RunSpec,
        memory: &mut Memory,
    ) -> Result<Option<AllocTrace>, RunError> {
        let (Some(path), Some(recording)) = (&spec.alloc_trace, memory.take_recording()) else {
            return Ok(None);
        };
        let sink = Sink::create(path).map_err(|error| failed(path, error.into()))?;
        Ok(Some(AllocTrace { recording, sink, error: None }))
    }

    /// To be called often: empties the buffer when it is half full.
    pub(super) fn poll(&mut self) {
        if self.error.is_none() && self.recording.is_half_full() {
            self.error = self.recording.drain(&mut self.sink).err();
        }
    }

    /// Writes what is left. To be called when the world is gone, so that what it gave back is there.
    pub(super) fn finish(mut self, spec: &RunSpec) -> Result<(), RunError> {
        let written = match self.error {
            Some(error) => Err(error),
            None => self.recording.finish(&mut self.sink),
        };
        let ended = written.and_then(|_| Ok(self.sink.end()?));
        ended.map_err(|error| failed(spec.alloc_trace.as_deref().unwrap_or(Path::new("")), error))
    }
}

fn failed(path: &Path, source: RecordError) -> RunError {
    RunError::AllocTrace { path: path.display().to_string(), source }
}
