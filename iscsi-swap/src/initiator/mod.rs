//! The initiator: a [`SwapBackend`] for its submitter, a [`Session`](netswap_net::Session) for its
//! transport.
//!
//! One session of one connection at error recovery level 0. Whatever goes wrong with the connection
//! (it breaks, falls silent, or carries what the protocol does not allow) has one answer: drop it,
//! log in anew with the same ISID and TSIH 0, and issue again what has not ended.
//!
//! ```text
//!   Waiting --> Connecting --> Login --> Probe --> Ready --> LoggingOut
//!      ^             |           |         |         |            |
//!      +-------------+-----------+-- Leaving <-------+------------+--> Stopped
//! ```
//!
//! # Why a command that is issued again is not a replay
//! The login reinstates the session: before it completes, the target has terminated every task of
//! the old session (RFC 7143 section 6.3.5), so no late copy of a write can be carried out after the
//! new one. A completion after a reconnect therefore does not say `replayed`. This rests on three
//! things held here: the ISID is the same each time, the login starts in SecurityNegotiation, and no
//! command is issued again before the login is complete. And on one that is not: that the new portal is of
//! the old one's group; where it is not, `portals` keeps the copies loose.
//!
//! # Invariants
//! - Of two requests with a slot in common, one a write or a discard, the later waits for the earlier to end.
//! - A request's pages are in its task from `submit` to `poll_completion`; a task does not complete
//!   while a PDU on its way out shows one of its pages.
//! - A task tag is never used twice in a session, so an answer to an earlier use has no task.

mod ahead;
mod config;
mod discard;
mod flush;
mod merge;
mod notice;
mod policy;
mod portals;
mod receive;
mod send;
mod session;
mod setup;
mod task;
mod task_management;
mod unit;
mod verdict;

use std::collections::VecDeque;
use std::net::SocketAddr;

use arrayvec::ArrayVec;
use netswap_net::Action;
use netswap_reserve::{PAGE_SIZE, Span, Time};
use netswap_swap::fence::Fence;
use netswap_swap::queue::{NONE, Touched, Turn, Waiting};
use netswap_swap::{
    BackendLimits, BackendState, Completion, Discard, DiscardLimits, Op, Outstanding, Phase,
    Request, RequestId, Slot, StoreError, Stored, SubmitError, SwapBackend,
};

use crate::login::{InitiatorLogin, LoginError, Params};
use crate::tx::TxRing;
use crate::window::CmdWindow;
pub use config::{InitiatorConfig, InitiatorStats};
use discard::Unmap;
pub use notice::{AsyncEvent, RejectReason};
pub use policy::{Digest, UnknownPolicy, WritePolicy};
use portals::{Portals, Sessions};
use receive::Receiver;
use send::{Burst, TxData};
use task::{Kind, PROBE, Step, TAG_BITS, Task, TaskState};
use task_management::Tmf;
use unit::Unit;
pub use unit::UnmapLimits;

/// How far the connection is; see the diagram of the module.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Link {
    Waiting {
        until: Time,
    },
    Connecting,
    Login,
    Probe,
    Ready,
    LoggingOut,
    /// Close or abort was asked for.
    Leaving,
    Stopped,
}

/// Swap on an iSCSI logical unit.
///
/// ```
/// use netswap_iscsi::{InitiatorConfig, IscsiBackend};
/// use netswap_net::{Action, Session};
/// use netswap_reserve::Time;
/// use netswap_swap::{BackendState, SwapBackend};
///
/// let portal = "10.0.0.2:3260".parse().unwrap();
/// let config = InitiatorConfig::new(portal, "iqn.2026-01.test:disk", 0);
/// let mut backend = IscsiBackend::new(config);
/// assert_eq!(backend.state(), BackendState::Starting);
/// // A transport carries out what the session asks for.
/// let action = backend.poll_action(Time::ZERO);
/// assert_eq!(action, Some(Action::Connect { remote: portal, same_port: false }));
/// ```
#[derive(Debug)]
pub struct IscsiBackend {
    config: InitiatorConfig,
    label: String,
    state: BackendState,
    /// What the unit told, and what it tells in the set-up that goes on.
    unit: Unit,
    probed: Unit,
    /// It says that it has changed since.
    probe_again: bool,
    /// Connections opened so far.
    connection: u32,
    /// Which copies of its writes are dead.
    fence: Fence,

    link: Link,
    /// When `link` was entered.
    since: Time,
    action: Option<Action>,
    /// Wait before the next connect.
    backoff: Span,
    /// The target asked for no connect before.
    not_before: Time,
    /// No further connect: shut down, or failed.
    stopping: bool,
    last_heard: Time,

