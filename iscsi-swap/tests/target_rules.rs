//! Goal: the target keeps the rules of the RFC towards an initiator that does not.
//! Method: a hand-driven initiator that logs in and then sends single PDUs, right and wrong.

mod common;

use common::raw::{Raw, ending};
use common::{IQN, target_config};
use netswap_iscsi::pdu::{DataOut, NopOut, ResponsePdu, TAG_NONE, lun_bytes};
use netswap_iscsi::scsi::{Cdb, Sense, status};
use netswap_net::{Action, Session};
use netswap_reserve::Time;
use netswap_swap::Disk;

#[test]
fn login_answers_each_key_and_refuses_what_it_must() {
    let mut raw = Raw::new(target_config());
    let names = format!("InitiatorName=iqn.raw TargetName={IQN} SessionType=Normal");
    let text = "AuthMethod=CHAP,None";
    let got = raw.login(0, 1, &format!("{names} {text}"));
    assert_eq!(String::from_utf8_lossy(&got[0].1), "AuthMethod=None\0TargetPortalGroupTag=1\0");
    let keys = "HeaderDigest=CRC32C,None DataDigest=CRC32C MaxBurstLength=1048576 \
                MaxOutstandingR2T=99 ErrorRecoveryLevel=2 X-unknown=1 IFMarker=Yes MaxConnections=8 \
                SendTargets=All TaskReporting=FastAbort X#NodeArchitecture=a iSCSIProtocolLevel=2 \
                MaxRecvDataSegmentLength=100000";
    let keys = keys.split_whitespace().collect::<Vec<_>>().join(" ");
    let got = raw.login(1, 3, &keys);
    let answer = String::from_utf8_lossy(&got[0].1).replace('\0', " ");
    for key in [
        "HeaderDigest=None",
        "DataDigest=Reject",
        "MaxBurstLength=262144",
        "MaxOutstandingR2T=4",
        "ErrorRecoveryLevel=0",
        "X-unknown=NotUnderstood",
        "IFMarker=Reject",
        "SendTargets=Reject",
        "TaskReporting=RFC3720",
        "iSCSIProtocolLevel=1",
        "MaxConnections=1",
        "MaxRecvDataSegmentLength=65536",
    ] {
        assert!(answer.contains(&format!("{key} ")), "{key} in {answer}");
    }
    assert!(!answer.contains("NodeArchitecture"), "{answer}");

    let status = |csg, nsg, text: &str| {
        let mut raw = Raw::new(target_config());
        match raw.login(csg, nsg, text)[..] {
            [(ResponsePdu::Login(login), _)] => {
                if login.status != 0 {
                    let action = raw.target.connection(0).poll_action(Time::ZERO);
                    assert_eq!(action, Some(Action::Close));
                }
                login.status
            }
            ref other => panic!("{other:?}"),
        }
    };
    assert_eq!(status(0, 1, &format!("{names} AuthMethod=CHAP")), 0x0201);
    assert_eq!(status(0, 1, "InitiatorName=iqn.raw TargetName=iqn.other"), 0x0203);
    assert_eq!(status(0, 1, &format!("TargetName={IQN}")), 0x0207);
    assert_eq!(status(0, 1, "InitiatorName=iqn.raw"), 0x0207);
    assert_eq!(status(0, 1, "InitiatorName=iqn.raw SessionType=Discovery AuthMethod=None"), 0);
    assert_eq!(status(0, 1, "InitiatorName=iqn.raw SessionType=Other"), 0x0209);
    // 6.3: what comes twice ends the login, whatever it is.
    assert_eq!(status(0, 1, &format!("{names} InitiatorName=iqn.raw")), 0x0200);
    assert_eq!(status(0, 1, &format!("{names} AuthMethod=None AuthMethod=None")), 0x0200);
    assert_eq!(status(0, 1, &format!("{names} CHAP_A=5")), 0x0201);
    assert_eq!(status(0, 1, &format!("{names} MaxBurstLength=512")), 0x020b);
    assert_eq!(status(1, 3, &format!("{names} InitialR2T=No InitialR2T=No")), 0x0200);
}

