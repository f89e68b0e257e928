//! Goal: only paging may live in the reserve. An emergency packet reaches a tagged socket or nothing.
//! Method: the pool is exhausted down to the atomic watermark, so that every buffer of the ring is
//! charged; then a flood, fragments, ARP and noise are sent beside a paging stream, and queues,
//! counters and charges are compared. The ablation shows that the method would see a leak.

mod common;

use common::*;
use netswap_net::headers::ArpPacket;
use netswap_net::{DropReason, End, Flood, FloodConfig, PacketBuf};
use netswap_reserve::{Gfp, Span, Time};
use proptest::prelude::*;

const MIB: u64 = 1 << 20;

fn flood(memory_pressure_share: u32, fragmented_ppm: u32) -> Flood {
    let config = FloodConfig::new(MAC_A, ADDR_A, ADDR_C);
    let config = FloodConfig { share_percent: memory_pressure_share, fragmented_ppm, ..config };
    Flood::new(config, 1_000_000_000, 3)
}

#[test]
fn a_flood_is_dropped_while_paging_goes_on_from_the_reserve() {
    let mut memory = Memory::new(1024);
    let (pool, reserves) = (memory.pool_a.clone(), memory.reserves);
    let mut world = World::new(&mut memory, Setup::new(1), MIB);
    let sockets: Vec<_> = (0..8).map(|i| world.a.udp_bind(7000 + i)).collect();
    let ordinary = exhaust(&pool);
    world.flood = Some(flood(30, 100_000));
    assert!(world.run(ms(20_000)), "{} bytes", world.client.received);

    let stats = *world.a.stats();
    let queued: usize = sockets.iter().map(|s| world.a.udp_len(*s)).sum();
    assert_eq!((queued, stats.udp_queued), (0, 0), "no untagged datagram was queued");
    assert!(stats.dropped(DropReason::EmergencyUntagged) > 50, "{stats:?}");
    assert!(stats.dropped(DropReason::EmergencyFragment) > 5, "{stats:?}");
    assert!(stats.emergency_passed > 500, "{stats:?}");
    assert_eq!(
        stats.emergency_received,
        stats.emergency_passed + stats.emergency_dropped,
        "each was judged once"
    );
    assert!(pool.reserve_peak(reserves.rx) > 0 && pool.reserve_peak(reserves.tx) > 0);
    assert_eq!(stats.dropped(DropReason::TxNoBuffer), 0, "the plan is enough");

    // Ordinary memory is back: the reserve empties, and datagrams are queued again.
    drop(ordinary);
    world.client = Client::new(MIB / 4);
    world.client.want = None;
    world.run_until(world.now + Span::from_millis(500));
    assert_eq!(pool.reserve_usage(reserves.net), 0, "{}", pool.reserve_report());
    assert!(world.a.stats().udp_queued > 100);
}

#[test]
fn without_dropping_untagged_packets_keep_the_reserve() {
    let mut memory = Memory::new(1024);
    let (pool, reserves) = (memory.pool_a.clone(), memory.reserves);
    let mut setup = Setup::new(1);
    setup.host.drop = false;
    let mut world = World::new(&mut memory, setup, 64 * MIB);
    for i in 0..8 {
        world.a.udp_bind(7000 + i);
    }
    let _ordinary = exhaust(&pool);
    world.flood = Some(flood(30, 0));
    assert!(!world.run(ms(3000)), "paging stands still");
    assert_eq!(pool.reserve_usage(reserves.rx), pool.reserve_limit(reserves.rx));
    assert_eq!(world.a.udp_held() as u32, pool.reserve_usage(reserves.rx));
    assert_eq!(world.a.ring_unfilled(), 64, "and the ring is empty");
}

