//! The reader as a whole: against a naive one, under damage, and over readers that misbehave.

use std::fmt::Write as _;
use std::io::{self, Read};

use proptest::prelude::*;

use super::*;
use AccessKind::{Fetch, Load, Modify, Store};

/// Gives `bytes` in pieces of at most `piece` bytes, with an interruption before each, and then
/// `end`.
struct Pieces<'a> {
    bytes: &'a [u8],
    piece: usize,
    interrupt: bool,
    end: Option<io::ErrorKind>,
}

impl<'a> Pieces<'a> {
    fn new(bytes: &'a [u8], piece: usize) -> Pieces<'a> {
        Pieces { bytes, piece, interrupt: false, end: None }
    }
}

impl Read for Pieces<'_> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.interrupt = !self.interrupt;
        if self.interrupt {
            return Err(io::ErrorKind::Interrupted.into());
        }
        let n = self.bytes.len().min(self.piece).min(buf.len());
        if let (0, Some(kind)) = (n, self.end) {
            return Err(kind.into());
        }
        let (now, later) = self.bytes.split_at(n);
        buf[..n].copy_from_slice(now);
        self.bytes = later;
        Ok(n)
    }
}

/// Everything that a reader says.
#[derive(Debug)]
struct Outcome {
    pages: Vec<PageAccess>,
    error: Option<TraceError>,
    stats: TraceStats,
}

fn drain<R: Read>(reader: R) -> Outcome {
    let mut trace = LackeyReader::new(reader).expect("no reader here fails at once");
    let mut pages = Vec::new();
    let mut error = None;
    for item in trace.by_ref() {
        assert!(error.is_none(), "the error is the last item");
        match item {
            Ok(page) => pages.push(page),
            Err(e) => error = Some(e),
        }
    }
    assert!(trace.next().is_none(), "fused");
    Outcome { pages, error, stats: trace.stats() }
}

/// One line by the standard library's parsers: an access, or `None`.
fn naive_access(line: &str) -> Option<(AccessKind, u64, u64)> {
    let kind = match line.get(..3)? {
        "I  " => Fetch,
        " L " => Load,
        " S " => Store,
        " M " => Modify,
        _ => return None,
    };
    let (address, size) = line[3..].split_once(',')?;
    let digits =
        |s: &str, radix, max| (1..=max).contains(&s.len()) && s.chars().all(|c| c.is_digit(radix));
    if !digits(address, 16, 16) || !digits(size, 10, 4) {
        return None;
    }
    let (address, size) = (u64::from_str_radix(address, 16).ok()?, size.parse().ok()?);
    ((1..=4096).contains(&size) && address.checked_add(size - 1).is_some())
        .then_some((kind, address, size))
}

/// Every page touch of a text, unfolded.
fn naive_touches(text: &str) -> Vec<(u64, AccessKind)> {
    let mut touches = Vec::new();
    for line in text.split('\n') {
        if let Some((kind, address, size)) = naive_access(line.strip_suffix('\r').unwrap_or(line)) {
            touches.extend((address / 4096..=(address + (size - 1)) / 4096).map(|vpn| (vpn, kind)));
        }
    }
    touches
}

/// Checks what folding promises: `pages` against the touches they were made of.
fn check_fold(touches: &[(u64, AccessKind)], pages: &[PageAccess]) {
    // Index of each touch, by stream.
    let mut streams: [Vec<usize>; 2] = Default::default();
    for (index, (_, kind)) in touches.iter().enumerate() {
        streams[usize::from(*kind != Fetch)].push(index);
    }
    let mut taken = [0; 2];
    let mut first_before = None;
    let mut last_on_page = std::collections::BTreeMap::new();
    for page in pages {
        assert!(page.count > 0);
        let stream = usize::from(page.kind != Fetch);
        let from = taken[stream];
        taken[stream] += page.count as usize;
        let run = &streams[stream][from..taken[stream]];
        let members: Vec<_> = run.iter().map(|index| touches[*index]).collect();
        assert!(members.iter().all(|(vpn, _)| *vpn == page.vpn), "the order within a stream");
        assert_eq!(members.iter().map(|(_, kind)| *kind).max(), Some(page.kind), "no write lost");
        assert!(Some(run[0]) > first_before, "the order of first touches");
        first_before = Some(run[0]);
        let last = last_on_page.insert(page.vpn, run[run.len() - 1]);
        assert!(last < Some(run[0]), "the order on one page");
    }
    assert_eq!(taken, [streams[0].len(), streams[1].len()], "every touch is there");
    let folds = |pair: &[PageAccess]| {
        pair[0].vpn == pair[1].vpn && (pair[0].kind == Fetch) == (pair[1].kind == Fetch)
    };
    assert!(!pages.windows(2).any(folds), "neighbours that fold are folded");
}

