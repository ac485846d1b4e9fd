//! Random schedules of lost connections, poison ids and slow callers, against one law: *while the endpoint would answer a
//! direct request, no batch fails*. Only who asks for a poison id, or queues more than its lane can carry, may fail.
//!
//! The endpoint loses connections in every way that [`Loss`] knows, ends them gracefully after some requests, fails poison
//! ids for whoever asks for them, is slow for one caller, and in some runs is down for a while; from some time after that
//! the law holds again.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use http::{HeaderMap, StatusCode};
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sidelink::demo::origin::{Loss, ScriptedReply, link_is_for};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};

use super::{run_seeds, seeds};
use crate::simulated::World;

const SEEDS: u64 = 16;
const DELAY: Duration = Duration::from_millis(40);
const DEADLINE: Duration = Duration::from_secs(5);
const OPEN: Duration = Duration::from_millis(500);
/// From the end of an outage on, until a probe has closed the breaker.
const GRACE: Duration = Duration::from_secs(3);

/// What one run is like.
struct Plan {
    http2: bool,
    steady: usize,
    batches: usize,
    loses_connections: bool,
    requests_per_connection: Option<usize>,
    /// Asks for poison ids; whether the endpoint accepts it.
    attacker: Option<bool>,
    poison: ScriptedReply,
    /// How much longer the heavy caller's calls take.
    heavy: Option<Duration>,
    outage: bool,
}

impl Plan {
    fn draw(random: &mut StdRng) -> Self {
        let pause = HeaderMap::from_iter([(http::header::RETRY_AFTER, "60".parse().unwrap())]);
        let poison = [
            ScriptedReply::json(502, "{}"),
            ScriptedReply::json(503, "{}"),
            ScriptedReply::json(504, "{}"),
            ScriptedReply::Whole(StatusCode::SERVICE_UNAVAILABLE, pause, "{}".into()),
            ScriptedReply::Reset,
            ScriptedReply::Hang,
        ];
        Self {
            http2: random.random_bool(0.5),
            steady: random.random_range(2..6),
            batches: random.random_range(10..30),
            loses_connections: random.random_bool(0.8),
            requests_per_connection: *[None, None, Some(1), Some(2), Some(7)].choose(random).unwrap(),
            attacker: *[None, Some(false), Some(true)].choose(random).unwrap(),
            poison: poison.choose(random).unwrap().clone(),
            heavy: *[None, Some(Duration::from_millis(200)), Some(Duration::from_millis(900))].choose(random).unwrap(),
            outage: random.random_bool(0.3),
        }
    }
}

/// When the endpoint was down.
#[derive(Default)]
struct Outage {
    began: Option<Instant>,
    ended: Option<Instant>,
}

impl Outage {
    /// Whether a batch from `began` to `ended` may fail.
    fn excuses(&self, began: Instant, ended: Instant) -> bool {
        self.began.is_some_and(|down| ended >= down) && self.ended.is_none_or(|up| began < up + GRACE)
    }
}

async fn run(seed: u64) {
    let mut random = StdRng::seed_from_u64(seed);
    let plan = Plan::draw(&mut random);
    let world = Arc::new(World::over(
        plan.http2,
        |options| {
            options.delay = DELAY;
            options.record = false;
            options.poison = (0..8).map(|id| format!("poison-{id}")).collect();
        },
        |config| {
            config.upstream.deadline = DEADLINE;
            config.upstream.ids_per_call = 3;
            config.upstream.breaker.open = OPEN;
            // A connection that is lost with its first request takes a retry: their budget is no part of the law.
            config.upstream.retry.attempts = 3;
            config.upstream.retry.budget = 1.0;
            config.limits.in_flight = 100_000;
        },
    ));
    world.origin.update(|faults| {
        faults.requests_per_connection = plan.requests_per_connection;
        faults.poison_for = plan.attacker.map(|_| "attacker".to_owned());
        faults.poison_reply = Some(plan.poison.clone());
        faults.slow = plan.heavy.map(|span| ("heavy".to_owned(), span));
    });
    let outage = Arc::new(Mutex::new(Outage::default()));
    // Everyone is accepted before anything goes wrong.
    let accepted = (0..plan.steady).map(|caller| format!("steady-{caller}")).chain(["heavy".to_owned()]);
    for token in accepted.chain(plan.attacker.filter(|accepted| *accepted).map(|_| "attacker".to_owned())) {
        assert_eq!(world.client().await.batch(&token, &["first"]).await.status, 200);
    }
    let mut others = JoinSet::new();
    let mut steady = JoinSet::new();
    let mut branch = || StdRng::seed_from_u64(random.random());
    for caller in 0..plan.steady {
        let token = format!("steady-{caller}");
        steady.spawn(steady_caller(world.clone(), outage.clone(), branch(), token, plan.batches));
    }
    if plan.attacker.is_some() {
        others.spawn(attacker(world.clone(), branch()));
    }
    if plan.heavy.is_some() {
        others.spawn(heavy(world.clone(), branch()));
    }
    if plan.loses_connections {
        others.spawn(lose_connections(world.clone(), outage.clone(), branch()));
    }
    if plan.outage {
        others.spawn(be_down(world.clone(), outage.clone(), branch()));
    }
    while let Some(ended) = steady.join_next().await {
        ended.unwrap();
    }
    others.shutdown().await;
    let is_excused = outage.lock().unwrap().excuses(Instant::now(), Instant::now());
    if !is_excused {
        // Poison is evidence against nobody but its callers; whoever comes next is served.
        let reply = world.client().await.batch("newcomer", &["last"]).await;
        assert_eq!(reply.status, 200, "a newcomer: {reply:?}");
    }
    world.update(|options| options.delay = Duration::ZERO);
    world.origin.lose_connections(Loss::Now);
    sleep(2 * DEADLINE).await;
    assert_eq!(world.metric("sidelink_upstream_in_flight"), 0.0, "a call was lost");
}

