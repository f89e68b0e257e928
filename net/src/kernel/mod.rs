//! Sessions on TCP sockets of the kernel: non-blocking, on epoll, without a heap allocation after start.
//!
//! A [`KernelNet`] is one event loop: connections that its sessions open, listeners with the
//! connections they take, and nothing else. It owns the sockets. The caller owns the sessions, the
//! thread and the clock, and turns the loop:
//!
//! ```text
//!   wait(now, until) ----> next_ready(now) ----> drive(now, conn, session)
//!        ^                   |        ^                 |
//!        |             None  |        +-----------------+
//!        +-------------------+
//! ```
//! - `wait` sleeps until a socket, a deadline of a session, or [`Waker::wake`] has something to do;
//! - `next_ready` names each connection that is to be driven in this turn, once;
//! - `drive` tells the session what happened, moves bytes both ways, and does what it asks for.
//!
//! Read on in [`conn`] (a slot and its states), `connect`, `listen`, `drive`; [`options`] and
//! [`resolve`] are what is set at start; [`protect`] is what else the kernel offers.
//!
//! # Copies
//! Sent bytes go from the slices that the session shows to the kernel by `sendmsg`; received bytes come
//! from the kernel to where the session wants them by `readv`. The transport has no buffer in between,
//! so it copies no byte in user space; the kernel copies each once in each direction.
//!
//! # Invariants
//! - Tables have their full size before the first turn. Nothing is allocated afterwards, also not by
//!   connecting, accepting, losing and closing connections.
//! - A turn is bounded: each connection is driven once, and moves [`KernelConfig::turn_bytes`] in each
//!   direction at most (and what one system call takes beyond). What is cut short goes on in the
//!   next turn, behind the others.
//! - No wake-up is lost: what an edge-triggered event said is kept until a system call has shown that
//!   it is used up; an event that comes between that call and the next wait is told by that wait.
//! - No busy loop: a connection is ready only after an event, a deadline, or a turn cut short; what
//!   the session does not take (backpressure) does not wake anybody.
//! - While many answers are outstanding, a wait may begin with a rest, so that it finds several
//!   (`moderate`): bounded by [`KernelConfig::moderate`], and not with work at hand.
//! - A session that is changed by anything but `drive` must be driven, or named by
//!   [`KernelNet::make_ready`], before the next wait.

mod clock;
pub mod conn;
mod connect;
mod drive;
mod listen;
mod moderate;
pub mod options;
pub mod protect;
pub mod resolve;
mod stats;

use std::collections::VecDeque;
use std::sync::Arc;

use netswap_reserve::{Span, Time};
use rustix::buffer::spare_capacity;
use rustix::event::epoll::{self, CreateFlags, Event, EventData, EventFlags};
use rustix::event::{EventfdFlags, Timespec, eventfd};
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::thread::nanosleep;

pub use clock::Clock;
pub use conn::{ConnInfo, ConnPhase};
pub use listen::{ListenConfig, ListenError};
pub use options::{KeepAlive, SocketOptions, SourcePort};
pub use protect::{MemoryLock, OsError, PathProtection, ProtectConfig, Protection};
pub use resolve::{HOST_ADDRS_MAX, HostAddrs, ResolveError};
pub use stats::{ConnStats, KernelStats};

use conn::{Conn, Token};
use listen::Listener;
use moderate::Pace;

/// Events taken by one wait at most; the rest comes with the next, which does not sleep. Picked by eye.
const EVENTS_MAX: usize = 256;
/// Longest sleep, so that the number fits every kernel's `epoll_wait`.
const SLEEP_MAX: Span = Span::from_secs(3600);

/// Names a connection slot of a [`KernelNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ConnId(u32);

impl ConnId {
    /// Its number, counted from 0 in the order of adding, listeners' slots included.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Names a listener of a [`KernelNet`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ListenerId(u32);

impl ListenerId {
    /// Its number, counted from 0 in the order of adding.
    pub fn index(self) -> usize {
        self.0 as usize
    }
}

/// Sizes of an event loop, fixed when it is made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KernelConfig {
    /// Connection slots, those of listeners included. At least 1.
    pub connections: usize,
    /// Listeners.
    pub listeners: usize,
    /// Bytes after which a connection's turn ends, in each direction.
    pub turn_bytes: usize,
    /// How long an attempt to connect to one address may take.
    pub connect_timeout: Span,
    /// How long a peer may take to end a stream that its session has closed; then it is reset.
    pub close_timeout: Span,
    /// How long the loop may rest at most to take several answers at once, while its sessions have many
    /// outstanding ([`Session::answers`](crate::Session::answers)). It holds back wake-ups and deadlines by so much. Zero switches
    /// it off.
    pub moderate: Span,
}

