//! The queue of those who wait for a frame or a promise: nodes on the waiters' own stacks, linked under the
//! pool's lock, in a line for each of the two.
//!
//! ```text
//!   queued ── grant, under the lock ──> granted ── wake, outside of it ──> woken: the waiter may go
//!      └───── leave, under the lock ──> gone
//! ```
//!
//! Invariants:
//! - The links of a node and `queued` belong to the holder of the pool's lock while the node is queued, and
//!   to the one [`Woken`] it was moved to afterwards.
//! - A node stays where it is, and its waiter stays in its call, until the waiter has taken it off the list
//!   itself or has seen `woken`. Setting `woken` is the last access that anybody else makes.
//! - Entitled waiters come before all others; within a rank the order is that of arrival.

use std::cell::Cell;
use std::ops::Deref;
use std::ptr::NonNull;

use crate::gfp::Gfp;
use crate::inner::Caller;
use crate::reserves::Change;
use crate::sync::Plain;
use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::thread::{self, Thread};

/// What somebody waits for, and what is granted then.
#[derive(Clone, Copy)]
pub(crate) enum Want {
    /// A frame; its index.
    Frame,
    /// So many frames for a reservation; see `promise_code`.
    Promise(u32),
    /// A change of the reserve tree, which raises the floor by so many frames; see `CHANGE_MADE`.
    Change(Change, u32),
}

/// The lines in which waiters stand.
#[derive(Clone, Copy)]
pub(crate) enum Line {
    Frames,
    Promises,
}

impl Want {
    fn line(self) -> Line {
        match self {
            Want::Frame => Line::Frames,
            Want::Promise(_) | Want::Change(..) => Line::Promises,
        }
    }

    fn frames(self) -> u32 {
        match self {
            Want::Frame => 1,
            Want::Promise(frames) | Want::Change(_, frames) => frames,
        }
    }
}

/// One who waits.
pub(crate) struct Node {
    pub(crate) want: Want,
    pub(crate) gfp: Gfp,
    pub(crate) caller: Caller,
    next: Cell<Option<NodeRef>>,
    prev: Cell<Option<NodeRef>>,
    queued: Cell<bool>,
    /// What was granted; valid once woken.
    grant: Plain,
    /// Taken by whoever wakes.
    thread: Cell<Option<Thread>>,
    woken: AtomicBool,
}

/// The address of a node that is queued, or granted and not yet woken: so it is alive.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) struct NodeRef(NonNull<Node>);

impl Deref for NodeRef {
    type Target = Node;
    fn deref(&self) -> &Node {
        // SAFETY: a `NodeRef` is kept in a list, or in a `Woken` up to the store of `woken`, and by no one
        // else; until then the waiter keeps the node where it is.
        unsafe { self.0.as_ref() }
    }
}

impl Node {
    /// A node of the current thread, not queued yet.
    pub(crate) fn new(want: Want, gfp: Gfp, caller: Caller) -> Node {
        Node {
            want,
            gfp,
            caller,
            next: Cell::new(None),
            prev: Cell::new(None),
            queued: Cell::new(false),
            grant: Plain::new(0),
            thread: Cell::new(None),
            woken: AtomicBool::new(false),
        }
    }

    pub(crate) fn is_entitled(&self) -> bool {
        self.caller.entitled.is_some()
    }

    /// The one behind; under the pool's lock.
    pub(crate) fn next(&self) -> Option<NodeRef> {
        self.next.get()
    }

    /// What was granted, once it was.
    pub(crate) fn granted(&self) -> Option<u32> {
        // Acquire: what whoever woke this did, the grant included, is seen.
        self.woken.load(Ordering::Acquire).then(|| self.grant.get())
    }

    /// Waits for the end of a wake-up that has begun.
    pub(crate) fn wait_woken(&self) -> u32 {
        loop {
            if let Some(grant) = self.granted() {
                return grant;
            }
            thread::yield_now();
            crate::sync::see_latest(&self.woken);
        }
    }
}

/// A list of nodes; lives under the pool's lock.
struct List {
    head: Option<NodeRef>,
    tail: Option<NodeRef>,
    len: u32,
}

impl List {
    const EMPTY: List = List { head: None, tail: None, len: 0 };

    fn insert_behind(&mut self, before: Option<NodeRef>, node: NodeRef) {
        let after = match before {
            Some(before) => before.next.replace(Some(node)),
            None => self.head.replace(node),
        };
        node.prev.set(before);
        node.next.set(after);
        match after {
            Some(after) => after.prev.set(Some(node)),
            None => self.tail = Some(node),
        }
        node.queued.set(true);
        self.len += 1;
    }

    fn remove(&mut self, node: NodeRef) {
        let (prev, next) = (node.prev.take(), node.next.take());
        match prev {
            Some(prev) => prev.next.set(next),
            None => self.head = next,
        }
        match next {
            Some(next) => next.prev.set(prev),
            None => self.tail = prev,
        }
        node.queued.set(false);
        self.len -= 1;
    }
}

