//! Goal: a target does by script, at the very command that was named, what packaged targets do not do; and an initiator
//! comes through what the protocol allows.
//! Method: a hand-driven initiator looks at what comes for a scripted command; then ours runs against each such
//! fault at a fifth of its commands, and its pages are compared.

mod common;

use common::raw::{Answer, Raw, ending};
use common::target_config;
use netswap_iscsi::pdu::{DataOut, NopOut, ResponsePdu, TAG_NONE, data_len, lun_bytes};
use netswap_iscsi::scsi::{Cdb, Sense, status};
use netswap_iscsi::{FAULT_NAMES, Fault, TargetFaults};
use netswap_net::{Action, SendVec, Session};
use netswap_reserve::{Span, Time};

const READ: Cdb = Cdb::Read { lba: 0, blocks: 8, fua: false };
const WRITE: Cdb = Cdb::Write { lba: 0, blocks: 8, fua: false };

/// A session whose next command has `fault`.
fn scripted(fault: Fault) -> Raw {
    let mut raw = Raw::ready(target_config());
    raw.target.set_faults(TargetFaults { late_by: Span::from_secs(1), ..Default::default() });
    raw.target.script(1, fault);
    raw
}

/// What comes for a READ of 4096 bytes with `fault`, which was counted; the one after it is answered as ever.
fn read(fault: Fault) -> Vec<Answer> {
    let mut raw = scripted(fault);
    let command = raw.command(READ, true, false, 4096);
    let answers = raw.send(command.build(), &[]);
    assert_eq!(raw.target.fault_counts().of(fault), 1, "{fault:?}");
    answers
}

#[test]
fn a_command_ends_as_the_script_says() {
    let check = |sense| (status::CHECK_CONDITION, Some(sense));
    for (fault, want) in [
        (Fault::Busy, (status::BUSY, None)),
        (Fault::TaskSetFull, (status::TASK_SET_FULL, None)),
        (Fault::CheckCondition, check(Sense::RESET)),
        (Fault::DescriptorSense, check(Sense::RESET)),
        (Fault::NoSense, (status::CHECK_CONDITION, None)),
        (Fault::NotReady, check(Sense::new(2, 4, 1))),
        (Fault::AbortedCommand, check(Sense::new(0xb, 0, 0))),
        (Fault::MediumError, check(Sense::READ_ERROR)),
        (Fault::HardwareError, check(Sense::new(4, 0x44, 0))),
        (Fault::TaskAborted, (status::TASK_ABORTED, None)),
        (Fault::ReservationConflict, (status::RESERVATION_CONFLICT, None)),
    ] {
        let answers = read(fault);
        let (status, _, sense) = ending(&answers);
        assert_eq!((status, sense), want, "{fault:?}");
        if fault == Fault::DescriptorSense {
            assert_eq!(answers[0].1[2], 0x72);
        }
    }
    let [(ResponsePdu::ScsiResponse(failed), _)] = read(Fault::TargetFailure)[..] else { panic!() };
    assert_eq!(failed.response, 1);
    let answers = read(Fault::LyingSense);
    assert_eq!((&answers[0].1[..2], answers[0].1.len()), (&[0x7f, 0xff][..], 20));
    let answers = read(Fault::Reject);
    assert!(matches!(answers[..], [(ResponsePdu::Reject(_), _)]), "{answers:?}");
}

#[test]
fn data_and_residuals_are_what_the_script_says() {
    let answers = read(Fault::ShortRead);
    let Some((ResponsePdu::DataIn(last), _)) = answers.last() else { panic!("{answers:?}") };
    assert_eq!((last.status, last.underflow, last.residual), (Some(0), true, 2048));
    let answers = read(Fault::WrongResidual);
    let Some((ResponsePdu::DataIn(last), _)) = answers.last() else { panic!("{answers:?}") };
    assert_eq!((last.data_len, last.underflow, last.residual), (4096, true, 512));
    let answers = read(Fault::SmallDataIn);
    assert_eq!(answers.len(), 8);
    assert!(answers.iter().all(|(_, data)| data.len() == 512));
}

#[test]
fn a_message_comes_before_the_answer() {
    for (fault, event) in [
        (Fault::UnitEvent, 0),
        (Fault::LogoutRequest, 1),
        (Fault::DropConnection, 2),
        (Fault::DropSession, 3),
        (Fault::Renegotiate, 4),
    ] {
        let answers = read(fault);
        let (ResponsePdu::Async(message), data) = &answers[0] else { panic!("{answers:?}") };
        assert_eq!(message.event, event);
        let sense = data.get(2..).and_then(Sense::parse);
        assert_eq!(sense.is_some(), event == 0, "{answers:?}");
        assert_eq!(answers.len() == 1, matches!(event, 2 | 3), "{answers:?}");
    }
    let answers = read(Fault::Ping);
    assert!(matches!(answers[0].0, ResponsePdu::NopIn(ping) if ping.ttt != TAG_NONE));
}

#[test]
fn a_command_is_not_answered_or_its_connection_goes() {
    let mut raw = scripted(Fault::Silent);
    let command = raw.command(WRITE, false, true, 4096);
    assert_eq!(raw.send(command.build(), &[]).len(), 1, "an R2T");
    assert!(read(Fault::Cut).is_empty());
    let mut raw = scripted(Fault::Cut);
    let mut command = raw.command(WRITE, false, true, 4096);
    command.data_len = 4096;
    assert!(raw.send(command.build(), &[7; 4096]).is_empty());
    assert!(raw.is_reset());
    raw.target.connection(0).handle_connected(Time::ZERO);
    raw.begin_session();
    assert_eq!(raw.read(READ, 4096).1, [7; 4096], "it was carried out");

    // Half of the header, and the end.
    raw.target.script(1, Fault::CutInHeader);
    let command = raw.command(READ, true, false, 4096);
    let mut end = raw.target.connection(0);
    common::deliver(&mut end, Time::ZERO, &command.build());
    let mut out = SendVec::new();
    end.poll_send(Time::ZERO, &mut out);
    let n = out.concat().len();
    assert_eq!(n, 24);
    drop(out);
    end.handle_sent(Time::ZERO, n);
    assert_eq!(end.poll_action(Time::ZERO), Some(Action::Close));
}

