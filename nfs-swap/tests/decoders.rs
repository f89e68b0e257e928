//! Goal: no bytes from a peer make a decoder, the client or the server panic, hang or allocate.
//! Method: random bytes, and valid messages with random damage, into every decoder; the same as a
//! stream into a client that waits for a reply, and into a server. Round trips check that what is
//! valid comes back as it was.

mod common;

use common::{config, server};
use netswap_net::{Disconnect, SendVec, Session};
use netswap_nfs::dir::{DirArgs, DirHead, DirProc, DirRecord};
use netswap_nfs::proto::{
    self, CreateOk, Fattr3, FileHandle, FsInfoOk, LookupOk, Nfsstat3, ReadOk, Sattr3, StableHow,
    WriteOk,
};
use netswap_nfs::rpc::{self, AcceptStat, AuthSys, RecordNext, RecordReader, ReplyStat};
use netswap_nfs::xdr::{Decoder, Encoder, XdrError};
use netswap_nfs::{NfsBackend, NfsServerConfig, mount};
use netswap_reserve::{Gfp, PagePool, PoolConfig, Time};
use netswap_swap::{BackendState, MemDisk, Op, Request, RequestId, Slot, SwapBackend};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1813), ..Config::default() }
}

fn every_decoder(bytes: &[u8]) {
    let dec = || Decoder::new(bytes);
    let _ = rpc::decode_call(&mut dec());
    let _ = rpc::decode_reply(&mut dec());
    let _ = mount::decode_mnt(&mut dec());
    let _ = LookupOk::decode(&mut dec());
    let _ = ReadOk::decode(&mut dec(), 65_536);
    let _ = WriteOk::decode(&mut dec());
    let _ = CreateOk::decode(&mut dec());
    let _ = FsInfoOk::decode(&mut dec());
    let _ = Sattr3::decode(&mut dec());
    let _ = StableHow::decode(&mut dec());
    let _ = FileHandle::decode(&mut dec());
    let _ = DirHead::decode(&mut dec());
    for procedure in [DirProc::ReadDir, DirProc::ReadDirPlus] {
        let _ = DirArgs::decode(&mut dec(), procedure);
        let _ = DirRecord::decode(&mut dec(), procedure);
    }
    let _ = proto::decode_getattr(&mut dec());
    let _ = proto::decode_setattr(&mut dec());
    let _ = proto::decode_commit(&mut dec());
}

