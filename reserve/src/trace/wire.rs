//! The bytes of a trace: one place that writes them, one that reads them.

use super::{
    Changed, MAGIC, NotReserved, Refusal, Taken, TraceError, TraceHeader, TraceOp, VERSION, Who,
};
use crate::gfp::Gfp;

/// No operation is longer: a code, two numbers of five bytes, an outcome of eleven.
pub(super) const OP_BYTES_MAX: usize = 24;
/// Nor is a header: magic, two bytes, four numbers.
pub(super) const HEADER_BYTES_MAX: usize = 32;

pub(super) const END: u8 = 0;
const ALLOC: u8 = 1;
const FREE: u8 = 2;
const EXCHANGE: u8 = 3;
const ADD: u8 = 4;
const CONNECT: u8 = 5;
const DISCONNECT: u8 = 6;
const RESIZE: u8 = 7;
const CHARGE: u8 = 8;
const UNCHARGE: u8 = 9;
const SET_ASIDE: u8 = 10;
const CHECK: u8 = 11;
const RESERVE: u8 = 12;
const DRAW: u8 = 13;
const UNRESERVE: u8 = 14;
const COUNT: u8 = 15;

const ORDINARY: u8 = 0;
const CHARGED: u8 = 1;
const AT_WATERMARK: u8 = 2;
const USED_UP: u8 = 3;
const EXHAUSTED: u8 = 4;
const TOO_LARGE: u8 = 5;

/// Of a charge and its end.
const OBJECTS: u8 = 1 << 1;

const NO_RESERVE: u8 = 1 << 0;
const NO_SCOPE: u8 = 1 << 1;

