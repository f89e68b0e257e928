//! The initiator's side of CHAP: it answers the target, and may ask back.

use subtle::ConstantTimeEq;

use super::*;
use crate::auth::{ChapConfig, SECRET_BYTES_MIN};
use crate::login::AuthError;
use crate::text::{TextError, TextWriter};

/// AuthMethod.
const METHOD: u8 = 1 << 7;
/// Values that the target has to send together: algorithm, identifier, challenge.
const QUESTION: u8 = 1 | 2 | 4;
/// And these: name, response.
const PROOF: u8 = 8 | 16;

/// ```text
///   Method --> Algorithm --> Answered --> Proven
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// AuthMethod was sent.
    Method,
    /// CHAP_A was sent.
    Algorithm,
    /// CHAP_R was sent.
    Answered,
    /// The target has proved itself, if it has to.
    Proven,
}

#[derive(Debug)]
pub(in crate::login) struct ChapInitiator {
    config: ChapConfig,
    entropy: Entropy,
    /// Logins so far: no challenge is used twice.
    count: u64,
    state: State,
    /// Values that have come since the last step, a bit each.
    seen: u8,
    algorithm: Algorithm,
    identifier: u8,
    /// The target's challenge, then its response.
    binary: Box<Binary>,
    name_fits: bool,
    own: Challenge,
    response: Response,
}

impl ChapInitiator {
    pub(in crate::login) fn new(config: ChapConfig, entropy: Entropy) -> ChapInitiator {
        let algorithm = Algorithm::Md5;
        let secrets = [Some(&config.initiator), config.target.as_ref()];
        if secrets.into_iter().flatten().any(|credentials| credentials.secret.is_short()) {
            tracing::warn!(
                "a CHAP secret has less than {SECRET_BYTES_MIN} bytes: who overhears a login can guess it"
            );
        }
        ChapInitiator {
            own: Challenge::make(&entropy, 0, algorithm),
            config,
            entropy,
            count: 0,
            state: State::Method,
            seen: 0,
            algorithm,
            identifier: 0,
            binary: Box::new(Binary::new()),
            name_fits: false,
            response: Response { bytes: [0; HASH_MAX], len: 0 },
        }
    }

    /// Starts over, for the next login.
    pub(in crate::login) fn reset(&mut self) {
        self.state = State::Method;
        self.seen = 0;
        self.count += 1;
    }

    /// A secret that both sides use is open to a target that reflects (section 9.2.1).
    pub(in crate::login) fn check(&self) -> Result<(), AuthError> {
        match &self.config.target {
            Some(target) if target.secret == self.config.initiator.secret => {
                Err(AuthError::SameSecret)
            }
            _ => Ok(()),
        }
    }

    /// Whether all is proven that has to be.
    pub(in crate::login) fn is_done(&self) -> bool {
        self.state == State::Proven
    }

    /// Whether this side has said all that it has to say.
    pub(in crate::login) fn may_transit(&self) -> bool {
        matches!(self.state, State::Answered | State::Proven)
    }

    /// What a refusal by the target means now.
    pub(in crate::login) fn refusal(&self) -> AuthError {
        match self.state {
            State::Method | State::Algorithm => AuthError::NoChap,
            State::Answered | State::Proven => AuthError::WrongSecret,
        }
    }

    /// AuthMethod was answered.
    pub(in crate::login) fn method(&mut self, value: &str) -> Result<(), AuthError> {
        if value != "CHAP" || self.state != State::Method {
            return Err(AuthError::NoChap);
        }
        self.seen = METHOD;
        Ok(())
    }

    /// A value of the target.
    pub(in crate::login) fn take(&mut self, key: ChapKey, value: &str) -> Result<(), AuthError> {
        let good = match (self.state, key) {
            (State::Algorithm, ChapKey::Algorithm) => match Algorithm::of(value) {
                Some(algorithm) => {
                    self.algorithm = algorithm;
                    true
                }
                None => return Err(AuthError::NoAlgorithm),
            },
            (State::Algorithm, ChapKey::Identifier) => {
                let number = crate::text::number(value).and_then(|n| u8::try_from(n).ok());
                self.identifier = number.ok_or(AuthError::Challenge)?;
                true
            }
            (State::Algorithm, ChapKey::Challenge) => self.binary.take(value),
            (State::Answered, ChapKey::Name) => {
                let name = self.config.target.as_ref().map(|target| &*target.user);
                self.name_fits = name == Some(value);
                true
            }
            (State::Answered, ChapKey::Response) => {
                // A response that cannot be one is a wrong one.
                let _ = self.binary.take(value);
                true
            }
            _ => return Err(AuthError::Unexpected),
        };
        self.seen |= 1 << key as u8;
        if good { Ok(()) } else { Err(AuthError::Challenge) }
    }

    /// All of a response has been taken: what to send next, if anything.
    pub(in crate::login) fn step(
        &mut self,
        out: &mut TextWriter<'_>,
    ) -> Result<Result<(), AuthError>, TextError> {
        let seen = std::mem::take(&mut self.seen);
        match self.state {
            State::Method if seen == METHOD => {
                out.push("CHAP_A", "5,7")?;
                self.state = State::Algorithm;
            }
            State::Method => return Ok(Err(AuthError::NoChap)),
            State::Algorithm if seen == QUESTION => {
                if let Err(error) = self.answer(out)? {
                    return Ok(Err(error));
                }
            }
            State::Algorithm => return Ok(Err(AuthError::Challenge)),
            State::Answered if self.config.target.is_none() => self.state = State::Proven,
            State::Answered if seen == PROOF => {
                if let Err(error) = self.verify() {
                    return Ok(Err(error));
                }
                self.state = State::Proven;
            }
            State::Answered => return Ok(Err(AuthError::TargetUnproven)),
            State::Proven => {}
        }
        Ok(Ok(()))
    }

    fn answer(&mut self, out: &mut TextWriter<'_>) -> Result<Result<(), AuthError>, TextError> {
        let credentials = &self.config.initiator;
        let challenge = self.binary.bytes();
        let response = self.algorithm.respond(self.identifier, &credentials.secret, challenge);
        self.response = response;
        out.push("CHAP_N", &credentials.user)?;
        out.push_hex("CHAP_R", response.bytes())?;
        if self.config.target.is_some() {
            self.own = Challenge::make(&self.entropy, self.count, self.algorithm);
            // Only a target that knows the entropy can come up with this one.
            if self.own.bytes() == challenge {
                return Ok(Err(AuthError::Reflected));
            }
            out.push_number("CHAP_I", self.own.identifier.into())?;
            out.push_hex("CHAP_C", self.own.bytes())?;
        }
        self.state = State::Answered;
        Ok(Ok(()))
    }

    fn verify(&self) -> Result<(), AuthError> {
        let Some(target) = &self.config.target else { return Ok(()) };
        let theirs = self.binary.bytes();
        if theirs == self.response.bytes() {
            return Err(AuthError::Reflected);
        }
        let right = self.algorithm.respond(self.own.identifier, &target.secret, self.own.bytes());
        let is_right: bool = right.bytes().ct_eq(theirs).into();
        match (is_right, self.name_fits) {
            (true, true) => Ok(()),
            (true, false) => Err(AuthError::TargetName),
            (false, _) => Err(AuthError::TargetUnproven),
        }
    }
}
