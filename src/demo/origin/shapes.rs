//! The batch APIs that are simulated: how each is asked, and all of it but the first's answers. A table; the endpoint is one.
//!
//! Apart from the descriptions that the proxy reads these APIs by, so that neither can hide the other's mistakes. Sources: those that
//! `docs/BATCH_APIS.md` names. Where one is silent about an id that is not known, the id is left out of the answer.

use std::time::Duration;

use http::Method;
use http::request::Parts;
use percent_encoding::percent_decode_str;
use serde_json::{Value, json};

use super::interface;
use super::links::{LinkSigner, encode, fingerprint};
use crate::clock::rfc3339;

/// How an API is asked, and where its answers have ids and links.
#[derive(Debug)]
pub struct Shape {
    /// Its name.
    pub name: &'static str,
    /// The method of its batches.
    pub method: Method,
    /// A target of its batches; up to the ids, where the query has them.
    pub target: &'static str,
    /// What stands before the first id of a batch, between two, and after the last.
    pub list: [&'static str; 3],
    /// What stands before and after a number in an id.
    pub id: [&'static str; 2],
    /// The headers of a batch; the first one is the credential of [`TOKEN`].
    pub headers: &'static [(&'static str, &'static str)],
    /// Where an answer has its items, and an item its id (none: its name in an object) and its link, by JSON Pointer.
    pub items: [&'static str; 3],
    /// The rest, but of the API that has an endpoint of its own.
    pub(super) simulated: Option<Simulated>,
}

/// How the simulated endpoint reads a request of an API, and answers it.
#[derive(Debug)]
pub(super) struct Simulated {
    /// What stands in the path before and after the part that differs.
    path: [&'static str; 2],
    /// The query parameter that has ids; or the list in a body, and the id in one of its elements, by JSON Pointer.
    ids: Ids,
    /// Members that a body has to have.
    when: &'static [(&'static str, &'static str)],
    /// The most ids of a call.
    pub(super) most: usize,
    /// The headers that have to be there.
    credentials: &'static [&'static str],
    /// The member of a body that has the seconds that links live, unless the options say less.
    life: Option<&'static str>,
    /// How its links are signed, unless the options say otherwise.
    pub(super) signer: LinkSigner,
    /// What its links begin with.
    base: &'static str,
    /// An item.
    item: fn(&Asked, &Link) -> Value,
    /// What stands in the place of one for an id that is not known.
    unknown: Option<fn(&Asked) -> Value>,
    /// The answer with these items, each beside its id.
    answer: fn(Vec<(String, Value)>) -> Value,
    /// The body of an error: status, message and request id.
    pub(super) error: fn(u16, &str, &str) -> Value,
    /// The status of a request that cannot be read.
    pub(super) invalid: u16,
    /// The media type of answers and errors.
    pub(super) media_type: &'static str,
}

#[derive(Debug)]
enum Ids {
    Query(&'static str),
    Body(&'static str, &'static str),
}

/// An id that a request asks for.
#[derive(Clone, Debug)]
pub(super) struct Asked {
    pub(super) id: String,
    /// Its element of the list, where the ids are in a body.
    element: Value,
}

/// A link for it.
struct Link {
    url: String,
    /// Seconds.
    life: u64,
    /// Unix seconds.
    expires: u64,
}

/// A request that was read.
pub(super) struct Question {
    pub(super) asked: Vec<Asked>,
    /// The part of the path that differs.
    pub(super) place: String,
    /// What the request says of the life of its links.
    life: Option<Duration>,
}

/// The token in the credential of [`Shape::headers`].
pub const TOKEN: &str = "demo-token";
/// The group of Huawei's batches.
const GROUP: &str = "demo";

const JSON: (&str, &str) = ("content-type", "application/json");
const BEARER: (&str, &str) = ("authorization", "Bearer demo-token");
const LFS: &str = "application/vnd.git-lfs+json";
const NOT_THERE: &str = "Either the object does not exist or you do not have access to it";

/// All of them.
pub static SHAPES: [Shape; 6] = [
    Shape {
        name: "huawei-osm",
        method: Method::GET,
        target: interface::PATH,
        list: ["?accessory_ids=", ",", "&group_id=demo"],
        id: ["", ""],
        headers: &[("x-auth-token", TOKEN)],
        items: ["/accessory_urls", "/accessory_id", "/accessory_url"],
        simulated: None,
    },
    Shape {
        name: "git-lfs",
        method: Method::POST,
        target: "/org/repo.git/info/lfs/objects/batch",
        list: [
            r#"{"operation":"download","transfers":["basic"],"objects":[{"size":7,"oid":""#,
            r#""},{"size":7,"oid":""#,
            r#""}],"hash_algo":"sha256"}"#,
        ],
        id: ["", ""],
        headers: &[("authorization", "Basic demo-token"), ("content-type", LFS), ("accept", LFS)],
        items: ["/objects", "/oid", "/actions/download/href"],
        simulated: Some(Simulated {
            path: ["/", "/info/lfs/objects/batch"],
            ids: Ids::Body("/objects", "/oid"),
            when: &[("/operation", "download")],
            most: 100,
            credentials: &["authorization"],
            life: None,
            signer: LinkSigner::V4,
            base: "https://lfs.s3.amazonaws.com",
            item: |asked, link| {
                let expires_at = rfc3339(link.expires.saturating_mul(1000));
                let download = json!({"href": link.url, "expires_in": link.life, "expires_at": expires_at});
                json!({"oid": asked.id, "size": asked.element.get("size"), "authenticated": true, "actions": {"download": download}})
            },
            unknown: Some(|asked| {
                let error = json!({"code": 404, "message": "Object does not exist"});
                json!({"oid": asked.id, "size": asked.element.get("size"), "error": error})
            }),
            answer: |items| json!({"transfer": "basic", "objects": values(items), "hash_algo": "sha256"}),
            error: |_, message, request_id| json!({"message": message, "request_id": request_id}),
            invalid: 422,
            media_type: LFS,
        }),
    },
    Shape {
        name: "google-photos",
        method: Method::GET,
        target: "/v1/mediaItems:batchGet",
        list: ["?mediaItemIds=", "&mediaItemIds=", ""],
        id: ["", ""],
        headers: &[BEARER],
        items: ["/mediaItemResults", "/mediaItem/id", "/mediaItem/baseUrl"],
        simulated: Some(Simulated {
            path: ["/v1/mediaItems:batchGet", ""],
            ids: Ids::Query("mediaItemIds"),
            when: &[],
            most: 50,
            credentials: &["authorization"],
            life: None,
            signer: LinkSigner::Unsigned,
            base: "https://lh3.googleusercontent.com/lr",
            item: |asked, link| json!({"mediaItem": {"id": asked.id, "baseUrl": link.url, "mimeType": "image/jpeg", "filename": "file.jpg"}}),
            unknown: Some(|_| json!({"status": {"code": 5, "message": "NOT_FOUND: Media item not found."}})),
            answer: |items| json!({"mediaItemResults": values(items)}),
            error: |status, message, _| {
                let name = match status {
                    400 => "INVALID_ARGUMENT",
                    401 => "UNAUTHENTICATED",
                    403 => "PERMISSION_DENIED",
                    404 => "NOT_FOUND",
                    429 => "RESOURCE_EXHAUSTED",
                    503 => "UNAVAILABLE",
                    _ => "INTERNAL",
                };
                json!({"error": {"code": status, "message": message, "status": name}})
            },
            invalid: 400,
            media_type: "application/json; charset=UTF-8",
        }),
    },
    Shape {
        name: "autodesk-oss",
        method: Method::POST,
        target: "/oss/v2/buckets/demo/objects/batchsigneds3download",
        list: [r#"{"requests":[{"objectKey":""#, r#""},{"objectKey":""#, r#""}]}"#],
        id: ["", ""],
        headers: &[BEARER, JSON],
        items: ["/results", "", "/url"],
        simulated: Some(Simulated {
            path: ["/oss/v2/buckets/", "/objects/batchsigneds3download"],
            ids: Ids::Body("/requests", "/objectKey"),
            when: &[],
            most: 25,
            credentials: &["authorization"],
            life: None,
            signer: LinkSigner::V4,
            base: "https://cdn.us.oss.api.autodesk.com",
            item: |_, link| json!({"status": "complete", "url": link.url, "size": 472_424, "params": {}}),
            unknown: None,
            answer: |items| json!({"results": items.into_iter().collect::<serde_json::Map<_, _>>()}),
            error: |_, message, _| json!({"reason": message}),
            invalid: 400,
            media_type: "application/json",
        }),
    },
    Shape {
        name: "supabase-storage",
        method: Method::POST,
        target: "/storage/v1/object/sign/demo",
        list: [r#"{"expiresIn":3600,"paths":[""#, r#"",""#, r#""]}"#],
        id: ["", ""],
        headers: &[BEARER, ("apikey", "demo-key"), JSON],
        items: ["", "/path", "/signedURL"],
        simulated: Some(Simulated {
            path: ["/storage/v1/object/sign/", ""],
            ids: Ids::Body("/paths", ""),
            when: &[],
            most: 1000,
            credentials: &["authorization", "apikey"],
            life: Some("/expiresIn"),
            signer: LinkSigner::Jwt,
            base: "/object/sign",
            item: |asked, link| json!({"error": null, "path": asked.id, "signedURL": link.url}),
            unknown: Some(|asked| json!({"error": NOT_THERE, "path": asked.id, "signedURL": null})),
            answer: |items| values(items),
            error: |status, message, _| json!({"statusCode": status.to_string(), "error": message, "message": message}),
            invalid: 400,
            media_type: "application/json; charset=utf-8",
        }),
    },
    Shape {
        name: "discord-cdn",
        method: Method::POST,
        target: "/api/v10/attachments/refresh-urls",
        list: [r#"{"attachment_urls":[""#, r#"",""#, r#""]}"#],
        id: ["https://cdn.discordapp.com/attachments/1/", "/image.png"],
        headers: &[("authorization", "Bot demo-token"), JSON],
        items: ["/refreshed_urls", "/original", "/refreshed"],
        simulated: Some(Simulated {
            path: ["/api/", "/attachments/refresh-urls"],
            ids: Ids::Body("/attachment_urls", ""),
            when: &[],
            most: 50,
            credentials: &["authorization"],
            life: None,
            signer: LinkSigner::Discord,
            base: "https://cdn.discordapp.com/attachments",
            item: |asked, link| json!({"original": asked.id, "refreshed": link.url}),
            unknown: None,
            answer: |items| json!({"refreshed_urls": values(items)}),
            error: |status, message, _| json!({"message": format!("{status}: {message}"), "code": 0}),
            invalid: 400,
            media_type: "application/json",
        }),
    },
];

fn values(items: Vec<(String, Value)>) -> Value {
    items.into_iter().map(|(_, item)| item).collect()
}

impl Shape {
    /// The shape of the API of this name.
    pub fn of(name: &str) -> Option<&'static Self> {
        SHAPES.iter().find(|shape| shape.name == name)
    }

    /// The id that has this number.
    pub fn id(&self, number: &str) -> String {
        let [before, after] = self.id;
        format!("{before}{number}{after}")
    }

    /// Target and body of a batch of these ids, which have no characters to encode.
    pub fn batch(&self, ids: &[String]) -> (String, String) {
        let [before, between, after] = self.list;
        let list = format!("{before}{}{after}", ids.join(between));
        match self.method {
            Method::GET => (format!("{}{list}", self.target), String::new()),
            _ => (self.target.to_owned(), list),
        }
    }

    /// Each id that an answer has, with its link, in its order (of an object: that of the ids).
    pub fn links(&self, answer: &Value) -> Vec<(String, Option<String>)> {
        let [items, id, link] = self.items;
        let text = |value: &Value, place: &str| value.pointer(place)?.as_str().map(str::to_owned);
        match answer.pointer(items) {
            Some(Value::Array(items)) => {
                items.iter().map(|item| (text(item, id).unwrap_or_default(), text(item, link))).collect()
            }
            Some(Value::Object(items)) => items.iter().map(|(id, item)| (id.clone(), text(item, link))).collect(),
            _ => Vec::new(),
        }
    }

    /// Whether an object has the items, so that the answer has no order.
    pub fn is_keyed(&self) -> bool {
        self.items.get(1).is_some_and(|id| id.is_empty())
    }

    /// Whether `url` is a link for this id, of a batch as [`Self::batch`] has it, to the caller with these headers.
    pub fn link_is_for(&self, url: &str, id: &str, headers: &[(&str, &str)]) -> bool {
        let Some(simulated) = &self.simulated else {
            let token = headers.iter().find(|(name, _)| *name == "x-auth-token").map_or("", |(_, token)| token);
            return super::link_is_for(url, id, Some(GROUP), token, None, None);
        };
        let credential =
            simulated.credential_of(|name| headers.iter().find(|(known, _)| *known == name).map(|(_, value)| *value));
        let body = serde_json::from_str::<Value>(&self.batch(&[id.to_owned()]).1).unwrap_or_default();
        let place = simulated.place(self.target).unwrap_or_default();
        let key = object_key(&credential.unwrap_or_default(), place, id, simulated.beside(&body).as_ref());
        let rest = url.strip_prefix(simulated.base).and_then(|rest| rest.strip_prefix(key.as_str()));
        rest.is_some_and(|rest| rest.starts_with('?'))
    }
}

/// The path of a link. It names the caller, the place of the request, what was asked besides the id, and the id.
fn object_key(credential: &str, place: &str, id: &str, beside: Option<&Value>) -> String {
    let beside = beside.map_or_else(|| "-".to_owned(), ToString::to_string);
    format!("/{:016x}/{}/{}/{}", fingerprint(credential), encode(place), encode(&beside), encode(id))
}

impl Simulated {
    /// Whether a request is on its route.
    pub(super) fn is_for(&self, method: &Method, path: &str) -> bool {
        let is_method = match self.ids {
            Ids::Query(_) => method == Method::GET,
            Ids::Body(..) => method == Method::POST,
        };
        is_method && self.place(path).is_some()
    }

    /// The part of a path that differs. Only that of git-lfs, whose base is the root, may have several segments.
    fn place<'p>(&self, path: &'p str) -> Option<&'p str> {
        let [before, after] = self.path;
        if path == before {
            return Some("").filter(|_| after.is_empty() && !before.ends_with('/'));
        }
        let place = path.strip_prefix(before)?.strip_suffix(after)?;
        let is_place = before.ends_with('/') && !place.is_empty() && (before == "/" || !place.contains('/'));
        is_place.then_some(place)
    }

    /// The credential of a request: the values of all headers that have to be there.
    pub(super) fn credential(&self, parts: &Parts) -> Option<String> {
        self.credential_of(|name| parts.headers.get(name)?.to_str().ok())
    }

    fn credential_of<'h>(&self, header: impl Fn(&str) -> Option<&'h str>) -> Option<String> {
        let values = self.credentials.iter().map(|name| header(name).filter(|value| !value.is_empty()));
        Some(values.collect::<Option<Vec<_>>>()?.join("\n"))
    }

    /// Reads a request of `most` ids at most.
    ///
    /// # Errors
    /// The reason why it is none.
    pub(super) fn read(&self, parts: &Parts, body: &[u8], most: usize) -> Result<Question, &'static str> {
        let place = self.place(parts.uri.path()).unwrap_or_default().to_owned();
        let (asked, life) = match self.ids {
            Ids::Query(name) => (from_query(parts.uri.query().unwrap_or_default(), name)?, None),
            Ids::Body(list, key) => {
                let body: Value = serde_json::from_slice(body).map_err(|_| "the body is not JSON")?;
                for (place, wanted) in self.when {
                    if body.pointer(place).and_then(Value::as_str) != Some(wanted) {
                        return Err("only downloads are simulated");
                    }
                }
                let elements = body.pointer(list).and_then(Value::as_array).ok_or("there is no list of ids")?;
                let asked = elements.iter().map(|element| {
                    let id = element.pointer(key).and_then(Value::as_str).ok_or("an element of the list has no id")?;
                    Ok(Asked { id: id.to_owned(), element: element.clone() })
                });
                let life = self.life.and_then(|place| body.pointer(place)?.as_u64()).map(Duration::from_secs);
                (asked.collect::<Result<Vec<_>, &str>>()?, life)
            }
        };
        if asked.is_empty() || asked.len() > most || asked.iter().any(|asked| asked.id.is_empty()) {
            return Err("there are no ids, or too many, or an empty one");
        }
        Ok(Question { asked, place, life })
    }

    /// What the first element of a body's list says besides its id.
    fn beside(&self, body: &Value) -> Option<Value> {
        let Ids::Body(list, _) = self.ids else { return None };
        self.without_id(body.pointer(list)?.get(0)?)
    }

    /// What an element of a list says besides its id, if anything.
    fn without_id(&self, element: &Value) -> Option<Value> {
        let Ids::Body(_, key) = self.ids else { return None };
        let mut members = element.as_object()?.clone();
        members.remove(key.trim_start_matches('/'));
        Some(Value::Object(members)).filter(|members| *members != json!({}))
    }

    /// The answer: what is made of each id that is `known`, and of the others.
    pub(super) fn answer(
        &self,
        question: &Question,
        known: impl Fn(&str) -> bool,
        is_reversed: bool,
        sign: impl Fn(&str, &str, Duration) -> String,
        (credential, life, now): (&str, Duration, u64),
    ) -> Value {
        let life = question.life.map_or(life, |stated| stated.min(life));
        let item = |asked: &Asked| {
            if !known(&asked.id) {
                return Some((asked.id.clone(), self.unknown?(asked)));
            }
            let key = object_key(credential, &question.place, &asked.id, self.without_id(&asked.element).as_ref());
            let url = sign(&format!("{}{key}", self.base), &asked.id, life);
            let link = Link { url, life: life.as_secs(), expires: now.saturating_add(life.as_secs()) };
            Some((asked.id.clone(), (self.item)(asked, &link)))
        };
        let mut items: Vec<_> = question.asked.iter().filter_map(item).collect();
        if is_reversed {
            items.reverse();
        }
        (self.answer)(items)
    }
}

fn from_query(query: &str, name: &str) -> Result<Vec<Asked>, &'static str> {
    let values = query.split('&').filter_map(|pair| pair.split_once('=').filter(|(known, _)| *known == name));
    let asked = values.map(|(_, value)| {
        let spaced = value.replace('+', " ");
        let id = percent_decode_str(&spaced).decode_utf8().map_err(|_| "a parameter is not UTF-8")?;
        Ok(Asked { id: id.into_owned(), element: Value::Null })
    });
    asked.collect()
}
