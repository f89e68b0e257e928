//! Whether a store is fit to swap on: what its server says and does, looked at from outside.
//!
//! What is written is the header page alone, with the bytes that were just read from it, and only if it
//! is the header of an area: nobody but `mkswap` changes that page, so an area that is in use meanwhile
//! comes to no harm. What is read is the header and pages drawn at random.

use hdrhistogram::Histogram;
use netswap_net::kernel::PathProtection;
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::signature::Header;
use netswap_swap::{Op, PageVec, Slot};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

use super::area::{read_header_page, write_header_page};
use super::client::{Durability, StoreFacts};
pub use super::client::{Finding, Verdict};
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

/// What was found.
#[derive(Clone, Debug)]
pub struct CheckReport {
    /// The store.
    pub server: String,
    /// The address that was connected to.
    pub address: Option<std::net::SocketAddr>,
    /// From the look-up of the name to the first request that could be made.
    pub ready_after: Span,
    /// What the server said of itself and the store.
    pub facts: StoreFacts,
    /// Slots of the area, the header's included: as many as the header says, or all of the store without one.
    pub slots: u32,
    /// Slots of the store.
    pub store_slots: u32,
    /// Of single reads one after the other, in nanoseconds.
    pub read_latency: Histogram<u64>,
    /// Of a write of one page that lasts when it is answered, and of one that lasts by a flush.
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
        self.findings.push(Finding::new(name, verdict, what));
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
    let with_write = OpenOptions { durability: Some(Durability::WithWrite), ..options.clone() };
    let mut store = RealStore::open(url, &with_write)?;
    let mut report = CheckReport {
        server: store.server().into(),
        address: store.remote(),
        ready_after: store.ready_after(),
        facts: store.facts(),
        slots: store.slots(),
        store_slots: store.slots(),
        read_latency: Histogram::new_with_bounds(1, 86_400_000_000_000, 3)
            .expect("the bounds are in order"),
        write_latency: [None; 2],
        protection: store.protection(),
        findings: Vec::new(),
    };
    report.facts.said.splice(0..0, url.look(options.ready_within));
    check_host(&mut report, spec);
    report.findings.extend(report.facts.findings.iter().cloned());
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
            report.slots = header.last_page + 1;
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
    if report.slots == 0 {
        report.find("reads", Verdict::Bad, "the store has no whole page");
        return;
    }
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(64) });
    let frame = pool.alloc(Gfp::KERNEL).expect("the pool is new");
    let mut pages = PageVec::from_iter([frame]);
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(0);
    for _ in 0..READS {
        let slot = Slot((rng.next_u64() % u64::from(report.slots)) as u32);
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
    let [stable, flushed] =
        [Durability::WithWrite, Durability::ByFlush].map(|durability| url.write_name(durability));
    let Some(header) = header.filter(|_| spec.write) else {
        let why = if spec.write { "without a header nothing may be written" } else { "--no-write" };
        report.find(stable, Verdict::Warning, format!("not tried: {why}"));
        report.find(flushed, Verdict::Warning, format!("not tried: {why}"));
        return;
    };
    match write_again(store, header) {
        Ok(took) => {
            report.write_latency[0] = Some(took);
            report.find(stable, Verdict::Good, store.write_proof().how);
        }
        Err(why) => report.find(stable, Verdict::Bad, why),
    }
    let first = store.write_proof().epoch;
    let by_flush = OpenOptions {
        durability: Some(Durability::ByFlush),
        // Not the session of the first: that would be ended by it.
        nonce: !options.nonce,
        ..options.clone()
    };
    let mut store = match RealStore::open(url, &by_flush) {
        Ok(store) => store,
        Err(error) => {
            let why = format!("a second connection failed: {error}");
            report.find(flushed, Verdict::Bad, why);
            return;
        }
    };
    match (write_again(&mut store, header), store.write_proof()) {
        (Err(why), _) => report.find(flushed, Verdict::Bad, why),
        (Ok(_), proof) if proof.epoch != first || proof.restarts > 0 => {
            report.find(
                flushed,
                Verdict::Bad,
                "the write verifier changed meanwhile: the server was restarted, or loses writes",
            );
        }
        (Ok(took), proof) => {
            report.write_latency[1] = Some(took);
            let on_both = |epoch| format!(" ({epoch:#018x} on both connections)");
            let epoch = proof.epoch.map_or(String::new(), on_both);
            report.find(flushed, Verdict::Good, proof.how + &epoch);
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
