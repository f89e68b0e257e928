//! Puts a world together from its scenario.

use std::cell::RefCell;
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::path::Path;
use std::rc::Rc;

use netswap_iscsi::{InitiatorConfig, IscsiBackend, IscsiTarget, TargetConfig};
use netswap_net::{
    Flood, FloodConfig, LinkConfig, MacAddr, NetReserves, SimLink, SimNic, Stack, StackConfig,
};
use netswap_nfs::{NfsBackend, NfsConfig, NfsServer, NfsServerConfig};
use netswap_reserve::trace::{RecordError, Recording};
use netswap_reserve::{
    AllocError, BackingConfig, BackingError, FrameRun, InstalledPlan, PAGE_SIZE, PagePool,
    PoolConfig, PoolError, ReserveId, ReservePlan, Span, Time,
};
use netswap_swap::lackey::{self, TraceError};
use netswap_swap::machine::{
    ChannelId, Linear, Machine, MachineConfig, PatternDisk, Program, Reader, TraceProgram,
    Transacting, TransactionConfig, Way,
};
use netswap_swap::signature::Header;
use netswap_swap::{AreaOptions, Disk, MemDisk, Pager, PagerConfig, TaskId};

use super::liveness::{PatternSink, PatternSource};
use super::server::StoreServer;
use super::store::{FarDisk, StoreClient};
use super::{AreaLink, Flow, RunError, RunSpec, Side, Watch, World};
use crate::plan::{MTU, STREAM_BYTES, UNTAGGED_RX_BYTES, UNTAGGED_TX_BYTES};
use crate::scenario::{Ablation, Scenario, Store};

const HOST_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 1]);
const FAR_MAC: MacAddr = MacAddr([2, 0, 0, 0, 0, 2]);
const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 1);
const FAR: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 2);
const FLOODER: Ipv4Addr = Ipv4Addr::new(10, 0, 0, 3);
/// The untagged stream's port.
const LIVENESS_PORT: u16 = 5001;
/// The first flow's port.
const FLOW_PORT: u16 = 7000;

const EXPORT: &str = "/swap";
const TARGET: &str = "iqn.2026-01.net.swap:store";
const SWAP_FILE: &str = "area0";
const TEXT_FILE: &str = "text";

/// Connections that the far side takes at a time: one an area, and as many again that wait to be
/// noticed as gone.
const CONNECTIONS: usize = 4;
/// UNSTABLE writes that the far side can lose.
const UNCOMMITTED: usize = 32;
/// Writes that the far side can carry out late.
const HELD: usize = 8;
/// The far side's own memory, in frames: it is not under pressure.
const FAR_FRAMES: u32 = 8192;
/// Buffer of an allocator trace, in bytes a frame. It is emptied after each instant in which it became
/// half full, and in one instant each frame may be given back (3 to 5 bytes).
const ALLOC_TRACE_BYTES_PER_FRAME: usize = 16;
/// Packets that a card queues for sending.
const TX_QUEUE: usize = 256;
/// Pages that traced programs may map in all, and pages of text.
const TRACE_PAGES: u32 = 1 << 20;
const TEXT_PAGES: u32 = 1 << 18;

/// Everything a world borrows: the pools, and the runs of frames set aside at start.
pub(super) struct Memory {
    pool: PagePool,
    recording: Option<Recording>,
    plan: InstalledPlan,
    far_pool: PagePool,
    tagged: Vec<(FrameRun, FrameRun)>,
    untagged: (FrameRun, FrameRun),
    far: Vec<(FrameRun, FrameRun)>,
    /// The far side's disk, until the server has it.
    disk: Option<MemDisk>,
}

