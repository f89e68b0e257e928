//! What the servers that others wrote have in common: a folder in memory, free ports of the loopback, and a process
//! that is stopped, continued and killed by its id.

use std::fs;
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

const STARTS_WITHIN: Duration = Duration::from_secs(20);

/// Where a program is. Daemons are in folders that only root's path has.
pub(crate) fn find(program: &str) -> Result<PathBuf, String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/sbin".into()])
        .map(|dir| dir.join(program))
        .find(|file| file.is_file())
        .ok_or_else(|| format!("{program} is not installed"))
}

pub(crate) fn which(program: &str) -> bool {
    find(program).is_ok()
}

/// A port of the loopback that nobody has, at least until now.
pub(crate) fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port()
}

/// Waits until `is_there`, or says that it did not come.
pub(crate) fn wait_for(what: &str, mut is_there: impl FnMut() -> bool) -> Result<(), String> {
    let begun = Instant::now();
    while !is_there() {
        if begun.elapsed() > STARTS_WITHIN {
            return Err(format!("{what} did not come within {STARTS_WITHIN:?}"));
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}

/// A folder that is gone when it is dropped. In memory, if there is such a place: a disk would be measured, and worn,
/// for nothing.
pub(crate) struct Folder(PathBuf);

impl Folder {
    pub(crate) fn new(name: &str) -> Result<Folder, String> {
        let shm = Path::new("/dev/shm");
        let root = if shm.is_dir() { shm.into() } else { std::env::temp_dir() };
        let dir = root.join(format!("netswap-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&dir);
        fs::create_dir_all(&dir).map_err(|error| error.to_string())?;
        Ok(Folder(dir))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }

    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A process of the test, killed when it is dropped.
pub(crate) struct Daemon(Child);

impl Daemon {
    /// Starts it; what it says goes to `log`.
    pub(crate) fn start(command: &mut Command, log: &Path) -> Result<Daemon, String> {
        let name = command.get_program().to_string_lossy().into_owned();
        let failed = |error| format!("{name}: {error}");
        let log = fs::File::create(log).map_err(failed)?;
        let both = log.try_clone().map_err(failed)?;
        command.stdin(Stdio::null()).stdout(log).stderr(both);
        command.spawn().map(Daemon).map_err(failed)
    }

    pub(crate) fn id(&self) -> u32 {
        self.0.id()
    }

    pub(crate) fn has_ended(&mut self) -> bool {
        !matches!(self.0.try_wait(), Ok(None))
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
        kill_process(Pid::from_child(&self.0), signal).unwrap();
    }
}

impl Drop for Daemon {
    /// As a crash would.
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}
