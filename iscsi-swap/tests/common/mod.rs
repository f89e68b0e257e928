//! An initiator and a target joined by a byte stream in memory, cut into chunks of random size, on
//! virtual time. Everything is drawn from one seed.
#![allow(dead_code, unreachable_pub)]

pub mod raw;

use std::collections::VecDeque;
use std::io::IoSliceMut;
use std::net::SocketAddr;

use netswap_iscsi::{
    InitiatorConfig, IscsiBackend, IscsiTarget, TargetConfig, TargetFaults, UnitOptions,
    WritePolicy,
};
use netswap_net::{Action, Disconnect, RecvVec, SendVec, Session};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap_swap::{
    BackendState, Completion, MemDisk, Op, PageVec, Request, RequestId, Slot, StoreError,
    SubmitError, SwapBackend,
};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

pub const IQN: &str = "iqn.2026-01.test:disk";
pub const SLOTS: u32 = 64;
/// The LUN of [`Pump::add_thin`].
pub const THIN: u16 = 1;

pub fn initiator_config() -> InitiatorConfig {
    let mut config = InitiatorConfig::new("10.0.0.2:3260".parse().unwrap(), IQN, 0);
    config.request_timeout = Span::from_secs(2);
    config
}

pub fn target_config() -> TargetConfig {
    let mut config = TargetConfig::new(IQN);
    config.queue_depth = 8;
    config
}

/// Every fault that a target's answers can have, each so often that many are met in a hundred requests.
pub fn every_fault() -> TargetFaults {
    TargetFaults {
        late_ppm: 50_000,
        late_by: Span::from_millis(900),
        twice_ppm: 20_000,
        garbage_ppm: 20_000,
        busy_ppm: 50_000,
        task_set_full_ppm: 50_000,
        check_condition_ppm: 50_000,
        ..TargetFaults::default()
    }
}

/// For connections that are cut: both write policies, and data that comes in small pieces, with and without R2Ts.
pub fn pump_to_be_cut(seed: u64, mut initiator: InitiatorConfig) -> Pump {
    if seed.is_multiple_of(3) {
        initiator.write_policy = WritePolicy::SyncCache;
    }
    let mut target = target_config();
    target.keys.initial_r2t = seed.is_multiple_of(2);
    target.keys.recv_segment = 8192;
    let mut pump = Pump::new(seed, initiator, target);
    pump.ready();
    pump
}

pub struct Pump {
    pub backend: IscsiBackend,
    pub target: IscsiTarget<MemDisk>,
    pub pool: PagePool,
    pub now: Time,
    pub rng: Xoshiro256PlusPlus,
    /// Largest chunk that moves at once.
    pub chunk_max: usize,
    /// Cut the connection when this many bytes have moved.
    pub cut_at: Option<u64>,
    pub moved: u64,
    pub connects: u64,
    /// Nothing passes, and nobody learns of it.
    pub partitioned: bool,
    /// Where nobody answers.
    pub dead: Vec<SocketAddr>,
    /// Where the connection at hand, or the last one, went.
    pub remote: Option<SocketAddr>,
    /// One in so many sends of a session is damaged: of the initiator, of the target. 0 is never.
    pub damage: [usize; 2],
    /// How many were.
    pub damaged: u64,
    /// What each slot is filled with.
    pub model: Vec<u8>,
    /// Everything that was sent, up and down, of all connections.
    pub tape_up: Vec<u8>,
    pub tape_down: Vec<u8>,
    link: Option<usize>,
    up: VecDeque<u8>,
    down: VecDeque<u8>,
    open: Vec<bool>,
    /// Connections of which only the target does not know yet that they are gone.
    zombies: Vec<usize>,
}

impl Pump {
    pub fn new(seed: u64, initiator: InitiatorConfig, target: TargetConfig) -> Pump {
        Pump::with_disk(seed, initiator, target, 512, u64::from(SLOTS) * PAGE_SIZE as u64)
    }

