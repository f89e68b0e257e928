//! Goal: a real unit gets slots back that became free, and no page is lost by it; one that takes no UNMAP, or is not
//! asked, is none the worse for it. What is sent is what RFC 7143 says.
//! Method: the built binary swaps to tgt, whose file then takes fewer blocks; without `discard=on`; on a unit of tgt that is
//! provisioned in full; on istgt, which has no UNMAP; and on tgt behind a proxy that cuts connections, with tshark as the judge.

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use std::sync::Arc;

use common::command::{Ran, netswap};
use common::iscsi_wire::judge;
use common::istgt::Istgt;
use common::proxy::{Cuts, Proxy};
use common::record_log::{Protocol, RecordLog};
use common::skip::or_skip;
use common::tgt::{Target, Tgt};
use common::tshark::has_judge;

const BYTES: u64 = 64 << 20;
/// A host that pages out most of this much, and gives all of it up at the end.
const HOST: [&str; 8] =
    ["--ram", "8MiB", "--overcommit", "3", "--rounds", "1", "--tasks-per-cpu", "4"];

fn swaps_to(url: &str) -> serde_json::Value {
    let ran = netswap(&[&["sim", "--backend", url, "--json"], &HOST[..]].concat());
    assert_eq!(ran.code, 0, "{ran:?}");
    let row = ran.json();
    assert!(row["page_outs"].as_u64().unwrap() > 1000, "{row}");
    row
}

/// Every block of the file is there, and it is an area.
fn filled(file: &Path, url: &str) -> u64 {
    fs::write(file, vec![0x5a; BYTES as usize]).unwrap();
    let ran = netswap(&["mkswap", "--force", url]);
    assert_eq!(ran.code, 0, "{ran:?}");
    blocks(file)
}

fn blocks(file: &Path) -> u64 {
    fs::metadata(file).unwrap().blocks()
}

fn told(url: &str) -> Ran {
    netswap(&["check", url, "--json"])
}

#[test]
fn the_file_of_a_thin_unit_shrinks() {
    let thick = Target { is_thin: false, ..Target::new("thick", BYTES) };
    let targets = vec![Target::new("t1", BYTES), thick];
    let Some(tgt) = or_skip(Tgt::start("tgt-discard", targets)) else { return };
    let (url, file) = (tgt.url("t1"), tgt.file("t1"));
    let before = filled(&file, &url);
    let row = swaps_to(&url);
    assert_eq!((row["discards"].as_u64(), blocks(&file)), (Some(0), before), "it was not asked to");
    let row = swaps_to(&format!("{url}?discard=on"));
    let (discards, slots) =
        (row["discards"].as_u64().unwrap(), row["discarded_slots"].as_u64().unwrap());
    assert!(discards > 0 && slots > 1000, "{row}");
    let freed = before - blocks(&file);
    assert!(freed >= 1000 * 8 && freed <= slots * 8, "{freed} blocks of 512 bytes, {row}");
    // What is discarded reads as something, and the area is one still.
    swaps_to(&format!("{url}?discard=on"));
    let said = told(&format!("{url}?discard=on")).json();
    assert_eq!(said["discard"]["used"], true, "{said}");

    let (url, file) = (tgt.url("thick") + "?discard=on", tgt.file("thick"));
    let before = filled(&file, &url);
    let row = swaps_to(&url);
    assert_eq!((row["discards"].as_u64(), blocks(&file)), (Some(0), before), "thick: {row}");
    assert_eq!(told(&url).json()["discard"]["unmap"], false);
}

#[test]
fn connections_that_are_cut_lose_no_page_by_it() {
    let Some(tgt) = or_skip(Tgt::with_area("tgt-discard-cut", BYTES)) else { return };
    let before = filled(&tgt.file("t1"), &tgt.url("t1"));
    let pcap = tgt.scratch("sent.pcap");
    let log = Arc::new(RecordLog::new(&pcap, Protocol::Iscsi));
    // All along: the host moves 30 MB and more.
    let proxy = Proxy::start(tgt.port(), &log, Cuts::new(11, 40, 700_000));
    let row = swaps_to(&(tgt.url_at("t1", proxy.port()) + "?discard=on"));
    let (cuts, _) = proxy.cuts();
    drop(proxy);
    log.finish();
    assert!(cuts > 10, "{cuts} cuts, {row}");
    assert!(row["discarded_slots"].as_u64().unwrap() > 1000, "{row}");
    assert!(before - blocks(&tgt.file("t1")) >= 1000 * 8, "{row}");
    if has_judge() {
        let verdict = judge(&pcap, tgt.port());
        assert!(verdict.is_fine() && verdict.commands > 500, "{verdict:?}");
    }
}

#[test]
fn a_target_without_unmap_is_none_the_worse() {
    let Some(istgt) = or_skip(Istgt::with_area("istgt-discard", BYTES)) else { return };
    let url = istgt.url() + "?discard=on";
    let before = filled(&istgt.file(), &url);
    let row = swaps_to(&url);
    assert_eq!((row["discards"].as_u64(), blocks(&istgt.file())), (Some(0), before), "{row}");
}
