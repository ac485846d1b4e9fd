//! Replaying overlapping batches and checking every answer.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use http::header::HOST;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1::{SendRequest, handshake};
use hyper_util::rt::TokioIo;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use serde::Deserialize;
use tokio::net::TcpStream;
use tokio::task::JoinSet;

use crate::api;
use crate::api::id::Group;
use crate::api::request::{Form, target};
use crate::demo::origin::link_is_for;

/// The demonstration's caller.
pub(super) const TOKEN: &str = "demo-token";
/// Its group.
const GROUP: &str = "demo";

/// The batches to replay.
pub(super) struct Plan {
    pub(super) batches: usize,
    pub(super) batch_ids: usize,
    pub(super) ids: usize,
    pub(super) exponent: f64,
    pub(super) connections: usize,
}

/// The result of a replay.
#[derive(Default)]
pub(super) struct Replay {
    pub(super) distinct_ids: usize,
    pub(super) distinct_batches: usize,
    pub(super) median: Duration,
    pub(super) p99: Duration,
    pub(super) wrong: usize,
    pub(super) first_wrong: String,
}

#[derive(Deserialize)]
struct Answer {
    accessory_urls: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    accessory_id: String,
    accessory_url: String,
}

/// Replays `plan` against the sidelink at `address`; calls `progress` with the number of batches done.
pub(super) async fn run(plan: &Plan, address: SocketAddr, progress: impl Fn(u64)) -> io::Result<Replay> {
    let batches = Arc::new(draw(plan)?);
    let mut replay = Replay {
        distinct_ids: batches.iter().flatten().collect::<HashSet<_>>().len(),
        distinct_batches: batches.iter().collect::<HashSet<_>>().len(),
        ..Replay::default()
    };
    let next = Arc::new(AtomicUsize::new(0));
    let (report, mut reports) = tokio::sync::mpsc::unbounded_channel();
    let mut clients = JoinSet::new();
    for _ in 0..plan.connections {
        let (batches, next, report) = (Arc::clone(&batches), Arc::clone(&next), report.clone());
        clients.spawn(async move {
            let mut connection = connect(address).await?;
            while let Some(batch) = batches.get(next.fetch_add(1, Ordering::Relaxed)) {
                let began = Instant::now();
                let checked = ask(&mut connection, address, batch).await.map_err(io::Error::other)?;
                // The receiver lives as long as this function.
                let _ = report.send((began.elapsed(), checked));
            }
            io::Result::Ok(())
        });
    }
    drop(report);

    let mut times = Vec::with_capacity(plan.batches);
    while let Some((time, checked)) = reports.recv().await {
        times.push(time);
        if let Err(reason) = checked {
            if replay.wrong == 0 {
                replay.first_wrong = reason;
            }
            replay.wrong += 1;
        }
        progress(times.len() as u64);
    }
    while let Some(client) = clients.join_next().await {
        client.map_err(io::Error::other)??;
    }
    // A batch without an answer counts as wrong.
    replay.wrong += plan.batches.saturating_sub(times.len());
    times.sort_unstable();
    let quantile = |share: usize| times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
    (replay.median, replay.p99) = (quantile(50), quantile(99));
    Ok(replay)
}

/// The batches, the same in every run.
fn draw(plan: &Plan) -> io::Result<Vec<Vec<String>>> {
    let zipf = Zipf::new(plan.ids as f64, plan.exponent).map_err(io::Error::other)?;
    let mut random = StdRng::seed_from_u64(1);
    let batches = (0..plan.batches).map(|_| {
        let mut batch: Vec<String> = Vec::with_capacity(plan.batch_ids);
        while batch.len() < plan.batch_ids.min(plan.ids) {
            let id = format!("{:.0}", zipf.sample(&mut random));
            if !batch.contains(&id) {
                batch.push(id);
            }
        }
        batch
    });
    Ok(batches.collect())
}

async fn connect(address: SocketAddr) -> io::Result<SendRequest<Empty<Bytes>>> {
    let stream = TcpStream::connect(address).await?;
    stream.set_nodelay(true)?;
    let (sender, connection) = handshake(TokioIo::new(stream)).await.map_err(io::Error::other)?;
    // Ends with the sender, whose next request gets its errors.
    tokio::spawn(connection);
    Ok(sender)
}

/// Asks for one batch; `Ok(Err(…))` is a wrong answer.
async fn ask(
    connection: &mut SendRequest<Empty<Bytes>>,
    address: SocketAddr,
    batch: &[String],
) -> Result<Result<(), String>, hyper::Error> {
    let target = target(Form::Repeated, &Group::Named(GROUP.into()), batch.iter().map(String::as_str));
    let request = Request::get(target).header(HOST, address.to_string()).header(api::TOKEN, TOKEN).body(Empty::new());
    let request = match request {
        Ok(request) => request,
        Err(error) => return Ok(Err(error.to_string())),
    };
    connection.ready().await?;
    let response = connection.send_request(request).await?;
    let status = response.status();
    let body = response.into_body().collect().await?.to_bytes();
    Ok(check(status, &body, batch))
}

/// Checks that every id is answered, in the order asked, with its own link.
fn check(status: StatusCode, body: &[u8], batch: &[String]) -> Result<(), String> {
    if status != StatusCode::OK {
        return Err(format!("status {status}"));
    }
    let answer: Answer = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    if answer.accessory_urls.len() != batch.len() {
        return Err(format!("{} items for {} ids", answer.accessory_urls.len(), batch.len()));
    }
    for (item, id) in answer.accessory_urls.iter().zip(batch) {
        if item.accessory_id != *id {
            return Err(format!("item {} where {id} was asked", item.accessory_id));
        }
        if !link_is_for(&item.accessory_url, id, Some(GROUP), TOKEN, None, None) {
            return Err(format!("the link of {id} is another's"));
        }
    }
    Ok(())
}
