//! Goal: a connection that breaks anywhere, and a target that restarts, lose no page and damage none.
//! Method: the stream is cut after a random number of bytes, again and again; the target learns of it
//! late, so that sessions are reinstated while their old connection is still open.

mod common;

use common::{Pump, initiator_config, model_run, pump_to_be_cut, target_config};
use netswap_net::Session;
use netswap_reserve::Span;
use netswap_swap::{BackendState, Op, Phase, StoreError, SwapBackend};

#[test]
fn cuts_at_random_bytes() {
    let (mut cuts, mut reissued) = (0, 0);
    for seed in 0..60 {
        let mut pump = pump_to_be_cut(seed, initiator_config());
        for _ in 0..4 {
            pump.cut_at = Some(pump.moved + pump.below(400_000) as u64);
            model_run(&mut pump, 15);
        }
        cuts += pump.connects - 1;
        reissued += pump.backend.stats().reissued;
        assert_eq!(pump.target.protocol_errors() + pump.backend.stats().garbage, 0);
    }
    assert!(cuts > 100 && reissued > 100, "{cuts} cuts, {reissued} commands issued again");
}

#[test]
fn cuts_at_every_byte_of_the_login_and_the_set_up() {
    let mut whole = Pump::new(1, initiator_config(), target_config());
    whole.ready();
    for at in (1..whole.moved).step_by(7) {
        let mut pump = Pump::new(1, initiator_config(), target_config());
        pump.cut_at = Some(at);
        pump.ready();
        assert_eq!(pump.connects, 2, "cut at {at}");
        model_run(&mut pump, 3);
    }
}

#[test]
fn a_target_that_restarts() {
    for seed in 0..30 {
        let mut target = target_config();
        target.keys.initial_r2t = seed % 2 == 0;
        let mut pump = Pump::new(seed, initiator_config(), target);
        pump.ready();
        for _ in 0..3 {
            let requests = pump.below(6) as u32;
            for id in 0..requests {
                let pages = pump.pages(16, |_| 1);
                let request = pump.request(id, Op::Read, id * 2, pages);
                pump.submit(request);
            }
            for _ in 0..pump.below(30) {
                pump.step();
            }
            pump.target.restart(pump.now);
            for _ in 0..requests {
                assert!(pump.complete().outcome.is_ok());
            }
            model_run(&mut pump, 10);
        }
        assert!(pump.backend.stats().unit_attentions >= 3, "the reset was told");
        assert_eq!(pump.connects, 4);
    }
}

#[test]
fn a_partition_of_five_seconds_is_noticed_and_survived() {
    let mut pump = Pump::new(2, initiator_config(), target_config());
    pump.ready();
    let pages = pump.pages(16, |i| i as u8);
    let request = pump.request(1, Op::Write, 0, pages);
    pump.submit(request);
    (0..16).for_each(|i| pump.model[i] = i as u8);
    pump.step();
    pump.partitioned = true;
    let start = pump.now;
    while pump.now.since(start) < Span::from_secs(5) {
        pump.step();
        pump.advance();
    }
    let mut phase = None;
    pump.backend.outstanding(&mut |o| phase = Some((o.verb, o.tag_name, o.phase)));
    assert_eq!(phase, Some(("WRITE", "ITT", Phase::Disconnected)));
    pump.partitioned = false;
    assert!(pump.complete().outcome.is_ok());
    model_run(&mut pump, 10);
    assert!(pump.backend.stats().timeouts >= 1);
}

#[test]
fn a_silent_target_is_pinged_and_then_given_up() {
    let mut pump = Pump::new(3, initiator_config(), target_config());
    pump.ready();
    for _ in 0..20 {
        pump.settle();
        pump.advance();
    }
    let pings = pump.backend.stats().pings_sent;
    assert!(pings >= 3, "{pings} pings");
    assert_eq!(pump.connects, 1, "they were answered");
    pump.partitioned = true;
    for _ in 0..20 {
        pump.settle();
        pump.advance();
    }
    assert!(!pump.backend.is_connected(), "silence was noticed");
    pump.partitioned = false;
    model_run(&mut pump, 5);
}

#[test]
fn a_request_past_its_deadline_ends_and_its_slot_is_safe() {
    let mut pump = Pump::new(4, initiator_config(), target_config());
    pump.ready();
    pump.target.set_faults(netswap_iscsi::TargetFaults {
        late_ppm: 1_000_000,
        late_by: Span::from_secs(60),
        ..Default::default()
    });
    let pages = pump.pages(2, |_| 9);
    let mut request = pump.request(1, Op::Write, 4, pages);
    request.deadline = Some(pump.now + Span::from_millis(100));
    pump.submit(request);
    let completion = pump.complete();
    assert_eq!(completion.outcome, Err(StoreError::TimedOut));
    assert_eq!(completion.pages.len(), 2);
    pump.target.set_faults(Default::default());
    // What is written next goes out in a new session, behind whatever became of the old command.
    let pages = pump.pages(2, |_| 10);
    assert!(pump.run(Op::Write, 4, pages).outcome.is_ok());
    assert_eq!(pump.connects, 2);
    let pages = pump.pages(2, |_| 0);
    let read = pump.run(Op::Read, 4, pages);
    assert!(read.pages.iter().all(|p| p.bytes().iter().all(|b| *b == 10)));
}

