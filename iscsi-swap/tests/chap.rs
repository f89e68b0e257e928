//! Goal: who cannot prove itself gets nothing, in both directions, and is told what is wrong.
//! Method: initiator and embedded target with every pair of credentials; and a target by script that
//! lies where ours does not.

mod common;

use common::{Pump, initiator_config, model_run, target_config};
use netswap_iscsi::login::{InitiatorLogin, LoginConfig, LoginStep, Params};
use netswap_iscsi::pdu::LoginResponse;
use netswap_iscsi::{
    AuthError, ChapConfig, Credentials, Digest, Entropy, InitiatorConfig, LoginError, TargetConfig,
};
use netswap_swap::{BackendState, StoreError};

fn credentials(user: &str, secret: &str) -> Credentials {
    Credentials::new(user, secret.as_bytes()).unwrap()
}

fn chap(secret: &str, target: Option<(&str, &str)>) -> Option<ChapConfig> {
    let target = target.map(|(user, secret)| credentials(user, secret));
    Some(ChapConfig { initiator: credentials("alice", secret), target })
}

fn configs(own: Option<ChapConfig>, target: Option<ChapConfig>) -> (InitiatorConfig, TargetConfig) {
    let (mut initiator, mut config) = (initiator_config(), target_config());
    initiator.chap = own;
    initiator.entropy = Entropy::new([1; 32]);
    config.chap = target;
    config.entropy = Entropy::new([2; 32]);
    (initiator, config)
}

const ALICE: &str = "secretpass12";
const TARG: (&str, &str) = ("targ", "targetpass34");

#[test]
fn both_directions_in_pieces_and_over_reconnects() {
    for (seed, target) in [None, Some(TARG)].into_iter().enumerate() {
        for chunk in [8192, 40, 7] {
            let (initiator, mut config) = configs(chap(ALICE, target), chap(ALICE, Some(TARG)));
            config.keys.text_chunk = chunk;
            config.keys.extra_rounds = 1;
            let mut pump = Pump::new(seed as u64, initiator, config);
            pump.chunk_max = chunk;
            // Each login takes more rounds with small pieces; 7 bytes take more than there may be.
            if chunk == 7 {
                let state = pump.start();
                assert!(matches!(state, BackendState::Failed(_)), "{state:?}");
                continue;
            }
            pump.ready();
            model_run(&mut pump, 10);
            pump.cut();
            model_run(&mut pump, 10);
            assert_eq!(pump.backend.stats().logins, 2);
            assert_eq!(pump.backend.login_error(), None);
            // No challenge twice: on the way down each CHAP_C is another one.
            let down = String::from_utf8_lossy(&pump.tape_down).into_owned();
            if chunk == 8192 {
                let challenges: Vec<_> =
                    down.match_indices("CHAP_C=").map(|(at, _)| &down[at..at + 40]).collect();
                assert!(challenges.len() == 2 && challenges[0] != challenges[1]);
            }
            let up = String::from_utf8_lossy(&pump.tape_up);
            assert!(!up.contains(ALICE) && !down.contains(TARG.1));
        }
    }
}

#[test]
fn what_is_wrong_is_said() {
    let mutual = |secret: &'static str| chap(ALICE, Some(("targ", secret)));
    let cases = [
        (None, chap(ALICE, None), AuthError::CredentialsNeeded, "the target wants CHAP"),
        (chap(ALICE, None), None, AuthError::NoChap, "leave the user out"),
        (chap("anotherpass12", None), chap(ALICE, None), AuthError::WrongSecret, "not accept"),
        (mutual("targetpass35"), mutual("targetpass34"), AuthError::TargetUnproven, "prove"),
        (mutual("targetpass34"), chap(ALICE, None), AuthError::WrongSecret, "not accept"),
        (
            chap(ALICE, Some(("other", TARG.1))),
            mutual(TARG.1),
            AuthError::TargetName,
            "under another name",
        ),
        (mutual(ALICE), mutual(ALICE), AuthError::SameSecret, "use two"),
    ];
    for (own, target, error, hint) in cases {
        let (initiator, config) = configs(own, target);
        let mut pump = Pump::new(1, initiator, config);
        let state = pump.start();
        let refused = BackendState::Failed(StoreError::Refused { code: 0x0201 });
        assert_eq!(state, refused, "{error:?}");
        assert_eq!(pump.backend.login_error(), Some(LoginError::Auth(error)));
        assert!(error.to_string().contains(hint), "{error}");
        let shown = format!("{:?} {:?}", pump.backend, pump.target);
        assert!(!["secretpass", "anotherpass", "targetpass"].iter().any(|s| shown.contains(s)));
    }
}

/// A login against answers by hand.
struct ByHand {
    login: InitiatorLogin,
    sent: String,
}

impl ByHand {
    fn new(target: Option<(&str, &str)>) -> ByHand {
        let mut config = LoginConfig::new("iqn.a", Some("iqn.b"), Params::default());
        config.chap = chap(ALICE, target);
        config.entropy = Entropy::new([1; 32]);
        config.header_digest = Digest::None;
        let mut login = InitiatorLogin::new(config);
        login.start().unwrap();
        ByHand { login, sent: String::new() }
    }

