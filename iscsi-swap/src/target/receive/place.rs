//! Where the bytes of a stream go: in place, or ahead of their header's reading and then copied.
//!
//! Invariant: bytes that came ahead find their places in order, before any other byte is taken.

use std::io::IoSliceMut;
use std::ops::Range;

use netswap_net::RecvVec;
use netswap_reserve::Time;
use netswap_swap::Disk;

use super::{Dest, Part, SINK, TargetRx};
use crate::digest::Crc;
use crate::target::IscsiTarget;
use crate::target::conn::{Conn, Phase};

/// What comes behind a header is taken with it as far as this goes, and copied to its place: some headers of
/// reads, or two or three writes of a page, for one call of the transport. Picked by eye.
pub(super) const AHEAD: usize = 16384;

impl<D: Disk> IscsiTarget<D> {
    /// Where the next bytes of the stream belong; nowhere while some that have come are not at
    /// their place.
    pub(in crate::target) fn recv_buffer(&mut self, index: usize) -> &mut [u8] {
        match self.conns[index].rx.staged.is_empty() {
            true => self.place(index),
            false => &mut [],
        }
    }

    /// As [`IscsiTarget::recv_buffer`]; behind a header there is room for what follows it.
    pub(in crate::target) fn recv_buffers<'a>(&'a mut self, index: usize, out: &mut RecvVec<'a>) {
        if !self.takes_ahead(index) {
            let buffer = self.recv_buffer(index);
            if !buffer.is_empty() {
                // An empty vector has room for it.
                let _ = out.try_push(IoSliceMut::new(buffer));
            }
            return;
        }
        let TargetRx { bhs, at, ahead, .. } = &mut self.conns[index].rx;
        let _ = out.try_push(IoSliceMut::new(&mut bhs[*at..]));
        let _ = out.try_push(IoSliceMut::new(&mut ahead[..]));
    }

    fn takes_ahead(&self, index: usize) -> bool {
        let Conn { phase, rx, .. } = &self.conns[index];
        rx.part == Part::Header && *phase == Phase::Full && rx.staged.is_empty()
    }

    /// The first `n` bytes of what was shown have been filled.
    pub(in crate::target) fn take(&mut self, now: Time, index: usize, n: usize) {
        let first = n.min(self.recv_buffer(index).len());
        let ahead = if self.takes_ahead(index) { AHEAD } else { 0 };
        assert!(n - first <= ahead, "more was received than there was room for");
        self.conns[index].rx.staged = 0..n - first;
        self.received(now, index, first);
        self.place_staged(now, index);
    }

    /// Brings what has come behind a header to its place, as far as there is one.
    pub(super) fn place_staged(&mut self, now: Time, index: usize) {
        if self.conns[index].rx.staged.is_empty() {
            return;
        }
        let ahead = std::mem::take(&mut self.conns[index].rx.ahead);
        loop {
            let Range { start, end } = self.conns[index].rx.staged;
            let place = self.place(index);
            let n = place.len().min(end - start);
            if n == 0 {
                break;
            }
            place[..n].copy_from_slice(&ahead[start..start + n]);
            self.conns[index].rx.staged = start + n..end;
            self.received(now, index, n);
        }
        self.conns[index].rx.ahead = ahead;
    }

    fn place(&mut self, index: usize) -> &mut [u8] {
        let transfer_max = self.config.transfer_max as usize;
        let per_conn = self.config.slots();
        let conn = &mut self.conns[index];
        match conn.phase {
            Phase::Full => {}
            // The text that is being sent must not change under the transport.
            Phase::Login if conn.login_reply.is_none() && conn.tx.is_empty() => {}
            _ => return &mut [],
        }
        let at = conn.rx.at;
        match conn.rx.part {
            Part::Header => &mut conn.rx.bhs[at..],
            Part::Held => &mut [],
            Part::HeaderDigest | Part::DataDigest => &mut conn.rx.digest[at..],
            Part::Ahs { len } | Part::Padding { len } => &mut conn.rx.sink[..len - at],
            Part::Data { dest, len } => match dest {
                Dest::Sink => &mut conn.rx.sink[..(len - at).min(SINK)],
                Dest::Text => match conn.login.room(len) {
                    Some(room) => &mut room[at..],
                    None => &mut [],
                },
                Dest::Slot { slot, offset } => {
                    let start = (index * per_conn + slot) * transfer_max + offset;
                    &mut self.run.bytes_mut()[start + at..start + len]
                }
            },
        }
    }

    pub(in crate::target) fn received(&mut self, now: Time, index: usize, n: usize) {
        self.digest_arrived(index, n);
        self.conns[index].rx.at += n;
        if let Err(breach) = self.advance(now, index) {
            self.breach(index, breach);
        }
    }

    /// `n` more bytes have arrived in the buffer: they go into the digest.
    fn digest_arrived(&mut self, index: usize, n: usize) {
        let per_conn = self.config.slots();
        let transfer_max = self.config.transfer_max as usize;
        let Conn { rx, login, .. } = &mut self.conns[index];
        let bytes = match rx.part {
            Part::Header if rx.digests.header => &rx.bhs[rx.at..rx.at + n],
            Part::Ahs { .. } if rx.digests.header => &rx.sink[..n],
            Part::Padding { .. } if rx.digests.data => &rx.sink[..n],
            Part::Data { dest, len } if rx.digests.data => match dest {
                Dest::Sink => &rx.sink[..n],
                Dest::Text => match login.room(len) {
                    Some(room) => &room[rx.at..rx.at + n],
                    None => return,
                },
                Dest::Slot { slot, offset } => {
                    let start = (index * per_conn + slot) * transfer_max + offset + rx.at;
                    &self.run.bytes_mut()[start..start + n]
                }
            },
            _ => return,
        };
        if rx.part == Part::Header && rx.at == 0 {
            rx.crc = Crc::new();
        }
        rx.crc.update(bytes);
    }
}
