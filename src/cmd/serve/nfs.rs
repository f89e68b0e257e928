//! `netswap serve nfs`: the embedded NFS server on sockets of the kernel, for other people's clients.

use std::net::SocketAddr;
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use netswap::net::kernel::KernelStats;
use netswap::nfs::{FAULT_NAMES, NfsServer, NfsServerConfig, ServerFaults};
use netswap::reserve::{PagePool, PoolConfig};
use netswap::swap::Disk;
use netswap::units::{Bytes, Nanos};
use serde_json::json;

use super::disk::Served;
use super::listen::{Listening, escape, host_of};
use super::{EXIT_OK, Failure, Outcome, StoreArgs, out, parse_named_fault, print_summary};

/// Calls a client may have outstanding before its next ones wait in the kernel. Picked by eye: half of the
/// deepest queue that is measured; each takes a buffer of one READ or WRITE.
const RECORDS: usize = 32;
/// Replies of changes that are remembered for each connection. Picked by eye: some times `RECORDS`.
const REMEMBERED: usize = 128;
/// WRITEs that can be put aside at once. Picked by eye.
const HELD: usize = 16;
/// Most bytes a call may carry, of the two options that set it.
const TRANSFER_MAX: u64 = 1 << 20;

#[derive(clap::Args)]
#[command(
    after_help = "Faults (--fault): late, twice: replies held back, or sent again, by --late-by; garbage: replies \
                  damaged; jukebox: NFS3ERR_JUKEBOX; short-write, short-read: fewer bytes than asked for; forget: what \
                  is uncommitted is lost, the verifier another one; weak: a WRITE less stable than asked for; held: \
                  a WRITE put aside without an answer, and carried out --held-for later.\n
Examples:
  netswap serve nfs --listen 127.0.0.1:20490 --file /var/tmp/area0 --size 1GiB
  netswap serve nfs --memory 1GiB --fault jukebox=1% --fault twice=0.1% --seed 7
  nfs-ls 'nfs://127.0.0.1/swap?version=3&nfsport=20490&mountport=20490'\n
Exit codes: 0 ended by a signal; 1 the file failed; 2 the file or the address cannot be used."
)]
pub(super) struct NfsArgs {
    /// Where to listen, as ADDRESS:PORT; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[command(flatten)]
    store: StoreArgs,
    /// Show the memory only once a client has created the file
    #[arg(long, requires = "memory")]
    absent: bool,
    /// The most bytes that clients may make the file long; with --memory, only of one that is --absent at first
    /// [default: 1024GiB, or the memory]
    #[arg(long, value_name = "SIZE")]
    limit: Option<Bytes>,
    /// Path of the export
    #[arg(long, value_name = "PATH", default_value = "/swap")]
    export: String,
    /// Name in the export [default: that of the file, or `area0`]
    #[arg(long)]
    name: Option<String>,
    /// Connections at once; more wait until one ends
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Most bytes of a READ
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    rtmax: Bytes,
    /// Most bytes of a WRITE
    #[arg(long, value_name = "SIZE", default_value = "64KiB")]
    wtmax: Bytes,
    /// A fault, and the share of calls it is made at: `jukebox=1%`, `held=100ppm`; may be given again
    #[arg(long = "fault", value_name = "NAME=P", value_parser = parse_fault)]
    faults: Vec<(&'static str, u32)>,
    /// How long late and repeated replies are held back
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    late_by: Nanos,
    /// How long a WRITE is put aside
    #[arg(long, value_name = "TIME", default_value = "1s")]
    held_for: Nanos,
    /// Seed of the faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// The write verifier; by default one that no earlier start had. With the same one a restart does not show
    #[arg(long, value_name = "N")]
    boot: Option<u64>,
    /// Print JSON: an object when it listens, one when it has ended; one object a line
    #[arg(long)]
    json: bool,
}

fn parse_fault(text: &str) -> Result<(&'static str, u32), String> {
    parse_named_fault(text, FAULT_NAMES)
}

impl NfsArgs {
    fn open(&self) -> Result<Served, Failure> {
        let disk = self.store.open()?;
        Ok(if self.absent { disk.emptied() } else { disk })
    }

