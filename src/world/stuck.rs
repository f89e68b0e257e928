//! Why nothing moves: the wait-for graph of a world, drawn from its queues as they are.
//!
//! Nothing here looks at which protection was switched off. Who waits is read from the machine and the
//! pager, what is outstanding from the store clients, who holds frames from the socket queues, and what
//! a missing buffer waits for from the watermarks and the reserve tree. A protection is named only
//! where the state shows its absence: a floor of zero under a connected reserve, a reserve that no
//! socket connected, a reserve held by the queues of untagged sockets, a send refused at a watermark
//! while its own reserve has room, a transaction that holds pages and was promised none.

use std::collections::BTreeMap;

use netswap_net::Device;
use netswap_reserve::explain::{NodeId, NodeKind, Verdict, WaitGraph};
use netswap_reserve::{AllocError, ReserveId, Time};
use netswap_swap::machine::{OpenTransaction, TaskState, TransactionWait};
use netswap_swap::{AreaId, IoPhase, Outstanding, PagerWait, RequestId, Slot, SwapBackend, TaskId};

use super::World;

/// What a stuck machine says.
pub(super) struct Stuck {
    /// Whether it is a cycle through memory.
    pub(super) is_deadlock: bool,
    /// The explanation, for people.
    pub(super) text: String,
}

/// Explains why `world` has not moved since `since`; tasks began at `started`.
pub(super) fn explain(world: &World<'_>, started: Time, since: Time) -> Stuck {
    let from_start = |at: Time| Time::ZERO + at.since(started);
    let mut draw = Draw::new(world, since);
    draw.holders();
    draw.transactions();
    draw.missing_protections();
    draw.waits();
    match draw.graph.analyse() {
        Verdict::Deadlock(cycle) => {
            Stuck { is_deadlock: true, text: cycle.explain(from_start(since)) }
        }
        Verdict::Moves => Stuck {
            is_deadlock: false,
            text: format!("no task has moved since {since}, but the wait-for graph says one could"),
        },
        Verdict::NoCycle { ends } => {
            let ends: Vec<String> = ends.iter().map(|end| format!("  {end}\n")).collect();
            Stuck {
                is_deadlock: false,
                text: format!(
                    "stuck since {since}, and no cycle goes through memory; the waiting ends at\n{}",
                    ends.concat()
                ),
            }
        }
    }
}

struct Draw<'w, 'b> {
    world: &'w World<'b>,
    since: Time,
    graph: WaitGraph,
    tasks: Vec<NodeId>,
    /// What frees frames for tasks.
    reclaim: NodeId,
    /// Frames that could fill the receive ring.
    rx_frames: NodeId,
    /// Frames that packets could be built in.
    tx_frames: NodeId,
    requests: BTreeMap<(AreaId, RequestId), NodeId>,
}

impl<'w, 'b> Draw<'w, 'b> {
    fn new(world: &'w World<'b>, since: Time) -> Draw<'w, 'b> {
        let mut graph = WaitGraph::new();
        let tasks = (0..world.machine.tasks() as u32).map(TaskId);
        let tasks = tasks
            .map(|task| graph.node(format!("task {}", task.0), kind_of(world.machine.state(task))))
            .collect();
        let reclaim = graph.node("reclaim", NodeKind::Any);
        let rx_frames = graph.node("frames", NodeKind::Any);
        let tx_frames = graph.node("frames", NodeKind::Any);
        for node in [reclaim, rx_frames, tx_frames] {
            graph.memory(node);
        }
        let requests = BTreeMap::new();
        Draw { world, since, graph, tasks, reclaim, rx_frames, tx_frames, requests }
    }

    /// Whose frames would come back if they went on: the queues of untagged sockets. Any of them would
    /// do, for a packet as for a task; and a packet could also use what reclaim frees.
    fn holders(&mut self) {
        // The largest holder first: it is the one that a cycle is best told with.
        let mut holders: Vec<_> =
            self.world.flows.iter().map(|f| (self.world.host.udp_len(f.socket), f)).collect();
        holders.sort_by_key(|(held, _)| std::cmp::Reverse(*held));
        for (held, flow) in holders.into_iter().filter(|(held, _)| *held > 0) {
            let phrase = format!("held by udp:{} (untagged)", flow.port);
            let detail = format!("{held} frames, reader: task {}", flow.reader.0);
            let reader = self.tasks[flow.reader.0 as usize];
            for frames in [self.rx_frames, self.tx_frames] {
                self.graph.edge(frames, reader, phrase.clone(), detail.clone());
            }
            self.graph.edge_aside(
                self.reclaim,
                reader,
                format!("lacks the frames {phrase}"),
                detail,
            );
        }
        for frames in [self.rx_frames, self.tx_frames] {
            self.graph.edge_aside(frames, self.reclaim, "could come from reclaim", "");
        }
    }

