//! The model's part in a replay: it answers each operation of a trace.

use std::collections::HashMap;

use netswap_reserve::trace::{Changed, Refusal, Taken, TraceOp, Who};

use crate::model::{Change, ChangeRefused, Held, Model};

/// The model, and where it keeps what the trace names. The pool has answered before it is asked, so
/// everything named exists.
pub(super) struct ModelSide {
    pub(super) model: Model,
    /// Places of frames and runs, by (first) index.
    frames: HashMap<u32, usize>,
    charges: HashMap<(u16, u32), Vec<usize>>,
    objects: HashMap<(u16, u32), Vec<usize>>,
    /// Places of promises, by what they were made of.
    promises: HashMap<Option<u16>, Vec<usize>>,
}

impl ModelSide {
    pub(super) fn new(model: Model) -> ModelSide {
        ModelSide {
            model,
            frames: HashMap::new(),
            charges: HashMap::new(),
            objects: HashMap::new(),
            promises: HashMap::new(),
        }
    }

    /// The operation with the outcome that it should have.
    pub(super) fn answer(&mut self, op: TraceOp) -> TraceOp {
        let ModelSide { model, frames, charges, objects, promises } = self;
        match op {
            TraceOp::Alloc { gfp, who, more, outcome: recorded } => {
                let by_scope = matches!(who, Who::Scope(_));
                let outcome = match model.alloc(gfp, who.node().map(usize::from), by_scope) {
                    Ok(charge) => {
                        let frame = recorded.map_or(u32::MAX, |taken| taken.frame);
                        frames.insert(frame, model.newest);
                        Ok(Taken { frame, charged: charge.is_some() })
                    }
                    Err(refused) => Err(refused.into()),
                };
                TraceOp::Alloc { gfp, who, more, outcome }
            }
            TraceOp::Free { frame, .. } => {
                // The frames of a run beyond the first are in its place.
                if let Some(place) = frames.remove(&frame) {
                    model.let_go(place);
                }
                op
            }
            TraceOp::Exchange { frame, gfp, .. } => {
                let done = frames.get(&frame).is_some_and(|&place| model.exchange(place, gfp));
                TraceOp::Exchange { frame, gfp, done }
            }
            TraceOp::AddReserve { parent, own } => {
                model.add(parent.into(), own);
                op
            }
            TraceOp::Connect { node, .. } => {
                TraceOp::Connect { node, changed: self.change(Change::Connect(node.into())) }
            }
            TraceOp::Disconnect { node, .. } => {
                TraceOp::Disconnect { node, changed: self.change(Change::Disconnect(node.into())) }
            }
            TraceOp::Resize { node, own, .. } => {
                let changed = self.change(Change::Resize(node.into(), own));
                TraceOp::Resize { node, own, changed }
            }
            TraceOp::Charge { node, frames: n, .. } => {
                let done = model.charge(node.into(), n, 0).is_ok();
                if done {
                    charges.entry((node, n)).or_default().push(model.newest);
                }
                TraceOp::Charge { node, frames: n, done }
            }
            TraceOp::Uncharge { node, frames: n } => {
                if let Some(place) = charges.get_mut(&(node, n)).and_then(Vec::pop) {
                    model.let_go(place);
                }
                op
            }
            TraceOp::CountObjects { node, per_frame } => {
                model.nodes[usize::from(node)].per_frame = per_frame;
                op
            }
            TraceOp::ChargeObjects { node, objects: n, .. } => {
                let done = model.charge_objects(node.into(), n).is_ok();
                if done {
                    objects.entry((node, n)).or_default().push(model.newest);
                }
                TraceOp::ChargeObjects { node, objects: n, done }
            }
            TraceOp::UnchargeObjects { node, objects: n } => {
                if let Some(place) = objects.get_mut(&(node, n)).and_then(Vec::pop) {
                    model.let_go(place);
                }
                op
            }
            TraceOp::Reserve { who, frames: n, .. } => {
                let by_scope = matches!(who, Who::Scope(_));
                let outcome = model.reserve(n, who.node().map(usize::from), by_scope);
                let outcome = outcome.map(|node| node.and(who.node()));
                if let Ok(from) = outcome {
                    promises.entry(from).or_default().push(model.newest);
                }
                TraceOp::Reserve { who, frames: n, outcome }
            }
            TraceOp::Draw { from, frame, .. } => {
                let owing = promises.get_mut(&from);
                let Some(place) = owing.and_then(|places| owing_place(model, places)) else {
                    return op;
                };
                let charged = model.draw(place).is_some();
                frames.insert(frame, model.newest);
                TraceOp::Draw { from, frame, charged }
            }
            TraceOp::Unreserve { from, frames: mut left } => {
                let Some(places) = promises.get_mut(&from) else { return op };
                while left > 0
                    && let Some(place) = owing_place(model, places)
                {
                    let owed = model.held[place].as_ref().map_or(0, Held::owed).min(left);
                    model.split(place, owed);
                    model.let_go(model.newest);
                    left -= owed;
                }
                op
            }
            TraceOp::SetAside { frames: n, outcome: recorded } => {
                let outcome = match (model.set_aside(n), recorded) {
                    (Ok(()), Ok(first)) => {
                        frames.insert(first, model.newest);
                        Ok(first)
                    }
                    // Enough frames, but not in a row: that depends on where they lie.
                    (Ok(()), Err(Refusal::Exhausted)) => {
                        model.let_go(model.newest);
                        recorded
                    }
                    (Ok(()), Err(_)) => Ok(u32::MAX),
                    (Err(refused), _) => Err(refused.into()),
                };
                TraceOp::SetAside { frames: n, outcome }
            }
            TraceOp::Check { .. } => {
                TraceOp::Check { free: model.free(), floor: model.floor(), usage: model.usage(0) }
            }
        }
    }

    fn change(&mut self, change: Change) -> Changed {
        match self.model.change(change) {
            Ok(()) => Changed::Done,
            Err(ChangeRefused::InUse) => Changed::InUse,
            Err(ChangeRefused::CannotSecure(..)) => Changed::CannotSecure,
        }
    }
}

/// The place of a promise that still owes something; those that owe nothing any more end here.
fn owing_place(model: &mut Model, places: &mut Vec<usize>) -> Option<usize> {
    while let Some(&place) = places.last() {
        if model.held[place].as_ref().is_some_and(|promise| promise.owed() > 0) {
            return Some(place);
        }
        model.let_go(place);
        places.pop();
    }
    None
}
