//! What is allowed once and not without end; and more than there is room for.

use std::time::Duration;

use sidelink::demo::origin::Origin;
use sidelink::demo::origin::interface as api;
use tokio::time::timeout;

use super::frames::*;
use crate::process::{Files, Process};
use crate::support::{Stack, origin_options, query};

const ECHO: &str = "/v2/servicerequest/echo";
/// CANCEL, REFUSED_STREAM, ENHANCE_YOUR_CALM (RFC 9113 §7).
const REFUSED: u32 = 7;
const CANCEL: u32 = 8;
const CALM: u32 = 11;

/// A megabyte from the endpoint, streamed.
const DOWNLOAD: &str = "/v2/servicerequest/accessorys/1?bytes=1000000";

async fn others_are_served(stack: &Stack) {
    let answer = timeout(Duration::from_secs(60), stack.client.batch("other", &["1"])).await;
    assert_eq!(answer.expect("others wait").status, 200);
}

#[tokio::test]
async fn streams_that_are_opened_and_reset_without_end_end_the_connection() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let batch = query(&["1", "2"]);
    let mut client = Http2::connect(stack.client.address).await;
    let flood: Vec<u8> = (0..20_000)
        .flat_map(|number| {
            let stream = 1 + 2 * number;
            let head = frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&get(&batch)));
            [head, frame(RST_STREAM, 0, stream, &CANCEL.to_be_bytes())].concat()
        })
        .collect();
    client.write(&flood).await;
    assert_eq!(client.over_with().await, Some(CALM));
    // Those that were looked at before have joined one flight for each id.
    assert!(stack.asked().len() <= 2, "{:?}", stack.asked());
    stack.origin.release();
    others_are_served(&stack).await;
}

#[tokio::test]
async fn streams_that_a_client_has_reset_by_its_own_mistakes_end_the_connection_as_well() {
    let stack = Stack::start().await;
    let mut client = Http2::connect(stack.client.address).await;
    let flood: Vec<u8> = (0..2_000)
        .flat_map(|number| {
            let stream = 1 + 2 * number;
            let head = frame(HEADERS, END_HEADERS, stream, &block(&head("POST", ECHO)));
            [head, frame(WINDOW_UPDATE, 0, stream, &[0x7f, 0xff, 0xff, 0xff])].concat()
        })
        .collect();
    client.write(&flood).await;
    assert_eq!(client.over_with().await, Some(CALM));
    others_are_served(&stack).await;
}

#[tokio::test]
async fn a_head_of_continuations_without_end_ends_the_connection() {
    let stack = Stack::start().await;
    for piece in [&b""[..], &block(&[("x", "y")])] {
        let mut client = Http2::connect(stack.client.address).await;
        client.frame(HEADERS, 0, 1, &block(&get(ECHO))).await;
        client.write(&frame(CONTINUATION, 0, 1, piece).repeat(20_000)).await;
        assert_eq!(client.over_with().await, Some(CALM), "{piece:?}");
    }
    others_are_served(&stack).await;
}

#[tokio::test]
async fn data_without_data_ends_the_connection() {
    let stack = Stack::start().await;
    let mut client = Http2::connect(stack.client.address).await;
    let stream = client.ask(&head("POST", ECHO), false).await;
    client.write(&frame(DATA, 0, stream, b"").repeat(20_000)).await;
    assert_eq!(client.over_with().await, Some(CALM));
    others_are_served(&stack).await;
}

