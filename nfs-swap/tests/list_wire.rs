//! Goal: what the lister sends is, byte for byte, what RFC 1813 says; and no reply, however wrong, makes
//! it panic, hang, or list without end.
//! Method: replies written by hand, word by word; random damage to good ones; servers that are made up to
//! go in circles.

use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_nfs::dir::{DirEntry, DirHead, DirProc, DirRecord};
use netswap_nfs::proto::FileHandle;
use netswap_nfs::xdr::Encoder;
use netswap_nfs::{ListError, ListEvent, ListerConfig, NfsLister};
use netswap_reserve::{Gfp, PagePool, PoolConfig, Time};
use proptest::prelude::*;
use proptest::test_runner::{Config, RngSeed};

const NOW: Time = Time::ZERO;
const PLUS: DirProc = DirProc::ReadDirPlus;
const PLAIN: DirProc = DirProc::ReadDir;

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_be_bytes()).collect()
}

fn record(body: &[u8]) -> Vec<u8> {
    [&(body.len() as u32 | 1 << 31).to_be_bytes(), body].concat()
}

fn call(xid: u32, program: u32, procedure: u32, args: &[u8]) -> Vec<u8> {
    let header = words(&[xid, 0, 2, program, 3, procedure, 1, 28, 64, 7]);
    let rest = [b"krypton\0", &words(&[515, 4, 0, 0, 0])[..]].concat();
    record(&[&header, &rest, args].concat())
}

fn sent(lister: &mut NfsLister) -> Vec<u8> {
    let mut out = SendVec::new();
    lister.poll_send(NOW, &mut out);
    let bytes = out.concat();
    drop(out);
    lister.handle_sent(NOW, bytes.len());
    bytes
}

/// Gives as much as is taken.
fn give(lister: &mut NfsLister, bytes: &[u8]) {
    let mut left = bytes;
    loop {
        let buf = lister.recv_buffer();
        let n = buf.len().min(left.len());
        if n == 0 {
            break;
        }
        buf[..n].copy_from_slice(&left[..n]);
        lister.handle_received(NOW, n);
        left = &left[n..];
    }
}

fn reply(xid: u32, results: &[u8]) -> Vec<u8> {
    record(&[&words(&[xid, 1, 0, 0, 0, 0]), results].concat())
}

/// A lister that has asked for its first page, as call 66.
fn asking(pages: u32) -> NfsLister {
    let pool = PagePool::new(PoolConfig::new(64 + pages));
    let frames = (0..pages).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
    let mut config = ListerConfig::new("10.0.0.2:2049".parse().unwrap(), "/export", "");
    (config.uid, config.gid, config.machine, config.first_xid) = (515, 4, "krypton".into(), 64);
    let mut lister = NfsLister::new(config, frames, NOW);
    assert!(matches!(lister.poll_action(NOW), Some(Action::Connect { .. })));
    lister.handle_connected(NOW);
    assert_eq!(sent(&mut lister), call(65, 100_005, 1, b"\0\0\0\x07/export\0"));
    give(&mut lister, &reply(65, b"\0\0\0\0\0\0\0\x05rooty\0\0\0\0\0\0\0"));
    let args = [b"\0\0\0\x05rooty\0\0\0", &[0; 16][..], &words(&[4096 * pages; 2])].concat();
    assert_eq!(sent(&mut lister), call(66, 100_003, 17, &args));
    lister
}

fn entry(name: &[u8], cookie: u64) -> DirRecord<'_> {
    let handle = FileHandle::new(b"h");
    DirRecord::Entry(DirEntry { fileid: cookie + 7, name, cookie, attrs: None, handle })
}

