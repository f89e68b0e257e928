//! Goal: with digests no damaged byte becomes a page, in either direction, and no page is lost for it.
//! Method: initiator and embedded target over a stream that turns bits, and a target that sends wrong
//! digests by seed. That the tests see damage at all is shown without digests.

mod common;

use std::panic::{AssertUnwindSafe, catch_unwind};

use common::{Pump, initiator_config, model_run, target_config};
use netswap_iscsi::{Digest, LoginError, TargetFaults};
use netswap_swap::{BackendState, SwapBackend};

const ALL: [Digest; 3] = [Digest::None, Digest::Prefer, Digest::Crc32c];

fn pump(seed: u64, own: [Digest; 2], theirs: [Digest; 2]) -> Pump {
    let (mut initiator, mut target) = (initiator_config(), target_config());
    [initiator.header_digest, initiator.data_digest] = own;
    [target.keys.header_digest, target.keys.data_digest] = theirs;
    // Segments that are no multiple of four have padding, which belongs to the digest.
    target.keys.recv_segment = [513, 8192, 65536][seed as usize % 3];
    initiator.recv_segment = [1022, 8192, 262_144][seed as usize % 3];
    target.keys.initial_r2t = seed.is_multiple_of(2);
    target.keys.immediate_data = seed % 4 < 2;
    target.status_with_data = seed.is_multiple_of(2);
    Pump::new(seed, initiator, target)
}

#[test]
fn every_pair_of_wishes_is_settled() {
    let mut seed = 0;
    for own in ALL {
        for theirs in ALL {
            seed += 1;
            let mut pump = pump(seed, [own, Digest::None], [theirs, Digest::Prefer]);
            let state = pump.start();
            let agreed = own != Digest::None && theirs != Digest::None;
            if !agreed && (own == Digest::Crc32c || theirs == Digest::Crc32c) {
                assert!(matches!(state, BackendState::Failed(_)), "{own} {theirs}");
                if own == Digest::Crc32c {
                    let error = pump.backend.login_error();
                    assert_eq!(error, Some(LoginError::NoDigest("header_digest")));
                }
                continue;
            }
            let params = pump.backend.params();
            assert_eq!((params.header_digest, params.data_digest), (agreed, false));
            model_run(&mut pump, 20);
        }
    }
}

#[test]
fn pages_move_with_each_set_of_digests() {
    for seed in 0..12 {
        for (header, data) in [(true, false), (false, true), (true, true)] {
            let wish = |on: bool| if on { Digest::Crc32c } else { Digest::None };
            let wishes = [wish(header), wish(data)];
            let mut pump = pump(seed, wishes, wishes);
            pump.chunk_max = [3, 500, 70_000][seed as usize % 3];
            pump.ready();
            let params = pump.backend.params();
            assert_eq!((params.header_digest, params.data_digest), (header, data));
            model_run(&mut pump, 20);
            assert_eq!(pump.connects, 1);
            assert_eq!(pump.target.digest_errors() + pump.target.protocol_errors(), 0);
        }
    }
}

/// A run over a stream that damages one in `rate` sends.
fn damaged(seed: u64, digest: Digest, rate: [usize; 2]) -> Pump {
    let mut pump = pump(seed, [digest; 2], [digest; 2]);
    pump.damage = rate;
    pump.ready();
    model_run(&mut pump, 60);
    pump
}

#[test]
fn damage_on_the_way_costs_a_connection_and_no_page() {
    let (mut of_target, mut of_initiator) = (0, 0);
    for seed in 0..12 {
        for rate in [[40, 0], [0, 40], [60, 60]] {
            let pump = damaged(seed, Digest::Crc32c, rate);
            assert!(pump.damaged > 0);
            let stats = pump.backend.stats();
            assert_eq!(stats.garbage, 0, "damage was taken for garbage");
            assert_eq!(pump.target.protocol_errors(), 0, "damage was taken for a breach");
            of_target += pump.target.digest_errors();
            of_initiator += stats.digest_errors;
        }
    }
    assert!(of_target > 0 && of_initiator > 0, "{of_target} {of_initiator}");
}

#[test]
fn a_target_with_wrong_digests_loses_no_page() {
    for seed in 0..6 {
        let mut pump = pump(seed, [Digest::Prefer; 2], [Digest::Prefer; 2]);
        pump.ready();
        pump.target.set_faults(TargetFaults {
            header_digest_ppm: 100_000,
            data_digest_ppm: 100_000,
            ..TargetFaults::default()
        });
        model_run(&mut pump, 60);
        let counts = pump.target.fault_counts();
        assert!(counts.header_digest > 0 && counts.data_digest > 0, "{counts:?}");
        assert!(pump.backend.stats().digest_errors > 0);
        assert_eq!(pump.backend.stats().garbage, 0);
        assert!(matches!(pump.backend.state(), BackendState::Ready { .. }));
    }
}

/// The canary: without digests the same damage reaches pages.
#[test]
fn without_digests_damage_is_seen_by_the_model() {
    let wrong = (0..8).filter(|seed| {
        let run = AssertUnwindSafe(|| damaged(*seed, Digest::None, [0, 40]));
        catch_unwind(run).is_err()
    });
    assert!(wrong.count() > 0, "the model does not see damaged pages");
}
