//! Goal: every way in which a connection ends, or does not begin, reaches the session as what it is;
//! a client comes back from the port it had; another address of the host is tried.
//! Method: one loop on the loopback with a listener that can be told to reset or to close.

mod common;

use common::Client;
use common::kernel::{Real, nobody};
use netswap_net::kernel::{
    Clock, ConnConfig, ConnPhase, HostAddrs, KernelConfig, KernelNet, SocketOptions, SourcePort,
};
use netswap_net::{Action, Disconnect};
use netswap_reserve::Span;

fn open() -> Real {
    open_with(ConnConfig::default())
}

fn open_with(conn: ConnConfig) -> Real {
    // A second slot, for a client may be back before the end of its old connection is seen.
    let mut real = Real::with("127.0.0.1", 2, 1, u64::MAX, conn, SocketOptions::default());
    real.run(|real| real.clients[0].received > 100_000);
    real
}

fn port(real: &Real) -> u16 {
    real.net.conn_info(real.client(0)).local.unwrap().port()
}

#[test]
fn after_a_reset_the_client_comes_back_from_the_same_port() {
    let mut real = open();
    let before = port(&real);
    for round in 1..=5 {
        let serving = real.echoes.iter().position(|echo| echo.connects > echo.ends.len() as u32);
        real.order(serving.unwrap(), Action::Abort);
        real.run(|real| {
            real.clients[0].connects == round + 1 && real.clients[0].received > 100_000
        });
        assert_eq!(port(&real), before);
    }
    assert_eq!(real.clients[0].ends, [Disconnect::Reset; 5]);
    assert_eq!(real.clients[0].wrong, 0);
    let stats = real.net.conn_stats(real.client(0));
    assert_eq!((stats.connects, stats.port_changes, stats.disconnects), (6, 0, 5));
}

#[test]
fn aborting_resets_the_peer() {
    let mut real = open();
    real.clients[0].reconnect = false;
    real.clients[0].want = Some(Action::Abort);
    real.net.make_ready(real.client(0));
    real.run(|real| real.echoes[0].ends.len() == 1 && !real.clients[0].connected);
    assert_eq!(real.clients[0].ends, [Disconnect::BySelf]);
    assert_eq!(real.echoes[0].ends, [Disconnect::Reset]);
    assert_eq!(real.net.conn_info(real.client(0)).phase, ConnPhase::Idle);
}

#[test]
fn closing_ends_both_sides_in_order() {
    let mut real = open();
    real.clients[0].reconnect = false;
    real.clients[0].want = Some(Action::Close);
    real.net.make_ready(real.client(0));
    real.run(|real| real.echoes[0].ends.len() == 1 && !real.clients[0].connected);
    assert_eq!(real.clients[0].ends, [Disconnect::BySelf]);
    assert_eq!(real.echoes[0].ends, [Disconnect::ByPeer]);
}

#[test]
fn a_peer_that_does_not_answer_a_close_is_reset() {
    let mut real = open();
    real.echoes[0].read_at_most = 0;
    real.clients[0].reconnect = false;
    real.clients[0].want = Some(Action::Close);
    real.net.make_ready(real.client(0));
    let from = real.clock.now();
    real.run(|real| real.echoes[0].ends.len() == 1 && !real.clients[0].connected);
    assert!(real.clock.now().since(from) >= Span::from_secs(2));
    assert_eq!(real.clients[0].ends, [Disconnect::BySelf]);
    assert_eq!(real.echoes[0].ends, [Disconnect::Reset]);
}

#[test]
fn nobody_there_is_a_refusal_that_can_be_tried_again() {
    let mut real = Real::new("127.0.0.1", 1, 1, 1000);
    let there = real.clients[0].remote;
    real.clients[0].remote = nobody();
    real.clients[0].want =
        Some(Action::Connect { remote: real.clients[0].remote, same_port: true });
    real.run(|real| real.clients[0].ends.len() >= 3);
    assert!(real.clients[0].ends.iter().all(|end| *end == Disconnect::Refused));
    let info = real.net.conn_info(real.client(0));
    assert!(info.last_error.unwrap().to_string().contains("refused"), "{info:?}");
    real.clients[0].remote = there;
    real.run(|real| real.all_done());
}

