//! Goal: bytes arrive intact, whatever the link does to the packets.
//! Method: a client sends a MiB to an echo server over the simulated link, under one fault each, and
//! compares every byte; the link's counters show that the fault happened.

mod common;

use common::*;
use netswap_net::LinkConfig;
use netswap_reserve::{Span, Time};

const MIB: u64 = 1 << 20;

fn until(secs: u64) -> Time {
    Time::ZERO + Span::from_secs(secs)
}

#[test]
fn a_clean_link_runs_at_its_rate() {
    let (client, server, stats, end) =
        run_echo(LinkConfig::default(), 1, 4 * MIB, until(10), |_| {});
    assert!(client.done(), "{} of {} after {end}", client.received, client.total);
    assert_eq!((client.connects, server.connects, client.ends.len()), (1, 1, 0));
    assert_eq!(stats.total().lost + stats.total().no_rx_buffer, 0);
    // 4 MiB at 1 Gbit/s take 34 ms.
    assert!(end < Time::ZERO + Span::from_millis(60), "took until {end}");
}

fn lossy(ppm: u32, secs: u64) {
    let mut lost = 0;
    for seed in 1..4 {
        let config = LinkConfig { loss_ppm: ppm, ..LinkConfig::default() };
        let (client, _, stats, end) = run_echo(config, seed, MIB, until(secs), |_| {});
        assert!(client.done(), "seed {seed}: {} after {end}, {stats:?}", client.received);
        lost += stats.total().lost;
    }
    assert!(lost > 0, "the fault happened");
}

#[test]
fn loss_of_one_in_a_thousand() {
    lossy(1_000, 20);
}

#[test]
fn loss_of_one_in_a_hundred() {
    lossy(10_000, 60);
}

#[test]
fn loss_of_three_in_a_hundred() {
    lossy(30_000, 120);
}

#[test]
fn duplicates() {
    let config = LinkConfig { duplicate_ppm: 50_000, ..LinkConfig::default() };
    let (client, _, stats, _) = run_echo(config, 5, MIB, until(20), |_| {});
    assert!(client.done() && stats.total().duplicated > 10);
}

#[test]
fn flipped_bits_are_caught_by_checksums() {
    let config = LinkConfig { corrupt_ppm: 10_000, ..LinkConfig::default() };
    for seed in 1..6 {
        let (client, _, stats, end) = run_echo(config.clone(), seed, MIB, until(60), |_| {});
        assert!(client.done(), "seed {seed}: {} after {end}", client.received);
        assert!(stats.total().corrupted > 5);
    }
}

#[test]
fn jitter_and_reordering() {
    let config =
        LinkConfig { jitter: Span::from_micros(100), reorder_ppm: 50_000, ..LinkConfig::default() };
    let (client, _, stats, end) = run_echo(config, 7, MIB, until(60), |_| {});
    assert!(client.done(), "{} after {end}", client.received);
    assert!(stats.total().reordered > 10);
}

#[test]
fn a_partition_of_five_seconds_is_survived() {
    let cut = |link: &mut netswap_net::SimLink| {
        link.partition(Time::ZERO + Span::from_millis(5), Time::ZERO + Span::from_millis(5005));
    };
    let (client, _, stats, end) = run_echo(LinkConfig::default(), 8, MIB, until(20), cut);
    assert!(client.done() && stats.total().partitioned > 0, "{} {stats:?}", client.received);
    assert_eq!(client.connects, 1, "the connection itself survives");
    // Retransmissions are at most 1.2 s apart.
    assert!(end < Time::ZERO + Span::from_millis(6400), "took until {end}");
}

#[test]
fn the_same_seed_gives_the_same_packets() {
    let config = LinkConfig {
        loss_ppm: 10_000,
        duplicate_ppm: 10_000,
        corrupt_ppm: 1_000,
        jitter: Span::from_micros(20),
        ..LinkConfig::default()
    };
    let run = |seed| run_echo(config.clone(), seed, MIB / 4, until(60), |_| {});
    let (first, again, other) = (run(1), run(1), run(2));
    assert_eq!((first.2, first.3), (again.2, again.3));
    assert_ne!((first.2, first.3), (other.2, other.3));
}
