//! The pager inside a simulation loop of your own.
//!
//! What is shown: tasks that together map twice as many pages as there are frames. Each writes its
//! pages, then reads them back and compares. The loop owns the page tables, the tasks and the time;
//! the pager decides which pages are resident and talks to the store.
//!
//! The three things a loop does:
//! 1. run a task until it touches a page that is not mapped, and hand that fault in;
//! 2. poll the pager until it has no more to tell, and wake the tasks whose faults ended;
//! 3. if no task can run, move the time to the pager's deadline.

use netswap::reserve::{PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap::swap::{
    Access, AreaOptions, Fault, MemBackend, Mmu, PageId, Pager, PagerConfig, PagerEvent, TaskId,
};

const FRAMES: u32 = 256;
const TASKS: u32 = 4;
const PAGES_EACH: u32 = 2 * FRAMES / TASKS;
/// What one access costs.
const ACCESS: Span = Span::from_nanos(100);

/// A page table entry, as a processor keeps it.
#[derive(Clone, Copy, Default)]
struct Entry {
    mapped: bool,
    writable: bool,
    accessed: bool,
    dirty: bool,
}

struct Tables(Vec<Entry>);

impl Tables {
    fn allows(&self, page: PageId, access: Access) -> bool {
        let entry = self.0[page.0 as usize];
        entry.mapped && (entry.writable || access == Access::Read)
    }
}

impl Mmu for Tables {
    fn map(&mut self, page: PageId, writable: bool) {
        self.0[page.0 as usize] = Entry { mapped: true, writable, accessed: true, dirty: false };
    }

    fn unmap(&mut self, page: PageId) -> bool {
        std::mem::take(&mut self.0[page.0 as usize]).dirty
    }

    fn test_and_clear_accessed(&mut self, page: PageId) -> bool {
        std::mem::take(&mut self.0[page.0 as usize].accessed)
    }
}

/// A task writes pages 0, 1, 2, .. of its mapping, then reads them in the same order.
struct Task {
    first: PageId,
    /// Accesses done.
    step: u32,
    waits: bool,
}

impl Task {
    /// The next access; `None` when the task has finished.
    fn next(&self) -> Option<(PageId, Access)> {
        let access = if self.step < PAGES_EACH { Access::Write } else { Access::Read };
        let page = PageId(self.first.0 + self.step % PAGES_EACH);
        (self.step < 2 * PAGES_EACH).then_some((page, access))
    }
}

/// What a page has to hold: no two are equal, none is zero.
fn content(page: PageId) -> [u8; PAGE_SIZE] {
    let mut bytes = [0; PAGE_SIZE];
    for (i, word) in bytes.chunks_exact_mut(4).enumerate() {
        word.copy_from_slice(&((page.0 + 1) << 10 | i as u32).to_le_bytes());
    }
    bytes
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut now = Time::ZERO;
    let pool = PagePool::new(PoolConfig::new(FRAMES));
    let mut pager = Pager::new(pool, PagerConfig::new(TASKS, TASKS * PAGES_EACH));
    let mut tables = Tables(vec![Entry::default(); (TASKS * PAGES_EACH) as usize]);

    // A store that takes 200 to 400 us for a request.
    let store = MemBackend::formatted(1 + TASKS * PAGES_EACH)
        .with_latency(Span::from_micros(200), Span::from_micros(400));
    pager.add_area(now, store, AreaOptions::new("memory"));

    let mut tasks = Vec::new();
    for _ in 0..TASKS {
        let first = pager.try_map_anonymous(PAGES_EACH)?.start;
        tasks.push(Task { first, step: 0, waits: false });
    }

    let mut compared = 0;
    while tasks.iter().any(|task| task.next().is_some()) {
        let mut ran = false;
        for (id, task) in tasks.iter_mut().enumerate().filter(|(_, task)| !task.waits) {
            let Some((page, access)) = task.next() else { continue };
            ran = true;
            if !tables.allows(page, access) {
                let id = TaskId(id as u32);
                match pager.handle_fault(now, &mut tables, id, page, access) {
                    Fault::Done => {}
                    Fault::Waits => {
                        task.waits = true;
                        continue;
                    }
                    Fault::Failed(error) => return Err(error.into()),
                }
            }
            // The access itself, and what the processor notes of it.
            now += ACCESS;
            let entry = &mut tables.0[page.0 as usize];
            entry.accessed = true;
            entry.dirty |= access == Access::Write;
            let bytes = pager.page(page).expect("a page that is mapped is resident");
            match access {
                Access::Write => *bytes = content(page),
                Access::Read => {
                    assert!(*bytes == content(page), "{page:?} holds something else");
                    compared += 1;
                }
            }
            task.step += 1;
        }

        while let Some(event) = pager.poll(now, &mut tables) {
            match event {
                // The task tries again: its page may have been taken away again meanwhile.
                PagerEvent::FaultDone { task, .. } => tasks[task.0 as usize].waits = false,
                PagerEvent::FaultFailed { error, .. } => return Err(error.into()),
                PagerEvent::AreaRefused { error, .. } => return Err(error.into()),
                _ => {}
            }
        }

        if !ran && tasks.iter().all(|task| task.waits || task.next().is_none()) {
            let unfinished = tasks.iter().any(|task| task.next().is_some());
            match pager.poll_deadline() {
                Some(at) => now = now.max(at),
                None if unfinished => {
                    return Err("tasks wait, and nothing is going to happen".into());
                }
                None => {}
            }
        }
    }

    let stats = pager.stats();
    println!(
        "{TASKS} tasks, {} pages in {FRAMES} frames: {} page-outs, {} page-ins ({} read ahead), \
         {} faults that waited, {:.1} ms of virtual time",
        TASKS * PAGES_EACH,
        stats.page_outs,
        stats.page_ins,
        stats.readahead_pages,
        stats.major_faults,
        now.as_secs_f64() * 1e3,
    );
    assert_eq!(compared, TASKS * PAGES_EACH, "every page was compared");
    assert!(stats.page_outs > 0 && stats.page_ins > 0, "there was paging");
    println!("{compared} pages hold what was written to them");
    Ok(())
}
