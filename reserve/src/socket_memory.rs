//! Kernel memory set aside for a socket: `SO_RESERVE_MEM` (Linux 5.17), for which no crate with a safe
//! interface has a call. It is the one socket option set from here; all others go through rustix.
//!
//! The kernel charges the bytes to the memory cgroup of the socket at once, so that a later packet of
//! this socket is not refused for want of a charge. It does not set pages of memory aside.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use rustix::io::Errno;

/// `SO_RESERVE_MEM` of `asm-generic/socket.h`: the same number on all architectures but parisc and
/// sparc.
const SO_RESERVE_MEM: libc::c_int = 73;

/// Has the kernel charge `bytes` for this socket in advance, and believes it only when it can be read
/// back. Costs a system call or two, and no memory of this process.
///
/// # Errors
/// As the kernel says: `EOPNOTSUPP` outside of a memory cgroup and for sockets that are not accounted,
/// `ENOPROTOOPT` before Linux 5.17, `ENOMEM` when the cgroup has no room; `EINVAL` for more than 2 GiB.
///
/// ```
/// use std::os::fd::AsFd;
///
/// let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
/// match netswap_reserve::socket_memory::reserve(listener.as_fd(), 1 << 16) {
///     Ok(()) => println!("in force"),
///     Err(errno) => println!("not in force: {errno}"),
/// }
/// # Ok::<(), std::io::Error>(())
/// ```
pub fn reserve(fd: BorrowedFd<'_>, bytes: usize) -> Result<(), Errno> {
    let value = libc::c_int::try_from(bytes).map_err(|_| Errno::INVAL)?;
    let mut len = size_of::<libc::c_int>() as libc::socklen_t;
    // SAFETY: the descriptor is open for as long as it is borrowed; the kernel reads `len` bytes of
    // `value`, a live `c_int`, and keeps no pointer.
    let set = unsafe {
        libc::setsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_RESERVE_MEM,
            (&raw const value).cast(),
            len,
        )
    };
    if set != 0 {
        return Err(last_error());
    }
    let mut held: libc::c_int = 0;
    // SAFETY: as above; the kernel writes at most `len` bytes to `held`, a live `c_int` of that size,
    // and the length to `len`.
    let got = unsafe {
        libc::getsockopt(
            fd.as_raw_fd(),
            libc::SOL_SOCKET,
            SO_RESERVE_MEM,
            (&raw mut held).cast(),
            &raw mut len,
        )
    };
    if got != 0 {
        return Err(last_error());
    }
    if held >= value { Ok(()) } else { Err(Errno::NOMEM) }
}

fn last_error() -> Errno {
    Errno::from_io_error(&io::Error::last_os_error()).unwrap_or(Errno::INVAL)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsFd;

    use super::*;

    #[test]
    fn what_is_no_socket_or_too_much_is_refused() {
        let file = std::fs::File::open("/dev/null").unwrap();
        assert_eq!(reserve(file.as_fd(), 4096), Err(Errno::NOTSOCK));
        let socket = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        assert_eq!(reserve(socket.as_fd(), usize::MAX), Err(Errno::INVAL));
    }
}
