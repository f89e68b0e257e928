//! nfs-ganesha, if it is installed: started in a folder of its own, on free ports of the loopback, and ended by its process
//! id.
//!
//! Its NFSv3 wants an rpcbind to register with, which it reaches over a socket at a fixed place below `/run`. So there
//! is one for each server, in a mount namespace with a `/run` of its own, and in a network namespace where nobody else
//! reaches it. The server is in the first of the two, and listens on the host's loopback.
//!
//! A machine without these programs, or without the rights for them, has no such server: a test then says `skipped` and
//! why on its error output, and passes; with `CI` set it fails.

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// A new `/run`; the socket's other place is a link to it on most systems. The shell becomes rpcbind, so that its process
/// id names both namespaces.
const RPCBIND: &str =
    "mount -t tmpfs tmpfs /run && mkdir /run/rpcbind /run/netswap && exec unshare -n rpcbind -f";
const STARTS_WITHIN: Duration = Duration::from_secs(20);

pub(crate) struct Ganesha {
    dir: PathBuf,
    nfs_port: u16,
    mount_port: u16,
    /// The write verifier, if it is not to be the second of the start.
    epoch: Option<u32>,
    server: Option<Child>,
    rpcbind: Option<Child>,
}

pub(crate) fn which(program: &str) -> bool {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|dir| dir.join(program).is_file())
}

/// A port of the loopback that nobody has, at least until now.
fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `is_there`, or says that it did not come.
fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !is_there() {
        if begun.elapsed() > STARTS_WITHIN {
            return Err(format!("{what} did not come within {STARTS_WITHIN:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

impl Ganesha {
    /// Starts one; why there is none, if it cannot be.
    pub(crate) fn start(name: &str) -> Result<Ganesha, String> {
        Ganesha::start_with(name, None)
    }

    /// One whose write verifier is `epoch`, also after a restart.
    pub(crate) fn start_with(name: &str, epoch: Option<u32>) -> Result<Ganesha, String> {
        for program in ["ganesha.nfsd", "rpcbind", "unshare", "nsenter", "mount"] {
            if !which(program) {
                return Err(format!("{program} is not installed"));
            }
        }
        // Memory, if there is such a folder: a disk would be measured, and worn, for nothing.
        let shm = Path::new("/dev/shm");
        let root = if shm.is_dir() { shm.into() } else { std::env::temp_dir() };
        let dir = root.join(format!("netswap-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for part in ["export", "recovery"] {
            fs::create_dir_all(dir.join(part)).map_err(|error| error.to_string())?;
        }
        let (nfs_port, mount_port) = (free_port(), free_port());
        let mut ganesha = Ganesha { dir, nfs_port, mount_port, epoch, server: None, rpcbind: None };
        ganesha.start_rpcbind()?;
        ganesha.start_server()?;
        Ok(ganesha)
    }

    fn start_rpcbind(&mut self) -> Result<(), String> {
        let child = Command::new("unshare")
            .args(["-m", "--propagation", "private", "sh", "-c", RPCBIND])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        // The folder tells the new `/run` from the host's, which may have a socket as well.
        let run = PathBuf::from(format!("/proc/{}/root/run", child.id()));
        let child = self.rpcbind.insert(child);
        wait_for("the socket of rpcbind", || {
            let is_there = run.join("netswap").exists()
                && UnixStream::connect(run.join("rpcbind.sock")).is_ok();
            is_there || child.try_wait().is_ok_and(|ended| ended.is_some())
        })?;
        match child.try_wait() {
            Ok(None) => Ok(()),
            ended => Err(format!("rpcbind in namespaces of its own ended: {ended:?}")),
        }
    }

    /// Starts the server (again), on the ports it has.
    pub(crate) fn start_server(&mut self) -> Result<(), String> {
        let path = |part: &str| self.dir.join(part).display().to_string();
        let config = format!(
            "NFS_CORE_PARAM {{ Bind_addr = 127.0.0.1; NFS_Port = {}; MNT_Port = {}; Enable_NLM = false; \
             Enable_RQUOTA = false; Enable_UDP = false; Protocols = 3; mount_path_pseudo = true; \
             NSM_Use_Caller_Name = false; }}\n\
             NFSv4 {{ Graceless = true; RecoveryRoot = {}; }}\n\
             NFS_KRB5 {{ Active_krb5 = false; }}\n\
             EXPORT_DEFAULTS {{ SecType = sys; Squash = No_Root_Squash; Access_Type = RW; Protocols = 3; \
             Transports = TCP; PrivilegedPort = false; }}\n\
             EXPORT {{ Export_Id = 1; Path = {}; Pseudo = /swap; FSAL {{ Name = VFS; }} }}\n\
             LOG {{ Default_Log_Level = EVENT; }}\n",
            self.nfs_port,
            self.mount_port,
            path("recovery"),
            path("export"),
        );
        fs::write(path("ganesha.conf"), config).map_err(|error| error.to_string())?;
        let log = path("ganesha.log");
        let _ = fs::remove_file(&log);
        let namespace = self.rpcbind.as_ref().expect("it was started first").id().to_string();
        let epoch = self.epoch.map(|epoch| format!("-E{epoch}"));
        let child = Command::new("nsenter")
            .args([
                "-m",
                "-t",
                &namespace,
                "ganesha.nfsd",
                "-F",
                "-f",
                &path("ganesha.conf"),
                "-L",
                &log,
                "-p",
                &path("ganesha.pid"),
            ])
            .args(["-N", "NIV_EVENT"])
            .args(epoch)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("ganesha.nfsd: {error}"))?;
        let child = self.server.insert(child);
        let ready = |log: &str| {
            fs::read_to_string(log).is_ok_and(|text| text.contains("NFS SERVER INITIALIZED"))
        };
        let mut ended = None;
        wait_for("ganesha.nfsd", || {
            ended = child.try_wait().ok().flatten();
            ended.is_some() || ready(&log)
        })?;
        match ended {
            Some(status) => Err(format!(
                "ganesha.nfsd ended with {status}: {}",
                fs::read_to_string(&log).unwrap_or_default()
            )),
            None => Ok(()),
        }
    }

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        if let Some(mut child) = self.server.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
    }

    /// Stops it, as a host that hangs.
    pub(crate) fn freeze(&self) {
        self.signal(Signal::STOP);
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.signal(Signal::CONT);
    }

    fn signal(&self, signal: Signal) {
        let server = self.server.as_ref().expect("the server runs");
        kill_process(Pid::from_child(server), signal).unwrap();
    }

    /// The URL of a file of the export.
    pub(crate) fn url(&self, file: &str) -> String {
        Ganesha::url_at(file, self.nfs_port, self.mount_port)
    }

    /// As [`Ganesha::url`], by other ports.
    pub(crate) fn url_at(file: &str, nfs_port: u16, mount_port: u16) -> String {
        format!("nfs://127.0.0.1/swap/{file}?nfsport={nfs_port}&mountport={mount_port}")
    }

    /// The ports of NFS and of MOUNT.
    pub(crate) fn ports(&self) -> (u16, u16) {
        (self.nfs_port, self.mount_port)
    }

    /// Where the exported files are.
    pub(crate) fn export(&self) -> PathBuf {
        Path::new(&self.dir).join("export")
    }
}

impl Drop for Ganesha {
    fn drop(&mut self) {
        self.kill();
        if let Some(mut child) = self.rpcbind.take() {
            let _ = child.kill();
            let _ = child.wait();
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
