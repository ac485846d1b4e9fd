//! Names of ids and groups.
//!
//! The name of an id or a group is its text. With an unencoded `+` in a query, it has two readings: some servers read a space,
//! others a plus. Its name is then its spelling in the query, after a mark that no text begins with: it never equals the
//! name of another id. So is the name of an id that is a number in JSON.

use std::borrow::Cow;

use percent_encoding::percent_decode_str;
use serde_json::Value;

/// The first character of a name with two readings: a noncharacter, which begins no id and no group.
const MARK: char = '\u{ffff}';

/// The name of an id or group with an unencoded `+` in its spelling.
pub fn name_of_spelling(spelling: &str) -> String {
    let mut name = String::with_capacity(MARK.len_utf8() + spelling.len());
    name.push(MARK);
    name.push_str(spelling);
    name
}

/// The name of an id that a JSON text has as a number of these digits: never that of a string.
pub fn name_of_number(digits: &str) -> String {
    name_of_spelling(digits)
}

/// Whether this text can be no id and no group.
pub fn is_reserved(text: &str) -> bool {
    text.starts_with(MARK)
}

/// The spelling in the query, of a name with two readings.
pub fn spelling(name: &str) -> Option<&str> {
    name.strip_prefix(MARK)
}

/// The name for people: the text, or the spelling.
pub fn shown(name: &str) -> &str {
    spelling(name).unwrap_or(name)
}

/// The texts that a name may stand for: one, or two, with a plus and with a space. A number stands for its digits.
pub fn readings(name: &str) -> impl Iterator<Item = Cow<'_, str>> {
    let (first, second) = match spelling(name) {
        None => (Cow::Borrowed(name), None),
        Some(spelling) => {
            let decode = |text: &str| percent_decode_str(text).decode_utf8_lossy().into_owned();
            let second = || Cow::Owned(decode(&spelling.replace('+', " ")));
            (Cow::Owned(decode(spelling)), spelling.contains('+').then(second))
        }
    };
    std::iter::once(first).chain(second)
}

/// The group of a batch. Each of the three kinds is another scope.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Group<'r> {
    /// There is none.
    #[default]
    Absent,
    /// It is JSON's `null`.
    Null,
    /// This name, which may be empty.
    Named(Cow<'r, str>),
}

impl<'r> From<Option<&'r str>> for Group<'r> {
    fn from(name: Option<&'r str>) -> Self {
        name.map_or(Group::Absent, |name| Group::Named(name.into()))
    }
}

impl Group<'_> {
    /// Its name, if it has one.
    pub fn name(&self) -> Option<&str> {
        match self {
            Group::Named(name) => Some(name),
            Group::Absent | Group::Null => None,
        }
    }

    /// As it stands in a JSON object, if it does.
    pub fn to_json(&self) -> Option<Value> {
        match self {
            Group::Absent => None,
            Group::Null => Some(Value::Null),
            Group::Named(name) => Some(shown(name).into()),
        }
    }

    /// The same, owned.
    pub fn to_static(&self) -> Group<'static> {
        match self {
            Group::Absent => Group::Absent,
            Group::Null => Group::Null,
            Group::Named(name) => Group::Named(Cow::Owned(name.as_ref().to_owned())),
        }
    }

    /// Its fields in a scope's hash: they differ for groups that differ.
    pub fn fields(&self) -> impl Iterator<Item = Option<&[u8]>> {
        let null = matches!(self, Group::Null).then_some(None);
        std::iter::once(self.name().map(str::as_bytes)).chain(null)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_spelling_with_a_plus_has_two_readings_and_a_name_that_no_text_has() {
        let name = name_of_spelling("a+b%2Bc");
        assert_eq!(readings(&name).collect::<Vec<_>>(), ["a+b+c", "a b+c"]);
        assert_eq!((spelling(&name), shown(&name)), (Some("a+b%2Bc"), "a+b%2Bc"));
        assert!(is_reserved(&name) && !is_reserved("a+b+c"));
        assert_eq!(readings("a+b").collect::<Vec<_>>(), ["a+b"]);
        assert_eq!((spelling("a+b"), shown("a+b")), (None, "a+b"));
    }

    #[test]
    fn groups_of_three_kinds_have_different_fields() {
        let groups = [Group::Absent, Group::Null, Group::Named("".into()), Group::Named("null".into())];
        let fields: Vec<Vec<_>> = groups.iter().map(|group| group.fields().collect()).collect();
        assert_eq!(fields, [vec![None], vec![None, None], vec![Some(&b""[..])], vec![Some(&b"null"[..])]]);
    }
}
