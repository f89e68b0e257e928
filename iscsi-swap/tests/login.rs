//! Goal: every combination of login keys gives a session on which pages come back as written.
//! Method: all combinations that change how data moves, each with several seeds and chunk sizes.

mod common;

use common::{Pump, initiator_config, model_run, target_config};
use netswap_iscsi::login::{
    InitiatorLogin, Key, LoginConfig, LoginStep, Params, TargetLogin, TargetLoginConfig, TargetStep,
};
use netswap_iscsi::pdu::{LoginRequest, LoginResponse};
use netswap_iscsi::{SenseForm, WritePolicy};
use netswap_swap::BackendState;

#[test]
fn all_ways_of_moving_write_data() {
    let mut seed = 0;
    for initial_r2t in [false, true] {
        for immediate_data in [false, true] {
            for (segment, burst) in [(512, 512), (513, 1500), (4096, 8192), (65536, 262_144)] {
                for outstanding in 1..=4 {
                    seed += 1;
                    let mut initiator = initiator_config();
                    let mut target = target_config();
                    target.keys.initial_r2t = initial_r2t;
                    target.keys.immediate_data = immediate_data;
                    target.keys.first_burst = burst;
                    target.keys.max_burst = burst * 2;
                    target.keys.recv_segment = segment;
                    target.keys.outstanding_r2t = outstanding;
                    target.status_with_data = seed % 2 == 0;
                    initiator.recv_segment = [512, 1023, 8192, 262_144][seed as usize % 4];
                    let mut pump = Pump::new(seed, initiator, target);
                    pump.chunk_max = [100, 5000, 70_000][seed as usize % 3];
                    pump.ready();
                    let params = pump.backend.params();
                    assert_eq!(params.initial_r2t(), initial_r2t);
                    assert_eq!(params.immediate_data(), immediate_data);
                    assert_eq!(params.max_outstanding_r2t(), outstanding);
                    assert_eq!(params.first_burst(), burst);
                    assert_eq!(params.recv_peer, segment);
                    model_run(&mut pump, 30);
                    assert_eq!(pump.target.protocol_errors(), 0);
                    assert_eq!(pump.backend.stats().garbage, 0);
                    assert_eq!(pump.connects, 1);
                    let first = u64::from(immediate_data || !initial_r2t);
                    assert!(pump.backend.stats().r2ts > 0 || first > 0);
                }
            }
        }
    }
}

#[test]
fn login_text_in_pieces_and_in_more_rounds_than_needed() {
    for (chunk, rounds) in [(1 << 13, 3), (50, 0), (17, 2)] {
        let mut target = target_config();
        target.keys.extra_rounds = rounds;
        target.keys.text_chunk = chunk;
        target.keys.max_burst = 16384;
        target.keys.first_burst = 8192;
        let mut pump = Pump::new(chunk as u64, initiator_config(), target);
        pump.ready();
        assert_eq!(pump.backend.params().max_burst(), 16384);
        model_run(&mut pump, 10);
        assert_eq!(pump.connects, 1);
    }
}

#[test]
fn block_sizes_policies_and_windows() {
    for block in [512, 4096] {
        for policy in [WritePolicy::Fua, WritePolicy::SyncCache] {
            for depth in [1, 3, 32] {
                let mut initiator = initiator_config();
                initiator.write_policy = policy;
                initiator.first_cmd_sn = u32::MAX - 5;
                initiator.first_itt = u32::MAX - 5;
                let mut target = target_config();
                target.queue_depth = depth;
                target.login_window = depth.min(2);
                target.sense = SenseForm::Descriptor;
                let len = u64::from(common::SLOTS) * 4096;
                let mut pump = Pump::with_disk(u64::from(depth), initiator, target, block, len);
                pump.ready();
                model_run(&mut pump, 60);
                assert_eq!(pump.target.protocol_errors() + pump.backend.stats().garbage, 0);
            }
        }
    }
}

#[test]
fn a_target_that_is_not_there_is_final() {
    let mut initiator = initiator_config();
    initiator.target = "iqn.2026-01.test:other".into();
    let mut pump = Pump::new(1, initiator, target_config());
    let state = pump.start();
    assert!(
        matches!(state, BackendState::Failed(netswap_swap::StoreError::Refused { code: 0x0203 })),
        "{state:?}"
    );
}

/// A request as its target reads it.
fn request(login: &InitiatorLogin) -> LoginRequest {
    LoginRequest { itt: 1, cmd_sn: 1, ..login.request([0; 6]) }
}

fn response(csg: u8, step: TargetStep) -> LoginResponse {
    let TargetStep::Reply { nsg, more } = step else { panic!("{step:?}") };
    LoginResponse {
        transit: nsg.is_some(),
        more,
        csg,
        nsg: nsg.unwrap_or(0),
        version_max: 0,
        version_active: 0,
        isid: [0; 6],
        tsih: 1,
        itt: 1,
        sns: Default::default(),
        status: 0,
        data_len: 0,
    }
}

#[test]
fn text_of_both_sides_goes_on_over_several_pdus() {
    for (own, theirs) in [(8192, 8192), (50, 8192), (8192, 50), (60, 60)] {
        let offer = Params::default().with(Key::MaxBurstLength, 4096).declaring(9999);
        let mut config = LoginConfig::new("iqn.a", Some("iqn.b"), offer);
        config.text_chunk = own;
        let mut login = InitiatorLogin::new(config);
        let mut config = TargetLoginConfig::new(Params::default());
        config.text_chunk = theirs;
        let mut target = TargetLogin::new(config);
        login.start().unwrap();
        let mut got = Vec::new();
        let (mut most, mut rounds) = (0, 0);
        let params = loop {
            let request = request(&login);
            assert!(!(request.more && request.transit) && login.text().len() <= own);
            most = most.max(login.text().len());
            target.room(login.text().len()).unwrap().copy_from_slice(login.text());
            target.received(login.text().len());
            let csg = target.csg();
            let step = target.handle(&request, "iqn.b");
            let response = response(csg, step);
            assert!(target.chunk().len() <= theirs);
            got.extend_from_slice(target.chunk());
            rounds += 1;
            if response.more {
                login.handle_more(&response).unwrap();
                continue;
            }
            match login.handle(&response, &std::mem::take(&mut got)).unwrap() {
                LoginStep::Again => {}
                LoginStep::Done(params) => break params,
                LoginStep::Moved { .. } => panic!("moved"),
            }
        };
        assert_eq!((params.max_burst(), target.params().recv_peer), (4096, 9999));
        assert_eq!(rounds > 2, own < 100 || theirs < 100);
        assert!(most <= own);
    }
}

#[test]
fn a_key_without_an_answer_is_never_more_than_was_offered() {
    let offer = Params::default()
        .with(Key::MaxBurstLength, 4096)
        .with(Key::ImmediateData, 0)
        .with(Key::InitialR2T, 0)
        .with(Key::MaxOutstandingR2T, 8);
    let mut login = InitiatorLogin::new(LoginConfig::new("iqn.a", Some("iqn.b"), offer));
    login.start().unwrap();
    let response = |csg, nsg| response(csg, TargetStep::Reply { nsg: Some(nsg), more: false });
    assert_eq!(login.handle(&response(0, 1), b"AuthMethod=None\0"), Ok(LoginStep::Again));
    let Ok(LoginStep::Done(params)) = login.handle(&response(1, 3), b"") else { panic!("done") };
    assert_eq!((params.max_burst(), params.max_outstanding_r2t()), (4096, 1));
    assert!(!params.immediate_data() && params.initial_r2t());
}
