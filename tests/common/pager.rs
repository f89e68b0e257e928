//! A pager over real sockets: page tables, one task that touches pages, what each page must hold, and the event
//! loop that the areas' connections share.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use netswap::net::kernel::{Clock, ConnConfig, ConnId, KernelConfig, KernelNet};
use netswap::nfs::{NfsBackend, NfsUrl};
use netswap::reserve::{PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap::swap::{
    Access, AreaId, AreaInfo, AreaOptions, Fault, Mmu, PageError, PageId, Pager, PagerConfig,
    PagerEvent, TaskId,
};

const TASK: TaskId = TaskId(0);
/// The longest that anything without a deadline may take here.
const WITHIN: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Default)]
struct Entry {
    is_mapped: bool,
    is_writable: bool,
    is_accessed: bool,
    is_dirty: bool,
}

struct Tables(Vec<Entry>);

impl Mmu for Tables {
    fn map(&mut self, page: PageId, writable: bool) {
        self.0[page.0 as usize] =
            Entry { is_mapped: true, is_writable: writable, is_accessed: true, is_dirty: false };
    }

    fn unmap(&mut self, page: PageId) -> bool {
        std::mem::take(&mut self.0[page.0 as usize]).is_dirty
    }

    fn test_and_clear_accessed(&mut self, page: PageId) -> bool {
        std::mem::take(&mut self.0[page.0 as usize].is_accessed)
    }
}

pub(crate) struct RealPager {
    pub(crate) pager: Pager<NfsBackend>,
    pub(crate) events: Vec<PagerEvent>,
    tables: Tables,
    net: KernelNet,
    /// By area.
    conns: Vec<ConnId>,
    clock: Clock,
    /// What each page holds; a page that is not here was lost, or never written.
    model: BTreeMap<u32, u64>,
    stamp: u64,
}

fn fill(page: &mut [u8; PAGE_SIZE], stamp: u64) {
    for (i, word) in page.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        *word = stamp.wrapping_mul(0x9e37_79b9_7f4a_7c15 + 2 * i as u64).to_le_bytes();
    }
}

impl RealPager {
    /// A host of `frames` frames, of which some are headroom, with one task that maps `pages` pages.
    pub(crate) fn new(frames: u32, pages: u32) -> RealPager {
        let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(frames) });
        let mut pager = Pager::new(pool, PagerConfig::new(1, pages));
        assert_eq!(pager.map_anonymous(pages).start, PageId(0));
        RealPager {
            pager,
            events: Vec::new(),
            tables: Tables(vec![Entry::default(); pages as usize]),
            net: KernelNet::new(KernelConfig::new(2)).unwrap(),
            conns: Vec::new(),
            clock: Clock::new(),
            model: BTreeMap::new(),
            stamp: 0,
        }
    }

    /// Takes the file at `url` into use.
    pub(crate) fn area(&mut self, url: &str, options: AreaOptions) -> AreaId {
        let url: NfsUrl = url.parse().unwrap();
        let config = url.config("127.0.0.1".parse().unwrap());
        self.conns.push(self.net.add_conn(ConnConfig::default()).unwrap());
        let id = self.pager.add_area(self.clock.now(), NfsBackend::new(config), options);
        self.until(|world| world.events.contains(&PagerEvent::AreaOn { area: id }));
        id
    }

    pub(crate) fn info(&self, id: AreaId) -> AreaInfo {
        self.pager.areas().find(|area| area.id == id).unwrap()
    }

    /// Turns everything until `is_so`.
    pub(crate) fn until(&mut self, mut is_so: impl FnMut(&RealPager) -> bool) {
        let begun = Instant::now();
        while !is_so(self) {
            assert!(begun.elapsed() < WITHIN, "it does not happen: {:?}", self.events);
            self.turn(Span::from_millis(50));
        }
    }

    /// Turns everything for so long.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let begun = Instant::now();
        while begun.elapsed() < time {
            self.turn(Span::from_millis(20));
        }
    }

    /// Everything that is due, once; sleeps for `most` if there is nothing.
    fn turn(&mut self, most: Span) {
        self.poll();
        let limit = self.clock.now() + most;
        let until: Time = self.pager.poll_deadline().map_or(limit, |at| at.min(limit));
        self.conns.iter().for_each(|conn| self.net.make_ready(*conn));
        self.drive();
        self.poll();
        self.net.wait(self.clock.now(), Some(until)).unwrap();
        self.drive();
        self.poll();
    }

    fn drive(&mut self) {
        let now = self.clock.now();
        self.net.wait(now, Some(now)).unwrap();
        while let Some(conn) = self.net.next_ready(now) {
            let area = self.conns.iter().position(|of_area| *of_area == conn).unwrap();
            self.net.drive(now, conn, self.pager.backend_mut(AreaId(area as u8)));
        }
    }

    fn poll(&mut self) {
        let now = self.clock.now();
        while let Some(event) = self.pager.poll(now, &mut self.tables) {
            self.events.push(event);
        }
    }

    /// Touches the page, and waits for it. Whether it could be had.
    fn touch(&mut self, page: u32, access: Access) -> Result<(), PageError> {
        let begun = Instant::now();
        loop {
            let entry = self.tables.0[page as usize];
            if entry.is_mapped && (access == Access::Read || entry.is_writable) {
                return Ok(());
            }
            self.events.clear();
            let now = self.clock.now();
            let id = PageId(page);
            match self.pager.handle_fault(now, &mut self.tables, TASK, id, access) {
                Fault::Done => continue,
                Fault::Failed(error) => return Err(error),
                Fault::Waits => {}
            }
            loop {
                self.turn(Span::from_millis(50));
                let end = self.events.iter().find_map(|event| match event {
                    PagerEvent::FaultDone { .. } => Some(Ok(())),
                    PagerEvent::FaultFailed { error, .. } => Some(Err(error.clone())),
                    _ => None,
                });
                match end {
                    Some(Ok(())) => break,
                    Some(Err(error)) => return Err(error),
                    None => assert!(begun.elapsed() < WITHIN, "page {page} does not come"),
                }
            }
        }
    }

    /// Writes the page anew.
    pub(crate) fn write(&mut self, page: u32) -> Result<(), PageError> {
        self.touch(page, Access::Write)?;
        self.stamp += 1;
        fill(self.pager.page(PageId(page)).unwrap(), self.stamp);
        self.model.insert(page, self.stamp);
        let entry = &mut self.tables.0[page as usize];
        (entry.is_accessed, entry.is_dirty) = (true, true);
        Ok(())
    }

    /// Reads the page, which must be what was written last.
    pub(crate) fn read(&mut self, page: u32) -> Result<(), PageError> {
        self.touch(page, Access::Read)?;
        let mut want = [0; PAGE_SIZE];
        if let Some(stamp) = self.model.get(&page) {
            fill(&mut want, *stamp);
        }
        let is_right = *self.pager.page(PageId(page)).unwrap() == want;
        assert!(is_right, "page {page} holds something else");
        self.tables.0[page as usize].is_accessed = true;
        Ok(())
    }
}
