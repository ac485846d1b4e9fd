//! Lists whose elements are alike, as a client writes them: read without a parser, but for the first.
//!
//! serde_json takes three passes over a list of objects (to find the list, its elements, and their members), of some 20 instructions a
//! byte each. Elements that differ from the first one only in numbers and in the text of strings are compared with it instead.

use std::borrow::Cow;

use memchr::memchr;
use serde_json::value::RawValue;

use super::json;

/// The elements of a list.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Alike<'a> {
    /// The string that names each, without its quotes, and its text.
    pub(super) elements: Vec<(&'a str, &'a str)>,
    /// Whether they have more in them than that string.
    pub(super) have_more: bool,
}

/// The text that all elements share. They may differ in the gaps; each gap has the text before it, and `last` follows the last gap.
struct Shape<'a> {
    gaps: Cow<'a, [(&'a str, Gap)]>,
    last: &'a str,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Gap {
    /// The text of the string that names the element, without its quotes.
    Name,
    /// The text of any other string, without its quotes.
    Text,
    Number,
}

/// Reads `list`, the text of a JSON value, if it is a list whose elements are alike and have no escapes: strings without a `key`, else
/// objects that have a string there.
pub(super) fn read<'a>(list: &'a str, key: Option<&str>) -> Option<Alike<'a>> {
    let mut rest = list.strip_prefix('[')?.trim_ascii_start();
    if memchr(b'\\', rest.as_bytes()).is_some() {
        return None;
    }
    let (shape, have_more) = match key {
        None => (Shape::of_string(), false),
        Some(key) => {
            let first: &RawValue = serde_json::Deserializer::from_str(rest).into_iter().next()?.ok()?;
            let members = json::members(first.get())?;
            (Shape::of(first.get(), &members, key)?, members.len() > 1)
        }
    };
    let mut elements = Vec::new();
    loop {
        let (name, element, after) = shape.take(rest)?;
        if elements.is_empty() {
            elements.reserve(1 + rest.len() / element.len().max(1));
        }
        elements.push((name, element));
        rest = after.trim_ascii_start();
        if rest == "]" {
            return Some(Alike { elements, have_more });
        }
        rest = rest.strip_prefix(',')?.trim_ascii_start();
    }
}

impl<'a> Shape<'a> {
    /// The shape of a string, which names itself.
    fn of_string() -> Self {
        Self { gaps: Cow::Borrowed(&[("\"", Gap::Name)]), last: "\"" }
    }

    /// The shape of `element`, which has these members, and is named by the one called `key`.
    fn of(element: &'a str, members: &[(Cow<'a, str>, &'a RawValue)], key: &str) -> Option<Self> {
        let (mut gaps, mut from) = (Vec::with_capacity(members.len()), 0);
        for (name, value) in members {
            let range = json::range_of(element, value.get())?;
            let (gap, range) = match value.get().as_bytes() {
                [b'"', .., b'"'] => (if name == key { Gap::Name } else { Gap::Text }, range.start + 1..range.end - 1),
                [b'-' | b'0'..=b'9', ..] => (Gap::Number, range),
                _ => continue,
            };
            gaps.push((element.get(from..range.start)?, gap));
            from = range.end;
        }
        let has_name = gaps.iter().any(|(_, gap)| *gap == Gap::Name);
        has_name.then_some(Self { gaps: gaps.into(), last: element.get(from..)? })
    }

