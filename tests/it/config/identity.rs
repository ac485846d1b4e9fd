//! `[callers.identity]` reads back as the same without its secrets, and each of its errors has its place.

use std::time::Duration;

use sidelink::config::jwks::{KeyMaterial, KeySet};
use sidelink::config::{Config, ConfigErrors, IdentitySource, Style};

use super::secret_file;

/// The public key of RFC 8037, appendix A.
const KEYS: &str =
    r#"{"keys":[{"kty":"OKP","crv":"Ed25519","kid":"a","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo"}]}"#;

/// A file with `[callers.identity]` in line 3 and these further lines.
fn with_identity(lines: &str) -> Result<Config, ConfigErrors> {
    Config::parse(&format!("[upstream]\nendpoint = \"https://h\"\n[callers.identity]\n{lines}\n"))
}

#[test]
fn the_identity_table_reads_back_and_shows_no_secret() {
    let (token, client) = (secret_file("MARKED-token\n", 0o600), secret_file("id:MARKED-secret\n", 0o600));
    let keystone = format!(
        "introspect = \"https://iam/v3/auth/tokens\"\ntoken_file = \"{}\"\nidentity = [\"/token/user/id\", \"/token/project\"]",
        token.path().display()
    );
    let oauth2 = format!(
        "introspect = \"http://localhost:8200/introspect\"\nstyle = \"oauth2\"\nclient_file = \"{}\"\ntimeout = \"2s\"\nrequests = 4",
        client.path().display()
    );
    for lines in [keystone, oauth2] {
        let config = with_identity(&lines).unwrap();
        assert!(config.warnings.is_empty(), "{:?}", config.warnings);
        assert_eq!(config.dependencies().len(), 1, "the file is watched");
        let shown = format!("{config}{config:?}");
        assert!(!shown.contains("MARKED"), "{shown}");
        assert_eq!(Config::parse(&config.to_string()).unwrap(), config);
    }

    let secret = r#"{"keys":[{"kty":"oct","k":"TUFSS0VELXNlY3JldA"},{"kty":"OKP","crv":"X25519","x":"AA"}]}"#;
    let (public, secret) = (secret_file(KEYS, 0o644), secret_file(secret, 0o644));
    let claims = |file: &tempfile::NamedTempFile| {
        let lines = format!("claims = [\"iss\", \"sub\"]\njwks_file = \"{}\"", file.path().display());
        let config = with_identity(&lines).unwrap();
        let again = Config::parse(&config.to_string()).unwrap();
        assert_eq!(again.callers, config.callers);
        config
    };
    let config = claims(&public);
    assert!(config.warnings.is_empty(), "public keys are no secret: {:?}", config.warnings);
    let identity = config.callers.identity.unwrap();
    assert!(matches!(identity.source(), Some(IdentitySource::Keys(_))));
    assert_eq!((identity.claims, identity.timeout), (vec!["iss".into(), "sub".into()], Duration::from_secs(1)));
    assert_eq!((identity.style, identity.requests, identity.unaccepted), (Style::Keystone, 16, 50));
    let config = claims(&secret);
    assert!(config.warnings[0].to_string().contains("everyone on this machine may read"), "{:?}", config.warnings);
    let keys = &config.callers.identity.as_ref().unwrap().jwks_file.as_ref().unwrap().secret;
    assert_eq!(keys.0.len(), 1, "a key that cannot verify is left out");
    assert!(!format!("{config:?}").contains(&format!("{:?}", b"MARKED-secret")));
}

