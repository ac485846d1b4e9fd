//! `Cache-Control`, of requests and of answers (RFC 9111 §5.2).
//!
//! Lenient in what it reads, careful in what it concludes: unknown directives are passed over, a repeated directive
//! counts at its most restrictive, and a number that cannot be read counts as 0 (RFC 9111 §4.2.1).

use http::HeaderMap;
use http::header::CACHE_CONTROL;

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
    pub fn read(headers: &HeaderMap) -> Self {
        let mut read = Self::default();
        for line in headers.get_all(CACHE_CONTROL) {
            for directive in split(line.as_bytes()) {
                read.take(directive);
            }
        }
        read
    }

    fn take(&mut self, directive: &[u8]) {
        let (name, value) = match directive.iter().position(|byte| *byte == b'=') {
            Some(at) => {
                let (name, rest) = directive.split_at(at);
                (name, rest.get(1..))
            }
            None => (directive, None),
        };
        let name = name.trim_ascii().to_ascii_lowercase();
        match name.as_slice() {
            // With field names (`no-cache="set-cookie"`) it is about those fields; taken as the stricter whole.
            b"no-cache" => self.no_cache = true,
            b"no-store" => self.no_store = true,
            b"only-if-cached" => self.only_if_cached = true,
            b"must-revalidate" => self.must_revalidate = true,
            b"max-age" => {
                let seconds = seconds(value).unwrap_or(0);
                self.max_age = Some(self.max_age.map_or(seconds, |known| known.min(seconds)));
            }
            b"min-fresh" => {
                let seconds = seconds(value).unwrap_or(0);
                self.min_fresh = Some(self.min_fresh.map_or(seconds, |known| known.max(seconds)));
            }
            _ => {}
        }
    }
}

/// Splits at commas that are outside of quoted strings.
fn split(line: &[u8]) -> impl Iterator<Item = &[u8]> {
    let (mut quoted, mut escaped) = (false, false);
    line.split(move |byte| {
        if escaped {
            escaped = false;
            return false;
        }
        match byte {
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b',' if !quoted => return true,
            _ => {}
        }
        false
    })
    .map(<[u8]>::trim_ascii)
}

/// delta-seconds (RFC 9111 §1.2.2), quoted or not; more digits than fit count as forever.
fn seconds(value: Option<&[u8]>) -> Option<u64> {
    let mut digits = value?.trim_ascii();
    if let Some(inner) = digits.strip_prefix(b"\"").and_then(|rest| rest.strip_suffix(b"\"")) {
        digits = inner;
    }
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(std::str::from_utf8(digits).ok()?.parse().unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn read(lines: &[&str]) -> Directives {
        let mut headers = HeaderMap::new();
        for line in lines {
            headers.append(CACHE_CONTROL, line.parse().unwrap());
        }
        Directives::read(&headers)
    }

    #[test]
    fn directives_are_read_in_any_case_and_over_several_lines() {
        let read = read(&["No-Cache, MAX-AGE=30", "min-fresh=5"]);
        assert_eq!(read, Directives { no_cache: true, max_age: Some(30), min_fresh: Some(5), ..Directives::default() });
    }

    #[test]
    fn the_strictest_of_repeated_directives_counts() {
        assert_eq!(read(&["max-age=9, max-age=3", "max-age=5"]).max_age, Some(3));
        assert_eq!(read(&["min-fresh=9, min-fresh=3"]).min_fresh, Some(9));
    }

    #[test]
    fn an_unreadable_number_counts_as_nothing_left_and_a_huge_one_as_forever() {
        assert_eq!(read(&["max-age=soon"]).max_age, Some(0));
        assert_eq!(read(&["max-age"]).max_age, Some(0));
        assert_eq!(read(&["max-age=-1"]).max_age, Some(0));
        assert_eq!(read(&["max-age=\"7\""]).max_age, Some(7));
        assert_eq!(read(&["max-age=99999999999999999999999"]).max_age, Some(u64::MAX));
    }

    #[test]
    fn a_comma_or_a_directive_inside_a_quoted_string_is_text() {
        assert_eq!(read(&[r#"ext="a, no-store, \", no-cache""#]), Directives::default());
        assert!(read(&[r#"ext="a", no-store"#]).no_store);
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            for directive in split(&bytes) {
                Directives::default().take(directive);
            }
        }
    }
}
