//! All that a request says beside its ids is part of the scope, and so is what an element says beside its id; the order of lists that
//! are unordered is not.

use serde_json::json;

use super::endpoint::*;

const ADDRESSED: &str = r#"
[[batch]]
name = "pictures"
path = "/{tenant}/albums/{album..}/links"
ids = { body = "/wanted/pictures", key = "/id" }
when = { "/wanted/as" = "links" }
items = { at = "/pictures", key = "/id", link = "/url" }
unordered = ["/sizes", "/wanted/formats"]
scope_headers = ["x-region"]
"#;

fn pictures(asked: &Asked) -> Answer {
    let ids = asked.ids("/wanted/pictures", "/id");
    let call = format!("{}{}", asked.target, asked.body);
    let item = |id: &String| json!({"id": id, "url": format!("https://cdn.test/{id}"), "call": call});
    Answer::new(200, json!({"pictures": ids.iter().map(item).collect::<Vec<_>>()}))
}

#[tokio::test]
async fn another_path_query_body_header_or_content_type_is_another_scope() {
    let stack = Stack::start(ADDRESSED, pictures).await;
    let body =
        r#"{"wanted":{"as":"links","pictures":[{"id":"1"}],"formats":["a","b"]},"sizes":[1,2],"more":{"x":[1,2]}}"#;
    let headers = [("authorization", "t"), ("content-type", "application/json"), ("x-region", "eu")];
    let path = "/me/albums/a/b/links";
    let other = |from: &str, to: &str| body.replace(from, to);
    let with = |at: usize, value: &'static str| {
        let mut headers = headers;
        headers[at].1 = value;
        headers.to_vec()
    };
    let variants = [
        (path.to_owned(), headers.to_vec(), body.to_owned()),
        ("/me/albums/a/c/links".to_owned(), headers.to_vec(), body.to_owned()),
        ("/you/albums/a/b/links".to_owned(), headers.to_vec(), body.to_owned()),
        (format!("{path}?v=1"), headers.to_vec(), body.to_owned()),
        (format!("{path}?v=2"), headers.to_vec(), body.to_owned()),
        (path.to_owned(), with(0, "u"), body.to_owned()),
        (path.to_owned(), with(1, "application/json; charset=utf-8"), body.to_owned()),
        (path.to_owned(), headers[..1].to_vec(), body.to_owned()),
        (path.to_owned(), with(2, "us"), body.to_owned()),
        (path.to_owned(), headers.to_vec(), other("[1,2],\"more", "[1,3],\"more")),
        (path.to_owned(), headers.to_vec(), other("\"a\",\"b\"", "\"a\",\"c\"")),
        (path.to_owned(), headers.to_vec(), other("\"x\":[1,2]", "\"x\":[2,1]")),
        (path.to_owned(), headers.to_vec(), other(",\"more\":{\"x\":[1,2]}", "")),
        (path.to_owned(), headers.to_vec(), other("\"id\":\"1\"", "\"id\":\"1\",\"crop\":true")),
    ];
    for round in 0..2 {
        for (at, (target, headers, body)) in variants.iter().enumerate() {
            let reply = stack.post(target, headers, body).await;
            assert_eq!(status(&reply), if round == 0 { MISS } else { HIT }, "variant {at}");
            assert_eq!(reply.json()["pictures"][0]["call"], format!("{target}{body}"), "variant {at}");
        }
    }
    assert_eq!(stack.endpoint.count(), variants.len());
}

#[tokio::test]
async fn neither_the_order_of_members_nor_that_of_unordered_lists_is_part_of_the_scope() {
    let stack = Stack::start(ADDRESSED, pictures).await;
    let headers = [("authorization", "t"), ("content-type", "application/json")];
    let bodies = [
        r#"{"wanted":{"as":"links","pictures":[{"id":"1"}],"formats":["a","b"]},"sizes":[1,2]}"#,
        r#"{"sizes":[2,1],"wanted":{"as":"links","pictures":[{"id":"1"}],"formats":["b","a"]}}"#,
        r#" { "wanted":{"as":"links","pictures":[ {"id":"1"} ],"formats":["b" , "a"]} , "sizes" : [ 1 , 2 ] } "#,
    ];
    for (at, body) in bodies.iter().enumerate() {
        let reply = stack.post("/me/albums/a/links", &headers, body).await;
        assert_eq!(status(&reply), if at == 0 { MISS } else { HIT }, "{body}");
    }
}

/// As git-lfs 3.3 writes them.
#[tokio::test]
async fn git_lfs_asks_once_whatever_the_order_of_its_transfers() {
    let stack = Stack::start(GIT_LFS, has_all).await;
    for (at, transfers) in [r#""ssh","basic""#, r#""basic","ssh""#, r#""basic", "ssh""#].iter().enumerate() {
        let body = lfs_body(&["a", "b"]).replace("\"basic\"", transfers);
        let reply = stack.post(LFS_PATH, &lfs_headers("Basic YQ=="), &body).await;
        assert_eq!(status(&reply), if at == 0 { MISS } else { HIT }, "{body}");
    }
}

