//! What a user of the lister sets and gets: configuration, events, errors, counts.

use std::net::SocketAddr;

use netswap_reserve::Span;

use crate::dir::DirEntry;
#[cfg(doc)]
use crate::rpc::ReplyStat;

/// How a listing is set up.
#[derive(Clone, Debug)]
pub struct ListerConfig {
    /// The NFS server.
    pub server: SocketAddr,
    /// Its MOUNT service, if it is not served on the same port.
    pub mount: Option<SocketAddr>,
    /// Path of the export.
    pub export: String,
    /// Path of the directory in the export; empty for the export itself.
    pub path: String,
    /// Ask for attributes and handles (READDIRPLUS). A server that has none is asked by READDIR.
    pub attributes: bool,
    /// Most entries that are taken.
    pub entries_max: u64,
    /// User to act as.
    pub uid: u32,
    /// Group to act as.
    pub gid: u32,
    /// Name of this machine for AUTH_SYS; the first 255 bytes are sent.
    pub machine: String,
    /// When an unanswered call is repeated, on a new connection; doubles each time, up to 16 times this.
    pub request_timeout: Span,
    /// How long one call may take before the listing fails, with all its repetitions and waits.
    pub give_up_after: Span,
    /// Wait before the first reconnect; doubles while no connection gives a reply.
    pub reconnect_min: Span,
    /// Longest wait before a reconnect.
    pub reconnect_max: Span,
    /// First wait after NFS3ERR_JUKEBOX; doubles up to 16 times this.
    pub jukebox_delay: Span,
    /// Where xids begin, and the stamp of AUTH_SYS.
    pub first_xid: u32,
}

impl ListerConfig {
    /// The defaults: MOUNT on the same port, root, with attributes, a million entries, 10 s to the
    /// first repetition and 60 s to giving up.
    pub fn new(server: SocketAddr, export: &str, path: &str) -> ListerConfig {
        ListerConfig {
            server,
            mount: None,
            export: export.into(),
            path: path.into(),
            attributes: true,
            entries_max: 1_000_000,
            uid: 0,
            gid: 0,
            machine: "netswap".into(),
            request_timeout: Span::from_secs(10),
            give_up_after: Span::from_secs(60),
            reconnect_min: Span::from_millis(10),
            reconnect_max: Span::from_secs(3),
            jukebox_delay: Span::from_millis(100),
            first_xid: 1,
        }
    }

    pub(super) fn components(&self) -> impl Iterator<Item = &str> {
        self.path.split('/').filter(|name| !name.is_empty())
    }
}

/// Why a listing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ListError {
    /// A path or a name in it is too long.
    #[error("the path is too long")]
    BadPath,
    /// The server refused: an `nfsstat3`, or a code of [`ReplyStat::refused_code`].
    #[error("refused by the server: {code:#x}")]
    Refused {
        /// The code.
        code: u32,
    },
    /// What listens at the port does not serve the program, or not in this version.
    #[error("the server does not serve {program} version {version} at the port that was asked")]
    NotServed {
        /// `NFS` or `MOUNT`.
        program: &'static str,
        /// The version that is needed.
        version: u32,
    },
    /// The server sent what is not the protocol, again and again.
    #[error("garbage from the server: {what}")]
    Garbage {
        /// What was wrong with it.
        what: &'static str,
    },
    /// A call was not answered, or put off, for longer than is allowed.
    #[error("no answer from the server")]
    TimedOut,
    /// A cookie leads back to a place where the list was before.
    #[error("the list goes in circles at cookie {cookie}")]
    Circle {
        /// The cookie.
        cookie: u64,
    },
    /// The directory has more entries than were allowed.
    #[error("more than {max} entries")]
    TooMany {
        /// The bound.
        max: u64,
    },
    /// The directory changed again and again while it was read.
    #[error("the list began again {restarts} times")]
    Unstable {
        /// How often.
        restarts: u32,
    },
}

/// What happened in a listing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ListEvent<'a> {
    /// The next entry. With `.` and `..` if the server has them.
    Entry(DirEntry<'a>),
    /// The list begins again at its first entry: what was given so far is to be forgotten.
    Restarted,
    /// It has ended; given once, and nothing after it.
    End(Result<(), ListError>),
}

/// What has happened so far. All are counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ListStats {
    /// Calls wholly given to the transport, repetitions included.
    pub calls: u64,
    /// Replies that ended a call.
    pub replies: u64,
    /// READDIR or READDIRPLUS replies with entries that were good.
    pub pages: u64,
    /// Replies, or streams, that are not the protocol.
    pub garbage: u64,
    /// Times the list began again.
    pub restarts: u32,
    /// Looks at a high page that had to wait for a window.
    pub map_waits: u64,
}
