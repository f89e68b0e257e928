//! What every [`SwapBackend`] has to keep: one suite, to be run over each.
//!
//! The suite knows nothing of transports: a hook drives the backend, its server and the time in
//! between. See [`check`].

use std::collections::BTreeMap;

use netswap_reserve::{Gfp, PagePool, Span, Time};

use crate::backend::{
    BackendState, Completion, DISCARD_RUNS_MAX, Discard, Op, PageVec, Request, RequestId, Run,
    Slot, StoreError, SubmitError, SwapBackend,
};

/// Rounds of the hook after which a backend that has not done what it should counts as stuck.
const ROUNDS_MAX: u32 = 1_000_000;
/// How long a request may take that has a deadline: shorter than any server answers.
const PATIENCE: Span = Span::from_micros(1);
/// Longer than anything that a backend does by itself takes.
const LONG: Span = Span::from_secs(3600);
/// Timers that may run off, one after the other, while a server is silent.
const TIMERS_MAX: u32 = 64;

/// Runs the whole suite. `make` gives a fresh backend over a store of at least 64 slots, which may be
/// overwritten, starting or ready. `drive` lets the world move on by one step: it moves bytes between
/// the backend and its server, and puts `now` forward, so that whatever is outstanding ends after
/// some calls. Pages are frames of `pool`, of which 48 have to be free.
///
/// The suite also lets time pass without calling `drive`, as if the server were silent: `drive` goes on
/// from the `now` it is given, and never puts it back. A backend with latency is tested for more than
/// one that is always done at once: it shows what becomes of a request that waits.
///
/// ```
/// use netswap_reserve::{PagePool, PoolConfig, Span, Time};
/// use netswap_swap::{MemBackend, conformance};
/// let pool = PagePool::new(PoolConfig::new(256));
/// conformance::check(&pool, || MemBackend::new(64), |_, now: &mut Time| *now += Span::from_millis(1));
/// ```
///
/// # Panics
/// With what is wrong, if the backend does not conform.
pub fn check<B: SwapBackend>(
    pool: &PagePool,
    mut make: impl FnMut() -> B,
    mut drive: impl FnMut(&mut B, &mut Time),
) {
    let free = pool.free_frames();
    let mut run = |name: &str, test: fn(&mut World<'_, B>)| {
        tracing::debug!(name, "conformance");
        let mut world = World {
            backend: make(),
            now: Time::ZERO,
            pool,
            drive: &mut drive,
            next_id: 1,
            outstanding: BTreeMap::new(),
            name: name.into(),
        };
        world.start();
        test(&mut world);
        assert!(world.outstanding.is_empty(), "{name}: every request ends");
    };
    run("limits are sane", limits);
    run("pages come back as they were written", write_and_read_back);
    run("batches of every length", batches);
    run("the last slot and beyond", out_of_range);
    run("a full queue hands back the request whole", full_queue);
    run("many at once, each ends once with its own pages", many_at_once);
    run("what only time can bring on is announced", announced);
    run("a deadline is kept, and announced", deadlines);
    run("what is discarded may be written again, and nothing else is gone", discards);
    run("discards have their bounds and their end", discards_end);
    run("shutdown ends what is outstanding", shutdown);
    assert!(pool.free_frames() >= free, "all pages came back");
}

struct World<'a, B> {
    backend: B,
    now: Time,
    pool: &'a PagePool,
    drive: &'a mut dyn FnMut(&mut B, &mut Time),
    next_id: u32,
    /// Pages that come back, first slot and slots of what is outstanding.
    outstanding: BTreeMap<u32, (usize, u32, usize)>,
    name: String,
}

/// What a page of this slot holds in this generation: no two are equal, none is zero.
fn content(slot: u32, generation: u8, page: &mut [u8; 4096]) {
    for (i, byte) in page.iter_mut().enumerate() {
        *byte = (i as u32).wrapping_mul(31).wrapping_add(slot.wrapping_mul(7)) as u8 ^ generation;
    }
    page[..4].copy_from_slice(&slot.to_le_bytes());
    page[4] = generation;
    page[5] = 1;
}

