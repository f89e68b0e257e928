//! Listeners: each has connection slots of its own and takes no more peers than it has free ones;
//! others wait in the kernel's queue.

use std::net::SocketAddr;
use std::ops::Range;

use netswap_reserve::{Span, Time};
use rustix::event::epoll::{self, EventData, EventFlags};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{SocketFlags, accept_with, bind, getpeername, getsockname, listen, sockopt};

use super::conn::{Conn, ConnPhase, Token};
use super::connect::{new_socket, to_std};
use super::options::SocketOptions;
use super::protect::OsError;
use super::{ConnId, KernelNet, ListenerId};

/// How long `accept` rests when there are no descriptors or no memory. Picked by eye: both come back by
/// other programs' doing.
const ACCEPT_PAUSE: Span = Span::from_millis(50);
/// Peers that one call takes at most. Picked by eye.
const ACCEPTS_MAX: usize = 64;

/// How to listen.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListenConfig {
    /// Where; port 0 lets the system choose.
    pub addr: SocketAddr,
    /// Connections at once: this many slots are set aside. At least 1.
    pub connections: usize,
    /// Peers that the kernel lets wait for a slot.
    pub backlog: i32,
    /// What is asked for of each connection.
    pub socket: SocketOptions,
}

impl ListenConfig {
    /// The defaults: 128 peers may wait.
    pub fn new(addr: SocketAddr, connections: usize) -> ListenConfig {
        ListenConfig { addr, connections, backlog: 128, socket: SocketOptions::default() }
    }
}

/// Why nothing listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListenError {
    /// The loop was made for fewer.
    #[error("no room: {free} of {needed} connection slots are free")]
    NoConnections {
        /// Slots asked for.
        needed: usize,
        /// Slots left.
        free: usize,
    },
    /// The loop was made for fewer listeners.
    #[error("no room for a listener more")]
    NoListeners,
    /// The system refused.
    #[error("cannot listen on {addr}: {why}")]
    System {
        /// Where.
        addr: SocketAddr,
        /// What the system said.
        why: OsError,
    },
}

pub(super) struct Listener {
    fd: OwnedFd,
    local: SocketAddr,
    slots: Range<u32>,
    /// Slots without a connection. Never longer than `slots`.
    free: Vec<u32>,
    /// The kernel may have a peer for us.
    pub(super) pending: bool,
    retry_at: Time,
}

impl Listener {
    /// Whether a peer that may be there can be taken now.
    fn can_accept(&self) -> bool {
        self.pending && !self.free.is_empty()
    }
}

impl KernelNet {
    /// Listens, with slots of its own for the connections taken: these return to the listener when
    /// their connection has ended. The slots are [`KernelNet::listener_conns`], each to be driven
    /// with a session of its own.
    ///
    /// # Errors
    /// When the loop has no room for it, or the system refuses the address.
    ///
    /// # Panics
    /// If `config.connections` is 0.
    pub fn listen(&mut self, config: &ListenConfig) -> Result<ListenerId, ListenError> {
        let needed = config.connections;
        assert!(needed > 0, "a listener without connections");
        let free = self.config.connections - self.conns.len();
        if needed > free {
            return Err(ListenError::NoConnections { needed, free });
        }
        if self.listeners.len() == self.config.listeners {
            return Err(ListenError::NoListeners);
        }
        let id = ListenerId(self.listeners.len() as u32);
        let (fd, local) = self
            .open_listener(id, config)
            .map_err(|errno| ListenError::System { addr: config.addr, why: errno.into() })?;
        let first = self.conns.len() as u32;
        for _ in 0..needed {
            self.push_conn(Conn { listener: Some(id), ..Conn::new(config.socket) });
        }
        let slots = first..first + needed as u32;
        self.listeners.push(Listener {
            fd,
            local,
            // The lowest is taken first.
            free: slots.clone().rev().collect(),
            slots,
            pending: true,
            retry_at: Time::ZERO,
        });
        Ok(id)
    }

