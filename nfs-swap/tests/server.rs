//! Goal: the server keeps to RFC 1813 where the client does not look: bytes on the wire, procedures it
//! does not use, UNSTABLE writes and COMMIT, the duplicate request cache, backpressure.
//! Method: calls are written by hand, word by word, and their replies compared byte for byte.

mod common;

use common::server;
use netswap_net::{SendVec, Session};
use netswap_nfs::{NfsServer, NfsServerConfig, ServerFaults};
use netswap_reserve::{Span, Time};
use netswap_swap::{Disk, MemDisk};

const NFS: [u32; 2] = [100_003, 3];
const MOUNT: [u32; 2] = [100_005, 3];

/// What the reply to a successful RPC begins with, after the xid.
const ACCEPTED: [u32; 5] = [1, 0, 0, 0, 0];

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

/// The file at `place`; 0 is the root.
fn fh(place: u8) -> Vec<u8> {
    [&[0, 0, 0, 20][..], b"netswap-file", &[0, 0, 0, 1, 0, 0, 0, place]].concat()
}

fn call(xid: u32, program: [u32; 2], procedure: u32, args: &[u8]) -> Vec<u8> {
    // AUTH_SYS of 24 bytes: stamp, a machine name of one byte, uid, gid, no groups.
    let header = words(&[
        xid,
        0,
        2,
        program[0],
        program[1],
        procedure,
        1,
        24,
        9,
        1,
        0x6d00_0000,
        0,
        0,
        0,
        0,
        0,
    ]);
    let body = [&header, args].concat();
    [&(body.len() as u32 | 1 << 31).to_be_bytes()[..], &body].concat()
}

fn give(session: &mut impl Session, mut bytes: &[u8]) -> usize {
    while !bytes.is_empty() {
        let buf = session.recv_buffer();
        let n = buf.len().min(bytes.len());
        if n == 0 {
            break;
        }
        buf[..n].copy_from_slice(&bytes[..n]);
        session.handle_received(Time::ZERO, n);
        bytes = &bytes[n..];
    }
    bytes.len()
}

fn replies(session: &mut impl Session) -> Vec<u8> {
    let mut out = SendVec::new();
    session.poll_send(Time::ZERO, &mut out);
    let bytes = out.concat();
    drop(out);
    session.handle_sent(Time::ZERO, bytes.len());
    bytes
}

struct Wire {
    server: NfsServer<MemDisk>,
    xid: u32,
}

impl Wire {
    fn new(config: NfsServerConfig) -> Wire {
        let mut server = server(config);
        server.add_file("area0", MemDisk::new(10_000));
        server.connection(0).handle_connected(Time::ZERO);
        Wire { server, xid: 100 }
    }

    /// The reply behind its xid, whose record mark is checked.
    fn ask(&mut self, program: [u32; 2], procedure: u32, args: &[u8]) -> Vec<u8> {
        self.xid += 1;
        self.repeat(program, procedure, args)
    }

    fn repeat(&mut self, program: [u32; 2], procedure: u32, args: &[u8]) -> Vec<u8> {
        let mut session = self.server.connection(0);
        assert_eq!(give(&mut session, &call(self.xid, program, procedure, args)), 0);
        let reply = replies(&mut session);
        assert_eq!(reply[..4], ((reply.len() as u32 - 4) | (1 << 31)).to_be_bytes());
        assert_eq!(reply[4..8], self.xid.to_be_bytes());
        reply[8..].to_vec()
    }

    /// The results of a call that RPC accepts.
    fn results(&mut self, procedure: u32, args: &[u8]) -> Vec<u8> {
        let reply = self.ask(NFS, procedure, args);
        assert_eq!(reply[..20], words(&ACCEPTED));
        reply[20..].to_vec()
    }

    fn write(&mut self, offset: u32, stable: u32, data: &[u8]) -> Vec<u8> {
        let len = data.len() as u32;
        let pad = vec![0; data.len().wrapping_neg() % 4];
        let args = [&fh(1), &words(&[0, offset, len, stable, len]), data, &pad].concat();
        self.results(7, &args)
    }

    fn content(&mut self, offset: u64, len: usize) -> Vec<u8> {
        let mut buf = vec![0; len];
        self.server.disk_mut("area0").unwrap().read_at(offset, &mut buf).unwrap();
        buf
    }
}

/// `fattr3` of the file of `size` bytes, by the words of RFC 1813 section 2.6.
fn attrs(size: u32) -> Vec<u8> {
    words(&[1, 0o600, 1, 0, 0, 0, size, 0, size, 0, 0, 0, 1, 0, 2, 0, 0, 0, 0, 0, 0])
}

