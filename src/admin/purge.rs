//! `POST /purge`: `{"accessory_ids":[…]}`, `{"group_id":"…"}`, `{"api":"…","ids":[…]}` or `{"all":true}`, and nothing else.

use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use crate::api::BatchApi;
use crate::api::request::{is_group, is_id};
use crate::cache::Cache;
use crate::cache::purges::Target;
use crate::clock::Clock;
use crate::shared::Tier;
use crate::telemetry::log::events;
use crate::telemetry::metrics::{Metrics, PurgeTarget};

const FORMS: &str = r#"{"accessory_ids":["…"]}, {"group_id":"…"}, {"api":"…","ids":["…"]} or {"all":true}"#;

/// A purge, as a request's body has it: an object with one of these names, or that of an API.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Purge {
    /// These ids, in every group and of every API.
    AccessoryIds(Vec<String>),
    /// Every id of this group.
    GroupId(String),
    /// Everything; never `false`.
    All(bool),
    /// Ids of an API.
    #[serde(untagged)]
    OfApi(ApiIds),
}

/// The purges that are an object with one name: apart, so that an error says which names there are.
#[derive(Deserialize)]
#[serde(rename_all = "snake_case")]
enum Named {
    AccessoryIds(Vec<String>),
    GroupId(String),
    All(bool),
}

impl From<Named> for Purge {
    fn from(named: Named) -> Self {
        match named {
            Named::AccessoryIds(ids) => Self::AccessoryIds(ids),
            Named::GroupId(group) => Self::GroupId(group),
            Named::All(all) => Self::All(all),
        }
    }
}

/// Ids of one API.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct ApiIds {
    /// The API's name.
    pub api: String,
    /// The ids.
    pub ids: Vec<String>,
}

impl Purge {
    /// Reads a purge where these APIs are configured.
    pub(super) fn read(body: &[u8], apis: &[BatchApi]) -> Result<Self, String> {
        let of_one = |error| format!("{error}; the body must be a JSON object, one of these: {FORMS}");
        let names_api = serde_json::from_slice::<Value>(body).is_ok_and(|body| body.get("api").is_some());
        let purge = if names_api {
            serde_json::from_slice(body).map(Purge::OfApi)
        } else {
            serde_json::from_slice::<Named>(body).map(Purge::from)
        };
        let check_ids = |name: &str, ids: &[String], apis: &[&BatchApi]| {
            let most = apis.iter().map(|api| api.ids.chars).max().unwrap_or_default();
            if ids.is_empty() {
                return Err(format!("{name} names no id"));
            }
            if !ids.iter().all(|id| apis.iter().any(|api| is_id(api, id))) {
                return Err(format!("an id in {name} is not of 1 to {most} characters"));
            }
            Ok(())
        };
        let purge = purge.map_err(of_one)?;
        match &purge {
            Purge::AccessoryIds(ids) => check_ids("accessory_ids", ids, &apis.iter().collect::<Vec<_>>())?,
            Purge::OfApi(ApiIds { api, ids }) => match apis.iter().find(|known| *known.name == **api) {
                Some(known) => check_ids("ids", ids, &[known])?,
                None => {
                    let names: Vec<&str> = apis.iter().map(|api| &*api.name).collect();
                    return Err(format!("there is no such API; there is {}", names.join(", ")));
                }
            },
            Purge::GroupId(group) if group.is_empty() || !apis.iter().any(|api| is_group(api, group)) => {
                let most = apis.iter().map(|api| api.group_chars).max().unwrap_or_default();
                return Err(format!("group_id is not of 1 to {most} characters"));
            }
            Purge::All(false) => return Err("all must be true, or be left out".to_owned()),
            Purge::GroupId(_) | Purge::All(true) => {}
        }
        Ok(purge)
    }

