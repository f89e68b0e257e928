//! The login phase (RFC 7143 sections 6.2, 6.3, 11.12, 11.13) and the keys negotiated in it (13).
//!
//! An initiator always starts in SecurityNegotiation: targets exist that reinstate a session only
//! then, and a session that is not reinstated can still execute old commands.
//!
//! ```text
//!   SecurityNegotiation --T--> LoginOperationalNegotiation --T--> FullFeaturePhase
//!      AuthMethod, CHAP           digests, bursts, R2T, ...
//! ```
//!
//! What is known of each key stands in one table (`keys`), which both sides read. A key that comes
//! twice ends the login (section 6.3), except for TargetAddress.

mod chap;
mod initiator;
mod keys;
mod target;

pub use initiator::{AuthError, InitiatorLogin, LoginConfig, LoginError, LoginStep};
pub use target::{TargetLogin, TargetLoginConfig, TargetStep};

use crate::digest::Digests;
use crate::text;

/// The largest data segment during login (section 13.12: the default, which login cannot change).
pub const LOGIN_SEGMENT_MAX: usize = 8192;

/// Most requests of one login; a peer that wants more never ends.
pub(crate) const ROUNDS_MAX: u8 = 32;

/// Most redirections in a row; picked by eye: a portal, a balancer, a target, and one more.
pub const REDIRECTS_MAX: u8 = 4;

/// Current and next stage (section 11.12.3).
pub mod stage {
    /// SecurityNegotiation.
    pub const SECURITY: u8 = 0;
    /// LoginOperationalNegotiation.
    pub const OPERATIONAL: u8 = 1;
    /// FullFeaturePhase.
    pub const FULL_FEATURE: u8 = 3;
}

/// Login status, class and detail (section 11.13.5).
pub mod login_status {
    /// Success.
    pub const SUCCESS: u16 = 0x0000;
    /// The target is elsewhere for now; TargetAddress says where.
    pub const MOVED_TEMPORARILY: u16 = 0x0101;
    /// The target is elsewhere for good; TargetAddress says where.
    pub const MOVED_PERMANENTLY: u16 = 0x0102;
    /// Initiator error without a closer reason.
    pub const INITIATOR_ERROR: u16 = 0x0200;
    /// Authentication failure.
    pub const AUTHENTICATION: u16 = 0x0201;
    /// The target does not exist.
    pub const NOT_FOUND: u16 = 0x0203;
    /// The version range is not supported.
    pub const VERSION: u16 = 0x0205;
    /// Too many connections.
    pub const TOO_MANY_CONNECTIONS: u16 = 0x0206;
    /// A key that must be there is missing.
    pub const MISSING_PARAMETER: u16 = 0x0207;
    /// The session type is not supported.
    pub const SESSION_TYPE: u16 = 0x0209;
    /// The session to join does not exist.
    pub const NO_SESSION: u16 = 0x020a;
    /// Not allowed in this stage of the login.
    pub const INVALID_DURING_LOGIN: u16 = 0x020b;
    /// The target is out of resources.
    pub const OUT_OF_RESOURCES: u16 = 0x0302;
}

/// The keys of which both sides send a value (section 13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Key {
    /// MaxConnections (13.2).
    MaxConnections,
    /// InitialR2T (13.10).
    InitialR2T,
    /// ImmediateData (13.11).
    ImmediateData,
    /// MaxBurstLength (13.13).
    MaxBurstLength,
    /// FirstBurstLength (13.14).
    FirstBurstLength,
    /// DefaultTime2Wait (13.15).
    DefaultTime2Wait,
    /// DefaultTime2Retain (13.16).
    DefaultTime2Retain,
    /// MaxOutstandingR2T (13.17).
    MaxOutstandingR2T,
    /// DataPDUInOrder (13.18).
    DataPduInOrder,
    /// DataSequenceInOrder (13.19).
    DataSequenceInOrder,
    /// ErrorRecoveryLevel (13.20).
    ErrorRecoveryLevel,
}

/// How the two values of a key become one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Rule {
    /// Yes only if both say so.
    And,
    /// Yes if one says so.
    Or,
    /// The smaller number, within a range.
    Min(u32, u32),
    /// The larger number, within a range.
    Max(u32, u32),
}

const SEGMENT: Rule = Rule::Min(512, (1 << 24) - 1);

struct Spec {
    key: Key,
    name: &'static str,
    rule: Rule,
    default: u32,
}

