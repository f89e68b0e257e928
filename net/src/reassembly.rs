//! Putting IPv4 datagrams together from fragments (RFC 791 section 3.2, RFC 815), in pool memory.
//!
//! The number of contexts is fixed, and a datagram must fit one frame behind its headroom; larger ones
//! are dropped and counted. A fragment that repeats known bytes is ignored; one that overlaps known
//! bytes only in part, or contradicts the length, ends its datagram (the lesson of RFC 5722).
//! Incomplete datagrams are dropped after [`TIMEOUT`].
//!
//! Invariant: a bit of a context's map is set if and only if those 8 bytes have been copied.

use std::net::Ipv4Addr;

use netswap_reserve::{Frame, PAGE_SIZE, Span, Time};

use crate::headers::{IPV4_LEN, Ipv4Header};
use crate::packet::{HEADROOM, PacketBuf};
use crate::stats::DropReason;

/// How long a datagram may stay incomplete. RFC 1122 section 3.3.2 asks for 60 to 120 s, for routes
/// of another age; the kernel takes 30 s.
pub const TIMEOUT: Span = Span::from_secs(30);
/// Where a datagram's payload starts in its frame: the header is rebuilt in front of it.
const PAYLOAD: usize = HEADROOM + IPV4_LEN;
/// Bytes of payload that fit.
pub const PAYLOAD_MAX: usize = PAGE_SIZE - PAYLOAD;

#[derive(Debug)]
struct Context {
    key: (Ipv4Addr, Ipv4Addr, u16, u8),
    frame: Frame,
    /// One bit for 8 bytes of payload.
    have: [u64; PAGE_SIZE / 8 / 64],
    bytes: usize,
    total: Option<usize>,
    emergency: bool,
    deadline: Time,
}

/// A datagram put together.
#[derive(Debug)]
pub struct Assembled {
    /// The IP packet, its header rebuilt without options.
    pub packet: PacketBuf,
    /// Whether any of its fragments was an emergency packet: then the whole is treated as one.
    pub emergency: bool,
}

/// The datagrams being put together.
#[derive(Debug)]
pub struct Reassembly {
    contexts: Vec<Context>,
    max: usize,
}

impl Reassembly {
    /// Room for `contexts` datagrams at once.
    pub fn new(contexts: usize) -> Reassembly {
        Reassembly { contexts: Vec::with_capacity(contexts), max: contexts }
    }

    /// Datagrams incomplete now, each holding a frame.
    pub fn len(&self) -> usize {
        self.contexts.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.contexts.is_empty()
    }

    /// Takes a fragment: `packet` is the IP packet that `ip` was parsed from. A new datagram takes
    /// its frame from `alloc`.
    ///
    /// # Errors
    /// Why the fragment, and sometimes its datagram, was dropped.
    pub fn handle_fragment(
        &mut self,
        now: Time,
        ip: &Ipv4Header,
        packet: &[u8],
        emergency: bool,
        alloc: impl FnOnce() -> Option<Frame>,
    ) -> Result<Option<Assembled>, DropReason> {
        let payload = packet.get(ip.header_len..ip.total_len).ok_or(DropReason::Malformed)?;
        if payload.is_empty() || (ip.more_fragments && payload.len() % 8 != 0) {
            return Err(DropReason::Malformed);
        }
        let (start, end) = (ip.fragment_offset, ip.fragment_offset + payload.len());
        let key = (ip.src, ip.dst, ip.id, ip.protocol);
        let known = self.contexts.iter().position(|c| c.key == key);
        if end > PAYLOAD_MAX {
            if let Some(at) = known {
                self.contexts.swap_remove(at);
            }
            return Err(DropReason::ReassemblyTooLarge);
        }
        let at = match known {
            Some(at) => at,
            None if self.contexts.len() >= self.max => return Err(DropReason::ReassemblyFull),
            None => {
                let frame = alloc().ok_or(DropReason::ReassemblyNoBuffer)?;
                self.contexts.push(Context {
                    key,
                    frame,
                    have: [0; PAGE_SIZE / 8 / 64],
                    bytes: 0,
                    total: None,
                    emergency: false,
                    deadline: now + TIMEOUT,
                });
                self.contexts.len() - 1
            }
        };
        let context = &mut self.contexts[at];
        context.emergency |= emergency;
        if let Err(reason) = context.add(start, payload, ip.more_fragments) {
            self.contexts.swap_remove(at);
            return Err(reason);
        }
        if context.total != Some(context.bytes) {
            return Ok(None);
        }
        Ok(Some(self.contexts.swap_remove(at).finish(ip)))
    }

