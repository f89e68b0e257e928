//! One run from start to verdict.

use std::path::PathBuf;
use std::time::Instant;

use netswap_reserve::trace::RecordError;
use netswap_reserve::{ReserveId, Span, Time};
use netswap_swap::lackey::TraceError;
use netswap_swap::machine::TaskState;
use netswap_swap::{PageError, TaskId};

use super::alloc_trace::AllocTrace;
use super::assemble::{self, Memory, MemoryError};
use super::hash::Happened;
use super::stuck::{self, Stuck};
use super::{STUCK_AFTER, World};
use crate::plan::host_plan;
use crate::report::{Exercise, Latency, Outcome, Row};
use crate::scenario::{Ablation, Scenario, ScenarioError, Store};

/// What is to be run.
#[derive(Clone, Debug)]
pub struct RunSpec {
    /// The scenario.
    pub scenario: Scenario,
    /// Where pages go.
    pub store: Store,
    /// The protections that are off.
    pub ablate: Vec<Ablation>,
    /// Traces to replay, a task each, instead of the scenario's own tasks.
    pub traces: Vec<PathBuf>,
    /// Where every operation of the host's page pool is recorded to; compressed if its name ends in
    /// `.zst`.
    pub alloc_trace: Option<PathBuf>,
    /// Whether a protected run that did not meet what it is protected from counts as failed.
    pub must_be_exercised: bool,
}

impl RunSpec {
    /// A run of `scenario` with all protections on, for its outcome alone.
    pub fn protected(scenario: Scenario, store: Store) -> RunSpec {
        RunSpec {
            scenario,
            store,
            ablate: Vec::new(),
            traces: Vec::new(),
            alloc_trace: None,
            must_be_exercised: false,
        }
    }

    /// Checks that what is asked for goes together.
    ///
    /// # Errors
    /// If tasks have nothing to touch, a protection is to be switched off that the scenario has no use
    /// for, or a pool recorded that promises reservations.
    pub fn check(&self) -> Result<(), RunError> {
        if self.traces.is_empty() {
            self.scenario.check_mappings()?;
        }
        if let Some(off) = self.ablate.iter().find(|a| !self.scenario.has_use_for(**a)) {
            return Err(RunError::NothingToAblate { name: off.name() });
        }
        let is_reserving = self.scenario.host.transaction_pages > 0
            && !self.ablate.contains(&Ablation::Reservation);
        if self.alloc_trace.is_some() && is_reserving {
            return Err(RunError::ReservationsNotTraced);
        }
        Ok(())
    }
}

/// Why a run could not begin.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// The scenario makes no sense.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// A protection is to be switched off, and nothing would change.
    #[error(
        "without transactions nothing is reserved: --ablate {name} would switch nothing off; give the \
         scenario some with --transaction-pages"
    )]
    NothingToAblate {
        /// The protection.
        name: &'static str,
    },
    /// The allocator trace has no operation for reservations.
    #[error(
        "--alloc-trace: a trace has no operation for reservations, which the transactions of this \
         scenario make; --transaction-pages 0 or --ablate reservation is a run without"
    )]
    ReservationsNotTraced,
    /// A trace cannot be used.
    #[error("trace {path}: {source}")]
    Trace {
        /// The file.
        path: String,
        /// Why.
        source: TraceError,
    },
    /// The allocator trace cannot be written.
    #[error("allocator trace {path}: {source}")]
    AllocTrace {
        /// The file.
        path: String,
        /// Why.
        source: RecordError,
    },
    /// The memory of the simulated hosts cannot be laid out.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// How the loop ended.
enum End {
    Completed,
    Stuck(Stuck),
    Failed(String),
    Corrupt(String),
}

/// The longest that areas may take to come on, in virtual time: several reconnects.
const SWAPON_WITHIN: Span = Span::from_secs(60);
/// How long page I/O that tasks left behind may take after the end: the longest late answer, and the
/// reconnects that it may cost.
const IDLE_WITHIN: Span = Span::from_secs(120);
/// How long closing connections may take after that.
const DRAIN_FOR: Span = Span::from_secs(5);

