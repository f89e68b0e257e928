//! What stores an area's pages: the trait a custom backend implements.
//!
//! A backend is a completion interface, as io_uring is: [`SwapBackend::submit`] moves a request with
//! its pages in, [`SwapBackend::poll_completion`] moves them out again with the outcome. Pages are
//! *owned* by whoever works on them, so a page cannot change while it is being written, and a page
//! being read belongs to nobody else. Every request comes back exactly once, also when it failed, was
//! cancelled or its server is gone; with its pages, so none is lost.

use arrayvec::ArrayVec;
use netswap_reserve::{Frame, Time};

/// The most pages one request may carry (64 KiB).
pub const BATCH_PAGES_MAX: usize = 16;

/// The most runs of slots that one discard may name: a discard is a small, fixed value.
pub const DISCARD_RUNS_MAX: usize = 16;

/// The pages of one request, in slot order.
pub type PageVec = ArrayVec<Frame, BATCH_PAGES_MAX>;

/// A page-sized place in an area. Slot 0 holds the area's header.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Slot(pub u32);

impl Slot {
    /// Byte offset of the slot in its area.
    pub fn offset(self) -> u64 {
        u64::from(self.0) * netswap_reserve::PAGE_SIZE as u64
    }
}

/// Names a request while it is outstanding. Chosen by the submitter, unique among its outstanding ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct RequestId(pub u32);

/// Which way the pages move.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Op {
    /// From the store into the pages.
    Read,
    /// From the pages to the store. Complete only when the store has it for good.
    Write,
}

/// Adjacent slots to be read or written.
#[derive(Debug)]
pub struct Request {
    /// Comes back in the completion.
    pub id: RequestId,
    /// Read or write.
    pub op: Op,
    /// The first slot; page `i` belongs to slot `first.0 + i`.
    pub first: Slot,
    /// The pages: to be filled, or holding what is to be stored. At least one.
    pub pages: PageVec,
    /// When to give up at the latest with [`StoreError::TimedOut`]; `None` is never.
    ///
    /// The backend must enforce it: nobody else does. Polled at that instant or later,
    /// [`SwapBackend::poll_completion`] gives the request back, done or timed out, whatever the server does;
    /// until then [`SwapBackend::poll_deadline`] is never later than it. A write that timed out may still be
    /// carried out by the server, so the pager gives its slots to no other page. The pager sets it from
    /// [`AreaOptions::request_timeout`](crate::AreaOptions::request_timeout).
    pub deadline: Option<Time>,
}

/// Adjacent slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Run {
    /// The first.
    pub first: Slot,
    /// How many, at least one.
    pub slots: u32,
}

/// The runs of one discard; no two have a slot in common.
pub type RunVec = ArrayVec<Run, DISCARD_RUNS_MAX>;

/// Slots of which nobody needs the content any more: the store may give back what they take.
///
/// For order, for late copies and for its end it is as a write of these slots is, without pages.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Discard {
    /// Comes back in the completion, which has no pages.
    pub id: RequestId,
    /// The slots: at least one run, and no more of either than [`DiscardLimits`] says.
    pub runs: RunVec,
    /// As [`Request::deadline`].
    pub deadline: Option<Time>,
}

impl Discard {
    /// Slots of all runs together.
    pub fn slots(&self) -> u32 {
        self.runs.iter().map(|run| run.slots).sum()
    }
}

/// Bounds on the discards that a backend takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DiscardLimits {
    /// Most runs of one, at most [`DISCARD_RUNS_MAX`].
    pub runs: usize,
    /// Most slots of one.
    pub slots: u32,
}

/// What a successful request tells.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    /// The request was sent more than once, or over more than one connection: a late copy of it may
    /// still be carried out by the server. After a write, the slots must not be given to other pages.
    pub replayed: bool,
}

