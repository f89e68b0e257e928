//! `netswap sim`: the headline test, or a scenario of the user's own.

mod remote;
mod text;

use std::path::{Path, PathBuf};

use clap::builder::PossibleValuesParser;
use netswap::plan::host_plan;
use netswap::report::{Outcome as RowOutcome, Row, protections};
use netswap::scenario::{Ablation, Scenario, Store};
use netswap::swap::lackey;
use netswap::units::{BitRate, Bytes, Nanos, Share};
use netswap::world::{self, RunSpec};

use super::progress::{self, Lines};
use super::remote::Connect;
use super::{EXIT_FAILED, EXIT_OK, Failure, Outcome, out};

#[derive(clap::Args)]
#[command(after_help = crate::cmd::remote::with_urls("Examples:
  netswap sim                                    the headline test, protected and with each protection off
  netswap sim --backend nfs --ablate drop        one deadlock, explained
  netswap sim --ram 16MiB --overcommit 2 --json  one JSON object a row
  netswap sim --scenario my.toml --seed 7        a scenario of your own
  netswap sim --ablate tag,drop                  two protections off in one run
  netswap sim --scenario scenarios/transactions.toml --ablate reservation
                                                 memory that must not fail, looped for: a deadlock
  netswap sim --backend nfs://server/export/area0 --ram 16MiB
                                                 over a real server, in real time, every page verified
  valgrind --tool=lackey --trace-mem=yes ls 2>&1 | netswap sim --trace - --ram 4MiB"))]
pub(super) struct Args {
    /// Where pages go: nfs, iscsi or both, simulated; or the URL of a store on a real server, nfs://host/export/file
    /// or iscsi://host/target/lun, which is paged to in real time, without link and flood, every page verified
    #[arg(long, value_name = "STORE", default_value = "both", value_parser = backend)]
    backend: Backend,
    /// Memory of the host, up to 64GiB; at least what its plan needs (see `netswap plan`) [default: 64MiB]
    #[arg(long)]
    ram: Option<Bytes>,
    /// Processors, 1 to 64 [default: 2]
    #[arg(long)]
    cpus: Option<u32>,
    /// Tasks that page, for each processor, 1 to 256 [default: 8]
    #[arg(long)]
    tasks_per_cpu: Option<u32>,
    /// All mappings together, in multiples of RAM, above 0, up to 64 [default: 4]
    #[arg(long)]
    overcommit: Option<f64>,
    /// How often each task reads its mapping after writing it, 0 to 1000 [default: 3]
    #[arg(long)]
    rounds: Option<u32>,
    /// Share of the pages that later rounds write again, in percent, 0 to 100 [default: 0]
    #[arg(long, value_name = "PERCENT")]
    dirty: Option<u32>,
    /// Pages that must not fail, of each transaction of a task, 0 (no transactions) to 128 [default: 0]
    #[arg(long, value_name = "PAGES")]
    transaction_pages: Option<u32>,
    /// Untagged traffic, in percent of the link's rate, 0 (none) to 90 [default: 30]
    #[arg(long, value_name = "PERCENT")]
    flood: Option<u32>,
    /// Rate of the link, 1Mbit to 100Gbit [default: 1Gbit]
    #[arg(long, value_name = "RATE")]
    link_rate: Option<BitRate>,
    /// One-way latency of the link, 0ns to 1s [default: 100us]
    #[arg(long, value_name = "TIME")]
    link_latency: Option<Nanos>,
    /// Packets lost, 0% to 100% [default: 0.1%]
    #[arg(long, value_name = "SHARE")]
    link_loss: Option<Share>,
    /// Packets delivered twice, 0% to 100% [default: 0%]
    #[arg(long, value_name = "SHARE")]
    link_duplicate: Option<Share>,
    /// Packets delivered behind later ones, 0% to 100% [default: 0.1%]
    #[arg(long, value_name = "SHARE")]
    link_reorder: Option<Share>,
    /// Packets with one bit flipped, 0% to 100% [default: 0%]
    #[arg(long, value_name = "SHARE")]
    link_corrupt: Option<Share>,
    /// Protections to switch off, all in one run, with commas between them or the option repeated
    /// (reservation: that of transactions, see --transaction-pages; quarantine: of slots that the server's late writes
    /// may reach, see `held` in scenarios/headline.toml); `none`, alone, for the protected run
    /// alone [default: a run with all on, then one without each that there is use for; of traces, the run
    /// with all on]
    #[arg(long, value_name = "NAME", value_delimiter = ',', value_parser = ablation_names())]
    ablate: Vec<String>,
    /// Makes another run of the same scenario: any whole number below 2^64 [default: 0]
    #[arg(long)]
    seed: Option<u64>,
    /// A scenario file; options override it, and it overrides the defaults
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
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object a row
    #[arg(long)]
    json: bool,
}

