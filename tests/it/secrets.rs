//! No secret leaves: marked values of requests, answers and files are in no log line, at no level, on no page, in no span, in no error
//! of sidelink and in nothing that a fleet shares, in any encoding.

mod beside;

use std::fs::File;
use std::process::Command;

use base64::prelude::{BASE64_STANDARD, BASE64_URL_SAFE, Engine};
use http::Method;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, percent_decode_str, utf8_percent_encode};
use serde_json::Value;
use sidelink::clock::Clock;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::{Origin, ScriptedReply as Scripted};

use crate::process::{Files, Process};
use crate::signing::{Unsigned, pair};
use crate::support::{Reply, origin_options, raw};
use crate::tls::write;

// Each contains characters that encodings change.
const TOKEN: &str = "marked/T0ken+7f3a9c==";
const SESSION: &str = "marked/Sess1on+51d0b7==";
const OPERATOR: &str = "marked/0perator+c44e01==";
const ACCESS_KEY: &str = "AKMARKED0000000001";
const STRANGER: &str = "AKMARKED0000000002";
const SECRET_KEY: &str = "marked/Secret+Key/8e21==";
const COOKIE: &str = "marked/C00kie+93bb1a==";
const BODY: &str = "marked/B0dy+17c2f8==";
const QUERY: &str = "marked-Query-6d3e90";
const ID: &str = "marked-Id-2ab417";
const GROUP: &str = "marked-Group-5f08";
const ANSWER: &str = "marked/Answer+b1c9d2==";
const ALL: [&str; 12] =
    [TOKEN, SESSION, OPERATOR, ACCESS_KEY, STRANGER, SECRET_KEY, COOKIE, BODY, QUERY, ID, GROUP, ANSWER];

const ECHO: &str = "/v2/servicerequest/echo";
const X_AUTH_TOKEN: &str = "x-auth-token";

/// The encodings of a mark, in lower case.
fn forms(mark: &str) -> Vec<String> {
    const UNRESERVED: &AsciiSet = &NON_ALPHANUMERIC.remove(b'-').remove(b'_').remove(b'.').remove(b'~');
    let mut forms = vec![mark.to_owned(), hex::encode(mark)];
    forms.extend([NON_ALPHANUMERIC, UNRESERVED].map(|set| utf8_percent_encode(mark, set).to_string()));
    let numbers = format!("{:?}", mark.as_bytes());
    forms.push(numbers.trim_matches(['[', ']']).to_owned());
    // At each offset: the digits that encode only bits of the mark.
    for before in 0..3 {
        let bytes = [&vec![0; before], mark.as_bytes()].concat();
        let digits = (before * 8).div_ceil(6)..bytes.len() * 8 / 6;
        forms.extend([BASE64_STANDARD, BASE64_URL_SAFE].map(|engine| engine.encode(&bytes)[digits.clone()].to_owned()));
    }
    forms.into_iter().map(|form| form.to_lowercase()).collect()
}

fn find(mark: &str, text: &str) -> Option<String> {
    let text = text.to_lowercase();
    forms(mark).into_iter().find(|form| text.contains(form.as_str()))
}

#[test]
fn a_mark_is_found_in_every_encoding() {
    let within = format!("user:{TOKEN}, and more");
    for text in [
        within.clone(),
        hex::encode_upper(&within),
        utf8_percent_encode(&within, NON_ALPHANUMERIC).to_string(),
        format!("{:?}", within.as_bytes()),
        BASE64_STANDARD.encode(&within),
        BASE64_STANDARD.encode(format!("1{within}")),
        BASE64_URL_SAFE.encode(format!("12{within}")),
    ] {
        assert!(find(TOKEN, &text).is_some(), "{text}");
        assert!(find(SECRET_KEY, &text).is_none(), "{text}");
    }
}

/// The output of a process that has been through everything.
pub struct Traces {
    /// Its whole log.
    pub log: Vec<Value>,
    standard_error: String,
    /// Its metrics page at the end.
    metrics: String,
    /// sidelink's own errors.
    errors: Vec<String>,
    /// Parts of links' queries, and signatures.
    marks: Vec<String>,
}