/// Why the store did not do what was asked. No page is lost by it: they come back with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreError {
    /// The deadline passed without an answer.
    #[error("no answer before the deadline")]
    TimedOut,
    /// The request was cancelled by [`SwapBackend::shutdown`].
    #[error("cancelled at shutdown")]
    Cancelled,
    /// The server refused it with a code of its protocol (nfsstat3, or SCSI sense key/ASC/ASCQ).
    #[error("refused by the server with code {code:#x}")]
    Refused {
        /// The code.
        code: u32,
    },
    /// The server does not let us, or not any more. Another try may find that it does again.
    #[error("no permission, the server says with code {code:#x}")]
    Denied {
        /// The code.
        code: u32,
    },
    /// The store cannot be written, only read.
    #[error("the store is read-only")]
    ReadOnly,
    /// The store has no space for it.
    #[error("the store has no space left")]
    NoSpace,
    /// The slots lie beyond the end of the store.
    #[error("slot {slot} is beyond the end of the store")]
    OutOfRange {
        /// The first slot that does not exist.
        slot: u32,
    },
    /// The store holds less of the page than a page.
    #[error("short read: {got} of {wanted} bytes")]
    ShortRead {
        /// Bytes that were there.
        got: u32,
        /// Bytes that were asked for.
        wanted: u32,
    },
    /// The store took less of what was to be written than there is.
    #[error("short write: {took} of {wanted} bytes")]
    ShortWrite {
        /// Bytes that were taken.
        took: u32,
        /// Bytes that were to be written.
        wanted: u32,
    },
    /// The store counts another length for the request than it has: it moves other units than it told.
    #[error("the store moves {by} bytes more than the request has")]
    Excess {
        /// Bytes too many.
        by: u32,
    },
    /// Pages are no whole number of the store's blocks.
    #[error(
        "blocks of {bytes} bytes: a page of 4096 is to be a whole number of blocks of 512 bytes or more"
    )]
    BlockSize {
        /// Bytes of a block.
        bytes: u32,
    },
    /// What answers under the store's name is another than before. Nothing of it is ours to overwrite.
    #[error("the store is another than before: {what} has changed")]
    Changed {
        /// How that shows.
        what: &'static str,
    },
    /// The server answered with bytes that are not its protocol.
    #[error("the server answered with garbage: {what}")]
    Garbage {
        /// What was wrong with them.
        what: &'static str,
    },
    /// The portmapper of the server does not know a program that the store needs.
    #[error("the portmapper does not know {program} version {version}")]
    Unregistered {
        /// Its name, `MOUNT` for one.
        program: &'static str,
        /// The version that is needed.
        version: u32,
    },
    /// What listens where a program is looked for does not serve it, or not in this version.
    #[error("the server does not serve {program} version {version} at the port that was asked")]
    NotServed {
        /// Its name.
        program: &'static str,
        /// The version that is needed.
        version: u32,
    },
    /// An I/O error of the store below.
    #[error("I/O error of the store")]
    Io,
    /// The server has the store no more. The backend fails with it as a whole: no other try can help.
    #[error("the store is gone from its server: {how}")]
    Gone {
        /// How that showed.
        how: Gone,
    },
}

/// How it showed that a server has a store no more.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gone {
    /// Nothing has its name.
    Removed,
    /// What has its name is something else.
    Replaced,
    /// The server does not know the handle that it has just given out for it, each time it is asked for one.
    Stale,
}

impl std::fmt::Display for Gone {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Gone::Removed => "it was removed",
            Gone::Replaced => "something else has its name",
            Gone::Stale => "each new handle of it is stale",
        })
    }
}

/// The end of a request.
#[derive(Debug)]
pub struct Completion {
    /// The request that ended.
    pub id: RequestId,
    /// Its pages, as moved in by [`SwapBackend::submit`].
    pub pages: PageVec,
    /// What became of it.
    pub outcome: Result<Stored, StoreError>,
    /// A copy of it may still be carried out by the server, though it has ended: as [`Stored::replayed`], of a
    /// request that failed. The pager takes it for granted of a write with [`StoreError::TimedOut`].
    pub is_loose: bool,
}

/// Why a request was not taken. It is handed back whole.
#[derive(Debug)]
pub enum SubmitError {
    /// As many requests are outstanding as the backend takes; try again after a completion.
    Full(Request),
    /// The backend is not [`BackendState::Ready`].
    NotReady(Request),
}

/// How far a backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum BackendState {
    /// Connecting for the first time.
    Starting,
    /// Requests are taken (they wait inside while a connection is being repaired).
    Ready {
        /// Slots of the store, the header's included.
        slots: u32,
    },
    /// It cannot be used, and will not become usable by itself.
    Failed(StoreError),
    /// Shut down.
    Stopped,
}

