//! Explains to an operator how a batch would be answered now, and why. Explaining changes nothing: no entry counts as used, no
//! caller is remembered, nothing is counted, and the endpoint is not asked.

use std::collections::HashSet;

use http::header::HOST;
use http::request::Parts;
use http::{HeaderValue, Method, Uri};
use serde::Serialize;
use serde_json::Value;

use super::{BatchRoute, CacheRequirements};
use crate::api;
use crate::api::answer::url_of;
use crate::api::id::{self, Group};
use crate::api::request::{Batch, Form};
use crate::auth::{AuthError, Bypass, Identity, Key};
use crate::cache::Entry;
use crate::cache::purges::Marks;
use crate::clock::{Moment, rfc3339};
use crate::error::Error;
use crate::message::cache_control::Directives;
use crate::telemetry::metrics::{IdResult, Outcome};

const REFUSED: &str = "refused";
const WHY_REFUSED: &str = "the endpoint refused it lately to a batch of this id alone, whose answer is given again";

/// How a batch would be answered.
#[derive(Debug, Default, Serialize)]
pub struct Explanation {
    /// How it would be answered, as in `batches_total`; as far as can be told before the endpoint has answered.
    pub outcome: &'static str,
    /// Why, if not for its ids.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<&'static str>,
    /// Why it would be forwarded untouched, as in `bypass_total`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bypass: Option<&'static str>,
    /// The code of the error of sidelink's own that would be its answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error_code: Option<&'static str>,
    /// How it was written.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub form: Option<&'static str>,
    /// Its group: a name or null.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub group_id: Option<Value>,
    /// Who asks.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub caller: Option<CallerNow>,
    /// Why no call could be made now, if so.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub calls_refused: Option<&'static str>,
    /// Each distinct id, in the order asked.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub ids: Vec<IdNow>,
}

/// A caller's state.
#[derive(Debug, Serialize)]
pub struct CallerNow {
    /// What stands for it in the access log.
    pub hash: String,
    /// `accepted`, `must_revalidate` or `unknown`.
    pub state: &'static str,
    /// What that means.
    pub why: &'static str,
    /// Seconds until the caller must revalidate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_seconds: Option<f64>,
    /// And when that is.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub accepted_until: Option<String>,
}

/// What is known of an id in the batch's scope.
#[derive(Debug, Default, Serialize)]
pub struct IdNow {
    /// The id.
    pub id: String,
    /// What there is: `fresh`, `stale`, `past_floor`, `expired`, `absent`, `purged`, `in_flight`, `refused` or
    /// `unknown`.
    pub state: &'static str,
    /// What would become of it, as in `ids_total`; as far as can be told before the endpoint has answered.
    pub result: &'static str,
    /// Why.
    pub why: &'static str,
    /// Whether a call for it is under way.
    pub in_flight: bool,
    /// Whether it would be fetched again in the background, if that is affordable.
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    pub refresh_ahead: bool,
    /// The link up to its query, which is the secret part.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub link: Option<String>,
    /// Seconds since the call that brought it was sent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub age_seconds: Option<f64>,
    /// Until when it is served, or remembered as absent, without asking.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fresh_until: Option<String>,
    /// And in seconds from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub fresh_seconds: Option<f64>,
    /// Until when it may answer for an endpoint that fails.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usable_until: Option<String>,
    /// And in seconds from now.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub usable_seconds: Option<f64>,
    /// When the link itself ends.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expires_at: Option<String>,
}

impl Explanation {
    fn of(outcome: Outcome) -> Self {
        Self { outcome: outcome.name(), ..Self::default() }
    }

    fn bypass(reason: Bypass) -> Self {
        Self { why: Some(reason.meaning()), bypass: Some(reason.name()), ..Self::of(Outcome::Bypass) }
    }

    fn error(error: Error) -> Self {
        Self { why: Some(error.message()), error_code: Some(error.code()), ..Self::of(Outcome::Error) }
    }
}

/// What all ids of a batch share.
struct Circumstances<'a> {
    identity: Option<&'a Identity>,
    /// Why no call could be made now.
    rejection: Option<Error>,
    requirements: CacheRequirements,
    directives: &'a Directives,
    /// Whether the caller must revalidate.
    must_revalidate: bool,
    group: &'a Group<'a>,
    marks: Marks<'a>,
    now: Moment,
}

