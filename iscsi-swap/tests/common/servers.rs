//! tgt and istgt, if they are installed: each started in a folder of its own in memory, on a free port of the loopback,
//! and ended by its process id. A machine without them, or without the rights, has none: then `start` says why.

#![allow(dead_code, unreachable_pub)]

use std::fs;
use std::io::Write;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

const STARTS_WITHIN: Duration = Duration::from_secs(20);
const MIB: u64 = 32;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// With its keys raised, as an administrator would who cares for speed.
    Tgt,
    /// With a data segment of 8192 bytes, and R2Ts.
    TgtAsItComes,
    Istgt,
}

pub struct Server {
    kind: Kind,
    dir: PathBuf,
    port: u16,
    /// Of tgtd's control socket.
    control: u32,
    child: Option<Child>,
}

fn which(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let sbin = ["/usr/sbin", "/sbin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(sbin).any(|dir| dir.join(program).is_file())
}

/// Says that a test is skipped, and why; an error in CI.
pub fn skip(why: &str) {
    assert!(std::env::var_os("CI").is_none(), "skipped in CI: {why}");
    // Not by a macro: the harness would show it for tests that fail only.
    let _ = writeln!(std::io::stderr(), "skipped: {why}");
}

impl Server {
    pub fn start(kind: Kind) -> Result<Server, String> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let programs: &[&str] = match kind {
            Kind::Istgt => &["istgt"],
            _ => &["tgtd", "tgtadm"],
        };
        for program in programs {
            if !which(program) {
                return Err(format!("{program} is not installed"));
            }
        }
        // Its control socket is in a folder of root's.
        if kind != Kind::Istgt && fs::create_dir_all("/var/run/tgtd").is_err() {
            return Err("/var/run/tgtd cannot be made: not root".into());
        }
        let n = NEXT.fetch_add(1, Ordering::Relaxed);
        let shm = Path::new("/dev/shm");
        let root = if shm.is_dir() { shm.into() } else { std::env::temp_dir() };
        let dir = root.join(format!("netswap-iscsi-{}-{n}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(|e| e.to_string())?;
        let free = TcpListener::bind("127.0.0.1:0").map_err(|e| e.to_string())?;
        let port = free.local_addr().map_err(|e| e.to_string())?.port();
        drop(free);
        let disk = fs::File::create(dir.join("disk.img")).map_err(|e| e.to_string())?;
        disk.set_len(MIB << 20).map_err(|e| e.to_string())?;
        // The port is nobody else's, so what is left of its number names the control socket as well.
        let mut server =
            Server { kind, dir, port, control: 100 + u32::from(port) % 30_000, child: None };
        server.run()?;
        Ok(server)
    }

    pub fn addr(&self) -> SocketAddr {
        SocketAddr::from(([127, 0, 0, 1], self.port))
    }

    pub fn iqn(&self) -> &'static str {
        match self.kind {
            Kind::Istgt => "iqn.2026-01.test.istgt:disk1",
            _ => "iqn.2026-01.test:disk1",
        }
    }

    pub fn lun(&self) -> u16 {
        u16::from(self.kind != Kind::Istgt)
    }

    /// Starts the program (again), over the same disk.
    pub fn run(&mut self) -> Result<(), String> {
        match self.kind {
            Kind::Istgt => self.run_istgt(),
            _ => self.run_tgt(),
        }
    }

    fn spawn(&mut self, mut command: Command) -> Result<(), String> {
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        self.child = Some(command.spawn().map_err(|e| e.to_string())?);
        Ok(())
    }

    fn wait_for(&self, what: &str, mut is_there: impl FnMut() -> bool) -> Result<(), String> {
        let begun = Instant::now();
        while !is_there() {
            if begun.elapsed() > STARTS_WITHIN {
                return Err(format!("{what} did not come within {STARTS_WITHIN:?}"));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(())
    }

    pub fn admin(&self, args: &[&str]) -> bool {
        let mut command = Command::new("tgtadm");
        command.args(["-C", &self.control.to_string(), "--lld", "iscsi"]).args(args);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
        command.status().is_ok_and(|status| status.success())
    }

    fn run_tgt(&mut self) -> Result<(), String> {
        let mut command = Command::new("tgtd");
        command.args(["-f", "-C", &self.control.to_string(), "-t", "2", "--iscsi"]);
        command.arg(format!("portal=127.0.0.1:{}", self.port));
        self.spawn(command)?;
        self.wait_for("tgtd", || self.admin(&["--op", "show", "--mode", "sys"]))?;
        let disk = self.dir.join("disk.img").display().to_string();
        let target = ["--op", "new", "--mode", "target", "--tid", "1", "-T", self.iqn()];
        let unit =
            ["--op", "new", "--mode", "logicalunit", "--tid", "1", "--lun", "1", "-b", &disk];
        let bind = ["--op", "bind", "--mode", "target", "--tid", "1", "-I", "ALL"];
        if !self.admin(&target) || !self.admin(&unit) {
            return Err("tgtadm refuses".into());
        }
        let keys = [
            ("InitialR2T", "No"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("MaxOutstandingR2T", "8"),
            ("FirstBurstLength", "262144"),
            ("MaxBurstLength", "1048576"),
        ];
        for (key, value) in keys.iter().filter(|_| self.kind == Kind::Tgt) {
            let set = ["--op", "update", "--mode", "target", "--tid", "1", "-n", key, "-v", value];
            if !self.admin(&set) {
                return Err(format!("tgtadm refuses {key}"));
            }
        }
        if self.admin(&bind) { Ok(()) } else { Err("tgtadm does not bind".into()) }
    }

    fn run_istgt(&mut self) -> Result<(), String> {
        let dir = self.dir.display();
        let port = self.port;
        let config = format!(
            "[Global]\n  NodeBase \"iqn.2026-01.test.istgt\"\n  PidFile {dir}/istgt.pid\n  AuthFile {dir}/auth.conf\n  \
             MediaDirectory {dir}\n  LogFacility \"local7\"\n  Timeout 30\n  NopInInterval 20\n  \
             DiscoveryAuthMethod Auto\n  MaxSessions 16\n  MaxConnections 4\n  MaxR2T 32\n  MaxOutstandingR2T 16\n  \
             FirstBurstLength 262144\n  MaxBurstLength 1048576\n  MaxRecvDataSegmentLength 262144\n  \
             InitialR2T Yes\n  ImmediateData Yes\n  ErrorRecoveryLevel 0\n\
             [UnitControl]\n  AuthMethod CHAP Mutual\n  AuthGroup AuthGroup10000\n  Portal UC1 127.0.0.1:0\n  \
             Netmask 127.0.0.1\n\
             [PortalGroup1]\n  Portal DA1 127.0.0.1:{port}\n\
             [InitiatorGroup1]\n  InitiatorName \"ALL\"\n  Netmask 127.0.0.0/8\n\
             [LogicalUnit1]\n  TargetName disk1\n  Mapping PortalGroup1 InitiatorGroup1\n  AuthMethod Auto\n  \
             AuthGroup AuthGroup1\n  UseDigest Auto\n  UnitType Disk\n  QueueDepth 64\n  \
             LUN0 Storage {dir}/disk.img {MIB}MB\n"
        );
        let auth = self.dir.join("auth.conf");
        fs::write(&auth, "").map_err(|e| e.to_string())?;
        fs::set_permissions(&auth, fs::Permissions::from_mode(0o600)).map_err(|e| e.to_string())?;
        let path = self.dir.join("istgt.conf");
        fs::write(&path, config).map_err(|e| e.to_string())?;
        let mut command = Command::new("istgt");
        command.arg("-D").arg("-c").arg(&path);
        self.spawn(command)?;
        let addr = self.addr();
        self.wait_for("istgt", || TcpStream::connect(addr).is_ok())
    }

    /// Ends it as a crash would.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// A byte range of its disk.
    pub fn disk(&self, at: u64, len: usize) -> Vec<u8> {
        use std::os::unix::fs::FileExt;
        let mut out = vec![0; len];
        fs::File::open(self.dir.join("disk.img")).unwrap().read_exact_at(&mut out, at).unwrap();
        out
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
        let _ = fs::remove_file(format!("/var/run/tgtd/socket.{}", self.control));
        let _ = fs::remove_file(format!("/var/run/tgtd/socket.{}.lock", self.control));
        let _ = fs::remove_dir_all(&self.dir);
    }
}
