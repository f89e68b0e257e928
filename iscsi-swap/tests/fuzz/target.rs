//! What initiators send to the embedded target.

use netswap_iscsi::login::{InitiatorLogin, LoginConfig, LoginStep, Params};
use netswap_iscsi::pdu::{BHS_LEN, ResponsePdu, TAG_NONE, TextResponse, lun_bytes, opcode};
use netswap_iscsi::{IscsiTarget, TargetFaults};
use netswap_net::{Disconnect, Session};
use netswap_reserve::{PAGE_SIZE, Span, Time};
use netswap_swap::{Disk, MemDisk};

use super::login::{request, said};
use super::pdu::{Agreement, Digests, Pdu, cut};
use super::shared::{Input, OPERATIONS_MAX, give, take};
use super::{INITIATOR, IQN, SLOTS, digest, new_target, target_config};

/// Connections that are used.
const CONNECTIONS: usize = 2;
/// What this side declares: the longest data segment that may come.
const SEGMENT_MAX: u32 = 8192;
/// Most bytes of a command.
const TRANSFER_MAX: u32 = 16_384;
/// Most bytes that a PDU may bring forth: a whole transfer in the smallest segments.
const ANSWER_MAX: usize = 2 * TRANSFER_MAX as usize;

/// Commands with blocks in them, and without.
const COMMANDS: [u8; 36] = [
    0x00, 0x03, 0x08, 0x0a, 0x12, 0x15, 0x1a, 0x1b, 0x1e, 0x25, 0x28, 0x2a, 0x2e, 0x2f, 0x34, 0x35,
    0x41, 0x42, 0x55, 0x5a, 0x5f, 0x7f, 0x88, 0x89, 0x8a, 0x8b, 0x8e, 0x8f, 0x90, 0x91, 0x93, 0x9e,
    0xa0, 0xa3, 0xa8, 0xaa,
];

/// One end of a connection.
#[derive(Default)]
struct End {
    digests: Digests,
    agreement: Agreement,
    cmd_sn: u32,
    /// StatSN of the next PDU that bears status, once there was one.
    stat_sn: Option<u32>,
}

/// The initiators' side of the connections.
struct Peer {
    target: IscsiTarget<MemDisk>,
    login: InitiatorLogin,
    now: Time,
    on: usize,
    ends: [End; CONNECTIONS],
    itt: u32,
    /// Tag, transfer tag, offset and length of what was asked for last.
    r2t: [u32; 4],
    /// Commands that ended with GOOD, and answers that are text.
    good: u64,
}

/// The target that three bytes set up.
pub fn units(flags: [u8; 3]) -> IscsiTarget<MemDisk> {
    let mut config = target_config([flags[0] & !1, 5, flags[2]]);
    config.max_connections = CONNECTIONS;
    config.transfer_max = TRANSFER_MAX;
    config.keys.initial_r2t = flags[1] & 1 > 0;
    config.keys.immediate_data = flags[1] & 2 == 0;
    config.keys.first_burst = [65_536, 2048][usize::from((flags[1] >> 2) & 1)];
    config.keys.max_burst = [262_144, 4096][usize::from((flags[1] >> 3) & 1)];
    new_target(config)
}

/// Any bytes as what initiators send, most of it after a login. Gives whether something was answered with GOOD, or
/// with text.
pub fn target(bytes: &[u8]) -> bool {
    let mut input = Input::new(bytes);
    let flags: [u8; 3] = input.array();
    let login = InitiatorLogin::new(LoginConfig {
        header_digest: digest((flags[1] >> 4) & 1),
        data_digest: digest((flags[1] >> 5) & 1),
        ..LoginConfig::new(INITIATOR, Some(IQN), Params::default().declaring(SEGMENT_MAX))
    });
    let mut peer = Peer {
        target: units(flags),
        login,
        now: Time::ZERO,
        on: 0,
        ends: Default::default(),
        itt: 1,
        r2t: [0; 4],
        good: 0,
    };
    (0..CONNECTIONS).for_each(|index| peer.connect(index));
    // Without a login here the input brings its own.
    if flags[1] & 64 == 0 {
        assert!(peer.log_in(0), "a login as it has to be");
    }
    for _ in 0..OPERATIONS_MAX {
        let Some(operation) = input.operation() else { break };
        peer.operate(operation, &mut input);
        for lun in [0, 300] {
            let len = peer.target.disk_mut(lun).map_or(0, |disk| disk.len());
            assert_eq!(len, SLOTS * PAGE_SIZE as u64, "a disk of another size");
        }
    }
    peer.good > 0
}

