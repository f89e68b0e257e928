//! How sockets are set up.

use std::time::Duration;

use netswap_reserve::{Span, socket_memory};
use rustix::fd::BorrowedFd;
use rustix::io::Errno;
use rustix::net::sockopt;

use super::protect::Protection;

/// How an idle peer is asked whether it is still there.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct KeepAlive {
    /// Silence before the first question, at least a second.
    pub idle: Span,
    /// Between questions, at least a second.
    pub interval: Span,
    /// Questions without an answer after which the peer is given up.
    pub count: u32,
}

impl Default for KeepAlive {
    /// A peer is given up after 60 s without an answer: long enough for a server that restarts, as the
    /// client must not take such a one for gone. Picked by eye.
    fn default() -> KeepAlive {
        KeepAlive { idle: Span::from_secs(30), interval: Span::from_secs(10), count: 3 }
    }
}

/// What is asked for of each socket. `TCP_NODELAY` is always on: Nagle waits for an answer before it
/// sends a short segment, and with one page in flight that halves the rate.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SocketOptions {
    /// Keep-alive; `None` switches it off.
    pub keep_alive: Option<KeepAlive>,
    /// How long sent data may stay unacknowledged, or a peer without room for it, before the connection
    /// is given up (`TCP_USER_TIMEOUT`); `None` leaves it to the system, which takes about 15 minutes.
    pub user_timeout: Option<Span>,
    /// `SO_SNDBUF` in bytes, which the system doubles; `None` lets it adapt.
    pub send_buffer: Option<usize>,
    /// `SO_RCVBUF` in bytes, likewise.
    pub recv_buffer: Option<usize>,
    /// Bytes of kernel memory to be kept for the socket (`SO_RESERVE_MEM`); 0 asks for none. What
    /// became of it is in [`super::ConnInfo::socket_memory`].
    pub reserve_memory: usize,
}

impl Default for SocketOptions {
    fn default() -> SocketOptions {
        SocketOptions {
            keep_alive: Some(KeepAlive::default()),
            user_timeout: Some(Span::from_secs(60)),
            send_buffer: None,
            recv_buffer: None,
            reserve_memory: 0,
        }
    }
}

impl SocketOptions {
    /// Sizes that must be set before a connection exists, as they decide its window scale.
    pub(super) fn apply_sizes(&self, fd: BorrowedFd<'_>) -> Result<(), Errno> {
        if let Some(bytes) = self.send_buffer {
            sockopt::set_socket_send_buffer_size(fd, bytes)?;
        }
        if let Some(bytes) = self.recv_buffer {
            sockopt::set_socket_recv_buffer_size(fd, bytes)?;
        }
        Ok(())
    }

    /// All the rest; says what became of the memory.
    pub(super) fn apply(&self, fd: BorrowedFd<'_>) -> Result<Protection, Errno> {
        sockopt::set_tcp_nodelay(fd, true)?;
        sockopt::set_socket_keepalive(fd, self.keep_alive.is_some())?;
        if let Some(keep_alive) = self.keep_alive {
            sockopt::set_tcp_keepidle(fd, at_least_a_second(keep_alive.idle))?;
            sockopt::set_tcp_keepintvl(fd, at_least_a_second(keep_alive.interval))?;
            sockopt::set_tcp_keepcnt(fd, keep_alive.count.clamp(1, 127))?;
        }
        if let Some(timeout) = self.user_timeout {
            let ms = timeout.as_nanos().div_ceil(1_000_000).clamp(1, i32::MAX as u64);
            sockopt::set_tcp_user_timeout(fd, ms as u32)?;
        }
        Ok(match self.reserve_memory {
            0 => Protection::NotAsked,
            bytes => Protection::judge(socket_memory::reserve(fd, bytes)),
        })
    }
}

/// The bounds of `TCP_KEEPIDLE` and `TCP_KEEPINTVL`.
fn at_least_a_second(span: Span) -> Duration {
    Duration::from_secs(span.as_nanos().div_ceil(1_000_000_000).clamp(1, 32_767))
}

/// Which source ports a connection may have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SourcePort {
    /// Any.
    #[default]
    Any,
    /// One from 665 to 1023, as the kernel's own NFS client takes: servers whose exports are `secure`
    /// want that. It needs `CAP_NET_BIND_SERVICE`; without, any port is taken, and counted.
    Privileged,
}