    /// Takes an element of this shape off the beginning of `text`, which is JSON without escapes: its name, all of it, and what follows.
    fn take<'t>(&self, text: &'t str) -> Option<(&'t str, &'t str, &'t str)> {
        let is_of_number = |byte| matches!(byte, b'0'..=b'9' | b'-' | b'+' | b'.' | b'e' | b'E');
        let (mut rest, mut name) = (text, "");
        for (before, gap) in &*self.gaps {
            rest = rest.strip_prefix(before)?;
            let end = match gap {
                Gap::Number => rest.bytes().position(|byte| !is_of_number(byte))?,
                Gap::Name | Gap::Text => memchr(b'"', rest.as_bytes())?,
            };
            let (value, after) = rest.split_at_checked(end)?;
            if *gap == Gap::Name {
                name = value;
            }
            rest = after;
        }
        rest = rest.strip_prefix(self.last)?;
        Some((name, text.get(..text.len() - rest.len())?, rest))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::Value;

    use super::*;

    #[test]
    fn strings_without_escapes_are_alike() {
        let strings = read(r#"["a", "" ,"b]"]"#, None).unwrap();
        let elements = vec![("a", r#""a""#), ("", r#""""#), ("b]", r#""b]""#)];
        assert_eq!(strings, Alike { elements, have_more: false });
        for other in
            ["[ ]", r#"["\u0041"]"#, "[1]", r#"["a",1]"#, r#"[1,"a"]"#, r#"[["a"]]"#, r#"{"a":"b"}"#, r#"[{"":"a"}]"#]
        {
            assert_eq!(read(other, None), None, "{other}");
        }
    }

    #[test]
    fn objects_are_alike_that_differ_in_numbers_and_strings_alone() {
        let (first, second) = (r#"{"n":7,"id":"a","x":[null]}"#, r#"{"n":-1.5e3,"id":"","x":[null]}"#);
        let list = format!("[{first},  {second} ]");
        let elements = vec![("a", first), ("", second)];
        assert_eq!(read(&list, Some("id")), Some(Alike { elements, have_more: true }));
        let alone = read(r#"[{"id":"a"},{"id":"b"}]"#, Some("id")).unwrap();
        assert!(!alone.have_more);
        for other in [
            r#"[{"n":7,"id":"a"},{"n":7,"id":"b","y":1}]"#,
            r#"[{"n":7,"id":"a"},{"id":"b","n":7}]"#,
            r#"[{"n":7,"id":"a"},{"n":null,"id":"b"}]"#,
            r#"[{"n":7,"id":"a"},{"n": 7,"id":"b"}]"#,
            r#"[{"n":7,"id":"a"},{"n":"7","id":"b"}]"#,
            r#"[{"n":7,"id":"a"},"b"]"#,
            r#"[{"id":7},{"id":8}]"#,
            r#"[{"id":["a"]},{"id":["a"]}]"#,
            r#"[{"di":"a"}]"#,
            r#"[{"id":"a","id":"a"}]"#,
            r#"["a"]"#,
        ] {
            assert_eq!(read(other, Some("id")), None, "{other}");
        }
    }

    fn value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            any::<i16>().prop_map(Value::from),
            "[a-c\"\\\\,{}\\[\\]:é]{0,3}".prop_map(Value::from),
        ];
        let members = proptest::collection::btree_map("[ab]|id", leaf.clone(), 0..4);
        prop_oneof![leaf, members.prop_map(|members| Value::Object(members.into_iter().collect()))]
    }

    proptest! {
        /// Compares with a parser.
        #[test]
        fn what_is_read_is_what_a_parser_reads(list in proptest::collection::vec(value(), 0..4), is_alike in any::<bool>(), has_key in any::<bool>()) {
            let mut list = list;
            if let (true, Some(first)) = (is_alike, list.first().cloned()) {
                list.iter_mut().for_each(|element| element.clone_from(&first));
            }
            let text = Value::Array(list.clone()).to_string();
            let key = has_key.then_some("id");
            let Some(found) = read(&text, key) else { return Ok(()) };
            prop_assert_eq!(found.elements.len(), list.len());
            for ((name, element), value) in found.elements.iter().zip(&list) {
                let named = key.map_or(Some(value), |key| value.get(key));
                prop_assert_eq!(named.and_then(Value::as_str), Some(*name));
                prop_assert_eq!(serde_json::from_str::<Value>(element).ok(), Some(value.clone()));
                prop_assert_eq!(found.have_more, value.as_object().is_some_and(|members| members.len() > 1));
            }
        }
    }
}
