//! How many instructions a batch costs that is all in memory, counted by valgrind's callgrind: the same each time, whatever
//! else the machine does.
//!
//! - `query-N`, `body-N`: the handler alone, N ids, batches that do not repeat; `repeated-N`: batches that come again as they were.
//! - `server-N`, `server-repeated-N`: a whole server over TCP with one connection, and a token of 800 bytes; `hyper-N`: bare hyper
//!   that answers with as many bytes.
//! - `lfs-N`, `lfs-repeated-N`, `server-lfs-N`, `server-lfs-repeated-N`, `hyper-lfs-N`: the same for git-lfs, whose batches are bodies
//!   of a POST (bare hyper reads them, too), and whose answers say in how many seconds each link expires.
//!
//! `cargo bench --bench instructions` compares with `benches/instructions.txt` and fails where a batch costs more than 3 %
//! more than recorded; `-- --record` writes that file anew; `-- CASE` counts one. The counts are those of the machine's architecture
//! and of this compiler: another one needs its own record.

#![allow(clippy::unwrap_used, clippy::panic, clippy::print_stdout, clippy::indexing_slicing)]

mod support;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Command, ExitCode, Stdio};
use std::sync::Arc;

use http::{Request, Response};
use http_body::Body as _;
use http_body_util::{BodyExt, Full};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use sidelink::config::{Config, Endpoint};
use sidelink::demo::origin::interface as api;
use sidelink::server::{ConnLimits, Protocol, serve_connection};
use tokio::net::TcpListener;

use support::{Form, SIZES, Warm, ids, lfs, query, request};

const RECORD: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/benches/instructions.txt");
const ALLOWED: f64 = 1.03;
/// What a run does besides its batches cancels out between a short one and a long one.
const BATCHES: [usize; 2] = [200, 1200];
const LINKS: usize = 2000;
/// Different batches where they repeat, so that none is in the processor's caches as a whole.
const REPEATED: usize = 50;
/// A token as long as those of IAM.
const TOKEN_BYTES: usize = 800;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    match arguments.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
        [_, "run", case, batches] => answer(case, batches.parse().unwrap()),
        [_, "serve", case] => serve(case),
        arguments => return compare(arguments),
    }
    ExitCode::SUCCESS
}

fn compare(arguments: &[&str]) -> ExitCode {
    let recorded = read();
    let mut counted = BTreeMap::new();
    let mut worse = false;
    println!("{:<20} {:>12} {:>12} {:>8}", "batch", "instructions", "recorded", "ratio");
    let all = cases();
    let named: Vec<&String> = all.iter().filter(|case| arguments.contains(&case.as_str())).collect();
    for case in if named.is_empty() { all.iter().collect() } else { named } {
        let [short, long] = BATCHES.map(|batches| count(case, batches));
        let each = (long - short) / (BATCHES[1] - BATCHES[0]) as u64;
        let before = recorded.get(case).copied();
        let ratio = before.map(|before| each as f64 / before as f64);
        worse |= ratio.is_some_and(|ratio| ratio > ALLOWED);
        let shown = |value: Option<String>| value.unwrap_or_else(|| "-".to_owned());
        let (before, ratio) = (shown(before.map(|n| n.to_string())), shown(ratio.map(|ratio| format!("{ratio:.3}"))));
        println!("{case:<20} {each:>12} {before:>12} {ratio:>8}");
        counted.insert(case.clone(), each);
    }
    if arguments.contains(&"--record") {
        let lines: String = counted.iter().map(|(case, each)| format!("{case} {each}\n")).collect();
        std::fs::write(RECORD, lines).unwrap();
        return ExitCode::SUCCESS;
    }
    if worse {
        println!("a batch costs more than recorded: find out why, or record it anew with `-- --record` and say why");
        return ExitCode::FAILURE;
    }
    ExitCode::SUCCESS
}

fn cases() -> Vec<String> {
    let of_query = ["query", "body", "repeated", "server", "server-repeated", "hyper"];
    let kinds = of_query.iter().chain(&["lfs", "lfs-repeated", "server-lfs", "server-lfs-repeated", "hyper-lfs"]);
    SIZES.iter().flat_map(|size| kinds.clone().map(move |kind| format!("{kind}-{size}"))).collect()
}

fn kind_and_size(case: &str) -> (&str, usize) {
    let (kind, size) = case.rsplit_once('-').unwrap();
    (kind, size.parse().unwrap())
}

fn read() -> BTreeMap<String, u64> {
    let text = std::fs::read_to_string(RECORD).unwrap_or_default();
    let lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.map(|(case, each)| (case.to_owned(), each.parse().unwrap())).collect()
}

