//! Goal: a unit behind several portals is one area: when a portal dies under load the session goes on at another, and no page
//! is lost or wrong. Copies that were sent by way of another portal group stay in quarantine until that group is
//! known to be rid of them.
//! Method: random requests against the model while portals die and come back; a target of which the test writes every
//! answer, and which says which portal group it is.

mod common;
#[path = "common/script.rs"]
mod script;

use std::net::SocketAddr;

use common::{Pump, initiator_config, model_run, target_config};
use netswap_iscsi::InitiatorConfig;
use netswap_iscsi::scsi::status;
use netswap_net::{Action, Disconnect, Session};
use netswap_reserve::Span;
use netswap_swap::{BackendState, Op, StoreError, Stored, SwapBackend};
use script::{Script, Unit};

fn addr(host: u8) -> SocketAddr {
    ([10, 0, 0, host], 3260).into()
}

fn config() -> InitiatorConfig {
    let others = vec![addr(3), addr(4)];
    InitiatorConfig { portal: addr(2), portals: others, ..initiator_config().with_all() }
}

#[test]
fn a_portal_that_dies_under_load_costs_no_page() {
    let mut reissued = 0;
    for seed in 0..40 {
        let mut pump = Pump::new(seed, config(), target_config());
        pump.ready();
        assert_eq!(pump.remote, Some(addr(2)));
        for round in 0..6 {
            // Two of three are dead, and the connection over one of them is cut in the midst of it.
            let lives = 2 + (round + 1) % 3;
            pump.dead = (2..5).filter(|host| *host != lives).map(addr).collect();
            pump.cut_at = Some(pump.moved + pump.below(200_000) as u64);
            model_run(&mut pump, 40);
            if pump.cut_at.is_none() {
                pump.ready();
                assert_eq!(pump.remote, Some(addr(lives)));
            }
        }
        let stats = pump.backend.stats();
        reissued += stats.reissued;
        assert_eq!(pump.target.protocol_errors() + stats.garbage, 0, "{seed}");
    }
    assert!(reissued > 100, "{reissued}");
}

#[test]
fn all_portals_have_their_turn_before_it_waits_longer() {
    let mut pump = Pump::new(1, config(), target_config());
    pump.ready();
    pump.dead = (2..5).map(addr).collect();
    pump.cut();
    let begun = pump.now;
    let backoff = config().backoff_min;
    // Not a second time before each was asked once.
    while pump.now.since(begun) < backoff * 3 {
        pump.step();
        pump.advance();
    }
    pump.dead.clear();
    pump.ready();
    assert!(pump.now.since(begun) < backoff * 10, "{}", pump.now.since(begun));
}

fn cut(script: &mut Script, group: &'static str) {
    script.connected = false;
    script.backend.handle_disconnected(script.now, Disconnect::Reset);
    script.group = group;
    // DefaultTime2Wait.
    script.pass(Span::from_secs(3));
}

fn outcome(script: &mut Script) -> (Result<Stored, StoreError>, bool) {
    let end = script.backend.poll_completion(script.now).expect("it has ended");
    (end.outcome, end.is_loose)
}

#[test]
fn copies_that_went_to_another_portal_group_are_in_quarantine() {
    let groups = ["TargetPortalGroupTag=1\0", "TargetPortalGroupTag=2\0"];
    // Without a tag each portal is a group of its own.
    for (one, two) in [(groups[0], groups[0]), (groups[0], groups[1]), ("", "")] {
        let mut script = Script::new(config(), Unit::new());
        script.group = one;
        assert!(matches!(script.start(), BackendState::Ready { .. }));
        script.submit(1, Op::Write, 4, 1, None);
        script.submit(2, Op::Read, 9, 1, None);
        script.came.clear();
        cut(&mut script, two);
        let connect = Action::Connect { remote: addr(3), same_port: false };
        assert_eq!(script.last_action, Some(connect));
        let is_loose = one != two || one.is_empty();
        for _ in 0..2 {
            let again = script.command();
            if again.write {
                script.end(&again, status::GOOD, None);
                assert_eq!(outcome(&mut script), (Ok(Stored { replayed: is_loose }), is_loose));
            } else {
                script.data(&again, &[0; 4096]);
                assert_eq!(outcome(&mut script), (Ok(Stored { replayed: false }), false));
            }
        }
        assert_eq!(script.backend.fences(), 0);
        // What is sent anew over the other group is as good as ever.
        script.submit(3, Op::Write, 5, 1, None);
        let write = script.command();
        script.end(&write, status::GOOD, None);
        assert_eq!(outcome(&mut script), (Ok(Stored { replayed: false }), false));
        // Back in the first group, whose session is reinstated.
        cut(&mut script, one);
        cut(&mut script, one);
        assert_eq!(script.last_action, Some(Action::Connect { remote: addr(2), same_port: false }));
        assert_eq!(script.backend.fences(), u64::from(is_loose));
    }
}

#[test]
fn a_unit_that_does_not_say_who_it_is_has_one_portal() {
    let unit = Unit { identity: None, ..Unit::new() };
    let mut script = Script::new(config(), unit);
    assert!(matches!(script.start(), BackendState::Ready { .. }));
    cut(&mut script, "");
    assert_eq!(script.last_action, Some(Action::Connect { remote: addr(2), same_port: false }));
}

#[test]
fn another_unit_behind_another_portal_is_refused() {
    let mut script = Script::new(config(), Unit::new());
    assert!(matches!(script.start(), BackendState::Ready { .. }));
    script.unit.identity = Some(b"disk two".to_vec());
    cut(&mut script, "");
    let state = script.backend.state();
    assert!(matches!(state, BackendState::Failed(StoreError::Changed { .. })), "{state:?}");
}
