//! Lists what there is: the targets of a portal, or the logical units of a target, as a sans-IO state
//! machine of its own beside the initiator.
//!
//! ```text
//!   a portal   connect -> login (Discovery) -> SendTargets=All --------------------> logout -> end
//!   a target   connect -> login (Normal) -> REPORT LUNS -> INQUIRY, READ CAPACITY -> logout -> end
//!                                                               ^---- each unit ---+
//! ```
//! It is a [`Session`](netswap_net::Session) to the transport, as the initiator is; its user takes events by
//! [`IscsiDiscovery::poll_event`] until the end. It is for a person who waits: one connection, one
//! thing asked at a time, and what goes wrong is the end, with its reason. Redirections are followed, and a
//! unit attention or a busy unit is asked again.
//!
//! - here: what is asked and what the answers mean; `stream`: bytes, PDUs and time.
//!
//! # Invariants
//! - Its ISID is not that of an initiator that swaps: with the same one, looking at a target would
//!   end the session of the swap (RFC 7143 section 6.3.5).
//! - What a peer sends is bounded: text by [`TEXT_BYTES_MAX`], units by [`UNITS_MAX`], time by
//!   `give_up_after`, PDUs by what was declared.
//! - Nothing is allocated after construction.

mod stream;

use std::net::SocketAddr;

use netswap_net::{Action, Disconnect};
use netswap_reserve::{Span, Time};

use crate::auth::{ChapConfig, Entropy};
use crate::initiator::Digest;
use crate::login::{InitiatorLogin, Key, LOGIN_SEGMENT_MAX, LoginConfig, LoginError, Params};
use crate::pdu::lun_of;
use crate::scsi::data::{CAPACITY_LEN, Capacity, INQUIRY_LEN};
use crate::scsi::{Cdb, Sense, status};
use crate::text::pairs;
use crate::tx::TxRing;
use crate::url::IscsiListUrl;
use crate::window::CmdWindow;
use stream::Rx;

/// Most bytes of a list of targets: some two thousand, each with one portal.
pub const TEXT_BYTES_MAX: usize = 1 << 18;
/// Most logical units of a target that are listed.
pub const UNITS_MAX: usize = 1024;
/// Bytes of the answer to REPORT LUNS.
const LUNS_LEN: u32 = 8 + 8 * UNITS_MAX as u32;
/// Times one thing is asked again for a unit attention or a busy unit.
const RETRIES_MAX: u8 = 16;
/// How long a busy unit is left alone. Picked by eye.
const BUSY_WAIT: Span = Span::from_millis(100);

/// How a listing is set up.
#[derive(Clone, Debug)]
pub struct DiscoveryConfig {
    /// The portal.
    pub portal: SocketAddr,
    /// The target whose units are listed; without one the portal's targets are.
    pub target: Option<String>,
    /// This side's iSCSI name.
    pub initiator: String,
    /// Initiator session id. Must not be that of an initiator that swaps on the same target.
    pub isid: [u8; 6],
    /// How this side proves itself.
    pub chap: Option<ChapConfig>,
    /// What CHAP challenges are made of.
    pub entropy: Entropy,
    /// Digest of headers.
    pub header_digest: Digest,
    /// Digest of data.
    pub data_digest: Digest,
    /// How long it may take as a whole.
    pub give_up_after: Span,
}

impl DiscoveryConfig {
    /// A listing of `target`, or of the targets at `portal`, with every other value at its default.
    pub fn new(portal: SocketAddr, target: Option<&str>) -> DiscoveryConfig {
        DiscoveryConfig {
            portal,
            target: target.map(Into::into),
            initiator: "iqn.2026-01.org.netswap:initiator".into(),
            // As the initiator's, with another qualifier (RFC 7143 section 11.12.5).
            isid: [0x80, 0x6e, 0x73, 0x77, 0xff, 0],
            chap: None,
            entropy: Entropy::default(),
            header_digest: Digest::None,
            data_digest: Digest::None,
            give_up_after: Span::from_secs(30),
        }
    }

    fn login(&self) -> LoginConfig {
        let offer = Params::default()
            .with(Key::DefaultTime2Wait, 0)
            .with(Key::DefaultTime2Retain, 0)
            .declaring(stream::SEGMENT_MAX as u32);
        LoginConfig {
            initiator: self.initiator.clone(),
            target: self.target.clone(),
            offer,
            header_digest: self.header_digest,
            data_digest: self.data_digest,
            chap: self.chap.clone(),
            entropy: self.entropy.clone(),
            text_chunk: LOGIN_SEGMENT_MAX,
        }
    }
}

