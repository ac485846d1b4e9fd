//! Reads batches, as a [`BatchApi`] describes them: in a query, one parameter for each id, with brackets or without, or ids between
//! commas; or as a list in a JSON body. [`super::call`] writes the calls for their misses in the same form.
//!
//! **To add a form, add it to [`Form`]**, and to
//! - [`Batch::read`], which reads it, and `super::call`, which writes its calls;
//! - `cache::answers::Written`, if a batch's text is neither the query nor the body;
//! - `cache_control` in `batch::respond`, if the URL does not name the batch;
//! - `batch::explain`, which shows its name.
//!
//! A request that is not exactly a batch is forwarded untouched. All of it except its ids is part of its scope
//! (`auth::Scope::of_batch`), and goes upstream byte for byte. An id or a group with an unencoded `+` in a query is named by its
//! spelling ([`id`]).

use std::borrow::Cow;
use std::collections::HashMap;

use http::header::CONTENT_ENCODING;
use memchr::{memchr, memchr_iter};
use percent_encoding::percent_decode_str;
use serde_json::Value;
use serde_json::value::RawValue;

use super::alike::{self, Alike};
use super::id::{self, Group};
use super::json::{self, Members};
use super::misfit::{ElementMisfit, Misfit};
use crate::config::batch::{BatchApi, Pointer, Style};
use crate::message::header_filter::Headers;
use crate::telemetry::metrics::Bypass;

/// How a client wrote its batch; the misses go upstream in the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// A query parameter for each id.
    Repeated,
    /// One query parameter, ids between commas.
    Comma,
    /// One query parameter, ids between percent-encoded commas.
    EncodedComma,
    /// A query parameter for each id, with brackets after its name.
    Brackets,
    /// A list in a JSON body.
    Body,
}

impl Form {
    /// Its name for people.
    pub fn name(self) -> &'static str {
        match self {
            Self::Repeated => "repeated",
            Self::Comma => "comma",
            Self::EncodedComma => "encoded-comma",
            Self::Brackets => "brackets",
            Self::Body => "body",
        }
    }
}

/// A batch, read from a query or a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<'r> {
    /// How it was written.
    pub form: Form,
    /// The group.
    pub group: Group<'r>,
    /// The ids in the order asked; an id that was asked twice is here twice.
    pub ids: Vec<Id<'r>>,
    /// The request without its ids.
    pub(super) around: Around<'r>,
    /// The request without its ids and its group, as fields of the scope.
    rest: Vec<Cow<'r, str>>,
}

/// An id of a batch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Id<'r> {
    /// Its name ([`id`]).
    pub name: Cow<'r, str>,
    /// As its client wrote it: its spelling in the query, or its element in the body.
    pub written: &'r str,
    /// Whether its element has more in it than the id. That is part of what is asked, so the whole element is part of the key.
    is_qualified: bool,
}

/// The request of a batch without its ids, byte for byte.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Around<'r> {
    /// The query, in which the ids' parameter is spelled `name`, with the separator of ids in one value.
    Query { name: &'r str, separator: &'static str, query: &'r str },
    /// The query, and the body up to the list and after it.
    Body { query: Option<&'r str>, before: &'r str, after: &'r str },
}

/// Why a request is no batch, and is forwarded untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NotABatch {
    /// It is not exactly as the API is described.
    Unreadable(Misfit),
    /// A value of its body is not as `when` says: it asks for something else.
    Condition,
}

impl NotABatch {
    /// The reason that is counted.
    pub fn reason(self) -> Bypass {
        match self {
            Self::Unreadable(Misfit::EmptyList) => Bypass::NoIds,
            Self::Unreadable(_) => Bypass::Unreadable,
            Self::Condition => Bypass::Condition,
        }
    }
}

