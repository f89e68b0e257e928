//! tshark as the judge of all that an initiator has sent (RFC 7143): no malformed frame, CmdSN in order and inside the
//! window of the target.

use std::collections::HashMap;
use std::path::Path;

use super::tshark;

const FIELDS: [&str; 5] =
    ["tcp.stream", "iscsi.opcode", "iscsi.I", "iscsi.cmdsn", "iscsi.maxcmdsn"];
/// Of the initiator, those that have a CmdSN (section 4.2.2.1): NOP-Out, SCSI command, task management, text, logout.
const NUMBERED: [u32; 5] = [0x00, 0x01, 0x02, 0x04, 0x06];
const LOGIN: u32 = 0x03;

/// What tshark saw.
#[derive(Debug, Default)]
pub(crate) struct Verdict {
    pub(crate) commands: u64,
    pub(crate) logins: u64,
    pub(crate) answers: u64,
    /// Frames to the target that are malformed, or have an expert error.
    pub(crate) bad_frames: Vec<String>,
    /// Commands that do not follow the last one.
    pub(crate) out_of_order: Vec<String>,
    /// Commands beyond MaxCmdSN.
    pub(crate) beyond_window: Vec<String>,
}

impl Verdict {
    pub(crate) fn is_fine(&self) -> bool {
        self.bad_frames.is_empty() && self.out_of_order.is_empty() && self.beyond_window.is_empty()
    }
}

#[derive(Default)]
struct Stream {
    next_cmd_sn: Option<u32>,
    max_cmd_sn: Option<u32>,
}

fn number(text: &str) -> Option<u32> {
    match text.strip_prefix("0x") {
        Some(digits) => u32::from_str_radix(digits, 16).ok(),
        None => text.parse().ok(),
    }
}

/// Judges what was sent to the target at `port`.
pub(crate) fn judge(pcap: &Path, port: u16) -> Verdict {
    let mut verdict = Verdict::default();
    let mut streams: HashMap<String, Stream> = HashMap::new();
    tshark::each_frame(pcap, ("iscsi", &[port]), FIELDS, |frame| {
        let [stream, opcode, immediate, cmd_sn, max_cmd_sn] = frame.fields;
        let stream = streams.entry(stream.into()).or_default();
        if !frame.to_server {
            verdict.answers += u64::from(!opcode.is_empty());
            // It only grows (section 4.2.2.1).
            if let Some(max) = number(max_cmd_sn)
                && stream.max_cmd_sn.is_none_or(|before| max.wrapping_sub(before) as i32 > 0)
            {
                stream.max_cmd_sn = Some(max);
            }
            return;
        }
        if frame.is_bad {
            verdict.bad_frames.push(frame.line.into());
        }
        let (Some(opcode), Some(cmd_sn)) = (number(opcode), number(cmd_sn)) else { return };
        if opcode == LOGIN {
            verdict.logins += 1;
            if stream.next_cmd_sn.is_some_and(|next| next != cmd_sn) {
                verdict.out_of_order.push(frame.line.into());
            }
            stream.next_cmd_sn = Some(cmd_sn);
        }
        if !NUMBERED.contains(&opcode) {
            return;
        }
        verdict.commands += 1;
        let is_immediate = matches!(immediate, "1" | "True");
        if stream.next_cmd_sn.is_some_and(|next| next != cmd_sn) {
            verdict.out_of_order.push(frame.line.into());
        }
        if is_immediate {
            return;
        }
        stream.next_cmd_sn = Some(cmd_sn.wrapping_add(1));
        if stream.max_cmd_sn.is_some_and(|max| cmd_sn.wrapping_sub(max) as i32 > 0) {
            verdict.beyond_window.push(frame.line.into());
        }
    });
    verdict
}
