//! `netswap serve iscsi`: the embedded iSCSI target on sockets of the kernel, for other people's initiators.

use std::net::SocketAddr;
use std::time::{SystemTime, UNIX_EPOCH};

use netswap::iscsi::{
    Digest, Entropy, FAULT_NAMES, IscsiTarget, SenseForm, TargetConfig, TargetFaults, UnitOptions,
};
use netswap::net::kernel::KernelStats;
use netswap::reserve::{PAGE_SIZE, PagePool, PoolConfig};
use netswap::swap::Disk;
use netswap::units::{Bytes, Nanos};
use serde_json::json;

use super::chap::ChapArgs;
use super::disk::Served;
use super::listen::{Listening, host_of};
use super::{EXIT_OK, Failure, Outcome, StoreArgs, out, parse_named_fault, print_summary};

/// Most bytes of a command, of the option that sets it.
const TRANSFER_MAX: u64 = 4 << 20;

#[derive(clap::Args)]
#[command(after_help = "Faults (--fault) are made at a share of the commands:\n\
                  late, twice: answers held back by --late-by, or sent twice; garbage: the first PDU that answers has \
                  an opcode, a length, a tag, numbers that are not its own, is cut off, or is random bytes.\n\
                  busy, task-set-full, check-condition (06/29/00), descriptor-sense (the same as a descriptor), \
                  no-sense, lying-sense (a length beyond its end), not-ready, aborted-command, medium-error, \
                  hardware-error, task-aborted, reservation-conflict, target-failure: how the command ends.\n\
                  reject: by a Reject; silent: not at all; cut: the connection is reset when the command was carried \
                  out; cut-in-header: in the middle of its answer.\n\
                  wrong-residual, short-read (half of the blocks), small-data-in, small-r2t (512 bytes each), late-r2t \
                  (by --late-by), close-window (for --late-by).\n\
                  header-digest, data-digest: wrong ones, where there are any.\n\
                  ping, unit-event, logout-request, drop-connection, drop-session, renegotiate: a NOP-In or an Async \
                  Message before the answer; reset-unit: as by another initiator; capacity-changed: a unit attention \
                  for every session.\n
Examples:
  netswap serve iscsi --listen 127.0.0.1:3260 --file /var/tmp/lun0 --size 1GiB
  netswap serve iscsi --memory 1GiB --block-size 4KiB --fault busy=1% --fault cut=0.1% --seed 7
  netswap serve iscsi --memory 1GiB --chap alice --chap-file /root/alice --header-digest crc32c --data-digest crc32c
  iscsi-inq iscsi://127.0.0.1:3260/iqn.2026-01.net.netswap:disk/0
  netswap io iscsi://127.0.0.1:3260/iqn.2026-01.net.netswap:disk/0 --rw mixed --qd 32 --verify\n
Exit codes: 0 ended by a signal; 1 the file failed; 2 the file or the address cannot be used.")]
pub(super) struct IscsiArgs {
    /// Where to listen, as ADDRESS:PORT; port 0 lets the system choose
    #[arg(long, value_name = "ADDR", default_value = "127.0.0.1:0")]
    listen: SocketAddr,
    #[command(flatten)]
    store: StoreArgs,
    /// iSCSI name of the target
    #[arg(long, value_name = "IQN", default_value = "iqn.2026-01.net.netswap:disk")]
    name: String,
    /// Number of the logical unit
    #[arg(long, default_value_t = 0, value_parser = clap::value_parser!(u16).range(0..1 << 14))]
    lun: u16,
    /// Bytes of a block: 512 or 4096
    #[arg(long, value_name = "SIZE", default_value = "512B")]
    block_size: Bytes,
    /// Refuse to write
    #[arg(long)]
    read_only: bool,
    /// Provision the unit in full: UNMAP and its relatives are refused
    #[arg(long)]
    thick: bool,
    /// Connections at once; more wait until one ends
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u16).range(1..=1024))]
    clients: u16,
    /// Commands that a session may have unanswered
    #[arg(long, default_value_t = 64, value_parser = clap::value_parser!(u16).range(1..=1024))]
    depth: u16,
    /// Commands that a session may have unanswered at its start [default: as --depth]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=1024))]
    login_window: Option<u16>,
    /// Most bytes of a command
    #[arg(long, value_name = "SIZE", default_value = "1MiB")]
    transfer_max: Bytes,
    /// Ask for all data of writes by R2Ts: InitialR2T=Yes, ImmediateData=No
    #[arg(long)]
    r2t: bool,
    /// Form of sense data: fixed, descriptor, or empty for none at all
    #[arg(long, value_name = "FORM", default_value = "fixed", value_parser = parse_sense)]
    sense: SenseForm,
    #[command(flatten)]
    chap: ChapArgs,
    /// Digests of headers: none, prefer (if the initiator would rather have them), or crc32c (or no login)
    #[arg(long, value_name = "D", default_value = "prefer")]
    header_digest: Digest,
    /// Digests of data, likewise
    #[arg(long, value_name = "D", default_value = "prefer")]
    data_digest: Digest,
    /// Where initiators that ask for targets are told to come, as HOST:PORT [default: where it listens, or,
    /// if that is every address, where they asked]
    #[arg(long, value_name = "PORTAL")]
    portal: Option<String>,
    /// A fault, and the share of commands it is made at: `busy=1%`, `twice=100ppm`; may be given again
    #[arg(long = "fault", value_name = "NAME=P", value_parser = parse_fault)]
    faults: Vec<(&'static str, u32)>,
    /// How long late answers are held back
    #[arg(long, value_name = "TIME", default_value = "100ms")]
    late_by: Nanos,
    /// Seed of the faults
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Print JSON: an object when it listens, one when it has ended; one object a line
    #[arg(long)]
    json: bool,
}