#[test]
fn r2ts_are_many_and_late() {
    let mut raw = scripted(Fault::SmallR2t);
    raw.target.script(1, Fault::LateR2t);
    let command = raw.command(WRITE, false, true, 4096);
    assert!(raw.send(command.build(), &[]).is_empty(), "late");
    raw.now = Time::ZERO + Span::from_secs(1);
    assert_eq!(raw.target.connection(0).poll_deadline(), Some(raw.now));
    let now = raw.now;
    raw.target.connection(0).handle_deadline(now);
    let mut answers = raw.unasked();
    let mut asked = 0;
    while let (ResponsePdu::R2t(r2t), _) = answers.remove(0) {
        assert_eq!((r2t.offset, r2t.len, r2t.r2t_sn), (asked * 512, 512, asked));
        asked += 1;
        let data = DataOut {
            last: true,
            lun: lun_bytes(0),
            itt: command.itt,
            ttt: r2t.ttt,
            exp_stat_sn: 0,
            data_sn: 0,
            offset: r2t.offset,
            data_len: 512,
        };
        answers.extend(raw.send(data.build(), &[7; 512]));
        if asked == 8 {
            break;
        }
    }
    assert_eq!(ending(&answers).0, status::GOOD);
    assert_eq!(raw.read(READ, 4096).1, [7; 4096]);
}

#[test]
fn the_window_closes_and_a_nop_in_opens_it() {
    let mut raw = scripted(Fault::CloseWindow);
    let max = |answers: &[Answer]| match answers.last() {
        Some((ResponsePdu::ScsiResponse(r), _)) => r.sns.max_cmd_sn,
        other => panic!("{other:?}"),
    };
    let mut seen = Vec::new();
    loop {
        let command = raw.command(Cdb::TestUnitReady, false, false, 0);
        let answers = raw.send(command.build(), &[]);
        if answers.is_empty() {
            break;
        }
        seen.push(max(&answers));
    }
    assert!(seen.windows(2).all(|pair| pair[0] == pair[1]), "{seen:?}");
    // The last one was beyond the window.
    raw.cmd_sn[0] -= 1;
    let now = Time::ZERO + Span::from_secs(1);
    raw.target.connection(0).handle_deadline(now);
    let answers = raw.unasked();
    let [(ResponsePdu::NopIn(nop), _)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((nop.itt, nop.ttt), (TAG_NONE, TAG_NONE));
    assert!(nop.sns.max_cmd_sn > seen[0]);
    assert_eq!(raw.write(Cdb::TestUnitReady, &[]).0, status::GOOD);
}

#[test]
fn a_reset_takes_the_command_and_leaves_an_attention() {
    assert!(read(Fault::ResetUnit).is_empty());
    let mut raw = scripted(Fault::CapacityChanged);
    assert_eq!(raw.write(Cdb::TestUnitReady, &[]).0, status::GOOD);
    assert_eq!(raw.write(Cdb::TestUnitReady, &[]).1, Some(Sense::CAPACITY_CHANGED));
    // The third command from now, and no other.
    raw.target.script(3, Fault::Busy);
    let ends = [(); 4].map(|()| raw.write(Cdb::TestUnitReady, &[]).0);
    assert_eq!(ends, [status::GOOD, status::GOOD, status::BUSY, status::GOOD]);
}

#[test]
fn recovery_levels_1_and_2_are_refused_and_so_is_disorder() {
    for level in ["1", "2"] {
        let mut raw = Raw::new(target_config());
        let text = format!(
            "InitiatorName=iqn.raw TargetName={} SessionType=Normal ErrorRecoveryLevel={level} \
             DataSequenceInOrder=No DataPDUInOrder=No",
            common::IQN
        );
        let answers = raw.login(1, 3, &text);
        let text = String::from_utf8_lossy(&answers[0].1).into_owned();
        for pair in ["ErrorRecoveryLevel=0\0", "DataSequenceInOrder=Yes\0", "DataPDUInOrder=Yes\0"]
        {
            assert!(text.contains(pair), "{text}");
        }
        // A SNACK is for level 1: it is rejected.
        let mut snack = NopOut {
            immediate: true,
            lun: [0; 8],
            itt: TAG_NONE,
            ttt: TAG_NONE,
            cmd_sn: 1,
            exp_stat_sn: 0,
            data_len: 0,
        }
        .build();
        snack[0] = 0x50;
        assert_eq!(data_len(&snack), 0);
        let answers = raw.send(snack, &[]);
        assert!(matches!(answers[..], [(ResponsePdu::Reject(_), _)]), "{answers:?}");
    }
}

#[test]
fn every_fault_has_a_name() {
    assert_eq!(FAULT_NAMES.len(), Fault::ALL.len());
    let mut faults = TargetFaults::default();
    for name in FAULT_NAMES {
        faults.set(name, 1).unwrap();
    }
    let error = faults.set("cat", 1).unwrap_err().to_string();
    assert!(FAULT_NAMES.iter().all(|name| error.contains(name)), "{error}");
}
