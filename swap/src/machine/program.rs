//! What simulated tasks do: a program yields one step after the other.

use crate::Access;

/// Names something that tasks receive from: a socket, for one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChannelId(pub u32);

/// The next thing a task does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Touch page `page` of the task's mapping from end to end.
    Touch {
        /// Index in the mapping.
        page: u32,
        /// Reading or writing.
        access: Access,
    },
    /// Wait until something is in `channel`, write page `page`, and only then take it: what waits
    /// keeps its memory until the page it is stored in is there.
    Receive {
        /// Where from.
        channel: ChannelId,
        /// Index in the mapping.
        page: u32,
        /// Whether it is the first that goes into this page: the page's old content is checked and
        /// replaced. What follows is appended.
        fresh: bool,
    },
    /// Add a page to the end of the mapping: of zeros, or of the machine's file area.
    Grow {
        /// Whether it is a file page.
        file: bool,
    },
    /// Run a transaction from beginning to end, as [`super::MachineConfig::transactions`] says.
    Transact,
    /// End.
    Done,
}

/// What a task does.
pub trait Program {
    /// The next step. It is asked again only when the last one was done.
    fn next(&mut self) -> Step;

    /// A [`Step::Receive`] brought `len` bytes.
    fn handle_received(&mut self, _len: usize) {}
}

/// Writes its mapping once, then reads it from end to end for some rounds.
#[derive(Clone, Debug)]
pub struct Linear {
    pages: u32,
    rounds: u32,
    dirty_percent: u32,
    round: u32,
    at: u32,
}

impl Linear {
    /// Over `pages` pages; in each of the `rounds` rounds `dirty_percent` of the pages are written
    /// again.
    pub fn new(pages: u32, rounds: u32, dirty_percent: u32) -> Linear {
        Linear { pages, rounds, dirty_percent, round: 0, at: 0 }
    }

    fn access(&self) -> Access {
        // A fixed spread over pages and rounds: no two neighbours are dirtied for the same reason.
        let spread = (self.at.wrapping_mul(2_654_435_761)) ^ self.round.wrapping_mul(40_503);
        if self.round == 0 || (spread >> 7) % 100 < self.dirty_percent {
            Access::Write
        } else {
            Access::Read
        }
    }
}

impl Program for Linear {
    fn next(&mut self) -> Step {
        if self.at == self.pages {
            self.at = 0;
            self.round += 1;
        }
        if self.round > self.rounds || self.pages == 0 {
            return Step::Done;
        }
        let step = Step::Touch { page: self.at, access: self.access() };
        self.at += 1;
        step
    }
}

/// Runs another program, with a transaction after each so many of its steps.
pub struct Transacting {
    program: Box<dyn Program>,
    every: u32,
    left: u32,
}

impl Transacting {
    /// `program`, with a transaction after each `every` of its steps; none if that is 0.
    pub fn new(program: Box<dyn Program>, every: u32) -> Transacting {
        Transacting { program, every, left: every }
    }
}

impl Program for Transacting {
    fn next(&mut self) -> Step {
        if self.every > 0 && self.left == 0 {
            self.left = self.every;
            return Step::Transact;
        }
        self.left = self.left.saturating_sub(1);
        self.program.next()
    }

    fn handle_received(&mut self, len: usize) {
        self.program.handle_received(len);
    }
}

/// Receives from a channel for ever and keeps what it got in a ring of its own pages.
#[derive(Clone, Debug)]
pub struct Reader {
    channel: ChannelId,
    bytes: u64,
    pages: u32,
    /// The page that is being filled.
    filling: Option<u64>,
}

impl Reader {
    /// Receives from `channel` into a ring of `pages` pages.
    pub fn new(channel: ChannelId, pages: u32) -> Reader {
        Reader { channel, bytes: 0, pages, filling: None }
    }
}

impl Program for Reader {
    fn next(&mut self) -> Step {
        let page = self.bytes / netswap_reserve::PAGE_SIZE as u64;
        let fresh = self.filling != Some(page);
        self.filling = Some(page);
        let page = (page % u64::from(self.pages)) as u32;
        Step::Receive { channel: self.channel, page, fresh }
    }

    fn handle_received(&mut self, len: usize) {
        self.bytes += len as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_linear_task_writes_once_then_reads_every_page_of_every_round() {
        let mut program = Linear::new(3, 2, 0);
        let steps: Vec<Step> =
            std::iter::from_fn(|| Some(program.next()).filter(|s| *s != Step::Done)).collect();
        assert_eq!(steps.len(), 9);
        for (i, step) in steps.iter().enumerate() {
            let access = if i < 3 { Access::Write } else { Access::Read };
            assert_eq!(*step, Step::Touch { page: i as u32 % 3, access });
        }
    }

    #[test]
    fn a_transaction_comes_after_each_so_many_steps() {
        let mut program = Transacting::new(Box::new(Linear::new(5, 0, 0)), 2);
        let steps: Vec<bool> =
            std::iter::from_fn(|| Some(program.next()).filter(|s| *s != Step::Done))
                .map(|step| step == Step::Transact)
                .collect();
        assert_eq!(steps, [false, false, true, false, false, true, false]);
    }

    #[test]
    fn the_dirty_share_of_later_rounds_is_what_was_asked_for() {
        let mut program = Linear::new(10_000, 3, 25);
        let mut writes = 0;
        loop {
            match program.next() {
                Step::Touch { access: Access::Write, .. } => writes += 1,
                Step::Done => break,
                _ => {}
            }
        }
        let later = writes - 10_000;
        assert!((6_500..8_500).contains(&later), "{later} of 30000");
    }
}
