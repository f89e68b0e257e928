//! Goal: the command says what it does, and is strict about what it is told.
//! Method: the built binary, run as a user would.

use std::process::{Command, Output};

fn netswap(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netswap")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

const SMALL: [&str; 9] =
    ["sim", "--ram", "4MiB", "--overcommit", "1.5", "--rounds", "1", "--backend", "nfs"];

#[test]
fn an_unknown_protection_is_an_error_that_lists_the_known_ones() {
    let output = netswap(&["sim", "--ablate", "drops"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("reserve, tag, drop, scope, none"), "{}", stderr(&output));
}

#[test]
fn an_unknown_backend_or_option_is_an_error() {
    let output = netswap(&["sim", "--backend", "nbd"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("nfs, iscsi, both"), "{}", stderr(&output));
    assert_eq!(netswap(&["sim", "--abblate", "drop"]).status.code(), Some(2));
}

#[test]
fn a_host_too_small_for_its_plan_is_refused_with_the_plan() {
    let output = netswap(&["sim", "--ram", "1MiB"]);
    assert_eq!(output.status.code(), Some(2));
    let text = stderr(&output);
    assert!(text.contains("too small") && text.contains("ring"), "{text}");
}

#[test]
fn json_is_one_object_a_row() {
    let mut args = SMALL.to_vec();
    args.extend(["--ablate", "none", "--json"]);
    let output = netswap(&args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = String::from_utf8(output.stdout).unwrap();
    let rows: Vec<serde_json::Value> =
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(rows.len(), 1);
    assert_eq!(rows[0]["backend"], "nfs");
    assert_eq!(rows[0]["ablate"], serde_json::json!([]));
    assert_eq!(rows[0]["outcome"], "completed");
    assert!(rows[0]["pages_verified"].as_u64().unwrap() > 0);
    assert_eq!(rows[0]["trace_hash"].as_str().unwrap().len(), 16);
}

#[test]
fn the_sizing_answer_is_printed_before_anything_is_swapped() {
    let output = netswap(&["plan"]);
    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stdout).contains("ring"));
}

#[test]
fn a_short_campaign_counts_its_seeds_and_its_faults() {
    let output = netswap(&["stress", "--seeds", "0..3", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", String::from_utf8_lossy(&output.stdout));
    let text = String::from_utf8(output.stdout).unwrap();
    let summary: serde_json::Value = serde_json::from_str(text.lines().last().unwrap()).unwrap();
    assert_eq!(summary["seeds"], 3);
    assert_eq!(summary["failed"], serde_json::json!([]));
}

#[test]
fn every_subcommand_helps_with_examples() {
    for command in ["sim", "stress", "plan", "completions"] {
        let output = netswap(&[command, "--help"]);
        assert_eq!(output.status.code(), Some(0));
        assert!(String::from_utf8_lossy(&output.stdout).contains("Example"), "{command}");
    }
}

#[test]
fn an_allocator_trace_is_of_one_row_and_replays() {
    let path = std::env::temp_dir().join(format!("netswap-cli-{}.tr.zst", std::process::id()));
    let file = path.to_str().unwrap();
    let output = netswap(&["sim", "--alloc-trace", file]);
    assert_eq!(output.status.code(), Some(2));
    assert!(stderr(&output).contains("10 would run"), "{}", stderr(&output));
    assert!(!path.exists());

    let small = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/data/alloc-small.toml");
    let mut args = vec!["sim", "--scenario", small, "--backend", "iscsi", "--ablate", "none"];
    args.extend(["--alloc-trace", file]);
    let output = netswap(&args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let output = netswap(&["replay", "--model", "--json", file]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let report: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert!(report["charged"].as_u64().unwrap() > 0, "{report}");
    assert_eq!(report["compared_with_model"], true);

    let bytes = std::fs::read(&path).unwrap();
    std::fs::write(&path, &bytes[..bytes.len() / 2]).unwrap();
    let output = netswap(&["replay", file]);
    std::fs::remove_file(&path).unwrap();
    assert_eq!(output.status.code(), Some(2), "a trace that was cut");
    assert_eq!(netswap(&["replay", small]).status.code(), Some(2), "no trace");
}