impl<'r> Batch<'r> {
    /// Reads a request on the route of `api`; `query` is the raw query, `body` the whole body.
    ///
    /// # Errors
    /// [`NotABatch`], if it is no batch.
    pub fn read<'m>(
        api: &BatchApi,
        query: Option<&'r str>,
        headers: impl Into<Headers<'m>>,
        body: &'r [u8],
    ) -> Result<Self, NotABatch> {
        let query = query.filter(|query| !query.is_empty());
        if headers.into().contains(&CONTENT_ENCODING) {
            return Err(NotABatch::Unreadable(Misfit::Coded));
        }
        match (query, body, &api.ids.query, &api.ids.body) {
            (Some(query), [], Some(name), _) => Self::from_query(api, name, query),
            // Where other parameters are named, they are named for one place, and a batch has nothing in the other.
            (query, [_, ..], name, Some(list))
                if query.is_none_or(|query| api.parameters.is_none() && !has_ids(query, name.as_deref())) =>
            {
                Self::from_body(api, list, query, body)
            }
            (Some(query), [_, ..], name, list) if list.is_some() || has_ids(query, name.as_deref()) => {
                Err(NotABatch::Unreadable(Misfit::Both))
            }
            _ => Err(NotABatch::Unreadable(Misfit::NoIds)),
        }
    }

    fn from_query(api: &BatchApi, name: &str, query: &'r str) -> Result<Self, NotABatch> {
        let has = |byte| memchr(byte, query.as_bytes()).is_some();
        let mut ids: Vec<Id<'r>> = Vec::with_capacity(1 + memchr_iter(b'&', query.as_bytes()).count());
        // By its spelling first: most are spelled as they are named.
        let id = |written: &'r str| Id { name: Cow::Borrowed(written), written, is_qualified: false };
        let (mut spelled, mut brackets) = (None, 0);
        let takes = |style| api.ids.styles.contains(&style);
        let (mut group, mut rest) = (Group::Absent, Vec::new());
        for pair in pieces(query, b'&') {
            // The usual spelling of the name: nothing to decode.
            if pair.as_bytes().get(name.len()) == Some(&b'=')
                && let Some(value) = pair.strip_prefix(name).and_then(|rest| rest.get(1..))
            {
                spelled = spelled.or(pair.get(..name.len()));
                ids.push(id(value));
                continue;
            }
            let (spelling, value) = pair.split_once('=').map_or((pair, None), |(name, value)| (name, Some(value)));
            let decoded = decode(spelling)?;
            let is_brackets = decoded.strip_suffix("[]") == Some(name);
            match value {
                _ if is_brackets && !takes(Style::Brackets) => {
                    return Err(NotABatch::Unreadable(Misfit::Style));
                }
                Some(value) if is_brackets || decoded == name => {
                    spelled = spelled.or(Some(spelling));
                    brackets += usize::from(is_brackets);
                    ids.push(id(value));
                    continue;
                }
                Some(value) if api.group.as_deref() == Some(&*decoded) && group == Group::Absent => {
                    group = Group::Named(name_of(value, |text| is_group(api, text), Misfit::Group)?);
                }
                _ if api.group.as_deref() == Some(&*decoded) => return Err(NotABatch::Unreadable(Misfit::Group)),
                _ if is_brackets || decoded == name => return Err(NotABatch::Unreadable(Misfit::Id)),
                _ if pair.is_empty() || !is_parameter(api, &decoded) => {
                    return Err(NotABatch::Unreadable(Misfit::Parameter));
                }
                _ => rest.push(Cow::Borrowed(pair)),
            }
        }
        let separator = separator_of(api, query, &ids)?;
        let form = match (ids.as_slice(), separator) {
            ([], _) => return Err(NotABatch::Unreadable(Misfit::NoIds)),
            ([_], Some(",")) if brackets == 0 => Form::Comma,
            ([_], Some(_)) if brackets == 0 => Form::EncodedComma,
            (_, Some(_)) => return Err(NotABatch::Unreadable(Misfit::Style)),
            _ if brackets == ids.len() => Form::Brackets,
            _ if brackets == 0 && takes(Style::Repeated) => Form::Repeated,
            ([_], None) if brackets == 0 && takes(Style::Comma) => Form::Comma,
            ([_], None) if brackets == 0 && takes(Style::EncodedComma) => Form::EncodedComma,
            _ => return Err(NotABatch::Unreadable(Misfit::Style)),
        };
        match (form, ids.as_slice(), separator) {
            (Form::Comma, [list], Some(_)) => ids = pieces(list.written, b',').map(id).collect(),
            (Form::EncodedComma, [list], Some(separator)) => ids = list.written.split(separator).map(id).collect(),
            _ => {}
        }
        let is_valid = |text: &str| is_id(api, text);
        if has(b'%') || has(b'+') {
            for id in &mut ids {
                id.name = name_of(id.written, is_valid, Misfit::Id)?;
            }
        } else if !ids.iter().all(|id| is_valid(id.written)) {
            return Err(NotABatch::Unreadable(Misfit::Id));
        }
        let name = spelled.ok_or(NotABatch::Unreadable(Misfit::NoIds))?;
        let separator = separator.unwrap_or(if form == Form::Comma { "," } else { ENCODED_COMMAS[0] });
        let around = Around::Query { name, separator, query };
        Ok(Self { form, group, ids, around, rest })
    }

    fn from_body(api: &BatchApi, list: &Pointer, query: Option<&'r str>, body: &'r [u8]) -> Result<Self, NotABatch> {
        let misfit = NotABatch::Unreadable;
        let text = std::str::from_utf8(body).map_err(|_| misfit(Misfit::NotJson))?;
        let (whole, members) = match list.tokens() {
            [] => (Some(serde_json::from_str(text).map_err(|_| misfit(Misfit::NotJson))?), Vec::new()),
            _ => (None, json::members(text).ok_or_else(|| misfit(Misfit::of_no_object(text)))?),
        };
        let find = |pointer: &Pointer| match pointer.tokens() {
            [] => whole,
            _ => json::find_in(&members, pointer),
        };
        for (pointer, wanted) in &api.when {
            let value = find(pointer).and_then(|value| serde_json::from_str::<Value>(value.get()).ok());
            if value.as_ref() != Some(wanted) {
                return Err(NotABatch::Condition);
            }
        }
        let group = match api.group.as_deref().and_then(|name| members.iter().find(|(known, _)| known == name)) {
            None => Group::Absent,
            Some((_, value)) if value.get() == "null" => Group::Null,
            Some((_, value)) => Group::Named(json::string(value).ok_or(misfit(Misfit::Group))?),
        };
        if !group.name().is_none_or(|name| is_group(api, name)) {
            return Err(misfit(Misfit::Group));
        }
        let list = find(list).ok_or(misfit(Misfit::NoList))?.get();
        let ids: Option<Vec<Id<'r>>> = match alike(api, list) {
            Some(Alike { elements, have_more }) => {
                let id = |(name, written)| Id { name: Cow::Borrowed(name), written, is_qualified: have_more };
                elements.into_iter().map(id).map(|id| is_id(api, &id.name).then_some(id)).collect()
            }
            None => json::elements(list)
                .and_then(|elements| elements.into_iter().map(|element| id_of(api, element)).collect()),
        };
        let ids =
            ids.filter(|ids| !ids.is_empty() && is_unambiguous(ids)).ok_or_else(|| misfit(misfit_of(api, list)))?;
        let rest = rest_of_body(api, &members, list).ok_or(misfit(Misfit::Parameter))?;
        let rest = if query.is_some() || !rest.is_empty() {
            // No parameter of a query has an ampersand in it: a batch in the body is never taken for one in the query.
            let query = Cow::Owned(format!("&{}", query.unwrap_or_default()));
            [query].into_iter().chain(rest).collect()
        } else {
            rest
        };
        let range = json::range_of(text, list).ok_or(misfit(Misfit::NoList))?;
        let (Some(before), Some(after)) = (text.get(..range.start), text.get(range.end..)) else {
            return Err(misfit(Misfit::NoList));
        };
        Ok(Self { form: Form::Body, group, ids, around: Around::Body { query, before, after }, rest })
    }

    /// The request without its ids and its group, as fields of the scope.
    pub fn rest(&self) -> &[Cow<'r, str>] {
        &self.rest
    }
}

