//! Goal: a portal's targets and a target's units are listed, or it is said why not; and looking does not
//! disturb a session that swaps.
//! Method: the listing joined to the embedded target in chunks of every size, and to a peer that lies.

mod common;

use common::{IQN, deliver, target_config};
use netswap_iscsi::discovery::TEXT_BYTES_MAX;
use netswap_iscsi::pdu::{LoginResponse, Sns, TextResponse};
use netswap_iscsi::{
    AuthError, ChapConfig, Credentials, Digest, DiscoveryConfig, DiscoveryError, DiscoveryEvent,
    IscsiDiscovery, IscsiTarget, LoginError, Moved, TargetConfig,
};
use netswap_net::{Action, Disconnect, SendVec, Session};
use netswap_reserve::{PagePool, PoolConfig, Time};
use netswap_swap::MemDisk;

fn config(target: Option<&str>) -> DiscoveryConfig {
    DiscoveryConfig::new("10.0.0.2:3260".parse().unwrap(), target)
}

fn target(config: TargetConfig) -> IscsiTarget<MemDisk> {
    let pool = PagePool::new(PoolConfig::new(config.frames() + 64));
    let mut target = IscsiTarget::new(config, pool).unwrap();
    for (lun, block, len) in [(0, 512, 1 << 20), (3, 4096, 1 << 21), (300, 512, 1 << 22)] {
        target.add_lun(lun, MemDisk::new(len), block, false).unwrap();
    }
    target
}

/// Takes what is sent, `chunk` bytes at most.
fn take(end: &mut dyn Session, now: Time, chunk: usize) -> Vec<u8> {
    let mut out = SendVec::new();
    end.poll_send(now, &mut out);
    let mut bytes = out.concat();
    bytes.truncate(chunk);
    drop(out);
    end.handle_sent(now, bytes.len());
    bytes
}

struct World {
    discovery: IscsiDiscovery,
    target: IscsiTarget<MemDisk>,
    now: Time,
    chunk: usize,
    open: bool,
    up: Vec<u8>,
    down: Vec<u8>,
    connects: Vec<String>,
}

impl World {
    fn new(own: DiscoveryConfig, config: TargetConfig, chunk: usize) -> World {
        World {
            discovery: IscsiDiscovery::new(own, Time::ZERO),
            target: target(config),
            now: Time::ZERO,
            chunk,
            open: false,
            up: Vec::new(),
            down: Vec::new(),
            connects: Vec::new(),
        }
    }

    /// Everything that is found, one a line, and how it ends.
    fn run(&mut self) -> (Vec<String>, Result<(), DiscoveryError>) {
        let mut found = Vec::new();
        for _ in 0..100_000 {
            while let Some(event) = self.discovery.poll_event() {
                found.push(match event {
                    DiscoveryEvent::End(end) => return (found, end),
                    DiscoveryEvent::Target { name } => name.into(),
                    DiscoveryEvent::Portal { address, group } => format!("  {address} {group:?}"),
                    DiscoveryEvent::Unit(unit) => {
                        let capacity = unit.capacity.unwrap();
                        let vendor = String::from_utf8_lossy(&unit.vendor).into_owned();
                        let (blocks, size) = (capacity.blocks, capacity.block_size);
                        format!("{} {} {vendor}{blocks}*{size}", unit.lun, unit.device)
                    }
                });
            }
            self.step();
        }
        panic!("it never ends: {:?}", self.discovery);
    }

    fn step(&mut self) {
        let before = (self.up.len(), self.down.len());
        let mut did = false;
        match self.discovery.poll_action(self.now) {
            Some(Action::Connect { remote, .. }) => {
                self.connects.push(remote.to_string());
                self.open = true;
                self.target.connection(0).handle_connected(self.now);
                self.discovery.handle_connected(self.now);
                did = true;
            }
            Some(_) => self.close(Disconnect::BySelf),
            None => {}
        }
        if self.open {
            let end = &mut self.target.connection(0);
            self.up.extend(take(&mut self.discovery, self.now, self.chunk));
            let n = deliver(end, self.now, &self.up);
            self.up.drain(..n);
            self.down.extend(take(end, self.now, self.chunk));
            did |= n > 0;
            let n = deliver(&mut self.discovery, self.now, &self.down);
            self.down.drain(..n);
            did |= n > 0;
            if self.target.connection(0).poll_action(self.now).is_some() && self.open {
                let rest = std::mem::take(&mut self.down);
                deliver(&mut self.discovery, self.now, &rest);
                self.close(Disconnect::ByPeer);
            }
        }
        did |= before != (self.up.len(), self.down.len());
        if !did && let Some(due) = Session::poll_deadline(&self.discovery) {
            self.now = self.now.max(due);
            self.discovery.handle_deadline(self.now);
        }
    }