#[test]
fn mount_gives_the_root_and_its_list_has_one_export() {
    let mut wire = Wire::new(NfsServerConfig::default());
    let path = b"\0\0\0\x05/swap\0\0\0";
    assert_eq!(wire.ask(MOUNT, 0, b""), words(&ACCEPTED));
    let expected = [words(&ACCEPTED), words(&[0]), fh(0), words(&[1, 1])].concat();
    assert_eq!(wire.ask(MOUNT, 1, path), expected);
    let nobody = [words(&ACCEPTED), words(&[2])].concat();
    assert_eq!(wire.ask(MOUNT, 1, b"\0\0\0\x04/tmp"), nobody);
    let list = [&words(&ACCEPTED)[..], &[0, 0, 0, 1], path, &[0; 8]].concat();
    assert_eq!(wire.ask(MOUNT, 5, b""), list);
    assert_eq!(wire.ask(MOUNT, 3, path), words(&ACCEPTED));
}

#[test]
fn a_read_has_attributes_two_lengths_data_and_padding() {
    let mut wire = Wire::new(NfsServerConfig::default());
    wire.server.disk_mut("area0").unwrap().write_at(4096, b"abcde").unwrap();
    let args = [fh(1), words(&[0, 4096, 5])].concat();
    let expected =
        [&words(&[0, 1])[..], &attrs(10_000), &words(&[5, 0, 5]), b"abcde\0\0\0"].concat();
    assert_eq!(wire.results(6, &args), expected);
    // At the end of the file: fewer bytes, and eof; behind it none.
    let at_end = [&words(&[0, 1])[..], &attrs(10_000), &words(&[2, 1, 2]), &[0; 4]].concat();
    assert_eq!(wire.results(6, &[fh(1), words(&[0, 9998, 4096])].concat()), at_end);
    let behind = [&words(&[0, 1])[..], &attrs(10_000), &words(&[0, 1, 0])].concat();
    assert_eq!(wire.results(6, &[fh(1), words(&[7, 0, 4096])].concat()), behind);
    // A directory is not read, and a handle of another server is none.
    assert_eq!(wire.results(6, &[fh(0), words(&[0, 0, 8])].concat()), words(&[21, 0]));
    assert_eq!(wire.results(6, &words(&[4, 1, 0, 0, 8])), words(&[10_001, 0]));
    assert_eq!(wire.results(6, &[fh(9), words(&[0, 0, 8])].concat()), words(&[70, 0]));
}

#[test]
fn a_write_says_how_stable_it_is() {
    let mut wire = Wire::new(NfsServerConfig { boot: 0x1122_3344_5566_7788, ..Default::default() });
    let verifier = words(&[0x1122_3344, 0x5566_7788]);
    for (stable, committed) in [(2, 2), (1, 2), (0, 0)] {
        let expected =
            [words(&[0, 0, 1]), attrs(10_000), words(&[5, committed]), verifier.clone()].concat();
        assert_eq!(wire.write(3, stable, b"abcde"), expected);
    }
    assert_eq!(wire.content(2, 7), b"\0abcde\0");
    // COMMIT of the whole file.
    let committed = [words(&[0, 0, 1]), attrs(10_000), verifier].concat();
    assert_eq!(wire.results(21, &[fh(1), words(&[0, 0, 0])].concat()), committed);
}

#[test]
fn what_was_not_committed_is_lost_by_a_restart_and_the_verifier_tells() {
    let mut wire = Wire::new(NfsServerConfig { unstable: 3, ..Default::default() });
    let restart = |wire: &mut Wire| {
        wire.server.restart(Time::ZERO);
        wire.server.connection(0).handle_connected(Time::ZERO);
    };
    wire.write(0, 2, b"stable--");
    let before = wire.write(4, 0, b"lost")[96 + 4..].to_vec();
    wire.write(9_998, 0, b"beyond the end");
    assert_eq!(wire.content(0, 8), b"stablost");
    restart(&mut wire);
    assert_eq!(wire.content(0, 8), b"stable--");
    assert_eq!(wire.server.disk_mut("area0").unwrap().len(), 10_000);
    assert_eq!(wire.server.stats().lost, 2);
    // Committed by COMMIT, by a stable WRITE, by one write too many.
    wire.write(0, 0, b"commit");
    let after = wire.results(21, &[fh(1), words(&[0, 0, 0])].concat())[96..].to_vec();
    assert_ne!(before[before.len() - 8..], after[after.len() - 8..]);
    wire.write(100, 0, b"by stable");
    wire.write(200, 2, b"x");
    for i in 0..4 {
        wire.write(300 + 20 * i, 0, b"by overflow");
    }
    restart(&mut wire);
    assert_eq!(wire.content(0, 8), b"commit--");
    assert_eq!(wire.content(100, 9), b"by stable");
    assert_eq!(wire.content(300, 11), b"by overflow");
    assert_eq!(wire.content(360, 11), [0; 11], "the one that made room for itself");
}