    fn answer(&mut self, transit: bool, text: &str) -> Result<LoginStep, LoginError> {
        let response = LoginResponse {
            transit,
            more: false,
            csg: 0,
            nsg: u8::from(transit),
            version_max: 0,
            version_active: 0,
            isid: [0; 6],
            tsih: 0,
            itt: 0,
            sns: Default::default(),
            status: 0,
            data_len: text.len() as u32,
        };
        let text = text.replace(' ', "\0");
        let step = self.login.handle(&response, text.as_bytes());
        self.sent = String::from_utf8_lossy(self.login.text()).into_owned();
        step
    }

    fn challenged(target: Option<(&str, &str)>) -> ByHand {
        let mut hand = ByHand::new(target);
        assert_eq!(hand.login.nsg(), None);
        assert_eq!(hand.answer(false, "AuthMethod=CHAP "), Ok(LoginStep::Again));
        assert_eq!((&*hand.sent, hand.login.nsg()), ("CHAP_A=5,7\0", None));
        let question = "CHAP_A=5 CHAP_I=42 CHAP_C=0x010203 ";
        assert_eq!(hand.answer(false, question), Ok(LoginStep::Again));
        assert_eq!(hand.login.nsg(), Some(1));
        hand
    }

    fn sent(&self, key: &str) -> &str {
        let pair = self.sent.split('\0').find_map(|pair| pair.strip_prefix(key)).unwrap();
        pair.strip_prefix('=').unwrap()
    }
}

#[test]
fn a_target_that_does_not_keep_to_chap_is_refused() {
    let auth = |error| Err(LoginError::Auth(error));
    for (text, transit, error) in [
        ("", false, AuthError::NoChap),
        ("AuthMethod=None ", true, AuthError::NoChap),
        ("AuthMethod=Reject ", false, AuthError::NoChap),
        ("AuthMethod=CHAP CHAP_A=5 ", false, AuthError::Unexpected),
    ] {
        let step = ByHand::new(None).answer(transit, text);
        let early = Err(LoginError::Stage);
        assert!(step == auth(error) || (transit && step == early), "{text}: {step:?}");
    }
    for (text, error) in [
        ("CHAP_A=6 CHAP_I=1 CHAP_C=0x01 ", AuthError::NoAlgorithm),
        ("CHAP_A=5 CHAP_I=256 CHAP_C=0x01 ", AuthError::Challenge),
        ("CHAP_A=5 CHAP_I=1 CHAP_C=0x ", AuthError::Challenge),
        ("CHAP_A=5 CHAP_I=1 CHAP_C=zz ", AuthError::Challenge),
        ("CHAP_A=5 CHAP_I=1 ", AuthError::Challenge),
        ("CHAP_N=alice CHAP_R=0x01 ", AuthError::Unexpected),
    ] {
        let mut hand = ByHand::new(None);
        hand.answer(false, "AuthMethod=CHAP ").unwrap();
        assert_eq!(hand.answer(false, text), auth(error), "{text}");
    }
    let mut hand = ByHand::new(None);
    hand.answer(false, "AuthMethod=CHAP ").unwrap();
    let long = format!("CHAP_A=5 CHAP_I=1 CHAP_C=0x{} ", "00".repeat(1025));
    assert_eq!(hand.answer(false, &long), auth(AuthError::Challenge));
    // A stage that ends before the proof was asked for.
    let mut hand = ByHand::new(None);
    hand.answer(false, "AuthMethod=CHAP ").unwrap();
    let early = hand.answer(true, "CHAP_A=5 CHAP_I=1 CHAP_C=0x01 ");
    assert_eq!(early, Err(LoginError::Stage));
}

#[test]
fn a_target_that_reflects_is_refused() {
    // It answers with what it was sent.
    let mut hand = ByHand::challenged(Some(TARG));
    let text = format!("CHAP_N=targ CHAP_R={} ", hand.sent("CHAP_R"));
    assert_eq!(hand.answer(true, &text), Err(LoginError::Auth(AuthError::Reflected)));
    // It does not answer at all.
    for text in ["", "CHAP_N=targ ", "CHAP_N=targ CHAP_R=0x00 "] {
        let mut hand = ByHand::challenged(Some(TARG));
        let unproven = Err(LoginError::Auth(AuthError::TargetUnproven));
        assert_eq!(hand.answer(true, text), unproven, "{text}");
    }
    // It asks with the challenge that it was asked with, which only the next login could know.
    let challenge = ByHand::challenged(Some(TARG)).sent("CHAP_C").to_string();
    let mut hand = ByHand::new(Some(TARG));
    hand.answer(false, "AuthMethod=CHAP ").unwrap();
    let text = format!("CHAP_A=5 CHAP_I=1 CHAP_C={challenge} ");
    assert_eq!(hand.answer(false, &text), Err(LoginError::Auth(AuthError::Reflected)));
    // The good one is taken, so that the tests above do not fail for another reason.
    let mut hand = ByHand::challenged(None);
    assert_eq!(hand.answer(true, ""), Ok(LoginStep::Again));
    assert_eq!(hand.login.csg(), 1);
}
