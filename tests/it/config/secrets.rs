//! Secrets are read with the configuration and never shown; a broken one is refused with line and remedy.

use sidelink::config::Config;

use super::{errors_of, secret_file};

/// The result of a file with one key, whose table begins in line 3.
fn with_key(table: &str) -> Result<Config, Vec<(usize, String, String)>> {
    let text = format!("[upstream]\nendpoint = \"http://h\"\n[[callers.keys]]\n{table}");
    let errors = |error: sidelink::config::ConfigError| (error.line, error.key, error.message);
    Config::parse(&text).map_err(|found| found.errors.into_iter().map(errors).collect())
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

/// A key that is pasted where the name of its variable belongs.
#[test]
fn a_secret_in_place_of_a_variables_name_is_refused_and_not_shown() {
    for pasted in ["8fK2mNpQrStUvWxYz0123456789abcdefghij", "ALLUPPERCASE0123456789", "with space", "8", "", "a=b"] {
        let errors = with_key(&format!("access_key = \"AK1\"\nsecret_key_env = \"{pasted}\"")).expect_err(pasted);
        assert_eq!(errors.len(), 1);
        let told = format!("{errors:?}");
        assert!(told.contains("callers.keys.secret_key_env"), "{told}");
        assert!(pasted.len() < 5 || !told.contains(&pasted[1..pasted.len() - 1]), "{told}");
    }
}

#[test]
fn a_key_for_the_secret_itself_is_answered_with_the_key_for_its_file() {
    let errors = with_key("access_key = \"AK1\"\nsecret_key = \"8fK2mNpQrStUvWxYz\"").expect_err("");
    let told: Vec<&str> = errors.iter().map(|(_, _, message)| message.as_str()).collect();
    assert!(told.iter().any(|told| told.contains("did you mean \"secret_key_file\"?")), "{told:?}");
    assert!(!format!("{errors:?}").contains("8fK2"), "{errors:?}");
}
