//! The target's side of CHAP: it asks, and answers if it is asked back.

use subtle::ConstantTimeEq;

use super::*;
use crate::auth::ChapConfig;
use crate::text::{TextError, TextWriter};

/// ```text
///   Method --> Chosen --> Challenged --> Proven
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// The initiator has yet to choose CHAP.
    Method,
    /// It has yet to name algorithms.
    Chosen,
    /// It was challenged.
    Challenged,
    /// It has proved itself.
    Proven,
}

/// Why the initiator is sent away, with status "authentication failure".
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(in crate::login) enum ChapFault {
    #[error("CHAP keys out of turn")]
    Unexpected,
    #[error("no CHAP algorithm that is known here")]
    NoAlgorithm,
    #[error("CHAP challenge or identifier that cannot be one")]
    Challenge,
    #[error("user or secret is wrong")]
    WrongSecret,
    #[error("initiator reflects the challenge")]
    Reflected,
    #[error("initiator wants a proof, and there are no credentials for it")]
    NoProof,
    #[error(transparent)]
    Text(#[from] TextError),
}

#[derive(Debug)]
pub(in crate::login) struct ChapTarget {
    config: ChapConfig,
    entropy: Entropy,
    /// Challenges so far: none is used twice.
    count: u64,
    state: State,
    /// Values that have come since the last step, a bit each.
    seen: u8,
    algorithm: Option<Algorithm>,
    own: Challenge,
    name_fits: bool,
    identifier: u8,
    response: Box<Binary>,
    challenge: Box<Binary>,
}

impl ChapTarget {
    pub(in crate::login) fn new(config: ChapConfig, entropy: Entropy) -> ChapTarget {
        ChapTarget {
            own: Challenge::make(&entropy, 0, Algorithm::Md5),
            config,
            entropy,
            count: 0,
            state: State::Method,
            seen: 0,
            algorithm: None,
            name_fits: false,
            identifier: 0,
            response: Box::new(Binary::new()),
            challenge: Box::new(Binary::new()),
        }
    }

    /// Starts over, for the next login.
    pub(in crate::login) fn reset(&mut self) {
        self.state = State::Method;
        self.seen = 0;
        self.algorithm = None;
    }

    /// Whether the initiator has proved itself.
    pub(in crate::login) fn is_done(&self) -> bool {
        self.state == State::Proven
    }

    /// CHAP was chosen.
    pub(in crate::login) fn choose(&mut self) {
        self.state = State::Chosen;
    }

    /// A value of the initiator.
    pub(in crate::login) fn take(&mut self, key: ChapKey, value: &str) -> Result<(), ChapFault> {
        match (self.state, key) {
            (State::Chosen, ChapKey::Algorithm) => {
                self.algorithm = value.split(',').find_map(Algorithm::of);
            }
            (State::Challenged, ChapKey::Name) => {
                self.name_fits = value == self.config.initiator.user;
            }
            // A response that cannot be one is a wrong one.
            (State::Challenged, ChapKey::Response) => drop(self.response.take(value)),
            (State::Challenged, ChapKey::Identifier) => {
                let number = crate::text::number(value).and_then(|n| u8::try_from(n).ok());
                self.identifier = number.ok_or(ChapFault::Challenge)?;
            }
            (State::Challenged, ChapKey::Challenge) => {
                if !self.challenge.take(value) {
                    return Err(ChapFault::Challenge);
                }
            }
            _ => return Err(ChapFault::Unexpected),
        }
        self.seen |= 1 << key as u8;
        Ok(())
    }

    /// All of a request has been taken: what to answer, if anything.
    pub(in crate::login) fn step(&mut self, out: &mut TextWriter<'_>) -> Result<(), ChapFault> {
        const ALGORITHM: u8 = 1;
        const PROOF: u8 = 8 | 16;
        const PROOF_AND_QUESTION: u8 = PROOF | 2 | 4;
        match (self.state, std::mem::take(&mut self.seen)) {
            (State::Chosen, ALGORITHM) => {
                let algorithm = self.algorithm.ok_or(ChapFault::NoAlgorithm)?;
                self.count += 1;
                self.own = Challenge::make(&self.entropy, self.count, algorithm);
                out.push_number("CHAP_A", algorithm as u32)?;
                out.push_number("CHAP_I", self.own.identifier.into())?;
                out.push_hex("CHAP_C", self.own.bytes())?;
                self.state = State::Challenged;
                Ok(())
            }
            (State::Challenged, PROOF) => self.verify().map(|_| ()),
            (State::Challenged, PROOF_AND_QUESTION) => {
                let algorithm = self.verify()?;
                let target = self.config.target.as_ref().ok_or(ChapFault::NoProof)?;
                if self.challenge.bytes() == self.own.bytes() {
                    return Err(ChapFault::Reflected);
                }
                let challenge = self.challenge.bytes();
                let response = algorithm.respond(self.identifier, &target.secret, challenge);
                out.push("CHAP_N", &target.user)?;
                out.push_hex("CHAP_R", response.bytes())?;
                Ok(())
            }
            (_, 0) => Ok(()),
            _ => Err(ChapFault::Unexpected),
        }
    }

    fn verify(&mut self) -> Result<Algorithm, ChapFault> {
        let algorithm = self.algorithm.ok_or(ChapFault::NoAlgorithm)?;
        let secret = &self.config.initiator.secret;
        let right = algorithm.respond(self.own.identifier, secret, self.own.bytes());
        let is_right: bool = right.bytes().ct_eq(self.response.bytes()).into();
        if !(is_right & self.name_fits) {
            return Err(ChapFault::WrongSecret);
        }
        self.state = State::Proven;
        Ok(algorithm)
    }
}
