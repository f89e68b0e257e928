//! A store that is open: a client with its connection and its clock, turned by the thread that uses it.

use std::any::Any;
use std::borrow::Cow;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{SystemTime, UNIX_EPOCH};

use netswap_net::kernel::{
    ConnPhase, HostAddrs, KernelError, KernelStats, PathProtection, ProtectConfig, Protection,
};
use netswap_nfs::rpc::PORTMAP_PORT;
use netswap_reserve::{Span, Time};
use netswap_swap::{
    BackendLimits, BackendState, Completion, Op, PageVec, Request, RequestId, Slot, StoreError,
    SubmitError, SwapBackend,
};

use super::client::{Counters, Durability, RealClient, StoreFacts, WriteProof};
use super::error::{NotReady, OpenError, TransferError};
use super::interrupt::Interrupt;
use super::pump::Pump;
use super::scheme::StoreUrl;

/// How a store is opened.
#[derive(Clone, Debug)]
pub struct OpenOptions {
    /// Give the file this length in bytes if it is absent or empty.
    pub create_bytes: Option<u64>,
    /// Most requests outstanding.
    pub in_flight: usize,
    /// Whether requests to adjacent slots that wait together may go to the server as one.
    pub merge: bool,
    /// How long it may take until the store is ready.
    pub ready_within: Span,
    /// What is asked of the kernel.
    pub protect: ProtectConfig,
    /// Port of the portmapper, which is asked for the ports that the URL does not name.
    pub portmap: u16,
    /// The name of this machine, for the server.
    pub machine: String,
    /// Makes each write last in this way, instead of the one that the URL says.
    pub durability: Option<Durability>,
    /// A number that tells this start from others: where the numbers of NFS calls begin. Two
    /// stores that are open at the same time need two.
    pub nonce: u32,
    /// Raised, it ends whatever waits for this store.
    pub interrupt: Interrupt,
}

/// What tells a start at this time in this process from others. Numbers of calls begin there, and a busy client uses
/// hundreds of thousands a second, so a number that grows with time would soon be met by the next start: it is
/// drawn from all there are, which two starts then rarely share. Finished as splitmix64 is (Steele, Lea and Flood, 2014).
fn nonce(nanos: u64, process: u32) -> u32 {
    let mut mixed = nanos ^ u64::from(process).rotate_left(40);
    mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    ((mixed ^ (mixed >> 31)) >> 32) as u32
}

impl Default for OpenOptions {
    /// Nothing is created; 64 requests, which may merge; ready within 10 s (picked by eye: a server that restarts takes a few);
    /// all protections; the portmapper at its own port; this machine's name, and a number that no start before had.
    fn default() -> OpenOptions {
        let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        OpenOptions {
            create_bytes: None,
            durability: None,
            in_flight: 64,
            merge: true,
            ready_within: Span::from_secs(10),
            protect: ProtectConfig::default(),
            portmap: PORTMAP_PORT,
            machine: rustix::system::uname().nodename().to_string_lossy().into_owned(),
            nonce: nonce(since.as_nanos() as u64, std::process::id()),
            interrupt: Interrupt::default(),
        }
    }
}

/// A store behind a connection, ready for requests.
///
/// The thread that opened it turns it: [`RealStore::submit`] and [`RealStore::poll_completion`] move no
/// byte by themselves, [`RealStore::turn`] does.
///
/// ```no_run
/// use netswap::real::{OpenOptions, RealStore, StoreUrl};
/// use netswap::reserve::{Gfp, PagePool, PoolConfig, Span};
/// use netswap::swap::{Op, PageVec, Slot};
///
/// let pool = PagePool::new(PoolConfig::new(64));
/// let url: StoreUrl = "nfs://server/export/area0".parse()?;
/// let mut store = RealStore::open(&url, &OpenOptions::default())?;
/// let pages = PageVec::from_iter([pool.alloc(Gfp::KERNEL)?]);
/// let (pages, outcome) = store.transfer(Op::Read, Slot(0), pages, Span::from_secs(5));
/// outcome?;
/// println!("{} has {} slots, the first begins {:x?}", store.server(), store.slots(), &pages[0].bytes()[..4]);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct RealStore {
    pub(super) pump: Pump,
    pub(super) client: Box<dyn RealClient>,
    slots: u32,
    /// When the store became ready, after how long.
    ready_after: Span,
}

