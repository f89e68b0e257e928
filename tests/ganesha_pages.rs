//! Goal: pages written to a server that others wrote come back as they were, in any order, and a client that others wrote
//! reads the same file.
//! Method: nfs-ganesha; every slot written in batches, read one by one in random order, each compared whole; then
//! the file by `nfs-cp` (libnfs), or from the export's folder where that is not installed, page by page.

mod common;

use std::process::Command;

use common::daemon::which;
use common::ganesha::Ganesha;
use common::pages::{compare, read_all, write_all};
use common::proof::{POLICIES, is_campaign};
use common::skip::or_skip;
use netswap::real::{OpenOptions, RealStore, StoreUrl};
use netswap::reserve::PAGE_SIZE;

fn written_and_read(policy: &str) {
    let Some(ganesha) = or_skip(Ganesha::start("pages")) else { return };
    let slots: u32 = if is_campaign() { 1 << 18 } else { 1 << 13 };
    let url: StoreUrl = (ganesha.url("area0") + policy).parse().unwrap();
    let bytes = u64::from(slots) * PAGE_SIZE as u64;
    let options = OpenOptions { create_bytes: Some(bytes), ..OpenOptions::default() };
    let mut store = RealStore::open(&url, &options).unwrap();
    write_all(&mut store);
    read_all(&mut store);
    store.shutdown();

    let mut file = ganesha.export().join("area0");
    if which("nfs-cp") {
        let copy = ganesha.export().with_file_name("copy");
        let out = Command::new("nfs-cp").arg(ganesha.url("area0")).arg(&copy).output().unwrap();
        assert!(out.status.success(), "nfs-cp: {out:?}");
        file = copy;
    } else {
        eprintln!("nfs-cp is not installed: the file is read from the export's folder");
    }
    compare(&file, slots);
}

#[test]
fn pages_come_back_in_any_order_and_another_client_reads_them() {
    POLICIES.into_iter().for_each(written_and_read);
}
