//! A batch fetches only the ids that the cache lacks, in the client's request form. Its answer has the order of the request.
//! The three request forms share cache entries.

use http::Method;
use serde_json::json;
use sidelink::api::request::Form;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::interface::{body, target};

use crate::support::{Reply, Stack, query};

const TOKEN: (&str, &str) = ("x-auth-token", "t");

async fn ask(stack: &Stack, form: Form, ids: &[&str]) -> Reply {
    let target = target(form, &Some("g").into(), ids.iter().copied());
    let body = body(form, &Some("g").into(), ids.iter().copied());
    stack.client.send(Method::GET, &target, &[TOKEN], body).await
}

async fn fetches_only_its_misses(form: Form, upstream: &str) {
    let stack = Stack::start().await;
    let first = ask(&stack, form, &["1", "2"]).await;
    assert_eq!(first.header("cache-status"), "sidelink; fwd=miss; stored");
    let second = ask(&stack, form, &["2", "1"]).await;
    assert_eq!(second.header("cache-status"), "sidelink; hit");
    let mut reversed = first.links();
    reversed.reverse();
    assert_eq!(second.links(), reversed);
    let third = ask(&stack, form, &["3", "1", "4"]).await;
    assert_eq!(third.header("cache-status"), "sidelink; fwd=partial; stored; detail=\"hit=1 fetched=2\"");
    assert_eq!(third.ids(), ["3", "1", "4"]);
    assert_eq!(third.links()[1], first.links()[0]);

    assert_eq!(stack.asked(), [vec!["1", "2"], vec!["3", "4"]]);
    let call = &stack.origin.calls()[1];
    assert_eq!(call.target.split_once('?').map_or("", |(_, query)| query), upstream);
    if form == Form::Body {
        let body: serde_json::Value = serde_json::from_slice(&call.body).unwrap();
        assert_eq!(body, json!({"group_id": "g", "accessory_ids": ["3", "4"]}));
    } else {
        assert!(call.body.is_empty());
    }
}

#[tokio::test]
async fn a_partial_batch_fetches_only_its_misses_in_every_form() {
    fetches_only_its_misses(Form::Repeated, "accessory_ids=3&accessory_ids=4&group_id=g").await;
    fetches_only_its_misses(Form::Comma, "accessory_ids=3,4&group_id=g").await;
    fetches_only_its_misses(Form::Body, "").await;
}

#[tokio::test]
async fn the_three_request_forms_share_cache_entries() {
    let stack = Stack::start().await;
    let first = ask(&stack, Form::Repeated, &["1", "2"]).await;
    for form in [Form::Comma, Form::Body] {
        let again = ask(&stack, form, &["1", "2"]).await;
        assert_eq!(again.header("cache-status"), "sidelink; hit");
        assert_eq!(again.links(), first.links());
    }
    assert_eq!(stack.asked().len(), 1);
}

#[tokio::test]
async fn ids_with_any_characters_work_in_every_form() {
    let ids = ["a/b", "c d", "e+f", "g,h", "i%j", "k\"l", "m\\n", "附件", "🎉", "a&b=c", "#?", "%2C", "é"];
    for form in [Form::Repeated, Form::Comma, Form::Body] {
        let stack = Stack::start().await;
        let first = ask(&stack, form, &ids).await;
        assert_eq!(first.ids(), ids, "{form:?}");
        assert_eq!(ask(&stack, form, &ids).await.header("cache-status"), "sidelink; hit", "{form:?}");
        assert_eq!(stack.asked(), [ids]);
    }
}

#[tokio::test]
async fn a_repeated_id_is_fetched_and_answered_once() {
    let stack = Stack::start().await;
    let reply = stack.client.batch("t", &["1", "2", "1", "%31"]).await;
    assert_eq!(reply.ids(), ["1", "2"]);
    assert_eq!(stack.asked(), [["1", "2"]]);
}