    /// The transactions that are open: who holds pages for one, and who waits for more. What they hold
    /// comes back when they end, and reclaim has what nobody holds.
    fn transactions(&mut self) {
        let machine = &self.world.machine;
        let mut open = Vec::new();
        machine.visit_transactions(&mut |transaction| open.push(transaction));
        open.retain(|transaction| transaction.held > 0);
        // The largest holder first, as of queues; of equals the first task.
        open.sort_by_key(|transaction| std::cmp::Reverse(transaction.held));
        if !open.is_empty() {
            let held: u32 = open.iter().map(|transaction| transaction.held).sum();
            let frames = self.graph.node("the frames", NodeKind::Any);
            self.graph.memory(frames);
            let resident = self.world.pager.resident_pages();
            let what = match open.len() {
                1 => "one transaction".to_string(),
                n => format!("{n} transactions"),
            };
            self.graph.edge(
                self.reclaim,
                frames,
                format!("lacks the frames of {what}"),
                format!("{held} frames; {resident} pages are left to reclaim"),
            );
            for transaction in &open {
                let task = transaction.task.0;
                self.graph.edge(
                    frames,
                    self.tasks[task as usize],
                    format!("come back when that of task {task} ends"),
                    format!("it has {} of {} pages", transaction.held, transaction.pages),
                );
            }
            let is_looping = |t: &OpenTransaction| {
                let wait = TaskState::Transacting(TransactionWait::Page);
                !t.is_reserved && *machine.state(t.task) == wait
            };
            if open.iter().any(is_looping) {
                self.graph.allowed_by(frames, "reservation");
            }
        }
        let free = self.free();
        for (task, node) in self.tasks.iter().enumerate() {
            let phrase = match machine.state(TaskId(task as u32)) {
                TaskState::Transacting(TransactionWait::Page) => "tries again for a page",
                TaskState::Transacting(TransactionWait::Reservation) => "waits for a reservation",
                _ => continue,
            };
            self.graph.edge(*node, self.reclaim, phrase, free.clone());
        }
    }

    /// How many frames are free, for people.
    fn free(&self) -> String {
        let pool = &self.world.pool;
        let marks = pool.watermarks();
        let (free, frames) = (pool.free_frames(), pool.frames());
        format!("{free} of {frames} free, floor {}, min {}", marks.floor, marks.min)
    }

    /// Names the protections whose absence the state of the buffers shows.
    fn missing_protections(&mut self) {
        let pool = &self.world.pool;
        let (rx, tx) = (self.world.net_rx, self.world.net_tx);
        let is_connected = pool.reserve_limit(ReserveId::ROOT) > 0;
        let floor_is_missing = is_connected && pool.watermarks().floor == 0;
        let has_room = |id| pool.reserve_usage(id) < pool.reserve_limit(id);
        if !is_connected {
            self.graph.allowed_by(self.rx_frames, "tag");
            self.graph.allowed_by(self.tx_frames, "tag");
        } else if floor_is_missing {
            self.graph.allowed_by(self.rx_frames, "reserve");
            self.graph.allowed_by(self.tx_frames, "reserve");
        } else {
            // The ring is empty, so what is charged to its reserve waits in untagged queues.
            if self.ring_is_empty() && !has_room(rx) && self.world.host.udp_held() > 0 {
                self.graph.allowed_by(self.rx_frames, "drop");
            }
            if has_room(tx) {
                self.graph.allowed_by(self.tx_frames, "scope");
            }
        }
    }

    /// Every task that waits and every request, and for what.
    fn waits(&mut self) {
        let free = self.free();
        let mut waits = Vec::new();
        self.world.pager.visit_waits(&mut |wait| waits.push(wait));
        for wait in waits {
            match wait {
                PagerWait::Frame { task, .. } => {
                    let task = self.tasks[task.0 as usize];
                    self.graph.edge(task, self.reclaim, "waits for a frame", free.clone());
                }
                PagerWait::Io { task, area, slot, request, phase, .. } => {
                    let (io, phrase, detail) = self.request(area, slot, request, phase);
                    self.graph.edge(self.tasks[task.0 as usize], io, phrase, detail);
                }
                PagerWait::Reclaim { area, slot, request, phase, .. } => {
                    let (io, phrase, detail) = self.request(area, slot, request, phase);
                    self.graph.edge(self.reclaim, io, phrase, detail);
                }
                PagerWait::NoSlots => {
                    let slots = self.graph.node("slots", NodeKind::Any);
                    self.graph.edge(self.reclaim, slots, "waits for a slot", "all areas are full");
                }
            }
        }
    }

