//! Any bytes as what the other side says in a login: to each of both machines alone, and through a session.

use netswap_iscsi::login::{
    InitiatorLogin, LoginConfig, LoginError, LoginStep, Params, TargetLogin, TargetLoginConfig,
    TargetStep, login_status,
};
use netswap_iscsi::pdu::{
    LoginRequest, LoginResponse, RequestPdu, ResponsePdu, Sns, data_len, opcode,
};
use netswap_iscsi::{IscsiBackend, LoginKeys};
use netswap_net::{Disconnect, Session};
use netswap_reserve::Time;
use netswap_swap::{BackendState, SwapBackend};

use super::pdu::{Digests, Pdu, cut, edit};
use super::shared::{Input, OPERATIONS_MAX, give, take};
use super::wire::Wire;
use super::{INITIATOR, IQN, initiator_config, new_target, target_config};

/// Most bytes of text that sessions gather.
const TEXT_MAX: usize = 8192;
/// Rounds that a login may take.
const ROUNDS_MAX: usize = 32;

/// Any bytes in a login. Gives whether one was completed.
pub fn login(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let which = input.byte();
    let mut flags: [u8; 3] = input.array();
    match which % 4 {
        0 => initiator_alone(flags, &mut input),
        1 => target_alone(flags, &mut input),
        2 => initiator_session(flags, &mut input),
        _ => {
            // Nobody behind it swaps: the smallest sizes do.
            flags[2] = 0;
            target_session(flags, &mut input)
        }
    }
}

fn offer(size: u8) -> Params {
    use netswap_iscsi::login::Key;
    let keys = LoginKeys::default();
    Params::default()
        .with(Key::InitialR2T, u32::from(size & 1))
        .with(Key::ImmediateData, u32::from((size >> 1) & 1))
        .with(Key::MaxBurstLength, [keys.max_burst, 8192][usize::from((size >> 2) & 1)])
        .with(Key::FirstBurstLength, [keys.first_burst, 512][usize::from((size >> 3) & 1)])
        .with(Key::MaxOutstandingR2T, 1 + u32::from(size >> 4))
        .declaring(keys.recv_segment)
}

fn initiator_login(flags: [u8; 3]) -> InitiatorLogin {
    let config = initiator_config(flags);
    let target = (flags[2] != 255).then_some(IQN);
    InitiatorLogin::new(LoginConfig {
        header_digest: config.header_digest,
        data_digest: config.data_digest,
        chap: config.chap,
        entropy: config.entropy,
        text_chunk: [8192, 50][usize::from((flags[0] >> 7) & 1)],
        ..LoginConfig::new(INITIATOR, target, offer(flags[2]))
    })
}

fn target_login(flags: [u8; 3]) -> TargetLogin {
    let config = target_config(flags);
    let mut login = TargetLogin::new(TargetLoginConfig {
        header_digest: config.keys.header_digest,
        data_digest: config.keys.data_digest,
        chap: config.chap,
        entropy: config.entropy,
        extra_rounds: config.keys.extra_rounds,
        text_chunk: config.keys.text_chunk,
        ..TargetLoginConfig::new(offer(flags[2].rotate_left(3)))
    });
    login.reset(config.keys.extra_rounds);
    login
}

/// The next request of an initiator.
pub(super) fn request(login: &InitiatorLogin) -> Pdu {
    let request = LoginRequest { itt: 1, cmd_sn: 1, ..login.request([0x80, 0, 0, 0, 0, 1]) };
    Pdu::new(request.build(), login.text())
}

/// What a target answers to a request; `None` if the request is none, or too long.
fn answer(login: &mut TargetLogin, pdu: &Pdu) -> Option<Pdu> {
    let Ok(RequestPdu::Login(request)) = RequestPdu::parse(&pdu.bhs) else { return None };
    login.room(pdu.data.len())?.copy_from_slice(&pdu.data);
    login.received(pdu.data.len());
    let step = login.handle(&request, IQN);
    let (nsg, more, status) = match step {
        TargetStep::Reply { nsg, more } => (nsg, more, login_status::SUCCESS),
        TargetStep::Fail(status) => (None, false, status),
    };
    assert!(!(more && nsg.is_some()), "a stage that ends in the middle of its text");
    let response = LoginResponse {
        transit: nsg.is_some(),
        more,
        csg: request.csg,
        nsg: nsg.unwrap_or(0),
        version_max: 0,
        version_active: 0,
        isid: request.isid,
        tsih: 1,
        itt: request.itt,
        sns: Sns::default(),
        status,
        data_len: 0,
    };
    let text = if status == 0 { login.chunk() } else { &[] };
    assert!(text.len() <= TEXT_MAX);
    Some(Pdu::new(response.build(), text))
}

