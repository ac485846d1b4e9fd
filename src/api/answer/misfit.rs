//! Why an answer is not as its API is described.

use std::collections::HashSet;

use serde_json::value::RawValue;

use super::{has_error, items_of, list_of, text_of};
use crate::api::json;
use crate::api::{BatchApi, id};

/// The first reason why [`super::read`] does not accept a body as the answer to a call. Items are counted from 1.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AnswerMisfit {
    /// It is no JSON from this line and column on.
    NotJson {
        /// The line, counted from 1.
        line: usize,
        /// The column, counted from 1.
        column: usize,
    },
    /// `errors` says that it is an error.
    Error,
    /// It has no list, or no object, at `items.at`.
    NoList,
    /// An object in it has a name twice.
    TwiceNamed,
    /// This item has no id at `items.key`.
    NoId(usize),
    /// This item is for an id that was not asked for.
    NotAsked(usize, String),
    /// This item is the second one for its id.
    Second(usize, String),
}

impl AnswerMisfit {
    /// The first misfit of `body`, the answer to a call for `ids`; `None` if [`super::read`] accepts it.
    pub fn of(api: &BatchApi, body: &[u8], ids: &[&str]) -> Option<Self> {
        let whole = match serde_json::from_slice::<&RawValue>(text_of(body)) {
            Ok(whole) => whole,
            Err(error) => return Some(Self::NotJson { line: error.line(), column: error.column() }),
        };
        if has_error(api, whole) {
            return Some(Self::Error);
        }
        let Some(list) = list_of(api, whole) else { return Some(Self::NoList) };
        let Some(items) = items_of(api, list) else { return Some(Self::TwiceNamed) };
        let (mut known, mut seen) = (HashSet::new(), HashSet::new());
        for readings in ids.iter().map(|id| id::readings(id)) {
            known.extend(readings);
        }
        for (at, item) in (1..).zip(items) {
            let text = item.as_ref().map_or("", |item| item.value.get());
            let is_twice_named = text.starts_with('{') && json::members(text).is_none();
            let Some((id, _)) = item.and_then(|item| item.read(api)) else {
                return Some(if is_twice_named { Self::TwiceNamed } else { Self::NoId(at) });
            };
            if !known.contains(&id) {
                return Some(Self::NotAsked(at, id.into_owned()));
            }
            if !seen.insert(id.clone()) {
                return Some(Self::Second(at, id.into_owned()));
            }
        }
        None
    }
}
