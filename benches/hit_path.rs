//! The hit path and its parts: reading a batch, deriving keys, looking up, merging, and the whole handler. Looking up and
//! merging are the same whichever form a batch has.

#![allow(clippy::unwrap_used)]

mod support;

use std::hint::black_box;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use criterion::{BatchSize, BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use http::HeaderMap;
use prometheus::Registry;
use sidelink::api::BatchApi;
use sidelink::api::envelope::Envelope;
use sidelink::api::request::Batch;
use sidelink::auth::{CallerStates, Callers, Identity, Key, LastToken, Scope};
use sidelink::cache::freshness::Deadlines;
use sidelink::cache::purges::Purges;
use sidelink::cache::{Cache, Entry};
use sidelink::clock::Clock;
use sidelink::config::{CacheConfig, CallersConfig, Config, Endpoint, Secret, Shared};
use sidelink::shared::testing::Trial;
use sidelink::telemetry::metrics::Metrics;
use support::{Form, SIZES, Warm, body, ids, lfs, query, request};

fn api() -> BatchApi {
    BatchApi::preset("huawei-osm").unwrap()
}

fn reading(criterion: &mut Criterion) {
    let (api, lfs_api) = (api(), BatchApi::preset("git-lfs").unwrap());
    let mut group = criterion.benchmark_group("read");
    for size in SIZES {
        let (query, body) = (query(&ids(0, size)), body(&ids(0, size)));
        let lfs_body = lfs().batch(&ids(0, size)).1;
        group.throughput(Throughput::Elements(size as u64));
        group.bench_with_input(BenchmarkId::new("lfs", size), &lfs_body, |bencher, body| {
            bencher.iter(|| Batch::read(&lfs_api, None, &HeaderMap::new(), body.as_bytes()).is_ok());
        });
        group.bench_with_input(BenchmarkId::new("query", size), &query, |bencher, query| {
            bencher.iter(|| Batch::read(&api, Some(query), &HeaderMap::new(), b"").is_ok());
        });
        group.bench_with_input(BenchmarkId::new("body", size), &body, |bencher, body| {
            bencher.iter(|| Batch::read(&api, None, &HeaderMap::new(), body.as_bytes()).is_ok());
        });
    }
}

fn caller() -> (Identity, Scope) {
    let caller_states = Arc::new(CallerStates::new([7; 16]));
    let endpoint = Endpoint::parse("http://endpoint").unwrap();
    let (api, clock) = (Arc::new(api()), Clock::system());
    let callers = Callers::new(api, &CallersConfig::default(), Arc::default(), caller_states, &endpoint, clock.clone());
    let (head, ()) = http::Request::get("/").header("x-auth-token", "t").body(()).unwrap().into_parts();
    let credential = callers.credential(&head.headers).ok().unwrap();
    let requester = callers.identify(&credential, &LastToken::default(), &head, b"", clock.now()).ok().unwrap();
    let batch = Batch::read(callers.api(), Some("accessory_ids=1&group_id=g1"), &head.headers, b"").ok().unwrap();
    let scope = callers.scope(&requester, (&head.headers).into(), &head.uri).of_batch(&batch);
    (requester, scope)
}

fn keys(criterion: &mut Criterion) {
    let (api, (_, scope)) = (api(), caller());
    let mut group = criterion.benchmark_group("key");
    for size in SIZES {
        let (query, body) = (query(&ids(0, size)), body(&ids(0, size)));
        group.throughput(Throughput::Elements(size as u64));
        for (form, query, body) in [("query", Some(query.as_str()), ""), ("body", None, body.as_str())] {
            let batch = Batch::read(&api, query, &HeaderMap::new(), body.as_bytes()).ok().unwrap();
            group.bench_with_input(BenchmarkId::new(form, size), &batch.ids, |bencher, ids| {
                bencher.iter(|| {
                    let keys = scope.keys();
                    for id in ids {
                        black_box(keys.of(id));
                    }
                });
            });
        }
    }
}

fn looking_up(criterion: &mut Criterion) {
    let (_, scope) = caller();
    let config = Config::for_endpoint(Endpoint::parse("http://h").unwrap());
    let metrics = Metrics::new(&Registry::new()).unwrap();
    let mut group = criterion.benchmark_group("look_up");
    for links in [2_000, 400_000] {
        let purges = Arc::new(Purges::new([7; 16], Duration::from_secs(60)));
        let cache = Cache::new(&CacheConfig { capacity: 1 << 30 }, purges, &metrics);
        let ids = ids(0, links);
        let keys: Vec<(&str, Key)> = ids.iter().map(|id| (id.as_str(), scope.key(id))).collect();
        let deadlines = Deadlines::absent(Clock::system().now(), config.freshness.max);
        for (_, key) in &keys {
            cache.insert(*key, Entry::new(Some(&"x".repeat(447)), deadlines));
        }
        for size in SIZES {
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::new(links.to_string(), size), |bencher| {
                let mut first = 0;
                bencher.iter(|| {
                    first = (first + 7919) % (links - size);
                    let marks = cache.purges().of("huawei-osm", None);
                    let some = keys.get(first..first + size).unwrap_or_default();
                    let view = cache.open(some.iter().map(|(_, key)| *key));
                    view.look_up(some, &marks).iter().flatten().count()
                });
            });
        }
    }
}

