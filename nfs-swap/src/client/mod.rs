//! The client: a swap backend over NFSv3, as a sans-IO state machine.
//!
//! ```text
//!   [portmap: GETPORT...] -> [MOUNT: MNT] -> NULL -> [MNT] -> LOOKUP... -> [CREATE -> SETATTR] -> FSINFO
//!           -> GETATTR -> COMMIT -> Ready
//!                                    |  ^
//!              NFS3ERR_STALE: MNT -> LOOKUP... -> GETATTR ---another file, or none---> Failed
//! ```
//! - `requests`: where requests come in and go out;
//! - `calls`: a request as a series of calls, one outstanding at a time, until it is done;
//! - `merge`: neighbours that wait for the wire go in one call; `waiting`: the tables for that;
//! - `startup`: the control calls that lead to the file's handle;
//! - `stream`: the [`Session`](netswap_net::Session) side: sending, timers, and when a connection is given up;
//!   `link`, beside this folder, keeps the connection, for the lister too;
//! - `receive`: replies, taken in place; `ahead`: several of them at once;
//! - `commit`: the write policy: UNSTABLE writes, and the COMMIT that makes them last; `order`: lists for that;
//! - `facts`: what the server said, for reports;
//! - `fence`: copies of a call that may be carried out late, and when none can any more.
//!
//! # Invariants
//! - Every table has its full size at construction. Nothing is allocated afterwards.
//! - A request ends by exactly one completion, with its pages. A WRITE that was answered as UNSTABLE
//!   ends only when a COMMIT after it was answered with its verifier.
//! - Two outstanding requests that touch a common slot, one of them a WRITE, are never on the wire
//!   together: the later one waits. So a retransmitted WRITE cannot overtake a newer one of ours.
//! - No page is mapped between two events: a call that waits for its server holds pages, and no window.
//! - A call keeps its xid and its bytes for as long as it is repeated.
//! - Whatever cannot be understood ends the connection, not the process; a request that meets
//!   nothing but garbage ends with [`StoreError::Garbage`].

mod ahead;
mod calls;
mod commit;
mod config;
mod facts;
mod fence;
mod merge;
mod order;
mod receive;
mod requests;
mod startup;
mod stream;

use std::collections::VecDeque;
use std::ops::Range;

use arrayvec::ArrayVec;
use netswap_reserve::windows::{Direct, MapPageMut, Mapper};
use netswap_reserve::{Frame, PAGE_SIZE, Time};
use netswap_swap::fence::Fence;
use netswap_swap::queue::{NONE, Touched, Turn, Waiting};
use netswap_swap::{
    BackendLimits, BackendState, Outstanding, Phase, RequestId, Slot, StoreError, Stored,
    backend::BATCH_PAGES_MAX,
};

use crate::link::Link;
use crate::message::CONTROL_HEAD_BYTES;
use crate::pages::STAGE_BYTES;
use crate::proto::{Fattr3, FileHandle, FsInfoOk, Nfsstat3};
use crate::rpc::{AuthSys, XidTable};
use commit::Ledger;
pub use commit::{UnknownPolicy, WritePolicy};
pub use config::{NfsConfig, NfsStats};
pub use facts::NfsFacts;
use receive::Receiver;
pub use requests::{PageCompletion, PageRequest, PageSubmitError};
use startup::Step;

/// Bytes of head buffer for one READ or WRITE call: record mark 4, call header 24, AUTH_SYS at most
/// 8 + 4 + 4 + 256 + 12, verifier 8, handle 4 + 64, offset, count, stable_how and length 20.
const HEAD_BYTES: usize = 408;
/// Garbage replies in a row after which a request fails. Picked by eye: one can be bad luck, a
/// server that is broken shows it at once.
const GARBAGE_MAX: u8 = 4;
/// New handles in a row that turn out to be stale, after which the file is gone. Picked by eye: with the waits in
/// between it is three seconds, in which a server that is starting has its exports together.
const STALE_MAX: u8 = 6;

