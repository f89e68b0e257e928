//! `netswap serve`: the embedded servers on sockets of the kernel, for other people's clients.
//!
//! One thread turns one event loop: requests are executed as they arrive, and a write that must be durable
//! holds the others up until the disk has it. There are no permissions: whoever reaches the port, and proves to be
//! whom an iSCSI target was told of, reads and writes what is served.

mod chap;
mod disk;
mod iscsi;
mod listen;
mod nfs;

use std::path::{Path, PathBuf};

use clap::Subcommand;
use netswap::report::table;
use netswap::units::{Bytes, Share};
use serde_json::json;

use super::{EXIT_OK, Failure, Outcome, out};
use disk::{FileDisk, Memory, Served};

#[derive(clap::Args)]
pub(super) struct Args {
    #[command(subcommand)]
    protocol: Protocol,
}

#[derive(Subcommand)]
enum Protocol {
    /// Serve one file by NFSv3 (MOUNT and a portmapper on the same port), with faults on demand
    ///
    /// Made for tests of clients: there are no permissions, whoever reaches the port reads and writes the
    /// file. It runs until SIGINT or SIGTERM, and prints what it did.
    Nfs(Box<nfs::NfsArgs>),
    /// Serve one file as a logical unit by iSCSI, with faults on demand
    ///
    /// Made for tests of initiators: whoever reaches the port and is let in reads and writes the file. It runs
    /// until SIGINT or SIGTERM, and prints what it did.
    Iscsi(Box<iscsi::IscsiArgs>),
}

pub(super) fn run(args: &Args) -> Outcome {
    match &args.protocol {
        Protocol::Nfs(args) => nfs::run(args),
        Protocol::Iscsi(args) => iscsi::run(args),
    }
}

/// What is served.
#[derive(clap::Args)]
#[command(group(clap::ArgGroup::new("store").required(true).args(["file", "memory"])))]
struct StoreArgs {
    /// The file or block device that holds the bytes; a file is created if there is none. One without a byte is
    /// not shown until a client creates it
    #[arg(long, value_name = "F")]
    file: Option<PathBuf>,
    /// Serve so much memory instead of a file
    #[arg(long, value_name = "SIZE", conflicts_with_all = ["size", "no_sync"])]
    memory: Option<Bytes>,
    /// Length of the file if it is created here, or empty; of another one it is an error that its length differs
    #[arg(long)]
    size: Option<Bytes>,
    /// Answer writes as stable without fsync: whatever the machine has not written is lost when it fails
    #[arg(long)]
    no_sync: bool,
}

impl StoreArgs {
    fn open(&self) -> Result<Served, Failure> {
        if let Some(size) = self.memory {
            return match Memory::new(size.0) {
                Ok(_) if size.0 == 0 => Err(Failure::usage("--memory 0B: nothing to serve")),
                Ok(memory) => Ok(Served::Memory(memory)),
                Err(error) => Err(Failure::usage(format_args!("--memory {size}: {error}"))),
            };
        }
        let path = self.file.as_deref().unwrap_or(Path::new(""));
        FileDisk::open(path, self.size.map(|size| size.0), !self.no_sync)
            .map(Served::File)
            .map_err(|error| Failure::usage(format_args!("{}: {error}", path.display())))
    }

    fn is_durable(&self) -> bool {
        self.memory.is_none() && !self.no_sync
    }

    /// What becomes of writes, in words.
    fn durability(&self) -> &'static str {
        match (self.memory, self.no_sync) {
            (Some(_), _) => "memory: gone when this command ends",
            (None, true) => "no fsync: what the machine has not written is lost when it fails",
            (None, false) => "writes that must be stable wait for fsync",
        }
    }
}

/// `NAME=P` with one of the `known` names; the share in parts per million.
fn parse_named_fault(
    text: &str,
    known: &'static [&'static str],
) -> Result<(&'static str, u32), String> {
    let list = || format!("known: {}", known.join(", "));
    let (name, share) = text
        .split_once('=')
        .ok_or_else(|| format!("write NAME=P, {}=1% for one; {}", known[0], list()))?;
    if share.contains(',') {
        return Err("one fault each time: give --fault again for the next".into());
    }
    let ppm = share.parse::<Share>().map_err(|error| error.to_string())?.0 as u32;
    let found = known.iter().find(|known| **known == name);
    found.map(|name| (*name, ppm)).ok_or_else(|| format!("unknown fault {name:?}; {}", list()))
}

/// Prints what a server did, and the faults it made.
fn print_summary(
    json: bool,
    counts: &[(&str, u64)],
    faults: &[(&str, u64)],
    ran_ns: u64,
) -> Result<(), Failure> {
    let faults = faults.iter().copied().filter(|(_, n)| *n > 0);
    if json {
        let key = |name: &str| name.replace(", ", " ").replace(' ', "_").to_lowercase();
        let object = |pairs: &mut dyn Iterator<Item = (&str, u64)>| -> serde_json::Value {
            pairs.map(|(name, n)| (key(name), json!(n))).collect::<serde_json::Map<_, _>>().into()
        };
        return out::line(json!({
            "counts": object(&mut counts.iter().copied()),
            "faults": object(&mut faults.into_iter()),
            "ran_s": ran_ns as f64 / 1e9,
        }));
    }
    let head = vec!["what".to_string(), "times".to_string()];
    let rows = counts.iter().map(|(name, n)| vec![name.to_string(), n.to_string()]);
    let faults = faults.map(|(name, n)| vec![format!("fault: {name}"), n.to_string()]);
    let rows: Vec<_> = std::iter::once(head).chain(rows).chain(faults).collect();
    out::print(table(&rows))
}
