//! Moderation of wake-ups: with many answers outstanding, a loop rests a moment and then takes several
//! at once, as network cards hold interrupts back.
//!
//! A thread that sleeps until *one* answer is there pays a wake-up, a wait and a read for each, and the peer's
//! machine pays for waking it. While the peer still has most of what it was asked, nothing is lost by
//! looking a little later: [`Pace`] measures how fast answers come, and rests for as long as the next few of
//! those that are outstanding take. An answer therefore waits a share of the time that the line before it
//! took, and never more than a bound; with few outstanding there is no rest at all.
//!
//! A peer that has answered nearly all when the loop looks again has run dry meanwhile: it may have gone to sleep, and
//! then its threads have to be woken one after the other. Each such rest halves those that follow; now and then a
//! longer one is tried again.

use netswap_reserve::{Span, Time};

use crate::session::Answers;

/// Of the answers outstanding, one in so many is waited for. Measured against nfs-ganesha with 16 and 64
/// outstanding: 2 saves the client little more, 4 costs it a fifth.
const SHARE: u64 = 3;
/// Answers that come faster than this find the thread awake anyway: about what sleeping and waking costs. Measured
/// against the embedded server, which answers in batches: rests cost it throughput.
const GAP_MIN: Span = Span::from_micros(10);

/// Times that rests are halved at most: then none is worth it.
const CUTS_MAX: u32 = 5;
/// After so many turns in which no peer ran dry a longer rest is tried. Picked by eye: what it may cost then
/// does not show.
const TRIES_EACH: u32 = 256;

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
    /// Answers that were outstanding when it rested last, if that was the last turn.
    rested: u32,
    /// How often rests are halved, and turns since that was looked at.
    cuts: u32,
    turns: u32,
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
            self.learn(came);
        }
        let worth = u64::from(self.answers.outstanding) / SHARE;
        // Less than two answers to be gained, because few are outstanding or they are slow: no rest.
        let is_worth_it = worth >= 2 && self.gap >= GAP_MIN.as_nanos();
        let rest = self.gap.saturating_mul(worth).min(most.as_nanos()) >> self.cuts;
        let rests = is_worth_it && rest >= 2 * self.gap;
        self.rested = if rests { self.answers.outstanding } else { 0 };
        rests.then(|| Span::from_nanos(rest))
    }

    /// So many answers came in a turn: whether the peer ran dry in the rest before it.
    fn learn(&mut self, came: u64) {
        self.turns += 1;
        let rested = u64::from(std::mem::take(&mut self.rested));
        if rested > 0 && came * 3 > rested * 2 {
            (self.cuts, self.turns) = ((self.cuts + 1).min(CUTS_MAX), 0);
        } else if self.turns >= TRIES_EACH {
            (self.cuts, self.turns) = (self.cuts.saturating_sub(1), 0);
        }
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
    fn a_peer_that_runs_dry_in_a_rest_is_given_shorter_ones_and_tried_again() {
        // Each turn takes what it rests and 200 us; so many of 16 answers have come then.
        let turn = |pace: &mut Pace, now: &mut Time, came: u64| {
            let before = pace.answers;
            pace.update(before, Answers { outstanding: 16, come: before.come + came });
            let rest = pace.rest(*now, MOST);
            *now = *now + Span::from_micros(200) + rest.unwrap_or(Span::ZERO);
            rest
        };
        let (mut pace, mut now) = (Pace::default(), Time::ZERO + Span::from_micros(200));
        let rests: Vec<_> = (0..40).map(|_| turn(&mut pace, &mut now, 6)).collect();
        assert!(rests[39].is_some() && pace.cuts == 0, "the peer still has most of it");
        let rests: Vec<_> = (0..20).map(|_| turn(&mut pace, &mut now, 14)).collect();
        assert!(rests[19].is_none() && pace.cuts > 0, "{rests:?}");
        let tried = (0..6 * TRIES_EACH).filter(|_| turn(&mut pace, &mut now, 14).is_some());
        assert!((1..20).contains(&tried.count()));
        let cuts = pace.cuts;
        for _ in 0..CUTS_MAX * TRIES_EACH {
            turn(&mut pace, &mut now, 6);
        }
        assert!(cuts > 0 && pace.cuts == 0, "it was given up for ever");
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
