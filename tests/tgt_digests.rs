//! Goal: bits that change on the way, in both directions, are found by the digests, and the load goes on: no page is lost
//! or wrong. What the initiator sends has right digests.
//! Method: tgt with both digests behind a proxy that flips a bit of the n-th byte behind the login, n from a seed; tshark
//! reads what was sent. Without digests the same flips are found by the verified load: the canary.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::iscsi_wire::judge;
use common::proof::{LUN_POLICIES, area_bytes, is_campaign, mixed, short, tell, under_damage};
use common::proxy::{Cuts, Proxy};
use common::record_log::{Protocol, RecordLog};
use common::skip::or_skip;
use common::tgt::{Target, Tgt};
use common::tshark;
use netswap::iscsi::InitiatorStats;
use netswap::real::load::Load;
use netswap::real::{OpenOptions, RealStore, StoreUrl};

/// Digests of the frames to the target, as tshark judges them: right ones, wrong ones.
fn digests(pcap: &std::path::Path, port: u16) -> (usize, usize) {
    let filter = format!("tcp.dstport=={port} && iscsi");
    let text = tshark::run(pcap, ("iscsi", &[port]), &["-Y", &filter, "-O", "iscsi"]);
    let lines = || text.lines().filter(|line| line.contains("Digest: 0x"));
    let good = |line: &&str| line.contains("(Good CRC32)");
    (lines().filter(good).count(), lines().filter(|line| !good(line)).count())
}

fn flipped(policy: &str, seed: u64) {
    let (flips, load) = match is_campaign() {
        true => (200, mixed(Duration::from_secs(30))),
        false => (12, short(4_000)),
    };
    let mut target = Target::new("t1", area_bytes(&load));
    target.keys.extend([("HeaderDigest", "CRC32C"), ("DataDigest", "CRC32C")]);
    let Some(tgt) = or_skip(Tgt::start("tgt-digests", vec![target])) else { return };
    let pcap = tgt.scratch("sent.pcap");
    let log = Arc::new(RecordLog::new(&pcap, Protocol::Iscsi));
    let proxy = Proxy::start(tgt.port(), &log, Cuts::flips(seed, flips, 100_000));
    let url = tgt.url_at("t1", proxy.port()) + policy + "&header_digest=crc32c&data_digest=crc32c";
    let (report, stats) = under_damage::<InitiatorStats>(&url, load, |_| {});
    let (made, _) = proxy.cuts();
    drop(proxy);
    log.finish();
    tell(&format!("{made} bits flipped {policy}"), &[], &report, &stats);
    assert!(made > 5 && stats.logins > 5 && stats.reissued > 0, "{made} {stats:?}");
    if tshark::has_judge() {
        let verdict = judge(&pcap, tgt.port());
        assert!(verdict.is_fine() && verdict.commands > 500, "{verdict:?}");
        let (good, bad) = digests(&pcap, tgt.port());
        eprintln!("tshark: {good} digests of the initiator are right, {bad} are not");
        assert!(good > 1_000 && bad == 0, "{good} {bad}");
    }
}

#[test]
fn flipped_bits_are_found_by_digests_and_harm_nothing() {
    LUN_POLICIES.iter().zip(1..).for_each(|(policy, seed)| flipped(policy, seed));
}

#[test]
fn without_digests_the_same_flips_show_in_the_pages() {
    let load = short(4_000);
    let Some(tgt) = or_skip(Tgt::with_area("tgt-no-digests", area_bytes(&load))) else { return };
    let log = Arc::new(RecordLog::new(&tgt.scratch("sent.pcap"), Protocol::Iscsi));
    let proxy = Proxy::start(tgt.port(), &log, Cuts::flips(9, 1, 1_000_000));
    let url: StoreUrl = tgt.url_at("t1", proxy.port()).parse().unwrap();
    let mut store = RealStore::open(&url, &OpenOptions::default()).unwrap();
    let report = Load::new(load).unwrap().run(&mut store, &mut |_| {}).unwrap();
    store.shutdown();
    assert_eq!(report.pages_wrong, 1, "{report:?}");
}
