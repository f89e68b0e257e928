//! A load on a store: blocks written and read at a given depth for a time or a number, every page
//! verified if that is asked for.
//!
//! - `report`: what is told of it;
//! - `stamp`: what a page holds, and what is wrong with one that comes back;
//! - `slots`: which slot is next, and what each must hold.
//!
//! Pages come from a [`PagePool`] that has room for all that can be outstanding; what READs land in is a
//! reserve of its own ([`RX_RESERVE`]), so page-outs that wait cannot take the memory of page-ins.
//!
//! # Invariants
//! - Nothing is allocated from the heap between the first request and the last completion.
//! - A slot whose write may be carried out late is not written again before that cannot happen any more
//!   ([`netswap_swap::SwapBackend::fences`]); the pager does the same.
//! - A page that does not match is counted and told, never taken for right.

mod report;
mod slots;
mod stamp;

use std::time::Duration;

use netswap_reserve::{EmergencyScope, Gfp, PagePool, PoolConfig, ReserveId, Span, Time};
use netswap_swap::{
    Completion, Op, PageVec, Request, RequestId, Slot, StoreError, SubmitError, SwapBackend,
    backend::BATCH_PAGES_MAX,
};
use rustix::time::{ClockId, clock_gettime};

pub use report::{FAULTS_TOLD, LoadError, LoadFault, LoadProgress, LoadReport};
pub use stamp::Mismatch;

use super::RealStore;
use slots::SlotTable;
use stamp::Owner;

/// The reserve that READs may take their pages from.
pub const RX_RESERVE: &str = "io.rx";
/// Reads in a row that run out of time before a server is taken for gone while pages are read back, or as many as are
/// outstanding if that is more. Picked by eye: a server that is alive and slow answers one of them.
const LATE_READS_MAX: usize = 8;
/// How long a load may sleep before it tells how far it is.
const TELL_EVERY: Span = Span::from_secs(1);
/// Frames beside those for pages that are outstanding: the least headroom of a pool and its gaps.
const POOL_MARGIN: u32 = 64;

/// What a load does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pattern {
    /// Reads blocks in order.
    Read,
    /// Writes blocks in order.
    Write,
    /// Reads blocks drawn at random.
    RandRead,
    /// Writes blocks drawn at random.
    RandWrite,
    /// Reads and writes blocks drawn at random, half and half; a block that was not written yet is
    /// written.
    Mixed,
}

impl Pattern {
    /// All of them.
    pub const ALL: [Pattern; 5] =
        [Pattern::Read, Pattern::Write, Pattern::RandRead, Pattern::RandWrite, Pattern::Mixed];

    /// Its name on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Pattern::Read => "read",
            Pattern::Write => "write",
            Pattern::RandRead => "randread",
            Pattern::RandWrite => "randwrite",
            Pattern::Mixed => "mixed",
        }
    }

    /// Whether it writes.
    pub fn is_writing(self) -> bool {
        !matches!(self, Pattern::Read | Pattern::RandRead)
    }
}

/// When a load ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stop {
    /// After this time.
    After(Span),
    /// After so many operations.
    Ops(u64),
}

/// A load.
#[derive(Clone, Copy, Debug)]
pub struct LoadSpec {
    /// What it does.
    pub pattern: Pattern,
    /// Pages of a block, 1 to 16: what one operation moves. The last block of the slots is what is left of them.
    pub block_pages: usize,
    /// How many blocks a load in order goes on from one operation to the next: 1, or more to keep adjacent
    /// ones apart. Behind the last block it goes on at the beginning.
    pub stride_blocks: u32,
    /// Operations outstanding.
    pub depth: usize,
    /// Slots it may use, from [`LoadSpec::first_slot`] on.
    pub slots: u32,
    /// The first of them.
    pub first_slot: u32,
    /// When it ends.
    pub stop: Stop,
    /// Pages are stamped when they are written and compared when they are read.
    pub verify: bool,
    /// What is drawn, and what pages hold.
    pub seed: u64,
    /// Is in the pages, too: another number each time, so that what an earlier load with this seed wrote is not taken
    /// for what this one did.
    pub run: u64,
    /// How long the store has for a request.
    pub request_timeout: Option<Span>,
}

/// A request that is outstanding.
#[derive(Clone, Copy)]
struct Flight {
    op: Op,
    first: u32,
    since: Time,
    /// Which write each page must be of.
    expected: [Option<u32>; BATCH_PAGES_MAX],
}

