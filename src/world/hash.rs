//! The trace hash: everything that happened in a run, in order, in 64 bits.

use netswap_reserve::Time;

/// What kind of thing happened. The number goes into the hash, so it never changes its meaning.
#[derive(Clone, Copy)]
pub(crate) enum Happened {
    FaultServed = 1,
    Finished = 2,
    Killed = 3,
    WrongContent = 4,
    Completion = 5,
    Totals = 6,
    Transacted = 7,
}

/// Takes events in order. Integers only, so that it is the same on every machine and in every build.
pub(crate) struct TraceHash(u64);

impl TraceHash {
    pub(crate) fn new() -> TraceHash {
        TraceHash(0xcbf2_9ce4_8422_2325)
    }

    pub(crate) fn add(&mut self, now: Time, what: Happened, a: u64, b: u64) {
        for word in [now.as_nanos(), what as u64, a, b] {
            self.0 = (self.0 ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(29);
        }
    }

    pub(crate) fn finish(&self) -> String {
        format!("{:016x}", self.0 ^ (self.0 >> 32))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn order_and_time_matter() {
        let hash = |events: &[(u64, u64)]| {
            let mut h = TraceHash::new();
            for (t, a) in events {
                h.add(Time::from_nanos(*t), Happened::Finished, *a, 0);
            }
            h.finish()
        };
        assert_eq!(hash(&[(1, 2), (3, 4)]), hash(&[(1, 2), (3, 4)]));
        assert_ne!(hash(&[(1, 2), (3, 4)]), hash(&[(3, 4), (1, 2)]));
        assert_ne!(hash(&[(1, 2)]), hash(&[(2, 2)]));
    }
}
