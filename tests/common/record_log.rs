//! All that passes through proxies, as a packet capture that needs no rights: a file that tshark reads (pcap, raw
//! IPv4). Each RPC record (RFC 5531 section 11) or iSCSI PDU (RFC 7143 section 11.2) is a packet, or several if it is
//! long, with a TCP header made for it.
//!
//! The order of packets is that in which records were wholly there. Each connection has a client port of its own, so that
//! none is taken for another. Also keeps which call each xid was.

use std::collections::HashMap;
use std::fs::File;
use std::io::{BufWriter, Write};
use std::path::Path;
use std::sync::Mutex;
use std::time::Instant;

/// LINKTYPE_RAW: packets begin with the IP header.
const LINKTYPE_RAW: u32 = 101;
/// Payload of a packet: with its headers it fits the length of an IPv4 packet.
const SEGMENT_BYTES: usize = 32 << 10;
const CLIENT_PORT_FIRST: u16 = 10_000;
const LAST_FRAGMENT: u32 = 1 << 31;

/// Where bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    ToServer = 0,
    ToClient = 1,
}

/// What passes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Protocol {
    Rpc,
    Iscsi,
}

/// How far an iSCSI connection is.
#[derive(Clone, Copy, Default)]
struct Session {
    is_full: bool,
    /// Of headers, and of data.
    digests: [bool; 2],
}

struct Conn {
    server_port: u16,
    session: Session,
    /// For both ways: what is not yet a whole record, and the sequence number.
    sides: [(Vec<u8>, u32); 2],
}

struct Inner {
    protocol: Protocol,
    pcap: BufWriter<File>,
    begun: Instant,
    conns: Vec<Conn>,
    /// Of each xid that was called, the bytes of the call.
    calls: HashMap<u32, u64>,
    changed: Vec<u32>,
    repeated: u64,
    last_write: Vec<u8>,
}

pub(crate) struct RecordLog(Mutex<Inner>);

/// The bytes of the first whole record of `bytes`.
fn record_bytes(bytes: &[u8]) -> Option<usize> {
    let mut at = 0;
    loop {
        let mark = u32::from_be_bytes(*bytes.get(at..)?.first_chunk()?);
        at += 4 + (mark & !LAST_FRAGMENT) as usize;
        if mark & LAST_FRAGMENT != 0 {
            return (at <= bytes.len()).then_some(at);
        }
    }
}

/// The bytes of the first whole PDU of `bytes`.
fn pdu_bytes(bytes: &[u8], session: Session) -> Option<usize> {
    let words = usize::from(*bytes.get(4)?);
    let data = u32::from_be_bytes([0, *bytes.get(5)?, *bytes.get(6)?, *bytes.get(7)?]) as usize;
    let digest = |at: usize| if session.is_full && session.digests[at] { 4 } else { 0 };
    let after = if data > 0 { digest(1) } else { 0 };
    let len = 48 + 4 * words + digest(0) + data.next_multiple_of(4) + after;
    (len <= bytes.len()).then_some(len)
}

impl Session {
    /// Looks at an answer of the target.
    fn see(&mut self, pdu: &[u8]) {
        // A login response (section 11.13): T, NSG, and the status.
        if self.is_full || pdu[0] & 0x3f != 0x23 {
            return;
        }
        let text = String::from_utf8_lossy(&pdu[48..]).into_owned();
        for (at, key) in ["HeaderDigest=CRC32C", "DataDigest=CRC32C"].iter().enumerate() {
            self.digests[at] |= text.split('\0').any(|pair| pair == *key);
        }
        self.is_full = pdu[1] & 0x83 == 0x83 && pdu[36] == 0;
    }
}

fn word(bytes: &[u8], at: usize) -> u32 {
    bytes.get(at..).and_then(|rest| rest.first_chunk()).map_or(0, |word| u32::from_be_bytes(*word))
}

/// FNV-1a, 64 bits.
fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

impl RecordLog {
    pub(crate) fn new(file: &Path, protocol: Protocol) -> RecordLog {
        let mut pcap = BufWriter::new(File::create(file).unwrap());
        // Magic, version 2.4, no time zone, no accuracy, longest packet, link type.
        for word in [0xa1b2_c3d4_u32, 2 | 4 << 16, 0, 0, 1 << 18, LINKTYPE_RAW] {
            pcap.write_all(&word.to_le_bytes()).unwrap();
        }
        RecordLog(Mutex::new(Inner {
            protocol,
            pcap,
            begun: Instant::now(),
            conns: Vec::new(),
            calls: HashMap::new(),
            changed: Vec::new(),
            repeated: 0,
            last_write: Vec::new(),
        }))
    }

    pub(super) fn begin(&self, server_port: u16) -> usize {
        let mut inner = self.0.lock().unwrap();
        let session = Session::default();
        inner.conns.push(Conn { server_port, session, sides: [(Vec::new(), 1), (Vec::new(), 1)] });
        inner.conns.len() - 1
    }

