//! PDUs cut from a stream, and put together again.

use netswap_iscsi::pdu::{BHS_LEN, Bhs, TAG_NONE, ahs_len, data_len, opcode, padding};
use netswap_iscsi::text;

use super::shared::Input;

/// Which parts have a digest.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Digests {
    pub header: bool,
    pub data: bool,
}

/// A header, what additional header segments follow it, and its data without padding.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Pdu {
    pub bhs: Bhs,
    pub ahs: Vec<u8>,
    pub data: Vec<u8>,
}

const TABLE: [u32; 256] = {
    let mut table = [0; 256];
    let mut i = 0;
    while i < 256 {
        let mut crc = i as u32;
        let mut bit = 0;
        while bit < 8 {
            crc = (crc >> 1) ^ if crc & 1 > 0 { 0x82f6_3b78 } else { 0 };
            bit += 1;
        }
        table[i] = crc;
        i += 1;
    }
    table
};

/// CRC32C, as it stands on the wire.
fn crc32c(pieces: &[&[u8]]) -> [u8; 4] {
    let bytes = pieces.iter().copied().flatten();
    let step = |crc: u32, byte: &u8| TABLE[usize::from(crc as u8 ^ byte)] ^ (crc >> 8);
    (!bytes.fold(u32::MAX, step)).to_le_bytes()
}

impl Pdu {
    /// A PDU with this data; its header gets the length of it.
    pub fn new(mut bhs: Bhs, data: &[u8]) -> Pdu {
        bhs[4] = 0;
        bhs[5..8].copy_from_slice(&(data.len() as u32).to_be_bytes()[1..]);
        Pdu { bhs, ahs: Vec::new(), data: data.to_vec() }
    }

    pub fn opcode(&self) -> u8 {
        self.bhs[0] & 0x3f
    }

    pub fn word(&self, at: usize) -> u32 {
        u32::from_be_bytes([self.bhs[at], self.bhs[at + 1], self.bhs[at + 2], self.bhs[at + 3]])
    }

    pub fn set_word(&mut self, at: usize, value: u32) {
        self.bhs[at..at + 4].copy_from_slice(&value.to_be_bytes());
    }

    /// Whether its StatSN is its own, if a target sent it.
    pub fn bears_status(&self) -> bool {
        match self.opcode() {
            opcode::DATA_IN => self.bhs[1] & 1 > 0,
            opcode::NOP_IN => self.word(16) != TAG_NONE,
            opcode::R2T => false,
            _ => true,
        }
    }

    /// Whether it is a target's word that the login is over.
    pub fn ends_login(&self) -> bool {
        self.opcode() == opcode::LOGIN_RESPONSE
            && self.bhs[1] & 0x83 == 0x83
            && self.bhs[36..38] == [0, 0]
    }

    /// As it goes over the wire. The header says what it says, whatever the data.
    pub fn seal(&self, digests: Digests) -> Vec<u8> {
        let mut out = [&self.bhs[..], &self.ahs].concat();
        if digests.header {
            out.extend(crc32c(&[&self.bhs, &self.ahs]));
        }
        if self.data.is_empty() {
            return out;
        }
        let pad = &[0; 3][..padding(self.data.len())];
        out.extend_from_slice(&self.data);
        out.extend_from_slice(pad);
        if digests.data {
            out.extend(crc32c(&[&self.data, pad]));
        }
        out
    }
}

/// The first PDU of a stream, and its length; `None` if it is not whole. Digests are left out, unlooked at.
pub fn cut(stream: &[u8], digests: Digests) -> Option<(Pdu, usize)> {
    let bhs: Bhs = stream.get(..BHS_LEN)?.try_into().ok()?;
    let ahs_end = BHS_LEN + ahs_len(&bhs);
    let ahs = stream.get(BHS_LEN..ahs_end)?.to_vec();
    let start = ahs_end + if digests.header { 4 } else { 0 };
    let len = data_len(&bhs);
    let data = stream.get(start..start + len)?.to_vec();
    let end = start + len + padding(len) + if digests.data && len > 0 { 4 } else { 0 };
    (end <= stream.len()).then_some((Pdu { bhs, ahs, data }, end))
}

/// What a target's side of a login has agreed to, as it goes.
#[derive(Default)]
pub struct Agreement {
    text: Vec<u8>,
    /// The answer that came last.
    pub last: Option<Pdu>,
}

