//! Contiguous frames set aside at start, given out in runs: for blocks above a page.
//!
//! One bit a frame, first fit, under a spin lock. The search looks at 64 frames at a time where they are
//! all taken or all free. A run can grow and shrink in place at its end.

use std::ptr::NonNull;

use crate::PAGE_SIZE;
use crate::frame::{FrameId, FrameRun};
use crate::lock::SpinLock;
use crate::pool::{AllocError, PagePool};

pub(super) struct RunArea {
    pool: PagePool,
    first: u32,
    frames: u32,
    state: SpinLock<State>,
}

struct State {
    /// `None` only while it is dropped.
    run: Option<FrameRun>,
    /// A set bit is a frame that is taken. Bits behind the last frame are set.
    bits: Box<[u64]>,
    used: u32,
    used_most: u32,
}

impl RunArea {
    /// Sets `frames` contiguous frames of the pool aside.
    pub(super) fn new(pool: &PagePool, frames: u32) -> Result<RunArea, AllocError> {
        let run = pool.set_aside(frames)?;
        let mut bits = vec![0u64; frames.div_ceil(64) as usize].into_boxed_slice();
        if let Some(last) = bits.last_mut() {
            // Of a last word that is filled there is nothing behind the last frame.
            *last = if frames.is_multiple_of(64) { 0 } else { u64::MAX << (frames % 64) };
        }
        let first = run.first().index();
        let state = SpinLock::new(State { run: Some(run), bits, used: 0, used_most: 0 });
        Ok(RunArea { pool: pool.clone(), first, frames, state })
    }

    pub(super) fn frames(&self) -> u32 {
        self.frames
    }

    /// The address of a frame of the area.
    fn address(&self, frame: u32) -> NonNull<u8> {
        self.pool.inner().region.data(self.first + frame)
    }

    /// The frame of the area that lies at `address`, if it is inside.
    #[inline]
    pub(super) fn frame_of(&self, address: NonNull<u8>) -> Option<u32> {
        let base = self.pool.inner().region.data(0).addr().get();
        let frame = (address.addr().get().wrapping_sub(base) / PAGE_SIZE)
            .checked_sub(self.first as usize)?;
        (frame < self.frames as usize).then_some(frame as u32)
    }

    /// So many contiguous frames, at a multiple of `align`, a power of two.
    pub(super) fn alloc(&self, frames: u32, align: usize) -> Option<NonNull<u8>> {
        let mut guard = self.state.lock();
        let state = &mut *guard;
        let mut from = 0;
        loop {
            let start = state.next_free(from, self.frames)?;
            // The region is page-aligned; alignments above that are those of the address.
            let address = self.address(start).addr().get();
            let skip = (address.checked_next_multiple_of(align)? - address) / PAGE_SIZE;
            let start = u32::try_from(start as usize + skip).ok()?;
            let end = start.checked_add(frames).filter(|&end| end <= self.frames)?;
            match state.next_taken(start, end) {
                None => {
                    state.set(start, end, true);
                    drop(guard);
                    return Some(self.address(start));
                }
                Some(taken) => from = taken + 1,
            }
        }
    }

    /// Takes back the frames `start .. start + frames`.
    pub(super) fn free(&self, start: u32, frames: u32) {
        self.state.lock().set(start, start + frames, false);
    }

    /// Makes a run of `have` frames at `start` one of `want`, in place. Returns whether that was done; to
    /// shrink always works.
    pub(super) fn resize(&self, start: u32, have: u32, want: u32) -> bool {
        let mut state = self.state.lock();
        if want <= have {
            state.set(start + want, start + have, false);
            return true;
        }
        let Some(end) = start.checked_add(want).filter(|&end| end <= self.frames) else {
            return false;
        };
        let room = state.next_taken(start + have, end).is_none();
        if room {
            state.set(start + have, end, true);
        }
        room
    }

    /// Frames used now, the most ever used, and the longest run that is free.
    pub(super) fn usage(&self) -> (u32, u32, u32) {
        let state = self.state.lock();
        let (mut longest, mut from) = (0, 0);
        while let Some(start) = state.next_free(from, self.frames) {
            let end = state.next_taken(start, self.frames).unwrap_or(self.frames);
            longest = longest.max(end - start);
            from = end;
        }
        (state.used, state.used_most, longest)
    }
}

impl State {
    /// The first frame from `from` on, below `end`, whose bit is as wanted.
    fn find(&self, from: u32, end: u32, taken: bool) -> Option<u32> {
        let mut at = from;
        while at < end {
            let word = self.bits[(at / 64) as usize];
            let word = (if taken { word } else { !word }) >> (at % 64);
            if word != 0 {
                return Some(at + word.trailing_zeros()).filter(|&found| found < end);
            }
            at = (at / 64 + 1) * 64;
        }
        None
    }

