//! The initiator's side of a login: what to send, and what to make of the answer.

use super::*;
use crate::pdu::LoginResponse;
use crate::text::{TextError, TextWriter, pairs};

/// Most text of one request: two names of 223 bytes, all keys, and answers to what a target asks.
const TEXT_MAX: usize = 2048;

const DIGESTS: [&str; 2] = ["HeaderDigest", "DataDigest"];

/// Why a login did not succeed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LoginError {
    /// The target said no.
    #[error("login refused with status {0:#06x}")]
    Refused(u16),
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
}

/// The initiator's side of a login.
#[derive(Debug)]
pub struct InitiatorLogin {
    initiator: String,
    target: String,
    offer: Params,
    params: Params,
    /// Bit `i`: key `i` of `SPECS` was answered; above them the digests.
    answered: u16,
    stage: u8,
    transit: bool,
    rounds: u8,
    text: Box<[u8; TEXT_MAX]>,
    text_len: usize,
}

impl InitiatorLogin {
    /// A login as `initiator` at `target` with these offers; `offer.recv_own` is declared.
    pub fn new(initiator: String, target: String, offer: Params) -> InitiatorLogin {
        InitiatorLogin {
            initiator,
            target,
            offer,
            params: Params::default(),
            answered: 0,
            stage: stage::SECURITY,
            transit: true,
            rounds: 0,
            text: Box::new([0; TEXT_MAX]),
            text_len: 0,
        }
    }

    /// Starts over: the first request is ready.
    ///
    /// # Errors
    /// If the names do not fit.
    pub fn start(&mut self) -> Result<(), LoginError> {
        self.params = Params { recv_own: self.offer.recv_own, ..Params::default() };
        self.answered = 0;
        self.stage = stage::SECURITY;
        self.transit = true;
        self.rounds = 0;
        let mut out = TextWriter::new(&mut *self.text);
        out.push("InitiatorName", &self.initiator)?;
        out.push("SessionType", "Normal")?;
        out.push("TargetName", &self.target)?;
        out.push("AuthMethod", "None")?;
        self.text_len = out.len();
        Ok(())
    }

    /// Stage of the next request.
    pub fn csg(&self) -> u8 {
        self.stage
    }

    /// Stage that the next request asks for, if it asks for one.
    pub fn nsg(&self) -> Option<u8> {
        let next = match self.stage {
            stage::SECURITY => stage::OPERATIONAL,
            _ => stage::FULL_FEATURE,
        };
        self.transit.then_some(next)
    }

    /// Text of the next request.
    pub fn text(&self) -> &[u8] {
        &self.text[..self.text_len]
    }

    /// A response whose text goes on (C): the next request is empty (section 6.2).
    ///
    /// # Errors
    /// If the target does this for ever, or answers in another stage.
    pub fn handle_more(&mut self, response: &LoginResponse) -> Result<(), LoginError> {
        self.check(response)?;
        self.text_len = 0;
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
        self.check(response)?;
        let mut out = TextWriter::new(&mut *self.text);
        for pair in pairs(text) {
            let (key, value) = pair?;
            take_pair(
                &self.offer,
                &mut self.params,
                &mut self.answered,
                self.stage,
                &mut out,
                (key, value),
            )?;
        }
        self.text_len = out.len();
        let replied = !out.is_empty();
        self.transit = true;
        if !response.transit {
            return Ok(LoginStep::Again);
        }
        if replied {
            return Err(LoginError::Mismatch("stage ends with keys unanswered"));
        }
        self.finish_stage(response.nsg)
    }

    fn check(&mut self, response: &LoginResponse) -> Result<(), LoginError> {
        if response.status != login_status::SUCCESS {
            return Err(LoginError::Refused(response.status));
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
                self.stage = stage::OPERATIONAL;
                self.write_offers()?;
                Ok(LoginStep::Again)
            }
            (stage::OPERATIONAL, stage::FULL_FEATURE) => Ok(LoginStep::Done(self.params)),
            _ => Err(LoginError::Stage),
        }
    }

    fn write_offers(&mut self) -> Result<(), LoginError> {
        let mut out = TextWriter::new(&mut *self.text);
        for digest in DIGESTS {
            out.push(digest, "None")?;
        }
        for spec in &SPECS {
            let value = self.offer.value(spec.key);
            match spec.rule.is_boolean() {
                true => out.push_bool(spec.name, value != 0)?,
                false => out.push_number(spec.name, value)?,
            }
        }
        out.push_number("MaxRecvDataSegmentLength", self.offer.recv_own)?;
        self.text_len = out.len();
        Ok(())
    }
}

fn take_pair(
    offer: &Params,
    params: &mut Params,
    answered: &mut u16,
    csg: u8,
    out: &mut TextWriter<'_>,
    (key, value): (&str, &str),
) -> Result<(), LoginError> {
    let mut once = |bit: usize, name| {
        if *answered & (1 << bit) != 0 {
            return Err(LoginError::Twice(name));
        }
        *answered |= 1 << bit;
        Ok(())
    };
    if key == "AuthMethod" {
        return if value == "None" { Ok(()) } else { Err(LoginError::Answer("AuthMethod")) };
    }
    if key == "MaxRecvDataSegmentLength" {
        // 13.12: a declaration, from now on.
        params.recv_peer =
            SEGMENT.parse(value).ok_or(LoginError::Answer("MaxRecvDataSegmentLength"))?;
        return Ok(());
    }
    if let Some(i) = DIGESTS.iter().position(|d| *d == key) {
        once(SPECS.len() + i, DIGESTS[i])?;
        return if value == "None" { Ok(()) } else { Err(LoginError::Answer(DIGESTS[i])) };
    }
    if let Some(i) = SPECS.iter().position(|s| s.name == key) {
        let spec = &SPECS[i];
        if csg != stage::OPERATIONAL {
            return Err(LoginError::Mismatch("operational key in the security stage"));
        }
        once(i, spec.name)?;
        // 13.14: Irrelevant is the answer when there is no unsolicited data at all.
        if value == "Irrelevant" {
            return Ok(());
        }
        let ours = offer.value(spec.key);
        let theirs = spec.rule.parse(value).ok_or(LoginError::Answer(spec.name))?;
        if spec.rule.combine(ours, theirs) != theirs {
            return Err(LoginError::Answer(spec.name));
        }
        params.values[i] = theirs;
        return Ok(());
    }
    if !is_declaration(key) && !is_refusal(value) {
        out.push(key, fixed_answer(key))?;
    }
    Ok(())
}
