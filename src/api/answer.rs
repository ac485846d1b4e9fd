//! Reads the endpoint's answer for the ids that were asked, as a [`BatchApi`] describes it.

mod misfit;

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::Arc;

use http::HeaderValue;
use serde_json::Value;
use serde_json::value::RawValue;

use super::envelope::Envelope;
use super::expiry::StatedExpiry;
use super::id;
use super::json::{self, Members};
use crate::config::batch::{BatchApi, ExpirySource, Pointer};
pub use misfit::AnswerMisfit;

/// The body of a 200, read.
#[derive(Debug, PartialEq)]
pub enum ParsedAnswer {
    /// A list of items.
    Items {
        /// The item of each id asked, or `None` where the endpoint left it out.
        items: Vec<Option<AnswerItem>>,
        /// The text around the list; `None` if the API names an envelope of its own.
        envelope: Option<Arc<Envelope>>,
    },
    /// Well-formed, but no list of items: an error with status 200. It is passed on as it came.
    NoList,
    /// A list with an item that matches no id, or a second item for an id. Sidelink does not guess.
    Unmatched,
    /// No JSON, or the beginning of one.
    NotJson,
}

/// One item of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerItem {
    /// Its JSON text, as the endpoint sent it; of a member of an object, with its name.
    pub text: Arc<str>,
    /// Its link, if it has one.
    pub url: Option<Box<str>>,
    /// Whether it says that there is no link.
    pub is_absent: bool,
    /// When the link expires, as its fields state it.
    pub expiries: Vec<StatedExpiry>,
    /// Whether the URL counts as well: the API says so, or no field says anything.
    pub url_expires: bool,
}

impl AnswerItem {
    /// An item of this text, whose link says itself when it expires.
    pub fn of_link(text: &str, url: Option<&str>) -> Self {
        Self { text: text.into(), url: url.map(Box::from), is_absent: false, expiries: Vec::new(), url_expires: true }
    }
}

/// Reads the body of a 200 to a call for these ids, which are distinct; `media_type` is its Content-Type. An item matches an id by
/// either of its readings ([`id::readings`]); an item that could be for two of the ids matches none.
pub fn read(api: &BatchApi, body: &[u8], media_type: Option<&HeaderValue>, ids: &[&str]) -> ParsedAnswer {
    let Ok(whole) = serde_json::from_slice::<&RawValue>(text_of(body)) else {
        return ParsedAnswer::NotJson;
    };
    let Some(list) = list_of(api, whole) else { return ParsedAnswer::NoList };
    let Some(items) = items_of(api, list) else { return ParsedAnswer::NoList };
    let mut positions: HashMap<Cow<'_, str>, Option<usize>> = HashMap::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate() {
        for text in id::readings(id) {
            positions.entry(text).and_modify(|position| *position = None).or_insert(Some(at));
        }
    }
    let mut links = vec![None; ids.len()];
    for item in items {
        let Some((id, item)) = item.and_then(|item| item.read(api)) else { return ParsedAnswer::Unmatched };
        let position = positions.get(&id).copied().flatten();
        match position.and_then(|at| links.get_mut(at)) {
            Some(slot @ None) => *slot = Some(item),
            _ => return ParsedAnswer::Unmatched,
        }
    }
    let envelope = match &api.items.envelope {
        Some(_) => None,
        None => Envelope::around(whole.get(), list, media_type).map(Arc::new),
    };
    if api.items.envelope.is_none() && envelope.is_none() {
        return ParsedAnswer::NoList;
    }
    ParsedAnswer::Items { items: links, envelope }
}

/// An answer's JSON text, without a byte order mark, which some servers write (RFC 8259 §8.1).
fn text_of(body: &[u8]) -> &[u8] {
    body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body)
}

/// The texts of all items of an answer, as the endpoint sent them, and the envelope around them.
pub fn items(api: &BatchApi, body: &[u8], media_type: Option<&HeaderValue>) -> Option<(Vec<Box<str>>, Envelope)> {
    let whole: &RawValue = serde_json::from_slice(text_of(body)).ok()?;
    let list = list_of(api, whole)?;
    let texts: Option<Vec<Box<str>>> = match list.as_bytes().first()? {
        b'[' => Some(json::elements(list)?.into_iter().map(|item| item.get().into()).collect()),
        _ => items_of(api, list)?.into_iter().map(|item| item.map(|item| item.text.into())).collect(),
    };
    Some((texts?, Envelope::around(whole.get(), list, media_type)?))
}

