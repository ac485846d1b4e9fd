//! A configuration is accepted whole or refused with every error at once, each with line, key and remedy; the shipped file
//! contains the code's defaults.

use std::time::Duration;

use proptest::prelude::*;
use sidelink::config::{
    CallerKey, Config, Endpoint, ListenAddress, LogFormat, NodeAddress, Secret, Shared, StoredSecret, Tls, Trace,
    TraceHeader,
};
use tracing::level_filters::LevelFilter;

const SHIPPED: &str = include_str!("../../config/sidelink.toml");

fn defaults() -> Config {
    Config::for_endpoint(Endpoint::parse("https://osm.cn-south-1.myhuaweicloud.cn").unwrap())
}

/// (line, key, message) of each error.
fn errors(text: &str) -> Vec<(usize, String, String)> {
    let errors = Config::parse(text).expect_err(text).errors;
    errors.into_iter().map(|error| (error.line, error.key, error.message)).collect()
}

/// The errors of a file with an endpoint in line 2 and `more` from line 3 on.
fn errors_of(rest: &str) -> Vec<(usize, String, String)> {
    errors(&format!("[upstream]\nendpoint = \"http://h\"\n{rest}"))
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
    config.upstream.ca_file = Some("/etc/sidelink/ca.pem".into());
    config.upstream.client_cert = Some("/etc/sidelink/client.pem".into());
    config.upstream.client_key = Some("/etc/sidelink/client-key.pem".into());
    config.upstream.proxy = Some(Endpoint::parse("http://proxy.internal:3128").unwrap());
    let file = |path: &str| StoredSecret { secret: Secret::default(), source: path.into() };
    config.upstream.proxy_credentials_file = Some(file("/etc/sidelink/proxy-credentials"));
    config.admin.token_file = Some(file("/etc/sidelink/admin-token"));
    let node = NodeAddress { host: "redis.internal".into(), port: 6379 };
    let mut shared = Shared::at(vec![node], Vec::new());
    shared.username = Some("sidelink".into());
    shared.password_file = Some(file("/etc/sidelink/redis-password"));
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
    };
    config.callers.keys = vec![key.clone()];
    let with_file = keys(&config.to_string());
    let name = "SIDELINK_SECRET_KEY".into();
    key.secret_key_file = None;
    key.secret_key_env = Some(StoredSecret { secret: Secret::default(), source: name });
    config.callers.keys = vec![key];
    let with_variable = keys(&config.to_string());
    // A secret key is in one place only; the shipped file shows both.
    let shipped = keys(SHIPPED);
    let but = |key: &str| shipped.iter().filter(|shipped| *shipped != key).cloned().collect::<Vec<_>>();
    assert_eq!(but("secret_key_env"), with_file);
    assert_eq!(but("secret_key_file"), with_variable);
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
            "must be a duration such as \"10s\", is an integer; write \"10s\"",
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
        ("[upstream]\nendpoint = \"http://h\"\n[cache]\nmax = \"1m\"", 4, "cache.max", "belongs in [freshness]"),
        ("[upstream]\nendpoint = \"http://127.0.0.1:8080\"", 2, "upstream.endpoint", "own listener"),
        ("[upstream]\nendpoint = \"http://h\"\nca_file = \"/no/such/file\"", 3, "upstream.ca_file", "cannot be read"),
        (
            "[upstream]\nendpoint = \"http://h\"\n[admin]\naddress = \"127.0.0.1:8080\"",
            4,
            "admin.address",
            "clashes with 127.0.0.1:8080",
        ),
        ("upstream = 3", 1, "upstream", "must be a table, is an integer"),
        (
            "[upstream]\nendpoint = \"http://h\"\n[upstream.retry]\nbudget = 1.5",
            4,
            "upstream.retry.budget",
            "must be between 0 and 1, is 1.5",
        ),
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
fn an_error_is_one_line_with_file_line_and_key() {
    let text = "[upstream]\nendpoint = \"http://h\"\n[upstream.retry]\nbudget =  1.5\n\"a\\n\\u001b\" = 1\n";
    let errors = Config::parse(text).expect_err(text);
    let printed = errors.to_string();
    let lines: Vec<&str> = printed.lines().collect();
    assert_eq!(lines[0], "configuration:4: upstream.retry.budget: must be between 0 and 1, is 1.5");
    assert_eq!(errors.errors[0].column, 11);
    assert!(lines[1].starts_with("configuration:5: upstream.retry.a\\n\\u{1b}: unknown key"), "{printed}");
    assert_eq!(lines.len(), 2);

    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    let printed = Config::load(file.path(), None).expect_err(text).to_string();
    assert!(printed.starts_with(&format!("{}:4: upstream.retry.budget: ", file.path().display())), "{printed}");
}

