//! Untagged datagram sockets.

use super::{Stack, UdpId};
use crate::device::Device;
use crate::table::{Entry, Key};
use crate::udp::Datagram;

impl<'b, D: Device> Stack<'b, D> {
    /// Opens an untagged datagram socket. To be called at start: its queue is made here.
    ///
    /// # Panics
    /// If the port is taken or the table of sockets full.
    pub fn udp_bind(&mut self, port: u16) -> UdpId {
        let key = Key::Udp { port };
        assert!(self.link.filter.table.find(key).is_none(), "UDP port {port} is taken");
        let index = self.udp.bind(port) as u16;
        let entry = Entry { index, tagged: false };
        self.link.filter.table.insert(key, entry).expect("the table of sockets has room");
        UdpId(index)
    }

    /// Closes a datagram socket and frees what it holds.
    pub fn udp_unbind(&mut self, id: UdpId) {
        if let Some(port) = self.udp.unbind(usize::from(id.0)) {
            self.link.filter.table.remove(Key::Udp { port });
        }
    }

    /// The next datagram of a socket.
    pub fn udp_recv(&mut self, id: UdpId) -> Option<Datagram> {
        self.udp.pop(usize::from(id.0))
    }

    /// Datagrams that wait at a socket, each holding a frame.
    pub fn udp_len(&self, id: UdpId) -> usize {
        self.udp.len(usize::from(id.0))
    }

    /// Datagrams that one socket may hold.
    pub fn udp_socket_frames_max(&self) -> usize {
        self.udp.per_socket()
    }

    /// Frames that all datagram sockets hold.
    pub fn udp_held(&self) -> usize {
        self.udp.held()
    }

    /// Each datagram socket with its port and the frames it holds.
    pub fn udp_holders(&self) -> impl Iterator<Item = (UdpId, u16, usize)> + '_ {
        self.udp.holders().map(|(index, port, held)| (UdpId(index as u16), port, held))
    }
}
