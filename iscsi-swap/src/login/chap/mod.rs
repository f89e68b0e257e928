//! CHAP (RFC 1994) in the keys of an iSCSI login (RFC 7143 section 12.1.3), both sides of it.
//!
//! ```text
//!   initiator                                  target
//!   AuthMethod=CHAP                     -->
//!                                       <--    AuthMethod=CHAP
//!   CHAP_A=5,7                          -->
//!                                       <--    CHAP_A  CHAP_I  CHAP_C
//!   CHAP_N  CHAP_R  [CHAP_I  CHAP_C]    -->
//!                                       <--    [CHAP_N  CHAP_R]
//! ```
//!
//! A response is a hash of the identifier, the secret and the challenge. Algorithm 5 (MD5) has to be
//! there; 7 is SHA-256. MD5 is offered first, and so taken by nearly every target: tgt knows a 7 that is
//! SHA-1, from before the number was given away. What guards the secret is its length, in both.
//!
//! # Invariants
//! - Whether a response is right is decided in constant time.
//! - A challenge is made of entropy that was handed in, by a hash: who sees many cannot tell the next.
//! - No side answers its own challenge, nor takes its own answer for the other's (section 9.2.1).

mod initiator;
mod target;

pub(super) use initiator::ChapInitiator;
pub(super) use target::{ChapFault, ChapTarget};

use md5::Md5;
use sha2::{Digest, Sha256};

use crate::auth::{Entropy, Secret};

/// Longest challenge or response in bytes (section 12.1.3).
pub(super) const BINARY_MAX: usize = 1024;
/// Bytes of the longest response, and of a challenge that is made here.
const HASH_MAX: usize = 32;

/// The keys of the exchange.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ChapKey {
    Algorithm,
    Identifier,
    Challenge,
    Name,
    Response,
}

/// What a response is made with; the number is that of CHAP_A.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Algorithm {
    Md5 = 5,
    Sha256 = 7,
}

impl Algorithm {
    fn of(value: &str) -> Option<Algorithm> {
        match crate::text::number(value)? {
            5 => Some(Algorithm::Md5),
            7 => Some(Algorithm::Sha256),
            _ => None,
        }
    }

    /// The answer to a challenge (RFC 1994 section 4.1).
    fn respond(self, identifier: u8, secret: &Secret, challenge: &[u8]) -> Response {
        let mut response = Response { bytes: [0; HASH_MAX], len: 16 };
        match self {
            Algorithm::Md5 => {
                let hash = Md5::new().chain_update([identifier]).chain_update(secret.expose());
                response.bytes[..16].copy_from_slice(&hash.chain_update(challenge).finalize());
            }
            Algorithm::Sha256 => {
                let hash = Sha256::new().chain_update([identifier]).chain_update(secret.expose());
                response.bytes.copy_from_slice(&hash.chain_update(challenge).finalize());
                response.len = HASH_MAX;
            }
        }
        response
    }
}

#[derive(Clone, Copy, Debug)]
struct Response {
    bytes: [u8; HASH_MAX],
    len: usize,
}

impl Response {
    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A challenge or a response of the peer.
#[derive(Debug)]
struct Binary {
    bytes: [u8; BINARY_MAX],
    len: usize,
}

impl Binary {
    fn new() -> Binary {
        Binary { bytes: [0; BINARY_MAX], len: 0 }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }

