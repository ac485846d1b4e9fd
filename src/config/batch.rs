//! Batch APIs: the description of a batch endpoint. It is data, read by `api`: where ids are in a request, items in an answer, and
//! expiries in an item.

mod kinds;
mod path;
mod pointer;
mod presets;

use std::fmt::{self, Display};
use std::str::FromStr;

use http::{HeaderName, Method};
use serde_json::Value;
use siphasher::sip128::SipHasher24;

use super::declare::section;
use super::headers::{credential_header, scope_header_of_api};
use super::kind::{count, flag, texts};
use super::table::TableVisitor;
use kinds::{
    API_NAME, MEDIA_TYPE, deletion, error_body, header_bytes, inner_pointer, is_label, is_media_type, is_name,
    item_key, json_text, method, path_pattern, pointer, pointers, preset_of_name, string_that, strings, styles,
    values_at,
};
pub use path::PathPattern;
pub use pointer::Pointer;

/// The most batch APIs of a configuration: each is a value of the label `api`.
const MAX_APIS: usize = 16;

section! {
    /// The description of one batch API, a table of `[[batch]]`.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct BatchApi: pub(super) fn blank() {
        /// Its name, the label `api` of metrics and log lines.
        pub name: Box<str> = "".into(), string_that(API_NAME, is_label).required("lfs");
        /// The method of its batches, GET or POST; without this key POST where ids are in a body alone. A POST that is described is a read: it may be sent again.
        pub method: Method = Method::GET, method();
        /// The path of its batches: {x} is one segment, {x..} one or more; these captures are part of the scope.
        pub path: PathPattern = PathPattern::default(), path_pattern().required("/{repo..}/info/lfs/objects/batch");
        /// The query parameter, or the member of a body's object, that names a group of ids: a purge may name the group.
        pub group: Option<Box<str>> = None, string_that("a name", is_name).optional("group_id");
        /// The most characters of a group's name.
        pub group_chars: usize = 256, count(1..=65_536);
        /// The only other query parameters, or members of a body's object, that a batch may have; without this key any, as part of the scope.
        pub parameters: Option<Vec<Box<str>>> = None, strings(None).optional(toml::Value::Array(vec!["group_id".into(), "operation".into()]));
        /// Values that a body must have, by JSON Pointer; other requests are forwarded untouched.
        pub when: Vec<(Pointer, Value)> = Vec::new(), values_at(("/operation", "download".into()));
        /// Where an item says when its link expires: JSON Pointers (RFC 3339, Unix time, or seconds from now), and "link" for the URL itself. The earliest of all that are there counts.
        pub expires: Vec<ExpirySource> = vec![ExpirySource::Link], texts(Some("names no source: write \"link\", or leave the key out"), ExpirySource::parse);
        /// An item without a link that has this, and not null, counts as absent, and is answered as it came. So does, in an object keyed by id, an item that is null.
        pub absent: Option<Pointer> = None, inner_pointer().optional("/error");
        /// The headers that say who asks; all of them together are the credential. One at least must be there.
        pub credentials: Vec<HeaderName> = vec![http::header::AUTHORIZATION], texts(Some("names no header: nobody could be told from anybody else"), credential_header);
        /// Whether a request that is signed (SDK-HMAC-SHA256) with one of `callers.keys` says who asks as well.
        pub signed: bool = false, flag();
        /// Headers that may change an answer; those of `callers.scope_headers` count for every batch API.
        pub scope_headers: Vec<HeaderName> = Vec::new(), texts(None, scope_header_of_api);
        /// The most bytes of a credential or scope header, where the endpoint limits them; a batch with a longer one is forwarded untouched.
        pub header_bytes: Vec<(HeaderName, usize)> = Vec::new(), header_bytes();
        /// Lists in a body whose order does not matter, by JSON Pointer.
        pub unordered: Vec<Pointer> = Vec::new(), pointers();
        /// The most ids of one call; larger batches are split.
        pub ids_per_call: usize = 100, count(1..=10_000);
        /// The path of a DELETE that deletes the id in its segment {id}, which is then forgotten.
        pub delete: Option<PathPattern> = None, deletion().optional("/files/{id}");
        /// Where a request has its ids: in the query, in the body, or in either.
        pub ids: Ids = Ids::blank() => table(Ids::visit);
        /// Where an answer has its items.
        pub items: Items = Items::blank() => table(Items::visit);
        /// The shape of its errors.
        pub errors: ErrorShape = ErrorShape::blank() => table(ErrorShape::visit);
    }
}

