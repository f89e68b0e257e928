//! Why a store cannot be used. Each says what to do next.

use std::fmt;

use netswap_net::kernel::{KernelError, OsError, ResolveError};
use netswap_nfs::UrlError;
use netswap_reserve::Span;
use netswap_swap::StoreError;

use super::scheme::SCHEMES;

/// The forms of the URLs that are known.
struct Forms;

impl fmt::Display for Forms {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, scheme) in SCHEMES.iter().enumerate() {
            write!(f, "{}{}", if i == 0 { "" } else { " or " }, scheme.form)?;
        }
        Ok(())
    }
}

fn names() -> String {
    SCHEMES.iter().map(|scheme| scheme.name).collect::<Vec<_>>().join(", ")
}

/// Why a text is not the URL of a store.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum StoreUrlError {
    /// It has no `://`.
    #[error("{text:?} is no URL: write {Forms}")]
    NoScheme {
        /// The text.
        text: String,
    },
    /// What stands before `://` is not known.
    #[error("{name:?} is no kind of store; known: {}: write {Forms}", names())]
    UnknownScheme {
        /// What stands there.
        name: String,
    },
    /// It is no NFS URL.
    #[error(transparent)]
    Nfs(#[from] UrlError),
}

/// How far a store was that was not ready in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotReady {
    /// There was no connection; what the system said last, if it said anything.
    Unreachable(Option<OsError>),
    /// It was connected, and no answer came.
    Silent,
}

/// Why a store cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// The host has no address.
    #[error("{0}: check the name, or write an address")]
    Resolve(#[from] ResolveError),
    /// There is no event loop to be had.
    #[error("{0}: check the limit of open files (ulimit -n)")]
    Net(#[from] KernelError),
    /// It was not ready in time.
    #[error("{server} was not ready within {}: {}", seconds(*.waited), not_ready(*.why))]
    NotReady {
        /// The store.
        server: String,
        /// How long it was waited for.
        waited: Span,
        /// How far it was.
        why: NotReady,
    },
    /// The server refused it.
    #[error("{server}: {error}: {}", refusal(.error))]
    Refused {
        /// The store.
        server: String,
        /// What became of it.
        error: StoreError,
    },
}

impl OpenError {
    /// Whether nobody answered, or nobody is known to serve it, as opposed to a server that says no.
    pub fn is_unreachable(&self) -> bool {
        match self {
            OpenError::Refused { error, .. } => matches!(error, StoreError::Unregistered { .. }),
            _ => true,
        }
    }
}

/// Why pages did not get to a store, or from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TransferError {
    /// The store could not do it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// The event loop does not turn any more.
    #[error(transparent)]
    Net(#[from] KernelError),
    /// The store takes no requests: it was shut down, or as many are outstanding as it takes.
    #[error("the store takes no requests any more")]
    NotReady,
}

fn seconds(span: Span) -> String {
    format!("{:.1} s", span.as_nanos() as f64 / 1e9)
}

fn not_ready(why: NotReady) -> String {
    match why {
        NotReady::Unreachable(Some(error)) => {
            format!("{error}: check that the server runs, its port, and what filters packets on the way")
        }
        NotReady::Unreachable(None) => {
            "nobody answers there: check the address, and what filters packets on the way".into()
        }
        NotReady::Silent => {
            "it took the connection and does not answer: check that the port is that of the service, and \
             that the server is not stopped"
                .into()
        }
    }
}

/// What to do about a service that the portmapper does not know.
pub(super) const UNREGISTERED: &str =
    "is the NFS server running? If it is, name its ports by nfsport= and mountport= in the URL";
/// What to do about a port that does not serve what was looked for there.
pub(super) const NOT_SERVED: &str =
    "NFS and MOUNT may have a port each: name them by nfsport= and mountport= in the URL";

/// What to do about a store that says no (nfsstat3, RFC 1813 section 2.6).
fn refusal(error: &StoreError) -> &'static str {
    match error {
        StoreError::Refused { code: 2 } => {
            "there is no such file or export: check the path, or make the file by `netswap mkswap`"
        }
        StoreError::Refused { code: 20..=22 } => {
            "the path is not that of a plain file in an export: check it"
        }
        StoreError::Denied { .. } => {
            "let this host in at the server, or act as another user by uid= and gid= in the URL"
        }
        StoreError::Unregistered { .. } => UNREGISTERED,
        StoreError::NotServed { .. } => NOT_SERVED,
        StoreError::ReadOnly => "export it writable",
        StoreError::NoSpace => "make room on the server",
        StoreError::Garbage { .. } => "check that the port is that of the service",
        StoreError::TimedOut => "check that the server is not stopped",
        _ => "see the server's log",
    }
}
