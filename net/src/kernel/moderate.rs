//! Moderation of wake-ups: with many answers outstanding, a loop rests a moment and then takes several
//! at once, as network cards hold interrupts back.
//!
//! A thread that sleeps until *one* answer is there pays a wake-up, a wait and a read for each, and the peer's
//! machine pays for waking it. While the peer still has most of what it was asked, nothing is lost by
//! looking a little later: [`Pace`] measures how fast answers come, and rests for as long as the next few of
//! those that are outstanding take. An answer therefore waits a share of the time that the line before it
//! took, and never more than a bound; with few outstanding there is no rest at all.
//!
//! What a rest costs is the peer's to say: one that has answered all it was asked goes to sleep, and then its threads
//! have to be woken one after the other; another one only gathers its answers. So [`Pace`] tries rests of several
//! lengths and none, measures how fast answers come with each, and keeps to the longest that costs
//! next to nothing.

use netswap_reserve::{Span, Time};

use crate::session::Answers;

/// Of the answers outstanding, one in so many is waited for. Measured against nfs-ganesha with 16 and 64
/// outstanding: 2 saves the client little more, 4 costs it a fifth.
const SHARE: u64 = 3;
/// Answers that come faster than this find the thread awake anyway: about what sleeping and waking costs. Measured
/// against the embedded server, which answers in batches: rests cost it throughput.
const GAP_MIN: Span = Span::from_micros(10);

/// The lengths that are tried: as long as that, a half, a quarter, and no rest.
const LENGTHS: usize = 4;
const NO_REST: usize = LENGTHS - 1;
/// A length is weighed by so many answers: about 30 ms of them.
const ANSWERS_EACH: u64 = 1024;
/// One time in so many the next length in turn is weighed instead of the best, to see whether it is the better one by now:
/// one that halves the rate takes a thirtieth of it so.
const TRY_EACH: u64 = 8;

/// How fast answers come.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Pace {
    /// Of all sessions of the loop, as they said last.
    answers: Answers,
    /// When it was looked at last, and how many had come by then.
    at: Time,
    come: u64,
    /// Mean time from one answer to the next in nanoseconds; each new measurement is an eighth of it. 0 is
    /// not known.
    gap: u64,
    /// Whether a rest would have been worth it at the last turn, so that this one tells something of its length.
    is_weighed: bool,
    /// The length in force, the time and the answers it has had in turns that tell something.
    length: usize,
    took: u64,
    answered: u64,
    /// Mean time from one answer to the next with each length, in nanoseconds. 0 is not known.
    costs: [u64; LENGTHS],
    /// How often a length was weighed so far.
    weighings: u64,
}

impl Pace {
    /// A session that said `before` says `after`.
    pub(super) fn update(&mut self, before: Answers, after: Answers) {
        self.answers.outstanding =
            self.answers.outstanding - before.outstanding + after.outstanding;
        self.answers.come += after.come - before.come;
    }

    /// The loop is going to wait: how long it should rest before it looks. `None` is not at all.
    pub(super) fn rest(&mut self, now: Time, most: Span) -> Option<Span> {
        let came = self.answers.come - self.come;
        let took = now.since(self.at).as_nanos();
        if let Some(gap) = took.checked_div(came) {
            self.gap = if self.gap == 0 { gap } else { (7 * self.gap + gap) / 8 };
            (self.at, self.come) = (now, self.answers.come);
            if self.is_weighed {
                self.weigh(took, came);
            }
        }
        let worth = u64::from(self.answers.outstanding) / SHARE;
        // Less than two answers to be gained, because few are outstanding or they are slow: no rest.
        self.is_weighed = worth >= 2 && self.gap >= GAP_MIN.as_nanos();
        let rest = self.gap.saturating_mul(worth).min(most.as_nanos()) >> self.length;
        let rests = self.is_weighed && self.length != NO_REST && rest >= 2 * self.gap;
        rests.then(|| Span::from_nanos(rest))
    }

    /// So many answers came in a turn that took so long.
    fn weigh(&mut self, took: u64, came: u64) {
        self.took += took;
        self.answered += came;
        if self.answered < ANSWERS_EACH {
            return;
        }
        let cost = (self.took / self.answered).max(1);
        (self.took, self.answered) = (0, 0);
        let known = &mut self.costs[self.length];
        // A peer that stood still for a while says nothing of the length that it happened to do so in: no single time
        // is enough for another one to be better.
        *known =
            if *known == 0 { cost } else { (*known + cost.min(*known + known.div_ceil(8))) / 2 };
        self.weighings += 1;
        self.length = self.next_length();
    }

