//! Links of the forms in docs/LINKS.md, end to end: a link is served from the cache until its remaining life, by the latest of
//! all clocks, falls below `min_remaining`. A link with an unreadable expiry is never cached.

use std::sync::Arc;
use std::time::{Duration, UNIX_EPOCH};

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, DATE, EXPIRES};
use http::{HeaderMap, HeaderName, StatusCode};
use prometheus::Registry;
use sidelink::cache::Entry;
use sidelink::cache::freshness::Deadlines;
use sidelink::clock::{Clock, basic_date};
use sidelink::config::{Config, Endpoint, Secret, Shared};
use sidelink::demo::origin::ScriptedReply;
use sidelink::shared::TierUpdate;
use sidelink::shared::testing::Trial;
use sidelink::telemetry::metrics::Metrics;

use crate::support::Stack;

const HIT: &str = "sidelink; hit";
const PASSED_ON: &str = "sidelink; fwd=miss";

fn unix_seconds() -> u64 {
    std::time::SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs()
}

fn clock() -> Clock {
    Clock::simulated(i64::try_from(unix_seconds()).unwrap() * 1000)
}

fn http_date(unix_seconds: u64) -> String {
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(unix_seconds))
}

/// A link of each form, signed now, that expires in `life` seconds.
fn links(life: u64) -> Vec<(&'static str, String)> {
    let now = unix_seconds();
    let (end, date) = (now + life, basic_date(now));
    let rfc3339 = sidelink::clock::rfc3339(end * 1000).replace(':', "%3A");
    let base64 = |json: String| URL_SAFE_NO_PAD.encode(json);
    let statement =
        format!(r#"{{"Statement":[{{"Resource":"*","Condition":{{"DateLessThan":{{"AWS:EpochTime":{end}}}}}}}]}}"#);
    let policy = base64::engine::general_purpose::STANDARD.encode(statement).replace('+', "-").replace('=', "_");
    let jwt = [base64(r#"{"alg":"HS256","typ":"JWT"}"#.into()), base64(format!(r#"{{"exp":{end}}}"#)), "c2ln".into()];
    let query = |text: String| format!("https://h.example/k?{text}");
    vec![
        ("OBS, in milliseconds", query(format!("AccessKeyId=A&Expires={end}000&Signature=s"))),
        ("Google, V4", query(format!("X-Goog-Date={date}&X-Goog-Expires={life}&X-Goog-Signature=s"))),
        ("Google, V2", query(format!("GoogleAccessId=A&Expires={end}&Signature=s"))),
        ("Alibaba, V1", query(format!("OSSAccessKeyId=A&Expires={end}&Signature=s"))),
        ("Alibaba, V4", query(format!("x-oss-date={date}&x-oss-expires={life}&x-oss-signature=s"))),
        ("Azure", query(format!("sv=2022-11-02&se={rfc3339}&sr=b&sp=r&sig=s"))),
        ("Tencent", query(format!("q-sign-algorithm=sha1&q-sign-time={now}%3B{end}&q-signature=s"))),
        ("CloudFront, custom policy", query(format!("Policy={policy}&Signature=s&Key-Pair-Id=K"))),
        ("Akamai", query(format!("hdnts=exp={end}~acl=/*~hmac=ab"))),
        ("Qiniu", query(format!("e={end}&token=ak:sig"))),
        ("Huawei CDN", query(format!("auth_key={end}-0-0-0123456789abcdef0123456789abcdef"))),
        ("Discord", query(format!("ex={end:x}&is={now:x}&hm=ab"))),
        ("JWT", query(format!("token={}", jwt.join(".")))),
        ("relative", format!("/k?AccessKeyId=A&Expires={end}&Signature=s")),
        ("encoded names", query(format!("%45xpires=%3{}{}&Signature=s", &end.to_string()[..1], &end.to_string()[1..]))),
    ]
}

/// The endpoint's answer for the id `1`.
fn reply(link: &str, headers: &[(HeaderName, String)]) -> ScriptedReply {
    let mut all = HeaderMap::from_iter([(CONTENT_TYPE, "application/json".parse().unwrap())]);
    headers.iter().for_each(|(name, value)| {
        all.append(name.clone(), value.parse().unwrap());
    });
    let body = format!(r#"{{"accessory_urls":[{{"accessory_id":"1","accessory_url":"{link}"}}]}}"#);
    ScriptedReply::Whole(StatusCode::OK, all, body.into())
}

/// `Cache-Status` and `Cache-Control` of the second of two equal batches; the endpoint answers each call with `link`.
async fn second_answer(stack: &Stack, link: &str, headers: &[(HeaderName, String)]) -> (String, String) {
    (0..2).for_each(|_| stack.origin.script(reply(link, headers)));
    stack.client.batch("t", &["1"]).await;
    let second = stack.client.batch("t", &["1"]).await;
    (second.header("cache-status").to_owned(), second.header("cache-control").to_owned())
}

/// Remaining freshness of a hit, in seconds.
async fn max_age(stack: &Stack, link: &str, headers: &[(HeaderName, String)]) -> u64 {
    let (_, cache_control) = second_answer(stack, link, headers).await;
    cache_control.rsplit_once("max-age=").map_or(0, |(_, seconds)| seconds.parse().unwrap())
}

#[tokio::test]
async fn a_link_of_every_form_is_cached_until_near_its_expiry() {
    for (form, link) in links(55) {
        let stack = Stack::on(clock(), |_| {}, |_| {}).await;
        let (how, cache_control) = second_answer(&stack, &link, &[]).await;
        assert_eq!((how.as_str(), cache_control.as_str()), (PASSED_ON, "no-store"), "{form}: {link}");
        assert_eq!(stack.metric(r#"sidelink_uncacheable_total{reason="under_floor"}"#).await, 2.0, "{form}");
    }
    for (form, link) in links(120) {
        let stack = Stack::on(clock(), |_| {}, |config| config.freshness.refresh_ahead = false).await;
        let left = max_age(&stack, &link, &[]).await;
        assert!((50..=60).contains(&left), "{form} is fresh for {left} s: {link}");
    }
}

#[tokio::test]
async fn a_link_with_an_unreadable_expiry_is_not_cached_and_counted() {
    let (now, hash) = (unix_seconds(), "0123456789abcdef0123456789abcdef");
    for link in [
        "https://h/k?accessToken=x".to_owned(),
        "https://h/k?sign=x&t=1".into(),
        format!("https://h/{now}/{hash}/k"),
        format!("https://h/{hash}/{now:x}/k"),
        "https://h/k?e=soon&token=ak:sig".into(),
        format!("https://h/k?auth_key={}-0-0-{hash}", now - 5),
        format!("https://h/k?Expires={}&Signature=s", now + 11 * 366 * 24 * 3600),
        format!("https://h/k?Expires={}&Signature=s&X-Amz-Expires=900", now + 900),
    ] {
        let stack = Stack::on(clock(), |_| {}, |_| {}).await;
        assert_eq!(second_answer(&stack, &link, &[]).await.0, PASSED_ON, "{link}");
        assert_eq!(stack.metric(r#"sidelink_uncacheable_total{reason="unreadable_expiry"}"#).await, 2.0, "{link}");
    }
    for link in ["https://h/k?design=1&author=x&response-expires=5", "https://h/0123456789abcdef0123456789abcdef/k"] {
        let stack = Stack::on(clock(), |_| {}, |_| {}).await;
        assert_eq!(second_answer(&stack, link, &[]).await.0, HIT, "{link}");
    }
}

#[tokio::test]
async fn a_clock_that_is_behind_extends_no_life() {
    let now = unix_seconds();
    let v4 = format!("https://h/k?X-Amz-Date={}&X-Amz-Expires=90&X-Amz-Signature=s", basic_date(now));
    let v2 = format!("https://h/k?AccessKeyId=A&Expires={}&Signature=s", now + 90);
    for date in [0, now - 3600] {
        for link in [&v4, &v2] {
            let stack = Stack::on(clock(), |_| {}, |_| {}).await;
            let left = max_age(&stack, link, &[(DATE, http_date(date))]).await;
            assert!((20..=30).contains(&left), "{left} s, with a Date of {date}: {link}");
            let skew = stack.metric("sidelink_clock_skew_seconds").await;
            assert!((skew - (now - date) as f64).abs() < 5.0, "{skew}");
        }
    }
    // The local clock is behind as well; the link's signing date is the latest clock.
    let behind = Clock::simulated(i64::try_from(now - 3600).unwrap() * 1000);
    let stack = Stack::on(behind, |_| {}, |_| {}).await;
    let left = max_age(&stack, &v4, &[(DATE, http_date(now - 3600))]).await;
    assert!((20..=30).contains(&left), "{left} s");
}

#[tokio::test]
async fn expires_limits_freshness_without_max_age() {
    let now = unix_seconds();
    let link = format!("https://h/k?AccessKeyId=A&Expires={}&Signature=s", now + 900);
    let headers = |expires: String, cache_control: Option<&str>| {
        let mut headers = vec![(DATE, http_date(now)), (EXPIRES, expires)];
        headers.extend(cache_control.map(|value| (CACHE_CONTROL, value.to_owned())));
        headers
    };
    for expires in ["0", "-1", "tomorrow", "Thu, 01 Jan 1970 00:00:00 GMT", &http_date(now), &http_date(now - 60)] {
        let stack = Stack::on(clock(), |_| {}, |_| {}).await;
        let (how, _) = second_answer(&stack, &link, &headers(expires.to_owned(), None)).await;
        assert_eq!(how, PASSED_ON, "{expires}");
    }
    for (headers, expected) in [
        (headers(http_date(now + 30), None), 25..=30),
        (headers(http_date(now + 3000), None), 590..=600),
        (headers("0".into(), Some("max-age=40")), 35..=40),
        (headers(http_date(now + 300), Some("max-age=40")), 35..=40),
    ] {
        let stack = Stack::on(clock(), |_| {}, |_| {}).await;
        let left = max_age(&stack, &link, &headers).await;
        assert!(expected.contains(&left), "{left} s: {headers:?}");
    }
    let stack = Stack::on(clock(), |_| {}, |config| config.freshness.honour_no_store = false).await;
    let boilerplate = headers("0".into(), Some("no-cache, no-store, must-revalidate"));
    assert_eq!(second_answer(&stack, &link, &boilerplate).await.0, HIT);
}

#[tokio::test]
async fn local_settings_bound_a_peers_absences_and_unsigned_links() {
    let mut shared = Shared::at(Vec::new(), vec![Secret::new(vec![b'x'; 32])]);
    shared.timeout = Duration::from_millis(5);
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let clock = clock();
    let sidecar = |absent: u64, unsigned: u64| {
        let mut config = Config::for_endpoint(Endpoint::parse("http://endpoint").unwrap());
        config.freshness.absent = Duration::from_secs(absent);
        config.freshness.unsigned = Duration::from_secs(unsigned);
        Trial::new(&shared, &config, metrics.clone(), clock.clone())
    };
    let (peer, none, some) = (sidecar(3600, 600), sidecar(0, 0), sidecar(20, 20));
    let journal = peer.begin().unwrap();
    for sidecar in [&peer, &none, &some] {
        assert!(sidecar.read(journal.as_bytes()));
    }
    let now = clock.now();
    for text in [None, Some("{}")] {
        // An unsigned link has no expiry of its own either.
        let entry = Entry::new(text, Deadlines::absent(now, Duration::from_secs(500)));
        let brought = TierUpdate { entries: vec![("1".into(), entry)], ..TierUpdate::default() };
        let written = peer.write(&peer.scope("t", None), &peer.stamp().unwrap(), &brought);
        let (_, value) = written.first().unwrap();
        let read = |sidecar: &Trial| sidecar.link(&sidecar.scope("t", None), "1", value);
        assert!(read(&none).is_none(), "{text:?}: a local setting of 0 s");
        let left = read(&some).unwrap().deadlines().fresh_left(now).unwrap();
        assert!((15_000..=20_000).contains(&left), "{text:?}: {left} ms");
    }
}
