//! An embedded NFSv3 server: MOUNT, NFS and a portmapper on one port, files on [`Disk`]s, faults on demand.
//!
//! It is what the client is tested against, and the far side of a simulation. One directory, the
//! export, holds the files; there are no permissions, and any credential of AUTH_NONE or AUTH_SYS
//! will do. Calls are executed in the order in which they arrive whole.
//!
//! - `args`: calls and their arguments; `exec`: the procedures; `readdir`: those that list;
//! - `session`: records in, replies out;
//! - `faults`: what goes wrong on purpose; `held`: WRITEs that are carried out late;
//! - `cache`: the duplicate request cache.
//!
//! # What survives a restart
//! Files, their handles, and all that was written FILE_SYNC or DATA_SYNC, or committed. What was
//! written UNSTABLE and not committed is lost: the old bytes are back (RFC 1813 section 4.8 allows
//! it; a server that merely *may* lose data never shows its client's mistakes). Connections, replies
//! and the duplicate request cache are forgotten, and the write verifier is another one.
//!
//! # Invariants
//! - All bytes of calls and replies lie in frames set aside at construction. A connection without a
//!   free record buffer takes no bytes from its stream until a reply has been sent.
//! - A WRITE that is answered as FILE_SYNC has been flushed.

mod args;
mod cache;
mod exec;
mod faults;
mod held;
mod readdir;
mod session;

use std::collections::VecDeque;

use arrayvec::ArrayVec;
use netswap_net::Action;
use netswap_reserve::{AllocError, FrameRun, PAGE_SIZE, PagePool, Time};
use netswap_swap::Disk;
use rand_core::SeedableRng;
use rand_xoshiro::Xoshiro256PlusPlus;

use crate::proto::{FileHandle, NAME_BYTES_MAX};
use crate::rpc::RecordReader;
use cache::ReplyCache;
pub use faults::{FAULT_NAMES, FaultCounts, ServerFaults, UnknownFault};
pub use session::ServerSession;

/// Bytes of a record beside the data of a READ or WRITE: record mark, the longest call header with
/// its arguments (MNT with a path of 1024 bytes takes most), and padding.
const RECORD_OVERHEAD: usize = 2048;
/// What our file handles begin with; a generation and a place follow.
const HANDLE_MAGIC: &[u8] = b"netswap-file";
/// Bytes of a name.
type Name = ArrayVec<u8, NAME_BYTES_MAX>;

/// How a server is set up.
#[derive(Clone, Debug)]
pub struct NfsServerConfig {
    /// Path of the export.
    pub export: String,
    /// What its portmapper says of NFS and MOUNT; without, that they are not registered.
    pub ports: Option<(u16, u16)>,
    /// Names this boot in the write verifier; a restart counts it up.
    pub boot: u64,
    /// A restart does not change the verifier: a server that lies.
    pub pinned_verifier: bool,
    /// Most bytes of one READ.
    pub rtmax: u32,
    /// Most bytes of one WRITE.
    pub wtmax: u32,
    /// Most bytes of a file, for what a client asks for. Not a bound on the disks that are added.
    pub file_bytes_max: u64,
    /// Faults to be made.
    pub faults: ServerFaults,
    /// Seeds the faults.
    pub seed: u64,
    /// Connections at a time.
    pub max_connections: usize,
    /// Records a connection may have unsent or unexecuted. Each takes a buffer of one batch.
    pub records: usize,
    /// Keep what an UNSTABLE write overwrites, so that a restart loses the write. Without, UNSTABLE writes are
    /// taken without a bound and without a copy; what a restart loses of them is the disks' business.
    pub keep_old: bool,
    /// UNSTABLE writes that may be uncommitted, if what they overwrite is kept; one more commits them all. 0: all
    /// writes are stable.
    pub unstable: usize,
    /// WRITEs that can be put aside to be carried out late. Each takes a buffer of one batch.
    pub held: usize,
    /// Replies of changes that are remembered for each connection.
    pub remembered: usize,
    /// Most files; CREATE beyond them is refused with NFS3ERR_NOSPC.
    pub files: usize,
}