#[derive(Clone, Debug)]
enum Piece {
    Access(AccessKind, u64, u64),
    Text(&'static str),
}

fn piece() -> impl Strategy<Value = Piece> {
    let kind = prop_oneof![4 => Just(Fetch), 2 => Just(Load), 1 => Just(Store), 1 => Just(Modify)];
    // Few pages, so that runs form; offsets near both ends, so that accesses straddle.
    let address = (0..4_u64, prop_oneof![0..64_u64, 4000..4096_u64])
        .prop_map(|(page, offset)| 0x1000_0000 + page * 4096 + offset);
    let address = prop_oneof![30 => address, 1 => any::<u64>(), 1 => u64::MAX - 8..=u64::MAX];
    let size = prop_oneof![20 => 1..=64_u64, 1 => 0..5000_u64];
    let text = prop::sample::select(vec![
        "==12== Lackey, an example Valgrind tool",
        "==12== ",
        "",
        "--12-- warning",
        "SB 0401ab70",
        "SB",
        "I  0401ab70,3\r",
        "I  0401ab70",
        "I  0401ab70,3 ",
        " S ,8",
        "program output",
        "\u{fffd}\u{0}",
    ]);
    prop_oneof![
        20 => (kind, address, size).prop_map(|(kind, address, size)| Piece::Access(kind, address, size)),
        1 => text.prop_map(Piece::Text),
    ]
}

fn rendered(pieces: &[Piece]) -> String {
    let mut text = String::new();
    for piece in pieces {
        match piece {
            Piece::Access(kind, address, size) => {
                let prefix = match kind {
                    Fetch => "I  ",
                    Load => " L ",
                    Store => " S ",
                    Modify => " M ",
                };
                writeln!(text, "{prefix}{address:08x},{size}").unwrap();
            }
            Piece::Text(line) => writeln!(text, "{line}").unwrap(),
        }
    }
    text
}

fn config() -> ProptestConfig {
    ProptestConfig {
        cases: 300,
        failure_persistence: None,
        rng_seed: proptest::test_runner::RngSeed::Fixed(7919),
        ..ProptestConfig::default()
    }
}

proptest! {
    #![proptest_config(config())]

    #[test]
    fn a_random_trace_reads_back_as_the_naive_reader_reads_it(
        pieces in prop::collection::vec(piece(), 0..200),
        piece_bytes in prop_oneof![1..40_usize, Just(usize::MAX)],
        newline_at_end in any::<bool>(),
        compressed in any::<bool>(),
    ) {
        let mut text = rendered(&pieces);
        if !newline_at_end {
            text.pop();
        }
        let lines = text.lines().count() as u64;
        let touches = naive_touches(&text);
        let bytes = if compressed {
            zstd::encode_all(text.as_bytes(), 1).unwrap()
        } else {
            text.clone().into_bytes()
        };
        let outcome = drain(Pieces::new(&bytes, piece_bytes));
        check_fold(&touches, &outcome.pages);
        let stats = outcome.stats;
        prop_assert_eq!(stats.lines, lines);
        prop_assert_eq!(
            stats.lines,
            stats.accesses + stats.superblocks + stats.chatter + stats.malformed
        );
        prop_assert_eq!(stats.accesses + stats.straddling, touches.len() as u64);
        prop_assert_eq!(stats.page_accesses, outcome.pages.len() as u64);
        prop_assert_eq!(stats.folded(), (touches.len() - outcome.pages.len()) as u64);
        prop_assert_eq!(stats.first_malformed.len() as u64, stats.malformed.min(8));
        match outcome.error {
            None => prop_assert!(stats.accesses > 0),
            Some(TraceError::NothingParsed { .. }) => prop_assert_eq!(stats.accesses, 0),
            Some(other) => prop_assert!(false, "{}", other),
        }
    }

    #[test]
    fn damaged_bytes_never_panic_and_every_line_is_accounted_for(
        pieces in prop::collection::vec(piece(), 1..60),
        damage in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20),
        cut in any::<prop::sample::Index>(),
        compressed in any::<bool>(),
    ) {
        let text = rendered(&pieces);
        let mut bytes =
            if compressed { zstd::encode_all(text.as_bytes(), 1).unwrap() } else { text.into_bytes() };
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        bytes.truncate(cut.index(bytes.len()) + 1);
        let Outcome { pages, stats, .. } = drain(&bytes[..]);
        prop_assert_eq!(
            stats.lines,
            stats.accesses + stats.superblocks + stats.chatter + stats.malformed
        );
        let counted: u64 = pages.iter().map(|page| u64::from(page.count)).sum();
        prop_assert_eq!(counted, stats.accesses + stats.straddling);
        if !compressed && let Ok(text) = std::str::from_utf8(&bytes) {
            check_fold(&naive_touches(text), &pages);
        }
    }
}