    /// Where the next connection goes, unless a redirection says otherwise.
    portals: Portals,
    /// Where the last one went.
    remote: SocketAddr,
    sessions: Sessions,
    /// Where the target was said to be, for one connection.
    moved_to: Option<SocketAddr>,
    /// Redirections since the last login.
    redirects: u8,
    /// Why the last login failed, if it did.
    login_error: Option<LoginError>,
    login: InitiatorLogin,
    login_due: bool,
    /// Tag of the login, ping or logout that waits for its answer.
    login_tag: u32,
    ping_tag: Option<u32>,
    ping_due: bool,
    ping_since: Time,
    logout_tag: Option<u32>,
    logout_due: bool,
    params: Params,
    window: CmdWindow,
    exp_stat_sn: u32,
    /// The ExpStatSN that was sent last.
    acked_stat_sn: u32,
    ack_due: bool,
    tmf: Option<Tmf>,
    /// The first response of a login brings the StatSN to start from.
    expect_first_stat_sn: bool,

    rx: Receiver,
    tx: TxRing<TxData>,
    pongs: ArrayVec<([u8; 8], u32), 8>,

    /// `tasks[PROBE]` serves the set-up, the others the requests.
    tasks: Box<[Task]>,
    free: Vec<u16>,
    /// Tasks that wait to be issued, in the order of `seq`.
    queue: VecDeque<u16>,
    /// With merging, overtaking or a bound on the wire: those of them that may be issued now wait here instead.
    waiting: Waiting,
    queues: bool,
    /// One that may be issued now may be in `queue`.
    unsorted: bool,
    /// With such a line: writes that are done but for their SYNCHRONIZE CACHE.
    syncs: VecDeque<u16>,
    /// With merging: the task whose SYNCHRONIZE CACHE is on the wire.
    syncing: Option<usize>,
    /// Which slots are in use by what is outstanding.
    touched: Touched,
    /// The discard there may be.
    unmap: Unmap,
    /// Commands of requests that are sent and not answered.
    wire: usize,
    /// Commands that went before data that an R2T asked for.
    passes: u32,
    bursts: VecDeque<Burst>,
    done: VecDeque<u16>,
    next_seq: u64,
    next_tag: u32,
    /// Garbage answers in a row before the unit was ready.
    setup_garbage: u8,
    /// No timer is due before.
    deadline: Option<Time>,
    /// Commands that were answered.
    answered: u64,
    stats: InitiatorStats,
}

impl IscsiBackend {
    /// A backend that connects as soon as it is polled. All memory it will ever use is allocated
    /// here.
    ///
    /// # Panics
    /// If a value of `config` is outside its range.
    pub fn new(config: InitiatorConfig) -> IscsiBackend {
        assert!((1..=1000).contains(&config.in_flight), "in_flight is 1 to 1000");
        assert!(config.wire_max > 0, "no command on the wire");
        assert!(config.lun < 1 << 14, "a LUN has 14 bits");
        let told = config.portals.is_empty() || config.examine;
        assert!(told, "with several portals a unit is asked who it is");
        let names = [&config.target, &config.initiator];
        assert!(names.iter().all(|n| (1..=223).contains(&n.len())), "a name has 1 to 223 bytes");
        assert!(!config.discard || config.examine, "a unit is asked whether it takes UNMAP");
        let requests = config.in_flight + 1;
        // The discard has a task of its own: it takes no page's.
        let tasks = requests + usize::from(config.discard);
        let r2ts = config.outstanding_r2t.min(send::R2TS_MAX) as usize;
        IscsiBackend {
            label: config.label.clone(),
            state: BackendState::Starting,
            unit: Unit::default(),
            probed: Unit::default(),
            probe_again: false,
            connection: 0,
            fence: Fence::default(),
            link: Link::Waiting { until: Time::ZERO },
            since: Time::ZERO,
            action: None,
            backoff: config.backoff_min,
            not_before: Time::ZERO,
            stopping: false,
            last_heard: Time::ZERO,
            portals: Portals::new(config.portal, &config.portals),
            remote: config.portal,
            sessions: Sessions::default(),
            moved_to: None,
            redirects: 0,
            login_error: None,
            login: InitiatorLogin::new(config.login()),
            login_due: false,
            login_tag: 0,
            ping_tag: None,
            ping_due: false,
            ping_since: Time::ZERO,
            logout_tag: None,
            logout_due: false,
            params: Params::default(),
            window: CmdWindow::new(config.first_cmd_sn),
            exp_stat_sn: 0,
            acked_stat_sn: 0,
            ack_due: false,
            tmf: None,
            expect_first_stat_sn: true,
            rx: Receiver::new(tasks),
            tx: TxRing::new(),
            pongs: ArrayVec::new(),
            tasks: (0..tasks).map(|_| Task::default()).collect(),
            free: (1..requests as u16).rev().collect(),
            queue: VecDeque::with_capacity(tasks),
            waiting: Waiting::new(tasks),
            queues: config.merge || config.overtakes_max > 0 || config.wire_max < config.in_flight,
            unsorted: false,
            syncs: VecDeque::with_capacity(tasks),
            syncing: None,
            touched: Touched::new(config.in_flight),
            unmap: Unmap::new(config.discard.then_some(requests)),
            wire: 0,
            passes: 0,
            // Unsolicited data, and the R2Ts that may be open, of every task.
            bursts: VecDeque::with_capacity(tasks * (1 + r2ts)),
            done: VecDeque::with_capacity(tasks),
            next_seq: 0,
            next_tag: config.first_itt,
            setup_garbage: 0,
            deadline: Some(Time::ZERO),
            answered: 0,
            stats: InitiatorStats::default(),
            config,
        }
    }

