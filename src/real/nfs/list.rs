//! A directory of an export, listed over sockets of the kernel. Where the export ends is not to be seen in
//! a URL, so ever shorter beginnings of its path are mounted, as for a swap file.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use netswap_net::kernel::{HostAddrs, MemoryLock, ProtectConfig};
use netswap_nfs::proto::{self, Fattr3, Nfsstat3};
use netswap_nfs::rpc::{self, AcceptStat, AuthSys, ReplyStat};
use netswap_nfs::xdr::{Decoder, Encoder};
use netswap_nfs::{ListError, ListEvent, ListerConfig, NfsLister, NfsUrl, mount};
use netswap_reserve::{AllocError, Frame, Gfp, PagePool, PoolConfig, Span};

use serde_json::json;

use crate::real::list::{Entry, ListFailure, ListOptions, Listing, printable};
use crate::real::pump::Pump;

use super::{NOT_SERVED, UNREGISTERED};

/// Pages that a reply may fill.
const REPLY_PAGES: usize = 8;
/// Beginnings of the path that are mounted, at most: as the client's.
const SEARCHES_MAX: usize = 16;
/// Longest reply of a portmapper that is read: a header, with the longest verifier, and a number.
const PORT_REPLY_MAX: usize = 512;

/// An entry of a directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listed {
    /// Its name: any bytes but `/` and NUL.
    pub name: Vec<u8>,
    /// Number of the file in its file system.
    pub fileid: u64,
    /// Its attributes, if the server cares to tell.
    pub attrs: Option<Fattr3>,
}

/// Why a directory was not listed.
#[derive(Debug, thiserror::Error)]
pub enum NfsListFailure {
    /// The portmapper does not say where the service is.
    #[error(
        "{server} does not say where {service} is: {why}: give nfsport= and mountport= in the URL"
    )]
    Port {
        /// The portmapper.
        server: SocketAddr,
        /// `NFS` or `MOUNT`.
        service: &'static str,
        /// What went wrong.
        why: io::Error,
    },
    /// The portmapper does not know the service.
    #[error("the portmapper at {server} does not know {service} version {version}: {UNREGISTERED}")]
    Unregistered {
        /// The portmapper.
        server: SocketAddr,
        /// `NFS` or `MOUNT`.
        service: &'static str,
        /// The version that is needed.
        version: u32,
    },
    /// The path is that of a file.
    #[error("{server} is no directory: list the one that holds it")]
    NotDirectory {
        /// The path as it was given.
        server: String,
    },
    /// The server refused, or what it sent is no list.
    #[error("{server}: {error}{}", hint(.error))]
    Refused {
        /// The directory.
        server: String,
        /// What became of it.
        error: ListError,
    },
}

impl NfsListFailure {
    /// Whether nobody answered, or nobody is known to serve it, as opposed to a server that says no.
    pub fn is_unreachable(&self) -> bool {
        match self {
            NfsListFailure::Port { .. } | NfsListFailure::Unregistered { .. } => true,
            NfsListFailure::Refused { error, .. } => *error == ListError::TimedOut,
            NfsListFailure::NotDirectory { .. } => false,
        }
    }
}

fn hint(error: &ListError) -> String {
    let hint = match error {
        ListError::Refused { code: 2 } => "there is no such directory or export: check the path",
        ListError::Refused { code: 1 | 13 } => {
            "check the path; if there is such an export, let this host in at the server, or act as another user by \
             uid= and gid= in the URL"
        }
        ListError::NotServed { .. } => NOT_SERVED,
        ListError::TimedOut => {
            "one of its services has answered: check the port of the other, by nfsport= and mountport= in the URL, and \
             that the server is not stopped"
        }
        ListError::Garbage { .. } => "check that the port is that of the service",
        ListError::BadPath => "a name has at most 255 bytes",
        _ => return String::new(),
    };
    format!(": {hint}")
}

