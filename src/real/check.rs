//! Whether a store is fit to swap on: what its server says and does, looked at from outside.
//!
//! What is written is the header page alone, with the bytes that were just read from it, and only if it
//! is the header of an area: nobody but `mkswap` changes that page, so an area that is in use meanwhile
//! comes to no harm. What is read is the header and pages drawn at random.

use hdrhistogram::Histogram;
use netswap_net::kernel::PathProtection;
use netswap_nfs::{NfsFacts, WritePolicy};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::signature::Header;
use netswap_swap::{Op, PageVec, Slot};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::area::{read_header_page, write_header_page};
use super::error::{OpenError, TransferError};
use super::local::is_this_host;
use super::scheme::StoreUrl;
use super::store::{OpenOptions, RealStore};
use crate::units::Bytes;

/// Pages read for the latency. Picked by eye: enough for a 99th percentile to mean something.
pub const READS: u32 = 128;
/// How long each may take.
const READ_WITHIN: Span = Span::from_secs(30);

/// What is to be looked at.
#[derive(Clone, Copy, Debug)]
pub struct CheckSpec {
    /// The server may be this very host.
    pub allow_local: bool,
    /// The header may be written again, with its own bytes.
    pub write: bool,
}

/// What a finding means.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// As it should be.
    Good,
    /// It was not looked at, or can be lived with.
    Warning,
    /// Not to be swapped on.
    Bad,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct Finding {
    /// What.
    pub name: &'static str,
    /// What it means.
    pub verdict: Verdict,
    /// What was found, and what to do about it.
    pub what: String,
}

/// What was found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The store.
    pub server: String,
    /// The address that was connected to.
    pub address: Option<std::net::SocketAddr>,
    /// From the look-up of the name to the first request that could be made.
    pub ready_after: Span,
    /// What the server said of itself and the file, if it is NFS.
    pub nfs: Option<NfsFacts>,
    /// Slots of the store, the header's included.
    pub slots: u32,
    /// Of single reads one after the other, in nanoseconds.
    pub read_latency: Histogram<u64>,
    /// Of a write of one page that lasts when it is answered, and of one that lasts by a COMMIT.
    pub write_latency: [Option<Span>; 2],
    /// What the kernel was asked for.
    pub protection: PathProtection,
    /// Everything that was looked at.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// Whether nothing speaks against it.
    pub fn is_fit(&self) -> bool {
        self.findings.iter().all(|finding| finding.verdict != Verdict::Bad)
    }

    fn find(&mut self, name: &'static str, verdict: Verdict, what: impl Into<String>) {
        self.findings.push(Finding { name, verdict, what: what.into() });
    }
}

/// Looks at a store.
///
/// # Errors
/// When it cannot be opened. Everything else is a finding.
pub fn check(
    url: &StoreUrl,
    options: &OpenOptions,
    spec: &CheckSpec,
) -> Result<CheckReport, OpenError> {
    let mut store = RealStore::open(&url.with_write_policy(WritePolicy::FileSync), options)?;
    let mut report = CheckReport {
        server: store.server().into(),
        address: store.remote(),
        ready_after: store.ready_after(),
        nfs: store.nfs().and_then(|nfs| nfs.facts()),
        slots: store.slots(),
        read_latency: Histogram::new_with_bounds(1, 86_400_000_000_000, 3)
            .expect("the bounds are in order"),
        write_latency: [None; 2],
        protection: store.protection(),
        findings: Vec::new(),
    };
    check_host(&mut report, spec);
    check_holes(&mut report);
    let header = check_header(&mut report, &mut store);
    check_reads(&mut report, &mut store);
    check_writes(&mut report, &mut store, url, options, spec, header.as_deref());
    store.shutdown();
    Ok(report)
}

fn check_host(report: &mut CheckReport, spec: &CheckSpec) {
    let is_local = report.address.is_some_and(|at| is_this_host(at.ip()));
    let (verdict, what) = match (is_local, spec.allow_local) {
        (false, _) => (Verdict::Good, "another host, as far as addresses tell"),
        (true, false) => (
            Verdict::Bad,
            "this very host: a server that needs memory to take a page-out can wait for the client that is \
             to free it; --allow-local accepts that",
        ),
        (true, true) => {
            (Verdict::Warning, "this very host, which can deadlock; accepted by --allow-local")
        }
    };
    report.find("host", verdict, what);
}

fn check_holes(report: &mut CheckReport) {
    let Some(facts) = report.nfs else { return };
    let (size, used) = (facts.file.size, facts.file.used);
    if used >= size {
        report.find(
            "holes",
            Verdict::Good,
            format!("none: {} used of {}", Bytes(used), Bytes(size)),
        );
    } else {
        let what = format!(
            "{} used of {}: writing to a hole needs space that the server may not have; fill the file by \
             `netswap mkswap` (a file system that compresses says the same of a full file)",
            Bytes(used),
            Bytes(size)
        );
        report.find("holes", Verdict::Bad, what);
    }
    if !size.is_multiple_of(PAGE_SIZE as u64) {
        let what = format!("{size} bytes are no whole number of pages: the last is not used");
        report.find("size", Verdict::Warning, what);
    }
}

