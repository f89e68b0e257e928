//! Goal: over sockets of the kernel, slots that became free are given back to a thin unit, whatever becomes of connections
//! and answers meanwhile; a unit that is provisioned in full is none the worse for being asked to.
//! Method: the built binary swaps to `netswap serve iscsi`, every page verified; its file takes fewer blocks then. Again with
//! faults that end connections, keep answers back or lose them.

mod common;
mod served;

use std::os::unix::fs::MetadataExt;

use common::command::netswap;
use served::{Scratch, Server};

const BYTES: usize = 64 << 20;

/// What the run told, and the 512-byte blocks that the file of the unit has lost.
fn swaps(name: &str, serve: &[&str], parameters: &str) -> (serde_json::Value, u64) {
    let scratch = Scratch::new(name);
    let file = scratch.path("unit");
    std::fs::write(&file, vec![0x5a; BYTES]).unwrap();
    let blocks = || std::fs::metadata(&file).unwrap().blocks();
    let server = Server::of("iscsi", &[&["--file", &file, "--no-sync"], serve].concat());
    let made = netswap(&["mkswap", "--force", server.url()]);
    assert_eq!(made.code, 0, "{made:?}");
    let before = blocks();
    let url = format!("{}?{parameters}", server.url());
    let host = ["--ram", "8MiB", "--overcommit", "3", "--rounds", "1", "--tasks-per-cpu", "4"];
    let ran = netswap(&[&["sim", "--backend", &url, "--json"], &host[..]].concat());
    assert_eq!(ran.code, 0, "{name}: {ran:?}");
    let report = server.stop();
    assert_eq!(report["counts"]["breaches_of_the_protocol"], 0, "{name}: {report}");
    (ran.json(), before - blocks())
}

fn discarded(row: &serde_json::Value) -> u64 {
    row["discarded_slots"].as_u64().unwrap()
}

#[test]
fn a_thin_unit_gets_its_blocks_back() {
    for (name, serve) in
        [("plain", &[][..]), ("r2t", &["--r2t"]), ("pages", &["--block-size", "4KiB"])]
    {
        let (row, freed) = swaps(&format!("discard-{name}"), serve, "discard=on");
        assert!(discarded(&row) > 1000, "{row}");
        assert!(freed >= 8000 && freed <= discarded(&row) * 8, "{name}: {freed} blocks, {row}");
    }
    let (row, freed) = swaps("discard-off", &[], "discard=off");
    assert_eq!((discarded(&row), freed), (0, 0), "{row}");
    let (row, freed) = swaps("discard-thick", &["--thick"], "discard=on");
    assert_eq!((discarded(&row), freed), (0, 0), "{row}");
}

#[test]
fn no_page_is_lost_by_it_when_connections_and_answers_are() {
    for fault in ["cut=2%", "cut-in-header=2%", "late=5%", "busy=10%", "check-condition=10%"] {
        let serve = ["--fault", fault, "--late-by", "50ms", "--seed", "5"];
        let (row, freed) = swaps(&format!("discard-{fault}"), &serve, "discard=on");
        assert!(discarded(&row) > 1000 && freed >= 8000, "{fault}: {freed} blocks, {row}");
    }
}
