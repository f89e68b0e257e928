//! Two hosts on a simulated link, and sessions that check every byte.
#![allow(dead_code, missing_docs, unreachable_pub)]

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use netswap_net::{
    Action, Device, Disconnect, Flood, LinkConfig, MacAddr, NetReserves, SendVec, Session, SimLink,
    SimNic, Stack, StackConfig, StreamId,
};
use netswap_reserve::{FrameRun, PagePool, PoolConfig, ReserveId, Span, Time};

pub const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
pub const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
pub const ADDR_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
pub const ADDR_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
pub const ADDR_C: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
pub const PORT: u16 = 2049;

/// The byte at `at` of every test stream.
pub fn byte_at(at: u64) -> u8 {
    (at.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56) as u8
}

pub fn server_addr() -> SocketAddr {
    SocketAddr::from((ADDR_B, PORT))
}

/// Sends `total` bytes and checks that each comes back; connects again after a loss of the
/// connection and starts over.
pub struct Client {
    pub total: u64,
    pub sent: u64,
    pub received: u64,
    pub connects: u32,
    pub ends: Vec<Disconnect>,
    pub same_port: bool,
    pub want: Option<Action>,
    pub retry_at: Option<Time>,
    pub connected: bool,
    pub reconnect: bool,
    pub wrong: u64,
    out: Vec<u8>,
    buf: Vec<u8>,
}

impl Client {
    pub fn new(total: u64) -> Client {
        Client {
            total,
            sent: 0,
            received: 0,
            connects: 0,
            ends: Vec::new(),
            same_port: true,
            want: Some(Action::Connect { remote: server_addr(), same_port: true }),
            retry_at: None,
            connected: false,
            reconnect: true,
            wrong: 0,
            out: Vec::with_capacity(8192),
            buf: vec![0; 8192],
        }
    }

    pub fn done(&self) -> bool {
        self.received == self.total
    }
}

impl Session for Client {
    fn handle_connected(&mut self, _now: Time) {
        self.connects += 1;
        self.connected = true;
        (self.sent, self.received) = (0, 0);
        self.out.clear();
    }

    fn handle_disconnected(&mut self, now: Time, why: Disconnect) {
        self.ends.push(why);
        self.connected = false;
        if self.reconnect {
            self.retry_at = Some(now + Span::from_millis(10));
        }
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        &mut self.buf
    }

    fn handle_received(&mut self, _now: Time, n: usize) {
        for byte in &self.buf[..n] {
            self.wrong += u64::from(*byte != byte_at(self.received));
            self.received += 1;
        }
    }

    fn poll_send<'a>(&'a mut self, _now: Time, out: &mut SendVec<'a>) {
        let want = (self.total - self.sent).min(4096) as usize;
        while self.out.len() < want {
            self.out.push(byte_at(self.sent + self.out.len() as u64));
        }
        if want > 0 && self.connected {
            // Two pieces, so that gathering is exercised.
            out.push(&self.out[..want / 2]);
            out.push(&self.out[want / 2..want]);
        }
    }

    fn handle_sent(&mut self, _now: Time, n: usize) {
        self.sent += n as u64;
        self.out.drain(..n);
    }

    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        self.want.take()
    }

    fn poll_deadline(&self) -> Option<Time> {
        self.retry_at
    }

    fn handle_deadline(&mut self, now: Time) {
        if self.retry_at.is_some_and(|at| at <= now) {
            self.retry_at = None;
            self.want = Some(Action::Connect { remote: server_addr(), same_port: self.same_port });
        }
    }
}

/// Sends back what it receives.
pub struct Echo {
    pub ends: Vec<Disconnect>,
    pub connects: u32,
    pub echoed: u64,
    pub read_at_most: usize,
    pending: VecDeque<u8>,
    buf: Vec<u8>,
}

impl Echo {
    pub fn new() -> Echo {
        Echo {
            ends: Vec::new(),
            connects: 0,
            echoed: 0,
            read_at_most: usize::MAX,
            pending: VecDeque::with_capacity(1 << 17),
            buf: vec![0; 8192],
        }
    }
}

impl Session for Echo {
    fn handle_connected(&mut self, _now: Time) {
        self.connects += 1;
        self.pending.clear();
    }

    fn handle_disconnected(&mut self, _now: Time, why: Disconnect) {
        self.ends.push(why);
        self.pending.clear();
    }

    fn recv_buffer(&mut self) -> &mut [u8] {
        let room = (1usize << 16).saturating_sub(self.pending.len());
        let n = self.buf.len().min(room).min(self.read_at_most);
        &mut self.buf[..n]
    }

