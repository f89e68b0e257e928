//! The target's side of a login.

use arrayvec::ArrayVec;

use super::chap::{ChapFault, ChapTarget};
use super::keys::{Kind, Seen, is_refusal};
use super::*;
use crate::auth::{ChapConfig, Entropy};
use crate::initiator::Digest;
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

/// What a target answers a login with.
#[derive(Clone, Debug)]
pub struct TargetLoginConfig {
    /// What it offers; `offer.recv_own` is declared.
    pub offer: Params,
    /// Digest of headers. Sessions for discovery are not held to it.
    pub header_digest: Digest,
    /// Digest of data. Likewise.
    pub data_digest: Digest,
    /// Credentials: what initiators have to prove, and what the target proves itself with.
    pub chap: Option<ChapConfig>,
    /// What challenges to initiators are made of.
    pub entropy: Entropy,
    /// Rounds beyond those needed.
    pub extra_rounds: u8,
    /// Most bytes of text in a response.
    pub text_chunk: usize,
}

impl TargetLoginConfig {
    /// A login with these offers, without credentials and digests.
    pub fn new(offer: Params) -> TargetLoginConfig {
        TargetLoginConfig {
            offer,
            header_digest: Digest::None,
            data_digest: Digest::None,
            chap: None,
            entropy: Entropy::default(),
            extra_rounds: 0,
            text_chunk: LOGIN_SEGMENT_MAX,
        }
    }
}

/// The target's side of a login.
#[derive(Debug)]
pub struct TargetLogin {
    offer: Params,
    digests: [Digest; 2],
    chap: Option<ChapTarget>,
    params: Params,
    seen: Seen,
    discovery: bool,
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
    /// A login, ready for the first request.
    pub fn new(config: TargetLoginConfig) -> TargetLogin {
        let chap = config.chap.map(|chap| ChapTarget::new(chap, config.entropy));
        TargetLogin {
            offer: config.offer,
            digests: [config.header_digest, config.data_digest],
            chap,
            params: Params::default(),
            seen: Seen::default(),
            discovery: false,
            settled: 0,
            asked: 0,
            first: true,
            declared: false,
            stage: stage::SECURITY,
            rounds: 0,
            extra_rounds: config.extra_rounds,
            chunk_max: config.text_chunk.clamp(1, LOGIN_SEGMENT_MAX),
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
        self.seen = Seen::default();
        self.discovery = false;
        if let Some(chap) = &mut self.chap {
            chap.reset();
        }
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

    /// Whether the session is for discovery.
    pub fn is_discovery(&self) -> bool {
        self.discovery
    }

    /// The initiator's name.
    pub fn initiator(&self) -> &[u8] {
        &self.initiator
    }

    /// Any request, at a target that is elsewhere.
    pub fn redirect(&mut self, address: &str, permanent: bool) -> TargetStep {
        let mut out = TextWriter::new(&mut *self.text_out);
        // Without room for it the initiator learns that, and no address.
        let _ = out.push("TargetAddress", address);
        (self.out_len, self.out_from, self.out_to) = (out.len(), 0, out.len());
        TargetStep::Fail(match permanent {
            true => login_status::MOVED_PERMANENTLY,
            false => login_status::MOVED_TEMPORARILY,
        })
    }

    /// A Text Request in the full feature phase, whose text has arrived: SendTargets (13.3), which tells
    /// of the target `name` and its `portals`; a request that is not `fresh` asks for the rest of the
    /// answer before. Whether the text goes on; `None` if it is not text, or nothing to answer with fits.
    pub fn answer_text<'p>(
        &mut self,
        fresh: bool,
        name: &str,
        portals: impl Iterator<Item = &'p str> + Clone,
    ) -> Option<bool> {
        if fresh {
            let mut out = TextWriter::new(&mut *self.text_out);
            for pair in pairs(&self.text_in[..self.in_len]) {
                let (key, value) = pair.ok()?;
                match (key, value) {
                    ("SendTargets", "All" | "") => {}
                    ("SendTargets", value) if value == name => {}
                    // Appendix C: no such target is an empty list.
                    ("SendTargets", _) => continue,
                    _ => {
                        out.push(key, "NotUnderstood").ok()?;
                        continue;
                    }
                }
                out.push("TargetName", name).ok()?;
                portals.clone().try_for_each(|portal| out.push("TargetAddress", portal)).ok()?;
            }
            (self.out_len, self.out_to) = (out.len(), 0);
        }
        self.in_len = 0;
        Some(matches!(self.reply(None), TargetStep::Reply { more: true, .. }))
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
            if self.chap.is_some() && self.stage != stage::SECURITY {
                return Err(login_status::AUTHENTICATION);
            }
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
            Fault::Chap(error) => {
                tracing::debug!(%error, "login refused");
                login_status::AUTHENTICATION
            }
            Fault::Text(error) => {
                tracing::debug!(%error, "login text");
                login_status::INITIATOR_ERROR
            }
        })?;
        self.in_len = 0;
        let is_proven = self.chap.as_ref().is_none_or(ChapTarget::is_done);
        let mut ends = request.transit && self.asked == 0 && is_proven;
        if ends && self.extra_rounds > 0 {
            self.extra_rounds -= 1;
            ends = false;
        }
        let step = self.reply(ends.then_some(request.nsg));
        if step == (TargetStep::Reply { nsg: Some(stage::FULL_FEATURE), more: false }) {
            self.check_digests()?;
        }
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

