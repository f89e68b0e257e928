//! Goal: `netswap check` tells a file that is fit to swap on from one that is not, by its exit code too, and writes
//! nothing but the header it has read.
//! Method: the built binary against the embedded server on the loopback, and against nobody.

mod common;

use std::net::TcpListener;

use common::command::netswap;
use common::nfs::{Served, area, area_in};
use netswap::reserve::PAGE_SIZE;
use netswap::swap::{Disk, MemDisk};

#[test]
fn an_area_is_fit_but_for_the_server_being_here() {
    let served = Served::new(vec![("area0", area(256))]);
    let url = served.url("area0");
    let local = netswap(&["check", &url]);
    assert_eq!(local.code, 1, "{local:?}");
    assert!(local.stdout.contains("this very host"), "{local:?}");
    assert!(local.stdout.ends_with("NOT fit to swap on\n"), "{local:?}");

    let fit = netswap(&["check", &url, "--allow-local"]);
    assert_eq!(fit.code, 0, "{fit:?}");
    for said in [
        "NFS (program 100003) version 3 on port ",
        "READ up to 64KiB, best 64KiB",
        "SWAPSPACE2, an area of 1MiB",
        "none: 1MiB used of 1MiB",
        "with the verifier of the write",
        "IO flusher",
        "\nfit to swap on\n",
    ] {
        assert!(fit.stdout.contains(said), "{said}: {fit:?}");
    }
    let json = netswap(&["check", &url, "--allow-local", "--json"]).json();
    assert_eq!(
        (json["fit"].as_bool(), json["limits"]["wtmax"].as_u64()),
        (Some(true), Some(65_536))
    );
    assert!(json["latency"]["write_committed_us"].as_f64().unwrap() > 0.0, "{json}");
}

#[test]
fn a_file_without_a_header_is_not_fit_and_not_written() {
    let served = Served::new(vec![("letters", MemDisk::new(64 * PAGE_SIZE as u64))]);
    let ran = netswap(&["check", &served.url("letters"), "--allow-local"]);
    assert_eq!(ran.code, 1, "{ran:?}");
    assert!(ran.stdout.contains("no SWAPSPACE2 signature"), "{ran:?}");
    assert!(ran.stdout.contains("not tried: without a header"), "{ran:?}");
    assert_eq!(served.with(|server| server.stats().writes), 0);
    let absent = netswap(&["check", &served.url("nothing")]);
    assert_eq!(absent.code, 1, "{absent:?}");
    assert!(absent.stderr.contains("netswap mkswap"), "{absent:?}");
}

#[test]
fn an_area_that_is_shorter_than_its_store_is_what_is_looked_at() {
    let served = Served::new(vec![("area0", area_in(4096, 256))]);
    let url = served.url("area0");
    let fit = netswap(&["check", &url, "--allow-local"]);
    assert_eq!(fit.code, 0, "{fit:?}");
    let slots =
        "pages of 4KiB: 256, 1MiB in all; the area takes no more of the 4096, 16MiB, of its store";
    assert!(fit.stdout.contains(slots), "{fit:?}");
    let json = netswap(&["check", &url, "--allow-local", "--json"]).json();
    assert_eq!((&json["slots"], &json["store_slots"]), (&256.into(), &4096.into()), "{json}");
}

#[test]
fn what_is_written_is_the_header_as_it_was() {
    let served = Served::new(vec![("area0", area(64))]);
    let content = || {
        served.with(|server| {
            let mut bytes = vec![0; 64 * PAGE_SIZE];
            server.disk_mut("area0").unwrap().read_at(0, &mut bytes).unwrap();
            bytes
        })
    };
    let before = content();
    let url = served.url("area0");
    let quiet = netswap(&["check", &url, "--allow-local", "--no-write"]);
    assert_eq!(quiet.code, 0, "{quiet:?}");
    assert_eq!(served.with(|server| server.stats().writes), 0);
    assert_eq!(netswap(&["check", &url, "--allow-local"]).code, 0);
    assert_eq!(served.with(|server| server.stats().writes), 2);
    assert!(content() == before, "the file has changed");
}

#[test]
fn nobody_there_and_no_answer_are_told_apart_from_a_wrong_command_line() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let nobody = netswap(&["check", &format!("nfs://{closed}/swap/area0"), "--wait", "1s"]);
    assert_eq!(nobody.code, 3, "{nobody:?}");
    assert!(
        nobody.stderr.contains("onnection refused") && nobody.stderr.contains("check that"),
        "{nobody:?}"
    );

    let silent = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("nfs://{}/swap/area0", silent.local_addr().unwrap());
    let silent = netswap(&["check", &url, "--wait", "1s"]);
    assert_eq!(silent.code, 3, "{silent:?}");
    assert!(silent.stderr.contains("does not answer"), "{silent:?}");
}

#[test]
fn a_list_that_nobody_gives_is_no_refusal() {
    let closed = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let silent = listener.local_addr().unwrap();
    let served = Served::new(vec![("area0", area(64))]);
    let mount = served.addr.port();
    for (url, hint) in [
        (format!("nfs://{closed}/swap"), "check the address"),
        (format!("nfs://{silent}/swap"), "check the address"),
        (format!("nfs://127.0.0.1/swap?nfsport={}&mountport={mount}", closed.port()), "nfsport="),
        (format!("nfs://127.0.0.1/swap?nfsport={}&mountport={mount}", silent.port()), "nfsport="),
        (format!("iscsi://{closed}"), "check the address"),
        (format!("iscsi://{silent}"), "the port is that of a portal"),
    ] {
        let ran = netswap(&["ls", &url, "--timeout", "300ms"]);
        assert_eq!(ran.code, 3, "{url}: {ran:?}");
        assert!(ran.stderr.contains(hint), "{url}: {ran:?}");
    }
}

#[test]
fn a_wrong_command_line_says_what_is_right() {
    for (args, hint) in [
        (&["check", "area0"][..], "is no URL: write nfs://host"),
        (&["check", "nbd://h/e/f"], "known: nfs"),
        (&["check", "nfs://h/e/f", "--wait", "1 fortnight"], "known: ns, us, ms, s"),
        (&["io", "nfs://h/e/f", "--rw", "backwards"], "randread"),
        (&["io", "nfs://h/e/f", "--rw", "read", "--bs", "5KiB"], "a multiple of 4KiB up to 64KiB"),
        (&["io", "nfs://h/e/f", "--rw", "read", "--qd", "0"], "1..=4096"),
    ] {
        let ran = netswap(args);
        assert_eq!(ran.code, 2, "{ran:?}");
        assert!(ran.stderr.contains(hint), "{args:?}: {ran:?}");
    }
}
