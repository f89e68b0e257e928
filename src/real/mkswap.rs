//! Making a swap area: the file is created, all of its bytes are written, and the header last, so that
//! what was interrupted has no signature and is not taken for an area.
//!
//! A file that is there already is read first, all of it: an area is somebody's memory, and other data is
//! somebody's too.

use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::signature::Header;
use netswap_swap::{Op, PageVec, Request, RequestId, Slot, StoreError, SubmitError};
use std::borrow::Cow;

use super::area::{read_header_page, write_header_page};
use super::error::{OpenError, TransferError};
use super::scheme::StoreUrl;
use super::store::{OpenOptions, RealStore};

/// The smallest area that `mkswap` of util-linux makes.
pub const AREA_PAGES_MIN: u64 = 10;
/// Requests outstanding at a time. Picked by eye: enough for a link of some gigabits and a millisecond.
const IN_FLIGHT: usize = 16;

/// What is to be made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MkswapOptions {
    /// Bytes of the area; a part of a page at its end is left out. Without it, all that a store has
    /// which is not made by its clients.
    pub bytes: Option<u64>,
    /// Overwrite a file that holds anything.
    pub force: bool,
    /// UUID of the area.
    pub uuid: [u8; 16],
    /// Label of the area, padded with zeros.
    pub label: [u8; 16],
    /// How long one request may take.
    pub request_timeout: Span,
}

/// What was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Made {
    /// Pages of the area, that of the header included.
    pub slots: u32,
    /// The file was absent or empty.
    pub is_new: bool,
    /// Pages read to see what the file holds.
    pub pages_read: u64,
    /// Pages written, that of the header included.
    pub pages_written: u64,
    /// How long it took.
    pub took: Span,
}

/// How far it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The store is open, and the area will have so many pages.
    Begun(u32),
    /// Pages that were read to see what the file holds.
    Read(u64),
    /// Pages that were written.
    Written(u64),
}

/// Why no area was made.
#[derive(Debug, thiserror::Error)]
pub enum MkswapError {
    /// The size is none of an area.
    #[error("{bytes} bytes are too few for an area: give at least {}KiB", AREA_PAGES_MIN * 4)]
    TooSmall {
        /// The size asked for.
        bytes: u64,
    },
    /// The header has no room for so many pages.
    #[error("{bytes} bytes are too many for an area: give less than 16384GiB")]
    TooLarge {
        /// The size asked for.
        bytes: u64,
    },
    /// The store is there as it is, and is none for an area.
    #[error("{server} has {slots} pages, too few for an area: at least {}KiB are needed", AREA_PAGES_MIN * 4)]
    StoreTooSmall {
        /// The store.
        server: String,
        /// Pages it has.
        slots: u32,
    },
    /// A file that is to be made has no length of its own.
    #[error("{server} is given its length: say which by --size")]
    NoSize {
        /// The store.
        server: String,
    },
    /// The store is there as it is, and is too short.
    #[error(
        "{server} has {slots} pages, not the {wanted} of --size: give {}KiB at most, or grow it at its server",
        u64::from(*.slots) * (PAGE_SIZE as u64 / 1024)
    )]
    BeyondStore {
        /// The store.
        server: String,
        /// Pages it has.
        slots: u32,
        /// Pages asked for.
        wanted: u32,
    },
    /// The store cannot be used.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// There is a file of another length.
    #[error("{server} has {slots} pages already, not {wanted}: give its size, or remove it")]
    OtherLength {
        /// The store.
        server: String,
        /// Pages it has.
        slots: u32,
        /// Pages asked for.
        wanted: u32,
    },
    /// There is an area already, perhaps in use.
    #[error(
        "{server} is a swap area already, and may be in use: --force makes it anew, all in it is lost"
    )]
    IsArea {
        /// The store.
        server: String,
    },
    /// There is other data.
    #[error("{server} holds data (page {slot} is not zero): --force overwrites it")]
    HoldsData {
        /// The store.
        server: String,
        /// The first page seen that is not zero.
        slot: u32,
    },
    /// Pages were not moved. The file has no signature.
    #[error("page {slot} of {server}: {error}: {advice}")]
    Transfer {
        /// The store.
        server: String,
        /// The page.
        slot: u32,
        /// What went wrong.
        error: TransferError,
        /// What to do about it.
        advice: Cow<'static, str>,
    },
    /// Somebody has seen enough ([`super::Interrupt`]).
    #[error(
        "interrupted: of {server} {read} pages were read, and {written} of {wanted} written: {}",
        left_as(*.written, *.wanted)
    )]
    Interrupted {
        /// The store.
        server: String,
        /// Pages read to see what the file holds.
        read: u64,
        /// Pages written.
        written: u64,
        /// Pages of the area.
        wanted: u32,
    },
    /// The header that was read back is not the one that was written.
    #[error("{server} did not keep the header that was written")]
    NotKept {
        /// The store.
        server: String,
    },
}