    fn next_free(&self, from: u32, end: u32) -> Option<u32> {
        self.find(from, end, false)
    }

    fn next_taken(&self, from: u32, end: u32) -> Option<u32> {
        self.find(from, end, true)
    }

    fn set(&mut self, start: u32, end: u32, taken: bool) {
        let mut at = start;
        while at < end {
            let n = (64 - at % 64).min(end - at);
            let mask = (u64::MAX >> (64 - n)) << (at % 64);
            let word = &mut self.bits[(at / 64) as usize];
            let before = if taken { !*word } else { *word };
            // Two owners of one frame, or a free of what is free.
            assert_eq!(before & mask, mask, "the bits of a run are not as they were left");
            *word ^= mask;
            at += n;
        }
        if taken {
            self.used += end - start;
            self.used_most = self.used_most.max(self.used);
        } else {
            self.used -= end - start;
        }
    }
}

impl Drop for RunArea {
    fn drop(&mut self) {
        let mut state = self.state.lock();
        if state.used > 0 {
            // Blocks were forgotten together with every handle of the heap. Nobody may use them, but
            // nobody need prove that: the frames are lost, not given out twice.
            tracing::warn!(frames = state.used, "a heap ended with runs in use; its area is lost");
            std::mem::forget(state.run.take());
        }
        let State { run, used_most, .. } = &mut *state;
        if let Some(run) = run.as_mut().filter(|_| *used_most > 0) {
            // What lay there may have had padding, which is no initialised memory; a frame's bytes are.
            let base = self.pool.inner().region.data(run.first().index());
            // SAFETY: the run owns so many bytes from there on, and is borrowed mutably.
            unsafe { base.write_bytes(0, run.frames() as usize * PAGE_SIZE) };
        }
    }
}

/// The frame of the pool whose first byte is at `address`.
///
/// # Safety
/// `address` is that of a frame of `pool`.
pub(super) unsafe fn frame_at(pool: &PagePool, address: NonNull<u8>) -> FrameId {
    let base = pool.inner().region.data(0).addr().get();
    FrameId::from_index(((address.addr().get() - base) / PAGE_SIZE) as u32)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolConfig;
    use proptest::prelude::*;

    fn area(frames: u32) -> RunArea {
        let pool = PagePool::new(PoolConfig { magazine: 0, headroom: 0, ..PoolConfig::new(512) });
        RunArea::new(&pool, frames).unwrap()
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..Default::default() })]

        /// Against a vector of owners: runs do not overlap, are aligned, and are found if there is room.
        #[test]
        fn runs_are_first_fit(ops in prop::collection::vec((0..3u8, 1..90u32, 0..4u32), 1..120)) {
            const FRAMES: u32 = 200;
            let area = area(FRAMES);
            let mut taken = vec![false; FRAMES as usize];
            let mut held: Vec<(u32, u32)> = Vec::new();
            for (op, n, align) in ops {
                let align = PAGE_SIZE << align;
                let fits = |at: u32, end: u32| end <= FRAMES && !taken[at as usize..end as usize].contains(&true);
                match op {
                    0 => {
                        let aligned = |at: u32| area.address(at).addr().get().is_multiple_of(align);
                        let want = (0..FRAMES).find(|&at| aligned(at) && fits(at, at + n));
                        let got = area.alloc(n, align).map(|a| area.frame_of(a).unwrap());
                        prop_assert_eq!(got, want);
                        if let Some(at) = got {
                            taken[at as usize..(at + n) as usize].fill(true);
                            held.push((at, n));
                        }
                    }
                    1 if !held.is_empty() => {
                        let (at, n) = held.swap_remove(n as usize % held.len());
                        area.free(at, n);
                        taken[at as usize..(at + n) as usize].fill(false);
                    }
                    2 if !held.is_empty() => {
                        let i = n as usize % held.len();
                        let (at, have) = held[i];
                        let room = n <= have || fits(at + have, at + n);
                        prop_assert_eq!(area.resize(at, have, n), room);
                        if room {
                            taken[at as usize..(at + have) as usize].fill(false);
                            taken[at as usize..(at + n) as usize].fill(true);
                            held[i].1 = n;
                        }
                    }
                    _ => {}
                }
                let (used, _, longest) = area.usage();
                prop_assert_eq!(used as usize, taken.iter().filter(|&&t| t).count());
                let gaps = taken.split(|&t| t).map(|gap| gap.len()).max();
                prop_assert_eq!(longest as usize, gaps.unwrap_or(0));
            }
            for (at, n) in held {
                area.free(at, n);
            }
        }
    }

    #[test]
    #[should_panic(expected = "not as they were left")]
    fn a_double_free_is_caught() {
        let area = area(10);
        let run = area.alloc(3, 1).unwrap();
        let at = area.frame_of(run).unwrap();
        area.free(at, 3);
        area.free(at, 3);
    }
}
