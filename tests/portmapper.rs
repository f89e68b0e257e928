//! Goal: a server whose ports the URL does not name is found by its portmapper; one that the portmapper does not know
//! is an error that names the program and says what to do; a peer that lists for ever, or says a byte at a time, is
//! left in the end.
//! Method: the embedded server as the portmapper of another one, on ports of the loopback; a thread that
//! plays a portmapper that dawdles.

mod common;

use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use common::nfs::{Served, area};
use netswap::nfs::{ListError, NfsServerConfig, NfsUrl};
use netswap::real::nfs::{Listed, NfsListFailure, list_directory};
use netswap::real::{ListFailure, ListOptions, OpenError, OpenOptions, RealStore};
use netswap::reserve::{PAGE_SIZE, Span};
use netswap::swap::{MemDisk, StoreError};

const FILE: &str = "nfs://127.0.0.1/swap/area0";
const DIRECTORY: &str = "nfs://127.0.0.1/swap";

/// A portmapper that says this of NFS and MOUNT; 0 is a program that it does not know.
fn portmapper(nfs: u16, mount: u16) -> Served {
    let ports = Some((nfs, mount));
    Served::with_config(NfsServerConfig { ports, ..Default::default() }, vec![])
}

fn listed(url: &str, options: &ListOptions) -> Result<Vec<Listed>, ListFailure> {
    list_directory(&NfsUrl::parse_directory(url).unwrap(), options)
}

fn open(url: &str, portmap: u16) -> Result<u32, OpenError> {
    let options = OpenOptions { portmap, ..OpenOptions::default() };
    RealStore::open(&url.parse().unwrap(), &options).map(|store| store.slots())
}

#[test]
fn a_server_is_found_by_its_portmapper() {
    let served = Served::new(vec![("area0", area(64)), ("b", MemDisk::new(PAGE_SIZE as u64))]);
    let port = served.addr.port();
    let asked = portmapper(port, port);
    let options = ListOptions { portmap: asked.addr.port(), ..ListOptions::default() };
    for url in [DIRECTORY.into(), format!("{DIRECTORY}?nfsport={port}")] {
        let entries = listed(&url, &options).unwrap();
        let names: Vec<_> = entries.iter().map(|entry| &*entry.name).collect();
        assert_eq!(names, [b"area0".as_slice(), b"b"]);
    }
    assert_eq!(open(FILE, asked.addr.port()).unwrap(), 64);
}

#[test]
fn a_program_that_the_portmapper_does_not_know_is_named() {
    for (nfs, mount, program) in [(0, 0, "NFS"), (9, 0, "MOUNT")] {
        let asked = portmapper(nfs, mount);
        let said = format!("does not know {program} version 3: is the NFS server running?");
        let options = ListOptions { portmap: asked.addr.port(), ..ListOptions::default() };
        let error = listed(DIRECTORY, &options).unwrap_err();
        let ListFailure::Nfs(NfsListFailure::Unregistered { server, service, version: 3 }) = &error
        else {
            panic!("{error:?}");
        };
        assert_eq!((*server, *service), (asked.addr, program));
        assert!(error.is_unreachable() && error.to_string().contains(&said), "{error}");

        let error = open(FILE, asked.addr.port()).unwrap_err();
        let OpenError::Refused { error: StoreError::Unregistered { program: of, .. }, .. } = error
        else {
            panic!("{error:?}");
        };
        assert_eq!(of, program);
        assert!(error.is_unreachable() && error.to_string().contains(&said), "{error}");
        assert!(error.to_string().contains("nfsport= and mountport="), "{error}");
    }
}

#[test]
fn a_list_without_an_end_is_left() {
    let names: Vec<&'static str> = (0..50).map(|i| &*format!("file{i}").leak()).collect();
    let files = names.iter().map(|name| (*name, MemDisk::new(PAGE_SIZE as u64))).collect();
    let served = Served::new(files);
    let port = served.addr.port();
    let asked = portmapper(port, port);
    let portmap = asked.addr.port();
    let options = ListOptions { portmap, entries_max: 49, ..ListOptions::default() };
    let error = listed(DIRECTORY, &options).unwrap_err();
    let ListFailure::Nfs(NfsListFailure::Refused { error: ListError::TooMany { max: 49 }, .. }) =
        error
    else {
        panic!("{error:?}");
    };
    assert!(!error.is_unreachable());
}

/// It begins a reply, and then says a byte of it now and then, for as long as somebody listens.
#[test]
fn a_portmapper_that_dawdles_is_left() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let portmap = listener.local_addr().unwrap().port();
    let left = Arc::new(AtomicBool::new(false));
    let is_left = left.clone();
    let thread = std::thread::spawn(move || {
        let (mut peer, _) = listener.accept().unwrap();
        let mut call = [0; 4];
        peer.read_exact(&mut call).unwrap();
        peer.write_all(&(1u32 << 31 | 400).to_be_bytes()).unwrap();
        let mut said = 0;
        while !is_left.load(Ordering::Relaxed) && said < 400 {
            said += usize::from(peer.write_all(&[0]).is_ok());
            std::thread::sleep(Duration::from_millis(50));
        }
        said
    });
    let within = Span::from_millis(500);
    let error = listed(DIRECTORY, &ListOptions { portmap, within, ..Default::default() });
    left.store(true, Ordering::Relaxed);
    // All of it would have taken 20 s.
    assert!(thread.join().unwrap() < 400);
    let Err(error @ ListFailure::Nfs(NfsListFailure::Port { service: "NFS", .. })) = error else {
        panic!("{error:?}")
    };
    assert!(error.is_unreachable());
}
