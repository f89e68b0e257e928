//! Goal: each command that changes blocks changes those it names, all of them or none, and says why not.
//! Method: a hand-driven initiator on a thin unit, one that is provisioned in full, and one that is read-only.

mod common;

use common::raw::{Answer, Raw, ending};
use common::target_config;
use netswap_iscsi::UnitOptions;
use netswap_iscsi::pdu::lun_bytes;
use netswap_iscsi::scsi::{Cdb, Compare, Sense, status};
use netswap_swap::MemDisk;

const GOOD: (u8, Option<Sense>) = (status::GOOD, None);

fn failed(sense: Sense) -> (u8, Option<Sense>) {
    (status::CHECK_CONDITION, Some(sense))
}

/// LUN 0 is thick, LUN 1 thin.
fn raw() -> Raw {
    let mut raw = Raw::new(target_config());
    let options = UnitOptions { thin: true, ..UnitOptions::default() };
    raw.target.add_unit(1, MemDisk::new(1 << 20), options).unwrap();
    raw.begin_session();
    raw
}

fn on(raw: &mut Raw, lun: u16, cdb: Cdb, data: &[u8]) -> (u8, Option<Sense>) {
    let mut command = raw.command(cdb, false, !data.is_empty(), data.len() as u32);
    command.lun = lun_bytes(lun);
    command.data_len = data.len() as u32;
    let answers: Vec<Answer> = raw.send(command.build(), data);
    let (status, _, sense) = ending(&answers);
    (status, sense)
}

fn block(raw: &mut Raw, lun: u16, lba: u64) -> u8 {
    let mut command = raw.command(Cdb::Read { lba, blocks: 1, fua: false }, true, false, 512);
    command.lun = lun_bytes(lun);
    let (_, data, _) = ending(&raw.send(command.build(), &[]));
    assert!(data.len() == 512 && data.iter().all(|b| *b == data[0]), "a block of one byte");
    data[0]
}

fn ranges(list: &[(u64, u32)]) -> Vec<u8> {
    let len = list.len() as u16 * 16;
    let mut out = Vec::from((len + 6).to_be_bytes());
    out.extend(len.to_be_bytes());
    out.extend([0; 4]);
    for (lba, blocks) in list {
        out.extend(lba.to_be_bytes());
        out.extend(blocks.to_be_bytes());
        out.extend([0; 4]);
    }
    out
}

#[test]
fn blocks_are_compared_before_they_are_written_or_verified() {
    let raw = &mut raw();
    let write = |lba, blocks| Cdb::Write { lba, blocks, fua: false };
    assert_eq!(raw.write(write(8, 4), &[1; 2048]), GOOD);
    let swap = Cdb::CompareAndWrite { lba: 8, blocks: 2, fua: true };
    let pair = |old, new| [[old; 1024], [new; 1024]].concat();
    assert_eq!(raw.write(swap, &pair(1, 2)), GOOD);
    assert_eq!(raw.write(swap, &pair(1, 3)), failed(Sense::MISCOMPARE));
    assert_eq!(raw.write(swap, &[2; 1024]), failed(Sense::INVALID_FIELD), "half of it is missing");
    assert_eq!([8, 9, 10].map(|lba| block(raw, 0, lba)), [2, 2, 1]);

    let verify = |blocks, compare| Cdb::Verify { lba: 10, blocks, compare };
    assert_eq!(raw.write(verify(2, Compare::Nothing), &[]), GOOD);
    assert_eq!(raw.write(verify(2, Compare::All), &[1; 1024]), GOOD);
    assert_eq!(raw.write(verify(2, Compare::One), &[1; 512]), GOOD);
    assert_eq!(raw.write(verify(3, Compare::One), &[1; 512]), failed(Sense::MISCOMPARE));
    assert_eq!(raw.write(verify(2, Compare::All), &[2; 1024]), failed(Sense::MISCOMPARE));
    assert_eq!(raw.write(Cdb::WriteVerify { lba: 10, blocks: 1 }, &[4; 512]), GOOD);
    assert_eq!(raw.write(Cdb::OrWrite { lba: 10, blocks: 2, fua: false }, &[2; 1024]), GOOD);
    assert_eq!([10, 11, 12].map(|lba| block(raw, 0, lba)), [6, 3, 0]);
    let outside = Cdb::Verify { lba: 2047, blocks: 2, compare: Compare::Nothing };
    assert_eq!(raw.write(outside, &[]), failed(Sense::OUT_OF_RANGE));
}