/// Where a call is.
///
/// ```text
///   Free -> [Blocked] -> [Waiting] -> Pending <-> Queued -> Sent -> Done -> Free
///                            |  ^        ^                   |
///                            v  |        +- Backoff, Stale <-+ <-> Uncommitted -> Done
///                           Joined (and ends as its leader does)
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum CallState {
    Free,
    /// Waits for an older request that touches the same slots.
    Blocked,
    /// May be sent, and is in no call yet.
    Waiting,
    /// Part of the call of another row.
    Joined {
        leader: u16,
    },
    /// Encoded, waits for a connection.
    Pending,
    /// In the send queue.
    Queued,
    /// Wholly given to the transport.
    Sent {
        at: Time,
    },
    /// The server asked for patience.
    Backoff {
        until: Time,
    },
    /// Waits for a new handle.
    Stale,
    /// A WRITE that would be too much that is uncommitted: waits for a COMMIT.
    Held,
    /// Written, as UNSTABLE, at this time: waits for a COMMIT.
    Uncommitted {
        since: Time,
    },
    /// Waits for `poll_completion`.
    Done,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verb {
    Read,
    Write,
    Commit,
    Control,
}

/// A request with its current call. The control call, and the COMMIT behind it, are without pages.
#[derive(Debug)]
struct Call<P> {
    state: CallState,
    verb: Verb,
    id: RequestId,
    first: Slot,
    pages: ArrayVec<P, BATCH_PAGES_MAX>,
    deadline: Time,
    /// Its place in the order of submission, and who went before it.
    turn: Turn,
    /// Bytes of the request that are done.
    done: usize,
    /// What the current call is for: bytes of the file, from there on.
    from: u64,
    want: usize,
    /// The next member of its call.
    next: u16,
    /// A member has left its call, which is on the wire.
    holes: bool,
    /// Counts as a call on the wire.
    on_wire: bool,
    /// Counts as touching its slots.
    touches: bool,
    /// Not to be merged: as part of a call it was refused.
    alone: bool,
    head_len: usize,
    /// How often the current xid was wholly sent.
    sends: u32,
    timeouts: u32,
    jukebox: u32,
    garbage: u8,
    /// The connection that its current call was last wholly sent over.
    sent_over: u32,
    /// The last connection over which a copy was sent that has no answer and is not waited for; 0 is none.
    loose: u32,
    /// How often a new handle was fetched for this request.
    renewals: u8,
    /// The handle the current call carries.
    handle_generation: u32,
    /// Part of it was answered as UNSTABLE, with this verifier.
    unstable: Option<[u8; 8]>,
    /// The COMMIT that is outstanding was sent after it was written.
    covered: bool,
    /// It counts among what is written and may be uncommitted.
    has_room: bool,
    /// The connection was lost between its WRITEs: it is written from its start when this one is answered.
    from_start: bool,
    /// How often it was written again for a new verifier.
    rewrites: u8,
    outcome: Result<Stored, StoreError>,
}

impl<P> Call<P> {
    fn new(verb: Verb) -> Call<P> {
        Call {
            state: CallState::Free,
            verb,
            id: RequestId(0),
            first: Slot(0),
            pages: ArrayVec::new(),
            deadline: Time::MAX,
            turn: Turn::default(),
            done: 0,
            from: 0,
            want: 0,
            next: NONE,
            holes: false,
            on_wire: false,
            touches: false,
            alone: false,
            head_len: 0,
            sends: 0,
            timeouts: 0,
            jukebox: 0,
            garbage: 0,
            sent_over: 0,
            loose: 0,
            renewals: 0,
            handle_generation: 0,
            unstable: None,
            covered: false,
            has_room: false,
            from_start: false,
            rewrites: 0,
            outcome: Ok(Stored { replayed: false }),
        }
    }

    fn is_active(&self) -> bool {
        !matches!(self.state, CallState::Free | CallState::Done)
    }

    fn slots(&self) -> Range<u64> {
        let first = u64::from(self.first.0);
        first..first + self.pages.len() as u64
    }

    fn conflicts(&self, other: &Call<P>) -> bool {
        let (a, b) = (self.slots(), other.slots());
        (self.verb == Verb::Write || other.verb == Verb::Write)
            && a.start < b.end
            && b.start < a.end
    }

    fn verb_name(&self) -> &'static str {
        match self.verb {
            Verb::Read => "READ",
            Verb::Write => "WRITE",
            Verb::Commit => "COMMIT",
            Verb::Control => "control",
        }
    }
}