#[test]
fn a_request_past_its_deadline_while_disconnected_ends() {
    let mut pump = Pump::new(5, initiator_config(), target_config());
    pump.ready();
    pump.partitioned = true;
    pump.cut();
    let pages = pump.pages(1, |_| 9);
    let mut request = pump.request(1, Op::Read, 4, pages);
    request.deadline = Some(pump.now + Span::from_millis(50));
    pump.submit(request);
    assert_eq!(pump.complete().outcome, Err(StoreError::TimedOut));
}

#[test]
fn logout_wanted_and_connections_dropped_by_announcement() {
    let mut pump = Pump::new(6, initiator_config(), target_config());
    pump.ready();
    for event in [1, 2, 3, 4, 1] {
        for index in 0..2 {
            pump.target.ping(index);
            pump.target.announce(index, event, [0, 1, 0]);
        }
        let before = (pump.connects, pump.now);
        model_run(&mut pump, 20);
        assert_eq!(pump.connects, before.0 + 1, "event {event}");
        if matches!(event, 2 | 3) {
            assert!(pump.now.since(before.1) >= Span::from_secs(1), "Time2Wait is kept");
        }
    }
    assert!(pump.backend.stats().pings_answered >= 1);
    assert_eq!(pump.backend.stats().garbage + pump.target.protocol_errors(), 0);
}

#[test]
fn a_logout_wanted_while_the_unit_is_asked_about_itself() {
    for steps in 1..60 {
        let mut pump = Pump::new(steps, initiator_config(), target_config());
        for _ in 0..steps {
            pump.step();
        }
        pump.target.announce(0, 1, [0; 3]);
        pump.ready();
        model_run(&mut pump, 5);
        assert_eq!(pump.backend.stats().garbage + pump.target.protocol_errors(), 0);
    }
}

#[test]
fn shutdown_logs_out_and_stays_away() {
    let mut pump = Pump::new(7, initiator_config(), target_config());
    pump.ready();
    model_run(&mut pump, 5);
    pump.backend.shutdown(pump.now);
    assert_eq!(pump.backend.state(), BackendState::Stopped);
    pump.settle();
    for _ in 0..10 {
        pump.advance();
        pump.settle();
    }
    assert_eq!(pump.connects, 1);
    assert_eq!(Session::poll_deadline(&pump.backend), None);
    assert_eq!(pump.target.protocol_errors(), 0);
}

#[test]
fn shutdown_with_requests_outstanding_gives_every_page_back() {
    for seed in 0..20 {
        let mut pump = Pump::new(seed, initiator_config(), target_config());
        pump.ready();
        let free = pump.pool.free_frames();
        for id in 0..8 {
            let pages = pump.pages(4, |_| 1);
            let op = if id % 2 == 0 { Op::Write } else { Op::Read };
            let request = pump.request(id, op, id * 4, pages);
            pump.submit(request);
        }
        for _ in 0..pump.below(12) {
            pump.step();
        }
        pump.backend.shutdown(pump.now);
        let mut ended = 0;
        while let Some(completion) = pump.backend.poll_completion(pump.now) {
            assert!(matches!(completion.outcome, Ok(_) | Err(StoreError::Cancelled)));
            ended += 1;
        }
        assert_eq!(ended, 8);
        assert_eq!(pump.pool.free_frames(), free);
    }
}

#[test]
fn a_portal_that_is_away_is_tried_again_with_growing_waits() {
    let mut pump = Pump::new(8, initiator_config(), target_config());
    let mut attempts = Vec::new();
    while attempts.len() < 12 {
        if pump.backend.poll_action(pump.now).is_some() {
            attempts.push(pump.now);
            pump.backend.handle_disconnected(pump.now, netswap_net::Disconnect::Reset);
        }
        pump.now = Session::poll_deadline(&pump.backend).unwrap().max(pump.now);
        pump.backend.handle_deadline(pump.now);
    }
    let waits: Vec<Span> = attempts.windows(2).map(|w| w[1].since(w[0])).collect();
    assert_eq!(waits[0], Span::from_millis(10));
    assert_eq!(waits[3], Span::from_millis(80));
    assert_eq!(waits[10], Span::from_secs(2));
    pump.ready();
}
