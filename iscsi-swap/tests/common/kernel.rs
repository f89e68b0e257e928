//! An initiator on a socket of the kernel, and what turns its loop.

#![allow(dead_code, unreachable_pub)]

use netswap_iscsi::{Entropy, InitiatorConfig, IscsiBackend, IscsiUrl};
use netswap_net::Session;
use netswap_net::kernel::{Clock, ConnConfig, ConnId, KernelConfig, KernelNet};
use netswap_reserve::{Span, Time};
use netswap_swap::{BackendState, SwapBackend};

/// The loop of one connection.
pub struct Net {
    net: KernelNet,
    conn: ConnId,
    clock: Clock,
    /// Time that was skipped.
    ahead: Span,
}

impl Net {
    pub fn new() -> Net {
        let mut net = KernelNet::new(KernelConfig::new(1)).unwrap();
        let conn = net.add_conn(ConnConfig::default()).unwrap();
        Net { net, conn, clock: Clock::new(), ahead: Span::ZERO }
    }

    pub fn now(&self) -> Time {
        self.clock.now() + self.ahead
    }

    /// One turn: waits for the socket, a timer, or `most`.
    pub fn turn(&mut self, session: &mut impl Session, most: Span) {
        // The session was given something: it is driven first, and then waited for.
        self.net.make_ready(self.conn);
        for wait in [Span::ZERO, most] {
            let now = self.now();
            self.net.wait(now, Some(now + wait)).unwrap();
            let now = self.now();
            while let Some(id) = self.net.next_ready(now) {
                self.net.drive(now, id, session);
            }
        }
    }

    /// Puts the clock forward to `at`, if it is not there yet.
    pub fn skip_to(&mut self, at: Time) {
        self.ahead = self.ahead + at.since(self.now().min(at));
    }

    /// Until it is ready, or has failed.
    pub fn start(&mut self, backend: &mut IscsiBackend) -> BackendState {
        let begun = self.now();
        while backend.state() == BackendState::Starting {
            assert!(self.now().since(begun) < Span::from_secs(30), "never ready: {backend:?}");
            self.turn(backend, Span::from_millis(50));
        }
        backend.state()
    }
}

/// Everything on, and impatient.
pub fn config(url: &str) -> InitiatorConfig {
    let url: IscsiUrl = url.parse().unwrap();
    let chap = url.portal.credentials(|_| None).unwrap();
    let config = url.config([127, 0, 0, 1].into(), chap, Entropy::new([0x5a; 32])).with_all();
    InitiatorConfig { backoff_min: Span::from_millis(10), ..config }
}