/// The secret parts of the links in an answer, if it has links.
fn marks_of_links(reply: &Reply) -> Vec<String> {
    let mut marks = Vec::new();
    let text = String::from_utf8_lossy(&reply.body);
    if reply.status == 200 && text.starts_with(r#"{"accessory_urls""#) && !text.contains(ANSWER) {
        for (_, link) in reply.links() {
            let query = link.split_once('?').unwrap().1;
            let values = query.split('&').filter_map(|pair| Some(pair.split_once('=')?.1));
            let secrets = values.filter(|value| value.len() >= 20);
            marks.extend(secrets.map(|value| percent_decode_str(value).decode_utf8_lossy().into_owned()));
            marks.push(query.to_owned());
        }
    }
    marks
}

struct Run {
    process: Process,
    origin: Origin,
    errors: Vec<String>,
    marks: Vec<String>,
}

impl Run {
    fn note(&mut self, reply: &Reply) {
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        if text.contains("SIDELINK.") {
            self.errors.push(text);
        } else {
            self.marks.extend(marks_of_links(reply));
        }
    }

    async fn send(&mut self, method: Method, target: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let reply = self.process.client.send(method, target, headers, body.to_owned()).await;
        self.note(&reply);
        reply.status.as_u16()
    }

    async fn get(&mut self, target: &str, headers: &[(&str, &str)]) -> u16 {
        self.send(Method::GET, target, headers, "").await
    }