impl Peer {
    fn operate(&mut self, operation: u8, input: &mut Input<'_>) {
        match operation % 16 {
            0 => self.pour(input.bytes()),
            // Any header, with data behind it.
            1 => self.say(&Pdu::new(input.array(), input.bytes())),
            2 => {
                // Any header with right numbers, behind it data of which it says what it wants.
                let mut bhs: [u8; BHS_LEN] = input.array();
                bhs[24..28].copy_from_slice(&self.ends[self.on].cmd_sn.to_be_bytes());
                bhs[4] &= 3;
                (bhs[5], bhs[6]) = (0, bhs[6] & 31);
                let ahs = vec![0x5a; usize::from(bhs[4]) * 4];
                self.say(&Pdu { bhs, ahs, data: input.bytes().to_vec() });
            }
            3..=7 => self.command(operation % 16, input),
            8 => self.answer_r2t(),
            9 => self.lie_to_r2t(input),
            10 => self.other(input),
            11 => {
                self.now += Span::from_millis(1 << (input.byte() % 16));
                for index in 0..CONNECTIONS {
                    self.target.connection(index).handle_deadline(self.now);
                    self.hear(index);
                    let due = self.target.connection(index).poll_deadline();
                    assert!(due.is_none_or(|at| at > self.now), "a deadline that never passes");
                }
            }
            12 => {
                self.on = usize::from(input.byte()) % CONNECTIONS;
                self.hear(self.on);
            }
            13 => {
                // A new connection, and perhaps a login, perhaps with the ISID of the other one.
                let how = input.byte();
                self.hang_up(self.on);
                if how & 1 > 0 {
                    self.log_in((how >> 1) & 1);
                }
            }
            14 => match input.byte() % 4 {
                0 => self.target.restart(self.now),
                1 => self.target.ping(self.on),
                2 => self.target.announce(self.on, input.byte() % 6, [input.word(); 3]),
                _ => self.hang_up(usize::from(input.byte()) % CONNECTIONS),
            },
            _ => {
                let which = input.byte();
                let ppm = |bit: u8| u32::from((which >> bit) & 1) * 500_000;
                self.target.set_faults(TargetFaults {
                    late_ppm: ppm(0),
                    late_by: Span::from_millis(100),
                    busy_ppm: ppm(1),
                    task_set_full_ppm: ppm(2),
                    check_condition_ppm: ppm(3),
                    ..TargetFaults::default()
                });
            }
        }
    }

    fn connect(&mut self, index: usize) {
        self.target.connection(index).handle_connected(self.now);
        self.ends[index] = End { cmd_sn: 1, ..End::default() };
    }

    fn hang_up(&mut self, index: usize) {
        self.target.connection(index).handle_disconnected(self.now, Disconnect::Reset);
        self.connect(index);
    }

    /// Whether a login that is right was taken.
    fn log_in(&mut self, isid: u8) -> bool {
        self.login.start().expect("names that fit");
        let mut text = Vec::new();
        for _ in 0..40 {
            let mut pdu = request(&self.login);
            pdu.bhs[13] = isid;
            self.ends[self.on].agreement.last = None;
            self.say(&pdu);
            let Some(reply) = self.ends[self.on].agreement.last.take() else { return false };
            match said(&mut self.login, &reply, &mut text) {
                Ok(LoginStep::Again) => {}
                Ok(LoginStep::Done(_)) => return true,
                _ => return false,
            }
        }
        false
    }

    /// Sends a PDU; one that takes a CmdSN counts.
    fn say(&mut self, pdu: &Pdu) {
        let end = &mut self.ends[self.on];
        let bytes = pdu.seal(end.digests);
        let counts = ![opcode::DATA_OUT, opcode::SNACK].contains(&pdu.opcode());
        if counts && pdu.bhs[0] & 0x40 == 0 && pdu.word(24) == end.cmd_sn {
            end.cmd_sn = end.cmd_sn.wrapping_add(1);
        }
        self.pour(&bytes);
    }

