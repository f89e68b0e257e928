//! How far a long run is, on standard error: a bar on a terminal, elsewhere a line from time to time.

use std::fmt;
use std::io::{self, IsTerminal};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressStyle};

use super::out;

/// How long a command runs before its first line, and between two of them.
const LINE_EVERY: Duration = Duration::from_secs(10);

/// Says when the next line is due.
pub(super) struct Lines {
    started: Instant,
    next: Duration,
    is_on: bool,
}

impl Lines {
    /// Lines of a command that starts now; none at all on a terminal.
    pub(super) fn new() -> Lines {
        let is_on = !io::stderr().is_terminal();
        Lines { started: Instant::now(), next: LINE_EVERY, is_on }
    }

    /// Prints `text` and the time since the start, if a line is due.
    pub(super) fn tell(&mut self, text: impl fmt::Display) {
        let ran = self.started.elapsed();
        if self.is_on && self.is_due(ran) {
            out::note(format_args!("{text}, {} s so far", ran.as_secs()));
        }
    }

    fn is_due(&mut self, ran: Duration) -> bool {
        let is_due = ran >= self.next;
        if is_due {
            self.next = ran + LINE_EVERY;
        }
        is_due
    }
}

/// A bar of this length, or a hidden one if there is no terminal.
pub(super) fn bar(length: u64, template: &str) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template(template).expect("the template is a constant");
    ProgressBar::new(length).with_style(style.progress_chars("=> "))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_come_every_ten_seconds_and_none_before() {
        let mut lines = Lines { started: Instant::now(), next: LINE_EVERY, is_on: true };
        let at = |ms: &u64| Duration::from_millis(*ms);
        let times = [0, 9_999, 10_000, 10_001, 19_999, 25_000, 30_000, 35_000, 35_001];
        let due: Vec<u64> = times.into_iter().filter(|ms| lines.is_due(at(ms))).collect();
        assert_eq!(due, [10_000, 25_000, 35_000]);
    }
}
