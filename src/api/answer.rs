//! Reads the endpoint's answer for the ids that were asked, and merges items into one body.

use std::borrow::Cow;
use std::collections::HashMap;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;

use super::request::JsonString;
use crate::api::id;

/// The body of a 200, read.
#[derive(Debug, PartialEq)]
pub enum ParsedAnswer {
    /// A list of links: the item of each id asked, or `None` where the endpoint left it out.
    Links(Vec<Option<AnswerItem>>),
    /// Well-formed, but no list of links: an error with status 200. It is passed on as it came.
    NoList,
    /// A list with an item that matches no id, or a second item for an id. Sidelink does not guess.
    Unmatched,
    /// No JSON, or cut short.
    Broken,
}

/// One item of the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AnswerItem {
    /// Its JSON text, as the endpoint sent it.
    pub text: Arc<str>,
    /// Its link, if it has one.
    pub url: Option<Box<str>>,
}

#[derive(Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    accessory_urls: Option<&'a RawValue>,
    #[serde(borrow, default)]
    error_code: Option<&'a RawValue>,
}

#[derive(Deserialize)]
struct ItemFields<'a> {
    #[serde(borrow)]
    accessory_id: JsonString<'a>,
    #[serde(borrow, default)]
    accessory_url: Option<&'a RawValue>,
}

/// Reads the body of a 200 to a call for these ids, which are distinct. An item matches an id by either of its readings
/// ([`id::readings`]); an item that could be for two of the ids matches none.
pub fn read(body: &[u8], ids: &[&str]) -> ParsedAnswer {
    let Ok(whole) = serde_json::from_slice::<&RawValue>(text_of(body)) else {
        return ParsedAnswer::Broken;
    };
    let Some(items) = raw_items(whole) else {
        return ParsedAnswer::NoList;
    };
    let mut positions: HashMap<Cow<'_, str>, Option<usize>> = HashMap::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate() {
        for text in id::readings(id) {
            positions.entry(text).and_modify(|position| *position = None).or_insert(Some(at));
        }
    }
    let mut links = vec![None; ids.len()];
    for item in items {
        let Ok(fields) = serde_json::from_str::<ItemFields<'_>>(item.get()) else {
            return ParsedAnswer::Unmatched;
        };
        let position = positions.get(fields.accessory_id.0.as_ref()).copied().flatten();
        let slot = position.and_then(|at| links.get_mut(at));
        match slot {
            Some(slot @ None) => {
                let url = fields.accessory_url.and_then(string).map(Box::from);
                *slot = Some(AnswerItem { text: Arc::from(item.get()), url });
            }
            _ => return ParsedAnswer::Unmatched,
        }
    }
    ParsedAnswer::Links(links)
}

/// An answer's JSON text, without a byte order mark, which some servers write (RFC 8259 §8.1).
fn text_of(body: &[u8]) -> &[u8] {
    body.strip_prefix("\u{feff}".as_bytes()).unwrap_or(body)
}

/// All items of a list of links, as the endpoint sent them.
pub fn items(body: &[u8]) -> Option<impl Iterator<Item = &[u8]>> {
    let items = raw_items(serde_json::from_slice(text_of(body)).ok()?)?;
    Some(items.into_iter().map(|item| item.get().as_bytes()))
}

fn raw_items(whole: &RawValue) -> Option<Vec<&RawValue>> {
    match serde_json::from_str(whole.get()) {
        Ok(Envelope { accessory_urls: Some(list), error_code: None }) => serde_json::from_str(list.get()).ok(),
        _ => None,
    }
}

/// The link of an item.
pub fn url_of(item: &[u8]) -> Option<String> {
    let fields = serde_json::from_slice::<ItemFields<'_>>(item).ok()?;
    string(fields.accessory_url?).map(Cow::into_owned)
}

/// The error code in `body`, if there is one.
pub fn error_code(body: &[u8]) -> Option<String> {
    let envelope = serde_json::from_slice::<Envelope<'_>>(text_of(body)).ok()?;
    string(envelope.error_code?).map(Cow::into_owned)
}

/// The text of a value that is a string.
fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    serde_json::from_str::<JsonString<'_>>(value.get()).ok().map(|text| text.0)
}

/// The bytes before the items of a merged body.
pub(crate) const HEAD: &[u8] = br#"{"accessory_urls":["#;
/// The bytes after them.
pub(crate) const TAIL: &[u8] = b"]}";

/// Merges the items' texts into one body, in the order given.
pub fn merge<'a>(texts: impl Iterator<Item = &'a [u8]> + Clone) -> Bytes {
    let items = texts.clone().map(|text| text.len() + 1).sum();
    merge_sized(texts, merged_length(items))
}

/// The length of [`merge`]'s body, in bytes; `items` is that of the items, with a comma each.
pub(crate) fn merged_length(items: usize) -> usize {
    HEAD.len() + items.saturating_sub(1) + TAIL.len()
}

/// As [`merge`], for a body of a known length: a buffer that is not full would be copied when it becomes `Bytes`.
pub(crate) fn merge_sized<'a>(texts: impl Iterator<Item = &'a [u8]>, length: usize) -> Bytes {
    let mut body = Vec::with_capacity(length);
    body.extend_from_slice(HEAD);
    for (index, text) in texts.enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(text);
    }
    body.extend_from_slice(TAIL);
    Bytes::from(body)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::{Value, json};

    use super::*;

    fn texts(read: &ParsedAnswer) -> Vec<Option<&str>> {
        match read {
            ParsedAnswer::Links(links) => links.iter().map(|link| link.as_ref().map(|item| &*item.text)).collect(),
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
        let ParsedAnswer::Links(links) = read else { panic!() };
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
        assert_eq!(read(br#"{"accessory_urls":[],"error_code":null}"#, &["1"]), ParsedAnswer::Links(vec![None]));
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
            let ParsedAnswer::Links(links) = &read else {
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
    fn broken_json_is_no_answer() {
        for body in [
            "",
            "{",
            r#"{"accessory_urls":[{"accessory_id":"1"}"#,
            "<html>",
            r#"{"accessory_urls":[]}x"#,
            "\u{feff}",
            "\u{feff}\u{feff}{}",
        ] {
            assert_eq!(read(body.as_bytes(), &["1"]), ParsedAnswer::Broken, "{body}");
        }
        assert_eq!(read(b"{\"a\":\"\xff\"}", &["1"]), ParsedAnswer::Broken, "not UTF-8");
        let deep = "[".repeat(200_000);
        assert_eq!(read(deep.as_bytes(), &["1"]), ParsedAnswer::Broken, "deep nesting ends in no stack");
    }

    #[test]
    fn a_byte_order_mark_is_no_part_of_an_answer() {
        let with_mark = |text: &str| format!("\u{feff}{text}").into_bytes();
        assert_eq!(read(&with_mark(r#"{"accessory_urls":[]}"#), &["1"]), ParsedAnswer::Links(vec![None]));
        assert_eq!(error_code(&with_mark(r#"{"error_code":"x"}"#)).as_deref(), Some("x"));
        assert_eq!(items(&with_mark(r#"{"accessory_urls":[7]}"#)).unwrap().collect::<Vec<_>>(), [b"7"]);
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
            let merged = merge(texts.iter().flatten().map(|text| text.as_bytes()));
            prop_assert_eq!(serde_json::from_slice::<Value>(&merged).unwrap(), json!({"accessory_urls": expected}));
        }

        #[test]
        fn no_bytes_panic(body in proptest::collection::vec(any::<u8>(), 0..200)) {
            read(&body, &["1"]);
        }
    }
}
