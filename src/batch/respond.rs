//! Replies of the batch route: bodies, and the headers that say how a reply came about (RFC 9111, RFC 9211).

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, VARY, VIA};
use http::{HeaderMap, HeaderValue, Method, Response, StatusCode, Version};

use super::chunked_body::{CHUNK, ChunkedBody};
use super::{BatchRoute, Fetched};
use crate::api::envelope::Envelope;
use crate::api::request::Form;
use crate::auth::{Bypass, Callers};
use crate::cache::Entry;
use crate::cache::answers::WholeAnswer;
use crate::cache::refusals::Refusal;
use crate::clock::Moment;
use crate::error::{Error, NoAnswer};
use crate::fetch::{Cause, Failure};
use crate::limits::pause::Rejection;
use crate::message::body::{Body, stream, whole};
use crate::message::headers::{REQUEST_ID, VIA_HTTP_11, add_via, request_id, strip_hop_by_hop};
use crate::message::reply::{Detail, Reply};
use crate::telemetry::metrics::{ApiMetrics, IdResult, Outcome, Tally};

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// `Cache-Status` of a reply that is all from memory.
const HIT: &str = "sidelink; hit";

/// The detail of a reply that is a remembered refusal of the endpoint.
const REFUSED: &str = "refused";

/// A summary of a reply's entries, computed in the pass that checks whether all may be served.
pub(super) struct Summary {
    /// Bytes of the items, with a comma each.
    items: usize,
    /// The least freshness left, in milliseconds.
    fresh_left: u64,
    /// Whether all entries are stored.
    stored: bool,
    /// Whether an item says in how many seconds its link expires, so that it is answered with what is left.
    has_countdowns: bool,
}

impl Summary {
    pub(super) fn new() -> Self {
        Self { items: 0, fresh_left: u64::MAX, stored: true, has_countdowns: false }
    }

    pub(super) fn add(&mut self, entry: &Entry, now: Moment) {
        self.items += entry.text().map_or(0, |text| text.len() + 1);
        self.fresh_left = self.fresh_left.min(entry.deadlines().fresh_left(now).unwrap_or(0));
        self.stored &= entry.deadlines().is_stored();
        self.has_countdowns |= entry.has_countdowns();
    }

    pub(super) fn of<'l>(entries: impl Iterator<Item = (&'l Entry, IdResult)>, now: Moment) -> Self {
        entries.fold(Self::new(), |mut summary, (entry, _)| {
            summary.add(entry, now);
            summary
        })
    }
}

/// The body. Its length is exact, so hyper sends a Content-Length.
fn body<'l>(
    envelope: &Arc<Envelope>,
    entries: impl Iterator<Item = (&'l Entry, IdResult)> + Clone,
    summary: &Summary,
    now: Moment,
) -> Body {
    let is_new = |result| result == IdResult::Fetched;
    let items = || entries.clone().filter_map(|(entry, result)| entry.item(now, is_new(result)));
    let bytes = if summary.has_countdowns { items().map(|item| item.len() + 1).sum() } else { summary.items };
    let length = envelope.merged_length(bytes);
    if length > CHUNK {
        let entries = entries.map(|(entry, result)| (entry.clone(), is_new(result)));
        stream(ChunkedBody::of_entries(Arc::clone(envelope), entries, length, now))
    } else if summary.has_countdowns {
        whole(envelope.merge_sized(items(), |item, body| item.write(body), length))
    } else {
        let texts = entries.filter_map(|(entry, _)| entry.text());
        whole(envelope.merge_sized(texts, |text, body| body.extend_from_slice(text), length))
    }
}

/// Whether entries that came with their envelopes have one in common, so that one answer can be made of them.
pub(super) fn have_one_envelope<'l>(mut entries: impl Iterator<Item = &'l Entry>) -> bool {
    let Some(first) = entries.next() else { return true };
    let first = first.envelope();
    entries.all(|entry| match (first, entry.envelope()) {
        (Some(first), Some(other)) => Arc::ptr_eq(first, other) || first == other,
        (None, None) => true,
        _ => false,
    })
}

