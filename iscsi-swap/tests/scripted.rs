//! Goal: what targets may do at any time, and packaged ones do not do to order: silence that asks for task management,
//! units that change, messages and rejects of every kind, residuals, small windows, R2Ts in a row.
//! Method: a target of which the test writes every answer.

#[path = "common/script.rs"]
mod script;

use netswap_iscsi::InitiatorConfig;
use netswap_iscsi::pdu::{
    AsyncMessage, LogoutRequest, NopIn, NopOut, R2t, Reject, RequestPdu, ScsiCommand,
    TaskManagementRequest, TaskManagementResponse, opcode,
};
use netswap_iscsi::scsi::{Cdb, Sense, SenseForm, status};
use netswap_net::{Action, Answers, Disconnect, Session};
use netswap_reserve::Span;
use netswap_swap::{BackendState, Op, StoreError, Stored, SwapBackend};
use script::{Script, Unit};

const TIMEOUT: Span = Span::from_secs(2);
const READY: BackendState = BackendState::Ready { slots: 64 };

fn config() -> InitiatorConfig {
    let portal = "10.0.0.2:3260".parse().unwrap();
    let config = InitiatorConfig::new(portal, "iqn.2026-01.test:disk", 0).with_all();
    InitiatorConfig { request_timeout: TIMEOUT, ..config }
}

fn ready() -> Script {
    with(config())
}

fn with(config: InitiatorConfig) -> Script {
    let mut script = Script::new(config, Unit::new());
    assert_eq!(script.start(), READY);
    script
}

/// The target says something, so that its connection is not taken for dead.
fn chatter(script: &mut Script) {
    let sns = script.sns(false);
    let nop = NopIn { lun: [0; 8], itt: u32::MAX, ttt: u32::MAX, sns, data_len: 0 };
    script.send(nop.build(), &[]);
    script.turn();
}

/// A write whose answer does not come; the function that is asked for then.
fn overdue(script: &mut Script) -> (ScsiCommand, TaskManagementRequest) {
    script.submit(1, Op::Write, 4, 1, None);
    let command = script.command();
    script.pass(Span::from_secs(1));
    chatter(script);
    script.pass(Span::from_millis(1001));
    (command, function(script))
}

fn function(script: &mut Script) -> TaskManagementRequest {
    let at = script.came.iter().position(|c| matches!(c.0, RequestPdu::TaskManagement(_)));
    match script.came.remove(at.expect("a function is asked for")).0 {
        RequestPdu::TaskManagement(request) => request,
        _ => unreachable!(),
    }
}

fn answer(script: &mut Script, request: &TaskManagementRequest, response: u8) {
    let sns = script.sns(true);
    let answer = TaskManagementResponse { response, itt: request.itt, sns };
    script.send(answer.build(), &[]);
    script.turn();
}

fn outcome(script: &mut Script) -> (Result<Stored, StoreError>, bool) {
    let end = script.backend.poll_completion(script.now).expect("it has ended");
    (end.outcome, end.is_loose)
}

const STORED: (Result<Stored, StoreError>, bool) = (Ok(Stored { replayed: false }), false);

#[test]
fn a_command_without_answer_is_aborted_and_issued_again_once() {
    for response in [0, 1] {
        let mut script = ready();
        let (command, abort) = overdue(&mut script);
        assert_eq!(
            (abort.function, abort.referenced, abort.ref_cmd_sn),
            (1, command.itt, command.cmd_sn)
        );
        assert!(script.came.is_empty(), "nothing is issued again before the answer");
        answer(&mut script, &abort, response);
        let again = script.command();
        assert_ne!(again.itt, command.itt);
        assert_eq!(again.cdb, command.cdb);
        script.end(&again, status::GOOD, None);
        assert_eq!(outcome(&mut script), STORED);
        assert_eq!((script.connects, script.backend.stats().aborted), (1, 1));
    }
}

#[test]
fn an_answer_that_comes_before_that_to_its_abortion_counts() {
    let mut script = ready();
    let (command, abort) = overdue(&mut script);
    script.end(&command, status::GOOD, None);
    assert_eq!(outcome(&mut script), STORED);
    answer(&mut script, &abort, 1);
    assert!(script.came.is_empty());
    assert_eq!(script.connects, 1);
}

