//! The packet layer: dropping an emergency packet, and pages through two stacks.
//!
//! *Drop*: with free memory at the floor a buffer is taken from the reserve, charged, found to hold a
//! datagram for an untagged socket among 1,024, dropped and freed. *hot*: the same frame over and over.
//! *cold*: 2,048 frames (8 MiB) in turn. *burst*: 32 packets at once. To beat: 25 ns hot, 40 cold; in
//! bursts of 32, 15 and 25 a packet. *ring*: the same in the stack itself, a card that is refilled and
//! hands over what it received 32 packets at a time, with a ring of 32 slots (hot) and 2,048 (cold).
//!
//! *Pages*: a tagged stream carries pages of 4 KiB from one stack to another over a simulated link of
//! 1 Gbit/s, checksums and all, in virtual time, with the work of both ends and of the link counted.
//!
//! *Flood*: what a packet costs the simulated link that arrives where no buffer is.

use std::collections::VecDeque;
use std::hint::black_box;
use std::net::{Ipv4Addr, SocketAddr};

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use netswap_net::filter::{Filter, touch};
use netswap_net::headers::{
    ETH_LEN, ETHERTYPE_IPV4, EthHeader, IPV4_LEN, Ipv4Header, PROTO_UDP, UDP_LEN,
    fill_transport_checksum,
};
use netswap_net::packet::HEADROOM;
use netswap_net::table::{Entry, Key};
use netswap_net::{
    Action, Device, Disconnect, Flood, FloodConfig, LinkConfig, MacAddr, NetReserves, PacketBuf,
    SendVec, Session, SimLink, SimNic, Stack, StackConfig,
};
use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, PoolConfig, ReserveId, Span, Time};

const MAC_A: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xa]);
const MAC_B: MacAddr = MacAddr([2, 0, 0, 0, 0, 0xb]);
const ADDR_A: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const ADDR_B: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const SOCKETS: u16 = 1024;
const COLD: u32 = 2048;
const BURST: usize = 32;

/// A datagram of 200 bytes for `port`.
fn datagram(port: u16) -> Vec<u8> {
    let mut frame = vec![0; ETH_LEN + IPV4_LEN + UDP_LEN + 200];
    EthHeader::emit(&mut frame, MAC_A, MAC_B, ETHERTYPE_IPV4);
    let ip = Ipv4Header {
        src: ADDR_B,
        dst: ADDR_A,
        protocol: PROTO_UDP,
        header_len: IPV4_LEN,
        total_len: frame.len() - ETH_LEN,
        id: 0,
        more_fragments: false,
        fragment_offset: 0,
    };
    let packet = &mut frame[ETH_LEN..];
    ip.emit(packet);
    packet[IPV4_LEN..IPV4_LEN + 2].copy_from_slice(&9u16.to_be_bytes());
    packet[IPV4_LEN + 2..IPV4_LEN + 4].copy_from_slice(&port.to_be_bytes());
    packet[IPV4_LEN + 4..IPV4_LEN + 6].copy_from_slice(&((UDP_LEN + 200) as u16).to_be_bytes());
    fill_transport_checksum(packet);
    frame
}

/// A host at its floor: every frame of the reserve holds a datagram for one of 1,024 sockets.
struct AtFloor {
    pool: PagePool,
    rx: ReserveId,
    filter: Filter,
    _ordinary: Vec<Frame>,
}

impl AtFloor {
    fn new(magazine: u32) -> AtFloor {
        let reserve = COLD + 64;
        let mut config = PoolConfig::new(reserve + 1024);
        config.magazine = magazine;
        let pool = PagePool::new(config);
        let rx = pool.add_reserve(ReserveId::ROOT, "rx", reserve);
        pool.connect(rx).expect("the pool is fresh");
        let mut filter = Filter::new(MAC_A, ADDR_A, 2 * usize::from(SOCKETS));
        for i in 0..SOCKETS {
            let entry = Entry { index: i, tagged: false };
            filter.table_mut().insert(Key::Udp { port: 7000 + i }, entry).expect("room");
        }
        let mut ordinary = Vec::new();
        while let Ok(frame) = pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC) {
            ordinary.push(frame);
        }
        pool.flush_magazine();
        let host = AtFloor { pool, rx, filter, _ordinary: ordinary };
        let mut all: Vec<Frame> = (0..COLD).map(|_| host.alloc()).collect();
        for (i, frame) in all.iter_mut().enumerate() {
            let bytes = datagram(7000 + (i * 389 % usize::from(SOCKETS)) as u16);
            frame.bytes_mut()[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(&bytes);
        }
        host
    }

