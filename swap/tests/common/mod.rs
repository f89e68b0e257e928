//! A small machine for the tests: page tables, tasks that touch pages, and what each page must hold.
#![allow(dead_code, unreachable_pub, reason = "each test uses its part")]

use std::collections::BTreeMap;
use std::ops::Range;

use netswap_reserve::{PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap_swap::*;

#[derive(Clone, Copy, Debug, Default)]
struct Entry {
    mapped: bool,
    writable: bool,
    accessed: bool,
    dirty: bool,
}

#[derive(Debug, Default)]
pub struct Tables(Vec<Entry>);

impl Tables {
    pub fn is_mapped(&self, page: PageId) -> bool {
        self.0[page.0 as usize].mapped
    }
}

impl Mmu for Tables {
    fn map(&mut self, page: PageId, writable: bool) {
        self.0[page.0 as usize] = Entry { mapped: true, writable, accessed: true, dirty: false };
    }

    fn unmap(&mut self, page: PageId) -> bool {
        let entry = std::mem::take(&mut self.0[page.0 as usize]);
        assert!(entry.mapped, "only mapped pages are unmapped");
        entry.dirty
    }

    fn test_and_clear_accessed(&mut self, page: PageId) -> bool {
        std::mem::take(&mut self.0[page.0 as usize].accessed)
    }
}

pub struct World {
    pub pool: PagePool,
    pub pager: Pager<MemBackend>,
    pub tables: Tables,
    pub now: Time,
    /// What each page must hold: its stamp, 0 for zeros.
    pub model: BTreeMap<u32, u64>,
    /// What each waiting task wants: the page, and the stamp to be written.
    pub waiting: BTreeMap<u32, (PageId, Option<u64>)>,
    pub events: Vec<PagerEvent>,
    pub failed: Vec<(TaskId, PageId, PageError)>,
    stamp: u64,
}

/// A page's content from its stamp; 0 is a page of zeros.
pub fn fill(stamp: u64, page: &mut [u8; PAGE_SIZE]) {
    page.fill(0);
    if stamp != 0 {
        for (i, chunk) in page.chunks_exact_mut(8).enumerate() {
            chunk.copy_from_slice(&(stamp.wrapping_mul(i as u64 + 0x9e37_79b9)).to_le_bytes());
        }
    }
}

impl World {
    pub fn new(frames: u32, tasks: u32, pages: u32) -> World {
        World::with(PagerConfig::new(tasks, pages), frames)
    }

    pub fn with(config: PagerConfig, frames: u32) -> World {
        let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(frames) });
        World {
            pager: Pager::new(pool.clone(), config),
            pool,
            tables: Tables(vec![Entry::default(); config.max_pages as usize]),
            now: Time::ZERO,
            model: BTreeMap::new(),
            waiting: BTreeMap::new(),
            events: Vec::new(),
            failed: Vec::new(),
            stamp: 0,
        }
    }

    pub fn area(&mut self, backend: MemBackend, options: AreaOptions) -> AreaId {
        let id = self.pager.add_area(self.now, backend, options);
        self.settle();
        id
    }

    pub fn map(&mut self, pages: u32) -> Range<PageId> {
        let range = self.pager.map_anonymous(pages);
        self.model.extend((range.start.0..range.end.0).map(|p| (p, 0)));
        range
    }

    pub fn unmap(&mut self, range: Range<PageId>) {
        self.pager.unmap(self.now, &mut self.tables, range.clone());
        self.model.retain(|page, _| !(range.start.0..range.end.0).contains(page));
        self.poll();
    }

    pub fn fresh_stamp(&mut self) -> u64 {
        self.stamp += 1;
        self.stamp * 0x1_0001
    }

    /// The task touches the page: reads and compares it, or writes `stamp`.
    pub fn touch(&mut self, task: u32, page: PageId, stamp: Option<u64>) -> Fault {
        let entry = self.tables.0[page.0 as usize];
        let ok = entry.mapped && (stamp.is_none() || entry.writable);
        let access = if stamp.is_some() { Access::Write } else { Access::Read };
        let fault = if ok {
            Fault::Done
        } else {
            self.pager.handle_fault(self.now, &mut self.tables, TaskId(task), page, access)
        };
        match &fault {
            Fault::Done => self.access(page, stamp),
            Fault::Waits => {
                self.waiting.insert(task, (page, stamp));
            }
            Fault::Failed(_) => {}
        }
        fault
    }

    fn access(&mut self, page: PageId, stamp: Option<u64>) {
        let entry = &mut self.tables.0[page.0 as usize];
        assert!(entry.mapped && (stamp.is_none() || entry.writable), "a fault that is done maps");
        entry.accessed = true;
        entry.dirty |= stamp.is_some();
        let content = self.pager.page(page).expect("a mapped page is resident");
        let mut want = [0; PAGE_SIZE];
        fill(self.model[&page.0], &mut want);
        assert!(*content == want, "page {} holds something else", page.0);
        if let Some(stamp) = stamp {
            fill(stamp, content);
            self.model.insert(page.0, stamp);
        }
    }

    /// Polls until nothing happens.
    pub fn poll(&mut self) {
        while let Some(event) = self.pager.poll(self.now, &mut self.tables) {
            match &event {
                PagerEvent::FaultDone { task, page } => {
                    let (wanted, stamp) = self.waiting.remove(&task.0).expect("a task that waits");
                    assert_eq!(wanted, *page);
                    // Another task's fault may have unmapped it since: then this one faults again.
                    self.touch(task.0, *page, stamp);
                }
                PagerEvent::FaultFailed { task, page, error } => {
                    let (wanted, _) = self.waiting.remove(&task.0).expect("a task that waits");
                    assert_eq!(wanted, *page);
                    self.failed.push((*task, *page, error.clone()));
                }
                _ => self.events.push(event),
            }
        }
    }

    /// Moves time to the next deadline; whether there is one.
    pub fn advance(&mut self) -> bool {
        let Some(deadline) = self.pager.poll_deadline() else { return false };
        self.now = deadline.max(self.now);
        self.poll();
        true
    }

    /// Lets time pass until nothing waits.
    pub fn settle(&mut self) {
        self.poll();
        for _ in 0..200_000 {
            if !self.advance() {
                assert!(self.waiting.is_empty(), "waits for ever: {:?}", self.waits());
                return;
            }
        }
        panic!("does not settle: {:?}", self.waits());
    }

    pub fn waits(&self) -> Vec<PagerWait> {
        let mut waits = Vec::new();
        self.pager.visit_waits(&mut |wait| waits.push(wait));
        waits
    }

    /// Touches the page and lets time pass until it is done.
    pub fn touch_and_wait(&mut self, page: PageId, stamp: Option<u64>) -> Result<(), PageError> {
        self.failed.clear();
        match self.touch(0, page, stamp) {
            Fault::Done => return Ok(()),
            Fault::Failed(error) => return Err(error),
            Fault::Waits => {}
        }
        for _ in 0..200_000 {
            self.poll();
            if let Some((_, _, error)) = self.failed.pop() {
                return Err(error);
            }
            if !self.waiting.contains_key(&0) {
                return Ok(());
            }
            assert!(self.advance(), "waits for ever: {:?}", self.waits());
        }
        panic!("does not end: {:?}", self.waits());
    }

    pub fn write_all(&mut self, range: &Range<PageId>) {
        for page in range.start.0..range.end.0 {
            let stamp = self.fresh_stamp();
            self.touch_and_wait(PageId(page), Some(stamp)).unwrap();
        }
    }

    pub fn read_all(&mut self, range: &Range<PageId>) {
        for page in range.start.0..range.end.0 {
            self.touch_and_wait(PageId(page), None).unwrap();
        }
    }

    /// Lets `span` pass.
    pub fn pass(&mut self, span: Span) {
        let until = self.now + span;
        while self.pager.poll_deadline().is_some_and(|at| at <= until) && self.advance() {}
        self.now = until;
        self.poll();
    }

    pub fn info(&self, id: AreaId) -> AreaInfo {
        self.pager.areas().nth(id.0.into()).unwrap()
    }

    /// Ends all mappings; then every frame and every slot must be free.
    pub fn finish(mut self) {
        let pages = self.tables.0.len() as u32;
        self.waiting.clear();
        self.unmap_everything(pages);
        assert_eq!(self.pool.free_frames(), self.pool.frames(), "every frame is back");
        for area in self.pager.areas() {
            assert_eq!(area.used, 0, "every slot of {} is back", area.name);
        }
    }

    fn unmap_everything(&mut self, pages: u32) {
        self.pager.unmap(self.now, &mut self.tables, PageId(0)..PageId(pages));
        while self.pager.poll(self.now, &mut self.tables).is_some() {}
        for _ in 0..100_000 {
            let Some(at) = self.pager.poll_deadline() else { break };
            self.now = at.max(self.now);
            while self.pager.poll(self.now, &mut self.tables).is_some() {}
        }
    }
}