/// A swap area in a file on an NFSv3 server.
///
/// It is a [`SwapBackend`](netswap_swap::SwapBackend) to the pager and a [`Session`](netswap_net::Session) to the transport.
///
/// ```
/// use netswap_net::{Action, Session};
/// use netswap_nfs::{NfsBackend, NfsConfig};
/// use netswap_reserve::Time;
/// use netswap_swap::{BackendState, SwapBackend};
///
/// let config = NfsConfig::new("10.0.0.2:2049".parse().unwrap(), "/swap", "area0");
/// let mut backend = NfsBackend::new(config);
/// assert_eq!(backend.state(), BackendState::Starting);
/// assert_eq!(backend.server(), "nfs://10.0.0.2:2049/swap/area0");
/// // It wants a connection first.
/// assert!(matches!(backend.poll_action(Time::ZERO), Some(Action::Connect { .. })));
/// ```
///
/// The pages of its requests are frames, unless it is made by [`NfsBackend::over`]: then they are
/// pages of type `P`, perhaps high ones, which `M` maps for as long as bytes are copied.
#[derive(Debug)]
pub struct NfsBackend<P = Frame, M = Direct> {
    config: NfsConfig,
    auth: AuthSys,
    state: BackendState,
    stats: NfsStats,

    /// `in_flight` requests, then the control call, then the COMMIT if the policy has one.
    calls: Box<[Call<P>]>,
    heads: Box<[u8]>,
    xids: XidTable,
    free: Vec<u16>,
    /// Calls to be sent, in order; `sent_front` bytes of the first are gone.
    sendq: VecDeque<u16>,
    sent_front: usize,
    done: VecDeque<u16>,
    blocked: usize,
    /// Which slots are in use by what is outstanding.
    touched: Touched,
    /// Requests that wait until the transport asks for bytes and the wire has room. Without merging, and
    /// without a bound on the wire, calls are queued at once.
    waiting: Waiting,
    queues: bool,
    /// READs and WRITEs that were made and not answered.
    wire: usize,
    seq: u64,

    link: Link,
    /// Last time the transport took or gave a byte, or had something new to take.
    progress_at: Time,
    received_at: Time,
    /// Connections in a row that ended with garbage of no known call.
    garbage_streak: u8,
    rx: Receiver,
    /// Not later than anything that is due.
    next_deadline: Time,

    mapper: M,
    /// What is sent from high pages, from `sent_front` on. Empty if there are none.
    stage: Box<[u8]>,
    /// When a window is asked for again.
    map_retry_at: Time,

