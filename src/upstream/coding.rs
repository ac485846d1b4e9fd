//! Content codings of an answer (RFC 9110 §8.4), decoded within a bound.

use std::io::{self, Read};

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

/// Decodes a body into at most so many bytes.
type Decoder = fn(&[u8], usize) -> Result<Bytes, NoAnswer>;

/// Decodes a body, its last coding first; `limit` bounds the bytes after each. If one is not known, or there are more than four,
/// body and headers stay as they are: [`is_coded`] tells.
///
/// # Errors
/// If the body is not in the coding that its headers name, or grows over `limit`.
pub(super) fn decode(headers: &mut HeaderMap, body: Bytes, limit: usize) -> Result<Bytes, NoAnswer> {
    let Some(decoders) = decoders(headers).filter(|decoders| decoders.len() <= MOST_CODINGS) else { return Ok(body) };
    if !decoders.is_empty() {
        headers.remove(CONTENT_LENGTH);
        headers.remove(ETAG); // It named the coded bytes.
    }
    let decoded = decoders.iter().rev().try_fold(body, |body, decoder| decoder(&body, limit))?;
    headers.remove(CONTENT_ENCODING);
    Ok(decoded)
}

/// Whether an answer that has been through [`decode`] is in a coding that cannot be decoded.
pub(super) fn is_coded(headers: &HeaderMap) -> bool {
    headers.contains_key(CONTENT_ENCODING)
}

/// The decoders of all codings in the order in which they were applied; `None` if one is not known.
fn decoders(headers: &HeaderMap) -> Option<Vec<Decoder>> {
    let mut decoders: Vec<Decoder> = Vec::new();
    for value in headers.get_all(CONTENT_ENCODING) {
        for name in value.to_str().ok()?.split(',').map(|name| name.trim().to_ascii_lowercase()) {
            decoders.push(match name.as_str() {
                "" | "identity" => continue,
                "gzip" | "x-gzip" => |body, limit| read(MultiGzDecoder::new(body), limit),
                "deflate" => inflate,
                "br" => |body, limit| read(brotli_decompressor::Decompressor::new(body, 4096), limit),
                "zstd" => unzstd,
                _ => return None,
            });
        }
    }
    Some(decoders)
}

/// With a zlib header (RFC 1950 §2.2), or without, as some servers have it (RFC 9110 §8.4.1.2).
fn inflate(body: &[u8], limit: usize) -> Result<Bytes, NoAnswer> {
    match body {
        [method, flags, ..] if method & 0xf == 8 && u16::from_be_bytes([*method, *flags]) % 31 == 0 => {
            read(ZlibDecoder::new(body), limit)
        }
        _ => read(DeflateDecoder::new(body), limit),
    }
}

/// One frame after another.
fn unzstd(mut body: &[u8], limit: usize) -> Result<Bytes, NoAnswer> {
    let mut decoded = Vec::new();
    while !body.is_empty() {
        let frame = StreamingDecoder::new_with_max_window_size(&mut body, ZSTD_WINDOW);
        append(frame.map_err(|_| NoAnswer::Unreadable)?, &mut decoded, limit)?;
    }
    Ok(decoded.into())
}

fn read(decoder: impl Read, limit: usize) -> Result<Bytes, NoAnswer> {
    let mut decoded = Vec::new();
    append(decoder, &mut decoded, limit)?;
    Ok(decoded.into())
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
        for name in ["exi", "gzip, exi", "gzip, gzip, gzip, gzip, gzip", "gzip\u{e9}"] {
            let mut unknown = headers(name);
            assert_eq!(decode(&mut unknown, Bytes::from("hello"), 99), Ok(Bytes::from("hello")));
            assert!(is_coded(&unknown), "{name}");
        }
    }

    #[test]
    fn zstd_is_undone_frame_by_frame_and_within_its_window() {
        let zstd = |text: &[u8]| ruzstd::encoding::compress_to_vec(text, ruzstd::encoding::CompressionLevel::Fastest);
        // With a checksum, which nobody needs: what is not JSON is refused.
        let raw = [&[0x28, 0xb5, 0x2f, 0xfd, 4, 0x58, 0x19, 0, 0][..], b"hel", &[1, 2, 3, 4]].concat();
        let two = [raw, zstd(b"lo")].concat();
        assert_eq!(decode(&mut headers("zstd"), two.clone().into(), 5), Ok(Bytes::from("hello")));
        assert_eq!(decode(&mut headers("zstd"), two.into(), 4), Err(NoAnswer::TooLong));
        // A window of 16 MiB, for a raw last block of one byte.
        let far = Bytes::from_static(&[0x28, 0xb5, 0x2f, 0xfd, 0, 14 << 3, 9, 0, 0, b'x']);
        assert_eq!(decode(&mut headers("zstd"), far, 99), Err(NoAnswer::Unreadable));
        let near = Bytes::from_static(&[0x28, 0xb5, 0x2f, 0xfd, 0, 13 << 3, 9, 0, 0, b'x']);
        assert_eq!(decode(&mut headers("zstd"), near, 99), Ok(Bytes::from("x")));
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
