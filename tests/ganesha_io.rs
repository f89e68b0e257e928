//! Goal: `io`, `check` and `sim --backend URL` against a server that others wrote: nfs-ganesha, killed once in
//! the middle.
//! Method: the built binary; skipped, and said so, where ganesha is not installed.

mod common;

use std::fs::File;
use std::time::{Duration, Instant};

use common::command::netswap;
use common::ganesha::Ganesha;
use common::skip::or_skip;

/// Everything in one test: starting a server takes longest.
#[test]
fn a_server_that_others_wrote_is_loaded_checked_paged_to_and_killed() {
    let Some(mut ganesha) = or_skip(Ganesha::start("ganesha-io")) else { return };
    let url = ganesha.url("area0");
    let made = netswap(&[
        "io", &url, "--create", "16MiB", "--rw", "write", "--qd", "64", "--size", "16MiB",
        "--verify",
    ]);
    assert_eq!(made.code, 0, "{made:?}");
    for (rw, url) in [("mixed", url.clone()), ("randwrite", format!("{url}&write=unstable"))] {
        let args = ["--rw", rw, "--qd", "16", "--ops", "2000", "--verify"];
        let ran = netswap(&[&["io", &url], &args[..]].concat());
        assert_eq!(ran.code, 0, "{ran:?}");
    }

    let fit = netswap(&["check", &url, "--allow-local"]);
    assert_eq!(fit.code, 0, "an area that `io` made has no holes: {fit:?}");
    assert!(fit.stdout.contains("with the verifier of the write"), "{fit:?}");
    let holed = File::create(ganesha.export().join("holed")).unwrap();
    holed.set_len(1 << 20).unwrap();
    let ran = netswap(&["check", &ganesha.url("holed"), "--allow-local"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("writing to a hole needs space"), "{ran:?}");

    let host = ["--ram", "4MiB", "--overcommit", "2", "--rounds", "1"];
    let ran = netswap(&[&["sim", "--backend", &url], &host[..]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");

    let stored = File::open(ganesha.export().join("area0")).unwrap();
    let before = stored.metadata().unwrap().modified().unwrap();
    let ran = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            netswap(&[
                "io", &url, "--rw", "mixed", "--qd", "16", "--time", "3s", "--verify", "--json",
            ])
        });
        let begun = Instant::now();
        while stored.metadata().unwrap().modified().unwrap() == before {
            assert!(begun.elapsed() < Duration::from_secs(60), "nothing is written");
            std::thread::sleep(Duration::from_millis(10));
        }
        ganesha.kill();
        ganesha.start_server().unwrap();
        load.join().unwrap()
    });
    assert_eq!(ran.code, 0, "{ran:?}");
    let report = ran.json();
    assert_eq!(report["pages_wrong"], 0, "{report}");
    // To MOUNT, to NFS, and again after the kill.
    assert!(report["connections"].as_u64().unwrap() >= 3, "it was killed: {report}");
}