    step: Step,
    remount: bool,
    /// New handles that were fetched since a READ, WRITE or COMMIT was done with one.
    stale_streak: u8,
    sized: bool,
    /// Export and path as one, the ranges of their names, how many of these are mounted, and which is looked
    /// up.
    names: Box<str>,
    components: Box<[Range<usize>]>,
    mounted: usize,
    component: usize,
    /// Why the whole export was not mounted, and how often less of it was tried.
    refused: Option<Nfsstat3>,
    searches: u32,
    root: FileHandle,
    dir: FileHandle,
    file: FileHandle,
    /// What the server said of its file system and of the file.
    fs_info: Option<FsInfoOk>,
    file_attrs: Option<Fattr3>,
    handle_generation: u32,
    slots: u32,
    batch_pages: usize,
    read_chunk: usize,
    write_chunk: usize,
    /// Most bytes of a merged call.
    read_merged: usize,
    write_merged: usize,
    verifier: Option<[u8; 8]>,
    /// Connections opened so far, and which of them a verifier was last seen on.
    connection: u32,
    verifier_over: u32,
    /// Which copies of its WRITEs are dead.
    fence: Fence,
    ledger: Ledger,
    /// What is uncommitted has changed: whether a COMMIT is due is to be found out.
    unsettled: bool,
    /// The connection went: what is uncommitted is written again on the next.
    rewrite_all: bool,
}

