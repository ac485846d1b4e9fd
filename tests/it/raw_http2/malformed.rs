//! What must not be sent: a request that two readers would take for two different ones, and frames that make no sense.

use super::frames::*;
use crate::support::{Stack, query};

const ECHO: &str = "/v2/servicerequest/echo";
/// PROTOCOL_ERROR, FLOW_CONTROL_ERROR and FRAME_SIZE_ERROR (RFC 9113 §7). h2 says the first where the RFC often has a narrower
/// one.
const PROTOCOL: u32 = 1;
const FLOW_CONTROL: u32 = 3;
const FRAME_SIZE: u32 = 6;

/// What becomes of a request by these fields; and whether one behind it, on the same connection, is answered.
async fn outcome(stack: &Stack, fields: &[(&str, &str)]) -> (End, bool) {
    let mut client = Http2::connect(stack.client.address).await;
    let end = client.exchange(fields).await;
    let goes_on = matches!(client.exchange(&get(ECHO)).await, End::Answered(200, _));
    (end, goes_on)
}

/// Both routes' heads, with `extra` at the end.
fn with<'t>(batch: &'t str, extra: (&'t str, &'t str)) -> [Vec<(&'t str, &'t str)>; 2] {
    [head("POST", ECHO), get(batch)].map(|head| [head, vec![extra]].concat())
}

#[tokio::test]
async fn a_request_that_readers_may_take_for_another_is_reset_and_the_connection_goes_on() {
    let stack = Stack::start().await;
    let batch = query(&["1"]);
    let mut requests: Vec<Vec<(&str, &str)>> = Vec::new();
    for extra in [
        (":method", "GET"),
        (":scheme", "http"),
        (":path", "/b"),
        (":authority", "a"),
        (":status", "200"),
        (":protocol", "websocket"),
        ("connection", "close"),
        ("connection", "x-auth-token"),
        ("transfer-encoding", "chunked"),
        ("keep-alive", "1"),
        ("proxy-connection", "x"),
        ("upgrade", "h2c"),
        ("te", "gzip"),
        ("content-length", "3"),
        ("content-length", "x"),
        ("content-length", "-0"),
    ] {
        requests.extend(with(&batch, extra));
    }
    for missing in [":method", ":scheme", ":path"] {
        requests.push(get(&batch).into_iter().filter(|field| field.0 != missing).collect());
    }
    // A pseudo-header behind others.
    requests.push(vec![(":method", "GET"), (":scheme", "http"), ("x", "y"), (":path", ECHO), (":authority", "a")]);
    for path in ["", "a", "/a b", "/a\r\nb", "/a\0", "/a\x7f", "/a<", "http://b/"] {
        requests.push(get(path));
    }
    for authority in ["", "a b", "a/b", "a\r\n"] {
        requests.push(vec![(":method", "GET"), (":scheme", "http"), (":path", ECHO), (":authority", authority)]);
    }
    for request in requests {
        assert_eq!(outcome(&stack, &request).await, (End::Reset(PROTOCOL, None), true), "{request:?}");
    }
    assert_eq!(stack.asked().len(), 0);
}

#[tokio::test]
async fn fields_that_cannot_be_fields_end_the_connection() {
    let stack = Stack::start().await;
    let batch = query(&["1"]);
    for extra in [
        ("X-Upper", "a"),
        ("x", "a\r\nb: c"),
        ("x", "a\nb"),
        ("x", "a\rb"),
        ("x", "a\0b"),
        ("x", "a\x01b"),
        ("x", "a\x7fb"),
        ("x y", "a"),
        ("x:", "a"),
        ("", "a"),
        ("x\r\ny", "a"),
        ("x\0", "a"),
        (":x", "y"),
    ] {
        for request in with(&batch, extra) {
            assert_eq!(outcome(&stack, &request).await, (End::GoneAway(PROTOCOL), false), "{request:?}");
        }
    }
    for method in ["", "G T", "G\r\nT"] {
        let end = outcome(&stack, &head(method, ECHO)).await;
        assert_eq!(end, (End::GoneAway(PROTOCOL), false), "{method:?}");
    }
    assert_eq!(stack.asked().len(), 0);
}

