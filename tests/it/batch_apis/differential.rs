//! The same batches, direct and through sidelink: whatever the API, whatever the endpoint has, and whatever is in memory, a client gets
//! the same answer, but for space between items and the seconds that have passed.
//!
//! `SIDELINK_SEED=n` runs one seed.

use http::Method;
use rand::rngs::StdRng;
use rand::seq::{IndexedRandom, SliceRandom};
use rand::{RngExt, SeedableRng};
use serde_json::{Value, json};

use super::endpoint::*;
use crate::support::Reply;

const SEEDS: u64 = 6;
const BATCHES: usize = 60;

/// The kinds of ids: one that has a link; one that has none; one for which a call for such ids alone is an error; one for which any call is;
/// one whose item names another id.
const KINDS: [&str; 9] = ["ok", "ok", "ok", "ok", "gone", "gone", "alone", "never", "odd"];

/// How one API asks and answers.
struct Dialect {
    preset: &'static str,
    paths: [&'static str; 2],
    headers: &'static [(&'static str, &'static str)],
    /// Writes a request of these ids: its query and body.
    write: fn(&[String]) -> (String, Value),
    /// The ids of a request.
    read: fn(&Asked) -> Vec<String>,
    /// An item of this id; `None`: it has no link.
    item: fn(&str, Option<&str>) -> Option<Value>,
    /// An answer of these items.
    whole: fn(Vec<(String, Value)>) -> Value,
}

const DIALECTS: [Dialect; 5] = [
    Dialect {
        preset: "git-lfs",
        paths: [LFS_PATH, "/other/info/lfs/objects/batch"],
        headers: &[("content-type", LFS_TYPE), ("accept", LFS_TYPE)],
        write: |ids| {
            let objects: Vec<Value> = ids.iter().map(|id| json!({"oid": id, "size": id.len()})).collect();
            (String::new(), json!({"operation": "download", "transfers": ["ssh", "basic"], "objects": objects}))
        },
        read: Asked::oids,
        item: |id, link| {
            Some(match link {
                Some(link) => json!({"oid": id, "actions": {"download": {"href": link, "expires_in": 900}}}),
                None => missing(id),
            })
        },
        whole: |items| json!({"transfer": "basic", "objects": values(items)}),
    },
    Dialect {
        preset: "google-photos",
        paths: ["/v1/mediaItems:batchGet", "/v1/mediaItems:batchGet"],
        headers: &[],
        write: |ids| {
            (
                format!("?{}", ids.iter().map(|id| format!("mediaItemIds={id}")).collect::<Vec<_>>().join("&")),
                Value::Null,
            )
        },
        read: |asked| {
            let query = asked.target.split_once('?').unwrap().1;
            query.split('&').map(|pair| pair.split_once('=').unwrap().1.to_owned()).collect()
        },
        item: |id, link| {
            Some(match link {
                Some(link) => json!({"mediaItem": {"id": id, "baseUrl": link}}),
                None => json!({"status": {"code": 5}}),
            })
        },
        whole: |items| json!({"mediaItemResults": values(items)}),
    },
    Dialect {
        preset: "autodesk-oss",
        paths: ["/oss/v2/buckets/a/objects/batchsigneds3download", "/oss/v2/buckets/b/objects/batchsigneds3download"],
        headers: &[("content-type", "application/json")],
        write: |ids| {
            let requests: Vec<Value> = ids.iter().map(|id| json!({"objectKey": id})).collect();
            (String::new(), json!({"requests": requests}))
        },
        read: |asked| asked.ids("/requests", "/objectKey"),
        item: |_, link| Some(link.map_or(json!({"status": "chunked", "urls": {}}), |link| json!({"url": link}))),
        whole: |items| json!({"results": items.into_iter().collect::<serde_json::Map<_, _>>()}),
    },
    Dialect {
        preset: "supabase-storage",
        paths: ["/storage/v1/object/sign/a", "/storage/v1/object/sign/b"],
        headers: &[("content-type", "application/json"), ("apikey", "k")],
        write: |ids| (String::new(), json!({"expiresIn": 60, "paths": ids})),
        read: |asked| asked.ids("/paths", ""),
        item: |id, link| {
            let error = if link.is_some() { Value::Null } else { "not found".into() };
            Some(json!({"error": error, "path": id, "signedURL": link}))
        },
        whole: |items| Value::Array(values(items)),
    },
    Dialect {
        preset: "discord-cdn",
        paths: ["/api/v9/attachments/refresh-urls", "/api/v10/attachments/refresh-urls"],
        headers: &[("content-type", "application/json")],
        write: |ids| (String::new(), json!({"attachment_urls": ids})),
        read: |asked| asked.ids("/attachment_urls", ""),
        // It leaves out what it does not know.
        item: |id, link| link.map(|link| json!({"original": id, "refreshed": link})),
        whole: |items| json!({"refreshed_urls": values(items)}),
    },
];

fn values(items: Vec<(String, Value)>) -> Vec<Value> {
    items.into_iter().map(|(_, item)| item).collect()
}

fn answer(dialect: &Dialect, asked: &Asked) -> Answer {
    let ids = (dialect.read)(asked);
    if ids.iter().any(|id| id.starts_with("never")) {
        return Answer::new(400, json!({"message": "never"}));
    }
    if ids.iter().all(|id| id.starts_with("alone")) {
        return Answer::new(404, json!({"message": "all are missing"})).with("x-from", "the endpoint");
    }
    let item = |id: &String| {
        let link = format!("https://cdn.test/{}{id}", asked.header("authorization"));
        let named = if id.starts_with("odd") { "another" } else { id };
        let link = Some(&*link).filter(|_| id.starts_with("ok") || id.starts_with("odd"));
        (dialect.item)(named, link).map(|item| (named.to_owned(), item))
    };
    Answer::new(200, (dialect.whole)(ids.iter().filter_map(item).collect()))
}

/// What a client reads of an answer.
fn read(reply: &Reply) -> (u16, String, Value) {
    let mut body = reply.json();
    for object in body.get_mut("objects").and_then(Value::as_array_mut).into_iter().flatten() {
        if let Some(left) = object.pointer_mut("/actions/download/expires_in") {
            assert!(left.as_u64().is_some_and(|left| (200..=900).contains(&left)), "{left}");
            *left = Value::Null;
        }
    }
    (reply.status.as_u16(), reply.header("content-type").to_owned(), body)
}

#[tokio::test]
async fn every_batch_is_answered_as_by_the_endpoint_itself() {
    let seed = std::env::var("SIDELINK_SEED").ok().map(|seed| seed.parse::<u64>().unwrap());
    for seed in seed.map_or(0..SEEDS, |seed| seed..seed + 1) {
        for dialect in &DIALECTS {
            let mut random = StdRng::seed_from_u64(seed);
            let most = random.random_range(1..8);
            let table = format!("[[batch]]\npreset = \"{}\"\nids_per_call = {most}", dialect.preset);
            let stack = Stack::start(&table, |asked| answer(dialect, asked)).await;
            for number in 0..BATCHES {
                stack.clock.step(*[0, 0, 0, 1000, 31_000, 50_000].choose(&mut random).unwrap());
                let mut ids: Vec<String> =
                    (0..12).map(|n| format!("{}{n}", KINDS.choose(&mut random).unwrap())).collect();
                ids.shuffle(&mut random);
                ids.truncate(random.random_range(1..7));
                let (query, body) = (dialect.write)(&ids);
                let target = format!("{}{query}", dialect.paths.choose(&mut random).unwrap());
                let (method, body) =
                    if body.is_null() { (Method::GET, String::new()) } else { (Method::POST, body.to_string()) };
                let user = *["t", "u"].choose(&mut random).unwrap();
                let headers = [dialect.headers, &[("authorization", user)]].concat();
                let direct = stack.direct.send(method.clone(), &target, &headers, body.clone()).await;
                let through = stack.client.send(method, &target, &headers, body).await;
                // Of a batch that was split, the error may be that of a part.
                let is_split = ids.len() > most && through.status.is_client_error();
                if is_split && direct.status.is_client_error() {
                    continue;
                }
                assert_eq!(
                    read(&through),
                    read(&direct),
                    "seed {seed}, {}, batch {number} of {ids:?}, {most} a call: {}",
                    dialect.preset,
                    through.header("cache-status")
                );
            }
            assert!(stack.ids("hit").await > 0.0, "{}", dialect.preset);
        }
    }
}
