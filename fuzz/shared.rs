//! What the fuzz targets of all protocols share: how an input is read, how bytes go into a session and come
//! out, and how the everyday tests put the seeds through.

#![allow(dead_code, unreachable_pub)]

use std::path::Path;

use netswap_net::{SendVec, Session};
use netswap_reserve::Time;

/// Operations that are done of one input.
pub const OPERATIONS_MAX: usize = 256;

/// Reads operations and their operands; zeros behind the end.
pub struct Input<'a> {
    left: &'a [u8],
}

impl<'a> Input<'a> {
    pub fn new(bytes: &'a [u8]) -> Input<'a> {
        Input { left: bytes }
    }

    pub fn operation(&mut self) -> Option<u8> {
        let (first, rest) = self.left.split_first()?;
        self.left = rest;
        Some(*first)
    }

    pub fn byte(&mut self) -> u8 {
        self.operation().unwrap_or(0)
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// A length, and so many bytes.
    pub fn bytes(&mut self) -> &'a [u8] {
        let len = usize::from(self.word()).min(self.left.len());
        let (taken, rest) = self.left.split_at(len);
        self.left = rest;
        taken
    }

    /// `N` bytes.
    pub fn array<const N: usize>(&mut self) -> [u8; N] {
        std::array::from_fn(|_| self.byte())
    }
}

/// Gives `bytes` to a session, as far as it takes them; how many it took.
pub fn give(session: &mut impl Session, now: Time, bytes: &[u8]) -> usize {
    let mut given = 0;
    while given < bytes.len() {
        let room = session.recv_buffer();
        let n = room.len().min(bytes.len() - given);
        if n == 0 {
            break;
        }
        room[..n].copy_from_slice(&bytes[given..given + n]);
        given += n;
        session.handle_received(now, n);
    }
    given
}

/// All that a session has to send now.
pub fn take(session: &mut impl Session, now: Time) -> Vec<u8> {
    let mut bytes = Vec::new();
    loop {
        let mut shown = SendVec::new();
        session.poll_send(now, &mut shown);
        let n: usize = shown.iter().map(|slice| slice.len()).sum();
        if n == 0 {
            return bytes;
        }
        shown.iter().for_each(|slice| bytes.extend_from_slice(slice));
        drop(shown);
        session.handle_sent(now, n);
        assert!(bytes.len() < 64 << 20, "a session that never stops sending");
    }
}

/// Puts every seed of a target through `each`, and copies of it with a byte changed or cut short, spread over its
/// length. Half of the seeds at least must get where they are to get.
pub fn run_seeds(crate_folder: &str, target: &str, each: fn(&[u8]) -> bool) {
    let folder = Path::new(crate_folder).join("../fuzz/seeds").join(target);
    let (mut seeds, mut arrived) = (0, 0);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        seeds += 1;
        arrived += usize::from(each(&seed));
        for i in 0..40 {
            let at = i * seed.len() / 40;
            each(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 1 << (i % 8);
            each(&changed);
        }
    }
    assert!(seeds > 0 && 2 * arrived >= seeds, "{arrived} of {seeds} in {}", folder.display());
}
