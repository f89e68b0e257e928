//! Goal: bytes from a peer never panic, and never make a call run for ever.
//! Method: a third host forges segments for open, opening and closing connections: right addresses and
//! checksums, everything else drawn at random, near the real sequence numbers and far from them.
//! Bytes may be wrong afterwards (a forger on the link can do that to TCP); the stack must live.

mod common;

use common::*;
use netswap_net::headers::{EthHeader, Ipv4Header, fill_transport_checksum};
use netswap_net::{Action, End};
use netswap_reserve::Span;
use proptest::prelude::*;

#[derive(Clone, Debug)]
struct Forged {
    seq: u32,
    ack: u32,
    /// Take sequence numbers relative to those seen last.
    near: bool,
    flags: u8,
    window: u16,
    options: Vec<u8>,
    payload: usize,
    towards_host: bool,
    then: u8,
}

fn forged() -> impl Strategy<Value = Forged> {
    let seqs = prop_oneof![
        any::<u32>(),
        0u32..100,
        (0u32..100).prop_map(|n| n.wrapping_neg()),
        60_000u32..140_000,
        Just(1 << 31),
    ];
    let numbers = (seqs.clone(), seqs, any::<bool>());
    let rest = (
        any::<u8>(),
        prop_oneof![Just(0u16), any::<u16>()],
        proptest::collection::vec(any::<u8>(), 0..12),
        0usize..1400,
        any::<bool>(),
        any::<u8>(),
    );
    (numbers, rest).prop_map(|((seq, ack, near), (flags, window, options, payload, host, then))| {
        Forged { seq, ack, near, flags, window, options, payload, towards_host: host, then }
    })
}

/// Builds the segment; `base` is what the peer really sent last, as (seq, ack).
fn frame(f: &Forged, ports: (u16, u16), base: (u32, u32)) -> Vec<u8> {
    let options = f.options.len().next_multiple_of(4);
    let len = 40 + options + f.payload.min(1400);
    let mut frame = vec![1; 14 + len];
    let (src, dst, from, to, sport, dport) = match f.towards_host {
        true => (ADDR_B, ADDR_A, MAC_B, MAC_A, ports.1, ports.0),
        false => (ADDR_A, ADDR_B, MAC_A, MAC_B, ports.0, ports.1),
    };
    EthHeader::emit(&mut frame, to, from, 0x0800);
    let packet = &mut frame[14..];
    Ipv4Header {
        src,
        dst,
        protocol: 6,
        header_len: 20,
        total_len: len,
        id: 0,
        more_fragments: false,
        fragment_offset: 0,
    }
    .emit(packet);
    let add = |base: u32, n: u32| if f.near { base.wrapping_add(n) } else { n };
    packet[20..22].copy_from_slice(&sport.to_be_bytes());
    packet[22..24].copy_from_slice(&dport.to_be_bytes());
    packet[24..28].copy_from_slice(&add(base.0, f.seq).to_be_bytes());
    packet[28..32].copy_from_slice(&add(base.1, f.ack).to_be_bytes());
    packet[32] = (((20 + options) / 4) as u8) << 4;
    packet[33] = f.flags;
    packet[34..36].copy_from_slice(&f.window.to_be_bytes());
    packet[38..40].fill(0);
    packet[40..40 + f.options.len()].copy_from_slice(&f.options);
    fill_transport_checksum(packet);
    frame
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        cases: 200,
        ..ProptestConfig::default()
    })]

    #[test]
    fn forged_segments_do_not_panic(
        segments in proptest::collection::vec(forged(), 1..120),
        seed in any::<u64>(),
    ) {
        let mut memory = Memory::new(512);
        let mut world = World::new(&mut memory, Setup::new(seed), 100_000);
        world.run_until(ms(1));
        for segment in segments {
            let port = world.a.stream_info(world.ca).local_port;
            // What the two sides really use, learned as a forger on the link would: from a packet.
            let base = world.a.stream_sequence(world.ca).unwrap_or((0, 0));
            let base = if segment.towards_host { (base.1, base.0) } else { base };
            let end = if segment.towards_host { End::A } else { End::B };
            let bytes = frame(&segment, (port, PORT), base);
            world.link.inject(world.now, end, &bytes);
            let wait = match segment.then {
                0..120 => Span::from_micros(1),
                120..200 => Span::from_micros(300),
                200..240 => Span::from_millis(25),
                240..248 => { world.client.want = Some(Action::Close); Span::from_millis(1) }
                _ => Span::from_millis(400),
            };
            world.client.total += 5000;
            let (until, steps) = (world.now + wait, world.steps);
            world.run_until(until);
            prop_assert!(world.steps - steps < 10_000, "the clock goes on");
        }
    }
}
