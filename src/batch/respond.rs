//! Dressing answers: the headers that say what they are and how they came about.

use std::fmt::Write;
use std::sync::Arc;

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, VARY, VIA};
use http::{HeaderMap, HeaderValue, Response, StatusCode, Version};

use super::chunked_body::{ChunkedBody, PIECE, Text};
use super::{Fetched, from_memory};
use crate::api;
use crate::api::answer::merge;
use crate::api::request::Form;
use crate::auth::{Bypass, Callers};
use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::cache::refusals::Refusal;
use crate::clock::Moment;
use crate::error::{Error, NoAnswer};
use crate::fetch::{Cause, Failure};
use crate::message::answered::Answered;
use crate::message::body::{Body, stream, whole};
use crate::message::headers::{VIA_HTTP_11, add_via, request_id, strip_hop_by_hop};
use crate::telemetry::metrics::{IdResult, Metrics, Outcome, Tally};

/// RFC 9211.
const CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");

/// How all of an answer came from this process's memory.
const HIT: &str = "sidelink; hit";

/// Says of an answer that it is the endpoint's refusal, remembered.
const REFUSED: &str = "refused";

/// So few links that it does not pay to gather what is observed of them.
const FEW: usize = 4;

/// One id's part of an answer.
pub(super) struct Item<'l> {
    /// `None`: it is not had.
    pub(super) link: Option<EntryRef<'l>>,
    pub(super) result: IdResult,
}

/// What an id is answered with, where it lies.
#[derive(Clone, Copy)]
pub(super) enum EntryRef<'l> {
    Entry(&'l Entry),
    /// An item, `None` if it was left out; without deadlines, it is not stored.
    Brought(Option<&'l Arc<str>>, Option<&'l Deadlines>),
}

impl<'l> Item<'l> {
    pub(super) fn kept(kept: &'l Entry) -> Self {
        Self { link: Some(EntryRef::Entry(kept)), result: from_memory(kept) }
    }

    fn text(&self) -> Option<&'l [u8]> {
        match self.link? {
            EntryRef::Entry(kept) => kept.text(),
            EntryRef::Brought(text, _) => text.map(|text| text.as_bytes()),
        }
    }

    /// The same, to stay.
    fn held(&self) -> Option<Text> {
        match self.link? {
            EntryRef::Entry(kept) => kept.text().map(|_| Text::Entry(kept.clone())),
            EntryRef::Brought(text, _) => text.cloned().map(Text::Brought),
        }
    }

    fn deadlines(&self) -> Option<&'l Deadlines> {
        match self.link? {
            EntryRef::Entry(kept) => Some(kept.deadlines()),
            EntryRef::Brought(_, deadlines) => deadlines,
        }
    }
}

/// The answer, and its length in bytes.
fn body<'l>(items: impl Iterator<Item = Item<'l>> + Clone) -> (Body, usize) {
    let bytes: usize = items.clone().filter_map(|item| item.text()).map(<[u8]>::len).sum();
    if bytes > PIECE {
        let pieces = ChunkedBody::new(items.filter_map(|item| item.held()).collect());
        let length = pieces.length();
        return (stream(pieces), length);
    }
    let merged = merge(items.filter_map(|item| item.text()));
    let length = merged.len();
    (whole(merged), length)
}

/// The headers of a hit, those that differ from answer to answer filled in: a map is copied in less time than it is filled.
pub(super) struct HeaderTemplate(HeaderMap);

