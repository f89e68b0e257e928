//! The sockets that a server listens on, and the loop that turns it: the same for every protocol.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use netswap::net::kernel::{
    Clock, ConnId, KernelConfig, KernelNet, KernelStats, ListenConfig, ListenerId,
};
use netswap::reserve::Time;

use super::super::Failure;
use super::super::signals::Stop;

/// A port that clients may come to, and the signals that end the command.
pub(super) struct Listening {
    net: KernelNet,
    listener: ListenerId,
    /// Index of the first connection that the listener gives out.
    first: usize,
    stop: Stop,
}

impl Listening {
    /// Listens at `addr` for `clients` connections at once.
    pub(super) fn start(addr: SocketAddr, clients: usize) -> Result<Listening, Failure> {
        let config = KernelConfig { listeners: 1, ..KernelConfig::new(clients) };
        let mut net = KernelNet::new(config).map_err(Failure::usage)?;
        let listener = net.listen(&ListenConfig::new(addr, clients)).map_err(Failure::usage)?;
        let first = net.listener_conns(listener).next().map_or(0, |id| id.index());
        let waker = net.waker();
        let stop = Stop::on_signals(move || waker.wake())
            .map_err(|error| Failure::usage(format_args!("cannot wait for signals: {error}")))?;
        Ok(Listening { net, listener, first, stop })
    }

    /// Where it listens.
    pub(super) fn addr(&self) -> SocketAddr {
        self.net.listener_addr(self.listener)
    }

    /// Its connections, in order.
    pub(super) fn conns(&self) -> Vec<ConnId> {
        self.net.listener_conns(self.listener).collect()
    }

    pub(super) fn stats(&self) -> KernelStats {
        self.net.stats()
    }

    /// Until a signal comes: `drive` turns a connection, which it gets with its place among those of the
    /// listener. Returns how long it ran, in nanoseconds.
    pub(super) fn turn(
        &mut self,
        mut drive: impl FnMut(&mut KernelNet, Time, ConnId, usize),
    ) -> Result<u64, Failure> {
        let clock = Clock::new();
        while !self.stop.is_asked() {
            self.net.wait(clock.now(), None).map_err(Failure::of_run)?;
            let now = clock.now();
            while let Some(id) = self.net.next_ready(now) {
                drive(&mut self.net, now, id, id.index() - self.first);
            }
        }
        Ok(clock.now().as_nanos())
    }
}

/// The host part of a URL for who connects from this machine.
pub(super) fn host_of(listens: SocketAddr) -> String {
    let ip = match listens.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::V4(Ipv4Addr::LOCALHOST),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::V6(Ipv6Addr::LOCALHOST),
        ip => ip,
    };
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// A path with everything escaped that means something in a URL.
pub(super) fn escape(path: &str) -> String {
    let plain = |c: char| c.is_ascii_graphic() && !matches!(c, '%' | '?' | '#' | '&');
    let mut out = String::with_capacity(path.len());
    for c in path.chars() {
        if plain(c) {
            out.push(c);
        } else {
            let mut bytes = [0; 4];
            for byte in c.encode_utf8(&mut bytes).bytes() {
                out.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    out
}
