//! Text Request and Text Response (RFC 7143 sections 11.10 and 11.11).

use super::response::Sns;
use super::*;

/// Text Request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextRequest {
    /// Whether it takes no CmdSN of its own.
    pub immediate: bool,
    /// F: the initiator has no more to say.
    pub last: bool,
    /// C: the text goes on in the next request.
    pub more: bool,
    /// Initiator task tag.
    pub itt: u32,
    /// The TTT of the response that is to go on; [`TAG_NONE`] for a new request.
    pub ttt: u32,
    /// CmdSN.
    pub cmd_sn: u32,
    /// ExpStatSN.
    pub exp_stat_sn: u32,
    /// DataSegmentLength.
    pub data_len: u32,
}

/// Text Response.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TextResponse {
    /// F: the target has no more to say.
    pub last: bool,
    /// C: the text goes on in the next response.
    pub more: bool,
    /// Initiator task tag.
    pub itt: u32,
    /// What the next request has to carry; [`TAG_NONE`] with the last response.
    pub ttt: u32,
    /// Numbers.
    pub sns: Sns,
    /// DataSegmentLength.
    pub data_len: u32,
}

fn flags(last: bool, more: bool) -> u8 {
    (u8::from(last) << 7) | (u8::from(more) << 6)
}

/// F and C, which exclude each other (section 11.10.2).
fn parse_flags(bhs: &Bhs) -> Result<(bool, bool), PduError> {
    let flags = bhs[1];
    match flags >> 6 {
        3 => Err(PduError::Flags { opcode: opcode_of(bhs), flags }),
        bits => Ok((bits & 2 != 0, bits & 1 != 0)),
    }
}

impl TextRequest {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = [0; BHS_LEN];
        bhs[0] = opcode::TEXT_REQUEST | (u8::from(self.immediate) << 6);
        bhs[1] = flags(self.last, self.more);
        set_data_len(&mut bhs, self.data_len);
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.ttt);
        put32(&mut bhs, 24, self.cmd_sn);
        put32(&mut bhs, 28, self.exp_stat_sn);
        bhs
    }

    /// Reads a header with the opcode of a Text Request.
    ///
    /// # Errors
    /// If the opcode is another, or flags or tag have values that the RFC rules out.
    pub fn parse(bhs: &Bhs) -> Result<TextRequest, PduError> {
        expect(bhs, opcode::TEXT_REQUEST)?;
        let (last, more) = parse_flags(bhs)?;
        Ok(TextRequest {
            immediate: bhs[0] & 0x40 != 0,
            last,
            more,
            itt: real_tag(bhs)?,
            ttt: get32(bhs, 20),
            cmd_sn: get32(bhs, 24),
            exp_stat_sn: get32(bhs, 28),
            data_len: data_len(bhs) as u32,
        })
    }
}

impl TextResponse {
    /// The header.
    pub fn build(&self) -> Bhs {
        let mut bhs = [0; BHS_LEN];
        bhs[0] = opcode::TEXT_RESPONSE;
        bhs[1] = flags(self.last, self.more);
        set_data_len(&mut bhs, self.data_len);
        put32(&mut bhs, 16, self.itt);
        put32(&mut bhs, 20, self.ttt);
        put32(&mut bhs, 24, self.sns.stat_sn);
        put32(&mut bhs, 28, self.sns.exp_cmd_sn);
        put32(&mut bhs, 32, self.sns.max_cmd_sn);
        bhs
    }

    /// Reads a header with the opcode of a Text Response.
    ///
    /// # Errors
    /// If the opcode is another, or flags or tags have values that the RFC rules out.
    pub fn parse(bhs: &Bhs) -> Result<TextResponse, PduError> {
        expect(bhs, opcode::TEXT_RESPONSE)?;
        let (last, more) = parse_flags(bhs)?;
        let ttt = get32(bhs, 20);
        // Section 11.10.4: without F there is something to go on with.
        if !last && ttt == TAG_NONE {
            return Err(PduError::Field { field: "TargetTransferTag", value: ttt });
        }
        let sns =
            Sns { stat_sn: get32(bhs, 24), exp_cmd_sn: get32(bhs, 28), max_cmd_sn: get32(bhs, 32) };
        Ok(TextResponse {
            last,
            more,
            itt: real_tag(bhs)?,
            ttt,
            sns,
            data_len: data_len(bhs) as u32,
        })
    }
}

fn expect(bhs: &Bhs, opcode: u8) -> Result<(), PduError> {
    if opcode_of(bhs) == opcode { Ok(()) } else { Err(PduError::Opcode(opcode_of(bhs))) }
}

fn real_tag(bhs: &Bhs) -> Result<u32, PduError> {
    match itt_of(bhs) {
        TAG_NONE => Err(PduError::Field { field: "InitiatorTaskTag", value: TAG_NONE }),
        itt => Ok(itt),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_built_is_read_and_bad_flags_are_not() {
        let request = TextRequest {
            immediate: true,
            last: true,
            more: false,
            itt: 7,
            ttt: TAG_NONE,
            cmd_sn: 8,
            exp_stat_sn: 9,
            data_len: 16,
        };
        assert_eq!(TextRequest::parse(&request.build()), Ok(request));
        let sns = Sns { stat_sn: 1, exp_cmd_sn: 2, max_cmd_sn: 3 };
        let response = TextResponse { last: false, more: true, itt: 7, ttt: 5, sns, data_len: 3 };
        assert_eq!(TextResponse::parse(&response.build()), Ok(response));
        let both = TextRequest { more: true, ..request }.build();
        assert!(matches!(TextRequest::parse(&both), Err(PduError::Flags { .. })));
        let endless = TextResponse { ttt: TAG_NONE, ..response }.build();
        assert!(matches!(TextResponse::parse(&endless), Err(PduError::Field { .. })));
        let untagged = TextRequest { itt: TAG_NONE, ..request }.build();
        assert!(matches!(TextRequest::parse(&untagged), Err(PduError::Field { .. })));
        assert!(matches!(TextResponse::parse(&request.build()), Err(PduError::Opcode(4))));
    }
}
