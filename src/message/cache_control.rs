//! `Cache-Control`, of requests and of answers (RFC 9111 §5.2).
//!
//! Unknown directives are ignored, the most restrictive of a repeated directive counts, and a number that cannot be read counts as 0
//! (RFC 9111 §4.2.1).

use http::header::CACHE_CONTROL;

use super::header_filter::Headers;

/// The directives that sidelink acts on; spans in seconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Directives {
    /// Do not answer from memory.
    pub no_cache: bool,
    /// Keep nothing of this exchange.
    pub no_store: bool,
    /// Request: answer from memory or not at all.
    pub only_if_cached: bool,
    /// Answer: not a moment past its freshness.
    pub must_revalidate: bool,
    /// The greatest age allowed.
    pub max_age: Option<u64>,
    /// Request: the least freshness that must be left.
    pub min_fresh: Option<u64>,
}

impl Directives {
    /// Reads every `Cache-Control` line of `headers`.
    pub fn read<'m>(headers: impl Into<Headers<'m>>) -> Self {
        let mut read = Self::default();
        for line in headers.into().get_all(&CACHE_CONTROL) {
            split(line.as_bytes()).for_each(|directive| read.add(directive));
        }
        read
    }

    fn add(&mut self, directive: &[u8]) {
        let mut parts = directive.splitn(2, |byte| *byte == b'=');
        let name = parts.next().unwrap_or_default().trim_ascii().to_ascii_lowercase();
        let mut seconds = || seconds(parts.next().unwrap_or_default());
        match name.as_slice() {
            // With field names (`no-cache="set-cookie"`) it is about those fields; read as the stricter whole.
            b"no-cache" => self.no_cache = true,
            b"no-store" => self.no_store = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"max-age" => self.max_age = Some(seconds().min(self.max_age.unwrap_or(u64::MAX))),
            b"min-fresh" => self.min_fresh = Some(seconds().max(self.min_fresh.unwrap_or(0))),
            _ => {}
        }
    }
}

/// Splits at commas outside of quoted strings.
fn split(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut is_quoted, mut is_escaped) = (false, false);
    let directives = line.split(move |byte| {
        let was_escaped = is_escaped;
        is_escaped = is_quoted && !was_escaped && *byte == b'\\';
        is_quoted ^= *byte == b'"' && !was_escaped;
        *byte == b',' && !is_quoted
    });
    directives.map(<[u8]>::trim_ascii)
}

/// delta-seconds (RFC 9111 §1.2.2), quoted or not; more digits than fit count as forever, anything else as 0.
fn seconds(value: &[u8]) -> u64 {
    let value = value.trim_ascii();
    let digits = value.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")).unwrap_or(value);
    match str::from_utf8(digits) {
        Ok(digits) if !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit()) => {
            digits.parse().unwrap_or(u64::MAX)
        }
        _ => 0,
    }
}

#[cfg(test)]
mod tests {
    use http::HeaderMap;

    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_strictest_of_repeated_directives_counts_and_what_cannot_be_read_counts_as_0() {
        let none = Directives::default();
        let max_age = |seconds| Directives { max_age: Some(seconds), ..none };
        let both = Directives { no_cache: true, max_age: Some(30), min_fresh: Some(5), ..none };
        for (lines, expected) in [
            (&["No-Cache, MAX-AGE=30", "min-fresh=5"][..], both),
            (&["max-age=9, max-age=3", "max-age=5"], max_age(3)),
            (&["min-fresh=9, min-fresh=3"], Directives { min_fresh: Some(9), ..none }),
            (&["max-age=soon"], max_age(0)),
            (&["max-age"], max_age(0)),
            (&["max-age=-1"], max_age(0)),
            (&["max-age=\"7\""], max_age(7)),
            (&["max-age=99999999999999999999999"], max_age(u64::MAX)),
            (&[r#"ext="a, no-store, \", no-cache""#], none),
            (&[r#"ext="a", no-store"#], Directives { no_store: true, ..none }),
        ] {
            let headers = HeaderMap::from_iter(lines.iter().map(|line| (CACHE_CONTROL, line.parse().unwrap())));
            assert_eq!(Directives::read(&headers), expected, "{headers:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for directive in split(&bytes) {
                Directives::default().add(directive);
            }
        }
    }
}
