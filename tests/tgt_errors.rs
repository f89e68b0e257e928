//! Goal: a unit that cannot be used is a typed error that says what to do: target unknown, LUN absent, unit read-only, too
//! small, shorter than its area, of other content; blocks of 512 and of 4096 bytes both work.
//! Method: the built binary against tgt.

mod common;

use std::fs::File;

use common::command::{Ran, netswap};
use common::skip::or_skip;
use common::tgt::{Target, Tgt};

const MIB: u64 = 1 << 20;

fn said(ran: &Ran, code: i32, parts: &[&str]) {
    assert_eq!(ran.code, code, "{ran:?}");
    for part in parts {
        assert!(ran.stderr.contains(part) || ran.stdout.contains(part), "{part}: {ran:?}");
    }
}

/// Everything in one test: starting a server takes longest.
#[test]
fn what_cannot_be_used_says_why_and_what_to_do() {
    let targets = vec![
        Target::new("t1", 4 * MIB),
        Target { block: 4096, ..Target::new("t4k", 4 * MIB) },
        Target { is_read_only: true, ..Target::new("fixed", 4 * MIB) },
        Target::new("letters", 4 * MIB),
        Target::new("tiny", MIB / 64),
    ];
    let Some(mut tgt) = or_skip(Tgt::start("tgt-errors", targets)) else { return };
    let load = ["--rw", "mixed", "--qd", "16", "--ops", "500", "--verify"];
    let io = |url: &str| netswap(&[&["io", url], &load[..]].concat());

    for name in ["t1", "t4k"] {
        let url = tgt.url(name);
        said(&io(&url), 1, &["no SWAPSPACE2 signature", "netswap mkswap"]);
        said(
            &netswap(&["mkswap", &url, "--size", "8MiB"]),
            2,
            &["1024 pages", "give 4096KiB at most"],
        );
        // A part of a unit will do, and all of it is what there is without a size.
        said(&netswap(&["mkswap", &url, "--size", "2MiB"]), 0, &["512 pages"]);
        said(&netswap(&["mkswap", &url]), 2, &["is a swap area already", "--force"]);
        said(&netswap(&["mkswap", &url, "--force"]), 0, &["1024 pages"]);
        said(&io(&url), 0, &["0 wrong"]);
        said(&netswap(&["check", &url]), 1, &["this very host"]);
        let fit = netswap(&["check", &url, "--allow-local"]);
        said(
            &fit,
            0,
            &[
                "\nfit to swap on",
                "a disk, IET VIRTUAL-DISK",
                "bursts up to",
                "FUA",
                "of headers: none, of data: none",
            ],
        );
        let host = ["--ram", "1MiB", "--overcommit", "2", "--rounds", "1"];
        said(&netswap(&[&["sim", "--backend", &url], &host[..]].concat()), 0, &["completed"]);
    }

    let portal = format!("iscsi://127.0.0.1:{}", tgt.port());
    said(&netswap(&["ls", &portal]), 0, &[&tgt.target("t1"), &tgt.target("tiny"), "127.0.0.1:"]);
    let units = format!("{portal}/{}", tgt.target("t4k"));
    said(&netswap(&["ls", &units]), 0, &["disk", "IET", "4096", "4MiB"]);
    let units = netswap(&["ls", &units, "--json"]);
    said(&units, 0, &["\"lun\":1", "\"size\":4194304"]);
    said(&netswap(&["ls", &format!("{portal}/iqn.no.such")]), 1, &["there is no such target"]);

    let created = netswap(&["io", &tgt.url("t1"), "--rw", "write", "--create", "1MiB"]);
    said(&created, 2, &["cannot be made from here", "netswap mkswap"]);
    said(&io(&tgt.url("nobody")), 1, &["there is no such target", "netswap ls iscsi://"]);
    let absent = tgt.url("t1").replace(":t1/1", ":t1/5");
    said(&io(&absent), 1, &["there is no such LUN", "netswap ls iscsi://"]);
    said(&io(&tgt.url("tiny")), 1, &["no SWAPSPACE2 signature"]);
    said(&netswap(&["mkswap", &tgt.url("tiny")]), 1, &["at least 40KiB"]);

    std::fs::write(tgt.file("letters"), vec![b'a'; 4 * MIB as usize]).unwrap();
    said(&netswap(&["mkswap", &tgt.url("letters")]), 2, &["is not zero", "--force"]);
    assert!(std::fs::read(tgt.file("letters")).unwrap().iter().all(|byte| *byte == b'a'));

    // As if a restored copy was too short.
    tgt.kill();
    File::options().write(true).open(tgt.file("t1")).unwrap().set_len(2 * MIB).unwrap();
    tgt.start_server().unwrap();
    said(&io(&tgt.url("t1")), 1, &["512 pages, and the area in it 1024", "grow it"]);
    let checked = netswap(&["check", &tgt.url("t1"), "--allow-local"]);
    said(&checked, 1, &["it was cut short", "NOT fit to swap on"]);

    said(&netswap(&["mkswap", &tgt.url("fixed")]), 1, &["make the LUN writable"]);
}
