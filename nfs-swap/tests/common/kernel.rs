//! A client and a server on sockets of the kernel, both in one loop on the loopback, and a session around
//! the client's that looks at where the slices lie that the transport is shown.

use arrayvec::ArrayVec;
use netswap_net::kernel::{
    Clock, ConnConfig, ConnId, KernelConfig, KernelNet, ListenConfig, SocketOptions,
};
use netswap_net::{Action, Disconnect, RecvVec, SLICES_MAX, SendVec, Session};
use netswap_nfs::{NfsBackend, NfsConfig, NfsServer, NfsServerConfig};
use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap_swap::{
    BackendState, Completion, MemDisk, Op, PageVec, Request, RequestId, Slot, SwapBackend,
};

use super::{SLOTS, fill, holds, server};

/// Connections the server takes: a client that comes back may find its old one not yet missed.
pub const SERVED: usize = 3;
pub const BATCH: usize = 8;

/// The client's session, and where the bytes it moves lie.
pub struct Watched {
    pub client: NfsBackend,
    /// Addresses of the frames.
    pub frames: std::ops::Range<usize>,
    pub shown: ArrayVec<(usize, usize), SLICES_MAX>,
    pub received_in_pages: u64,
    pub sent_from_pages: u64,
}

impl Watched {
    /// How many of the first `n` bytes shown lie in frames.
    fn in_pages(&self, mut n: usize) -> u64 {
        let mut sum = 0;
        for (at, len) in &self.shown {
            let taken = n.min(*len);
            n -= taken;
            if self.frames.contains(at) {
                sum += taken as u64;
            }
        }
        assert_eq!(n, 0, "more than was shown");
        sum
    }
}

impl Session for Watched {
    fn handle_connected(&mut self, now: Time) {
        self.client.handle_connected(now);
    }
    fn handle_disconnected(&mut self, now: Time, why: Disconnect) {
        self.client.handle_disconnected(now, why);
    }
    fn recv_buffer(&mut self) -> &mut [u8] {
        self.client.recv_buffer()
    }
    fn recv_buffers<'a>(&'a mut self, out: &mut RecvVec<'a>) {
        self.client.recv_buffers(out);
        self.shown = out.iter().map(|slice| (slice.as_ptr() as usize, slice.len())).collect();
    }
    fn handle_received(&mut self, now: Time, n: usize) {
        self.received_in_pages += self.in_pages(n);
        self.client.handle_received(now, n);
    }
    fn poll_send<'a>(&'a mut self, now: Time, out: &mut SendVec<'a>) {
        self.client.poll_send(now, out);
        self.shown = out.iter().map(|slice| (slice.as_ptr() as usize, slice.len())).collect();
    }
    fn handle_sent(&mut self, now: Time, n: usize) {
        self.sent_from_pages += self.in_pages(n);
        self.client.handle_sent(now, n);
    }
    fn poll_action(&mut self, now: Time) -> Option<Action> {
        self.client.poll_action(now)
    }
    fn poll_deadline(&self) -> Option<Time> {
        Session::poll_deadline(&self.client)
    }
    fn handle_deadline(&mut self, now: Time) {
        self.client.handle_deadline(now);
    }
}

pub struct Real {
    pub net: KernelNet,
    pub clock: Clock,
    pub conn: ConnId,
    first_served: usize,
    pub watched: Watched,
    pub server: NfsServer<MemDisk>,
    pub pool: PagePool,
    /// Requests that ended with a copy that may be carried out late.
    pub loose: u64,
}

impl Real {
    pub fn new(socket: SocketOptions) -> Real {
        Real::with(socket, |_| ())
    }

