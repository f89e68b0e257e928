//! Goal: transactions of simulated tasks get memory that must not fail in either way, and each way is what it
//! says: reservations are made in order of arrival by tasks that hold nothing; a loop keeps what it has.
//! Method: a small machine over a store in memory, driven until it is done or nothing runs any more.

use netswap_reserve::{Frame, Gfp, PagePool, PoolConfig, Time};
use netswap_swap::machine::{
    Linear, Machine, MachineConfig, MachineEvent, Nothing, OpenTransaction, TaskState, Transacting,
    TransactionConfig, TransactionWait, Way,
};
use netswap_swap::*;

const FRAMES: u32 = 256;
const TASKS: u32 = 8;
const MAPPED: u32 = 60;

struct World {
    pool: PagePool,
    pager: Pager<MemBackend>,
    machine: Machine,
    now: Time,
    /// Whose transactions ended, in order.
    ended: Vec<u32>,
}

impl World {
    /// Tasks that map twice the memory, and take `pages` of it after each `every` accesses.
    fn new(way: Way, pages: u32, every: u32) -> World {
        let pool = PagePool::new(PoolConfig { magazine: 0, ..PoolConfig::new(FRAMES) });
        let mut pager = Pager::new(pool.clone(), PagerConfig::new(TASKS, TASKS * MAPPED));
        pager.add_area(Time::ZERO, MemBackend::formatted(1024), AreaOptions::new("a"));
        let transactions = Some(TransactionConfig::new(pages, way));
        let mut machine = Machine::new(MachineConfig { transactions, ..MachineConfig::default() });
        while pager.poll(Time::ZERO, machine.tables()).is_some() {}
        for _ in 0..TASKS {
            let range = pager.map_anonymous(MAPPED);
            let program = Transacting::new(Box::new(Linear::new(MAPPED, 1, 0)), every);
            machine.spawn(Box::new(program), range, false);
        }
        World { pool, pager, machine, now: Time::ZERO, ended: Vec::new() }
    }

    /// Carries out what is due, and moves on to the next instant. Whether a task ran.
    fn step(&mut self) -> bool {
        while let Some(event) = self.pager.poll(self.now, self.machine.tables()) {
            self.machine.handle_pager_event(self.now, &event);
        }
        let ran = self.machine.poll(self.now, &mut self.pager, &mut Nothing);
        while let Some(event) = self.machine.poll_event() {
            match event {
                MachineEvent::Transacted(task) => self.ended.push(task.0),
                MachineEvent::FaultServed { .. } | MachineEvent::Finished(_) => {}
                other => panic!("{other:?}"),
            }
        }
        while let Some(event) = self.pager.poll(self.now, self.machine.tables()) {
            self.machine.handle_pager_event(self.now, &event);
        }
        let next = [self.pager.poll_deadline(), self.machine.poll_deadline()];
        self.now = next.into_iter().flatten().min().unwrap_or(self.now);
        ran
    }

    /// Until it is done, or no task ran for `STILL` instants. Whether it is done.
    fn run(&mut self) -> bool {
        const STILL: u32 = 1000;
        let mut still = 0;
        while !self.machine.is_done() && still < STILL {
            still = if self.step() { 0 } else { still + 1 };
        }
        self.machine.is_done()
    }

    fn open(&self) -> Vec<OpenTransaction> {
        let mut open = Vec::new();
        self.machine.visit_transactions(&mut |transaction| open.push(transaction));
        open
    }
}

#[test]
fn all_transactions_end_with_reservations_and_give_everything_back() {
    let mut world = World::new(Way::Reserve, 48, 8);
    assert!(world.run());
    let stats = world.machine.stats();
    assert_eq!(stats.transactions, u64::from(TASKS * (2 * MAPPED / 8)));
    assert_eq!(stats.pages_wrong, 0);
    assert!(stats.pages_verified >= stats.transactions * 48 + u64::from(TASKS * MAPPED));
    assert_eq!(world.pool.reservation_stats().frames, 0);
    assert!(world.open().is_empty());
    let resident = world.pager.resident_pages() + world.pager.writeback_pages();
    assert_eq!(world.pool.free_frames() + resident, FRAMES);
}

#[test]
fn loops_that_need_more_than_there_is_hold_it_and_wait() {
    let mut world = World::new(Way::Loop, 48, 8);
    assert!(!world.run(), "8 times 48 pages of {FRAMES}");
    let open = world.open();
    let held: u32 = open.iter().map(|transaction| transaction.held).sum();
    assert_eq!(held + world.pool.free_frames(), FRAMES, "nothing is left to reclaim");
    assert_eq!(world.pool.free_frames(), world.pool.watermarks().min);
    for transaction in open {
        assert!(transaction.held < transaction.pages && !transaction.is_reserved);
        let waits = TaskState::Transacting(TransactionWait::Page);
        assert_eq!(*world.machine.state(transaction.task), waits);
    }
    // Canary: with memory for all of them the same loops end.
    assert!(World::new(Way::Loop, 16, 8).run());
}

#[test]
fn reservations_are_made_in_order_of_arrival() {
    let mut world = World::new(Way::Reserve, 48, 1);
    // All that ordinary allocations can have but enough for one access of each task.
    let above = world.pool.free_frames() - world.pool.watermarks().min;
    let mut others: Vec<Frame> =
        (TASKS..above).map(|_| world.pool.alloc(Gfp::KERNEL).unwrap()).collect();
    let waits = TaskState::Transacting(TransactionWait::Reservation);
    while (0..TASKS).any(|task| *world.machine.state(TaskId(task)) != waits) {
        world.step();
    }
    assert!(world.open().is_empty() && world.ended.is_empty(), "nobody holds anything");
    // A frame at a time: whoever wants as much is not overtaken.
    while world.ended.len() < TASKS as usize {
        others.pop();
        world.step();
    }
    let mut first = world.ended[..TASKS as usize].to_vec();
    first.dedup();
    assert_eq!(first, (0..TASKS).collect::<Vec<_>>());
}

#[test]
#[should_panic(expected = "transactions of 1000 pages: cannot ever reserve")]
fn what_could_never_be_promised_is_not_waited_for() {
    World::new(Way::Reserve, 1000, 8).run();
}
