//! Replays a recorded trace: against a fresh pool, and against the model too if asked.
//!
//! Each operation is done again, and its outcome must be the one that was recorded: the same refusals
//! with the same figures, the same charges. Which frame is given out is not compared: no promise says
//! that. The pool takes time in proportion to the operations; the model looks at every live object for
//! each of them, some hundred nanoseconds an object in a debug build.

mod holdings;
mod side;

use std::collections::HashMap;
use std::fmt;
use std::io::Read;

use netswap_reserve::trace::{Changed, Refusal, Taken, TraceError, TraceOp, TraceReader, Who};
use netswap_reserve::{EmergencyScope, Frame, FrameRun, Gfp, PagePool, PoolError, ReserveId};

use crate::model::Model;
use holdings::Holdings;
use side::ModelSide;

/// Who answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The pool.
    Pool,
    /// The model.
    Model,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            By::Pool => "the pool",
            By::Model => "the model",
        })
    }
}

/// Why a replay ended early.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// The trace cannot be read on.
    #[error(transparent)]
    Trace(#[from] TraceError),
    /// A pool like the recorded one cannot be made.
    #[error(transparent)]
    Pool(#[from] PoolError),
    /// An operation cannot have happened after those before it, as freeing what is free.
    #[error("operation {op} cannot be: {what}")]
    Impossible {
        /// Its number, from 1.
        op: u64,
        /// Why.
        what: &'static str,
    },
    /// An operation went another way than it was recorded.
    #[error("operation {op}: recorded {recorded:?}; {by} says {answer:?}")]
    Differs {
        /// Its number, from 1.
        op: u64,
        /// As it was recorded.
        recorded: TraceOp,
        /// Who says otherwise.
        by: By,
        /// The same operation with another outcome.
        answer: TraceOp,
    },
    /// After the last operation, pool and model show different counters of a node.
    #[error("after operation {op} the pool shows {pool:?} at node {node}, the model {model:?}")]
    Counters {
        /// Operations done.
        op: u64,
        /// The node.
        node: usize,
        /// What the pool shows.
        pool: Counters,
        /// What the model says.
        model: Counters,
    },
}

/// The counters of a node, and at the root what is reserved.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "as in `ReserveInfo`")]
pub struct Counters {
    pub own: u32,
    pub connected: bool,
    pub limit: u32,
    pub usage: u32,
    pub peak: u32,
    pub failures: u64,
    pub objects: u64,
    pub reserved: u32,
}

/// What was replayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Replayed {
    /// Operations, checks included.
    pub ops: u64,
    /// Frames given out.
    pub frames: u64,
    /// Of these charged to a reserve.
    pub charged: u64,
    /// Allocations refused.
    pub refused: u64,
    /// Frames that came back.
    pub freed: u64,
    /// The fewest frames that were free.
    pub lowest_free: u32,
}

/// Replays a whole trace, against the model too if there is one. `model` is told the trace's header and
/// may plant a fault.
///
/// ```
/// use netswap_reserve::{Gfp, PagePool, PoolConfig};
/// use netswap_reserve_model::{Model, replay};
///
/// let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
/// let mut recording = pool.record(4096)?;
/// let frame = pool.alloc(Gfp::KERNEL)?;
/// let mut trace = Vec::new();
/// recording.finish(&mut trace)?;
///
/// let replayed = replay(&trace[..], |header| Some(Model::new(header)))?;
/// assert_eq!((replayed.frames, replayed.freed), (1, 0));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When the trace is malformed, cannot be, or goes another way.
pub fn replay<R: Read>(
    trace: R,
    model: impl FnOnce(netswap_reserve::trace::TraceHeader) -> Option<Model>,
) -> Result<Replayed, ReplayError> {
    let mut reader = TraceReader::new(trace)?;
    let mut replay = Replay::new(PagePool::try_new(reader.header().pool_config())?);
    replay.model = model(reader.header()).map(ModelSide::new);
    for op in &mut reader {
        replay.step(op?)?;
    }
    replay.finish()
}

