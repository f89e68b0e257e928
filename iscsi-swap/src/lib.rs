//! Swap to iSCSI (RFC 7143): an initiator and an embedded target, both sans-IO state machines.
//!
//! Read it top down:
//!
//! - [`initiator`]: [`IscsiBackend`], a `SwapBackend` that is also the `Session` a transport drives;
//! - [`target`]: [`IscsiTarget`], the far side: logical units over [`netswap_swap::Disk`], with
//!   faults by seed;
//! - [`discovery`]: [`IscsiDiscovery`], which lists targets and units;
//! - [`login`]: the negotiation both sides go through before anything else;
//! - [`auth`]: names and secrets; [`url`] and [`credentials`]: where they are written;
//! - [`scsi`]: the commands, their parameter data and sense;
//! - [`window`]: the serial numbers and the command window;
//! - [`text`]: `key=value` pairs in fixed buffers;
//! - [`pdu`]: the 48-byte headers.
//!
//! Page data is never copied by the initiator: it is received into and sent from the frames of the
//! request. Neither side allocates after construction.
#![forbid(unsafe_code)]

pub mod auth;
pub mod credentials;
mod digest;
pub mod discovery;
pub mod initiator;
pub mod login;
pub mod pdu;
pub mod scsi;
pub mod target;
pub mod text;
mod tx;
pub mod url;
pub mod window;

pub use auth::{ChapConfig, Credentials, Entropy, Secret};
pub use credentials::CredentialsError;
pub use discovery::{DiscoveryConfig, DiscoveryError, DiscoveryEvent, IscsiDiscovery, ListedUnit};
pub use initiator::{
    AsyncEvent, Digest, InitiatorConfig, InitiatorStats, IscsiBackend, RejectReason, UnknownPolicy,
    UnmapLimits, WritePolicy,
};
pub use login::{AuthError, LoginError};
pub use target::{
    FAULT_NAMES, Fault, FaultCounts, FaultRates, IscsiTarget, LoginKeys, Moved, SenseForm,
    TargetConfig, TargetError, TargetFaults, TargetSession, TargetStats, UnitOptions, UnknownFault,
    function,
};
pub use url::{IscsiListUrl, IscsiUrl, PortalUrl, SecretSource, UrlError};