    fn pour(&mut self, mut bytes: &[u8]) {
        let most = (bytes.len() / BHS_LEN + 16) * ANSWER_MAX;
        let mut heard = self.hear(self.on);
        while !bytes.is_empty() {
            let taken = give(&mut self.target.connection(self.on), self.now, bytes);
            bytes = &bytes[taken..];
            let answers = self.hear(self.on);
            heard += answers;
            if taken == 0 && answers == 0 {
                break;
            }
        }
        assert!(heard <= most, "{heard} bytes of answers");
    }

    /// Takes what the target sends: whole PDUs, each within its bound, numbered as they have to be.
    fn hear(&mut self, index: usize) -> usize {
        let mut session = self.target.connection(index);
        let bytes = take(&mut session, self.now);
        let closes = session.poll_action(self.now).is_some();
        let end = &mut self.ends[index];
        let mut left = &bytes[..];
        while !left.is_empty() {
            let (pdu, len) = cut(left, end.digests).expect("a PDU that is cut short");
            left = &left[len..];
            if let Some(digests) = end.agreement.note(&pdu) {
                end.digests = digests;
            }
            let known =
                ResponsePdu::parse(&pdu.bhs).is_ok() || TextResponse::parse(&pdu.bhs).is_ok();
            assert!(known, "no PDU of a target: {:?}", pdu.bhs);
            assert!(pdu.data.len() <= TRANSFER_MAX as usize, "a segment of {}", pdu.data.len());
            if pdu.bears_status() && pdu.opcode() != opcode::LOGIN_RESPONSE {
                let sn = pdu.word(24);
                assert!(end.stat_sn.is_none_or(|next| next == sn), "StatSN that leaves a gap");
                end.stat_sn = Some(sn.wrapping_add(1));
            }
            match pdu.opcode() {
                opcode::R2T => self.r2t = [pdu.word(16), pdu.word(20), pdu.word(40), pdu.word(44)],
                opcode::SCSI_RESPONSE => self.good += u64::from(pdu.bhs[2..4] == [0, 0]),
                opcode::DATA_IN => self.good += u64::from(pdu.bhs[1] & 1 > 0 && pdu.bhs[3] == 0),
                opcode::TEXT_RESPONSE => self.good += 1,
                _ => {}
            }
        }
        if closes {
            self.hang_up(index);
        }
        bytes.len()
    }

    /// The header of a request with right numbers.
    fn header(&mut self, code: u8, flags: u8, how: u8) -> [u8; BHS_LEN] {
        let mut bhs = [0; BHS_LEN];
        (bhs[0], bhs[1]) = (code | ((how >> 1) & 0x40), flags);
        let lun = [0, 300, 0, 7][usize::from(how & 3)];
        bhs[8..16].copy_from_slice(&lun_bytes(lun));
        // Now and then a tag that is in use.
        self.itt += u32::from(how & 0x3c != 0x3c);
        bhs[16..20].copy_from_slice(&self.itt.to_be_bytes());
        let cmd_sn = self.ends[self.on].cmd_sn.wrapping_add(u32::from(how & 0x44 == 0x44));
        bhs[24..28].copy_from_slice(&cmd_sn.to_be_bytes());
        bhs
    }

