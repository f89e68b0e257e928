//! `netswap serve` as a child process, and a directory of the test's own.

#![allow(dead_code, unreachable_pub, reason = "each test binary uses some of it")]

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, ChildStdout, Command, Output, Stdio};

use rustix::process::{Pid, Signal, kill_process};

/// A directory that is gone when it is dropped.
pub struct Scratch(PathBuf);

impl Scratch {
    pub fn new(name: &str) -> Scratch {
        let path = std::env::temp_dir().join(format!("netswap-{}-{name}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().unwrap().to_string()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The command, listening on a port of the loopback.
pub struct Server {
    child: Child,
    lines: std::io::Lines<BufReader<ChildStdout>>,
    /// What it said when it was ready.
    first: serde_json::Value,
}

impl Server {
    /// Of NFS.
    pub fn start(args: &[&str]) -> Server {
        Server::of("nfs", args)
    }

    pub fn of(protocol: &str, args: &[&str]) -> Server {
        let mut child = Command::new(env!("CARGO_BIN_EXE_netswap"))
            .args(["serve", protocol, "--json"])
            .args(args)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let first = lines.next().expect("the server ended at once").unwrap();
        Server { first: serde_json::from_str(&first).unwrap(), child, lines }
    }

    pub fn url(&self) -> &str {
        self.first["url"].as_str().unwrap()
    }

    /// The URL of an iSCSI portal.
    pub fn portal(&self) -> &str {
        self.first["portal"].as_str().unwrap()
    }

    /// The URL of the export.
    pub fn directory(&self) -> String {
        let (path, query) = self.url().split_once('?').unwrap();
        format!("{}?{query}", path.rsplit_once('/').unwrap().0)
    }

    /// Ends it as a user does; gives what it says at the end.
    pub fn stop(mut self) -> serde_json::Value {
        kill_process(Pid::from_child(&self.child), Signal::TERM).unwrap();
        let last = self.lines.next().expect("no report").unwrap();
        assert_eq!(self.child.wait().unwrap().code(), Some(0));
        serde_json::from_str(&last).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The command, to its end.
pub fn netswap(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_netswap")).args(args).output().unwrap()
}

/// What it says on standard error.
pub fn stderr(output: &Output) -> String {
    String::from_utf8_lossy(&output.stderr).into_owned()
}

/// Whether all of these programs are there: `Err` names one that is not, and its package.
pub fn installed(programs: &[(&str, &str)]) -> Result<(), String> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Servers are where root finds them.
    let dirs: Vec<_> = std::env::split_paths(&path).chain(["/usr/sbin".into()]).collect();
    match programs.iter().find(|(name, _)| !dirs.iter().any(|dir| dir.join(name).is_file())) {
        Some((name, package)) => Err(format!("{name} is not installed ({package})")),
        None => Ok(()),
    }
}

/// `len` bytes that look like nothing else.
pub fn contents(len: usize) -> Vec<u8> {
    (0..len as u32).map(|i| (i.wrapping_mul(0x9e37_79b9) >> 24) as u8).collect()
}
