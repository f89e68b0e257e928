//! The slots of one area: what each holds, and which page gets which.
//!
//! Slots are given out in clusters of 64 that belong to one aligned range of pages, so that
//! page `n` of the range gets slot `n` of the cluster. Neighbouring pages are then neighbours in the
//! store in whatever order they were written, also when many tasks page out at once; readahead lives
//! from it. Only when no cluster is wholly free are pages put wherever there is room.
//!
//! Invariants: a slot is `taken` unless it is free; a cluster has an owner exactly while one of its
//! slots is in use; a slot that may still be written by a late copy of a request never becomes free; one that is
//! held for a discard is not free before that has ended.
//!
//! Cost a slot: 8 bytes checksum, 4 generation, 1 state, and 16 bytes a cluster.

use crate::backend::Slot;
use crate::page::NONE;

/// Slots of a cluster; pages of the range it serves.
pub(crate) const CLUSTER: u32 = 64;
/// Reads of a page that did not match, after the first, before it is declared damaged.
pub(crate) const REREADS_MAX: u32 = 3;

/// Bytes of local memory that a slot of an area costs, rounded up.
pub const SLOT_BYTES: usize = 8 + 4 + 1 + size_of::<Cluster>().div_ceil(CLUSTER as usize);

const USE_MASK: u8 = 0b11;
const FREE: u8 = 0;
const USED: u8 = 1;
const QUARANTINED: u8 = 2;
const UNUSABLE: u8 = 3;
const REREAD_ONE: u8 = 1 << 2;
const REREAD_MASK: u8 = 0b111 << 2;
/// A late copy of a write to the slot may still be on its way.
const SUSPECT: u8 = 1 << 5;
/// The page in it is declared damaged.
const DAMAGED: u8 = 1 << 6;
/// To be read in a request of its own.
const SINGLE: u8 = 1 << 7;
/// Holds no page, and is to be discarded before it is free: the flag means nothing else of a slot without a page.
const HELD: u8 = QUARANTINED | SINGLE;

#[derive(Clone, Debug)]
struct Cluster {
    /// One bit a slot: not free.
    taken: u64,
    /// The range of pages it serves, while `used` is above 0.
    owner: u32,
    /// Slots in use.
    used: u8,
}

/// The table of an area's slots, of a size fixed when the area is taken into use.
#[derive(Debug, Default)]
pub(crate) struct SlotTable {
    checksums: Box<[u64]>,
    generations: Box<[u32]>,
    state: Box<[u8]>,
    clusters: Box<[Cluster]>,
    free: u32,
    used: u32,
    quarantined: u32,
    held: u32,
    /// Clusters that no range has and in which something is free.
    idle: u32,
    cursor: u32,
}

impl Cluster {
    fn is_idle(&self) -> bool {
        self.used == 0 && self.taken != u64::MAX
    }
}

impl SlotTable {
    /// Changes the cluster of a slot, and the count of idle ones with it.
    fn change(&mut self, slot: u32, change: impl FnOnce(&mut Cluster, u64)) {
        let cluster = &mut self.clusters[(slot / CLUSTER) as usize];
        let before = cluster.is_idle();
        change(cluster, 1 << (slot % CLUSTER));
        self.idle = self.idle + u32::from(cluster.is_idle()) - u32::from(before);
    }

    /// A table of `slots` slots, all free.
    pub(crate) fn new(slots: u32) -> SlotTable {
        let mut clusters =
            vec![Cluster { taken: 0, owner: NONE, used: 0 }; slots.div_ceil(CLUSTER) as usize];
        if let (Some(last), rest @ 1..) = (clusters.last_mut(), slots % CLUSTER) {
            last.taken = u64::MAX << rest;
        }
        SlotTable {
            checksums: vec![0; slots as usize].into(),
            generations: vec![0; slots as usize].into(),
            state: vec![FREE; slots as usize].into(),
            clusters: clusters.into(),
            free: slots,
            used: 0,
            quarantined: 0,
            held: 0,
            idle: slots.div_ceil(CLUSTER),
            cursor: 0,
        }
    }

    pub(crate) fn len(&self) -> u32 {
        self.state.len() as u32
    }

    pub(crate) fn free(&self) -> u32 {
        self.free
    }

    pub(crate) fn used(&self) -> u32 {
        self.used
    }

    pub(crate) fn quarantined(&self) -> u32 {
        self.quarantined
    }

    /// Slots that wait to be discarded, or for the end of it.
    pub(crate) fn held(&self) -> u32 {
        self.held
    }

    /// Keeps a free slot from being given out, until it was discarded.
    pub(crate) fn hold(&mut self, slot: Slot) {
        let at = slot.0 as usize;
        assert_eq!(self.state[at], FREE, "slot {at} is free before it is held");
        self.state[at] = HELD;
        self.free -= 1;
        self.held += 1;
        self.change(slot.0, |cluster, bit| cluster.taken |= bit);
    }

