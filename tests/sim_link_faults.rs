//! Goal: a bad link loses no page and damages none.
//! Method: one fault at a time, as strong as promised, over both stores; the fault must have happened.

mod common;

use common::survives;
use netswap::units::{Bytes, Nanos, Share};

#[test]
fn one_percent_loss() {
    survives("link loss", |s| {
        s.host.ram = Bytes(6 << 20);
        s.link.loss = Share(10_000);
    });
}

#[test]
fn three_percent_loss_on_the_smallest_host() {
    survives("link loss", |s| {
        s.host.ram = Bytes(4 << 20);
        s.link.loss = Share(30_000);
    });
}

/// A packet that is reported as sent has arrived already: nobody sees it in flight.
#[test]
fn loss_on_a_link_shorter_than_a_card_takes_to_report() {
    survives("link loss", |s| {
        s.link.latency = Nanos(10_000);
        s.link.loss = Share(10_000);
    });
}

#[test]
fn duplication() {
    survives("link duplicate", |s| s.link.duplicate = Share(10_000));
}

#[test]
fn reordering_and_jitter() {
    survives("link reorder", |s| {
        s.link.reorder = Share(20_000);
        s.link.jitter = Nanos(30_000);
    });
}

#[test]
fn single_bit_flips() {
    survives("link corrupt", |s| s.link.corrupt = Share(2_000));
}

#[test]
fn a_partition_of_five_seconds() {
    survives("link partition", |s| s.link.partition_at = Some(Nanos(30_000_000)));
}
