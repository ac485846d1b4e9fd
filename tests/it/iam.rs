//! The simulated IAM answers as the documents of Keystone, Huawei's IAM and OAuth 2.0 say, and the simulated endpoint believes it.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request, StatusCode};
use http_body_util::Empty;
use hyper_util::rt::TokioIo;
use ring::signature::{ECDSA_P256_SHA256_FIXED, ED25519, UnparsedPublicKey};
use serde_json::{Value, json};
use sidelink::clock::Clock;
use sidelink::config::Config;
use sidelink::demo::origin::iam::{CLIENT, Dialect, Grant, Iam, JwtAlgorithm};
use sidelink::demo::origin::{Origin, ScriptedReply, link_is_for};
use tokio::sync::mpsc;

use crate::command_line::Running;
use crate::support::{LOOPBACK, Reply, TestClient, origin_options, query};

const HOUR: Duration = Duration::from_secs(3600);
const TOKENS: &str = "/v3/auth/tokens";
/// 2026-11-24, midnight.
const EPOCH: i64 = 1_795_478_400_000;

struct World {
    /// Follows the machine's.
    clock: Clock,
    iam: Iam,
    client: TestClient,
}

impl World {
    async fn start() -> Self {
        let clock = Clock::simulated(EPOCH);
        let iam = Iam::start_with(LOOPBACK, clock.clone()).await.unwrap();
        let client = TestClient::new(iam.address());
        Self { clock, iam, client }
    }

    async fn validate(&self, auth: &str, subject: &str) -> Reply {
        self.client.get(TOKENS, &[("x-auth-token", auth), ("x-subject-token", subject)]).await
    }

    async fn introspect(&self, authorization: &str, token: &str) -> Reply {
        let headers = [("authorization", authorization), ("content-type", "application/x-www-form-urlencoded")];
        let encoded = percent_encoding::utf8_percent_encode(token, percent_encoding::NON_ALPHANUMERIC);
        let body = format!("token_type_hint=access_token&token={encoded}");
        self.client.send(Method::POST, "/oauth2/introspect", &headers, body).await
    }

    fn basic(&self) -> String {
        format!("Basic {}", STANDARD.encode(format!("{CLIENT}:{}", self.iam.client_secret())))
    }

    /// An endpoint whose tokens are the IAM's.
    async fn endpoint(&self, api: &str) -> (Origin, TestClient) {
        let mut options = origin_options();
        options.api = sidelink::demo::origin::shapes::Shape::of(api).unwrap();
        options.iam = Some(self.iam.clone());
        let origin = Origin::start(options).await.unwrap();
        let client = TestClient::new(origin.address());
        (origin, client)
    }
}

/// The message of an error in Keystone's form, with its status and title.
fn error(reply: &Reply) -> (u16, String) {
    let error = &reply.json()["error"];
    assert_eq!(error["code"], reply.status.as_u16());
    assert!(!error["message"].as_str().unwrap().is_empty());
    (reply.status.as_u16(), error["title"].as_str().unwrap().to_owned())
}

/// From the issue of a token to its end. Both are written with six digits of a second.
fn lives(token: &Value) -> Duration {
    let read = |name: &str| {
        let text = token[name].as_str().unwrap();
        assert_eq!((text.len(), &text[19..20]), ("2026-11-24T15:17:07.250000Z".len(), "."), "{text}");
        text.parse::<jiff::Timestamp>().unwrap()
    };
    read("expires_at").duration_since(read("issued_at")).unsigned_abs()
}

fn members(value: &Value) -> BTreeSet<&str> {
    value.as_object().unwrap().keys().map(String::as_str).collect()
}

#[tokio::test]
async fn huaweis_answer_about_a_token_has_the_members_of_its_reference() {
    let world = World::start().await;
    let token = world.iam.issue("anna", "cn-south-1_photos", &["te_admin", "op_gated"], HOUR);
    let reply = world.validate(&token, &token).await;
    assert_eq!(reply.status, StatusCode::OK);
    assert_eq!((reply.header("x-subject-token"), reply.header("content-type")), (token.as_str(), "application/json"));
    let answer = reply.json();
    let said = &answer["token"];
    let expected = ["catalog", "expires_at", "issued_at", "methods", "project", "roles", "user"];
    assert_eq!(members(said), BTreeSet::from(expected));
    assert_eq!(lives(said), HOUR);
    assert_eq!(said["roles"], json!([{"id": "0", "name": "te_admin"}, {"id": "0", "name": "op_gated"}]));
    assert_eq!(said["project"]["name"], "cn-south-1_photos");
    assert_eq!((&said["user"]["name"], &said["user"]["password_expires_at"]), (&json!("anna"), &json!("")));
    assert_eq!(said["user"]["domain"], said["project"]["domain"]);
    assert_eq!(members(&said["catalog"][0]), BTreeSet::from(["endpoints", "id", "name", "type"]));
    let headers = [("x-auth-token", token.as_str()), ("x-subject-token", token.as_str())];
    let without = world.client.get("/v3/auth/tokens?nocatalog=true", &headers).await;
    assert_eq!(without.json()["token"].get("catalog"), None);
}

