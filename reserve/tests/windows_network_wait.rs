//! A window is never held across a network wait: a server that is down does not use the windows up.
//!
//! Method: calls that write pages to a server which does not answer, more of them than there are windows, and
//! one mapping that has nothing to do with them. Page vectors travel unmapped and are mapped only while their bytes
//! are copied into the send buffer; then the other mapping succeeds. The old discipline, which maps at the
//! call and unmaps at its return, is the canary: with it the windows are gone after a few calls.

use netswap_reserve::PAGE_SIZE;
use netswap_reserve::windows::{
    CursorError, HighPage, HighPool, LocalWindows, MapError, MapWindows, PageCursor, PageCursorMut,
    WindowsConfig,
};

const WINDOWS: u32 = 4;
const CALLS: usize = 16;

struct Call {
    pages: Vec<HighPage>,
}

fn world() -> (HighPool, MapWindows, Vec<Call>, HighPage) {
    let high = HighPool::new(2 * CALLS as u32 + 1).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(WINDOWS)).unwrap();
    let pages = || (0..2).map(|_| high.alloc().unwrap()).collect();
    let calls: Vec<Call> = (0..CALLS).map(|_| Call { pages: pages() }).collect();
    let other = high.alloc().unwrap();
    (high, windows, calls, other)
}

#[test]
fn calls_without_an_answer_hold_no_window() {
    let (_high, mut windows, mut calls, other) = world();
    let mut wire = Vec::new();
    for (k, call) in calls.iter_mut().enumerate() {
        let data = vec![k as u8; 5000];
        let mut fill = PageCursorMut::new(&mut call.pages, 100, 5000).unwrap();
        fill.copy_from(&mut windows, &data).unwrap();
    }
    // Sent, again and again, and never answered.
    for _ in 0..3 {
        for call in &calls {
            let mut cursor = PageCursor::new(&call.pages, 100, 5000).unwrap();
            let at = wire.len();
            wire.resize(at + 5000, 0);
            cursor.copy_to(&mut windows, &mut wire[at..]).unwrap();
            assert_eq!(windows.usage().held, 0);
        }
    }
    for (k, sent) in wire.chunks(5000).enumerate() {
        assert!(sent.iter().all(|&b| b == (k % CALLS) as u8));
    }
    assert!(windows.try_map(&other).is_ok());
    // At last a reply comes, and is copied into its pages.
    let mut reply = PageCursorMut::new(&mut calls[3].pages, 0, 8192).unwrap();
    reply.copy_from(&mut windows, &[9; 8192]).unwrap();
    assert_eq!((windows.usage().held, windows.counters().refusals), (0, 0));
}

#[test]
fn mapping_at_the_call_and_unmapping_at_its_return_uses_the_windows_up() {
    let (_high, windows, calls, other) = world();
    let mut outstanding = Vec::new();
    let mut refused = None;
    for page in calls.iter().flat_map(|call| &call.pages) {
        match windows.try_map(page) {
            Ok(mapped) => outstanding.push(mapped),
            Err(error) => refused = Some(error),
        }
    }
    assert_eq!(outstanding.len(), WINDOWS as usize);
    let full = MapError::Full { wanted: 1, taken: WINDOWS, windows: WINDOWS, waiting: 0 };
    assert_eq!(refused, Some(full));
    assert_eq!(windows.try_map(&other).unwrap_err(), full);
}

#[test]
fn a_cursor_says_where_its_stretch_ends_and_stays_where_it_was() {
    let (high, mut windows, mut calls, other) = world();
    let pages = &mut calls[0].pages;
    let end = CursorError::End { wanted: 8192, remaining: 8191 };
    assert_eq!(PageCursor::new(&*pages, 1, 8192).unwrap_err(), end);
    assert_eq!(PageCursorMut::new(pages, 1, 8192).unwrap_err(), end);
    let beyond = CursorError::End { wanted: 1, remaining: 0 };
    assert_eq!(PageCursor::new(&*pages, usize::MAX, 1).unwrap_err(), beyond);

    let mut cursor = PageCursor::new(&*pages, 4090, 10).unwrap();
    let short = CursorError::End { wanted: 11, remaining: 10 };
    assert_eq!(cursor.copy_to(&mut windows, &mut [0; 11]), Err(short));
    assert_eq!(cursor.take(&mut windows, 11, &mut [0; 16], |_| ()), Err(short));
    assert_eq!(cursor.skip(11), Err(short));
    let scratch = CursorError::Scratch { wanted: 10, scratch: 9 };
    assert_eq!(cursor.take(&mut windows, 10, &mut [0; 9], |_| ()), Err(scratch));
    assert_eq!((cursor.position(), cursor.remaining()), (4090, 10));
    // No bytes need no page; six lie in one page and need no scratch buffer.
    assert_eq!(cursor.take(&mut windows, 0, &mut [], <[u8]>::len), Ok(0));
    assert_eq!(cursor.take(&mut windows, 6, &mut [], <[u8]>::len), Ok(6));
    assert_eq!((cursor.position(), cursor.remaining()), (4096, 4));

    // Windows that are all held: the copy fails and says why; the cursor can go on later.
    let holder = MapWindows::new(&high, WindowsConfig::new(1)).unwrap();
    let mut mapper = holder.clone();
    let held = holder.try_map(&other).unwrap();
    let copied = cursor.copy_to(&mut mapper, &mut [0; 4]);
    assert!(matches!(copied, Err(CursorError::Map(MapError::Full { .. }))));
    assert_eq!(cursor.remaining(), 4);
    // A thread's own windows are not full for others' sake.
    let mut local = LocalWindows::new(&high, 1).unwrap();
    cursor.clone().copy_to(&mut local, &mut [0; 4]).unwrap();
    drop(held);
    cursor.copy_to(&mut mapper, &mut [0; 4]).unwrap();
    assert_eq!(cursor.remaining(), 0);
}

#[test]
fn pieces_are_shown_page_by_page_and_written_in_place() {
    let (_high, mut windows, mut calls, _other) = world();
    let pages = &mut calls[0].pages;
    let mut fill = PageCursorMut::new(pages, 4000, 200).unwrap();
    let mut rooms = Vec::new();
    while fill.remaining() > 0 {
        let put = |room: &mut [u8]| {
            rooms.push(room.len());
            let now = room.len().min(60);
            room[..now].fill(rooms.len() as u8);
            now
        };
        fill.with_piece(&mut windows, put).unwrap();
    }
    assert_eq!(rooms, [96, 36, 104, 44]);
    assert_eq!(fill.with_piece(&mut windows, |_| unreachable!()), Ok(0));
    let mut cursor = PageCursor::new(&*pages, 4000, 200).unwrap();
    let mut seen = Vec::new();
    assert_eq!(cursor.for_each(&mut windows, usize::MAX, |b| seen.push(b.to_vec())), Ok(200));
    assert_eq!(seen.iter().map(Vec::len).collect::<Vec<_>>(), [PAGE_SIZE - 4000, 104]);
    let want = [[1; 60].as_slice(), &[2; 36], &[3; 60], &[4; 44]].concat();
    assert_eq!(seen.concat(), want);
}