    /// The counters.
    pub fn stats(&self) -> InitiatorStats {
        self.stats
    }

    /// Why the last login failed, if it did. With [`BackendState::Failed`] it says more than the
    /// [`StoreError`] there.
    pub fn login_error(&self) -> Option<LoginError> {
        self.login_error
    }

    /// The values of the last login, once there was one.
    pub fn params(&self) -> Params {
        self.params
    }

    /// What the unit takes of UNMAP, whether or not it is used ([`InitiatorConfig::discard`]); `None` if it takes none,
    /// or was not asked ([`InitiatorConfig::examine`]).
    pub fn unmap_limits(&self) -> Option<UnmapLimits> {
        self.unit.unmap.filter(|_| self.unit.takes_unmap && !self.unmap.is_refused())
    }

    /// Whether requests are carried out now, rather than waiting for a connection.
    pub fn is_connected(&self) -> bool {
        self.link == Link::Ready
    }

    /// Tag for `index` of the task table, or past it for login, ping and logout.
    fn make_tag(&mut self, index: usize) -> u32 {
        let tag = (self.next_tag << TAG_BITS) | index as u32;
        self.next_tag = self.next_tag.wrapping_add(1);
        tag
    }

    fn arm(&mut self, at: Time) {
        self.deadline = Some(self.deadline.map_or(at, |d| d.min(at)));
    }

    fn slots(&self) -> Option<u32> {
        match self.state {
            BackendState::Ready { slots } => Some(slots),
            _ => None,
        }
    }

    /// Puts a task back among those that wait, in the order of submission.
    fn enqueue(&mut self, index: usize) {
        self.tasks[index].state = TaskState::Queued;
        if index == PROBE || self.unmap.is_at(index) {
            return;
        }
        self.unsorted = true;
        let seq = self.tasks[index].turn.seq;
        let tasks = &self.tasks;
        let at = self.queue.partition_point(|q| tasks[usize::from(*q)].turn.seq < seq);
        self.queue.insert(at, index as u16);
    }

    /// The request of task `index`, which is in no merged command, has its outcome.
    fn end(&mut self, index: usize, outcome: Result<Stored, StoreError>) {
        debug_assert!(self.tasks[index].is_single());
        if self.tasks[index].state == TaskState::Queued && !self.waiting.remove(index) {
            self.queue.retain(|q| usize::from(*q) != index);
            self.syncs.retain(|q| usize::from(*q) != index);
        }
        self.drop_bursts(index);
        self.release(index);
        self.unsorted = true;
        let task = &mut self.tasks[index];
        if std::mem::take(&mut task.touches) {
            match task.kind {
                Kind::Discard => self.unmap.forget(&mut self.touched),
                kind => self.touched.remove(task.slots(), kind == Kind::Read),
            }
        }
        task.state = TaskState::Ended;
        task.outcome = outcome;
        if task.shown == 0 {
            self.done.push_back(index as u16);
        }
    }

    fn drop_bursts(&mut self, index: usize) {
        if self.tasks[index].bursts > 0 {
            self.bursts.retain(|b| usize::from(b.task) != index);
            self.tasks[index].bursts = 0;
        }
    }

    fn end_all(&mut self, error: StoreError) {
        for index in 1..self.tasks.len() {
            if self.tasks[index].is_active() {
                self.end(index, Err(error));
            }
        }
    }

    /// The unit cannot be used.
    fn fail(&mut self, now: Time, error: StoreError) {
        tracing::warn!(server = %self.label, %error, "failed");
        self.state = BackendState::Failed(error);
        self.stopping = true;
        self.leave(now, Action::Abort);
        self.end_all(error);
    }
}

impl SwapBackend for IscsiBackend {
    fn state(&self) -> BackendState {
        self.state
    }

    fn limits(&self) -> BackendLimits {
        BackendLimits { batch_pages: self.unit.batch_pages(), in_flight: self.config.in_flight }
    }

    fn server(&self) -> &str {
        &self.label
    }

