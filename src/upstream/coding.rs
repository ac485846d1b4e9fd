//! Content codings of an answer (RFC 9110 §8.4), decoded within a bound.

use std::io::{self, Read};

use brotli_decompressor::Decompressor;
use bytes::Bytes;
use flate2::read::{DeflateDecoder, MultiGzDecoder, ZlibDecoder};
use http::HeaderMap;
use http::header::{CONTENT_ENCODING, CONTENT_LENGTH, ETAG};
use ruzstd::decoding::StreamingDecoder;

use crate::error::NoAnswer;

/// Codings that one answer may have on top of each other: each costs as much as the bound allows.
const MOST_CODINGS: usize = 4;
/// The largest window of zstd as a content coding (RFC 9659).
const ZSTD_WINDOW: u64 = 8 << 20;

/// Appends what a body decodes to; fails beyond the limit of bytes.
type Decoder = fn(&[u8], &mut Vec<u8>, usize) -> Result<(), NoAnswer>;

/// Decodes a body, its last coding first; `limit` bounds the bytes after each. If one is not known, or there are more than four,
/// body and headers stay as they are.
///
/// # Errors
/// If the body is not in the coding that its headers name, or grows over `limit`.
pub(crate) fn decode(headers: &mut HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, NoAnswer> {
    let Some(decoders) = decoders(headers).filter(|decoders| decoders.len() <= MOST_CODINGS) else { return Ok(body) };
    if !decoders.is_empty() {
        headers.remove(CONTENT_LENGTH);
        headers.remove(ETAG); // It named the coded bytes.
    }
    let decoded = decoders.iter().rev().try_fold(body, |body, decoder| {
        let mut decoded = Vec::new();
        decoder(&body, &mut decoded, limit).map(|()| decoded.into())
    })?;
    headers.remove(CONTENT_ENCODING);
    Ok(decoded)
}

/// The decoders of all codings in the order in which they were applied; `None` if one is not known.
fn decoders(headers: &HeaderMap) -> Option<Vec<Decoder>> {
    let mut decoders: Vec<Decoder> = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.to_str().ok()?.split(',').map(|name| name.trim().to_ascii_lowercase()) {
            decoders.push(match name.as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => |body, decoded, limit| append(MultiGzDecoder::new(body), decoded, limit),
                "deflate" => inflate,
                "br" => |body, decoded, limit| append(Decompressor::new(body, 4096), decoded, limit),
                "zstd" => unzstd,
                _ => return None,
            });
        }
    }
    Some(decoders)
}

/// With a zlib header (RFC 1950 §2.2), or without, as some servers have it (RFC 9110 §8.4.1.2).
fn inflate(body: &[u8], decoded: &mut Vec<u8>, limit: usize) -> Result<(), NoAnswer> {
    match body {
        [method, flags, ..] if method & 0xf == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0 => {
            append(ZlibDecoder::new(body), decoded, limit)
        }
        _ => append(DeflateDecoder::new(body), decoded, limit),
    }
}

/// One frame after another.
fn unzstd(mut body: &[u8], decoded: &mut Vec<u8>, limit: usize) -> Result<(), NoAnswer> {
    while !body.is_empty() {
        let frame = StreamingDecoder::new_with_max_window_size(&mut body, ZSTD_WINDOW);
        append(frame.map_err(|_| NoAnswer::Unreadable)?, decoded, limit)?;
    }
    Ok(())
}

/// Appends to `decoded`, to `limit` bytes in all.
fn append(decoder: impl Read, decoded: &mut Vec<u8>, limit: usize) -> Result<(), NoAnswer> {
    // One byte more than allowed tells "just fits" from "goes on".
    let most = u64::try_from(limit.saturating_sub(decoded.len())).unwrap_or(u64::MAX).saturating_add(1);
    io::copy(&mut decoder.take(most), decoded).map_err(|_| NoAnswer::Unreadable)?;
    if decoded.len() > limit { Err(NoAnswer::TooLong) } else { Ok(()) }
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
    fn codings_are_undone_within_their_limits() {
        let zstd = |text: &[u8]| ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest);
        // With a checksum, which nobody needs: what is not JSON is refused.
        let raw = [&[0x28, 0xb5, 0x2f, 0xfd, 4, 0x58, 0x19, 0, 0][..], b"hel", &[1, 2, 3, 4]].concat();
        let two_frames = Bytes::from([raw, zstd(b"lo")].concat());
        // A last block of one byte, for which the frame asks for a window of this size.
        let window = |log: u8| Bytes::from(vec![0x28, 0xb5, 0x2f, 0xfd, 0, (log - 10) << 3, 9, 0, 0, b'x']);
        // "hello" as one uncompressed meta-block.
        let brotli = Bytes::from_static(&[0x0b, 0x02, 0x80, b'h', b'e', b'l', b'l', b'o', 0x03]);
        let bomb = gzip(&vec![0; 10_000_000]);
        assert!(bomb.len() < 20_000);
        for (coding, body, limit, expected) in [
            ("GZip", gzip(b"hello"), 5, Ok("hello")),
            ("gzip", bomb, 1_000_000, Err(NoAnswer::TooLong)),
            ("gzip", Bytes::from("hello"), 99, Err(NoAnswer::Unreadable)),
            ("gzip", gzip(b"hello").slice(..15), 99, Err(NoAnswer::Unreadable)),
            ("br", brotli, 5, Ok("hello")),
            ("zstd", two_frames.clone(), 5, Ok("hello")),
            ("zstd", two_frames, 4, Err(NoAnswer::TooLong)),
            ("zstd", window(24), 99, Err(NoAnswer::Unreadable)),
            ("zstd", window(23), 99, Ok("x")),
        ] {
            let mut headers = headers(coding);
            assert_eq!(decode(&mut headers, body, limit), expected.map(Bytes::from), "{coding} {limit}");
            assert_eq!(headers.is_empty(), expected.is_ok(), "{coding}");
        }
    }

    #[test]
    fn an_unknown_coding_is_left_alone() {
        for name in ["exi", "gzip, exi", "gzip, gzip, gzip, gzip, gzip", "gzip\u{e9}"] {
            let mut unknown = headers(name);
            assert_eq!(decode(&mut unknown, Bytes::from("hello"), 99), Ok(Bytes::from("hello")));
            assert!(unknown.contains_key(CONTENT_ENCODING), "{name}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_bytes_panic_in_any_coding(body in proptest::collection::vec(proptest::prelude::any::<u8>(), 0..200), magic: bool) {
            for name in ["gzip", "deflate", "br", "zstd"] {
                let magic: &[u8] = if magic && name == "zstd" { &[0x28, 0xb5, 0x2f, 0xfd] } else { &[] };
                let _ = decode(&mut headers(name), [magic, &body].concat().into(), 1 << 16);
            }
        }
    }
}