#[test]
fn an_unknown_key_gets_a_suggestion() {
    for (rest, message) in [
        ("[freshness]\nmin_remaning = \"1m\"", "unknown key; did you mean \"min_remaining\"?"),
        ("[cache]\nmin_remaining = \"1m\"", "unknown key; it belongs in [freshness]"),
        ("[cache]\nmin_remaning = \"1m\"", "unknown key; did you mean \"min_remaining\" in [freshness]?"),
        ("[cache]\nidle_timeout = \"1m\"", "unknown key; it belongs in [upstream] or [limits]"),
        ("[cache.limits]\nbatch_ids = 1", "unknown table; [limits] is a table of its own"),
        ("[retry]\nattempts = 1", "unknown table; it belongs in [upstream]"),
        ("[upstream.braker]\nratio = 1", "unknown table; did you mean \"breaker\"?"),
        ("[log]\nqqq = 1", "unknown key; known here: level, format, access"),
    ] {
        let errors = errors_of(rest);
        assert_eq!(errors.len(), 1, "{rest}: {errors:?}");
        assert_eq!(errors[0].2, message, "{rest}");
    }
}

#[test]
fn one_fault_is_one_error() {
    for text in [
        "[upstream]\nendpoint = 7",
        "[upstream]\nendpoint = http://h",
        "[upstream]\nendpoint = \n",
        "[upstream\nendpoint = \"http://h\"\ncalls = 1",
        "[upstream]\nendpint = \"http://h\"",
        "[upstrem]\nendpoint = \"http://h\"",
        "endpoint = \"http://h\"",
        "upstream = \"http://h\"",
        "[upstream]\nendpoint = \"http://h\"\nendpoint = \"http://h\"",
        "[upstream]\nendpoint = \"http://h\"\n[listen]\naddress = \"127.0.0.1:8081\"\n[admin]\naddress = \"x\"",
        "[upstream]\nendpoint = \"http://h\"\n[listen]\naddress = []",
    ] {
        let errors = errors(text);
        assert_eq!(errors.len(), 1, "{text}\ngave {errors:?}");
    }
}

#[test]
fn a_syntax_error_hides_no_other_error() {
    let errors = errors_of("calls = 0\n[cache]\ncapacity = 256MiB\n[limits]\ndrain = \"2h\"\n[lgo]\nlevel = \"x\"\n");
    let places: Vec<(usize, &str)> = errors.iter().map(|(line, key, _)| (*line, key.as_str())).collect();
    assert_eq!(places, [(3, "upstream.calls"), (5, ""), (7, "limits.drain"), (8, "lgo")]);
}

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
fn the_endpoint_is_not_sidelink_itself() {
    let of = |endpoint: &str, listener: &str| {
        let text = format!("[upstream]\nendpoint = \"{endpoint}\"\n[listen]\naddress = \"{listener}\"");
        Config::parse(&text).map(drop).map_err(|errors| errors.to_string())
    };
    for (endpoint, listener) in [
        ("http://127.0.0.1:9000", "127.0.0.1:9000"),
        ("http://localhost:9000", "127.0.0.1:9000"),
        ("http://LOCALHOST.:9000", "[::1]:9000"),
        ("http://127.0.0.1:9000", "0.0.0.0:9000"),
        ("http://0.0.0.0:9000", "127.0.0.1:9000"),
        ("http://[::ffff:127.0.0.1]:9000", "127.0.0.1:9000"),
        ("http://[::1]:9000", "[::]:9000"),
        ("http://10.0.0.1", "10.0.0.1:80"),
        ("https://10.0.0.1", "10.0.0.1:443"),
        ("http://localhost:8081", "127.0.0.1:9000"),
        ("http://localhost:8081", "unix:/run/sidelink.sock"),
        ("http://[::]:9000", "[::1]:9000"),
        ("http://127.0.0.1:9000", "[::]:9000"),
    ] {
        let error = of(endpoint, listener).expect_err(endpoint);
        assert!(error.starts_with("configuration:2: upstream.endpoint: is this sidelink's own"), "{error}");
    }
    for (endpoint, listener) in [
        ("http://127.0.0.1:9000", "127.0.0.1:9001"),
        ("http://127.0.0.1:9000", "127.0.0.2:9000"),
        ("http://10.0.0.1:9000", "127.0.0.1:9000"),
        // A documentation address, which is not this machine's.
        ("http://192.0.2.1:9000", "0.0.0.0:9000"),
        ("http://127.0.0.1:9000", "unix:/run/9000"),
    ] {
        assert_eq!(of(endpoint, listener), Ok(()), "{endpoint} behind {listener}");
    }
}

