//! A request that is no batch by its API's description is forwarded byte for byte, the reason is counted, and nothing is kept.

use http::Method;
use serde_json::json;

use super::endpoint::*;

const UNREADABLE: &str = "unreadable";

fn echo(asked: &Asked) -> Answer {
    Answer::new(200, json!({"echo": asked.body})).with("x-from", "the endpoint")
}

#[tokio::test]
async fn what_does_not_fit_is_forwarded_byte_for_byte_with_its_reason() {
    let stack = Stack::start(GIT_LFS, echo).await;
    let good = r#"{"operation":"download","objects":[{"oid":"a","size":1}]}"#;
    let long = "x".repeat(4097);
    let cases = [
        ("condition", r#"{"operation":"upload","objects":[{"oid":"a","size":1}]}"#),
        ("condition", r#"{"objects":[{"oid":"a","size":1}]}"#),
        ("condition", r#"{"operation":null,"objects":[{"oid":"a","size":1}]}"#),
        ("condition", r#" { "operation" : "Download", "objects" : [ ] }"#),
        ("no-ids", r#"{"operation":"download","objects":[]}"#),
        (UNREADABLE, r#"{"operation":"download","objects":{"oid":"a"}}"#),
        (UNREADABLE, r#"{"operation":"download"}"#),
        (UNREADABLE, r#"{"operation":"download","objects":[{"size":1}]}"#),
        (UNREADABLE, r#"{"operation":"download","objects":[{"oid":7,"size":1}]}"#),
        (UNREADABLE, r#"{"operation":"download","objects":[7]}"#),
        (UNREADABLE, r#"{"operation":"download","objects":[{"oid":"","size":1}]}"#),
        (UNREADABLE, r#"{"operation":"download","objects":[{"oid":"a","oid":"b"}]}"#),
        (UNREADABLE, r#"{"operation":"download","operation":"upload","objects":[{"oid":"a"}]}"#),
        (UNREADABLE, r#"{"operation":"download","objects":[{"oid":"a","size":1},{"oid":"a","size":2}]}"#),
        (UNREADABLE, r#"{"operation":"download","objects":[{"oid":"a","size":1}]"#),
        (UNREADABLE, r#"{"operation":"download","objects":[{"oid":"a","size":1}]} x"#),
        (UNREADABLE, "not JSON"),
        (UNREADABLE, "[]"),
        (UNREADABLE, "\u{feff}{}"),
        (UNREADABLE, &format!(r#"{{"operation":"download","objects":[{{"oid":"{long}"}}]}}"#)),
        (UNREADABLE, &"[".repeat(5000)),
    ];
    for (reason, body) in cases {
        let before = stack.forwarded(reason).await;
        let reply = stack.post(LFS_PATH, &lfs_headers("t"), body).await;
        assert_eq!(status(&reply), format!("fwd=bypass; detail={reason}"), "{body}");
        let asked = stack.endpoint.last();
        assert_eq!((asked.method.as_str(), &*asked.target, &*asked.body), ("POST", LFS_PATH, body));
        assert_eq!((asked.header("authorization"), asked.header("content-type")), ("t", LFS_TYPE));
        assert_eq!((reply.json()["echo"].as_str(), reply.header("x-from")), (Some(body), "the endpoint"));
        assert_eq!(stack.forwarded(reason).await, before + 1.0, "{body}");
    }
    for (reason, name, value) in [
        (UNREADABLE, "content-encoding", "identity"),
        ("no-credential", "authorization", ""),
        ("credentials", "authorization", "u"),
        ("origin", "origin", "https://page.test"),
        ("range", "range", "bytes=0-1"),
        ("header-too-long", "accept", &long.repeat(2)),
    ] {
        let mut headers = lfs_headers("t").to_vec();
        if reason == "no-credential" {
            headers.remove(0);
        }
        headers.push((name, value));
        let reply = stack.post(LFS_PATH, &headers, good).await;
        assert_eq!(status(&reply), format!("fwd=bypass; detail={reason}"), "{name}");
        assert_eq!((&*stack.endpoint.last().body, stack.forwarded(reason).await >= 1.0), (good, true), "{name}");
    }
    assert_eq!(stack.sum("sidelink_ids_total", "").await, 0.0, "no id of them is counted");
}

#[tokio::test]
async fn other_methods_and_paths_are_no_batches() {
    let stack = Stack::start(GIT_LFS, echo).await;
    let body = lfs_body(&["a"]);
    for (method, target) in [
        (Method::PUT, LFS_PATH.to_owned()),
        (Method::POST, "/info/lfs/objects/batch".to_owned()),
        (Method::POST, format!("{LFS_PATH}/")),
        (Method::POST, "/org/repo.git/info/lfs/locks".to_owned()),
        (Method::POST, "/org/repo.git/info/lfs/locks/verify?a=%20".to_owned()),
        (Method::POST, "/v2/servicerequest/accessorys/access-urls".to_owned()),
    ] {
        let reply = stack.client.send(method.clone(), &target, &lfs_headers("t"), body.clone()).await;
        let asked = stack.endpoint.last();
        assert_eq!((&asked.method, &asked.target, &asked.body), (&method, &target, &body));
        assert_eq!((reply.header("cache-status"), reply.header("x-from")), ("", "the endpoint"));
    }
    let built_in = "/v2/servicerequest/accessorys/access-urls?accessory_ids=1";
    stack.client.get(built_in, &[("x-auth-token", "t")]).await;
    assert_eq!(stack.endpoint.last().target, built_in, "an API that is not configured is none");
    assert_eq!(stack.sum("sidelink_ids_total", "").await, 0.0);
}

#[tokio::test]
async fn a_query_that_its_api_does_not_describe_is_forwarded() {
    let table = r#"
[[batch]]
name = "list"
path = "/list"
ids = { query = "id", styles = ["brackets"] }
items = { at = "", key = "/id", link = "/url" }
parameters = ["size"]
"#;
    let stack = Stack::start(table, echo).await;
    for query in
        ["id=1", "id[]=1&id=2", "id[]=1&more=x", "size=1", "", "id[]=", "id[]=%zz", "id[]=1&", "id%5B%5D", "id[]"]
    {
        let target = format!("/list?{query}");
        let reply = stack.client.get(&target, &[("authorization", "t")]).await;
        assert_eq!(status(&reply), "fwd=bypass; detail=unreadable", "{query}");
        assert_eq!(stack.endpoint.last().target, target);
    }
    let reply = stack.client.get("/list?id[]=1&size=7", &[("authorization", "t")]).await;
    assert_eq!(status(&reply), "fwd=miss; fwd-status=200", "a batch, whose answer is no list of items");
}