#[test]
fn a_target_that_cannot_abort_resets_its_unit_and_one_that_cannot_do_that_loses_the_session() {
    for (reset_answer, connects) in [(0, 1), (5, 2)] {
        let mut script = ready();
        script.submit(2, Op::Read, 9, 1, None);
        let (_, abort) = overdue(&mut script);
        answer(&mut script, &abort, 5);
        let reset = function(&mut script);
        assert_eq!(reset.function, 5);
        answer(&mut script, &reset, reset_answer);
        if reset_answer != 0 {
            // DefaultTime2Wait.
            script.pass(Span::from_secs(2));
        }
        assert_eq!(script.connects, connects);
        for _ in 0..2 {
            let at = script.came.iter().rposition(|c| matches!(c.0, RequestPdu::ScsiCommand(_)));
            let RequestPdu::ScsiCommand(again) = script.came.remove(at.unwrap()).0 else {
                panic!()
            };
            match again.read {
                true => script.data(&again, &[7; 4096]),
                false => script.end(&again, status::GOOD, None),
            }
            script.turn();
            assert_eq!(outcome(&mut script), STORED);
        }
    }
}

#[test]
fn a_command_number_that_the_target_never_took_needs_a_new_session() {
    let mut script = ready();
    script.submit(1, Op::Write, 4, 1, None);
    script.command();
    // It was ignored, as tgt does with what is beyond its window.
    script.exp_cmd_sn -= 1;
    script.window += 1;
    script.pass(Span::from_secs(1));
    chatter(&mut script);
    script.pass(Span::from_millis(1001));
    // The number of what is taken never moves down, so this target has to be new to show it.
    let abort = function(&mut script);
    assert_eq!(abort.ref_cmd_sn, script.exp_cmd_sn);
    answer(&mut script, &abort, 1);
    script.pass(Span::from_secs(3));
    assert_eq!(script.connects, 2);
    let again = script.command();
    script.end(&again, status::GOOD, None);
    assert_eq!(outcome(&mut script), STORED);
}

#[test]
fn a_connection_that_is_silent_is_dropped_and_not_asked() {
    let mut script = ready();
    script.submit(1, Op::Write, 4, 1, None);
    script.command();
    script.pass(Span::from_secs(2));
    script.pass(Span::from_secs(2));
    assert!(!script.came.iter().any(|c| matches!(c.0, RequestPdu::TaskManagement(_))));
    assert_eq!((script.connects, script.backend.stats().timeouts), (2, 1));
}

#[test]
fn slots_of_a_write_without_answer_are_in_quarantine_until_the_session_is_reinstated() {
    let mut script = ready();
    let deadline = script.now + Span::from_millis(100);
    script.submit(1, Op::Write, 4, 1, Some(deadline));
    script.submit(2, Op::Read, 9, 1, Some(deadline));
    script.now = deadline;
    let ends = [(); 2].map(|()| script.backend.poll_completion(deadline).unwrap());
    for end in &ends {
        assert_eq!(end.outcome, Err(StoreError::TimedOut));
        assert_eq!(end.is_loose, end.id.0 == 1, "a read leaves nothing behind");
    }
    assert_eq!(script.backend.fences(), 0, "nothing is proven yet");
    script.turn();
    assert_eq!((script.last_action, script.backend.fences()), (Some(Action::Abort), 0));
    script.pass(Span::from_secs(3));
    assert_eq!((script.connects, script.backend.fences()), (2, 1));
    // One that was answered is not loose.
    script.came.clear();
    script.submit(3, Op::Write, 4, 1, None);
    let command = script.command();
    script.end(&command, status::CHECK_CONDITION, Some(Sense::WRITE_ERROR));
    assert_eq!(outcome(&mut script), (Err(StoreError::Io), false));
    assert_eq!(script.backend.fences(), 1);
}

