//! The page pool. SKELETON with the final interface: to be deepened.

use std::alloc::{Layout, alloc_zeroed, dealloc, handle_alloc_error};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::PAGE_SIZE;
use crate::frame::{Frame, FrameId, FrameRun};
use crate::gfp::Gfp;
use crate::reserves::{ReserveError, ReserveId};
use crate::scope;

/// How a pool is set up.
#[derive(Clone, Debug)]
pub struct PoolConfig {
    /// All frames of the pool.
    pub frames: u32,
    /// Frames between the emergency floor and the min watermark.
    pub headroom: u32,
    /// Frames between min and low, where background reclaim starts.
    pub low_gap: u32,
    /// Frames between low and high, where background reclaim stops.
    pub high_gap: u32,
    /// Frames a thread may hold back for its own next allocations. 0 keeps all counts exact at every
    /// instant, which a simulation wants.
    pub magazine: u32,
    /// Ablation: without it there is no emergency floor, and an entitled *scope* (not a single call)
    /// may take every frame uncharged, as a kernel without reserves would let it.
    pub reserve: bool,
    /// Ablation: without it, entering an emergency scope entitles to nothing.
    pub scope: bool,
}

impl PoolConfig {
    /// A pool of `frames` frames with watermarks in the proportions the kernel uses.
    pub fn new(frames: u32) -> PoolConfig {
        let headroom = (frames / 128).clamp(16, 1024);
        PoolConfig {
            frames,
            headroom,
            low_gap: headroom / 2,
            high_gap: headroom / 2,
            magazine: 32,
            reserve: true,
            scope: true,
        }
    }
}

/// The watermarks of a pool, in free frames.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Watermarks {
    /// Only charged emergency allocations go below.
    pub floor: u32,
    /// Atomic allocations stop here: floor and half of the headroom.
    pub atomic: u32,
    /// Ordinary allocations stop here: floor and headroom.
    pub min: u32,
    /// Background reclaim starts below this.
    pub low: u32,
    /// Background reclaim stops here.
    pub high: u32,
}

/// Why a frame could not be had.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AllocError {
    /// Free memory is at the caller's watermark, and it is not entitled to a reserve.
    #[error("{free} frames free, this allocation stops at {watermark}")]
    AtWatermark {
        /// Frames free.
        free: u32,
        /// The watermark this caller stops at.
        watermark: u32,
    },
    /// The caller is entitled, but its reserve is used up.
    #[error("the reserve this allocation is entitled to is used up")]
    ReserveUsedUp {
        /// The reserve that was to be charged.
        reserve: ReserveId,
    },
    /// No frame is free at all.
    #[error("no frame is free")]
    Exhausted,
}

pub(crate) struct Inner {
    pub(crate) id: u32,
    base: NonNull<u8>,
    layout: Layout,
    pub(crate) refs: Box<[AtomicU32]>,
    charge: Box<[AtomicU32]>,
    parked: Box<[AtomicBool]>,
    config: PoolConfig,
    state: Mutex<State>,
    pressure: AtomicBool,
    frees: AtomicU64,
}

// SAFETY: the region is only reached through frames, each of which is owned by one handle or shared
// read-only; the rest of `Inner` is atomics and a mutex.
unsafe impl Send for Inner {}
// SAFETY: as above.
unsafe impl Sync for Inner {}

struct Node {
    name: String,
    parent: Option<ReserveId>,
    limit: u32,
    usage: u32,
    peak: u32,
    failures: u64,
    connected: bool,
}

struct State {
    free: Vec<u32>,
    lowest_free: u32,
    nodes: Vec<Node>,
}

/// All the memory that a host, real or simulated, may use. Cloning gives another handle.
#[derive(Clone)]
pub struct PagePool(pub(crate) Arc<Inner>);

