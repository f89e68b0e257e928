//! Goal: a file that somebody at the server removed, or put another in the place of, ends the area: each request ends
//! with an error that says so and with its pages, nothing is written to the other file, and the pager goes on
//! without the area. What may pass does not end it.
//! Method: the client and the embedded server on virtual time, with requests of both kinds outstanding, merged
//! or not; then the pager over two areas, under each policy.

mod common;

use common::host::{Host, PAGES};
use common::{SLOTS, Workload, World, config, fill, holds};
use netswap_nfs::{NfsConfig, NfsServerConfig, WritePolicy};
use netswap_reserve::{PAGE_SIZE, Span};
use netswap_swap::{
    AreaId, AreaOptions, AreaState, BackendState, Completion, Disk, FailurePolicy, Gone, MemDisk,
    Op, PageError, PagerEvent, StoreError, SubmitError, SwapBackend,
};

fn disk() -> MemDisk {
    MemDisk::new(u64::from(SLOTS) * PAGE_SIZE as u64)
}

fn remove(world: &mut World) {
    assert!(world.server.remove_file("area0"));
}

fn replace(world: &mut World) {
    remove(world);
    world.server.add_file("area0", disk());
}

fn gone(how: Gone) -> StoreError {
    StoreError::Gone { how }
}

/// The ways in which the client works.
fn configs() -> impl Iterator<Item = NfsConfig> {
    let mounts = [None, Some("10.0.0.2:20048".parse().unwrap())];
    let writes = [WritePolicy::FileSync, WritePolicy::Unstable];
    let all = mounts.into_iter().flat_map(move |mount| writes.map(|write| (mount, write)));
    all.flat_map(|(mount, write)| {
        [false, true].map(|merge| NfsConfig { mount, write, merge, ..config() })
    })
}

/// Ends what is outstanding, and gives it.
fn ends(w: &mut World, n: usize) -> Vec<Completion> {
    let mut ends = Vec::new();
    w.run(100_000, |w| {
        ends.extend(std::iter::from_fn(|| w.client.poll_completion(w.now)));
        ends.len() == n
    });
    ends
}

#[test]
fn everything_ends_with_the_error_and_no_page_is_lost() {
    type Fault = fn(&mut World);
    let faults: [(Fault, Gone); 2] = [(remove, Gone::Removed), (replace, Gone::Replaced)];
    for (fault, how) in faults {
        for config in configs() {
            let mut w = World::new(config, NfsServerConfig::default(), 1);
            w.start();
            // Adjacent slots, so some are merged; two that wait for another; some that are being sent.
            for id in 0..32 {
                let first = if id < 30 { id * 4 } else { 0 };
                let mut pages = w.pages(2);
                pages.iter_mut().zip(first..).for_each(|(page, slot)| fill(page, slot, 1));
                w.submit(id, if id % 3 == 0 { Op::Read } else { Op::Write }, first, pages);
            }
            w.step();
            fault(&mut w);
            let ends = ends(&mut w, 32);
            // What was written before it was gone may have ended well.
            let bad = ends.iter().filter(|end| end.outcome.is_err());
            assert!(bad.clone().count() > 8);
            assert!(bad.clone().all(|end| end.outcome.unwrap_err() == gone(how)), "{ends:?}");
            for end in &ends {
                assert_eq!(end.pages.len(), 2);
                let first = if end.id.0 < 30 { end.id.0 * 4 } else { 0 };
                let is_write = end.id.0 % 3 > 0;
                let whole = |(page, slot)| holds(page, slot, 1);
                assert!(!is_write || end.pages.iter().zip(first..).all(whole));
            }
            assert_eq!(w.client.state(), BackendState::Failed(gone(how)));
            let pages = w.pages(1);
            let request = netswap_swap::Request {
                id: netswap_swap::RequestId(99),
                op: Op::Read,
                first: netswap_swap::Slot(0),
                pages,
                deadline: None,
            };
            assert!(matches!(w.client.submit(w.now, request), Err(SubmitError::NotReady(_))));
            // It wants nothing more, no connection either.
            while w.step() {}
            assert!(!w.connected);
            w.client.outstanding(&mut |left| panic!("{left:?}"));
            if how == Gone::Replaced {
                let mut page = [0xEE; PAGE_SIZE];
                for slot in 0..u64::from(SLOTS) {
                    let disk = w.server.disk_mut("area0").unwrap();
                    disk.read_at(slot * PAGE_SIZE as u64, &mut page).unwrap();
                    assert!(page.iter().all(|byte| *byte == 0), "slot {slot} of the other file");
                }
            }
        }
    }
}

