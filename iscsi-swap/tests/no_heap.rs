//! Goal: once the backend is ready, neither side touches the heap: not for requests, not for faults,
//! not for a reconnect with its login.
//! Method: an allocator that counts for this thread while armed. First it is shown to catch an
//! allocation planted between the same two lines; then initiator and target are pumped back to back
//! over fixed buffers through requests of all sizes, cuts, restarts and faults.

#[path = "common/counting.rs"]
mod counting;

use counting::armed;
use netswap_iscsi::{
    ChapConfig, Credentials, Digest, InitiatorConfig, IscsiBackend, IscsiTarget, TargetConfig,
    TargetFaults, UnitOptions, WritePolicy,
};
use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_reserve::{Gfp, PagePool, PoolConfig, Span, Time};
use netswap_swap::{
    BackendState, Discard, MemDisk, Op, PageVec, Request, RequestId, Run, RunVec, Slot, SwapBackend,
};

/// A byte stream of fixed size.
struct Wire {
    bytes: Box<[u8]>,
    from: usize,
    to: usize,
}

impl Wire {
    fn new() -> Wire {
        Wire { bytes: vec![0; 1 << 16].into(), from: 0, to: 0 }
    }

    fn clear(&mut self) {
        (self.from, self.to) = (0, 0);
    }

    fn fill(&mut self, end: &mut dyn Session, now: Time) -> bool {
        if self.from < self.to {
            return false;
        }
        self.clear();
        let mut out = SendVec::new();
        end.poll_send(now, &mut out);
        for slice in &out {
            let n = slice.len().min(self.bytes.len() - self.to);
            self.bytes[self.to..self.to + n].copy_from_slice(&slice[..n]);
            self.to += n;
        }
        drop(out);
        end.handle_sent(now, self.to);
        self.to > 0
    }

    fn drain(&mut self, end: &mut dyn Session, now: Time) -> bool {
        let before = self.from;
        while self.from < self.to {
            let buf = end.recv_buffer();
            let n = buf.len().min(self.to - self.from);
            if n == 0 {
                break;
            }
            buf[..n].copy_from_slice(&self.bytes[self.from..self.from + n]);
            self.from += n;
            end.handle_received(now, n);
        }
        self.from > before
    }
}

struct World {
    backend: IscsiBackend,
    target: IscsiTarget<MemDisk>,
    pool: PagePool,
    now: Time,
    up: Wire,
    down: Wire,
    open: bool,
    connects: u32,
}

impl World {
    /// `secure`: with CHAP in both directions and digests.
    fn new(policy: WritePolicy, secure: bool) -> World {
        let iqn = "iqn.2026-01.test:disk";
        let mut target = TargetConfig::new(iqn);
        target.queue_depth = 8;
        target.keys.initial_r2t = policy == WritePolicy::SyncCache;
        target.keys.recv_segment = 8192;
        target.keys.first_burst = 16384;
        let pool = PagePool::new(PoolConfig::new(target.frames() + 1024));
        let mut initiator = InitiatorConfig::new("10.0.0.2:3260".parse().unwrap(), iqn, 0);
        initiator.request_timeout = Span::from_secs(1);
        initiator.write_policy = policy;
        // Faults come so thick that one request may meet eight of them in a row.
        initiator.garbage_limit = 100;
        if policy == WritePolicy::SyncCache {
            initiator = initiator.with_all();
            initiator.discard = true;
        }
        if secure {
            initiator.chap = Some(ChapConfig {
                initiator: Credentials::new("alice", b"secretpass12").unwrap(),
                target: Credentials::new("targ", b"targetpass34"),
            });
            (initiator.header_digest, initiator.data_digest) = (Digest::Crc32c, Digest::Crc32c);
            target.chap = initiator.chap.clone();
            (target.keys.header_digest, target.keys.data_digest) = (Digest::Prefer, Digest::Prefer);
        }
        let mut target = IscsiTarget::new(target, pool.clone()).unwrap();
        let options = UnitOptions { thin: true, ..UnitOptions::default() };
        target.add_unit(0, MemDisk::new(1 << 20), options).unwrap();
        World {
            backend: IscsiBackend::new(initiator),
            target,
            pool,
            now: Time::ZERO,
            up: Wire::new(),
            down: Wire::new(),
            open: false,
            connects: 0,
        }
    }

    fn disconnect(&mut self) {
        self.up.clear();
        self.down.clear();
        self.open = false;
        self.target.connection(0).handle_disconnected(self.now, Disconnect::Reset);
        self.backend.handle_disconnected(self.now, Disconnect::Reset);
    }

