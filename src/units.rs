//! Sizes, rates and shares as people write them: `64MiB`, `1Gbit`, `0.1%`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Why a text is not a quantity.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum UnitError {
    /// There is no number at the front.
    #[error("{text:?} does not begin with a number")]
    NoNumber {
        /// The text.
        text: String,
    },
    /// There is a number and no unit.
    #[error("{text:?} has no unit: write {example}, for example; known: {known}")]
    NoUnit {
        /// The text.
        text: String,
        /// How it may be written.
        example: &'static str,
        /// The units that are known.
        known: &'static str,
    },
    /// The unit is not one of those known.
    #[error("unknown unit {unit:?}; known: {known}")]
    UnknownUnit {
        /// The unit given.
        unit: String,
        /// Those that are known.
        known: &'static str,
    },
    /// The number does not fit.
    #[error("{text:?} is out of range")]
    OutOfRange {
        /// The text.
        text: String,
    },
}

fn split(text: &str) -> Result<(f64, &str), UnitError> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let number = text[..end].parse().map_err(|_| UnitError::NoNumber { text: text.to_string() })?;
    Ok((number, text[end..].trim()))
}

fn scaled(
    text: &str,
    units: &[(&str, f64)],
    known: &'static str,
    example: &'static str,
) -> Result<u64, UnitError> {
    let (number, unit) = split(text)?;
    if unit.is_empty() {
        return Err(UnitError::NoUnit { text: text.trim().to_string(), example, known });
    }
    let factor = units
        .iter()
        .find(|(name, _)| *name == unit)
        .ok_or_else(|| UnitError::UnknownUnit { unit: unit.to_string(), known })?
        .1;
    let value = (number * factor).round();
    if value > 2f64.powi(53) {
        return Err(UnitError::OutOfRange { text: text.to_string() });
    }
    Ok(value as u64)
}

macro_rules! quantity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
        pub struct $name(pub u64);

        impl Serialize for $name {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }

        impl<'de> Deserialize<'de> for $name {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<$name, D::Error> {
                String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
            }
        }
    };
}

quantity! {
    /// A memory size in bytes, written `64MiB`.
    Bytes
}
quantity! {
    /// A link rate in bits a second, written `1Gbit`.
    BitRate
}
quantity! {
    /// A length of time in nanoseconds, written `100us`.
    Nanos
}
quantity! {
    /// A share in parts a million, written `0.1%`.
    Share
}

impl FromStr for Bytes {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Bytes, UnitError> {
        let names = ["B", "KiB", "MiB", "GiB", "TiB"];
        let units: Vec<_> = names.into_iter().zip((0..).map(|i| 1024f64.powi(i))).collect();
        scaled(text, &units, "B, KiB, MiB, GiB, TiB", "64MiB").map(Bytes)
    }
}

impl FromStr for BitRate {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<BitRate, UnitError> {
        let units = [("bit", 1.0), ("Kbit", 1e3), ("Mbit", 1e6), ("Gbit", 1e9)];
        scaled(text, &units, "bit, Kbit, Mbit, Gbit", "1Gbit").map(BitRate)
    }
}

impl FromStr for Nanos {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Nanos, UnitError> {
        let units =
            [("ns", 1.0), ("us", 1e3), ("ms", 1e6), ("s", 1e9), ("min", 60e9), ("h", 3600e9)];
        scaled(text, &units, "ns, us, ms, s, min, h", "100us").map(Nanos)
    }
}

impl FromStr for Share {
    type Err = UnitError;
    fn from_str(text: &str) -> Result<Share, UnitError> {
        let share = Share(scaled(text, &[("%", 1e4), ("ppm", 1.0)], "%, ppm", "0.1%")?);
        if share.0 > 1_000_000 {
            return Err(UnitError::OutOfRange { text: text.to_string() });
        }
        Ok(share)
    }
}

/// A plain number, as short as it can be told from its neighbours: `4`, `1.7`, `1e300`.
pub fn number(value: f64) -> String {
    let text = format!("{value:?}");
    text.strip_suffix(".0").map_or_else(|| text.clone(), str::to_string)
}

fn write_largest(f: &mut fmt::Formatter<'_>, value: u64, units: &[(&str, u64)]) -> fmt::Result {
    let (name, factor) = units
        .iter()
        .find(|(_, factor)| value >= *factor && value.is_multiple_of(*factor))
        .unwrap_or(&units[units.len() - 1]);
    write!(f, "{}{}", value / factor, name)
}

impl fmt::Display for Bytes {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write_largest(f, self.0, &[("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10), ("B", 1)])
    }
}

impl fmt::Display for BitRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("Gbit", 1_000_000_000), ("Mbit", 1_000_000), ("Kbit", 1_000), ("bit", 1)];
        write_largest(f, self.0, &units)
    }
}

impl fmt::Display for Nanos {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [("s", 1_000_000_000), ("ms", 1_000_000), ("us", 1_000), ("ns", 1)];
        write_largest(f, self.0, &units)
    }
}

impl fmt::Display for Share {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}%", self.0 as f64 / 1e4)
    }
}

impl Nanos {
    /// As a span of the state machines' clock.
    pub fn span(self) -> netswap_reserve::Span {
        netswap_reserve::Span::from_nanos(self.0)
    }
}

impl Bytes {
    /// Whole pages in it.
    pub fn pages(self) -> u64 {
        self.0 / netswap_reserve::PAGE_SIZE as u64
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantities_print_as_they_are_written() {
        for text in ["64MiB", "1GiB", "4KiB", "17B"] {
            assert_eq!(text.parse::<Bytes>().unwrap().to_string(), text);
        }
        for text in ["1Gbit", "100Mbit", "9600bit"] {
            assert_eq!(text.parse::<BitRate>().unwrap().to_string(), text);
        }
        for text in ["100us", "5s", "3ms", "1ns"] {
            assert_eq!(text.parse::<Nanos>().unwrap().to_string(), text);
        }
        assert_eq!("8TiB".parse::<Bytes>().unwrap().to_string(), "8192GiB");
        assert_eq!("2min".parse::<Nanos>().unwrap().to_string(), "120s");
        for text in ["0.1%", "3%", "0.0001%"] {
            assert_eq!(text.parse::<Share>().unwrap().to_string(), text);
        }
    }

    #[test]
    fn what_is_no_quantity_is_refused_with_the_known_units() {
        let error = "64MB".parse::<Bytes>().unwrap_err();
        assert!(error.to_string().contains("KiB"), "{error}");
        assert!("MiB".parse::<Bytes>().is_err());
        assert!("101%".parse::<Share>().is_err());
    }

    #[test]
    fn numbers_are_short() {
        for (value, text) in [(4.0, "4"), (1.7, "1.7"), (1e300, "1e300"), (1e-9, "1e-9")] {
            assert_eq!(number(value), text);
        }
    }

    #[test]
    fn a_bare_number_is_told_how_to_be_written() {
        for text in ["0", "64", " 64 "] {
            let error = text.parse::<Bytes>().unwrap_err().to_string();
            assert!(error.contains("has no unit") && error.contains("64MiB"), "{error}");
        }
        let error = "1".parse::<Nanos>().unwrap_err().to_string();
        assert!(error.contains("100us"), "{error}");
    }
}