#[test]
fn what_was_overwritten_is_not_kept_if_it_need_not_be() {
    let mut wire =
        Wire::new(NfsServerConfig { keep_old: false, unstable: 0, ..Default::default() });
    for i in 0..40 {
        let written = wire.write(20 * i, 0, b"unstable");
        assert_eq!(written[96 + 4..96 + 8], words(&[0]), "UNSTABLE");
    }
    wire.server.restart(Time::ZERO);
    wire.server.connection(0).handle_connected(Time::ZERO);
    assert_eq!(wire.content(780, 8), b"unstable");
    assert_eq!(wire.server.stats().lost, 0);
}

#[test]
fn a_spare_for_a_name_is_for_no_other() {
    let mut wire = Wire::new(NfsServerConfig::default());
    wire.server.add_spare_for("area1", MemDisk::new(0));
    assert!(wire.server.disk_mut("area1").is_some() && wire.server.disk_mut("area2").is_none());
    let create = |n: &[u8]| [fh(0), n.to_vec(), words(&[0; 7])].concat();
    assert_eq!(wire.results(8, &create(b"\0\0\0\x05area2\0\0\0")), words(&[28, 0, 0]));
    let made = wire.results(8, &create(b"\0\0\0\x05area1\0\0\0"));
    assert_eq!(made[..8 + 24], [words(&[0, 1]), fh(2)].concat());
    assert!(wire.server.disk_mut("area1").is_some());
}

#[test]
fn a_repeated_change_is_answered_from_the_cache_a_repeated_read_is_not() {
    let mut wire = Wire::new(NfsServerConfig::default());
    let first = wire.write(0, 2, b"one!");
    wire.server.disk_mut("area0").unwrap().write_at(0, b"two!").unwrap();
    let args = [&fh(1), &words(&[0, 0, 4, 2, 4]), &b"one!"[..]].concat();
    assert_eq!(wire.repeat(NFS, 7, &args)[20..], first);
    assert_eq!(wire.content(0, 4), b"two!", "it was not executed again");
    assert_eq!(wire.server.stats().cached, 1);
    // The same xid for another change is another call.
    let args = [&fh(1), &words(&[0, 8, 4, 2, 4]), &b"new!"[..]].concat();
    wire.repeat(NFS, 7, &args);
    assert_eq!(wire.content(8, 4), b"new!");
    // The cache outlives the connection, not the server.
    wire.server.connection(0).handle_connected(Time::ZERO);
    wire.repeat(NFS, 7, &args);
    assert_eq!(wire.server.stats().cached, 2);
    wire.server.restart(Time::ZERO);
    wire.server.connection(0).handle_connected(Time::ZERO);
    wire.repeat(NFS, 7, &args);
    assert_eq!(wire.server.stats().cached, 2);
}

#[test]
fn what_is_not_served_is_refused_in_the_way_of_the_rfc() {
    let mut wire = Wire::new(NfsServerConfig::default());
    // PROG_UNAVAIL, PROG_MISMATCH with the versions there are, PROC_UNAVAIL, GARBAGE_ARGS.
    assert_eq!(wire.ask([100_007, 2], 3, b""), words(&[1, 0, 0, 0, 1]));
    assert_eq!(wire.ask([100_003, 4], 0, b""), words(&[1, 0, 0, 0, 2, 3, 3]));
    assert_eq!(wire.ask(NFS, 22, b""), words(&[1, 0, 0, 0, 3]));
    assert_eq!(wire.ask(NFS, 1, b"\0\0\0\x41"), words(&[1, 0, 0, 0, 4]));
    assert_eq!(wire.ask(NFS, 0, &[0; 4]), words(&[1, 0, 0, 0, 4]), "bytes after the arguments");
    // NFS3ERR_NOTSUPP with what RFC 1813 puts behind it: READLINK, REMOVE, LINK, RENAME.
    for (procedure, absent) in [(5, 1), (12, 2), (15, 3), (14, 4)] {
        let expected = [words(&[10_004]), words(&vec![0; absent])].concat();
        assert_eq!(wire.results(procedure, &fh(0)), expected);
    }
    // Another RPC version: RPC_MISMATCH with 2 to 2. Another credential: AUTH_REJECTEDCRED.
    let mut session = wire.server.connection(0);
    give(&mut session, &words(&[1 << 31 | 12, 7, 0, 3]));
    assert_eq!(replies(&mut session)[4..], words(&[7, 1, 1, 0, 2, 2]));
    give(&mut session, &words(&[1 << 31 | 40, 8, 0, 2, 100_003, 3, 1, 6, 0, 0, 0]));
    assert_eq!(replies(&mut session)[4..], words(&[8, 1, 1, 1, 2]));
}