/// A replay that is under way.
pub struct Replay {
    pool: PagePool,
    ids: Vec<ReserveId>,
    /// Live frames and runs by the (first) index that they were recorded with.
    live: HashMap<u32, Live>,
    holdings: Holdings,
    /// Operations of the turn of the lock that is still being read.
    turn: Vec<TraceOp>,
    model: Option<ModelSide>,
    done: Replayed,
}

enum Live {
    Frame(Frame),
    Run(FrameRun),
}

impl Replay {
    /// Begins against `pool`, which is as new, without a model.
    pub fn new(pool: PagePool) -> Replay {
        Replay {
            pool,
            ids: vec![ReserveId::ROOT],
            live: HashMap::new(),
            holdings: Holdings::default(),
            turn: Vec::new(),
            model: None,
            done: Replayed::default(),
        }
    }

    fn impossible(&self, what: &'static str) -> ReplayError {
        ReplayError::Impossible { op: self.done.ops, what }
    }

    fn id(&self, node: u16) -> ReserveId {
        self.ids[usize::from(node)]
    }

    /// Takes the next operation. One that began a turn of the lock is done when the turn is over.
    ///
    /// # Errors
    /// When an operation cannot be, or goes another way than it was recorded.
    pub fn step(&mut self, op: TraceOp) -> Result<(), ReplayError> {
        let goes_on = match op {
            TraceOp::Alloc { more, .. } | TraceOp::Free { more, .. } => more,
            _ => false,
        };
        if !goes_on {
            self.end_turn()?;
        } else if self
            .turn
            .last()
            .is_none_or(|last| std::mem::discriminant(last) != std::mem::discriminant(&op))
        {
            return Err(self.impossible("it goes on with a turn that did not begin"));
        } else if self.turn.len() > self.pool.frames() as usize {
            return Err(self.impossible("a turn has more frames than the pool"));
        }
        self.turn.push(op);
        Ok(())
    }

    /// Ends the replay: all that was read is done, and the counters are compared.
    ///
    /// # Errors
    /// As [`Replay::step`].
    pub fn finish(mut self) -> Result<Replayed, ReplayError> {
        self.end_turn()?;
        self.compare_counters()?;
        self.done.lowest_free = self.pool.lowest_free();
        Ok(self.done)
    }

    fn end_turn(&mut self) -> Result<(), ReplayError> {
        let turn = std::mem::take(&mut self.turn);
        match turn[..] {
            [] => {}
            [op] => {
                self.done.ops += 1;
                self.one(op)?;
            }
            [TraceOp::Alloc { .. }, ..] => self.burst(&turn)?,
            _ => self.free_together(&turn)?,
        }
        self.turn = turn;
        self.turn.clear();
        Ok(())
    }

    /// Compares an answer of the pool, then asks the model.
    fn answered(&mut self, recorded: TraceOp, answer: TraceOp) -> Result<(), ReplayError> {
        self.compare(By::Pool, recorded, answer)?;
        if let Some(model) = &mut self.model {
            let answer = model.answer(recorded);
            self.compare(By::Model, recorded, answer)?;
        }
        Ok(())
    }

    fn compare(&self, by: By, recorded: TraceOp, answer: TraceOp) -> Result<(), ReplayError> {
        if answer == recorded {
            return Ok(());
        }
        Err(ReplayError::Differs { op: self.done.ops, recorded, by, answer })
    }

