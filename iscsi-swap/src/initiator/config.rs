//! How the initiator is set up, and what it counts.

use std::net::SocketAddr;

use netswap_reserve::Span;

use super::policy::{Digest, WritePolicy};
use crate::auth::{ChapConfig, Entropy};
use crate::login::{Key, LOGIN_SEGMENT_MAX, LoginConfig, Params};

/// How an initiator is set up.
#[derive(Clone, Debug)]
pub struct InitiatorConfig {
    /// Address of the target's portal.
    pub portal: SocketAddr,
    /// Other portals that lead to the same unit. When a connection is lost, the next one has its turn, in this order,
    /// after [`InitiatorConfig::portal`]; only if the unit says who it is (VPD page 83h). Needs `examine`.
    pub portals: Vec<SocketAddr>,
    /// The target's iSCSI name, at most 223 bytes.
    pub target: String,
    /// This initiator's iSCSI name, at most 223 bytes.
    pub initiator: String,
    /// Logical unit, at most 16383.
    pub lun: u16,
    /// Initiator session id. The same for each login; two initiators of one name need two.
    pub isid: [u8; 6],
    /// Most requests outstanding, at most 1000.
    pub in_flight: usize,
    /// How long a command, a login, a logout or a ping may stay unanswered before the connection is
    /// dropped.
    pub request_timeout: Span,
    /// Wait before the first reconnect; doubles with each that fails.
    pub backoff_min: Span,
    /// Longest wait before a reconnect.
    pub backoff_max: Span,
    /// Wait before a command that met BUSY or TASK SET FULL is issued again; doubles up to
    /// `backoff_max`.
    pub busy_backoff: Span,
    /// Silence after which the target is pinged.
    pub nop_interval: Span,
    /// Garbage answers in a row after which a request fails.
    pub garbage_limit: u8,
    /// Where task tags start.
    pub first_itt: u32,
    /// Where command numbers start.
    pub first_cmd_sn: u32,
    /// When a write is durable.
    pub write_policy: WritePolicy,
    /// Offer to send data with commands.
    pub immediate_data: bool,
    /// Ask for an R2T before all other data.
    pub initial_r2t: bool,
    /// MaxRecvDataSegmentLength in bytes.
    pub recv_segment: u32,
    /// FirstBurstLength in bytes.
    pub first_burst: u32,
    /// MaxBurstLength in bytes.
    pub max_burst: u32,
    /// MaxOutstandingR2T.
    pub outstanding_r2t: u32,
    /// What the unit is called in messages.
    pub label: String,
    /// How this side proves itself; without it the target has to do without a proof.
    pub chap: Option<ChapConfig>,
    /// What CHAP challenges are made of; only looked at where the target has to prove itself.
    pub entropy: Entropy,
    /// Digest of headers.
    pub header_digest: Digest,
    /// Digest of data.
    pub data_digest: Digest,
    /// READs that may overtake a WRITE that waits to be sent: a page-in is waited for, a page-out is not. 0 keeps
    /// the order of submission.
    pub overtakes_max: u32,
    /// Merge requests to adjacent slots, of one kind, into one command, as far as they wait together.
    pub merge: bool,
    /// With `merge`: from so many commands on the wire on, a request that has a neighbour waits to be merged.
    pub merge_after: usize,
    /// Most bytes of a merged command, if the unit does not say less.
    pub merge_bytes_max: u32,
    /// Most commands on the wire. More requests wait, page-ins before page-outs if `overtakes_max` allows it.
    pub wire_max: usize,
    /// A command that is not answered in time is aborted, then its unit reset, before the connection is dropped.
    pub task_management: bool,
    /// When nothing else was sent for so long since the last answer, a NOP-Out acknowledges it. `None` leaves it to
    /// the pings.
    pub ack_after: Option<Span>,
    /// Ask the unit who it is, what it takes at once, whether it caches writes and whether it can be written, at each
    /// login, and act on it.
    pub examine: bool,
    /// Whether the unit is to be written: one that is write-protected is refused then. Needs `examine`.
    pub writable: bool,
    /// Take discards, as UNMAP, if the unit says that it does (READ CAPACITY (16), VPD pages B0h and B2h). Needs
    /// `examine`.
    pub discard: bool,
}

