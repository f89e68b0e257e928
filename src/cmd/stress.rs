//! `netswap stress`: randomly drawn scenarios, all protections on, everything checked.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Instant;

use indicatif::ProgressBar;
use netswap::report::{Outcome as RowOutcome, Row, table};
use netswap::scenario::{Scenario, Store};
use netswap::world::{self, RunSpec};
use serde_json::json;

use super::progress::{self, Lines};
use super::{EXIT_FAILED, EXIT_OK, Failure, Outcome, out};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  netswap stress --seeds 0..1000          a campaign
  netswap stress --seeds 17..18 --show    one seed again, with its scenario")]
pub(super) struct Args {
    /// The seeds to run, as FIRST..END (END is not run)
    #[arg(long, value_parser = parse_seeds)]
    seeds: Range<u64>,
    /// How many run at the same time; as many as there are processors if not given
    #[arg(long)]
    jobs: Option<usize>,
    /// Print the scenario of each seed before it runs, and its row after it: as a scenario file with
    /// comments, or with --json as an object each
    #[arg(long)]
    show: bool,
    /// Print JSON: an object a failed seed, then one for the campaign; one object a line
    #[arg(long)]
    json: bool,
}

fn parse_seeds(text: &str) -> Result<Range<u64>, String> {
    let (first, end) = text.split_once("..").ok_or("give them as FIRST..END, 0..1000 for one")?;
    let first: u64 = first.trim().parse().map_err(|e| format!("first seed: {e}"))?;
    let end: u64 = end.trim().parse().map_err(|e| format!("end of the seeds: {e}"))?;
    if first >= end {
        return Err(format!("{first}..{end} holds no seed"));
    }
    Ok(first..end)
}

/// What a campaign adds up.
#[derive(Default)]
struct Totals {
    faults: BTreeMap<&'static str, u64>,
    seeds_with: BTreeMap<&'static str, u64>,
    pages_verified: u64,
    transfers: u64,
    failed: Vec<(u64, String)>,
    done: u64,
}

impl Totals {
    fn add(&mut self, seed: u64, result: &Result<Row, String>) -> Option<String> {
        self.done += 1;
        let row = match result {
            Ok(row) => row,
            Err(error) => {
                self.failed.push((seed, error.clone()));
                return Some(error.clone());
            }
        };
        for (name, n) in &row.faults {
            *self.faults.entry(name).or_default() += n;
            *self.seeds_with.entry(name).or_default() += u64::from(*n > 0);
        }
        self.pages_verified += row.pages_verified;
        self.transfers += row.transfers();
        if row.outcome == RowOutcome::Completed {
            return None;
        }
        let what = row.reason.clone().or_else(|| row.explanation.clone()).unwrap_or_default();
        let what = format!("{}: {what}", row.outcome);
        self.failed.push((seed, what.clone()));
        Some(what)
    }
}

/// What the workers of a campaign share.
struct Campaign<'a> {
    args: &'a Args,
    count: u64,
    bar: ProgressBar,
    shared: Mutex<Shared>,
}

struct Shared {
    /// The seeds that nobody has taken.
    left: Range<u64>,
    totals: Totals,
    lines: Lines,
    /// Why nothing more can be printed: then nobody takes another seed.
    stopped: Option<Failure>,
}

