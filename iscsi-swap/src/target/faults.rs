//! Faults that a target commits on purpose.

use netswap_reserve::Span;
use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::pdu::{BHS_LEN, Bhs, get32, put32, set_data_len};

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
}

macro_rules! named_faults {
    ($($name:literal => $field:ident,)*) => {
        /// Names of the faults, as a command line spells them.
        pub const FAULT_NAMES: &[&str] = &[$($name),*];

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
                match name {
                    $($name => self.$field = ppm,)*
                    _ => return Err(UnknownFault { name: name.into() }),
                }
                Ok(())
            }
        }
    };
}

named_faults! {
    "late" => late_ppm,
    "twice" => twice_ppm,
    "garbage" => garbage_ppm,
    "busy" => busy_ppm,
    "task-set-full" => task_set_full_ppm,
    "check-condition" => check_condition_ppm,
}

/// A fault that the target cannot make.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault {name:?}; known: {}", FAULT_NAMES.join(", "))]
pub struct UnknownFault {
    /// Its name.
    pub name: String,
}

/// Faults that happened, by kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
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

impl FaultCounts {
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
pub(super) struct Drawn {
    pub(super) late: bool,
    pub(super) twice: bool,
    pub(super) garbage: bool,
    pub(super) bad_header_digest: bool,
    pub(super) bad_data_digest: bool,
    pub(super) end: Option<FaultEnd>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FaultEnd {
    Busy,
    TaskSetFull,
    CheckCondition,
}

/// Draws for one command. Each fault takes a draw of its own, so that changing one rate does not
/// move the others.
pub(super) fn draw(rng: &mut Xoshiro256PlusPlus, faults: &TargetFaults) -> Drawn {
    let mut hit = |ppm: u32| rng.next_u32() % 1_000_000 < ppm;
    let (late, twice) = (hit(faults.late_ppm), hit(faults.twice_ppm));
    let garbage = hit(faults.garbage_ppm);
    let busy = hit(faults.busy_ppm);
    let full = hit(faults.task_set_full_ppm);
    let check = hit(faults.check_condition_ppm);
    let end = if busy {
        Some(FaultEnd::Busy)
    } else if full {
        Some(FaultEnd::TaskSetFull)
    } else {
        check.then_some(FaultEnd::CheckCondition)
    };
    // Drawn only where they can happen, so that runs without digests are what they were.
    let mut hit_if = |ppm: u32| ppm > 0 && hit(ppm);
    let bad_header_digest = hit_if(faults.header_digest_ppm);
    let bad_data_digest = hit_if(faults.data_digest_ppm);
    Drawn { late, twice, garbage, bad_header_digest, bad_data_digest, end }
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
