//! The simulated machine over a real store, in real time: its tasks fault, the pager moves pages to and from the
//! server, and every page that a task reads is compared with what it wrote.
//!
//! The machine, the pager and their memory are those of [`crate::world`]; what is missing is the simulated
//! network, its flood, and the memory that its packets would take: the packets here are the kernel's.

use std::time::Instant;

use hdrhistogram::Histogram;
use netswap_reserve::{
    BackingConfig, PAGE_SIZE, PagePool, PoolConfig, PoolError, ReserveId, Span, Time,
};
use netswap_swap::machine::{Linear, Machine, MachineConfig, MachineEvent, Nothing};
use netswap_swap::{AreaId, AreaOptions, PageError, Pager, PagerConfig, PagerEvent};
use serde::Serialize;

use super::client::RealClient;
use super::error::OpenError;
use super::pump::Pump;
use super::scheme::StoreUrl;
use super::store::{OpenOptions, RealStore};
use crate::report::{Latency, Outcome};
use crate::scenario::{Ablation, Scenario, ScenarioError};
use crate::units::Bytes;

/// How long nothing may move, and how long the store may take to let the area come on, or what is
/// left over to end: longer than a server takes to restart, and than a client waits between two connections.
const STUCK_AFTER: Span = Span::from_secs(150);
/// Sleeps shorter than this are not worth their system call: the machine's slices are.
const SLEEP_MIN: Span = Span::from_millis(1);
/// Requests outstanding: a queue of page-outs, and a read for each task.
pub const IN_FLIGHT: usize = 64;

/// What is to be run: of the scenario the host, nothing else.
#[derive(Clone, Debug)]
pub struct PagingSpec {
    /// The host, its tasks, and the seed.
    pub scenario: Scenario,
    /// The protections that are off; none but [`Ablation::Quarantine`] has a meaning here.
    pub ablate: Vec<Ablation>,
}

/// One run. The names are those of [`crate::report::Row`], where there is such a thing there.
#[derive(Clone, Debug, Serialize)]
pub struct PagingRow {
    /// The store.
    pub backend: String,
    /// The protections that were off.
    pub ablate: Vec<Ablation>,
    /// How it ended.
    pub outcome: Outcome,
    /// Why, if it did not complete.
    pub reason: Option<String>,
    /// Pages read from the store.
    pub page_ins: u64,
    /// Pages written to the store.
    pub page_outs: u64,
    /// Latency of faults that waited, in real microseconds.
    pub fault: Latency,
    /// The fewest frames that were free.
    pub free_lowest: u32,
    /// Pages whose whole content was compared with what was written.
    pub pages_verified: u64,
    /// Pages read back whose checksum did not match at first.
    pub checksum_errors: u64,
    /// Slots that went into quarantine.
    pub quarantined_slots: u64,
    /// Discards of slots that became free.
    pub discards: u64,
    /// Slots in them.
    pub discarded_slots: u64,
    /// Requests sent again, and connections opened.
    pub retransmissions: u64,
    /// As above.
    pub connections: u64,
    /// Real seconds to connect and to lay out memory.
    pub setup_s: f64,
    /// Real seconds of all the rest.
    pub wall_s: f64,
    /// The seed.
    pub seed: u64,
}

/// Why a run could not begin.
#[derive(Debug, thiserror::Error)]
pub enum PagingError {
    /// The store cannot be opened.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The scenario makes no sense.
    #[error(transparent)]
    Scenario(#[from] ScenarioError),
    /// The host has less memory than its tasks need to get on.
    #[error(
        "a host with {ram} is too small for {tasks} tasks: reclaim takes pages away until {high} frames are free, and a \
         task that has none left waits for ever; give it at least {least}, or lower --cpus or --tasks-per-cpu"
    )]
    TooLittleRam {
        /// Its RAM.
        ram: Bytes,
        /// Tasks that page.
        tasks: u32,
        /// The high watermark of its pool, in frames.
        high: u32,
        /// The least RAM that would do.
        least: Bytes,
    },
    /// No memory.
    #[error("no memory for the simulated host: {0}")]
    Pool(#[from] PoolError),
    /// The store, or the area in it, is smaller than what the tasks map.
    #[error(
        "{server} has {slots} pages, and {wanted} are mapped: make it larger, or lower --ram or --overcommit"
    )]
    TooSmall {
        /// The store.
        server: String,
        /// Its pages; those of its area, if that is what is too small.
        slots: u32,
        /// Pages that the tasks map, and the header.
        wanted: u32,
    },
}

