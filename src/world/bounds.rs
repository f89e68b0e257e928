//! The arithmetic behind the headline test: can the flood's queues take what they must take?

use std::fmt;

use netswap_reserve::ReservePlan;

use crate::scenario::{FRAMES_BESIDE_PLAN, Scenario};

/// How much the queues of the untagged flows can hold, against what is there to be held.
///
/// Below the lower bound the queues would be full before memory is, and an unprotected host would
/// survive because its sockets drop packets; above the upper bound even a protected host would have
/// no memory left to page with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QueueBounds {
    /// Frames that packets can take below min: half of the headroom.
    pub atomic_headroom: u32,
    /// Frames of the receive reserve.
    pub receive_reserve: u32,
    /// Q: frames that the queues can hold.
    pub queues: u32,
    /// Frames of RAM.
    pub ram: u32,
    /// The min watermark with the reserve connected.
    pub min: u32,
}

/// The queues are too small or too large for the test to mean anything.
#[derive(Debug, thiserror::Error)]
#[error("the scenario proves nothing: {0} does not hold")]
pub struct QueueBoundsError(QueueBounds);

impl QueueBounds {
    /// Of a scenario and its plan.
    pub fn of(scenario: &Scenario, plan: &ReservePlan) -> QueueBounds {
        let pool = scenario.pool();
        QueueBounds {
            atomic_headroom: pool.headroom / 2,
            receive_reserve: plan.limit_of("net.rx"),
            queues: scenario.queue_frames(),
            ram: scenario.frames(),
            min: plan.reserve_frames() + pool.headroom,
        }
    }

    /// Whether the condition holds.
    pub fn holds(&self) -> bool {
        let above = self.ram.saturating_sub(self.min + FRAMES_BESIDE_PLAN);
        self.atomic_headroom + self.receive_reserve < self.queues && self.queues < above
    }

    /// Asserts the condition.
    ///
    /// # Errors
    /// If it does not hold.
    pub fn check(&self) -> Result<(), QueueBoundsError> {
        if self.holds() { Ok(()) } else { Err(QueueBoundsError(*self)) }
    }
}

impl fmt::Display for QueueBounds {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let QueueBounds { atomic_headroom, receive_reserve, queues, ram, min } = self;
        write!(
            f,
            "queues of untagged packets, in frames: atomic headroom {atomic_headroom} + receive reserve \
             {receive_reserve} < Q {queues} < RAM {ram} - min {min} - {FRAMES_BESIDE_PLAN}"
        )?;
        if self.holds() { Ok(()) } else { f.write_str(" (does not hold here)") }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::host_plan;

    #[test]
    fn the_headline_scenario_means_something() {
        let scenario = Scenario::default();
        QueueBounds::of(&scenario, &host_plan(&scenario, 1)).check().unwrap();
    }

    #[test]
    fn queues_that_are_full_before_memory_is_are_refused() {
        let mut scenario = Scenario::default();
        scenario.flood.flows = 2;
        let bounds = QueueBounds::of(&scenario, &host_plan(&scenario, 1));
        assert!(bounds.check().is_err());
        assert!(bounds.to_string().contains("does not hold"));
    }
}
