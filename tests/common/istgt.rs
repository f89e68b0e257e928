//! istgt, if it is installed: in a folder of its own, on free ports of the loopback, ended by its process id.

use std::fs;
use std::iter;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::process::Command;

use super::daemon::{Daemon, Folder, find, free_port, wait_for};

pub(crate) struct Istgt {
    // In the order in which they end.
    server: Option<Daemon>,
    dir: Folder,
    port: u16,
    control: u16,
    accounts: Option<Accounts>,
}

/// User and password of the initiator, then the target's own.
pub(crate) type Accounts = [(&'static str, &'static str); 2];

impl Istgt {
    /// Starts one with one target, `disk1`, whose LUN 0 has so many bytes, whole MiB; why there is none, if it
    /// cannot be.
    pub(crate) fn with_area(name: &str, bytes: u64) -> Result<Istgt, String> {
        Istgt::start(name, bytes, None)
    }

    /// As [`Istgt::with_area`], and with two more targets of the same size: `chap`, which wants these accounts, and
    /// `digest`, which wants both digests.
    pub(crate) fn with_chap(name: &str, bytes: u64, accounts: Accounts) -> Result<Istgt, String> {
        Istgt::start(name, bytes, Some(accounts))
    }

    fn start(name: &str, bytes: u64, accounts: Option<Accounts>) -> Result<Istgt, String> {
        find("istgt")?;
        let dir = Folder::new(name)?;
        let (port, control) = (free_port(), free_port());
        let mut istgt = Istgt { server: None, dir, port, control, accounts };
        istgt.configure(bytes).map_err(|error| error.to_string())?;
        istgt.start_server()?;
        Ok(istgt)
    }

    fn configure(&self, bytes: u64) -> std::io::Result<()> {
        let auth = self.dir.join("auth.conf");
        let [(user, own), (target, theirs)] = self.accounts.unwrap_or_default();
        let group = format!("[AuthGroup1]\n Auth \"{user}\" \"{own}\" \"{target}\" \"{theirs}\"\n");
        fs::write(&auth, self.accounts.map_or("", |_| &group))?;
        // Others' eyes make it end.
        fs::set_permissions(&auth, fs::Permissions::from_mode(0o600))?;
        let (dir, port, control) = (self.dir.path().display(), self.port, self.control);
        let mut config = format!(
            "[Global]\n NodeBase \"iqn.2026-01.test.istgt\"\n PidFile {dir}/istgt.pid\n AuthFile {dir}/auth.conf\n \
             MediaDirectory {dir}\n LogFacility \"local7\"\n Timeout 30\n NopInInterval 20\n \
             DiscoveryAuthMethod Auto\n MaxSessions 16\n MaxConnections 4\n MaxR2T 32\n MaxOutstandingR2T 16\n \
             FirstBurstLength 262144\n MaxBurstLength 1048576\n MaxRecvDataSegmentLength 262144\n \
             InitialR2T Yes\n ImmediateData Yes\n ErrorRecoveryLevel 0\n\
             [UnitControl]\n AuthMethod CHAP Mutual\n AuthGroup AuthGroup10000\n Portal UC1 127.0.0.1:{control}\n \
             Netmask 127.0.0.1\n\
             [PortalGroup1]\n Portal DA1 127.0.0.1:{port}\n\
             [InitiatorGroup1]\n InitiatorName \"ALL\"\n Netmask 127.0.0.0/8\n"
        );
        let more = [("chap", "CHAP Mutual", "Auto"), ("digest", "Auto", "Header Data")];
        let more = more.into_iter().filter(|_| self.accounts.is_some());
        for ((name, auth, digest), unit) in
            iter::once(("disk1", "Auto", "Auto")).chain(more).zip(1..)
        {
            fs::File::create(self.dir.join(&format!("{name}.img")))?.set_len(bytes)?;
            config += &format!(
                "[LogicalUnit{unit}]\n TargetName {name}\n Mapping PortalGroup1 InitiatorGroup1\n \
                 AuthMethod {auth}\n AuthGroup AuthGroup1\n UseDigest {digest}\n UnitType Disk\n \
                 QueueDepth 64\n LUN0 Storage {dir}/{name}.img {}MB\n",
                bytes >> 20
            );
        }
        fs::write(self.dir.join("istgt.conf"), config)
    }

    /// Starts the server (again), on the ports it has.
    pub(crate) fn start_server(&mut self) -> Result<(), String> {
        let pid = self.dir.join("istgt.pid");
        let _ = fs::remove_file(&pid);
        let mut istgt = Command::new(find("istgt")?);
        istgt.arg("-D").arg("-c").arg(self.dir.join("istgt.conf"));
        let log = self.dir.join("istgt.log");
        let server = self.server.insert(Daemon::start(&mut istgt, &log)?);
        wait_for("istgt", || {
            server.has_ended() || fs::read(&pid).is_ok_and(|pid| !pid.is_empty())
        })?;
        match server.has_ended() {
            true => Err(format!("istgt: {}", fs::read_to_string(log).unwrap_or_default())),
            false => Ok(()),
        }
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

    /// What its unit is kept in.
    pub(crate) fn file(&self) -> PathBuf {
        self.dir.join("disk1.img")
    }

    /// A file beside that of the unit.
    pub(crate) fn scratch(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// The URL of its unit.
    pub(crate) fn url(&self) -> String {
        self.url_of("disk1")
    }

    /// The URL of the unit of a target.
    pub(crate) fn url_of(&self, name: &str) -> String {
        format!("iscsi://127.0.0.1:{}/iqn.2026-01.test.istgt:{name}/0", self.port)
    }
}