    /// With a client that is configured in another way.
    pub fn with(socket: SocketOptions, change: impl FnOnce(&mut NfsConfig)) -> Real {
        let mut server =
            server(NfsServerConfig { max_connections: SERVED, ..NfsServerConfig::default() });
        server.add_file("area0", MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64));
        let config = KernelConfig { listeners: 1, ..KernelConfig::new(SERVED + 1) };
        let mut net = KernelNet::new(config).unwrap();
        let listen =
            ListenConfig { socket, ..ListenConfig::new("127.0.0.1:0".parse().unwrap(), SERVED) };
        let listener = net.listen(&listen).unwrap();
        let first_served = net.listener_conns(listener).next().unwrap().index();
        let conn = net.add_conn(ConnConfig { socket, ..ConnConfig::default() }).unwrap();
        let mut config = NfsConfig::new(net.listener_addr(listener), "/swap", "area0");
        config.reconnect_min = Span::from_millis(1);
        change(&mut config);
        let pool = PagePool::new(PoolConfig::new(512));
        let all: Vec<Frame> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
        let at = |frame: &Frame| frame.bytes().as_ptr() as usize;
        let frames =
            all.iter().map(at).min().unwrap()..all.iter().map(at).max().unwrap() + PAGE_SIZE;
        let client = NfsBackend::new(config);
        Real {
            net,
            clock: Clock::new(),
            conn,
            first_served,
            watched: Watched {
                client,
                frames,
                shown: ArrayVec::new(),
                received_in_pages: 0,
                sent_from_pages: 0,
            },
            server,
            pool,
            loose: 0,
        }
    }

    pub fn turn(&mut self) {
        let limit = self.clock.now() + Span::from_secs(30);
        let woken = self.net.wait(self.clock.now(), Some(limit)).unwrap();
        let now = self.clock.now();
        assert!(woken.events > 0 || now < limit, "stuck: {:?} {:?}", self.net, self.watched.client);
        while let Some(id) = self.net.next_ready(now) {
            if id == self.conn {
                self.net.drive(now, id, &mut self.watched);
            } else {
                let at = id.index() - self.first_served;
                self.net.drive(now, id, &mut self.server.connection(at));
            }
        }
    }

    pub fn start(&mut self) {
        while self.watched.client.state() == BackendState::Starting {
            self.turn();
        }
        assert_eq!(self.watched.client.state(), BackendState::Ready { slots: SLOTS });
    }

    /// Moves all slots, `BATCH` a request, in whatever order they end.
    pub fn move_all(&mut self, op: Op, version: u32, mut each: impl FnMut(&mut Real, usize)) {
        let total = SLOTS as usize / BATCH;
        let (mut submitted, mut ended) = (0, 0);
        while ended < total {
            while submitted < total && submitted - ended < 16 {
                let first = (submitted * BATCH) as u32;
                let mut pages: PageVec =
                    (0..BATCH).map(|_| self.pool.alloc(Gfp::KERNEL).unwrap()).collect();
                for (i, page) in pages.iter_mut().enumerate() {
                    match op {
                        Op::Write => fill(page, first + i as u32, version),
                        Op::Read => page.bytes_mut().fill(0xEE),
                    }
                }
                let id = RequestId(submitted as u32);
                let request = Request { id, op, first: Slot(first), pages, deadline: None };
                self.watched.client.submit(self.clock.now(), request).unwrap();
                submitted += 1;
            }
            self.net.make_ready(self.conn);
            self.turn();
            while let Some(end) = self.watched.client.poll_completion(self.clock.now()) {
                ended += 1;
                self.loose += u64::from(end.is_loose);
                self.check(op, version, &end);
                each(self, ended);
            }
        }
    }

    fn check(&self, op: Op, version: u32, end: &Completion) {
        assert!(end.outcome.is_ok(), "{:?}", end.outcome);
        for (i, page) in end.pages.iter().enumerate() {
            let slot = end.id.0 * BATCH as u32 + i as u32;
            assert!(holds(page, slot, version), "{op:?} of slot {slot}");
        }
    }

    /// The server restarts: every connection to it is reset.
    pub fn restart_server(&mut self) {
        self.server.restart(self.clock.now());
        for at in 0..SERVED {
            let id = self.net.conn_at(self.first_served + at);
            self.net.make_ready(id);
        }
    }
}
