//! Goal: of two requests with a slot in common, one of them a write, only one is outstanding at the
//! target; and the model that the other tests rely on notices wrong data.
//! Method: a target that answers late shows which requests were sent; a page is damaged on the disk.

mod common;

use common::{Pump, initiator_config, model_run, target_config};
use netswap_iscsi::TargetFaults;
use netswap_reserve::Span;
use netswap_swap::{Disk, Op, Phase, SwapBackend};

fn sent(pump: &Pump) -> Vec<u32> {
    let mut ids = Vec::new();
    pump.backend.outstanding(&mut |o| {
        if o.phase == Phase::Sent {
            ids.push(o.id.0);
        }
    });
    ids.sort_unstable();
    ids
}

#[test]
fn requests_that_share_a_slot_wait_for_each_other() {
    let mut pump = Pump::new(1, initiator_config(), target_config());
    pump.ready();
    model_run(&mut pump, 20);
    pump.target.set_faults(TargetFaults {
        late_ppm: 1_000_000,
        late_by: Span::from_millis(100),
        ..Default::default()
    });
    let plan = [
        (Op::Write, 4, 2), // 0
        (Op::Write, 5, 1), // 1: behind 0
        (Op::Read, 6, 2),  // 2
        (Op::Read, 7, 1),  // 3: reads do not wait for reads
        (Op::Write, 7, 1), // 4: behind 2 and 3
        (Op::Read, 5, 1),  // 5: behind 1
        (Op::Write, 9, 1), // 6
    ];
    for (id, (op, first, pages)) in plan.into_iter().enumerate() {
        let fill = 100 + id as u8;
        let pages = pump.pages(pages, |_| fill);
        let request = pump.request(id as u32, op, first, pages);
        pump.submit(request);
    }
    pump.settle();
    assert_eq!(sent(&pump), [0, 2, 3, 6]);
    // A reconnect changes nothing about it.
    pump.cut();
    pump.settle();
    while !pump.backend.is_connected() {
        pump.advance();
        pump.settle();
    }
    assert_eq!(sent(&pump), [0, 2, 3, 6]);
    for _ in 0..4 {
        pump.complete().outcome.unwrap();
    }
    pump.settle();
    assert_eq!(sent(&pump), [1, 4]);
    for _ in 0..2 {
        pump.complete().outcome.unwrap();
    }
    let read = pump.complete();
    assert_eq!((read.id.0, read.pages[0].bytes()[0]), (5, 101));
}

#[test]
#[should_panic(expected = "read something else")]
fn a_damaged_page_is_noticed() {
    let mut pump = Pump::new(2, initiator_config(), target_config());
    pump.ready();
    for slot in 0..u64::from(common::SLOTS) {
        pump.target.disk_mut(0).unwrap().write_at(slot * 4096 + 17, &[0xaa]).unwrap();
    }
    model_run(&mut pump, 50);
}
