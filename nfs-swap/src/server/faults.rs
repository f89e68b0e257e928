//! What a server does wrong on purpose, and how often it did.
//!
//! Late and double replies, JUKEBOX, and short READs and WRITEs are within the protocol: a client must
//! come through them unharmed, as is a new verifier. Garbage, and a WRITE less stable than asked, are not: a client must survive it with a typed error at worst.
//! No fault here damages data in a reply that is otherwise valid, or loses what was promised.

use netswap_reserve::Span;
use rand_core::Rng;
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::rpc::LAST_FRAGMENT;

/// How often which fault is made, in parts per million of the calls it can be made at.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerFaults {
    /// The reply is held back; replies of later calls overtake it.
    pub late_ppm: u32,
    /// For how long.
    pub late_by: Span,
    /// The reply is sent a second time, `late_by` after the first.
    pub twice_ppm: u32,
    /// The reply is damaged in one of the ways of [`FaultCounts`].
    pub garbage_ppm: u32,
    /// The call is not executed, and answered by NFS3ERR_JUKEBOX.
    pub jukebox_ppm: u32,
    /// A WRITE takes only some of its bytes.
    pub short_write_ppm: u32,
    /// A READ gives only some of the bytes.
    pub short_read_ppm: u32,
    /// Before a WRITE or COMMIT is executed, all that is uncommitted is lost and the verifier is another
    /// one; connections stay. So does a server that resets its verifier after an I/O error of its disk.
    pub forget_ppm: u32,
    /// A WRITE is answered as less stable than it was asked to be, and is so. A breach of the protocol.
    pub weak_ppm: u32,
    /// A WRITE is put aside without an answer, and carried out `held_for` later, whatever was written
    /// meanwhile; if there is room ([`NfsServerConfig::held`](super::NfsServerConfig)).
    pub held_ppm: u32,
    /// For how long.
    pub held_for: Span,
}

macro_rules! named_faults {
    ($($name:literal => $field:ident,)*) => {
        /// Names of the faults, as a command line spells them.
        pub const FAULT_NAMES: &[&str] = &[$($name),*];

        impl ServerFaults {
            /// Makes the fault `name` happen `ppm` times in a million.
            ///
            /// ```
            /// let mut faults = netswap_nfs::ServerFaults::default();
            /// faults.set("jukebox", 1000).unwrap();
            /// assert_eq!(faults.jukebox_ppm, 1000);
            /// assert!(faults.set("jukebocks", 1).unwrap_err().to_string().contains("known: late, twice"));
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
    "jukebox" => jukebox_ppm,
    "short-write" => short_write_ppm,
    "short-read" => short_read_ppm,
    "forget" => forget_ppm,
    "weak" => weak_ppm,
    "held" => held_ppm,
}

/// A fault that the server cannot make.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown fault {name:?}; known: {}", FAULT_NAMES.join(", "))]
pub struct UnknownFault {
    /// Its name.
    pub name: String,
}

/// The faults made so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FaultCounts {
    /// Replies held back.
    pub late: u64,
    /// Replies sent twice.
    pub twice: u64,
    /// Replies cut off, with a record mark that fits.
    pub truncated: u64,
    /// Replies with a length inside that lies.
    pub lying_length: u64,
    /// Replies with an xid nobody waits for.
    pub wrong_xid: u64,
    /// Replies with a record mark that lies.
    pub wrong_mark: u64,
    /// Replies with a status that does not exist.
    pub junk_status: u64,
    /// NFS3ERR_JUKEBOX.
    pub jukebox: u64,
    /// WRITEs of fewer bytes.
    pub short_writes: u64,
    /// READs of fewer bytes.
    pub short_reads: u64,
    /// Times that what was uncommitted was lost, and the verifier changed.
    pub forgotten: u64,
    /// WRITEs less stable than asked.
    pub weak: u64,
    /// WRITEs put aside.
    pub held: u64,
    /// Those of them that were carried out.
    pub held_done: u64,
}

impl FaultCounts {
    /// Each count with its name.
    pub fn named(&self) -> [(&'static str, u64); 14] {
        [
            ("late", self.late),
            ("twice", self.twice),
            ("truncated", self.truncated),
            ("lying length", self.lying_length),
            ("wrong xid", self.wrong_xid),
            ("wrong mark", self.wrong_mark),
            ("junk status", self.junk_status),
            ("jukebox", self.jukebox),
            ("short write", self.short_writes),
            ("short read", self.short_reads),
            ("forgotten", self.forgotten),
            ("weak", self.weak),
            ("held", self.held),
            ("held, carried out", self.held_done),
        ]
    }

    /// All damaged replies.
    pub fn garbage(&self) -> u64 {
        self.truncated + self.lying_length + self.wrong_xid + self.wrong_mark + self.junk_status
    }
}

/// True `ppm` times in a million. Draws nothing if it cannot be.
pub(super) fn happens(rng: &mut Xoshiro256PlusPlus, ppm: u32) -> bool {
    ppm > 0 && rng.next_u64() % 1_000_000 < u64::from(ppm)
}

/// A number from 1 to `max - 1`, or 1.
pub(super) fn fewer(rng: &mut Xoshiro256PlusPlus, max: u32) -> u32 {
    1 + (rng.next_u64() % u64::from(max.saturating_sub(1).max(1))) as u32
}

/// Damages the reply in `record`, whose first `len` bytes are its mark and message; gives its new
/// length.
pub(super) fn damage(
    rng: &mut Xoshiro256PlusPlus,
    counts: &mut FaultCounts,
    record: &mut [u8],
    len: usize,
) -> usize {
    let mut put = |at: usize, word: u32| record[at..at + 4].copy_from_slice(&word.to_be_bytes());
    match rng.next_u64() % 5 {
        0 => {
            counts.truncated += 1;
            let cut = (rng.next_u64() % (len - 4) as u64) as usize;
            put(0, LAST_FRAGMENT | cut as u32);
            4 + cut
        }
        1 => {
            counts.lying_length += 1;
            // The length of the verifier in the reply's header.
            put(4 + 16, [0xffff_fff0, 400, 8][(rng.next_u64() % 3) as usize]);
            len
        }
        2 => {
            counts.wrong_xid += 1;
            record[4] ^= 0x80;
            len
        }
        3 => {
            counts.wrong_mark += 1;
            let body = (len - 4) as u32;
            let lies =
                [u32::MAX, 0x7fff_ffff, LAST_FRAGMENT | (body + 4), LAST_FRAGMENT | (body - 4)];
            put(0, lies[(rng.next_u64() % 4) as usize]);
            len
        }
        _ => {
            counts.junk_status += 1;
            // accept_stat, or the status behind it.
            let at = if len >= 32 && rng.next_u64().is_multiple_of(2) { 4 + 24 } else { 4 + 20 };
            put(at, 0xdead_beef);
            len
        }
    }
}
