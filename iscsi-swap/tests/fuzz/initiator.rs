//! What happens to the initiator that swaps, and to a listing.

use netswap_iscsi::discovery::{TEXT_BYTES_MAX, UNITS_MAX};
use netswap_iscsi::{DiscoveryConfig, DiscoveryEvent, IscsiBackend, IscsiDiscovery};
use netswap_net::Session;
use netswap_reserve::{Gfp, PagePool, PoolConfig, Span, Time};
use netswap_swap::{
    BackendState, Discard, Op, PageVec, Request, RequestId, Run, Slot, SwapBackend,
};

use super::shared::{Input, OPERATIONS_MAX};
use super::wire::{MEETINGS, Wire};
use super::{initiator_config, target_config};

/// The id of the discard there may be.
const DISCARD: RequestId = RequestId(99);

/// Any bytes as what happens to an initiator. Gives whether it was ready once.
pub fn initiator(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let pool = PagePool::new(PoolConfig::new(64));
    let free = pool.free_frames();
    let flags: [u8; 3] = input.array();
    let mut backend = IscsiBackend::new(initiator_config(flags));
    let mut wire = Wire::new(target_config(flags));
    let is_stranger = flags[0] & 5 == 5;
    let mut outstanding = [0usize; 8];
    let mut discards = 0;
    let mut was_ready = false;
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = input.operation() else { break };
        wire.turn(&mut backend);
        let operation = operation % (MEETINGS + 4);
        if !wire.meet(operation, &mut input, &mut backend) {
            let (slot, shape) = (input.byte(), input.byte());
            let Some(id) = outstanding.iter().position(|pages| *pages == 0) else { continue };
            let n = 1 + usize::from(shape % 8);
            let pages: PageVec = (0..n).map_while(|_| pool.alloc(Gfp::KERNEL).ok()).collect();
            let Some(last) = pages.len().checked_sub(1) else { continue };
            let op = if operation & 1 == 0 { Op::Read } else { Op::Write };
            if shape & 0x70 == 0x70 {
                let slots = u32::from(shape & 7);
                let runs = [(slot, 1 + slots), (slot / 2 + 40, 1)]
                    .map(|(first, slots)| Run { first: Slot(u32::from(first % 80)), slots });
                let discard =
                    Discard { id: DISCARD, runs: runs.into_iter().collect(), deadline: None };
                discards += u32::from(backend.discard(wire.now, discard).is_ok());
                continue;
            }
            let deadline = (shape & 0x80 > 0).then(|| wire.now + Span::from_secs(30));
            let (id, first) = (RequestId(id as u32), Slot(u32::from(slot % 20)));
            if backend.submit(wire.now, Request { id, op, first, pages, deadline }).is_ok() {
                outstanding[id.0 as usize] = last + 1;
            }
        }
        wire.turn(&mut backend);
        ended(&mut backend, wire.now, &mut outstanding, &mut discards);
        was_ready |= matches!(backend.state(), BackendState::Ready { .. });
    }
    // A target that proves nothing is never used, whatever it says.
    let unproven = is_stranger && flags[0] & 2 > 0;
    assert!(!(unproven && was_ready), "ready, though the target did not prove itself");
    backend.shutdown(wire.now);
    ended(&mut backend, wire.now, &mut outstanding, &mut discards);
    assert_eq!(discards, 0, "a discard that never came back");
    assert_eq!(outstanding, [0; 8], "requests that never came back");
    assert_eq!(pool.free_frames(), free, "pages were kept");
    let state = backend.state();
    assert!(matches!(state, BackendState::Stopped | BackendState::Failed(_)), "{state:?}");
    was_ready
}

fn ended(backend: &mut IscsiBackend, now: Time, outstanding: &mut [usize; 8], discards: &mut u32) {
    while let Some(end) = backend.poll_completion(now) {
        if end.id == DISCARD {
            assert!(*discards == 1 && end.pages.is_empty(), "a discard that came back twice");
            *discards = 0;
            continue;
        }
        let pages = std::mem::take(&mut outstanding[end.id.0 as usize]);
        assert!(pages > 0, "a request that came back twice");
        assert_eq!(end.pages.len(), pages, "pages were lost");
    }
}

/// A listing set up by three bytes: as an initiator, and whether it is of a target.
pub fn discovery_config(flags: [u8; 3]) -> DiscoveryConfig {
    let model = initiator_config(flags);
    let target = (flags[2] & 1 > 0).then_some(super::IQN);
    let mut config = DiscoveryConfig::new(model.portal, target);
    config.chap = model.chap;
    config.header_digest = model.header_digest;
    config.data_digest = model.data_digest;
    config
}

/// Any bytes as what happens to a listing. Gives whether it found anything.
pub fn discovery(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let flags: [u8; 3] = input.array();
    let mut listing = IscsiDiscovery::new(discovery_config(flags), Time::ZERO);
    let mut wire = Wire::new(target_config(flags));
    let (mut found, mut over) = (0, None);
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = input.operation() else { break };
        wire.turn(&mut listing);
        wire.meet(operation % MEETINGS, &mut input, &mut listing);
        wire.turn(&mut listing);
        events(&mut listing, &mut found, &mut over);
    }
    // Nobody answers any more: then it ends by itself.
    for _ in 0..OPERATIONS_MAX {
        let Some(at) = listing.poll_deadline() else { break };
        wire.now = wire.now.max(at);
        wire.turn(&mut listing);
        events(&mut listing, &mut found, &mut over);
    }
    assert!(over.is_some(), "a listing without end");
    let proven = flags[0] & 7 != 7;
    assert!(proven || found == 0, "a list of a target that did not prove itself");
    found > 0
}

type End = Result<(), netswap_iscsi::DiscoveryError>;

fn events(listing: &mut IscsiDiscovery, found: &mut usize, over: &mut Option<End>) {
    while let Some(event) = listing.poll_event() {
        assert!(over.is_none(), "an event behind the end");
        match event {
            DiscoveryEvent::Target { name } => {
                assert!((1..=223).contains(&name.len()));
                *found += 1;
            }
            DiscoveryEvent::Portal { address, .. } => assert!(address.len() < TEXT_BYTES_MAX),
            DiscoveryEvent::Unit(unit) => {
                assert!(unit.lun < 1 << 14);
                *found += 1;
            }
            DiscoveryEvent::End(end) => *over = Some(end),
        }
        assert!(*found <= UNITS_MAX.max(TEXT_BYTES_MAX / 12), "more than fits");
    }
}
