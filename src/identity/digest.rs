//! The digest of what makes a user: SHA-256 over the source, and over the name and the canonical form of each field.
//!
//! Canonical is what JSON says to be equal, and no more: members in the order of their names, strings without their escapes. A
//! number is its text. An object with a name twice has no canonical form.

use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::auth::UserId;
use crate::message::json::{elements, members, string};

/// The deepest nesting. Each level is read again by the one around it.
const DEPTH: usize = 32;

/// A user's digest under construction.
#[derive(Clone)]
pub(super) struct UserDigest(Sha256);

impl UserDigest {
    /// Of a user that `source` names, by rules of this `kind`.
    pub(super) fn new(kind: &str, source: &str) -> Self {
        let mut digest = Self(Sha256::new());
        digest.bytes(b'v', b"sidelink user 1");
        digest.bytes(b'k', kind.as_bytes());
        digest.bytes(b'u', source.as_bytes());
        digest
    }

    /// A field, or its absence.
    ///
    /// # Errors
    /// It has no canonical form.
    pub(super) fn field(&mut self, name: &str, value: Option<&RawValue>) -> Result<(), NotCanonical> {
        self.named(name, value.is_some());
        value.map_or(Ok(()), |value| self.value(value, 0))
    }

    /// A field whose value is a list without an order, where it is a list.
    ///
    /// # Errors
    /// It has no canonical form.
    pub(super) fn set(&mut self, name: &str, value: &RawValue) -> Result<(), NotCanonical> {
        let Some(elements) = elements(value.get()) else { return self.field(name, Some(value)) };
        let digests = elements.into_iter().map(|element| {
            let mut digest = Self(Sha256::new());
            digest.value(element, 1)?;
            Ok(digest.0.finalize().into())
        });
        self.members_of_set(name, digests.collect::<Result<_, _>>()?);
        Ok(())
    }

    /// A field whose value is a string of words without an order, between spaces, where it is a string (RFC 6749 §3.3).
    ///
    /// # Errors
    /// It has no canonical form.
    pub(super) fn words(&mut self, name: &str, value: &RawValue) -> Result<(), NotCanonical> {
        let Some(text) = string(value) else { return self.field(name, Some(value)) };
        let words = text.split(' ').filter(|word| !word.is_empty());
        self.members_of_set(name, words.map(|word| Sha256::digest(word).into()).collect());
        Ok(())
    }

    pub(super) fn finish(self) -> UserId {
        UserId(self.0.finalize().into())
    }

    fn named(&mut self, name: &str, is_there: bool) {
        self.bytes(b'f', name.as_bytes());
        self.0.update([u8::from(is_there)]);
    }

    fn members_of_set(&mut self, name: &str, mut digests: Vec<[u8; 32]>) {
        digests.sort_unstable();
        digests.dedup();
        self.named(name, true);
        self.bytes(b'e', &digests.concat());
    }

    /// Each piece bears its length, so no two lists of pieces are the same bytes.
    fn bytes(&mut self, tag: u8, bytes: &[u8]) {
        self.count(tag, bytes.len());
        self.0.update(bytes);
    }

    fn count(&mut self, tag: u8, count: usize) {
        self.0.update([tag]);
        self.0.update((count as u64).to_le_bytes());
    }

    fn value(&mut self, value: &RawValue, depth: usize) -> Result<(), NotCanonical> {
        if depth > DEPTH {
            return Err(NotCanonical);
        }
        let text = value.get();
        match text.bytes().next().ok_or(NotCanonical)? {
            b'{' => {
                let mut members = members(text).ok_or(NotCanonical)?;
                members.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
                self.count(b'o', members.len());
                for (name, value) in members {
                    self.bytes(b'm', name.as_bytes());
                    self.value(value, depth + 1)?;
                }
            }
            b'[' => {
                let elements = elements(text).ok_or(NotCanonical)?;
                self.count(b'l', elements.len());
                for element in elements {
                    self.value(element, depth + 1)?;
                }
            }
            b'"' => self.bytes(b's', string(value).ok_or(NotCanonical)?.as_bytes()),
            _ => self.bytes(b'n', text.as_bytes()),
        }
        Ok(())
    }
}