section! {
    /// `ids` of a batch API: where a request has its ids, in the query, in the body, or in either.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Ids: pub(super) fn blank() {
        /// The query parameter that has ids.
        pub query: Option<Box<str>> = None, string_that("a name", is_name).optional("ids");
        /// How the query may list them: repeated (ids=1&ids=2), comma (ids=1,2), encoded-comma (ids=1%2C2, as libraries write a list that was joined), brackets (ids[]=1&ids[]=2); without this key repeated.
        pub styles: Vec<Style> = Vec::new(), styles();
        /// The list of ids in a body, by JSON Pointer.
        pub body: Option<Pointer> = None, pointer().optional("/objects");
        /// In an element of the list that is an object: its id, by JSON Pointer; without this key elements are ids themselves.
        pub key: Option<Pointer> = None, inner_pointer().optional("/oid");
        /// Whether ids may be integers too, in a body and in answers.
        pub numbers: bool = false, flag();
        /// The most characters of an id; a batch with a longer one is forwarded untouched.
        pub chars: usize = 4096, count(1..=65_536);
    }
}

section! {
    /// `items` of a batch API: where an answer has its items.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct Items: pub(super) fn blank() {
        /// The list, or the object whose members are the items, by JSON Pointer; "" is the whole answer.
        pub at: Pointer = Pointer::default(), pointer().required("/objects");
        /// The id of an item, by JSON Pointer; "*": the item is the member of an object that has the id as its name.
        pub key: Option<Pointer> = None, item_key().required("/oid");
        /// The link of an item, by JSON Pointer; "" is the item itself.
        pub link: Pointer = Pointer::default(), pointer().required("/actions/download/href");
        /// The envelope that answers are given in, a JSON text with an empty list or object where the items are; without this key the endpoint's own, which has to be the same for all items of an answer.
        pub envelope: Option<Box<str>> = None, json_text().optional("{\"objects\":[]}");
    }
}

section! {
    /// `errors` of a batch API: the shape of its errors.
    #[derive(Clone, Debug, PartialEq, Eq)]
    pub struct ErrorShape: pub(super) fn blank() {
        /// An answer with status 200 that has this, and not null, is an error.
        pub code: Option<Pointer> = None, inner_pointer().optional("/error_code");
        /// Values that an answer has where all is well, by JSON Pointer: one with status 200 that has another value there is an error.
        pub unless: Vec<(Pointer, Value)> = Vec::new(), values_at(("/ok", true.into()));
        /// Codes there that are about the request, and not about permission.
        pub of_request: Vec<Box<str>> = Vec::new(), strings(None);
        /// The body of an error of sidelink's own: a JSON text in whose strings {code}, {message}, {status} and {request_id} are replaced; a string that is {status} alone becomes a number.
        pub body: Box<str> = r#"{"error_code":"{code}","error_msg":"{message}","request_id":"{request_id}"}"#.into(), error_body();
        /// The media type of that body.
        pub media_type: Box<str> = "application/json".into(), string_that(MEDIA_TYPE, is_media_type);
    }
}

impl BatchApi {
    /// A text that differs where descriptions say otherwise which request is a batch, or how items and expiries are read. What was kept
    /// under another description is not found under this one. Limits and the shape of errors are no part of it.
    pub(crate) fn fingerprint(&self) -> String {
        let limits = Self::blank();
        let description = Self {
            header_bytes: limits.header_bytes,
            ids_per_call: limits.ids_per_call,
            delete: limits.delete,
            errors: ErrorShape { code: self.errors.code.clone(), unless: self.errors.unless.clone(), ..limits.errors },
            ..self.clone()
        };
        format!("{:032x}", SipHasher24::new().hash(format!("{description:?}").as_bytes()).as_u128())
    }

    /// The fields of an item that say when its link expires.
    pub(crate) fn expiry_fields(&self) -> impl Iterator<Item = &Pointer> {
        self.expires.iter().filter_map(|source| match source {
            ExpirySource::Link => None,
            ExpirySource::Field(place) => Some(place),
        })
    }

    /// Whether a query alone may make a batch: its path has no captures.
    pub(crate) fn is_asked_by_query_alone(&self) -> bool {
        self.ids.query.is_some() && !self.path.has_captures()
    }

