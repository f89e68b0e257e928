//! Goal: what was measured to go wrong with smoltcp does not go wrong here.
//! Method: one scenario for each trap, in which the untouched behaviour would show.
//! (Neighbour table and ARP rate are ours, and tested in `arp.rs`; that a transmit token is never
//! refused is also tested in `tests/ring.rs`.)

mod common;

use common::*;
use netswap_net::{Device, LinkConfig};
use netswap_reserve::{Span, Time};

#[test]
fn the_retransmission_timeout_starts_at_20_ms_not_at_a_second() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    assert!(world.run(ms(1000)));
    // One segment is lost, and nothing follows it that could trigger a fast retransmit.
    let start = world.now;
    world.link.partition(start, start + Span::from_millis(1));
    world.client.total += 100;
    assert!(world.run(start + Span::from_secs(2)));
    let took = world.now.since(start);
    assert!(took > Span::from_millis(19) && took < Span::from_millis(25), "took {took}");
}

#[test]
fn the_timeout_grows_to_little_more_than_a_second() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    assert!(world.run(ms(1000)));
    let start = world.now;
    world.link.partition(start, start + Span::from_secs(20));
    world.client.total += 100;
    assert!(world.run(start + Span::from_secs(30)));
    assert!(world.now.since(start) < Span::from_millis(21_300), "{}", world.now.since(start));
}

#[test]
fn a_fast_retransmit_without_a_buffer_does_not_hang_the_connection() {
    // Loss makes fast retransmits; again and again there is no memory for them.
    let mut memory = Memory::new(512);
    let pool = memory.pool_a.clone();
    let mut setup = Setup::new(3);
    setup.tagged = false;
    setup.link.loss_ppm = 20_000;
    let mut world = World::new(&mut memory, setup, 1 << 20);
    let mut t = 1;
    while !world.client.done() {
        assert!(t < 120_000, "hangs at {}", world.client.received);
        let held = if t % 3 == 0 { exhaust(&pool) } else { Vec::new() };
        world.run(ms(t));
        drop(held);
        t += 1;
    }
    assert_eq!(world.client.connects, 1);
    assert!(world.a.stats().dropped(netswap_net::DropReason::TxNoBuffer) > 10);
}

#[test]
fn a_full_card_queue_is_waited_for_without_loss() {
    let mut memory = Memory::new(512);
    let mut setup = Setup::new(1);
    setup.link.rate_bps = 20_000_000;
    let mut world = World::new(&mut memory, setup, 1 << 20);
    assert!(world.run(ms(5000)));
    assert_eq!(world.a.stats().dropped(netswap_net::DropReason::TxQueueFull), 0);
    assert!(world.a.device().tx_room() <= 64);
}

#[test]
fn nagle_is_off() {
    // Requests of 100 bytes, each sent while the one before is not acknowledged: with Nagle the second
    // would wait for a round trip.
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    assert!(world.run(ms(1000)));
    world.run_until(world.now + Span::from_millis(1));
    let sent = |w: &World<'_>| w.link.stats().a_to_b.sent;
    let (start, before) = (world.now, sent(&world));
    world.client.total += 100;
    world.run_until(start + Span::from_micros(10));
    world.client.total += 100;
    world.run_until(start + Span::from_micros(60));
    assert_eq!(sent(&world) - before, 2, "both are out before an answer can be there");
}

#[test]
fn acknowledgements_ride_on_data_or_follow_within_200_us() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    world.server.read_at_most = 0;
    world.run_until(ms(20));
    // The server takes nothing and sends nothing: the acknowledgement comes by its timer.
    assert_eq!(world.client.received, 0);
    assert_eq!(world.a.stream_info(world.ca).unacknowledged, 0);
    // While pages flow in both directions there are far fewer pure acknowledgements than segments.
    let (client, _, stats, _) = run_echo(LinkConfig::default(), 1, 1 << 20, ms(1000), |_| {});
    assert!(client.done());
    let segments = 2 * (1u64 << 20).div_ceil(1460);
    assert!(stats.total().sent < segments * 3 / 2, "{} for {segments}", stats.total().sent);
}

#[test]
fn thirty_two_gaps_are_kept_so_that_a_window_with_holes_is_not_sent_again_whole() {
    // Every 9th packet or so is lost, which makes more than 4 gaps in a window of 45 segments.
    let config = LinkConfig { loss_ppm: 110_000, ..LinkConfig::default() };
    let (client, _, stats, end) = run_echo(config, 11, 256 << 10, ms(600_000), |_| {});
    assert!(client.done(), "{} after {end}", client.received);
    let needed = 2 * (256u64 << 10).div_ceil(1460);
    assert!(stats.total().sent < needed * 8, "{} sent for {needed}", stats.total().sent);
}

#[test]
fn a_reader_that_was_slow_is_told_of_its_window_in_time() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 400_000);
    world.server.read_at_most = 0;
    world.run_until(ms(100));
    assert_eq!(world.b.stream_info(world.sb).unread, 64 << 10, "the window is closed");
    world.server.read_at_most = usize::MAX;
    let start = world.now;
    let sb = world.sb;
    world.b.drive(start, sb, &mut world.server);
    assert!(world.run(start + Span::from_millis(200)));
    assert!(world.now.since(start) < Span::from_millis(12), "took {}", world.now.since(start));
}

#[test]
fn a_lost_window_update_costs_a_probe_not_the_connection() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 400_000);
    world.server.read_at_most = 0;
    world.run_until(ms(100));
    let start = world.now;
    world.link.partition(start, start + Span::from_millis(2));
    world.server.read_at_most = usize::MAX;
    let sb = world.sb;
    world.b.drive(start, sb, &mut world.server);
    assert!(world.run(start + Span::from_secs(3)), "{}", world.client.received);
    assert_ne!(world.now, Time::ZERO);
}
