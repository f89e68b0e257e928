//! tshark as the judge of all that an NFS client has sent (RFC 1813, RFC 5531): no malformed frame, no WRITE outstanding
//! twice to one slot, no xid used for another call.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use netswap::nfs::NfsStats;
use netswap::real::load::{LoadReport, LoadSpec};

use super::ganesha::Ganesha;
use super::proof::{Watch, under_load};
use super::proxy::{Cuts, Proxy};
use super::record_log::{Protocol, RecordLog};
use super::tshark::{self, has_judge};

/// Of RPC and NFS.
const FIELDS: [&str; 6] =
    ["rpc.msgtyp", "rpc.xid", "rpc.program", "rpc.procedure", "nfs.offset3", "nfs.count3"];

/// What tshark saw.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) calls: u64,
    pub(crate) writes: u64,
    pub(crate) replies: u64,
    /// Frames to the server that are malformed, or have an expert error.
    pub(crate) bad_frames: Vec<String>,
    /// WRITEs to slots of a WRITE that is not answered.
    pub(crate) double_writes: Vec<String>,
    /// Calls under the xid of another.
    pub(crate) reused_xids: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_fine(&self) -> bool {
        self.bad_frames.is_empty() && self.double_writes.is_empty() && self.reused_xids.is_empty()
    }
}

/// Judges what was sent to a server with these ports of NFS and of MOUNT.
pub(crate) fn judge(pcap: &Path, (nfs, mount): (u16, u16)) -> Verdict {
    let mut verdict = Verdict::default();
    let mut calls: HashMap<String, [String; 4]> = HashMap::new();
    let mut writing: HashMap<String, (u64, u64)> = HashMap::new();
    tshark::each_frame(pcap, ("rpc", &[nfs, mount]), FIELDS, |frame| {
        let [kind, xid, call @ ..] = frame.fields;
        if !frame.to_server {
            if kind == "1" {
                verdict.replies += 1;
                writing.remove(xid);
            }
            return;
        }
        if frame.is_bad {
            verdict.bad_frames.push(frame.line.into());
        }
        if kind != "0" {
            return;
        }
        verdict.calls += 1;
        match calls.insert(xid.into(), call.map(String::from)) {
            Some(earlier) if earlier != call => verdict.reused_xids.push(frame.line.into()),
            _ => {}
        }
        if let ["100003", "7", offset, count] = call {
            verdict.writes += 1;
            let from: u64 = offset.parse().unwrap_or_else(|_| panic!("{:?}", frame.line));
            let until = from + count.parse::<u64>().unwrap();
            let meets = |(other, range): (&String, &(u64, u64))| {
                other != xid && range.0 < until && from < range.1
            };
            if writing.iter().any(meets) {
                verdict.double_writes.push(frame.line.into());
            }
            writing.insert(xid.into(), (from, until));
        }
    });
    verdict
}

/// A load that was judged.
pub(crate) struct Judged {
    pub(crate) report: LoadReport,
    pub(crate) stats: NfsStats,
    /// Cuts made, and how many of them were inside of a record.
    pub(crate) cuts: (u32, u32),
    /// Calls that were repeated byte for byte.
    pub(crate) repeated: u64,
    /// The last WRITE.
    pub(crate) last: Vec<u8>,
}

/// A load on a new file, through proxies that log all of it, and `disturb` beside it. What the client sent is judged
/// afterwards, if there is a judge. With [`Cuts::none`] the server sees the ports that the client has.
pub(crate) fn judged(
    ganesha: &mut Ganesha,
    (file, policy): (&str, &str),
    cuts: Cuts,
    load: LoadSpec,
    disturb: impl FnOnce(&mut Ganesha, &Watch),
) -> Judged {
    let pcap = ganesha.export().with_file_name("sent.pcap");
    let log = Arc::new(RecordLog::new(&pcap, Protocol::Rpc));
    let (nfs, mount) = ganesha.ports();
    let proxies = (Proxy::start(nfs, &log, cuts), Proxy::start(mount, &log, Cuts::none()));
    let url = Ganesha::url_at(file, proxies.0.port(), proxies.1.port()) + policy;
    let (report, stats) = under_load::<NfsStats>(&url, load, |watch| disturb(&mut *ganesha, watch));
    let cuts = proxies.0.cuts();
    drop(proxies);
    let (repeated, changed) = log.finish();
    assert!(changed.is_empty(), "{} xids of calls with other bytes", changed.len());
    if has_judge() {
        let verdict = judge(&pcap, (nfs, mount));
        eprintln!(
            "tshark: {} calls, {} WRITEs, {} replies, {repeated} calls repeated byte for byte",
            verdict.calls, verdict.writes, verdict.replies
        );
        assert!(verdict.is_fine(), "{verdict:?}");
        assert!(verdict.writes > 100 && verdict.replies > 200, "{verdict:?}");
    }
    Judged { report, stats, cuts, repeated, last: log.last_write() }
}
