//! Looking ahead: showing the transport where the *next* answers belong, before any byte of them has come.
//!
//! # Why
//! Page data goes straight from the kernel into pages, and which pages is said by the head of an answer. One
//! system call for each head and one for its pages would be most of what a page costs. But a server that
//! is not asked for anything odd answers in the order of the requests, and its heads all have one length. So
//! the transport is shown head, pages, head, pages, as they will probably come, and one call takes many answers.
//!
//! # When it was wrong
//! What arrives is read as a stream, whatever was expected. If whole pages have landed in pages of another request, the two
//! change owners: nothing is copied. If the data begins elsewhere, as heads have another length, all that is
//! not read yet is copied to a spill buffer and goes on from there. Either is counted, and less is shown the
//! next time.
//!
//! # Invariants
//! - What is shown and not read yet is never a page in which data has arrived already. That is up to who plans: a page
//!   is shown once, from the first byte on that has not come, and only if its request waits for an answer.
//! - Nothing is written to a page while bytes that are not read yet lie in one that was shown, but in place.
//! - More pages than [`AHEAD_PAGES_MAX`] are shown only if nothing is shown before them, for then it is known that
//!   they are the right ones: they can not be in a wrong place.

use std::io::IoSliceMut;
use std::ops::Range;

use arrayvec::ArrayVec;
use netswap_reserve::PAGE_SIZE;

use crate::session::RecvVec;

/// Bytes for heads. Picked by eye: those of 32 replies of NFS, or 85 of iSCSI.
pub const STAGE_BYTES: usize = 4096;
/// Pages that are shown before the head of their answer has come. Picked by eye: 64 KiB a system call.
pub const AHEAD_PAGES_MAX: usize = 16;
/// Pages of the answer at hand that are shown at once.
pub const AT_HAND_PAGES_MAX: usize = 64;
/// Bytes that can be in a wrong place.
const SPILL_BYTES: usize = STAGE_BYTES + AHEAD_PAGES_MAX * PAGE_SIZE;
/// Runs that are shown at once: pages of the answer at hand, pages ahead, and a head before each of them.
const RUNS_MAX: usize = AT_HAND_PAGES_MAX + 2 * AHEAD_PAGES_MAX + 2;
/// Answers that are shown at once. Picked by eye.
const DEPTH_MAX: usize = 64;

/// Bytes of a page: page `page` of row `row` of the session's table, `len` bytes from `at` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Row of the table.
    pub row: usize,
    /// Page of the row.
    pub page: usize,
    /// First byte in the page.
    pub at: usize,
    /// Bytes, up to the end of the page at most.
    pub len: usize,
}

/// Where what comes next of a stream belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// In a page, at least one byte.
    Page(Place),
    /// Nowhere: so many bytes, at least one, are thrown away.
    Nowhere(usize),
    /// It is no page data.
    Head,
}

/// Who reads the stream, whatever was expected of it.
pub trait Reader {
    /// Why a stream is given up.
    type Error;

    /// Whether anything more is to be read.
    fn is_open(&self) -> bool;

    /// Answers that have come so far, for a guess how many come the next time. Never falls.
    fn answers(&self) -> u64;

    /// Reads bytes that are not where they belong; with `to_data`, up to page data. Says how many.
    ///
    /// # Errors
    /// When the stream is given up.
    fn read(&mut self, bytes: &[u8], to_data: bool) -> Result<usize, Self::Error>;

    /// Where what comes next belongs.
    fn next(&mut self) -> Next;

    /// `n` bytes of what [`Reader::next`] said are there.
    ///
    /// # Errors
    /// When the stream is given up.
    fn arrived(&mut self, n: usize) -> Result<(), Self::Error>;

    /// Exchanges two pages, given by row and number.
    fn exchange(&mut self, a: (usize, usize), b: (usize, usize));

    /// The bytes of a page that was shown.
    fn page(&self, row: usize, page: usize) -> &[u8];
}

