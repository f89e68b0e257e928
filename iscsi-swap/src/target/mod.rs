//! The embedded target: logical units over [`Disk`], behind one portal, sans-IO.
//!
//! One session a connection, error recovery level 0. Write data is assembled in frames set aside at
//! construction, read data is put there before it goes out; nothing else on the data path has memory,
//! so nothing grows.
//!
//! # Bounds
//! - A connection has `queue_depth` commands unanswered at most: the command window admits no more.
//! - Each of them, and of those whose answers are on their way out, has a buffer of its own. A
//!   command for which none is free yet is left unread, and so is what comes behind it, until an
//!   answer has gone out. Sending never waits for receiving, so this ends.
//! - Answers that need no buffer wait in a queue of 16; while it is full nothing is read.
//!
//! # Faults
//! What must survive: every write that was answered with GOOD. What may be lost: anything unanswered.
//! Faults are drawn from the target's own generator, a command at a time, and counted when they
//! happen.

mod command;
mod conn;
mod faults;
mod management;
mod misbehave;
mod receive;
mod send;
mod session;
mod text;
mod unit;

use arrayvec::ArrayVec;
use netswap_reserve::{AllocError, FrameRun, PAGE_SIZE, PagePool, Time};
use netswap_swap::Disk;
use rand_core::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::auth::{ChapConfig, Entropy};
use crate::initiator::Digest;
use crate::login::{Key, LOGIN_SEGMENT_MAX, Params, TargetLoginConfig};
pub use crate::scsi::SenseForm;
use crate::scsi::data::UnitInfo;
use conn::{Conn, Ctl};
use faults::Drawn;
pub use faults::{FAULT_NAMES, Fault, FaultCounts, FaultRates, TargetFaults, UnknownFault};
pub use management::function;
use unit::Unit;
pub use unit::UnitOptions;

/// Answers without data that may wait.
pub(crate) const CTL_MAX: usize = 16;

/// Buffers beyond the command window: for immediate commands, and for answers on their way out.
pub(crate) const SPARE_SLOTS: usize = 4;

/// Most bytes of an UNMAP or WRITE SAME. Picked by eye: writing them keeps everybody else waiting for some ten
/// milliseconds.
const UNMAP_BYTES_MAX: u32 = 16 << 20;

/// What a target offers at login.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginKeys {
    /// Refuse unsolicited Data-Out.
    pub initial_r2t: bool,
    /// Take data with commands.
    pub immediate_data: bool,
    /// FirstBurstLength in bytes.
    pub first_burst: u32,
    /// MaxBurstLength in bytes.
    pub max_burst: u32,
    /// MaxRecvDataSegmentLength in bytes.
    pub recv_segment: u32,
    /// MaxOutstandingR2T, at most 8.
    pub outstanding_r2t: u32,
    /// DefaultTime2Wait in seconds.
    pub time2wait: u32,
    /// Login rounds beyond those needed.
    pub extra_rounds: u8,
    /// Login text goes out in pieces of this many bytes.
    pub text_chunk: usize,
    /// Digest of headers.
    pub header_digest: Digest,
    /// Digest of data.
    pub data_digest: Digest,
}

impl Default for LoginKeys {
    fn default() -> LoginKeys {
        LoginKeys {
            initial_r2t: false,
            immediate_data: true,
            first_burst: 65536,
            max_burst: 262_144,
            recv_segment: 65536,
            outstanding_r2t: 4,
            time2wait: 0,
            extra_rounds: 0,
            text_chunk: LOGIN_SEGMENT_MAX,
            header_digest: Digest::None,
            data_digest: Digest::None,
        }
    }
}

impl LoginKeys {
    fn offer(&self) -> Params {
        Params::default()
            .with(Key::InitialR2T, self.initial_r2t.into())
            .with(Key::ImmediateData, self.immediate_data.into())
            .with(Key::FirstBurstLength, self.first_burst)
            .with(Key::MaxBurstLength, self.max_burst)
            .with(Key::MaxOutstandingR2T, self.outstanding_r2t)
            .with(Key::DefaultTime2Wait, self.time2wait)
            .declaring(self.recv_segment)
    }
}

