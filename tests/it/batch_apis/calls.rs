//! A call is the client's own request with its list cut down to what is missing, byte for byte. A POST that is described is a read: it
//! is sent again where a GET would be, and batches share it. No other POST is sent twice.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Method, Request};
use http_body_util::Full;
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::json;

use super::endpoint::*;

#[tokio::test]
async fn a_call_for_what_is_missing_is_the_clients_request_with_fewer_elements() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    let target = "/a%2Fb/c%20d.git/info/lfs/objects/batch?x=%7e&&y";
    let body = |elements: &str| {
        format!(
            "\n{{\"more\" : 1.50e1, \"objects\":\t{elements} ,\"operation\":\"downl\\u006fad\",\"ref\":{{ \"name\":\"\\/é\"}} }} "
        )
    };
    let (one, two, three) =
        (r#"{ "size":1.0, "oid":"\u0061"}"#, r#"{"oid":"b","size":18446744073709551616}"#, r#"{"oid":"c" , "x":[ ]}"#);
    let headers = [("authorization", "Basic YTpi"), ("content-type", "application/vnd.git-lfs+json; charset=utf-8")];
    let first = stack.post(target, &headers, body(&format!("[ {two} ]"))).await;
    assert_eq!(status(&first), MISS);
    let second = stack.post(target, &headers, body(&format!("[{one},{two} ,\n{three}, {one}]"))).await;
    assert_eq!(status(&second), "fwd=partial; stored; detail=\"hit=1 fetched=2\"");
    let asked = stack.endpoint.asked();
    assert_eq!(asked[0].body, body(&format!("[{two}]")));
    assert_eq!(asked[1].body, body(&format!("[{one},{three}]")));
    for asked in &asked {
        assert_eq!((&asked.method, &*asked.target), (&Method::POST, target));
        assert_eq!((asked.header("authorization"), asked.header("content-type")), (headers[0].1, headers[1].1));
        assert_eq!(asked.header("content-length"), asked.body.len().to_string());
    }
    let oids: Vec<_> = second.json()["objects"].as_array().unwrap().iter().map(|item| item["oid"].clone()).collect();
    assert_eq!(oids, ["a", "b", "c"], "in the order asked, each once");
}

#[tokio::test]
async fn a_query_call_keeps_the_other_parameters_and_their_order() {
    let table = r#"
[[batch]]
name = "list"
path = "/v1/{tenant}/list"
ids = { query = "id", styles = ["brackets", "comma", "encoded-comma"] }
items = { at = "", key = "/id", link = "/url" }
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let query = asked.target.split_once('?').unwrap().1;
        let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        let ids = pairs
            .filter(|(name, _)| name.starts_with("id"))
            .flat_map(|(_, ids)| ids.replace("%2C", ",").split(',').map(str::to_owned).collect::<Vec<_>>());
        Answer::new(200, json!(ids.map(|id| json!({"id": id, "url": "https://cdn.test/"})).collect::<Vec<_>>()))
    })
    .await;
    let headers = [("authorization", "t")];
    for (asked, call) in [
        ("a=%20&id[]=1&b&id[]=2&c=+", "a=%20&id[]=1&id[]=2&b&c=+"),
        ("a=%20&b&id[]=1&id[]=3&id[]=2&c=+", "a=%20&b&id[]=3&c=+"),
        ("id%5B%5D=4&id%5B%5D=5", "id%5B%5D=4&id%5B%5D=5"),
        ("x=1&id=6,7&y=2", "x=1&id=6,7&y=2"),
        ("x=1&id=7,8,6,9&y=2", "x=1&id=8,9&y=2"),
        ("x=1&id=7%2C10%2C6%2C11&y=2", "x=1&id=10%2C11&y=2"),
    ] {
        let reply = stack.client.get(&format!("/v1/me/list?{asked}"), &headers).await;
        assert_eq!((reply.status.as_u16(), stack.endpoint.last().target), (200, format!("/v1/me/list?{call}")));
    }
    let missed = stack.client.get("/v1/me/list?id[]=1&id[]=2&a=%20&b&c=+", &headers).await;
    assert_eq!(status(&missed), HIT, "the order of other parameters counts, their places beside the ids do not");
    assert!(missed.header("cache-control").starts_with("private, max-age="));
}