/// Bounds on what a backend takes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct BackendLimits {
    /// Most pages in one request, at most [`BATCH_PAGES_MAX`].
    pub batch_pages: usize,
    /// Most requests outstanding.
    pub in_flight: usize,
}

/// Where an outstanding request is, for the explanation of a stuck machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not yet (wholly) given to the transport.
    Queued,
    /// Given to the transport, unanswered.
    Sent,
    /// Waits for a connection.
    Disconnected,
}

/// An outstanding request, as [`SwapBackend::outstanding`] lists it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Outstanding {
    /// The request.
    pub id: RequestId,
    /// Its first slot.
    pub first: Slot,
    /// How many pages; of a discard, how many slots.
    pub pages: u32,
    /// Its name in the protocol, `WRITE` for one.
    pub verb: &'static str,
    /// What the protocol calls its number, `xid` or `ITT`.
    pub tag_name: &'static str,
    /// That number.
    pub tag: u32,
    /// Where it is.
    pub phase: Phase,
}

/// What stores an area's pages.
///
/// A driver submits requests, and polls when the backend's transport has moved, or at
/// [`SwapBackend::poll_deadline`]; the [`Pager`](crate::Pager) does both for its areas. A backend of your
/// own is to be checked by [`conformance::check`](crate::conformance::check):
///
/// ```
/// use netswap_reserve::{PAGE_SIZE, PagePool, PoolConfig, Time};
/// use netswap_swap::*;
/// use std::collections::VecDeque;
///
/// /// Pages in an array. Requests are carried out when completions are asked for.
/// struct Array { pages: Vec<[u8; PAGE_SIZE]>, queue: VecDeque<Request>, stopped: bool }
///
/// impl Array {
///     fn carry_out(&mut self, request: &mut Request) -> Result<Stored, StoreError> {
///         if self.stopped {
///             return Err(StoreError::Cancelled);
///         }
///         let (first, slots) = (request.first.0, self.pages.len() as u32);
///         let range = first as usize..first as usize + request.pages.len();
///         let beyond = StoreError::OutOfRange { slot: first.max(slots) };
///         for (page, stored) in request.pages.iter_mut().zip(self.pages.get_mut(range).ok_or(beyond)?) {
///             match request.op {
///                 Op::Read => *page.bytes_mut() = *stored,
///                 Op::Write => *stored = *page.bytes(),
///             }
///         }
///         Ok(Stored::default())
///     }
/// }
///
/// impl SwapBackend for Array {
///     fn state(&self) -> BackendState {
///         let slots = self.pages.len() as u32;
///         if self.stopped { BackendState::Stopped } else { BackendState::Ready { slots } }
///     }
///     fn limits(&self) -> BackendLimits {
///         BackendLimits { batch_pages: 16, in_flight: 8 }
///     }
///     fn server(&self) -> &str {
///         "an array"
///     }
///     fn submit(&mut self, _: Time, request: Request) -> Result<(), SubmitError> {
///         if self.stopped {
///             return Err(SubmitError::NotReady(request));
///         }
///         if self.queue.len() == self.limits().in_flight {
///             return Err(SubmitError::Full(request));
///         }
///         self.queue.push_back(request);
///         Ok(())
///     }
///     fn poll_completion(&mut self, _: Time) -> Option<Completion> {
///         let mut request = self.queue.pop_front()?;
///         let outcome = self.carry_out(&mut request);
///         Some(Completion { id: request.id, pages: request.pages, outcome, is_loose: false })
///     }
///     fn poll_deadline(&self) -> Option<Time> {
///         self.queue.front().map(|_| Time::ZERO) // at once
///     }
///     fn shutdown(&mut self, _: Time) {
///         self.stopped = true;
///     }
///     fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
///         for r in &self.queue {
///             let (pages, phase) = (r.pages.len() as u32, Phase::Queued);
///             let (verb, tag_name, tag) = ("COPY", "request", r.id.0);
///             visit(Outstanding { id: r.id, first: r.first, pages, verb, tag_name, tag, phase });
///         }
///     }
/// }
///
/// let make = || Array { pages: vec![[0; PAGE_SIZE]; 64], queue: VecDeque::new(), stopped: false };
/// conformance::check(&PagePool::new(PoolConfig::new(256)), make, |_, _| {});
/// ```
pub trait SwapBackend {
    /// How far the backend is.
    fn state(&self) -> BackendState;

