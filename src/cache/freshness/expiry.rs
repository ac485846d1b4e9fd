//! Reads when a URL expires, and whether it is signed at all. The formats are in [`super::formats`].
//!
//! One pass over the parameters collects what each format states. Every format that is present must be readable, the earliest
//! expiry counts, and a URL with a sign of a signature that belongs to no readable format is unreadable. No signature is
//! verified: a URL can only shorten its own life.

use base64::Engine;
use base64::alphabet;
use base64::engine::{DecodePaddingMode, GeneralPurpose, GeneralPurposeConfig};
use jiff::Timestamp;
use jiff::civil::{Date, DateTime};
use jiff::tz::TimeZone;
use percent_encoding::percent_decode_str;
use serde_json::Value as Json;

use super::formats::{FORMATS, Shape, Time, UrlFormat, Value};
use crate::clock::read_basic_date;

/// The expiry that a URL states.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expiry {
    /// Unix milliseconds.
    At(u64),
    /// Not signed: it does not expire.
    None,
    /// Signed, with an expiry that cannot be read.
    Unreadable,
}

/// Reads when `url` expires.
pub fn expiry(url: &str) -> Expiry {
    match read(url) {
        Ok(Validity { expiry: Some((first, _)), .. }) => Expiry::At(first),
        Ok(_) => Expiry::None,
        Err(Unreadable) => Expiry::Unreadable,
    }
}

/// The validity that a URL, or a part of it, states, in Unix milliseconds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Validity {
    /// The earliest and the latest expiry.
    pub(super) expiry: Option<(u64, u64)>,
    /// When it was signed, or from when it is valid: the latest.
    pub(super) start: Option<u64>,
    /// Milliseconds from `start`.
    lifetime: Option<u64>,
    /// Whether an expiry in the past may be the time of signing.
    pub(super) may_be_signing_time: bool,
}

/// The URL is signed, and its expiry cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unreadable;

/// Reads the validity of `url`; without an expiry, the URL has no sign of a signature.
pub(super) fn read(url: &str) -> Result<Validity, Unreadable> {
    Reader::of(url).finish().map(|(validity, _)| validity)
}

/// The name of the format by which the expiry of `url` is read. Several share a parameter: the only one to which the URL's signs of a
/// signature belong, or one that has none.
pub fn format_of(url: &str) -> Option<&'static str> {
    let reader = Reader::of(url);
    let signs = reader.signs.clone();
    let (_, read) = reader.finish().ok()?;
    let narrow = |formats: FormatSet, sign: FormatSet| if formats & sign == 0 { formats } else { formats & sign };
    let candidates = signs.into_iter().fold(read, narrow);
    let named =
        |set: FormatSet| FORMATS.iter().enumerate().filter(move |(at, _)| set & 1 << at != 0).map(|(_, format)| format);
    let first = named(candidates).next();
    // `Signature` alone is a sign of several vendors.
    let of_nobody = || named(candidates).chain(named(read)).find(|format| format.signs.is_empty());
    first.filter(|_| candidates.is_power_of_two()).or_else(of_nobody).or(first).map(|format| format.name)
}

/// A set of formats, one bit for each of [`FORMATS`].
type FormatSet = u32;

const EVERY_FORMAT: FormatSet = FormatSet::MAX;
const _: () = assert!(FORMATS.len() <= FormatSet::BITS as usize);

/// Collects the validity that the parameters state.
#[derive(Default)]
struct Reader {
    stated: [Stated; FORMATS.len()],
    /// For each sign of a signature, the formats that account for it.
    signs: Vec<FormatSet>,
}

/// The validity that the parameters of one format have stated so far.
#[derive(Clone, Copy, Default)]
struct Stated {
    /// The format's `times` that were present, one bit each.
    seen: u32,
    has_companion: bool,
    is_unreadable: bool,
    found: Validity,
}

impl Reader {
    fn of(url: &str) -> Self {
        let without_fragment = url.split('#').next().unwrap_or_default();
        let (path, query) = without_fragment.split_once('?').unwrap_or((without_fragment, ""));
        let mut reader = Self::default();
        reader.read_path(path);
        for pair in query.split('&') {
            reader.read_parameter(pair);
        }
        reader
    }

