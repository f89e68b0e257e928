//! What a server has at a URL: the files of a directory, or its targets and their units. How it is asked is
//! each scheme's own business; what comes of it is the same for all.

use netswap_net::kernel::{KernelError, ResolveError};
use netswap_nfs::rpc::PORTMAP_PORT;
use netswap_reserve::{AllocError, Span};

use super::error::StoreUrlError;
use super::iscsi::IscsiListFailure;
use super::nfs::NfsListFailure;
use super::scheme::UrlProblem;

/// How something is listed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListOptions {
    /// How long it may take to connect, and each call.
    pub within: Span,
    /// Most entries that are taken.
    pub entries_max: u64,
    /// Port of the portmapper, which is asked for the ports that the URL does not name.
    pub portmap: u16,
}

impl Default for ListOptions {
    /// 10 s, and 100,000 entries; both picked by eye.
    fn default() -> ListOptions {
        ListOptions { within: Span::from_secs(10), entries_max: 100_000, portmap: PORTMAP_PORT }
    }
}

/// What was listed.
#[derive(Clone, Debug, PartialEq)]
pub struct Listing {
    /// The heads of the columns, for people.
    pub columns: &'static [&'static str],
    /// In the order in which they are to be shown.
    pub entries: Vec<Entry>,
}

/// One of them.
#[derive(Clone, Debug, PartialEq)]
pub struct Entry {
    /// A cell a column, without anything that moves a terminal's cursor.
    pub cells: Vec<String>,
    /// For programs.
    pub value: serde_json::Value,
}

/// Why nothing was listed.
#[derive(Debug, thiserror::Error)]
pub enum ListFailure {
    /// It is no URL of something that can be listed.
    #[error(transparent)]
    Url(#[from] StoreUrlError),
    /// Stores of this kind stand alone.
    #[error("what {scheme}:// names has nothing to be listed")]
    NoList {
        /// The kind.
        scheme: &'static str,
    },
    /// The host has no address.
    #[error("{0}: check the name, or write an address")]
    Resolve(#[from] ResolveError),
    /// There is no event loop to be had.
    #[error("{0}")]
    Net(#[from] KernelError),
    /// There is no memory for a reply.
    #[error("no memory for a list: {0}")]
    Memory(#[from] AllocError),
    /// Nobody answers there.
    #[error(
        "{server} does not answer: check the address, the port, and what filters packets on the way"
    )]
    Unreachable {
        /// What was to be listed.
        server: String,
    },
    /// A directory of an export was not listed.
    #[error(transparent)]
    Nfs(#[from] NfsListFailure),
    /// Targets or units were not listed.
    #[error(transparent)]
    Iscsi(#[from] IscsiListFailure),
}

impl ListFailure {
    /// Whether nobody answered, or nobody is known to serve it, as opposed to a server that says no.
    pub fn is_unreachable(&self) -> bool {
        match self {
            ListFailure::Url(_) | ListFailure::NoList { .. } => false,
            ListFailure::Nfs(failure) => failure.is_unreachable(),
            ListFailure::Iscsi(failure) => failure.is_unreachable(),
            _ => true,
        }
    }

    /// Whether the URL itself is wrong.
    pub fn is_usage(&self) -> bool {
        matches!(self, ListFailure::Url(_) | ListFailure::NoList { .. })
    }
}

/// What a scheme's own reader says of a URL of something to be listed.
pub(super) fn bad_url(scheme: &'static str, source: impl Into<UrlProblem>) -> ListFailure {
    StoreUrlError::Scheme { name: scheme, source: source.into() }.into()
}

/// A name without what would move a terminal's cursor: a server may send any bytes.
pub(super) fn printable(name: &[u8]) -> String {
    let text = String::from_utf8_lossy(name);
    text.chars()
        .flat_map(|c| {
            let plain = (!c.is_control()).then_some(c);
            plain
                .into_iter()
                .chain(c.is_control().then(|| c.escape_default()).into_iter().flatten())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_server_calls_its_files_does_not_move_the_cursor() {
        assert_eq!(printable(b"a\x1b[2Jb\n\xff"), "a\\u{1b}[2Jb\\n\u{fffd}");
        assert_eq!(printable("größe".as_bytes()), "größe");
    }
}
