//! The URL of a logical unit, spelled as libiscsi spells it:
//! `iscsi://[user[%password]@]host[:port]/target/lun[?name=value&...]`.
//!
//! | parameter | what |
//! |---|---|
//! | `target_user=NAME`, `target_password=SECRET` | what the target has to prove itself with |
//! | `header_digest=none`, `prefer` or `crc32c` | the digest of headers: never, if the target wants, always |
//! | `data_digest=none`, `prefer` or `crc32c` | the digest of data |
//! | `initiator=NAME` | this side's iSCSI name; not in libiscsi |
//! | `password_file=PATH`, `target_password_file=PATH` | where the secrets are; not in libiscsi |
//! | `write=fua` or `sync` | the write policy; not in libiscsi |
//! | `portals=ADDR[:port],...` | other portals of the same unit, by address, for when this one is lost; not in libiscsi |
//! | `discard=on` or `off` | whether slots that became free are given back by UNMAP, if the unit takes it: off by default; not in libiscsi |
//!
//! As in libiscsi, what is behind the first `?` are the parameters, what is before the first `@` is
//! the user, and the first `%` or else `:` in it begins the password. A character of a target's or an
//! initiator's name may be written as `%` and two hexadecimal digits; users, passwords and paths are
//! taken as they stand. So a password with `?`, `@` or `&` in it cannot be written into a URL: it goes
//! into a file or the environment, which is better for each of them anyway ([`crate::credentials`]).
//! What libiscsi overlooks (an unknown parameter, a user without a password) is an error here.
//!
//! No error and no `Display` or `Debug` of this module shows a secret, also where a URL is so wrong
//! that a secret stands in another place.

use std::fmt::{self, Write};
use std::net::{IpAddr, SocketAddr};
use std::str::FromStr;

use netswap_net::host::{HostError, UrlHost};

use crate::auth::{ChapConfig, Entropy, Secret, is_user};
use crate::initiator::{Digest, InitiatorConfig, UnknownPolicy, WritePolicy};

/// Where iSCSI targets listen (RFC 7143 section 14.3).
pub const ISCSI_PORT: u16 = 3260;
/// Longest iSCSI name in bytes (RFC 7143 section 4.2.7.1).
pub const NAME_BYTES_MAX: usize = 223;
/// Longest URL in bytes: names, users, secrets and paths, each at its longest, fit.
pub const URL_BYTES_MAX: usize = 4096;
/// Highest LUN: what flat space addressing has room for.
pub const LUN_MAX: u16 = (1 << 14) - 1;

/// The parameters there are.
const PARAMETERS: &str = "target_user, target_password, header_digest, data_digest, initiator, \
                          password_file, target_password_file, write, portals, discard";
/// Stands for what may be a secret.
const HIDDEN: &str = "(hidden)";

/// Where a secret is.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum SecretSource {
    /// In the environment, if it is needed.
    #[default]
    Environment,
    /// In this file.
    File(String),
    /// In the URL.
    Given(Secret),
}

/// What a URL says about a portal and how to log in there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortalUrl {
    /// The server.
    pub host: UrlHost,
    /// Its port.
    pub port: u16,
    /// Who the initiator is for CHAP; without it there is none.
    pub user: Option<String>,
    /// The secret of `user`.
    pub password: SecretSource,
    /// Who the target is for CHAP; then it has to prove itself too.
    pub target_user: Option<String>,
    /// The secret of `target_user`.
    pub target_password: SecretSource,
    /// The digest of headers.
    pub header_digest: Digest,
    /// The digest of data.
    pub data_digest: Digest,
    /// This side's iSCSI name, if it is not to be the usual one.
    pub initiator: Option<String>,
}