    #[inline]
    fn alloc(&self) -> Frame {
        self.pool.alloc_from(Gfp::ATOMIC | Gfp::MEMALLOC, self.rx).expect("within the reserve")
    }

    /// Recognises a packet and drops it.
    #[inline]
    fn drop_packet(&self, frame: Frame) {
        let packet = PacketBuf::from_frame(frame, HEADROOM, 242);
        debug_assert!(packet.is_emergency());
        if packet.is_emergency() {
            black_box(self.filter.judge(packet.data()).is_err());
        }
    }
}

impl AtFloor {
    /// Recognises the first packets of a ring, and drops them together.
    #[inline]
    fn drop_burst(&self, ring: &mut VecDeque<Frame>) {
        fn bytes(frame: &Frame) -> &[u8] {
            &frame.bytes()[HEADROOM..HEADROOM + 242]
        }
        touch(ring.iter().take(BURST).map(bytes));
        for frame in ring.iter().take(BURST) {
            assert!(frame.charged_to().is_some() && self.filter.judge(bytes(frame)).is_err());
        }
        self.pool.free_burst(ring.drain(..BURST));
    }
}

fn drops(c: &mut Criterion) {
    for (name, magazine) in [("emergency drop", 32), ("emergency drop, exact counts", 0)] {
        let host = AtFloor::new(magazine);
        let mut group = c.benchmark_group(name);
        group.throughput(Throughput::Elements(1));
        group.bench_function("hot", |b| {
            b.iter(|| host.drop_packet(black_box(host.alloc())));
        });
        group.bench_function("cold", |b| {
            let mut ring: VecDeque<Frame> = (0..COLD).map(|_| host.alloc()).collect();
            b.iter(|| {
                let frame = ring.pop_front().expect("full");
                host.drop_packet(black_box(frame));
                ring.push_back(host.alloc());
            });
        });
        group.throughput(Throughput::Elements(BURST as u64));
        let gfp = Gfp::ATOMIC | Gfp::MEMALLOC;
        let refill = |n, out: &mut VecDeque<Frame>| {
            let post = |frame| out.push_back(frame);
            host.pool.alloc_burst_from(gfp, host.rx, n, post).expect("within the reserve");
        };
        for (name, slots) in [("burst hot", BURST), ("burst cold", COLD as usize)] {
            group.bench_function(name, |b| {
                let mut ring = VecDeque::with_capacity(slots);
                refill(slots, &mut ring);
                b.iter(|| {
                    host.drop_burst(&mut ring);
                    refill(BURST, &mut ring);
                });
            });
        }
        group.finish();
    }
}

/// A card that has received a packet into every buffer as soon as it gets it: the frames hold
/// datagrams already.
struct Replay {
    ring: usize,
    filled: VecDeque<PacketBuf>,
    /// Packets that may still be taken before the next refill.
    left: usize,
}

impl Device for Replay {
    fn mac(&self) -> MacAddr {
        MAC_A
    }
    fn mtu(&self) -> usize {
        1500
    }
    fn rx_ring(&self) -> usize {
        self.ring
    }
    fn rx_unfilled(&self) -> usize {
        self.ring - self.filled.len()
    }
    fn post_rx(&mut self, frame: Frame) -> Result<(), Frame> {
        self.filled.push_back(PacketBuf::from_frame(frame, HEADROOM, 242));
        Ok(())
    }
    fn poll_rx(&mut self, _now: Time) -> Option<PacketBuf> {
        self.left = self.left.checked_sub(1)?;
        self.filled.pop_front()
    }
    fn tx_room(&self) -> usize {
        64
    }
    fn transmit(&mut self, _now: Time, _packet: PacketBuf) -> Result<(), PacketBuf> {
        Ok(())
    }
    fn poll_deadline(&self) -> Option<Time> {
        None
    }
}