/// Why the memory of a run cannot be laid out.
#[derive(Debug, thiserror::Error)]
pub enum MemoryError {
    /// The host's RAM is too little for its buffers.
    #[error("cannot set memory aside: {0}")]
    SetAside(#[from] AllocError),
    /// This machine has too little for the simulated ones.
    #[error("no memory for the simulated host: {0}")]
    Pool(#[from] PoolError),
    /// The host's pool cannot be recorded.
    #[error("--alloc-trace: {0}")]
    Record(#[from] RecordError),
    /// This machine has too little for the simulated disk.
    #[error("no memory for the far side's disk: {0}")]
    Disk(#[from] BackingError),
}

fn pair(pool: &PagePool, rx: usize, tx: usize) -> Result<(FrameRun, FrameRun), AllocError> {
    let frames = |bytes: usize| bytes.div_ceil(PAGE_SIZE) as u32;
    Ok((pool.set_aside(frames(rx))?, pool.set_aside(frames(tx))?))
}

impl Memory {
    /// Lays out the memory of host and far side.
    pub(super) fn new(
        spec: &RunSpec,
        plan: &ReservePlan,
        areas: u32,
    ) -> Result<Memory, MemoryError> {
        let is_on = |a| !spec.ablate.contains(&a);
        let pool = PagePool::try_new(PoolConfig {
            // All of it will be used: it is committed before the clock starts.
            backing: BackingConfig { prefault: true, ..BackingConfig::default() },
            reserve: is_on(Ablation::Reserve),
            scope: is_on(Ablation::Scope),
            ..spec.scenario.pool()
        })?;
        let recording = match spec.alloc_trace {
            Some(_) => Some(pool.record(pool.frames() as usize * ALLOC_TRACE_BYTES_PER_FRAME)?),
            None => None,
        };
        let disk = disk(spec)?;
        let far_pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(FAR_FRAMES) });
        let tagged = (0..areas).map(|_| pair(&pool, STREAM_BYTES, STREAM_BYTES));
        let far = (0..=CONNECTIONS).map(|_| pair(&far_pool, STREAM_BYTES, STREAM_BYTES));
        Ok(Memory {
            plan: plan.install(&pool),
            tagged: tagged.collect::<Result<_, _>>()?,
            untagged: pair(&pool, UNTAGGED_RX_BYTES, UNTAGGED_TX_BYTES)?,
            far: far.collect::<Result<_, _>>()?,
            pool,
            recording,
            far_pool,
            disk: Some(disk),
        })
    }

    /// The recording of the host's pool, once.
    pub(super) fn take_recording(&mut self) -> Option<Recording> {
        self.recording.take()
    }

    pub(super) fn pool(&self) -> PagePool {
        self.pool.clone()
    }

    /// Frames of the host's pool that live as long as this.
    pub(super) fn set_aside_frames(&self) -> u32 {
        let runs = self.tagged.iter().chain(std::iter::once(&self.untagged));
        runs.map(|(rx, tx)| rx.frames() + tx.frames()).sum()
    }
}

/// Different uses of one seed draw different numbers.
fn subseed(seed: u64, use_: u64) -> u64 {
    (seed ^ use_.wrapping_mul(0x9e37_79b9_7f4a_7c15)).wrapping_mul(0xd134_2543_de82_ef95)
}

fn link_config(scenario: &Scenario) -> LinkConfig {
    let link = &scenario.link;
    // What fits the wire at a mean of 512 bytes a frame, in one direction, and as much again.
    let in_flight = link.rate.0 / 8 / 512 * round_trip(scenario).as_nanos() / 1_000_000_000;
    let default = LinkConfig::default();
    LinkConfig {
        slots: default.slots.max(in_flight as usize),
        rate_bps: link.rate.0,
        latency: link.latency.span(),
        jitter: link.jitter.span(),
        loss_ppm: link.loss.0 as u32,
        duplicate_ppm: link.duplicate.0 as u32,
        reorder_ppm: link.reorder.0 as u32,
        reorder_by: link.reorder_by.span(),
        corrupt_ppm: link.corrupt.0 as u32,
        mtu: MTU,
        ..default
    }
}

/// How long an answer takes at most on the scenario's link, when nothing is lost and nobody waits.
fn round_trip(scenario: &Scenario) -> Span {
    let link = &scenario.link;
    (link.latency.span() + link.jitter.span() + link.reorder_by.span()) * 2
}

/// Pages that have to be stored somewhere, and a quarter more: clusters need room to stay together.
fn swap_pages(spec: &RunSpec) -> u32 {
    let scenario = &spec.scenario;
    if !spec.traces.is_empty() {
        return TRACE_PAGES / 4;
    }
    let workers = scenario.workers() * scenario.pages_per_worker();
    let readers = scenario.flood.flows * scenario.flood.reader_pages;
    let pages = workers + readers;
    pages + pages / 4 + 1024
}

/// The far side's disk as `mkswap` left it. Tasks write all of it but the spare part; traced programs
/// as much as they touch, which nobody knows yet.
fn disk(spec: &RunSpec) -> Result<MemDisk, BackingError> {
    let pages = swap_pages(spec);
    let bytes = u64::from(pages) * PAGE_SIZE as u64;
    let is_used = spec.traces.is_empty();
    let mut disk = if is_used { MemDisk::prefaulted(bytes) } else { MemDisk::try_new(bytes) }?;
    let mut header = [0; PAGE_SIZE];
    Header::new(pages).write(&mut header);
    disk.write_at(0, &header).expect("the disk has a first page");
    Ok(disk)
}

fn server(spec: &RunSpec, pool: &PagePool, disk: MemDisk) -> StoreServer {
    let disk = FarDisk::Memory(disk);
    let text = (!spec.traces.is_empty()).then(|| FarDisk::Pattern(PatternDisk::new(TEXT_PAGES)));
    let seed = subseed(spec.scenario.seed, 3);
    match spec.store {
        Store::Nfs => {
            let config = NfsServerConfig {
                export: EXPORT.into(),
                seed,
                max_connections: CONNECTIONS,
                unstable: UNCOMMITTED,
                held: HELD,
                ..NfsServerConfig::default()
            };
            let mut server = NfsServer::new(config, pool).expect("the far side has memory");
            server.add_file(SWAP_FILE, disk);
            if let Some(text) = text {
                server.add_file(TEXT_FILE, text);
            }
            StoreServer::Nfs(server)
        }
        Store::Iscsi => {
            let config =
                TargetConfig { seed, max_connections: CONNECTIONS, ..TargetConfig::new(TARGET) };
            let mut target =
                IscsiTarget::new(config, pool.clone()).expect("the far side has memory");
            target.add_lun(0, disk, 512, false).expect("the disk is a whole number of blocks");
            if let Some(text) = text {
                target.add_lun(1, text, 4096, true).expect("the disk is a whole number of blocks");
            }
            StoreServer::Iscsi(target)
        }
    }
}

fn client(spec: &RunSpec, area: usize, port: u16) -> StoreClient {
    let remote = SocketAddr::V4(SocketAddrV4::new(FAR, port));
    // A full queue of writes takes several windows, and each window a round trip.
    let timeout = Span::from_secs(5) + round_trip(&spec.scenario) * 64;
    match spec.store {
        Store::Nfs => {
            let path = [SWAP_FILE, TEXT_FILE][area];
            let config = NfsConfig {
                write: spec.scenario.host.nfs_write.policy(),
                request_timeout: timeout,
                first_xid: subseed(spec.scenario.seed, 4 + area as u64) as u32,
                ..NfsConfig::new(remote, EXPORT, path)
            };
            StoreClient::Nfs(NfsBackend::new(config))
        }
        Store::Iscsi => {
            let config = InitiatorConfig {
                isid: [0x80, 0, 0, 0, 0, area as u8],
                request_timeout: timeout,
                ..InitiatorConfig::new(remote, TARGET, area as u16)
            };
            StoreClient::Iscsi(IscsiBackend::new(config))
        }
    }
}

fn reserve(plan: &InstalledPlan, path: &str) -> ReserveId {
    plan.id(path).expect("the plan has the network's reserves")
}

fn host_stack<'b>(spec: &RunSpec, pool: &PagePool, plan: &InstalledPlan) -> Stack<'b, SimNic> {
    let scenario = &spec.scenario;
    let is_on = |a| !spec.ablate.contains(&a);
    let config = StackConfig {
        tag: is_on(Ablation::Tag),
        drop: is_on(Ablation::Drop),
        udp_socket_bytes_max: scenario.flood.socket_bytes_max.0 as usize,
        udp_host_frames_max: scenario.host_queue_frames_max() as usize,
        seed: subseed(scenario.seed, 1),
        ..StackConfig::new(HOST_MAC, HOST).round_trip(round_trip(scenario))
    };
    let nic = SimNic::new(HOST_MAC, MTU, scenario.host.rx_ring as usize, TX_QUEUE);
    let reserves = NetReserves {
        net: reserve(plan, "net"),
        rx: reserve(plan, "net.rx"),
        tx: reserve(plan, "net.tx"),
    };
    Stack::new(config, nic, pool.clone(), Some(reserves))
}

/// A world with its areas added but not yet on, and no tasks.
pub(super) fn world<'b>(spec: &RunSpec, memory: &'b mut Memory) -> World<'b> {
    let scenario = &spec.scenario;
    let Memory { pool, plan, far_pool, tagged, untagged, far, disk, recording: _ } = memory;
    let disk = disk.take().expect("a world is made of its memory once");
    let now = Time::ZERO;

