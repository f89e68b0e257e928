//! Goal: CHAP in both directions with a target that others wrote; what is wrong about it is a typed error that says what to
//! do; and no secret shows: not in output, not in logs, not in errors.
//! Method: the built binary against tgt, secrets by URL, environment and file, everything that it says searched.

mod common;

use std::process::Command;

use common::command::Ran;
use common::skip::or_skip;
use common::tgt::{Target, Tgt};

const SECRET: &str = "zebra-crossing-7";
const OTHERS: &str = "quagga-parade-9";
const WRONG: &str = "okapi-in-the-dark";

/// Runs `netswap` with everything logged and these variables, and looks for secrets in all that comes out.
fn netswap(args: &[&str], variables: &[(&str, &str)]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netswap"));
    command.args(args).env("NETSWAP_LOG", "trace").envs(variables.iter().copied());
    let out = command.output().unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    let ran = Ran {
        code: out.status.code().unwrap_or(-1),
        stdout: text(out.stdout),
        stderr: text(out.stderr),
    };
    for secret in [SECRET, OTHERS, WRONG] {
        // As it is, and as a list of bytes.
        let bytes = format!("{:?}", secret.as_bytes());
        let bytes = bytes.trim_matches(['[', ']']);
        for place in [&ran.stdout, &ran.stderr] {
            assert!(!place.contains(secret) && !place.contains(bytes), "{args:?} shows a secret");
        }
    }
    ran
}

#[test]
fn secrets_are_proven_and_never_shown() {
    let accounts = vec![("alice", SECRET), ("targ", OTHERS)];
    let target = Target { accounts, ..Target::new("chap", 1 << 20) };
    let Some(tgt) = or_skip(Tgt::start("tgt-chap", vec![target])) else { return };
    let url = tgt.url("chap");
    let with = |who: &str, parameters: &str| url.replace("//", &format!("//{who}@")) + parameters;
    let file = tgt.scratch("password");
    std::fs::write(&file, format!("{SECRET}\n")).unwrap();
    let by_file = format!("?password_file={}", file.display());

    let right = [("NETSWAP_CHAP_PASSWORD", SECRET)];
    let both = [right[0], ("NETSWAP_CHAP_TARGET_PASSWORD", OTHERS)];
    let in_url =
        with(&format!("alice%{SECRET}"), &format!("?target_user=targ&target_password={OTHERS}"));
    for (what, url, variables) in [
        ("the environment", with("alice", ""), &right[..]),
        ("a file", with("alice", &by_file), &[]),
        ("the URL, both ways", in_url.clone(), &[]),
        ("the environment, both ways", with("alice", "?target_user=targ"), &both),
    ] {
        let made = netswap(&["mkswap", &url, "--force", "--json"], variables);
        assert_eq!(made.code, 0, "{what}: {made:?}");
        let load = ["--rw", "mixed", "--qd", "4", "--ops", "100", "--verify"];
        let ran = netswap(&[&["io", &url], &load[..]].concat(), variables);
        assert_eq!(ran.code, 0, "{what}: {ran:?}");
        let fit = netswap(&["check", &url, "--allow-local", "--json"], variables);
        assert_eq!(fit.code, 0, "{what}: {fit:?}");
        let host = ["--ram", "256KiB", "--overcommit", "1.2", "--rounds", "1", "--json"];
        let ran = netswap(&[&["sim", "--backend", &url], &host[..]].concat(), variables);
        assert!(ran.code == 0 || ran.code == 2, "{what}: {ran:?}");
    }

    let wrong = [("NETSWAP_CHAP_PASSWORD", WRONG)];
    let theirs = [right[0], ("NETSWAP_CHAP_TARGET_PASSWORD", WRONG)];
    for (url, variables, code, said) in [
        (with("alice", ""), &wrong[..], 1, "check user@ in the URL"),
        (with("mallory", ""), &right, 1, "check user@ in the URL"),
        (url.clone(), &[], 1, "write the user into the URL"),
        (with("alice", "?target_user=targ"), &theirs, 1, "target_password_file="),
        (with("alice", "?target_user=other"), &both, 1, "target_user"),
        (with("alice", ""), &[], 2, "set NETSWAP_CHAP_PASSWORD"),
        (with("alice", "?password_file=/nowhere"), &[], 2, "/nowhere"),
        (with(&format!("alice%{SECRET}"), &by_file), &[], 2, "leave one out"),
    ] {
        let ran = netswap(&["check", &url, "--allow-local", "--wait", "3s"], variables);
        assert_eq!(ran.code, code, "{said}: {ran:?}");
        assert!(ran.stderr.contains(said), "{said}: {ran:?}");
    }

    // What is written so wrong that a secret stands in another place.
    let lost = in_url.replace("iscsi://", "iscsi:/");
    let other = in_url.replace("iscsi", "nbd");
    let misplaced = format!("{url}?{SECRET}");
    let cut = with(&format!("alice%a@{SECRET}"), "");
    let port = with(&format!("alice%a&{SECRET}:x"), "");
    for bad in [&lost, &other, &misplaced, &cut, &port] {
        let backend = format!("--backend={bad}");
        for args in [
            &["check", bad][..],
            &["mkswap", bad],
            &["ls", bad],
            &["sim", "--backend", bad],
            &["sim", &backend],
            // In places where no URL belongs: the parser repeats them.
            &["sim", bad],
            &["check", &url, bad],
            &["io", &url, "--rw", bad],
        ] {
            let ran = netswap(args, &right);
            assert!(ran.code == 1 || ran.code == 2, "{args:?}: {ran:?}");
        }
    }
    let help = netswap(&["check", "--help"], &[]);
    assert!(help.stdout.contains("/proc"), "{help:?}");
}