    fn step(&mut self) {
        let mut did = false;
        match self.backend.poll_action(self.now) {
            Some(Action::Connect { .. }) => {
                self.open = true;
                self.connects += 1;
                self.target.connection(0).handle_connected(self.now);
                self.backend.handle_connected(self.now);
                did = true;
            }
            Some(_) => {
                self.disconnect();
                did = true;
            }
            None => {}
        }
        if self.open && self.target.connection(0).poll_action(self.now).is_some() {
            self.disconnect();
            did = true;
        }
        if self.open {
            did |= self.up.fill(&mut self.backend, self.now);
            did |= self.up.drain(&mut self.target.connection(0), self.now);
            did |= self.down.fill(&mut self.target.connection(0), self.now);
            did |= self.down.drain(&mut self.backend, self.now);
        }
        if !did {
            let mine = Session::poll_deadline(&self.backend);
            let theirs = self.target.connection(0).poll_deadline();
            self.now = [mine, theirs].into_iter().flatten().min().unwrap().max(self.now);
            self.backend.handle_deadline(self.now);
            self.target.connection(0).handle_deadline(self.now);
        }
    }

    /// Eight requests at once, of growing length.
    fn round(&mut self, round: u32, disturb: impl FnOnce(&mut World)) {
        for id in 0..8 {
            let mut pages = PageVec::new();
            for _ in 0..=2 * id {
                pages.push(self.pool.alloc(Gfp::KERNEL).unwrap());
            }
            let op = if (id + round).is_multiple_of(2) { Op::Write } else { Op::Read };
            let first = Slot(id * 16);
            let request = Request { id: RequestId(id), op, first, pages, deadline: None };
            assert!(self.backend.submit(self.now, request).is_ok());
        }
        let mut due = 8;
        if self.backend.discards().is_some() {
            let run = |first| Run { first: Slot(first), slots: 3 };
            let (id, runs) = (RequestId(8), RunVec::from_iter([run(200), run(208), run(5)]));
            let discard = Discard { id, runs, deadline: None };
            assert!(self.backend.discard(self.now, discard).is_ok());
            due += 1;
        }
        for _ in 0..round % 7 {
            self.step();
        }
        disturb(self);
        let mut done = 0;
        for _ in 0..100_000 {
            while let Some(completion) = self.backend.poll_completion(self.now) {
                assert!(completion.outcome.is_ok(), "{:?}", completion.outcome);
                done += 1;
            }
            if done == due {
                return;
            }
            self.step();
        }
        panic!("requests never end");
    }
}

#[test]
fn nothing_is_allocated_once_the_backend_is_ready() {
    let planted = armed(|| {
        std::hint::black_box(Box::new(7u8));
    });
    assert_eq!(planted, 1, "the allocator catches one that is planted");
    for (policy, secure) in [
        (WritePolicy::Fua, false),
        (WritePolicy::SyncCache, false),
        (WritePolicy::Fua, true),
        (WritePolicy::SyncCache, true),
    ] {
        let mut world = World::new(policy, secure);
        while !matches!(world.backend.state(), BackendState::Ready { .. }) {
            world.step();
        }
        // A round as the paging path runs it, with one allocation planted in its midst.
        let planted = armed(|| world.round(0, |_| drop(std::hint::black_box(vec![1u8; 100]))));
        assert_eq!(planted, 1, "a planted one is caught in the midst of requests");

        let quiet = armed(|| (0..20).for_each(|round| world.round(round, |_| ())));
        assert_eq!(quiet, 0, "requests");
        let cut = armed(|| (0..20).for_each(|round| world.round(round, World::disconnect)));
        assert_eq!(cut, 0, "reconnects");
        let restart = |world: &mut World| world.target.restart(world.now);
        let restarted = armed(|| (0..20).for_each(|round| world.round(round, restart)));
        assert_eq!(restarted, 0, "restarts of the target");
        assert!(world.connects >= 30, "{} connects", world.connects);
        world.target.set_faults(TargetFaults {
            late_ppm: 100_000,
            late_by: Span::from_millis(50),
            twice_ppm: 20_000,
            garbage_ppm: 20_000,
            busy_ppm: 100_000,
            task_set_full_ppm: 100_000,
            check_condition_ppm: 100_000,
            header_digest_ppm: if secure { 20_000 } else { 0 },
            data_digest_ppm: if secure { 20_000 } else { 0 },
            ..TargetFaults::default()
        });
        let faulty = armed(|| (0..40).for_each(|round| world.round(round, |_| ())));
        assert_eq!(faulty, 0, "faults of the target");
        let counts = world.target.fault_counts();
        assert!(counts.garbage() > 0 && counts.twice > 0 && counts.late > 0, "{counts:?}");
    }
}
