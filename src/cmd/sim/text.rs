//! What `netswap sim` says around its tables: what is run, what the rows mean, what follows.

use netswap::report::{Outcome, Row, drops_table, protections, rows_table};
use netswap::scenario::{Ablation, HostSpec, LinkSpec, Scenario};
use netswap::units::{Share, number};
use netswap::world::QueueBounds;

use super::{Args, ended_as_it_should};
use crate::cmd::out::count;

/// What is run. Ends with an empty line once it is printed as a line.
pub(super) fn head(scenario: &Scenario, queues: &QueueBounds, args: &Args) -> String {
    let Scenario { seed, host, link, flood, .. } = scenario;
    let mut text = format!(
        "host: {} RAM, {}; link {} with {} one way, {}; seed {seed}\n",
        host.ram,
        count(host.cpus.into(), "CPU"),
        link.rate,
        link.latency,
        link_faults(link),
    );
    if args.trace.is_empty() {
        let (map, each) = if scenario.workers() == 1 { ("maps", "it") } else { ("map", "each") };
        text += &format!(
            "{} {map} {} x RAM: {each} writes its pages once",
            count(scenario.workers().into(), "task"),
            number(host.overcommit),
        );
        if host.rounds > 0 {
            text += &format!(", then reads them {}", count(host.rounds.into(), "time"));
        }
        text += "\n";
    } else {
        text += &count(args.trace.len() as u64, "traced program");
        text += if args.trace.len() == 1 { ", a task" } else { ", a task each" };
        if args.ablate.is_empty() {
            text += "; only with all protections on, --ablate switches some off";
        }
        text += "\n";
    }
    text += &transactions(scenario);
    if flood.percent > 0 && flood.flows > 0 {
        let (floods, readers) = match flood.flows {
            1 => ("floods", "its reader pages"),
            _ => ("flood", "their readers page"),
        };
        text += &format!(
            "meanwhile {} {floods} the host with {} % of the link, and {readers} too\n{queues}\n",
            count(flood.flows.into(), "UDP flow"),
            flood.percent,
        );
        text += bounds_follow(queues);
    }
    text
}

/// What tasks do besides, if anything.
fn transactions(scenario: &Scenario) -> String {
    let HostSpec { transaction_pages: pages, transaction_every: every, .. } = scenario.host;
    if pages == 0 {
        return String::new();
    }
    format!(
        "after each {} a task runs a transaction of {} that must not fail, kept until it ends\n",
        count(every.into(), "page"),
        count(pages.into(), "page"),
    )
}

/// Every fault of the link that is on.
fn link_faults(link: &LinkSpec) -> String {
    let mut faults = Vec::new();
    let mut share = |share: Share, what: &str| {
        if share.0 > 0 {
            faults.push(format!("{share} {what}"));
        }
    };
    share(link.loss, "loss");
    share(link.duplicate, "delivered twice");
    share(link.reorder, &format!("late by {}", link.reorder_by));
    share(link.corrupt, "damaged");
    if link.jitter.0 > 0 {
        faults.push(format!("up to {} jitter", link.jitter));
    }
    if let Some(at) = link.partition_at {
        faults.push(format!("cut at {at} for {}", link.partition_for));
    }
    if faults.is_empty() { "no faults".into() } else { faults.join(", ") }
}

/// What it means for the run if the bounds do not hold.
fn bounds_follow(queues: &QueueBounds) -> &'static str {
    if queues.holds() {
        ""
    } else if queues.queues <= queues.atomic_headroom + queues.receive_reserve {
        "the queues are full before memory is: this host may survive with a protection off, which proves nothing\n"
    } else {
        "the queues can hold more than there is: even with all protections on this host may have no memory to \
         page with\n"
    }
}

/// The tables, and all that is to be said about single rows.
pub(super) fn rows(rows: &[Row], is_headline: bool) -> String {
    let is_deadlock = |row: &Row| row.outcome == Outcome::Deadlock;
    let mut text = rows_table(rows);
    text += "free low: the fewest frames that were free at any moment of the run\n\n";
    if let Some(drops) = drops_table(rows) {
        text += &format!("packets the host dropped, by reason:\n{drops}");
        if rows.iter().any(is_deadlock) {
            text += "of a deadlock, drops are counted on until the verdict: the flood goes on meanwhile\n";
        }
        text += "\n";
    }
    for row in rows {
        let name = format!("{}, {}", row.backend.name(), row.protections());
        if let Some(explanation) = &row.explanation {
            text += &format!("{name}:\n{explanation}\n");
        }
        if let Some(reason) = &row.reason
            && !is_deadlock(row)
        {
            text += &format!("{name}: {reason}\n\n");
        }
        if row.malformed_lines > 0 {
            let were = if row.malformed_lines == 1 { "was" } else { "were" };
            let lines = count(row.malformed_lines, "malformed line");
            text += &format!("{name}: {lines} {were} skipped; the first:\n");
            text += &format!("  {}\n\n", row.malformed_first.join("\n  "));
        }
        if !(is_headline && row.ablate.is_empty())
            && let Some(note) = note(row)
        {
            text += &format!("{name}: note: {note}\n\n");
        }
    }
    if is_headline && rows.iter().all(|row| ended_as_it_should(row, true)) {
        text += &conclusion(rows);
    }
    text.truncate(text.trim_end().len());
    text + "\n"
}

