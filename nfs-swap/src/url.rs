//! The URL of a swap file, spelled as libnfs spells it:
//! `nfs://host[:port]/export/path/file[?name=value&...]`.
//!
//! | parameter | what |
//! |---|---|
//! | `version=3` | there is no other here |
//! | `nfsport=N` | port of the NFS service |
//! | `mountport=N` | port of the MOUNT service |
//! | `uid=N`, `gid=N` | who to act as |
//! | `write=file_sync` or `unstable` | the write policy; not in libnfs |
//!
//! A port behind the host is that of both services. A port that is not given is asked of the
//! portmapper (RFC 1833), which a server on an IPv6 address need not answer.
//!
//! Where the export ends and the path begins is not to be seen. As in libnfs, all but the last name is
//! mounted; if the server refuses that, ever shorter beginnings are. A character may be written as
//! `%` and two hexadecimal digits; `/` inside a name cannot.
//!
//! Resolving a host name is the driver's business, once, before swapping starts.

use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use netswap_net::host::{HostError, UrlHost, parse_port};

use crate::client::{NfsConfig, UnknownPolicy, WritePolicy};
use crate::mount::PATH_BYTES_MAX;
use crate::rpc::PORTMAP_PORT;

/// READs that may overtake a WRITE. Picked by eye: half of the requests that are outstanding by default.
const OVERTAKES_MAX: u32 = 16;
/// The parameters there are.
const PARAMETERS: &str = "version, nfsport, mountport, uid, gid, write";

/// A URL that was understood.
///
/// ```
/// use netswap_nfs::{NfsUrl, UrlHost, WritePolicy};
///
/// let url: NfsUrl = "nfs://[fe80::1]:2049/export/dir/area0?uid=65534&write=unstable".parse()?;
/// assert_eq!(url.host, UrlHost::Address("fe80::1".parse()?));
/// assert_eq!((&*url.export, &*url.file), ("/export/dir", "area0"));
/// assert_eq!((url.uid, url.write), (65534, WritePolicy::Unstable));
///
/// let error = "nfs://server/export/area0?rsize=4096".parse::<NfsUrl>().unwrap_err();
/// assert_eq!(
///     error.to_string(),
///     "unknown parameter \"rsize\" in an NFS URL; known: version, nfsport, mountport, uid, gid, write"
/// );
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NfsUrl {
    /// The server.
    pub host: UrlHost,
    /// Port of NFS, if it is known.
    pub nfs_port: Option<u16>,
    /// Port of MOUNT, if it is known.
    pub mount_port: Option<u16>,
    /// What is mounted first: all but the last name.
    pub export: String,
    /// The last name; empty in the URL of a directory.
    pub file: String,
    /// User to act as.
    pub uid: u32,
    /// Group to act as.
    pub gid: u32,
    /// The write policy.
    pub write: WritePolicy,
}

/// Why a URL is not one of a swap file. Each says what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It does not begin with `nfs://`.
    #[error("{url:?} is no NFS URL: write nfs://host/export/file")]
    Scheme {
        /// The whole.
        url: String,
    },
    /// There is no host, or none that can be one.
    #[error(
        "{host:?} is no host: write a name, an IPv4 address, or an IPv6 address in brackets, and no user"
    )]
    Host {
        /// What stands there.
        host: String,
    },
    /// A port is not one.
    #[error("{what} is {value:?}: write a number from 1 to 65535")]
    Port {
        /// Which.
        what: &'static str,
        /// What stands there.
        value: String,
    },
    /// The path names no file in an export.
    #[error("{path:?} names no file in an export: write /export/file")]
    NoFile {
        /// The path.
        path: String,
    },
    /// The path is longer than MOUNT takes.
    #[error("the path has {len} bytes, the most is {PATH_BYTES_MAX}")]
    PathTooLong {
        /// Its bytes.
        len: usize,
    },
    /// What stands behind a `%` is no character of a path.
    #[error(
        "%{digits} in {path:?}: write two hexadecimal digits of a character that is not 0 or /"
    )]
    Escape {
        /// What stands there.
        digits: String,
        /// The path.
        path: String,
    },
    /// A parameter is not known.
    #[error("unknown parameter {name:?} in an NFS URL; known: {PARAMETERS}")]
    UnknownParameter {
        /// Its name.
        name: String,
    },
    /// A parameter is there twice.
    #[error("parameter {name:?} is given twice")]
    Twice {
        /// Its name.
        name: String,
    },
    /// Another version.
    #[error("version={value}: only NFS version 3 is there, write version=3 or leave it out")]
    Version {
        /// What stands there.
        value: String,
    },
    /// A user or group is no number.
    #[error("{name}={value}: write a number, not a name")]
    Id {
        /// `uid` or `gid`.
        name: &'static str,
        /// What stands there.
        value: String,
    },
    /// The write policy is not known.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
}

