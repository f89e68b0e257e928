//! Every key of RFC 7143 sections 12 and 13, and what is to be done with it.

use super::SPECS;
use super::chap::ChapKey;

/// What a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Both sides send a value, the two become one: index in `SPECS`.
    Value(usize),
    /// HeaderDigest (0) or DataDigest (1): one of a list is chosen (13.1).
    Digest(usize),
    /// MaxRecvDataSegmentLength (13.12): declared, and looked at.
    Segment,
    /// AuthMethod (12.1).
    AuthMethod,
    /// Of the exchange that AuthMethod=CHAP begins (12.1.3).
    Chap(ChapKey),
    /// Who and what the sides are: InitiatorName, TargetName, SessionType (13.4, 13.5, 13.21).
    InitiatorName,
    TargetName,
    SessionType,
    /// Where the target is (13.8); may come several times.
    TargetAddress,
    /// TargetPortalGroupTag (13.9).
    Group,
    /// Gets no answer, and is not looked at.
    Declaration,
    /// Always answered in the same way.
    Fixed(&'static str),
}

/// What stands behind the keys that are in `SPECS`.
const OTHERS: [(&str, Kind); 24] = [
    ("HeaderDigest", Kind::Digest(0)),
    ("DataDigest", Kind::Digest(1)),
    ("MaxRecvDataSegmentLength", Kind::Segment),
    ("AuthMethod", Kind::AuthMethod),
    ("CHAP_A", Kind::Chap(ChapKey::Algorithm)),
    ("CHAP_I", Kind::Chap(ChapKey::Identifier)),
    ("CHAP_C", Kind::Chap(ChapKey::Challenge)),
    ("CHAP_N", Kind::Chap(ChapKey::Name)),
    ("CHAP_R", Kind::Chap(ChapKey::Response)),
    ("InitiatorName", Kind::InitiatorName),
    ("TargetName", Kind::TargetName),
    ("SessionType", Kind::SessionType),
    ("TargetAddress", Kind::TargetAddress),
    ("TargetAlias", Kind::Declaration),
    ("InitiatorAlias", Kind::Declaration),
    ("TargetPortalGroupTag", Kind::Group),
    // 13.26: declared by whoever wants to, and of no use here.
    ("X#NodeArchitecture", Kind::Declaration),
    // 13.3: in the full feature phase only.
    ("SendTargets", Kind::Fixed("Reject")),
    // 13.25: markers are gone.
    ("IFMarker", Kind::Fixed("Reject")),
    ("OFMarker", Kind::Fixed("Reject")),
    ("IFMarkInt", Kind::Fixed("Reject")),
    ("OFMarkInt", Kind::Fixed("Reject")),
    // 13.23, 13.24: the values that stand for what the RFC says anyway.
    ("TaskReporting", Kind::Fixed("RFC3720")),
    ("iSCSIProtocolLevel", Kind::Fixed("1")),
];

/// The keys that one side has sent in a login, a bit each.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen(u64);

impl Seen {
    /// Looks a key up: what it is, and its name; `None` if nobody knows it. The error is the name of a
    /// key that has come before and may not come again.
    pub(super) fn take(&mut self, key: &str) -> Result<Option<(Kind, &'static str)>, &'static str> {
        let Some((at, kind, name)) = find(key) else { return Ok(None) };
        let bit = 1 << at;
        if self.0 & bit != 0 && kind != Kind::TargetAddress {
            return Err(name);
        }
        self.0 |= bit;
        Ok(Some((kind, name)))
    }
}

fn find(key: &str) -> Option<(usize, Kind, &'static str)> {
    let value = SPECS.iter().enumerate().find(|(_, spec)| spec.name == key);
    if let Some((at, spec)) = value {
        return Some((at, Kind::Value(at), spec.name));
    }
    let other = OTHERS.iter().enumerate().find(|(_, (name, _))| *name == key);
    other.map(|(at, (name, kind))| (SPECS.len() + at, *kind, *name))
}

/// Values that answer without a value (section 6.2).
pub(super) fn is_refusal(value: &str) -> bool {
    matches!(value, "NotUnderstood" | "Irrelevant" | "Reject")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_key_has_a_bit_of_its_own_and_comes_once() {
        let mut seen = Seen::default();
        let names = SPECS.iter().map(|spec| spec.name).chain(OTHERS.iter().map(|(name, _)| *name));
        for name in names {
            assert!(seen.take(name).is_ok(), "{name}");
            let again = seen.take(name);
            assert_eq!(again.is_ok(), name == "TargetAddress", "{name}");
        }
        assert_eq!(seen.0, (1 << (SPECS.len() + OTHERS.len())) - 1);
        assert_eq!((seen.take("X-other"), seen.take("X-other")), (Ok(None), Ok(None)));
    }
}
