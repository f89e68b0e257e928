//! The tree of reserves that divides the emergency floor, and the charges against it.
//!
//! A node has frames of its own and children. Its *limit* is what the connected nodes below and at it
//! promise together; the root's limit is the emergency floor of the pool. Its *usage* is the sum of
//! the live charges below and at it.
//!
//! ```text
//!   total            limit 96 = 32 + 64       the floor
//!   ├── swap.out     limit 32, connected
//!   └── net          limit 64 = 64 + 0
//!       ├── net.rx   limit 64, connected
//!       └── net.tx   limit 0, not connected
//! ```
//!
//! Invariants, at every node and every instant:
//! - usage <= limit: a charge that would break it is refused, one that exactly fills it is not;
//! - usage = direct charges + usage of the children; limit = held + limits of the children, where
//!   `held` is what the node itself adds: its own frames while connected, and otherwise just what is
//!   still charged to it. So the floor never falls below what is in use, and follows it down.
//!
//! - of a node that counts objects, `direct` = charges in frames + ceil(objects / objects a frame): the
//!   objects of all charges share frames, as those of a slab cache do.
//!
//! Nothing here is clamped: a count that would go below zero is a broken invariant and stops the run.

use std::sync::Arc;

use crate::alarm::{Alarm, Told};

/// Names a node of a pool's reserve tree. Using it with another pool is caught.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReserveId {
    /// The pool's id, or 0 for the root, which every pool has.
    pool: u32,
    node: u16,
}

impl ReserveId {
    /// The root of every tree; its limit is the emergency floor.
    pub const ROOT: ReserveId = ReserveId { pool: 0, node: 0 };

    #[inline]
    pub(crate) fn new(pool: u32, node: u16) -> ReserveId {
        ReserveId { pool: if node == 0 { 0 } else { pool }, node }
    }

    /// As one number, which is never `u64::MAX`.
    #[inline]
    pub(crate) fn pack(self) -> u64 {
        u64::from(self.pool) << 16 | u64::from(self.node)
    }

    #[inline]
    pub(crate) fn unpack(packed: u64) -> ReserveId {
        ReserveId { pool: (packed >> 16) as u32, node: packed as u16 }
    }

    /// The node's index in the tree of the pool with this id.
    #[inline]
    pub(crate) fn node(self, pool: u32) -> u16 {
        assert!(self.pool == pool || self.node == 0, "the reserve belongs to another pool");
        self.node
    }
}

/// Why a reserve could not be changed or charged.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReserveError {
    /// A node on the way to the root is at its limit, or the charged node is not connected.
    #[error("reserve {name} is at its limit: {usage} of {limit} frames in use")]
    AtLimit {
        /// The node that refused.
        name: Arc<str>,
        /// Frames charged to it.
        usage: u32,
        /// Frames it may hold.
        limit: u32,
    },
    /// Raising a limit needs frames that cannot be secured now. Nothing was changed.
    #[error("cannot secure {wanted} more frames for reserve {name}: {free} free")]
    CannotSecure {
        /// The node that was to be raised or connected.
        name: Arc<str>,
        /// Frames that would have to be secured.
        wanted: u32,
        /// Frames free now.
        free: u32,
    },
    /// The limit would fall below what is charged. Nothing was changed.
    #[error("reserve {name} has {usage} frames charged, more than the new limit {limit}")]
    InUse {
        /// The node.
        name: Arc<str>,
        /// Frames charged to it.
        usage: u32,
        /// The limit asked for.
        limit: u32,
    },
}

const NO_PARENT: u16 = u16::MAX;

/// What every charge looks at: half a cache line.
#[derive(Clone, Debug)]
struct Node {
    /// Usage up to which a charge is nothing but an addition: within the limit, and no alarm. Never below
    /// usage.
    top: u32,
    usage: u32,
    parent: u16,
    connected: bool,
    /// Charges to this node itself, without those below.
    direct: u32,
    /// Usage below this concerns the alarm.
    below: u32,
    /// As of the last time that usage fell; see [`Node::peak`].
    peak: u32,
    limit: u32,
    /// What the node itself adds to the limits: `own` while connected, else `direct`.
    held: u32,
}

