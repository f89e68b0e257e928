//! How the client is set up, and what it counts.

use std::net::SocketAddr;

use netswap_reserve::Span;

use super::commit::WritePolicy;

/// How an NFS backend is set up.
#[derive(Clone, Debug)]
pub struct NfsConfig {
    /// The NFS server. Port 0 is to be asked of the portmapper.
    pub server: SocketAddr,
    /// Its MOUNT service, if it is not served on the same port. Port 0 as above.
    pub mount: Option<SocketAddr>,
    /// Its portmapper, which is asked once, at start, for the ports that are 0.
    pub portmap: Option<SocketAddr>,
    /// Path of the export.
    pub export: String,
    /// If MOUNT refuses `export`, ever shorter beginnings of it are asked for, at most 16.
    pub search_export: bool,
    /// Path of the swap file in the export.
    pub path: String,
    /// Create the file with this length in bytes if it is absent (or empty).
    pub create_bytes: Option<u64>,
    /// User to act as.
    pub uid: u32,
    /// Group to act as.
    pub gid: u32,
    /// Name of this machine for AUTH_SYS; the first 255 bytes are sent.
    pub machine: String,
    /// How stable a WRITE is asked to be.
    pub write: WritePolicy,
    /// With [`WritePolicy::Unstable`]: the most pages that are being written or uncommitted; more wait.
    /// At half of it a COMMIT is sent while writing goes on. One request is taken whatever its length.
    pub uncommitted_max: usize,
    /// The longest that a written page waits for its COMMIT to be sent.
    pub commit_delay: Span,
    /// READs that may overtake a WRITE that waits to be sent: a page-in is waited for, a page-out is not. 0 keeps
    /// the order of submission.
    pub overtakes_max: u32,
    /// Merge requests to adjacent slots, of one kind, into one READ or WRITE, as far as they wait together.
    pub merge: bool,
    /// With `merge`: from so many calls on the wire on, a request that has a neighbour waits to be merged.
    pub merge_after: usize,
    /// Most READs and WRITEs on the wire. More requests wait, page-ins before page-outs if `overtakes_max`
    /// allows it.
    pub wire_max: usize,
    /// Most requests outstanding.
    pub in_flight: usize,
    /// When an unanswered call is repeated; doubles with each repetition, up to 16 times this.
    pub request_timeout: Span,
    /// Wait before the first reconnect; doubles while no connection gives a reply.
    pub reconnect_min: Span,
    /// Longest wait before a reconnect.
    pub reconnect_max: Span,
    /// First wait before a call that was answered by NFS3ERR_JUKEBOX is tried again; doubles up to
    /// 16 times this.
    pub jukebox_delay: Span,
    /// Name of the store for messages.
    pub label: String,
    /// Where xids begin, and the stamp of AUTH_SYS: to differ from one start to the next.
    pub first_xid: u32,
}

impl NfsConfig {
    /// The defaults: MOUNT on the same port, root, FILE_SYNC, 32 requests, 10 s to the first repetition.
    pub fn new(server: SocketAddr, export: &str, path: &str) -> NfsConfig {
        NfsConfig {
            server,
            mount: None,
            portmap: None,
            search_export: false,
            export: export.into(),
            path: path.into(),
            create_bytes: None,
            uid: 0,
            gid: 0,
            machine: "netswap".into(),
            write: WritePolicy::FileSync,
            uncommitted_max: 512,
            // Picked by eye: a few times what a batch takes on a slow link.
            commit_delay: Span::from_millis(10),
            overtakes_max: 0,
            merge: false,
            // Picked by eye: two that the server works on, two under way.
            merge_after: 4,
            wire_max: usize::MAX,
            in_flight: 32,
            request_timeout: Span::from_secs(10),
            reconnect_min: Span::from_millis(10),
            reconnect_max: Span::from_secs(3),
            jukebox_delay: Span::from_millis(100),
            label: format!("nfs://{server}{export}/{}", path.trim_start_matches('/')),
            first_xid: 1,
        }
    }
}

/// What has happened so far. All are counts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NfsStats {
    /// Calls wholly given to the transport, repetitions included.
    pub calls: u64,
    /// Replies that ended a call.
    pub replies: u64,
    /// Calls given to the transport again with their old xid.
    pub retransmissions: u64,
    /// Connections opened, the first included.
    pub connections: u64,
    /// Replies that no outstanding call waits for: late or double ones. Ignored.
    pub unknown_xids: u64,
    /// Replies to a call that is just being sent again. Ignored, for the copy will be answered.
    pub early_replies: u64,
    /// Replies, or streams, that are not the protocol.
    pub garbage: u64,
    /// READs that gave less than was asked for.
    pub short_reads: u64,
    /// WRITEs that took less than was given.
    pub short_writes: u64,
    /// Replies with NFS3ERR_JUKEBOX or SYSTEM_ERR.
    pub jukebox: u64,
    /// Changes of the write verifier: each proves a restart of the server.
    pub verifier_changes: u64,
    /// COMMITs answered with a verifier, that of the start not counted.
    pub commits: u64,
    /// Requests that were written again since their verifier changed, or the connection went, before
    /// they were committed.
    pub rewritten: u64,
    /// Calls made of several requests.
    pub merged: u64,
    /// Requests in them, but for the first of each.
    pub joined: u64,
    /// Pages that arrived in another request's, as replies came in another order, and changed owners.
    pub exchanged: u64,
    /// Bytes that were copied, as replies were not what was expected.
    pub spilled_bytes: u64,
    /// Times the export was mounted again for a stale handle.
    pub remounts: u64,
    /// Copies to or from a high page that had to wait for a window.
    pub map_waits: u64,
}
