//! A page vector as one range, and a thread's own windows.
//!
//! Method: pages are filled through one kind of mapping and read through another; the bytes have to agree,
//! since all of them show the same memory. That local mappings are a stack, and one thread's, is shown by
//! the programs in `windows::local` that do not compile; here is what does.

use netswap_reserve::windows::{
    HighPage, HighPool, LocalWindows, MapError, MapWindows, Page, VmapError, WindowsConfig, vmap,
    vmap_mut,
};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig};

#[test]
fn a_vector_in_any_order_is_one_range_and_its_bytes_are_the_pages_own() {
    let high = HighPool::new(6).unwrap();
    let windows = MapWindows::new(&high, WindowsConfig::new(2)).unwrap();
    let mut pages: Vec<HighPage> = (0..6).map(|_| high.alloc().unwrap()).collect();
    // In the file: 5, 0, 1, 2, 4, 3.
    pages.swap(0, 5);
    pages.swap(1, 5);
    pages.swap(2, 5);
    pages.swap(3, 5);
    let mut range = vmap_mut(&mut pages).unwrap();
    assert_eq!(range.len(), 6 * PAGE_SIZE);
    for (at, byte) in range.iter_mut().enumerate() {
        *byte = (at / 7) as u8;
    }
    drop(range);
    for (k, page) in pages.iter().enumerate() {
        let bytes = windows.try_map(page).unwrap();
        let want = |at: usize| ((k * PAGE_SIZE + at) / 7) as u8;
        assert!(bytes.iter().enumerate().all(|(at, &b)| b == want(at)), "page {k}");
    }
    // Another order is another range; one page twice is fine to read.
    let twice = [&pages[3], &pages[0], &pages[3]];
    let range = vmap(&twice).unwrap();
    assert_eq!(range[..PAGE_SIZE], range[2 * PAGE_SIZE..]);
    assert_eq!(range[PAGE_SIZE..2 * PAGE_SIZE], windows.try_map(&pages[0]).unwrap()[..]);
}

#[test]
fn a_range_is_unmapped_when_it_is_dropped() {
    let high = HighPool::new(4).unwrap();
    let pages = [high.alloc().unwrap(), high.alloc().unwrap()];
    let range = vmap(&pages).unwrap();
    let maps = || std::fs::read_to_string("/proc/self/maps").unwrap();
    let start = format!("{:x}-", range.as_ptr() as usize);
    let mapped = maps();
    let line = mapped.lines().find(|l| l.starts_with(&start)).unwrap();
    assert!(line.contains("netswap-high-pages"));
    // The file's own number: other tests map other files.
    let inode = line.split_whitespace().nth(4).unwrap();
    drop(range);
    assert!(maps().lines().all(|l| l.split_whitespace().nth(4) != Some(inode)));
}

#[test]
fn low_pages_foreign_pages_and_empty_vectors_have_no_range() {
    let (high, other) = (HighPool::new(4).unwrap(), HighPool::new(1).unwrap());
    let pool = PagePool::new(PoolConfig::new(128));
    let low = pool.alloc(Gfp::KERNEL).unwrap();
    let mut mixed = [Page::High(high.alloc().unwrap()), Page::Low(low)];
    assert_eq!(vmap(&mixed).unwrap_err(), VmapError::LowPage { at: 1 });
    assert_eq!(vmap_mut(&mut mixed).unwrap_err(), VmapError::LowPage { at: 1 });
    let two_pools = [high.alloc().unwrap(), other.alloc().unwrap()];
    assert_eq!(vmap(&two_pools).unwrap_err(), VmapError::OtherPool { at: 1 });
    assert_eq!(vmap::<HighPage>(&[]).unwrap_err(), VmapError::Empty);
}

#[test]
fn local_mappings_nest_to_their_depth_and_keep_what_they_showed() {
    let high = HighPool::new(3).unwrap();
    let mut local = LocalWindows::new(&high, 2).unwrap();
    let mut pages: Vec<HighPage> = (0..3).map(|_| high.alloc().unwrap()).collect();
    for (k, page) in pages.iter_mut().enumerate() {
        local.map_mut(page).unwrap().fill(k as u8 + 1);
    }
    assert_eq!((local.hits(), local.misses(), local.used()), (0, 3, 0));
    let [a, b, c] = &mut pages[..] else { panic!() };
    let mut outer = local.map(a).unwrap();
    let mut inner = outer.map_mut(b).unwrap();
    assert_eq!(inner.map(c).unwrap_err(), MapError::TooDeep { depth: 2 });
    let (from, to) = inner.both();
    to[..10].copy_from_slice(&from[..10]);
    assert_eq!(inner.outer().unwrap()[0], 1);
    drop(inner);
    assert_eq!(outer[0], 1);
    drop(outer);
    // The inner window was given back first and still shows the page: page a is a hit in the outer one.
    let mut outer = local.map(a).unwrap();
    assert_eq!(outer.map(b).unwrap()[9..11], [1, 2]);
    drop(outer);
    assert_eq!((local.hits(), local.used()), (2, 0));
}

#[test]
fn a_low_page_takes_no_local_window() {
    let high = HighPool::new(1).unwrap();
    let mut local = LocalWindows::new(&high, 1).unwrap();
    let pool = PagePool::new(PoolConfig::new(128));
    let mut frames = [pool.alloc(Gfp::KERNEL).unwrap(), pool.alloc(Gfp::KERNEL).unwrap()];
    let [one, two] = &mut frames;
    let page = high.alloc().unwrap();
    let mut high_one = local.map(&page).unwrap();
    let mut low = high_one.map_mut(one).unwrap();
    low[0] = 1;
    let mut lower = low.map_mut(two).unwrap();
    lower[0] = 2;
    assert_eq!(lower.outer().unwrap()[0], 1);
    drop(lower);
    drop(low);
    drop(high_one);
    assert_eq!((local.misses(), local.used()), (1, 0));
    assert_eq!(frames.map(|f| f.bytes()[0]), [1, 2]);
}
