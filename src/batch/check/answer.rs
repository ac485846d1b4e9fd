//! How a recorded answer is read.

use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE};
use http::{HeaderMap, Response, StatusCode};
use serde_json::Value;

use super::super::masking::{masked_id, masked_json};
use super::request::{CheckedBatch, places};
use super::{Report, found, lower, shortage};
use crate::api::answer::{self, AnswerItem, AnswerMisfit, ParsedAnswer};
use crate::api::envelope::Envelope;
use crate::api::expiry::{StatedExpiry, ZERO_TIME};
use crate::api::id;
use crate::api::request::Form;
use crate::cache::freshness::{self, AnswerFreshness, Expiry, Reason, format_of};
use crate::clock::{Clock, Moment, millis, rfc3339};
use crate::config::batch::{BatchApi, Pointer};
use crate::config::{self, Config, show_duration};
use crate::upstream::coding;

/// Returns whether every item could be stored, and nothing suggests that the description is wrong.
pub(super) fn check(config: &Config, batch: &CheckedBatch<'_>, response: Response<Bytes>, report: &mut Report) -> bool {
    let (api, policy) = (batch.callers.api(), &config.freshness);
    let (head, body) = response.into_parts();
    let (mut headers, status) = (head.headers, head.status);
    let media_type = headers.get(CONTENT_TYPE).cloned();
    let date = headers.get(DATE).and_then(|date| httpdate::parse_http_date(date.to_str().ok()?).ok());
    let date = date.and_then(|date| date.duration_since(UNIX_EPOCH).ok());
    let now = Clock::system().now();
    let (sent, whose) = match date {
        Some(date) => (Moment { wall: millis(date), ..now }, "its Date"),
        None => (now, "now, since it has no Date"),
    };
    let shown = media_type.as_ref().map_or("no Content-Type".into(), |value| String::from_utf8_lossy(value.as_bytes()));
    report
        .line("answer", format_args!("{}, {shown}, as of {} ({whose})", status.as_u16(), rfc3339(sent.unix_millis())));
    if status != StatusCode::OK {
        report.line("verdict", "not kept: an answer with another status than 200 is passed on as it came");
        return false;
    }
    let Some(body) = decoded(&mut headers, body, config.upstream.answer_bytes) else {
        report.line("verdict", "not kept: its Content-Encoding cannot be undone");
        return false;
    };
    let names: Vec<&str> = batch.ids.iter().map(|id| &*id.name).collect();
    let (items, envelope) = match answer::read(api, &body, media_type.as_ref(), &names) {
        ParsedAnswer::Items { items, envelope } => (items, envelope),
        ParsedAnswer::NoList | ParsedAnswer::Unmatched | ParsedAnswer::NotJson => {
            report.line("described", places(api));
            let misfit = AnswerMisfit::of(api, &body, &names);
            let why = misfit.map(|misfit| why_not_read(batch, misfit, &headers, &body));
            let why = why.as_deref().unwrap_or("it is not as its API is described");
            report.line("verdict", format_args!("not kept: {why}; such an answer is passed on as it came"));
            return false;
        }
    };
    match (envelope, Envelope::of(api)) {
        (Some(envelope), _) => report.line("envelope", around(&envelope)),
        (None, Some(envelope)) => report.line("envelope", format_args!("{} (items.envelope)", around(&envelope))),
        (None, None) => {}
    }
    report.line("items", format_args!("for {} of {} ids", items.iter().flatten().count(), batch.ids.len()));
    let source = AnswerFreshness::read(&headers, sent);
    let foreign_vary = batch.callers.varies_outside(&headers);
    let (mut kept, mut with_links) = (0, Vec::new());
    for (id, item) in batch.ids.iter().zip(&items) {
        report.line("", format_args!("{}:", masked_id(id::shown(&id.name))));
        let lifetime = match item {
            Some(item) if !item.is_absent => {
                let checked = CheckedItem::new(api, item);
                report.link(api, &checked, sent.unix_millis());
                let verdict = freshness::judge(item, &source, policy);
                let lifetime = match verdict {
                    Ok(_) if foreign_vary => Err(lower(Reason::Vary.meaning())),
                    Ok(deadlines) => Ok(deadlines.parts().1),
                    Err(reason) => Err(checked.why_not_kept(api, reason, &source, policy)),
                };
                with_links.extend(item.url.is_some().then_some(checked));
                lifetime
            }
            item => {
                report.absent(api, item.as_ref());
                let span = u32::try_from(source.absence(policy).as_millis()).unwrap_or(u32::MAX);
                match source.forbids_storing(policy) {
                    true => Err(lower(Reason::NoStore.meaning())),
                    false if foreign_vary => Err(lower(Reason::Vary.meaning())),
                    false => Ok([span, span, u32::MAX]),
                }
            }
        };
        kept += usize::from(lifetime.is_ok());
        report.detail(match lifetime {
            Ok([fresh, usable, _]) if usable > fresh => {
                format!("kept: fresh for {}, usable for {} if the endpoint fails", span(fresh), span(usable))
            }
            Ok([fresh, ..]) => format!("kept: fresh for {}", span(fresh)),
            Err(reason) => format!("not kept: {reason}"),
        });
    }
    report.not_there(api, &serde_json::from_slice(&body).unwrap_or_default(), &with_links);
    let all = batch.ids.len();
    let caveat = if items.iter().all(Option::is_none) {
        Some(
            "; the answer has no item, so all ids count as absent: if it is an error, errors.code or errors.unless has to tell it",
        )
    } else if with_links.iter().any(|item| item.ends_earlier_by_url(sent.unix_millis())) {
        Some(", but not for as long: a URL ends earlier than its fields say; name \"link\" in expires as well")
    } else if api.expiry_fields().next().is_some()
        && !with_links.is_empty()
        && !with_links.iter().any(CheckedItem::says_when_it_ends)
    {
        Some(", but no link says when it ends: neither its URL nor what expires names")
    } else {
        None
    };
    report.line("verdict", format_args!("a batch; {kept} of {all} items could be kept{}", caveat.unwrap_or_default()));
    kept == all && caveat.is_none()
}

