//! PDUs on their way out: headers owned here, data shown from where it lies.
//!
//! Invariant: a PDU in the ring never changes once it was shown, so what `poll_send` showed once it shows
//! again until it was taken. Its digests are made before: that of the header when it is pushed, that of the
//! data by [`TxRing::seal`], over the pages themselves.

use std::collections::VecDeque;

use netswap_net::SendVec;

use crate::digest::{self, Crc, DIGEST_LEN, Digests};
use crate::pdu::{BHS_LEN, Bhs, padding};

/// PDUs that may be on their way at once. Two 64 KiB writes fill a send buffer; the rest keeps small
/// PDUs flowing between two calls of the transport.
pub(crate) const RING: usize = 16;

/// A PDU: its header and a reference to its data.
#[derive(Clone, Debug)]
pub(crate) struct TxPdu<R> {
    pub(crate) bhs: Bhs,
    /// Bytes of `bhs` that are sent: all, unless a fault cuts it.
    pub(crate) bhs_len: u8,
    pub(crate) data: R,
    pub(crate) data_len: u32,
    /// Digests to be wrong, for a fault.
    pub(crate) bad: Digests,
    header_digest: Option<[u8; DIGEST_LEN]>,
    /// The data has a digest, which is yet to be made.
    unsealed: bool,
    /// Padding and digest behind the data.
    tail: [u8; 3 + DIGEST_LEN],
    tail_len: u8,
}

impl<R> TxPdu<R> {
    pub(crate) fn new(bhs: Bhs, data: R, data_len: u32) -> TxPdu<R> {
        TxPdu {
            bhs,
            bhs_len: BHS_LEN as u8,
            data,
            data_len,
            bad: Digests::default(),
            header_digest: None,
            unsealed: false,
            tail: [0; 3 + DIGEST_LEN],
            tail_len: 0,
        }
    }

    fn len(&self) -> usize {
        let header = usize::from(self.bhs_len) + self.header_digest.map_or(0, |_| DIGEST_LEN);
        header + self.data_len as usize + usize::from(self.tail_len)
    }
}

/// The PDUs being sent, in order.
#[derive(Debug)]
pub(crate) struct TxRing<R> {
    pdus: VecDeque<TxPdu<R>>,
    /// Bytes of the first PDU that were taken.
    sent: usize,
    /// Of PDUs that are pushed from now on.
    digests: Digests,
}

impl<R> TxRing<R> {
    pub(crate) fn new() -> TxRing<R> {
        TxRing { pdus: VecDeque::with_capacity(RING), sent: 0, digests: Digests::default() }
    }

    pub(crate) fn clear(&mut self) {
        self.pdus.clear();
        self.sent = 0;
        self.digests = Digests::default();
    }

    /// PDUs that are pushed from now on have these digests.
    pub(crate) fn set_digests(&mut self, digests: Digests) {
        self.digests = digests;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pdus.is_empty()
    }

    /// Whether a PDU is in the ring whose data is `like` this.
    pub(crate) fn any(&self, like: impl Fn(&R) -> bool) -> bool {
        self.pdus.iter().any(|pdu| like(&pdu.data))
    }

    pub(crate) fn free(&self) -> usize {
        RING - self.pdus.len()
    }

    /// Bytes that are not sent yet.
    pub(crate) fn bytes(&self) -> usize {
        self.pdus.iter().map(TxPdu::len).sum::<usize>() - self.sent
    }

    /// # Panics
    /// If the ring is full.
    pub(crate) fn push(&mut self, mut pdu: TxPdu<R>) {
        assert!(self.pdus.len() < RING, "the ring was asked for room before");
        // A header that a fault cuts has no digest: the stream is lost anyway.
        if self.digests.header && usize::from(pdu.bhs_len) == BHS_LEN {
            let mut digest = digest::of(&pdu.bhs);
            digest[0] ^= u8::from(pdu.bad.header);
            pdu.header_digest = Some(digest);
        }
        pdu.tail_len = padding(pdu.data_len as usize) as u8;
        if self.digests.data && pdu.data_len > 0 {
            pdu.unsealed = true;
            pdu.tail_len += DIGEST_LEN as u8;
        }
        self.pdus.push_back(pdu);
    }

    /// Makes the digests of data that were not made yet. `digest` takes the data of a PDU from a byte
    /// on, as far as it likes, and says how many bytes that were.
    pub(crate) fn seal(&mut self, digest: impl Fn(&TxPdu<R>, usize, &mut Crc) -> usize) {
        if !self.digests.data {
            return;
        }
        for pdu in self.pdus.iter_mut().rev().take_while(|pdu| pdu.unsealed || pdu.data_len == 0) {
            if !std::mem::take(&mut pdu.unsealed) {
                continue;
            }
            let (mut crc, mut from) = (Crc::new(), 0);
            while from < pdu.data_len as usize {
                let taken = digest(pdu, from, &mut crc);
                assert!(taken > 0, "a PDU has the data that its header says");
                from += taken;
            }
            let pad = usize::from(pdu.tail_len) - DIGEST_LEN;
            crc.update(&pdu.tail[..pad]);
            let mut digest = crc.finish();
            digest[0] ^= u8::from(pdu.bad.data);
            pdu.tail[pad..pad + DIGEST_LEN].copy_from_slice(&digest);
        }
    }