/// Where pages go.
#[derive(Clone, Debug)]
enum Backend {
    /// To servers of the simulation.
    Simulated(&'static [Store]),
    /// To a real one, at this URL. It may hold a secret, so it is not read here: what is wrong would be printed whole.
    Real(String),
}

fn backend(text: &str) -> Result<Backend, String> {
    match text {
        "nfs" => Ok(Backend::Simulated(&[Store::Nfs])),
        "iscsi" => Ok(Backend::Simulated(&[Store::Iscsi])),
        "both" => Ok(Backend::Simulated(&Store::ALL)),
        url if url.contains("://") => Ok(Backend::Real(url.into())),
        _ => Err("possible values: nfs, iscsi, both, or a URL as nfs://host/export/file or iscsi://host/target/lun".into()),
    }
}

pub(super) fn run(args: &Args) -> Outcome {
    let scenario = scenario(args)?;
    let stores = match &args.backend {
        Backend::Simulated(stores) => *stores,
        Backend::Real(url) => return remote::run(args, &crate::cmd::remote::url(url)?, scenario),
    };
    let sets = ablation_sets(args, &scenario)?;
    let rows_wanted = stores.len() * sets.len();
    if args.alloc_trace.is_some() && rows_wanted > 1 {
        return Err(Failure::usage(format!(
            "--alloc-trace records one row, and {rows_wanted} would run: choose one with --backend and --ablate \
             (as --backend nfs --ablate none)",
        )));
    }
    let areas = if args.trace.is_empty() { 1 } else { 2 };
    scenario.check_ranges().map_err(Failure::usage)?;
    let plan = host_plan(&scenario, areas);
    scenario.check(&plan).map_err(Failure::usage)?;
    let is_streamed = check_traces(args, stores.len() * sets.len())?;
    let is_headline = args.trace.is_empty()
        && Scenario { seed: 0, ..scenario.clone() } == Scenario { seed: 0, ..Scenario::default() };
    let queues = world::QueueBounds::of(&scenario, &plan);
    if is_headline {
        queues.check().map_err(Failure::usage)?;
    }
    let specs: Vec<RunSpec> = stores
        .iter()
        .flat_map(|store| sets.iter().map(move |ablate| (*store, ablate)))
        .map(|(store, ablate)| RunSpec {
            scenario: scenario.clone(),
            store,
            ablate: ablate.clone(),
            traces: args.trace.clone(),
            alloc_trace: args.alloc_trace.clone(),
            must_be_exercised: is_headline,
        })
        .collect();
    specs.iter().try_for_each(RunSpec::check).map_err(Failure::usage)?;
    let mut head = (!args.json).then(|| text::head(&scenario, &queues, args));
    // Whether a stream is a trace shows only when it is run: until then nothing is printed.
    if !is_streamed && let Some(head) = head.take() {
        out::line(head)?;
    }

    let mut rows = Vec::new();
    let mut lines = Lines::new();
    for spec in &specs {
        let row = run_one(spec, &mut lines)?;
        if let Some(head) = head.take() {
            out::line(head)?;
        }
        if args.json {
            let json = serde_json::to_string(&row).expect("a row has only plain fields");
            out::line(json).map_err(|f| f.after(exit_code(&rows, is_headline)))?;
        }
        rows.push(row);
    }
    let code = exit_code(&rows, is_headline);
    if !args.json {
        out::print(text::rows(&rows, is_headline)).map_err(|failure| failure.after(code))?;
    }
    Ok(code)
}

/// One run, with its progress.
fn run_one(spec: &RunSpec, lines: &mut Lines) -> Result<Row, Failure> {
    let name = format!("{}, {}", spec.store.name(), protections(&spec.ablate));
    let bar = progress::bar(1000, "{msg:32} [{bar:40}] {percent:>3}% {elapsed_precise}");
    bar.set_message(name.clone());
    let row = world::run(spec, &mut |share| {
        // The flood's readers are in the share too, without having a part in the whole: near the end it
        // can go beyond it.
        let share = share.min(0.99);
        bar.set_position((share * 1000.0) as u64);
        if spec.traces.is_empty() {
            lines.tell(format_args!("{name}: {:.0} %", share * 100.0));
        } else {
            // How long a trace is, nobody knows before its end.
            lines.tell(format_args!("{name}: replaying"));
        }
    });
    bar.finish_and_clear();
    row.map_err(Failure::usage)
}

/// Looks at the traces before anything is printed. Whether one of them is a stream, which can be read
/// once only.
fn check_traces(args: &Args, runs: usize) -> Result<bool, Failure> {
    let is_stdin = |path: &Path| path.as_os_str() == "-";
    let is_stream = |path: &Path| {
        // Anything that is no file: a pipe, as the shell's `<(...)` makes one.
        is_stdin(path) || path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir())
    };
    let streams = args.trace.iter().filter(|path| is_stream(path)).count();
    let stdins = args.trace.iter().filter(|path| is_stdin(path)).count();
    if stdins > 1 || (streams > 0 && runs > 1) {
        let what = if stdins > 0 { "standard input" } else { "a pipe" };
        return Err(Failure::usage(format!(
            "{what} can be read once only: choose one backend and one set of protections, or put the \
             trace into a file"
        )));
    }
    for path in args.trace.iter().filter(|path| !is_stream(path)) {
        // The first access tells whether it is a trace at all.
        let first = lackey::open(path).and_then(|mut trace| trace.next().transpose());
        first.map_err(|error| Failure::usage(format!("trace {}: {error}", path.display())))?;
    }
    Ok(streams > 0)
}

