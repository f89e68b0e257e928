//! Faults that a target commits on purpose.

use netswap_reserve::Span;
use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::pdu::{BHS_LEN, Bhs, get32, put32, set_data_len};
use crate::scsi::{Sense, status};

/// How often a target misbehaves, in parts per million of its commands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetFaults {
    /// The answer is held back by `late_by`.
    pub late_ppm: u32,
    /// How long.
    pub late_by: Span,
    /// The answer is sent twice.
    pub twice_ppm: u32,
    /// The first PDU that answers is not of the protocol.
    pub garbage_ppm: u32,
    /// The command ends with BUSY.
    pub busy_ppm: u32,
    /// The command ends with TASK SET FULL.
    pub task_set_full_ppm: u32,
    /// The command ends with CHECK CONDITION, unit attention 06/29/00.
    pub check_condition_ppm: u32,
    /// The first PDU that answers has a wrong header digest, if there are any.
    pub header_digest_ppm: u32,
    /// The first PDU with data that answers has a wrong data digest, if there are any.
    pub data_digest_ppm: u32,
    /// All others; [`TargetFaults::set`] sets them by name.
    pub others: FaultRates,
}

macro_rules! faults {
    ($($(#[$doc:meta])* $variant:ident = $name:literal,)*) => {
        /// A fault that a target makes on purpose, at a command.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Fault {
            $($(#[$doc])* $variant,)*
        }

        /// Names of the faults, as a command line spells them.
        pub const FAULT_NAMES: &[&str] = &[$($name),*];

        impl Fault {
            /// Each fault, in the order of [`FAULT_NAMES`].
            pub const ALL: &'static [Fault] = &[$(Fault::$variant),*];
        }
    };
}

faults! {
    /// The answer is held back by `late_by`.
    Late = "late",
    /// The answer is sent twice.
    Twice = "twice",
    /// The first PDU that answers is not of the protocol, in one of the ways that [`FaultCounts`] tells.
    Garbage = "garbage",
    /// The command ends with BUSY.
    Busy = "busy",
    /// The command ends with TASK SET FULL.
    TaskSetFull = "task-set-full",
    /// The command ends with unit attention 06/29/00.
    CheckCondition = "check-condition",
    /// The first PDU that answers has a wrong header digest, if there are any.
    HeaderDigest = "header-digest",
    /// The first PDU with data that answers has a wrong data digest, if there are any.
    DataDigest = "data-digest",
    /// The command ends with 06/29/00 as descriptor sense.
    DescriptorSense = "descriptor-sense",
    /// The command ends with CHECK CONDITION, without sense.
    NoSense = "no-sense",
    /// The command ends with 06/29/00, whose length claims more than there is.
    LyingSense = "lying-sense",
    /// The command ends with 02/04/01, becoming ready.
    NotReady = "not-ready",
    /// The command ends with 0B/00/00.
    AbortedCommand = "aborted-command",
    /// The command ends with 03/11/00.
    MediumError = "medium-error",
    /// The command ends with 04/44/00.
    HardwareError = "hardware-error",
    /// The command ends with status TASK ABORTED.
    TaskAborted = "task-aborted",
    /// The command ends with status RESERVATION CONFLICT.
    ReservationConflict = "reservation-conflict",
    /// The command ends with iSCSI response 1, target failure.
    TargetFailure = "target-failure",
    /// The command is answered by a Reject, and not carried out.
    Reject = "reject",
    /// The command is neither carried out nor answered.
    Silent = "silent",
    /// The connection is reset when the command was carried out, before its answer.
    Cut = "cut",
    /// The connection is closed in the middle of the header that answers.
    CutInHeader = "cut-in-header",
    /// The residual of the answer is not what did not move.
    WrongResidual = "wrong-residual",
    /// A read gives half of its blocks, and says so by the residual.
    ShortRead = "short-read",
    /// Data-In comes in pieces of 512 bytes.
    SmallDataIn = "small-data-in",
    /// R2Ts ask for 512 bytes each.
    SmallR2t = "small-r2t",
    /// R2Ts are held back by `late_by`.
    LateR2t = "late-r2t",
    /// The command window does not move for `late_by`; then a NOP-In opens it.
    CloseWindow = "close-window",
    /// A NOP-In that wants an answer comes before the answer.
    Ping = "ping",
    /// Async Message 0 comes before the answer: a SCSI event, 06/2A/09.
    UnitEvent = "unit-event",
    /// Async Message 1 comes before the answer: a logout is wanted.
    LogoutRequest = "logout-request",
    /// Async Message 2 comes before the answer, and the connection is dropped.
    DropConnection = "drop-connection",
    /// Async Message 3 comes before the answer, and the session's connections are dropped.
    DropSession = "drop-session",
    /// Async Message 4 comes before the answer: a negotiation is wanted.
    Renegotiate = "renegotiate",
    /// The unit is reset as another initiator would: its tasks are gone, every session hears 06/29/00.
    ResetUnit = "reset-unit",
    /// Every session hears 06/2A/09, capacity changed, with its next command.
    CapacityChanged = "capacity-changed",
}

/// How often the faults happen that have no field of their own in [`TargetFaults`], in parts per million.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultRates([u32; Fault::ALL.len()]);

impl Default for FaultRates {
    fn default() -> FaultRates {
        FaultRates([0; Fault::ALL.len()])
    }
}

impl TargetFaults {
    /// Makes the fault `name` happen at `ppm` of a million commands.
    ///
    /// ```
    /// let mut faults = netswap_iscsi::TargetFaults::default();
    /// faults.set("busy", 1000).unwrap();
    /// assert_eq!(faults.busy_ppm, 1000);
    /// assert!(faults.set("bussy", 1).unwrap_err().to_string().contains("known: late, twice"));
    /// ```
    ///
    /// # Errors
    /// When there is no fault of this name.
    pub fn set(&mut self, name: &str, ppm: u32) -> Result<(), UnknownFault> {
        let known = FAULT_NAMES.iter().position(|known| *known == name);
        let index = known.ok_or_else(|| UnknownFault { name: name.into() })?;
        match Fault::ALL[index] {
            Fault::Late => self.late_ppm = ppm,
            Fault::Twice => self.twice_ppm = ppm,
            Fault::Garbage => self.garbage_ppm = ppm,
            Fault::Busy => self.busy_ppm = ppm,
            Fault::TaskSetFull => self.task_set_full_ppm = ppm,
            Fault::CheckCondition => self.check_condition_ppm = ppm,
            Fault::HeaderDigest => self.header_digest_ppm = ppm,
            Fault::DataDigest => self.data_digest_ppm = ppm,
            _ => self.others.0[index] = ppm,
        }
        Ok(())
    }
}

/// A fault that the target cannot make.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault {name:?}; known: {}", FAULT_NAMES.join(", "))]
pub struct UnknownFault {
    /// Its name.
    pub name: String,
}

/// Faults that happened, by kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct FaultCounts {
    /// Faults of [`FaultRates`], in the order of [`Fault::ALL`].
    others: [u64; Fault::ALL.len()],
    /// Answers held back.
    pub late: u64,
    /// Answers sent twice.
    pub twice: u64,
    /// Commands ended with BUSY.
    pub busy: u64,
    /// Commands ended with TASK SET FULL.
    pub task_set_full: u64,
    /// Commands ended with a unit attention that was no unit attention.
    pub check_condition: u64,
    /// PDUs with an opcode that does not exist.
    pub bad_opcode: u64,
    /// PDUs with a DataSegmentLength that is not theirs.
    pub lying_length: u64,
    /// PDUs with a task tag that is not theirs.
    pub wrong_tag: u64,
    /// PDUs with a wrong DataSN, R2TSN, offset or StatSN.
    pub wrong_sn: u64,
    /// PDUs that end in their header.
    pub truncated: u64,
    /// Random bytes in place of a PDU.
    pub junk: u64,
    /// Wrong header digests.
    pub header_digest: u64,
    /// Wrong data digests.
    pub data_digest: u64,
}

impl Default for FaultCounts {
    fn default() -> FaultCounts {
        FaultCounts {
            others: [0; Fault::ALL.len()],
            late: 0,
            twice: 0,
            busy: 0,
            task_set_full: 0,
            check_condition: 0,
            bad_opcode: 0,
            lying_length: 0,
            wrong_tag: 0,
            wrong_sn: 0,
            truncated: 0,
            junk: 0,
            header_digest: 0,
            data_digest: 0,
        }
    }
}

impl FaultCounts {
    /// Every counter by its fault's name; garbage by its kinds.
    pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        let others = FAULT_NAMES.iter().zip(self.others).map(|(name, n)| (*name, n));
        // Those that have counters of their own are in `each`.
        self.each().into_iter().chain(others.skip(Fault::DataDigest as usize + 1))
    }

    /// How often a fault was made, garbage in any of its ways.
    pub fn of(&self, fault: Fault) -> u64 {
        match fault {
            Fault::Late => self.late,
            Fault::Twice => self.twice,
            Fault::Garbage => self.garbage(),
            Fault::Busy => self.busy,
            Fault::TaskSetFull => self.task_set_full,
            Fault::CheckCondition => self.check_condition,
            Fault::HeaderDigest => self.header_digest,
            Fault::DataDigest => self.data_digest,
            _ => self.others[fault as usize],
        }
    }

    pub(super) fn count(&mut self, fault: Fault) {
        match fault {
            Fault::Late => self.late += 1,
            Fault::Twice => self.twice += 1,
            Fault::Busy => self.busy += 1,
            Fault::TaskSetFull => self.task_set_full += 1,
            Fault::CheckCondition => self.check_condition += 1,
            Fault::HeaderDigest => self.header_digest += 1,
            Fault::DataDigest => self.data_digest += 1,
            _ => self.others[fault as usize] += 1,
        }
    }

    /// All PDUs that were garbage.
    pub fn garbage(&self) -> u64 {
        self.bad_opcode
            + self.lying_length
            + self.wrong_tag
            + self.wrong_sn
            + self.truncated
            + self.junk
    }

    /// The counters by name.
    pub fn each(&self) -> [(&'static str, u64); 13] {
        [
            ("late", self.late),
            ("twice", self.twice),
            ("busy", self.busy),
            ("task_set_full", self.task_set_full),
            ("check_condition", self.check_condition),
            ("bad_opcode", self.bad_opcode),
            ("lying_length", self.lying_length),
            ("wrong_tag", self.wrong_tag),
            ("wrong_sn", self.wrong_sn),
            ("truncated", self.truncated),
            ("junk", self.junk),
            ("header_digest", self.header_digest),
            ("data_digest", self.data_digest),
        ]
    }
}

/// What was drawn for one command.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Drawn(u64);

impl Drawn {
    pub(super) fn add(&mut self, fault: Fault) {
        self.0 |= 1 << fault as u32;
    }

    pub(super) fn has(self, fault: Fault) -> bool {
        self.0 & (1 << fault as u32) != 0
    }

    /// Whether the fault is due; then it is not any more.
    pub(super) fn take(&mut self, fault: Fault) -> bool {
        let due = self.has(fault);
        self.0 &= !(1 << fault as u32);
        due
    }

    /// The first of these that is due; then none of them is any more.
    pub(super) fn take_one(&mut self, faults: &[Fault]) -> Option<Fault> {
        faults.iter().rev().fold(None, |found, f| if self.take(*f) { Some(*f) } else { found })
    }

    pub(super) fn is_empty(self) -> bool {
        self.0 == 0
    }
}

const _: () = assert!(Fault::ALL.len() <= 64, "a bit each");

/// How a command may end by a fault, in the order of precedence.
pub(super) const ENDS: &[Fault] = &[
    Fault::CheckCondition,
    Fault::DescriptorSense,
    Fault::NoSense,
    Fault::LyingSense,
    Fault::NotReady,
    Fault::AbortedCommand,
    Fault::MediumError,
    Fault::HardwareError,
    Fault::TaskAborted,
    Fault::ReservationConflict,
    Fault::TargetFailure,
];

/// Status and sense of a command that ends by a fault.
pub(super) fn ending(fault: Fault) -> (u8, Option<Sense>) {
    let check = |sense| (status::CHECK_CONDITION, Some(sense));
    match fault {
        Fault::NoSense => (status::CHECK_CONDITION, None),
        Fault::NotReady => check(Sense::new(2, 4, 1)),
        Fault::AbortedCommand => check(Sense::new(0xb, 0, 0)),
        Fault::MediumError => check(Sense::READ_ERROR),
        Fault::HardwareError => check(Sense::new(4, 0x44, 0)),
        Fault::TaskAborted => (status::TASK_ABORTED, None),
        Fault::ReservationConflict => (status::RESERVATION_CONFLICT, None),
        Fault::TargetFailure => (status::GOOD, None),
        _ => check(Sense::RESET),
    }
}

/// Draws for one command. Each fault takes a draw of its own, so that changing one rate does not
/// move the others; those that came later only where they can happen, so that older runs stay what they were.
pub(super) fn draw(rng: &mut Xoshiro256PlusPlus, faults: &TargetFaults) -> Drawn {
    let mut hit = |ppm: u32| rng.next_u32() % 1_000_000 < ppm;
    let mut drawn = Drawn::default();
    for (fault, ppm) in [
        (Fault::Late, faults.late_ppm),
        (Fault::Twice, faults.twice_ppm),
        (Fault::Garbage, faults.garbage_ppm),
        (Fault::Busy, faults.busy_ppm),
        (Fault::TaskSetFull, faults.task_set_full_ppm),
        (Fault::CheckCondition, faults.check_condition_ppm),
    ] {
        if hit(ppm) {
            drawn.add(fault);
        }
    }
    let digests = [
        (Fault::HeaderDigest, faults.header_digest_ppm),
        (Fault::DataDigest, faults.data_digest_ppm),
    ];
    let others = Fault::ALL.iter().copied().zip(faults.others.0);
    for (fault, ppm) in digests.into_iter().chain(others).filter(|(_, ppm)| *ppm > 0) {
        if hit(ppm) {
            drawn.add(fault);
        }
    }
    drawn
}

/// Ruins a header. Returns how many of its bytes are sent, and whether its data follows.
pub(super) fn ruin(
    rng: &mut Xoshiro256PlusPlus,
    counts: &mut FaultCounts,
    bhs: &mut Bhs,
) -> (usize, bool) {
    let value = rng.next_u32();
    match rng.next_u32() % 6 {
        0 => {
            counts.bad_opcode += 1;
            // No target opcode has these low bits.
            bhs[0] = 0x2a | (value as u8 & 0xc0);
            (BHS_LEN, true)
        }
        1 => {
            counts.lying_length += 1;
            set_data_len(bhs, value >> 8);
            (BHS_LEN, true)
        }
        2 => {
            counts.wrong_tag += 1;
            let tag = get32(bhs, 16) ^ (value | 1);
            put32(bhs, 16, tag);
            (BHS_LEN, true)
        }
        3 => {
            counts.wrong_sn += 1;
            for at in [24, 36, 40] {
                let sn = get32(bhs, at).wrapping_add(1 + value % 1000);
                put32(bhs, at, sn);
            }
            (BHS_LEN, true)
        }
        4 => {
            counts.truncated += 1;
            (1 + value as usize % (BHS_LEN - 1), false)
        }
        _ => {
            counts.junk += 1;
            rng.fill_bytes(bhs);
            (BHS_LEN, false)
        }
    }
}
