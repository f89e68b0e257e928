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
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::process::Command;

use super::daemon::{Daemon, Folder, find, free_port, wait_for};

/// A new `/run`; the socket's other place is a link to it on most systems. The shell becomes rpcbind, so that its process
/// id names both namespaces.
const RPCBIND: &str =
    "mount -t tmpfs tmpfs /run && mkdir /run/rpcbind /run/netswap && exec unshare -n rpcbind -f";

pub(crate) struct Ganesha {
    // In the order in which they end.
    server: Option<Daemon>,
    rpcbind: Option<Daemon>,
    dir: Folder,
    nfs_port: u16,
    mount_port: u16,
    /// The write verifier, if it is not to be the second of the start.
    epoch: Option<u32>,
}

impl Ganesha {
    /// Starts one; why there is none, if it cannot be.
    pub(crate) fn start(name: &str) -> Result<Ganesha, String> {
        Ganesha::start_with(name, None)
    }

    /// One whose write verifier is `epoch`, also after a restart.
    pub(crate) fn start_with(name: &str, epoch: Option<u32>) -> Result<Ganesha, String> {
        for program in ["ganesha.nfsd", "rpcbind", "unshare", "nsenter", "mount"] {
            find(program)?;
        }
        let dir = Folder::new(name)?;
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
        let mut unshare = Command::new("unshare");
        unshare.args(["-m", "--propagation", "private", "sh", "-c", RPCBIND]);
        let child = Daemon::start(&mut unshare, &self.dir.join("rpcbind.log"))?;
        // The folder tells the new `/run` from the host's, which may have a socket as well.
        let run = PathBuf::from(format!("/proc/{}/root/run", child.id()));
        let child = self.rpcbind.insert(child);
        wait_for("the socket of rpcbind", || {
            let is_there = run.join("netswap").exists()
                && UnixStream::connect(run.join("rpcbind.sock")).is_ok();
            is_there || child.has_ended()
        })?;
        match child.has_ended() {
            false => Ok(()),
            true => Err("rpcbind in namespaces of its own ended".into()),
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
        let mut nsenter = Command::new("nsenter");
        nsenter.args(["-m", "-t", &namespace, "ganesha.nfsd", "-F"]);
        nsenter.args(["-f", &path("ganesha.conf"), "-L", &log, "-p", &path("ganesha.pid")]);
        nsenter.args(["-N", "NIV_EVENT"]).args(epoch);
        let child = Daemon::start(&mut nsenter, &self.dir.join("nsenter.log"))?;
        let child = self.server.insert(child);
        let said = || fs::read_to_string(&log).unwrap_or_default();
        wait_for("ganesha.nfsd", || {
            child.has_ended() || said().contains("NFS SERVER INITIALIZED")
        })?;
        if child.has_ended() {
            return Err(format!("ganesha.nfsd ended: {}", said()));
        }
        Ok(())
    }

    /// Kills the server as a crash would.
    pub(crate) fn kill(&mut self) {
        drop(self.server.take());
    }

    /// Stops it, as a host that hangs.
    pub(crate) fn freeze(&self) {
        self.server.as_ref().expect("the server runs").freeze();
    }

    /// Lets it go on.
    pub(crate) fn thaw(&self) {
        self.server.as_ref().expect("the server runs").thaw();
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
        self.dir.join("export")
    }
}
