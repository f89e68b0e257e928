//! The naive model of a pool.
//!
//! It keeps no counter. It knows the objects that are alive and recomputes everything from them: free
//! frames by subtraction, usage by summing charges, what is reserved by summing promises, limits by the
//! definition. What it says is slow and
//! obvious; the pool must say the same after every operation.

use netswap_reserve::Gfp;
use netswap_reserve::trace::{NotReserved, Refusal, TraceHeader};

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
    /// Objects that share a frame; 0 if it counts none.
    pub per_frame: u32,
}

/// A live thing of the pool, as the model knows it.
#[derive(Clone, Debug, Default)]
pub struct Held {
    /// Frames it consists of.
    pub frames: u32,
    /// Node and number charged. Of a promise: what it still owes, from a reserve.
    pub charge: Option<(usize, u32)>,
    /// Node and objects charged, which share frames with the node's other objects.
    pub objects: Option<(usize, u32)>,
    /// What a promise still owes from ordinary memory.
    pub reserved: u32,
}

impl Held {
    /// What a promise still owes.
    pub fn owed(&self) -> u32 {
        self.charge.map_or(self.reserved, |(_, n)| n)
    }

    /// Takes `n` frames off a promise, and gives them as one of its own.
    fn take_off(&mut self, n: u32) -> Held {
        if let Some((node, left)) = &mut self.charge {
            *left -= n;
            Held { charge: Some((*node, n)), ..Held::default() }
        } else {
            self.reserved -= n;
            Held { reserved: n, ..Held::default() }
        }
    }
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
    /// What is reserved is there for others.
    ForgetReserved,
    /// Objects of one charge share no frame with those of another.
    RoundObjectsEach,
}

impl Planted {
    /// All of them.
    pub const ALL: [Planted; 6] = [
        Planted::RefuseExactFill,
        Planted::AtomicStopsAtMin,
        Planted::GuessStopsAtMin,
        Planted::ForgetDraining,
        Planted::ForgetReserved,
        Planted::RoundObjectsEach,
    ];
}

/// The naive model.
#[derive(Clone, Debug)]
pub struct Model {
    /// What the pool was set up as.
    pub config: TraceHeader,
    /// The tree: the root, then nodes as they were added.
    pub nodes: Vec<Node>,
    /// Every live frame, run, charge and promise.
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
        let root =
            Node { parent: None, own: 0, connected: true, peak: 0, failures: 0, per_frame: 0 };
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

    /// Frames promised out of ordinary memory and not drawn yet.
    pub fn reserved(&self) -> u32 {
        self.live().map(|h| h.reserved).sum()
    }

    /// Objects charged to a node itself.
    pub fn objects(&self, node: usize) -> u64 {
        let of_node = self.live().filter_map(|h| h.objects).filter(|o| o.0 == node);
        of_node.map(|o| u64::from(o.1)).sum()
    }

    /// What is charged to a node itself. Its objects share frames.
    pub fn direct(&self, node: usize) -> u32 {
        let (mut frames, mut objects) = (0, 0u64);
        let per_frame = u64::from(self.nodes[node].per_frame.max(1));
        for held in self.live() {
            frames += held.charge.filter(|c| c.0 == node).map_or(0, |c| c.1);
            let more = held.objects.filter(|o| o.0 == node).map_or(0, |o| u64::from(o.1));
            objects += if self.plants(Planted::RoundObjectsEach) {
                more.next_multiple_of(per_frame)
            } else {
                more
            };
        }
        // At most a limit, which is a u32.
        frames + objects.div_ceil(per_frame) as u32
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
        let reserved = if self.plants(Planted::ForgetReserved) { 0 } else { self.reserved() };
        self.floor().saturating_add(reserved).saturating_add(over)
    }

    /// Charges `n` frames for something of `frames` frames, or says which node refused.
    ///
    /// # Errors
    /// The node that refused.
    pub fn charge(&mut self, node: usize, n: u32, frames: u32) -> Result<(), usize> {
        let held = Held { frames, charge: Some((node, n)), ..Held::default() };
        self.hold_charged(node, n.into(), held)
    }

