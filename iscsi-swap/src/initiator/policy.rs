//! Choices that a URL or a command line makes, by name.

use std::fmt;
use std::str::FromStr;

/// When a write is durable.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum WritePolicy {
    /// Every write carries FUA.
    #[default]
    Fua,
    /// Every write is followed by SYNCHRONIZE CACHE over its blocks, for units without FUA.
    SyncCache,
}

/// Whether a digest (RFC 7143 section 11.2.3) is used: CRC32C of a header or of data.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Digest {
    /// Not at all.
    #[default]
    None,
    /// If the other side wants it too.
    Prefer,
    /// Always: a peer that does without is refused.
    Crc32c,
}

impl Digest {
    /// The values to offer, the best first (section 13.1).
    pub(crate) fn offer(self) -> &'static str {
        match self {
            Digest::None => "None",
            Digest::Prefer => "CRC32C,None",
            Digest::Crc32c => "CRC32C",
        }
    }

    /// What this side takes of a list that the other offers: whether there is a digest. `None` if
    /// there is nothing to take.
    pub(crate) fn choose(self, list: &str) -> Option<bool> {
        list.split(',').find_map(|value| match value {
            "CRC32C" if self != Digest::None => Some(true),
            "None" if self != Digest::Crc32c => Some(false),
            _ => None,
        })
    }
}

/// A name that is not one of those there are.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown {what} {name:?}; known: {known}")]
pub struct UnknownPolicy {
    /// What was to be chosen.
    pub what: &'static str,
    /// The name.
    pub name: String,
    /// The names there are.
    pub known: &'static str,
}

impl FromStr for Digest {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<Digest, UnknownPolicy> {
        match name {
            "none" => Ok(Digest::None),
            "prefer" => Ok(Digest::Prefer),
            "crc32c" => Ok(Digest::Crc32c),
            _ => Err(UnknownPolicy {
                what: "digest",
                name: name.into(),
                known: "none, prefer, crc32c",
            }),
        }
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Digest::None => "none",
            Digest::Prefer => "prefer",
            Digest::Crc32c => "crc32c",
        })
    }
}

impl FromStr for WritePolicy {
    type Err = UnknownPolicy;

    fn from_str(name: &str) -> Result<WritePolicy, UnknownPolicy> {
        match name {
            "fua" => Ok(WritePolicy::Fua),
            "sync" => Ok(WritePolicy::SyncCache),
            _ => Err(UnknownPolicy { what: "write policy", name: name.into(), known: "fua, sync" }),
        }
    }
}

impl fmt::Display for WritePolicy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            WritePolicy::Fua => "fua",
            WritePolicy::SyncCache => "sync",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_come_back_and_others_list_those_there_are() {
        for digest in [Digest::None, Digest::Prefer, Digest::Crc32c] {
            assert_eq!(digest.to_string().parse(), Ok(digest));
        }
        for policy in [WritePolicy::Fua, WritePolicy::SyncCache] {
            assert_eq!(policy.to_string().parse(), Ok(policy));
        }
        let error = "CRC32C".parse::<Digest>().unwrap_err().to_string();
        assert_eq!(error, "unknown digest \"CRC32C\"; known: none, prefer, crc32c");
        let error = "lazy".parse::<WritePolicy>().unwrap_err().to_string();
        assert_eq!(error, "unknown write policy \"lazy\"; known: fua, sync");
    }
}