/// Writes LEB128.
pub(super) fn put(out: &mut Vec<u8>, numbers: &[u64]) {
    for &number in numbers {
        let mut rest = number;
        while rest >= 0x80 {
            out.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        out.push(rest as u8);
    }
}

pub(super) fn put_header(out: &mut Vec<u8>, header: &TraceHeader) {
    let no_reserve = if header.reserve { 0 } else { NO_RESERVE };
    let no_scope = if header.scope { 0 } else { NO_SCOPE };
    out.extend_from_slice(&MAGIC);
    out.extend_from_slice(&[VERSION, no_reserve | no_scope]);
    for number in [header.frames, header.headroom, header.low_gap, header.high_gap] {
        put(out, &[number.into()]);
    }
}

pub(super) fn put_end(out: &mut Vec<u8>, ops: u64) {
    out.push(END);
    put(out, &[ops]);
}

fn who_bits(who: Who) -> u8 {
    match who {
        Who::Nobody => 0,
        Who::Scope(_) => 1,
        Who::Call(_) => 2,
    }
}

fn put_refusal(out: &mut Vec<u8>, refusal: Refusal) {
    match refusal {
        Refusal::AtWatermark { free, watermark } => {
            out.push(AT_WATERMARK);
            put(out, &[free.into(), watermark.into()]);
        }
        Refusal::ReserveUsedUp => out.push(USED_UP),
        Refusal::Exhausted => out.push(EXHAUSTED),
    }
}

pub(super) fn put_op(out: &mut Vec<u8>, op: &TraceOp) {
    let mut code = |code: u8, bits: u8| out.push(code | bits << 4);
    match *op {
        TraceOp::Alloc { gfp, who, more, outcome } => {
            code(ALLOC, u8::from(more) | who_bits(who) << 1 | u8::from(!gfp.is_empty()) << 3);
            if !gfp.is_empty() {
                put(out, &[gfp.bits().into()]);
            }
            if let Some(node) = who.node() {
                put(out, &[node.into()]);
            }
            match outcome {
                Ok(Taken { frame, charged }) => {
                    out.push(if charged { CHARGED } else { ORDINARY });
                    put(out, &[frame.into()]);
                }
                Err(refusal) => put_refusal(out, refusal),
            }
        }
        TraceOp::Free { frame, more } => {
            code(FREE, more.into());
            put(out, &[frame.into()]);
        }
        TraceOp::Exchange { frame, gfp, done } => {
            code(EXCHANGE, done.into());
            put(out, &[frame.into(), gfp.bits().into()]);
        }
        TraceOp::AddReserve { parent, own } => {
            code(ADD, 0);
            put(out, &[parent.into(), own.into()]);
        }
        TraceOp::Connect { node, changed } => {
            code(CONNECT, changed as u8);
            put(out, &[node.into()]);
        }
        TraceOp::Disconnect { node, changed } => {
            code(DISCONNECT, changed as u8);
            put(out, &[node.into()]);
        }
        TraceOp::Resize { node, own, changed } => {
            code(RESIZE, changed as u8);
            put(out, &[node.into(), own.into()]);
        }
        TraceOp::Charge { node, frames, done } => {
            code(CHARGE, done.into());
            put(out, &[node.into(), frames.into()]);
        }
        TraceOp::Uncharge { node, frames } => {
            code(UNCHARGE, 0);
            put(out, &[node.into(), frames.into()]);
        }
        TraceOp::CountObjects { node, per_frame } => {
            code(COUNT, 0);
            put(out, &[node.into(), per_frame.into()]);
        }
        TraceOp::ChargeObjects { node, objects, done } => {
            code(CHARGE, u8::from(done) | OBJECTS);
            put(out, &[node.into(), objects.into()]);
        }
        TraceOp::UnchargeObjects { node, objects } => {
            code(UNCHARGE, OBJECTS);
            put(out, &[node.into(), objects.into()]);
        }
        TraceOp::Reserve { who, frames, outcome } => {
            code(RESERVE, who_bits(who));
            if let Some(node) = who.node() {
                put(out, &[node.into()]);
            }
            put(out, &[frames.into()]);
            match outcome {
                Ok(from) => out.push(if from.is_some() { CHARGED } else { ORDINARY }),
                Err(NotReserved::Short { free, watermark }) => {
                    put_refusal(out, Refusal::AtWatermark { free, watermark });
                }
                Err(NotReserved::TooLarge { most }) => {
                    out.push(TOO_LARGE);
                    put(out, &[most.into()]);
                }
            }
        }
        TraceOp::Draw { from, frame, charged } => {
            code(DRAW, u8::from(from.is_some()) | u8::from(charged) << 1);
            put_from(out, from, frame);
        }
        TraceOp::Unreserve { from, frames } => {
            code(UNRESERVE, from.is_some().into());
            put_from(out, from, frames);
        }
        TraceOp::SetAside { frames, outcome } => {
            code(SET_ASIDE, 0);
            put(out, &[frames.into()]);
            match outcome {
                Ok(first) => {
                    out.push(ORDINARY);
                    put(out, &[first.into()]);
                }
                Err(refusal) => put_refusal(out, refusal),
            }
        }
        TraceOp::Check { free, floor, usage } => {
            code(CHECK, 0);
            put(out, &[free.into(), floor.into(), usage.into()]);
        }
    }
}

fn put_from(out: &mut Vec<u8>, from: Option<u16>, number: u32) {
    if let Some(node) = from {
        put(out, &[node.into()]);
    }
    put(out, &[number.into()]);
}

/// Where bytes come from.
pub(super) trait Bytes {
    /// The next byte, or why there is none.
    fn byte(&mut self) -> Result<u8, TraceError>;
    /// An error about the byte that was read last.
    fn bad(&self, what: &'static str, value: u64) -> TraceError;
}

/// Reads LEB128 of at most `bits` bits.
pub(super) fn number(
    from: &mut impl Bytes,
    bits: u32,
    what: &'static str,
) -> Result<u64, TraceError> {
    let mut number = 0u64;
    for shift in (0..bits).step_by(7) {
        let byte = from.byte()?;
        let part = u64::from(byte & 0x7f);
        if part.leading_zeros() < 64 - (bits - shift).min(7) {
            return Err(from.bad(what, part));
        }
        number |= part << shift;
        if byte < 0x80 {
            return Ok(number);
        }
    }
    Err(from.bad(what, number))
}

fn frames(from: &mut impl Bytes, what: &'static str) -> Result<u32, TraceError> {
    Ok(number(from, 32, what)? as u32)
}

/// A number below `end`.
fn below(from: &mut impl Bytes, end: u32, what: &'static str) -> Result<u32, TraceError> {
    let value = frames(from, what)?;
    if value < end { Ok(value) } else { Err(from.bad(what, value.into())) }
}

fn gfp(from: &mut impl Bytes) -> Result<Gfp, TraceError> {
    let bits = frames(from, "flags")?;
    let known = bits.try_into().ok().and_then(Gfp::from_bits);
    known.ok_or_else(|| from.bad("flags", bits.into()))
}

pub(super) fn header(from: &mut impl Bytes) -> Result<TraceHeader, TraceError> {
    for expected in MAGIC {
        match from.byte() {
            Ok(byte) if byte == expected => {}
            Ok(_) | Err(TraceError::Truncated { .. }) => return Err(TraceError::NotATrace),
            Err(other) => return Err(other),
        }
    }
    let version = from.byte()?;
    if version != VERSION {
        return Err(TraceError::Version { version });
    }
    let off = from.byte()?;
    if off & !(NO_RESERVE | NO_SCOPE) != 0 {
        return Err(from.bad("ablations", off.into()));
    }
    Ok(TraceHeader {
        frames: frames(from, "frames")?,
        headroom: frames(from, "headroom")?,
        low_gap: frames(from, "low gap")?,
        high_gap: frames(from, "high gap")?,
        reserve: off & NO_RESERVE == 0,
        scope: off & NO_SCOPE == 0,
    })
}

/// What the operations so far allow.
pub(super) struct Known {
    pub(super) frames: u32,
    pub(super) nodes: u32,
}

/// The operation that `first` begins, or `None` at the end.
pub(super) fn op(
    from: &mut impl Bytes,
    first: u8,
    known: &Known,
) -> Result<Option<TraceOp>, TraceError> {
    let (code, bits) = (first & 0xf, first >> 4);
    let used = match code {
        ALLOC => 0xf,
        CONNECT | DISCONNECT | RESIZE | CHARGE | RESERVE | DRAW => 0x3,
        FREE | EXCHANGE | UNRESERVE => 0x1,
        UNCHARGE => OBJECTS,
        _ => 0,
    };
    if bits & !used != 0 {
        return Err(from.bad("operation", first.into()));
    }
    let yes = bits & 1 != 0;
    let node = |from: &mut _| below(from, known.nodes, "node").map(|node| node as u16);
    let who = |from: &mut _, bits| -> Result<Who, TraceError> {
        Ok(match bits {
            0 => Who::Nobody,
            1 => Who::Scope(node(from)?),
            _ => Who::Call(node(from)?),
        })
    };
    let changed = match bits {
        0 => Changed::Done,
        1 => Changed::InUse,
        _ => Changed::CannotSecure,
    };
    let has_no_meaning = match code {
        ALLOC => bits >> 1 & 3 == 3,
        CONNECT | DISCONNECT | RESIZE | RESERVE => bits == 3,
        // Only what is promised of a node can be charged to it.
        DRAW => bits == 2,
        _ => false,
    };
    if has_no_meaning {
        return Err(from.bad("operation", first.into()));
    }
    Ok(Some(match code {
        END => return Ok(None),
        ALLOC => {
            let gfp = if bits & 8 != 0 { gfp(from)? } else { Gfp::KERNEL };
            let who = who(from, bits >> 1 & 3)?;
            let outcome = outcome(from, known)?;
            match (who, outcome) {
                (Who::Nobody, Ok(Taken { charged: true, .. })) => {
                    return Err(from.bad("outcome", CHARGED.into()));
                }
                (Who::Nobody, Err(Refusal::ReserveUsedUp)) => {
                    return Err(from.bad("outcome", USED_UP.into()));
                }
                _ => {}
            }
            TraceOp::Alloc { gfp, who, more: yes, outcome }
        }
        FREE => TraceOp::Free { frame: below(from, known.frames, "frame")?, more: yes },
        EXCHANGE => {
            let frame = below(from, known.frames, "frame")?;
            TraceOp::Exchange { frame, gfp: gfp(from)?, done: yes }
        }
        ADD => TraceOp::AddReserve { parent: node(from)?, own: frames(from, "own frames")? },
        CONNECT => TraceOp::Connect { node: node(from)?, changed },
        DISCONNECT => TraceOp::Disconnect { node: node(from)?, changed },
        RESIZE => TraceOp::Resize { node: node(from)?, own: frames(from, "own frames")?, changed },
        CHARGE if bits & OBJECTS != 0 => TraceOp::ChargeObjects {
            node: node(from)?,
            objects: frames(from, "objects")?,
            done: yes,
        },
        UNCHARGE if bits & OBJECTS != 0 => {
            TraceOp::UnchargeObjects { node: node(from)?, objects: frames(from, "objects")? }
        }
        COUNT => {
            let node = node(from)?;
            match frames(from, "objects a frame")? {
                0 => return Err(from.bad("objects a frame", 0)),
                per_frame => TraceOp::CountObjects { node, per_frame },
            }
        }
        RESERVE => {
            let who = who(from, bits)?;
            let frames = frames(from, "frames")?;
            TraceOp::Reserve { who, frames, outcome: promised(from, who)? }
        }
        DRAW => {
            let source = if yes { Some(node(from)?) } else { None };
            let frame = below(from, known.frames, "frame")?;
            TraceOp::Draw { from: source, frame, charged: bits & 2 != 0 }
        }
        UNRESERVE => {
            let source = if yes { Some(node(from)?) } else { None };
            TraceOp::Unreserve { from: source, frames: frames(from, "frames")? }
        }
        CHARGE => TraceOp::Charge { node: node(from)?, frames: frames(from, "frames")?, done: yes },
        UNCHARGE => TraceOp::Uncharge { node: node(from)?, frames: frames(from, "frames")? },
        SET_ASIDE => {
            let wanted = frames(from, "frames")?;
            let outcome = match outcome(from, known)? {
                Ok(Taken { charged: true, .. }) | Err(Refusal::ReserveUsedUp) => {
                    return Err(from.bad("outcome", CHARGED.into()));
                }
                Ok(Taken { frame, .. }) if wanted > known.frames - frame => {
                    return Err(from.bad("frames", wanted.into()));
                }
                Ok(Taken { frame, .. }) => Ok(frame),
                Err(refusal) => Err(refusal),
            };
            TraceOp::SetAside { frames: wanted, outcome }
        }
        _ => TraceOp::Check {
            free: frames(from, "free")?,
            floor: frames(from, "floor")?,
            usage: frames(from, "usage")?,
        },
    }))
}

fn outcome(from: &mut impl Bytes, known: &Known) -> Result<Result<Taken, Refusal>, TraceError> {
    Ok(match from.byte()? {
        byte @ (ORDINARY | CHARGED) => {
            let frame = below(from, known.frames, "frame")?;
            Ok(Taken { frame, charged: byte == CHARGED })
        }
        AT_WATERMARK => Err(Refusal::AtWatermark {
            free: frames(from, "free")?,
            watermark: frames(from, "watermark")?,
        }),
        USED_UP => Err(Refusal::ReserveUsedUp),
        EXHAUSTED => Err(Refusal::Exhausted),
        byte => return Err(from.bad("outcome", byte.into())),
    })
}

/// What came of a reservation: the node charged is the one that the caller was entitled to.
fn promised(
    from: &mut impl Bytes,
    who: Who,
) -> Result<Result<Option<u16>, NotReserved>, TraceError> {
    Ok(match (from.byte()?, who.node()) {
        (ORDINARY, _) => Ok(None),
        (CHARGED, Some(node)) => Ok(Some(node)),
        (AT_WATERMARK, _) => Err(NotReserved::Short {
            free: frames(from, "free")?,
            watermark: frames(from, "watermark")?,
        }),
        (TOO_LARGE, _) => Err(NotReserved::TooLarge { most: frames(from, "most")? }),
        (byte, _) => return Err(from.bad("outcome", byte.into())),
    })
}