/// The rest of a node.
#[derive(Clone, Debug)]
struct Record {
    own: u32,
    failures: u64,
    waits: u64,
    alarm: Alarm,
    /// Objects charged to this node itself.
    objects: u64,
    /// Objects that share a frame; 0: the node does not count objects.
    per_frame: u32,
    name: Arc<str>,
    /// Scratch of a change that is being worked out, meaningless between calls.
    next_held: u32,
    next_limit: u64,
}

impl Node {
    fn new(parent: u16, connected: bool) -> Node {
        Node {
            top: 0,
            usage: 0,
            parent,
            connected,
            direct: 0,
            below: 0,
            peak: 0,
            limit: 0,
            held: 0,
        }
    }

    /// The highest usage ever. Usage only rises between two times that it falls, so it is enough to
    /// look at it then, and here.
    fn peak(&self) -> u32 {
        self.peak.max(self.usage)
    }
}

impl Record {
    fn new(name: Arc<str>, own: u32) -> Record {
        Record {
            own,
            failures: 0,
            waits: 0,
            alarm: Alarm::new(),
            objects: 0,
            per_frame: 0,
            name,
            next_held: 0,
            next_limit: 0,
        }
    }
}

/// Brings the alarm of a node up to date. A node that drains is full all the time, which is nothing to
/// tell. Returns whether something is to be told.
#[cold]
fn follow(node: &mut Node, record: &mut Record) -> bool {
    let limit = if node.connected { node.limit } else { 0 };
    let told = record.alarm.follow(node.usage, limit);
    let (above, below) = record.alarm.bounds();
    node.top = node.limit.min(above - 1);
    node.below = below;
    told
}

/// Frames of `objects` objects that share frames.
fn frames_of(objects: u64, per_frame: u32) -> u64 {
    if per_frame == 0 { 0 } else { objects.div_ceil(u64::from(per_frame)) }
}

/// The counters of one node, as [`PagePool::reserve_info`](crate::PagePool::reserve_info) reports them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReserveInfo {
    /// Which node.
    pub id: ReserveId,
    /// Its name as given.
    pub name: Arc<str>,
    /// The node above it; the root has none.
    pub parent: Option<ReserveId>,
    /// Whether it promises its own frames now.
    pub connected: bool,
    /// Frames it promises itself while connected.
    pub own: u32,
    /// Frames that may be charged to it and below now.
    pub limit: u32,
    /// Frames charged to it and below now.
    pub usage: u32,
    /// The highest usage ever.
    pub peak: u32,
    /// Charges that this node refused.
    pub failures: u64,
    /// Times that somebody waited for this node: to be connected, resized, or to reserve from it.
    pub waits: u64,
    /// Objects charged to this node itself.
    pub objects: u64,
    /// Objects that share a frame, if the node counts objects.
    pub objects_per_frame: Option<u32>,
}

/// A change of the tree that has been worked out and not yet made.
#[derive(Clone, Copy)]
pub(crate) enum Change {
    Connect(u16),
    Disconnect(u16),
    Resize(u16, u32),
}

impl Change {
    pub(crate) fn node(&self) -> u16 {
        match *self {
            Change::Connect(node) | Change::Disconnect(node) | Change::Resize(node, _) => node,
        }
    }
}

/// The tree of one pool; lives under the pool's lock. Parents come before their children.
pub(crate) struct Tree {
    nodes: Vec<Node>,
    /// One for each node.
    records: Vec<Record>,
    /// A node has a level to be told.
    alarmed: bool,
}

impl Tree {
    pub(crate) fn new() -> Tree {
        let mut nodes = Vec::with_capacity(32);
        nodes.push(Node::new(NO_PARENT, true));
        let mut records = Vec::with_capacity(32);
        records.push(Record::new("total".into(), 0));
        Tree { nodes, records, alarmed: false }
    }

    /// Frames promised in all: the floor.
    #[inline(always)]
    pub(crate) fn floor(&self) -> u32 {
        self.nodes[0].limit
    }

    pub(crate) fn name(&self, node: u16) -> Arc<str> {
        self.records[usize::from(node)].name.clone()
    }

    /// `(usage, peak, limit, failures)` of a node.
    pub(crate) fn counters(&self, node: u16) -> (u32, u32, u32, u64) {
        let n = &self.nodes[usize::from(node)];
        (n.usage, n.peak(), n.limit, self.records[usize::from(node)].failures)
    }

    pub(crate) fn len(&self) -> usize {
        self.nodes.len()
    }

