//! Goal: `netswap io` moves what it says, verifies every page, and tells what it cost; over one connection,
//! and over several while the server restarts again and again.
//! Method: the built binary against the embedded server on the loopback.

mod common;

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use common::command::netswap;
use common::nfs::{Served, area, area_in};
use netswap::reserve::PAGE_SIZE;

/// Slots of the area; 16 MiB.
const SLOTS: u32 = 4096;

#[test]
fn what_one_run_wrote_the_next_reads_back_in_any_order() {
    let served = Served::new(vec![("area0", area(SLOTS))]);
    let url = served.url("area0");
    let write = netswap(&[
        "io", &url, "--rw", "write", "--bs", "8KiB", "--qd", "16", "--size", "4MiB", "--verify",
        "--seed", "7", "--json",
    ]);
    assert_eq!(write.code, 0, "{write:?}");
    let report = write.json();
    // The header takes one page of the 4 MiB, so the last block is the one page that is left.
    assert_eq!((report["ops"].as_u64(), report["writes"].as_u64()), (Some(512), Some(512)));
    assert_eq!(report["pages_verified"], 1023);
    assert!(report["requests"].as_u64().unwrap() < 512, "adjacent blocks are merged: {report}");
    for figure in ["ops_per_s", "mb_per_s", "cpu_us_per_op", "elapsed_s"] {
        assert!(report[figure].as_f64().unwrap() > 0.0, "{figure} of {report}");
    }
    let latency = &report["write"];
    assert!(latency["p50_us"].as_f64() <= latency["max_us"].as_f64(), "{latency}");
    assert!(report["read"].is_null(), "nothing was read but to verify: {report}");

    let read = netswap(&[
        "io", &url, "--rw", "randread", "--qd", "8", "--size", "4MiB", "--ops", "3000", "--verify",
        "--seed", "7", "--merge", "off", "--json",
    ]);
    assert_eq!(read.code, 0, "{read:?}");
    let report = read.json();
    assert_eq!((&report["pages_verified"], &report["pages_wrong"]), (&3000.into(), &0.into()));
    assert_eq!(report["requests"], 3000);
}

#[test]
fn an_area_that_is_made_is_written_to_its_last_page() {
    // Nothing but the embedded server's own spare disk, which has no byte: the client makes the file.
    let served = Served::new(vec![("small", area(64))]);
    let url = served.url("new");
    let args =
        ["--create", "1028KiB", "--rw", "write", "--bs", "64KiB", "--size", "1028KiB", "--json"];
    let made = netswap(&[&["io", &url, "--verify"], &args[..]].concat());
    assert_eq!(made.code, 0, "{made:?}");
    // 257 pages, one of them the header's: 16 blocks of 16. One page less leaves 15 for the last.
    let report = made.json();
    assert_eq!((&report["ops"], &report["pages_verified"]), (&16.into(), &256.into()));
    let shorter = netswap(&[
        "io", &url, "--rw", "write", "--bs", "64KiB", "--size", "1MiB", "--verify", "--seed", "5",
        "--json",
    ]);
    let report = shorter.json();
    assert_eq!((&report["ops"], &report["pages_verified"]), (&16.into(), &255.into()));
    // Page by page: all of the shorter load are its own, and the one behind it is not.
    let each = ["--rw", "read", "--ops", "256", "--verify", "--json"];
    let read = netswap(&[&["io", &url, "--seed", "5"], &each[..]].concat());
    assert_eq!(read.code, 1, "{read:?}");
    let report = read.json();
    assert_eq!((&report["pages_verified"], &report["pages_wrong"]), (&255.into(), &1.into()));
    assert_eq!(report["faults"][0], "slot 256: it was written with --seed 0", "{report}");

    for (file, size, hint) in [
        ("new", "2MiB", "there is a file already, and it has 1028KiB"),
        ("small", "1MiB", "there is a file already, and it has 256KiB"),
    ] {
        let args = ["--create", size, "--rw", "write", "--ops", "1"];
        let ran = netswap(&[&["io", &served.url(file)], &args[..]].concat());
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(hint), "{ran:?}");
    }
    let ran = netswap(&["io", &url, "--rw", "read", "--time", "0"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("more than 0"), "{ran:?}");
    let args = ["--create", "1MiB", "--size", "2MiB", "--rw", "write"];
    let ran = netswap(&[&["io", &served.url("other")], &args[..]].concat());
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("more than what --create 1MiB makes"), "{ran:?}");
}

#[test]
fn every_pattern_is_verified_and_people_can_read_it() {
    let served = Served::new(vec![("area0", area(256))]);
    let url = format!("{}?write=unstable", served.url("area0"));
    for (rw, more) in [("randwrite", "--ops"), ("mixed", "--ops"), ("write", "--ops")] {
        let ran = netswap(&["io", &url, "--rw", rw, "--qd", "32", more, "2000", "--verify"]);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert!(ran.stdout.contains(", 0 wrong; 0 errors of the store"), "{ran:?}");
        assert!(ran.stdout.contains("2000 operations in "), "{ran:?}");
        assert!(ran.stdout.contains("protections: memory lock "), "{ran:?}");
    }
}

