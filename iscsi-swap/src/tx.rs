//! PDUs on their way out: headers owned here, data shown from where it lies.
//!
//! Invariant: a PDU in the ring never changes, so what `poll_send` showed once it shows again until
//! it was taken.

use std::collections::VecDeque;

use netswap_net::SendVec;

use crate::pdu::{BHS_LEN, Bhs, padding};

/// PDUs that may be on their way at once. Two 64 KiB writes fill a send buffer; the rest keeps small
/// PDUs flowing between two calls of the transport.
pub(crate) const RING: usize = 16;

static ZEROS: [u8; 4] = [0; 4];

/// A PDU: its header and a reference to its data.
#[derive(Clone, Debug)]
pub(crate) struct TxPdu<R> {
    pub(crate) bhs: Bhs,
    /// Bytes of `bhs` that are sent: all, unless a fault cuts it.
    pub(crate) bhs_len: u8,
    pub(crate) data: R,
    pub(crate) data_len: u32,
}

impl<R> TxPdu<R> {
    pub(crate) fn new(bhs: Bhs, data: R, data_len: u32) -> TxPdu<R> {
        TxPdu { bhs, bhs_len: BHS_LEN as u8, data, data_len }
    }

    fn len(&self) -> usize {
        let data = self.data_len as usize;
        usize::from(self.bhs_len) + data + padding(data)
    }
}

/// The PDUs being sent, in order.
#[derive(Debug)]
pub(crate) struct TxRing<R> {
    pdus: VecDeque<TxPdu<R>>,
    /// Bytes of the first PDU that were taken.
    sent: usize,
}

impl<R> TxRing<R> {
    pub(crate) fn new() -> TxRing<R> {
        TxRing { pdus: VecDeque::with_capacity(RING), sent: 0 }
    }

    pub(crate) fn clear(&mut self) {
        self.pdus.clear();
        self.sent = 0;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.pdus.is_empty()
    }

    pub(crate) fn free(&self) -> usize {
        RING - self.pdus.len()
    }

    /// # Panics
    /// If the ring is full.
    pub(crate) fn push(&mut self, pdu: TxPdu<R>) {
        assert!(self.pdus.len() < RING, "the ring was asked for room before");
        self.pdus.push_back(pdu);
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
            let from = skip.saturating_sub(head);
            if from < data && !slices(pdu, from, out) {
                return;
            }
            let pad_from = from.saturating_sub(data);
            let pad = padding(data);
            if pad_from < pad && out.try_push(&ZEROS[..pad - pad_from]).is_err() {
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
}
