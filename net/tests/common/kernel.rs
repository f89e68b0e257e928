//! Clients and echoing servers on sockets of the kernel, all in one loop on the loopback.

use std::net::SocketAddr;

use netswap_net::kernel::{
    Clock, ConnConfig, ConnId, KernelConfig, KernelNet, ListenConfig, ListenerId, SocketOptions,
};
use netswap_reserve::{Span, Time};
use rustix::net::{AddressFamily, SocketType, bind, socket};

use super::{Client, Echo};

/// Sessions on one loop. Echo `i` serves slot `i` of the listener; clients come behind.
pub struct Real {
    pub net: KernelNet,
    pub clock: Clock,
    pub listener: ListenerId,
    pub echoes: Vec<Echo>,
    pub clients: Vec<Client>,
    /// A hang is an error after this.
    pub patience: Span,
}

impl Real {
    pub fn new(addr: &str, served: usize, clients: usize, total: u64) -> Real {
        Real::with(addr, served, clients, total, ConnConfig::default(), SocketOptions::default())
    }

    pub fn with(
        addr: &str,
        served: usize,
        clients: usize,
        total: u64,
        conn: ConnConfig,
        server: SocketOptions,
    ) -> Real {
        let mut config = KernelConfig::new(served + clients);
        config.listeners = 1;
        config.turn_bytes = 16 << 10;
        let mut net = KernelNet::new(config).unwrap();
        let listen = ListenConfig { socket: server, ..ListenConfig::new(any_port(addr), served) };
        let listener = net.listen(&listen).unwrap();
        let remote = net.listener_addr(listener);
        for _ in 0..clients {
            net.add_conn(conn.clone()).unwrap();
        }
        Real {
            net,
            clock: Clock::new(),
            listener,
            echoes: (0..served).map(|_| Echo::new()).collect(),
            clients: (0..clients).map(|_| Client::to(remote, total)).collect(),
            patience: Span::from_secs(20),
        }
    }

    /// The slot of client `i`.
    pub fn client(&self, i: usize) -> ConnId {
        self.net.conn_at(self.echoes.len() + i)
    }

    /// The slot of echo `i`.
    pub fn echo(&self, i: usize) -> ConnId {
        self.net.conn_at(i)
    }

    pub fn drive(&mut self, now: Time, id: ConnId) {
        match id.index().checked_sub(self.echoes.len()) {
            Some(i) => self.net.drive(now, id, &mut self.clients[i]),
            None => self.net.drive(now, id, &mut self.echoes[id.index()]),
        }
    }

    /// One turn of the loop; `false` if nothing happened for too long.
    pub fn turn(&mut self) -> bool {
        let now = self.clock.now();
        let until = now + self.patience;
        self.net.wait(now, Some(until)).unwrap();
        let now = self.clock.now();
        while let Some(id) = self.net.next_ready(now) {
            self.drive(now, id);
        }
        now < until
    }

    pub fn run(&mut self, mut done: impl FnMut(&mut Real) -> bool) {
        while !done(self) {
            assert!(self.turn(), "stuck: {:?}", self.net);
        }
    }

    pub fn all_done(&self) -> bool {
        self.clients.iter().all(Client::done)
    }

    /// Has echo `i` do `want` in the next turn.
    pub fn order(&mut self, i: usize, want: netswap_net::Action) {
        self.echoes[i].want = Some(want);
        self.net.make_ready(self.echo(i));
    }
}

/// An address with a port of the system's choice.
pub fn any_port(addr: &str) -> SocketAddr {
    SocketAddr::new(addr.parse().unwrap(), 0)
}

/// A port of the loopback on which nobody listens: it is taken for the rest of the process, so that none of the other
/// tests gets it.
pub fn nobody() -> SocketAddr {
    let socket = socket(AddressFamily::INET, SocketType::STREAM, None).unwrap();
    bind(&socket, &any_port("127.0.0.1")).unwrap();
    let taken = std::net::TcpListener::from(socket);
    let addr = taken.local_addr().unwrap();
    std::mem::forget(taken);
    addr
}
