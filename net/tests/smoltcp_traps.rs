//! Goal: what was measured to go wrong with smoltcp does not go wrong here.
//! Method: one scenario for each trap, in which the untouched behaviour would show.
//! (Neighbour table and ARP rate are ours, and tested in `arp.rs`; that a transmit token is never
//! refused is also tested in `tests/ring.rs`.)

mod common;

use common::*;
use netswap_net::Device;
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

    // While pages flow in one direction every other segment is acknowledged.
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), u64::MAX);
    world.server.mute = true;
    world.run_until(ms(50));
    let stats = world.link.stats();
    let ratio = stats.b_to_a.sent as f64 / stats.a_to_b.sent as f64;
    assert!(world.server.taken > 5_000_000 && (0.3..0.6).contains(&ratio), "{ratio}");
}

#[test]
fn thirty_gaps_in_a_window_are_remembered() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    assert!(world.run(ms(1000)));
    world.run_until(world.now + Span::from_millis(1));
    let port = world.a.stream_info(world.ca).local_port;
    let (sent, received) = world.a.stream_sequence(world.ca).unwrap();
    // Every other segment comes first, then those between: one after the other is enough for all.
    let place = |world: &mut World<'_>, n: u32| {
        let segment = segment_to_host(port, received.wrapping_add(n * 500), sent, 500);
        world.link.inject(world.now, netswap_net::End::A, &segment);
        world.run_until(world.now + Span::from_millis(1));
    };
    (0..30).for_each(|n| place(&mut world, 2 * n + 1));
    assert_eq!(world.client.received, 1000, "nothing in order yet");
    (0..30).for_each(|n| place(&mut world, 2 * n));
    assert_eq!(world.client.received, 1000 + 60 * 500, "none had to be sent twice");
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

/// A window that closes and opens again takes smoltcp's retransmission timer away from data in flight.
#[test]
fn data_in_flight_survives_a_window_that_closes_and_opens() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    assert!(world.run(ms(1000)));
    world.run_until(world.now + Span::from_millis(1));
    let port = world.a.stream_info(world.ca).local_port;
    let (seq, ack) = world.b.stream_sequence(world.sb).unwrap();
    // 100 bytes are lost, with all that is on the wire then.
    let start = world.now;
    world.link.partition(start, start + Span::from_micros(100));
    world.client.total += 100;
    world.run_until(start + Span::from_micros(300));
    assert_eq!(world.a.stream_info(world.ca).unacknowledged, 100);
    // The peer closes its window as it takes one byte of them, and opens it again.
    for window in [0, 0x4000] {
        let update = ack_to_host(port, seq, ack.wrapping_add(1), window);
        world.link.inject(world.now, netswap_net::End::A, &update);
        world.run_until(world.now + Span::from_micros(300));
    }
    assert!(world.a.stream_info(world.ca).unacknowledged < 100, "the updates were taken");
    let again = |w: &World<'_>| w.link.stats().a_to_b.sent;
    let before = again(&world);
    world.run_until(start + Span::from_secs(2));
    assert!(again(&world) > before, "nothing was sent again in 2 s");
}
