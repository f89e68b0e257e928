//! Reading a lackey trace: accesses a second, from plain bytes and from zstd, both in memory.
//!
//! The text is the trace of a real program in `tests/data/`. To beat: 10 million accesses a second.

use std::hint::black_box;
use std::path::Path;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use netswap_swap::lackey::LackeyReader;

/// Reads a trace to its end. Returns its accesses and what folding made of them.
fn read(bytes: &[u8]) -> (u64, u64) {
    let mut trace = LackeyReader::new(bytes).expect("bytes in memory can be read");
    for access in trace.by_ref() {
        black_box(access.expect("the trace is whole"));
    }
    let stats = trace.stats();
    (stats.accesses, stats.page_accesses)
}

fn lackey(c: &mut Criterion) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/perl-sort.lackey.zst");
    let packed = std::fs::read(path).expect("the fixture is part of the repository");
    let plain = zstd::decode_all(&packed[..]).expect("the fixture is whole");
    let (accesses, _) = read(&plain);

    let mut group = c.benchmark_group("lackey");
    group.throughput(Throughput::Elements(accesses)).sample_size(20);
    group.bench_function("plain", |b| b.iter(|| read(black_box(&plain))));
    group.bench_function("zstd", |b| b.iter(|| read(black_box(&packed))));
    // What the decoder alone costs of it.
    group.bench_function("zstd/decode only", |b| {
        let mut sink = vec![0; plain.len()];
        b.iter(|| {
            let mut decoder = zstd::stream::read::Decoder::new(black_box(&packed[..]))?;
            std::io::Read::read_exact(&mut decoder, &mut sink)
        });
    });
    group.finish();
}

criterion_group!(benches, lackey);
criterion_main!(benches);