#[test]
fn a_unit_that_changes_is_looked_at_and_refused_if_it_is_another() {
    type Change = fn(&mut Unit);
    let changes: [(Change, Option<&str>); 5] = [
        (|_| (), None),
        (
            |unit| unit.identity = Some(b"disk two".to_vec()),
            Some("the unit's identification (VPD page 83h)"),
        ),
        (|unit| unit.identity = None, Some("the unit's identification (VPD page 83h)")),
        (|unit| unit.blocks += 8, Some("its length")),
        (|unit| (unit.block_size, unit.blocks) = (4096, 64), Some("its block size")),
    ];
    for (change, what) in changes {
        let expected =
            what.map_or(READY, |what| BackendState::Failed(StoreError::Changed { what }));
        for sense in [Sense::new(6, 0x2a, 9), Sense::new(6, 0x3f, 0x0e)] {
            // On the next command.
            let mut script = ready();
            script.submit(1, Op::Write, 4, 1, None);
            let command = script.command();
            change(&mut script.unit);
            script.end(&command, status::CHECK_CONDITION, Some(sense));
            assert_eq!(script.backend.state(), expected);
            match what {
                None => {
                    let again = script.command();
                    script.end(&again, status::GOOD, None);
                    assert_eq!(outcome(&mut script), STORED);
                }
                Some(_) => assert!(script.came.is_empty(), "nothing is written to it"),
            }
            // By an asynchronous message.
            let mut script = ready();
            change(&mut script.unit);
            announce(&mut script, 0, &sense.build(SenseForm::Descriptor));
            assert_eq!(script.backend.state(), expected);
        }
        // At a reconnect.
        let mut script = ready();
        change(&mut script.unit);
        announce(&mut script, 2, &[]);
        script.pass(Span::from_secs(3));
        assert_eq!((script.connects, script.backend.state()), (2, expected));
    }
}

fn announce(script: &mut Script, event: u8, sense: &[u8]) {
    let sns = script.sns(true);
    let message = AsyncMessage {
        lun: [0; 8],
        sns,
        event,
        parameter1: 0,
        parameter2: 0,
        parameter3: 0,
        data_len: 0,
    };
    let mut data = Vec::new();
    if !sense.is_empty() {
        data.extend((sense.len() as u16).to_be_bytes());
        data.extend_from_slice(sense);
    }
    script.send(message.build(), &data);
    script.turn();
}

#[test]
fn messages_that_ask_for_nothing_change_nothing() {
    let mut script = ready();
    for event in [255, 77, 5] {
        announce(&mut script, event, &[]);
    }
    // A unit attention that tells of nothing that matters, and one of another connection.
    announce(&mut script, 0, &Sense::new(6, 0x2a, 1).build(SenseForm::Fixed));
    let stats = script.backend.stats();
    assert_eq!((stats.async_messages, script.connects), ([1, 0, 0, 0, 0, 3], 1));
    assert_eq!(stats.garbage, 0);
}

#[test]
fn a_target_that_wants_a_logout_gets_one() {
    for event in [1, 4] {
        let mut script = ready();
        announce(&mut script, event, &[]);
        let logout = script.came.pop().map(|c| c.0);
        assert!(
            matches!(logout, Some(RequestPdu::Logout(LogoutRequest { reason: 0, .. }))),
            "{event}"
        );
    }
}

fn reject(script: &mut Script, reason: u8, rejected: [u8; 48]) {
    let sns = script.sns(true);
    script.send(Reject { reason, sns, data_sn: 0, data_len: 0 }.build(), &rejected);
    script.turn();
}

#[test]
fn every_reason_of_a_reject_has_its_answer() {
    for reason in 0..=255u8 {
        let mut script = ready();
        script.submit(1, Op::Write, 4, 1, None);
        let command = script.command();
        reject(&mut script, reason, command.build());
        let stats = script.backend.stats();
        assert_eq!(stats.rejects, 1);
        match reason {
            // Damage on the way: a new session, and nobody is to blame.
            2 => assert_eq!((stats.garbage, script.last_action), (0, Some(Action::Abort))),
            // It waits for a logout.
            12 => assert!(matches!(script.came.pop(), Some((RequestPdu::Logout(_), _)))),
            _ => assert_eq!(
                (stats.garbage, script.last_action),
                (1, Some(Action::Abort)),
                "{reason}"
            ),
        }
    }
    // What needs no answer may be refused: a ping.
    let mut script = ready();
    script.pass(Span::from_millis(5001));
    let at =
        script.came.iter().position(|c| matches!(c.0, RequestPdu::NopOut(n) if n.itt != u32::MAX));
    let RequestPdu::NopOut(ping) = script.came.remove(at.unwrap()).0 else { panic!() };
    reject(&mut script, 6, ping.build());
    let mut tagless = ping.build();
    tagless[0] = opcode::NOP_OUT;
    tagless[16..20].fill(0xff);
    reject(&mut script, 6, tagless);
    assert_eq!((script.connects, script.backend.stats().garbage), (1, 0));
}

