//! Goal: pages written to istgt come back as they were, in any order, and a client that others wrote reads the same
//! unit.
//! Method: as for tgt. istgt asks for all data by R2T, wants its digests listed in another order, and has a LUN 0.

mod common;

use common::istgt::Istgt;
use common::pages::{compare, read_all, write_all};
use common::proof::{LUN_POLICIES, is_campaign};
use common::qemu;
use common::skip::or_skip;
use netswap::real::{OpenOptions, RealStore, StoreUrl};
use netswap::reserve::PAGE_SIZE;

fn written_and_read(policy: &str) {
    let slots: u32 = if is_campaign() { 1 << 18 } else { 1 << 12 };
    let bytes = u64::from(slots) * PAGE_SIZE as u64;
    let Some(istgt) = or_skip(Istgt::with_area("istgt-pages", bytes)) else { return };
    let url: StoreUrl = (istgt.url() + policy).parse().unwrap();
    let mut store = RealStore::open(&url, &OpenOptions::default()).unwrap();
    assert_eq!(store.slots(), slots);
    write_all(&mut store);
    read_all(&mut store);
    store.shutdown();
    // Every connection to istgt takes a second: the second time its own file is enough.
    let file = match policy == LUN_POLICIES[0] {
        true => qemu::read_back(&istgt.url(), &istgt.file(), &istgt.scratch("copy")),
        false => istgt.file(),
    };
    compare(&file, slots);
}

#[test]
fn pages_come_back_in_any_order_and_another_client_reads_them() {
    LUN_POLICIES.into_iter().for_each(written_and_read);
}