impl BatchRoute {
    /// What would become of a batch with the query and headers of `head`, whatever its path, and this body.
    pub fn explain(&self, mut head: Parts, body: &[u8]) -> Explanation {
        let query = head.uri.query().filter(|query| !query.is_empty());
        let target = query.map_or_else(|| api::PATH.to_owned(), |query| format!("{}?{query}", api::PATH));
        // Never fails: the path is one, and the query was one.
        head.uri = target.parse().unwrap_or_else(|_| Uri::from_static(api::PATH));
        head.method = Method::GET;
        let known = match self.known(&mut head, body) {
            Ok(known) => known,
            Err(AuthError::Bypass(reason)) => return Explanation::bypass(reason),
            Err(AuthError::Unverified(fault)) => {
                return Explanation { why: Some(fault.message()), ..Explanation::bypass(Bypass::Signature) };
            }
            Err(AuthError::NamedByConnection) => return Explanation::error(Error::NamedByConnection),
        };
        let Ok(batch) = Batch::read(head.uri.query(), &head.headers, body) else {
            return Explanation::bypass(Bypass::Unreadable);
        };
        let now = self.clock.now();
        let (hash, identity) = known;
        let directives = self.directives((&head.headers).into());
        let (caller, must_revalidate) = self.caller_now(hash, identity.as_ref(), now);
        let client = CacheRequirements::from(&directives);
        let forbids_cache = client.forbids_cache || must_revalidate || identity.is_none();
        let requirements = CacheRequirements { forbids_cache, ..client };
        let ids: Vec<&str> = batch.ids.iter().map(AsRef::as_ref).collect();
        let circumstances = Circumstances {
            rejection: self.fetch.rejection(identity.as_ref(), &ids).map(|rejection| rejection.error),
            requirements,
            directives: &directives,
            must_revalidate,
            group: &batch.group,
            marks: self.cache.purges().of_group(batch.group.name()),
            now,
            identity: identity.as_ref(),
        };
        let mut explanation = Explanation {
            form: Some(match batch.form {
                Form::Repeated => "repeated",
                Form::Comma => "comma",
                Form::Body => "body",
            }),
            group_id: match &batch.group {
                Group::Absent => None,
                Group::Null => Some(Value::Null),
                Group::Named(name) => Some(id::shown(name).into()),
            },
            caller: Some(caller),
            calls_refused: circumstances.rejection.map(Error::message),
            ..Explanation::of(Outcome::Miss)
        };
        let scope = identity.as_ref().map(|identity| self.callers.scope(identity, &head.headers, circumstances.group));
        let mut seen = HashSet::new();
        for id in &batch.ids {
            if !seen.insert(id.as_ref()) {
                continue;
            }
            if explanation.ids.len() == self.config.limits.batch_ids {
                return Explanation { ids: Vec::new(), ..Explanation::error(Error::TooManyIds) };
            }
            explanation.ids.push(self.id_now(id, scope.map(|scope| scope.key(id)), &circumstances));
        }
        if let ([only], Some(scope)) = (explanation.ids.as_mut_slice(), scope) {
            self.explain_refusal(only, scope.key(&only.id), &circumstances);
        }
        let is_refused = explanation.ids.iter().any(|id| id.state == REFUSED);
        let count = |result: IdResult| explanation.ids.iter().filter(|id| id.result == result.name()).count();
        let here = count(IdResult::Hit) + count(IdResult::Absent);
        let outcome = if here == explanation.ids.len() {
            Outcome::Hit
        } else if is_refused {
            explanation.why = Some(WHY_REFUSED);
            Outcome::Error
        } else if directives.only_if_cached {
            explanation.why = Some(Error::NotCached.message());
            explanation.error_code = Some(Error::NotCached.code());
            Outcome::Error
        } else if count(IdResult::Failed) > 0 {
            explanation.why = explanation.calls_refused;
            explanation.error_code = circumstances.rejection.map(Error::code);
            Outcome::Error
        } else if count(IdResult::Stale) > 0 {
            Outcome::Stale
        } else if here > 0 {
            Outcome::Partial
        } else {
            Outcome::Miss
        };
        explanation.outcome = outcome.name();
        explanation
    }

