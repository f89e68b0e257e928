//! Goal: what the client sends is, byte for byte, what RFC 5531, RFC 1813 and RFC 4506 say.
//! Method: the client is given replies that are written by hand, word by word, and each of its calls is
//! compared with one that is written by hand as well.

mod common;

use common::fill;
use netswap_net::{Action, SendVec, Session};
use netswap_nfs::{NfsBackend, NfsConfig, WritePolicy};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span, Time};
use netswap_swap::{BackendState, Op, Request, RequestId, Slot, StoreError, Stored, SwapBackend};

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn record(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 | 1 << 31).to_be_bytes(), body].concat()
}

/// A call as a whole record: AUTH_SYS as user 515, group 4 on "krypton", stamp 64.
fn call(xid: u32, program: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    let header = [
        words(&[xid, 0, 2, program, 3, procedure, 1, 28, 64, 7]),
        b"krypton\0".to_vec(),
        words(&[515, 4, 0, 0, 0]),
    ]
    .concat();
    record(&[&header, args].concat())
}

fn sent(client: &mut NfsBackend) -> Vec<u8> {
    let mut out = SendVec::new();
    client.poll_send(Time::ZERO, &mut out);
    let bytes = out.concat();
    drop(out);
    client.handle_sent(Time::ZERO, bytes.len());
    bytes
}

fn give(client: &mut NfsBackend, bytes: &[u8]) {
    let mut left = bytes;
    while !left.is_empty() {
        let buf = client.recv_buffer();
        let n = buf.len().min(left.len());
        assert!(n > 0, "the client takes no bytes");
        buf[..n].copy_from_slice(&left[..n]);
        client.handle_received(Time::ZERO, n);
        left = &left[n..];
    }
}

fn answer(client: &mut NfsBackend, xid: u32, results: &[u8]) {
    give(client, &record(&[&words(&[xid, 1, 0, 0, 0, 0]), results].concat()));
}

fn attrs(ftype: u32, size: u32) -> Vec<u8> {
    words(&[ftype, 0o600, 1, 0, 0, 0, size, 0, size, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0])
}

const NFS: u32 = 100_003;
const MOUNT: u32 = 100_005;
const ROOT: &[u8] = b"\0\0\0\x05rooty\0\0\0";
const DIR: &[u8] = b"\0\0\0\x04dir!";
const FILE: &[u8] = b"\0\0\0\x03new\0";

/// A client that has gone through everything a start can have, with each call checked.
fn started() -> NfsBackend {
    started_with(WritePolicy::FileSync, 3)
}

/// With room for so many requests: with the control call, and the COMMIT if there is one, four calls.
fn started_with(write: WritePolicy, in_flight: usize) -> NfsBackend {
    let mut config = NfsConfig::new("10.0.0.2:2049".parse().unwrap(), "/export", "/dir/area0");
    config.uid = 515;
    config.gid = 4;
    config.machine = "krypton".into();
    config.first_xid = 64;
    config.in_flight = in_flight;
    config.write = write;
    config.create_bytes = Some(3 << 32);
    let server = config.server;
    let mut client = NfsBackend::new(config);
    let connect = Action::Connect { remote: server, same_port: false };
    assert_eq!(client.poll_action(Time::ZERO), Some(connect));
    client.handle_connected(Time::ZERO);
    // Four places: the two low bits of an xid are the place, the control call's behind the requests.
    let mut xid = 64 + in_flight as u32;
    let mut step = |program, procedure, args: &[u8], results: &[u8]| {
        xid += 4;
        assert_eq!(sent(&mut client), call(xid, program, procedure, args), "procedure {procedure}");
        answer(&mut client, xid, results);
    };
    let no_attrs = words(&[0]);
    let ok = words(&[0]);
    step(NFS, 0, b"", b"");
    step(MOUNT, 1, b"\0\0\0\x07/export\0", &[&ok, ROOT, &words(&[2, 1, 390_003])].concat());
    let found = [&ok, DIR, &words(&[1]), &attrs(2, 4096), &no_attrs].concat();
    step(NFS, 3, &[ROOT, b"\0\0\0\x03dir\0"].concat(), &found);
    let area0 = [DIR, b"\0\0\0\x05area0\0\0\0"].concat();
    step(NFS, 3, &area0, &words(&[2, 0]));
    // CREATE UNCHECKED with mode 0600 alone; wcc_data with attributes from before in the reply.
    let create = [&area0[..], &words(&[0, 1, 0o600, 0, 0, 0, 0, 0])].concat();
    let wcc = [words(&[1, 0, 0, 0, 0, 0, 0, 1]), attrs(2, 4096)].concat();
    step(NFS, 8, &create, &[&words(&[0, 1]), FILE, &no_attrs, &wcc].concat());
    // SETATTR of the size alone, without a guard.
    let set = [FILE, &words(&[0, 0, 0, 1, 3, 0, 0, 0, 0])].concat();
    step(NFS, 2, &set, &words(&[0, 0, 0]));
    let info = words(&[0, 0, 8192, 8192, 512, 6000, 6000, 512, 4096, 0, 1 << 20, 1, 0, 0x1b]);
    step(NFS, 19, ROOT, &info);
    let huge = words(&[1, 0o600, 1, 0, 0, 3, 0, 3, 0, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0]);
    step(NFS, 1, FILE, &[ok.clone(), huge].concat());
    step(NFS, 21, &[FILE, &words(&[0, 0, 0])].concat(), &words(&[0, 0, 0, 7, 8]));
    assert_eq!(client.state(), BackendState::Ready { slots: 3 << 20 });
    assert_eq!(client.limits().batch_pages, 1);
    assert_eq!(client.verifier(), Some([0, 0, 0, 7, 0, 0, 0, 8]));
    client
}

