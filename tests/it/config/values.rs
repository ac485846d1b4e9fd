//! A value within its bounds is accepted, and any other is refused; so are values that do not fit together.

use sidelink::config::{AccessLines, Config, Endpoint};

use super::{errors, errors_of};

#[test]
fn a_value_out_of_bounds_is_refused_and_the_bound_is_accepted() {
    for (table, key, good, bad) in [
        ("upstream", "deadline", "\"1ms\"", "\"999us\""),
        ("upstream", "deadline", "\"10m\"", "\"10m 1ns\""),
        ("upstream", "connect_timeout", "\"1m\"", "\"61s\""),
        ("upstream", "ids_per_call", "1000", "1001"),
        ("upstream", "uri_bytes", "\"64KiB\"", "65537"),
        ("upstream", "uri_bytes", "1024", "\"1KB\""),
        ("upstream", "calls", "1", "0"),
        ("upstream", "calls", "100_000", "99999999999999999999"),
        ("upstream", "answer_bytes", "\"256MiB\"", "\"99999999999EiB\""),
        ("upstream.retry", "attempts", "0", "-1"),
        ("upstream.retry", "budget", "1", "nan"),
        ("upstream.retry", "budget", "0.0", "-0.1"),
        ("upstream.breaker", "ratio", "0.01", "0"),
        ("cache", "capacity", "\"1MiB\"", "1048575"),
        ("freshness", "min_remaining", "\"0s\"", "\"25h\""),
        ("freshness", "max", "\"24h\"", "\"99999999999999999999y\""),
        ("limits", "batch_ids", "0x2710", "10001"),
        ("limits", "header_bytes", "\"1MiB\"", "\"2MiB\""),
        ("limits", "drain", "\"1h\"", "\"1h 1s\""),
    ] {
        let text = |value: &str| match table {
            "upstream" => format!("[upstream]\nendpoint = \"http://h\"\n{key} = {value}"),
            _ => format!("[upstream]\nendpoint = \"http://h\"\n[{table}]\n{key} = {value}"),
        };
        assert!(Config::parse(&text(good)).is_ok(), "{key} = {good}");
        let errors = errors(&text(bad));
        assert_eq!(errors.len(), 1, "{key} = {bad}: {errors:?}");
        assert_eq!(errors[0].1, format!("{table}.{key}"));
    }
}

#[test]
fn limits_that_no_whole_batch_fits_are_refused() {
    for limits in ["in_flight = 100", "batch_ids = 10000\nin_flight = 19999"] {
        let text = format!("[upstream]\nendpoint = \"http://h\"\n[limits]\n{limits}\n");
        let errors = Config::parse(&text).expect_err(limits).to_string();
        assert!(errors.contains("limits.in_flight must be at least"), "{errors}");
    }
    assert!(Config::parse("[upstream]\nendpoint = \"http://h\"\n[limits]\nin_flight = 2000\n").is_ok());
}

#[test]
fn a_header_that_sidelink_handles_itself_is_no_scope_header() {
    for (name, reason) in [
        ("Authorization", "a credential"),
        ("x-auth-token", "a credential"),
        ("cookie", "a credential"),
        ("Transfer-Encoding", "about one connection"),
        ("host", "set by sidelink itself"),
        ("content-length", "set by sidelink itself"),
        ("x-sdk-date", "different in every request"),
        ("x tenant", "is not a header's name"),
    ] {
        let errors = errors_of(&format!("[callers]\nscope_headers = [\"x-tenant\", \"{name}\"]"));
        assert!(matches!(&errors[..], [(4, _, message)] if message.contains(reason)), "{name}: {errors:?}");
    }
    let twice = errors_of("[callers]\nscope_headers = [\"x-tenant\", \"X-Tenant\"]");
    assert_eq!(twice, [(4, "callers.scope_headers".into(), "names x-tenant twice".into())]);
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
        "http://h:+80",
        "http://:80",
        "http://.",
        "http://h..x",
        "http://[]",
        "http://[h]",
        "http://127.1",
        "http://256.0.0.1",
        "http://h$",
    ] {
        assert!(Endpoint::parse(text).is_err(), "{text}");
    }
}

/// `true` and `false` are what the key took before.
#[test]
fn access_lines_are_named_and_true_and_false_are_read_as_all_and_off() {
    for (written, expected) in [
        ("\"all\"", AccessLines::All),
        ("\"errors\"", AccessLines::Errors),
        ("\"off\"", AccessLines::Off),
        ("true", AccessLines::All),
        ("false", AccessLines::Off),
    ] {
        let text = format!("[upstream]\nendpoint = \"http://h\"\n[log]\naccess = {written}");
        assert_eq!(Config::parse(&text).unwrap().log.access, expected, "{written}");
    }
}