/// Whether this is a host and a port that fit an answer.
fn is_portal(text: &str) -> bool {
    let Some((host, port)) = text.rsplit_once(':') else { return false };
    let plain = |c: char| c.is_ascii_alphanumeric() || "-.:[]".contains(c);
    let fits = (1..=200).contains(&host.len()) && host.chars().all(plain);
    fits && port.parse::<u16>().is_ok_and(|port| port > 0)
}

fn parse_fault(text: &str) -> Result<(&'static str, u32), String> {
    parse_named_fault(text, FAULT_NAMES)
}

fn parse_sense(text: &str) -> Result<SenseForm, String> {
    match text {
        "fixed" => Ok(SenseForm::Fixed),
        "descriptor" => Ok(SenseForm::Descriptor),
        "empty" => Ok(SenseForm::Empty),
        _ => Err("known: fixed, descriptor, empty".into()),
    }
}

impl IscsiArgs {
    fn config(&self) -> Result<TargetConfig, Failure> {
        let mut faults = TargetFaults { late_by: self.late_by.span(), ..TargetFaults::default() };
        for (name, ppm) in &self.faults {
            faults.set(name, *ppm).map_err(Failure::usage)?;
        }
        if !matches!(self.block_size.0, 512 | 4096) {
            let block_size = self.block_size;
            return Err(Failure::usage(format_args!(
                "--block-size {block_size}: give 512B or 4KiB"
            )));
        }
        let transfer = self.transfer_max.0;
        let page = PAGE_SIZE as u64;
        if !(page..=TRANSFER_MAX).contains(&transfer) || !transfer.is_multiple_of(page) {
            return Err(Failure::usage(format_args!(
                "--transfer-max {}: give whole pages, 4KiB to 4MiB",
                self.transfer_max
            )));
        }
        if !(1..=223).contains(&self.name.len())
            || !self.name.bytes().all(|b| b.is_ascii_alphanumeric() || b"-.:".contains(&b))
        {
            return Err(Failure::usage(format_args!(
                "--name {:?} is no iSCSI name: give one like iqn.2026-01.net.netswap:disk",
                self.name
            )));
        }
        if let Some(portal) = self.portal.as_deref().filter(|portal| !is_portal(portal)) {
            return Err(Failure::usage(format_args!(
                "--portal {portal:?}: give an address like 192.0.2.1:3260, [2001:db8::1]:3260 or host:3260"
            )));
        }
        let chap = self.chap.config()?;
        // It is read only where challenges are made.
        let entropy = match chap {
            Some(_) => Entropy::of_system().map_err(|error| {
                Failure::usage(format_args!("no randomness for challenges: {error}"))
            })?,
            None => Entropy::default(),
        };
        let mut config = TargetConfig::new(&self.name);
        config.keys.initial_r2t = self.r2t;
        config.keys.immediate_data = !self.r2t;
        config.keys.header_digest = self.header_digest;
        config.keys.data_digest = self.data_digest;
        config.keys.first_burst = (transfer as u32).max(512);
        config.keys.max_burst = (transfer as u32).max(512);
        config.keys.recv_segment = (transfer as u32).max(512);
        Ok(TargetConfig {
            queue_depth: self.depth.into(),
            login_window: self.login_window.unwrap_or(self.depth).min(self.depth).into(),
            transfer_max: transfer as u32,
            max_connections: self.clients.into(),
            sense: self.sense,
            faults,
            seed: self.seed,
            chap,
            entropy,
            ..config
        })
    }

    /// What is answered to who asks for targets: an address and the number of the portal group. Nothing means:
    /// where you are (RFC 7143 appendix C).
    fn told(&self, listens: SocketAddr) -> Option<String> {
        let listens = (!listens.ip().is_unspecified()).then(|| listens.to_string());
        self.portal.clone().or(listens).map(|portal| format!("{portal},1"))
    }

    /// The URL of the unit, as `netswap io` takes it; only passwords are missing.
    fn url(&self, listens: SocketAddr) -> String {
        let (user, parameter) = self.chap.in_url();
        let digests = [("header_digest", self.header_digest), ("data_digest", self.data_digest)];
        let digests = digests.into_iter().filter(|(_, digest)| *digest == Digest::Crc32c);
        let digests = digests.map(|(name, digest)| format!("{name}={digest}"));
        let parameters: Vec<_> = parameter.into_iter().chain(digests).collect();
        let query = if parameters.is_empty() { "" } else { "?" };
        let (host, port, name) = (host_of(listens), listens.port(), &self.name);
        format!("iscsi://{user}{host}:{port}/{name}/{}{query}{}", self.lun, parameters.join("&"))
    }