/// Lists the directory of `url` ([`NfsUrl::parse_directory`]), in the server's order, without `.` and `..`.
///
/// ```no_run
/// use netswap::nfs::NfsUrl;
/// use netswap::real::ListOptions;
/// use netswap::real::nfs::list_directory;
///
/// let url = NfsUrl::parse_directory("nfs://server/export/dir")?;
/// for entry in list_directory(&url, &ListOptions::default())? {
///     println!("{}", String::from_utf8_lossy(&entry.name));
/// }
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
///
/// # Errors
/// When nobody answers, the server refuses, or what it sends is no list.
pub fn list_directory(url: &NfsUrl, options: &ListOptions) -> Result<Vec<Listed>, ListFailure> {
    let host = url.host.to_string();
    let addrs = HostAddrs::resolve(&host, 0)?;
    let address = addrs.first().ip();
    let server = SocketAddr::new(address, options.portmap);
    let port = |known: Option<u16>, service, program, version| match known {
        Some(port) => Ok(port),
        None => match ask_port(server, options.within, program, version) {
            Ok(Some(port)) => Ok(port),
            Ok(None) => Err(NfsListFailure::Unregistered { server, service, version }),
            Err(why) => Err(NfsListFailure::Port { server, service, why }),
        },
    };
    let nfs = port(url.nfs_port, "NFS", proto::PROGRAM, proto::VERSION)?;
    let mount = port(url.mount_port, "MOUNT", mount::PROGRAM, mount::VERSION)?;
    let pool = PagePool::new(PoolConfig::new(64));
    let path = format!("{}/{}", url.export.trim_end_matches('/'), url.file);
    let names: Vec<&str> = path.split('/').filter(|name| !name.is_empty()).collect();
    let mut refused = None;
    for mounted in (0..=names.len()).rev().take(SEARCHES_MAX) {
        let (export, rest) = names.split_at(mounted);
        let config = ListerConfig {
            mount: (mount != nfs).then(|| SocketAddr::new(address, mount)),
            uid: url.uid,
            gid: url.gid,
            entries_max: options.entries_max,
            give_up_after: options.within,
            request_timeout: options.within,
            ..ListerConfig::new(
                SocketAddr::new(address, nfs),
                &format!("/{}", export.join("/")),
                &rest.join("/"),
            )
        };
        let pages: Result<Vec<Frame>, AllocError> =
            (0..REPLY_PAGES).map(|_| pool.alloc(Gfp::KERNEL)).collect();
        let error = match list_once(addrs.clone(), config, pages?, url)? {
            Ok(entries) => return Ok(entries),
            Err(error) => error,
        };
        let ListError::Refused { code } = error else {
            return Err(NfsListFailure::Refused { server: url.to_string(), error }.into());
        };
        if code == Nfsstat3::NotDir as u32 && !rest.is_empty() {
            return Err(NfsListFailure::NotDirectory { server: url.to_string() }.into());
        }
        // If nothing of it is an export, it is the whole that is reported.
        refused.get_or_insert(error);
        let is_no_export =
            [Nfsstat3::NoEnt, Nfsstat3::Acces, Nfsstat3::Perm, Nfsstat3::NotDir, Nfsstat3::Inval]
                .iter()
                .any(|status| *status as u32 == code);
        if !is_no_export {
            break;
        }
    }
    let error = refused.unwrap_or(ListError::BadPath);
    Err(NfsListFailure::Refused { server: url.to_string(), error }.into())
}

/// What a directory has, for people and programs, by name.
pub(super) fn listing(url: &NfsUrl, options: &ListOptions) -> Result<Listing, ListFailure> {
    let mut listed = list_directory(url, options)?;
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let entries = listed.iter().map(|entry| Entry { cells: cells(entry), value: object(entry) });
    let columns = &["mode", "uid", "gid", "size", "used", "name"];
    Ok(Listing { columns, entries: entries.collect() })
}

/// Names of `ftype3` (RFC 1813 section 2.6), and their letters.
const TYPES: [(&str, char); 8] = [
    ("unknown", '?'),
    ("file", '-'),
    ("directory", 'd'),
    ("block device", 'b'),
    ("character device", 'c'),
    ("symbolic link", 'l'),
    ("socket", 's'),
    ("fifo", 'p'),
];

/// As `ls -l` writes them.
fn permissions(attrs: &Fattr3) -> String {
    let letter = TYPES.get(attrs.ftype as usize).map_or('?', |(_, letter)| *letter);
    let bits = (0..9).map(|i| match attrs.mode & (0o400 >> i) {
        0 => '-',
        _ => ['r', 'w', 'x'][i % 3],
    });
    std::iter::once(letter).chain(bits).collect()
}

fn cells(entry: &Listed) -> Vec<String> {
    let name = printable(&entry.name);
    match &entry.attrs {
        Some(attrs) => vec![
            permissions(attrs),
            attrs.uid.to_string(),
            attrs.gid.to_string(),
            attrs.size.to_string(),
            attrs.used.to_string(),
            name,
        ],
        None => ["?"; 5].into_iter().map(String::from).chain([name]).collect(),
    }
}

fn object(entry: &Listed) -> serde_json::Value {
    let mut object = json!({
        "name": String::from_utf8_lossy(&entry.name),
        "fileid": entry.fileid,
    });
    if let Some(attrs) = &entry.attrs {
        let kind = TYPES.get(attrs.ftype as usize).map_or("unknown", |(name, _)| name);
        object["type"] = json!(kind);
        object["mode"] = json!(attrs.mode);
        object["nlink"] = json!(attrs.nlink);
        object["uid"] = json!(attrs.uid);
        object["gid"] = json!(attrs.gid);
        object["size"] = json!(attrs.size);
        object["used"] = json!(attrs.used);
        object["mtime_s"] = json!(attrs.mtime.0);
    }
    object
}

