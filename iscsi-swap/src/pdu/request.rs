//! What an initiator sends (RFC 7143 sections 11.3, 11.5, 11.7, 11.12, 11.14, 11.18).

use super::*;

/// NOP-Out: a ping, or the answer to one (section 11.18).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopOut {
    /// Whether it takes no CmdSN of its own.
    pub immediate: bool,
    /// Copied from the NOP-In that it answers.
    pub lun: [u8; 8],
    /// Names the ping; [`TAG_NONE`] if no answer is wanted.
    pub itt: u32,
    /// The TTT of the NOP-In that it answers, else [`TAG_NONE`].
    pub ttt: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// SCSI Command (section 11.3).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiCommand {
    /// Whether it takes no CmdSN of its own.
    pub immediate: bool,
    /// F: no unsolicited Data-Out follows.
    pub last: bool,
    /// R: data comes back.
    pub read: bool,
    /// W: data goes out.
    pub write: bool,
    /// Task attribute: 1 is simple.
    pub attr: u8,
    /// LUN.
    pub lun: [u8; 8],
    /// Initiator task tag.
    pub itt: u32,
    /// Expected data transfer length in bytes.
    pub expected: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// The first 16 bytes of the command descriptor block.
    pub cdb: [u8; 16],
    /// DataSegmentLength: immediate data.
    pub data_len: u32,
}

/// Task Management Function Request (section 11.5).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementRequest {
    /// Whether it takes no CmdSN of its own.
    pub immediate: bool,
    /// Function.
    pub function: u8,
    /// LUN.
    pub lun: [u8; 8],
    /// Initiator task tag.
    pub itt: u32,
    /// Referenced task tag.
    pub referenced: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// RefCmdSN.
    pub ref_cmd_sn: u32,
}

/// SCSI Data-Out (section 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataOut {
    /// F: last of its sequence.
    pub last: bool,
    /// LUN, only if `ttt` is not [`TAG_NONE`].
    pub lun: [u8; 8],
    /// Initiator task tag.
    pub itt: u32,
    /// Target transfer tag of the R2T, [`TAG_NONE`] for unsolicited data.
    pub ttt: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// DataSN in its sequence.
    pub data_sn: u32,
    /// Buffer offset in bytes.
    pub offset: u32,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// Login Request (section 11.12).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginRequest {
    /// T: ready to leave the stage.
    pub transit: bool,
    /// C: the text goes on in the next request.
    pub more: bool,
    /// Current stage: 0 security, 1 operational, 3 full feature.
    pub csg: u8,
    /// Next stage, if `transit`.
    pub nsg: u8,
    /// Version-max.
    pub version_max: u8,
    /// Version-min.
    pub version_min: u8,
    /// Initiator session id.
    pub isid: [u8; 6],
    /// Target session identifying handle; 0 for a new session.
    pub tsih: u16,
    /// Initiator task tag.
    pub itt: u32,
    /// Connection id.
    pub cid: u16,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// Logout Request (section 11.14).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutRequest {
    /// Whether it takes no CmdSN of its own.
    pub immediate: bool,
    /// 0 closes the session, 1 the connection, 2 removes it for recovery.
    pub reason: u8,
    /// Initiator task tag.
    pub itt: u32,
    /// Connection id.
    pub cid: u16,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
}

/// Any PDU of an initiator.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RequestPdu {
    /// NOP-Out.
    NopOut(NopOut),
    /// SCSI Command.
    ScsiCommand(ScsiCommand),
    /// Task Management Function Request.
    TaskManagement(TaskManagementRequest),
    /// Login Request.
    Login(LoginRequest),
    /// SCSI Data-Out.
    DataOut(DataOut),
    /// Logout Request.
    Logout(LogoutRequest),
    /// Text Request or SNACK: known, but not taken.
    Unsupported {
        /// Its opcode.
        opcode: u8,
        /// Whether it takes no CmdSN of its own.
        immediate: bool,
        /// CmdSN, where the PDU has one.
        cmd_sn: u32,
    },
}

impl NopOut {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::NOP_OUT, self.immediate, 0x80, self.data_len);
        put(&mut bhs, 8, &self.lun);
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.ttt);
        put32(&mut bhs, 24, self.cmd_sn);
        put32(&mut bhs, 28, self.exp_stat_sn);
        bhs
    }
}

