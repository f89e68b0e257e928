//! Goal: the seeds of the fuzz targets do what they are for, on every machine and without a fuzzer.
//! Method: each seed, and many of its neighbours, go through the same functions as the fuzzer's inputs.

mod fuzz;

fn run(target: &str, each: fn(&[u8]) -> bool) {
    fuzz::shared::run_seeds(env!("CARGO_MANIFEST_DIR"), target, each);
}

#[test]
fn decoders() {
    run("iscsi_pdu", fuzz::decode);
}

#[test]
fn logins() {
    run("iscsi_login", fuzz::login);
}

#[test]
fn answers_to_the_initiator() {
    run("iscsi_initiator", fuzz::initiator);
}

#[test]
fn answers_to_a_listing() {
    run("iscsi_discovery", fuzz::discovery);
}

#[test]
fn requests_to_the_target() {
    run("iscsi_target", fuzz::target);
}

#[test]
fn the_honest_get_through_a_login_and_strangers_do_not() {
    for (mode, honest) in [(0, &[0][..]), (1, &[0]), (2, &[8]), (3, &[0, 1])] {
        let input = |chap: u8| [&[mode, chap, 0, 0], &honest.repeat(20)[..]].concat();
        assert!(fuzz::login(&input(3)), "mode {mode}");
        assert!(!fuzz::login(&input(7)), "mode {mode}");
    }
}
