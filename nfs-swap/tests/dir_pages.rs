//! Goal: reading a list of entries from a page vector gives, byte for byte and error for error, what
//! reading it through `vmap` gives, or from a contiguous copy; for records that lie across the ends of
//! pages at every offset.
//! Method: random lists, damaged ones too, at every base in a page, in vectors of low pages, of high
//! ones and of both; the pages are nowhere adjacent. One window is enough for all high ones. What
//! is decoded is encoded again and compared with the bytes as well.

use netswap_nfs::dir::{DirEntry, DirError, DirProc, DirReader, DirRecord};
use netswap_nfs::proto::{Fattr3, FileHandle};
use netswap_nfs::xdr::{Decoder, Encoder};
use netswap_reserve::windows::{
    Direct, HighPage, HighPool, MapError, MapPage, MapPageMut, MapWindows, Mapper, Page,
    PageCursorMut, WindowsConfig, vmap,
};
use netswap_reserve::{Frame, Gfp, PAGE_SIZE, PagePool, PoolConfig};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

/// An entry that owns its name.
#[derive(Clone, Debug, PartialEq)]
struct Owned {
    fileid: u64,
    name: Vec<u8>,
    cookie: u64,
    attrs: Option<Fattr3>,
    handle: Option<FileHandle>,
}

impl Owned {
    fn of(entry: &DirEntry<'_>) -> Owned {
        let DirEntry { fileid, name, cookie, attrs, handle } = *entry;
        Owned { fileid, name: name.to_vec(), cookie, attrs, handle }
    }

    fn record(&self) -> DirRecord<'_> {
        let Owned { fileid, ref name, cookie, attrs, handle } = *self;
        DirRecord::Entry(DirEntry { fileid, name, cookie, attrs, handle })
    }
}

type Read = (Vec<Owned>, Result<bool, DirError>);

fn encoded(entries: &[Owned], eof: bool, procedure: DirProc) -> Vec<u8> {
    let mut buf = vec![0; 450 * (entries.len() + 1)];
    let mut out = Encoder::new(&mut buf);
    for entry in entries {
        entry.record().encode(&mut out, procedure).unwrap();
    }
    DirRecord::End { eof }.encode(&mut out, procedure).unwrap();
    let len = out.len();
    buf.truncate(len);
    buf
}

/// What one contiguous range of memory gives.
fn from_range(bytes: &[u8], procedure: DirProc) -> Read {
    let mut dec = Decoder::new(bytes);
    let mut entries = vec![];
    loop {
        match DirRecord::decode(&mut dec, procedure) {
            Ok(DirRecord::Entry(entry)) => entries.push(Owned::of(&entry)),
            Ok(DirRecord::End { eof }) => {
                return (entries, dec.end().map(|()| eof).map_err(DirError::from));
            }
            Err(error) => return (entries, Err(error)),
        }
    }
}

fn from_pages<P: MapPage>(
    (pages, mapper): (&[P], &mut impl Mapper),
    base: usize,
    len: usize,
    procedure: DirProc,
) -> Read {
    let mut reader = DirReader::new(base, len, procedure);
    let mut entries = vec![];
    loop {
        match reader.next(pages, mapper) {
            Ok(DirRecord::Entry(entry)) => entries.push(Owned::of(&entry)),
            Ok(DirRecord::End { eof }) => return (entries, Ok(eof)),
            Err(error) => return (entries, Err(error)),
        }
    }
}

/// The same bytes in low pages, in high pages, and in both by turns; no two pages are adjacent.
struct Vectors {
    windows: MapWindows,
    low: Vec<Frame>,
    high: Vec<HighPage>,
    mixed: Vec<Page>,
}

/// Every second one of what `take` gives, the last first.
fn scattered<P>(n: usize, take: impl Fn() -> P) -> Vec<P> {
    let all: Vec<P> = (0..2 * n).map(|_| take()).collect();
    let mut pages: Vec<P> = all.into_iter().step_by(2).collect();
    pages.reverse();
    pages
}

