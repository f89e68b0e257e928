//! What the scenarios share: a client and a server joined by two byte queues, on virtual time, and a
//! workload with a model of what each slot must hold.
//!
//! The pump allocates nothing after it was made (unless it fragments records anew), so that it can be
//! used under a counting allocator.
#![allow(dead_code, unreachable_pub)]

pub mod host;
pub mod kernel;

use std::collections::VecDeque;

use netswap_net::{Action, Disconnect, RecvVec, SendVec, Session};
use netswap_nfs::{NfsBackend, NfsConfig, NfsServer, NfsServerConfig};
use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap_swap::{
    BackendLimits, BackendState, Completion, MemDisk, Op, Outstanding, PageVec, Request, RequestId,
    Slot, StoreError, SubmitError, SwapBackend,
};

pub const SLOTS: u32 = 256;
const QUEUE_BYTES: usize = 256 * 1024;

/// xorshift64*, so that a scenario needs nothing but its seed.
pub struct Rng(u64);

impl Rng {
    pub fn new(seed: u64) -> Rng {
        Rng(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 16) % n
    }
}

pub fn config() -> NfsConfig {
    let mut config = NfsConfig::new("10.0.0.2:2049".parse().unwrap(), "/swap", "area0");
    config.reconnect_min = Span::from_millis(1);
    config.request_timeout = Span::from_secs(1);
    config
}

pub fn server(config: NfsServerConfig) -> NfsServer<MemDisk> {
    let pool = PagePool::new(PoolConfig::new(config.frames() + 256));
    NfsServer::new(config, &pool).unwrap()
}

/// A client of any kind, a server, and the stream between them.
pub struct World<C = NfsBackend> {
    pub client: C,
    pub server: NfsServer<MemDisk>,
    pub pool: PagePool,
    pub now: Time,
    pub rng: Rng,
    pub connected: bool,
    /// Connections are refused while this is set.
    pub refuse: bool,
    /// Bytes are lost for ever while this is set; nobody is told.
    pub black_hole: bool,
    /// Most bytes moved at once.
    pub chunk: u64,
    /// Records of both sides are cut into random fragments.
    pub refragment: bool,
    pub connects: Vec<Action>,
    scatter: bool,
    c2s: Pipe,
    s2c: Pipe,
}

struct Pipe {
    bytes: VecDeque<u8>,
    /// What of a record has come, while it is being fragmented anew.
    partial: Vec<u8>,
}

impl Pipe {
    fn new() -> Pipe {
        Pipe { bytes: VecDeque::with_capacity(2 * QUEUE_BYTES), partial: Vec::new() }
    }

    fn clear(&mut self) {
        self.bytes.clear();
        self.partial.clear();
    }

    fn room(&self) -> usize {
        QUEUE_BYTES.saturating_sub(self.bytes.len())
    }

    fn push(&mut self, bytes: &[u8], rng: &mut Rng, refragment: bool) {
        if !refragment {
            self.bytes.extend(bytes);
            return;
        }
        self.partial.extend_from_slice(bytes);
        loop {
            let Some(mark) = self.partial.first_chunk::<4>() else { return };
            let len = (u32::from_be_bytes(*mark) & 0x7fff_ffff) as usize;
            if self.partial.len() < 4 + len {
                return;
            }
            let record: Vec<u8> = self.partial.drain(..4 + len).skip(4).collect();
            let mut at = 0;
            while at < len {
                let n = (rng.below(1 + (len as u64).min(3000)) as usize).min(len - at);
                if n == 0 && rng.below(8) > 0 {
                    continue;
                }
                at += n;
                let last = if at == len { 1 << 31 } else { 0 };
                self.bytes.extend((n as u32 | last).to_be_bytes());
                self.bytes.extend(&record[at - n..at]);
            }
        }
    }

    /// Moves up to `limit` bytes into `buf`.
    fn pull(&mut self, buf: &mut [u8], limit: usize) -> usize {
        let n = buf.len().min(self.bytes.len()).min(limit);
        for (to, from) in buf.iter_mut().zip(self.bytes.drain(..n)) {
            *to = from;
        }
        n
    }
}

