//! The table of sockets, kept in line with the states of the streams.

use super::Stack;
use crate::device::Device;
use crate::table::{Entry, Key};

impl<'b, D: Device> Stack<'b, D> {
    /// Brings the table in line with the state of a stream's socket.
    pub(super) fn sync(&mut self, index: u16) {
        let stream = &mut self.streams[usize::from(index)];
        stream.ready = true;
        if stream.key() != stream.registered {
            self.unregister(index);
            self.register(index);
        }
    }

    pub(super) fn register(&mut self, index: u16) {
        let stream = &self.streams[usize::from(index)];
        let (key, tagged) = (stream.key(), stream.tagged);
        let Some(key) = key else { return };
        let filter = &mut self.link.filter;
        match key {
            Key::TcpListen { .. } => {
                let head = filter.table.find(key).map(|entry| entry.index);
                self.streams[usize::from(index)].next_listener = head;
                if tagged {
                    filter.count_tagged_listener(true);
                }
            }
            Key::Tcp { remote, .. } if tagged => {
                filter.add_peer(remote);
                if let Some(hop) = self.link.next_hop(remote).filter(|hop| *hop != remote) {
                    self.link.filter.add_peer(hop);
                }
            }
            _ => {}
        }
        // A full table means that packets for this stream find nobody: its peer is reset, as it
        // would be by a host without the socket.
        let _ = self.link.filter.table.insert(key, Entry { index, tagged });
        self.streams[usize::from(index)].registered = Some(key);
    }

    pub(super) fn unregister(&mut self, index: u16) {
        let Some(key) = self.streams[usize::from(index)].registered.take() else { return };
        let tagged = self.streams[usize::from(index)].tagged;
        match key {
            Key::TcpListen { .. } => {
                self.unlink_listener(key, index);
                if tagged {
                    self.link.filter.count_tagged_listener(false);
                }
                return;
            }
            Key::Tcp { remote, .. } if tagged => {
                self.link.filter.remove_peer(remote);
                if let Some(hop) = self.link.next_hop(remote).filter(|hop| *hop != remote) {
                    self.link.filter.remove_peer(hop);
                }
            }
            _ => {}
        }
        if self.link.filter.table.find(key).is_some_and(|entry| entry.index == index) {
            self.link.filter.table.remove(key);
        }
    }

    /// Takes a stream out of the list of those that listen on one port.
    fn unlink_listener(&mut self, key: Key, index: u16) {
        let next = self.streams[usize::from(index)].next_listener.take();
        let Some(head) = self.link.filter.table.find(key) else { return };
        if head.index == index {
            match next {
                Some(next) => {
                    let tagged = self.streams[usize::from(next)].tagged;
                    let _ = self.link.filter.table.insert(key, Entry { index: next, tagged });
                }
                None => {
                    self.link.filter.table.remove(key);
                }
            }
            return;
        }
        let mut at = head.index;
        while let Some(other) = self.streams[usize::from(at)].next_listener {
            if other == index {
                self.streams[usize::from(at)].next_listener = next;
                return;
            }
            at = other;
        }
    }
}
