//! Goal: a WRITE that the server carries out a second time, after a newer one to the same place, damages no
//! page: slots of repeated WRITEs hold no other page until the server has proven a restart. Without that
//! protection the same script is caught by the checksum of the page.
//! Method: a pager over the client; the server puts one WRITE aside, the connection is lost, and the client
//! repeats the call over the next. Every page is written again twice, so freed slots are used again; then a
//! minute passes, the old WRITE is carried out, and every page is read back.

mod common;

use common::host::{Host, PAGES};
use common::{World, config};
use netswap_net::{Disconnect, Session};
use netswap_nfs::{NfsConfig, NfsServerConfig, WritePolicy};
use netswap_reserve::Span;
use netswap_swap::{Access, AreaOptions, PageError, PageId, SwapBackend};

fn host(write: WritePolicy, quarantine: bool) -> Host {
    let server = NfsServerConfig { held: 1, remembered: 0, ..Default::default() };
    let world = World::new(NfsConfig { write, ..config() }, server, 1);
    Host::new(world, AreaOptions::new("area0"), quarantine)
}

/// The script up to where the old WRITE could be carried out: a WRITE of version 1 is loose, and all
/// pages are at version 3.
fn repeat_a_write(host: &mut Host) {
    host.write_all(9);
    let due = host.world().now + Span::from_secs(60);
    host.world().server.hold_next_write(due);
    let mut version = 1;
    for page in (host.first..host.first + PAGES).cycle() {
        if host.world().server.fault_counts().held == 1 {
            break;
        }
        host.touch(page, Access::Write).unwrap();
        host.pager.page(PageId(page)).unwrap()[5] = version;
        version = version.wrapping_add(1);
        host.step();
    }
    host.world().cut(Disconnect::Reset);
    host.write_all(2);
    host.write_all(3);
    assert!(host.world().now < due);
}

fn quarantined(host: &Host) -> u32 {
    host.pager.areas().next().unwrap().quarantined
}

fn wait_a_minute(host: &mut Host) {
    let world = host.world();
    world.now += Span::from_secs(60);
    let now = world.now;
    world.client.handle_deadline(now);
    world.server.connection(0).handle_deadline(now);
}

const POLICIES: [WritePolicy; 2] = [WritePolicy::FileSync, WritePolicy::Unstable];

#[test]
fn the_old_write_reaches_no_page() {
    for write in POLICIES {
        let mut host = host(write, true);
        repeat_a_write(&mut host);
        assert!(quarantined(&host) > 0);
        wait_a_minute(&mut host);
        assert_eq!(host.world().server.fault_counts().held_done, 1);
        assert_eq!(host.read_all(3), []);
        assert!(quarantined(&host) > 0, "for the life of the area");
    }
}

#[test]
fn without_the_quarantine_it_does_and_the_checksum_finds_it() {
    for write in POLICIES {
        let mut host = host(write, false);
        repeat_a_write(&mut host);
        assert_eq!(quarantined(&host), 0);
        wait_a_minute(&mut host);
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
        let mut host = host(write, true);
        repeat_a_write(&mut host);
        assert!(quarantined(&host) > 0);
        let now = host.world().now;
        host.world().server.restart(now);
        while host.world().client.fences() == 0 {
            host.step();
        }
        host.poll();
        assert_eq!(quarantined(&host), 0);
        host.write_all(4);
        wait_a_minute(&mut host);
        assert_eq!(host.world().server.fault_counts().held_done, 0);
        assert_eq!(host.read_all(4), []);
    }
}