#[test]
fn handles_that_are_stale_as_often_as_they_are_fetched_end_it_and_a_while_of_that_does_not() {
    for config in configs() {
        for heals in [true, false] {
            let mut w = World::new(config.clone(), NfsServerConfig::default(), 2);
            w.start();
            w.chunk = 20_000;
            let begun = w.now;
            for id in 0..8 {
                let pages = w.pages(1);
                w.submit(id, if id % 2 == 0 { Op::Read } else { Op::Write }, 3 * id, pages);
            }
            let mut ends = Vec::new();
            w.run(1_000_000, |w| {
                // Whatever was fetched is stale by the time that it is used.
                if !heals || w.client.stats().remounts < 4 {
                    w.server.renew_handles();
                }
                ends.extend(std::iter::from_fn(|| w.client.poll_completion(w.now)));
                ends.len() == 8
            });
            let waited = w.now.since(begun);
            assert!(waited > Span::from_millis(500) && waited < Span::from_secs(10), "{waited}");
            if heals {
                assert!(ends.iter().all(|end| end.outcome.is_ok()), "{ends:?}");
                assert!(matches!(w.client.state(), BackendState::Ready { .. }));
            } else {
                let all = |end: &Completion| end.outcome == Err(gone(Gone::Stale));
                assert!(ends.iter().all(all), "{ends:?}");
                assert_eq!(w.client.state(), BackendState::Failed(gone(Gone::Stale)));
                assert_eq!(w.client.stats().remounts, 6);
            }
        }
    }
}

#[test]
fn another_file_that_comes_and_goes_is_nobodys_business() {
    let mut w = World::new(config(), NfsServerConfig::default(), 3);
    w.start();
    let mut load = Workload::new(SLOTS, w.client.limits().in_flight);
    let mut changes = 0;
    w.run(1_000_000, |w| {
        if load.ended / 50 > changes {
            changes += 1;
            w.server.remove_file("other");
            if changes < 10 {
                w.server.add_file("other", disk());
            }
            w.server.renew_handles();
        }
        load.poll(w, 1000)
    });
    assert_eq!(load.failed, []);
    assert!(changes > 15);
    assert!(w.client.stats().remounts > 10);
}

fn world() -> World {
    World::new(config(), NfsServerConfig::default(), 4)
}

fn options(name: &str, priority: i16, on_failure: FailurePolicy) -> AreaOptions {
    AreaOptions { priority, on_failure, ..AreaOptions::new(name) }
}

const POLICIES: [FailurePolicy; 3] = [
    FailurePolicy::Retry { first: Span::from_millis(10), max: Span::from_secs(1) },
    FailurePolicy::FailOver { attempts: 3, backoff: Span::from_millis(10) },
    FailurePolicy::Poison,
];

#[test]
fn the_pager_goes_on_in_another_area() {
    for policy in POLICIES {
        let mut host = Host::new(world(), options("first", 1, policy), true);
        let bad = AreaId(0);
        let good = host.add_area(world(), options("second", 0, FailurePolicy::default()));
        host.write_all(1);
        assert!(host.info(bad).used > 0 && host.info(good).used == 0);
        host.events.clear();
        remove(host.world());
        let errors = host.read_all(1);
        // What was in memory is right, the rest has its error.
        assert!(!errors.is_empty() && errors.len() < PAGES as usize);
        for error in errors {
            let how = gone(Gone::Removed);
            match error {
                PageError::Store { place, error } => assert_eq!((place.area, error), (bad, how)),
                PageError::Poisoned { place, cause } => {
                    assert_eq!(
                        (place.area, cause, policy),
                        (bad, Some(how), FailurePolicy::Poison)
                    );
                }
                other => panic!("{other}"),
            }
        }
        let error = gone(Gone::Removed);
        assert_eq!(host.events, [PagerEvent::AreaFailed { area: bad, error }]);
        assert_eq!(host.info(bad).state, AreaState::Failed);
    }
}

#[test]
fn without_another_area_the_error_says_what_happened() {
    for policy in POLICIES {
        let mut host = Host::new(world(), options("first", 1, policy), true);
        remove(host.world());
        let error = host.try_write_all(1).expect_err("there is less memory than pages");
        let (name, server) = ("first".into(), host.info(AreaId(0)).server);
        let error_of_store = gone(Gone::Removed);
        // Poison gave up the pages that were on their way, and with them freed some memory.
        assert_eq!(
            error,
            PageError::AreaFailed {
                area: AreaId(0),
                name,
                server,
                error: error_of_store,
                quarantined: 0
            }
        );
        assert_eq!(
            error.to_string(),
            "area first on nfs://10.0.0.2:2049/swap/area0 failed (the store is gone from its server: it was \
             removed), and no other area has room: no frame can be freed (0 slots are quarantined)"
        );
    }
}
