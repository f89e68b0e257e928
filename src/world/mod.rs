//! A whole simulated world: a host that pages, a link, a far side that stores, a flood.
//!
//! It only puts parts together and moves virtual time: every mechanism is a state machine of one of
//! the crates, and is polled here in a fixed order. One call of `World::step` carries out all that is
//! due at one instant.
//!
//! ```text
//!   machine --faults--> pager --requests--> store client ==stream==> store server --> disk
//!      ^                                        |                        |
//!      +--- readers <--- udp queues --------- host stack == link == far stack
//!                                               ^
//!                                             flood
//! ```
//!
//! Transactions of tasks are run by the machine, and take their frames from the host's pool, as all else
//! of the host does.

mod alloc_trace;
mod assemble;
mod bounds;
mod hash;
mod liveness;
mod run;
mod server;
pub(crate) mod store;
mod stuck;

use hdrhistogram::Histogram;
use netswap_net::{End, Flood, SimLink, SimNic, Stack, StreamId, UdpId};
use netswap_reserve::{PagePool, ReserveId, Span, Time};
use netswap_swap::machine::{ChannelId, Machine, MachineEvent, Outside};
use netswap_swap::{AreaId, MapError, PageError, Pager, PagerEvent, SwapBackend, TaskId};

pub use assemble::MemoryError;
pub use bounds::{QueueBounds, QueueBoundsError};
pub use run::{RunError, RunSpec, run};

use alloc_trace::AllocTrace;
use hash::{Happened, TraceHash};
use liveness::{PatternSink, PatternSource};
use server::StoreServer;
use store::StoreClient;

/// A machine in which nothing moved for this long is stuck.
const STUCK_AFTER: Span = Span::from_secs(150);

/// How long a card waits for further packets before it interrupts. Common cards wait 3 to 100 us by
/// default; at 1 Gbit/s this is less than half of a ring of 64 even with the smallest packets.
const INTERRUPT_DELAY: Span = Span::from_micros(20);

/// Packets of the flood are handed to the link in groups of so much time.
const FLOOD_BATCH: Span = Span::from_micros(10);

/// An area that is swapped to, and the stream that leads to it.
struct AreaLink {
    area: AreaId,
    stream: StreamId,
}

/// A UDP flow: its socket, and the task that reads it.
struct Flow {
    socket: UdpId,
    port: u16,
    reader: TaskId,
}

struct World<'b> {
    now: Time,
    pool: PagePool,
    net_rx: ReserveId,
    net_tx: ReserveId,
    host: Stack<'b, SimNic>,
    far: Stack<'b, SimNic>,
    link: SimLink,
    flood: Option<Flood>,
    flood_due: Time,
    pager: Pager<StoreClient>,
    areas: Vec<AreaLink>,
    machine: Machine,
    server: StoreServer,
    /// The far side's sockets that serve the store, by connection number.
    service: Vec<StreamId>,
    flows: Vec<Flow>,
    source: PatternSource,
    source_stream: StreamId,
    sink: PatternSink,
    sink_stream: StreamId,
    /// Restarts of the server that are still to come, the next one last.
    restarts: Vec<Time>,
    restarts_done: u64,
    host_due: Side,
    far_due: Side,
    watch: Watch,
    alloc_trace: Option<AllocTrace>,
}

/// When one side of the link has to be looked at.
///
/// A side changes only when it is stepped or when its card receives, so its deadline is asked once
/// after each step, and its card's interrupt is all that can come before. When that comes is known as
/// soon as a packet is in flight: nobody has to be there when it arrives.
#[derive(Default)]
struct Side {
    /// The earliest deadline of its parts; `None` is at once.
    deadline: Option<Time>,
    /// When the first of the packets arrived that wait in the card.
    arrived: Option<Time>,
}

impl Side {
    /// After the link was polled: `waiting` packets are in the card; before that the next one was to
    /// come at `arrival`. On a very short link one may also be sent and arrive within one poll.
    fn packets(&mut self, now: Time, arrival: Option<Time>, waiting: usize) {
        let first = arrival.map_or(now, |at| at.min(now));
        self.arrived = (waiting > 0).then(|| self.arrived.unwrap_or(first));
    }

    fn is_due(&self, now: Time) -> bool {
        self.next(None).is_none_or(|at| at <= now)
    }

