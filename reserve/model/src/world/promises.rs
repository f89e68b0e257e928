//! Reservations: made, drawn from, split.

use netswap_reserve::trace::NotReserved;
use netswap_reserve::{EmergencyScope, ReservationSpec};

use super::{Object, Outcome, World};
use crate::op::Who;

impl World {
    /// Checks a promise of the pool against the model's, and keeps it.
    pub(super) fn reserve(&mut self, n: u32, who: Who) -> Outcome {
        let spec = ReservationSpec::pages(n);
        let (got, node, by_scope) = match who {
            Who::Nobody => (self.pool.reserve(spec), None, false),
            Who::Scope(i) => {
                let node = self.node(i);
                let _scope = EmergencyScope::enter(&self.pool, self.ids[node]);
                let counts = self.model.config.scope;
                (self.pool.reserve(spec), counts.then_some(node), counts)
            }
            Who::Call(i) => {
                let node = self.node(i);
                (self.pool.reserve_from(spec, self.ids[node]), Some(node), false)
            }
        };
        match (got, self.model.reserve(n, node, by_scope)) {
            (Ok(reservation), Ok(node)) => {
                assert_eq!(reservation.charged_to(), node.map(|n| self.ids[n]));
                self.objects.push((self.model.newest, Object::Reservation(reservation)));
                Outcome::Done
            }
            (Err(error), Err(refused)) => {
                assert_eq!(NotReserved::from(error), refused);
                assert!(self.pool.take_pressure(), "a failure asks for reclaim");
                Outcome::Failed
            }
            (got, want) => panic!("the pool says {got:?}, the model {want:?}"),
        }
    }

    /// A page of a reservation cannot fail as long as one is left.
    pub(super) fn draw(&mut self, i: usize) -> Outcome {
        let Some(at) = self.pick(i, |o| matches!(o, Object::Reservation(_))) else {
            return Outcome::Done;
        };
        let (held, Object::Reservation(reservation)) = &mut self.objects[at] else {
            unreachable!("a reservation was picked")
        };
        let left = reservation.pages_left();
        let frame = reservation.try_page();
        assert_eq!(frame.is_some(), left > 0, "a promise is kept");
        let Some(frame) = frame else { return Outcome::Failed };
        let node = self.model.draw(*held);
        assert_eq!(frame.charged_to(), node.map(|node| self.ids[node]));
        self.objects.push((self.model.newest, Object::Frame(frame)));
        Outcome::Done
    }

    /// Makes two reservations of one.
    pub(super) fn split(&mut self, i: usize, n: u32) -> Outcome {
        if let Some(at) = self.pick(i, |o| matches!(o, Object::Reservation(_)))
            && let (held, Object::Reservation(whole)) = &mut self.objects[at]
        {
            let left = whole.pages_left();
            let part = whole.split(n);
            assert_eq!(part.is_some(), n <= left);
            if let Some(part) = part {
                self.model.split(*held, n);
                self.objects.push((self.model.newest, Object::Reservation(part)));
            }
        }
        Outcome::Done
    }
}