    /// Charges `n` objects: the frames that they need beyond those that the node's objects have.
    ///
    /// # Errors
    /// The node that refused.
    ///
    /// # Panics
    /// If the node counts no objects.
    pub fn charge_objects(&mut self, node: usize, n: u32) -> Result<(), usize> {
        let (before, per_frame) = (self.objects(node), u64::from(self.nodes[node].per_frame));
        let frames = (before + u64::from(n)).div_ceil(per_frame) - before.div_ceil(per_frame);
        self.hold_charged(node, frames, Held { objects: Some((node, n)), ..Held::default() })
    }

    /// Holds something if `n` frames more may be charged to the node and all above it.
    fn hold_charged(&mut self, node: usize, n: u64, held: Held) -> Result<(), usize> {
        if !self.nodes[node].connected {
            self.nodes[node].failures += 1;
            return Err(node);
        }
        let exact = u32::from(self.plants(Planted::RefuseExactFill));
        let mut at = Some(node);
        while let Some(here) = at {
            if u64::from(self.usage(here)) + n + u64::from(exact) > u64::from(self.limit(here)) {
                self.nodes[here].failures += 1;
                return Err(here);
            }
            at = self.nodes[here].parent;
        }
        self.hold(held);
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
        let ordinary = Held { frames: 1, ..Held::default() };
        if free > watermark {
            self.hold(ordinary);
            return Ok(None);
        }
        match who.filter(|_| !gfp.contains(Gfp::NOMEMALLOC)) {
            None => Err(Refused::AtWatermark(free, watermark)),
            Some(_) if free <= self.reserved() => Err(Refused::Exhausted),
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
        self.hold(Held { frames, ..Held::default() });
        Ok(())
    }

    /// Promises `n` frames, if as many ordinary allocations one by one would succeed; else all of them from
    /// the caller's reserve. Says which node is charged.
    ///
    /// # Errors
    /// Why it should be refused.
    pub fn reserve(
        &mut self,
        n: u32,
        who: Option<usize>,
        by_scope: bool,
    ) -> Result<Option<usize>, NotReserved> {
        let (free, min) = (self.free(), self.mark(Gfp::KERNEL));
        let is_ordinary = u64::from(free) >= u64::from(min) + u64::from(n);
        let is_ablated = !self.config.reserve
            && (who.is_some() && by_scope)
            && u64::from(free) >= u64::from(self.reserved()) + u64::from(n);
        if is_ordinary || is_ablated {
            self.hold(Held { reserved: n, ..Held::default() });
            return Ok(None);
        }
        let most = self.floor().saturating_add(self.config.headroom);
        let most = self.config.frames.saturating_sub(most);
        match who {
            Some(node) if self.config.reserve && self.charge(node, n, 0).is_ok() => Ok(Some(node)),
            None if n > most => Err(NotReserved::TooLarge { most }),
            _ => Err(NotReserved::Short { free, watermark: min }),
        }
    }

    /// Draws a frame of the promise at a place, which owes one. Says which node it is charged to: that of the
    /// promise, unless there is ordinary memory.
    ///
    /// # Panics
    /// If it owes none.
    pub fn draw(&mut self, at: usize) -> Option<usize> {
        let has_room = self.free() > self.mark(Gfp::KERNEL);
        let owed = self.held[at].as_mut().expect("it is alive").take_off(1);
        let charge = owed.charge.filter(|_| !has_room);
        self.hold(Held { frames: 1, charge, ..Held::default() });
        charge.map(|(node, _)| node)
    }

    /// Makes a promise of its own of `n` frames that the one at a place owes.
    ///
    /// # Panics
    /// If it owes fewer.
    pub fn split(&mut self, at: usize, n: u32) {
        let part = self.held[at].as_mut().expect("it is alive").take_off(n);
        self.hold(part);
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
        self.nodes.push(Node { parent, own, connected: false, peak: 0, failures: 0, per_frame: 0 });
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
            && self.free() + self.charged_frames() < after.saturating_add(self.reserved())
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