/// A URL of a logical unit that was understood.
///
/// ```
/// use netswap_iscsi::{Digest, IscsiUrl, WritePolicy};
///
/// let url: IscsiUrl = "iscsi://me%hunter2hunter2@[fe80::1]/iqn.2026-01.test:disk/1\
///                      ?header_digest=crc32c&write=sync".parse()?;
/// assert_eq!((&*url.target, url.lun), ("iqn.2026-01.test:disk", 1));
/// assert_eq!((url.portal.port, url.portal.header_digest), (3260, Digest::Crc32c));
/// assert_eq!(url.write, WritePolicy::SyncCache);
/// assert_eq!(url.to_string(), "iscsi://[fe80::1]/iqn.2026-01.test:disk/1");
/// assert!(!format!("{url:?}").contains("hunter2"));
///
/// let error = "iscsi://server/iqn.2026-01.test:disk/1?timeout=3".parse::<IscsiUrl>().unwrap_err();
/// assert!(error.to_string().starts_with("unknown parameter \"timeout\" in an iSCSI URL; known: "));
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IscsiUrl {
    /// Where, and as whom.
    pub portal: PortalUrl,
    /// The target's iSCSI name.
    pub target: String,
    /// Logical unit, at most [`LUN_MAX`].
    pub lun: u16,
    /// The write policy.
    pub write: WritePolicy,
    /// Other portals that lead to the same unit.
    pub portals: Vec<SocketAddr>,
    /// Whether slots that became free are given back by UNMAP.
    pub discard: bool,
}

/// A URL of what can be listed: `iscsi://host[:port]`, whose targets are, or
/// `iscsi://host[:port]/target`, whose logical units are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct IscsiListUrl {
    /// Where, and as whom.
    pub portal: PortalUrl,
    /// The target's iSCSI name, if there is one.
    pub target: Option<String>,
}

/// Why a URL is not one of a logical unit. Each says what to write instead, and shows no secret.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UrlError {
    /// It does not begin with `iscsi://`.
    #[error("no iSCSI URL: write iscsi://host/target/lun")]
    Scheme,
    /// The whole is too long.
    #[error("the URL has {len} bytes, the most is {URL_BYTES_MAX}")]
    TooLong {
        /// Its bytes.
        len: usize,
    },
    /// There is no host, or none that can be one.
    #[error(
        "{host:?} is no host: write a name, an IPv4 address, or an IPv6 address in brackets; a \
         password with ?, @ or & goes into a file or the environment"
    )]
    Host {
        /// What stands there, if it cannot be part of a secret.
        host: String,
    },
    /// The port is not one.
    #[error("the port is {value:?}: write a number from 1 to 65535")]
    Port {
        /// What stands there.
        value: String,
    },
    /// The path names no logical unit.
    #[error("{path:?} names no logical unit: write /target/lun")]
    NoUnit {
        /// The path.
        path: String,
    },
    /// The path names more than a target.
    #[error("{path:?} names no target: write iscsi://host or iscsi://host/target")]
    NoTarget {
        /// The path.
        path: String,
    },
    /// The LUN is not one.
    #[error("the LUN is {value:?}: write a number from 0 to {LUN_MAX}")]
    Lun {
        /// What stands there.
        value: String,
    },
    /// An iSCSI name that cannot be one.
    #[error(
        "{name:?} is no iSCSI name: write 1 to {NAME_BYTES_MAX} bytes without spaces, as in \
         iqn.2026-01.org.example:disk"
    )]
    Name {
        /// What stands there.
        name: String,
    },
    /// What stands behind a `%` in a name is no character.
    #[error("%{digits} in {name:?}: write two hexadecimal digits of a character")]
    Escape {
        /// What stands there.
        digits: String,
        /// The name.
        name: String,
    },
    /// The name of a user that cannot be one.
    #[error("the {what} is empty, longer than 255 bytes, or has control characters")]
    User {
        /// `user` or `target_user`.
        what: &'static str,
    },
    /// A password that cannot be one.
    #[error("the {what} is empty or longer than 255 bytes")]
    Password {
        /// `password` or `target_password`.
        what: &'static str,
    },
    /// Secrets, or a user of the target, without the user that they go with.
    #[error(
        "{what} without {needs}: a target proves itself only to a user who does; write user@host"
    )]
    Alone {
        /// What is there.
        what: &'static str,
        /// What is missing.
        needs: &'static str,
    },
    /// A secret in the URL and in a file.
    #[error("{what} is in the URL and in a file: leave one out")]
    TwoPlaces {
        /// `password` or `target_password`.
        what: &'static str,
    },
    /// A parameter is not known.
    #[error("unknown parameter {name:?} in an iSCSI URL; known: {PARAMETERS}")]
    UnknownParameter {
        /// Its name, if it cannot be part of a secret.
        name: String,
    },
    /// A parameter is there twice.
    #[error("parameter {name:?} is given twice")]
    Twice {
        /// Its name.
        name: &'static str,
    },
    /// A digest is not known.
    #[error("{name}={value}: known: none, prefer, crc32c")]
    Digest {
        /// Which.
        name: &'static str,
        /// What stands there.
        value: String,
    },
    /// Another portal that cannot be one.
    #[error(
        "portals={value}: write addresses with their ports, as in portals=10.0.0.3,10.0.0.4:3261; a name would have to \
         be looked up where memory is short"
    )]
    Portal {
        /// What stands there.
        value: String,
    },
    /// Whether to discard is neither.
    #[error("discard={value}: known: on, off")]
    Discard {
        /// What stands there.
        value: String,
    },
    /// The write policy is not known.
    #[error(transparent)]
    Policy(#[from] UnknownPolicy),
}