/// How a target is set up.
#[derive(Clone, Debug)]
pub struct TargetConfig {
    /// Its iSCSI name.
    pub name: String,
    /// What it offers at login.
    pub keys: LoginKeys,
    /// Most commands unanswered on a connection.
    pub queue_depth: u32,
    /// The command window at login; it grows by one with each answer, up to `queue_depth`.
    pub login_window: u32,
    /// Most bytes of one command, a multiple of the page size.
    pub transfer_max: u32,
    /// Connections at once. A session that is reinstated has two for a moment.
    pub max_connections: usize,
    /// How sense data is laid out.
    pub sense: SenseForm,
    /// Whether GOOD status comes with the last Data-In, without a SCSI Response.
    pub status_with_data: bool,
    /// Faults.
    pub faults: TargetFaults,
    /// Seed of the generator that faults are drawn from.
    pub seed: u64,
    /// What initiators have to prove themselves with, and what the target proves itself with if it is
    /// asked.
    pub chap: Option<ChapConfig>,
    /// What challenges to initiators are made of; only looked at with `chap`.
    pub entropy: Entropy,
    /// What SendTargets answers as TargetAddress: `host[:port],tag`, each at most 255 bytes.
    pub portals: Vec<String>,
}

impl TargetConfig {
    /// A target named `name` with every other value at its default.
    pub fn new(name: &str) -> TargetConfig {
        TargetConfig {
            name: name.into(),
            keys: LoginKeys::default(),
            queue_depth: 32,
            login_window: 2,
            transfer_max: 65536,
            max_connections: 2,
            sense: SenseForm::Fixed,
            status_with_data: true,
            faults: TargetFaults::default(),
            seed: 0,
            chap: None,
            entropy: Entropy::default(),
            portals: Vec::new(),
        }
    }

    /// Each connection has challenges of its own.
    fn login(&self, index: usize) -> TargetLoginConfig {
        TargetLoginConfig {
            offer: self.keys.offer(),
            header_digest: self.keys.header_digest,
            data_digest: self.keys.data_digest,
            chap: self.chap.clone(),
            entropy: self.entropy.fork(index as u64),
            extra_rounds: self.keys.extra_rounds,
            text_chunk: self.keys.text_chunk,
        }
    }

    fn slots(&self) -> usize {
        self.queue_depth as usize + SPARE_SLOTS
    }

    /// Frames that the target sets aside: a buffer for each command of each connection.
    pub fn frames(&self) -> u32 {
        let each = self.transfer_max as usize / PAGE_SIZE;
        u32::try_from(self.max_connections * self.slots() * each).unwrap_or(u32::MAX)
    }
}

/// Where a target sends those that log in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Moved {
    /// As in TargetAddress (RFC 7143 section 13.8): `host[:port][,tag]`, at most 255 bytes.
    pub address: String,
    /// For good, rather than for now.
    pub permanent: bool,
}

/// Why a target could not be set up.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// Its pool is too small.
    #[error("no memory for the target's buffers")]
    Memory(#[from] AllocError),
    /// A block size other than 512 and 4096.
    #[error("block size {0} is neither 512 nor 4096")]
    BlockSize(u32),
    /// The LUN is taken, or above 16383.
    #[error("LUN {0} cannot be added")]
    Lun(u16),
}

/// What a target has done.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TargetStats {
    /// Sessions that were begun.
    pub logins: u64,
    /// SCSI commands taken.
    pub commands: u64,
    /// Those of them that read blocks.
    pub reads: u64,
    /// Those of them that write blocks from data of their own.
    pub writes: u64,
    /// Task management functions.
    pub task_management: u64,
}

