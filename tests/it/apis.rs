//! Each preset in front of its simulated endpoint: only what is missing is fetched, and an answer equals that of a client which asks the
//! endpoint itself, but for what differs between two calls.

use std::time::Duration;

use http::HeaderMap;
use serde_json::Value;
use sidelink::config::batch::BatchApi;
use sidelink::demo::origin::shapes::{SHAPES, Shape};
use sidelink::demo::origin::{Options, Origin};

use crate::support::{Reply, Stack, TestClient, origin_options};

/// A sidelink before an endpoint of this API, and another such endpoint that is asked directly.
struct Pair {
    shape: &'static Shape,
    stack: Stack,
    direct: TestClient,
}

impl Pair {
    async fn start(shape: &'static Shape, endpoint: impl Fn(&mut Options)) -> Self {
        let with_shape = |options: &mut Options| {
            options.api = shape;
            endpoint(options);
        };
        let stack = Stack::with(with_shape, |config| config.batch = vec![BatchApi::preset(shape.name).unwrap()]).await;
        let mut options = origin_options();
        with_shape(&mut options);
        let direct = TestClient::new(Origin::start(options).await.unwrap().address());
        Self { shape, stack, direct }
    }

    fn ids(&self, numbers: &[&str]) -> Vec<String> {
        numbers.iter().map(|number| self.shape.id(number)).collect()
    }

    async fn send(&self, client: &TestClient, ids: &[String], headers: &[(&str, &str)]) -> Reply {
        let (target, body) = self.shape.batch(ids);
        client.send(self.shape.method.clone(), &target, headers, body).await
    }

    /// Asks through sidelink and directly, compares, and returns sidelink's answer.
    async fn ask(&self, ids: &[String], headers: &[(&str, &str)]) -> Reply {
        let through = self.send(&self.stack.client, ids, headers).await;
        let direct = self.send(&self.direct, ids, headers).await;
        let name = self.shape.name;
        assert_eq!(through.status, direct.status, "{name}: {:?}", through.body);
        assert_eq!(comparable(&through.json()), comparable(&direct.json()), "{name}");
        assert_eq!(media_type(&through.headers), media_type(&direct.headers), "{name}");
        through
    }

    /// As [`Self::ask`]; every id has its own link, in the order asked.
    async fn links(&self, numbers: &[&str], headers: &[(&str, &str)]) -> Reply {
        let ids = self.ids(numbers);
        let reply = self.ask(&ids, headers).await;
        let mut links = self.shape.links(&reply.json());
        if self.shape.is_keyed() {
            links.sort_by_key(|(id, _)| ids.iter().position(|asked| asked == id));
        }
        assert_eq!(links.iter().map(|(id, _)| id.clone()).collect::<Vec<_>>(), ids, "{}", self.shape.name);
        for (id, link) in links {
            let link = link.unwrap();
            assert!(self.shape.link_is_for(&link, &id, headers), "{}: {id} {link}", self.shape.name);
        }
        reply
    }
}

/// An answer without what differs between two calls: the query of links, times, and the endpoint's name for the call.
fn comparable(answer: &Value) -> Value {
    const DIFFER: [&str; 3] = ["expires_in", "expires_at", "request_id"];
    match answer {
        Value::String(text) => text.split('?').next().unwrap().into(),
        Value::Array(values) => values.iter().map(comparable).collect(),
        Value::Object(members) => {
            let kept = members.iter().filter(|(name, _)| !DIFFER.contains(&name.as_str()));
            Value::Object(kept.map(|(name, value)| (name.clone(), comparable(value))).collect())
        }
        other => other.clone(),
    }
}

fn media_type(headers: &HeaderMap) -> String {
    headers["content-type"].to_str().unwrap().to_owned()
}

#[test]
fn every_preset_has_a_simulated_endpoint_with_its_method_and_path() {
    let names: Vec<&str> = SHAPES.iter().map(|shape| shape.name).collect();
    assert_eq!(names, BatchApi::presets().collect::<Vec<_>>());
    for shape in &SHAPES {
        let api = BatchApi::preset(shape.name).unwrap();
        assert_eq!(api.method, shape.method);
        assert!(api.path.matches(shape.target), "{}", shape.target);
    }
}

