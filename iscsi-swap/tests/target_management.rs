//! Goal: what is aborted or reset is gone, is answered as RFC 7143 says, and every other session hears of it once.
//! Method: hand-driven initiators on several connections of one target; time is handed in.

mod common;

use common::raw::{Answer, Raw, ending};
use common::target_config;
use netswap_iscsi::pdu::ResponsePdu;
use netswap_iscsi::scsi::{Cdb, Sense, status};
use netswap_iscsi::{TargetConfig, TargetFaults, function};
use netswap_net::{Action, Session};
use netswap_reserve::{Span, Time};

/// Sessions on as many connections.
fn sessions(n: usize) -> Raw {
    let mut raw = Raw::new(TargetConfig { max_connections: n, ..target_config() });
    for on in 0..n {
        raw.on = on;
        raw.begin_session();
    }
    raw.on = 0;
    raw
}

/// A write that waits for its data: its tags.
fn unfinished(raw: &mut Raw) -> (u32, u32) {
    let write = Cdb::Write { lba: 0, blocks: 8, fua: false };
    let command = raw.command(write, false, true, 4096);
    match raw.send(command.build(), &[])[..] {
        [(ResponsePdu::R2t(r2t), _)] => (command.itt, r2t.ttt),
        ref other => panic!("{other:?}"),
    }
}

fn response(answers: &[Answer]) -> u8 {
    match answers {
        [(ResponsePdu::TaskManagement(t), _)] => t.response,
        other => panic!("{other:?}"),
    }
}

fn ready(raw: &mut Raw, on: usize) -> (u8, Option<Sense>) {
    raw.on = on;
    raw.write(Cdb::TestUnitReady, &[])
}

fn heard(sense: Sense) -> (u8, Option<Sense>) {
    (status::CHECK_CONDITION, Some(sense))
}

const GOOD: (u8, Option<Sense>) = (status::GOOD, None);

fn first_byte(raw: &mut Raw) -> u8 {
    raw.read(Cdb::Read { lba: 0, blocks: 8, fua: false }, 4096).1[0]
}

#[test]
fn an_aborted_task_is_never_answered_nor_carried_out() {
    let mut raw = sessions(1);
    let (itt, ttt) = unfinished(&mut raw);
    assert_eq!(response(&raw.manage(function::ABORT_TASK, 0, itt)), 0);
    assert!(raw.data_out(itt, ttt, 7).is_empty(), "late data is thrown away");
    assert_eq!(response(&raw.manage(function::ABORT_TASK, 0, itt)), 1, "it is gone");
    assert_eq!(first_byte(&mut raw), 0);
    for (function, lun, want) in [
        (function::ABORT_TASK_SET, 7, 2),
        (function::CLEAR_ACA, 0, 5),
        (function::TASK_REASSIGN, 0, 4),
        (99, 0, 5),
    ] {
        assert_eq!(response(&raw.manage(function, lun, 0)), want, "function {function}");
    }
    // An answer that is held back is not sent any more.
    raw.target.set_faults(TargetFaults {
        late_ppm: 1_000_000,
        late_by: Span::from_secs(1),
        ..TargetFaults::default()
    });
    let command = raw.command(Cdb::TestUnitReady, false, false, 0);
    assert!(raw.send(command.build(), &[]).is_empty());
    assert_eq!(response(&raw.manage(function::ABORT_TASK, 0, command.itt)), 0);
    raw.target.connection(0).handle_deadline(Time::ZERO + Span::from_secs(2));
    assert!(raw.unasked().is_empty());
}

#[test]
fn a_set_of_tasks_is_aborted_when_the_data_that_was_asked_for_has_come() {
    let mut raw = sessions(2);
    let first = unfinished(&mut raw);
    let second = unfinished(&mut raw);
    raw.on = 1;
    let others = unfinished(&mut raw);
    raw.on = 0;
    assert!(raw.manage(function::ABORT_TASK_SET, 0, 0).is_empty(), "it waits");
    assert!(raw.data_out(first.0, first.1, 7).is_empty());
    assert_eq!(response(&raw.data_out(second.0, second.1, 7)), 0);
    assert_eq!(first_byte(&mut raw), 0);
    raw.on = 1;
    assert_eq!(ending(&raw.data_out(others.0, others.1, 7)).0, status::GOOD, "another session's");
    assert_eq!(first_byte(&mut raw), 7);

    // Data that never comes costs the connection.
    unfinished(&mut raw);
    assert!(raw.manage(function::ABORT_TASK_SET, 0, 0).is_empty());
    let due = raw.target.connection(1).poll_deadline().unwrap();
    raw.target.connection(1).handle_deadline(due);
    assert!(raw.is_reset());
    assert_eq!(raw.target.poll_stirred(), Some(1));
}

#[test]
fn every_session_hears_of_a_reset_once() {
    for (function, sense) in [
        (function::CLEAR_TASK_SET, Sense::CLEARED),
        (function::LUN_RESET, Sense::RESET),
        (function::WARM_RESET, Sense::RESET),
    ] {
        let mut raw = sessions(3);
        raw.on = 1;
        let (itt, ttt) = unfinished(&mut raw);
        raw.on = 0;
        assert_eq!(response(&raw.manage(function, 0, 0)), 0);
        if sense == Sense::RESET {
            assert_eq!(ready(&mut raw, 0), heard(sense), "who did it too");
        }
        assert_eq!(ready(&mut raw, 0), GOOD);
        raw.on = 1;
        assert!(raw.data_out(itt, ttt, 7).is_empty(), "the task is gone");
        for on in [1, 2] {
            assert_eq!(ready(&mut raw, on), heard(sense), "function {function}");
            assert_eq!(ready(&mut raw, on), GOOD);
        }
    }
}

#[test]
fn inquiry_leaves_a_unit_attention_and_request_sense_takes_it() {
    let mut raw = sessions(1);
    raw.target.reset_unit(0);
    raw.target.attend(0, Sense::CAPACITY_CHANGED);
    let (good, _, _) = raw.read(Cdb::Inquiry { page: None, alloc: 36 }, 36);
    assert_eq!(good, status::GOOD);
    let (_, told, _) = raw.read(Cdb::RequestSense { descriptor: false, alloc: 18 }, 18);
    assert_eq!(Sense::parse(&told), Some(Sense::RESET));
    assert_eq!(ready(&mut raw, 0), heard(Sense::CAPACITY_CHANGED));
    assert_eq!(ready(&mut raw, 0), GOOD);
}

#[test]
fn a_cold_reset_ends_every_session() {
    let mut raw = sessions(2);
    assert_eq!(response(&raw.manage(function::COLD_RESET, 0, 0)), 0);
    assert_eq!(raw.target.connection(0).poll_action(Time::ZERO), Some(Action::Close));
    raw.on = 1;
    assert!(raw.is_reset());
    raw.target.connection(1).handle_connected(Time::ZERO);
    raw.begin_session();
    assert_eq!(ready(&mut raw, 1), heard(Sense::RESET), "as after power on");
}

#[test]
fn a_login_with_the_same_isid_ends_the_session_that_was() {
    let mut raw = sessions(3);
    // The connection of another, with the ISID of the first.
    raw.target.connection(2).handle_connected(Time::ZERO);
    raw.on = 0;
    let (itt, _) = unfinished(&mut raw);
    raw.login_as(2, 0);
    assert_eq!(raw.target.poll_stirred(), Some(0));
    raw.on = 0;
    assert!(raw.is_reset(), "task {itt} went with its session");
    for on in [1, 2] {
        assert_eq!(ready(&mut raw, on), GOOD);
    }
}
