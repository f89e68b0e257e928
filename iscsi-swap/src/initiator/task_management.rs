//! Task management (RFC 7143 sections 11.5 and 11.6): what is done about a command that is not answered.
//!
//! | answer | what follows |
//! |---|---|
//! | ABORT TASK: complete, or no such task | the command is issued again |
//! | ABORT TASK: anything else | LUN RESET |
//! | LUN RESET: complete | every command that was sent is issued again |
//! | LUN RESET: anything else; no answer; a connection that is silent | a new session |
//!
//! Once a function is complete the task is over: the target carries nothing of it out any more, and a write may be
//! repeated. "No such task" says so too, for the answer to a task comes before that to its abortion on the
//! same connection: a task that is neither there nor answered was never taken. If its CmdSN was not taken either,
//! the target waits for it, and so does every later command: only a new session helps.

use netswap_net::Action;
use netswap_reserve::Time;

use super::task::TaskState;
use super::{IscsiBackend, Link};
use crate::pdu::{TAG_NONE, TaskManagementRequest, lun_bytes};
use crate::tx::TxPdu;

/// Times that one command is aborted, before the connection is dropped instead. Picked by eye.
pub(super) const ABORTS_MAX: u8 = 2;

mod answer {
    pub(super) const COMPLETE: u8 = 0;
    pub(super) const NO_SUCH_TASK: u8 = 1;
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Function {
    /// Of the task `index`, if it still has this tag.
    AbortTask {
        index: u16,
        tag: u32,
    },
    LunReset,
}

impl Function {
    fn code(self) -> u8 {
        match self {
            Function::AbortTask { .. } => 1,
            Function::LunReset => 5,
        }
    }
}

/// The function that is asked for; one at a time.
#[derive(Clone, Copy, Debug)]
pub(super) struct Tmf {
    function: Function,
    /// Its own tag, once it is sent.
    itt: Option<u32>,
    pub(super) due: Time,
}

impl IscsiBackend {
    fn ask_for(&mut self, now: Time, function: Function) {
        tracing::debug!(server = %self.label, ?function, "task management");
        let due = now + self.config.request_timeout;
        self.tmf = Some(Tmf { function, itt: None, due });
        self.arm(due);
    }

    /// Aborts the next command that is overdue, if none is being aborted.
    pub(super) fn abort_overdue(&mut self, now: Time) {
        if self.tmf.is_some() || self.link != Link::Ready {
            return;
        }
        let overdue = |t: &super::Task| t.state == TaskState::Sent && t.due <= now;
        if let Some(index) = (1..self.tasks.len()).find(|i| overdue(&self.tasks[*i])) {
            let tag = self.tasks[index].tag;
            self.ask_for(now, Function::AbortTask { index: index as u16, tag });
        }
    }

    pub(super) fn send_tmf(&mut self) -> bool {
        let Some(tmf) = self.tmf.filter(|tmf| tmf.itt.is_none()) else { return false };
        let itt = self.make_tag(self.tasks.len());
        self.tmf = Some(Tmf { itt: Some(itt), ..tmf });
        let (referenced, ref_cmd_sn) = match tmf.function {
            Function::AbortTask { index, tag } => (tag, self.tasks[usize::from(index)].cmd_sn),
            Function::LunReset => (TAG_NONE, 0),
        };
        self.stats.unit_resets += u64::from(tmf.function == Function::LunReset);
        let request = TaskManagementRequest {
            immediate: true,
            function: tmf.function.code(),
            lun: lun_bytes(self.config.lun),
            itt,
            referenced,
            cmd_sn: self.window.next(),
            exp_stat_sn: self.ack(),
            ref_cmd_sn,
        };
        self.tx.push(TxPdu::new(request.build(), super::TxData::None, 0));
        true
    }

    pub(super) fn is_tmf(&self, itt: u32) -> bool {
        self.tmf.is_some_and(|tmf| tmf.itt == Some(itt))
    }

    /// The function was answered.
    pub(super) fn take_task_management(&mut self, now: Time, response: u8) {
        let Some(tmf) = self.tmf.take() else { return };
        tracing::debug!(server = %self.label, function = ?tmf.function, response, "task management");
        match (tmf.function, response) {
            (Function::AbortTask { index, tag }, answer::COMPLETE | answer::NO_SUCH_TASK) => {
                let index = usize::from(index);
                let task = &self.tasks[index];
                if task.state == TaskState::Sent && task.tag == tag {
                    if !self.window.is_taken(task.cmd_sn) || task.shown > 0 {
                        return self.leave(now, Action::Abort);
                    }
                    self.issue_again(index);
                }
                self.abort_overdue(now);
            }
            (Function::AbortTask { .. }, _) => self.ask_for(now, Function::LunReset),
            (Function::LunReset, answer::COMPLETE) => {
                let sent = |t: &super::Task| t.state == TaskState::Sent;
                let hole = |t: &super::Task| t.shown > 0 || !self.window.is_taken(t.cmd_sn);
                if self.tasks.iter().any(|t| sent(t) && hole(t)) {
                    return self.leave(now, Action::Abort);
                }
                for index in 1..self.tasks.len() {
                    if self.tasks[index].state == TaskState::Sent {
                        self.issue_again(index);
                    }
                }
            }
            (Function::LunReset, _) => {
                self.stats.timeouts += 1;
                self.leave(now, Action::Abort);
            }
        }
    }

    /// The target has given up the task `index`: nothing of it is carried out any more.
    fn issue_again(&mut self, index: usize) {
        self.tasks[index].timeouts += 1;
        self.take_apart(index, |this, row| {
            this.stats.aborted += 1;
            let task = &mut this.tasks[row];
            task.sent_over = 0;
            task.step = super::Step::Command;
            this.enqueue(row);
        });
    }
}
