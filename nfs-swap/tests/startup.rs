//! Goal: from nothing to a backend that is ready, whatever the server has there.
//! Method: a client and a server joined by the pump; each test sets up another beginning.

mod common;

use common::{SLOTS, World, config, server};
use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_nfs::{NfsBackend, NfsServerConfig, NfsUrl, ServerFaults};
use netswap_reserve::{Span, Time};
use netswap_swap::{BackendState, Disk, MemDisk, Op, StoreError, SubmitError, SwapBackend};

#[test]
fn a_file_that_is_there_gives_its_size() {
    let mut w = World::new(config(), NfsServerConfig::default(), 1);
    assert_eq!(w.start(), SLOTS);
    assert_eq!(w.client.limits().batch_pages, 16);
    assert_eq!(w.client.verifier(), Some(1u64.to_be_bytes()));
    assert_eq!(w.client.stats().connections, 1);
}

#[test]
fn a_file_that_is_absent_is_created_with_its_length() {
    let mut config = config();
    config.create_bytes = Some(1 << 20);
    let mut server = server(NfsServerConfig::default());
    server.add_spare(MemDisk::new(0));
    let mut w = World::with(config, server, 2);
    w.chunk = 7;
    assert_eq!(w.start(), 256);
    assert_eq!(w.server.disk_mut("area0").unwrap().len(), 1 << 20);
}

#[test]
fn a_file_that_was_created_but_not_sized_is_sized_and_one_with_data_is_left_alone() {
    for (len, slots) in [(0, 512), (8192, 2)] {
        let mut config = config();
        config.create_bytes = Some(2 << 20);
        let mut server = server(NfsServerConfig::default());
        server.add_file("area0", MemDisk::new(len));
        let mut w = World::with(config, server, 2);
        assert_eq!(w.start(), slots);
    }
}

