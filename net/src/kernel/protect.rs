//! What the kernel offers to keep the path to the store alive while memory is short, asked for and
//! reported. A user process cannot have a tagged socket of the kernel (`SOCK_MEMALLOC` is not for
//! it); this is what there is instead.
//!
//! - **Memory lock** (`mlockall`): a page of the pager itself that must be read in from swap first would
//!   wait for the pager. Needs `CAP_IPC_LOCK` or a limit (`ulimit -l`).
//! - **IO flusher** (`PR_SET_IO_FLUSHER`): allocations that the kernel makes for this *thread* do not
//!   write pages out or enter file systems, which could wait for the thread itself, and the thread is
//!   not throttled as a writer. Needs `CAP_SYS_RESOURCE`. Threads started later inherit it.
//! - **Socket memory** (`SO_RESERVE_MEM`): bytes of the memory cgroup that are charged to a socket in
//!   advance. Exists inside a memory cgroup only.

use std::fmt;
use std::io;

use netswap_reserve::socket_memory;
use rustix::fd::AsFd;
use rustix::io::Errno;
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socket_with};
use rustix::process::{configure_io_flusher_behavior, is_io_flusher};

/// What the system said, as the number it said.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct OsError(i32);

impl OsError {
    /// The error number.
    pub fn errno(self) -> i32 {
        self.0
    }
}

impl From<Errno> for OsError {
    fn from(errno: Errno) -> OsError {
        OsError(errno.raw_os_error())
    }
}

impl fmt::Display for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        io::Error::from_raw_os_error(self.0).fmt(f)
    }
}

impl fmt::Debug for OsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// What became of something that was asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Protection {
    /// It was not asked for.
    NotAsked,
    /// It holds.
    InForce,
    /// The system has it and refused it.
    Refused(OsError),
    /// This system does not have it.
    NotAvailable(OsError),
}

impl Protection {
    pub(super) fn judge(result: Result<(), Errno>) -> Protection {
        match result {
            Ok(()) => Protection::InForce,
            Err(errno @ (Errno::NOSYS | Errno::NOPROTOOPT | Errno::OPNOTSUPP | Errno::INVAL)) => {
                Protection::NotAvailable(errno.into())
            }
            Err(errno) => Protection::Refused(errno.into()),
        }
    }

    /// Whether it holds.
    pub fn is_in_force(self) -> bool {
        self == Protection::InForce
    }
}

impl fmt::Display for Protection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protection::NotAsked => f.write_str("not asked for"),
            Protection::InForce => f.write_str("in force"),
            Protection::Refused(why) => write!(f, "refused ({why})"),
            Protection::NotAvailable(why) => write!(f, "not available ({why})"),
        }
    }
}

/// How much of the process is to stay in memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum MemoryLock {
    /// Nothing.
    Never,
    /// Every page that is mapped, now or later, from the moment it is first touched
    /// (`MCL_ONFAULT`). Memory that is reserved but never touched costs nothing.
    #[default]
    Touched,
    /// Every page that is mapped, now or later, at once: mappings are committed whole.
    All,
}

/// What to ask the kernel for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ProtectConfig {
    /// Pages of this process that are to stay in memory.
    pub memory_lock: MemoryLock,
    /// Whether this thread is to be an IO flusher.
    pub io_flusher: bool,
    /// Bytes of kernel memory wanted for each socket; 0 asks for none. Here it is only tried out on a
    /// socket of its own: give the same number to [`super::SocketOptions::reserve_memory`].
    pub socket_memory: usize,
}

impl Default for ProtectConfig {
    /// Everything, with 1 MiB a socket: a window in each direction. Picked by eye.
    fn default() -> ProtectConfig {
        ProtectConfig { memory_lock: MemoryLock::Touched, io_flusher: true, socket_memory: 1 << 20 }
    }
}

/// What holds. Printed, it is a line for each.
///
/// ```
/// use netswap_net::kernel::{MemoryLock, PathProtection, ProtectConfig, Protection};
///
/// let config = ProtectConfig { memory_lock: MemoryLock::Never, ..ProtectConfig::default() };
/// let report = PathProtection::ask(&config);
/// assert_eq!(report.memory_lock, Protection::NotAsked);
/// assert!(report.to_string().starts_with("memory lock    not asked for\n"));
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PathProtection {
    /// Of the process.
    pub memory_lock: Protection,
    /// Of the calling thread.
    pub io_flusher: Protection,
    /// Whether sockets of this process can have it.
    pub socket_memory: Protection,
}

impl PathProtection {
    /// Asks for what `config` says. To be called at start, on the thread that will run the loop and
    /// before it starts others.
    pub fn ask(config: &ProtectConfig) -> PathProtection {
        let all = MlockAllFlags::CURRENT | MlockAllFlags::FUTURE;
        let lock = |flags| Protection::judge(mlockall(flags));
        PathProtection {
            memory_lock: match config.memory_lock {
                MemoryLock::Never => Protection::NotAsked,
                MemoryLock::Touched => lock(all | MlockAllFlags::ONFAULT),
                MemoryLock::All => lock(all),
            },
            io_flusher: match config.io_flusher {
                false => Protection::NotAsked,
                true => Protection::judge(io_flusher()),
            },
            socket_memory: match config.socket_memory {
                0 => Protection::NotAsked,
                bytes => Protection::judge(try_socket_memory(bytes)),
            },
        }
    }
}

impl fmt::Display for PathProtection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "memory lock    {}", self.memory_lock)?;
        writeln!(f, "IO flusher     {}", self.io_flusher)?;
        write!(f, "socket memory  {}", self.socket_memory)
    }
}

fn io_flusher() -> Result<(), Errno> {
    configure_io_flusher_behavior(true)?;
    // Believed only when it can be read back.
    if is_io_flusher()? { Ok(()) } else { Err(Errno::PERM) }
}

fn try_socket_memory(bytes: usize) -> Result<(), Errno> {
    let fd = socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::CLOEXEC, None)?;
    socket_memory::reserve(fd.as_fd(), bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_has_an_answer_and_a_reason() {
        // Not the memory lock: it would hold for all tests of this process.
        let config = ProtectConfig { memory_lock: MemoryLock::Never, ..Default::default() };
        let report = PathProtection::ask(&config);
        assert_ne!(report.io_flusher, Protection::NotAsked);
        assert_ne!(report.socket_memory, Protection::NotAsked);
        assert_eq!(report.io_flusher.is_in_force(), is_io_flusher() == Ok(true));
        assert_eq!(report.to_string().lines().count(), 3);
        let nothing =
            ProtectConfig { memory_lock: MemoryLock::Never, io_flusher: false, socket_memory: 0 };
        assert_eq!(PathProtection::ask(&nothing).io_flusher, Protection::NotAsked);
    }

    #[test]
    fn an_error_is_judged_by_what_it_means() {
        assert_eq!(Protection::judge(Ok(())), Protection::InForce);
        let refused = Protection::judge(Err(Errno::PERM));
        assert!(matches!(refused, Protection::Refused(_)));
        assert!(refused.to_string().starts_with("refused (Operation not permitted"), "{refused}");
        let missing = Protection::judge(Err(Errno::OPNOTSUPP));
        assert!(missing.to_string().starts_with("not available ("), "{missing}");
    }
}
