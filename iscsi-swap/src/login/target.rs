//! The target's side of a login.

use arrayvec::ArrayVec;

use super::*;
use crate::pdu::LoginRequest;
use crate::text::{TextError, TextWriter, pairs};

/// Most text that one side's stage may have, its continuation included.
const TEXT_IN_MAX: usize = LOGIN_SEGMENT_MAX;
const TEXT_OUT_MAX: usize = LOGIN_SEGMENT_MAX;

/// Longest iSCSI name (section 4.2.7.1).
const NAME_MAX: usize = 223;

/// What follows a request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TargetStep {
    /// A response is to be sent, with [`TargetLogin::chunk`] as its text.
    Reply {
        /// The stage ends, and this one follows.
        nsg: Option<u8>,
        /// C: more text follows.
        more: bool,
    },
    /// The login fails with this status; the connection is closed after the response.
    Fail(u16),
}

/// The target's side of a login.
#[derive(Debug)]
pub struct TargetLogin {
    offer: Params,
    params: Params,
    /// Bit `i`: key `i` of `SPECS` is settled.
    settled: u16,
    /// Bit `i`: key `i` was offered by this side, its answer is due.
    asked: u16,
    first: bool,
    declared: bool,
    stage: u8,
    rounds: u8,
    extra_rounds: u8,
    chunk_max: usize,
    initiator: ArrayVec<u8, NAME_MAX>,
    text_in: Box<[u8; TEXT_IN_MAX]>,
    in_len: usize,
    text_out: Box<[u8; TEXT_OUT_MAX]>,
    out_len: usize,
    out_from: usize,
    out_to: usize,
}

impl TargetLogin {
    /// A login with these offers. It takes `extra_rounds` more rounds than needed; text goes
    /// out in pieces of `chunk_max` bytes at most.
    pub fn new(offer: Params, extra_rounds: u8, chunk_max: usize) -> TargetLogin {
        TargetLogin {
            offer,
            params: Params::default(),
            settled: 0,
            asked: 0,
            first: true,
            declared: false,
            stage: stage::SECURITY,
            rounds: 0,
            extra_rounds,
            chunk_max: chunk_max.clamp(1, LOGIN_SEGMENT_MAX),
            initiator: ArrayVec::new(),
            text_in: Box::new([0; TEXT_IN_MAX]),
            in_len: 0,
            text_out: Box::new([0; TEXT_OUT_MAX]),
            out_len: 0,
            out_from: 0,
            out_to: 0,
        }
    }

    /// Starts over, for the next connection.
    pub fn reset(&mut self, extra_rounds: u8) {
        self.params = Params { recv_own: self.offer.recv_own, ..Params::default() };
        self.settled = 0;
        self.asked = 0;
        self.first = true;
        self.declared = false;
        self.stage = stage::SECURITY;
        self.rounds = 0;
        self.extra_rounds = extra_rounds;
        self.initiator.clear();
        self.in_len = 0;
        self.out_len = 0;
        self.out_from = 0;
        self.out_to = 0;
    }

    /// Where the next `len` bytes of text belong; `None` if they are too many.
    pub fn room(&mut self, len: usize) -> Option<&mut [u8]> {
        let end = self.in_len.checked_add(len)?;
        self.text_in.get_mut(self.in_len..end)
    }

    /// `len` bytes of text have arrived.
    pub fn received(&mut self, len: usize) {
        self.in_len = (self.in_len + len).min(TEXT_IN_MAX);
    }

    /// The text of the response.
    pub fn chunk(&self) -> &[u8] {
        &self.text_out[self.out_from..self.out_to]
    }

    /// The stage that the login is in.
    pub fn csg(&self) -> u8 {
        self.stage
    }

    /// The agreed values, once the full feature phase is reached.
    pub fn params(&self) -> Params {
        // 13.12: what was not declared was not heard of.
        let recv_own = if self.declared { self.offer.recv_own } else { LOGIN_SEGMENT_MAX as u32 };
        Params { recv_own, ..self.params }
    }