#[tokio::test]
async fn floods_that_only_take_work_hold_up_nobody_and_end_when_they_end() {
    let stack = Stack::start().await;
    for flood in [
        frame(SETTINGS, 0, 0, &[0, 4, 0, 0, 0xff, 0xff]),
        frame(SETTINGS, 0, 0, &[]),
        frame(PING, 0, 0, &[7; 8]),
        frame(PING, ACK, 0, &[7; 8]),
        frame(PRIORITY, 0, 1, &[0, 0, 0, 0, 9]),
        frame(WINDOW_UPDATE, 0, 0, &[0, 0, 0, 1]),
        frame(0xfa, 0, 0, &[0; 100]),
    ] {
        let mut client = Http2::connect(stack.client.address).await;
        for _ in 0..20 {
            client.write(&flood.repeat(500)).await;
            others_are_served(&stack).await;
            // Reads all that these have brought.
            client.settle().await;
        }
        assert_eq!(client.exchange(&get(ECHO)).await.status(), 200, "{flood:?}");
        assert_eq!(client.goaways, [0_u32; 0]);
    }
}

#[tokio::test]
async fn heads_have_a_limit_in_bytes_and_the_connection_goes_on() {
    let stack = Stack::start().await;
    let long = "x".repeat(13_000);
    let mut client = Http2::connect(stack.client.address).await;
    let mut too_long = |fields: Vec<(&str, &str)>| {
        let stream = client.stream();
        let block = block(&fields);
        let mut pieces: Vec<_> = block.chunks(16 << 10).map(|piece| (CONTINUATION, 0, piece.to_vec())).collect();
        pieces[0] = (HEADERS, END_STREAM, pieces[0].2.clone());
        pieces.last_mut().unwrap().1 |= END_HEADERS;
        let frames = pieces.into_iter().flat_map(|(kind, flags, piece)| frame(kind, flags, stream, &piece));
        (stream, frames.collect::<Vec<u8>>())
    };
    let extra = |count| [get(ECHO), vec![("x", long.as_str()); count]].concat();
    let many = [get(ECHO), vec![("x", "y"); 2_000]].concat();
    let below = [get(ECHO), vec![("x", "y"); 80]].concat();
    let requests = [(extra(4), 200), (extra(6), 431), (many, 431), (below, 200)].map(|(fields, status)| {
        let (stream, frames) = too_long(fields);
        (stream, frames, status)
    });
    for (stream, frames, status) in requests {
        client.write(&frames).await;
        assert_eq!(client.end(stream).await.status(), status);
    }
    // A target is part of it.
    let target = format!("{ECHO}?{}", "x".repeat(15_000));
    assert_eq!(client.exchange(&get(&target)).await.status(), 200);
}

#[tokio::test]
async fn a_stream_beyond_a_hundred_is_refused_and_the_others_are_answered() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let mut client = Http2::connect(stack.client.address).await;
    let mut streams = Vec::new();
    for number in 0..100 {
        streams.push(client.ask(&get(&query(&[&number.to_string()])), true).await);
    }
    client.settle().await;
    for _ in 0..3 {
        assert_eq!(client.exchange(&get(ECHO)).await, End::Reset(REFUSED, None));
    }
    stack.origin.release();
    for stream in streams {
        assert_eq!(client.end(stream).await.status(), 200);
    }
    assert_eq!(client.exchange(&get(ECHO)).await.status(), 200);
}

#[tokio::test]
async fn a_client_that_goes_away_still_gets_its_answers() {
    let stack = Stack::start().await;
    stack.origin.hold();
    let mut client = Http2::connect(stack.client.address).await;
    let stream = client.ask(&get(&query(&["1"])), true).await;
    stack.origin.arrived(1).await;
    client.frame(GOAWAY, 0, 0, &[0; 8]).await;
    client.settle().await;
    stack.origin.release();
    assert_eq!(client.end(stream).await.status(), 200);
    assert_eq!(client.over_with().await, Some(0));
}

#[tokio::test]
async fn an_answer_that_its_client_gives_no_room_is_given_up_and_what_it_held_is_free() {
    let stack = Stack::with(|_| {}, |config| config.limits.idle_timeout = Duration::from_millis(300)).await;
    stack.client.batch("t", &["1"]).await;
    for settings in [&[(4, 0)][..], &[]] {
        let mut client =
            Http2::over(tokio::net::TcpStream::connect(stack.client.address).await.unwrap(), settings).await;
        client.makes_room = false;
        let downloads = [client.ask(&get(DOWNLOAD), true).await, client.ask(&get(DOWNLOAD), true).await];
        for stream in downloads {
            assert_eq!(client.end(stream).await, End::Reset(CANCEL, Some(200)));
            assert!(client.received(stream) <= 65_535);
        }
    }
}