#[test]
fn the_endpoint_is_not_sidelink_under_this_machines_name() {
    let name = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap();
    let name = name.trim();
    if std::net::ToSocketAddrs::to_socket_addrs(&(name, 9000)).is_err() {
        eprintln!("SKIPPED: this machine does not know its own name");
        return;
    }
    let text = format!("[upstream]\nendpoint = \"http://{name}:9000\"\n[listen]\naddress = \"0.0.0.0:9000\"");
    let error = Config::parse(&text).expect_err(name).to_string();
    assert!(error.contains("upstream.endpoint: is this sidelink's own"), "{error}");
}

#[test]
fn listeners_are_read_key_by_key() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(at("crt"), made.cert.pem()).unwrap();
    std::fs::write(at("key"), made.signing_key.serialize_pem()).unwrap();
    std::fs::write(at("other"), rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
    std::fs::write(at("empty"), "").unwrap();
    let tls = |cert: &str, key: &str| format!("[listen.tls]\ncert = \"{}\"\nkey = \"{}\"", at(cert), at(key));
    let with_ca = format!("{}\nclient_ca = \"{}\"", tls("crt", "key"), at("empty"));
    let good =
        format!("[listen]\naddress = [\"unix:/run/s\", \"[::1]:0\"]\nunix_mode = \"0666\"\n{}", tls("crt", "key"));
    let config = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{good}")).unwrap();
    assert_eq!((config.listen.unix_mode, config.listen.address[0].to_string().as_str()), (0o666, "unix:/run/s"));
    assert!(config.warnings[0].to_string().contains("listen.tls.key: everyone on this machine may read"));
    assert_eq!(Config::parse(&config.to_string()).unwrap().listen, config.listen);
    for (rest, line, key, message) in [
        ("[listen]\naddress = \"unix:run/s\"".to_owned(), 4, "listen.address", "absolute path"),
        (format!("[listen]\naddress = \"unix:/{}\"", "x".repeat(100)), 4, "listen.address", "96 bytes at most"),
        ("[listen]\naddress = [\"unix:/s\", \"unix:/s\"]".to_owned(), 4, "listen.address", "clashes with unix:/s"),
        ("[listen]\nunix_mode = 660".to_owned(), 4, "listen.unix_mode", "must be an octal mode"),
        ("[listen]\nunix_mode = \"0668\"".to_owned(), 4, "listen.unix_mode", "must be an octal mode"),
        ("[listen]\nunix_mode = \"1777\"".to_owned(), 4, "listen.unix_mode", "must be an octal mode"),
        ("[listen.tls]\ncert = \"/c\"".to_owned(), 3, "listen.tls.key", "is missing"),
        (tls("none", "key"), 4, "listen.tls.cert", "cannot be read"),
        (tls("empty", "key"), 4, "listen.tls.cert", "holds no certificate"),
        (tls("crt", "crt"), 5, "listen.tls.key", "holds no private key"),
        (tls("crt", "other"), 5, "listen.tls.key", "does not go with the certificate"),
        (with_ca, 6, "listen.tls.client_ca", "holds no certificate"),
    ] {
        let errors = Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{rest}")).expect_err(&rest).errors;
        assert_eq!(errors.len(), 1, "{rest}: {errors:?}");
        assert_eq!((errors[0].line, errors[0].key.as_str()), (line, key), "{errors:?}");
        assert!(errors[0].message.contains(message), "{errors:?}");
    }
}