#[test]
fn residuals_are_errors_with_their_numbers() {
    let mut script = ready();
    let cases = [
        (Op::Write, (true, false, 512), StoreError::Excess { by: 512 }),
        (Op::Write, (false, true, 512), StoreError::ShortWrite { took: 7680, wanted: 8192 }),
        (Op::Read, (false, true, 8192), StoreError::ShortRead { got: 0, wanted: 8192 }),
    ];
    for (op, residual, error) in cases {
        script.submit(1, op, 4, 2, None);
        let command = script.command();
        script.respond(&command, status::GOOD, None, residual);
        assert_eq!(outcome(&mut script), (Err(error), false));
    }
    assert_eq!(script.connects, 1);
}

#[test]
fn units_that_cannot_be_used_are_refused_at_the_start() {
    let start = |change: fn(&mut Unit), config: InitiatorConfig| {
        let mut unit = Unit::new();
        change(&mut unit);
        Script::new(config, unit).start()
    };
    for bytes in [520, 528, 8192, 256] {
        let mut unit = Unit::new();
        unit.block_size = bytes;
        let state = Script::new(config(), unit).start();
        assert_eq!(state, BackendState::Failed(StoreError::BlockSize { bytes }));
    }
    let protected: fn(&mut Unit) = |unit| unit.modes = Some((0x90, 4));
    assert_eq!(start(protected, config()), BackendState::Failed(StoreError::ReadOnly));
    assert_eq!(start(protected, InitiatorConfig { writable: false, ..config() }), READY);
    assert_eq!(start(|unit| unit.capacity_16 = false, config()), READY);
    assert_eq!(start(|unit| (unit.block_size, unit.blocks) = (4096, 64), config()), READY);
    // A unit that answers none of the questions that are not needed.
    let bare: fn(&mut Unit) = |unit| {
        (unit.identity, unit.limits, unit.modes, unit.capacity_16) = (None, None, None, false);
    };
    assert_eq!(start(bare, config()), READY);
}

#[test]
fn a_write_cache_is_honoured() {
    for (modes, fua, syncs) in
        [((0x10, 4), true, false), ((0, 4), false, true), ((0x10, 0), false, false)]
    {
        let mut unit = Unit::new();
        unit.modes = Some(modes);
        let mut script = Script::new(config(), unit);
        assert_eq!(script.start(), READY);
        script.submit(1, Op::Write, 4, 1, None);
        script.submit(2, Op::Write, 5, 1, None);
        let mut ends = 0;
        let mut synced = false;
        while ends < 2 {
            let command = script.command();
            match Cdb::parse(&command.cdb) {
                Cdb::Write { fua: has, .. } => assert_eq!(has, fua),
                Cdb::SynchronizeCache { .. } => synced = true,
                other => panic!("{other:?}"),
            }
            script.end(&command, status::GOOD, None);
            while script.backend.poll_completion(script.now).is_some() {
                ends += 1;
            }
        }
        assert_eq!(synced, syncs);
    }
}

#[test]
fn a_write_whose_cache_was_lost_is_written_again() {
    let mut unit = Unit::new();
    unit.modes = Some((0, 4));
    let mut script = Script::new(config(), unit);
    assert_eq!(script.start(), READY);
    script.submit(1, Op::Write, 4, 1, None);
    script.submit(2, Op::Read, 20, 1, None);
    let (write, read) = (script.command(), script.command());
    script.end(&write, status::GOOD, None);
    let sync = script.command();
    assert!(matches!(Cdb::parse(&sync.cdb), Cdb::SynchronizeCache { .. }));
    script.end(&read, status::CHECK_CONDITION, Some(Sense::RESET));
    script.end(&sync, status::GOOD, None);
    let commands = [script.command(), script.command()];
    assert!(commands.iter().any(|c| c.write && c.cdb == write.cdb), "{commands:?}");
}