impl KernelConfig {
    /// The defaults: no listener, 256 KiB a turn (four batches of pages), 5 s to connect, 2 s to close, rests
    /// of 250 us. All picked by eye.
    pub fn new(connections: usize) -> KernelConfig {
        KernelConfig {
            connections,
            listeners: 0,
            turn_bytes: 256 << 10,
            connect_timeout: Span::from_secs(5),
            close_timeout: Span::from_secs(2),
            moderate: Span::from_micros(250),
        }
    }
}

/// What is set for a connection that its session will open.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ConnConfig {
    /// What is asked for of its sockets.
    pub socket: SocketOptions,
    /// Which source ports it may have.
    pub source_port: SourcePort,
    /// The addresses of the host. When the session wants to connect to one of them, all are tried,
    /// beginning with the one that worked last; the port is the session's. For an address that is not
    /// among them, and without any, only what the session asks for is tried.
    pub addrs: Option<HostAddrs>,
}

/// Why an event loop cannot be made or cannot wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum KernelError {
    /// The system refused a descriptor.
    #[error("cannot make an event loop: {0}")]
    Make(OsError),
    /// The system refused to wait.
    #[error("cannot wait for events: {0}")]
    Wait(OsError),
}

/// The loop was made for fewer connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("no room for a connection more than {connections}")]
pub struct TooManyConnections {
    /// Slots it was made for.
    pub connections: usize,
}

/// Ends a loop's wait from any thread, now or, if it does not wait, the next time. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Waker {
    fd: Arc<OwnedFd>,
}

impl Waker {
    /// Ends the wait. Never blocks; allocates nothing.
    pub fn wake(&self) {
        // It fails only when it was called 2^64 times and nobody looked; then it is readable as it is.
        let _ = rustix::io::write(&*self.fd, &1u64.to_ne_bytes());
    }
}

/// Why a wait ended.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Woken {
    /// A [`Waker`] was used since the last wait.
    pub by_waker: bool,
    /// Socket events that were taken.
    pub events: usize,
}

/// An event loop over TCP sockets of the kernel.
///
/// ```
/// use netswap_net::kernel::{Clock, ConnConfig, KernelConfig, KernelNet, ListenConfig};
/// use netswap_net::{Action, Disconnect, SendVec, Session};
/// use netswap_reserve::Time;
///
/// /// Says one word, and takes one.
/// struct Talk {
///     action: Option<Action>,
///     says: &'static [u8],
///     sent: usize,
///     heard: [u8; 4],
///     len: usize,
///     open: bool,
/// }
///
/// impl Session for Talk {
///     fn handle_connected(&mut self, _: Time) {
///         self.open = true;
///     }
///     fn handle_disconnected(&mut self, _: Time, why: Disconnect) {
///         panic!("{why}");
///     }
///     fn recv_buffer(&mut self) -> &mut [u8] {
///         &mut self.heard[self.len..]
///     }
///     fn handle_received(&mut self, _: Time, n: usize) {
///         self.len += n;
///     }
///     fn poll_send<'a>(&'a mut self, _: Time, out: &mut SendVec<'a>) {
///         if self.open && self.sent < self.says.len() {
///             out.push(&self.says[self.sent..]);
///         }
///     }
///     fn handle_sent(&mut self, _: Time, n: usize) {
///         self.sent += n;
///     }
///     fn poll_action(&mut self, _: Time) -> Option<Action> {
///         self.action.take()
///     }
///     fn poll_deadline(&self) -> Option<Time> {
///         None
///     }
///     fn handle_deadline(&mut self, _: Time) {}
/// }
///
/// let clock = Clock::new();
/// let mut net = KernelNet::new(KernelConfig { listeners: 1, ..KernelConfig::new(2) })?;
/// let listener = net.listen(&ListenConfig::new("127.0.0.1:0".parse()?, 1))?;
/// let remote = net.listener_addr(listener);
/// let client = net.add_conn(ConnConfig::default())?;
///
/// let talk = |says, action| Talk { action, says, sent: 0, heard: [0; 4], len: 0, open: false };
/// let mut here = talk(b"ping", Some(Action::Connect { remote, same_port: false }));
/// let mut there = talk(b"pong", None);
/// while here.len < 4 || there.len < 4 {
///     net.wait(clock.now(), None)?;
///     let now = clock.now();
///     while let Some(id) = net.next_ready(now) {
///         net.drive(now, id, if id == client { &mut here } else { &mut there });
///     }
/// }
/// assert_eq!((&here.heard, &there.heard), (b"pong", b"ping"));
/// assert_eq!(net.stats().conns.bytes_copied, 0);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct KernelNet {
    config: KernelConfig,
    epoll: OwnedFd,
    waker: Waker,
    /// Room for the events of one wait; never grows.
    events: Vec<Event>,
    conns: Vec<Conn>,
    listeners: Vec<Listener>,
    /// When each connection is to be driven even without an event, and a time that is not later than
    /// any of these.
    deadlines: Vec<Time>,
    earliest: Time,
    /// Connections to be driven, in order, each once; and how many of them belong to this turn.
    ready: VecDeque<ConnId>,
    turn_left: Option<usize>,
    /// The last wait left the system alone, as there was work.
    hurried: bool,
    pace: Pace,
    stats: KernelStats,
}

