//! Streams as their sessions see them: driven, told what happened, fed and drained.

use netswap_reserve::Time;
use smoltcp::time::Duration;
use smoltcp::wire::IpAddress;

use super::{Phase, Stack, StreamId, StreamInfo};
use crate::device::Device;
use crate::phy::SEGMENT_HEAD;
use crate::session::{Disconnect, SendVec, Session};

impl<'b, D: Device> Stack<'b, D> {
    /// Lets a stream wait for peers on `port`. It returns to that whenever a connection has ended.
    /// Several streams may listen on one port, for as many connections.
    pub fn listen(&mut self, id: StreamId, port: u16) {
        let timeout = self.config.keep_alive * u64::from(self.config.timer_scale);
        let timeout = Duration::from_micros(timeout.as_nanos() / 1000);
        let stream = &mut self.streams[id.index()];
        stream.listen = Some(port);
        stream.set_keep_alive(timeout);
        if !stream.socket().is_open() {
            let _ = stream.socket_mut().listen(port);
            stream.phase = Phase::Listening;
        }
        self.sync(id.0);
    }

    /// Forgets a stream's connection without a word to the peer, as a host does that restarts. The
    /// session is told at the next [`Stack::drive`] that this side ended it.
    pub fn reset_stream(&mut self, id: StreamId) {
        let stream = &mut self.streams[id.index()];
        stream.forget();
        self.link.last_sent[id.index()] = [0; SEGMENT_HEAD];
        stream.forgotten = match stream.phase {
            Phase::Open | Phase::Connecting | Phase::Closing => Some(Disconnect::BySelf),
            _ => stream.forgotten,
        };
        stream.phase = Phase::Closed;
        stream.give_up_at = Time::MAX;
        stream.ready = true;
        if let Some(port) = stream.listen {
            self.listen(id, port);
        }
        self.sync(id.0);
    }

    /// Whether something happened to a stream since it was last driven.
    pub fn is_ready(&self, id: StreamId) -> bool {
        self.streams[id.index()].ready
    }

    /// What a stream is doing.
    pub fn stream_info(&self, id: StreamId) -> StreamInfo {
        let stream = &self.streams[id.index()];
        let socket = stream.socket();
        let remote = socket.remote_endpoint().map(|e| {
            let IpAddress::Ipv4(addr) = e.addr;
            (addr, e.port)
        });
        StreamInfo {
            phase: stream.phase,
            tagged: stream.tagged,
            remote,
            local_port: socket.local_endpoint().map_or(0, |e| e.port),
            unacknowledged: socket.send_queue(),
            unread: socket.recv_queue(),
        }
    }

    /// The sequence number after the last segment that a stream sent, and the number it acknowledged
    /// then; `None` before the first. For tests and traces.
    pub fn stream_sequence(&self, id: StreamId) -> Option<(u32, u32)> {
        let head = self.link.last_sent.get(id.index()).filter(|head| head[0] != 0)?;
        let word = |at| u32::from_be_bytes([head[at], head[at + 1], head[at + 2], head[at + 3]]);
        Some((word(24), word(28)))
    }

    /// Whether no stream has bytes that its peer has not acknowledged or its session not taken, and no
    /// packet waits anywhere in the stack.
    pub fn is_drained(&self) -> bool {
        self.udp.held() == 0
            && self.reassembly.is_empty()
            && self.link.neighbours.waiting() == 0
            && self.streams.iter().all(|s| {
                let socket = s.socket();
                socket.send_queue() == 0 && socket.recv_queue() == 0
            })
    }

    /// Runs a stream's session: tells it what happened, moves bytes both ways, does what it asks for,
    /// sends. To be called when [`Stack::is_ready`] says so, when the session's own deadline has come,
    /// and after anything else was handed to the session.
    pub fn drive<S: Session + ?Sized>(&mut self, now: Time, id: StreamId, session: &mut S) {
        let index = id.0;
        self.streams[id.index()].ready = false;
        let mut anything = false;
        if let Some(why) = self.streams[id.index()].forgotten.take() {
            session.handle_disconnected(now, why);
        }
        // Each round lets what the session just did have its effect; a session that never rests
        // goes on at the next call.
        for _ in 0..64 {
            let mut moved = self.settle(now, index, session);
            if session.poll_deadline().is_some_and(|at| at <= now) {
                session.handle_deadline(now);
            }
            while let Some(action) = session.poll_action(now) {
                moved = true;
                if !self.carry_out(now, index, action, session) {
                    break;
                }
            }
            moved |= self.pump_in(now, index, session);
            moved |= self.pump_out(now, index, session);
            if !moved {
                break;
            }
            anything = true;
        }
        let stream = &mut self.streams[id.index()];
        if stream.state_moved() {
            self.sync(index);
            self.streams[id.index()].ready = false;
        }
        let stream = &self.streams[id.index()];
        if anything || stream.dirty || stream.poll_at <= now {
            self.egress(now, index);
        }
    }

    /// Moves received bytes to where the session wants them.
    fn pump_in<S: Session + ?Sized>(&mut self, now: Time, index: u16, session: &mut S) -> bool {
        let stream = &mut self.streams[usize::from(index)];
        if !matches!(stream.phase, Phase::Open | Phase::Closing) {
            return false;
        }
        let mut moved = false;
        let socket = stream.socket_mut();
        while socket.can_recv() {
            let buffer = session.recv_buffer();
            if buffer.is_empty() {
                break;
            }
            let n = socket.recv_slice(buffer).unwrap_or(0);
            if n == 0 {
                break;
            }
            moved = true;
            session.handle_received(now, n);
        }
        moved
    }

    /// Queues what the session has to send, as far as there is room.
    fn pump_out<S: Session + ?Sized>(&mut self, now: Time, index: u16, session: &mut S) -> bool {
        let stream = &mut self.streams[usize::from(index)];
        if stream.phase != Phase::Open {
            return false;
        }
        let mut moved = false;
        let socket = stream.socket_mut();
        while socket.can_send() {
            let mut slices = SendVec::new();
            session.poll_send(now, &mut slices);
            let (mut taken, mut shown) = (0, 0);
            for slice in &slices {
                shown += slice.len();
                taken += socket.send_slice(slice).unwrap_or(0);
                if taken < shown {
                    break;
                }
            }
            drop(slices);
            if taken == 0 {
                break;
            }
            moved = true;
            session.handle_sent(now, taken);
            if taken < shown {
                break;
            }
        }
        moved
    }
}
