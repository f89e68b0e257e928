//! Who an initiator and a target say they are, and what they know to prove it (RFC 7143 section
//! 12.1.3).
//!
//! A [`Secret`] has its memory from the start, never shows itself, is compared in constant time, and
//! is overwritten when it is dropped. It lies on the heap, so that moving it leaves no copies behind.

use std::fmt;

use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;
use zeroize::Zeroize;

/// Longest secret in bytes. Picked by eye: four times what any hash here makes use of.
pub const SECRET_BYTES_MAX: usize = 255;

/// Shortest secret in bytes that resists guessing when the connection is overheard (RFC 7143 section
/// 9.2.1: 96 bits).
pub const SECRET_BYTES_MIN: usize = 12;

/// Longest name of a user in bytes (RFC 7143 section 6.1: the default for text values).
pub const USER_BYTES_MAX: usize = 255;

/// A secret of 1 to [`SECRET_BYTES_MAX`] bytes.
///
/// ```
/// use netswap_iscsi::Secret;
///
/// let secret = Secret::new(b"correct horse").unwrap();
/// assert_eq!(format!("{secret} {secret:?}"), "(secret) (secret)");
/// assert!(!secret.is_short());
/// ```
#[derive(Clone)]
pub struct Secret {
    bytes: Box<[u8; SECRET_BYTES_MAX]>,
    len: u8,
}

impl Secret {
    /// A copy of these bytes; `None` if they are none or too many.
    pub fn new(bytes: &[u8]) -> Option<Secret> {
        let len = u8::try_from(bytes.len()).ok().filter(|len| *len > 0)?;
        let mut secret = Secret { bytes: Box::new([0; SECRET_BYTES_MAX]), len };
        secret.bytes[..bytes.len()].copy_from_slice(bytes);
        Some(secret)
    }

    /// The bytes themselves, for a hash.
    pub(crate) fn expose(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }

    /// Whether it has fewer than [`SECRET_BYTES_MIN`] bytes.
    pub fn is_short(&self) -> bool {
        usize::from(self.len) < SECRET_BYTES_MIN
    }
}

impl Drop for Secret {
    fn drop(&mut self) {
        self.bytes.zeroize();
    }
}

impl PartialEq for Secret {
    fn eq(&self, other: &Secret) -> bool {
        // Behind its length a secret is zeros: all bytes can be compared.
        let same = self.bytes.ct_eq(&*other.bytes) & self.len.ct_eq(&other.len);
        same.into()
    }
}

impl Eq for Secret {}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

impl fmt::Display for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

/// A name and what its owner knows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Credentials {
    /// The name, 1 to [`USER_BYTES_MAX`] bytes.
    pub user: String,
    /// The secret.
    pub secret: Secret,
}

impl Credentials {
    /// A name and a secret; `None` if one has a length that it cannot have, or the name has control
    /// characters.
    pub fn new(user: &str, secret: &[u8]) -> Option<Credentials> {
        let secret = Secret::new(secret)?;
        is_user(user).then(|| Credentials { user: user.into(), secret })
    }
}

/// Whether this can be the name of a user.
pub(crate) fn is_user(name: &str) -> bool {
    (1..=USER_BYTES_MAX).contains(&name.len()) && !name.contains(char::is_control)
}

/// How an initiator proves itself to a target, and perhaps the target to it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ChapConfig {
    /// What the initiator proves itself with.
    pub initiator: Credentials,
    /// What the target has to prove itself with; then it is not used unless it does.
    pub target: Option<Credentials>,
}

/// What CHAP challenges are made of, by a hash together with the number of the login.
///
/// Outside of a simulation it has to come from the operating system's source of randomness and to be
/// kept secret: who can guess the challenges can have answers to them ready.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Entropy([u8; 32]);

impl Entropy {
    /// These bytes.
    pub fn new(bytes: [u8; 32]) -> Entropy {
        Entropy(bytes)
    }

    /// Entropy of its own for user number `index` of this one.
    pub(crate) fn fork(&self, index: u64) -> Entropy {
        let hash = Sha256::new().chain_update(b"netswap fork").chain_update(self.0);
        Entropy(hash.chain_update(index.to_be_bytes()).finalize().into())
    }

    /// The bytes themselves, for a hash.
    pub(crate) fn expose(&self) -> &[u8; 32] {
        &self.0
    }
}

impl Drop for Entropy {
    fn drop(&mut self) {
        self.0.zeroize();
    }
}

impl fmt::Debug for Entropy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(secret)")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_secret_has_its_bounds_and_shows_nothing() {
        assert_eq!(Secret::new(b""), None);
        assert_eq!(Secret::new(&[7; 256]), None);
        let secret = Secret::new(&[7; 255]).unwrap();
        assert_eq!(secret.expose(), [7; 255]);
        let chap = ChapConfig {
            initiator: Credentials::new("user", b"hunter2").unwrap(),
            target: Credentials::new("unit", b"hunter3"),
        };
        assert!(chap.initiator.secret.is_short());
        assert!(!format!("{chap:?} {chap:#?}").contains("hunter"));
    }

    #[test]
    fn secrets_are_equal_only_with_the_same_length_and_bytes() {
        let secret = |bytes: &[u8]| Secret::new(bytes).unwrap();
        assert_eq!(secret(b"abc"), secret(b"abc"));
        assert_ne!(secret(b"abc"), secret(b"abd"));
        assert_ne!(secret(b"abc"), secret(b"abc\0"));
    }

    #[test]
    fn names_of_users_have_bounds_too() {
        assert!(Credentials::new("", b"x").is_none());
        assert!(Credentials::new("a\0b", b"x").is_none());
        assert!(Credentials::new(&"a".repeat(256), b"x").is_none());
    }
}
