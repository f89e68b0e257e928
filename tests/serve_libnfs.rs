//! Goal: somebody else's client reads and writes through `netswap serve nfs`, and ends up with the same
//! bytes; the server ends by a signal, and says what it did.
//! Method: libnfs's `nfs-ls` and `nfs-cp` against the command on a port of the loopback, with a file and
//! with memory behind it. Without libnfs-utils the test says that it was skipped.

mod served;
#[path = "common/skip.rs"]
mod skip;

use std::process::{Command, Output};

use served::{Scratch, Server, contents};
use skip::or_skip;

fn run(program: &str, args: &[&str]) -> Output {
    let output = Command::new(program).args(args).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.success(), "{program} {args:?}: {told}");
    output
}

fn is_installed() -> bool {
    let missing = ["nfs-ls", "nfs-cp"]
        .into_iter()
        .find(|name| Command::new(name).arg("--help").output().is_err());
    let there =
        missing.map_or(Ok(()), |name| Err(format!("{name} is not installed (libnfs-utils)")));
    or_skip(there).is_some()
}

#[test]
fn libnfs_writes_a_file_lists_it_and_reads_it_back() {
    if !is_installed() {
        return;
    }
    let scratch = Scratch::new("libnfs");
    // Neither whole pages nor whole calls.
    let bytes = contents(1_500_001);
    let (local, back) = (scratch.path("local"), scratch.path("back"));
    std::fs::write(&local, &bytes).unwrap();
    let stored = scratch.path("stored");
    for behind in
        [vec!["--file", &stored], vec!["--memory", "2MiB", "--absent", "--name", "stored"]]
    {
        let server = Server::start(&behind);
        run("nfs-cp", &[&local, server.url()]);
        let listed = run("nfs-ls", &[&server.url().replace("/stored?", "?")]);
        let listed = String::from_utf8_lossy(&listed.stdout).into_owned();
        assert!(listed.contains("1500001") && listed.contains("stored"), "{listed}");
        run("nfs-cp", &[server.url(), &back]);
        assert!(std::fs::read(&back).unwrap() == bytes, "{behind:?}: other bytes came back");
        // It is not overwritten by the next one.
        std::fs::remove_file(&back).unwrap();
        let report = server.stop();
        assert_eq!(report["counts"]["not_understood"], 0, "{report}");
        assert!(report["counts"]["writes"].as_u64().unwrap() > 0, "{report}");
    }
    assert!(std::fs::read(&stored).unwrap() == bytes, "other bytes are in the file");
}

#[test]
fn libnfs_comes_through_faults_that_are_within_the_protocol() {
    if !is_installed() {
        return;
    }
    let scratch = Scratch::new("libnfs-faults");
    let bytes = contents(400_000);
    let (local, back) = (scratch.path("local"), scratch.path("back"));
    std::fs::write(&local, &bytes).unwrap();
    let stored = scratch.path("stored");
    let faults = ["--fault", "late=20%", "--fault", "twice=20%", "--late-by", "5ms", "--seed", "3"];
    let server = Server::start(&[&["--file", &stored], &faults[..]].concat());
    run("nfs-cp", &[&local, server.url()]);
    run("nfs-cp", &[server.url(), &back]);
    assert!(std::fs::read(&back).unwrap() == bytes, "other bytes came back");
    let report = server.stop();
    assert!(report["faults"]["late"].as_u64().unwrap() > 0, "{report}");
    assert!(report["faults"]["twice"].as_u64().unwrap() > 0, "{report}");
}
