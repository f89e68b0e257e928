//! One slot for a connection: its socket, what is known of it, and what its session has been told.
//!
//! ```text
//!           Connect           opened
//!   Idle -----------> Connecting ----> Open ---- Close ----> Closing
//!    | ^  refused, late, |              ^ |                     |
//!    | +-----------------+     told     | | lost                | peer's end, or late
//!    | +--------------------------------|-+---------------------+
//!    +---------------------> Accepted --+
//!        listener, accept
//! ```
//! Readiness is *edge-triggered*: a socket is added to epoll once, and an event says only that something
//! changed. So what an event said is kept in `readable` and `writable` until a system call has shown
//! that it is used up: by `EAGAIN`, or by doing less than was asked. A short `readv` proves that only
//! while nothing but data can be there; after `RDHUP`, an error or urgent data (`odd`), reading goes on
//! until `EAGAIN` or the end.

use std::net::SocketAddr;

use netswap_reserve::Time;
use rustix::event::epoll::EventFlags;
use rustix::fd::OwnedFd;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::options::{SocketOptions, SourcePort};
use super::protect::{OsError, Protection};
use super::resolve::HostAddrs;
use super::stats::ConnStats;
use super::{ConnId, ListenerId};
use crate::session::{Answers, Disconnect};

/// What a connection's session has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ConnPhase {
    /// There is no connection.
    Idle,
    /// Asked for, not yet answered.
    Connecting,
    /// Taken from a listener; the session is told when it is driven next.
    Accepted,
    /// Open.
    Open,
    /// The session has closed it; what the kernel holds is being sent.
    Closing,
}

/// A connection for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ConnInfo {
    /// What it is doing.
    pub phase: ConnPhase,
    /// This end's address; of the last connection if there is none now.
    pub local: Option<SocketAddr>,
    /// The peer's address, likewise.
    pub remote: Option<SocketAddr>,
    /// What ended the last connection, or the last attempt, if it was an error of the system.
    pub last_error: Option<OsError>,
    /// Whether the system keeps memory for the socket of the last connection.
    pub socket_memory: Protection,
}

pub(super) struct Conn {
    pub(super) fd: Option<OwnedFd>,
    pub(super) phase: ConnPhase,
    pub(super) options: SocketOptions,
    pub(super) source_port: SourcePort,
    pub(super) addrs: Option<HostAddrs>,
    /// Which of `addrs` is tried next, counted round; how many were tried for this `Connect`.
    pub(super) addr: usize,
    pub(super) tried: usize,
    pub(super) listener: Option<ListenerId>,
    /// Tells an event of this socket from one of an earlier socket of the slot.
    pub(super) generation: u32,

    pub(super) readable: bool,
    pub(super) writable: bool,
    pub(super) odd: bool,
    pub(super) error: bool,
    /// What the session said last.
    pub(super) answers: Answers,
    /// In the queue of those to be driven.
    pub(super) queued: bool,
    /// Connecting or closing is given up then.
    pub(super) give_up_at: Time,
    /// Sending failed for want of kernel memory and is tried again then.
    pub(super) retry_at: Time,

    /// Of the `Connect` being carried out.
    pub(super) wanted: Option<SocketAddr>,
    pub(super) same_port: bool,
    pub(super) local: Option<SocketAddr>,
    pub(super) remote: Option<SocketAddr>,
    pub(super) last_error: Option<OsError>,
    pub(super) socket_memory: Protection,
    pub(super) stats: ConnStats,
}

impl Conn {
    pub(super) fn new(options: SocketOptions) -> Conn {
        Conn {
            fd: None,
            phase: ConnPhase::Idle,
            options,
            source_port: SourcePort::Any,
            addrs: None,
            addr: 0,
            tried: 0,
            listener: None,
            generation: 0,
            readable: false,
            writable: false,
            odd: false,
            error: false,
            answers: Answers::default(),
            queued: false,
            give_up_at: Time::MAX,
            retry_at: Time::MAX,
            wanted: None,
            same_port: false,
            local: None,
            remote: None,
            last_error: None,
            socket_memory: Protection::NotAsked,
            stats: ConnStats::default(),
        }
    }

    pub(super) fn info(&self) -> ConnInfo {
        ConnInfo {
            phase: self.phase,
            local: self.local,
            remote: self.remote,
            last_error: self.last_error,
            socket_memory: self.socket_memory,
        }
    }

