//! A scheme of your own: `mem://SLOTS` is pages in the memory of this process. It joins the schemes there are in a
//! table, and the load of `netswap io` runs on it, every page verified.
use std::{collections::VecDeque, error::Error, fmt, net::IpAddr};

use netswap::net::{Action, Disconnect, SendVec, Session};
use netswap::real::load::{Load, LoadSpec, Pattern, Stop};
use netswap::real::{Location, OpenOptions, RealClient, RealStore, Scheme, SchemeTable};
use netswap::real::{StoreFacts, fit_to_write};
use netswap::reserve::{PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap::swap::*;

/// What the URL says.
#[derive(Debug)]
struct Memory(u32);

impl fmt::Display for Memory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mem://{}", self.0)
    }
}

impl Location for Memory {
    fn host(&self) -> Option<String> {
        None // Nobody is connected to.
    }
    fn client(&self, _: IpAddr, options: &OpenOptions) -> Box<dyn RealClient> {
        Box::new(Client::new(self.to_string(), self.0, options.in_flight))
    }
}

/// Requests are carried out when completions are asked for.
struct Client {
    name: String,
    pages: Vec<[u8; PAGE_SIZE]>,
    queue: VecDeque<Request>,
    in_flight: usize,
    is_stopped: bool,
}

impl Client {
    fn new(name: String, slots: u32, in_flight: usize) -> Client {
        let pages = vec![[0; PAGE_SIZE]; slots as usize];
        Client {
            name,
            pages,
            queue: VecDeque::with_capacity(in_flight),
            in_flight,
            is_stopped: false,
        }
    }
    fn carry_out(&mut self, request: &mut Request) -> Result<Stored, StoreError> {
        if self.is_stopped {
            return Err(StoreError::Cancelled);
        }
        let (first, slots) = (request.first.0, self.pages.len() as u32);
        let range = first as usize..first as usize + request.pages.len();
        let beyond = StoreError::OutOfRange { slot: first.max(slots) };
        for (page, stored) in request.pages.iter_mut().zip(self.pages.get_mut(range).ok_or(beyond)?)
        {
            match request.op {
                Op::Read => *page.bytes_mut() = *stored,
                Op::Write => *stored = *page.bytes(),
            }
        }
        Ok(Stored::default())
    }
}

#[rustfmt::skip]
impl SwapBackend for Client {
    fn state(&self) -> BackendState {
        let slots = self.pages.len() as u32;
        if self.is_stopped { BackendState::Stopped } else { BackendState::Ready { slots } }
    }
    fn limits(&self) -> BackendLimits { BackendLimits { batch_pages: 16, in_flight: self.in_flight } }
    fn server(&self) -> &str { &self.name }
    fn submit(&mut self, _: Time, request: Request) -> Result<(), SubmitError> {
        if self.is_stopped { return Err(SubmitError::NotReady(request)) }
        if self.queue.len() == self.in_flight { return Err(SubmitError::Full(request)) }
        self.queue.push_back(request);
        Ok(())
    }
    fn poll_completion(&mut self, _: Time) -> Option<Completion> {
        let mut request = self.queue.pop_front()?;
        let outcome = self.carry_out(&mut request);
        Some(Completion { id: request.id, pages: request.pages, outcome, is_loose: false })
    }
    fn poll_deadline(&self) -> Option<Time> { self.queue.front().map(|_| Time::ZERO) }
    fn shutdown(&mut self, _: Time) { self.is_stopped = true }
    fn outstanding(&self, visit: &mut dyn FnMut(Outstanding)) {
        self.queue.iter().for_each(|r| visit(Outstanding { id: r.id, first: r.first, phase: Phase::Queued,
            pages: r.pages.len() as u32, verb: "COPY", tag_name: "request", tag: r.id.0 }));
    }
}

/// A session that never asks for a connection.
#[rustfmt::skip]
impl Session for Client {
    fn handle_connected(&mut self, _: Time) {}
    fn handle_disconnected(&mut self, _: Time, _: Disconnect) {}
    fn recv_buffer(&mut self) -> &mut [u8] { &mut [] }
    fn handle_received(&mut self, _: Time, _: usize) {}
    fn poll_send<'a>(&'a mut self, _: Time, _: &mut SendVec<'a>) {}
    fn handle_sent(&mut self, _: Time, _: usize) {}
    fn poll_action(&mut self, _: Time) -> Option<Action> { None }
    fn poll_deadline(&self) -> Option<Time> { None }
    fn handle_deadline(&mut self, _: Time) {}
}

impl RealClient for Client {
    fn facts(&self) -> StoreFacts {
        // Nothing in it is anybody's: a swap header may be written.
        StoreFacts { is_new: true, ..StoreFacts::default() }
    }
}

fn main() -> Result<(), Box<dyn Error>> {
    let pool = PagePool::new(PoolConfig::new(128));
    conformance::check(&pool, || Client::new("mem".into(), 64, 8), |_, _| {});

    let mut schemes = SchemeTable::builtin();
    schemes.register(Scheme::new("mem", "mem://SLOTS", |url| {
        Ok(Memory(url["mem://".len()..].parse()?))
    }))?;
    let url = schemes.parse("mem://1024")?;
    let mut store = RealStore::open(&url, &OpenOptions::default())?;
    let area = fit_to_write(&mut store, false)?;
    let load = LoadSpec {
        pattern: Pattern::Mixed,
        block_pages: 1,
        depth: 16,
        slots: area.slots,
        first_slot: area.first_slot,
        stride_blocks: 1,
        stop: Stop::Ops(20_000),
        verify: true,
        run: 1,
        seed: 7,
        request_timeout: Some(Span::from_secs(1)),
    };
    let report = Load::new(load)?.run(&mut store, &mut |_| {})?;
    println!("{url}: {} operations, {} pages verified", report.ops(), report.pages_verified);
    assert!(report.is_fine() && report.pages_verified > 10_000, "{report:?}");
    Ok(())
}
