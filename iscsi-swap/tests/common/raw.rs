//! A hand-driven initiator: it logs in and then sends single PDUs, right and wrong.

use netswap_iscsi::pdu::{
    BHS_LEN, Bhs, DataOut, LoginRequest, ResponsePdu, ScsiCommand, TaskManagementRequest, data_len,
    lun_bytes, padding,
};
use netswap_iscsi::scsi::{Cdb, Sense};
use netswap_iscsi::{IscsiTarget, TargetConfig};
use netswap_net::{Action, SendVec, Session};
use netswap_reserve::{PagePool, PoolConfig, Time};
use netswap_swap::MemDisk;

use super::{IQN, deliver};

/// An initiator that sends what the test says, over any of the target's connections.
pub struct Raw {
    pub target: IscsiTarget<MemDisk>,
    /// The connection that is used.
    pub on: usize,
    pub now: Time,
    pub cmd_sn: [u32; 4],
    pub itt: u32,
    /// What the ISID of a login is made from.
    isid: usize,
}

pub type Answer = (ResponsePdu, Vec<u8>);

impl Raw {
    pub fn new(config: TargetConfig) -> Raw {
        let pool = PagePool::new(PoolConfig::new(config.frames() + 64));
        let mut target = IscsiTarget::new(config, pool).unwrap();
        target.add_lun(0, MemDisk::new(1 << 20), 512, false).unwrap();
        target.add_lun(2, MemDisk::new(1 << 20), 4096, true).unwrap();
        for index in 0..target.connections() {
            target.connection(index).handle_connected(Time::ZERO);
        }
        Raw { target, on: 0, now: Time::ZERO, cmd_sn: [1; 4], itt: 1, isid: 0 }
    }

    pub fn send(&mut self, bhs: Bhs, data: &[u8]) -> Vec<Answer> {
        let mut end = self.target.connection(self.on);
        let mut bytes = bhs.to_vec();
        bytes.extend_from_slice(data);
        bytes.extend(std::iter::repeat_n(0, padding(data.len())));
        deliver(&mut end, self.now, &bytes);
        answers(&mut end)
    }

    pub fn login(&mut self, csg: u8, nsg: u8, text: &str) -> Vec<Answer> {
        let text = text.replace(' ', "\0") + "\0";
        let request = LoginRequest {
            transit: true,
            more: false,
            csg,
            nsg,
            version_max: 0,
            version_min: 0,
            isid: [0x80, 0, 0, 0, 0, 9 + self.isid as u8],
            tsih: 0,
            itt: 1,
            cid: 0,
            cmd_sn: self.cmd_sn[self.on],
            exp_stat_sn: 0,
            data_len: text.len() as u32,
        };
        self.send(request.build(), text.as_bytes())
    }

    pub fn ready(config: TargetConfig) -> Raw {
        let mut raw = Raw::new(config);
        raw.begin_session();
        raw
    }

    /// Logs in on connection `on`, with the ISID of connection `isid`, and uses it.
    pub fn login_as(&mut self, on: usize, isid: usize) {
        self.on = on;
        self.isid = isid;
        let names = format!("InitiatorName=iqn.raw TargetName={IQN} SessionType=Normal");
        let answers = self.login(1, 3, &format!("{names} InitialR2T=No ImmediateData=Yes"));
        assert!(matches!(answers[..], [(ResponsePdu::Login(l), _)] if l.status == 0 && l.nsg == 3));
    }

    /// Logs in on the connection that is used.
    pub fn begin_session(&mut self) {
        self.login_as(self.on, self.on);
    }

    /// A command with its data in it.
    pub fn write(&mut self, cdb: Cdb, data: &[u8]) -> (u8, Option<Sense>) {
        let mut command = self.command(cdb, false, !data.is_empty(), data.len() as u32);
        command.data_len = data.len() as u32;
        let (status, _, sense) = ending(&self.send(command.build(), data));
        (status, sense)
    }

    /// Data of one page, the whole of what an R2T asks for.
    pub fn data_out(&mut self, itt: u32, ttt: u32, fill: u8) -> Vec<Answer> {
        let data = DataOut {
            last: true,
            lun: lun_bytes(0),
            itt,
            ttt,
            exp_stat_sn: 0,
            data_sn: 0,
            offset: 0,
            data_len: 4096,
        };
        self.send(data.build(), &[fill; 4096])
    }

    /// What is sent without having been asked for.
    pub fn unasked(&mut self) -> Vec<Answer> {
        answers(&mut self.target.connection(self.on))
    }

    pub fn manage(&mut self, function: u8, lun: u16, referenced: u32) -> Vec<Answer> {
        self.itt += 1;
        let request = TaskManagementRequest {
            immediate: true,
            function,
            lun: lun_bytes(lun),
            itt: self.itt,
            referenced,
            cmd_sn: self.cmd_sn[self.on],
            exp_stat_sn: 0,
            ref_cmd_sn: 0,
        };
        self.send(request.build(), &[])
    }

    pub fn command(&mut self, cdb: Cdb, read: bool, write: bool, expected: u32) -> ScsiCommand {
        self.itt += 1;
        let cmd_sn = self.cmd_sn[self.on];
        self.cmd_sn[self.on] += 1;
        ScsiCommand {
            immediate: false,
            last: true,
            read,
            write,
            attr: 1,
            lun: lun_bytes(0),
            itt: self.itt,
            expected,
            cmd_sn,
            exp_stat_sn: 0,
            cdb: cdb.build(),
            data_len: 0,
        }
    }

    pub fn read(&mut self, cdb: Cdb, expected: u32) -> (u8, Vec<u8>, Option<Sense>) {
        let command = self.command(cdb, expected > 0, false, expected);
        ending(&self.send(command.build(), &[]))
    }

    pub fn is_reset(&mut self) -> bool {
        self.target.connection(self.on).poll_action(Time::ZERO) == Some(Action::Abort)
    }
}

/// Status, data and sense of a command.
pub fn ending(answers: &[Answer]) -> (u8, Vec<u8>, Option<Sense>) {
    let mut data = Vec::new();
    for (pdu, bytes) in answers {
        match pdu {
            ResponsePdu::DataIn(d) => {
                data.extend_from_slice(bytes);
                if let Some(status) = d.status {
                    return (status, data, None);
                }
            }
            ResponsePdu::ScsiResponse(r) => {
                return (r.status, data, bytes.get(2..).and_then(Sense::parse));
            }
            other => panic!("{other:?}"),
        }
    }
    panic!("no status in {answers:?}");
}

pub fn answers(end: &mut dyn Session) -> Vec<Answer> {
    let mut bytes = Vec::new();
    loop {
        let mut out = SendVec::new();
        end.poll_send(Time::ZERO, &mut out);
        let n = out.iter().map(|s| s.len()).sum();
        bytes.extend(out.concat());
        drop(out);
        if n == 0 {
            break;
        }
        end.handle_sent(Time::ZERO, n);
    }
    let mut rest = &bytes[..];
    let mut answers = Vec::new();
    while !rest.is_empty() {
        let bhs: Bhs = rest[..BHS_LEN].try_into().unwrap();
        let len = data_len(&bhs);
        let data = rest[BHS_LEN..BHS_LEN + len].to_vec();
        rest = &rest[BHS_LEN + len + padding(len)..];
        answers.push((ResponsePdu::parse(&bhs).unwrap(), data));
    }
    answers
}
