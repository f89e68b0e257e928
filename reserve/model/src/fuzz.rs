//! Operations as bytes: four for the pool, then four for each operation. Any bytes mean something, so a
//! fuzzer wastes nothing, and a byte changed changes one thing.
//!
//! A recorded trace becomes such bytes too: where the search starts. The pool of a trace is large and a
//! fuzzer's is small, so what comes out is the pattern of the trace (who asks, in what order, what is
//! given back), not its outcomes.

use std::collections::HashMap;
use std::io::Read;

use netswap_reserve::trace::{self, TraceError, TraceOp, TraceReader};
use netswap_reserve::{PAGE_SIZE, PoolConfig};

use crate::model::Planted;
use crate::op::{Op, Who};
use crate::world::{World, config};

/// Bytes of the pool, and of an operation.
pub const UNIT: usize = 4;

/// Operations that are looked at; more make an input slow and no richer. Picked by eye.
pub const OPS_MAX: usize = 1024;

/// Operations between two comparisons of everything; the free count is compared after each. Picked by eye.
const CHECK_EVERY: usize = 16;

/// What one more is of bytes charged: no part of a page, so that charges are rounded up. Up to six pages.
const BYTES_STEP: usize = PAGE_SIZE / 41;

/// Runs any bytes as operations against a pool and its model.
///
/// # Panics
/// When they do not agree: that is what a fuzzer looks for.
pub fn run(bytes: &[u8], planted: Option<Planted>) {
    let (config, ops) = decode(bytes);
    let mut world = World::with(config);
    world.model.planted = planted;
    for (i, op) in ops.take(OPS_MAX).enumerate() {
        world.step(op);
        assert_eq!(world.pool.free_frames(), world.model.free());
        if i % CHECK_EVERY == 0 {
            world.check();
        }
    }
    world.check();
    world.finish();
}

/// The pool and the operations that bytes stand for; an operation that is cut is none.
pub fn decode(bytes: &[u8]) -> (PoolConfig, impl Iterator<Item = Op> + '_) {
    let (first, rest) = bytes.split_at(bytes.len().min(UNIT));
    let mut unit = [80, 10, 6, 0];
    unit[..first.len()].copy_from_slice(first);
    let [frames, headroom, low_gap, off] = unit;
    let config = PoolConfig {
        headroom: (headroom % 32).into(),
        low_gap: (low_gap % 16).into(),
        // One in sixteen each: a pool without is hardly ever what is wanted.
        reserve: off & 0x0f != 0x0f,
        scope: off & 0xf0 != 0xf0,
        ..PoolConfig { frames: u32::from(frames) + 16, ..config() }
    };
    (config, rest.chunks_exact(UNIT).map(|unit| op([unit[0], unit[1], unit[2], unit[3]])))
}

/// The operation that four bytes stand for.
fn op([code, a, b, c]: [u8; UNIT]) -> Op {
    let wide = usize::from(u16::from_le_bytes([a, b]));
    let node = usize::from(a);
    match code % 32 {
        // The last two would be no operation.
        0..=5 | 30.. => Op::Alloc(a, who(b)),
        6 => Op::Burst(a, b.into(), c % 48),
        7 | 8 => Op::Free(wide),
        9 => Op::FreeBurst(wide, c % 48),
        10 => Op::Park(wide),
        11 => Op::Unpark(wide),
        12 => Op::Share(wide),
        13 => Op::Clone(wide),
        14 => Op::Unshare(wide),
        15 => Op::Add(node, b.into()),
        16 => Op::Connect(node),
        17 => Op::Disconnect(node),
        18 => Op::Resize(node, b.into()),
        19 => Op::Charge(node, b.into()),
        20 => Op::Uncharge(wide),
        21 => Op::SetAside(a.into()),
        22 => Op::FreeRun(wide),
        23 => Op::Exchange(wide, c),
        24 => Op::ChargeBytes(node, usize::from(b) * BYTES_STEP),
        25 => Op::ChargeObjects(node, b.into()),
        26 => Op::Reserve(a.into(), who(b)),
        27 => Op::Draw(wide, (c % 4 > 0).then_some(usize::from(c / 4))),
        28 => Op::Split(wide, c.into()),
        _ => Op::EndReservation(wide),
    }
}

fn who(byte: u8) -> Who {
    match byte % 4 {
        0 | 1 => Who::Nobody,
        2 => Who::Scope(usize::from(byte / 4)),
        _ => Who::Call(usize::from(byte / 4)),
    }
}

fn byte_of(who: Who) -> u8 {
    match who {
        Who::Nobody => 0,
        Who::Scope(node) => 2 + 4 * node as u8,
        Who::Call(node) => 3 + 4 * node as u8,
    }
}

