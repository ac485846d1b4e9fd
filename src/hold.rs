//! `Retry-After`: how long the endpoint asks to be left alone.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::RETRY_AFTER;

use crate::clock::Moment;

/// The longest that anyone is held back, whatever the endpoint says.
const LONGEST: Duration = Duration::from_secs(60);
/// Where it does not say, or not readably.
const DEFAULT: Duration = Duration::from_secs(1);

/// Until when calls are held back, on the monotonic clock.
#[derive(Debug, Default)]
pub struct Hold(AtomicU64);

impl Hold {
    /// Holds back for `span` from `now`; never shortens a hold.
    pub fn set(&self, now: Moment, span: Duration) {
        self.0.fetch_max(now.monotonic.saturating_add(crate::clock::millis(span)), Ordering::Relaxed);
    }

    /// How long is left of it.
    pub fn left(&self, now: Moment) -> Option<Duration> {
        let left = self.0.load(Ordering::Relaxed).saturating_sub(now.monotonic);
        (left > 0).then(|| Duration::from_millis(left))
    }
}

/// Reads `Retry-After` (RFC 9110 §10.2.3), seconds or a date; `None` where there is none.
pub fn retry_after(headers: &HeaderMap, now: Moment) -> Option<Duration> {
    let value = headers.get(RETRY_AFTER)?;
    let span = value.to_str().ok().and_then(|text| {
        if let Ok(seconds) = text.trim().parse() {
            return Some(Duration::from_secs(seconds));
        }
        let date = httpdate::parse_http_date(text).ok()?;
        let here = SystemTime::UNIX_EPOCH + Duration::from_millis(now.unix_millis());
        Some(date.duration_since(here).unwrap_or_default())
    });
    Some(span.unwrap_or(DEFAULT).min(LONGEST))
}

/// The hold that a throttled caller gets: as asked, else a second.
pub fn throttled(headers: &HeaderMap, now: Moment) -> Duration {
    retry_after(headers, now).unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_dates_are_read_and_capped() {
        let now = Moment { monotonic: 0, wall: 1_795_478_400_000 };
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, now).map(|span| span.as_secs())
        };
        assert_eq!(read("2"), Some(2));
        assert_eq!(read("86400"), Some(60));
        assert_eq!(read("Tue, 24 Nov 2026 00:00:05 GMT"), Some(5));
        assert_eq!(read("Tue, 24 Nov 2020 00:00:05 GMT"), Some(0));
        assert_eq!(read("soon"), Some(1));
        assert_eq!(retry_after(&HeaderMap::new(), now), None);
    }
}
