//! Goal: a WRITE that the server carries out a second time, after a newer one to the same place, damages no
//! page: slots of repeated WRITEs hold no other page until the server has proven a restart. Without that
//! protection the same script is caught by the checksum of the page.
//! Method: a pager over the client; the server puts one WRITE aside, the connection is lost, and the client
//! repeats the call over the next. Every page is written again twice, so freed slots are used again; then a
//! minute passes, the old WRITE is carried out, and every page is read back.

mod common;

use common::{SLOTS, Wired, World, config};
use netswap_net::{Disconnect, Session};
use netswap_nfs::{NfsConfig, NfsServerConfig, WritePolicy};
use netswap_reserve::{PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::signature::Header;
use netswap_swap::{
    Access, AreaId, AreaOptions, Disk, Fault, Mmu, PageError, PageId, Pager, PagerConfig,
    PagerEvent, SwapBackend, TaskId,
};

const PAGES: u32 = 150;

/// Which pages are mapped, and whether writable.
struct Tables(Vec<Option<bool>>);

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

struct Host {
    pager: Pager<Wired>,
    tables: Tables,
    area: AreaId,
    /// The outcome of the fault that was waited for.
    ended: Option<Result<(), PageError>>,
    first: u32,
}

impl Host {
    fn new(write: WritePolicy, quarantine: bool) -> Host {
        let server = NfsServerConfig { held: 1, remembered: 0, ..Default::default() };
        let mut world = World::new(NfsConfig { write, ..config() }, server, 1);
        let mut header = [0; PAGE_SIZE];
        Header::new(SLOTS).write(&mut header);
        world.server.disk_mut("area0").unwrap().write_at(0, &header).unwrap();
        let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(96) });
        let config = PagerConfig { quarantine, ..PagerConfig::new(1, PAGES) };
        let mut pager = Pager::new(pool, config);
        let now = world.now;
        let area = pager.add_area(now, Wired(world), AreaOptions::new("area0"));
        let first = pager.map_anonymous(PAGES).start.0;
        let tables = Tables(vec![None; PAGES as usize]);
        let mut host = Host { pager, tables, area, ended: None, first };
        while host.pager.areas().next().unwrap().slots == 0 {
            host.step();
        }
        host
    }

    fn world(&mut self) -> &mut World {
        &mut self.pager.backend_mut(self.area).0
    }

    fn poll(&mut self) {
        let now = self.world().now;
        while let Some(event) = self.pager.poll(now, &mut self.tables) {
            match event {
                PagerEvent::FaultDone { .. } => self.ended = Some(Ok(())),
                PagerEvent::FaultFailed { error, .. } => self.ended = Some(Err(error)),
                _ => {}
            }
        }
    }

    fn step(&mut self) {
        self.poll();
        let of_pager = self.pager.poll_deadline();
        let world = self.world();
        if !world.step() {
            let client = Session::poll_deadline(&world.client);
            let next = of_pager.into_iter().chain(client).min().expect("something to wait for");
            world.now = world.now.max(next);
            let now = world.now;
            world.client.handle_deadline(now);
        }
        self.poll();
    }

    fn touch(&mut self, page: u32, access: Access) -> Result<(), PageError> {
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

    fn write_all(&mut self, version: u32) {
        for page in self.first..self.first + PAGES {
            self.touch(page, Access::Write).unwrap();
            let content = self.pager.page(PageId(page)).unwrap();
            content.fill(version as u8);
            content[..4].copy_from_slice(&page.to_le_bytes());
        }
    }

    /// Reads all pages back: those that cannot be had. A page with another content is a panic.
    fn read_all(&mut self, version: u32) -> Vec<PageError> {
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

    /// The script up to where the old WRITE could be carried out: a WRITE of version 1 is loose, and all
    /// pages are at version 3.
    fn repeat_a_write(&mut self) {
        self.write_all(9);
        let due = self.world().now + Span::from_secs(60);
        self.world().server.hold_next_write(due);
        let mut version = 1;
        for page in (self.first..self.first + PAGES).cycle() {
            if self.world().server.fault_counts().held == 1 {
                break;
            }
            self.touch(page, Access::Write).unwrap();
            self.pager.page(PageId(page)).unwrap()[5] = version;
            version = version.wrapping_add(1);
            self.step();
        }
        self.world().cut(Disconnect::Reset);
        self.write_all(2);
        self.write_all(3);
        assert!(self.world().now < due);
    }

    fn quarantined(&self) -> u32 {
        self.pager.areas().next().unwrap().quarantined
    }

    fn wait_a_minute(&mut self) {
        let world = self.world();
        world.now += Span::from_secs(60);
        let now = world.now;
        world.client.handle_deadline(now);
        world.server.connection(0).handle_deadline(now);
    }
}

const POLICIES: [WritePolicy; 2] = [WritePolicy::FileSync, WritePolicy::Unstable];

#[test]
fn the_old_write_reaches_no_page() {
    for write in POLICIES {
        let mut host = Host::new(write, true);
        host.repeat_a_write();
        assert!(host.quarantined() > 0);
        host.wait_a_minute();
        assert_eq!(host.world().server.fault_counts().held_done, 1);
        assert_eq!(host.read_all(3), []);
        assert!(host.quarantined() > 0, "for the life of the area");
    }
}

#[test]
fn without_the_quarantine_it_does_and_the_checksum_finds_it() {
    for write in POLICIES {
        let mut host = Host::new(write, false);
        host.repeat_a_write();
        assert_eq!(host.quarantined(), 0);
        host.wait_a_minute();
        assert_eq!(host.world().server.fault_counts().held_done, 1);
        let errors = host.read_all(3);
        assert!(!errors.is_empty());
        let damaged = |error: &PageError| matches!(error, PageError::Damaged { .. });
        assert!(errors.iter().all(damaged), "{errors:?}");
    }
}

#[test]
fn a_proven_restart_gives_the_slots_back() {
    for write in POLICIES {
        let mut host = Host::new(write, true);
        host.repeat_a_write();
        assert!(host.quarantined() > 0);
        let now = host.world().now;
        host.world().server.restart(now);
        while host.world().client.fences() == 0 {
            host.step();
        }
        host.poll();
        assert_eq!(host.quarantined(), 0);
        host.write_all(4);
        host.wait_a_minute();
        assert_eq!(host.world().server.fault_counts().held_done, 0);
        assert_eq!(host.read_all(4), []);
    }
}
