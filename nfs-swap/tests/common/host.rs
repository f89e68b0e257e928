//! A pager over the client, on virtual time: one task that touches pages, and what each must hold.

use netswap_net::Session;
use netswap_reserve::{PAGE_SIZE, PagePool, PoolConfig};
use netswap_swap::signature::Header;
use netswap_swap::{
    Access, AreaId, AreaInfo, AreaOptions, Disk, Fault, Mmu, PageError, PageId, Pager, PagerConfig,
    PagerEvent, TaskId,
};

use super::{SLOTS, Wired, World};

pub const PAGES: u32 = 150;

/// Which pages are mapped, and whether writable.
pub struct Tables(Vec<Option<bool>>);

impl Mmu for Tables {
    fn map(&mut self, page: PageId, writable: bool) {
        self.0[page.0 as usize] = Some(writable);
    }

    fn unmap(&mut self, page: PageId) -> bool {
        self.0[page.0 as usize].take() == Some(true)
    }

    fn test_and_clear_accessed(&mut self, _: PageId) -> bool {
        false
    }
}

pub struct Host {
    pub pager: Pager<Wired>,
    tables: Tables,
    area: AreaId,
    /// The outcome of the fault that was waited for.
    ended: Option<Result<(), PageError>>,
    /// What else the pager said.
    pub events: Vec<PagerEvent>,
    pub first: u32,
}

impl Host {
    /// Its first area is the file of `world`, which gets the header of one.
    pub fn new(world: World, options: AreaOptions, quarantine: bool) -> Host {
        let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(96) });
        let config = PagerConfig { quarantine, ..PagerConfig::new(1, PAGES) };
        let mut pager = Pager::new(pool, config);
        let first = pager.map_anonymous(PAGES).start.0;
        let tables = Tables(vec![None; PAGES as usize]);
        let mut host =
            Host { pager, tables, area: AreaId(0), ended: None, events: Vec::new(), first };
        host.add_area(world, options);
        host
    }

    /// Takes the file of `world` into use as well.
    pub fn add_area(&mut self, mut world: World, options: AreaOptions) -> AreaId {
        let mut header = [0; PAGE_SIZE];
        Header::new(SLOTS).write(&mut header);
        world.server.disk_mut("area0").unwrap().write_at(0, &header).unwrap();
        // All areas have one clock.
        let first = self.pager.area_ids().next().map(|id| self.pager.backend(id).0.now);
        world.now = first.unwrap_or(world.now);
        let id = self.pager.add_area(world.now, Wired(world), options);
        while self.info(id).slots == 0 {
            self.step();
        }
        id
    }

    pub fn info(&self, id: AreaId) -> AreaInfo {
        self.pager.areas().find(|area| area.id == id).unwrap()
    }

    pub fn world(&mut self) -> &mut World {
        &mut self.pager.backend_mut(self.area).0
    }

    pub fn poll(&mut self) {
        let now = self.world().now;
        while let Some(event) = self.pager.poll(now, &mut self.tables) {
            match event {
                PagerEvent::FaultDone { .. } => self.ended = Some(Ok(())),
                PagerEvent::FaultFailed { error, .. } => self.ended = Some(Err(error)),
                other => self.events.push(other),
            }
        }
    }

    /// Moves bytes of every area, or, if there are none to be moved, time.
    pub fn step(&mut self) {
        self.poll();
        if self.ended.is_some() {
            return;
        }
        let areas: Vec<AreaId> = self.pager.area_ids().collect();
        let mut moved = false;
        for id in &areas {
            moved |= self.pager.backend_mut(*id).0.step();
        }
        if !moved {
            let worlds = || areas.iter().map(|id| &self.pager.backend(*id).0);
            let clients = worlds().filter_map(|world| Session::poll_deadline(&world.client));
            let now = worlds().map(|world| world.now).max().expect("an area");
            let next = self.pager.poll_deadline().into_iter().chain(clients).min();
            let now = now.max(next.expect("something to wait for"));
            for id in areas {
                let world = &mut self.pager.backend_mut(id).0;
                world.now = now;
                world.client.handle_deadline(now);
            }
        }
        self.poll();
    }

    pub fn touch(&mut self, page: u32, access: Access) -> Result<(), PageError> {
        let entry = self.tables.0[page as usize];
        if entry == Some(true) || (entry.is_some() && access == Access::Read) {
            return Ok(());
        }
        let now = self.world().now;
        self.ended = None;
        match self.pager.handle_fault(now, &mut self.tables, TaskId(0), PageId(page), access) {
            Fault::Done => return Ok(()),
            Fault::Failed(error) => return Err(error),
            Fault::Waits => {}
        }
        loop {
            self.step();
            if let Some(ended) = self.ended.take() {
                return ended;
            }
        }
    }

    pub fn write_all(&mut self, version: u32) {
        self.try_write_all(version).unwrap();
    }

    pub fn try_write_all(&mut self, version: u32) -> Result<(), PageError> {
        for page in self.first..self.first + PAGES {
            self.touch(page, Access::Write)?;
            let content = self.pager.page(PageId(page)).unwrap();
            content.fill(version as u8);
            content[..4].copy_from_slice(&page.to_le_bytes());
        }
        Ok(())
    }

    /// Reads all pages back: those that cannot be had. A page with another content is a panic.
    pub fn read_all(&mut self, version: u32) -> Vec<PageError> {
        let mut errors = Vec::new();
        for page in self.first..self.first + PAGES {
            if let Err(error) = self.touch(page, Access::Read) {
                errors.push(error);
                continue;
            }
            let content = self.pager.page(PageId(page)).unwrap();
            assert_eq!(content[..4], page.to_le_bytes());
            assert!(content[4..].iter().all(|byte| *byte == version as u8), "page {page}");
        }
        errors
    }
}
