//! The deadlines of a link: the expiry in its URL, read into two deadlines ([`Deadlines`]). Whether a link is served now is asked in
//! `fetch::requirements`.
//!
//! Both are counted from when the link's call was sent, and never extended:
//! - *fresh until*: before it, the link is served without asking the endpoint;
//! - *usable until*: after *fresh until* and before it, the link is stale, and served only if the endpoint fails.
//!
//! The life left of a link is measured against the latest of three clocks: the endpoint's, the signer's, and the local one.
//! A clock that is behind therefore never prolongs a life; one that is ahead costs hits.

mod expiry;
pub mod formats;

use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{AGE, DATE, EXPIRES};

use crate::api::answer::AnswerItem;
use crate::api::expiry::StatedExpiry;
use crate::clock::{Moment, millis};
use crate::config;
use crate::message::cache_control::Directives;
pub use crate::telemetry::metrics::Reason;

use expiry::Validity;
pub(crate) use expiry::has_sign_word;
pub use expiry::{Expiry, expiry, format_of};

/// Until when an entry is fresh, and until when it is usable.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// When the call was sent: all spans count from here.
    sent: Moment,
    /// Milliseconds for which the entry is fresh.
    fresh: u32,
    /// Milliseconds for which the entry is usable; at least `fresh`.
    usable: u32,
    /// Milliseconds until the URL's own expiry; `u32::MAX` for a link that states none.
    life: u32,
}

impl Deadlines {
    /// Deadlines of an id that the endpoint left out: fresh for `span`, and not usable after that.
    pub fn absent(sent: Moment, span: Duration) -> Self {
        let fresh = saturate(millis(span));
        Self { sent, fresh, usable: fresh, life: u32::MAX }
    }

    /// Deadlines of an entry that is answered once and not stored: neither fresh nor usable.
    pub fn not_stored(sent: Moment) -> Self {
        Self::absent(sent, Duration::ZERO)
    }

    /// Whether the entry may be stored: it is fresh for some time.
    pub fn is_stored(&self) -> bool {
        self.fresh > 0
    }

    /// Deadlines of an entry from another sidecar, for a call sent at `sent` with these spans, shortened to what `config`
    /// allows here. `None` if it allows nothing.
    pub(crate) fn elsewhere(
        sent: Moment,
        [fresh, usable, life]: [u32; 3],
        is_absent: bool,
        config: &config::Freshness,
    ) -> Option<Self> {
        let most = |span: Duration| saturate(millis(span));
        let deadlines = if is_absent {
            Self::absent(sent, Duration::from_millis(fresh.into()).min(config.absent))
        } else {
            let by_life = if life == u32::MAX { life } else { life.saturating_sub(most(config.min_remaining)) };
            let by_kind = if life == u32::MAX { most(config.unsigned) } else { by_life };
            let fresh = fresh.min(by_kind).min(most(config.max));
            let usable = usable.min(by_life).min(fresh.saturating_add(most(config.stale_if_error))).max(fresh);
            Self { sent, fresh, usable, life }
        };
        deadlines.is_stored().then_some(deadlines)
    }

    /// When the call was sent, and the milliseconds from there that the entry is fresh, that it is usable, and until its URL
    /// expires.
    pub(crate) fn parts(&self) -> (Moment, [u32; 3]) {
        (self.sent, [self.fresh, self.usable, self.life])
    }

    /// Milliseconds of freshness left, if any.
    pub fn fresh_left(&self, now: Moment) -> Option<u64> {
        left(self.fresh, now.since(self.sent))
    }

    /// Whether the entry may be served if the endpoint fails.
    pub fn usable(&self, now: Moment) -> bool {
        self.usable_left(now).is_some()
    }

    /// Milliseconds until the entry is not usable any more, if any.
    pub fn usable_left(&self, now: Moment) -> Option<u64> {
        left(self.usable, now.since(self.sent))
    }