/// A PDU of a login as it is, changed, or made up; `None` if it is lost.
fn tamper(honest: Option<Pdu>, code: u8, input: &mut Input<'_>) -> Option<Pdu> {
    let operation = input.operation()?;
    let mut pdu = honest.unwrap_or_else(|| {
        let mut bhs = [0; 48];
        bhs[0] = code;
        Pdu::new(bhs, &[])
    });
    match operation % 6 {
        0 | 1 => {}
        2 => pdu = Pdu::new(pdu.bhs, &edit(&pdu.data, input)),
        3 => {
            let at = usize::from(input.byte()) % 4;
            pdu.bhs[[1, 1, 3, 36][at]] ^= 1 << (input.byte() % 8);
        }
        4 => {
            let at = usize::from(input.byte()) % 47;
            pdu.bhs[1 + at] = input.byte();
        }
        _ => {
            let mut bhs = [0; 48];
            (bhs[0], bhs[1]) = (code, input.byte());
            pdu = Pdu::new(bhs, input.bytes());
        }
    }
    Some(Pdu::new(pdu.bhs, &pdu.data))
}

/// An initiator's machine, before a target that is honest until it is not.
fn initiator_alone(flags: [u8; 3], input: &mut Input<'_>) -> bool {
    let mut login = initiator_login(flags);
    let mut peer = target_login(flags);
    let mut text = Vec::new();
    let (mut rounds, mut done) = (0, false);
    login.start().expect("two secrets, and names that fit");
    for _ in 0..OPERATIONS_MAX {
        let honest = answer(&mut peer, &request(&login));
        let Some(pdu) = tamper(honest, opcode::LOGIN_RESPONSE, input) else { break };
        let step = said(&mut login, &pdu, &mut text);
        if !matches!(step, Ok(LoginStep::Again)) {
            if let Ok(LoginStep::Done(params)) = step {
                done = true;
                assert!(flags[0] & 7 != 7, "done, though the target did not prove itself");
                agreed_within(&params, flags);
            }
            peer = target_login(flags);
            login.start().expect("it started before");
            (rounds, text) = (0, Vec::new());
            continue;
        }
        rounds += 1;
        assert!(rounds <= ROUNDS_MAX, "a login without end");
        assert!(login.text().len() <= TEXT_MAX);
    }
    done
}

/// A response reaches the machine as the sessions hand it on.
pub(super) fn said(
    login: &mut InitiatorLogin,
    pdu: &Pdu,
    text: &mut Vec<u8>,
) -> Result<LoginStep, LoginError> {
    let Ok(ResponsePdu::Login(response)) = ResponsePdu::parse(&pdu.bhs) else {
        return Err(LoginError::Stage);
    };
    text.extend_from_slice(&pdu.data);
    if text.len() > TEXT_MAX {
        return Err(LoginError::Stage);
    }
    if response.more && response.status == 0 {
        return login.handle_more(&response).map(|()| LoginStep::Again);
    }
    login.handle(&response, &std::mem::take(text))
}

/// Nobody has agreed to more than was offered.
fn agreed_within(params: &Params, flags: [u8; 3]) {
    let (ours, config) = (offer(flags[2]), initiator_config(flags));
    assert!(params.max_burst() <= ours.max_burst() || flags[2] == 255);
    assert!(params.first_burst() <= params.max_burst());
    assert!((512..1 << 24).contains(&params.recv_peer));
    let may = |has: bool, policy| !has || policy != netswap_iscsi::Digest::None;
    assert!(may(params.header_digest, config.header_digest));
    assert!(may(params.data_digest, config.data_digest));
    let must = |has: bool, policy| has || policy != netswap_iscsi::Digest::Crc32c;
    assert!(must(params.header_digest, config.header_digest));
    assert!(must(params.data_digest, config.data_digest));
}