    pub fn with_disk(
        seed: u64,
        initiator: InitiatorConfig,
        target: TargetConfig,
        block_size: u32,
        len: u64,
    ) -> Pump {
        let mut config = PoolConfig::new(target.frames() + 1024);
        config.magazine = 0;
        let pool = PagePool::new(config);
        let lun = initiator.lun;
        let mut target = IscsiTarget::new(target, pool.clone()).unwrap();
        if lun != THIN {
            target.add_lun(lun, MemDisk::new(len), block_size, false).unwrap();
        }
        Pump {
            backend: IscsiBackend::new(initiator),
            open: vec![false; target.connections()],
            target,
            pool,
            now: Time::ZERO,
            rng: Xoshiro256PlusPlus::seed_from_u64(seed),
            chunk_max: 20_000,
            cut_at: None,
            moved: 0,
            connects: 0,
            partitioned: false,
            dead: Vec::new(),
            remote: None,
            damage: [0, 0],
            damaged: 0,
            model: vec![0; SLOTS as usize],
            tape_up: Vec::new(),
            tape_down: Vec::new(),
            link: None,
            up: VecDeque::new(),
            down: VecDeque::new(),
            zombies: Vec::new(),
        }
    }

    /// Adds a unit that takes UNMAP.
    pub fn add_thin(&mut self) {
        let disk = MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64);
        let options = UnitOptions { thin: true, ..UnitOptions::default() };
        self.target.add_unit(THIN, disk, options).unwrap();
    }

    pub fn below(&mut self, n: usize) -> usize {
        self.rng.next_u32() as usize % n
    }

    /// The initiator loses the stream; the target learns of it later.
    pub fn cut(&mut self) {
        let Some(index) = self.link.take() else { return };
        self.up.clear();
        self.down.clear();
        self.zombies.push(index);
        self.backend.handle_disconnected(self.now, Disconnect::Reset);
    }

    fn bury(&mut self, index: usize) {
        self.zombies.retain(|z| *z != index);
        self.open[index] = false;
        self.target.connection(index).handle_disconnected(self.now, Disconnect::Reset);
    }

    fn actions(&mut self) -> bool {
        let mut did = false;
        if let Some(action) = self.backend.poll_action(self.now) {
            did = true;
            match action {
                Action::Connect { .. } if self.partitioned => {}
                Action::Connect { remote, .. } if self.dead.contains(&remote) => {
                    self.backend.handle_disconnected(self.now, Disconnect::Refused);
                }
                Action::Connect { remote, .. } => {
                    self.remote = Some(remote);
                    let free = self.open.iter().position(|o| !o);
                    let free = free.or_else(|| {
                        let old = *self.zombies.first()?;
                        self.bury(old);
                        Some(old)
                    });
                    let index = free.expect("a connection is free or dead");
                    self.open[index] = true;
                    self.link = Some(index);
                    self.connects += 1;
                    self.target.connection(index).handle_connected(self.now);
                    self.backend.handle_connected(self.now);
                }
                Action::Close | Action::Abort => {
                    if let Some(index) = self.link.take() {
                        if action == Action::Close {
                            let rest: Vec<u8> = self.up.drain(..).collect();
                            let mut end = self.target.connection(index);
                            deliver(&mut end, self.now, &rest);
                        }
                        self.up.clear();
                        self.down.clear();
                        self.zombies.push(index);
                    }
                    self.backend.handle_disconnected(self.now, Disconnect::BySelf);
                }
            }
        }
        for index in 0..self.open.len() {
            if !self.open[index] {
                continue;
            }
            if let Some(action) = self.target.connection(index).poll_action(self.now) {
                did = true;
                self.open[index] = false;
                self.zombies.retain(|z| *z != index);
                if self.link == Some(index) {
                    self.link = None;
                    if action == Action::Close {
                        let rest: Vec<u8> = self.down.drain(..).collect();
                        deliver(&mut self.backend, self.now, &rest);
                    }
                    self.up.clear();
                    self.down.clear();
                    self.backend.handle_disconnected(self.now, Disconnect::ByPeer);
                }
                self.target.connection(index).handle_disconnected(self.now, Disconnect::BySelf);
            }
        }
        if !self.zombies.is_empty() && self.below(8) == 0 {
            let index = self.zombies[0];
            self.bury(index);
            did = true;
        }
        did
    }

    /// Perhaps turns a bit of the `n` bytes that were sent last.
    fn damage(&mut self, way: usize, n: usize) {
        let rate = self.damage[way];
        if rate == 0 || self.below(rate) > 0 {
            return;
        }
        let (place, bit) = (self.below(n), self.below(8));
        let wire = if way == 0 { &mut self.up } else { &mut self.down };
        let at = wire.len() - n + place;
        wire[at] ^= 1 << bit;
        self.damaged += 1;
    }

    /// Moves what can be moved once; whether anything was.
    pub fn step(&mut self) -> bool {
        let mut did = self.actions();
        for direction in 0..4 {
            let Some(index) = self.link else { break };
            if self.partitioned && direction % 2 == 1 {
                continue;
            }
            let pick = self.rng.next_u32() as usize;
            let most = self.chunk_max;
            let before = (self.up.len(), self.down.len());
            let n = match direction {
                0 => send(&mut self.backend, self.now, &mut self.up, pick, most),
                1 => receive(&mut self.target.connection(index), self.now, &mut self.up, pick),
                2 => {
                    let mut end = self.target.connection(index);
                    send(&mut end, self.now, &mut self.down, pick, most)
                }
                _ => receive(&mut self.backend, self.now, &mut self.down, pick),
            };
            if n > 0 && direction % 2 == 0 && self.backend.is_connected() {
                self.damage(direction / 2, n);
            }
            match direction {
                0 => self.tape_up.extend(self.up.range(before.0..)),
                2 => self.tape_down.extend(self.down.range(before.1..)),
                _ => {}
            }
            did |= n > 0;
            self.moved += n as u64;
            if self.cut_at.is_some_and(|at| self.moved >= at) {
                self.cut_at = None;
                self.cut();
                did = true;
            }
        }
        did
    }

    /// Moves until nothing moves any more.
    pub fn settle(&mut self) {
        for _ in 0..2_000_000 {
            if !self.step() {
                return;
            }
        }
        panic!("the stream never comes to rest");
    }

    /// Goes on to the next timer of either side.
    pub fn advance(&mut self) -> bool {
        let mut next = Session::poll_deadline(&self.backend);
        for index in 0..self.open.len() {
            let due = self.target.connection(index).poll_deadline();
            next = [next, due].into_iter().flatten().min();
        }
        let Some(next) = next else { return false };
        self.now = self.now.max(next);
        self.backend.handle_deadline(self.now);
        for index in 0..self.open.len() {
            self.target.connection(index).handle_deadline(self.now);
        }
        true
    }

    /// Until the backend leaves `Starting`.
    pub fn start(&mut self) -> BackendState {
        for _ in 0..10_000 {
            self.settle();
            if self.backend.state() != BackendState::Starting {
                return self.backend.state();
            }
            assert!(self.advance(), "nothing left to wait for");
        }
        panic!("never ready: {:?}", self.backend.stats());
    }

    pub fn ready(&mut self) {
        let state = self.start();
        assert!(matches!(state, BackendState::Ready { .. }), "{state:?}");
    }

    /// The next completion, whatever it takes.
    pub fn complete(&mut self) -> Completion {
        for _ in 0..200_000 {
            if let Some(completion) = self.backend.poll_completion(self.now) {
                return completion;
            }
            if !self.step() {
                assert!(self.advance(), "nothing left to wait for");
            }
        }
        panic!("no completion: {:?} {:?}", self.backend.stats(), self.target.fault_counts());
    }

    pub fn pages(&self, n: usize, fill: impl Fn(usize) -> u8) -> PageVec {
        (0..n)
            .map(|i| {
                let mut frame = self.pool.alloc(Gfp::KERNEL).unwrap();
                frame.bytes_mut().fill(fill(i));
                frame
            })
            .collect()
    }

    pub fn request(&self, id: u32, op: Op, first: u32, pages: PageVec) -> Request {
        Request { id: RequestId(id), op, first: Slot(first), pages, deadline: None }
    }

    pub fn submit(&mut self, request: Request) {
        self.backend.submit(self.now, request).map_err(|_| "not taken").unwrap();
    }

    /// One request from start to end.
    pub fn run(&mut self, op: Op, first: u32, pages: PageVec) -> Completion {
        let request = self.request(0, op, first, pages);
        self.submit(request);
        self.complete()
    }
}

