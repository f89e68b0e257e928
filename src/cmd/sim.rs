//! `netswap sim`: the headline test, or a scenario of the user's own.

use std::io::IsTerminal;
use std::path::PathBuf;

use indicatif::{ProgressBar, ProgressStyle};
use netswap::plan::host_plan;
use netswap::report::{Outcome as RowOutcome, Row, drops_table, rows_table};
use netswap::scenario::{Ablation, Scenario, Store, UnknownName};
use netswap::units::{BitRate, Bytes, Nanos, Share};
use netswap::world::{self, RunSpec};

use super::{EXIT_FAILED, EXIT_OK, Failure, Outcome};

#[derive(clap::Args)]
#[command(after_help = "Examples:
  netswap sim                                    the headline test, protected and with each protection off
  netswap sim --backend nfs --ablate drop        one deadlock, explained
  netswap sim --ram 16MiB --overcommit 2 --json  one JSON object a row
  netswap sim --scenario my.toml --seed 7        a scenario of your own
  valgrind --tool=lackey --trace-mem=yes ls 2>&1 | netswap sim --trace - --ram 4MiB")]
pub(super) struct Args {
    /// Where pages go
    #[arg(long, value_parser = ["nfs", "iscsi", "both"], default_value = "both")]
    backend: String,
    /// Memory of the host, as 64MiB
    #[arg(long)]
    ram: Option<Bytes>,
    /// Processors
    #[arg(long)]
    cpus: Option<u32>,
    /// Tasks that page, for each processor
    #[arg(long)]
    tasks_per_cpu: Option<u32>,
    /// All mappings together, in multiples of RAM
    #[arg(long)]
    overcommit: Option<f64>,
    /// How often each task reads its mapping after writing it
    #[arg(long)]
    rounds: Option<u32>,
    /// Share of the pages that later rounds write again, in percent
    #[arg(long, value_name = "PERCENT")]
    dirty: Option<u32>,
    /// Untagged traffic, in percent of the link's rate
    #[arg(long, value_name = "PERCENT")]
    flood: Option<u32>,
    /// Rate of the link, as 1Gbit
    #[arg(long, value_name = "RATE")]
    link_rate: Option<BitRate>,
    /// One-way latency of the link, as 100us
    #[arg(long, value_name = "TIME")]
    link_latency: Option<Nanos>,
    /// Packets lost, as 0.1%
    #[arg(long, value_name = "SHARE")]
    link_loss: Option<Share>,
    /// Packets delivered twice
    #[arg(long, value_name = "SHARE")]
    link_duplicate: Option<Share>,
    /// Packets delivered behind later ones
    #[arg(long, value_name = "SHARE")]
    link_reorder: Option<Share>,
    /// Packets with one bit flipped
    #[arg(long, value_name = "SHARE")]
    link_corrupt: Option<Share>,
    /// Protections to switch off, all in one run: reserve, tag, drop, scope; `none` for the protected
    /// run alone
    #[arg(long, value_name = "NAME", value_delimiter = ',')]
    ablate: Vec<String>,
    /// Makes another run of the same scenario
    #[arg(long)]
    seed: Option<u64>,
    /// A scenario file; options override it
    #[arg(long, value_name = "FILE.toml")]
    scenario: Option<PathBuf>,
    /// Replay what `valgrind --tool=lackey --trace-mem=yes` printed (plain or zstd, - for standard
    /// input), one task a trace, instead of the scenario's tasks
    #[arg(long, value_name = "FILE")]
    trace: Vec<PathBuf>,
    /// Record every operation of the host's page pool, for `netswap replay` (compressed if the name ends in
    /// .zst). For one row only: choose one backend and one set of protections
    #[arg(long, value_name = "FILE")]
    alloc_trace: Option<PathBuf>,
    /// Print one JSON object a row
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: &Args) -> Outcome {
    let scenario = scenario(args)?;
    let traces_from_stdin = args.trace.iter().filter(|p| p.as_os_str() == "-").count();
    let sets = ablation_sets(args)?;
    let stores: &[Store] = match args.backend.as_str() {
        "nfs" => &[Store::Nfs],
        "iscsi" => &[Store::Iscsi],
        _ => &Store::ALL,
    };
    if traces_from_stdin > 1 || (traces_from_stdin == 1 && stores.len() * sets.len() > 1) {
        return Err(Failure::usage(
            "standard input can be read once only: choose one backend and one set of protections, \
             or put the trace into a file",
        ));
    }
    let rows_wanted = stores.len() * sets.len();
    if args.alloc_trace.is_some() && rows_wanted > 1 {
        return Err(Failure::usage(format!(
            "--alloc-trace records one row, and {rows_wanted} would run: choose one with --backend and --ablate \
             (as --backend nfs --ablate none)",
        )));
    }
    let areas = if args.trace.is_empty() { 1 } else { 2 };
    let plan = host_plan(&scenario, areas);
    scenario.check(&plan).map_err(Failure::usage)?;
    let is_headline = args.trace.is_empty()
        && Scenario { seed: 0, ..scenario.clone() } == Scenario { seed: 0, ..Scenario::default() };
    let queues = world::QueueBounds::of(&scenario, &plan);
    if is_headline {
        queues.check().map_err(Failure::usage)?;
    }
    if !args.json {
        print_head(&scenario, &queues, args);
    }

    let mut rows = Vec::new();
    for store in stores {
        for ablate in &sets {
            let spec = RunSpec {
                scenario: scenario.clone(),
                store: *store,
                ablate: ablate.clone(),
                traces: args.trace.clone(),
                alloc_trace: args.alloc_trace.clone(),
                must_be_exercised: is_headline,
            };
            let bar = progress_bar(&spec);
            let row = world::run(&spec, &mut |share| {
                bar.set_position((share * 1000.0) as u64);
            });
            bar.finish_and_clear();
            let row = row.map_err(Failure::usage)?;
            if args.json {
                println!("{}", serde_json::to_string(&row).expect("a row has only plain fields"));
            }
            rows.push(row);
        }
    }
    if !args.json {
        print_rows(&rows, is_headline);
    }
    let bad = rows.iter().any(|row| !ended_as_it_should(row, is_headline));
    Ok(if bad { EXIT_FAILED } else { EXIT_OK })
}

