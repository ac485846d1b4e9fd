//! HTTP/2 by hand: frames as they are wanted, also those that no library would send (RFC 9113 §4, §6; RFC 7541 §6.2.2).

use std::collections::HashMap;
use std::net::SocketAddr;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

pub const DATA: u8 = 0;
pub const HEADERS: u8 = 1;
pub const PRIORITY: u8 = 2;
pub const RST_STREAM: u8 = 3;
pub const SETTINGS: u8 = 4;
pub const PUSH_PROMISE: u8 = 5;
pub const PING: u8 = 6;
pub const GOAWAY: u8 = 7;
pub const WINDOW_UPDATE: u8 = 8;
pub const CONTINUATION: u8 = 9;

pub const ACK: u8 = 1;
pub const END_STREAM: u8 = 1;
pub const END_HEADERS: u8 = 4;
pub const PADDED: u8 = 8;
pub const PRIORITIZED: u8 = 32;

pub const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    [&length[1..], &[kind, flags], &stream.to_be_bytes(), payload].concat()
}

/// Fields as literals that no table remembers, none of them compressed.
pub fn block(fields: &[(&str, &str)]) -> Vec<u8> {
    let mut block = Vec::new();
    for (name, value) in fields {
        block.push(0);
        for text in [name, value] {
            integer(text.len(), &mut block);
            block.extend_from_slice(text.as_bytes());
        }
    }
    block
}

/// With a prefix of seven bits (RFC 7541 §5.1).
fn integer(value: usize, block: &mut Vec<u8>) {
    if value < 127 {
        block.push(u8::try_from(value).unwrap());
        return;
    }
    block.push(127);
    let mut rest = value - 127;
    while rest >= 128 {
        block.push(u8::try_from(rest % 128).unwrap() | 128);
        rest /= 128;
    }
    block.push(u8::try_from(rest).unwrap());
}

/// The head of a GET of `target`.
pub fn get(target: &str) -> Vec<(&str, &str)> {
    head("GET", target)
}

pub fn head<'t>(method: &'t str, target: &'t str) -> Vec<(&'t str, &'t str)> {
    vec![(":method", method), (":scheme", "http"), (":path", target), (":authority", "a"), ("x-auth-token", "t")]
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Frame {
    pub kind: u8,
    pub flags: u8,
    pub stream: u32,
    pub payload: Vec<u8>,
}

/// What has become of a stream.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum End {
    /// Its status and body.
    Answered(u16, String),
    /// By RST_STREAM with this code, after this status, if any.
    Reset(u32, Option<u16>),
    /// With its connection, by GOAWAY with this code.
    GoneAway(u32),
    /// With its connection, without a word.
    Closed,
}

impl End {
    pub fn status(&self) -> u16 {
        match self {
            End::Answered(status, _) => *status,
            other => panic!("no answer: {other:?}"),
        }
    }
}

#[derive(Default)]
struct Partial {
    status: Option<u16>,
    body: Vec<u8>,
    end: Option<End>,
}

/// A connection, and what was read of it.
pub struct Http2<IO> {
    pub io: IO,
    streams: HashMap<u32, Partial>,
    /// The codes of all GOAWAYs so far.
    pub goaways: Vec<u32>,
    /// Acknowledged pings and settings so far.
    pub acks: usize,
    pub closed: bool,
    /// Whether it gives back the room that bodies have taken.
    pub makes_room: bool,
    /// The longest that it waits for a frame.
    pub patience: Duration,
    next: u32,
}

