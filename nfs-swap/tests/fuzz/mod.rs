//! What the fuzz targets of this crate do with any bytes, and what the everyday tests do with the seeds of
//! those targets.
//!
//! An input is a list of operations: a byte that says which, and its operands. Bytes that come from a peer
//! may be anything; the rest is done as a driver would. What must hold, for every input:
//!
//! - no panic; whoever takes bytes takes some, or none for good: no endless loop;
//! - the client gives every request back exactly once, with its pages, at the latest when it is shut down;
//! - what the server sends is whole records, each within its bound; a file stays within its bound.
//!
//! Allocations are bounded by the fuzzer's own limit (`-malloc_limit_mb`).

#![allow(dead_code, unreachable_pub)]

#[path = "../../../fuzz/shared.rs"]
pub mod shared;

use netswap_net::{Action, Disconnect, Session};
use netswap_nfs::{
    ListEvent, ListerConfig, NfsBackend, NfsConfig, NfsLister, NfsServer, NfsServerConfig,
};
use netswap_nfs::{NfsUrl, dir, mount, proto, rpc, xdr};
use netswap_reserve::{Frame, Gfp, PagePool, PoolConfig, Span, Time};
use netswap_swap::{BackendState, MemDisk, Op, PageVec, Request, RequestId, Slot, SwapBackend};
use shared::{Input, OPERATIONS_MAX, give, take};

/// Most bytes of the served file.
const FILE_BYTES_MAX: u64 = 1 << 18;
const SLOTS: u64 = 16;

fn record(body: &[u8]) -> Vec<u8> {
    let mut bytes = (rpc::LAST_FRAGMENT | body.len() as u32).to_be_bytes().to_vec();
    bytes.extend_from_slice(body);
    bytes
}

fn server(rtmax: u32) -> NfsServer<MemDisk> {
    let config = NfsServerConfig {
        max_connections: 1,
        rtmax,
        wtmax: rtmax,
        file_bytes_max: FILE_BYTES_MAX,
        files: 3,
        ..NfsServerConfig::default()
    };
    let pool = PagePool::new(PoolConfig::new(config.frames() + 64));
    let mut server = NfsServer::new(config, &pool).unwrap();
    server.add_file("area0", MemDisk::new(SLOTS * 4096));
    server.add_spare(MemDisk::new(0));
    server
}

/// A client's session of any kind, its connection, and a server that answers it honestly when told to.
struct Wire {
    server: NfsServer<MemDisk>,
    now: Time,
    open: bool,
    /// The first word of the last call that was sent.
    xid: [u8; 4],
    /// Calls that nobody has answered.
    calls: Vec<u8>,
}

impl Wire {
    fn new() -> Wire {
        Wire {
            server: server(16_384),
            now: Time::ZERO,
            open: false,
            xid: [0; 4],
            calls: Vec::new(),
        }
    }

    /// Does what the session asks for, and takes what it sends.
    fn turn(&mut self, session: &mut impl Session) {
        if session.poll_deadline().is_some_and(|at| at <= self.now) {
            session.handle_deadline(self.now);
        }
        for _ in 0..8 {
            match session.poll_action(self.now) {
                Some(Action::Connect { .. }) => {
                    self.open = true;
                    self.calls.clear();
                    self.server.connection(0).handle_connected(self.now);
                    session.handle_connected(self.now);
                }
                Some(Action::Close | Action::Abort) => self.hang_up(session, Disconnect::BySelf),
                None => break,
            }
        }
        if self.open {
            let sent = take(session, self.now);
            if let Some(xid) = sent.get(4..8) {
                self.xid.copy_from_slice(xid);
            }
            self.calls.extend_from_slice(&sent);
        }
    }

    fn hang_up(&mut self, session: &mut impl Session, why: Disconnect) {
        if std::mem::take(&mut self.open) {
            self.server.connection(0).handle_disconnected(self.now, why);
            session.handle_disconnected(self.now, why);
        }
    }

    /// What an honest server says to all that was sent.
    fn honest(&mut self) -> Vec<u8> {
        let calls = std::mem::take(&mut self.calls);
        let now = self.now;
        let mut at = 0;
        let mut replies = Vec::new();
        // A record at a time: the server stops taking when its buffers are full.
        while let Some(mark) = calls.get(at..at + 4) {
            let len =
                u32::from_be_bytes([mark[0], mark[1], mark[2], mark[3]]) & !rpc::LAST_FRAGMENT;
            let end = (at + 4 + len as usize).min(calls.len());
            give(&mut self.server.connection(0), now, &calls[at..end]);
            replies.extend(take(&mut self.server.connection(0), now));
            at = end;
        }
        replies
    }

