//! Goal: connections that are reset by the other side, many in a row, in every position of a PDU, lose no page and make
//! none wrong; and everything that the initiator sends meanwhile, and around a kill and a stop of the target, is what
//! RFC 7143 says: no malformed frame, CmdSN in order and inside the window.
//! Method: tgt behind a proxy that cuts after the n-th byte, n from a seed, and writes a capture; tshark is the judge.
//! It must find what is planted into the capture: a command sent twice, one beyond the window, one that is malformed.

mod common;

use std::sync::Arc;
use std::time::{Duration, Instant};

use common::iscsi_wire::judge;
use common::proof::{LUN_POLICIES, Watch, area_bytes, is_campaign, short, tell, under_load};
use common::proxy::{Cuts, Proxy};
use common::record_log::{Protocol, RecordLog, Way};
use common::skip::or_skip;
use common::tgt::Tgt;
use common::tshark::has_judge;
use netswap::iscsi::InitiatorStats;
use netswap::real::load::LoadSpec;

/// A load through a proxy that logs all of it, judged afterwards. Cuts made and how many of them inside of a PDU; the
/// last command that writes.
fn judged(
    tgt: &mut Tgt,
    policy: &str,
    cuts: Cuts,
    load: LoadSpec,
    disturb: impl FnOnce(&mut Tgt, &Watch) -> Vec<Duration>,
) -> ((u32, u32), Vec<u8>) {
    let pcap = tgt.scratch("sent.pcap");
    let log = Arc::new(RecordLog::new(&pcap, Protocol::Iscsi));
    let proxy = Proxy::start(tgt.port(), &log, cuts);
    let url = tgt.url_at("t1", proxy.port()) + policy;
    let mut resumed = Vec::new();
    let (report, stats) =
        under_load::<InitiatorStats>(&url, load, |watch| resumed = disturb(&mut *tgt, watch));
    let cuts = proxy.cuts();
    drop(proxy);
    log.finish();
    let what = format!("cut {} times, {} times inside of a PDU {policy}", cuts.0, cuts.1);
    tell(&what, &resumed, &report, &stats);
    assert!(stats.reissued > 0, "{stats:?}");
    if has_judge() {
        let verdict = judge(&pcap, tgt.port());
        eprintln!(
            "tshark: {} logins, {} commands, {} answers",
            verdict.logins, verdict.commands, verdict.answers
        );
        assert!(verdict.is_fine(), "{verdict:?}");
        assert!(verdict.commands > 500 && verdict.answers > 500, "{verdict:?}");
        assert!(verdict.logins >= stats.logins, "{verdict:?} {stats:?}");
    }
    (cuts, log.last_write())
}

fn cut(policy: &str, seed: u64) {
    // In the login and what is asked of the unit behind it, where each cut doubles the wait before the next try; and
    // anywhere.
    let (in_login, anywhere) = if is_campaign() { (30, 470) } else { (6, 30) };
    let load = short(if is_campaign() { 60_000 } else { 6_000 });
    let Some(mut tgt) = or_skip(Tgt::with_area("tgt-cut", area_bytes(&load))) else { return };
    for (seed, wanted, bytes_max) in [(seed, in_login, 1_200), (seed + 100, anywhere, 150_000)] {
        let cuts = Cuts::new(seed, wanted, bytes_max);
        let ((made, inside), _) = judged(&mut tgt, policy, cuts, load, |_, _| Vec::new());
        assert!(made > 3 && inside > made / 2, "{made} {inside}");
        assert!(made == wanted || !is_campaign(), "{made} of {wanted}");
    }

    let load = short(12_000);
    let (_, last) = judged(&mut tgt, policy, Cuts::none(), load, |tgt, watch| {
        watch.more(500);
        tgt.kill();
        tgt.start_server().unwrap();
        let killed = watch.resumed_after(Instant::now());
        tgt.server().freeze();
        std::thread::sleep(Duration::from_millis(500));
        tgt.server().thaw();
        vec![killed, watch.resumed_after(Instant::now())]
    });
    if has_judge() {
        planted_violations_are_found(&tgt, &last);
    }
}

fn planted_violations_are_found(tgt: &Tgt, last: &[u8]) {
    let pcap = tgt.scratch("planted.pcap");
    let with_cmd_sn = |cmd_sn: u32| {
        let mut pdu = last.to_vec();
        pdu[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
        pdu
    };
    // A SCSI response (section 11.4) whose window ends at 2.
    let mut answer = [0; 48];
    answer[..2].copy_from_slice(&[0x21, 0x80]);
    answer[28..32].copy_from_slice(&1u32.to_be_bytes());
    answer[32..36].copy_from_slice(&2u32.to_be_bytes());
    let (to_server, to_client) = (Way::ToServer, Way::ToClient);
    let planted = |commands: &[Vec<u8>]| {
        let log = RecordLog::new(&pcap, Protocol::Iscsi);
        let mut all = vec![(to_client, &answer[..])];
        all.extend(commands.iter().map(|pdu| (to_server, &pdu[..])));
        log.plant_all(tgt.port(), &all);
        log.finish();
        judge(&pcap, tgt.port())
    };
    let fine = planted(&[with_cmd_sn(1), with_cmd_sn(2)]);
    assert!(fine.is_fine() && fine.commands == 2, "{fine:?}");
    let twice = planted(&[with_cmd_sn(1), with_cmd_sn(1)]);
    assert_eq!(twice.out_of_order.len(), 1, "{twice:?}");
    let beyond = planted(&[with_cmd_sn(1), with_cmd_sn(2), with_cmd_sn(3)]);
    assert_eq!(beyond.beyond_window.len(), 1, "{beyond:?}");
    // An additional header segment that says it is longer than there is room for.
    let mut malformed = with_cmd_sn(2);
    malformed[4] = 1;
    malformed.splice(48..48, [0xff, 0xff, 1, 0]);
    let malformed = planted(&[with_cmd_sn(1), malformed]);
    assert_eq!(malformed.bad_frames.len(), 1, "{malformed:?}");
}

#[test]
fn resets_in_the_middle_of_pdus_lose_nothing_and_what_is_sent_is_right() {
    LUN_POLICIES.iter().zip(1..).for_each(|(policy, seed)| cut(policy, seed));
}