#[test]
fn errors_of_the_identity_table_have_their_place() {
    let file = |text| secret_file(text, 0o600);
    let (token, keys, empty) = (file("secret"), file(KEYS), file("{\"keys\":[]}"));
    let path = |file: &tempfile::NamedTempFile| format!("\"{}\"", file.path().display());
    let (token, keys, empty) = (path(&token), path(&keys), path(&empty));
    let keystone = "introspect = \"https://iam/v3/auth/tokens\"";
    let oauth2 = "introspect = \"https://iam/introspect\"\nstyle = \"oauth2\"";
    for (lines, message) in [
        (String::new(), "3: callers.identity: needs introspect, the URL that says whose a token is, or claims"),
        (
            "claims = [\"sub\"]".into(),
            "4: callers.identity.claims: needs jwks_file or jwks_url, the keys that verify a token: an endpoint that answers anyone proves no signature",
        ),
        (
            format!("jwks_file = {keys}"),
            "4: callers.identity.jwks_file: needs introspect, the URL that says whose a token is, or claims",
        ),
        (
            format!("{keystone}\njwks_file = {keys}"),
            "5: callers.identity.jwks_file: needs claims, in place of introspect",
        ),
        (
            format!("{keystone}\nclaims = [\"sub\"]\njwks_file = {keys}"),
            "5: callers.identity.claims: does not go with introspect",
        ),
        (format!("claims = []\njwks_file = {keys}"), "5: callers.identity.jwks_file: needs introspect, the URL"),
        (
            format!("claims = [\"sub\"]\njwks_file = {keys}\njwks_url = \"https://h/k\""),
            "6: callers.identity.jwks_url: does not go with jwks_file",
        ),
        (
            format!("claims = [\"sub\", \"exp\"]\njwks_file = {keys}"),
            "4: callers.identity.claims: exp is another one for each token",
        ),
        (format!("claims = [\"sub\", \"sub\"]\njwks_file = {keys}"), "names sub twice"),
        (
            format!("claims = [\"sub\"]\njwks_file = {keys}\nstyle = \"oauth2\""),
            "6: callers.identity.style: needs introspect",
        ),
        (
            format!("claims = [\"sub\"]\njwks_file = {empty}"),
            "5: callers.identity.jwks_file: has no key that verifies signatures",
        ),
        (format!("claims = [\"sub\"]\njwks_file = {token}"), "is no set of keys (RFC 7517)"),
        (oauth2.into(), "5: callers.identity.style: \"oauth2\" needs client_file or token_file"),
        (
            format!("{oauth2}\nclient_file = {token}"),
            "6: callers.identity.client_file: must hold CLIENT_ID:CLIENT_SECRET",
        ),
        (
            format!("{keystone}\nclient_file = {token}"),
            "5: callers.identity.client_file: must hold CLIENT_ID:CLIENT_SECRET",
        ),
        (
            format!("{keystone}\nstyle = \"keystoen\""),
            "5: callers.identity.style: must be one of keystone, oauth2, is \"keystoen\"",
        ),
        (
            format!("{keystone}\nidentity = [\"token/user\"]"),
            "5: callers.identity.identity: \"token/user\" is no JSON Pointer",
        ),
        (format!("{keystone}\nidentity = [\"\"]"), "names the whole answer"),
        (format!("{keystone}\nidentity = [\"/a\", \"/a\"]"), "names /a twice"),
        (format!("{keystone}\nclames = 1"), "did you mean \"claims\"?"),
        ("introspect = \"https://iam/t?key=marked\"".into(), "must not have a query"),
        ("introspect = \"https://u:marked@iam/t\"".into(), "must not carry a user or password"),
        (
            "introspect = \"http://iam/t\"".into(),
            "4: callers.identity.introspect: must be https://, or http:// on this machine",
        ),
        (
            "claims = [\"sub\"]\njwks_url = \"http://iam/t\"".into(),
            "5: callers.identity.jwks_url: must be https://, or http:// on this machine",
        ),
        ("introspect = \"http://127.0.0.1:8080/t\"".into(), "is this sidelink's own listener"),
        ("introspect = \"http://localhost/t\"\nca_file = \"/nowhere\"".into(), "cannot be read"),
        (format!("{keystone}\nclient_cert = \"/nowhere\""), "needs callers.identity.client_key"),
        (format!("{keystone}\nproxy = \"https://proxy\""), "callers.identity.proxy: must begin with http://"),
        (format!("{keystone}\nproxy_credentials_file = {token}"), "must hold USER:PASSWORD"),
        (
            format!("claims = [\"aud\", \"iss\"]\njwks_file = {keys}"),
            "4: callers.identity.claims: names nothing that differs between users: everybody would be one user; add \"sub\"",
        ),
        (
            format!("{oauth2}\ntoken_file = {token}\nidentity = [\"/iss\"]"),
            "7: callers.identity.identity: names nothing that differs between users: everybody would be one user; add \"/sub\"",
        ),
        (format!("{keystone}\nrequests = 1"), "5: callers.identity.requests: must be"),
    ] {
        let error = with_identity(&lines).expect_err(&lines).to_string();
        assert!(error.contains(message), "{lines}: {error}");
        assert!(!error.contains("marked"), "{error}");
    }
}