fn send(
    end: &mut dyn Session,
    now: Time,
    wire: &mut VecDeque<u8>,
    pick: usize,
    most: usize,
) -> usize {
    let mut out = SendVec::new();
    end.poll_send(now, &mut out);
    let all: usize = out.iter().map(|s| s.len()).sum();
    if all == 0 || wire.len() > 1 << 17 {
        return 0;
    }
    let n = 1 + pick % all.min(most);
    let mut left = n;
    for slice in &out {
        let take = left.min(slice.len());
        wire.extend(&slice[..take]);
        left -= take;
    }
    drop(out);
    end.handle_sent(now, n);
    n
}

/// By turns, as `pick` has it, as a transport that fills one buffer at a time, and as one that fills several.
fn receive(end: &mut dyn Session, now: Time, wire: &mut VecDeque<u8>, pick: usize) -> usize {
    let mut left = if wire.is_empty() { 0 } else { 1 + pick % wire.len() };
    let mut moved = 0;
    let scatter = (pick >> 8) & 1 == 0;
    while left > 0 {
        let mut shown = RecvVec::new();
        if scatter {
            end.recv_buffers(&mut shown);
        } else {
            shown.push(IoSliceMut::new(end.recv_buffer()));
        }
        let mut n = 0;
        for place in shown.iter_mut().flat_map(|buffer| buffer.iter_mut()).take(left) {
            *place = wire.pop_front().unwrap();
            n += 1;
        }
        drop(shown);
        if n == 0 {
            break;
        }
        end.handle_received(now, n);
        left -= n;
        moved += n;
    }
    moved
}