#[tokio::test]
async fn two_names_for_one_host_or_none_are_refused() {
    let stack = Stack::start().await;
    let batch = query(&["1"]);
    let head = |authority: Option<&'static str>, hosts: &[&'static str]| {
        let mut fields =
            vec![(":method", "GET"), (":scheme", "http"), (":path", batch.as_str()), ("x-auth-token", "t")];
        if let Some(authority) = authority {
            fields.insert(3, (":authority", authority));
        }
        fields.extend(hosts.iter().map(|host| ("host", *host)));
        fields
    };
    for (authority, hosts) in [
        (None, &[][..]),
        (Some("a"), &["b"]),
        (Some("a"), &["a:80"]),
        (Some("a"), &["a", "a"]),
        (None, &["a", "b"]),
        (None, &["u@a"]),
        (Some("u@a"), &[]),
        (Some("u@a"), &["u@a"]),
    ] {
        let (end, goes_on) = outcome(&stack, &head(authority, hosts)).await;
        assert!(matches!(&end, End::Answered(400, body) if body.contains("SIDELINK.0005")), "{hosts:?}: {end:?}");
        assert!(goes_on);
    }
    assert_eq!(stack.asked().len(), 0);
    for (authority, hosts) in [(Some("a"), &[][..]), (Some("a:80"), &["A:80"]), (None, &["a"])] {
        assert_eq!(outcome(&stack, &head(authority, hosts)).await.0.status(), 200, "{authority:?} {hosts:?}");
    }
}

#[tokio::test]
async fn no_tunnel_no_asterisk_and_no_other_place_than_the_endpoint() {
    let stack = Stack::start().await;
    let tunnel = [(":method", "CONNECT"), (":authority", "a:80")];
    assert_eq!(outcome(&stack, &tunnel).await.0.status(), 405);
    // RFC 8441 was not offered.
    let extended = [head("CONNECT", ECHO), vec![(":protocol", "websocket")]].concat();
    assert_eq!(outcome(&stack, &extended).await.0, End::Reset(PROTOCOL, None));
    assert_eq!(outcome(&stack, &head("OPTIONS", "*")).await.0.status(), 400);
    // Whatever the authority, one endpoint is asked; two slashes are a path.
    assert_eq!(outcome(&stack, &get("//b/")).await.0.status(), 404);
    let (end, _) =
        outcome(&stack, &[(":method", "GET"), (":scheme", "ftp"), (":path", ECHO), (":authority", "b")]).await;
    assert!(matches!(&end, End::Answered(200, body) if body.contains(&stack.origin.address().to_string())), "{end:?}");
}

/// What becomes of a POST whose head says `length`, if anything, and whose data comes in `pieces`.
async fn posted(stack: &Stack, length: Option<&str>, pieces: &[&[u8]]) -> End {
    let mut client = Http2::connect(stack.client.address).await;
    let fields = [head("POST", ECHO), length.map(|length| ("content-length", length)).into_iter().collect()].concat();
    let stream = client.ask(&fields, false).await;
    for (at, piece) in pieces.iter().enumerate() {
        client.frame(DATA, if at + 1 == pieces.len() { END_STREAM } else { 0 }, stream, piece).await;
    }
    let end = client.end(stream).await;
    assert!(matches!(client.exchange(&get(ECHO)).await, End::Answered(200, _)), "the connection goes on: {end:?}");
    end
}

