//! Goal: the embedded target does what libiscsi's test suite of targets wants, for all that it claims to do; what the
//! suite skips, and then counts as passed, is known by name.
//! Method: `iscsi-test-cu -d -s -n -v --test=ALL.*` against `netswap serve iscsi`; the names of failed and skipped tests are
//! compared with the reviewed list `tests/data/iscsi_test_cu.txt`. The same run against tgt stands beside it in the
//! table that is printed. `-s`, `-n` and `-v` change what is printed, not what is tested: with `-v` each test is named.
//! Without the programs the test says that it was skipped.

mod common;
mod served;

use std::collections::BTreeMap;
use std::io::Write;
use std::process::Command;

use common::skip::or_skip;
use common::tgt::{Target, Tgt};
use served::{Server, installed};

/// How a test ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum End {
    Passed,
    Skipped,
    Failed,
}

type Ends = BTreeMap<String, End>;

/// Runs tests of the suite on a unit that may be overwritten, reached by one URL or two.
fn run_suite(tests: &str, urls: &[&str]) -> Ends {
    // It connects again for ever to a target that does not answer.
    let output = Command::new("timeout")
        .args(["200", "iscsi-test-cu", "-d", "-s", "-n", "-v", &format!("--test={tests}")])
        .args(urls)
        .output()
        .unwrap();
    let told = String::from_utf8_lossy(&output.stdout).into_owned();
    let ends = read_ends(&told);
    let ran = told.lines().find_map(|line| line.trim().strip_prefix("tests")).unwrap_or("");
    let counted: Vec<usize> = ran.split_whitespace().filter_map(|word| word.parse().ok()).collect();
    assert!(counted.len() >= 4, "{}: the suite did not end: {told}", output.status);
    let failed = ends.values().filter(|end| **end == End::Failed).count();
    assert_eq!((counted[1], counted[3]), (ends.len(), failed), "read otherwise than counted");
    ends
}

/// What the suite prints: `Suite: NAME`, then `  Test: NAME ...` with whatever the test has to say, and `passed` or
/// `FAILED` at the end of it.
fn read_ends(told: &str) -> Ends {
    let mut ends = Ends::new();
    let mut suite = "";
    let mut at: Option<(String, bool)> = None;
    for line in told.lines() {
        let line = line.trim_start();
        if let Some(name) = line.strip_prefix("Suite: ") {
            (suite, at) = (name.trim(), None);
            continue;
        }
        let mut rest = line;
        if let Some((name, says)) = line.strip_prefix("Test: ").and_then(|l| l.split_once(" ...")) {
            at = Some((format!("{suite}.{name}"), false));
            rest = says;
        }
        let Some((name, skipped)) = &mut at else { continue };
        let end = match rest {
            _ if rest.starts_with("passed") && *skipped => Some(End::Skipped),
            _ if rest.starts_with("passed") => Some(End::Passed),
            _ if rest.starts_with("FAILED") => Some(End::Failed),
            _ => None,
        };
        // What follows the end of a test is not the test's.
        match end {
            Some(end) => {
                ends.insert(std::mem::take(name), end);
                at = None;
            }
            None => *skipped |= rest.contains("[SKIPPED]"),
        }
    }
    ends
}

fn count(ends: &Ends, end: End) -> usize {
    ends.values().filter(|e| **e == end).count()
}

fn print(table: &str) {
    // Not by a macro: the harness would show it for tests that fail only.
    let _ = write!(std::io::stderr(), "{table}");
}

/// The reviewed names of `word`.
fn reviewed(list: &str, word: &str) -> Vec<String> {
    let names = list.lines().filter_map(|line| line.strip_prefix(word)?.split_whitespace().next());
    names.map(str::to_string).collect()
}

#[test]
fn the_target_passes_all_that_it_claims_to_do() {
    let programs = [("iscsi-test-cu", "libiscsi-bin"), ("timeout", "coreutils")];
    if or_skip(installed(&programs)).is_none() {
        return;
    }
    let server = Server::of("iscsi", &["--memory", "256MiB"]);
    let ours = run_suite("ALL.*", &[server.url()]);
    let report = server.stop();
    // As it is packaged: with the keys of its own.
    let unit = Target { keys: Vec::new(), ..Target::new("t1", 256 << 20) };
    let theirs = Tgt::start("cu", vec![unit]).map(|tgt| run_suite("ALL.*", &[&tgt.url("t1")]));
    let mut table = format!("{:<10} {:>7} {:>7} {:>7}\n", "target", "passed", "skipped", "failed");
    for (name, ends) in [("netswap", Some(&ours)), ("tgt", theirs.as_ref().ok())] {
        let Some(ends) = ends else { continue };
        let [passed, skipped, failed] =
            [End::Passed, End::Skipped, End::Failed].map(|end| count(ends, end));
        table += &format!("{name:<10} {passed:>7} {skipped:>7} {failed:>7}\n");
    }
    if let Err(why) = &theirs {
        table += &format!("tgt: {why}\n");
    }
    print(&table);

    let list = include_str!("data/iscsi_test_cu.txt");
    for (word, end) in [("failed ", End::Failed), ("skipped ", End::Skipped)] {
        let got: Vec<_> =
            ours.iter().filter(|(_, e)| **e == end).map(|(name, _)| name.clone()).collect();
        let mut want = reviewed(list, word);
        want.sort();
        assert_eq!(got, want, "{word}: not the reviewed list");
    }
    assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{report}");
}

#[test]
fn what_needs_two_paths_or_a_write_protected_unit_passes_too() {
    let programs = [("iscsi-test-cu", "libiscsi-bin"), ("timeout", "coreutils")];
    if or_skip(installed(&programs)).is_none() {
        return;
    }
    for (tests, args, twice, n) in [
        ("ALL.MultipathIO.*", &["--memory", "64MiB"][..], true, 4),
        ("ALL.ReadOnly.*", &["--memory", "64MiB", "--read-only"], false, 1),
    ] {
        let server = Server::of("iscsi", args);
        let urls = vec![server.url(); if twice { 2 } else { 1 }];
        let ends = run_suite(tests, &urls);
        assert_eq!(count(&ends, End::Passed), n, "{tests}: {ends:?}");
        assert_eq!(server.stop()["counts"]["breaches_of_the_protocol"], 0);
    }
}

#[test]
fn what_the_suite_prints_is_read_as_it_is_meant() {
    let told = "Suite: One\n  Test: A ...passed\n  Test: B ...    [SKIPPED] no\npassed    [SKIPPED] later\n\
                Suite: Two\n  Test: A ...    [FAILED] why\nFAILED\n    1. file.c:1  - CU\n  Test: C ...passed\n";
    let ends = read_ends(told);
    let want = [
        ("One.A", End::Passed),
        ("One.B", End::Skipped),
        ("Two.A", End::Failed),
        ("Two.C", End::Passed),
    ];
    assert_eq!(ends, want.map(|(name, end)| (name.to_string(), end)).into());
}
