//! Goal: slots are discarded by UNMAP, of units that say they take it everywhere; whatever becomes of the connection
//! and in whatever order requests come, no page is lost by it.
//! Method: a target of which the test writes every answer; then the embedded target with random requests against a model,
//! the connection cut anywhere.

mod common;
#[path = "common/script.rs"]
mod script;

use std::collections::BTreeMap;

use common::{Pump, SLOTS, THIN, initiator_config, target_config};
use netswap_iscsi::pdu::{RequestPdu, ScsiCommand};
use netswap_iscsi::scsi::{Cdb, Sense, status};
use netswap_iscsi::{Digest, InitiatorConfig, TargetFaults};
use netswap_net::{Disconnect, Session};
use netswap_reserve::{Gfp, Span, Time};
use netswap_swap::{
    BackendState, Discard, DiscardLimits, Op, PageVec, Phase, Request, RequestId, Run, Slot,
    StoreError, Stored, SwapBackend,
};
use script::{Script, Thin, Unit};

fn config() -> InitiatorConfig {
    InitiatorConfig { discard: true, ..initiator_config().with_all() }
}

fn thin(limits: [u32; 4]) -> Unit {
    let thin = Thin { lbpme: true, limits, lbpu: Some(true) };
    Unit { limits: Some(0), thin, ..Unit::new() }
}

fn script(unit: Unit) -> Script {
    let mut script = Script::new(config(), unit);
    assert!(matches!(script.start(), BackendState::Ready { .. }));
    script
}

fn discard(id: u32, runs: &[(u32, u32)], deadline: Option<Time>) -> Discard {
    let runs = runs.iter().map(|(first, slots)| Run { first: Slot(*first), slots: *slots });
    Discard { id: RequestId(id), runs: runs.collect(), deadline }
}

fn submit(script: &mut Script, runs: &[(u32, u32)]) {
    script.backend.discard(script.now, discard(7, runs, None)).unwrap();
    script.turn();
}

/// The UNMAP that came, with its ranges of blocks.
fn unmap(script: &mut Script) -> (ScsiCommand, Vec<(u64, u32)>) {
    assert_eq!(script.came.len(), 1, "one command");
    let (RequestPdu::ScsiCommand(command), list) = script.came.remove(0) else {
        panic!("a command comes")
    };
    let Cdb::Unmap { list_len } = Cdb::parse(&command.cdb) else { panic!("{command:?}") };
    assert_eq!((list.len() as u32, command.expected), (list_len, list_len));
    assert!(command.write && command.last && !command.read);
    assert_eq!(list[..2], (list_len as u16 - 2).to_be_bytes());
    assert_eq!(list[2..4], (list_len as u16 - 8).to_be_bytes());
    let ranges = list[8..].chunks(16).map(|range| {
        let lba = u64::from_be_bytes(range[..8].try_into().unwrap());
        (lba, u32::from_be_bytes(range[8..12].try_into().unwrap()))
    });
    (command, ranges.collect())
}

fn outcome(script: &mut Script) -> (Result<Stored, StoreError>, bool) {
    let end = script.backend.poll_completion(script.now).expect("it has ended");
    assert!(end.pages.is_empty() && end.id == RequestId(7));
    (end.outcome, end.is_loose)
}

const DONE: Result<Stored, StoreError> = Ok(Stored { replayed: false });