/// One export and one path in it: the outer error ends the search.
fn list_once(
    addrs: HostAddrs,
    config: ListerConfig,
    pages: Vec<Frame>,
    url: &NfsUrl,
) -> Result<Result<Vec<Listed>, ListError>, ListFailure> {
    let protect =
        ProtectConfig { memory_lock: MemoryLock::Never, io_flusher: false, socket_memory: 0 };
    let mut pump = Pump::new(Some(addrs), &protect)?;
    let mut lister = NfsLister::new(config, pages, pump.now());
    let mut entries = Vec::new();
    loop {
        // The lister has deadlines of its own, and ends by them.
        pump.turn(None, &mut lister)?;
        let (mut taken, replied) = (false, lister.stats().replies > 0);
        while let Some(event) = lister.poll_event(pump.now()) {
            taken = true;
            match event {
                ListEvent::Entry(entry) if matches!(entry.name, b"." | b"..") => {}
                ListEvent::Entry(entry) => entries.push(Listed {
                    name: entry.name.to_vec(),
                    fileid: entry.fileid,
                    attrs: entry.attrs,
                }),
                ListEvent::Restarted => entries.clear(),
                ListEvent::End(Err(ListError::TimedOut)) if !replied => {
                    return Err(ListFailure::Unreachable { server: url.to_string() });
                }
                ListEvent::End(end) => return Ok(end.map(|()| entries)),
            }
        }
        if taken {
            // What follows is asked for now that there is room for it.
            pump.touch();
        }
    }
}

/// Asks a portmapper for the TCP port of a service (RFC 1833 section 3). `None` if it knows none.
fn ask_port(
    portmap: SocketAddr,
    within: Span,
    program: u32,
    version: u32,
) -> io::Result<Option<u16>> {
    let limit = Duration::from_nanos(within.as_nanos());
    let ends = Instant::now() + limit;
    let mut stream = TcpStream::connect_timeout(&portmap, limit)?;
    stream.set_write_timeout(Some(limit))?;
    let mut bytes = [0; PORT_REPLY_MAX];
    let mut out = Encoder::new(&mut bytes[rpc::MARK_BYTES..]);
    let auth = AuthSys { stamp: 0, machine: String::new(), uid: 0, gid: 0 };
    let call = (rpc::PORTMAP, rpc::PORTMAP_VERSION, rpc::PORTMAP_GETPORT);
    let xid = std::process::id();
    let encoded = rpc::encode_call(&mut out, xid, call, &auth).and_then(|()| {
        [program, version, rpc::PORTMAP_TCP, 0].into_iter().try_for_each(|word| out.u32(word))
    });
    encoded.map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let len = out.len();
    bytes[..rpc::MARK_BYTES].copy_from_slice(&(rpc::LAST_FRAGMENT | len as u32).to_be_bytes());
    stream.write_all(&bytes[..rpc::MARK_BYTES + len])?;

    let bad = |what: &str| io::Error::new(io::ErrorKind::InvalidData, what.to_string());
    let mut mark = [0; rpc::MARK_BYTES];
    read_until(&mut stream, &mut mark, ends)?;
    let mark = u32::from_be_bytes(mark);
    let len = (mark & !rpc::LAST_FRAGMENT) as usize;
    if mark & rpc::LAST_FRAGMENT == 0 || len > bytes.len() {
        return Err(bad("a reply of a length that is none"));
    }
    read_until(&mut stream, &mut bytes[..len], ends)?;
    let mut dec = Decoder::new(&bytes[..len]);
    let reply = rpc::decode_reply(&mut dec).map_err(|error| bad(error.what()))?;
    if reply != (xid, ReplyStat::Accepted(AcceptStat::Success)) {
        return Err(bad("the call was refused"));
    }
    match dec.u32().map(u16::try_from) {
        Ok(Ok(0)) => Ok(None),
        Ok(Ok(port)) => Ok(Some(port)),
        _ => Err(bad("a port that is none")),
    }
}

/// Fills `bytes`, however slowly they come, until `ends`.
fn read_until(stream: &mut TcpStream, bytes: &mut [u8], ends: Instant) -> io::Result<()> {
    let mut filled = 0;
    while filled < bytes.len() {
        let left = ends.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        stream.set_read_timeout(Some(left))?;
        match stream.read(&mut bytes[filled..]) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => filled += n,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}
