//! A link is kept until the earliest of all expiries that its fields and its URL state, and not at all where one of them cannot be read.
//! A relative one is answered as what is left of it.

use base64::Engine;
use http::Method;
use serde_json::{Value, json};

use super::endpoint::*;
use crate::support::Reply;

/// A git-lfs server whose downloads are as `download` says; their `href` is completed.
async fn stack(download: impl Fn(&str) -> Value + Send + Sync + 'static) -> Stack {
    let answer = move |asked: &Asked| {
        lfs(asked.oids().iter().map(|oid| json!({"oid": oid, "size": 1, "actions": {"download": download(oid)}})))
    };
    let configure = |config: &mut sidelink::config::Config| {
        config.freshness.min_remaining = std::time::Duration::ZERO;
        config.freshness.refresh_ahead = false;
        config.freshness.max = std::time::Duration::from_secs(7200);
        config.callers.revalidate = std::time::Duration::from_secs(86_400);
    };
    Stack::with(GIT_LFS, configure, answer).await
}

fn now() -> u64 {
    std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs()
}

fn jwt(expires: u64) -> String {
    let part = |value: Value| base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(value.to_string());
    format!("{}.{}.x", part(json!({"alg": "HS256"})), part(json!({"exp": expires})))
}

fn rfc3339(unix: u64) -> String {
    jiff::Timestamp::from_second(i64::try_from(unix).unwrap()).unwrap().to_string()
}

fn download(reply: &Reply) -> Value {
    reply.json()["objects"][0]["actions"]["download"].clone()
}

/// With every source, the link is from memory nine minutes later, and not eleven minutes later.
#[tokio::test]
async fn a_link_that_ends_in_ten_minutes_by_any_source_is_kept_for_these() {
    let at = now() + 600;
    let plain = "https://cdn.test/o";
    let with_token = format!("{plain}?jwt={}", jwt(at));
    let later = rfc3339(at + 3000);
    for sources in [
        json!({"href": plain, "expires_in": 600}),
        json!({"href": plain, "expires_at": rfc3339(at)}),
        json!({"href": plain, "expires_at": at}),
        json!({"href": plain, "expires_at": at * 1000}),
        json!({"href": plain, "expires_at": at.to_string()}),
        json!({"href": with_token}),
        json!({"href": with_token, "expires_in": 3600}),
        json!({"href": with_token, "expires_at": later}),
        json!({"href": plain, "expires_in": 600, "expires_at": later}),
        json!({"href": plain, "expires_in": 3600, "expires_at": rfc3339(at)}),
        json!({"href": with_token, "expires_in": 3600, "expires_at": later}),
        json!({"href": plain, "expires_in": 600, "expires_at": null}),
        json!({"href": plain, "expires_in": 600, "expires_at": "0001-01-01T00:00:00Z"}),
        json!({"href": format!("/o?jwt={}", jwt(at))}),
    ] {
        let answered = sources.clone();
        let stack = stack(move |_| answered.clone()).await;
        assert_eq!(status(&stack.lfs("t", &["a"]).await), MISS, "{sources}");
        stack.clock.step(540_000);
        assert_eq!(status(&stack.lfs("t", &["a"]).await), HIT, "{sources}");
        stack.clock.step(120_000);
        stack.lfs("t", &["a"]).await;
        assert_eq!(stack.endpoint.count(), 2, "{sources}");
    }
}