/// Drops through the stack itself.
fn ring(c: &mut Criterion) {
    let mut group = c.benchmark_group("emergency drop, ring");
    group.throughput(Throughput::Elements(BURST as u64));
    for (name, slots) in [("hot", BURST), ("cold", COLD as usize)] {
        let (pool, reserves) = pool_of(COLD + 1024, COLD);
        let mut buffers: Vec<_> = (0..2).map(|_| pool.set_aside(1).expect("fresh")).collect();
        let mut buffers = buffers.iter_mut().map(|run| run.bytes_mut());
        let (rx, tx) = (buffers.next().expect("two"), buffers.next().expect("two"));
        fill_frames(&pool);
        let device = Replay { ring: slots, filled: VecDeque::with_capacity(slots), left: 0 };
        let config = StackConfig {
            sockets_max: 2 * usize::from(SOCKETS),
            ..StackConfig::new(MAC_A, ADDR_A)
        };
        let mut stack = Stack::new(config, device, pool.clone(), Some(reserves));
        stack.add_stream(rx, tx, true);
        for i in 0..SOCKETS {
            stack.udp_bind(7000 + i);
        }
        let _ordinary: Vec<_> =
            std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC).ok()).collect();
        stack.refill();
        assert_eq!(stack.ring_unfilled(), 0);
        group.bench_function(name, |b| {
            b.iter(|| {
                stack.device_mut().left = BURST;
                stack.poll(Time::ZERO);
            });
        });
        assert!(stack.stats().emergency_dropped > 0);
        assert_eq!(stack.stats().emergency_dropped, stack.stats().received);
    }
    group.finish();
}

/// Writes a datagram for one of the sockets into every free frame.
fn fill_frames(pool: &PagePool) {
    let mut all: Vec<Frame> = std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC).ok()).collect();
    for (i, frame) in all.iter_mut().enumerate() {
        let bytes = datagram(7000 + (i * 389 % usize::from(SOCKETS)) as u16);
        frame.bytes_mut()[HEADROOM..HEADROOM + bytes.len()].copy_from_slice(&bytes);
    }
}

/// Sends pages for as long as it is let.
struct Source {
    connect: Option<Action>,
    page: Vec<u8>,
    offset: usize,
    is_open: bool,
}

/// Takes pages.
struct Sink {
    page: Vec<u8>,
    taken: u64,
}

impl Session for Source {
    fn handle_connected(&mut self, _now: Time) {
        self.is_open = true;
    }
    fn handle_disconnected(&mut self, _now: Time, why: Disconnect) {
        panic!("a clean link does not disconnect: {why}");
    }
    fn recv_buffer(&mut self) -> &mut [u8] {
        &mut []
    }
    fn handle_received(&mut self, _now: Time, _n: usize) {}
    fn poll_send<'a>(&'a mut self, _now: Time, out: &mut SendVec<'a>) {
        if self.is_open {
            out.push(&self.page[self.offset..]);
            for _ in 0..4 {
                out.push(&self.page);
            }
        }
    }
    fn handle_sent(&mut self, _now: Time, n: usize) {
        self.offset = (self.offset + n) % PAGE_SIZE;
    }
    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        self.connect.take()
    }
    fn poll_deadline(&self) -> Option<Time> {
        None
    }
    fn handle_deadline(&mut self, _now: Time) {}
}

impl Session for Sink {
    fn handle_connected(&mut self, _now: Time) {}
    fn handle_disconnected(&mut self, _now: Time, _why: Disconnect) {}
    fn recv_buffer(&mut self) -> &mut [u8] {
        let at = self.taken as usize % PAGE_SIZE;
        &mut self.page[at..]
    }
    fn handle_received(&mut self, _now: Time, n: usize) {
        self.taken += n as u64;
    }
    fn poll_send<'a>(&'a mut self, _now: Time, _out: &mut SendVec<'a>) {}
    fn handle_sent(&mut self, _now: Time, _n: usize) {}
    fn poll_action(&mut self, _now: Time) -> Option<Action> {
        None
    }
    fn poll_deadline(&self) -> Option<Time> {
        None
    }
    fn handle_deadline(&mut self, _now: Time) {}
}

fn pool() -> (PagePool, NetReserves) {
    pool_of(1024, 80)
}

