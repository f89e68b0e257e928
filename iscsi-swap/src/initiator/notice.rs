//! What a target says by itself: asynchronous messages, and rejects.

use std::fmt;

use netswap_net::Action;
use netswap_reserve::Time;

use super::receive::Violation;
use super::{IscsiBackend, Link};
use crate::pdu::{AsyncMessage, BHS_LEN, Reject, TAG_NONE, itt_of, lun_of};
use crate::scsi::Sense;

/// What a target announces (RFC 7143 section 11.9.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AsyncEvent {
    /// A unit has something to tell: sense data follows.
    Scsi,
    /// The initiator is to log out.
    Logout,
    /// The target drops this connection.
    DropConnection,
    /// The target drops every connection of the session.
    DropSession,
    /// The initiator is to negotiate anew.
    Negotiate,
    /// Something of the vendor's.
    Vendor,
    /// None that the RFC knows.
    Unknown(u8),
}

impl From<u8> for AsyncEvent {
    fn from(event: u8) -> AsyncEvent {
        match event {
            0 => AsyncEvent::Scsi,
            1 => AsyncEvent::Logout,
            2 => AsyncEvent::DropConnection,
            3 => AsyncEvent::DropSession,
            4 => AsyncEvent::Negotiate,
            255 => AsyncEvent::Vendor,
            other => AsyncEvent::Unknown(other),
        }
    }
}

/// Why a target rejects a PDU (RFC 7143 section 11.17.1).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RejectReason {
    /// Its data arrived damaged.
    DataDigest,
    /// A SNACK that cannot be answered.
    Snack,
    /// It breaks the protocol.
    Protocol,
    /// A command that is not supported.
    NotSupported,
    /// Too many immediate commands.
    TooManyImmediate,
    /// The task is in progress.
    TaskInProgress,
    /// An acknowledgement of data that was not sent.
    DataAck,
    /// A field has a value that it may not have.
    Field,
    /// The target has no memory for it.
    OutOfResources,
    /// The target waits for a logout.
    WaitingForLogout,
    /// None that the RFC knows.
    Unknown(u8),
}

impl From<u8> for RejectReason {
    fn from(reason: u8) -> RejectReason {
        match reason {
            0x02 => RejectReason::DataDigest,
            0x03 => RejectReason::Snack,
            0x04 => RejectReason::Protocol,
            0x05 => RejectReason::NotSupported,
            0x06 => RejectReason::TooManyImmediate,
            0x07 => RejectReason::TaskInProgress,
            0x08 => RejectReason::DataAck,
            0x09 => RejectReason::Field,
            0x0a => RejectReason::OutOfResources,
            0x0c => RejectReason::WaitingForLogout,
            other => RejectReason::Unknown(other),
        }
    }
}

impl RejectReason {
    /// For `StoreError::Garbage`.
    pub(super) fn what(self) -> &'static str {
        match self {
            RejectReason::DataDigest => "PDU rejected: its data arrived damaged",
            RejectReason::Snack => "PDU rejected: SNACK",
            RejectReason::Protocol => "PDU rejected: it breaks the protocol",
            RejectReason::NotSupported => "PDU rejected: command not supported",
            RejectReason::TooManyImmediate => "PDU rejected: too many immediate commands",
            RejectReason::TaskInProgress => "PDU rejected: task in progress",
            RejectReason::DataAck => "PDU rejected: acknowledgement of data",
            RejectReason::Field => "PDU rejected: value of a field",
            RejectReason::OutOfResources => "PDU rejected: out of resources",
            RejectReason::WaitingForLogout => "PDU rejected: the target waits for a logout",
            RejectReason::Unknown(_) => "PDU rejected for a reason that the RFC does not know",
        }
    }
}

impl fmt::Display for RejectReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            RejectReason::Unknown(reason) => write!(f, "{}: {reason:#x}", self.what()),
            _ => f.write_str(self.what()),
        }
    }
}

impl IscsiBackend {
    /// The target announces something.
    pub(super) fn take_async(
        &mut self,
        now: Time,
        message: &AsyncMessage,
    ) -> Result<(), Violation> {
        let event = AsyncEvent::from(message.event);
        tracing::debug!(server = %self.label, ?event, "asynchronous message");
        let counter = match event {
            AsyncEvent::Scsi => 0,
            AsyncEvent::Logout => 1,
            AsyncEvent::DropConnection => 2,
            AsyncEvent::DropSession => 3,
            AsyncEvent::Negotiate => 4,
            AsyncEvent::Vendor | AsyncEvent::Unknown(_) => 5,
        };
        self.stats.async_messages[counter] += 1;
        match event {
            AsyncEvent::Scsi => {
                let sense = self.sense(message.data_len)?;
                if let Some(sense) = sense
                    && lun_of(&message.lun) == Some(self.config.lun)
                {
                    self.see_attention(now, sense, None);
                }
            }
            // A negotiation: a new login is one too.
            AsyncEvent::Logout | AsyncEvent::Negotiate => self.start_logout(now),
            // Another connection is none of this session. Parameter2 is Time2Wait; Time2Retain, Parameter3, is for
            // tasks that move to another connection, which at error recovery level 0 they never do.
            AsyncEvent::DropConnection if message.parameter1 != 0 => {}
            AsyncEvent::DropConnection | AsyncEvent::DropSession => {
                self.wait_before_connect(now, message.parameter2);
                self.leave(now, Action::Abort);
            }
            // What cannot be understood asks for nothing.
            AsyncEvent::Vendor | AsyncEvent::Unknown(_) => {}
        }
        Ok(())
    }

    /// The sense data in a data segment of `len` bytes: its length in two bytes, then it.
    pub(super) fn sense(&self, len: u32) -> Result<Option<Sense>, Violation> {
        match self.rx.data(len) {
            [] | [_] => Ok(None),
            [high, low, rest @ ..] => {
                let len = usize::from(u16::from_be_bytes([*high, *low]));
                Ok(Sense::parse(rest.get(..len).ok_or(Violation::Sense)?))
            }
        }
    }

    /// A PDU of ours was rejected. Only what needs no answer may be without harm; what else was is lost, and at error
    /// recovery level 0 that takes a new session (section 7.3).
    pub(super) fn take_reject(&mut self, now: Time, message: &Reject) -> Result<(), Violation> {
        let reason = RejectReason::from(message.reason);
        tracing::debug!(server = %self.label, %reason, "rejected");
        self.stats.rejects += 1;
        let tag = self.rx.data(message.data_len).first_chunk::<BHS_LEN>().map(itt_of);
        match reason {
            RejectReason::TooManyImmediate if tag.is_some() && tag == self.ping_tag => {
                self.ping_tag = None;
            }
            RejectReason::TooManyImmediate if tag == Some(TAG_NONE) => {}
            RejectReason::WaitingForLogout if self.link != Link::LoggingOut => {
                self.start_logout(now)
            }
            RejectReason::DataDigest => return Err(Violation::DigestRejected),
            _ => return Err(Violation::Rejected(reason)),
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_number_is_an_event_and_a_reason_and_the_known_ones_differ() {
        let unknown =
            (0..=255u8).filter(|n| matches!(AsyncEvent::from(*n), AsyncEvent::Unknown(_)));
        assert_eq!(unknown.count(), 256 - 6);
        let known: std::collections::BTreeSet<_> =
            (0..=255u8).map(RejectReason::from).map(RejectReason::what).collect();
        assert_eq!(known.len(), 11);
        assert!(RejectReason::from(0xee).to_string().ends_with("0xee"));
    }
}
