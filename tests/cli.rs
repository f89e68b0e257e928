//! Goal: the command says what it does, and is strict about what it is told.
//! Method: the built binary, run as a user would.

use std::fs::File;
use std::io::Write;
use std::process::{Command, Output, Stdio};

fn netswap(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netswap")).args(args).output().unwrap()
}

fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

fn stdout(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// The lines of a JSON output, each of which has to be an object.
fn objects(output: &Output) -> Vec<serde_json::Value> {
    stdout(output).lines().map(|line| serde_json::from_str(line).expect(line)).collect()
}

/// A file of this content, gone when it is dropped.
struct Temporary(std::path::PathBuf);

impl Temporary {
    fn new(name: &str, content: &str) -> Temporary {
        let path = std::env::temp_dir().join(format!("netswap-{}-{name}", std::process::id()));
        std::fs::write(&path, content).unwrap();
        Temporary(path)
    }

    fn path(&self) -> &str {
        self.0.to_str().unwrap()
    }
}

impl Drop for Temporary {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

/// What refuses the command line: its message. Nothing is on standard output.
fn refused(args: &[&str]) -> String {
    let output = netswap(args);
    assert_eq!(output.status.code(), Some(2), "{args:?}: {}", stderr(&output));
    assert_eq!(stdout(&output), "", "{args:?}");
    stderr(&output)
}

/// Command lines that print, one of each subcommand, and the help.
const PRINTING: [&str; 9] = [
    "plan",
    "completions bash",
    "sim --ram 4MiB --overcommit 1.5 --rounds 1 --backend nfs --ablate none",
    "sim --ram 4MiB --overcommit 1.5 --rounds 1 --backend nfs --ablate none --json",
    "stress --seeds 0..2 --jobs 1 --show",
    "--help",
    "sim --help",
    "io --help",
    "check --help",
];

#[test]
fn a_reader_that_is_gone_ends_the_command_without_a_word() {
    for args in PRINTING {
        let (reader, writer) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(env!("CARGO_BIN_EXE_netswap"));
        let output =
            command.args(args.split(' ')).stdout(writer).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(0), "{args:?}: {}", stderr(&output));
        assert_eq!(stderr(&output), "", "{args:?}");
    }
}

#[test]
#[cfg(target_os = "linux")]
fn a_full_disk_is_an_error_of_one_line() {
    for args in PRINTING {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_netswap"));
        let output =
            command.args(args.split(' ')).stdout(full).stderr(Stdio::piped()).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{args:?}: {}", stderr(&output));
        let text = stderr(&output);
        assert!(text.starts_with("netswap: cannot write the output: "), "{args:?}: {text}");
        assert_eq!(text.lines().count(), 1, "{args:?}: {text}");
    }
}

#[test]
fn none_goes_alone() {
    let text = refused(&["sim", "--ablate", "none,drop"]);
    assert!(text.contains("goes alone"), "{text}");
}

#[test]
fn a_size_without_a_unit_is_told_how_to_be_written() {
    for value in ["0", "64"] {
        let text = refused(&["sim", "--ram", value]);
        assert!(text.contains("has no unit: write 64MiB"), "{text}");
    }
}

#[test]
fn a_trace_that_cannot_be_used_is_refused_once_and_before_anything_is_printed() {
    let text = refused(&["sim", "--trace", "/nonexistent/trace"]);
    assert_eq!(text.matches("trace /nonexistent/trace").count(), 1, "{text}");
    assert_eq!(text.matches("/nonexistent").count(), 1, "{text}");
    let text = refused(&["sim", "--trace", "/"]);
    assert!(text.contains("is a directory"), "{text}");
    let empty = Temporary::new("no.trace", "nothing here\n");
    let text = refused(&["sim", "--trace", empty.path()]);
    assert!(text.contains("no memory access"), "{text}");
}

#[test]
fn standard_input_that_is_no_trace_is_refused_before_anything_is_printed() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_netswap"));
    command.args(["sim", "--ram", "4MiB", "--backend", "nfs", "--trace", "-"]);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    child.stdin.take().unwrap().write_all(b"nothing here\n").unwrap();
    let output = child.wait_with_output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(stdout(&output), "");
    assert!(stderr(&output).contains("no memory access"), "{}", stderr(&output));
}

