//! Goal: `IscsiBackend` keeps what every `SwapBackend` has to keep.
//! Method: the suite of netswap-swap, over an initiator joined to the embedded target, with a quiet
//! and with a faulty target, without and with digests.

mod common;

use std::cell::RefCell;
use std::mem::swap;

use common::{Pump, THIN, every_fault, initiator_config, target_config};
use netswap_iscsi::{Digest, InitiatorConfig, IscsiBackend, TargetFaults, WritePolicy};
use netswap_reserve::{PagePool, PoolConfig, Span};
use netswap_swap::conformance;

fn conform(policy: WritePolicy, digest: Digest, faults: TargetFaults) {
    conform_as(initiator_config(), policy, digest, faults);
}

fn conform_as(
    mut initiator: InitiatorConfig,
    policy: WritePolicy,
    digest: Digest,
    faults: TargetFaults,
) {
    initiator.write_policy = policy;
    (initiator.header_digest, initiator.data_digest) = (digest, digest);
    let mut target = target_config();
    (target.keys.header_digest, target.keys.data_digest) = (digest, digest);
    target.faults = faults;
    let mut pump = Pump::new(3, initiator.clone(), target);
    pump.add_thin();
    let world = RefCell::new(pump);
    let pool = PagePool::new(PoolConfig::new(256));
    let make = || {
        let mut pump = world.borrow_mut();
        pump.cut();
        pump.backend = IscsiBackend::new(initiator.clone());
        pump.now = netswap_reserve::Time::ZERO;
        IscsiBackend::new(initiator.clone())
    };
    // The backend under test takes the place of the pump's own while the world moves on.
    conformance::check(&pool, make, |backend, now| {
        let mut pump = world.borrow_mut();
        pump.now = pump.now.max(*now);
        swap(backend, &mut pump.backend);
        if !pump.step() {
            pump.advance();
        }
        *now = pump.now;
        swap(backend, &mut pump.backend);
    });
    assert_eq!(world.borrow().target.protocol_errors(), 0);
}

#[test]
fn with_fua() {
    conform(WritePolicy::Fua, Digest::None, TargetFaults::default());
}

#[test]
fn with_cache_synchronized() {
    conform(WritePolicy::SyncCache, Digest::None, TargetFaults::default());
}

#[test]
fn with_digests() {
    conform(WritePolicy::Fua, Digest::Crc32c, TargetFaults::default());
}

#[test]
fn with_digests_that_are_wrong_at_times() {
    let faults = TargetFaults {
        header_digest_ppm: 50_000,
        data_digest_ppm: 50_000,
        ..TargetFaults::default()
    };
    conform(WritePolicy::SyncCache, Digest::Crc32c, faults);
}

#[test]
fn with_discards() {
    for (digest, faulty) in [(Digest::None, 0), (Digest::Crc32c, 0), (Digest::None, 50_000)] {
        let config = InitiatorConfig { lun: THIN, ..initiator_config().with_all() };
        let config = InitiatorConfig { discard: true, ..config };
        let faults = TargetFaults {
            late_ppm: faulty,
            late_by: Span::from_millis(300),
            busy_ppm: faulty,
            check_condition_ppm: faulty,
            ..TargetFaults::default()
        };
        conform_as(config, WritePolicy::Fua, digest, faults);
    }
}

#[test]
fn with_a_faulty_target() {
    let faults = TargetFaults { late_by: Span::from_millis(300), ..every_fault() };
    conform(WritePolicy::Fua, Digest::None, faults);
}
