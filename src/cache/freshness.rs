//! How long a link may be served: its URL's own expiry, read into two deadlines.
//!
//! Both are fixed when the link's call was sent and never extended:
//! - *fresh until*: served without asking;
//! - *stale until*: past its freshness, served only for an endpoint that fails.
//!
//! Forms of presigned URLs: V2 `Expires` (absolute), V4 `X-Amz-Date` + `X-Amz-Expires` and, alike, `X-Obs-…`. Parameter
//! names are matched whole, so `response-expires` (a header of the download) is no expiry.

use std::borrow::Cow;
use std::time::{Duration, SystemTime};

use http::HeaderMap;
use http::header::{AGE, DATE};
use percent_encoding::percent_decode_str;

use crate::cache_control::Directives;
use crate::clock::{Moment, millis, read_basic_date};
use crate::config;

/// When a kept link stops being fresh, and when it stops being usable at all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deadlines {
    /// When the call that brought it was sent: all spans count from here.
    sent: Moment,
    /// Milliseconds.
    fresh: u32,
    /// Milliseconds; at least `fresh`.
    stale: u32,
    /// Milliseconds until the URL's own expiry; `u32::MAX` for a link that states none.
    life: u32,
}

impl Deadlines {
    /// Deadlines of an id that was left out: fresh for `span`, never stale.
    pub fn absent(sent: Moment, span: Duration) -> Self {
        let fresh = saturate(millis(span));
        Self { sent, fresh, stale: fresh, life: u32::MAX }
    }

    /// Deadlines as they were set elsewhere, for a call sent at `sent` with these spans; shortened to what `config` allows
    /// here. `None`: it allows nothing.
    pub(super) fn elsewhere(sent: Moment, [fresh, stale, life]: [u32; 3], config: &config::Freshness) -> Option<Self> {
        let most = |span: Duration| saturate(millis(span));
        let usable = if life == u32::MAX { u32::MAX } else { life.saturating_sub(most(config.min_remaining)) };
        let fresh = fresh.min(usable).min(most(config.max));
        let stale = stale.min(usable).min(fresh.saturating_add(most(config.stale_if_error))).max(fresh);
        (fresh > 0).then_some(Self { sent, fresh, stale, life })
    }

    /// When its call was sent, and the milliseconds from there that it is fresh, that it is usable, and until its URL expires.
    pub(super) fn parts(&self) -> (Moment, [u32; 3]) {
        (self.sent, [self.fresh, self.stale, self.life])
    }

    /// Milliseconds of freshness left; `None` once it is over.
    pub fn fresh_left(&self, now: Moment) -> Option<u64> {
        left(self.fresh, now.since(self.sent))
    }

    /// Whether a failing endpoint may be answered for with this link.
    pub fn usable(&self, now: Moment) -> bool {
        self.usable_left(now).is_some()
    }

    /// Milliseconds for which it may be; `None` once that is over.
    pub fn usable_left(&self, now: Moment) -> Option<u64> {
        left(self.stale, now.since(self.sent))
    }

    /// Milliseconds until the URL itself expires, if it says.
    pub fn life_left(&self, now: Moment) -> Option<u64> {
        (self.life != u32::MAX).then(|| u64::from(self.life).saturating_sub(now.since(self.sent)))
    }

    /// When the call that brought it was sent.
    pub fn sent(&self) -> Moment {
        self.sent
    }

    /// Milliseconds since the call that brought it was sent.
    pub fn age(&self, now: Moment) -> u64 {
        now.since(self.sent)
    }

    /// Whether the last fifth of its freshness has begun; by up to half of that fifth later for a greater `spread`, from 0
    /// to 1, so that links fetched together are not refreshed together.
    pub fn is_ageing(&self, now: Moment, spread: f64) -> bool {
        let begin = f64::from(self.fresh) * (0.8 + 0.1 * spread);
        now.since(self.sent) as f64 >= begin
    }
}

fn left(span: u32, elapsed: u64) -> Option<u64> {
    u64::from(span).checked_sub(elapsed).filter(|left| *left > 0)
}

/// What one answer of the endpoint says about all of its links.
#[derive(Clone, Copy, Debug)]
pub struct Source {
    /// When the call was sent.
    pub sent: Moment,
    /// The endpoint's own clock in Unix milliseconds: its `Date` plus its `Age`, else the local wall clock.
    pub now: u64,
    /// Seconds that the answer had spent in caches.
    pub age: u64,
    /// Its Cache-Control.
    pub directives: Directives,
}

