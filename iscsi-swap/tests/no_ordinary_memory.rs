//! Goal: on a simulated host without one page of ordinary memory free, an initiator connects, logs in with CHAP and digests,
//! moves pages, and after each restart of its target connects and logs in again, all within the reserve of the network.
//! Method: two hosts on a simulated link. Every frame that an ordinary caller of the host can have is taken before the
//! first packet. The canary: with a socket that is not tagged nothing ever arrives.

use std::net::{Ipv4Addr, SocketAddr};

use netswap_iscsi::{
    ChapConfig, Credentials, Digest, InitiatorConfig, IscsiBackend, IscsiTarget, TargetConfig,
};
use netswap_net::{
    LinkConfig, MacAddr, NetReserves, Session, SimLink, SimNic, Stack, StackConfig, StreamId,
};
use netswap_reserve::{
    EmergencyScope, Frame, FrameRun, Gfp, PagePool, PoolConfig, ReserveId, Span, Time,
};
use netswap_swap::{BackendState, MemDisk, Op, PageVec, Request, RequestId, Slot, SwapBackend};

const IQN: &str = "iqn.2026-01.test:disk";
const ADDRS: [Ipv4Addr; 2] = [Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2)];
const MACS: [MacAddr; 2] = [MacAddr([2, 0, 0, 0, 0, 0xa]), MacAddr([2, 0, 0, 0, 0, 0xb])];
const PORT: u16 = 3260;
/// A session that is reinstated has two for a moment.
const SERVED: usize = 3;
const REQUESTS: u32 = 8;
const PAGES: u32 = 4;

fn pool(frames: u32) -> PagePool {
    let mut config = PoolConfig::new(frames);
    config.magazine = 0;
    PagePool::new(config)
}

/// The host's memory, and that of the streams of both.
struct Memory {
    pool: PagePool,
    far: PagePool,
    reserves: NetReserves,
    runs: Vec<FrameRun>,
    far_runs: Vec<FrameRun>,
}

impl Memory {
    fn new() -> Memory {
        let (pool, far) = (pool(512), pool(2048));
        let net = pool.add_reserve(ReserveId::ROOT, "net", 0);
        let rx = pool.add_reserve(net, "net.rx", 80);
        let tx = pool.add_reserve(net, "net.tx", 54);
        let runs = |pool: &PagePool, n| (0..n).map(|_| pool.set_aside(16).unwrap()).collect();
        let (runs, far_runs) = (runs(&pool, 2), runs(&far, 2 * SERVED));
        Memory { pool, far, reserves: NetReserves { net, rx, tx }, runs, far_runs }
    }
}

struct World<'b> {
    now: Time,
    host: Stack<'b, SimNic>,
    far: Stack<'b, SimNic>,
    link: SimLink,
    stream: StreamId,
    served: Vec<StreamId>,
    backend: IscsiBackend,
    target: IscsiTarget<MemDisk>,
}

