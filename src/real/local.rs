//! Whether a server runs on this very host: then it and its client can wait for each other for ever, as
//! both need the memory that the client is to free.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};

/// Whether `ip` is a loopback address, or one of this host's own.
///
/// The kernel is asked: on the way to an address of its own it uses that very address as the source
/// (connecting a datagram socket looks the route up and sends nothing). A server in another network
/// namespace of this machine, in a container for one, is not found.
///
/// ```
/// use netswap::real::is_this_host;
///
/// assert!(is_this_host("127.0.0.1".parse().unwrap()));
/// assert!(is_this_host("::1".parse().unwrap()));
/// // TEST-NET-1 (RFC 5737) is nobody's.
/// assert!(!is_this_host("192.0.2.1".parse().unwrap()));
/// ```
pub fn is_this_host(ip: IpAddr) -> bool {
    let ip = ip.to_canonical();
    if ip.is_loopback() || ip.is_unspecified() {
        return true;
    }
    let any: IpAddr = match ip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    // Any port will do: nothing is sent to it.
    let source = UdpSocket::bind(SocketAddr::new(any, 0)).and_then(|socket| {
        socket.connect(SocketAddr::new(ip, 9))?;
        socket.local_addr()
    });
    source.is_ok_and(|source| source.ip() == ip)
}
