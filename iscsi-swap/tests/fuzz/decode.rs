//! Any bytes to every decoder.

use netswap_iscsi::pdu::{
    BHS_LEN, Bhs, RequestPdu, ResponsePdu, TextRequest, TextResponse, ahs_len, data_len, lun_bytes,
    lun_of, opcode_of,
};
use netswap_iscsi::scsi::data::{
    Capacity, UnitInfo, inquiry, is_disk, mode_sense, report_luns, vpd,
};
use netswap_iscsi::scsi::{Cdb, Sense, SenseForm};
use netswap_iscsi::window::CmdWindow;
use netswap_iscsi::{IscsiListUrl, IscsiUrl, text};

use super::pdu;

/// Any bytes: first as a header, which has data behind it; then all of them as text, sense, data, and as a URL.
/// Gives whether they were understood, as a header or as something else.
pub fn decode(bytes: &[u8]) -> bool {
    let mut known = false;
    if let Some((bhs, rest)) = bytes.split_first_chunk::<BHS_LEN>() {
        known |= header(bhs);
        data(rest);
    }
    data(bytes);
    known |= pdu::is_text(bytes) || Sense::parse(bytes).is_some();
    if let Ok(text) = std::str::from_utf8(bytes) {
        known |= url(text);
    }
    known
}

/// A header, both ways; what is read is written and read again.
fn header(bhs: &Bhs) -> bool {
    let _ = (ahs_len(bhs), opcode_of(bhs));
    assert!(data_len(bhs) < 1 << 24);
    let request = RequestPdu::parse(bhs);
    if let Ok(pdu) = request {
        let built = match pdu {
            RequestPdu::NopOut(p) => p.build(),
            RequestPdu::ScsiCommand(p) => {
                command(&p.cdb);
                p.build()
            }
            RequestPdu::TaskManagement(p) => p.build(),
            RequestPdu::Login(p) => p.build(),
            RequestPdu::DataOut(p) => p.build(),
            RequestPdu::Logout(p) => p.build(),
            RequestPdu::Unsupported { .. } => *bhs,
        };
        assert_eq!(RequestPdu::parse(&built), Ok(pdu));
    }
    let response = ResponsePdu::parse(bhs);
    if let Ok(pdu) = response {
        let built = match pdu {
            ResponsePdu::NopIn(p) => p.build(),
            ResponsePdu::ScsiResponse(p) => p.build(),
            ResponsePdu::TaskManagement(p) => p.build(),
            ResponsePdu::Login(p) => p.build(),
            ResponsePdu::DataIn(p) => p.build(),
            ResponsePdu::Logout(p) => p.build(),
            ResponsePdu::R2t(p) => p.build(),
            ResponsePdu::Async(p) => p.build(),
            ResponsePdu::Reject(p) => p.build(),
        };
        assert_eq!(ResponsePdu::parse(&built), Ok(pdu));
        let _ = (pdu.sns(), pdu.bears_status());
        let mut window = CmdWindow::new(1);
        window.update(pdu.sns().exp_cmd_sn, pdu.sns().max_cmd_sn);
        assert_eq!(window.take().is_some(), window != CmdWindow::new(1) && window.next() != 1);
    }
    let asked = TextRequest::parse(bhs);
    if let Ok(pdu) = asked {
        assert_eq!(TextRequest::parse(&pdu.build()), Ok(pdu));
    }
    let answered = TextResponse::parse(bhs);
    if let Ok(pdu) = answered {
        assert_eq!(TextResponse::parse(&pdu.build()), Ok(pdu));
    }
    if let Some(lun) = bhs[8..16].try_into().ok().and_then(|bytes| lun_of(&bytes)) {
        assert_eq!(lun_of(&lun_bytes(lun)), Some(lun));
    }
    request.is_ok() || response.is_ok() || asked.is_ok() || answered.is_ok()
}

fn command(cdb: &[u8; 16]) {
    let command = Cdb::parse(cdb);
    let _ = command.verb();
    if !matches!(command, Cdb::Invalid | Cdb::Unknown(_)) {
        assert_eq!(Cdb::parse(&command.build()), command);
    }
}