/// A target with its logical units.
///
/// ```
/// use netswap_iscsi::{IscsiTarget, TargetConfig};
/// use netswap_reserve::{PagePool, PoolConfig};
/// use netswap_swap::MemDisk;
///
/// let pool = PagePool::new(PoolConfig::new(2048));
/// let mut target = IscsiTarget::new(TargetConfig::new("iqn.2026-01.test:disk"), pool).unwrap();
/// target.add_lun(0, MemDisk::new(1 << 20), 512, false).unwrap();
/// // One end of a byte stream for each connection that the portal accepts.
/// let session = target.connection(0);
/// # let _ = session;
/// ```
#[derive(Debug)]
pub struct IscsiTarget<D: Disk> {
    config: TargetConfig,
    luns: Vec<Unit<D>>,
    conns: Box<[Conn]>,
    run: FrameRun,
    rng: Xoshiro256PlusPlus,
    counts: FaultCounts,
    next_tsih: u16,
    /// Where logins are sent instead.
    moved: Option<Moved>,
    /// Faults at commands to come, by the number of the command.
    script: Vec<(u64, Fault)>,
    /// New sessions find the units reset.
    restarted: bool,
    protocol_errors: u64,
    digest_errors: u64,
    stats: TargetStats,
}

impl<D: Disk> IscsiTarget<D> {
    /// A target without logical units; its buffers are set aside from `pool`.
    ///
    /// # Errors
    /// If the pool has not got [`TargetConfig::frames`] contiguous frames to spare.
    ///
    /// # Panics
    /// If a value of `config` is outside its range.
    pub fn new(config: TargetConfig, pool: PagePool) -> Result<IscsiTarget<D>, TargetError> {
        let page = PAGE_SIZE as u32;
        assert!(config.transfer_max >= page && config.transfer_max.is_multiple_of(page));
        assert!((1..=1024).contains(&config.queue_depth), "queue_depth is 1 to 1024");
        assert!((1..=config.queue_depth).contains(&config.login_window));
        assert!(config.keys.outstanding_r2t <= conn::R2TS_MAX as u32, "at most 8 R2Ts");
        let run = pool.set_aside(config.frames())?;
        let conns = (0..config.max_connections).map(|index| Conn::new(&config, index)).collect();
        Ok(IscsiTarget {
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            luns: Vec::new(),
            conns,
            run,
            counts: FaultCounts::default(),
            next_tsih: 1,
            moved: None,
            script: Vec::new(),
            restarted: false,
            protocol_errors: 0,
            digest_errors: 0,
            stats: TargetStats::default(),
            config,
        })
    }

    /// Adds a logical unit over `disk` with blocks of 512 or 4096 bytes.
    ///
    /// # Errors
    /// If the LUN is taken or not a LUN, or the block size is another.
    pub fn add_lun(
        &mut self,
        lun: u16,
        disk: D,
        block_size: u32,
        read_only: bool,
    ) -> Result<(), TargetError> {
        self.add_unit(lun, disk, UnitOptions { block_size, read_only, ..UnitOptions::default() })
    }

    /// Adds a logical unit over `disk`.
    ///
    /// # Errors
    /// As [`IscsiTarget::add_lun`].
    pub fn add_unit(&mut self, lun: u16, disk: D, options: UnitOptions) -> Result<(), TargetError> {
        let UnitOptions { block_size, read_only, thin, serial } = options;
        if !matches!(block_size, 512 | 4096) {
            return Err(TargetError::BlockSize(block_size));
        }
        if lun >= 1 << 14 || self.luns.iter().any(|l| l.lun == lun) {
            return Err(TargetError::Lun(lun));
        }
        let serial = serial.unwrap_or_else(|| {
            let mut serial = *b"netswap-00000000";
            for (place, digit) in serial[8..].iter_mut().zip(format!("{lun:08}").bytes()) {
                *place = digit;
            }
            serial
        });
        let transfer_max = self.config.transfer_max / block_size;
        let info = UnitInfo {
            block_size,
            blocks: disk.len() / u64::from(block_size),
            read_only,
            thin,
            transfer_max,
            unmap_max: UNMAP_BYTES_MAX / block_size,
            // Both what is compared and what is written come in one buffer.
            compare_max: u8::try_from(transfer_max / 2).unwrap_or(u8::MAX),
            serial,
        };
        self.luns.push(Unit { lun, info, disk });
        self.luns.sort_by_key(|l| l.lun);
        for conn in &mut self.conns {
            conn.attention.push(ArrayVec::new());
        }
        Ok(())
    }