/// The link of an item, as it is kept.
pub fn url_of(api: &BatchApi, item: &str) -> Option<String> {
    let object = format!("{{{item}}}");
    let value: &RawValue = match &api.items.key {
        Some(_) => serde_json::from_str(item).ok()?,
        None => json::members(&object)?.pop()?.1,
    };
    link(api, value, &json::members(value.get()).unwrap_or_default()).map(Cow::into_owned)
}

/// The error code in `body`, if there is one.
pub fn error_code(api: &BatchApi, body: &[u8]) -> Option<String> {
    let whole: &RawValue = serde_json::from_slice(text_of(body)).ok()?;
    json::find(whole, api.errors.code.as_ref()?).and_then(json::string).map(Cow::into_owned)
}

/// Whether `body` is an error of `api`, whatever its status.
pub fn is_error(api: &BatchApi, body: &[u8]) -> bool {
    serde_json::from_slice::<&RawValue>(text_of(body)).is_ok_and(|whole| has_error(api, whole))
}

fn has_error(api: &BatchApi, whole: &RawValue) -> bool {
    let is_set = |code: &Pointer| json::find(whole, code).is_some_and(|code| code.get() != "null");
    let differs = |(place, wanted): &(Pointer, Value)| {
        let found = json::find(whole, place).map(|found| serde_json::from_str::<Value>(found.get()));
        found.is_some_and(|found| found.is_ok_and(|found| found != *wanted))
    };
    api.errors.code.as_ref().is_some_and(is_set) || api.errors.unless.iter().any(differs)
}

/// The list of items, or the object of them, of an answer that is no error.
fn list_of<'a>(api: &BatchApi, whole: &'a RawValue) -> Option<&'a str> {
    if has_error(api, whole) {
        return None;
    }
    let list = json::find(whole, &api.items.at)?.get();
    let begin = if api.items.key.is_some() { '[' } else { '{' };
    list.starts_with(begin).then_some(list)
}

/// An item as it stands in an answer.
struct Item<'a> {
    text: &'a str,
    value: &'a RawValue,
    /// Its name, where it is the member of an object.
    name: Option<Cow<'a, str>>,
}

/// The items of a list, or of an object; `None` in place of one that has no text of its own.
fn items_of<'a>(api: &BatchApi, list: &'a str) -> Option<Vec<Option<Item<'a>>>> {
    if api.items.key.is_some() {
        let items = json::elements(list)?.into_iter();
        return Some(items.map(|value| Some(Item { text: value.get(), value, name: None })).collect());
    }
    let mut end = 1;
    let item = |(name, value): (Cow<'a, str>, &'a RawValue)| {
        let range = json::range_of(list, value.get())?;
        // Between two values stand a comma, the name and a colon.
        let from = end + list.get(end..range.start)?.find('"')?;
        end = range.end;
        Some(Item { text: list.get(from..range.end)?, value, name: Some(name) })
    };
    Some(json::members(list)?.into_iter().map(item).collect())
}

impl<'a> Item<'a> {
    /// The id that it names, and what is kept of it; `None` if it names none.
    fn read(self, api: &BatchApi) -> Option<(Cow<'a, str>, AnswerItem)> {
        let members = match json::members(self.value.get()) {
            // The member's name is the id, so its value need not be an object.
            None if self.name.is_some() => Vec::new(),
            members => members?,
        };
        let id = match (self.name, &api.items.key) {
            (Some(name), _) => name,
            (None, key) => {
                let value = json::find_in(&members, key.as_ref()?)?;
                let number = || json::integer(value).filter(|_| api.ids.numbers).map(Cow::Borrowed);
                json::string(value).or_else(number)?
            }
        };
        let url = link(api, self.value, &members);
        // One that has a link all the same is judged by that.
        let says_absent = || {
            self.value.get() == "null"
                || api.absent.as_ref().is_some_and(|absent| json::find_set(&members, absent).is_some())
        };
        let is_absent = url.is_none() && says_absent();
        let fields = api.expiry_fields().filter_map(|place| json::find_stated(&members, place));
        let place = |value: &RawValue| -> Option<Range<usize>> { json::range_of(self.text, value.get()) };
        let expiries: Vec<_> = fields.filter_map(|value| StatedExpiry::read(value, place(value))).collect();
        let item = AnswerItem {
            text: Arc::from(self.text),
            url: url.map(Box::from),
            is_absent,
            url_expires: expiries.is_empty() || api.expires.contains(&ExpirySource::Link),
            expiries,
        };
        Some((id, item))
    }
}