#[test]
fn a_unit_that_does_not_say_so_everywhere_gets_none() {
    let good = thin([64, 4, 0, 0]);
    let with = |change: fn(&mut Unit)| {
        let mut unit = good.clone();
        change(&mut unit);
        unit
    };
    for unit in [
        with(|unit| unit.thin.lbpme = false),
        with(|unit| unit.thin.lbpu = Some(false)),
        with(|unit| unit.thin.lbpu = None),
        with(|unit| unit.limits = None),
        with(|unit| unit.thin.limits[0] = 0),
        with(|unit| unit.thin.limits[1] = 0),
        // Less than a page at once.
        with(|unit| unit.thin.limits[0] = 7),
        with(|unit| unit.capacity_16 = false),
    ] {
        let mut script = script(unit);
        assert_eq!(script.backend.discards(), None, "{:?}", script.unit);
        let back = script.backend.discard(script.now, discard(7, &[(1, 1)], None));
        assert_eq!(back, Err(discard(7, &[(1, 1)], None)));
    }
    let mut script = script(good.clone());
    assert_eq!(script.backend.discards(), Some(DiscardLimits { runs: 4, slots: 8 }));
    for runs in [&[(1, 9)][..], &[(1, 1), (3, 1), (5, 1), (7, 1), (9, 1)], &[]] {
        let back = script.backend.discard(script.now, discard(7, runs, None));
        assert!(back.is_err(), "{runs:?}");
    }
    let none = Script::new(initiator_config().with_all(), good.clone());
    assert_eq!(none.backend.discards(), None, "before it is ready, and when it is not wanted");
}

#[test]
fn runs_go_in_one_command_and_only_what_is_freed_whole() {
    let mut script = script(thin([1 << 20, 1000, 0, 0]));
    let limits = script.backend.discards().unwrap();
    assert_eq!((limits.runs, limits.slots), (16, 4096));
    submit(&mut script, &[(3, 2), (40, 1), (9, 7)]);
    let (command, ranges) = unmap(&mut script);
    assert_eq!(ranges, [(24, 16), (320, 8), (72, 56)]);
    // One at a time.
    assert!(script.backend.discard(script.now, discard(8, &[(50, 1)], None)).is_err());
    script.end(&command, status::GOOD, None);
    assert_eq!(outcome(&mut script), (DONE, false));
    let stats = script.backend.stats();
    assert_eq!((stats.unmaps, stats.unmapped_slots), (1, 10));
    // As tgt answers: none of the list moved, it says.
    submit(&mut script, &[(3, 2)]);
    let (command, _) = unmap(&mut script);
    script.respond(&command, status::GOOD, None, (false, true, command.expected));
    assert_eq!(outcome(&mut script), (DONE, false));

    let mut script = self::script(thin([1 << 20, 1000, 32, 8 | 1 << 31]));
    submit(&mut script, &[(3, 9), (16, 3)]);
    let (command, ranges) = unmap(&mut script);
    assert_eq!(ranges, [(40, 32)]);
    script.end(&command, status::GOOD, None);
    assert_eq!(outcome(&mut script), (DONE, false));
    submit(&mut script, &[(16, 3)]);
    assert!(script.came.is_empty(), "nothing of it would be freed");
    assert_eq!(outcome(&mut script), (DONE, false));
}

#[test]
fn a_unit_that_lied_is_asked_no_more() {
    for (sense, is_last) in [
        (Sense::INVALID_OPCODE, true),
        (Sense::INVALID_FIELD, true),
        (Sense::INVALID_LIST, false),
        (Sense::WRITE_ERROR, false),
    ] {
        let mut script = script(thin([1 << 20, 1, 0, 0]));
        submit(&mut script, &[(3, 2)]);
        let (command, _) = unmap(&mut script);
        script.end(&command, status::CHECK_CONDITION, Some(sense));
        let (outcome, is_loose) = outcome(&mut script);
        assert!(outcome.is_err() && !is_loose, "{outcome:?}");
        assert_eq!(script.backend.discards().is_none(), is_last, "{sense:?}");
        assert_eq!(script.backend.stats().unmaps_failed, 1);
    }
    // What passes is no refusal.
    let mut script = script(thin([1 << 20, 1, 0, 0]));
    submit(&mut script, &[(3, 2)]);
    for _ in 0..3 {
        let (command, ranges) = unmap(&mut script);
        assert_eq!(ranges, [(24, 16)]);
        script.end(&command, status::BUSY, None);
        script.pass(Span::from_secs(1));
        script.came.retain(|(pdu, _)| matches!(pdu, RequestPdu::ScsiCommand(_)));
    }
    let (command, _) = unmap(&mut script);
    script.end(&command, status::GOOD, None);
    assert_eq!(outcome(&mut script), (DONE, false));
}

