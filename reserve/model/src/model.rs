//! The naive model of a pool.
//!
//! It keeps no counter. It knows the objects that are alive and recomputes everything from them: free
//! frames by subtraction, usage by summing charges, limits by the definition. What it says is slow and
//! obvious; the pool must say the same after every operation.

use netswap_reserve::Gfp;
use netswap_reserve::trace::{Refusal, TraceHeader};

/// A node of the tree.
#[derive(Clone, Debug)]
pub struct Node {
    /// The node above; the root has none.
    pub parent: Option<usize>,
    /// Frames of its own.
    pub own: u32,
    /// Whether it promises them.
    pub connected: bool,
    /// The highest usage so far.
    pub peak: u32,
    /// Charges that it refused.
    pub failures: u64,
}

/// A live thing of the pool, as the model knows it.
#[derive(Clone, Debug)]
pub struct Held {
    /// Frames it consists of.
    pub frames: u32,
    /// Node and number charged.
    pub charge: Option<(usize, u32)>,
}

/// A change of the tree.
#[derive(Clone, Copy, Debug)]
pub enum Change {
    /// Of the node and all below.
    Connect(usize),
    /// Of the node and all below.
    Disconnect(usize),
    /// The node's own frames.
    Resize(usize, u32),
}

/// Why an allocation is refused; names the reserve that the caller is entitled to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Free frames, and the watermark.
    AtWatermark(u32, u32),
    /// The caller's reserve.
    UsedUp(usize),
    /// No frame is free.
    Exhausted,
}

impl From<Refused> for Refusal {
    fn from(refused: Refused) -> Refusal {
        match refused {
            Refused::AtWatermark(free, watermark) => Refusal::AtWatermark { free, watermark },
            Refused::UsedUp(_) => Refusal::ReserveUsedUp,
            Refused::Exhausted => Refusal::Exhausted,
        }
    }
}

/// Why a change of the tree is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ChangeRefused {
    /// A limit would be below what is charged.
    InUse,
    /// Frames the floor would grow by, and frames free.
    CannotSecure(u32, u32),
}

/// A fault that can be planted into the model, so that who compares is seen to compare.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Planted {
    /// A charge that exactly fills a limit is refused.
    RefuseExactFill,
    /// An atomic call stops at min, as if it could wait.
    AtomicStopsAtMin,
    /// A guess stops at min, as if it were no guess.
    GuessStopsAtMin,
    /// A node that is disconnected drops its promise at once, charged or not.
    ForgetDraining,
}

/// The naive model.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the pool was set up as.
    pub config: TraceHeader,
    /// The tree: the root, then nodes as they were added.
    pub nodes: Vec<Node>,
    /// Every live frame, run and charge.
    pub held: Vec<Option<Held>>,
    /// Places in `held` that are free again.
    spare: Vec<usize>,
    /// The place that was filled last.
    pub newest: usize,
    /// What it does wrong on purpose.
    pub planted: Option<Planted>,
}

impl Model {
    /// The model of a pool that nothing has been done to.
    pub fn new(config: TraceHeader) -> Model {
        let root = Node { parent: None, own: 0, connected: true, peak: 0, failures: 0 };
        Model {
            config,
            nodes: vec![root],
            held: Vec::new(),
            spare: Vec::new(),
            newest: 0,
            planted: None,
        }
    }

    /// The same model with a fault.
    pub fn planting(self, fault: Planted) -> Model {
        Model { planted: Some(fault), ..self }
    }

    fn plants(&self, fault: Planted) -> bool {
        self.planted == Some(fault)
    }

    /// Everything alive.
    pub fn live(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().flatten()
    }

    /// Adds something alive; its place is `newest`.
    pub fn hold(&mut self, held: Held) {
        self.newest = self.spare.pop().unwrap_or(self.held.len());
        if self.newest == self.held.len() {
            self.held.push(None);
        }
        self.held[self.newest] = Some(held);
    }

    /// Ends what is at a place.
    ///
    /// # Panics
    /// If nothing is.
    pub fn let_go(&mut self, at: usize) {
        assert!(self.held[at].take().is_some(), "it is alive");
        self.spare.push(at);
    }

    /// Free frames.
    pub fn free(&self) -> u32 {
        self.config.frames - self.live().map(|h| h.frames).sum::<u32>()
    }

    /// Frames that are out and charged.
    pub fn charged_frames(&self) -> u32 {
        self.live().filter(|h| h.charge.is_some()).map(|h| h.frames).sum()
    }

    /// Whether `node` is `top` or below it.
    pub fn is_within(&self, node: usize, top: usize) -> bool {
        let mut at = Some(node);
        while at.is_some_and(|at| at != top) {
            at = at.and_then(|at| self.nodes[at].parent);
        }
        at.is_some()
    }

    /// What is charged to a node itself.
    pub fn direct(&self, node: usize) -> u32 {
        self.live().filter_map(|h| h.charge).filter(|c| c.0 == node).map(|c| c.1).sum()
    }

    /// What is charged to a node and below.
    pub fn usage(&self, node: usize) -> u32 {
        (0..self.nodes.len()).filter(|&n| self.is_within(n, node)).map(|n| self.direct(n)).sum()
    }

