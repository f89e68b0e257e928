//! The far side's store: either embedded server, behind one set of calls.

use std::collections::BTreeMap;

use netswap_iscsi::{IscsiTarget, TargetFaults};
use netswap_net::{Session, SimNic, Stack, StreamId};
use netswap_nfs::{NfsServer, ServerFaults};
use netswap_reserve::Time;

use super::store::FarDisk;
use crate::scenario::ServerSpec;

/// The port of NFS.
const NFS_PORT: u16 = 2049;
/// The port of iSCSI.
const ISCSI_PORT: u16 = 3260;

#[allow(clippy::large_enum_variant, reason = "there is one a world")]
pub(super) enum StoreServer {
    Nfs(NfsServer<FarDisk>),
    Iscsi(IscsiTarget<FarDisk>),
}

impl StoreServer {
    /// The port it listens on.
    pub(super) fn port(&self) -> u16 {
        match self {
            StoreServer::Nfs(_) => NFS_PORT,
            StoreServer::Iscsi(_) => ISCSI_PORT,
        }
    }

    /// Drives connection `i` over `stream`.
    pub(super) fn drive(
        &mut self,
        now: Time,
        stack: &mut Stack<'_, SimNic>,
        stream: StreamId,
        i: usize,
    ) {
        match self {
            StoreServer::Nfs(server) => stack.drive(now, stream, &mut server.connection(i)),
            StoreServer::Iscsi(target) => stack.drive(now, stream, &mut target.connection(i)),
        }
    }

    /// When connection `i` wants to be driven.
    pub(super) fn deadline(&mut self, i: usize) -> Option<Time> {
        match self {
            StoreServer::Nfs(server) => server.connection(i).poll_deadline(),
            StoreServer::Iscsi(target) => target.connection(i).poll_deadline(),
        }
    }

    /// Forgets every connection and the answers it owed.
    pub(super) fn restart(&mut self, now: Time) {
        match self {
            StoreServer::Nfs(server) => server.restart(now),
            StoreServer::Iscsi(target) => target.restart(now),
        }
    }

    /// From now on it does wrong what `spec` says.
    pub(super) fn set_faults(&mut self, spec: &ServerSpec) {
        let ppm = |share: crate::units::Share| share.0 as u32;
        match self {
            StoreServer::Nfs(server) => server.set_faults(ServerFaults {
                late_ppm: ppm(spec.late),
                late_by: spec.late_by.span(),
                twice_ppm: ppm(spec.twice),
                garbage_ppm: ppm(spec.garbage),
                jukebox_ppm: ppm(spec.busy),
                short_write_ppm: ppm(spec.short),
                short_read_ppm: ppm(spec.short),
                forget_ppm: ppm(spec.forget),
                held_ppm: ppm(spec.held),
                held_for: spec.held_for.span(),
                ..ServerFaults::default()
            }),
            StoreServer::Iscsi(target) => target.set_faults(TargetFaults {
                late_ppm: ppm(spec.late),
                late_by: spec.late_by.span(),
                twice_ppm: ppm(spec.twice),
                garbage_ppm: ppm(spec.garbage),
                busy_ppm: ppm(spec.busy) / 2,
                task_set_full_ppm: ppm(spec.busy) / 2,
                check_condition_ppm: ppm(spec.short),
                ..TargetFaults::default()
            }),
        }
    }

    /// The faults that happened, by name. Both servers use the same names where they do the same.
    pub(super) fn faults(&self) -> BTreeMap<&'static str, u64> {
        match self {
            StoreServer::Nfs(server) => {
                let n = server.fault_counts();
                BTreeMap::from([
                    ("server late", n.late),
                    ("server twice", n.twice),
                    ("server garbage", n.garbage()),
                    ("server busy", n.jukebox),
                    ("server short write", n.short_writes),
                    ("server short read", n.short_reads),
                    ("server forgot", n.forgotten),
                    ("server held", n.held_done),
                ])
            }
            StoreServer::Iscsi(target) => {
                let n = target.fault_counts();
                BTreeMap::from([
                    ("server late", n.late),
                    ("server twice", n.twice),
                    ("server garbage", n.garbage()),
                    ("server busy", n.busy + n.task_set_full),
                    ("server check condition", n.check_condition),
                ])
            }
        }
    }
}
