//! What is simulated: host, link, flood, faults. Written as TOML, or built by a program.
//!
//! [`Scenario::default`] is the headline test; `scenarios/headline.toml` says the same in a file.

mod draw;

use std::str::FromStr;

use netswap_nfs::WritePolicy;
use netswap_reserve::{PoolConfig, ReservePlan};
use netswap_swap::FailurePolicy;
use serde::{Deserialize, Serialize};

use crate::units::{BitRate, Bytes, Nanos, Share, number};

/// Frames a host must have beside its reserve plan, or it is refused.
pub const FRAMES_BESIDE_PLAN: u32 = 256;

/// The most pages of a transaction: half of what any host has beside its plan, so that it can be promised.
pub const TRANSACTION_PAGES_MAX: u32 = FRAMES_BESIDE_PLAN / 2;

/// Which store pages go to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Store {
    /// The embedded NFSv3 server.
    Nfs,
    /// The embedded iSCSI target.
    Iscsi,
}

impl Store {
    /// All stores.
    pub const ALL: [Store; 2] = [Store::Nfs, Store::Iscsi];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Store::Nfs => "nfs",
            Store::Iscsi => "iscsi",
        }
    }
}

/// A protection that can be switched off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Ablation {
    /// No emergency floor: reclaim may go below min uncharged, receive may not.
    Reserve,
    /// Paging sockets open untagged: the network reserve never connects.
    Tag,
    /// Untagged emergency packets are queued and keep their charge.
    Drop,
    /// Entering an emergency scope does nothing: reclaim's sends stop at the atomic limit.
    Scope,
    /// Transactions of tasks reserve nothing: they try again until each page is there.
    Reservation,
    /// Slots that a late copy of a write may still reach are given to other pages.
    Quarantine,
}

impl Ablation {
    /// All ablations.
    pub const ALL: [Ablation; 6] = [
        Ablation::Reserve,
        Ablation::Tag,
        Ablation::Drop,
        Ablation::Scope,
        Ablation::Reservation,
        Ablation::Quarantine,
    ];

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Ablation::Reserve => "reserve",
            Ablation::Tag => "tag",
            Ablation::Drop => "drop",
            Ablation::Scope => "scope",
            Ablation::Reservation => "reservation",
            Ablation::Quarantine => "quarantine",
        }
    }
}

/// A name that is not known.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {name:?}; known: {known}")]
pub struct UnknownName {
    /// What was to be named.
    pub what: &'static str,
    /// The name given.
    pub name: String,
    /// Those that are known.
    pub known: String,
}

impl FromStr for Ablation {
    type Err = UnknownName;
    fn from_str(name: &str) -> Result<Ablation, UnknownName> {
        Ablation::ALL.into_iter().find(|a| a.name() == name).ok_or_else(|| UnknownName {
            what: "protection",
            name: name.to_string(),
            known: Ablation::ALL.map(Ablation::name).join(", "),
        })
    }
}

/// What a host does when its store fails.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum OnFailure {
    /// Ask again, for ever, with backoff.
    Retry,
    /// Give the page up: the task that touches it gets the error.
    Poison,
}

impl OnFailure {
    /// The policy of the pager's area.
    pub fn policy(self) -> FailurePolicy {
        match self {
            OnFailure::Retry => FailurePolicy::default(),
            OnFailure::Poison => FailurePolicy::Poison,
        }
    }
}

/// How stable a host asks NFS writes to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NfsWrite {
    /// Each write lasts when it is answered.
    FileSync,
    /// Pages are kept until a COMMIT of many is answered.
    Unstable,
}

impl NfsWrite {
    /// The policy of the client.
    pub fn policy(self) -> WritePolicy {
        match self {
            NfsWrite::FileSync => WritePolicy::FileSync,
            NfsWrite::Unstable => WritePolicy::Unstable,
        }
    }
}

/// The host that pages.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct HostSpec {
    /// All memory of the host.
    pub ram: Bytes,
    /// Processors.
    pub cpus: u32,
    /// Tasks that page, for each processor.
    pub tasks_per_cpu: u32,
    /// Size of all their mappings together, in multiples of RAM.
    pub overcommit: f64,
    /// How often each task reads its mapping after writing it.
    pub rounds: u32,
    /// Share of the pages that later rounds write again, in percent.
    pub dirty_percent: u32,
    /// Receive descriptors of the network card.
    pub rx_ring: u32,
    /// Readahead of the pager, in pages; 0 is none.
    pub readahead_pages: u32,
    /// What is done when the store fails.
    pub on_failure: OnFailure,
    /// How stable NFS writes are asked to be: `file_sync`, or `unstable` and committed.
    pub nfs_write: NfsWrite,
    /// Pages that must not fail, of each transaction of a task (as a journalling file system has them);
    /// 0 is no transactions.
    pub transaction_pages: u32,
    /// Steps of a task between two transactions: pages it touches (of a traced program, also those it adds).
    pub transaction_every: u32,
}