/// The checks of the properties above do catch what they are for.
#[test]
fn canaries_of_the_fold_check() {
    let page = |vpn, kind, count| PageAccess { vpn, kind, count };
    let touches = [(1, Fetch), (9, Load), (9, Store), (2, Fetch), (2, Store)];
    let good = [page(1, Fetch, 1), page(9, Store, 2), page(2, Fetch, 1), page(2, Store, 1)];
    check_fold(&touches, &good);
    let bad: [&[PageAccess]; 5] = [
        // A write lost.
        &[page(1, Fetch, 1), page(9, Load, 2), page(2, Fetch, 1), page(2, Store, 1)],
        // First touches of two pages exchanged.
        &[page(9, Store, 2), page(1, Fetch, 1), page(2, Fetch, 1), page(2, Store, 1)],
        // Code and data on one page exchanged.
        &[page(1, Fetch, 1), page(9, Store, 2), page(2, Store, 1), page(2, Fetch, 1)],
        // An access lost.
        &[page(1, Fetch, 1), page(9, Store, 2), page(2, Fetch, 1)],
        // Neighbours not folded.
        &[
            page(1, Fetch, 1),
            page(9, Load, 1),
            page(9, Store, 1),
            page(2, Fetch, 1),
            page(2, Store, 1),
        ],
    ];
    for pages in bad {
        assert!(std::panic::catch_unwind(|| check_fold(&touches, pages)).is_err(), "{pages:?}");
    }
}

#[test]
fn malformed_lines_are_counted_and_the_first_are_kept_with_their_numbers() {
    let mut text = String::from("==1== Lackey\nI  1000,4\nhello\n\nI  1004,0\n");
    for n in 0..20 {
        writeln!(text, "bad {n} {}", "x".repeat(100)).unwrap();
    }
    let outcome = drain(text.as_bytes());
    assert!(outcome.error.is_none());
    assert_eq!(outcome.pages, [PageAccess { vpn: 1, kind: Fetch, count: 1 }]);
    let stats = outcome.stats;
    assert_eq!((stats.lines, stats.accesses, stats.chatter, stats.malformed), (25, 1, 2, 22));
    let kept: Vec<_> = stats.first_malformed.iter().map(|bad| (bad.line, bad.fault)).collect();
    assert_eq!(
        kept[..3],
        [(3, LineFault::UnknownKind), (5, LineFault::BadSize), (6, LineFault::UnknownKind)]
    );
    assert_eq!(kept.len(), 8);
    assert_eq!(stats.first_malformed[0].to_string(), "line 3: not a line of lackey: \"hello\"");
    assert!(stats.first_malformed[2].to_string().ends_with("xxx...\""));
}

#[test]
fn a_line_longer_than_the_buffer_is_one_malformed_line() {
    for extra in [0, 1, 14, BUFFER_BYTES, 3 * BUFFER_BYTES + 5] {
        let long = "x".repeat(BUFFER_BYTES + extra);
        let chatter = format!("==7== {long}");
        let text = format!("I  1000,4\n{long}\n S 2000,4\n{chatter}\n L 3000,4\n{long}");
        let outcome = drain(text.as_bytes());
        assert!(outcome.error.is_none());
        assert_eq!(outcome.pages.iter().map(|p| p.vpn).collect::<Vec<_>>(), [1, 2, 3]);
        let stats = outcome.stats;
        assert_eq!((stats.lines, stats.malformed, stats.chatter), (6, 2, 1), "extra {extra}");
        assert_eq!(stats.first_malformed[0].line, 2);
        assert_eq!(stats.first_malformed[0].fault, LineFault::TooLong);
    }
    // One byte less fits, and is judged by the grammar.
    let text = format!("I  1000,4\n{}\n", "x".repeat(BUFFER_BYTES - 1));
    assert_eq!(drain(text.as_bytes()).stats.first_malformed[0].fault, LineFault::UnknownKind);
}

#[test]
fn a_long_line_in_single_bytes_is_searched_once() {
    // Quadratic work would be 2 * 10^9 steps and be felt.
    let text = format!("{}\nI  1000,4", "x".repeat(BUFFER_BYTES - 1));
    assert_eq!(drain(Pieces::new(text.as_bytes(), 1)).stats.accesses, 1);
}