/// The parameters by name. The place in it is the bit that says whether one was seen.
const NAMES: [&str; 10] = [
    "target_user",
    "target_password",
    "header_digest",
    "data_digest",
    "initiator",
    "password_file",
    "target_password_file",
    "write",
    "portals",
    "discard",
];

fn secret(what: &'static str, value: &str) -> Result<SecretSource, UrlError> {
    let secret = Secret::new(value.as_bytes()).ok_or(UrlError::Password { what })?;
    Ok(SecretSource::Given(secret))
}

fn file(what: &'static str, before: &SecretSource, path: &str) -> Result<SecretSource, UrlError> {
    match before {
        SecretSource::Environment => Ok(SecretSource::File(path.into())),
        _ => Err(UrlError::TwoPlaces { what }),
    }
}

fn user(what: &'static str, value: &str) -> Result<Option<String>, UrlError> {
    if is_user(value) { Ok(Some(value.into())) } else { Err(UrlError::User { what }) }
}

/// An iSCSI name without its escapes.
fn name(text: &str) -> Result<String, UrlError> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut left = text;
    while let Some((before, after)) = left.split_once('%') {
        bytes.extend_from_slice(before.as_bytes());
        let digits = after.get(..2).unwrap_or(after);
        let error = || UrlError::Escape { digits: digits.into(), name: text.into() };
        let is_hex = digits.len() == 2 && digits.bytes().all(|byte| byte.is_ascii_hexdigit());
        let byte = u8::from_str_radix(digits, 16).ok().filter(|_| is_hex).ok_or_else(error)?;
        bytes.push(byte);
        left = &after[2..];
    }
    bytes.extend_from_slice(left.as_bytes());
    let name = String::from_utf8(bytes).map_err(|_| UrlError::Name { name: text.into() })?;
    let fits = (1..=NAME_BYTES_MAX).contains(&name.len());
    let blank = |c: char| c.is_control() || c.is_whitespace();
    if fits && !name.contains(blank) { Ok(name) } else { Err(UrlError::Name { name }) }
}

/// A URL in its parts; the path begins with `/` if there is one.
struct Parts<'a> {
    portal: PortalUrl,
    path: &'a str,
    rest: Rest,
}

/// The parameters of a unit alone.
#[derive(Default)]
struct Rest {
    write: Option<WritePolicy>,
    portals: Vec<SocketAddr>,
    discard: Option<bool>,
}