fn pool_of(frames: u32, rx: u32) -> (PagePool, NetReserves) {
    let mut config = PoolConfig::new(frames);
    config.magazine = 0;
    let pool = PagePool::new(config);
    let net = pool.add_reserve(ReserveId::ROOT, "net", 0);
    let rx = pool.add_reserve(net, "rx", rx);
    let tx = pool.add_reserve(net, "tx", 54);
    (pool, NetReserves { net, rx, tx })
}

/// Carries `pages` pages over a link of `rate_bps`; returns the virtual time it took.
fn carry(pages: u64, rate_bps: u64) -> Time {
    let ((pool_a, reserves), (pool_b, _)) = (pool(), pool());
    let mut runs: Vec<_> =
        [&pool_a, &pool_a, &pool_b, &pool_b].map(|p| p.set_aside(16).expect("fresh")).into();
    let mut runs = runs.iter_mut();
    let mut buffer = || runs.next().expect("four").bytes_mut();
    let nic = |mac| SimNic::new(mac, 1500, 64, 64);
    let mut a =
        Stack::new(StackConfig::new(MAC_A, ADDR_A), nic(MAC_A), pool_a.clone(), Some(reserves));
    let mut b = Stack::new(StackConfig::new(MAC_B, ADDR_B), nic(MAC_B), pool_b.clone(), None);
    let from = a.add_stream(buffer(), buffer(), true);
    let to = b.add_stream(buffer(), buffer(), false);
    b.listen(to, 2049);
    let mut link = SimLink::new(LinkConfig { rate_bps, ..LinkConfig::default() }, 1);
    let remote = SocketAddr::from((ADDR_B, 2049));
    let mut source = Source {
        connect: Some(Action::Connect { remote, same_port: false }),
        page: (0..PAGE_SIZE).map(|i| (i * 7) as u8).collect(),
        offset: 0,
        is_open: false,
    };
    let mut sink = Sink { page: vec![0; PAGE_SIZE], taken: 0 };
    let mut now = Time::ZERO;
    while sink.taken < pages * PAGE_SIZE as u64 {
        link.poll(now, a.device_mut(), b.device_mut());
        a.poll(now);
        b.poll(now);
        a.drive(now, from, &mut source);
        b.drive(now, to, &mut sink);
        link.poll(now, a.device_mut(), b.device_mut());
        let next = [link.poll_deadline(), a.poll_deadline(now), b.poll_deadline(now)];
        let next = next.into_iter().flatten().min().expect("pages are under way");
        now = next.max(now + Span::from_nanos(1));
    }
    now
}

fn pages(c: &mut Criterion) {
    const PAGES: u64 = 4096;
    let mut group = c.benchmark_group("two stacks");
    group.throughput(Throughput::Elements(PAGES)).sample_size(20);
    group.bench_function("pages at 1 Gbit/s", |b| b.iter(|| carry(PAGES, 1_000_000_000)));
    group.bench_function("pages at 10 Gbit/s", |b| b.iter(|| carry(PAGES, 10_000_000_000)));
    group.finish();
}

/// A flood at a host whose ring is empty: what a stuck machine costs the simulation.
fn flood(c: &mut Criterion) {
    let mut a = SimNic::new(MAC_A, 1500, 64, 64);
    let mut b = SimNic::new(MAC_B, 1500, 64, 64);
    let mut group = c.benchmark_group("flood");
    let second = |a: &mut SimNic, b: &mut SimNic| {
        let mut link = SimLink::new(LinkConfig::default(), 1);
        let config = FloodConfig::new(MAC_A, ADDR_A, Ipv4Addr::new(10, 0, 0, 3));
        let stop = Time::ZERO + Span::from_secs(1);
        let mut flood = Flood::new(FloodConfig { stop, ..config }, 1_000_000_000, 1);
        while let Some(at) =
            [flood.poll_deadline(), link.poll_deadline()].into_iter().flatten().min()
        {
            flood.poll(at, &mut link);
            link.poll(at, a, b);
        }
        link.stats().b_to_a.no_rx_buffer
    };
    let packets = second(&mut a, &mut b);
    group.throughput(Throughput::Elements(packets)).sample_size(20);
    group.bench_function("packets without a buffer", |bench| {
        bench.iter_batched(|| (), |()| second(&mut a, &mut b), BatchSize::PerIteration);
    });
    group.finish();
}

criterion_group!(benches, drops, ring, pages, flood);
criterion_main!(benches);