/// Why an answer is not accepted, and what it has instead of what is described.
fn why_not_read(batch: &CheckedBatch<'_>, misfit: AnswerMisfit, headers: &HeaderMap, body: &[u8]) -> String {
    let api = batch.callers.api();
    let whole: Value = serde_json::from_slice(body).unwrap_or_default();
    let items = || whole.pointer(&api.items.at.to_string());
    let kind = if api.items.key.is_some() { "list" } else { "object" };
    match misfit {
        AnswerMisfit::NotJson { line, column } => {
            let shortage = shortage(headers, body);
            format!("it is not JSON, or is cut short, at line {line}, column {column} of its body{shortage}")
        }
        AnswerMisfit::Error => why_it_is_an_error(api, &whole),
        AnswerMisfit::NoList => {
            let hint = match (items(), &api.items.key) {
                (Some(Value::Object(_)), Some(_)) => "; of an object with an item for each id, items.key is \"*\"",
                (Some(Value::Array(_)), None) => "; of a list, items.key says where an item has its id",
                _ => "",
            };
            format!("it has no {kind} at items.at: {}{hint}", found::at(&whole, "the answer", &api.items.at))
        }
        AnswerMisfit::TwiceNamed => format!("the {kind} at items.at, or an item in it, has a name twice"),
        AnswerMisfit::NoId(at) => {
            let (what, key) = (format!("item {at}"), api.items.key.clone().unwrap_or_default());
            let item = items().and_then(|items| items.get(at.saturating_sub(1)));
            let is_number = item.and_then(|item| item.pointer(&key.to_string())).is_some_and(Value::is_i64);
            let there = item.map(|item| found::at(item, &what, &key)).unwrap_or_default();
            let hint = if is_number { "; set ids.numbers" } else { "" };
            format!("{what} has no id at items.key: {there}{hint}")
        }
        AnswerMisfit::NotAsked(at, id) => {
            let hint = match (batch.form, batch.ids.as_slice()) {
                (Form::Body, _) => "",
                (_, [only]) if only.written.contains(',') => {
                    "; the id that was asked for has commas: if it is a list, name \"comma\" in ids.styles"
                }
                (_, [only]) if only.name.contains(',') => {
                    "; the id that was asked for has encoded commas: if it is a list, name \"encoded-comma\" in ids.styles"
                }
                _ => "",
            };
            format!("item {at} is for {}, which was not asked for{hint}", masked_id(&id))
        }
        AnswerMisfit::Second(at, id) => format!("item {at} is the second one for {}", masked_id(&id)),
    }
}

