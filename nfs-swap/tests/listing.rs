//! Goal: a listing gives every entry of a directory, in order and once, whatever happens on the way; or
//! a typed error.
//! Method: a lister and a server joined by the pump; each test makes another thing go wrong.

mod common;

use std::fmt::Debug;

use common::{World, server};
use netswap_net::{Action, Disconnect};
use netswap_nfs::{
    ListError, ListEvent, ListerConfig, NfsLister, NfsServer, NfsServerConfig, ServerFaults,
};
use netswap_reserve::windows::{HighPool, MapPageMut, MapWindows, Mapper, WindowsConfig};
use netswap_reserve::{Gfp, PagePool, PoolConfig, Span, Time};
use netswap_swap::MemDisk;

type Entry = (String, u64, Option<u64>);

fn config() -> ListerConfig {
    let mut config = ListerConfig::new("10.0.0.2:2049".parse().unwrap(), "/swap", "");
    config.reconnect_min = Span::from_millis(1);
    config.request_timeout = Span::from_secs(1);
    config
}

/// A server with `files` files, with names of all lengths, and what a listing of it has to give.
fn export(config: NfsServerConfig, files: usize) -> (NfsServer<MemDisk>, Vec<Entry>) {
    let mut server = server(config);
    let mut expected = vec![(".".into(), 1, Some(4096)), ("..".into(), 1, Some(4096))];
    for i in 0..files {
        let name = format!("{i:x<len$}", len = 3 + (i * 37) % 253);
        server.add_file(&name, MemDisk::new(i as u64 * 512));
        expected.push((name, i as u64 + 2, Some(i as u64 * 512)));
    }
    (server, expected)
}

fn world(
    config: ListerConfig,
    server: NfsServer<MemDisk>,
    pages: u32,
    seed: u64,
) -> World<NfsLister> {
    let pool = PagePool::new(PoolConfig::new(pages + 64));
    let pages = (0..pages).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    World::joined(NfsLister::new(config, pages, Time::ZERO), server, seed)
}

/// Takes what there is. True at the end.
fn take<P: MapPageMut + Debug, M: Mapper + Debug>(
    w: &mut World<NfsLister<P, M>>,
    entries: &mut Vec<Entry>,
    end: &mut Option<Result<(), ListError>>,
) -> bool {
    while let Some(event) = w.client.poll_event(w.now) {
        match event {
            ListEvent::Entry(entry) => {
                let name = String::from_utf8(entry.name.to_vec()).unwrap();
                assert_eq!(entry.attrs.is_some(), entry.handle.is_some());
                entries.push((name, entry.fileid, entry.attrs.map(|attrs| attrs.size)));
            }
            ListEvent::Restarted => entries.clear(),
            ListEvent::End(result) => {
                assert!(end.replace(result).is_none(), "a second end");
            }
        }
    }
    end.is_some()
}

/// Runs to the end; `disturb` is called before each turn.
fn list<P: MapPageMut + Debug, M: Mapper + Debug>(
    w: &mut World<NfsLister<P, M>>,
    mut disturb: impl FnMut(&mut World<NfsLister<P, M>>, usize),
) -> Result<Vec<Entry>, ListError> {
    let (mut entries, mut end) = (vec![], None);
    w.run(1_000_000, |w| {
        disturb(w, entries.len());
        take(w, &mut entries, &mut end)
    });
    end.unwrap().map(|()| entries)
}

#[test]
fn every_entry_is_given_once_and_in_order_however_the_bytes_come() {
    for (pages, chunk, refragment, attributes) in [
        (1, 100_000, false, true),
        (1, 7, false, true),
        (2, 5000, true, true),
        (8, 100_000, false, true),
        (1, 100_000, false, false),
        (3, 999, true, false),
    ] {
        for files in [0, 1, 5, 300] {
            let (server, mut expected) = export(NfsServerConfig::default(), files);
            let mut config = config();
            config.attributes = attributes;
            if !attributes {
                expected.iter_mut().for_each(|(.., size)| *size = None);
            }
            let mut w = world(config, server, pages, 1);
            (w.chunk, w.refragment) = (chunk, refragment);
            assert_eq!(list(&mut w, |_, _| {}), Ok(expected), "{pages} pages, {files} files");
            let stats = w.client.stats();
            assert_eq!((stats.garbage, stats.restarts), (0, 0));
            assert_eq!(stats.pages, w.server.stats().lists);
            assert!(files < 300 || stats.pages > 1);
            w.turn();
            assert!(!w.turn() && !w.connected, "a listing that has ended is quiet");
        }
    }
}

/// The lists arrive in high pages and are read there, through one window, which somebody else has for
/// some turns again and again.
#[test]
fn a_listing_in_high_pages_needs_a_window_only_while_it_copies() {
    for (seed, contended) in [(1, false), (2, true), (3, true)] {
        let (server, expected) = export(NfsServerConfig::default(), 100);
        let high = HighPool::new(3).unwrap();
        let windows = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
        let other = high.alloc().unwrap();
        let pages = (0..2).map(|_| high.alloc().unwrap()).collect();
        let lister = NfsLister::over(config(), pages, windows.clone(), Time::ZERO);
        let mut w = World::joined(lister, server, seed);
        w.chunk = 3000;
        let (mut held, mut turns) = (None, 0);
        let listed = list(&mut w, |w, _| {
            if turns > 0 {
                turns -= 1;
            } else if held.take().is_none() && contended && w.rng.below(3) == 0 {
                held = windows.try_map(&other).ok();
                turns = w.rng.below(10);
            }
            assert_eq!(windows.usage().held, u32::from(held.is_some()));
        });
        assert_eq!(listed, Ok(expected));
        let stats = w.client.stats();
        assert_eq!(stats.garbage, 0);
        assert_eq!(stats.map_waits > 0, contended, "{stats:?}");
    }
}