impl Vectors {
    fn new(n: usize) -> Vectors {
        let pool = PagePool::new(PoolConfig::new(4 * n as u32 + 64));
        let high = HighPool::new(4 * n as u32).unwrap();
        let (frame, page) = (|| pool.alloc(Gfp::KERNEL).unwrap(), || high.alloc().unwrap());
        let mixed = scattered(n, frame).into_iter().zip(scattered(n, page)).enumerate();
        Vectors {
            windows: MapWindows::new(&high, WindowsConfig::new(1)).unwrap(),
            mixed: mixed
                .map(|(i, (frame, page))| if i % 2 == 0 { page.into() } else { frame.into() })
                .collect(),
            low: scattered(n, frame),
            high: scattered(n, page),
        }
    }

    fn put(&mut self, base: usize, bytes: &[u8]) {
        fn put<P: MapPageMut>(
            pages: &mut [P],
            base: usize,
            bytes: &[u8],
            windows: &mut MapWindows,
        ) {
            PageCursorMut::new(pages, base, bytes.len())
                .and_then(|mut cursor| cursor.copy_from(windows, bytes))
                .unwrap();
        }
        put(&mut self.low, base, bytes, &mut self.windows);
        put(&mut self.high, base, bytes, &mut self.windows);
        put(&mut self.mixed, base, bytes, &mut self.windows);
    }

    /// All ways of reading it, each of which has to give `expected`.
    fn check(&mut self, base: usize, bytes: &[u8], procedure: DirProc, expected: &Read) {
        self.put(base, bytes);
        let len = bytes.len();
        if !self.high.is_empty() {
            let range = vmap(&self.high).unwrap();
            assert_eq!(&from_range(&range[base..base + len], procedure), expected, "vmap");
        }
        let windows = &mut self.windows;
        let low = from_pages((&self.low, &mut Direct), base, len, procedure);
        assert_eq!(&low, expected, "low pages, base {base}");
        let high = from_pages((&self.high, windows), base, len, procedure);
        assert_eq!(&high, expected, "high pages, base {base}");
        let mixed = from_pages((&self.mixed, windows), base, len, procedure);
        assert_eq!(&mixed, expected, "both kinds, base {base}");
        assert_eq!(windows.usage().held, 0);
    }
}

fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1813), ..Config::default() }
}

prop_compose! {
    fn attrs()(ftype in 1u32..=7, mode in any::<u32>(), size in any::<u64>(), fileid in any::<u64>(),
               mtime in any::<(u32, u32)>()) -> Fattr3 {
        Fattr3 {
            ftype, mode, nlink: 1, uid: 2, gid: 3, size, used: size, rdev: 4, fsid: 5, fileid,
            atime: (6, 7), mtime, ctime: (8, 9),
        }
    }
}

prop_compose! {
    fn owned()(
        fileid in any::<u64>(), cookie in any::<u64>(),
        name in prop::collection::vec(prop_oneof![48u8..=255], 1..=255),
        attrs in prop::option::of(attrs()),
        handle in prop::option::of(prop::collection::vec(any::<u8>(), 0..=64)),
    ) -> Owned {
        let handle = handle.map(|bytes| FileHandle::new(&bytes).unwrap());
        Owned { fileid, name, cookie, attrs, handle }
    }
}

fn procedure() -> impl Strategy<Value = DirProc> {
    prop_oneof![Just(DirProc::ReadDir), Just(DirProc::ReadDirPlus)]
}