    /// One of the operations that any session can meet; `false` if it is none of them.
    fn meet(&mut self, operation: u8, input: &mut Input<'_>, session: &mut impl Session) -> bool {
        match operation {
            0 => {
                let replies = self.honest();
                self.deliver(session, &replies);
            }
            1 => {
                // A bit or some are turned over, at any place.
                let mut replies = self.honest();
                let (at, with) = (usize::from(input.word()), input.byte());
                let len = replies.len().max(1);
                if let Some(byte) = replies.get_mut(at % len) {
                    *byte ^= with;
                }
                self.deliver(session, &replies);
            }
            2 => self.deliver(session, input.bytes()),
            3 => {
                // The reply to the last call, with anything behind its xid.
                let body = [&self.xid[..], input.bytes()].concat();
                self.deliver(session, &record(&body));
            }
            4 => {
                // Cut short, with a record mark that fits.
                let replies = self.honest();
                let cut = usize::from(input.word()) % replies.len().max(1);
                self.deliver(session, &record(replies.get(4..cut.max(4)).unwrap_or_default()));
            }
            5 => self.now += Span::from_millis(1 << (input.byte() % 16)),
            6 => self.hang_up(session, Disconnect::ByPeer),
            7 => {
                // Junk behind what is right.
                let mut replies = self.honest();
                replies.extend_from_slice(input.bytes());
                self.deliver(session, &replies);
            }
            8 => {
                self.server.restart(self.now);
                self.hang_up(session, Disconnect::ByPeer);
            }
            _ => return false,
        }
        true
    }

    fn deliver(&mut self, session: &mut impl Session, bytes: &[u8]) {
        if self.open {
            give(session, self.now, bytes);
        }
    }
}

/// Any bytes as what happens to a swap client. Gives whether it was ready once.
pub fn client(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let pool = PagePool::new(PoolConfig::new(256));
    let mut config = NfsConfig::new("10.0.0.2:2049".parse().unwrap(), "/swap", "area0");
    config.in_flight = 4;
    let flags = input.byte();
    config.search_export = flags & 1 > 0;
    config.create_bytes = (flags & 2 > 0).then_some(1 << 16);
    config.mount = (flags & 4 > 0).then(|| "10.0.0.2:2050".parse().unwrap());
    if flags & 8 > 0 {
        config.write = "unstable".parse().unwrap();
    }
    if flags & 16 > 0 {
        config.portmap = Some("10.0.0.2:111".parse().unwrap());
        config.server.set_port(0);
    }
    let mut client = NfsBackend::new(config);
    let mut wire = Wire::new();
    let mut outstanding = [0usize; 8];
    let mut was_ready = false;
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = input.operation() else { break };
        wire.turn(&mut client);
        if !wire.meet(operation % 11, &mut input, &mut client) {
            let (slot, shape) = (input.byte(), input.byte());
            let Some(id) = outstanding.iter().position(|pages| *pages == 0) else { continue };
            let n = 1 + usize::from(shape % 8);
            let pages: PageVec = (0..n).map_while(|_| pool.alloc(Gfp::KERNEL).ok()).collect();
            let op = if operation % 11 == 9 { Op::Read } else { Op::Write };
            let deadline = (shape & 0x80 > 0).then(|| wire.now + Span::from_secs(30));
            let (id, first) = (RequestId(id as u32), Slot(u32::from(slot % 32)));
            if client.submit(wire.now, Request { id, op, first, pages, deadline }).is_ok() {
                outstanding[id.0 as usize] = n;
            }
        }
        wire.turn(&mut client);
        ended(&mut client, wire.now, &mut outstanding);
        was_ready |= matches!(client.state(), BackendState::Ready { .. });
    }
    client.shutdown(wire.now);
    ended(&mut client, wire.now, &mut outstanding);
    assert_eq!(outstanding, [0; 8], "requests that never came back");
    let state = client.state();
    assert!(matches!(state, BackendState::Stopped | BackendState::Failed(_)), "{state:?}");
    was_ready
}

fn ended(client: &mut NfsBackend, now: Time, outstanding: &mut [usize; 8]) {
    while let Some(end) = client.poll_completion(now) {
        let pages = std::mem::take(&mut outstanding[end.id.0 as usize]);
        assert!(pages > 0, "a request that came back twice");
        assert_eq!(end.pages.len(), pages, "pages were lost");
    }
}