impl PagePool {
    /// A pool as `config` says.
    pub fn new(config: PoolConfig) -> PagePool {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let layout = Layout::from_size_align(config.frames as usize * PAGE_SIZE, PAGE_SIZE)
            .expect("a pool has at least one frame and fits the address space");
        // SAFETY: the layout has a size above zero.
        let base = NonNull::new(unsafe { alloc_zeroed(layout) })
            .unwrap_or_else(|| handle_alloc_error(layout));
        let n = config.frames;
        PagePool(Arc::new(Inner {
            id: NEXT.fetch_add(1, Ordering::Relaxed),
            base,
            layout,
            refs: (0..n).map(|_| AtomicU32::new(0)).collect(),
            charge: (0..n).map(|_| AtomicU32::new(0)).collect(),
            parked: (0..n).map(|_| AtomicBool::new(false)).collect(),
            state: Mutex::new(State {
                free: (0..n).rev().collect(),
                lowest_free: n,
                nodes: vec![Node {
                    name: "total".into(),
                    parent: None,
                    limit: 0,
                    usage: 0,
                    peak: 0,
                    failures: 0,
                    connected: true,
                }],
            }),
            config,
            pressure: AtomicBool::new(false),
            frees: AtomicU64::new(0),
        }))
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id
    }

    /// Adds a node to the reserve tree, not yet connected: it promises nothing and cannot be
    /// charged until [`PagePool::connect`].
    pub fn add_reserve(&self, parent: ReserveId, name: &str, limit: u32) -> ReserveId {
        let mut state = self.0.state.lock().unwrap();
        let id = ReserveId(state.nodes.len() as u16);
        state.nodes.push(Node {
            name: name.into(),
            parent: Some(parent),
            limit,
            usage: 0,
            peak: 0,
            failures: 0,
            connected: false,
        });
        id
    }

    /// Connects a node (with all below it): its limit is added to those above it, which raises the
    /// floor. Secures the frames first, or fails and changes nothing.
    pub fn connect(&self, reserve: ReserveId) -> Result<(), ReserveError> {
        let mut state = self.0.state.lock().unwrap();
        let limit = state.nodes[reserve.0 as usize].limit;
        let free = state.free.len() as u32;
        if self.0.config.reserve && free < state.nodes[0].limit + limit {
            return Err(ReserveError::CannotSecure {
                name: state.nodes[reserve.0 as usize].name.clone(),
                wanted: limit,
                free,
            });
        }
        state.nodes[reserve.0 as usize].connected = true;
        let mut at = state.nodes[reserve.0 as usize].parent;
        while let Some(id) = at {
            state.nodes[id.0 as usize].limit += limit;
            at = state.nodes[id.0 as usize].parent;
        }
        Ok(())
    }

    /// Disconnects a node: its limit is taken from those above it, which lowers the floor.
    pub fn disconnect(&self, reserve: ReserveId) -> Result<(), ReserveError> {
        let mut state = self.0.state.lock().unwrap();
        let limit = state.nodes[reserve.0 as usize].limit;
        state.nodes[reserve.0 as usize].connected = false;
        let mut at = state.nodes[reserve.0 as usize].parent;
        while let Some(id) = at {
            state.nodes[id.0 as usize].limit -= limit;
            at = state.nodes[id.0 as usize].parent;
        }
        Ok(())
    }

    /// Frames charged to `reserve` now.
    pub fn reserve_usage(&self, reserve: ReserveId) -> u32 {
        self.0.state.lock().unwrap().nodes[reserve.0 as usize].usage
    }

    /// The most frames that were ever charged to `reserve` at once.
    pub fn reserve_peak(&self, reserve: ReserveId) -> u32 {
        self.0.state.lock().unwrap().nodes[reserve.0 as usize].peak
    }

    /// The limit of `reserve`, in frames.
    pub fn reserve_limit(&self, reserve: ReserveId) -> u32 {
        self.0.state.lock().unwrap().nodes[reserve.0 as usize].limit
    }

    /// All frames of the pool.
    pub fn frames(&self) -> u32 {
        self.0.config.frames
    }

