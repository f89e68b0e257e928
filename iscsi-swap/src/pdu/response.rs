//! What a target sends (RFC 7143 sections 11.4, 11.6 to 11.9, 11.13, 11.15, 11.17, 11.19).

use super::request::check_stages;
use super::*;

/// The numbers that nearly every PDU of a target carries.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Sns {
    /// StatSN: of this PDU if it bears status, else the next one.
    pub stat_sn: u32,
    /// ExpCmdSN.
    pub exp_cmd_sn: u32,
    /// MaxCmdSN.
    pub max_cmd_sn: u32,
}

/// NOP-In: a ping, or the answer to one (section 11.19).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NopIn {
    /// LUN, if it is a ping.
    pub lun: [u8; 8],
    /// The tag of the NOP-Out that it answers, else [`TAG_NONE`].
    pub itt: u32,
    /// The tag that an answer must carry; [`TAG_NONE`] if none is wanted.
    pub ttt: u32,
    /// Numbers.
    pub sns: Sns,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// SCSI Response (section 11.4).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct ScsiResponse {
    /// O: the command had more data than expected.
    pub overflow: bool,
    /// U: the command had less data than expected.
    pub underflow: bool,
    /// iSCSI service response: 0 is command completed at target.
    pub response: u8,
    /// SCSI status.
    pub status: u8,
    /// Initiator task tag.
    pub itt: u32,
    /// Numbers.
    pub sns: Sns,
    /// R2Ts and Data-Ins that were sent for the command.
    pub exp_data_sn: u32,
    /// Residual count in bytes.
    pub residual: u32,
    /// DataSegmentLength: sense.
    pub data_len: u32,
}

/// Task Management Function Response (section 11.6).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TaskManagementResponse {
    /// 0 complete, 1 no such task, 5 not supported, 255 rejected.
    pub response: u8,
    /// Initiator task tag.
    pub itt: u32,
    /// Numbers.
    pub sns: Sns,
}

/// Login Response (section 11.13).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LoginResponse {
    /// T: the stage ends.
    pub transit: bool,
    /// C: the text goes on in the next response.
    pub more: bool,
    /// Current stage.
    pub csg: u8,
    /// Next stage, if `transit`.
    pub nsg: u8,
    /// Version-max.
    pub version_max: u8,
    /// Version-active.
    pub version_active: u8,
    /// Initiator session id.
    pub isid: [u8; 6],
    /// Target session identifying handle.
    pub tsih: u16,
    /// Initiator task tag.
    pub itt: u32,
    /// Numbers.
    pub sns: Sns,
    /// Status class and detail; 0 is success.
    pub status: u16,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// SCSI Data-In (section 11.7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DataIn {
    /// F: last of its sequence.
    pub last: bool,
    /// A: an acknowledgement is wanted (error recovery level above 0 only).
    pub acknowledge: bool,
    /// O, if `status` is present.
    pub overflow: bool,
    /// U, if `status` is present.
    pub underflow: bool,
    /// SCSI status, if the PDU bears it (S).
    pub status: Option<u8>,
    /// LUN, only with `acknowledge`.
    pub lun: [u8; 8],
    /// Initiator task tag.
    pub itt: u32,
    /// Target transfer tag.
    pub ttt: u32,
    /// Numbers.
    pub sns: Sns,
    /// DataSN.
    pub data_sn: u32,
    /// Buffer offset in bytes.
    pub offset: u32,
    /// Residual count, if `status` is present.
    pub residual: u32,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// Logout Response (section 11.15).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogoutResponse {
    /// 0 is closed.
    pub response: u8,
    /// Initiator task tag.
    pub itt: u32,
    /// Numbers.
    pub sns: Sns,
    /// Seconds to wait before reconnecting.
    pub time2wait: u16,
    /// Seconds after which the tasks are gone.
    pub time2retain: u16,
}

/// Ready To Transfer (section 11.8).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct R2t {
    /// LUN.
    pub lun: [u8; 8],
    /// Initiator task tag.
    pub itt: u32,
    /// Target transfer tag that the data must carry.
    pub ttt: u32,
    /// Numbers.
    pub sns: Sns,
    /// R2TSN.
    pub r2t_sn: u32,
    /// Buffer offset in bytes.
    pub offset: u32,
    /// Desired data transfer length in bytes.
    pub len: u32,
}

