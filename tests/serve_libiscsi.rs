//! Goal: somebody else's initiators look at, read and write a unit of `netswap serve iscsi`, and end up with the same
//! bytes; the server ends by a signal, and says what it did.
//! Method: libiscsi's tools and `qemu-img` against the command on a port of the loopback. Without them the test
//! says that it was skipped.

mod served;
#[path = "common/skip.rs"]
mod skip;

use std::process::{Command, Output};

use served::{Scratch, Server, contents, installed};
use skip::or_skip;

const TOOLS: [(&str, &str); 5] = [
    ("iscsi-inq", "libiscsi-bin"),
    ("iscsi-readcapacity16", "libiscsi-bin"),
    ("iscsi-perf", "libiscsi-bin"),
    ("timeout", "coreutils"),
    ("qemu-img", "qemu-utils"),
];

fn are_installed() -> bool {
    let there = installed(&TOOLS).and_then(|()| {
        // The driver is a package of its own.
        let help = Command::new("qemu-img").arg("--help").output().map_err(|e| e.to_string())?;
        match String::from_utf8_lossy(&help.stdout).contains(" iscsi ") {
            true => Ok(()),
            false => Err("qemu-img knows no iSCSI (qemu-block-extra)".to_string()),
        }
    });
    or_skip(there).is_some()
}

fn run(program: &str, args: &[&str]) -> String {
    // A tool of libiscsi connects again for ever to a target that does not answer.
    let Output { status, stdout, stderr } =
        Command::new("timeout").arg("60").arg(program).args(args).output().unwrap();
    let told = String::from_utf8_lossy(&stderr).into_owned();
    assert!(status.success(), "{program} {args:?}: {status} {told}");
    String::from_utf8_lossy(&stdout).into_owned()
}

#[test]
fn qemu_writes_an_image_compares_it_and_reads_it_back() {
    if !are_installed() {
        return;
    }
    let scratch = Scratch::new("qemu-iscsi");
    let mut bytes = contents(3 << 20);
    // A hole, which becomes an UNMAP or WRITE SAME.
    bytes[1 << 20..2 << 20].fill(0);
    let (local, back) = (scratch.path("local"), scratch.path("back"));
    std::fs::write(&local, &bytes).unwrap();
    let stored = scratch.path("stored");
    for behind in [
        vec!["--file", &stored, "--size", "4MiB"],
        vec!["--memory", "4MiB", "--block-size", "4KiB", "--transfer-max", "64KiB"],
    ] {
        let server = Server::of("iscsi", &behind);
        let info = run("qemu-img", &["info", "-f", "raw", server.url()]);
        assert!(info.contains("virtual size: 4 MiB"), "{info}");
        let convert = ["convert", "-f", "raw", "-O", "raw"];
        // Not made anew: it is there.
        run("qemu-img", &[&convert[..], &["-n", &local, server.url()]].concat());
        run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &local, server.url()]);
        run("qemu-img", &[&convert[..], &[server.url(), &back]].concat());
        let got = std::fs::read(&back).unwrap();
        assert!(got.len() == 4 << 20 && got[..3 << 20] == bytes, "{behind:?}: other bytes");
        for write in [None, Some("-w")] {
            let bench = ["bench", "-f", "raw", "-c", "2000", "-d", "32", "-s", "4096"];
            let bench = bench.into_iter().chain(write).chain([server.url()]);
            run("qemu-img", &bench.collect::<Vec<_>>());
        }
        let report = server.stop();
        assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{report}");
        assert!(report["counts"]["writes"].as_u64().unwrap() >= 2000, "{report}");
    }
}

#[test]
fn libiscsi_sees_the_unit_that_was_asked_for() {
    if !are_installed() {
        return;
    }
    let args = ["--memory", "64MiB", "--block-size", "4KiB", "--lun", "3", "--read-only"];
    let server = Server::of("iscsi", &args);
    assert!(server.url().ends_with("/iqn.2026-01.net.netswap:disk/3"), "{}", server.url());
    let inquiry = run("iscsi-inq", &[server.url()]);
    assert!(inquiry.contains("Vendor:NETSWAP"), "{inquiry}");
    // In decimal, as the tool takes it.
    for (page, says) in [
        ("128", "Unit Serial Number"),
        ("131", "NETSWAP"),
        ("176", "maximum transfer length:256"),
        ("177", "Medium Rotation Rate"),
        ("178", "Provisioning Type:2"),
    ] {
        let told = run("iscsi-inq", &["-e", "1", "-c", page, server.url()]);
        assert!(told.to_lowercase().contains(&says.to_lowercase()), "page {page}: {told}");
    }
    let capacity = run("iscsi-readcapacity16", &[server.url()]);
    assert!(capacity.contains("Total size:67108864"), "{capacity}");
    run("iscsi-perf", &["-m", "16", "-b", "2", "-t", "1", "-r", server.url()]);
    let report = server.stop();
    assert!(report["counts"]["reads"].as_u64().unwrap() > 100, "{report}");
    assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{report}");
}

#[test]
fn qemu_comes_through_faults_that_are_within_the_protocol() {
    if !are_installed() {
        return;
    }
    let scratch = Scratch::new("qemu-iscsi-faults");
    let bytes = contents(2 << 20);
    let local = scratch.path("local");
    std::fs::write(&local, &bytes).unwrap();
    let mut args = vec!["--memory", "2MiB", "--late-by", "5ms", "--seed", "3"];
    let faults = ["late=5%", "late-r2t=20%", "small-r2t=10%", "small-data-in=10%", "ping=10%"];
    for fault in faults {
        args.extend(["--fault", fault]);
    }
    let server = Server::of("iscsi", &args);
    let bench = ["bench", "-f", "raw", "-c", "500", "-d", "16", "-s", "65536", "-w"];
    run("qemu-img", &[&bench[..], &[server.url()]].concat());
    run("qemu-img", &["convert", "-n", "-f", "raw", "-O", "raw", &local, server.url()]);
    run("qemu-img", &["compare", "-f", "raw", "-F", "raw", &local, server.url()]);
    let report = server.stop();
    for fault in ["late", "small-data-in", "ping"] {
        assert!(report["faults"][fault].as_u64().unwrap_or(0) > 0, "{fault}: {report}");
    }
    assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{report}");
}

#[test]
fn what_cannot_be_served_says_what_can() {
    for (args, says) in [
        (&["--memory", "1MiB", "--fault", "cat=1%"][..], "known: late, twice, garbage, busy"),
        (&["--memory", "1MiB", "--block-size", "1KiB"], "give 512B or 4KiB"),
        (&["--memory", "1MiB", "--sense", "none"], "known: fixed, descriptor, empty"),
        (&["--memory", "1MiB", "--transfer-max", "1KiB"], "4KiB to 4MiB"),
        (&["--memory", "1MiB", "--name", "a b"], "iqn.2026-01"),
        (&["--memory", "1000B"], "whole number of blocks"),
        (&[], "--file"),
    ] {
        let output = served::netswap(&[&["serve", "iscsi"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}");
        let told = served::stderr(&output);
        assert!(told.contains(says), "{args:?}: {told}");
    }
}
