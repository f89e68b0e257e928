use proptest::prelude::*;
use proptest::test_runner::RngSeed;

use super::*;
use crate::gfp::Gfp;
use crate::trace::{Changed, NotReserved, Refusal, Taken, VERSION, Who, wire};

const HEADER: TraceHeader =
    TraceHeader { frames: 300, headroom: 16, low_gap: 8, high_gap: 8, reserve: true, scope: false };

fn bytes_of(ops: &[TraceOp]) -> Vec<u8> {
    let mut bytes = Vec::new();
    wire::put_header(&mut bytes, &HEADER);
    for op in ops {
        let before = bytes.len();
        wire::put_op(&mut bytes, op);
        assert!(bytes.len() - before <= wire::OP_BYTES_MAX);
    }
    wire::put_end(&mut bytes, ops.len() as u64);
    bytes
}

fn read(bytes: &[u8]) -> Result<Vec<TraceOp>, TraceError> {
    TraceReader::new(bytes)?.collect()
}

fn refusal() -> impl Strategy<Value = Refusal> {
    prop_oneof![
        any::<(u32, u32)>().prop_map(|(free, watermark)| Refusal::AtWatermark { free, watermark }),
        Just(Refusal::ReserveUsedUp),
        Just(Refusal::Exhausted),
    ]
}

fn changed() -> impl Strategy<Value = Changed> {
    prop_oneof![Just(Changed::Done), Just(Changed::InUse), Just(Changed::CannotSecure)]
}

/// Any operation that can be in a trace whose tree is a root and one node.
fn op() -> impl Strategy<Value = TraceOp> {
    let who = || {
        prop_oneof![
            Just(Who::Nobody),
            (0..2u16).prop_map(Who::Scope),
            (0..2u16).prop_map(Who::Call)
        ]
    };
    let from = || prop::option::of(0..2u16);
    let not_reserved = prop_oneof![
        any::<(u32, u32)>().prop_map(|(free, watermark)| NotReserved::Short { free, watermark }),
        any::<u32>().prop_map(|most| NotReserved::TooLarge { most }),
    ];
    let promised = prop_oneof![any::<bool>().prop_map(Ok), not_reserved.prop_map(Err)];
    let gfp = || any::<u8>().prop_map(Gfp::from_bits_truncate);
    let (frame, node, n) = (|| 0..HEADER.frames, || 0..2u16, any::<u32>);
    let taken = (frame(), any::<bool>()).prop_map(|(frame, charged)| Taken { frame, charged });
    let outcome = prop_oneof![taken.prop_map(Ok), refusal().prop_map(Err)];
    let aside = prop_oneof![
        (0..HEADER.frames).prop_map(|first| (HEADER.frames - first, Ok(first))),
        any::<u32>().prop_map(|n| (n, Err(Refusal::Exhausted))),
    ];
    prop_oneof![
        (gfp(), who(), any::<bool>(), outcome)
            .prop_filter("nobody is charged without a reserve", |(_, who, _, outcome)| {
                who.node().is_some()
                    || !matches!(
                        outcome,
                        Ok(Taken { charged: true, .. }) | Err(Refusal::ReserveUsedUp)
                    )
            })
            .prop_map(|(gfp, who, more, outcome)| TraceOp::Alloc { gfp, who, more, outcome }),
        (frame(), any::<bool>()).prop_map(|(frame, more)| TraceOp::Free { frame, more }),
        (frame(), gfp(), any::<bool>()).prop_map(|(frame, gfp, done)| TraceOp::Exchange {
            frame,
            gfp,
            done
        }),
        (node(), changed()).prop_map(|(node, changed)| TraceOp::Connect { node, changed }),
        (node(), changed()).prop_map(|(node, changed)| TraceOp::Disconnect { node, changed }),
        (node(), n(), changed()).prop_map(|(node, own, changed)| TraceOp::Resize {
            node,
            own,
            changed
        }),
        (node(), n(), any::<bool>()).prop_map(|(node, frames, done)| TraceOp::Charge {
            node,
            frames,
            done
        }),
        (node(), n()).prop_map(|(node, frames)| TraceOp::Uncharge { node, frames }),
        (node(), 1..u32::MAX).prop_map(|(node, n)| TraceOp::CountObjects { node, per_frame: n }),
        (node(), n(), any::<bool>()).prop_map(|(node, objects, done)| TraceOp::ChargeObjects {
            node,
            objects,
            done
        }),
        (node(), n()).prop_map(|(node, objects)| TraceOp::UnchargeObjects { node, objects }),
        // Charged to the node of the caller, if there is one.
        (who(), n(), promised).prop_map(|(who, frames, promised)| {
            let outcome = promised.map(|charged| who.node().filter(|_| charged));
            TraceOp::Reserve { who, frames, outcome }
        }),
        (from(), frame(), any::<bool>()).prop_map(|(from, frame, charged)| TraceOp::Draw {
            from,
            frame,
            charged: charged && from.is_some()
        }),
        (from(), n()).prop_map(|(from, frames)| TraceOp::Unreserve { from, frames }),
        aside.prop_map(|(frames, outcome)| TraceOp::SetAside { frames, outcome }),
        (n(), n(), n()).prop_map(|(free, floor, usage)| TraceOp::Check { free, floor, usage }),
    ]
}