    /// Visits each key of a table; `before` are the tables above it.
    pub(super) fn visit(&mut self, before: &[Self], table: &mut TableVisitor<'_>) {
        let mut preset = None;
        let doc =
            "The preset that it begins with; the other keys override the preset's, those of an inner table one by one.";
        table.key("preset", doc, &mut preset, preset_of_name().optional("git-lfs"));
        if table.find("preset").is_some() {
            table.begins_with_preset();
        }
        if let Some(preset) = preset {
            *self = preset;
        }
        let (when, header_bytes) = (self.when.clone(), self.header_bytes.clone());
        self.keys(table);
        add_missing(&mut self.when, when);
        add_missing(&mut self.header_bytes, header_bytes);
        if table.is_there() && table.find("preset").is_none() && table.find("method").is_none() {
            self.method = if self.ids.query.is_none() { Method::POST } else { Method::GET };
        }
        if before.len() == MAX_APIS {
            table.wrong(&format!("is one too many: there may be {MAX_APIS} batch APIs"));
        }
        if table.is_sound() {
            self.check(table);
            self.check_beside(before, table);
        }
    }

    /// Reports what does not fit together in a description.
    fn check(&self, table: &mut TableVisitor<'_>) {
        if self.ids.body.is_none() {
            let why = "is about a body, and the ids are in the query alone: set ids.body";
            for (key, is_empty) in [("when", self.when.is_empty()), ("unordered", self.unordered.is_empty())] {
                if let Some(found) = table.find(key).filter(|_| !is_empty) {
                    found.wrong(why);
                }
            }
        }
        if let Some(list) = &self.ids.body {
            self.check_beside_ids(list, table);
        }
        let ids = [self.ids.query.as_deref(), self.ids.body.as_ref().and_then(Pointer::first)];
        if self.group.is_some() && ids.contains(&self.group.as_deref()) {
            table.wrong_at(&["group", "ids"], "is where the ids are: no batch could name a group");
        }
        if let (Some(group), Some(parameters)) = (&self.group, &self.parameters)
            && !parameters.contains(group)
        {
            let group = group.escape_debug();
            let message = format!("do not have the group \"{group}\", so that no batch could name one");
            table.wrong_at(&["parameters", "group"], &message);
        }
        if self.signed && self.credentials.contains(&http::header::AUTHORIZATION) {
            let message =
                "a signature is in authorization, which is a credential of its own here: name others in credentials";
            table.wrong_at(&["signed", "credentials"], message);
        }
        if let Some(name) = self.scope_headers.iter().find(|name| self.credentials.contains(name)) {
            let message = format!("{name} is one of its credentials, and always part of the scope");
            table.wrong_at(&["scope_headers", "credentials"], &message);
        }
        if let Some(found) = table.find("expires").filter(|_| !self.expires.contains(&ExpirySource::Link)) {
            found.warn("does not name \"link\": if a URL ends earlier than these fields say, a dead link is served. Name \"link\" as well, unless URLs are signed in a format whose expiry is not read");
        }
    }

    /// Reports places of a body that are not beside its list of ids, which differs from batch to batch and from call to call.
    fn check_beside_ids(&self, list: &Pointer, table: &mut TableVisitor<'_>) {
        let conditions = || self.when.iter().map(|(place, _)| place);
        let mut report = |key, mut places: Vec<&Pointer>| {
            places.retain(|place| place.overlaps(list));
            if let [place, ..] = places.as_slice() {
                let message = format!("{place}, of {key}, is not beside the list of ids, which is at \"{list}\"");
                table.wrong_at(&[key, "ids"], &message);
            }
        };
        report("when", conditions().collect());
        report("unordered", self.unordered.iter().collect());
        let known =
            |name: &str| self.parameters.as_ref().is_none_or(|names| names.iter().any(|known| **known == *name));
        let is_known = |place: &&Pointer| place.first().is_some_and(known) || place.first() == list.first();
        if let Some(place) = conditions().find(|place| !is_known(place)) {
            let message = format!("do not have {place}, which when is about: no request could be a batch");
            table.wrong_at(&["parameters", "when"], &message);
        }
    }

    /// Reports what the description has in common with one of those above it.
    fn check_beside(&self, before: &[Self], table: &mut TableVisitor<'_>) {
        if before.iter().any(|other| other.name == self.name) {
            let message = format!("the name \"{}\" is that of a [[batch]] above: set another name", self.name);
            table.wrong_at(&["name", "preset"], &message);
        }
        let is_same = |other: &&Self| other.method == self.method && other.path.overlaps(&self.path);
        if let Some(other) = before.iter().find(is_same)
            // The same preset twice is one error.
            && (table.is_sound() || table.find("path").is_some())
        {
            let message = format!(
                "{} {} overlaps with \"{}\" above, {}: a request could be a batch of both, whatever their `when`; give one another method or a path that the other does not match, or describe one API for both",
                self.method, self.path, other.name, other.path
            );
            table.wrong_at(&["path", "method", "preset"], &message);
        }
    }
}

