//! Shows an operator how the descriptions of a configuration read a recorded exchange: for `sidelink check --request --response`. No
//! credential's value is shown, and links without their query.

use std::collections::HashSet;
use std::fmt::{Display, Write as _};
use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use bytes::Bytes;
use http::header::{CONTENT_ENCODING, CONTENT_TYPE, DATE};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode};
use serde_json::Value;

use super::masking::{masked_id, masked_json, masked_target, masked_text};
use crate::api::answer::{self, AnswerItem, ParsedAnswer};
use crate::api::call::CallTemplate;
use crate::api::envelope::Envelope;
use crate::api::expiry::StatedExpiry;
use crate::api::id;
use crate::api::request::{Batch, Form, Id, NotABatch};
use crate::auth::signature::Keys;
use crate::auth::{CallerStates, Callers, Credential};
use crate::cache::freshness::{self, AnswerFreshness, Expiry, Reason, format_of};
use crate::clock::{Clock, Moment, millis, rfc3339};
use crate::config::batch::{BatchApi, ExpirySource};
use crate::config::{CallerKey, Config, show_duration};
use crate::telemetry::metrics::Bypass;
use crate::upstream::coding;

/// What a configuration makes of a recorded exchange.
pub struct CheckedExchange {
    /// For people: a line for each thing, after its name.
    pub text: String,
    /// Whether it is a batch and, with an answer, every item could be kept.
    pub is_kept: bool,
}

/// Reads a recorded request, and the answer to it if there is one, as `config` describes them.
pub fn check(config: &Config, request: &Request<Bytes>, response: Option<Response<Bytes>>) -> CheckedExchange {
    let mut report = Report(String::new());
    let checked = check_request(config, request, &mut report);
    let is_kept = match (checked, response) {
        (None, _) => false,
        (Some(_), None) => {
            report.line("verdict", "a batch");
            true
        }
        (Some(batch), Some(response)) => check_answer(config, &batch, response, &mut report),
    };
    CheckedExchange { text: report.0, is_kept }
}

/// A recorded batch.
struct CheckedBatch<'r> {
    callers: Callers,
    ids: Vec<Id<'r>>,
}

fn check_request<'r>(config: &Config, request: &'r Request<Bytes>, report: &mut Report) -> Option<CheckedBatch<'r>> {
    let (path, query) = (request.uri().path(), request.uri().query());
    let has_path = |api: &&BatchApi| api.path.matches(path);
    let Some(api) = config.batch.iter().filter(has_path).find(|api| api.method == *request.method()) else {
        let why = match config.batch.iter().find(has_path) {
            Some(api) => format!("none: the path is that of {}, whose batches are {}", api.name, api.method),
            None => "none: no batch API of the configuration has this path".to_owned(),
        };
        report.line("batch API", why);
        report.nearest(config, path);
        report.line("verdict", "forwarded untouched, as any other route");
        return None;
    };
    report.line("batch API", format_args!("{}: {} {}", api.name, api.method, api.path));
    let keys = Keys::new(&config.callers.keys.iter().map(CallerKey::pair).collect::<Vec<_>>());
    let states = Arc::new(CallerStates::new(rand::random()));
    let api = Arc::new(api.clone());
    let endpoint = &config.upstream.endpoint;
    let callers = Callers::new(Arc::clone(&api), &config.callers, Arc::new(keys), states, endpoint, Clock::system());
    let credential = match callers.credential(request.headers()) {
        Ok(credential) => credential,
        Err(reason) => {
            report.line("credential", format_args!("credentials = {}", names(&api.credentials)));
            report.forwarded(reason, &lower(reason.meaning()));
            return None;
        }
    };
    let batch = match Batch::read(&api, query, request.headers(), request.body()) {
        Ok(batch) => batch,
        Err(NotABatch::Condition) => {
            report.conditions(&api, request.body());
            report.forwarded(Bypass::Condition, "it asks for something else than `when` says");
            return None;
        }
        Err(NotABatch::Unreadable(misfit)) => {
            report.line("described", places(&api));
            report.forwarded(NotABatch::Unreadable(misfit).reason(), &misfit.to_string());
            return None;
        }
    };
    report.line("form", batch.form.name());
    let mut seen = HashSet::new();
    let ids: Vec<Id<'_>> = batch.ids.iter().filter(|id| seen.insert((&id.name, id.qualifier()))).cloned().collect();
    let most = config.limits.batch_ids;
    if ids.len() > most {
        report.line("ids", ids.len());
        report.line("verdict", format_args!("refused: more ids than limits.batch_ids ({most})"));
        return None;
    }
    report.ids(&api, &ids);
    report.scope(config, &api, request, &batch);
    let present = |name: &&HeaderName| request.headers().contains_key(*name);
    let credentials = match credential {
        Credential::Signed(..) => {
            "authorization, a signature with a configured key; it is not verified here".to_owned()
        }
        _ => names(api.credentials.iter().filter(present)),
    };
    report.line("credential", credentials);
    report.call(config, &api, path, &batch, &ids);
    Some(CheckedBatch { callers, ids })
}