impl<C: Session + std::fmt::Debug> World<C> {
    pub fn joined(client: C, server: NfsServer<MemDisk>, seed: u64) -> World<C> {
        netswap_reserve::prepare_thread();
        World {
            client,
            server,
            pool: PagePool::new(PoolConfig::new(2048)),
            now: Time::ZERO,
            rng: Rng::new(seed),
            connected: false,
            refuse: false,
            black_hole: false,
            chunk: 100_000,
            refragment: false,
            connects: Vec::with_capacity(4096),
            scatter: false,
            c2s: Pipe::new(),
            s2c: Pipe::new(),
        }
    }

    /// The connection breaks, with all that was under way.
    pub fn cut(&mut self, why: Disconnect) {
        if self.connected {
            self.connected = false;
            self.c2s.clear();
            self.s2c.clear();
            self.client.handle_disconnected(self.now, why);
            self.server.connection(0).handle_disconnected(self.now, Disconnect::ByPeer);
        }
    }

    fn actions(&mut self) -> bool {
        let mut moved = false;
        while let Some(action) = self.client.poll_action(self.now) {
            moved = true;
            match action {
                Action::Connect { .. } => {
                    if self.connects.len() < self.connects.capacity() {
                        self.connects.push(action);
                    }
                    assert!(!self.connected, "a second connection");
                    if self.refuse {
                        self.client.handle_disconnected(self.now, Disconnect::Reset);
                    } else if !self.black_hole {
                        self.connected = true;
                        self.client.handle_connected(self.now);
                        self.server.connection(0).handle_connected(self.now);
                    }
                }
                Action::Close | Action::Abort => {
                    if self.connected {
                        self.cut(Disconnect::BySelf);
                    } else {
                        self.client.handle_disconnected(self.now, Disconnect::BySelf);
                    }
                }
            }
        }
        while let Some(action) = self.server.connection(0).poll_action(self.now) {
            assert_eq!(action, Action::Abort);
            moved = true;
            self.cut(Disconnect::Reset);
        }
        moved
    }

    /// Moves bytes once in each direction. False if nothing moved.
    pub fn step(&mut self) -> bool {
        let mut moved = self.actions();
        if !self.connected {
            return moved;
        }
        let (now, chunk) = (self.now, self.chunk);
        {
            let limit = (1 + self.rng.below(chunk) as usize).min(self.c2s.room());
            let mut out = SendVec::new();
            self.client.poll_send(now, &mut out);
            let n = take(&out, limit, |bytes| {
                if !self.black_hole {
                    self.c2s.push(bytes, &mut self.rng, self.refragment);
                }
            });
            drop(out);
            self.client.handle_sent(now, n);
            moved |= n > 0;
        }
        {
            let limit = (1 + self.rng.below(chunk) as usize).min(self.s2c.room());
            let mut session = self.server.connection(0);
            let mut out = SendVec::new();
            session.poll_send(now, &mut out);
            let n = take(&out, limit, |bytes| {
                if !self.black_hole {
                    self.s2c.push(bytes, &mut self.rng, self.refragment);
                }
            });
            drop(out);
            session.handle_sent(now, n);
            moved |= n > 0;
        }
        let mut limit = 1 + self.rng.below(chunk) as usize;
        while self.connected && limit > 0 {
            let mut session = self.server.connection(0);
            let n = self.c2s.pull(session.recv_buffer(), limit);
            session.handle_received(now, n);
            limit -= n;
            moved |= (n > 0) | self.actions();
            if n == 0 {
                break;
            }
        }
        let mut limit = 1 + self.rng.below(chunk) as usize;
        while self.connected && limit > 0 {
            // By turns as a transport that fills one buffer at a time, and as one that fills several.
            self.scatter = !self.scatter;
            let n = if self.scatter {
                let mut shown = RecvVec::new();
                self.client.recv_buffers(&mut shown);
                shown.iter_mut().fold(0, |n, buffer| n + self.s2c.pull(buffer, limit - n))
            } else {
                self.s2c.pull(self.client.recv_buffer(), limit)
            };
            self.client.handle_received(now, n);
            limit -= n;
            moved |= (n > 0) | self.actions();
            if n == 0 {
                break;
            }
        }
        moved | self.actions()
    }

