//! Moderation of wake-ups: with many answers outstanding, a loop rests a moment and then takes several
//! at once, as network cards hold interrupts back.
//!
//! A thread that sleeps until *one* answer is there pays a wake-up, a wait and a read for each, and the peer's
//! machine pays for waking it. While the peer still has most of what it was asked, nothing is lost by
//! looking a little later: [`Pace`] measures how fast answers come, and rests for as long as the next few of
//! those that are outstanding take. An answer therefore waits a share of the time that the line before it
//! took, and never more than a bound; with few outstanding there is no rest at all.

use netswap_reserve::{Span, Time};

use crate::session::Answers;

/// Of the answers outstanding, one in so many is waited for. Measured against nfs-ganesha with 16 and 64
/// outstanding: 2 saves the client little more, 4 costs it a fifth.
const SHARE: u64 = 3;
/// Answers that come faster than this find the thread awake anyway: about what sleeping and waking costs. Measured
/// against the embedded server, which answers in batches: rests cost it throughput.
const GAP_MIN: Span = Span::from_micros(10);

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
        if let Some(gap) = now.since(self.at).as_nanos().checked_div(came) {
            self.gap = if self.gap == 0 { gap } else { (7 * self.gap + gap) / 8 };
            (self.at, self.come) = (now, self.answers.come);
        }
        let worth = u64::from(self.answers.outstanding) / SHARE;
        // Less than two answers to be gained, because few are outstanding or they are slow: no rest.
        let is_worth_it = worth >= 2 && self.gap >= GAP_MIN.as_nanos();
        let rest = self.gap.saturating_mul(worth).min(most.as_nanos());
        (is_worth_it && rest >= 2 * self.gap).then(|| Span::from_nanos(rest))
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

    #[test]
    fn a_session_that_loses_its_connection_has_nothing_outstanding() {
        let mut pace = Pace::default();
        let (none, some) = (Answers::default(), Answers { outstanding: 64, come: 3 });
        pace.update(none, some);
        pace.update(some, Answers { outstanding: 0, come: 3 });
        assert_eq!(pace.rest(Time::ZERO + Span::from_micros(60), MOST), None);
    }
}
