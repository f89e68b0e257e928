//! WRITEs that were taken, and are carried out long afterwards: what a server does whose thread hangs
//! between reading a call and executing it. The client has repeated the call by then, it was carried out
//! and answered, and the slot may hold newer data, which the old call overwrites. Seen with a real server
//! when the repetition came from another source port.
//!
//! A restart forgets them.

use netswap_reserve::{PAGE_SIZE, Time};
use netswap_swap::Disk;

use super::NfsServer;
use crate::proto::FileHandle;

/// A WRITE that is put aside; its data lies in the buffer of its place.
#[derive(Clone, Copy)]
pub(super) struct Held {
    due: Time,
    file: FileHandle,
    offset: u64,
    len: usize,
}

impl<D: Disk> NfsServer<D> {
    /// Puts the next WRITE aside, without an answer, and carries it out at `due`. Needs room in
    /// [`NfsServerConfig::held`](super::NfsServerConfig).
    pub fn hold_next_write(&mut self, due: Time) {
        self.hold_next = Some(due);
    }

    /// Puts a WRITE aside if it is to be and there is room. `data` is where its bytes are.
    pub(super) fn hold(
        &mut self,
        file: FileHandle,
        offset: u64,
        data: std::ops::Range<usize>,
    ) -> bool {
        let by_chance = super::faults::happens(&mut self.rng, self.config.faults.held_ppm);
        let due = by_chance.then(|| self.now + self.config.faults.held_for);
        let Some(due) = self.hold_next.take().or(due) else { return false };
        let Some(place) = self.held.iter().position(Option::is_none) else { return false };
        let Some(bytes) = &mut self.held_bytes else { return false };
        let len = data.len().min(self.config.wtmax as usize);
        let at = place * self.config.undo_frames() * PAGE_SIZE;
        let from = &self.records.bytes_mut()[data.start..data.start + len];
        bytes.bytes_mut()[at..at + len].copy_from_slice(from);
        self.held[place] = Some(Held { due, file, offset, len });
        self.counts.held += 1;
        true
    }

    /// When the next of them is due.
    pub(super) fn held_deadline(&self) -> Option<Time> {
        self.held.iter().flatten().map(|held| held.due).min()
    }

    /// Carries out those that are due at `now`; by [`Time::MAX`] all of them.
    pub fn carry_out_held(&mut self, now: Time) {
        for place in 0..self.held.len() {
            let Some(held) = self.held[place].filter(|held| held.due <= now) else { continue };
            self.held[place] = None;
            let Ok(super::exec::Object::File(i)) = self.object(&held.file) else { continue };
            let at = place * self.config.undo_frames() * PAGE_SIZE;
            if let Some(bytes) = &mut self.held_bytes {
                let data = &bytes.bytes_mut()[at..at + held.len];
                self.counts.held_done +=
                    u64::from(self.files[i].disk.write_at(held.offset, data).is_ok());
            }
        }
    }
}