impl RealStore {
    /// Looks the host up, connects, and waits until the store is ready. Memory that is to be locked
    /// (see [`OpenOptions::protect`]) should be there before.
    ///
    /// # Errors
    /// When the host has no address, nobody answers there in time, or the server refuses it.
    pub fn open(url: &StoreUrl, options: &OpenOptions) -> Result<RealStore, OpenError> {
        if options.create_bytes.is_some() && !url.can_create() {
            return Err(OpenError::NotCreated { server: url.to_string() });
        }
        let addrs = url.host().map(|host| HostAddrs::resolve(&host, 0)).transpose()?;
        let unspecified = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let address = addrs.as_ref().map_or(unspecified, |addrs| addrs.first().ip());
        let client = url.client(address, options);
        let mut pump = Pump::new(addrs, &options.protect)?;
        pump.watch(&options.interrupt);
        let mut store = RealStore { pump, client, slots: 0, ready_after: Span::ZERO };
        store.wait_ready(options.ready_within)?;
        Ok(store)
    }

    fn wait_ready(&mut self, within: Span) -> Result<(), OpenError> {
        let begun = self.now();
        let limit = begun + within;
        let mut was_open = false;
        loop {
            if self.is_interrupted() {
                return Err(OpenError::Interrupted { server: self.server().into() });
            }
            self.turn(Some(limit))?;
            let (now, info) = (self.now(), self.pump.info());
            was_open |= info.phase == ConnPhase::Open;
            let server = || self.server().to_string();
            match self.client.state() {
                BackendState::Ready { slots } => {
                    self.slots = slots;
                    self.ready_after = now.since(begun);
                    return Ok(());
                }
                BackendState::Failed(error) => {
                    let advice = self.client.advice(&error);
                    return Err(OpenError::Refused { server: server(), error, advice });
                }
                BackendState::Stopped => {
                    let (error, advice) = (StoreError::Cancelled, "open it anew".into());
                    return Err(OpenError::Refused { server: server(), error, advice });
                }
                BackendState::Starting if now >= limit => {
                    let is_silent = was_open && info.phase == ConnPhase::Open;
                    let why = match is_silent {
                        true => NotReady::Silent,
                        false => NotReady::Unreachable(info.last_error),
                    };
                    return Err(OpenError::NotReady { server: server(), waited: within, why });
                }
                BackendState::Starting => {}
            }
        }
    }

    /// Whether what waits for it is to end early: see [`OpenOptions::interrupt`].
    pub fn is_interrupted(&self) -> bool {
        self.pump.is_interrupted()
    }

    /// The store's clock.
    pub fn now(&self) -> Time {
        self.pump.now()
    }

    /// Its name for messages.
    pub fn server(&self) -> &str {
        self.client.server()
    }

    /// Slots of the store, the header's included.
    pub fn slots(&self) -> u32 {
        self.slots
    }

    /// What it takes at once.
    pub fn limits(&self) -> BackendLimits {
        self.client.limits()
    }

    /// How far it is.
    pub fn state(&self) -> BackendState {
        self.client.state()
    }

    /// How long it took until it was ready.
    pub fn ready_after(&self) -> Span {
        self.ready_after
    }

    /// The server's address; of the last connection if there is none now.
    pub fn remote(&self) -> Option<SocketAddr> {
        self.pump.info().remote
    }

    /// What of the kernel's protections is in force; that of the socket's memory is of the connection that
    /// was opened last.
    pub fn protection(&self) -> PathProtection {
        let of_socket = self.pump.info().socket_memory;
        let mut protection = self.pump.protection();
        if of_socket != Protection::NotAsked {
            protection.socket_memory = of_socket;
        }
        protection
    }

    /// What the sockets have done.
    pub fn net_stats(&self) -> KernelStats {
        self.pump.stats()
    }

    /// What is known of the store.
    pub fn facts(&self) -> StoreFacts {
        self.client.facts()
    }

    /// What its client has counted.
    pub fn counters(&self) -> Counters {
        self.client.counters()
    }

    /// How the writes that have ended were made to last.
    pub fn write_proof(&self) -> WriteProof {
        self.client.write_proof()
    }