    /// The name that clients look up.
    fn name(&self) -> Result<String, Failure> {
        let of_file =
            || self.store.file.as_deref().and_then(Path::file_name).and_then(|name| name.to_str());
        let name = self.name.as_deref().or_else(of_file).unwrap_or("area0");
        let fits = (1..=255).contains(&name.len()) && !name.contains(['/', '\0']);
        if !fits || matches!(name, "." | "..") {
            return Err(Failure::usage(format_args!("{name:?} is no name of a file: give --name")));
        }
        Ok(name.into())
    }

    /// The most bytes that clients may make the file long, which has `len` now.
    fn file_bytes_max(&self, len: u64) -> Result<u64, Failure> {
        let refused =
            |limit: Bytes, why: String| Err(Failure::usage(format_args!("--limit {limit}: {why}")));
        // What it has from the start.
        let start = self.store.memory.filter(|_| !self.absent).or(self.store.size);
        match (self.limit, self.store.memory) {
            (Some(limit), Some(memory)) if limit.0 > memory.0 => {
                refused(limit, format!("the file cannot become longer than --memory {memory}"))
            }
            (Some(limit), _) if start.is_some_and(|start| limit.0 < start.0) => {
                let start = start.unwrap_or(Bytes(0));
                refused(
                    limit,
                    format!("the file has {start} from the start: leave it out, or give as much"),
                )
            }
            (Some(limit), Some(_)) => Ok(limit.0),
            (None, Some(memory)) => Ok(memory.0),
            (limit, None) => Ok(limit.map_or(1 << 40, |limit| limit.0).max(len)),
        }
    }