fn encoded(encode: impl FnOnce(&mut Encoder<'_>)) -> Vec<u8> {
    let mut buf = vec![0; 4096];
    let mut out = Encoder::new(&mut buf);
    encode(&mut out);
    let len = out.len();
    buf.truncate(len);
    buf
}

prop_compose! {
    fn fattr()(
        ftype in 1u32..=7, words in any::<[u32; 4]>(), sizes in any::<[u64; 5]>(), times in any::<[(u32, u32); 3]>()
    ) -> Fattr3 {
        let [mode, nlink, uid, gid] = words;
        let [size, used, rdev, fsid, fileid] = sizes;
        let [atime, mtime, ctime] = times;
        Fattr3 { ftype, mode, nlink, uid, gid, size, used, rdev, fsid, fileid, atime, mtime, ctime }
    }
}

fn handle() -> impl Strategy<Value = FileHandle> {
    prop::collection::vec(any::<u8>(), 0..=64).prop_map(|bytes| FileHandle::new(&bytes).unwrap())
}

fn replies() -> impl Strategy<Value = Vec<u8>> {
    let attrs = || prop::option::of(fattr());
    prop_oneof![
        (handle(), attrs()).prop_map(|(object, attrs)| encoded(|out| {
            LookupOk { object, attrs }.encode(out).unwrap();
        })),
        (attrs(), 0u32..5000).prop_map(|(attrs, count)| encoded(|out| {
            ReadOk { attrs, count, eof: false }.encode(out).unwrap();
        })),
        (attrs(), any::<u32>(), any::<[u8; 8]>()).prop_map(|(attrs, count, verifier)| encoded(
            |out| {
                let committed = StableHow::FileSync;
                WriteOk { attrs, count, committed, verifier }.encode(out).unwrap();
            }
        )),
        (prop::option::of(handle()), attrs()).prop_map(|(object, attrs)| encoded(|out| {
            CreateOk { object, attrs }.encode(out).unwrap();
        })),
        any::<(u32, u32, u64)>().prop_map(|(rtmax, wtmax, max_file_bytes)| encoded(|out| {
            FsInfoOk { rtmax, wtmax, rtpref: rtmax, wtpref: wtmax, max_file_bytes }
                .encode(out)
                .unwrap();
        })),
    ]
}

/// Changes, cuts and repeats of a message's bytes.
fn damage(mut bytes: Vec<u8>, edits: &[(usize, u8, u8)]) -> Vec<u8> {
    for (at, how, value) in edits {
        if bytes.is_empty() {
            break;
        }
        let at = at % bytes.len();
        match how % 4 {
            0 => bytes[at] = *value,
            1 => bytes[at] ^= 1 << (value % 8),
            2 => bytes.truncate(at),
            _ => bytes.insert(at, *value),
        }
    }
    bytes
}

fn edits() -> impl Strategy<Value = Vec<(usize, u8, u8)>> {
    prop::collection::vec(any::<(usize, u8, u8)>(), 0..4)
}

/// Feeds a stream to a session, as far as it takes it.
fn feed(session: &mut impl Session, mut bytes: &[u8]) {
    let mut idle = 0;
    while !bytes.is_empty() && idle < 3 {
        let buf = session.recv_buffer();
        let n = buf.len().min(bytes.len());
        buf[..n].copy_from_slice(&bytes[..n]);
        session.handle_received(Time::ZERO, n);
        bytes = &bytes[n..];
        let mut out = SendVec::new();
        session.poll_send(Time::ZERO, &mut out);
        let sent = out.iter().map(|piece| piece.len()).sum();
        drop(out);
        session.handle_sent(Time::ZERO, sent);
        idle = if n == 0 { idle + 1 } else { 0 };
    }
}

/// A client that waits for the replies to a READ and a WRITE of two pages, and their xids.
fn waiting(pool: &PagePool) -> (NfsBackend, Vec<u32>) {
    let mut w = common::World::new(config(), NfsServerConfig::default(), 1);
    w.start();
    let mut xids = vec![];
    for (id, op) in [(0, Op::Read), (1, Op::Write)] {
        let pages = (0..2).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
        let first = Slot(8 * id);
        let request = Request { id: RequestId(id), op, first, pages, deadline: None };
        w.client.submit(w.now, request).unwrap();
    }
    let mut out = SendVec::new();
    w.client.poll_send(w.now, &mut out);
    let sent = out.iter().map(|piece| piece.len()).sum();
    drop(out);
    w.client.handle_sent(w.now, sent);
    w.client.outstanding(&mut |o| xids.push(o.tag));
    (w.client, xids)
}

fn record(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 | 1 << 31).to_be_bytes(), body].concat()
}