    /// What epoll is asked to tell, once for the life of a socket.
    pub(super) fn interest() -> EventFlags {
        EventFlags::IN | EventFlags::OUT | EventFlags::RDHUP | EventFlags::PRI | EventFlags::ET
    }

    /// Keeps what an event said.
    pub(super) fn note(&mut self, flags: EventFlags) {
        let broken = EventFlags::HUP | EventFlags::ERR;
        let odd = broken | EventFlags::RDHUP | EventFlags::PRI;
        self.readable |= flags.intersects(EventFlags::IN | odd);
        self.writable |= flags.intersects(EventFlags::OUT | broken);
        self.odd |= flags.intersects(odd);
        self.error |= flags.intersects(broken);
    }

    /// A new socket is in place, with nothing known of it.
    pub(super) fn begin(&mut self, fd: OwnedFd, phase: ConnPhase, ready: bool) {
        self.fd = Some(fd);
        self.phase = phase;
        (self.readable, self.writable) = (ready, ready);
        (self.odd, self.error) = (false, false);
        (self.give_up_at, self.retry_at) = (Time::MAX, Time::MAX);
    }

    /// Closes the socket: at once and by a reset, or in order, with the kernel sending what it holds.
    pub(super) fn close(&mut self, reset: bool) {
        if let Some(fd) = self.fd.take()
            && reset
        {
            // If that is refused the peer gets an orderly end, and answers what follows by a reset.
            let _ = sockopt::set_socket_linger(&fd, Some(std::time::Duration::ZERO));
        }
        // An event of the old socket that is still under way must not be taken for the next one's.
        self.generation = self.generation.wrapping_add(1);
        self.phase = ConnPhase::Idle;
        (self.give_up_at, self.retry_at) = (Time::MAX, Time::MAX);
    }

    /// When the slot itself has something to do without an event.
    pub(super) fn next_at(&self) -> Time {
        self.give_up_at.min(self.retry_at)
    }
}

/// What an error of a socket means to its session.
pub(super) fn meaning(errno: Errno) -> Disconnect {
    match errno {
        Errno::CONNREFUSED => Disconnect::Refused,
        Errno::CONNRESET | Errno::CONNABORTED | Errno::PIPE => Disconnect::Reset,
        Errno::TIMEDOUT => Disconnect::TimedOut,
        Errno::NETUNREACH | Errno::HOSTUNREACH | Errno::NETDOWN | Errno::HOSTDOWN => {
            Disconnect::Unreachable
        }
        _ => Disconnect::Local,
    }
}

/// What epoll hands back with an event.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Wake,
    Listener(ListenerId),
    Conn(ConnId, u32),
}

impl Token {
    const WAKE: u64 = u64::MAX;
    /// Slots are 31 bits, so this bit is free.
    const LISTENER: u64 = 1 << 31;

    pub(super) fn pack(self) -> u64 {
        match self {
            Token::Wake => Token::WAKE,
            Token::Listener(id) => Token::LISTENER | u64::from(id.0),
            Token::Conn(id, generation) => u64::from(generation) << 32 | u64::from(id.0),
        }
    }

    pub(super) fn unpack(bits: u64) -> Token {
        match bits {
            Token::WAKE => Token::Wake,
            _ if bits & Token::LISTENER != 0 => {
                Token::Listener(ListenerId(bits as u32 & !(1 << 31)))
            }
            _ => Token::Conn(ConnId(bits as u32), (bits >> 32) as u32),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_come_back_as_they_went() {
        for token in [
            Token::Wake,
            Token::Listener(ListenerId(0)),
            Token::Listener(ListenerId(77)),
            Token::Conn(ConnId(0), 0),
            Token::Conn(ConnId((1 << 31) - 1), u32::MAX),
        ] {
            assert_eq!(Token::unpack(token.pack()), token);
        }
    }

    #[test]
    fn errors_have_the_meaning_a_session_needs() {
        assert_eq!(meaning(Errno::CONNREFUSED), Disconnect::Refused);
        assert_eq!(meaning(Errno::PIPE), Disconnect::Reset);
        assert_eq!(meaning(Errno::TIMEDOUT), Disconnect::TimedOut);
        assert_eq!(meaning(Errno::HOSTUNREACH), Disconnect::Unreachable);
        assert_eq!(meaning(Errno::MFILE), Disconnect::Local);
    }
}