    /// A command: 3 of any bytes, 4 reads, 5 and 6 write, 7 is one that is known, of small numbers.
    fn command(&mut self, operation: u8, input: &mut Input<'_>) {
        let (how, blocks, lba) = (input.byte(), input.byte() % 40, input.byte());
        let mut cdb = [0; 16];
        let mut flags = 0x80 | 1;
        let mut expected = u32::from(blocks) * [512, 4096][usize::from(how & 1)];
        let mut data = Vec::new();
        match operation {
            3 => {
                cdb = input.array();
                flags = input.byte();
                expected = u32::from(input.word()) << (flags & 8);
                data = input.bytes().to_vec();
            }
            4 => {
                (cdb[0], cdb[9], cdb[13]) = (0x88, lba, blocks);
                flags |= 0x40;
            }
            5 | 6 => {
                (cdb[0], cdb[1], cdb[9], cdb[13]) = (0x8a, how & 8, lba, blocks);
                flags |= 0x20;
                let len = u32::from(input.word()).min(expected);
                data = vec![lba; len as usize];
                // Unsolicited data is to follow.
                flags &= if operation == 6 { 0x7f } else { 0xff };
            }
            _ => {
                cdb = input.array();
                cdb[0] = COMMANDS[usize::from(cdb[0]) % COMMANDS.len()];
                match cdb[0] {
                    0x80..0xa0 => {
                        cdb[2..9].fill(0);
                        cdb[10..13].fill(0);
                    }
                    0x20..0x60 => {
                        cdb[2..5].fill(0);
                        cdb[7] = 0;
                    }
                    _ => {}
                }
                let bits = input.byte();
                flags |= bits & 0x60;
                expected = [expected, u32::from(input.word())][usize::from(bits & 1)];
                data = input.bytes().to_vec();
            }
        }
        let mut bhs = self.header(opcode::SCSI_COMMAND, flags, how);
        bhs[20..24].copy_from_slice(&expected.to_be_bytes());
        bhs[32..].copy_from_slice(&cdb);
        self.say(&Pdu::new(bhs, &data));
    }

    fn data(&mut self, last: bool, fields: [u32; 4], data: &[u8]) {
        let mut pdu = Pdu::new([0; BHS_LEN], data);
        (pdu.bhs[0], pdu.bhs[1]) = (opcode::DATA_OUT, u8::from(last) << 7);
        for (at, field) in [16, 20, 36, 40].into_iter().zip(fields) {
            pdu.set_word(at, field);
        }
        self.say(&pdu);
    }

    /// What was asked for last, as it has to be.
    fn answer_r2t(&mut self) {
        let [itt, ttt, offset, len] = self.r2t;
        let data = vec![0xda; len.min(TRANSFER_MAX) as usize];
        let count = data.len().div_ceil(4096);
        for (i, piece) in data.chunks(4096).enumerate() {
            let at = offset + i as u32 * 4096;
            self.data(i + 1 == count, [itt, ttt, i as u32, at], piece);
        }
    }

    /// What nobody asked for.
    fn lie_to_r2t(&mut self, input: &mut Input<'_>) {
        let how = input.byte();
        let [mut itt, mut ttt, mut offset, len] = self.r2t;
        match how % 4 {
            0 => offset = offset.wrapping_add_signed(i32::from(input.byte() as i8) * 256),
            1 => ttt = ttt.wrapping_add(u32::from(input.byte())),
            2 => (itt, ttt, offset) = (self.itt, TAG_NONE, u32::from(input.word())),
            _ => itt = u32::from(input.word()),
        }
        let len = if how & 8 > 0 { usize::from(input.word()) } else { len.min(4096) as usize };
        self.data(how & 4 > 0, [itt, ttt, u32::from(how >> 6), offset], &vec![0xde; len]);
    }

    /// Pings, text, task management, logout.
    fn other(&mut self, input: &mut Input<'_>) {
        let (which, how, flags) = (input.byte(), input.byte(), input.byte());
        let codes = [
            opcode::NOP_OUT,
            opcode::TEXT_REQUEST,
            opcode::TASK_MANAGEMENT_REQUEST,
            opcode::LOGOUT_REQUEST,
            opcode::SNACK,
            opcode::LOGIN_REQUEST,
        ];
        let code = codes[usize::from(which) % codes.len()];
        let mut bhs = self.header(code, flags, how);
        let mut data = input.bytes();
        if code == opcode::TEXT_REQUEST && data.is_empty() {
            data = b"SendTargets=All\0";
        }
        let other = match which >> 6 {
            0 => TAG_NONE,
            1 => self.itt.wrapping_sub(1),
            2 => self.itt.wrapping_sub(u32::from(how >> 4)),
            _ => u32::from(which),
        };
        if code == opcode::LOGOUT_REQUEST {
            bhs[20..22].copy_from_slice(&u16::from(which >> 6).to_be_bytes());
        } else {
            bhs[20..24].copy_from_slice(&other.to_be_bytes());
        }
        bhs[32..36].copy_from_slice(&self.ends[self.on].cmd_sn.wrapping_sub(1).to_be_bytes());
        self.say(&Pdu::new(bhs, data));
    }
}
