//! Reads batches, and writes calls for their misses, in three forms:
//!
//! 1. [`Form::Repeated`]: `?accessory_ids=1&accessory_ids=2&group_id=g` (what the SDKs send);
//! 2. [`Form::Comma`]: `?accessory_ids=1,2`; an encoded comma belongs to an id;
//! 3. [`Form::Body`]: the same names as a JSON object in the body of the GET.
//!
//! **To add a form, add it to [`Form`]**, and to
//! - [`Batch::read`], which reads it;
//! - [`target`], [`target_bytes`] and [`body`], which write its calls;
//! - `cache::answers::Written`, if a batch's text is neither the query nor the body;
//! - `cache_control` in `batch::respond`, if the URL does not name the batch;
//! - `batch::explain`, which shows its name.
//!
//! A request that is not exactly one of these is forwarded untouched. An id or a group with an unencoded `+` is named by its
//! spelling ([`id`]), and goes upstream as it is spelled.

use std::borrow::Cow;

use bytes::Bytes;
use http::header::CONTENT_ENCODING;
use memchr::{memchr, memchr_iter};
use percent_encoding::{percent_decode_str, utf8_percent_encode};
use serde::Deserialize;
use serde::de::Deserializer;

use crate::api;
use crate::api::ENCODED;
use crate::api::id::{self, Group};
use crate::message::header_filter::Headers;

/// How a client wrote its batch; the misses go upstream in the same form.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Form {
    /// A query parameter for each id.
    Repeated,
    /// One query parameter, ids between commas.
    Comma,
    /// A JSON object in the body.
    Body,
}

/// A batch, read from a query or a body.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Batch<'r> {
    /// How it was written.
    pub form: Form,
    /// The group.
    pub group: Group<'r>,
    /// The names of the ids in the order asked; an id that was asked twice is here twice.
    pub ids: Vec<Cow<'r, str>>,
}

/// The request is no batch, and is forwarded untouched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotABatch;

impl<'r> Batch<'r> {
    /// Reads a request on the batch route; `query` is the raw query, `body` the whole body.
    ///
    /// # Errors
    /// [`NotABatch`], if it is no batch.
    pub fn read<'m>(
        query: Option<&'r str>,
        headers: impl Into<Headers<'m>>,
        body: &'r [u8],
    ) -> Result<Self, NotABatch> {
        let query = query.filter(|query| !query.is_empty());
        if headers.into().contains(&CONTENT_ENCODING) {
            return Err(NotABatch);
        }
        match (query, body.is_empty()) {
            (Some(query), true) => Self::from_query(query),
            (None, false) => Self::from_body(body),
            (Some(_), false) | (None, true) => Err(NotABatch),
        }
    }

    fn from_query(query: &'r str) -> Result<Self, NotABatch> {
        let has = |byte| memchr(byte, query.as_bytes()).is_some();
        let mut values = Vec::with_capacity(1 + memchr_iter(b'&', query.as_bytes()).count());
        let mut group = Group::Absent;
        for pair in pieces(query, b'&') {
            // The usual spelling of the name: nothing to decode.
            if let Some(value) = pair.strip_prefix(api::IDS).and_then(|rest| rest.strip_prefix('=')) {
                values.push(value);
                continue;
            }
            let (name, value) = pair.split_once('=').ok_or(NotABatch)?;
            match decode(name)?.as_ref() {
                api::IDS => values.push(value),
                api::GROUP if group == Group::Absent => group = Group::Named(name_of(value, is_group)?),
                _ => return Err(NotABatch),
            }
        }
        let comma = has(b',') && values.iter().any(|value| value.contains(','));
        let form = match values.as_slice() {
            [_] if comma => Form::Comma,
            _ if comma => return Err(NotABatch),
            _ => Form::Repeated,
        };
        let ids = match values.as_slice() {
            [list] if comma => pieces(list, b',').map(|id| name_of(id, is_id)).collect::<Result<_, _>>()?,
            _ if has(b'%') || has(b'+') => values.into_iter().map(|id| name_of(id, is_id)).collect::<Result<_, _>>()?,
            _ => values.into_iter().map(|id| check(Cow::Borrowed(id), is_id)).collect::<Result<_, _>>()?,
        };
        Self::build(form, group, ids)
    }

    fn from_body(body: &'r [u8]) -> Result<Self, NotABatch> {
        // serde would also take a list of the values for an object.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(NotABatch);
        }
        let read: BodyForm<'_> = serde_json::from_slice(body).map_err(|_| NotABatch)?;
        if !read.group_id.name().is_none_or(is_group) {
            return Err(NotABatch);
        }
        let ids = read.accessory_ids.into_iter().map(|id| check(id.0, is_id)).collect::<Result<_, _>>()?;
        Self::build(Form::Body, read.group_id, ids)
    }

    fn build(form: Form, group: Group<'r>, ids: Vec<Cow<'r, str>>) -> Result<Self, NotABatch> {
        if ids.is_empty() { Err(NotABatch) } else { Ok(Self { form, group, ids }) }
    }
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