struct Paging {
    pump: Pump,
    area: AreaId,
    pager: Pager<Box<dyn RealClient>>,
    machine: Machine,
    latency: Histogram<u64>,
    /// When a task or a page last moved, and what had moved then.
    moved: Time,
    seen: (u64, u64),
    is_on: bool,
    refused: Option<String>,
    killed: Option<(u32, PageError)>,
}

/// Runs `spec` over the store at `url`; `progress` is told the share that is done, from 0 to 1.
///
/// # Errors
/// When it cannot begin. How a run that began ended is in the row.
///
/// # Panics
/// If the pager has no room for what the scenario maps, which its sizes exclude.
pub fn run(
    url: &StoreUrl,
    options: &OpenOptions,
    spec: &PagingSpec,
    progress: &mut dyn FnMut(f64),
) -> Result<PagingRow, PagingError> {
    let setup = Instant::now();
    let scenario = &spec.scenario;
    scenario.check_ranges()?;
    check_ram(scenario)?;
    scenario.check_mappings()?;
    let pages = scenario.workers() * scenario.pages_per_worker();
    // Memory first: what is locked is what is there.
    let pool = PagePool::try_new(PoolConfig {
        backing: BackingConfig { prefault: true, ..BackingConfig::default() },
        ..scenario.pool()
    })?;
    let store = RealStore::open(url, options)?;
    let server = store.server().to_string();
    if store.slots() <= pages {
        let slots = store.slots();
        return Err(PagingError::TooSmall { server, slots, wanted: pages + 1 });
    }
    let RealStore { pump, client, .. } = store;
    let config = PagerConfig {
        readahead_pages: scenario.host.readahead_pages as u8,
        quarantine: !spec.ablate.contains(&Ablation::Quarantine),
        ..PagerConfig::new(scenario.workers(), pages)
    };
    let mut pager = Pager::new(pool.clone(), config);
    let options = AreaOptions {
        on_failure: scenario.host.on_failure.policy(),
        // It is for the URL to say: a client that is not to discard takes none.
        discard: true,
        ..AreaOptions::new("area0")
    };
    let now = pump.now();
    let area = pager.add_area(now, client, options);
    let machine = Machine::new(MachineConfig {
        cpus: scenario.host.cpus as usize,
        seed: scenario.seed,
        ..MachineConfig::default()
    });
    let latency =
        Histogram::new_with_bounds(1, 86_400_000_000_000, 3).expect("the bounds are in order");
    let mut paging = Paging {
        pump,
        area,
        pager,
        machine,
        latency,
        moved: now,
        seen: (0, 0),
        is_on: false,
        refused: None,
        killed: None,
    };
    let setup_s = setup.elapsed().as_secs_f64();
    let wall = Instant::now();
    let on = paging.swapon();
    // The header may speak of fewer pages than the store has, and of bad ones.
    let free = paging.pager.areas().next().map_or(0, |info| info.free);
    if on.is_ok() && free < pages {
        // Why it was not taken is told; what could go wrong with letting go of it is not worth more.
        let _ = paging.drain(&pool);
        return Err(PagingError::TooSmall { server, slots: free + 1, wanted: pages + 1 });
    }
    let ended = on.and_then(|()| {
        for _ in 0..scenario.workers() {
            let pages = scenario.pages_per_worker();
            let range = paging.pager.map_anonymous(pages);
            let program = Linear::new(pages, scenario.host.rounds, scenario.host.dirty_percent);
            paging.machine.spawn(Box::new(program), range, false);
        }
        let accesses = u64::from(pages) * u64::from(1 + scenario.host.rounds);
        paging.work(accesses.max(1), progress)
    });
    let wall_s = wall.elapsed().as_secs_f64();
    let ended = ended.and_then(|()| paging.drain(&pool));
    Ok(paging.row(server, spec, &pool, ended, (setup_s, wall_s)))
}

/// Frames that are free when background reclaim rests.
fn high(pool: &PoolConfig) -> u32 {
    pool.headroom + pool.low_gap + pool.high_gap
}

