//! What the proofs against a real server share: their size, a verified load in a thread of its own while the test does
//! something to the server, and figures of it.

use std::fmt;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use netswap::iscsi::{InitiatorStats, IscsiBackend};
use netswap::nfs::{NfsBackend, NfsStats};
use netswap::real::load::{Load, LoadProgress, LoadReport, LoadSpec, Pattern, Stop};
use netswap::real::{OpenOptions, RealStore, StoreUrl};
use netswap::reserve::{PAGE_SIZE, Span};

/// Set to anything, the proofs run at full size: minutes instead of seconds.
const CAMPAIGN: &str = "NETSWAP_CAMPAIGN";
/// Slots of an area under load: small enough to be read back at once, and many times what is outstanding.
const SLOTS: u32 = 4096;
/// The longest wait for anything that has to happen. Picked by eye, for a machine with much else to do.
const WITHIN: Duration = Duration::from_secs(60);

/// A load of which nothing ends for so long stands still. Picked by eye.
const STILL: Duration = Duration::from_millis(50);

pub(crate) fn is_campaign() -> bool {
    std::env::var_os(CAMPAIGN).is_some()
}

/// Both write policies of NFS, as the end of a URL that has parameters.
pub(crate) const POLICIES: [&str; 2] = ["&write=file_sync", "&write=unstable"];
/// Both of iSCSI, as the end of a URL that has none.
pub(crate) const LUN_POLICIES: [&str; 2] = ["?write=fua", "?write=sync"];

/// What a kind of client has counted.
pub(crate) trait Stats: fmt::Debug + Send {
    fn of(store: &RealStore) -> Self;
    /// Whether all that came was the protocol.
    fn is_clean(&self) -> bool;
    /// Connections, and requests that were sent again.
    fn sent(&self) -> (u64, u64);
}

impl Stats for NfsStats {
    fn of(store: &RealStore) -> NfsStats {
        store.client_as::<NfsBackend>().unwrap().stats()
    }

    fn is_clean(&self) -> bool {
        self.garbage == 0
    }

    fn sent(&self) -> (u64, u64) {
        (self.connections, self.retransmissions)
    }
}

impl Stats for InitiatorStats {
    fn of(store: &RealStore) -> InitiatorStats {
        store.client_as::<IscsiBackend>().unwrap().stats()
    }

    fn is_clean(&self) -> bool {
        self.garbage == 0
    }

    fn sent(&self) -> (u64, u64) {
        (self.logins, self.reissued)
    }
}

/// How far a load is, as it says every few turns.
pub(crate) struct Watch {
    said: Mutex<(Instant, u64)>,
}

impl Watch {
    fn said(&self) -> (Instant, u64) {
        *self.said.lock().unwrap()
    }

    /// Waits until `ops` more operations have ended.
    pub(crate) fn more(&self, ops: u64) {
        let (from, begun) = (self.said().1, Instant::now());
        while self.said().1 < from + ops {
            assert!(begun.elapsed() < WITHIN, "the load stands still at {from} operations");
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until nothing has ended for a while, since the server is frozen: what the load has outstanding then has no
    /// answer.
    pub(crate) fn stands_still(&self) {
        let (mut ops, mut since) = (self.said().1, Instant::now());
        while since.elapsed() < STILL {
            if self.said().1 != ops {
                (ops, since) = (self.said().1, Instant::now());
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }

    /// Waits until the load goes on, and says how long after `back`, when the server was there again, it was
    /// first seen to.
    pub(crate) fn resumed_after(&self, back: Instant) -> Duration {
        let from = self.said().1;
        loop {
            let (at, ops) = self.said();
            if ops > from && at > back {
                return at - back;
            }
            assert!(back.elapsed() < WITHIN, "the load does not go on");
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// Both kinds of requests at a depth of 16, every page verified, for so long.
pub(crate) fn mixed(time: Duration) -> LoadSpec {
    LoadSpec {
        pattern: Pattern::Mixed,
        block_pages: 1,
        stride_blocks: 1,
        depth: 16,
        slots: SLOTS,
        first_slot: 1,
        stop: Stop::After(Span::from_nanos(time.as_nanos() as u64)),
        verify: true,
        run: 1,
        seed: 11,
        request_timeout: None,
    }
}

/// The same, for so many operations: what passes is to be read by a judge that is slower.
pub(crate) fn short(ops: u64) -> LoadSpec {
    LoadSpec { stop: Stop::Ops(ops), ..mixed(Duration::ZERO) }
}

/// Runs `spec` on the store at `url`, which is made if it can be, and `disturb` beside it. All pages must be right,
/// also when they are read back at the end, and all that came the protocol.
pub(crate) fn under_load<S: Stats>(
    url: &str,
    spec: LoadSpec,
    disturb: impl FnOnce(&Watch),
) -> (LoadReport, S) {
    let (report, stats) = under_damage::<S>(url, spec, disturb);
    assert!(stats.is_clean(), "{stats:?}");
    (report, stats)
}

/// The same, where the way to the server damages what passes.
pub(crate) fn under_damage<S: Stats>(
    url: &str,
    spec: LoadSpec,
    disturb: impl FnOnce(&Watch),
) -> (LoadReport, S) {
    let watch = Watch { said: Mutex::new((Instant::now(), 0)) };
    let url: StoreUrl = url.parse().unwrap();
    let bytes = area_bytes(&spec);
    let (report, stats) = std::thread::scope(|scope| {
        let load = scope.spawn(|| {
            let options = OpenOptions {
                create_bytes: url.can_create().then_some(bytes),
                ready_within: Span::from_secs(30),
                ..OpenOptions::default()
            };
            let mut store = RealStore::open(&url, &options).unwrap();
            let mut told = |far: LoadProgress| {
                *watch.said.lock().unwrap() = (Instant::now(), far.ops);
            };
            let report = Load::new(spec).unwrap().run(&mut store, &mut told).unwrap();
            let stats = S::of(&store);
            store.shutdown();
            (report, stats)
        });
        disturb(&watch);
        load.join().unwrap()
    });
    assert!(report.is_fine(), "{:?} {:?}", report.faults, report);
    assert!(report.pages_verified > u64::from(spec.slots) / 4, "{report:?}");
    (report, stats)
}

/// Bytes of an area for a load.
pub(crate) fn area_bytes(spec: &LoadSpec) -> u64 {
    u64::from(spec.first_slot + spec.slots) * PAGE_SIZE as u64
}

/// A line of figures.
pub(crate) fn tell(what: &str, resumed: &[Duration], report: &LoadReport, stats: &impl Stats) {
    let resumed: Vec<String> =
        resumed.iter().map(|after| format!("{:.0} ms", after.as_secs_f64() * 1e3)).collect();
    let resumed = match &resumed[..] {
        [] => String::new(),
        _ => format!("resumed after {}, ", resumed.join(" and ")),
    };
    let (connections, resent) = stats.sent();
    eprintln!(
        "{what}: {resumed}longest pause {:.0} ms, {} operations, {} pages verified, {connections} connections, \
         {resent} requests sent again, {} slots quarantined",
        report.longest_pause.as_secs_f64() * 1e3,
        report.ops(),
        report.pages_verified,
        report.quarantined,
    );
}
