//! The duplicate request cache (RFC 1813 section 4.5): a repeated change is answered, not executed.
//!
//! It is kept for each connection, and through reconnects of it. An entry is found by xid and a hash of
//! the call's header and arguments, so another client's call that has the same xid is not taken for it.

/// Longest reply of a change: CREATE with a handle and attributes takes 24 + 4 + 72 + 88 + 92.
const REPLY_BYTES: usize = 320;

#[derive(Clone)]
struct Entry {
    xid: u32,
    hash: u64,
    len: usize,
    bytes: [u8; REPLY_BYTES],
}

/// Replies of the last changes, the oldest replaced first.
pub(super) struct ReplyCache {
    entries: Box<[Entry]>,
    next: usize,
}

impl ReplyCache {
    pub(super) fn new(entries: usize) -> ReplyCache {
        let entry = Entry { xid: 0, hash: 0, len: 0, bytes: [0; REPLY_BYTES] };
        ReplyCache { entries: vec![entry; entries].into(), next: 0 }
    }

    pub(super) fn clear(&mut self) {
        self.entries.iter_mut().for_each(|entry| entry.len = 0);
    }

    pub(super) fn find(&self, xid: u32, hash: u64) -> Option<&[u8]> {
        self.entries
            .iter()
            .find(|entry| entry.len > 0 && entry.xid == xid && entry.hash == hash)
            .map(|entry| &entry.bytes[..entry.len])
    }

    /// Remembers a reply. One that is too long is not.
    pub(super) fn remember(&mut self, xid: u32, hash: u64, reply: &[u8]) {
        let next = self.next;
        let Some(entry) = self.entries.get_mut(next) else { return };
        let Some(bytes) = entry.bytes.get_mut(..reply.len()) else { return };
        bytes.copy_from_slice(reply);
        (entry.xid, entry.hash, entry.len) = (xid, hash, reply.len());
        self.next = (next + 1) % self.entries.len();
    }
}

/// FNV-1a over a call up to its data.
pub(super) fn hash(call: &[u8]) -> u64 {
    call.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_reply_is_forgotten_first_and_the_arguments_count() {
        let mut cache = ReplyCache::new(2);
        cache.remember(1, 10, b"one");
        cache.remember(2, 20, b"two");
        assert_eq!(cache.find(1, 10), Some(&b"one"[..]));
        assert_eq!(cache.find(1, 11), None);
        cache.remember(3, 30, b"three");
        assert_eq!(cache.find(1, 10), None);
        assert_eq!(cache.find(2, 20), Some(&b"two"[..]));
        cache.clear();
        assert_eq!(cache.find(2, 20), None);
    }
}