fn submit(client: &mut NfsBackend, pool: &PagePool, op: Op, first: u32, pages: usize) {
    let mut pages: netswap_swap::PageVec =
        (0..pages).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    pages.iter_mut().enumerate().for_each(|(i, page)| fill(page, first + i as u32, 1));
    let request = Request { id: RequestId(9), op, first: Slot(first), pages, deadline: None };
    client.submit(Time::ZERO, request).unwrap();
}

fn page(slot: u32) -> Vec<u8> {
    let pool = PagePool::new(PoolConfig::new(64));
    let mut frame = pool.alloc(Gfp::KERNEL).unwrap();
    fill(&mut frame, slot, 1);
    frame.bytes().to_vec()
}

#[test]
fn a_write_is_head_pages_and_padding_and_goes_on_where_a_short_one_ended() {
    let pool = PagePool::new(PoolConfig::new(64));
    let mut client = started();
    // Slot 2^20 + 1 is above 4 GiB: the offset has both words.
    let slot = (1 << 20) + 1;
    submit(&mut client, &pool, Op::Write, slot, 1);
    let data = page(slot);
    let args = [FILE, &words(&[1, 4096, 4096, 2, 4096]), &data].concat();
    assert_eq!(sent(&mut client), call(68, NFS, 7, &args));
    // 4093 bytes are taken: three are left, and padded by one.
    let done = |count, committed| words(&[0, 0, 0, count, committed, 7, 8]);
    answer(&mut client, 68, &done(4093, 2));
    let args = [FILE, &words(&[1, 4096 + 4093, 3, 2, 3]), &data[4093..], &[0]].concat();
    assert_eq!(sent(&mut client), call(72, NFS, 7, &args));
    answer(&mut client, 72, &done(3, 2));
    let end = client.poll_completion(Time::ZERO).unwrap();
    assert_eq!(end.outcome, Ok(Stored { replayed: false }));
    assert_eq!(client.stats().short_writes, 1);
}

#[test]
fn a_read_arrives_in_its_pages() {
    let pool = PagePool::new(PoolConfig::new(64));
    let mut client = started();
    submit(&mut client, &pool, Op::Read, 5, 2);
    let args = [FILE, &words(&[0, 5 * 4096, 8192])].concat();
    assert_eq!(sent(&mut client), call(68, NFS, 6, &args));
    // Header and attributes go to the header buffer; then the buffer *is* the page.
    let head = [words(&[68, 1, 0, 0, 0, 0, 0, 1]), attrs(1, 1), words(&[8192, 0, 8192])].concat();
    let mark = ((head.len() as u32 + 8192) | (1 << 31)).to_be_bytes();
    give(&mut client, &[&mark[..], &head].concat());
    assert_eq!(client.recv_buffer().len(), PAGE_SIZE);
    let data = [page(50), page(51)].concat();
    give(&mut client, &data[..5000]);
    assert_eq!(client.recv_buffer().len(), 2 * PAGE_SIZE - 5000);
    give(&mut client, &data[5000..]);
    let end = client.poll_completion(Time::ZERO).unwrap();
    assert_eq!(end.outcome, Ok(Stored { replayed: false }));
    assert_eq!(end.pages[0].bytes()[..], page(50));
    assert_eq!(end.pages[1].bytes()[..], page(51));
}

