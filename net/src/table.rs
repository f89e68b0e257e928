//! The table of sockets: open addressing at a fixed size, so that a packet's socket is found in a
//! probe or two however many there are, and nothing is allocated after start.

use std::net::Ipv4Addr;

/// What a packet is matched by.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Key {
    /// A TCP connection.
    Tcp {
        /// The peer's address.
        remote: Ipv4Addr,
        /// The peer's port.
        remote_port: u16,
        /// The port here.
        port: u16,
    },
    /// A TCP port that is listened on.
    TcpListen {
        /// The port here.
        port: u16,
    },
    /// A UDP port.
    Udp {
        /// The port here.
        port: u16,
    },
}

impl Key {
    fn pack(self) -> (u64, u8) {
        match self {
            Key::Tcp { remote, remote_port, port } => {
                let addr = u64::from(u32::from(remote));
                (addr << 32 | u64::from(remote_port) << 16 | u64::from(port), 1)
            }
            Key::TcpListen { port } => (u64::from(port), 2),
            Key::Udp { port } => (u64::from(port), 3),
        }
    }
}

/// What a packet's socket is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Which socket of its kind.
    pub index: u16,
    /// Whether it is tagged.
    pub tagged: bool,
}

#[derive(Clone, Copy, Debug)]
struct Slot {
    key: u64,
    /// 0 if empty.
    kind: u8,
    entry: Entry,
}

const EMPTY: Slot = Slot { key: 0, kind: 0, entry: Entry { index: 0, tagged: false } };

/// The table is full.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the table of sockets is full at {capacity}")]
pub struct TableFull {
    /// Sockets it was made for.
    pub capacity: usize,
}

/// A map from [`Key`] to [`Entry`].
#[derive(Debug)]
pub struct SocketTable {
    slots: Box<[Slot]>,
    shift: u32,
    len: usize,
    capacity: usize,
}

impl SocketTable {
    /// A table for `capacity` sockets, at most half full then.
    pub fn new(capacity: usize) -> SocketTable {
        let slots = (capacity.max(4) * 2).next_power_of_two();
        SocketTable {
            slots: vec![EMPTY; slots].into_boxed_slice(),
            shift: 64 - slots.trailing_zeros(),
            len: 0,
            capacity,
        }
    }

    /// Sockets in it.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    #[inline]
    fn home(&self, key: u64, kind: u8) -> usize {
        // Fibonacci hashing: the top bits of a product with 2^64 / phi.
        let mixed = (key ^ u64::from(kind) << 56).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        (mixed >> self.shift) as usize
    }

    /// The socket for `key`.
    #[inline]
    pub fn find(&self, key: Key) -> Option<Entry> {
        let (key, kind) = key.pack();
        self.position(key, kind).ok().map(|at| self.slots[at].entry)
    }

    /// Where `key` is, or where it would go.
    #[inline]
    fn position(&self, key: u64, kind: u8) -> Result<usize, usize> {
        let mask = self.slots.len() - 1;
        let mut at = self.home(key, kind);
        // Ends, as the table is at most half full.
        loop {
            let slot = &self.slots[at & mask];
            if slot.kind == 0 {
                return Err(at & mask);
            }
            if slot.key == key && slot.kind == kind {
                return Ok(at & mask);
            }
            at += 1;
        }
    }

    /// Adds a socket, or replaces what `key` stood for.
    ///
    /// # Errors
    /// If the table is full.
    pub fn insert(&mut self, key: Key, entry: Entry) -> Result<(), TableFull> {
        let (key, kind) = key.pack();
        match self.position(key, kind) {
            Ok(at) => self.slots[at].entry = entry,
            Err(_) if self.len >= self.capacity => {
                return Err(TableFull { capacity: self.capacity });
            }
            Err(at) => {
                self.slots[at] = Slot { key, kind, entry };
                self.len += 1;
            }
        }
        Ok(())
    }

    /// Removes a socket; `None` if there was none.
    pub fn remove(&mut self, key: Key) -> Option<Entry> {
        let (key, kind) = key.pack();
        let at = self.position(key, kind).ok()?;
        let mask = self.slots.len() - 1;
        let entry = self.slots[at].entry;
        // Backward shift: what was pushed past the hole moves into it, so no tombstones are needed.
        let (mut hole, mut next) = (at, (at + 1) & mask);
        while self.slots[next].kind != 0 {
            let home = self.home(self.slots[next].key, self.slots[next].kind) & mask;
            if (next.wrapping_sub(home) & mask) >= (next.wrapping_sub(hole) & mask) {
                self.slots[hole] = self.slots[next];
                hole = next;
            }
            next = (next + 1) & mask;
        }
        self.slots[hole] = EMPTY;
        self.len -= 1;
        Some(entry)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    fn key(kind: u8, n: u16) -> Key {
        match kind % 3 {
            0 => Key::Tcp { remote: Ipv4Addr::new(10, 0, 0, 1), remote_port: n, port: 80 },
            1 => Key::TcpListen { port: n },
            _ => Key::Udp { port: n },
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn agrees_with_a_map(ops in proptest::collection::vec((any::<bool>(), 0u8..3, 0u16..24), 0..400)) {
            let mut table = SocketTable::new(32);
            let mut model = BTreeMap::new();
            for (i, (add, kind, n)) in ops.into_iter().enumerate() {
                let entry = Entry { index: i as u16, tagged: i % 2 == 0 };
                if add {
                    let fits = model.contains_key(&(kind, n)) || model.len() < 32;
                    prop_assert_eq!(table.insert(key(kind, n), entry).is_ok(), fits);
                    if fits {
                        model.insert((kind, n), entry);
                    }
                } else {
                    prop_assert_eq!(table.remove(key(kind, n)), model.remove(&(kind, n)));
                }
                prop_assert_eq!(table.len(), model.len());
                for kind in 0..3 {
                    for n in 0..24 {
                        prop_assert_eq!(table.find(key(kind, n)), model.get(&(kind, n)).copied());
                    }
                }
            }
        }
    }
}