fn parse(url: &str) -> Result<Parts<'_>, UrlError> {
    if url.len() > URL_BYTES_MAX {
        return Err(UrlError::TooLong { len: url.len() });
    }
    let rest = url.strip_prefix("iscsi://").ok_or(UrlError::Scheme)?;
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let (who, rest) = match rest.split_once('@') {
        Some((who, rest)) => (Some(who), rest),
        None => (None, rest),
    };
    let (authority, path) = rest.split_at(rest.find('/').unwrap_or(rest.len()));
    // The rest of a password that was cut at the wrong place must not be shown.
    let shown = |text: &str| match authority.contains(['%', '@']) || who.is_some() {
        true => HIDDEN.to_string(),
        false => text.to_string(),
    };
    let (host, port) = UrlHost::parse(authority).map_err(|error| match error {
        HostError::Host => UrlError::Host { host: shown(authority) },
        HostError::Port { value } => UrlError::Port { value: shown(&value) },
    })?;
    let mut portal = PortalUrl {
        host,
        port: port.unwrap_or(ISCSI_PORT),
        user: None,
        password: SecretSource::Environment,
        target_user: None,
        target_password: SecretSource::Environment,
        header_digest: Digest::default(),
        data_digest: Digest::default(),
        initiator: None,
    };
    if let Some(who) = who {
        let (name, password) = match who.split_once('%').or_else(|| who.split_once(':')) {
            Some((name, password)) => (name, secret("password", password)?),
            None => (who, SecretSource::Environment),
        };
        portal.user = user("user", name)?;
        portal.password = password;
    }
    let rest = parameters(&mut portal, query)?;
    let alone = |what, needs| Err(UrlError::Alone { what, needs });
    if portal.user.is_none() && portal.password != SecretSource::Environment {
        return alone("password_file", "a user");
    }
    if portal.target_user.is_none() && portal.target_password != SecretSource::Environment {
        return alone("a password of the target", "target_user");
    }
    if portal.target_user.is_some() && portal.user.is_none() {
        return alone("target_user", "a user");
    }
    Ok(Parts { portal, path, rest })
}

fn parameters(portal: &mut PortalUrl, query: &str) -> Result<Rest, UrlError> {
    let mut rest = Rest::default();
    let mut seen = 0u16;
    for parameter in query.split('&').filter(|parameter| !parameter.is_empty()) {
        let (key, value) = parameter.split_once('=').unwrap_or((parameter, ""));
        let Some(at) = NAMES.iter().position(|known| *known == key) else {
            // Without a value, or behind a password, it may be the rest of one that had a & in it.
            let is_safe = parameter.contains('=') && seen & 2 == 0;
            let name = if is_safe { key } else { HIDDEN };
            return Err(UrlError::UnknownParameter { name: name.into() });
        };
        if seen & (1 << at) != 0 {
            return Err(UrlError::Twice { name: NAMES[at] });
        }
        seen |= 1 << at;
        match key {
            "target_user" => portal.target_user = user("target_user", value)?,
            "target_password" => {
                if portal.target_password != SecretSource::Environment {
                    return Err(UrlError::TwoPlaces { what: "target_password" });
                }
                portal.target_password = secret("target_password", value)?;
            }
            "header_digest" => portal.header_digest = digest("header_digest", value)?,
            "data_digest" => portal.data_digest = digest("data_digest", value)?,
            "initiator" => portal.initiator = Some(name(value)?),
            "password_file" => portal.password = file("password", &portal.password, value)?,
            "target_password_file" => {
                portal.target_password = file("target_password", &portal.target_password, value)?;
            }
            "portals" => rest.portals = portals(value)?,
            "discard" => {
                rest.discard = Some(match value {
                    "on" => true,
                    "off" => false,
                    _ => return Err(UrlError::Discard { value: value.into() }),
                });
            }
            _ => rest.write = Some(value.parse()?),
        }
    }
    Ok(rest)
}

/// Addresses, each with or without a port.
fn portals(list: &str) -> Result<Vec<SocketAddr>, UrlError> {
    let one = |value: &str| {
        let with_port = value.parse().ok();
        let bare = value.strip_prefix('[').and_then(|v| v.strip_suffix(']')).unwrap_or(value);
        with_port
            .or_else(|| Some(SocketAddr::new(bare.parse().ok()?, ISCSI_PORT)))
            .ok_or_else(|| UrlError::Portal { value: value.into() })
    };
    list.split(',').map(one).collect()
}

