//! The shipped file contains every key with the code's default, and the output of `check` parses to the same configuration.

use std::time::Duration;

use proptest::prelude::*;
use sidelink::config::batch::BatchApi;
use sidelink::config::jwks::KeySet;
use sidelink::config::{
    AccessLines, CallerKey, Config, Endpoint, IdentityConfig, ListenAddress, LogFormat, NodeAddress, Secret, Shared,
    StoredSecret, Tls, Trace, TraceHeader, Url,
};
use tracing::level_filters::LevelFilter;

use super::{SHIPPED, errors};

fn defaults() -> Config {
    Config::for_endpoint(Endpoint::parse("https://osm.cn-south-1.myhuaweicloud.cn").unwrap())
}

#[test]
fn the_shipped_file_parses_to_the_defaults() {
    assert_eq!(Config::parse(SHIPPED).unwrap(), defaults());
}

#[test]
fn the_shipped_file_names_every_key_and_each_has_a_comment() {
    let keys = |text: &str| -> Vec<String> {
        let key = |line: &str| line.trim_start_matches("# ").split_once(" = ").map(|(key, _)| key.to_owned());
        text.lines().filter_map(key).filter(|key| !key.contains(' ')).collect()
    };
    let mut config = defaults();
    config.listen.tls = Some(Tls {
        cert: "/etc/sidelink/tls.crt".into(),
        key: "/etc/sidelink/tls.key".into(),
        client_ca: Some("/etc/sidelink/client-ca.pem".into()),
    });
    config.admin.tls = config.listen.tls.clone();
    config.upstream.ca_file = Some("/etc/sidelink/ca.pem".into());
    config.upstream.client_cert = Some("/etc/sidelink/client.pem".into());
    config.upstream.client_key = Some("/etc/sidelink/client-key.pem".into());
    config.upstream.proxy = Some(Endpoint::parse("http://proxy.internal:3128").unwrap());
    let file = |path: &str| StoredSecret { secret: Secret::default(), source: path.into() };
    config.upstream.proxy_credentials_file = Some(file("/etc/sidelink/proxy-credentials"));
    config.runtime.threads = Some(2);
    config.admin.token_file = Some(file("/etc/sidelink/admin-token"));
    let node = NodeAddress::tcp("redis.internal", 6379);
    let mut shared = Shared::at(vec![node], Vec::new());
    shared.username = Some("sidelink".into());
    shared.password_file = Some(file("/etc/sidelink/redis-password"));
    shared.sentinel = Some("mymaster".into());
    shared.sentinel_username = Some("sidelink".into());
    shared.sentinel_password_file = Some(file("/etc/sidelink/sentinel-password"));
    shared.ca_file = Some("/etc/sidelink/redis-ca.pem".into());
    config.shared = Some(shared);
    let mut trace = Trace::at(Endpoint::parse("http://127.0.0.1:4318").unwrap());
    trace.ca_file = Some("/etc/sidelink/collector-ca.pem".into());
    let value_file = file("/etc/sidelink/collector-authorization");
    trace.headers = vec![TraceHeader { name: http::header::AUTHORIZATION, value_file }];
    config.trace = Some(trace);
    let mut key = CallerKey {
        access_key: "AKEXAMPLE0000000001".into(),
        secret_key_file: Some(file("/etc/sidelink/secret-key")),
        secret_key_env: None,
        user: Some("reports".into()),
    };
    let mut identity = IdentityConfig::blank();
    identity.introspect = Some(Url::parse("https://iam.internal/v3/auth/tokens").unwrap());
    identity.token_file = Some(file("/etc/sidelink/identity-token"));
    identity.client_file = Some(file("/etc/sidelink/identity-client"));
    identity.jwks_file = Some(StoredSecret { secret: KeySet::default(), source: "/etc/sidelink/jwks.json".into() });
    identity.jwks_url = Some(Url::parse("https://iam.internal/jwks").unwrap());
    identity.proxy = Some(Endpoint::parse("http://proxy.internal:3128").unwrap());
    identity.proxy_credentials_file = Some(file("/etc/sidelink/proxy-credentials"));
    identity.ca_file = Some("/etc/sidelink/iam-ca.pem".into());
    identity.client_cert = Some("/etc/sidelink/iam-client.pem".into());
    identity.client_key = Some("/etc/sidelink/iam-client-key.pem".into());
    config.callers.identity = Some(identity);
    config.callers.keys = vec![key.clone()];
    config.batch = vec![with_every_key()];
    let with_file = keys(&config.to_string());
    let name = "SIDELINK_SECRET_KEY".into();
    key.secret_key_file = None;
    key.secret_key_env = Some(StoredSecret { secret: Secret::default(), source: name });
    config.callers.keys = vec![key];
    let with_variable = keys(&config.to_string());
    // A secret key is in one place only; the shipped file shows both. A preset is printed as it is written out.
    let mut shipped = keys(SHIPPED);
    shipped.retain(|key| key != "preset");
    let but = |key: &str| shipped.iter().filter(|shipped| *shipped != key).cloned().collect::<Vec<_>>();
    assert_eq!(but("secret_key_env"), with_file);
    assert_eq!(but("secret_key_file"), with_variable);
    let lines: Vec<&str> = SHIPPED.lines().collect();
    for pair in lines.windows(2) {
        let is_key = pair[1].contains(" = ") && !pair[1].starts_with("# Whether");
        assert!(!is_key || pair[0].starts_with("# "), "no comment above {}", pair[1]);
    }
}