#[test]
fn one_block_is_written_to_many() {
    let raw = &mut raw();
    let same = |blocks, unmap, no_data| Cdb::WriteSame { lba: 5, blocks, unmap, no_data };
    assert_eq!(raw.write(same(9, false, false), &[7; 512]), GOOD);
    assert_eq!([4, 5, 13, 14].map(|lba| block(raw, 0, lba)), [0, 7, 7, 0]);
    assert_eq!(raw.write(same(2, false, true), &[]), GOOD);
    assert_eq!([5, 6, 7].map(|lba| block(raw, 0, lba)), [0, 0, 7]);
    assert_eq!(raw.write(same(0, false, false), &[7; 512]), failed(Sense::INVALID_FIELD), "WSNZ");
    assert_eq!(raw.write(same(4, true, false), &[0; 512]), failed(Sense::INVALID_FIELD), "thick");
    assert_eq!(on(raw, 1, same(4, true, false), &[0; 512]), GOOD);
    assert_eq!(on(raw, 1, same(4, true, false), &[9; 512]), GOOD);
    assert_eq!([4, 5, 8, 9].map(|lba| block(raw, 1, lba)), [0, 9, 9, 0]);
}

#[test]
fn ranges_are_unmapped_all_or_none() {
    let raw = &mut raw();
    let fill = Cdb::WriteSame { lba: 0, blocks: 2048, unmap: false, no_data: false };
    assert_eq!(on(raw, 1, fill, &[7; 512]), GOOD);
    let list = ranges(&[(1, 2), (2047, 1), (10, 0)]);
    let unmap = |list: &[u8]| Cdb::Unmap { list_len: list.len() as u32 };
    assert_eq!(on(raw, 1, unmap(&list), &list), GOOD);
    let ends = |raw: &mut Raw| [0, 1, 2, 3, 2046, 2047].map(|lba| block(raw, 1, lba));
    assert_eq!(ends(raw), [7, 0, 0, 7, 7, 0]);
    let outside = ranges(&[(3, 1), (2047, 2)]);
    assert_eq!(on(raw, 1, unmap(&outside), &outside), failed(Sense::OUT_OF_RANGE));
    let far = ranges(&[(3, 1), (u64::MAX, 2)]);
    assert_eq!(on(raw, 1, unmap(&far), &far), failed(Sense::OUT_OF_RANGE));
    let cut = &list[..40];
    assert_eq!(on(raw, 1, unmap(cut), cut), failed(Sense::LIST_LENGTH), "it says more");
    assert_eq!(on(raw, 1, Cdb::Unmap { list_len: 4 }, &list[..4]), failed(Sense::LIST_LENGTH));
    assert_eq!(on(raw, 1, Cdb::Unmap { list_len: 0 }, &[]), GOOD);
    assert_eq!(on(raw, 0, unmap(&list), &list), failed(Sense::INVALID_OPCODE), "thick");
    assert_eq!(ends(raw), [7, 0, 0, 7, 7, 0]);
    // LUN 2 has blocks of 4096 bytes and is read-only.
    for cdb in [
        Cdb::WriteSame { lba: 0, blocks: 1, unmap: false, no_data: false },
        Cdb::WriteVerify { lba: 0, blocks: 1 },
        Cdb::OrWrite { lba: 0, blocks: 1, fua: false },
        Cdb::Write { lba: 0, blocks: 1, fua: false },
    ] {
        assert_eq!(on(raw, 2, cdb, &[1; 4096]), failed(Sense::WRITE_PROTECTED), "{cdb:?}");
    }
}