    /// The caller's short hash, and its identity if the caller is remembered.
    fn known(&self, head: &mut Parts, body: &[u8]) -> Result<(String, Option<Identity>), AuthError> {
        let look = |head: &Parts| {
            let credential = self.callers.credential(&head.headers).map_err(AuthError::Bypass)?;
            let (caller, identity) = self.callers.known(&credential, head, body)?;
            Ok((format!("{:08x}", caller.short()), identity))
        };
        let as_sent = look(head);
        let Err(AuthError::Unverified(_)) = as_sent else { return as_sent };
        // Signed for the host that its batches go to: the endpoint's, or a listener's.
        let listeners = self.config.listen.address.iter().map(ToString::to_string);
        for host in [self.config.upstream.endpoint.authority.to_string()].into_iter().chain(listeners) {
            let Ok(host) = HeaderValue::from_str(&host) else { continue };
            head.headers.insert(HOST, host);
            let signed = look(head);
            if !matches!(signed, Err(AuthError::Unverified(_))) {
                return signed;
            }
        }
        as_sent
    }

    fn caller_now(&self, hash: String, identity: Option<&Identity>, now: Moment) -> (CallerNow, bool) {
        let left = identity.map(|identity| self.callers.accepted_left(identity, now));
        let (caller_state, why) = match left {
            Some(Some(_)) => ("accepted", "the endpoint has accepted it within callers.revalidate"),
            Some(None) => (
                "must_revalidate",
                "the endpoint has not accepted it within callers.revalidate, or has refused it since: its next batch is fetched whole",
            ),
            None => ("unknown", "it is not remembered: its next batch is fetched whole"),
        };
        let left = left.flatten();
        let caller = CallerNow {
            hash,
            state: caller_state,
            why,
            accepted_seconds: left.map(seconds),
            accepted_until: left.map(|left| until(now, left)),
        };
        (caller, left.is_none())
    }

    fn id_now(&self, id: &str, key: Option<Key>, around: &Circumstances<'_>) -> IdNow {
        let entry = key.and_then(|key| self.cache.peek(key));
        let is_purged = entry.as_ref().is_some_and(|entry| around.marks.cover(id, entry.deadlines().sent()));
        let in_flight = key.is_some_and(|key| self.fetch.is_in_flight(key, id, &around.marks));
        let mut id_now = IdNow { id: id::shown(id).to_owned(), in_flight, ..IdNow::default() };
        if let Some(entry) = entry.as_ref().filter(|_| !is_purged) {
            id_now.describe(entry, around.now);
        }
        let serves =
            entry.as_ref().is_some_and(|entry| !is_purged && around.requirements.allow(entry.deadlines(), around.now));
        id_now.state = match &entry {
            _ if is_purged => "purged",
            Some(entry) if entry.deadlines().fresh_left(around.now).is_some() => {
                if entry.text().is_some() {
                    "fresh"
                } else {
                    "absent"
                }
            }
            Some(entry) if entry.text().is_some() && entry.deadlines().usable(around.now) => "stale",
            Some(entry) if entry.text().is_some() && self.is_past_floor(entry, around.now) => "past_floor",
            Some(_) => "expired",
            None if in_flight => "in_flight",
            None => "unknown",
        };
        let (result, why) = self.verdict(&id_now, serves, around);
        (id_now.result, id_now.why) = (result.name(), why);
        id_now.refresh_ahead =
            serves && entry.zip(key).is_some_and(|(entry, key)| self.is_ageing(&entry, key, around.now));
        id_now
    }

    /// Explains a remembered refusal, which a batch of this id alone gets.
    fn explain_refusal(&self, id: &mut IdNow, key: Key, around: &Circumstances<'_>) {
        if id.result == IdResult::Hit.name() || id.result == IdResult::Absent.name() {
            return;
        }
        let refusal = self.cache.refusals.look_up(key, &id.id, &around.marks, around.now);
        let client = CacheRequirements::from(around.directives);
        if let Some(refusal) = refusal.filter(|refusal| client.allow_refusal(&refusal.deadlines, around.now)) {
            let left = refusal.deadlines.fresh_left(around.now);
            (id.state, id.result, id.why) = (REFUSED, IdResult::Failed.name(), WHY_REFUSED);
            id.age_seconds = Some(seconds(refusal.deadlines.age(around.now)));
            id.fresh_until = left.map(|left| until(around.now, left));
            id.fresh_seconds = left.map(seconds);
        }
    }

