//! Goal: a server that stands still for a while (3 s; 20 s at full size, when calls are repeated and connections
//! given up meanwhile) and goes on where it was makes no page wrong, and the load goes on. What the client
//! sends meanwhile is right.
//! Method: nfs-ganesha under a verified load, SIGSTOP, SIGCONT. What it had read before it stopped it carries out
//! afterwards, beside what the client has sent again. tshark judges what passes through a
//! proxy that keeps the client's ports (`common/nfs_wire.rs`).

mod common;

use std::time::{Duration, Instant};

use common::ganesha::Ganesha;
use common::nfs_wire::judged;
use common::proof::{POLICIES, is_campaign, mixed, tell};
use common::proxy::Cuts;
use common::skip::or_skip;

fn stopped(policy: &str) {
    let Some(mut ganesha) = or_skip(Ganesha::start("stopped")) else { return };
    let still = Duration::from_secs(if is_campaign() { 20 } else { 1 });
    let mut resumed = Vec::new();
    let load = mixed(still + Duration::from_secs(2));
    let file = ("area0", policy);
    let run = judged(&mut ganesha, file, Cuts::none(), load, |ganesha, watch| {
        watch.more(500);
        ganesha.freeze();
        std::thread::sleep(still);
        ganesha.thaw();
        resumed.push(watch.resumed_after(Instant::now()));
    });
    tell(&format!("stopped for {still:?}{policy}"), &resumed, &run.report, &run.stats);
    let pause = run.report.longest_pause.as_secs_f64();
    assert!(pause > still.as_secs_f64() * 0.9, "it stood: {:?}", run.report);
}

#[test]
fn a_server_that_stood_still_makes_no_page_wrong() {
    POLICIES.into_iter().for_each(stopped);
}