impl InitiatorConfig {
    /// A set-up for `lun` of `target` at `portal`, with every other value at its default.
    ///
    /// The bursts are those with which the slowest packaged target wrote twice as fast as with its
    /// own defaults.
    pub fn new(portal: SocketAddr, target: &str, lun: u16) -> InitiatorConfig {
        InitiatorConfig {
            portal,
            portals: Vec::new(),
            target: target.into(),
            initiator: "iqn.2026-01.org.netswap:initiator".into(),
            lun,
            // Type 10b, "random": three bytes that name this project to itself (section 11.12.5).
            isid: [0x80, 0x6e, 0x73, 0x77, 0, 1],
            in_flight: 32,
            request_timeout: Span::from_secs(15),
            backoff_min: Span::from_millis(10),
            backoff_max: Span::from_secs(2),
            busy_backoff: Span::from_millis(2),
            nop_interval: Span::from_secs(5),
            garbage_limit: 8,
            first_itt: 1,
            first_cmd_sn: 1,
            write_policy: WritePolicy::Fua,
            immediate_data: true,
            initial_r2t: false,
            recv_segment: 262_144,
            first_burst: 262_144,
            max_burst: 1 << 20,
            outstanding_r2t: 8,
            label: format!("iscsi://{portal}/{target}/{lun}"),
            chap: None,
            entropy: Entropy::default(),
            header_digest: Digest::None,
            data_digest: Digest::None,
            overtakes_max: 0,
            merge: false,
            // Picked by eye: two that the target works on, two under way.
            merge_after: 4,
            merge_bytes_max: 262_144,
            wire_max: usize::MAX,
            task_management: false,
            ack_after: None,
            examine: false,
            writable: true,
            discard: false,
        }
    }

    /// With everything on that a target of others may need: merging, page-ins first, task management, and a close
    /// look at the unit. [`InitiatorConfig::new`] leaves it off, so that a simulation sends what it always sent.
    pub fn with_all(self) -> InitiatorConfig {
        InitiatorConfig {
            // Picked by eye, as for NFS: a page-out waits for at most so many page-ins.
            overtakes_max: 16,
            merge: true,
            task_management: true,
            ack_after: Some(Span::from_secs(1)),
            examine: true,
            ..self
        }
    }

    fn offer(&self) -> Params {
        let offer = Params::default()
            .with(Key::ImmediateData, self.immediate_data.into())
            .with(Key::InitialR2T, self.initial_r2t.into())
            .with(Key::MaxBurstLength, self.max_burst)
            .with(Key::FirstBurstLength, self.first_burst.min(self.max_burst))
            .with(Key::MaxOutstandingR2T, self.outstanding_r2t)
            .with(Key::DefaultTime2Wait, 0)
            .with(Key::DefaultTime2Retain, 0);
        offer.declaring(self.recv_segment)
    }

    pub(super) fn login(&self) -> LoginConfig {
        LoginConfig {
            initiator: self.initiator.clone(),
            target: Some(self.target.clone()),
            offer: self.offer(),
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            chap: self.chap.clone(),
            entropy: self.entropy.clone(),
            text_chunk: LOGIN_SEGMENT_MAX,
        }
    }
}

/// What an initiator has counted since it was made.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct InitiatorStats {
    /// Logins that reached the full feature phase.
    pub logins: u64,
    /// Connections dropped because the target broke the protocol.
    pub garbage: u64,
    /// Connections dropped because a digest was wrong, on either side.
    pub digest_errors: u64,
    /// Connections dropped because an answer was overdue.
    pub timeouts: u64,
    /// Redirections to another portal that were followed.
    pub redirects: u64,
    /// Connections that the target or the network ended.
    pub disconnects: u64,
    /// Commands issued again after a reconnect.
    pub reissued: u64,
    /// BUSY and TASK SET FULL met.
    pub busy: u64,
    /// Unit attentions met.
    pub unit_attentions: u64,
    /// R2Ts answered.
    pub r2ts: u64,
    /// Pings of the target answered.
    pub pings_answered: u64,
    /// Pings sent.
    pub pings_sent: u64,
    /// Commands made of several requests.
    pub merged: u64,
    /// Requests in them, but for the first of each.
    pub joined: u64,
    /// Writes whose SYNCHRONIZE CACHE was that of another, too.
    pub flushed_together: u64,
    /// Commands aborted, or ended by a reset of the unit, since they were not answered in time.
    pub aborted: u64,
    /// Resets of the unit asked for.
    pub unit_resets: u64,
    /// Asynchronous messages by event: SCSI, logout wanted, connection dropped, session dropped, negotiation
    /// wanted, any other.
    pub async_messages: [u64; 6],
    /// PDUs that the target rejected.
    pub rejects: u64,
    /// Acknowledgements sent by themselves.
    pub acks: u64,
    /// Pages that arrived in another request's, as answers came in another order, and changed owners.
    pub exchanged: u64,
    /// UNMAPs that were carried out.
    pub unmaps: u64,
    /// Slots in them.
    pub unmapped_slots: u64,
    /// UNMAPs that were refused, or failed.
    pub unmaps_failed: u64,
    /// Bytes of pages that were copied, as answers were not what was expected.
    pub copied_bytes: u64,
}