#[test]
fn a_directory_below_the_export_is_looked_up_and_a_mount_port_is_asked_first() {
    let (server, expected) = export(NfsServerConfig::default(), 4);
    let mut config = config();
    config.path = "/./..//".into();
    config.mount = Some("10.0.0.2:20048".parse().unwrap());
    let connect = |remote| Action::Connect { remote, same_port: false };
    let (mount, nfs) = (connect(config.mount.unwrap()), connect(config.server));
    let mut w = world(config, server, 1, 2);
    assert_eq!(list(&mut w, |_, _| {}), Ok(expected));
    assert_eq!(w.connects, [mount, nfs]);
}

#[test]
fn what_cannot_be_had_is_a_typed_failure() {
    let failure = |change: &dyn Fn(&mut ListerConfig)| {
        let (server, _) = export(NfsServerConfig::default(), 3);
        let mut config = config();
        change(&mut config);
        list(&mut world(config, server, 1, 3), |_, _| {}).unwrap_err()
    };
    let refused = |code| ListError::Refused { code };
    assert_eq!(failure(&|c| c.export = "/other".into()), refused(2));
    assert_eq!(failure(&|c| c.path = "none".into()), refused(2));
    assert_eq!(failure(&|c| c.path = "0xx".into()), refused(20), "a file is no directory");
    assert_eq!(failure(&|c| c.path = "n".repeat(256)), ListError::BadPath);
    assert_eq!(failure(&|c| c.entries_max = 4), ListError::TooMany { max: 4 });
}

#[test]
fn cookies_that_went_bad_begin_the_list_again_and_not_for_ever() {
    let (server, expected) = export(NfsServerConfig::default(), 100);
    let mut w = world(config(), server, 1, 4);
    let mut renewed_at = 0;
    let listed = list(&mut w, |w, _| {
        let lists = w.server.stats().lists;
        if [3, 7, 11].contains(&lists) && lists > renewed_at {
            w.server.renew_cookies();
            renewed_at = lists;
        }
    });
    assert_eq!(listed, Ok(expected));
    assert_eq!(w.client.stats().restarts, 3);

    let (server, _) = export(NfsServerConfig::default(), 100);
    let mut w = world(config(), server, 1, 5);
    let listed = list(&mut w, |w, _| w.server.renew_cookies());
    assert_eq!(listed, Err(ListError::Unstable { restarts: 8 }));
}

#[test]
fn handles_that_went_stale_are_asked_for_again() {
    for mount in [None, Some("10.0.0.2:20048".parse().unwrap())] {
        let (server, expected) = export(NfsServerConfig::default(), 100);
        let mut config = config();
        config.mount = mount;
        let mut w = world(config, server, 1, 6);
        let mut renewed = false;
        let listed = list(&mut w, |w, entries| {
            if entries > 30 && !std::mem::replace(&mut renewed, true) {
                w.server.renew_handles();
            }
        });
        assert_eq!(listed, Ok(expected));
        assert_eq!(w.client.stats().restarts, 1);
    }
}

#[test]
fn a_connection_that_breaks_at_any_byte_is_made_again() {
    for cut_after in 0..300 {
        let (server, expected) = export(NfsServerConfig::default(), 20);
        let mut config = config();
        config.mount = (cut_after % 2 == 0).then(|| "10.0.0.2:20048".parse().unwrap());
        let mut w = world(config, server, 1, cut_after);
        w.chunk = 40;
        let mut turns = 0;
        let listed = list(&mut w, |w, _| {
            turns += 1;
            if turns == cut_after {
                w.cut(Disconnect::Reset);
            }
        });
        assert_eq!(listed, Ok(expected));
    }
}

#[test]
fn late_double_and_damaged_replies_and_requests_for_patience_are_come_through() {
    let faults = ServerFaults {
        late_ppm: 100_000,
        late_by: Span::from_millis(1500),
        twice_ppm: 200_000,
        garbage_ppm: 150_000,
        jukebox_ppm: 200_000,
        ..ServerFaults::default()
    };
    let (mut good, mut garbage) = (0, 0);
    for seed in 0..60 {
        let (server, expected) =
            export(NfsServerConfig { faults, seed, ..Default::default() }, 100);
        let mut w = world(config(), server, 1, seed);
        match list(&mut w, |_, _| {}) {
            Ok(listed) => {
                assert_eq!(listed, expected);
                good += 1;
            }
            // Damage may be a valid refusal, or come four times in a row.
            Err(ListError::Garbage { .. } | ListError::Refused { .. } | ListError::TimedOut) => {}
            Err(other) => panic!("{other:?}"),
        }
        garbage += w.client.stats().garbage;
    }
    assert!(good > 40 && garbage > 50, "{good} good, {garbage} garbage");
}

#[test]
fn a_server_that_is_silent_or_only_asks_for_patience_ends_the_listing_in_time() {
    let (server, _) = export(NfsServerConfig::default(), 3);
    let mut w = world(config(), server, 1, 7);
    w.black_hole = true;
    assert_eq!(list(&mut w, |_, _| {}), Err(ListError::TimedOut));
    assert_eq!(w.now, Time::ZERO + Span::from_secs(60));

    let faults = ServerFaults { jukebox_ppm: 1_000_000, ..ServerFaults::default() };
    let (server, _) = export(NfsServerConfig { faults, ..Default::default() }, 3);
    let mut w = world(config(), server, 1, 8);
    assert_eq!(list(&mut w, |_, _| {}), Err(ListError::TimedOut));
}
