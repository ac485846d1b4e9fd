//! A configuration is taken whole or refused with every error at once, each with its line, its key and what to do; the
//! shipped file is the code's defaults.

use std::path::Path;
use std::time::Duration;

use proptest::prelude::*;
use sidelink::config::{Config, Endpoint};

const SHIPPED: &str = include_str!("../../config/sidelink.toml");

fn defaults() -> Config {
    Config::for_endpoint(Endpoint::parse("https://osm.cn-south-1.myhuaweicloud.cn").unwrap())
}

/// (line, key, message) of each error.
fn errors(text: &str) -> Vec<(usize, String, String)> {
    let errors = Config::parse(text).expect_err(text).errors;
    errors.into_iter().map(|error| (error.line, error.key, error.message)).collect()
}

#[test]
fn the_shipped_file_is_the_defaults() {
    assert_eq!(Config::parse(SHIPPED).unwrap(), defaults());
}

#[test]
fn the_shipped_file_names_every_key_and_each_has_a_comment() {
    let keys = |text: &str| -> Vec<String> {
        let key = |line: &str| line.trim_start_matches("# ").split_once(" = ").map(|(key, _)| key.to_owned());
        text.lines().filter_map(key).filter(|key| !key.contains(' ')).collect()
    };
    let mut config = defaults();
    config.upstream.ca_file = Some("/etc/sidelink/ca.pem".into());
    assert_eq!(keys(SHIPPED), keys(&config.to_string()));
    let lines: Vec<&str> = SHIPPED.lines().collect();
    for pair in lines.windows(2) {
        let is_key = pair[1].contains(" = ") && !pair[1].starts_with("# Whether");
        assert!(!is_key || pair[0].starts_with("# "), "no comment above {}", pair[1]);
    }
}

#[test]
fn only_the_endpoint_is_mandatory() {
    let config = Config::parse("[upstream]\nendpoint = \"https://osm.cn-south-1.myhuaweicloud.cn:443/\"").unwrap();
    assert_eq!(config, defaults());
    assert_eq!(errors(""), [(1, "upstream.endpoint".into(), "is missing; it has no default".into())]);
}

#[test]
fn ten_broken_files_name_line_key_and_remedy() {
    for (text, line, key, message) in [
        ("[upstream]\nendpoint = \"x\"\n", 2, "upstream.endpoint", "must begin with http"),
        ("[upstream]\nendpoint = \"http://h/path\"", 2, "upstream.endpoint", "without a path"),
        (
            "[upstream]\nendpoint = \"http://h\"\ndeadline = 10",
            3,
            "upstream.deadline",
            "must be a duration such as \"10s\", is an integer",
        ),
        ("[upstream]\nendpoint = \"http://h\"\ndeadlin = \"10s\"", 3, "upstream.deadlin", "did you mean \"deadline\"?"),
        (
            "[upstream]\nendpoint = \"http://h\"\n\n[freshness]\nmax = \"ten minutes\"",
            5,
            "freshness.max",
            "not a duration",
        ),
        ("[upstream]\nendpoint = \"http://h\"\n[cache]\ncapacity = \"1 MB?\"", 4, "cache.capacity", "not a size"),
        (
            "[upstream]\nendpoint = \"http://h\"\n[cache]\ncapacity = 10",
            4,
            "cache.capacity",
            "must be between 1MiB and",
        ),
        (
            "[upstream]\nendpoint = \"http://h\"\n[listen]\naddress = \"localhost\"",
            4,
            "listen.address",
            "is not an address",
        ),
        ("[upstream]\nendpoint = \"http://h\"\n[limit]\nbatch_ids = 1", 3, "limit", "did you mean \"limits\"?"),
        (
            "[upstream]\nendpoint = \"http://h\"\n[callers]\nscope_headers = [\n  \"x-ok\",\n  \"cookie\"]",
            6,
            "callers.scope_headers",
            "a credential",
        ),
        (
            "[upstream]\nendpoint = \"http://h\"\n[log]\nlevel = \"loud\"",
            4,
            "log.level",
            "must be one of error, warn, info",
        ),
        ("[upstream]\nendpoint = \"http://h\"\n[cache]\nmax = \"1m\"", 4, "cache.max", "belongs into [freshness]"),
        ("[upstream]\nendpoint = \"http://127.0.0.1:8080\"", 2, "upstream.endpoint", "own listener"),
        ("[upstream]\nendpoint = \"http://h\"\nca_file = \"/no/such/file\"", 3, "upstream.ca_file", "cannot be read"),
        (
            "[upstream]\nendpoint = \"http://h\"\n[admin]\naddress = \"127.0.0.1:8080\"",
            4,
            "admin.address",
            "is listen.address already",
        ),
        ("upstream = 3", 1, "upstream", "must be a table, is an integer"),
        (
            "[upstream]\nendpoint = \"http://h\"\ndeadline = \"99999999999y\"",
            3,
            "upstream.deadline",
            "must be between 1ms and 10m",
        ),
    ] {
        let errors = errors(text);
        let found = errors.iter().any(|(at, name, what)| *at == line && name == key && what.contains(message));
        assert!(found, "{text}\ngave {errors:?}");
    }
    let errors = errors("[upstream\nendpoint = \"http://h\"");
    assert!(errors.iter().any(|(line, _, message)| *line == 1 && message.starts_with("not TOML")), "{errors:?}");
}