    /// When it is due, with a packet in flight that arrives at `arrival`.
    fn next(&self, arrival: Option<Time>) -> Option<Time> {
        let interrupt = self.arrived.or(arrival).map_or(Time::MAX, |at| at + INTERRUPT_DELAY);
        self.deadline.map(|deadline| deadline.min(interrupt))
    }
}

/// What a run is judged by.
struct Watch {
    hash: TraceHash,
    latency: Histogram<u64>,
    /// When a task or a page last moved.
    moved: Time,
    /// Page I/Os and datagrams taken, when it was last looked.
    seen: u64,
    killed: Option<(TaskId, PageError)>,
    no_pages: Option<(TaskId, MapError)>,
    areas_on: usize,
    area_refused: Option<String>,
}

impl Watch {
    fn new() -> Watch {
        Watch {
            hash: TraceHash::new(),
            // A day in nanoseconds, three significant digits.
            latency: Histogram::new_with_bounds(1, 86_400_000_000_000, 3)
                .expect("the bounds are in order"),
            moved: Time::ZERO,
            seen: 0,
            killed: None,
            no_pages: None,
            areas_on: 0,
            area_refused: None,
        }
    }
}

/// The sockets of the flows, as the machine's tasks see them.
struct Sockets<'a, 'b> {
    host: &'a mut Stack<'b, SimNic>,
    flows: &'a [Flow],
}

impl Outside for Sockets<'_, '_> {
    fn is_waiting(&mut self, channel: ChannelId) -> bool {
        self.host.udp_len(self.flows[channel.0 as usize].socket) > 0
    }

    fn take(&mut self, channel: ChannelId) -> Option<usize> {
        let datagram = self.host.udp_recv(self.flows[channel.0 as usize].socket)?;
        Some(datagram.payload.len())
    }
}

