//! Goal: an initiator goes where a target sends it, but not for ever, and not to a name.
//! Method: the embedded target sends it on; the transport notes where it goes.

mod common;

use std::net::SocketAddr;

use common::{Pump, initiator_config, model_run, target_config};
use netswap_iscsi::{LoginError, Moved};
use netswap_net::{Action, Disconnect, Session};
use netswap_swap::{BackendState, StoreError, SwapBackend};

fn moved(address: &str, permanent: bool) -> Option<Moved> {
    Some(Moved { address: address.into(), permanent })
}

fn pump(address: &str, permanent: bool) -> Pump {
    let mut pump = Pump::new(1, initiator_config(), target_config());
    pump.target.redirect(moved(address, permanent));
    pump
}

/// Lets the initiator go on until it has been sent on once, and takes the target's word back.
fn follow(pump: &mut Pump) {
    for _ in 0..10_000 {
        pump.step();
        if pump.backend.stats().redirects > 0 {
            pump.target.redirect(None);
            return pump.ready();
        }
    }
    panic!("never redirected");
}

/// Where the next connection would go.
fn next_connect(pump: &mut Pump) -> SocketAddr {
    pump.cut();
    for _ in 0..10 {
        if let Some(Action::Connect { remote, .. }) = pump.backend.poll_action(pump.now) {
            pump.backend.handle_disconnected(pump.now, Disconnect::Refused);
            return remote;
        }
        assert!(pump.advance());
    }
    panic!("no connect");
}

#[test]
fn addresses_are_followed_and_kept_only_if_for_good() {
    let home = "10.0.0.2:3260".parse().unwrap();
    for (address, permanent, then) in [
        ("10.0.0.9:5000,1", true, "10.0.0.9:5000"),
        ("10.0.0.9", true, "10.0.0.9:3260"),
        ("[fe80::9]:5000", true, "[fe80::9]:5000"),
        ("[fe80::9],1", true, "[fe80::9]:3260"),
        ("10.0.0.9:5000", false, "10.0.0.2:3260"),
    ] {
        let mut pump = pump(address, permanent);
        follow(&mut pump);
        model_run(&mut pump, 5);
        assert_eq!(pump.connects, 2);
        assert_eq!(next_connect(&mut pump), then.parse().unwrap(), "{address}");
        assert_eq!(next_connect(&mut pump) == home, !permanent);
    }
}

#[test]
fn names_and_circles_are_errors() {
    for (address, error) in [
        ("server.example:3260,1", LoginError::MovedToName),
        ("", LoginError::MovedToName),
        ("10.0.0.2:3260", LoginError::TooManyRedirects),
    ] {
        let mut pump = pump(address, false);
        let state = pump.start();
        assert!(matches!(state, BackendState::Failed(StoreError::Refused { .. })), "{state:?}");
        assert_eq!(pump.backend.login_error(), Some(error), "{address}");
        assert!(pump.connects <= 5);
    }
}

#[test]
fn a_circle_behind_a_session_is_tried_again_with_waits() {
    let mut pump = Pump::new(1, initiator_config(), target_config());
    pump.ready();
    pump.target.redirect(moved("10.0.0.2:3260", false));
    pump.cut();
    for _ in 0..2000 {
        if !pump.step() {
            pump.advance();
        }
    }
    assert!(matches!(pump.backend.state(), BackendState::Ready { .. }));
    assert_eq!(pump.backend.login_error(), Some(LoginError::TooManyRedirects));
    pump.target.redirect(None);
    model_run(&mut pump, 5);
}
