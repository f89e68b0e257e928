//! Goal: the served target lets in who proves to be whom it was told of, by initiators that others wrote and by this
//! project's, with header digests and, where the initiator has them, data digests; and nobody else. It tells who asks for targets where they
//! are. No secret shows.
//! Method: libiscsi's tools, `qemu-img` and `netswap` against `netswap serve iscsi --chap`. libiscsi never offers data digests.

mod common;
mod served;

use std::process::{Command, Output};

use common::skip::or_skip;
use served::{Scratch, Server, contents, installed};

const SECRET: &str = "zebra-crossing-7";
const OTHERS: &str = "quagga-parade-9";
const WRONG: &str = "okapi-in-the-dark";

const TOOLS: [(&str, &str); 4] = [
    ("iscsi-inq", "libiscsi-bin"),
    ("iscsi-ls", "libiscsi-bin"),
    ("timeout", "coreutils"),
    ("qemu-img", "qemu-utils"),
];

/// Runs a program with this password in the environment; what it says on both.
fn run(program: &str, args: &[&str]) -> (bool, String) {
    let Output { status, stdout, stderr } = Command::new("timeout")
        .arg("60")
        .arg(program)
        .args(args)
        .env("NETSWAP_CHAP_PASSWORD", SECRET)
        .env("NETSWAP_CHAP_TARGET_PASSWORD", OTHERS)
        .env("NETSWAP_LOG", "debug")
        .output()
        .unwrap();
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    (status.success(), text(&stdout) + &text(&stderr))
}

/// What it says when it ends well.
fn well(program: &str, args: &[&str]) -> String {
    let (ended_well, told) = run(program, args);
    assert!(ended_well, "{program} {args:?}: {told}");
    told
}

/// A target that wants `alice`, and is `targ` itself.
fn server(scratch: &Scratch, args: &[&str]) -> Server {
    let (file, target_file) = (scratch.path("alice"), scratch.path("targ"));
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    std::fs::write(&target_file, OTHERS).unwrap();
    let chap = ["--memory", "16MiB", "--chap", "alice", "--chap-file", &file];
    let both = ["--chap-target", "targ", "--chap-target-file", &target_file];
    Server::of("iscsi", &[&chap[..], &both, args].concat())
}

/// A URL with this before the host and this behind the path.
fn url(server: &Server, who: &str, parameters: &str) -> String {
    let url = server.url().replace("alice@", who);
    url.split('?').next().unwrap().to_string() + parameters
}

#[test]
fn tools_of_others_prove_themselves_and_ask_for_proof() {
    if or_skip(installed(&TOOLS)).is_none() {
        return;
    }
    let scratch = Scratch::new("serve-chap");
    let server = server(&scratch, &["--header-digest", "crc32c"]);
    // libiscsi offers a digest of headers, though not first: a target that wants it takes it.
    let both = format!("?target_user=targ&target_password={OTHERS}");
    for parameters in ["", &both] {
        let url = url(&server, &format!("alice%{SECRET}@"), parameters);
        assert!(well("iscsi-inq", &[&url]).contains("Vendor:NETSWAP"), "{parameters}");
    }
    let portal = server.portal().replace("//", &format!("//alice%{SECRET}@"));
    let listed = well("iscsi-ls", &["-s", &portal]);
    let address = server.portal().trim_start_matches("iscsi://");
    assert!(
        listed.contains(&format!("iqn.2026-01.net.netswap:disk Portal:{address},1")),
        "{listed}"
    );
    assert!(listed.contains("Lun:0"), "{listed}");

    let bytes = contents(4 << 20);
    let (local, back) = (scratch.path("local"), scratch.path("back"));
    std::fs::write(&local, &bytes).unwrap();
    let unit = url(&server, &format!("alice%{SECRET}@"), "");
    let convert = ["convert", "-f", "raw", "-O", "raw"];
    well("qemu-img", &[&convert[..], &["-n", &local, &unit]].concat());
    well("qemu-img", &[&convert[..], &[&unit, &back]].concat());
    assert!(std::fs::read(&back).unwrap()[..4 << 20] == bytes, "other bytes");

    for (who, parameters) in [
        (format!("alice%{WRONG}@"), ""),
        (format!("mallory%{SECRET}@"), ""),
        (String::new(), ""),
        (format!("alice%{SECRET}@"), "?target_user=targ&target_password=okapi-in-the-dark"),
    ] {
        let (ended_well, told) = run("iscsi-inq", &[&url(&server, &who, parameters)]);
        assert!(!ended_well, "{who} {parameters}: {told}");
    }
    let report = server.stop();
    assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{report}");

    let server = self::server(&scratch, &["--data-digest", "crc32c"]);
    let (ended_well, told) = run("iscsi-inq", &[&url(&server, &format!("alice%{SECRET}@"), "")]);
    assert!(!ended_well, "it never offers one of data: {told}");
    server.stop();
}

#[test]
fn this_projects_initiator_does_so_with_both_digests() {
    let scratch = Scratch::new("serve-chap-own");
    let server = server(&scratch, &["--header-digest", "crc32c", "--data-digest", "crc32c"]);
    let binary = env!("CARGO_BIN_EXE_netswap");
    // The URL that the server prints is all that is needed, and the passwords.
    assert!(server.url().ends_with("/0?target_user=targ&header_digest=crc32c&data_digest=crc32c"));
    let mut told = well(binary, &["mkswap", server.url(), "--force"]);
    let load = ["--rw", "mixed", "--qd", "16", "--ops", "500", "--verify"];
    told += &well(binary, &[&["io", server.url()], &load[..]].concat());
    let portal = server.portal().replace("//", "//alice@");
    told += &well(binary, &["ls", &portal]);
    assert!(told.contains("iqn.2026-01.net.netswap:disk"), "{told}");
    let plain = url(&server, "alice@", "");
    let (ended_well, refusal) = run(binary, &["io", &plain, "--rw", "randread", "--ops", "1"]);
    assert!(!ended_well, "no login without digests");
    told += &refusal;
    let report = server.stop();
    told += &report.to_string();
    assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{report}");
    assert_eq!(report["counts"]["wrong_digests"], 0, "{report}");
    assert!(!told.contains(SECRET) && !told.contains(OTHERS), "{told}");
}

#[test]
fn what_cannot_be_proven_is_refused_at_the_start() {
    let scratch = Scratch::new("serve-chap-refused");
    let file = scratch.path("secret");
    std::fs::write(&file, SECRET).unwrap();
    let absent = scratch.path("absent");
    let same = ["--chap-file", &file, "--chap-target", "targ", "--chap-target-file", &file];
    for (args, says) in [
        (&["--chap", "alice"][..], "set NETSWAP_CHAP_PASSWORD, or name a file with --chap-file"),
        (&["--chap", "alice", "--chap-file", &absent], "cannot read the password in"),
        (
            &["--chap", "alice%zebra-crossing-7", "--chap-file", &file],
            "its password goes into a file",
        ),
        (&[&["--chap", "alice"], &same[..]].concat(), "are the same"),
        (&["--chap-file", &file], "--chap <USER>"),
        (&["--data-digest", "md5"], "known: none, prefer, crc32c"),
        (&["--portal", "here"], "give an address like"),
    ] {
        let out = served::netswap(&[&["serve", "iscsi", "--memory", "1MiB"], args].concat());
        let told = served::stderr(&out);
        assert_eq!(out.status.code(), Some(2), "{args:?}: {told}");
        assert!(told.contains(says) && !told.contains(SECRET), "{args:?}: {told}");
    }
}