impl Default for NfsServerConfig {
    /// Export `/swap`, 64 KiB to a call, 4 connections of 8 records, no faults.
    fn default() -> NfsServerConfig {
        NfsServerConfig {
            export: "/swap".into(),
            ports: None,
            boot: 1,
            pinned_verifier: false,
            rtmax: 65_536,
            wtmax: 65_536,
            file_bytes_max: 1 << 36,
            faults: ServerFaults::default(),
            seed: 1,
            max_connections: 4,
            records: 8,
            keep_old: true,
            unstable: 16,
            held: 0,
            remembered: 64,
            files: 16,
        }
    }
}

impl NfsServerConfig {
    fn record_frames(&self) -> usize {
        (RECORD_OVERHEAD + self.rtmax.max(self.wtmax) as usize).div_ceil(PAGE_SIZE)
    }

    /// Frames the server sets aside: record buffers for each connection, the old bytes of what is
    /// uncommitted, and what is put aside.
    pub fn frames(&self) -> u32 {
        let records = self.max_connections * self.records * self.record_frames();
        (records + (self.undos() + self.held) * self.undo_frames()) as u32
    }

    /// Whether a write may be UNSTABLE at all.
    fn takes_unstable(&self) -> bool {
        self.unstable > 0 || !self.keep_old
    }

    /// UNSTABLE writes whose old bytes there is room for.
    fn undos(&self) -> usize {
        if self.keep_old { self.unstable } else { 0 }
    }

    fn undo_frames(&self) -> usize {
        (self.wtmax as usize).div_ceil(PAGE_SIZE)
    }
}

/// What has happened so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Calls that were understood.
    pub calls: u64,
    /// READs executed.
    pub reads: u64,
    /// WRITEs executed.
    pub writes: u64,
    /// READDIRs and READDIRPLUSes executed.
    pub lists: u64,
    /// Calls answered from the duplicate request cache.
    pub cached: u64,
    /// Calls that could not be understood.
    pub bad_calls: u64,
    /// UNSTABLE writes that a restart has lost.
    pub lost: u64,
}

struct File<D> {
    name: Name,
    disk: D,
    /// It keeps its place, as places are what handles and cookies are made of; nothing finds it there.
    is_removed: bool,
}

/// An UNSTABLE write that is not committed: what it has overwritten.
#[derive(Clone, Copy)]
struct Undo {
    file: usize,
    offset: u64,
    len: usize,
    /// Length of the file before.
    file_len: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RecordState {
    Free,
    Filling,
    Queued,
    /// To be queued at this time.
    Late(Time),
}

#[derive(Clone, Copy, Debug)]
struct Record {
    state: RecordState,
    len: usize,
    /// How often it is to be sent after this time.
    again: u32,
}

struct Connection {
    open: bool,
    action: Option<Action>,
    reader: RecordReader,
    mark: [u8; 4],
    filling: Option<usize>,
    records: Box<[Record]>,
    sendq: VecDeque<usize>,
    sent_front: usize,
    cache: ReplyCache,
}

/// An NFSv3 server for several connections.
///
/// ```
/// use netswap_nfs::{NfsServer, NfsServerConfig};
/// use netswap_reserve::{PagePool, PoolConfig};
/// use netswap_swap::MemDisk;
///
/// let config = NfsServerConfig::default();
/// let pool = PagePool::new(PoolConfig::new(config.frames() + 256));
/// let mut server = NfsServer::new(config, &pool).unwrap();
/// server.add_file("area0", MemDisk::new(1 << 20));
/// let session = server.connection(0);
/// ```
pub struct NfsServer<D: Disk> {
    config: NfsServerConfig,
    files: Vec<File<D>>,
    /// For files that clients will create; some for one name only.
    spares: Vec<(Option<Name>, D)>,
    records: FrameRun,
    record_bytes: usize,
    undo: Vec<Undo>,
    undo_bytes: Option<FrameRun>,
    held: Box<[Option<held::Held>]>,
    held_bytes: Option<FrameRun>,
    hold_next: Option<Time>,
    /// The time of the last event.
    now: Time,
    connections: Box<[Connection]>,
    rng: Xoshiro256PlusPlus,
    counts: FaultCounts,
    stats: ServerStats,
    boot: u64,
    /// Handles of another generation are stale.
    generation: u32,
    /// Cookies of another generation are bad.
    cookie_generation: u64,
}

impl<D: Disk> std::fmt::Debug for NfsServer<D> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("NfsServer").field("stats", &self.stats).field("boot", &self.boot).finish()
    }
}