    let mut host = host_stack(spec, pool, plan);
    let far_config = StackConfig {
        seed: subseed(scenario.seed, 2),
        ..StackConfig::new(FAR_MAC, FAR).round_trip(round_trip(scenario))
    };
    let far_nic = SimNic::new(FAR_MAC, MTU, 256, TX_QUEUE);
    let mut far_stack = Stack::new(far_config, far_nic, far_pool.clone(), None);

    let server = server(spec, far_pool, disk);
    let mut far_streams =
        far.iter_mut().map(|(rx, tx)| far_stack.add_stream(rx.bytes_mut(), tx.bytes_mut(), false));
    let source_stream = far_streams.next().expect("one more than there are connections");
    let service: Vec<_> = far_streams.collect();
    for stream in &service {
        far_stack.listen(*stream, server.port());
    }

    let max_tasks = scenario.workers().max(spec.traces.len() as u32) + scenario.flood.flows;
    let max_pages = if spec.traces.is_empty() {
        swap_pages(spec)
    } else {
        TRACE_PAGES + scenario.flood.flows * scenario.flood.reader_pages
    };
    let config = PagerConfig {
        readahead_pages: scenario.host.readahead_pages as u8,
        quarantine: !spec.ablate.contains(&Ablation::Quarantine),
        ..PagerConfig::new(max_tasks, max_pages)
    };
    let mut pager = Pager::new(pool.clone(), config);
    let mut areas = Vec::new();
    for (i, (rx, tx)) in tagged.iter_mut().enumerate() {
        let options = AreaOptions {
            on_failure: scenario.host.on_failure.policy(),
            read_only: i == 1,
            ..AreaOptions::new([SWAP_FILE, TEXT_FILE][i])
        };
        let area = pager.add_area(now, client(spec, i, server.port()), options);
        areas
            .push(AreaLink { area, stream: host.add_stream(rx.bytes_mut(), tx.bytes_mut(), true) });
    }
    let (rx, tx) = untagged;
    let sink_stream = host.add_stream(rx.bytes_mut(), tx.bytes_mut(), false);
    host.listen(sink_stream, LIVENESS_PORT);