    fn config(&self, port: u16, len: u64) -> Result<NfsServerConfig, Failure> {
        let mut faults = ServerFaults {
            late_by: self.late_by.span(),
            held_for: self.held_for.span(),
            ..ServerFaults::default()
        };
        for (name, ppm) in &self.faults {
            faults.set(name, *ppm).map_err(Failure::usage)?;
        }
        let transfer = |option: &str, size: Bytes| match size.0 {
            512..=TRANSFER_MAX => Ok(size.0 as u32),
            _ => Err(Failure::usage(format_args!("{option} {size}: give 512B to 1MiB"))),
        };
        if !self.export.starts_with('/') || self.export.len() > 1024 {
            let export = &self.export;
            return Err(Failure::usage(format_args!("--export {export}: give a path like /swap")));
        }
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Ok(NfsServerConfig {
            export: self.export.clone(),
            ports: Some((port, port)),
            boot: self.boot.unwrap_or(now.as_nanos() as u64),
            rtmax: transfer("--rtmax", self.rtmax)?,
            wtmax: transfer("--wtmax", self.wtmax)?,
            file_bytes_max: self.file_bytes_max(len)?,
            faults,
            seed: self.seed,
            max_connections: self.clients.into(),
            records: RECORDS,
            // Only who is to lose something must know what was there before.
            keep_old: faults.forget_ppm > 0,
            held: if faults.held_ppm > 0 { HELD } else { 0 },
            remembered: REMEMBERED,
            files: 1,
            ..NfsServerConfig::default()
        })
    }
}

/// The URL of a file, as libnfs and this command spell it.
fn url(listens: SocketAddr, export: &str, name: &str) -> String {
    let host = host_of(listens);
    let path = escape(&format!("{}/{name}", export.trim_end_matches('/')));
    let port = listens.port();
    format!("nfs://{host}{path}?version=3&nfsport={port}&mountport={port}")
}

pub(super) fn run(args: &NfsArgs) -> Outcome {
    let name = args.name()?;
    // What is wrong with the options is said before a file is made.
    args.config(0, 0)?;
    let disk = args.open()?;
    let clients = usize::from(args.clients);
    let mut listening = Listening::start(args.listen, clients)?;
    let listens = listening.addr();
    let config = args.config(listens.port(), disk.len())?;
    let pool = PagePool::new(PoolConfig::new(config.frames() + 256));
    let mut server = NfsServer::new(config, &pool).map_err(|error| {
        Failure::usage(format_args!("no memory for {clients} clients: {error}"))
    })?;
    if disk.is_empty() || args.absent {
        server.add_spare_for(&name, disk);
    } else {
        server.add_file(&name, disk);
    }
    announce(args, listens, &name)?;
    let ran_ns = listening.turn(|net, now, id, index| {
        net.drive(now, id, &mut server.connection(index));
    })?;
    // A server that ends in peace keeps what it was given.
    let flushed = server.disk_mut(&name).map_or(Ok(()), |disk| disk.flush());
    summarise(args, &server, &listening.stats(), ran_ns)?;
    flushed.map_err(|error| {
        Failure::of_run(format_args!("the file cannot be made durable: {error}"))
    })?;
    Ok(EXIT_OK)
}

fn announce(args: &NfsArgs, listens: SocketAddr, name: &str) -> Result<(), Failure> {
    let url = url(listens, &args.export, name);
    if !listens.ip().is_loopback() {
        out::note("netswap: whoever reaches this port may read and write the file");
    }
    if args.json {
        return out::line(json!({
            "url": url,
            "listen": listens,
            "export": args.export,
            "name": name,
            "durable": args.store.is_durable(),
        }));
    }
    out::line(&url)?;
    out::line(format_args!(
        "listens on {listens}, {}; ends on SIGINT or SIGTERM",
        args.store.durability()
    ))
}

fn summarise<D: Disk>(
    args: &NfsArgs,
    server: &NfsServer<D>,
    net: &KernelStats,
    ran_ns: u64,
) -> Result<(), Failure> {
    let stats = server.stats();
    let counts = [
        ("connections", net.conns.accepts),
        ("calls", stats.calls),
        ("READs", stats.reads),
        ("WRITEs", stats.writes),
        ("READDIRs", stats.lists),
        ("answered again", stats.cached),
        ("not understood", stats.bad_calls),
        ("UNSTABLE writes lost", stats.lost),
        ("bytes received", net.conns.bytes_received),
        ("bytes sent", net.conns.bytes_sent),
    ];
    print_summary(args.json, &counts, &server.fault_counts().named(), ran_ns)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netswap::nfs::NfsUrl;

    #[test]
    fn the_printed_url_is_one_that_this_command_reads() {
        for (listens, export, name, host) in [
            ("127.0.0.1:5", "/swap", "area0", "127.0.0.1"),
            ("0.0.0.0:5", "/", "a b?%ä", "127.0.0.1"),
            ("[::]:5", "/a/b/", "f&g", "[::1]"),
        ] {
            let text = url(listens.parse().unwrap(), export, name);
            let url: NfsUrl = text.parse().unwrap();
            assert_eq!((&*url.file, &*url.host.to_string()), (name, host), "{text}");
            assert_eq!((url.nfs_port, url.mount_port), (Some(5), Some(5)));
        }
    }

    #[test]
    fn a_fault_is_a_name_and_a_share() {
        assert_eq!(parse_fault("held=0.1%"), Ok(("held", 1000)));
        for (text, hint) in [
            ("held", "write NAME=P"),
            ("helt=1%", "known: late, twice, garbage"),
            ("held=2", "has no unit"),
            ("held=200%", "out of range"),
            ("held=1%,late=1%", "give --fault again"),
        ] {
            let error = parse_fault(text).unwrap_err();
            assert!(error.contains(hint), "{text}: {error}");
        }
    }
}
