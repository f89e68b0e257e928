//! `netswap sim --backend URL`: the simulated machine over a real server, in real time.

use netswap::real::paging::{self, IN_FLIGHT, PagingError, PagingRow, PagingSpec};
use netswap::real::{Interrupt, OpenOptions, StoreUrl};
use netswap::report::{Outcome as RowOutcome, grouped, micros, protections, table};
use netswap::scenario::{Ablation, Scenario};
use netswap::units::number;

use super::Args;
use crate::cmd::progress::{self, Lines};
use crate::cmd::signals::interruptible;
use crate::cmd::{EXIT_FAILED, EXIT_OK, Failure, Outcome, out, remote};

/// Carries it out, until a signal ends it.
pub(super) fn run(args: &Args, url: &StoreUrl, scenario: Scenario) -> Outcome {
    interruptible(|interrupt| run_until(args, url, scenario, interrupt))
}

fn run_until(args: &Args, url: &StoreUrl, scenario: Scenario, interrupt: Interrupt) -> Outcome {
    let ablate = check(args, &scenario)?;
    scenario.check_ranges().map_err(Failure::usage)?;
    let spec = PagingSpec { scenario, ablate };
    let mut lines = Lines::new();
    let bar = progress::bar(1000, "{msg:32} [{bar:40}] {percent:>3}% {elapsed_precise}");
    bar.set_message(url.to_string());
    let options = OpenOptions { interrupt, ..args.connect.options(IN_FLIGHT) };
    let row = paging::run(url, &options, &spec, &mut |share| {
        let share = share.min(0.99);
        bar.set_position((share * 1000.0) as u64);
        lines.tell(format_args!("{url}: {:.0} %", share * 100.0));
    });
    bar.finish_and_clear();
    let row = row.map_err(|error| match error {
        PagingError::Open(error) => remote::not_opened(error),
        error => Failure::usage(error),
    })?;
    let code = if row.outcome == RowOutcome::Completed { EXIT_OK } else { EXIT_FAILED };
    let text = match args.json {
        true => serde_json::to_string(&row).expect("a row has only plain fields"),
        false => text(&spec.scenario, &row),
    };
    out::line(text).map_err(|failure| failure.after(code))?;
    Ok(code)
}

/// Refuses what belongs to the simulated network, or to its servers; the protections that are to be off.
fn check(args: &Args, scenario: &Scenario) -> Result<Vec<Ablation>, Failure> {
    let of_the_simulation = [
        ("--flood", args.flood.is_some_and(|percent| percent > 0)),
        ("--link-rate", args.link_rate.is_some()),
        ("--link-latency", args.link_latency.is_some()),
        ("--link-loss", args.link_loss.is_some()),
        ("--link-duplicate", args.link_duplicate.is_some()),
        ("--link-reorder", args.link_reorder.is_some()),
        ("--link-corrupt", args.link_corrupt.is_some()),
        ("--transaction-pages", args.transaction_pages.is_some_and(|pages| pages > 0)),
        ("--trace", !args.trace.is_empty()),
        ("--alloc-trace", args.alloc_trace.is_some()),
    ];
    if let Some((option, _)) = of_the_simulation.into_iter().find(|(_, is_given)| *is_given) {
        return Err(Failure::usage(format!(
            "{option} needs the simulated network and its servers, and --backend names a real one: leave it out, or \
             choose --backend nfs, iscsi or both"
        )));
    }
    let default = Scenario::default();
    let is_plain = scenario.link == default.link
        && scenario.server == default.server
        && (scenario.flood == default.flood || scenario.flood.percent == 0)
        && scenario.host.transaction_pages == 0;
    if !is_plain {
        return Err(Failure::usage(
            "the scenario has a link, a flood, a server or transactions of its own, which need the simulated network, \
             and --backend names a real server: leave those sections out",
        ));
    }
    let sets = match args.ablate.is_empty() {
        true => vec![Vec::new()],
        false => super::ablation_sets(args, scenario)?,
    };
    let set = sets.into_iter().next().unwrap_or_default();
    if let Some(off) = set.iter().find(|off| **off != Ablation::Quarantine) {
        return Err(Failure::usage(format!(
            "--ablate {} needs the simulated network, and --backend names a real server: quarantine and none are \
             what there is here",
            off.name()
        )));
    }
    Ok(set)
}

fn text(scenario: &Scenario, row: &PagingRow) -> String {
    let head = [
        "swap to",
        "protections",
        "outcome",
        "page-ins",
        "page-outs",
        "fault p50",
        "p99",
        "max",
        "free low",
        "verified",
        "quarantined",
        "wall",
    ];
    let cells = vec![
        row.backend.clone(),
        protections(&row.ablate),
        row.outcome.to_string(),
        grouped(row.page_ins),
        grouped(row.page_outs),
        micros(row.fault.p50_us),
        micros(row.fault.p99_us),
        micros(row.fault.max_us),
        grouped(row.free_lowest.into()),
        grouped(row.pages_verified),
        grouped(row.quarantined_slots),
        format!("{:.2} s", row.wall_s),
    ];
    let host = &scenario.host;
    let mut text = format!(
        "host: {} RAM, {}; a real server in real time; seed {}\n{} map {} x RAM: written once, then read {}\n\n{}",
        host.ram,
        out::count(host.cpus.into(), "CPU"),
        row.seed,
        out::count(scenario.workers().into(), "task"),
        number(host.overcommit),
        out::count(host.rounds.into(), "time"),
        table(&[head.map(String::from).to_vec(), cells]),
    );
    match &row.reason {
        Some(reason) => text += &format!("\n{reason}"),
        None => text += "\nevery page was what had been written",
    }
    if row.reason.is_none() && row.page_outs == 0 {
        text += "\nnothing was paged, as all of it fits into RAM: raise --overcommit for a test of the store";
    }
    if row.discards > 0 {
        let discards = out::count(row.discards, "discard");
        text += &format!("\n{} slots were given back in {discards}", grouped(row.discarded_slots));
    }
    text
}
