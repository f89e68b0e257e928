//! Goal: a signal ends `io`, `sim --backend URL` and `mkswap` with what they have so far and an exit code that says
//! so, also while their server does not answer; a second one ends them at once.
//! Method: the built binary against the embedded server on the loopback, which stands still when the signal is sent:
//! nothing but the signal can end the command.

mod common;

use std::process::{Child, Command, Output, Stdio};

use common::nfs::{Served, area};
use netswap::nfs::NfsServer;
use netswap::swap::MemDisk;
use rustix::process::{Pid, Signal, kill_process};

fn start(args: &[&str]) -> Child {
    Command::new(env!("CARGO_BIN_EXE_netswap"))
        .args(args)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// What the command says that `signal` ends once the server has done what `is_due` looks for.
fn ended(
    args: &[&str],
    served: &Served,
    is_due: impl Fn(&NfsServer<MemDisk>) -> bool + Send + 'static,
    signal: Signal,
) -> (i32, serde_json::Value, String) {
    let hang = served.hang_when(is_due);
    let child = start(args);
    hang.wait();
    kill_process(Pid::from_child(&child), signal).unwrap();
    let Output { status, stdout, stderr } = child.wait_with_output().unwrap();
    drop(hang);
    let stderr = String::from_utf8(stderr).unwrap();
    let report = serde_json::from_slice(&stdout)
        .unwrap_or_else(|error| panic!("{error}: {status} {stderr}"));
    (status.code().unwrap_or(-1), report, stderr)
}

#[test]
fn a_load_says_what_it_has_verified() {
    let served = Served::new(vec![("area0", area(1024))]);
    let url = served.url("area0");
    let writing =
        ["io", &url, "--rw", "randwrite", "--qd", "4", "--time", "600", "--verify", "--json"];
    let (code, report, _) = ended(&writing, &served, |s| s.stats().writes > 200, Signal::INT);
    let count = |report: &serde_json::Value, name: &str| report[name].as_u64().unwrap();
    assert_eq!((code, &report["ended_early"]), (130, &"interrupted".into()), "{report}");
    assert!(count(&report, "writes") > 100 && count(&report, "store_errors") == 0, "{report}");
    // None of it was read back.
    assert_eq!(count(&report, "pages_verified"), 0, "{report}");
    assert!(count(&report, "pages_unverified") > 100, "{report}");

    let back = ["io", &url, "--rw", "write", "--qd", "4", "--ops", "1023", "--verify", "--json"];
    let reads = served.with(|server| server.stats().reads);
    let due = move |server: &NfsServer<MemDisk>| server.stats().reads > reads + 40;
    let (code, report, stderr) = ended(&back, &served, due, Signal::TERM);
    assert_eq!((code, count(&report, "writes")), (143, 1023), "{report}");
    let (right, unread) = (count(&report, "pages_verified"), count(&report, "pages_unverified"));
    assert!(right > 0 && right + unread == 1023, "{report}");
    assert!(stderr.contains("interrupted"), "{stderr}");
}

#[test]
fn a_host_says_how_far_it_came() {
    let served = Served::new(vec![("area0", area(4096))]);
    let url = served.url("area0");
    let args = ["sim", "--backend", &url, "--ram", "4MiB", "--overcommit", "2", "--json"];
    let (code, row, _) = ended(&args, &served, |s| s.stats().writes > 20, Signal::INT);
    assert_eq!((code, &row["outcome"]), (130, &"failed".into()), "{row}");
    assert_eq!(row["reason"], "interrupted", "{row}");
    assert!(row["page_outs"].as_u64().unwrap() > 0, "{row}");
}

#[test]
fn an_area_that_is_half_made_is_none() {
    let served = Served::new(vec![("area0", area(1024))]);
    let url = served.url("area0");
    let args = ["mkswap", &url, "--size", "4MiB", "--force", "--json"];
    let (code, report, stderr) = ended(&args, &served, |s| s.stats().writes > 20, Signal::INT);
    assert_eq!((code, &report["ended_early"]), (130, &"interrupted".into()), "{report}");
    let written = report["pages_written"].as_u64().unwrap();
    assert!((1..1024).contains(&written), "{report}");
    assert!(stderr.contains("it has no signature"), "{stderr}");
    served.each_turn(|_, _| {});
    let start = served.with(|server| {
        let mut page = [0; 4096];
        netswap::swap::Disk::read_at(server.disk_mut("area0").unwrap(), 0, &mut page).unwrap();
        page
    });
    assert!(netswap::swap::signature::Header::parse(&start).is_err());
}

#[test]
fn a_store_that_is_not_ready_is_not_waited_for() {
    let served = Served::new(vec![("area0", area(64))]);
    let url = served.url("area0");
    // Its first call was answered, the next one of the many it takes is not.
    let hang = served.hang_when(|server| server.stats().calls > 0);
    let child = start(&["io", &url, "--rw", "read", "--wait", "600"]);
    hang.wait();
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    let ended = child.wait_with_output().unwrap();
    drop(hang);
    let stderr = String::from_utf8(ended.stderr).unwrap();
    assert_eq!(ended.status.code(), Some(130), "{stderr}");
    assert!(stderr.contains("interrupted before"), "{stderr}");
}
