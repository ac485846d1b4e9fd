//! Requests and answers that were recorded as text: head and body, as `curl -i` or an editor writes them. The body is the rest of the
//! file, whatever Content-Length says: values in it may have been replaced.

use bytes::Bytes;
use http::header::CONTENT_LENGTH;
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, Uri};

/// Reads a request: its line, its headers and, after an empty line, its body. Lines end in CRLF or LF.
///
/// # Errors
/// What is wrong, with the line; no text of the file, which may be a secret.
pub fn request(text: &[u8]) -> Result<Request<Bytes>, String> {
    let (line, headers, body) = message(text)?;
    let mut words = line.split_ascii_whitespace();
    let (Some(method), Some(target), None | Some("HTTP/1.0" | "HTTP/1.1" | "HTTP/2" | "HTTP/2.0"), None) =
        (words.next(), words.next(), words.next(), words.next())
    else {
        return Err("line 1 is no request line, such as \"GET /path HTTP/1.1\"".to_owned());
    };
    let mut request = Request::new(body);
    *request.method_mut() = Method::from_bytes(method.as_bytes()).map_err(|_| "line 1 begins with no method")?;
    *request.uri_mut() = target.parse::<Uri>().map_err(|_| "the target in line 1 is no path or URL")?;
    *request.headers_mut() = headers;
    Ok(request)
}

/// Reads an answer: its status line, its headers and, after an empty line, its body. Interim answers (1xx) before it are skipped.
///
/// # Errors
/// What is wrong, with the line; no text of the file.
pub fn response(text: &[u8]) -> Result<Response<Bytes>, String> {
    let mut text = text;
    loop {
        let (line, headers, body) = message(text)?;
        let mut words = line.split_ascii_whitespace();
        let status = match (words.next(), words.next().map(str::parse::<StatusCode>)) {
            (Some(version), Some(Ok(status))) if version.starts_with("HTTP/") => status,
            _ => return Err("its first line is no status line, such as \"HTTP/1.1 200 OK\"".to_owned()),
        };
        if status.is_informational() {
            (_, text) = split_head(text).ok_or("it ends after an interim answer")?;
            continue;
        }
        let mut response = Response::new(body);
        *response.status_mut() = status;
        *response.headers_mut() = headers;
        return Ok(response);
    }
}

/// First line, headers and body.
fn message(text: &[u8]) -> Result<(&str, HeaderMap, Bytes), String> {
    // Without an empty line, all is head.
    let (head, body) = split_head(text).unwrap_or((text, &[]));
    let mut lines = head.split(|byte| *byte == b'\n').map(|line| line.strip_suffix(b"\r").unwrap_or(line));
    let first = lines.next().and_then(|line| std::str::from_utf8(line).ok()).ok_or("line 1 is no text")?;
    let mut headers = HeaderMap::new();
    for (at, line) in lines.enumerate().filter(|(_, line)| !line.is_empty()) {
        let at = at + 2;
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(0);
        let (name, value) = line.split_at_checked(colon).unwrap_or_default();
        let name =
            HeaderName::from_bytes(name).map_err(|_| format!("line {at} is no header, such as \"Name: value\""))?;
        let value = HeaderValue::from_bytes(value.get(1..).unwrap_or_default().trim_ascii());
        let value = value.map_err(|_| format!("the header in line {at} has no valid value"))?;
        headers.try_append(name, value).map_err(|_| format!("line {at} is one header too many"))?;
    }
    let length = headers.get(CONTENT_LENGTH).and_then(|value| value.to_str().ok()?.parse().ok());
    // Removes line ends that an editor has added, except those that Content-Length counts as part of the body.
    let text = trim_newlines(body);
    let body =
        length.and_then(|length: usize| body.get(..length)).filter(|body| body.len() > text.len()).unwrap_or(text);
    Ok((first, headers, Bytes::copy_from_slice(body)))
}

/// Head and body, around the first empty line.
fn split_head(text: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut from = 0;
    loop {
        let end = from + text.get(from..)?.iter().position(|byte| *byte == b'\n')?;
        if matches!(text.get(from..end)?, b"" | b"\r") {
            return Some((text.get(..from)?, text.get(end + 1..)?));
        }
        from = end + 1;
    }
}

fn trim_newlines(mut text: &[u8]) -> &[u8] {
    while let [rest @ .., b'\r' | b'\n'] = text {
        text = rest;
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_ends_of_either_kind_are_read_and_missing_headers_are_fine() {
        for end in ["\n", "\r\n"] {
            let text = ["POST /a?b=1 HTTP/1.1", "Authorization:  Basic x ", "", "{\"a\":", "1}", ""].join(end);
            let read = request(text.as_bytes()).unwrap();
            assert_eq!((read.method(), read.uri().to_string()), (&Method::POST, "/a?b=1".to_owned()));
            assert_eq!(read.headers()["authorization"], "Basic x");
            assert_eq!(read.body(), format!("{{\"a\":{end}1}}").as_bytes(), "the last line end is the editor's");
        }
        let bare = request(b"GET https://h/a").unwrap();
        assert_eq!((bare.uri().path(), bare.headers().len(), bare.body().len()), ("/a", 0, 0));
        let exact = request(b"POST / HTTP/1.1\ncontent-length: 3\n\n1\n\n\n").unwrap();
        assert_eq!(exact.body(), "1\n\n");
    }

    #[test]
    fn a_body_that_was_edited_is_read_to_its_end_whatever_its_content_length_says() {
        for length in ["3", "11", "99", "x"] {
            let text = format!("HTTP/1.1 200 OK\ncontent-length: {length}\n\n{{\"a\":\"REPLACED\"}}\n");
            assert_eq!(response(text.as_bytes()).unwrap().body(), "{\"a\":\"REPLACED\"}", "{length}");
        }
    }

    #[test]
    fn an_answer_is_read_after_interim_ones() {
        let read = response(b"HTTP/1.1 100 Continue\r\n\r\nHTTP/2 200 \r\ncontent-type: a/b\r\n\r\n{}\n").unwrap();
        assert_eq!((read.status(), read.body().as_ref()), (StatusCode::OK, &b"{}"[..]));
        assert_eq!(read.headers()["content-type"], "a/b");
    }

    #[test]
    fn what_is_no_message_is_told_by_its_line_without_its_text() {
        for (text, error) in [
            ("", "line 1 is no request line, such as \"GET /path HTTP/1.1\""),
            ("{\"SECRET\":1}", "line 1 is no request line, such as \"GET /path HTTP/1.1\""),
            ("GET /a b c", "line 1 is no request line, such as \"GET /path HTTP/1.1\""),
            ("GET /\u{e9} HTTP/1.1", ""),
            ("GET / HTTP/1.1\nHost: h\nSECRET", "line 3 is no header, such as \"Name: value\""),
            ("GET / HTTP/1.1\nHost: h\n SECRET: x", "line 3 is no header, such as \"Name: value\""),
            ("GET / HTTP/1.1\nHost: SECRET\u{1}", "the header in line 2 has no valid value"),
        ] {
            let found = request(text.as_bytes()).map(|_| ()).err().unwrap_or_default();
            assert!(!found.contains("SECRET") && (error.is_empty() || found == error), "{text}: {found}");
        }
        let many: String = (0..=1 << 15).map(|number| format!("{number}:\n")).collect();
        let found = request(format!("GET / HTTP/1.1\n{many}").as_bytes()).unwrap_err();
        assert!(found.ends_with("is one header too many"), "{found}");
        assert!(response(b"GET / HTTP/1.1\n\n").is_err() && response(b"HTTP/1.1 100 Continue\n\n").is_err());
    }
}