    /// Shows what is left to send. `slices` appends the data of a PDU from a byte on, as far as it
    /// fits, and says whether it did fit.
    pub(crate) fn show<'a>(
        &'a self,
        out: &mut SendVec<'a>,
        mut slices: impl FnMut(&'a TxPdu<R>, usize, &mut SendVec<'a>) -> bool,
    ) {
        let mut skip = self.sent;
        for pdu in &self.pdus {
            let (head, data) = (usize::from(pdu.bhs_len), pdu.data_len as usize);
            if skip < head && out.try_push(&pdu.bhs[skip..head]).is_err() {
                return;
            }
            let mut from = skip.saturating_sub(head);
            if let Some(digest) = &pdu.header_digest {
                if from < DIGEST_LEN && out.try_push(&digest[from..]).is_err() {
                    return;
                }
                from = from.saturating_sub(DIGEST_LEN);
            }
            if from < data && !slices(pdu, from, out) {
                return;
            }
            let tail_from = from.saturating_sub(data);
            let tail = &pdu.tail[..usize::from(pdu.tail_len)];
            if tail_from < tail.len() && out.try_push(&tail[tail_from..]).is_err() {
                return;
            }
            skip = 0;
        }
    }

    /// `n` bytes were taken; `done` gets every PDU that is wholly sent.
    ///
    /// # Panics
    /// If more was taken than was there.
    pub(crate) fn sent(&mut self, n: usize, mut done: impl FnMut(TxPdu<R>)) {
        self.sent += n;
        while let Some(first) = self.pdus.front() {
            let len = first.len();
            if self.sent < len {
                return;
            }
            self.sent -= len;
            if let Some(pdu) = self.pdus.pop_front() {
                done(pdu);
            }
        }
        assert!(self.sent == 0, "more was taken than was shown");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_piece_by_piece_is_header_data_and_padding() {
        let data = *b"hello";
        let mut ring = TxRing::new();
        ring.push(TxPdu::new([1; BHS_LEN], 0u8, 5));
        ring.push(TxPdu::new([2; BHS_LEN], 0u8, 0));
        let mut got = Vec::new();
        let mut finished = 0;
        while !ring.is_empty() {
            let mut out = SendVec::new();
            ring.show(&mut out, |_, from, out| out.try_push(&data[from..]).is_ok());
            let first = out[0][..out[0].len().min(7)].to_vec();
            drop(out);
            got.extend_from_slice(&first);
            ring.sent(first.len(), |_| finished += 1);
        }
        let mut want = vec![1; BHS_LEN];
        want.extend_from_slice(b"hello\0\0\0");
        want.extend_from_slice(&[2; BHS_LEN]);
        assert_eq!((got, finished), (want, 2));
    }
    #[test]
    fn digests_stand_behind_header_and_padding() {
        let data = *b"hello";
        for bad in [Digests::default(), Digests { header: true, data: true }] {
            let mut ring = TxRing::new();
            ring.push(TxPdu::new([1; BHS_LEN], 0u8, 0));
            ring.set_digests(Digests { header: true, data: true });
            ring.push(TxPdu { bad, ..TxPdu::new([2; BHS_LEN], 0u8, 5) });
            ring.push(TxPdu::new([3; BHS_LEN], 0u8, 0));
            ring.seal(|_, from, crc| crc.take(&[&data[from..=from]]));
            let mut want = vec![1; BHS_LEN];
            want.extend_from_slice(&[2; BHS_LEN]);
            let mut digest = digest::of(&[2; BHS_LEN]);
            digest[0] ^= u8::from(bad.header);
            want.extend_from_slice(&digest);
            want.extend_from_slice(b"hello\0\0\0");
            digest = digest::of(b"hello\0\0\0");
            digest[0] ^= u8::from(bad.data);
            want.extend_from_slice(&digest);
            want.extend_from_slice(&[3; BHS_LEN]);
            want.extend_from_slice(&digest::of(&[3; BHS_LEN]));
            let mut got = Vec::new();
            while !ring.is_empty() {
                let mut out = SendVec::new();
                ring.show(&mut out, |_, from, out| out.try_push(&data[from..]).is_ok());
                let first = out[0][..out[0].len().min(3)].to_vec();
                drop(out);
                got.extend_from_slice(&first);
                ring.sent(first.len(), drop);
            }
            assert_eq!(got, want);
        }
    }
}
