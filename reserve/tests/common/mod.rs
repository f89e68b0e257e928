//! A naive model of a pool, and a world that runs both side by side.
//!
//! The model keeps no counter. It knows the objects that are alive and recomputes everything from them:
//! free frames by subtraction, usage by summing charges, limits by the definition. What it says is
//! slow and obvious; the pool must say the same after every operation.

#![allow(dead_code, unreachable_pub, reason = "each test binary is a crate and uses its own part")]

use netswap_reserve::{
    AllocError, Charge, EmergencyScope, Frame, FrameId, FrameRun, Gfp, ObjectCharge, PAGE_SIZE,
    PagePool, PageRef, PoolConfig, Reservation, ReservationError, ReservationSpec, ReserveError,
    ReserveId,
};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

pub const FRAMES: u32 = 96;
pub const HEADROOM: u32 = 10;
pub const LOW_GAP: u32 = 6;
/// Objects that share a frame, where they are charged.
pub const PER_FRAME: u32 = 4;

pub fn cases(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5eed),
        ..ProptestConfig::default()
    }
}

pub fn config() -> PoolConfig {
    PoolConfig {
        headroom: HEADROOM,
        low_gap: LOW_GAP,
        high_gap: 4,
        magazine: 0,
        ..PoolConfig::new(FRAMES)
    }
}

/// Who makes an allocation.
#[derive(Clone, Copy, Debug)]
pub enum Who {
    Nobody,
    /// Inside the scope of a reserve.
    Scope(usize),
    /// With a reserve named on the call.
    Call(usize),
}

/// One step. Indices choose among what there is, modulo its number.
#[derive(Clone, Copy, Debug)]
pub enum Op {
    Alloc(u8, Who),
    Burst(u8, usize, u8),
    Free(usize),
    FreeBurst(usize, u8),
    Park(usize),
    Unpark(usize),
    Share(usize),
    Clone(usize),
    Unshare(usize),
    Add(usize, u32),
    Connect(usize),
    Disconnect(usize),
    Resize(usize, u32),
    Charge(usize, u32),
    ChargeBytes(usize, usize),
    ChargeObjects(usize, u32),
    Uncharge(usize),
    Reserve(u32, Who),
    Draw(usize, Option<usize>),
    Split(usize, u32),
    EndReservation(usize),
    SetAside(u32),
    FreeRun(usize),
}

pub fn who() -> impl Strategy<Value = Who> {
    prop_oneof![
        2 => Just(Who::Nobody),
        1 => (0..8usize).prop_map(Who::Scope),
        1 => (0..8usize).prop_map(Who::Call),
    ]
}

/// Operations, allocations more often than the rest so that memory does run out.
pub fn op() -> impl Strategy<Value = Op> {
    let i = 0..1_000usize;
    prop_oneof![
        16 => (0..16u8, who()).prop_map(|(gfp, who)| Op::Alloc(gfp, who)),
        3 => (0..16u8, i.clone(), 1..48u8).prop_map(|(gfp, r, n)| Op::Burst(gfp, r, n)),
        6 => i.clone().prop_map(Op::Free),
        1 => (i.clone(), 1..48u8).prop_map(|(at, n)| Op::FreeBurst(at, n)),
        2 => i.clone().prop_map(Op::Park),
        2 => i.clone().prop_map(Op::Unpark),
        2 => i.clone().prop_map(Op::Share),
        2 => i.clone().prop_map(Op::Clone),
        2 => i.clone().prop_map(Op::Unshare),
        1 => (i.clone(), 0..12u32).prop_map(|(at, n)| Op::Add(at, n)),
        3 => i.clone().prop_map(Op::Connect),
        2 => i.clone().prop_map(Op::Disconnect),
        2 => (i.clone(), 0..40u32).prop_map(|(at, n)| Op::Resize(at, n)),
        4 => (i.clone(), 0..8u32).prop_map(|(at, n)| Op::Charge(at, n)),
        2 => (i.clone(), 0..5 * PAGE_SIZE).prop_map(|(at, n)| Op::ChargeBytes(at, n)),
        4 => (i.clone(), 0..12u32).prop_map(|(at, n)| Op::ChargeObjects(at, n)),
        6 => i.clone().prop_map(Op::Uncharge),
        4 => (0..24u32, who()).prop_map(|(n, who)| Op::Reserve(n, who)),
        8 => (i.clone(), prop::option::of(0..8usize)).prop_map(|(at, scope)| Op::Draw(at, scope)),
        1 => (i.clone(), 0..12u32).prop_map(|(at, n)| Op::Split(at, n)),
        3 => i.clone().prop_map(Op::EndReservation),
        1 => (0..20u32).prop_map(Op::SetAside),
        1 => i.prop_map(Op::FreeRun),
    ]
}