    async fn signed(&mut self, change: impl FnOnce(&mut Unsigned<'static>)) -> u16 {
        let mut request = Unsigned::get(self.process.address, &batch("signed"), &Clock::system());
        (request.access_key, request.secret_key) = (ACCESS_KEY, SECRET_KEY);
        change(&mut request);
        let headers = request.sign();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let signature = headers.iter().find_map(|(_, value)| Some(value.split_once("Signature=")?.1));
        self.marks.push(signature.unwrap().to_owned());
        let body = String::from_utf8(request.body.to_vec()).unwrap();
        self.send(request.method.clone(), &request.target, &headers, &body).await
    }

    async fn admin(&self, method: Method, target: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        self.process.admin.send(method, target, headers, body.to_owned()).await.status.as_u16()
    }

    async fn batches(&mut self) {
        let token: &[_] = &[(X_AUTH_TOKEN, TOKEN)];
        let by_comma = format!("{}?accessory_ids={ID}-1,{ID}-2&group_id={GROUP}", api::PATH);
        let body = format!(r#"{{"accessory_ids":["{ID}-1"],"group_id":"{GROUP}"}}"#);
        for _ in 0..2 {
            assert_eq!(self.get(&batch("1"), token).await, 200);
            assert_eq!(self.get(&by_comma, token).await, 200);
            assert_eq!(self.send(Method::GET, api::PATH, token, &body).await, 200);
            assert_eq!(self.signed(|_| {}).await, 200);
        }
        assert_eq!(self.get(&format!("{}&accessory_ids={ID}-9", batch("1")), token).await, 200);
        self.signed(|request| request.headers.push(("x-security-token", SESSION.to_owned()))).await;
        let with = |more| [(X_AUTH_TOKEN, TOKEN), more];
        let parent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        self.get(&batch("1"), &with(("traceparent", parent))).await;
        // Forwarded untouched, each for a different reason.
        self.get(&batch("1"), &with(("cookie", COOKIE))).await;
        self.origin.script(Scripted::json(403, "{}"));
        assert_eq!(self.get(&batch("cookie"), &with(("cookie", COOKIE))).await, 200);
        self.get(&batch("1"), &with(("origin", ECHO))).await;
        self.get(
            &format!("{}?{QUERY}={QUERY}", api::PATH),
            &[&with(("x-request-id", "a-clients-own"))[..], &[("user-agent", "curl/8")]].concat(),
        )
        .await;
        self.get(&batch("1"), &with(("authorization", OPERATOR))).await;
        self.get(&batch("1"), &[("authorization", SESSION)]).await;
        self.get(&format!("{}?{QUERY}={QUERY}", api::PATH), token).await;
        self.send(Method::GET, api::PATH, token, BODY).await;
        self.signed(|request| request.access_key = STRANGER).await;
    }

    async fn refusals(&mut self) {
        let token: &[_] = &[(X_AUTH_TOKEN, TOKEN)];
        assert_eq!(self.signed(|request| request.secret_key = BODY).await, 401);
        let many: Vec<String> = (0..1001).map(|id| format!("accessory_ids={id}{ID}")).collect();
        assert_eq!(self.get(&format!("{}?{}", api::PATH, many.join("&")), token).await, 400);
        assert_eq!(self.send(Method::GET, api::PATH, token, &BODY.repeat(20_000)).await, 413);
        let only = [(X_AUTH_TOKEN, TOKEN), ("cache-control", "only-if-cached")];
        assert_eq!(self.get(&batch("only"), &only).await, 504);
        for request in [
            format!("GET {} HTTP/1.1\r\nx-auth-token: {TOKEN}\r\nconnection: close\r\n\r\n", batch("1")),
            format!(
                "GET {} HTTP/1.1\r\nhost: a\r\nx-auth-token: {TOKEN}\r\nconnection: x-auth-token\r\nconnection: close\r\n\r\n",
                batch("1")
            ),
            format!("GET http://{QUERY}.test/?{QUERY} HTTP/1.1\r\nhost: {QUERY}.test\r\nconnection: close\r\n\r\n"),
            format!("{BODY} {TOKEN}\r\n\r\n"),
            format!("GET / HTTP/1.1\r\nhost: a\r\ncookie: {COOKIE}\u{1}\r\n\r\n"),
            format!("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: {BODY}\r\n\r\n"),
            format!("GET /?{QUERY} HTTP/1.1\r\nhost: a\r\nx: {}\r\n\r\n", TOKEN.repeat(10_000)),
        ] {
            let answer = raw(self.process.address, request.as_bytes()).await;
            self.errors.push(answer);
        }
    }

    async fn other_routes(&mut self) {
        let token: &[_] = &[(X_AUTH_TOKEN, TOKEN), ("cookie", COOKIE), ("x-security-token", SESSION)];
        let target = format!("{ECHO}?{QUERY}={QUERY}");
        assert_eq!(self.send(Method::POST, &target, token, BODY).await, 200);
        let signed = |request: &mut Unsigned<'static>| {
            (request.method, request.body) = (Method::POST, BODY.as_bytes());
            request.target = format!("{ECHO}?{QUERY}={QUERY}");
        };
        assert_eq!(self.signed(signed).await, 200);
        let deleted = format!("{}/deleted?{QUERY}={QUERY}", api::ACCESSORIES);
        assert!(self.send(Method::DELETE, &deleted, token, BODY).await < 300);
    }

    /// The endpoint fails in every way.
    async fn failures(&mut self) {
        let token: &[_] = &[(X_AUTH_TOKEN, TOKEN)];
        let answer = format!(r#"{{"error_code":"OSM.0004","error_msg":"{ANSWER}"}}"#);
        let broken = format!(r#"{{"accessory_urls":[{{"{ANSWER}"#);
        let mut scripts: Vec<Scripted> =
            [400, 403, 404, 500, 200].into_iter().map(|status| Scripted::json(status, answer.clone())).collect();
        scripts.extend([
            Scripted::json(200, broken.clone()),
            Scripted::json(200, format!(r#"{{"accessory_urls":[{{"accessory_id":"{ANSWER}"}}]}}"#)),
            Scripted::Truncated(broken.into()),
            Scripted::Reset,
            Scripted::json(401, answer.clone()),
            Scripted::json(429, answer.clone()),
        ]);
        for (number, script) in scripts.into_iter().enumerate() {
            self.origin.script(script);
            self.get(&batch(&format!("failed-{number}")), token).await;
        }
    }

    async fn operators(&mut self) {
        let query = batch("1").split_once('?').unwrap().1.to_owned();
        let explain = format!("/explain?{query}&group_id={GROUP}");
        assert_eq!(self.admin(Method::GET, &explain, &[(X_AUTH_TOKEN, TOKEN)], "").await, 200);
        let (bearer, json) = (format!("Bearer {OPERATOR}"), ("content-type", "application/json"));
        let all: [(&str, &str); 2] = [("authorization", &bearer), json];
        for body in
            [&format!(r#"{{"accessory_ids":["{ID}-1"]}}"#), &format!(r#"{{"group_id":"{GROUP}"}}"#), r#"{"all":true}"#]
        {
            assert_eq!(self.admin(Method::POST, "/purge", &all, body).await, 200);
        }
        assert_eq!(self.admin(Method::POST, "/purge", &all, &format!("{{{BODY}")).await, 400);
        self.admin(Method::POST, &format!("/purge?{QUERY}"), &[("authorization", TOKEN), json], BODY).await;
    }
}

/// The target of a batch of one id.
fn batch(id: &str) -> String {
    format!("{}?accessory_ids={ID}-{id}", api::PATH)
}

/// Takes a sidelink with log level trace through every situation.
pub async fn everything() -> Traces {
    let mut options = origin_options();
    options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let origin = Origin::start(options).await.unwrap();
    let files = Files::new(origin.address());
    let (key, token) = (write(&files.directory, "key", SECRET_KEY), write(&files.directory, "operators", OPERATOR));
    let config = format!(
        "log.level = \"trace\"\nupstream.retry.attempts = 0\nadmin.token_file = {token:?}\n\
         [[callers.keys]]\naccess_key = \"{ACCESS_KEY}\"\nsecret_key_file = {key:?}"
    );
    let path = files.write(&config);
    let stderr = files.directory.path().join("stderr");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    // Ignored.
    command.env("RUST_LOG", "trace");
    command.args(["serve", "--config"]).arg(&path).stderr(File::create(&stderr).unwrap());
    let process = Process::spawn(&mut command).await;
    let mut run = Run { process, origin, errors: Vec::new(), marks: Vec::new() };
    run.batches().await;
    run.refusals().await;
    run.other_routes().await;
    run.failures().await;
    run.operators().await;
    files.write(&format!("admin.token = \"{OPERATOR}\"\n{config}\nsecret_key = \"{SECRET_KEY}\""));
    run.process.signal("HUP");
    run.process.says("the configuration was refused; the previous one stays in effect").await;
    files.write(&config);
    run.process.signal("HUP");
    run.process.says("the configuration was reloaded").await;
    run.origin.clone().stop().await;
    run.get(&batch("down"), &[(X_AUTH_TOKEN, "another")]).await;
    run.get(&format!("{ECHO}?{QUERY}"), &[(X_AUTH_TOKEN, TOKEN)]).await;
    let metrics = String::from_utf8(run.process.admin.get("/metrics", &[]).await.body.to_vec()).unwrap();
    run.process.signal("TERM");
    assert_eq!(run.process.exit().await, Some(0));
    let standard_error = std::fs::read_to_string(stderr).unwrap();
    Traces { log: std::mem::take(&mut run.process.log), standard_error, metrics, errors: run.errors, marks: run.marks }
}

#[tokio::test]
async fn no_marked_secret_is_in_log_metrics_or_errors() {
    let traces = everything().await;
    let access = traces.log.iter().filter(|line| line["target"] == "access").count();
    assert!(access > 35 && traces.errors.len() > 10 && traces.marks.len() > 20, "{access}");
    let mut left = traces.errors;
    left.extend(traces.log.iter().map(Value::to_string));
    left.extend([traces.metrics, traces.standard_error]);
    for mark in ALL.into_iter().chain(traces.marks.iter().map(String::as_str)) {
        for text in &left {
            assert_eq!(find(mark, text), None, "{mark} in {text}");
        }
    }
}

#[tokio::test]
async fn no_marked_secret_leaves_by_tls_http2_operators_pages_a_shared_tier_or_spans() {
    let beside = beside::everything().await;
    let access = beside.log.iter().filter(|line| line["target"] == "access").count();
    assert!(access > 40 && beside.errors.len() > 3 && beside.marks.len() > 30 && beside.kept.len() > 1000, "{access}");
    assert!(!beside.exported.is_empty());
    for line in &beside.log {
        // Libraries (TLS, HTTP/2, Redis) log what passes through them at lower levels.
        let own = ["access", "sidelink"].iter().any(|own| line["target"].as_str().unwrap().starts_with(own));
        assert!(own || ["WARN", "ERROR"].contains(&line["level"].as_str().unwrap()), "a library's: {line}");
    }
    let mut left = beside.errors;
    left.extend(beside.log.iter().map(Value::to_string));
    left.extend(beside.exported);
    left.extend([beside.metrics, beside.standard_error, beside.kept]);
    for mark in ALL.into_iter().chain(beside.marks.iter().map(String::as_str)) {
        for text in &left {
            assert_eq!(find(mark, text), None, "{mark} in {text}");
        }
        // An operator may see what they asked about, and which keys exist.
        for page in beside.pages.iter().filter(|_| ![ID, GROUP, ACCESS_KEY].contains(&mark)) {
            assert_eq!(find(mark, page), None, "{mark} on {page}");
        }
    }
}
