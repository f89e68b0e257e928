//! Goal: after start the packet layer makes no heap allocation: sending, receiving, loss,
//! retransmission, reassembly, a full queue, an exhausted pool, a reconnect.
//! Method: this test binary's own allocator counts. It is first shown to catch a planted allocation.
//! One test only, so that no other thread allocates meanwhile.

mod common;

use std::alloc::{GlobalAlloc, Layout, System};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use common::*;
use netswap_net::{Flood, FloodConfig};
use netswap_reserve::Span;

static ARMED: AtomicBool = AtomicBool::new(false);
static CAUGHT: AtomicU64 = AtomicU64::new(0);

struct Counting;

// SAFETY: every call goes to the system's allocator unchanged.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(at, layout) }
    }

    unsafe fn realloc(&self, at: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count();
        // SAFETY: the caller's promises are passed on.
        unsafe { System.realloc(at, layout, size) }
    }
}

fn count() {
    if ARMED.load(Ordering::Relaxed) {
        CAUGHT.fetch_add(1, Ordering::Relaxed);
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// Allocations while `work` runs.
fn allocations(work: impl FnOnce()) -> u64 {
    CAUGHT.store(0, Ordering::Relaxed);
    ARMED.store(true, Ordering::Relaxed);
    work();
    ARMED.store(false, Ordering::Relaxed);
    CAUGHT.load(Ordering::Relaxed)
}

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
