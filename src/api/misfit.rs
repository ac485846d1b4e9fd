//! How a request does not fit the description of its API.

use std::fmt::{self, Display};

use serde::de::IgnoredAny;

/// The first thing in a request that is not as its API is described. The texts name keys of `[[batch]]`, and no text of the request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Misfit {
    /// Its body has a Content-Encoding.
    Coded,
    /// It has neither a query nor a body where the API has ids.
    NoIds,
    /// It has ids in both query and body, or anything in both where `parameters` names those of one.
    Both,
    /// Its body is not JSON.
    NotJson,
    /// Its body is no object, or has a name twice.
    NotAnObject,
    /// There is no list at `ids.body`.
    NoList,
    /// The list has no elements.
    EmptyList,
    /// This element, counted from 1, names no id.
    Element(u32, ElementMisfit),
    /// Two elements have the same id, and differ.
    Ambiguous,
    /// The ids are listed in a way that `ids.styles` does not name, or in two ways.
    Style,
    /// An id in the query is empty, too long, or not to be decoded.
    Id,
    /// The group is there twice, is no string, or is too long.
    Group,
    /// There is a parameter, or a member of the body, that `parameters` does not name.
    Parameter,
    /// A name in the query cannot be decoded.
    Undecodable,
}

/// Why an element of the list in a body names no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ElementMisfit {
    /// It is an object, and `ids.key` is not set.
    Object,
    /// It is an object without anything at `ids.key`, or with a name twice.
    NoKey,
    /// The id is a number, and `ids.numbers` is not set.
    Number,
    /// The id is empty or too long, or begins with U+FFFF.
    Length,
    /// It is no id: a list, for one, or null.
    Kind,
}

impl Misfit {
    /// The misfit of a body that is no object with each name once.
    pub(super) fn of_no_object(body: &str) -> Self {
        if serde_json::from_str::<IgnoredAny>(body).is_ok() { Self::NotAnObject } else { Self::NotJson }
    }

    /// The misfit of the element at this place in the list.
    pub(super) fn element(at: usize, misfit: ElementMisfit) -> Self {
        Self::Element(u32::try_from(at + 1).unwrap_or(u32::MAX), misfit)
    }
}

impl Display for Misfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Coded => "its body has a Content-Encoding",
            Self::NoIds => "it has no ids where ids.query or ids.body look for them",
            Self::Both => {
                "it has both a query and a body, with ids in both, or although parameters is set or ids.body is not"
            }
            Self::NotJson => "its body is not JSON",
            Self::NotAnObject => "its body is no JSON object, or has a name twice",
            Self::NoList => "its body has no list at ids.body",
            Self::EmptyList => "the list at ids.body is empty",
            Self::Element(at, misfit) => {
                let misfit = match misfit {
                    ElementMisfit::Object => "is an object: set ids.key, which says where its id is",
                    ElementMisfit::NoKey => "has no id at ids.key, or has a name twice",
                    ElementMisfit::Number => "has a number as its id: set ids.numbers",
                    ElementMisfit::Length => "has an id that is empty, longer than ids.chars, or begins with U+FFFF",
                    ElementMisfit::Kind => "has no string as its id",
                };
                return write!(f, "element {at} of the list at ids.body {misfit}");
            }
            Self::Ambiguous => "two elements of the list at ids.body have the same id, and differ",
            Self::Style => "its ids are listed in a way that ids.styles does not name, or in two ways",
            Self::Id => "an id in its query is empty, longer than ids.chars, or cannot be decoded",
            Self::Group => "its group is there twice, is no string, or is longer than group_chars",
            Self::Parameter => "it has a parameter, or a member of its body, that parameters does not name",
            Self::Undecodable => "a name in its query cannot be decoded",
        })
    }
}
