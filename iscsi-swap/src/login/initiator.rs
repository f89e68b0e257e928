//! The initiator's side of a login: what to send, and what to make of the answer.

use std::net::{IpAddr, SocketAddr};

use super::chap::ChapInitiator;
use super::keys::{Kind, Seen, is_refusal};
use super::*;
use crate::auth::{ChapConfig, Entropy};
use crate::initiator::Digest;
use crate::pdu::{LoginRequest, LoginResponse};
use crate::text::{TextError, TextWriter, pairs};
use crate::url::ISCSI_PORT;

/// Most text of one request: two names of 223 bytes, all keys, and answers to what a target asks.
const TEXT_MAX: usize = 2048;

/// Why one side is not who the other wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AuthError {
    /// The target wants CHAP, and there are no credentials.
    #[error(
        "the target wants CHAP: write the user into the URL, as in iscsi://user@host/target/lun"
    )]
    CredentialsNeeded,
    /// There are credentials, and the target does not do CHAP.
    #[error(
        "the target does not do CHAP: leave the user out of the URL, or set it up at the target"
    )]
    NoChap,
    /// The target does not take the user and its secret.
    #[error("the target does not accept user and password")]
    WrongSecret,
    /// The target does not prove itself, or with another secret than it has to.
    #[error("the target did not prove itself: it knows no credentials for that, or others")]
    TargetUnproven,
    /// The target proves itself, but under another name.
    #[error("the target proved itself under another name than target_user")]
    TargetName,
    /// The target answers with what it was sent.
    #[error("the target reflects what it was sent: it is not what it says, or it is broken")]
    Reflected,
    /// One secret for both directions, which RFC 7143 section 9.2.1 rules out.
    #[error("user and target_user have the same password: use two")]
    SameSecret,
    /// The target chose an algorithm that was not on offer.
    #[error("the target chose a CHAP algorithm that was not offered")]
    NoAlgorithm,
    /// Values of the target's question that are missing, or cannot be what they say.
    #[error("the target's CHAP challenge is incomplete, empty, or longer than 1024 bytes")]
    Challenge,
    /// Keys of CHAP where there can be none.
    #[error("CHAP keys of the target out of turn")]
    Unexpected,
}

