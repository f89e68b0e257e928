//! Goal: the backend keeps what every swap backend has to keep.
//! Method: the suite of netswap-swap over a client that is joined with a server by the pump, with either
//! write policy, with and without merging; once with a server that does nothing wrong, once with one that is late, repeats itself and
//! does things by halves, and once with one that restarts and changes its verifier.

mod common;

use common::{Wired, World, config};
use netswap_nfs::{NfsConfig, NfsServerConfig, ServerFaults, WritePolicy};
use netswap_reserve::{PagePool, PoolConfig, Span};
use netswap_swap::conformance;

fn check(faults: ServerFaults) {
    for write in [WritePolicy::FileSync, WritePolicy::Unstable] {
        check_policy(write, faults, None);
    }
}

fn check_policy(write: WritePolicy, faults: ServerFaults, restarts: Option<u64>) {
    // A wire for a single call merges most.
    for (merge, wire_max) in [(false, 64), (true, 64), (true, 1)] {
        check_config(
            NfsConfig { write, merge, wire_max, merge_after: 2, ..config() },
            faults,
            restarts,
        );
    }
}

/// With a restart of the server once in so many turns, if it is to restart.
fn check_config(config: NfsConfig, faults: ServerFaults, restarts: Option<u64>) {
    let pool = PagePool::new(PoolConfig::new(512));
    let mut seed = 0;
    conformance::check(
        &pool,
        || {
            seed += 1;
            let mut world =
                World::new(config.clone(), NfsServerConfig { seed, ..Default::default() }, seed);
            world.server.set_faults(faults);
            Wired(world)
        },
        |wired, now| {
            let world = &mut wired.0;
            world.now = world.now.max(*now);
            if restarts.is_some_and(|every| world.rng.below(every) == 0) {
                world.server.restart(world.now);
            }
            if !world.turn() {
                world.now += Span::from_millis(1);
            }
            *now = world.now;
        },
    );
}

#[test]
fn over_a_server_that_does_nothing_wrong() {
    check(ServerFaults::default());
}

#[test]
fn over_a_server_that_is_late_repeats_itself_and_does_things_by_halves() {
    check(ServerFaults {
        late_ppm: 100_000,
        late_by: Span::from_millis(1200),
        twice_ppm: 100_000,
        garbage_ppm: 0,
        jukebox_ppm: 100_000,
        short_write_ppm: 200_000,
        short_read_ppm: 200_000,
        ..ServerFaults::default()
    });
}

#[test]
fn over_a_server_that_restarts_and_forgets_what_is_uncommitted() {
    let faults = ServerFaults { forget_ppm: 30_000, ..ServerFaults::default() };
    for write in [WritePolicy::FileSync, WritePolicy::Unstable] {
        check_policy(write, faults, Some(300));
    }
}