#[test]
fn listeners_do_not_clash() {
    for (rest, line, key) in [
        ("[listen]\naddress = [\n\"127.0.0.1:1\",\n\"127.0.0.1:1\"]", 6, "listen.address"),
        ("[listen]\naddress = [\"0.0.0.0:1\",\n\"127.0.0.1:1\"]", 5, "listen.address"),
        ("[listen]\naddress = \"127.0.0.1:8081\"", 4, "listen.address"),
        ("[admin]\naddress = \"0.0.0.0:8080\"", 4, "admin.address"),
    ] {
        let errors = errors_of(rest);
        assert!(matches!(&errors[..], [(at, name, _)] if *at == line && name == key), "{rest}: {errors:?}");
    }
    let free_ports = "[listen]\naddress = [\"127.0.0.1:0\", \"127.0.0.1:0\"]\n[admin]\naddress = \"127.0.0.1:0\"";
    assert!(Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n{free_ports}")).is_ok());
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
        ("X-Language", "always part of the scope"),
        ("x tenant", "is not a header's name"),
    ] {
        let errors = errors_of(&format!("[callers]\nscope_headers = [\"x-tenant\", \"{name}\"]"));
        assert!(matches!(&errors[..], [(4, _, message)] if message.contains(reason)), "{name}: {errors:?}");
    }
    let twice = errors_of("[callers]\nscope_headers = [\"x-tenant\", \"X-Tenant\"]");
    assert_eq!(twice, [(4, "callers.scope_headers".into(), "names x-tenant twice".into())]);
}

#[test]
fn a_file_that_cannot_be_read_is_named_with_the_reason() {
    let directory = tempfile::tempdir().unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let path = directory.path().join(name);
        std::fs::write(&path, bytes).unwrap();
        path
    };
    for (path, reason) in [
        (directory.path().join("missing.toml"), "cannot be read: "),
        (directory.path().to_owned(), "cannot be read: "),
        (write("latin.toml", b"[upstream]\n# \xe9t\xe9\n"), "is not UTF-8 text: see line 2"),
        (write("long.toml", &vec![b'#'; (1 << 20) + 1]), "is longer than 1 MiB"),
    ] {
        let printed = Config::load(&path, None).expect_err(reason).to_string();
        assert!(printed.starts_with(&format!("{}: {reason}", path.display())), "{printed}");
        assert_eq!(printed.lines().count(), 1);
    }
}