    let machine = Machine::new(MachineConfig {
        cpus: scenario.host.cpus as usize,
        seed: subseed(scenario.seed, 6),
        file_area: areas.get(1).map(|a| a.area),
        transactions: transactions(spec),
        ..MachineConfig::default()
    });
    let liveness = SocketAddr::V4(SocketAddrV4::new(HOST, LIVENESS_PORT));
    World {
        now,
        net_rx: reserve(plan, "net.rx"),
        net_tx: reserve(plan, "net.tx"),
        pool: pool.clone(),
        link: SimLink::new(link_config(scenario), subseed(scenario.seed, 7)),
        flood: None,
        flood_due: now,
        host,
        far: far_stack,
        pager,
        areas,
        machine,
        server,
        service,
        flows: Vec::new(),
        source: PatternSource::new(liveness, scenario.flood.liveness_bytes.0),
        source_stream,
        sink: PatternSink::new(scenario.flood.liveness_bytes.0),
        sink_stream,
        restarts: Vec::new(),
        restarts_done: 0,
        host_due: Side::default(),
        far_due: Side::default(),
        watch: Watch::new(),
        alloc_trace: None,
    }
}

/// What the transactions of tasks are, if there are any.
fn transactions(spec: &RunSpec) -> Option<TransactionConfig> {
    let pages = spec.scenario.host.transaction_pages;
    let is_reserved = !spec.ablate.contains(&Ablation::Reservation);
    let way = if is_reserved { Way::Reserve } else { Way::Loop };
    (pages > 0).then(|| TransactionConfig::new(pages, way))
}

/// `program`, with the transactions of the scenario.
fn with_transactions(scenario: &Scenario, program: impl Program + 'static) -> Box<dyn Program> {
    if scenario.host.transaction_pages == 0 {
        return Box::new(program);
    }
    Box::new(Transacting::new(Box::new(program), scenario.host.transaction_every))
}