#[test]
fn a_text_without_an_access_is_an_error_that_says_why() {
    for text in ["", "\n\n", "==1== x\n", "SB 1000\n"] {
        let outcome = drain(text.as_bytes());
        assert!(
            matches!(outcome.error, Some(TraceError::NothingParsed { malformed: 0, .. })),
            "{text:?}"
        );
    }
    let error = drain(&b"#!/bin/sh\necho\n"[..]).error.unwrap();
    assert!(matches!(error, TraceError::NothingParsed { lines: 2, malformed: 2, .. }));
    assert_eq!(
        error.to_string(),
        "no memory access in the 2 lines of the trace \
         (line 1: not a line of lackey: \"#!/bin/sh\")"
    );
}

#[test]
fn a_zstd_stream_cut_anywhere_says_so_and_yields_what_came_before() {
    let mut text = String::new();
    for n in 0..5_000_u64 {
        writeln!(text, " S {:08x},8", n * 7919 % 65_536 * 512).unwrap();
    }
    let whole = zstd::encode_all(text.as_bytes(), 3).unwrap();
    let pages = drain(&whole[..]).pages;
    assert!(whole.len() > 1000);
    for len in (4..whole.len()).step_by(37).chain(whole.len() - 8..whole.len()) {
        let outcome = drain(&whole[..len]);
        let Some(TraceError::Truncated { line }) = outcome.error else {
            panic!("cut at {len}: {:?}", outcome.error);
        };
        assert_eq!(line, outcome.stats.lines);
        // The last run may be a part of the whole one.
        let complete = outcome.pages.len().saturating_sub(1);
        assert_eq!(outcome.pages[..complete], pages[..complete], "cut at {len}");
    }
}

#[test]
fn concatenated_and_skippable_frames_are_one_text() {
    let mut bytes = vec![0x50, 0x2a, 0x4d, 0x18, 3, 0, 0, 0, 1, 2, 3];
    bytes.extend(zstd::encode_all(&b"I  1000,4\n S 20"[..], 1).unwrap());
    bytes.extend(zstd::encode_all(&b"00,4\n"[..], 1).unwrap());
    let outcome = drain(&bytes[..]);
    assert!(outcome.error.is_none(), "{:?}", outcome.error);
    assert_eq!(outcome.pages.iter().map(|p| p.vpn).collect::<Vec<_>>(), [1, 2]);
}

#[test]
fn damage_to_the_stream_and_failure_below_it_are_told_apart() {
    let text = rendered(&vec![Piece::Access(Load, 0x1000, 4); 100_000]);
    let mut bytes = zstd::encode_all(text.as_bytes(), 1).unwrap();
    let below = Pieces { end: Some(io::ErrorKind::TimedOut), ..Pieces::new(&bytes[..40], 16) };
    assert!(matches!(
        drain(below).error,
        Some(TraceError::Read { source, .. }) if source.kind() == io::ErrorKind::TimedOut
    ));
    bytes.extend(b"no frame");
    assert!(matches!(drain(&bytes[..]).error, Some(TraceError::Corrupt { line: 100_000, .. })));

    let below = Pieces { end: Some(io::ErrorKind::TimedOut), ..Pieces::new(text.as_bytes(), 999) };
    assert!(matches!(drain(below).error, Some(TraceError::Read { line: 100_000, .. })));
}

#[test]
fn a_file_is_known_by_its_bytes_not_its_name() {
    let dir = std::env::temp_dir().join(format!("netswap-lackey-{}", std::process::id()));
    std::fs::create_dir_all(&dir).unwrap();
    let (plain, packed) = (dir.join("plain.zst"), dir.join("packed.txt"));
    std::fs::write(&plain, "I  1000,4\n").unwrap();
    std::fs::write(&packed, zstd::encode_all(&b"I  1000,4\n"[..], 1).unwrap()).unwrap();
    for (path, compressed) in [(&plain, false), (&packed, true)] {
        let trace = open(path).unwrap();
        assert_eq!(trace.is_compressed(), compressed);
        assert_eq!(trace.count(), 1);
    }
    assert!(matches!(open(&dir), Err(TraceError::Open { .. })), "a directory");
    std::fs::remove_dir_all(&dir).unwrap();
    let error = open(&plain).unwrap_err();
    assert!(matches!(&error, TraceError::Open { path, .. } if *path == plain), "{error}");
}

#[test]
fn a_reader_can_be_sent_to_another_thread() {
    fn is_send<T: Send>() {}
    is_send::<LackeyReader<Box<dyn Read + Send>>>();
}