#[test]
fn an_error_repeats_no_password() {
    let errors = errors("[upstream]\nendpoint = \"https://user:hunter2@h\"");
    assert!(matches!(&errors[..], [(2, _, message)] if !message.contains("hunter2")), "{errors:?}");
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

/// Any text: no panic, and errors in order, each on an existing line.
fn errors_are_in_order_and_in_the_text(text: &str) {
    let Err(errors) = Config::parse(text) else { return };
    assert!(!errors.errors.is_empty());
    assert_eq!(errors.to_string().lines().count(), errors.errors.len());
    assert!(errors.errors.is_sorted_by_key(|error| (error.line, error.column)));
    let lines = 1 + text.matches('\n').count();
    assert!(errors.errors.iter().all(|error| (1..=lines).contains(&error.line) && error.column > 0), "{errors}");
}

/// The nearest place in the shipped file, at or before this one, at which it can be cut.
fn before(at: usize) -> usize {
    (0..=at).rev().find(|at| SHIPPED.is_char_boundary(*at)).unwrap()
}

proptest! {
    #[test]
    fn no_text_panics(text: String) {
        errors_are_in_order_and_in_the_text(&text);
    }

    #[test]
    fn no_text_that_looks_like_toml_panics(text in "(\\[[a-z]{1,9}\\]\n|[a-z_]{1,9} = (\"[^\"\n]{0,9}\"|[0-9]{1,25}|true|\\[\"x\"\\])\n|\\PC{0,9}\n){0,9}") {
        errors_are_in_order_and_in_the_text(&text);
    }

    #[test]
    fn no_damage_to_the_shipped_file_panics(at in 0..SHIPPED.len(), gone in 0usize..40, junk in "[\\[\\]\"'=.\n#a-z0-9é{}-]{0,6}") {
        // A place within a character is that before it.
        let at = before(at);
        let end = before((at + gone).min(SHIPPED.len()));
        errors_are_in_order_and_in_the_text(&format!("{}{junk}{}", &SHIPPED[..at], &SHIPPED[end..]));
    }

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
        [config.log.access, config.callers.cache_control, config.freshness.refresh_ahead, config.freshness.honour_no_store] = flags;
        config.log.level = level;
        config.log.format = if flags[0] { LogFormat::Text } else { LogFormat::Json };
        prop_assert_eq!(Config::parse(&config.to_string()).map_err(|errors| errors.to_string()), Ok(config));
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

/// The result of a file with one key, whose table begins in line 3.
fn with_key(table: &str) -> Result<Config, Vec<(usize, String, String)>> {
    let text = format!("[upstream]\nendpoint = \"http://h\"\n[[callers.keys]]\n{table}");
    let errors = |error: sidelink::config::ConfigError| (error.line, error.key, error.message);
    Config::parse(&text).map_err(|found| found.errors.into_iter().map(errors).collect())
}

fn secret_file(text: &str, mode: u32) -> tempfile::NamedTempFile {
    use std::os::unix::fs::PermissionsExt;
    let file = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(file.path(), text).unwrap();
    std::fs::set_permissions(file.path(), std::fs::Permissions::from_mode(mode)).unwrap();
    file
}

#[test]
fn keys_are_read_with_the_file_and_shown_without_their_secrets() {
    let file = secret_file("MARKED-secret\n", 0o600);
    let path = file.path().display();
    let config = with_key(&format!("access_key = \"AK1\"\nsecret_key_file = \"{path}\"")).unwrap();
    assert_eq!(config.callers.keys[0].pair().secret_key.expose(), b"MARKED-secret");
    assert_eq!(config.warnings, []);
    let shown = config.to_string();
    assert!(shown.contains("AK1") && !shown.contains("MARKED"), "{shown}");
    assert!(!format!("{config:?}").contains("MARKED"));
    assert_eq!(Config::parse(&shown).unwrap(), config, "it reads back as the same");
}

#[test]
fn a_secret_file_that_everyone_may_read_is_a_warning() {
    let file = secret_file("s", 0o644);
    let config = with_key(&format!("access_key = \"AK1\"\nsecret_key_file = \"{}\"", file.path().display())).unwrap();
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert_eq!(warnings.len(), 1);
    assert!(
        warnings[0].starts_with("line 5: callers.keys.secret_key_file: everyone on this machine may read"),
        "{warnings:?}"
    );
}

#[test]
fn the_admin_token_is_read_with_the_file_and_not_shown() {
    let read = |file: &tempfile::NamedTempFile| {
        let path = file.path().display();
        Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n[admin]\ntoken_file = \"{path}\""))
    };
    let config = read(&secret_file("MARKED-token-of-an-operator\n", 0o600)).unwrap();
    assert_eq!(config.admin.token_file.as_ref().unwrap().secret.expose(), b"MARKED-token-of-an-operator");
    assert_eq!(config.warnings, []);
    assert!(config.to_string().contains("token_file") && !config.to_string().contains("MARKED"));
    assert!(!format!("{config:?}").contains("MARKED"));

    let config = read(&secret_file("short", 0o604)).unwrap();
    let warnings: Vec<String> = config.warnings.iter().map(ToString::to_string).collect();
    assert!(warnings[0].starts_with("line 4: admin.token_file: everyone on this machine may read"), "{warnings:?}");
    assert!(warnings[1].starts_with("line 4: admin.token_file: a token of fewer than 16"), "{warnings:?}");
    for (text, said) in [("", "is empty"), ("two words", "must hold one secret")] {
        let errors = read(&secret_file(text, 0o600)).unwrap_err().errors;
        assert_eq!((errors[0].line, &*errors[0].key), (4, "admin.token_file"));
        assert!(errors[0].message.contains(said), "{}", errors[0].message);
    }
}

#[test]
fn a_secret_may_come_from_an_environment_variable() {
    // A variable that every test process has.
    let config = with_key("access_key = \"AK1\"\nsecret_key_env = \"CARGO_PKG_NAME\"").unwrap();
    assert_eq!(config.callers.keys[0].pair().secret_key.expose(), b"sidelink");
}

