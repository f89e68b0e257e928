//! Goal: whatever a target does wrong, no page is lost and none is wrong; and what it refuses for
//! good is an error that says so.
//! Method: each fault by itself, then all at once, over random requests checked against a model; the
//! counters show that each fault happened and that the initiator met it.

mod common;

use common::{Pump, every_fault, initiator_config, model_run, target_config};
use netswap_iscsi::{SenseForm, TargetConfig, TargetFaults};
use netswap_reserve::{PAGE_SIZE, Span};
use netswap_swap::{BackendState, Op, StoreError};

fn run_with(seed: u64, faults: TargetFaults, requests: u32) -> Pump {
    run_on(target_config(), seed, faults, requests)
}

fn run_on(mut target: TargetConfig, seed: u64, faults: TargetFaults, requests: u32) -> Pump {
    target.faults = faults;
    target.seed = seed;
    let mut pump = Pump::new(seed, initiator_config(), target);
    pump.ready();
    model_run(&mut pump, requests);
    assert_eq!(pump.target.protocol_errors(), 0);
    pump
}

#[test]
fn answers_that_come_late() {
    let late_by = Span::from_millis(700);
    let faults = TargetFaults { late_ppm: 300_000, late_by, ..Default::default() };
    let pump = run_with(1, faults, 150);
    assert!(pump.target.fault_counts().late > 20);
    assert_eq!(pump.connects, 1);
}

#[test]
fn answers_later_than_the_initiator_waits() {
    let late_by = Span::from_secs(20);
    let faults = TargetFaults { late_ppm: 50_000, late_by, ..Default::default() };
    let pump = run_with(2, faults, 150);
    assert!(pump.target.fault_counts().late > 3);
    assert!(pump.backend.stats().timeouts > 0);
    assert!(pump.connects > 1);
}

#[test]
fn answers_that_come_twice() {
    let faults = TargetFaults { twice_ppm: 50_000, ..Default::default() };
    let pump = run_with(3, faults, 200);
    assert!(pump.target.fault_counts().twice > 5);
    assert!(pump.backend.stats().garbage > 0, "a second answer is recognised");
}

#[test]
fn answers_that_are_garbage() {
    let faults = TargetFaults { garbage_ppm: 60_000, ..Default::default() };
    let mut sum = [0; 6];
    for seed in 0..6 {
        let pump = run_with(seed, faults, 300);
        let c = pump.target.fault_counts();
        let kinds = [c.bad_opcode, c.lying_length, c.wrong_tag, c.wrong_sn, c.truncated, c.junk];
        sum.iter_mut().zip(kinds).for_each(|(s, k)| *s += k);
        assert!(pump.backend.stats().garbage > 0);
    }
    assert!(sum.iter().all(|n| *n > 3), "{sum:?}");
}

#[test]
fn busy_targets_and_unit_attentions() {
    let faults = TargetFaults {
        busy_ppm: 200_000,
        task_set_full_ppm: 200_000,
        check_condition_ppm: 200_000,
        ..Default::default()
    };
    let pump = run_with(4, faults, 300);
    let stats = pump.backend.stats();
    assert!(stats.busy > 50 && stats.unit_attentions > 20, "{stats:?}");
    assert_eq!((stats.garbage, pump.connects), (0, 1));
}

#[test]
fn all_of_them_at_once() {
    for seed in 10..16 {
        run_with(seed, every_fault(), 200);
    }
}

#[test]
fn a_target_of_nothing_but_garbage_is_an_error_with_a_name() {
    let mut target = target_config();
    target.faults.garbage_ppm = 1_000_000;
    let mut pump = Pump::new(5, initiator_config(), target);
    let state = pump.start();
    assert!(matches!(state, BackendState::Failed(StoreError::Garbage { .. })), "{state:?}");
    assert!(netswap_swap::SwapBackend::server(&pump.backend).starts_with("iscsi://10.0.0.2:3260/"));
}