impl IscsiListUrl {
    /// The listing's configuration, for a host that has this address. `chap` is what
    /// [`crate::PortalUrl::credentials`] has found; `entropy` is for the challenges to the target.
    pub fn config(
        &self,
        address: std::net::IpAddr,
        chap: Option<ChapConfig>,
        entropy: Entropy,
    ) -> DiscoveryConfig {
        let at = SocketAddr::new(address, self.portal.port);
        let mut config = DiscoveryConfig::new(at, self.target.as_deref());
        if let Some(initiator) = &self.portal.initiator {
            config.initiator.clone_from(initiator);
        }
        config.chap = chap;
        config.entropy = entropy;
        config.header_digest = self.portal.header_digest;
        config.data_digest = self.portal.data_digest;
        config
    }
}

/// Why a listing failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DiscoveryError {
    /// The login failed.
    #[error(transparent)]
    Login(#[from] LoginError),
    /// The connection ended.
    #[error("connection lost: {0}")]
    Disconnected(Disconnect),
    /// It took too long.
    #[error("no answer from the target in time")]
    TimedOut,
    /// The target sent what is not the protocol.
    #[error("garbage from the target: {what}")]
    Garbage {
        /// What was wrong with it.
        what: &'static str,
    },
    /// The target refused to say.
    #[error("{what} refused: status {status:#04x}, sense {code:#08x}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// SCSI status.
        status: u8,
        /// Sense, as [`Sense::code`].
        code: u32,
    },
    /// There is more than can be listed.
    #[error("the list has more than {max} {what}")]
    TooMany {
        /// Of what.
        what: &'static str,
        /// How many there may be.
        max: usize,
    },
}

/// A logical unit.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ListedUnit {
    /// Its number.
    pub lun: u16,
    /// Peripheral device type (SPC-4 section 6.4.2): 0 is a disk.
    pub device: u8,
    /// Vendor, as INQUIRY has it: ASCII, filled up with spaces.
    pub vendor: [u8; 8],
    /// Product, likewise.
    pub product: [u8; 16],
    /// Blocks and bytes of a block, if it has some and tells.
    pub capacity: Option<Capacity>,
}

/// What was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DiscoveryEvent<'a> {
    /// A target; its portals follow.
    Target {
        /// Its iSCSI name.
        name: &'a str,
    },
    /// A portal of the target that was named last.
    Portal {
        /// `host[:port]`.
        address: &'a str,
        /// Portal group tag, if there is one.
        group: Option<u16>,
    },
    /// A unit of the target that was asked.
    Unit(ListedUnit),
    /// It has ended; given once, and nothing after it.
    End(Result<(), DiscoveryError>),
}

/// What is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Ask {
    SendTargets,
    ReportLuns,
    Inquiry,
    Capacity,
    Logout,
}

/// Lists targets or units.
///
/// ```
/// use netswap_iscsi::{DiscoveryConfig, IscsiDiscovery, IscsiListUrl};
/// use netswap_net::{Action, Session};
/// use netswap_reserve::Time;
///
/// let url: IscsiListUrl = "iscsi://10.0.0.2".parse()?;
/// let config = url.config("10.0.0.2".parse()?, None, Default::default());
/// let mut discovery = IscsiDiscovery::new(config, Time::ZERO);
/// // A driver now moves its bytes, and calls `poll_event` until `DiscoveryEvent::End`.
/// assert!(matches!(discovery.poll_action(Time::ZERO), Some(Action::Connect { .. })));
/// assert_eq!(discovery.poll_event(), None);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Debug)]
pub struct IscsiDiscovery {
    config: DiscoveryConfig,
    login: InitiatorLogin,
    params: Params,
    window: CmdWindow,
    exp_stat_sn: u32,
    expect_first_stat_sn: bool,
    rx: Rx,
    tx: TxRing<stream::TxData>,
    link: stream::Link,
    action: Option<Action>,
    give_up_at: Time,
    redirects: u8,