    /// What connected nodes promise, and others only as far as it is in use.
    pub fn limit(&self, node: usize) -> u32 {
        let held = |n: usize| {
            if self.nodes[n].connected {
                self.nodes[n].own
            } else if self.plants(Planted::ForgetDraining) {
                0
            } else {
                self.direct(n)
            }
        };
        // More than a u32 holds can be asked for, though never had.
        let within = (0..self.nodes.len()).filter(|&n| self.is_within(n, node));
        within.map(|n| u64::from(held(n))).sum::<u64>().try_into().unwrap_or(u32::MAX)
    }

    /// The limit of the root.
    pub fn promised(&self) -> u32 {
        self.limit(0)
    }

    /// Where the pool keeps the floor.
    pub fn floor(&self) -> u32 {
        if self.config.reserve { self.promised() } else { 0 }
    }

    /// The watermark of a call with these flags.
    pub fn mark(&self, gfp: Gfp) -> u32 {
        let TraceHeader { headroom, low_gap, .. } = self.config;
        let over = if gfp.contains(Gfp::ATOMIC) && !self.plants(Planted::AtomicStopsAtMin) {
            headroom / 2
        } else if gfp.contains(Gfp::SPECULATIVE) && !self.plants(Planted::GuessStopsAtMin) {
            headroom.saturating_add(low_gap)
        } else {
            headroom
        };
        self.floor().saturating_add(over)
    }

    /// Charges `n` frames for something of `frames` frames, or says which node refused.
    ///
    /// # Errors
    /// The node that refused.
    pub fn charge(&mut self, node: usize, n: u32, frames: u32) -> Result<(), usize> {
        if !self.nodes[node].connected {
            self.nodes[node].failures += 1;
            return Err(node);
        }
        let exact = u32::from(self.plants(Planted::RefuseExactFill));
        let mut at = Some(node);
        while let Some(here) = at {
            if u64::from(self.usage(here)) + u64::from(n) + u64::from(exact)
                > u64::from(self.limit(here))
            {
                self.nodes[here].failures += 1;
                return Err(here);
            }
            at = self.nodes[here].parent;
        }
        self.hold(Held { frames, charge: Some((node, n)) });
        for here in 0..self.nodes.len() {
            self.nodes[here].peak = self.nodes[here].peak.max(self.usage(here));
        }
        Ok(())
    }

    /// What an allocation should do: the node charged, or the error as the pool would say it.
    ///
    /// # Errors
    /// Why it should be refused.
    pub fn alloc(
        &mut self,
        gfp: Gfp,
        who: Option<usize>,
        by_scope: bool,
    ) -> Result<Option<usize>, Refused> {
        let (free, watermark) = (self.free(), self.mark(gfp));
        let ordinary = Held { frames: 1, charge: None };
        if free > watermark {
            self.hold(ordinary);
            return Ok(None);
        }
        match who.filter(|_| !gfp.contains(Gfp::NOMEMALLOC)) {
            None => Err(Refused::AtWatermark(free, watermark)),
            Some(_) if free == 0 => Err(Refused::Exhausted),
            Some(_) if !self.config.reserve && by_scope => {
                self.hold(ordinary);
                Ok(None)
            }
            Some(_) if !self.config.reserve => Err(Refused::AtWatermark(free, watermark)),
            Some(node) => match self.charge(node, 1, 1) {
                Ok(()) => Ok(Some(node)),
                Err(_) => Err(Refused::UsedUp(node)),
            },
        }
    }

    /// Sets a run aside. Whether contiguous frames are there is not the model's to know.
    ///
    /// # Errors
    /// When too few frames are free.
    pub fn set_aside(&mut self, frames: u32) -> Result<(), Refused> {
        let (free, min) = (self.free(), self.mark(Gfp::KERNEL));
        if frames > 0 && u64::from(free) < u64::from(min) + u64::from(frames) {
            return Err(Refused::AtWatermark(free, min));
        }
        self.hold(Held { frames, charge: None });
        Ok(())
    }

    /// Makes an ordinary frame of the one at a place, if an ordinary allocation would succeed.
    pub fn exchange(&mut self, at: usize, gfp: Gfp) -> bool {
        let has_room = self.free() > self.mark(gfp);
        let held = self.held[at].as_mut().expect("it is alive");
        if has_room {
            held.charge = None;
        }
        held.charge.is_none()
    }

    /// Adds a node, not connected.
    pub fn add(&mut self, parent: usize, own: u32) {
        let parent = Some(parent);
        self.nodes.push(Node { parent, own, connected: false, peak: 0, failures: 0 });
    }

    /// Makes a change of the tree, or nothing.
    ///
    /// # Errors
    /// Why it should be refused.
    pub fn change(&mut self, change: Change) -> Result<(), ChangeRefused> {
        let before = self.nodes.clone();
        let promised = self.promised();
        match change {
            Change::Resize(node, own) => self.nodes[node].own = own,
            Change::Connect(node) | Change::Disconnect(node) => {
                for n in 0..self.nodes.len() {
                    if self.is_within(n, node) {
                        self.nodes[n].connected = matches!(change, Change::Connect(_));
                    }
                }
            }
        }
        let after = self.promised();
        let result = if (0..self.nodes.len()).any(|n| self.limit(n) < self.usage(n)) {
            Err(ChangeRefused::InUse)
        } else if self.config.reserve
            && after > promised
            && self.free() + self.charged_frames() < after
        {
            Err(ChangeRefused::CannotSecure(after - promised, self.free()))
        } else {
            Ok(())
        };
        if result.is_err() {
            self.nodes = before;
        }
        result
    }
}
