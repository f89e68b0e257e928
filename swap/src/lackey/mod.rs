//! Traces of real programs, as valgrind's lackey prints them.
//!
//! `valgrind --tool=lackey --trace-mem=yes --log-file=FILE PROGRAM` writes one line for each
//! instruction fetched and each load, store and modification of memory. [`LackeyReader`] turns such
//! text into the sequence of pages that the program touched, which is what a pager needs of it. A
//! trace may be plain or compressed with zstd, a file or standard input ([`open`]). It is streamed:
//! memory is one buffer, made at the start, and the decoder's window; nothing is allocated for a
//! line.
//!
//! Traces are gigabytes of text, so successive accesses to one page are folded into one
//! [`PageAccess`]. What folding keeps:
//!
//! - the order of the first touches of different pages;
//! - within code (fetches) and within data (loads, stores, modifications), the order of all accesses;
//! - on one page, the order of code against data;
//! - every write: a folded access with a write in it is a write;
//! - the number of accesses: the counts sum up to it.
//!
//! What it gives up: when, within one stay on a page, the program touched it. An access joins the
//! last one of its stream (code or data) if that is to the same page, and thereby moves back past
//! the other stream's accesses to at most one other page. `fold.rs` has the rule.
//!
//! A line that cannot be read is counted and skipped, and the first few are kept with their numbers
//! ([`TraceStats::first_malformed`]): without `--log-file` the program's own error output runs
//! between lackey's lines. A trace of which no line is an access is an error.

mod fold;
mod line;
mod source;
#[cfg(test)]
mod tests;

use std::fmt;
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};

use arrayvec::ArrayVec;
use netswap_reserve::PAGE_SIZE;

use fold::Fold;
pub use line::LineFault;
use line::{Access, Line};
use source::Source;

/// Bytes of the read buffer, and the longest line that is looked at. Picked by eye: reads are large
/// enough to cost nothing, the buffer stays in the second-level cache.
const BUFFER_BYTES: usize = 64 * 1024;

/// Malformed lines that are kept.
const MALFORMED_KEPT: usize = 8;

/// Bytes of a malformed line that are kept.
const EXCERPT_BYTES: usize = 40;

const PAGE_SHIFT: u32 = PAGE_SIZE.trailing_zeros();

/// What an access does. Ordered by strength: of accesses that are folded, the greatest kind stays.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum AccessKind {
    /// `I`: an instruction is fetched.
    Fetch,
    /// `L`: data is read.
    Load,
    /// `S`: data is written.
    Store,
    /// `M`: data is read and written by one instruction.
    Modify,
}

impl AccessKind {
    /// Whether the page is dirty afterwards.
    pub fn is_write(self) -> bool {
        self >= AccessKind::Store
    }
}

/// One or more successive accesses to one page, all of them code or all of them data.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PageAccess {
    /// Virtual page number: the address divided by [`PAGE_SIZE`].
    pub vpn: u64,
    /// The strongest kind among the accesses. A [`AccessKind::Fetch`] is folded with fetches alone.
    pub kind: AccessKind,
    /// How many accesses these are, at least 1.
    pub count: u32,
}

/// A line that could not be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MalformedLine {
    /// Its number in the text, from 1.
    pub line: u64,
    /// What is wrong with it.
    pub fault: LineFault,
    /// Its first bytes, as they are.
    pub excerpt: ArrayVec<u8, EXCERPT_BYTES>,
    /// Whether the line is longer than the excerpt.
    pub cut: bool,
}

impl fmt::Display for MalformedLine {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let dots = if self.cut { "..." } else { "" };
        write!(f, "line {}: {}: \"{}{dots}\"", self.line, self.fault, self.excerpt.escape_ascii())
    }
}

/// What a trace held, up to where it has been read. Final once the reader has returned `None`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct TraceStats {
    /// Lines, of whatever kind: `accesses + superblocks + chatter + malformed`.
    pub lines: u64,
    /// Lines that are an access.
    pub accesses: u64,
    /// Accesses that touch two pages.
    pub straddling: u64,
    /// [`PageAccess`]es made of them.
    pub page_accesses: u64,
    /// Lines that say that a superblock was entered (`--trace-superblocks=yes`). They are skipped.
    pub superblocks: u64,
    /// Blank lines and valgrind's own.
    pub chatter: u64,
    /// Lines that could not be read.
    pub malformed: u64,
    /// The first of these.
    pub first_malformed: ArrayVec<MalformedLine, MALFORMED_KEPT>,
}

impl TraceStats {
    /// Page touches that were folded into an earlier one.
    ///
    /// Until the reader has returned `None` this counts the up to two runs that are still open.
    pub fn folded(&self) -> u64 {
        self.accesses + self.straddling - self.page_accesses
    }
}