    /// Adds a node. The table may grow: reserves are added at start.
    pub(crate) fn add(&mut self, parent: u16, name: Arc<str>, own: u32) -> u16 {
        assert!(usize::from(parent) < self.nodes.len(), "the parent is a node of this tree");
        let id = u16::try_from(self.nodes.len()).ok().filter(|&id| id < NO_PARENT - 1);
        let id = id.expect("a tree has at most 65,533 reserves");
        self.nodes.push(Node::new(parent, false));
        self.records.push(Record::new(name, own));
        id
    }

    /// Charges `n` frames to `node` and to all above it, or to none of them: then the node that
    /// refused has counted a failure, and is returned.
    #[inline]
    pub(crate) fn charge(&mut self, node: u16, n: u32) -> Result<(), u16> {
        if !self.nodes[usize::from(node)].connected {
            return Err(self.refuse(node));
        }
        let mut at = node;
        // No node has the number that stands for no parent.
        while let Some(here) = self.nodes.get_mut(usize::from(at)) {
            if n > here.top - here.usage {
                self.add_usage(node, at, n.wrapping_neg());
                return self.charge_to_the_brim(node, n);
            }
            here.usage += n;
            at = here.parent;
        }
        self.nodes[usize::from(node)].direct += n;
        Ok(())
    }

    /// As [`Tree::charge`] where a node comes to its limit or to a level of its alarm, or would.
    #[cold]
    #[inline(never)]
    fn charge_to_the_brim(&mut self, node: u16, n: u32) -> Result<(), u16> {
        let mut at = node;
        while let Some(here) = self.nodes.get(usize::from(at)) {
            if here.limit - here.usage < n {
                return Err(self.refuse(at));
            }
            at = here.parent;
        }
        self.nodes[usize::from(node)].direct += n;
        self.add_usage(node, NO_PARENT, n);
        let mut at = node;
        while let Some(here) = self.nodes.get_mut(usize::from(at)) {
            if here.usage > here.top {
                self.alarmed |= follow(here, &mut self.records[usize::from(at)]);
            }
            at = here.parent;
        }
        Ok(())
    }

    /// Adds to the usage of `node` and of those above it, up to and without `end`.
    fn add_usage(&mut self, node: u16, end: u16, n: u32) {
        let mut at = node;
        while at != end {
            let here = &mut self.nodes[usize::from(at)];
            here.usage = here.usage.wrapping_add(n);
            at = here.parent;
        }
    }

    /// Whether a charge of `n` frames to `node` would succeed.
    #[inline]
    pub(crate) fn has_room(&self, node: u16, n: u32) -> bool {
        let mut at = node;
        let mut room = self.nodes[usize::from(node)].connected;
        while room && at != NO_PARENT {
            let here = &self.nodes[usize::from(at)];
            room = here.limit - here.usage >= n;
            at = here.parent;
        }
        room
    }

    /// Counts that a node refused a charge.
    #[cold]
    fn refuse(&mut self, node: u16) -> u16 {
        self.records[usize::from(node)].failures += 1;
        node
    }

    /// Charges `n` objects to a node that counts objects: the frames that they need beyond those that
    /// the node's objects have already.
    pub(crate) fn charge_objects(&mut self, node: u16, n: u32) -> Result<(), u16> {
        let here = &self.records[usize::from(node)];
        assert!(here.per_frame > 0, "reserve {} does not count objects", here.name);
        let objects = here.objects + u64::from(n);
        let more = frames_of(objects, here.per_frame) - frames_of(here.objects, here.per_frame);
        // More frames than can be numbered are over any limit.
        self.charge(node, u32::try_from(more).unwrap_or(u32::MAX))?;
        self.records[usize::from(node)].objects = objects;
        Ok(())
    }

    /// Takes back a charge of objects. Returns what [`Tree::uncharge`] does.
    pub(crate) fn uncharge_objects(&mut self, node: u16, n: u32) -> bool {
        let here = &mut self.records[usize::from(node)];
        let left = here.objects.checked_sub(u64::from(n));
        let left = left.expect("more objects are given back than were charged");
        let fewer = frames_of(here.objects, here.per_frame) - frames_of(left, here.per_frame);
        here.objects = left;
        // At most what is charged directly, which is a u32.
        self.uncharge(node, fewer as u32)
    }