    /// Reads `name=value` segments as parameters, and looks for a hash beside a timestamp, as CDNs sign paths.
    fn read_path(&mut self, path: &str) {
        let mut before = Segment::Other;
        for segment in path.split('/') {
            for pair in segment.split([';', '&']).filter(|pair| pair.contains('=')) {
                self.read_parameter(pair);
            }
            let here = Segment::of(&percent_decode_str(segment).decode_utf8_lossy());
            if matches!((before, here), (Segment::Hash, Segment::Timestamp) | (Segment::Timestamp, Segment::Hash)) {
                // Object names can look the same, so any format that is read accounts for this sign.
                self.signs.push(EVERY_FORMAT);
            }
            before = here;
        }
    }

    fn read_parameter(&mut self, pair: &str) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        let name = percent_decode_str(name).decode_utf8_lossy();
        let value = percent_decode_str(value).decode_utf8().ok();
        let value = value.as_deref();
        let shape = value.and_then(shape_of);
        let (mut accounted, mut is_sign) = (0, shape.is_some() || has_sign_word(&name));
        for (at, (format, stated)) in FORMATS.iter().zip(&mut self.stated).enumerate() {
            if stated.take(format, &name, value, shape) {
                accounted |= 1 << at;
            }
            if format.signs.iter().any(|sign| sign.eq_ignore_ascii_case(&name)) {
                accounted |= 1 << at;
                is_sign = true;
            }
            stated.has_companion |= format.only_with.is_some_and(|companion| companion.eq_ignore_ascii_case(&name));
        }
        if is_sign {
            // Generic names also occur beside a complete signature: GitHub's git-lfs links are S3 V4 with `token=1`.
            // Any format that is read accounts for them.
            self.signs.push(if accounted == 0 { EVERY_FORMAT } else { accounted });
        }
    }

    /// The validity, and the formats that it was read by.
    fn finish(self) -> Result<(Validity, FormatSet), Unreadable> {
        let (mut all, mut read) = (Validity::default(), 0);
        for (at, (format, stated)) in FORMATS.iter().zip(&self.stated).enumerate() {
            if let Some(found) = stated.finish(format)? {
                all.add(found);
                read |= 1 << at;
            }
        }
        if self.signs.iter().any(|formats| formats & read == 0) {
            return Err(Unreadable);
        }
        Ok((all, read))
    }
}

impl Stated {
    /// Reads a parameter if it limits the life of a URL of `format`; returns whether it does.
    fn take(&mut self, format: &UrlFormat, name: &str, value: Option<&str>, shape: Option<Shape>) -> bool {
        let found = if format.shape.is_some() && shape.is_some() {
            if format.shape != shape {
                return false;
            }
            value.and_then(|value| match shape {
                Some(Shape::Jwt) => read_jwt(value),
                _ => read_tilde_fields(value),
            })
        } else {
            let mut times = format.times.iter().enumerate();
            let Some((at, parameter)) = times.find(|(_, parameter)| parameter.name.eq_ignore_ascii_case(name)) else {
                return false;
            };
            let is_repeated = self.seen & 1 << at != 0;
            self.seen |= 1 << at;
            value.filter(|_| !is_repeated).and_then(|value| read_value(parameter.value, value))
        };
        match found {
            // A token without an expiry limits nothing.
            Some(found) if self.seen == 0 && found.expiry.is_none() => return false,
            Some(found) => self.found.add(found),
            None => self.is_unreadable = true,
        }
        true
    }

    /// All that `format` states; `None` if the URL is not of this format.
    fn finish(&self, format: &UrlFormat) -> Result<Option<Validity>, Unreadable> {
        if format.only_with.is_some() && !self.has_companion {
            return Ok(None);
        }
        if self.is_unreadable {
            return Err(Unreadable);
        }
        let mut found = self.found;
        if let Some(lifetime) = found.lifetime {
            let expiry =
                found.start.and_then(|start| start.checked_add(lifetime)).filter(|expiry| *expiry < YEAR_10000);
            found.add(Validity::expiry(expiry.ok_or(Unreadable)?));
        }
        match found.expiry {
            Some(_) => Ok(Some(found)),
            // A start without an expiry.
            None if self.seen != 0 => Err(Unreadable),
            None => Ok(None),
        }
    }
}

