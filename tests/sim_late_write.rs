//! Goal: the command pages over a server that carries a WRITE out again after a newer one to the same place. With
//! the quarantine every page is right; with `--ablate quarantine` the same script ends in a checksum error.
//! Method: the built binary against the embedded server behind a proxy. Again and again the server puts a WRITE aside,
//! the proxy cuts the connection, the client repeats the call, and when the host has stored all its pages anew, the old one
//! is carried out. (The same script on
//! virtual time, over the client and the pager without a command: `nfs-swap/tests/late_pages.rs`.)

mod common;

use std::sync::Arc;
use std::thread::ScopedJoinHandle;
use std::time::{Duration, Instant};

use common::command::{Ran, netswap};
use common::nfs::{Served, area};
use common::proxy::{Cuts, Proxy};
use common::record_log::{Protocol, RecordLog};
use netswap::nfs::{NfsServerConfig, ServerFaults};
use netswap::reserve::{Span, Time};

/// Twice what the host maps, so that the quarantine has its room.
const SLOTS: u32 = 4096;
/// Little more than the host maps: freed slots are used again at once.
const SLOTS_TIGHT: u32 = 2100;
/// WRITEs that are put aside each time.
const HELD: u64 = 6;
/// An old WRITE waits until the test has it carried out.
const HELD_FOR: Span = Span::from_secs(3600);
/// WRITEs that are carried out before it: of several pages each, so the host stores all that it has, several times.
const WRITES_BETWEEN: u64 = 1500;
/// Times that the script is run with the quarantine, if the host lasts so long, and rounds of the host.
const KEPT: (u64, &str) = (6, "100");
/// As above, without it. An old page is found only if its slot is in use again and read before it is written, so the
/// host goes on until that happens: how often it takes depends on how busy the machine is.
const ABLATED: (u64, &str) = (60, "1000");

/// Waits until `is_so`, or the host has ended.
fn wait(host: &ScopedJoinHandle<'_, Ran>, mut is_so: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is_so() && !host.is_finished() {
        assert!(begun.elapsed() < Duration::from_secs(60), "it does not happen");
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// What the host said at its end, and how many old WRITEs were carried out.
fn page(name: &str, slots: u32, (times, rounds): (u64, &str), more: &[&str]) -> (Ran, u64) {
    // Nothing is remembered: a call over another connection is a new one, as with nfs-ganesha.
    let config =
        NfsServerConfig { held: HELD as usize, remembered: 0, ..NfsServerConfig::default() };
    let served = Served::with_config(config, vec![("area0", area(slots))]);
    let file = format!("netswap-late-{name}-{}.pcap", std::process::id());
    let file = std::env::temp_dir().join(file);
    let log = Arc::new(RecordLog::new(&file, Protocol::Rpc));
    let _ = std::fs::remove_file(&file);
    let proxy = Proxy::start(served.addr.port(), &log, Cuts::none());
    let url = format!("nfs://127.0.0.1:{}/swap/area0", proxy.port());
    let host = [
        "sim",
        "--backend",
        &url,
        "--ram",
        "4MiB",
        "--overcommit",
        "2",
        "--rounds",
        rounds,
        "--dirty",
        "100",
        "--tasks-per-cpu",
        "4",
        "--json",
    ];
    let ran = std::thread::scope(|scope| {
        let host = scope.spawn(|| netswap(&[&host, more].concat()));
        for time in 0..times {
            if host.is_finished() {
                break;
            }
            let writes = served.with(|server| server.stats().writes);
            wait(&host, || served.with(move |server| server.stats().writes > writes + 100));
            served.with(|server| {
                let held =
                    ServerFaults { held_ppm: 1_000_000, held_for: HELD_FOR, ..Default::default() };
                server.set_faults(held);
            });
            wait(&host, || {
                served.with(move |server| {
                    let is_held = server.fault_counts().held >= HELD * (time + 1);
                    if is_held {
                        server.set_faults(ServerFaults::default());
                    }
                    is_held
                })
            });
            proxy.cut_all();
            let writes = served.with(|server| server.stats().writes);
            wait(&host, || {
                served.with(move |server| server.stats().writes > writes + WRITES_BETWEEN)
            });
            served.with(|server| server.carry_out_held(Time::MAX));
        }
        served.with(|server| server.set_faults(ServerFaults::default()));
        host.join().unwrap()
    });
    (ran, served.with(|server| server.fault_counts().held_done))
}

#[test]
fn with_the_quarantine_every_page_is_right() {
    let (ran, done) = page("kept", SLOTS, KEPT, &[]);
    assert_eq!(ran.code, 0, "{ran:?}");
    let row = ran.json();
    assert_eq!(
        (&row["outcome"], &row["checksum_errors"]),
        (&"completed".into(), &0.into()),
        "{row}"
    );
    assert!(
        row["quarantined_slots"].as_u64() > Some(0) && row["pages_verified"].as_u64() > Some(0)
    );
    assert!(done >= 2, "{done} old WRITEs were carried out: {row}");
}

#[test]
fn without_it_the_checksum_finds_the_old_page() {
    let (ran, done) = page("ablated", SLOTS_TIGHT, ABLATED, &["--ablate", "quarantine"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    let row = ran.json();
    assert_eq!(
        (&row["outcome"], &row["quarantined_slots"]),
        (&"corrupt".into(), &0.into()),
        "{row}"
    );
    assert!(row["checksum_errors"].as_u64() > Some(0), "{row}");
    assert!(row["reason"].as_str().unwrap().contains("is damaged"), "{row}");
    assert!(done >= 1);
}