#[test]
fn a_directory_is_listed_in_pieces_of_the_size_asked_for() {
    let mut wire = Wire::new(NfsServerConfig::default());
    let root = words(&[2, 0o755, 1, 0, 0, 0, 4096, 0, 4096, 0, 0, 0, 1, 0, 1, 0, 0, 0, 0, 0, 0]);
    let verifier = [0, 0, 0, 0, 0, 0, 0, 1];
    let head = [words(&[0, 1]), root.clone(), verifier.to_vec()].concat();
    let args = |cookie: u32, verifier: u32, counts: &[u32]| {
        [fh(0), words(&[0, cookie, 0, verifier]), words(counts)].concat()
    };
    let dot = [words(&[1, 0, 1]), b"\0\0\0\x01.\0\0\0".to_vec(), words(&[0, 1])].concat();
    let dots = [words(&[1, 0, 1]), b"\0\0\0\x02..\0\0".to_vec(), words(&[0, 2])].concat();
    let area = [words(&[1, 0, 2]), b"\0\0\0\x05area0\0\0\0".to_vec(), words(&[0, 3])].concat();
    // READDIR: everything; what fits, to the byte; nothing that fits.
    let whole = [&head[..], &dot, &dots, &area, &words(&[0, 1])].concat();
    assert_eq!(wire.results(16, &args(0, 0, &[4096])), whole);
    let two = [&head[..], &dot, &dots, &words(&[0, 0])].concat();
    assert_eq!(wire.results(16, &args(0, 0, &[two.len() as u32 - 4])), two);
    let one = [&head[..], &dot, &words(&[0, 0])].concat();
    assert_eq!(wire.results(16, &args(0, 0, &[two.len() as u32 - 5])), one);
    assert_eq!(wire.results(16, &args(0, 0, &[one.len() as u32 - 5])), words(&[10_005, 0]));
    // Further, to the end, and from the end.
    let rest = [&head[..], &area, &words(&[0, 1])].concat();
    assert_eq!(wire.results(16, &args(2, 1, &[4096])), rest);
    assert_eq!(wire.results(16, &args(3, 1, &[4096])), [&head[..], &words(&[0, 1])].concat());
    // Cookies that are none, and one whose verifier is another one.
    for (cookie, verifier) in [(4, 1), (2, 0), (2, 2)] {
        assert_eq!(wire.results(16, &args(cookie, verifier, &[4096])), words(&[10_003, 0]));
    }
    // READDIRPLUS: attributes and handle; `dircount` bounds the names, but for the first.
    let plus = [words(&[1]), attrs(10_000), words(&[1]), fh(1)].concat();
    let rest = [&head[..], &area, &plus, &words(&[0, 1])].concat();
    assert_eq!(wire.results(17, &args(2, 1, &[0, 4096])), rest);
    let plus = [words(&[1]), root, words(&[1]), fh(0)].concat();
    let one = [&head[..], &dot, &plus, &words(&[0, 0])].concat();
    assert_eq!(wire.results(17, &args(0, 0, &[24 + 23, 4096])), one);
    let two = [&head[..], &dot, &plus, &dots, &plus, &words(&[0, 0])].concat();
    assert_eq!(wire.results(17, &args(0, 0, &[24 + 24, 4096])), two);
    // A file is no directory.
    let args = [fh(1), words(&[0, 0, 0, 0, 4096])].concat();
    assert_eq!(wire.results(16, &args), words(&[20, 0]));
}