/// The four bytes of an operation: [`decode`] gives the same one again, where numbers fit their bytes.
fn bytes_of(op: Op) -> [u8; UNIT] {
    let wide = |code: u8, i: usize, c: u8| {
        let [a, b] = (i as u16).to_le_bytes();
        [code, a, b, c]
    };
    match op {
        Op::Alloc(gfp, who) => [0, gfp, byte_of(who), 0],
        Op::Burst(gfp, node, n) => [6, gfp, node as u8, n],
        Op::Free(i) => wide(7, i, 0),
        Op::FreeBurst(i, n) => wide(9, i, n),
        Op::Park(i) => wide(10, i, 0),
        Op::Unpark(i) => wide(11, i, 0),
        Op::Share(i) => wide(12, i, 0),
        Op::Clone(i) => wide(13, i, 0),
        Op::Unshare(i) => wide(14, i, 0),
        Op::Add(node, n) => [15, node as u8, n as u8, 0],
        Op::Connect(node) => [16, node as u8, 0, 0],
        Op::Disconnect(node) => [17, node as u8, 0, 0],
        Op::Resize(node, n) => [18, node as u8, n as u8, 0],
        Op::Charge(node, n) => [19, node as u8, n as u8, 0],
        Op::Uncharge(i) => wide(20, i, 0),
        Op::SetAside(n) => [21, n as u8, 0, 0],
        Op::FreeRun(i) => wide(22, i, 0),
        Op::Exchange(i, gfp) => wide(23, i, gfp),
        Op::ChargeBytes(node, bytes) => [24, node as u8, (bytes / BYTES_STEP) as u8, 0],
        Op::ChargeObjects(node, n) => [25, node as u8, n as u8, 0],
        Op::Reserve(n, who) => [26, n as u8, byte_of(who), 0],
        Op::Draw(i, scope) => wide(27, i, scope.map_or(0, |node| 1 + 4 * node as u8)),
        Op::Split(i, n) => wide(28, i, n as u8),
        Op::EndReservation(i) => wide(29, i, 0),
    }
}

/// Cuts a trace into inputs of about `ops` operations each, at most `inputs` of them, spread over the
/// trace. Each begins with the tree of the trace, scaled to a small pool that is then filled up.
///
/// # Errors
/// When the trace cannot be read.
pub fn seeds<R: Read>(
    trace: impl Fn() -> Result<R, TraceError>,
    ops: usize,
    inputs: usize,
) -> Result<Vec<Vec<u8>>, TraceError> {
    let mut total = 0usize;
    let mut nodes = Vec::new();
    let mut connected = Vec::new();
    for op in TraceReader::new(trace()?)? {
        total += 1;
        match op? {
            TraceOp::AddReserve { parent, own } => nodes.push((parent, own)),
            TraceOp::Connect { node, .. } => connected.push(node),
            _ => {}
        }
    }
    // Half of the pool of `config`, however large the plan of the trace is.
    let promised: u64 = nodes.iter().map(|&(_, own)| u64::from(own)).sum();
    let share = |own: u32| (u64::from(own) * 48 / promised.max(1)) as u32;
    let add = |&(parent, own): &(u16, u32)| Op::Add(parent.into(), share(own).max(own.min(1)));
    let mut tree: Vec<Op> = nodes.iter().map(add).collect();
    connected.dedup();
    tree.extend(connected.iter().take(nodes.len()).map(|&node| Op::Connect(node.into())));

    let every = (total / inputs.max(1)).max(ops).max(1);
    let mut seeds: Vec<Vec<u8>> = Vec::new();
    let mut seed: Option<Seed> = None;
    for (i, op) in TraceReader::new(trace()?)?.enumerate() {
        let op = op?;
        if i % every == 0 && seeds.len() < inputs {
            seed = Some(Seed::begin(&tree));
        }
        if let Some(at) = &mut seed {
            at.follow(op);
            if at.ops.len() >= at.prologue + ops {
                seeds.extend(seed.take().map(Seed::bytes));
            }
        }
    }
    seeds.extend(seed.take().map(Seed::bytes));
    Ok(seeds)
}

fn who_of(who: trace::Who) -> Who {
    match who {
        trace::Who::Nobody => Who::Nobody,
        trace::Who::Scope(node) => Who::Scope(node.into()),
        trace::Who::Call(node) => Who::Call(node.into()),
    }
}

/// An input in the making.
struct Seed {
    ops: Vec<Op>,
    /// Operations before the trace's own.
    prologue: usize,
    /// Frames of the trace that are out, in the order in which the world would hold them.
    out: Vec<u32>,
    places: HashMap<u32, usize>,
    charges: usize,
    runs: usize,
    reservations: usize,
}