impl<D: Disk> NfsServer<D> {
    /// A server without files. Its buffers are set aside from `pool`.
    ///
    /// # Errors
    /// When `pool` has too few contiguous frames: it needs [`NfsServerConfig::frames`].
    ///
    /// # Panics
    /// If a limit in `config` is 0.
    pub fn new(config: NfsServerConfig, pool: &PagePool) -> Result<NfsServer<D>, AllocError> {
        assert!(config.rtmax > 0 && config.wtmax > 0, "READ and WRITE of nothing");
        assert!(config.max_connections > 0 && config.records > 0, "a server without buffers");
        let frames = config.record_frames();
        let records = pool.set_aside((config.max_connections * config.records * frames) as u32)?;
        let undo_bytes = match config.undos() {
            0 => None,
            n => Some(pool.set_aside((n * config.undo_frames()) as u32)?),
        };
        let held_bytes = match config.held {
            0 => None,
            n => Some(pool.set_aside((n * config.undo_frames()) as u32)?),
        };
        let record_bytes = frames * PAGE_SIZE;
        let connection = || Connection {
            open: false,
            action: None,
            reader: RecordReader::new(record_bytes - 4),
            mark: [0; 4],
            filling: None,
            records: vec![Record { state: RecordState::Free, len: 0, again: 0 }; config.records]
                .into(),
            sendq: VecDeque::with_capacity(config.records),
            sent_front: 0,
            cache: ReplyCache::new(config.remembered),
        };
        Ok(NfsServer {
            files: Vec::with_capacity(config.files),
            spares: Vec::with_capacity(config.files),
            records,
            record_bytes,
            undo: Vec::with_capacity(config.undos()),
            undo_bytes,
            held: vec![None; config.held].into(),
            held_bytes,
            hold_next: None,
            now: Time::ZERO,
            connections: (0..config.max_connections).map(|_| connection()).collect(),
            rng: Xoshiro256PlusPlus::seed_from_u64(config.seed),
            counts: FaultCounts::default(),
            stats: ServerStats::default(),
            boot: config.boot,
            generation: 1,
            cookie_generation: 1,
            config,
        })
    }

    /// Serves `disk` as the file `name`.
    ///
    /// # Panics
    /// If the name is longer than 255 bytes.
    pub fn add_file(&mut self, name: &str, disk: D) {
        let name = Name::try_from(name.as_bytes()).expect("a name of at most 255 bytes");
        self.files.push(File { name, disk, is_removed: false });
    }

    /// Removes the file `name`, as somebody at the server does: its handles are stale, and another of that
    /// name may be added. False if there is none.
    pub fn remove_file(&mut self, name: &str) -> bool {
        let found =
            self.files.iter_mut().find(|f| !f.is_removed && f.name.as_slice() == name.as_bytes());
        found.map(|file| file.is_removed = true).is_some()
    }

    /// Keeps `disk` for a file that a client will create.
    pub fn add_spare(&mut self, disk: D) {
        self.spares.push((None, disk));
    }

    /// Keeps `disk` for a file of this name that a client will create.
    ///
    /// # Panics
    /// If the name is longer than 255 bytes.
    pub fn add_spare_for(&mut self, name: &str, disk: D) {
        let name = Name::try_from(name.as_bytes()).expect("a name of at most 255 bytes");
        self.spares.push((Some(name), disk));
    }