impl AsRef<str> for Id<'_> {
    fn as_ref(&self) -> &str {
        &self.name
    }
}

impl Id<'_> {
    /// What its element says beside the id, which names its entry together with the id.
    pub fn qualifier(&self) -> Option<&str> {
        self.is_qualified.then_some(self.written)
    }
}

/// The elements of the list in a body, if they are alike.
fn alike<'r>(api: &BatchApi, list: &'r str) -> Option<Alike<'r>> {
    match api.ids.key.as_ref().map(Pointer::tokens) {
        None => alike::read(list, None),
        Some([key]) => alike::read(list, Some(key)),
        Some(_) => None,
    }
}

/// The id that an element of the list names.
fn id_of<'r>(api: &BatchApi, element: &'r RawValue) -> Option<Id<'r>> {
    let written = element.get();
    let (value, is_qualified) = match &api.ids.key {
        Some(key) if written.starts_with('{') => {
            let members = json::members(written)?;
            let is_qualified = members.len() > 1 || key.tokens().len() > 1;
            (json::find_in(&members, key)?, is_qualified)
        }
        // Where elements are objects, a bare id asks for something else.
        key => (element, key.is_some()),
    };
    let name = json::string(value).map(|name| Some(name).filter(|name| is_id(api, name)));
    let is_number = |text: &&str| api.ids.numbers && is_id(api, text);
    let number = || json::integer(value).filter(is_number).map(|text| Cow::Owned(id::name_of_number(text)));
    Some(Id { name: name.unwrap_or_else(number)?, written, is_qualified })
}