/// Asks at such a pace that some call has always succeeded a moment ago.
async fn steady_caller(
    world: Arc<World>,
    outage: Arc<Mutex<Outage>>,
    mut random: StdRng,
    token: String,
    batches: usize,
) {
    let mut client = world.client().await;
    for batch in 0..batches {
        sleep(Duration::from_millis(random.random_range(1..300))).await;
        let mut ids: HashSet<String> = HashSet::new();
        for at in 0..random.random_range(1..6) {
            // Most are new; some are in memory.
            let id = if at == 0 { format!("new-{batch}") } else { random.random_range(0..200).to_string() };
            ids.insert(id);
        }
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        let began = Instant::now();
        let reply = client.batch(&token, &ids).await;
        let excused = outage.lock().unwrap().excuses(began, Instant::now());
        assert!(reply.status == 200 || excused, "{token}, batch {batch}: {reply:?} after {:?}", began.elapsed());
        assert!(began.elapsed() <= DEADLINE + Duration::from_millis(10), "an answer after its deadline");
        if reply.status == 200 {
            assert_eq!(reply.ids(), ids, "each id once, in the order asked");
            for (id, link) in reply.links() {
                assert!(link_is_for(&link, &id, None, &token, None, None), "isolation: {token} got {link}");
            }
        }
    }
}

/// Polls poison ids, one or several at a time.
async fn attacker(world: Arc<World>, mut random: StdRng) {
    let polls_at_a_time = random.random_range(1..7);
    let mut polls = JoinSet::new();
    loop {
        while polls.len() < polls_at_a_time {
            let (world, id) = (world.clone(), format!("poison-{}", random.random_range(0..8)));
            polls.spawn(async move { world.client().await.batch("attacker", &[&id]).await });
        }
        polls.join_next().await;
        sleep(Duration::from_millis(random.random_range(1..200))).await;
    }
}

/// Queues more than its lane can carry.
async fn heavy(world: Arc<World>, mut random: StdRng) {
    let mut batches = JoinSet::new();
    for batch in 0.. {
        let world = world.clone();
        batches.spawn(async move {
            let ids: Vec<String> = (0..3).map(|id| format!("{batch}-{id}")).collect();
            let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
            world.client().await.batch("heavy", &ids).await
        });
        sleep(Duration::from_millis(random.random_range(1..60))).await;
        if batches.len() >= 200 {
            batches.join_next().await;
        }
    }
}

async fn lose_connections(world: Arc<World>, outage: Arc<Mutex<Outage>>, mut random: StdRng) {
    loop {
        // Far enough apart for a call to be sent again between two of them.
        sleep(Duration::from_millis(random.random_range(600..1500))).await;
        // A probe's new connection that is lost with its first request is an endpoint that does not answer a direct request.
        if outage.lock().unwrap().excuses(Instant::now(), Instant::now()) {
            continue;
        }
        let how = *[Loss::Now, Loss::AtNextRequest, Loss::AtNextRequest, Loss::Gracefully].choose(&mut random).unwrap();
        // Several sources whose new connections are lost with their first requests at once are evidence of a dead endpoint.
        if how != Loss::Now && random.random_bool(0.5) {
            world.origin.lose_connections(how);
        } else {
            world.origin.lose_connection(random.random_range(0..100), how);
        }
    }
}

/// The endpoint is down for some seconds, and has lost its connections when it is back.
async fn be_down(world: Arc<World>, outage: Arc<Mutex<Outage>>, mut random: StdRng) {
    sleep(Duration::from_millis(random.random_range(300..2000))).await;
    outage.lock().unwrap().began = Some(Instant::now());
    world.update(|options| (options.fail_ratio, options.fail_status) = (1.0, 503));
    sleep_until(Instant::now() + Duration::from_millis(random.random_range(500..3000))).await;
    world.origin.lose_connections(Loss::AtNextRequest);
    world.update(|options| options.fail_ratio = 0.0);
    outage.lock().unwrap().ended = Some(Instant::now());
}

#[test]
fn no_batch_fails_while_the_endpoint_would_answer_a_direct_request() {
    match run_seeds(seeds(SEEDS), run) {
        Ok(count) => println!("simulation of connections: {count} seeds, no batch failed"),
        Err(seed) => panic!("seed {seed} breaks a law; SIDELINK_SEED={seed} cargo test simulation::connections"),
    }
}