fn digest(name: &'static str, value: &str) -> Result<Digest, UrlError> {
    value.parse().map_err(|_| UrlError::Digest { name, value: value.into() })
}

impl FromStr for IscsiUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<IscsiUrl, UrlError> {
        let Parts { portal, path, rest } = parse(url)?;
        let names = path.strip_prefix('/').and_then(|path| path.split_once('/'));
        let (target, lun) = names
            .filter(|(target, lun)| !target.is_empty() && !lun.is_empty())
            .ok_or_else(|| UrlError::NoUnit { path: path.into() })?;
        let is_number = lun.bytes().all(|byte| byte.is_ascii_digit());
        let number = lun.parse().ok().filter(|lun| *lun <= LUN_MAX && is_number);
        let lun = number.ok_or_else(|| UrlError::Lun { value: lun.into() })?;
        let Rest { write, portals, discard } = rest;
        let (target, write) = (name(target)?, write.unwrap_or_default());
        let discard = discard.unwrap_or_default();
        Ok(IscsiUrl { portal, target, lun, write, portals, discard })
    }
}

impl FromStr for IscsiListUrl {
    type Err = UrlError;

    fn from_str(url: &str) -> Result<IscsiListUrl, UrlError> {
        let Parts { portal, path, rest } = parse(url)?;
        let of_unit = [
            ("write", rest.write.is_some()),
            ("portals", !rest.portals.is_empty()),
            ("discard", rest.discard.is_some()),
        ];
        if let Some((name, _)) = of_unit.iter().find(|(_, is_there)| *is_there) {
            return Err(UrlError::UnknownParameter { name: (*name).into() });
        }
        let target = match path.trim_start_matches('/').trim_end_matches('/') {
            "" => None,
            target if target.contains('/') => {
                return Err(UrlError::NoTarget { path: path.into() });
            }
            target => Some(name(target)?),
        };
        Ok(IscsiListUrl { portal, target })
    }
}

impl fmt::Display for PortalUrl {
    /// Without user and parameters, as a name for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "iscsi://{}", self.host)?;
        if self.port == ISCSI_PORT { Ok(()) } else { write!(f, ":{}", self.port) }
    }
}

/// A name in a URL: what would be read as the end of a part of it is escaped (RFC 3986 section 2.1).
struct Escaped<'a>(&'a str);

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for c in self.0.chars() {
            match c {
                '%' | '/' | '?' | '@' | '#' => write!(f, "%{:02x}", u32::from(c))?,
                _ => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

impl fmt::Display for IscsiUrl {
    /// Without user and parameters, as a name for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}/{}", self.portal, Escaped(&self.target), self.lun)
    }
}

impl fmt::Display for IscsiListUrl {
    /// Without user and parameters, as a name for messages.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.target {
            Some(target) => write!(f, "{}/{}", self.portal, Escaped(target)),
            None => self.portal.fmt(f),
        }
    }
}

impl IscsiUrl {
    /// The initiator's configuration, for a host that has this address. `chap` is what
    /// [`PortalUrl::credentials`] has found; `entropy` is for the challenges to the target.
    pub fn config(
        &self,
        address: IpAddr,
        chap: Option<ChapConfig>,
        entropy: Entropy,
    ) -> InitiatorConfig {
        let at = SocketAddr::new(address, self.portal.port);
        let mut config = InitiatorConfig::new(at, &self.target, self.lun);
        if let Some(initiator) = &self.portal.initiator {
            config.initiator.clone_from(initiator);
        }
        config.label = self.to_string();
        config.chap = chap;
        config.entropy = entropy;
        config.header_digest = self.portal.header_digest;
        config.data_digest = self.portal.data_digest;
        config.write_policy = self.write;
        config.portals.clone_from(&self.portals);
        // Only a unit that says who it is is the same behind another portal.
        config.examine |= !self.portals.is_empty();
        // And only one that says so takes UNMAP.
        config.discard = self.discard;
        config.examine |= self.discard;
        config
    }
}