#[test]
fn broken_keys_name_line_and_remedy() {
    let (good, empty, long) =
        (secret_file("s", 0o600), secret_file("\n", 0o600), secret_file(&"x".repeat(5000), 0o600));
    let two = secret_file("a b", 0o600);
    let file = |file: &tempfile::NamedTempFile| format!("secret_key_file = \"{}\"", file.path().display());
    let ak = "access_key = \"AK1\"\n";
    for (table, line, key, message) in [
        (String::new(), 3, "callers.keys", "has no secret key"),
        (file(&good), 3, "callers.keys.access_key", "is missing"),
        (ak.to_owned(), 3, "callers.keys", "has no secret key: set secret_key_file or secret_key_env"),
        (format!("{ak}{}\nsecret_key_env = \"HOME\"", file(&good)), 3, "callers.keys", "has both"),
        (
            format!("{ak}secret_key_file = \"/nowhere/at/all\""),
            5,
            "callers.keys.secret_key_file",
            "cannot be read: No such file",
        ),
        (format!("{ak}secret_key_file = \"/\""), 5, "callers.keys.secret_key_file", "is not a file"),
        (format!("{ak}{}", file(&empty)), 5, "callers.keys.secret_key_file", "is empty"),
        (format!("{ak}{}", file(&long)), 5, "callers.keys.secret_key_file", "is longer than 4 KiB"),
        (format!("{ak}{}", file(&two)), 5, "callers.keys.secret_key_file", "one line of visible ASCII"),
        (
            format!("{ak}secret_key_env = \"NOT_SET_ANYWHERE\""),
            5,
            "callers.keys.secret_key_env",
            "the environment has no variable",
        ),
        (
            format!("{ak}secret_key = \"in the open\""),
            5,
            "callers.keys.secret_key",
            "unknown key; did you mean \"secret_key_",
        ),
        (format!("access_key = \"A,B\"\n{}", file(&good)), 4, "callers.keys.access_key", "must be an access key"),
        (format!("{ak}{0}\n[[callers.keys]]\n{ak}{0}", file(&good)), 7, "callers.keys.access_key", "of a table above"),
    ] {
        let errors = with_key(&table).expect_err(&table);
        let found = errors.iter().any(|(l, k, m)| *l == line && k == key && m.contains(message));
        assert!(found, "{table}\n{errors:?}");
        assert!(!errors.iter().any(|(_, _, message)| message.contains("in the open")), "{errors:?}");
    }
    let single = errors_of("[callers.keys]\naccess_key = \"AK1\"");
    assert!(single[0].2.contains("write [[callers.keys]] above each"), "{single:?}");
}

/// A file with `[shared]` and these further lines, with the secrets in `secrets`.
fn with_shared(secrets: &tempfile::NamedTempFile, lines: &str) -> Result<Config, sidelink::config::ConfigErrors> {
    let path = secrets.path().display();
    Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n[shared]\nsecret_file = \"{path}\"\n{lines}\n"))
}

const FLEET: &str = "0123456789abcdef0123456789abcdef";

#[test]
fn a_shared_tier_reads_back_and_shows_no_secret() {
    let secrets = secret_file(&format!("{FLEET}\n{}\r\n\n", FLEET.to_uppercase()), 0o600);
    let password = secret_file("MARKED", 0o600);
    let lines = format!(
        "url = [\"rediss://a\", \"rediss://[::1]:7000/\"]\ncluster = true\nusername = \"u\"\npassword_file = \"{}\"\n\
         prefix = \"p:\"\ntimeout = \"20ms\"\nlease_wait = \"0s\"",
        password.path().display()
    );
    let config = with_shared(&secrets, &lines).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let shared = config.shared.clone().unwrap();
    let urls: Vec<String> = shared.url.iter().map(ToString::to_string).collect();
    assert_eq!(urls, ["rediss://a:6379/0", "rediss://[::1]:7000/0"]);
    let secrets = &shared.secret_file.secret;
    assert_eq!((secrets.len(), secrets[1].expose()), (2, FLEET.to_uppercase().as_bytes()));
    let shown = format!("{config}{config:?}");
    for secret in [FLEET, &FLEET.to_uppercase(), "MARKED"] {
        assert!(!shown.contains(secret), "{shown}");
    }
    assert_eq!(Config::parse(&config.to_string()).unwrap(), config);

    let config = with_shared(&secret_file(FLEET, 0o604), "url = \"redis://h/3\"").unwrap();
    assert!(config.warnings[0].to_string().contains("shared.secret_file: everyone on this machine may read"));
    let shared = config.shared.unwrap();
    assert_eq!((shared.database(), shared.timeout, shared.lease_wait.as_millis()), (3, Duration::from_millis(5), 500));
}