/// Whether `text` may be an id: 1 to 64 characters.
pub fn is_id(text: &str) -> bool {
    has_length(text, api::ID_CHARS)
}

/// Whether `text` may be a batch's group: up to 32 characters.
pub fn is_group(text: &str) -> bool {
    text.is_empty() || has_length(text, api::GROUP_CHARS)
}

fn has_length(text: &str, most: usize) -> bool {
    let is_short = text.len() <= most || text.chars().count() <= most;
    !text.is_empty() && is_short && !id::is_reserved(text)
}

fn check(text: Cow<'_, str>, is_valid: impl Fn(&str) -> bool) -> Result<Cow<'_, str>, NotABatch> {
    if is_valid(&text) { Ok(text) } else { Err(NotABatch) }
}

/// The name of an id or group that a query spells so, if its text `is_valid`. (Plus and space are one character each.)
fn name_of(spelling: &str, is_valid: impl Fn(&str) -> bool) -> Result<Cow<'_, str>, NotABatch> {
    let text = check(decode(spelling)?, is_valid)?;
    Ok(if spelling.contains('+') { Cow::Owned(id::name_of_spelling(spelling)) } else { text })
}

/// Appends an id or group to a target; one with two readings as its client spelled it.
fn push(target: &mut String, name: &str) {
    match id::spelling(name) {
        Some(spelling) => target.push_str(spelling),
        None => target.extend(utf8_percent_encode(name, ENCODED)),
    }
}

/// Bytes that [`push`] writes.
fn pushed_bytes(name: &str) -> usize {
    let encoded = || utf8_percent_encode(name, ENCODED).map(str::len).sum();
    id::spelling(name).map_or_else(encoded, str::len)
}

fn decode(text: &str) -> Result<Cow<'_, str>, NotABatch> {
    if !text.contains('%') {
        return Ok(Cow::Borrowed(text));
    }
    // The library decodes a stray percent sign to itself. Servers may read it otherwise.
    let mut rest = text;
    while let Some((_, after)) = rest.split_once('%') {
        if !after.as_bytes().get(..2).is_some_and(|hex| hex.iter().all(u8::is_ascii_hexdigit)) {
            return Err(NotABatch);
        }
        rest = after;
    }
    percent_decode_str(text).decode_utf8().map_err(|_| NotABatch)
}

/// The request target of a call.
pub fn target<'a>(form: Form, group: &Group<'_>, ids: impl Iterator<Item = &'a str>) -> String {
    let mut target = String::from(api::PATH);
    for (index, id) in ids.enumerate() {
        match form {
            Form::Body => return target,
            Form::Comma if index > 0 => target.push(','),
            Form::Repeated | Form::Comma => {
                target.push(if index == 0 { '?' } else { '&' });
                target.push_str(api::IDS);
                target.push('=');
            }
        }
        push(&mut target, id);
    }
    if let (Group::Named(group), Form::Repeated | Form::Comma) = (group, form) {
        target.push('&');
        target.push_str(api::GROUP);
        target.push('=');
        push(&mut target, group);
    }
    target
}

/// The most bytes that `id` adds to a target.
pub fn target_bytes(form: Form, id: &str) -> usize {
    match form {
        Form::Repeated => api::IDS.len() + 2 + pushed_bytes(id),
        Form::Comma => 1 + pushed_bytes(id),
        Form::Body => 0,
    }
}

/// The body of a call; empty for the query forms.
pub fn body<'a>(form: Form, group: &Group<'_>, ids: impl Iterator<Item = &'a str>) -> Bytes {
    if form != Form::Body {
        return Bytes::new();
    }
    let mut body = serde_json::Map::new();
    if let Some(group) = group.to_json() {
        body.insert(api::GROUP.into(), group);
    }
    body.insert(api::IDS.into(), ids.collect());
    serde_json::Value::Object(body).to_string().into()
}

