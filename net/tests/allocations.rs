//! Goal: after start the packet layer makes no heap allocation: sending, receiving, loss,
//! retransmission, reassembly, a full queue, an exhausted pool, a reconnect.
//! Method: a global allocator that counts what the test's own thread asks for while it is armed. It is
//! first shown to catch a planted allocation.

mod common;

use common::counting::{Counting, allocations};
use common::*;
use netswap_net::{Flood, FloodConfig};
use netswap_reserve::Span;

#[global_allocator]
static ALLOCATOR: Counting = Counting;

#[test]
fn nothing_is_allocated_after_start() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1, "the canary is caught");

    let mut memory = Memory::new(1024);
    let pool = memory.pool_a.clone();
    let mut setup = Setup::new(1);
    setup.link.loss_ppm = 5_000;
    setup.link.duplicate_ppm = 5_000;
    setup.link.corrupt_ppm = 1_000;
    setup.link.jitter = Span::from_micros(20);
    setup.host.udp_host_frames_max = 300;
    let mut world = World::new(&mut memory, setup, u64::MAX);
    world.client.ends.reserve(64);
    world.server.ends.reserve(64);
    let sockets: Vec<_> = (0..8).map(|i| world.a.udp_bind(7000 + i)).collect();
    let config = FloodConfig::new(MAC_A, ADDR_A, ADDR_C);
    let config = FloodConfig { fragmented_ppm: 100_000, ..config };
    world.flood = Some(Flood::new(config, 1_000_000_000, 3));
    let mut ordinary = Vec::with_capacity(1024);

    let caught = allocations(|| {
        world.run_until(ms(200));
        for socket in &sockets {
            while world.a.udp_recv(*socket).is_some() {}
        }
        world.run_until(ms(300));
        while let Ok(frame) =
            pool.alloc(netswap_reserve::Gfp::ATOMIC | netswap_reserve::Gfp::NOMEMALLOC)
        {
            ordinary.push(frame);
        }
        world.run_until(ms(400));
        world.b.reset_stream(world.sb);
        world.run_until(ms(600));
    });
    assert!(world.client.connects == 2 && world.server.echoed > 1_000_000, "it worked hard");
    assert!(world.a.stats().emergency_dropped > 100 && world.a.stats().reassembled > 100);
    assert_eq!(caught, 0);
}