/// Runs `spec`; `progress` is told the share that is done, from 0 to 1.
///
/// # Errors
/// If the run cannot begin. How a run that began ended is in the row.
pub fn run(spec: &RunSpec, progress: &mut dyn FnMut(f64)) -> Result<Row, RunError> {
    let setup = Instant::now();
    spec.check()?;
    let areas = if spec.traces.is_empty() { 1 } else { 2 };
    let plan = host_plan(&spec.scenario, areas);
    spec.scenario.check(&plan)?;
    let mut memory = Memory::new(spec, &plan, areas)?;
    let pool = memory.pool();
    let mut alloc_trace = AllocTrace::open(spec, &mut memory)?;
    let set_aside = memory.set_aside_frames();
    let setup_s = setup.elapsed().as_secs_f64();
    let wall = Instant::now();
    let mut row;
    {
        let mut world = assemble::world(spec, &mut memory);
        world.alloc_trace = alloc_trace.take();
        let mut health = Default::default();
        let (end, started) = match swapon(&mut world, areas as usize) {
            Err(why) => (End::Failed(why), world.now),
            Ok(()) => {
                let started = world.now;
                health = assemble::start(&mut world, spec)?;
                (main_loop(&mut world, spec, progress), started)
            }
        };
        row = judge(&mut world, spec, end, started);
        let health = health.borrow();
        row.malformed_lines = health.malformed;
        row.malformed_first.clone_from(&health.first);
        if let Some(error) = &health.error {
            row.outcome = Outcome::Failed;
            row.reason = Some(error.clone());
        }
        if row.outcome == Outcome::Completed {
            if let Err(why) = drain(&mut world) {
                row.outcome = Outcome::Failed;
                row.reason = Some(why);
            }
            row.trace_hash = world.watch.hash.finish();
        }
        row.faults = world.faults();
        row.reserve_report = pool.reserve_report();
        alloc_trace = world.alloc_trace.take();
    }
    if let Some(trace) = alloc_trace {
        trace.finish(spec)?;
    }
    if row.outcome == Outcome::Completed {
        check_memory(&pool, set_aside, &mut row);
    }
    row.setup_s = setup_s;
    row.wall_s = wall.elapsed().as_secs_f64();
    Ok(row)
}

fn swapon(world: &mut World<'_>, areas: usize) -> Result<(), String> {
    while world.watch.areas_on < areas {
        world.step();
        if let Some(why) = world.watch.area_refused.take() {
            return Err(format!("the area did not come on: {why}"));
        }
        if !world.advance() || world.now > Time::ZERO + SWAPON_WITHIN {
            return Err(format!("the area did not come on within {SWAPON_WITHIN}"));
        }
    }
    Ok(())
}

fn main_loop(world: &mut World<'_>, spec: &RunSpec, progress: &mut dyn FnMut(f64)) -> End {
    let scenario = &spec.scenario;
    let accesses = u64::from(scenario.workers() * scenario.pages_per_worker())
        * u64::from(1 + scenario.host.rounds);
    let faults_over = assemble::faults_over(world, scenario);
    let started = world.now;
    world.watch.moved = started;
    let mut steps = 0u64;
    loop {
        world.step();
        let stats = world.machine.stats();
        if stats.pages_wrong > 0 {
            return End::Corrupt("a task read a page that is not what it wrote".into());
        }
        if let Some((task, error)) = world.watch.killed.take() {
            return match error {
                PageError::Damaged { .. } => End::Corrupt(format!("task {}: {error}", task.0)),
                _ => End::Failed(format!("task {} was ended: {error}", task.0)),
            };
        }
        if let Some((task, error)) = world.watch.no_pages.take() {
            return End::Failed(format!("task {} was ended: {error}", task.0));
        }
        if world.machine.is_done() && world.sink.is_complete() {
            return End::Completed;
        }
        steps += 1;
        if steps.is_multiple_of(4096) {
            progress(stats.accesses as f64 / accesses.max(1) as f64);
        }
        if steps.is_multiple_of(1 << 18) {
            tracing::debug!(
                now = %world.now,
                moved = %world.watch.moved,
                steps,
                accesses = stats.accesses,
                free = world.pool.free_frames(),
                rx_charged = world.pool.reserve_usage(world.net_rx),
                queued = world.host.udp_held(),
                liveness = world.sink.received(),
                pager = ?world.pager.stats(),
            );
        }
        let since = world.watch.moved.max(faults_over);
        if world.now > since + STUCK_AFTER {
            return stuck_end(world, started, since);
        }
        if !world.advance() {
            return stuck_end(world, started, since);
        }
    }
}

fn stuck_end(world: &World<'_>, started: Time, since: Time) -> End {
    if world.machine.is_done() {
        return End::Failed(format!(
            "the untagged TCP flow stopped after {} bytes",
            world.sink.received()
        ));
    }
    End::Stuck(stuck::explain(world, started, since))
}

