//! Answers of identity providers, JSON Web Tokens, and sets of keys.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use http::{HeaderValue, Response};
use prometheus::Registry;
use sidelink::auth::TokenStatus;
use sidelink::clock::Clock;
use sidelink::config::jwks::{KeyMaterial, KeySet};
use sidelink::config::{IdentityConfig, Secret, StoredSecret, Style, Url};
use sidelink::identity::IdentityProvider;
use sidelink::telemetry::metrics::Metrics;

const TOKEN: &[u8] = b"token";
/// The secret with which the tokens of the corpus are signed.
const KEYS: &str = r#"{"keys":[{"kty":"oct","k":"BwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBwcHBw"}]}"#;

/// One identity provider per kind. No request is sent.
struct Askers {
    introspection: [IdentityProvider; 4],
    tokens: IdentityProvider,
}

fn askers() -> &'static Askers {
    static ASKERS: OnceLock<Askers> = OnceLock::new();
    ASKERS.get_or_init(|| {
        let identities = |config: &IdentityConfig| {
            let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
            IdentityProvider::new(config, Clock::simulated(super::EPOCH), metrics).unwrap()
        };
        let introspection = |style, fields: &[&str]| {
            let mut config = IdentityConfig::blank();
            config.introspect = Some(Url::parse("http://127.0.0.1:1/x").unwrap());
            config.style = style;
            config.token_file = Some(StoredSecret { secret: Secret::new(b"own".to_vec()), source: "file".into() });
            config.identity = fields.iter().map(|field| field.parse().unwrap()).collect();
            identities(&config)
        };
        let mut config = IdentityConfig::blank();
        config.claims = ["iss", "sub", "scope"].map(str::to_owned).into();
        config.jwks_file =
            Some(StoredSecret { secret: KeySet::parse(KEYS.as_bytes()).unwrap(), source: "file".into() });
        Askers {
            introspection: [
                introspection(Style::Keystone, &[]),
                introspection(Style::OAuth2, &[]),
                introspection(Style::Keystone, &["/token/user/id", "/token/roles"]),
                introspection(Style::OAuth2, &["/sub", "/scope", "/x/0"]),
            ],
            tokens: identities(&config),
        }
    })
}

/// Spaces around what is between a JSON text's strings change nothing of what it says.
fn spaced(text: &[u8]) -> Vec<u8> {
    let (mut spaced, mut in_string, mut is_escaped) = (Vec::new(), false, false);
    for byte in text {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            _ => {}
        }
        let is_structure = !in_string && b"{}[]:,".contains(byte);
        spaced.extend(is_structure.then_some(b' '));
        spaced.push(*byte);
        spaced.extend(is_structure.then_some(b'\n'));
    }
    spaced
}

/// No bytes are a panic; what is said of a user does not depend on how the text is laid out; only a token that a key verifies is
/// anybody's. The first byte says what the others are.
pub fn identity(data: &[u8]) {
    let Some((kind, data)) = data.split_first() else { return };
    match kind {
        b'0'..=b'3' => {
            let asker = &askers().introspection[usize::from(kind - b'0')];
            let read = |status: u16, body: &[u8]| {
                let mut response = Response::new(Bytes::copy_from_slice(body));
                *response.status_mut() = status.try_into().unwrap();
                asker.read(&response, TOKEN)
            };
            let word = read(200, data);
            assert_eq!(read(200, &spaced(data)), word);
            for status in [204, 302, 400, 401, 403, 404, 500] {
                assert!(!matches!(read(status, data), TokenStatus::User { .. }));
            }
            let mut other = Response::new(Bytes::copy_from_slice(data));
            other.headers_mut().insert("x-subject-token", HeaderValue::from_static("other"));
            if kind % 2 == 0 {
                assert!(matches!(asker.read(&other, TOKEN), TokenStatus::NoUser(_)));
            }
        }
        b'j' => {
            let ask = |token: &[u8]| {
                let ask = std::pin::pin!(askers().tokens.look_up(token, true));
                let mut context = std::task::Context::from_waker(std::task::Waker::noop());
                match ask.poll(&mut context) {
                    std::task::Poll::Ready(word) => word,
                    std::task::Poll::Pending => panic!("nobody is asked"),
                }
            };
            if matches!(ask(data), TokenStatus::User { .. }) {
                // With any byte changed, it does not verify.
                for at in 0..data.len() {
                    let mut forged = data.to_vec();
                    forged[at] ^= 1;
                    assert!(matches!(ask(&forged), TokenStatus::NoUser(_)));
                }
            }
        }
        _ => {
            let Ok(keys) = KeySet::parse(data) else { return };
            let public = keys.public();
            assert!(public.0.iter().all(|key| !matches!(key.material, KeyMaterial::Secret(_))));
        }
    }
}
