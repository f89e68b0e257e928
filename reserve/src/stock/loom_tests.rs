//! The protocol of stocks, under every order that the memory model allows. The model: one lock with a
//! list of free frames and the flag that says whether somebody drains, as `Inner` has them; one stock; frame
//! 1 is in the stock at first, frame 2 on the list.
//!
//! What would be wrong is found in two ways: loom stops where two threads may touch a stock at once, and
//! each frame must be in one place at the end.

use loom::sync::Arc;
use loom::thread;

use super::*;
use crate::lock::SpinLock;

struct Model {
    door: Door,
    stock: Stock,
    shared: SpinLock<Shared>,
}

struct Shared {
    list: Vec<u32>,
    draining: bool,
}

impl Model {
    fn new() -> Arc<Model> {
        let stock = Stock::new();
        stock.push_any(1);
        let shared = SpinLock::new(Shared { list: vec![2], draining: false });
        Arc::new(Model { door: Door::new(true, true), stock, shared })
    }

    /// As `magazine::drain`: the lock of the registry is not modelled, so one thread drains.
    fn drain(&self, reopen: bool) {
        {
            let mut shared = self.shared.lock();
            shared.draining = true;
            self.door.set(false);
        }
        self.door.barrier();
        self.stock.wait_idle();
        self.shared.lock().list.extend(self.stock.empty());
        let mut shared = self.shared.lock();
        shared.draining = false;
        if reopen {
            self.door.set(true);
        }
    }

    /// As the owner does when it frees: the quick way, else the list, and the stock with it unless
    /// somebody drains.
    fn put(&self, frame: u32) {
        if self.stock.push(&self.door, STOCK_MAX as u32, frame) {
            return;
        }
        let section = self.stock.enter();
        let mut shared = self.shared.lock();
        if !shared.draining {
            while let Some(frame) = section.pop() {
                shared.list.push(frame);
            }
        }
        shared.list.push(frame);
        drop(shared);
        drop(section);
    }

    /// As the owner does when it allocates.
    fn take(&self) -> Option<u32> {
        self.stock.pop(&self.door).or_else(|| self.shared.lock().list.pop())
    }

    fn frames(&self) -> Vec<u32> {
        let mut all: Vec<u32> = self.stock.empty().collect();
        all.extend(&self.shared.lock().list);
        all.sort_unstable();
        all
    }
}

/// Runs `owner` beside a drain, then `check`.
fn beside_a_drain(reopen: bool, owner: fn(&Model), check: fn(&Model)) {
    crate::sync::model(move || {
        let model = Model::new();
        let owner = {
            let model = model.clone();
            thread::spawn(move || owner(&model))
        };
        model.drain(reopen);
        owner.join().unwrap();
        check(&model);
    });
}

/// As an owner that takes a frame out, if there is one, and puts it back.
fn take_and_put(model: &Model) {
    if let Some(frame) = model.take() {
        model.put(frame);
    }
}

/// Every outcome keeps each frame once, and after a drain that leaves the door closed nothing is in the
/// stock.
#[test]
fn loom_an_owner_and_a_drainer() {
    beside_a_drain(false, take_and_put, |model| {
        assert_eq!(model.stock.len_hint(), 0, "hidden from who waits");
        assert_eq!(model.frames(), [1, 2]);
    });
}

/// The door opens again while the owner goes on.
#[test]
fn loom_an_owner_and_a_drainer_that_opens_the_door_again() {
    beside_a_drain(true, take_and_put, |model| assert_eq!(model.frames(), [1, 2]));
}

/// The quick way of [`Stock::pop`], but with `announced` after the owner has said that it is busy, and
/// the order `end` when it says that it is not any more.
fn careless_pop(model: &Model, announced: fn(), end: Ordering) {
    model.stock.busy.store(true, Ordering::Relaxed);
    announced();
    if model.door.state.load(Ordering::Acquire) != CLOSED {
        model.stock.pop_any();
    }
    model.stock.busy.store(false, end);
}

/// The canary: an owner that does not fence between saying that it is busy and looking at the door. Loom
/// has to find the order in which both go in.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_finds_a_missing_fence() {
    let owner = |model: &Model| careless_pop(model, || {}, Ordering::Release);
    beside_a_drain(false, owner, |_| {});
}

/// Another canary: a section that ends without a release.
#[test]
#[should_panic(expected = "Causality violation")]
fn loom_finds_a_section_that_is_not_released() {
    let owner = |model: &Model| careless_pop(model, || fence(Ordering::SeqCst), Ordering::Relaxed);
    beside_a_drain(false, owner, |_| {});
}
