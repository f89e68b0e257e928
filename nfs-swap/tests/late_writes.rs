//! Goal: the client says of which requests a copy may still be carried out, and when none can any more.
//! Method: a server that puts a WRITE aside and carries it out after the newer one that came over the next
//! connection, as was seen of a real one when the source port had changed; it remembers no replies, as it
//! would not know the port. Restarts with and without a new verifier and a lost connection.

mod common;

use common::{World, config, fill, holds};
use netswap_net::Disconnect;
use netswap_nfs::NfsServerConfig;
use netswap_reserve::Span;
use netswap_swap::{Completion, Op, StoreError, SwapBackend};

fn world(seed: u64, pinned_verifier: bool) -> World {
    let server =
        NfsServerConfig { seed, held: 4, remembered: 0, pinned_verifier, ..Default::default() };
    let mut w = World::new(config(), server, seed);
    w.start();
    w
}

/// Writes `version` to slot 5; its first copy is put aside for a minute, and the connection is lost.
fn write_twice(w: &mut World, version: u32) -> Completion {
    w.server.hold_next_write(w.now + Span::from_secs(60));
    let mut page = w.pages(1);
    fill(&mut page[0], 5, version);
    w.submit(1, Op::Write, 5, page);
    let held = w.server.fault_counts().held;
    w.run(1000, |w| w.server.fault_counts().held > held);
    w.cut(Disconnect::Reset);
    let mut end = None;
    w.run(1000, |w| {
        end = w.client.poll_completion(w.now);
        end.is_some()
    });
    end.unwrap()
}

fn write(w: &mut World, slot: u32, version: u32) -> Completion {
    let mut page = w.pages(1);
    fill(&mut page[0], slot, version);
    w.one(Op::Write, slot, page)
}

fn read(w: &mut World, slot: u32) -> Completion {
    let page = w.pages(1);
    w.one(Op::Read, slot, page)
}

#[test]
fn an_old_write_after_a_newer_one_damages_a_slot_that_was_used_again_and_no_other() {
    let mut w = world(1, false);
    let end = write_twice(&mut w, 1);
    assert!(end.outcome.unwrap().replayed && end.is_loose);
    // Who does not listen uses the slot again; who does takes another.
    assert!(write(&mut w, 5, 2).outcome.is_ok());
    assert!(write(&mut w, 6, 2).outcome.is_ok());
    assert!(holds(&read(&mut w, 5).pages[0], 5, 2));
    w.run(1000, |w| w.server.fault_counts().held_done == 1);
    assert!(holds(&read(&mut w, 5).pages[0], 5, 1), "the old page is back");
    assert!(holds(&read(&mut w, 6).pages[0], 6, 2));
    assert_eq!(w.client.fences(), 0);
}

#[test]
fn a_proven_restart_ends_it_without_a_write_of_ours() {
    let mut w = world(2, false);
    assert!(write_twice(&mut w, 1).is_loose);
    assert_eq!(w.client.fences(), 0);
    w.server.restart(w.now);
    // The client asks by itself.
    w.run(1000, |w| w.client.fences() == 1);
    assert!(write(&mut w, 5, 2).outcome.is_ok());
    w.now += Span::from_secs(100);
    assert!(holds(&read(&mut w, 5).pages[0], 5, 2));
    assert_eq!(w.server.fault_counts().held_done, 0, "the restarted server has forgotten it");
}

#[test]
fn a_restart_before_the_repetition_makes_it_harmless_from_the_start() {
    let mut w = world(3, false);
    w.server.hold_next_write(w.now + Span::from_secs(60));
    let page = w.pages(1);
    w.submit(1, Op::Write, 5, page);
    w.run(1000, |w| w.server.fault_counts().held == 1);
    w.server.restart(w.now);
    let mut end = None;
    w.run(1000, |w| {
        end = w.client.poll_completion(w.now);
        end.is_some()
    });
    let end = end.unwrap();
    assert!(!end.is_loose && !end.outcome.unwrap().replayed);
    assert_eq!(w.client.stats().retransmissions, 1);
}

#[test]
fn neither_a_verifier_without_a_lost_connection_nor_the_reverse_proves_a_restart() {
    let mut w = world(4, false);
    assert!(write_twice(&mut w, 1).is_loose);
    w.server.forget_uncommitted();
    assert!(write(&mut w, 6, 1).outcome.is_ok());
    assert_eq!((w.client.stats().verifier_changes, w.client.fences()), (1, 0));
    w.cut(Disconnect::Reset);
    assert!(write(&mut w, 6, 2).outcome.is_ok());
    assert_eq!(w.client.fences(), 0);
    let mut w = world(5, true);
    assert!(write_twice(&mut w, 1).is_loose);
    w.server.restart(w.now);
    assert!(write(&mut w, 6, 1).outcome.is_ok());
    assert_eq!(w.client.fences(), 0);
}

#[test]
fn a_write_that_is_given_up_without_an_answer_is_loose() {
    let mut w = world(6, false);
    w.server.hold_next_write(w.now + Span::from_secs(60));
    let page = w.pages(1);
    w.submit(1, Op::Write, 5, page);
    w.run(1000, |w| w.server.fault_counts().held == 1);
    w.client.shutdown(w.now);
    let end = w.client.poll_completion(w.now).unwrap();
    assert_eq!((end.outcome, end.is_loose), (Err(StoreError::Cancelled), true));
    let mut w = world(7, false);
    let end = write(&mut w, 9, 1);
    assert!(!end.is_loose);
}
