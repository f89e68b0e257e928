//! Sense data (SPC-4 section 4.5) in its three forms: fixed, descriptor, and none at all.

use arrayvec::ArrayVec;

/// The longest sense data that is built here.
pub const SENSE_LEN_MAX: usize = 18;

/// Sense key, additional sense code and its qualifier.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Sense {
    /// Sense key.
    pub key: u8,
    /// Additional sense code.
    pub asc: u8,
    /// Additional sense code qualifier.
    pub ascq: u8,
}

/// How sense data is laid out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SenseForm {
    /// Response code 70h.
    #[default]
    Fixed,
    /// Response code 72h.
    Descriptor,
    /// A CHECK CONDITION without sense.
    Empty,
}

impl Sense {
    /// NO SENSE.
    pub const NONE: Sense = Sense::new(0, 0, 0);
    /// Power on, reset, or bus device reset occurred.
    pub const RESET: Sense = Sense::new(6, 0x29, 0);
    /// Invalid command operation code.
    pub const INVALID_OPCODE: Sense = Sense::new(5, 0x20, 0);
    /// Logical block address out of range.
    pub const OUT_OF_RANGE: Sense = Sense::new(5, 0x21, 0);
    /// Invalid field in CDB.
    pub const INVALID_FIELD: Sense = Sense::new(5, 0x24, 0);
    /// Logical unit not supported.
    pub const NO_SUCH_LUN: Sense = Sense::new(5, 0x25, 0);
    /// Write protected.
    pub const WRITE_PROTECTED: Sense = Sense::new(7, 0x27, 0);
    /// Space allocation failed, write protect.
    pub const NO_SPACE: Sense = Sense::new(7, 0x27, 7);
    /// Unrecovered read error.
    pub const READ_ERROR: Sense = Sense::new(3, 0x11, 0);
    /// Write error.
    pub const WRITE_ERROR: Sense = Sense::new(3, 0x0c, 0);
    /// Incorrect amount of data.
    pub const INCORRECT_AMOUNT: Sense = Sense::new(0xb, 0x26, 0);

    /// Protocol service CRC error: data was lost on the way (RFC 7143 section 11.4.7.2).
    pub const DATA_LOST: Sense = Sense::new(0xb, 0x47, 5);
    /// Miscompare during verify operation.
    pub const MISCOMPARE: Sense = Sense::new(0xe, 0x1d, 0);
    /// Parameter list length error.
    pub const LIST_LENGTH: Sense = Sense::new(5, 0x1a, 0);
    /// Invalid field in parameter list.
    pub const INVALID_LIST: Sense = Sense::new(5, 0x26, 0);
    /// Commands cleared by another initiator.
    pub const CLEARED: Sense = Sense::new(6, 0x2f, 0);
    /// Capacity data has changed.
    pub const CAPACITY_CHANGED: Sense = Sense::new(6, 0x2a, 9);

    /// The three numbers.
    pub const fn new(key: u8, asc: u8, ascq: u8) -> Sense {
        Sense { key, asc, ascq }
    }

    /// All in one: key, code, qualifier from the high byte down.
    pub fn code(self) -> u32 {
        (u32::from(self.key) << 16) | (u32::from(self.asc) << 8) | u32::from(self.ascq)
    }

    /// Reads sense data of any form; `None` if there is none, or it is of no known form. Fixed data
    /// may end early: what is missing is zero.
    pub fn parse(bytes: &[u8]) -> Option<Sense> {
        let at = |i: usize| bytes.get(i).copied().unwrap_or(0);
        match at(0) & 0x7f {
            0x70 | 0x71 if bytes.len() > 2 => {
                // The codes count only as far as ADDITIONAL SENSE LENGTH says they are there.
                let present = 8 + usize::from(at(7));
                let code = |i: usize| if i < present { at(i) } else { 0 };
                Some(Sense::new(at(2) & 0x0f, code(12), code(13)))
            }
            0x72 | 0x73 if bytes.len() >= 4 => Some(Sense::new(at(1) & 0x0f, at(2), at(3))),
            _ => None,
        }
    }

    /// Sense data as it goes on the wire.
    pub fn build(self, form: SenseForm) -> ArrayVec<u8, SENSE_LEN_MAX> {
        let mut out = ArrayVec::new();
        match form {
            SenseForm::Fixed => {
                let mut fixed = [0; SENSE_LEN_MAX];
                fixed[0] = 0x70;
                fixed[2] = self.key;
                fixed[7] = SENSE_LEN_MAX as u8 - 8;
                fixed[12] = self.asc;
                fixed[13] = self.ascq;
                out.extend(fixed);
            }
            SenseForm::Descriptor => {
                out.extend([0x72, self.key, self.asc, self.ascq, 0, 0, 0, 0]);
            }
            SenseForm::Empty => {}
        }
        out
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_form_is_read_back() {
        for form in [SenseForm::Fixed, SenseForm::Descriptor] {
            assert_eq!(Sense::parse(&Sense::OUT_OF_RANGE.build(form)), Some(Sense::OUT_OF_RANGE));
        }
        assert_eq!(Sense::parse(&Sense::OUT_OF_RANGE.build(SenseForm::Empty)), None);
        assert_eq!(Sense::OUT_OF_RANGE.code(), 0x05_21_00);
    }

    #[test]
    fn sense_that_ends_early_has_zeros_and_foreign_forms_are_none() {
        assert_eq!(Sense::parse(&[0x70, 0, 6]), Some(Sense::new(6, 0, 0)));
        assert_eq!(Sense::parse(&[0xf0, 0, 6, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0x29]).unwrap().asc, 0x29);
        assert_eq!(Sense::parse(&[0x70]), None);
        assert_eq!(Sense::parse(&[0x7f, 0, 0, 0]), None);
    }
}
