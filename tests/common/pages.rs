//! Whole areas, written and read page by page: no two pages of one hold a run of the same bytes.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use netswap::real::RealStore;
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

fn pool() -> PagePool {
    PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(DEPTH * BATCH * 2) })
}

/// Writes every slot, in batches.
pub(crate) fn write_all(store: &mut RealStore) {
    let batches = (0..store.slots() / BATCH).map(|at| (at * BATCH, BATCH));
    transfer(store, &pool(), Op::Write, batches, |_, end| {
        end.outcome.unwrap();
    });
}

/// Reads every slot, one by one in random order, each compared whole.
pub(crate) fn read_all(store: &mut RealStore) {
    let slots = store.slots();
    let mut order: Vec<u32> = (0..slots).collect();
    let mut rng = Xoshiro256PlusPlus::seed_from_u64(3);
    for at in (1..order.len()).rev() {
        order.swap(at, (rng.next_u64() % (at as u64 + 1)) as usize);
    }
    let (mut right, mut want) = (0, [0; PAGE_SIZE]);
    let pages = order.into_iter().map(|slot| (slot, 1));
    transfer(store, &pool(), Op::Read, pages, |slot, end| {
        end.outcome.unwrap();
        fill(&mut want, slot);
        assert!(*end.pages[0].bytes() == want, "slot {slot} holds something else");
        right += 1;
    });
    assert_eq!(right, slots);
}

/// Compares what another client made of the area, page by page.
pub(crate) fn compare(file: &Path, slots: u32) {
    assert_eq!(file.metadata().unwrap().len(), u64::from(slots) * PAGE_SIZE as u64);
    let (mut file, mut page, mut want) =
        (File::open(file).unwrap(), [0; PAGE_SIZE], [0; PAGE_SIZE]);
    for slot in 0..slots {
        file.read_exact(&mut page).unwrap();
        fill(&mut want, slot);
        assert!(page == want, "slot {slot} holds something else in the file");
    }
}
