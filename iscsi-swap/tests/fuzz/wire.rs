//! An initiator's session of any kind, its connection, and a target that answers it honestly when told to; what
//! the answers suffer on their way, and what is put between them.

use netswap_iscsi::pdu::{TAG_NONE, opcode};
use netswap_iscsi::{FAULT_NAMES, IscsiTarget, Moved, TargetConfig, TargetFaults};
use netswap_net::{Action, Disconnect, Session};
use netswap_reserve::{Span, Time};
use netswap_swap::MemDisk;

use super::new_target;
use super::pdu::{Agreement, Digests, Pdu, cut, edit};
use super::shared::{Input, give, take};

/// Operations that any session can meet.
pub const MEETINGS: u8 = 20;

/// What a target may send, and what it may not.
const OPCODES: [u8; 12] = [
    opcode::NOP_IN,
    opcode::SCSI_RESPONSE,
    opcode::TASK_MANAGEMENT_RESPONSE,
    opcode::LOGIN_RESPONSE,
    opcode::TEXT_RESPONSE,
    opcode::DATA_IN,
    opcode::LOGOUT_RESPONSE,
    opcode::R2T,
    opcode::ASYNC_MESSAGE,
    opcode::REJECT,
    opcode::SCSI_COMMAND,
    0x3e,
];

pub struct Wire {
    pub target: IscsiTarget<MemDisk>,
    pub now: Time,
    open: bool,
    /// The next connection is refused.
    refuse: bool,
    agreement: Agreement,
    /// What was agreed to at the end of the login.
    agreed: Digests,
    /// What holds now.
    digests: Digests,
    /// What was sent and the target has not taken.
    up: Vec<u8>,
    /// What the target sent behind its PDUs, if it is faulty: none.
    rest: Vec<u8>,
    /// Tags and transfer tags that were sent last.
    tags: Vec<(u32, u32)>,
    /// ExpCmdSN and MaxCmdSN that the target said last, and the StatSN that it will say next.
    window: [u32; 2],
    stat_sn: u32,
    /// PDUs with status that were put in, less those that were left out: the numbers behind them move.
    shift: u32,
}

impl Wire {
    pub fn new(config: TargetConfig) -> Wire {
        Wire {
            target: new_target(config),
            now: Time::ZERO,
            open: false,
            refuse: false,
            agreement: Agreement::default(),
            agreed: Digests::default(),
            digests: Digests::default(),
            up: Vec::new(),
            rest: Vec::new(),
            tags: Vec::new(),
            window: [0; 2],
            stat_sn: 0,
            shift: 0,
        }
    }

    /// Does what the session asks for, and takes what it sends.
    pub fn turn(&mut self, session: &mut impl Session) {
        for _ in 0..64 {
            if session.poll_deadline().is_some_and(|at| at <= self.now) {
                session.handle_deadline(self.now);
            }
            while let Some(action) = session.poll_action(self.now) {
                match action {
                    Action::Connect { .. } if std::mem::take(&mut self.refuse) => {
                        session.handle_disconnected(self.now, Disconnect::Refused);
                    }
                    Action::Connect { .. } => self.connect(session),
                    Action::Close | Action::Abort => self.hang_up(session, Disconnect::BySelf),
                }
            }
            if self.open {
                let sent = take(session, self.now);
                self.note(&sent);
                self.up.extend_from_slice(&sent);
            }
            if session.poll_deadline().is_none_or(|at| at > self.now) {
                return;
            }
        }
        panic!("a deadline that never passes");
    }

    fn connect(&mut self, session: &mut impl Session) {
        self.open = true;
        self.up.clear();
        self.tags.clear();
        self.rest.clear();
        self.shift = 0;
        self.digests = Digests::default();
        self.agreement = Agreement::default();
        self.target.connection(0).handle_connected(self.now);
        session.handle_connected(self.now);
    }

    pub fn hang_up(&mut self, session: &mut impl Session, why: Disconnect) {
        if std::mem::take(&mut self.open) {
            self.target.connection(0).handle_disconnected(self.now, why);
            session.handle_disconnected(self.now, why);
        }
    }

    /// Remembers the tags of what was sent.
    fn note(&mut self, mut sent: &[u8]) {
        while let Some((pdu, len)) = cut(sent, self.digests) {
            self.tags.insert(0, (pdu.word(16), pdu.word(20)));
            sent = &sent[len..];
        }
        self.tags.truncate(8);
    }

    /// What an honest target says to all that was sent, as its PDUs, numbered as they will go out.
    fn honest(&mut self) -> Vec<Pdu> {
        let now = self.now;
        let mut bytes = Vec::new();
        self.target.connection(0).handle_deadline(now);
        // The target stops taking when its buffers are full.
        loop {
            let taken = give(&mut self.target.connection(0), now, &self.up);
            self.up.drain(..taken);
            let answers = take(&mut self.target.connection(0), now);
            bytes.extend_from_slice(&answers);
            if taken == 0 && answers.is_empty() {
                break;
            }
        }
        let mut left = &bytes[..];
        let mut digests = self.digests;
        let mut pdus = Vec::new();
        while let Some((mut pdu, len)) = cut(left, digests) {
            left = &left[len..];
            if let Some(agreed) = self.agreement.note(&pdu) {
                (self.agreed, digests) = (agreed, agreed);
            }
            self.window = [pdu.word(28), pdu.word(32)];
            let stat_sn = pdu.word(24).wrapping_add(self.shift);
            self.stat_sn = stat_sn.wrapping_add(u32::from(pdu.bears_status()));
            pdu.set_word(24, stat_sn);
            pdus.push(pdu);
        }
        self.rest = left.to_vec();
        pdus
    }