/// Regression: each stream held a copy of its answer, half a megabyte for a thousand links, as long as nobody read it.
#[tokio::test]
async fn large_answers_that_nobody_reads_share_the_links_that_they_are_made_of() {
    let origin = Origin::start(origin_options()).await.unwrap();
    let process = Process::start(&Files::new(origin.address()).write("log.access = false")).await;
    let ids: Vec<String> = (0..1000).map(|id| id.to_string()).collect();
    let target = format!("{}?accessory_ids={}", api::PATH, ids.join(","));
    let whole = process.client.get(&target, &[("x-auth-token", "t")]).await;
    assert!(whole.body.len() > 400_000);
    let before = process.metric("process_resident_memory_bytes").await;
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Http2::connect_without_room(process.address).await;
        let mut streams = Vec::new();
        for _ in 0..100 {
            streams.push(client.ask(&get(&target), true).await);
        }
        for stream in &streams {
            client.begun(*stream).await;
        }
        clients.push((client, streams[99]));
    }
    let held = process.metric("process_resident_memory_bytes").await - before;
    assert!(held < 100e6, "{held} bytes for 400 answers of {}", whole.body.len());
    // And whoever reads at last gets all of it.
    let (client, stream) = &mut clients[0];
    client.room(0, 1 << 20).await;
    client.room(*stream, 1 << 20).await;
    let End::Answered(200, body) = client.end(*stream).await else { panic!("it was given up") };
    assert_eq!(body, whole.body);
}

#[tokio::test]
async fn one_stream_without_room_costs_the_others_nothing() {
    let stack = Stack::start().await;
    let mut client = Http2::connect_without_room(stack.client.address).await;
    let stuck = client.ask(&get(DOWNLOAD), true).await;
    for number in 0..200 {
        let (stream, id) = (client.stream(), number.to_string());
        client.frame(HEADERS, END_HEADERS | END_STREAM, stream, &block(&get(&query(&[&id])))).await;
        client.room(stream, 1 << 20).await;
        assert_eq!(client.end(stream).await.status(), 200);
    }
    client.room(stuck, 1 << 20).await;
    let End::Answered(200, body) = client.end(stuck).await else { panic!("it was given up") };
    assert_eq!(body.len(), 1_000_000);
}

#[tokio::test]
async fn a_batch_whose_body_does_not_end_is_refused_in_time() {
    let stack = Stack::with(|_| {}, |config| config.limits.idle_timeout = Duration::from_millis(300)).await;
    let mut client = Http2::connect(stack.client.address).await;
    let stream = client.ask(&get(api::PATH), false).await;
    client.frame(DATA, 0, stream, br#"{"accessory_ids":["#).await;
    let End::Answered(400, body) = client.end(stream).await else { panic!("it is awaited") };
    assert!(body.contains("SIDELINK.0005"), "{body}");
    assert_eq!(stack.asked().len(), 0);
}

#[tokio::test]
async fn a_body_on_another_route_that_does_not_end_is_given_up() {
    let stack = Stack::with(|_| {}, |config| config.upstream.idle_timeout = Duration::from_millis(300)).await;
    let mut client = Http2::connect(stack.client.address).await;
    let stream = client.ask(&head("POST", ECHO), false).await;
    client.frame(DATA, 0, stream, b"abc").await;
    let end = client.end(stream).await;
    assert!(matches!(end, End::Answered(400 | 504, _)), "{end:?}");
    assert_eq!(client.exchange(&get(ECHO)).await.status(), 200);
}
