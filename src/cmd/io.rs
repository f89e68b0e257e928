//! `netswap io`: a load on a store, every page of it verified if that is asked for.

use hdrhistogram::Histogram;
use netswap::real::load::{Load, LoadError, LoadReport, LoadSpec, Pattern, Stop};
use netswap::real::{
    Interrupt, MkswapOptions, OpenOptions, RealStore, StoreUrl, area_to_read, fit_to_write,
    make_area_if_absent,
};
use netswap::reserve::PAGE_SIZE;
use netswap::swap::backend::BATCH_PAGES_MAX;
use netswap::units::{Bytes, Nanos};
use serde::Serialize;

use super::mkswap::{not_made, random_uuid, with_progress};
use super::progress::{self, Lines};
use super::remote::{self, Connect, Protections};
use super::signals::interruptible;
use super::{EXIT_FAILED, EXIT_OK, Failure, Outcome, out};

/// Requests outstanding at most: what a table of a client holds in a few MiB. Picked by eye.
const DEPTH_MAX: u64 = 4096;
/// How long a request may take while an area is made, if --timeout does not say. As long as for `mkswap`.
const MAKE_WITHIN: Nanos = Nanos(60_000_000_000);

#[derive(clap::Args)]
#[command(after_help = remote::with_urls("Examples:
  netswap io nfs://server/export/area0 --rw randread --qd 16 --time 10
  netswap io nfs://server/export/area0 --rw mixed --qd 32 --time 60 --verify
  netswap io nfs://server/export/area0 --create 1GiB --rw write --size 1GiB --bs 64KiB --verify
  netswap io nfs://server/export/area0 --rw randread --size 1GiB --verify   what that wrote, read back
  netswap io iscsi://server/iqn.2026-01.org.example:disk/1 --rw randwrite --qd 32 --verify
  netswap io 'nfs://server/export/area0?write=unstable' --rw write --qd 64 --ops 100000 --merge off

Pages are written behind the swap header; a file without one is refused. --verify stamps every page that is \
written (slot, number of the write, run, seed, checksum) and compares every page that is read; what was written is read \
back at the end. With --rw read and randread it compares with what an earlier run with --verify and the same --seed wrote.

