//! Opening, closing and losing connections.

use std::net::{SocketAddr, SocketAddrV4};

use netswap_reserve::Time;
use rand_xoshiro::rand_core::Rng;
use smoltcp::socket::tcp::{Socket, State};
use smoltcp::wire::{IpAddress, IpEndpoint};

use super::{Phase, Stack};
use crate::device::Device;
use crate::session::{Action, Disconnect, Session};
use crate::table::Key;

/// The first port given to connections (RFC 6335 section 6).
const EPHEMERAL_FIRST: u16 = 49_152;

impl<'b, D: Device> Stack<'b, D> {
    /// Tells the session what became of its connection.
    pub(super) fn settle<S: Session + ?Sized>(
        &mut self,
        now: Time,
        index: u16,
        session: &mut S,
    ) -> bool {
        let stream = &mut self.streams[usize::from(index)];
        let state = stream.socket().state();
        let open = matches!(state, State::Established | State::CloseWait);
        let gone = if stream.timed_out { Disconnect::TimedOut } else { Disconnect::Reset };
        match stream.phase {
            Phase::Listening | Phase::Connecting if open => {
                stream.phase = Phase::Open;
                stream.give_up_at = Time::MAX;
                session.handle_connected(now);
            }
            Phase::Connecting if state == State::Closed => {
                self.end(index);
                session.handle_disconnected(now, gone);
            }
            Phase::Connecting if now >= stream.give_up_at => {
                stream.socket_mut().abort();
                self.farewell(now, index);
                self.end(index);
                session.handle_disconnected(now, Disconnect::TimedOut);
            }
            Phase::Open if state == State::Closed => {
                self.farewell(now, index);
                self.end(index);
                session.handle_disconnected(now, gone);
            }
            Phase::Open if state == State::CloseWait && stream.socket().recv_queue() == 0 => {
                stream.socket_mut().close();
                stream.phase = Phase::Draining;
                stream.give_up_at = now + self.config.connect_timeout;
                session.handle_disconnected(now, Disconnect::ByPeer);
            }
            Phase::Closing if matches!(state, State::Closed | State::TimeWait) => {
                self.end(index);
                session.handle_disconnected(now, Disconnect::BySelf);
            }
            Phase::Closing if now >= stream.give_up_at => {
                stream.socket_mut().abort();
                self.farewell(now, index);
                self.end(index);
                session.handle_disconnected(now, Disconnect::BySelf);
            }
            Phase::Draining if state == State::Closed => self.end(index),
            Phase::Draining if now >= stream.give_up_at => {
                stream.socket_mut().abort();
                self.farewell(now, index);
                self.end(index);
            }
            // A listener whose half-open connection timed out.
            Phase::Listening if state == State::Closed => {
                self.farewell(now, index);
                self.end(index);
            }
            _ => return false,
        }
        true
    }

    /// Sends the reset of a connection that was aborted, before its socket is used again.
    fn farewell(&mut self, now: Time, index: u16) {
        self.streams[usize::from(index)].blocked_until = Time::ZERO;
        self.egress(now, index);
    }

    /// The connection is gone: back to listening, or to nothing.
    fn end(&mut self, index: u16) {
        let stream = &mut self.streams[usize::from(index)];
        stream.give_up_at = Time::MAX;
        stream.timed_out = false;
        stream.phase = Phase::Closed;
        if let Some(port) = stream.listen {
            // TIME-WAIT is cut short: a peer that comes back from the same port is answered as new.
            if stream.socket_mut().listen(port).is_ok() {
                stream.phase = Phase::Listening;
            }
        }
        self.sync(index);
    }

    /// Does what the session asks for; `false` if it has been answered already.
    pub(super) fn carry_out<S: Session + ?Sized>(
        &mut self,
        now: Time,
        index: u16,
        action: Action,
        session: &mut S,
    ) -> bool {
        match action {
            Action::Connect { remote, same_port } => {
                if !self.connect(now, index, remote, same_port) {
                    self.end(index);
                    session.handle_disconnected(now, Disconnect::Reset);
                    return false;
                }
            }
            Action::Close => {
                let timeout = self.config.connect_timeout;
                let stream = &mut self.streams[usize::from(index)];
                if matches!(stream.phase, Phase::Open | Phase::Connecting) {
                    stream.socket_mut().close();
                    stream.phase = Phase::Closing;
                    stream.give_up_at = now + timeout;
                }
            }
            Action::Abort => {
                let stream = &mut self.streams[usize::from(index)];
                if matches!(stream.phase, Phase::Open | Phase::Connecting | Phase::Closing) {
                    stream.socket_mut().abort();
                    self.farewell(now, index);
                    self.end(index);
                    session.handle_disconnected(now, Disconnect::BySelf);
                    return false;
                }
            }
        }
        true
    }

    /// Opens a connection on a stream's own socket, whose buffers are used again.
    fn connect(&mut self, now: Time, index: u16, remote: SocketAddr, same_port: bool) -> bool {
        let SocketAddr::V4(remote) = remote else { return false };
        if self.streams[usize::from(index)].socket().is_open() {
            self.streams[usize::from(index)].socket_mut().abort();
            self.farewell(now, index);
            // If the card was full the reset is not out; the peer will get it as an answer.
            self.streams[usize::from(index)].forget();
        }
        let last = self.streams[usize::from(index)].port;
        let port = if same_port && last != 0 { last } else { self.free_port(remote, index) };
        let stream = &mut self.streams[usize::from(index)];
        let socket = stream.set.get_mut::<Socket<'_>>(stream.handle);
        let to = IpEndpoint::new(IpAddress::Ipv4(*remote.ip()), remote.port());
        if socket.connect(self.iface.context(), to, port).is_err() {
            return false;
        }
        stream.port = port;
        stream.timed_out = false;
        stream.phase = Phase::Connecting;
        stream.give_up_at = now + self.config.connect_timeout;
        stream.blocked_until = Time::ZERO;
        // The filter must know the stream before its first packet is answered.
        self.sync(index);
        true
    }

    /// A source port that no other stream uses towards `remote`.
    fn free_port(&mut self, remote: SocketAddrV4, index: u16) -> u16 {
        let span = u32::from(u16::MAX - EPHEMERAL_FIRST) + 1;
        let start = self.rng.next_u32() % span;
        let last = self.streams[usize::from(index)].port;
        let ports = (0..span).map(|i| EPHEMERAL_FIRST + ((start + i) % span) as u16);
        let (addr, remote_port) = (*remote.ip(), remote.port());
        let table = &self.link.filter.table;
        let mut free = ports.filter(|&port| {
            port != last && table.find(Key::Tcp { remote: addr, remote_port, port }).is_none()
        });
        free.next().unwrap_or(EPHEMERAL_FIRST)
    }
}
