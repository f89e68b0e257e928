//! Goal: a unit behind two portals is one area: one of them killed under load, for good, costs no page and gives no wrong
//! one, and nothing is left in quarantine.
//! Method: tgt behind two proxies, one of which is named by `portals=`; a verified load; each proxy ends with all of its
//! connections.

mod common;

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use common::command::netswap;
use common::proof::{LUN_POLICIES, area_bytes, is_campaign, mixed, tell, under_load};
use common::proxy::{Cuts, Proxy};
use common::record_log::{Protocol, RecordLog};
use common::skip::or_skip;
use common::tgt::Tgt;
use netswap::iscsi::InitiatorStats;

fn killed(policy: &str) {
    let load = mixed(Duration::from_secs(if is_campaign() { 30 } else { 2 }));
    let Some(tgt) = or_skip(Tgt::with_area("tgt-portals", area_bytes(&load))) else { return };
    let log = Arc::new(RecordLog::new(&tgt.scratch("portals.pcap"), Protocol::Iscsi));
    let portal = || Proxy::start(tgt.port(), &log, Cuts::none());
    let (first, second) = (portal(), portal());
    let url =
        format!("{}{policy}&portals=127.0.0.1:{}", tgt.url_at("t1", first.port()), second.port());
    let nobody = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let checked = netswap(&["check", &format!("{url},{nobody}"), "--allow-local"]);
    let there = format!("127.0.0.1:{} has the LUN, {nobody} does not answer", second.port());
    assert!(checked.stdout.contains(&there), "{checked:?}");
    let mut resumed = Vec::new();
    let (report, stats) = under_load::<InitiatorStats>(&url, load, |watch| {
        watch.more(500);
        // Its requests have no answer when the portal goes.
        tgt.server().freeze();
        watch.stands_still();
        first.cut_all();
        drop(first);
        tgt.server().thaw();
        resumed.push(watch.resumed_after(Instant::now()));
        watch.more(500);
    });
    drop(second);
    tell(&format!("tgt, one of two portals killed, {policy}"), &resumed, &report, &stats);
    assert!(stats.logins == 2 && stats.reissued > 0, "{stats:?}");
    // Both lead to one portal group: nothing is left that could be written late.
    assert_eq!(report.quarantined, 0, "{report:?}");
}

#[test]
fn a_portal_that_is_killed_under_load_costs_no_page() {
    LUN_POLICIES.into_iter().for_each(killed);
}
