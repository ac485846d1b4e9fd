//! `[shared]` reads back as the same without its secrets, and each of its errors has its place.

use std::time::Duration;

use sidelink::config::{Config, ConfigErrors};

use super::secret_file;

const FLEET: &str = "0123456789abcdef0123456789abcdef";

/// A file with `[shared]` and these further lines, with the secrets in `secrets`.
fn with_shared(secrets: &tempfile::NamedTempFile, lines: &str) -> Result<Config, ConfigErrors> {
    let path = secrets.path().display();
    Config::parse(&format!("[upstream]\nendpoint = \"http://h\"\n[shared]\nsecret_file = \"{path}\"\n{lines}\n"))
}

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

    let sentinel_password = secret_file("MARKED", 0o600);
    let sentinels = format!(
        "url = [\"redis://a:26379/2\", \"redis://b:26379/2\"]\nsentinel = \"mymaster\"\nsentinel_username = \"s\"\n\
         sentinel_password_file = \"{}\"",
        sentinel_password.path().display()
    );
    let good = secret_file(FLEET, 0o600);
    for lines in [&*sentinels, "url = \"unix:///run/redis.sock\"", "url = \"unix:///run/redis.sock?db=3\""] {
        let config = with_shared(&good, lines).unwrap();
        let shown = config.to_string();
        assert!(!shown.contains("MARKED"), "{shown}");
        assert_eq!(Config::parse(&shown).unwrap(), config);
    }

    let sentinels = with_shared(&good, "url = [\"redis://a\", \"redis://b:1\"]\nsentinel = \"m\"").unwrap();
    let urls: Vec<String> = sentinels.shared.unwrap().url.iter().map(ToString::to_string).collect();
    assert_eq!(urls, ["redis://a:26379/0", "redis://b:1/0"]);

    let config = with_shared(&secret_file(FLEET, 0o604), "url = \"redis://h/3\"").unwrap();
    assert!(config.warnings[0].to_string().contains("shared.secret_file: everyone on this machine may read"));
    let shared = config.shared.unwrap();
    assert_eq!((shared.database(), shared.timeout, shared.lease_wait.as_secs()), (3, Duration::from_millis(25), 5));
}

#[test]
fn errors_of_a_shared_tier_have_their_place() {
    let good = secret_file(FLEET, 0o600);
    for (lines, message) in [
        ("", "shared.url: is missing"),
        ("url = \"http://h\"", "must begin with redis://, rediss:// or unix://"),
        ("url = \"redis://:p@h\"", "must not name a user or a password"),
        ("url = \"redis://h/x\"", "the number of a database"),
        ("url = \"redis://h:0\"", "does not name a host and a port"),
        ("url = []", "names no node"),
        (
            "url = [\"redis://a\", \"redis://b\"]",
            "only a Cluster and Sentinels are several; set cluster = true or sentinel",
        ),
        ("url = \"unix://redis.sock\"", "must be unix:// with an absolute path"),
        ("url = \"unix:///redis.sock?db=x\"", "must be unix:// with an absolute path"),
        ("url = \"unix:///redis.sock\"\ncluster = true", "must not name a Unix socket"),
        ("url = \"unix:///redis.sock\"\nsentinel = \"m\"", "must not name a Unix socket"),
        ("url = \"redis://a\"\ncluster = true\nsentinel = \"m\"", "shared.sentinel: does not go with cluster = true"),
        ("url = \"redis://a\"\nsentinel = \"\"", "a master's name"),
        ("url = \"redis://a\"\nsentinel = \"m\"\nsentinel_username = \"u\"", "needs a sentinel_password_file"),
        ("url = [\"redis://a\", \"rediss://b\"]\ncluster = true", "the scheme and the database"),
        ("url = [\"redis://a\", \"redis://a\"]\ncluster = true", "names a:6379 twice"),
        ("url = [\"redis://a\", \"redis://a:26379\"]\nsentinel = \"m\"", "names a:26379 twice"),
        ("url = \"unix:/run/redis.sock\"", "is no URL; write \"unix:///run/redis.sock\""),
        ("url = \"/run/redis.sock\"", "is no URL; write \"unix:///run/redis.sock\""),
        ("ulr = \"redis://a\"", "shared.ulr: unknown key; did you mean \"url\"?"),
        ("url = \"redis://a\"\ntimeout = 25", "is an integer; write \"25ms\""),
        ("url = \"redis://a\"\ntimeout = 99999", "is an integer; must be between 1ms and 10s"),
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
    // Where others write a password.
    for url in [
        "unix:///run/redis.sock?db=0&pass=MARKED",
        "unix:/run/redis.sock?pass=MARKED",
        "unix://u:MARKED@/run/redis.sock",
        "redis://h:6379/0?password=MARKED",
        "redis://u:x/MARKED@h:6379",
        "redis://h/0#MARKED",
        "u:MARKED@h:6379",
        "http://u:MARKED@h:6379",
    ] {
        let error = with_shared(&good, &format!("url = \"{url}\"")).unwrap_err().to_string();
        assert!(error.contains("shared.url: ") && !error.contains("MARKED"), "{error}");
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
