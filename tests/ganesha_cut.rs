//! Goal: connections that are reset by the other side in the middle of a record, many in a row, lose no page and make
//! none wrong; and everything that the client sends meanwhile, and around a kill and a stop of the server, is what RFC
//! 1813 and RFC 5531 say: no malformed frame, no WRITE outstanding twice to one slot, no xid used for another call.
//! Method: nfs-ganesha behind a proxy that cuts after the n-th byte, n from a seed, and writes a capture; tshark is
//! the judge. It must find what is planted into the capture: a WRITE to a slot that has one outstanding, another call
//! under a used xid, a call cut short.

mod common;

use std::collections::HashMap;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::ganesha::{Ganesha, which};
use common::proof::{POLICIES, Watch, is_campaign, mixed, tell, under_load};
use common::proxy::{Cuts, Proxy};
use common::record_log::RecordLog;
use common::skip::or_skip;
use netswap::nfs::NfsStats;
use netswap::real::load::{LoadReport, LoadSpec};

const FIELDS: [&str; 10] = [
    "frame.number",
    "tcp.dstport",
    "rpc.msgtyp",
    "rpc.xid",
    "rpc.program",
    "rpc.procedure",
    "nfs.offset3",
    "nfs.count3",
    "_ws.malformed",
    "_ws.expert.severity",
];
/// `PI_ERROR`.
const EXPERT_ERROR: &str = "8388608";

/// What tshark saw.
#[derive(Debug, Default)]
struct Verdict {
    calls: u64,
    writes: u64,
    replies: u64,
    /// Frames to the server that are malformed, or have an expert error.
    bad_frames: Vec<String>,
    /// WRITEs to slots of a WRITE that is not answered.
    double_writes: Vec<String>,
    /// Calls under the xid of another.
    reused_xids: Vec<String>,
}

impl Verdict {
    fn is_fine(&self) -> bool {
        self.bad_frames.is_empty() && self.double_writes.is_empty() && self.reused_xids.is_empty()
    }
}

fn tshark(pcap: &Path, (nfs, mount): (u16, u16)) -> Verdict {
    let mut tshark = Command::new("tshark");
    tshark.args(["-n", "-r"]).arg(pcap).args(["-T", "fields", "-E", "occurrence=f"]);
    for port in [nfs, mount] {
        tshark.args(["-d", &format!("tcp.port=={port},rpc")]);
    }
    for field in FIELDS {
        tshark.args(["-e", field]);
    }
    let out = tshark.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let text = String::from_utf8(out.stdout).unwrap();
    let mut verdict = Verdict::default();
    let mut calls: HashMap<&str, [&str; 4]> = HashMap::new();
    let mut writing: HashMap<&str, (u64, u64)> = HashMap::new();
    for line in text.lines() {
        let row: Vec<&str> = line.split('\t').collect();
        let [_, to, kind, xid, program, procedure, offset, count, malformed, severity] = row[..]
        else {
            panic!("{line:?}")
        };
        let to_server = [nfs, mount].iter().any(|port| to == port.to_string());
        if !to_server {
            if kind == "1" {
                verdict.replies += 1;
                writing.remove(xid);
            }
            continue;
        }
        if !malformed.is_empty() || severity == EXPERT_ERROR {
            verdict.bad_frames.push(line.into());
        }
        if kind != "0" {
            continue;
        }
        verdict.calls += 1;
        let call = [program, procedure, offset, count];
        match calls.insert(xid, call) {
            Some(earlier) if earlier != call => verdict.reused_xids.push(line.into()),
            _ => {}
        }
        if (program, procedure) == ("100003", "7") {
            verdict.writes += 1;
            let from: u64 = offset.parse().unwrap_or_else(|_| panic!("{line:?}"));
            let until = from + count.parse::<u64>().unwrap();
            let meets = |(other, range): (&&str, &(u64, u64))| {
                *other != xid && range.0 < until && from < range.1
            };
            if writing.iter().any(meets) {
                verdict.double_writes.push(line.into());
            }
            writing.insert(xid, (from, until));
        }
    }
    verdict
}

fn set_word(record: &mut [u8], at: usize, word: u32) {
    record[at..at + 4].copy_from_slice(&word.to_be_bytes());
}