    /// Moves bytes until none move, then lets time pass to the next deadline. False if there is none.
    pub fn turn(&mut self) -> bool {
        if self.step() {
            return true;
        }
        let client = self.client.poll_deadline();
        let server = self.server.connection(0).poll_deadline();
        let Some(next) = [client, server].into_iter().flatten().min() else { return false };
        self.now = self.now.max(next);
        self.client.handle_deadline(self.now);
        self.server.connection(0).handle_deadline(self.now);
        true
    }

    /// Turns until `done`, at most `turns` times.
    pub fn run(&mut self, turns: usize, mut done: impl FnMut(&mut World<C>) -> bool) {
        for _ in 0..turns {
            if done(self) {
                return;
            }
            assert!(self.turn(), "stuck at {}: {:?}", self.now, self.client);
        }
        panic!("not done at {}: {:?}", self.now, self.client);
    }
}

impl World {
    pub fn new(config: NfsConfig, server_config: NfsServerConfig, seed: u64) -> World {
        let mut server = server(server_config);
        server.add_file("area0", MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64));
        World::with(config, server, seed)
    }

    pub fn with(config: NfsConfig, server: NfsServer<MemDisk>, seed: u64) -> World {
        World::joined(NfsBackend::new(config), server, seed)
    }

    pub fn start(&mut self) -> u32 {
        self.run(10_000, |w| w.client.state() != BackendState::Starting);
        match self.client.state() {
            BackendState::Ready { slots } => slots,
            other => panic!("{other:?}"),
        }
    }

    pub fn pages(&self, n: usize) -> PageVec {
        (0..n).map(|_| self.pool.alloc(Gfp::KERNEL).unwrap()).collect()
    }

    pub fn submit(&mut self, id: u32, op: Op, first: u32, pages: PageVec) {
        let request = Request { id: RequestId(id), op, first: Slot(first), pages, deadline: None };
        self.client.submit(self.now, request).unwrap();
    }

    /// Submits and waits for the end of it.
    pub fn one(&mut self, op: Op, first: u32, pages: PageVec) -> Completion {
        self.submit(77, op, first, pages);
        let mut end = None;
        self.run(100_000, |w| {
            end = w.client.poll_completion(w.now);
            end.is_some()
        });
        end.unwrap()
    }
}

fn take(out: &SendVec<'_>, mut limit: usize, mut push: impl FnMut(&[u8])) -> usize {
    let mut n = 0;
    for piece in out {
        let piece = &piece[..piece.len().min(limit)];
        push(piece);
        n += piece.len();
        limit -= piece.len();
        if limit == 0 {
            break;
        }
    }
    n
}

/// Fills a page so that slot and version can be told from every part of it.
pub fn fill(page: &mut Frame, slot: u32, version: u32) {
    for (i, word) in page.bytes_mut().chunks_exact_mut(8).enumerate() {
        let value = (u64::from(slot) << 40 | u64::from(version) << 10 | i as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&value.to_le_bytes());
    }
}

/// Whether a page is as [`fill`] left it. Version 0 is a page of zeros.
pub fn holds(page: &Frame, slot: u32, version: u32) -> bool {
    if version == 0 {
        return page.bytes().iter().all(|byte| *byte == 0);
    }
    page.bytes().chunks_exact(8).enumerate().all(|(i, word)| {
        let value = (u64::from(slot) << 40 | u64::from(version) << 10 | i as u64)
            .wrapping_mul(0x9e37_79b9_7f4a_7c15);
        word == value.to_le_bytes()
    })
}

/// What a slot may hold: one version, or, after a write that failed, anything.
#[derive(Clone, Copy)]
enum Held {
    Version(u32),
    Unknown,
}