impl<B: SwapBackend> World<'_, B> {
    fn start(&mut self) {
        for _ in 0..ROUNDS_MAX {
            match self.backend.state() {
                BackendState::Ready { slots } => {
                    assert!(slots >= 64, "{}: the suite needs 64 slots", self.name);
                    return;
                }
                BackendState::Starting => self.drive(),
                state => panic!("{}: the backend became {state:?}", self.name),
            }
        }
        panic!("{}: the backend never became ready", self.name);
    }

    fn slots(&self) -> u32 {
        match self.backend.state() {
            BackendState::Ready { slots } => slots,
            state => panic!("{}: the backend became {state:?}", self.name),
        }
    }

    fn request(&mut self, op: Op, first: u32, pages: usize, generation: u8) -> Request {
        let id = self.next_id;
        self.next_id += 1;
        let mut vec = PageVec::new();
        for i in 0..pages {
            let mut frame = self.pool.alloc(Gfp::KERNEL).expect("the suite has frames");
            match op {
                Op::Read => frame.bytes_mut().fill(0xee),
                Op::Write => content(first + i as u32, generation, frame.bytes_mut()),
            }
            vec.push(frame);
        }
        Request { id: RequestId(id), op, first: Slot(first), pages: vec, deadline: None }
    }

    #[allow(clippy::result_large_err, reason = "as in SwapBackend::submit")]
    fn submit(&mut self, request: Request) -> Result<(), Request> {
        let pages = request.pages.len();
        let (id, what) = (request.id.0, (pages, request.first.0, pages));
        match self.backend.submit(self.now, request) {
            Ok(()) => {
                self.outstanding.insert(id, what);
                Ok(())
            }
            Err(SubmitError::Full(request)) => Err(request),
            Err(SubmitError::NotReady(_)) => panic!("{}: not ready", self.name),
        }
    }

    fn poll(&mut self) -> Option<Completion> {
        let completion = self.backend.poll_completion(self.now)?;
        let what = self.outstanding.remove(&completion.id.0);
        let (pages, ..) =
            what.unwrap_or_else(|| panic!("{}: {:?} ends twice", self.name, completion.id));
        assert_eq!(completion.pages.len(), pages, "{}: the pages come back", self.name);
        Some(completion)
    }

    /// A discard of these runs; what was handed back, if it was not taken.
    #[allow(clippy::result_large_err, reason = "as in SwapBackend::discard")]
    fn discard(&mut self, runs: &[(u32, u32)], deadline: Option<Time>) -> Result<(), Discard> {
        let id = self.next_id;
        self.next_id += 1;
        let runs = runs.iter().map(|(first, slots)| Run { first: Slot(*first), slots: *slots });
        let discard = Discard { id: RequestId(id), runs: runs.collect(), deadline };
        let what = (0, discard.runs[0].first.0, discard.slots() as usize);
        let copy = discard.clone();
        match self.backend.discard(self.now, discard) {
            Ok(()) => {
                self.outstanding.insert(id, what);
                Ok(())
            }
            Err(back) => {
                assert_eq!(back, copy, "{}: handed back whole", self.name);
                Err(back)
            }
        }
    }

    fn next(&mut self) -> Completion {
        for _ in 0..ROUNDS_MAX {
            if let Some(completion) = self.poll() {
                return completion;
            }
            self.check_listed();
            self.drive();
        }
        panic!("{}: {:?} never end", self.name, self.outstanding);
    }

    fn drive(&mut self) {
        let before = self.now;
        (self.drive)(&mut self.backend, &mut self.now);
        assert!(self.now >= before, "{}: `drive` puts the time back", self.name);
    }

    /// Time passes to `at`, by a nanosecond at least, and nothing else happens.
    fn wait(&mut self, at: Time) {
        self.now = at.max(self.now + Span::from_nanos(1));
    }

    /// After `poll_completion` gave all it had: what has not ended is listed, once, and nothing else.
    fn check_listed(&self) {
        let mut listed = BTreeMap::new();
        self.backend.outstanding(&mut |o| {
            let twice = listed.insert(o.id.0, (o.first.0, o.pages as usize));
            assert!(twice.is_none(), "{}: {:?} is listed twice", self.name, o.id);
        });
        let submitted =
            self.outstanding.iter().map(|(id, (_, first, pages))| (*id, (*first, *pages)));
        let submitted: BTreeMap<_, _> = submitted.collect();
        assert!(
            listed == submitted,
            "{}: (id, (first slot, pages)) of what is outstanding: {submitted:?}, listed: {listed:?}",
            self.name
        );
    }

    fn write(&mut self, first: u32, pages: usize, generation: u8) {
        let request = self.request(Op::Write, first, pages, generation);
        self.submit(request).expect("an idle backend takes a request");
        self.next().outcome.expect("the write succeeds");
    }

    fn read_and_compare(&mut self, first: u32, pages: usize, generation: u8) {
        let request = self.request(Op::Read, first, pages, 0);
        self.submit(request).expect("an idle backend takes a request");
        let completion = self.next();
        completion.outcome.expect("the read succeeds");
        self.compare(&completion, first, generation);
    }

    fn compare(&self, completion: &Completion, first: u32, generation: u8) {
        for (i, page) in completion.pages.iter().enumerate() {
            let mut want = [0; 4096];
            let slot = first + i as u32;
            content(slot, generation, &mut want);
            assert!(*page.bytes() == want, "{}: slot {slot} has other content", self.name);
        }
    }
}

