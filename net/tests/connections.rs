//! Goal: a session is told truthfully what became of its connection, and can always connect again on
//! the same socket, from the same port if it wants.
//! Method: one end ends the connection in each possible way; what both sessions were told is compared.

mod common;

use common::*;
use netswap_net::{Action, Disconnect, Phase};
use netswap_reserve::{Span, Time};

/// A world whose client has connected and exchanged `bytes`, and does not reconnect by itself.
fn connected(memory: &mut Memory, bytes: u64) -> World<'_> {
    let mut world = World::new(memory, Setup::new(1), bytes);
    world.client.reconnect = false;
    assert!(world.run(ms(1000)));
    settle(&mut world);
    world
}

fn settle(world: &mut World<'_>) {
    world.run_until(world.now + Span::from_millis(300));
}

fn again(world: &mut World<'_>, same_port: bool) {
    world.client.want = Some(Action::Connect { remote: server_addr(), same_port });
    let connects = world.client.connects;
    let until = world.now + Span::from_secs(2);
    while world.client.connects == connects && world.step(until).is_some() {}
    assert_eq!(world.client.connects, connects + 1, "connected again: {:?}", world.client.ends);
    assert!(world.run(world.now + Span::from_secs(2)), "and bytes pass");
}

#[test]
fn closing_is_told_to_both_and_time_wait_does_not_hinder() {
    let mut memory = Memory::new(512);
    let mut world = connected(&mut memory, 10_000);
    let port = world.a.stream_info(world.ca).local_port;
    for round in 1..4 {
        world.client.want = Some(Action::Close);
        // Half of the rounds come back within TIME-WAIT, which is 200 ms here.
        world.run_until(world.now + Span::from_millis(if round % 2 == 0 { 5 } else { 300 }));
        assert_eq!(world.client.ends.len(), round);
        assert_eq!(world.client.ends[round - 1], Disconnect::BySelf);
        assert_eq!(world.server.ends[round - 1], Disconnect::ByPeer);
        again(&mut world, true);
        assert_eq!(world.a.stream_info(world.ca).local_port, port);
    }
    world.client.want = Some(Action::Close);
    settle(&mut world);
    again(&mut world, false);
    assert_ne!(world.a.stream_info(world.ca).local_port, port);
}

#[test]
fn aborting_resets_the_peer() {
    let mut memory = Memory::new(512);
    let mut world = connected(&mut memory, 10_000);
    world.client.want = Some(Action::Abort);
    settle(&mut world);
    assert_eq!(world.client.ends, [Disconnect::BySelf]);
    assert_eq!(world.server.ends, [Disconnect::Reset]);
    assert_eq!(world.b.stream_info(world.sb).phase, Phase::Listening);
    again(&mut world, true);
}

#[test]
fn connecting_over_an_open_connection_replaces_it() {
    let mut memory = Memory::new(512);
    let mut world = connected(&mut memory, 10_000);
    let port = world.a.stream_info(world.ca).local_port;
    again(&mut world, true);
    assert_eq!(world.a.stream_info(world.ca).local_port, port);
    assert_eq!(world.server.ends, [Disconnect::Reset]);
}

#[test]
fn a_server_that_forgets_answers_with_a_reset() {
    let mut memory = Memory::new(512);
    let mut world = connected(&mut memory, 10_000);
    world.b.reset_stream(world.sb);
    settle(&mut world);
    assert_eq!(world.client.ends, [], "nothing tells an idle client");
    assert_eq!(world.server.ends, [Disconnect::BySelf]);
    world.client.total += 1;
    settle(&mut world);
    assert_eq!(world.client.ends, [Disconnect::Reset]);
    again(&mut world, true);
}

#[test]
fn a_client_that_forgets_comes_back_from_the_same_port() {
    // The server still has the old connection: RFC 5961 section 4.2, a challenge, a reset, a new one.
    let mut memory = Memory::new(512);
    let mut world = connected(&mut memory, 10_000);
    world.a.reset_stream(world.ca);
    world.run_until(world.now + Span::from_millis(1));
    assert_eq!(world.client.ends, [Disconnect::BySelf]);
    again(&mut world, true);
    assert_eq!(world.server.ends, [Disconnect::Reset]);
}

#[test]
fn a_late_copy_of_the_first_packet_disturbs_nothing() {
    // RFC 5961 section 4.2 again, from the other side: the connection is in good standing.
    let mut memory = Memory::new(512);
    let mut setup = Setup::new(1);
    setup.link.duplicate_ppm = 1_000_000;
    setup.link.jitter = Span::from_micros(900);
    let mut world = World::new(&mut memory, setup, 10_000);
    assert!(world.run(ms(1000)));
    settle(&mut world);
    assert_eq!((world.client.connects, world.server.connects), (1, 1));
    assert_eq!((world.client.ends.len(), world.server.ends.len()), (0, 0));
}

