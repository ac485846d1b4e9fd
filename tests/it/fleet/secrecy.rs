//! All data of the server reveals nothing, and changed data is never served.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD_NO_PAD, URL_SAFE_NO_PAD};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use sidelink::config::Config;
use sidelink::demo::origin;

use super::kinds::{Kind, Servers};
use super::{Fleet, SECRET, eventually};
use crate::signing::{Unsigned, knows, pair};

const MARKED_KEY: &str = "AKMARKED00000000001";
const MARKED_SECRET: &str = "SKMARKED-secret";

/// What must not be found in any form.
fn forms(text: &str) -> Vec<String> {
    let mut forms = vec![
        text.to_owned(),
        utf8_percent_encode(text, NON_ALPHANUMERIC).to_string(),
        hex::encode(text),
        text.bytes().rev().map(char::from).collect(),
    ];
    // The inner characters of each of three ways in which the text may lie in what was encoded.
    for engine in [&STANDARD_NO_PAD, &URL_SAFE_NO_PAD] {
        for skip in 0..3 {
            let encoded = engine.encode([&vec![0; skip], text.as_bytes()].concat());
            forms.push(encoded[[0, 2, 3][skip]..encoded.len() - 1].to_owned());
        }
    }
    forms.iter_mut().for_each(|form| form.make_ascii_lowercase());
    forms
}

#[tokio::test]
async fn all_data_of_the_server_reveals_nothing() {
    for kind in Kind::ALL {
        reveals_nothing(&Servers::start(kind).await).await;
    }
}

async fn reveals_nothing(redis: &Servers) {
    let endpoint = |options: &mut origin::Options| options.keys = vec![pair(MARKED_KEY, MARKED_SECRET)];
    let knows = |config: &mut Config| knows(config, MARKED_KEY, MARKED_SECRET);
    let fleet = Fleet::with(redis.shared(), 1, endpoint, knows).await;
    let sidecar = &fleet.sidecars[0];
    let target =
        format!("{}?accessory_ids=marked-id-1&accessory_ids=marked-id-2&group_id=markedgroup", origin::interface::PATH);
    let reply =
        sidecar.client.get(&target, &[("x-auth-token", "marked-token"), ("x-language", "marked-language")]).await;
    let mut signed = Unsigned::get(sidecar.client.address, &target, &fleet.clock);
    (signed.access_key, signed.secret_key) = (MARKED_KEY, MARKED_SECRET);
    let signed = signed.sign();
    let signed: Vec<(&str, &str)> = signed.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let by_key = sidecar.client.get(&target, &signed).await;
    sidecar
        .client
        .send(http::Method::DELETE, "/v2/servicerequest/accessorys/marked-id-3", &[("x-auth-token", "t")], "")
        .await;
    eventually("all is shared", async || {
        let journal = redis.keys("j").await;
        redis.keys("l").await.len() == 4 && redis.number(&["STRLEN", &journal[0]]).await == 200
    })
    .await;

    let mut all = String::new();
    for key in redis.keys_like("*").await {
        assert_eq!(redis.text(&["TYPE", &key]).await, "string");
        assert!(redis.number(&["PTTL", &key]).await > 0, "{key} expires");
        let value = redis.value(&key).await;
        assert!(key.bytes().all(|byte| byte.is_ascii_graphic()), "{key}");
        all.push_str(&format!("{key} {}\n", String::from_utf8_lossy(&value)));
        if let Ok(bytes) = URL_SAFE_NO_PAD.decode(&value) {
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    all.make_ascii_lowercase();
    let links = [reply.links(), by_key.links()].concat();
    assert_eq!(links.len(), 4);
    let links = links.iter().flat_map(|(_, link)| link.split(['?', '&', '/', '=']).filter(|part| part.len() > 5));
    let marked = ["marked-id-1", "marked-id-2", "marked-id-3", "markedgroup", "marked-token", "marked-language"];
    let secrets = [MARKED_KEY, MARKED_SECRET, SECRET, "accessory_id", "https://bucket"];
    for secret in marked.into_iter().chain(secrets).chain(links) {
        for form in forms(secret) {
            assert!(!all.contains(&form), "{secret} as {form}");
        }
    }
}

#[tokio::test]
async fn altered_swapped_or_expired_values_are_never_served() {
    for kind in Kind::ALL {
        serves_only_what_it_wrote(&Servers::start(kind).await).await;
    }
}

async fn serves_only_what_it_wrote(redis: &Servers) {
    let tier = redis.shared();
    let fleet = Fleet::with(tier.clone(), 1, |_| {}, |_| {}).await;
    fleet.sidecars[0].client.batch("t", &["1", "2"]).await;
    fleet.sidecars[0].client.batch("u", &["1"]).await;
    eventually("all is shared", async || redis.keys("l").await.len() == 3).await;
    let keys = redis.keys("l").await;
    let mut values = Vec::new();
    for key in &keys {
        values.push(redis.value(key).await);
    }
    let lasting = redis.number(&["PTTL", &keys[0]]).await;
    let put = async |values: &[Vec<u8>]| {
        for (key, value) in keys.iter().zip(values) {
            redis.put(key, value, lasting).await;
        }
    };
    // A sidecar that has nothing in memory each time.
    let mut calls = fleet.origin.batch_calls();
    let mut asked = async |what: &str, kind: &str, count: f64| {
        let config = super::sidecar(fleet.origin.address(), &tier);
        let sidecar = super::Sidecar::start(config, fleet.clock.clone()).await;
        sidecar.tier_is(true).await;
        let reply = sidecar.client.batch("t", &["1", "2"]).await;
        for (id, link) in reply.links() {
            assert!(origin::link_is_for(&link, &id, None, "t", None, None), "{what}");
        }
        // Each is looked at twice where it does not count: once more with the lease.
        let counted = sidecar.failures(kind).await;
        assert!(if count > 0.0 { counted >= count } else { counted == 0.0 }, "{what}: {counted}");
        let made = fleet.origin.batch_calls() - calls;
        calls = fleet.origin.batch_calls();
        made
    };
    assert_eq!(asked("as they are", "unsealed", 0.0).await, 0);

    put(&[values[1].clone(), values[2].clone(), values[0].clone()]).await;
    assert_eq!(asked("swapped", "unsealed", 2.0).await, 1);
    let mut altered = values.clone();
    altered.iter_mut().for_each(|value| value[200] ^= 1);
    put(&altered).await;
    assert_eq!(asked("altered", "unsealed", 2.0).await, 1);
    put(&[Vec::new(), vec![2; 20_000], b"no sealed value".to_vec()]).await;
    asked("made up", "revoked", 0.0).await;
    put(&values).await;
    assert_eq!(asked("as they were", "unsealed", 0.0).await, 0);

    // Restored after their expiry: fresh for ten minutes, usable for fourteen.
    fleet.clock.step(i64::try_from(Duration::from_secs(850).as_millis()).unwrap());
    put(&values).await;
    assert_eq!(asked("outlived", "outlived", 3.0).await, 1);
    // From a future that no clock of the fleet's is in.
    fleet.clock.step(-i64::try_from(Duration::from_secs(900).as_millis()).unwrap());
    put(&values).await;
    assert_eq!(asked("from the future", "outlived", 3.0).await, 1);
}
