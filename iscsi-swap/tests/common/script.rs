//! A target of which a test writes every answer.
#![allow(dead_code, unreachable_pub)]

use netswap_iscsi::pdu::{
    BHS_LEN, Bhs, LoginResponse, RequestPdu, ScsiCommand, ScsiResponse, Sns, data_len,
};
use netswap_iscsi::scsi::{Cdb, Sense, SenseForm};
use netswap_iscsi::{InitiatorConfig, IscsiBackend};
use netswap_net::{Action, Disconnect, RecvVec, SendVec, Session};
use netswap_reserve::{Gfp, PagePool, PoolConfig, Span, Time};
use netswap_swap::{BackendState, Op, PageVec, Request, RequestId, Slot, SwapBackend};

/// What the unit answers to the questions of the set-up; `None` is CHECK CONDITION 05/20/00.
#[derive(Clone, Debug)]
pub struct Unit {
    pub blocks: u64,
    pub block_size: u32,
    pub capacity_16: bool,
    pub identity: Option<Vec<u8>>,
    /// Most blocks of a command.
    pub limits: Option<u32>,
    /// Device-specific byte, and byte 2 of the caching page.
    pub modes: Option<(u8, u8)>,
    pub thin: Thin,
}

/// What the unit says of UNMAP.
#[derive(Clone, Copy, Debug, Default)]
pub struct Thin {
    /// LBPME of READ CAPACITY (16).
    pub lbpme: bool,
    /// Most blocks and descriptors, granularity and alignment of VPD page B0h.
    pub limits: [u32; 4],
    /// LBPU of VPD page B2h; `None` without the page.
    pub lbpu: Option<bool>,
}

impl Unit {
    pub fn new() -> Unit {
        Unit {
            blocks: 8 * 64,
            block_size: 512,
            capacity_16: true,
            identity: Some(b"disk one".to_vec()),
            limits: None,
            modes: Some((0x10, 0x04)),
            thin: Thin::default(),
        }
    }
}

pub struct Script {
    pub backend: IscsiBackend,
    pub now: Time,
    pub unit: Unit,
    pub pool: PagePool,
    pub stat_sn: u32,
    pub exp_cmd_sn: u32,
    /// Commands admitted beyond ExpCmdSN.
    pub window: u32,
    /// Keys of the operational stage.
    pub keys: &'static str,
    /// Keys of the security stage.
    pub group: &'static str,
    /// Everything that came, but for logins and questions of the set-up.
    pub came: Vec<(RequestPdu, Vec<u8>)>,
    pub connects: u32,
    pub connected: bool,
    pub last_action: Option<Action>,
    bytes: Vec<u8>,
}

impl Script {
    pub fn new(config: InitiatorConfig, unit: Unit) -> Script {
        Script {
            backend: IscsiBackend::new(config),
            now: Time::ZERO,
            unit,
            pool: PagePool::new(PoolConfig::new(256)),
            stat_sn: 1,
            exp_cmd_sn: 1,
            window: 32,
            keys: "",
            group: "",
            came: Vec::new(),
            connects: 0,
            connected: false,
            last_action: None,
            bytes: Vec::new(),
        }
    }

    pub fn sns(&mut self, bears_status: bool) -> Sns {
        let stat_sn = self.stat_sn;
        self.stat_sn += u32::from(bears_status);
        let max_cmd_sn = self.exp_cmd_sn.wrapping_add(self.window).wrapping_sub(1);
        Sns { stat_sn, exp_cmd_sn: self.exp_cmd_sn, max_cmd_sn }
    }

    pub fn send(&mut self, mut bhs: Bhs, data: &[u8]) {
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        let mut all = [&bhs, data].concat();
        all.resize(all.len().next_multiple_of(4), 0);
        let mut at = 0;
        while at < all.len() && self.connected {
            let room = self.backend.recv_buffer();
            let n = room.len().min(all.len() - at);
            if n == 0 {
                return;
            }
            room[..n].copy_from_slice(&all[at..at + n]);
            self.backend.handle_received(self.now, n);
            at += n;
        }
    }