/// What an interrupted store is left as.
fn left_as(written: u64, wanted: u32) -> &'static str {
    match written {
        0 => "nothing is changed but what was on its way",
        n if n < u64::from(wanted) => "it has no signature, and is not taken for an area",
        _ => "whether it has its signature already is not known",
    }
}

impl MkswapError {
    /// Whether nobody answered.
    pub fn is_unreachable(&self) -> bool {
        match self {
            MkswapError::Open(error) => error.is_unreachable(),
            MkswapError::Transfer { error, .. } => {
                *error == TransferError::Store(StoreError::TimedOut)
            }
            _ => false,
        }
    }

    /// Whether something was asked for that there cannot be.
    pub fn is_usage(&self) -> bool {
        match self {
            MkswapError::TooSmall { .. } | MkswapError::TooLarge { .. } => true,
            MkswapError::Open(error) => error.is_usage(),
            _ => false,
        }
    }

    /// Whether there is something that must not be overwritten unasked.
    pub fn is_refusal(&self) -> bool {
        matches!(
            self,
            MkswapError::NoSize { .. }
                | MkswapError::BeyondStore { .. }
                | MkswapError::OtherLength { .. }
                | MkswapError::IsArea { .. }
                | MkswapError::HoldsData { .. }
        )
    }
}

/// Makes a file that is absent, or empty, a swap area, as [`make_area`] does; one that has a byte is left as it is, whatever
/// is in it. `None` if it was left.
///
/// # Errors
/// As those of [`make_area`]; there is nothing to be overwritten.
pub fn make_area_if_absent(
    url: &StoreUrl,
    open: &OpenOptions,
    options: &MkswapOptions,
    told: &mut dyn FnMut(Progress),
) -> Result<Option<Made>, MkswapError> {
    let Some(bytes) = options.bytes else {
        return Err(MkswapError::NoSize { server: url.to_string() });
    };
    let wanted = pages_of(bytes)?;
    let create_bytes = Some(u64::from(wanted) * PAGE_SIZE as u64);
    let open = OpenOptions { create_bytes, in_flight: IN_FLIGHT, ..open.clone() };
    let mut store = RealStore::open(url, &open)?;
    let made = match store.facts().is_new {
        true => Some(write_area(&mut store, wanted, options, told)?),
        false => None,
    };
    store.shutdown();
    Ok(made)
}