#[test]
fn a_status_is_an_error_of_the_store() {
    let full = StoreError::NoSpace;
    let refused = |code| StoreError::Refused { code };
    let denied = |code| StoreError::Denied { code };
    for (status, error) in [
        (28, full),
        (69, full),
        (5, refused(5)),
        (1, denied(1)),
        (13, denied(13)),
        (30, StoreError::ReadOnly),
        (10_006, refused(10_006)),
    ] {
        let pool = PagePool::new(PoolConfig::new(64));
        let mut client = started();
        submit(&mut client, &pool, Op::Write, 1, 1);
        sent(&mut client);
        answer(&mut client, 68, &words(&[status, 0, 0]));
        assert_eq!(client.poll_completion(Time::ZERO).unwrap().outcome, Err(error));
        submit(&mut client, &pool, Op::Read, 1, 1);
        sent(&mut client);
        answer(&mut client, 72, &words(&[status, 0]));
        assert_eq!(client.poll_completion(Time::ZERO).unwrap().outcome, Err(error));
    }
    // What RPC refuses: PROC_UNAVAIL, AUTH_TOOWEAK, RPC_MISMATCH.
    for (reply, code) in [
        (&[68, 1, 0, 0, 0, 3][..], 0x8000_0003),
        (&[68, 1, 1, 1, 5], 0x8002_0005),
        (&[68, 1, 1, 0, 2, 2], 0x8001_0000),
    ] {
        let pool = PagePool::new(PoolConfig::new(64));
        let mut client = started();
        submit(&mut client, &pool, Op::Read, 1, 1);
        sent(&mut client);
        give(&mut client, &record(&words(reply)));
        assert_eq!(client.poll_completion(Time::ZERO).unwrap().outcome, Err(refused(code)));
    }
}

#[test]
fn a_reply_that_breaks_the_protocol_ends_the_connection_and_after_four_the_request() {
    let write = |count, committed| words(&[68, 1, 0, 0, 0, 0, 0, 0, 0, count, committed, 7, 8]);
    let mut long = write(4096, 2);
    long.extend([0; 4]);
    let read = |count: u32, len: u32| words(&[68, 1, 0, 0, 0, 0, 0, 0, count, 0, len]);
    let cases: [(Op, Vec<u8>, &str); 9] = [
        (Op::Write, write(4096, 1), "a WRITE less stable than was asked for"),
        (Op::Write, write(4096, 0), "a WRITE less stable than was asked for"),
        (Op::Write, write(4096, 3), "an unknown stable_how"),
        (Op::Write, write(4097, 2), "a WRITE of more than was given"),
        (Op::Write, write(0, 2), "a WRITE of nothing"),
        (Op::Write, long, "bytes after the end of a message"),
        (Op::Read, read(4097, 4097), "a length above its bound"),
        (Op::Read, read(4096, 4092), "a READ with two lengths"),
        (Op::Read, read(4096, 4096), "a READ with less data than it says"),
    ];
    for (op, reply, what) in cases {
        let pool = PagePool::new(PoolConfig::new(64));
        let mut client = started();
        submit(&mut client, &pool, op, 1, 1);
        let mut first = None;
        for round in 0..4 {
            assert!(client.poll_completion(Time::ZERO).is_none(), "{what}, round {round}");
            let bytes = sent(&mut client);
            assert_eq!(*first.get_or_insert(bytes.clone()), bytes, "the same call, xid and all");
            give(&mut client, &record(&reply));
            assert_eq!(client.poll_action(Time::ZERO), Some(Action::Abort), "{what}");
            let now = Time::from_nanos(u64::MAX / 2);
            client.handle_disconnected(Time::ZERO, netswap_net::Disconnect::BySelf);
            assert!(matches!(
                client.poll_action(now),
                Some(Action::Connect { same_port: true, .. })
            ));
            client.handle_connected(Time::ZERO);
        }
        let end = client.poll_completion(Time::ZERO).unwrap();
        assert_eq!(end.outcome, Err(StoreError::Garbage { what }));
    }
}

