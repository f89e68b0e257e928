//! Goal: reading a list of entries from a page vector gives, byte for byte and error for error, what
//! reading a contiguous copy of it gives; for records that lie across the ends of pages at every offset.
//! Method: random lists, damaged ones too, at every base in a page, in a vector of pages that are
//! nowhere adjacent on purpose. What is decoded is encoded again and compared with the bytes as well.

use netswap_nfs::dir::{DirEntry, DirError, DirProc, DirReader, DirRecord};
use netswap_nfs::proto::{Fattr3, FileHandle};
use netswap_nfs::xdr::{Decoder, Encoder};
use netswap_reserve::windows::Direct;
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

fn from_pages(pages: &[Frame], base: usize, len: usize, procedure: DirProc) -> Read {
    let mut reader = DirReader::new(base, len, procedure);
    let mut entries = vec![];
    loop {
        match reader.next(pages, &mut Direct) {
            Ok(DirRecord::Entry(entry)) => entries.push(Owned::of(&entry)),
            Ok(DirRecord::End { eof }) => return (entries, Ok(eof)),
            Err(error) => return (entries, Err(error)),
        }
    }
}

/// Pages that are not adjacent: every second frame of a pool, backwards.
fn scattered(n: usize) -> Vec<Frame> {
    let pool = PagePool::new(PoolConfig::new(2 * n as u32 + 64));
    let all: Vec<Frame> = (0..2 * n).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    let mut pages: Vec<Frame> = all.into_iter().step_by(2).collect();
    pages.reverse();
    pages
}

fn put(pages: &mut [Frame], base: usize, bytes: &[u8]) {
    for (i, byte) in bytes.iter().enumerate() {
        pages[(base + i) / PAGE_SIZE].bytes_mut()[(base + i) % PAGE_SIZE] = *byte;
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
        let mut pages = scattered((base + bytes.len()).div_ceil(PAGE_SIZE));
        put(&mut pages, base, &bytes);
        let expected = from_range(&bytes, procedure);
        let read = from_pages(&pages, base, bytes.len(), procedure);
        prop_assert_eq!(&read, &expected);
        if edits.is_empty() {
            prop_assert_eq!(read.1, Ok(eof));
            prop_assert_eq!(encoded(&read.0, eof, procedure), bytes);
        }
    }
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
    let mut pages = scattered(3);
    for procedure in [DirProc::ReadDir, DirProc::ReadDirPlus] {
        let bytes = encoded(&entries, true, procedure);
        let expected = from_range(&bytes, procedure);
        assert_eq!(expected.1, Ok(true));
        for base in 0..=PAGE_SIZE {
            put(&mut pages, base, &bytes);
            assert_eq!(from_pages(&pages, base, bytes.len(), procedure), expected, "base {base}");
        }
    }
}