impl Default for HostSpec {
    fn default() -> HostSpec {
        HostSpec {
            ram: Bytes(64 << 20),
            cpus: 2,
            tasks_per_cpu: 8,
            overcommit: 4.0,
            rounds: 3,
            dirty_percent: 0,
            rx_ring: 64,
            readahead_pages: 8,
            on_failure: OnFailure::Retry,
            nfs_write: NfsWrite::FileSync,
            transaction_pages: 0,
            transaction_every: 16,
        }
    }
}

/// The link between host and store.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct LinkSpec {
    /// Rate of each direction.
    pub rate: BitRate,
    /// One-way latency.
    pub latency: Nanos,
    /// Latency varies by up to this.
    pub jitter: Nanos,
    /// Packets lost.
    pub loss: Share,
    /// Packets delivered twice.
    pub duplicate: Share,
    /// Packets delivered late, behind later ones.
    pub reorder: Share,
    /// How late those are.
    pub reorder_by: Nanos,
    /// Packets with one bit flipped.
    pub corrupt: Share,
    /// When the link is cut, after the start.
    pub partition_at: Option<Nanos>,
    /// For how long.
    pub partition_for: Nanos,
}

impl Default for LinkSpec {
    fn default() -> LinkSpec {
        LinkSpec {
            rate: BitRate(1_000_000_000),
            latency: Nanos(100_000),
            jitter: Nanos(0),
            loss: Share(1_000),
            duplicate: Share(0),
            reorder: Share(1_000),
            reorder_by: Nanos(50_000),
            corrupt: Share(0),
            partition_at: None,
            partition_for: Nanos(5_000_000_000),
        }
    }
}

/// Untagged traffic.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct FloodSpec {
    /// Average share of the link's rate, in percent; 0 is no flood.
    pub percent: u32,
    /// UDP flows, each with a socket and a reader that is a task.
    pub flows: u32,
    /// Smallest payload of a datagram, in bytes.
    pub payload_min: u32,
    /// Largest payload.
    pub payload_max: u32,
    /// One burst begins in each period, at a random moment.
    pub period: Nanos,
    /// Share of datagrams that come as IP fragments.
    pub fragmented: Share,
    /// Pages of the ring in which a reader keeps what it received.
    pub reader_pages: u32,
    /// Cap of one socket's queue, by true size (a frame a packet).
    pub socket_bytes_max: Bytes,
    /// Bytes of the untagged TCP flow that shows liveness.
    pub liveness_bytes: Bytes,
}

impl Default for FloodSpec {
    fn default() -> FloodSpec {
        FloodSpec {
            percent: 30,
            flows: 32,
            payload_min: 64,
            payload_max: 1472,
            period: Nanos(50_000_000),
            fragmented: Share(2_000),
            reader_pages: 256,
            socket_bytes_max: Bytes(212_992),
            liveness_bytes: Bytes(512 << 10),
        }
    }
}

/// What the far side does wrong.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct ServerSpec {
    /// Times after the start at which it restarts and forgets its connections.
    pub restart_at: Vec<Nanos>,
    /// Answers that come late.
    pub late: Share,
    /// How late.
    pub late_by: Nanos,
    /// Answers that come twice.
    pub twice: Share,
    /// Answers that are garbage.
    pub garbage: Share,
    /// Requests put off (JUKEBOX, BUSY or TASK SET FULL).
    pub busy: Share,
    /// Reads or writes that are cut short (NFS).
    pub short: Share,
    /// Writes and COMMITs before which all that is uncommitted is lost, and the verifier changes (NFS).
    pub forget: Share,
    /// Writes that are not answered, and carried out late, over what was written meanwhile (NFS).
    pub held: Share,
    /// How late.
    pub held_for: Nanos,
}

/// A whole scenario.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields, rename_all = "kebab-case")]
pub struct Scenario {
    /// All randomness comes from it.
    pub seed: u64,
    /// The host.
    pub host: HostSpec,
    /// The link.
    pub link: LinkSpec,
    /// The untagged traffic.
    pub flood: FloodSpec,
    /// The far side's faults.
    pub server: ServerSpec,
}

