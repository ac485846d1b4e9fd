//! Two clocks that are read together, because each fails alone.
//!
//! The monotonic clock stands still while a machine is suspended; the wall clock steps. A span has passed as soon as
//! *either* clock has advanced that far, so no suspend and no step lengthens a link's life.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use tokio::time::Instant;

/// A point in time on both clocks, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Moment {
    /// Since a moment before the clock was created.
    pub(crate) monotonic: u64,
    /// Since the Unix epoch.
    pub(crate) wall: u64,
}

impl Moment {
    /// How far the faster of the two clocks has advanced from `earlier` to here, in milliseconds; 0 if neither has.
    pub fn since(self, earlier: Moment) -> u64 {
        let monotonic = self.monotonic.saturating_sub(earlier.monotonic);
        let wall = self.wall.saturating_sub(earlier.wall);
        monotonic.max(wall)
    }

    /// The moment `millis` before this one, on both clocks.
    pub fn before(self, millis: u64) -> Moment {
        Moment { monotonic: self.monotonic.saturating_sub(millis), wall: self.wall.saturating_sub(millis) }
    }

    /// A moment that never comes.
    pub(crate) const NEVER: Moment = Moment { monotonic: u64::MAX, wall: u64::MAX };

    /// The moment `millis` after this one, on both clocks.
    pub(crate) fn after(self, millis: u64) -> Moment {
        Moment { monotonic: self.monotonic.saturating_add(millis), wall: self.wall.saturating_add(millis) }
    }

    /// The earlier of two moments, on each clock.
    pub(crate) fn min(self, other: Moment) -> Moment {
        Moment { monotonic: self.monotonic.min(other.monotonic), wall: self.wall.min(other.wall) }
    }

    /// Whether neither clock has reached `deadline`.
    pub(crate) fn is_before(self, deadline: Moment) -> bool {
        self.monotonic < deadline.monotonic && self.wall < deadline.wall
    }

    /// Milliseconds from `now` until the first clock reaches this deadline; 0 if one has.
    pub(crate) fn left(self, now: Moment) -> u64 {
        self.monotonic.saturating_sub(now.monotonic).min(self.wall.saturating_sub(now.wall))
    }

    /// Milliseconds since the Unix epoch on the wall clock.
    pub fn unix_millis(self) -> u64 {
        self.wall
    }

    /// Seconds since the Unix epoch on the wall clock.
    pub fn unix_seconds(self) -> u64 {
        self.wall / 1000
    }
}

/// Milliseconds on the monotonic clock when a clock is created: a link of the shared tier may be older than this process.
const BEFORE: u64 = 7 * 24 * 3600 * 1000;

/// The source of [`Moment`]s. Clones share one wall clock.
#[derive(Clone, Debug)]
pub struct Clock {
    start: Instant,
    wall: Wall,
}

#[derive(Clone, Debug)]
enum Wall {
    System,
    /// Unix milliseconds at `start`; advances with the (possibly paused) monotonic clock, and by steps.
    Simulated(Arc<AtomicI64>),
}

impl Clock {
    /// The machine's clocks.
    pub fn system() -> Self {
        Self { start: Instant::now(), wall: Wall::System }
    }

    /// Clocks that begin at `unix_millis` and follow tokio's clock, so that a paused runtime drives both.
    pub fn simulated(unix_millis: i64) -> Self {
        Self { start: Instant::now(), wall: Wall::Simulated(Arc::new(AtomicI64::new(unix_millis))) }
    }

    /// Steps a simulated wall clock; does nothing to the machine's.
    pub fn step(&self, millis: i64) {
        if let Wall::Simulated(base) = &self.wall {
            base.fetch_add(millis, Ordering::SeqCst);
        }
    }

    /// Both clocks, now.
    pub fn now(&self) -> Moment {
        self.at(Instant::now())
    }

    /// Both clocks, where `now` has just been read.
    pub fn at(&self, now: Instant) -> Moment {
        let elapsed = millis(now.saturating_duration_since(self.start));
        let wall = match &self.wall {
            Wall::System => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, millis),
            Wall::Simulated(base) => elapsed.saturating_add_signed(base.load(Ordering::SeqCst)),
        };
        Moment { monotonic: BEFORE + elapsed, wall }
    }
}

/// Unix seconds in ISO 8601's basic format, UTC: `20261124T151707Z`. A year after 9999 becomes 1970.
pub fn basic_date(unix_seconds: u64) -> String {
    let timestamp = i64::try_from(unix_seconds).ok().and_then(|seconds| jiff::Timestamp::from_second(seconds).ok());
    timestamp.unwrap_or_default().strftime(BASIC_DATE).to_string()
}

/// Unix milliseconds in the format of RFC 3339, UTC: `2026-11-24T15:17:07.25Z`. A year after 9999 becomes 1970.
pub fn rfc3339(unix_millis: u64) -> String {
    let timestamp = i64::try_from(unix_millis).ok().and_then(|millis| jiff::Timestamp::from_millisecond(millis).ok());
    timestamp.unwrap_or_default().to_string()
}

/// Reads exactly what [`basic_date`] writes.
pub fn read_basic_date(text: &str) -> Option<u64> {
    if text.len() != 16 || !text.is_ascii() {
        return None;
    }
    let date = jiff::civil::DateTime::strptime(BASIC_DATE, text).ok()?;
    let timestamp = jiff::tz::TimeZone::UTC.to_timestamp(date).ok()?;
    u64::try_from(timestamp.as_second()).ok()
}

const BASIC_DATE: &str = "%Y%m%dT%H%M%SZ";

/// A duration as whole milliseconds, saturating.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_span_has_passed_once_either_clock_says_so() {
        let start = Moment { monotonic: 1000, wall: 50_000 };
        assert_eq!(Moment { monotonic: 1000, wall: 58_000 }.since(start), 8000, "suspended");
        assert_eq!(Moment { monotonic: 9000, wall: 40_000 }.since(start), 8000, "stepped back");
        assert_eq!(Moment { monotonic: 1000, wall: 50_000 }.since(start), 0);
    }
}
