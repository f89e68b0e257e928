//! Goal: no bytes of a peer make either side panic, lose a page or end a request twice.
//! Method: properties over random bytes for every parser; and the recorded stream of a real session,
//! damaged at random places and fed to a fresh initiator, or to a fresh target.

mod common;

use std::sync::OnceLock;

use common::{Pump, deliver, initiator_config, target_config};
use netswap_iscsi::pdu::{RequestPdu, ResponsePdu};
use netswap_iscsi::scsi::data::Capacity;
use netswap_iscsi::scsi::{Cdb, Sense};
use netswap_iscsi::{IscsiBackend, text};
use netswap_net::{Disconnect, SendVec, Session};
use netswap_reserve::{PagePool, PoolConfig, Time};
use netswap_swap::{BackendState, Op, SwapBackend};
use proptest::prelude::*;
use proptest::test_runner::RngSeed;

fn config(cases: u32) -> ProptestConfig {
    ProptestConfig {
        cases,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x15c51),
        ..Default::default()
    }
}

/// Up and down of a session with requests of both kinds, R2Ts, a ping and a logout request.
fn tapes() -> &'static (Vec<u8>, Vec<u8>) {
    static TAPES: OnceLock<(Vec<u8>, Vec<u8>)> = OnceLock::new();
    TAPES.get_or_init(|| {
        let mut target = target_config();
        target.keys.recv_segment = 2048;
        target.keys.first_burst = 4096;
        let mut pump = Pump::new(1, initiator_config(), target);
        pump.ready();
        submit_all(&mut pump.backend, &pump.pool);
        for _ in 0..6 {
            assert!(pump.complete().outcome.is_ok());
        }
        pump.target.ping(0);
        pump.target.announce(0, 1, [0; 3]);
        // Up to the logout, not into the next connection.
        loop {
            let lens = (pump.tape_up.len(), pump.tape_down.len());
            pump.step();
            if pump.connects == 2 {
                pump.tape_up.truncate(lens.0);
                pump.tape_down.truncate(lens.1);
                return (pump.tape_up, pump.tape_down);
            }
            if lens == (pump.tape_up.len(), pump.tape_down.len()) {
                pump.advance();
            }
        }
    })
}

fn submit_all(backend: &mut IscsiBackend, pool: &PagePool) {
    for id in 0..6 {
        let pages = (0..=id as usize).map(|_| pool.alloc(netswap_reserve::Gfp::KERNEL).unwrap());
        let request = netswap_swap::Request {
            id: netswap_swap::RequestId(id),
            op: if id % 2 == 0 { Op::Write } else { Op::Read },
            first: netswap_swap::Slot(id * 8),
            pages: pages.collect(),
            deadline: None,
        };
        assert!(backend.submit(Time::ZERO, request).is_ok());
    }
}

/// Overwrites, cuts out and inserts bytes.
fn damage(tape: &[u8], hits: &[(u32, u8, u8)]) -> Vec<u8> {
    let mut tape = tape.to_vec();
    for (at, kind, value) in hits {
        let at = *at as usize % tape.len();
        match kind % 4 {
            0 | 1 => tape[at] = *value,
            2 => {
                tape.remove(at);
            }
            _ => tape.insert(at, *value),
        }
    }
    tape
}

fn swallow(end: &mut dyn Session, now: Time) {
    for _ in 0..10_000 {
        let mut out = SendVec::new();
        end.poll_send(now, &mut out);
        let n = out.iter().map(|s| s.len()).sum();
        drop(out);
        if n == 0 {
            return;
        }
        end.handle_sent(now, n);
    }
    panic!("it never has enough of sending");
}

fn feed_initiator(stream: &[u8], chunk: usize) -> Result<bool, TestCaseError> {
    let pool = PagePool::new(PoolConfig::new(128));
    let free = pool.free_frames();
    let mut backend = IscsiBackend::new(initiator_config());
    backend.poll_action(Time::ZERO);
    backend.handle_connected(Time::ZERO);
    let mut submitted = false;
    for piece in stream.chunks(chunk) {
        swallow(&mut backend, Time::ZERO);
        deliver(&mut backend, Time::ZERO, piece);
        if !submitted && matches!(backend.state(), BackendState::Ready { .. }) {
            submitted = true;
            submit_all(&mut backend, &pool);
        }
    }
    swallow(&mut backend, Time::ZERO);
    let dropped = backend.poll_action(Time::ZERO).is_some();
    backend.handle_disconnected(Time::ZERO, Disconnect::Reset);
    backend.shutdown(Time::ZERO);
    let mut ended = [0; 6];
    while let Some(completion) = backend.poll_completion(Time::ZERO) {
        ended[completion.id.0 as usize] += 1;
        prop_assert_eq!(completion.pages.len(), completion.id.0 as usize + 1);
    }
    prop_assert_eq!(ended, [u32::from(submitted); 6]);
    prop_assert_eq!(pool.free_frames(), free);
    Ok(dropped)
}

fn feed_target(stream: &[u8], chunk: usize) -> Pump {
    let mut target = target_config();
    target.keys.recv_segment = 2048;
    target.keys.first_burst = 4096;
    let mut pump = Pump::new(1, initiator_config(), target);
    let mut end = pump.target.connection(0);
    end.handle_connected(Time::ZERO);
    for mut piece in stream.chunks(chunk) {
        // Between two login requests nothing is taken until the answer is out.
        while !piece.is_empty() {
            let n = deliver(&mut end, Time::ZERO, piece);
            swallow(&mut end, Time::ZERO);
            piece = &piece[n..];
            if n == 0 {
                break;
            }
        }
        end.poll_action(Time::ZERO);
    }
    pump
}