pub fn gfp(bits: u8) -> Gfp {
    Gfp::from_bits_truncate(bits)
}

#[derive(Clone, Debug)]
pub struct Node {
    pub parent: Option<usize>,
    pub own: u32,
    pub connected: bool,
    pub peak: u32,
    pub failures: u64,
}

/// A live thing of the pool, as the model knows it.
#[derive(Clone, Debug)]
pub struct Held {
    pub frames: u32,
    /// Node and number charged.
    pub charge: Option<(usize, u32)>,
    /// Node and objects charged; they share frames with the node's other objects.
    pub objects: Option<(usize, u32)>,
    /// Frames promised out of ordinary memory.
    pub reserved: u32,
}

impl Held {
    pub const NOTHING: Held = Held { frames: 0, charge: None, objects: None, reserved: 0 };
}

/// The naive model.
#[derive(Clone, Debug)]
pub struct Model {
    pub nodes: Vec<Node>,
    /// Every live frame, run and charge.
    pub held: Vec<Option<Held>>,
}

impl Model {
    pub fn new() -> Model {
        let root = Node { parent: None, own: 0, connected: true, peak: 0, failures: 0 };
        Model { nodes: vec![root], held: Vec::new() }
    }

    pub fn live(&self) -> impl Iterator<Item = &Held> {
        self.held.iter().flatten()
    }

    pub fn free(&self) -> u32 {
        FRAMES - self.live().map(|h| h.frames).sum::<u32>()
    }

    pub fn charged_frames(&self) -> u32 {
        self.live().filter(|h| h.charge.is_some()).map(|h| h.frames).sum()
    }

    pub fn is_within(&self, node: usize, top: usize) -> bool {
        node == top || self.nodes[node].parent.is_some_and(|p| self.is_within(p, top))
    }

    pub fn reserved(&self) -> u32 {
        self.live().map(|h| h.reserved).sum()
    }

    pub fn objects(&self, node: usize) -> u32 {
        self.live().filter_map(|h| h.objects).filter(|c| c.0 == node).map(|c| c.1).sum()
    }

    pub fn direct(&self, node: usize) -> u32 {
        let frames = self.live().filter_map(|h| h.charge).filter(|c| c.0 == node).map(|c| c.1);
        frames.sum::<u32>() + self.objects(node).div_ceil(PER_FRAME)
    }

    pub fn usage(&self, node: usize) -> u32 {
        (0..self.nodes.len()).filter(|&n| self.is_within(n, node)).map(|n| self.direct(n)).sum()
    }

    /// What connected nodes promise, and others only as far as it is in use.
    pub fn limit(&self, node: usize) -> u32 {
        let held = |n: usize| {
            if self.nodes[n].connected { self.nodes[n].own } else { self.direct(n) }
        };
        (0..self.nodes.len()).filter(|&n| self.is_within(n, node)).map(held).sum()
    }

    pub fn floor(&self) -> u32 {
        self.limit(0)
    }

    pub fn mark(&self, gfp: Gfp) -> u32 {
        let over = if gfp.contains(Gfp::ATOMIC) {
            HEADROOM / 2
        } else if gfp.contains(Gfp::SPECULATIVE) {
            HEADROOM + LOW_GAP
        } else {
            HEADROOM
        };
        self.floor() + self.reserved() + over
    }

