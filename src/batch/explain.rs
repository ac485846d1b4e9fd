//! Explains to an operator how a batch would be answered now, and why. Explaining changes nothing: no entry counts as used, no
//! caller is remembered, nothing is counted, and the endpoint is not asked.

use http::header::HOST;
use http::request::Parts;
use http::{HeaderMap, HeaderValue, Uri};
use serde_json::{Value, json};

use super::masking::{masked, masked_id};
use super::{BatchRoute, CacheRequirements, distinct, respond};
use crate::api::answer::url_of;
use crate::api::id;
use crate::api::request::{Batch, Id, NotABatch};
use crate::auth::{AuthError, Bypass, Identity, Key, NoUser};
use crate::cache::Entry;
use crate::cache::freshness::Deadlines;
use crate::cache::purges::Marks;
use crate::clock::{Moment, millis, rfc3339};
use crate::error::Error;
use crate::message::cache_control::Directives;
use crate::message::headers::sidelinks;
use crate::telemetry::metrics::{IdResult, Outcome, Tally};

const WHY_REFUSED: &str = "the endpoint refused it lately to a batch of this id alone, whose answer is given again";

const WHY_ASKED: &str = "it is asked before the endpoint; what it has is not looked into here";

/// The state that all ids of a batch share.
struct BatchState<'a> {
    /// Why no call could be made now.
    rejection: Option<Error>,
    requirements: CacheRequirements,
    directives: Directives,
    must_revalidate: bool,
    /// Whether the shared tier would be asked for an id that is fetched, and why; `None` without one.
    shared_tier: Option<Value>,
    marks: Marks<'a>,
    now: Moment,
}

impl BatchRoute {
    /// Explains a batch with the query and headers of `head`, and this body, to the path of the API, which has no captures.
    pub fn explain_query(&self, mut head: Parts, body: &[u8]) -> Value {
        let query = head.uri.query().filter(|query| !query.is_empty());
        let target = query.map_or_else(|| self.api.path.to_string(), |query| format!("{}?{query}", self.api.path));
        // Never fails: the path is one, and the query was one.
        head.uri = target.parse().unwrap_or_else(|_| Uri::from_static("/"));
        head.method = self.api.method.clone();
        self.explain(head, body)
    }

    /// Explains a request on the route of the API.
    pub fn explain(&self, head: Parts, body: &[u8]) -> Value {
        let mut explanation = self.explained(head, body);
        if let Some(explanation) = explanation.as_object_mut() {
            explanation.insert("api".to_owned(), (*self.api.name).into());
        }
        explanation
    }

    fn explained(&self, mut head: Parts, body: &[u8]) -> Value {
        let (identity, is_known) = match self.known(&mut head, body) {
            Ok(known) => known,
            Err(AuthError::Bypass(reason)) => return bypass(reason, reason.meaning()),
            Err(AuthError::Unverified(fault)) => return bypass(Bypass::Signature, fault.message()),
            Err(AuthError::NamedByConnection) => return error(Error::NamedByConnection),
        };
        let batch = match Batch::read(&self.api, head.uri.query(), &head.headers, body) {
            Ok(batch) => batch,
            Err(NotABatch::Condition) => return bypass(Bypass::Condition, Bypass::Condition.meaning()),
            Err(NotABatch::Unreadable(misfit)) => {
                return bypass(NotABatch::Unreadable(misfit).reason(), &misfit.to_string());
            }
        };
        let scope = self.callers.scope(&identity, (&head.headers).into(), &head.uri).of_batch(&batch);
        let Some(ids) = distinct(&batch, scope, self.config.limits.batch_ids) else {
            return error(self.too_many_ids(&batch));
        };
        let now = self.clock.now();
        let directives = self.directives((&head.headers).into());
        let client = CacheRequirements::from(&directives);
        let must_revalidate = self.callers.must_revalidate(&identity, now);
        let names: Vec<&Id<'_>> = ids.iter().map(|(id, _)| *id).collect();
        let rejection = self.fetch.why_no_call(&identity, &names);
        let state = BatchState {
            rejection: rejection.map(|rejection| rejection.error),
            requirements: CacheRequirements { forbids_cache: client.forbids_cache || must_revalidate, ..client },
            directives,
            must_revalidate,
            shared_tier: self.fetch.tier().map(|_| {
                let why_not = self.fetch.why_no_shared_tier(&client, sidelinks(&head.headers));
                let why_not =
                    if directives.only_if_cached { Some("the request asks for memory alone") } else { why_not };
                json!({ "asked": why_not.is_none(), "why": why_not.unwrap_or(WHY_ASKED) })
            }),
            marks: self.cache.purges().of(&self.api.name, batch.group.name()),
            now,
        };
        // A remembered refusal is the answer to a batch of its id alone.
        let refused = match ids.as_slice() {
            [(id, key)] => self.cache.refusals.look_up(identity.caller, *key, &id.name, &state.marks, now),
            _ => None,
        };
        let refused = refused.filter(|refusal| client.allow_refusal(&refusal.deadlines, now));
        let refused = refused.as_ref().map(|refusal| &refusal.deadlines);

        let mut tally = Tally::default();
        let id_now = |(id, key): &(&Id<'_>, Key)| {
            let (id_now, result) = self.id_now(&id.name, *key, refused, &state);
            tally.add(result);
            id_now
        };
        let ids: Vec<Value> = ids.iter().map(id_now).collect();
        let (outcome, error) = match respond::outcome(&tally) {
            Outcome::Hit => (Outcome::Hit, None),
            _ if refused.is_some() => (Outcome::Error, None),
            _ if directives.only_if_cached => (Outcome::Error, Some(Error::NotCached)),
            _ if tally.count(IdResult::Failed) > 0 => (Outcome::Error, state.rejection),
            outcome => (outcome, None),
        };
        let why_refused = (outcome == Outcome::Error && refused.is_some()).then_some(WHY_REFUSED);
        let mut explanation = without_nulls(json!({
            // As in `batches_total`, as far as can be told before the endpoint has answered.
            "outcome": outcome.name(),
            "why": error.map(Error::message).or(why_refused.map(Into::into)),
            "error_code": error.map(Error::code),
            "form": batch.form.name(),
            "caller": self.caller_now(&identity, is_known, &head.headers, now),
            "calls_refused": state.rejection.map(Error::message),
            "ids": ids,
        }));
        let group = self.api.group.as_deref().zip(batch.group.to_json());
        if let (Some((name, group)), Some(explanation)) = (group, explanation.as_object_mut()) {
            explanation.insert(name.to_owned(), group);
        }
        explanation
    }

