//! The places where an API may have its ids and items: in a query as in a body, as strings and as numbers, in lists and in objects.

use serde_json::{Value, json};

use super::endpoint::*;

fn query_ids(asked: &Asked) -> Vec<String> {
    let query = asked.target.split_once('?').unwrap().1.replace("%5B%5D", "[]");
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    pairs
        .filter(|(name, _)| *name == "id" || *name == "id[]")
        .flat_map(|(_, ids)| ids.split(','))
        .map(str::to_owned)
        .collect()
}

/// The description of docs/BATCH_APIS.md: an object of links, by id.
#[tokio::test]
async fn an_object_of_links_by_id_is_merged_by_its_names() {
    let table = r#"
[[batch]]
name = "links-by-id"
path = "/links"
ids = { query = "id", styles = ["comma", "brackets"] }
items = { at = "", key = "*", link = "" }
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let link = |id: &String| (id.clone(), Value::from(format!("https://cdn.test/{id}")));
        Answer::new(200, Value::Object(query_ids(asked).iter().filter(|id| *id != "gone").map(link).collect()))
    })
    .await;
    let headers = [("authorization", "t")];
    let links = |ids: &[&str]| -> Value {
        ids.iter()
            .map(|id| ((*id).to_owned(), format!("https://cdn.test/{id}").into()))
            .collect::<serde_json::Map<_, _>>()
            .into()
    };
    for (query, expected, answer) in [
        ("id=1,2", MISS, &["1", "2"][..]),
        ("id[]=2&id[]=1", HIT, &["2", "1"]),
        ("id[]=1&id[]=3", "fwd=partial; stored; detail=\"hit=1 fetched=1\"", &["1", "3"]),
        ("id=gone,3", "fwd=partial; stored; detail=\"hit=1 fetched=1\"", &["3"]),
        ("id=gone", HIT, &[]),
        ("id=1", HIT, &["1"]),
    ] {
        let reply = stack.client.get(&format!("/links?{query}"), &headers).await;
        assert_eq!((status(&reply), reply.json()), (expected, links(answer)), "{query}");
        assert!(reply.header("cache-control").starts_with("private, max-age="), "{query}");
    }
    let direct = stack.direct.get("/links?id=2,3", &headers).await;
    assert_eq!(stack.client.get("/links?id=2,3", &headers).await.body, direct.body);
}

/// A number and the string of its digits are two ids, and each is answered with its own item.
#[tokio::test]
async fn ids_that_are_numbers_are_kept_apart_from_strings() {
    let table = r#"
[[batch]]
name = "numbers"
path = "/links"
ids = { body = "/ids", numbers = true }
items = { at = "/links", key = "/id", link = "/url" }
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let ids = asked.json()["ids"].as_array().unwrap().clone();
        Answer::new(200, json!({"links": ids.iter().map(|id| json!({"id": id, "url": format!("https://cdn.test/{id}")})).collect::<Vec<_>>()}))
    })
    .await;
    let headers = [("authorization", "t")];
    let ask = async |ids: Value| {
        let reply = stack.post("/links", &headers, json!({"ids": ids})).await;
        assert_eq!(reply.status, 200);
        let items = reply.json()["links"].as_array().unwrap().clone();
        for (id, item) in ids.as_array().unwrap().iter().zip(&items) {
            assert_eq!((&item["id"], item["url"].as_str()), (id, Some(&*format!("https://cdn.test/{id}"))));
        }
        (status(&reply).to_owned(), items.len())
    };
    assert_eq!(ask(json!([7, -1, 18446744073709551615_u64])).await, (MISS.to_owned(), 3));
    assert_eq!(ask(json!(["7"])).await, (MISS.to_owned(), 1));
    assert_eq!(ask(json!([7])).await, (HIT.to_owned(), 1));
    assert_eq!(ask(json!(["7"])).await, (HIT.to_owned(), 1));
    assert_eq!(ask(json!([8, "8"])).await.1, 2);
    assert_eq!(stack.forwarded("unreadable").await, 0.0);
    stack.post("/links", &headers, r#"{"ids":[1.5]}"#).await;
    assert_eq!(stack.forwarded("unreadable").await, 1.0);
}