    /// Lets a node count objects.
    pub(crate) fn count_objects(&mut self, node: u16, per_frame: u32) {
        assert!(per_frame > 0, "a frame holds an object at least");
        let here = &mut self.records[usize::from(node)];
        let same = here.per_frame == per_frame || here.objects == 0;
        assert!(same, "reserve {} has objects of another size charged", here.name);
        here.per_frame = per_frame;
    }

    /// Objects that share a frame, if the node counts any.
    pub(crate) fn counts_objects(&self, node: u16) -> Option<u32> {
        Some(self.records[usize::from(node)].per_frame).filter(|&per_frame| per_frame > 0)
    }

    pub(crate) fn waits(&self, node: u16) -> u64 {
        self.records[usize::from(node)].waits
    }

    /// Counts that somebody waits for a node.
    pub(crate) fn note_wait(&mut self, node: u16) {
        self.records[usize::from(node)].waits += 1;
    }

    /// Whether a node has a level to be told.
    #[inline(always)]
    pub(crate) fn alarmed(&self) -> bool {
        self.alarmed
    }

    /// The next level to be told.
    pub(crate) fn take_alarm(&mut self) -> Option<Told> {
        if !self.alarmed {
            return None;
        }
        for (node, record) in self.nodes.iter().zip(&mut self.records) {
            if let Some((percent, times)) = record.alarm.take() {
                let (name, &Node { usage, limit, .. }) = (record.name.clone(), node);
                return Some(Told { name, percent, usage, limit, times });
            }
        }
        self.alarmed = false;
        None
    }

    /// Takes back a charge. Returns whether the floor fell with it, because the node was disconnected
    /// with the charge outstanding.
    #[inline]
    pub(crate) fn uncharge(&mut self, node: u16, n: u32) -> bool {
        let first = &mut self.nodes[usize::from(node)];
        assert!(first.direct >= n, "more is given back than was charged");
        first.direct -= n;
        if !first.connected {
            self.drain(node, n);
            return true;
        }
        let mut at = node;
        while let Some(here) = self.nodes.get_mut(usize::from(at)) {
            here.peak = here.peak();
            here.usage -= n;
            if here.usage < here.below {
                follow(here, &mut self.records[usize::from(at)]);
            }
            at = here.parent;
        }
        false
    }

    /// Takes usage, and the limits with it, from a node that is no longer connected.
    #[cold]
    fn drain(&mut self, node: u16, n: u32) {
        self.nodes[usize::from(node)].held -= n;
        let mut at = node;
        while let Some(here) = self.nodes.get_mut(usize::from(at)) {
            here.peak = here.peak();
            here.usage -= n;
            here.limit -= n;
            follow(here, &mut self.records[usize::from(at)]);
            at = here.parent;
        }
    }

    /// Works a change out without making it. Returns the floor it would lead to.
    ///
    /// # Errors
    /// When a limit would fall below what is charged.
    pub(crate) fn plan(&mut self, change: &Change) -> Result<u32, ReserveError> {
        let target = change.node();
        for i in 0..self.nodes.len() {
            let within = self.is_within(i as u16, target);
            let (n, r) = (&self.nodes[i], &mut self.records[i]);
            r.next_held = match *change {
                Change::Connect(_) if within => r.own,
                Change::Disconnect(_) if within => n.direct,
                Change::Resize(node, own) if usize::from(node) == i && n.connected => own,
                _ => n.held,
            };
            r.next_limit = u64::from(r.next_held);
        }
        for i in (1..self.nodes.len()).rev() {
            let next_limit = self.records[i].next_limit;
            self.records[usize::from(self.nodes[i].parent)].next_limit += next_limit;
        }
        for (n, r) in self.nodes.iter().zip(&self.records) {
            if r.next_limit < u64::from(n.usage) {
                return Err(ReserveError::InUse {
                    name: r.name.clone(),
                    usage: n.usage,
                    limit: r.next_limit as u32,
                });
            }
        }
        // More than 2^32 frames can never be secured: the caller sees a floor above all memory.
        Ok(u32::try_from(self.records[0].next_limit).unwrap_or(u32::MAX))
    }

    /// Makes the change that was worked out last.
    pub(crate) fn commit(&mut self, change: &Change) {
        let target = change.node();
        for i in 0..self.nodes.len() {
            let within = self.is_within(i as u16, target);
            let (n, r) = (&mut self.nodes[i], &mut self.records[i]);
            match *change {
                Change::Connect(_) if within => n.connected = true,
                Change::Disconnect(_) if within => n.connected = false,
                Change::Resize(node, own) if usize::from(node) == i => r.own = own,
                _ => {}
            }
            n.held = r.next_held;
            n.limit = u32::try_from(r.next_limit).expect("no limit exceeds the floor");
            self.alarmed |= follow(n, r);
        }
    }