/// The headers of a hit, and the envelope that its API names, if it names one. A map is copied in less time than it is filled; the
/// values that differ are inserted.
pub(super) struct HeaderTemplate {
    headers: HeaderMap,
    pub(super) envelope: Option<Arc<Envelope>>,
}

impl HeaderTemplate {
    pub(super) fn new(callers: &Callers) -> Self {
        let headers = HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (CACHE_STATUS, HeaderValue::from_static(HIT)),
            (VARY, callers.vary.clone()),
            (REQUEST_ID, HeaderValue::from_static("")),
            (VIA, HeaderValue::from_static(VIA_HTTP_11)),
        ]);
        Self { headers, envelope: Envelope::of(callers.api()).map(Arc::new) }
    }
}

impl BatchRoute {
    /// Merges the entries of a batch, which have one envelope, into one reply.
    pub(super) fn merged<'l>(
        &self,
        entries: impl Iterator<Item = (&'l Entry, IdResult)> + Clone,
        summary: &Summary,
        fetched: &Fetched,
        form: Form,
        now: Moment,
    ) -> Reply {
        let own = self.template.envelope.as_ref();
        let kept = entries.clone().next().and_then(|(entry, _)| entry.envelope());
        let Some(envelope) = kept.or(own) else { return error(Error::NoAnswer(NoAnswer::Lost)) };
        let body = body(envelope, entries.clone(), summary, now);
        let tally = observe(entries, &self.api_metrics, now);
        let is_stale = tally.count(IdResult::Stale) > 0;
        let max_age = (summary.stored && !is_stale && !summary.has_countdowns).then_some(summary.fresh_left);
        let mut reply =
            self.reply(body, tally, self.cache_control(max_age, form == Form::Body), fetched.request_id.clone());
        if let Some(kept) = kept {
            set(reply.response.headers_mut(), &CONTENT_TYPE, kept.media_type().clone());
        }
        if reply.info.outcome != Outcome::Hit || tally.count(IdResult::Shared) > 0 {
            let status = cache_status(&tally, summary, fetched);
            set(reply.response.headers_mut(), &CACHE_STATUS, status);
        }
        reply
    }

    /// The reply of a whole answer.
    pub(super) fn repeated(&self, answer: &Arc<WholeAnswer>, now: Moment) -> Reply {
        self.api_metrics.link_life_left.observe_each(answer.lives_left(now));
        let (body, max_age) = match answer.constant_body() {
            Some(body) => (whole(body.clone()), Some(answer.fresh_left(now))),
            None => (ChunkedBody::of_answer(Arc::clone(answer), now).into_body(), None),
        };
        let cache_control = self.cache_control(max_age, answer.is_body());
        let mut reply = self.reply(body, answer.tally(), cache_control, None);
        if let Some(kept) = answer.envelope() {
            set(reply.response.headers_mut(), &CONTENT_TYPE, kept.media_type().clone());
        }
        reply
    }

    /// `Cache-Control` of a reply that is fresh for `fresh_left` milliseconds; `None`: it may not be stored. No cache downstream may store
    /// the reply to a POST, nor to a batch in a body, which its URL does not name.
    fn cache_control(&self, fresh_left: Option<u64>, is_body: bool) -> HeaderValue {
        let Some(fresh_left) = fresh_left.filter(|_| !is_body && self.api.method == Method::GET) else {
            return HeaderValue::from_static("no-store");
        };
        let mut digits = itoa::Buffer::new();
        let value = ["private, max-age=", digits.format(fresh_left / 1000)].concat();
        HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("no-store"))
    }

    /// A reply with the headers of a hit. (The values are replaced one by one: `insert` would grow the map.)
    fn reply(&self, body: Body, tally: Tally, cache_control: HeaderValue, id: Option<HeaderValue>) -> Reply {
        let mut response = Response::new(body);
        let headers = response.headers_mut();
        *headers = self.template.headers.clone();
        set(headers, &CACHE_CONTROL, cache_control);
        set(headers, &REQUEST_ID, id.unwrap_or_else(request_id));
        let mut reply = Reply::new(response, outcome(&tally));
        reply.info.tally = tally;
        reply
    }
}