    fn open_listener(
        &self,
        id: ListenerId,
        config: &ListenConfig,
    ) -> Result<(OwnedFd, SocketAddr), Errno> {
        let fd = new_socket(config.addr)?;
        // A server that was restarted must not wait until its old connections are forgotten.
        sockopt::set_socket_reuseaddr(&fd, true)?;
        config.socket.apply_sizes(fd.as_fd())?;
        bind(&fd, &config.addr)?;
        listen(&fd, config.backlog)?;
        let token = EventData::new_u64(Token::Listener(id).pack());
        epoll::add(&self.epoll, &fd, token, EventFlags::IN | EventFlags::ET)?;
        let local = to_std(getsockname(&fd)?).ok_or(Errno::AFNOSUPPORT)?;
        Ok((fd, local))
    }

    /// Where a listener listens, with the port that the system chose.
    pub fn listener_addr(&self, id: ListenerId) -> SocketAddr {
        self.listeners[id.index()].local
    }

    /// The slots of a listener, in order.
    pub fn listener_conns(&self, id: ListenerId) -> impl ExactSizeIterator<Item = ConnId> + use<> {
        self.listeners[id.index()].slots.clone().map(ConnId)
    }

    /// A slot of a listener is free again.
    pub(super) fn give_back(&mut self, id: ListenerId, conn: ConnId) {
        let listener = &mut self.listeners[id.index()];
        debug_assert!(!listener.free.contains(&conn.0), "a slot given back twice");
        listener.free.push(conn.0);
    }

    /// When a listener wants to be asked again without an event.
    pub(super) fn accept_at(&self) -> Time {
        let due = self.listeners.iter().filter(|l| l.can_accept()).map(|l| l.retry_at);
        due.min().unwrap_or(Time::MAX)
    }

    /// Takes peers, as many as there are free slots for.
    pub(super) fn accept_all(&mut self, now: Time) {
        for at in 0..self.listeners.len() {
            for _ in 0..ACCEPTS_MAX {
                let listener = &mut self.listeners[at];
                if !listener.can_accept() || listener.retry_at > now {
                    break;
                }
                match accept_with(&listener.fd, SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
                    Ok(fd) => {
                        let Some(slot) = listener.free.pop() else { break };
                        self.take_peer(now, ConnId(slot), ListenerId(at as u32), fd);
                    }
                    Err(Errno::AGAIN) => listener.pending = false,
                    // A peer that has gone already; there may be others (accept(2)).
                    Err(
                        Errno::INTR
                        | Errno::CONNABORTED
                        | Errno::PROTO
                        | Errno::NOPROTOOPT
                        | Errno::NETDOWN
                        | Errno::NETUNREACH
                        | Errno::HOSTDOWN
                        | Errno::HOSTUNREACH
                        | Errno::NONET
                        | Errno::OPNOTSUPP
                        | Errno::PERM,
                    ) => {}
                    Err(_) => {
                        self.stats.accept_failures += 1;
                        listener.retry_at = now + ACCEPT_PAUSE;
                    }
                }
            }
        }
    }

    fn take_peer(&mut self, now: Time, id: ConnId, listener: ListenerId, fd: OwnedFd) {
        let conn = &mut self.conns[id.index()];
        let token = EventData::new_u64(Token::Conn(id, conn.generation).pack());
        let ready = conn.options.apply(fd.as_fd()).and_then(|socket_memory| {
            epoll::add(&self.epoll, &fd, token, Conn::interest())?;
            Ok((socket_memory, to_std(getsockname(&fd)?), getpeername(&fd)?.and_then(to_std)))
        });
        match ready {
            Ok((socket_memory, local, remote)) => {
                conn.begin(fd, ConnPhase::Accepted, true);
                conn.stats.accepts += 1;
                conn.socket_memory = socket_memory;
                (conn.local, conn.remote) = (local, remote);
                self.make_ready(id);
            }
            Err(errno) => {
                // A peer that has gone already, or no kernel memory: then rest.
                conn.last_error = Some(errno.into());
                self.give_back(listener, id);
                if matches!(errno, Errno::NOMEM | Errno::NOBUFS | Errno::NOSPC) {
                    self.stats.accept_failures += 1;
                    self.listeners[listener.index()].retry_at = now + ACCEPT_PAUSE;
                }
            }
        }
    }
}
