//! sidelink's own errors on the route of a batch API are in the shape and the media type of that API's errors.

use std::time::Duration;

use serde_json::{Value, json};
use sidelink::config::Config;

use super::endpoint::*;

/// Each preset with a request of three ids, and where its errors have their message.
const APIS: [(&str, &str, &str, &str); 4] = [
    ("git-lfs", LFS_PATH, r#"{"operation":"download","objects":[{"oid":"1"},{"oid":"2"},{"oid":"3"}]}"#, "/message"),
    (
        "autodesk-oss",
        "/oss/v2/buckets/b/objects/batchsigneds3download",
        r#"{"requests":[{"objectKey":"1"},{"objectKey":"2"},{"objectKey":"3"}]}"#,
        "/reason",
    ),
    ("supabase-storage", "/storage/v1/object/sign/b", r#"{"paths":["1","2","3"]}"#, "/message"),
    ("discord-cdn", "/api/v10/attachments/refresh-urls", r#"{"attachment_urls":["1","2","3"]}"#, "/message"),
];

async fn fails(configure: impl Fn(&mut Config), status: u16, code: &str, words: &str, pad: usize) {
    for (preset, path, body, message) in APIS {
        let stack =
            Stack::with(&format!("[[batch]]\npreset = \"{preset}\""), &configure, |_| Answer::new(200, "{}")).await;
        stack.endpoint.set_open(false);
        let headers = [("authorization", "t"), ("content-type", "application/json"), ("x-request-id", "r-1")];
        let body = format!("{body}{}", " ".repeat(pad));
        let reply = stack.post(path, &headers, body).await;
        assert_eq!(reply.status.as_u16(), status, "{preset}: {:?}", reply.body);
        let media_type = if preset == "git-lfs" { LFS_TYPE } else { "application/json" };
        assert_eq!((reply.header("content-type"), reply.header("x-request-id")), (media_type, "r-1"));
        assert!(reply.header("cache-status").contains(&format!("detail={code}")), "{preset}");
        assert_eq!(reply.header("content-length"), reply.body.len().to_string());
        let error = reply.json();
        let text = error.pointer(message).and_then(Value::as_str).unwrap_or_else(|| panic!("{preset}: {error}"));
        assert!(text.contains(words), "{preset}: {text}");
        if preset == "supabase-storage" {
            assert_eq!(error, json!({"statusCode": status, "error": code, "message": text}));
        }
        if preset == "git-lfs" {
            assert_eq!(error, json!({"message": text, "request_id": "r-1"}));
        }
    }
}

#[tokio::test]
async fn too_many_ids_are_refused_in_the_apis_shape() {
    let words = "the batch has 3 ids, and this sidelink allows 2";
    fails(|config| config.limits.batch_ids = 2, 400, "SIDELINK.0001", words, 0).await;
}

#[tokio::test]
async fn too_large_a_body_is_refused_in_the_apis_shape() {
    fails(|config| config.limits.batch_body = 1024, 413, "SIDELINK.0002", "the 1024 bytes", 2000).await;
}

#[tokio::test]
async fn an_endpoint_that_is_too_slow_is_told_of_in_the_apis_shape() {
    let short = |config: &mut Config| config.upstream.deadline = Duration::from_millis(200);
    fails(short, 504, "SIDELINK.1002", "did not answer in time", 0).await;
}

/// Shapes are an API's: other routes have sidelink's own.
#[tokio::test]
async fn errors_of_other_routes_are_as_before() {
    let stack = Stack::start(GIT_LFS, |_| Answer::new(200, "{}")).await;
    let looped = [("via", "1.1 sidelink, 1.1 sidelink, 1.1 sidelink, 1.1 sidelink"), ("authorization", "t")];
    let other = stack.client.get("/other", &looped).await;
    assert_eq!((other.status.as_u16(), other.code()), (508, "SIDELINK.0006".to_owned()));
    let batch = stack.post(LFS_PATH, &looped, lfs_body(&["a"])).await;
    assert_eq!((batch.status.as_u16(), batch.header("content-type")), (508, LFS_TYPE));
    assert!(batch.json()["message"].as_str().unwrap().contains("sidelink"));
}

#[tokio::test]
async fn an_error_that_only_a_flag_tells_is_passed_on_and_nothing_of_it_is_remembered() {
    let table = r#"
[[batch]]
name = "files"
path = "/files"
ids = { body = "/ids" }
items = { at = "/files", key = "/id", link = "/url" }
errors = { unless = { "/ok" = true } }
"#;
    let answer = |asked: &Asked| {
        let is_ok = asked.header("authorization") == "good";
        let files: Vec<Value> = if is_ok { vec![json!({"id": "1", "url": "http://h/1"})] } else { Vec::new() };
        Answer::new(200, json!({"ok": is_ok, "files": files}))
    };
    let stack = Stack::start(table, answer).await;
    let ask = async |user: &str| {
        let headers = [("authorization", user), ("content-type", "application/json")];
        stack.post("/files", &headers, r#"{"ids":["1"]}"#).await
    };
    for expected in [MISS, HIT] {
        assert_eq!(status(&ask("good").await), expected);
    }
    for asked in 2..4 {
        assert_eq!(ask("bad").await.json(), json!({"ok": false, "files": []}));
        assert_eq!(stack.endpoint.count(), asked, "the endpoint is asked again");
    }
    assert_eq!((stack.ids("absent").await, stack.ids("failed").await), (0.0, 2.0));
}