/// Any bytes as what happens to a lister. Gives whether it found anything.
pub fn lister(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let pool = PagePool::new(PoolConfig::new(64));
    let flags = input.byte();
    let path = if flags & 1 > 0 { "a/b" } else { "" };
    let config = ListerConfig {
        attributes: flags & 2 > 0,
        entries_max: 1000,
        ..ListerConfig::new("10.0.0.2:2049".parse().unwrap(), "/swap", path)
    };
    let pages: Vec<Frame> = (0..2).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    let mut lister = NfsLister::new(config, pages, Time::ZERO);
    let mut wire = Wire::new();
    let (mut entries, mut over) = (0, false);
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = input.operation() else { break };
        wire.turn(&mut lister);
        wire.meet(operation % 9, &mut input, &mut lister);
        while let Some(event) = lister.poll_event(wire.now) {
            assert!(!over, "an event behind the end");
            match event {
                ListEvent::Entry(entry) => {
                    entries += 1;
                    let name = entry.name;
                    assert!(!name.is_empty() && !name.contains(&b'/') && !name.contains(&0));
                }
                ListEvent::Restarted => entries = 0,
                ListEvent::End(_) => over = true,
            }
        }
        assert!(entries <= 1000, "more entries than were allowed");
    }
    entries > 0
}

/// Any bytes as what a client sends to the server. Gives whether most calls were understood.
pub fn calls(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let mut server = server(8192);
    let (root, file) = handles(&mut server);
    let now = Time::ZERO;
    server.connection(0).handle_connected(now);
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = input.operation() else { break };
        match operation % 5 {
            0 => {
                give(&mut server.connection(0), now, input.bytes());
            }
            1 => {
                let body = input.bytes();
                give(&mut server.connection(0), now, &record(body));
            }
            which @ (2 | 3) => {
                // A call that is right up to the handle: of the directory, or of the file.
                let mut call = call_header(proto::PROGRAM, u32::from(input.byte() % 23));
                let handle = if which == 2 { &root } else { &file };
                call.extend((handle.len() as u32).to_be_bytes());
                call.extend_from_slice(handle);
                call.extend_from_slice(input.bytes());
                give(&mut server.connection(0), now, &record(&call));
            }
            _ => {
                let program = [mount::PROGRAM, rpc::PORTMAP][usize::from(input.byte() % 2)];
                let mut call = call_header(program, u32::from(input.byte() % 7));
                call.extend_from_slice(input.bytes());
                give(&mut server.connection(0), now, &record(&call));
            }
        }
        let replies = take(&mut server.connection(0), now);
        whole_records(&replies);
        if server.connection(0).poll_action(now).is_some() {
            server.connection(0).handle_disconnected(now, Disconnect::ByPeer);
            server.connection(0).handle_connected(now);
        }
        let len = server.disk_mut("area0").map_or(0, |disk| netswap_swap::Disk::len(disk));
        assert!(len <= FILE_BYTES_MAX, "a file of {len} bytes");
    }
    // Two calls found the handles.
    let stats = server.stats();
    stats.calls > 2 + stats.bad_calls
}

fn call_header(program: u32, procedure: u32) -> Vec<u8> {
    let version = if program == rpc::PORTMAP { rpc::PORTMAP_VERSION } else { 3 };
    let words = [7, rpc::CALL, rpc::RPC_VERSION, program, version, procedure, 0, 0, 0, 0];
    words.iter().flat_map(|word: &u32| word.to_be_bytes()).collect()
}

/// The handles of the export and of its file, as the server itself gives them.
fn handles(server: &mut NfsServer<MemDisk>) -> (Vec<u8>, Vec<u8>) {
    let mut ask = |call: Vec<u8>, at: usize| -> Vec<u8> {
        server.connection(0).handle_connected(Time::ZERO);
        give(&mut server.connection(0), Time::ZERO, &record(&call));
        let reply = take(&mut server.connection(0), Time::ZERO);
        let len = usize::from(reply[at + 3]);
        reply[at + 4..at + 4 + len].to_vec()
    };
    // Behind record mark, header and status.
    let opaque = |bytes: &[u8]| {
        let mut out = (bytes.len() as u32).to_be_bytes().to_vec();
        out.extend_from_slice(bytes);
        out.resize(out.len() + xdr::padding(bytes.len()), 0);
        out
    };
    let root = ask([call_header(mount::PROGRAM, mount::procs::MNT), opaque(b"/swap")].concat(), 32);
    let lookup = call_header(proto::PROGRAM, proto::procs::LOOKUP);
    let file = ask([lookup, opaque(&root), opaque(b"area0")].concat(), 32);
    (root, file)
}