/// A unit with a write cache and without FUA; writes far from each other, and their commands.
fn cached_writes(slots: &[u32]) -> (Script, Vec<ScsiCommand>) {
    let mut unit = Unit::new();
    unit.modes = Some((0, 4));
    let mut script = Script::new(config(), unit);
    assert_eq!(script.start(), READY);
    for slot in slots {
        script.submit(*slot, Op::Write, *slot, 1, None);
    }
    let writes = slots.iter().map(|_| script.command()).collect();
    (script, writes)
}

/// The flush that came, and nothing else did; which blocks it is for.
fn flush(script: &mut Script) -> (ScsiCommand, (u64, u32)) {
    let command = script.command();
    assert!(script.came.is_empty());
    match Cdb::parse(&command.cdb) {
        Cdb::SynchronizeCache { lba, blocks } => (command, (lba, blocks)),
        other => panic!("{other:?}"),
    }
}

fn ended(script: &mut Script) -> Vec<u32> {
    let ends = std::iter::from_fn(|| script.backend.poll_completion(script.now));
    ends.map(|end| (end.outcome.unwrap(), end.id.0).1).collect()
}

#[test]
fn writes_that_were_answered_during_a_flush_share_the_next() {
    let (mut script, writes) = cached_writes(&[4, 10, 20, 30]);
    script.end(&writes[0], status::GOOD, None);
    let (first, range) = flush(&mut script);
    assert_eq!(range, (4 * 8, 8));
    script.end(&writes[1], status::GOOD, None);
    script.end(&writes[2], status::GOOD, None);
    assert!(script.came.is_empty() && ended(&mut script).is_empty());
    script.end(&first, status::GOOD, None);
    assert_eq!(ended(&mut script), [4]);
    let (both, range) = flush(&mut script);
    assert_eq!(range, (0, 0), "the whole unit");
    // It was sent before this one was answered, and says nothing about it.
    script.end(&writes[3], status::GOOD, None);
    script.end(&both, status::GOOD, None);
    assert_eq!(ended(&mut script), [10, 20]);
    let (last, range) = flush(&mut script);
    assert_eq!(range, (30 * 8, 8));
    script.end(&last, status::GOOD, None);
    assert_eq!(ended(&mut script), [30]);
    assert_eq!(script.backend.stats().flushed_together, 1);
}

#[test]
fn a_shared_flush_that_fails_has_all_its_writes_written_again_each_with_its_own() {
    for lost in [false, true] {
        let (mut script, writes) = cached_writes(&[4, 10, 20]);
        script.submit(50, Op::Read, 50, 1, None);
        let read = script.command();
        script.end(&writes[0], status::GOOD, None);
        let (first, _) = flush(&mut script);
        script.end(&writes[1], status::GOOD, None);
        script.end(&writes[2], status::GOOD, None);
        script.end(&first, status::GOOD, None);
        let (both, _) = flush(&mut script);
        if lost {
            // The cache is gone with what was in it, whatever is said of the flush.
            script.end(&read, status::CHECK_CONDITION, Some(Sense::RESET));
            script.end(&both, status::GOOD, None);
        } else {
            script.end(&both, status::CHECK_CONDITION, Some(Sense::INVALID_FIELD));
        }
        assert_eq!(ended(&mut script), [4]);
        let mut rewritten = Vec::new();
        let mut flushes = 0;
        while rewritten.len() < 2 || !script.came.is_empty() {
            let command = script.command();
            match Cdb::parse(&command.cdb) {
                Cdb::Write { lba, .. } => rewritten.push(lba / 8),
                Cdb::SynchronizeCache { .. } => flushes += 1,
                Cdb::Read { .. } => continue,
                other => panic!("{other:?}"),
            }
            script.end(&command, status::GOOD, None);
        }
        rewritten.sort_unstable();
        assert_eq!(rewritten, [10, 20]);
        let mut ends = ended(&mut script);
        ends.sort_unstable();
        assert_eq!((ends, flushes), (vec![10, 20], 2), "lost: {lost}");
    }
}