/// The processor time that this thread has used.
pub fn thread_cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// A load that is under way.
pub struct Load {
    spec: LoadSpec,
    slots: SlotTable,
    pool: PagePool,
    rx: ReserveId,
    flights: Box<[Flight]>,
    free: Vec<u32>,
    /// The load is over, and what it wrote is being read back: the next block.
    read_back: Option<u32>,
    /// Reads in a row that ran out of time.
    late_reads: usize,
    outstanding: usize,
    submitted: u64,
    fences: u64,
    last_end: Time,
    /// The last operation that ended well.
    last_good: Time,
    report: LoadReport,
}

impl Load {
    /// A load with all its memory.
    ///
    /// # Errors
    /// When there is no memory, or no room for a block.
    ///
    /// # Panics
    /// If `spec` has a depth of 0, or blocks of no page or more than 16.
    pub fn new(spec: LoadSpec) -> Result<Load, LoadError> {
        assert!(spec.depth > 0, "a load of depth 0");
        assert!((1..=BATCH_PAGES_MAX).contains(&spec.block_pages), "{} pages", spec.block_pages);
        if spec.slots < spec.block_pages as u32 {
            let LoadSpec { slots, block_pages, .. } = spec;
            return Err(LoadError::TooSmall { slots, block_pages });
        }
        let pages = (spec.depth * spec.block_pages) as u32;
        // Written pages above the reserve, read ones inside it if there is nothing else.
        let mut config = PoolConfig { magazine: 0, ..PoolConfig::new(2 * pages + POOL_MARGIN) };
        config.frames += config.headroom + config.low_gap + config.high_gap;
        let pool = PagePool::try_new(config)
            .map_err(|source| LoadError::Pool { depth: spec.depth, source })?;
        let rx = pool.add_reserve(ReserveId::ROOT, RX_RESERVE, pages);
        pool.connect(rx).expect("nothing of the pool is in use");
        let flight =
            Flight { op: Op::Read, first: 0, since: Time::ZERO, expected: [None; BATCH_PAGES_MAX] };
        Ok(Load {
            slots: SlotTable::new(
                spec.first_slot,
                spec.block_pages as u32,
                spec.slots,
                spec.stride_blocks,
                spec.seed,
            ),
            pool,
            rx,
            flights: vec![flight; spec.depth].into(),
            free: (0..spec.depth as u32).rev().collect(),
            read_back: None,
            late_reads: 0,
            outstanding: 0,
            submitted: 0,
            fences: 0,
            last_end: Time::ZERO,
            last_good: Time::ZERO,
            report: LoadReport::new(),
            spec,
        })
    }