    /// What a user can do about it that pages were not moved.
    pub fn advice(&self, error: &TransferError) -> Cow<'static, str> {
        match error {
            TransferError::Store(error) => self.client.advice(error),
            _ => "see the server's log".into(),
        }
    }

    /// The client itself, if it is of this kind.
    ///
    /// ```no_run
    /// # let url: netswap::real::StoreUrl = "nfs://server/export/area0".parse()?;
    /// # let store = netswap::real::RealStore::open(&url, &Default::default())?;
    /// let calls = store.client_as::<netswap::nfs::NfsBackend>().map(|client| client.stats().calls);
    /// # Ok::<(), Box<dyn std::error::Error>>(())
    /// ```
    pub fn client_as<C: RealClient>(&self) -> Option<&C> {
        (&*self.client as &dyn Any).downcast_ref()
    }

    /// Takes a request; [`RealStore::turn`] moves its bytes.
    ///
    /// # Errors
    /// Hands the request back when it cannot be taken now.
    #[allow(clippy::result_large_err, reason = "the request is moved either way, and never boxed")]
    pub fn submit(&mut self, request: Request) -> Result<(), SubmitError> {
        let now = self.now();
        self.client.submit(now, request)?;
        self.pump.touch();
        Ok(())
    }

    /// The next completion, if there is one.
    pub fn poll_completion(&mut self) -> Option<Completion> {
        let now = self.now();
        self.client.poll_completion(now)
    }

    /// Sleeps until the connection has something to do, until `until` at the latest, and does it.
    ///
    /// # Errors
    /// When the system refuses to wait.
    pub fn turn(&mut self, until: Option<Time>) -> Result<(), KernelError> {
        self.pump.turn(until, &mut self.client)
    }

    /// One request from its start to its end, for whoever has nothing else outstanding. Completions of
    /// others that end meanwhile are lost.
    ///
    /// # Errors
    /// Beside the pages, which come back whatever happens: why they were not moved, a deadline `within`
    /// which they should have been included. (Only when the system refuses to wait, some may be missing.)
    pub fn transfer(
        &mut self,
        op: Op,
        first: Slot,
        pages: PageVec,
        within: Span,
    ) -> (PageVec, Result<(), TransferError>) {
        let deadline = Some(self.now() + within);
        let request = Request { id: RequestId(u32::MAX), op, first, pages, deadline };
        match self.submit(request) {
            Ok(()) => {}
            Err(SubmitError::Full(request) | SubmitError::NotReady(request)) => {
                let error = match self.state() {
                    BackendState::Failed(error) => error.into(),
                    _ => TransferError::NotReady,
                };
                return (request.pages, Err(error));
            }
        }
        loop {
            if let Err(error) = self.turn(deadline) {
                return (PageVec::new(), Err(error.into()));
            }
            while let Some(end) = self.poll_completion() {
                if end.id == RequestId(u32::MAX) {
                    return (end.pages, end.outcome.map(|_| ()).map_err(TransferError::Store));
                }
            }
            if self.is_interrupted() {
                let mut pages = PageVec::new();
                self.give_up(&mut |end| {
                    if end.id == RequestId(u32::MAX) {
                        pages = end.pages;
                    }
                });
                return (pages, Err(TransferError::Interrupted));
            }
        }
    }

    /// Lets go of the server with requests outstanding; `each` sees what becomes of them, and their pages.
    pub(super) fn give_up(&mut self, each: &mut dyn FnMut(Completion)) {
        self.shutdown();
        while let Some(end) = self.poll_completion() {
            each(end);
        }
    }

    /// Lets go of the server.
    pub fn shutdown(&mut self) {
        let now = self.now();
        self.client.shutdown(now);
        self.pump.touch();
        // What it asks for now is to close the connection.
        let _ = self.turn(Some(now));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn starts_that_are_near_in_time_or_by_process_begin_far_apart() {
        let begun = 1_790_000_000_000_000_000;
        let starts = (0..32).map(|at| nonce(begun + at * 1_000_000, 77));
        let mut starts: Vec<u32> = starts.chain((78..110).map(|id| nonce(begun, id))).collect();
        starts.sort_unstable();
        // A thousand calls at each of 128 places.
        assert!(starts.windows(2).all(|pair| pair[1] - pair[0] > 128_000), "{starts:?}");
    }
}