    /// The initiator's name.
    pub fn initiator(&self) -> &[u8] {
        &self.initiator
    }

    /// A request whose text has arrived; `name` is this target's.
    pub fn handle(&mut self, request: &LoginRequest, name: &str) -> TargetStep {
        match self.step(request, name) {
            Ok(step) => step,
            Err(status) => TargetStep::Fail(status),
        }
    }

    fn step(&mut self, request: &LoginRequest, name: &str) -> Result<TargetStep, u16> {
        self.rounds += 1;
        if self.rounds > ROUNDS_MAX {
            return Err(login_status::INITIATOR_ERROR);
        }
        if self.first {
            if request.version_min > 0 {
                return Err(login_status::VERSION);
            }
            self.stage = request.csg;
        } else if request.csg != self.stage {
            return Err(login_status::INVALID_DURING_LOGIN);
        }
        if request.more {
            self.out_from = self.out_len;
            self.out_to = self.out_len;
            return Ok(TargetStep::Reply { nsg: None, more: false });
        }
        if self.out_to < self.out_len {
            // The last response went on: an empty request asks for the rest (section 6.2).
            return if self.in_len == 0 {
                Ok(self.reply(None))
            } else {
                Err(login_status::INVALID_DURING_LOGIN)
            };
        }
        self.answer(name).map_err(|fault| match fault {
            Fault::Status(status) => status,
            Fault::Text(error) => {
                tracing::debug!(%error, "login text");
                login_status::INITIATOR_ERROR
            }
        })?;
        self.in_len = 0;
        let mut ends = request.transit && self.asked == 0;
        if ends && self.extra_rounds > 0 {
            self.extra_rounds -= 1;
            ends = false;
        }
        let step = self.reply(ends.then_some(request.nsg));
        if let TargetStep::Reply { nsg: Some(nsg), .. } = step {
            self.stage = nsg;
        }
        Ok(step)
    }

    /// The next piece of the text; the stage ends with the last one only.
    fn reply(&mut self, nsg: Option<u8>) -> TargetStep {
        self.out_from = self.out_to;
        self.out_to = self.out_len.min(self.out_from + self.chunk_max);
        let more = self.out_to < self.out_len;
        TargetStep::Reply { nsg: nsg.filter(|_| !more), more }
    }

    fn answer(&mut self, name: &str) -> Result<(), Fault> {
        let mut found = Found::default();
        let mut seen = 0u16;
        let mut out = TextWriter::new(&mut *self.text_out);
        for pair in pairs(&self.text_in[..self.in_len]) {
            let (key, value) = pair?;
            match key {
                "InitiatorName" => {
                    self.initiator.clear();
                    let fits = self.initiator.try_extend_from_slice(value.as_bytes());
                    fits.map_err(|_| Fault::Status(login_status::INITIATOR_ERROR))?;
                }
                "TargetName" => found.target = Some(value == name),
                "SessionType" => found.discovery = value != "Normal",
                "AuthMethod" if list_has_none(value) => out.push(key, "None")?,
                "AuthMethod" => return Err(Fault::Status(login_status::AUTHENTICATION)),
                "HeaderDigest" | "DataDigest" if is_refusal(value) => {}
                "HeaderDigest" | "DataDigest" if list_has_none(value) => out.push(key, "None")?,
                "HeaderDigest" | "DataDigest" => out.push(key, "Reject")?,
                "MaxRecvDataSegmentLength" => match SEGMENT.parse(value) {
                    Some(len) => self.params.recv_peer = len,
                    None => out.push(key, "Reject")?,
                },
                _ => match SPECS.iter().position(|s| s.name == key) {
                    Some(_) if self.stage != stage::OPERATIONAL => {
                        return Err(Fault::Status(login_status::INVALID_DURING_LOGIN));
                    }
                    Some(i) => {
                        let keys = (&mut self.settled, &mut self.asked);
                        match settle(&self.offer, &mut self.params, keys, i, value)? {
                            Settled::Answer => seen |= 1 << i,
                            Settled::Done => {}
                            Settled::Bad => out.push(key, "Reject")?,
                        }
                    }
                    None if is_declaration(key) || is_refusal(value) => {}
                    None => out.push(key, fixed_answer(key))?,
                },
            }
        }
        push_values(&mut out, &self.params, seen)?;
        if self.first {
            self.first = false;
            check_names(&found, &self.initiator)?;
            // 13.9: with the first response of a normal session.
            out.push_number("TargetPortalGroupTag", 1)?;
        }
        if self.stage == stage::OPERATIONAL && !self.declared {
            self.declared = true;
            out.push_number("MaxRecvDataSegmentLength", self.offer.recv_own)?;
            // What the initiator did not bring up, and would not be as it is wanted here.
            let unsaid = (0..SPECS.len()).filter(|i| self.settled & (1 << i) == 0).filter(|i| {
                let (spec, ours) = (&SPECS[*i], self.offer.values[*i]);
                spec.rule.combine(ours, spec.default) != spec.default
            });
            let asked = unsaid.fold(0, |bits, i| bits | (1 << i));
            push_values(&mut out, &self.offer, asked)?;
            self.asked = asked;
        }
        self.out_len = out.len();
        self.out_from = 0;
        self.out_to = 0;
        Ok(())
    }
}