#[tokio::test]
async fn openstacks_answer_has_ids_of_roles_and_audit_ids_that_differ_for_each_token() {
    let world = World::start().await;
    world.iam.update(|behaviour| behaviour.dialect = Dialect::OpenStack);
    let grant = Grant { project: None, ..Grant::new("anna", "", &["reader", "member"]) };
    let grant = grant.with("application_credential_restricted", json!(true));
    let tokens = [world.iam.issue_grant(grant.clone(), HOUR), world.iam.issue_grant(grant, HOUR)];
    let mut said = Vec::new();
    for token in &tokens {
        let mut answer = world.validate(token, token).await.json()["token"].take();
        assert_eq!(members(&answer["domain"]), BTreeSet::from(["id", "name"]));
        assert_eq!((answer.get("project"), &answer["is_domain"]), (None, &json!(false)));
        assert_eq!(answer["application_credential_restricted"], true);
        assert_ne!(answer["roles"][0]["id"], answer["roles"][1]["id"]);
        assert_eq!(answer["user"]["password_expires_at"], Value::Null);
        said.push((answer["audit_ids"].take(), answer));
    }
    assert_ne!(said[0].0, said[1].0);
    assert_eq!(said[0].1, said[1].1);
}

#[tokio::test]
async fn a_bad_asker_is_a_401_and_an_unknown_subject_a_404_and_only_administrators_ask_about_others() {
    let world = World::start().await;
    let [anna, other] = ["anna", "bert"].map(|user| world.iam.issue(user, "p", &["reader"], HOUR));
    let administrator = world.iam.issue("root", "p", &["secu_admin"], HOUR);
    let refused = world.validate("made-up", "made-up").await;
    assert_eq!(error(&refused), (401, "Unauthorized".to_owned()));
    assert!(refused.header("www-authenticate").starts_with("Keystone uri="), "{refused:?}");
    assert_eq!(error(&world.client.get(TOKENS, &[("x-subject-token", &anna)]).await).0, 401);
    assert_eq!(error(&world.client.get(TOKENS, &[("x-auth-token", &anna)]).await).0, 400);
    assert_eq!(error(&world.validate(&anna, &other).await), (403, "Forbidden".to_owned()));
    assert_eq!(world.validate(&administrator, &other).await.json()["token"]["user"]["name"], "bert");
    assert_eq!(error(&world.validate(&administrator, "made-up").await), (404, "Not Found".to_owned()));
    assert!(world.iam.revoke(&other) && !world.iam.revoke(&other));
    assert_eq!(error(&world.validate(&administrator, &other).await).0, 404);
    assert_eq!(error(&world.validate(&other, &other).await).0, 401);
    assert_eq!(error(&world.client.get("/v3/users", &[("x-auth-token", &anna)]).await).0, 404);
}

#[tokio::test]
async fn a_token_ends_when_it_expires() {
    let world = World::start().await;
    let token = world.iam.issue("anna", "p", &["reader"], HOUR);
    let administrator = world.iam.issue("root", "p", &["admin"], 2 * HOUR);
    // The clock runs on: the test takes less than what is left.
    world.clock.step(3_540_000);
    assert_eq!(world.validate(&token, &token).await.status, 200);
    assert_eq!(world.introspect(&world.basic(), &token).await.json()["active"], true);
    world.clock.step(60_000);
    assert_eq!(world.validate(&token, &token).await.status, 401);
    assert_eq!(world.validate(&administrator, &token).await.status, 404);
    assert_eq!(world.introspect(&world.basic(), &token).await.json(), json!({"active": false}));
}