impl NfsBackend {
    /// A backend as `config` says. It fails at once if the path is empty or a name in it is longer
    /// than 255 bytes.
    ///
    /// # Panics
    /// If `in_flight` is 0 or above 65,535, or `wire_max` is 0.
    pub fn new(config: NfsConfig) -> NfsBackend {
        NfsBackend::with_stage(config, Direct, 0)
    }
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// As [`NfsBackend::new`], for pages that `mapper` maps, if they are high ones: for each copy, and
    /// for no longer. When no window is to be had, the copy waits, and is counted.
    ///
    /// # Panics
    /// If `in_flight` is 0 or above 65,535, or `wire_max` is 0. Later, if a page turns out to be one that `mapper` can
    /// never show.
    ///
    /// ```
    /// use netswap_nfs::{NfsBackend, NfsConfig};
    /// use netswap_reserve::windows::{HighPage, HighPool, MapWindows, WindowsConfig};
    ///
    /// let high = HighPool::new(64)?;
    /// let windows = MapWindows::new(&high, WindowsConfig::new(2))?;
    /// let config = NfsConfig::new("10.0.0.2:2049".parse()?, "/swap", "area0");
    /// let backend: NfsBackend<HighPage, _> = NfsBackend::over(config, windows);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn over(config: NfsConfig, mapper: M) -> NfsBackend<P, M> {
        NfsBackend::with_stage(config, mapper, STAGE_BYTES)
    }

    fn with_stage(config: NfsConfig, mapper: M, stage_bytes: usize) -> NfsBackend<P, M> {
        assert!(
            (1..=65_535).contains(&config.in_flight),
            "{} requests in flight",
            config.in_flight
        );
        assert!(config.wire_max > 0, "no call on the wire");
        let n = config.in_flight;
        let commits = usize::from(config.write == WritePolicy::Unstable);
        let names = format!("{}/{}", config.export, config.path);
        let components: Box<[Range<usize>]> = startup::components(&names);
        let mounted = startup::components(&config.export).len();
        let bad_path = components.len() == mounted
            || components.iter().any(|c| c.len() > crate::proto::NAME_BYTES_MAX)
            || config.export.len() > crate::mount::PATH_BYTES_MAX;
        let state = if bad_path {
            let code = Nfsstat3::NameTooLong as u32;
            BackendState::Failed(StoreError::Refused { code })
        } else {
            BackendState::Starting
        };
        let (target, step) = startup::first(&config);
        NfsBackend {
            auth: AuthSys {
                stamp: config.first_xid,
                machine: config.machine.clone(),
                uid: config.uid,
                gid: config.gid,
            },
            state,
            stats: NfsStats::default(),
            calls: (0..n)
                .map(|_| Call::new(Verb::Read))
                .chain([Call::new(Verb::Control)])
                .chain((0..commits).map(|_| Call::new(Verb::Commit)))
                .collect(),
            heads: vec![0; (n + commits) * HEAD_BYTES + CONTROL_HEAD_BYTES].into(),
            xids: XidTable::new(n + 1 + commits, config.first_xid),
            free: (0..n as u16).rev().collect(),
            sendq: VecDeque::with_capacity(n + 1 + commits),
            sent_front: 0,
            done: VecDeque::with_capacity(n),
            blocked: 0,
            touched: Touched::new(n),
            waiting: Waiting::new(n),
            queues: config.merge || config.wire_max < n,
            wire: 0,
            seq: 0,
            link: Link::new(Time::ZERO, target, config.reconnect_min),
            progress_at: Time::ZERO,
            received_at: Time::ZERO,
            garbage_streak: 0,
            rx: Receiver::new(n + 1 + commits, stage_bytes > 0, config.merge),
            next_deadline: Time::ZERO,
            mapper,
            stage: vec![0; stage_bytes].into(),
            map_retry_at: Time::MAX,
            step,
            remount: false,
            stale_streak: 0,
            sized: false,
            names: names.into(),
            components,
            mounted,
            component: 0,
            refused: None,
            searches: 0,
            root: FileHandle::EMPTY,
            dir: FileHandle::EMPTY,
            file: FileHandle::EMPTY,
            fs_info: None,
            file_attrs: None,
            handle_generation: 0,
            slots: 0,
            batch_pages: BATCH_PAGES_MAX,
            read_chunk: 0,
            write_chunk: 0,
            read_merged: 0,
            write_merged: 0,
            verifier: None,
            connection: 0,
            verifier_over: 0,
            fence: Fence::default(),
            ledger: Ledger::new(n * commits),
            unsettled: false,
            rewrite_all: false,
            config,
        }
    }

    /// Whether the file was absent or empty, and got its length from this client. Its bytes are zeros, then.
    pub fn is_new(&self) -> bool {
        self.sized
    }

    /// What has happened so far.
    pub fn stats(&self) -> NfsStats {
        self.stats
    }

    /// The write verifier the server gave last. Each change of it proves a restart.
    pub fn verifier(&self) -> Option<[u8; 8]> {
        self.verifier
    }

    /// How far it is.
    pub fn state(&self) -> BackendState {
        self.state
    }

    /// What it takes.
    pub fn limits(&self) -> BackendLimits {
        BackendLimits { batch_pages: self.batch_pages, in_flight: self.config.in_flight }
    }

    /// Ends everything that is outstanding, and the connection.
    pub fn shutdown(&mut self, now: Time) {
        self.end(now, BackendState::Stopped, StoreError::Cancelled);
    }

    /// Shows what is outstanding.
    pub fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        for (i, call) in self.calls[..self.requests()].iter().enumerate() {
            if !call.is_active() {
                continue;
            }
            // A written page waits for what will commit it.
            let of = match call.state {
                CallState::Uncommitted { .. } => self.commit_row().unwrap_or(i),
                CallState::Joined { leader } => usize::from(leader),
                _ => i,
            };
            let phase = match (self.link.is_open(), self.calls[of].state) {
                (true, CallState::Sent { .. }) => Phase::Sent,
                (true, _) => Phase::Queued,
                (false, _) => Phase::Disconnected,
            };
            visit(Outstanding {
                id: call.id,
                first: call.first,
                pages: call.pages.len() as u32,
                verb: self.calls[of].verb_name(),
                tag_name: "xid",
                tag: self.xids.xid(of),
                phase,
            });
        }
    }

    /// How many of the calls are requests; they come first.
    fn requests(&self) -> usize {
        self.config.in_flight
    }

    fn control(&self) -> usize {
        self.config.in_flight
    }

    /// Whether `i` is a request, and neither the control call nor the COMMIT.
    fn is_request(&self, i: usize) -> bool {
        i < self.config.in_flight
    }

    /// The COMMIT, if the policy has one.
    fn commit_row(&self) -> Option<usize> {
        let row = self.control() + 1;
        (row < self.calls.len()).then_some(row)
    }
}

/// Bytes of a whole request.
fn total_bytes<P>(call: &Call<P>) -> usize {
    call.pages.len() * PAGE_SIZE
}