#[tokio::test]
async fn a_link_with_an_expiry_that_cannot_be_read_or_is_over_is_passed_on_and_not_kept() {
    let plain = "https://cdn.test/o";
    for sources in [
        json!({"href": plain, "expires_in": "soon"}),
        json!({"href": plain, "expires_in": "600"}),
        json!({"href": plain, "expires_in": 600.5}),
        json!({"href": plain, "expires_in": -1}),
        json!({"href": plain, "expires_in": 0}),
        json!({"href": plain, "expires_in": [600]}),
        json!({"href": plain, "expires_in": 600, "expires_at": "tomorrow"}),
        json!({"href": plain, "expires_at": "2026-11-26"}),
        json!({"href": plain, "expires_at": true}),
        json!({"href": plain, "expires_at": rfc3339(now() - 5)}),
        json!({"href": plain, "expires_at": "9999-01-01T00:00:00Z"}),
        json!({"href": format!("{plain}?jwt={}", jwt(now() - 5)), "expires_in": 600}),
        json!({"href": format!("{plain}?signature=x"), "expires_in": 600}),
        json!({"href": null, "expires_in": 600}),
        json!({"expires_in": 600}),
    ] {
        let answered = sources.clone();
        let stack = stack(move |_| answered.clone()).await;
        for times in 1..=2 {
            let reply = stack.lfs("t", &["a"]).await;
            assert_eq!((status(&reply), stack.endpoint.count()), ("fwd=miss", times), "{sources}");
            assert_eq!(download(&reply), sources);
        }
    }
}

#[tokio::test]
async fn a_relative_expiry_is_answered_as_what_is_left_of_it() {
    let text = r#"{ "oid":"OID", "actions":{"download":{"expires_in" : 3600 ,"href":"https:\/\/cdn.test","header":{"a":"3600"}}},"n":3600}"#;
    let stack = Stack::start(GIT_LFS, move |asked: &Asked| {
        let items: Vec<String> = asked.oids().iter().map(|oid| text.replace("OID", oid)).collect();
        Answer::new(200, format!("{{\"objects\":[{}]}}", items.join(","))).of_type(LFS_TYPE)
    })
    .await;
    let expected = |left: &str, oid: &str| text.replace("OID", oid).replace("\" : 3600 ", &format!("\" : {left} "));
    let first = stack.lfs("t", &["a"]).await;
    assert_eq!(first.body, format!("{{\"objects\":[{}]}}", expected("3600", "a")), "as it came");
    for (step, least, most) in [(0, 3560, 3599), (100_000, 3460, 3499), (60_000, 3400, 3439)] {
        stack.clock.step(step);
        let reply = stack.lfs("t", &["a"]).await;
        let left = download(&reply)["expires_in"].as_u64().unwrap();
        assert!((least..=most).contains(&left), "{left}");
        assert_eq!(reply.body, format!("{{\"objects\":[{}]}}", expected(&left.to_string(), "a")));
        assert_eq!(reply.header("content-length"), reply.body.len().to_string());
        assert_eq!(status(&reply), HIT);
    }
    let mixed = stack.lfs("t", &["b", "a"]).await.json();
    let left = |at: usize| mixed["objects"][at]["actions"]["download"]["expires_in"].as_u64().unwrap();
    assert!(left(0) == 3600 && left(1) < 3440, "{mixed}");
    assert_eq!(stack.endpoint.count(), 2);
}