#[tokio::test]
async fn a_name_and_a_password_get_a_token() {
    let world = World::start().await;
    let (origin, endpoint) = world.endpoint("huawei-osm").await;
    let user = json!({"name": "anna", "password": "secret", "domain": {"name": "Example"}});
    let identity = json!({"methods": ["password"], "password": {"user": user}});
    let body = json!({"auth": {"identity": identity, "scope": {"project": {"name": "photos"}}}}).to_string();
    let json = [("content-type", "application/json")];
    let reply = world.client.send(Method::POST, TOKENS, &json, body.clone()).await;
    assert_eq!(reply.status, StatusCode::CREATED);
    let answer = reply.json();
    let token = &answer["token"];
    assert_eq!((&token["user"]["name"], &token["project"]["name"]), (&json!("anna"), &json!("photos")));
    assert_eq!(lives(token), 24 * HOUR);
    assert_eq!(endpoint.batch(reply.header("x-subject-token"), &["1"]).await.ids(), ["1"]);
    assert_eq!(error(&world.client.send(Method::POST, TOKENS, &json, "{}").await).0, 400);
    origin.stop().await;
}

#[tokio::test]
async fn an_introspection_says_who_may_do_what_to_clients_and_bearers_alone() {
    let world = World::start().await;
    let token = world.iam.issue("anna", "photos", &["read", "write"], HOUR);
    let reply = world.introspect(&world.basic(), &token).await;
    assert_eq!((reply.status, reply.header("content-type")), (StatusCode::OK, "application/json"));
    let said = reply.json();
    assert_eq!((&said["active"], &said["username"], &said["aud"]), (&json!(true), &json!("anna"), &json!("photos")));
    assert_eq!((&said["scope"], &said["iss"]), (&json!("read write"), &json!(world.iam.issuer())));
    let (issued, expires) = (said["iat"].as_i64().unwrap(), said["exp"].as_i64().unwrap());
    assert!((0..60).contains(&(issued - EPOCH / 1000)) && expires == issued + 3600, "{said}");
    assert!(["sub", "client_id", "jti"].iter().all(|name| said[name].is_string()), "{said}");
    assert_eq!(world.introspect(&format!("Bearer {token}"), &token).await.json(), said);
    assert_eq!(world.introspect(&world.basic(), "made-up").await.json(), json!({"active": false}));
    let wrong = format!("Basic {}", STANDARD.encode("sidelink:wrong"));
    for authorization in [wrong.as_str(), "Bearer made-up", "", "Digest x"] {
        let refused = world.introspect(authorization, &token).await;
        assert_eq!((refused.status.as_u16(), &refused.json()), (401, &json!({"error": "invalid_client"})));
        assert!(refused.header("www-authenticate").starts_with("Basic "), "{refused:?}");
    }
    let basic = world.basic();
    for (media_type, body) in
        [("application/json", format!("token={token}")), ("application/x-www-form-urlencoded", "x=1".to_owned())]
    {
        let headers = [("authorization", basic.as_str()), ("content-type", media_type)];
        let refused = world.client.send(Method::POST, "/oauth2/introspect", &headers, body).await;
        assert_eq!((refused.status.as_u16(), refused.json()), (400, json!({"error": "invalid_request"})));
    }
}

/// Whether a key of the set verifies a token; its header must name the key and its algorithm.
fn verifies(keys: &Value, token: &str) -> bool {
    let (signed, signature) = token.rsplit_once('.').unwrap();
    let decode = |text: &str| URL_SAFE_NO_PAD.decode(text).unwrap();
    let header: Value = serde_json::from_slice(&decode(signed.split_once('.').unwrap().0)).unwrap();
    let named = |key: &&Value| key["kid"] == header["kid"] && key["alg"] == header["alg"] && key["use"] == "sig";
    let Some(key) = keys["keys"].as_array().unwrap().iter().find(named) else { return false };
    let coordinate = |name: &str| decode(key[name].as_str().unwrap());
    let (signed, signature) = (signed.as_bytes(), &decode(signature));
    let verified = match (key["kty"].as_str().unwrap(), key["crv"].as_str().unwrap()) {
        ("EC", "P-256") => {
            let point = [&[4][..], &coordinate("x"), &coordinate("y")].concat();
            UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, point).verify(signed, signature)
        }
        ("OKP", "Ed25519") => UnparsedPublicKey::new(&ED25519, coordinate("x")).verify(signed, signature),
        other => panic!("{other:?}"),
    };
    verified.is_ok()
}

