//! What the end of a command means for its request.

use netswap_reserve::{Span, Time};
use netswap_swap::{StoreError, Stored};

use super::receive::{PROBE_LEN, Violation};
use super::task::{Kind, PROBE, ProbeStep, Step, Task, TaskState};
use super::unit::Durability;
use super::{IscsiBackend, Link};
use crate::scsi::{Sense, status};

/// Times in a row that a condition which should pass may be met before the request fails.
const RETRIES_MAX: u8 = 16;

/// How long a command may stay unanswered when its unit was reset: longer than an answer that is under way. Picked by
/// eye.
const RESET_GRACE: Span = Span::from_secs(1);

/// How a target ended a command.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ending {
    pub(super) response: u8,
    pub(super) status: u8,
    pub(super) overflow: bool,
    pub(super) underflow: bool,
    pub(super) residual: u32,
    pub(super) sense: Option<Sense>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    /// Issue it again at once, from its first step.
    Again,
    /// Issue it again later; `counted` towards [`RETRIES_MAX`].
    Later {
        counted: bool,
    },
    Fail(StoreError),
}

impl IscsiBackend {
    /// Command `index` has ended.
    pub(super) fn conclude(
        &mut self,
        now: Time,
        index: usize,
        ending: Ending,
    ) -> Result<(), Violation> {
        if index == PROBE && self.link == Link::LoggingOut {
            // The target wanted a logout since it was asked: whatever it says, the next session asks again.
            self.tasks[PROBE].state = TaskState::Free;
            return Ok(());
        }
        let verdict = judge(&self.tasks[index], &ending)?;
        self.drop_bursts(index);
        if !self.tasks[index].is_single() && self.tasks[index].shown > 0 {
            self.tasks[index].ending = Some(ending);
            return Ok(());
        }
        match (ending.status, ending.sense) {
            (status::BUSY | status::TASK_SET_FULL, _) => self.stats.busy += 1,
            (status::CHECK_CONDITION, Some(Sense { key: 6, .. })) => {
                self.stats.unit_attentions += 1;
            }
            _ => {}
        }
        self.release(index);
        self.answered += 1;
        // Answered: nothing of it is carried out any more.
        self.each_member(index, |this, row| {
            let task = &mut this.tasks[row];
            (task.garbage, task.timeouts, task.sent_over) = (0, 0, 0);
        });
        if let Some(sense) = ending.sense.filter(|sense| sense.key == 6) {
            self.see_attention(now, sense, Some(index));
        }
        let task = &mut self.tasks[index];
        let verdict = match verdict {
            Verdict::Again | Verdict::Later { counted: true } => {
                task.retries += 1;
                let fail = Verdict::Fail(refused(ending.sense));
                if task.retries > RETRIES_MAX { fail } else { verdict }
            }
            verdict => verdict,
        };
        match verdict {
            Verdict::Done => self.step_done(now, index),
            Verdict::Again => self.take_apart(index, |this, row| {
                this.tasks[row].step = Step::Command;
                this.enqueue(row);
            }),
            Verdict::Later { .. } => {
                let wait = self.next_backoff(self.tasks[index].backoff);
                let task = &mut self.tasks[index];
                task.backoff = wait;
                self.arm(now + wait);
                self.take_apart(index, |this, row| {
                    this.tasks[row].retry_at = now + wait;
                    this.enqueue(row);
                });
            }
            Verdict::Fail(error) => match self.tasks[index].kind {
                Kind::Probe(step) => self.probe_failed(now, step, error),
                Kind::Discard => self.discard_failed(index, error),
                _ if self.tasks[index].is_single() => self.end(index, Err(error)),
                // Whose fault it is, is found out when each is asked for alone.
                _ => self.take_apart(index, |this, row| {
                    this.tasks[row].alone = true;
                    this.tasks[row].step = Step::Command;
                    this.enqueue(row);
                }),
            },
        }
        Ok(())
    }

    fn step_done(&mut self, now: Time, index: usize) {
        let sync = self.unit.durability(self.config.write_policy) == Durability::Sync;
        let task = &mut self.tasks[index];
        match task.kind {
            Kind::Write if sync && task.step == Step::Command => {
                task.retries = 0;
                task.backoff = Span::ZERO;
                self.enqueue_sync(index);
            }
            Kind::Write if std::mem::take(&mut task.stale) => {
                self.take_apart(index, |this, row| {
                    this.tasks[row].step = Step::Command;
                    this.enqueue(row);
                });
            }
            // Not a replay: see the module's head.
            Kind::Read | Kind::Write => {
                self.take_apart(index, |this, row| this.end(row, Ok(Stored { replayed: false })));
            }
            Kind::Discard => self.discard_done(index),
            Kind::Probe(step) => {
                debug_assert_eq!(self.link, Link::Probe);
                let mut data = [0; PROBE_LEN];
                data.copy_from_slice(self.rx.small_data(PROBE_LEN));
                self.probe_done(now, step, data);
            }
        }
    }
}