    /// Who asks, and whether the caller is remembered.
    fn known(&self, head: &mut Parts, body: &[u8]) -> Result<(Identity, bool), AuthError> {
        let look = |head: &Parts| {
            let credential = self.callers.credential(&head.headers).map_err(AuthError::Bypass)?;
            self.callers.known(&credential, head, body, self.clock.now())
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

    fn caller_now(&self, identity: &Identity, is_known: bool, headers: &HeaderMap, now: Moment) -> Value {
        let left = self.callers.accepted_left(identity, now);
        let (state, why) = match left {
            Some(_) => ("accepted", "the endpoint has accepted it within callers.revalidate"),
            None if is_known => (
                "must_revalidate",
                "the endpoint has not accepted it within callers.revalidate, or has refused it since: its next batch is fetched whole",
            ),
            None => ("unknown", "it is not remembered: its next batch is fetched whole"),
        };
        without_nulls(json!({
            // As in the access log.
            "hash": format!("{:08x}", identity.caller.short()),
            "state": state,
            "why": why,
            "accepted_seconds": left.map(seconds),
            "accepted_until": left.map(|left| until(now, left)),
            "user": self.user_now(identity, now),
            "no_user": self.no_user_now(identity, headers, now),
        }))
    }

    /// Why the caller is no user, although users are looked up.
    fn no_user_now(&self, identity: &Identity, headers: &HeaderMap, now: Moment) -> Option<Value> {
        self.identity_provider.as_ref()?;
        self.callers.credential(headers).ok()?.token(&self.api)?;
        let NoUser { reason, why, left } = self.callers.why_no_user(identity, now)?;
        Some(without_nulls(json!({ "reason": reason, "why": why, "looked_up_again_seconds": left.map(seconds) })))
    }

    /// The user that the caller is known to be, whose entries it shares.
    fn user_now(&self, identity: &Identity, now: Moment) -> Option<Value> {
        let (user, callers, left) = self.callers.user_now(identity, now)?;
        Some(without_nulls(json!({
            "hash": format!("{user:08x}"),
            "callers": callers,
            "known_seconds": left.map(seconds),
        })))
    }

    /// Explains an id in the batch's scope. `refused` are the deadlines of a remembered refusal of it.
    fn id_now(&self, id: &str, key: Key, refused: Option<&Deadlines>, state: &BatchState<'_>) -> (Value, IdResult) {
        let now = state.now;
        let entry = self.cache.peek(key);
        let is_purged = entry.as_ref().is_some_and(|entry| state.marks.cover(id, entry.deadlines().sent()));
        let entry = entry.filter(|_| !is_purged);
        let in_flight = self.fetch.is_in_flight(key, id, &state.marks);
        let serves = entry.as_ref().is_some_and(|entry| state.requirements.allow(entry.deadlines(), now));
        let floor = millis(self.config.freshness.min_remaining);
        let is_past_floor = |deadlines: &Deadlines| deadlines.life_left(now).is_some_and(|left| left <= floor);
        let entry_state = match entry.as_ref().map(|entry| (entry.deadlines(), !entry.is_absent())) {
            _ if is_purged => "purged",
            Some((deadlines, has_link)) if deadlines.fresh_left(now).is_some() => {
                if has_link {
                    "fresh"
                } else {
                    "absent"
                }
            }
            Some((deadlines, true)) if deadlines.usable(now) => "stale",
            Some((deadlines, true)) if is_past_floor(deadlines) => "past_floor",
            Some(_) => "expired",
            None if in_flight => "in_flight",
            None => "unknown",
        };
        let refused = refused.filter(|_| !serves);
        let (entry_state, (result, why)) = match refused {
            Some(_) => ("refused", (IdResult::Failed, WHY_REFUSED)),
            None => (entry_state, verdict(entry_state, in_flight, serves, state)),
        };
        let is_fetched = refused.is_none() && !serves && result != IdResult::Joined;
        let refresh_ahead = serves && entry.as_ref().is_some_and(|entry| self.is_ageing(entry, key, now));
        let text = entry.as_ref().and_then(Entry::text);
        let link = text.and_then(|text| url_of(&self.api, std::str::from_utf8(text).ok()?));
        let deadlines = entry.as_ref().map(Entry::deadlines);
        let fresh = refused.or(deadlines);
        let fresh_left = fresh.and_then(|deadlines| deadlines.fresh_left(now));
        let of_link = deadlines.filter(|_| text.is_some());
        let usable_left = of_link.and_then(|deadlines| deadlines.usable_left(now));
        let life_left = of_link.and_then(|deadlines| deadlines.life_left(now));
        let id_now = without_nulls(json!({
            "id": masked_id(id::shown(id)),
            "state": entry_state,
            // As in `ids_total`, as far as can be told before the endpoint has answered.
            "result": result.name(),
            "why": why,
            "in_flight": in_flight,
            "shared_tier": state.shared_tier.as_ref().filter(|_| is_fetched),
            // If it is affordable.
            "refresh_ahead": refresh_ahead.then_some(true),
            "link": link.map(|url| masked(&url)),
            // Since the call was sent.
            "age_seconds": fresh.map(|deadlines| seconds(deadlines.age(now))),
            "fresh_until": fresh_left.map(|left| until(now, left)),
            "fresh_seconds": fresh_left.map(seconds),
            // For an endpoint that fails.
            "usable_until": usable_left.map(|left| until(now, left)),
            "usable_seconds": usable_left.map(seconds),
            // The link itself.
            "expires_at": life_left.map(|left| until(now, left)),
        }));
        (id_now, result)
    }
}

fn verdict(entry_state: &str, in_flight: bool, serves: bool, state: &BatchState<'_>) -> (IdResult, &'static str) {
    if serves {
        return match entry_state {
            "absent" => (IdResult::Absent, "the endpoint left it out lately"),
            _ => (IdResult::Hit, "it is fresh, and its caller is accepted"),
        };
    }
    let no_cache = state.directives.no_cache || state.directives.no_store;
    if in_flight && !state.directives.no_store {
        return (IdResult::Joined, "a call for it is under way, which the batch would join");
    }
    if state.rejection.is_some() {
        // A call that cannot be made counts as a failure of the endpoint, for which stale links are served.
        return match entry_state {
            "fresh" | "stale" if !no_cache => (IdResult::Stale, "no call can be made now, and the link has life left"),
            _ => (IdResult::Failed, "no call can be made now, and nothing in memory may answer for it"),
        };
    }
    let why = match entry_state {
        "fresh" | "absent" if no_cache => "the request's Cache-Control forbids an answer from memory",
        "fresh" | "absent" if state.must_revalidate => "the caller must revalidate",
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

/// A batch that would be forwarded untouched.
fn bypass(reason: Bypass, why: &str) -> Value {
    json!({ "outcome": Outcome::Bypass.name(), "why": why, "bypass": reason.name() })
}

/// A batch that would be answered with an error of sidelink's own.
fn error(error: Error) -> Value {
    json!({ "outcome": Outcome::Error.name(), "why": error.message(), "error_code": error.code() })
}

/// An object without the fields that have no value.
fn without_nulls(mut object: Value) -> Value {
    if let Some(fields) = object.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    object
}

fn seconds(millis: u64) -> f64 {
    millis as f64 / 1000.0
}

fn until(now: Moment, left: u64) -> String {
    rfc3339(now.unix_millis().saturating_add(left))
}