    /// Sends PDUs to the session, and closes the connection behind them if the target does.
    fn deliver(&mut self, session: &mut impl Session, pdus: &[Pdu]) {
        let mut bytes = Vec::new();
        for pdu in pdus {
            bytes.extend(pdu.seal(self.digests));
            if pdu.ends_login() {
                self.digests = self.agreed;
            }
        }
        bytes.append(&mut self.rest);
        self.pour(session, &bytes);
    }

    fn pour(&mut self, session: &mut impl Session, bytes: &[u8]) {
        if self.open {
            give(session, self.now, bytes);
            if self.target.connection(0).poll_action(self.now).is_some() {
                self.hang_up(session, Disconnect::ByPeer);
            }
        }
    }

    /// One of the operations that any session can meet; `false` if it is none of them.
    pub fn meet(
        &mut self,
        operation: u8,
        input: &mut Input<'_>,
        session: &mut impl Session,
    ) -> bool {
        match operation {
            0 => {
                let pdus = self.honest();
                self.deliver(session, &pdus);
            }
            1 => {
                // Until there is nothing more to say.
                for _ in 0..16 {
                    let pdus = self.honest();
                    if pdus.is_empty() && self.rest.is_empty() {
                        break;
                    }
                    self.deliver(session, &pdus);
                    self.turn(session);
                }
            }
            2 => self.pour(session, input.bytes()),
            3 => {
                // A bit or some are turned over, at any place, behind the backs of the digests.
                let pdus = self.honest();
                let (at, with) = (usize::from(input.word()), input.byte());
                let mut bytes: Vec<u8> = pdus.iter().flat_map(|p| p.seal(self.digests)).collect();
                let len = bytes.len().max(1);
                if let Some(byte) = bytes.get_mut(at % len) {
                    *byte ^= with;
                }
                if pdus.iter().any(Pdu::ends_login) {
                    self.digests = self.agreed;
                }
                self.pour(session, &bytes);
            }
            4 => self.lie(input, session),
            5 => self.make_up(input, session),
            6 => self.shuffle(input, session),
            7 => {
                // Cut short: the rest never comes, or what comes next takes its place.
                let pdus = self.honest();
                let bytes: Vec<u8> = pdus.iter().flat_map(|p| p.seal(self.digests)).collect();
                let cut = usize::from(input.word()) % bytes.len().max(1);
                self.pour(session, &bytes[..cut]);
            }
            8 => {
                // Text of the target, changed.
                let mut pdus = self.honest();
                let is_text = |p: &&mut Pdu| {
                    [opcode::LOGIN_RESPONSE, opcode::TEXT_RESPONSE].contains(&p.opcode())
                };
                if let Some(pdu) = pdus.iter_mut().find(is_text) {
                    let mut bhs = pdu.bhs;
                    bhs[36] ^= input.byte() & 3;
                    *pdu = Pdu::new(bhs, &edit(&pdu.data, input));
                }
                self.deliver(session, &pdus);
            }
            9 => {
                // Junk behind what is right.
                let pdus = self.honest();
                self.deliver(session, &pdus);
                self.pour(session, input.bytes());
            }
            10 => self.now += Span::from_millis(1 << (input.byte() % 16)),
            11 => self.hang_up(session, Disconnect::ByPeer),
            12 => {
                self.target.restart(self.now);
                self.hang_up(session, Disconnect::Reset);
            }
            13 => self.refuse = true,
            14 => self.target.ping(0),
            15 => {
                let event = input.byte() % 6;
                let parameters = [input.word(), input.word() % 8, input.word() % 8];
                self.target.announce(0, event, parameters);
            }
            16 => {
                let address = match input.byte() % 5 {
                    0 => "10.0.0.3:3260,1".into(),
                    1 => "[2001:db8::1]".into(),
                    2 => String::from_utf8_lossy(input.bytes()).chars().take(60).collect(),
                    _ => String::new(),
                };
                let moved = Moved { address, permanent: input.byte() & 1 > 0 };
                self.target.redirect((!moved.address.is_empty()).then_some(moved));
            }
            17 => {
                // Some of the faults that a target has, and how long it holds answers back.
                let mut faults = TargetFaults {
                    late_by: Span::from_millis(u64::from(input.byte()) * 16),
                    ..TargetFaults::default()
                };
                for _ in 0..input.byte() % 4 {
                    let name = FAULT_NAMES[usize::from(input.byte()) % FAULT_NAMES.len()];
                    faults.set(name, u32::from(input.byte()) * 3900).expect("it has the name");
                }
                self.target.set_faults(faults);
            }
            18 => {
                // The answer to a command: status, and sense in any form.
                let (status, residual) = (input.byte(), input.byte());
                let sense = input.bytes();
                let mut data = (sense.len() as u16).to_be_bytes().to_vec();
                data.extend_from_slice(sense);
                let mut pdus = self.honest();
                if let Some(pdu) = pdus.iter_mut().find(|p| p.opcode() == opcode::SCSI_RESPONSE) {
                    let mut bhs = pdu.bhs;
                    (bhs[1], bhs[2]) = (0x80 | (residual & 6), residual >> 7);
                    bhs[3] = status;
                    bhs[44..48].copy_from_slice(&u32::from(residual).to_be_bytes());
                    *pdu = Pdu::new(bhs, if sense.is_empty() { &[] } else { &data });
                }
                self.deliver(session, &pdus);
            }
            19 => {
                // Data of the target, changed under its digest.
                let mut pdus = self.honest();
                let (at, bytes) = (usize::from(input.byte()), input.bytes());
                if let Some(pdu) = pdus.iter_mut().find(|p| p.opcode() == opcode::DATA_IN) {
                    let places = pdu.data.iter_mut().skip(at);
                    places.zip(bytes).for_each(|(place, byte)| *place = *byte);
                }
                self.deliver(session, &pdus);
            }
            _ => return false,
        }
        true
    }