proptest! {
    #![proptest_config(cases(2000))]

    #[test]
    fn random_bytes_decode_to_something_or_an_error(bytes in prop::collection::vec(any::<u8>(), 0..300)) {
        every_decoder(&bytes);
    }

    #[test]
    fn damaged_replies_decode_to_something_or_an_error(reply in replies(), edits in edits()) {
        every_decoder(&damage(reply, &edits));
    }

    #[test]
    fn results_come_back_as_they_were(
        object in handle(), attrs in prop::option::of(fattr()), count in 0u32..=9000, eof in any::<bool>(),
        verifier in any::<[u8; 8]>(), mode in prop::option::of(any::<u32>()), size in prop::option::of(any::<u64>()),
    ) {
        let lookup = LookupOk { object, attrs };
        let bytes = encoded(|out| lookup.encode(out).unwrap());
        let mut dec = Decoder::new(&bytes);
        prop_assert_eq!(LookupOk::decode(&mut dec), Ok(Ok(lookup)));
        prop_assert_eq!(dec.end(), Ok(()));

        let read = ReadOk { attrs, count, eof };
        let bytes = encoded(|out| read.encode(out).unwrap());
        let mut dec = Decoder::new(&bytes);
        prop_assert_eq!(ReadOk::decode(&mut dec, 9000), Ok(Ok(read)));
        prop_assert_eq!(dec.end(), Ok(()));

        for committed in [StableHow::Unstable, StableHow::DataSync, StableHow::FileSync] {
            let write = WriteOk { attrs, count, committed, verifier };
            let bytes = encoded(|out| write.encode(out).unwrap());
            let mut dec = Decoder::new(&bytes);
            prop_assert_eq!(WriteOk::decode(&mut dec), Ok(Ok(write)));
            prop_assert_eq!(dec.end(), Ok(()));
        }

        let created = CreateOk { object: mode.map(|_| object), attrs };
        let bytes = encoded(|out| created.encode(out).unwrap());
        let mut dec = Decoder::new(&bytes);
        prop_assert_eq!(CreateOk::decode(&mut dec), Ok(Ok(created)));
        prop_assert_eq!(dec.end(), Ok(()));

        let set = Sattr3 { mode, uid: None, gid: mode, size };
        let bytes = encoded(|out| set.encode(out).unwrap());
        let mut dec = Decoder::new(&bytes);
        prop_assert_eq!(Sattr3::decode(&mut dec), Ok(set));
        prop_assert_eq!(dec.end(), Ok(()));
    }

    #[test]
    fn a_valid_message_that_is_cut_anywhere_is_truncated(reply in replies(), at in any::<prop::sample::Index>()) {
        let cut = &reply[..at.index(reply.len())];
        let mut errors = 0;
        errors += usize::from(matches!(LookupOk::decode(&mut Decoder::new(cut)), Err(XdrError::Truncated { .. })));
        errors += usize::from(matches!(WriteOk::decode(&mut Decoder::new(cut)), Err(XdrError::Truncated { .. })));
        errors += usize::from(matches!(CreateOk::decode(&mut Decoder::new(cut)), Err(XdrError::Truncated { .. })));
        errors += usize::from(matches!(FsInfoOk::decode(&mut Decoder::new(cut)), Err(XdrError::Truncated { .. })));
        errors += usize::from(matches!(ReadOk::decode(&mut Decoder::new(cut), u32::MAX), Err(XdrError::Truncated { .. })));
        // Whichever result it was, its own decoder is among these.
        prop_assert!(errors > 0);
    }

    #[test]
    fn a_record_reader_never_gives_more_than_its_bound(
        marks in prop::collection::vec(any::<u32>(), 1..200), max in 0usize..10_000
    ) {
        let mut reader = RecordReader::new(max);
        for mark in marks {
            // Mostly small fragments, so that records grow.
            let mark = if mark % 4 == 0 { mark } else { mark % 200 };
            if reader.push_mark(&mark.to_be_bytes()).is_err() {
                break;
            }
            if let RecordNext::Body(left) = reader.next() {
                reader.advance(left);
            }
            prop_assert!(reader.taken() <= max);
            if reader.next() == RecordNext::End {
                reader.reset();
            }
        }
    }
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_client_survives_any_stream(
        bytes in prop::collection::vec(any::<u8>(), 0..600), reply in replies(), edits in edits(),
        which in 0usize..2, data in 0usize..9000, good_header in any::<bool>(),
    ) {
        let pool = PagePool::new(PoolConfig::new(256));
        let (mut client, xids) = waiting(&pool);
        let mut body = if good_header {
            encoded(|out| {
                rpc::encode_reply(out, xids[which], ReplyStat::Accepted(AcceptStat::Success)).unwrap();
                out.raw(&reply).unwrap();
            })
        } else {
            [&xids[which].to_be_bytes()[..], &bytes].concat()
        };
        body.extend(std::iter::repeat_n(7, data));
        let stream = damage(record(&body), &edits);
        feed(&mut client, &stream);
        feed(&mut client, &bytes);
        let mut ended = 0;
        while let Some(end) = client.poll_completion(Time::ZERO) {
            prop_assert_eq!(end.pages.len(), 2);
            ended += 1;
        }
        client.handle_disconnected(Time::ZERO, Disconnect::Reset);
        client.shutdown(Time::ZERO);
        while client.poll_completion(Time::ZERO).is_some() {
            ended += 1;
        }
        prop_assert_eq!(ended, 2);
        prop_assert_eq!(pool.free_frames(), pool.frames());
    }

    #[test]
    fn a_starting_client_survives_any_stream(reply in replies(), edits in edits(), steps in 0usize..8) {
        let mut w = common::World::new(config(), NfsServerConfig::default(), 1);
        for _ in 0..steps {
            w.step();
        }
        if w.connected {
            let body = encoded(|out| {
                rpc::encode_reply(out, 1, ReplyStat::Accepted(AcceptStat::Success)).unwrap();
                out.raw(&reply).unwrap();
            });
            feed(&mut w.client, &damage(record(&body), &edits));
        }
        prop_assert!(!matches!(w.client.state(), BackendState::Stopped));
    }

    #[test]
    fn a_server_survives_any_stream(
        bytes in prop::collection::vec(any::<u8>(), 0..400), edits in edits(), procedure in 0u32..24,
        program in 0u32..2, good in any::<bool>(),
    ) {
        let mut server = server(NfsServerConfig::default());
        server.add_file("area0", MemDisk::new(8192));
        let auth = AuthSys { stamp: 1, machine: "m".into(), uid: 0, gid: 0 };
        let body = encoded(|out| {
            let program = if program == 0 { proto::PROGRAM } else { mount::PROGRAM };
            rpc::encode_call(out, 5, (program, 3, procedure), &auth).unwrap();
            if good {
                FileHandle::new(b"netswap-file\0\0\0\x01\0\0\0\x01").unwrap().encode(out).unwrap();
            }
            out.raw(&bytes).unwrap();
        });
        let mut session = server.connection(0);
        session.handle_connected(Time::ZERO);
        feed(&mut session, &damage(record(&body), &edits));
        feed(&mut session, &bytes);
        let _ = session.poll_action(Time::ZERO);
        // Another client is not touched by it.
        let mut other = server.connection(1);
        other.handle_connected(Time::ZERO);
        let null = encoded(|out| {
            rpc::encode_call(out, 6, (proto::PROGRAM, 3, 0), &auth).unwrap();
        });
        let stream = record(&null);
        let buf_len = other.recv_buffer().len();
        prop_assert_eq!(buf_len, 4);
        other.recv_buffer().copy_from_slice(&stream[..4]);
        other.handle_received(Time::ZERO, 4);
        other.recv_buffer().copy_from_slice(&stream[4..]);
        other.handle_received(Time::ZERO, stream.len() - 4);
        let mut out = SendVec::new();
        other.poll_send(Time::ZERO, &mut out);
        prop_assert_eq!(out.concat().len(), 28);
    }
}

#[test]
fn every_status_has_its_number() {
    let known: Vec<u32> = (0..20_000).filter(|c| Nfsstat3::from_code(*c).is_ok()).collect();
    let expected = [
        0, 1, 2, 5, 6, 13, 17, 18, 19, 20, 21, 22, 27, 28, 30, 31, 63, 66, 69, 70, 71, 10001,
        10002, 10003, 10004, 10005, 10006, 10007, 10008,
    ];
    assert_eq!(known, expected);
}