fn merging(criterion: &mut Criterion) {
    let envelope = Envelope::of(&api()).unwrap();
    let mut group = criterion.benchmark_group("merge");
    for size in SIZES {
        let texts = vec!["x".repeat(447); size];
        group.throughput(Throughput::Elements(size as u64));
        group.bench_with_input(BenchmarkId::from_parameter(size), &texts, |bencher, texts| {
            bencher.iter(|| -> Bytes { envelope.merge(texts.iter().map(String::as_bytes)) });
        });
    }
}

fn handler(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("handler");
    for (name, form) in [("query", Form::Query), ("body", Form::Body), ("lfs", Form::Lfs)] {
        let warm = Warm::of(form, 2_000);
        for size in SIZES {
            group.throughput(Throughput::Elements(size as u64));
            group.bench_function(BenchmarkId::new(name, size), |bencher| {
                bencher.iter_batched(
                    || request(form, &ids(0, size)),
                    |request| warm.runtime.block_on(warm.hit(request)),
                    BatchSize::SmallInput,
                );
            });
        }
    }
}

/// The revocations that a sidecar reads and applies at once, between two hits, among as many callers as it knows.
fn revocations(criterion: &mut Criterion) {
    const AT_ONCE: usize = 256;
    let mut group = criterion.benchmark_group("revocations");
    for count in [1_000, 40_000] {
        let endpoint = Endpoint::parse("http://endpoint").unwrap();
        let config = Config::for_endpoint(endpoint.clone());
        let shared = Shared::at(Vec::new(), vec![Secret::new(vec![b'x'; 32])]);
        let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
        let sidecar = || Trial::new(&shared, &config, Arc::clone(&metrics), Clock::system());
        let reader = sidecar();
        let states = Arc::clone(reader.caller_states());
        let (api, clock) = (Arc::new(api()), Clock::system());
        let callers = Callers::new(api, &CallersConfig::default(), Arc::default(), states, &endpoint, clock.clone());
        for token in 0..count {
            let token = token.to_string();
            let (head, ()) = http::Request::get("/").header("x-auth-token", &token).body(()).unwrap().into_parts();
            let credential = callers.credential(&head.headers).ok().unwrap();
            let identity = callers.identify(&credential, &LastToken::default(), &head, b"", clock.now()).ok().unwrap();
            reader.scope_of(&identity, &token);
        }
        // Another one each time: a journal that was lost is not adopted again.
        let journal = || {
            let writer = sidecar();
            let mut text = writer.begin().unwrap();
            assert!(writer.read(text.as_bytes()));
            (0..AT_ONCE).for_each(|token| writer.revoke(&writer.scope(&token.to_string(), None)));
            text.push_str(&writer.tell().unwrap());
            text
        };
        group.throughput(Throughput::Elements(AT_ONCE as u64));
        group.bench_function(BenchmarkId::new("callers", count), |bencher| {
            bencher.iter_batched(journal, |text| assert!(reader.read(text.as_bytes())), BatchSize::SmallInput);
        });
    }
}

criterion_group! {
    name = benches;
    config = Criterion::default().warm_up_time(Duration::from_millis(500)).measurement_time(Duration::from_secs(2));
    targets = reading, keys, looking_up, merging, handler, revocations
}
criterion_main!(benches);