    /// Milliseconds until the URL expires, if it states an expiry.
    pub fn life_left(&self, now: Moment) -> Option<u64> {
        (self.life != u32::MAX).then(|| u64::from(self.life).saturating_sub(now.since(self.sent)))
    }

    /// When the call was sent.
    pub fn sent(&self) -> Moment {
        self.sent
    }

    pub(crate) fn age(&self, now: Moment) -> u64 {
        now.since(self.sent)
    }

    /// When the entry stops being fresh.
    pub(crate) fn fresh_until(&self) -> Moment {
        self.sent.after(self.fresh.into())
    }

    /// When the URL expires, in milliseconds on the monotonic clock, if it states an expiry.
    pub(crate) fn expires(&self) -> Option<u64> {
        (self.life != u32::MAX).then(|| self.sent.monotonic.saturating_add(self.life.into()))
    }

    /// When the last fifth of the freshness begins. A `spread` from 0 to 255 delays this by up to half of that fifth, so that
    /// links fetched together are not refreshed together.
    pub(crate) fn ageing_from(&self, spread: u8) -> Moment {
        self.sent.after(u64::from(self.fresh) * (8 * 255 + u64::from(spread)) / (10 * 255))
    }

    /// Whether the last fifth of the freshness has begun ([`Self::ageing_from`]).
    pub(crate) fn is_ageing(&self, now: Moment, spread: u8) -> bool {
        !now.is_before(self.ageing_from(spread))
    }
}

fn left(span: u32, elapsed: u64) -> Option<u64> {
    u64::from(span).checked_sub(elapsed).filter(|left| *left > 0)
}

/// The freshness that the headers of an answer give all of its links.
#[derive(Clone, Copy, Debug)]
pub struct AnswerFreshness {
    /// When the call was sent.
    sent: Moment,
    /// The later of the endpoint's clock (its `Date` plus its `Age`) and the local one, in Unix milliseconds.
    now: u64,
    /// Local minus endpoint's clock, in milliseconds; 0 if the endpoint sent no `Date`.
    skew: i64,
    /// Seconds that the answer has spent in caches.
    age: u64,
    directives: Directives,
    /// Milliseconds until `Expires`, if present; 0 if it cannot be read.
    expires_in: Option<u64>,
}

impl AnswerFreshness {
    /// Reads the headers of an answer to a call sent at `sent`.
    pub fn read(headers: &HeaderMap, sent: Moment) -> Self {
        let age: u64 = single(headers, &AGE).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let date = single(headers, &DATE).and_then(read_http_date);
        let endpoint = date.map(|date| date.saturating_add(age.saturating_mul(1000)));
        let local = sent.unix_millis();
        // RFC 9111 §5.3: an invalid `Expires`, `0` above all, lies in the past.
        let expires_in = headers.contains_key(EXPIRES).then(|| {
            let expires = single(headers, &EXPIRES).and_then(read_http_date).unwrap_or(0);
            expires.saturating_sub(endpoint.map_or(local, |endpoint| endpoint.max(local)))
        });
        // A Date has whole seconds: the end of its second is taken, so that a life is never measured too long.
        let now = endpoint.map_or(local, |endpoint| endpoint.saturating_add(999).max(local));
        // On average a Date is half a second old.
        let skew = endpoint.map_or(0, |endpoint| i128::from(local) - i128::from(endpoint) - 500);
        let skew = i64::try_from(skew).unwrap_or(0);
        Self { sent, now, skew, age, directives: Directives::read(headers), expires_in }
    }

    /// Whether the endpoint's Cache-Control forbids storing the answer.
    pub(crate) fn forbids_storing(&self, config: &config::Freshness) -> bool {
        !self.is_overruled(config) && (self.directives.no_store || self.directives.no_cache)
    }

    /// How long an id that the endpoint left out counts as absent.
    pub(crate) fn absence(&self, config: &config::Freshness) -> Duration {
        self.lifetime(config).map_or(config.absent, |most| Duration::from_millis(most).min(config.absent))
    }