fn encoded(procedure: DirProc, records: &[DirRecord<'_>]) -> Vec<u8> {
    let mut buf = vec![0; 100_000];
    let mut out = Encoder::new(&mut buf);
    DirHead { attrs: None, cookieverf: *b"verifier" }.encode(&mut out).unwrap();
    records.iter().for_each(|record| record.encode(&mut out, procedure).unwrap());
    let len = out.len();
    buf.truncate(len);
    buf
}

/// What events there are; an entry as its name.
fn events(lister: &mut NfsLister) -> Vec<String> {
    let mut seen = vec![];
    while let Some(event) = lister.poll_event(NOW) {
        seen.push(match event {
            ListEvent::Entry(entry) => String::from_utf8_lossy(entry.name).into(),
            other => format!("{other:?}"),
        });
    }
    seen
}

const END: DirRecord<'_> = DirRecord::End { eof: true };
const MORE: DirRecord<'_> = DirRecord::End { eof: false };

#[test]
fn the_next_page_is_asked_for_by_the_last_cookie_and_its_verifier() {
    let mut lister = asking(2);
    let page = encoded(PLUS, &[entry(b"a", 1 << 40), entry(b"b", 3), MORE]);
    give(&mut lister, &reply(66, &page));
    assert_eq!(events(&mut lister), ["a", "b"]);
    let cookie = [&3u64.to_be_bytes()[..], b"verifier"].concat();
    let args = [b"\0\0\0\x05rooty\0\0\0", &cookie[..], &words(&[8192; 2])].concat();
    assert_eq!(sent(&mut lister), call(67, 100_003, 17, &args));
    give(&mut lister, &reply(67, &encoded(PLUS, &[END])));
    assert_eq!(events(&mut lister), ["End(Ok(()))"]);
    assert_eq!(lister.poll_action(NOW), Some(Action::Close));
    assert_eq!(events(&mut lister), [] as [&str; 0]);
}

#[test]
fn a_server_without_readdirplus_is_asked_by_readdir_from_the_start() {
    let refusals = [reply(67, &words(&[10_004, 0])), record(&words(&[67, 1, 0, 0, 0, 3]))];
    for refusal in refusals {
        let mut lister = asking(1);
        give(&mut lister, &reply(66, &encoded(PLUS, &[entry(b"a", 1), MORE])));
        assert_eq!(events(&mut lister), ["a"]);
        sent(&mut lister);
        give(&mut lister, &refusal);
        assert_eq!(events(&mut lister), ["Restarted"]);
        let args = [b"\0\0\0\x05rooty\0\0\0", &[0; 16][..], &words(&[4096])].concat();
        assert_eq!(sent(&mut lister), call(68, 100_003, 16, &args));
        give(&mut lister, &reply(68, &encoded(PLAIN, &[entry(b"a", 1), END])));
        assert_eq!(events(&mut lister), ["a", "End(Ok(()))"]);
        assert!(lister.is_plain());
    }
}

#[test]
fn a_malformed_list_ends_the_connection_and_after_four_the_listing_and_gives_no_entry() {
    let good = encoded(PLUS, &[entry(b"a", 1), entry(b"b", 2), END]);
    let at = |i: usize, word: u32| {
        let mut list = good.clone();
        list[i..i + 4].copy_from_slice(&word.to_be_bytes());
        list
    };
    // status 0, attributes 4, verifier 8; an entry: follows 16, fileid 20, name length 28, name 32,
    // cookie 36, attributes 44, handle follows 48, length 52, handle 56; the next entry begins at 60.
    let cases = [
        (at(4, 2), "a boolean that is neither 0 nor 1"),
        (at(16, 2), "a boolean that is neither 0 nor 1"),
        (at(60, 7), "a boolean that is neither 0 nor 1"),
        (at(28, 256), "a length above its bound"),
        (at(28, u32::MAX), "a length above its bound"),
        (at(52, 65), "a length above its bound"),
        (at(96, 64), "a message that ends too early"),
        // The cookie is read as a name, the rest moves up.
        (at(28, 0), "an unknown ftype3"),
        (at(32, u32::from_be_bytes(*b"/\0\0\0")), "a name that is empty or holds a slash or NUL"),
        (at(32, 0), "a name that is empty or holds a slash or NUL"),
        (at(60, 0), "bytes after the end of a message"),
        (at(0, 77), "an unknown nfsstat3"),
        (good[..good.len() - 4].to_vec(), "a message that ends too early"),
        (good[..good.len() - 8].to_vec(), "a message that ends too early"),
        ([&good[..], &[0; 4]].concat(), "bytes after the end of a message"),
        (good[..12].to_vec(), "a message that ends too early"),
        (encoded(PLUS, &[MORE]), "a list without entries that is not the last"),
        (encoded(PLUS, &vec![entry(&[b'n'; 255], 1); 15]), "a list longer than was asked for"),
        (vec![0xff; 2000], "a reply that is too long"),
    ];
    for (list, what) in cases {
        let mut lister = asking(1);
        for round in 0..4 {
            give(&mut lister, &reply(66, &list));
            assert_eq!(lister.poll_action(NOW), Some(Action::Abort), "{what}, round {round}");
            if round < 3 {
                assert_eq!(events(&mut lister), [] as [&str; 0]);
                lister.handle_disconnected(NOW, Disconnect::BySelf);
                let later = Time::from_nanos(50_000_000);
                assert!(matches!(lister.poll_action(later), Some(Action::Connect { .. })));
                lister.handle_connected(later);
                assert_eq!(sent(&mut lister)[4..8], 66u32.to_be_bytes(), "the same call");
            }
        }
        let end = ListEvent::End(Err(ListError::Garbage { what }));
        assert_eq!(lister.poll_event(NOW), Some(end));
    }
}

#[test]
fn a_server_that_goes_in_circles_is_noticed() {
    // Each page has one entry; `next` says which cookie follows which.
    let circles: [(&dyn Fn(u64) -> u64, u64); 4] = [
        (&|_| 5, 3),
        (&|cookie| cookie % 7 + 1, 30),
        (&|cookie| if cookie == 50 { 0 } else { cookie + 1 }, 60),
        (&|cookie| if cookie < 100 { cookie + 1 } else { 40 }, 400),
    ];
    for (next, pages_max) in circles {
        let mut lister = asking(1);
        let mut cookie = 0;
        for page in 0.. {
            assert!(u64::from(page) < pages_max, "not noticed in {page} pages");
            cookie = next(cookie);
            give(&mut lister, &reply(66 + page, &encoded(PLUS, &[entry(b"a", cookie), MORE])));
            let seen = events(&mut lister);
            if seen == ["a"] {
                sent(&mut lister);
                continue;
            }
            assert_eq!(seen, [format!("End(Err(Circle {{ cookie: {cookie} }}))")]);
            break;
        }
    }
}

#[test]
fn records_that_nobody_waits_for_touch_nothing() {
    let mut lister = asking(1);
    let list = encoded(PLUS, &[entry(b"a", 1), entry(b"b", 2), END]);
    give(&mut lister, &reply(65, &encoded(PLUS, &[entry(b"late", 9), END])));
    give(&mut lister, &reply(66, &list));
    assert!(matches!(lister.poll_event(NOW), Some(ListEvent::Entry(e)) if e.name == b"a"));
    // The same again, and another: the pages with what was not given out yet stay.
    let mut lister2 = asking(1);
    give(&mut lister2, &reply(66, &encoded(PLUS, &[entry(b"a", 1), entry(b"b", 2), MORE])));
    assert!(matches!(lister2.poll_event(NOW), Some(ListEvent::Entry(e)) if e.name == b"a"));
    give(&mut lister2, &reply(66, &encoded(PLUS, &[entry(b"x", 1), entry(b"y", 2), END])));
    give(&mut lister2, &reply(67, &encoded(PLUS, &[entry(b"x", 1), entry(b"y", 2), END])));
    assert_eq!(events(&mut lister2), ["b"]);
    assert_eq!(events(&mut lister), ["b", "End(Ok(()))"]);
}

fn cases(cases: u32) -> Config {
    Config { cases, failure_persistence: None, rng_seed: RngSeed::Fixed(1813), ..Config::default() }
}

proptest! {
    #![proptest_config(cases(600))]

    #[test]
    fn a_lister_survives_any_stream(
        names in prop::collection::vec(prop::collection::vec(1u8..=255, 1..256), 0..30),
        edits in prop::collection::vec(any::<(prop::sample::Index, u8, u8)>(), 0..4),
        junk in prop::collection::vec(any::<u8>(), 0..200),
        eof in any::<bool>(),
    ) {
        let records: Vec<_> = names.iter().enumerate()
            .map(|(i, name)| entry(name, i as u64 + 1))
            .chain([DirRecord::End { eof }])
            .collect();
        let mut stream = reply(66, &encoded(PLUS, &records));
        for (at, how, value) in edits {
            let at = at.index(stream.len());
            match how % 4 {
                0 => stream[at] = value,
                1 => stream[at] ^= 1 << (value % 8),
                2 => stream.truncate(at + 1),
                _ => stream.insert(at, value),
            }
        }
        let mut lister = asking(2);
        give(&mut lister, &stream);
        let mut given = 0;
        while let Some(event) = lister.poll_event(NOW) {
            if let ListEvent::Entry(entry) = event {
                prop_assert!(!entry.name.contains(&b'/') && entry.name.len() <= 255);
                given += 1;
            }
        }
        prop_assert!(given <= 8192 / 24);
        give(&mut lister, &junk);
        sent(&mut lister);
        give(&mut lister, &junk);
        lister.handle_disconnected(NOW, Disconnect::Reset);
        prop_assert!(lister.poll_event(Time::from_nanos(u64::MAX / 2)).is_none()
            || lister.poll_event(NOW).is_none());
    }
}
