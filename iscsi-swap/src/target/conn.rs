//! The state of one connection, and of the commands on it.

use std::collections::VecDeque;

use arrayvec::ArrayVec;
use netswap_net::Action;
use netswap_reserve::Time;

use super::faults::Drawn;
use super::management::{Attentions, WAITING_MAX, Waiting};
use super::receive::TargetRx;
use super::send::TxData;
use super::{CTL_MAX, TargetConfig};
use crate::login::{Params, TargetLogin};
use crate::pdu::{Bhs, LoginResponse, Sns, TextResponse};
use crate::scsi::{Cdb, Sense, SenseForm, status};
use crate::tx::TxRing;
use crate::window::before;

/// R2Ts that a command may have open, whatever was negotiated.
pub(super) const R2TS_MAX: usize = 8;

/// ```text
///   Closed --> Login --> Full --> Closing --> Closed
///     ^          +---------+--------^ |
///     +-- Dead <-+---------+----------+
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Closed,
    Login,
    Full,
    /// Closes once all is sent.
    Closing,
    /// To be reset.
    Dead,
}

/// An answer that needs no buffer.
#[derive(Clone, Copy, Debug)]
pub(super) enum Ctl {
    Reject {
        reason: u8,
        bhs: Bhs,
    },
    /// `closes`: the connection ends behind it.
    TaskManagement {
        itt: u32,
        response: u8,
        closes: bool,
    },
    Logout {
        itt: u32,
        response: u8,
    },
    Ping,
    /// A NOP-In that wants no answer: the command window has moved.
    Window,
    /// Async Message 0 of a unit, with its sense.
    UnitEvent {
        lun: [u8; 8],
        sense: Sense,
    },
    Async {
        event: u8,
        parameters: [u16; 3],
    },
}

/// ```text
///   Free --> Collecting --> Waiting --> Ready --> Sending --> Free
///              data          late       queued    in the ring
///                 \-----------+--> Aborting ----------------> Free
///                                   until data that was asked for has come
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SlotState {
    Free,
    Collecting,
    Aborting,
    Waiting { due: Time },
    Ready,
    Sending,
}

#[derive(Clone, Copy, Debug)]
pub(super) struct OpenR2t {
    pub(super) ttt: u32,
    pub(super) at: u32,
    pub(super) end: u32,
    pub(super) data_sn: u32,
}

/// How a command ended.
#[derive(Clone, Copy, Debug)]
pub(super) struct Outcome {
    pub(super) status: u8,
    pub(super) sense: Option<Sense>,
    /// Bytes of data to send, or that were taken.
    pub(super) moved: u32,
    /// Bytes that the command itself asks for; with the expected length it gives the residual.
    pub(super) wanted: u32,
}

/// A command on a connection.
#[derive(Debug)]
pub(super) struct TaskSlot {
    pub(super) state: SlotState,
    pub(super) nop: bool,
    pub(super) immediate: bool,
    pub(super) itt: u32,
    pub(super) lun_bytes: [u8; 8],
    /// Index of the unit.
    pub(super) unit: Option<usize>,
    pub(super) cdb: Cdb,
    pub(super) read: bool,
    pub(super) write: bool,
    pub(super) expected: u32,
    /// Bytes of write data to collect.
    pub(super) wanted: u32,
    /// Whether write data is kept; else it is thrown away, and the command ends with `outcome`.
    pub(super) keep: bool,
    /// A PDU of its data is missing: it ends with an error when the rest has come.
    pub(super) garbled: bool,
    /// Unsolicited data is still due; its offset and DataSN.
    pub(super) unsolicited: Option<(u32, u32)>,
    /// Bytes that have arrived or were asked for.
    pub(super) asked_to: u32,
    pub(super) r2t_sn: u32,
    pub(super) open: ArrayVec<OpenR2t, R2TS_MAX>,
    pub(super) outcome: Outcome,
    pub(super) drawn: Drawn,
    /// Form of its sense, where it is not the target's.
    pub(super) form: Option<SenseForm>,
    /// iSCSI response code.
    pub(super) response: u8,
    /// Most bytes of a Data-In or an R2T.
    pub(super) piece_max: u32,
    /// When its R2Ts may be sent.
    pub(super) r2t_due: Option<Time>,
    /// Bytes of read data in the ring or sent.
    pub(super) sent: u32,
    pub(super) data_sn: u32,
    /// PDUs in the ring that show its buffer.
    pub(super) shown: u32,
}

impl TaskSlot {
    fn new() -> TaskSlot {
        TaskSlot {
            state: SlotState::Free,
            nop: false,
            immediate: false,
            itt: 0,
            lun_bytes: [0; 8],
            unit: None,
            cdb: Cdb::TestUnitReady,
            read: false,
            write: false,
            expected: 0,
            wanted: 0,
            keep: false,
            garbled: false,
            unsolicited: None,
            asked_to: 0,
            r2t_sn: 0,
            open: ArrayVec::new(),
            outcome: Outcome { status: 0, sense: None, moved: 0, wanted: 0 },
            drawn: Drawn::default(),
            form: None,
            response: 0,
            piece_max: u32::MAX,
            r2t_due: None,
            sent: 0,
            data_sn: 0,
            shown: 0,
        }
    }

    pub(super) fn reset(&mut self) {
        *self = TaskSlot::new();
    }

    /// A PDU of its data was lost: what comes is thrown away (RFC 7143 sections 7.8 and 7.9).
    pub(super) fn garble(&mut self) {
        self.garbled = true;
        self.keep = false;
        let (status, sense) = (status::CHECK_CONDITION, Some(Sense::DATA_LOST));
        self.outcome = Outcome { status, sense, moved: 0, wanted: self.expected };
    }