impl Seed {
    fn begin(tree: &[Op]) -> Seed {
        let mut ops = tree.to_vec();
        ops.extend((0..96).map(|_| Op::Alloc(0, Who::Nobody)));
        let prologue = ops.len();
        Seed {
            ops,
            prologue,
            out: Vec::new(),
            places: HashMap::new(),
            charges: 0,
            runs: 0,
            reservations: 0,
        }
    }

    fn follow(&mut self, op: TraceOp) {
        let next = match op {
            TraceOp::Alloc { gfp, who, outcome, .. } => {
                if let Ok(taken) = outcome {
                    self.took(taken.frame);
                }
                Op::Alloc(gfp.bits(), who_of(who))
            }
            TraceOp::Free { frame, .. } => {
                // One that was taken before the input begins is any of those that fill the pool.
                let at = self.places.remove(&frame).unwrap_or(frame as usize);
                if self.out.get(at) == Some(&frame) {
                    self.out.swap_remove(at);
                    if let Some(&moved) = self.out.get(at) {
                        self.places.insert(moved, at);
                    }
                }
                Op::Free(at)
            }
            TraceOp::Exchange { frame, gfp, .. } => {
                Op::Exchange(self.places.get(&frame).copied().unwrap_or(frame as usize), gfp.bits())
            }
            TraceOp::AddReserve { .. }
            | TraceOp::CountObjects { .. }
            | TraceOp::Unreserve { frames: 0, .. }
            | TraceOp::Check { .. } => return,
            TraceOp::Connect { node, .. } => Op::Connect(node.into()),
            TraceOp::Disconnect { node, .. } => Op::Disconnect(node.into()),
            TraceOp::Resize { node, own, .. } => Op::Resize(node.into(), own % 32),
            TraceOp::Charge { node, frames, .. } => {
                self.charges += 1;
                Op::Charge(node.into(), frames % 16)
            }
            TraceOp::ChargeObjects { node, objects, .. } => {
                self.charges += 1;
                Op::ChargeObjects(node.into(), objects % 64)
            }
            TraceOp::Uncharge { .. } | TraceOp::UnchargeObjects { .. } => {
                Op::Uncharge(self.charges)
            }
            TraceOp::Reserve { who, frames, .. } => {
                self.reservations += 1;
                Op::Reserve(frames % 32, who_of(who))
            }
            TraceOp::Draw { frame, .. } => {
                self.took(frame);
                Op::Draw(self.reservations, None)
            }
            TraceOp::Unreserve { .. } => Op::EndReservation(self.reservations),
            TraceOp::SetAside { frames, .. } => {
                self.runs += 1;
                Op::SetAside(frames % 16)
            }
        };
        self.ops.push(next);
    }

    fn took(&mut self, frame: u32) {
        self.places.insert(frame, self.out.len());
        self.out.push(frame);
    }

    fn bytes(self) -> Vec<u8> {
        let pool = [80, 10, 6, 0];
        pool.into_iter().chain(self.ops.into_iter().flat_map(bytes_of)).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use netswap_reserve::{Gfp, PagePool, ReserveId};

    #[test]
    fn every_code_is_an_operation_and_its_bytes_are_it_again() {
        for code in 0..=u8::MAX {
            for (a, b, c) in [(0, 0, 0), (5, 2, 40), (9, 31, 47), (255, 255, 255)] {
                let op = op([code, a, b, c]);
                assert_eq!(self::op(bytes_of(op)), op);
            }
        }
    }

    #[test]
    fn any_bytes_run() {
        run(&[], None);
        run(&[255, 255, 255, 255, 1], None);
        let noise: Vec<u8> =
            (0..6000u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8).collect();
        run(&noise, None);
        let pattern: Vec<u8> = (0..4000u32).map(|i| (i * i / 7) as u8).collect();
        run(&pattern, None);
    }

    #[test]
    fn a_trace_becomes_inputs_that_reach_the_reserve() {
        let pool = PagePool::new(PoolConfig { frames: 512, ..config() });
        let recording = pool.record(1 << 20).unwrap();
        let node = pool.add_reserve(ReserveId::ROOT, "node", 40);
        pool.connect(node).unwrap();
        let mut frames = Vec::new();
        for i in 0..4000usize {
            frames.extend(pool.alloc_from(Gfp::KERNEL, node).ok());
            if i % 3 == 0 {
                frames.swap_remove(i % frames.len());
            }
        }
        let mut bytes = Vec::new();
        recording.finish(&mut bytes).unwrap();
        let seeds = seeds(|| Ok(&bytes[..]), 500, 4).unwrap();
        assert_eq!(seeds.len(), 4);
        for seed in &seeds {
            run(seed, None);
            let (config, ops) = decode(seed);
            let mut world = World::with(config);
            for op in ops {
                world.step(op);
            }
            assert!(world.pool.reserve_peak(world.ids[1]) > 0, "no input without an emergency");
        }
    }
}
