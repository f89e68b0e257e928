//! One end of a byte stream as a state machine: what the storage clients and the embedded servers
//! are, and what a transport drives.
//!
//! A session never touches a socket. The transport, simulated or real, moves bytes between the
//! session and its socket by [`Session::recv_buffer`] and [`Session::poll_send`], and carries out what
//! [`Session::poll_action`] asks for. Bytes arrive *in place*: the session says where the next ones
//! belong (a header buffer, then a page of the pool), so that no copy is needed between socket and
//! page.
//!
//! # Order of calls
//! ```text
//!            handle_connected
//!   closed ------------------> open --- poll_send / handle_sent
//!     ^                         |   \-- recv_buffer / handle_received
//!     +-------------------------+
//!            handle_disconnected          poll_action, poll_deadline, handle_deadline: at any time
//! ```
//! After every call that hands something in, the transport asks `poll_action` and `poll_send` again.

use std::io::IoSliceMut;
use std::net::SocketAddr;

use arrayvec::ArrayVec;
use netswap_reserve::Time;

/// Slices that a session shows at most: a call of 64 pages, and what stands around them.
pub const SLICES_MAX: usize = 128;

/// Byte slices to send, in order.
pub type SendVec<'a> = ArrayVec<&'a [u8], SLICES_MAX>;

/// Where the next bytes of a stream belong, in order.
pub type RecvVec<'a> = ArrayVec<IoSliceMut<'a>, SLICES_MAX>;

/// What a session wants its transport to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Open a stream to `remote`, from the same local port as the last time if `same_port`.
    /// Answered by `handle_connected` or `handle_disconnected`.
    Connect {
        /// Where to.
        remote: SocketAddr,
        /// Whether the previous source port should be used again.
        same_port: bool,
    },
    /// Close the stream once all that is queued has been sent. Answered by `handle_disconnected`.
    Close,
    /// Reset the stream now. Answered by `handle_disconnected`.
    Abort,
}

/// Why a stream ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Disconnect {
    /// The peer closed it in order.
    #[error("closed by the peer")]
    ByPeer,
    /// The peer reset it, or, where the transport cannot tell, refused the connection.
    #[error("reset by the peer")]
    Reset,
    /// Nobody listens there.
    #[error("connection refused by the peer")]
    Refused,
    /// There is no way to the peer.
    #[error("the peer cannot be reached")]
    Unreachable,
    /// This machine could not open it: no descriptor, no memory, no port, or not allowed.
    #[error("this machine cannot open a connection")]
    Local,
    /// The peer did not answer in time.
    #[error("no answer from the peer")]
    TimedOut,
    /// This side closed or aborted it.
    #[error("closed by this side")]
    BySelf,
}

/// What a session waits for, as a transport may want to know that decides how often to look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Answers {
    /// Calls that were sent over this connection and are not answered yet.
    pub outstanding: u32,
    /// Answers so far, over all connections. Never falls.
    pub come: u64,
}

/// One end of a byte stream as a sans-IO state machine.
pub trait Session {
    /// The stream is open.
    fn handle_connected(&mut self, now: Time);

    /// The stream is gone. What was sent but not answered is for the session to repeat or give up.
    fn handle_disconnected(&mut self, now: Time, why: Disconnect);

    /// Where the next bytes of the stream belong. Empty means: take nothing from the stream now.
    fn recv_buffer(&mut self) -> &mut [u8];

    /// As [`Session::recv_buffer`], for a transport that fills several buffers at once: appends to `out`
    /// where the next bytes belong, in order. The first begins where `recv_buffer`'s does. A session
    /// that knows, or guesses, what comes next, such as the pages of a reply, saves a system call for each by
    /// showing them here.
    fn recv_buffers<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        let buffer = self.recv_buffer();
        if !buffer.is_empty() {
            // An empty vector has room for it.
            let _ = out.try_push(IoSliceMut::new(buffer));
        }
    }

    /// The first `n` bytes of what [`Session::recv_buffer`] or [`Session::recv_buffers`], whichever was
    /// asked last, has shown have been filled from the stream.
    ///
    /// # Panics
    /// If `n` is larger than what was shown.
    fn handle_received(&mut self, now: Time, n: usize);

    /// Appends what is to be sent next, in order, to `out`; appending nothing means there is nothing
    /// to send. The bytes stay the same until [`Session::handle_sent`] says how many were taken.
    fn poll_send<'a>(&'a mut self, now: Time, out: &mut SendVec<'a>);

    /// The transport has taken the first `n` bytes that [`Session::poll_send`] showed.
    ///
    /// # Panics
    /// If `n` is larger than what was shown.
    fn handle_sent(&mut self, now: Time, n: usize);

    /// The next thing the transport is to do, if any.
    fn poll_action(&mut self, now: Time) -> Option<Action>;

    /// What it waits for. A session that says nothing is given its bytes as soon as there are any.
    fn answers(&self) -> Answers {
        Answers::default()
    }

    /// When [`Session::handle_deadline`] is to be called at the latest.
    fn poll_deadline(&self) -> Option<Time>;

    /// The deadline of [`Session::poll_deadline`] has come. Harmless if it has not.
    fn handle_deadline(&mut self, now: Time);
}

/// A session behind a pointer, whatever it is: for drivers that take any.
impl<S: Session + ?Sized> Session for Box<S> {
    fn handle_connected(&mut self, now: Time) {
        (**self).handle_connected(now);
    }

    fn handle_disconnected(&mut self, now: Time, why: Disconnect) {
        (**self).handle_disconnected(now, why);
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        (**self).recv_buffer()
    }

    fn recv_buffers<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        (**self).recv_buffers(out);
    }

    fn handle_received(&mut self, now: Time, n: usize) {
        (**self).handle_received(now, n);
    }

    fn poll_send<'a>(&'a mut self, now: Time, out: &mut SendVec<'a>) {
        (**self).poll_send(now, out);
    }

    fn handle_sent(&mut self, now: Time, n: usize) {
        (**self).handle_sent(now, n);
    }

    fn poll_action(&mut self, now: Time) -> Option<Action> {
        (**self).poll_action(now)
    }

    fn answers(&self) -> Answers {
        (**self).answers()
    }

    fn poll_deadline(&self) -> Option<Time> {
        (**self).poll_deadline()
    }

    fn handle_deadline(&mut self, now: Time) {
        (**self).handle_deadline(now);
    }
}