    pub(super) fn is_unanswered(&self) -> bool {
        !matches!(self.state, SlotState::Free | SlotState::Sending)
    }
}

#[derive(Debug)]
pub(super) struct Conn {
    pub(super) phase: Phase,
    pub(super) action: Option<Action>,
    pub(super) login: TargetLogin,
    /// The response that is due; its text is in `login`.
    pub(super) login_reply: Option<LoginResponse>,
    /// The response to a Text Request that is due; its text is in `login` as well.
    pub(super) text_reply: Option<TextResponse>,
    extra_rounds: u8,
    pub(super) params: Params,
    pub(super) isid: [u8; 6],
    pub(super) exp_cmd_sn: u32,
    pub(super) max_cmd_sn: u32,
    /// Commands that may be unanswered now.
    granted: u32,
    login_window: u32,
    depth: u32,
    pub(super) stat_sn: u32,
    pub(super) rx: TargetRx,
    pub(super) tx: TxRing<TxData>,
    pub(super) ctl: VecDeque<Ctl>,
    pub(super) slots: Box<[TaskSlot]>,
    /// Slots whose answer is to be sent, in order.
    pub(super) ready: VecDeque<u16>,
    /// Slots for each R2T that may be sent.
    pub(super) r2ts: VecDeque<u16>,
    pub(super) next_ttt: u32,
    /// Until when the command window stays where it is.
    pub(super) shut_until: Option<Time>,
    /// For each unit, what this session has yet to hear.
    pub(super) attention: Vec<Attentions>,
    /// Task management that waits for data.
    pub(super) waiting: ArrayVec<Waiting, WAITING_MAX>,
    /// Another connection has done something to this one.
    pub(super) stirred: bool,
    pub(super) pongs: u64,
}

impl Conn {
    pub(super) fn new(config: &TargetConfig, index: usize) -> Conn {
        let slots = config.slots();
        Conn {
            phase: Phase::Closed,
            action: None,
            login: TargetLogin::new(config.login(index)),
            login_reply: None,
            text_reply: None,
            extra_rounds: config.keys.extra_rounds,
            params: Params::default(),
            isid: [0; 6],
            exp_cmd_sn: 0,
            max_cmd_sn: 0,
            granted: config.login_window,
            login_window: config.login_window,
            depth: config.queue_depth,
            stat_sn: 0,
            rx: TargetRx::new(),
            tx: TxRing::new(),
            ctl: VecDeque::with_capacity(CTL_MAX),
            slots: (0..slots).map(|_| TaskSlot::new()).collect(),
            ready: VecDeque::with_capacity(slots),
            r2ts: VecDeque::with_capacity(slots * R2TS_MAX),
            next_ttt: 0,
            shut_until: None,
            attention: Vec::new(),
            waiting: ArrayVec::new(),
            stirred: false,
            pongs: 0,
        }
    }

    /// Forgets everything about the connection that was.
    pub(super) fn reset(&mut self) {
        self.phase = Phase::Closed;
        self.action = None;
        self.login.reset(self.extra_rounds);
        self.login_reply = None;
        self.text_reply = None;
        self.granted = self.login_window;
        self.stat_sn = 0;
        self.rx.reset();
        self.tx.clear();
        self.ctl.clear();
        self.slots.iter_mut().for_each(TaskSlot::reset);
        self.ready.clear();
        self.r2ts.clear();
        self.waiting.clear();
        self.shut_until = None;
    }

    /// Resets the stream, if there is one.
    pub(super) fn abort(&mut self) {
        if self.phase != Phase::Closed {
            self.reset();
            self.phase = Phase::Dead;
            self.action = Some(Action::Abort);
            self.stirred = true;
        }
    }

    pub(super) fn push_script(&mut self, ctl: Ctl) {
        if self.phase == Phase::Full && self.ctl.len() < CTL_MAX {
            self.ctl.push_back(ctl);
        }
    }

    /// The window at login.
    pub(super) fn open_window(&mut self, cmd_sn: u32) {
        self.exp_cmd_sn = cmd_sn;
        self.max_cmd_sn = cmd_sn.wrapping_add(self.login_window - 1);
    }

    /// One command less unanswered: the window may grow.
    pub(super) fn answered(&mut self) {
        self.granted = (self.granted + 1).min(self.depth);
    }

    /// The numbers of the next PDU. MaxCmdSN only ever moves up.
    pub(super) fn sns(&mut self) -> Sns {
        let unanswered = self.slots.iter().filter(|s| s.is_unanswered() && !s.immediate).count();
        let room = self.granted.saturating_sub(unanswered as u32);
        let max = self.exp_cmd_sn.wrapping_add(room).wrapping_sub(1);
        if self.shut_until.is_none() && before(self.max_cmd_sn, max) {
            self.max_cmd_sn = max;
        }
        Sns { stat_sn: self.stat_sn, exp_cmd_sn: self.exp_cmd_sn, max_cmd_sn: self.max_cmd_sn }
    }

    /// As [`Conn::sns`], for a PDU that bears status.
    pub(super) fn status_sns(&mut self) -> Sns {
        let sns = self.sns();
        self.stat_sn = self.stat_sn.wrapping_add(1);
        sns
    }

    /// Frees a slot whose answer is out.
    pub(super) fn release(&mut self, slot: usize) {
        let task = &mut self.slots[slot];
        if task.state == SlotState::Sending && task.shown == 0 {
            task.state = SlotState::Free;
        }
    }

    pub(super) fn next_due(&self) -> Option<Time> {
        let due = |s: &TaskSlot| match s.state {
            SlotState::Waiting { due } => Some(due),
            SlotState::Collecting => s.r2t_due,
            _ => None,
        };
        let late = self.slots.iter().filter_map(due).min();
        late.into_iter().chain(self.patience_ends()).chain(self.shut_until).min()
    }
}
