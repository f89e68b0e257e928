//! Goal: `netswap mkswap` makes an area that others take for one, with no hole in it, and overwrites nothing
//! unasked; `netswap ls` shows it.
//! Method: the command against `netswap serve nfs` on the loopback; `blkid` and `file` look at the file
//! behind the server. Where they are not installed the test says that it was skipped.

mod served;
#[path = "common/skip.rs"]
mod skip;

use std::os::unix::fs::MetadataExt;
use std::process::Command;

use served::{Scratch, Server, contents, netswap, stderr};
use skip::or_skip;

const SIZE: usize = 1 << 20;
const UUID: &str = "01234567-89ab-cdef-0123-456789abcdef";

/// What a program says of a file; `None` if it is not there.
fn said(program: &str, args: &[&str]) -> Option<String> {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let output = Command::new(program).args(args).env("PATH", path).output();
    let output = or_skip(output.map_err(|error| format!("{program}: {error}")))?;
    Some(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[test]
fn an_area_is_what_others_take_for_one_and_has_no_hole() {
    let scratch = Scratch::new("mkswap");
    let stored = scratch.path("area0");
    let server = Server::start(&["--file", &stored]);
    let made = netswap(&[
        "mkswap",
        server.url(),
        "--size",
        "1MiB",
        "--label",
        "netswap",
        "--uuid",
        UUID,
        "--json",
    ]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let report: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&report["pages"], &report["created"]), (&256.into(), &true.into()), "{report}");
    assert_eq!((&report["uuid"], &report["pages_read"]), (&UUID.into(), &0.into()), "{report}");
    server.stop();
    let meta = std::fs::metadata(&stored).unwrap();
    assert_eq!(meta.size(), SIZE as u64);
    assert!(meta.blocks() * 512 >= SIZE as u64, "{} blocks: a hole", meta.blocks());
    if let Some(text) = said("blkid", &["-p", &stored]) {
        for part in ["TYPE=\"swap\"", "LABEL=\"netswap\"", &format!("UUID=\"{UUID}\"")] {
            assert!(text.contains(part), "{text}");
        }
    }
    if let Some(text) = said("file", &["-b", &stored]) {
        assert!(text.contains("swap file") && text.contains("255 pages"), "{text}");
        assert!(text.contains("LABEL=netswap"), "{text}");
    }
}

#[test]
fn what_is_there_is_not_overwritten_unasked() {
    let scratch = Scratch::new("mkswap-refuses");
    let stored = scratch.path("data");
    let mut bytes = vec![0; SIZE];
    bytes[SIZE - 1] = 1;
    std::fs::write(&stored, &bytes).unwrap();
    let server = Server::start(&["--file", &stored]);
    let mkswap = |args: &[&str]| {
        let output = netswap(&[&["mkswap", server.url()], args].concat());
        (output.status.code().unwrap(), stderr(&output))
    };
    let (code, text) = mkswap(&["--size", "1MiB"]);
    assert!(code == 2 && text.contains("page 255 is not zero"), "{code} {text}");
    let (code, text) = mkswap(&["--size", "2MiB", "--force"]);
    assert!(code == 2 && text.contains("256 pages already, not 512"), "{code} {text}");
    assert!(std::fs::read(&stored).unwrap() == bytes, "it was changed all the same");
    assert_eq!(mkswap(&["--size", "1MiB", "--force"]), (0, String::new()));
    let (code, text) = mkswap(&["--size", "1MiB"]);
    assert!(code == 2 && text.contains("is a swap area already"), "{code} {text}");
    let (code, text) = mkswap(&["--size", "16KiB"]);
    assert!(code == 2 && text.contains("at least 40KiB"), "{code} {text}");
    let (code, text) = mkswap(&["--size", "1MiB", "--timeout", "0"]);
    assert!(code == 2 && text.contains("more than 0"), "{code} {text}");
    // As check and io have them; a bare number is seconds.
    let (code, text) =
        mkswap(&["--size", "2MiB", "--timeout", "5", "--wait", "5", "--unprotected"]);
    assert!(code == 2 && text.contains("256 pages already"), "{code} {text}");
    let (code, text) = mkswap(&["--size", "1MiB", "--uuid", "x"]);
    assert!(code == 2 && text.contains("01234567-89ab"), "{code} {text}");
    server.stop();
}

#[test]
fn zeros_are_nobodys_data_and_faults_do_not_harm() {
    let scratch = Scratch::new("mkswap-faults");
    let stored = scratch.path("zeros");
    let mut args = vec!["--file", &stored, "--size", "1MiB", "--wtmax", "16KiB", "--seed", "5"];
    for fault in ["short-write=10%", "short-read=10%", "twice=10%", "forget=2%"] {
        args.extend(["--fault", fault]);
    }
    let server = Server::start(&args);
    let url = format!("{}&write=unstable", server.url());
    let made = netswap(&["mkswap", &url, "--size", "1MiB", "--json"]);
    assert_eq!(made.status.code(), Some(0), "{}", stderr(&made));
    let report: serde_json::Value = serde_json::from_slice(&made.stdout).unwrap();
    assert_eq!((&report["created"], &report["pages_read"]), (&false.into(), &256.into()));
    server.stop();
    assert_eq!(&std::fs::read(&stored).unwrap()[4086..4096], b"SWAPSPACE2");
}

#[test]
fn a_directory_is_listed_and_what_is_none_says_so() {
    let scratch = Scratch::new("ls");
    let stored = scratch.path("area0");
    std::fs::write(&stored, contents(12_345)).unwrap();
    let server = Server::start(&["--file", &stored, "--export", "/a/b"]);
    for url in [server.directory(), server.directory().replace("/a/b?", "/a/b/?")] {
        let listed = netswap(&["ls", &url]);
        assert_eq!(listed.status.code(), Some(0), "{}", stderr(&listed));
        let text = String::from_utf8_lossy(&listed.stdout).into_owned();
        let row = text.lines().last().unwrap();
        assert!(row.starts_with("-rw-------") && row.contains("12345"), "{text}");
        assert!(row.ends_with("area0"), "{text}");
    }
    let listed = netswap(&["ls", &server.directory(), "--json"]);
    let entry: serde_json::Value = serde_json::from_slice(&listed.stdout).unwrap();
    assert_eq!((&entry["name"], &entry["size"]), (&"area0".into(), &12_345.into()), "{entry}");
    let file = netswap(&["ls", server.url()]);
    assert_eq!(file.status.code(), Some(1));
    assert!(stderr(&file).contains("is no directory"), "{}", stderr(&file));
    let absent = netswap(&["ls", &server.directory().replace("/a/b?", "/a/c?")]);
    assert_eq!(absent.status.code(), Some(1));
    assert!(stderr(&absent).contains("check the path"), "{}", stderr(&absent));
    let (directory, url) = (server.directory(), server.url().to_string());
    server.stop();
    let gone = netswap(&["ls", &directory, "--timeout", "200ms"]);
    assert_eq!(gone.status.code(), Some(3), "{}", stderr(&gone));
    assert!(netswap(&["ls", "http://h/"]).status.code() == Some(2));
    assert!(netswap(&["mkswap", &url, "--size", "1"]).status.code() == Some(2));
    let begun = std::time::Instant::now();
    let gone = netswap(&["mkswap", &url, "--size", "1MiB", "--wait", "200ms"]);
    assert_eq!(gone.status.code(), Some(3), "{}", stderr(&gone));
    assert!(begun.elapsed() < std::time::Duration::from_secs(5), "--wait is heeded");
}

#[test]
fn a_limit_holds_for_memory_that_is_not_there_yet() {
    let server = Server::start(&["--memory", "4MiB", "--absent", "--limit", "1MiB"]);
    let large = netswap(&["mkswap", server.url(), "--size", "2MiB"]);
    assert_eq!(large.status.code(), Some(1), "{}", stderr(&large));
    let fits = netswap(&["mkswap", server.url(), "--size", "1MiB"]);
    assert_eq!(fits.status.code(), Some(0), "{}", stderr(&fits));
    server.stop();
}

#[test]
fn pages_are_back_before_their_pool_goes() {
    // The library warns if they are not. That a warning would be seen, what the initiator logs shows.
    let logged = |args: &[&str]| {
        let command = &mut Command::new(env!("CARGO_BIN_EXE_netswap"));
        let output = command.args(args).env("NETSWAP_LOG", "debug").output().unwrap();
        let text = stderr(&output);
        let is_heard = !args[1].starts_with("iscsi") || text.contains("logged in");
        assert!(is_heard, "{args:?} logged nothing: {text}");
        let warned = text.lines().find(|line| line.contains("a pool was dropped"));
        assert_eq!(warned, None, "{args:?}");
        output.status.code()
    };
    for protocol in ["nfs", "iscsi"] {
        let server = Server::of(protocol, &["--memory", "1MiB"]);
        let url = server.url();
        assert_eq!(logged(&["mkswap", url, "--size", "1MiB"]), Some(0));
        // Refused in the middle, with requests outstanding.
        assert_eq!(logged(&["mkswap", url, "--size", "1MiB"]), Some(2));
        assert_eq!(logged(&["io", url, "--rw", "mixed", "--ops", "100", "--verify"]), Some(0));
        assert_eq!(logged(&["io", url, "--rw", "read", "--ops", "100"]), Some(0));
        assert_eq!(logged(&["check", url, "--allow-local"]), Some(0));
        server.stop();
    }
}

#[test]
fn the_server_is_strict_about_what_it_is_told() {
    let refused = |args: &[&str]| {
        let output = netswap(&[&["serve", "nfs"], args].concat());
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
        stderr(&output)
    };
    let text = refused(&["--memory", "1MiB", "--fault", "jukebocks=1%"]);
    assert!(text.contains("known: late, twice, garbage, jukebox"), "{text}");
    assert!(refused(&[]).contains("--file"));
    assert!(refused(&["--memory", "1MiB", "--file", "x"]).contains("cannot be used with"));
    assert!(refused(&["--memory", "1MiB", "--rtmax", "4MiB"]).contains("512B to 1MiB"));
    let text = refused(&["--memory", "16MiB", "--limit", "1MiB"]);
    assert!(text.contains("--limit 1MiB: the file has 16MiB from the start"), "{text}");
    let text = refused(&["--memory", "1MiB", "--limit", "16MiB", "--absent"]);
    assert!(text.contains("cannot become longer than --memory 1MiB"), "{text}");
    let text = refused(&["--file", "x", "--size", "2MiB", "--limit", "1MiB"]);
    assert!(text.contains("has 2MiB from the start"), "{text}");
    assert!(refused(&["--memory", "1MiB", "--export", "swap"]).contains("a path like /swap"));
    assert!(refused(&["--file", "/dev/null"]).contains("neither a regular file"));
    assert!(refused(&["--memory", "1MiB", "--listen", "192.0.2.1:1"]).contains("cannot listen"));
}