/// Where bytes arrive.
#[derive(Clone, Copy, Debug)]
enum Run {
    /// In the stage.
    Stage { at: u16, len: u16 },
    /// In a page of a row.
    Page { row: u16, page: u8, at: u16, len: u16 },
}

impl Run {
    fn len(self) -> usize {
        match self {
            Run::Stage { len, .. } | Run::Page { len, .. } => usize::from(len),
        }
    }
}

/// What has been made good.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct AheadStats {
    /// Pages that arrived in another request's, as answers came in another order, and changed owners.
    pub exchanged: u64,
    /// Bytes that were copied, as answers were not what was expected.
    pub spilled_bytes: u64,
}

/// What a transport is shown, run by run, and the buffers for what has no page.
///
/// ```
/// use netswap_net::RecvVec;
/// use netswap_net::ahead::{Ahead, Place};
///
/// let mut rows = [[[0u8; 4096]; 2]];
/// let mut ahead = Ahead::new();
/// ahead.clear();
/// assert!(ahead.stage(48) && ahead.page(Place { row: 0, page: 1, at: 0, len: 4096 }) && ahead.seal());
/// let mut out = RecvVec::new();
/// ahead.show(&mut rows, |row| row, |page| Some(&mut page[..]), &mut out);
/// assert_eq!(out.iter().map(|slice| slice.len()).collect::<Vec<_>>(), [48, 4096]);
/// ```
#[derive(Debug)]
pub struct Ahead {
    /// What was shown last.
    runs: ArrayVec<Run, RUNS_MAX>,
    /// The rows in it, each with its first run.
    rows: ArrayVec<(u16, u8), RUNS_MAX>,
    /// What of the stage and of the pages ahead is in use.
    staged: usize,
    pages: usize,
    /// How many answers are planned, and are to be: those that came the last time are a good guess.
    planned: usize,
    depth: usize,
    stage: Box<[u8]>,
    spill: Box<[u8]>,
    stats: AheadStats,
}

impl Default for Ahead {
    fn default() -> Ahead {
        Ahead::new()
    }
}

impl Ahead {
    /// Nothing is shown. All the memory it will ever use is allocated here.
    pub fn new() -> Ahead {
        Ahead {
            runs: ArrayVec::new(),
            rows: ArrayVec::new(),
            staged: 0,
            pages: 0,
            planned: 0,
            depth: 1,
            stage: vec![0; STAGE_BYTES].into(),
            spill: vec![0; SPILL_BYTES].into(),
            stats: AheadStats::default(),
        }
    }

    /// The counters.
    pub fn stats(&self) -> AheadStats {
        self.stats
    }

    /// The stream begins anew.
    pub fn reset(&mut self) {
        self.clear();
        self.depth = 1;
    }

    /// Nothing is shown; a plan begins.
    pub fn clear(&mut self) {
        self.runs.clear();
        (self.staged, self.pages, self.planned) = (0, 0, 0);
    }

    /// Whether anything is shown.
    pub fn is_shown(&self) -> bool {
        !self.runs.is_empty()
    }

    /// Bytes that are shown.
    pub fn bytes(&self) -> usize {
        self.runs.iter().map(|run| run.len()).sum()
    }

    /// Another answer is to be planned; false if these are enough.
    pub fn begin_answer(&mut self) -> bool {
        self.planned += 1;
        self.planned <= self.depth
    }

    /// Plans `len` bytes that have no page, as far as there is room for so many. False if not.
    pub fn stage(&mut self, len: usize) -> bool {
        let len_now = len.min(STAGE_BYTES - self.staged);
        if len_now > 0 {
            match self.runs.last_mut() {
                Some(Run::Stage { len, .. }) => *len += len_now as u16,
                _ => {
                    let run = Run::Stage { at: self.staged as u16, len: len_now as u16 };
                    if self.runs.try_push(run).is_err() {
                        return false;
                    }
                }
            }
            self.staged += len_now;
        }
        len_now == len
    }