    /// Hands over bytes as a transport does that fills several buffers at once, in the pieces that `cut` says. Returns
    /// how many calls that took.
    pub fn pour(&mut self, bytes: &[u8], mut cut: impl FnMut() -> usize) -> u32 {
        let (mut rest, mut calls) = (bytes, 0);
        while !rest.is_empty() {
            let mut piece = cut().clamp(1, rest.len());
            while piece > 0 {
                let mut shown = RecvVec::new();
                self.backend.recv_buffers(&mut shown);
                let mut n = 0;
                for buffer in &mut shown {
                    let here = buffer.len().min(piece - n);
                    buffer[..here].copy_from_slice(&rest[n..n + here]);
                    n += here;
                }
                drop(shown);
                if n == 0 {
                    return calls;
                }
                self.backend.handle_received(self.now, n);
                calls += 1;
                rest = &rest[n..];
                piece -= n;
            }
        }
        calls
    }

    /// Takes what the initiator does and sends, until it rests; logins and set-up questions are answered.
    pub fn turn(&mut self) {
        loop {
            if let Some(action) = self.backend.poll_action(self.now) {
                self.last_action = Some(action);
                self.bytes.clear();
                match action {
                    Action::Connect { .. } => {
                        (self.connects, self.connected) = (self.connects + 1, true);
                        (self.stat_sn, self.exp_cmd_sn) = (1, 1);
                        self.backend.handle_connected(self.now);
                    }
                    _ => {
                        self.connected = false;
                        self.backend.handle_disconnected(self.now, Disconnect::BySelf);
                    }
                }
                continue;
            }
            if !self.connected {
                return;
            }
            let mut out = SendVec::new();
            self.backend.poll_send(self.now, &mut out);
            let sent = out.concat();
            drop(out);
            if sent.is_empty() {
                return;
            }
            self.backend.handle_sent(self.now, sent.len());
            self.bytes.extend(sent);
            while let Some(bhs) = self.bytes.first_chunk::<BHS_LEN>().copied() {
                let len = data_len(&bhs);
                let whole = BHS_LEN + len.next_multiple_of(4);
                if self.bytes.len() < whole {
                    break;
                }
                let data = self.bytes[BHS_LEN..BHS_LEN + len].to_vec();
                self.bytes.drain(..whole);
                self.take(RequestPdu::parse(&bhs).unwrap(), data);
            }
        }
    }

    fn take(&mut self, pdu: RequestPdu, data: Vec<u8>) {
        match pdu {
            RequestPdu::Login(login) => {
                let text = if login.csg == 1 { self.keys } else { self.group };
                let answer = LoginResponse {
                    transit: login.transit,
                    more: false,
                    csg: login.csg,
                    nsg: login.nsg,
                    version_max: 0,
                    version_active: 0,
                    isid: login.isid,
                    tsih: u16::from(login.nsg == 3),
                    itt: login.itt,
                    sns: self.sns(true),
                    status: 0,
                    data_len: 0,
                };
                self.send(answer.build(), text.as_bytes());
            }
            RequestPdu::ScsiCommand(command) => {
                assert_eq!(command.cmd_sn, self.exp_cmd_sn, "in order");
                self.exp_cmd_sn += 1;
                match self.answer(&Cdb::parse(&command.cdb)) {
                    Some(Some(data)) => self.data(&command, &data),
                    Some(None) => self.end(&command, 2, Some(Sense::INVALID_OPCODE)),
                    None => self.came.push((pdu, data)),
                }
            }
            _ => self.came.push((pdu, data)),
        }
    }

