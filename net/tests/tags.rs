//! Goal: the network reserve is there from before the first connection until the last tag is gone, and
//! neither a reconnect nor a change of streams makes it dip, doubles it or leaks it.
//! Method: a host at its floor connects, loses its connection and connects again; floor, usage and the
//! scope of the thread are looked at after every step. Two faults of the field are tested here: the
//! emergency flag that was not active during the connect and leaked after it, and the reconnect that
//! leaked the tag count.

mod common;

use common::*;
use netswap_net::{Disconnect, Stack, StackConfig};
use netswap_reserve::{EmergencyScope, ReserveId, Span, Time};

#[test]
fn the_first_tag_connects_the_reserve_and_the_last_one_disconnects_it() {
    let (pool, reserves) = pool_with_reserves(512, 80, 54);
    let ((mut r1, mut t1), (mut r2, mut t2)) = (buffers(&pool), buffers(&pool));
    let mut a =
        Stack::new(StackConfig::new(MAC_A, ADDR_A), nic(MAC_A), pool.clone(), Some(reserves));
    let floor = || pool.reserve_limit(ReserveId::ROOT);
    assert_eq!((floor(), a.tagged_streams()), (0, 0));
    let one = a.add_stream(r1.bytes_mut(), t1.bytes_mut(), true);
    assert_eq!((floor(), a.tagged_streams()), (134, 1), "set before any connection");
    let two = a.add_stream(r2.bytes_mut(), t2.bytes_mut(), false);
    // The tag moves: the new stream first, and the reserve never dips.
    a.set_tagged(two, true).unwrap();
    assert_eq!((floor(), a.tagged_streams()), (134, 2));
    a.set_tagged(one, false).unwrap();
    assert_eq!((floor(), a.tagged_streams()), (134, 1));
    a.set_tagged(two, true).unwrap();
    assert_eq!((floor(), a.tagged_streams()), (134, 1), "setting it twice counts once");
    a.set_tagged(two, false).unwrap();
    a.set_tagged(two, false).unwrap();
    assert_eq!((floor(), a.tagged_streams(), a.is_reserve_connected()), (0, 0, false));
}

#[test]
fn a_host_without_the_memory_refuses_the_tag_and_changes_nothing() {
    let (pool, reserves) = pool_with_reserves(160, 80, 54);
    let (mut r1, mut t1) = buffers(&pool);
    let mut a =
        Stack::new(StackConfig::new(MAC_A, ADDR_A), nic(MAC_A), pool.clone(), Some(reserves));
    assert!(a.try_add_stream(r1.bytes_mut(), t1.bytes_mut(), true).is_err());
    assert_eq!((a.tagged_streams(), pool.reserve_limit(ReserveId::ROOT)), (0, 0));
}

#[test]
fn a_connect_at_the_floor_is_entitled_and_leaks_nothing() {
    let mut memory = Memory::new(512);
    let (pool, reserves) = (memory.pool_a.clone(), memory.reserves);
    let mut world = World::new(&mut memory, Setup::new(1), 50_000);
    let _ordinary = exhaust(&pool);
    assert!(!EmergencyScope::is_entitled(&pool));
    while !world.client.connected && world.step(ms(1000)).is_some() {
        assert!(!EmergencyScope::is_entitled(&pool), "no entitlement outlives a call");
    }
    assert!(world.client.connected, "the connect itself could use the reserve");
    assert!(pool.reserve_peak(reserves.tx) > 0 && pool.reserve_peak(reserves.rx) > 0);
    assert!(world.run(ms(5000)));
    assert!(!EmergencyScope::is_entitled(&pool));
}

#[test]
fn a_caller_in_its_own_scope_entitles_no_untagged_stream() {
    let mut memory = Memory::new(512);
    let (pool, reserves) = (memory.pool_a.clone(), memory.reserves);
    let mut setup = Setup::new(1);
    setup.tagged = false;
    let mut world = World::new(&mut memory, setup, 50_000);
    pool.connect(reserves.net).unwrap();
    let _ordinary = exhaust(&pool);
    {
        let _scope = EmergencyScope::enter(&pool, reserves.tx);
        world.run_until(ms(200));
    }
    assert_eq!((world.client.connects, pool.reserve_peak(reserves.net)), (0, 0));
}

#[test]
fn reconnecting_moves_the_tag_without_dipping_or_leaking() {
    let mut memory = Memory::new(512);
    let (pool, reserves) = (memory.pool_a.clone(), memory.reserves);
    let mut world = World::new(&mut memory, Setup::new(1), 20_000_000);
    let _ordinary = exhaust(&pool);
    let mut ports = std::collections::BTreeSet::new();
    for round in 1..=20 {
        while !(world.client.connected && world.client.received > 100_000) {
            world.step(Time::MAX).expect("it goes on");
            assert_eq!(pool.reserve_limit(ReserveId::ROOT), 134, "never dips");
            assert_eq!(world.a.tagged_streams(), 1, "never leaks");
        }
        assert_eq!(world.client.connects, round);
        ports.insert(world.a.stream_info(world.ca).local_port);
        world.b.reset_stream(world.sb);
        while world.client.connected {
            world.step(Time::MAX).expect("it goes on");
        }
    }
    assert_eq!(ports.len(), 1, "always from the same port");
    assert!(world.client.ends.iter().all(|why| *why == Disconnect::Reset));
    world.a.set_tagged(world.ca, false).unwrap();
    world.client.reconnect = false;
    world.client.retry_at = None;
    drop(_ordinary);
    // Charged buffers of the ring leave it as packets come in.
    for i in 0..64u64 {
        let at = world.now + Span::from_micros(i);
        world.link.inject(at, netswap_net::End::A, &udp_frame(1, b"x"));
    }
    world.run_until(world.now + Span::from_millis(100));
    assert_eq!(pool.reserve_usage(reserves.net), 0, "{}", pool.reserve_report());
    assert_eq!(pool.reserve_limit(ReserveId::ROOT), 0, "{}", pool.reserve_report());
}

#[test]
fn without_tags_the_reserve_never_connects() {
    let mut memory = Memory::new(512);
    let pool = memory.pool_a.clone();
    let mut setup = Setup::new(1);
    setup.host.tag = false;
    let mut world = World::new(&mut memory, setup, 50_000);
    let _ordinary = exhaust(&pool);
    assert!(!world.run(ms(3000)), "and nothing gets through at the watermark");
    assert_eq!((world.a.tagged_streams(), pool.reserve_limit(ReserveId::ROOT)), (0, 0));
}