fn whole_records(mut bytes: &[u8]) {
    while !bytes.is_empty() {
        let mark = u32::from_be_bytes(bytes[..4].try_into().unwrap());
        assert!(mark & rpc::LAST_FRAGMENT != 0, "a reply in fragments");
        let len = (mark & !rpc::LAST_FRAGMENT) as usize;
        assert!(len <= 3 * 4096 + 2048, "a reply of {len} bytes");
        let mut dec = xdr::Decoder::new(&bytes[4..4 + len]);
        assert!(rpc::decode_reply(&mut dec).is_ok(), "no reply");
        bytes = &bytes[4 + len..];
    }
}

/// Any bytes to every decoder, and to the reader of records. Gives whether one of them could read them all.
pub fn decode(bytes: &[u8]) -> bool {
    let new = || xdr::Decoder::new(bytes);
    let whole = |read: &dyn Fn(&mut xdr::Decoder<'_>) -> bool| {
        let mut dec = new();
        read(&mut dec) && dec.end().is_ok()
    };
    let known = whole(&|dec| mount::decode_mnt(dec).is_ok())
        || whole(&|dec| proto::LookupOk::decode(dec).is_ok())
        || whole(&|dec| proto::CreateOk::decode(dec).is_ok())
        || whole(&|dec| proto::FsInfoOk::decode(dec).is_ok())
        || whole(&|dec| proto::decode_getattr(dec).is_ok())
        || whole(&|dec| proto::decode_setattr(dec).is_ok())
        || whole(&|dec| proto::decode_commit(dec).is_ok());
    let _ = rpc::decode_call(&mut new());
    let _ = rpc::decode_reply(&mut new());
    let _ = mount::decode_mnt(&mut new());
    let _ = proto::decode_getattr(&mut new());
    let _ = proto::decode_setattr(&mut new());
    let _ = proto::decode_commit(&mut new());
    let _ = proto::LookupOk::decode(&mut new());
    let _ = proto::CreateOk::decode(&mut new());
    let _ = proto::FsInfoOk::decode(&mut new());
    let _ = proto::WriteOk::decode(&mut new());
    let _ = proto::ReadOk::decode(&mut new(), 65_536);
    let _ = dir::DirArgs::decode(&mut new(), dir::DirProc::ReadDirPlus);
    // What can be read can be written, and reads the same.
    let mut dec = new();
    if let Ok(attrs) = proto::Fattr3::decode(&mut dec) {
        let mut out = [0; proto::FATTR_BYTES];
        attrs.encode(&mut xdr::Encoder::new(&mut out)).unwrap();
        assert_eq!(&out[..], &bytes[..dec.position()]);
    }
    let mut dec = new();
    if let Ok(attrs) = proto::Sattr3::decode(&mut dec) {
        let mut out = [0; 64];
        let mut encoder = xdr::Encoder::new(&mut out);
        attrs.encode(&mut encoder).unwrap();
        let len = encoder.len();
        assert_eq!(proto::Sattr3::decode(&mut xdr::Decoder::new(&out[..len])), Ok(attrs));
    }
    records(bytes);
    if let Ok(text) = std::str::from_utf8(bytes)
        && let Ok(url) = text.parse::<NfsUrl>()
    {
        assert!(!url.file.is_empty() && url.export.starts_with('/'));
    }
    known
}

fn records(mut bytes: &[u8]) {
    let mut reader = rpc::RecordReader::new(4096);
    while !bytes.is_empty() {
        let n = match reader.next() {
            rpc::RecordNext::Mark(missing) => {
                let n = missing.min(bytes.len());
                if reader.push_mark(&bytes[..n]).is_err() {
                    return;
                }
                n
            }
            rpc::RecordNext::Body(left) => {
                let n = left.min(bytes.len());
                reader.advance(n);
                assert!(reader.taken() <= 4096, "beyond the bound");
                n
            }
            rpc::RecordNext::End => {
                reader.reset();
                continue;
            }
        };
        assert!(n > 0, "a reader that wants nothing and has no end");
        bytes = &bytes[n..];
    }
}