/// Asynchronous Message (section 11.9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AsyncMessage {
    /// LUN.
    pub lun: [u8; 8],
    /// Numbers.
    pub sns: Sns,
    /// AsyncEvent: 0 SCSI event, 1 logout wanted, 2 connection dropped, 3 all dropped, 4 negotiate.
    pub event: u8,
    /// Parameter1.
    pub parameter1: u16,
    /// Parameter2.
    pub parameter2: u16,
    /// Parameter3.
    pub parameter3: u16,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// Reject (section 11.17).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Reject {
    /// Why; see [`reject`].
    pub reason: u8,
    /// Numbers.
    pub sns: Sns,
    /// DataSN or R2TSN.
    pub data_sn: u32,
    /// DataSegmentLength: the header that is rejected.
    pub data_len: u32,
}

/// Any PDU of a target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResponsePdu {
    /// NOP-In.
    NopIn(NopIn),
    /// SCSI Response.
    ScsiResponse(ScsiResponse),
    /// Task Management Function Response.
    TaskManagement(TaskManagementResponse),
    /// Login Response.
    Login(LoginResponse),
    /// SCSI Data-In.
    DataIn(DataIn),
    /// Logout Response.
    Logout(LogoutResponse),
    /// Ready To Transfer.
    R2t(R2t),
    /// Asynchronous Message.
    Async(AsyncMessage),
    /// Reject.
    Reject(Reject),
}

fn start(opcode: u8, flags: u8, itt: u32, sns: Sns, data_len: u32) -> Bhs {
    let mut bhs = [0; BHS_LEN];
    bhs[0] = opcode;
    bhs[1] = flags;
    set_data_len(&mut bhs, data_len);
    put32(&mut bhs, 16, itt);
    put32(&mut bhs, 24, sns.stat_sn);
    put32(&mut bhs, 28, sns.exp_cmd_sn);
    put32(&mut bhs, 32, sns.max_cmd_sn);
    bhs
}

impl NopIn {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::NOP_IN, 0x80, self.itt, self.sns, self.data_len);
        put(&mut bhs, 8, &self.lun);
        put32(&mut bhs, 20, self.ttt);
        bhs
    }
}

impl ScsiResponse {
    /// The header.
    pub fn build(&self) -> Bhs {
        let flags = 0x80 | (u8::from(self.overflow) << 2) | (u8::from(self.underflow) << 1);
        let mut bhs = start(opcode::SCSI_RESPONSE, flags, self.itt, self.sns, self.data_len);
        bhs[2] = self.response;
        bhs[3] = self.status;
        put32(&mut bhs, 36, self.exp_data_sn);
        put32(&mut bhs, 44, self.residual);
        bhs
    }
}

impl TaskManagementResponse {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::TASK_MANAGEMENT_RESPONSE, 0x80, self.itt, self.sns, 0);
        bhs[2] = self.response;
        bhs
    }
}

impl LoginResponse {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut flags =
            (u8::from(self.transit) << 7) | (u8::from(self.more) << 6) | ((self.csg & 3) << 2);
        if self.transit {
            flags |= self.nsg & 3;
        }
        let mut bhs = start(opcode::LOGIN_RESPONSE, flags, self.itt, self.sns, self.data_len);
        bhs[2] = self.version_max;
        bhs[3] = self.version_active;
        put(&mut bhs, 8, &self.isid);
        put16(&mut bhs, 14, self.tsih);
        put16(&mut bhs, 36, self.status);
        bhs
    }
}

impl DataIn {
    /// The header.
    pub fn build(&self) -> Bhs {
        let flags = (u8::from(self.last) << 7)
            | (u8::from(self.acknowledge) << 6)
            | (u8::from(self.overflow) << 2)
            | (u8::from(self.underflow) << 1)
            | u8::from(self.status.is_some());
        let mut bhs = start(opcode::DATA_IN, flags, self.itt, self.sns, self.data_len);
        bhs[3] = self.status.unwrap_or(0);
        put(&mut bhs, 8, &self.lun);
        put32(&mut bhs, 20, self.ttt);
        put32(&mut bhs, 36, self.data_sn);
        put32(&mut bhs, 40, self.offset);
        put32(&mut bhs, 44, self.residual);
        bhs
    }
}