/// A protected run has to complete; of the headline test, every other has to deadlock.
fn ended_as_it_should(row: &Row, is_headline: bool) -> bool {
    match row.outcome {
        RowOutcome::Completed => row.ablate.is_empty() || !is_headline,
        RowOutcome::Deadlock => !row.ablate.is_empty(),
        RowOutcome::Corrupt | RowOutcome::Failed => false,
    }
}

fn scenario(args: &Args) -> Result<Scenario, Failure> {
    let mut scenario = match &args.scenario {
        Some(path) => Scenario::read(path).map_err(Failure::usage)?,
        None => Scenario::default(),
    };
    fn put<T: Copy>(value: &Option<T>, place: &mut T) {
        if let Some(value) = value {
            *place = *value;
        }
    }
    put(&args.ram, &mut scenario.host.ram);
    put(&args.cpus, &mut scenario.host.cpus);
    put(&args.tasks_per_cpu, &mut scenario.host.tasks_per_cpu);
    put(&args.overcommit, &mut scenario.host.overcommit);
    put(&args.rounds, &mut scenario.host.rounds);
    put(&args.dirty, &mut scenario.host.dirty_percent);
    put(&args.flood, &mut scenario.flood.percent);
    put(&args.link_rate, &mut scenario.link.rate);
    put(&args.link_latency, &mut scenario.link.latency);
    put(&args.link_loss, &mut scenario.link.loss);
    put(&args.link_duplicate, &mut scenario.link.duplicate);
    put(&args.link_reorder, &mut scenario.link.reorder);
    put(&args.link_corrupt, &mut scenario.link.corrupt);
    put(&args.seed, &mut scenario.seed);
    Ok(scenario)
}

/// The sets of protections to switch off, one a row.
fn ablation_sets(args: &Args) -> Result<Vec<Vec<Ablation>>, Failure> {
    if args.ablate.is_empty() {
        let mut sets = vec![Vec::new()];
        if args.trace.is_empty() {
            sets.extend(Ablation::ALL.map(|a| vec![a]));
        }
        return Ok(sets);
    }
    if args.ablate == ["none"] {
        return Ok(vec![Vec::new()]);
    }
    let mut set = Vec::new();
    for name in &args.ablate {
        let ablation = name.parse().map_err(|mut unknown: UnknownName| {
            unknown.known.push_str(", none");
            Failure::usage(unknown)
        })?;
        if !set.contains(&ablation) {
            set.push(ablation);
        }
    }
    set.sort_unstable();
    Ok(vec![set])
}

fn progress_bar(spec: &RunSpec) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let style = ProgressStyle::with_template("{msg:32} [{bar:40}] {percent:>3}% {elapsed_precise}")
        .expect("the template is a constant")
        .progress_chars("=> ");
    let off = match spec.ablate.as_slice() {
        [] => "all protections on".to_string(),
        set => set.iter().map(|a| format!("no {}", a.name())).collect::<Vec<_>>().join(", "),
    };
    ProgressBar::new(1000).with_style(style).with_message(format!("{}: {off}", spec.store.name()))
}

fn print_head(scenario: &Scenario, queues: &world::QueueBounds, args: &Args) {
    let host = &scenario.host;
    println!(
        "host: {} RAM, {} CPUs; link {} with {} one way, {} loss; seed {}",
        host.ram,
        host.cpus,
        scenario.link.rate,
        scenario.link.latency,
        scenario.link.loss,
        scenario.seed,
    );
    if args.trace.is_empty() {
        println!(
            "{} tasks map {} x RAM: each writes its pages once, then reads them {} times",
            scenario.workers(),
            host.overcommit,
            host.rounds,
        );
    } else {
        println!("{} traced programs, a task each", args.trace.len());
    }
    if scenario.flood.percent > 0 {
        println!(
            "meanwhile {} UDP flows flood the host with {} % of the link, and their readers page too",
            scenario.flood.flows, scenario.flood.percent,
        );
        println!("{queues}");
    }
    println!();
}

fn print_rows(rows: &[Row], is_headline: bool) {
    println!("{}", rows_table(rows));
    println!("packets the host dropped, by reason:\n{}", drops_table(rows));
    for row in rows {
        let name = format!("{}, {}", row.backend.name(), row.protections());
        if let Some(explanation) = &row.explanation {
            println!("{name}:\n{explanation}");
        }
        if let Some(reason) = &row.reason
            && row.outcome != RowOutcome::Deadlock
        {
            println!("{name}: {reason}\n");
        }
        if row.malformed_lines > 0 {
            println!("{name}: {} malformed lines were skipped; the first:", row.malformed_lines);
            println!("  {}\n", row.malformed_first.join("\n  "));
        }
        let missing = row.exercise.missing();
        if row.ablate.is_empty() && !is_headline && !missing.is_empty() {
            println!("{name}: note: not fully exercised: {}\n", missing.join("; "));
        }
    }
    if is_headline && rows.iter().all(|row| ended_as_it_should(row, true)) {
        println!(
            "With all protections on the host never stops, and every page is what was written.\n\
             Without any one of them the same load ends in the cycle printed above."
        );
    }
}