/// Why a trace ends early, or is none.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The file cannot be opened, or is a directory. The message leaves its name to the caller, as all
    /// of these do.
    #[error("cannot open the trace: {source}")]
    Open {
        /// The file.
        path: PathBuf,
        /// The system's reason.
        source: io::Error,
    },
    /// Reading failed below the trace's format.
    #[error("cannot read trace after line {line}: {source}")]
    Read {
        /// Lines read before.
        line: u64,
        /// The system's reason.
        source: io::Error,
    },
    /// A zstd stream ends within a frame.
    #[error("trace is cut short after line {line}: its zstd stream ends within a frame")]
    Truncated {
        /// Lines read before.
        line: u64,
    },
    /// The zstd decoder refuses the stream.
    #[error("trace is damaged after line {line}: zstd: {source}")]
    Corrupt {
        /// Lines read before.
        line: u64,
        /// The decoder's reason.
        source: io::Error,
    },
    /// The whole text holds no access.
    #[error("no memory access in the {lines} lines of the trace{}", FirstFault(.first))]
    NothingParsed {
        /// Lines read.
        lines: u64,
        /// Lines that could not be read.
        malformed: u64,
        /// The first of these.
        first: Option<MalformedLine>,
    },
}

/// Tail of a message: the first malformed line, if there is one.
struct FirstFault<'a>(&'a Option<MalformedLine>);

impl fmt::Display for FirstFault<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0 {
            Some(first) => write!(f, " ({first})"),
            None => Ok(()),
        }
    }
}

/// Opens a trace, plain or zstd. `-` is standard input.
///
/// # Errors
/// [`TraceError::Open`], or [`TraceError::Read`] if the first bytes cannot be read.
pub fn open(path: &Path) -> Result<LackeyReader<Box<dyn Read + Send>>, TraceError> {
    let reader: Box<dyn Read + Send> = if path.as_os_str() == "-" {
        Box::new(io::stdin())
    } else {
        Box::new(open_file(path).map_err(|source| TraceError::Open { path: path.into(), source })?)
    };
    LackeyReader::new(reader)
}

/// A directory can be opened, and fails only when it is read, without a line to blame.
fn open_file(path: &Path) -> io::Result<File> {
    let file = File::open(path)?;
    if file.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(file)
}

/// How far a reader is.
enum State {
    Reading,
    /// The text has ended. The error, if there is one, comes after the last page access.
    Ended(Option<TraceError>),
}

/// An iterator over the page accesses of a trace.
///
/// After an error, or the end, it yields `None` for ever. What was read before an error is yielded
/// before the error.
///
/// ```
/// use netswap_swap::lackey::{AccessKind, LackeyReader, PageAccess};
///
/// let text = "\
/// ==42== Lackey, an example Valgrind tool
/// I  0401ab70,3
/// I  0401ab73,5
///  S 1fff000ffe,8
/// ";
/// let mut trace = LackeyReader::new(text.as_bytes())?;
/// let pages = trace.by_ref().collect::<Result<Vec<_>, _>>()?;
/// let page = |vpn, kind, count| PageAccess { vpn, kind, count };
/// assert_eq!(
///     pages,
///     [
///         page(0x401a, AccessKind::Fetch, 2),
///         page(0x1fff000, AccessKind::Store, 1), // the store straddles two pages
///         page(0x1fff001, AccessKind::Store, 1),
///     ]
/// );
/// assert_eq!((trace.stats().accesses, trace.stats().chatter), (3, 1));
/// # Ok::<(), netswap_swap::lackey::TraceError>(())
/// ```
pub struct LackeyReader<R: Read> {
    source: Source<R>,
    buf: Box<[u8]>,
    /// Bytes of `buf` from `head` to `tail` are not parsed yet; `head` is at the start of a line,
    /// unless `skipping`.
    head: usize,
    tail: usize,
    /// Bytes after `head` that are known to hold no newline, so that a line that arrives in small
    /// pieces is not searched again from its start.
    searched: usize,
    /// The line at `head` has been counted, and its rest is to be dropped.
    skipping: bool,
    state: State,
    fold: Fold,
    stats: TraceStats,
}

impl<R: Read> fmt::Debug for LackeyReader<R> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("LackeyReader").field("stats", &self.stats()).finish_non_exhaustive()
    }
}

impl<R: Read> LackeyReader<R> {
    /// Reads a trace, plain or zstd, from `reader`. It needs no buffer of its own.
    ///
    /// # Errors
    /// [`TraceError::Read`] if the first bytes cannot be read.
    pub fn new(reader: R) -> Result<LackeyReader<R>, TraceError> {
        Ok(LackeyReader {
            source: Source::new(reader)?,
            buf: vec![0; BUFFER_BYTES].into_boxed_slice(),
            head: 0,
            tail: 0,
            searched: 0,
            skipping: false,
            state: State::Reading,
            fold: Fold::new(),
            stats: TraceStats::default(),
        })
    }

    /// What has been read so far.
    pub fn stats(&self) -> TraceStats {
        TraceStats { page_accesses: self.fold.closed(), ..self.stats.clone() }
    }

    /// Whether the trace is compressed.
    pub fn is_compressed(&self) -> bool {
        self.source.is_compressed()
    }

