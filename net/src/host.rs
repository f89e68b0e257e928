//! Where a URL says that a server is: a name or an address, and perhaps a port.
//!
//! The same for every kind of store. Looking a name up is the driver's business
//! ([`crate::kernel::HostAddrs`]).

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Longest host name in bytes (RFC 1035 section 2.3.4, as text).
pub const HOST_BYTES_MAX: usize = 253;

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum UrlHost {
    /// By name, which is to be resolved.
    Name(String),
    /// By address.
    Address(IpAddr),
}

/// Why something is no `host[:port]`.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    /// There is no host, or none that can be one.
    #[error("no name, no IPv4 address, and no IPv6 address in brackets")]
    Host,
    /// The port is not one.
    #[error("{value:?} is no port: write a number from 1 to 65535")]
    Port {
        /// What stands there.
        value: String,
    },
}

impl UrlHost {
    /// Reads `host[:port]`; an IPv6 address stands in brackets.
    ///
    /// ```
    /// use netswap_net::UrlHost;
    ///
    /// let (host, port) = UrlHost::parse("[fe80::1]:3260")?;
    /// assert_eq!((host.to_string(), port), ("[fe80::1]".into(), Some(3260)));
    /// # Ok::<(), netswap_net::HostError>(())
    /// ```
    ///
    /// # Errors
    /// If it is something else.
    pub fn parse(authority: &str) -> Result<(UrlHost, Option<u16>), HostError> {
        if let Some(rest) = authority.strip_prefix('[') {
            let (address, rest) = rest.split_once(']').ok_or(HostError::Host)?;
            let address: Ipv6Addr = address.parse().map_err(|_| HostError::Host)?;
            let port = match rest.strip_prefix(':') {
                Some(value) => Some(parse_port(value)?),
                None if rest.is_empty() => None,
                None => return Err(HostError::Host),
            };
            return Ok((UrlHost::Address(address.into()), port));
        }
        let (name, port) = match authority.split_once(':') {
            Some((name, value)) if !value.contains(':') => (name, Some(parse_port(value)?)),
            Some(_) => return Err(HostError::Host),
            None => (authority, None),
        };
        if let Ok(address) = name.parse::<Ipv4Addr>() {
            return Ok((UrlHost::Address(address.into()), port));
        }
        let of_a_name =
            |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
        let fits = (1..=HOST_BYTES_MAX).contains(&name.len()) && name.bytes().all(of_a_name);
        fits.then(|| (UrlHost::Name(name.into()), port)).ok_or(HostError::Host)
    }
}

/// Reads a port: a number from 1 to 65535 in digits alone.
///
/// # Errors
/// If it is something else.
pub fn parse_port(value: &str) -> Result<u16, HostError> {
    let is_number = value.bytes().all(|byte| byte.is_ascii_digit());
    let port = value.parse().ok().filter(|port| *port > 0 && is_number);
    port.ok_or_else(|| HostError::Port { value: value.into() })
}

impl fmt::Display for UrlHost {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            UrlHost::Name(name) => f.write_str(name),
            UrlHost::Address(IpAddr::V6(address)) => write!(f, "[{address}]"),
            UrlHost::Address(address) => address.fmt(f),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_of_every_kind() {
        let address = |text: &str| UrlHost::Address(text.parse().unwrap());
        for (text, host, port) in [
            ("a-b.example:7", UrlHost::Name("a-b.example".into()), Some(7)),
            ("10.0.0.2", address("10.0.0.2"), None),
            ("[::1]", address("::1"), None),
            ("[::1]:5", address("::1"), Some(5)),
        ] {
            assert_eq!(UrlHost::parse(text), Ok((host, port)), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        let long = "a".repeat(HOST_BYTES_MAX + 1);
        for text in ["", ":5", "::1", "[::1", "[::1]x", "a@b", "a%b", "a:1:2", &long] {
            assert_eq!(UrlHost::parse(text), Err(HostError::Host), "{text}");
        }
        for text in ["a:0", "a:+5", "a:65536", "[::1]:", "a:"] {
            assert!(matches!(UrlHost::parse(text), Err(HostError::Port { .. })), "{text}");
        }
    }
}