fn port(what: &'static str, value: &str) -> Result<u16, UrlError> {
    parse_port(value).map_err(|_| UrlError::Port { what, value: value.into() })
}

fn id(name: &'static str, value: &str) -> Result<u32, UrlError> {
    value.parse().map_err(|_| UrlError::Id { name, value: value.into() })
}

fn host(authority: &str) -> Result<(UrlHost, Option<u16>), UrlError> {
    UrlHost::parse(authority).map_err(|error| match error {
        HostError::Host => UrlError::Host { host: authority.into() },
        HostError::Port { value } => UrlError::Port { what: "the port", value },
    })
}

/// A path without its escapes.
fn unescape(path: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(path.len());
    let mut left = path;
    while let Some((before, after)) = left.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let digits = after.get(..2).unwrap_or(after);
        let error = || UrlError::Escape { digits: digits.into(), path: path.into() };
        let is_hex = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(digits, 16).map_err(|_| error())?;
        if !is_hex || matches!(byte, 0 | b'/') {
            return Err(error());
        }
        bytes.push(byte);
        left = &after[2..];
    }
    bytes.extend_from_slice(left.as_bytes());
    String::from_utf8(bytes).map_err(|_| UrlError::NoFile { path: path.into() })
}

impl FromStr for NfsUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<NfsUrl, UrlError> {
        parse(url, PathKind::File)
    }
}

/// What the path of a URL names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PathKind {
    File,
    Directory,
}

impl PathKind {
    /// Splits a path into what is mounted and the name in it; `None` if it is no path of this kind.
    fn split(self, path: &str) -> Option<(&str, &str)> {
        match self {
            PathKind::File => path
                .rsplit_once('/')
                .filter(|(_, file)| !file.is_empty() && !matches!(*file, "." | "..")),
            PathKind::Directory => {
                (path.is_empty() || path.starts_with('/')).then(|| (path.trim_end_matches('/'), ""))
            }
        }
    }
}

fn parse(url: &str, kind: PathKind) -> Result<NfsUrl, UrlError> {
    let rest = url.strip_prefix("nfs://").ok_or_else(|| UrlError::Scheme { url: url.into() })?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    let (host, both) = host(authority)?;
    let path = unescape(path)?;
    let no_file = || UrlError::NoFile { path: path.clone() };
    if path.len() > PATH_BYTES_MAX {
        return Err(UrlError::PathTooLong { len: path.len() });
    }
    if path.contains('\0') {
        return Err(no_file());
    }
    let (export, file) = kind.split(&path).ok_or_else(no_file)?;
    let export = if export.is_empty() { "/" } else { export };
    let mut parsed = NfsUrl {
        host,
        nfs_port: both,
        mount_port: both,
        export: export.into(),
        file: file.into(),
        uid: 0,
        gid: 0,
        write: WritePolicy::default(),
    };
    let mut seen: Vec<&str> = Vec::new();
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (name, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        if seen.contains(&name) {
            return Err(UrlError::Twice { name: name.into() });
        }
        seen.push(name);
        match name {
            "version" if value == "3" => {}
            "version" => return Err(UrlError::Version { value: value.into() }),
            "nfsport" => parsed.nfs_port = Some(port("nfsport", value)?),
            "mountport" => parsed.mount_port = Some(port("mountport", value)?),
            "uid" => parsed.uid = id("uid", value)?,
            "gid" => parsed.gid = id("gid", value)?,
            "write" => parsed.write = value.parse()?,
            _ => return Err(UrlError::UnknownParameter { name: name.into() }),
        }
    }
    Ok(parsed)
}

impl fmt::Display for NfsUrl {
    /// As a name for messages: with the port of NFS if that is given, without other parameters.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "nfs://{}", self.host)?;
        if let Some(port) = self.nfs_port {
            write!(f, ":{port}")?;
        }
        write!(f, "{}/{}", self.export.trim_end_matches('/'), self.file)
    }
}

impl NfsUrl {
    /// Reads the URL of a directory: all of its path is the export, and [`NfsUrl::file`] is empty.
    ///
    /// ```
    /// use netswap_nfs::NfsUrl;
    ///
    /// let url = NfsUrl::parse_directory("nfs://server/swap/?uid=1000")?;
    /// assert_eq!((&*url.export, &*url.file, url.uid), ("/swap", "", 1000));
    /// # Ok::<(), netswap_nfs::UrlError>(())
    /// ```
    ///
    /// # Errors
    /// As parsing the URL of a file.
    pub fn parse_directory(url: &str) -> Result<NfsUrl, UrlError> {
        parse(url, PathKind::Directory)
    }

