//! `netswap check`: whether a file or a LUN of a real server is fit to swap on.

use netswap::real::check::{CheckReport, CheckSpec, Finding, Verdict, check};
use netswap::report::{micros, table};
use netswap::reserve::{PAGE_SIZE, Span};
use netswap::units::Bytes;
use serde::Serialize;
use serde_json::Value;

use super::remote::{self, Connect, Protections};
use super::{EXIT_FAILED, EXIT_OK, Outcome, out};

#[derive(clap::Args)]
#[command(after_help = remote::with_urls("Examples:
  netswap check nfs://server/export/area0
  netswap check nfs://server/export/area0 --json
  netswap check iscsi://user@server/iqn.2026-01.org.example:disk/1
  netswap check nfs://localhost:20490/export/area0 --allow-local

What is written is the header page alone, with the bytes that were just read from it, and only if it is the \
header of a swap area: an area that is in use comes to no harm. --no-write leaves that out.

Exit codes: 0 fit; 1 not fit, or the server refuses the file; 2 the command line cannot be used; 3 the server cannot be \
reached."))]
pub(super) struct Args {
    /// The store: nfs://host[:port]/export/path/file or iscsi://[user@]host[:port]/target/lun
    url: String,
    /// Accept a server on this very host, though it can deadlock with its client
    #[arg(long)]
    allow_local: bool,
    /// Write nothing at all; whether writes last, and flushes behave, stays unknown
    #[arg(long)]
    no_write: bool,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

#[derive(Serialize)]
struct Latency {
    ready_us: f64,
    /// Of the pages that were read, if any was.
    read_p50_us: Option<f64>,
    read_p99_us: Option<f64>,
    read_max_us: Option<f64>,
    write_stable_us: Option<f64>,
    write_committed_us: Option<f64>,
}

impl Latency {
    fn text(&self) -> String {
        let read = match (self.read_p50_us, self.read_p99_us, self.read_max_us) {
            (Some(p50), Some(p99), Some(max)) => {
                format!("a read {} (p99 {}, max {})", micros(p50), micros(p99), micros(max))
            }
            _ => "no page could be read".into(),
        };
        let write = |us: Option<f64>| us.map_or("not tried".into(), micros);
        format!(
            "ready after {}; {read}; a stable write {}, a committed one {}",
            micros(self.ready_us),
            write(self.write_stable_us),
            write(self.write_committed_us),
        )
    }
}

#[derive(Serialize)]
struct Report {
    server: String,
    address: Option<String>,
    fit: bool,
    /// Of the area, if there is one.
    slots: u32,
    store_slots: u32,
    /// What the server said, by the names of its protocol.
    #[serde(flatten)]
    said: serde_json::Map<String, Value>,
    latency: Latency,
    findings: Vec<Finding>,
    protections: Protections,
}

pub(super) fn run(args: &Args) -> Outcome {
    let url = remote::url(&args.url)?;
    let spec = CheckSpec { allow_local: args.allow_local, write: !args.no_write };
    let found = check(&url, &args.connect.options(1), &spec).map_err(remote::not_opened)?;
    let code = if found.is_fit() { EXIT_OK } else { EXIT_FAILED };
    let report = report(&found);
    let text = match args.json {
        true => serde_json::to_string(&report).expect("a report has only plain fields"),
        false => text(&found, &report),
    };
    out::line(text).map_err(|failure| failure.after(code))?;
    Ok(code)
}

fn us(span: Span) -> f64 {
    span.as_nanos() as f64 / 1e3
}

fn report(found: &CheckReport) -> Report {
    let said = found.facts.said.iter().map(|fact| (fact.name.into(), fact.value.clone()));
    let reads = Some(&found.read_latency).filter(|reads| !reads.is_empty());
    let read = |quantile| reads.map(|reads| reads.value_at_quantile(quantile) as f64 / 1e3);
    Report {
        server: found.server.clone(),
        address: found.address.map(|at| at.to_string()),
        fit: found.is_fit(),
        slots: found.slots,
        store_slots: found.store_slots,
        said: said.collect(),
        latency: Latency {
            ready_us: us(found.ready_after),
            read_p50_us: read(0.5),
            read_p99_us: read(0.99),
            read_max_us: reads.map(|reads| reads.max() as f64 / 1e3),
            write_stable_us: found.write_latency[0].map(us),
            write_committed_us: found.write_latency[1].map(us),
        },
        findings: found.findings.clone(),
        protections: found.protection.into(),
    }
}

fn text(found: &CheckReport, report: &Report) -> String {
    let latency = &report.latency;
    let mut rows = vec![["what", "verdict", "found"].map(String::from).to_vec()];
    let mut fact = |what: &str, found: String| rows.push(vec![what.into(), String::new(), found]);
    fact("server", format!("{} at {}", report.server, report.address.as_deref().unwrap_or("?")));
    for said in &found.facts.said {
        fact(said.name, said.text.clone());
    }
    let bytes = |slots: u32| Bytes(u64::from(slots) * PAGE_SIZE as u64);
    let mut slots = format!("pages of 4KiB: {}, {} in all", report.slots, bytes(report.slots));
    if report.store_slots > report.slots {
        let store = report.store_slots;
        slots +=
            &format!("; the area takes no more of the {store}, {}, of its store", bytes(store));
    }
    fact("slots", slots);
    fact("latency", latency.text());
    fact("protections", report.protections.line());
    for finding in &report.findings {
        let verdict = match finding.verdict {
            Verdict::Good => "good",
            Verdict::Warning => "warning",
            Verdict::Bad => "BAD",
        };
        rows.push(vec![finding.name.into(), verdict.into(), finding.what.clone()]);
    }
    format!("{}{}", table(&rows), if report.fit { "fit to swap on" } else { "NOT fit to swap on" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_that_were_not_read_took_no_time() {
        let mut latency = Latency {
            ready_us: 1.0,
            read_p50_us: None,
            read_p99_us: None,
            read_max_us: None,
            write_stable_us: None,
            write_committed_us: Some(3.0),
        };
        let unread = "ready after 1 us; no page could be read; a stable write not tried, a committed one 3 us";
        assert_eq!(latency.text(), unread);
        let json = serde_json::to_value(&latency).unwrap();
        assert!(json["read_p50_us"].is_null(), "{json}");
        (latency.read_p50_us, latency.read_p99_us, latency.read_max_us) =
            (Some(1.0), Some(2.0), Some(4.0));
        assert!(latency.text().contains("a read 1 us (p99 2 us, max 4 us);"), "{}", latency.text());
    }
}