fn limits<B: SwapBackend>(world: &mut World<'_, B>) {
    let limits = world.backend.limits();
    assert!((1..=crate::backend::BATCH_PAGES_MAX).contains(&limits.batch_pages), "{limits:?}");
    assert!(limits.in_flight >= 1, "{limits:?}");
    assert!(!world.backend.server().is_empty(), "the server has a name");
    let mut outstanding = 0;
    world.backend.outstanding(&mut |_| outstanding += 1);
    assert_eq!(outstanding, 0, "nothing was submitted");
}

fn write_and_read_back<B: SwapBackend>(world: &mut World<'_, B>) {
    for generation in 1..4 {
        for slot in [0, 1, 2, 63] {
            world.write(slot, 1, generation);
        }
        for slot in [63, 0, 2, 1] {
            world.read_and_compare(slot, 1, generation);
        }
    }
}

fn batches<B: SwapBackend>(world: &mut World<'_, B>) {
    for pages in 1..=world.backend.limits().batch_pages {
        let first = 3 + pages as u32;
        world.write(first, pages, pages as u8);
        world.read_and_compare(first, pages, pages as u8);
    }
    // What was not written stays.
    let pages = world.backend.limits().batch_pages;
    world.write(20, pages, 99);
    world.write(19, 1, 98);
    world.write(20 + pages as u32, 1, 97);
    world.read_and_compare(20, pages, 99);
}

fn out_of_range<B: SwapBackend>(world: &mut World<'_, B>) {
    let slots = world.slots();
    world.write(slots - 1, 1, 5);
    world.read_and_compare(slots - 1, 1, 5);
    for (op, first, pages) in [
        (Op::Read, slots, 1),
        (Op::Write, slots, 1),
        (Op::Read, slots - 1, 2.min(world.backend.limits().batch_pages)),
        (Op::Write, u32::MAX, 1),
    ] {
        if first == slots - 1 && pages == 1 {
            continue;
        }
        let mut request = world.request(op, 0, pages, 6);
        request.first = Slot(first);
        world.submit(request).expect("an idle backend takes a request");
        let outcome = world.next().outcome;
        let refused = matches!(outcome, Err(StoreError::OutOfRange { .. }));
        assert!(refused, "{op:?} of {pages} at {first} of {slots}: {outcome:?}");
    }
    world.read_and_compare(slots - 1, 1, 5);
}