impl Ids {
    fn visit(&mut self, table: &mut TableVisitor<'_>) {
        table.must_be_there();
        self.keys(table);
        if self.query.is_some() && self.styles.is_empty() {
            self.styles.push(Style::Repeated);
        }
        if !table.is_sound() {
            return;
        }
        if self.query.is_none() && self.body.is_none() {
            table.wrong("says neither where the query nor where the body has ids: set query or body");
        } else if self.query.is_none() {
            table.needs("styles", "query", "is about ids in a query: set query");
        } else if self.body.is_none() {
            table.needs("key", "body", "is about ids in a body: set body");
        }
    }
}

impl Items {
    fn visit(&mut self, table: &mut TableVisitor<'_>) {
        table.must_be_there();
        self.keys(table);
        if let Some(envelope) = self.envelope.as_deref().filter(|_| table.is_sound())
            && !self.fits(envelope)
        {
            let kind = if self.key.is_some() { "list or object" } else { "object" };
            let at = &self.at;
            let message = format!("has no empty {kind} at \"{at}\", which is where items.at has the items");
            table.wrong_at(&["envelope", "at"], &message);
        }
    }

    fn fits(&self, envelope: &str) -> bool {
        let envelope: Value = serde_json::from_str(envelope).unwrap_or_default();
        match envelope.pointer(&self.at.to_string()) {
            Some(Value::Array(items)) => items.is_empty() && self.key.is_some(),
            Some(Value::Object(items)) => items.is_empty(),
            _ => false,
        }
    }
}

impl ErrorShape {
    fn visit(&mut self, table: &mut TableVisitor<'_>) {
        self.keys(table);
        if table.is_sound() && self.code.is_none() && !self.of_request.is_empty() {
            table.needs("of_request", "code", "are codes of an error with status 200: set code, which says where");
        }
    }
}

/// Adds the values of a preset that are not overridden, in the order of their names.
fn add_missing<K: Display + PartialEq, V>(values: &mut Vec<(K, V)>, preset: Vec<(K, V)>) {
    for (name, value) in preset {
        if !values.iter().any(|(known, _)| *known == name) {
            values.push((name, value));
        }
    }
    values.sort_by_cached_key(|(name, _)| name.to_string());
}

/// How a query lists ids.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Style {
    /// `ids=1&ids=2`
    Repeated,
    /// `ids=1,2`
    Comma,
    /// `ids=1%2C2`
    EncodedComma,
    /// `ids[]=1&ids[]=2`
    Brackets,
}

const STYLES: [(&str, Style); 4] = [
    ("repeated", Style::Repeated),
    ("comma", Style::Comma),
    ("encoded-comma", Style::EncodedComma),
    ("brackets", Style::Brackets),
];

impl Style {
    fn parse(text: &str, before: &[Self]) -> Result<Self, String> {
        let style = STYLES.iter().find(|(name, _)| *name == text).map(|(_, style)| *style);
        match style {
            Some(style) if before.contains(&style) => Err(format!("names {style} twice")),
            Some(style) => Ok(style),
            None => Err(format!("must be repeated, comma, encoded-comma or brackets, is \"{}\"", text.escape_debug())),
        }
    }
}

impl Display for Style {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(STYLES.iter().find(|(_, style)| style == self).map_or("", |(name, _)| *name))
    }
}

/// Where an item says when its link expires.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ExpirySource {
    /// In the URL of the link.
    Link,
    /// In a field: RFC 3339, or a number (below 10⁹ seconds from now, below 10¹¹ Unix seconds, else Unix milliseconds).
    Field(Pointer),
}

impl ExpirySource {
    fn parse(text: &str, before: &[Self]) -> Result<Self, String> {
        let source = match text {
            "link" => Self::Link,
            field if field.starts_with('/') => Self::Field(Pointer::from_str(field)?),
            other => {
                let other = other.escape_debug();
                return Err(format!(
                    "\"{other}\" is no source: write \"link\", or a JSON Pointer such as \"/expires_at\""
                ));
            }
        };
        if before.contains(&source) { Err(format!("names {source} twice")) } else { Ok(source) }
    }
}

impl Display for ExpirySource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Link => f.write_str("link"),
            Self::Field(pointer) => pointer.fmt(f),
        }
    }
}
