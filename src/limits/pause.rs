//! Pauses that the endpoint asks for: `Retry-After` (RFC 9110 §10.2.3), and what it answered then.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{RETRY_AFTER, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response};
use parking_lot::Mutex;

use crate::clock::{Moment, millis};

/// The longest pause, whatever the endpoint says.
const MAX: Duration = Duration::from_secs(60);
/// Without a `Retry-After`, or with one that cannot be read.
const DEFAULT: Duration = Duration::from_secs(1);
/// A longer answer is not repeated.
const MAX_BYTES: usize = 16 << 10;

/// Until when calls wait, on the monotonic clock, and what the endpoint answered.
#[derive(Debug, Default)]
pub struct Pause(Mutex<Until>);

#[derive(Debug, Default)]
struct Until {
    end: u64,
    answer: Option<Arc<Response<Bytes>>>,
}

/// What is left of a pause.
#[derive(Clone, Debug)]
pub struct Paused {
    /// How long the pause still lasts.
    pub left: Duration,
    /// The answer with which the endpoint asked for it; `None` where that is too long, or another caller's.
    answer: Option<Arc<Response<Bytes>>>,
}

impl Pause {
    /// Pauses for `span` from `now`; `answer` is repeated meanwhile. Never shortens a pause.
    pub fn set(&self, now: Moment, span: Duration, answer: Option<Response<Bytes>>) {
        let end = now.monotonic.saturating_add(millis(span));
        let mut until = self.0.lock();
        if end > until.end {
            let answer = answer.filter(|answer| answer.body().len() <= MAX_BYTES).map(|mut answer| {
                // A cookie is set once.
                answer.headers_mut().remove(SET_COOKIE);
                Arc::new(answer)
            });
            *until = Until { end, answer };
        }
    }

    /// What is left of the pause, if it has not ended.
    pub fn lasting(&self, now: Moment) -> Option<Paused> {
        let until = self.0.lock();
        let left = until.end.saturating_sub(now.monotonic);
        (left > 0).then(|| Paused { left: Duration::from_millis(left), answer: until.answer.clone() })
    }
}

impl Paused {
    /// The endpoint's answer as it came; a `Retry-After` says what is left of the pause.
    pub fn answer(&self) -> Option<Response<Bytes>> {
        let mut answer = Response::clone(self.answer.as_ref()?);
        if answer.headers().contains_key(RETRY_AFTER) {
            let seconds = millis(self.left).div_ceil(1000);
            answer.headers_mut().insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        Some(answer)
    }
}

/// Reads `Retry-After`: seconds, or a date; `None` where there is none.
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
    Some(span.unwrap_or(DEFAULT).min(MAX))
}

/// The pause that a 429 asks for; a second where it does not say.
pub fn throttled(headers: &HeaderMap, now: Moment) -> Duration {
    retry_after(headers, now).unwrap_or(DEFAULT)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: Moment = Moment { monotonic: 0, wall: 1_795_478_400_000 };

    #[test]
    fn seconds_and_dates_are_read_and_capped() {
        let read = |text: &str| {
            let headers = HeaderMap::from_iter([(RETRY_AFTER, text.parse().unwrap())]);
            retry_after(&headers, NOW).map(|span| span.as_secs())
        };
        assert_eq!(read("2"), Some(2));
        assert_eq!(read("86400"), Some(60));
        assert_eq!(read("Tue, 24 Nov 2026 00:00:05 GMT"), Some(5));
        assert_eq!(read("Tue, 24 Nov 2020 00:00:05 GMT"), Some(0));
        assert_eq!(read("soon"), Some(1));
        assert_eq!(retry_after(&HeaderMap::new(), NOW), None);
    }

    #[test]
    fn the_answer_is_repeated_and_says_what_is_left() {
        let pause = Pause::default();
        let answer = |body: &'static [u8]| {
            Response::builder().status(429).header(RETRY_AFTER, "5").body(Bytes::from_static(body)).unwrap()
        };
        pause.set(NOW, Duration::from_secs(5), Some(answer(b"busy")));
        pause.set(NOW, Duration::from_secs(1), Some(answer(b"shorter")));
        let later = |monotonic| pause.lasting(Moment { monotonic, ..NOW });
        let again = later(3500).unwrap().answer().unwrap();
        assert_eq!((again.status().as_u16(), &again.body()[..]), (429, &b"busy"[..]));
        assert_eq!(again.headers()[RETRY_AFTER], "2");
        assert!(later(5000).is_none());
    }
}
