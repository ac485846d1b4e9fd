//! Requests that HTTP/1 forbids and hyper would let pass are refused.
//!
//! A head with both `Content-Length` and `Transfer-Encoding` is how a request is smuggled past whoever reads the other one.
//! hyper takes such a body as chunked and closes, as the RFC allows; a handler cannot tell, since the length is gone by
//! then. So a connection's bytes are watched on their way to hyper, and the second of the two headers is made unreadable:
//! hyper answers that with a 400 and closes, before any handler sees it (RFC 9112 §6.3). So is a fragment in a target
//! (§3.2), which hyper would cut off, so that what is forwarded would not be what was asked. And a bare line feed among a
//! chunked body's trailers, which ends a line to some and none to hyper, so that the next request would begin at another
//! byte. Should this reading of a connection ever differ from hyper's, hyper's own rule is still there.

use memchr::{memchr, memchr2};

const LENGTH: &[u8] = b"content-length";
const ENCODING: &[u8] = b"transfer-encoding";
/// No byte of a header's name or a target, and none that a parser may skip.
const UNREADABLE: u8 = 0;

/// Where a connection's next byte belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Before a request line; empty lines may stand there.
    Start,
    RequestLine,
    /// In the name of a header, so many bytes after its first.
    Name(usize),
    /// In the rest of a header's line.
    Line,
    /// In the value of Content-Length.
    Length,
    /// In a body with so many bytes left.
    Body(u64),
    /// In the line that says how long a chunk is.
    ChunkSize(u64),
    /// In the rest of that line.
    ChunkExtension(u64),
    /// In a chunk with so many bytes left, its line's end included.
    Chunk(u64),
    /// At the start of a trailer's line.
    Trailer,
    TrailerLine,
    /// After the carriage return that ends such a line; an empty one ends the body.
    TrailerEnd {
        empty: bool,
    },
    /// After a line feed that was made a carriage return: nothing that may follow one is to follow it.
    Spoilt,
    /// In what hyper refuses, and so no longer anywhere.
    Lost,
}

/// The framing of the requests on one HTTP/1 connection.
#[derive(Debug)]
pub(super) struct Framing {
    place: Place,
    /// Of the header's name that is being read, as long as it may be one of the two.
    name: [u8; ENCODING.len()],
    /// Of the head that is being read.
    length: Option<u64>,
    chunked: bool,
}

impl Framing {
    pub(super) fn new() -> Self {
        Self { place: Place::Start, name: [0; ENCODING.len()], length: None, chunked: false }
    }

    /// Whether the client is not in the middle of anything.
    pub(super) fn is_between_requests(&self) -> bool {
        self.place == Place::Start
    }

    /// Whether the client is in the middle of a body.
    pub(super) fn is_in_body(&self) -> bool {
        !matches!(
            self.place,
            Place::Start | Place::RequestLine | Place::Name(_) | Place::Line | Place::Length | Place::Lost
        )
    }

    /// Follows `bytes`, the next of the connection, and spoils them where they hold a second framing, a fragment, or a
    /// bare line feed among trailers.
    pub(super) fn watch(&mut self, bytes: &mut [u8]) {
        let mut at = 0;
        while let Some(rest) = bytes.get_mut(at..)
            && !rest.is_empty()
            && self.place != Place::Lost
        {
            at += self.step(rest).max(1);
        }
    }

    /// Follows as much of `rest`, which is not empty, as belongs to one place; how much that was.
    fn step(&mut self, rest: &mut [u8]) -> usize {
        let Some(&byte) = rest.first() else { return 0 };
        match self.place {
            Place::Start => {
                if !matches!(byte, b'\r' | b'\n') {
                    self.place = Place::RequestLine;
                }
                1
            }
            Place::RequestLine => self.request_line(rest),
            Place::Line => skip_line(rest, &mut self.place, Place::Name(0)),
            Place::Name(read) => {
                self.name_byte(read, byte, rest);
                1
            }
            Place::Length => {
                self.length_byte(byte);
                1
            }
            Place::Body(left) => {
                let taken = taken(rest.len(), left);
                self.place = match left - taken as u64 {
                    0 => Place::Start,
                    left => Place::Body(left),
                };
                taken
            }
            Place::ChunkSize(size) => {
                self.place = match (byte as char).to_digit(16) {
                    Some(digit) => {
                        size.checked_mul(16).map_or(Place::Lost, |size| Place::ChunkSize(size + u64::from(digit)))
                    }
                    None if byte == b'\n' => chunk(size),
                    None => Place::ChunkExtension(size),
                };
                1
            }
            Place::ChunkExtension(size) => skip_line(rest, &mut self.place, chunk(size)),
            Place::Chunk(left) => {
                let taken = taken(rest.len(), left);
                self.place = match left - taken as u64 {
                    0 => Place::ChunkSize(0),
                    left => Place::Chunk(left),
                };
                taken
            }
            Place::Trailer | Place::TrailerLine => self.trailer(rest),
            Place::TrailerEnd { empty } => {
                self.place = match byte {
                    b'\n' if empty => Place::Start,
                    b'\n' => Place::Trailer,
                    _ => Place::Lost,
                };
                1
            }
            Place::Spoilt => {
                if let Some(byte) = rest.first_mut() {
                    *byte = UNREADABLE;
                }
                self.place = Place::Lost;
                1
            }
            Place::Lost => rest.len(),
        }
    }

