//! The clock of a driver on real sockets.

use std::time::Instant;

use netswap_reserve::Time;

/// Monotonic time since the clock was made. State machines never see it: a driver reads it and hands
/// the result in.
///
/// ```
/// use netswap_net::kernel::Clock;
///
/// let clock = Clock::new();
/// let earlier = clock.now();
/// assert!(clock.now() >= earlier);
/// ```
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    origin: Instant,
}

impl Clock {
    /// A clock that begins now.
    #[expect(clippy::new_without_default, reason = "two clocks made by default would not agree")]
    pub fn new() -> Clock {
        Clock { origin: Instant::now() }
    }

    /// Time since the clock was made.
    pub fn now(&self) -> Time {
        Time::from_nanos(u64::try_from(self.origin.elapsed().as_nanos()).unwrap_or(u64::MAX))
    }
}