#[test]
fn an_address_without_a_way_to_it_is_unreachable() {
    let mut real = Real::new("127.0.0.1", 1, 1, 1000);
    // No TCP connection leads to a group of hosts, whatever routes this machine has.
    let remote = "224.0.0.1:2049".parse().unwrap();
    real.clients[0].remote = remote;
    real.clients[0].want = Some(Action::Connect { remote, same_port: true });
    real.run(|real| !real.clients[0].ends.is_empty());
    assert_eq!(real.clients[0].ends[0], Disconnect::Unreachable);
}

#[test]
fn a_peer_that_does_not_answer_at_all_is_a_timeout() {
    // A listener whose queue is full does not answer the next peer.
    let full = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    rustix::net::listen(&full, 0).unwrap();
    let remote = full.local_addr().unwrap();
    let _queued = std::net::TcpStream::connect(remote).unwrap();
    let connect_timeout = Span::from_millis(100);
    let config = KernelConfig { connect_timeout, ..KernelConfig::new(1) };
    let mut net = KernelNet::new(config).unwrap();
    net.add_conn(ConnConfig::default()).unwrap();
    let (clock, mut client) = (Clock::new(), Client::to(remote, 1));
    while client.ends.is_empty() {
        net.wait(clock.now(), None).unwrap();
        let now = clock.now();
        while let Some(id) = net.next_ready(now) {
            net.drive(now, id, &mut client);
        }
    }
    assert_eq!(client.ends, [Disconnect::TimedOut]);
    assert!(clock.now() >= netswap_reserve::Time::ZERO + connect_timeout);
}

#[test]
fn the_next_address_of_the_host_is_tried_and_kept() {
    let mut real = Real::new("127.0.0.1", 2, 0, 0);
    let there = real.net.listener_addr(real.listener);
    // The same port on another loopback address, where nobody listens.
    let dead = std::net::SocketAddr::from(([127, 0, 0, 99], there.port()));
    let addrs = HostAddrs::collect([dead, there]);
    let conn = ConnConfig { addrs, ..ConnConfig::default() };
    real = Real::with("127.0.0.1", 2, 1, u64::MAX, conn, SocketOptions::default());
    // The listener has another port now; the session's port counts, not that of the list.
    let port_now = real.net.listener_addr(real.listener).port();
    let remote = std::net::SocketAddr::new(dead.ip(), port_now);
    real.clients[0].remote = remote;
    real.clients[0].want = Some(Action::Connect { remote, same_port: true });
    real.run(|real| real.clients[0].received > 10_000);
    let stats = real.net.conn_stats(real.client(0));
    assert_eq!((stats.connects, stats.connect_failures), (1, 1));
    assert_eq!(real.clients[0].ends, []);
    // What has worked is tried first from then on.
    let serving = real.echoes.iter().position(|echo| echo.connects == 1).unwrap();
    real.order(serving, Action::Abort);
    real.run(|real| real.clients[0].connects == 2);
    assert_eq!(real.net.conn_stats(real.client(0)).connect_failures, 1);
}

#[test]
fn a_port_that_cannot_be_had_again_is_replaced_and_told() {
    let mut real = open();
    let before = port(&real);
    // Somebody else takes the port meanwhile: a listener forbids binding to it.
    real.clients[0].reconnect = false;
    real.clients[0].want = Some(Action::Abort);
    real.net.make_ready(real.client(0));
    real.run(|real| !real.clients[0].connected);
    let _taken = std::net::TcpListener::bind(("0.0.0.0", before)).unwrap();
    let remote = real.clients[0].remote;
    real.clients[0].want = Some(Action::Connect { remote, same_port: true });
    real.net.make_ready(real.client(0));
    real.run(|real| real.clients[0].connects == 2);
    assert_ne!(port(&real), before);
    assert_eq!(real.net.conn_stats(real.client(0)).port_changes, 1);
}

#[test]
fn a_privileged_source_port_is_taken_or_its_refusal_counted() {
    let conn = ConnConfig { source_port: SourcePort::Privileged, ..ConnConfig::default() };
    let real = open_with(conn);
    let stats = real.net.conn_stats(real.client(0));
    if stats.unprivileged == 0 {
        assert!((665..=1023).contains(&port(&real)), "{}", port(&real));
    } else {
        println!("not allowed here: port {}", port(&real));
        assert!(port(&real) > 1023);
    }
}