/// One API with ids in a query or in a body: a GET with neither is none, and a POST has its own.
#[tokio::test]
async fn ids_in_a_query_and_in_a_body_are_the_same_ids() {
    let table = r#"
[[batch]]
name = "both"
method = "POST"
path = "/links"
ids = { query = "id", body = "/ids" }
items = { at = "/links", key = "/id", link = "/url" }
parameters = []
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let ids = if asked.body.is_empty() { query_ids(asked) } else { asked.ids("/ids", "") };
        let item = |id: &String| json!({"id": id, "url": "https://cdn.test"});
        Answer::new(200, json!({"links": ids.iter().map(item).collect::<Vec<_>>()}))
    })
    .await;
    let headers = [("authorization", "t")];
    assert_eq!(status(&stack.post("/links?id=1&id=2", &headers, "").await), MISS);
    assert_eq!(status(&stack.post("/links", &headers, r#"{"ids":["2","1"]}"#).await), HIT);
    assert_eq!(
        status(&stack.post("/links", &headers, r#"{"ids":["2","3"]}"#).await),
        "fwd=partial; stored; detail=\"hit=1 fetched=1\""
    );
    assert_eq!(status(&stack.post("/links?id=3", &headers, "").await), HIT);
    for (target, body) in [("/links?id=1", r#"{"ids":["2"]}"#), ("/links", "")] {
        assert_eq!(
            status(&stack.post(target, &headers, body).await),
            "fwd=bypass; detail=unreadable",
            "{target} {body}"
        );
    }
}

/// An endpoint whose session is a cookie: it is the credential, and goes with each call.
#[tokio::test]
async fn a_cookie_that_is_the_credential_tells_callers_apart() {
    let table = r#"
[[batch]]
name = "session"
path = "/links"
ids = { body = "/ids" }
items = { at = "", key = "*", link = "" }
credentials = ["cookie"]
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let who = asked.header("cookie").replace('=', "-");
        let link = |id: &String| (id.clone(), Value::from(format!("https://cdn.test/{who}/{id}")));
        Answer::new(200, Value::Object(asked.ids("/ids", "").iter().map(link).collect()))
    })
    .await;
    for expected in [MISS, HIT] {
        for (cookie, who) in [("s=1", "s-1"), ("s=2", "s-2")] {
            let reply = stack.post("/links", &[("cookie", cookie)], r#"{"ids":["a"]}"#).await;
            assert_eq!((status(&reply), reply.json()), (expected, json!({"a": format!("https://cdn.test/{who}/a")})));
        }
    }
}

#[tokio::test]
async fn a_bare_id_among_objects_is_another_id() {
    let table = r#"
[[batch]]
name = "objects"
path = "/objects"
ids = { body = "/objects", key = "/id" }
items = { at = "", key = "/id", link = "/url" }
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let Some(id) = asked.json()["objects"][0]["id"].as_str().map(str::to_owned) else {
            return Answer::new(403, json!({"message": "elements have to be objects"}));
        };
        Answer::new(200, json!([{"id": id, "url": format!("https://cdn.test/{id}")}]))
    })
    .await;
    let headers = [("authorization", "t"), ("content-type", "application/json")];
    for (objects, code, how) in [
        (json!(["1"]), 403, "fwd=miss; fwd-status=403"),
        (json!([{"id": "1"}]), 200, MISS),
        (json!(["1"]), 403, "hit; detail=refused"),
        (json!([{"id": "1"}]), 200, HIT),
    ] {
        let reply = stack.post("/objects", &headers, json!({"objects": objects})).await;
        assert_eq!((reply.status.as_u16(), status(&reply)), (code, how), "{objects}");
    }
}

/// A cache further down would repeat the seconds as they were.
#[tokio::test]
async fn an_answer_with_seconds_that_are_left_has_no_max_age() {
    let table = r#"
[[batch]]
name = "seconds"
path = "/links"
ids = { query = "id" }
items = { at = "", key = "/id", link = "/url" }
expires = ["/ttl"]
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let item = |id: &String| match id.as_str() {
            "timeless" => json!({"id": id, "url": "https://cdn.test/1"}),
            _ => json!({"id": id, "url": "https://cdn.test/1", "ttl": 600}),
        };
        Answer::new(200, Value::from(query_ids(asked).iter().map(item).collect::<Vec<_>>()))
    })
    .await;
    for (id, begin) in [("timeless", "private, max-age="), ("1", "no-store")] {
        for how in [MISS, HIT, HIT, HIT] {
            let reply = stack.client.get(&format!("/links?id={id}"), &[("authorization", "t")]).await;
            assert_eq!(status(&reply), how, "{id}");
            assert!(reply.header("cache-control").starts_with(begin), "{id}: {}", reply.header("cache-control"));
        }
    }
    assert!(stack.sum("sidelink_answers_used_total", "").await >= 2.0, "repeated batches have whole answers");
}