#[test]
fn errors_of_a_shared_tier_have_their_place() {
    let good = secret_file(FLEET, 0o600);
    for (lines, message) in [
        ("", "shared.url: is missing"),
        ("url = \"http://h\"", "must begin with redis:// or rediss://"),
        ("url = \"redis://:p@h\"", "must not name a user or a password"),
        ("url = \"redis://h/x\"", "the number of a database"),
        ("url = \"redis://h:0\"", "does not name a host and a port"),
        ("url = []", "names no node"),
        ("url = [\"redis://a\", \"redis://b\"]", "only a Cluster has several"),
        ("url = [\"redis://a\", \"rediss://b\"]\ncluster = true", "the scheme and the database"),
        ("url = [\"redis://a\", \"redis://a\"]\ncluster = true", "twice"),
        ("url = \"redis://a/1\"\ncluster = true", "a Cluster has number 0 alone"),
        ("url = \"redis://a\"\nusername = \"u\"", "needs a password_file"),
        ("url = \"redis://a\"\npassword_file = \"/nowhere\"", "cannot be read"),
        ("url = \"redis://a\"\nca_file = \"/etc/hosts\"", "needs a url with rediss://"),
        ("url = \"redis://a\"\nprefix = \"{a}\"", "without braces"),
        ("url = \"redis://a\"\ntimeout = \"0s\"", "must be between 1ms and 10s"),
        ("url = \"redis://a\"\nleasewait = \"1s\"", "did you mean"),
    ] {
        let error = with_shared(&good, lines).unwrap_err().to_string();
        assert!(error.contains(message), "{lines}: {error}");
    }
    for (secrets, message) in [
        ("short", "less than 32 characters: openssl rand -base64 32 makes one"),
        ("\n\n", "is empty"),
        (&format!("{FLEET}\n{FLEET}"), "the same secret twice"),
        (&format!("{FLEET}\n{FLEET}1\n{FLEET}2"), "holds 3 lines"),
        (&format!("{FLEET} x"), "visible ASCII"),
    ] {
        let error = with_shared(&secret_file(secrets, 0o600), "url = \"redis://h\"").unwrap_err().to_string();
        assert!(error.contains(message), "{error}");
        assert!(!error.contains(secrets.trim()) || secrets.trim().is_empty());
    }
}

/// A file with `[trace]` in line 3 and these further lines.
fn with_trace(lines: &str) -> Result<Config, sidelink::config::ConfigErrors> {
    Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n[trace]\n{lines}\n"))
}

#[test]
fn the_trace_table_reads_back_and_shows_no_secret() {
    let value = secret_file("Bearer MARKED-1\n", 0o600);
    let lines = format!(
        "endpoint = \"http://collector.internal:4318\"\nsample = 0.25\nservice_name = \"a b\"\ntimeout = \"1s\"\n\
         [[trace.headers]]\nname = \"Authorization\"\nvalue_file = \"{0}\"\n\
         [[trace.headers]]\nname = \"x-tenant\"\nvalue_file = \"{0}\"",
        value.path().display()
    );
    let config = with_trace(&lines).unwrap();
    assert!(config.warnings.is_empty(), "{:?}", config.warnings);
    let trace = config.trace.clone().unwrap();
    assert_eq!(trace.endpoint.to_string(), "http://collector.internal:4318/v1/traces");
    assert_eq!((trace.sample, trace.service_name.as_str(), trace.timeout), (0.25, "a b", Duration::from_secs(1)));
    assert_eq!(trace.headers[0].value(), "Bearer MARKED-1");
    assert_eq!(config.dependencies(), [value.path(); 2]);
    let shown = format!("{config}{config:?}{:?}", trace.headers[0].value());
    assert!(!shown.contains("MARKED"), "{shown}");
    assert_eq!(Config::parse(&config.to_string()).unwrap(), config);

    let trace = with_trace("endpoint = \"https://[::1]/a/path\"").unwrap().trace.unwrap();
    assert_eq!(trace.endpoint.to_string(), "https://[::1]/a/path");
    assert_eq!((trace.sample, trace.service_name.as_str(), trace.timeout), (1.0, "sidelink", Duration::from_secs(5)));
    let open = secret_file("x", 0o604);
    let lines = "endpoint = \"http://h\"\n[[trace.headers]]\nname = \"x\"\nvalue_file = ";
    let config = with_trace(&format!("{lines}\"{}\"", open.path().display())).unwrap();
    assert!(config.warnings[0].to_string().contains("trace.headers.value_file: everyone on this machine may read"));
}

