//! Goal: sessions exchange their bytes over sockets of the kernel, in both directions, whatever the
//! sizes of the kernel's buffers, with many connections at once and none that starves.
//! Method: clients that check every byte, and echoing servers, in one loop on the loopback. Turns are
//! cut to 16 KiB, so that none fits what it has to do into one.

mod common;

use std::io::Write;

use common::kernel::{Real, any_port};
use netswap_net::kernel::{ConnConfig, SocketOptions};

const KIB: u64 = 1024;

fn check(real: &Real, total: u64) {
    let stats = real.net.stats();
    let n = real.clients.len() as u64;
    assert!(real.clients.iter().all(|client| client.wrong == 0 && client.connects == 1));
    assert_eq!(
        (stats.conns.bytes_sent, stats.conns.bytes_received),
        (2 * n * total, 2 * n * total)
    );
    assert_eq!((stats.conns.connects, stats.conns.accepts, stats.conns.bytes_copied), (n, n, 0));
}

#[test]
fn many_connections_exchange_their_bytes() {
    let total = 200 * KIB;
    let mut real = Real::new("127.0.0.1", 64, 64, total);
    real.run(|real| real.all_done());
    check(&real, total);
}

#[test]
fn no_connection_starves_while_others_have_work() {
    let total = 2048 * KIB;
    let mut real = Real::new("127.0.0.1", 8, 8, total);
    let mut spread = 0;
    real.run(|real| {
        let received = || real.clients.iter().map(|client| client.received);
        if received().max() < Some(total) && received().min() > Some(0) {
            spread = spread.max(received().max().unwrap() - received().min().unwrap());
        }
        real.all_done()
    });
    check(&real, total);
    // A turn moves 16 KiB, a call more at most 64 KiB; kernel buffers add what they hold.
    assert!(spread < total / 2, "one was {spread} bytes ahead");
}

#[test]
fn tiny_buffers_cut_sends_short_and_lose_nothing() {
    let tiny =
        SocketOptions { send_buffer: Some(1), recv_buffer: Some(1), ..SocketOptions::default() };
    let total = 100 * KIB;
    let conn = ConnConfig { socket: tiny, ..ConnConfig::default() };
    let mut real = Real::with("127.0.0.1", 2, 2, total, conn, tiny);
    real.run(|real| real.all_done());
    check(&real, total);
    assert!(real.net.stats().conns.short_sends > 10, "{:?}", real.net.stats());
}

#[test]
fn a_peer_that_stops_reading_stops_the_sender_and_nobody_else() {
    let small = SocketOptions { send_buffer: Some(8192), ..SocketOptions::default() };
    let small = SocketOptions { recv_buffer: Some(8192), ..small };
    let total = 1024 * KIB;
    let conn = ConnConfig { socket: small, ..ConnConfig::default() };
    let mut real = Real::with("127.0.0.1", 2, 2, total, conn, small);
    real.run(|real| real.echoes.iter().all(|echo| echo.connects == 1));
    real.echoes[0].read_at_most = 0;
    real.run(|real| real.clients.iter().any(|client| client.done()));
    let stuck = real.clients.iter().position(|client| !client.done()).unwrap();
    let (calls, sent) = (real.net.stats().calls(), real.clients[stuck].sent);
    assert!(sent < total / 2, "{sent} bytes went to nobody");
    // Nothing wakes the loop while nobody reads.
    real.patience = netswap_reserve::Span::from_millis(50);
    while real.turn() {}
    assert!(real.net.stats().calls() - calls < 20, "{:?}", real.net.stats());
    real.patience = netswap_reserve::Span::from_secs(20);
    real.echoes[0].read_at_most = usize::MAX;
    real.net.make_ready(real.echo(0));
    real.run(|real| real.all_done());
    check(&real, total);
}

#[test]
fn more_clients_than_slots_wait_for_their_turn() {
    let total = 10 * KIB;
    let mut real = Real::new("127.0.0.1", 2, 6, total);
    for client in &mut real.clients {
        client.reconnect = false;
    }
    // Who is done leaves, and makes room for the next.
    real.run(|real| {
        for i in 0..real.clients.len() {
            let client = &mut real.clients[i];
            if client.done() && client.connected && client.want.is_none() {
                client.want = Some(netswap_net::Action::Close);
                real.net.make_ready(real.client(i));
            }
        }
        real.clients.iter().all(|client| client.done() && !client.connected)
    });
    check(&real, total);
}

#[test]
fn over_ipv6_it_is_the_same() {
    if std::net::TcpListener::bind(any_port("::1")).is_err() {
        // Not by a macro: the harness would show it for tests that fail only.
        let _ = writeln!(std::io::stderr(), "skipped: this machine has no IPv6 loopback");
        return;
    }
    let total = 300 * KIB;
    let mut real = Real::new("::1", 2, 2, total);
    real.run(|real| real.all_done());
    check(&real, total);
    assert!(real.net.conn_info(real.client(0)).local.unwrap().is_ipv6());
}
