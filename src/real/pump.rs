//! The event loop of one connection: the thread that calls it is the driver of one session.

use std::num::NonZeroU64;

use netswap_net::Session;
use netswap_net::kernel::{
    Clock, ConnConfig, ConnId, ConnInfo, HostAddrs, KernelConfig, KernelError, KernelNet,
    KernelStats, PathProtection, ProtectConfig, SocketOptions,
};
use netswap_reserve::Time;

use super::interrupt::{Interrupt, Watching};

/// Nanoseconds by which the kernel may let this thread sleep on; by default it takes 50 us, as much as a rest of
/// the loop lasts (`KernelConfig::moderate`).
const TIMER_SLACK: NonZeroU64 = NonZeroU64::new(1000).unwrap();

/// One connection, its loop and its clock. Whose session it is, the caller says at each turn.
pub(crate) struct Pump {
    net: KernelNet,
    conn: ConnId,
    clock: Clock,
    protection: PathProtection,
    watching: Option<Watching>,
}

impl Pump {
    /// Asks for what the kernel offers, then makes the loop. To be called on the thread that turns it.
    pub(crate) fn new(
        addrs: Option<HostAddrs>,
        protect: &ProtectConfig,
    ) -> Result<Pump, KernelError> {
        netswap_reserve::prepare_thread();
        let protection = PathProtection::ask(protect);
        // Refused, rests are longer than they should be, and nothing else.
        let _ = rustix::thread::set_current_timer_slack(Some(TIMER_SLACK));
        let mut net = KernelNet::new(KernelConfig::new(1))?;
        let socket =
            SocketOptions { reserve_memory: protect.socket_memory, ..SocketOptions::default() };
        let config = ConnConfig { socket, addrs, ..ConnConfig::default() };
        let conn = net.add_conn(config).expect("the loop was made for one connection");
        Ok(Pump { net, conn, clock: Clock::new(), protection, watching: None })
    }

    /// Being raised ends its waits.
    pub(crate) fn watch(&mut self, interrupt: &Interrupt) {
        self.watching = Some(interrupt.watch(self.net.waker()));
    }

    /// Whether whoever turns it is to end early.
    pub(crate) fn is_interrupted(&self) -> bool {
        self.watching.as_ref().is_some_and(Watching::is_raised)
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn info(&self) -> ConnInfo {
        self.net.conn_info(self.conn)
    }

    pub(crate) fn stats(&self) -> KernelStats {
        self.net.stats()
    }

    /// A number that grows with whatever can end a request: bytes that came, and connections that came and
    /// went.
    pub(crate) fn arrivals(&self) -> u64 {
        let conns = self.net.conn_stats(self.conn);
        conns.bytes_received + conns.connects + conns.connect_failures + conns.disconnects
    }

    pub(crate) fn protection(&self) -> PathProtection {
        self.protection
    }

    /// The session was given something: it is driven in the next turn.
    pub(crate) fn touch(&mut self) {
        self.net.make_ready(self.conn);
    }

    /// Sleeps until there is something to do, until `until` at the latest, and does it.
    pub(crate) fn turn(
        &mut self,
        until: Option<Time>,
        session: &mut impl Session,
    ) -> Result<(), KernelError> {
        self.net.wait(self.clock.now(), until)?;
        let now = self.clock.now();
        while let Some(id) = self.net.next_ready(now) {
            self.net.drive(now, id, session);
        }
        Ok(())
    }
}