#[test]
fn undamaged_tapes_are_taken_to_their_end() {
    // Otherwise the damage below would damage nothing.
    let (up, down) = tapes();
    assert!(up.len() > 20_000 && down.len() > 20_000);
    let first_opcode = [(0, 0, 0x2a)];
    assert!(feed_initiator(&damage(down, &first_opcode), 64).unwrap(), "damage is noticed");
    // The tape ends with the logout, after which the initiator closes.
    assert!(!feed_initiator(&down[..down.len() - 48], 64).unwrap());
    let mut pump = feed_target(up, 64);
    assert_eq!(pump.target.protocol_errors(), 0);
    let mut end = pump.target.connection(0);
    assert_eq!(end.poll_action(Time::ZERO), None, "closed in order before");
}

proptest! {
    #![proptest_config(config(8000))]

    #[test]
    fn parsers_take_any_bytes(bytes in prop::collection::vec(any::<u8>(), 0..200), op in 0u8..0x40) {
        let mut bhs = [0; 48];
        for (place, byte) in bhs.iter_mut().zip(&bytes) {
            *place = *byte;
        }
        let _ = RequestPdu::parse(&bhs);
        let _ = ResponsePdu::parse(&bhs);
        bhs[0] = op;
        let _ = RequestPdu::parse(&bhs);
        let _ = ResponsePdu::parse(&bhs);
        let _ = text::pairs(&bytes).count();
        let _ = Sense::parse(&bytes);
        let _ = Capacity::parse(&bytes);
        let mut cdb = [0; 16];
        for (place, byte) in cdb.iter_mut().zip(&bytes) {
            *place = *byte;
        }
        let _ = Cdb::parse(&cdb).verb();
    }

    #[test]
    fn headers_come_back_as_they_were_parsed(mut bhs in any::<[u8; 48]>(), pick in 0usize..15) {
        use netswap_iscsi::pdu::opcode::*;
        let ops = [
            NOP_OUT, SCSI_COMMAND, TASK_MANAGEMENT_REQUEST, LOGIN_REQUEST, DATA_OUT,
            LOGOUT_REQUEST, NOP_IN, SCSI_RESPONSE, TASK_MANAGEMENT_RESPONSE, LOGIN_RESPONSE,
            DATA_IN, LOGOUT_RESPONSE, R2T, ASYNC_MESSAGE, REJECT,
        ];
        bhs[0] = ops[pick] | (bhs[0] & if pick < 6 { 0x40 } else { 0 });
        if let Ok(pdu) = RequestPdu::parse(&bhs) {
            let built = match pdu {
                RequestPdu::NopOut(p) => p.build(),
                RequestPdu::ScsiCommand(p) => p.build(),
                RequestPdu::TaskManagement(p) => p.build(),
                RequestPdu::Login(p) => p.build(),
                RequestPdu::DataOut(p) => p.build(),
                RequestPdu::Logout(p) => p.build(),
                RequestPdu::Unsupported { .. } => bhs,
            };
            prop_assert_eq!(RequestPdu::parse(&built), Ok(pdu));
        }
        if let Ok(pdu) = ResponsePdu::parse(&bhs) {
            let built = match pdu {
                ResponsePdu::NopIn(p) => p.build(),
                ResponsePdu::ScsiResponse(p) => p.build(),
                ResponsePdu::TaskManagement(p) => p.build(),
                ResponsePdu::Login(p) => p.build(),
                ResponsePdu::DataIn(p) => p.build(),
                ResponsePdu::Logout(p) => p.build(),
                ResponsePdu::R2t(p) => p.build(),
                ResponsePdu::Async(p) => p.build(),
                ResponsePdu::Reject(p) => p.build(),
            };
            // The stages of a refused login are not valid, and not built.
            if !matches!(pdu, ResponsePdu::Login(p) if p.status != 0) {
                prop_assert_eq!(ResponsePdu::parse(&built), Ok(pdu));
            }
        }
    }
}

proptest! {
    #![proptest_config(config(2000))]

    #[test]
    fn the_initiator_survives_a_damaged_stream(
        hits in prop::collection::vec((any::<u32>(), any::<u8>(), any::<u8>()), 1..6),
        early in any::<bool>(),
        chunk in 1usize..3000,
    ) {
        let (_, down) = tapes();
        // Half of the time within login and set-up, whose bytes are few.
        let most = if early { 2000 } else { u32::MAX };
        let hits: Vec<_> = hits.into_iter().map(|(at, k, v)| (at % most, k, v)).collect();
        feed_initiator(&damage(down, &hits), chunk)?;
    }

    #[test]
    fn the_target_survives_a_damaged_stream(
        hits in prop::collection::vec((any::<u32>(), any::<u8>(), any::<u8>()), 1..6),
        early in any::<bool>(),
        chunk in 1usize..3000,
    ) {
        let (up, _) = tapes();
        let most = if early { 2500 } else { u32::MAX };
        let hits: Vec<_> = hits.into_iter().map(|(at, k, v)| (at % most, k, v)).collect();
        feed_target(&damage(up, &hits), chunk);
    }

    #[test]
    fn random_bytes_reach_neither_side(bytes in prop::collection::vec(any::<u8>(), 1..2000)) {
        feed_initiator(&bytes, 100)?;
        feed_target(&bytes, 100);
    }
}
