//! What the server said of itself and of the file on the way to ready, for reports.

use std::net::SocketAddr;

use netswap_reserve::windows::{MapPageMut, Mapper};

use super::{NfsBackend, WritePolicy};
use crate::proto::{Fattr3, FsInfoOk};

/// What is known of a store that is ready. Sizes are in bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NfsFacts {
    /// Where NFS is served.
    pub server: SocketAddr,
    /// Where MOUNT is served.
    pub mount: SocketAddr,
    /// Limits and preferences (FSINFO, RFC 1813 section 3.3.19).
    pub fs: FsInfoOk,
    /// The attributes of the file when they were asked for last.
    pub file: Fattr3,
    /// This client gave the file its length: it was absent or empty.
    pub created: bool,
    /// When a write is durable, as the client was told.
    pub write: WritePolicy,
}

impl<P: MapPageMut, M: Mapper> NfsBackend<P, M> {
    /// What is known of the server and the file; `None` as long as it was not ready once.
    pub fn facts(&self) -> Option<NfsFacts> {
        let server = self.config.server;
        Some(NfsFacts {
            server,
            mount: self.config.mount.unwrap_or(server),
            fs: self.fs_info?,
            file: self.file_attrs?,
            created: self.sized,
            write: self.config.write,
        })
    }
}