impl World<'_> {
    /// Carries out all that is due now.
    fn step(&mut self) {
        let now = self.now;
        while self.restarts.last().is_some_and(|at| *at <= now) {
            self.restarts.pop();
            self.restart_server();
        }
        if let Some(flood) = self.flood.as_mut().filter(|_| self.flood_due <= now) {
            flood.poll(now, &mut self.link);
            // Each packet carries its own time: a few at once are the same to the link.
            self.flood_due = flood.poll_deadline().map_or(Time::MAX, |at| at + FLOOD_BATCH);
        }
        self.poll_link();
        let mut moved = false;
        if self.host_due.is_due(now) {
            self.step_host();
            self.host_due = Side { deadline: Some(self.host_deadline()), arrived: None };
            moved = true;
        }
        if self.far_due.is_due(now) {
            self.step_far();
            self.far_due = Side { deadline: Some(self.far_deadline()), arrived: None };
            moved = true;
        }
        if moved {
            self.poll_link();
        }
        if let Some(trace) = &mut self.alloc_trace {
            trace.poll();
        }
    }

    fn poll_link(&mut self) {
        let now = self.now;
        let (to_host, to_far) = (self.link.arrival(End::A), self.link.arrival(End::B));
        self.link.poll(now, self.host.device_mut(), self.far.device_mut());
        self.host_due.packets(now, to_host, self.host.device().rx_waiting());
        self.far_due.packets(now, to_far, self.far.device().rx_waiting());
    }

    fn step_host(&mut self) {
        let now = self.now;
        self.host.poll(now);
        self.drive_host();
        self.poll_pager();
        self.wake_readers();
        let mut sockets = Sockets { host: &mut self.host, flows: &self.flows };
        if self.machine.poll(now, &mut self.pager, &mut sockets) {
            self.watch.moved = now;
        }
        self.poll_machine();
        self.poll_pager();
        self.drive_host();
        self.host.poll(now);
    }

    fn drive_host(&mut self) {
        for link in &self.areas {
            self.host.drive(self.now, link.stream, self.pager.backend_mut(link.area));
        }
        self.host.drive(self.now, self.sink_stream, &mut self.sink);
    }

    fn step_far(&mut self) {
        let now = self.now;
        self.far.poll(now);
        for (i, stream) in self.service.iter().enumerate() {
            self.server.drive(now, &mut self.far, *stream, i);
        }
        self.far.drive(now, self.source_stream, &mut self.source);
        self.far.poll(now);
    }

    fn wake_readers(&mut self) {
        for flow in &self.flows {
            if self.host.udp_len(flow.socket) > 0 {
                self.machine.wake_receiver(flow.reader);
            }
        }
    }

    fn poll_pager(&mut self) {
        let now = self.now;
        while let Some(event) = self.pager.poll(now, self.machine.tables()) {
            self.machine.handle_pager_event(now, &event);
            match event {
                PagerEvent::AreaOn { .. } => self.watch.areas_on += 1,
                PagerEvent::AreaRefused { error, .. } => {
                    self.watch.area_refused = Some(error.to_string());
                }
                _ => {}
            }
        }
        let stats = self.pager.stats();
        let seen = stats.page_ins + stats.page_outs;
        if seen != self.watch.seen {
            self.watch.seen = seen;
            self.watch.moved = now;
            self.watch.hash.add(now, Happened::Completion, stats.page_ins, stats.page_outs);
        }
        self.poll_machine();
    }

    fn poll_machine(&mut self) {
        let now = self.now;
        while let Some(event) = self.machine.poll_event() {
            let hash = &mut self.watch.hash;
            match event {
                MachineEvent::FaultServed { task, page, waited } => {
                    hash.add(now, Happened::FaultServed, task.0.into(), page.0.into());
                    self.watch.latency.saturating_record(waited.as_nanos());
                }
                MachineEvent::Finished(task) => {
                    hash.add(now, Happened::Finished, task.0.into(), 0);
                }
                MachineEvent::Killed(task, error) => {
                    hash.add(now, Happened::Killed, task.0.into(), 0);
                    self.watch.killed.get_or_insert((task, error));
                }
                MachineEvent::NoPages(task, error) => {
                    hash.add(now, Happened::Killed, task.0.into(), 0);
                    self.watch.no_pages.get_or_insert((task, error));
                }
                MachineEvent::WrongContent(task, page) => {
                    hash.add(now, Happened::WrongContent, task.0.into(), page.0.into());
                }
                MachineEvent::Transacted(task) => {
                    hash.add(now, Happened::Transacted, task.0.into(), 0);
                }
            }
        }
    }

    /// The far side restarts: its connections and the answers it owed are forgotten.
    fn restart_server(&mut self) {
        self.restarts_done += 1;
        self.disturb();
        self.server.restart(self.now);
        for stream in &self.service {
            self.far.reset_stream(*stream);
        }
    }

    fn host_deadline(&self) -> Time {
        let clients = self.areas.iter().flat_map(|a| {
            let client = self.pager.backend(a.area);
            [SwapBackend::poll_deadline(client), netswap_net::Session::poll_deadline(client)]
        });
        let own = [
            self.host.poll_deadline(self.now),
            self.pager.poll_deadline(),
            self.machine.poll_deadline(),
        ];
        own.into_iter().chain(clients).flatten().min().unwrap_or(Time::MAX)
    }

    fn far_deadline(&mut self) -> Time {
        let own =
            [self.far.poll_deadline(self.now), netswap_net::Session::poll_deadline(&self.source)];
        let connections = (0..self.service.len()).map(|i| self.server.deadline(i));
        own.into_iter().chain(connections).flatten().min().unwrap_or(Time::MAX)
    }

    /// Moves virtual time to the next instant at which something is due; false if nothing ever is.
    fn advance(&mut self) -> bool {
        let next = [
            self.link.send_deadline(),
            self.flood.as_ref().map(|_| self.flood_due),
            self.host_due.next(self.link.arrival(End::A)),
            self.far_due.next(self.link.arrival(End::B)),
            self.restarts.last().copied(),
        ];
        match next.into_iter().flatten().min() {
            None | Some(Time::MAX) => false,
            // Whatever is already due again moves the clock by the least there is, so that a part
            // that always wants to be polled cannot stop time.
            Some(at) => {
                self.now = at.max(self.now + Span::from_nanos(1));
                true
            }
        }
    }

    /// Something was changed from outside: both sides are to be looked at.
    fn disturb(&mut self) {
        self.host_due.deadline = None;
        self.far_due.deadline = None;
    }

    /// Faults injected so far, by name.
    fn faults(&self) -> std::collections::BTreeMap<&'static str, u64> {
        let link = self.link.stats().total();
        let mut faults = self.server.faults();
        faults.insert("server restart", self.restarts_done);
        faults.insert("link loss", link.lost);
        faults.insert("link duplicate", link.duplicated);
        faults.insert("link reorder", link.reordered);
        faults.insert("link corrupt", link.corrupted);
        faults.insert("link partition", link.partitioned);
        faults
    }
}