    /// Takes a value as it stands in the text; whether it is one, of 1 to [`BINARY_MAX`] bytes.
    fn take(&mut self, value: &str) -> bool {
        self.len = decode(value, &mut self.bytes).unwrap_or(0);
        self.len > 0
    }
}

/// An identifier and a challenge.
#[derive(Clone, Copy, Debug)]
struct Challenge {
    identifier: u8,
    bytes: [u8; HASH_MAX],
    len: usize,
}

impl Challenge {
    /// The challenge number `count` from this entropy, as long as a response.
    fn make(entropy: &Entropy, count: u64, algorithm: Algorithm) -> Challenge {
        let hash = |part: u8| {
            let hash = Sha256::new().chain_update(b"netswap chap").chain_update(entropy.expose());
            hash.chain_update(count.to_be_bytes()).chain_update([part]).finalize()
        };
        let mut bytes = [0; HASH_MAX];
        bytes.copy_from_slice(&hash(0));
        let len = match algorithm {
            Algorithm::Md5 => 16,
            Algorithm::Sha256 => HASH_MAX,
        };
        Challenge { identifier: hash(1)[0], bytes, len }
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// Reads a large binary value (section 6.1): hexadecimal after `0x`, base64 after `0b`. `None` if it is
/// none, or does not fit.
fn decode(value: &str, out: &mut [u8]) -> Option<usize> {
    let (prefix, digits) = value.as_bytes().split_at_checked(2)?;
    match prefix {
        b"0x" | b"0X" => decode_hex(digits, out),
        b"0b" | b"0B" => decode_base64(digits, out),
        _ => None,
    }
}

fn decode_hex(digits: &[u8], out: &mut [u8]) -> Option<usize> {
    let digit = |byte: u8| char::from(byte).to_digit(16).map(|digit| digit as u8);
    // A number with an odd count of digits lacks a zero in front.
    let (first, rest) = digits.split_at(digits.len() % 2);
    let len = first.len() + rest.len() / 2;
    let out = out.get_mut(..len)?;
    if let [byte] = first {
        out[0] = digit(*byte)?;
    }
    for (place, pair) in out[first.len()..].iter_mut().zip(rest.chunks_exact(2)) {
        *place = (digit(pair[0])? << 4) | digit(pair[1])?;
    }
    Some(len)
}

/// RFC 4648 section 4, with padding.
fn decode_base64(digits: &[u8], out: &mut [u8]) -> Option<usize> {
    if !digits.len().is_multiple_of(4) {
        return None;
    }
    let pads = digits.iter().rev().take_while(|byte| **byte == b'=').count();
    if pads > 2 {
        return None;
    }
    let digits = &digits[..digits.len() - pads];
    let len = digits.len() * 3 / 4;
    let out = out.get_mut(..len)?;
    let (mut bits, mut count, mut at) = (0u32, 0, 0);
    for byte in digits {
        let digit = match byte {
            b'A'..=b'Z' => byte - b'A',
            b'a'..=b'z' => byte - b'a' + 26,
            b'0'..=b'9' => byte - b'0' + 52,
            b'+' => 62,
            b'/' => 63,
            _ => return None,
        };
        bits = (bits << 6) | u32::from(digit);
        count += 6;
        if count >= 8 {
            count -= 8;
            *out.get_mut(at)? = (bits >> count) as u8;
            at += 1;
            bits &= (1 << count) - 1;
        }
    }
    // Bits that are left over have to be zero, or there would be several texts for a value.
    (bits == 0 && at == len).then_some(len)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(value: &str) -> Option<Vec<u8>> {
        let mut out = [0; BINARY_MAX];
        decode(value, &mut out).map(|len| out[..len].to_vec())
    }

    #[test]
    fn binary_values_in_both_forms() {
        assert_eq!(read("0x0aFf"), Some(vec![0x0a, 0xff]));
        assert_eq!(read("0XaFf"), Some(vec![0x0a, 0xff]));
        for (text, bytes) in [
            ("0b", &b""[..]),
            ("0bZg==", b"f"),
            ("0BZm8=", b"fo"),
            ("0bZm9v", b"foo"),
            ("0bZm9vYmE=", b"fooba"),
            ("0b+/+/", &[0xfb, 0xff, 0xbf]),
        ] {
            assert_eq!(read(text).as_deref(), Some(bytes), "{text}");
        }
        for bad in
            ["", "0", "0x0g", "12", "0bZg", "0bZg=", "0bZh==", "0b====", "0bZ===", "0b*w==", "0ä"]
        {
            assert_eq!(read(bad), None, "{bad}");
        }
    }

    #[test]
    fn binary_values_of_1024_bytes_and_no_more() {
        for digits in ["00".repeat(1024), format!("0{}", "00".repeat(1023))] {
            assert_eq!(read(&format!("0x{digits}")).map(|v| v.len()), Some(1024));
            assert_eq!(read(&format!("0x00{digits}")), None);
        }
        assert_eq!(read(&format!("0b{}AA==", "AAAA".repeat(341))).map(|v| v.len()), Some(1024));
        assert_eq!(read(&format!("0b{}", "AAAA".repeat(342))), None);
    }

    #[test]
    fn responses_are_those_of_other_programs() {
        // printf '\x2asecretpass12\x01\x02\x03' | md5sum, sha256sum
        let secret = Secret::new(b"secretpass12").unwrap();
        let hex = |response: Response| -> String {
            response.bytes().iter().map(|byte| format!("{byte:02x}")).collect()
        };
        let respond = |algorithm: Algorithm| hex(algorithm.respond(0x2a, &secret, &[1, 2, 3]));
        assert_eq!(respond(Algorithm::Md5), "f5bb621477e12e08121bfbb409ef23fb");
        assert_eq!(
            respond(Algorithm::Sha256),
            "dd6275924ad8f1ce63969f1091bfed4f06daea401c8b437af5574d584d977f44"
        );
    }

    #[test]
    fn challenges_are_all_different_and_come_from_the_entropy() {
        let make = |entropy: u8, count| {
            Challenge::make(&Entropy::new([entropy; 32]), count, Algorithm::Sha256).bytes
        };
        assert_eq!(make(1, 1), make(1, 1));
        assert_ne!(make(1, 1), make(1, 2));
        assert_ne!(make(1, 1), make(2, 1));
    }
}
