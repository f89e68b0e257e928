//! What the client and the lister share about whole messages: heads of calls, and where the bulk of a
//! reply begins.

use crate::proto::FATTR_BYTES;
use crate::rpc::{AUTH_BYTES_MAX, LAST_FRAGMENT, MARK_BYTES};
use crate::xdr::{Encoder, Full, padding};

/// Bytes of head buffer for any call without bulk: record mark 4, call header 24, AUTH_SYS at most
/// 8 + 4 + 4 + 256 + 12, verifier 8; a path of 4 + 1024, or a handle of 4 + 64, a name of 4 + 256 and a
/// `sattr3` of at most 36.
pub(crate) const CONTROL_HEAD_BYTES: usize = 320 + 68 + 4 + 1024 + 64;
/// Longest reply without data: a reply header with its verifier, and the most that any result of ours
/// takes (CREATE: a handle, three times attributes, and what stands around them).
pub(crate) const REPLY_HEAD_MAX: usize = 1024;
/// The part of a reply that every READ or READDIR has, successful or failed: header without a
/// verifier 24, status 4, attributes_follow 4.
pub(crate) const REPLY_PREFIX: usize = 32;

/// Encodes a record mark and what `encode` writes into a head buffer; `bulk` bytes follow it. Gives
/// the length of the head.
///
/// # Panics
/// If it does not fit: head buffers are as long as the longest head.
pub(crate) fn encode_message(
    head: &mut [u8],
    bulk: usize,
    encode: impl FnOnce(&mut Encoder<'_>) -> Result<(), Full>,
) -> usize {
    let (mark, body) = head.split_at_mut(MARK_BYTES);
    let mut out = Encoder::new(body);
    encode(&mut out).expect("a head buffer holds the longest head");
    let len = out.len();
    mark.copy_from_slice(&(LAST_FRAGMENT | (len + bulk) as u32).to_be_bytes());
    MARK_BYTES + len
}

/// How many bytes of a reply are needed to know where its bulk begins, which is `fixed` bytes behind the
/// attributes: more than `head` has, or `None` if `head` is enough. `usize::MAX`: the whole record, as
/// no bulk will come.
pub(crate) fn head_needs(head: &[u8], fixed: usize) -> Option<usize> {
    let word = |at: usize| {
        let bytes = head.get(at..at.checked_add(4)?)?;
        Some(u32::from_be_bytes(bytes.try_into().ok()?))
    };
    let need = |len: usize| (head.len() < len).then_some(len);
    let Some(verifier_len) = word(16) else { return Some(REPLY_PREFIX) };
    if word(8) != Some(0) || verifier_len > AUTH_BYTES_MAX {
        return Some(usize::MAX);
    }
    let at = 20 + verifier_len as usize + padding(verifier_len as usize);
    // accept_stat, status, attributes_follow
    if let Some(len) = need(at + 12) {
        return Some(len);
    }
    if word(at) != Some(0) || word(at + 4) != Some(0) {
        return Some(usize::MAX);
    }
    let attrs = if word(at + 8) == Some(0) { 0 } else { FATTR_BYTES };
    need(at + 12 + attrs + fixed)
}
