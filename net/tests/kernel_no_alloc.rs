//! Goal: after start the transport on sockets of the kernel makes no heap allocation: sending,
//! receiving, resets, reconnects, refusals, accepts, a listener without a free slot, wake-ups.
//! Method: a global allocator that counts what the test's own thread, which runs the loop, asks for
//! while it is armed. It is first shown to catch a planted allocation.

mod common;

use common::counting::{Counting, allocations};
use common::kernel::{Real, nobody};
use netswap_net::Action;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn nothing_is_allocated_after_start() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1, "the canary is caught");

    // More clients than slots, and one whose server is not there at first.
    let mut real = Real::new("127.0.0.1", 6, 8, u64::MAX);
    let (there, nobody) = (real.clients[7].remote, nobody());
    real.clients[7].remote = nobody;
    real.clients[7].want = Some(Action::Connect { remote: nobody, same_port: true });
    let waker = real.net.waker();
    for client in &mut real.clients {
        client.ends.reserve(256);
    }
    for echo in &mut real.echoes {
        echo.ends.reserve(256);
    }

    let mut turns = 0u64;
    let caught = allocations(|| {
        real.run(|real| {
            turns += 1;
            waker.wake();
            if turns.is_multiple_of(50) {
                let served = (turns / 50 % 6) as usize;
                let close = turns.is_multiple_of(100);
                real.order(served, if close { Action::Close } else { Action::Abort });
            }
            if real.clients[7].ends.len() >= 2 {
                real.clients[7].remote = there;
            }
            let stats = real.net.stats().conns;
            turns > 2000 && stats.accepts > 30 && stats.connect_failures >= 2
        });
    });
    let stats = real.net.stats();
    assert!(stats.conns.bytes_received > 1_000_000 && stats.wakes > 100, "{stats:?}");
    assert!(real.clients.iter().all(|client| client.wrong == 0));
    assert_eq!(caught, 0);
}