impl Validity {
    fn expiry(at: u64) -> Self {
        Self { expiry: Some((at, at)), ..Self::default() }
    }

    fn start(at: u64) -> Self {
        Self { start: Some(at), ..Self::default() }
    }

    fn add(&mut self, other: Validity) {
        self.start = self.start.max(other.start);
        self.expiry = match (self.expiry, other.expiry) {
            (Some((first, last)), Some((other_first, other_last))) => {
                Some((first.min(other_first), last.max(other_last)))
            }
            (one, other) => one.or(other),
        };
        self.lifetime = self.lifetime.or(other.lifetime);
        self.may_be_signing_time |= other.may_be_signing_time;
    }
}

fn read_value(how: Value, value: &str) -> Option<Validity> {
    match how {
        Value::Expiry(time) => read_time(time, value).map(Validity::expiry),
        Value::Start(time) => read_time(time, value).map(Validity::start),
        Value::Lifetime => {
            let lifetime = number(value, 10)?.checked_mul(1000)?;
            Some(Validity { lifetime: Some(lifetime), ..Validity::default() })
        }
        Value::Interval => {
            let (start, end) = value.split_once(';')?;
            let mut found = Validity::start(read_time(Time::Unix, start)?);
            found.add(Validity::expiry(read_time(Time::Unix, end)?));
            Some(found)
        }
        Value::Policy => read_policy(value),
        Value::TildeFields => read_tilde_fields(value),
        Value::AuthKey => {
            let timestamp = value.split('-').next()?;
            Some(Validity { may_be_signing_time: true, ..Validity::expiry(read_time(Time::Unix, timestamp)?) })
        }
    }
}

/// `exp=…~acl=…~hmac=…`; Akamai's `st=` is the start. Google's Media CDN spells it `Expires=`.
fn read_tilde_fields(value: &str) -> Option<Validity> {
    let mut found = Validity::default();
    for (name, value) in value.split('~').filter_map(|field| field.split_once('=')) {
        match name.to_ascii_lowercase().as_str() {
            "exp" | "expires" => found.add(Validity::expiry(read_time(Time::Unix, value)?)),
            "st" | "starts" => found.add(Validity::start(read_time(Time::Unix, value)?)),
            _ => {}
        }
    }
    found.expiry.map(|_| found)
}

/// CloudFront's policy, in which every statement has an expiry, or a POST policy.
fn read_policy(value: &str) -> Option<Validity> {
    // CloudFront's alphabet, a variant of standard base64.
    let standard: String = value
        .chars()
        .map(|c| match c {
            '-' => '+',
            '_' => '=',
            '~' => '/',
            c => c,
        })
        .collect();
    let policy: Json = serde_json::from_slice(&STANDARD.decode(standard).ok()?).ok()?;
    let mut found = Validity::default();
    if let Some(expiration) = policy.get("expiration") {
        found.add(Validity::expiry(read_time(Time::Rfc3339, expiration.as_str()?)?));
    }
    let statements = policy.get("Statement").map(|statements| statements.as_array()).into_iter();
    for statement in statements.collect::<Option<Vec<_>>>()?.into_iter().flatten() {
        let end = statement.pointer("/Condition/DateLessThan/AWS:EpochTime")?;
        found.add(Validity::expiry(read_json_time(end)?));
        if let Some(start) = statement.pointer("/Condition/DateGreaterThan/AWS:EpochTime") {
            found.add(Validity::start(read_json_time(start)?));
        }
    }
    found.expiry.map(|_| found)
}

/// `exp` and `iat` of a token, if present.
fn read_jwt(value: &str) -> Option<Validity> {
    let payload = json_part(value.split('.').nth(1)?)?;
    let mut found = Validity::default();
    if let Some(end) = payload.get("exp") {
        found.add(Validity::expiry(read_json_time(end)?));
    }
    if let Some(issued) = payload.get("iat") {
        found.add(Validity::start(read_json_time(issued)?));
    }
    Some(found)
}

/// A number, or a number as text, without the fraction of a second.
fn read_json_time(value: &Json) -> Option<u64> {
    match value {
        Json::Number(number) => read_time(Time::Unix, number.to_string().split('.').next()?),
        Json::String(text) => read_time(Time::Unix, text),
        _ => None,
    }
}