/// Returns whether every item could be kept.
fn check_answer(config: &Config, batch: &CheckedBatch<'_>, response: Response<Bytes>, report: &mut Report) -> bool {
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
            let why = answer::misfit(api, &body, &names);
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
    let mut kept = 0;
    for (id, item) in batch.ids.iter().zip(&items) {
        report.line("", format_args!("{}:", masked_id(id::shown(&id.name))));
        let item = item.as_ref();
        let lifetime = match item.filter(|item| !item.is_absent) {
            Some(item) => {
                report.link(api, item, sent.unix_millis());
                let verdict = freshness::judge(item, &source, policy);
                verdict.and_then(|deadlines| if foreign_vary { Err(Reason::Vary) } else { Ok(deadlines.parts().1) })
            }
            None => {
                report.absent(api, item);
                let span = u32::try_from(source.absence(policy).as_millis()).unwrap_or(u32::MAX);
                match source.forbids_storing(policy) {
                    true => Err(Reason::NoStore),
                    false if foreign_vary => Err(Reason::Vary),
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
            Err(reason) => format!("not kept: {}", why_not_kept(item, reason)),
        });
    }
    let all = batch.ids.len();
    report.line("verdict", format_args!("a batch; {kept} of {all} items could be kept"));
    kept == all
}

/// Why an item is not kept, and what to do where the description may be wrong.
fn why_not_kept(item: Option<&AnswerItem>, reason: Reason) -> String {
    let is_readable =
        |item: &&AnswerItem| !item.expiries.is_empty() && !item.expiries.contains(&StatedExpiry::Unreadable);
    match item.filter(|_| reason == Reason::Unreadable) {
        Some(AnswerItem { url: None, .. }) => {
            "it has no link; if such an item has none, name the member that says so in absent".to_owned()
        }
        Some(item) if is_readable(&item) && item.url_expires => {
            format!("{}; leave \"link\" out of expires if its fields alone say when it ends", lower(reason.meaning()))
        }
        _ => lower(reason.meaning()),
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

/// What is printed: names on the left, what they name on the right.
struct Report(String);

impl Report {
    fn line(&mut self, name: &str, text: impl Display) {
        // Writing to a string does not fail.
        let _ = writeln!(self.0, "{name:<12}{text}");
    }

    /// A line below an id.
    fn detail(&mut self, text: impl Display) {
        self.line("", format_args!("  {text}"));
    }

    fn forwarded(&mut self, reason: Bypass, why: &str) {
        self.line("verdict", format_args!("forwarded untouched ({}): {why}", reason.name()));
    }

    /// The API whose path is most like this one, and where they differ.
    fn nearest(&mut self, config: &Config, path: &str) {
        let apis = config.batch.iter().filter_map(|api| Some((api, api.path.difference(path)?)));
        if let Some((api, (_, difference))) = apis.rev().max_by_key(|(_, (alike, _))| *alike) {
            self.line("nearest", format_args!("{}: {} {}: {difference}", api.name, api.method, api.path));
        }
    }

    /// What the body has in place of what `when` asks for.
    fn conditions(&mut self, api: &BatchApi, body: &[u8]) {
        let body: Value = serde_json::from_slice(body).unwrap_or_default();
        for (place, wanted) in &api.when {
            let found = match body.pointer(&place.to_string()) {
                Some(found) if found == wanted => continue,
                Some(found) if found.is_array() || found.is_object() => "a list or an object".to_owned(),
                Some(found) => masked_json(&found.to_string()),
                None => "not there".to_owned(),
            };
            self.line("when", format_args!("{place} has to be {wanted}, and is {found}"));
        }
    }

    fn ids(&mut self, api: &BatchApi, ids: &[Id<'_>]) {
        self.line("ids", ids.len());
        for id in ids {
            let shown = masked_id(id::shown(&id.name));
            match id.qualifier() {
                Some(element) => self.line("", format_args!("{shown}, with {}", beside(api, element))),
                None => self.line("", shown),
            }
        }
    }

    /// What the scope has besides the caller and what stands beside an id: names, and the captures of the path.
    fn scope(&mut self, config: &Config, api: &BatchApi, request: &Request<Bytes>, batch: &Batch<'_>) {
        let uri = request.uri();
        let mut fields: Vec<String> = Vec::new();
        for name in api.path.captures() {
            fields.push(format!("path {{{name}}} = {}", api.path.capture(uri.path(), name).unwrap_or_default()));
        }
        if let Some(group) = batch.group.name() {
            fields.push(format!("group {}", id::shown(group)));
        }
        let name_of = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
        let query = uri.query().filter(|query| !query.is_empty());
        let (pairs, members) = match batch.form {
            Form::Body => (query.map(|query| query.split('&').map(name_of).collect()), batch.rest().get(1..)),
            _ => (Some(batch.rest().iter().map(|pair| name_of(pair)).collect::<Vec<_>>()), None),
        };
        fields.extend(pairs.into_iter().flatten().map(|name| format!("query {name}")));
        fields.extend(
            members.unwrap_or_default().chunks(2).filter_map(|member| Some(format!("body {}", member.first()?))),
        );
        let is_other = |value: &HeaderValue| value != "application/json";
        let counts = api.method == Method::POST
            || api.ids.body.is_some() && request.headers().get(CONTENT_TYPE).is_some_and(is_other);
        let content_type = counts.then_some(&CONTENT_TYPE);
        let headers = content_type.into_iter().chain(&api.scope_headers).chain(&config.callers.scope_headers);
        for name in headers.filter(|name| request.headers().contains_key(*name)) {
            let field = format!("header {name}");
            if !fields.contains(&field) {
                fields.push(field);
            }
        }
        self.line(
            "scope",
            "the credential".to_owned() + &fields.iter().flat_map(|field| [", ", field]).collect::<String>(),
        );
    }

    /// The call for a batch of which memory has nothing.
    fn call(&mut self, config: &Config, api: &BatchApi, path: &str, batch: &Batch<'_>, ids: &[Id<'_>]) {
        let most = config.upstream.ids_per_call.min(api.ids_per_call);
        let template = CallTemplate::new(path, batch);
        let first = || ids.iter().take(most).map(|id| id.written);
        let count = ids.len().div_ceil(most);
        if count > 1 {
            self.line("calls", format_args!("{count} of up to {most} ids; the first:"));
        }
        let name = if count > 1 { "" } else { "call" };
        self.line(name, format_args!("{} {}", api.method, masked_target(&template.target(first()))));
        let body = template.body(first());
        if !body.is_empty() {
            let body = masked_json(&String::from_utf8_lossy(&body));
            body.lines().for_each(|line| self.line("", line));
        }
    }

    /// A link, and each place that says when it expires.
    fn link(&mut self, api: &BatchApi, item: &AnswerItem, now: u64) {
        let url = item.url.as_deref();
        self.detail(url.map_or_else(|| "no link at items.link".to_owned(), masked_id));
        let object = format!("{{{}}}", item.text);
        let value: Value = match &api.items.key {
            Some(_) => serde_json::from_str(&item.text).unwrap_or_default(),
            None => serde_json::from_str::<serde_json::Map<_, _>>(&object)
                .ok()
                .and_then(|members| members.into_iter().next())
                .map_or(Value::Null, |(_, value)| value),
        };
        let mut stated = item.expiries.iter();
        for source in &api.expires {
            let ExpirySource::Field(place) = source else { continue };
            if value.pointer(&place.to_string()).is_none_or(Value::is_null) {
                continue;
            }
            match stated.next() {
                Some(StatedExpiry::At(at)) => self.detail(format_args!("expires {}: {place}", rfc3339(*at))),
                Some(StatedExpiry::In { seconds, .. }) => {
                    let at = rfc3339(now.saturating_add(seconds.saturating_mul(1000)));
                    self.detail(format_args!("expires {at}: {place}, {seconds} seconds from then"));
                }
                _ => self.detail(format_args!("expires at an unreadable time: {place}")),
            }
        }
        let Some(url) = url.filter(|_| item.url_expires) else { return };
        match (freshness::expiry(url), format_of(url)) {
            (Expiry::At(at), Some(format)) => self.detail(format_args!("expires {}: the URL, {format}", rfc3339(at))),
            (Expiry::At(at), None) => self.detail(format_args!("expires {}: the URL", rfc3339(at))),
            (Expiry::None, _) if item.expiries.is_empty() => {
                self.detail("the URL is not signed: freshness.unsigned counts");
            }
            (Expiry::None, _) => {}
            (Expiry::Unreadable, _) => self.detail("the URL is signed, and of no format whose expiry is read"),
        }
    }

    fn absent(&mut self, api: &BatchApi, item: Option<&AnswerItem>) {
        match (item, &api.absent) {
            (Some(_), Some(place)) => self.detail(format_args!("absent: the item has {place}")),
            _ => self.detail("absent: the answer leaves it out"),
        }
    }
}

/// What an element says beside its id.
fn beside(api: &BatchApi, element: &str) -> String {
    let mut value: Value = serde_json::from_str(element).unwrap_or_default();
    if let Some((last, before)) = api.ids.key.as_ref().and_then(|key| key.tokens().split_last()) {
        let within: String =
            before.iter().flat_map(|token| ["/".to_owned(), token.replace('~', "~0").replace('/', "~1")]).collect();
        if let Some(object) = value.pointer_mut(&within).and_then(Value::as_object_mut) {
            object.remove(&**last);
        }
    }
    masked_json(&value.to_string())
}

/// Where the API looks for ids and items.
fn places(api: &BatchApi) -> String {
    let (ids, items) = (&api.ids, &api.items);
    let key = |name, value: Option<String>| value.map(|value| format!("{name} = \"{value}\""));
    let shown = [
        key("ids.query", ids.query.as_deref().map(str::to_owned)),
        key("ids.body", ids.body.as_ref().map(ToString::to_string)),
        key("ids.key", ids.key.as_ref().map(ToString::to_string)),
        key("items.at", Some(items.at.to_string())),
        key("items.key", Some(items.key.as_ref().map_or("*".to_owned(), ToString::to_string))),
        key("items.link", items.link.as_ref().map(ToString::to_string)),
    ];
    shown.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// The text around the items, on one line.
fn around(envelope: &Envelope) -> String {
    let (before, after, _) = envelope.parts();
    let line = |text: &str| masked_text(text).split_whitespace().collect::<Vec<_>>().join(" ");
    format!("{}…{}", line(before), line(after))
}

fn names<'n>(names: impl IntoIterator<Item = &'n HeaderName>) -> String {
    names.into_iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")
}

/// A meaning, within a sentence.
fn lower(meaning: &str) -> String {
    let mut chars = meaning.chars();
    let first = chars.next().into_iter().flat_map(char::to_lowercase);
    first.chain(chars).collect::<String>().trim_end_matches('.').to_owned()
}

/// Milliseconds, in whole seconds from one on.
fn span(millis: u32) -> String {
    let millis = u64::from(millis);
    show_duration(Duration::from_millis(if millis < 1000 { millis } else { millis / 1000 * 1000 }))
}