    /// Plans bytes of a page. False if there is no room for it, or it is not behind the page of this row that was planned
    /// just before: a page is shown in one piece.
    ///
    /// # Panics
    /// If the place is none of a page.
    pub fn page(&mut self, place: Place) -> bool {
        let Place { row, page, at, len } = place;
        assert!(at + len <= PAGE_SIZE && page < 256 && row < 1 << 16, "no place: {place:?}");
        let (most, used) = match self.staged {
            0 => (AT_HAND_PAGES_MAX, self.runs.len()),
            _ => (AHEAD_PAGES_MAX, self.pages),
        };
        let before = self.runs.iter().rev().find_map(|run| match *run {
            Run::Page { row, page, .. } => Some((usize::from(row), usize::from(page))),
            Run::Stage { .. } => None,
        });
        if before.is_some_and(|before| before.0 == row && before.1 >= page) {
            return false;
        }
        let run = Run::Page { row: row as u16, page: page as u8, at: at as u16, len: len as u16 };
        if used >= most || self.runs.try_push(run).is_err() {
            return false;
        }
        self.pages += usize::from(self.staged > 0);
        true
    }

    /// The plan is complete. False, and nothing is planned, if it is empty or a row is in it in several places.
    pub fn seal(&mut self) -> bool {
        self.rows.clear();
        let mut before = None;
        for (k, run) in self.runs.iter().enumerate() {
            let Run::Page { row, .. } = *run else { continue };
            if before != Some(row) {
                self.rows.push((row, k as u8));
            }
            before = Some(row);
        }
        self.rows.sort_unstable();
        if self.rows.windows(2).any(|pair| pair[0].0 == pair[1].0) {
            self.runs.clear();
        }
        self.is_shown()
    }

