//! Pauses that the endpoint asks for: `Retry-After` (RFC 9110 §10.2.3), and what it answered then.

use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http::header::{Entry, RETRY_AFTER, SET_COOKIE};
use http::{HeaderMap, HeaderValue, Response};
use parking_lot::Mutex;

use crate::clock::{Moment, millis};
use crate::error::Error;
use crate::message::headers::copied;

/// The longest pause, whatever the endpoint says.
const MAX: Duration = Duration::from_secs(60);
/// Without a `Retry-After`, or with one that cannot be read.
pub const DEFAULT: Duration = Duration::from_secs(1);
/// A longer answer is not repeated.
const MAX_BYTES: usize = 16 << 10;

/// The end of a pause, and the endpoint's answer that asked for it.
#[derive(Debug, Default)]
pub struct Pause(Mutex<Until>);

#[derive(Debug, Default)]
struct Until {
    /// On the monotonic clock.
    end: u64,
    answer: Option<Response<Bytes>>,
}

impl Until {
    /// Milliseconds that are left.
    fn left(&self, now: Moment) -> Option<u64> {
        self.end.checked_sub(now.monotonic).filter(|left| *left > 0)
    }
}

/// Why no call is made.
pub struct Rejection {
    /// The error that the client gets if there is no `answer`.
    pub error: Error,
    /// The answer with which the endpoint asked for a pause, as it came; its `Retry-After` says what is left. `None` where the
    /// answer is too long, or another caller's.
    pub answer: Option<Response<Bytes>>,
}

impl Pause {
    /// Pauses for `span` from `now`; `answer` is repeated meanwhile. Never shortens a pause.
    pub fn set(&self, now: Moment, span: Duration, answer: Option<Response<Bytes>>) {
        let end = now.monotonic.saturating_add(millis(span));
        let mut until = self.0.lock();
        if end > until.end {
            let answer = answer.filter(|answer| answer.body().len() <= MAX_BYTES).map(|answer| {
                // A copy: each caller has one, and the answer's slices would keep its read buffer in memory.
                let mut copy = Response::new(Bytes::copy_from_slice(answer.body()));
                (*copy.status_mut(), *copy.headers_mut()) = (answer.status(), copied(answer.headers()));
                // A cookie is set once.
                copy.headers_mut().remove(SET_COOKIE);
                copy
            });
            *until = Until { end, answer };
        }
    }

    /// What is left of the pause, if it has not ended.
    pub fn left(&self, now: Moment) -> Option<Duration> {
        self.0.lock().left(now).map(Duration::from_millis)
    }

    /// The rejection of calls, if the pause has not ended.
    pub fn lasting(&self, now: Moment) -> Option<Rejection> {
        let until = self.0.lock();
        let left = until.left(now)?;
        let mut answer = until.answer.clone();
        if let Some(Entry::Occupied(mut value)) = answer.as_mut().map(|answer| answer.headers_mut().entry(RETRY_AFTER))
        {
            value.insert(HeaderValue::from(left.div_ceil(1000)));
        }
        Some(Rejection { error: Error::HeldBack(Duration::from_millis(left)), answer })
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
        let again = later(3500).unwrap().answer.unwrap();
        assert_eq!((again.status().as_u16(), &again.body()[..]), (429, &b"busy"[..]));
        assert_eq!(again.headers()[RETRY_AFTER], "2");
        assert!(later(5000).is_none());
    }

    #[test]
    fn the_answer_of_a_pause_keeps_no_read_buffer_in_memory() {
        let buffer = Bytes::from(vec![b'x'; 8192]);
        let value = HeaderValue::from_maybe_shared(buffer.slice(..1)).unwrap();
        let answer = Response::builder().status(429).header("x-id", value).body(buffer.slice(1..2)).unwrap();
        let pause = Pause::default();
        pause.set(NOW, Duration::from_secs(5), Some(answer));
        assert!(buffer.is_unique());
        let kept = pause.lasting(NOW).unwrap().answer.unwrap();
        assert_eq!((&kept.headers()["x-id"], &kept.body()[..]), (&HeaderValue::from_static("x"), &b"x"[..]));
    }
}