    fn unit(&self, disk: &Served) -> Result<UnitOptions, Failure> {
        let identity = disk.identity().map_err(Failure::usage)?;
        // Memory is another unit at each start.
        let identity = identity.unwrap_or_else(|| {
            SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_nanos() as u64
        });
        let mut serial = [0; 16];
        serial.copy_from_slice(format!("{identity:016x}").as_bytes());
        Ok(UnitOptions {
            block_size: self.block_size.0.min(u64::from(u32::MAX)) as u32,
            read_only: self.read_only,
            thin: !self.thick,
            serial: Some(serial),
        })
    }
}

pub(super) fn run(args: &IscsiArgs) -> Outcome {
    // What is wrong with the options is said before a file is made.
    let mut config = args.config()?;
    let disk = args.store.open()?;
    let clients = usize::from(args.clients);
    if disk.is_empty() {
        return Err(Failure::usage("there is nothing to serve: give --size"));
    }
    if !disk.len().is_multiple_of(args.block_size.0) {
        let len = disk.len();
        return Err(Failure::usage(format_args!(
            "{len} bytes are no whole number of blocks of {}",
            args.block_size
        )));
    }
    let listening = &mut Listening::start(args.listen, clients)?;
    config.portals.extend(args.told(listening.addr()));
    // Nothing else takes frames, so none are kept for others.
    let frames = PoolConfig { headroom: 0, ..PoolConfig::new(config.frames().max(64)) };
    let pool = PagePool::new(frames);
    let mut target = IscsiTarget::new(config, pool).map_err(|error| {
        Failure::usage(format_args!("no memory for {clients} clients: {error}"))
    })?;
    let unit = args.unit(&disk)?;
    target.add_unit(args.lun, disk, unit).map_err(Failure::usage)?;
    announce(args, listening.addr())?;
    let ids = listening.conns();
    let ran_ns = listening.turn(|net, now, id, index| {
        net.drive(now, id, &mut target.connection(index));
        while let Some(other) = target.poll_stirred() {
            net.make_ready(ids[other]);
        }
    })?;
    // A server that ends in peace keeps what it was given.
    let flushed = target.disk_mut(args.lun).map_or(Ok(()), |disk| disk.flush());
    summarise(args, &target, &listening.stats(), ran_ns)?;
    flushed.map_err(|error| {
        Failure::of_run(format_args!("the file cannot be made durable: {error}"))
    })?;
    Ok(EXIT_OK)
}

fn announce(args: &IscsiArgs, listens: SocketAddr) -> Result<(), Failure> {
    let portal = format!("iscsi://{}:{}", host_of(listens), listens.port());
    let url = args.url(listens);
    if !listens.ip().is_loopback() && !args.chap.is_given() {
        out::note("netswap: whoever reaches this port may read and write the unit");
    }
    if args.json {
        return out::line(json!({
            "url": url,
            "portal": portal,
            "listen": listens,
            "name": args.name,
            "lun": args.lun,
            "durable": args.store.is_durable(),
        }));
    }
    out::line(&url)?;
    let durability = args.store.durability();
    out::line(format_args!("listens on {listens}, {durability}; ends on SIGINT or SIGTERM"))
}

fn summarise(
    args: &IscsiArgs,
    target: &IscsiTarget<Served>,
    net: &KernelStats,
    ran_ns: u64,
) -> Result<(), Failure> {
    let stats = target.stats();
    let counts = [
        ("connections", net.conns.accepts),
        ("logins", stats.logins),
        ("commands", stats.commands),
        ("READs", stats.reads),
        ("WRITEs", stats.writes),
        ("task management", stats.task_management),
        ("breaches of the protocol", target.protocol_errors()),
        ("wrong digests", target.digest_errors()),
        ("bytes received", net.conns.bytes_received),
        ("bytes sent", net.conns.bytes_sent),
    ];
    print_summary(args.json, &counts, &target.fault_counts().named().collect::<Vec<_>>(), ran_ns)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_fault_that_is_not_known_names_those_that_are() {
        assert_eq!(parse_fault("busy=0.1%"), Ok(("busy", 1000)));
        let error = parse_fault("bussy=1%").unwrap_err();
        assert!(error.contains("known: late, twice, garbage"), "{error}");
        assert!(parse_sense("short").unwrap_err().contains("descriptor"));
    }

    #[test]
    fn a_portal_is_a_host_and_a_port() {
        for portal in ["192.0.2.1:3260", "[2001:db8::1]:3260", "store.example:1"] {
            assert!(is_portal(portal), "{portal}");
        }
        for other in ["192.0.2.1", ":3260", "a b:1", "a,2:1", "host:0", "host:99999"] {
            assert!(!is_portal(other), "{other}");
        }
    }
}