    ask: Ask,
    /// What is asked is to be sent.
    due: bool,
    /// Not before.
    not_before: Time,
    retries: u8,
    tag: u32,
    /// The TTT that the next Text Request continues.
    ttt: u32,
    /// Bytes of Data-In that have come, and their number.
    received: usize,
    data_sn: u32,
    /// Text of SendTargets, or data of a command.
    data: Box<[u8]>,
    data_len: usize,
    /// Bytes of the text that were given out, once it is complete.
    given: Option<usize>,
    luns: Vec<u16>,
    next_lun: usize,
    unit: Option<ListedUnit>,
    /// A unit that is to be given out.
    found: Option<ListedUnit>,
    end: Option<Result<(), DiscoveryError>>,
    end_given: bool,
}

impl IscsiDiscovery {
    /// A listing that connects as soon as it is polled.
    ///
    /// # Panics
    /// If a name in `config` has no bytes, or more than 223.
    pub fn new(config: DiscoveryConfig, now: Time) -> IscsiDiscovery {
        let names = [Some(&config.initiator), config.target.as_ref()];
        let fits = |name: &String| (1..=223).contains(&name.len());
        assert!(names.into_iter().flatten().all(fits), "a name has 1 to 223 bytes");
        let ask = if config.target.is_some() { Ask::ReportLuns } else { Ask::SendTargets };
        IscsiDiscovery {
            login: InitiatorLogin::new(config.login()),
            params: Params::default(),
            window: CmdWindow::new(1),
            exp_stat_sn: 0,
            expect_first_stat_sn: true,
            rx: Rx::new(),
            tx: TxRing::new(),
            link: stream::Link::Idle,
            action: Some(Action::Connect { remote: config.portal, same_port: false }),
            give_up_at: now + config.give_up_after,
            redirects: 0,
            ask,
            due: false,
            not_before: Time::ZERO,
            retries: 0,
            tag: 0,
            ttt: crate::pdu::TAG_NONE,
            received: 0,
            data_sn: 0,
            data: vec![0; TEXT_BYTES_MAX].into(),
            data_len: 0,
            given: None,
            luns: Vec::with_capacity(UNITS_MAX),
            next_lun: 0,
            unit: None,
            found: None,
            end: None,
            end_given: false,
            config,
        }
    }

