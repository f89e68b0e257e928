//! Goal: the seeds of the fuzz targets do what they are for, on every machine and without a fuzzer.
//! Method: each seed, and many of its neighbours, go through the same functions as the fuzzer's inputs.

mod fuzz;

fn run(target: &str, each: fn(&[u8]) -> bool) {
    fuzz::shared::run_seeds(env!("CARGO_MANIFEST_DIR"), target, each);
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
