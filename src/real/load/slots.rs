//! Which slot is next, and what each holds. One word a slot, all of them made at start.

use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

/// Slots of an area that a load uses, in blocks of so many; what is left at the end is a block that is shorter.
pub(super) struct SlotTable {
    first: u32,
    /// Of each slot the number of its last write, 0 for none; in the top bit whether it is quarantined, and in the one
    /// below whether that write may not be what is there.
    words: Box<[u32]>,
    block: u32,
    blocks: u32,
    /// The next block of a sequential load, and how far it is from one to the next.
    cursor: u32,
    stride: u32,
    rng: Xoshiro256PlusPlus,
    quarantined: u32,
}

const QUARANTINED: u32 = 1 << 31;
const UNKNOWN: u32 = 1 << 30;
const GENERATION: u32 = UNKNOWN - 1;

impl SlotTable {
    /// `slots` slots from `first` on in blocks of `block`, of which every `stride`th is next.
    pub(super) fn new(first: u32, block: u32, slots: u32, stride: u32, seed: u64) -> SlotTable {
        SlotTable {
            first,
            words: vec![0; slots as usize].into(),
            block,
            blocks: slots.div_ceil(block),
            cursor: 0,
            stride,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            quarantined: 0,
        }
    }

    /// The first slot of a block drawn at random.
    pub(super) fn random(&mut self) -> u32 {
        // Multiply and shift (Lemire): without a division, and biased by less than 2^-32 of a block.
        let drawn = self.rng.next_u64() >> 32;
        let at = (drawn * u64::from(self.blocks)) >> 32;
        self.block_at(at as u32)
    }

    /// One of two, evenly.
    pub(super) fn coin(&mut self) -> bool {
        self.rng.next_u64() >> 63 == 1
    }

    /// The first slot of the next block in order; behind the last it goes on at the beginning, by what it
    /// went too far.
    pub(super) fn next(&mut self) -> u32 {
        let at = self.cursor;
        self.cursor = ((u64::from(at) + u64::from(self.stride)) % u64::from(self.blocks)) as u32;
        self.block_at(at)
    }

    /// The first slot of block `at`.
    pub(super) fn block_at(&self, at: u32) -> u32 {
        self.first + at * self.block
    }

    /// Slots of the block that begins at `slot`: the last may be short.
    pub(super) fn block_len(&self, slot: u32) -> u32 {
        let left = self.words.len() as u32 - (slot - self.first);
        self.block.min(left)
    }

    fn word(&mut self, slot: u32) -> &mut u32 {
        &mut self.words[(slot - self.first) as usize]
    }

    /// The number of the last write of `slot`; `None` if none is known.
    pub(super) fn generation(&mut self, slot: u32) -> Option<u32> {
        let word = *self.word(slot);
        let generation = word & GENERATION;
        (generation != 0 && word & UNKNOWN == 0).then_some(generation)
    }

    /// Counts a write of `slot`; its number.
    pub(super) fn write(&mut self, slot: u32) -> u32 {
        let word = self.word(slot);
        // After 2^30 - 1 writes of a slot the count begins again; no load comes so far.
        let generation = ((*word + 1) & GENERATION).max(1);
        *word = generation | (*word & QUARANTINED);
        generation
    }

    /// Nobody knows what `slot` holds, until it is written again. Its writes are counted on: no number is used twice.
    pub(super) fn forget(&mut self, slot: u32) {
        *self.word(slot) |= UNKNOWN;
    }

    /// A late copy of a write may still reach `slot`: it must not be written again.
    pub(super) fn quarantine(&mut self, slot: u32) {
        let word = self.word(slot);
        if *word & QUARANTINED == 0 {
            *word |= QUARANTINED;
            self.quarantined += 1;
        }
    }

    /// Whether the block that begins at `slot` may be written.
    pub(super) fn is_writable(&self, slot: u32) -> bool {
        let at = (slot - self.first) as usize;
        self.quarantined == 0
            || self.words[at..at + self.block_len(slot) as usize]
                .iter()
                .all(|word| word & QUARANTINED == 0)
    }

    /// No late copy can come any more.
    pub(super) fn release(&mut self) {
        if self.quarantined > 0 {
            self.words.iter_mut().for_each(|word| *word &= !QUARANTINED);
            self.quarantined = 0;
        }
    }

    pub(super) fn quarantined(&self) -> u32 {
        self.quarantined
    }

    pub(super) fn blocks(&self) -> u32 {
        self.blocks
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_are_drawn_inside_and_taken_in_turn() {
        let mut slots = SlotTable::new(1, 2, 6, 1, 9);
        assert_eq!([1, 2, 3, 4].map(|_| slots.next()), [1, 3, 5, 1]);
        let mut seen = [0; 3];
        (0..300).for_each(|_| seen[(slots.random() as usize - 1) / 2] += 1);
        assert!(seen.iter().all(|n| *n > 50), "{seen:?}");
    }

    #[test]
    fn the_last_block_is_what_is_left_and_is_drawn_too() {
        let mut slots = SlotTable::new(1, 16, 35, 1, 3);
        assert_eq!(slots.blocks(), 3);
        assert_eq!([1, 2, 3, 4].map(|_| slots.next()), [1, 17, 33, 1]);
        assert_eq!([1, 17, 33].map(|slot| slots.block_len(slot)), [16, 16, 3]);
        assert!((0..100).any(|_| slots.random() == 33));
        (33..36).for_each(|slot| assert_eq!(slots.write(slot), 1));
        assert!(slots.is_writable(33));
        slots.quarantine(35);
        assert_eq!([1, 17, 33].map(|slot| slots.is_writable(slot)), [true, true, false]);
    }

    #[test]
    fn a_stride_that_shares_no_factor_with_the_blocks_comes_to_all() {
        let mut slots = SlotTable::new(1, 1, 7, 17, 0);
        assert_eq!([1, 2, 3, 4, 5, 6, 7, 8].map(|_| slots.next()), [1, 4, 7, 3, 6, 2, 5, 1]);
    }

    #[test]
    fn a_quarantined_slot_keeps_its_generation_and_is_not_written() {
        let mut slots = SlotTable::new(1, 1, 4, 1, 0);
        assert_eq!((slots.generation(2), slots.write(2), slots.write(2)), (None, 1, 2));
        slots.quarantine(2);
        slots.quarantine(2);
        assert_eq!(
            (slots.quarantined(), slots.is_writable(2), slots.is_writable(3)),
            (1, false, true)
        );
        assert_eq!(slots.generation(2), Some(2));
        slots.release();
        assert!(slots.is_writable(2));
        slots.forget(2);
        assert_eq!(slots.generation(2), None);
    }
}