impl HeaderTemplate {
    pub(super) fn new(callers: &Callers) -> Self {
        Self(HeaderMap::from_iter([
            (CONTENT_TYPE, HeaderValue::from_static("application/json")),
            (CONTENT_LENGTH, HeaderValue::from(0)),
            (CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (CACHE_STATUS, HeaderValue::from_static(HIT)),
            (VARY, callers.vary().clone()),
            (api::REQUEST_ID, HeaderValue::from_static("")),
            (VIA, HeaderValue::from_static(VIA_HTTP_11)),
        ]))
    }
}

/// One answer out of a batch's items; `from_memory` of them were there at once.
pub(super) fn links<'l>(
    items: impl Iterator<Item = Item<'l>> + Clone,
    fetched: &Fetched,
    from_memory: usize,
    form: Form,
    dress: &HeaderTemplate,
    metrics: &Metrics,
    now: Moment,
) -> Answered {
    let (body, length) = body(items.clone());
    let (tally, life) = take_stock(items, metrics, now);
    let outcome = outcome(&tally);

    let mut headers = dress.0.clone();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(length));
    headers.insert(CACHE_CONTROL, cache_control(&life, &tally, form));
    if outcome != Outcome::Hit || tally.count(IdResult::Shared) > 0 {
        headers.insert(CACHE_STATUS, cache_status(&tally, &life, fetched, from_memory));
    }
    headers.insert(api::REQUEST_ID, fetched.request_id.clone().unwrap_or_else(request_id));
    let mut response = Response::new(body);
    *response.headers_mut() = headers;
    Answered { tally, ..Answered::new(response, outcome) }
}

/// What an answer's links have left.
struct Life {
    /// The least freshness, in whole seconds.
    fresh: u64,
    /// Whether all are stored.
    stored: bool,
}

/// Counts an answer's items, and what they have left.
fn take_stock<'l>(items: impl Iterator<Item = Item<'l>> + Clone, metrics: &Metrics, now: Moment) -> (Tally, Life) {
    let (mut tally, mut life) = (Tally::default(), Life { fresh: u64::MAX, stored: true });
    // Of many links gathered and added at once, for the histogram itself is shared by all.
    let lives = items.clone().nth(FEW).map(|_| metrics.link_life_left.local());
    for item in items {
        tally.add(item.result);
        let Some(deadlines) = item.deadlines() else {
            life.stored = false;
            continue;
        };
        life.fresh = life.fresh.min(deadlines.fresh_left(now).unwrap_or(0) / 1000);
        if matches!(item.result, IdResult::Hit | IdResult::Stale | IdResult::Shared)
            && let Some(left) = deadlines.life_left(now)
        {
            let seconds = left as f64 / 1000.0;
            match &lives {
                Some(lives) => lives.observe(seconds),
                None => metrics.link_life_left.observe(seconds),
            }
        }
    }
    (tally, life)
}