#[test]
fn a_file_can_be_made_and_one_with_other_content_is_left_alone() {
    let mut disk = netswap::swap::MemDisk::new(64 * PAGE_SIZE as u64);
    netswap::swap::Disk::write_at(&mut disk, 0, b"somebody's letters").unwrap();
    let served = Served::new(vec![("letters", disk)]);
    let args = ["--rw", "write", "--ops", "8", "--verify"];
    let letters = served.url("letters");
    let refused = netswap(&[&["io", &letters], &args[..]].concat());
    assert_eq!(refused.code, 1, "{refused:?}");
    assert!(refused.stderr.contains("has other content"), "{refused:?}");
    assert!(
        refused.stderr.contains("netswap mkswap") && refused.stderr.contains("--force"),
        "{refused:?}"
    );
    let begin = served.with(|server| {
        let mut page = [0; 2 * PAGE_SIZE];
        netswap::swap::Disk::read_at(server.disk_mut("letters").unwrap(), 0, &mut page).unwrap();
        (page[..8].to_vec(), page[PAGE_SIZE..].iter().all(|byte| *byte == 0))
    });
    assert_eq!(begin, (b"somebody".to_vec(), true), "nothing was written");
    let forced = netswap(&[&["io", &letters, "--force"], &args[..]].concat());
    assert_eq!(forced.code, 0, "{forced:?}");

    let absent = netswap(&[&["io", &served.url("new")], &args[..]].concat());
    assert_eq!(absent.code, 1, "{absent:?}");
    assert!(absent.stderr.contains("there is no such file"), "{absent:?}");
    let made = netswap(&[&["io", &served.url("new"), "--create", "1MiB"], &args[..]].concat());
    assert_eq!(made.code, 0, "{made:?}");
    let again = netswap(&[&["io", &served.url("new")], &args[..]].concat());
    assert_eq!(again.code, 0, "it is an area now: {again:?}");
}

#[test]
fn reads_end_where_the_area_does_and_not_where_its_store_does() {
    let served = Served::new(vec![("area0", area_in(SLOTS, 64))]);
    let url = served.url("area0");
    let write = ["--rw", "write", "--ops", "63", "--verify"];
    let ran = netswap(&[&["io", &url], &write[..]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    for rw in ["read", "randread"] {
        let args = ["io", &url, "--rw", rw, "--ops", "500", "--qd", "4", "--verify", "--json"];
        let ran = netswap(&args);
        assert_eq!(ran.code, 0, "{ran:?}");
        assert_eq!(ran.json()["pages_verified"], 500, "{ran:?}");
    }
    let ran = netswap(&["io", &url, "--rw", "read", "--size", "1MiB"]);
    assert_eq!(ran.code, 2, "{ran:?}");
    assert!(ran.stderr.contains("--size 1MiB is more than the area has: 256KiB"), "{ran:?}");
    // Without a header there is only the store to go by.
    served.with(|server| {
        netswap::swap::Disk::write_at(server.disk_mut("area0").unwrap(), 0, &[0; PAGE_SIZE])
            .unwrap();
    });
    let ran = netswap(&["io", &url, "--rw", "read", "--size", "1MiB", "--json"]);
    assert_eq!((ran.code, &ran.json()["ops"]), (0, &255.into()), "{ran:?}");
}

#[test]
fn what_a_server_that_is_gone_keeps_to_itself_is_counted_and_not_waited_for_page_by_page() {
    let served = Served::new(vec![("area0", area(SLOTS))]);
    // All is written by then, and most is not read back.
    let hang = served.hang_when(|server| server.stats().reads > 40);
    let begun = Instant::now();
    let ran = netswap(&[
        "io",
        &served.url("area0"),
        "--rw",
        "write",
        "--size",
        "16MiB",
        "--merge",
        "off",
        "--qd",
        "4",
        "--verify",
        "--timeout",
        "200ms",
        "--json",
    ]);
    let took = begun.elapsed();
    hang.wait();
    drop(hang);
    assert_eq!(ran.code, 1, "{ran:?}");
    let report = ran.json();
    let pages = |name: &str| report[name].as_u64().unwrap();
    assert_eq!((pages("writes"), pages("pages_wrong")), (u64::from(SLOTS) - 1, 0), "{report}");
    assert!((30..=41).contains(&pages("pages_verified")), "{report}");
    assert_eq!(pages("pages_verified") + pages("pages_unverified"), u64::from(SLOTS) - 1);
    let why = report["ended_early"].as_str().unwrap();
    assert!(why.contains("reads in a row were not answered in time"), "{why}");
    assert!(ran.stderr.contains(why), "{ran:?}");
    // One after the other, 4 at a time, they would take more than three minutes.
    assert!(took < Duration::from_secs(60), "{took:?}");
}

#[test]
fn no_page_is_lost_or_wrong_while_the_server_restarts() {
    let served = Served::new(vec![("area0", area(SLOTS))]);
    let url = format!("{}?write=unstable", served.url("area0"));
    let restarts = served.restart_every(300);
    let args =
        ["--rw", "mixed", "--qd", "16", "--ops", "4000", "--merge", "off", "--verify", "--json"];
    let ran = netswap(&[&["io", &url], &args[..]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let restarts = restarts.load(Ordering::Relaxed);
    assert!(restarts >= 3, "{restarts} restarts");
    let report = ran.json();
    assert_eq!((report["ops"].as_u64(), report["pages_wrong"].as_u64()), (Some(4000), Some(0)));
}
