//! What the transport has done so far.

use std::ops::AddAssign;

/// Counts of one connection slot over all its connections, or of all of them together.
///
/// "Copied" means copied in user space, by the transport, on the way between the kernel and the
/// session's own buffers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnStats {
    /// Bytes that the kernel took from slices that sessions showed.
    pub bytes_sent: u64,
    /// Bytes that the kernel wrote to where sessions wanted them.
    pub bytes_received: u64,
    /// Bytes that passed through a buffer of the transport's own instead: those that came after
    /// the session had closed the stream, and were thrown away. No others exist.
    pub bytes_copied: u64,
    /// Calls of `sendmsg`, futile ones included.
    pub send_calls: u64,
    /// Calls of `readv`, futile ones included.
    pub recv_calls: u64,
    /// `sendmsg` took less than was shown: the peer, or the network, is slower than the session.
    pub short_sends: u64,
    /// `sendmsg` failed for want of kernel memory, and was tried again later.
    pub send_no_memory: u64,
    /// Connections opened to a peer.
    pub connects: u64,
    /// Attempts to connect that failed; each address of a host counts.
    pub connect_failures: u64,
    /// Connections taken from a peer.
    pub accepts: u64,
    /// Connections that ended, whoever ended them.
    pub disconnects: u64,
    /// Reconnects that had to take another source port than before.
    pub port_changes: u64,
    /// Connections that were to have a privileged source port and could not.
    pub unprivileged: u64,
}

impl AddAssign for ConnStats {
    fn add_assign(&mut self, other: ConnStats) {
        self.bytes_sent += other.bytes_sent;
        self.bytes_received += other.bytes_received;
        self.bytes_copied += other.bytes_copied;
        self.send_calls += other.send_calls;
        self.recv_calls += other.recv_calls;
        self.short_sends += other.short_sends;
        self.send_no_memory += other.send_no_memory;
        self.connects += other.connects;
        self.connect_failures += other.connect_failures;
        self.accepts += other.accepts;
        self.disconnects += other.disconnects;
        self.port_changes += other.port_changes;
        self.unprivileged += other.unprivileged;
    }
}

/// Counts of a whole event loop.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct KernelStats {
    /// All connections together.
    pub conns: ConnStats,
    /// Calls of `epoll_wait`.
    pub wait_calls: u64,
    /// Rests before one, so that it found several answers.
    pub rests: u64,
    /// Events it gave.
    pub events: u64,
    /// Wake-ups from other threads that were seen. Several between two waits are one.
    pub wakes: u64,
    /// `accept` failed for want of descriptors or memory, and was tried again later.
    pub accept_failures: u64,
}

impl KernelStats {
    /// System calls that move bytes or wait. Opening and closing are not counted.
    pub fn calls(&self) -> u64 {
        self.wait_calls + self.rests + self.conns.send_calls + self.conns.recv_calls
    }
}