#[test]
fn names_sizes_and_limits() {
    let config =
        NfsServerConfig { rtmax: 8192, wtmax: 4096, file_bytes_max: 20_000, ..Default::default() };
    let mut wire = Wire::new(config);
    wire.server.add_spare(MemDisk::new(0));
    // LOOKUP
    let name = |name: &[u8]| [fh(0), name.to_vec()].concat();
    let found = [words(&[0]), fh(1), words(&[1]), attrs(10_000), words(&[0])].concat();
    assert_eq!(wire.results(3, &name(b"\0\0\0\x05area0\0\0\0")), found);
    assert_eq!(wire.results(3, &name(b"\0\0\0\x05area1\0\0\0")), words(&[2, 0]));
    // FSINFO: rtmax, rtpref, rtmult, wtmax, wtpref, wtmult, dtpref, maxfilesize, time_delta, properties
    let info = words(&[0, 0, 8192, 8192, 4, 4096, 4096, 4, 4096, 0, 20_000, 1, 0, 0]);
    assert_eq!(wire.results(19, &fh(0)), info);
    // CREATE: GUARDED meets a file; UNCHECKED makes one; then there is no room for a third.
    let create = |n: &[u8], how: u32| [name(n), words(&[how, 0, 0, 0, 0, 0, 0])].concat();
    assert_eq!(wire.results(8, &create(b"\0\0\0\x05area0\0\0\0", 1)), words(&[17, 0, 0]));
    let made = wire.results(8, &create(b"\0\0\0\x05area1\0\0\0", 0));
    assert_eq!(made[..8 + 24], [words(&[0, 1]), fh(2)].concat());
    assert_eq!(wire.results(8, &create(b"\0\0\0\x05area2\0\0\0", 0)), words(&[28, 0, 0]));
    // SETATTR: size, within the bound; a guard that does not match.
    let size = |size: u32, guard: &[u32]| {
        [fh(2), words(&[0, 0, 0, 1, 0, size, 0, 0]), words(guard)].concat()
    };
    assert_eq!(wire.results(2, &size(20_001, &[0])), words(&[27, 0, 0]));
    assert_eq!(wire.results(2, &size(20_000, &[1, 5, 5])), words(&[10_002, 0, 0]));
    assert_eq!(wire.results(2, &size(20_000, &[0]))[..4], words(&[0]));
    assert_eq!(wire.server.disk_mut("area1").unwrap().len(), 20_000);
    // READ of more than rtmax gives rtmax. WRITE to beyond the bound is NFS3ERR_FBIG.
    let read = wire.results(6, &[fh(1), words(&[0, 0, 65_536])].concat());
    assert_eq!(read[92..96], words(&[8192]));
    let far = [&fh(1), &words(&[1, 0, 1, 2, 1]), &b"x\0\0\0"[..]].concat();
    assert_eq!(wire.results(7, &far), words(&[27, 0, 0]));
}

#[test]
fn without_a_free_buffer_nothing_is_taken_from_the_stream() {
    let mut wire = Wire::new(NfsServerConfig { records: 2, ..Default::default() });
    let null = call(1, NFS, 0, b"");
    let mut session = wire.server.connection(0);
    let stream = null.repeat(5);
    let left = give(&mut session, &stream);
    assert_eq!(left, 3 * null.len());
    assert!(session.recv_buffer().is_empty());
    assert_eq!(replies(&mut session).len(), 2 * 28);
    assert_eq!(give(&mut session, &stream[stream.len() - left..]), null.len());
    // Replies that are held back hold their buffers too.
    let faults =
        ServerFaults { late_ppm: 1_000_000, late_by: Span::from_secs(1), ..Default::default() };
    let mut wire = Wire::new(NfsServerConfig { records: 2, faults, ..Default::default() });
    let mut session = wire.server.connection(0);
    assert_eq!(give(&mut session, &stream), 3 * null.len());
    assert_eq!(replies(&mut session), b"");
    assert_eq!(session.poll_deadline(), Some(Time::ZERO + Span::from_secs(1)));
    session.handle_deadline(Time::ZERO + Span::from_secs(1));
    assert_eq!(replies(&mut session).len(), 2 * 28);
}

#[test]
fn a_record_that_is_too_long_or_is_no_call_ends_the_connection() {
    for bad in [words(&[1 << 31 | 1_000_000]), words(&[1 << 31 | 8, 1, 1]), words(&[1 << 31])] {
        let mut wire = Wire::new(NfsServerConfig::default());
        let mut session = wire.server.connection(0);
        give(&mut session, &bad);
        assert_eq!(session.poll_action(Time::ZERO), Some(netswap_net::Action::Abort));
        assert!(session.recv_buffer().is_empty());
    }
}
