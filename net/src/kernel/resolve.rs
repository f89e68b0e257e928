//! Host names: looked up once, at start. A look-up opens sockets and allocates, so it has no place
//! where memory is short: reconnecting uses what is kept here.

use std::fmt;
use std::io;
use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use arrayvec::ArrayVec;

/// Most addresses of a host that are kept. Picked by eye: a server with more is a farm.
pub const HOST_ADDRS_MAX: usize = 16;

/// Why a host has no address.
#[derive(Debug, thiserror::Error)]
pub enum ResolveError {
    /// The look-up failed.
    #[error("cannot look up '{host}': {source}")]
    Lookup {
        /// The host as it was given.
        host: String,
        /// What the system said.
        source: io::Error,
    },
    /// The look-up gave nothing.
    #[error("'{host}' has no address")]
    NoAddress {
        /// The host as it was given.
        host: String,
    },
}

/// The addresses of a host, in the order in which they are to be tried.
///
/// ```
/// use netswap_net::kernel::HostAddrs;
///
/// let addrs = HostAddrs::resolve("[::1]", 2049)?;
/// assert_eq!(addrs.first(), "[::1]:2049".parse().unwrap());
/// # Ok::<(), netswap_net::kernel::ResolveError>(())
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct HostAddrs {
    /// Never empty, no address twice.
    addrs: ArrayVec<SocketAddr, HOST_ADDRS_MAX>,
}

impl HostAddrs {
    /// Looks up `host`: a name, an IPv4 address, or an IPv6 address with or without brackets. Keeps
    /// the first [`HOST_ADDRS_MAX`] addresses in the system's order (RFC 6724).
    ///
    /// # Errors
    /// When the look-up fails or gives nothing.
    pub fn resolve(host: &str, port: u16) -> Result<HostAddrs, ResolveError> {
        let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let found = (bare, port)
            .to_socket_addrs()
            .map_err(|source| ResolveError::Lookup { host: host.into(), source })?;
        HostAddrs::collect(found).ok_or_else(|| ResolveError::NoAddress { host: host.into() })
    }

    /// These addresses; `None` if there are none. Only the first [`HOST_ADDRS_MAX`] are kept.
    pub fn collect(addrs: impl IntoIterator<Item = SocketAddr>) -> Option<HostAddrs> {
        let mut kept = ArrayVec::new();
        for addr in addrs {
            if !kept.is_full() && !kept.contains(&addr) {
                kept.push(addr);
            }
        }
        (!kept.is_empty()).then_some(HostAddrs { addrs: kept })
    }

    /// The one to be tried first.
    pub fn first(&self) -> SocketAddr {
        self.addrs[0]
    }

    /// How many there are: at least 1.
    #[expect(clippy::len_without_is_empty, reason = "it is never empty")]
    pub fn len(&self) -> usize {
        self.addrs.len()
    }

    /// All of them, in order.
    pub fn iter(&self) -> impl Iterator<Item = SocketAddr> + '_ {
        self.addrs.iter().copied()
    }

    /// Whether `ip` is one of them.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.addrs.iter().any(|addr| addr.ip() == ip)
    }

    /// Address `index`, counted round, with another port.
    pub(super) fn nth(&self, index: usize, port: u16) -> SocketAddr {
        let mut addr = self.addrs[index % self.addrs.len()];
        addr.set_port(port);
        addr
    }
}

impl From<SocketAddr> for HostAddrs {
    fn from(addr: SocketAddr) -> HostAddrs {
        HostAddrs { addrs: ArrayVec::from_iter([addr]) }
    }
}

impl fmt::Display for HostAddrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, addr) in self.addrs.iter().enumerate() {
            write!(f, "{}{addr}", if i == 0 { "" } else { ", " })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_taken_as_they_are_with_and_without_brackets() {
        assert_eq!(
            HostAddrs::resolve("127.0.0.1", 7).unwrap().first(),
            "127.0.0.1:7".parse().unwrap()
        );
        for host in ["::1", "[::1]"] {
            assert_eq!(HostAddrs::resolve(host, 7).unwrap().first(), "[::1]:7".parse().unwrap());
        }
    }

    #[test]
    fn no_address_is_kept_twice_and_none_beyond_the_bound() {
        let many = (0..40u16).map(|i| SocketAddr::from(([10, 0, 0, (i / 2) as u8], 1)));
        let addrs = HostAddrs::collect(many).unwrap();
        assert_eq!(addrs.len(), HOST_ADDRS_MAX);
        assert_eq!(addrs.iter().nth(1).unwrap(), "10.0.0.1:1".parse().unwrap());
        assert_eq!(HostAddrs::collect([]), None);
    }

    #[test]
    fn a_name_that_is_none_is_a_typed_error() {
        let error = HostAddrs::resolve("no such host", 1).unwrap_err();
        assert!(error.to_string().contains("no such host"), "{error}");
    }
}