    /// A held slot is free again; or goes to quarantine, if a late copy of its discard may still be carried out.
    pub(crate) fn let_go(&mut self, slot: Slot, quarantine: bool) {
        let at = slot.0 as usize;
        assert_eq!(self.state[at], HELD, "slot {at} is let go once");
        self.held -= 1;
        self.set_aside(at, quarantine);
        if !quarantine {
            self.change(slot.0, |cluster, bit| cluster.taken &= !bit);
        }
    }

    /// A slot that holds nothing any more is free, or in quarantine.
    fn set_aside(&mut self, at: usize, quarantine: bool) {
        if quarantine {
            self.state[at] = QUARANTINED;
            self.quarantined += 1;
        } else {
            self.state[at] = FREE;
            self.free += 1;
        }
    }

    /// Takes a free slot out of use for good: the header, or a bad page.
    pub(crate) fn mark_unusable(&mut self, slot: Slot) {
        let Some(state) = self.state.get_mut(slot.0 as usize).filter(|s| **s == FREE) else {
            return;
        };
        *state = UNUSABLE;
        self.free -= 1;
        self.change(slot.0, |cluster, bit| cluster.taken |= bit);
    }

    /// A slot for page `within` of the range `region`. `hint` is the cluster that the range had
    /// last; `after` the slot of the page before it.
    pub(crate) fn alloc(
        &mut self,
        region: u32,
        within: u32,
        hint: Option<u32>,
        after: Option<Slot>,
    ) -> Option<Slot> {
        if self.free == 0 {
            return None;
        }
        let own =
            hint.filter(|c| self.clusters.get(*c as usize).is_some_and(|c| c.owner == region));
        let idle = self.idle > 0 && own.is_none();
        let idle = idle.then(|| self.find(Cluster::is_idle)).flatten();
        let cluster = own.or(idle);
        if let Some(slot) = cluster.and_then(|c| self.free_in(c, within)) {
            return Some(self.take(slot, region));
        }
        if let Some(next) = after.map(|s| s.0 + 1).filter(|s| *s < self.len())
            && self.clusters[(next / CLUSTER) as usize].taken & (1 << (next % CLUSTER)) == 0
        {
            return Some(self.take(next, region));
        }
        let cluster = self.find(|c| c.taken != u64::MAX)?;
        let slot = self.free_in(cluster, 0)?;
        Some(self.take(slot, region))
    }

    /// The next cluster from the cursor on for which `want` holds.
    fn find(&mut self, want: impl Fn(&Cluster) -> bool) -> Option<u32> {
        let n = self.clusters.len() as u32;
        let at =
            (0..n).map(|i| (self.cursor + i) % n).find(|c| want(&self.clusters[*c as usize]))?;
        self.cursor = at;
        Some(at)
    }

    /// The slot `within` of a cluster if it is free, else its first free one.
    fn free_in(&self, cluster: u32, within: u32) -> Option<u32> {
        let taken = self.clusters[cluster as usize].taken;
        let at = if taken & (1 << within) == 0 { within } else { (!taken).trailing_zeros() };
        (at < CLUSTER).then_some(cluster * CLUSTER + at)
    }

    fn take(&mut self, slot: u32, region: u32) -> Slot {
        assert_eq!(self.state[slot as usize], FREE, "slot {slot} is given out once");
        self.change(slot, |cluster, bit| {
            cluster.taken |= bit;
            if cluster.used == 0 {
                cluster.owner = region;
            }
            cluster.used += 1;
        });
        self.state[slot as usize] = USED;
        self.generations[slot as usize] = self.generations[slot as usize].wrapping_add(1);
        self.free -= 1;
        self.used += 1;
        Slot(slot)
    }

    /// Gives a slot back. One that may be written late goes to quarantine: then it is `true`.
    pub(crate) fn release(&mut self, slot: Slot) -> bool {
        let at = slot.0 as usize;
        assert_eq!(self.state[at] & USE_MASK, USED, "slot {at} is freed once");
        let quarantine = self.state[at] & SUSPECT != 0;
        self.change(slot.0, |cluster, bit| {
            cluster.used -= 1;
            if cluster.used == 0 {
                cluster.owner = NONE;
            }
            if !quarantine {
                cluster.taken &= !bit;
            }
        });
        self.used -= 1;
        self.generations[at] = self.generations[at].wrapping_add(1);
        self.set_aside(at, quarantine);
        quarantine
    }

    /// Makes all quarantined slots free: when no late copy of a write can exist any more.
    pub(crate) fn release_quarantine(&mut self) {
        for at in 0..self.state.len() {
            if self.state[at] == QUARANTINED {
                self.state[at] = FREE;
                self.change(at as u32, |cluster, bit| cluster.taken &= !bit);
                self.free += 1;
            }
            self.state[at] &= !SUSPECT;
        }
        self.quarantined = 0;
    }

    pub(crate) fn generation(&self, slot: Slot) -> u32 {
        self.generations[slot.0 as usize]
    }

    pub(crate) fn checksum(&self, slot: Slot) -> u64 {
        self.checksums[slot.0 as usize]
    }

    pub(crate) fn set_checksum(&mut self, slot: Slot, checksum: u64) {
        self.checksums[slot.0 as usize] = checksum;
    }

    pub(crate) fn set_suspect(&mut self, slot: Slot) {
        self.state[slot.0 as usize] |= SUSPECT;
    }