/// Also in answers of links that were fetched at different times, in whole answers, and in those that are streamed in chunks.
#[tokio::test]
async fn what_is_left_is_told_in_large_and_in_repeated_answers_too() {
    for path_bytes in [10, 800] {
        // From five digits to four, and to three.
        let seconds = |oid: &str| -> u64 { if oid.ends_with('0') { 10_500 } else { 2000 } };
        let path = "p".repeat(path_bytes);
        let href = move |oid: &str| format!("https://cdn.test/{path}/{oid}");
        let endpoint = href.clone();
        let stack = stack(move |oid| match oid {
            "0013" => json!({"href": endpoint(oid), "expires_at": rfc3339(now() + 7200)}),
            _ => json!({"href": endpoint(oid), "expires_in": seconds(oid)}),
        })
        .await;
        let oids: Vec<String> = (0..100).map(|n| format!("{n:04}")).collect();
        let oids: Vec<&str> = oids.iter().map(String::as_str).collect();
        let late = 200_u64;
        stack.lfs("t", &oids[..50]).await;
        stack.clock.step(200_000);
        stack.lfs("t", &oids).await;
        for round in 1..=10_u64 {
            stack.clock.step(100_000);
            let reply = stack.lfs("t", &oids).await;
            assert_eq!(status(&reply), HIT);
            assert_eq!(reply.header("content-length"), reply.body.len().to_string());
            for (oid, item) in oids.iter().zip(reply.json()["objects"].as_array().unwrap()) {
                let download = &item["actions"]["download"];
                assert_eq!((item["oid"].as_str(), download["href"].as_str()), (Some(*oid), Some(&*href(oid))));
                let age = round * 100 + if *oid < "0050" { late } else { 0 };
                let left = download["expires_in"].as_u64();
                // The test has run for less than a minute.
                let is_right = |left| (seconds(oid).saturating_sub(age + 60)..=seconds(oid) - age).contains(&left);
                assert!(left.map_or(*oid == "0013", is_right), "{oid} in round {round}: {left:?}");
            }
        }
        assert_eq!(stack.endpoint.count(), 2);
        // Stored at the third time, as the caller's first batches do not count as seen.
        assert!(stack.sum("sidelink_answers_used_total", "").await >= 8.0, "they are whole answers");
        assert_eq!(stack.sum("sidelink_link_life_left_seconds_count", "").await, 10.0 * 100.0 + 50.0);
    }
}

/// As its endpoint wrote it, the answer takes two chunks; what is left of its expiries fits one.
#[tokio::test]
async fn a_repeated_answer_that_fits_one_chunk_once_it_is_counted_down_is_whole() {
    const CHUNK: usize = 64 << 10;
    let oids: Vec<String> = (0..100).map(|n| format!("{n:04}")).collect();
    let oids: Vec<&str> = oids.iter().map(String::as_str).collect();
    let start = async |padding: usize| {
        let href = move |oid: &str| format!("https://cdn.test/{}", "p".repeat(if oid == "0000" { padding } else { 1 }));
        stack(move |oid| json!({"href": href(oid), "expires_in": 10_000})).await
    };
    let unpadded = start(0).await.lfs("t", &oids).await.body.len();
    let stack = start(CHUNK - unpadded + 50).await;
    for _ in 0..3 {
        stack.lfs("t", &oids).await;
    }
    assert_eq!(stack.lfs("t", &oids).await.body.len(), CHUNK + 50 - 100, "a digit less each");
    stack.clock.step(5_000_000);
    let reply = stack.lfs("t", &oids).await;
    assert_eq!((status(&reply), reply.json()["objects"].as_array().map(Vec::len)), (HIT, Some(100)));
    assert!(stack.sum("sidelink_answers_used_total", "").await >= 2.0, "they are whole answers");
}

#[tokio::test]
async fn what_a_cache_has_taken_of_a_relative_expiry_is_not_told_as_left() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| {
        let download = json!({"href": "https://cdn.test/o", "expires_in": 900});
        lfs(asked.oids().iter().map(|oid| json!({"oid": oid, "actions": {"download": download}}))).with("age", 300)
    })
    .await;
    let left = |reply: &Reply| download(reply)["expires_in"].as_u64().unwrap();
    assert_eq!(left(&stack.lfs("t", &["a"]).await), 600);
    stack.clock.step(100_000);
    let reply = stack.lfs("t", &["a"]).await;
    assert!(status(&reply) == HIT && (460..=500).contains(&left(&reply)), "{}", left(&reply));
}

#[tokio::test]
async fn a_link_whose_expiry_is_in_an_object_with_a_name_twice_is_passed_on_and_not_kept() {
    let table = format!("{GIT_LFS}\nexpires = [\"/life/of/expires_in\", \"link\"]");
    let stack = Stack::start(&table, |asked: &Asked| {
        let item = |oid: &String| {
            format!(
                r#"{{"oid":"{oid}","actions":{{"download":{{"href":"https://cdn.test/o"}}}},"life":{{"of":{{"expires_in":9,"expires_in":900}}}}}}"#
            )
        };
        let items: Vec<String> = asked.oids().iter().map(item).collect();
        Answer::new(200, format!("{{\"objects\":[{}]}}", items.join(","))).of_type(LFS_TYPE)
    })
    .await;
    for _ in 0..2 {
        assert_eq!(status(&stack.lfs("t", &["a"]).await), "fwd=miss");
    }
}

