//! Goal: pages written to a server that others wrote come back as they were, in any order, and a client that others wrote
//! reads the same file.
//! Method: nfs-ganesha; every slot written in batches, read one by one in random order, each compared whole; then
//! the file by `nfs-cp` (libnfs), or from the export's folder where that is not installed, page by page.

mod common;

use std::fs::File;
use std::io::Read;
use std::process::Command;

use common::ganesha::{Ganesha, which};
use common::proof::{POLICIES, is_campaign};
use common::skip::or_skip;
use netswap::real::{OpenOptions, RealStore, StoreUrl};
use netswap::reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig};
use netswap::swap::{Completion, Op, PageVec, Request, RequestId, Slot, SubmitError};
use rand_core::{Rng, SeedableRng};
use rand_xoshiro::Xoshiro256PlusPlus;

const BATCH: u32 = 16;
const DEPTH: u32 = 32;

/// What a slot holds: no two pages share a run of bytes.
fn fill(page: &mut [u8; PAGE_SIZE], slot: u32) {
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(u64::from(slot));
    page.as_chunks_mut::<8>().0.iter_mut().for_each(|word| *word = rng.next_u64().to_le_bytes());
}

/// Moves the pages of `runs`, given by first slot and length, 32 requests at a time.
fn transfer(
    store: &mut RealStore,
    pool: &PagePool,
    op: Op,
    mut runs: impl Iterator<Item = (u32, u32)>,
    mut ended: impl FnMut(u32, Completion),
) {
    let mut free: Vec<u32> = (0..DEPTH).collect();
    let mut firsts = [0; DEPTH as usize];
    loop {
        while let Some(id) = free.pop() {
            let Some((first, len)) = runs.next() else {
                free.push(id);
                break;
            };
            let mut pages = PageVec::new();
            for slot in first..first + len {
                let mut page = pool.alloc(Gfp::KERNEL).unwrap();
                if op == Op::Write {
                    fill(page.bytes_mut(), slot);
                }
                pages.push(page);
            }
            firsts[id as usize] = first;
            let request =
                Request { id: RequestId(id), op, first: Slot(first), pages, deadline: None };
            match store.submit(request) {
                Ok(()) => {}
                Err(SubmitError::Full(_) | SubmitError::NotReady(_)) => panic!("it takes {DEPTH}"),
            }
        }
        if free.len() == DEPTH as usize {
            return;
        }
        store.turn(None).unwrap();
        while let Some(end) = store.poll_completion() {
            free.push(end.id.0);
            ended(firsts[end.id.0 as usize], end);
        }
    }
}

fn written_and_read(policy: &str) {
    let Some(ganesha) = or_skip(Ganesha::start("pages")) else { return };
    let slots: u32 = if is_campaign() { 1 << 18 } else { 1 << 13 };
    let url: StoreUrl = (ganesha.url("area0") + policy).parse().unwrap();
    let bytes = u64::from(slots) * PAGE_SIZE as u64;
    let options = OpenOptions { create_bytes: Some(bytes), ..OpenOptions::default() };
    let mut store = RealStore::open(&url, &options).unwrap();
    let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(DEPTH * BATCH * 2) });

    let batches = (0..slots / BATCH).map(|at| (at * BATCH, BATCH));
    transfer(&mut store, &pool, Op::Write, batches, |_, end| {
        end.outcome.unwrap();
    });

    let mut order: Vec<u32> = (0..slots).collect();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    for at in (1..order.len()).rev() {
        order.swap(at, (rng.next_u64() % (at as u64 + 1)) as usize);
    }
    let (mut right, mut want) = (0, [0; PAGE_SIZE]);
    let pages = order.into_iter().map(|slot| (slot, 1));
    transfer(&mut store, &pool, Op::Read, pages, |slot, end| {
        end.outcome.unwrap();
        fill(&mut want, slot);
        assert!(*end.pages[0].bytes() == want, "slot {slot} holds something else");
        right += 1;
    });
    assert_eq!(right, slots);
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
    assert_eq!(file.metadata().unwrap().len(), bytes);
    let (mut file, mut page) = (File::open(file).unwrap(), [0; PAGE_SIZE]);
    for slot in 0..slots {
        file.read_exact(&mut page).unwrap();
        fill(&mut want, slot);
        assert!(page == want, "slot {slot} holds something else in the file");
    }
}

#[test]
fn pages_come_back_in_any_order_and_another_client_reads_them() {
    POLICIES.into_iter().for_each(written_and_read);
}