#[tokio::test]
async fn ids_beyond_ids_per_call_are_split_into_several_calls() {
    let stack = Stack::start().await;
    let ids: Vec<String> = (0..250).map(|n| n.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let reply = ask(&stack, Form::Body, &ids).await;
    assert_eq!(reply.ids(), ids);
    let mut sizes: Vec<usize> = stack.asked().iter().map(Vec::len).collect();
    sizes.sort_unstable();
    assert_eq!(sizes, [50, 100, 100]);
}

#[tokio::test]
async fn calls_are_split_to_keep_targets_within_uri_bytes() {
    let stack = Stack::with(|_| {}, |config| config.upstream.uri_bytes = 1024).await;
    let ids: Vec<String> = (0..40).map(|n| format!("{n:060}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    assert_eq!(ask(&stack, Form::Repeated, &ids).await.ids(), ids);
    let calls = stack.origin.calls();
    assert!(calls.len() > 1);
    assert!(calls.iter().all(|call| call.target.len() <= 1024));
}

#[tokio::test]
async fn a_group_is_optional_and_sent_upstream() {
    let stack = Stack::start().await;
    stack.client.batch("t", &["1"]).await;
    ask(&stack, Form::Repeated, &["1"]).await;
    let groups: Vec<Option<String>> = stack.origin.calls().into_iter().map(|call| call.group).collect();
    assert_eq!(groups, [None, Some("g".to_owned())]);
}

#[tokio::test]
async fn an_id_that_the_endpoint_leaves_out_is_cached_as_absent() {
    let stack = Stack::with(|endpoint| endpoint.missing = vec!["2".into()], |_| {}).await;
    for _ in 0..2 {
        assert_eq!(stack.client.batch("t", &["1", "2", "3"]).await.ids(), ["1", "3"]);
    }
    assert_eq!(stack.asked(), [["1", "2", "3"]]);
    assert_eq!(stack.metric(r#"sidelink_ids_total{result="fetched"}"#).await, 3.0);
    assert_eq!(stack.metric(r#"sidelink_ids_total{result="absent"}"#).await, 1.0);
    assert_eq!(stack.metric(r#"sidelink_ids_total{result="hit"}"#).await, 2.0);
}

#[tokio::test]
async fn a_call_carries_only_the_clients_credential_and_scope_headers() {
    let stack = Stack::start().await;
    let headers =
        [TOKEN, ("x-language", "en-us"), ("x-other", "secret"), ("accept", "text/html"), ("user-agent", "me")];
    stack.client.get(&query(&["1"]), &headers).await;
    let call = &stack.origin.calls()[0];
    let mut names: Vec<&str> = call.headers.keys().map(http::HeaderName::as_str).collect();
    names.sort_unstable();
    let expected =
        ["accept", "accept-encoding", "content-type", "host", "user-agent", "via", "x-auth-token", "x-language"];
    assert_eq!(names, expected);
    assert_eq!(call.headers["host"], stack.origin.address().to_string());
    assert!(call.target.starts_with(api::PATH));
}

#[tokio::test]
async fn an_http2_client_with_prior_knowledge_gets_the_same_answers() {
    let stack = Stack::start().await;
    let executor = hyper_util::rt::TokioExecutor::new();
    let client = hyper_util::client::legacy::Client::builder(executor).http2_only(true).build_http();
    let mut answers = Vec::new();
    for _ in 0..2 {
        let uri = format!("http://{}{}", stack.client.address, query(&["1", "2"]));
        let request = http::Request::get(uri).header("x-auth-token", "t");
        let response =
            client.request(request.body(http_body_util::Empty::<bytes::Bytes>::new()).unwrap()).await.unwrap();
        assert_eq!((response.status().as_u16(), response.version()), (200, http::Version::HTTP_2));
        answers.push(http_body_util::BodyExt::collect(response.into_body()).await.unwrap().to_bytes());
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(stack.client.batch("t", &["2", "1"]).await.header("cache-status"), "sidelink; hit");
    assert_eq!(stack.asked(), [["1", "2"]]);
}
