//! A node of the reserve tree tells when it passes 50, 90 and 100 % of its limit: once on the way up, ever
//! less often if that happens all the time, and never under the pool's lock.
//!
//! Method: a `tracing` subscriber of our own collects the events. It looks at the pool from inside each
//! of them, which would never end if the lock were held.

mod events;

use std::fmt;
use std::sync::{Arc, Mutex};

use netswap_reserve::{EmergencyScope, Gfp, PagePool, PoolConfig, ReservationSpec, ReserveId};
use tracing::Event;
use tracing::field::{Field, Visit};

/// What one event said.
#[derive(Clone, Debug, Default, PartialEq)]
struct Told {
    reserve: String,
    percent: u64,
    usage: u64,
    limit: u64,
    times: u64,
}

impl Visit for Told {
    fn record_debug(&mut self, _: &Field, _: &dyn fmt::Debug) {}
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "reserve" {
            self.reserve = value.into();
        }
    }
    fn record_u64(&mut self, field: &Field, value: u64) {
        match field.name() {
            "percent" => self.percent = value,
            "usage" => self.usage = value,
            "limit" => self.limit = value,
            "times" => self.times = value,
            _ => {}
        }
    }
}

/// What is told while `work` runs.
fn told(pool: &PagePool, work: impl FnOnce()) -> Vec<(String, u64)> {
    let told = Arc::new(Mutex::new(Vec::new()));
    let (own, collected) = (pool.clone(), told.clone());
    let look = move |event: &Event<'_>| {
        assert!(own.free_frames() <= own.frames());
        let mut told = Told::default();
        event.record(&mut told);
        if !told.reserve.is_empty() {
            collected.lock().unwrap().push(told);
        }
    };
    events::watch(look, work);
    let told = std::mem::take(&mut *told.lock().unwrap());
    for t in &told {
        assert!(t.usage * 100 >= t.limit * t.percent, "{t:?}");
    }
    told.into_iter().map(|t| (t.reserve, t.percent)).collect()
}

fn pool() -> (PagePool, ReserveId, ReserveId) {
    let pool =
        PagePool::new(PoolConfig { headroom: 0, low_gap: 0, magazine: 0, ..PoolConfig::new(64) });
    let net = pool.add_reserve(ReserveId::ROOT, "net", 10);
    let rx = pool.add_reserve(net, "net.rx", 10);
    pool.count_objects(rx, 1);
    pool.connect(net).unwrap();
    (pool, net, rx)
}

fn names(told: &[(String, u64)]) -> Vec<(&str, u64)> {
    told.iter().map(|(name, percent)| (&**name, *percent)).collect()
}

#[test]
fn a_node_that_fills_up_is_told_at_each_level() {
    let (pool, net, rx) = pool();
    let mut charges = Vec::new();
    let on_the_way = told(&pool, || {
        charges.extend((0..10).map(|_| pool.charge(rx, 1).unwrap()));
    });
    assert_eq!(
        names(&on_the_way),
        [("net.rx", 50), ("net.rx", 90), ("total", 50), ("net", 50), ("net.rx", 100)]
    );
    let down = told(&pool, || charges.clear());
    assert_eq!(names(&down), []);
    let at_once = told(&pool, || drop(pool.charge(net, 19).unwrap()));
    assert_eq!(names(&at_once), [("total", 50), ("total", 90), ("net", 50), ("net", 90)]);
}

#[test]
fn every_way_to_charge_tells() {
    let fill = |work: &dyn Fn(&PagePool, ReserveId)| {
        let (pool, _, rx) = pool();
        let rest: Vec<_> = std::iter::from_fn(|| pool.alloc(Gfp::KERNEL).ok()).collect();
        let told = told(&pool, || work(&pool, rx));
        drop(rest);
        told.iter().filter(|t| t.0 == "net.rx").count()
    };
    assert_eq!(fill(&|_, _| ()), 0);
    assert_eq!(fill(&|pool, rx| drop(pool.charge_bytes(rx, 10 * 4096))), 3);
    assert_eq!(fill(&|pool, rx| drop(pool.charge_objects(rx, 10))), 3);
    let burst = |pool: &PagePool, rx| {
        let mut frames = Vec::new();
        pool.alloc_burst_from(Gfp::KERNEL, rx, 10, |frame| frames.push(frame)).unwrap();
    };
    assert_eq!(fill(&burst), 3);
    let scope = |pool: &PagePool, rx| {
        let _scope = EmergencyScope::enter(pool, rx);
        let _frames: Vec<_> = (0..10).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    };
    assert_eq!(fill(&scope), 3);
    let reserve = |pool: &PagePool, rx| {
        drop(pool.reserve_from(ReservationSpec::pages(10), rx).unwrap());
    };
    assert_eq!(fill(&reserve), 3);
    let shrink = |pool: &PagePool, rx| {
        let _charge = pool.charge(rx, 4).unwrap();
        pool.resize(rx, 4).unwrap();
    };
    assert_eq!(fill(&shrink), 3);
}

/// An emergency path that goes up and down for each page does not flood the log.
#[test]
fn going_up_and_down_all_the_time_is_told_ever_less() {
    let (pool, _, rx) = pool();
    let told = told(&pool, || (0..10_000).for_each(|_| drop(pool.charge(rx, 10).unwrap())));
    let full = told.iter().filter(|t| **t == ("net.rx".into(), 100)).count();
    assert_eq!(full, 8 + 10, "eight times, and at 16, 32, ... 8,192");
}
