//! A second sidelink: clients over TLS with HTTP/2 and HTTP/1.1, a shared tier, operators with a browser, and a collector.

use std::fs::File;
use std::process::Command;
use std::sync::Arc;

use base64::prelude::{BASE64_URL_SAFE_NO_PAD, Engine};
use bytes::Bytes;
use http::{Method, Request, Version};
use http_body_util::{BodyExt, Full};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use rustls::{ClientConfig, RootCertStore};
use serde_json::Value;
use sidelink::clock::Clock;
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::{Origin, ScriptedReply as Scripted};

use super::{
    ACCESS_KEY, ANSWER, BODY, COOKIE, ECHO, GROUP, ID, OPERATOR, QUERY, SECRET_KEY, SESSION, STRANGER, TOKEN,
    X_AUTH_TOKEN, batch, marks_of_links,
};
use crate::fleet::Redis;
use crate::process::{Files, Process};
use crate::signing::{Unsigned, pair};
use crate::support::{Reply, eventually, origin_options};
use crate::tls::{Authority, write};

const FLEET: &str = "marked/Fl33t+secret+of+32+characters+71ab0c==";
const STATE: &str = "marked+Tr4ce-State-0be9";
const COLLECTOR: &str = "Bearer marked/C0llector+5ad0e2==";
const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

/// Its output.
pub struct Beside {
    /// Its whole log.
    pub log: Vec<Value>,
    pub standard_error: String,
    pub metrics: String,
    /// sidelink's own errors.
    pub errors: Vec<String>,
    /// The pages that operators saw.
    pub pages: Vec<String>,
    /// All data of the shared tier's server.
    pub kept: String,
    /// All exports that the collector received.
    pub exported: Vec<String>,
    /// Parts of links' queries, signatures, and secrets that no other sidelink has.
    pub marks: Vec<String>,
}

struct Clients {
    /// Over HTTP/2 and over HTTP/1.1.
    both: [Client<HttpsConnector<HttpConnector>, Full<Bytes>>; 2],
    host: String,
    errors: Vec<String>,
    marks: Vec<String>,
}

