//! What the NFS client costs: operations a second, its thread's CPU time and system calls an operation.
//!
//! The client runs on core 1, the embedded server on core 0, over sockets of the kernel on the loopback. Pages of
//! 4 KiB, read and written, at random or in order, with 1, 16 and 64 requests outstanding; in order also with
//! merging. The server's disk is memory. Each line is a second; pages are not looked at.
//!
//! `cargo bench --bench nfs_client -- write seq 64` runs the lines that have all these words.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, mpsc};
use std::time::{Duration, Instant};

use netswap_net::kernel::{
    Clock, ConnConfig, ConnId, KernelConfig, KernelNet, ListenConfig, SocketOptions,
};
use netswap_nfs::{NfsBackend, NfsConfig, NfsServer, NfsServerConfig};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::{BackendState, MemDisk, Op, PageVec, Request, RequestId, Slot, SwapBackend};
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};

/// 64 MiB: more than the caches hold.
const SLOTS: u32 = 16_384;
const CALL_BYTES: u32 = 262_144;
const LINE: Duration = Duration::from_millis(1000);

fn pin(core: usize) {
    let mut set = CpuSet::new();
    set.set(core);
    if sched_setaffinity(None, &set).is_err() {
        eprintln!("core {core} is not to be had; the figures mean little");
    }
}

/// CPU time of this thread, in nanoseconds.
fn cpu_ns() -> u64 {
    let at = clock_gettime(ClockId::ThreadCPUTime);
    at.tv_sec as u64 * 1_000_000_000 + at.tv_nsec as u64
}

/// Serves until `stop`; keeps its CPU time in `cpu`.
fn serve(address: &mpsc::Sender<SocketAddr>, stop: &AtomicBool, cpu: &AtomicU64) {
    pin(0);
    let config = NfsServerConfig {
        rtmax: CALL_BYTES,
        wtmax: CALL_BYTES,
        records: 64,
        max_connections: 1,
        remembered: 64,
        ..NfsServerConfig::default()
    };
    let pool = PagePool::new(PoolConfig::new(config.frames() + 256));
    let mut server =
        NfsServer::new(config, &pool).expect("the pool is as large as the server needs");
    server.add_file(
        "area0",
        MemDisk::prefaulted(u64::from(SLOTS) * PAGE_SIZE as u64).expect("memory"),
    );
    let config = KernelConfig { listeners: 1, ..KernelConfig::new(1) };
    let mut net = KernelNet::new(config).expect("an event loop");
    let listen = ListenConfig {
        socket: SocketOptions::default(),
        ..ListenConfig::new("127.0.0.1:0".parse().expect("an address"), 1)
    };
    let listener = net.listen(&listen).expect("a port of the loopback");
    address.send(net.listener_addr(listener)).expect("somebody asked");
    let clock = Clock::new();
    while !stop.load(Ordering::Relaxed) {
        let now = clock.now();
        net.wait(now, Some(now + Span::from_millis(20))).expect("a wait");
        let now = clock.now();
        while let Some(id) = net.next_ready(now) {
            net.drive(now, id, &mut server.connection(0));
        }
        cpu.store(cpu_ns(), Ordering::Relaxed);
    }
}

#[derive(Clone, Copy)]
struct Line {
    op: Op,
    random: bool,
    depth: usize,
    merge: bool,
}

impl Line {
    fn name(&self) -> String {
        let op = if self.op == Op::Read { "read" } else { "write" };
        let order = if self.random { "random" } else { "seq" };
        let merge = if self.merge { "merged" } else { "single" };
        format!("{op} {order} {} {merge}", self.depth)
    }
}

struct Client {
    net: KernelNet,
    conn: ConnId,
    clock: Clock,
    backend: NfsBackend,
}

impl Client {
    fn new(server: SocketAddr, line: Line) -> Client {
        let mut net = KernelNet::new(KernelConfig::new(1)).expect("an event loop");
        let conn = net.add_conn(ConnConfig::default()).expect("the first connection");
        let config = NfsConfig {
            in_flight: line.depth,
            merge: line.merge,
            overtakes_max: 16,
            ..NfsConfig::new(server, "/swap", "area0")
        };
        Client { net, conn, clock: Clock::new(), backend: NfsBackend::new(config) }
    }

