//! Goal: on sockets of the kernel too, connect, login with CHAP and digests, requests, a target that restarts and the reconnect with its login
//! take no heap; and they need no page of ordinary memory: with not one free, everything outstanding ends well.
//! Method: an allocator that counts while armed, first shown to catch a planted one. Initiator and embedded target are in
//! one event loop on the loopback. For the second part every page that an ordinary caller can have is taken first.

#[path = "common/counting.rs"]
mod counting;

use counting::armed;
use netswap_iscsi::{
    ChapConfig, Credentials, Digest, InitiatorConfig, IscsiBackend, IscsiTarget, TargetConfig,
};
use netswap_net::Session;
use netswap_net::kernel::{Clock, ConnConfig, ConnId, KernelConfig, KernelNet, ListenConfig};
use netswap_reserve::{Frame, Gfp, PagePool, PoolConfig, Span};
use netswap_swap::{BackendState, MemDisk, Op, PageVec, Request, RequestId, Slot, SwapBackend};

const IQN: &str = "iqn.2026-01.test:disk";
/// A session that is reinstated has two for a moment, and the kernel may hold a third.
const SERVED: usize = 3;
const REQUESTS: u32 = 16;

struct World {
    net: KernelNet,
    clock: Clock,
    conn: ConnId,
    first_served: usize,
    backend: IscsiBackend,
    target: IscsiTarget<MemDisk>,
}

impl World {
    /// `secure`: with CHAP in both directions and digests.
    fn new(secure: bool) -> World {
        let chap = secure.then(|| ChapConfig {
            initiator: Credentials::new("alice", b"secretpass12").unwrap(),
            target: Credentials::new("targ", b"targetpass34"),
        });
        let mut config = TargetConfig::new(IQN);
        config.chap = chap.clone();
        (config.keys.header_digest, config.keys.data_digest) = (Digest::Prefer, Digest::Prefer);
        config.max_connections = SERVED;
        config.queue_depth = 8;
        let pool = PagePool::new(PoolConfig::new(config.frames() + 64));
        let mut target = IscsiTarget::new(config, pool).unwrap();
        target.add_lun(0, MemDisk::new(4 << 20), 512, false).unwrap();
        let config = KernelConfig { listeners: 1, ..KernelConfig::new(SERVED + 1) };
        let mut net = KernelNet::new(config).unwrap();
        let listen = ListenConfig::new("127.0.0.1:0".parse().unwrap(), SERVED);
        let listener = net.listen(&listen).unwrap();
        let first_served = net.listener_conns(listener).next().unwrap().index();
        let conn = net.add_conn(ConnConfig::default()).unwrap();
        let mut config = InitiatorConfig::new(net.listener_addr(listener), IQN, 0).with_all();
        config.backoff_min = Span::from_millis(1);
        config.chap = chap;
        if secure {
            (config.header_digest, config.data_digest) = (Digest::Crc32c, Digest::Crc32c);
        }
        let backend = IscsiBackend::new(config);
        World { net, clock: Clock::new(), conn, first_served, backend, target }
    }

    fn turn(&mut self) {
        self.net.make_ready(self.conn);
        for wait in [Span::ZERO, Span::from_millis(5)] {
            let now = self.clock.now();
            self.net.wait(now, Some(now + wait)).unwrap();
            let now = self.clock.now();
            while let Some(id) = self.net.next_ready(now) {
                if id == self.conn {
                    self.net.drive(now, id, &mut self.backend);
                } else {
                    let at = id.index() - self.first_served;
                    self.net.drive(now, id, &mut self.target.connection(at));
                }
            }
        }
    }

    fn start(&mut self) {
        let limit = self.clock.now() + Span::from_secs(20);
        while !matches!(self.backend.state(), BackendState::Ready { .. }) {
            self.turn();
            assert!(self.clock.now() < limit, "never ready");
        }
    }

    fn restart_target(&mut self) {
        self.target.restart(self.clock.now());
        for at in 0..SERVED {
            let id = self.net.conn_at(self.first_served + at);
            self.net.make_ready(id);
        }
    }

    /// All requests at once, over pages that come back in `pages`; a restart while they are outstanding.
    fn round(&mut self, pages: &mut Vec<PageVec>, op: Op, disturb: bool) {
        let now = self.clock.now();
        for id in 0..REQUESTS {
            let pages = pages.pop().unwrap();
            let first = Slot(8 + id * 4);
            let request = Request { id: RequestId(id), op, first, pages, deadline: None };
            assert!(self.backend.submit(now, request).is_ok());
        }
        let (mut ended, mut disturb) = (0, disturb);
        let limit = now + Span::from_secs(20);
        while ended < REQUESTS {
            self.turn();
            if std::mem::take(&mut disturb) {
                self.restart_target();
            }
            while let Some(end) = self.backend.poll_completion(self.clock.now()) {
                assert!(end.outcome.is_ok());
                pages.push(end.pages);
                ended += 1;
            }
            assert!(self.clock.now() < limit, "requests never end");
        }
    }
}

fn page_vecs(pool: &PagePool) -> Vec<PageVec> {
    let vec = || (0..4).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    (0..REQUESTS).map(|_| vec()).collect()
}

#[test]
fn nothing_is_allocated_from_the_first_connect_on() {
    let planted = armed(|| drop(std::hint::black_box(Box::new(7u8))));
    assert_eq!(planted, 1, "the allocator catches one that is planted");
    for secure in [false, true] {
        let pool = PagePool::new(PoolConfig::new(256));
        let mut world = World::new(secure);
        let mut pages = page_vecs(&pool);
        assert_eq!(armed(|| world.start()), 0, "connect, login and the questions to the unit");
        let params = world.backend.params();
        assert_eq!((params.header_digest, params.data_digest), (secure, secure));
        let planted = armed(|| {
            world.round(&mut pages, Op::Write, false);
            drop(std::hint::black_box(vec![1u8; 100]));
        });
        assert_eq!(planted, 1, "one is caught beside requests");
        for round in 0..20 {
            let op = if round % 2 == 0 { Op::Write } else { Op::Read };
            let caught = armed(|| world.round(&mut pages, op, round % 3 == 0));
            assert_eq!(caught, 0, "round {round}, secure: {secure}");
        }
        let stats = world.backend.stats();
        assert!(stats.logins >= 7 && stats.joined > 0, "{stats:?}");
    }
}

#[test]
fn with_no_ordinary_page_free_it_connects_logs_in_and_reconnects() {
    let mut config = PoolConfig::new(512);
    config.magazine = 0;
    let pool = PagePool::new(config);
    let mut world = World::new(true);
    let mut pages = page_vecs(&pool);
    // All that anybody can have. What the initiator is made of exists, and its pages are given.
    let hog: Vec<Frame> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
    assert!(pool.alloc(Gfp::KERNEL).is_err() && !hog.is_empty());
    let free = pool.free_frames();
    let caught = armed(|| {
        world.start();
        for round in 0..6 {
            let op = if round % 2 == 0 { Op::Write } else { Op::Read };
            world.round(&mut pages, op, true);
        }
    });
    assert_eq!((caught, pool.free_frames()), (0, free), "neither heap nor pages");
    let stats = world.backend.stats();
    assert!(stats.logins >= 5 && stats.reissued > 0, "{stats:?}");
    // What is left of the connection ends in order.
    world.backend.shutdown(world.clock.now());
    while Session::poll_deadline(&world.backend).is_some() {
        world.turn();
    }
    assert_eq!(world.backend.state(), BackendState::Stopped);
}
