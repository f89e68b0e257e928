//! Goal: a target that is killed and comes back, twice, loses no page and gives no wrong one, and the load goes on.
//! Method: tgt under a verified load, SIGKILL as soon as the load moves. It has forgotten its targets then, and is told
//! them again while the client already asks for them; its first answer is a unit attention.

mod common;

use std::time::{Duration, Instant};

use common::proof::{LUN_POLICIES, area_bytes, is_campaign, mixed, tell, under_load};
use common::skip::or_skip;
use common::tgt::Tgt;
use netswap::iscsi::InitiatorStats;

fn killed_twice(policy: &str) {
    let load = mixed(Duration::from_secs(if is_campaign() { 30 } else { 2 }));
    let Some(mut tgt) = or_skip(Tgt::with_area("tgt-killed", area_bytes(&load))) else { return };
    let url = tgt.url("t1") + policy;
    let mut resumed = Vec::new();
    let (report, stats) = under_load::<InitiatorStats>(&url, load, |watch| {
        for _ in 0..2 {
            watch.more(500);
            tgt.kill();
            tgt.start_server().unwrap();
            resumed.push(watch.resumed_after(Instant::now()));
        }
    });
    tell(&format!("tgt killed {policy}"), &resumed, &report, &stats);
    assert!(stats.logins >= 3 && stats.reissued > 0 && stats.unit_attentions >= 2, "{stats:?}");
}

#[test]
fn a_target_that_is_killed_twice_loses_nothing() {
    LUN_POLICIES.into_iter().for_each(killed_twice);
}