    /// A digest that has to be there is.
    fn check_digests(&self) -> Result<(), u16> {
        let agreed = [self.params.header_digest, self.params.data_digest];
        let missing = |(policy, has): (&Digest, bool)| *policy == Digest::Crc32c && !has;
        match !self.discovery && self.digests.iter().zip(agreed).any(missing) {
            true => Err(login_status::INITIATOR_ERROR),
            false => Ok(()),
        }
    }

    fn answer(&mut self, name: &str) -> Result<(), Fault> {
        let mut target = None;
        let mut answers = 0u16;
        let mut out = TextWriter::new(&mut *self.text_out);
        for pair in pairs(&self.text_in[..self.in_len]) {
            let (key, value) = pair?;
            let taken = self.seen.take(key);
            let Some((kind, _)) = taken.map_err(|_| login_status::INITIATOR_ERROR)? else {
                if !is_refusal(value) {
                    out.push(key, "NotUnderstood")?;
                }
                continue;
            };
            match kind {
                Kind::InitiatorName => {
                    self.initiator.clear();
                    let fits = self.initiator.try_extend_from_slice(value.as_bytes());
                    fits.map_err(|_| login_status::INITIATOR_ERROR)?;
                }
                Kind::TargetName => target = Some(value == name),
                Kind::SessionType => match value {
                    "Normal" => {}
                    "Discovery" => self.discovery = true,
                    _ => return Err(login_status::SESSION_TYPE.into()),
                },
                Kind::AuthMethod => match &mut self.chap {
                    None if has(value, "None") => out.push(key, "None")?,
                    Some(chap) if has(value, "CHAP") => {
                        chap.choose();
                        out.push(key, "CHAP")?;
                    }
                    _ => return Err(login_status::AUTHENTICATION.into()),
                },
                Kind::Chap(part) => match &mut self.chap {
                    Some(chap) => chap.take(part, value)?,
                    None => return Err(login_status::AUTHENTICATION.into()),
                },
                Kind::Digest(_) | Kind::Value(_) if self.stage != stage::OPERATIONAL => {
                    return Err(login_status::INVALID_DURING_LOGIN.into());
                }
                Kind::Digest(_) if is_refusal(value) => {}
                Kind::Digest(which) => {
                    // A session for discovery moves no data, and its initiators seldom offer
                    // digests: it may do without.
                    let chosen = match self.digests[which] {
                        Digest::Crc32c if self.discovery => Digest::Prefer.choose(value),
                        wanted => wanted.choose(value),
                    };
                    let agreed = match which {
                        0 => &mut self.params.header_digest,
                        _ => &mut self.params.data_digest,
                    };
                    *agreed = chosen == Some(true);
                    let answer = match chosen {
                        Some(true) => "CRC32C",
                        Some(false) => "None",
                        None => "Reject",
                    };
                    out.push(key, answer)?;
                }
                Kind::Segment => match SEGMENT.parse(value) {
                    Some(len) => self.params.recv_peer = len,
                    None => out.push(key, "Reject")?,
                },
                // 13.2, 13.10 to 13.20: without meaning in a discovery session.
                Kind::Value(_) if self.discovery => out.push(key, "Irrelevant")?,
                Kind::Value(i) => {
                    let keys = (&mut self.settled, &mut self.asked);
                    match settle(&self.offer, &mut self.params, keys, i, value)? {
                        Settled::Answer => answers |= 1 << i,
                        Settled::Done => {}
                        Settled::Bad => out.push(key, "Reject")?,
                    }
                }
                Kind::Fixed(answer) if !is_refusal(value) => out.push(key, answer)?,
                Kind::Fixed(_) | Kind::Declaration | Kind::Group | Kind::TargetAddress => {}
            }
        }
        if let Some(chap) = &mut self.chap {
            chap.step(&mut out)?;
        }
        push_values(&mut out, &self.params, answers)?;
        if self.first {
            self.first = false;
            check_names(target, self.discovery, &self.initiator)?;
            // 13.9: with the first response of a normal session.
            if !self.discovery {
                out.push_number("TargetPortalGroupTag", 1)?;
            }
        }
        if self.stage == stage::OPERATIONAL && !self.declared {
            self.declared = true;
            out.push_number("MaxRecvDataSegmentLength", self.offer.recv_own)?;
            // What the initiator did not bring up, and would not be as it is wanted here.
            let last = if self.discovery { 0 } else { SPECS.len() };
            let unsaid = (0..last).filter(|i| self.settled & (1 << i) == 0).filter(|i| {
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

/// Whether a list has this value.
fn has(list: &str, value: &str) -> bool {
    list.split(',').any(|one| one == value)
}

/// `target` says whether the target that is wanted is this one; a discovery session needs none.
fn check_names(target: Option<bool>, discovery: bool, initiator: &[u8]) -> Result<(), Fault> {
    let status = match target {
        _ if initiator.is_empty() => login_status::MISSING_PARAMETER,
        Some(false) => login_status::NOT_FOUND,
        None if !discovery => login_status::MISSING_PARAMETER,
        _ => return Ok(()),
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
    Chap(ChapFault),
    Text(TextError),
}

impl From<u16> for Fault {
    fn from(status: u16) -> Fault {
        Fault::Status(status)
    }
}

impl From<ChapFault> for Fault {
    fn from(fault: ChapFault) -> Fault {
        Fault::Chap(fault)
    }
}

impl From<TextError> for Fault {
    fn from(error: TextError) -> Fault {
        Fault::Text(error)
    }
}