    /// Whether `node` is `top` or below it.
    fn is_within(&self, node: u16, top: u16) -> bool {
        let mut at = node;
        while at > top && at != NO_PARENT {
            at = self.nodes[usize::from(at)].parent;
        }
        at == top
    }

    /// What people see of the nodes. Fills `out` up to its capacity, so that nothing is allocated here.
    pub(crate) fn info(&self, pool: u32, out: &mut Vec<ReserveInfo>) {
        let nodes = self.nodes.iter().zip(&self.records).enumerate();
        for (i, (n, r)) in nodes.take(out.capacity()) {
            let id = |node| ReserveId::new(pool, node);
            out.push(ReserveInfo {
                id: id(i as u16),
                parent: (n.parent != NO_PARENT).then(|| id(n.parent)),
                name: r.name.clone(),
                connected: n.connected,
                own: r.own,
                limit: n.limit,
                usage: n.usage,
                peak: n.peak(),
                failures: r.failures,
                waits: r.waits,
                objects: r.objects,
                objects_per_frame: (r.per_frame > 0).then_some(r.per_frame),
            });
        }
    }
}

/// Lays the nodes out as a tree: children under their parents, in the order they were added.
pub(crate) fn report(infos: &[ReserveInfo]) -> String {
    // Depth first without recursion: the stack holds what is still to be printed, last first.
    let mut order = Vec::with_capacity(infos.len());
    let mut stack: Vec<(usize, &ReserveInfo)> =
        infos.first().map(|root| (0, root)).into_iter().collect();
    while let Some((depth, at)) = stack.pop() {
        order.push((format!("{:1$}{2}", "", depth * 2, at.name), at));
        let children = infos.iter().rev().filter(|i| i.parent == Some(at.id));
        stack.extend(children.map(|child| (depth + 1, child)));
    }
    let width = order.iter().map(|(label, _)| label.chars().count()).max().unwrap_or(0).max(8);
    let mut text = format!(
        "{:width$} {:>8} {:>8} {:>8} {:>8} {:>8}  state\n",
        "reserve", "usage", "peak", "limit", "failures", "waits"
    );
    for (label, i) in order {
        let state = match (i.connected, i.usage) {
            (true, _) => "connected",
            (false, 0) => "not connected",
            (false, _) => "draining",
        };
        text += &format!(
            "{label:width$} {:>8} {:>8} {:>8} {:>8} {:>8}  {state}",
            i.usage, i.peak, i.limit, i.failures, i.waits
        );
        if let Some(per_frame) = i.objects_per_frame {
            text += &format!(", {} objects, {per_frame} a frame", i.objects);
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn tree() -> (Tree, u16) {
        let mut tree = Tree::new();
        let node = tree.add(0, "node".into(), 5);
        let change = Change::Connect(node);
        tree.plan(&change).unwrap();
        tree.commit(&change);
        (tree, node)
    }

    #[test]
    #[should_panic(expected = "more is given back than was charged")]
    fn a_double_uncharge_stops_the_run() {
        let (mut tree, node) = tree();
        tree.charge(node, 2).unwrap();
        tree.uncharge(node, 2);
        tree.uncharge(node, 1);
    }

    #[test]
    fn a_change_that_is_not_committed_is_none() {
        let (mut tree, node) = tree();
        assert_eq!(tree.plan(&Change::Resize(node, 100)).unwrap(), 100);
        assert_eq!(tree.floor(), 5);
        tree.charge(node, 3).unwrap();
        assert!(matches!(tree.plan(&Change::Resize(node, 2)), Err(ReserveError::InUse { .. })));
        assert_eq!(tree.counters(node), (3, 3, 5, 0));
    }

    #[test]
    fn limits_too_large_for_any_memory_do_not_wrap() {
        let (mut tree, node) = tree();
        let other = tree.add(0, "other".into(), u32::MAX);
        tree.plan(&Change::Resize(node, u32::MAX)).unwrap();
        tree.commit(&Change::Resize(node, u32::MAX));
        assert_eq!(tree.plan(&Change::Connect(other)).unwrap(), u32::MAX);
    }
}