/// A value has a name twice, a string that is none, or is nested too deeply.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct NotCanonical;

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;
    use serde_json::{Map, Value, json};

    use super::*;

    fn raw(text: &str) -> &RawValue {
        serde_json::from_str(text).unwrap()
    }

    fn field(text: &str) -> Option<UserId> {
        let mut digest = UserDigest::new("test", "here");
        digest.field("a", Some(raw(text))).ok().map(|()| digest.finish())
    }

    fn set(text: &str) -> Option<UserId> {
        let mut digest = UserDigest::new("test", "here");
        digest.set("a", raw(text)).ok().map(|()| digest.finish())
    }

    fn words(text: &str) -> Option<UserId> {
        let mut digest = UserDigest::new("test", "here");
        digest.words("a", raw(text)).ok().map(|()| digest.finish())
    }

    #[test]
    fn what_json_says_to_be_equal_is_equal() {
        for (one, other) in [
            (r#"{"a":1,"b":[true,null]}"#, "{ \"b\" : [ true , null ],\n\"a\":1}"),
            (r#""A/é""#, r#""\u0041\/\u00e9""#),
            (r#"{"x":{"d":1,"c":2}}"#, r#"{"x":{"c":2,"d":1}}"#),
        ] {
            assert_eq!(field(one).unwrap(), field(other).unwrap(), "{one}");
        }
        assert_eq!(set(r#"[{"id":"1"},{"id":"2"}]"#), set(r#"[{"id":"2"},{"id":"1"},{"id":"2"}]"#));
        assert_eq!(words(r#""read write""#), words(r#""write  read""#));
    }

    #[test]
    fn what_json_does_not_say_to_be_equal_is_not() {
        let values = [
            "1",
            "1.0",
            "1e0",
            "\"1\"",
            "null",
            "[]",
            "{}",
            "\"\"",
            "[1,2]",
            "[2,1]",
            "[[1],2]",
            "[[1,2]]",
            "[12]",
            "true",
            "\"true\"",
            r#"{"a":"b"}"#,
            r#"{"ab":""}"#,
            r#"{"":"ab"}"#,
            r#"[{"a":1},{"a":2}]"#,
            r#"["a","b"]"#,
            r#"["ab"]"#,
            "18446744073709551616",
            "18446744073709551617",
            "-0",
            "0",
        ];
        let mut digests: Vec<_> = values.iter().map(|value| field(value).unwrap().0).collect();
        // A set, a list and a string of words are three things.
        digests.extend([set("[1,2]"), set(r#"["a","b"]"#), words(r#""a b""#), words(r#""""#)].map(|id| id.unwrap().0));
        let mut absent = UserDigest::new("test", "here");
        absent.field("a", None).unwrap();
        digests.push(absent.finish().0);
        let count = digests.len();
        digests.sort_unstable();
        digests.dedup();
        assert_eq!(digests.len(), count);
        let of = |kind, source, name| {
            let mut digest = UserDigest::new(kind, source);
            digest.field(name, None).unwrap();
            digest.finish()
        };
        assert_ne!(of("k", "s", "n"), of("ks", "", "n"));
        assert_ne!(of("k", "s", "n"), of("k", "sn", ""));
    }

    /// A small domain, so that equal values are frequent.
    fn any_value() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            Just(Value::Null),
            any::<bool>().prop_map(Value::from),
            (0..3).prop_map(Value::from),
            "[a\"]{0,2}".prop_map(Value::from),
        ];
        leaf.prop_recursive(3, 8, 3, |inner| {
            prop_oneof![
                vec(inner.clone(), 0..3).prop_map(Value::from),
                vec(("[ab]{0,1}", inner), 0..3).prop_map(|members| members.into_iter().collect::<Map<_, _>>().into()),
            ]
        })
    }

    /// The text of a value, with its members in reverse and with escapes and spaces that say nothing.
    fn otherwise(value: &Value) -> String {
        match value {
            Value::String(text) => {
                text.chars().fold("\"".to_owned(), |text, char| format!("{text}\\u{:04x}", u32::from(char))) + "\""
            }
            Value::Array(values) => {
                format!("[ {} ]", values.iter().map(otherwise).collect::<Vec<_>>().join(" ,\n"))
            }
            Value::Object(members) => {
                let members = members.iter().rev();
                let members = members.map(|(name, value)| format!("{}: {}", otherwise(&json!(name)), otherwise(value)));
                format!("{{ {} }}", members.collect::<Vec<_>>().join(" , "))
            }
            other => other.to_string(),
        }
    }

    proptest! {
        #[test]
        fn equal_values_have_one_digest_however_they_are_written_and_others_have_others(
            one in any_value(), other in any_value(),
        ) {
            prop_assert_eq!(field(&otherwise(&one)), field(&one.to_string()));
            prop_assert!(field(&one.to_string()).is_some());
            prop_assert_eq!(field(&one.to_string()) == field(&other.to_string()), one == other);
        }

        #[test]
        fn no_bytes_are_a_panic(text in "[\\[\\]{}\",:0a\\\\u. ]{0,40}") {
            if let Ok(value) = serde_json::from_str::<&RawValue>(&text) {
                let mut digest = UserDigest::new("test", "here");
                let _ = (digest.field("a", Some(value)), digest.set("a", value), digest.words("a", value));
            }
        }
    }

    #[test]
    fn what_readers_differ_about_has_no_digest() {
        let deep = |levels: usize| format!("{}1{}", "[".repeat(levels), "]".repeat(levels));
        assert!(field(&deep(DEPTH)).is_some());
        for text in [r#"{"a":1,"a":1}"#, r#"[{"x":{"\u0061":1,"a":2}}]"#, r#""\ud800""#, &deep(DEPTH + 1)] {
            assert_eq!(field(text), None, "{text}");
        }
        assert_eq!(set(r#"[{"a":1,"a":1}]"#), None);
        assert_eq!(words(r#""\ud800 a""#), None);
    }
}
