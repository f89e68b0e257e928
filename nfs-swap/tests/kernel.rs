//! Goal: the same client and the same server speak over TCP sockets of the kernel; every page comes
//! back as it was written, also when the server restarts under load; and no byte of a page passes
//! through anything but the page on its way between user space and the kernel.
//! Method: one event loop on the loopback holds both ends. A session around the client's looks at where
//! the slices that the transport is shown lie, and counts the bytes that lie in frames.

mod common;

use arrayvec::ArrayVec;
use common::{SLOTS, fill, holds, server};
use netswap_net::kernel::{
    Clock, ConnConfig, ConnId, KernelConfig, KernelNet, ListenConfig, SocketOptions,
};
use netswap_net::{Action, Disconnect, RecvVec, SendVec, Session};
use netswap_nfs::{NfsBackend, NfsConfig, NfsServer, NfsServerConfig};
use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap_swap::{
    BackendState, Completion, MemDisk, Op, PageVec, Request, RequestId, Slot, SwapBackend,
};

/// Connections the server takes: a client that comes back may find its old one not yet missed.
const SERVED: usize = 3;
const BATCH: usize = 8;

/// The client's session, and where the bytes it moves lie.
struct Watched {
    client: NfsBackend,
    /// Addresses of the frames.
    frames: std::ops::Range<usize>,
    shown: ArrayVec<(usize, usize), 64>,
    received_in_pages: u64,
    sent_from_pages: u64,
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

struct Real {
    net: KernelNet,
    clock: Clock,
    conn: ConnId,
    first_served: usize,
    watched: Watched,
    server: NfsServer<MemDisk>,
    pool: PagePool,
}

impl Real {
    fn new(socket: SocketOptions) -> Real {
        let mut server =
            server(NfsServerConfig { max_connections: SERVED, ..NfsServerConfig::default() });
        server.add_file("area0", MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64));
        let config = KernelConfig { listeners: 1, ..KernelConfig::new(SERVED + 1) };
        let mut net = KernelNet::new(config).unwrap();
        let listen = ListenConfig {
            socket,
            ..ListenConfig::new("127.0.0.1:0".parse().unwrap(), SERVED)
        };
        let listener = net.listen(&listen).unwrap();
        let first_served = net.listener_conns(listener).next().unwrap().index();
        let conn = net.add_conn(ConnConfig { socket, ..ConnConfig::default() }).unwrap();
        let mut config = NfsConfig::new(net.listener_addr(listener), "/swap", "area0");
        config.reconnect_min = Span::from_millis(1);
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
        }
    }

    fn turn(&mut self) {
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

    fn start(&mut self) {
        while self.watched.client.state() == BackendState::Starting {
            self.turn();
        }
        assert_eq!(self.watched.client.state(), BackendState::Ready { slots: SLOTS });
    }

    /// Moves all slots, `BATCH` a request, in whatever order they end.
    fn move_all(&mut self, op: Op, version: u32, mut each: impl FnMut(&mut Real, usize)) {
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
}

const PAGES_BYTES: u64 = SLOTS as u64 * PAGE_SIZE as u64;

#[test]
fn pages_come_back_and_are_copied_by_nobody_but_the_kernel() {
    let mut real = Real::new(SocketOptions::default());
    real.start();
    real.move_all(Op::Write, 1, |_, _| ());
    assert_eq!(real.watched.sent_from_pages, PAGES_BYTES);
    real.move_all(Op::Read, 1, |_, _| ());
    assert_eq!(real.watched.received_in_pages, PAGES_BYTES);
    let conn = real.net.conn_stats(real.conn);
    assert_eq!(real.net.stats().conns.bytes_copied, 0);
    assert!(conn.bytes_sent > PAGES_BYTES && conn.bytes_received > PAGES_BYTES, "{conn:?}");
    // Heads only: what is not in a page is a small part.
    assert!(conn.bytes_received - real.watched.received_in_pages < PAGES_BYTES / 16, "{conn:?}");
    // 32 replies of 8 pages: one call for mark and xid, one for the head, one for the pages, and
    // what the kernel has cut in between.
    assert!(conn.recv_calls < 300, "{conn:?}");
    assert_eq!((conn.connects, conn.port_changes), (1, 0));
}

#[test]
fn small_kernel_buffers_change_nothing_but_the_number_of_calls() {
    let socket = SocketOptions {
        send_buffer: Some(4096),
        recv_buffer: Some(4096),
        ..SocketOptions::default()
    };
    let mut real = Real::new(socket);
    real.start();
    real.move_all(Op::Write, 2, |_, _| ());
    real.move_all(Op::Read, 2, |_, _| ());
    assert_eq!(real.watched.received_in_pages, PAGES_BYTES);
    assert!(real.net.stats().conns.short_sends > 0);
}

#[test]
fn a_server_that_restarts_under_load_loses_no_page() {
    let mut real = Real::new(SocketOptions::default());
    real.start();
    let port = |real: &Real| real.net.conn_info(real.conn).local.unwrap().port();
    let first_port = port(&real);
    for (version, op) in [(3, Op::Write), (3, Op::Read), (4, Op::Write), (4, Op::Read)] {
        real.move_all(op, version, |real, ended| {
            if ended % 10 == 0 {
                let now = real.clock.now();
                real.server.restart(now);
                for at in 0..SERVED {
                    let id = real.net.conn_at(real.first_served + at);
                    real.net.make_ready(id);
                }
            }
        });
    }
    let stats = real.net.conn_stats(real.conn);
    assert!(stats.connects > 8, "{stats:?}");
    assert_eq!((port(&real), stats.port_changes), (first_port, 0), "{stats:?}");
}