impl Source {
    /// Reads the headers of an answer to a call sent at `sent`.
    pub fn read(headers: &HeaderMap, sent: Moment) -> Self {
        let age: u64 = single(headers, &AGE).and_then(|text| text.trim().parse().ok()).unwrap_or(0);
        let date = single(headers, &DATE)
            .and_then(|text| httpdate::parse_http_date(text).ok())
            .and_then(|date| date.duration_since(SystemTime::UNIX_EPOCH).ok());
        let now = match date {
            // A Date names whole seconds: its end is taken, so that a life is never measured too long.
            Some(date) => millis(date).saturating_add(999).saturating_add(age.saturating_mul(1000)),
            None => sent.unix_millis(),
        };
        Self { sent, now, age, directives: Directives::read(headers) }
    }

    /// Whether the endpoint's Cache-Control forbids keeping anything of it.
    pub fn forbids_storing(&self, config: &config::Freshness) -> bool {
        let directives = self.heeded(config);
        directives.no_store || directives.no_cache
    }

    /// How long a left-out id may be remembered as absent.
    pub fn absence(&self, config: &config::Freshness) -> Duration {
        let most = self.heeded(config).max_age.map(|seconds| Duration::from_secs(seconds.saturating_sub(self.age)));
        most.map_or(config.absent, |most| most.min(config.absent))
    }

    /// The directives that count. An operator who overrules `no-store` means the boilerplate around it too.
    fn heeded(&self, config: &config::Freshness) -> Directives {
        if self.directives.no_store && !config.honour_no_store {
            return Directives::default();
        }
        self.directives
    }

    /// Local minus endpoint's clock, in milliseconds.
    pub fn skew(&self) -> i64 {
        // On average a Date is half a second old; `now` takes it at the end of its second.
        let difference = i128::from(self.sent.unix_millis()) - i128::from(self.now) + 499;
        i64::try_from(difference).unwrap_or(0)
    }
}

fn single<'h>(headers: &'h HeaderMap, name: &http::HeaderName) -> Option<&'h str> {
    let mut lines = headers.get_all(name).iter();
    let line = lines.next()?;
    if lines.next().is_some() {
        return None; // Two clocks are none.
    }
    line.to_str().ok()
}

/// What becomes of one link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// Kept until these deadlines.
    Keep(Deadlines),
    /// Passed on, never stored.
    Pass(Reason),
}

/// Why a link is passed on and not stored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Reason {
    /// Its life left is below `freshness.min_remaining`.
    UnderFloor,
    /// Signed, with an expiry that cannot be read.
    Unreadable,
    /// The endpoint's Cache-Control forbids it.
    NoStore,
    /// The endpoint's Vary names something outside of the scope.
    Vary,
    /// The answer could not be matched to the ids asked for.
    Unmatched,
}

impl Reason {
    /// Every reason, for metrics.
    pub const ALL: [Reason; 5] =
        [Reason::UnderFloor, Reason::Unreadable, Reason::NoStore, Reason::Vary, Reason::Unmatched];

    /// Its name in metrics.
    pub fn name(self) -> &'static str {
        match self {
            Reason::UnderFloor => "under_floor",
            Reason::Unreadable => "unreadable_expiry",
            Reason::NoStore => "no_store",
            Reason::Vary => "vary",
            Reason::Unmatched => "unmatched",
        }
    }
}

/// Judges the link `url` of an answer.
pub fn judge(url: Option<&str>, source: &Source, config: &config::Freshness) -> Verdict {
    if source.forbids_storing(config) {
        return Verdict::Pass(Reason::NoStore);
    }
    let directives = source.heeded(config);
    let life = match url.map(expiry) {
        Some(Expiry::At(unix_millis)) => Some(unix_millis.saturating_sub(source.now)),
        Some(Expiry::None) => None,
        Some(Expiry::Unreadable) | None => return Verdict::Pass(Reason::Unreadable),
    };
    let usable = life.map(|life| life.saturating_sub(millis(config.min_remaining)));
    if usable == Some(0) {
        return Verdict::Pass(Reason::UnderFloor);
    }
    let by_kind = usable.unwrap_or(millis(config.unsigned));
    let by_endpoint =
        directives.max_age.map_or(u64::MAX, |seconds| seconds.saturating_sub(source.age).saturating_mul(1000));
    let fresh = by_kind.min(millis(config.max)).min(by_endpoint);
    if fresh == 0 {
        return Verdict::Pass(Reason::NoStore);
    }
    let stale = if directives.must_revalidate {
        fresh
    } else {
        fresh.saturating_add(millis(config.stale_if_error)).min(usable.unwrap_or(u64::MAX))
    };
    Verdict::Keep(Deadlines {
        sent: source.sent,
        fresh: saturate(fresh),
        stale: saturate(stale),
        life: life.map_or(u32::MAX, |life| saturate(life).min(u32::MAX - 1)),
    })
}

