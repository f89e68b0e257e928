//! Goal: the seeds of the fuzz targets do what they are for, on every machine and without a fuzzer.
//! Method: each seed, and many of its neighbours, go through the same functions as the fuzzer's inputs.

mod fuzz;

use std::path::Path;

/// Every seed of a target, and copies of it with a byte changed or cut short, spread over its length.
/// Half of the seeds at least must get where they are to get.
fn run(target: &str, each: fn(&[u8]) -> bool) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds").join(target);
    let (mut seeds, mut arrived) = (0, 0);
    for entry in std::fs::read_dir(&folder).unwrap() {
        let seed = std::fs::read(entry.unwrap().path()).unwrap();
        seeds += 1;
        arrived += usize::from(each(&seed));
        for i in 0..40 {
            let at = i * seed.len() / 40;
            each(&seed[..at]);
            let mut changed = seed.clone();
            changed[at] ^= 1 << (i % 8);
            each(&changed);
        }
    }
    assert!(seeds > 0 && 2 * arrived >= seeds, "{arrived} of {seeds} in {}", folder.display());
}

#[test]
fn replies_to_the_client() {
    run("nfs_client", fuzz::client);
}

#[test]
fn replies_to_the_lister() {
    run("nfs_lister", fuzz::lister);
}

#[test]
fn calls_to_the_server() {
    run("nfs_server", fuzz::calls);
}

#[test]
fn decoders() {
    run("nfs_decode", fuzz::decode);
}
