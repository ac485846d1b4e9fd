//! Content codings of an answer (RFC 9110 §8.4), undone within a bound.

use std::io::{self, Read};

use bytes::Bytes;
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, ETAG};

use crate::error::NoAnswer;

/// Undoes gzip and br; an unknown coding is left as it came. `limit` bounds the decoded bytes.
///
/// # Errors
/// If the coding does not hold, or the body grows over `limit`.
pub(super) fn decode(headers: &mut HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, NoAnswer> {
    let mut codings = headers.get_all(CONTENT_ENCODING).iter();
    let coding = match (codings.next(), codings.next()) {
        (Some(coding), None) => coding.as_bytes().to_ascii_lowercase(),
        _ => return Ok(body),
    };
    let decoded = match coding.as_slice() {
        b"gzip" | b"x-gzip" => read(flate2::read::MultiGzDecoder::new(body.as_ref()), limit)?,
        b"br" => read(brotli_decompressor::Decompressor::new(body.as_ref(), 4096), limit)?,
        _ => return Ok(body),
    };
    headers.remove(CONTENT_ENCODING);
    headers.remove(CONTENT_LENGTH);
    headers.remove(ETAG); // It named the coded bytes.
    Ok(decoded)
}

fn read(decoder: impl Read, limit: usize) -> Result<Bytes, NoAnswer> {
    let mut decoded = Vec::new();
    // One byte more than allowed tells "just fits" from "goes on".
    let most = u64::try_from(limit).unwrap_or(u64::MAX).saturating_add(1);
    io::copy(&mut decoder.take(most), &mut decoded).map_err(|_| NoAnswer::Unreadable)?;
    if decoded.len() > limit {
        return Err(NoAnswer::TooLong);
    }
    Ok(decoded.into())
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn gzip(text: &[u8]) -> Bytes {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(text).unwrap();
        encoder.finish().unwrap().into()
    }

    fn headers(coding: &str) -> HeaderMap {
        HeaderMap::from_iter([(CONTENT_ENCODING, coding.parse().unwrap())])
    }

    #[test]
    fn gzip_is_undone_and_its_header_goes() {
        let mut headers = headers("GZip");
        assert_eq!(decode(&mut headers, gzip(b"hello"), 5), Ok(Bytes::from("hello")));
        assert!(headers.is_empty());
    }

    #[test]
    fn brotli_is_undone() {
        // "hello" as one uncompressed meta-block.
        let coded = Bytes::from_static(&[0x0b, 0x02, 0x80, b'h', b'e', b'l', b'l', b'o', 0x03]);
        assert_eq!(decode(&mut headers("br"), coded, 5), Ok(Bytes::from("hello")));
    }

    #[test]
    fn a_bomb_stops_at_the_limit() {
        let bomb = gzip(&vec![0; 10_000_000]);
        assert!(bomb.len() < 20_000);
        assert_eq!(decode(&mut headers("gzip"), bomb, 1_000_000), Err(NoAnswer::TooLong));
    }

    #[test]
    fn a_broken_coding_is_no_answer_and_an_unknown_one_is_left_alone() {
        assert_eq!(decode(&mut headers("gzip"), Bytes::from("hello"), 99), Err(NoAnswer::Unreadable));
        let cut = gzip(b"hello").slice(..15);
        assert_eq!(decode(&mut headers("gzip"), cut, 99), Err(NoAnswer::Unreadable));
        let mut unknown = headers("zstd");
        assert_eq!(decode(&mut unknown, Bytes::from("hello"), 99), Ok(Bytes::from("hello")));
        assert!(unknown.contains_key(CONTENT_ENCODING));
    }
}
