//! tshark as a judge: what was captured, a row a frame, with the verdict that fits every protocol.

use std::path::Path;
use std::process::Command;

use super::daemon::which;
use super::skip::or_skip;

/// `PI_ERROR`.
const EXPERT_ERROR: &str = "8388608";

/// Whether there is a judge; without one the rest of a test still holds.
pub(crate) fn has_judge() -> bool {
    or_skip(which("tshark").then_some(()).ok_or_else(|| "tshark is not installed".into())).is_some()
}

/// What tshark prints of `pcap` when it reads the traffic of `ports` as `protocol`.
pub(crate) fn run(pcap: &Path, (protocol, ports): (&str, &[u16]), args: &[&str]) -> String {
    let mut tshark = Command::new("tshark");
    tshark.arg("-n").args(args).arg("-r").arg(pcap);
    for port in ports {
        tshark.args(["-d", &format!("tcp.port=={port},{protocol}")]);
    }
    let out = tshark.output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// A frame.
pub(crate) struct Frame<'a, const N: usize> {
    /// The whole row, for messages.
    pub(crate) line: &'a str,
    /// It goes to one of the ports.
    pub(crate) to_server: bool,
    /// It is malformed, or an expert sees an error in it.
    pub(crate) is_bad: bool,
    pub(crate) fields: [&'a str; N],
}

/// Gives each frame of `pcap` to `frame`, with the first occurrence of each of `fields`.
pub(crate) fn each_frame<const N: usize>(
    pcap: &Path,
    traffic: (&str, &[u16]),
    fields: [&str; N],
    mut frame: impl FnMut(&Frame<'_, N>),
) {
    let mut args = vec!["-T", "fields", "-E", "occurrence=f"];
    for field in ["tcp.dstport", "_ws.malformed", "_ws.expert.severity"].iter().chain(&fields) {
        args.extend(["-e", field]);
    }
    for line in run(pcap, traffic, &args).lines() {
        let row: Vec<&str> = line.split('\t').collect();
        let [to, malformed, severity, ref fields @ ..] = row[..] else { panic!("{line:?}") };
        frame(&Frame {
            line,
            to_server: traffic.1.iter().any(|port| to == port.to_string()),
            is_bad: !malformed.is_empty() || severity == EXPERT_ERROR,
            fields: fields.try_into().unwrap_or_else(|_| panic!("{line:?}")),
        });
    }
}