/// Why the list of a body names no ids.
#[cold]
fn misfit_of(api: &BatchApi, list: &str) -> Misfit {
    let Some(elements) = json::elements(list) else { return Misfit::NoList };
    match elements.iter().position(|element| id_of(api, element).is_none()) {
        Some(at) => {
            Misfit::element(at, elements.get(at).map_or(ElementMisfit::Kind, |element| element_misfit(api, element)))
        }
        None if elements.is_empty() => Misfit::EmptyList,
        None => Misfit::Ambiguous,
    }
}

/// Why an element names no id.
fn element_misfit(api: &BatchApi, element: &RawValue) -> ElementMisfit {
    let id = match (&api.ids.key, element.get().starts_with('{')) {
        (None, true) => return ElementMisfit::Object,
        (Some(key), true) => json::members(element.get()).and_then(|members| json::find_in(&members, key)),
        (_, false) => Some(element),
    };
    match id {
        None => ElementMisfit::NoKey,
        Some(id) if json::string(id).is_some() => ElementMisfit::Length,
        Some(id) if json::integer(id).is_some() && !api.ids.numbers => ElementMisfit::Number,
        Some(id) if json::integer(id).is_some() => ElementMisfit::Length,
        Some(_) => ElementMisfit::Kind,
    }
}

/// Whether no two elements name the same id and ask for different things: whose item is whose could not be told.
fn is_unambiguous(ids: &[Id<'_>]) -> bool {
    if !ids.iter().any(|id| id.is_qualified) {
        return true;
    }
    let mut elements = HashMap::with_capacity(ids.len());
    ids.iter().all(|id| *elements.entry(&*id.name).or_insert(id.written) == id.written)
}

/// The members of a body beside group and ids, as fields: sorted by name, since their order means nothing; without the list of ids,
/// and with lists whose order means nothing sorted. `None`: there is one that a batch may not have.
fn rest_of_body<'r>(api: &BatchApi, members: &Members<'r>, list: &'r str) -> Option<Vec<Cow<'r, str>>> {
    // Found once: a body may have thousands of members.
    let sorted = |pointer: &Pointer| {
        let found = json::find_in(members, pointer)?.get();
        let mut elements: Vec<&str> = json::elements(found)?.into_iter().map(RawValue::get).collect();
        elements.sort_unstable();
        Some((found, format!("[{}]", elements.join(","))))
    };
    let unordered: Vec<(&str, String)> = api.unordered.iter().filter_map(sorted).collect();
    let mut rest = Vec::new();
    for (name, value) in members {
        let value = value.get();
        if api.group.as_deref() == Some(&**name) || std::ptr::eq(value, list) {
            continue;
        }
        if !is_parameter(api, name) && json::range_of(value, list).is_none() {
            return None;
        }
        rest.push((name.clone(), without_order(&unordered, value, list)));
    }
    rest.sort_unstable();
    Some(rest.into_iter().flat_map(|(name, value)| [name, value]).collect())
}

/// The text of a member without the list of ids in it, and with the elements of unordered lists sorted.
fn without_order<'r>(unordered: &[(&str, String)], value: &'r str, list: &str) -> Cow<'r, str> {
    let mut changes = Vec::new();
    if let Some(range) = json::range_of(value, list) {
        changes.push((range, ""));
    }
    changes
        .extend(unordered.iter().filter_map(|(found, sorted)| Some((json::range_of(value, found)?, sorted.as_str()))));
    if changes.is_empty() {
        return Cow::Borrowed(value);
    }
    changes.sort_unstable_by_key(|(range, _)| range.start);
    let (mut text, mut from) = (String::with_capacity(value.len()), 0);
    for (range, change) in changes {
        // One list within another is covered by the outer one.
        if range.start >= from {
            text.push_str(value.get(from..range.start).unwrap_or_default());
            text.push_str(change);
            from = range.end;
        }
    }
    text.push_str(value.get(from..).unwrap_or_default());
    Cow::Owned(text)
}

