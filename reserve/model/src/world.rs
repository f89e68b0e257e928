//! A pool and its model side by side: each operation is done to both, and both must answer the same.

mod promises;

use netswap_reserve::trace::TraceHeader;
use netswap_reserve::{
    AllocError, Charge, EmergencyScope, Frame, FrameId, FrameRun, Gfp, ObjectCharge, PAGE_SIZE,
    PagePool, PageRef, PoolConfig, Reservation, ReserveError, ReserveId,
};

use crate::model::{Change, ChangeRefused, Model, Refused};
use crate::op::{Op, Who, gfp};

/// Frames of [`config`].
pub const FRAMES: u32 = 96;

/// Objects that share a frame, at every node of a [`World`].
pub const PER_FRAME: u32 = 4;

/// Nodes that a [`World`] has at most.
const NODES_MAX: usize = 8;

/// A pool small enough to run out of memory soon.
pub fn config() -> PoolConfig {
    PoolConfig { headroom: 10, low_gap: 6, high_gap: 4, magazine: 0, ..PoolConfig::new(FRAMES) }
}

/// Something of the pool that is alive.
#[expect(missing_docs, reason = "a variant is the type that it holds")]
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
    /// Frames free.
    pub free: u32,
    /// Frames reserved.
    pub reserved: u32,
    /// Limit, usage, own, connected of each node; the counters of failures and the peak are history.
    pub nodes: Vec<(u32, u32, u32, bool)>,
}

/// What one step did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// An allocation: whether it was entitled, and the charge.
    Allocated {
        /// Whether it was entitled.
        entitled: bool,
        /// Whether it was charged.
        charged: bool,
    },
    /// A failure; nothing may have changed.
    Failed,
    /// Anything else.
    Done,
}

/// The pool and its model.
pub struct World {
    /// The pool.
    pub pool: PagePool,
    /// Its tree, as `model.nodes`.
    pub ids: Vec<ReserveId>,
    /// The model.
    pub model: Model,
    /// Live objects with their place in `model.held`.
    pub objects: Vec<(usize, Object)>,
}

impl Default for World {
    fn default() -> World {
        World::new()
    }
}

impl World {
    /// A world with the pool of [`config`].
    pub fn new() -> World {
        World::with(config())
    }

    /// A world with a pool of another size.
    ///
    /// # Panics
    /// If such a pool cannot be made, or its counts would not be exact.
    pub fn with(config: PoolConfig) -> World {
        assert_eq!(config.magazine, 0, "the model knows no magazines");
        let mut model = Model::new(TraceHeader::of(&config));
        let pool = PagePool::new(config);
        pool.count_objects(ReserveId::ROOT, PER_FRAME);
        model.nodes[0].per_frame = PER_FRAME;
        World { model, pool, ids: vec![ReserveId::ROOT], objects: Vec::new() }
    }

