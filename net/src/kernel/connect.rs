//! Opening connections: which address, which source port.

use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

use netswap_reserve::Time;
use rustix::event::epoll::{self, EventData};
use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SocketAddrAny, SocketFlags, SocketType, bind, connect, getpeername, getsockname,
    ipproto, socket_with, sockopt,
};

use super::conn::{Conn, ConnPhase, Token, meaning};
use super::options::SourcePort;
use super::{ConnId, KernelNet};
use crate::session::Disconnect;

/// Source ports that count as privileged here, from the top: those of the kernel's own RPC client
/// (`sunrpc.min_resvport`, `max_resvport`).
const PRIVILEGED: std::ops::RangeInclusive<u16> = 665..=1023;

impl KernelNet {
    /// Begins to carry out `Action::Connect`: tries the addresses until one does not fail at once.
    pub(super) fn begin_connect(
        &mut self,
        now: Time,
        id: ConnId,
        remote: SocketAddr,
        same_port: bool,
    ) -> Result<(), Disconnect> {
        let conn = &mut self.conns[id.index()];
        assert!(conn.listener.is_none(), "a listener's connection cannot connect");
        conn.close(true);
        conn.wanted = Some(remote);
        conn.same_port = same_port;
        conn.tried = 0;
        self.try_addresses(now, id)
    }

    /// Goes on with the next address after one has failed with `errno`.
    pub(super) fn connect_failed(
        &mut self,
        now: Time,
        id: ConnId,
        errno: Errno,
    ) -> Result<(), Disconnect> {
        let conn = &mut self.conns[id.index()];
        conn.close(true);
        conn.attempt_failed(errno);
        if conn.tried < conn.candidates() {
            self.try_addresses(now, id)
        } else {
            Err(meaning(errno))
        }
    }

    fn try_addresses(&mut self, now: Time, id: ConnId) -> Result<(), Disconnect> {
        loop {
            match self.try_address(now, id) {
                Ok(()) => return Ok(()),
                Err(errno) => {
                    let conn = &mut self.conns[id.index()];
                    conn.attempt_failed(errno);
                    if conn.tried >= conn.candidates() {
                        return Err(meaning(errno));
                    }
                }
            }
        }
    }

    fn try_address(&mut self, now: Time, id: ConnId) -> Result<(), Errno> {
        let conn = &mut self.conns[id.index()];
        let remote = conn.candidate().ok_or(Errno::DESTADDRREQ)?;
        let fd = conn.open_towards(remote)?;
        conn.begin(fd, ConnPhase::Connecting, false);
        conn.remote = Some(remote);
        conn.give_up_at = now + self.config.connect_timeout;
        let token = Token::Conn(id, conn.generation);
        // Added after `connect`, for a socket that is not even connecting counts as hung up. What has
        // happened by now is told as the first event.
        let added = match &conn.fd {
            Some(fd) => {
                epoll::add(&self.epoll, fd, EventData::new_u64(token.pack()), Conn::interest())
            }
            None => Err(Errno::BADF),
        };
        if added.is_err() {
            self.conns[id.index()].close(true);
        }
        added
    }
}

impl Conn {
    /// How many addresses there are for what is wanted.
    fn candidates(&self) -> usize {
        match (&self.addrs, self.wanted) {
            (Some(addrs), Some(wanted)) if addrs.contains(wanted.ip()) => addrs.len(),
            _ => 1,
        }
    }

    /// The address to be tried now.
    fn candidate(&self) -> Option<SocketAddr> {
        let wanted = self.wanted?;
        match &self.addrs {
            Some(addrs) if addrs.contains(wanted.ip()) => Some(addrs.nth(self.addr, wanted.port())),
            _ => Some(wanted),
        }
    }

    /// The address that was tried is not to be tried next.
    pub(super) fn attempt_failed(&mut self, errno: Errno) {
        self.stats.connect_failures += 1;
        self.last_error = Some(errno.into());
        self.tried += 1;
        self.addr = self.addr.wrapping_add(1);
    }

    /// A socket that is connecting, from the source port that is wanted if it can be had.
    fn open_towards(&mut self, remote: SocketAddr) -> Result<OwnedFd, Errno> {
        let last = self.local.map_or(0, |local| local.port());
        if self.same_port && last != 0 {
            match self.open_from(remote, last) {
                Err(errno) if is_about_the_port(errno) => self.stats.port_changes += 1,
                other => return other,
            }
        }
        if self.source_port == SourcePort::Privileged {
            for port in PRIVILEGED.rev() {
                match self.open_from(remote, port) {
                    // Not allowed: no port of these will do.
                    Err(Errno::ACCESS | Errno::PERM) => break,
                    Err(errno) if is_about_the_port(errno) => {}
                    other => return other,
                }
            }
            self.stats.unprivileged += 1;
        }
        self.open_from(remote, 0)
    }

    fn open_from(&mut self, remote: SocketAddr, port: u16) -> Result<OwnedFd, Errno> {
        let fd = new_socket(remote)?;
        self.options.apply_sizes(fd.as_fd())?;
        self.socket_memory = self.options.apply(fd.as_fd())?;
        if port != 0 {
            // The port may still be known to the system from the connection before.
            sockopt::set_socket_reuseaddr(&fd, true)?;
            bind(&fd, &unspecified(remote, port))?;
        }
        match connect(&fd, &remote) {
            Ok(()) | Err(Errno::INPROGRESS | Errno::INTR) => Ok(fd),
            Err(errno) => Err(errno),
        }
    }

    /// The connection attempt has an outcome: what is it?
    pub(super) fn outcome(&mut self) -> Result<(), Errno> {
        let Some(fd) = &self.fd else { return Err(Errno::BADF) };
        sockopt::socket_error(fd)??;
        let peer = getpeername(fd)?;
        let local = getsockname(fd)?;
        // A port that nobody listens on, taken as source port, answers itself (simultaneous open).
        if peer.as_ref() == Some(&local) {
            return Err(Errno::CONNREFUSED);
        }
        self.local = to_std(local);
        Ok(())
    }
}

/// A non-blocking TCP socket of the family of `addr`.
pub(super) fn new_socket(addr: SocketAddr) -> Result<OwnedFd, Errno> {
    let family = if addr.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
    socket_with(family, SocketType::STREAM, flags, Some(ipproto::TCP))
}

pub(super) fn to_std(addr: SocketAddrAny) -> Option<SocketAddr> {
    SocketAddr::try_from(addr).ok()
}

fn unspecified(remote: SocketAddr, port: u16) -> SocketAddr {
    match remote {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, port).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, port).into(),
    }
}

/// Whether another source port may do.
fn is_about_the_port(errno: Errno) -> bool {
    matches!(errno, Errno::ADDRINUSE | Errno::ADDRNOTAVAIL | Errno::ACCESS | Errno::PERM)
}
