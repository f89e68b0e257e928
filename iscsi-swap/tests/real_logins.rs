//! Goal: CHAP in both directions, digests and discovery work with targets that others wrote.
//! Method: tgt and istgt on the loopback; pages are written and read back through each of their targets, with each set of
//! digests; each wrong way to log in is tried; what they list is compared with what they were given.

#[path = "common/kernel.rs"]
mod kernel;
#[path = "common/servers.rs"]
mod servers;

use kernel::{Net, config};
use netswap_iscsi::{
    AuthError, DiscoveryError, DiscoveryEvent, Entropy, IscsiBackend, IscsiDiscovery, IscsiListUrl,
    LoginError,
};
use netswap_reserve::{Gfp, PAGE_SIZE, PagePool, PoolConfig, Span};
use netswap_swap::{BackendState, Op, PageVec, Request, RequestId, Slot, SwapBackend};
use servers::{Kind, Server, UNIT_BYTES};

const USER: (&str, &str) = ("alice", "secretpass12");
const TARGET_USER: (&str, &str) = ("targ", "targetpass34");
const REQUESTS: u32 = 32;

fn fill(page: &mut [u8], slot: u32) {
    for (at, word) in page.chunks_exact_mut(8).enumerate() {
        word.copy_from_slice(&(u64::from(slot) << 32 | at as u64).to_be_bytes());
    }
}

/// Writes requests of 1 to 16 pages, reads them back, and looks at them.
fn pages_come_back(url: &str, digests: (bool, bool)) {
    let mut net = Net::new();
    let mut backend = IscsiBackend::new(config(url));
    let state = net.start(&mut backend);
    let slots = (UNIT_BYTES / PAGE_SIZE as u64) as u32;
    assert_eq!(state, BackendState::Ready { slots }, "{url}: {:?}", backend.login_error());
    let params = backend.params();
    assert_eq!((params.header_digest, params.data_digest), digests, "{url}");
    let pool = PagePool::new(PoolConfig::new(1024));
    for op in [Op::Write, Op::Read] {
        for id in 0..REQUESTS {
            let (first, count) = (id * 16, 1 + id % 16);
            let mut pages: PageVec = (0..count).map(|_| pool.alloc(Gfp::KERNEL).unwrap()).collect();
            for (slot, page) in (first..).zip(&mut pages) {
                match op {
                    Op::Write => fill(page.bytes_mut(), slot),
                    Op::Read => page.bytes_mut().fill(0xee),
                }
            }
            let first = Slot(first);
            let request = Request { id: RequestId(id), op, first, pages, deadline: None };
            backend.submit(net.now(), request).unwrap();
        }
        let limit = net.now() + Span::from_secs(30);
        let mut ended = 0;
        while ended < REQUESTS {
            net.turn(&mut backend, Span::from_millis(20));
            assert!(net.now() < limit, "{url}: stuck");
            while let Some(completion) = backend.poll_completion(net.now()) {
                assert!(completion.outcome.is_ok(), "{url}: {:?}", completion.outcome);
                ended += 1;
                let mut want = [0; PAGE_SIZE];
                for (slot, page) in (completion.id.0 * 16..).zip(&completion.pages) {
                    fill(&mut want, slot);
                    assert!(page.bytes()[..] == want[..], "{url}: {op:?} of slot {slot}");
                }
            }
        }
    }
    let stats = backend.stats();
    assert_eq!((stats.logins, stats.garbage, stats.digest_errors), (1, 0, 0), "{url}");
}

fn fails(url: &str, error: AuthError) {
    let mut backend = IscsiBackend::new(config(url));
    let state = Net::new().start(&mut backend);
    assert!(matches!(state, BackendState::Failed(_)), "{url}: {state:?}");
    assert_eq!(backend.login_error(), Some(LoginError::Auth(error)), "{url}");
}

