//! Goal: the initiator keeps what every backend has to keep on targets that others wrote, over sockets of the kernel: it
//! finds its way through their windows, their login and their answers, and what it writes is on their disks.
//! Method: tgt, with its keys raised and as it comes, and istgt, started by the test. The suite of
//! `netswap_swap::conformance` over each; requests that merge, read back from the disk's own file; a kill and a restart
//! under load.

#[path = "common/kernel.rs"]
mod kernel;
#[path = "common/servers.rs"]
mod servers;

use std::cell::RefCell;

use kernel::{Net, config};
use netswap_iscsi::{InitiatorConfig, IscsiBackend};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::{
    BackendState, Op, PageVec, Request, RequestId, Slot, StoreError, SwapBackend, conformance,
};
use servers::{Kind, Server};

const KINDS: [Kind; 3] = [Kind::Tgt, Kind::TgtAsItComes, Kind::Istgt];

fn page(slot: u32, version: u8, at: usize) -> u8 {
    (slot as u8).wrapping_mul(31) ^ version ^ (at / 64) as u8
}

struct World {
    net: Net,
    pool: PagePool,
    backend: IscsiBackend,
}

impl World {
    fn new(config: InitiatorConfig) -> World {
        let mut net = Net::new();
        let mut backend = IscsiBackend::new(config);
        let state = net.start(&mut backend);
        assert!(matches!(state, BackendState::Ready { .. }), "{state:?} {backend:?}");
        World { net, pool: PagePool::new(PoolConfig::new(2048)), backend }
    }

    /// Moves slots `0..slots`, `batch` a request, all submitted as soon as they are taken; `each` is called after
    /// each completion.
    fn move_all(&mut self, op: Op, slots: u32, batch: u32, version: u8, mut each: impl FnMut(u32)) {
        let total = slots / batch;
        let (mut submitted, mut ended) = (0, 0);
        let limit = self.net.now() + Span::from_secs(100);
        while ended < total {
            while submitted < total && submitted - ended < 32 {
                let first = submitted * batch;
                let pages: PageVec = (0..batch)
                    .map(|i| {
                        let mut frame = self.pool.alloc(Gfp::KERNEL).unwrap();
                        for (at, byte) in frame.bytes_mut().iter_mut().enumerate() {
                            *byte =
                                if op == Op::Write { page(first + i, version, at) } else { 0xee };
                        }
                        frame
                    })
                    .collect();
                let id = RequestId(submitted);
                let request = Request { id, op, first: Slot(first), pages, deadline: None };
                self.backend.submit(self.net.now(), request).unwrap();
                submitted += 1;
            }
            self.net.turn(&mut self.backend, Span::from_millis(20));
            assert!(self.net.now() < limit, "stuck: {:?}", self.backend);
            while let Some(end) = self.backend.poll_completion(self.net.now()) {
                end.outcome.unwrap();
                ended += 1;
                for (i, frame) in end.pages.iter().enumerate() {
                    let slot = end.id.0 * batch + i as u32;
                    let bytes = frame.bytes().iter().enumerate();
                    let right = bytes.into_iter().all(|(at, b)| *b == page(slot, version, at));
                    assert!(right, "{op:?} of slot {slot}");
                }
                each(ended);
            }
        }
    }
}

#[test]
fn they_pass_the_suite_of_all_backends() {
    for kind in KINDS {
        let Some(server) = Server::start(kind) else { continue };
        let pool = PagePool::new(PoolConfig::new(512));
        let net = RefCell::new(Net::new());
        // Each backend is an initiator of its own: it does not reinstate the session of the one before.
        let mut isid = 0;
        let make = || {
            isid += 1;
            let mut config = config(&server.url("disk1"));
            config.isid[5] = isid;
            net.replace(Net::new());
            IscsiBackend::new(config)
        };
        // The suite lets time pass without the loop: the clock of its backends runs ahead of the real one.
        conformance::check(&pool, make, |backend, now| {
            let mut net = net.borrow_mut();
            net.skip_to(*now);
            net.turn(backend, Span::from_millis(20));
            *now = net.now();
        });
    }
}

#[test]
fn adjacent_requests_go_in_one_command_and_arrive() {
    for kind in KINDS {
        let Some(server) = Server::start(kind) else { continue };
        let mut world = World::new(config(&server.url("disk1")));
        world.move_all(Op::Write, 2048, 1, 3, |_| ());
        let written = world.backend.stats();
        assert!(written.joined > 500, "{kind:?}: {written:?}");
        for slot in [0, 1, 700, 2047] {
            let bytes = server.disk(u64::from(slot) * PAGE_SIZE as u64, PAGE_SIZE);
            assert!(
                bytes.iter().enumerate().all(|(at, b)| *b == page(slot, 3, at)),
                "{kind:?} {slot}"
            );
        }
        world.move_all(Op::Read, 2048, 1, 3, |_| ());
        world.move_all(Op::Write, 2048, 16, 4, |_| ());
        world.move_all(Op::Read, 2048, 16, 4, |_| ());
        world.move_all(Op::Read, 2048, 4, 4, |_| ());
        let stats = world.backend.stats();
        assert!(stats.joined > written.joined, "{kind:?}: {stats:?}");
        let trouble =
            stats.garbage + stats.timeouts + stats.rejects + stats.disconnects + stats.aborted;
        assert_eq!((stats.logins, trouble), (1, 0), "{kind:?}: {stats:?}");
    }
}

#[test]
fn a_target_that_is_killed_and_comes_back_loses_no_page() {
    for kind in KINDS {
        let Some(mut server) = Server::start(kind) else { continue };
        let mut world = World::new(config(&server.url("disk1")));
        for version in 1..4 {
            world.move_all(Op::Write, 1024, 4, version, |ended| {
                if ended == 100 {
                    server.kill();
                    server.run();
                }
            });
            world.move_all(Op::Read, 1024, 4, version, |_| ());
        }
        let stats = world.backend.stats();
        assert_eq!(stats.logins, 4, "{kind:?}: {stats:?}");
        assert_eq!(stats.garbage, 0, "{kind:?}: {stats:?}");
    }
}

#[test]
fn a_unit_that_is_not_there_and_a_target_that_is_unknown_are_errors() {
    for kind in KINDS {
        let Some(server) = Server::start(kind) else { continue };
        let refused = |config: InitiatorConfig| {
            let mut backend = IscsiBackend::new(config);
            Net::new().start(&mut backend)
        };
        let mut absent = config(&server.url("disk1"));
        absent.lun = 7;
        let state = refused(absent);
        assert!(
            matches!(state, BackendState::Failed(StoreError::Refused { .. })),
            "{kind:?}: {state:?}"
        );
        let mut unknown = config(&server.url("disk1"));
        unknown.target = "iqn.2026-01.test:nobody".into();
        let state = refused(unknown);
        assert!(
            matches!(state, BackendState::Failed(StoreError::Refused { .. })),
            "{kind:?}: {state:?}"
        );
    }
}