#[tokio::test]
async fn the_key_set_verifies_its_json_web_tokens_and_no_others() {
    let world = World::start().await;
    let keys = async || world.client.get("/jwks.json", &[]).await.json();
    let before = keys().await;
    let grant = Grant::new("anna", "photos", &["read", "write"]);
    for algorithm in [JwtAlgorithm::Es256, JwtAlgorithm::EdDsa] {
        let token = world.iam.issue_jwt(grant.clone(), HOUR, algorithm);
        assert!(verifies(&before, &token));
        let (head, rest) = token.split_once('.').unwrap();
        let (claims, signature) = rest.split_once('.').unwrap();
        let said: Value = serde_json::from_slice(&URL_SAFE_NO_PAD.decode(claims).unwrap()).unwrap();
        let names = ["aud", "client_id", "exp", "iat", "iss", "jti", "nbf", "scope", "sub"];
        assert_eq!(members(&said), BTreeSet::from(names));
        let forged = URL_SAFE_NO_PAD.encode(said.to_string().replace("photos", "secret"));
        assert!(!verifies(&before, &format!("{head}.{forged}.{signature}")));
        // Opaque or not, the IAM knows a token that it has issued.
        assert_eq!(world.introspect(&world.basic(), &token).await.json()["sub"], said["sub"]);
        let unknown = world.iam.sign(algorithm, &json!({"sub": "x"}));
        assert!(verifies(&before, &unknown));
        assert_eq!(world.introspect(&world.basic(), &unknown).await.json()["active"], false);
    }
    world.iam.rotate_keys().unwrap();
    let token = world.iam.issue_jwt(grant, HOUR, JwtAlgorithm::Es256);
    assert!(!verifies(&before, &token) && verifies(&keys().await, &token));
    assert_eq!(world.iam.key_requests(), 2);
}

#[tokio::test]
async fn the_endpoint_takes_tokens_that_live_and_no_link_crosses_grants() {
    let world = World::start().await;
    let (origin, client) = world.endpoint("huawei-osm").await;
    let issue = |user, project, roles: &[&str]| world.iam.issue(user, project, roles, HOUR);
    let tokens = [
        issue("anna", "p", &["r", "w"]),
        issue("anna", "p", &["w", "r"]),
        issue("anna", "p", &["r"]),
        issue("anna", "q", &["r", "w"]),
        issue("bert", "p", &["r", "w"]),
    ];
    let owners = tokens.each_ref().map(|token| world.iam.owner(token).unwrap());
    assert_eq!(owners[0], owners[1]);
    assert_eq!(owners.iter().collect::<BTreeSet<_>>().len(), 4, "{owners:?}");
    for (token, owner) in tokens.iter().zip(&owners) {
        let (_, link) = client.batch(token, &["1"]).await.links().remove(0);
        for other in &owners {
            assert_eq!(link_is_for(&link, "1", None, other, None, None), other == owner, "{link}");
        }
    }
    let refused = client.batch("made-up", &["1"]).await;
    assert_eq!((refused.status.as_u16(), refused.code().as_str()), (401, "APIGW.0301"));
    world.iam.revoke(&tokens[0]);
    assert_eq!(client.batch(&tokens[0], &["1"]).await.status, 401);
    assert_eq!(client.get("/v2/servicerequest/echo", &[("x-auth-token", &tokens[0])]).await.status, 401);
    assert_eq!(client.get("/v2/servicerequest/echo", &[("x-auth-token", &tokens[1])]).await.status, 200);
    world.clock.step(3_600_000);
    assert_eq!(client.batch(&tokens[1], &["1"]).await.status, 401);
    assert_eq!(world.iam.requests(), 0, "the endpoint asks over no socket");
    origin.stop().await;
}

#[tokio::test]
async fn a_token_that_is_revoked_while_a_call_waits_is_refused() {
    let world = World::start().await;
    let (origin, client) = world.endpoint("huawei-osm").await;
    let token = world.iam.issue("anna", "p", &["r"], HOUR);
    origin.hold();
    let (reply, ()) = tokio::join!(client.batch(&token, &["1"]), async {
        origin.arrived(1).await;
        world.iam.revoke(&token);
        origin.release();
    });
    assert_eq!(reply.status, 401);
    origin.stop().await;
}

#[tokio::test]
async fn the_endpoint_of_another_api_takes_the_token_of_its_authorization() {
    let world = World::start().await;
    let (origin, client) = world.endpoint("google-photos").await;
    let [a, b, other] = ["anna", "anna", "bert"].map(|user| world.iam.issue(user, "p", &["r"], HOUR));
    let get = async |token: &str| {
        let authorization = format!("Bearer {token}");
        client.get("/v1/mediaItems:batchGet?mediaItemIds=1", &[("authorization", &authorization)]).await
    };
    let link = async |token: &str| get(token).await.json()["mediaItemResults"][0]["mediaItem"]["baseUrl"].to_string();
    let path = |link: String| link.split_once('?').unwrap().0.to_owned();
    assert_eq!(path(link(&a).await), path(link(&b).await));
    assert_ne!(path(link(&a).await), path(link(&other).await));
    assert_eq!(get("made-up").await.status, 401);
    origin.stop().await;
}