    /// What was found next, if anything.
    pub fn poll_event(&mut self) -> Option<DiscoveryEvent<'_>> {
        if let Some(unit) = self.found.take() {
            self.next_unit();
            return Some(DiscoveryEvent::Unit(unit));
        }
        // Looked for first: the borrow of what is returned must not begin before it is sure.
        if let Some(at) = self.given
            && let Some((from, to)) = next_pair(&self.data[at..self.data_len])
        {
            self.given = Some(at + to);
            let pair = pairs(&self.data[at + from..at + to]).next().and_then(Result::ok);
            return pair.and_then(|(key, value)| event(key, value));
        }
        self.given = None;
        match self.end {
            Some(end) if !self.end_given => {
                self.end_given = true;
                Some(DiscoveryEvent::End(end))
            }
            _ => None,
        }
    }

    /// The next thing to ask.
    fn ask(&mut self, ask: Ask) {
        self.ask = ask;
        self.due = true;
        self.retries = 0;
    }

    /// The unit whose turn it is was given out.
    fn next_unit(&mut self) {
        self.next_lun += 1;
        self.ask(if self.next_lun < self.luns.len() { Ask::Inquiry } else { Ask::Logout });
    }

    fn lun(&self) -> u16 {
        self.luns.get(self.next_lun).copied().unwrap_or(0)
    }

    /// The command that asks, and how many bytes may answer it.
    fn cdb(&self) -> Option<(Cdb, u32)> {
        Some(match self.ask {
            Ask::ReportLuns => (Cdb::ReportLuns { select: 0, alloc: LUNS_LEN }, LUNS_LEN),
            Ask::Inquiry => {
                let alloc = INQUIRY_LEN as u32;
                (Cdb::Inquiry { page: None, alloc }, alloc)
            }
            Ask::Capacity => {
                let alloc = CAPACITY_LEN as u32;
                (Cdb::ReadCapacity16 { alloc }, alloc)
            }
            Ask::SendTargets | Ask::Logout => return None,
        })
    }

    /// A command was answered.
    fn answered(
        &mut self,
        now: Time,
        status: u8,
        sense: Option<Sense>,
    ) -> Result<(), DiscoveryError> {
        let again = match status {
            status::BUSY | status::TASK_SET_FULL => {
                self.not_before = now + BUSY_WAIT;
                true
            }
            status::CHECK_CONDITION => sense.is_some_and(|sense| sense.key == 6),
            _ => false,
        };
        if again && self.retries < RETRIES_MAX {
            self.retries += 1;
            self.due = true;
            return Ok(());
        }
        let code = sense.map_or(0, Sense::code);
        let data = &self.data[..self.received];
        match self.ask {
            Ask::ReportLuns if status == status::GOOD => {
                read_luns(data, &mut self.luns)?;
                self.ask(if self.luns.is_empty() { Ask::Logout } else { Ask::Inquiry });
            }
            Ask::Inquiry if status == status::GOOD => {
                let short = DiscoveryError::Garbage { what: "INQUIRY data too short" };
                let mut unit = read_inquiry(data).ok_or(short)?;
                unit.lun = self.lun();
                self.unit = Some(unit);
                match unit.device {
                    // Only what has blocks is asked how many (SPC-4: disks, WORMs, CDs, optical).
                    0x00 | 0x04 | 0x05 | 0x07 => self.ask(Ask::Capacity),
                    _ => self.found = self.unit.take(),
                }
            }
            // A unit without a medium, or without a capacity of this kind, is listed without.
            Ask::Capacity => {
                let capacity = (status == status::GOOD).then(|| Capacity::parse(data)).flatten();
                self.found = self.unit.take().map(|unit| ListedUnit { capacity, ..unit });
            }
            Ask::ReportLuns => {
                return Err(DiscoveryError::Refused { what: "REPORT LUNS", status, code });
            }
            _ => return Err(DiscoveryError::Refused { what: "INQUIRY", status, code }),
        }
        Ok(())
    }

    /// All of the text is there.
    fn text_complete(&mut self) -> Result<(), DiscoveryError> {
        let garbage = |_| DiscoveryError::Garbage { what: "list of targets that cannot be read" };
        for pair in pairs(&self.data[..self.data_len]) {
            let (key, value) = pair.map_err(garbage)?;
            if key == "SendTargets" {
                let what = "SendTargets";
                return Err(DiscoveryError::Refused { what, status: 0, code: 0 });
            }
            let known = key == "TargetName" && (1..=223).contains(&value.len());
            if !known && key != "TargetAddress" {
                return Err(DiscoveryError::Garbage { what: "unknown key in a list of targets" });
            }
        }
        self.given = Some(0);
        self.ask(Ask::Logout);
        Ok(())
    }
}

/// Where the next pair begins and where it ends, its NUL included.
fn next_pair(text: &[u8]) -> Option<(usize, usize)> {
    let from = text.iter().position(|byte| *byte != 0)?;
    let len = text[from..].iter().position(|byte| *byte == 0)?;
    Some((from, from + len + 1))
}

/// A pair of a list that was checked.
fn event<'a>(key: &str, value: &'a str) -> Option<DiscoveryEvent<'a>> {
    if key == "TargetName" {
        return Some(DiscoveryEvent::Target { name: value });
    }
    let (address, group) = value.rsplit_once(',').unwrap_or((value, ""));
    Some(DiscoveryEvent::Portal { address, group: group.parse().ok() })
}

/// Reads the data of REPORT LUNS (SPC-4 section 6.33). Units behind an address of several levels are left
/// out: there is no way to name them here.
fn read_luns(data: &[u8], luns: &mut Vec<u16>) -> Result<(), DiscoveryError> {
    let garbage = DiscoveryError::Garbage { what: "REPORT LUNS data too short" };
    let (head, list) = data.split_at_checked(8).ok_or(garbage)?;
    let len = u32::from_be_bytes([head[0], head[1], head[2], head[3]]) as usize;
    if len > 8 * UNITS_MAX {
        return Err(DiscoveryError::TooMany { what: "units", max: UNITS_MAX });
    }
    let list = list.get(..len).ok_or(garbage)?;
    for entry in list.chunks_exact(8) {
        let mut bytes = [0; 8];
        bytes.copy_from_slice(entry);
        luns.extend(lun_of(&bytes));
    }
    Ok(())
}

/// Reads standard INQUIRY data; `None` if it is too short.
fn read_inquiry(data: &[u8]) -> Option<ListedUnit> {
    Some(ListedUnit {
        lun: 0,
        device: data.first()? & 0x1f,
        vendor: data.get(8..16)?.try_into().ok()?,
        product: data.get(16..32)?.try_into().ok()?,
        capacity: None,
    })
}