    /// The disk of a file, or one that is kept for it.
    pub fn disk_mut(&mut self, name: &str) -> Option<&mut D> {
        let name = name.as_bytes();
        let files = self.files.iter_mut().filter(|file| !file.is_removed);
        let files = files.map(|file| (Some(&file.name), &mut file.disk));
        let spares = self.spares.iter_mut().map(|(name, disk)| (name.as_ref(), disk));
        files.chain(spares).find(|(of, _)| of.is_some_and(|of| of == name)).map(|(_, disk)| disk)
    }

    /// One end of connection `i`. A client that connects again should be given the same one, for the
    /// duplicate request cache is kept with it.
    ///
    /// # Panics
    /// If there is no such connection.
    pub fn connection(&mut self, i: usize) -> ServerSession<'_, D> {
        assert!(i < self.connections.len(), "connection {i} of {}", self.connections.len());
        ServerSession::new(self, i)
    }

    /// The server crashes and is there again at once; open connections are to be reset, which their
    /// sessions ask for. See above for what survives.
    pub fn restart(&mut self, _now: Time) {
        self.lose_uncommitted();
        self.held.fill(None);
        for connection in &mut self.connections {
            connection.forget();
            connection.cache.clear();
            if connection.open {
                connection.open = false;
                connection.action = Some(Action::Abort);
            }
        }
        if !self.config.pinned_verifier {
            self.boot = self.boot.wrapping_add(1);
        }
    }

    /// What was written UNSTABLE and not committed is lost, and the verifier is another one; nobody is told
    /// but by that.
    pub fn forget_uncommitted(&mut self) {
        self.lose_uncommitted();
        self.boot = self.boot.wrapping_add(1);
    }

    /// What was written UNSTABLE and not committed is lost, and nothing says so: a server that breaks its
    /// promise, which no client can notice but by what it reads.
    pub fn forget_silently(&mut self) {
        self.lose_uncommitted();
    }

    fn lose_uncommitted(&mut self) {
        while let Some(undo) = self.undo.pop() {
            self.stats.lost += 1;
            let at = self.undo.len() * self.config.undo_frames() * PAGE_SIZE;
            let (Some(bytes), Some(file)) = (&mut self.undo_bytes, self.files.get_mut(undo.file))
            else {
                continue;
            };
            let old = &bytes.bytes_mut()[at..at + undo.len];
            // A disk that fails here fails the reads that follow as well.
            let _ = file.disk.write_at(undo.offset, old);
            if file.disk.len() > undo.file_len {
                let _ = file.disk.set_len(undo.file_len);
            }
        }
    }

    /// Makes every handle given out so far stale, as an export that was moved to another file system
    /// does. Names and files stay.
    pub fn renew_handles(&mut self) {
        self.generation = self.generation.wrapping_add(1);
    }

    /// Makes every directory cookie given out so far bad, as a directory that was compressed does.
    pub fn renew_cookies(&mut self) {
        self.cookie_generation = self.cookie_generation.wrapping_add(1);
    }

    /// Changes the faults from now on.
    pub fn set_faults(&mut self, faults: ServerFaults) {
        self.config.faults = faults;
    }

    /// The faults made so far.
    pub fn fault_counts(&self) -> FaultCounts {
        self.counts
    }

    /// What has happened so far.
    pub fn stats(&self) -> ServerStats {
        self.stats
    }

    fn verifier(&self) -> [u8; 8] {
        self.boot.to_be_bytes()
    }

    fn handle_of(&self, place: u32) -> FileHandle {
        let mut bytes = [0; HANDLE_MAGIC.len() + 8];
        let (magic, fields) = bytes.split_at_mut(HANDLE_MAGIC.len());
        magic.copy_from_slice(HANDLE_MAGIC);
        fields[..4].copy_from_slice(&self.generation.to_be_bytes());
        fields[4..].copy_from_slice(&place.to_be_bytes());
        FileHandle::new(&bytes).unwrap_or(FileHandle::EMPTY)
    }
}

impl Connection {
    fn forget(&mut self) {
        self.reader.reset();
        self.filling = None;
        self.sendq.clear();
        self.sent_front = 0;
        for record in &mut self.records {
            record.state = RecordState::Free;
        }
    }
}