/// Puts `frame` into a charged buffer of the ring and polls; what became of it.
fn receive(world: &mut World<'_>, frame: &[u8]) -> netswap_net::StackStats {
    let before = *world.a.stats();
    world.link.inject(world.now, End::A, frame);
    world.run_until(world.now + Span::from_millis(1));
    assert_eq!(world.a.stats().emergency_received, before.emergency_received + 1);
    *world.a.stats()
}

#[test]
fn arp_goes_on_only_if_a_tagged_socket_needs_it() {
    let mut memory = Memory::new(512);
    let pool = memory.pool_a.clone();
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    let _ordinary = exhaust(&pool);
    assert!(world.run(ms(1000)));
    let ask = |sender_ip, sender_mac| {
        let mut frame = vec![0xff; 60];
        netswap_net::headers::EthHeader::emit(
            &mut frame,
            netswap_net::MacAddr::BROADCAST,
            sender_mac,
            0x0806,
        );
        let target_mac = netswap_net::MacAddr::default();
        let arp =
            ArpPacket { is_request: true, sender_mac, sender_ip, target_mac, target_ip: ADDR_A };
        arp.emit(&mut frame[14..42]);
        frame
    };
    let replies = world.a.stats().arp_replies;
    let stats = receive(&mut world, &ask(ADDR_C, MAC_B));
    assert_eq!((stats.dropped(DropReason::EmergencyArp), stats.arp_replies), (1, replies));
    let stats = receive(&mut world, &ask(ADDR_B, MAC_B));
    assert_eq!((stats.dropped(DropReason::EmergencyArp), stats.arp_replies), (1, replies + 1));
}

#[test]
fn every_kind_of_untagged_packet_has_its_reason() {
    let mut memory = Memory::new(512);
    let pool = memory.pool_a.clone();
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    world.a.udp_bind(7000);
    let _ordinary = exhaust(&pool);
    assert!(world.run(ms(1000)));
    let cases = [
        (udp_frame(7000, b"x"), DropReason::EmergencyUntagged),
        (udp_frame(7001, b"x"), DropReason::EmergencyNoSocket),
        (
            {
                let mut f = udp_frame(7000, b"x");
                f[23] = 1;
                f
            },
            DropReason::EmergencyProtocol,
        ),
        (
            {
                let mut f = udp_frame(7000, b"x");
                f[20] = 0x20;
                f
            },
            DropReason::EmergencyFragment,
        ),
        (
            {
                let mut f = udp_frame(7000, b"x");
                f[0] = 6;
                f
            },
            DropReason::OtherStation,
        ),
        (
            {
                let mut f = udp_frame(7000, b"x");
                f[33] = 9;
                f
            },
            DropReason::OtherHost,
        ),
        (
            {
                let mut f = udp_frame(7000, b"x");
                f[12] = 0x86;
                f
            },
            DropReason::EtherType,
        ),
        (
            {
                let mut f = udp_frame(7000, b"x");
                f[14] = 0x65;
                f
            },
            DropReason::Malformed,
        ),
    ];
    let free = pool.free_frames();
    for (frame, reason) in cases {
        let before = world.a.stats().dropped(reason);
        let stats = receive(&mut world, &frame);
        assert_eq!(stats.dropped(reason), before + 1, "{reason:?}");
        assert_eq!(pool.free_frames(), free, "its frame went back at once, and into the ring");
    }
}

#[test]
fn the_mark_survives_clone_and_split() {
    let memory = Memory::new(512);
    let (pool, rx) = (&memory.pool_a, memory.reserves.rx);
    pool.connect(memory.reserves.net).unwrap();
    let _ordinary = exhaust(pool);
    let frame = pool.alloc_from(Gfp::ATOMIC | Gfp::MEMALLOC, rx).unwrap();
    let mut packet = PacketBuf::from_frame(frame, 64, 100);
    let (front, copy) = (packet.split_to(40), packet.clone());
    assert!(packet.is_emergency() && front.is_emergency() && copy.is_emergency());
    drop((packet, front));
    assert_eq!(pool.reserve_usage(rx), 1, "one frame, one charge, until the last handle is gone");
    drop(copy);
    assert_eq!(pool.reserve_usage(rx), 0);
}