#[test]
fn fields_that_name_no_user_are_warned_of_with_the_one_that_does() {
    let (keys, token) = (secret_file(KEYS, 0o600), secret_file("secret", 0o600));
    let claims = |list: &str| {
        (
            format!("claims = {list}\njwks_file = \"{}\"", keys.path().display()),
            "4: callers.identity.claims: ",
            "\"sub\"",
        )
    };
    let keystone = |list: &str| {
        let lines = format!("introspect = \"https://iam/v3/auth/tokens\"\nidentity = {list}");
        (lines, "5: callers.identity.identity: ", "\"/token/user/id\"")
    };
    let oauth2 = |list: &str| {
        let file = token.path().display();
        let lines =
            format!("introspect = \"https://iam/i\"\nstyle = \"oauth2\"\ntoken_file = \"{file}\"\nidentity = {list}");
        (lines, "7: callers.identity.identity: ", "\"/sub\"")
    };
    for ((lines, place, remedy), is_warned) in [
        (claims("[\"iss\", \"sub\"]"), false),
        (claims("[\"tid\", \"oid\"]"), false),
        (claims("[\"azp\", \"scope\"]"), true),
        (claims("[\"https://example.com/employee\"]"), true),
        (keystone("[\"/token/user\"]"), false),
        (keystone("[\"/token/user/id\", \"/token/roles\"]"), false),
        (keystone("[\"/token/user/domain/id\"]"), true),
        (keystone("[\"/token/project/id\", \"/token/roles\"]"), true),
        (oauth2("[\"/sub\"]"), false),
        (oauth2("[\"/ext/user_id\"]"), false),
        (oauth2("[\"/client_id\", \"/scope\"]"), true),
    ] {
        let warnings: Vec<String> =
            with_identity(&lines).expect(&lines).warnings.iter().map(ToString::to_string).collect();
        assert_eq!(!warnings.is_empty(), is_warned, "{lines}: {warnings:?}");
        assert!(warnings.iter().all(|text| text.contains(place) && text.contains(remedy)), "{warnings:?}");
    }
}

#[test]
fn an_identity_provider_may_be_in_clear_where_the_endpoint_is() {
    let text =
        "[upstream]\nendpoint = \"http://osm.internal\"\n[callers.identity]\nintrospect = \"http://iam.internal/t\"";
    assert!(Config::parse(text).is_ok());
    let here = text.replace("osm.internal", "127.0.0.1:1");
    assert!(Config::parse(&here).is_err(), "what is on this machine may use TLS from here on");
}

#[test]
fn a_set_of_keys_is_read_as_the_rfc_says() {
    let keys = KeySet::parse(KEYS.as_bytes()).unwrap();
    assert_eq!(keys.0[0].name.as_deref(), Some("a"));
    assert!(matches!(&keys.0[0].material, KeyMaterial::Ed25519(key) if key.len() == 32));
    let parse = |keys: &str| KeySet::parse(format!("{{\"keys\":[{keys}]}}").as_bytes());
    let refused = |key: &str| parse(key).is_ok_and(|keys| keys.0.is_empty());
    let ed25519 = r#""kty":"OKP","crv":"Ed25519","x":"11qYAYKxCrfVS_7TyWQHOg7hcvPapiMlrwIaaPcHURo""#;
    assert!(!refused(&format!("{{{ed25519},\"use\":\"sig\",\"key_ops\":[\"verify\"]}}")));
    for key in [
        format!("{{{ed25519},\"use\":\"enc\"}}"),
        format!("{{{ed25519},\"key_ops\":[\"sign\"]}}"),
        format!("{{{ed25519},\"kty\":\"OKP\"}}"),
        format!("{{{}}}", ed25519.replace("11qYAYKx", "11qY")),
        r#"{"kty":"EC","crv":"P-256","x":"AA","y":"AA"}"#.into(),
        r#"{"kty":"EC","crv":"P-521","x":"AA","y":"AA"}"#.into(),
        r#"{"kty":"RSA","n":"AA"}"#.into(),
        r#"{"kty":"RSA","n":"A+","e":"AQAB"}"#.into(),
        r#"{"kty":"oct","k":""}"#.into(),
        "1".into(),
    ] {
        assert!(refused(&key), "{key}");
    }
    let many = vec![format!("{{{ed25519}}}"); 65].join(",");
    assert!(parse(&many).is_err());
}