Exit codes: 0 every operation ended well and every page was right; 1 one did not, or the server refused \
the file; 2 the command line cannot be used; 3 the server cannot be reached; 130 and 143 ended by SIGINT (Ctrl-C) or SIGTERM, with the \
report so far. A second signal ends it at once."))]
pub(super) struct Args {
    /// The store: nfs://host[:port]/export/path/file or iscsi://[user@]host[:port]/target/lun
    url: String,
    /// What is done
    #[arg(long, value_name = "PATTERN", value_parser = Pattern::ALL.map(Pattern::name))]
    rw: String,
    /// Bytes of an operation: pages of 4KiB, up to 64KiB. The last one of the area moves what is left of it
    #[arg(long, value_name = "SIZE", default_value = "4KiB")]
    bs: Bytes,
    /// How far it is from one operation to the next, with --rw read and write: a multiple of --bs; behind the
    /// end it goes on at the start [default: the size of an operation]
    #[arg(long, value_name = "SIZE")]
    stride: Option<Bytes>,
    /// Operations outstanding, 1 to 4096
    #[arg(long, value_name = "N", default_value_t = 1, value_parser = clap::value_parser!(u64).range(1..=DEPTH_MAX))]
    qd: u64,
    /// How long it lasts; a bare number is seconds [default: 10s, if neither --size nor --ops is given]
    #[arg(long, value_parser = remote::some_time, conflicts_with = "ops")]
    time: Option<Nanos>,
    /// Bytes of the area that are used, from its start; without --time and --ops, also the bytes that are
    /// moved [default: the whole area]
    #[arg(long)]
    size: Option<Bytes>,
    /// Operations after which it ends
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    ops: Option<u64>,
    /// Stamp every page that is written and compare every page that is read
    #[arg(long)]
    verify: bool,
    /// Whether operations on adjacent blocks that wait together go to the server as one request (NFS)
    #[arg(long, value_name = "WHETHER", value_parser = ["on", "off"], default_value = "on")]
    merge: String,
    /// Make the file an area of this size, as `mkswap` does, if it is absent or empty: every page is written,
    /// so it has no holes. A file that is there must not be smaller
    #[arg(long, value_name = "SIZE")]
    create: Option<Bytes>,
    /// Overwrite a file that has no swap header
    #[arg(long)]
    force: bool,
    /// How long the server has for an operation [default: for ever]
    #[arg(long, value_name = "TIME", value_parser = remote::some_time)]
    timeout: Option<Nanos>,
    /// Draws the slots, and is part of every page
    #[arg(long, default_value_t = 0)]
    seed: u64,
    #[command(flatten)]
    connect: Connect,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

/// Latency in microseconds.
#[derive(Serialize)]
struct Percentiles {
    p50_us: f64,
    p90_us: f64,
    p99_us: f64,
    p999_us: f64,
    max_us: f64,
}

impl Percentiles {
    fn of(latency: &Histogram<u64>) -> Option<Percentiles> {
        let at = |quantile| latency.value_at_quantile(quantile) as f64 / 1e3;
        (!latency.is_empty()).then(|| Percentiles {
            p50_us: at(0.5),
            p90_us: at(0.9),
            p99_us: at(0.99),
            p999_us: at(0.999),
            max_us: latency.max() as f64 / 1e3,
        })
    }
}

#[derive(Serialize)]
struct Report {
    server: String,
    address: Option<String>,
    rw: String,
    bs: u64,
    qd: u64,
    merge: bool,
    verify: bool,
    seed: u64,
    ops: u64,
    reads: u64,
    writes: u64,
    requests: u64,
    elapsed_s: f64,
    ops_per_s: f64,
    /// Of 1,000,000 bytes.
    mb_per_s: f64,
    cpu_us_per_op: f64,
    /// The longest time without a completion.
    longest_pause_ms: f64,
    read: Option<Percentiles>,
    write: Option<Percentiles>,
    pages_verified: u64,
    pages_wrong: u64,
    /// Written, and not read back at the end.
    pages_unverified: u64,
    store_errors: u64,
    /// Opened so far, those at the start included.
    connections: u64,
    quarantined_slots: u32,
    faults: Vec<String>,
    /// More of them, that are in the counts alone.
    faults_untold: u64,
    ended_early: Option<String>,
    protections: Protections,
}

pub(super) fn run(args: &Args) -> Outcome {
    interruptible(|interrupt| run_until(args, &interrupt))
}

fn run_until(args: &Args, interrupt: &Interrupt) -> Outcome {
    let url = remote::url(&args.url)?;
    let pattern =
        Pattern::ALL.into_iter().find(|p| p.name() == args.rw).expect("the parser knows them");
    let block_pages = block_pages(args.bs)?;
    if let Some(size) = args.create
        && size.pages() < 1 + block_pages as u64
    {
        return Err(Failure::usage(format!(
            "--create {size}: a header and one block are {} at least",
            Bytes((1 + block_pages as u64) * PAGE_SIZE as u64)
        )));
    }
    if let (Some(create), Some(size)) = (args.create, args.size)
        && size.pages() > create.pages()
    {
        let what = format!("--size {size} is more than what --create {create} makes");
        return Err(Failure::usage(what));
    }
    // What is wrong with the options is said before a file is made.
    stride_blocks(args, pattern)?;
    create(&url, args, interrupt)?;
    let mut store = open(&url, args, interrupt)?;
    let spec = spec(args, pattern, block_pages, &mut store)?;
    let load = Load::new(spec).map_err(|error| match error {
        LoadError::TooSmall { .. } => Failure::usage(error),
        _ => failed(error),
    })?;
    let mut lines = Lines::new();
    let bar = progress::bar(1000, "{msg:40} [{bar:40}] {percent:>3}% {elapsed_precise}");
    let done = load.run(&mut store, &mut |far| {
        let (share, ops) = (far.share.min(0.99), far.ops);
        let what = if far.is_reading_back { "reading back" } else { &*args.rw };
        bar.set_position((share * 1000.0) as u64);
        if !bar.is_hidden() {
            bar.set_message(format!("{what}: {ops} operations"));
        }
        lines.tell(format_args!("{what}: {:.0} %, {ops} operations", share * 100.0));
    });
    bar.finish_and_clear();
    let done = done.map_err(failed)?;
    let code = if done.is_fine() { EXIT_OK } else { EXIT_FAILED };
    let report = report(args, &store, &done);
    store.shutdown();
    let text = if args.json {
        serde_json::to_string(&report).expect("a report has only plain fields")
    } else {
        text(&report)
    };
    out::line(text).map_err(|failure| failure.after(code))?;
    for fault in &report.faults {
        out::note(format_args!("netswap: {}: {fault}", report.server));
    }
    if report.faults_untold > 0 {
        out::note(format_args!("netswap: {}: and {} more", report.server, report.faults_untold));
    }
    if let Some(why) = report.ended_early.as_ref().filter(|_| args.json) {
        out::note(format_args!("netswap: {}: {why}", report.server));
    }
    Ok(code)
}

fn failed(error: impl ToString) -> Failure {
    Failure { code: EXIT_FAILED, message: Some(error.to_string()) }
}

fn block_pages(bs: Bytes) -> Result<usize, Failure> {
    let most = BATCH_PAGES_MAX * PAGE_SIZE;
    let is_whole = bs.0 > 0 && bs.0.is_multiple_of(PAGE_SIZE as u64);
    if !is_whole || bs.0 > most as u64 {
        return Err(Failure::usage(format!(
            "--bs {bs}: write a multiple of {} up to {}",
            Bytes(PAGE_SIZE as u64),
            Bytes(most as u64)
        )));
    }
    Ok(bs.pages() as usize)
}

fn stride_blocks(args: &Args, pattern: Pattern) -> Result<u32, Failure> {
    let Some(stride) = args.stride else { return Ok(1) };
    if !matches!(pattern, Pattern::Read | Pattern::Write) {
        return Err(Failure::usage("--stride goes with --rw read and --rw write"));
    }
    let blocks = stride.0 / args.bs.0;
    match u32::try_from(blocks) {
        Ok(blocks @ 1..) if u64::from(blocks) * args.bs.0 == stride.0 => Ok(blocks),
        _ => {
            Err(Failure::usage(format!("--stride {stride}: it is a multiple of --bs {}", args.bs)))
        }
    }
}

/// Makes the file, if it is to be made and is not there.
fn create(url: &StoreUrl, args: &Args, interrupt: &Interrupt) -> Result<(), Failure> {
    let Some(size) = args.create else { return Ok(()) };
    let options = MkswapOptions {
        bytes: Some(size.0),
        force: false,
        uuid: random_uuid()?,
        label: [0; 16],
        request_timeout: args.timeout.unwrap_or(MAKE_WITHIN).span(),
    };
    let open =
        OpenOptions { interrupt: interrupt.clone(), ..args.connect.options(args.qd as usize) };
    let made = with_progress(|told| make_area_if_absent(url, &open, &options, told));
    made.map_err(not_made)?;
    Ok(())
}

fn open(url: &StoreUrl, args: &Args, interrupt: &Interrupt) -> Result<RealStore, Failure> {
    let mut options = args.connect.options(args.qd as usize);
    options.merge = args.merge == "on";
    options.interrupt = interrupt.clone();
    let store = RealStore::open(url, &options).map_err(remote::not_opened)?;
    let most = store.limits().in_flight as u64;
    if args.qd > most {
        let what = format!("--qd {}: {url} takes {most} operations at once", args.qd);
        return Err(Failure::usage(what));
    }
    Ok(store)
}

fn spec(
    args: &Args,
    pattern: Pattern,
    block_pages: usize,
    store: &mut RealStore,
) -> Result<LoadSpec, Failure> {
    // A load that only reads takes any file, as far as it goes behind the place of the header, or as the
    // header says if there is one.
    let area = match pattern.is_writing() || args.create.is_some() {
        true => fit_to_write(store, args.force).map_err(failed)?,
        false => area_to_read(store).map_err(failed)?,
    };
    let (first_slot, there) = (area.first_slot, area.slots);
    let has = Bytes((u64::from(there) + 1) * PAGE_SIZE as u64);
    if let Some(create) = args.create
        && create.pages() > u64::from(there) + 1
    {
        return Err(Failure::usage(format!(
            "--create {create}: there is a file already, and it has {has}: leave --create out to use it as it is, or \
             remove it"
        )));
    }
    // The place of the header counts: an area of 1GiB is used up by --size 1GiB.
    let wanted = args.size.map(|size| size.pages().min(u64::from(there) + 1));
    let slots = match (args.size, wanted) {
        (Some(size), Some(pages)) if pages < size.pages() => {
            return Err(Failure::usage(format!("--size {size} is more than the area has: {has}")));
        }
        (_, Some(pages)) => (pages as u32).saturating_sub(1).min(there),
        _ => there,
    };
    let stop = match (args.time, args.ops, args.size) {
        (Some(time), _, _) => Stop::After(time.span()),
        (None, Some(ops), _) => Stop::Ops(ops),
        (None, None, Some(_)) => Stop::Ops(u64::from(slots.div_ceil(block_pages as u32)).max(1)),
        (None, None, None) => Stop::After(Nanos(10_000_000_000).span()),
    };
    let run = u128::from_le_bytes(random_uuid()?) as u64;
    Ok(LoadSpec {
        pattern,
        block_pages,
        stride_blocks: stride_blocks(args, pattern)?,
        depth: args.qd as usize,
        slots,
        first_slot,
        stop,
        verify: args.verify,
        seed: args.seed,
        run,
        request_timeout: args.timeout.map(Nanos::span),
    })
}

fn report(args: &Args, store: &RealStore, done: &LoadReport) -> Report {
    let (ops, elapsed_s) = (done.ops(), done.elapsed.as_secs_f64());
    let per_s = |n: f64| if elapsed_s > 0.0 { n / elapsed_s } else { 0.0 };
    Report {
        server: store.server().into(),
        address: store.remote().map(|at| at.to_string()),
        rw: args.rw.clone(),
        bs: args.bs.0,
        qd: args.qd,
        merge: args.merge == "on",
        verify: args.verify,
        seed: args.seed,
        ops,
        reads: done.reads,
        writes: done.writes,
        requests: done.requests,
        elapsed_s,
        ops_per_s: per_s(ops as f64),
        mb_per_s: per_s((done.pages * PAGE_SIZE as u64) as f64 / 1e6),
        cpu_us_per_op: done.cpu.as_secs_f64() * 1e6 / ops.max(1) as f64,
        longest_pause_ms: done.longest_pause.as_secs_f64() * 1e3,
        read: Percentiles::of(&done.read_latency),
        write: Percentiles::of(&done.write_latency),
        pages_verified: done.pages_verified,
        pages_wrong: done.pages_wrong,
        pages_unverified: done.pages_unverified,
        store_errors: done.store_errors,
        connections: store.net_stats().conns.connects,
        quarantined_slots: done.quarantined,
        faults: done.faults.iter().map(ToString::to_string).collect(),
        faults_untold: done.untold(),
        ended_early: done.ended_early.clone(),
        protections: store.protection().into(),
    }
}

fn text(report: &Report) -> String {
    let Report { server, ops, elapsed_s, ops_per_s, mb_per_s, .. } = report;
    let merged = if report.requests < *ops {
        format!(", {} merged into {} requests", ops, report.requests)
    } else {
        String::new()
    };
    let mut text = format!(
        "{server}: {} of {} at depth {}{merged}\n\
         {ops} operations in {elapsed_s:.2} s: {ops_per_s:.0} a second, {mb_per_s:.1} MB/s; \
         {:.1} us of this processor an operation; longest pause {:.1} ms\n",
        report.rw,
        Bytes(report.bs),
        report.qd,
        report.cpu_us_per_op,
        report.longest_pause_ms,
    );
    let mut rows =
        vec![["latency", "p50", "p90", "p99", "p99.9", "max"].map(String::from).to_vec()];
    for (name, latency) in [("read", &report.read), ("write", &report.write)] {
        if let Some(l) = latency {
            let cells = [l.p50_us, l.p90_us, l.p99_us, l.p999_us, l.max_us];
            let cells = cells.map(netswap::report::micros);
            rows.push(std::iter::once(name.to_string()).chain(cells).collect());
        }
    }
    text += &netswap::report::table(&rows);
    if report.verify {
        let unread = match report.pages_unverified {
            0 => String::new(),
            n => format!(", {n} not read back"),
        };
        text += &format!(
            "{} pages verified, {} wrong{unread}; {}\n",
            report.pages_verified,
            report.pages_wrong,
            out::count(report.store_errors, "error") + " of the store",
        );
    } else if report.store_errors > 0 {
        text += &format!("{} of the store\n", out::count(report.store_errors, "error"));
    }
    if report.quarantined_slots > 0 {
        text += &format!(
            "{} in quarantine: a late copy of a write may still reach them\n",
            out::count(report.quarantined_slots.into(), "slot"),
        );
    }
    if let Some(why) = &report.ended_early {
        text += &format!("ended early: {why}\n");
    }
    text += &format!("protections: {}", report.protections.line());
    text
}
