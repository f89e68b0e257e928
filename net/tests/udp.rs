//! Goal: datagram queues hold their packets' frames, within the bounds of each socket and of the host.
//! Method: more datagrams are sent than may be held; queues, frames and counters are compared.

mod common;

use common::*;
use netswap_net::{DropReason, End, Flood, FloodConfig, LinkConfig, SimLink, Stack, StackConfig};
use netswap_reserve::{PagePool, PoolConfig, Span, Time};

fn host<'b>(host_max: usize) -> (PagePool, Stack<'b, netswap_net::SimNic>) {
    let mut config = PoolConfig::new(512);
    config.magazine = 0;
    let pool = PagePool::new(config);
    let config = StackConfig { udp_host_frames_max: host_max, ..StackConfig::new(MAC_A, ADDR_A) };
    (pool.clone(), Stack::new(config, nic(MAC_A), pool, None))
}

/// Sends `n` datagrams to `port`, a few at a time.
fn send(a: &mut Stack<'_, netswap_net::SimNic>, port: u16, n: usize) {
    let mut link = SimLink::new(LinkConfig::default(), 1);
    let mut b = nic(MAC_B);
    let mut now = Time::ZERO;
    a.poll(now);
    for i in 0..n {
        link.inject(now, End::A, &udp_frame(port, &[i as u8; 10]));
        now += Span::from_millis(1);
        link.poll(now, a.device_mut(), &mut b);
        a.poll(now);
    }
}

#[test]
fn a_socket_holds_212992_bytes_at_a_frame_a_packet() {
    let (pool, mut a) = host(1000);
    let (one, other) = (a.udp_bind(7000), a.udp_bind(7001));
    send(&mut a, 7000, 60);
    assert_eq!((a.udp_len(one), a.udp_len(other), a.udp_socket_frames_max()), (52, 0, 52));
    assert_eq!(a.stats().dropped(DropReason::UdpSocketFull), 8);
    assert_eq!(pool.free_frames() as usize, 512 - 64 - 52, "each holds its frame");
    // They come in order, and their frames are free when they have been read.
    for i in 0..52 {
        let datagram = a.udp_recv(one).unwrap();
        assert_eq!(datagram.payload.data(), &[i as u8; 10]);
        assert_eq!(datagram.from.to_string(), "10.0.0.3:999");
    }
    assert!(a.udp_recv(one).is_none());
    assert_eq!(pool.free_frames(), 512 - 64);
}

#[test]
fn all_sockets_together_hold_what_the_host_allows() {
    let (_, mut a) = host(60);
    let (one, other) = (a.udp_bind(7000), a.udp_bind(7001));
    send(&mut a, 7000, 40);
    send(&mut a, 7001, 40);
    assert_eq!((a.udp_len(one), a.udp_len(other), a.udp_held()), (40, 20, 60));
    assert_eq!(a.stats().dropped(DropReason::UdpHostFull), 20);
    a.udp_unbind(one);
    assert_eq!((a.udp_len(one), a.udp_held()), (0, 20));
    assert_eq!(a.udp_holders().map(|h| (h.1, h.2)).collect::<Vec<_>>(), [(7001, 20)]);
    send(&mut a, 7000, 1);
    assert_eq!(a.stats().dropped(DropReason::NoSocket), 1);
}

#[test]
fn a_damaged_datagram_is_dropped() {
    let (_, mut a) = host(60);
    let one = a.udp_bind(7000);
    let (mut link, mut b) = (SimLink::new(LinkConfig::default(), 1), nic(MAC_B));
    a.poll(Time::ZERO);
    for at in [25, 28, 42] {
        let mut frame = udp_frame(7000, b"payload");
        frame[at] ^= 4;
        link.inject(Time::ZERO, End::A, &frame);
    }
    link.poll(ms(1), a.device_mut(), &mut b);
    a.poll(ms(1));
    assert_eq!((a.udp_len(one), a.stats().checksum_errors()), (0, 3));
}

#[test]
fn a_tagged_priority_frame_is_accepted_and_a_vlan_is_not() {
    let (_, mut a) = host(60);
    let one = a.udp_bind(7000);
    let (mut link, mut b) = (SimLink::new(LinkConfig::default(), 1), nic(MAC_B));
    a.poll(Time::ZERO);
    for tag in [0xa000u16, 0xa005] {
        let mut frame = udp_frame(7000, b"payload");
        frame.splice(12..12, [0x81, 0x00, (tag >> 8) as u8, tag as u8]);
        link.inject(Time::ZERO, End::A, &frame);
    }
    link.poll(ms(1), a.device_mut(), &mut b);
    a.poll(ms(1));
    assert_eq!((a.udp_len(one), a.stats().dropped(DropReason::Vlan)), (1, 1));
}

#[test]
fn a_flood_keeps_to_its_share_in_bursts() {
    let (_, mut a) = host(400);
    let sockets: Vec<_> = (0..8).map(|i| a.udp_bind(7000 + i)).collect();
    let (mut link, mut b) = (SimLink::new(LinkConfig::default(), 1), nic(MAC_B));
    let config = FloodConfig {
        fragmented_ppm: 100_000,
        stop: ms(1000),
        ..FloodConfig::new(MAC_A, ADDR_A, ADDR_C)
    };
    let mut flood = Flood::new(config, 1_000_000_000, 7);
    let mut now = Time::ZERO;
    let mut received = 0;
    let mut busiest = 0;
    let mut sent_before = 0;
    let mut slot = Span::from_millis(1);
    loop {
        flood.poll(now, &mut link);
        link.poll(now, a.device_mut(), &mut b);
        a.poll(now);
        for socket in &sockets {
            while a.udp_recv(*socket).is_some() {
                received += 1;
            }
        }
        if now >= Time::ZERO + slot {
            busiest = busiest.max(flood.sent_wire_bytes() - sent_before);
            sent_before = flood.sent_wire_bytes();
            slot = slot + Span::from_millis(1);
        }
        let next = [flood.poll_deadline(), link.poll_deadline()].into_iter().flatten().min();
        match next {
            Some(next) => now = next,
            None => break,
        }
    }
    // 30 % of 125 MB in a second.
    let share = flood.sent_wire_bytes() as f64 / 125e6;
    assert!((0.28..0.32).contains(&share), "{share}");
    assert!(busiest > 100_000, "in a burst nearly the rate of 125 bytes a microsecond: {busiest}");
    assert_eq!(received, flood.sent_datagrams(), "checksums are right, fragments fit together");
    assert!(a.stats().reassembled > 1000);
    assert_eq!(link.stats().b_to_a.queue_full, 0);
}