/// Starts tasks, flood and faults at the present instant. Gives what is found wrong with the
/// traces as they are read.
///
/// # Errors
/// If a trace cannot be opened.
pub(super) fn start(
    world: &mut World<'_>,
    spec: &RunSpec,
) -> Result<Rc<RefCell<TraceHealth>>, RunError> {
    let scenario = &spec.scenario;
    world.disturb();
    let health = Rc::new(RefCell::new(TraceHealth::default()));
    if spec.traces.is_empty() {
        for _ in 0..scenario.workers() {
            let pages = scenario.pages_per_worker();
            let range = world.pager.map_anonymous(pages);
            let host = &scenario.host;
            let program = Linear::new(pages, host.rounds, host.dirty_percent);
            world.machine.spawn(with_transactions(scenario, program), range, false);
        }
    }
    for path in &spec.traces {
        let program = trace_program(path, health.clone())
            .map_err(|source| RunError::Trace { path: path.display().to_string(), source })?;
        let none = netswap_swap::PageId(0);
        world.machine.spawn(with_transactions(scenario, program), none..none, false);
    }
    if scenario.flood.percent > 0 {
        start_flood(world, scenario);
    }
    if let Some(at) = scenario.link.partition_at {
        let from = world.now + at.span();
        world.link.partition(from, from + scenario.link.partition_for.span());
    }
    world.server.set_faults(&scenario.server);
    world.restarts = scenario.server.restart_at.iter().map(|at| world.now + at.span()).collect();
    world.restarts.sort_unstable_by(|a, b| b.cmp(a));
    Ok(health)
}

fn start_flood(world: &mut World<'_>, scenario: &Scenario) {
    let spec = &scenario.flood;
    for i in 0..spec.flows {
        let socket = world.host.udp_bind(FLOW_PORT + i as u16);
        let range = world.pager.map_anonymous(spec.reader_pages);
        let program = Reader::new(ChannelId(i), spec.reader_pages);
        let reader: TaskId = world.machine.spawn(Box::new(program), range, true);
        world.flows.push(Flow { socket, port: FLOW_PORT + i as u16, reader });
    }
    let config = FloodConfig {
        first_port: FLOW_PORT,
        flows: spec.flows as u16,
        share_percent: spec.percent,
        payload_min: spec.payload_min as usize,
        payload_max: spec.payload_max as usize,
        period: spec.period.span(),
        fragmented_ppm: spec.fragmented.0 as u32,
        start: world.now,
        ..FloodConfig::new(HOST_MAC, HOST, FLOODER)
    };
    world.flood = Some(Flood::new(config, scenario.link.rate.0, subseed(scenario.seed, 8)));
}

/// When the last injected fault that has an end is over.
pub(super) fn faults_over(world: &World<'_>, scenario: &Scenario) -> Time {
    let partition = scenario
        .link
        .partition_at
        .map(|at| world.now + at.span() + scenario.link.partition_for.span());
    let restart = world.restarts.first().copied();
    partition.into_iter().chain(restart).max().unwrap_or(world.now)
}

/// What was wrong with the traces of a run.
#[derive(Debug, Default)]
pub(super) struct TraceHealth {
    /// Lines that could not be parsed.
    pub(super) malformed: u64,
    /// The first of them, for people.
    pub(super) first: Vec<String>,
    /// Why a trace ended before its end.
    pub(super) error: Option<String>,
}

fn trace_program(
    path: &Path,
    health: Rc<RefCell<TraceHealth>>,
) -> Result<TraceProgram, TraceError> {
    let mut reader = lackey::open(path)?;
    let shown = path.display().to_string();
    // The first access is read here, so that a file that is no trace is refused before the run.
    let mut first = reader.next().transpose()?;
    let accesses = std::iter::from_fn(move || {
        if let Some(access) = first.take() {
            return Some(access);
        }
        match reader.next() {
            Some(Ok(access)) => Some(access),
            end => {
                let mut health = health.borrow_mut();
                let stats = reader.stats();
                health.malformed += stats.malformed;
                let lines = stats.first_malformed.iter().map(|line| format!("{shown}: {line}"));
                health.first.extend(lines);
                if let Some(Err(error)) = end {
                    health.error = Some(format!("trace {shown}: {error}"));
                }
                None
            }
        }
    });
    Ok(TraceProgram::new(Box::new(accesses)))
}
