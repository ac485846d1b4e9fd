//! Places in JSON texts, found without changing a byte of them.

use std::borrow::Cow;
use std::collections::HashSet;
use std::fmt;
use std::ops::Range;

use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use crate::config::batch::Pointer;

/// The members of an object in their order, each name once.
pub(crate) type Members<'a> = Vec<(Cow<'a, str>, &'a RawValue)>;

/// With more members than this, their names are compared by a table.
const FEW: usize = 16;

/// The members of `text`, an object; `None` if it is none, or has a name twice: readers differ about what that means.
pub(crate) fn members(text: &str) -> Option<Members<'_>> {
    // serde would also take a list for an object.
    if !text.trim_ascii_start().starts_with('{') {
        return None;
    }
    let AllMembers(members) = serde_json::from_str(text).ok()?;
    let is_distinct = if members.len() > FEW {
        let mut names = HashSet::with_capacity(members.len());
        members.iter().all(|(name, _)| names.insert(name))
    } else {
        members.iter().enumerate().all(|(at, (name, _))| members.iter().skip(at + 1).all(|(other, _)| other != name))
    };
    is_distinct.then_some(members)
}

/// The elements of `text`, a list.
pub(crate) fn elements(text: &str) -> Option<Vec<&RawValue>> {
    text.trim_ascii_start().starts_with('[').then(|| serde_json::from_str(text).ok())?
}

/// The value at `pointer` in `text`.
pub(crate) fn find<'a>(text: &'a RawValue, pointer: &Pointer) -> Option<&'a RawValue> {
    walk(text, pointer.tokens())
}

fn walk<'a>(text: &'a RawValue, tokens: &[Box<str>]) -> Option<&'a RawValue> {
    follow(text, tokens).ok().flatten()
}

/// The value at the path of `tokens`.
///
/// # Errors
/// An object on that path that has a name twice.
fn follow<'a>(text: &'a RawValue, tokens: &[Box<str>]) -> Result<Option<&'a RawValue>, &'a RawValue> {
    let mut value = text;
    for token in tokens {
        let next = match value.get().bytes().next() {
            Some(b'{') => member(&members(value.get()).ok_or(value)?, token),
            Some(b'[') => elements(value.get()).and_then(|elements| elements.into_iter().nth(place(token)?)),
            _ => None,
        };
        let Some(next) = next else { return Ok(None) };
        value = next;
    }
    Ok(Some(value))
}

/// The value at `pointer` in an object of these members. `None` for the empty pointer as well: it names the object.
pub(crate) fn find_in<'a>(members: &Members<'a>, pointer: &Pointer) -> Option<&'a RawValue> {
    let (first, rest) = pointer.tokens().split_first()?;
    walk(member(members, first)?, rest)
}

/// As [`find_in`], for a value that is not null.
pub(crate) fn find_set<'a>(members: &Members<'a>, pointer: &Pointer) -> Option<&'a RawValue> {
    find_in(members, pointer).filter(|value| value.get() != "null")
}

/// As [`find_set`]; but if an object on the path has a name twice, that object: a value that cannot be read.
pub(crate) fn find_stated<'a>(members: &Members<'a>, pointer: &Pointer) -> Option<&'a RawValue> {
    let (first, rest) = pointer.tokens().split_first()?;
    follow(member(members, first)?, rest).unwrap_or_else(Some).filter(|value| value.get() != "null")
}

/// The value of the member of this name.
pub(crate) fn member<'a>(members: &Members<'a>, name: &str) -> Option<&'a RawValue> {
    members.iter().find(|(known, _)| known == name).map(|(_, value)| *value)
}

/// The place in a list that a token names (RFC 6901 §4: digits without leading zeros).
fn place(token: &str) -> Option<usize> {
    let is_canonical = token == "0" || !token.starts_with('0');
    let is_number = !token.is_empty() && token.bytes().all(|byte| byte.is_ascii_digit());
    (is_canonical && is_number).then(|| token.parse().ok())?
}

/// Where `part`, a piece of `whole`, lies in it.
pub(crate) fn range_of(whole: &str, part: &str) -> Option<Range<usize>> {
    let start = part.as_ptr().addr().checked_sub(whole.as_ptr().addr())?;
    let range = start..start.checked_add(part.len())?;
    (whole.get(range.clone())? == part).then_some(range)
}

/// The text of a value that is a string.
pub(crate) fn string(value: &RawValue) -> Option<Cow<'_, str>> {
    let text = value.get();
    let plain = text.strip_prefix('"')?.strip_suffix('"').filter(|inner| !inner.contains('\\'));
    plain.map(Cow::Borrowed).or_else(|| serde_json::from_str::<JsonString<'_>>(text).ok().map(|text| text.0))
}

/// The text of a value that is an integer.
pub(crate) fn integer(value: &RawValue) -> Option<&str> {
    let text = value.get();
    let digits = text.strip_prefix('-').unwrap_or(text);
    (!digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())).then_some(text)
}

/// A string, borrowed where the text has no escapes. (serde's own `Cow` always copies.)
#[derive(Deserialize)]
#[serde(transparent)]
struct JsonString<'a>(#[serde(borrow)] Cow<'a, str>);

struct AllMembers<'a>(Members<'a>);

impl<'de: 'a, 'a> Deserialize<'de> for AllMembers<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Read;
        impl<'de> Visitor<'de> for Read {
            type Value = Members<'de>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                let mut members = Vec::new();
                while let Some(JsonString(name)) = map.next_key()? {
                    members.push((name, map.next_value()?));
                }
                Ok(members)
            }
        }
        deserializer.deserialize_map(Read).map(AllMembers)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    #[test]
    fn a_pointer_finds_a_value_byte_for_byte() {
        let text = raw(r#"{"a":{"b/c":[1, {"~":"\u0041"} ]},"":0}"#);
        let find = |pointer: &str| find(text, &pointer.parse().unwrap()).map(RawValue::get);
        assert_eq!(find("/a/b~1c/1/~0"), Some(r#""\u0041""#));
        assert_eq!(find("/a/b~1c/0"), Some("1"));
        assert_eq!(find("/"), Some("0"));
        assert_eq!(find(""), Some(text.get()));
        for absent in ["/x", "/a/b~1c/2", "/a/b~1c/01", "/a/b~1c/-", "/a/b~1c/0/x", "//x"] {
            assert_eq!(find(absent), None, "{absent}");
        }
    }

    #[test]
    fn an_object_with_a_name_twice_has_no_members() {
        assert!(members(r#"{"a":1,"\u0061":2}"#).is_none());
        let many: Vec<String> = (0..100).map(|n| format!("\"{n}\":{n}")).collect();
        assert_eq!(members(&format!("{{{}}}", many.join(","))).unwrap().len(), 100);
        assert!(members(&format!("{{{},\"7\":7}}", many.join(","))).is_none());
        for other in ["[]", "1", "", "{", r#"{"a":1}x"#, "[[\"a\",1]]"] {
            assert!(members(other).is_none(), "{other}");
        }
    }

    #[test]
    fn a_range_is_that_of_the_piece_itself() {
        let whole = r#"{"a":7,"b":7}"#;
        let members = members(whole).unwrap();
        assert_eq!(
            members.iter().map(|(_, value)| range_of(whole, value.get()).unwrap().start).collect::<Vec<_>>(),
            [5, 11]
        );
        assert_eq!(range_of(whole, "elsewhere"), None);
    }
}