/// Instructions of a run of `case`.
fn count(case: &str, batches: usize) -> u64 {
    let (kind, size) = kind_and_size(case);
    let is_server = kind.starts_with("server") || kind.starts_with("hyper");
    let mut valgrind = Command::new("valgrind");
    valgrind.args(["--tool=callgrind", "--callgrind-out-file=/dev/null"]).arg(std::env::current_exe().unwrap());
    if is_server {
        valgrind.args(["serve", case]);
    } else {
        valgrind.args(["run", case, &batches.to_string()]);
    }
    let mut child = valgrind
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("valgrind: {error}; install it"));
    if is_server {
        let mut address = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut address).unwrap();
        ask(address.trim(), kind, size, batches);
    }
    let output = child.wait_with_output().unwrap();
    let report = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{report}");
    let collected =
        report.lines().find_map(|line| line.split_once("Collected : ")).unwrap_or_else(|| panic!("{report}"));
    collected.1.trim().parse().unwrap()
}

fn form(kind: &str) -> Form {
    match kind {
        "body" => Form::Body,
        kind if kind.contains("lfs") => Form::Lfs,
        _ => Form::Query,
    }
}

/// The first id of a run's batch.
fn first(kind: &str, size: usize, number: usize) -> usize {
    if kind.ends_with("repeated") { number % REPEATED * size % (LINKS - size) } else { number }
}

fn answer(case: &str, batches: usize) {
    let (kind, size) = kind_and_size(case);
    let form = form(kind);
    let warm = Warm::of(form, LINKS);
    // Made before, as many in a short run as in a long one.
    let requests: Vec<_> = (0..BATCHES[1]).map(|number| request(form, &ids(first(kind, size, number), size))).collect();
    warm.runtime.block_on(async {
        for request in requests.into_iter().take(batches) {
            std::hint::black_box(warm.hit(request).await);
        }
    });
}

/// Serves one connection, and prints its address.
fn serve(case: &str) {
    let (kind, size) = kind_and_size(case);
    let form = form(kind);
    let is_hyper = kind.starts_with("hyper");
    let warm = Warm::of(form, if is_hyper { size } else { 0 });
    let constant = is_hyper.then(|| warm.runtime.block_on(warm.hit(request(form, &ids(0, size)))));
    warm.runtime.block_on(async {
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        println!("{}", listener.local_addr().unwrap());
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        if let Some(body) = constant {
            let answer = service_fn(move |request: Request<hyper::body::Incoming>| {
                let response = Response::new(Full::new(body.clone()));
                // The body alone: a request is large, and moving it takes time.
                let asked = request.into_body();
                async move {
                    if !asked.is_end_stream() {
                        asked.collect().await?;
                    }
                    Ok::<_, hyper::Error>(response)
                }
            });
            http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await.unwrap();
        } else {
            let limits = ConnLimits::from(&Config::for_endpoint(Endpoint::parse("http://h").unwrap()).limits);
            let proxy = Arc::new(warm.proxy);
            let connection = Arc::default();
            let answer = move |request| proxy.answer(request, &connection);
            serve_connection(Protocol::Any, stream, limits, Default::default(), answer).await.unwrap();
        }
    });
}

/// Sends a server its batches over one connection, after those that fill its memory.
fn ask(address: &str, kind: &str, size: usize, batches: usize) {
    let mut stream = TcpStream::connect(address).unwrap();
    let token = "t".repeat(TOKEN_BYTES);
    let mut send = |ids: &[String]| {
        let request = match form(kind) {
            Form::Lfs => {
                let (target, body) = lfs().batch(ids);
                let headers = lfs().headers.iter().filter(|(name, _)| *name != "authorization");
                let headers: String = headers.map(|(name, value)| format!("{name}: {value}\r\n")).collect();
                let length = body.len();
                format!(
                    "POST {target} HTTP/1.1\r\nHost: {address}\r\nAuthorization: Bearer {token}\r\n{headers}\
                     Content-Length: {length}\r\n\r\n{body}"
                )
            }
            _ => {
                format!("GET {}?{} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\n\r\n", api::PATH, query(ids))
            }
        };
        stream.write_all(request.as_bytes()).unwrap();
        let mut answer = Vec::new();
        let mut part = [0; 1 << 16];
        loop {
            let read = stream.read(&mut part).unwrap();
            assert!(read > 0, "{}", String::from_utf8_lossy(&answer));
            answer.extend_from_slice(&part[..read]);
            let Some(end) = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n") else { continue };
            let head = String::from_utf8_lossy(&answer[..end]).to_ascii_lowercase();
            let length = head.lines().find_map(|line| line.strip_prefix("content-length: ")).unwrap();
            if answer.len() == end + 4 + length.parse::<usize>().unwrap() {
                return head;
            }
        }
    };
    for first in (0..LINKS).step_by(100) {
        send(&ids(first, 100));
    }
    // Batches that repeat are whole answers before they are counted.
    for number in 0..if kind.ends_with("repeated") { 3 * REPEATED } else { 0 } {
        send(&ids(first(kind, size, number), size));
    }
    for number in 0..batches {
        let head = send(&ids(first(kind, size, number), size));
        assert!(kind.starts_with("hyper") || head.contains("cache-status: sidelink; hit\r\n"), "{head}");
    }
}
