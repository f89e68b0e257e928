//! What a run tells: one row, for people as a table and for programs as JSON.

use std::collections::BTreeMap;
use std::fmt;

use serde::Serialize;

use crate::scenario::{Ablation, Store};

/// How a run ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// Every task ended and every page was right.
    Completed,
    /// Tasks wait in a cycle that goes through memory.
    Deadlock,
    /// A page had not the content that was written to it.
    Corrupt,
    /// Anything else that should not be; the reason says what.
    Failed,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Outcome::Completed => "completed",
            Outcome::Deadlock => "DEADLOCK",
            Outcome::Corrupt => "CORRUPT",
            Outcome::Failed => "FAILED",
        })
    }
}

/// Major-fault latency, in virtual microseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize)]
pub struct Latency {
    /// Median.
    pub p50_us: f64,
    /// 99th percentile.
    pub p99_us: f64,
    /// The longest.
    pub max_us: f64,
}

/// What shows that a protected run met what it was protected from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Exercise {
    /// Free frames went below the min watermark.
    pub below_min: bool,
    /// The receive reserve was charged.
    pub receive_reserve_used: bool,
    /// Emergency packets were dropped.
    pub emergency_dropped: bool,
    /// Every reader of the flood received data.
    pub every_reader_received: bool,
}

impl Exercise {
    /// Whether all of it happened.
    pub fn is_full(&self) -> bool {
        self.below_min
            && self.receive_reserve_used
            && self.emergency_dropped
            && self.every_reader_received
    }

    /// What did not happen.
    pub fn missing(&self) -> Vec<&'static str> {
        [
            (self.below_min, "free frames never went below min"),
            (self.receive_reserve_used, "the receive reserve was never used"),
            (self.emergency_dropped, "no emergency packet was dropped"),
            (self.every_reader_received, "a reader received nothing"),
        ]
        .into_iter()
        .filter(|(happened, _)| !happened)
        .map(|(_, what)| what)
        .collect()
    }
}

/// One run.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// The store.
    pub backend: Store,
    /// The protections that were off.
    pub ablate: Vec<Ablation>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if it did not complete.
    pub reason: Option<String>,
    /// Virtual seconds from the start of the tasks to the end (of a deadlock: to its beginning).
    pub virtual_s: f64,
    /// Pages read from the store.
    pub page_ins: u64,
    /// Pages written to the store.
    pub page_outs: u64,
    /// Latency of faults that waited.
    pub fault: Latency,
    /// Packets the host dropped, by reason.
    pub dropped: BTreeMap<&'static str, u64>,
    /// The fewest frames that were free.
    pub free_lowest: u32,
    /// The most frames charged to the reserve at once.
    pub reserve_peak: u32,
    /// The reserve's limit: the emergency floor.
    pub reserve_limit: u32,
    /// Pages whose whole content was compared with what was written.
    pub pages_verified: u64,
    /// Transactions that ended, each with all its pages.
    pub transactions: u64,
    /// Wall seconds to lay out the memory of the simulated hosts, and to have this system commit it.
    pub setup_s: f64,
    /// Wall seconds of all the rest.
    pub wall_s: f64,
    /// Hash over everything that happened, in order.
    pub trace_hash: String,
    /// What the run met.
    pub exercise: Exercise,
    /// Faults injected, by name.
    pub faults: BTreeMap<&'static str, u64>,
    /// Bytes of the untagged TCP flow that arrived intact.
    pub liveness_bytes: u64,
    /// The seed.
    pub seed: u64,
    /// Lines of traces that could not be parsed.
    pub malformed_lines: u64,
    /// The first of them, with their numbers.
    pub malformed_first: Vec<String>,
    /// The explanation of a stuck machine.
    pub explanation: Option<String>,
    /// The host's reserve tree at the end.
    #[serde(skip)]
    pub reserve_report: String,
}

impl Row {
    /// Pages moved, both ways.
    pub fn transfers(&self) -> u64 {
        self.page_ins + self.page_outs
    }

    /// The protections that were off, for people.
    pub fn protections(&self) -> String {
        protections(&self.ablate)
    }
}

/// The protections of a run in which these are off, for people.
pub fn protections(off: &[Ablation]) -> String {
    if off.is_empty() {
        return "all on".into();
    }
    let names: Vec<String> = off.iter().map(|a| format!("no {}", a.name())).collect();
    names.join(", ")
}

/// A figure and its unit: what has more words is a sentence that begins with a figure.
const FIGURE_WORDS_MAX: usize = 2;