/// The body form, read strictly: each name once, no other name, strings only.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct BodyForm<'a> {
    #[serde(borrow, default, deserialize_with = "read_group")]
    group_id: Group<'a>,
    #[serde(borrow)]
    accessory_ids: Vec<JsonString<'a>>,
}

/// Reads a group that is there.
fn read_group<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Group<'de>, D::Error> {
    let name = Option::<JsonString<'_>>::deserialize(deserializer)?;
    Ok(name.map_or(Group::Null, |name| Group::Named(name.0)))
}

/// A string, borrowed where the text has no escapes. (serde's own `Cow` always copies.)
#[derive(Deserialize)]
#[serde(transparent)]
pub(crate) struct JsonString<'a>(#[serde(borrow)] pub(crate) Cow<'a, str>);

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use http::HeaderMap;

    fn query(query: &str) -> Result<Batch<'_>, NotABatch> {
        Batch::read(Some(query), &HeaderMap::new(), b"")
    }

    fn json(body: &str) -> Result<Batch<'_>, NotABatch> {
        Batch::read(None, &HeaderMap::new(), body.as_bytes())
    }

    fn batch<'r>(form: Form, group: Option<&'r str>, ids: &[&'r str]) -> Result<Batch<'r>, NotABatch> {
        Ok(Batch { form, group: group.into(), ids: ids.iter().map(|id| Cow::Borrowed(*id)).collect() })
    }

    #[test]
    fn the_three_forms_are_told_apart() {
        assert_eq!(
            query("accessory_ids=1&accessory_ids=3%20x&accessory_ids=b%2F2&group_id=g1"),
            batch(Form::Repeated, Some("g1"), &["1", "3 x", "b/2"])
        );
        assert_eq!(query("accessory_ids=1,2%2C3"), batch(Form::Comma, None, &["1", "2,3"]));
        assert_eq!(query("accessory_ids=2%2C3"), batch(Form::Repeated, None, &["2,3"]));
        assert_eq!(
            json(r#"{ "group_id" : "1", "accessory_ids" : [ "1", "\u9644" ] }"#),
            batch(Form::Body, Some("1"), &["1", "附"])
        );
        let borrowed = json(r#"{"accessory_ids":["1"]}"#).unwrap().ids;
        assert!(matches!(borrowed.as_slice(), [Cow::Borrowed("1")]), "a text without escapes is not copied");
    }

    #[test]
    fn what_is_not_exactly_a_batch_is_not_read() {
        let long = "x".repeat(65);
        for text in [
            "",
            "&",
            "=",
            "accessory_ids",
            "accessory_ids=",
            "accessory_ids=1,",
            "accessory_ids=,1",
            "accessory_ids=1&",
            "accessory_ids=1&accessory_ids=",
            "accessory_ids=1&x=2",
            "accessory_ids=1&Group_id=2",
            "group_id=1",
            "accessory_ids=1&group_id=1&group_id=1",
            "accessory_ids=1&group_id=&group_id=",
            "accessory_ids=+%ff",
            "accessory_ids=%EF%BF%BFa",
            "accessory_ids=%ff",
            "accessory_ids=%2",
            "accessory_ids=%",
            "accessory_ids=%zz",
            "accessory_ids=1,2&accessory_ids=3",
            &format!("accessory_ids={long}"),
            "accessory_ids=1&group_id=123456789012345678901234567890123",
            "accessory_ids[]=1",
        ] {
            assert_eq!(query(text), Err(NotABatch), "{text}");
        }
        for text in [
            "{}",
            "[]",
            r#" ["g",["1"]]"#,
            r#"[["1"],"g"]"#,
            "x",
            "null",
            r#"{"accessory_ids":[]}"#,
            r#"{"accessory_ids":"1"}"#,
            r#"{"accessory_ids":[1]}"#,
            r#"{"accessory_ids":[null]}"#,
            r#"{"accessory_ids":[""]}"#,
            r#"{"accessory_ids":["1"],"x":1}"#,
            r#"{"accessory_ids":["1"],"group_id":1}"#,
            r#"{"accessory_ids":["1"],"group_id":null,"group_id":null}"#,
            r#"{"accessory_ids":["\uffffa"]}"#,
            r#"{"accessory_ids":["1"],"accessory_ids":["2"]}"#,
            r#"{"accessory_ids":["1"],"group_id":"a","group_id":"a"}"#,
            r#"{"accessory_ids":["1"]}x"#,
            r#"{"accessory_ids":["1"]"#,
            r#"{"accessory_ids":["\ud800"]}"#,
        ] {
            assert_eq!(json(text), Err(NotABatch), "{text}");
        }
        assert_eq!(Batch::read(Some("accessory_ids=1"), &HeaderMap::new(), b"{}"), Err(NotABatch), "both forms");
        let coded = HeaderMap::from_iter([(CONTENT_ENCODING, http::HeaderValue::from_static("gzip"))]);
        assert_eq!(Batch::read(None, &coded, br#"{"accessory_ids":["1"]}"#), Err(NotABatch));
    }

    #[test]
    fn an_unencoded_plus_is_named_and_written_by_its_spelling() {
        let names = |ids: &[&str]| ids.iter().map(|id| id::name_of_spelling(id)).collect::<Vec<_>>();
        let repeated = "accessory_ids=a+b%2f&accessory_ids=c%20d&group_id=g+h";
        let read = query(repeated).unwrap();
        assert_eq!(read.ids, [names(&["a+b%2f"])[0].as_str(), "c d"]);
        assert_eq!(read.group, Group::Named(names(&["g+h"])[0].as_str().into()));
        let written = target(read.form, &read.group, read.ids.iter().map(AsRef::as_ref));
        assert_eq!(written, format!("{}?{repeated}", api::PATH));
        assert_eq!(query("accessory_ids=1,a+b").unwrap().ids, ["1", names(&["a+b"])[0].as_str()]);
        assert!(query(&format!("accessory_ids={}", "+".repeat(64))).is_ok());
        assert!(query(&format!("accessory_ids={}", "+".repeat(65))).is_err());
        assert_eq!(json(r#"{"accessory_ids":["a+b"]}"#).unwrap().ids, ["a+b"], "JSON has one reading");
    }

    #[test]
    fn a_group_is_absent_null_or_named_and_may_be_empty() {
        assert_eq!(query("accessory_ids=1&group_id=").unwrap().group, Group::Named("".into()));
        for (text, group) in [
            (r#"{"accessory_ids":["1"]}"#, Group::Absent),
            (r#"{"accessory_ids":["1"],"group_id":null}"#, Group::Null),
            (r#"{"accessory_ids":["1"],"group_id":""}"#, Group::Named("".into())),
        ] {
            assert_eq!(json(text).unwrap().group, group, "{text}");
            let body = body(Form::Body, &group, ["1"].into_iter());
            assert_eq!(json(std::str::from_utf8(&body).unwrap()).unwrap().group, group);
        }
    }

    #[test]
    fn lengths_are_counted_in_characters() {
        let id = "附".repeat(64);
        assert!(json(&format!(r#"{{"accessory_ids":["{id}"]}}"#)).is_ok());
        assert!(json(&format!(r#"{{"accessory_ids":["{id}附"]}}"#)).is_err());
    }

    proptest! {
        #[test]
        fn any_batch_survives_the_round_trip_in_any_form(
            ids in proptest::collection::vec("\\PC{1,64}", 1..8),
            group in proptest::option::of("\\PC{0,32}"),
            form in prop_oneof![Just(Form::Repeated), Just(Form::Comma), Just(Form::Body)],
        ) {
            let list = || ids.iter().map(String::as_str);
            let named = Group::from(group.as_deref());
            let target = target(form, &named, list());
            let body = body(form, &named, list());
            let uri: http::Uri = target.parse().unwrap();
            prop_assert_eq!(uri.path(), api::PATH);
            let read = Batch::read(uri.query(), &HeaderMap::new(), &body).unwrap();
            prop_assert_eq!(&read.ids.iter().map(AsRef::as_ref).collect::<Vec<&str>>(), &list().collect::<Vec<&str>>());
            prop_assert_eq!(&read.group, &named);
            // One id without a comma reads as the repeated form.
            prop_assert!(read.form == form || ids.len() == 1);
            if form != Form::Body {
                let base = api::PATH.len() + 1 + api::GROUP.len() + 1 + group.as_ref().map_or(0, |g| g.len() * 3) + api::IDS.len() + 2;
                prop_assert!(target.len() <= base + list().map(|id| target_bytes(form, id)).sum::<usize>());
            }
        }

        #[test]
        fn no_request_panics(query in proptest::option::of("[ -~]{0,60}"), body in proptest::collection::vec(any::<u8>(), 0..60)) {
            let _ = Batch::read(query.as_deref(), &HeaderMap::new(), &body);
        }
    }
}