fn set(headers: &mut HeaderMap, name: &HeaderName, value: HeaderValue) {
    if let Some(old) = headers.get_mut(name) {
        *old = value;
    }
}

/// Counts a reply's entries, and observes how long their links live.
fn observe<'l>(
    entries: impl Iterator<Item = (&'l Entry, IdResult)> + Clone,
    metrics: &ApiMetrics,
    now: Moment,
) -> Tally {
    let mut tally = Tally::default();
    metrics.link_life_left.observe_each(entries.filter_map(|(entry, result)| {
        tally.add(result);
        let is_from_memory = matches!(result, IdResult::Hit | IdResult::Stale | IdResult::Shared);
        let left = entry.deadlines().life_left(now).filter(|_| is_from_memory)?;
        Some(left as f64 / 1000.0)
    }));
    tally
}

pub(super) fn outcome(tally: &Tally) -> Outcome {
    let here = tally.count(IdResult::Hit) + tally.count(IdResult::Shared) + tally.count(IdResult::Absent);
    if tally.count(IdResult::Stale) > 0 {
        Outcome::Stale
    } else if here == tally.total() {
        Outcome::Hit
    } else if here > 0 {
        Outcome::Partial
    } else {
        Outcome::Miss
    }
}

fn cache_status(tally: &Tally, summary: &Summary, fetched: &Fetched) -> HeaderValue {
    let shared = tally.count(IdResult::Shared) as usize;
    // An absence of the shared tier is in memory from then on, as one of memory's own.
    let from_memory = (tally.count(IdResult::Hit) + tally.count(IdResult::Absent)) as usize;
    let cached = from_memory + shared;
    let joined = tally.count(IdResult::Joined) as usize;
    let missing = joined + tally.count(IdResult::Fetched) as usize;
    if missing == 0 && tally.count(IdResult::Stale) == 0 {
        // The shared tier is a part of the cache like memory.
        return HeaderValue::from_static(if shared > 0 { "sidelink; hit; detail=shared" } else { HIT });
    }
    let mut status = String::from("sidelink");
    if tally.count(IdResult::Stale) > 0 {
        match fetched.failure.as_ref().map(|failure| &failure.cause) {
            Some(Cause::Answer(answer)) => {
                let _ = write!(status, "; fwd=stale; fwd-status={}; detail=stale", answer.status.as_u16());
            }
            Some(Cause::Rejected(_)) | None => status.push_str("; hit; detail=stale"),
            _ => status.push_str("; fwd=stale; detail=stale"),
        }
    } else {
        status.push_str(if cached > 0 { "; fwd=partial" } else { "; fwd=miss" });
        if summary.stored {
            status.push_str("; stored");
        }
        if joined == missing {
            status.push_str("; collapsed");
        }
        if cached > 0 {
            let _ = write!(status, "; detail=\"hit={from_memory} fetched={}", missing - joined);
            if shared > 0 {
                let _ = write!(status, " shared={shared}");
            }
            if joined > 0 {
                let _ = write!(status, " joined={joined}");
            }
            status.push('"');
        }
    }
    HeaderValue::from_str(&status).unwrap_or(HeaderValue::from_static("sidelink"))
}

/// Why a batch is forwarded whose answer had this fault.
pub(super) fn reason_of(cause: &Cause) -> Bypass {
    if matches!(cause, Cause::Unreadable(_)) { Bypass::NotJson } else { Bypass::Unmatched }
}