/// What is listed, one a line. Discovery has one connection and no second try, and on a busy machine istgt may end a new
/// connection together with the one before it, when it sees that that is gone.
fn list(url: &str) -> Vec<String> {
    for _ in 0..5 {
        match try_list(url) {
            Ok(found) => return found,
            Err(DiscoveryError::Disconnected(_)) => {}
            Err(error) => panic!("{url}: {error}"),
        }
    }
    panic!("{url}: five connections lost");
}

fn try_list(url: &str) -> Result<Vec<String>, DiscoveryError> {
    let mut net = Net::new();
    let url: IscsiListUrl = url.parse().unwrap();
    let chap = url.portal.credentials(|_| None).unwrap();
    let config = url.config([127, 0, 0, 1].into(), chap, Entropy::new([0x5a; 32]));
    let mut discovery = IscsiDiscovery::new(config, net.now());
    let mut found = Vec::new();
    let limit = net.now() + Span::from_secs(30);
    loop {
        net.turn(&mut discovery, Span::from_millis(20));
        assert!(net.now() < limit, "{url}: stuck");
        while let Some(event) = discovery.poll_event() {
            found.push(match event {
                DiscoveryEvent::Target { name } => name.to_string(),
                DiscoveryEvent::Portal { address, group } => format!("  {address} {group:?}"),
                DiscoveryEvent::Unit(unit) => {
                    let bytes = unit.capacity.map(|c| c.blocks * u64::from(c.block_size));
                    format!("{} {} {bytes:?}", unit.lun, unit.device)
                }
                DiscoveryEvent::End(end) => return end.map(|()| found),
            });
        }
    }
}

/// All of it, with a server that has these units in each target.
fn everything(kind: Kind, units: &[String]) {
    let Some(server) = Server::with_chap(kind, [USER, TARGET_USER]) else { return };
    let (user, secret) = USER;
    let (target_user, target_secret) = TARGET_USER;
    let [plain, chap, digest] = ["disk1", "chap", "digest"].map(|name| server.url(name));
    let mutual = |secret: &str, target_secret: &str| {
        let target = format!("target_user={target_user}&target_password={target_secret}");
        chap.replace("://", &format!("://{user}%{secret}@")) + "?" + &target
    };
    let both = "header_digest=crc32c&data_digest=crc32c";
    pages_come_back(&plain, (false, false));
    pages_come_back(&format!("{digest}?{both}"), (true, true));
    pages_come_back(&format!("{digest}?header_digest=prefer&data_digest=prefer"), (true, true));
    pages_come_back(&mutual(secret, target_secret), (false, false));
    pages_come_back(&format!("{plain}?write=sync"), (false, false));

    fails(&mutual("anotherpass12", target_secret), AuthError::WrongSecret);
    fails(&mutual(secret, "anotherpass34"), AuthError::TargetUnproven);
    fails(&chap, AuthError::CredentialsNeeded);

    // A URL is scheme, portal, target and unit.
    let parts = |url: &str| -> Vec<String> { url.splitn(5, '/').map(str::to_string).collect() };
    let targets = list(&format!("iscsi://{}", parts(&plain)[2]));
    for url in [&plain, &chap, &digest] {
        let parts = parts(url);
        let at_name = targets.iter().position(|line| *line == parts[3]);
        let portal = &targets[at_name.unwrap() + 1];
        assert_eq!(*portal, format!("  {} Some(1)", parts[2]), "{targets:?}");
    }
    for url in [&plain, &digest] {
        let target = &url[..url.rfind('/').unwrap()];
        let url = format!("{target}?header_digest=prefer&data_digest=prefer");
        assert_eq!(list(&url), units);
    }
}

#[test]
fn tgt() {
    // LUN 0 is its controller.
    everything(Kind::Tgt, &["0 12 None".into(), format!("1 0 {:?}", Some(UNIT_BYTES))]);
}

#[test]
fn istgt() {
    everything(Kind::Istgt, &[format!("0 0 {:?}", Some(UNIT_BYTES))]);
}
