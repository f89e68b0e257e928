//! Files on NFS servers, as the table of schemes and the commands see them.

mod list;

use std::borrow::Cow;
use std::fmt;
use std::net::IpAddr;

use netswap_nfs::proto;
use netswap_nfs::{NfsBackend, NfsFacts, NfsUrl, WritePolicy, mount};
use netswap_reserve::PAGE_SIZE;
use netswap_swap::StoreError;
use serde_json::json;

use super::client::{
    Counters, Durability, Fact, Finding, RealClient, StoreFacts, Verdict, WriteProof,
};
use super::scheme::{Location, Scheme};
use super::store::OpenOptions;
use crate::units::Bytes;

pub use list::{Listed, NfsListFailure, list_directory};

/// `nfs://`.
pub fn scheme() -> Scheme {
    Scheme::new(
        "nfs",
        "nfs://host[:port]/export/path/file[?nfsport=N&mountport=N&uid=N&gid=N&write=file_sync|unstable]",
        |text| Ok(File(text.parse()?)),
    )
    .with_list("nfs://host[:port]/export/path[?nfsport=N&mountport=N&uid=N&gid=N]", |text, options| {
        let url = NfsUrl::parse_directory(text).map_err(|error| super::list::bad_url("nfs", error))?;
        list::listing(&url, options)
    })
}

/// What to do about a service that the portmapper does not know.
const UNREGISTERED: &str =
    "is the NFS server running? If it is, name its ports by nfsport= and mountport= in the URL";
/// What to do about a port that does not serve what was looked for there.
const NOT_SERVED: &str =
    "NFS and MOUNT may have a port each: name them by nfsport= and mountport= in the URL";

/// A file on a server.
#[derive(Debug)]
struct File(NfsUrl);

impl fmt::Display for File {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl Location for File {
    fn host(&self) -> Option<String> {
        Some(self.0.host.to_string())
    }

    fn client(&self, address: IpAddr, options: &OpenOptions) -> Box<dyn RealClient> {
        let mut config = self.0.config(address);
        if let Some(portmap) = &mut config.portmap {
            portmap.set_port(options.portmap);
        }
        config.create_bytes = options.create_bytes;
        config.in_flight = options.in_flight;
        config.merge = options.merge;
        config.machine = options.machine.clone();
        config.first_xid = options.nonce;
        match options.durability {
            Some(Durability::WithWrite) => config.write = WritePolicy::FileSync,
            Some(Durability::ByFlush) => config.write = WritePolicy::Unstable,
            None => {}
        }
        Box::new(NfsBackend::new(config))
    }

    fn can_create(&self) -> bool {
        true
    }

    fn write_names(&self) -> [&'static str; 2] {
        ["stable writes", "COMMIT"]
    }
}

impl RealClient for NfsBackend {
    fn facts(&self) -> StoreFacts {
        let Some(facts) = self.facts() else { return StoreFacts::default() };
        StoreFacts { is_new: self.is_new(), said: said(&facts), findings: findings(&facts) }
    }

    fn counters(&self) -> Counters {
        let stats = self.stats();
        Counters {
            connections: stats.connections,
            resent: stats.retransmissions,
            joined: stats.joined,
            garbage: stats.garbage,
        }
    }

    fn write_proof(&self) -> WriteProof {
        let stats = self.stats();
        let policy = self.facts().map_or(WritePolicy::FileSync, |facts| facts.write);
        let how = match (policy, stats.commits) {
            (WritePolicy::FileSync, _) => {
                "a FILE_SYNC write of the header was answered as such, and read back"
            }
            (WritePolicy::Unstable, 0) => {
                "an UNSTABLE write of the header was answered as FILE_SYNC: no COMMIT is needed"
            }
            (WritePolicy::Unstable, _) => {
                "an UNSTABLE write of the header was committed, with the verifier of the write"
            }
        };
        WriteProof {
            how: how.into(),
            epoch: self.verifier().map(u64::from_be_bytes),
            restarts: stats.verifier_changes,
        }
    }

    /// By nfsstat3, RFC 1813 section 2.6.
    fn advice(&self, error: &StoreError) -> Cow<'static, str> {
        let advice = match error {
            StoreError::Refused { code: 2 } => {
                "there is no such file, directory or export: check the path; in a directory that exists, `netswap mkswap` \
                 makes the file"
            }
            StoreError::Refused { code: 20..=22 } => {
                "the path is not that of a plain file in an export: check it"
            }
            StoreError::Denied { .. } => {
                "check the path; if there is such an export, let this host in at the server, or act as another user by \
                 uid= and gid= in the URL"
            }
            StoreError::Unregistered { .. } => UNREGISTERED,
            StoreError::NotServed { .. } => NOT_SERVED,
            StoreError::ReadOnly => "export it writable",
            StoreError::NoSpace => "make room on the server",
            StoreError::Garbage { .. } => "check that the port is that of the service",
            StoreError::TimedOut => "check that the server is not stopped",
            StoreError::Io => {
                "its disk, or what it keeps the file on, failed: see the server's log"
            }
            _ => "see the server's log",
        };
        advice.into()
    }
}

fn said(facts: &NfsFacts) -> Vec<Fact> {
    let (fs, file) = (&facts.fs, &facts.file);
    let programs = [
        ("NFS", proto::PROGRAM, proto::VERSION, facts.server.port()),
        ("MOUNT", mount::PROGRAM, mount::VERSION, facts.mount.port()),
    ];
    let in_words = programs.map(|(name, program, version, port)| {
        format!("{name} (program {program}) version {version} on port {port}")
    });
    let objects = programs.map(|(name, program, version, port)| {
        json!({ "name": name, "program": program, "version": version, "port": port })
    });
    let size = |bytes: u32| Bytes(bytes.into());
    let mode = format!("{:04o}", file.mode & 0o7777);
    vec![
        Fact { name: "programs", text: in_words.join(", "), value: json!(objects) },
        Fact {
            name: "limits",
            text: format!(
                "READ up to {}, best {}; WRITE up to {}, best {}; files up to {}",
                size(fs.rtmax),
                size(fs.rtpref),
                size(fs.wtmax),
                size(fs.wtpref),
                Bytes(fs.max_file_bytes),
            ),
            value: json!({
                "rtmax": fs.rtmax,
                "rtpref": fs.rtpref,
                "wtmax": fs.wtmax,
                "wtpref": fs.wtpref,
                "file_bytes_max": fs.max_file_bytes,
            }),
        },
        Fact {
            name: "file",
            text: format!("{}, mode {mode}, of user {}", Bytes(file.size), file.uid),
            value: json!({ "size": file.size, "used": file.used, "mode": mode, "uid": file.uid }),
        },
    ]
}

fn findings(facts: &NfsFacts) -> Vec<Finding> {
    let (size, used) = (facts.file.size, facts.file.used);
    let holes = if used >= size / PAGE_SIZE as u64 * PAGE_SIZE as u64 {
        let what = format!("none: {} used of {}", Bytes(used), Bytes(size));
        Finding::new("holes", Verdict::Good, what)
    } else {
        let what = format!(
            "{} used of {}: writing to a hole needs space that the server may not have; fill the file by \
             `netswap mkswap` (a file system that compresses says the same of a full file)",
            Bytes(used),
            Bytes(size)
        );
        Finding::new("holes", Verdict::Bad, what)
    };
    let mut findings = vec![holes];
    if !size.is_multiple_of(PAGE_SIZE as u64) {
        let what = format!("{size} bytes are no whole number of pages: the last is not used");
        findings.push(Finding::new("size", Verdict::Warning, what));
    }
    findings
}