impl LogoutResponse {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::LOGOUT_RESPONSE, 0x80, self.itt, self.sns, 0);
        bhs[2] = self.response;
        put16(&mut bhs, 40, self.time2wait);
        put16(&mut bhs, 42, self.time2retain);
        bhs
    }
}

impl R2t {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::R2T, 0x80, self.itt, self.sns, 0);
        put(&mut bhs, 8, &self.lun);
        put32(&mut bhs, 20, self.ttt);
        put32(&mut bhs, 36, self.r2t_sn);
        put32(&mut bhs, 40, self.offset);
        put32(&mut bhs, 44, self.len);
        bhs
    }
}

impl AsyncMessage {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::ASYNC_MESSAGE, 0x80, TAG_NONE, self.sns, self.data_len);
        put(&mut bhs, 8, &self.lun);
        bhs[36] = self.event;
        put16(&mut bhs, 38, self.parameter1);
        put16(&mut bhs, 40, self.parameter2);
        put16(&mut bhs, 42, self.parameter3);
        bhs
    }
}

impl Reject {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = start(opcode::REJECT, 0x80, TAG_NONE, self.sns, self.data_len);
        bhs[2] = self.reason;
        put32(&mut bhs, 36, self.data_sn);
        bhs
    }
}

impl ResponsePdu {
    /// Reads a header that a target sent.
    ///
    /// # Errors
    /// If the opcode is not a target's, or a field has a value that the RFC rules out. A Text
    /// Response is an unknown opcode: nothing here asks for one.
    pub fn parse(bhs: &Bhs) -> Result<ResponsePdu, PduError> {
        let itt = itt_of(bhs);
        let sns =
            Sns { stat_sn: get32(bhs, 24), exp_cmd_sn: get32(bhs, 28), max_cmd_sn: get32(bhs, 32) };
        let data_len = data_len(bhs) as u32;
        Ok(match bhs[0] {
            opcode::NOP_IN => ResponsePdu::NopIn(NopIn {
                lun: get_array(bhs, 8),
                itt,
                ttt: get32(bhs, 20),
                sns,
                data_len,
            }),
            opcode::SCSI_RESPONSE => {
                ResponsePdu::ScsiResponse(parse_scsi_response(bhs, itt, sns, data_len)?)
            }
            opcode::TASK_MANAGEMENT_RESPONSE => {
                ResponsePdu::TaskManagement(TaskManagementResponse { response: bhs[2], itt, sns })
            }
            opcode::LOGIN_RESPONSE => ResponsePdu::Login(parse_login(bhs, itt, sns, data_len)?),
            opcode::DATA_IN => ResponsePdu::DataIn(parse_data_in(bhs, itt, sns, data_len)?),
            opcode::LOGOUT_RESPONSE => ResponsePdu::Logout(LogoutResponse {
                response: bhs[2],
                itt,
                sns,
                time2wait: get16(bhs, 40),
                time2retain: get16(bhs, 42),
            }),
            opcode::R2T => ResponsePdu::R2t(parse_r2t(bhs, itt, sns)?),
            opcode::ASYNC_MESSAGE => ResponsePdu::Async(AsyncMessage {
                lun: get_array(bhs, 8),
                sns,
                event: bhs[36],
                parameter1: get16(bhs, 38),
                parameter2: get16(bhs, 40),
                parameter3: get16(bhs, 42),
                data_len,
            }),
            opcode::REJECT => ResponsePdu::Reject(Reject {
                reason: bhs[2],
                sns,
                data_sn: get32(bhs, 36),
                data_len,
            }),
            other => return Err(PduError::Opcode(other)),
        })
    }