#[tokio::test]
async fn a_batch_that_joins_a_flight_is_told_no_longer_life_than_the_one_that_started_it() {
    let stack = stack(|_| json!({"href": "https://cdn.test/o", "expires_in": 900})).await;
    stack.endpoint.set_open(false);
    let others = async {
        stack.endpoint.was_asked(1).await;
        stack.clock.step(5000);
        let open = async {
            while stack.sum("sidelink_limit_used", "limit=\"waiters\"").await < 2.0 {
                tokio::task::yield_now().await;
            }
            stack.endpoint.set_open(true);
        };
        tokio::join!(stack.lfs("t", &["a"]), open).0
    };
    let (first, joined) = tokio::join!(stack.lfs("t", &["a"]), others);
    let left = |reply: &Reply| download(reply)["expires_in"].as_u64().unwrap();
    assert_eq!((left(&first), status(&joined)), (895, "fwd=miss; stored; collapsed"));
    assert!(left(&joined) <= 895, "{}", left(&joined));
    assert_eq!(stack.endpoint.count(), 1);
}

/// supabase's links are relative, and the life that a request states is part of its scope.
#[tokio::test]
async fn a_relative_url_in_a_list_without_an_envelope_is_kept_until_its_token_ends() {
    let table = "[[batch]]\npreset = \"supabase-storage\"";
    let stack = Stack::start(table, |asked: &Asked| {
        let body = asked.json();
        let paths = body["paths"].as_array().unwrap();
        let expires = now() + body["expiresIn"].as_u64().unwrap();
        let item = |path: &Value| match path.as_str() {
            Some("gone") => json!({"error": "Either the object does not exist", "path": path, "signedURL": null}),
            _ => json!({"error": null, "path": path, "signedURL": format!("/object/sign/b/x?token={}", jwt(expires))}),
        };
        Answer::new(200, json!(paths.iter().map(item).collect::<Vec<_>>()))
    })
    .await;
    let headers = [("authorization", "Bearer t"), ("apikey", "k"), ("content-type", "application/json")];
    let ask = async |expires: u64, paths: &[&str]| {
        let body = json!({"expiresIn": expires, "paths": paths}).to_string();
        stack.client.send(Method::POST, "/storage/v1/object/sign/b", &headers, body).await
    };
    assert_eq!(status(&ask(300, &["a.png", "gone"]).await), MISS);
    let again = ask(300, &["gone", "a.png"]).await;
    assert_eq!((status(&again), again.json()[1]["error"].is_null()), (HIT, true));
    assert_eq!(again.json()[0]["error"], "Either the object does not exist");
    assert_eq!(status(&ask(600, &["a.png"]).await), MISS);
    stack.clock.step(250_000);
    ask(300, &["a.png"]).await;
    assert_eq!(stack.endpoint.count(), 3, "of five minutes less than one is left");
    assert_eq!(stack.endpoint.last().ids("/paths", ""), ["a.png"]);
}

/// It may be an error that `batch.absent` does not name, or a place that `batch.items.link` names wrongly.
#[tokio::test]
async fn an_item_without_a_link_is_passed_on_and_counted_as_such() {
    let stack = Stack::start(GIT_LFS, |asked: &Asked| {
        lfs(asked.oids().iter().map(|oid| json!({"oid": oid, "size": 1, "actions": {}})))
    })
    .await;
    for round in [1, 2] {
        let reply = stack.lfs("t", &["a"]).await;
        assert_eq!(reply.json()["objects"][0]["oid"], "a");
        assert_eq!(
            (stack.endpoint.count(), stack.sum("sidelink_uncacheable_total", "reason=\"no_link\"").await),
            (round, round as f64)
        );
    }
}
