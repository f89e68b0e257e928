//! Goal: a LUN reset by a second initiator, which aborts the commands of the first, loses no page and makes none wrong.
//! Method: tgt under a verified load; `iscsi-test-cu` (libiscsi) resets the LUN, several times, by its own test of that,
//! which writes to slot 0 alone: no slot of the load. tgt's log says what was aborted.

mod common;

use std::process::Command;
use std::time::{Duration, Instant};

use common::daemon::which;
use common::proof::{LUN_POLICIES, area_bytes, is_campaign, mixed, tell, under_load};
use common::skip::or_skip;
use common::tgt::Tgt;
use netswap::iscsi::InitiatorStats;

const RESET: &str = "--test=ALL.iSCSITMF.LUNResetSimpleAsync";

fn reset(policy: &str) {
    let (resets, time) = if is_campaign() { (100, 30) } else { (10, 1) };
    let load = mixed(Duration::from_secs(time));
    let Some(tgt) = or_skip(Tgt::with_area("tgt-reset", area_bytes(&load))) else { return };
    let tool = which("iscsi-test-cu").then_some(());
    if or_skip(tool.ok_or_else(|| "iscsi-test-cu is not installed".into())).is_none() {
        return;
    }
    let url = tgt.url("t1");
    let mut resumed = Vec::new();
    let (report, stats) = under_load::<InitiatorStats>(&(url.clone() + policy), load, |watch| {
        for _ in 0..resets {
            watch.more(100);
            let mut test = Command::new("iscsi-test-cu");
            let out = test.args(["-d", "-s", "-n", RESET, &url]).output().unwrap();
            // What it makes of the answers is not this test's business.
            assert!(String::from_utf8_lossy(&out.stdout).contains("Run Summary"), "{out:?}");
            resumed.push(watch.resumed_after(Instant::now()));
        }
    });
    let longest: Vec<Duration> = resumed.into_iter().max().into_iter().collect();
    tell(&format!("{resets} LUN resets {policy}"), &longest, &report, &stats);
    let log = std::fs::read_to_string(tgt.scratch("tgtd.log")).unwrap();
    let aborted = log.lines().filter(|line| line.contains("abort_cmd")).count();
    eprintln!("tgt aborted {aborted} commands");
    // One of each reset is the other initiator's own.
    assert!(aborted > resets, "{log}");
}

#[test]
fn a_lun_reset_by_another_initiator_loses_nothing() {
    LUN_POLICIES.into_iter().for_each(reset);
}