    /// Purges, and returns what was done, and whether the fleet that shares `tier` is told. The log has no ids and no group.
    pub(super) async fn run(&self, cache: &Arc<Cache>, clock: &Clock, metrics: &Metrics, tier: Option<&Tier>) -> Value {
        let covered = || tier.map_or(0, |tier| tier.covered());
        let (purges, covered_before) = (cache.purges(), covered());
        let (target, mut done) = match self {
            Purge::AccessoryIds(ids) => {
                purges.purge(ids.iter().map(|id| Target::Id(id)), clock).await;
                events::PurgedIds { ids: ids.len() }.log();
                (PurgeTarget::Ids, json!({ "purged": "ids", "ids": ids.len() }))
            }
            Purge::OfApi(ApiIds { api, ids }) => {
                purges.purge(ids.iter().map(|id| Target::OfApi { api, id }), clock).await;
                events::PurgedApiIds { api, ids: ids.len() }.log();
                (PurgeTarget::Ids, json!({ "purged": "ids", "api": api, "ids": ids.len() }))
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
        let is_merged = covered() > covered_before;
        let fleet = match tier {
            None => "none",
            Some(tier) if tier.is_told().await => "told",
            Some(_) => "pending",
        };
        if let Some(done) = done.as_object_mut() {
            done.insert("fleet".to_owned(), fleet.into());
            if is_merged {
                done.insert("merged".to_owned(), true.into());
            }
        }
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_forms_are_read_and_nothing_else() {
        let ids = |list: &[&str]| Ok(Purge::AccessoryIds(list.iter().map(|id| (*id).to_owned()).collect()));
        let apis = [BatchApi::preset("huawei-osm").unwrap()];
        let read = |body: &str| Purge::read(body.as_bytes(), &apis);
        assert_eq!(read(r#"{"accessory_ids":["1","a/b"]}"#), ids(&["1", "a/b"]));
        assert_eq!(read(r#" { "group_id" : "g" } "#), Ok(Purge::GroupId("g".into())));
        assert_eq!(read(r#"{"all":true}"#), Ok(Purge::All(true)));
        let of_api = ApiIds { api: "huawei-osm".into(), ids: vec!["1".into()] };
        assert_eq!(serde_json::to_value(Purge::OfApi(of_api.clone())).unwrap(), json!(of_api));
        assert_eq!(read(r#"{"api":"huawei-osm","ids":["1"]}"#), Ok(Purge::OfApi(of_api)));
        let long = format!(r#"{{"accessory_ids":["{}"]}}"#, "x".repeat(65));
        let long_group = format!(r#"{{"group_id":"{}"}}"#, "x".repeat(33));
        for (body, expected) in [
            ("", "must be a JSON object"),
            ("[[\"1\"],null,null]", "must be a JSON object"),
            ("\"all\"", "must be a JSON object"),
            ("{", "EOF"),
            ("{}", "one of these"),
            (r#"{"all":null}"#, "expected a boolean"),
            (r#"{"all":true,"group_id":"g"}"#, "one of these"),
            (r#"{"accessory_ids":["1"],"group_id":"g"}"#, "one of these"),
            (r#"{"all":false}"#, "must be true"),
            (r#"{"all":1}"#, "expected a boolean"),
            (r#"{"all":true,"all":true}"#, "one of these"),
            (r#"{"all":true} x"#, "trailing characters"),
            (r#"{"ids":["1"]}"#, "unknown variant `ids`"),
            (r#"{"accessory_ids":[]}"#, "no id"),
            (r#"{"accessory_ids":[""]}"#, "characters"),
            (r#"{"accessory_ids":"1"}"#, "expected a sequence"),
            (r#"{"accessory_ids":[1]}"#, "expected a string"),
            (r#"{"group_id":""}"#, "characters"),
            (r#"{"api":"x","ids":["1"]}"#, "there is huawei-osm"),
            (r#"{"api":"huawei-osm","ids":[]}"#, "no id"),
            (r#"{"api":"huawei-osm"}"#, "missing field `ids`"),
            (r#"{"api":"huawei-osm","ids":["1"],"all":true}"#, "unknown field `all`"),
            (&long, "characters"),
            (&long_group, "characters"),
        ] {
            let error = read(body).unwrap_err();
            assert!(error.contains(expected), "{body}: {error}");
        }
    }
}