impl Http2<TcpStream> {
    pub async fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self::over(stream, &[]).await
    }

    /// Whose streams have no room for an answer.
    pub async fn connect_without_room(address: SocketAddr) -> Self {
        Self::over(TcpStream::connect(address).await.unwrap(), &[(4, 0)]).await
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> Http2<IO> {
    /// With settings besides (RFC 9113 §6.5.2).
    pub async fn over(io: IO, settings: &[(u16, u32)]) -> Self {
        let mut http2 = Self {
            io,
            streams: HashMap::new(),
            goaways: Vec::new(),
            acks: 0,
            closed: false,
            makes_room: true,
            patience: Duration::from_secs(60),
            next: 1,
        };
        http2.write(PREFACE).await;
        // No table of fields, so that a status always stands there.
        http2.settings(&[&[(1, 0)], settings].concat()).await;
        http2
    }

    /// A server that has closed does not fail a test here: what it said before is to be read.
    pub async fn write(&mut self, bytes: &[u8]) {
        let _ = self.io.write_all(bytes).await;
    }

    pub async fn settings(&mut self, settings: &[(u16, u32)]) {
        let payload: Vec<u8> =
            settings.iter().flat_map(|(id, value)| [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()).collect();
        self.frame(SETTINGS, 0, 0, &payload).await;
    }

    pub async fn frame(&mut self, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
        self.write(&frame(kind, flags, stream, payload)).await;
    }

    pub async fn room(&mut self, stream: u32, bytes: u32) {
        self.frame(WINDOW_UPDATE, 0, stream, &bytes.to_be_bytes()).await;
    }

    /// Sends a head on a new stream; its number.
    pub async fn ask(&mut self, fields: &[(&str, &str)], ends: bool) -> u32 {
        let stream = self.next;
        self.next += 2;
        let flags = END_HEADERS | if ends { END_STREAM } else { 0 };
        self.frame(HEADERS, flags, stream, &block(fields)).await;
        stream
    }

    /// A number for a new stream.
    pub fn stream(&mut self) -> u32 {
        self.next += 2;
        self.next - 2
    }

    /// Sends a head, and reads what becomes of it.
    pub async fn exchange(&mut self, fields: &[(&str, &str)]) -> End {
        let stream = self.ask(fields, true).await;
        self.end(stream).await
    }

    pub async fn end(&mut self, stream: u32) -> End {
        loop {
            if let Some(end) = self.streams.get(&stream).and_then(|partial| partial.end.clone()) {
                return end;
            }
            if self.read().await.is_none() {
                return self.goaways.last().map_or(End::Closed, |code| End::GoneAway(*code));
            }
        }
    }

    /// Waits until the answer's head has come for `stream`.
    pub async fn begun(&mut self, stream: u32) {
        while self.streams.get(&stream).is_none_or(|partial| partial.status.is_none()) {
            self.read().await.expect("the connection stays open");
        }
    }

    /// Bytes of the body that have come for `stream` so far.
    pub fn received(&self, stream: u32) -> usize {
        self.streams.get(&stream).map_or(0, |partial| partial.body.len())
    }

    /// Reads to the end of the connection; with which GOAWAY it ended, if any.
    pub async fn over_with(&mut self) -> Option<u32> {
        while self.read().await.is_some() {}
        self.goaways.last().copied()
    }

    /// Waits until all that was sent so far has been taken note of.
    pub async fn settle(&mut self) {
        let before = self.acks;
        self.frame(PING, 0, 0, b"settled?").await;
        while self.acks == before && self.read().await.is_some() {}
    }

    /// The next frame, which is taken note of; `None` at the end.
    pub async fn read(&mut self) -> Option<Frame> {
        let frame = timeout(self.patience, self.read_frame()).await.expect("the connection stays open");
        let Some(frame) = frame else {
            self.closed = true;
            return None;
        };
        let partial = self.streams.entry(frame.stream).or_default();
        match frame.kind {
            HEADERS => partial.status = Some(status(&frame.payload)),
            DATA => partial.body.extend_from_slice(&frame.payload),
            RST_STREAM => {
                partial.end.get_or_insert(End::Reset(number(&frame.payload), partial.status));
            }
            GOAWAY => self.goaways.push(number(&frame.payload[4..])),
            PING if frame.flags & ACK != 0 && frame.payload == b"settled?" => self.acks += 1,
            PING if frame.flags & ACK == 0 => {
                let payload = frame.payload.clone();
                self.frame(PING, ACK, 0, &payload).await;
            }
            SETTINGS if frame.flags & ACK == 0 => self.frame(SETTINGS, ACK, 0, &[]).await,
            _ => {}
        }
        if matches!(frame.kind, HEADERS | DATA) && frame.flags & END_STREAM != 0 {
            let partial = self.streams.entry(frame.stream).or_default();
            let body = String::from_utf8_lossy(&partial.body).into_owned();
            partial.end = Some(End::Answered(partial.status.unwrap(), body));
        }
        if frame.kind == DATA && self.makes_room && !frame.payload.is_empty() {
            let bytes = u32::try_from(frame.payload.len()).unwrap();
            self.room(0, bytes).await;
            self.room(frame.stream, bytes).await;
        }
        Some(frame)
    }

    async fn read_frame(&mut self) -> Option<Frame> {
        let mut head = [0; 9];
        self.io.read_exact(&mut head).await.ok()?;
        let mut payload = vec![0; usize::try_from(number(&[0, head[0], head[1], head[2]])).unwrap()];
        self.io.read_exact(&mut payload).await.ok()?;
        Some(Frame { kind: head[3], flags: head[4], stream: number(&head[5..]) & 0x7fff_ffff, payload })
    }
}

fn number(bytes: &[u8]) -> u32 {
    u32::from_be_bytes(bytes[..4].try_into().unwrap())
}

/// The status that a block begins with: one of the static table, or three digits, which Huffman's code may have.
fn status(block: &[u8]) -> u16 {
    const STATIC: [u16; 7] = [200, 204, 206, 304, 400, 404, 500];
    // The size of a table may be said first (RFC 7541 §6.3).
    let at = block.iter().position(|byte| byte & 0xe0 != 0x20).unwrap();
    let block = &block[at..];
    if block[0] & 0x80 != 0 {
        return STATIC[usize::from(block[0] & 0x7f) - 8];
    }
    assert_eq!(block[0] & 0xf, 8, "a literal :status: {block:?}");
    let text = &block[2..2 + usize::from(block[1] & 0x7f)];
    if block[1] & 0x80 == 0 {
        return String::from_utf8_lossy(text).parse().unwrap();
    }
    // RFC 7541, Appendix B: 0 to 2 have five bits, the other digits six.
    let bits: Vec<u8> = text.iter().flat_map(|byte| (0..8).rev().map(move |bit| byte >> bit & 1)).collect();
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let take = |count| bits[at..at + count].iter().fold(0_u16, |value, bit| value << 1 | u16::from(*bit));
        let (digit, length) = if take(5) <= 2 { (take(5), 5) } else { (take(6) - 0x19 + 3, 6) };
        status = status * 10 + digit;
        at += length;
    }
    status
}