    /// Does an operation that is a turn by itself.
    fn one(&mut self, op: TraceOp) -> Result<(), ReplayError> {
        let answer = match op {
            TraceOp::Alloc { gfp, who, outcome: recorded, more } => {
                let got = match who {
                    Who::Nobody if gfp.contains(Gfp::MEMALLOC) => {
                        return Err(self.impossible("an entitled call is said not to be"));
                    }
                    Who::Nobody => self.pool.alloc(gfp),
                    Who::Scope(node) => {
                        let _scope = EmergencyScope::enter(&self.pool, self.id(node));
                        self.pool.alloc(gfp)
                    }
                    Who::Call(0) if gfp.contains(Gfp::MEMALLOC) => self.pool.alloc(gfp),
                    Who::Call(node) => self.pool.alloc_from(gfp, self.id(node)),
                };
                let outcome = match got {
                    Ok(frame) => Ok(self.taken(frame, recorded)?),
                    Err(error) => Err(error.into()),
                };
                self.count(outcome);
                TraceOp::Alloc { gfp, who, more, outcome }
            }
            TraceOp::Free { .. } => return self.free_together(&[op]),
            TraceOp::Exchange { frame, gfp, .. } => {
                let Some(Live::Frame(held)) = self.live.get_mut(&frame) else {
                    return Err(self.impossible("a frame is exchanged that is not out"));
                };
                if held.charged_to().is_none() {
                    return Err(self.impossible("a frame is exchanged that is not charged"));
                }
                TraceOp::Exchange { frame, gfp, done: held.exchange(gfp) }
            }
            TraceOp::AddReserve { parent, own } => {
                let node =
                    self.pool.add_reserve(self.id(parent), &format!("{}", self.ids.len()), own);
                self.ids.push(node);
                op
            }
            TraceOp::Connect { node, .. } => {
                TraceOp::Connect { node, changed: Changed::of(&self.pool.connect(self.id(node))) }
            }
            TraceOp::Disconnect { node, .. } => TraceOp::Disconnect {
                node,
                changed: Changed::of(&self.pool.disconnect(self.id(node))),
            },
            TraceOp::Resize { node, own, .. } => {
                let changed = Changed::of(&self.pool.resize(self.id(node), own));
                TraceOp::Resize { node, own, changed }
            }
            TraceOp::Charge { node, .. }
            | TraceOp::Uncharge { node, .. }
            | TraceOp::CountObjects { node, .. }
            | TraceOp::ChargeObjects { node, .. }
            | TraceOp::UnchargeObjects { node, .. } => {
                let id = self.id(node);
                self.holdings.charge(&self.pool, id, op).map_err(|what| self.impossible(what))?
            }
            TraceOp::Reserve { who, .. } => {
                let _scope = match who {
                    Who::Scope(node) => Some(EmergencyScope::enter(&self.pool, self.id(node))),
                    _ => None,
                };
                let call = match who {
                    Who::Call(node) => Some(self.id(node)),
                    _ => None,
                };
                self.holdings.reserve(&self.pool, call, op)
            }
            TraceOp::Draw { from, frame: index, .. } => {
                let drawn = self.holdings.draw(from).map_err(|what| self.impossible(what))?;
                let charged = drawn.charged_to().is_some();
                self.count(Ok(Taken { frame: index, charged }));
                self.keep(index, Live::Frame(drawn))?;
                TraceOp::Draw { from, frame: index, charged }
            }
            TraceOp::Unreserve { from, frames } => {
                let ended = self.holdings.unreserve(from, frames);
                ended.map_err(|what| self.impossible(what))?;
                op
            }
            TraceOp::SetAside { frames, outcome: recorded } => {
                let outcome = match self.pool.set_aside(frames) {
                    Ok(run) => {
                        let first = recorded.unwrap_or(0);
                        if recorded.is_ok() && frames > 0 {
                            self.keep(first, Live::Run(run))?;
                        }
                        Ok(first)
                    }
                    Err(error) => Err(error.into()),
                };
                TraceOp::SetAside { frames, outcome }
            }
            TraceOp::Check { .. } => TraceOp::Check {
                free: self.pool.free_frames(),
                floor: self.pool.watermarks().floor,
                usage: self.pool.reserve_usage(ReserveId::ROOT),
            },
        };
        self.answered(op, answer)
    }

    /// Keeps a frame under the index that it was recorded with, and tells what to compare.
    fn taken(
        &mut self,
        frame: Frame,
        recorded: Result<Taken, Refusal>,
    ) -> Result<Taken, ReplayError> {
        let charged = frame.charged_to().is_some();
        let Ok(Taken { frame: index, .. }) = recorded else {
            return Ok(Taken { frame: frame.id().index(), charged });
        };
        self.keep(index, Live::Frame(frame))?;
        Ok(Taken { frame: index, charged })
    }

