//! Goal: the loop sleeps until there is something to do, and then wakes: for a session's deadline, for
//! another thread, for a session that was made ready; never early, and never in a busy loop.
//! Method: sessions without traffic, and the count of waits.

mod common;

use std::sync::mpsc;
use std::thread;

use common::kernel::Real;
use netswap_net::kernel::{Clock, ConnConfig, KernelConfig, KernelNet};
use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_reserve::{Span, Time};

/// Has deadlines and nothing else.
struct Alarm {
    at: Option<Time>,
    every: Span,
    rung: Vec<Time>,
}

impl Session for Alarm {
    fn handle_connected(&mut self, _: Time) {}
    fn handle_disconnected(&mut self, _: Time, _: Disconnect) {}
    fn recv_buffer(&mut self) -> &mut [u8] {
        &mut []
    }
    fn handle_received(&mut self, _: Time, _: usize) {}
    fn poll_send<'a>(&'a mut self, _: Time, _: &mut SendVec<'a>) {}
    fn handle_sent(&mut self, _: Time, _: usize) {}
    fn poll_action(&mut self, _: Time) -> Option<Action> {
        None
    }
    fn poll_deadline(&self) -> Option<Time> {
        self.at
    }
    fn handle_deadline(&mut self, now: Time) {
        if let Some(at) = self.at.filter(|at| *at <= now) {
            self.rung.push(now);
            assert!(now >= at, "early");
            self.at = (self.rung.len() < 5).then_some(now + self.every);
        }
    }
}

#[test]
fn deadlines_wake_the_loop_in_time_and_nothing_else_does() {
    let clock = Clock::new();
    let mut net = KernelNet::new(KernelConfig::new(2)).unwrap();
    let ids = [(); 2].map(|()| net.add_conn(ConnConfig::default()).unwrap());
    let mut alarms = [3, 20].map(|ms| Alarm {
        at: Some(Time::ZERO),
        every: Span::from_millis(ms),
        rung: vec![],
    });
    while alarms.iter().any(|alarm| alarm.at.is_some()) {
        net.wait(clock.now(), None).unwrap();
        let now = clock.now();
        while let Some(id) = net.next_ready(now) {
            let i = ids.iter().position(|other| *other == id).unwrap();
            net.drive(now, id, &mut alarms[i]);
        }
    }
    for alarm in &alarms {
        assert_eq!(alarm.rung.len(), 5);
        assert!(alarm.rung.windows(2).all(|pair| pair[1].since(pair[0]) >= alarm.every));
    }
    // Ten alarms; a wait may be for a deadline that has moved since.
    assert!(net.stats().wait_calls <= 20, "{:?}", net.stats());
    assert_eq!(net.poll_deadline(), None);
}

#[test]
fn a_limit_ends_the_wait_of_an_idle_loop() {
    let clock = Clock::new();
    let mut net = KernelNet::new(KernelConfig::new(1)).unwrap();
    let until = clock.now() + Span::from_millis(5);
    let woken = net.wait(clock.now(), Some(until)).unwrap();
    assert!(!woken.by_waker && clock.now() >= until);
    assert_eq!(net.next_ready(clock.now()), None);
}

#[test]
fn another_thread_wakes_the_loop_and_no_wake_is_lost() {
    const ROUNDS: u32 = 2000;
    let clock = Clock::new();
    let mut net = KernelNet::new(KernelConfig::new(1)).unwrap();
    let waker = net.waker();
    let (to_thread, orders) = mpsc::channel();
    let (answers, from_thread) = mpsc::channel();
    let thread = thread::spawn(move || {
        for round in orders {
            answers.send(round).unwrap();
            waker.wake();
        }
    });
    for round in 0..ROUNDS {
        to_thread.send(round).unwrap();
        // Without a limit: a wake that is lost hangs here.
        loop {
            let woken = net.wait(clock.now(), None).unwrap();
            assert!(woken.by_waker);
            if let Ok(answer) = from_thread.try_recv() {
                assert_eq!(answer, round);
                break;
            }
        }
    }
    drop(to_thread);
    thread.join().unwrap();
    assert!(net.stats().wakes >= u64::from(ROUNDS));
    // A wake before the wait counts too.
    net.waker().wake();
    assert!(net.wait(clock.now(), None).unwrap().by_waker);
}

#[test]
fn an_idle_connection_costs_no_call() {
    let mut real = Real::new("127.0.0.1", 1, 1, 10_000);
    real.run(|real| real.all_done());
    let before = real.net.stats();
    real.patience = Span::from_millis(30);
    while real.turn() {}
    let after = real.net.stats();
    assert!(after.wait_calls - before.wait_calls <= 3, "{before:?} {after:?}");
}

#[test]
fn a_session_that_is_made_ready_is_driven_at_once() {
    let mut real = Real::new("127.0.0.1", 1, 1, 1000);
    real.run(|real| real.all_done());
    real.clients[0].total += 1000;
    real.net.make_ready(real.client(0));
    real.run(|real| real.all_done());
    assert_eq!(real.clients[0].wrong, 0);
}
