//! What a replay holds of its pool besides frames: charges, and reservations.
//!
//! A trace gives them no names, as those of the same node and number are one like the other. Of reservations
//! only the source counts: who draws a frame of a node's promise is given one of any handle of that node.

use std::collections::HashMap;

use netswap_reserve::trace::TraceOp;
use netswap_reserve::{
    Charge, Frame, ObjectCharge, PagePool, Reservation, ReservationSpec, ReserveId,
};

/// Charges and reservations that are alive.
#[derive(Default)]
pub(super) struct Holdings {
    charges: HashMap<(u16, u32), Vec<Charge>>,
    objects: HashMap<(u16, u32), Vec<ObjectCharge>>,
    /// Of nodes that count objects: how many share a frame, and how many are charged.
    counted: HashMap<u16, (u32, u64)>,
    /// Handles that owe something, by the node that is charged for them.
    reservations: HashMap<Option<u16>, Vec<Reservation<'static>>>,
}

impl Holdings {
    /// Does what a trace says of charges to the node `id`: the operation with its outcome, or why it cannot be.
    pub(super) fn charge(
        &mut self,
        pool: &PagePool,
        id: ReserveId,
        op: TraceOp,
    ) -> Result<TraceOp, &'static str> {
        Ok(match op {
            TraceOp::Charge { node, frames, .. } => {
                let charged = pool.charge(id, frames).ok();
                let done = charged.is_some();
                self.charges.entry((node, frames)).or_default().extend(charged);
                TraceOp::Charge { node, frames, done }
            }
            TraceOp::Uncharge { node, frames } => {
                let charge = self.charges.get_mut(&(node, frames)).and_then(Vec::pop);
                drop(charge.ok_or("a charge is released that was not made")?);
                op
            }
            TraceOp::CountObjects { node, per_frame } => {
                let counted = self.counted.entry(node).or_insert((per_frame, 0));
                if counted.1 > 0 && counted.0 != per_frame {
                    return Err("objects of another size are charged");
                }
                counted.0 = per_frame;
                pool.count_objects(id, per_frame);
                op
            }
            TraceOp::ChargeObjects { node, objects, .. } => {
                let counted = self.counted.get_mut(&node);
                let counted = counted.ok_or("the node counts no objects")?;
                let charged = pool.charge_objects(id, objects).ok();
                let done = charged.is_some();
                counted.1 += if done { u64::from(objects) } else { 0 };
                self.objects.entry((node, objects)).or_default().extend(charged);
                TraceOp::ChargeObjects { node, objects, done }
            }
            TraceOp::UnchargeObjects { node, objects } => {
                let charge = self.objects.get_mut(&(node, objects)).and_then(Vec::pop);
                drop(charge.ok_or("a charge is released that was not made")?);
                if let Some(counted) = self.counted.get_mut(&node) {
                    counted.1 -= u64::from(objects);
                }
                op
            }
            _ => return Err("no operation on charges"),
        })
    }

    /// Makes a reservation, in the ambient scope unless a reserve is named: the operation with its outcome.
    pub(super) fn reserve(
        &mut self,
        pool: &PagePool,
        named: Option<ReserveId>,
        op: TraceOp,
    ) -> TraceOp {
        let TraceOp::Reserve { who, frames, .. } = op else { return op };
        let spec = ReservationSpec::pages(frames);
        let got = named.map_or_else(|| pool.reserve(spec), |id| pool.reserve_from(spec, id));
        let outcome = match got {
            Ok(reservation) => {
                let from = reservation.charged_to().and(who.node());
                if frames > 0 {
                    self.reservations.entry(from).or_default().push(reservation);
                }
                Ok(from)
            }
            Err(error) => Err(error.into()),
        };
        TraceOp::Reserve { who, frames, outcome }
    }

    /// A frame of what is promised `from` a node or from ordinary memory, or why there is none.
    pub(super) fn draw(&mut self, from: Option<u16>) -> Result<Frame, &'static str> {
        let handles = self.reservations.entry(from).or_default();
        let frame = handles.last_mut().and_then(Reservation::try_page);
        handles.pop_if(|handle| handle.pages_left() == 0);
        frame.ok_or("a frame is drawn that was not reserved")
    }

    /// Gives `frames` frames of a promise back.
    pub(super) fn unreserve(&mut self, from: Option<u16>, frames: u32) -> Result<(), &'static str> {
        let handles = self.reservations.entry(from).or_default();
        let mut left = frames;
        while left > 0 {
            let handle = handles.last_mut().ok_or("more is given back than was reserved")?;
            let part = handle.pages_left().min(left);
            drop(handle.split(part));
            left -= part;
            handles.pop_if(|handle| handle.pages_left() == 0);
        }
        Ok(())
    }
}