    pub(crate) fn set_single(&mut self, slot: Slot) {
        self.state[slot.0 as usize] |= SINGLE;
    }

    /// Whether the slot must be read in a request of its own.
    pub(crate) fn is_single(&self, slot: Slot) -> bool {
        self.state[slot.0 as usize] & (SINGLE | REREAD_MASK | DAMAGED) != 0
    }

    pub(crate) fn is_damaged(&self, slot: Slot) -> bool {
        self.state[slot.0 as usize] & DAMAGED != 0
    }

    /// The page was read and did not match. Whether it may be read again.
    pub(crate) fn read_failed(&mut self, slot: Slot) -> bool {
        let state = &mut self.state[slot.0 as usize];
        if u32::from((*state & REREAD_MASK) / REREAD_ONE) == REREADS_MAX {
            *state |= DAMAGED;
            return false;
        }
        *state += REREAD_ONE;
        true
    }

    /// Whether a cluster serves the range `region`.
    pub(crate) fn owns(&self, cluster: u32, region: u32) -> bool {
        self.clusters.get(cluster as usize).is_some_and(|c| c.owner == region)
    }

    /// The error was reported: a later touch starts anew.
    pub(crate) fn forget_failures(&mut self, slot: Slot) {
        self.state[slot.0 as usize] &= !(REREAD_MASK | DAMAGED);
    }

    /// The page was read and matched.
    pub(crate) fn read_matched(&mut self, slot: Slot) {
        self.state[slot.0 as usize] &= !(REREAD_MASK | SINGLE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    #[test]
    fn a_slot_costs_at_most_sixteen_bytes() {
        const { assert!(SLOT_BYTES <= 16) };
        assert_eq!(size_of::<Cluster>(), 16);
    }

    #[test]
    fn neighbours_stay_neighbours_when_many_ranges_are_written_at_once() {
        let mut slots = SlotTable::new(64 * 20);
        slots.mark_unusable(Slot(0));
        let mut hints = [None; 16];
        let mut at = BTreeMap::new();
        for within in (0..CLUSTER).rev() {
            for region in 0..16 {
                let slot = slots.alloc(region, within, hints[region as usize], None).unwrap();
                hints[region as usize] = Some(slot.0 / CLUSTER);
                at.insert(region * CLUSTER + within, slot.0);
            }
        }
        let neighbours = at.iter().zip(at.iter().skip(1)).filter(|(a, b)| *b.1 == a.1 + 1).count();
        assert!(neighbours >= 16 * 63 - 2, "{neighbours} of {}", 16 * 63);
    }

    #[test]
    fn every_slot_but_the_unusable_can_be_given_out_and_comes_back() {
        let mut slots = SlotTable::new(200);
        slots.mark_unusable(Slot(0));
        slots.mark_unusable(Slot(0));
        slots.mark_unusable(Slot(999));
        let given: Vec<Slot> = (0..).map_while(|i| slots.alloc(i, i % 64, None, None)).collect();
        assert_eq!(given.len(), 199);
        assert!(!given.contains(&Slot(0)));
        slots.set_suspect(given[7]);
        let quarantined = given.iter().filter(|s| slots.release(**s)).count();
        assert_eq!((quarantined, slots.used(), slots.free(), slots.quarantined()), (1, 0, 198, 1));
        slots.release_quarantine();
        assert_eq!((slots.free(), slots.quarantined()), (199, 0));
        assert_eq!(slots.idle, 4);
    }

    #[test]
    fn a_slot_that_is_held_is_given_out_when_it_is_let_go() {
        let mut slots = SlotTable::new(70);
        let given: Vec<Slot> = (0..).map_while(|i| slots.alloc(i, i % 64, None, None)).collect();
        for slot in &given[..3] {
            slots.set_single(*slot);
            slots.release(*slot);
            slots.hold(*slot);
        }
        assert_eq!((slots.free(), slots.used(), slots.held()), (0, 67, 3));
        slots.release_quarantine();
        assert_eq!((slots.held(), slots.alloc(0, 0, None, None)), (3, None));
        slots.let_go(given[0], false);
        slots.let_go(given[1], true);
        assert_eq!((slots.free(), slots.quarantined(), slots.held()), (1, 1, 1));
        assert_eq!(slots.alloc(0, 0, None, None), Some(given[0]));
        slots.release_quarantine();
        assert_eq!((slots.free(), slots.quarantined(), slots.held()), (1, 0, 1));
    }

    #[test]
    fn a_page_is_declared_damaged_after_three_reads_more() {
        let mut slots = SlotTable::new(64);
        let slot = slots.alloc(0, 3, None, None).unwrap();
        let before = slots.generation(slot);
        assert_eq!([(); 4].map(|()| slots.read_failed(slot)), [true, true, true, false]);
        assert!(slots.is_damaged(slot) && slots.is_single(slot));
        slots.release(slot);
        let again = slots.alloc(0, 3, None, None).unwrap();
        assert_eq!(again, slot);
        assert!(!slots.is_damaged(again) && !slots.is_single(again));
        assert_ne!(slots.generation(again), before);
    }
}