#[test]
fn a_target_brings_up_what_the_initiator_did_not() {
    let mut config = target_config();
    config.keys.immediate_data = false;
    config.keys.max_burst = 8192;
    let mut raw = Raw::new(config);
    let names = format!("InitiatorName=iqn.raw TargetName={IQN} SessionType=Normal");
    let got = raw.login(1, 3, &names);
    let text = String::from_utf8_lossy(&got[0].1).replace('\0', " ");
    assert!(text.contains("ImmediateData=No") && text.contains("MaxBurstLength=8192"), "{text}");
    assert!(matches!(got[0].0, ResponsePdu::Login(l) if !l.transit));
    let got = raw.login(1, 3, "ImmediateData=No MaxBurstLength=4096 FirstBurstLength=4096");
    assert!(matches!(got[0].0, ResponsePdu::Login(l) if l.transit && l.tsih != 0), "{got:?}");
}

#[test]
fn units_tell_about_themselves() {
    let mut raw = Raw::ready(target_config());
    assert_eq!(raw.read(Cdb::TestUnitReady, 0).0, status::GOOD);
    let (_, inquiry, _) = raw.read(Cdb::Inquiry { page: None, alloc: 255 }, 255);
    assert_eq!((inquiry.len(), inquiry[0]), (96, 0));
    for page in [0x00, 0x80, 0x83, 0xb0, 0xb2] {
        let (good, data, _) = raw.read(Cdb::Inquiry { page: Some(page), alloc: 255 }, 255);
        assert_eq!((good, data[1]), (status::GOOD, page));
    }
    let (_, luns, _) = raw.read(Cdb::ReportLuns { select: 0, alloc: 256 }, 256);
    assert_eq!(luns, [0, 0, 0, 16, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 0]);
    let mode = Cdb::ModeSense { ten: false, control: 0, page: 8, subpage: 0, alloc: 255 };
    let (_, mode, _) = raw.read(mode, 255);
    assert_eq!((mode[2] & 0x10, mode[4], mode[6]), (0x10, 8, 4), "DPOFUA and a write cache");
    let (_, capacity, _) = raw.read(Cdb::ReadCapacity16 { alloc: 32 }, 32);
    assert_eq!(capacity[..12], [0, 0, 0, 0, 0, 0, 7, 0xff, 0, 0, 2, 0]);
    for (cdb, sense) in [
        (Cdb::Inquiry { page: Some(0xb3), alloc: 9 }, Sense::INVALID_FIELD),
        (Cdb::Read { lba: 2048, blocks: 1, fua: false }, Sense::OUT_OF_RANGE),
        (Cdb::Read { lba: u64::MAX, blocks: 1, fua: false }, Sense::OUT_OF_RANGE),
        (Cdb::Read { lba: 0, blocks: 129, fua: false }, Sense::INVALID_FIELD),
    ] {
        assert_eq!(raw.read(cdb, 512).2, Some(sense), "{cdb:?}");
    }
    let mut unknown = raw.command(Cdb::TestUnitReady, false, false, 0);
    unknown.cdb[0] = 0x42;
    assert_eq!(ending(&raw.send(unknown.build(), &[])).2, Some(Sense::INVALID_OPCODE));
    let mut elsewhere = raw.command(Cdb::TestUnitReady, false, false, 0);
    elsewhere.lun = lun_bytes(7);
    assert_eq!(ending(&raw.send(elsewhere.build(), &[])).2, Some(Sense::NO_SUCH_LUN));
    let write = Cdb::Write { lba: 0, blocks: 1, fua: false };
    let mut protected = raw.command(write, false, true, 4096);
    protected.lun = lun_bytes(2);
    assert_eq!(ending(&raw.send(protected.build(), &[])).2, Some(Sense::WRITE_PROTECTED));
}

#[test]
fn commands_outside_the_window_are_ignored_and_gaps_reset() {
    let mut raw = Raw::ready(target_config());
    let mut far = raw.command(Cdb::TestUnitReady, false, false, 0);
    far.cmd_sn += 100;
    assert!(raw.send(far.build(), &[]).is_empty());
    let mut old = far;
    old.cmd_sn = 0;
    assert!(raw.send(old.build(), &[]).is_empty());
    raw.cmd_sn[0] -= 1;
    assert_eq!(raw.read(Cdb::TestUnitReady, 0).0, status::GOOD, "the next one in order is taken");
    let mut gap = raw.command(Cdb::TestUnitReady, false, false, 0);
    gap.cmd_sn += 1;
    assert!(raw.send(gap.build(), &[]).is_empty());
    assert!(raw.is_reset());
    assert_eq!(raw.target.protocol_errors(), 1);
}

