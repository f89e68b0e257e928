//! Two hosts on a simulated link, and sessions that check every byte.
#![allow(dead_code, missing_docs, unreachable_pub)]

pub mod counting;
pub mod kernel;

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddr};

use netswap_net::headers::{EthHeader, Ipv4Header, fill_transport_checksum};
use netswap_net::{
    Action, Device, Disconnect, Flood, LinkConfig, MacAddr, NetReserves, SendVec, Session, SimLink,
    SimNic, Stack, StackConfig, StreamId,
};
use netswap_reserve::{Frame, FrameRun, Gfp, PagePool, PoolConfig, ReserveId, Span, Time};

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
    pub remote: SocketAddr,
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
        Client::to(server_addr(), total)
    }

    pub fn to(remote: SocketAddr, total: u64) -> Client {
        Client {
            remote,
            total,
            sent: 0,
            received: 0,
            connects: 0,
            ends: Vec::new(),
            same_port: true,
            want: Some(Action::Connect { remote, same_port: true }),
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
            self.want = Some(Action::Connect { remote: self.remote, same_port: self.same_port });
        }
    }
}

/// Sends back what it receives.
pub struct Echo {
    pub ends: Vec<Disconnect>,
    pub connects: u32,
    pub echoed: u64,
    pub read_at_most: usize,
    /// Takes what comes and sends nothing back.
    pub mute: bool,
    pub taken: u64,
    pub want: Option<Action>,
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
            mute: false,
            taken: 0,
            want: None,
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
        self.taken += n as u64;
        if !self.mute {
            self.pending.extend(&self.buf[..n]);
        }
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
        self.want.take()
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

/// The buffers of both ends, which outlive the world.
pub struct Memory {
    pub pool_a: PagePool,
    pub pool_b: PagePool,
    pub reserves: NetReserves,
    runs: [FrameRun; 4],
}

impl Memory {
    pub fn new(frames: u32) -> Memory {
        let (pool_a, reserves) = pool_with_reserves(frames, 80, 54);
        let mut config = PoolConfig::new(512);
        config.magazine = 0;
        let pool_b = PagePool::new(config);
        let ((a, b), (c, d)) = (buffers(&pool_a), buffers(&pool_b));
        Memory { pool_a, pool_b, reserves, runs: [a, b, c, d] }
    }
}

/// How a world is set up.
pub struct Setup {
    pub link: LinkConfig,
    pub seed: u64,
    pub host: StackConfig,
    pub far: StackConfig,
    pub tagged: bool,
}

impl Setup {
    pub fn new(seed: u64) -> Setup {
        Setup {
            link: LinkConfig::default(),
            seed,
            host: StackConfig::new(MAC_A, ADDR_A),
            far: StackConfig::new(MAC_B, ADDR_B),
            tagged: true,
        }
    }
}

/// The whole world: host A with a client, far side B with an echo server.
pub struct World<'b> {
    pub now: Time,
    pub a: Stack<'b, SimNic>,
    pub b: Stack<'b, SimNic>,
    pub link: SimLink,
    pub flood: Option<Flood>,
    pub client: Client,
    pub server: Echo,
    pub ca: StreamId,
    pub sb: StreamId,
    pub steps: u64,
}

