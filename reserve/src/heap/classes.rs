//! Size classes: which slot a block of a page or less gets, and how many pages blocks need.
//!
//! Classes lie so close that at most a fifth of a slot is lost above 64 bytes, and so that a whole number of
//! them fills a page with its header. The powers of two among them are aligned to their size; the others
//! to 16 bytes.

use std::alloc::Layout;

use crate::PAGE_SIZE;
use crate::slab::SlotLayout;

/// Bytes of a slot of each class.
const SIZES: [u16; 23] = [
    16, 32, 48, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384, 448, 512, 576, 672, 800, 1008,
    1024, 1344, 2032,
];

pub(super) const CLASSES: usize = SIZES.len();

/// The largest block of a class; above, a block has a page of its own.
pub(super) const LARGEST: usize = SIZES[CLASSES - 1] as usize;

/// Alignment of slots whose size is no power of two.
const ALIGN: usize = 16;

/// The class of each size, in steps of 16 bytes.
const BY_SIZE: [u8; LARGEST / 16 + 1] = {
    let mut table = [0; LARGEST / 16 + 1];
    let (mut step, mut class) = (0, 0);
    while step < table.len() {
        if step * 16 > SIZES[class] as usize {
            class += 1;
        }
        table[step] = class as u8;
        step += 1;
    }
    table
};

/// Where a block lies.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Nowhere: it has no bytes.
    Nothing,
    /// In a slot of this class.
    Slot(u8),
    /// In a page of its own.
    Page,
    /// In so many contiguous frames.
    Run(u32),
}

/// Where a block of this layout lies.
#[inline]
pub(super) fn kind(layout: Layout) -> Kind {
    let size = layout.size();
    if size == 0 {
        return Kind::Nothing;
    }
    // The powers of two are aligned to themselves.
    let size = if layout.align() > ALIGN {
        size.max(layout.align()).checked_next_power_of_two().unwrap_or(usize::MAX)
    } else {
        size
    };
    if size <= LARGEST {
        Kind::Slot(BY_SIZE[size.div_ceil(16)])
    } else if layout.size() <= PAGE_SIZE && layout.align() <= PAGE_SIZE {
        Kind::Page
    } else {
        Kind::Run(u32::try_from(layout.size().div_ceil(PAGE_SIZE)).unwrap_or(u32::MAX))
    }
}

impl Kind {
    /// Bytes that the block can use.
    pub(super) fn bytes(self) -> usize {
        match self {
            Kind::Nothing => 0,
            Kind::Slot(class) => SIZES[usize::from(class)].into(),
            Kind::Page => PAGE_SIZE,
            Kind::Run(frames) => frames as usize * PAGE_SIZE,
        }
    }
}

/// How slots of a class lie in a page.
pub(super) const fn slots(class: usize) -> SlotLayout {
    let size = SIZES[class] as usize;
    SlotLayout::new(size, if size.is_power_of_two() { size } else { ALIGN })
}

/// What a set of blocks needs; see [`ReserveHeap::estimate`](super::ReserveHeap::estimate).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct HeapEstimate {
    /// Pages of the pool, taken as they are needed.
    pub pages: u32,
    /// Frames of runs, to be set aside at start. Runs that come and go in another order than last in,
    /// first out, may need more, as the room between them may be too short.
    pub run_frames: u32,
}

pub(super) fn estimate(layouts: impl IntoIterator<Item = Layout>) -> HeapEstimate {
    let mut counts = [0u32; CLASSES];
    let mut sum = HeapEstimate::default();
    for layout in layouts {
        match kind(layout) {
            Kind::Nothing => {}
            Kind::Slot(class) => counts[usize::from(class)] += 1,
            Kind::Page => sum.pages += 1,
            Kind::Run(frames) => sum.run_frames += frames,
        }
    }
    let pages = |(class, &n): (usize, &u32)| slots(class).pages(n);
    sum.pages += counts.iter().enumerate().map(pages).sum::<u32>();
    sum
}

pub(super) fn estimate_bytes(bytes: usize, smallest: usize) -> u32 {
    let smallest = smallest.clamp(1, PAGE_SIZE);
    // The fewest bytes that fill a page, over the classes that such blocks can be in.
    let (mut fill, mut classes) = (PAGE_SIZE, 0);
    let mut below = 0;
    for class in 0..=CLASSES {
        let (largest, per_page) = match SIZES.get(class) {
            Some(&size) => (usize::from(size), usize::from(slots(class).per_page)),
            None => (PAGE_SIZE, 1),
        };
        if smallest <= largest {
            classes += 1;
            fill = fill.min(per_page * smallest.max(below + 1));
        }
        below = largest;
    }
    // Every page is full, but for one of each class.
    let pages = bytes / fill + classes.min(bytes / smallest);
    u32::try_from(pages).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_layout_gets_a_slot_that_is_large_enough_and_aligned() {
        for align in (0..=13).map(|p| 1 << p) {
            for size in 1..=PAGE_SIZE + 1 {
                let kind = kind(Layout::from_size_align(size, align).unwrap());
                assert!(kind.bytes() >= size, "{size} {align}");
                match kind {
                    Kind::Slot(class) => {
                        let slots = slots(class.into());
                        assert!(usize::from(slots.slot) == kind.bytes() && slots.per_page > 1);
                        assert_eq!(usize::from(slots.slot) % align, 0, "{size} {align}");
                        assert_eq!(usize::from(slots.first) % align, 0, "{size} {align}");
                    }
                    Kind::Page => assert!(align <= PAGE_SIZE && size <= PAGE_SIZE),
                    Kind::Run(frames) => {
                        assert!(frames > 1 || align > PAGE_SIZE, "{size} {align}");
                    }
                    Kind::Nothing => unreachable!(),
                }
            }
        }
    }

    #[test]
    fn classes_lose_a_fifth_at_most() {
        for pair in SIZES.windows(2).filter(|pair| pair[0] >= 64 && pair[0] < 1024) {
            assert!(pair[1] - pair[0] <= pair[1].div_ceil(4), "{pair:?}");
        }
    }
}