#[derive(Default)]
struct Found {
    /// Whether the target that is wanted is this one.
    target: Option<bool>,
    discovery: bool,
}

fn check_names(found: &Found, initiator: &[u8]) -> Result<(), Fault> {
    let status = if initiator.is_empty() {
        login_status::MISSING_PARAMETER
    } else if found.discovery {
        login_status::SESSION_TYPE
    } else {
        match found.target {
            None => login_status::MISSING_PARAMETER,
            Some(false) => login_status::NOT_FOUND,
            Some(true) => return Ok(()),
        }
    };
    Err(Fault::Status(status))
}

enum Settled {
    /// The value is to be told.
    Answer,
    /// It was the answer to an offer of this side.
    Done,
    /// Not a value of this key.
    Bad,
}

fn settle(
    offer: &Params,
    params: &mut Params,
    (settled, asked): (&mut u16, &mut u16),
    i: usize,
    value: &str,
) -> Result<Settled, Fault> {
    let (spec, bit) = (&SPECS[i], 1 << i);
    if *settled & bit != 0 {
        return Err(Fault::Status(login_status::INITIATOR_ERROR));
    }
    *settled |= bit;
    let was_asked = *asked & bit != 0;
    *asked &= !bit;
    if was_asked && is_refusal(value) {
        return Ok(Settled::Done);
    }
    let ours = offer.values[i];
    match spec.rule.parse(value) {
        Some(theirs) if was_asked && spec.rule.combine(ours, theirs) != theirs => {
            Err(Fault::Status(login_status::INITIATOR_ERROR))
        }
        Some(theirs) => {
            params.values[i] = spec.rule.combine(ours, theirs);
            Ok(if was_asked { Settled::Done } else { Settled::Answer })
        }
        None if was_asked => Err(Fault::Status(login_status::INITIATOR_ERROR)),
        None => Ok(Settled::Bad),
    }
}

fn push_values(out: &mut TextWriter<'_>, params: &Params, bits: u16) -> Result<(), TextError> {
    for (i, spec) in SPECS.iter().enumerate().filter(|(i, _)| bits & (1 << i) != 0) {
        // 13.14: FirstBurstLength must not exceed MaxBurstLength.
        let value = match spec.key {
            Key::FirstBurstLength => params.first_burst(),
            _ => params.values[i],
        };
        match spec.rule.is_boolean() {
            true => out.push_bool(spec.name, value != 0)?,
            false => out.push_number(spec.name, value)?,
        }
    }
    Ok(())
}

enum Fault {
    Status(u16),
    Text(TextError),
}

impl From<TextError> for Fault {
    fn from(error: TextError) -> Fault {
        Fault::Text(error)
    }
}