    /// Milliseconds for which the answer is fresh, if stated: `max-age`, else `Expires`.
    fn lifetime(&self, config: &config::Freshness) -> Option<u64> {
        if self.is_overruled(config) {
            return None;
        }
        let by_max_age = |seconds: u64| seconds.saturating_sub(self.age).saturating_mul(1000);
        self.directives.max_age.map(by_max_age).or(self.expires_in)
    }

    /// An operator who overrules `no-store` overrules the directives beside it too.
    fn is_overruled(&self, config: &config::Freshness) -> bool {
        self.directives.no_store && !config.honour_no_store
    }

    /// Seconds that the answer has spent in caches.
    pub(crate) fn age(&self) -> u64 {
        self.age
    }

    pub(crate) fn skew(&self) -> i64 {
        self.skew
    }
}

/// Unix milliseconds.
fn read_http_date(text: &str) -> Option<u64> {
    let date = httpdate::parse_http_date(text).ok()?;
    date.duration_since(SystemTime::UNIX_EPOCH).ok().map(millis)
}

fn single<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h str> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None;
    }
    line.to_str().ok()
}

/// An expiry further away than this counts as misread.
const TEN_YEARS: u64 = 3653 * 24 * 3600 * 1000;

/// Computes the deadlines of a new item with a link, which `source` brought. They are stored with the link; whether it is served at a
/// later moment is decided then, by `fetch::CacheRequirements::allow`.
///
/// # Errors
/// Why the link is passed on and not stored.
pub fn judge(item: &AnswerItem, source: &AnswerFreshness, config: &config::Freshness) -> Result<Deadlines, Reason> {
    if source.forbids_storing(config) {
        return Err(Reason::NoStore);
    }
    let url = item.url.as_deref().ok_or(Reason::NoLink)?;
    let validity = match item.url_expires {
        true => expiry::read(url).map_err(|_| Reason::Unreadable)?,
        false => Validity::default(),
    };
    let now = source.now.max(validity.start.unwrap_or(0));
    let mut life = validity.expiry.map(|(first, _)| first.saturating_sub(now));
    let mut is_too_far = validity.expiry.is_some_and(|(_, last)| last.saturating_sub(source.now) > TEN_YEARS);
    for expiry in &item.expiries {
        let by_field = match expiry {
            StatedExpiry::At(at) => at.saturating_sub(now),
            StatedExpiry::In { seconds, .. } => seconds.saturating_sub(source.age).saturating_mul(1000),
            StatedExpiry::Unreadable => return Err(Reason::Unreadable),
        };
        is_too_far |= by_field > TEN_YEARS;
        life = Some(life.map_or(by_field, |life| life.min(by_field)));
    }
    if is_too_far || (validity.may_be_signing_time && life == Some(0)) {
        return Err(Reason::Unreadable);
    }
    let by_life = life.map(|life| life.saturating_sub(millis(config.min_remaining)));
    if by_life == Some(0) {
        return Err(Reason::UnderFloor);
    }
    let by_kind = by_life.unwrap_or(millis(config.unsigned));
    let by_endpoint = source.lifetime(config).unwrap_or(u64::MAX);
    let fresh = by_kind.min(millis(config.max)).min(by_endpoint);
    if fresh == 0 {
        return Err(Reason::NoStore);
    }
    let usable = if source.directives.must_revalidate && !source.is_overruled(config) {
        fresh
    } else {
        fresh.saturating_add(millis(config.stale_if_error)).min(by_life.unwrap_or(u64::MAX))
    };
    Ok(Deadlines {
        sent: source.sent,
        fresh: saturate(fresh),
        usable: saturate(usable),
        life: life.map_or(u32::MAX, |life| saturate(life).min(u32::MAX - 1)),
    })
}

/// Saturates at 49 days: the configuration limits every span to a day.
fn saturate(millis: u64) -> u32 {
    u32::try_from(millis).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests;