impl IscsiBackend {
    /// The unit tells something: by the end of command `from`, or by itself.
    pub(super) fn see_attention(&mut self, now: Time, sense: Sense, from: Option<usize>) {
        match (sense.asc, sense.ascq) {
            // It was reset: its cache may be gone, and the commands that it had, without an answer.
            (0x29, _) => {
                let soon = now + RESET_GRACE;
                for index in (1..self.tasks.len()).filter(|index| Some(*index) != from) {
                    let task = &mut self.tasks[index];
                    match task.state {
                        TaskState::Sent => {
                            task.stale = task.step == Step::Sync;
                            if self.config.task_management {
                                task.due = task.due.min(soon);
                                self.arm(soon);
                            }
                        }
                        TaskState::Queued if task.step == Step::Sync => task.stale = true,
                        _ => {}
                    }
                }
            }
            // Its capacity, its INQUIRY data or the list of units has changed: perhaps it is another.
            (0x2a, 0x09) | (0x3f, 0x03 | 0x0e) => self.look_again(now),
            _ => {}
        }
    }

    /// Asks the unit again who it is, before anything else is asked of it.
    fn look_again(&mut self, now: Time) {
        match self.link {
            Link::Ready => {
                tracing::info!(server = %self.label, "the unit says that it has changed");
                self.enter(now, Link::Probe);
                self.probe(ProbeStep::Ready);
            }
            Link::Probe => self.probe_again = true,
            _ => {}
        }
    }
}

fn refused(sense: Option<Sense>) -> StoreError {
    StoreError::Refused { code: sense.map_or(0, Sense::code) }
}

/// What an ending means, by itself.
fn judge(task: &Task, ending: &Ending) -> Result<Verdict, Violation> {
    // Section 11.4.3: anything but 0 is a failure of the target, without a status.
    if ending.response != 0 {
        return Ok(Verdict::Later { counted: true });
    }
    match ending.status {
        status::GOOD => judge_good(task, ending),
        status::CHECK_CONDITION => judge_sense(task, ending),
        status::BUSY | status::TASK_SET_FULL => Ok(Verdict::Later { counted: false }),
        status::TASK_ABORTED => Ok(Verdict::Later { counted: true }),
        other => Ok(Verdict::Fail(StoreError::Refused { code: u32::from(other) << 24 })),
    }
}

fn judge_good(task: &Task, ending: &Ending) -> Result<Verdict, Violation> {
    // Of an UNMAP, which stores nothing, tgt says that it took none of its list.
    if let Kind::Probe(_) | Kind::Discard = task.kind {
        return Ok(Verdict::Done);
    }
    if ending.overflow {
        // The unit's blocks are not what it said they are.
        return Ok(Verdict::Fail(StoreError::Excess { by: ending.residual }));
    }
    let missing = if ending.underflow { ending.residual } else { 0 };
    if task.reads() {
        let short = task.len - task.received;
        if short > missing {
            return Err(Violation::MissingData);
        }
        if missing > 0 {
            let got = task.received.min(task.len.saturating_sub(missing));
            return Ok(Verdict::Fail(StoreError::ShortRead { got, wanted: task.len }));
        }
    } else if task.writes() && missing > 0 {
        let took = task.len.saturating_sub(missing);
        return Ok(Verdict::Fail(StoreError::ShortWrite { took, wanted: task.len }));
    }
    Ok(Verdict::Done)
}

/// By sense key (SPC-4 section 4.5.6).
fn judge_sense(task: &Task, ending: &Ending) -> Result<Verdict, Violation> {
    // Section 11.4.7 wants it there: what the target meant is not known, so it is asked again.
    let Some(sense) = ending.sense else { return Ok(Verdict::Later { counted: true }) };
    Ok(match sense.key {
        // NO SENSE, RECOVERED ERROR: it was carried out.
        0 | 1 => return judge_good(task, ending),
        // NOT READY
        2 => Verdict::Later { counted: true },
        // MEDIUM ERROR, HARDWARE ERROR
        3 | 4 => Verdict::Fail(StoreError::Io),
        // UNIT ATTENTION: tells something, and was not carried out.
        6 => Verdict::Again,
        7 if sense == Sense::NO_SPACE => Verdict::Fail(StoreError::NoSpace),
        7 if sense.asc == Sense::WRITE_PROTECTED.asc => Verdict::Fail(StoreError::ReadOnly),
        // ABORTED COMMAND
        0xb => Verdict::Later { counted: true },
        _ => Verdict::Fail(refused(Some(sense))),
    })
}
