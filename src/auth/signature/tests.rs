use http::Request;
use proptest::prelude::*;
use serde::Deserialize;

use super::*;
use crate::config::Secret;

/// A request signed by the official SDK.
#[derive(Deserialize)]
struct Vector {
    name: String,
    method: String,
    host: String,
    uri: String,
    headers: HashMap<String, String>,
    body: String,
    access_key: String,
    secret_key: String,
    authorization: String,
}

impl Vector {
    fn all() -> Vec<Self> {
        let vectors: Vec<Self> =
            serde_json::from_str(include_str!("../../../tests/data/sdk-hmac-sha256.json")).unwrap();
        assert_eq!(vectors.len(), 10);
        vectors
    }

    /// In the forms of the SDKs for Go, Java and Node.
    fn variants() -> Vec<Self> {
        let vectors: Vec<Self> = serde_json::from_str(include_str!("../../../tests/data/sdk-variants.json")).unwrap();
        assert_eq!(vectors.len(), 9);
        vectors
    }

    fn pair(&self) -> Arc<KeyPair> {
        pair(&self.access_key, &self.secret_key)
    }

    fn head(&self) -> Parts {
        let mut request = Request::builder().method(self.method.as_str()).uri(&self.uri);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        request.header(AUTHORIZATION, &self.authorization).body(()).unwrap().into_parts().0
    }

    fn payload(&self) -> String {
        let stated = self.headers.get("X-Sdk-Content-Sha256").cloned();
        stated.unwrap_or_else(|| hash(self.body.as_bytes()))
    }

    fn now(&self) -> u64 {
        read_basic_date(&self.headers["X-Sdk-Date"]).unwrap()
    }

    fn verify(&self, head: &Parts) -> Result<Signer, Fault> {
        verify(&Claim::read(&head.headers).ok_or(Fault::Malformed)?, &self.pair(), head, &self.payload(), self.now())
    }
}

fn pair(access_key: &str, secret_key: &str) -> Arc<KeyPair> {
    Arc::new(KeyPair { access_key: access_key.into(), secret_key: Secret::new(secret_key.into()), user: None })
}

#[test]
fn the_official_sdks_signatures_verify_and_are_made_byte_for_byte() {
    for vector in Vector::all() {
        let head = vector.head();
        let signer = vector.verify(&head).unwrap_or_else(|fault| panic!("{}: {fault:?}", vector.name));
        let mut headers = head.headers.clone();
        headers.remove(AUTHORIZATION);
        headers.remove(SDK_DATE);
        headers.remove(HOST);
        let target = head.uri.path_and_query().unwrap();
        signer.sign(&head.method, target, &mut headers, &vector.host, &vector.payload(), vector.now());
        assert_eq!(headers[AUTHORIZATION], vector.authorization, "{}", vector.name);
        assert_eq!(headers[SDK_DATE], vector.headers["X-Sdk-Date"]);
    }
}

#[test]
fn every_sdks_order_verifies_and_what_is_signed_again_verifies_strictly() {
    let mut by_code_point = 0;
    for vector in Vector::variants() {
        let mut head = vector.head();
        let signer = vector.verify(&head).unwrap_or_else(|fault| panic!("{}: {fault:?}", vector.name));
        let strictly = |head: &Parts| {
            let claim = Claim::read(&head.headers).unwrap();
            verify(&claim, &vector.pair(), head, &vector.payload(), vector.now()).is_ok_and(|signer| signer.is_strict)
        };
        by_code_point += u32::from(strictly(&head));
        let target = head.uri.path_and_query().unwrap().clone();
        signer.sign(&head.method, &target, &mut head.headers, &vector.host, &vector.payload(), vector.now());
        assert!(strictly(&head), "{}", vector.name);
    }
    assert_eq!(by_code_point, 2, "Java's and Node's with sorted ids");
}

#[test]
fn a_query_in_no_sdks_order_is_tried_in_each_order_once() {
    let orders = |query: &'static str| {
        let orders = ORDERS.map(|order| order.apply(pairs(Some(query))));
        let text = |pairs: &[Pair<'_>]| pairs.iter().map(|[_, value]| value.to_vec()).collect::<Vec<_>>();
        orders.map(|pairs| String::from_utf8(text(&pairs).join(&b' ')).unwrap())
    };
    assert_eq!(orders("b=2&a=z&a=y&a=%61"), ["a y z 2", "z y a 2", "a y z 2"]);
    assert_eq!(
        orders("a=%F0%9F%98%80&a=%EF%BC%81"),
        ["\u{ff01} \u{1f600}", "\u{1f600} \u{ff01}", "\u{1f600} \u{ff01}"]
    );
}