    /// Frames free now.
    pub fn free_frames(&self) -> u32 {
        self.0.state.lock().unwrap().free.len() as u32
    }

    /// The fewest frames that were ever free.
    pub fn lowest_free(&self) -> u32 {
        self.0.state.lock().unwrap().lowest_free
    }

    /// Counts every frame that comes back: whoever waits for memory looks again when it has moved.
    pub fn frees(&self) -> u64 {
        self.0.frees.load(Ordering::Relaxed)
    }

    /// Whether an allocation failed since the last call: reclaim should run.
    pub fn take_pressure(&self) -> bool {
        self.0.pressure.swap(false, Ordering::Relaxed)
    }

    /// The watermarks as they are now; they move with the floor.
    pub fn watermarks(&self) -> Watermarks {
        let limit = self.0.state.lock().unwrap().nodes[0].limit;
        self.0.watermarks(limit)
    }

    /// One frame, its content unspecified. Entitled if the ambient scope is of this pool or `gfp` has
    /// [`Gfp::MEMALLOC`] (then of the whole floor); [`Gfp::NOMEMALLOC`] beats both.
    ///
    /// # Errors
    /// When free memory is at the caller's watermark and it is not entitled, or its reserve is used up.
    pub fn alloc(&self, gfp: Gfp) -> Result<Frame, AllocError> {
        let ambient = scope::current().filter(|e| e.pool == self.0.id && self.0.config.scope);
        let call = gfp.contains(Gfp::MEMALLOC).then_some(ReserveId::ROOT);
        let entitled = ambient.map(|e| e.reserve).or(call);
        self.alloc_as(gfp, entitled, ambient.is_some())
    }

    /// One frame for a caller that is entitled to `reserve` whatever the ambient scope: the per-call
    /// entitlement, as the receive ring uses it.
    ///
    /// # Errors
    /// As [`PagePool::alloc`].
    pub fn alloc_from(&self, gfp: Gfp, reserve: ReserveId) -> Result<Frame, AllocError> {
        self.alloc_as(gfp, Some(reserve), false)
    }

    fn alloc_as(
        &self,
        gfp: Gfp,
        entitled: Option<ReserveId>,
        by_scope: bool,
    ) -> Result<Frame, AllocError> {
        let entitled = entitled.filter(|_| !gfp.contains(Gfp::NOMEMALLOC));
        let mut state = self.0.state.lock().unwrap();
        let marks = self.0.watermarks(state.nodes[0].limit);
        let free = state.free.len() as u32;
        let watermark = if gfp.contains(Gfp::ATOMIC) {
            marks.atomic
        } else if gfp.contains(Gfp::SPECULATIVE) {
            marks.low
        } else {
            marks.min
        };
        let mut charged = None;
        if free <= watermark {
            self.0.pressure.store(true, Ordering::Relaxed);
            match entitled {
                None => return Err(AllocError::AtWatermark { free, watermark }),
                Some(_) if free == 0 => return Err(AllocError::Exhausted),
                Some(_) if !self.0.config.reserve && by_scope => {}
                Some(reserve) => {
                    if !state.charge(reserve) {
                        return Err(AllocError::ReserveUsedUp { reserve });
                    }
                    charged = Some(reserve);
                }
            }
        }
        let Some(id) = state.free.pop() else { return Err(AllocError::Exhausted) };
        state.lowest_free = state.lowest_free.min(state.free.len() as u32);
        self.0.charge[id as usize]
            .store(charged.map_or(0, |r| u32::from(r.0) + 1), Ordering::Relaxed);
        self.0.refs[id as usize].store(1, Ordering::Relaxed);
        Ok(Frame::new(&self.0, FrameId(id)))
    }