/// The spellings of a percent-encoded comma.
const ENCODED_COMMAS: [&str; 2] = ["%2C", "%2c"];

/// The separator of ids in one value; `None` if no value is a list that the API accepts.
fn separator_of(api: &BatchApi, query: &str, ids: &[Id<'_>]) -> Result<Option<&'static str>, NotABatch> {
    let has = |byte| memchr(byte, query.as_bytes()).is_some();
    let is_used = |separator: &str| ids.iter().any(|id| id.written.contains(separator));
    let takes = |style| api.ids.styles.contains(&style);
    // An endpoint that splits after decoding splits at plain and at encoded commas, so no id contains a comma.
    let (takes_plain, takes_encoded) = (takes(Style::Comma), takes(Style::EncodedComma));
    let plain = ((takes_plain || takes_encoded) && has(b',') && is_used(",")).then_some(",");
    let encoded = ENCODED_COMMAS.into_iter().filter(|comma| takes_encoded && has(b'%') && is_used(comma));
    let mut found = plain.into_iter().chain(encoded);
    match (found.next(), found.next()) {
        (Some(","), None) if !takes_plain => Err(NotABatch::Unreadable(Misfit::Style)),
        (separator, None) => Ok(separator),
        _ => Err(NotABatch::Unreadable(Misfit::Style)),
    }
}

/// Whether a query has the ids' parameter `name`.
fn has_ids(query: &str, name: Option<&str>) -> bool {
    let is_ids = |pair: &str| {
        let spelled = decode(pair.split('=').next().unwrap_or_default());
        spelled.is_ok_and(|spelled| name.is_some_and(|name| spelled.strip_suffix("[]").unwrap_or(&spelled) == name))
    };
    query.split('&').any(is_ids)
}

/// Splits at an ASCII character. (`str::split` is several times slower on pieces this short: docs/BENCHMARKS.md.)
fn pieces(text: &str, separator: u8) -> impl Iterator<Item = &str> {
    let ends = memchr_iter(separator, text.as_bytes()).chain([text.len()]);
    ends.scan(0, move |begin, end| {
        let piece = text.get(*begin..end);
        *begin = end + 1;
        piece
    })
}

/// Whether a batch may have a parameter, or a member of its body, of this name, beside ids and group.
fn is_parameter(api: &BatchApi, name: &str) -> bool {
    api.parameters.as_ref().is_none_or(|known| known.iter().any(|known| **known == *name))
}

/// Whether `text` may be an id of `api`.
pub fn is_id(api: &BatchApi, text: &str) -> bool {
    has_length(text, api.ids.chars)
}

/// Whether `text` may be a group of `api`; it may be empty.
pub fn is_group(api: &BatchApi, text: &str) -> bool {
    text.is_empty() || has_length(text, api.group_chars)
}

fn has_length(text: &str, most: usize) -> bool {
    let is_short = text.len() <= most || text.chars().count() <= most;
    !text.is_empty() && is_short && !id::is_reserved(text)
}

fn check(text: Cow<'_, str>, is_valid: impl Fn(&str) -> bool, misfit: Misfit) -> Result<Cow<'_, str>, NotABatch> {
    if is_valid(&text) { Ok(text) } else { Err(NotABatch::Unreadable(misfit)) }
}

/// The name of an id or group that a query spells so, if its text `is_valid`. (Plus and space are one character each.)
fn name_of(spelling: &str, is_valid: impl Fn(&str) -> bool, misfit: Misfit) -> Result<Cow<'_, str>, NotABatch> {
    let text = check(decode(spelling)?, is_valid, misfit)?;
    Ok(if spelling.contains('+') { Cow::Owned(id::name_of_spelling(spelling)) } else { text })
}

pub(super) fn decode(text: &str) -> Result<Cow<'_, str>, NotABatch> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    // The library decodes a stray percent sign to itself. Servers may read it otherwise.
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        if !after.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(NotABatch::Unreadable(Misfit::Undecodable));
        }
        rest = after;
    }
    percent_decode_str(text).decode_utf8().map_err(|_| NotABatch::Unreadable(Misfit::Undecodable))
}

#[cfg(test)]
mod tests;