#[test]
fn a_reset_that_is_lost_does_not_keep_the_client_out() {
    let mut memory = Memory::new(512);
    let mut world = connected(&mut memory, 10_000);
    world.link.partition(world.now, world.now + Span::from_millis(10));
    world.client.want = Some(Action::Abort);
    world.run_until(world.now + Span::from_millis(20));
    assert_eq!((world.client.ends.len(), world.server.ends.len()), (1, 0));
    again(&mut world, true);
    assert_eq!(world.server.ends, [Disconnect::Reset]);
}

#[test]
fn nobody_listening_refuses() {
    let mut memory = Memory::new(512);
    let mut setup = World::new(&mut memory, Setup::new(1), 1000);
    setup.client.reconnect = false;
    let remote = std::net::SocketAddr::from((ADDR_B, 1));
    setup.client.want = Some(Action::Connect { remote, same_port: true });
    settle(&mut setup);
    assert_eq!(setup.client.ends, [Disconnect::Reset]);
}

#[test]
fn an_unanswered_connect_times_out_and_ipv6_is_refused() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    world.client.reconnect = false;
    world.link.partition(Time::ZERO, Time::MAX);
    world.run_until(ms(2900));
    assert_eq!(world.client.ends, []);
    world.run_until(ms(3100));
    assert_eq!(world.client.ends, [Disconnect::TimedOut]);
    let remote = std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, 1));
    world.client.want = Some(Action::Connect { remote, same_port: true });
    settle(&mut world);
    assert_eq!(world.client.ends, [Disconnect::TimedOut, Disconnect::Reset]);
}

#[test]
fn a_connect_that_is_resolved_late_still_succeeds() {
    let mut memory = Memory::new(512);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    world.client.reconnect = false;
    world.link.partition(Time::ZERO, ms(1500));
    assert!(world.run(ms(3000)), "{:?}", world.client.ends);
}

#[test]
fn a_listener_outlives_a_peer_that_is_gone() {
    let mut memory = Memory::new(512);
    let mut world = connected(&mut memory, 10_000);
    world.link.partition(world.now, Time::MAX);
    world.run_until(world.now + Span::from_secs(29));
    assert_eq!(world.server.ends, []);
    world.run_until(world.now + Span::from_secs(12));
    assert_eq!(world.server.ends, [Disconnect::TimedOut]);
    assert_eq!(world.b.stream_info(world.sb).phase, Phase::Listening);
}

#[test]
fn several_streams_listen_on_one_port() {
    let (pool_a, _) = pool_with_reserves(512, 80, 54);
    let (pool_b, _) = pool_with_reserves(512, 80, 54);
    let mut runs: Vec<_> = (0..3).flat_map(|_| [buffers(&pool_a), buffers(&pool_b)]).collect();
    let mut a = netswap_net::Stack::new(
        netswap_net::StackConfig::new(MAC_A, ADDR_A),
        nic(MAC_A),
        pool_a,
        None,
    );
    let mut b = netswap_net::Stack::new(
        netswap_net::StackConfig::new(MAC_B, ADDR_B),
        nic(MAC_B),
        pool_b,
        None,
    );
    let (mut clients, mut servers) = (Vec::new(), Vec::new());
    for (i, (rx, tx)) in runs.iter_mut().enumerate() {
        let stack = if i % 2 == 0 { &mut a } else { &mut b };
        let id = stack.add_stream(rx.bytes_mut(), tx.bytes_mut(), false);
        if i % 2 == 0 {
            clients.push((id, Client::new(20_000)));
        } else {
            b.listen(id, PORT);
            servers.push((id, Echo::new()));
        }
    }
    let mut link = netswap_net::SimLink::new(netswap_net::LinkConfig::default(), 1);
    let mut now = Time::ZERO;
    while clients.iter().any(|c| !c.1.done()) {
        assert!(now < ms(1000), "all get through");
        link.poll(now, a.device_mut(), b.device_mut());
        a.poll(now);
        b.poll(now);
        clients.iter_mut().for_each(|(id, client)| a.drive(now, *id, client));
        servers.iter_mut().for_each(|(id, server)| b.drive(now, *id, server));
        link.poll(now, a.device_mut(), b.device_mut());
        let next = [link.poll_deadline(), a.poll_deadline(now), b.poll_deadline(now)];
        now = next.into_iter().flatten().min().unwrap().max(now + Span::from_nanos(1));
    }
    assert!(servers.iter().all(|s| s.1.connects == 1), "each served one");
}