/// What of `errors` says that an answer is one.
fn why_it_is_an_error(api: &BatchApi, whole: &Value) -> String {
    let at = |place: &Pointer| whole.pointer(&place.to_string());
    match api.errors.code.as_ref().and_then(|code| Some((code, at(code).filter(|found| !found.is_null())?))) {
        Some((code, Value::Bool(_))) => format!(
            "it has true or false at {code} (errors.code), and so has every answer: a flag is no code; say in errors.unless what it is where all is well"
        ),
        Some((code, _)) => format!("it has an error at {code} (errors.code)"),
        None => {
            let differs = |(place, wanted): &&(Pointer, Value)| at(place).is_some_and(|found| found != wanted);
            let values = api.errors.unless.iter().find(differs);
            let wanted = values.map(|(place, wanted)| format!(": {place} is not {wanted}")).unwrap_or_default();
            format!("it is an error by errors.unless{wanted}")
        }
    }
}

/// An item that does not count as absent.
struct CheckedItem<'a> {
    item: &'a AnswerItem,
    value: Value,
    /// The fields that say when its link ends.
    fields: Vec<(&'a Pointer, &'a StatedExpiry)>,
}

impl<'a> CheckedItem<'a> {
    fn new(api: &'a BatchApi, item: &'a AnswerItem) -> Self {
        let value: Value = match &api.items.key {
            Some(_) => serde_json::from_str(&item.text).unwrap_or_default(),
            None => serde_json::from_str::<serde_json::Map<_, _>>(&format!("{{{}}}", item.text))
                .ok()
                .and_then(|members| members.into_iter().next())
                .map_or(Value::Null, |(_, value)| value),
        };
        let says_something = |found: &Value| !found.is_null() && found != ZERO_TIME;
        let is_there = |place: &&Pointer| value.pointer(&place.to_string()).is_some_and(says_something);
        let fields = api.expiry_fields().filter(is_there).zip(&item.expiries).collect();
        Self { item, value, fields }
    }

    fn url_expiry(&self) -> Expiry {
        self.item.url.as_deref().map_or(Expiry::None, freshness::expiry)
    }

    /// Whether a field or the URL says when the link ends, readable or not.
    fn says_when_it_ends(&self) -> bool {
        !self.fields.is_empty() || self.url_expiry() != Expiry::None
    }

    /// Whether the URL, which does not count, ends before the fields say. `now` is when the answer was given.
    fn ends_earlier_by_url(&self, now: u64) -> bool {
        let of_field = |(_, stated): &(&Pointer, &StatedExpiry)| match stated {
            StatedExpiry::At(at) => Some(*at),
            StatedExpiry::In { seconds, .. } => Some(now.saturating_add(seconds.saturating_mul(1000))),
            StatedExpiry::Unreadable => None,
        };
        let by_fields = self.fields.iter().filter_map(of_field).min();
        match (self.url_expiry(), by_fields) {
            // Both may state the same time, one of them rounded to a second.
            (Expiry::At(at), Some(by_fields)) => !self.item.url_expires && at.saturating_add(1000) <= by_fields,
            _ => false,
        }
    }

    /// Why it is not kept, and what to do where the description may be wrong.
    fn why_not_kept(
        &self,
        api: &BatchApi,
        reason: Reason,
        source: &AnswerFreshness,
        policy: &config::Freshness,
    ) -> String {
        let unreadable = self.fields.iter().find(|(_, stated)| **stated == StatedExpiry::Unreadable);
        match (reason, unreadable) {
            (Reason::NoLink, _) => {
                let there = found::at(&self.value, "the item", &api.items.link);
                let absent = match &api.absent {
                    None => "if such an item has none, name in absent what it has instead".to_owned(),
                    Some(absent) => format!("nor what absent names: {}", found::at(&self.value, "the item", absent)),
                };
                format!("it has no link at items.link: {there}; {absent}")
            }
            (Reason::UnderFloor, _) => {
                let any = config::Freshness { min_remaining: Duration::ZERO, ..policy.clone() };
                let left = freshness::judge(self.item, source, &any).map_or(0, |deadlines| deadlines.parts().1[2]);
                let floor = show_duration(policy.min_remaining);
                format!("its life left, {}, is not above `freshness.min_remaining`, {floor}", span(left))
            }
            (Reason::Unreadable, Some((place, _))) => {
                let there = found::at(&self.value, "the item", place);
                format!("{there}, and no time: RFC 3339 with a zone, or a number of seconds or milliseconds, is read")
            }
            (Reason::Unreadable, None) if self.item.url_expires && self.url_expiry() == Expiry::Unreadable => {
                let hint = match self.fields.as_slice() {
                    [] => "",
                    _ => "; leave \"link\" out of expires if its fields alone say when it ends",
                };
                format!("its URL is signed, with an expiry that cannot be read{hint}")
            }
            _ => lower(reason.meaning()),
        }
    }
}