#[test]
fn a_plan_is_made_only_of_a_scenario_that_can_be_run() {
    for ring in ["100000000", "4294967295"] {
        let file = Temporary::new(ring, &format!("[host]\nrx-ring = {ring}\n"));
        for command in ["plan", "sim"] {
            let text = refused(&[command, "--scenario", file.path()]);
            assert!(text.contains("rx-ring is") && text.contains("8 to 4096"), "{text}");
        }
    }
}

#[test]
fn only_what_was_run_is_concluded() {
    let output = netswap(&["sim", "--backend", "nfs", "--ablate", "drop"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("With no drop, this load ends in the cycle printed above."), "{text}");
    assert!(!text.contains("all protections on the host never stops"), "{text}");
    assert!(!text.contains("any one of them"), "{text}");
    assert!(text.contains("until the verdict"), "{text}");
}

#[test]
fn a_run_that_drops_nothing_and_needs_nothing_says_so() {
    let mut args = SMALL.to_vec();
    args.extend(["--flood", "0", "--link-loss", "0%", "--link-reorder", "0%", "--ablate", "drop"]);
    let output = netswap(&args);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let text = stdout(&output);
    assert!(text.contains("no faults;") && text.contains("reads them 1 time\n"), "{text}");
    assert!(!text.contains("packets the host dropped"), "{text}");
    assert!(text.contains("this load never needs what is off"), "{text}");
}

#[test]
fn the_last_seeds_end_too() {
    let last = "18446744073709551614..18446744073709551615";
    let output = netswap(&["stress", "--seeds", last, "--jobs", "3"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    assert!(stdout(&output).contains("\n1 seed, 0 failed"), "{}", stdout(&output));
}

#[test]
fn what_is_shown_as_json_is_json_throughout() {
    let output = netswap(&["stress", "--seeds", "3..4", "--show", "--json"]);
    assert_eq!(output.status.code(), Some(0), "{}", stderr(&output));
    let objects = objects(&output);
    assert_eq!(objects.len(), 3, "the scenario, its row, the campaign");
    assert_eq!(objects[0]["seed"], 3);
    assert!(objects[0]["scenario"]["host"]["overcommit"].is_number());
    assert_eq!(objects[1]["row"]["outcome"], "completed");
    assert_eq!(objects[2]["seeds"], 1);
}

const SMALL: [&str; 9] =
    ["sim", "--ram", "4MiB", "--overcommit", "1.5", "--rounds", "1", "--backend", "nfs"];

#[test]
fn an_unknown_protection_is_an_error_that_lists_the_known_ones() {
    let output = netswap(&["sim", "--ablate", "drops"]);
    assert_eq!(output.status.code(), Some(2));
    let known = "reserve, tag, drop, scope, reservation, quarantine, none";
    assert!(stderr(&output).contains(known), "{}", stderr(&output));
    let script = netswap(&["completions", "bash"]);
    assert!(stdout(&script).contains("reserve tag drop scope reservation quarantine none"));
}

#[test]
fn a_protection_that_nothing_would_miss_is_not_switched_off_in_silence() {
    let text = refused(&["sim", "--ablate", "reservation"]);
    assert!(text.contains("--transaction-pages"), "{text}");
}

#[test]
fn an_allocator_trace_of_reservations_is_refused() {
    let mut args = SMALL.to_vec();
    args.extend(["--transaction-pages", "8", "--ablate", "none", "--alloc-trace", "/dev/null"]);
    let text = refused(&args);
    assert!(text.contains("no operation for reservations"), "{text}");
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
fn the_tuning_guide_shows_the_plan_as_it_is_and_names_every_reason() {
    let guide = include_str!("../docs/tuning.md");
    assert!(guide.contains(stdout(&netswap(&["plan"])).trim_end()), "its plan is stale");
    for reason in netswap::net::DropReason::ALL {
        assert!(guide.contains(&format!("| `{}` |", reason.name())), "{}", reason.name());
    }
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
    for command in
        ["sim", "stress", "plan", "completions", "mkswap", "ls", "serve nfs", "serve iscsi"]
    {
        let args: Vec<&str> = command.split(' ').chain(["--help"]).collect();
        let output = netswap(&args);
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