#[tokio::test]
async fn the_size_of_an_object_is_part_of_what_is_asked() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| {
        let objects = asked.json()["objects"].as_array().unwrap().clone();
        lfs(objects.iter().map(|object| {
            let oid = object["oid"].as_str().unwrap();
            let href = format!("https://cdn.test/{oid}/{}", object["size"]);
            json!({"oid": oid, "size": object["size"], "actions": {"download": {"href": href}}})
        }))
    })
    .await;
    let body = |objects: &str| format!(r#"{{"operation":"download","objects":[{objects}]}}"#);
    let (small, large) = (r#"{"oid":"a","size":1}"#, r#"{"oid":"a","size":2}"#);
    let headers = lfs_headers("t");
    for (at, object) in [small, large, small, large].iter().enumerate() {
        let reply = stack.post(LFS_PATH, &headers, body(object)).await;
        assert_eq!(status(&reply), if at < 2 { MISS } else { HIT });
        assert_eq!(reply.json()["objects"][0]["size"], at % 2 + 1);
    }
    // Which item is whose could not be told.
    let both = stack.post(LFS_PATH, &headers, body(&format!("{small},{large}"))).await;
    assert_eq!((status(&both), both.json()["objects"].as_array().unwrap().len()), ("fwd=bypass; detail=unreadable", 2));
    assert_eq!(stack.forwarded("unreadable").await, 1.0);
}

/// Regression: a call for the same id of two sizes was answered with items that matched none.
#[tokio::test]
async fn batches_that_ask_for_an_object_with_different_sizes_share_no_call() {
    let stack = Stack::with(GIT_LFS, |config| config.upstream.calls_per_scope = 1, has_all).await;
    stack.endpoint.set_open(false);
    let body = |size: u8| {
        format!(
            r#"{{"operation":"download","transfers":["basic"],"objects":[{{"oid":"a","size":{size}}},{{"oid":"b{size}"}}]}}"#
        )
    };
    let headers = lfs_headers("t");
    let first = stack.lfs("t", &["first"]);
    let others = async {
        stack.endpoint.was_asked(1).await;
        let (one, two) = (stack.post(LFS_PATH, &headers, body(1)), stack.post(LFS_PATH, &headers, body(2)));
        let open = async {
            while stack.sum("sidelink_limit_used", "limit=\"in_flight\"").await < 5.0 {
                tokio::task::yield_now().await;
            }
            stack.endpoint.set_open(true);
        };
        tokio::join!(one, two, open)
    };
    let (_, (one, two, ())) = tokio::join!(first, others);
    assert_eq!((one.status.as_u16(), two.status.as_u16()), (200, 200));
    assert_eq!(stack.forwarded("unmatched").await, 0.0);
    for asked in stack.endpoint.asked() {
        assert!(asked.oids().iter().filter(|oid| *oid == "a").count() < 2, "{}", asked.body);
    }
}

/// A GET may have a body, as one of the built-in API may, and calls have the Content-Type of their client's body.
#[tokio::test]
async fn another_content_type_of_the_body_of_a_get_is_another_scope() {
    let stack = Stack::start("[[batch]]\npreset = \"huawei-osm\"", |asked: &Asked| {
        let url = format!("https://cdn.test/{}", asked.header("content-type"));
        let item = |id: &String| json!({"accessory_id": id, "accessory_url": url});
        Answer::new(
            200,
            json!({"accessory_urls": asked.ids("/accessory_ids", "").iter().map(item).collect::<Vec<_>>()}),
        )
    })
    .await;
    let ask = async |media_type: &str| {
        let headers = [("x-auth-token", "t"), ("content-type", media_type)];
        let headers = if media_type.is_empty() { &headers[..1] } else { &headers };
        let body = r#"{"accessory_ids":["1"]}"#;
        let target = "/v2/servicerequest/accessorys/access-urls";
        let reply = stack.client.send(http::Method::GET, target, headers, body).await;
        (status(&reply).to_owned(), reply.links()[0].1.clone())
    };
    for round in 0..4 {
        for (media_type, sent, first) in [
            ("application/json", "application/json", MISS),
            ("", "application/json", HIT),
            ("text/plain", "text/plain", MISS),
            ("application/json; charset=utf-8", "application/json; charset=utf-8", MISS),
        ] {
            let how = if round == 0 { first } else { HIT };
            assert_eq!(ask(media_type).await, (how.to_owned(), format!("https://cdn.test/{sent}")), "{media_type}");
        }
    }
}
