//! Goal: a server that is killed and comes back, twice within a second, loses no page and gives no wrong one, and the
//! load goes on; with a write verifier that shows the restarts, and with one that hides them. What the client sends
//! meanwhile is right.
//! Method: nfs-ganesha under a verified load, SIGKILL as soon as the load moves. Its verifier counts seconds, so two
//! starts in one second look like none; with `-E` it never changes. tshark judges what passes through a proxy that keeps
//! the client's ports (`common/nfs_wire.rs`).

mod common;

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use common::ganesha::Ganesha;
use common::nfs_wire::judged;
use common::proof::{POLICIES, is_campaign, mixed, tell};
use common::proxy::Cuts;
use common::skip::or_skip;

/// The clock that the server makes its verifier from.
fn second() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn killed_twice(name: &str, epoch: Option<u32>) {
    for policy in POLICIES {
        let Some(mut ganesha) = or_skip(Ganesha::start_with(name, epoch)) else { return };
        let started = second();
        let load = mixed(Duration::from_secs(if is_campaign() { 30 } else { 4 }));
        let (mut resumed, mut between) = (Vec::new(), Duration::ZERO);
        let file = ("area0", policy);
        let run = judged(&mut ganesha, file, Cuts::none(), load, |ganesha, watch| {
            watch.more(500);
            // The first kill shows, so the second before it must be over; the other kill need not show.
            while second() == started {
                watch.more(1);
            }
            let first = Instant::now();
            for _ in 0..2 {
                between = first.elapsed();
                ganesha.kill();
                ganesha.start_server().unwrap();
                resumed.push(watch.resumed_after(Instant::now()));
            }
        });
        let what = format!("{name}{policy}: killed again after {} ms", between.as_millis());
        tell(&what, &resumed, &run.report, &run.stats);
        let stats = run.stats;
        assert!(stats.connections >= 3, "{stats:?}");
        match epoch {
            Some(_) => assert_eq!(stats.verifier_changes, 0, "{stats:?}"),
            None => assert!(stats.verifier_changes >= 1, "{stats:?}"),
        }
    }
}

#[test]
fn a_server_that_is_killed_twice_in_a_second_loses_nothing() {
    killed_twice("killed", None);
}

#[test]
fn nor_does_one_whose_verifier_hides_it() {
    killed_twice("killed-pinned", Some(7));
}