proptest! {
    #![proptest_config(cases(400))]

    #[test]
    fn a_page_vector_is_read_as_one_range_of_memory_is(
        entries in prop::collection::vec(owned(), 0..60), eof in any::<bool>(),
        procedure in procedure(), base in 0..2 * PAGE_SIZE,
        edits in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 0..3),
    ) {
        let mut bytes = encoded(&entries, eof, procedure);
        for (at, how, value) in &edits {
            let at = at.index(bytes.len());
            match how % 4 {
                0 => bytes[at] = *value,
                1 => bytes.truncate(at.max(1)),
                2 => bytes.insert(at, *value),
                _ => bytes[at] ^= 1 << (value % 8),
            }
        }
        let mut vectors = Vectors::new((base + bytes.len()).div_ceil(PAGE_SIZE));
        let expected = from_range(&bytes, procedure);
        vectors.check(base, &bytes, procedure, &expected);
        if edits.is_empty() {
            prop_assert_eq!(expected.1, Ok(eof));
            prop_assert_eq!(encoded(&expected.0, eof, procedure), bytes);
        }
    }
}

/// The canary: a reader that looks at one page at a time, and gathers nothing, is found out.
#[test]
fn a_reader_without_a_scratch_buffer_is_found_out() {
    let entry = Owned { fileid: 1, name: vec![b'n'; 99], cookie: 2, attrs: None, handle: None };
    let bytes = encoded(&vec![entry; 100], true, DirProc::ReadDir);
    let expected = from_range(&bytes, DirProc::ReadDir);
    assert_eq!(expected.0.len(), 100);
    let mut alone = vec![];
    for page in bytes.chunks(PAGE_SIZE) {
        let (entries, end) = from_range(page, DirProc::ReadDir);
        alone.extend(entries);
        if end.is_err() {
            break;
        }
    }
    assert!(alone.len() < 100);
}

/// When the only window is taken, the list is told to be unreadable now, and read when it is free.
#[test]
fn without_a_window_a_record_of_a_high_page_waits() {
    let mut vectors = Vectors::new(2);
    let entry = Owned { fileid: 1, name: b"n".to_vec(), cookie: 2, attrs: None, handle: None };
    let bytes = encoded(&[entry], true, DirProc::ReadDir);
    vectors.put(PAGE_SIZE - 6, &bytes);
    let mut reader = DirReader::new(PAGE_SIZE - 6, bytes.len(), DirProc::ReadDir);
    let held = vectors.windows.try_map(&vectors.high[1]).unwrap();
    let error = reader.next(&vectors.high, &mut vectors.windows.clone());
    assert!(matches!(error, Err(DirError::Map(MapError::Full { .. }))));
    assert_eq!(reader.position(), 0);
    drop(held);
    let record = reader.next(&vectors.high, &mut vectors.windows).unwrap();
    assert!(matches!(record, DirRecord::Entry(entry) if entry.name == b"n"));
}

/// Not left to chance: the longest record, and a short one, with the end of a page before each of their
/// bytes in turn.
#[test]
fn a_record_may_lie_across_the_end_of_a_page_at_every_offset() {
    let long = Owned {
        fileid: u64::MAX - 1,
        name: (0..255).map(|i| 48 + (i % 200) as u8).collect(),
        cookie: 0x0123_4567_89ab_cdef,
        attrs: Some(Fattr3 {
            ftype: 1,
            mode: 2,
            nlink: 3,
            uid: 4,
            gid: 5,
            size: 6,
            used: 7,
            rdev: 8,
            fsid: 9,
            fileid: 10,
            atime: (11, 12),
            mtime: (13, 14),
            ctime: (15, 16),
        }),
        handle: FileHandle::new(&(0..64).collect::<Vec<u8>>()),
    };
    let short = Owned { name: b"s".to_vec(), attrs: None, handle: None, ..long.clone() };
    let entries = [short.clone(), long.clone(), short, long];
    let mut vectors = Vectors::new(3);
    for procedure in [DirProc::ReadDir, DirProc::ReadDirPlus] {
        let bytes = encoded(&entries, true, procedure);
        let expected = from_range(&bytes, procedure);
        assert_eq!(expected.1, Ok(true));
        for base in 0..=PAGE_SIZE {
            vectors.check(base, &bytes, procedure, &expected);
        }
    }
}
