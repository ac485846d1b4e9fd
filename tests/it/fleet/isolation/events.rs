//! The events of a schedule: purges, revocations, refusals, reloads, and attacks on the server. Each is noted where it is in force.

use std::time::Duration;

use http::Method;
use rand::RngExt;
use rand::seq::IndexedRandom;
use serde_json::json;
use sidelink::api::request::Form;
use sidelink::config::{Config, Secret};
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::interface as request;

use super::{ACCESS_KEY, IDS, REVALIDATE, Run, SIDECARS, SLACK, Taken};
use crate::support::{TestClient, eventually};

impl Run {
    pub async fn purge(&self, by: usize, taken: Taken, delete: bool) {
        let sidecar = &self.fleet.sidecars[by];
        if let (Taken::Id(id), true) = (taken, delete) {
            let target = format!("{}/{}", api::ACCESSORIES, id.replace('/', "%2F"));
            let reply = sidecar.client.send(Method::DELETE, &target, &[("x-auth-token", "t")], "").await;
            assert!(reply.status.is_success(), "{reply:?}");
            return;
        }
        let body = match taken {
            Taken::Id(id) => json!({"accessory_ids": [id]}),
            Taken::Group(group) => json!({"group_id": group}),
            _ => json!({"all": true}),
        };
        let admin = TestClient::new(sidecar.app.admin_address());
        let json = [("content-type", "application/json")];
        assert_eq!(admin.send(Method::POST, "/purge", &json, body.to_string()).await.status, 200);
    }

    /// The endpoint refuses a caller from here on, and perhaps one sidecar sees it.
    pub async fn revoke(&mut self) {
        let scope = *self.scopes.choose(&mut self.random).unwrap();
        if scope.caller == ACCESS_KEY {
            // It refuses tokens alone.
            return;
        }
        let now = self.now();
        self.refused.entry(scope.caller).or_insert(now);
        self.fleet.origin.update(|options| options.refuse.push(scope.caller.into()));
        if self.random.random_bool(0.4) {
            // Nobody sees it, until it is no matter any more whether anybody does.
            self.step(i64::try_from((REVALIDATE + 2 * SLACK).as_secs()).unwrap());
            self.burst(None).await;
            return;
        }
        let (by, serial) = (self.random.random_range(0..SIDECARS), self.serial().await);
        let asked = self.asked(scope, vec![IDS[0]], by);
        let reply = self.ask(&asked, Form::Repeated, Some("no-cache")).await;
        assert_eq!(reply.status, 401, "{reply:?}");
        self.note(Taken::Caller(scope.caller), serial, by);
    }

    /// The endpoint keeps an id from a scope: one sidecar sees it.
    pub async fn forbid(&mut self) {
        let scope = *self.scopes.choose(&mut self.random).unwrap();
        let id = *IDS.choose(&mut self.random).unwrap();
        let (by, serial) = (self.random.random_range(0..SIDECARS), self.serial().await);
        self.settle(by).await;
        let revocations = r#"sidelink_shared_operations_total{operation="revoke"}"#;
        let before = self.fleet.sidecars[by].metric(revocations).await;
        self.fleet.origin.update(|options| options.poison = vec![id.into()]);
        let asked = self.asked(scope, vec![id], by);
        let reply = self.ask(&asked, Form::Repeated, Some("no-cache")).await;
        self.fleet.origin.update(|options| options.poison.clear());
        let refused = self.refused.contains_key(scope.caller);
        assert!(reply.status == 403 || refused, "{reply:?}");
        if refused {
            self.note(Taken::Caller(scope.caller), serial, by);
            return;
        }
        let sidecar = &self.fleet.sidecars[by];
        eventually("it is taken from the tier", async || sidecar.metric(revocations).await > before).await;
        self.note(Taken::Forbidden(scope, id), serial, by);
    }

    pub async fn reload(&mut self) {
        let which = self.random.random_range(0..SIDECARS);
        // A tier that is dropped announces its pending events in the background.
        self.settle(which).await;
        let sidecar = &self.fleet.sidecars[which];
        let mut config = Config::clone(&sidecar.app.config());
        match self.random.random_range(0..4) {
            0 => config.upstream.ids_per_call = self.random.random_range(1..10),
            1 => config.upstream.calls_per_scope = self.random.random_range(1..4),
            // Another tier, with all to be read anew.
            2 => config.freshness.absent = Duration::from_secs(self.random.random_range(1..10)),
            _ => {
                let secrets = &mut config.shared.as_mut().unwrap().secret_file.secret;
                match secrets.len() {
                    1 => secrets.push(Secret::new(b"another-secret-of-forty-characters-or-so".to_vec())),
                    _ => secrets.truncate(1),
                }
            }
        }
        sidecar.app.apply(config).unwrap();
    }

    /// Someone has the server.
    pub async fn attack(&mut self) {
        let links = self.servers.keys("l").await;
        match self.random.random_range(0..4) {
            0 => {
                for key in links.sample(&mut self.random, 20) {
                    if let redis::Value::BulkString(value) = self.servers.ask(&["GET", key]).await {
                        self.copied.push((key.clone(), value));
                    }
                }
            }
            // Brings back what was there: it counts to its own end, but for what the journal says of it.
            1 => {
                for event in &mut self.events {
                    if matches!(event.taken, Taken::Forbidden(..)) {
                        event.at = [false; SIDECARS];
                    }
                }
                for (key, value) in &self.copied {
                    let value = String::from_utf8_lossy(value);
                    self.servers.ask(&["SET", key, &value, "PX", "600000"]).await;
                }
            }
            // Swaps what stands there.
            2 => {
                for pair in links.windows(2) {
                    if let redis::Value::BulkString(value) = self.servers.ask(&["GET", &pair[0]]).await {
                        let value = String::from_utf8_lossy(&value).into_owned();
                        self.servers.ask(&["SET", &pair[1], &value, "PX", "600000"]).await;
                    }
                }
            }
            _ => {
                self.servers.flush().await;
            }
        }
    }

    /// Until everything that was taken away at sidecar `by` is heard everywhere: the last thing that it tells is.
    pub async fn settle(&mut self, by: usize) {
        for sidecar in &self.fleet.sidecars {
            sidecar.tier_is(true).await;
        }
        self.probes += 1;
        let (group, id) = (format!("probe{}", self.probes), "probe");
        let target = request::target(Form::Repeated, &Some(group.as_str()).into(), [id].into_iter());
        let cached = [("x-auth-token", "probe"), ("cache-control", "only-if-cached")];
        let others = || self.fleet.sidecars.iter().enumerate().filter(|(at, _)| *at != by).map(|(_, other)| other);
        for other in others() {
            assert_eq!(other.client.get(&target, &[("x-auth-token", "probe")]).await.status, 200);
        }
        let admin = TestClient::new(self.fleet.sidecars[by].app.admin_address());
        let (json, body) = ([("content-type", "application/json")], json!({"group_id": group}).to_string());
        assert_eq!(admin.send(Method::POST, "/purge", &json, body).await.status, 200);
        for other in others() {
            eventually("a purge is heard", async || other.client.get(&target, &cached).await.status == 504).await;
        }
        for event in self.events.iter_mut().filter(|event| event.by == by) {
            if !matches!(event.taken, Taken::Forbidden(..)) {
                event.at = [true; SIDECARS];
            }
        }
    }
}