#[test]
fn what_has_a_slot_in_common_waits_and_what_has_none_goes_first() {
    for merge in [false, true] {
        let config = if merge {
            config()
        } else {
            InitiatorConfig { discard: true, examine: true, ..initiator_config() }
        };
        let mut script = Script::new(config, thin([1 << 20, 8, 0, 0]));
        assert!(matches!(script.start(), BackendState::Ready { .. }));
        // All of it waits when the transport asks for bytes.
        script.backend.discard(script.now, discard(7, &[(10, 2), (20, 2)], None)).unwrap();
        for (id, op, first) in [(2, Op::Write, 21), (3, Op::Read, 40), (4, Op::Write, 50)] {
            let page = script.pool.alloc(Gfp::KERNEL).unwrap();
            let pages = PageVec::from_iter([page]);
            let request =
                Request { id: RequestId(id), op, first: Slot(first), pages, deadline: None };
            script.backend.submit(script.now, request).unwrap();
        }
        script.turn();
        let verbs = script.came.iter().filter_map(|(pdu, _)| match pdu {
            RequestPdu::ScsiCommand(command) => Some(Cdb::parse(&command.cdb).verb()),
            _ => None,
        });
        let mut verbs: Vec<_> = verbs.collect();
        verbs[..2].sort_unstable();
        assert_eq!(verbs, ["READ", "WRITE", "UNMAP"], "the write of slot 21 waits");
        let commands: Vec<_> = (0..3).map(|_| script.command()).collect();
        script.end(&commands[2], status::GOOD, None);
        let write = script.command();
        assert_eq!(Cdb::parse(&write.cdb), Cdb::Write { lba: 168, blocks: 8, fua: true });
    }
}

#[test]
fn one_that_waits_is_not_passed_for_ever() {
    let mut script =
        Script::new(InitiatorConfig { wire_max: 1, ..config() }, thin([1 << 20, 8, 0, 0]));
    assert!(matches!(script.start(), BackendState::Ready { .. }));
    script.submit(1, Op::Write, 1, 1, None);
    script.backend.discard(script.now, discard(7, &[(60, 1)], None)).unwrap();
    let mut before = 0;
    loop {
        // Another one waits each time.
        script.submit(100 + before, Op::Write, 2 + before % 50, 1, None);
        let command = script.command();
        if matches!(Cdb::parse(&command.cdb), Cdb::Unmap { .. }) {
            break;
        }
        before += 1;
        assert!(before < 100, "it is passed for ever");
        script.end(&command, status::GOOD, None);
        while script.backend.poll_completion(script.now).is_some() {}
    }
    assert!(before > 30, "{before} went before it");
}

#[test]
fn one_that_ran_out_of_time_is_loose_until_the_session_was_reinstated() {
    let mut script = script(thin([1 << 20, 8, 0, 0]));
    let deadline = script.now + Span::from_millis(100);
    script.backend.discard(script.now, discard(7, &[(3, 2)], Some(deadline))).unwrap();
    script.turn();
    unmap(&mut script);
    script.now = deadline;
    assert_eq!(outcome(&mut script), (Err(StoreError::TimedOut), true));
    assert_eq!(script.backend.fences(), 0);
    script.pass(Span::from_secs(5));
    assert_eq!((script.connects, script.backend.fences()), (2, 1));
    // One that was never sent costs nothing.
    script.connected = false;
    script.backend.handle_disconnected(script.now, Disconnect::Reset);
    script.backend.discard(script.now, discard(7, &[(3, 2)], Some(script.now))).unwrap();
    assert_eq!(outcome(&mut script), (Err(StoreError::Cancelled), false));
    script.pass(Span::from_secs(5));
    // It is not sent again, and another may be.
    assert!(script.came.iter().all(|(pdu, _)| !matches!(pdu, RequestPdu::ScsiCommand(_))));
    script.came.clear();
    submit(&mut script, &[(5, 1)]);
    let (command, _) = unmap(&mut script);
    script.end(&command, status::GOOD, None);
    assert_eq!(outcome(&mut script), (DONE, false));
}

