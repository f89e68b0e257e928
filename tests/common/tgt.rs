//! tgt, if it is installed: in a folder of its own, on a free port of the loopback, told by its own control socket, and
//! ended by its process id. It needs no rights.
//!
//! Its targets are in its memory alone: a start after a kill tells it all of them again, and until then it
//! refuses logins.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use super::daemon::{Daemon, Folder, find, free_port, wait_for};

/// Numbers the control socket, which is in the folder: any will do.
const CONTROL: &str = "7";

/// A target with one unit, LUN 1.
#[derive(Clone, Debug)]
pub(crate) struct Target {
    /// The end of its name.
    pub(crate) name: &'static str,
    pub(crate) bytes: u64,
    pub(crate) block: u32,
    pub(crate) is_read_only: bool,
    /// Takes UNMAP.
    pub(crate) is_thin: bool,
    /// User and password of the initiator, then the target's own.
    pub(crate) accounts: Vec<(&'static str, &'static str)>,
    /// Keys of the login, with the values that it insists on.
    pub(crate) keys: Vec<(&'static str, &'static str)>,
}

impl Target {
    /// With the keys that make its writes twice as fast as its defaults do, and without the 2 s that it has
    /// clients wait before they come back.
    pub(crate) fn new(name: &'static str, bytes: u64) -> Target {
        let keys = vec![
            ("InitialR2T", "No"),
            ("MaxRecvDataSegmentLength", "262144"),
            ("MaxOutstandingR2T", "8"),
            ("FirstBurstLength", "262144"),
            ("MaxBurstLength", "1048576"),
            ("DefaultTime2Wait", "0"),
        ];
        let (block, accounts) = (512, Vec::new());
        Target { name, bytes, block, is_read_only: false, is_thin: true, accounts, keys }
    }
}

pub(crate) struct Tgt {
    // In the order in which they end.
    server: Option<Daemon>,
    dir: Folder,
    port: u16,
    targets: Vec<Target>,
}

impl Tgt {
    /// Starts one; why there is none, if it cannot be.
    pub(crate) fn start(name: &str, targets: Vec<Target>) -> Result<Tgt, String> {
        find("tgtadm")?;
        let mut tgt = Tgt { server: None, dir: Folder::new(name)?, port: free_port(), targets };
        for target in &tgt.targets {
            let file = fs::File::create(tgt.file(target.name)).map_err(|e| e.to_string())?;
            file.set_len(target.bytes).map_err(|e| e.to_string())?;
        }
        tgt.start_server()?;
        Ok(tgt)
    }

    /// With one target, `t1`, of so many bytes.
    pub(crate) fn with_area(name: &str, bytes: u64) -> Result<Tgt, String> {
        Tgt::start(name, vec![Target::new("t1", bytes)])
    }

    /// Starts the server (again), on the port it has.
    pub(crate) fn start_server(&mut self) -> Result<(), String> {
        let _ = fs::remove_file(self.dir.join(&format!("control.{CONTROL}")));
        let mut tgtd = Command::new(find("tgtd")?);
        tgtd.args(["-f", "-C", CONTROL, "-t", "4", "--iscsi"]);
        tgtd.arg(format!("portal=127.0.0.1:{}", self.port));
        tgtd.env("TGT_IPC_SOCKET", self.dir.join("control"));
        let log = self.dir.join("tgtd.log");
        let server = self.server.insert(Daemon::start(&mut tgtd, &log)?);
        let show = ["--op", "show", "--mode", "sys"];
        let mut has_ended = false;
        let dir = &self.dir;
        wait_for("tgtd", || {
            has_ended = server.has_ended();
            has_ended || admin(dir, &show).is_ok()
        })?;
        if has_ended {
            return Err(format!("tgtd: {}", fs::read_to_string(log).unwrap_or_default()));
        }
        for (target, tid) in self.targets.iter().zip(1..) {
            self.tell(target, &format!("{tid}"))?;
        }
        Ok(())
    }

    fn tell(&self, target: &Target, tid: &str) -> Result<(), String> {
        let file = self.file(target.name).display().to_string();
        let (name, block) = (self.target(target.name), target.block.to_string());
        let of_target = ["--mode", "target", "--tid", tid];
        let of_unit = ["--mode", "logicalunit", "--tid", tid, "--lun", "1"];
        let tell = |args: &[&[&str]]| admin(&self.dir, &args.concat());
        tell(&[&["--op", "new"], &of_target, &["-T", &name]])?;
        tell(&[&["--op", "new"], &of_unit, &["-b", &file, "--blocksize", &block]])?;
        if target.is_thin {
            tell(&[&["--op", "update"], &of_unit, &["--params", "thin_provisioning=1"]])?;
        }
        if target.is_read_only {
            tell(&[&["--op", "update"], &of_unit, &["--params", "readonly=1"]])?;
        }
        for (key, value) in &target.keys {
            tell(&[&["--op", "update"], &of_target, &["-n", key, "-v", value]])?;
        }
        for ((user, password), way) in target.accounts.iter().zip([None, Some("--outgoing")]) {
            let account = ["--mode", "account", "--user", user];
            tell(&[&["--op", "new"], &account, &["--password", password]])?;
            tell(&[&["--op", "bind"], &account, &["--tid", tid], way.as_slice()])?;
        }
        tell(&[&["--op", "bind"], &of_target, &["-I", "ALL"]])
    }

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        drop(self.server.take());
    }

    pub(crate) fn server(&self) -> &Daemon {
        self.server.as_ref().expect("the server runs")
    }

    pub(crate) fn port(&self) -> u16 {
        self.port
    }

    /// The whole name of a target.
    pub(crate) fn target(&self, name: &str) -> String {
        format!("iqn.2026-01.test.swap:{name}")
    }

    /// What its unit is kept in.
    pub(crate) fn file(&self, name: &str) -> PathBuf {
        self.dir.join(&format!("{name}.img"))
    }

    /// A file beside those of the units.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The URL of the unit of a target.
    pub(crate) fn url(&self, name: &str) -> String {
        self.url_at(name, self.port)
    }

    /// As [`Tgt::url`], by another port.
    pub(crate) fn url_at(&self, name: &str, port: u16) -> String {
        format!("iscsi://127.0.0.1:{port}/{}/1", self.target(name))
    }
}

fn admin(dir: &Folder, args: &[&str]) -> Result<(), String> {
    let mut tgtadm = Command::new(find("tgtadm")?);
    tgtadm.args(["-C", CONTROL, "--lld", "iscsi"]).args(args);
    let out = tgtadm.env("TGT_IPC_SOCKET", dir.join("control")).output();
    let out = out.map_err(|error| error.to_string())?;
    let said = || format!("tgtadm {args:?}: {}", String::from_utf8_lossy(&out.stderr));
    if out.status.success() { Ok(()) } else { Err(said()) }
}