/// What a row does not show.
fn note(row: &Row) -> Option<String> {
    let missing = row.exercise.missing().join("; ");
    if row.ablate.is_empty() {
        return (!missing.is_empty()).then(|| format!("not fully exercised: {missing}"));
    }
    if row.outcome != Outcome::Completed {
        return None;
    }
    let why = if missing.is_empty() { missing } else { format!(" ({missing})") };
    Some(format!(
        "it completed because this load never needs what is off{why}; --flood, --overcommit and more flows \
         add to the load"
    ))
}

/// What the headline test has shown: of what was run, and no more.
fn conclusion(rows: &[Row]) -> String {
    let mut text = String::new();
    if rows.iter().any(|row| row.ablate.is_empty()) {
        text +=
            "With all protections on the host never stops, and every page is what was written.\n";
    }
    let is_off = |a: &Ablation| rows.iter().any(|row| row.ablate == [*a]);
    let headline = Scenario::default();
    if Ablation::ALL.iter().filter(|a| headline.has_use_for(**a)).all(is_off) {
        text += "Without any one of them the same load ends in the cycle printed above.\n";
    } else if let Some(row) = rows.iter().find(|row| !row.ablate.is_empty()) {
        let off = protections(&row.ablate);
        text += &format!("With {off}, this load ends in the cycle printed above.\n");
    }
    text
}

#[cfg(test)]
mod tests {
    use clap::Parser;
    use netswap::plan::host_plan;

    use super::*;

    #[derive(Parser)]
    struct Line {
        #[command(flatten)]
        args: Args,
    }

    fn head_of(scenario: &Scenario, options: &[&str]) -> String {
        let line = Line::parse_from([&["sim"], options].concat());
        head(scenario, &QueueBounds::of(scenario, &host_plan(scenario, 1)), &line.args)
    }

    #[test]
    fn the_head_names_every_link_fault_that_is_on() {
        let mut scenario = Scenario::default();
        assert!(head_of(&scenario, &[]).contains("one way, 0.1% loss, 0.1% late by 50us; seed 0"));
        scenario.link.duplicate = Share(20_000);
        scenario.link.corrupt = Share(100);
        scenario.link.jitter.0 = 5_000;
        scenario.link.partition_at = Some("1s".parse().unwrap());
        let text = head_of(&scenario, &[]);
        for fault in ["2% delivered twice", "0.01% damaged", "5us jitter", "cut at 1s for 5s"] {
            assert!(text.contains(fault), "{fault}: {text}");
        }
        scenario.link = LinkSpec { loss: Share(0), reorder: Share(0), ..LinkSpec::default() };
        assert!(head_of(&scenario, &[]).contains("one way, no faults;"));
    }

    #[test]
    fn the_head_is_right_for_one_and_for_none() {
        let mut scenario = Scenario::default();
        (scenario.host.cpus, scenario.host.tasks_per_cpu, scenario.host.rounds) = (1, 1, 1);
        scenario.flood.flows = 1;
        let text = head_of(&scenario, &[]);
        for part in
            ["1 CPU;", "1 task maps 4 x", "1 time\n", "1 UDP flow floods", "its reader pages"]
        {
            assert!(text.contains(part), "{part}: {text}");
        }
        scenario.flood.flows = 0;
        assert!(!head_of(&scenario, &[]).contains("UDP"));
    }

    #[test]
    fn the_head_tells_transactions_only_if_there_are_any() {
        let mut scenario = Scenario::default();
        assert!(!head_of(&scenario, &[]).contains("transaction"));
        scenario.host.transaction_pages = 1;
        let text = head_of(&scenario, &[]);
        assert!(
            text.contains("after each 16 pages a task runs a transaction of 1 page that"),
            "{text}"
        );
    }

    #[test]
    fn the_head_of_traces_says_that_nothing_is_switched_off() {
        let scenario = Scenario::default();
        let text = head_of(&scenario, &["--trace", "a"]);
        assert!(text.contains("1 traced program, a task; only with all protections on"), "{text}");
        let text = head_of(&scenario, &["--trace", "a", "--trace", "b", "--ablate", "drop"]);
        assert!(text.contains("2 traced programs, a task each\n"), "{text}");
    }

    #[test]
    fn bounds_that_do_not_hold_have_a_consequence() {
        let mut scenario = Scenario::default();
        scenario.flood.flows = 2;
        assert!(
            head_of(&scenario, &[]).contains("(does not hold here)\nthe queues are full before")
        );
        let small = QueueBounds {
            ram: 1000,
            ..QueueBounds::of(&Scenario::default(), &host_plan(&Scenario::default(), 1))
        };
        assert!(bounds_follow(&small).contains("no memory to page with"));
    }
}
