//! The batch APIs that are simulated, and how their clients ask and read answers.

use std::time::Duration;

use http::Method;
use serde_json::Value;
use sidelink::config::batch::BatchApi;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::link_is_for;
use sidelink::demo::origin::shapes::Shape;

use crate::support::{Reply, query};

/// A batch API.
#[derive(Clone, Copy, PartialEq)]
pub enum Over {
    /// The built-in one: a GET.
    HuaweiOsm,
    /// A POST, with items in an envelope that say in how many seconds their links expire.
    GitLfs,
}

/// Token, group and language of a client. git-lfs has repositories in the place of groups, and no languages.
pub type Scope = (&'static str, Option<&'static str>, Option<&'static str>);

/// A request of a client.
pub struct Asked {
    pub method: Method,
    pub target: String,
    pub headers: Vec<(&'static str, String)>,
    pub body: String,
}

impl Asked {
    pub fn headers(&self) -> Vec<(&str, &str)> {
        self.headers.iter().map(|(name, value)| (*name, value.as_str())).collect()
    }
}

impl Over {
    pub fn shape(self) -> &'static Shape {
        Shape::of(if self == Self::HuaweiOsm { "huawei-osm" } else { "git-lfs" }).unwrap()
    }

    pub fn api(self) -> BatchApi {
        BatchApi::preset(self.shape().name).unwrap()
    }

    pub fn batch(self, (token, group, language): Scope, ids: &[String]) -> Asked {
        match self {
            Self::HuaweiOsm => {
                let mut target = query(&ids.iter().map(String::as_str).collect::<Vec<_>>());
                target.extend(group.map(|group| format!("&{}={group}", api::GROUP)));
                let mut headers = vec![("x-auth-token", token.to_owned())];
                headers.extend(language.map(|language| ("x-language", language.to_owned())));
                Asked { method: Method::GET, target, headers, body: String::new() }
            }
            Self::GitLfs => {
                let (_, body) = self.shape().batch(ids);
                let headers = vec![
                    ("authorization", format!("Basic {token}")),
                    ("content-type", "application/vnd.git-lfs+json".to_owned()),
                ];
                Asked { method: Method::POST, target: path(group), headers, body }
            }
        }
    }

    /// The ids of an answer with their links, if they have any; `None`: it is an error, which is in some shape.
    pub fn links(self, reply: &Reply) -> Option<Vec<(String, Option<String>)>> {
        let body = reply.json();
        let error = if self == Self::HuaweiOsm { "error_code" } else { "message" };
        // An error that is scripted has the shape of the built-in API, whoever asks.
        let is_error = body.get(error).is_some() || body.get("error_code").is_some();
        if reply.status != 200 || is_error {
            assert!(body[error].is_string() || body["error_code"].is_string(), "an error in no shape: {body}");
            return None;
        }
        Some(self.shape().links(&body))
    }

    pub fn link_is_for(self, link: &str, id: &str, asked: &Asked, (token, group, language): Scope) -> bool {
        match self {
            Self::HuaweiOsm => link_is_for(link, id, group, token, language, None),
            Self::GitLfs => self.shape().link_is_for_at(&path(group), link, id, &asked.headers()),
        }
    }

    /// An answer with an item that nobody asked for.
    pub fn unmatched(self) -> &'static str {
        match self {
            Self::HuaweiOsm => r#"{"accessory_urls":[{"accessory_id":9999,"accessory_url":"u"}]}"#,
            Self::GitLfs => r#"{"transfer":"basic","objects":[{"oid":"9999"}],"hash_algo":"sha256"}"#,
        }
    }

    /// The ids of an answer to `ids`, if one of them is not known.
    pub fn expected<'i>(self, ids: &'i [String], missing: &str) -> Vec<&'i String> {
        ids.iter().filter(|id| self == Self::GitLfs || *id != missing).collect()
    }

    /// In how many seconds each link of an answer expires, as its item says.
    pub fn spans(self, reply: &Reply) -> Vec<Duration> {
        let items = reply.json()["objects"].as_array().cloned().unwrap_or_default();
        let span = |item: &Value| item.pointer("/actions/download/expires_in")?.as_u64().map(Duration::from_secs);
        items.iter().filter_map(span).collect()
    }
}

fn path(group: Option<&str>) -> String {
    format!("/{}.git/info/lfs/objects/batch", group.unwrap_or("org/repo"))
}