#[test]
fn no_command_passes_a_window_of_two_and_the_window_moves_with_every_answer() {
    let mut script = Script::new(InitiatorConfig { merge: false, ..config() }, Unit::new());
    script.window = 2;
    assert_eq!(script.start(), READY);
    for id in 0..6 {
        script.submit(id, Op::Write, id * 5, 1, None);
    }
    // MaxCmdSN was 2 beyond the last command of the set-up.
    assert_eq!(script.came.len(), 2);
    script.window = 0;
    let first = script.command();
    script.end(&first, status::GOOD, None);
    assert_eq!(script.came.len(), 1, "the window is shut");
    script.window = 1;
    let second = script.command();
    script.end(&second, status::GOOD, None);
    assert_eq!(script.came.len(), 1);
    script.window = 2;
    let third = script.command();
    script.end(&third, status::GOOD, None);
    assert_eq!(script.came.len(), 2);
}

#[test]
fn eight_r2ts_at_once_are_answered_in_their_order() {
    let mut script = Script::new(config(), Unit::new());
    script.keys = "MaxOutstandingR2T=8\0ImmediateData=No\0InitialR2T=Yes\0";
    assert_eq!(script.start(), READY);
    script.submit(1, Op::Write, 0, 16, None);
    let command = script.command();
    assert_eq!((command.expected, command.data_len), (65536, 0));
    for n in 0..8 {
        let (sns, lun) = (script.sns(false), [0; 8]);
        let r2t = R2t {
            lun,
            itt: command.itt,
            ttt: 100 + n,
            sns,
            r2t_sn: n,
            offset: n * 8192,
            len: 8192,
        };
        script.send(r2t.build(), &[]);
    }
    script.turn();
    let outs: Vec<(u32, u32, u32)> = script
        .came
        .iter()
        .map(|(pdu, data)| match pdu {
            RequestPdu::DataOut(out) => (out.ttt, out.offset, data.len() as u32),
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(outs, (0..8).map(|n| (100 + n, n * 8192, 8192)).collect::<Vec<_>>());
    script.end(&command, status::GOOD, None);
    assert_eq!(outcome(&mut script), STORED);
    assert_eq!(script.backend.stats().r2ts, 8);
}

#[test]
fn an_answer_is_acknowledged_by_itself_when_nothing_else_is_sent() {
    let mut script = ready();
    script.submit(1, Op::Write, 0, 1, None);
    let command = script.command();
    script.end(&command, status::GOOD, None);
    assert!(script.came.is_empty());
    script.pass(Span::from_secs(1));
    let Some((RequestPdu::NopOut(NopOut { itt, ttt, immediate, exp_stat_sn, .. }), _)) =
        script.came.pop()
    else {
        panic!("{:?}", script.came)
    };
    assert_eq!((itt, ttt, immediate, exp_stat_sn), (u32::MAX, u32::MAX, true, script.stat_sn));
    script.pass(Span::from_secs(3));
    assert!(script.came.is_empty(), "once is enough");
}

#[test]
fn page_ins_go_before_page_outs_that_wait() {
    let mut script = Script::new(InitiatorConfig { merge: false, ..config() }, Unit::new());
    script.window = 1;
    assert_eq!(script.start(), READY);
    script.submit(9, Op::Write, 60, 1, None);
    let first = script.command();
    for id in 0..4 {
        script.submit(id, Op::Write, id * 5, 1, None);
    }
    script.submit(50, Op::Read, 40, 1, None);
    assert!(script.came.is_empty(), "the window is shut");
    script.end(&first, status::GOOD, None);
    assert!(script.command().read);
}

#[test]
fn it_says_how_many_answers_it_waits_for_also_behind_a_pointer() {
    fn said<S: Session>(session: &S) -> Answers {
        session.answers()
    }
    let mut script = ready();
    let begun = said(&script.backend);
    assert_eq!(begun.outstanding, 0);
    for id in 0..3 {
        script.submit(id, Op::Write, 4 + 2 * id, 1, None);
    }
    let first = script.command();
    script.end(&first, status::GOOD, None);
    assert_eq!(said(&script.backend), Answers { outstanding: 2, come: begun.come + 1 });
    script.connected = false;
    script.backend.handle_disconnected(script.now, Disconnect::Reset);
    let boxed: Box<dyn Session> = Box::new(script.backend);
    assert_eq!(said(&boxed), Answers { outstanding: 0, come: begun.come + 1 });
}