    fn request_line(&mut self, rest: &mut [u8]) -> usize {
        let Some(end) = memchr2(b'\n', b'#', rest) else { return rest.len() };
        self.place = match rest.get_mut(end) {
            Some(fragment) if *fragment == b'#' => {
                *fragment = UNREADABLE;
                Place::Lost
            }
            _ => Place::Name(0),
        };
        end + 1
    }

    fn trailer(&mut self, rest: &mut [u8]) -> usize {
        let begins = self.place == Place::Trailer;
        let Some(end) = memchr2(b'\r', b'\n', rest) else {
            self.place = Place::TrailerLine;
            return rest.len();
        };
        self.place = match rest.get_mut(end) {
            Some(bare) if *bare == b'\n' => {
                // hyper reads a trailer to its carriage return and then insists on a line feed.
                *bare = b'\r';
                Place::Spoilt
            }
            _ => Place::TrailerEnd { empty: begins && end == 0 },
        };
        end + 1
    }

    /// `byte` is the first of `rest`, and the one after `read` of the name.
    fn name_byte(&mut self, read: usize, byte: u8, rest: &mut [u8]) {
        self.place = match byte {
            b':' => return self.named(read, rest),
            b'\n' if read == 0 => self.head_over(),
            b'\n' => Place::Lost,
            b'\r' if read == 0 => Place::Name(0),
            // Most names are told from both by their first letter.
            _ if read == 0 && !matches!(byte | 0x20, b'c' | b't') => Place::Line,
            _ => match self.name.get_mut(read) {
                Some(place) => {
                    *place = byte.to_ascii_lowercase();
                    Place::Name(read + 1)
                }
                None => Place::Line,
            },
        };
    }

    /// A name is over with the first byte of `rest`.
    fn named(&mut self, read: usize, rest: &mut [u8]) {
        let name = self.name.get(..read);
        let (length, encoding) = (name == Some(LENGTH), name == Some(ENCODING));
        if (length && self.chunked) || (encoding && self.length.is_some()) {
            if let Some(colon) = rest.first_mut() {
                *colon = UNREADABLE;
            }
            self.place = Place::Lost;
            return;
        }
        self.chunked |= encoding;
        self.place = if length { Place::Length } else { Place::Line };
        if length {
            self.length = Some(0);
        }
    }

    /// A value that is no number, or two that differ, are hyper's to refuse.
    fn length_byte(&mut self, byte: u8) {
        self.place = match (byte, self.length) {
            (b'\n', _) => Place::Name(0),
            (b'0'..=b'9', Some(length)) => {
                let length = length.checked_mul(10).and_then(|length| length.checked_add(u64::from(byte - b'0')));
                self.length = length;
                if length.is_some() { Place::Length } else { Place::Lost }
            }
            _ => Place::Length,
        };
    }

    /// Where the byte after a head belongs. The next head starts anew.
    fn head_over(&mut self) -> Place {
        let (length, chunked) = (self.length.take(), std::mem::take(&mut self.chunked));
        match length {
            _ if chunked => Place::ChunkSize(0),
            None | Some(0) => Place::Start,
            Some(length) => Place::Body(length),
        }
    }
}

/// After the line of a chunk of `size` bytes; the last has none.
fn chunk(size: u64) -> Place {
    match size {
        0 => Place::Trailer,
        size => size.checked_add(2).map_or(Place::Lost, Place::Chunk),
    }
}

fn taken(available: usize, wanted: u64) -> usize {
    usize::try_from(wanted).map_or(available, |wanted| wanted.min(available))
}