    /// One that nothing is known of; else, at times, the next one in turn; else the best: the longest that takes no more
    /// than an eighth longer than the fastest.
    fn next_length(&mut self) -> usize {
        if let Some(unknown) = self.costs.iter().position(|cost| *cost == 0) {
            return unknown;
        }
        if self.weighings.is_multiple_of(TRY_EACH) {
            return (self.weighings / TRY_EACH - 1) as usize % LENGTHS;
        }
        let fastest = self.costs.into_iter().min().unwrap_or(0);
        self.costs.iter().position(|cost| cost - fastest <= fastest / 8).unwrap_or(NO_REST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MOST: Span = Span::from_micros(250);

    /// What a loop rests after `turns` turns, in each of which `each` answers came `gap_us` apart, and
    /// `outstanding` are left.
    fn rest_after(turns: u64, each: u64, gap_us: u64, outstanding: u32) -> Option<Span> {
        let (mut pace, mut last) = (Pace::default(), Answers::default());
        let mut rest = None;
        for turn in 1..=turns {
            let next = Answers { outstanding, come: turn * each };
            pace.update(last, next);
            last = next;
            rest = pace.rest(Time::ZERO + Span::from_micros(turn * each * gap_us), MOST);
        }
        rest
    }

    #[test]
    fn a_loop_rests_for_a_share_of_what_is_outstanding() {
        assert_eq!(rest_after(10, 2, 20, 16), Some(Span::from_micros(5 * 20)));
        assert_eq!(rest_after(10, 2, 20, 64), Some(MOST), "bounded");
    }

    #[test]
    fn there_is_no_rest_with_few_outstanding_or_with_fast_or_slow_answers() {
        assert_eq!(rest_after(10, 1, 20, 1), None);
        assert_eq!(rest_after(10, 1, 20, 5), None);
        assert_eq!(rest_after(10, 8, 5, 64), None, "the thread is awake anyway");
        assert_eq!(rest_after(10, 1, 200, 64), None, "not two of them would come");
        assert_eq!(rest_after(0, 1, 20, 64), None, "nothing is known");
    }

    /// A loop with 16 outstanding, and a peer to which a rest means this much time and so many answers.
    struct Loop {
        pace: Pace,
        now: Time,
        rest: Option<Span>,
    }

    /// Answers every 20 us, whoever looks.
    fn gathers(rest: Option<Span>) -> (Span, u64) {
        let came = rest.map_or(1, |rest| rest.as_nanos().div_ceil(20_000));
        (Span::from_micros(20 * came), came)
    }

    /// Has answered all by the end of a rest, and takes 400 us to wake.
    fn falls_asleep(rest: Option<Span>) -> (Span, u64) {
        rest.map_or((Span::from_micros(20), 1), |rest| (rest + Span::from_micros(400), 16))
    }

    impl Loop {
        fn new() -> Loop {
            Loop { pace: Pace::default(), now: Time::ZERO, rest: None }
        }

        /// The shares of `turns` turns with `peer` that began with a rest, and with one of 90 us or more.
        fn rested(&mut self, turns: u32, peer: fn(Option<Span>) -> (Span, u64)) -> (f64, f64) {
            let (mut any, mut long) = (0, 0);
            for _ in 0..turns {
                any += u32::from(self.rest.is_some());
                long += u32::from(self.rest >= Some(Span::from_micros(90)));
                let (took, came) = peer(self.rest);
                self.now += took;
                let before = self.pace.answers;
                let after = Answers { outstanding: 16, come: before.come + came };
                self.pace.update(before, after);
                self.rest = self.pace.rest(self.now, MOST);
            }
            (f64::from(any) / f64::from(turns), f64::from(long) / f64::from(turns))
        }
    }

    #[test]
    fn it_rests_as_long_as_that_costs_nothing_and_finds_out_when_that_changes() {
        let mut with = Loop::new();
        with.rested(10_000, gathers);
        assert!(with.rested(100_000, gathers).1 > 0.7, "{:?}", with.pace);
        with.rested(50_000, falls_asleep);
        assert!(with.rested(100_000, falls_asleep).0 < 0.02, "{:?}", with.pace);
        with.rested(200_000, gathers);
        assert!(with.rested(100_000, gathers).1 > 0.7, "{:?}", with.pace);
    }

    #[test]
    fn a_peer_that_stands_still_once_is_not_held_to_be_slow() {
        let mut with = Loop::new();
        with.rested(100_000, gathers);
        with.now += Span::from_secs(20);
        assert!(with.rested(20_000, gathers).1 > 0.7, "{:?}", with.pace);
    }

    #[test]
    fn a_session_that_loses_its_connection_has_nothing_outstanding() {
        let mut pace = Pace::default();
        let (none, some) = (Answers::default(), Answers { outstanding: 64, come: 3 });
        pace.update(none, some);
        pace.update(some, Answers { outstanding: 0, come: 3 });
        assert_eq!(pace.rest(Time::ZERO + Span::from_micros(60), MOST), None);
    }
}