    /// Appends where the bytes of the plan arrive. `pages_of` gives the pages of a row, `bytes_of` the bytes of a
    /// page, if it has an address.
    ///
    /// The rows are borrowed in their own order, and put in that of the runs.
    ///
    /// # Panics
    /// If a row of the plan does not exist.
    pub fn show<'a, R, P: 'a>(
        &'a mut self,
        rows: &'a mut [R],
        pages_of: impl Fn(&'a mut R) -> &'a mut [P],
        bytes_of: impl Fn(&'a mut P) -> Option<&'a mut [u8]>,
        out: &mut RecvVec<'a>,
    ) {
        let mut pages: [Option<&'a mut [P]>; RUNS_MAX] = [const { None }; RUNS_MAX];
        let (mut rest, mut base) = (rows, 0);
        for (row, k) in self.rows.iter().copied() {
            let (head, tail) = rest.split_at_mut(usize::from(row) + 1 - base);
            pages[usize::from(k)] = head.last_mut().map(&pages_of);
            (rest, base) = (tail, usize::from(row) + 1);
        }
        let mut stage = &mut self.stage[..];
        let mut current: &'a mut [P] = &mut [];
        let mut current_base = 0;
        for (k, run) in self.runs.iter().enumerate() {
            let slice = match *run {
                Run::Stage { len, .. } => {
                    let (now, later) = std::mem::take(&mut stage).split_at_mut(usize::from(len));
                    stage = later;
                    Some(now)
                }
                Run::Page { page, at, len, .. } => {
                    if let Some(of_row) = pages[k].take() {
                        (current, current_base) = (of_row, 0);
                    }
                    let (at, page) = (usize::from(at), usize::from(page));
                    let of_row = std::mem::take(&mut current);
                    let Some((_, [here, later @ ..])) =
                        of_row.split_at_mut_checked(page - current_base)
                    else {
                        return;
                    };
                    (current, current_base) = (later, page + 1);
                    bytes_of(here).map(|bytes| &mut bytes[at..at + usize::from(len)])
                }
            };
            let shown = slice.map(|slice| out.try_push(IoSliceMut::new(slice)).is_ok());
            if shown != Some(true) {
                return;
            }
        }
    }

    /// The first `n` bytes of what [`Ahead::show`] has shown are there. Nothing is shown any more then.
    ///
    /// # Errors
    /// Those of the reader.
    pub fn receive<R: Reader>(&mut self, reader: &mut R, n: usize) -> Result<(), R::Error> {
        let before = reader.answers();
        let mut left = n;
        for k in 0..self.runs.len() {
            if left == 0 || !reader.is_open() {
                break;
            }
            let run = self.runs[k];
            let here = left.min(run.len());
            let done = match run {
                // Page data would be written to a page: only if nothing lies in one, as these are the last bytes.
                Run::Stage { at, .. } => {
                    let at = usize::from(at);
                    reader.read(&self.stage[at..at + here], left > here)?
                }
                Run::Page { .. } => self.read_page(reader, k, here, left == here)?,
            };
            left -= done;
            if done < here && reader.is_open() {
                self.depth = 1;
                return self.read_spilled(reader, k, done, left);
            }
        }
        // As many as came now, and one to find out whether there are more; what comes in bursts is forgotten slowly.
        let came = (reader.answers() - before) as usize;
        let full = n > 0 && came >= self.depth;
        let depth = if full { self.depth * 2 } else { (came + 1).max(self.depth * 3 / 4) };
        self.depth = depth.clamp(2, DEPTH_MAX);
        self.runs.clear();
        Ok(())
    }

    /// Reads `here` bytes that lie in a page, as far as they are page data that is there already or can be by
    /// an exchange of pages. Says how many.
    fn read_page<R: Reader>(
        &mut self,
        reader: &mut R,
        k: usize,
        here: usize,
        last: bool,
    ) -> Result<usize, R::Error> {
        let mut done = 0;
        while done < here && reader.is_open() {
            let Run::Page { row, page, at, .. } = self.runs[k] else { break };
            let (row, page, start) = (usize::from(row), usize::from(page), usize::from(at) + done);
            let n = match reader.next() {
                Next::Head => break,
                Next::Nowhere(n) => n.min(here - done),
                Next::Page(place) => {
                    let n = place.len.min(here - done);
                    if (place.row, place.page, place.at) != (row, page, start) {
                        let aligned = start == 0 && place.at == 0;
                        // Bytes behind the data would move with it.
                        let whole = n == PAGE_SIZE || last && n == here - done;
                        if !aligned || !whole {
                            break;
                        }
                        self.exchange(reader, k, (place.row, place.page));
                    }
                    n
                }
            };
            reader.arrived(n)?;
            done += n;
        }
        Ok(done)
    }

    /// The page of run `k` is what belongs to page `of`, and takes its place.
    fn exchange<R: Reader>(&mut self, reader: &mut R, k: usize, of: (usize, usize)) {
        let Run::Page { row, page, .. } = self.runs[k] else { return };
        self.stats.exchanged += 1;
        reader.exchange((usize::from(row), usize::from(page)), of);
        // What was to arrive in the other page arrives in the same memory, which is here now.
        for later in self.runs.iter_mut().skip(k + 1) {
            if let Run::Page { row: later_row, page: later_page, .. } = later
                && (usize::from(*later_row), usize::from(*later_page)) == of
            {
                (*later_row, *later_page) = (row, page);
            }
        }
    }

    /// Reads the `left` bytes from byte `skip` of run `k` on from a copy.
    #[cold]
    fn read_spilled<R: Reader>(
        &mut self,
        reader: &mut R,
        k: usize,
        skip: usize,
        left: usize,
    ) -> Result<(), R::Error> {
        let (mut skip, mut len) = (skip, 0);
        for run in &self.runs[k..] {
            let n = (run.len() - skip).min(left - len);
            let span =
                |at: u16| -> Range<usize> { usize::from(at) + skip..usize::from(at) + skip + n };
            let from = match *run {
                Run::Stage { at, .. } => &self.stage[span(at)],
                Run::Page { row, page, at, .. } => {
                    &reader.page(usize::from(row), usize::from(page))[span(at)]
                }
            };
            self.spill[len..len + n].copy_from_slice(from);
            (skip, len) = (0, len + n);
        }
        self.runs.clear();
        self.stats.spilled_bytes += len as u64;
        reader.read(&self.spill[..len], false).map(|_| ())
    }
}
