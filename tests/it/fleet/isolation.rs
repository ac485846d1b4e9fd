//! Isolation over random schedules: whoever asks, wherever, however, and whatever is purged, revoked, refused, reloaded,
//! lost or swapped meanwhile, nobody ever gets a link that the endpoint did not make for that caller, group and headers, nor
//! one that was taken away, beyond the time defined for it.
//!
//! Real sidecars share real servers: one, a Cluster, or those of Sentinels. The oracle:
//! - *whose*: every link is for the id, credential, group and headers of the batch that got it;
//! - *purged*: where a purge was made, no batch that is asked afterwards gets a link from before; elsewhere, none that is
//!   asked once the purge has been heard (a mark that was told after it is seen to count there);
//! - *revoked*: the same of a caller's links once a sidecar has seen it refused with a 401; and where none has, none of a
//!   refused caller's links comes once `callers.revalidate` is over;
//! - *forbidden*: where an id was refused with a 403, its links from before are gone for that scope; elsewhere, once
//!   `freshness.max` is over.
//!
//! A seed decides the schedule, not how its batches interleave: `SIDELINK_SEED=n` runs one, `SIDELINK_SEEDS=n` so many.

mod events;

use std::collections::HashMap;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures_util::FutureExt;
use futures_util::future::join_all;
use http::Method;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{RngExt, SeedableRng};
use sidelink::api::request::Form;
use sidelink::config::Config;
use sidelink::demo::origin::interface as request;
use sidelink::demo::origin::link_is_for;

use super::Fleet;
use super::kinds::{Kind, Servers};
use crate::signing::{ACCESS_KEY, SECRET_KEY, Unsigned, knows, pair};
use crate::support::{Reply, TestClient};