/// Why a scenario cannot be run.
#[derive(Debug, thiserror::Error)]
pub enum ScenarioError {
    /// The file cannot be read.
    #[error("cannot read scenario {path}: {source}")]
    Unreadable {
        /// The file.
        path: String,
        /// Why.
        source: std::io::Error,
    },
    /// The file is not a scenario.
    #[error("scenario {path}: {message}")]
    Malformed {
        /// The file.
        path: String,
        /// Where and why.
        message: String,
    },
    /// A value is outside what makes sense.
    #[error("{what} is {value}, must be {allowed}")]
    OutOfRange {
        /// Which value.
        what: &'static str,
        /// What it is.
        value: String,
        /// What it may be.
        allowed: &'static str,
    },
    /// A task has no page of its own.
    #[error(
        "the {tasks} tasks map {pages} pages together, less than one each: raise --ram or --overcommit, or lower \
         --cpus or --tasks-per-cpu"
    )]
    NothingMapped {
        /// Tasks that page.
        tasks: u32,
        /// Pages of all their mappings.
        pages: u64,
    },
    /// The host is too small for its reserve plan.
    #[error(
        "a host with {ram} ({frames} frames) is too small: its reserve plan takes {plan} frames and \
         {FRAMES_BESIDE_PLAN} more are needed; give it at least {least}\n\n{table}"
    )]
    TooSmall {
        /// Its RAM.
        ram: Bytes,
        /// That, in frames.
        frames: u64,
        /// Frames of the plan.
        plan: u32,
        /// The least RAM that would do.
        least: Bytes,
        /// The plan.
        table: String,
    },
}

