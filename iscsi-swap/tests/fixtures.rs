//! Goal: the bytes on the wire are those of RFC 7143, not merely those that both sides here agree on.
//! Method: headers laid out by hand from the figures of section 11 and compared byte for byte, and the
//! first bytes that an initiator really sends.

use netswap_iscsi::pdu::{
    Bhs, DataIn, DataOut, LoginRequest, LoginResponse, LogoutRequest, LogoutResponse, NopOut, R2t,
    RequestPdu, ResponsePdu, ScsiCommand, ScsiResponse, Sns, TAG_NONE, lun_bytes,
};
use netswap_iscsi::scsi::Cdb;
use netswap_iscsi::{InitiatorConfig, IscsiBackend};
use netswap_net::{SendVec, Session};
use netswap_reserve::Time;

fn hex(text: &str) -> Bhs {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let bytes: Vec<u8> = digits
        .chunks(2)
        .map(|pair| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap())
        .collect();
    bytes.try_into().unwrap()
}

const SNS: Sns = Sns { stat_sn: 0x0102_0304, exp_cmd_sn: 0x1112_1314, max_cmd_sn: 0x2122_2324 };

#[test]
fn scsi_command() {
    let pdu = ScsiCommand {
        immediate: false,
        last: true,
        read: false,
        write: true,
        attr: 1,
        lun: lun_bytes(3),
        itt: 0xa1a2_a3a4,
        expected: 8192,
        cmd_sn: 0x3132_3334,
        exp_stat_sn: 0x4142_4344,
        cdb: Cdb::Write { lba: 0x10, blocks: 16, fua: true }.build(),
        data_len: 8192,
    };
    let want = hex("01 a1 00 00  00 00 20 00  00 03 00 00 00 00 00 00
         a1 a2 a3 a4  00 00 20 00  31 32 33 34  41 42 43 44
         8a 08 00 00 00 00 00 00 00 10 00 00 00 10 00 00");
    assert_eq!(pdu.build(), want);
    assert_eq!(RequestPdu::parse(&want), Ok(RequestPdu::ScsiCommand(pdu)));
}

#[test]
fn data_out() {
    let pdu = DataOut {
        last: true,
        lun: lun_bytes(300),
        itt: 1,
        ttt: 0x5152_5354,
        exp_stat_sn: 7,
        data_sn: 2,
        offset: 0x0001_0000,
        data_len: 512,
    };
    let want = hex("05 80 00 00  00 00 02 00  41 2c 00 00 00 00 00 00
         00 00 00 01  51 52 53 54  00 00 00 00  00 00 00 07
         00 00 00 00  00 00 00 02  00 01 00 00  00 00 00 00");
    assert_eq!(pdu.build(), want);
    assert_eq!(RequestPdu::parse(&want), Ok(RequestPdu::DataOut(pdu)));
}

#[test]
fn login_request_and_response() {
    let pdu = LoginRequest {
        transit: true,
        more: false,
        csg: 1,
        nsg: 3,
        version_max: 0,
        version_min: 0,
        isid: [0x80, 1, 2, 3, 4, 5],
        tsih: 0,
        itt: 9,
        cid: 1,
        cmd_sn: 10,
        exp_stat_sn: 11,
        data_len: 5,
    };
    let want = hex("43 87 00 00  00 00 00 05  80 01 02 03 04 05 00 00
         00 00 00 09  00 01 00 00  00 00 00 0a  00 00 00 0b
         00000000 00000000 00000000 00000000");
    assert_eq!(pdu.build(), want);
    assert_eq!(RequestPdu::parse(&want), Ok(RequestPdu::Login(pdu)));
    let pdu = LoginResponse {
        transit: true,
        more: false,
        csg: 1,
        nsg: 3,
        version_max: 0,
        version_active: 0,
        isid: [0x80, 1, 2, 3, 4, 5],
        tsih: 0x0607,
        itt: 9,
        sns: SNS,
        status: 0,
        data_len: 0,
    };
    let want = hex("23 87 00 00  00 00 00 00  80 01 02 03 04 05 06 07
         00 00 00 09  00 00 00 00  01 02 03 04  11 12 13 14
         21 22 23 24  00 00 00 00  00 00 00 00  00 00 00 00");
    assert_eq!(pdu.build(), want);
    assert_eq!(ResponsePdu::parse(&want), Ok(ResponsePdu::Login(pdu)));
}

#[test]
fn nop_out_and_logout() {
    let nop = NopOut {
        immediate: true,
        lun: [0; 8],
        itt: TAG_NONE,
        ttt: 5,
        cmd_sn: 6,
        exp_stat_sn: 7,
        data_len: 0,
    };
    let want = hex("40 80 00 00  00 00 00 00  00 00 00 00 00 00 00 00
         ff ff ff ff  00 00 00 05  00 00 00 06  00 00 00 07
         00000000 00000000 00000000 00000000");
    assert_eq!(nop.build(), want);
    let logout =
        LogoutRequest { immediate: true, reason: 0, itt: 8, cid: 0, cmd_sn: 6, exp_stat_sn: 7 };
    let want = hex("46 80 00 00  00 00 00 00  00 00 00 00 00 00 00 00
         00 00 00 08  00 00 00 00  00 00 00 06  00 00 00 07
         00000000 00000000 00000000 00000000");
    assert_eq!(logout.build(), want);
    let answer =
        LogoutResponse { response: 0, itt: 8, sns: SNS, time2wait: 0x0203, time2retain: 0x0405 };
    let want = hex("26 80 00 00  00 00 00 00  00 00 00 00 00 00 00 00
         00 00 00 08  00 00 00 00  01 02 03 04  11 12 13 14
         21 22 23 24  00 00 00 00  02 03 04 05  00 00 00 00");
    assert_eq!(answer.build(), want);
}

#[test]
fn scsi_response_data_in_and_r2t() {
    let response = ScsiResponse {
        overflow: false,
        underflow: true,
        response: 0,
        status: 2,
        itt: 5,
        sns: SNS,
        exp_data_sn: 1,
        residual: 4096,
        data_len: 20,
    };
    let want = hex("21 82 00 02  00 00 00 14  00 00 00 00 00 00 00 00
         00 00 00 05  00 00 00 00  01 02 03 04  11 12 13 14
         21 22 23 24  00 00 00 01  00 00 00 00  00 00 10 00");
    assert_eq!(response.build(), want);
    let data = DataIn {
        last: true,
        acknowledge: false,
        overflow: false,
        underflow: false,
        status: Some(0),
        lun: [0; 8],
        itt: 5,
        ttt: TAG_NONE,
        sns: SNS,
        data_sn: 3,
        offset: 0x3000,
        residual: 0,
        data_len: 4096,
    };
    let want = hex("25 81 00 00  00 00 10 00  00 00 00 00 00 00 00 00
         00 00 00 05  ff ff ff ff  01 02 03 04  11 12 13 14
         21 22 23 24  00 00 00 03  00 00 30 00  00 00 00 00");
    assert_eq!(data.build(), want);
    let r2t =
        R2t { lun: lun_bytes(0), itt: 5, ttt: 6, sns: SNS, r2t_sn: 1, offset: 0x1000, len: 0x2000 };
    let want = hex("31 80 00 00  00 00 00 00  00 00 00 00 00 00 00 00
         00 00 00 05  00 00 00 06  01 02 03 04  11 12 13 14
         21 22 23 24  00 00 00 01  00 00 10 00  00 00 20 00");
    assert_eq!(r2t.build(), want);
}

#[test]
fn the_first_bytes_of_an_initiator() {
    let mut config = InitiatorConfig::new("10.0.0.2:3260".parse().unwrap(), "iqn.t", 0);
    config.initiator = "iqn.i".into();
    config.first_itt = 0;
    config.in_flight = 4;
    let mut backend = IscsiBackend::new(config);
    backend.poll_action(Time::ZERO);
    backend.handle_connected(Time::ZERO);
    let mut out = SendVec::new();
    backend.poll_send(Time::ZERO, &mut out);
    let sent = out.concat();
    let text = b"InitiatorName=iqn.i\0SessionType=Normal\0TargetName=iqn.t\0AuthMethod=None\0";
    let header = hex("43 81 00 00  00 00 00 48  80 6e 73 77 00 01 00 00
         00 00 00 05  00 00 00 00  00 00 00 01  00 00 00 00
         00000000 00000000 00000000 00000000");
    assert_eq!(sent[..48], header);
    assert_eq!(&sent[48..], text);
}