#[tokio::test]
async fn requests_are_counted_by_token_and_are_held_until_they_are_released() {
    let world = World::start().await;
    let [anna, bert] = ["anna", "bert"].map(|user| world.iam.issue(user, "p", &["r"], HOUR));
    world.iam.hold();
    let basic = world.basic();
    let (validated, introspected, ()) =
        tokio::join!(world.validate(&anna, &anna), world.introspect(&basic, &anna), async {
            world.iam.arrived(2).await;
            assert_eq!((world.iam.requests_for(&anna), world.iam.requests_for(&bert)), (2, 0));
            // What is said holds for the moment of the answer.
            world.iam.revoke(&anna);
            world.iam.release();
        });
    assert_eq!(validated.status, 401);
    assert_eq!(introspected.json(), json!({"active": false}));
    world.validate(&bert, &bert).await;
    assert_eq!((world.iam.requests(), world.iam.requests_for(&bert)), (3, 1));
}

#[tokio::test]
async fn its_faults_are_as_a_test_asks_for_and_may_concern_one_token_alone() {
    let world = World::start().await;
    let [anna, bert] = ["anna", "bert"].map(|user| world.iam.issue(user, "p", &["r", "w"], HOUR));
    let right = world.validate(&anna, &anna).await;

    world.iam.update(|behaviour| behaviour.roles_reversed = true);
    assert_eq!(
        world.validate(&anna, &anna).await.json()["token"]["roles"],
        json!([{"id": "0", "name": "w"}, {"id": "0", "name": "r"}])
    );
    assert_eq!(world.introspect(&world.basic(), &anna).await.json()["scope"], "w r");

    world.iam.update(|behaviour| {
        *behaviour = Default::default();
        behaviour.padding = 1 << 20;
        behaviour.content_type = Some("text/html");
    });
    let padded = world.validate(&anna, &anna).await;
    assert_eq!((padded.json(), padded.header("content-type")), (right.json(), "text/html"));
    assert_eq!(padded.body.len(), right.body.len() + (1 << 20));

    world.iam.update(|behaviour| {
        *behaviour = Default::default();
        behaviour.describes = Some(bert.clone());
        behaviour.only_for = Some(anna.clone());
    });
    let lie = world.validate(&anna, &anna).await;
    assert_eq!((&lie.json()["token"]["user"]["name"], lie.header("x-subject-token")), (&json!("bert"), bert.as_str()));
    assert_eq!(world.validate(&bert, &bert).await.json()["token"]["user"]["name"], "bert");

    let headers = HeaderMap::from_iter([(http::header::LOCATION, HeaderValue::from_static("http://127.0.0.1:9/"))]);
    let redirect = ScriptedReply::Whole(StatusCode::FOUND, headers, Default::default());
    world.iam.update(|behaviour| {
        *behaviour = Default::default();
        behaviour.reply = Some(redirect);
        behaviour.only_for = Some(anna.clone());
    });
    assert_eq!(world.validate(&anna, &anna).await.status, StatusCode::FOUND);
    assert_eq!(world.validate(&bert, &bert).await.status, StatusCode::OK);
    assert_eq!(world.client.get("/jwks.json", &[]).await.status, StatusCode::OK);
    world.iam.script(ScriptedReply::json(200, "no JSON"));
    assert_eq!(world.validate(&bert, &bert).await.body, "no JSON");
    assert_eq!(world.validate(&bert, &bert).await.status, StatusCode::OK);
}

#[tokio::test(start_paused = true)]
async fn in_memory_its_tokens_end_by_the_clock_of_the_runtime() {
    let (accept, connections) = mpsc::unbounded_channel();
    let iam = Iam::in_memory(LOOPBACK, Clock::simulated(EPOCH), connections).unwrap();
    let token = iam.issue("anna", "p", &["r"], HOUR);
    let (near, far) = tokio::io::duplex(1 << 10);
    accept.send(far).unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(near)).await.unwrap();
    tokio::spawn(connection);
    let mut validate = async || {
        let request = Request::get(TOKENS).header("x-auth-token", &token).header("x-subject-token", &token);
        let request = request.body(Empty::<Bytes>::new()).unwrap();
        sender.ready().await.unwrap();
        sender.send_request(request).await.unwrap().status()
    };
    assert_eq!(validate().await, 200);
    tokio::time::advance(HOUR).await;
    assert_eq!(validate().await, 401);
    iam.stop().await;
}

