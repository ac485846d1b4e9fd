//! Expiries that the fields of an item state.

use std::ops::Range;

use jiff::Timestamp;
use serde_json::value::RawValue;

use super::json;

/// Below this, a number is a span: seconds from when the answer was given.
const SPANS: f64 = 1e9;
/// Below this, it is a moment in Unix seconds; else in Unix milliseconds.
const SECONDS: f64 = 1e11;

/// `time.Time{}`, written by Go's encoding/json.
pub(crate) const ZERO_TIME: &str = "0001-01-01T00:00:00Z";

/// When a link expires, as a field of its item says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StatedExpiry {
    /// At this moment, in Unix milliseconds.
    At(u64),
    /// This many seconds after the call was sent. It is answered as what is left of it.
    In {
        /// Seconds.
        seconds: u64,
        /// Where the number lies in the item's text.
        place: Range<usize>,
    },
    /// It cannot be read.
    Unreadable,
}

impl StatedExpiry {
    /// Whether it is a number of seconds, which each answer rewrites to what is left.
    pub fn is_relative(&self) -> bool {
        matches!(self, Self::In { .. })
    }

    /// Reads a field, which lies at `place` in the item's text. `None`: it states no expiry. Servers in Go
    /// write their zero time for a link that does not expire, and git-lfs reads it so (`IsExpiredAtOrIn`).
    pub(super) fn read(value: &RawValue, place: Option<Range<usize>>) -> Option<Self> {
        let text = json::string(value);
        (text.as_deref() != Some(ZERO_TIME)).then(|| Self::of(value, text.as_deref(), place))
    }

    /// Reads a field; `text` is its value, if that is a string.
    fn of(value: &RawValue, text: Option<&str>, place: Option<Range<usize>>) -> Self {
        if let Some(text) = text {
            let is_date = text.contains(['T', 't', ' ']);
            let date = is_date.then(|| text.parse::<Timestamp>().ok()).flatten();
            // Numbers are written as strings, too. They are answered as they came, so a span is none that can be kept.
            return match (date, text.parse::<f64>().ok().filter(|_| !is_date)) {
                (Some(date), _) => u64::try_from(date.as_millisecond()).map_or(Self::Unreadable, Self::At),
                (None, Some(number)) if number >= SPANS => Self::of_number(number, None),
                _ => Self::Unreadable,
            };
        }
        match value.get().parse::<f64>() {
            Ok(number) => Self::of_number(
                number,
                place.filter(|_| json::integer(value).is_some_and(|text| !text.starts_with('-'))),
            ),
            Err(_) => Self::Unreadable,
        }
    }

    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)] // Within the bounds that are checked.
    fn of_number(number: f64, place: Option<Range<usize>>) -> Self {
        match (number, place) {
            _ if !number.is_finite() || number < 0.0 => Self::Unreadable,
            (_, Some(place)) if number < SPANS => Self::In { seconds: number as u64, place },
            // It could not be answered as what is left of it.
            _ if number < SPANS => Self::Unreadable,
            _ if number < SECONDS => Self::At((number * 1000.0) as u64),
            _ if number < 1e15 => Self::At(number as u64),
            _ => Self::Unreadable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_field_is_a_date_a_span_or_a_moment() {
        let read = |text: &str| {
            let expiry = StatedExpiry::read(serde_json::from_str(text).unwrap(), Some(0..text.len()));
            expiry.expect("a field that says something")
        };
        let at = StatedExpiry::At(1_764_115_200_000);
        for text in [
            r#""2025-11-26T00:00:00Z""#,
            r#""2025-11-26T01:00:00.000+01:00""#,
            "1764115200",
            "1764115200000",
            r#""1764115200""#,
        ] {
            assert_eq!(read(text), at, "{text}");
        }
        assert_eq!(read("900"), StatedExpiry::In { seconds: 900, place: 0..3 });
        assert_eq!(read("0"), StatedExpiry::In { seconds: 0, place: 0..1 });
        for text in [
            r#""tomorrow""#,
            r#""900""#,
            r#""2025-11-26""#,
            "-1",
            "1.5",
            "1e999",
            "1e15",
            "true",
            "[900]",
            "{}",
            r#""""#,
        ] {
            assert_eq!(read(text), StatedExpiry::Unreadable, "{text}");
        }
        assert_eq!(StatedExpiry::read(serde_json::from_str(r#""0001-01-01T00:00:00Z""#).unwrap(), None), None);
    }
}