const SEEDS: u64 = 9;
const STEPS: usize = 60;
const SIDECARS: usize = 2;
const IDS: [&str; 5] = ["1", "2", "12", "a/b", "g"];
/// The last is an access key: who has it signs.
const CALLERS: [&str; 4] = ["alice", "alic", "bob", ACCESS_KEY];
const GROUPS: [Option<&str>; 3] = [None, Some("g"), Some("1")];
const HEADERS: [&str; 3] = ["x-language", "x-site", "x-time-zone"];
const VALUES: [Option<&str>; 3] = [None, Some("g"), Some("en-us")];
const CONTROLS: [Option<&str>; 6] = [None, None, None, Some("no-cache"), Some("max-age=30"), Some("no-store")];
const REVALIDATE: Duration = Duration::from_secs(300);
const FRESH: Duration = Duration::from_secs(600);
/// By how much the clocks of a fleet may differ, and moments are rounded.
const SLACK: Duration = Duration::from_secs(5);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Scope {
    caller: &'static str,
    group: Option<&'static str>,
    headers: [Option<&'static str>; 3],
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Taken {
    All,
    Id(&'static str),
    Group(&'static str),
    Caller(&'static str),
    Forbidden(Scope, &'static str),
}

impl Taken {
    fn concerns(&self, scope: &Scope, id: &str) -> bool {
        match self {
            Taken::All => true,
            Taken::Id(of) => *of == id,
            Taken::Group(of) => scope.group == Some(of),
            Taken::Caller(of) => scope.caller == *of,
            Taken::Forbidden(of, which) => of == scope && *which == id,
        }
    }
}

/// Something that was taken away.
#[derive(Clone, Debug)]
struct Event {
    taken: Taken,
    /// The endpoint had made so many answers: links with lower numbers are from before.
    serial: u64,
    by: usize,
    /// Where it is in force.
    at: [bool; SIDECARS],
    /// When, on the fleet's clock.
    when: u64,
}

/// What was looked at.
#[derive(Default)]
struct Seen {
    links: usize,
    /// Batches answered without a call, by memory and by the tier.
    hits: usize,
    shared: usize,
}

struct Run {
    seen: Seen,
    fleet: Fleet,
    servers: Arc<Servers>,
    random: StdRng,
    scopes: Vec<Scope>,
    events: Vec<Event>,
    /// Callers that the endpoint refuses, and since when.
    refused: HashMap<&'static str, u64>,
    origin: TestClient,
    /// Names and values that someone has copied.
    copied: Vec<(String, Vec<u8>)>,
    probes: usize,
}

/// One batch as it was asked, and what was in force then.
struct Asked {
    scope: Scope,
    ids: Vec<&'static str>,
    sidecar: usize,
    events: Vec<Event>,
    refused: Option<u64>,
}

impl Run {
    async fn new(seed: u64, servers: Arc<Servers>) -> Self {
        let mut random = StdRng::seed_from_u64(seed);
        let configure = |config: &mut Config| {
            config.freshness.max = FRESH;
            config.callers.revalidate = REVALIDATE;
            config.upstream.ids_per_call = 3;
            config.upstream.calls_per_scope = 2;
            config.limits.in_flight = 1000;
            knows(config, ACCESS_KEY, SECRET_KEY);
        };
        // Other seeds share the server, and have an endpoint of their own, as another fleet would.
        let endpoint = |options: &mut sidelink::demo::origin::Options| {
            options.keys = vec![pair(ACCESS_KEY, SECRET_KEY)];
            options.poison_status = 403;
            options.link_life = Duration::from_secs(24 * 3600);
        };
        let mut tier = servers.shared();
        tier.lease_wait = Duration::from_millis(500);
        let fleet = Fleet::with(tier, SIDECARS, endpoint, configure).await;
        let mut pick = |list: &[Option<&'static str>]| *list.choose(&mut random).unwrap();
        // Few, so that they repeat, and similar to one another.
        let (group, headers) = (pick(&GROUPS), [pick(&VALUES), pick(&VALUES), pick(&VALUES)]);
        let first = Scope { caller: CALLERS.choose(&mut random).unwrap(), group, headers };
        let mut scopes = vec![first];
        for _ in 0..5 {
            let mut scope = *scopes.choose(&mut random).unwrap();
            match random.random_range(0..5) {
                0 => scope.caller = CALLERS.choose(&mut random).unwrap(),
                1 => scope.group = *GROUPS.choose(&mut random).unwrap(),
                header => scope.headers[header - 2] = *VALUES.choose(&mut random).unwrap(),
            }
            scopes.push(scope);
        }
        let origin = TestClient::new(fleet.origin.address());
        Self {
            seen: Seen::default(),
            fleet,
            servers,
            random,
            scopes,
            events: Vec::new(),
            refused: HashMap::new(),
            origin,
            copied: Vec::new(),
            probes: 0,
        }
    }

    fn now(&self) -> u64 {
        self.fleet.clock.now().unix_millis()
    }

    /// All clocks go on by so many seconds.
    fn step(&self, seconds: i64) {
        self.fleet.clock.step(seconds * 1000);
        self.fleet.origin.update(|options| options.clock_offset += seconds);
    }

    /// The number of the answer that the endpoint makes now: it is asked directly.
    async fn serial(&self) -> u64 {
        // A neighbour of the batch route: no id is poisoned there.
        let reply = self.origin.batch("oracle", &["oracle"]).await;
        serial(&reply.links()[0].1)
    }

    async fn run(mut self) -> Seen {
        for _ in 0..STEPS {
            match self.random.random_range(0..30) {
                0 | 1 => {
                    let purge = self.draw_purge();
                    self.burst(Some(purge)).await;
                }
                2 => self.revoke().await,
                3 => self.forbid().await,
                4 => self.reload().await,
                5 | 6 => {
                    let span = self.random.random_range(1..400);
                    self.step(span);
                }
                7 => self.attack().await,
                8 => {
                    self.refused.clear();
                    self.fleet.origin.update(|options| options.refuse.clear());
                }
                9 => {
                    let by = self.random.random_range(0..SIDECARS);
                    self.settle(by).await;
                }
                _ => self.burst(None).await,
            }
        }
        for by in 0..SIDECARS {
            self.settle(by).await;
        }
        self.burst(None).await;
        self.burst(None).await;
        self.seen
    }

    fn draw_purge(&mut self) -> (usize, Taken, bool) {
        let id = IDS.choose(&mut self.random).unwrap();
        let taken = match self.random.random_range(0..5) {
            0 => Taken::All,
            1 => Taken::Group(["g", "1"].choose(&mut self.random).unwrap()),
            _ => Taken::Id(id),
        };
        (self.random.random_range(0..SIDECARS), taken, self.random.random_bool(0.5))
    }

    /// Some batches at a time, and perhaps a purge among them.
    async fn burst(&mut self, purge: Option<(usize, Taken, bool)>) {
        let count = self.random.random_range(1..8);
        let asked: Vec<(Asked, Form, Option<&str>)> = (0..count)
            .map(|_| {
                let scope = *self.scopes.choose(&mut self.random).unwrap();
                let sidecar = self.random.random_range(0..SIDECARS);
                let mut ids = Vec::new();
                for _ in 0..self.random.random_range(1..5) {
                    let id = *IDS.choose(&mut self.random).unwrap();
                    if !ids.contains(&id) {
                        ids.push(id);
                    }
                }
                let form = *[Form::Repeated, Form::Comma, Form::Body].choose(&mut self.random).unwrap();
                let control = *CONTROLS.choose(&mut self.random).unwrap();
                (self.asked(scope, ids, sidecar), form, control)
            })
            .collect();
        let before = if purge.is_some() { self.serial().await } else { 0 };
        let batches = join_all(asked.iter().map(|(asked, form, control)| self.ask(asked, *form, *control)));
        let purging = async {
            if let Some((by, taken, delete)) = purge {
                self.purge(by, taken, delete).await;
            }
        };
        let (replies, ()) = tokio::join!(batches, purging);
        for ((asked, ..), reply) in asked.iter().zip(replies) {
            self.check(asked, &reply);
            self.seen.links += if reply.status == 200 { reply.ids().len() } else { 0 };
            self.seen.hits += usize::from(reply.header("cache-status") == "sidelink; hit");
            self.seen.shared += usize::from(reply.header("cache-status").contains("shared"));
        }
        if let Some((by, taken, _)) = purge {
            self.note(taken, before, by);
        }
    }

    fn asked(&self, scope: Scope, ids: Vec<&'static str>, sidecar: usize) -> Asked {
        let in_force = self.events.iter().filter(|event| {
            let over = |span: Duration| self.now() > event.when + u64::try_from((span + SLACK).as_millis()).unwrap();
            event.at[sidecar] || (matches!(event.taken, Taken::Forbidden(..)) && over(FRESH))
        });
        let refused = self.refused.get(scope.caller).copied();
        Asked { scope, ids, sidecar, events: in_force.cloned().collect(), refused }
    }

    async fn ask(&self, asked: &Asked, form: Form, control: Option<&str>) -> Reply {
        let Asked { scope, ids, sidecar, .. } = asked;
        let target = request::target(form, &scope.group.into(), ids.iter().copied());
        let body = request::body(form, &scope.group.into(), ids.iter().copied());
        let given = HEADERS.into_iter().zip(scope.headers).filter_map(|(name, value)| Some((name, value?)));
        let client = &self.fleet.sidecars[*sidecar].client;
        let mut headers: Vec<(&str, String)> = given.map(|(name, value)| (name, value.to_owned())).collect();
        if scope.caller == ACCESS_KEY {
            let mut unsigned = Unsigned::get(client.address, &target, &self.fleet.clock);
            for (name, value) in &headers {
                unsigned = unsigned.header(name, value);
            }
            let unsigned = Unsigned { body: &body, ..unsigned };
            headers = unsigned.sign();
        } else {
            headers.push(("x-auth-token", scope.caller.to_owned()));
        }
        headers.extend(control.map(|control| ("cache-control", control.to_owned())));
        let headers: Vec<(&str, &str)> = headers.iter().map(|(name, value)| (*name, value.as_str())).collect();
        client.send(Method::GET, &target, &headers, Bytes::copy_from_slice(&body)).await
    }

    fn check(&self, asked: &Asked, reply: &Reply) {
        let how = reply.header("cache-status");
        assert!(!how.contains("fwd=bypass"), "{:?} was not read: {reply:?}", asked.scope);
        if reply.status != 200 || reply.json().get("error_code").is_some() {
            return;
        }
        let Asked { scope, ids, .. } = asked;
        for (id, link) in reply.links() {
            assert!(ids.contains(&id.as_str()), "{id} was not asked for");
            let [language, site, zone] = scope.headers;
            let whose = link_is_for(&link, &id, scope.group, scope.caller, language, site);
            let zoned = link.split('&').find_map(|pair| pair.strip_prefix("time-zone="));
            let zoned = zoned.map(|zone| zone.replace("%2D", "-"));
            assert!(whose && zoned.as_deref() == zone, "{scope:?} got {link}, {how}");
            for event in &asked.events {
                let taken = event.taken.concerns(scope, &id) && serial(&link) < event.serial;
                assert!(!taken, "at {}, {scope:?} got {link}, {how}, after {event:?}", asked.sidecar);
            }
            if let Some(since) = asked.refused {
                let span = u64::try_from((REVALIDATE + SLACK).as_millis()).unwrap();
                assert!(self.now() <= since + span, "{scope:?}, refused, got {link}, {how}");
            }
        }
    }

    fn note(&mut self, taken: Taken, serial: u64, by: usize) {
        let mut at = [false; SIDECARS];
        at[by] = true;
        self.events.push(Event { taken, serial, by, at, when: self.now() });
    }
}

fn serial(link: &str) -> u64 {
    let (_, rest) = link.split_once("serial=").unwrap();
    rest.split('&').next().unwrap().parse().unwrap()
}

fn from_environment(name: &str) -> Option<u64> {
    std::env::var(name).ok().map(|text| text.parse().expect("a number"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_caller_gets_links_of_another_or_revoked_ones() {
    let seeds = match from_environment("SIDELINK_SEED") {
        Some(seed) => seed..seed + 1,
        None => 0..from_environment("SIDELINK_SEEDS").unwrap_or(SEEDS),
    };
    let seeds = Arc::new(Mutex::new(seeds));
    // Seeds that run at a time, each with servers of its own.
    let lanes = Kind::ALL.map(|kind| {
        let seeds = seeds.clone();
        async move {
            let servers = Arc::new(Servers::start(kind).await);
            let mut seen = Seen::default();
            loop {
                let Some(seed) = seeds.lock().unwrap().next() else { return seen };
                let begun = format!(
                    "seed {seed} breaks the law at {kind:?}; SIDELINK_SEED={seed} cargo test isolation runs it again"
                );
                let run = async { Run::new(seed, servers.clone()).await.run().await };
                let one = AssertUnwindSafe(run).catch_unwind().await.unwrap_or_else(|_| panic!("{begun}"));
                seen = Seen {
                    links: seen.links + one.links,
                    shared: seen.shared + one.shared,
                    hits: seen.hits + one.hits,
                };
            }
        }
    });
    let seen = join_all(lanes).await.into_iter();
    let [links, shared, hits] =
        seen.fold([0; 3], |sum, seen| [sum[0] + seen.links, sum[1] + seen.shared, sum[2] + seen.hits]);
    println!("isolation: {links} links; of the batches, {hits} were had from memory alone, {shared} from the tier");
    assert!(links > 0 && hits > 0, "nothing was seen");
}