    /// What the pool shows now.
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
    ///
    /// # Panics
    /// If they do not.
    pub fn check(&self) {
        assert_eq!(self.pool.free_frames(), self.model.free());
        for (i, info) in self.pool.reserve_info().iter().enumerate() {
            let node = &self.model.nodes[i];
            assert_eq!(info.usage, self.model.usage(i), "usage of node {i}");
            assert_eq!(info.limit, self.model.limit(i), "limit of node {i}");
            assert_eq!(info.peak, node.peak, "peak of node {i}");
            assert_eq!(info.failures, node.failures, "failures of node {i}");
            assert_eq!((info.own, info.connected), (node.own, node.connected));
            assert_eq!(info.objects, self.model.objects(i), "objects of node {i}");
        }
        assert_eq!(self.pool.reservation_stats().frames, self.model.reserved(), "reserved");
        assert_eq!(self.pool.watermarks().floor, self.model.floor());
        assert_eq!(self.pool.watermarks().min, self.model.mark(Gfp::KERNEL));
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
        by_scope: bool,
    ) -> Outcome {
        let want = self.model.alloc(gfp, who, by_scope);
        match (got, want) {
            (Ok(frame), Ok(charge)) => {
                assert_eq!(frame.charged_to(), charge.map(|n| self.ids[n]));
                self.objects.push((self.model.newest, Object::Frame(frame)));
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
            self.model.let_go(held);
        }
        object
    }

    /// Does one operation to both.
    ///
    /// # Panics
    /// If they do not answer the same.
    pub fn step(&mut self, op: Op) -> Outcome {
        match op {
            Op::Alloc(bits, who) => {
                let gfp = gfp(bits);
                let by_call = gfp.contains(Gfp::MEMALLOC).then_some(0);
                let (got, who, by_scope) = match who {
                    Who::Nobody => (self.pool.alloc(gfp), by_call, false),
                    Who::Scope(i) => {
                        let node = self.node(i);
                        let _scope = EmergencyScope::enter(&self.pool, self.ids[node]);
                        let counts = self.model.config.scope;
                        (self.pool.alloc(gfp), if counts { Some(node) } else { by_call }, counts)
                    }
                    Who::Call(i) => {
                        let node = self.node(i);
                        (self.pool.alloc_from(gfp, self.ids[node]), Some(node), false)
                    }
                };
                self.allocated(got, gfp, who, by_scope)
            }
            Op::Burst(bits, i, n) => {
                let (gfp, node) = (gfp(bits), self.node(i));
                let mut frames = Vec::new();
                let result = self.pool.alloc_burst_from(gfp, self.ids[node], n.into(), |f| {
                    frames.push(f);
                });
                for frame in frames {
                    self.allocated(Ok(frame), gfp, Some(node), false);
                }
                match result {
                    Ok(()) => Outcome::Done,
                    // The model has not been asked for the one that failed.
                    Err(error) => {
                        self.allocated(Err(error), gfp, Some(node), false);
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
                if self.ids.len() < NODES_MAX {
                    let parent = self.node(i);
                    let id = self.pool.add_reserve(self.ids[parent], "node", own);
                    self.pool.count_objects(id, PER_FRAME);
                    self.model.add(parent, own);
                    self.model.nodes[self.ids.len()].per_frame = PER_FRAME;
                    self.ids.push(id);
                }
                Outcome::Done
            }
            Op::Connect(i) => {
                let node = self.node(i);
                let got = self.pool.connect(self.ids[node]);
                self.changed(got, Change::Connect(node))
            }
            Op::Disconnect(i) => {
                let node = self.node(i);
                let got = self.pool.disconnect(self.ids[node]);
                self.changed(got, Change::Disconnect(node))
            }
            Op::Resize(i, own) => {
                let node = self.node(i);
                let got = self.pool.resize(self.ids[node], own);
                self.changed(got, Change::Resize(node, own))
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
            Op::Uncharge(i) => {
                let is_charge = |o: &Object| matches!(o, Object::Charge(_) | Object::Objects(_));
                if let Some(at) = self.pick(i, is_charge) {
                    drop(self.let_go(at));
                }
                Outcome::Done
            }
            Op::Reserve(n, who) => self.reserve(n, who),
            Op::Draw(i, scope) => {
                let scope = scope.map(|i| self.ids[self.node(i)]);
                // Whatever the scope that is entered in between.
                let _scope = scope.map(|id| EmergencyScope::enter(&self.pool, id));
                self.draw(i)
            }
            Op::Split(i, n) => self.split(i, n),
            Op::EndReservation(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Reservation(_))) {
                    drop(self.let_go(at));
                }
                Outcome::Done
            }
            Op::SetAside(n) => match (self.pool.set_aside(n), self.model.set_aside(n)) {
                (Ok(run), Ok(())) => {
                    assert_eq!(run.bytes().len(), n as usize * PAGE_SIZE);
                    self.objects.push((self.model.newest, Object::Run(run)));
                    Outcome::Done
                }
                // Enough, but not in a row.
                (Err(AllocError::Exhausted), Ok(())) => {
                    self.model.let_go(self.model.newest);
                    Outcome::Failed
                }
                (Err(error), Err(refused)) => {
                    assert_eq!(self.refused(error), refused);
                    Outcome::Failed
                }
                (got, want) => panic!("the pool says {got:?}, the model {want:?}"),
            },
            Op::FreeRun(i) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Run(_))) {
                    drop(self.let_go(at));
                }
                Outcome::Done
            }
            Op::Exchange(i, bits) => {
                if let Some(at) = self.pick(i, |o| matches!(o, Object::Frame(_)))
                    && let (held, Object::Frame(frame)) = &mut self.objects[at]
                {
                    let got = frame.exchange(gfp(bits));
                    assert_eq!(got, self.model.exchange(*held, gfp(bits)));
                    assert_eq!(got, frame.charged_to().is_none());
                }
                Outcome::Done
            }
        }
    }

    /// Checks a charge, and keeps it.
    fn charged(&mut self, got: Result<Object, ReserveError>, want: Result<(), usize>) -> Outcome {
        match (got, want) {
            (Ok(object), Ok(())) => {
                self.objects.push((self.model.newest, object));
                Outcome::Done
            }
            (Err(ReserveError::AtLimit { usage, limit, .. }), Err(at)) => {
                assert_eq!((usage, limit), (self.model.usage(at), self.model.limit(at)));
                Outcome::Failed
            }
            (got, want) => panic!("the pool says {:?}, the model {want:?}", got.map(|_| ())),
        }
    }

    /// Checks a change of the tree against the same change made to the model.
    fn changed(&mut self, got: Result<(), ReserveError>, change: Change) -> Outcome {
        match (got, self.model.change(change)) {
            (Ok(()), Ok(())) => return Outcome::Done,
            (Err(ReserveError::InUse { .. }), Err(ChangeRefused::InUse)) => {}
            (
                Err(ReserveError::CannotSecure { wanted, free, .. }),
                Err(ChangeRefused::CannotSecure(more, left)),
            ) => {
                assert_eq!((wanted, free), (more, left));
                assert!(self.pool.take_pressure(), "a failure asks for reclaim");
            }
            (got, want) => panic!("the pool says {got:?}, the model {want:?}"),
        }
        Outcome::Failed
    }

    /// Drops everything and checks that nothing is left.
    ///
    /// # Panics
    /// If something is.
    pub fn finish(mut self) {
        for (_, object) in self.objects.drain(..) {
            if let Object::Parked(id) = object {
                drop(self.pool.unpark(id));
            }
        }
        assert_eq!(self.pool.free_frames(), self.pool.frames(), "all frames are back");
        assert_eq!(self.pool.reservation_stats().frames, 0, "nothing is reserved any more");
        for info in self.pool.reserve_info() {
            assert_eq!(info.usage, 0, "nothing is charged any more");
        }
    }
}