#[tokio::test]
async fn its_end_is_not_the_end_of_its_tokens() {
    let world = World::start().await;
    let (origin, client) = world.endpoint("huawei-osm").await;
    let token = world.iam.issue("anna", "p", &["r"], HOUR);
    assert_eq!(world.validate(&token, &token).await.status, 200);
    world.iam.stop().await;
    assert!(world.client.try_get(TOKENS).await.is_none());
    assert_eq!(client.get(&query(&["1"]), &[("x-auth-token", &token)]).await.ids(), ["1"]);
    origin.stop().await;
}

#[tokio::test]
async fn a_client_gets_a_json_web_token_for_the_scope_that_it_asks_for() {
    let world = World::start().await;
    let basic = format!("Basic {}", STANDARD.encode("anna:whatever"));
    let ask = async |authorization: &str, body: &'static str| {
        let headers = [("authorization", authorization), ("content-type", "application/x-www-form-urlencoded")];
        world.client.send(Method::POST, "/oauth2/token", &headers, body).await
    };
    let reply = ask(&basic, "grant_type=client_credentials&scope=read+write").await.json();
    assert_eq!((&reply["token_type"], &reply["expires_in"]), (&json!("Bearer"), &json!(24 * 3600)));
    let token = reply["access_token"].as_str().unwrap();
    assert!(verifies(&world.client.get("/jwks.json", &[]).await.json(), token));
    let said = world.introspect(&world.basic(), token).await.json();
    assert_eq!((&said["username"], &said["scope"]), (&json!("anna"), &json!("read write")));
    assert_eq!(ask("", "grant_type=client_credentials").await.status, 401);
    assert_eq!(ask(&basic, "grant_type=password").await.json()["error"], "unsupported_grant_type");
}

#[tokio::test]
async fn the_command_prints_commands_that_get_tokens_which_its_endpoint_accepts() {
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    command.args(["origin", "--address", "127.0.0.1:0", "--iam", "127.0.0.1:0"]).stdout(Stdio::piped());
    let mut process = Running(command.spawn().unwrap());
    let mut lines = Vec::new();
    for line in BufReader::new(process.0.stdout.take().unwrap()).lines() {
        lines.push(line.unwrap());
        if lines.last().unwrap().contains("grant_type=") {
            break;
        }
    }
    let endpoint = lines[0].strip_prefix("the simulated endpoint listens on http://").expect("an address");
    let endpoint = TestClient::new(endpoint.parse().unwrap());
    let text = lines.join("\n");
    let tables = text.split("\n\n").filter(|part| part.contains("[callers.identity]")).map(|table| {
        let client_file = tempfile::NamedTempFile::new().unwrap();
        let secret = table.split("holds ").nth(1).unwrap_or_default();
        std::fs::write(client_file.path(), secret).unwrap();
        let table = table.replace("FILE", client_file.path().to_str().unwrap());
        let config = format!("[upstream]\nendpoint = \"http://h\"\n{table}\n");
        Config::parse(&config).unwrap_or_else(|errors| panic!("{errors}: {config}")).callers.identity.unwrap()
    });
    assert_eq!(tables.filter(|identity| identity.source().is_some()).count(), 3);
    let commands: Vec<&str> = text.split("  curl ").skip(1).map(|rest| rest.split("\n\n").next().unwrap()).collect();
    let answers: Vec<String> = commands
        .iter()
        .map(|command| {
            let output = Command::new("sh").args(["-c", &format!("curl {command}")]).output().unwrap();
            String::from_utf8(output.stdout).unwrap()
        })
        .collect();
    let [keystone, oauth2] = answers.as_slice() else { panic!("{text}") };
    let token = keystone.lines().find_map(|line| line.strip_prefix("x-subject-token: ")).expect("a token").trim_end();
    assert_eq!(endpoint.batch(token, &["1"]).await.ids(), ["1"]);
    let jwt = serde_json::from_str::<Value>(oauth2).unwrap();
    assert_eq!(endpoint.batch(jwt["access_token"].as_str().unwrap(), &["1"]).await.ids(), ["1"]);
    assert_eq!(endpoint.batch("made-up", &["1"]).await.status, 401);
}