/// Servers answer a POST without a length with a 411, and an empty one that claims to be JSON with a 400.
#[tokio::test]
async fn a_post_has_the_content_type_of_its_client_and_a_length_also_without_a_body() {
    let table = r#"
[[batch]]
name = "list"
method = "POST"
path = "/list"
ids = { query = "id", body = "/ids" }
items = { at = "", key = "/id", link = "/url" }
"#;
    let stack = Stack::start(table, |_: &Asked| Answer::new(200, json!([]))).await;
    let json = ("content-type", "application/json");
    for (target, body, more) in [
        ("/list?id=1", "", None),
        ("/list?id=1", "", Some(("content-type", "text/plain"))),
        ("/list", r#"{"ids":["2"]}"#, None),
        ("/list", r#"{"ids":["2"]}"#, Some(json)),
    ] {
        let headers: Vec<_> = [("authorization", "t")].into_iter().chain(more).collect();
        let reply = stack.post(target, &headers, body).await;
        assert_eq!((status(&reply), reply.header("cache-control")), (MISS, "no-store"));
        stack.direct.send(Method::POST, target, &headers, body.to_owned()).await;
        let asked = stack.endpoint.asked();
        let [call, direct] = &asked[asked.len() - 2..] else { panic!() };
        assert_eq!(call.header("content-type"), direct.header("content-type"), "{target} {more:?}");
        assert_eq!(call.header("content-length"), body.len().to_string(), "{target} {more:?}");
    }
}

#[tokio::test]
async fn a_described_post_is_sent_again_after_a_failure_and_no_other_is() {
    let failures = Arc::new(AtomicUsize::new(0));
    let fails = Arc::clone(&failures);
    let stack = Stack::start(GIT_LFS, move |asked: &Asked| {
        if fails.try_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1)).is_ok() {
            return Answer::new(503, "{}");
        }
        has_all(asked)
    })
    .await;
    failures.store(1, Ordering::SeqCst);
    let reply = stack.lfs("t", &["a"]).await;
    assert_eq!((reply.status.as_u16(), stack.endpoint.count()), (200, 2));
    let asked = stack.endpoint.asked();
    assert_eq!(asked[0].body, asked[1].body);

    failures.store(1, Ordering::SeqCst);
    let upload = lfs_body(&["b"]).replace("download", "upload");
    assert_eq!(stack.post(LFS_PATH, &lfs_headers("t"), &upload).await.status, 503);
    failures.store(1, Ordering::SeqCst);
    assert_eq!(stack.post("/org/repo.git/info/lfs/locks", &lfs_headers("t"), &upload).await.status, 503);
    assert_eq!(stack.endpoint.count(), 4);
}

#[tokio::test]
async fn posts_for_the_same_objects_share_one_call() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    stack.endpoint.set_open(false);
    let others = async {
        stack.endpoint.was_asked(1).await;
        let replies = futures_util::future::join_all((0..8).map(|_| stack.lfs("t", &["b", "a"])));
        let open = async {
            stack.uses("waiters", 9.0).await;
            stack.endpoint.set_open(true);
        };
        tokio::join!(replies, open).0
    };
    let (first, others) = tokio::join!(stack.lfs("t", &["a", "b"]), others);
    assert_eq!((status(&first), stack.endpoint.count()), (MISS, 1));
    for reply in &others {
        assert_eq!(status(reply), "fwd=miss; stored; collapsed");
        assert_eq!(reply.json()["objects"][1], first.json()["objects"][0]);
    }
    assert_eq!(stack.ids("joined").await, 16.0);
}

#[tokio::test]
async fn a_batch_of_more_objects_than_one_call_takes_is_split() {
    let stack = Stack::start(&format!("{GIT_LFS}\nids_per_call = 3"), has_all).await;
    let oids = ["a", "b", "c", "d", "e", "f", "g"];
    let reply = stack.lfs("t", &oids).await;
    let found: Vec<_> = reply.json()["objects"].as_array().unwrap().iter().map(|item| item["oid"].clone()).collect();
    assert_eq!((status(&reply), found), (MISS, oids.map(Into::into).to_vec()));
    let mut sizes: Vec<usize> = stack.endpoint.asked().iter().map(|asked| asked.oids().len()).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [1, 3, 3]);
}

/// A call outlives its client, and has the texts of the body's elements.
#[tokio::test]
async fn a_body_counts_until_its_calls_have_ended() {
    let body = lfs_body(&["a"]);
    let stack = Stack::with(GIT_LFS, |config| config.limits.batch_bodies = body.len() + 10, has_all).await;
    stack.endpoint.set_open(false);
    // Over HTTP/2 a client that leaves resets its stream.
    let client = Client::builder(TokioExecutor::new()).http2_only(true).build_http();
    let mut request = Request::post(format!("http://{}{LFS_PATH}", stack.client.address));
    for (name, value) in lfs_headers("t") {
        request = request.header(name, value);
    }
    tokio::select! {
        _ = client.request(request.body(Full::new(Bytes::from(body))).unwrap()) => panic!("the endpoint waits"),
        () = stack.endpoint.was_asked(1) => {}
    }
    stack.uses("waiters", 0.0).await;
    let refused = stack.lfs("t", &["b"]).await;
    assert_eq!((refused.status.as_u16(), stack.sum("sidelink_shed_total", "limit=\"batch_bodies\"").await), (503, 1.0));
    stack.endpoint.set_open(true);
    stack.uses("batch_bodies", 0.0).await;
    assert_eq!(status(&stack.lfs("t", &["a"]).await), HIT);
}