impl Campaign<'_> {
    fn shared(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs one seed after the other until none is left.
    fn work(&self) {
        while let Some(seed) = self.next() {
            if let Err(failure) = self.run_seed(seed) {
                self.shared().stopped.get_or_insert(failure);
            }
        }
    }

    fn next(&self) -> Option<u64> {
        let mut shared = self.shared();
        if shared.stopped.is_some() { None } else { shared.left.next() }
    }

    fn run_seed(&self, seed: u64) -> Result<(), Failure> {
        let (scenario, store) = Scenario::draw(seed);
        if self.args.show {
            self.show_scenario(&scenario, store)?;
        }
        let spec = RunSpec::protected(scenario, store);
        let result = world::run(&spec, &mut |_| {}).map_err(|e| e.to_string());
        if let (true, Ok(row)) = (self.args.show, &result) {
            self.show_row(seed, row)?;
        }
        let mut shared = self.shared();
        let Shared { totals, lines, .. } = &mut *shared;
        let failure = totals.add(seed, &result);
        self.bar.inc(1);
        let (done, failed) = (totals.done, totals.failed.len());
        lines.tell(format_args!("{done} of {}, {failed} failed", out::count(self.count, "seed")));
        let Some(what) = failure else { return Ok(()) };
        self.bar.set_message(format!("{failed} failed"));
        self.bar.suspend(|| report_failure(seed, &what, self.args.json))
    }

    fn show_scenario(&self, scenario: &Scenario, store: Store) -> Result<(), Failure> {
        let seed = scenario.seed;
        if self.args.json {
            return out::line(json!({ "seed": seed, "store": store, "scenario": scenario }));
        }
        let text = toml::to_string(scenario).expect("a scenario has only plain fields");
        out::line(format_args!("# seed {seed}, {}\n{text}", store.name()))
    }

    fn show_row(&self, seed: u64, row: &Row) -> Result<(), Failure> {
        if self.args.json {
            return out::line(json!({ "seed": seed, "row": row }));
        }
        let row = serde_json::to_string(row).expect("a row has only plain fields");
        out::line(format_args!("# {row}"))
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let count = args.seeds.end - args.seeds.start;
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let jobs = args.jobs.unwrap_or(processors).clamp(1, 64);
    let started = Instant::now();
    let bar = if args.show {
        ProgressBar::hidden()
    } else {
        progress::bar(count, "{pos} of {len} seeds [{bar:40}] {per_sec}, {eta} left, {msg}")
    };
    let shared = Shared {
        left: args.seeds.clone(),
        totals: Totals::default(),
        lines: Lines::new(),
        stopped: None,
    };
    let campaign = Campaign { args, count, bar, shared: Mutex::new(shared) };
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| campaign.work());
        }
    });
    campaign.bar.finish_and_clear();
    let Shared { totals, stopped, .. } =
        campaign.shared.into_inner().unwrap_or_else(PoisonError::into_inner);
    let code = if totals.failed.is_empty() { EXIT_OK } else { EXIT_FAILED };
    let told = match stopped {
        Some(failure) => Err(failure),
        None => summarise(args, &totals, count, started.elapsed().as_secs_f64()),
    };
    told.map_err(|failure| failure.after(code))?;
    Ok(code)
}

fn report_failure(seed: u64, what: &str, as_json: bool) -> Result<(), Failure> {
    let replay = format!("netswap stress --seeds {seed}..{} --show", seed + 1);
    if as_json {
        return out::line(json!({ "seed": seed, "failure": what, "replay": replay }));
    }
    out::line(format_args!("seed {seed} failed: {what}\n  again: {replay}"))
}

fn summarise(args: &Args, totals: &Totals, count: u64, wall_s: f64) -> Result<(), Failure> {
    let rate = count as f64 / wall_s;
    if args.json {
        return out::line(json!({
            "seeds": count,
            "failed": totals.failed.iter().map(|(seed, _)| seed).collect::<Vec<_>>(),
            "seeds_per_s": rate,
            "pages_verified": totals.pages_verified,
            "transfers": totals.transfers,
            "faults": totals.faults,
            "seeds_with_fault": totals.seeds_with,
            "wall_s": wall_s,
        }));
    }
    let mut rows = vec![vec!["fault".to_string(), "times".to_string(), "in seeds".to_string()]];
    for (name, n) in &totals.faults {
        rows.push(vec![name.to_string(), n.to_string(), totals.seeds_with[name].to_string()]);
    }
    out::line(table(&rows))?;
    out::line(format_args!(
        "{}, {} failed; {rate:.1} seeds a second; {} pages moved, {} verified; {wall_s:.1} s",
        out::count(count, "seed"),
        totals.failed.len(),
        totals.transfers,
        totals.pages_verified,
    ))
}

/// A campaign that cannot be told apart from one that ran nothing would be worthless.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seeds_are_a_range_with_at_least_one_in_it() {
        assert_eq!(parse_seeds("3..5"), Ok(3..5));
        assert!(parse_seeds("5..5").is_err());
        assert!(parse_seeds("7").is_err());
        assert!(parse_seeds("a..b").is_err());
    }
}