    /// Drops what has waited too long; returns how many.
    pub fn expire(&mut self, now: Time) -> u64 {
        let before = self.contexts.len();
        self.contexts.retain(|c| c.deadline > now);
        (before - self.contexts.len()) as u64
    }

    /// When [`Reassembly::expire`] has something to do.
    pub fn poll_deadline(&self) -> Option<Time> {
        self.contexts.iter().map(|c| c.deadline).min()
    }
}

impl Context {
    fn add(&mut self, start: usize, payload: &[u8], more: bool) -> Result<(), DropReason> {
        let end = start + payload.len();
        match self.total {
            Some(total) if end > total || (!more && end != total) => {
                return Err(DropReason::ReassemblyOverlap);
            }
            None if !more => {
                // Nothing may have been seen beyond the end that is now known.
                if self.any(end.div_ceil(8), PAGE_SIZE / 8) {
                    return Err(DropReason::ReassemblyOverlap);
                }
                self.total = Some(end);
            }
            _ => {}
        }
        let (first, last) = (start / 8, end.div_ceil(8));
        if self.any(first, last) {
            // Repeated bytes are normal; half known ones are not.
            return if self.all(first, last) { Ok(()) } else { Err(DropReason::ReassemblyOverlap) };
        }
        for bit in first..last {
            self.have[bit / 64] |= 1 << (bit % 64);
        }
        self.frame.bytes_mut()[PAYLOAD + start..PAYLOAD + end].copy_from_slice(payload);
        self.bytes += payload.len();
        Ok(())
    }

    fn has(&self, bit: usize) -> bool {
        self.have[bit / 64] & 1 << (bit % 64) != 0
    }

    fn any(&self, first: usize, last: usize) -> bool {
        (first..last).any(|bit| self.has(bit))
    }

    fn all(&self, first: usize, last: usize) -> bool {
        (first..last).all(|bit| self.has(bit))
    }

    fn finish(mut self, ip: &Ipv4Header) -> Assembled {
        let total_len = IPV4_LEN + self.bytes;
        let whole = Ipv4Header {
            header_len: IPV4_LEN,
            total_len,
            more_fragments: false,
            fragment_offset: 0,
            ..*ip
        };
        whole.emit(&mut self.frame.bytes_mut()[HEADROOM..PAYLOAD]);
        let packet = PacketBuf::from_frame(self.frame, HEADROOM, total_len);
        Assembled { packet, emergency: self.emergency }
    }
}

#[cfg(test)]
mod tests {
    use netswap_reserve::{Gfp, PagePool, PoolConfig};
    use proptest::prelude::*;

    use super::*;

    fn fragment(id: u16, offset: usize, data: &[u8], more: bool) -> (Ipv4Header, Vec<u8>) {
        let ip = Ipv4Header {
            src: Ipv4Addr::new(10, 0, 0, 3),
            dst: Ipv4Addr::new(10, 0, 0, 1),
            protocol: 17,
            header_len: IPV4_LEN,
            total_len: IPV4_LEN + data.len(),
            id,
            more_fragments: more,
            fragment_offset: offset,
        };
        let mut packet = vec![0; ip.total_len];
        ip.emit(&mut packet);
        packet[IPV4_LEN..].copy_from_slice(data);
        (ip, packet)
    }

    struct Bench {
        pool: PagePool,
        reassembly: Reassembly,
    }

    impl Bench {
        fn new(contexts: usize) -> Bench {
            let pool = PagePool::new(PoolConfig::new(128));
            Bench { pool, reassembly: Reassembly::new(contexts) }
        }