    /// A field of an honest header is something else, under a digest that is right.
    fn lie(&mut self, input: &mut Input<'_>, session: &mut impl Session) {
        let mut pdus = self.honest();
        let (which, at, how) = (input.byte(), usize::from(input.byte()), input.byte());
        let count = pdus.len().max(1);
        if let Some(pdu) = pdus.get_mut(usize::from(which) % count) {
            match how % 4 {
                0 => pdu.bhs[at % 48] = input.byte(),
                1 => pdu.bhs[at % 48] ^= 1 << (how >> 5),
                2 => pdu.set_word(at % 12 * 4, u32::from_be_bytes(input.array())),
                _ => {
                    let add = i32::from(input.byte() as i8) * [1, 512][usize::from(how >> 7)];
                    let at = at % 12 * 4;
                    pdu.set_word(at, pdu.word(at).wrapping_add_signed(add));
                }
            }
        }
        self.deliver(session, &pdus);
    }

    /// A PDU that nobody sent: tag and numbers are right unless they are not to be.
    fn make_up(&mut self, input: &mut Input<'_>, session: &mut impl Session) {
        let opcode = OPCODES[usize::from(input.byte()) % OPCODES.len()];
        let [flags, second, third, which, off] = input.array();
        let tail: [u8; 12] = input.array();
        let mut pdu = Pdu::new([0; 48], input.bytes());
        pdu.bhs[..4].copy_from_slice(&[opcode, flags, second, third]);
        let count = self.tags.len().max(1);
        let (itt, ttt) = match self.tags.get(usize::from(which & 15) % count) {
            Some(tags) if which & 16 == 0 => *tags,
            _ => (TAG_NONE, u32::from(which)),
        };
        pdu.set_word(16, itt);
        pdu.set_word(20, if which & 32 > 0 { ttt } else { TAG_NONE - u32::from(which >> 7) });
        pdu.set_word(24, self.stat_sn.wrapping_add(u32::from(off & 3)));
        pdu.set_word(28, self.window[0].wrapping_add(u32::from((off >> 2) & 3)));
        pdu.set_word(32, self.window[1].wrapping_add(u32::from(off >> 4)));
        pdu.bhs[36..].copy_from_slice(&tail);
        // Numbers of transfers are small, or they are never right.
        for at in [36, 40] {
            pdu.bhs[at] &= tail[11] & 1;
            pdu.bhs[at + 1] &= tail[11] & 1;
        }
        if pdu.bears_status() && off & 3 == 0 {
            self.shift = self.shift.wrapping_add(1);
            self.stat_sn = self.stat_sn.wrapping_add(1);
        }
        self.deliver(session, &[pdu]);
    }

    /// PDUs left out, sent twice, or in another order.
    fn shuffle(&mut self, input: &mut Input<'_>, session: &mut impl Session) {
        let mut pdus = self.honest();
        let (how, which) = (input.byte(), usize::from(input.byte()));
        if !pdus.is_empty() {
            let at = which % pdus.len();
            let other = usize::from(how >> 2) % pdus.len();
            match how % 3 {
                0 => {
                    let gone = pdus.remove(at);
                    let by = u32::from(gone.bears_status());
                    self.shift = self.shift.wrapping_sub(by);
                    self.stat_sn = self.stat_sn.wrapping_sub(by);
                    for pdu in &mut pdus[at..] {
                        pdu.set_word(24, pdu.word(24).wrapping_sub(by));
                    }
                }
                1 => pdus.insert(other, pdus[at].clone()),
                _ => pdus.swap(at, other),
            }
        }
        self.deliver(session, &pdus);
    }
}