    fn close(&mut self, why: Disconnect) {
        self.open = false;
        self.up.clear();
        self.down.clear();
        self.target.connection(0).handle_disconnected(self.now, why);
        self.discovery.handle_disconnected(self.now, why);
    }
}

fn chap() -> Option<ChapConfig> {
    Some(ChapConfig {
        initiator: Credentials::new("alice", b"secretpass12").unwrap(),
        target: Credentials::new("targ", b"targetpass34"),
    })
}

#[test]
fn targets_and_their_portals_however_the_text_is_cut() {
    let portals = ["10.0.0.2:3260,1", "[fe80::1]:3260,2", "server.example"];
    for (text_chunk, chunk, secure) in
        [(8192, 1 << 20, false), (8192, 1, true), (25, 7, true), (25, 100, false)]
    {
        let (mut own, mut theirs) = (config(None), target_config());
        theirs.portals = portals.map(Into::into).into();
        theirs.keys.text_chunk = text_chunk;
        if secure {
            (own.chap, theirs.chap) = (chap(), chap());
            (own.header_digest, own.data_digest) = (Digest::Crc32c, Digest::Crc32c);
            (theirs.keys.header_digest, theirs.keys.data_digest) = (Digest::Prefer, Digest::Prefer);
        }
        let mut world = World::new(own, theirs, chunk);
        let (found, end) = world.run();
        assert_eq!(end, Ok(()));
        let want =
            [IQN, "  10.0.0.2:3260 Some(1)", "  [fe80::1]:3260 Some(2)", "  server.example None"];
        assert_eq!(found, want);
        assert_eq!(world.target.protocol_errors() + world.target.digest_errors(), 0);
        assert_eq!(world.discovery.poll_event(), None);
    }
}

#[test]
fn units_with_their_sizes() {
    let want = ["0 0 NETSWAP 2048*512", "3 0 NETSWAP 512*4096", "300 0 NETSWAP 8192*512"]
        .map(String::from);
    for chunk in [1, 50, 1 << 20] {
        for status_with_data in [false, true] {
            let mut theirs = target_config();
            theirs.status_with_data = status_with_data;
            // Unit attention and BUSY are asked again.
            theirs.faults.busy_ppm = 200_000;
            theirs.seed = chunk as u64;
            let mut world = World::new(config(Some(IQN)), theirs, chunk);
            world.target.restart(Time::ZERO);
            let (found, end) = world.run();
            assert_eq!((&found[..], end), (&want[..], Ok(())));
        }
    }
}

#[test]
fn what_goes_wrong_is_the_end_and_says_why() {
    let run = |own: DiscoveryConfig, theirs: TargetConfig| World::new(own, theirs, 1000).run().1;
    let other = run(config(Some("iqn.2026-01.test:other")), target_config());
    assert_eq!(other, Err(LoginError::Refused(0x0203).into()));
    let mut theirs = target_config();
    theirs.chap = chap();
    let needed = run(config(None), theirs.clone());
    assert_eq!(needed, Err(LoginError::Auth(AuthError::CredentialsNeeded).into()));
    let mut own = config(None);
    own.chap =
        Some(ChapConfig { initiator: Credentials::new("alice", b"wrong").unwrap(), target: None });
    let wrong = run(own, theirs);
    assert_eq!(wrong, Err(LoginError::Auth(AuthError::WrongSecret).into()));
    let mut theirs = target_config();
    theirs.faults.busy_ppm = 1_000_000;
    let busy = run(config(Some(IQN)), theirs);
    assert!(matches!(busy, Err(DiscoveryError::Refused { what: "REPORT LUNS", .. })), "{busy:?}");
}

#[test]
fn nobody_there_and_everywhere_else() {
    let mut nobody = IscsiDiscovery::new(config(None), Time::ZERO);
    assert!(nobody.poll_action(Time::ZERO).is_some());
    let due = Session::poll_deadline(&nobody).unwrap();
    nobody.handle_deadline(due);
    assert_eq!(nobody.poll_action(due), Some(Action::Abort));
    nobody.handle_disconnected(due, Disconnect::BySelf);
    assert_eq!(nobody.poll_event(), Some(DiscoveryEvent::End(Err(DiscoveryError::TimedOut))));
    assert_eq!(Session::poll_deadline(&nobody), None);

    let mut world = World::new(config(None), target_config(), 1000);
    world.target.redirect(Some(Moved { address: "10.0.0.9".into(), permanent: false }));
    let (_, end) = world.run();
    assert_eq!(end, Err(LoginError::TooManyRedirects.into()));
    assert_eq!(world.connects[0], "10.0.0.2:3260");
    assert!(world.connects.len() == 5 && world.connects[1..].iter().all(|a| a == "10.0.0.9:3260"));
}