        fn add(
            &mut self,
            id: u16,
            offset: usize,
            data: &[u8],
            more: bool,
        ) -> Result<Option<Assembled>, DropReason> {
            let (ip, packet) = fragment(id, offset, data, more);
            let pool = &self.pool;
            let alloc = || pool.alloc(Gfp::ATOMIC).ok();
            self.reassembly.handle_fragment(Time::ZERO, &ip, &packet, false, alloc)
        }
    }

    #[test]
    fn contexts_are_bounded_and_time_out() {
        let mut bench = Bench::new(2);
        let free = bench.pool.free_frames();
        assert!(bench.add(1, 0, &[1; 8], true).unwrap().is_none());
        assert!(bench.add(2, 0, &[1; 8], true).unwrap().is_none());
        assert_eq!(bench.add(3, 0, &[1; 8], true).unwrap_err(), DropReason::ReassemblyFull);
        assert_eq!(bench.reassembly.poll_deadline(), Some(Time::ZERO + TIMEOUT));
        assert_eq!(bench.reassembly.expire(Time::ZERO + TIMEOUT), 2);
        assert_eq!(bench.pool.free_frames(), free);
    }

    #[test]
    fn repeats_are_ignored_and_partial_overlaps_end_the_datagram() {
        let mut bench = Bench::new(4);
        bench.add(1, 8, &[2; 16], true).unwrap();
        assert!(bench.add(1, 8, &[9; 16], true).unwrap().is_none());
        let whole = {
            bench.add(1, 0, &[1; 8], true).unwrap();
            bench.add(1, 24, &[3; 5], false).unwrap().unwrap()
        };
        let expect: Vec<u8> = [vec![1; 8], vec![2; 16], vec![3; 5]].concat();
        assert_eq!(&whole.packet.data()[IPV4_LEN..], &expect[..]);
        bench.add(2, 8, &[2; 16], true).unwrap();
        assert_eq!(bench.add(2, 0, &[1; 16], true).unwrap_err(), DropReason::ReassemblyOverlap);
        bench.add(3, 8, &[2; 16], false).unwrap();
        assert_eq!(bench.add(3, 24, &[1; 8], false).unwrap_err(), DropReason::ReassemblyOverlap);
        bench.add(4, 64, &[2; 16], true).unwrap();
        assert_eq!(bench.add(4, 0, &[1; 8], false).unwrap_err(), DropReason::ReassemblyOverlap);
        assert!(bench.reassembly.is_empty());
    }

    #[test]
    fn what_does_not_fit_a_frame_is_refused() {
        let mut bench = Bench::new(4);
        bench.add(1, 0, &[1; 1480], true).unwrap();
        let error = bench.add(1, 4016, &[1; 8], true).unwrap_err();
        assert_eq!(error, DropReason::ReassemblyTooLarge);
        assert!(bench.reassembly.is_empty());
        assert_eq!(bench.add(1, 8, &[], true).unwrap_err(), DropReason::Malformed);
        assert_eq!(bench.add(1, 8, &[1; 7], true).unwrap_err(), DropReason::Malformed);
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]
        #[test]
        fn any_order_of_fragments_gives_the_datagram(
            len in 9usize..PAYLOAD_MAX,
            piece in 1usize..100,
            order in any::<u64>(),
        ) {
            let data: Vec<u8> = (0..len).map(|i| (i * 31 % 251) as u8).collect();
            let mut parts: Vec<(usize, &[u8])> =
                data.chunks(piece * 8).enumerate().map(|(i, c)| (i * piece * 8, c)).collect();
            prop_assume!(parts.len() > 1);
            parts.sort_by_key(|(offset, _)| (*offset as u64 + 1).wrapping_mul(order | 1));
            let mut bench = Bench::new(1);
            let mut whole = None;
            for (offset, part) in parts {
                prop_assert!(whole.is_none());
                whole = bench.add(9, offset, part, offset + part.len() < len).unwrap();
            }
            let whole = whole.expect("complete");
            let ip = Ipv4Header::parse(whole.packet.data()).unwrap();
            prop_assert!(ip.checksum_ok(whole.packet.data()) && !ip.is_fragment());
            prop_assert_eq!(&whole.packet.data()[IPV4_LEN..], &data[..]);
        }
    }
}