    /// Takes `frames` contiguous frames out of the pool for good, for buffers that live as long as
    /// their owner: they come back when the run is dropped. To be called at start.
    ///
    /// # Errors
    /// When no contiguous frames are free above the min watermark.
    pub fn set_aside(&self, frames: u32) -> Result<FrameRun, AllocError> {
        let mut state = self.0.state.lock().unwrap();
        let marks = self.0.watermarks(state.nodes[0].limit);
        let free = state.free.len() as u32;
        if free < marks.min + frames {
            return Err(AllocError::AtWatermark { free, watermark: marks.min });
        }
        state.free.sort_unstable_by(|a, b| b.cmp(a));
        let n = frames as usize;
        let at = state.free.windows(n).position(|w| w[0] - w[n - 1] == frames - 1);
        let Some(at) = at else { return Err(AllocError::Exhausted) };
        let first = state.free[at + n - 1];
        state.free.drain(at..at + n);
        state.lowest_free = state.lowest_free.min(state.free.len() as u32);
        Ok(FrameRun::new(self.clone(), FrameId(first), frames))
    }

    /// Takes back the ownership of a frame that was parked by [`Frame::park`]; `None` if `id` is not
    /// parked (or is not of this pool), so ownership cannot be taken twice.
    pub fn unpark(&self, id: FrameId) -> Option<Frame> {
        let parked = self.0.parked.get(id.0 as usize)?;
        parked.swap(false, Ordering::Acquire).then(|| Frame::new(&self.0, id))
    }

    /// The reserve tree for people to read.
    pub fn reserve_report(&self) -> String {
        let state = self.0.state.lock().unwrap();
        state
            .nodes
            .iter()
            .map(|n| format!("{} {}/{} peak {} fail {} {}\n", n.name, n.usage, n.limit, n.peak, n.failures, n.connected))
            .collect()
    }
}

impl State {
    fn charge(&mut self, reserve: ReserveId) -> bool {
        let mut at = Some(reserve);
        while let Some(id) = at {
            let node = &mut self.nodes[id.0 as usize];
            if !node.connected || node.usage + 1 > node.limit {
                node.failures += 1;
                return false;
            }
            at = node.parent;
        }
        let mut at = Some(reserve);
        while let Some(id) = at {
            let node = &mut self.nodes[id.0 as usize];
            node.usage += 1;
            node.peak = node.peak.max(node.usage);
            at = node.parent;
        }
        true
    }
}

impl Inner {
    fn watermarks(&self, root_limit: u32) -> Watermarks {
        let floor = if self.config.reserve { root_limit } else { 0 };
        let min = floor + self.config.headroom;
        let low = min + self.config.low_gap;
        Watermarks {
            floor,
            atomic: floor + self.config.headroom / 2,
            min,
            low,
            high: low + self.config.high_gap,
        }
    }

    pub(crate) fn data(&self, id: FrameId) -> NonNull<u8> {
        // SAFETY: every FrameId is below `frames`, so the offset stays inside the region.
        unsafe { self.base.add(id.0 as usize * PAGE_SIZE) }
    }

    pub(crate) fn charged_to(&self, id: FrameId) -> Option<ReserveId> {
        match self.charge[id.0 as usize].load(Ordering::Relaxed) {
            0 => None,
            n => Some(ReserveId((n - 1) as u16)),
        }
    }

    pub(crate) fn park(&self, id: FrameId) {
        self.parked[id.0 as usize].store(true, Ordering::Release);
    }

    pub(crate) fn free(&self, id: FrameId) {
        let charged = self.charged_to(id);
        let mut state = self.state.lock().unwrap();
        state.free.push(id.0);
        let mut at = charged;
        while let Some(id) = at {
            let node = &mut state.nodes[id.0 as usize];
            node.usage -= 1;
            at = node.parent;
        }
        self.frees.fetch_add(1, Ordering::Relaxed);
    }

    pub(crate) fn free_run(&self, first: FrameId, frames: u32) {
        let mut state = self.state.lock().unwrap();
        state.free.extend(first.0..first.0 + frames);
        self.frees.fetch_add(u64::from(frames), Ordering::Relaxed);
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        // SAFETY: allocated in `new` with this layout; every frame holds the pool alive.
        unsafe { dealloc(self.base.as_ptr(), self.layout) }
    }
}
