//! Packet buffers: a range of a pool frame.
//!
//! One frame holds one packet. Clones and splits share the frame, so the mark of an emergency packet,
//! which is the charge of its frame, cannot be lost on the way: it is a property of the memory, not
//! of the handle. The frame is freed, and its charge released, with the last handle.

use netswap_reserve::{Frame, PAGE_SIZE, PageRef};

/// Bytes kept free in front of a packet for headers of lower layers.
pub const HEADROOM: usize = 64;

/// A packet, or a part of one, in a frame of the pool.
///
/// ```
/// use netswap_net::PacketBuf;
/// use netswap_reserve::{Gfp, PagePool, PoolConfig};
///
/// let pool = PagePool::new(PoolConfig::new(64));
/// let mut frame = pool.alloc(Gfp::ATOMIC)?;
/// frame.bytes_mut()[64..69].copy_from_slice(b"hello");
/// let mut packet = PacketBuf::from_frame(frame, 64, 5);
/// let front = packet.split_to(2);
/// assert_eq!((front.data(), packet.data()), (&b"he"[..], &b"llo"[..]));
/// assert!(packet.data_mut().is_none(), "the frame is shared");
/// # Ok::<(), netswap_reserve::AllocError>(())
/// ```
#[derive(Clone, Debug)]
pub struct PacketBuf {
    page: PageRef,
    start: u16,
    len: u16,
}

impl PacketBuf {
    /// The `len` bytes from `start` of `frame`.
    ///
    /// # Panics
    /// If the range does not lie in a frame.
    pub fn from_frame(frame: Frame, start: usize, len: usize) -> PacketBuf {
        assert!(start <= PAGE_SIZE && len <= PAGE_SIZE - start, "a packet lies in one frame");
        PacketBuf { page: frame.share(), start: start as u16, len: len as u16 }
    }

    /// The bytes.
    pub fn data(&self) -> &[u8] {
        let start = usize::from(self.start);
        &self.page.bytes()[start..start + usize::from(self.len)]
    }

    /// The bytes to be written, if this is the only handle of the frame.
    pub fn data_mut(&mut self) -> Option<&mut [u8]> {
        let start = usize::from(self.start);
        let end = start + usize::from(self.len);
        self.page.bytes_mut().map(|bytes| &mut bytes[start..end])
    }

    /// Length in bytes.
    pub fn len(&self) -> usize {
        usize::from(self.len)
    }

    /// Whether no byte is left.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Whether the frame is charged to a reserve.
    pub fn is_emergency(&self) -> bool {
        self.page.charged_to().is_some()
    }

    /// Bytes free in front.
    pub fn headroom(&self) -> usize {
        usize::from(self.start)
    }

    /// The frame itself, if this is its only handle.
    ///
    /// # Errors
    /// Hands the packet back when there are others.
    #[inline]
    pub fn into_frame(self) -> Result<Frame, PacketBuf> {
        let PacketBuf { page, start, len } = self;
        page.try_unshare().map_err(|page| PacketBuf { page, start, len })
    }

    /// Splits off the first `n` bytes; `self` keeps the rest. Both share the frame.
    ///
    /// # Panics
    /// If there are fewer.
    pub fn split_to(&mut self, n: usize) -> PacketBuf {
        assert!(n <= self.len(), "split beyond the packet");
        let front = PacketBuf { page: self.page.clone(), start: self.start, len: n as u16 };
        self.trim_front(n);
        front
    }

    /// Drops the first `n` bytes (all, if there are fewer).
    pub fn trim_front(&mut self, n: usize) {
        let n = n.min(self.len()) as u16;
        self.start += n;
        self.len -= n;
    }

    /// Drops what is beyond the first `n` bytes.
    pub fn truncate(&mut self, n: usize) {
        self.len = self.len.min(n.min(PAGE_SIZE) as u16);
    }

    /// Grows the packet by `n` bytes at the front and returns all of it; `None`, with nothing
    /// changed, if there is no room or the frame is shared.
    pub fn push_front(&mut self, n: usize) -> Option<&mut [u8]> {
        if n > self.headroom() || self.page.bytes_mut().is_none() {
            return None;
        }
        self.start -= n as u16;
        self.len += n as u16;
        self.data_mut()
    }
}

#[cfg(test)]
mod tests {
    use netswap_reserve::{Gfp, PagePool, PoolConfig};

    use super::*;

    fn packet() -> (PagePool, PacketBuf) {
        let pool = PagePool::new(PoolConfig::new(64));
        let mut frame = pool.alloc(Gfp::KERNEL).unwrap();
        for (i, b) in frame.bytes_mut().iter_mut().enumerate() {
            *b = i as u8;
        }
        (pool, PacketBuf::from_frame(frame, 64, 100))
    }

    #[test]
    fn ranges_follow_trims_splits_and_pushes() {
        let (_pool, mut packet) = packet();
        packet.trim_front(6);
        packet.truncate(50);
        assert_eq!((packet.data()[0], packet.len(), packet.headroom()), (70, 50, 70));
        assert_eq!(packet.push_front(2).unwrap()[0], 68);
        let front = packet.split_to(10);
        assert_eq!(
            (front.data()[0], front.len(), packet.data()[0], packet.len()),
            (68, 10, 78, 42)
        );
        assert!(packet.push_front(1).is_none(), "a shared frame is not written");
        packet.trim_front(1000);
        assert!(packet.is_empty());
    }

    #[test]
    fn the_frame_lives_as_long_as_any_handle() {
        let (pool, mut packet) = packet();
        let free = pool.free_frames();
        let front = packet.split_to(10);
        let again = front.clone();
        drop(packet);
        drop(front);
        assert_eq!(pool.free_frames(), free);
        assert_eq!(again.data()[0], 64);
        drop(again);
        assert_eq!(pool.free_frames(), free + 1);
    }

    #[test]
    #[should_panic(expected = "a packet lies in one frame")]
    fn a_range_beyond_the_frame_is_refused() {
        let pool = PagePool::new(PoolConfig::new(64));
        PacketBuf::from_frame(pool.alloc(Gfp::KERNEL).unwrap(), 4000, 97);
    }
}