#[test]
fn one_that_went_to_another_portal_group_is_loose() {
    let portals = vec!["10.0.0.3:3260".parse().unwrap()];
    let groups = ["TargetPortalGroupTag=1\0", "TargetPortalGroupTag=2\0"];
    for second in groups {
        let config = InitiatorConfig { portals: portals.clone(), ..config() };
        let mut script = Script::new(config, thin([1 << 20, 8, 0, 0]));
        script.group = groups[0];
        assert!(matches!(script.start(), BackendState::Ready { .. }));
        submit(&mut script, &[(3, 2)]);
        unmap(&mut script);
        script.connected = false;
        script.backend.handle_disconnected(script.now, Disconnect::Reset);
        script.group = second;
        script.pass(Span::from_secs(3));
        script.came.retain(|(pdu, _)| matches!(pdu, RequestPdu::ScsiCommand(_)));
        let (again, ranges) = unmap(&mut script);
        assert_eq!(ranges, [(24, 16)], "issued again");
        script.end(&again, status::GOOD, None);
        let is_loose = second != groups[0];
        assert_eq!(outcome(&mut script), (Ok(Stored { replayed: is_loose }), is_loose));
    }
}

fn pump(seed: u64, config: InitiatorConfig, initial_r2t: bool) -> Pump {
    let mut target = target_config();
    target.keys.initial_r2t = initial_r2t;
    target.keys.immediate_data = !initial_r2t;
    (target.keys.header_digest, target.keys.data_digest) =
        (config.header_digest, config.data_digest);
    let mut pump = Pump::new(seed, InitiatorConfig { lun: THIN, ..config }, target);
    pump.add_thin();
    pump.ready();
    assert!(pump.backend.discards().is_some());
    pump
}

/// Random requests that overlap, in the order of submission: a slot holds what was written last, zeros after a
/// discard, and anything while a discard is the last of it that is under way.
fn model_run(pump: &mut Pump, requests: u32) -> u32 {
    let mut model: Vec<Option<u8>> = pump.model.iter().map(|fill| Some(*fill)).collect();
    let mut reads: BTreeMap<u32, Vec<Option<u8>>> = BTreeMap::new();
    let (mut discarded, mut outstanding, mut next) = (0, 0, 0);
    while next < requests || outstanding > 0 {
        let what = pump.below(6);
        if next < requests && what < 4 {
            let slots = 1 + pump.below(9);
            let first = pump.below(SLOTS as usize - slots - 1);
            let (id, fill) = (next, 1 + pump.below(250) as u8);
            if what == 0 {
                let runs = [(first as u32, slots as u32), (SLOTS - 1, 1)];
                if pump.backend.discard(pump.now, discard(id, &runs, None)).is_err() {
                    continue;
                }
                model[first..first + slots].fill(Some(0));
                model[SLOTS as usize - 1] = Some(0);
            } else {
                let op = if what == 1 { Op::Read } else { Op::Write };
                let pages = pump.pages(slots, |_| fill);
                let request = pump.request(id, op, first as u32, pages);
                if pump.backend.submit(pump.now, request).is_err() {
                    continue;
                }
                match op {
                    Op::Read => drop(reads.insert(id, model[first..first + slots].to_vec())),
                    Op::Write => model[first..first + slots].fill(Some(fill)),
                }
            }
            (next, outstanding) = (next + 1, outstanding + 1);
        } else if what == 4 {
            pump.step();
        } else if outstanding > 0 {
            let end = pump.complete();
            outstanding -= 1;
            end.outcome.unwrap();
            discarded += u32::from(end.pages.is_empty());
            for (page, fill) in end.pages.iter().zip(reads.remove(&end.id.0).into_iter().flatten())
            {
                let fill = fill.unwrap_or(page.bytes()[0]);
                assert!(page.bytes().iter().all(|byte| *byte == fill), "request {}", end.id.0);
            }
        }
    }
    pump.model = model.into_iter().map(|fill| fill.unwrap_or(0)).collect();
    for (slot, fill) in pump.model.clone().into_iter().enumerate() {
        let mut page = [0; 4096];
        let disk = pump.target.disk_mut(THIN).unwrap();
        netswap_swap::Disk::read_at(disk, slot as u64 * 4096, &mut page).unwrap();
        assert!(page.iter().all(|byte| *byte == fill), "slot {slot}");
    }
    discarded
}