    fn answer(&self, cdb: &Cdb) -> Option<Option<Vec<u8>>> {
        let unit = &self.unit;
        let page = |code: u8, body: Option<Vec<u8>>| {
            body.map(|body| [&[0, code, 0, body.len() as u8], body.as_slice()].concat())
        };
        Some(match cdb {
            Cdb::TestUnitReady => Some(Vec::new()),
            Cdb::Inquiry { page: None, .. } => Some(vec![0; 36]),
            Cdb::Inquiry { page: Some(0x83), .. } => page(
                0x83,
                unit.identity
                    .as_ref()
                    .map(|id| [&[2, 1, 0, id.len() as u8], id.as_slice()].concat()),
            ),
            Cdb::Inquiry { page: Some(0xb0), .. } => page(
                0xb0,
                unit.limits.map(|blocks| {
                    let unmap = unit.thin.limits.map(u32::to_be_bytes).concat();
                    [&[0; 4], blocks.to_be_bytes().as_slice(), &[0; 8], &unmap, &[0; 28]].concat()
                }),
            ),
            Cdb::Inquiry { page: Some(0xb2), .. } => {
                page(0xb2, unit.thin.lbpu.map(|lbpu| vec![0, u8::from(lbpu) << 7, 2, 0]))
            }
            Cdb::ReadCapacity16 { .. } if !unit.capacity_16 => None,
            Cdb::ReadCapacity16 { .. } => {
                let mut data = (unit.blocks - 1).to_be_bytes().to_vec();
                data.extend(unit.block_size.to_be_bytes());
                data.resize(32, 0);
                data[14] = u8::from(unit.thin.lbpme) << 7;
                Some(data)
            }
            Cdb::ReadCapacity10 => {
                let last = (unit.blocks - 1) as u32;
                Some([last.to_be_bytes(), unit.block_size.to_be_bytes()].concat())
            }
            Cdb::ModeSense { .. } => unit.modes.map(|(device, caching)| {
                let mut data = vec![23, 0, device, 0, 8, 18, caching];
                data.resize(24, 0);
                data
            }),
            Cdb::Inquiry { .. } => None,
            _ => return None,
        })
    }

    /// Answers with data and GOOD.
    pub fn data(&mut self, command: &ScsiCommand, data: &[u8]) {
        if !data.is_empty() {
            let sns = self.sns(false);
            let pdu = netswap_iscsi::pdu::DataIn {
                last: true,
                acknowledge: false,
                overflow: false,
                underflow: false,
                status: None,
                lun: [0; 8],
                itt: command.itt,
                ttt: u32::MAX,
                sns,
                data_sn: 0,
                offset: 0,
                residual: 0,
                data_len: 0,
            };
            self.send(pdu.build(), data);
        }
        let left = command.expected - data.len() as u32;
        self.respond(command, 0, None, (false, left > 0, left));
    }

    pub fn end(&mut self, command: &ScsiCommand, status: u8, sense: Option<Sense>) {
        self.respond(command, status, sense, (false, false, 0));
    }

    /// As [`Script::end`], with overflow, underflow and residual.
    pub fn respond(
        &mut self,
        command: &ScsiCommand,
        status: u8,
        sense: Option<Sense>,
        (overflow, underflow, residual): (bool, bool, u32),
    ) {
        let sense = sense.map(|s| s.build(SenseForm::Fixed)).unwrap_or_default();
        let mut data = Vec::new();
        if !sense.is_empty() {
            data.extend((sense.len() as u16).to_be_bytes());
            data.extend_from_slice(&sense);
        }
        let sns = self.sns(true);
        let response = ScsiResponse {
            overflow,
            underflow,
            response: 0,
            status,
            itt: command.itt,
            sns,
            exp_data_sn: 0,
            residual,
            data_len: 0,
        };
        self.send(response.build(), &data);
        self.turn();
    }

    /// Until it is ready, or has failed.
    pub fn start(&mut self) -> BackendState {
        self.turn();
        self.backend.state()
    }

    /// Time passes: timers run off one by one.
    pub fn pass(&mut self, span: Span) {
        let end = self.now + span;
        while let Some(due) = Session::poll_deadline(&self.backend).filter(|due| *due <= end) {
            self.now = self.now.max(due);
            self.backend.handle_deadline(self.now);
            self.turn();
        }
        self.now = end;
        self.backend.handle_deadline(end);
        self.turn();
    }

    /// The next command that came, which is to be a READ or a WRITE.
    pub fn command(&mut self) -> ScsiCommand {
        let at = self.came.iter().position(|c| matches!(c.0, RequestPdu::ScsiCommand(_)));
        match self.came.remove(at.expect("a command has come")).0 {
            RequestPdu::ScsiCommand(command) => command,
            _ => unreachable!(),
        }
    }

    pub fn submit(&mut self, id: u32, op: Op, first: u32, pages: usize, deadline: Option<Time>) {
        let pages: PageVec = (0..pages).map(|_| self.pool.alloc(Gfp::KERNEL).unwrap()).collect();
        let request = Request { id: RequestId(id), op, first: Slot(first), pages, deadline };
        self.backend.submit(self.now, request).unwrap();
        self.turn();
    }
}
