//! Whole worlds: page transfers a second of real time.
//!
//! An element is a page that was read or written. All of the run is counted: both ends of the link, the
//! tasks, start and end; only not the time in which this system commits the memory before. *quiet* is without a flood, *flood* with the flood of the default scenario, both
//! at 16 MiB of RAM; *quiet-64MiB* tells whether the cost of a transfer grows with memory.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use netswap::scenario::{Scenario, Store};
use netswap::world::{RunSpec, run};

fn world(c: &mut Criterion, name: &str, store: Store, ram: &str, flood: bool) {
    let mut scenario = Scenario::default();
    scenario.host.ram = ram.parse().expect("a size");
    scenario.host.overcommit = 2.0;
    scenario.host.rounds = 1;
    if !flood {
        scenario.flood.percent = 0;
    }
    let spec = RunSpec::protected(scenario, store);
    let row = run(&spec, &mut |_| {}).expect("a scenario that can be run");
    assert!(row.reason.is_none(), "{name}: {:?}", row.reason);

    let mut group = c.benchmark_group("sim");
    group.sample_size(10);
    // Every run of a scenario moves the same pages.
    group.throughput(Throughput::Elements(row.page_ins + row.page_outs));
    group.bench_function(format!("{}/{name}", store.name()), |b| {
        b.iter_custom(|runs| {
            let wall_s = |_| run(&spec, &mut |_| {}).expect("it ran before").wall_s;
            Duration::from_secs_f64((0..runs).map(wall_s).sum())
        });
    });
    group.finish();
}

fn worlds(c: &mut Criterion) {
    for store in Store::ALL {
        world(c, "quiet", store, "16MiB", false);
        world(c, "flood", store, "16MiB", true);
    }
    world(c, "quiet-64MiB", Store::Nfs, "64MiB", false);
}

criterion_group!(benches, worlds);
criterion_main!(benches);