#[test]
fn fragments_of_a_tagged_stream_are_put_together_from_the_reserve() {
    // A router on the way cuts a segment in two: both halves must pass, charged, and be one again.
    let mut memory = Memory::new(512);
    let (pool, reserves) = (memory.pool_a.clone(), memory.reserves);
    let mut world = World::new(&mut memory, Setup::new(1), 1000);
    let _ordinary = exhaust(&pool);
    assert!(world.run(ms(1000)));
    let info = world.a.stream_info(world.ca);
    world.run_until(world.now + Span::from_millis(100));
    // A segment far outside the window: it is answered with an acknowledgement, which shows that it
    // arrived whole.
    let ip = netswap_net::headers::Ipv4Header {
        src: ADDR_B,
        dst: ADDR_A,
        protocol: 6,
        header_len: 20,
        total_len: 60,
        id: 77,
        more_fragments: false,
        fragment_offset: 0,
    };
    let mut packet = vec![0; 60];
    ip.emit(&mut packet);
    packet[20..22].copy_from_slice(&PORT.to_be_bytes());
    packet[22..24].copy_from_slice(&info.local_port.to_be_bytes());
    packet[32] = 0x50;
    packet[33] = 0x10;
    netswap_net::headers::fill_transport_checksum(&mut packet);
    let before = *world.a.stats();
    for (offset, more) in [(24, false), (0, true)] {
        let part = if more { 20..44 } else { 44..60 };
        let mut frame = vec![0; 34 + part.len()];
        netswap_net::headers::EthHeader::emit(&mut frame, MAC_A, MAC_B, 0x0800);
        let total_len = 20 + part.len();
        netswap_net::headers::Ipv4Header {
            total_len,
            more_fragments: more,
            fragment_offset: offset,
            ..ip
        }
        .emit(&mut frame[14..]);
        frame[34..].copy_from_slice(&packet[part]);
        let stats = receive(&mut world, &frame);
        assert_eq!(stats.dropped(DropReason::EmergencyFragment), 0);
        let held = pool.reserve_usage(reserves.rx) as usize + world.a.ring_unfilled();
        assert!(held <= 65);
    }
    assert_eq!(world.a.stats().reassembled, before.reassembled + 1);
    assert!(world.a.stats().transmitted > before.transmitted, "the stream saw it");
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 24,
        ..ProptestConfig::default()
    })]

    /// Whatever arrives, at a host at its floor: no panic, nothing untagged queued, no charge leaks.
    #[test]
    fn noise_never_reaches_a_queue(
        frames in proptest::collection::vec((0usize..60, any::<u8>(), 7000u16..7004, any::<bool>()), 1..200),
        seed in any::<u64>(),
    ) {
        let mut memory = Memory::new(512);
        let (pool, reserves) = (memory.pool_a.clone(), memory.reserves);
        let mut world = World::new(&mut memory, Setup::new(seed), 3000);
        for port in 7000..7003 {
            world.a.udp_bind(port);
        }
        let ordinary = exhaust(&pool);
        for (at, value, port, mutate) in frames {
            let mut frame = udp_frame(port, &[value; 64]);
            if mutate {
                frame[at] ^= value;
            }
            world.link.inject(world.now, End::A, &frame);
        }
        prop_assert!(world.run(ms(5000)));
        prop_assert_eq!(world.a.udp_held(), 0);
        drop(ordinary);
        for _ in 0..64 {
            world.link.inject(world.now, End::A, &udp_frame(1, b"x"));
        }
        world.run_until(world.now + Span::from_millis(50));
        prop_assert_eq!(pool.reserve_usage(reserves.net), 0);
        prop_assert_eq!(world.now > Time::ZERO, true);
    }
}