/// Makes a swap area at `url`; `told` hears how far it is.
///
/// Every page is written, so the file has no holes, and a server without the space says so now.
///
/// # Errors
/// When the store cannot be used, holds something that is not to be overwritten, or does not keep what it
/// was given.
pub fn make_area(
    url: &StoreUrl,
    open: &OpenOptions,
    options: &MkswapOptions,
    told: &mut dyn FnMut(Progress),
) -> Result<Made, MkswapError> {
    let asked = options.bytes.map(pages_of).transpose()?;
    let create_bytes = match asked {
        _ if !url.can_create() => None,
        Some(pages) => Some(u64::from(pages) * PAGE_SIZE as u64),
        None => return Err(MkswapError::NoSize { server: url.to_string() }),
    };
    let open = OpenOptions { create_bytes, in_flight: IN_FLIGHT, ..open.clone() };
    let mut store = RealStore::open(url, &open)?;
    let (server, slots) = (store.server().to_string(), store.slots());
    let wanted = match asked {
        None if u64::from(slots) < AREA_PAGES_MIN => {
            return Err(MkswapError::StoreTooSmall { server, slots });
        }
        None => slots,
        Some(wanted) if url.can_create() && wanted != slots => {
            return Err(MkswapError::OtherLength { server, slots, wanted });
        }
        Some(wanted) if wanted > slots => {
            return Err(MkswapError::BeyondStore { server, slots, wanted });
        }
        Some(wanted) => wanted,
    };
    let made = write_area(&mut store, wanted, options, told)?;
    store.shutdown();
    Ok(made)
}

/// Writes an area of `wanted` pages into a store that is open and has them.
fn write_area(
    store: &mut RealStore,
    wanted: u32,
    options: &MkswapOptions,
    told: &mut dyn FnMut(Progress),
) -> Result<Made, MkswapError> {
    told(Progress::Begun(wanted));
    let (mut read, mut written) = (0, 0);
    let made = sweep_area(store, wanted, options, &mut |progress| {
        match progress {
            Progress::Begun(_) => {}
            Progress::Read(done) => read = done,
            Progress::Written(done) => written = done,
        }
        told(progress);
    });
    made.map_err(|error| match error {
        MkswapError::Transfer { server, error: TransferError::Interrupted, .. } => {
            MkswapError::Interrupted { server, read, written, wanted }
        }
        error => error,
    })
}

fn sweep_area(
    store: &mut RealStore,
    wanted: u32,
    options: &MkswapOptions,
    told: &mut dyn FnMut(Progress),
) -> Result<Made, MkswapError> {
    let (begun, server) = (store.now(), store.server().to_string());
    let is_new = store.facts().is_new;
    let mut sweep = Sweep::new(store, options.request_timeout);
    let mut pages_read = 0;
    if !is_new && !options.force {
        sweep.run(Op::Read, 0..wanted, &mut |first, pages| {
            pages_read += pages.len() as u64;
            told(Progress::Read(pages_read));
            refuse(&server, first, pages)
        })?;
    }
    let mut pages_written = 0;
    // The old signature goes first, the new one comes last.
    for range in [0..1, 1..wanted] {
        sweep.run(Op::Write, range, &mut |_, pages| {
            pages_written += pages.len() as u64;
            told(Progress::Written(pages_written));
            Ok(())
        })?;
    }
    let header = Header { uuid: options.uuid, label: options.label, ..Header::new(wanted) };
    let mut page = [0; PAGE_SIZE];
    header.write(&mut page);
    let kept = write_header_page(store, &page).and_then(|()| read_header_page(store));
    let kept = kept.map_err(|error| {
        let advice = store.advice(&error);
        MkswapError::Transfer { server: server.clone(), slot: 0, error, advice }
    })?;
    if kept != page {
        return Err(MkswapError::NotKept { server });
    }
    let took = store.now().since(begun);
    Ok(Made { slots: wanted, is_new, pages_read, pages_written: pages_written + 1, took })
}

/// Whole pages of an area of so many bytes.
fn pages_of(bytes: u64) -> Result<u32, MkswapError> {
    let pages = bytes / PAGE_SIZE as u64;
    if pages < AREA_PAGES_MIN {
        return Err(MkswapError::TooSmall { bytes });
    }
    u32::try_from(pages).map_err(|_| MkswapError::TooLarge { bytes })
}

/// What is in the way of overwriting pages.
fn refuse(server: &str, first: u32, pages: &[Frame]) -> Result<(), MkswapError> {
    let server = || server.to_string();
    if first == 0 && pages.first().is_some_and(|page| Header::parse(page.bytes()).is_ok()) {
        return Err(MkswapError::IsArea { server: server() });
    }
    match pages.iter().position(|page| page.bytes().iter().any(|byte| *byte != 0)) {
        Some(i) => Err(MkswapError::HoldsData { server: server(), slot: first + i as u32 }),
        None => Ok(()),
    }
}

