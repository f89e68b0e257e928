//! Goal: the simulated machine pages to a real server in real time, every page verified, and refuses what
//! only the simulated network has.
//! Method: the built binary against the embedded server on the loopback, whose disk is damaged in one run: the canary.

mod common;

use common::command::netswap;
use common::nfs::{Served, area, area_in};
use netswap::reserve::PAGE_SIZE;
use netswap::swap::Disk;

/// A host that is quickly done, under real pressure.
const HOST: [&str; 8] =
    ["--ram", "4MiB", "--overcommit", "2", "--rounds", "1", "--tasks-per-cpu", "4"];

fn sim(url: &str, more: &[&str]) -> common::command::Ran {
    netswap(&[&["sim", "--backend", url], &HOST[..], more].concat())
}

#[test]
fn a_host_completes_over_a_real_server() {
    let served = Served::new(vec![("area0", area(4096))]);
    let url = served.url("area0");
    let ran = sim(&url, &["--json", "--seed", "3"]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let row = ran.json();
    assert_eq!((row["outcome"].as_str(), row["seed"].as_u64()), (Some("completed"), Some(3)));
    for count in ["page_ins", "page_outs", "pages_verified"] {
        assert!(row[count].as_u64().unwrap() > 100, "{count} of {row}");
    }
    assert!(row["fault"]["p50_us"].as_f64().unwrap() > 0.0, "{row}");
    let ran = sim(&format!("{url}?write=unstable"), &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    assert!(ran.stdout.ends_with("every page was what had been written\n"), "{ran:?}");
    let idle = netswap(&["sim", "--backend", &url, "--ram", "4MiB", "--overcommit", "0.5"]);
    assert!(idle.code == 0 && idle.stdout.contains("nothing was paged"), "{idle:?}");
}

#[test]
fn a_server_that_damages_pages_is_found_out() {
    let served = Served::new(vec![("area0", area(4096))]);
    let url = served.url("area0");
    served.each_turn(|server, _| {
        let writes = server.stats().writes;
        let disk = server.disk_mut("area0").unwrap();
        // Whatever is stored by then, and whatever is stored over it later.
        for slot in (1..4096).filter(|_| writes > 20) {
            disk.write_at(slot * PAGE_SIZE as u64, b"damage").unwrap();
        }
    });
    let ran = sim(&url, &[]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("CORRUPT") && ran.stdout.contains(&url), "{ran:?}");
}

#[test]
fn what_needs_the_simulated_network_is_refused() {
    for (args, hint) in [
        (&["--flood", "30"][..], "--flood needs the simulated network"),
        (&["--link-loss", "1%"], "--link-loss needs the simulated network"),
        (&["--ablate", "drop"], "--ablate drop needs the simulated network"),
        (&["--alloc-trace", "x"], "--alloc-trace needs"),
        (&["--scenario", "scenarios/transactions.toml"], "the scenario has a link"),
    ] {
        let ran = sim("nfs://127.0.0.1:1/swap/area0", args);
        assert_eq!(ran.code, 2, "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(hint), "{args:?}: {ran:?}");
    }
    for (name, hint) in [("smb", "or a URL as nfs://"), ("smb://h/f", "known: nfs")] {
        let ran = netswap(&["sim", "--backend", name]);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(hint), "{ran:?}");
    }
}

#[test]
fn a_host_on_which_no_task_gets_on_is_refused_with_what_to_choose() {
    let served = Served::new(vec![("area0", area(4096))]);
    let url = served.url("area0");
    for (args, hint) in [
        (&["--ram", "4MiB", "--overcommit", "0.001"][..], "raise --ram or --overcommit"),
        (&["--ram", "4KiB"], "at least 192KiB, or lower --cpus or --tasks-per-cpu"),
        (&["--ram", "188KiB"], "at least 192KiB"),
    ] {
        let ran = netswap(&[&["sim", "--backend", &url], args].concat());
        assert_eq!((ran.code, ran.stdout.as_str()), (2, ""), "{args:?}: {ran:?}");
        assert!(ran.stderr.contains(hint), "{args:?}: {ran:?}");
    }
    let least = netswap(&["sim", "--backend", &url, "--ram", "192KiB", "--rounds", "1"]);
    assert_eq!(least.code, 0, "{least:?}");
    let simulated = netswap(&["sim", "--backend", "nfs", "--overcommit", "0.0001"]);
    assert_eq!(simulated.code, 2, "{simulated:?}");
    assert!(simulated.stderr.contains("map 1 pages together"), "{simulated:?}");
}

#[test]
fn a_store_that_is_too_small_or_no_area_is_refused() {
    let bare = netswap::swap::MemDisk::new(4096 * PAGE_SIZE as u64);
    let served =
        Served::new(vec![("small", area(64)), ("part", area_in(4096, 2048)), ("bare", bare)]);
    for (file, hint) in [
        ("small", "has 64 pages, and 2049 are mapped"),
        // The store would do, the area in it is a page too short.
        ("part", "has 2048 pages, and 2049 are mapped"),
    ] {
        let small = sim(&served.url(file), &[]);
        assert_eq!(small.code, 2, "{small:?}");
        assert!(small.stderr.contains(hint), "{small:?}");
    }
    let bare = sim(&served.url("bare"), &[]);
    assert_eq!(bare.code, 1, "{bare:?}");
    assert!(bare.stdout.contains("the area did not come on"), "{bare:?}");
}
