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
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::{Client, connect::HttpConnector};
use hyper_util::rt::TokioExecutor;
use rand::SeedableRng;
use rand::rngs::StdRng;
use rand_distr::{Distribution, Zipf};
use serde_json::Value;
use tokio::time::MissedTickBehavior;

use super::origin::shapes::{Shape, TOKEN};

pub(super) const BATCH_IDS: usize = 20;
/// Ids that batches are drawn from, by Zipf's law with this exponent.
pub(super) const IDS: usize = 10_000;
pub(super) const EXPONENT: f64 = 0.99;
/// Batches that are asked at a time.
pub(super) const CONNECTIONS: usize = 64;
/// Between two batches of the light load.
const PAUSE: Duration = Duration::from_millis(100);

type Batch = Vec<String>;
type Headers = Vec<(&'static str, String)>;

/// The batches, the same in every run.
pub(super) struct Draws {
    shape: &'static Shape,
    zipf: Zipf<f64>,
    random: StdRng,
}

impl Draws {
    /// Batches of ids that the API of `shape` takes.
    pub(super) fn new(shape: &'static Shape) -> io::Result<Self> {
        let zipf = Zipf::new(IDS as f64, EXPONENT).map_err(io::Error::other)?;
        Ok(Self { shape, zipf, random: StdRng::seed_from_u64(1) })
    }
}

impl Iterator for Draws {
    type Item = Batch;

    fn next(&mut self) -> Option<Batch> {
        let mut batch = Batch::with_capacity(BATCH_IDS);
        while batch.len() < BATCH_IDS {
            let id = self.shape.id(&format!("{:.0}", self.zipf.sample(&mut self.random)));
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
    shape: &'static Shape,
    address: SocketAddr,
    headers: Headers,
    /// Those of the owner of the links.
    owner: Headers,
    client: Client<HttpConnector, Full<Bytes>>,
}

#[derive(Default)]
pub(super) struct Outcome {
    pub(super) median: Duration,
    pub(super) p99: Duration,
    /// Why each wrong answer is wrong.
    pub(super) wrong: Vec<String>,
}

impl Replay {
    pub(super) fn new(shape: &'static Shape, address: SocketAddr, batches: Vec<Batch>) -> Self {
        let mut connector = HttpConnector::new();
        connector.set_nodelay(true);
        let client = Client::builder(TokioExecutor::new()).build(connector);
        let headers = headers(shape, TOKEN);
        Self { batches, shape, address, owner: headers.clone(), headers, client }
    }

    /// With this token, whose links are those of `owner`.
    pub(super) fn with_token(self, token: &str, owner: &str) -> Self {
        Self { headers: headers(self.shape, token), owner: headers(self.shape, owner), ..self }
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
        let (target, body) = self.shape.batch(batch);
        let mut request = Request::builder().method(&self.shape.method).uri(format!("http://{}{target}", self.address));
        for (name, value) in &self.headers {
            request = request.header(*name, value);
        }
        let request = request.body(Full::from(body)).map_err(|error| error.to_string())?;
        let response = self.client.request(request).await.map_err(|error| error.to_string())?;
        let status = response.status();
        let body = response.into_body().collect().await.map_err(|error| error.to_string())?;
        check(self.shape, &self.owner, status, &body.to_bytes(), batch)
    }
}

/// The headers of a batch with this token.
fn headers(shape: &Shape, token: &str) -> Headers {
    shape.headers.iter().map(|(name, value)| (*name, value.replace(TOKEN, token))).collect()
}

/// Checks that every id is answered, in the order asked, with its own link of its owner's.
fn check(shape: &Shape, owner: &Headers, status: StatusCode, body: &[u8], batch: &[String]) -> Result<(), String> {
    if status != StatusCode::OK {
        return Err(format!("status {status}"));
    }
    let answer: Value = serde_json::from_slice(body).map_err(|error| error.to_string())?;
    let mut links = shape.links(&answer);
    if links.len() != batch.len() {
        return Err(format!("{} items for {} ids", links.len(), batch.len()));
    }
    if shape.is_keyed() {
        links.sort_by_key(|(id, _)| batch.iter().position(|asked| asked == id));
    }
    let owner: Vec<_> = owner.iter().map(|(name, value)| (*name, value.as_str())).collect();
    for ((answered, link), id) in links.iter().zip(batch) {
        if answered != id {
            return Err(format!("item {answered} where {id} was asked"));
        }
        if !link.as_ref().is_some_and(|link| shape.link_is_for(link, id, &owner)) {
            return Err(format!("the link of {id} is another's"));
        }
    }
    Ok(())
}