/// A load through proxies that log all of it, judged afterwards. The last WRITE.
fn judged(
    ganesha: &mut Ganesha,
    (file, policy): (&str, &str),
    cuts: Cuts,
    load: LoadSpec,
    disturb: impl FnOnce(&mut Ganesha, &Watch) -> Vec<Duration>,
) -> (LoadReport, NfsStats, (u32, u32), Vec<u8>) {
    let pcap = ganesha.export().with_file_name("sent.pcap");
    let log = Arc::new(RecordLog::new(&pcap));
    let (nfs, mount) = ganesha.ports();
    let proxies = (Proxy::start(nfs, &log, cuts), Proxy::start(mount, &log, Cuts::none()));
    // Another file each time: a late copy of an earlier load's WRITE may still reach its own.
    let url = Ganesha::url_at(file, proxies.0.port(), proxies.1.port()) + policy;
    let mut resumed = Vec::new();
    let (report, stats) = under_load(&url, load, |watch| resumed = disturb(&mut *ganesha, watch));
    let cuts = proxies.0.cuts();
    drop(proxies);
    let (repeated, changed) = log.finish();
    let what = format!("cut {} times, {} times inside of a record{policy}", cuts.0, cuts.1);
    tell(&what, &resumed, &report, &stats);
    assert!(changed.is_empty(), "{} xids of calls with other bytes", changed.len());
    if which("tshark") {
        let verdict = tshark(&pcap, (nfs, mount));
        eprintln!(
            "tshark: {} calls, {} WRITEs, {} replies, {repeated} calls repeated byte for byte",
            verdict.calls, verdict.writes, verdict.replies
        );
        assert!(verdict.is_fine(), "{verdict:?}");
        assert!(verdict.writes > 100 && verdict.replies > 200 && repeated > 0, "{verdict:?}");
    }
    (report, stats, cuts, log.last_write())
}

fn cut(policy: &str, seed: u64) {
    let Some(mut ganesha) = or_skip(Ganesha::start("cut")) else { return };
    let judge = which("tshark").then_some(()).ok_or_else(|| "tshark is not installed".into());
    let judge = or_skip(judge);
    let (cuts, time) = if is_campaign() { (400, 10) } else { (40, 2) };
    let load = mixed(Duration::from_secs(time));
    let cuts = Cuts::new(seed, cuts, 150_000);
    let (report, stats, (made, in_a_record), last) =
        judged(&mut ganesha, ("area0", policy), cuts, load, |_, _| Vec::new());
    assert!(made > 10 && in_a_record > made / 2, "{made} {in_a_record}");
    assert!(stats.retransmissions > 0 && report.quarantined > 0, "{stats:?}");

    let load = mixed(Duration::from_secs(4));
    judged(&mut ganesha, ("area1", policy), Cuts::none(), load, |ganesha, watch| {
        watch.more(500);
        ganesha.kill();
        ganesha.start_server().unwrap();
        let killed = watch.resumed_after(Instant::now());
        ganesha.freeze();
        std::thread::sleep(Duration::from_secs(1));
        ganesha.thaw();
        vec![killed, watch.resumed_after(Instant::now())]
    });
    if judge.is_some() {
        planted_violations_are_found(&ganesha, &last);
    }
}

fn planted_violations_are_found(ganesha: &Ganesha, last: &[u8]) {
    let (nfs, mount) = ganesha.ports();
    // The mark is 4 bytes, the xid follows.
    let pcap = ganesha.export().with_file_name("planted.pcap");
    let log = RecordLog::new(&pcap);
    let plant = |xid, change: &dyn Fn(&mut Vec<u8>)| {
        let mut record = last.to_vec();
        set_word(&mut record, 4, xid);
        change(&mut record);
        log.plant(nfs, &record);
    };
    plant(1, &|_| {});
    plant(1, &|_| {});
    assert!(log.finish() == (1, vec![]) && tshark(&pcap, (nfs, mount)).is_fine());
    plant(2, &|_| {});
    // The procedure: READ.
    plant(2, &|write| set_word(write, 24, 6));
    plant(3, &|write| {
        write.truncate(write.len() - 100);
        let len = write.len() as u32 - 4;
        set_word(write, 0, 1 << 31 | len);
    });
    assert_eq!(log.finish().1, [2]);
    let planted = tshark(&pcap, (nfs, mount));
    assert!(!planted.double_writes.is_empty(), "{planted:?}");
    assert_eq!(planted.reused_xids.len(), 1, "{planted:?}");
    assert_eq!(planted.bad_frames.len(), 1, "{planted:?}");
}

#[test]
fn resets_in_the_middle_of_records_lose_nothing_and_what_is_sent_is_right() {
    POLICIES.iter().zip(1..).for_each(|(policy, seed)| cut(policy, seed));
}