impl ScsiCommand {
    /// The header.
    pub fn build(&self) -> Bhs {
        let flags = (u8::from(self.last) << 7)
            | (u8::from(self.read) << 6)
            | (u8::from(self.write) << 5)
            | (self.attr & 7);
        let mut bhs = start(opcode::SCSI_COMMAND, self.immediate, flags, self.data_len);
        put(&mut bhs, 8, &self.lun);
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.expected);
        put32(&mut bhs, 24, self.cmd_sn);
        put32(&mut bhs, 28, self.exp_stat_sn);
        put(&mut bhs, 32, &self.cdb);
        bhs
    }
}

impl TaskManagementRequest {
    /// The header.
    pub fn build(&self) -> Bhs {
        let flags = 0x80 | (self.function & 0x7f);
        let mut bhs = start(opcode::TASK_MANAGEMENT_REQUEST, self.immediate, flags, 0);
        put(&mut bhs, 8, &self.lun);
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.referenced);
        put32(&mut bhs, 24, self.cmd_sn);
        put32(&mut bhs, 28, self.exp_stat_sn);
        put32(&mut bhs, 32, self.ref_cmd_sn);
        bhs
    }
}

impl DataOut {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::DATA_OUT, false, u8::from(self.last) << 7, self.data_len);
        put(&mut bhs, 8, &self.lun);
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.ttt);
        put32(&mut bhs, 28, self.exp_stat_sn);
        put32(&mut bhs, 36, self.data_sn);
        put32(&mut bhs, 40, self.offset);
        bhs
    }
}

impl LoginRequest {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut flags =
            (u8::from(self.transit) << 7) | (u8::from(self.more) << 6) | ((self.csg & 3) << 2);
        if self.transit {
            flags |= self.nsg & 3;
        }
        let mut bhs = start(opcode::LOGIN_REQUEST, true, flags, self.data_len);
        bhs[2] = self.version_max;
        bhs[3] = self.version_min;
        put(&mut bhs, 8, &self.isid);
        put16(&mut bhs, 14, self.tsih);
        put32(&mut bhs, 16, self.itt);
        put16(&mut bhs, 20, self.cid);
        put32(&mut bhs, 24, self.cmd_sn);
        put32(&mut bhs, 28, self.exp_stat_sn);
        bhs
    }
}

impl LogoutRequest {
    /// The header.
    pub fn build(&self) -> Bhs {
        let flags = 0x80 | (self.reason & 0x7f);
        let mut bhs = start(opcode::LOGOUT_REQUEST, self.immediate, flags, 0);
        put32(&mut bhs, 16, self.itt);
        put16(&mut bhs, 20, self.cid);
        put32(&mut bhs, 24, self.cmd_sn);
        put32(&mut bhs, 28, self.exp_stat_sn);
        bhs
    }
}

impl RequestPdu {
    /// Reads a header that an initiator sent.
    ///
    /// # Errors
    /// If the opcode is not an initiator's, or a field has a value that the RFC rules out.
    pub fn parse(bhs: &Bhs) -> Result<RequestPdu, PduError> {
        let immediate = bhs[0] & 0x40 != 0;
        let flags = bhs[1];
        let data_len = data_len(bhs) as u32;
        let itt = itt_of(bhs);
        Ok(match opcode_of(bhs) {
            opcode::NOP_OUT => RequestPdu::NopOut(parse_nop_out(bhs, immediate, data_len)?),
            opcode::SCSI_COMMAND => RequestPdu::ScsiCommand(parse_command(bhs, immediate)?),
            opcode::TASK_MANAGEMENT_REQUEST => RequestPdu::TaskManagement(TaskManagementRequest {
                immediate,
                function: flags & 0x7f,
                lun: get_array(bhs, 8),
                itt: real_tag(itt)?,
                referenced: get32(bhs, 20),
                cmd_sn: get32(bhs, 24),
                exp_stat_sn: get32(bhs, 28),
                ref_cmd_sn: get32(bhs, 32),
            }),
            opcode::LOGIN_REQUEST => RequestPdu::Login(parse_login(bhs, data_len)?),
            opcode::DATA_OUT => RequestPdu::DataOut(DataOut {
                last: flags & 0x80 != 0,
                lun: get_array(bhs, 8),
                itt: real_tag(itt)?,
                ttt: get32(bhs, 20),
                exp_stat_sn: get32(bhs, 28),
                data_sn: get32(bhs, 36),
                offset: get32(bhs, 40),
                data_len,
            }),
            opcode::LOGOUT_REQUEST => RequestPdu::Logout(LogoutRequest {
                immediate,
                reason: flags & 0x7f,
                itt: real_tag(itt)?,
                cid: get16(bhs, 20),
                cmd_sn: get32(bhs, 24),
                exp_stat_sn: get32(bhs, 28),
            }),
            code @ opcode::TEXT_REQUEST => {
                RequestPdu::Unsupported { opcode: code, immediate, cmd_sn: get32(bhs, 24) }
            }
            code @ opcode::SNACK => {
                RequestPdu::Unsupported { opcode: code, immediate: true, cmd_sn: 0 }
            }
            other => return Err(PduError::Opcode(other)),
        })
    }
}

