//! The connection of a session: to which of the server's services it goes, and when it is made again.
//!
//! ```text
//!             connect                    connected
//!   Down -----------------> Connecting -------------> Open
//!    ^  (wanted, and due)       |                      |
//!    |                          |       give up        |
//!    |     disconnected         v                      v
//!    +---------------------- Closing <-----------------+
//! ```
//! A connection may also end by itself; `Down` follows from each state. What is sent over it, and what is
//! repeated on the next one, is the session's business.

use std::net::SocketAddr;

use netswap_net::Action;
use netswap_reserve::{Span, Time};

/// Which service a connection is to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Target {
    Portmap,
    Mount,
    Nfs,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Conn {
    Down {
        retry_at: Time,
    },
    Connecting {
        since: Time,
    },
    Open,
    /// An action that ends it was given out; `handle_disconnected` is awaited.
    Closing,
}

#[derive(Debug)]
pub(crate) struct Link {
    conn: Conn,
    target: Target,
    last_target: Option<Target>,
    action: Option<Action>,
    backoff: Span,
    /// The connection is closed only to open one to the other service: no wait.
    switching: bool,
}

impl Link {
    /// To `target` first, from `now` on. After a connection that ended, `backoff` passes before the next.
    pub(crate) fn new(now: Time, target: Target, backoff: Span) -> Link {
        Link {
            conn: Conn::Down { retry_at: now },
            target,
            last_target: None,
            action: None,
            backoff,
            switching: false,
        }
    }

    pub(crate) fn target(&self) -> Target {
        self.target
    }

    pub(crate) fn is_open(&self) -> bool {
        self.conn == Conn::Open
    }

    /// Whether the end of the connection is no surprise: the next goes to the other service.
    pub(crate) fn is_switching(&self) -> bool {
        self.switching
    }

    /// Whether it has been connecting for `timeout`.
    pub(crate) fn is_late(&self, now: Time, timeout: Span) -> bool {
        matches!(self.conn, Conn::Connecting { since } if since + timeout <= now)
    }

    /// When it has to be looked at, if a connection is `wanted`.
    pub(crate) fn deadline(&self, wanted: bool, timeout: Span) -> Time {
        match self.conn {
            Conn::Down { retry_at } if wanted => retry_at,
            Conn::Connecting { since } => since + timeout,
            _ => Time::MAX,
        }
    }

    /// The server answers as it should: the wait before the next connection is `backoff` again.
    pub(crate) fn reset_backoff(&mut self, backoff: Span) {
        self.backoff = backoff;
    }

    /// The next connection goes to `target`, and at once. The current one is to be given up.
    pub(crate) fn switch_to(&mut self, target: Target) {
        self.target = target;
        self.switching = true;
    }

    /// Gives up the connection by `action`, if there is one.
    pub(crate) fn give_up(&mut self, action: Action) {
        let action = match self.conn {
            Conn::Down { .. } | Conn::Closing => return,
            Conn::Connecting { .. } => Action::Abort,
            Conn::Open => action,
        };
        self.conn = Conn::Closing;
        self.action = Some(action);
    }

    /// The transport has connected. False if that is not waited for any more.
    pub(crate) fn handle_connected(&mut self) -> bool {
        let awaited = matches!(self.conn, Conn::Connecting { .. });
        if awaited {
            self.conn = Conn::Open;
            self.last_target = Some(self.target);
        }
        awaited
    }

    /// The connection has ended. Returns when the next may be made.
    pub(crate) fn handle_disconnected(&mut self, now: Time, backoff_max: Span) -> Time {
        self.action = None;
        let wait = if std::mem::take(&mut self.switching) { Span::ZERO } else { self.backoff };
        if wait > Span::ZERO {
            self.backoff = (self.backoff * 2).min(backoff_max);
        }
        let retry_at = now + wait;
        self.conn = Conn::Down { retry_at };
        retry_at
    }

    /// What the transport is to do, if a connection is `wanted`. The service it goes to is at `remote`.
    pub(crate) fn poll_action(
        &mut self,
        now: Time,
        wanted: bool,
        remote: SocketAddr,
    ) -> Option<Action> {
        if let Some(action) = self.action.take() {
            return Some(action);
        }
        match self.conn {
            Conn::Down { retry_at } if retry_at <= now && wanted => {
                self.conn = Conn::Connecting { since: now };
                let same_port = self.last_target == Some(self.target);
                Some(Action::Connect { remote, same_port })
            }
            _ => None,
        }
    }
}