/// Refuses a host on which tasks never get on. Nothing of this pool is set aside for a network, so reclaim runs
/// whenever fewer frames are free than its high watermark. If that leaves less than a frame for each task, a page that
/// was read in is taken away before the task that waits for it has touched it, again and again: pages
/// move for ever, and nobody does.
fn check_ram(scenario: &Scenario) -> Result<(), PagingError> {
    let (tasks, frames) = (scenario.workers(), scenario.frames());
    let least = |frames| tasks + high(&PoolConfig::new(frames));
    if frames >= least(frames) {
        return Ok(());
    }
    // The watermark grows with memory, far slower than it: this comes to an end.
    let mut enough = least(frames);
    while enough < least(enough) {
        enough = least(enough);
    }
    Err(PagingError::TooLittleRam {
        ram: scenario.host.ram,
        tasks,
        high: high(&scenario.pool()),
        least: Bytes(u64::from(enough) * PAGE_SIZE as u64),
    })
}

/// Why a run did not complete.
type Ended = Result<(), (Outcome, String)>;

fn failed(why: impl ToString) -> (Outcome, String) {
    (Outcome::Failed, why.to_string())
}

impl Paging {
    /// Lets everything that is due happen.
    fn step(&mut self) {
        let now = self.pump.now();
        self.poll_pager(now);
        if self.machine.poll(now, &mut self.pager, &mut Nothing) {
            self.moved = now;
        }
        self.poll_machine();
        self.poll_pager(now);
    }

    /// Moves bytes; if none came, sleeps until some do, or something is due.
    fn advance(&mut self) -> Ended {
        self.pump.touch();
        if self.pump.is_interrupted() {
            return Err(failed("interrupted"));
        }
        // What was submitted goes out before anybody sleeps, and what has come is taken.
        let before = self.pump.arrivals();
        let now = self.pump.now();
        let turned = self.pump.turn(Some(now), self.pager.backend_mut(self.area));
        turned.map_err(failed)?;
        let deadlines = [
            self.machine.poll_deadline(),
            self.pager.poll_deadline(),
            Some(self.moved + STUCK_AFTER),
        ];
        let next = deadlines.into_iter().flatten().min().unwrap_or(now);
        if next.since(now) >= SLEEP_MIN && self.pump.arrivals() == before {
            let turned = self.pump.turn(Some(next), self.pager.backend_mut(self.area));
            turned.map_err(failed)?;
        }
        if self.pump.now().since(self.moved) > STUCK_AFTER {
            return Err(failed(format!("nothing has moved for {STUCK_AFTER}")));
        }
        Ok(())
    }

    fn poll_pager(&mut self, now: Time) {
        while let Some(event) = self.pager.poll(now, self.machine.tables()) {
            self.machine.handle_pager_event(now, &event);
            match event {
                PagerEvent::AreaOn { .. } => self.is_on = true,
                PagerEvent::AreaRefused { error, .. } => self.refused = Some(error.to_string()),
                _ => {}
            }
        }
        let stats = self.pager.stats();
        let seen = (stats.page_ins, stats.page_outs);
        if seen != self.seen {
            self.seen = seen;
            self.moved = now;
        }
        self.poll_machine();
    }

    fn poll_machine(&mut self) {
        while let Some(event) = self.machine.poll_event() {
            match event {
                MachineEvent::FaultServed { waited, .. } => {
                    self.latency.saturating_record(waited.as_nanos());
                }
                MachineEvent::Killed(task, error) => {
                    self.killed.get_or_insert((task.0, error));
                }
                _ => {}
            }
        }
    }

    fn swapon(&mut self) -> Ended {
        loop {
            self.step();
            if let Some(why) = self.refused.take() {
                return Err(failed(format!(
                    "the area did not come on: {why}: `netswap check` says what it lacks, `netswap mkswap` makes one"
                )));
            }
            if self.is_on {
                return Ok(());
            }
            self.advance()?;
        }
    }