#[test]
fn what_cannot_be_had_is_a_typed_failure() {
    let failure = |config, server| {
        let mut w = World::with(config, server, 3);
        w.run(10_000, |w| w.client.state() != BackendState::Starting);
        let request = netswap_swap::Request {
            id: netswap_swap::RequestId(1),
            op: Op::Read,
            first: netswap_swap::Slot(0),
            pages: w.pages(1),
            deadline: None,
        };
        assert!(matches!(w.client.submit(w.now, request), Err(SubmitError::NotReady(_))));
        match w.client.state() {
            BackendState::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    };
    let noent = StoreError::Refused { code: 2 };
    assert_eq!(failure(config(), server(NfsServerConfig::default())), noent, "no such file");
    let mut other = config();
    other.export = "/other".into();
    assert_eq!(failure(other, server(NfsServerConfig::default())), noent, "no such export");
    let mut big = config();
    big.create_bytes = Some(1 << 40);
    let mut with_spare = server(NfsServerConfig::default());
    with_spare.add_spare(MemDisk::new(0));
    assert_eq!(failure(big, with_spare), StoreError::Refused { code: 27 }, "too large");
    let mut full = config();
    full.create_bytes = Some(1 << 20);
    assert_eq!(failure(full, server(NfsServerConfig::default())), StoreError::NoSpace);
    let mut tiny = server(NfsServerConfig::default());
    tiny.add_file("area0", MemDisk::new(4095));
    assert_eq!(failure(config(), tiny), StoreError::OutOfRange { slot: 0 });
    let mut below = config();
    below.path = "area0/inner".into();
    let mut with_file = server(NfsServerConfig::default());
    with_file.add_file("area0", MemDisk::new(8192));
    assert_eq!(failure(below, with_file), StoreError::Refused { code: 20 }, "not a directory");
    let mut no_name = config();
    no_name.path = "//".into();
    assert_eq!(
        failure(no_name, server(NfsServerConfig::default())),
        StoreError::Refused { code: 63 }
    );
}

#[test]
fn mount_on_a_port_of_its_own_is_asked_first() {
    let mut config = config();
    config.mount = Some("10.0.0.2:20048".parse().unwrap());
    let (nfs, mount) = (config.server, config.mount.unwrap());
    let mut w = World::new(config, NfsServerConfig::default(), 4);
    assert_eq!(w.start(), SLOTS);
    w.cut(Disconnect::Reset);
    w.run(100, |w| w.connected);
    let connect = |remote, same_port| Action::Connect { remote, same_port };
    assert_eq!(w.connects, [connect(mount, false), connect(nfs, false), connect(nfs, true)]);
}

#[test]
fn a_server_that_is_not_there_yet_is_tried_again_with_growing_waits() {
    let mut w = World::new(config(), NfsServerConfig::default(), 5);
    w.refuse = true;
    for _ in 0..40 {
        w.turn();
    }
    let (tries, waited) = (w.connects.len(), w.now);
    assert!(tries > 5 && waited.since(netswap_reserve::Time::ZERO) > Span::from_secs(1));
    w.refuse = false;
    assert_eq!(w.start(), SLOTS);
}

#[test]
fn a_connection_that_breaks_at_any_byte_of_the_startup_is_made_again() {
    for cut_after in 0..400 {
        let mut config = config();
        config.create_bytes = Some(1 << 20);
        let mut server = server(NfsServerConfig::default());
        server.add_spare(MemDisk::new(0));
        let mut w = World::with(config, server, cut_after);
        w.chunk = 9;
        for _ in 0..cut_after {
            w.turn();
        }
        w.cut(Disconnect::Reset);
        assert_eq!(w.start(), 256);
    }
}

#[test]
fn a_server_that_asks_for_patience_or_answers_late_and_twice_is_started_with() {
    let faults = ServerFaults {
        jukebox_ppm: 300_000,
        late_ppm: 200_000,
        late_by: Span::from_millis(1500),
        twice_ppm: 300_000,
        ..ServerFaults::default()
    };
    for seed in 0..50 {
        let mut w =
            World::new(config(), NfsServerConfig { faults, seed, ..Default::default() }, seed);
        assert_eq!(w.start(), SLOTS);
    }
}

#[test]
fn ports_that_are_not_given_are_asked_of_the_portmapper() {
    let address = "10.0.0.2".parse().unwrap();
    let connect = |port, same_port| Action::Connect { remote: (address, port).into(), same_port };
    let start = |url: &str| {
        let mut client = url.parse::<NfsUrl>().unwrap().config(address);
        client.reconnect_min = Span::from_millis(1);
        let server = NfsServerConfig { ports: Some((2050, 20_048)), ..Default::default() };
        let mut w = World::new(client, server, 6);
        assert_eq!(w.start(), SLOTS);
        w.cut(Disconnect::Reset);
        w.run(100, |w| w.connected);
        w.connects.clone()
    };
    let [portmap, mount] = [connect(111, false), connect(20_048, false)];
    let both = [portmap, mount, connect(2050, false), connect(2050, true)];
    assert_eq!(start("nfs://server/swap/area0"), both);
    let nfs_given = [portmap, mount, connect(7, false), connect(7, true)];
    assert_eq!(start("nfs://server/swap/area0?nfsport=7"), nfs_given);
    let mount_given = [portmap, connect(8, false), connect(2050, false), connect(2050, true)];
    assert_eq!(start("nfs://server/swap/area0?mountport=8"), mount_given);
    assert_eq!(start("nfs://server:9/swap/area0"), [connect(9, false), connect(9, true)]);
}

/// What becomes of a client whose first call is refused with this `accept_stat`.
fn refusal(url: &str, accept_stat: u32) -> StoreError {
    let config = url.parse::<NfsUrl>().unwrap().config("10.0.0.2".parse().unwrap());
    let (mut client, now) = (NfsBackend::new(config), Time::ZERO);
    assert!(matches!(client.poll_action(now), Some(Action::Connect { .. })));
    client.handle_connected(now);
    let mut call = SendVec::new();
    client.poll_send(now, &mut call);
    let (xid, len) = (call[0][4..8].to_vec(), call.iter().map(|piece| piece.len()).sum());
    drop(call);
    client.handle_sent(now, len);
    // REPLY, MSG_ACCEPTED, AUTH_NONE; the versions if they are what does not match.
    let mut words = vec![1, 0, 0, 0, accept_stat];
    words.extend([2, 2].iter().filter(|_| accept_stat == 2));
    let mut reply = xid;
    words.iter().for_each(|word: &u32| reply.extend(word.to_be_bytes()));
    let mark = 1 << 31 | reply.len() as u32;
    let mut reply = [&mark.to_be_bytes()[..], &reply].concat();
    while !reply.is_empty() {
        let buffer = client.recv_buffer();
        let n = buffer.len().min(reply.len());
        buffer[..n].copy_from_slice(&reply[..n]);
        reply.drain(..n);
        client.handle_received(now, n);
    }
    match client.state() {
        BackendState::Failed(error) => error,
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_program_that_is_not_registered_and_a_port_that_is_none_fail_the_start() {
    let failure = |url: &str, ports| {
        let config = url.parse::<NfsUrl>().unwrap().config("10.0.0.2".parse().unwrap());
        let mut w = World::new(config, NfsServerConfig { ports, ..Default::default() }, 7);
        w.run(10_000, |w| w.client.state() != BackendState::Starting);
        match w.client.state() {
            BackendState::Failed(error) => error,
            other => panic!("{other:?}"),
        }
    };
    let unregistered = |program| StoreError::Unregistered { program, version: 3 };
    assert_eq!(failure("nfs://server/swap/area0", None), unregistered("NFS"));
    assert_eq!(failure("nfs://server/swap/area0", Some((2049, 0))), unregistered("MOUNT"));
    assert_eq!(failure("nfs://server/swap/area0?nfsport=7", None), unregistered("MOUNT"));
    assert_eq!(failure("nfs://server/swap/area0?mountport=7", None), unregistered("NFS"));
    // What listens behind the port serves something else, or is no portmapper.
    let not_served = |program, version| StoreError::NotServed { program, version };
    assert_eq!(refusal("nfs://server:9/swap/area0", 1), not_served("NFS", 3));
    assert_eq!(refusal("nfs://server/swap/area0?nfsport=9&mountport=8", 2), not_served("MOUNT", 3));
    assert_eq!(refusal("nfs://server/swap/area0", 1), not_served("PORTMAP", 2));
    let text = unregistered("MOUNT").to_string();
    assert_eq!(text, "the portmapper does not know MOUNT version 3");
}

#[test]
fn a_shorter_export_is_mounted_if_the_whole_is_refused() {
    let start = |url: &str| {
        let config = url.parse::<NfsUrl>().unwrap().config("10.0.0.2".parse().unwrap());
        let mut w = World::new(config, NfsServerConfig::default(), 8);
        w.run(10_000, |w| w.client.state() != BackendState::Starting);
        (w.client.state(), w)
    };
    let ready = BackendState::Ready { slots: SLOTS };
    assert_eq!(start("nfs://server:1/swap/./area0").0, ready);
    assert_eq!(start("nfs://server:1/swap/./././area0").0, ready);
    let (state, mut w) = start("nfs://server:1/swap/./area0");
    assert_eq!(state, ready);
    // A stale handle leads to the same export again.
    w.server.renew_handles();
    let page = w.pages(1);
    assert!(w.one(Op::Read, 3, page).outcome.is_ok());
    let noent = BackendState::Failed(StoreError::Refused { code: 2 });
    assert_eq!(start("nfs://server:1/none/area0").0, noent);
    // Seventeen names too many are not searched.
    let long = format!("nfs://server:1/swap{}/area0", "/.".repeat(17));
    assert_eq!(start(&long).0, noent);
}
