//! A batch that comes again as it was written is answered as before, from one whole answer, only as long as each of its links would
//! be served one by one: to the same caller, before any is due for a refresh, and until one is purged, withdrawn or fetched anew.

use std::time::Duration;

use http::{Method, StatusCode};
use sidelink::clock::Clock;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::{ScriptedReply, link_is_for};

use crate::simulated::{Client, World};
use crate::support::{Stack, TestClient, query};

const HIT: &str = "sidelink; hit";
const USED: &str = "sidelink_answers_used_total";
const TOKEN: [(&str, &str); 1] = [("x-auth-token", "t")];

/// Sends a batch until it has been answered by a whole answer: fetched, found a first and a second time, repeated.
async fn repeat(client: &TestClient, target: &str, headers: &[(&str, &str)]) {
    for _ in 0..4 {
        assert_eq!(client.get(target, headers).await.status, StatusCode::OK);
    }
}

#[tokio::test]
async fn a_batch_that_comes_again_has_the_same_answer_and_is_counted_as_hits() {
    let stack = Stack::with(|endpoint| endpoint.missing = vec!["3".into()], |_| {}).await;
    let target = query(&["1", "2", "1", "3"]);
    let first = stack.client.get(&target, &TOKEN).await;
    let mut names = vec![first.header("x-request-id").to_owned()];
    for round in 0_u8..40 {
        let again = stack.client.get(&target, &TOKEN).await;
        assert_eq!(
            (again.status, &again.body, again.header("cache-status")),
            (first.status, &first.body, HIT),
            "{round}"
        );
        for name in ["content-type", "content-length", "vary", "via"] {
            assert_eq!(again.header(name), first.header(name), "{round}: {name}");
        }
        assert!(again.header("cache-control").starts_with("private, max-age="));
        names.push(again.header("x-request-id").to_owned());
    }
    names.sort();
    names.dedup();
    assert_eq!(names.len(), 41, "each reply has a request id of its own");
    assert_eq!(stack.asked().len(), 1);
    // It is stored at the third, since the caller's first batch does not count as seen.
    assert_eq!(stack.metric(USED).await, 38.0);
    assert_eq!(stack.metric("sidelink_answers").await, 1.0);
    assert!(stack.metric("sidelink_answers_bytes").await > first.body.len() as f64);
    assert_eq!(stack.metric("sidelink_batches_total{outcome=\"hit\"}").await, 40.0);
    assert_eq!(stack.metric("sidelink_ids_total{result=\"hit\"}").await, 80.0);
    assert_eq!(stack.metric("sidelink_ids_total{result=\"absent\"}").await, 40.0);
    assert_eq!(stack.metric("sidelink_batch_ids_sum").await, 123.0);
    assert_eq!(stack.metric("sidelink_link_life_left_seconds_count").await, 80.0);
    let named = stack.client.get(&target, &[TOKEN[0], ("x-request-id", "mine")]).await;
    assert_eq!(named.header("x-request-id"), "mine");
}

#[tokio::test]
async fn each_caller_language_and_form_has_answers_of_its_own() {
    let stack = Stack::start().await;
    let target = query(&["1", "2"]);
    for _ in 0..4 {
        for token in ["t", "tt", "u"] {
            for language in [None, Some("en-us"), Some("zh-cn")] {
                let mut headers = vec![("x-auth-token", token)];
                headers.extend(language.map(|language| ("x-language", language)));
                for (id, link) in stack.client.get(&target, &headers).await.links() {
                    assert!(link_is_for(&link, &id, None, token, language, None), "{link}");
                }
            }
        }
    }
    // A caller's first batch is fetched whole, and does not count as seen.
    assert_eq!((stack.metric(USED).await, stack.metric("sidelink_answers").await), (15.0, 9.0));

    let body = r#"{"accessory_ids":["1","2"]}"#;
    let send = |target: &'static str, headers: Vec<(&'static str, &'static str)>| {
        let client = stack.client.clone();
        async move { client.send(Method::GET, target, &headers, body).await }
    };
    for _ in 0..4 {
        assert_eq!(send(api::PATH, TOKEN.to_vec()).await.header("cache-control"), "no-store");
    }
    assert_eq!(stack.metric(USED).await, 17.0);
    let both = send(Box::leak(query(&["1"]).into_boxed_str()), TOKEN.to_vec()).await;
    assert!(both.header("cache-status").contains("detail=unreadable"), "both forms are no batch");
    let coded = send(api::PATH, vec![TOKEN[0], ("content-encoding", "x")]).await;
    assert!(coded.header("cache-status").contains("detail=unreadable"), "nor is a coded body");
}