    fn handle_received(&mut self, _now: Time, n: usize) {
        self.pending.extend(&self.buf[..n]);
    }

    fn poll_send<'a>(&'a mut self, _now: Time, out: &mut SendVec<'a>) {
        let (a, b) = self.pending.as_slices();
        for part in [a, b] {
            if !part.is_empty() {
                out.push(part);
            }
        }
    }

    fn handle_sent(&mut self, _now: Time, n: usize) {
        self.echoed += n as u64;
        self.pending.drain(..n);
    }

    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        None
    }

    fn poll_deadline(&self) -> Option<Time> {
        None
    }

    fn handle_deadline(&mut self, _now: Time) {}
}

/// A pool with the network's reserve nodes.
pub fn pool_with_reserves(frames: u32, rx: u32, tx: u32) -> (PagePool, NetReserves) {
    let mut config = PoolConfig::new(frames);
    config.magazine = 0;
    let pool = PagePool::new(config);
    let net = pool.add_reserve(ReserveId::ROOT, "net", 0);
    let rx = pool.add_reserve(net, "net.rx", rx);
    let tx = pool.add_reserve(net, "net.tx", tx);
    (pool, NetReserves { net, rx, tx })
}

/// Buffers for a stream, set aside.
pub fn buffers(pool: &PagePool) -> (FrameRun, FrameRun) {
    (pool.set_aside(16).unwrap(), pool.set_aside(16).unwrap())
}

pub fn nic(mac: MacAddr) -> SimNic {
    SimNic::new(mac, 1500, 64, 64)
}

/// The whole world: host A with a client, far side B with an echo server.
pub struct World<'b> {
    pub now: Time,
    pub a: Stack<'b, SimNic>,
    pub b: Stack<'b, SimNic>,
    pub link: SimLink,
    pub flood: Option<Flood>,
    pub steps: u64,
}

impl<'b> World<'b> {
    /// Moves everything to the next event; `None` if there is none before `until`.
    pub fn step(
        &mut self,
        until: Time,
        client: &mut Client,
        ca: StreamId,
        server: &mut Echo,
        sb: StreamId,
    ) -> Option<Time> {
        self.steps += 1;
        let now = self.now;
        if let Some(flood) = &mut self.flood {
            flood.poll(now, &mut self.link);
        }
        self.link.poll(now, self.a.device_mut(), self.b.device_mut());
        self.a.poll(now);
        self.b.poll(now);
        self.a.drive(now, ca, client);
        self.b.drive(now, sb, server);
        self.link.poll(now, self.a.device_mut(), self.b.device_mut());
        let next = [
            self.link.poll_deadline(),
            self.a.poll_deadline(now),
            self.b.poll_deadline(now),
            client.poll_deadline(),
            self.flood.as_ref().and_then(Flood::poll_deadline),
        ];
        let next = next.into_iter().flatten().min()?;
        if next > until {
            self.now = until;
            return None;
        }
        self.now = next.max(now + Span::from_nanos(1));
        Some(self.now)
    }
}

/// Runs a client of `total` bytes against the echo server over `config` until it is done or `until`.
pub fn run_echo(
    config: LinkConfig,
    seed: u64,
    total: u64,
    until: Time,
    prepare: impl FnOnce(&mut SimLink),
) -> (Client, Echo, netswap_net::LinkStats, Time) {
    let (pool_a, reserves) = pool_with_reserves(512, 80, 64);
    let pool_b = PagePool::new(PoolConfig::new(512));
    let ((mut a_rx, mut a_tx), (mut b_rx, mut b_tx)) = (buffers(&pool_a), buffers(&pool_b));
    let mut link = SimLink::new(config, seed);
    prepare(&mut link);
    let mut world = World {
        now: Time::ZERO,
        a: Stack::new(StackConfig::new(MAC_A, ADDR_A), nic(MAC_A), pool_a, Some(reserves)),
        b: Stack::new(StackConfig::new(MAC_B, ADDR_B), nic(MAC_B), pool_b, None),
        link,
        flood: None,
        steps: 0,
    };
    let ca = world.a.add_stream(a_rx.bytes_mut(), a_tx.bytes_mut(), true);
    let sb = world.b.add_stream(b_rx.bytes_mut(), b_tx.bytes_mut(), false);
    world.b.listen(sb, PORT);
    let (mut client, mut server) = (Client::new(total), Echo::new());
    while !client.done() && world.step(until, &mut client, ca, &mut server, sb).is_some() {}
    assert_eq!(client.wrong, 0, "bytes arrive as sent");
    assert_eq!(world.a.device().mtu(), 1500);
    (client, server, *world.link.stats(), world.now)
}
