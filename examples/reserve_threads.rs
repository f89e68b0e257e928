//! Producers fill pages until none is left. A writer writes them out, which frees them, and needs a page to
//! do so: a buffer. With a reserve it has one; `--without-reserve` all wait for each other (exit code 1).
use std::process::ExitCode;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Barrier, Condvar, Mutex};

use netswap::reserve::{AllocError, EmergencyScope, Frame, Gfp, PagePool, PoolConfig, ReserveId};

const PRODUCERS: usize = 3;
const PAGES: u64 = 6_000;
/// Nothing was freed for so long: nothing will be.
const PATIENCE: std::time::Duration = std::time::Duration::from_secs(3);

/// The pool, and a bell that rings when memory comes back.
struct Memory {
    pool: PagePool,
    reserve: Option<ReserveId>,
    bell: Mutex<()>,
    freed: Condvar,
}
impl Memory {
    /// A page, waiting for one as long as anybody frees any.
    fn alloc(&self) -> Result<Frame, AllocError> {
        let mut bell = self.bell.lock().unwrap();
        loop {
            // Whoever frees rings under the same lock: no ring is missed between asking and waiting.
            let (frees, page) = (self.pool.frees(), self.pool.alloc(Gfp::KERNEL));
            if page.is_ok() {
                return page;
            }
            let (again, timeout) = self.freed.wait_timeout(bell, PATIENCE).unwrap();
            if timeout.timed_out() && self.pool.frees() == frees {
                return page;
            }
            bell = again;
        }
    }
    fn free(&self, pages: [Frame; 2]) {
        self.pool.free_burst(pages);
        let _bell = self.bell.lock().unwrap();
        self.freed.notify_all();
    }
}

/// Fills pages and hands them on. Says when memory has run out, then goes on as it comes back.
fn produce(memory: &Memory, dirty: &Sender<Frame>, id: u64, full: &Barrier) {
    let mut has_run_out = false;
    for number in (id..PAGES).step_by(PRODUCERS) {
        let page = memory.pool.alloc(Gfp::KERNEL).or_else(|_| {
            if !std::mem::replace(&mut has_run_out, true) {
                full.wait();
            }
            memory.alloc()
        });
        let Ok(mut page) = page else { return };
        page.bytes_mut()[..8].copy_from_slice(&number.to_le_bytes());
        dirty.send(page).unwrap();
    }
}

/// Writes out what is dirty, through a buffer as a network would. Says how many buffers were emergencies.
fn write_out(memory: &Memory, dirty: &Receiver<Frame>) -> Result<u32, AllocError> {
    // This thread frees memory: it, and nobody else, may use what is set aside for that.
    let _scope = memory.reserve.map(|reserve| EmergencyScope::enter(&memory.pool, reserve));
    let (mut sum, mut emergencies) = (0, 0);
    for page in dirty {
        let mut buffer = memory.alloc()?;
        *buffer.bytes_mut() = *page.bytes();
        sum += u64::from_le_bytes(buffer.bytes()[..8].try_into().unwrap());
        emergencies += u32::from(buffer.charged_to().is_some());
        memory.free([page, buffer]);
    }
    assert_eq!(sum, PAGES * (PAGES - 1) / 2, "every page was written, once");
    Ok(emergencies)
}

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    assert!(args.is_empty() || args == ["--without-reserve"], "unknown arguments: {args:?}");
    let pool = PagePool::new(PoolConfig { headroom: 0, ..PoolConfig::new(256) });
    let reserve = args.is_empty().then(|| pool.add_reserve(ReserveId::ROOT, "write-out", 1));
    assert!(reserve.is_none_or(|reserve| pool.connect(reserve).is_ok()), "all memory is free");
    let memory = Memory { pool, reserve, bell: Mutex::default(), freed: Condvar::new() };
    let (full, (to_writer, dirty)) = (Barrier::new(PRODUCERS + 1), channel());
    let written = std::thread::scope(|threads| {
        for id in 0..PRODUCERS {
            let (memory, to_writer, full) = (&memory, to_writer.clone(), &full);
            threads.spawn(move || produce(memory, &to_writer, id as u64, full));
        }
        drop(to_writer);
        full.wait(); // The writer runs when nothing is left, as writers do.
        write_out(&memory, &dirty)
    });
    match written {
        Ok(n) => println!("{PAGES} pages written out, {n} with a buffer from the reserve"),
        Err(error) => println!("deadlock: to free a page the writer needs one, and {error}"),
    }
    ExitCode::from(u8::from(written.is_err()))
}
