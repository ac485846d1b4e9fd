//! Every error of a file is reported at once, one line each, with line, key and remedy. One fault is one error, and no text panics.

use proptest::prelude::*;
use sidelink::config::Config;

use super::{SHIPPED, errors, errors_of};

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
}

#[test]
fn a_key_that_is_there_twice_is_named_with_both_lines() {
    let head = "[upstream]\nendpoint = \"http://h\"\n";
    for (text, line, message) in [
        (format!("{head}calls = 1\n# calls = 3\ncalls = 2\n"), 5, "calls is there twice, first in line 3"),
        (
            format!("{head}[cache]\ncapacity = 1\n[upstream]\ncalls = 2\n"),
            5,
            "upstream is there twice, first in line 1",
        ),
        (
            "upstream.calls = 1\nupstream.endpoint = \"http://h\"\nupstream.calls = 2\n".to_owned(),
            3,
            "calls is there twice",
        ),
    ] {
        let found = errors(&text);
        let duplicate = found.iter().find(|(_, _, found)| found.contains("twice"));
        let (at, _, told) = duplicate.unwrap_or_else(|| panic!("{found:?}"));
        assert!(*at == line && told.contains(message), "{text}: {found:?}");
    }
}

#[test]
fn an_address_that_is_none_comes_with_what_to_write() {
    for (written, advice) in [
        ("localhost:8080", "write \"127.0.0.1:8080\""),
        ("::1:8080", "write \"[::1]:8080\""),
        ("fe80::2:9000", "write \"[fe80::2]:9000\""),
        (":8080", "or \"0.0.0.0:8080\" for every address"),
        ("*:8080", "or \"0.0.0.0:8080\" for every address"),
        ("my-host:8080", "names are not resolved"),
        ("9000", "write \"127.0.0.1:9000\""),
    ] {
        for table in ["listen", "admin"] {
            let text = format!("[upstream]\nendpoint = \"http://h\"\n[{table}]\naddress = \"{written}\"");
            let found = errors(&text);
            assert!(found.len() == 1 && found[0].2.contains(advice), "{written}: {found:?}");
        }
    }
    for (table, port) in [("listen", 8080), ("admin", 8081)] {
        for (written, shown) in [("10.0.0.7", "10.0.0.7"), ("::1", "[::1]"), ("fe80::1", "[fe80::1]"), ("::", "[::]")] {
            let text = format!("[upstream]\nendpoint = \"http://h\"\n[{table}]\naddress = \"{written}\"");
            let found = errors(&text);
            assert!(found[0].2.contains(&format!("write \"{shown}:{port}\"")), "{written}: {found:?}");
        }
    }
    let plain = errors("[upstream]\nendpoint = \"http://h\"\n[listen]\naddress = \"somewhere\"");
    assert!(plain[0].2.ends_with("or \"unix:/run/sidelink.sock\""), "{plain:?}");
}
