//! Goal: the same client and the same server speak over TCP sockets of the kernel; every page comes
//! back as it was written, also when the server restarts under load; and no byte of a page passes
//! through anything but the page on its way between user space and the kernel.
//! Method: one event loop on the loopback holds both ends. A session around the client's looks at where
//! the slices that the transport is shown lie, and counts the bytes that lie in frames.

mod common;

use common::SLOTS;
use common::kernel::Real;
use netswap_net::kernel::SocketOptions;
use netswap_reserve::PAGE_SIZE;
use netswap_swap::Op;

const PAGES_BYTES: u64 = SLOTS as u64 * PAGE_SIZE as u64;

#[test]
fn pages_come_back_and_are_copied_by_nobody_but_the_kernel() {
    let mut real = Real::new(SocketOptions::default());
    real.start();
    real.move_all(Op::Write, 1, |_, _| ());
    assert_eq!(real.watched.sent_from_pages, PAGES_BYTES);
    real.move_all(Op::Read, 1, |_, _| ());
    assert_eq!(real.watched.received_in_pages, PAGES_BYTES);
    let conn = real.net.conn_stats(real.conn);
    assert_eq!(real.net.stats().conns.bytes_copied, 0);
    assert!(conn.bytes_sent > PAGES_BYTES && conn.bytes_received > PAGES_BYTES, "{conn:?}");
    // Heads only: what is not in a page is a small part.
    assert!(conn.bytes_received - real.watched.received_in_pages < PAGES_BYTES / 16, "{conn:?}");
    // 32 replies of 8 pages: one call for mark and xid, one for the head, one for the pages, and
    // what the kernel has cut in between.
    assert!(conn.recv_calls < 300, "{conn:?}");
    assert_eq!((conn.connects, conn.port_changes), (1, 0));
}

#[test]
fn small_kernel_buffers_change_nothing_but_the_number_of_calls() {
    let socket = SocketOptions {
        send_buffer: Some(4096),
        recv_buffer: Some(4096),
        ..SocketOptions::default()
    };
    let mut real = Real::new(socket);
    real.start();
    real.move_all(Op::Write, 2, |_, _| ());
    real.move_all(Op::Read, 2, |_, _| ());
    assert_eq!(real.watched.received_in_pages, PAGES_BYTES);
    assert!(real.net.stats().conns.short_sends > 0);
}

#[test]
fn a_server_that_restarts_under_load_loses_no_page() {
    let mut real = Real::new(SocketOptions::default());
    real.start();
    let port = |real: &Real| real.net.conn_info(real.conn).local.unwrap().port();
    let first_port = port(&real);
    // As many rounds as it takes: a restart in the middle of a reconnect is none of its own.
    for version in 3..50 {
        for op in [Op::Write, Op::Read] {
            real.move_all(op, version, |real, ended| {
                if ended % 10 == 0 {
                    real.restart_server();
                }
            });
        }
        if version >= 4 && real.net.conn_stats(real.conn).connects > 8 {
            break;
        }
    }
    let stats = real.net.conn_stats(real.conn);
    assert!(stats.connects > 8, "{stats:?}");
    assert_eq!((port(&real), stats.port_changes), (first_port, 0), "{stats:?}");
}
