//! An answer is decoded from any known coding. Where its coding is unknown, the batch is fetched as it was written, and passed on.

use std::io::Write;
use std::sync::{Arc, Mutex};

use flate2::Compression;
use flate2::write::{DeflateEncoder, GzEncoder, ZlibEncoder};
use ruzstd::encoding::{CompressionLevel, compress_to_vec};
use sidelink::app::App;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{LOOPBACK, Reply, TestClient, config, query, value_of};

/// `text` as one uncompressed meta-block of Brotli.
fn brotli(text: &[u8]) -> Vec<u8> {
    let length = u16::try_from(text.len() - 1).unwrap();
    // WBITS 16, not last, MNIBBLES 4, MLEN - 1, uncompressed; then an empty last meta-block.
    let header = u32::from(length) << 4 | 1 << 20;
    [&header.to_le_bytes()[..3], text, &[3]].concat()
}

fn zstd(text: &[u8]) -> Vec<u8> {
    compress_to_vec(text, CompressionLevel::Fastest)
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn zlib(text: &[u8]) -> Vec<u8> {
    let mut encoder = ZlibEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

fn raw_deflate(text: &[u8]) -> Vec<u8> {
    let mut encoder = DeflateEncoder::new(Vec::new(), Compression::fast());
    encoder.write_all(text).unwrap();
    encoder.finish().unwrap()
}

/// An endpoint that answers batches with a list, coded by `code`, and records each head.
struct Endpoint {
    _app: App,
    app_admin: TestClient,
    client: TestClient,
    heads: Arc<Mutex<Vec<String>>>,
}

type Code = fn(&[u8]) -> Vec<u8>;

impl Endpoint {
    /// `headers` go with each answer to a call; a request that sidelink forwards as it was written gets no coding.
    async fn start(headers: &'static str, code: Code) -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let mut config = config(listener.local_addr().unwrap());
        config.upstream.retry.attempts = 0;
        config.upstream.answer_bytes = 64 << 10;
        let heads = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&heads);
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, headers, code, Arc::clone(&seen)));
            }
        });
        let app = App::start(config).await.unwrap();
        let (client, app_admin) = (TestClient::new(app.addresses()[0]), TestClient::new(app.admin_address()));
        Self { _app: app, app_admin, client, heads }
    }

    async fn batch(&self, ids: &[&str]) -> Reply {
        self.client.get(&query(ids), &[("x-auth-token", "t"), ("x-mine", "1")]).await
    }

    fn requests(&self) -> usize {
        self.heads.lock().unwrap().len()
    }

    async fn metric(&self, series: &str) -> f64 {
        let page = self.app_admin.get("/metrics", &[]).await;
        let text = String::from_utf8(page.body.to_vec()).unwrap();
        value_of(series, &text)
    }
}

