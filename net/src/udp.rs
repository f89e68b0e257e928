//! Untagged datagram sockets: queues that hold the packets' frames until they are read.
//!
//! Each socket's queue is bounded in bytes, counting what a packet really costs (one frame, the
//! kernel's `truesize`), and all queues together in frames. What is over a bound is dropped, and the
//! reason counted by the stack.

use std::collections::VecDeque;
use std::net::SocketAddrV4;

use netswap_reserve::{PAGE_SIZE, Time};

use crate::packet::PacketBuf;
use crate::stats::DropReason;

/// A datagram received. It holds its frame until it is dropped.
#[derive(Debug)]
pub struct Datagram {
    /// Who sent it.
    pub from: SocketAddrV4,
    /// When it was received.
    pub received: Time,
    /// The payload.
    pub payload: PacketBuf,
}

#[derive(Debug)]
struct UdpSocket {
    port: u16,
    queue: VecDeque<Datagram>,
}

/// All datagram sockets of a host.
#[derive(Debug)]
pub struct UdpSockets {
    sockets: Vec<Option<UdpSocket>>,
    per_socket: usize,
    host_max: usize,
    held: usize,
}

impl UdpSockets {
    /// Queues of `bytes_max` a socket and `host_frames_max` frames in all.
    pub fn new(bytes_max: usize, host_frames_max: usize) -> UdpSockets {
        UdpSockets {
            sockets: Vec::new(),
            per_socket: bytes_max / PAGE_SIZE,
            host_max: host_frames_max,
            held: 0,
        }
    }

    /// Datagrams that one socket may hold.
    pub fn per_socket(&self) -> usize {
        self.per_socket
    }

    /// Frames held by all queues.
    pub fn held(&self) -> usize {
        self.held
    }

    /// Adds a socket; returns its index.
    pub fn bind(&mut self, port: u16) -> usize {
        let socket = UdpSocket { port, queue: VecDeque::with_capacity(self.per_socket) };
        match self.sockets.iter().position(Option::is_none) {
            Some(at) => {
                self.sockets[at] = Some(socket);
                at
            }
            None => {
                self.sockets.push(Some(socket));
                self.sockets.len() - 1
            }
        }
    }

    /// Removes a socket with all that it holds; returns its port.
    pub fn unbind(&mut self, index: usize) -> Option<u16> {
        let socket = self.sockets.get_mut(index)?.take()?;
        self.held -= socket.queue.len();
        Some(socket.port)
    }

    /// Datagrams that wait at a socket, each holding a frame.
    pub fn len(&self, index: usize) -> usize {
        self.get(index).map_or(0, |s| s.queue.len())
    }

    /// Whether no datagram waits at a socket.
    pub fn is_empty(&self, index: usize) -> bool {
        self.len(index) == 0
    }

    fn get(&self, index: usize) -> Option<&UdpSocket> {
        self.sockets.get(index)?.as_ref()
    }

    /// Queues a datagram.
    ///
    /// # Errors
    /// The bound it would break; the datagram is gone then.
    pub fn push(&mut self, index: usize, datagram: Datagram) -> Result<(), DropReason> {
        let socket = self.sockets.get_mut(index).and_then(Option::as_mut);
        let socket = socket.ok_or(DropReason::NoSocket)?;
        if socket.queue.len() >= self.per_socket {
            return Err(DropReason::UdpSocketFull);
        }
        if self.held >= self.host_max {
            return Err(DropReason::UdpHostFull);
        }
        socket.queue.push_back(datagram);
        self.held += 1;
        Ok(())
    }

    /// The oldest datagram of a socket.
    pub fn pop(&mut self, index: usize) -> Option<Datagram> {
        let datagram = self.sockets.get_mut(index)?.as_mut()?.queue.pop_front()?;
        self.held -= 1;
        Some(datagram)
    }

    /// Each socket's index, port and frames held: for the explanation of a stuck machine.
    pub fn holders(&self) -> impl Iterator<Item = (usize, u16, usize)> + '_ {
        let open = self.sockets.iter().enumerate();
        open.filter_map(|(i, s)| s.as_ref().map(|s| (i, s.port, s.queue.len())))
    }
}