    fn submit(&mut self, _now: Time, request: Request) -> Result<(), SubmitError> {
        assert!(!request.pages.is_empty(), "a request has at least one page");
        let Some(slots) = self.slots() else { return Err(SubmitError::NotReady(request)) };
        let Some(index) = self.free.pop() else { return Err(SubmitError::Full(request)) };
        let index = usize::from(index);
        let past_end = (u64::from(request.first.0) + request.pages.len() as u64)
            .checked_sub(u64::from(slots))
            .filter(|past| *past > 0);
        let deadline = request.deadline;
        self.tasks[index] = Task {
            id: request.id,
            kind: match request.op {
                Op::Read => Kind::Read,
                Op::Write => Kind::Write,
            },
            first: request.first,
            len: (request.pages.len() * PAGE_SIZE) as u32,
            pages: request.pages,
            deadline,
            turn: Turn { seq: self.next_seq, ..Turn::default() },
            ..Task::default()
        };
        self.next_seq += 1;
        if past_end.is_some() {
            let slot = request.first.0.max(slots);
            self.end(index, Err(StoreError::OutOfRange { slot }));
            return Ok(());
        }
        if let Some(at) = deadline {
            self.arm(at);
        }
        let task = &mut self.tasks[index];
        let (slots, is_read) = (task.slots(), task.kind == Kind::Read);
        task.may_conflict = self.touched.may_conflict(slots.clone(), is_read);
        task.touches = true;
        self.touched.add(slots, is_read);
        self.enqueue(index);
        Ok(())
    }

    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        netswap_net::Session::handle_deadline(self, now);
        let index = self.done.pop_front()?;
        let task = &mut self.tasks[usize::from(index)];
        task.state = TaskState::Free;
        if !self.unmap.is_at(index.into()) {
            self.free.push(index);
        }
        let pages = std::mem::take(&mut task.pages);
        // Found out here: a session that was reinstated since it ended has made its copies harmless.
        let over = task.sent_over.max(task.left_over);
        let changes = matches!(task.kind, Kind::Write | Kind::Discard);
        let is_loose = changes && self.fence.give(over);
        let outcome = task.outcome.map(|_| Stored { replayed: is_loose });
        Some(Completion { id: task.id, pages, outcome, is_loose })
    }

    fn poll_deadline(&self) -> Option<Time> {
        self.deadline
    }

    fn fences(&self) -> u64 {
        self.fence.count()
    }

    fn discards(&self) -> Option<DiscardLimits> {
        self.discard_limits()
    }

    fn discard(&mut self, _now: Time, discard: Discard) -> Result<(), Discard> {
        self.take_discard(discard)
    }

    fn shutdown(&mut self, now: Time) {
        if self.stopping && self.state == BackendState::Stopped {
            return;
        }
        self.state = BackendState::Stopped;
        self.stopping = true;
        let busy = |t: &Task| t.state == TaskState::Sent || t.shown > 0;
        let idle = !self.tasks.iter().any(busy);
        if self.link == Link::Ready && idle {
            self.start_logout(now);
        } else {
            // Closing the connection ends the session: its tasks are retained for no time at all.
            self.leave(now, Action::Abort);
        }
        self.end_all(StoreError::Cancelled);
    }

    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        for task in &self.tasks[1..] {
            let of = match task.state {
                TaskState::Joined { leader } => &self.tasks[usize::from(leader)],
                _ => task,
            };
            let phase = match of.state {
                TaskState::Free | TaskState::Ended => continue,
                _ if self.link != Link::Ready => Phase::Disconnected,
                TaskState::Sent if of.shown == 0 => Phase::Sent,
                _ => Phase::Queued,
            };
            visit(Outstanding {
                id: task.id,
                first: task.first,
                pages: match task.kind {
                    Kind::Discard => self.unmap.slots(),
                    _ => task.pages.len() as u32,
                },
                verb: of.verb(),
                tag_name: "ITT",
                tag: of.tag,
                phase,
            });
        }
    }
}

impl Default for Task {
    fn default() -> Task {
        Task {
            state: TaskState::Free,
            id: RequestId(0),
            kind: Kind::Read,
            step: Step::Command,
            first: Slot(0),
            len: 0,
            pages: ArrayVec::new(),
            deadline: None,
            turn: Turn::default(),
            next: NONE,
            alone: false,
            may_conflict: false,
            touches: false,
            on_wire: false,
            tag: 0,
            cmd_sn: 0,
            due: Time::MAX,
            sent_over: 0,
            left_over: 0,
            ending: None,
            stale: false,
            whole: false,
            retry_at: Time::ZERO,
            backoff: Span::ZERO,
            received: 0,
            data_sn: 0,
            r2t_sn: 0,
            asked_to: 0,
            bursts: 0,
            shown: 0,
            timeouts: 0,
            garbage: 0,
            retries: 0,
            outcome: Err(StoreError::Cancelled),
        }
    }
}
