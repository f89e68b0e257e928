//! A plan: how much memory must be set aside, as a sum of named terms, each with its reason.
//!
//! Two kinds of terms. *Reserve* terms are promises of the reserve tree: they divide the emergency
//! floor. Terms *set aside* are buffers that are taken at start and kept, such as socket buffers: they
//! leave the pool, so no floor needs to cover them. Both count in the total.

use std::fmt;

use crate::PAGE_SIZE;
use crate::pool::PagePool;
use crate::reserves::ReserveId;

/// Frames that a pool must have beyond its plan, for the work that the plan is to keep going: the
/// watermarks of a small pool and a resident set that is not all turnover. Picked by eye: 1 MiB.
pub const PLAN_MARGIN_FRAMES: u32 = 256;

#[derive(Clone, Debug)]
struct Term {
    /// Empty for a term set aside.
    path: String,
    name: String,
    frames: u32,
    reason: String,
}

/// A sum of named terms. Displayed, it is a table that answers "how much must I set aside?".
///
/// ```
/// use netswap_reserve::{PagePool, PoolConfig, ReservePlan};
///
/// let mut plan = ReservePlan::new();
/// plan.term("net.rx", "ring", 64, "one frame for each slot of the receive ring")
///     .term("swap.out", "batch", 32, "pages of one write in flight")
///     .set_aside("socket buffers", 48, "two windows for one tagged socket");
/// assert_eq!((plan.frames(), plan.reserve_frames(), plan.limit_of("net")), (144, 96, 64));
/// plan.fits(512)?;
///
/// let pool = PagePool::new(PoolConfig::new(512));
/// let installed = plan.install(&pool);
/// let rx = installed.id("net.rx").unwrap();
/// pool.connect(rx)?;
/// assert_eq!(pool.reserve_limit(rx), 64);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
#[derive(Clone, Debug, Default)]
pub struct ReservePlan {
    terms: Vec<Term>,
}

/// A pool is too small for a plan.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the plan takes {plan} frames and needs {margin} more to work in, \
     but the pool has {frames} frames"
)]
pub struct PlanTooLarge {
    /// Frames of the plan.
    pub plan: u32,
    /// Frames wanted beside it: [`PLAN_MARGIN_FRAMES`].
    pub margin: u32,
    /// Frames of the pool.
    pub frames: u32,
}

impl ReservePlan {
    /// A plan without terms.
    pub fn new() -> ReservePlan {
        ReservePlan::default()
    }

    /// Adds a term to the reserve `path`, whose parts are separated by dots: `net.rx` is a node below
    /// `net`. Terms of one path add up.
    ///
    /// # Panics
    /// When a part of the path is empty: paths are written in programs, not read.
    pub fn term(&mut self, path: &str, name: &str, frames: u32, reason: &str) -> &mut Self {
        assert!(path.split('.').all(|part| !part.is_empty()), "{path:?} is no path of a reserve");
        self.push(path, name, frames, reason)
    }

    /// Adds a term that is set aside at start: counted in the total, not in the reserve tree.
    pub fn set_aside(&mut self, name: &str, frames: u32, reason: &str) -> &mut Self {
        self.push("", name, frames, reason)
    }

    fn push(&mut self, path: &str, name: &str, frames: u32, reason: &str) -> &mut Self {
        self.terms.push(Term {
            path: path.into(),
            name: name.into(),
            frames,
            reason: reason.into(),
        });
        self
    }

    /// Frames of all terms. A sum above 2^32 - 1 stays there: no pool is that large.
    pub fn frames(&self) -> u32 {
        self.sum(|_| true)
    }

    /// Frames of the reserve terms: the floor once all of them are connected.
    pub fn reserve_frames(&self) -> u32 {
        self.sum(|t| !t.path.is_empty())
    }

    /// Frames of the terms at `path` and below; 0 if there are none.
    pub fn limit_of(&self, path: &str) -> u32 {
        self.sum(|t| is_within(&t.path, path))
    }

    fn sum(&self, of: impl Fn(&Term) -> bool) -> u32 {
        self.terms.iter().filter(|t| of(t)).fold(0, |sum, t| sum.saturating_add(t.frames))
    }

    /// Whether a pool of `frames` frames can carry this plan and still work.
    ///
    /// # Errors
    /// When it has fewer than the plan and [`PLAN_MARGIN_FRAMES`].
    pub fn fits(&self, frames: u32) -> Result<(), PlanTooLarge> {
        let (plan, margin) = (self.frames(), PLAN_MARGIN_FRAMES);
        if plan.saturating_add(margin) > frames {
            return Err(PlanTooLarge { plan, margin, frames });
        }
        Ok(())
    }