    fn is_past_floor(&self, entry: &Entry, now: Moment) -> bool {
        let floor = crate::clock::millis(self.config.freshness.min_remaining);
        entry.deadlines().life_left(now).is_some_and(|left| left <= floor)
    }

    fn verdict(&self, id_now: &IdNow, serves: bool, around: &Circumstances<'_>) -> (IdResult, &'static str) {
        if serves {
            return match id_now.state {
                "absent" => (IdResult::Absent, "the endpoint left it out lately"),
                _ => (IdResult::Hit, "it is fresh, and its caller is accepted"),
            };
        }
        let no_cache = around.directives.no_cache || around.directives.no_store;
        if id_now.in_flight && !around.directives.no_store {
            return (IdResult::Joined, "a call for it is under way, which the batch would join");
        }
        if around.rejection.is_some() {
            // A call that cannot be made counts as a failure of the endpoint, for which stale links are served.
            let usable = id_now.state == "fresh" || id_now.state == "stale";
            return match around.identity {
                Some(_) if usable && !no_cache => {
                    (IdResult::Stale, "no call can be made now, and the link has life left")
                }
                _ => (IdResult::Failed, "no call can be made now, and nothing in memory may answer for it"),
            };
        }
        let why = match id_now.state {
            "fresh" | "absent" if no_cache => "the request's Cache-Control forbids an answer from memory",
            "fresh" | "absent" if around.must_revalidate => "the caller must revalidate",
            "fresh" | "absent" => "it is fresh, but not within the request's max-age or min-fresh",
            "stale" => "it is stale, and served only if the endpoint fails",
            "past_floor" => "the link has less life left than freshness.min_remaining, and is never served again",
            "expired" => "its entry has expired",
            "purged" => "it was purged after its call was sent",
            "in_flight" => "a call for it is under way, but a request with no-store joins none",
            _ => "there is no entry in this scope: this caller, group and scope headers",
        };
        (IdResult::Fetched, why)
    }
}

impl IdNow {
    fn describe(&mut self, entry: &Entry, now: Moment) {
        let deadlines = entry.deadlines();
        self.age_seconds = Some(seconds(deadlines.age(now)));
        let fresh = deadlines.fresh_left(now);
        self.fresh_until = fresh.map(|left| until(now, left));
        self.fresh_seconds = fresh.map(seconds);
        if let Some(text) = entry.text() {
            let usable = deadlines.usable_left(now);
            self.usable_until = usable.map(|left| until(now, left));
            self.usable_seconds = usable.map(seconds);
            self.expires_at = deadlines.life_left(now).map(|left| until(now, left));
            self.link = url_of(text).map(|url| masked(&url));
        }
    }
}

/// A link without what makes it work: its query, its fragment, and a user's name and password.
fn masked(url: &str) -> String {
    let end = url.find(['?', '#']).unwrap_or(url.len());
    let (bare, rest) = url.split_at(end);
    let (scheme, after) = bare.split_once("://").unwrap_or(("", bare));
    let (authority, path) = after.split_at(after.find('/').unwrap_or(after.len()));
    let host = authority.rsplit_once('@').map_or(authority, |(_, host)| host);
    let colon = if scheme.is_empty() { "" } else { "://" };
    let cut = if rest.is_empty() { "" } else { "?…" };
    format!("{scheme}{colon}{host}{path}{cut}")
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn until(now: Moment, left: u64) -> String {
    rfc3339(now.unix_millis().saturating_add(left))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_masked_link_has_no_query_fragment_or_password() {
        for (url, shown) in [
            ("https://h:443/a/b?Signature=x&Expires=1", "https://h:443/a/b?…"),
            ("https://user:secret@h/a#secret", "https://h/a?…"),
            ("https://h/a", "https://h/a"),
            ("https://h?secret", "https://h?…"),
            ("a@b?secret", "b?…"),
            ("", ""),
        ] {
            assert_eq!(masked(url), shown);
        }
    }
}
