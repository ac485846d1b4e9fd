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
                Directives::default().add(directive);
            }
        }
    }
}