#[tokio::test]
async fn each_api_fetches_only_what_is_missing_and_answers_as_its_endpoint_does() {
    for shape in &SHAPES {
        let pair = Pair::start(shape, |_| {}).await;
        let (headers, name) = (shape.headers, shape.name);
        let first = pair.links(&["1", "2", "3"], headers).await;
        assert_eq!(first.header("cache-status"), "sidelink; fwd=miss; stored", "{name}");
        let partial = pair.links(&["3", "4", "2"], headers).await;
        let status = "sidelink; fwd=partial; stored; detail=\"hit=2 fetched=1\"";
        assert_eq!(partial.header("cache-status"), status, "{name}");
        for _ in 0..2 {
            let hit = pair.links(&["3", "4", "2"], headers).await;
            assert_eq!(hit.header("cache-status"), "sidelink; hit", "{name}");
            assert_eq!(shape.links(&hit.json()), shape.links(&partial.json()), "{name}");
        }
        assert_eq!(pair.stack.asked(), [pair.ids(&["1", "2", "3"]), pair.ids(&["4"])], "{name}");
    }
}

#[tokio::test]
async fn each_api_keeps_its_callers_apart_by_every_header_of_their_credential() {
    for shape in &SHAPES {
        let pair = Pair::start(shape, |_| {}).await;
        pair.links(&["1", "2"], shape.headers).await;
        for name in BatchApi::preset(shape.name).unwrap().credentials {
            let mut headers = shape.headers.to_vec();
            headers.iter_mut().filter(|(known, _)| name == *known).for_each(|(_, value)| *value = "another");
            assert_ne!(headers, shape.headers);
            let other = pair.links(&["1", "2"], &headers).await;
            assert_eq!(other.header("cache-status"), "sidelink; fwd=miss; stored", "{} {name}", shape.name);
        }
    }
}

#[tokio::test]
async fn an_unknown_id_is_answered_as_the_endpoint_answers_it_also_from_memory() {
    for shape in &SHAPES {
        let pair = Pair::start(shape, |options| options.missing = vec![shape.id("2")]).await;
        let ids = pair.ids(&["1", "2", "3"]);
        for _ in 0..2 {
            assert_eq!(pair.ask(&ids, shape.headers).await.status, 200, "{}", shape.name);
        }
        // Google's item of an error names no id, so that nothing of such an answer is kept.
        if shape.name != "google-photos" {
            assert_eq!(pair.stack.asked().len(), 1, "{}", shape.name);
        }
    }
}

#[tokio::test]
async fn an_error_is_passed_on_in_the_shape_of_its_api() {
    for shape in &SHAPES {
        let names = BatchApi::preset(shape.name).unwrap().credentials;
        let values = shape.headers.iter().filter(|(name, _)| names.iter().any(|known| known == name));
        let credential = values.map(|(_, value)| *value).collect::<Vec<_>>().join("\n");
        let pair = Pair::start(shape, |options| options.refuse = vec![credential.clone()]).await;
        let without: Vec<_> = shape.headers.iter().copied().skip(1).collect();
        for headers in [shape.headers, &without] {
            let refused = pair.ask(&pair.ids(&["1"]), headers).await;
            assert_eq!(refused.status, 401, "{}", shape.name);
        }
    }
}

#[tokio::test]
async fn a_batch_over_the_limit_of_a_call_is_split_where_the_endpoint_refuses_it() {
    // A batch of Supabase's limit, 1000, is one of limits.batch_ids as well.
    for shape in SHAPES.iter().filter(|shape| shape.name != "supabase-storage") {
        let pair = Pair::start(shape, |_| {}).await;
        let most = BatchApi::preset(shape.name).unwrap().ids_per_call;
        let ids: Vec<String> = (0..=most).map(|number| shape.id(&number.to_string())).collect();
        let refused = pair.send(&pair.direct, &ids, shape.headers).await;
        assert!(refused.status.is_client_error(), "{}", shape.name);
        let reply = pair.send(&pair.stack.client, &ids, shape.headers).await;
        assert_eq!(shape.links(&reply.json()).len(), most + 1, "{}: {:?}", shape.name, reply.body);
        assert_eq!(pair.stack.asked().len(), 2, "{}", shape.name);
    }
}

#[tokio::test]
async fn links_that_live_too_short_are_not_kept_by_any_api_whose_links_say_so() {
    for shape in &SHAPES {
        let pair = Pair::start(shape, |options| options.link_life = Duration::from_secs(30)).await;
        let status = match shape.name {
            // Its links carry no signature.
            "google-photos" => "sidelink; hit",
            _ => "sidelink; fwd=miss",
        };
        pair.links(&["1"], shape.headers).await;
        assert_eq!(pair.links(&["1"], shape.headers).await.header("cache-status"), status, "{}", shape.name);
    }
}
