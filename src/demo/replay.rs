//! Replaying overlapping batches and checking every answer.

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::pin::pin;
use std::time::{Duration, Instant};

use bytes::Bytes;
use futures_util::{StreamExt, stream};
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use serde_json::Value;

use crate::api;
use crate::api::id::Group;
use crate::api::request::{Form, target};
use crate::demo::origin::link_is_for;

pub(super) const TOKEN: &str = "demo-token";
const GROUP: &str = "demo";

pub(super) const BATCHES: usize = 20_000;
pub(super) const BATCH_IDS: usize = 20;
/// Ids that batches are drawn from, by Zipf's law with this exponent.
pub(super) const IDS: usize = 10_000;
pub(super) const EXPONENT: f64 = 0.99;
/// Batches that are asked at a time.
pub(super) const CONNECTIONS: usize = 64;

#[derive(Default)]
pub(super) struct Replay {
    pub(super) distinct_ids: usize,
    pub(super) distinct_batches: usize,
    pub(super) median: Duration,
    pub(super) p99: Duration,
    /// Why each wrong answer is wrong.
    pub(super) wrong: Vec<String>,
}

/// Replays the batches against the sidelink at `address`; calls `progress` after each.
pub(super) async fn run(address: SocketAddr, progress: impl Fn()) -> io::Result<Replay> {
    let batches = draw()?;
    let mut replay = Replay {
        distinct_ids: batches.iter().flatten().collect::<HashSet<_>>().len(),
        distinct_batches: batches.iter().collect::<HashSet<_>>().len(),
        ..Replay::default()
    };
    let mut connector = HttpConnector::new();
    connector.set_nodelay(true);
    let client = Client::builder(TokioExecutor::new()).build(connector);
    let answers = stream::iter(&batches).map(|batch| async {
        let began = Instant::now();
        let checked = ask(&client, address, batch).await;
        (began.elapsed(), checked)
    });
    let mut answers = pin!(answers.buffer_unordered(CONNECTIONS));
    let mut times = Vec::with_capacity(BATCHES);
    while let Some((time, checked)) = answers.next().await {
        times.push(time);
        replay.wrong.extend(checked.err());
        progress();
    }
    times.sort_unstable();
    let quantile = |share: usize| times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
    (replay.median, replay.p99) = (quantile(50), quantile(99));
    Ok(replay)
}

/// The batches, the same in every run.
fn draw() -> io::Result<Vec<Vec<String>>> {
    let zipf = Zipf::new(IDS as f64, EXPONENT).map_err(io::Error::other)?;
    let mut random = StdRng::seed_from_u64(1);
    let batches = (0..BATCHES).map(|_| {
        let mut batch: Vec<String> = Vec::with_capacity(BATCH_IDS);
        while batch.len() < BATCH_IDS {
            let id = format!("{:.0}", zipf.sample(&mut random));
            if !batch.contains(&id) {
                batch.push(id);
            }
        }
        batch
    });
    Ok(batches.collect())
}

/// Asks for one batch.
///
/// # Errors
/// The reason why the answer is wrong, or why there is none.
async fn ask(
    client: &Client<HttpConnector, Empty<Bytes>>,
    address: SocketAddr,
    batch: &[String],
) -> Result<(), String> {
    let target = target(Form::Repeated, &Group::Named(GROUP.into()), batch.iter().map(String::as_str));
    let request = Request::get(format!("http://{address}{target}")).header(api::TOKEN, TOKEN).body(Empty::new());
    let response = client.request(request.map_err(|error| error.to_string())?).await;
    let response = response.map_err(|error| error.to_string())?;
    let status = response.status();
    let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
    check(status, &body.to_bytes(), batch)
}

/// Checks that every id is answered, in the order asked, with its own link.
fn check(status: StatusCode, body: &[u8], batch: &[String]) -> Result<(), String> {
    if status != StatusCode::OK {
        return Err(format!("status {status}"));
    }
    let answer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let items = answer.get("accessory_urls").and_then(Value::as_array).ok_or("no accessory_urls")?;
    if items.len() != batch.len() {
        return Err(format!("{} items for {} ids", items.len(), batch.len()));
    }
    for (item, id) in items.iter().zip(batch) {
        let text = |key| item.get(key).and_then(Value::as_str).unwrap_or_default();
        if text("accessory_id") != id {
            return Err(format!("item {} where {id} was asked", text("accessory_id")));
        }
        if !link_is_for(text("accessory_url"), id, Some(GROUP), TOKEN, None, None) {
            return Err(format!("the link of {id} is another's"));
        }
    }
    Ok(())
}
