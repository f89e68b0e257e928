//! Goal: the receive ring survives the want of memory, and what it cannot buffer is lost and counted.
//! Method: a host without a reserve is exhausted while packets come; then memory comes back.

mod common;

use common::*;
use netswap_net::{End, Stack, StackConfig};
use netswap_reserve::{PagePool, PoolConfig, Span, Time};

fn far_pool() -> PagePool {
    let mut config = PoolConfig::new(256);
    config.magazine = 0;
    PagePool::new(config)
}

#[test]
fn an_empty_ring_loses_packets_and_is_refilled_by_its_timer() {
    let pool = far_pool();
    let mut a = Stack::new(StackConfig::new(MAC_A, ADDR_A), nic(MAC_A), pool.clone(), None);
    let mut b = nic(MAC_B);
    let mut link = netswap_net::SimLink::new(netswap_net::LinkConfig::default(), 1);
    let socket = a.udp_bind(7000);
    let ordinary = exhaust(&pool);
    a.poll(Time::ZERO);
    assert_eq!((a.ring_unfilled(), a.stats().lowest_ring_fill), (64, 0));
    assert_eq!(a.poll_deadline(Time::ZERO), Some(ms(1)), "the timer tries again");
    for _ in 0..10 {
        link.inject(Time::ZERO, End::A, &udp_frame(7000, b"lost"));
    }
    link.poll(ms(1), a.device_mut(), &mut b);
    assert_eq!(link.stats().b_to_a.no_rx_buffer, 10);
    a.poll(ms(1));
    assert!(a.stats().refill_failed >= 2);

    // Ten frames come back: each fills a slot at once when refill is called, without waiting.
    let mut ordinary = ordinary;
    ordinary.truncate(ordinary.len() - 10);
    a.refill();
    assert_eq!(a.ring_unfilled(), 54);
    drop(ordinary);
    a.poll(ms(2));
    assert_eq!(a.ring_unfilled(), 0);
    link.inject(ms(2), End::A, &udp_frame(7000, b"kept"));
    link.poll(ms(3), a.device_mut(), &mut b);
    a.poll(ms(3));
    assert_eq!(a.udp_recv(socket).unwrap().payload.data(), b"kept");
    let deadline = a.poll_deadline(ms(3));
    assert_eq!(deadline, None, "a full ring needs no timer");
}

#[test]
fn a_tagged_stream_keeps_the_ring_full_from_the_reserve() {
    let mut memory = Memory::new(512);
    let pool = memory.pool_a.clone();
    let mut world = World::new(&mut memory, Setup::new(1), 100_000);
    let _ordinary = exhaust(&pool);
    assert!(world.run(ms(1000)));
    assert_eq!(world.a.ring_unfilled(), 0);
    assert_eq!(world.a.stats().refill_failed, 0);
    assert_eq!(world.a.stats().lowest_ring_fill, 64);
}

#[test]
fn a_send_that_finds_no_buffer_is_lost_counted_and_explained() {
    // Untagged, so the stream is not entitled: what it sends is built in the scratch buffer.
    let mut memory = Memory::new(512);
    let pool = memory.pool_a.clone();
    let mut setup = Setup::new(1);
    setup.tagged = false;
    let mut world = World::new(&mut memory, setup, 4 << 20);
    assert!(!world.run(ms(2)), "it is under way");
    // Frames on their way out come back one by one: each is taken away as well.
    let mut ordinary = exhaust(&pool);
    for t in 3..400 {
        world.run_until(ms(t));
        ordinary.extend(exhaust(&pool));
    }
    let failure = world.a.last_tx_alloc_failure().expect("nothing can be sent");
    assert_eq!(failure.stream, Some(world.ca));
    assert!(matches!(failure.error, netswap_reserve::AllocError::AtWatermark { .. }));
    assert!(world.a.stats().dropped(netswap_net::DropReason::TxNoBuffer) > 0);
    drop(ordinary);
    // A token is never refused: what was dropped is retransmitted, the connection lives.
    assert!(world.run(world.now + Span::from_secs(5)));
    assert_eq!(world.client.connects, 1);
}