#[test]
fn changing_any_part_of_a_signed_request_is_noticed() {
    let vector = &Vector::all()[0];
    let changed = |change: &dyn Fn(&mut Parts)| {
        let mut head = vector.head();
        change(&mut head);
        vector.verify(&head).err()
    };
    let set = |name: &'static str, value: &str| {
        let value: HeaderValue = value.parse().unwrap();
        move |head: &mut Parts| {
            head.headers.insert(name, value.clone());
        }
    };
    let rewritten = |from: &str, to: &str| set("authorization", &vector.authorization.replace(from, to));
    assert_eq!(changed(&|_| {}), None);
    for (what, fault, expected) in [
        ("method", changed(&|head| head.method = Method::POST), Fault::Mismatch),
        ("path", changed(&|head| head.uri = "/other?accessory_ids=1".parse().unwrap()), Fault::Mismatch),
        ("query", changed(&|head| head.uri = vector.uri.replace("=2", "=3").parse().unwrap()), Fault::Mismatch),
        ("a header", changed(&set("x-language", "zh-cn")), Fault::Mismatch),
        ("host", changed(&set("host", "other")), Fault::Mismatch),
        ("no such header", changed(&|head| drop(head.headers.remove("x-language"))), Fault::Malformed),
        (
            "a header twice",
            changed(&|head| assert!(head.headers.append("x-language", HeaderValue::from_static("b")))),
            Fault::Malformed,
        ),
        ("date", changed(&set("x-sdk-date", "20261124T000001Z")), Fault::Mismatch),
        ("no date", changed(&|head| drop(head.headers.remove("x-sdk-date"))), Fault::Date),
        ("not a date", changed(&set("x-sdk-date", "today")), Fault::Date),
        ("an old date", changed(&set("x-sdk-date", "20261123T234459Z")), Fault::Expired),
        ("a date ahead", changed(&set("x-sdk-date", "20261124T001501Z")), Fault::Expired),
        ("signature", changed(&rewritten("9c71", "9c72")), Fault::Mismatch),
        ("a short signature", changed(&rewritten("9c71", "")), Fault::Malformed),
        ("no hex", changed(&rewritten("9c71", "xxxx")), Fault::Malformed),
        ("fewer signed headers", changed(&rewritten("x-language;", "")), Fault::Mismatch),
        ("host not signed", changed(&rewritten("host;", "")), Fault::Mismatch),
        ("upper-case names", changed(&rewritten("host;", "Host;")), Fault::Malformed),
        ("no signed headers", changed(&rewritten("SignedHeaders=", "Signed=")), Fault::Malformed),
        ("another scheme", changed(&rewritten("SDK-HMAC-SHA256", "V11-HMAC-SHA256")), Fault::Malformed),
    ] {
        assert_eq!(fault, Some(expected), "{what}");
    }
    let head = vector.head();
    let claim = Claim::read(&head.headers).unwrap();
    let refused = |pair: &Arc<KeyPair>, payload: &str| verify(&claim, pair, &head, payload, vector.now()).err();
    assert_eq!(refused(&vector.pair(), &hash(b"x")), Some(Fault::Mismatch), "body");
    assert_eq!(refused(&pair(&vector.access_key, "other"), &vector.payload()), Some(Fault::Mismatch), "secret key");
}

#[test]
fn a_signature_counts_for_fifteen_minutes_either_way() {
    let vector = &Vector::all()[0];
    let head = vector.head();
    let claim = Claim::read(&head.headers).unwrap();
    let at = |now| verify(&claim, &vector.pair(), &head, &vector.payload(), now).err();
    assert_eq!((at(vector.now() - 900), at(vector.now() + 900)), (None, None));
    assert_eq!((at(vector.now() - 901), at(vector.now() + 901)), (Some(Fault::Expired), Some(Fault::Expired)));
}

proptest! {
    /// What is signed verifies, whatever the request; and with a byte of the target changed it does not.
    #[test]
    fn what_is_signed_verifies(
        path in "(/[!-~&&[^?#/%]]{0,8}){1,4}",
        query in proptest::option::of("[!-~&&[^#%]]{0,30}"),
        value in "[ -~]{0,12}",
        body in proptest::collection::vec(any::<u8>(), 0..20),
    ) {
        let uri = query.as_ref().map_or(path.clone(), |query| format!("{path}?{query}"));
        let Ok(request) = Request::builder().uri(&uri).header("x-any", &value).header("host", "h").body(()) else {
            return Ok(());
        };
        let (mut head, ()) = request.into_parts();
        let signer = Signer { pair: pair("AK", "sk"), headers: Arc::new([HeaderName::from_static("x-any")]), is_strict: true };
        let target = head.uri.path_and_query().unwrap().clone();
        signer.sign(&head.method, &target, &mut head.headers, "h", &hash(&body), 1_795_478_400);
        let check = |head: &Parts, body: &[u8]| {
            let claim = Claim::read(&head.headers).unwrap();
            verify(&claim, &signer.pair, head, &hash(body), 1_795_478_400).err()
        };
        prop_assert_eq!(check(&head, &body), None);
        prop_assert_eq!(check(&head, &[&body[..], b"x"].concat()), Some(Fault::Mismatch));
        head.uri = format!("{path}x").parse().unwrap();
        prop_assert_eq!(check(&head, &body), Some(Fault::Mismatch));
    }

    #[test]
    fn no_authorization_panics(text in "(SDK-HMAC-SHA256 )?[ -~]{0,60}", date in "[0-9TZ]{0,18}", target in "/[ -~&&[^ #]]{0,20}") {
        let request = Request::builder().uri(&target).header(AUTHORIZATION, &text).header("x-sdk-date", &date).body(());
        let Ok(request) = request else { return Ok(()) };
        let (head, ()) = request.into_parts();
        if let Some(claim) = Claim::read(&head.headers) {
            prop_assert!(verify(&claim, &pair("AK", "sk"), &head, "", 0).is_err());
        }
    }
}