    /// The client's configuration, for a host that has this address.
    pub fn config(&self, address: IpAddr) -> NfsConfig {
        let at = |port: Option<u16>| SocketAddr::new(address, port.unwrap_or(0));
        let is_known = self.nfs_port.is_some() && self.mount_port.is_some();
        let same = is_known && self.nfs_port == self.mount_port;
        NfsConfig {
            mount: (!same).then(|| at(self.mount_port)),
            portmap: (!is_known).then(|| SocketAddr::new(address, PORTMAP_PORT)),
            search_export: true,
            overtakes_max: OVERTAKES_MAX,
            merge: true,
            uid: self.uid,
            gid: self.gid,
            write: self.write,
            label: self.to_string(),
            ..NfsConfig::new(at(self.nfs_port), &self.export, &self.file)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> NfsUrl {
        url.parse().unwrap()
    }

    #[test]
    fn hosts_and_ports_of_every_kind() {
        let name = |name: &str| UrlHost::Name(name.into());
        let address = |text: &str| UrlHost::Address(text.parse().unwrap());
        for (url, host, ports) in [
            ("nfs://server/e/f", name("server"), (None, None)),
            ("nfs://a-b.example:7/e/f", name("a-b.example"), (Some(7), Some(7))),
            ("nfs://10.0.0.2/e/f?nfsport=2049", address("10.0.0.2"), (Some(2049), None)),
            ("nfs://[::1]/e/f?mountport=1", address("::1"), (None, Some(1))),
            ("nfs://[::1]:5/e/f?mountport=6", address("::1"), (Some(5), Some(6))),
        ] {
            let parsed = parse(url);
            assert_eq!((parsed.host, (parsed.nfs_port, parsed.mount_port)), (host, ports), "{url}");
        }
    }

    #[test]
    fn the_last_name_is_the_file() {
        for (url, export, file) in [
            ("nfs://s/file", "/", "file"),
            ("nfs://s/a/b/file?version=3", "/a/b", "file"),
            ("nfs://s//a//file", "//a/", "file"),
            ("nfs://s/a%20b/%3f", "/a b", "?"),
        ] {
            let parsed = parse(url);
            assert_eq!((&*parsed.export, &*parsed.file), (export, file), "{url}");
        }
    }

    #[test]
    fn what_is_no_url_says_what_to_write() {
        let long = format!("nfs://s/{}/f", "a".repeat(1100));
        for (url, hint) in [
            ("http://s/e/f", "write nfs://host/export/file"),
            ("nfs://", "is no host"),
            ("nfs:///e/f", "is no host"),
            ("nfs://user@s/e/f", "and no user"),
            ("nfs://::1/e/f", "in brackets"),
            ("nfs://[::1/e/f", "in brackets"),
            ("nfs://[::1]x/e/f", "in brackets"),
            ("nfs://s:0/e/f", "the port is \"0\": write a number from 1 to 65535"),
            ("nfs://s:+5/e/f", "from 1 to 65535"),
            ("nfs://s/e/f?nfsport=65536", "nfsport is \"65536\""),
            ("nfs://s", "write /export/file"),
            ("nfs://s/e/", "write /export/file"),
            ("nfs://s/e/..", "write /export/file"),
            ("nfs://s/e%2ff/g", "not 0 or /"),
            ("nfs://s/e%", "two hexadecimal digits"),
            ("nfs://s/e%ä/f", "two hexadecimal digits"),
            ("nfs://s/e/f?version=4", "only NFS version 3"),
            ("nfs://s/e/f?uid=root", "uid=root: write a number"),
            ("nfs://s/e/f?write=fast", "known: file_sync, unstable"),
            ("nfs://s/e/f?uid=1&uid=2", "given twice"),
            ("nfs://s/e/f?readahead", "known: version, nfsport"),
            (&long, "the most is 1024"),
        ] {
            let error = url.parse::<NfsUrl>().unwrap_err().to_string();
            assert!(error.contains(hint), "{url}: {error}");
        }
    }

    #[test]
    fn a_portmapper_is_asked_for_what_is_not_given() {
        let address: IpAddr = "10.0.0.2".parse().unwrap();
        let of = |url| {
            let config = parse(url).config(address);
            (config.server.port(), config.mount.map(|at| at.port()), config.portmap.is_some())
        };
        assert_eq!(of("nfs://s:2049/e/f"), (2049, None, false));
        assert_eq!(of("nfs://s/e/f?nfsport=1&mountport=2"), (1, Some(2), false));
        assert_eq!(of("nfs://s/e/f?nfsport=1"), (1, Some(0), true));
        assert_eq!(of("nfs://s/e/f"), (0, Some(0), true));
        assert_eq!(parse("nfs://s/e/f").config(address).label, "nfs://s/e/f");
    }
}