    fn work(&mut self, accesses: u64, progress: &mut dyn FnMut(f64)) -> Ended {
        let mut steps = 0u64;
        loop {
            self.step();
            let stats = self.machine.stats();
            if stats.pages_wrong > 0 {
                let why = "a task read a page that is not what it wrote".into();
                return Err((Outcome::Corrupt, why));
            }
            if let Some((task, error)) = self.killed.take() {
                let outcome = match error {
                    PageError::Damaged { .. } => Outcome::Corrupt,
                    _ => Outcome::Failed,
                };
                return Err((outcome, format!("task {task} was ended: {error}")));
            }
            steps += 1;
            if steps.is_multiple_of(256) {
                progress(stats.accesses as f64 / accesses as f64);
            }
            if self.machine.is_done() {
                return Ok(());
            }
            self.advance()?;
        }
    }

    /// Gives everything back: mappings, what is under way, the connection; and looks whether every frame is
    /// there again.
    fn drain(&mut self, pool: &PagePool) -> Ended {
        for task in 0..self.machine.tasks() as u32 {
            for range in self.machine.mappings(netswap_swap::TaskId(task)) {
                let now = self.pump.now();
                self.pager.unmap(now, self.machine.tables(), range);
            }
        }
        self.moved = self.pump.now();
        self.step();
        while !self.pager.is_idle() {
            self.advance()?;
            self.step();
        }
        let now = self.pump.now();
        self.pager.shutdown(now, self.machine.tables());
        self.pump.touch();
        let turned = self.pump.turn(Some(now), self.pager.backend_mut(self.area));
        turned.map_err(failed)?;
        self.step();
        let missing = pool.frames() - pool.free_frames();
        if missing > 0 || pool.reserve_usage(ReserveId::ROOT) > 0 {
            return Err(failed(format!("memory leaked: {missing} frames are not back")));
        }
        Ok(())
    }

    fn row(
        &self,
        backend: String,
        spec: &PagingSpec,
        pool: &PagePool,
        ended: Ended,
        (setup_s, wall_s): (f64, f64),
    ) -> PagingRow {
        let (outcome, reason) = match ended {
            Ok(()) => (Outcome::Completed, None),
            Err((outcome, reason)) => (outcome, Some(reason)),
        };
        let quantile = |q| self.latency.value_at_quantile(q) as f64 / 1e3;
        let pager = self.pager.stats();
        let client = self.pager.backend(self.area).counters();
        PagingRow {
            backend,
            ablate: spec.ablate.clone(),
            outcome,
            reason,
            page_ins: pager.page_ins,
            page_outs: pager.page_outs,
            fault: Latency {
                p50_us: quantile(0.5),
                p99_us: quantile(0.99),
                max_us: self.latency.max() as f64 / 1e3,
            },
            free_lowest: pool.lowest_free(),
            pages_verified: self.machine.stats().pages_verified,
            checksum_errors: pager.checksum_errors,
            quarantined_slots: pager.quarantined_slots,
            discards: pager.discards,
            discarded_slots: pager.discarded_slots,
            retransmissions: client.resent,
            connections: client.connections,
            setup_s,
            wall_s,
            seed: spec.scenario.seed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The least frames that are not refused, and what is said of one less.
    fn least(tasks_per_cpu: u32) -> (u32, String) {
        let of = |frames: u32| {
            let mut scenario = Scenario::default();
            scenario.host.ram = Bytes(u64::from(frames) * PAGE_SIZE as u64);
            (scenario.host.cpus, scenario.host.tasks_per_cpu) = (2, tasks_per_cpu);
            check_ram(&scenario)
        };
        let least = (1..1 << 20).find(|frames| of(*frames).is_ok()).unwrap();
        (least, of(least - 1).unwrap_err().to_string())
    }

    #[test]
    fn a_host_needs_a_frame_for_each_task_above_what_reclaim_keeps_free() {
        // Of a small pool, 16 + 8 + 8 frames are kept free.
        let (frames, said) = least(8);
        assert_eq!(frames, 16 + 32);
        assert!(said.contains("188KiB is too small for 16 tasks"), "{said}");
        assert!(said.contains("at least 192KiB, or lower --cpus"), "{said}");
        // Of a larger one, more: what is said to be enough is, and not a frame less.
        let (frames, said) = least(5000);
        let headroom = frames / 128;
        assert_eq!(frames, 10_000 + headroom + headroom / 2 * 2);
        assert!(said.contains(&format!("at least {}KiB", frames * 4)), "{said}");
    }
}