    /// Charges, or says which node refused.
    pub fn charge(&mut self, node: usize, n: u32, frames: u32) -> Result<usize, usize> {
        self.hold(node, n, Held { frames, charge: Some((node, n)), ..Held::NOTHING })
    }

    /// The same for objects: the frames that they need beyond those that the node's have.
    pub fn charge_objects(&mut self, node: usize, n: u32) -> Result<usize, usize> {
        let before = self.objects(node);
        let frames = (before + n).div_ceil(PER_FRAME) - before.div_ceil(PER_FRAME);
        self.hold(node, frames, Held { objects: Some((node, n)), ..Held::NOTHING })
    }

    fn hold(&mut self, node: usize, n: u32, held: Held) -> Result<usize, usize> {
        let mut at = Some(node);
        if !self.nodes[node].connected {
            self.nodes[node].failures += 1;
            return Err(node);
        }
        while let Some(here) = at {
            if self.usage(here) + n > self.limit(here) {
                self.nodes[here].failures += 1;
                return Err(here);
            }
            at = self.nodes[here].parent;
        }
        self.held.push(Some(held));
        for here in 0..self.nodes.len() {
            self.nodes[here].peak = self.nodes[here].peak.max(self.usage(here));
        }
        Ok(self.held.len() - 1)
    }