/// Bytes as what follows a header: text, sense, what a unit tells.
fn data(bytes: &[u8]) {
    let mut out = vec![0; bytes.len() + 2];
    let mut writer = text::TextWriter::new(&mut out);
    let mut count = 0;
    for (key, value) in text::pairs(bytes).map_while(Result::ok) {
        let _ = (text::number(value), text::boolean(value));
        writer.push(key, value).expect("text as long as what was read");
        count += 1;
    }
    let len = writer.len();
    assert_eq!(text::pairs(&out[..len]).filter(Result::is_ok).count(), count);
    for sense in [Some(bytes), bytes.get(2..)].into_iter().flatten() {
        if let Some(sense) = Sense::parse(sense) {
            assert!(sense.code() < 1 << 20);
            for form in [SenseForm::Fixed, SenseForm::Descriptor] {
                assert_eq!(Sense::parse(&sense.build(form)), Some(sense));
            }
            assert_eq!(Sense::parse(&sense.build(SenseForm::Empty)), None);
        }
    }
    if let Some(capacity) = Capacity::parse(bytes) {
        assert_eq!(Capacity::parse(&capacity.build()), Some(capacity));
        let short = capacity.build_10();
        assert_eq!(
            u32::from_be_bytes([short[4], short[5], short[6], short[7]]),
            capacity.block_size
        );
        unit(capacity, bytes);
    }
    let _ = is_disk(bytes);
    if let Ok(cdb) = <[u8; 16]>::try_from(bytes.get(..16).unwrap_or_default()) {
        command(&cdb);
    }
}

/// What a unit of this size tells, cut to a length: what fits is what stands in front of all of it.
fn unit(capacity: Capacity, bytes: &[u8]) {
    let at = |i: usize| bytes.get(12 + i).copied().unwrap_or(0);
    let info = unit_info(capacity, at(0));
    assert_eq!(Capacity::parse(&info.capacity_16()), Some(capacity));
    let room = usize::from(at(1));
    let cuts = |put: &dyn Fn(&mut [u8]) -> Option<usize>| {
        let (mut short, mut long) = (vec![0xee; room], vec![0xee; 512]);
        let (wanted, len) = (put(&mut short), put(&mut long));
        assert_eq!(wanted, len);
        let n = len.unwrap_or(0).min(room).min(512);
        assert_eq!(short[..n], long[..n]);
    };
    cuts(&|buf| Some(inquiry(buf, at(2) & 1 > 0)));
    cuts(&|buf| vpd(buf, at(3), &info));
    cuts(&|buf| mode_sense(buf, at(2) & 2 > 0, at(2) >> 6, at(3) & 0x3f, at(4), &info));
    cuts(&|buf| Some(report_luns(buf, (0..u16::from(at(5))).map(|lun| lun * 64))));
}

fn unit_info(capacity: Capacity, flags: u8) -> UnitInfo {
    UnitInfo {
        block_size: capacity.block_size,
        blocks: capacity.blocks,
        read_only: flags & 1 > 0,
        thin: flags & 2 > 0,
        transfer_max: capacity.block_size,
        unmap_max: u32::from(flags) << 20,
        compare_max: flags,
        serial: *b"0123456789abcdef",
    }
}

/// A URL; what is shown of it is read again, and shows no secret.
fn url(text: &str) -> bool {
    let unit = text.parse::<IscsiUrl>();
    if let Ok(url) = &unit {
        assert!((1..=223).contains(&url.target.len()) && url.lun < 1 << 14);
        assert!(url.portal.port > 0);
        let address = "10.0.0.2".parse().unwrap();
        let config = url.config(address, None, netswap_iscsi::Entropy::default());
        assert_eq!(config.target, url.target);
        let _ = url.portal.credentials(|_| Some("secret".into()));
    }
    let list = text.parse::<IscsiListUrl>();
    if let Ok(url) = &list {
        assert!(url.target.as_ref().is_none_or(|target| !target.is_empty()));
        let _ = url.config("10.0.0.2".parse().unwrap(), None, netswap_iscsi::Entropy::default());
    }
    // Each form is what it shows, but for what it does not show.
    let again: Option<IscsiUrl> = unit.as_ref().ok().and_then(|url| url.to_string().parse().ok());
    if let (Ok(url), Some(again)) = (&unit, again) {
        assert_eq!((&again.portal.host, again.lun), (&url.portal.host, url.lun));
    }
    unit.is_ok() || list.is_ok()
}