fn exit_code(rows: &[Row], is_headline: bool) -> u8 {
    let fine = rows.iter().all(|row| ended_as_it_should(row, is_headline));
    if fine { EXIT_OK } else { EXIT_FAILED }
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
    put(&args.transaction_pages, &mut scenario.host.transaction_pages);
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

/// What `--ablate` takes.
fn ablation_names() -> PossibleValuesParser {
    Ablation::ALL.map(Ablation::name).into_iter().chain(["none"]).collect::<Vec<_>>().into()
}

/// The sets of protections to switch off, one a row.
fn ablation_sets(args: &Args, scenario: &Scenario) -> Result<Vec<Vec<Ablation>>, Failure> {
    if args.ablate.is_empty() {
        let mut sets = vec![Vec::new()];
        if args.trace.is_empty() {
            let used = Ablation::ALL.into_iter().filter(|a| scenario.has_use_for(*a));
            sets.extend(used.map(|a| vec![a]));
        }
        return Ok(sets);
    }
    if args.ablate == ["none"] {
        return Ok(vec![Vec::new()]);
    }
    if args.ablate.iter().any(|name| name == "none") {
        return Err(Failure::usage(
            "--ablate none is the run with all protections on: it goes alone, without other names",
        ));
    }
    let mut set = Vec::new();
    for name in &args.ablate {
        let ablation = name.parse().map_err(Failure::usage)?;
        if !set.contains(&ablation) {
            set.push(ablation);
        }
    }
    set.sort_unstable();
    Ok(vec![set])
}

#[cfg(test)]
mod tests {
    use clap::Args as _;
    use netswap::units::number;

    use super::*;

    #[test]
    fn the_help_names_the_defaults_as_they_are() {
        let command = Args::augment_args(clap::Command::new("sim"));
        let Scenario { seed, host, link, flood, .. } = Scenario::default();
        for (option, default) in [
            ("ram", host.ram.to_string()),
            ("cpus", host.cpus.to_string()),
            ("tasks_per_cpu", host.tasks_per_cpu.to_string()),
            ("overcommit", number(host.overcommit)),
            ("rounds", host.rounds.to_string()),
            ("dirty", host.dirty_percent.to_string()),
            ("transaction_pages", host.transaction_pages.to_string()),
            ("flood", flood.percent.to_string()),
            ("link_rate", link.rate.to_string()),
            ("link_latency", link.latency.to_string()),
            ("link_loss", link.loss.to_string()),
            ("link_duplicate", link.duplicate.to_string()),
            ("link_reorder", link.reorder.to_string()),
            ("link_corrupt", link.corrupt.to_string()),
            ("seed", seed.to_string()),
        ] {
            let arg = command.get_arguments().find(|arg| arg.get_id() == option).expect(option);
            let help = arg.get_help().expect(option).to_string();
            assert!(help.ends_with(&format!("[default: {default}]")), "{option}: {help}");
        }
    }
}
