//! Late copies: which writes may still be carried out after they have ended, and when none can any more.
//!
//! # Why
//! A server may carry out a write long after it was answered, given up or repeated: what it has read but not carried
//! out outlives the connection. If the slot holds another page by then, that page is gone. So a backend says of
//! a write that ends whether a copy of it is *loose*: sent, and not known to be dead. The pager keeps its slots
//! from other pages, in quarantine, until [`SwapBackend::fences`](crate::SwapBackend::fences) grows.
//!
//! # When loose copies are dead
//! Each protocol has its own proof, always of the form "whatever was sent over connection `n`, or one before it, is
//! dead": for NFSv3 that the server restarted, for iSCSI that the session was reinstated. Copies that went over
//! later connections stay loose, and with them the whole quarantine: it is released at once, or not at all.
//!
//! # Invariant
//! [`Fence::count`] grows only when no copy that was given back with [`Fence::give`] is alive.

/// What a backend knows of its late copies. Connections are numbered from 1, in the order in which they were opened; 0
/// is none.
///
/// ```
/// use netswap_swap::fence::Fence;
/// let mut fence = Fence::default();
/// assert!(fence.give(3)); // A write that was sent over connection 3 ends without an answer.
/// assert!(!fence.prove(2));
/// assert!(fence.prove(3));
/// assert_eq!(fence.count(), 1);
/// assert!(!fence.is_loose(3));
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Fence {
    /// No copy that was sent over this connection, or one before it, can be carried out any more.
    dead_through: u32,
    /// The last connection with a loose copy of a write that was given back; 0 is none.
    given: u32,
    count: u64,
}

impl Fence {
    /// Whether a copy that was last sent over this connection may still be carried out.
    pub fn is_loose(&self, over: u32) -> bool {
        over > self.dead_through
    }

    /// A write of which a copy was last sent over `over` is given back to its owner. Whether it is loose.
    pub fn give(&mut self, over: u32) -> bool {
        let is_loose = self.is_loose(over);
        if is_loose {
            self.given = self.given.max(over);
        }
        is_loose
    }

    /// It is proven that every copy is dead that was sent over connection `through`, or one before it. Whether that
    /// makes all slots usable again that are in quarantine.
    pub fn prove(&mut self, through: u32) -> bool {
        self.dead_through = self.dead_through.max(through);
        let releases = self.given > 0 && self.given <= through;
        if releases {
            self.given = 0;
            self.count += 1;
        }
        releases
    }

    /// Whether loose copies were given back, so that a proof is worth asking for.
    pub fn is_awaited(&self) -> bool {
        self.given > 0
    }

    /// For [`SwapBackend::fences`](crate::SwapBackend::fences).
    pub fn count(&self) -> u64 {
        self.count
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Copy, Debug)]
    enum Event {
        Connect,
        /// A write that went over the connection so many before this one is given back.
        Give(u32),
        /// A proof about the connection so many before this one.
        Prove(u32),
    }

    fn event() -> impl Strategy<Value = Event> {
        prop_oneof![
            Just(Event::Connect),
            (0..4u32).prop_map(Event::Give),
            (0..4u32).prop_map(Event::Prove)
        ]
    }

    /// Runs `events` against a list of all copies. The canary forgets one.
    fn run(events: &[Event], forget: bool) -> Result<(), TestCaseError> {
        let (mut fence, mut connection) = (Fence::default(), 1u32);
        let (mut dead, mut quarantine, mut released) = (0, Vec::new(), 0);
        for event in events {
            match *event {
                Event::Connect => connection += 1,
                Event::Give(before) => {
                    let over = connection.saturating_sub(before);
                    let alive = over > dead;
                    if forget {
                        prop_assert_eq!(fence.is_loose(over), alive);
                    } else {
                        prop_assert_eq!(fence.give(over), alive);
                    }
                    quarantine.extend(alive.then_some(over));
                }
                Event::Prove(before) => {
                    let through = connection.saturating_sub(before);
                    dead = dead.max(through);
                    let releases = !quarantine.is_empty() && quarantine.iter().all(|c| *c <= dead);
                    if releases {
                        quarantine.clear();
                        released += 1;
                    }
                    prop_assert_eq!(fence.prove(through), releases);
                }
            }
            prop_assert_eq!(fence.count(), released);
            prop_assert_eq!(fence.is_awaited(), !quarantine.is_empty());
        }
        Ok(())
    }

    proptest! {
        #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]
        #[test]
        fn it_agrees_with_a_list_of_all_copies(events in proptest::collection::vec(event(), 0..60)) {
            run(&events, false)?;
        }
    }

    #[test]
    fn the_model_notices_a_copy_that_was_forgotten() {
        assert!(run(&[Event::Give(0)], true).is_err());
    }
}