    fn turn(&mut self) {
        self.net.drive(self.clock.now(), self.conn, &mut self.backend);
        self.net.wait(self.clock.now(), None).expect("a wait");
        let now = self.clock.now();
        while let Some(id) = self.net.next_ready(now) {
            self.net.drive(now, id, &mut self.backend);
        }
    }
}

fn run(server: SocketAddr, server_cpu: &AtomicU64, line: Line) {
    let mut client = Client::new(server, line);
    while client.backend.state() == BackendState::Starting {
        client.turn();
    }
    assert!(matches!(client.backend.state(), BackendState::Ready { .. }));
    let pool = PagePool::new(PoolConfig::new(512));
    let mut spare: Vec<PageVec> = (0..line.depth)
        .map(|_| std::iter::once(pool.alloc(Gfp::KERNEL).expect("a page")).collect())
        .collect();
    let (mut next, mut ended, mut seed) = (0u32, 0u64, 0x9e37_79b9_7f4a_7c15u64);
    let mut slot = move || {
        next += 1;
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        let at = if line.random { (seed >> 33) as u32 } else { next };
        Slot(at % SLOTS)
    };
    let (mut begun, mut cpu, mut served, mut calls) = (Instant::now(), cpu_ns(), 0, 0);
    let mut warm = false;
    let syscalls = |net: &KernelNet| {
        let stats = net.stats();
        stats.wait_calls + stats.conns.recv_calls + stats.conns.send_calls
    };
    loop {
        let now = client.clock.now();
        while let Some(pages) = spare.pop() {
            let (id, first) = (RequestId(0), slot());
            let request = Request { id, op: line.op, first, pages, deadline: None };
            client.backend.submit(now, request).expect("there is room for the depth");
        }
        client.turn();
        let now = client.clock.now();
        while let Some(end) = client.backend.poll_completion(now) {
            end.outcome.expect("nothing goes wrong here");
            spare.push(end.pages);
            ended += 1;
        }
        let elapsed = begun.elapsed();
        if !warm && elapsed > LINE / 5 {
            (warm, begun, ended, cpu) = (true, Instant::now(), 0, cpu_ns());
            (served, calls) = (server_cpu.load(Ordering::Relaxed), syscalls(&client.net));
        } else if warm && elapsed >= LINE {
            let ops = ended as f64;
            println!(
                "{:24} {:>10.0} {:>10.2} {:>10.2} {:>10.2}",
                line.name(),
                ops / elapsed.as_secs_f64(),
                (cpu_ns() - cpu) as f64 / ops / 1000.0,
                (server_cpu.load(Ordering::Relaxed) - served) as f64 / ops / 1000.0,
                (syscalls(&client.net) - calls) as f64 / ops,
            );
            return;
        }
    }
}

fn main() {
    let words: Vec<String> =
        std::env::args().skip(1).filter(|word| !word.starts_with("--")).collect();
    let stop = Arc::new(AtomicBool::new(false));
    let cpu = Arc::new(AtomicU64::new(0));
    let (send, receive) = mpsc::channel();
    let thread = {
        let (stop, cpu) = (Arc::clone(&stop), Arc::clone(&cpu));
        std::thread::spawn(move || serve(&send, &stop, &cpu))
    };
    let server = receive.recv().expect("the server has an address");
    pin(1);
    println!(
        "{:24} {:>10} {:>10} {:>10} {:>10}",
        "4 KiB", "ops/s", "client us", "server us", "calls/op"
    );
    for (random, merge) in [(true, false), (true, true), (false, false), (false, true)] {
        for op in [Op::Read, Op::Write] {
            for depth in [1, 16, 64] {
                let line = Line { op, random, depth, merge };
                let name = line.name();
                if words.iter().all(|word| name.split(' ').any(|part| part == word)) {
                    run(server, &cpu, line);
                }
            }
        }
    }
    stop.store(true, Ordering::Relaxed);
    thread.join().expect("the server ends");
}