fn full_queue<B: SwapBackend>(world: &mut World<'_, B>) {
    let depth = world.backend.limits().in_flight.min(32);
    let mut full = None;
    for i in 0..=depth {
        let request = world.request(Op::Write, i as u32, 1, 7);
        if let Err(request) = world.submit(request) {
            full = Some((i, request));
            break;
        }
        let mut outstanding = 0;
        world.backend.outstanding(&mut |o| outstanding += o.pages);
        assert!(outstanding as usize <= world.outstanding.len(), "no more than was submitted");
    }
    if let Some((at, request)) = full {
        assert!(at >= world.backend.limits().in_flight.min(32), "full after {at}");
        assert_eq!((request.first.0, request.pages.len()), (at as u32, 1), "handed back whole");
        let mut want = [0; 4096];
        content(at as u32, 7, &mut want);
        assert!(*request.pages[0].bytes() == want, "handed back with its content");
    } else {
        assert!(world.backend.limits().in_flight > 32, "the bound is kept");
    }
    while !world.outstanding.is_empty() {
        world.next().outcome.expect("the write succeeds");
    }
    world.read_and_compare(0, 1, 7);
}

fn many_at_once<B: SwapBackend>(world: &mut World<'_, B>) {
    let depth = world.backend.limits().in_flight.min(16) as u32;
    for generation in [11, 12] {
        for slot in 0..depth {
            let request = world.request(Op::Write, slot * 2, 1, generation);
            assert!(world.submit(request).is_ok(), "room for {depth}");
        }
        while !world.outstanding.is_empty() {
            world.next().outcome.expect("the write succeeds");
        }
        let mut reads = BTreeMap::new();
        for slot in (0..depth).rev() {
            let request = world.request(Op::Read, slot * 2, 1, 0);
            reads.insert(request.id.0, slot * 2);
            assert!(world.submit(request).is_ok(), "room for {depth}");
        }
        while !world.outstanding.is_empty() {
            let completion = world.next();
            completion.outcome.as_ref().expect("the read succeeds");
            world.compare(&completion, reads[&completion.id.0], generation);
        }
    }
}

/// The server is silent: whatever ends now was brought on by time alone, so `poll_deadline` has to have
/// said when.
fn announced<B: SwapBackend>(world: &mut World<'_, B>) {
    let request = world.request(Op::Write, 9, 1, 21);
    assert!(world.submit(request).is_ok(), "an idle backend takes a request");
    for _ in 0..TIMERS_MAX {
        if let Some(completion) = world.poll() {
            completion.outcome.expect("the write succeeds");
            break;
        }
        let Some(at) = world.backend.poll_deadline() else {
            world.wait(world.now + LONG);
            assert!(world.poll().is_none(), "time ended a request, and poll_deadline() was None");
            break;
        };
        world.wait(at);
    }
    while !world.outstanding.is_empty() {
        world.next().outcome.expect("the write succeeds");
    }
    world.read_and_compare(9, 1, 21);
}

/// The server is silent: at the deadline every request has ended, done or timed out. Only its timer can
/// do that, so `poll_deadline` is never later.
fn deadlines<B: SwapBackend>(world: &mut World<'_, B>) {
    let deadline = world.now + PATIENCE;
    for slot in 0..world.backend.limits().in_flight.min(4) as u32 {
        let op = if slot % 2 == 0 { Op::Write } else { Op::Read };
        let request = Request { deadline: Some(deadline), ..world.request(op, 40 + slot, 1, 22) };
        assert!(world.submit(request).is_ok(), "an idle backend takes a request");
    }
    loop {
        while let Some(completion) = world.poll() {
            let fine = matches!(completion.outcome, Ok(_) | Err(StoreError::TimedOut));
            assert!(fine, "a request ends done or timed out: {:?}", completion.outcome);
        }
        if world.outstanding.is_empty() {
            break;
        }
        world.check_listed();
        assert!(world.now < deadline, "{:?} outlive their deadline", world.outstanding);
        let at = world.backend.poll_deadline();
        assert!(
            at.is_some_and(|at| at <= deadline),
            "poll_deadline() is {at:?}, and a request gives up at {deadline:?}"
        );
        world.wait(at.unwrap_or(deadline));
    }
    // Giving up harms nothing that comes after it.
    world.write(50, 1, 23);
    world.read_and_compare(50, 1, 23);
}

