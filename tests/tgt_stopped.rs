//! Goal: a target that stands still for a while (1 s; 20 s at full size, when the connection is given up meanwhile) and
//! goes on where it was makes no page wrong, and the load goes on.
//! Method: tgt under a verified load, SIGSTOP, SIGCONT. What it had read before it stopped it carries out afterwards.

mod common;

use std::time::{Duration, Instant};

use common::proof::{LUN_POLICIES, area_bytes, is_campaign, mixed, tell, under_load};
use common::skip::or_skip;
use common::tgt::Tgt;
use netswap::iscsi::InitiatorStats;

fn stopped(policy: &str) {
    let still = Duration::from_secs(if is_campaign() { 20 } else { 1 });
    let load = mixed(still + Duration::from_secs(if is_campaign() { 5 } else { 1 }));
    let Some(tgt) = or_skip(Tgt::with_area("tgt-stopped", area_bytes(&load))) else { return };
    let mut resumed = Vec::new();
    let url = tgt.url("t1") + policy;
    let (report, stats) = under_load::<InitiatorStats>(&url, load, |watch| {
        watch.more(500);
        tgt.server().freeze();
        std::thread::sleep(still);
        tgt.server().thaw();
        resumed.push(watch.resumed_after(Instant::now()));
    });
    tell(&format!("tgt stopped for {still:?} {policy}"), &resumed, &report, &stats);
    assert!(
        report.longest_pause.as_secs_f64() > still.as_secs_f64() * 0.75,
        "it stood: {report:?}"
    );
}

#[test]
fn a_target_that_stood_still_makes_no_page_wrong() {
    LUN_POLICIES.into_iter().for_each(stopped);
}