#[test]
fn errors_of_the_trace_table_have_their_place() {
    let header = |lines: &str| format!("endpoint = \"http://h\"\n[[trace.headers]]\n{lines}");
    let good = secret_file("x", 0o600);
    let good = good.path().display();
    for (lines, message) in [
        ("sample = 1", "trace.endpoint: is missing"),
        ("endpoint = \"h:4318\"", "trace.endpoint: must begin with http"),
        ("endpoint = \"grpc://h:4317\"", "must begin with http"),
        ("endpoint = \"http://u:p@h\"", "must not carry a user or password"),
        ("endpoint = \"http://h/?key=marked\"", "must not have a query or fragment"),
        ("endpoint = \"http://127.0.0.1:8080\"", "this sidelink's own listener"),
        ("endpoint = \"http://h\"\nsample = 1.5", "trace.sample: must be between 0 and 1, is 1.5"),
        ("endpoint = \"http://h\"\nsample = \"all\"", "trace.sample: must be a number"),
        ("endpoint = \"http://h\"\nservice_name = \"\"", "must be a service's name"),
        ("endpoint = \"http://h\"\ntimeout = \"2m\"", "must be between 1ms and 1m"),
        ("endpoint = \"http://h\"\nca_file = \"/etc/hosts\"", "needs an endpoint with https://"),
        ("endpoint = \"https://h\"\nca_file = \"/nowhere\"", "cannot be read"),
        ("endpoint = \"http://h\"\nsampel = 1", "did you mean \"sample\"?"),
        (&header("name = \"a b\"\nvalue_file = \"/nowhere\""), "\"a b\" is not a header's name"),
        (&header("name = \"a\"\nvalue_file = \"/nowhere\""), "trace.headers.value_file: cannot be read"),
        (&header("name = \"a\""), "trace.headers.value_file: is missing"),
        (&header(&format!("name = \"host\"\nvalue_file = \"{good}\"")), "host is set by sidelink itself"),
        (
            &header(&format!(
                "name = \"a\"\nvalue_file = \"{good}\"\n[[trace.headers]]\nname = \"A\"\nvalue_file = \"{good}\""
            )),
            "names a twice",
        ),
        ("headers = \"x\"", "write [[trace.headers]] above each"),
    ] {
        let error = with_trace(lines).unwrap_err().to_string();
        assert!(error.contains(message), "{lines}: {error}");
        assert!(!error.contains("marked"), "{error}");
    }
}

#[test]
fn a_value_that_a_reload_cannot_read_is_not_reported_as_immutable_too() {
    let directory = tempfile::tempdir().unwrap();
    let at = |name: &str| directory.path().join(name).display().to_string();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
    std::fs::write(at("crt"), made.cert.pem()).unwrap();
    std::fs::write(at("key"), made.signing_key.serialize_pem()).unwrap();
    let text = format!(
        "[upstream]\nendpoint = \"http://h\"\n[listen]\naddress = \"[::1]:1\"\n[listen.tls]\ncert = \"{}\"\nkey = \"{}\"\n",
        at("crt"),
        at("key")
    );
    let running = Config::parse(&text).unwrap();
    let reload = |text: &str| {
        std::fs::write(at("sidelink.toml"), text).unwrap();
        let errors = Config::load(&directory.path().join("sidelink.toml"), Some(&running)).unwrap_err().errors;
        errors.into_iter().map(|error| format!("{}: {}", error.key, error.message)).collect::<Vec<_>>()
    };
    for (was, is, only) in [
        (at("crt"), at("nothing"), "listen.tls.cert: "),
        ("key = ".to_owned(), "# key = ".to_owned(), "listen.tls.key: is missing"),
        ("[::1]:1".to_owned(), "nowhere".to_owned(), "listen.address: \"nowhere\" is not an address"),
        ("address = ".to_owned(), "adress = ".to_owned(), "listen.adress: unknown key"),
        ("[listen.tls]".to_owned(), "[listen.tsl]".to_owned(), "listen.tsl: unknown table"),
        ("[::1]:1".to_owned(), "[::1]:2".to_owned(), "listen.address: cannot change at run time"),
    ] {
        let errors = reload(&text.replace(&was, &is));
        assert!(matches!(&errors[..], [one] if one.starts_with(only)), "{is}: {errors:?}");
    }
    let without = text.split("[listen.tls]").next().unwrap();
    assert_eq!(reload(without), ["listen.tls: cannot change at run time: restart"]);
}