#[test]
fn the_window_is_as_wide_as_it_says() {
    let mut config = target_config();
    config.queue_depth = 3;
    config.login_window = 1;
    let mut raw = Raw::ready(config);
    // Writes that wait for their data hold their places.
    let mut tags = Vec::new();
    let mut last_max = None;
    for i in 0..20 {
        let write = Cdb::Write { lba: 0, blocks: 8, fua: false };
        let command = raw.command(write, false, true, 4096);
        let answers = raw.send(command.build(), &[]);
        match answers[..] {
            [(ResponsePdu::R2t(r2t), _)] => {
                last_max = Some(r2t.sns.max_cmd_sn);
                tags.push((command.itt, r2t.ttt));
            }
            [] => {
                assert_eq!(Some(command.cmd_sn), last_max.map(|m| m + 1), "beyond MaxCmdSN");
                raw.cmd_sn[0] -= 1;
            }
            ref other => panic!("{other:?}"),
        }
        if i % 3 == 2 && !tags.is_empty() {
            let (itt, ttt) = tags.remove(0);
            let answers = raw.data_out(itt, ttt, i as u8);
            assert_eq!(ending(&answers).0, status::GOOD);
        }
        assert!(tags.len() <= 3);
    }
    assert_eq!(tags.len(), 3, "the window has grown to its full width");
}

#[test]
fn data_that_was_not_agreed_resets() {
    let write = Cdb::Write { lba: 0, blocks: 8, fua: false };
    let wrong: [fn(&mut DataOut); 5] = [
        |d| d.ttt += 1,
        |d| d.ttt = TAG_NONE,
        |d| d.offset = 512,
        |d| d.last = false,
        |d| d.data_len = 512,
    ];
    for (i, spoil) in wrong.iter().enumerate() {
        let mut raw = Raw::ready(target_config());
        let command = raw.command(write, false, true, 4096);
        let answers = raw.send(command.build(), &[]);
        let [(ResponsePdu::R2t(r2t), _)] = answers[..] else { panic!("{answers:?}") };
        assert_eq!((r2t.offset, r2t.len), (0, 4096));
        let mut data = DataOut {
            last: true,
            lun: lun_bytes(0),
            itt: command.itt,
            ttt: r2t.ttt,
            exp_stat_sn: 0,
            data_sn: 0,
            offset: 0,
            data_len: 4096,
        };
        spoil(&mut data);
        assert!(raw.send(data.build(), &vec![7; data.data_len as usize]).is_empty());
        assert!(raw.is_reset(), "case {i}");
        let mut page = [1; 4096];
        raw.target.disk_mut(0).unwrap().read_at(0, &mut page).unwrap();
        assert_eq!(page, [0; 4096], "nothing was written");
    }
    // A DataSN that is not the next one means that a PDU was lost (section 7.9): the command fails once
    // the rest has come.
    let mut raw = Raw::ready(target_config());
    let command = raw.command(write, false, true, 4096);
    let [(ResponsePdu::R2t(r2t), _)] = raw.send(command.build(), &[])[..] else { panic!("no R2T") };
    for (data_sn, offset, last) in [(1, 512, false), (2, 1024, true)] {
        let data = DataOut {
            last,
            lun: lun_bytes(0),
            itt: command.itt,
            ttt: r2t.ttt,
            exp_stat_sn: 0,
            data_sn,
            offset,
            data_len: 512,
        };
        let answers = raw.send(data.build(), &[7; 512]);
        match last {
            false => assert!(answers.is_empty(), "{answers:?}"),
            true => assert_eq!(ending(&answers).2, Some(Sense::DATA_LOST)),
        }
    }
    let (good, page, _) = raw.read(Cdb::Read { lba: 0, blocks: 8, fua: false }, 4096);
    assert_eq!((good, page), (status::GOOD, vec![0; 4096]), "nothing was written");
    // Immediate data beyond the expected length.
    let mut raw = Raw::ready(target_config());
    let mut command = raw.command(write, false, true, 512);
    command.data_len = 1024;
    assert!(raw.send(command.build(), &[0; 1024]).is_empty());
    assert!(raw.is_reset());
}

#[test]
fn residuals_tell_what_did_not_move() {
    let mut raw = Raw::ready(target_config());
    let read = Cdb::Read { lba: 0, blocks: 2, fua: false };
    let command = raw.command(read, true, false, 4096);
    let answers = raw.send(command.build(), &[]);
    let [(ResponsePdu::DataIn(data), _)] = answers[..] else { panic!("{answers:?}") };
    assert_eq!((data.data_len, data.underflow, data.residual), (1024, true, 3072));
    let command = raw.command(read, true, false, 512);
    let answers = raw.send(command.build(), &[]);
    let [(ResponsePdu::DataIn(data), _)] = answers[..] else { panic!("{answers:?}") };
    assert_eq!((data.data_len, data.overflow, data.residual), (512, true, 512));
}