fn outcome(tally: &Tally) -> Outcome {
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

/// A body-form URL does not name its batch, so no cache downstream may keep its answer.
fn cache_control(life: &Life, tally: &Tally, form: Form) -> HeaderValue {
    if form == Form::Body || !life.stored || tally.count(IdResult::Stale) > 0 {
        return HeaderValue::from_static("no-store");
    }
    let mut digits = itoa::Buffer::new();
    let value = ["private, max-age=", digits.format(life.fresh)].concat();
    HeaderValue::try_from(value).unwrap_or(HeaderValue::from_static("no-store"))
}

fn cache_status(tally: &Tally, life: &Life, fetched: &Fetched, from_memory: usize) -> HeaderValue {
    let shared = tally.count(IdResult::Shared) as usize;
    let had = from_memory + shared;
    let missing = (tally.total() as usize).saturating_sub(had);
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
            Some(Cause::Rejected(_)) => status.push_str("; hit; detail=stale"),
            _ => status.push_str("; fwd=stale; detail=stale"),
        }
    } else {
        let joined = tally.count(IdResult::Joined) as usize;
        status.push_str(if had > 0 { "; fwd=partial" } else { "; fwd=miss" });
        if life.stored {
            status.push_str("; stored");
        }
        if joined == missing {
            status.push_str("; collapsed");
        }
        if had > 0 {
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

/// What a batch whose ids could not be had is told: the endpoint's own words where it has spoken.
pub(super) fn failure(failure: &Failure) -> Answered {
    let response = match &failure.cause {
        Cause::Answer(answer) | Cause::Unmatched(answer) => answer.response(),
        Cause::Rejected(rejection) => match rejection.answer() {
            Some(answer) => answer,
            None => return own(rejection.error()),
        },
        Cause::NoAnswer(error) => return own(*error),
    };
    let mut response = as_it_came(response.status(), response.headers(), response.body());
    let code = response.status().as_u16();
    let (outcome, status) = match &failure.cause {
        Cause::Unmatched(_) => (Outcome::Bypass, "sidelink; fwd=bypass; detail=unmatched".to_owned()),
        Cause::Rejected(_) => (Outcome::Error, "sidelink; detail=pause".to_owned()),
        _ => (Outcome::Error, format!("sidelink; fwd=miss; fwd-status={code}")),
    };
    append_status(response.headers_mut(), &status);
    Answered::new(response, outcome)
}

/// What a batch of one id is told that the endpoint has refused lately: its answer of then.
pub(super) fn refused(refusal: &Refusal) -> Answered {
    let mut response = as_it_came(refusal.status, &refusal.headers, &refusal.body);
    append_status(response.headers_mut(), &format!("{HIT}; detail={REFUSED}"));
    Answered { detail: Some(REFUSED), ..Answered::new(response, Outcome::Error) }
}

/// One list out of the items of all calls for a batch that could not be matched, in the order given.
pub(super) fn unmatched<'a>(
    items: impl Iterator<Item = &'a [u8]> + Clone,
    named: Option<HeaderValue>,
    dress: &HeaderTemplate,
) -> Answered {
    let body = merge(items);
    let mut headers = dress.0.clone();
    headers.insert(CONTENT_LENGTH, HeaderValue::from(body.len()));
    headers.insert(api::REQUEST_ID, named.unwrap_or_else(request_id));
    headers.remove(CACHE_STATUS);
    let mut response = Response::new(whole(body));
    *response.headers_mut() = headers;
    bypassed(Answered::new(response, Outcome::Bypass), Bypass::Unmatched)
}

/// An answer of the endpoint's, passed on.
fn as_it_came(status: StatusCode, headers: &HeaderMap, body: &Bytes) -> Response<Body> {
    let mut response = Response::new(whole(body.clone()));
    *response.status_mut() = status;
    *response.headers_mut() = headers.clone();
    let headers = response.headers_mut();
    strip_hop_by_hop(headers);
    headers.remove(CONTENT_LENGTH); // Set anew from the body.
    add_via(headers, Version::HTTP_11);
    response
}

/// Marks an answer of sidelink's own on the batch route.
pub(super) fn own(error: Error) -> Answered {
    let mut answered = Answered::own(error);
    let forwarded = if matches!(error, Error::NoAnswer(_) | Error::Deadline) { "; fwd=miss" } else { "" };
    append_status(answered.response.headers_mut(), &format!("sidelink{forwarded}; detail={}", error.code()));
    answered
}

/// Marks an answer to a batch that was forwarded untouched, or that was refused on its way.
pub(super) fn bypassed(mut answered: Answered, reason: Bypass) -> Answered {
    let forwarded = [Error::NoAnswer(NoAnswer::Broken).code(), Error::Deadline.code()];
    let status = match answered.detail {
        Some(code) if !forwarded.contains(&code) => format!("sidelink; detail={code}"),
        _ => format!("sidelink; fwd=bypass; detail={}", reason.name()),
    };
    append_status(answered.response.headers_mut(), &status);
    Answered { detail: answered.detail.or(Some(reason.name())), ..answered }
}

/// Appends to the field that the endpoint may have sent: nearest the client comes last (RFC 9211 §2).
fn append_status(headers: &mut HeaderMap, status: &str) {
    if let Ok(status) = HeaderValue::from_str(status) {
        headers.append(CACHE_STATUS, status);
    }
}