impl std::fmt::Debug for KernelNet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KernelNet")
            .field("config", &self.config)
            .field("conns", &self.conns.len())
            .field("listeners", &self.listeners.len())
            .field("stats", &self.stats())
            .finish_non_exhaustive()
    }
}

impl KernelNet {
    /// A loop of the sizes of `config`, without connections.
    ///
    /// # Errors
    /// When the system has no descriptor for it.
    ///
    /// # Panics
    /// If `config.connections` or `config.turn_bytes` is 0, or there are 2^31 connections or more.
    pub fn new(config: KernelConfig) -> Result<KernelNet, KernelError> {
        assert!((1..1 << 31).contains(&config.connections), "{} connections", config.connections);
        assert!(config.turn_bytes > 0, "turns without a byte");
        let make = |errno: Errno| KernelError::Make(errno.into());
        let epoll = epoll::create(CreateFlags::CLOEXEC).map_err(make)?;
        let fd = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK).map_err(make)?;
        // Edge-triggered: each write is an event, and nobody need read the count.
        let token = EventData::new_u64(Token::Wake.pack());
        epoll::add(&epoll, &fd, token, EventFlags::IN | EventFlags::ET).map_err(make)?;
        let events = EVENTS_MAX.min(config.connections + config.listeners + 1);
        Ok(KernelNet {
            epoll,
            waker: Waker { fd: Arc::new(fd) },
            events: Vec::with_capacity(events),
            conns: Vec::with_capacity(config.connections),
            listeners: Vec::with_capacity(config.listeners),
            deadlines: Vec::with_capacity(config.connections),
            earliest: Time::MAX,
            ready: VecDeque::with_capacity(config.connections),
            turn_left: None,
            hurried: false,
            pace: Pace::default(),
            stats: KernelStats::default(),
            config,
        })
    }

    /// A slot for a connection that its session opens, and opens again. It is ready at once.
    ///
    /// # Errors
    /// When all slots are taken.
    pub fn add_conn(&mut self, config: ConnConfig) -> Result<ConnId, TooManyConnections> {
        if self.conns.len() == self.config.connections {
            return Err(TooManyConnections { connections: self.config.connections });
        }
        let id = self.push_conn(Conn {
            source_port: config.source_port,
            addrs: config.addrs,
            ..Conn::new(config.socket)
        });
        self.make_ready(id);
        Ok(id)
    }

    fn push_conn(&mut self, conn: Conn) -> ConnId {
        let id = ConnId(self.conns.len() as u32);
        self.conns.push(conn);
        self.deadlines.push(Time::MAX);
        id
    }

    /// What ends a wait of this loop from another thread.
    pub fn waker(&self) -> Waker {
        self.waker.clone()
    }

    /// The connection slot with number `index`.
    ///
    /// # Panics
    /// If there are not so many.
    pub fn conn_at(&self, index: usize) -> ConnId {
        assert!(index < self.conns.len(), "connection {index} of {}", self.conns.len());
        ConnId(index as u32)
    }

    /// What a connection is doing.
    pub fn conn_info(&self, id: ConnId) -> ConnInfo {
        self.conns[id.index()].info()
    }

    /// What a connection slot has done so far.
    pub fn conn_stats(&self, id: ConnId) -> ConnStats {
        self.conns[id.index()].stats
    }

    /// What the loop has done so far.
    pub fn stats(&self) -> KernelStats {
        let mut stats = self.stats;
        self.conns.iter().for_each(|conn| stats.conns += conn.stats);
        stats
    }

    /// Has a connection driven in the next turn: to be called after its session was given something.
    pub fn make_ready(&mut self, id: ConnId) {
        let conn = &mut self.conns[id.index()];
        if !conn.queued {
            conn.queued = true;
            self.ready.push_back(id);
        }
    }

    /// When the loop wants to be turned even if nothing happens; [`Time::ZERO`] if it has work already.
    pub fn poll_deadline(&self) -> Option<Time> {
        let due =
            if self.ready.is_empty() { self.earliest.min(self.accept_at()) } else { Time::ZERO };
        (due < Time::MAX).then_some(due)
    }

    /// Sleeps until a socket has something to do, a session's deadline has come, a [`Waker`] was used,
    /// a signal came, or it is `until`; and begins a new turn. Does not sleep while there is work: every other time it
    /// does not even look what else there is, so that what was just given to a session costs no system call but its own.
    /// Deadlines are met to the millisecond, never early. With many answers outstanding it may first rest, for
    /// [`KernelConfig::moderate`] at most, whatever happens meanwhile.
    ///
    /// # Errors
    /// When the system refuses to wait, which means that descriptors were closed behind the loop's back.
    pub fn wait(&mut self, now: Time, until: Option<Time>) -> Result<Woken, KernelError> {
        self.turn_left = None;
        self.hurried = !self.hurried && !self.ready.is_empty();
        if self.hurried {
            return Ok(Woken::default());
        }
        let until = until.unwrap_or(Time::MAX).min(self.poll_deadline().unwrap_or(Time::MAX));
        let rested = self.rest(now, until);
        let sleep = until.since(now + rested).min(SLEEP_MAX).as_nanos();
        let timeout = Timespec {
            tv_sec: (sleep / 1_000_000_000) as i64,
            tv_nsec: (sleep % 1_000_000_000) as i64,
        };
        let timeout = (until < Time::MAX).then_some(&timeout);
        self.stats.wait_calls += 1;
        self.events.clear();
        match epoll::wait(&self.epoll, spare_capacity(&mut self.events), timeout) {
            Ok(_) => {}
            Err(Errno::INTR) => return Ok(Woken::default()),
            Err(errno) => return Err(KernelError::Wait(errno.into())),
        }
        let mut woken = Woken { by_waker: false, events: 0 };
        for at in 0..self.events.len() {
            let event = self.events[at];
            let (bits, flags) = (event.data.u64(), event.flags);
            match Token::unpack(bits) {
                Token::Wake => {
                    woken.by_waker = true;
                    self.stats.wakes += 1;
                }
                Token::Listener(id) => {
                    woken.events += 1;
                    self.listeners[id.index()].pending = true;
                }
                Token::Conn(id, generation) => {
                    woken.events += 1;
                    let conn = &mut self.conns[id.index()];
                    if conn.generation == generation {
                        conn.note(flags);
                        self.make_ready(id);
                    }
                }
            }
        }
        self.stats.events += woken.events as u64;
        Ok(woken)
    }

    /// Rests for a moment, so that the wait that follows finds several answers.
    fn rest(&mut self, now: Time, until: Time) -> Span {
        if self.config.moderate == Span::ZERO || until <= now {
            return Span::ZERO;
        }
        let Some(rest) = self.pace.rest(now, self.config.moderate) else { return Span::ZERO };
        let rest = rest.min(until.since(now));
        let time = Timespec { tv_sec: 0, tv_nsec: rest.as_nanos() as _ };
        self.stats.rests += 1;
        // A signal ends it early, which does no harm.
        let _ = nanosleep(&time);
        rest
    }

    /// The next connection to be driven in this turn, which the caller then must do; `None` when the
    /// turn is over. Takes new peers and finds deadlines that have come, at the start of a turn.
    pub fn next_ready(&mut self, now: Time) -> Option<ConnId> {
        let left = match self.turn_left {
            Some(left) => left,
            None => {
                self.accept_all(now);
                self.find_due(now);
                self.ready.len()
            }
        };
        let next = if left > 0 { self.ready.pop_front() } else { None };
        self.turn_left = Some(left.saturating_sub(1));
        let id = next?;
        self.conns[id.index()].queued = false;
        Some(id)
    }

    /// Makes those ready whose deadline has come.
    fn find_due(&mut self, now: Time) {
        if self.earliest > now {
            return;
        }
        self.earliest = Time::MAX;
        for at in 0..self.deadlines.len() {
            if self.deadlines[at] <= now {
                // Set again when it is driven.
                self.deadlines[at] = Time::MAX;
                self.make_ready(ConnId(at as u32));
            }
            self.earliest = self.earliest.min(self.deadlines[at]);
        }
    }
}