#[test]
fn pings_come_back_with_their_data() {
    let mut raw = Raw::ready(target_config());
    for (immediate, len) in [(true, 0), (true, 33), (false, 4000)] {
        let nop = NopOut {
            immediate,
            lun: [0; 8],
            itt: 77,
            ttt: TAG_NONE,
            cmd_sn: raw.cmd_sn[0],
            exp_stat_sn: 0,
            data_len: len,
        };
        raw.cmd_sn[0] += u32::from(!immediate);
        let data: Vec<u8> = (0..len).map(|i| i as u8).collect();
        let answers = raw.send(nop.build(), &data);
        let [(ResponsePdu::NopIn(answer), echo)] = &answers[..] else { panic!("{answers:?}") };
        assert_eq!((answer.itt, answer.ttt, echo), (77, TAG_NONE, &data));
    }
    assert_eq!(raw.read(Cdb::TestUnitReady, 0).0, status::GOOD);
}

#[test]
fn unknown_requests_are_rejected_and_foreign_opcodes_reset() {
    let mut raw = Raw::ready(target_config());
    let mut snack = raw.command(Cdb::TestUnitReady, false, false, 0).build();
    snack[0] = 0x10;
    let answers = raw.send(snack, &[]);
    let [(ResponsePdu::Reject(reject), header)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!((reject.reason, &header[..]), (0x05, &snack[..]));
    // It takes no CmdSN (section 11.16).
    raw.cmd_sn[0] -= 1;
    assert_eq!(raw.read(Cdb::TestUnitReady, 0).0, status::GOOD);
    let mut foreign = raw.command(Cdb::TestUnitReady, false, false, 0).build();
    foreign[0] = 0x25;
    assert!(raw.send(foreign, &[]).is_empty());
    assert!(raw.is_reset());
}

#[test]
fn digests_are_insisted_upon_where_there_is_data() {
    let strict = || {
        let mut config = target_config();
        config.keys.header_digest = netswap_iscsi::Digest::Crc32c;
        config
    };
    for (session, status) in [("Discovery", 0), ("Normal", 0x0200)] {
        let mut raw = Raw::new(strict());
        let names = format!("InitiatorName=iqn.raw TargetName={IQN} SessionType={session}");
        raw.login(0, 1, &format!("{names} AuthMethod=None"));
        let got = raw.login(1, 3, "HeaderDigest=None DataDigest=None");
        assert!(matches!(got[0].0, ResponsePdu::Login(login) if login.status == status), "{got:?}");
    }
    let mut raw = Raw::new(strict());
    let names = format!("InitiatorName=iqn.raw TargetName={IQN} SessionType=Normal");
    raw.login(0, 1, &format!("{names} AuthMethod=None"));
    // Not the first of the list, but the only one that will do.
    let got = raw.login(1, 3, "HeaderDigest=None,CRC32C");
    let text = String::from_utf8_lossy(&got[0].1).replace('\0', " ");
    assert!(text.contains("HeaderDigest=CRC32C "), "{text}");
}

#[test]
fn a_discovery_session_moves_no_data() {
    let mut raw = Raw::new(target_config());
    let names = "InitiatorName=iqn.raw SessionType=Discovery";
    raw.login(0, 1, &format!("{names} AuthMethod=None"));
    let got = raw.login(1, 3, "MaxConnections=4 HeaderDigest=None");
    let text = String::from_utf8_lossy(&got[0].1).replace('\0', " ");
    assert!(text.contains("MaxConnections=Irrelevant "), "{text}");
    assert!(matches!(got[0].0, ResponsePdu::Login(login) if login.status == 0 && login.tsih != 0));
    let command = netswap_iscsi::pdu::ScsiCommand {
        immediate: false,
        last: true,
        read: false,
        write: false,
        attr: 1,
        lun: [0; 8],
        itt: 5,
        expected: 0,
        cmd_sn: 1,
        exp_stat_sn: 0,
        cdb: [0; 16],
        data_len: 0,
    };
    common::deliver(&mut raw.target.connection(0), Time::ZERO, &command.build());
    assert_eq!(raw.target.protocol_errors(), 1);
    assert_eq!(raw.target.connection(0).poll_action(Time::ZERO), Some(Action::Abort));
}
