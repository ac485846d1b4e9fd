//! `POST /purge`: `{"accessory_ids":[…]}`, `{"group_id":"…"}` or `{"all":true}`, and nothing else.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::api;
use crate::api::request::{is_group, is_id};
use crate::cache::Cache;
use crate::cache::purges::Target;
use crate::clock::Clock;
use crate::telemetry::log::events;
use crate::telemetry::metrics::{Metrics, PurgeTarget};

const FORMS: &str = r#"{"accessory_ids":["…"]}, {"group_id":"…"} or {"all":true}"#;

/// A purge.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Purge {
    Ids(Vec<String>),
    Group(String),
    All,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Text {
    accessory_ids: Option<Vec<String>>,
    group_id: Option<String>,
    all: Option<bool>,
}

impl Purge {
    /// Reads a request's body.
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        // serde reads an array as an object whose names are left out.
        if !body.trim_ascii_start().starts_with(b"{") {
            return Err(format!("the body must be a JSON object: {FORMS}"));
        }
        let text: Text = serde_json::from_slice(body).map_err(|error| format!("{error}; the body must be {FORMS}"))?;
        match (text.accessory_ids, text.group_id, text.all) {
            (Some(ids), None, None) if ids.is_empty() => Err("accessory_ids names no id".to_owned()),
            (Some(ids), None, None) if ids.iter().all(|id| is_id(id)) => Ok(Purge::Ids(ids)),
            (Some(_), None, None) => Err(format!("an id in accessory_ids is not of 1 to {} characters", api::ID_CHARS)),
            (None, Some(group), None) if !group.is_empty() && is_group(&group) => Ok(Purge::Group(group)),
            (None, Some(_), None) => Err(format!("group_id is not of 1 to {} characters", api::GROUP_CHARS)),
            (None, None, Some(true)) => Ok(Purge::All),
            (None, None, Some(false)) => Err("all must be true, or be left out".to_owned()),
            _ => Err(format!("the body must be one of three: {FORMS}")),
        }
    }

    /// Purges, and returns what was done. The log has no ids and no group.
    pub(super) async fn run(&self, cache: &Arc<Cache>, clock: &Clock, metrics: &Metrics) -> Value {
        let purges = cache.purges();
        let (target, done) = match self {
            Purge::Ids(ids) => {
                purges.purge(ids.iter().map(|id| Target::Id(id)), clock).await;
                events::PurgedIds { ids: ids.len() }.log();
                (PurgeTarget::Ids, json!({ "purged": "ids", "ids": ids.len() }))
            }
            Purge::Group(group) => {
                purges.purge([Target::Group(group)], clock).await;
                events::PurgedGroup {}.log();
                (PurgeTarget::Group, json!({ "purged": "group" }))
            }
            Purge::All => {
                purges.purge([Target::All], clock).await;
                // The purge is in effect already; this frees the memory. Not on this thread: a large cache takes a while.
                let (swept, now) = (Arc::clone(cache), clock.now());
                let links = tokio::task::spawn_blocking(move || swept.sweep(now)).await.unwrap_or_default();
                events::PurgedAll { links }.log();
                (PurgeTarget::All, json!({ "purged": "all", "links": links }))
            }
        };
        metrics.purges.of(target).inc();
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_three_forms_are_read_and_nothing_else() {
        let ids = |list: &[&str]| Ok(Purge::Ids(list.iter().map(|id| (*id).to_owned()).collect()));
        assert_eq!(Purge::read(br#"{"accessory_ids":["1","a/b"]}"#), ids(&["1", "a/b"]));
        assert_eq!(Purge::read(br#" { "group_id" : "g" } "#), Ok(Purge::Group("g".into())));
        assert_eq!(Purge::read(br#"{"all":true}"#), Ok(Purge::All));
        let long = format!(r#"{{"accessory_ids":["{}"]}}"#, "x".repeat(65));
        let long_group = format!(r#"{{"group_id":"{}"}}"#, "x".repeat(33));
        for (body, expected) in [
            ("", "must be a JSON object"),
            ("[[\"1\"],null,null]", "must be a JSON object"),
            ("\"all\"", "must be a JSON object"),
            ("{", "EOF"),
            ("{}", "one of three"),
            (r#"{"all":null}"#, "one of three"),
            (r#"{"all":true,"group_id":"g"}"#, "one of three"),
            (r#"{"accessory_ids":["1"],"group_id":"g"}"#, "one of three"),
            (r#"{"all":false}"#, "must be true"),
            (r#"{"all":1}"#, "expected a boolean"),
            (r#"{"all":true,"all":true}"#, "duplicate field"),
            (r#"{"all":true} x"#, "trailing characters"),
            (r#"{"ids":["1"]}"#, "unknown field `ids`"),
            (r#"{"accessory_ids":[]}"#, "no id"),
            (r#"{"accessory_ids":[""]}"#, "characters"),
            (r#"{"accessory_ids":"1"}"#, "expected a sequence"),
            (r#"{"accessory_ids":[1]}"#, "expected a string"),
            (r#"{"group_id":""}"#, "characters"),
            (&long, "characters"),
            (&long_group, "characters"),
        ] {
            let error = Purge::read(body.as_bytes()).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