    /// Runs it to its end; `progress` is told how far it is.
    /// With verification, whatever it wrote is read back afterwards; that is in no figure but those of
    /// pages and faults. It is given up when a whole window of reads is not answered in time. When the store is
    /// interrupted, what is outstanding is given up, and the store shut down.
    ///
    /// # Errors
    /// When the system refuses to wait. What a store does wrong is in the report.
    pub fn run(
        mut self,
        store: &mut RealStore,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<LoadReport, LoadError> {
        let cpu = thread_cpu();
        let begun = store.now();
        (self.last_end, self.last_good) = (begun, begun);
        self.fences = store.client.fences();
        let joined = store.counters().joined;
        self.drive(store, begun, progress)?;
        self.report.requests = self.submitted.saturating_sub(store.counters().joined - joined);
        self.report.elapsed = self.last_end.since(begun);
        self.report.cpu = thread_cpu().saturating_sub(cpu);
        if self.spec.verify && self.spec.pattern.is_writing() {
            self.read_back = Some(0);
            self.late_reads = 0;
            if !store.is_interrupted() {
                self.drive(store, begun, progress)?;
            }
            // Whatever was not even asked for: nothing, if it came to its end.
            while let Some(first) = self.next_written() {
                self.report.pages_unverified += u64::from(self.slots.block_len(first));
            }
        }
        self.report.quarantined = self.slots.quarantined();
        Ok(self.report)
    }

    fn drive(
        &mut self,
        store: &mut RealStore,
        begun: Time,
        progress: &mut dyn FnMut(LoadProgress),
    ) -> Result<(), LoadError> {
        let (mut turns, mut gave_up, mut told) = (0u64, false, begun);
        loop {
            let now = store.now();
            if !gave_up
                && !self.is_over(begun, now)
                && let Err(error) = self.fill(store)
            {
                gave_up = true;
                self.report.ended_early = Some(error.to_string());
            }
            if self.outstanding == 0 {
                return Ok(());
            }
            if store.is_interrupted() {
                self.give_up(store);
                return Ok(());
            }
            store.turn(Some(now + TELL_EVERY))?;
            while let Some(end) = store.poll_completion() {
                let now = store.now();
                self.complete(now, end);
            }
            let fences = store.client.fences();
            if fences != self.fences {
                self.fences = fences;
                self.slots.release();
            }
            if !gave_up && self.read_back.is_some() && self.is_gone() {
                gave_up = true;
                let error = LoadError::NotReadBack { reads: self.late_reads };
                self.report.ended_early = Some(error.to_string());
            }
            turns += 1;
            if turns.is_multiple_of(64) || now.since(told) >= TELL_EVERY {
                told = now;
                progress(LoadProgress {
                    share: self.share(begun, now),
                    ops: self.report.ops(),
                    is_reading_back: self.read_back.is_some(),
                });
            }
        }
    }

    /// Ends with what there is: nobody waits for what is outstanding, and it is in no figure.
    fn give_up(&mut self, store: &mut RealStore) {
        self.report.ended_early = Some(LoadError::Interrupted.to_string());
        store.give_up(&mut |end| {
            if self.read_back.is_some() {
                self.report.pages_unverified += end.pages.len() as u64;
            }
        });
        self.outstanding = 0;
    }

    /// Whether nobody answers reads any more.
    fn is_gone(&self) -> bool {
        self.late_reads >= self.spec.depth.max(LATE_READS_MAX)
    }

    fn share(&self, begun: Time, now: Time) -> f64 {
        if let Some(at) = self.read_back {
            return f64::from(at) / f64::from(self.slots.blocks());
        }
        match self.spec.stop {
            Stop::After(span) => now.since(begun).as_secs_f64() / span.as_secs_f64(),
            Stop::Ops(ops) => self.submitted as f64 / ops.max(1) as f64,
        }
    }

    fn is_over(&self, begun: Time, now: Time) -> bool {
        match self.spec.stop {
            _ if self.read_back.is_some() => false,
            Stop::After(span) => now.since(begun) >= span,
            Stop::Ops(ops) => self.submitted >= ops,
        }
    }

    /// Operations that may still be submitted.
    fn room(&self) -> usize {
        let by_depth = self.spec.depth - self.outstanding;
        match self.spec.stop {
            Stop::After(_) => by_depth,
            _ if self.read_back.is_some() => by_depth,
            Stop::Ops(ops) => by_depth.min((ops - self.submitted) as usize),
        }
    }

    /// Submits until as many operations are outstanding as are to be.
    fn fill(&mut self, store: &mut RealStore) -> Result<(), LoadError> {
        while self.room() > 0 {
            let Some((op, first)) = self.draw()? else { return Ok(()) };
            self.submit(store, op, first)?;
        }
        Ok(())
    }

    /// The next operation; `None` if everything was read back.
    fn draw(&mut self) -> Result<Option<(Op, u32)>, LoadError> {
        if self.read_back.is_some() {
            return Ok(self.next_written().map(|slot| (Op::Read, slot)));
        }
        for _ in 0..self.slots.blocks() {
            let (op, slot) = match self.spec.pattern {
                Pattern::Read => (Op::Read, self.slots.next()),
                Pattern::Write => (Op::Write, self.slots.next()),
                Pattern::RandRead => (Op::Read, self.slots.random()),
                Pattern::RandWrite => (Op::Write, self.slots.random()),
                Pattern::Mixed => {
                    let slot = self.slots.random();
                    let is_known = self.slots.generation(slot).is_some();
                    (if self.slots.coin() && is_known { Op::Read } else { Op::Write }, slot)
                }
            };
            if op == Op::Read || self.slots.is_writable(slot) {
                return Ok(Some((op, slot)));
            }
        }
        Err(LoadError::Quarantined { slots: self.slots.quarantined() })
    }

    /// The first slot of the next block that is to be read back.
    fn next_written(&mut self) -> Option<u32> {
        let at = self.read_back.as_mut()?;
        while *at < self.slots.blocks() {
            let slot = self.slots.block_at(*at);
            *at += 1;
            if self.slots.generation(slot).is_some() {
                return Some(slot);
            }
        }
        None
    }

    fn submit(&mut self, store: &mut RealStore, op: Op, first: u32) -> Result<(), LoadError> {
        let place = self.free.pop().expect("there are as many places as operations");
        let mut flight =
            Flight { op, first, since: store.now(), expected: [None; BATCH_PAGES_MAX] };
        let mut pages = PageVec::new();
        for i in 0..self.slots.block_len(first) as usize {
            let slot = first + i as u32;
            let mut page = {
                let _scope = (op == Op::Read).then(|| EmergencyScope::enter(&self.pool, self.rx));
                self.pool.alloc(Gfp::KERNEL).expect("the pool has room for all that is outstanding")
            };
            match op {
                Op::Read => flight.expected[i] = self.slots.generation(slot),
                Op::Write => {
                    let generation = self.slots.write(slot);
                    if self.spec.verify {
                        stamp::stamp(page.bytes_mut(), self.owner(), slot, generation);
                    }
                }
            }
            pages.push(page);
        }
        self.flights[place as usize] = flight;
        let deadline = self.spec.request_timeout.map(|timeout| flight.since + timeout);
        let request = Request { id: RequestId(place), op, first: Slot(first), pages, deadline };
        match store.submit(request) {
            Ok(()) => {
                self.outstanding += 1;
                self.submitted += u64::from(self.read_back.is_none());
                Ok(())
            }
            Err(SubmitError::Full(request) | SubmitError::NotReady(request)) => {
                self.free.push(place);
                if self.read_back.is_some() {
                    self.report.pages_unverified += request.pages.len() as u64;
                }
                Err(LoadError::Store(store.state()))
            }
        }
    }

    fn owner(&self) -> Owner {
        Owner { seed: self.spec.seed, run: self.spec.run }
    }

    /// Whether the last write of `slot` was carried out is not known: not to the reads that are outstanding, either.
    fn forget(&mut self, slot: u32) {
        self.slots.forget(slot);
        for flight in &mut self.flights {
            let at = slot.wrapping_sub(flight.first) as usize;
            if let Some(expected) = flight.expected.get_mut(at) {
                *expected = None;
            }
        }
    }

    fn complete(&mut self, now: Time, end: Completion) {
        let owner = self.owner();
        let flight = self.flights[end.id.0 as usize];
        self.free.push(end.id.0);
        self.outstanding -= 1;
        let report = &mut self.report;
        let is_figure = self.read_back.is_none();
        if is_figure {
            // An error is no sign of life.
            report.longest_pause = report.longest_pause.max(now.since(self.last_good));
            self.last_end = now;
            if end.outcome.is_ok() {
                self.last_good = now;
            }
        }
        let slots = flight.first..flight.first + end.pages.len() as u32;
        self.late_reads = match end.outcome {
            Err(StoreError::TimedOut) if flight.op == Op::Read => self.late_reads + 1,
            _ => 0,
        };
        if let Err(error) = end.outcome {
            report.store_errors += 1;
            report.tell(LoadFault::Store { op: flight.op, slot: flight.first, error });
            if !is_figure {
                report.pages_unverified += end.pages.len() as u64;
            }
        } else if is_figure {
            let latency = now.since(flight.since).as_nanos();
            let (count, histogram) = match flight.op {
                Op::Read => (&mut report.reads, &mut report.read_latency),
                Op::Write => (&mut report.writes, &mut report.write_latency),
            };
            *count += 1;
            report.pages += end.pages.len() as u64;
            // Outside of the bounds it is recorded as the bound.
            histogram.saturating_record(latency);
        }
        match flight.op {
            Op::Write => {
                let late = end.is_loose || matches!(end.outcome, Err(StoreError::TimedOut));
                for slot in slots {
                    if end.outcome.is_err() {
                        self.forget(slot);
                    }
                    if late {
                        self.slots.quarantine(slot);
                    }
                }
            }
            Op::Read if self.spec.verify && end.outcome.is_ok() => {
                let mut pages = end.pages;
                for ((page, slot), expected) in pages.iter_mut().zip(slots).zip(flight.expected) {
                    match stamp::verify(page.bytes_mut(), owner, slot, expected) {
                        Ok(()) => report.pages_verified += 1,
                        Err(mismatch) => {
                            report.pages_wrong += 1;
                            report.tell(LoadFault::Page { slot, mismatch });
                        }
                    }
                }
            }
            Op::Read => {}
        }
    }
}