#[tokio::test]
async fn an_id_that_is_a_number_has_no_more_characters_than_others() {
    let table = r#"
[[batch]]
name = "short"
path = "/links"
ids = { body = "/ids", numbers = true, chars = 3 }
items = { at = "", key = "/id", link = "/url" }
"#;
    let stack = Stack::start(table, |asked: &Asked| {
        let ids = asked.json()["ids"].as_array().unwrap().clone();
        Answer::new(200, json!(ids.iter().map(|id| json!({"id": id, "url": "https://cdn.test/"})).collect::<Vec<_>>()))
    })
    .await;
    for (ids, how) in [
        (json!([123, -12, "abc"]), MISS),
        (json!([1234]), "fwd=bypass; detail=unreadable"),
        (json!([-123]), "fwd=bypass; detail=unreadable"),
        (json!(["1234"]), "fwd=bypass; detail=unreadable"),
    ] {
        let reply = stack.post("/links", &[("authorization", "t")], json!({"ids": ids})).await;
        assert_eq!(status(&reply), how, "{ids}");
    }
}

/// In an answer an item could belong to either, so that a call which carries both is of no use to two batches.
#[tokio::test]
async fn ids_of_two_batches_that_one_item_may_name_leave_in_different_calls() {
    let tables = r#"
[[batch]]
name = "numbers"
path = "/numbers"
ids = { body = "/ids", numbers = true }
items = { at = "", key = "/id", link = "/url" }

[[batch]]
name = "spelled"
path = "/spelled"
ids = { query = "id" }
items = { at = "", key = "/id", link = "/url" }
"#;
    let stack = Stack::with(
        tables,
        |config| config.upstream.calls_per_scope = 1,
        |asked: &Asked| {
            let ids: Vec<Value> = match asked.body.as_str() {
                "" => query_ids(asked).iter().map(|id| id.replace('+', " ").replace("%20", " ").into()).collect(),
                _ => asked.json()["ids"].as_array().unwrap().clone(),
            };
            Answer::new(
                200,
                json!(ids.iter().map(|id| json!({"id": id, "url": "https://cdn.test/"})).collect::<Vec<_>>()),
            )
        },
    )
    .await;
    let post = async |ids: Value| {
        let reply = stack.post("/numbers", &[("authorization", "t")], json!({"ids": ids})).await;
        (status(&reply).to_owned(), reply.json()[0]["id"].clone())
    };
    let get = async |ids: &str| {
        let reply = stack.client.get(&format!("/spelled?id={ids}"), &[("authorization", "t")]).await;
        (status(&reply).to_owned(), reply.json()[0]["id"].clone())
    };
    let gather = async |after: usize| {
        stack.endpoint.was_asked(after).await;
        stack.uses("waiters", 4.0).await;
        stack.endpoint.set_open(true);
    };
    let after = async |asked: usize| stack.endpoint.was_asked(asked).await;

    stack.endpoint.set_open(false);
    let others = async {
        after(1).await;
        tokio::join!(post(json!([7])), post(json!(["7"])), post(json!([8])))
    };
    let (_, (number, string, third), ()) = tokio::join!(post(json!([1])), others, gather(1));
    assert_eq!([number, string, third], [json!(7), json!("7"), json!(8)].map(|id| (MISS.to_owned(), id)));
    assert!((3..=4).contains(&stack.endpoint.count()), "{:?}", stack.endpoint.asked());

    let before = stack.endpoint.count();
    stack.endpoint.set_open(false);
    let others = async {
        after(before + 1).await;
        tokio::join!(get("a+b"), get("a%20b"), get("c"))
    };
    let (_, (plus, space, third), ()) = tokio::join!(get("1"), others, gather(before + 1));
    assert_eq!([plus, space, third], ["a b", "a b", "c"].map(|id| (MISS.to_owned(), json!(id))));
    assert_eq!(stack.forwarded("unmatched").await, 0.0);
}
