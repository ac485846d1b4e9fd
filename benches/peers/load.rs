//! The load of a comparison: as many requests as will go, over keep-alive connections, from one core.
//!
//! `load ADDRESS FILE TOKEN CONNECTIONS SECONDS` cycles through FILE, a target on each line, one request at a time on
//! each connection, and prints one line of JSON. It is written to cost little, so that the server's core is full first:
//! requests are written out beforehand, and of an answer only its status, its length and its last bytes are looked at. It
//! never sleeps, so no server pays for waking it.
//! wrk reads in steps of 8 KiB, and its core is full first where an answer has a hundred links.

use std::cell::Cell;
use std::error::Error;
use std::io::{self, Write};
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::{Duration, Instant};

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::task::LocalSet;

/// Every answer is a list of links.
const END: &[u8] = b"]}";
/// At first; grows with an answer that is larger.
const BUFFER_BYTES: usize = 256 << 10;

/// What all connections share.
struct Load {
    requests: Vec<Vec<u8>>,
    next: Cell<usize>,
    end: Instant,
}

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [address, file, token, connections, seconds] = arguments.as_slice() else {
        return Err("usage: load ADDRESS FILE TOKEN CONNECTIONS SECONDS".into());
    };
    let (address, connections): (SocketAddr, usize) = (address.parse()?, connections.parse()?);
    let targets = std::fs::read_to_string(file)?;
    let write =
        |target| format!("GET {target} HTTP/1.1\r\nHost: {address}\r\nX-Auth-Token: {token}\r\n\r\n").into_bytes();
    let requests: Vec<_> = targets.lines().map(write).collect();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (elapsed, mut times) = LocalSet::new().block_on(&runtime, async {
        // Never sleeps: a server that has to wake it for an answer would pay for that by an interrupt, the more often the slower
        // it is.
        tokio::task::spawn_local(async {
            loop {
                tokio::task::yield_now().await;
            }
        });
        let mut streams = Vec::with_capacity(connections);
        for _ in 0..connections {
            streams.push(TcpStream::connect(address).await?);
        }
        let began = Instant::now();
        let end = began + Duration::from_secs(seconds.parse()?);
        let load = Rc::new(Load { requests, next: Cell::new(0), end });
        let tasks: Vec<_> =
            streams.into_iter().map(|stream| tokio::task::spawn_local(drive(stream, Rc::clone(&load)))).collect();
        let mut times = Vec::new();
        for task in tasks {
            times.extend(task.await??);
        }
        Ok::<_, Box<dyn Error>>((began.elapsed(), times))
    })?;
    times.sort_unstable();
    let milliseconds = |share: usize| {
        let time = times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
        time.as_secs_f64() * 1000.0
    };
    let (rate, p50, p99) = (times.len() as f64 / elapsed.as_secs_f64(), milliseconds(50), milliseconds(99));
    writeln!(io::stdout(), r#"{{"rate": {rate:.1}, "p50": {p50:.3}, "p99": {p99:.3}}}"#)?;
    Ok(())
}

/// Asks over one connection until the end; how long each answer took.
async fn drive(mut stream: TcpStream, load: Rc<Load>) -> io::Result<Vec<Duration>> {
    stream.set_nodelay(true)?;
    let mut times = Vec::new();
    let mut buffer = vec![0; BUFFER_BYTES];
    let mut began = Instant::now();
    while began < load.end {
        let at = load.next.get();
        load.next.set(at + 1);
        let request = at.checked_rem(load.requests.len()).and_then(|at| load.requests.get(at));
        stream.write_all(request.ok_or_else(|| wrong("no requests"))?).await?;
        read_answer(&mut stream, &mut buffer).await?;
        let now = Instant::now();
        times.push(now - began);
        began = now;
    }
    Ok(times)
}

/// Reads one answer to its end.
async fn read_answer(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    let (mut filled, mut whole) = (0, None);
    loop {
        let Some(room) = buffer.get_mut(filled..).filter(|room| !room.is_empty()) else {
            buffer.resize(buffer.len() * 2, 0);
            continue;
        };
        match stream.read(room).await? {
            0 => return Err(wrong("the connection ended")),
            read => filled += read,
        }
        let had = buffer.get(..filled).unwrap_or_default();
        if whole.is_none() {
            whole = length(had)?;
        }
        match whole {
            Some(whole) if filled == whole && had.ends_with(END) => return Ok(()),
            Some(whole) if filled >= whole => return Err(wrong("not a list of links")),
            _ => {}
        }
    }
}

/// The bytes of an answer, head included; `None` until its head is there.
fn length(had: &[u8]) -> io::Result<Option<usize>> {
    let Some(head) = had.windows(4).position(|four| four == b"\r\n\r\n").and_then(|end| had.get(..end)) else {
        return Ok(None);
    };
    if !head.starts_with(b"HTTP/1.1 200") {
        return Err(wrong(&String::from_utf8_lossy(head)));
    }
    let value = head.split(|byte| *byte == b'\n').find_map(|line| {
        let (name, value) = line.split_at_checked(15)?;
        name.eq_ignore_ascii_case(b"content-length:").then_some(value)
    });
    let body = value.and_then(|value| std::str::from_utf8(value).ok()?.trim().parse::<usize>().ok());
    body.map(|body| Some(head.len() + 4 + body)).ok_or_else(|| wrong("an answer without a length"))
}

fn wrong(reason: &str) -> io::Error {
    io::Error::other(reason.to_owned())
}