impl<'b> World<'b> {
    pub fn new(memory: &'b mut Memory, setup: Setup, total: u64) -> World<'b> {
        let [a_rx, a_tx, b_rx, b_tx] = &mut memory.runs;
        let (pool_a, pool_b) = (memory.pool_a.clone(), memory.pool_b.clone());
        let reserves = Some(memory.reserves);
        let mut a = Stack::new(setup.host, nic(MAC_A), pool_a, reserves);
        let mut b = Stack::new(setup.far, nic(MAC_B), pool_b, None);
        let ca = a.add_stream(a_rx.bytes_mut(), a_tx.bytes_mut(), setup.tagged);
        let sb = b.add_stream(b_rx.bytes_mut(), b_tx.bytes_mut(), false);
        b.listen(sb, PORT);
        World {
            now: Time::ZERO,
            a,
            b,
            link: SimLink::new(setup.link, setup.seed),
            flood: None,
            client: Client::new(total),
            server: Echo::new(),
            ca,
            sb,
            steps: 0,
        }
    }

    /// Does all that is due now and goes on to the next event; `None` if there is none before `until`.
    pub fn step(&mut self, until: Time) -> Option<Time> {
        self.steps += 1;
        let now = self.now;
        if let Some(flood) = &mut self.flood {
            flood.poll(now, &mut self.link);
        }
        self.link.poll(now, self.a.device_mut(), self.b.device_mut());
        self.a.poll(now);
        self.b.poll(now);
        self.a.drive(now, self.ca, &mut self.client);
        self.b.drive(now, self.sb, &mut self.server);
        self.link.poll(now, self.a.device_mut(), self.b.device_mut());
        let next = [
            self.link.poll_deadline(),
            self.a.poll_deadline(now),
            self.b.poll_deadline(now),
            self.client.poll_deadline(),
            self.flood.as_ref().and_then(Flood::poll_deadline),
        ];
        let next = next.into_iter().flatten().min().unwrap_or(Time::MAX);
        if next > until {
            self.now = until;
            return None;
        }
        self.now = next.max(now + Span::from_nanos(1));
        Some(self.now)
    }

    /// Runs until the client is done, `until` at the latest; whether it is.
    pub fn run(&mut self, until: Time) -> bool {
        while !self.client.done() && self.step(until).is_some() {}
        assert_eq!(self.client.wrong, 0, "bytes arrive as sent");
        self.client.done()
    }

    /// Runs until `until`.
    pub fn run_until(&mut self, until: Time) {
        while self.step(until).is_some() {}
    }
}

pub fn ms(ms: u64) -> Time {
    Time::ZERO + Span::from_millis(ms)
}

/// Runs a client of `total` bytes against the echo server over `config` until it is done or `until`.
pub fn run_echo(
    config: LinkConfig,
    seed: u64,
    total: u64,
    until: Time,
    prepare: impl FnOnce(&mut SimLink),
) -> (Client, Echo, netswap_net::LinkStats, Time) {
    let mut memory = Memory::new(512);
    let setup = Setup { link: config, ..Setup::new(seed) };
    let mut world = World::new(&mut memory, setup, total);
    prepare(&mut world.link);
    world.run(until);
    assert_eq!(world.a.device().mtu(), 1500);
    (world.client, world.server, *world.link.stats(), world.now)
}

/// Takes every frame that an ordinary atomic allocation can have: free memory is at the atomic
/// watermark then.
pub fn exhaust(pool: &PagePool) -> Vec<Frame> {
    std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC).ok()).collect()
}

/// A TCP segment as the far side would send it to the host, with `payload` bytes.
pub fn segment_to_host(port: u16, seq: u32, ack: u32, payload: usize) -> Vec<u8> {
    let mut frame = vec![0; 14 + 40 + payload];
    EthHeader::emit(&mut frame, MAC_A, MAC_B, 0x0800);
    let ip = Ipv4Header {
        src: ADDR_B,
        dst: ADDR_A,
        protocol: 6,
        header_len: 20,
        total_len: 40 + payload,
        id: 0,
        more_fragments: false,
        fragment_offset: 0,
    };
    let packet = &mut frame[14..];
    ip.emit(packet);
    packet[20..22].copy_from_slice(&PORT.to_be_bytes());
    packet[22..24].copy_from_slice(&port.to_be_bytes());
    packet[24..28].copy_from_slice(&seq.to_be_bytes());
    packet[28..32].copy_from_slice(&ack.to_be_bytes());
    packet[32] = 0x50;
    packet[33] = 0x10;
    packet[34..36].copy_from_slice(&0x4000u16.to_be_bytes());
    fill_transport_checksum(packet);
    frame
}

/// An acknowledgement as the far side would send it to the host, with this window field.
pub fn ack_to_host(port: u16, seq: u32, ack: u32, window: u16) -> Vec<u8> {
    let mut frame = segment_to_host(port, seq, ack, 0);
    frame[14 + 34..14 + 36].copy_from_slice(&window.to_be_bytes());
    // The sum is taken over what is there: the old one has to go first.
    frame[14 + 36..14 + 38].fill(0);
    fill_transport_checksum(&mut frame[14..]);
    frame
}

/// A whole Ethernet frame with a UDP datagram for the host.
pub fn udp_frame(port: u16, payload: &[u8]) -> Vec<u8> {
    let mut frame = vec![0; 14 + 28 + payload.len()];
    EthHeader::emit(&mut frame, MAC_A, MAC_B, 0x0800);
    let ip = Ipv4Header {
        src: ADDR_C,
        dst: ADDR_A,
        protocol: 17,
        header_len: 20,
        total_len: 28 + payload.len(),
        id: 0,
        more_fragments: false,
        fragment_offset: 0,
    };
    ip.emit(&mut frame[14..]);
    frame[34..36].copy_from_slice(&999u16.to_be_bytes());
    frame[36..38].copy_from_slice(&port.to_be_bytes());
    frame[38..40].copy_from_slice(&((8 + payload.len()) as u16).to_be_bytes());
    frame[42..].copy_from_slice(payload);
    fill_transport_checksum(&mut frame[14..]);
    frame
}