#[tokio::test]
async fn a_purge_of_an_id_a_group_or_everything_ends_an_answer_and_so_does_a_deletion() {
    let stack = Stack::start().await;
    let admin = TestClient::new(stack.app.admin_address());
    let target = format!("{}&group_id=g", query(&["1", "2"]));
    for (purge, fetched) in [
        (r#"{"accessory_ids":["2"]}"#, vec!["2"]),
        (r#"{"group_id":"g"}"#, vec!["1", "2"]),
        (r#"{"all":true}"#, vec!["1", "2"]),
        ("", vec!["1"]),
    ] {
        repeat(&stack.client, &target, &TOKEN).await;
        stack.origin.forget_calls();
        let used = stack.metric(USED).await;
        stack.client.get(&target, &TOKEN).await;
        assert_eq!(stack.metric(USED).await, used + 1.0, "{purge}: it is a whole answer");
        if purge.is_empty() {
            let path = "/v2/servicerequest/accessorys/1";
            assert_eq!(stack.client.send(Method::DELETE, path, &TOKEN, "").await.status, StatusCode::NO_CONTENT);
        } else {
            let headers = [("content-type", "application/json")];
            assert_eq!(admin.send(Method::POST, "/purge", &headers, purge).await.status, StatusCode::OK);
        }
        stack.client.get(&target, &TOKEN).await;
        assert_eq!(stack.asked(), [fetched], "{purge}");
    }
}

/// A 403 to several ids makes their caller forget them, and no more.
#[tokio::test]
async fn a_refusal_ends_the_answers_of_its_caller_alone() {
    for (status, ids) in [(403, &["2", "1"][..]), (403, &["2"]), (401, &["2"])] {
        let stack = Stack::start().await;
        let target = query(&["1", "2"]);
        let other = [("x-auth-token", "u")];
        repeat(&stack.client, &target, &TOKEN).await;
        repeat(&stack.client, &target, &other).await;
        stack.origin.forget_calls();
        stack.origin.script(ScriptedReply::json(status, r#"{"error_code":"OSM.0001","error_msg":"no"}"#));
        let refused = stack.client.get(&query(ids), &[TOKEN[0], ("cache-control", "no-cache")]).await;
        assert_eq!(refused.status.as_u16(), status);
        stack.client.get(&target, &TOKEN).await;
        // After a 403 to an id alone that it had, the caller revalidates as well.
        assert_eq!(stack.asked(), [ids.to_vec(), vec!["1", "2"]]);
        let used = stack.metric(USED).await;
        stack.client.get(&target, &other).await;
        assert_eq!((stack.metric(USED).await, stack.asked().len()), (used + 1.0, 2), "another caller's goes on");
    }
}

#[tokio::test]
async fn what_a_client_has_fetched_anew_is_answered_from_then_on() {
    let stack = Stack::start().await;
    let target = query(&["1", "2"]);
    repeat(&stack.client, &target, &TOKEN).await;
    let old = stack.client.get(&target, &TOKEN).await.links();
    let new = stack.client.get(&query(&["2"]), &[TOKEN[0], ("cache-control", "no-cache")]).await.links();
    assert_ne!(old[1], new[0]);
    for _ in 0..3 {
        assert_eq!(stack.client.get(&target, &TOKEN).await.links(), [old[0].clone(), new[0].clone()]);
    }
}

/// Fetches other ids until `id` is evicted from a cache of 1 MiB.
async fn evict(client: &mut Client, id: &str) {
    // Without whole answers, which keep their entries.
    let in_memory = [TOKEN[0], ("cache-control", "only-if-cached, max-age=100000")];
    for round in 0..50 {
        for batch in 0..40 {
            let ids: Vec<String> = (0..100).map(|id| format!("{round}-{batch}-{id}")).collect();
            let mut ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            // Twice, so that the cache keeps these, and written otherwise, so that no whole answer is stored.
            client.batch("t", &ids).await;
            ids.reverse();
            client.batch("t", &ids).await;
        }
        if client.get(&query(&[id]), &in_memory).await.unwrap().status == StatusCode::GATEWAY_TIMEOUT {
            return;
        }
    }
    panic!("{id} stays in memory");
}

/// Regression: the answer went on where the entry that was fetched anew had been evicted before.
#[tokio::test(start_paused = true)]
async fn what_a_client_has_fetched_anew_is_answered_also_where_the_old_entry_was_evicted() {
    let world = World::new(|_| {}, |config| config.cache.capacity = 1 << 20);
    let mut client = world.client().await;
    let target = query(&["1", "2"]);
    for _ in 0..4 {
        client.get(&target, &TOKEN).await.unwrap();
    }
    evict(&mut client, "2").await;
    assert_eq!(used(&mut client, &world, &target).await.0, 1.0, "an eviction ends no answer");
    let new = client.get(&query(&["2"]), &[TOKEN[0], ("cache-control", "no-cache")]).await.unwrap().links();
    for _ in 0..3 {
        assert_eq!(client.get(&target, &TOKEN).await.unwrap().links()[1], new[0]);
    }
}

/// Regression: the answer went on where the call that brought the new entry was another batch's.
#[tokio::test(start_paused = true)]
async fn what_a_client_has_fetched_anew_is_answered_also_where_it_joined_a_flight() {
    let world = World::new(|_| {}, |config| config.cache.capacity = 1 << 20);
    let (mut client, mut other) = (world.client().await, world.client().await);
    let target = query(&["1", "2"]);
    let old = client.get(&target, &TOKEN).await.unwrap().links()[1].clone();
    for _ in 0..3 {
        client.get(&target, &TOKEN).await.unwrap();
    }
    evict(&mut client, "2").await;
    world.update(|endpoint| endpoint.delay = Duration::from_millis(300));
    let plain = tokio::spawn(async move { other.batch("t", &["2", "3"]).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let anew = client.get(&query(&["2"]), &[TOKEN[0], ("cache-control", "no-cache")]).await.unwrap();
    assert_eq!(anew.header("cache-status"), "sidelink; fwd=miss; stored; collapsed");
    assert_eq!(plain.await.unwrap().links()[0], anew.links()[0]);
    // The full cache may have evicted the new one as well; the old one never comes back.
    for _ in 0..3 {
        assert_ne!(client.get(&target, &TOKEN).await.unwrap().links()[1], old);
    }
}

#[tokio::test]
async fn an_answer_to_a_long_request_is_not_stored() {
    let stack = Stack::with(|_| {}, |config| config.limits.batch_body = 1 << 18).await;
    let body = format!("{{\"accessory_ids\":[\"1\"]{}}}", " ".repeat(1 << 17));
    for _ in 0..5 {
        let reply = stack.client.send(Method::GET, api::PATH, &TOKEN, body.clone()).await;
        assert_eq!(reply.status, StatusCode::OK);
    }
    assert_eq!(stack.metric("sidelink_answers").await, 0.0);
}

#[tokio::test]
async fn directives_of_the_request_are_asked_of_each_link() {
    let stack = Stack::start().await;
    let target = query(&["1", "2"]);
    repeat(&stack.client, &target, &TOKEN).await;
    let used = stack.metric(USED).await;
    for directive in ["no-cache", "no-store", "max-age=0", "min-fresh=100000"] {
        stack.origin.forget_calls();
        stack.client.get(&target, &[TOKEN[0], ("cache-control", directive)]).await;
        assert_eq!(stack.asked(), [["1", "2"]], "{directive}");
    }
    assert_eq!(stack.metric(USED).await, used);
}

#[tokio::test]
async fn a_reload_ends_all_answers() {
    let stack = Stack::start().await;
    let target = query(&["1", "2"]);
    repeat(&stack.client, &target, &TOKEN).await;
    let mut config = (*stack.app.config()).clone();
    config.limits.batch_ids = 1;
    stack.app.apply(config).unwrap();
    assert_eq!(stack.client.get(&target, &TOKEN).await.status, StatusCode::BAD_REQUEST);
    assert_eq!(stack.metric("sidelink_answers").await, 0.0);
}

async fn used(client: &mut Client, world: &World, target: &str) -> (f64, String) {
    let before = world.metric(USED);
    let status = client.get(target, &TOKEN).await.unwrap().header("cache-status").to_owned();
    (world.metric(USED) - before, status)
}

#[tokio::test(start_paused = true)]
async fn an_answer_is_used_until_the_first_of_its_links_is_due_for_a_refresh() {
    let world = World::new(
        |endpoint| endpoint.link_life = Duration::from_secs(1000),
        |config| {
            config.freshness.max = Duration::from_secs(100);
        },
    );
    let mut client = world.client().await;
    client.batch("t", &["1"]).await;
    tokio::time::advance(Duration::from_secs(50)).await;
    let target = query(&["2", "1"]);
    for _ in 0..3 {
        client.get(&target, &TOKEN).await.unwrap();
    }
    assert_eq!(used(&mut client, &world, &target).await, (1.0, HIT.to_owned()));
    // The first link is due between 80 and 90 seconds after its call.
    tokio::time::advance(Duration::from_secs(29)).await;
    assert_eq!(used(&mut client, &world, &target).await.0, 1.0);
    tokio::time::advance(Duration::from_secs(12)).await;
    assert_eq!(used(&mut client, &world, &target).await, (0.0, HIT.to_owned()));
    assert_eq!(world.metric("sidelink_refetched_total{cause=\"refresh\"}"), 1.0);
}

#[tokio::test(start_paused = true)]
async fn an_answer_ends_when_the_wall_clock_says_so_and_when_its_caller_must_revalidate() {
    let world = World::new(
        |_| {},
        |config| {
            config.freshness.max = Duration::from_secs(100);
            config.callers.revalidate = Duration::from_secs(60);
        },
    );
    let mut client = world.client().await;
    let target = query(&["1", "2"]);
    for _ in 0..4 {
        client.get(&target, &TOKEN).await.unwrap();
    }
    assert_eq!(used(&mut client, &world, &target).await.0, 1.0);
    tokio::time::advance(Duration::from_secs(61)).await;
    assert_eq!(used(&mut client, &world, &target).await, (0.0, "sidelink; fwd=miss; stored".to_owned()));
    for _ in 0..4 {
        client.get(&target, &TOKEN).await.unwrap();
    }
    assert_eq!(used(&mut client, &world, &target).await.0, 1.0);
    world.suspend(Duration::from_secs(200));
    assert_eq!(used(&mut client, &world, &target).await, (0.0, "sidelink; fwd=miss; stored".to_owned()));
}

#[tokio::test(start_paused = true)]
async fn the_entries_of_an_answer_that_is_used_stay_in_memory() {
    let world = World::new(|_| {}, |config| config.cache.capacity = 1 << 20);
    let mut client = world.client().await;
    let target = query(&["1", "2"]);
    for batch in 0..200 {
        let ids: Vec<String> = (0..100).map(|id| format!("{batch}-{id}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        // Twice, so that the cache has others to keep.
        for _ in 0..2 {
            client.batch("t", &ids).await;
        }
        for _ in 0..16 {
            client.get(&target, &TOKEN).await.unwrap();
        }
    }
    assert!(world.metric("sidelink_cache_evictions_total{cause=\"size\"}") > 10_000.0);
    assert_eq!(client.batch("t", &["2"]).await.header("cache-status"), HIT);
}

#[tokio::test]
async fn whole_answers_take_an_eighth_of_the_capacity_at_most() {
    let capacity = 8 << 20;
    let stack = Stack::on(Clock::system(), |_| {}, |config| config.cache.capacity = capacity).await;
    for batch in 0..60 {
        let ids: Vec<String> = (0..100).map(|id| format!("{batch}-{id}")).collect();
        repeat(&stack.client, &query(&ids.iter().map(String::as_str).collect::<Vec<_>>()), &TOKEN).await;
    }
    let bytes = stack.metric("sidelink_answers_bytes").await;
    assert!(bytes > 0.0 && bytes <= (capacity / 8) as f64, "{bytes}");
    let entries = stack.metric("sidelink_cache_bytes").await;
    assert!(entries <= (capacity - capacity / 8) as f64, "{entries}");
}

/// Regression: the replaced entry had seemed to be due for a refresh.
#[tokio::test(start_paused = true)]
async fn a_clock_that_steps_forth_and_back_revives_no_answer() {
    let world = World::new(|_| {}, |config| config.freshness.max = Duration::from_secs(100));
    let mut client = world.client().await;
    let target = query(&["1", "2"]);
    for _ in 0..4 {
        client.get(&target, &TOKEN).await.unwrap();
    }
    world.clock.step(95_000);
    let new = client.get(&query(&["2"]), &[TOKEN[0], ("cache-control", "no-cache")]).await.unwrap().links();
    world.clock.step(-95_000);
    assert_eq!(client.get(&target, &TOKEN).await.unwrap().links()[1], new[0]);
}