impl<'b> World<'b> {
    fn new(memory: &'b mut Memory, tagged: bool) -> World<'b> {
        let nic = |mac| SimNic::new(mac, 1500, 64, 64);
        let Memory { pool, far, reserves, runs, far_runs } = memory;
        let config = StackConfig::new(MACS[0], ADDRS[0]);
        let mut host = Stack::new(config, nic(MACS[0]), pool.clone(), Some(*reserves));
        let config = StackConfig::new(MACS[1], ADDRS[1]);
        let mut far_stack = Stack::new(config, nic(MACS[1]), far.clone(), None);
        let [rx, tx] = &mut runs[..] else { unreachable!("two for a stream") };
        let stream = host.add_stream(rx.bytes_mut(), tx.bytes_mut(), tagged);
        let served = far_runs
            .chunks_exact_mut(2)
            .map(|pair| {
                let [rx, tx] = pair else { unreachable!("two for a stream") };
                let stream = far_stack.add_stream(rx.bytes_mut(), tx.bytes_mut(), false);
                far_stack.listen(stream, PORT);
                stream
            })
            .collect();
        let chap = ChapConfig {
            initiator: Credentials::new("alice", b"secretpass12").unwrap(),
            target: Credentials::new("targ", b"targetpass34"),
        };
        let mut config = TargetConfig::new(IQN);
        config.max_connections = SERVED;
        config.queue_depth = REQUESTS;
        config.chap = Some(chap.clone());
        (config.keys.header_digest, config.keys.data_digest) = (Digest::Prefer, Digest::Prefer);
        let mut target = IscsiTarget::new(config, far.clone()).unwrap();
        target.add_lun(0, MemDisk::new(1 << 20), 512, false).unwrap();
        let portal = SocketAddr::from((ADDRS[1], PORT));
        let mut config = InitiatorConfig::new(portal, IQN, 0).with_all();
        config.chap = Some(chap);
        (config.header_digest, config.data_digest) = (Digest::Crc32c, Digest::Crc32c);
        World {
            now: Time::ZERO,
            host,
            far: far_stack,
            link: SimLink::new(LinkConfig::default(), 7),
            stream,
            served,
            backend: IscsiBackend::new(config),
            target,
        }
    }

    /// Does all that is due now, and goes on to the next event.
    fn step(&mut self) {
        let now = self.now;
        self.link.poll(now, self.host.device_mut(), self.far.device_mut());
        self.host.poll(now);
        self.far.poll(now);
        self.host.drive(now, self.stream, &mut self.backend);
        for (at, stream) in self.served.iter().enumerate() {
            self.far.drive(now, *stream, &mut self.target.connection(at));
        }
        self.link.poll(now, self.host.device_mut(), self.far.device_mut());
        let served = (0..SERVED).map(|at| self.target.connection(at).poll_deadline());
        let served = served.min_by_key(|at| at.unwrap_or(Time::MAX)).flatten();
        let next = [
            self.link.poll_deadline(),
            self.host.poll_deadline(now),
            self.far.poll_deadline(now),
            Session::poll_deadline(&self.backend),
            served,
        ];
        let next = next.into_iter().flatten().min().unwrap_or(now + Span::from_millis(1));
        self.now = next.max(now + Span::from_nanos(1));
    }

    /// Until it is ready; whether it is within `span`.
    fn start(&mut self, span: Span) -> bool {
        let limit = self.now + span;
        while self.now < limit && self.backend.state() == BackendState::Starting {
            self.step();
        }
        matches!(self.backend.state(), BackendState::Ready { .. })
    }

    /// All requests at once; the target restarts while they are outstanding, after so many steps.
    fn round(&mut self, pages: &mut Vec<PageVec>, op: Op, fill: u8, restart_at: u32) {
        for id in 0..REQUESTS {
            let mut pages = pages.pop().unwrap();
            for page in &mut pages {
                page.bytes_mut().fill(if op == Op::Write { fill ^ id as u8 } else { 0 });
            }
            let first = Slot(8 + id * PAGES);
            let request = Request { id: RequestId(id), op, first, pages, deadline: None };
            self.backend.submit(self.now, request).unwrap();
        }
        let (mut ended, mut steps) = (0, 0);
        let limit = self.now + Span::from_secs(60);
        while ended < REQUESTS {
            self.step();
            assert!(self.now < limit, "requests never end: {:?}", self.backend.stats());
            steps += 1;
            if steps == restart_at {
                self.target.restart(self.now);
            }
            while let Some(end) = self.backend.poll_completion(self.now) {
                end.outcome.unwrap();
                let want = fill ^ end.id.0 as u8;
                assert!(end.pages.iter().all(|page| page.bytes().iter().all(|b| *b == want)));
                pages.push(end.pages);
                ended += 1;
            }
        }
    }
}

/// Everything that an ordinary caller can have, down to what atomic ones may take.
fn exhaust(pool: &PagePool) -> Vec<Frame> {
    std::iter::from_fn(|| pool.alloc(Gfp::ATOMIC | Gfp::NOMEMALLOC).ok()).collect()
}

fn page_vecs(pool: &PagePool) -> Vec<PageVec> {
    let vec = || (0..PAGES).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    (0..REQUESTS).map(|_| vec()).collect()
}

#[test]
fn connect_login_and_reconnect_live_within_the_reserve() {
    let mut memory = Memory::new();
    let (pool, reserves) = (memory.pool.clone(), memory.reserves);
    let mut pages = page_vecs(&pool);
    let mut world = World::new(&mut memory, true);
    let ordinary = exhaust(&pool);
    assert!(!ordinary.is_empty() && pool.alloc(Gfp::KERNEL).is_err());
    assert!(world.start(Span::from_secs(10)), "{:?}", world.backend.state());
    for round in 0..8 {
        world.round(&mut pages, Op::Write, round * 16, 10 + 15 * u32::from(round));
        world.round(&mut pages, Op::Read, round * 16, 10);
    }
    assert!(pool.alloc(Gfp::KERNEL).is_err(), "there was no ordinary memory at any time");
    assert!(pool.reserve_peak(reserves.tx) > 0 && pool.reserve_peak(reserves.rx) > 0);
    assert!(!EmergencyScope::is_entitled(&pool), "no entitlement outlives a call");
    let stats = world.backend.stats();
    assert!(stats.logins >= 8 && stats.reissued > 0 && stats.garbage == 0, "{stats:?}");
    let params = world.backend.params();
    assert!(params.header_digest && params.data_digest);
}

#[test]
fn without_the_tag_it_never_gets_there() {
    let mut memory = Memory::new();
    let pool = memory.pool.clone();
    let mut world = World::new(&mut memory, false);
    let _ordinary = exhaust(&pool);
    assert!(!world.start(Span::from_secs(10)));
    assert_eq!(world.backend.stats().logins, 0);
}
