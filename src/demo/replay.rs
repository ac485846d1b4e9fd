//! Replaying overlapping batches and checking every answer.

use std::cmp::Reverse;
use std::collections::{HashMap, HashSet};
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
use tokio::time::MissedTickBehavior;

use super::origin::interface::{self, target};
use crate::api::id::Group;
use crate::api::request::Form;
use crate::demo::origin::link_is_for;

pub(super) const TOKEN: &str = "demo-token";
pub(super) const GROUP: &str = "demo";

pub(super) const BATCH_IDS: usize = 20;
/// Ids that batches are drawn from, by Zipf's law with this exponent.
pub(super) const IDS: usize = 10_000;
pub(super) const EXPONENT: f64 = 0.99;
/// Batches that are asked at a time.
pub(super) const CONNECTIONS: usize = 64;
/// Between two batches of the light load.
const PAUSE: Duration = Duration::from_millis(100);

type Batch = Vec<String>;

/// The batches, the same in every run.
pub(super) struct Draws {
    zipf: Zipf<f64>,
    random: StdRng,
}

impl Draws {
    pub(super) fn new() -> io::Result<Self> {
        let zipf = Zipf::new(IDS as f64, EXPONENT).map_err(io::Error::other)?;
        Ok(Self { zipf, random: StdRng::seed_from_u64(1) })
    }
}

impl Iterator for Draws {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::with_capacity(BATCH_IDS);
        while batch.len() < BATCH_IDS {
            let id = format!("{:.0}", self.zipf.sample(&mut self.random));
            if !batch.contains(&id) {
                batch.push(id);
            }
        }
        Some(batch)
    }
}

/// Batches for the sidelink at an address.
pub(super) struct Replay {
    pub(super) batches: Vec<Batch>,
    address: SocketAddr,
    client: Client<HttpConnector, Empty<Bytes>>,
}

#[derive(Default)]
pub(super) struct Outcome {
    pub(super) median: Duration,
    pub(super) p99: Duration,
    /// Why each wrong answer is wrong.
    pub(super) wrong: Vec<String>,
}

impl Replay {
    pub(super) fn new(address: SocketAddr, batches: Vec<Batch>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        Self { batches, address, client: Client::builder(TokioExecutor::new()).build(connector) }
    }

    pub(super) fn distinct_ids(&self) -> usize {
        self.batches.iter().flatten().collect::<HashSet<_>>().len()
    }

    pub(super) fn distinct_batches(&self) -> usize {
        self.batches.iter().collect::<HashSet<_>>().len()
    }

    /// The two ids that most batches ask for.
    pub(super) fn popular(&self) -> [String; 2] {
        let mut counts: HashMap<&String, usize> = HashMap::new();
        for id in self.batches.iter().flatten() {
            *counts.entry(id).or_default() += 1;
        }
        let mut ids: Vec<_> = counts.into_iter().collect();
        ids.sort_unstable_by_key(|&(id, count)| (Reverse(count), id));
        [0, 1].map(|rank| ids.get(rank).map_or_else(String::new, |&(id, _)| id.clone()))
    }

    /// Asks for every batch; calls `progress` after each.
    pub(super) async fn run(&self, progress: impl Fn()) -> Outcome {
        let answers = stream::iter(&self.batches).map(|batch| async {
            let began = Instant::now();
            let checked = self.ask(batch).await;
            (began.elapsed(), checked)
        });
        let mut answers = pin!(answers.buffer_unordered(CONNECTIONS));
        let mut times = Vec::with_capacity(self.batches.len());
        let mut outcome = Outcome::default();
        while let Some((time, checked)) = answers.next().await {
            times.push(time);
            outcome.wrong.extend(checked.err());
            progress();
        }
        times.sort_unstable();
        let quantile =
            |share: usize| times.get(times.len().saturating_sub(1) * share / 100).copied().unwrap_or_default();
        (outcome.median, outcome.p99) = (quantile(50), quantile(99));
        outcome
    }

    /// A light load: the status page has something to show. Ends with the first wrong answer, and says why it is wrong.
    pub(super) async fn keep_asking(&self, draws: Draws) -> String {
        let mut ticks = tokio::time::interval(PAUSE);
        // After a suspend, no burst.
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        for batch in draws {
            ticks.tick().await;
            if let Err(why) = self.ask(&batch).await {
                return why;
            }
        }
        std::future::pending().await
    }

    /// Asks for one batch.
    ///
    /// # Errors
    /// The reason why the answer is wrong, or why there is none.
    async fn ask(&self, batch: &[String]) -> Result<(), String> {
        let target = target(Form::Repeated, &Group::Named(GROUP.into()), batch.iter().map(String::as_str));
        let request = Request::get(format!("http://{}{target}", self.address)).header(interface::TOKEN, TOKEN);
        let request = request.body(Empty::new()).map_err(|error| error.to_string())?;
        let response = self.client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        check(status, &body.to_bytes(), batch)
    }
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
