//! Text Requests in the full feature phase: SendTargets (RFC 7143 section 13.3 and appendix C).
//!
//! The text goes through the buffers of the login, which are free by then. A request is left unread until
//! the response before it is out, so that what is being sent does not change.

use netswap_swap::Disk;

use super::IscsiTarget;
use super::conn::Conn;
use super::receive::{Breach, Dest, Effect, numbered};
use super::send::TxData;
use crate::login::LOGIN_SEGMENT_MAX;
use crate::pdu::{TAG_NONE, TextRequest, TextResponse};
use crate::tx::TxPdu;

/// The TTT of a list that goes on: there is one at a time on a connection.
const GOES_ON: u32 = 1;

/// What a request does and where its text goes; `None` while the last response is on its way.
pub(super) fn check(conn: &mut Conn, len: usize) -> Result<Option<(Effect, Dest)>, Breach> {
    let is_login = |data: &TxData| matches!(data, TxData::Login);
    let owed = conn.text_reply.is_some() || conn.login_reply.is_some();
    if owed || conn.tx.any(is_login) {
        return Ok(None);
    }
    let request = TextRequest::parse(&conn.rx.bhs)?;
    // A question that does not fit one PDU is none that is known here.
    if request.more || len > LOGIN_SEGMENT_MAX || conn.login.room(len).is_none() {
        return Err(Breach::DataSegmentLength);
    }
    let effect = Effect::Text { fresh: request.ttt == TAG_NONE, itt: request.itt };
    let (effect, _) = numbered(conn, request.immediate, request.cmd_sn, effect)?;
    let dest = if matches!(effect, Effect::Text { .. }) { Dest::Text } else { Dest::Sink };
    Ok(Some((effect, dest)))
}

impl<D: Disk> IscsiTarget<D> {
    /// A request whose text has arrived.
    pub(super) fn take_text(&mut self, index: usize, fresh: bool, itt: u32) -> Result<(), Breach> {
        let conn = &mut self.conns[index];
        let portals = self.config.portals.iter().map(|portal| &**portal);
        let more = conn.login.answer_text(fresh, &self.config.name, portals);
        let more = more.ok_or(Breach::Text)?;
        conn.text_reply = Some(TextResponse {
            last: !more,
            more,
            itt,
            ttt: if more { GOES_ON } else { TAG_NONE },
            sns: Default::default(),
            data_len: conn.login.chunk().len() as u32,
        });
        Ok(())
    }
}

/// Sends the response that is due.
pub(super) fn send(conn: &mut Conn) -> bool {
    let Some(mut reply) = conn.text_reply.take() else { return false };
    reply.sns = conn.status_sns();
    let len = reply.data_len;
    let data = if len > 0 { TxData::Login } else { TxData::None };
    conn.tx.push(TxPdu::new(reply.build(), data, len));
    true
}