    /// What it takes. Constant once it is ready.
    fn limits(&self) -> BackendLimits;

    /// The server's name for messages, `nfs://10.0.0.2/swap/area0` for one.
    fn server(&self) -> &str;

    /// Takes a request. It ends by exactly one completion.
    ///
    /// # Errors
    /// Hands the request back when it cannot be taken now.
    #[allow(clippy::result_large_err, reason = "the request is moved either way, and never boxed")]
    fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError>;

    /// The next completion, if there is one. Also does what the time brings on: a request whose
    /// [`Request::deadline`] has come ends here.
    fn poll_completion(&mut self, now: Time) -> Option<Completion>;

    /// When the backend wants to be polled at the latest: the earliest moment at which time alone, without
    /// anything from its transport, changes something. A moment that has passed is at once. `None` while
    /// requests are outstanding says that only the transport can end one; a driver may then sleep for ever.
    fn poll_deadline(&self) -> Option<Time>;

    /// How often it was proven that no late copy can exist any more: of no request that
    /// [`SwapBackend::poll_completion`] has given back so far, however it ended. An NFS server that
    /// restarted carries out nothing that came before; an iSCSI session that was reinstated has dropped its
    /// commands. When it has grown, the pager uses the slots again that it kept in quarantine. A store
    /// that cannot tell leaves it at 0, and they stay there.
    fn fences(&self) -> u64 {
        0
    }

    /// What it takes of [`SwapBackend::discard`]; `None` if it cannot, which is the default. It may become `None`
    /// at any time: a store that refuses the first one is asked no more.
    fn discards(&self) -> Option<DiscardLimits> {
        None
    }

    /// Takes slots whose content nobody needs any more. It ends by exactly one completion, which has no pages; what
    /// the slots hold then, nobody may rely on. It waits behind page-ins and page-outs, whose slots
    /// are others: the pager gives the slots to no page before it has ended, nor after that, if a late copy of it
    /// may still be carried out ([`Completion::is_loose`], and [`StoreError::TimedOut`]: one that was never sent had
    /// better end with [`StoreError::Cancelled`]).
    ///
    /// # Errors
    /// Hands it back when it cannot be taken now, as one is outstanding, or at all. That is the default.
    #[allow(clippy::result_large_err, reason = "it is moved either way, and never boxed")]
    fn discard(&mut self, now: Time, discard: Discard) -> Result<(), Discard> {
        let _ = now;
        Err(discard)
    }

    /// Ends everything outstanding with [`StoreError::Cancelled`] and lets go of the server. From now on
    /// nothing is taken, and the state is [`BackendState::Stopped`], at the latest when the server was let go.
    fn shutdown(&mut self, now: Time);

    /// Calls `visit` for every outstanding request: once for each that was taken and of which
    /// [`SwapBackend::poll_completion`] has no end to give yet.
    ///
    /// It explains a stuck machine: who waits for a page waits for what is listed under its request, by the
    /// name that the protocol has for it, and with what is ahead of it. Nothing is decided by it, and
    /// it is not called while pages move, so it need not be fast.
    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding));
}

/// A backend behind a pointer, whatever it is: for pagers that take any.
impl<B: SwapBackend + ?Sized> SwapBackend for Box<B> {
    fn state(&self) -> BackendState {
        (**self).state()
    }

    fn limits(&self) -> BackendLimits {
        (**self).limits()
    }

    fn server(&self) -> &str {
        (**self).server()
    }

    fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError> {
        (**self).submit(now, request)
    }

    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        (**self).poll_completion(now)
    }

    fn poll_deadline(&self) -> Option<Time> {
        (**self).poll_deadline()
    }

    fn fences(&self) -> u64 {
        (**self).fences()
    }

    fn discards(&self) -> Option<DiscardLimits> {
        (**self).discards()
    }

    fn discard(&mut self, now: Time, discard: Discard) -> Result<(), Discard> {
        (**self).discard(now, discard)
    }

    fn shutdown(&mut self, now: Time) {
        (**self).shutdown(now);
    }

    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        (**self).outstanding(visit);
    }
}
