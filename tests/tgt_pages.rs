//! Goal: pages written to tgt come back as they were, in any order, and a client that others wrote reads the same unit.
//! Method: every slot written in batches, read one by one in random order, each compared whole; then the unit by
//! `qemu-img convert` (libiscsi), or from the target's file where that is not installed, page by page, and by
//! `qemu-img compare` with the target's file.

mod common;

use common::pages::{compare, read_all, write_all};
use common::proof::{LUN_POLICIES, is_campaign};
use common::qemu;
use common::skip::or_skip;
use common::tgt::Tgt;
use netswap::real::{OpenOptions, RealStore, StoreUrl};
use netswap::reserve::PAGE_SIZE;

fn written_and_read(policy: &str) {
    let slots: u32 = if is_campaign() { 1 << 18 } else { 1 << 12 };
    let bytes = u64::from(slots) * PAGE_SIZE as u64;
    let Some(tgt) = or_skip(Tgt::with_area("tgt-pages", bytes)) else { return };
    let url: StoreUrl = (tgt.url("t1") + policy).parse().unwrap();
    let mut store = RealStore::open(&url, &OpenOptions::default()).unwrap();
    assert_eq!(store.slots(), slots);
    write_all(&mut store);
    read_all(&mut store);
    store.shutdown();
    let file = qemu::read_back(&tgt.url("t1"), &tgt.file("t1"), &tgt.scratch("copy"));
    compare(&file, slots);
}

#[test]
fn pages_come_back_in_any_order_and_another_client_reads_them() {
    LUN_POLICIES.into_iter().for_each(written_and_read);
}