/// The link of an item of this value, whose members are these.
fn link<'a>(api: &BatchApi, value: &'a RawValue, members: &Members<'a>) -> Option<Cow<'a, str>> {
    let pointer = &api.items.link;
    let link = if pointer.tokens().is_empty() { Some(value) } else { json::find_in(members, pointer) };
    link.and_then(json::string)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    #[test]
    fn an_envelope_keeps_nothing_of_the_answer_in_memory_that_it_does_not_count() {
        let buffer = bytes::Bytes::from(format!("{{\"objects\":[]}}{}", "x".repeat(8192)));
        let media_type = HeaderValue::from_maybe_shared(buffer.slice(..1)).unwrap();
        let api = BatchApi::preset("git-lfs").unwrap();
        let ParsedAnswer::Items { envelope, .. } = super::read(&api, b"{\"objects\":[]}", Some(&media_type), &[])
        else {
            panic!("an answer");
        };
        drop(media_type);
        assert!(envelope.is_some() && buffer.is_unique());
    }

    fn read(body: &[u8], ids: &[&str]) -> ParsedAnswer {
        super::read(&BatchApi::preset("huawei-osm").unwrap(), body, None, ids)
    }

    fn links(items: Vec<Option<AnswerItem>>) -> ParsedAnswer {
        ParsedAnswer::Items { items, envelope: None }
    }

    fn texts(read: &ParsedAnswer) -> Vec<Option<&str>> {
        match read {
            ParsedAnswer::Items { items: links, .. } => {
                links.iter().map(|link| link.as_ref().map(|item| &*item.text)).collect()
            }
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn items_are_kept_as_sent_and_matched_by_their_id() {
        let body = r#" {"accessory_urls": [ {"accessory_id":"2", "accessory_url":"u\u0032","x":[1, {"y":null}]},{"accessory_url":"u1","accessory_id":"\u0031"}], "total":2 } "#;
        let read = read(body.as_bytes(), &["1", "3", "2"]);
        assert_eq!(
            texts(&read),
            [
                Some(r#"{"accessory_url":"u1","accessory_id":"\u0031"}"#),
                None,
                Some(r#"{"accessory_id":"2", "accessory_url":"u\u0032","x":[1, {"y":null}]}"#),
            ]
        );
        let ParsedAnswer::Items { items: links, .. } = read else { panic!() };
        assert_eq!(links[2].as_ref().unwrap().url.as_deref(), Some("u2"));
    }

    #[test]
    fn a_200_without_a_list_of_links_is_no_list() {
        for body in [
            r#"{"error_code":"OSM.01010001","error_msg":"failed"}"#,
            r#"{"accessory_urls":[],"error_code":"OSM.01010001"}"#,
            r#"{"accessory_urls":null}"#,
            r#"{"accessory_urls":{}}"#,
            r#"{"accessory_urls":[],"accessory_urls":[]}"#,
            "[]",
            "null",
            "{}",
            "7",
        ] {
            assert_eq!(read(body.as_bytes(), &["1"]), ParsedAnswer::NoList, "{body}");
        }
        assert_eq!(read(br#"{"accessory_urls":[],"error_code":null}"#, &["1"]), links(vec![None]));
    }

    #[test]
    fn an_item_nobody_asked_for_is_not_guessed_at() {
        for items in [
            r#"{"accessory_id":"2"}"#,
            r#"{"accessory_id":1}"#,
            r#"{"accessory_id":"A"},{"accessory_id":"1"}"#,
            r#"{"accessory_id":"1"},{"accessory_id":"1"}"#,
            r#"{"accessory_id":"1","accessory_id":"1"}"#,
            r#"{"accessory_url":"u"}"#,
            "null",
            r#""1""#,
            "[]",
        ] {
            let body = format!(r#"{{"accessory_urls":[{items}]}}"#);
            assert_eq!(read(body.as_bytes(), &["1", "a"]), ParsedAnswer::Unmatched, "{items}");
        }
    }

    #[test]
    fn an_item_matches_either_reading_of_an_id_unless_it_could_be_for_two() {
        let body = |ids: &[&str]| {
            let items: Vec<Value> = ids.iter().map(|id| json!({ "accessory_id": id })).collect();
            json!({ "accessory_urls": items }).to_string()
        };
        let (plus, other) = (&*id::name_of_spelling("a+b"), &*id::name_of_spelling("a%20b+"));
        for (asked, sent, matched) in [
            (&[plus, "1"][..], &["1", "a b"][..], Some(&[1, 0][..])),
            (&[plus, "1"], &["a+b"], Some(&[0])),
            (&[plus, "1"], &["a+b", "a b"], None),
            (&[plus, "a b"], &["a b"], None),
            (&[plus, "a b"], &["a+b"], Some(&[0])),
            (&["a+b", plus], &["a+b"], None),
            (&[plus, other], &["a b ", "a b"], Some(&[1, 0])),
            (&[plus], &[plus], None),
        ] {
            let (body, expected) = (body(sent), matched.map(|places| places.len()));
            let read = read(body.as_bytes(), asked);
            let ParsedAnswer::Items { items: links, .. } = &read else {
                assert_eq!((&read, expected), (&ParsedAnswer::Unmatched, None), "{asked:?} {sent:?}");
                continue;
            };
            for (sent, at) in sent.iter().zip(matched.unwrap()) {
                let text = &links[*at].as_ref().unwrap().text;
                assert_eq!(serde_json::from_str::<Value>(text).unwrap()["accessory_id"], **sent);
            }
        }
    }

    #[test]
    fn what_is_no_json_is_told_from_other_answers() {
        for body in [
            "",
            "{",
            r#"{"accessory_urls":[{"accessory_id":"1"}"#,
            "<html>",
            r#"{"accessory_urls":[]}x"#,
            "\u{feff}",
            "\u{feff}\u{feff}{}",
        ] {
            assert_eq!(read(body.as_bytes(), &["1"]), ParsedAnswer::NotJson, "{body}");
        }
        assert_eq!(read(b"{\"a\":\"\xff\"}", &["1"]), ParsedAnswer::NotJson, "not UTF-8");
        let deep = "[".repeat(200_000);
        assert_eq!(read(deep.as_bytes(), &["1"]), ParsedAnswer::NotJson, "deep nesting ends in no stack");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_an_answer() {
        let with_mark = |text: &str| format!("\u{feff}{text}").into_bytes();
        assert_eq!(read(&with_mark(r#"{"accessory_urls":[]}"#), &["1"]), links(vec![None]));
        assert_eq!(
            error_code(&BatchApi::preset("huawei-osm").unwrap(), &with_mark(r#"{"error_code":"x"}"#)).as_deref(),
            Some("x")
        );
        assert_eq!(
            items(&BatchApi::preset("huawei-osm").unwrap(), &with_mark(r#"{"accessory_urls":[7]}"#), None).unwrap().0,
            [Box::from("7")]
        );
    }

    #[test]
    fn an_item_that_says_it_is_absent_and_has_a_link_is_judged_by_the_link() {
        let api = BatchApi::preset("supabase-storage").unwrap();
        for (url, is_absent) in [("null", true), (r#""/object/sign/b/1?token=x""#, false)] {
            let body = format!(r#"[{{"error":"gone","path":"1","signedURL":{url}}}]"#);
            let ParsedAnswer::Items { items, .. } = super::read(&api, body.as_bytes(), None, &["1"]) else { panic!() };
            assert_eq!(items[0].as_ref().unwrap().is_absent, is_absent, "{url}");
        }
    }

    proptest! {
        /// Against the naive model: parse, look each id up in a list, print.
        #[test]
        fn reading_and_merging_agree_with_a_naive_model(
            asked in proptest::collection::hash_set("[a-f]{1,2}", 1..8),
            sent in proptest::collection::vec(("[a-f]{1,2}", ".{0,8}"), 0..8),
        ) {
            let asked: Vec<&str> = asked.iter().map(String::as_str).collect();
            let items: Vec<Value> = sent.iter().map(|(id, url)| json!({"accessory_id": id, "accessory_url": url})).collect();
            let body = json!({"accessory_urls": items}).to_string();
            let read = read(body.as_bytes(), &asked);

            let once = sent.iter().all(|(id, _)| sent.iter().filter(|(other, _)| other == id).count() == 1);
            let known = sent.iter().all(|(id, _)| asked.contains(&id.as_str()));
            if !(once && known) {
                prop_assert_eq!(read, ParsedAnswer::Unmatched);
                return Ok(());
            }
            let expected: Vec<&Value> = asked.iter()
                .filter_map(|id| items.iter().find(|item| item["accessory_id"] == **id))
                .collect();
            let texts = texts(&read);
            let merged = Envelope::of(&BatchApi::preset("huawei-osm").unwrap()).unwrap().merge(texts.iter().flatten().map(|text| text.as_bytes()));
            prop_assert_eq!(serde_json::from_slice::<Value>(&merged).unwrap(), json!({"accessory_urls": expected}));
        }

        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&body, &["1"]);
        }
    }
}