/// Who waits, and which of them are held back from reclaiming meanwhile.
pub(crate) struct WaitQueue {
    /// In the two lines together.
    all: u32,
    lines: [List; 2],
    /// Frames that they want together.
    wanted: u64,
    throttled: List,
}

// SAFETY: the nodes are reached under the pool's lock only, as said above.
unsafe impl Send for WaitQueue {}

impl WaitQueue {
    pub(crate) const fn new() -> WaitQueue {
        WaitQueue { all: 0, lines: [List::EMPTY; 2], wanted: 0, throttled: List::EMPTY }
    }

    /// Nobody waits; then nobody is throttled either, who waits too.
    #[inline]
    pub(crate) fn is_empty(&self) -> bool {
        self.all == 0
    }

    pub(crate) fn len(&self, line: Line) -> u32 {
        self.lines[line as usize].len
    }

    pub(crate) fn first(&self, line: Line) -> Option<NodeRef> {
        self.lines[line as usize].head
    }

    /// Frames that all who wait want together.
    pub(crate) fn wanted(&self) -> u64 {
        self.wanted
    }

    /// Whether a promise to this caller would overtake somebody of its rank.
    pub(crate) fn is_behind(&self, caller: Caller) -> bool {
        let last = self.lines[Line::Promises as usize].tail;
        caller.entitled.is_none() && last.is_some_and(|last| !last.is_entitled())
    }

    /// Queues a node behind all of its rank in its line.
    ///
    /// # Safety
    /// The node stays where it is, and alive, until [`WaitQueue::leave`] returned true for it or it is
    /// woken. It is queued nowhere. The current thread is the one that waits.
    pub(crate) unsafe fn join(&mut self, node: &Node) {
        let line = &mut self.lines[node.want.line() as usize];
        let mut before = line.tail;
        while let Some(other) = before
            && node.is_entitled()
            && !other.is_entitled()
        {
            before = other.prev.get();
        }
        node.thread.set(Some(thread::current()));
        line.insert_behind(before, NodeRef(NonNull::from(node)));
        self.all += 1;
        self.wanted += u64::from(node.want.frames());
    }

    fn remove(&mut self, node: NodeRef) {
        self.lines[node.want.line() as usize].remove(node);
        self.all -= 1;
        self.wanted -= u64::from(node.want.frames());
    }

    /// Takes a node off; false if it was granted what it wants already, and is woken or about to be.
    pub(crate) fn leave(&mut self, node: &Node) -> bool {
        let queued = node.queued.get();
        if queued {
            self.remove(NodeRef(NonNull::from(node)));
        }
        queued
    }

    /// Grants what a waiter wants. It learns of it when `woken` wakes.
    pub(crate) fn grant(&mut self, node: NodeRef, grant: u32, woken: &mut Woken) {
        self.remove(node);
        node.grant.set(grant);
        woken.add(node);
    }

    /// As [`WaitQueue::join`], for one that waits already and may not reclaim for now.
    ///
    /// # Safety
    /// As there, with [`WaitQueue::leave_throttle`].
    pub(crate) unsafe fn join_throttle(&mut self, node: &Node) {
        node.thread.set(Some(thread::current()));
        self.throttled.insert_behind(self.throttled.tail, NodeRef(NonNull::from(node)));
    }

    /// As [`WaitQueue::leave`] for the throttled.
    pub(crate) fn leave_throttle(&mut self, node: &Node) -> bool {
        let queued = node.queued.get();
        if queued {
            self.throttled.remove(NodeRef(NonNull::from(node)));
        }
        queued
    }

    /// Lets all who are throttled go on.
    pub(crate) fn end_throttle(&mut self, woken: &mut Woken) {
        while let Some(node) = self.throttled.head {
            self.throttled.remove(node);
            woken.add(node);
        }
    }
}

/// Waiters that were taken off the queue under the lock and are to be woken outside of it.
#[must_use = "those who were served have to be woken, after the lock was given back"]
pub(crate) struct Woken {
    first: Option<NodeRef>,
    last: Option<NodeRef>,
}

impl Woken {
    #[inline]
    pub(crate) fn none() -> Woken {
        Woken { first: None, last: None }
    }

    fn add(&mut self, node: NodeRef) {
        match self.last.replace(node) {
            Some(last) => last.next.set(Some(node)),
            None => self.first = Some(node),
        }
    }

    /// Wakes them, in the order in which they were served.
    #[inline]
    pub(crate) fn wake(self) {
        if self.first.is_some() {
            self.wake_some();
        }
    }

    #[cold]
    fn wake_some(self) {
        let mut next = self.first;
        while let Some(node) = next {
            next = node.next.take();
            let thread = node.thread.take();
            // Release: the grant and what led to it. The node may be gone from here on.
            node.woken.store(true, Ordering::Release);
            if let Some(thread) = thread {
                thread.unpark();
            }
        }
    }
}

#[cfg(all(test, loom))]
mod loom_tests;