/// Hands over `bytes` as far as they are taken; how many were.
pub fn deliver(end: &mut dyn Session, now: Time, bytes: &[u8]) -> usize {
    let mut wire: VecDeque<u8> = bytes.iter().copied().collect();
    while !wire.is_empty() && receive(end, now, &mut wire, bytes.len() - 1) > 0 {}
    bytes.len() - wire.len()
}

/// Random reads and writes against a model, as many at once as the backend takes. Requests may
/// overlap: the order of submission decides what a read sees.
pub fn model_run(pump: &mut Pump, requests: u32) {
    let mut expected: Vec<Option<Vec<u8>>> = vec![None; requests as usize];
    let (mut submitted, mut completed) = (0, 0);
    while completed < requests {
        let submit_now = submitted < requests && pump.below(3) > 0;
        if submit_now {
            let pages = 1 + pump.below(16);
            let first = pump.below(SLOTS as usize - pages + 1);
            let write = pump.below(2) == 0;
            let fill = pump.below(256) as u8;
            let slots = &mut pump.model[first..first + pages];
            let (op, vec) = if write {
                slots.iter_mut().enumerate().for_each(|(i, s)| *s = fill.wrapping_add(i as u8));
                (Op::Write, pump.pages(pages, |i| fill.wrapping_add(i as u8)))
            } else {
                expected[submitted as usize] = Some(slots.to_vec());
                (Op::Read, pump.pages(pages, |_| 0xee))
            };
            let request = pump.request(submitted, op, first as u32, vec);
            match pump.backend.submit(pump.now, request) {
                Ok(()) => submitted += 1,
                Err(SubmitError::Full(request)) => {
                    // Not taken: the model must not have it. A write is made good by the next one
                    // of its slots, so finish one request and try again at once.
                    let mut request = Some(request);
                    while let Some(again) = request.take() {
                        check(&pump.complete(), &expected);
                        completed += 1;
                        match pump.backend.submit(pump.now, again) {
                            Ok(()) => submitted += 1,
                            Err(SubmitError::Full(back)) => request = Some(back),
                            Err(SubmitError::NotReady(_)) => panic!("not ready"),
                        }
                    }
                }
                Err(SubmitError::NotReady(_)) => panic!("not ready"),
            }
            continue;
        }
        if completed < submitted {
            if pump.below(2) == 0 {
                pump.step();
            } else {
                check(&pump.complete(), &expected);
                completed += 1;
            }
        }
    }
    // The disk itself holds what the model says.
    for (slot, fill) in pump.model.clone().iter().enumerate() {
        let mut page = [0; PAGE_SIZE];
        let disk = pump.target.disk_mut(0).unwrap();
        netswap_swap::Disk::read_at(disk, (slot * PAGE_SIZE) as u64, &mut page).unwrap();
        assert!(page.iter().all(|b| b == fill), "slot {slot}");
    }
}

fn check(completion: &Completion, expected: &[Option<Vec<u8>>]) {
    let id = completion.id.0 as usize;
    let stored = completion.outcome.unwrap_or_else(|e: StoreError| panic!("request {id}: {e}"));
    assert!(!stored.replayed);
    let Some(expected) = &expected[id] else { return };
    assert_eq!(expected.len(), completion.pages.len());
    for (page, fill) in completion.pages.iter().zip(expected) {
        assert!(page.bytes().iter().all(|b| b == fill), "request {id} read something else");
    }
}