    /// Takes what passes; whether it ends inside of a record.
    pub(super) fn pass(&self, conn: usize, way: Way, bytes: &[u8]) -> bool {
        let inner = &mut *self.0.lock().unwrap();
        inner.conns[conn].sides[way as usize].0.extend_from_slice(bytes);
        loop {
            let session = inner.conns[conn].session;
            let side = &mut inner.conns[conn].sides[way as usize];
            let len = match inner.protocol {
                Protocol::Rpc => record_bytes(&side.0),
                Protocol::Iscsi => pdu_bytes(&side.0, session),
            };
            let Some(len) = len else { return !side.0.is_empty() };
            let rest = side.0.split_off(len);
            let record = std::mem::replace(&mut side.0, rest);
            match (inner.protocol, way) {
                (Protocol::Rpc, Way::ToServer) => inner.see_call(&record),
                (Protocol::Rpc, Way::ToClient) => {}
                (Protocol::Iscsi, Way::ToServer) => inner.see_command(&record),
                (Protocol::Iscsi, Way::ToClient) => inner.conns[conn].session.see(&record),
            }
            inner.packets(conn, way, &record);
        }
    }

    /// The connection is over; what was left of a record is a packet, too.
    pub(super) fn end(&self, conn: usize) {
        let inner = &mut *self.0.lock().unwrap();
        for way in [Way::ToServer, Way::ToClient] {
            let rest = std::mem::take(&mut inner.conns[conn].sides[way as usize].0);
            inner.packets(conn, way, &rest);
        }
    }

    /// Writes everything to the file. Calls repeated with their xid, and the xids of calls with other bytes
    /// than an earlier one's.
    pub(crate) fn finish(&self) -> (u64, Vec<u32>) {
        let mut inner = self.0.lock().unwrap();
        inner.pcap.flush().unwrap();
        (inner.repeated, inner.changed.clone())
    }

    /// Whether a login of this connection is over.
    pub(super) fn is_full(&self, conn: usize) -> bool {
        self.0.lock().unwrap().conns[conn].session.is_full
    }

    /// The last WRITE, with its mark, or the last SCSI command that writes, with its immediate data.
    pub(crate) fn last_write(&self) -> Vec<u8> {
        self.0.lock().unwrap().last_write.clone()
    }

    /// As if a client had sent this over a connection of its own.
    pub(crate) fn plant(&self, server_port: u16, record: &[u8]) {
        self.plant_all(server_port, &[(Way::ToServer, record)]);
    }

    /// As if this had passed over one.
    pub(crate) fn plant_all(&self, server_port: u16, records: &[(Way, &[u8])]) {
        let conn = self.begin(server_port);
        for (way, record) in records {
            self.pass(conn, *way, record);
        }
        self.end(conn);
    }
}

impl Inner {
    fn see_call(&mut self, record: &[u8]) {
        // Behind the mark: xid, CALL, RPC version, program, its version, procedure.
        let (xid, program, procedure) = (word(record, 4), word(record, 16), word(record, 24));
        match self.calls.insert(xid, hash(record)) {
            Some(earlier) if earlier == hash(record) => self.repeated += 1,
            Some(_) => self.changed.push(xid),
            None => {}
        }
        if (program, procedure) == (100_003, 7) {
            self.last_write = record.to_vec();
        }
    }

    /// A SCSI command (section 11.3) that writes.
    fn see_command(&mut self, pdu: &[u8]) {
        if pdu[0] & 0x3f == 1 && pdu[1] & 0x20 != 0 {
            self.last_write = pdu.to_vec();
        }
    }

    fn packets(&mut self, conn: usize, way: Way, bytes: &[u8]) {
        for segment in bytes.chunks(SEGMENT_BYTES) {
            let Conn { server_port, sides, .. } = &mut self.conns[conn];
            let client = (CLIENT_PORT_FIRST + conn as u16, [127, 0, 0, 2]);
            let server = (*server_port, [127, 0, 0, 1]);
            let (from, to) = if way == Way::ToServer { (client, server) } else { (server, client) };
            let (seq, ack) = (sides[way as usize].1, sides[1 - way as usize].1);
            sides[way as usize].1 = seq.wrapping_add(segment.len() as u32);

            let mut packet = Vec::with_capacity(40 + segment.len());
            // IPv4 without options: no checksum, as with a card that makes it.
            packet.extend([0x45, 0]);
            packet.extend((40 + segment.len() as u16).to_be_bytes());
            packet.extend([0, 0, 0x40, 0, 64, 6, 0, 0]);
            packet.extend(from.1);
            packet.extend(to.1);
            // TCP: PSH and ACK, a full window.
            packet.extend(from.0.to_be_bytes());
            packet.extend(to.0.to_be_bytes());
            packet.extend(seq.to_be_bytes());
            packet.extend(ack.to_be_bytes());
            packet.extend([0x50, 0x18, 0xff, 0xff, 0, 0, 0, 0]);
            packet.extend_from_slice(segment);

            let since = self.begun.elapsed();
            let len = packet.len() as u32;
            for word in [since.as_secs() as u32, since.subsec_micros(), len, len] {
                self.pcap.write_all(&word.to_le_bytes()).unwrap();
            }
            self.pcap.write_all(&packet).unwrap();
        }
    }
}