    /// The paths of the plan, those above each included, parents first.
    fn paths(&self) -> Vec<&str> {
        let mut paths: Vec<&str> = Vec::new();
        for term in self.terms.iter().filter(|t| !t.path.is_empty()) {
            let ends = term.path.match_indices('.').map(|(dot, _)| dot);
            for end in ends.chain([term.path.len()]) {
                let path = &term.path[..end];
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
        paths
    }

    /// Adds a node to the pool's reserve tree for each path, named by its path, not connected.
    pub fn install(&self, pool: &PagePool) -> InstalledPlan {
        let mut installed = InstalledPlan { nodes: Vec::new() };
        for path in self.paths() {
            let parent = path.rsplit_once('.').map_or(ReserveId::ROOT, |(above, _)| {
                installed.id(above).expect("the paths come parents first")
            });
            let own = self.sum(|t| t.path == path);
            installed.nodes.push((path.into(), pool.add_reserve(parent, path, own)));
        }
        installed
    }
}

fn is_within(path: &str, top: &str) -> bool {
    path.strip_prefix(top).is_some_and(|rest| rest.is_empty() || rest.starts_with('.'))
        && !path.is_empty()
        && !top.is_empty()
}

/// Where the nodes of a plan are in the tree of a pool.
#[derive(Clone, Debug)]
pub struct InstalledPlan {
    nodes: Vec<(String, ReserveId)>,
}

impl InstalledPlan {
    /// The reserve of a path, if the plan has terms there or below.
    pub fn id(&self, path: &str) -> Option<ReserveId> {
        self.nodes.iter().find(|(p, _)| p == path).map(|&(_, id)| id)
    }

    /// All paths with their reserves, parents first.
    pub fn iter(&self) -> impl Iterator<Item = (&str, ReserveId)> {
        self.nodes.iter().map(|(path, id)| (path.as_str(), *id))
    }
}

impl fmt::Display for ReservePlan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Each row: indentation, label, frames, reason. A path with more than its own terms below it,
        // or more than one term, gets a sub-total as its heading.
        let mut rows: Vec<(usize, &str, u32, &str)> = Vec::new();
        let mut paths = self.paths();
        paths.sort_by_key(|path| self.order(path));
        for path in paths {
            let depth = path.matches('.').count();
            rows.push((depth, path, self.limit_of(path), ""));
            let terms = self.terms.iter().filter(|t| t.path == path);
            rows.extend(terms.map(|t| (depth + 1, t.name.as_str(), t.frames, t.reason.as_str())));
        }
        let aside: Vec<&Term> = self.terms.iter().filter(|t| t.path.is_empty()).collect();
        if !aside.is_empty() {
            rows.push((0, "set aside", self.frames() - self.reserve_frames(), ""));
            rows.extend(aside.iter().map(|t| (1, t.name.as_str(), t.frames, t.reason.as_str())));
        }
        rows.push((0, "total", self.frames(), ""));
        let width = |&(depth, label, _, _): &(usize, &str, _, _)| depth * 2 + label.chars().count();
        let width = rows.iter().map(width).max().unwrap_or(0);
        writeln!(f, "{:width$}  {:>7}  {:>8}  reason", "term", "frames", "KiB")?;
        for (depth, label, frames, reason) in rows {
            let label = format!("{:1$}{label}", "", depth * 2);
            let kib = u64::from(frames) * (PAGE_SIZE as u64 / 1024);
            let line = format!("{label:width$}  {frames:>7}  {kib:>8}  {reason}");
            writeln!(f, "{}", line.trim_end())?;
        }
        Ok(())
    }
}

impl ReservePlan {
    /// Where a path stands in the table: after the path above it, among its neighbours in the order
    /// of their first terms.
    fn order(&self, path: &str) -> Vec<usize> {
        let ends = path.match_indices('.').map(|(dot, _)| dot).chain([path.len()]);
        ends.filter_map(|end| self.terms.iter().position(|t| is_within(&t.path, &path[..end])))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::PoolConfig;

    fn plan() -> ReservePlan {
        let mut plan = ReservePlan::new();
        plan.term("net.rx", "ring", 64, "one frame for each slot of the ring")
            .term("swap.out", "batch", 32, "pages of one write in flight")
            .term("net", "neighbours", 2, "16 entries of 512 bytes")
            .term("net.rx", "reassembly", 17, "one datagram of 64 KiB and its header")
            .set_aside("socket buffers", 48, "two windows for one socket");
        plan
    }

    #[test]
    fn sums_are_by_path_and_a_name_is_not_a_prefix() {
        let mut plan = plan();
        plan.term("network", "x", 1000, "shares letters with net, not memory");
        assert_eq!(plan.limit_of("net"), 83);
        assert_eq!(plan.limit_of("net.rx"), 81);
        assert_eq!(plan.limit_of("net.tx"), 0);
        assert_eq!(plan.limit_of(""), 0);
        assert_eq!(plan.reserve_frames(), 1115);
        assert_eq!(plan.frames(), 1163);
    }

    #[test]
    fn the_table_has_sub_totals_and_a_total() {
        let expected = "\
term               frames       KiB  reason
net                    83       332
  neighbours            2         8  16 entries of 512 bytes
  net.rx               81       324
    ring               64       256  one frame for each slot of the ring
    reassembly         17        68  one datagram of 64 KiB and its header
swap                   32       128
  swap.out             32       128
    batch              32       128  pages of one write in flight
set aside              48       192
  socket buffers       48       192  two windows for one socket
total                 163       652
";
        assert_eq!(plan().to_string(), expected);
    }

    #[test]
    fn an_installed_plan_is_the_tree_and_promises_nothing_yet() {
        let pool = PagePool::new(PoolConfig::new(1024));
        let plan = plan();
        let installed = plan.install(&pool);
        assert_eq!(installed.iter().count(), 4);
        assert_eq!(installed.id("swap.in"), None);
        assert_eq!(pool.watermarks().floor, 0);
        pool.connect(installed.id("net").unwrap()).unwrap();
        assert_eq!(pool.reserve_limit(installed.id("net").unwrap()), plan.limit_of("net"));
        assert_eq!(pool.reserve_limit(installed.id("net.rx").unwrap()), 81);
        pool.connect(installed.id("swap").unwrap()).unwrap();
        assert_eq!(pool.watermarks().floor, plan.reserve_frames());
    }

    #[test]
    fn a_pool_that_is_too_small_is_refused_with_the_figures() {
        let plan = plan();
        assert_eq!(plan.fits(163 + 256), Ok(()));
        let error = plan.fits(163 + 255).unwrap_err();
        assert_eq!(error, PlanTooLarge { plan: 163, margin: 256, frames: 418 });
        assert!(error.to_string().contains("163 frames"));
    }
}
