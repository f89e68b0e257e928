//! A store of your own: pages in a local file. The conformance suite checks it, then a pager uses it.
use std::{collections::VecDeque, fs::File, io, os::unix::fs::FileExt};

use netswap::reserve::{PAGE_SIZE, PagePool, PoolConfig, Time};
use netswap::swap::machine::{Linear, Machine, MachineConfig, Nothing};
use netswap::swap::{signature::Header, *};

const SLOTS: u32 = 256;
/// Requests wait in order, and are carried out when the pager asks for completions.
struct FileBackend(File, BackendState, VecDeque<Request>);
impl FileBackend {
    fn create() -> io::Result<FileBackend> {
        let path = std::env::temp_dir().join(format!("netswap-{}.swap", std::process::id()));
        let file = File::options().read(true).write(true).create_new(true).open(&path)?;
        std::fs::remove_file(path)?; // The file lives on until it is closed.
        file.set_len(Slot(SLOTS).offset())?;
        let mut header = [0; PAGE_SIZE];
        Header::new(SLOTS).write(&mut header);
        file.write_all_at(&header, 0)?;
        Ok(FileBackend(file, BackendState::Ready { slots: SLOTS }, VecDeque::new()))
    }
    fn carry_out(&mut self, request: &mut Request) -> Result<Stored, StoreError> {
        if self.1 == BackendState::Stopped {
            return Err(StoreError::Cancelled);
        } else if u64::from(request.first.0) + request.pages.len() as u64 > SLOTS.into() {
            return Err(StoreError::OutOfRange { slot: request.first.0.max(SLOTS) });
        }
        for (page, slot) in request.pages.iter_mut().zip(request.first.0..) {
            let moved = match (request.op, Slot(slot).offset()) {
                (Op::Read, at) => self.0.read_exact_at(page.bytes_mut(), at),
                (Op::Write, at) => self.0.write_all_at(page.bytes(), at),
            };
            moved.map_err(|_| StoreError::Io)?;
        }
        Ok(Stored::default())
    }
}
#[rustfmt::skip]
impl SwapBackend for FileBackend {
    fn state(&self) -> BackendState { self.1 }
    fn limits(&self) -> BackendLimits { BackendLimits { batch_pages: 16, in_flight: 8 } }
    fn server(&self) -> &str { "a local file" }
    fn submit(&mut self, _now: Time, request: Request) -> Result<(), SubmitError> {
        if self.1 == BackendState::Stopped { return Err(SubmitError::NotReady(request)) }
        if self.2.len() >= self.limits().in_flight { return Err(SubmitError::Full(request)) }
        self.2.push_back(request);
        Ok(())
    }
    fn poll_completion(&mut self, _now: Time) -> Option<Completion> {
        let mut request = self.2.pop_front()?;
        let outcome = self.carry_out(&mut request);
        Some(Completion { id: request.id, pages: request.pages, outcome, is_loose: false })
    }
    fn poll_deadline(&self) -> Option<Time> { self.2.front().map(|_| Time::ZERO) }
    fn shutdown(&mut self, _now: Time) { self.1 = BackendState::Stopped }
    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        self.2.iter().for_each(|r| visit(Outstanding { id: r.id, first: r.first, phase: Phase::Queued,
            pages: r.pages.len() as u32, verb: "FILE I/O", tag_name: "request", tag: r.id.0 }));
    }
}
fn main() -> Result<(), Box<dyn std::error::Error>> {
    let pool = PagePool::new(PoolConfig::new(128));
    conformance::check(&pool, || FileBackend::create().expect("a file"), |_, _| {});
    let mut pager = Pager::new(pool, PagerConfig::new(1, 200));
    pager.add_area(Time::ZERO, FileBackend::create()?, AreaOptions::new("file"));
    let mut machine = Machine::new(MachineConfig::default());
    machine.spawn(Box::new(Linear::new(200, 2, 100)), pager.map_anonymous(200), false);
    for now in (0..1_000_000).map(|us| Time::from_nanos(us * 1000)) {
        machine.poll(now, &mut pager, &mut Nothing);
        while let Some(event) = pager.poll(now, machine.tables()) {
            machine.handle_pager_event(now, &event);
        }
    }
    let (PagerStats { page_ins, page_outs, .. }, stats) = (pager.stats(), machine.stats());
    println!("conforms; 200 pages in 128 frames: {page_outs} written to the file, {page_ins} read");
    assert!(machine.is_done() && *page_ins > 0 && stats.pages_wrong == 0, "{stats:?}");
    Ok(())
}