#[test]
fn all_errors_of_a_file_are_reported_at_once_in_the_order_of_their_lines() {
    let text = "[upstream]\nendpoint = 7\ncalls = 0\n[freshness]\nmaxx = \"1m\"\nmin_remaining = false\n[log]\naccess = \"yes\"\n";
    let lines: Vec<(usize, String)> = errors(text).into_iter().map(|(line, key, _)| (line, key)).collect();
    let expected = [
        (2, "upstream.endpoint"),
        (3, "upstream.calls"),
        (5, "freshness.maxx"),
        (6, "freshness.min_remaining"),
        (8, "log.access"),
    ];
    assert_eq!(lines, expected.map(|(line, key)| (line, key.to_owned())));
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let errors = Config::load(Path::new("no/such/sidelink.toml")).expect_err("loaded").to_string();
    assert!(errors.starts_with("no/such/sidelink.toml: cannot be read"), "{errors}");
}

#[test]
fn endpoints_are_compared_in_one_spelling() {
    for (text, expected) in [
        ("https://H.example:443/", "https://h.example"),
        ("http://H.example:80", "http://h.example"),
        ("http://h:443", "http://h:443"),
        ("http://[::1]:9", "http://[::1]:9"),
    ] {
        assert_eq!(Endpoint::parse(text).unwrap().to_string(), expected);
    }
    for text in [
        "",
        "h",
        "ftp://h",
        "http://",
        "http://u:p@h",
        "http://h?x",
        "http://h#x",
        "http://h:0",
        "http://h:",
        "http://h:99999",
        "http://:80",
    ] {
        assert!(Endpoint::parse(text).is_err(), "{text}");
    }
}

proptest! {
    #[test]
    fn no_text_panics(text in "(\\[[a-z]{1,9}\\]\n|[a-z_]{1,9} = (\"[^\"\n]{0,9}\"|[0-9]{1,25}|true|\\[\"x\"\\])\n|\\PC{0,9}\n){0,9}") {
        let _ = Config::parse(&text).map_err(|errors| errors.to_string());
    }

    #[test]
    fn what_check_prints_reads_back_as_the_same(
        deadline in 1u64..600_000, capacity in (1u64 << 20)..(1 << 40), ids in 1usize..1000, port in 1u16.., access: bool,
    ) {
        let mut config = defaults();
        config.upstream.deadline = Duration::from_millis(deadline);
        config.cache.capacity = capacity;
        config.upstream.ids_per_call = ids;
        config.listen.address = vec![([127, 0, 0, 2], port).into(), ([127, 0, 0, 3], port).into()];
        config.callers.scope_headers = vec!["x-tenant".parse().unwrap()];
        config.log.access = access;
        prop_assert_eq!(Config::parse(&config.to_string()).map_err(|errors| errors.to_string()), Ok(config));
    }
}