#[tokio::test]
async fn a_length_is_that_of_the_data() {
    let stack = Stack::start().await;
    for length in [None, Some("5")] {
        let end = posted(&stack, length, &[b"ab", b"", b"cde"]).await;
        assert!(matches!(&end, End::Answered(200, body) if body.contains(r#""body":"abcde""#)), "{end:?}");
    }
    for length in ["4", "6", "0", "99999999999999999999"] {
        let end = posted(&stack, Some(length), &[b"ab", b"cde"]).await;
        // What came before it was seen may have been forwarded: the endpoint sees a body that breaks off.
        assert!(matches!(end, End::Reset(PROTOCOL, _) | End::Answered(400, _)), "{length}: {end:?}");
    }
}

#[tokio::test]
async fn padding_priorities_continuations_and_trailers_are_read_and_go_no_further() {
    let stack = Stack::start().await;
    let mut client = Http2::connect(stack.client.address).await;
    let fields = block(&head("POST", ECHO));
    let (first, rest) = fields.split_at(20);
    let stream = client.stream();
    let padded = [&[3], &[0, 0, 0, 0, 7][..], first, &[0; 3]].concat();
    client.frame(HEADERS, PADDED | PRIORITIZED, stream, &padded).await;
    client.frame(CONTINUATION, 0, stream, &rest[..10]).await;
    client.frame(CONTINUATION, END_HEADERS, stream, &rest[10..]).await;
    client.frame(PRIORITY, 0, stream, &[0, 0, 0, 0, 9]).await;
    client.frame(0xfa, 0xff, stream, b"nobody knows this one").await;
    client.frame(DATA, PADDED, stream, b"\x02abc\0\0").await;
    client
        .frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&[("x-auth-token", "other"), ("x", "trailer")]))
        .await;
    let End::Answered(200, body) = client.end(stream).await else { panic!("no answer") };
    assert!(body.contains(r#""body":"abc""#) && !body.contains("trailer") && !body.contains("other"), "{body}");
}

/// With which GOAWAY a connection ends on which these bytes follow the preface and one answered request.
async fn ended_by(stack: &Stack, bytes: &[u8]) -> Option<u32> {
    let mut client = Http2::connect(stack.client.address).await;
    assert_eq!(client.exchange(&get(ECHO)).await.status(), 200);
    client.write(bytes).await;
    client.over_with().await
}

#[tokio::test]
async fn frames_that_make_no_sense_end_the_connection_and_say_why() {
    let stack = Stack::start().await;
    let request = block(&get(ECHO));
    let whole = END_HEADERS | END_STREAM;
    for (what, bytes, code) in [
        ("data on no stream", frame(DATA, 0, 0, b"x"), PROTOCOL),
        ("data on a stream that never was", frame(DATA, 0, 9, b"x"), PROTOCOL),
        ("a head on no stream", frame(HEADERS, whole, 0, &request), PROTOCOL),
        ("a stream of the server's", frame(HEADERS, whole, 2, &request), PROTOCOL),
        ("a promise", frame(PUSH_PROMISE, END_HEADERS, 3, &[&[0, 0, 0, 4], &request[..]].concat()), PROTOCOL),
        ("a continuation of nothing", frame(CONTINUATION, END_HEADERS, 3, &request), PROTOCOL),
        ("a ping within a head", [frame(HEADERS, 0, 3, &request), frame(PING, 0, 0, &[0; 8])].concat(), PROTOCOL),
        (
            "another stream's continuation",
            [frame(HEADERS, 0, 3, &request), frame(CONTINUATION, END_HEADERS, 5, &[])].concat(),
            PROTOCOL,
        ),
        ("more padding than payload", frame(DATA, PADDED, 1, b"\xffa"), PROTOCOL),
        ("a reset of a stream that never was", frame(RST_STREAM, 0, 9, &[0; 4]), PROTOCOL),
        ("no room at all", frame(WINDOW_UPDATE, 0, 0, &[0; 4]), PROTOCOL),
        ("room beyond all bounds", frame(WINDOW_UPDATE, 0, 0, &[0x7f, 0xff, 0xff, 0xff]), FLOW_CONTROL),
        ("a window beyond all bounds", frame(SETTINGS, 0, 0, &[0, 4, 0xff, 0, 0, 0]), PROTOCOL),
        ("a frame size that is none", frame(SETTINGS, 0, 0, &[0, 5, 0, 0, 0, 1]), PROTOCOL),
        ("settings on a stream", frame(SETTINGS, 0, 1, &[]), PROTOCOL),
        ("settings of no length", frame(SETTINGS, 0, 0, &[0; 5]), PROTOCOL),
        ("an acknowledgement that says more", frame(SETTINGS, ACK, 0, &[0; 6]), PROTOCOL),
        ("an acknowledgement of nothing", frame(SETTINGS, ACK, 0, &[]), PROTOCOL),
        ("a short ping", frame(PING, 0, 0, &[0; 7]), PROTOCOL),
        ("a ping on a stream", frame(PING, 0, 1, &[0; 8]), PROTOCOL),
        ("a short reset", frame(RST_STREAM, 0, 1, &[0; 3]), PROTOCOL),
        ("a short window", frame(WINDOW_UPDATE, 0, 0, &[0; 3]), PROTOCOL),
        ("a frame longer than allowed", frame(DATA, 0, 1, &vec![0; (16 << 10) + 1]), FRAME_SIZE),
        ("a head that cannot be read", frame(HEADERS, whole, 3, &[0xff; 20]), PROTOCOL),
        ("a field of no table", frame(HEADERS, whole, 3, &[0xfe]), PROTOCOL),
        ("a head on a stream that is over", frame(HEADERS, whole, 1, &request), PROTOCOL),
    ] {
        assert_eq!(ended_by(&stack, &bytes).await, Some(code), "{what}");
    }
    // Others notice nothing.
    assert_eq!(stack.client.batch("t", &["1"]).await.status, 200);
}

#[tokio::test]
async fn what_does_not_begin_as_http2_is_not_http2() {
    let stack = Stack::start().await;
    for beginning in ["PRI * HTTP/2.0\r\n\r\nXX\r\n\r\n", "PRI * HTTP/2.0\r\nhost: a\r\n\r\n", "PRI * HTTP/1.1\r\n\r\n"]
    {
        let answer = crate::support::raw(stack.client.address, beginning.as_bytes()).await;
        assert!(answer.starts_with("HTTP/1.1 400 "), "{beginning:?}: {answer}");
    }
}