/// Random reads and writes, checked against a model.
pub struct Workload {
    held: Vec<Held>,
    /// Of each outstanding request: its first slot, its pages, its operation and its version.
    outstanding: Vec<Option<(u32, usize, Op, u32)>>,
    busy: Vec<bool>,
    version: u32,
    /// Most pages of a request.
    pub pages_max: u64,
    pub submitted: u32,
    pub ended: u32,
    pub replayed: u32,
    pub failed: Vec<StoreError>,
}

impl Workload {
    pub fn new(slots: u32, in_flight: usize) -> Workload {
        Workload {
            held: vec![Held::Version(0); slots as usize],
            outstanding: vec![None; in_flight],
            busy: vec![false; slots as usize],
            version: 0,
            pages_max: u64::MAX,
            submitted: 0,
            ended: 0,
            replayed: 0,
            failed: Vec::with_capacity(4096),
        }
    }

    /// Submits what fits until `total` requests were submitted; takes completions. True when all
    /// have ended.
    pub fn poll(&mut self, w: &mut World, total: u32) -> bool {
        while let Some(end) = w.client.poll_completion(w.now) {
            self.end(end);
        }
        let max = (w.client.limits().batch_pages as u64).min(self.pages_max);
        while self.submitted < total {
            let Some(id) = self.outstanding.iter().position(Option::is_none) else { break };
            let n = 1 + w.rng.below(max) as usize;
            let first = w.rng.below(self.held.len() as u64 - n as u64 + 1) as u32;
            let slots = first as usize..first as usize + n;
            // One request a slot: what is read while it is written is anybody's guess.
            if self.busy[slots.clone()].contains(&true) {
                break;
            }
            let op = if w.rng.below(2) == 0 { Op::Read } else { Op::Write };
            let mut pages = w.pages(n);
            self.version += 1;
            for (i, page) in pages.iter_mut().enumerate() {
                match op {
                    Op::Write => fill(page, first + i as u32, self.version),
                    Op::Read => page.bytes_mut().fill(0xEE),
                }
            }
            self.busy[slots].fill(true);
            self.outstanding[id] = Some((first, n, op, self.version));
            self.submitted += 1;
            w.submit(id as u32, op, first, pages);
        }
        self.ended == total
    }

    fn end(&mut self, end: Completion) {
        let (first, n, op, version) =
            self.outstanding[end.id.0 as usize].take().expect("a request that was submitted");
        assert_eq!(end.pages.len(), n, "pages come back");
        self.ended += 1;
        let slots = first as usize..first as usize + n;
        self.busy[slots.clone()].fill(false);
        match end.outcome {
            Ok(stored) => {
                self.replayed += u32::from(stored.replayed);
                for (i, page) in end.pages.iter().enumerate() {
                    let slot = first + i as u32;
                    match (op, self.held[slot as usize]) {
                        (Op::Write, _) => {
                            assert!(holds(page, slot, version), "a page changed while written");
                            self.held[slot as usize] = Held::Version(version);
                        }
                        (Op::Read, Held::Version(version)) => {
                            assert!(holds(page, slot, version), "slot {slot}, version {version}");
                        }
                        (Op::Read, Held::Unknown) => {}
                    }
                }
            }
            Err(error) => {
                self.failed.push(error);
                if op == Op::Write {
                    self.held[slots].fill(Held::Unknown);
                }
            }
        }
    }
}

/// A backend with its server and the stream between them.
pub struct Wired(pub World);

impl SwapBackend for Wired {
    fn state(&self) -> BackendState {
        self.0.client.state()
    }

    fn limits(&self) -> BackendLimits {
        self.0.client.limits()
    }

    fn server(&self) -> &str {
        self.0.client.server()
    }

    fn submit(&mut self, now: Time, request: Request) -> Result<(), SubmitError> {
        self.0.client.submit(now, request)
    }

    fn poll_completion(&mut self, now: Time) -> Option<Completion> {
        self.0.client.poll_completion(now)
    }

    fn poll_deadline(&self) -> Option<Time> {
        SwapBackend::poll_deadline(&self.0.client)
    }

    fn fences(&self) -> u64 {
        self.0.client.fences()
    }

    fn shutdown(&mut self, now: Time) {
        self.0.client.shutdown(now);
    }

    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        self.0.client.outstanding(visit);
    }
}