#[test]
fn a_target_that_turns_to_garbage_fails_its_requests_and_no_page_is_lost() {
    let mut pump = Pump::new(6, initiator_config(), target_config());
    pump.ready();
    let free = pump.pool.free_frames();
    pump.target.set_faults(TargetFaults { garbage_ppm: 1_000_000, ..Default::default() });
    let pages = pump.pages(3, |_| 7);
    let completion = pump.run(Op::Write, 5, pages);
    assert!(matches!(completion.outcome, Err(StoreError::Garbage { .. })), "{completion:?}");
    assert_eq!(completion.pages.len(), 3);
    drop(completion);
    assert_eq!(pump.pool.free_frames(), free);
    // It comes to its senses.
    pump.target.set_faults(TargetFaults::default());
    // The write that failed may or may not have been carried out.
    let pages = pump.pages(3, |_| 0);
    assert!(pump.run(Op::Write, 5, pages).outcome.is_ok());
    model_run(&mut pump, 20);
}

#[test]
fn illegal_requests_are_final_with_their_code_in_every_form_of_sense() {
    for (form, error) in [
        (SenseForm::Fixed, StoreError::ReadOnly),
        (SenseForm::Descriptor, StoreError::ReadOnly),
        (SenseForm::Empty, StoreError::Refused { code: 0 }),
    ] {
        let mut target = target_config();
        target.sense = form;
        let config = initiator_config();
        let pool_frames = target.frames() + 256;
        let mut pump = Pump::new(7, config, target.clone());
        let pool = netswap_reserve::PagePool::new(netswap_reserve::PoolConfig::new(pool_frames));
        let mut read_only = netswap_iscsi::IscsiTarget::new(target, pool).unwrap();
        read_only.add_lun(0, netswap_swap::MemDisk::new(1 << 20), 512, true).unwrap();
        pump.target = read_only;
        pump.ready();
        let pages = pump.pages(1, |_| 1);
        let outcome = pump.run(Op::Write, 3, pages).outcome;
        assert_eq!(outcome, Err(error));
        let pages = pump.pages(1, |_| 1);
        let completion = pump.run(Op::Read, 3, pages);
        assert!(completion.outcome.is_ok());
        assert!(completion.pages[0].bytes().iter().all(|b| *b == 0));
    }
}

#[test]
fn a_disk_that_fails_is_an_io_error() {
    let mut pump = Pump::new(8, initiator_config(), target_config());
    pump.ready();
    // The unit says that it is longer than its disk is.
    let disk = pump.target.disk_mut(0).unwrap();
    netswap_swap::Disk::set_len(disk, 8 * PAGE_SIZE as u64).unwrap();
    for op in [Op::Read, Op::Write] {
        let pages = pump.pages(2, |_| 1);
        assert_eq!(pump.run(op, 10, pages).outcome, Err(StoreError::Io));
    }
}

#[test]
fn a_unit_without_disk_or_too_short_is_refused() {
    let mut config = initiator_config();
    config.lun = 1;
    let mut pump = Pump::new(9, config, target_config());
    let mut other = netswap_iscsi::IscsiTarget::new(target_config(), pump.pool.clone()).unwrap();
    other.add_lun(0, netswap_swap::MemDisk::new(1 << 20), 512, false).unwrap();
    pump.target = other;
    let state = pump.start();
    assert_eq!(state, BackendState::Failed(StoreError::Refused { code: 0x05_25_00 }));
}

#[test]
fn what_no_packaged_target_does() {
    for (seed, name) in [
        "small-r2t",
        "late-r2t",
        "small-data-in",
        "close-window",
        "ping",
        "unit-event",
        "logout-request",
        "renegotiate",
        "drop-connection",
        "drop-session",
        "reset-unit",
        "capacity-changed",
        "cut",
        "cut-in-header",
        "silent",
        "reject",
        "descriptor-sense",
        "not-ready",
        "aborted-command",
        "task-aborted",
        "target-failure",
    ]
    .into_iter()
    .enumerate()
    {
        let mut faults = TargetFaults { late_by: Span::from_millis(200), ..Default::default() };
        faults.set(name, 50_000).unwrap();
        // All data is asked for, so that R2Ts have their faults as well.
        let mut target = target_config();
        target.keys.initial_r2t = true;
        target.keys.immediate_data = false;
        let pump = run_on(target, seed as u64, faults, 150);
        let made = pump.target.fault_counts().named().find(|(n, _)| *n == name).unwrap().1;
        assert!(made > 0, "{name} never happened");
    }
}