#[test]
fn jukebox_is_tried_again_under_a_new_xid() {
    let pool = PagePool::new(PoolConfig::new(64));
    let mut client = started();
    submit(&mut client, &pool, Op::Read, 1, 1);
    sent(&mut client);
    answer(&mut client, 68, &words(&[10_008, 0]));
    assert_eq!(sent(&mut client), b"");
    // A deadline may come too early, never too late.
    let mut due = Time::ZERO;
    while due < Time::ZERO + Span::from_millis(100) {
        client.handle_deadline(due);
        assert_eq!(sent(&mut client), b"");
        due = SwapBackend::poll_deadline(&client).unwrap();
    }
    assert_eq!(due, Time::ZERO + Span::from_millis(100));
    client.handle_deadline(due);
    let again = call(72, NFS, 6, &[FILE, &words(&[0, 4096, 4096])].concat());
    assert_eq!(sent(&mut client), again);
    answer(&mut client, 72, &words(&[5, 0]));
    assert!(client.poll_completion(Time::ZERO).is_some());
}

#[test]
fn a_new_verifier_is_counted() {
    let pool = PagePool::new(PoolConfig::new(64));
    let mut client = started();
    for (xid, verifier, changes) in [(68, [7, 8], 0), (72, [7, 9], 1), (76, [7, 9], 1)] {
        submit(&mut client, &pool, Op::Write, 1, 1);
        sent(&mut client);
        answer(&mut client, xid, &words(&[0, 0, 0, 4096, 2, verifier[0], verifier[1]]));
        assert!(client.poll_completion(Time::ZERO).unwrap().outcome.is_ok());
        assert_eq!(client.stats().verifier_changes, changes);
    }
}

#[test]
fn unstable_writes_are_committed_over_their_whole_range() {
    let pool = PagePool::new(PoolConfig::new(64));
    let mut client = started_with(WritePolicy::Unstable, 2);
    let write = |xid, slot: u32| {
        let args = [FILE, &words(&[0, slot * 4096, 4096, 0, 4096]), &page(slot)].concat();
        call(xid, NFS, 7, &args)
    };
    submit(&mut client, &pool, Op::Write, 5, 1);
    submit(&mut client, &pool, Op::Write, 9, 1);
    assert_eq!(sent(&mut client), [write(68, 5), write(69, 9)].concat());
    let done = |verifier: u32| words(&[0, 0, 0, 4096, 0, 7, verifier]);
    answer(&mut client, 69, &done(8));
    // Half of the requests are uncommitted: COMMIT from slot 9 on, one page.
    let commit = |xid, slot: u32, bytes| {
        call(xid, NFS, 21, &[FILE, &words(&[0, slot * 4096, bytes])].concat())
    };
    assert_eq!(sent(&mut client), commit(71, 9, 4096));
    answer(&mut client, 68, &done(8));
    assert_eq!(sent(&mut client), b"", "one COMMIT at a time");
    assert!(client.poll_completion(Time::ZERO).is_none());
    // Another verifier: all is written again, by new calls.
    answer(&mut client, 71, &words(&[0, 0, 0, 7, 9]));
    assert_eq!(sent(&mut client), [write(72, 5), write(73, 9)].concat());
    answer(&mut client, 72, &done(9));
    assert_eq!(sent(&mut client), commit(75, 5, 4096));
    answer(&mut client, 73, &done(9));
    answer(&mut client, 75, &words(&[0, 0, 0, 7, 9]));
    assert!(client.poll_completion(Time::ZERO).unwrap().outcome.is_ok());
    assert!(client.poll_completion(Time::ZERO).is_none(), "slot 9 was written after that COMMIT");
    assert_eq!(sent(&mut client), commit(79, 9, 4096));
    answer(&mut client, 79, &words(&[0, 0, 0, 7, 9]));
    assert!(client.poll_completion(Time::ZERO).unwrap().outcome.is_ok());
    assert_eq!((client.stats().commits, client.stats().rewritten), (3, 2));
}

#[test]
fn a_commit_that_fails_gives_the_pages_back_with_its_error() {
    let refused = |code| StoreError::Refused { code };
    for (status, error) in [(5, refused(5)), (28, StoreError::NoSpace), (30, StoreError::ReadOnly)]
    {
        let pool = PagePool::new(PoolConfig::new(64));
        let mut client = started_with(WritePolicy::Unstable, 2);
        submit(&mut client, &pool, Op::Write, 5, 1);
        sent(&mut client);
        answer(&mut client, 68, &words(&[0, 0, 0, 4096, 0, 7, 8]));
        sent(&mut client);
        answer(&mut client, 71, &words(&[status, 0, 0]));
        let end = client.poll_completion(Time::ZERO).unwrap();
        assert_eq!((end.outcome, end.pages.len()), (Err(error), 1));
    }
}
