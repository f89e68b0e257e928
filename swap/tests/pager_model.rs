//! Goal: whatever tasks do, a page holds what was written to it last, and everything comes back.
//! Method: random faults, mappings and areas against a map from page to content, over stores with
//! latency and random faults that the default policy must hide.

mod common;

use common::World;
use netswap_reserve::Span;
use netswap_swap::*;
use proptest::prelude::*;
use proptest::test_runner::{RngSeed, TestRunner};

#[derive(Clone, Debug)]
enum Step {
    Read { task: u32, page: u32 },
    Write { task: u32, page: u32 },
    WriteZeros { task: u32, page: u32 },
    Sweep { task: u32, from: u32, pages: u32 },
    Remap { part: u32 },
    Pass { micros: u64 },
}

const TASKS: u32 = 4;
const PARTS: u32 = 4;

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let task = 0..TASKS;
    let page = any::<u32>();
    prop::collection::vec(
        prop_oneof![
            4 => (task.clone(), page).prop_map(|(task, page)| Step::Read { task, page }),
            4 => (task.clone(), any::<u32>()).prop_map(|(task, page)| Step::Write { task, page }),
            1 => (task.clone(), any::<u32>()).prop_map(|(task, page)| Step::WriteZeros { task, page }),
            2 => (task, any::<u32>(), 1..60u32).prop_map(|(task, from, pages)| Step::Sweep { task, from, pages }),
            1 => (0..PARTS).prop_map(|part| Step::Remap { part }),
            2 => (1..2000u64).prop_map(|micros| Step::Pass { micros }),
        ],
        1..1200,
    )
}

fn run(frames: u32, part_pages: u32, seed: u64, rates: [u16; 3], steps: Vec<Step>) -> PagerStats {
    let config = PagerConfig { writeback_pages: 24, ..PagerConfig::new(TASKS, PARTS * part_pages) };
    let mut world = World::with(config, frames);
    let faults = MemFaults {
        io_error: rates[0],
        damaged_read: rates[1],
        replayed: rates[2],
        short_read: rates[1],
        ..MemFaults::default()
    };
    for (i, priority) in [(0u64, 5), (1, 1)] {
        let backend = MemBackend::formatted(PARTS * part_pages + 80)
            .with_latency(Span::from_micros(50), Span::from_micros(400))
            .with_faults(seed + i, MemFaults::default());
        let mut options = AreaOptions::new(if i == 0 { "fast" } else { "slow" });
        options.priority = priority;
        options.quarantine_max = Some(u32::MAX);
        let id = world.area(backend, options);
        assert_eq!(world.info(id).state, AreaState::On);
        world.pager.backend_mut(id).set_faults(faults);
    }
    let mut parts: Vec<_> = (0..PARTS).map(|_| world.map(part_pages)).collect();
    let at = |parts: &[std::ops::Range<PageId>], page: u32| {
        let part = &parts[(page % PARTS) as usize];
        PageId(part.start.0 + (page / PARTS) % part_pages)
    };
    for step in steps {
        match step {
            Step::Read { task, page } if !world.waiting.contains_key(&task) => {
                world.touch(task, at(&parts, page), None);
            }
            Step::Write { task, page } if !world.waiting.contains_key(&task) => {
                let stamp = world.fresh_stamp();
                world.touch(task, at(&parts, page), Some(stamp));
            }
            Step::WriteZeros { task, page } if !world.waiting.contains_key(&task) => {
                world.touch(task, at(&parts, page), Some(0));
            }
            Step::Sweep { task, from, pages } => {
                for i in 0..pages {
                    while world.waiting.contains_key(&task) && world.advance() {}
                    let stamp = (from % 3 == 0).then(|| world.fresh_stamp());
                    world.touch(task, at(&parts, from.wrapping_add(i * PARTS)), stamp);
                }
            }
            Step::Remap { part } => {
                let range = parts[part as usize].clone();
                world.unmap(range);
                parts[part as usize] = world.map(part_pages);
            }
            Step::Pass { micros } => world.pass(Span::from_micros(micros)),
            _ => {}
        }
        world.poll();
    }
    world.settle();
    for part in &parts {
        world.read_all(part);
    }
    world.settle();
    let bad = world.failed.iter().filter(|(.., error)| *error != PageError::NotMapped).count();
    assert_eq!(bad, 0, "{:?}", world.failed);
    let stats = *world.pager.stats();
    world.finish();
    stats
}

#[test]
fn the_pager_agrees_with_a_map() {
    let config = ProptestConfig {
        cases: 200,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x5eed),
        ..ProptestConfig::default()
    };
    let exercised = std::cell::Cell::new([0u64; 6]);
    let inputs = (48..128u32, 20..160u32, 0..u64::MAX - 9, any::<bool>(), steps());
    TestRunner::new(config)
        .run(&inputs, |(frames, part_pages, seed, faulty, steps)| {
            // Damage is rare enough that four reads of a page are not all damaged.
            let rates = if faulty { [3000, 200, 2000] } else { [0; 3] };
            let stats = run(frames, part_pages, seed, rates, steps);
            let now = [
                stats.page_ins,
                stats.page_outs,
                stats.frame_waits,
                stats.writeback_waits,
                stats.rereads,
                stats.retries,
            ];
            let sum = exercised.get();
            exercised.set(std::array::from_fn(|i| sum[i] + now[i]));
            Ok(())
        })
        .unwrap();
    let exercised = exercised.get();
    assert!(exercised.iter().all(|n| *n > 50), "every mechanism was at work: {exercised:?}");
}