/// A target's machine, before an initiator that is honest until it is not.
fn target_alone(flags: [u8; 3], input: &mut Input<'_>) -> bool {
    let mut peer = initiator_login(flags);
    let mut login = target_login(flags);
    let (mut rounds, mut done, mut text) = (0, false, Vec::new());
    peer.start().expect("two secrets, and names that fit");
    for _ in 0..OPERATIONS_MAX {
        let Some(pdu) = tamper(Some(request(&peer)), opcode::LOGIN_REQUEST, input) else { break };
        let reply = answer(&mut login, &pdu);
        rounds += 1;
        let full = reply.as_ref().is_some_and(Pdu::ends_login);
        if full {
            done = true;
            assert!(flags[0] & 5 != 5, "a session, though the initiator did not prove itself");
            let params = login.params();
            assert!(params.first_burst() <= params.max_burst());
            assert!((512..1 << 24).contains(&params.recv_peer));
            assert!(login.is_discovery() || !login.initiator().is_empty());
            let portals = ["10.0.0.2:3260,1"];
            for fresh in [true, false] {
                let asked = edit(b"SendTargets=All\0", input);
                if let Some(room) = login.room(asked.len()) {
                    room.copy_from_slice(&asked);
                    login.received(asked.len());
                    let _ = login.answer_text(fresh, IQN, portals.into_iter());
                    assert!(login.chunk().len() <= TEXT_MAX);
                }
            }
        }
        let good = reply.as_ref().filter(|reply| !full && reply.bhs[36..38] == [0, 0]);
        let again = good.is_some_and(|reply| said(&mut peer, reply, &mut text).is_ok());
        // An initiator that has lost the thread goes on as it was: the target does not know.
        if good.is_none() || rounds > ROUNDS_MAX || !again && input.byte() & 1 > 0 {
            assert!(rounds <= ROUNDS_MAX + 1, "a login without end");
            login.reset(input.byte() & 3);
            peer.start().expect("it started before");
            (rounds, text) = (0, Vec::new());
        }
    }
    done
}

/// The session of an initiator up to its unit, in a login that is tampered with.
fn initiator_session(flags: [u8; 3], input: &mut Input<'_>) -> bool {
    let config = initiator_config(flags);
    let mut backend = IscsiBackend::new(config);
    let mut wire = Wire::new(target_config(flags));
    let mut was_ready = false;
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = input.operation() else { break };
        wire.turn(&mut backend);
        // Those that concern a login.
        let meeting = [0, 8, 8, 5, 7, 10, 11, 16, 1, 2][usize::from(operation % 10)];
        wire.meet(meeting, input, &mut backend);
        wire.turn(&mut backend);
        was_ready |= matches!(backend.state(), BackendState::Ready { .. });
        let logins = backend.stats().logins;
        assert!(flags[0] & 7 != 7 || logins == 0, "a target that did not prove itself");
    }
    backend.shutdown(wire.now);
    wire.turn(&mut backend);
    was_ready
}

/// The session of a target, to which an initiator logs in that is honest until it is not.
fn target_session(flags: [u8; 3], input: &mut Input<'_>) -> bool {
    let mut target = new_target(target_config(flags));
    let mut peer = initiator_login(flags);
    let (now, mut done) = (Time::ZERO, false);
    peer.start().expect("two secrets, and names that fit");
    target.connection(0).handle_connected(now);
    let mut text = Vec::new();
    for _ in 0..OPERATIONS_MAX {
        let mut session = target.connection(0);
        let Some(pdu) = tamper(Some(request(&peer)), opcode::LOGIN_REQUEST, input) else { break };
        let bytes = pdu.seal(Digests::default());
        let whole = input.byte() & 7 > 0;
        give(&mut session, now, if whole { &bytes } else { &bytes[..bytes.len() / 2] });
        let replies = take(&mut session, now);
        assert!(replies.len() <= 2 * TEXT_MAX, "{} bytes to a request", replies.len());
        let reply = cut(&replies, Digests::default()).map(|(reply, _)| reply);
        if let Some(reply) = &reply {
            assert!(data_len(&reply.bhs) <= TEXT_MAX);
            assert!(ResponsePdu::parse(&reply.bhs).is_ok());
        }
        let full = reply.as_ref().is_some_and(Pdu::ends_login);
        done |= full;
        assert!(!(full && flags[0] & 5 == 5), "a session, though nobody proved himself");
        let again = reply.is_some_and(|reply| said(&mut peer, &reply, &mut text).is_ok());
        let ends = session.poll_action(now).is_some() || full;
        if ends || !again && input.byte() & 1 > 0 {
            session.handle_disconnected(now, Disconnect::Reset);
            session.handle_connected(now);
            peer.start().expect("it started before");
            text.clear();
        }
    }
    done
}