/// The example of a batch API in the shipped file, without the marks of a comment.
fn example() -> String {
    let begin = SHIPPED.find("# [[batch]]").unwrap();
    let end = begin + SHIPPED[begin..].find("\n[").unwrap();
    let is_toml =
        |line: &&str| line.starts_with("# [") || line.split_once(" = ").is_some_and(|(key, _)| !key[2..].contains(' '));
    SHIPPED[begin..end].lines().filter(is_toml).map(|line| format!("{}\n", &line[2..])).collect()
}

/// A batch API with every key, but the preset.
fn with_every_key() -> BatchApi {
    let text = example().replace("preset = \"git-lfs\"\n", "");
    let mut config = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{text}")).unwrap();
    config.batch.remove(0)
}

#[test]
fn the_example_of_a_batch_api_is_one_with_and_without_its_preset() {
    let text = format!("[upstream]\nendpoint = \"http://h\"\n{}", example());
    assert!(text.contains("preset = \"git-lfs\"\n"), "{text}");
    assert_eq!(&*Config::parse(&text).unwrap().batch[0].name, "lfs");
    assert_eq!(&*with_every_key().name, "lfs");
}

#[test]
fn only_the_endpoint_is_mandatory() {
    let config = Config::parse("[upstream]\nendpoint = \"https://osm.cn-south-1.myhuaweicloud.cn:443/\"").unwrap();
    assert_eq!(config, defaults());
    assert_eq!(errors(""), [(1, "upstream.endpoint".into(), "is missing; it has no default".into())]);
}

proptest! {
    #[test]
    fn what_check_prints_reads_back_as_the_same(
        endpoint in "https?://[a-z]{1,9}[.][a-z]{2}(:[1-9][0-9]{0,3})?",
        nanos in prop::collection::vec(1_000_000u64..60_000_000_000, 10),
        counts in prop::collection::vec(1usize..1000, 9),
        bytes in prop::collection::vec(64usize << 10..(16 << 20), 3),
        uri in 1usize << 10..(64 << 10),
        capacity in (1u64 << 20)..=(1 << 40),
        shares in (0.0f64..=1.0, 0.01f64..=1.0),
        port in 1u16..8080,
        flags: [bool; 4],
        level in prop::sample::select(vec![LevelFilter::ERROR, LevelFilter::WARN, LevelFilter::INFO, LevelFilter::DEBUG, LevelFilter::TRACE]),
    ) {
        let mut config = Config::for_endpoint(Endpoint::parse(&endpoint).unwrap());
        config.listen.address = vec![ListenAddress::Tcp(([127, 0, 0, 2], port).into()), ListenAddress::Tcp(([127, 0, 0, 3], port).into())];
        config.admin.address = ([127, 0, 0, 4], port).into();
        let durations = [
            &mut config.upstream.deadline,
            &mut config.upstream.connect_timeout,
            &mut config.upstream.idle_timeout,
            &mut config.upstream.breaker.open,
            &mut config.freshness.min_remaining,
            &mut config.freshness.absent,
            &mut config.freshness.stale_if_error,
            &mut config.limits.header_timeout,
            &mut config.limits.idle_timeout,
            &mut config.limits.drain,
        ];
        for (field, nanos) in durations.into_iter().zip(nanos) {
            *field = Duration::from_nanos(nanos);
        }
        config.freshness.max = Duration::from_secs(port.into());
        config.callers.revalidate = Duration::from_secs(port.into());
        let fields = [
            &mut config.upstream.ids_per_call,
            &mut config.upstream.calls_per_scope,
            &mut config.upstream.calls,
            &mut config.limits.connections,
            &mut config.limits.in_flight,
            &mut config.limits.waiters,
            &mut config.limits.batch_ids,
        ];
        for (field, count) in fields.into_iter().zip(&counts) {
            *field = *count;
        }
        config.limits.in_flight += 2 * config.limits.batch_ids;
        config.upstream.retry.attempts = counts[7] % 11;
        config.upstream.breaker.min_calls = u32::try_from(counts[8]).unwrap();
        (config.upstream.answer_bytes, config.limits.batch_body) = (bytes[0], bytes[1]);
        config.limits.header_bytes = bytes[2].min(1 << 20);
        config.upstream.uri_bytes = uri;
        config.cache.capacity = capacity;
        (config.upstream.retry.budget, config.upstream.breaker.ratio) = shares;
        config.callers.scope_headers = vec!["x-tenant".parse().unwrap()];
        [config.listen.reuse_port, config.callers.cache_control, config.freshness.refresh_ahead, config.freshness.honour_no_store] = flags;
        config.log.access = [AccessLines::All, AccessLines::Errors, AccessLines::Off][usize::from(flags[1]) + usize::from(flags[2])];
        config.log.level = level;
        config.log.format = if flags[0] { LogFormat::Text } else { LogFormat::Json };
        prop_assert_eq!(Config::parse(&config.to_string()).map_err(|errors| errors.to_string()), Ok(config));
    }
}