    /// One end of the byte stream of connection `index`.
    ///
    /// # Panics
    /// If `index` is not below `max_connections`.
    pub fn connection(&mut self, index: usize) -> TargetSession<'_, D> {
        assert!(index < self.conns.len(), "the target has {} connections", self.conns.len());
        TargetSession { target: self, index }
    }

    /// A connection that is to be driven though nothing came in on it: another one has ended its session.
    pub fn poll_stirred(&mut self) -> Option<usize> {
        let index = self.conns.iter().position(|c| c.stirred)?;
        self.conns[index].stirred = false;
        Some(index)
    }

    /// How many connections it takes.
    pub fn connections(&self) -> usize {
        self.conns.len()
    }

    /// The target is killed and started again: connections are reset, sessions and unanswered
    /// commands forgotten. What was answered is on the disks. The first command that a later session
    /// sends to a unit is answered with unit attention 06/29/00.
    pub fn restart(&mut self, now: Time) {
        tracing::debug!(target_name = %self.config.name, %now, "restart");
        for conn in &mut self.conns {
            conn.abort();
        }
        self.next_tsih = 1;
        self.restarted = true;
    }

    /// The disk of a unit.
    pub fn disk_mut(&mut self, lun: u16) -> Option<&mut D> {
        self.luns.iter_mut().find(|l| l.lun == lun).map(|l| &mut l.disk)
    }

    /// From now on logins are sent to `moved` (RFC 7143 section 11.13.5, class 1), or, with `None`, are
    /// taken here again.
    pub fn redirect(&mut self, moved: Option<Moved>) {
        self.moved = moved;
    }

    /// The faults that have happened.
    pub fn fault_counts(&self) -> FaultCounts {
        self.counts
    }

    /// The `nth` SCSI command from now on, of whichever session, has `fault`: 1 is the next one.
    ///
    /// # Panics
    /// If `nth` is 0.
    pub fn script(&mut self, nth: u64, fault: Fault) {
        assert!(nth > 0, "commands are counted from 1");
        self.script.push((self.stats.commands + nth, fault));
    }

    /// What was drawn, and scripted, for the command at hand.
    fn draw(&mut self) -> Drawn {
        let mut drawn = faults::draw(&mut self.rng, &self.config.faults);
        let at = self.stats.commands;
        self.script.retain(|(nth, fault)| {
            if *nth == at {
                drawn.add(*fault);
            }
            *nth > at
        });
        drawn
    }

    /// What it has done.
    pub fn stats(&self) -> TargetStats {
        self.stats
    }

    /// Changes the faults from now on.
    pub fn set_faults(&mut self, faults: TargetFaults) {
        self.config.faults = faults;
    }

    /// Connections that were dropped because an initiator broke the protocol.
    pub fn protocol_errors(&self) -> u64 {
        self.protocol_errors
    }

    /// Connections that were dropped because a digest of the initiator was wrong.
    pub fn digest_errors(&self) -> u64 {
        self.digest_errors
    }

    /// Sends a NOP-In that wants an answer, if the connection is in its full feature phase.
    pub fn ping(&mut self, index: usize) {
        self.conns[index].push_script(Ctl::Ping);
    }

    /// Sends an Asynchronous Message (RFC 7143 section 11.9): `event` 1 asks for a logout, 2 and 3
    /// announce that the connection is dropped, which then happens.
    pub fn announce(&mut self, index: usize, event: u8, parameters: [u16; 3]) {
        self.conns[index].push_script(Ctl::Async { event, parameters });
    }

    /// Answers to pings that have come in on a connection.
    pub fn pongs(&self, index: usize) -> u64 {
        self.conns[index].pongs
    }
}

/// One connection of a target, as a [`netswap_net::Session`].
#[derive(Debug)]
pub struct TargetSession<'a, D: Disk> {
    pub(crate) target: &'a mut IscsiTarget<D>,
    pub(crate) index: usize,
}