/// What sees the pages of a request that has ended, and its first slot.
type Look<'a> = dyn FnMut(u32, &[Frame]) -> Result<(), MkswapError> + 'a;

/// Moves ranges of pages, a batch a request, several at a time. The buffers begin as zeros, and keep
/// what they hold.
struct Sweep<'s> {
    store: &'s mut RealStore,
    server: String,
    timeout: Span,
    batch: usize,
    /// Buffers that are not with the store, of one batch each.
    buffers: Vec<PageVec>,
    /// What they go back to: it is dropped after them.
    _pool: PagePool,
}

impl<'s> Sweep<'s> {
    fn new(store: &'s mut RealStore, timeout: Span) -> Sweep<'s> {
        let limits = store.limits();
        let (batch, in_flight) = (limits.batch_pages, limits.in_flight.min(IN_FLIGHT));
        let pool = PagePool::new(PoolConfig::new((batch * in_flight) as u32 + 64));
        let buffer = |_| {
            let mut pages: PageVec =
                (0..batch).map_while(|_| pool.alloc(Gfp::KERNEL).ok()).collect();
            pages.iter_mut().for_each(|page| page.bytes_mut().fill(0));
            pages
        };
        let buffers: Vec<PageVec> =
            (0..in_flight).map(buffer).filter(|pages| pages.len() == batch).collect();
        assert!(!buffers.is_empty(), "a pool of its own has room for a batch");
        Sweep { server: store.server().to_string(), store, timeout, batch, buffers, _pool: pool }
    }

    fn failed(&self, slot: u32, error: impl Into<TransferError>) -> MkswapError {
        let (server, error) = (self.server.clone(), error.into());
        let advice = self.store.advice(&error);
        MkswapError::Transfer { server, slot, error, advice }
    }

    /// Moves all of `slots`; `each` sees the pages of each request that has ended, and its first slot. After an
    /// error the store is shut down, and has no page any more.
    fn run(
        &mut self,
        op: Op,
        slots: std::ops::Range<u32>,
        each: &mut Look<'_>,
    ) -> Result<(), MkswapError> {
        let moved = self.move_all(op, slots, each);
        if moved.is_err() {
            self.store.give_up(&mut drop);
        }
        moved
    }

    fn move_all(
        &mut self,
        op: Op,
        slots: std::ops::Range<u32>,
        each: &mut Look<'_>,
    ) -> Result<(), MkswapError> {
        let mut next = slots.start;
        let mut outstanding = 0;
        // What was cut off the buffer of a short request.
        let mut rest = PageVec::new();
        while next < slots.end || outstanding > 0 {
            while next < slots.end
                && let Some(mut pages) = self.buffers.pop()
            {
                let n = ((slots.end - next) as usize).min(self.batch);
                rest.extend(pages.drain(n..));
                let deadline = Some(self.store.now() + self.timeout);
                let request =
                    Request { id: RequestId(next), op, first: Slot(next), pages, deadline };
                match self.store.submit(request) {
                    Ok(()) => {}
                    Err(SubmitError::Full(request) | SubmitError::NotReady(request)) => {
                        return Err(self.failed(request.first.0, TransferError::NotReady));
                    }
                }
                next += n as u32;
                outstanding += 1;
            }
            // A request that is late ends when completions are asked for.
            let until = Some(self.store.now() + self.timeout);
            self.store.turn(until).map_err(|error| self.failed(next, error))?;
            while let Some(mut end) = self.store.poll_completion() {
                outstanding -= 1;
                end.outcome.map_err(|error| self.failed(end.id.0, error))?;
                each(end.id.0, &end.pages)?;
                if end.pages.len() < self.batch {
                    end.pages.extend(rest.drain(..));
                }
                self.buffers.push(end.pages);
            }
            if self.store.is_interrupted() && outstanding > 0 {
                return Err(self.failed(next, TransferError::Interrupted));
            }
        }
        Ok(())
    }
}
