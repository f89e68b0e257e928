//! Goal: merging, overtaking and task management change what goes over the wire, and nothing of what is read and written:
//! also when commands fail, connections break, and the unit needs its cache synchronized.
//! Method: random requests, many of them adjacent, against the model, with everything on; with cuts, restarts and every
//! fault of the target. What a merged command looks like is counted on the tape.

mod common;

use common::{
    Pump, SLOTS, every_fault, initiator_config, model_run, pump_to_be_cut, target_config,
};
use netswap_iscsi::pdu::{BHS_LEN, RequestPdu};
use netswap_iscsi::scsi::Cdb;
use netswap_iscsi::{Digest, InitiatorConfig, TargetFaults, WritePolicy};
use netswap_reserve::Span;
use netswap_swap::Op;

fn all() -> InitiatorConfig {
    initiator_config().with_all()
}

/// Submits every slot as a request of its own, and waits for all.
fn one_by_one(pump: &mut Pump, op: Op, fill: u8) {
    let (mut submitted, mut ended) = (0, 0);
    while ended < SLOTS {
        while submitted < SLOTS && submitted - ended < 32 {
            let pages = pump.pages(1, |_| if op == Op::Write { fill ^ submitted as u8 } else { 0 });
            let request = pump.request(submitted, op, submitted, pages);
            pump.submit(request);
            submitted += 1;
        }
        let end = pump.complete();
        assert!(!end.outcome.unwrap().replayed && !end.is_loose);
        assert!(end.pages[0].bytes().iter().all(|b| *b == fill ^ end.id.0 as u8), "{:?}", end.id);
        ended += 1;
    }
}

/// Blocks of each READ and WRITE on the tape.
fn commands(tape: &[u8]) -> Vec<(Op, u32)> {
    let (mut at, mut out) = (0, Vec::new());
    while let Some(bhs) = tape.get(at..).and_then(|t| t.first_chunk::<BHS_LEN>()) {
        let len = netswap_iscsi::pdu::data_len(bhs);
        if let Ok(RequestPdu::ScsiCommand(command)) = RequestPdu::parse(bhs) {
            match Cdb::parse(&command.cdb) {
                Cdb::Read { blocks, .. } => out.push((Op::Read, blocks)),
                Cdb::Write { blocks, .. } => out.push((Op::Write, blocks)),
                _ => {}
            }
        }
        at += BHS_LEN + len.next_multiple_of(4);
    }
    out
}

#[test]
fn adjacent_requests_go_in_commands_as_long_as_the_unit_takes() {
    let mut pump = Pump::new(1, all(), target_config());
    pump.ready();
    one_by_one(&mut pump, Op::Write, 0x50);
    one_by_one(&mut pump, Op::Read, 0x50);
    let commands = commands(&pump.tape_up);
    let most = commands.iter().map(|c| c.1).max();
    // Its limits page says 128 blocks, 64 KiB.
    assert_eq!(most, Some(128), "{commands:?}");
    assert!(commands.len() < SLOTS as usize, "{commands:?}");
    let stats = pump.backend.stats();
    assert!(stats.merged > 5 && stats.joined > 64, "{stats:?}");
    assert_eq!(pump.target.protocol_errors() + stats.garbage + stats.timeouts, 0);
}

#[test]
fn without_merging_each_goes_alone() {
    let mut pump = Pump::new(1, initiator_config(), target_config());
    pump.ready();
    one_by_one(&mut pump, Op::Write, 0x50);
    assert!(commands(&pump.tape_up).iter().all(|c| c.1 == 8));
}

#[test]
fn cuts_and_restarts_take_merged_commands_apart_and_lose_nothing() {
    let (mut joined, mut reissued, mut together) = (0, 0, 0);
    for seed in 0..40 {
        let mut pump = pump_to_be_cut(seed, all());
        for round in 0..4 {
            pump.cut_at = Some(pump.moved + pump.below(400_000) as u64);
            one_by_one(&mut pump, Op::Write, round);
            (0..SLOTS as usize).for_each(|slot| pump.model[slot] = round ^ slot as u8);
            if round == 2 {
                pump.target.restart(pump.now);
            }
            model_run(&mut pump, 15);
        }
        let stats = pump.backend.stats();
        joined += stats.joined;
        reissued += stats.reissued;
        together += stats.flushed_together;
        assert_eq!(pump.target.protocol_errors() + stats.garbage, 0, "{seed}");
    }
    assert!(joined > 1000 && reissued > 100, "{joined} joined, {reissued} issued again");
    assert!(together > 10, "{together} writes were flushed with another");
}

#[test]
fn every_fault_of_the_target_at_once() {
    let mut joined = 0;
    for seed in 0..40 {
        let (mut initiator, mut target) = (all(), target_config());
        let mut faults = every_fault();
        target.seed = seed;
        // Some request meets garbage eight times in a row if there are enough of them: then it would fail.
        initiator.garbage_limit = u8::MAX;
        if seed % 2 == 0 {
            initiator.write_policy = WritePolicy::SyncCache;
        }
        // A header that is cut off behind its tag can make bytes of the next PDU a page, which nothing but a digest tells.
        if seed % 4 < 2 {
            (initiator.header_digest, initiator.data_digest) = (Digest::Crc32c, Digest::Crc32c);
            (target.keys.header_digest, target.keys.data_digest) = (Digest::Prefer, Digest::Prefer);
        } else {
            faults.garbage_ppm = 0;
        }
        let mut pump = Pump::new(seed, initiator, target);
        pump.ready();
        pump.target.set_faults(faults);
        one_by_one(&mut pump, Op::Write, 9);
        (0..SLOTS as usize).for_each(|slot| pump.model[slot] = 9 ^ slot as u8);
        model_run(&mut pump, 150);
        joined += pump.backend.stats().joined;
        assert_eq!(pump.target.protocol_errors(), 0, "{seed}");
    }
    assert!(joined > 100, "{joined}");
}

#[test]
fn answers_later_than_the_initiator_waits() {
    let late_by = Span::from_secs(20);
    let mut target = target_config();
    target.faults = TargetFaults { late_ppm: 30_000, late_by, ..Default::default() };
    let mut pump = Pump::new(2, all(), target);
    pump.ready();
    model_run(&mut pump, 150);
    let stats = pump.backend.stats();
    assert!(pump.target.fault_counts().late > 1 && stats.timeouts + stats.aborted > 0, "{stats:?}");
}

#[test]
fn what_fails_in_a_merged_command_is_asked_for_alone() {
    let mut pump = Pump::new(3, all(), target_config());
    pump.ready();
    // The unit says that it is longer than its disk is: reads past slot 8 fail.
    let disk = pump.target.disk_mut(0).unwrap();
    netswap_swap::Disk::set_len(disk, 8 * 4096).unwrap();
    for slot in 0..12 {
        let pages = pump.pages(1, |_| 1);
        let request = pump.request(slot, Op::Read, slot, pages);
        pump.submit(request);
    }
    let mut ended: Vec<(u32, bool)> =
        (0..12).map(|_| pump.complete()).map(|end| (end.id.0, end.outcome.is_ok())).collect();
    ended.sort_unstable();
    assert!(pump.backend.stats().joined > 0);
    assert_eq!(ended, (0..12).map(|slot| (slot, slot < 8)).collect::<Vec<_>>());
}