/// Why a login did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The target said no.
    #[error("login refused with status {0:#06x}")]
    Refused(u16),
    /// One side is not who the other wants.
    #[error(transparent)]
    Auth(#[from] AuthError),
    /// The target is elsewhere, under a name. Names cannot be looked up where memory is short.
    #[error("the target has moved to a name: write that into the URL (it is in the log)")]
    MovedToName,
    /// The target is elsewhere, and does not say where.
    #[error("the target has moved and does not say to which address")]
    Moved,
    /// The target is elsewhere, again and again.
    #[error("more than {REDIRECTS_MAX} redirections in a row")]
    TooManyRedirects,
    /// A digest that this side must have, and the target does not do.
    #[error("the target does not do {0}=CRC32C: write prefer or none instead")]
    NoDigest(&'static str),
    /// Text that cannot be read, or answers that do not fit.
    #[error(transparent)]
    Text(#[from] TextError),
    /// The stages are not those of the request.
    #[error("login response is in the wrong stage")]
    Stage,
    /// A key was answered with a value that was not on offer.
    #[error("target answered key {0} with a value that was not offered")]
    Answer(&'static str),
    /// A key was answered twice.
    #[error("target answered key {0} twice")]
    Twice(&'static str),
    /// Something in the response that is not its request's.
    #[error("login response does not match: {0}")]
    Mismatch(&'static str),
    /// The target keeps the login going.
    #[error("login takes more than {ROUNDS_MAX} rounds")]
    TooManyRounds,
}

/// What follows a response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LoginStep {
    /// Another request is to be sent.
    Again,
    /// Full feature phase, with these values.
    Done(Params),
    /// The target is at another address (status class 1).
    Moved {
        /// Where.
        to: SocketAddr,
        /// For good, rather than for this login.
        permanent: bool,
    },
}

/// What an initiator logs in with.
#[derive(Clone, Debug)]
pub struct LoginConfig {
    /// Its iSCSI name.
    pub initiator: String,
    /// The target's iSCSI name; without one it is a discovery session.
    pub target: Option<String>,
    /// What it offers; `offer.recv_own` is declared.
    pub offer: Params,
    /// Digest of headers.
    pub header_digest: Digest,
    /// Digest of data.
    pub data_digest: Digest,
    /// Credentials.
    pub chap: Option<ChapConfig>,
    /// What challenges to the target are made of.
    pub entropy: Entropy,
    /// Most bytes of text in a request, at most [`LOGIN_SEGMENT_MAX`]; what is longer goes on in the
    /// next (C).
    pub text_chunk: usize,
}

impl LoginConfig {
    /// A login as `initiator` at `target` with these offers, without credentials and digests.
    pub fn new(initiator: &str, target: Option<&str>, offer: Params) -> LoginConfig {
        LoginConfig {
            initiator: initiator.into(),
            target: target.map(Into::into),
            offer,
            header_digest: Digest::None,
            data_digest: Digest::None,
            chap: None,
            entropy: Entropy::default(),
            text_chunk: LOGIN_SEGMENT_MAX,
        }
    }
}

/// The initiator's side of a login.
#[derive(Debug)]
pub struct InitiatorLogin {
    config: LoginConfig,
    chap: Option<ChapInitiator>,
    params: Params,
    seen: Seen,
    stage: u8,
    transit: bool,
    rounds: u8,
    text: Box<[u8; TEXT_MAX]>,
    text_len: usize,
    /// What of the text is in the next request.
    from: usize,
    to: usize,
}

impl InitiatorLogin {
    /// A login; nothing is to be sent before [`InitiatorLogin::start`].
    pub fn new(config: LoginConfig) -> InitiatorLogin {
        let chap = config.chap.clone().map(|chap| ChapInitiator::new(chap, config.entropy.clone()));
        InitiatorLogin {
            config,
            chap,
            params: Params::default(),
            seen: Seen::default(),
            stage: stage::SECURITY,
            transit: true,
            rounds: 0,
            text: Box::new([0; TEXT_MAX]),
            text_len: 0,
            from: 0,
            to: 0,
        }
    }

    /// Starts over: the first request is ready.
    ///
    /// # Errors
    /// If the names do not fit, or both directions of CHAP have the same secret.
    pub fn start(&mut self) -> Result<(), LoginError> {
        self.params = Params { recv_own: self.config.offer.recv_own, ..Params::default() };
        // What a target leaves unanswered is as careful as both the offer and the default.
        for (at, spec) in SPECS.iter().enumerate() {
            let ours = self.config.offer.value(spec.key);
            self.params.values[at] = spec.rule.combine(ours, spec.default);
        }
        self.seen = Seen::default();
        self.stage = stage::SECURITY;
        self.transit = self.chap.is_none();
        self.rounds = 0;
        if let Some(chap) = &mut self.chap {
            chap.reset();
            chap.check()?;
        }
        let mut out = TextWriter::new(&mut *self.text);
        out.push("InitiatorName", &self.config.initiator)?;
        match &self.config.target {
            Some(target) => {
                out.push("SessionType", "Normal")?;
                out.push("TargetName", target)?;
            }
            None => out.push("SessionType", "Discovery")?,
        }
        // With credentials nothing but CHAP: a target that would do without is not the one meant.
        out.push("AuthMethod", if self.chap.is_some() { "CHAP" } else { "None" })?;
        let len = out.len();
        self.show(len);
        Ok(())
    }

    /// The text is `len` bytes long: its first piece is next.
    fn show(&mut self, len: usize) {
        self.text_len = len;
        self.from = 0;
        self.to = len.min(self.config.text_chunk.clamp(1, LOGIN_SEGMENT_MAX));
    }

    /// Stage of the next request.
    pub fn csg(&self) -> u8 {
        self.stage
    }

    /// Whether the text goes on in the request after the next (C).
    pub fn more(&self) -> bool {
        self.to < self.text_len
    }

    /// Stage that the next request asks for, if it asks for one.
    pub fn nsg(&self) -> Option<u8> {
        let next = match self.stage {
            stage::SECURITY => stage::OPERATIONAL,
            _ => stage::FULL_FEATURE,
        };
        (self.transit && !self.more()).then_some(next)
    }

    /// Text of the next request.
    pub fn text(&self) -> &[u8] {
        &self.text[self.from..self.to]
    }

    /// Header of the next request (RFC 7143 section 11.12) of a session under `isid` that is to be new or reinstated:
    /// TSIH, CID and the three numbers are 0. [`InitiatorLogin::text`] is its data.
    pub fn request(&self, isid: [u8; 6]) -> LoginRequest {
        let nsg = self.nsg();
        LoginRequest {
            transit: nsg.is_some(),
            more: self.more(),
            csg: self.csg(),
            nsg: nsg.unwrap_or(stage::SECURITY),
            version_max: 0,
            version_min: 0,
            isid,
            tsih: 0,
            itt: 0,
            cid: 0,
            cmd_sn: 0,
            exp_stat_sn: 0,
            data_len: self.text().len() as u32,
        }
    }

    /// A response whose text goes on (C): the next request is empty (section 6.2).
    ///
    /// # Errors
    /// If the target does this for ever, or answers in another stage.
    pub fn handle_more(&mut self, response: &LoginResponse) -> Result<(), LoginError> {
        self.check(response)?;
        if self.more() {
            return Err(LoginError::Mismatch("text before the request's is complete"));
        }
        self.show(0);
        self.transit = false;
        Ok(())
    }

    /// A response, with the whole of its text.
    ///
    /// # Errors
    /// If the target refuses, or answers what it may not.
    pub fn handle(
        &mut self,
        response: &LoginResponse,
        text: &[u8],
    ) -> Result<LoginStep, LoginError> {
        if response.status >> 8 == 1 {
            let permanent = response.status != login_status::MOVED_TEMPORARILY;
            return moved(text).map(|to| LoginStep::Moved { to, permanent });
        }
        self.check(response)?;
        if response.transit && self.nsg().is_none() {
            return Err(LoginError::Stage);
        }
        if self.more() {
            if !text.is_empty() {
                return Err(LoginError::Mismatch("text before the request's is complete"));
            }
            self.from = self.to;
            let chunk = self.config.text_chunk.clamp(1, LOGIN_SEGMENT_MAX);
            self.to = self.text_len.min(self.to + chunk);
            return Ok(LoginStep::Again);
        }
        let replied = self.take_text(text)?;
        if !response.transit {
            return Ok(LoginStep::Again);
        }
        if replied {
            return Err(LoginError::Mismatch("stage ends with keys unanswered"));
        }
        self.finish_stage(response.nsg)
    }

    /// Takes the pairs of a response; whether there is something to be said to them.
    fn take_text(&mut self, text: &[u8]) -> Result<bool, LoginError> {
        let mut out = TextWriter::new(&mut *self.text);
        let mut taker = Taker {
            config: &self.config,
            chap: self.chap.as_mut(),
            params: &mut self.params,
            seen: &mut self.seen,
            stage: self.stage,
        };
        for pair in pairs(text) {
            let (key, value) = pair?;
            taker.take(&mut out, key, value)?;
        }
        self.transit = true;
        if self.stage == stage::SECURITY
            && let Some(chap) = &mut self.chap
        {
            chap.step(&mut out)??;
            self.transit = chap.may_transit();
        }
        let len = out.len();
        self.show(len);
        Ok(len > 0)
    }

    fn check(&mut self, response: &LoginResponse) -> Result<(), LoginError> {
        match (response.status, &self.chap) {
            (login_status::SUCCESS, _) => {}
            (login_status::AUTHENTICATION, Some(chap)) => return Err(chap.refusal().into()),
            (login_status::AUTHENTICATION, None) => {
                return Err(AuthError::CredentialsNeeded.into());
            }
            (status, _) => return Err(LoginError::Refused(status)),
        }
        if response.csg != self.stage {
            return Err(LoginError::Stage);
        }
        if response.version_active != 0 {
            return Err(LoginError::Mismatch("version"));
        }
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX {
            return Err(LoginError::TooManyRounds);
        }
        Ok(())
    }

    fn finish_stage(&mut self, nsg: u8) -> Result<LoginStep, LoginError> {
        match (self.stage, nsg) {
            (stage::SECURITY, stage::OPERATIONAL) => {
                if self.chap.as_ref().is_some_and(|chap| !chap.is_done()) {
                    return Err(AuthError::TargetUnproven.into());
                }
                self.stage = stage::OPERATIONAL;
                self.write_offers()?;
                Ok(LoginStep::Again)
            }
            (stage::OPERATIONAL, stage::FULL_FEATURE) => {
                let digests = [
                    (self.config.header_digest, self.params.header_digest, "header_digest"),
                    (self.config.data_digest, self.params.data_digest, "data_digest"),
                ];
                let missing = |(wanted, has, _): &&(_, bool, _)| *wanted == Digest::Crc32c && !has;
                match digests.iter().find(missing) {
                    Some((.., name)) => Err(LoginError::NoDigest(name)),
                    None => Ok(LoginStep::Done(self.params)),
                }
            }
            _ => Err(LoginError::Stage),
        }
    }

    fn write_offers(&mut self) -> Result<(), LoginError> {
        let mut out = TextWriter::new(&mut *self.text);
        out.push("HeaderDigest", self.config.header_digest.offer())?;
        out.push("DataDigest", self.config.data_digest.offer())?;
        // A discovery session moves no data (13.2, 13.10 to 13.20: irrelevant in one).
        let specs = if self.config.target.is_some() { &SPECS[..] } else { &[] };
        for spec in specs {
            let value = self.config.offer.value(spec.key);
            match spec.rule.is_boolean() {
                true => out.push_bool(spec.name, value != 0)?,
                false => out.push_number(spec.name, value)?,
            }
        }
        out.push_number("MaxRecvDataSegmentLength", self.config.offer.recv_own)?;
        let len = out.len();
        self.show(len);
        Ok(())
    }
}

/// Takes pairs, one after the other.
struct Taker<'a> {
    config: &'a LoginConfig,
    chap: Option<&'a mut ChapInitiator>,
    params: &'a mut Params,
    seen: &'a mut Seen,
    stage: u8,
}

impl Taker<'_> {
    fn take(&mut self, out: &mut TextWriter<'_>, key: &str, value: &str) -> Result<(), LoginError> {
        let Some((kind, name)) = self.seen.take(key).map_err(LoginError::Twice)? else {
            if !is_refusal(value) {
                out.push(key, "NotUnderstood")?;
            }
            return Ok(());
        };
        let is_operational = matches!(kind, Kind::Value(_) | Kind::Digest(_));
        if is_operational && self.stage != stage::OPERATIONAL {
            return Err(LoginError::Mismatch("operational key in the security stage"));
        }
        let is_security = matches!(kind, Kind::AuthMethod | Kind::Chap(_));
        if is_security && self.stage != stage::SECURITY {
            return Err(LoginError::Mismatch("key of the security stage behind it"));
        }
        match kind {
            Kind::AuthMethod => match &mut self.chap {
                Some(chap) => chap.method(value)?,
                None if value == "None" => {}
                None if value == "CHAP" || is_refusal(value) => {
                    return Err(AuthError::CredentialsNeeded.into());
                }
                None => return Err(LoginError::Answer(name)),
            },
            Kind::Chap(key) => match &mut self.chap {
                Some(chap) => chap.take(key, value)?,
                None => return Err(AuthError::Unexpected.into()),
            },
            // 13.12: a declaration, from now on.
            Kind::Segment => {
                self.params.recv_peer = SEGMENT.parse(value).ok_or(LoginError::Answer(name))?;
            }
            Kind::Digest(which) => self.take_digest(which, name, value)?,
            // An offer of this side that is without meaning, as FirstBurstLength where there is no
            // unsolicited data (13.14).
            Kind::Value(_) if value == "Irrelevant" => {}
            Kind::Value(at) => {
                let rule = SPECS[at].rule;
                let theirs = rule.parse(value).ok_or(LoginError::Answer(name))?;
                let ours = self.config.offer.value(SPECS[at].key);
                if rule.combine(ours, theirs) != theirs {
                    return Err(LoginError::Answer(name));
                }
                self.params.values[at] = theirs;
            }
            // A tag that is none tells nothing.
            Kind::Group => self.params.group = value.parse().ok(),
            Kind::Fixed(answer) if !is_refusal(value) => out.push(key, answer)?,
            Kind::Fixed(_)
            | Kind::Declaration
            | Kind::TargetAddress
            | Kind::InitiatorName
            | Kind::TargetName
            | Kind::SessionType => {}
        }
        Ok(())
    }

    fn take_digest(
        &mut self,
        which: usize,
        name: &'static str,
        value: &str,
    ) -> Result<(), LoginError> {
        let (policy, agreed) = match which {
            0 => (self.config.header_digest, &mut self.params.header_digest),
            _ => (self.config.data_digest, &mut self.params.data_digest),
        };
        // A refusal leaves it without, as does a None that was not offered: found at the end of the stage if it may not be.
        *agreed = match policy.choose(value) {
            Some(chosen) if !value.contains(',') => chosen,
            None if is_refusal(value) && policy != Digest::None => false,
            None if value == "None" => false,
            _ => return Err(LoginError::Answer(name)),
        };
        Ok(())
    }
}

/// Where TargetAddress points (13.8: `host[:port][,tag]`).
fn moved(text: &[u8]) -> Result<SocketAddr, LoginError> {
    for pair in pairs(text) {
        let (key, value) = pair?;
        if key != "TargetAddress" {
            continue;
        }
        let place = value.split_once(',').map_or(value, |(place, _)| place);
        if let Ok(to) = place.parse() {
            return Ok(to);
        }
        let bare = place.strip_prefix('[').and_then(|p| p.strip_suffix(']')).unwrap_or(place);
        return match bare.parse::<IpAddr>() {
            Ok(address) => Ok(SocketAddr::new(address, ISCSI_PORT)),
            Err(_) => {
                tracing::warn!(address = place, "the target has moved");
                Err(LoginError::MovedToName)
            }
        };
    }
    Err(LoginError::Moved)
}