    fn keep(&mut self, index: u32, what: Live) -> Result<(), ReplayError> {
        match self.live.insert(index, what) {
            None => Ok(()),
            Some(_) => Err(self.impossible("a frame is given out that is out")),
        }
    }

    fn count(&mut self, outcome: Result<Taken, Refusal>) {
        match outcome {
            Ok(Taken { charged, .. }) => {
                self.done.frames += 1;
                self.done.charged += u64::from(charged);
            }
            Err(_) => self.done.refused += 1,
        }
    }

    /// Allocations of one turn are a burst. All but the last got a frame.
    fn burst(&mut self, turn: &[TraceOp]) -> Result<(), ReplayError> {
        let mut shape = None;
        for (i, op) in turn.iter().enumerate() {
            let TraceOp::Alloc { gfp, who: Who::Call(node), outcome, .. } = *op else {
                return Err(self.impossible("a burst is not entitled by its call"));
            };
            let is_one = *shape.get_or_insert((gfp, node)) == (gfp, node);
            if !is_one || (outcome.is_err() && i + 1 < turn.len()) {
                return Err(self.impossible("a burst is not of one call"));
            }
        }
        let Some((gfp, node)) = shape else { return Ok(()) };
        let mut frames = Vec::with_capacity(turn.len());
        let id = self.ids[usize::from(node)];
        let error = self.pool.alloc_burst_from(gfp, id, turn.len(), |frame| frames.push(frame));
        let mut frames = frames.into_iter();
        for &op in turn {
            self.done.ops += 1;
            let TraceOp::Alloc { gfp, who, more, outcome: recorded } = op else { continue };
            let outcome = match (frames.next(), error) {
                (Some(frame), _) => Ok(self.taken(frame, recorded)?),
                (None, Err(error)) => Err(error.into()),
                (None, Ok(())) => return Err(self.impossible("a burst gave too few frames")),
            };
            self.count(outcome);
            self.answered(op, TraceOp::Alloc { gfp, who, more, outcome })?;
        }
        Ok(())
    }

    /// Frames freed at one turn are a run, or a burst, or one.
    fn free_together(&mut self, turn: &[TraceOp]) -> Result<(), ReplayError> {
        let mut frames = Vec::new();
        let mut run = None;
        for (i, &op) in turn.iter().enumerate() {
            let TraceOp::Free { frame: index, .. } = op else { continue };
            if turn.len() > 1 {
                self.done.ops += 1;
            }
            match (self.live.remove(&index), &run) {
                (Some(Live::Frame(frame)), None) => frames.push(frame),
                (Some(Live::Run(first)), None)
                    if i == 0 && first.frames() as usize == turn.len() =>
                {
                    run = Some((index, first));
                }
                (None, Some((first, _))) if u64::from(*first) + i as u64 == u64::from(index) => {}
                _ => return Err(self.impossible("a frame is freed that is not out by itself")),
            }
        }
        self.done.freed += turn.len() as u64;
        if frames.len() == 1 {
            drop(frames);
        } else {
            self.pool.free_burst(frames);
        }
        drop(run);
        if let Some(model) = &mut self.model {
            for &op in turn {
                model.answer(op);
            }
        }
        Ok(())
    }

    fn compare_counters(&self) -> Result<(), ReplayError> {
        let Some(ModelSide { model, .. }) = &self.model else { return Ok(()) };
        for (at, info) in self.pool.reserve_info().into_iter().enumerate() {
            let pool = Counters {
                own: info.own,
                connected: info.connected,
                limit: info.limit,
                usage: info.usage,
                peak: info.peak,
                failures: info.failures,
                objects: info.objects,
                reserved: if at == 0 { self.pool.reservation_stats().frames } else { 0 },
            };
            let node = &model.nodes[at];
            let model = Counters {
                own: node.own,
                connected: node.connected,
                limit: model.limit(at),
                usage: model.usage(at),
                peak: node.peak,
                failures: node.failures,
                objects: model.objects(at),
                reserved: if at == 0 { model.reserved() } else { 0 },
            };
            if pool != model {
                return Err(ReplayError::Counters { op: self.done.ops, node: at, pool, model });
            }
        }
        Ok(())
    }
}
