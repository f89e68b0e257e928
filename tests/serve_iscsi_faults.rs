//! Goal: whatever the served target does wrong, `netswap io` loses no page and takes no wrong one for right; what a client can
//! survive it survives without an error, and what it cannot is an error for each request.
//! Method: `netswap serve iscsi --fault` with each of its faults by itself, over sockets of the kernel; a mixed load with every page verified,
//! and read back at the end. The target tells that it made the fault. `garbage` wants digests: without, a header that is cut off
//! behind its tag can make bytes of the next PDU a page, which only a checksum finds.

mod common;
mod served;

use std::sync::Mutex;

use common::command::{Ran, netswap};
use netswap::iscsi::FAULT_NAMES;
use served::{Scratch, Server};

const DIGESTS: [&str; 4] = ["--header-digest", "crc32c", "--data-digest", "crc32c"];

/// Faults that say that a request cannot be carried out: it ends with an error, and not another time.
const FINAL: [&str; 5] =
    ["medium-error", "hardware-error", "reservation-conflict", "wrong-residual", "short-read"];

/// Runs at once. Most time is spent waiting.
const WORKERS: usize = 4;

/// A load on a copy of the unit `made` at a target with this fault; what it says, and how often the fault was made.
fn load(fault: &str, made: &str) -> (Ran, u64) {
    // What only time heals costs 15 s each.
    let share = if matches!(fault, "silent" | "reset-unit") { "500ppm" } else { "1%" };
    let named = format!("{fault}={share}");
    let scratch = Scratch::new(fault);
    let file = scratch.path("unit");
    std::fs::copy(made, &file).unwrap();
    let mut args = vec!["--file", &file, "--no-sync", "--late-by", "20ms", "--seed", "3"];
    args.extend(["--fault", &named]);
    match fault {
        "garbage" | "header-digest" | "data-digest" => args.extend(DIGESTS),
        "small-r2t" | "late-r2t" => args.push("--r2t"),
        _ => {}
    }
    let server = Server::of("iscsi", &args);
    let words = ["--rw", "mixed", "--qd", "16", "--ops", "1500", "--verify", "--json"];
    let ran = netswap(&[&["io", server.url()], &words[..]].concat());
    let report = server.stop();
    assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{fault}: {report}");
    let counts = report["faults"].as_object().unwrap();
    let n = match fault {
        "garbage" => counts.values().filter_map(|n| n.as_u64()).sum(),
        // Those with counters of their own.
        _ => counts
            .get(fault)
            .or(counts.get(&fault.replace('-', "_")))
            .map_or(0, |n| n.as_u64().unwrap()),
    };
    (ran, n)
}

fn judge(fault: &str, unit: &str) {
    let (ran, made) = load(fault, unit);
    assert!(made > 0, "{fault}: it was never made");
    let report = ran.json();
    let is = |name: &str| report[name].as_u64().unwrap();
    assert!(is("pages_wrong") == 0 && is("pages_verified") > 1000, "{fault}: {ran:?}");
    if FINAL.contains(&fault) {
        assert!(ran.code == 1 && is("store_errors") > 0, "{fault}: {ran:?}");
        assert!(is("store_errors") <= made, "{fault}: {ran:?}");
    } else {
        assert!(ran.code == 0 && is("store_errors") == 0, "{fault}: {ran:?}");
    }
}

#[test]
fn no_fault_of_the_target_loses_a_page_or_makes_one_wrong() {
    assert!(FINAL.iter().all(|fault| FAULT_NAMES.contains(fault)));
    // The slow ones first.
    let mut faults: Vec<_> = FAULT_NAMES.to_vec();
    faults.sort_by_key(|fault| matches!(*fault, "silent" | "reset-unit"));
    let faults = Mutex::new(faults);
    let scratch = Scratch::new("serve-faults");
    let unit = scratch.path("unit");
    let server = Server::of("iscsi", &["--file", &unit, "--size", "16MiB", "--no-sync"]);
    assert_eq!(netswap(&["mkswap", server.url(), "--force"]).code, 0);
    server.stop();
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                loop {
                    let fault = faults.lock().unwrap().pop();
                    let Some(fault) = fault else { return };
                    judge(fault, &unit);
                }
            });
        }
    });
}

#[test]
fn what_was_written_through_garbage_without_digests_is_all_there() {
    let scratch = Scratch::new("serve-garbage");
    let file = scratch.path("unit");
    let unit = ["--file", &file, "--size", "8MiB", "--no-sync"];
    let garbage = ["--fault", "garbage=1%", "--seed", "5"];
    let server = Server::of("iscsi", &[&unit[..], &garbage].concat());
    assert_eq!(netswap(&["mkswap", server.url(), "--force"]).code, 0);
    // Merged, it would be few commands: too few for the fault.
    let words = ["--qd", "16", "--size", "4MiB", "--merge", "off", "--verify", "--json"];
    let wrote = netswap(&[&["io", server.url(), "--rw", "write"], &words[..]].concat()).json();
    // What it reads back may be made of other bytes, and is found then; see above.
    assert_eq!(wrote["store_errors"], 0, "{wrote}");
    assert!(wrote["connections"].as_u64().unwrap() > 5, "{wrote}");
    server.stop();
    let server = Server::of("iscsi", &unit);
    let read = netswap(&[&["io", server.url(), "--rw", "read"], &words[..]].concat());
    assert_eq!((read.code, read.json()["pages_wrong"].as_u64()), (0, Some(0)), "{read:?}");
    assert_eq!(read.json()["pages_verified"], wrote["writes"], "{read:?}");
    server.stop();
}

#[test]
fn a_write_that_failed_leaves_its_slot_unknown_also_to_reads_that_wait_behind_it() {
    let scratch = Scratch::new("serve-failed-writes");
    let file = scratch.path("unit");
    let unit = ["--file", &file, "--size", "4MiB", "--no-sync"];
    let server = Server::of("iscsi", &unit);
    assert_eq!(netswap(&["mkswap", server.url(), "--force"]).code, 0);
    server.stop();
    let faults = ["--fault", "medium-error=1%", "--seed", "3"];
    let server = Server::of("iscsi", &[&unit[..], &faults].concat());
    // So few slots that most requests wait for another of theirs.
    let words = ["--rw", "mixed", "--qd", "16", "--ops", "5000", "--size", "84KiB", "--verify"];
    let ran = netswap(&[&["io", server.url(), "--merge", "off", "--json"], &words[..]].concat());
    let report = ran.json();
    assert_eq!(report["pages_wrong"], 0, "{ran:?}");
    assert!(report["store_errors"].as_u64().unwrap() > 10 && ran.code == 1, "{ran:?}");
    assert!(report["pages_verified"].as_u64().unwrap() > 1000, "{ran:?}");
    assert!(ran.stderr.contains("more"), "the others are counted: {ran:?}");
    server.stop();
}