impl Clients {
    fn new(authority: &Authority, port: u16) -> Self {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.pem().as_bytes()).unwrap()).unwrap();
        let builder = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()));
        let builder = builder.with_safe_default_protocol_versions().unwrap();
        let config = builder.with_root_certificates(roots).with_no_client_auth();
        let connector = || HttpsConnectorBuilder::new().with_tls_config(config.clone()).https_only();
        let [two, one] = [connector().enable_http2().build(), connector().enable_http1().build()];
        let both = [
            Client::builder(TokioExecutor::new()).http2_only(true).build(two),
            Client::builder(TokioExecutor::new()).build(one),
        ];
        Self { both, host: format!("localhost:{port}"), errors: Vec::new(), marks: Vec::new() }
    }

    async fn send(&mut self, which: usize, method: Method, target: &str, headers: &[(&str, &str)], body: &str) -> u16 {
        let mut request = Request::builder().method(method).uri(format!("https://{}{target}", self.host));
        for (name, value) in headers.iter().filter(|(name, _)| *name != "host") {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body.to_owned())).unwrap();
        let (head, body) = self.both[which].request(request).await.unwrap().into_parts();
        assert_eq!(head.version, [Version::HTTP_2, Version::HTTP_11][which]);
        let body = body.collect().await.unwrap().to_bytes();
        let reply = Reply { status: head.status, headers: head.headers, body };
        let text = String::from_utf8_lossy(&reply.body).into_owned();
        if text.contains("SIDELINK.") {
            self.errors.push(text);
        } else {
            self.marks.extend(marks_of_links(&reply));
        }
        head.status.as_u16()
    }

    async fn signed(&mut self, which: usize, change: impl FnOnce(&mut Unsigned<'static>)) -> u16 {
        let mut request = Unsigned::get(&self.host, &batch("signed"), &Clock::system());
        (request.access_key, request.secret_key) = (ACCESS_KEY, SECRET_KEY);
        change(&mut request);
        let headers = request.sign();
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        let signature = headers.iter().find_map(|(_, value)| Some(value.split_once("Signature=")?.1));
        self.marks.push(signature.unwrap().to_owned());
        self.send(which, request.method.clone(), &request.target, &headers, "").await
    }

    async fn everything(&mut self, which: usize, origin: &Origin) {
        let state = format!("a={STATE}");
        let token: &[_] =
            &[(X_AUTH_TOKEN, TOKEN), ("traceparent", PARENT), ("tracestate", &state), ("x-language", QUERY)];
        let by_comma = format!("{}?accessory_ids={ID}-1,{ID}-{which}&group_id={GROUP}", api::PATH);
        let body = format!(r#"{{"accessory_ids":["{ID}-1"],"group_id":"{GROUP}"}}"#);
        for _ in 0..2 {
            assert_eq!(self.send(which, Method::GET, &batch("1"), token, "").await, 200);
            assert_eq!(self.send(which, Method::GET, &by_comma, token, "").await, 200);
            assert_eq!(self.send(which, Method::GET, api::PATH, token, &body).await, 200);
            assert_eq!(self.signed(which, |_| {}).await, 200);
        }
        assert_eq!(self.signed(which, |request| request.secret_key = BODY).await, 401);
        self.signed(which, |request| request.headers.push(("x-security-token", SESSION.to_owned()))).await;
        self.signed(which, |request| request.access_key = STRANGER).await;
        let cookie = [(X_AUTH_TOKEN, TOKEN), ("cookie", COOKIE)];
        self.send(which, Method::GET, &batch("1"), &cookie, "").await;
        let only = [(X_AUTH_TOKEN, TOKEN), ("cache-control", "only-if-cached")];
        assert_eq!(self.send(which, Method::GET, &batch("only"), &only, "").await, 504);
        let many: Vec<String> = (0..1001).map(|id| format!("{id}{ID}")).collect();
        let many = format!(r#"{{"accessory_ids":["{}"]}}"#, many.join(r#"",""#));
        assert_eq!(self.send(which, Method::GET, api::PATH, token, &many).await, 400);
        let echo = format!("{ECHO}?{QUERY}={QUERY}");
        assert_eq!(self.send(which, Method::POST, &echo, &cookie, BODY).await, 200);
        let deleted = format!("{}/deleted?{QUERY}", api::ACCESSORIES);
        assert!(self.send(which, Method::DELETE, &deleted, token, BODY).await < 300);
        let answer = format!(r#"{{"error_code":"OSM.0004","error_msg":"{ANSWER}"}}"#);
        for status in [500, 401, 403] {
            origin.script(Scripted::json(status, answer.clone()));
            self.send(which, Method::GET, &batch(&format!("failed-{which}-{status}")), token, "").await;
        }
        origin.script(Scripted::Reset);
        self.send(which, Method::GET, &batch(&format!("reset-{which}")), token, "").await;
    }
}

/// Requests every page, as an operator with a caller's credentials.
async fn pages(process: &Process) -> Vec<String> {
    let bearer = format!("Bearer {OPERATOR}");
    let headers = [("authorization", bearer.as_str()), (X_AUTH_TOKEN, TOKEN), ("cookie", COOKIE)];
    let mut pages = Vec::new();
    for target in ["/", "/status.json"] {
        let page = process.admin.get(target, &headers[..1]).await;
        assert_eq!(page.status, 200);
        pages.push(String::from_utf8(page.body.to_vec()).unwrap());
    }
    let query = batch("1").split_once('?').unwrap().1.to_owned();
    let [known, new] = [format!("/explain?{query}"), format!("/explain?{query}-new&group_id={GROUP}")];
    for target in [&known, &new] {
        let page = process.admin.get(target, &[(X_AUTH_TOKEN, TOKEN), ("x-language", QUERY)]).await;
        assert_eq!(page.status, 200);
        pages.push(String::from_utf8(page.body.to_vec()).unwrap());
    }
    assert!(pages.iter().any(|page| page.contains("http")), "no link is shown, not even without its query");
    // Of which none can be told.
    for target in [format!("/explain?{QUERY}"), format!("/explain?{query}&{QUERY}")] {
        let page = process.admin.get(&target, &headers).await;
        pages.push(String::from_utf8(page.body.to_vec()).unwrap());
    }
    pages
}

/// All data of a server, raw and decoded.
async fn kept(redis: &Redis) -> String {
    let mut all = String::new();
    for key in redis.list(&["KEYS", "*"]).await {
        let value = redis.value(&key).await;
        all.push_str(&format!("{key} {}\n", String::from_utf8_lossy(&value)));
        if let Ok(bytes) = BASE64_URL_SAFE_NO_PAD.decode(&value) {
            all.push_str(&String::from_utf8_lossy(&bytes));
        }
    }
    all
}

/// Takes it through every situation.
pub async fn everything() -> Beside {
    let mut options = origin_options();
    options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
    let (origin, redis) = (Origin::start(options).await.unwrap(), Redis::start().await);
    let (files, authority) = (Files::new(origin.address()), Authority::new());
    let issued = authority.issue("localhost");
    let file = |name: &str, text: &str| write(&files.directory, name, text);
    let (cert, cert_key) = (file("tls.crt", &issued.certificate.pem()), file("tls.key", &issued.key.serialize_pem()));
    let (key, token, fleet) = (file("key", SECRET_KEY), file("operators", OPERATOR), file("fleet", FLEET));
    let mut config = format!(
        "log.level = \"trace\"\nupstream.retry.attempts = 0\nadmin.token_file = {token:?}\n\
         listen.tls.cert = {cert:?}\nlisten.tls.key = {cert_key:?}\n\
         [shared]\nurl = \"redis://127.0.0.1:{}\"\nsecret_file = {fleet:?}\ntimeout = \"5s\"\n\
         [[callers.keys]]\naccess_key = \"{ACCESS_KEY}\"\nsecret_key_file = {key:?}\n",
        redis.port.number()
    );
    let collector = {
        let (collector, header) = (crate::collector::Collector::start().await, file("collector", COLLECTOR));
        config.push_str(&format!(
            "[trace]\nendpoint = \"http://{}\"\n[[trace.headers]]\nname = \"authorization\"\nvalue_file = {header:?}\n",
            collector.address
        ));
        collector
    };
    config.push('\n');
    let path = files.write(&config);
    let stderr = files.directory.path().join("stderr");
    let mut command = Command::new(env!("CARGO_BIN_EXE_sidelink"));
    command.args(["serve", "--config"]).arg(&path).env("RUST_LOG", "trace").stderr(File::create(&stderr).unwrap());
    let mut process = Process::spawn(&mut command).await;
    process.says("the shared tier is in use").await;
    let mut clients = Clients::new(&authority, process.address.port());
    for which in 0..2 {
        clients.everything(which, &origin).await;
        assert_eq!(clients.send(which, Method::GET, &batch("1"), &[(X_AUTH_TOKEN, TOKEN)], "").await, 200);
    }
    let pages = pages(&process).await;
    eventually("links are shared", async || redis.keys("l").await.len() > 2).await;
    let bearer = format!("Bearer {OPERATOR}");
    let purge = format!(r#"{{"accessory_ids":["{ID}-1"]}}"#);
    let headers = [("authorization", bearer.as_str()), ("content-type", "application/json")];
    assert_eq!(process.admin.send(Method::POST, "/purge", &headers, purge).await.status, 200);
    let kept = kept(&redis).await;
    // The tier goes down while it is in use.
    drop(redis);
    clients.send(0, Method::GET, &batch("alone"), &[(X_AUTH_TOKEN, TOKEN)], "").await;
    process.says("the shared tier is down; sidelink continues without it and reconnects").await;
    let metrics = String::from_utf8(process.admin.get("/metrics", &[]).await.body.to_vec()).unwrap();
    process.signal("TERM");
    assert_eq!(process.exit().await, Some(0));
    let (mut errors, mut marks) = (clients.errors, clients.marks);
    marks.extend([FLEET, STATE].map(str::to_owned));
    let exported = {
        marks.push(COLLECTOR.trim_start_matches("Bearer ").to_owned());
        let exports = collector.exports();
        assert!(collector.spans().len() > 60, "{}", collector.spans().len());
        assert!(exports.iter().all(|export| export.headers["authorization"] == COLLECTOR));
        let text = |export: &crate::collector::Export| {
            let mut headers = export.headers.clone();
            headers.remove("authorization");
            format!("{} {headers:?} {}", export.target, String::from_utf8_lossy(&export.body))
        };
        exports.iter().map(text).collect()
    };
    errors.dedup();
    let standard_error = std::fs::read_to_string(stderr).unwrap();
    Beside { log: std::mem::take(&mut process.log), standard_error, metrics, errors, pages, kept, exported, marks }
}