#[test]
fn random_requests_and_discards_keep_their_order_over_cuts_and_faults() {
    let (mut discarded, mut cuts, mut reissued) = (0, 0, 0);
    for seed in 0..40 {
        let mut config = match seed % 2 {
            0 => config(),
            _ => InitiatorConfig { discard: true, examine: true, ..initiator_config() },
        };
        if seed % 5 == 0 {
            (config.header_digest, config.data_digest) = (Digest::Crc32c, Digest::Crc32c);
        }
        let mut pump = pump(seed, config, seed % 3 == 0);
        if seed % 4 == 0 {
            pump.target.set_faults(TargetFaults {
                late_ppm: 100_000,
                late_by: Span::from_millis(300),
                busy_ppm: 50_000,
                task_set_full_ppm: 50_000,
                check_condition_ppm: 50_000,
                ..TargetFaults::default()
            });
        }
        for _ in 0..4 {
            pump.cut_at = Some(pump.moved + pump.below(300_000) as u64);
            discarded += model_run(&mut pump, 40);
        }
        cuts += pump.connects - 1;
        reissued += pump.backend.stats().reissued;
        assert_eq!(pump.target.protocol_errors() + pump.backend.stats().garbage, 0);
    }
    assert!(discarded > 300 && cuts > 60 && reissued > 60, "{discarded} {cuts} {reissued}");
}

#[test]
fn the_connection_is_lost_at_every_byte_of_an_unmap() {
    for initial_r2t in [false, true] {
        let mut whole = pump(1, config(), initial_r2t);
        model_run(&mut whole, 10);
        let before = whole.moved;
        whole.backend.discard(whole.now, discard(9, &[(4, 3), (9, 2)], None)).unwrap();
        whole.complete().outcome.unwrap();
        let bytes = whole.moved - before;
        assert!(bytes > 48 + 40 + 48, "{bytes}");
        for at in 0..bytes {
            let mut pump = pump(1, config(), initial_r2t);
            model_run(&mut pump, 10);
            pump.cut_at = Some(pump.moved + at + 1);
            pump.backend.discard(pump.now, discard(9, &[(4, 3), (9, 2)], None)).unwrap();
            let end = pump.complete();
            assert_eq!((end.outcome, end.is_loose), (DONE, false), "cut at {at}");
            for slot in (4..7).chain(9..11) {
                pump.model[slot] = 0;
            }
            model_run(&mut pump, 4);
        }
    }
}

#[test]
#[should_panic(expected = "slot 5")]
fn a_discard_that_is_carried_out_late_is_noticed() {
    let mut pump = pump(4, config(), false);
    let pages = pump.pages(1, |_| 8);
    pump.run(Op::Write, 5, pages).outcome.unwrap();
    pump.model[5] = 8;
    model_run(&mut pump, 0);
    let disk = pump.target.disk_mut(THIN).unwrap();
    netswap_swap::Disk::discard(disk, 5 * 4096, 4096).unwrap();
    model_run(&mut pump, 0);
}

#[test]
fn a_discard_is_listed_with_its_slots() {
    let mut pump = pump(3, config(), false);
    pump.backend.discard(pump.now, discard(9, &[(4, 3), (9, 2)], None)).unwrap();
    let mut listed = Vec::new();
    pump.backend.outstanding(&mut |o| listed.push((o.id.0, o.first.0, o.pages, o.verb, o.phase)));
    assert_eq!(listed, [(9, 4, 5, "UNMAP", Phase::Queued)]);
    pump.backend.shutdown(pump.now);
    assert_eq!(pump.complete().outcome, Err(StoreError::Cancelled));
}
