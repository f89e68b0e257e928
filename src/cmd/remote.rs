//! What the commands that take a URL share: the options of a connection, times, exit codes.

use netswap::net::kernel::{MemoryLock, PathProtection, ProtectConfig};
use netswap::real::{OpenError, OpenOptions, StoreUrl};
use netswap::reserve::Span;
use netswap::units::{Nanos, UnitError};
use serde::Serialize;

use super::{EXIT_FAILED, EXIT_UNREACHABLE, EXIT_USAGE, Failure};

/// A time; a bare number is seconds.
pub(super) fn time(text: &str) -> Result<Nanos, UnitError> {
    match text.parse::<u32>() {
        Ok(seconds) => Ok(Nanos(u64::from(seconds) * 1_000_000_000)),
        Err(_) => text.parse(),
    }
}

/// A time that has a length.
pub(super) fn some_time(text: &str) -> Result<Nanos, String> {
    match time(text) {
        Ok(Nanos(0)) => Err("it is no time at all: give more than 0".into()),
        Ok(time) => Ok(time),
        Err(error) => Err(error.to_string()),
    }
}

/// The help of a command that takes a URL: what is its own, then how to name a store.
pub(super) fn with_urls(own: &str) -> String {
    format!("{own}\n\n{URLS}")
}

/// How to name a store, and how not to show a secret.
const URLS: &str = "Stores: nfs://host[:port]/export/path/file[?nfsport=N&mountport=N&uid=N&gid=N&write=file_sync|unstable], or \
iscsi://[user@]host[:port]/target/lun[?target_user=NAME&header_digest=D&data_digest=D&initiator=NAME&password_file=PATH&\
target_password_file=PATH&write=fua|sync&portals=ADDR,...&discard=on|off] (D: none, prefer, crc32c).
Secrets for CHAP: by NETSWAP_CHAP_PASSWORD and NETSWAP_CHAP_TARGET_PASSWORD, or in the files that the URL names. A password in the URL \
itself (user%password@, target_password=) works, but every user of this machine can read it in /proc/PID/cmdline as long as \
the command runs, and the shell keeps it.";

/// How a store is connected to.
#[derive(clap::Args)]
pub(super) struct Connect {
    /// How long the server has to answer at the start
    #[arg(long, value_name = "TIME", default_value = "10s", value_parser = time)]
    pub(super) wait: Nanos,
    /// Do not ask the kernel for its protections (memory lock, IO flusher, socket memory)
    #[arg(long)]
    pub(super) unprotected: bool,
}

impl Connect {
    /// As options, with so many requests outstanding.
    pub(super) fn options(&self, in_flight: usize) -> OpenOptions {
        let protect = match self.unprotected {
            false => ProtectConfig::default(),
            true => ProtectConfig {
                memory_lock: MemoryLock::Never,
                io_flusher: false,
                socket_memory: 0,
            },
        };
        let ready_within = Span::from_nanos(self.wait.0);
        OpenOptions { in_flight, ready_within, protect, ..OpenOptions::default() }
    }
}

/// A URL of the command line.
pub(super) fn url(text: &str) -> Result<StoreUrl, Failure> {
    text.parse().map_err(Failure::usage)
}

/// What it means for the command that a store could not be opened.
pub(super) fn not_opened(error: OpenError) -> Failure {
    let code = match () {
        () if error.is_usage() => EXIT_USAGE,
        () if error.is_unreachable() => EXIT_UNREACHABLE,
        () => EXIT_FAILED,
    };
    Failure { code, message: Some(error.to_string()) }
}

/// What the kernel was asked for, for programs.
#[derive(Debug, Serialize)]
pub(super) struct Protections {
    memory_lock: String,
    io_flusher: String,
    socket_memory: String,
}

impl From<PathProtection> for Protections {
    fn from(protection: PathProtection) -> Protections {
        Protections {
            memory_lock: protection.memory_lock.to_string(),
            io_flusher: protection.io_flusher.to_string(),
            socket_memory: protection.socket_memory.to_string(),
        }
    }
}

impl Protections {
    /// In one line, for people.
    pub(super) fn line(&self) -> String {
        format!(
            "memory lock {}, IO flusher {}, socket memory {}",
            self.memory_lock, self.io_flusher, self.socket_memory
        )
    }
}

#[cfg(test)]
mod tests {
    use netswap::swap::StoreError;

    use super::*;

    #[test]
    fn what_nobody_serves_is_unreachable_and_what_is_refused_has_failed() {
        let code = |error| {
            not_opened(OpenError::Refused { server: "h".into(), error, advice: "".into() }).code
        };
        let (program, version) = ("MOUNT", 3);
        assert_eq!(code(StoreError::Unregistered { program, version }), EXIT_UNREACHABLE);
        assert_eq!(code(StoreError::NotServed { program, version }), EXIT_FAILED);
        assert_eq!(code(StoreError::Refused { code: 2 }), EXIT_FAILED);
    }

    #[test]
    fn a_bare_number_is_seconds() {
        assert_eq!(time("10").unwrap(), Nanos(10_000_000_000));
        assert_eq!(time("100ms").unwrap(), Nanos(100_000_000));
        assert!(time("ten").is_err());
        assert_eq!(some_time("1"), Ok(Nanos(1_000_000_000)));
        assert!(["0", "0s", "ten"].map(some_time).iter().all(Result::is_err));
    }
}