/// A discard is no promise: the slots may hold anything then, and the store may take no more of them after the first.
fn discards<B: SwapBackend>(world: &mut World<'_, B>) {
    let Some(limits) = world.backend.discards() else {
        assert!(world.discard(&[(1, 1)], None).is_err(), "it says that it takes none");
        return;
    };
    assert!((1..=DISCARD_RUNS_MAX).contains(&limits.runs) && limits.slots > 0, "{limits:?}");
    for generation in 31..33 {
        for slot in 8..28 {
            world.write(slot, 1, generation);
        }
        let runs = [(10, 4.min(limits.slots)), (20, 2.min(limits.slots.saturating_sub(4)))];
        let runs = if limits.runs > 1 && runs[1].1 > 0 { &runs[..] } else { &runs[..1] };
        if world.discard(runs, None).is_ok() {
            let completion = world.next();
            assert!(completion.pages.is_empty(), "a discard has no pages");
            let fine = completion.outcome.is_ok() || world.backend.discards().is_none();
            assert!(fine, "{:?}, and it says that it takes them", completion.outcome);
        }
        for slot in (8..10).chain(14..20).chain(22..28) {
            world.read_and_compare(slot, 1, generation);
        }
        for slot in (10..14).chain(20..22) {
            let request = world.request(Op::Read, slot, 1, 0);
            world.submit(request).expect("an idle backend takes a request");
            world.next().outcome.expect("a slot that was discarded can be read");
            world.write(slot, 1, generation + 10);
            world.read_and_compare(slot, 1, generation + 10);
        }
    }
}

fn discards_end<B: SwapBackend>(world: &mut World<'_, B>) {
    let slots = world.slots();
    if world.backend.discards().is_some() {
        assert!(world.discard(&[(slots, 1)], None).is_ok(), "an idle backend takes it");
        let outcome = world.next().outcome;
        let refused = matches!(outcome, Err(StoreError::OutOfRange { .. }));
        assert!(refused || world.backend.discards().is_none(), "{outcome:?} beyond {slots}");
    }
    // Those that are taken end at their deadline, whatever the server does.
    let deadline = world.now + PATIENCE;
    let mut taken = 0;
    while taken < 3 && world.discard(&[(30 + taken, 1)], Some(deadline)).is_ok() {
        taken += 1;
    }
    world.check_listed();
    while !world.outstanding.is_empty() {
        if world.poll().is_some() {
            continue;
        }
        let at = world.backend.poll_deadline();
        assert!(
            world.now < deadline && at.is_some_and(|at| at <= deadline),
            "{at:?}, {deadline:?}"
        );
        world.wait(at.unwrap_or(deadline));
    }
    world.write(50, 1, 24);
    world.read_and_compare(50, 1, 24);
    // One that is outstanding at shutdown ends as the others do.
    let _ = world.discard(&[(30, 1)], None);
    world.backend.shutdown(world.now);
    while !world.outstanding.is_empty() {
        let outcome = world.next().outcome;
        assert!(!matches!(outcome, Err(StoreError::TimedOut)), "{outcome:?} at shutdown");
    }
    assert!(world.discard(&[(30, 1)], None).is_err(), "nothing is taken after shutdown");
}

fn shutdown<B: SwapBackend>(world: &mut World<'_, B>) {
    let depth = world.backend.limits().in_flight.min(8);
    for slot in 0..depth {
        let op = if slot % 2 == 0 { Op::Write } else { Op::Read };
        let request = world.request(op, slot as u32, 1, 13);
        assert!(world.submit(request).is_ok(), "room for {depth}");
    }
    world.backend.shutdown(world.now);
    let state = world.backend.state();
    assert!(!matches!(state, BackendState::Ready { .. }), "{state:?} after shutdown");
    for _ in 0..depth {
        let outcome = world.next().outcome;
        let fine = matches!(outcome, Ok(_) | Err(StoreError::Cancelled));
        assert!(fine, "a request ends done or cancelled: {outcome:?}");
    }
    for _ in 0..100 {
        assert!(world.poll().is_none());
        world.drive();
    }
    assert_eq!(world.backend.state(), BackendState::Stopped, "it stopped");
    let request = Request {
        id: RequestId(0),
        op: Op::Read,
        first: Slot(0),
        pages: PageVec::from_iter(world.pool.alloc(Gfp::KERNEL)),
        deadline: None,
    };
    let answer = world.backend.submit(world.now, request);
    assert!(matches!(answer, Err(SubmitError::NotReady(_))), "nothing is taken after shutdown");
}