    /// The node of a request, and how to say that one waits for it.
    fn request(
        &mut self,
        area: AreaId,
        slot: Slot,
        request: RequestId,
        phase: IoPhase,
    ) -> (NodeId, String, String) {
        let outstanding = self.outstanding(area, request);
        let name = match &outstanding {
            Some(o) => format!("{} {} {}", o.verb, o.tag_name, o.tag),
            None => format!("the request of slot {}", slot.0),
        };
        let state = match (&outstanding, phase) {
            (Some(o), _) => match o.phase {
                netswap_swap::Phase::Queued => "not sent",
                netswap_swap::Phase::Sent => "sent, unanswered",
                netswap_swap::Phase::Disconnected => "no connection",
            },
            (None, IoPhase::BackingOff) => "to be tried again",
            (None, _) => "not submitted",
        };
        let phrase = format!("waits for {name}");
        let detail = format!("(slot {}, {state})", slot.0);
        if let Some(node) = self.requests.get(&(area, request)) {
            return (*node, phrase, detail);
        }
        let node = self.request_node(area, name, outstanding.is_some(), phase);
        self.requests.insert((area, request), node);
        (node, phrase, detail)
    }

    fn request_node(
        &mut self,
        area: AreaId,
        name: String,
        is_outstanding: bool,
        phase: IoPhase,
    ) -> NodeId {
        if phase == IoPhase::BackingOff {
            return self.graph.node(name, NodeKind::Moving);
        }
        if !is_outstanding {
            // It waits for its turn behind those that the backend has.
            let node = self.graph.node(name, NodeKind::Any);
            let mut ahead = Vec::new();
            self.world.pager.backend(area).outstanding(&mut |o| ahead.push(o));
            for o in ahead {
                let (other, phrase, detail) = self.request(area, o.first, o.id, IoPhase::Submitted);
                self.graph.edge(node, other, phrase, detail);
            }
            return node;
        }
        let (refusal, ring_is_empty) = (self.refusal(area), self.ring_is_empty());
        // With buffers for both ways the network will carry it.
        let kind =
            if refusal.is_some() || ring_is_empty { NodeKind::All } else { NodeKind::Moving };
        let node = self.graph.node(name, kind);
        if let Some(detail) = refusal {
            self.graph.edge(node, self.tx_frames, "waits for a packet buffer to be sent", detail);
        }
        if ring_is_empty {
            let ring = self.world.host.device().rx_ring();
            let detail = format!("{ring} of {ring} ring slots empty");
            self.graph.edge(
                node,
                self.rx_frames,
                "waits for a receive buffer for its reply",
                detail,
            );
        }
        node
    }

    fn outstanding(&self, area: AreaId, request: RequestId) -> Option<Outstanding> {
        let mut found = None;
        self.world.pager.backend(area).outstanding(&mut |o| {
            if o.id == request {
                found = Some(o);
            }
        });
        found
    }

    fn ring_is_empty(&self) -> bool {
        let nic = self.world.host.device();
        nic.rx_unfilled() == nic.rx_ring()
    }

    /// Why a packet of the area's stream could not be built, if that happened since the machine last
    /// moved.
    fn refusal(&self, area: AreaId) -> Option<String> {
        let link = self.world.areas.iter().find(|link| link.area == area)?;
        let failure = self.world.host.tx_alloc_failure_of(link.stream)?;
        (failure.at >= self.since).then(|| match failure.error {
            AllocError::AtWatermark { free, watermark } => {
                format!("{free} free, this send stops at {watermark}")
            }
            error => error.to_string(),
        })
    }
}

/// A task that faults waits for what the pager says, one in a transaction for memory; one that receives
/// waits for the world outside, and a log is written in its time.
fn kind_of(state: &TaskState) -> NodeKind {
    match state {
        TaskState::Faulting { .. }
        | TaskState::Transacting(TransactionWait::Page | TransactionWait::Reservation) => {
            NodeKind::All
        }
        _ => NodeKind::Moving,
    }
}
