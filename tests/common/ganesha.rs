//! nfs-ganesha, if it is installed: started in a folder of its own, on free ports of the loopback, and ended by its process
//! id.
//!
//! Its NFSv3 wants an rpcbind to register with, which it reaches over a socket at a fixed place. An rpcbind in a
//! network namespace of its own listens to nothing else. One that is there already is used, and left alone.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

const RPCBIND_SOCKET: &str = "/run/rpcbind.sock";
const STARTS_WITHIN: Duration = Duration::from_secs(20);

pub(crate) struct Ganesha {
    dir: PathBuf,
    nfs_port: u16,
    mount_port: u16,
    server: Option<Child>,
    rpcbind: Option<Child>,
}

fn which(program: &str) -> bool {
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
        for program in ["ganesha.nfsd", "rpcbind", "unshare"] {
            if !which(program) {
                return Err(format!("{program} is not installed"));
            }
        }
        let dir = std::env::temp_dir().join(format!("netswap-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        for part in ["export", "recovery"] {
            fs::create_dir_all(dir.join(part)).map_err(|error| error.to_string())?;
        }
        let (nfs_port, mount_port) = (free_port(), free_port());
        let mut ganesha = Ganesha { dir, nfs_port, mount_port, server: None, rpcbind: None };
        ganesha.start_rpcbind()?;
        ganesha.start_server()?;
        Ok(ganesha)
    }

    fn start_rpcbind(&mut self) -> Result<(), String> {
        let answers = || std::os::unix::net::UnixStream::connect(RPCBIND_SOCKET).is_ok();
        if answers() {
            return Ok(());
        }
        let _ = fs::create_dir_all("/run/rpcbind");
        let script = "ip link set lo up; exec rpcbind -f";
        let child = Command::new("unshare")
            .args(["-n", "sh", "-c", script])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .map_err(|error| format!("unshare: {error}"))?;
        self.rpcbind = Some(child);
        wait_for("the socket of rpcbind", answers)
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
        let child = Command::new("ganesha.nfsd")
            .args(["-F", "-f", &path("ganesha.conf"), "-L", &log, "-p", &path("ganesha.pid")])
            .args(["-N", "NIV_EVENT"])
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

    /// The URL of a file of the export.
    pub(crate) fn url(&self, file: &str) -> String {
        format!(
            "nfs://127.0.0.1/swap/{file}?nfsport={}&mountport={}",
            self.nfs_port, self.mount_port
        )
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
            let _ = fs::remove_file(RPCBIND_SOCKET);
        }
        let _ = fs::remove_dir_all(&self.dir);
    }
}
