//! Goal: a page that is not what was written is an error that names slot and server, and the exit code says so.
//! Method: pages on the disk of the embedded server are damaged between two runs: the canaries of the
//! verification.

mod common;

use common::command::netswap;
use common::nfs::{Served, area};
use netswap::reserve::PAGE_SIZE;
use netswap::swap::Disk;

#[test]
fn each_kind_of_damage_is_named_with_its_slot_and_server() {
    let served = Served::new(vec![("area0", area(64))]);
    let url = served.url("area0");
    let size = ["--size", "256KiB", "--qd", "4", "--verify"];
    let written = netswap(&[&["io", &url, "--rw", "write"], &size[..]].concat());
    assert_eq!(written.code, 0, "{written:?}");
    let read = || netswap(&[&["io", &url, "--rw", "read"], &size[..]].concat());
    assert_eq!(read().code, 0, "before anything is damaged");

    // A flipped bit, a page of another slot, and one that is gone.
    served.with(|server| {
        let disk = server.disk_mut("area0").unwrap();
        let at = |slot: u64| slot * PAGE_SIZE as u64;
        let mut page = [0; PAGE_SIZE];
        disk.read_at(at(5), &mut page).unwrap();
        page[1000] ^= 1;
        disk.write_at(at(5), &page).unwrap();
        disk.read_at(at(6), &mut page).unwrap();
        disk.write_at(at(7), &page).unwrap();
        disk.write_at(at(8), &[0; PAGE_SIZE]).unwrap();
    });
    let damaged = read();
    assert_eq!(damaged.code, 1, "{damaged:?}");
    assert!(damaged.stdout.contains("60 pages verified, 3 wrong"), "{damaged:?}");
    for what in [
        "slot 5: the checksum is wrong",
        "slot 7: it is the page of slot 6",
        "slot 8: no page of a verified load",
    ] {
        let line = format!("{url}: {what}");
        assert!(damaged.stderr.contains(&line), "{line}: {damaged:?}");
    }
    let other = netswap(&[&["io", &url, "--rw", "read", "--seed", "1"], &size[..]].concat());
    assert_eq!(other.code, 1, "{other:?}");
    assert!(other.stderr.contains("it was written with --seed 0"), "{other:?}");
}