/// Goes on after the line's end, which may not be here yet; how many bytes were its own.
fn skip_line(rest: &[u8], place: &mut Place, after: Place) -> usize {
    match memchr(b'\n', rest) {
        Some(end) => {
            *place = after;
            end + 1
        }
        None => rest.len(),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// What becomes of a stream that comes in pieces.
    fn watched(stream: &[u8], piece: usize) -> Vec<u8> {
        let mut framing = Framing::new();
        let mut stream = stream.to_vec();
        for piece in stream.chunks_mut(piece) {
            framing.watch(piece);
        }
        stream
    }

    fn is_spoilt(stream: &str) -> bool {
        let spoilt = |piece| {
            let after = watched(stream.as_bytes(), piece);
            let changed: Vec<(u8, u8)> = stream.bytes().zip(after).filter(|(before, after)| before != after).collect();
            let spoilt = matches!(changed.as_slice(), [(b':' | b'#', 0)] | [(b'\n', b'\r')] | [(b'\n', b'\r'), (_, 0)]);
            assert!(spoilt || changed.is_empty(), "{changed:?}");
            !changed.is_empty()
        };
        let whole = spoilt(stream.len());
        for piece in 1..stream.len() {
            assert_eq!(spoilt(piece), whole, "in pieces of {piece}: {stream:?}");
        }
        whole
    }

    #[test]
    fn a_head_with_both_framings_is_spoilt_in_whatever_order_case_and_pieces() {
        for both in [
            "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
            "transfer-encoding: chunked\r\nHost: x\r\ncontent-length: 3\r\n",
            "TRANSFER-ENCODING:chunked\ncOnTeNt-LeNgTh:0\n",
            "content-length: 0\r\ntransfer-encoding: identity\r\n",
        ] {
            assert!(is_spoilt(&format!("POST / HTTP/1.1\r\n{both}\r\n")), "{both}");
        }
    }

    #[test]
    fn a_target_with_a_fragment_is_spoilt() {
        assert!(is_spoilt("GET /a#b HTTP/1.1\r\nhost: x\r\n\r\n"));
        assert!(!is_spoilt("GET /a HTTP/1.1\r\nhost: x\r\nx: #\r\n\r\n"));
    }

    #[test]
    fn a_bare_line_feed_among_trailers_is_spoilt() {
        let head = "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n2\r\nhi\r\n0\r\n";
        for trailers in
            ["\n", "\n\r\n", "x: y\n\n", "x: y\n\r\n", "x: y\r\n\n", "x: y\r\nz\n: \r\n\r\n", "x: y\nz: w\r\n\r\n"]
        {
            assert!(is_spoilt(&format!("{head}{trailers}GET / HTTP/1.1\r\n\r\n")), "{trailers:?}");
        }
        for trailers in ["\r\n", "x: y\r\n\r\n", "x: y\r\nz: w\r\n\r\n"] {
            assert!(!is_spoilt(&format!("{head}{trailers}GET / HTTP/1.1\nhost: x\n\n")), "{trailers:?}");
        }
    }

    #[test]
    fn what_only_looks_like_a_second_framing_passes() {
        for head in [
            "content-length: 3\r\nx-transfer-encoding: chunked\r\ntransfer-encodings: chunked\r\n\r\nabc",
            "transfer-encoding: chunked\r\nx: content-length: 3\r\ncontent-lengthy: 3\r\n\r\n0\r\n\r\n",
            "content-length: 40\r\n\r\ntransfer-encoding: chunked\r\ncontent-length",
            "content-length: 3\r\ncontent-length: 3\r\n\r\nabc",
        ] {
            assert!(!is_spoilt(&format!("POST / HTTP/1.1\r\n{head}")), "{head}");
        }
    }

    #[test]
    fn every_request_of_a_connection_is_watched_whatever_the_bodies_before() {
        let both = "POST / HTTP/1.1\r\ncontent-length: 3\r\ntransfer-encoding: chunked\r\n\r\n";
        for before in [
            "GET / HTTP/1.1\r\nhost: x\r\n\r\n",
            "\r\n\r\nGET / HTTP/1.1\nhost: x\n\n",
            "POST / HTTP/1.1\r\ncontent-length: 12\r\n\r\nhello\r\n\r\nyou",
            "POST / HTTP/1.1\r\ncontent-length: 0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nA;x=\"y\"\r\n0123456789\r\n1\r\nx\r\n0\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\n0\r\ncontent-length: 7\r\nb: c\r\n\r\n",
        ] {
            assert!(is_spoilt(&format!("{before}{both}")), "{before:?}");
            assert!(is_spoilt(&format!("{before}{before}{both}")), "{before:?} twice");
            assert!(!is_spoilt(&format!("{before}{before}")), "{before:?} alone");
        }
    }

    #[test]
    fn lengths_that_no_number_holds_are_left_to_hyper() {
        for stream in [
            "POST / HTTP/1.1\r\ncontent-length: 99999999999999999999\r\ntransfer-encoding: chunked\r\n\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nfffffffffffffffff\r\n",
            "POST / HTTP/1.1\r\ntransfer-encoding: chunked\r\n\r\nffffffffffffffff\r\n",
        ] {
            assert!(!is_spoilt(stream), "{stream}");
        }
    }

    proptest! {
        #[test]
        fn however_a_stream_is_cut_the_same_becomes_of_it(
            parts in proptest::collection::vec(proptest::sample::select(vec![
                "GET / HTTP/1.1\r\n", "content-length: 5\r\n", "content-length:", "transfer-encoding: chunked\r\n", "host: x\r\n",
                "\r\n", "\n", "5\r\n", "0\r\n", "hello", ":", " ", "f",
            ]), 0..24),
            piece in 1_usize..9,
        ) {
            let stream = parts.concat();
            prop_assert_eq!(watched(stream.as_bytes(), piece), watched(stream.as_bytes(), stream.len().max(1)));
        }

        #[test]
        fn no_bytes_panic(mut bytes in proptest::collection::vec(any::<u8>(), 0..300)) {
            Framing::new().watch(&mut bytes);
        }
    }
}
