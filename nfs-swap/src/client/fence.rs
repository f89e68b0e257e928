//! Late copies of NFS calls, and the proof that none is left (`netswap_swap::fence`).
//!
//! The same xid over a new connection from another port is a new call to a server. So a request says when it ends
//! whether a copy of it is *loose*: sent whole, without an answer.
//!
//! # When loose copies are dead
//! A server that restarted has forgotten what it had read. A restart is proven by a verifier that differs
//! from the one before, if the connection was lost in between: then every copy is dead that was sent over
//! the connection on which the old verifier was last seen, or over one before it. A verifier that
//! changes within a connection proves nothing: servers also change it when their disk has failed.
//! What was sent over connections in between may have reached the new server, and stays loose.
//!
//! After a reconnect with loose copies about, a COMMIT asks for the verifier: an area that takes no more
//! pages, as its quarantine is full, would otherwise never see one.

use netswap_reserve::Time;
use netswap_reserve::windows::{MapPageMut, Mapper};
use netswap_swap::BackendState;

use super::startup::Step;
use super::{CallState, NfsBackend, Verb};

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// The current call of `i` is not waited for any more, or a copy of it is. If it was wholly sent and
    /// has no answer, it is loose.
    pub(super) fn let_go(&mut self, i: usize) {
        let call = &mut self.calls[i];
        if call.sends > 0 && matches!(call.verb, Verb::Read | Verb::Write) {
            call.loose = call.loose.max(call.sent_over);
        }
    }

    /// The verifier has changed; the old one was last seen on connection `old_over`.
    pub(super) fn see_restart(&mut self, old_over: u32) {
        if old_over < self.connection && self.fence.prove(old_over) {
            tracing::info!(server = %self.config.label, "server restarted: no late copies");
        }
    }

    /// There is a connection again: asks whether it is to a server that restarted, if that matters.
    pub(super) fn look_for_restart(&mut self, now: Time) {
        let is_ready = matches!(self.state, BackendState::Ready { .. });
        let is_idle =
            self.step == Step::Idle && self.calls[self.control()].state == CallState::Free;
        if is_ready && is_idle && self.fence.is_awaited() {
            self.step = Step::Verify;
            self.begin_step(now);
        }
    }
}