const SPECS: [Spec; 11] = [
    spec(Key::MaxConnections, "MaxConnections", Rule::Min(1, 65535), 1),
    spec(Key::InitialR2T, "InitialR2T", Rule::Or, 1),
    spec(Key::ImmediateData, "ImmediateData", Rule::And, 1),
    spec(Key::MaxBurstLength, "MaxBurstLength", SEGMENT, 262_144),
    spec(Key::FirstBurstLength, "FirstBurstLength", SEGMENT, 65536),
    spec(Key::DefaultTime2Wait, "DefaultTime2Wait", Rule::Max(0, 3600), 2),
    spec(Key::DefaultTime2Retain, "DefaultTime2Retain", Rule::Min(0, 3600), 20),
    spec(Key::MaxOutstandingR2T, "MaxOutstandingR2T", Rule::Min(1, 65535), 1),
    spec(Key::DataPduInOrder, "DataPDUInOrder", Rule::Or, 1),
    spec(Key::DataSequenceInOrder, "DataSequenceInOrder", Rule::Or, 1),
    spec(Key::ErrorRecoveryLevel, "ErrorRecoveryLevel", Rule::Min(0, 2), 0),
];

const fn spec(key: Key, name: &'static str, rule: Rule, default: u32) -> Spec {
    Spec { key, name, rule, default }
}

impl Rule {
    fn is_boolean(self) -> bool {
        matches!(self, Rule::And | Rule::Or)
    }

    fn parse(self, value: &str) -> Option<u32> {
        match self {
            Rule::And | Rule::Or => text::boolean(value).map(u32::from),
            Rule::Min(low, high) | Rule::Max(low, high) => {
                text::number(value).filter(|n| (low..=high).contains(n))
            }
        }
    }

    fn combine(self, a: u32, b: u32) -> u32 {
        match self {
            Rule::And | Rule::Min(..) => a.min(b),
            Rule::Or | Rule::Max(..) => a.max(b),
        }
    }
}

/// The values of a session: offered, or agreed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Params {
    values: [u32; SPECS.len()],
    /// MaxRecvDataSegmentLength that this side declares (13.12).
    pub recv_own: u32,
    /// MaxRecvDataSegmentLength that the other side declared.
    pub recv_peer: u32,
    /// Whether headers carry a digest.
    pub header_digest: bool,
    /// Whether data segments carry a digest.
    pub data_digest: bool,
    /// TargetPortalGroupTag (13.9), if the target has told it.
    pub group: Option<u16>,
}

impl Default for Params {
    /// What holds where nothing is said.
    fn default() -> Params {
        Params {
            values: SPECS.each_ref().map(|s| s.default),
            recv_own: LOGIN_SEGMENT_MAX as u32,
            recv_peer: LOGIN_SEGMENT_MAX as u32,
            header_digest: false,
            data_digest: false,
            group: None,
        }
    }
}

impl Params {
    /// Sets a value; booleans are 0 and 1.
    ///
    /// # Panics
    /// If the value is outside the key's range.
    pub fn with(mut self, key: Key, value: u32) -> Params {
        let good = match SPECS[key as usize].rule {
            Rule::And | Rule::Or => value <= 1,
            Rule::Min(low, high) | Rule::Max(low, high) => (low..=high).contains(&value),
        };
        assert!(good, "{key:?} cannot be {value}");
        self.values[key as usize] = value;
        self
    }

    /// Sets the MaxRecvDataSegmentLength that this side declares.
    ///
    /// # Panics
    /// If it is outside 512 to 2^24 - 1.
    pub fn declaring(self, recv_own: u32) -> Params {
        assert!((512..1 << 24).contains(&recv_own), "a data segment has 512 bytes to 16 MiB");
        Params { recv_own, ..self }
    }

    pub(crate) fn digests(&self) -> Digests {
        Digests { header: self.header_digest, data: self.data_digest }
    }

    fn value(&self, key: Key) -> u32 {
        self.values[key as usize]
    }

    /// Whether unsolicited Data-Out PDUs are forbidden.
    pub fn initial_r2t(&self) -> bool {
        self.value(Key::InitialR2T) != 0
    }

    /// Whether commands may carry data.
    pub fn immediate_data(&self) -> bool {
        self.value(Key::ImmediateData) != 0
    }

    /// Most bytes of a data sequence.
    pub fn max_burst(&self) -> u32 {
        self.value(Key::MaxBurstLength)
    }

    /// Most unsolicited bytes of a command. Never above [`Params::max_burst`].
    pub fn first_burst(&self) -> u32 {
        self.value(Key::FirstBurstLength).min(self.max_burst())
    }

    /// R2Ts that a command may have open.
    pub fn max_outstanding_r2t(&self) -> u32 {
        self.value(Key::MaxOutstandingR2T)
    }

    /// Seconds to wait before a reconnect after a connection that ended unexpectedly.
    pub fn time2wait(&self) -> u32 {
        self.value(Key::DefaultTime2Wait)
    }
}
