//! Why a store cannot be used. Each says what to do next.

use netswap_net::kernel::{KernelError, OsError, ResolveError};
use netswap_reserve::Span;
use netswap_swap::StoreError;
use std::borrow::Cow;

use super::scheme::UrlProblem;

/// Why a text is not the URL of a store. No secret of the URL is in it.
#[derive(Debug, thiserror::Error)]
pub enum StoreUrlError {
    /// It has no `://`.
    #[error("{text:?} is no URL: write {forms}")]
    NoScheme {
        /// The text.
        text: String,
        /// The forms that are known.
        forms: String,
    },
    /// What stands before `://` is not known.
    #[error("{name:?} is no kind of store; known: {known}: write {forms}")]
    UnknownScheme {
        /// What stands there.
        name: String,
        /// The names that are known.
        known: String,
        /// Their forms.
        forms: String,
    },
    /// Its scheme cannot read it.
    #[error("{source}")]
    Scheme {
        /// The name of the scheme.
        name: &'static str,
        /// What is wrong with the URL.
        source: UrlProblem,
    },
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
    /// Stores of this kind are not made by their clients.
    #[error(
        "{server} cannot be made from here: make it at its server, then an area of it by `netswap mkswap`"
    )]
    NotCreated {
        /// The store.
        server: String,
    },
    /// Somebody has seen enough ([`super::Interrupt`]).
    #[error("interrupted before {server} was ready")]
    Interrupted {
        /// The store.
        server: String,
    },
    /// The server refused it.
    #[error("{server}: {error}: {advice}")]
    Refused {
        /// The store.
        server: String,
        /// What became of it.
        error: StoreError,
        /// What to do about it.
        advice: Cow<'static, str>,
    },
}

impl OpenError {
    /// Whether something was asked for that there cannot be.
    pub fn is_usage(&self) -> bool {
        matches!(self, OpenError::NotCreated { .. })
    }

    /// Whether nobody answered, or nobody is known to serve it, as opposed to a server that says no.
    pub fn is_unreachable(&self) -> bool {
        match self {
            OpenError::Refused { error, .. } => matches!(error, StoreError::Unregistered { .. }),
            OpenError::NotCreated { .. } | OpenError::Interrupted { .. } => false,
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
    /// Somebody has seen enough ([`super::Interrupt`]); whether the pages were moved is not known.
    #[error("interrupted")]
    Interrupted,
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
