//! `netswap stress`: randomly drawn scenarios, all protections on, everything checked.

use std::collections::BTreeMap;
use std::io::IsTerminal;
use std::ops::Range;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use indicatif::{ProgressBar, ProgressStyle};
use netswap::report::{Outcome as RowOutcome, Row, table};
use netswap::scenario::Scenario;
use netswap::world::{self, RunSpec};

use super::{EXIT_FAILED, EXIT_OK, Outcome};

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
    /// Print the scenario of each seed before it runs, and its row after it
    #[arg(long)]
    show: bool,
    /// Print JSON: an object a failed seed, then one for the campaign
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
}

impl Totals {
    fn add(&mut self, seed: u64, result: &Result<Row, String>) -> Option<String> {
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

pub(super) fn run(args: &Args) -> Outcome {
    let count = args.seeds.end - args.seeds.start;
    let processors = std::thread::available_parallelism().map_or(1, |n| n.get());
    let jobs = args.jobs.unwrap_or(processors).clamp(1, 64);
    let started = Instant::now();
    let bar = if std::io::stderr().is_terminal() && !args.show {
        let style = "{pos} of {len} seeds [{bar:40}] {per_sec}, {eta} left, {msg}";
        let style = ProgressStyle::with_template(style).expect("the template is a constant");
        ProgressBar::new(count).with_style(style.progress_chars("=> "))
    } else {
        ProgressBar::hidden()
    };
    let next = AtomicU64::new(args.seeds.start);
    let totals = Mutex::new(Totals::default());
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let seed = next.fetch_add(1, Ordering::Relaxed);
                    if seed >= args.seeds.end {
                        return;
                    }
                    let result = run_seed(seed, args);
                    let mut totals = totals.lock().expect("no holder of this lock panics");
                    if let Some(what) = totals.add(seed, &result) {
                        bar.suspend(|| report_failure(seed, &what, args.json));
                        bar.set_message(format!("{} failed", totals.failed.len()));
                    }
                    bar.inc(1);
                }
            });
        }
    });
    bar.finish_and_clear();
    let totals = totals.into_inner().expect("no holder of this lock panics");
    summarise(args, &totals, count, started.elapsed().as_secs_f64());
    Ok(if totals.failed.is_empty() { EXIT_OK } else { EXIT_FAILED })
}

fn run_seed(seed: u64, args: &Args) -> Result<Row, String> {
    let (scenario, store) = Scenario::draw(seed);
    if args.show {
        let shown = toml::to_string(&scenario).map_err(|e| e.to_string())?;
        println!("# seed {seed}, {}\n{shown}", store.name());
    }
    let spec = RunSpec {
        scenario,
        store,
        ablate: Vec::new(),
        alloc_trace: None,
        traces: Vec::new(),
        must_be_exercised: false,
    };
    let row = world::run(&spec, &mut |_| {}).map_err(|e| e.to_string())?;
    if args.show {
        println!("# {}", serde_json::to_string(&row).map_err(|e| e.to_string())?);
    }
    Ok(row)
}

fn report_failure(seed: u64, what: &str, json: bool) {
    let replay = format!("netswap stress --seeds {seed}..{} --show", seed + 1);
    if json {
        println!("{}", serde_json::json!({ "seed": seed, "failure": what, "replay": replay }));
    } else {
        println!("seed {seed} failed: {what}\n  again: {replay}");
    }
}

fn summarise(args: &Args, totals: &Totals, count: u64, wall_s: f64) {
    let rate = count as f64 / wall_s;
    if args.json {
        let summary = serde_json::json!({
            "seeds": count,
            "failed": totals.failed.iter().map(|(seed, _)| seed).collect::<Vec<_>>(),
            "seeds_per_s": rate,
            "pages_verified": totals.pages_verified,
            "transfers": totals.transfers,
            "faults": totals.faults,
            "seeds_with_fault": totals.seeds_with,
            "wall_s": wall_s,
        });
        println!("{summary}");
        return;
    }
    let mut rows = vec![vec!["fault".to_string(), "times".to_string(), "in seeds".to_string()]];
    for (name, n) in &totals.faults {
        rows.push(vec![name.to_string(), n.to_string(), totals.seeds_with[name].to_string()]);
    }
    println!("{}", table(&rows));
    println!(
        "{count} seeds, {} failed; {rate:.1} seeds a second; {} pages moved, {} verified; {wall_s:.1} s",
        totals.failed.len(),
        totals.transfers,
        totals.pages_verified,
    );
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