fn check_header(report: &mut CheckReport, store: &mut RealStore) -> Option<Box<[u8; PAGE_SIZE]>> {
    let page = match read_header_page(store) {
        Ok(page) => page,
        Err(error) => {
            report.find("signature", Verdict::Bad, format!("slot 0 cannot be read: {error}"));
            return None;
        }
    };
    match Header::parse(&page) {
        Ok(header) if header.last_page >= store.slots() => {
            let what = format!(
                "the header speaks of {} pages, the file has {}: it was cut short",
                u64::from(header.last_page) + 1,
                store.slots()
            );
            report.find("signature", Verdict::Bad, what);
            Some(Box::new(page))
        }
        Ok(header) => {
            let area = Bytes((u64::from(header.last_page) + 1) * PAGE_SIZE as u64);
            report.find("signature", Verdict::Good, format!("SWAPSPACE2, an area of {area}"));
            Some(Box::new(page))
        }
        Err(error) => {
            let what = format!("{error}: make it an area by `netswap mkswap`");
            report.find("signature", Verdict::Bad, what);
            None
        }
    }
}

fn check_reads(report: &mut CheckReport, store: &mut RealStore) {
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
    let frame = pool.alloc(Gfp::KERNEL).expect("the pool is new");
    let mut pages = PageVec::from_iter([frame]);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
    for _ in 0..READS {
        let slot = Slot((rng.next_u64() % u64::from(store.slots())) as u32);
        let begun = store.now();
        let (back, outcome) = store.transfer(Op::Read, slot, pages, READ_WITHIN);
        pages = back;
        if let Err(error) = outcome {
            report.find("reads", Verdict::Bad, format!("slot {}: {error}", slot.0));
            return;
        }
        report.read_latency.saturating_record(store.now().since(begun).as_nanos());
    }
    report.find("reads", Verdict::Good, format!("{READS} pages drawn at random were read"));
}

/// Writes the header again, in both ways, and compares what is there then.
fn check_writes(
    report: &mut CheckReport,
    store: &mut RealStore,
    url: &StoreUrl,
    options: &OpenOptions,
    spec: &CheckSpec,
    header: Option<&[u8; PAGE_SIZE]>,
) {
    let (stable, commit) = ("stable writes", "COMMIT");
    let Some(header) = header.filter(|_| spec.write) else {
        let why = if spec.write { "without a header nothing may be written" } else { "--no-write" };
        report.find(stable, Verdict::Warning, format!("not tried: {why}"));
        report.find(commit, Verdict::Warning, format!("not tried: {why}"));
        return;
    };
    match write_again(store, header) {
        Ok(took) => {
            report.write_latency[0] = Some(took);
            report.find(
                stable,
                Verdict::Good,
                "a FILE_SYNC write of the header was answered as such, and read back",
            );
        }
        Err(why) => report.find(stable, Verdict::Bad, why),
    }
    let first = store.nfs().and_then(|nfs| nfs.verifier());
    let unstable = url.with_write_policy(WritePolicy::Unstable);
    let mut store = match RealStore::open(&unstable, options) {
        Ok(store) => store,
        Err(error) => {
            report.find(commit, Verdict::Bad, format!("a second connection failed: {error}"));
            return;
        }
    };
    let outcome = write_again(&mut store, header);
    let nfs = store.nfs().map(|nfs| (nfs.verifier(), nfs.stats()));
    match (outcome, nfs) {
        (Err(why), _) => report.find(commit, Verdict::Bad, why),
        (Ok(_), Some((verifier, stats))) if verifier != first || stats.verifier_changes > 0 => {
            report.find(
                commit,
                Verdict::Bad,
                "the write verifier changed meanwhile: the server was restarted, or loses writes",
            )
        }
        (Ok(took), Some((verifier, stats))) => {
            report.write_latency[1] = Some(took);
            let verifier = u64::from_be_bytes(verifier.unwrap_or_default());
            let how = match stats.commits {
                0 => {
                    "an UNSTABLE write of the header was answered as FILE_SYNC: no COMMIT is needed"
                }
                _ => {
                    "an UNSTABLE write of the header was committed, with the verifier of the write"
                }
            };
            report.find(
                commit,
                Verdict::Good,
                format!("{how} ({verifier:#018x} on both connections)"),
            );
        }
        (Ok(took), None) => {
            report.write_latency[1] = Some(took);
        }
    }
    store.shutdown();
}

/// How long it took to write `header`; why not, if it is not there then.
fn write_again(store: &mut RealStore, header: &[u8; PAGE_SIZE]) -> Result<Span, String> {
    let told = |what: &str, error: TransferError| format!("the header cannot be {what}: {error}");
    let begun = store.now();
    write_header_page(store, header).map_err(|error| told("written", error))?;
    let took = store.now().since(begun);
    let back = read_header_page(store).map_err(|error| told("read back", error))?;
    if back != *header {
        return Err("the header that was read back is not the one that was written".into());
    }
    Ok(took)
}
