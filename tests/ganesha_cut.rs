//! Goal: connections that are reset by the other side in the middle of a record, many in a row, lose no page and make
//! none wrong; and everything that the client sends meanwhile is what RFC 1813 and RFC 5531 say: no malformed frame, no
//! WRITE outstanding twice to one slot, no xid used for another call.
//! Method: nfs-ganesha behind a proxy that cuts after the n-th byte, n from a seed, and writes a capture; tshark is
//! the judge. It must find what is planted into the capture: a WRITE to a slot that has one outstanding, another call
//! under a used xid, a call cut short.

mod common;

use std::time::Duration;

use common::ganesha::Ganesha;
use common::nfs_wire::{judge, judged};
use common::proof::{POLICIES, is_campaign, mixed, tell};
use common::proxy::Cuts;
use common::record_log::{Protocol, RecordLog};
use common::skip::or_skip;
use common::tshark::has_judge;

fn set_word(record: &mut [u8], at: usize, word: u32) {
    record[at..at + 4].copy_from_slice(&word.to_be_bytes());
}

fn cut(policy: &str, seed: u64) {
    let Some(mut ganesha) = or_skip(Ganesha::start("cut")) else { return };
    let (cuts, time) = if is_campaign() { (400, 10) } else { (40, 2) };
    let load = mixed(Duration::from_secs(time));
    let cuts = Cuts::new(seed, cuts, 150_000);
    let run = judged(&mut ganesha, ("area0", policy), cuts, load, |_, _| ());
    let (made, in_a_record) = run.cuts;
    let what = format!("cut {made} times, {in_a_record} times inside of a record{policy}");
    tell(&what, &[], &run.report, &run.stats);
    assert!(made > 10 && in_a_record > made / 2, "{made} {in_a_record}");
    assert!(run.repeated > 0 && run.stats.retransmissions > 0, "{:?}", run.stats);
    assert!(run.report.quarantined > 0, "{:?}", run.report);
    if has_judge() {
        planted_violations_are_found(&ganesha, &run.last);
    }
}

fn planted_violations_are_found(ganesha: &Ganesha, last: &[u8]) {
    let (nfs, mount) = ganesha.ports();
    // The mark is 4 bytes, the xid follows.
    let pcap = ganesha.export().with_file_name("planted.pcap");
    let log = RecordLog::new(&pcap, Protocol::Rpc);
    let plant = |xid, change: &dyn Fn(&mut Vec<u8>)| {
        let mut record = last.to_vec();
        set_word(&mut record, 4, xid);
        change(&mut record);
        log.plant(nfs, &record);
    };
    plant(1, &|_| {});
    plant(1, &|_| {});
    assert!(log.finish() == (1, vec![]) && judge(&pcap, (nfs, mount)).is_fine());
    plant(2, &|_| {});
    // The procedure: READ.
    plant(2, &|write| set_word(write, 24, 6));
    plant(3, &|write| {
        write.truncate(write.len() - 100);
        let len = write.len() as u32 - 4;
        set_word(write, 0, 1 << 31 | len);
    });
    assert_eq!(log.finish().1, [2]);
    let planted = judge(&pcap, (nfs, mount));
    assert!(!planted.double_writes.is_empty(), "{planted:?}");
    assert_eq!(planted.reused_xids.len(), 1, "{planted:?}");
    assert_eq!(planted.bad_frames.len(), 1, "{planted:?}");
}

#[test]
fn resets_in_the_middle_of_records_lose_nothing_and_what_is_sent_is_right() {
    POLICIES.iter().zip(1..).for_each(|(policy, seed)| cut(policy, seed));
}