impl Agreement {
    /// Takes a PDU of a target as it sent it; gives the digests from here on if it ends the login.
    pub fn note(&mut self, pdu: &Pdu) -> Option<Digests> {
        if pdu.opcode() != opcode::LOGIN_RESPONSE {
            return None;
        }
        self.text.extend_from_slice(&pdu.data);
        self.last = Some(pdu.clone());
        let ends = pdu.ends_login();
        ends.then(|| {
            let has = |wanted| text::pairs(&self.text).any(|pair| pair == Ok((wanted, "CRC32C")));
            Digests { header: has("HeaderDigest"), data: has("DataDigest") }
        })
    }
}

/// Pairs that a login is about, right and wrong.
const PAIRS: [&str; 40] = [
    "AuthMethod=None",
    "AuthMethod=CHAP",
    "AuthMethod=CHAP,None",
    "AuthMethod=Reject",
    "CHAP_A=5",
    "CHAP_A=7",
    "CHAP_A=7,5",
    "CHAP_A=6",
    "CHAP_I=17",
    "CHAP_I=256",
    "CHAP_C=0x0102030405060708090a0b0c0d0e0f10",
    "CHAP_C=0bAQIDBAUGBwgJCgsMDQ4PEA==",
    "CHAP_C=0x",
    "CHAP_N=alice",
    "CHAP_N=targ",
    "CHAP_R=0x00112233445566778899aabbccddeeff",
    "HeaderDigest=None",
    "HeaderDigest=CRC32C",
    "HeaderDigest=CRC32C,None",
    "DataDigest=CRC32C",
    "DataDigest=None,CRC32C",
    "DataDigest=Reject",
    "InitiatorName=iqn.2026-01.test:initiator",
    "TargetName=iqn.2026-01.test:disk",
    "SessionType=Normal",
    "SessionType=Discovery",
    "TargetAddress=10.0.0.3:3260,1",
    "TargetAddress=[::1],1",
    "TargetAddress=elsewhere",
    "TargetPortalGroupTag=1",
    "MaxRecvDataSegmentLength=512",
    "MaxRecvDataSegmentLength=16777216",
    "FirstBurstLength=16777215",
    "MaxBurstLength=512",
    "MaxOutstandingR2T=65535",
    "InitialR2T=No",
    "ImmediateData=Irrelevant",
    "ErrorRecoveryLevel=2",
    "SendTargets=All",
    "X-com.example.key=NotUnderstood",
];

/// Changes text as the input says: pairs put in, left out, given twice, replaced, or all of it.
pub fn edit(text: &[u8], input: &mut Input<'_>) -> Vec<u8> {
    let how = input.byte();
    let mut pairs: Vec<&[u8]> = text.split(|byte| *byte == 0).filter(|p| !p.is_empty()).collect();
    let at = usize::from(how >> 4) % (pairs.len() + 1);
    match how % 8 {
        0 => pairs.insert(at, PAIRS[usize::from(input.byte()) % PAIRS.len()].as_bytes()),
        1 => pairs.insert(at, input.bytes()),
        2 if at < pairs.len() => {
            pairs.remove(at);
        }
        3 if at < pairs.len() => pairs.insert(at, pairs[at]),
        4 if at < pairs.len() => {
            pairs[at] = PAIRS[usize::from(input.byte()) % PAIRS.len()].as_bytes();
        }
        5 if at < pairs.len() => {
            // Another value to the same key.
            let key = pairs[at].split(|byte| *byte == b'=').next().unwrap_or_default();
            let pair = [key, b"=", input.bytes()].concat();
            let before = pairs[..at].iter().copied();
            let all = before.chain([&pair[..]]).chain(pairs[at + 1..].iter().copied());
            return joined(all);
        }
        6 => return input.bytes().to_vec(),
        _ => {
            // A byte of it, anywhere.
            let (at, with) = (usize::from(input.word()), input.byte());
            let mut text = text.to_vec();
            let len = text.len().max(1);
            if let Some(byte) = text.get_mut(at % len) {
                *byte ^= with;
            }
            return text;
        }
    }
    joined(pairs.into_iter())
}

fn joined<'a>(pairs: impl Iterator<Item = &'a [u8]>) -> Vec<u8> {
    pairs.flat_map(|pair| [pair, b"\0"].concat()).collect()
}

/// Whether all of it is text.
pub fn is_text(bytes: &[u8]) -> bool {
    !bytes.is_empty() && text::pairs(bytes).all(|pair| pair.is_ok())
}