/// A listing that is logged in, at a peer that is only bytes.
fn logged_in() -> IscsiDiscovery {
    let mut discovery = IscsiDiscovery::new(config(None), Time::ZERO);
    discovery.poll_action(Time::ZERO);
    discovery.handle_connected(Time::ZERO);
    for stage in 0..2u8 {
        take(&mut discovery, Time::ZERO, 1 << 20);
        let login = LoginResponse {
            transit: true,
            more: false,
            csg: stage,
            nsg: [1, 3][usize::from(stage)],
            version_max: 0,
            version_active: 0,
            isid: [0; 6],
            tsih: 1,
            itt: 0,
            sns: Sns { stat_sn: stage.into(), exp_cmd_sn: 1, max_cmd_sn: 1000 },
            status: 0,
            data_len: 0,
        };
        deliver(&mut discovery, Time::ZERO, &login.build());
    }
    discovery
}

fn answer(discovery: &mut IscsiDiscovery, stat_sn: u32, last: bool, text: &[u8]) {
    take(discovery, Time::ZERO, 1 << 20);
    let sns = Sns { stat_sn, exp_cmd_sn: 2, max_cmd_sn: 1000 };
    let ttt = if last { u32::MAX } else { 5 };
    let pdu = TextResponse { last, more: false, itt: 1, ttt, sns, data_len: text.len() as u32 };
    let mut bytes = pdu.build().to_vec();
    bytes.extend_from_slice(text);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    deliver(discovery, Time::ZERO, &bytes);
}

fn end(discovery: &mut IscsiDiscovery) -> Option<Result<(), DiscoveryError>> {
    loop {
        match discovery.poll_event()? {
            DiscoveryEvent::End(end) => return Some(end),
            _ => continue,
        }
    }
}

#[test]
fn a_peer_that_lies_is_found_out() {
    for (text, hint) in [
        (&b"TargetName=iqn.a"[..], "cannot be read"),
        (b"TargetName\0", "cannot be read"),
        (b"TargetName=\0", "unknown key"),
        (b"Other=1\0", "unknown key"),
        (b"SendTargets=Reject\0", "SendTargets refused"),
    ] {
        let mut discovery = logged_in();
        answer(&mut discovery, 2, true, text);
        let error = end(&mut discovery).unwrap().unwrap_err().to_string();
        assert!(error.contains(hint), "{error}");
    }
    let mut discovery = logged_in();
    answer(&mut discovery, 7, true, b"");
    assert_eq!(end(&mut discovery), Some(Err(DiscoveryError::Garbage { what: "wrong StatSN" })));
    // A list without end has one.
    let mut discovery = logged_in();
    let line = b"TargetAddress=10.0.0.2:3260,1\0".repeat(500);
    for stat_sn in 2..1000 {
        answer(&mut discovery, stat_sn, false, &line);
        if let Some(end) = end(&mut discovery) {
            let many = DiscoveryError::TooMany { what: "bytes", max: TEXT_BYTES_MAX };
            assert_eq!(end, Err(many));
            return;
        }
    }
    panic!("a list without end");
}

#[test]
fn looking_at_a_target_does_not_end_the_session_that_swaps() {
    let (initiator, theirs) = (common::initiator_config(), target_config());
    assert_eq!(initiator.initiator, config(None).initiator);
    assert_ne!(initiator.isid, config(None).isid);
    // The canary: with the same ISID it does.
    for same in [false, true] {
        let mut pump = common::Pump::new(1, common::initiator_config(), theirs.clone());
        pump.ready();
        let mut own = config(Some(IQN));
        if same {
            own.isid = initiator.isid;
        }
        let mut discovery = IscsiDiscovery::new(own, pump.now);
        discovery.poll_action(pump.now);
        discovery.handle_connected(pump.now);
        pump.target.connection(1).handle_connected(pump.now);
        for _ in 0..20 {
            let bytes = take(&mut discovery, pump.now, 1 << 20);
            deliver(&mut pump.target.connection(1), pump.now, &bytes);
            let bytes = take(&mut pump.target.connection(1), pump.now, 1 << 20);
            deliver(&mut discovery, pump.now, &bytes);
        }
        assert!(matches!(discovery.poll_event(), Some(DiscoveryEvent::Unit(_))));
        let aborted = pump.target.connection(0).poll_action(pump.now).is_some();
        assert_eq!(aborted, same);
    }
}