impl Scenario {
    /// Reads a scenario file.
    ///
    /// # Errors
    /// If it cannot be read, or has an unknown name or a malformed value.
    pub fn read(path: &std::path::Path) -> Result<Scenario, ScenarioError> {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path)
            .map_err(|source| ScenarioError::Unreadable { path: shown.clone(), source })?;
        toml::from_str(&text)
            .map_err(|e| ScenarioError::Malformed { path: shown, message: e.to_string() })
    }

    /// Frames of RAM.
    pub fn frames(&self) -> u32 {
        self.host.ram.pages().min(u64::from(u32::MAX)) as u32
    }

    /// Tasks that page, readers of the flood not counted.
    pub fn workers(&self) -> u32 {
        self.host.cpus * self.host.tasks_per_cpu
    }

    /// Pages of one task's mapping.
    pub fn pages_per_worker(&self) -> u32 {
        (self.pages_mapped() / f64::from(self.workers().max(1))) as u32
    }

    /// Pages that all tasks together are to map, before they are divided.
    fn pages_mapped(&self) -> f64 {
        f64::from(self.frames()) * self.host.overcommit
    }

    /// Whether anything can change when `ablation` is off: without transactions nothing is reserved, and
    /// without late writes no quarantine is needed.
    pub fn has_use_for(&self, ablation: Ablation) -> bool {
        match ablation {
            Ablation::Reservation => self.host.transaction_pages > 0,
            Ablation::Quarantine => self.server.held.0 > 0,
            _ => true,
        }
    }

    /// Frames that all queues of one host may hold.
    pub fn host_queue_frames_max(&self) -> u32 {
        self.frames() / 8
    }

    /// Q: frames that the queues of the untagged flows can hold.
    pub fn queue_frames(&self) -> u32 {
        let per_socket = self.flood.socket_bytes_max.pages() as u32;
        (self.flood.flows * per_socket).min(self.host_queue_frames_max())
    }

    /// The host's pool, before any ablation.
    pub fn pool(&self) -> PoolConfig {
        let mut config = PoolConfig::new(self.frames().max(1));
        // The simulated machine is one thread and wants every count exact at every instant.
        config.magazine = 0;
        config
    }

    /// Checks that every value is in its range. Until that is known, not even the plan makes sense.
    ///
    /// # Errors
    /// The first that is not.
    pub fn check_ranges(&self) -> Result<(), ScenarioError> {
        let out = |what, value: String, allowed| ScenarioError::OutOfRange { what, value, allowed };
        let range = |what, value: u64, min: u64, max: u64, allowed| {
            let fits = (min..=max).contains(&value);
            fits.then_some(()).ok_or_else(|| out(what, value.to_string(), allowed))
        };
        range("cpus", self.host.cpus.into(), 1, 64, "1 to 64")?;
        range("tasks-per-cpu", self.host.tasks_per_cpu.into(), 1, 256, "1 to 256")?;
        range("rounds", self.host.rounds.into(), 0, 1000, "0 to 1000")?;
        range("dirty-percent", self.host.dirty_percent.into(), 0, 100, "0 to 100")?;
        let transaction_pages = u64::from(self.host.transaction_pages);
        range("transaction-pages", transaction_pages, 0, TRANSACTION_PAGES_MAX.into(), "0 to 128")?;
        range("transaction-every", self.host.transaction_every.into(), 1, 1 << 20, "1 to 1048576")?;
        range("flood percent", self.flood.percent.into(), 0, 90, "0 to 90")?;
        range("flows", self.flood.flows.into(), 0, 512, "0 to 512")?;
        range("rx-ring", self.host.rx_ring.into(), 8, 4096, "8 to 4096")?;
        range("payload-max", self.flood.payload_max.into(), 16, 1472, "16 to 1472")?;
        let payload_min = u64::from(self.flood.payload_min);
        range("payload-min", payload_min, 16, self.flood.payload_max.into(), "16 to payload-max")?;
        range("reader-pages", self.flood.reader_pages.into(), 1, 65_536, "1 to 65536")?;
        let LinkSpec { rate, latency, .. } = self.link;
        if !(1_000_000..=100_000_000_000).contains(&rate.0) {
            return Err(out("link rate", rate.to_string(), "1Mbit to 100Gbit"));
        }
        if latency.0 > 1_000_000_000 {
            return Err(out("link latency", latency.to_string(), "0ns to 1s"));
        }
        if !(1..=1 << 24).contains(&self.host.ram.pages()) {
            return Err(out("ram", self.host.ram.to_string(), "4KiB to 64GiB"));
        }
        if !(self.host.overcommit > 0.0 && self.host.overcommit <= 64.0) {
            return Err(out("overcommit", number(self.host.overcommit), "above 0, up to 64"));
        }
        Ok(())
    }

    /// Checks that each task has a page to touch. Tasks of traces have mappings of their own, and need none
    /// of these.
    ///
    /// # Errors
    /// If the mappings are less than a page each.
    pub fn check_mappings(&self) -> Result<(), ScenarioError> {
        if self.pages_per_worker() > 0 {
            return Ok(());
        }
        let pages = self.pages_mapped() as u64;
        Err(ScenarioError::NothingMapped { tasks: self.workers(), pages })
    }

    /// Checks ranges, and that the host can carry `plan`.
    ///
    /// # Errors
    /// The first thing that does not make sense.
    pub fn check(&self, plan: &ReservePlan) -> Result<(), ScenarioError> {
        self.check_ranges()?;
        let least = plan.frames() + FRAMES_BESIDE_PLAN;
        if self.frames() < least {
            return Err(ScenarioError::TooSmall {
                ram: self.host.ram,
                frames: self.host.ram.pages(),
                plan: plan.frames(),
                least: Bytes(u64::from(least) * netswap_reserve::PAGE_SIZE as u64),
                table: plan.to_string(),
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_headline_file_says_what_the_defaults_are() {
        let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("scenarios/headline.toml");
        assert_eq!(Scenario::read(&path).unwrap(), Scenario::default());
    }

    #[test]
    fn what_is_out_of_range_is_shown_as_it_is_written() {
        let message = |change: fn(&mut Scenario)| {
            let mut scenario = Scenario::default();
            change(&mut scenario);
            scenario.check_ranges().unwrap_err().to_string()
        };
        assert_eq!(message(|s| s.host.ram = Bytes(0)), "ram is 0B, must be 4KiB to 64GiB");
        let slow = message(|s| s.link.rate = BitRate(1000));
        assert_eq!(slow, "link rate is 1Kbit, must be 1Mbit to 100Gbit");
        let late = message(|s| s.link.latency = Nanos(2_000_000_000));
        assert_eq!(late, "link latency is 2s, must be 0ns to 1s");
        let much = message(|s| s.host.overcommit = 1e300);
        assert_eq!(much, "overcommit is 1e300, must be above 0, up to 64");
        let long = message(|s| s.host.rx_ring = u32::MAX);
        assert_eq!(long, "rx-ring is 4294967295, must be 8 to 4096");
    }

    #[test]
    fn tasks_without_a_page_are_refused_and_those_with_one_are_not() {
        let mut scenario = Scenario::default();
        scenario.check_mappings().unwrap();
        // 16 tasks, 16,384 frames.
        scenario.host.overcommit = 16.0 / 16_384.0;
        scenario.check_mappings().unwrap();
        scenario.host.overcommit = 15.0 / 16_384.0;
        let said = scenario.check_mappings().unwrap_err().to_string();
        assert!(said.starts_with("the 16 tasks map 15 pages together"), "{said}");
        assert!(said.contains("raise --ram or --overcommit"), "{said}");
    }

    #[test]
    fn unknown_names_are_errors_that_list_the_known_ones() {
        let error = "rserve".parse::<Ablation>().unwrap_err().to_string();
        assert!(error.contains("reserve, tag, drop, scope, reservation, quarantine"), "{error}");
        let error = toml::from_str::<Scenario>("[link]\nlos = \"1%\"").unwrap_err().to_string();
        assert!(error.contains("loss"), "{error}");
    }
}