/// The reply to a batch that failed: the endpoint's own answer, where it gave one.
pub(super) fn failure(failure: &Failure) -> Reply {
    let response = match &failure.cause {
        Cause::Answer(answer) | Cause::Unmatched(answer) | Cause::Unreadable(answer) => answer.response(),
        Cause::Rejected(Rejection { answer: Some(answer), .. }) => answer.clone(),
        Cause::Rejected(Rejection { error: reason, answer: None }) => return error(*reason),
        Cause::NoAnswer(no_answer) => return error(*no_answer),
    };
    let mut response = as_it_came(response.status(), response.headers(), response.body());
    let code = response.status().as_u16();
    let (outcome, status) = match &failure.cause {
        Cause::Unmatched(_) | Cause::Unreadable(_) => {
            (Outcome::Bypass, format!("sidelink; fwd=bypass; detail={}", reason_of(&failure.cause).name()))
        }
        Cause::Rejected(_) => (Outcome::Error, "sidelink; detail=pause".to_owned()),
        _ => (Outcome::Error, format!("sidelink; fwd=miss; fwd-status={code}")),
    };
    append_status(response.headers_mut(), &status);
    Reply::new(response, outcome)
}

/// A remembered refusal of the endpoint, for a batch of the one id that it refused.
pub(super) fn refused(refusal: &Refusal) -> Reply {
    let mut response = as_it_came(refusal.status, &refusal.headers, &refusal.body);
    append_status(response.headers_mut(), &format!("{HIT}; detail={REFUSED}"));
    let mut reply = Reply::new(response, Outcome::Error);
    reply.info.detail = Some(Detail::Named(REFUSED));
    reply
}

/// Passes on the items of all calls for a batch that could not be matched, in the order of the calls.
pub(super) fn unmatched<'a>(
    items: impl Iterator<Item = &'a [u8]> + Clone,
    envelope: &Envelope,
    upstream_request_id: Option<HeaderValue>,
    template: &HeaderTemplate,
) -> Reply {
    let body = envelope.merge(items);
    let mut headers = template.headers.clone();
    headers.insert(CONTENT_TYPE, envelope.media_type().clone());
    headers.insert(REQUEST_ID, upstream_request_id.unwrap_or_else(request_id));
    headers.remove(CACHE_STATUS);
    let mut response = Response::new(whole(body));
    *response.headers_mut() = headers;
    bypassed(Reply::new(response, Outcome::Bypass), Bypass::Unmatched)
}

/// An answer of the endpoint, passed on.
fn as_it_came(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    let mut response = Response::new(whole(body.clone()));
    *response.status_mut() = status;
    *response.headers_mut() = headers.clone();
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH); // hyper sets it from the body.
    add_via(headers, Version::HTTP_11);
    response
}

/// An error of sidelink's own on the batch route.
pub(super) fn error(error: Error) -> Reply {
    let mut reply = Reply::error(error);
    let forwarded = if matches!(error, Error::NoAnswer(_) | Error::Deadline) { "; fwd=miss" } else { "" };
    append_status(reply.response.headers_mut(), &format!("sidelink{forwarded}; detail={}", error.code()));
    reply
}

/// Marks the reply to a batch that was forwarded untouched, or refused by pass-through.
pub(super) fn bypassed(mut reply: Reply, reason: Bypass) -> Reply {
    let forwarded = [Error::NoAnswer(NoAnswer::Broken).code(), Error::Deadline.code()];
    let status = match reply.info.detail.map(Detail::name) {
        Some(code) if !forwarded.contains(&code) => format!("sidelink; detail={code}"),
        _ => format!("sidelink; fwd=bypass; detail={}", reason.name()),
    };
    append_status(reply.response.headers_mut(), &status);
    reply.info.detail = reply.info.detail.or(Some(Detail::Named(reason.name())));
    reply
}

/// Appends to the field, which the endpoint may have sent too: the cache nearest the client comes last (RFC 9211 §2).
fn append_status(headers: &mut HeaderMap, status: &str) {
    if let Ok(status) = HeaderValue::from_str(status) {
        headers.append(CACHE_STATUS, status);
    }
}