/// 49 days are as good as forever here: every span is capped by a day of configuration.
fn saturate(millis: u64) -> u32 {
    u32::try_from(millis).unwrap_or(u32::MAX)
}

/// What a URL says of its own end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Unix milliseconds.
    At(u64),
    /// Not signed: it does not end by itself.
    None,
    /// Signed, but it cannot be told when it ends.
    Unreadable,
}

/// A parameter that may stand at most once.
#[derive(Default)]
enum Once<'u> {
    #[default]
    Missing,
    Read(Cow<'u, str>),
    Bad,
}

impl<'u> Once<'u> {
    fn take(&mut self, value: Option<Cow<'u, str>>) {
        *self = match (std::mem::take(self), value) {
            (Once::Missing, Some(value)) => Once::Read(value),
            _ => Once::Bad,
        };
    }

    fn number(&self) -> Option<u64> {
        match self {
            Once::Read(text) if text.bytes().all(|byte| byte.is_ascii_digit()) => text.parse().ok(),
            _ => None,
        }
    }

    fn is_missing(&self) -> bool {
        matches!(self, Once::Missing)
    }
}

/// Reads when `url` expires.
pub fn expiry(url: &str) -> Expiry {
    let without_fragment = url.split('#').next().unwrap_or_default();
    let Some((_, query)) = without_fragment.split_once('?') else {
        return Expiry::None;
    };
    let mut signed = false;
    let mut policy = false;
    let mut expires = Once::default();
    let mut relative = [(Once::default(), Once::default()), (Once::default(), Once::default())];
    let [amz, obs] = &mut relative;
    for pair in query.split('&') {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8_lossy().to_ascii_lowercase();
        let value = || percent_decode_str(value).decode_utf8().ok();
        match name.as_str() {
            "expires" => expires.take(value()),
            "x-amz-date" => amz.0.take(value()),
            "x-amz-expires" => amz.1.take(value()),
            "x-obs-date" => obs.0.take(value()),
            "x-obs-expires" => obs.1.take(value()),
            "policy" => policy = true,
            "signature"
            | "accesskeyid"
            | "awsaccesskeyid"
            | "ossaccesskeyid"
            | "x-amz-signature"
            | "x-amz-algorithm"
            | "x-amz-credential"
            | "x-amz-security-token"
            | "x-obs-signature"
            | "x-obs-algorithm"
            | "x-obs-credential"
            | "x-obs-security-token"
            | "key-pair-id" => signed = true,
            _ => {}
        }
    }
    if policy {
        return Expiry::Unreadable; // The policy document holds an end of its own.
    }
    let mut earliest: Option<u64> = None;
    if !expires.is_missing() {
        match expires.number().and_then(|seconds| seconds.checked_mul(1000)) {
            Some(end) => earliest = Some(end),
            None => return Expiry::Unreadable,
        }
    }
    for (date, span) in &relative {
        if date.is_missing() && span.is_missing() {
            continue;
        }
        match end_of(date, span) {
            Some(end) => earliest = Some(earliest.map_or(end, |known| known.min(end))),
            None => return Expiry::Unreadable,
        }
    }
    match earliest {
        Some(end) => Expiry::At(end),
        None if signed => Expiry::Unreadable,
        None => Expiry::None,
    }
}

/// `20261124T000000Z` plus seconds, as Unix milliseconds.
fn end_of(date: &Once<'_>, span: &Once<'_>) -> Option<u64> {
    let Once::Read(text) = date else { return None };
    let begin = read_basic_date(text)?;
    begin.checked_add(span.number()?)?.checked_mul(1000)
}

#[cfg(test)]
mod tests;
