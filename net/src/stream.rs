//! One TCP stream: a smoltcp socket in a set of its own, and what its session has been told.
//!
//! A set of one socket per stream is what makes finding a packet's socket and polling only what is
//! due cheap: smoltcp walks a whole set for each packet.
//!
//! ```text
//!              Connect            established
//!   Closed ------------> Connecting ----------> Open ---- Close ----> Closing
//!     ^  ^                   |                   |                       |
//!     |  +-- refused/late ---+                   | reset, closed by peer |
//!     +------------------------------------------+-----------------------+
//!   A stream with a port to listen on returns to Listening instead of Closed.
//! ```

use std::net::Ipv4Addr;

use netswap_reserve::{Span, Time};
use smoltcp::iface::{SocketHandle, SocketSet};
use smoltcp::socket::tcp::{Socket, SocketBuffer, State};
use smoltcp::time::Duration;
use smoltcp::wire::IpAddress;

use crate::session::Disconnect;
use crate::table::Key;

/// Names a stream of a stack.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct StreamId(pub(crate) u16);

impl StreamId {
    /// Its number, counted from 0 in the order of adding.
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// What a stream's session has been told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// No connection, none wanted.
    Closed,
    /// Waits for a peer.
    Listening,
    /// Asked for, not yet answered.
    Connecting,
    /// Open.
    Open,
    /// The session has closed it; what is queued is being sent.
    Closing,
    /// The peer has closed it and the session knows; our end is being shut.
    Draining,
}

pub(crate) struct Stream<'b> {
    pub(crate) set: SocketSet<'b>,
    pub(crate) handle: SocketHandle,
    pub(crate) tagged: bool,
    pub(crate) phase: Phase,
    pub(crate) listen: Option<u16>,
    /// The source port of the last connection; 0 before the first.
    pub(crate) port: u16,
    /// As what it is in the table of sockets.
    pub(crate) registered: Option<Key>,
    /// Other streams that listen on the same port.
    pub(crate) next_listener: Option<u16>,
    /// Has something to send, or may have.
    pub(crate) dirty: bool,
    /// Something arrived or changed since the session was last driven.
    pub(crate) ready: bool,
    /// When smoltcp wants to be polled.
    pub(crate) poll_at: Time,
    /// No sending before this: no packet buffer could be had.
    pub(crate) blocked_until: Time,
    /// When what is being waited for in this phase is given up.
    pub(crate) give_up_at: Time,
    /// The connection was forgotten by [`crate::Stack::reset_stream`]; the session is still to be told.
    pub(crate) forgotten: Option<Disconnect>,
    /// smoltcp itself gave the connection up.
    pub(crate) timed_out: bool,
    /// No challenge is sent before this.
    pub(crate) challenge_at: Time,
    /// How often an idle peer is asked for a sign of life, in smoltcp's time.
    keep_alive: Option<Duration>,
    watched: bool,
    last_state: State,
}

/// How soon a peer is asked for a sign of life while data is in flight and no timer runs for it, in
/// smoltcp's time: a little longer than a peer's gap between challenges.
const NUDGE: Duration = Duration::from_millis(1_100);

impl<'b> Stream<'b> {
    pub(crate) fn new(rx: &'b mut [u8], tx: &'b mut [u8], tagged: bool, ack_delay: Span) -> Self {
        let mut socket = Socket::new(SocketBuffer::new(rx), SocketBuffer::new(tx));
        // Nagle waits for an answer before it sends a short segment: with one page in flight that
        // halves the rate.
        socket.set_nagle_enabled(false);
        let delay = Duration::from_micros(ack_delay.as_nanos() / 1000);
        socket.set_ack_delay((ack_delay > Span::ZERO).then_some(delay));
        let mut set = SocketSet::new(Vec::with_capacity(1));
        let handle = set.add(socket);
        Stream {
            set,
            handle,
            tagged,
            phase: Phase::Closed,
            listen: None,
            port: 0,
            registered: None,
            next_listener: None,
            dirty: false,
            ready: false,
            poll_at: Time::MAX,
            blocked_until: Time::ZERO,
            give_up_at: Time::MAX,
            forgotten: None,
            timed_out: false,
            challenge_at: Time::ZERO,
            keep_alive: None,
            watched: false,
            last_state: State::Closed,
        }
    }

    pub(crate) fn socket(&self) -> &Socket<'b> {
        self.set.get(self.handle)
    }

    pub(crate) fn socket_mut(&mut self) -> &mut Socket<'b> {
        self.set.get_mut(self.handle)
    }

    /// Asks an idle peer for a sign of life three times within `timeout` (in smoltcp's time), and gives
    /// it up after that.
    pub(crate) fn set_keep_alive(&mut self, timeout: Duration) {
        self.keep_alive = Some(timeout / 3);
        let keep_alive = self.keep_alive;
        self.socket_mut().set_keep_alive(keep_alive);
        self.socket_mut().set_timeout(Some(timeout));
    }

    /// Sees to it that data in flight gets going again if smoltcp has lost its retransmission timer.
    /// To be called whenever there may be something to send.
    ///
    /// smoltcp loses it when a closed window opens again; and its fast retransmit may send more than the
    /// window allows, after which the peer takes none of our acknowledgements, as they lie beyond its
    /// window. Both ends may then wait for ever. Keep-alives, which smoltcp sends only while no other
    /// timer runs, draw acknowledgements from the peer, and three of these make a fast retransmit,
    /// which begins where the peer takes it.
    pub(crate) fn watch(&mut self) {
        let in_flight = self.socket().send_queue() > 0;
        if in_flight != self.watched {
            self.watched = in_flight;
            let keep_alive = if in_flight { Some(NUDGE) } else { self.keep_alive };
            self.socket_mut().set_keep_alive(keep_alive);
        }
    }

    /// Whether the socket's state is another than at the last call.
    pub(crate) fn state_moved(&mut self) -> bool {
        let state = self.socket().state();
        std::mem::replace(&mut self.last_state, state) != state
    }

    /// As what this stream is to be found by packets now.
    pub(crate) fn key(&self) -> Option<Key> {
        let socket = self.socket();
        match socket.state() {
            State::Closed => None,
            State::Listen => Some(Key::TcpListen { port: socket.listen_endpoint().port }),
            _ => {
                let (local, remote) = (socket.local_endpoint()?, socket.remote_endpoint()?);
                let IpAddress::Ipv4(addr) = remote.addr;
                Some(Key::Tcp { remote: addr, remote_port: remote.port, port: local.port })
            }
        }
    }

    /// Whether the connection is past its handshake, and not yet gone.
    pub(crate) fn is_synchronized(&self) -> bool {
        !matches!(
            self.socket().state(),
            State::Closed | State::Listen | State::SynSent | State::SynReceived
        )
    }

    /// Forgets the connection without telling the peer.
    pub(crate) fn forget(&mut self) {
        let socket = self.socket_mut();
        socket.abort();
        // Listening clears all that the socket knew, the peer included; closing then sends nothing.
        let _ = socket.listen(1);
        socket.close();
    }
}

/// What a stream is doing, for people to read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct StreamInfo {
    /// What its session has been told.
    pub phase: Phase,
    /// Whether it is tagged.
    pub tagged: bool,
    /// The peer, if there is one.
    pub remote: Option<(Ipv4Addr, u16)>,
    /// The port here; 0 if there is none.
    pub local_port: u16,
    /// Bytes queued, sent or not, that the peer has not acknowledged.
    pub unacknowledged: usize,
    /// Bytes received that the session has not taken.
    pub unread: usize,
}