async fn serve(mut stream: TcpStream, headers: &'static str, code: Code, heads: Arc<Mutex<Vec<String>>>) {
    loop {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let Ok(byte) = stream.read_u8().await else { return };
            head.push(byte);
        }
        let head = String::from_utf8(head).unwrap();
        let target = head.split(' ').nth(1).unwrap();
        let ids = target.split(['?', '&']).filter_map(|pair| pair.strip_prefix("accessory_ids="));
        let items: Vec<String> =
            ids.map(|id| format!(r#"{{"accessory_id":"{id}","accessory_url":"https://h/{id}"}}"#)).collect();
        let list = format!(r#"{{"accessory_urls":[{}]}}"#, items.join(","));
        let as_written = head.contains("x-mine: 1");
        let (headers, body) = if as_written { ("", list.into_bytes()) } else { (headers, code(list.as_bytes())) };
        let answer = format!("HTTP/1.1 200 OK\r\n{headers}content-length: {}\r\n\r\n", body.len());
        heads.lock().unwrap().push(head);
        if stream.write_all(&[answer.as_bytes(), &body].concat()).await.is_err() {
            return;
        }
    }
}

#[tokio::test]
async fn every_known_coding_is_decoded_and_several_in_reverse_order() {
    let codings: [(&str, Code); 14] = [
        ("content-encoding: gzip\r\n", gzip),
        ("content-encoding: br\r\n", brotli),
        ("content-encoding: deflate\r\n", zlib),
        ("content-encoding: Deflate\r\n", raw_deflate),
        ("content-encoding: zstd\r\n", zstd),
        ("content-encoding: zstd\r\n", |text| [zstd(&text[..10]), zstd(&text[10..])].concat()),
        ("content-encoding: identity\r\n", <[u8]>::to_vec),
        ("content-encoding: \r\n", <[u8]>::to_vec),
        ("content-encoding: gzip, br\r\n", |text| brotli(&gzip(text))),
        ("content-encoding: br , x-gzip\r\n", |text| gzip(&brotli(text))),
        ("content-encoding: deflate\r\ncontent-encoding: zstd\r\n", |text| zstd(&zlib(text))),
        ("content-encoding: gzip, identity,, gzip\r\n", |text| gzip(&gzip(text))),
        ("", |text| [b"\xef\xbb\xbf", text].concat()),
        ("content-encoding: gzip\r\n", |text| gzip(&[b"\xef\xbb\xbf", text].concat())),
    ];
    for (headers, code) in codings {
        let endpoint = Endpoint::start(headers, code).await;
        let reply = endpoint.batch(&["1", "2"]).await;
        assert_eq!(reply.ids(), ["1", "2"], "{headers:?}");
        assert!(!reply.headers.contains_key("content-encoding"), "{headers:?}");
        assert_eq!(endpoint.batch(&["2", "1"]).await.header("cache-status"), "sidelink; hit", "{headers:?}");
    }
}

#[tokio::test]
async fn an_unknown_coding_is_passed_on_where_its_call_was_the_whole_batch() {
    for coding in ["exi", "gzip, exi", "gzip, gzip, gzip, gzip, gzip"] {
        let headers: &'static str = format!("content-encoding: {coding}\r\n").leak();
        let endpoint = Endpoint::start(headers, |_| b"only its endpoint can read this".to_vec()).await;
        let reply = endpoint.batch(&["1", "2"]).await;
        assert_eq!((reply.status.as_u16(), reply.header("content-encoding")), (200, coding));
        assert_eq!(reply.body, "only its endpoint can read this");
        assert_eq!(reply.header("cache-status"), "sidelink; fwd=bypass; detail=not-json");
        assert_eq!(endpoint.requests(), 1);
        // Nothing of it is cached, and no source counts as failing.
        endpoint.batch(&["1", "2"]).await;
        assert_eq!(endpoint.requests(), 2);
        assert_eq!(endpoint.metric(r#"sidelink_uncacheable_total{reason="unmatched"}"#).await, 4.0);
        assert_eq!(endpoint.metric(r#"sidelink_bypass_total{reason="not-json"}"#).await, 2.0);
        assert_eq!(endpoint.metric("sidelink_breaker_state{state=\"closed\"}").await, 1.0);
    }
}

#[tokio::test]
async fn with_an_unknown_coding_of_a_part_the_batch_is_fetched_as_it_was_written() {
    let endpoint = Endpoint::start("content-encoding: exi\r\n", |_| b"only its endpoint can read this".to_vec()).await;
    let ids: Vec<String> = (0..150).map(|id| id.to_string()).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let reply = endpoint.batch(&ids).await;
    assert_eq!((reply.ids().len(), reply.header("cache-status")), (150, "sidelink; fwd=bypass; detail=not-json"));
    assert_eq!(endpoint.metric(r#"sidelink_bypass_total{reason="not-json"}"#).await, 1.0);
    let last = endpoint.heads.lock().unwrap().last().cloned().unwrap();
    assert!(last.contains(&query(&ids)), "{last}");
}

#[tokio::test]
async fn invalid_codings_and_those_beyond_the_limit_are_a_502() {
    let codings: [(&str, Code); 6] = [
        ("content-encoding: zstd\r\n", gzip),
        ("content-encoding: deflate\r\n", |text| zlib(text)[..20].to_vec()),
        ("content-encoding: br, gzip\r\n", gzip),
        ("content-encoding: zstd\r\n", |_| zstd(&vec![b' '; 10 << 20])),
        ("content-encoding: deflate\r\n", |_| zlib(&vec![b' '; 10 << 20])),
        ("content-encoding: gzip, gzip\r\n", |_| gzip(&gzip(&vec![b' '; 10 << 20]))),
    ];
    for (headers, code) in codings {
        let endpoint = Endpoint::start(headers, code).await;
        let reply = endpoint.batch(&["1"]).await;
        assert_eq!((reply.status.as_u16(), reply.json()["error_code"].as_str()), (502, Some("SIDELINK.1001")));
    }
}