    /// The numbers it carries.
    pub fn sns(&self) -> Sns {
        match self {
            ResponsePdu::NopIn(p) => p.sns,
            ResponsePdu::ScsiResponse(p) => p.sns,
            ResponsePdu::TaskManagement(p) => p.sns,
            ResponsePdu::Login(p) => p.sns,
            ResponsePdu::DataIn(p) => p.sns,
            ResponsePdu::Logout(p) => p.sns,
            ResponsePdu::R2t(p) => p.sns,
            ResponsePdu::Async(p) => p.sns,
            ResponsePdu::Reject(p) => p.sns,
        }
    }

    /// Whether its StatSN is its own, so that the next one counts up (section 4.2.2.2). The others
    /// only tell what comes next, or nothing (Data-In without status).
    pub fn bears_status(&self) -> bool {
        match self {
            ResponsePdu::NopIn(p) => p.itt != TAG_NONE,
            ResponsePdu::DataIn(p) => p.status.is_some(),
            ResponsePdu::R2t(_) => false,
            _ => true,
        }
    }
}

fn residual_flags(opcode: u8, flags: u8) -> Result<(bool, bool), PduError> {
    let (overflow, underflow) = (flags & 0x04 != 0, flags & 0x02 != 0);
    if overflow && underflow {
        return Err(PduError::Flags { opcode, flags });
    }
    Ok((overflow, underflow))
}

fn parse_scsi_response(
    bhs: &Bhs,
    itt: u32,
    sns: Sns,
    data_len: u32,
) -> Result<ScsiResponse, PduError> {
    let (overflow, underflow) = residual_flags(opcode::SCSI_RESPONSE, bhs[1])?;
    Ok(ScsiResponse {
        overflow,
        underflow,
        response: bhs[2],
        status: bhs[3],
        itt,
        sns,
        exp_data_sn: get32(bhs, 36),
        residual: get32(bhs, 44),
        data_len,
    })
}

fn parse_login(bhs: &Bhs, itt: u32, sns: Sns, data_len: u32) -> Result<LoginResponse, PduError> {
    let flags = bhs[1];
    let status = get16(bhs, 36);
    // With a failure the stage fields are not valid (section 11.13.5).
    if status == 0 {
        check_stages(opcode::LOGIN_RESPONSE, flags)?;
    }
    Ok(LoginResponse {
        transit: flags & 0x80 != 0,
        more: flags & 0x40 != 0,
        csg: (flags >> 2) & 3,
        nsg: if flags & 0x80 != 0 { flags & 3 } else { 0 },
        version_max: bhs[2],
        version_active: bhs[3],
        isid: get_array(bhs, 8),
        tsih: get16(bhs, 14),
        itt,
        sns,
        status,
        data_len,
    })
}

fn parse_data_in(bhs: &Bhs, itt: u32, sns: Sns, data_len: u32) -> Result<DataIn, PduError> {
    let flags = bhs[1];
    let last = flags & 0x80 != 0;
    let status = (flags & 0x01 != 0).then_some(bhs[3]);
    // Section 11.7.3: S may only come with F.
    if status.is_some() && !last {
        return Err(PduError::Flags { opcode: opcode::DATA_IN, flags });
    }
    let (overflow, underflow) = match status {
        Some(_) => residual_flags(opcode::DATA_IN, flags)?,
        None => (false, false),
    };
    Ok(DataIn {
        last,
        acknowledge: flags & 0x40 != 0,
        overflow,
        underflow,
        status,
        lun: get_array(bhs, 8),
        itt,
        ttt: get32(bhs, 20),
        sns,
        data_sn: get32(bhs, 36),
        offset: get32(bhs, 40),
        residual: get32(bhs, 44),
        data_len,
    })
}

fn parse_r2t(bhs: &Bhs, itt: u32, sns: Sns) -> Result<R2t, PduError> {
    let r2t = R2t {
        lun: get_array(bhs, 8),
        itt,
        ttt: get32(bhs, 20),
        sns,
        r2t_sn: get32(bhs, 36),
        offset: get32(bhs, 40),
        len: get32(bhs, 44),
    };
    if r2t.ttt == TAG_NONE {
        return Err(PduError::Field { field: "TargetTransferTag", value: r2t.ttt });
    }
    if r2t.len == 0 {
        return Err(PduError::Field { field: "DesiredDataTransferLength", value: 0 });
    }
    Ok(r2t)
}
