//! `POST /purge`: `{"accessory_ids":[…]}`, `{"group_id":"…"}` or `{"all":true}`, and nothing else.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api;
use crate::api::request::{is_group, is_id};
use crate::cache::Cache;
use crate::cache::purges::Target;
use crate::clock::Clock;
use crate::telemetry::log::events;
use crate::telemetry::metrics::{Metrics, PurgeTarget};

const FORMS: &str = r#"{"accessory_ids":["…"]}, {"group_id":"…"} or {"all":true}"#;

/// A purge, as a request's body has it: an object with one of these names.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purge {
    /// These ids, in every group.
    AccessoryIds(Vec<String>),
    /// Every id of this group.
    GroupId(String),
    /// Everything; never `false`.
    All(bool),
}

impl Purge {
    pub(super) fn read(body: &[u8]) -> Result<Self, String> {
        let purge = serde_json::from_slice(body);
        match purge.map_err(|error| format!("{error}; the body must be a JSON object, one of three: {FORMS}"))? {
            Purge::AccessoryIds(ids) if ids.is_empty() => Err("accessory_ids names no id".to_owned()),
            Purge::AccessoryIds(ids) if !ids.iter().all(|id| is_id(id)) => {
                Err(format!("an id in accessory_ids is not of 1 to {} characters", api::ID_CHARS))
            }
            Purge::GroupId(group) if group.is_empty() || !is_group(&group) => {
                Err(format!("group_id is not of 1 to {} characters", api::GROUP_CHARS))
            }
            Purge::All(false) => Err("all must be true, or be left out".to_owned()),
            purge => Ok(purge),
        }
    }

    /// Purges, and returns what was done. The log has no ids and no group.
    pub(super) async fn run(&self, cache: &Arc<Cache>, clock: &Clock, metrics: &Metrics) -> Value {
        let purges = cache.purges();
        let (target, done) = match self {
            Purge::AccessoryIds(ids) => {
                purges.purge(ids.iter().map(|id| Target::Id(id)), clock).await;
                events::PurgedIds { ids: ids.len() }.log();
                (PurgeTarget::Ids, json!({ "purged": "ids", "ids": ids.len() }))
            }
            Purge::GroupId(group) => {
                purges.purge([Target::Group(group)], clock).await;
                events::PurgedGroup {}.log();
                (PurgeTarget::Group, json!({ "purged": "group" }))
            }
            Purge::All(_) => {
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
        let ids = |list: &[&str]| Ok(Purge::AccessoryIds(list.iter().map(|id| (*id).to_owned()).collect()));
        assert_eq!(Purge::read(br#"{"accessory_ids":["1","a/b"]}"#), ids(&["1", "a/b"]));
        assert_eq!(Purge::read(br#" { "group_id" : "g" } "#), Ok(Purge::GroupId("g".into())));
        assert_eq!(Purge::read(br#"{"all":true}"#), Ok(Purge::All(true)));
        let long = format!(r#"{{"accessory_ids":["{}"]}}"#, "x".repeat(65));
        let long_group = format!(r#"{{"group_id":"{}"}}"#, "x".repeat(33));
        for (body, expected) in [
            ("", "must be a JSON object"),
            ("[[\"1\"],null,null]", "must be a JSON object"),
            ("\"all\"", "must be a JSON object"),
            ("{", "EOF"),
            ("{}", "one of three"),
            (r#"{"all":null}"#, "expected a boolean"),
            (r#"{"all":true,"group_id":"g"}"#, "one of three"),
            (r#"{"accessory_ids":["1"],"group_id":"g"}"#, "one of three"),
            (r#"{"all":false}"#, "must be true"),
            (r#"{"all":1}"#, "expected a boolean"),
            (r#"{"all":true,"all":true}"#, "one of three"),
            (r#"{"all":true} x"#, "trailing characters"),
            (r#"{"ids":["1"]}"#, "unknown variant `ids`"),
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