/// Draws rows of cells as an aligned table. The first row is the head; a cell may have several lines.
pub fn table(rows: &[Vec<String>]) -> String {
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let width = |column: usize| {
        let cells = rows.iter().filter_map(|row| row.get(column));
        cells.flat_map(|cell| cell.lines()).map(|l| l.chars().count()).max().unwrap_or(0)
    };
    let widths: Vec<usize> = (0..columns).map(width).collect();
    let mut out = String::new();
    for (i, row) in rows.iter().enumerate() {
        let height = row.iter().map(|cell| cell.lines().count()).max().unwrap_or(1).max(1);
        for line in 0..height {
            let cells: Vec<String> = (0..columns)
                .map(|c| {
                    let text = row.get(c).and_then(|cell| cell.lines().nth(line)).unwrap_or("");
                    let pad = " ".repeat(widths[c] - text.chars().count());
                    // Figures line up on the right, words on the left; the head follows its column.
                    let is_figure = text.starts_with(|c: char| c.is_ascii_digit())
                        && text.split(' ').count() <= FIGURE_WORDS_MAX;
                    let right = i > 0 && is_figure;
                    if right { format!("{pad}{text}") } else { format!("{text}{pad}") }
                })
                .collect();
            out.push_str(cells.join("  ").trim_end());
            out.push('\n');
        }
        if i == 0 {
            let rule: Vec<String> = widths.iter().map(|w| "-".repeat(*w)).collect();
            out.push_str(&rule.join("  "));
            out.push('\n');
        }
    }
    out
}

/// A count with its thousands told apart: `12,345`.
pub fn grouped(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, c) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(c);
    }
    out
}

/// A length of time in microseconds, in the unit that suits it.
pub fn micros(us: f64) -> String {
    match us {
        us if us < 1_000.0 => format!("{us:.0} us"),
        us if us < 1_000_000.0 => format!("{:.1} ms", us / 1e3),
        us => format!("{:.2} s", us / 1e6),
    }
}

/// Where the transactions go, if there were any: behind the pages verified.
const TRANSACTIONS_COLUMN: usize = 12;

/// The table of a set of runs, as `netswap sim` prints it.
pub fn rows_table(rows: &[Row]) -> String {
    let head = [
        "swap to",
        "protections",
        "outcome",
        "virtual",
        "page-ins",
        "page-outs",
        "fault p50",
        "p99",
        "max",
        "free low",
        "reserve",
        "verified",
        "wall",
        "trace hash",
    ];
    let mut cells = vec![head.map(String::from).to_vec()];
    for row in rows {
        cells.push(vec![
            row.backend.name().into(),
            row.protections(),
            row.outcome.to_string(),
            format!("{:.3} s", row.virtual_s),
            grouped(row.page_ins),
            grouped(row.page_outs),
            micros(row.fault.p50_us),
            micros(row.fault.p99_us),
            micros(row.fault.max_us),
            grouped(row.free_lowest.into()),
            format!("{} of {}", row.reserve_peak, row.reserve_limit),
            grouped(row.pages_verified),
            format!("{:.2} s", row.wall_s),
            row.trace_hash.clone(),
        ]);
    }
    if rows.iter().any(|row| row.transactions > 0) {
        let counts = rows.iter().map(|row| grouped(row.transactions));
        let column = std::iter::once("transactions".to_string()).chain(counts);
        cells
            .iter_mut()
            .zip(column)
            .for_each(|(line, cell)| line.insert(TRANSACTIONS_COLUMN, cell));
    }
    table(&cells)
}

/// The packets that the hosts of a set of runs dropped, by reason. `None` if they dropped none.
pub fn drops_table(rows: &[Row]) -> Option<String> {
    let mut reasons: Vec<&'static str> = Vec::new();
    for row in rows {
        for (reason, n) in &row.dropped {
            if *n > 0 && !reasons.contains(reason) {
                reasons.push(reason);
            }
        }
    }
    if reasons.is_empty() {
        return None;
    }
    reasons.sort_unstable();
    let mut cells = vec![vec!["swap to".to_string(), "protections".to_string()]];
    cells[0].extend(reasons.iter().map(|r| r.to_string()));
    for row in rows {
        let mut line = vec![row.backend.name().to_string(), row.protections()];
        let count = |r: &&'static str| grouped(row.dropped.get(*r).copied().unwrap_or(0));
        line.extend(reasons.iter().map(count));
        cells.push(line);
    }
    Some(table(&cells))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_align_words_left_and_figures_right() {
        let rows = vec![
            vec!["name".into(), "count".into()],
            vec!["a".into(), "7".into()],
            vec!["long name".into(), "1,234".into()],
        ];
        let expected = "name       count\n---------  -----\na              7\nlong name  1,234\n";
        assert_eq!(table(&rows), expected);
    }

    #[test]
    fn large_numbers_are_grouped() {
        assert_eq!(grouped(0), "0");
        assert_eq!(grouped(999), "999");
        assert_eq!(grouped(1_000), "1,000");
        assert_eq!(grouped(12_345_678), "12,345,678");
    }
}