    /// What an allocation should do: the node charged, or the error as the pool would say it.
    pub fn alloc(&mut self, gfp: Gfp, who: Option<usize>) -> Result<Option<usize>, Refused> {
        let (free, watermark) = (self.free(), self.mark(gfp));
        if free > watermark {
            self.held.push(Some(Held { frames: 1, ..Held::NOTHING }));
            return Ok(None);
        }
        match who.filter(|_| !gfp.contains(Gfp::NOMEMALLOC)) {
            None => Err(Refused::AtWatermark(free, watermark)),
            Some(_) if free <= self.reserved() => Err(Refused::Exhausted),
            Some(node) => match self.charge(node, 1, 1) {
                Ok(_) => Ok(Some(node)),
                Err(_) => Err(Refused::UsedUp(node)),
            },
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    AtWatermark(u32, u32),
    UsedUp(usize),
    Exhausted,
}

pub enum Object {
    Frame(Frame),
    Parked(FrameId),
    Shared(PageRef),
    Charge(Charge),
    Objects(ObjectCharge),
    Reservation(Reservation<'static>),
    Run(FrameRun),
}

/// What the pool shows of itself.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shown {
    pub free: u32,
    pub reserved: u32,
    /// Limit, usage, own, connected of each node; the counters of failures and the peak are history.
    pub nodes: Vec<(u32, u32, u32, bool)>,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An allocation: whether it was entitled, and the charge.
    Allocated {
        entitled: bool,
        charged: bool,
    },
    /// A failure; nothing may have changed.
    Failed,
    Done,
}

/// The pool and its model.
pub struct World {
    pub pool: PagePool,
    pub ids: Vec<ReserveId>,
    pub model: Model,
    /// Live objects with their place in `model.held`.
    pub objects: Vec<(usize, Object)>,
}

impl World {
    pub fn new() -> World {
        World {
            pool: {
                let pool = PagePool::new(config());
                pool.count_objects(ReserveId::ROOT, PER_FRAME);
                pool
            },
            ids: vec![ReserveId::ROOT],
            model: Model::new(),
            objects: Vec::new(),
        }
    }

    pub fn shown(&self) -> Shown {
        Shown {
            free: self.pool.free_frames(),
            reserved: self.pool.reservation_stats().frames,
            nodes: self
                .pool
                .reserve_info()
                .iter()
                .map(|i| (i.limit, i.usage, i.own, i.connected))
                .collect(),
        }
    }

    /// Pool and model agree about everything that can be seen.
    pub fn check(&self) {
        assert_eq!(self.pool.free_frames(), self.model.free());
        for (i, info) in self.pool.reserve_info().iter().enumerate() {
            let node = &self.model.nodes[i];
            assert_eq!(info.usage, self.model.usage(i), "usage of node {i}");
            assert_eq!(info.limit, self.model.limit(i), "limit of node {i}");
            assert_eq!(info.peak, node.peak, "peak of node {i}");
            assert_eq!(info.failures, node.failures, "failures of node {i}");
            assert_eq!((info.own, info.connected), (node.own, node.connected));
            assert_eq!(info.objects, u64::from(self.model.objects(i)), "objects of node {i}");
        }
        assert_eq!(self.pool.reservation_stats().frames, self.model.reserved(), "reserved");
        assert_eq!(self.pool.watermarks().min, self.model.mark(Gfp::KERNEL));
        assert_eq!(self.pool.watermarks().floor, self.model.floor());
    }

    fn pick(&self, i: usize, is: impl Fn(&Object) -> bool) -> Option<usize> {
        let fit: Vec<usize> =
            (0..self.objects.len()).filter(|&at| is(&self.objects[at].1)).collect();
        (!fit.is_empty()).then(|| fit[i % fit.len()])
    }

    fn node(&self, i: usize) -> usize {
        i % self.ids.len()
    }

    fn refused(&self, error: AllocError) -> Refused {
        match error {
            AllocError::AtWatermark { free, watermark } => Refused::AtWatermark(free, watermark),
            AllocError::ReserveUsedUp { reserve } => {
                Refused::UsedUp(self.ids.iter().position(|&id| id == reserve).unwrap())
            }
            AllocError::Exhausted => Refused::Exhausted,
        }
    }

    /// Checks an allocation of the pool against the model's, and keeps the frame.
    fn allocated(
        &mut self,
        got: Result<Frame, AllocError>,
        gfp: Gfp,
        who: Option<usize>,
    ) -> Outcome {
        let want = self.model.alloc(gfp, who);
        match (got, want) {
            (Ok(frame), Ok(charge)) => {
                assert_eq!(frame.charged_to(), charge.map(|n| self.ids[n]));
                let held = self.model.held.len() - 1;
                self.objects.push((held, Object::Frame(frame)));
                let entitled = who.is_some() && !gfp.contains(Gfp::NOMEMALLOC);
                Outcome::Allocated { entitled, charged: charge.is_some() }
            }
            (Err(error), Err(refused)) => {
                assert_eq!(self.refused(error), refused);
                assert!(self.pool.take_pressure(), "a failure asks for reclaim");
                Outcome::Failed
            }
            (got, want) => panic!("the pool says {got:?}, the model {want:?}"),
        }
    }

    fn let_go(&mut self, at: usize) -> Object {
        let (held, object) = self.objects.swap_remove(at);
        // Of a shared page, only the last reference lets the model's object go.
        let more = self.objects.iter().any(|(h, _)| *h == held);
        if !more {
            self.model.held[held] = None;
        }
        object
    }

    pub fn step(&mut self, op: Op) -> Outcome {
        match op {
            Op::Alloc(bits, who) => {
                let gfp = gfp(bits);
                let by_call = gfp.contains(Gfp::MEMALLOC).then_some(0);
                let (got, who) = match who {
                    Who::Nobody => (self.pool.alloc(gfp), by_call),
                    Who::Scope(i) => {
                        let node = self.node(i);
                        let _scope = EmergencyScope::enter(&self.pool, self.ids[node]);
                        (self.pool.alloc(gfp), Some(node))
                    }
                    Who::Call(i) => {
                        let node = self.node(i);
                        (self.pool.alloc_from(gfp, self.ids[node]), Some(node))
                    }
                };
                self.allocated(got, gfp, who)
            }
            Op::Burst(bits, i, n) => {
                let (gfp, node) = (gfp(bits), self.node(i));
                let mut frames = Vec::new();
                let result = self.pool.alloc_burst_from(gfp, self.ids[node], n.into(), |f| {
                    frames.push(f);
                });
                for frame in frames {
                    self.allocated(Ok(frame), gfp, Some(node));
                }
                match result {
                    Ok(()) => Outcome::Done,
                    // The model has not been asked for the one that failed.
                    Err(error) => {
                        self.allocated(Err(error), gfp, Some(node));
                        Outcome::Done
                    }
                }
            }
            Op::Free(i) => {
                if let Some(at) =
                    self.pick(i, |o| matches!(o, Object::Frame(_) | Object::Shared(_)))
                {
                    drop(self.let_go(at));
                }
                Outcome::Done
            }
            Op::FreeBurst(i, n) => {
                let mut frames = Vec::new();
                for _ in 0..n {
                    if let Some(at) = self.pick(i, |o| matches!(o, Object::Frame(_)))
                        && let Object::Frame(frame) = self.let_go(at)
                    {
                        frames.push(frame);
                    }
                }
                self.pool.free_burst(frames);
                Outcome::Done
            }
            Op::Park(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Frame(_)))
                    && let (held, Object::Frame(frame)) = self.objects.swap_remove(at)
                {
                    self.objects.push((held, Object::Parked(frame.park())));
                }
                Outcome::Done
            }
            Op::Unpark(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Parked(_)))
                    && let (held, Object::Parked(id)) = self.objects.swap_remove(at)
                {
                    let frame = self.pool.unpark(id).expect("it is parked");
                    assert!(self.pool.unpark(id).is_none(), "and not any more");
                    self.objects.push((held, Object::Frame(frame)));
                }
                Outcome::Done
            }
            Op::Share(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Frame(_)))
                    && let (held, Object::Frame(frame)) = self.objects.swap_remove(at)
                {
                    self.objects.push((held, Object::Shared(frame.share())));
                }
                Outcome::Done
            }
            Op::Clone(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Shared(_)))
                    && let (held, Object::Shared(page)) = &self.objects[at]
                {
                    let copy = (*held, Object::Shared(page.clone()));
                    self.objects.push(copy);
                }
                Outcome::Done
            }
            Op::Unshare(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Shared(_)))
                    && let (held, Object::Shared(page)) = self.objects.swap_remove(at)
                {
                    let sole = self.objects.iter().all(|(h, _)| *h != held);
                    self.objects.push(match page.try_unshare() {
                        Ok(frame) => {
                            assert!(sole);
                            (held, Object::Frame(frame))
                        }
                        Err(page) => {
                            assert!(!sole);
                            (held, Object::Shared(page))
                        }
                    });
                }
                Outcome::Done
            }
            Op::Add(i, own) => {
                if self.ids.len() < 8 {
                    let parent = self.node(i);
                    let id = self.pool.add_reserve(self.ids[parent], "node", own);
                    self.pool.count_objects(id, PER_FRAME);
                    self.ids.push(id);
                    self.model.nodes.push(Node {
                        parent: Some(parent),
                        own,
                        connected: false,
                        peak: 0,
                        failures: 0,
                    });
                }
                Outcome::Done
            }
            Op::Connect(i) => {
                let node = self.node(i);
                let got = self.pool.connect(self.ids[node]);
                self.changed(got, |model| {
                    for n in 0..model.nodes.len() {
                        if model.is_within(n, node) {
                            model.nodes[n].connected = true;
                        }
                    }
                })
            }
            Op::Disconnect(i) => {
                let node = self.node(i);
                let got = self.pool.disconnect(self.ids[node]);
                self.changed(got, |model| {
                    for n in 0..model.nodes.len() {
                        if model.is_within(n, node) {
                            model.nodes[n].connected = false;
                        }
                    }
                })
            }
            Op::Resize(i, own) => {
                let node = self.node(i);
                let got = self.pool.resize(self.ids[node], own);
                self.changed(got, |model| model.nodes[node].own = own)
            }
            Op::Charge(i, n) => {
                let node = self.node(i);
                let got = self.pool.charge(self.ids[node], n).map(|charge| {
                    assert_eq!((charge.frames(), charge.reserve()), (n, self.ids[node]));
                    Object::Charge(charge)
                });
                let want = self.model.charge(node, n, 0);
                self.charged(got, want)
            }
            Op::ChargeBytes(i, bytes) => {
                let node = self.node(i);
                let got = self.pool.charge_bytes(self.ids[node], bytes).map(Object::Charge);
                let want = self.model.charge(node, bytes.div_ceil(PAGE_SIZE) as u32, 0);
                self.charged(got, want)
            }
            Op::ChargeObjects(i, n) => {
                let node = self.node(i);
                let got = self.pool.charge_objects(self.ids[node], n).map(|charge| {
                    assert_eq!((charge.objects(), charge.reserve()), (n, self.ids[node]));
                    Object::Objects(charge)
                });
                let want = self.model.charge_objects(node, n);
                self.charged(got, want)
            }
            Op::Reserve(n, who) => self.reserve(n, who),
            Op::Draw(i, scope) => {
                // Whatever the scope that is entered in between.
                let scope = scope.map(|i| self.ids[self.node(i)]);
                let _scope = scope.map(|id| EmergencyScope::enter(&self.pool, id));
                self.draw(i)
            }
            Op::Split(i, n) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Reservation(_)))
                    && let (held, Object::Reservation(whole)) = &mut self.objects[at]
                {
                    let left = whole.pages_left();
                    let part = whole.split(n);
                    assert_eq!(part.is_some(), n <= left);
                    if let Some(part) = part {
                        let held = self.model.held[*held].as_mut().unwrap();
                        let mut own = Held::NOTHING;
                        match &mut held.charge {
                            Some((node, charged)) => {
                                *charged -= n;
                                own.charge = Some((*node, n));
                            }
                            None => {
                                held.reserved -= n;
                                own.reserved = n;
                            }
                        }
                        self.model.held.push(Some(own));
                        let object = Object::Reservation(part);
                        self.objects.push((self.model.held.len() - 1, object));
                    }
                }
                Outcome::Done
            }
            Op::EndReservation(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Reservation(_))) {
                    drop(self.let_go(at));
                }
                Outcome::Done
            }
            Op::Uncharge(i) => {
                if let Some(at) =
                    self.pick(i, |o| matches!(o, Object::Charge(_) | Object::Objects(_)))
                {
                    drop(self.let_go(at));
                }
                Outcome::Done
            }
            Op::SetAside(n) => {
                let enough = self.model.free() >= self.model.mark(Gfp::KERNEL) + n || n == 0;
                match self.pool.set_aside(n) {
                    Ok(run) => {
                        assert!(enough);
                        assert_eq!(run.bytes().len(), n as usize * netswap_reserve::PAGE_SIZE);
                        self.model.held.push(Some(Held { frames: n, ..Held::NOTHING }));
                        self.objects.push((self.model.held.len() - 1, Object::Run(run)));
                        Outcome::Done
                    }
                    Err(error) => {
                        assert_eq!(matches!(error, AllocError::AtWatermark { .. }), !enough);
                        Outcome::Failed
                    }
                }
            }
            Op::FreeRun(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Run(_))) {
                    drop(self.let_go(at));
                }
                Outcome::Done
            }
        }
    }

    fn charged(
        &mut self,
        got: Result<Object, ReserveError>,
        want: Result<usize, usize>,
    ) -> Outcome {
        match (got, want) {
            (Ok(object), Ok(held)) => {
                self.objects.push((held, object));
                Outcome::Done
            }
            (Err(ReserveError::AtLimit { usage, limit, .. }), Err(at)) => {
                assert_eq!((usage, limit), (self.model.usage(at), self.model.limit(at)));
                Outcome::Failed
            }
            (got, want) => panic!("the pool says {:?}, the model {want:?}", got.map(|_| ())),
        }
    }

    /// Promises from ordinary memory as many frames as could be allocated one by one, else from the
    /// caller's reserve, all of them.
    fn reserve(&mut self, n: u32, who: Who) -> Outcome {
        let spec = ReservationSpec::pages(n);
        let (got, node) = match who {
            Who::Nobody => (self.pool.reserve(spec), None),
            Who::Scope(i) => {
                let node = self.node(i);
                let _scope = EmergencyScope::enter(&self.pool, self.ids[node]);
                (self.pool.reserve(spec), Some(node))
            }
            Who::Call(i) => {
                let node = self.node(i);
                (self.pool.reserve_from(spec, self.ids[node]), Some(node))
            }
        };
        let model = &mut self.model;
        let (free, min) = (model.free(), model.mark(Gfp::KERNEL));
        let want = if free >= min + n {
            model.held.push(Some(Held { reserved: n, ..Held::NOTHING }));
            Some(None)
        } else {
            node.and_then(|node| model.charge(node, n, 0).ok().map(|_| Some(node)))
        };
        match (got, want) {
            (Ok(reservation), Some(node)) => {
                assert_eq!(reservation.charged_to(), node.map(|n| self.ids[n]));
                let held = self.model.held.len() - 1;
                self.objects.push((held, Object::Reservation(reservation)));
                Outcome::Done
            }
            (Err(error), None) => {
                if let ReservationError::Short { wanted, free: seen, watermark } = error {
                    assert_eq!((wanted, seen, watermark), (n, free, min));
                }
                assert!(self.pool.take_pressure(), "a failure asks for reclaim");
                Outcome::Failed
            }
            (got, want) => panic!("the pool says {got:?}, the model {want:?}"),
        }
    }

    /// A page of a reservation cannot fail as long as one is left.
    fn draw(&mut self, i: usize) -> Outcome {
        let Some(at) = self.pick(i, |o| matches!(o, Object::Reservation(_))) else {
            return Outcome::Done;
        };
        let ordinary = self.model.free() > self.model.mark(Gfp::KERNEL);
        let (held, Object::Reservation(reservation)) = &mut self.objects[at] else {
            unreachable!()
        };
        let left = reservation.pages_left();
        let frame = reservation.try_page();
        assert_eq!(frame.is_some(), left > 0, "a promise is kept");
        let Some(frame) = frame else { return Outcome::Failed };
        let held = self.model.held[*held].as_mut().unwrap();
        let mut own = Held { frames: 1, ..Held::NOTHING };
        match &mut held.charge {
            Some((node, charged)) => {
                *charged -= 1;
                own.charge = (!ordinary).then_some((*node, 1));
            }
            None => held.reserved -= 1,
        }
        assert_eq!(frame.charged_to(), own.charge.map(|(node, _)| self.ids[node]));
        self.model.held.push(Some(own));
        self.objects.push((self.model.held.len() - 1, Object::Frame(frame)));
        Outcome::Done
    }

    /// Checks a change of the tree against the same change made to the model.
    fn changed(&mut self, got: Result<(), ReserveError>, change: impl Fn(&mut Model)) -> Outcome {
        let before = self.model.clone();
        let floor = before.floor();
        change(&mut self.model);
        let after = &self.model;
        let in_use = (0..after.nodes.len()).any(|n| after.limit(n) < after.usage(n));
        let promised = after.free() + after.charged_frames() - after.reserved();
        let short = after.floor() > floor && promised < after.floor();
        match got {
            Ok(()) => {
                assert!(!in_use && !short);
                return Outcome::Done;
            }
            Err(ReserveError::InUse { .. }) => assert!(in_use),
            Err(ReserveError::CannotSecure { wanted, free, .. }) => {
                assert!(short && !in_use);
                assert_eq!((wanted, free), (after.floor() - floor, after.free()));
                assert!(self.pool.take_pressure(), "a failure asks for reclaim");
            }
            Err(other) => panic!("{other}"),
        }
        self.model = before;
        Outcome::Failed
    }

    /// Drops everything and checks that nothing is left.
    pub fn finish(mut self) {
        for (_, object) in self.objects.drain(..) {
            if let Object::Parked(id) = object {
                drop(self.pool.unpark(id));
            }
        }
        assert_eq!(self.pool.free_frames(), FRAMES, "all frames are back");
        assert_eq!(self.pool.reservation_stats().frames, 0, "nothing is reserved any more");
        for info in self.pool.reserve_info() {
            assert_eq!(info.usage, 0, "nothing is charged any more");
        }
    }
}
