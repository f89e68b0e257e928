//! The tree of reserves that divides the emergency floor. SKELETON: to be deepened.

/// Names a node of a pool's reserve tree.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReserveId(pub(crate) u16);

impl ReserveId {
    /// The root of every tree; its limit is the emergency floor.
    pub const ROOT: ReserveId = ReserveId(0);
}

/// Why a reserve could not be changed or charged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// A node on the way to the root is at its limit.
    #[error("reserve {name} is at its limit: {usage} of {limit} frames in use")]
    AtLimit {
        /// The node that refused.
        name: String,
        /// Frames charged to it.
        usage: u32,
        /// Frames it may hold.
        limit: u32,
    },
    /// Raising a limit needs frames that cannot be secured now. Nothing was changed.
    #[error("cannot secure {wanted} more frames for reserve {name}: {free} free")]
    CannotSecure {
        /// The node that was to be raised or connected.
        name: String,
        /// Frames that would have to be secured.
        wanted: u32,
        /// Frames free now.
        free: u32,
    },
    /// The limit would fall below what is charged.
    #[error("reserve {name} has {usage} frames charged, more than the new limit {limit}")]
    InUse {
        /// The node.
        name: String,
        /// Frames charged to it.
        usage: u32,
        /// The limit asked for.
        limit: u32,
    },
}
