//! Goal: a server that stands still for a while (3 s; 20 s at full size, when calls are repeated and connections
//! given up meanwhile) and goes on where it was makes no page wrong, and the load goes on.
//! Method: nfs-ganesha under a verified load, SIGSTOP, SIGCONT. What it had read before it stopped it carries out
//! afterwards, beside what the client has sent again.

mod common;

use std::time::{Duration, Instant};

use common::ganesha::Ganesha;
use common::proof::{POLICIES, is_campaign, mixed, tell, under_load};
use common::skip::or_skip;

fn stopped(policy: &str) {
    let Some(ganesha) = or_skip(Ganesha::start("stopped")) else { return };
    let still = Duration::from_secs(if is_campaign() { 20 } else { 3 });
    let mut resumed = Vec::new();
    let load = mixed(still + Duration::from_secs(5));
    let (report, stats) = under_load(&(ganesha.url("area0") + policy), load, |watch| {
        watch.more(500);
        ganesha.freeze();
        std::thread::sleep(still);
        ganesha.thaw();
        resumed.push(watch.resumed_after(Instant::now()));
    });
    tell(&format!("stopped for {still:?}{policy}"), &resumed, &report, &stats);
    assert!(report.longest_pause.as_secs_f64() > still.as_secs_f64() * 0.9, "it stood: {report:?}");
}

#[test]
fn a_server_that_stood_still_makes_no_page_wrong() {
    POLICIES.into_iter().for_each(stopped);
}