fn cases() -> ProptestConfig {
    ProptestConfig {
        cases: 256,
        failure_persistence: None,
        rng_seed: RngSeed::Fixed(0x7ace),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(cases())]

    #[test]
    fn what_is_written_is_read(ops in prop::collection::vec(op(), 0..100)) {
        let mut all = vec![TraceOp::AddReserve { parent: 0, own: u32::MAX }];
        all.extend(ops);
        let bytes = bytes_of(&all);
        prop_assert_eq!(TraceReader::new(&bytes[..]).unwrap().header(), HEADER);
        prop_assert_eq!(read(&bytes).unwrap(), all);
    }

    /// Wherever it is cut it is said to be cut, and operations before that were read.
    #[test]
    fn a_cut_is_seen(ops in prop::collection::vec(op(), 0..10), at in any::<prop::sample::Index>()) {
        let mut all = vec![TraceOp::AddReserve { parent: 0, own: 1 }];
        all.extend(ops);
        let bytes = bytes_of(&all);
        let cut = at.index(bytes.len());
        let error = read(&bytes[..cut]).unwrap_err();
        prop_assert!(matches!(error, TraceError::Truncated { .. } | TraceError::NotATrace), "{}", error);
    }

    /// Hostile bytes: no panic, and nothing is out of range.
    #[test]
    fn noise_is_refused_or_in_range(noise in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut bytes = Vec::new();
        wire::put_header(&mut bytes, &HEADER);
        wire::put_op(&mut bytes, &TraceOp::AddReserve { parent: 0, own: 9 });
        bytes.extend(&noise);
        for op in TraceReader::new(&bytes[..]).unwrap().map_while(Result::ok) {
            if let TraceOp::Free { frame, .. }
            | TraceOp::Exchange { frame, .. }
            | TraceOp::Draw { frame, .. } = op
            {
                prop_assert!(frame < HEADER.frames);
            }
        }
        let _ = read(&noise);
    }
}

#[test]
fn what_is_not_a_trace_is_named() {
    let good = bytes_of(&[]);
    assert!(matches!(read(b""), Err(TraceError::NotATrace)));
    assert!(matches!(read(b"nswallox\x01"), Err(TraceError::NotATrace)));
    let mut newer = good.clone();
    newer[8] = VERSION + 1;
    assert!(matches!(read(&newer), Err(TraceError::Version { version: 2 })));
    let mut ablated = good.clone();
    ablated[9] = 4;
    assert!(matches!(read(&ablated), Err(TraceError::Bad { what: "ablations", value: 4, .. })));
    let mut longer = good.clone();
    longer.push(0);
    assert!(matches!(read(&longer), Err(TraceError::Trailing { .. })));
    let mut miscounted = good.clone();
    *miscounted.last_mut().unwrap() = 7;
    let error = read(&miscounted).unwrap_err();
    assert!(matches!(error, TraceError::Count { counted: 7, read: 0 }), "{error}");
}

#[test]
fn numbers_out_of_range_are_named() {
    let with = |tail: &[u8]| {
        let mut bytes = Vec::new();
        wire::put_header(&mut bytes, &HEADER);
        bytes.extend(tail);
        match read(&bytes) {
            Err(TraceError::Bad { what, value, .. }) => (what, value),
            other => panic!("{other:?}"),
        }
    };
    assert_eq!(with(&[0x10]), ("operation", 0x10), "a bit that the end does not have");
    assert_eq!(with(&[0x19, 0]), ("operation", 0x19), "one that the end of a charge does not have");
    assert_eq!(with(&[0x3c, 0]), ("operation", 0x3c), "a caller that does not exist");
    assert_eq!(with(&[0x2d, 0]), ("operation", 0x2d), "ordinary memory that is charged");
    assert_eq!(with(&[0x2e, 0]), ("operation", 0x2e));
    assert_eq!(with(&[13, 0xac, 2]), ("frame", 300));
    assert_eq!(with(&[0x1d, 1]), ("node", 1));
    assert_eq!(with(&[0x1c, 1]), ("node", 1));
    assert_eq!(with(&[12, 4, 1]), ("outcome", 1), "nobody is charged");
    assert_eq!(with(&[12, 4, 3]), ("outcome", 3));
    assert_eq!(with(&[15, 0, 0]), ("objects a frame", 0));
    assert_eq!(with(&[0x22, 0]), ("operation", 0x22), "a bit that free does not have");
    assert_eq!(with(&[0x35, 0]), ("operation", 0x35), "an outcome that connect does not have");
    assert_eq!(with(&[0x61, 0, 0]), ("operation", 0x61), "a caller that does not exist");
    assert_eq!(with(&[2, 0xac, 2]), ("frame", 300));
    assert_eq!(with(&[5, 1]), ("node", 1));
    assert_eq!(with(&[1, 9]), ("outcome", 9));
    assert_eq!(with(&[1, 1, 0]), ("outcome", 1), "nobody is charged");
    assert_eq!(with(&[10, 0xac, 2, 0, 1]), ("frames", 300), "a run beyond the last frame");
    assert_eq!(with(&[0x81, 0x80, 2]), ("flags", 256));
    assert_eq!(with(&[11, 0xff, 0xff, 0xff, 0xff, 0x1f]), ("free", 0x1f), "more than 32 bits");
}