fn judge(world: &mut World<'_>, spec: &RunSpec, end: End, started: Time) -> Row {
    let pool = &world.pool;
    let machine = world.machine.stats().clone();
    let pager = *world.pager.stats();
    let stats = world.host.stats();
    let quantile = |q| world.watch.latency.value_at_quantile(q) as f64 / 1e3;
    let ended = match &end {
        End::Stuck(_) => world.watch.moved,
        _ => world.now,
    };
    let exercise = Exercise {
        below_min: pool.lowest_free() < pool.watermarks().min,
        receive_reserve_used: pool.reserve_peak(world.net_rx) > 0,
        emergency_dropped: stats.emergency_dropped > 0,
        every_reader_received: world.flows.iter().all(|f| world.machine.received(f.reader) > 0),
    };
    let mut row = Row {
        backend: spec.store,
        ablate: spec.ablate.clone(),
        outcome: Outcome::Completed,
        reason: None,
        virtual_s: ended.since(started).as_secs_f64(),
        page_ins: pager.page_ins,
        page_outs: pager.page_outs,
        fault: Latency {
            p50_us: quantile(0.5),
            p99_us: quantile(0.99),
            max_us: world.watch.latency.max() as f64 / 1e3,
        },
        dropped: stats.drops().collect(),
        free_lowest: pool.lowest_free(),
        reserve_peak: pool.reserve_peak(ReserveId::ROOT),
        reserve_limit: pool.reserve_limit(ReserveId::ROOT),
        pages_verified: machine.pages_verified,
        transactions: machine.transactions,
        setup_s: 0.0,
        wall_s: 0.0,
        trace_hash: String::new(),
        exercise,
        faults: Default::default(),
        liveness_bytes: world.sink.received(),
        seed: spec.scenario.seed,
        malformed_lines: 0,
        malformed_first: Vec::new(),
        explanation: None,
        reserve_report: String::new(),
    };
    row.dropped.insert("no receive buffer", world.link.stats().b_to_a.no_rx_buffer);
    let now = world.now;
    let totals: Vec<u64> = row.dropped.values().copied().collect();
    for n in totals {
        world.watch.hash.add(now, Happened::Totals, n, 0);
    }
    let link = world.link.stats().total();
    world.watch.hash.add(now, Happened::Totals, link.sent, link.delivered);
    world.watch.hash.add(now, Happened::Totals, machine.accesses, machine.major_faults);
    row.trace_hash = world.watch.hash.finish();
    match end {
        End::Completed if world.sink.wrong() > 0 => {
            row.outcome = Outcome::Corrupt;
            let wrong = world.sink.wrong();
            row.reason = Some(format!("{wrong} bytes of the untagged TCP flow were wrong"));
        }
        End::Completed
            if spec.ablate.is_empty() && spec.must_be_exercised && !exercise.is_full() =>
        {
            row.outcome = Outcome::Failed;
            row.reason = Some(format!("not exercised: {}", exercise.missing().join("; ")));
        }
        End::Completed => {}
        End::Failed(why) => {
            row.outcome = Outcome::Failed;
            row.reason = Some(why);
        }
        End::Corrupt(why) => {
            row.outcome = Outcome::Corrupt;
            row.reason = Some(why);
        }
        End::Stuck(Stuck { is_deadlock, text }) => {
            row.outcome = if is_deadlock { Outcome::Deadlock } else { Outcome::Failed };
            row.reason = Some(if is_deadlock {
                "tasks wait in a cycle through memory".into()
            } else {
                "nothing moves, and no cycle through memory explains it".into()
            });
            row.explanation = Some(text);
        }
    }
    row
}

/// Ends what still runs and gives everything back: daemons, mappings, areas, connections.
fn drain(world: &mut World<'_>) -> Result<(), String> {
    world.disturb();
    world.flood = None;
    world.machine.end_daemons();
    for task in 0..world.machine.tasks() as u32 {
        debug_assert!(matches!(
            world.machine.state(TaskId(task)),
            TaskState::Done | TaskState::Killed
        ));
        for range in world.machine.mappings(TaskId(task)) {
            world.pager.unmap(world.now, world.machine.tables(), range);
        }
    }
    for flow in &world.flows {
        world.host.udp_unbind(flow.socket);
    }
    let mut until = world.now + IDLE_WITHIN;
    let mut is_shut_down = false;
    while world.now < until {
        world.step();
        if !is_shut_down && world.pager.is_idle() {
            world.pager.shutdown(world.now, world.machine.tables());
            world.disturb();
            is_shut_down = true;
            until = world.now + DRAIN_FOR;
        }
        if !world.advance() {
            break;
        }
    }
    if is_shut_down { Ok(()) } else { Err("page I/O was still under way after the end".into()) }
}

/// After the world is gone, every charge is released and every frame is back.
fn check_memory(pool: &netswap_reserve::PagePool, set_aside: u32, row: &mut Row) {
    let charged = pool.reserve_usage(ReserveId::ROOT);
    let missing = pool.frames() - set_aside - pool.free_frames();
    if charged > 0 || missing > 0 {
        row.outcome = Outcome::Failed;
        row.reason = Some(format!(
            "memory leaked: {missing} frames are not back, {charged} frames are still charged"
        ));
    }
}