    /// Parses until something is folded out. Returns whether the text goes on.
    fn advance(&mut self) -> Result<bool, TraceError> {
        loop {
            if !self.skipping {
                self.parse_buffered();
            }
            if self.fold.has_closed() {
                return Ok(true);
            }
            // What is left in the buffer is not a whole line that is an access.
            let unsearched = &self.buf[self.head + self.searched..self.tail];
            match unsearched.iter().position(|byte| *byte == b'\n') {
                Some(at) => {
                    let end = self.head + self.searched + at;
                    self.end_line(end);
                    self.head = end + 1;
                    self.searched = 0;
                    if self.fold.has_closed() {
                        return Ok(true);
                    }
                }
                None => {
                    self.searched = self.tail - self.head;
                    if !self.refill()? {
                        return Ok(false);
                    }
                }
            }
        }
    }

    /// The fast path: parses whole lines that are an access, until one is not or something is
    /// folded out.
    fn parse_buffered(&mut self) {
        let mut rest = &self.buf[self.head..self.tail];
        let start = rest.len();
        let (mut accesses, mut straddling) = (0, 0);
        while let Ok((access, len)) = line::access(rest)
            && let Some((b'\n', after)) = rest[len..].split_first()
        {
            rest = after;
            accesses += 1;
            straddling += touch(&mut self.fold, access);
            if self.fold.has_closed() {
                break;
            }
        }
        if accesses > 0 {
            self.head += start - rest.len();
            self.searched = 0;
            self.stats.lines += accesses;
            self.stats.accesses += accesses;
            self.stats.straddling += straddling;
        }
    }

    /// Takes the line from `head` to `end`, or the rest of one that is skipped.
    fn end_line(&mut self, end: usize) {
        if std::mem::take(&mut self.skipping) {
            return;
        }
        self.stats.lines += 1;
        match line::line(&self.buf[self.head..end]) {
            Ok(Line::Access(access)) => {
                self.stats.accesses += 1;
                self.stats.straddling += touch(&mut self.fold, access);
            }
            Ok(Line::Superblock) => self.stats.superblocks += 1,
            Ok(Line::Chatter) => self.stats.chatter += 1,
            Err(fault) => self.malformed(fault, end),
        }
    }

    /// Counts the line from `head` to `end` as malformed.
    fn malformed(&mut self, fault: LineFault, end: usize) {
        self.stats.malformed += 1;
        let text = &self.buf[self.head..end];
        let excerpt: ArrayVec<u8, EXCERPT_BYTES> =
            text.iter().copied().take(EXCERPT_BYTES).collect();
        let cut = excerpt.len() < text.len();
        let line = self.stats.lines;
        // Full is the usual case of a bad trace: the first few are kept.
        let _ = self.stats.first_malformed.try_push(MalformedLine { line, fault, excerpt, cut });
    }

    /// Reads more behind the beginning of a line that the buffer holds. Returns `false` at the end
    /// of the text, where what the buffer holds is the last line.
    fn refill(&mut self) -> Result<bool, TraceError> {
        if self.skipping {
            (self.head, self.tail, self.searched) = (0, 0, 0);
        } else {
            self.buf.copy_within(self.head..self.tail, 0);
            self.tail -= self.head;
            self.head = 0;
            if self.tail == self.buf.len() {
                self.stats.lines += 1;
                if line::is_chatter(&self.buf) {
                    self.stats.chatter += 1;
                } else {
                    self.malformed(LineFault::TooLong, self.tail);
                }
                self.skipping = true;
                (self.tail, self.searched) = (0, 0);
            }
        }
        let read = self.source.read(&mut self.buf[self.tail..], self.stats.lines)?;
        self.tail += read;
        if read == 0 && self.tail > 0 {
            self.end_line(self.tail);
            self.head = self.tail;
        }
        Ok(read > 0)
    }

    /// Why a text that has ended is no trace, if it is none.
    fn verdict(&self) -> Option<TraceError> {
        (self.stats.accesses == 0).then(|| TraceError::NothingParsed {
            lines: self.stats.lines,
            malformed: self.stats.malformed,
            first: self.stats.first_malformed.first().cloned(),
        })
    }
}

/// Adds `access` to `fold`, on one page or two. Returns how many pages beyond the first.
#[inline]
fn touch(fold: &mut Fold, access: Access) -> u64 {
    let first = access.address >> PAGE_SHIFT;
    // Does not wrap: the parser has checked it.
    let last = (access.address + (access.size - 1)) >> PAGE_SHIFT;
    fold.touch(first, access.kind);
    if last != first {
        // A size is at most a page, so the next page is the last one.
        fold.touch(last, access.kind);
    }
    u64::from(last != first)
}

impl<R: Read> Iterator for LackeyReader<R> {
    type Item = Result<PageAccess, TraceError>;

    fn next(&mut self) -> Option<Result<PageAccess, TraceError>> {
        loop {
            if let Some(access) = self.fold.pop() {
                return Some(Ok(access));
            }
            if let State::Ended(error) = &mut self.state {
                return error.take().map(Err);
            }
            match self.advance() {
                Ok(true) => {}
                Ok(false) => {
                    self.fold.finish();
                    self.state = State::Ended(self.verdict());
                }
                Err(error) => {
                    self.fold.finish();
                    self.state = State::Ended(Some(error));
                }
            }
        }
    }
}

impl<R: Read> std::iter::FusedIterator for LackeyReader<R> {}