fn start(opcode: u8, immediate: bool, flags: u8, data_len: u32) -> Bhs {
    let mut bhs = [0; BHS_LEN];
    bhs[0] = opcode | (u8::from(immediate) << 6);
    bhs[1] = flags;
    set_data_len(&mut bhs, data_len);
    bhs
}

fn real_tag(itt: u32) -> Result<u32, PduError> {
    match itt {
        TAG_NONE => Err(PduError::Field { field: "InitiatorTaskTag", value: itt }),
        itt => Ok(itt),
    }
}

fn parse_nop_out(bhs: &Bhs, immediate: bool, data_len: u32) -> Result<NopOut, PduError> {
    let nop = NopOut {
        immediate,
        lun: get_array(bhs, 8),
        itt: itt_of(bhs),
        ttt: get32(bhs, 20),
        cmd_sn: get32(bhs, 24),
        exp_stat_sn: get32(bhs, 28),
        data_len,
    };
    // Without a tag no answer can come, so it must not take a place in the command order.
    if nop.itt == TAG_NONE && !immediate {
        return Err(PduError::Flags { opcode: opcode::NOP_OUT, flags: bhs[0] });
    }
    Ok(nop)
}

fn parse_command(bhs: &Bhs, immediate: bool) -> Result<ScsiCommand, PduError> {
    let flags = bhs[1];
    let command = ScsiCommand {
        immediate,
        last: flags & 0x80 != 0,
        read: flags & 0x40 != 0,
        write: flags & 0x20 != 0,
        attr: flags & 7,
        lun: get_array(bhs, 8),
        itt: real_tag(itt_of(bhs))?,
        expected: get32(bhs, 20),
        cmd_sn: get32(bhs, 24),
        exp_stat_sn: get32(bhs, 28),
        cdb: get_array(bhs, 32),
        data_len: data_len(bhs) as u32,
    };
    // Section 11.3.1: F = 0 announces unsolicited data, which only a write can have.
    if !command.last && !command.write {
        return Err(PduError::Flags { opcode: opcode::SCSI_COMMAND, flags });
    }
    Ok(command)
}

fn parse_login(bhs: &Bhs, data_len: u32) -> Result<LoginRequest, PduError> {
    let flags = bhs[1];
    let login = LoginRequest {
        transit: flags & 0x80 != 0,
        more: flags & 0x40 != 0,
        csg: (flags >> 2) & 3,
        nsg: if flags & 0x80 != 0 { flags & 3 } else { 0 },
        version_max: bhs[2],
        version_min: bhs[3],
        isid: get_array(bhs, 8),
        tsih: get16(bhs, 14),
        itt: itt_of(bhs),
        cid: get16(bhs, 20),
        cmd_sn: get32(bhs, 24),
        exp_stat_sn: get32(bhs, 28),
        data_len,
    };
    check_stages(opcode::LOGIN_REQUEST, flags)?;
    Ok(login)
}

/// The stage rules that both directions of a login share (sections 11.12.1 to 11.12.3).
pub(super) fn check_stages(opcode: u8, flags: u8) -> Result<(), PduError> {
    let (transit, more) = (flags & 0x80 != 0, flags & 0x40 != 0);
    let (csg, nsg) = ((flags >> 2) & 3, flags & 3);
    let bad = (transit && more) || csg > 1 || (transit && (nsg == 2 || nsg <= csg));
    if bad { Err(PduError::Flags { opcode, flags }) } else { Ok(()) }
}
