//! How a recorded request is read.

use std::collections::HashSet;
use std::sync::Arc;

use bytes::Bytes;
use http::header::CONTENT_TYPE;
use http::{HeaderName, HeaderValue, Method, Request};
use serde_json::Value;

use super::super::masking::{masked_id, masked_json, masked_target};
use super::{Report, found, lower, shortage};
use crate::api::call::CallTemplate;
use crate::api::id;
use crate::api::misfit::{ElementMisfit, Misfit};
use crate::api::request::{Batch, Form, Id, NotABatch};
use crate::auth::signature::Keys;
use crate::auth::{CallerStates, Callers, Credential};
use crate::clock::Clock;
use crate::config::batch::{BatchApi, Pointer, Style};
use crate::config::{CallerKey, Config, is_credential_name};
use crate::telemetry::metrics::Bypass;

/// A recorded batch.
pub(super) struct CheckedBatch<'r> {
    pub(super) callers: Callers,
    pub(super) form: Form,
    pub(super) ids: Vec<Id<'r>>,
}

pub(super) fn check<'r>(config: &Config, request: &'r Request<Bytes>, report: &mut Report) -> Option<CheckedBatch<'r>> {
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
            // A longer name may be a secret in the place of a header's name.
            let (named, others): (Vec<_>, Vec<_>) =
                request.headers().keys().partition(|name| is_credential_name(name.as_str()));
            let others = if others.is_empty() { "" } else { ", others whose names are no credential's" };
            report.line("headers", format_args!("{}{others}", names(named)));
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
            report.found(&api, misfit, request.body());
            let shortage =
                if misfit == Misfit::NotJson { shortage(request.headers(), request.body()) } else { String::new() };
            report.forwarded(NotABatch::Unreadable(misfit).reason(), &format!("{misfit}{shortage}"));
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
    Some(CheckedBatch { callers, form: batch.form, ids })
}

impl Report {
    /// The API whose path is most like this one, and where they differ.
    fn nearest(&mut self, config: &Config, path: &str) {
        let apis = config.batch.iter().filter_map(|api| Some((api, api.path.difference(path)?)));
        if let Some((api, (_, difference))) = apis.rev().max_by_key(|(_, (alike, _))| *alike) {
            self.line("nearest", format_args!("{}: {} {}: {difference}", api.name, api.method, api.path));
        }
    }

    /// What the body has where ids should be.
    fn found(&mut self, api: &BatchApi, misfit: Misfit, body: &[u8]) {
        let (Some(place), Ok(body)) = (&api.ids.body, serde_json::from_slice::<Value>(body)) else { return };
        let element = |at: u32| body.pointer(&place.to_string())?.get(usize::try_from(at).ok()?.checked_sub(1)?);
        match misfit {
            Misfit::NoList => self.line("found", found::at(&body, "the body", place)),
            Misfit::Element(at, ElementMisfit::Object | ElementMisfit::NoKey | ElementMisfit::Kind) => {
                let Some(element) = element(at) else { return };
                let what = format!("element {at}");
                self.line("found", found::at(element, &what, api.ids.key.as_ref().unwrap_or(&Pointer::default())));
            }
            _ => {}
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

/// The styles, as they are written in the configuration.
fn shown_styles(styles: &[Style]) -> String {
    let styles: Vec<String> = styles.iter().map(|style| format!("\"{style}\"")).collect();
    format!("[{}]", styles.join(", "))
}

/// Where the API looks for ids and items.
pub(super) fn places(api: &BatchApi) -> String {
    let (ids, items) = (&api.ids, &api.items);
    let key = |name, value: Option<String>| value.map(|value| format!("{name} = \"{value}\""));
    let shown = [
        key("ids.query", ids.query.as_deref().map(str::to_owned)),
        ids.query.as_ref().map(|_| format!("ids.styles = {}", shown_styles(&ids.styles))),
        key("ids.body", ids.body.as_ref().map(ToString::to_string)),
        key("ids.key", ids.key.as_ref().map(ToString::to_string)),
        key("items.at", Some(items.at.to_string())),
        key("items.key", Some(items.key.as_ref().map_or("*".to_owned(), ToString::to_string))),
        key("items.link", Some(items.link.to_string())),
    ];
    shown.into_iter().flatten().collect::<Vec<_>>().join(", ")
}

fn names<'n>(names: impl IntoIterator<Item = &'n HeaderName>) -> String {
    names.into_iter().map(HeaderName::as_str).collect::<Vec<_>>().join(", ")
}