fn shape_of(value: &str) -> Option<Shape> {
    if value.split('~').any(|field| field.starts_with("hmac=")) {
        return Some(Shape::TildeFields);
    }
    let (header, rest) = value.split_once('.')?;
    let is_jwt = rest.contains('.') && json_part(header).is_some_and(|header| header.get("alg").is_some());
    is_jwt.then_some(Shape::Jwt)
}

fn json_part(part: &str) -> Option<Json> {
    serde_json::from_slice(&URL_SAFE.decode(part).ok()?).ok()
}

/// Unix milliseconds.
fn read_time(time: Time, text: &str) -> Option<u64> {
    let millis = match time {
        Time::Unix => unix_millis(number(text, 10)?)?,
        Time::Hex => unix_millis(number(text, 16)?)?,
        Time::Basic => read_basic_date(text)?.checked_mul(1000)?,
        Time::Rfc3339 => {
            let timestamp = match text.len() {
                10 => TimeZone::UTC.to_timestamp(text.parse::<Date>().ok()?.at(0, 0, 0, 0)).ok()?,
                _ => text.parse::<Timestamp>().ok()?,
            };
            u64::try_from(timestamp.as_millisecond()).ok()?
        }
    };
    Some(millis).filter(|millis| *millis < YEAR_10000)
}

/// Numbers from here on are no times.
const YEAR_10000: u64 = 253_402_300_800_000;

/// Numbers from here on are milliseconds, since as seconds they lie beyond the year 5000.
const LEAST_MILLIS: u64 = 100_000_000_000;

fn unix_millis(number: u64) -> Option<u64> {
    if number < LEAST_MILLIS { number.checked_mul(1000) } else { Some(number) }
}

fn number(text: &str, radix: u32) -> Option<u64> {
    // No sign, which `from_str_radix` would accept.
    let is_number = text.bytes().all(|byte| char::from(byte).is_digit(radix));
    u64::from_str_radix(text, radix).ok().filter(|_| is_number)
}

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Words that show, in a parameter's name, that a URL is signed.
const SIGN_WORDS: [&str; 7] = ["sig", "sign", "signature", "hmac", "token", "auth", "policy"];

/// Whether one of the words of `name` is one of [`SIGN_WORDS`]. Words end at anything but a letter, and where the case
/// changes; `URLSignature` contains both `URL` and `URLS` as words, so that none is missed.
pub(crate) fn has_sign_word(name: &str) -> bool {
    name.split(|c: char| !c.is_ascii_alphabetic()).any(|letters| {
        let is_upper = |at: usize| letters.as_bytes().get(at).map(u8::is_ascii_uppercase);
        let is_boundary = |at: usize| {
            at == 0
                || is_upper(at) != is_upper(at - 1)
                || (is_upper(at) == Some(true) && is_upper(at + 1) == Some(false))
        };
        (0..letters.len()).filter(|at| is_boundary(*at)).any(|at| {
            SIGN_WORDS.iter().any(|word| {
                let end = at + word.len();
                is_boundary(end) && letters.get(at..end).is_some_and(|part| part.eq_ignore_ascii_case(word))
            })
        })
    })
}

#[derive(Clone, Copy)]
enum Segment {
    /// 32 or more hexadecimal digits.
    Hash,
    /// Unix seconds, in decimal or in hexadecimal, milliseconds, or `202611240000`.
    Timestamp,
    Other,
}

impl Segment {
    fn of(text: &str) -> Self {
        if !text.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return Self::Other;
        }
        // 2001 to 2065.
        let is_recent = |seconds: u64| (1_000_000_000..3_000_000_000).contains(&seconds);
        let is_date = |format| DateTime::strptime(format, text).is_ok_and(|date| date.year() >= 2000);
        let is_timestamp = match text.len() {
            32.. => return Self::Hash,
            8 => number(text, 16).is_some_and(is_recent),
            10 => number(text, 10).is_some_and(is_recent),
            12 => is_date("%Y%m%d%H%M"),
            13 => number(text, 10).is_some_and(|millis| is_recent(millis / 1000)),
            14 => is_date("%Y%m%d%H%M%S"),
            _ => false,
        };
        if is_timestamp { Self::Timestamp } else { Self::Other }
    }
}

#[cfg(test)]
mod tests;
