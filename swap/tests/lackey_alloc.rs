//! Goal: reading a trace allocates nothing for a line, however many there are.
//!
//! Method: a global allocator counts what the thread under test allocates. It is first shown to
//! catch a planted allocation. Then traces of very different lengths are read, with lines that are
//! malformed and lines that are too long among them; the reader may allocate when it is made, and
//! never again. For zstd the decoder makes its window when it meets a frame, so there the number of
//! allocations may not grow with the number of lines.

mod counting;

use counting::allocations;
use netswap_swap::lackey::LackeyReader;

fn text(blocks: usize) -> Vec<u8> {
    let block = format!(
        "==1== chatter\nI  0401ab70,3\n S 1fff000ffe,8\n L 1ffeffe7e,8\nbad line\n{}\n",
        "x".repeat(100_000)
    );
    block.repeat(blocks).into_bytes()
}

#[test]
fn the_counter_catches_a_planted_allocation() {
    assert_eq!(allocations(|| drop(std::hint::black_box(Box::new(1)))), 1);
    assert_eq!(allocations(|| ()), 0);
}

#[test]
fn plain_text_is_read_without_an_allocation() {
    let text = text(100);
    let mut trace = LackeyReader::new(&text[..]).unwrap();
    let mut accesses = 0;
    let count = allocations(|| accesses = trace.by_ref().map(|access| access.unwrap().count).sum());
    assert_eq!((count, accesses), (0, 400));
    assert_eq!(trace.stats().malformed, 200);
}

#[test]
fn a_compressed_trace_costs_the_same_whatever_its_length() {
    let cost = |blocks| {
        let packed = zstd::encode_all(&text(blocks)[..], 1).unwrap();
        allocations(|| assert!(LackeyReader::new(&packed[..]).unwrap().all(|a| a.is_ok())))
    };
    let (short, long) = (cost(20), cost(200));
    assert_eq!(short, long);
}