/// The body of an answer: decoded, unless it was recorded decoded.
fn decoded(headers: &mut HeaderMap, body: Bytes, most: usize) -> Option<Bytes> {
    let is_json = serde_json::from_slice::<serde::de::IgnoredAny>(&body).is_ok();
    if is_json || !headers.contains_key(CONTENT_ENCODING) {
        return Some(body);
    }
    coding::decode(headers, body, most).ok().filter(|_| !headers.contains_key(CONTENT_ENCODING))
}

impl Report {
    /// A link, and each place that says when it expires.
    fn link(&mut self, api: &BatchApi, checked: &CheckedItem<'_>, now: u64) {
        let item = checked.item;
        let url = item.url.as_deref();
        self.detail(url.map_or_else(|| format!("no link at {} (items.link)", api.items.link), masked_id));
        for (place, stated) in &checked.fields {
            match stated {
                StatedExpiry::At(at) => self.detail(format_args!("expires {}: {place}", rfc3339(*at))),
                StatedExpiry::In { seconds, .. } => {
                    let at = rfc3339(now.saturating_add(seconds.saturating_mul(1000)));
                    self.detail(format_args!("expires {at}: {place}, {seconds} seconds from then"));
                }
                StatedExpiry::Unreadable => self.detail(format_args!("expires at an unreadable time: {place}")),
            }
        }
        let Some(url) = url.filter(|_| item.url_expires || checked.ends_earlier_by_url(now)) else { return };
        let counts = if item.url_expires { "" } else { "; it does not count" };
        match (checked.url_expiry(), format_of(url)) {
            (Expiry::At(at), Some(format)) => {
                self.detail(format_args!("expires {}: the URL, {format}{counts}", rfc3339(at)));
            }
            (Expiry::At(at), None) => self.detail(format_args!("expires {}: the URL{counts}", rfc3339(at))),
            (Expiry::None, _) if item.expiries.is_empty() => {
                self.detail("the URL is not signed: freshness.unsigned counts");
            }
            (Expiry::None, _) => {}
            (Expiry::Unreadable, _) => self.detail("the URL is signed, and of no format whose expiry is read"),
        }
    }

    /// The places of the description that this answer has nothing at, although it is no error and has links.
    fn not_there(&mut self, api: &BatchApi, whole: &Value, with_links: &[CheckedItem<'_>]) {
        for place in api.expiry_fields() {
            let has = |item: &CheckedItem<'_>| item.fields.iter().any(|(known, _)| *known == place);
            if let Some(first) = with_links.first().filter(|_| !with_links.iter().any(has)) {
                let there = match first.value.pointer(&place.to_string()) {
                    Some(found) if found == ZERO_TIME => format!("{place} is Go's zero time, which says nothing"),
                    _ => found::at(&first.value, "the item", place),
                };
                self.line("not there", format_args!("{there} (expires)"));
            }
        }
        for (place, _) in api.errors.unless.iter().filter(|(place, _)| whole.pointer(&place.to_string()).is_none()) {
            self.line("not there", format_args!("{} (errors.unless)", found::at(whole, "the answer", place)));
        }
    }

    fn absent(&mut self, api: &BatchApi, item: Option<&AnswerItem>) {
        match (item, &api.absent) {
            // The text is a member, name and value: only a value of `null` ends so.
            (Some(item), _) if item.text.ends_with("null") => self.detail("absent: the item is null"),
            (Some(_), Some(place)) => self.detail(format_args!("absent: the item has {place}")),
            _ => self.detail("absent: the answer leaves it out"),
        }
    }
}

/// The text around the items, on one line.
fn around(envelope: &Envelope) -> String {
    let (before, after, _) = envelope.parts();
    let whole = format!("{before}{after}");
    let masked = masked_json(&whole);
    if masked != whole {
        return masked;
    }
    let line = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}…{}", line(before), line(after))
}

/// Milliseconds, in whole seconds from one on.
fn span(millis: u32) -> String {
    let millis = u64::from(millis);
    show_duration(Duration::from_millis(if millis < 1000 { millis } else { millis / 1000 * 1000 }))
}
