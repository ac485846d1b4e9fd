//! Leases: of all sidecars that miss an id at the same time, one asks the endpoint.
//!
//! A lease is a key whose value is a random token of its owner. It ends [`LIFE`] after its owner last renewed it: one task renews
//! those of all calls under way, so a lease lives as long as its call and not much longer than a process that dies. It is
//! renewed and released by a script, since only its owner may do so, and Redis cannot compare and delete in one command.
//!
//! A server that never grants a lease, and never has what others are said to fetch, is not asked for leases any more for a while.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use redis::Value;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval, sleep};

use super::TierState;
use super::store::RedisCommand;
use crate::clock::millis;
use crate::telemetry::log::events;
use crate::telemetry::metrics::{Operation, SharedFailure};

/// The life of a lease that is not renewed.
const LIFE: Duration = Duration::from_millis(1500);
/// The time between two renewals of a lease. The first comes up to twice as late.
const RENEWAL: Duration = Duration::from_millis(500);
/// Leases that end within this time are released in one round trip.
const GATHER: Duration = Duration::from_millis(2);
/// Most leases in one script: the server does nothing else while it runs.
const MOST_KEYS: usize = 256;
/// Waits in a row that end with neither a link nor a lease, until leases are given up.
const MOST_DENIED: u32 = 5;
/// The time until what the server refuses is tried again.
const REFUSED: Duration = Duration::from_secs(30);

/// Deletes each lease that is still its owner's. Arguments: the token of each.
const RELEASE: &str = "local d={}for i,v in ipairs(redis.call('MGET',unpack(KEYS)))do if v==ARGV[i]then d[#d+1]=KEYS[i]end \
                       end if d[1]then redis.call('DEL',unpack(d))end";
/// Gives each lease that is still its owner's another life. Arguments: the token of each, the life.
const RENEW: &str = "for i,v in ipairs(redis.call('MGET',unpack(KEYS)))do if v==ARGV[i]then \
                     redis.call('PEXPIRE',KEYS[i],ARGV[#ARGV])end end";

/// A lease of this sidecar. Dropping it releases it.
#[derive(Debug)]
pub struct Lease {
    key: LeaseKey,
    table: Arc<LeaseTable>,
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut state = self.table.state.lock();
        state.granted.remove(&self.key);
        state.released.push(self.key.clone());
        drop(state);
        self.table.wake.notify_one();
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct LeaseKey {
    name: Box<str>,
    token: Token,
}

/// Names one try for leases: a successor's lease has another one.
pub(super) type Token = [u8; 8];

/// What is known of the lease on an id.
#[derive(Debug)]
pub(crate) enum LeaseState {
    /// Nobody has it, as far as the server tells.
    Free,
    /// Another sidecar has it.
    Taken,
    Granted(Lease),
}

/// The leases of one sidecar.
#[derive(Debug, Default)]
pub(super) struct LeaseTable {
    state: Mutex<State>,
    /// Wakes the task that renews and releases.
    pub(super) wake: Notify,
}

#[derive(Debug, Default)]
struct State {
    /// When each was granted.
    granted: HashMap<LeaseKey, Instant>,
    /// Those to release.
    released: Vec<LeaseKey>,
    leases: Refusal,
    /// Waits in a row that ended with neither a link nor a lease.
    denied: u32,
}

/// What the server refuses is tried again after [`REFUSED`].
#[derive(Debug, Default)]
struct Refusal {
    retry: Option<Instant>,
}

impl Refusal {
    fn may_try(&mut self) -> bool {
        let now = Instant::now();
        match self.retry {
            Some(retry) if now < retry => false,
            // Others do without while this one tries.
            Some(_) => self.retry.replace(now + REFUSED).is_some(),
            None => true,
        }
    }

    /// Returns whether this is news.
    fn refused(&mut self) -> bool {
        self.retry.replace(Instant::now() + REFUSED).is_none()
    }

    fn granted(&mut self) {
        self.retry = None;
    }
}

impl TierState {
    /// Whether a batch should try for leases.
    pub(crate) fn may_lease(&self) -> bool {
        !self.config.lease_wait.is_zero() && self.leases.state.lock().leases.may_try()
    }

    /// The longest that a batch waits for ids that another sidecar fetches.
    pub(crate) fn lease_wait(&self) -> Duration {
        self.config.lease_wait
    }

    /// A try for leases has brought some, or links.
    pub(crate) fn leases_work(&self) {
        let mut state = self.leases.state.lock();
        state.denied = 0;
        state.leases.granted();
    }

    /// A batch has waited, and got neither a link nor a lease.
    pub(crate) fn lease_denied(&self) {
        self.metrics.shared.failures.of(SharedFailure::Denied).inc();
        let mut state = self.leases.state.lock();
        state.denied += 1;
        if state.denied >= MOST_DENIED && state.leases.refused() {
            events::LeasesDenied { waits: state.denied }.log();
        }
    }

    /// The commands that try for leases with `token`, each for itself: a script that takes several costs the server more.
    pub(super) fn acquire(names: &[Box<str>], token: Token) -> Vec<RedisCommand> {
        let life = millis(LIFE);
        let set = |name| RedisCommand::new("SET", name).arg(&token[..]).arg("NX").arg("PX").arg(life);
        names.iter().map(|name| set(name)).collect()
    }

    /// What the replies to those commands say of each lease.
    pub(super) fn acquired(&self, names: Vec<Box<str>>, token: Token, replies: Vec<Option<Value>>) -> Vec<LeaseState> {
        let now = Instant::now();
        let mut table = self.leases.state.lock();
        let mut granted = |name| {
            let key = LeaseKey { name, token };
            table.granted.insert(key.clone(), now);
            LeaseState::Granted(Lease { key, table: Arc::clone(&self.leases) })
        };
        let leases = names.into_iter().zip(replies).map(|(name, reply)| match reply {
            Some(Value::Okay) => granted(name),
            Some(Value::Nil) => LeaseState::Taken,
            // At worst the id is fetched twice.
            _ => LeaseState::Free,
        });
        let leases = leases.collect();
        drop(table);
        self.leases.wake.notify_one();
        leases
    }

    /// Runs a script on leases, with the token of each and `more` arguments.
    async fn run_script(&self, script: &str, keys: &[LeaseKey], more: &[u64]) {
        if keys.is_empty() {
            return;
        }
        // In a Cluster all keys of a script share a slot.
        let most = if self.config.cluster { 1 } else { MOST_KEYS };
        let command = |keys: &[LeaseKey]| {
            let command = RedisCommand::script(script, keys.iter().map(|key| &*key.name));
            let command = keys.iter().fold(command, |command, key| command.arg(&key.token[..]));
            more.iter().fold(command, RedisCommand::arg)
        };
        let commands = keys.chunks(most).map(command).collect();
        self.store.run(Operation::Release, commands, self.config.timeout).await;
    }
}

impl LeaseTable {
    /// Leases to release, and those that are due for renewal.
    fn take_due(&self, renews: bool) -> (Vec<LeaseKey>, Vec<LeaseKey>) {
        let mut state = self.state.lock();
        let is_due = |(_, granted): &(&LeaseKey, &Instant)| renews && granted.elapsed() >= RENEWAL;
        let renewed = state.granted.iter().filter(is_due).map(|(key, _)| key.clone()).collect();
        (std::mem::take(&mut state.released), renewed)
    }

    fn is_idle(&self) -> bool {
        let state = self.state.lock();
        state.granted.is_empty() && state.released.is_empty()
    }
}

/// Renews and releases leases until the [`Tier`](super::Tier) is dropped and its last lease is released.
pub(super) async fn run(state: Arc<TierState>) {
    let mut renewals = interval(RENEWAL);
    renewals.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_idle = state.leases.is_idle();
        let renews = tokio::select! {
            _ = renewals.tick(), if !is_idle => true,
            () = state.leases.wake.notified() => false,
            () = state.closing.cancelled(), if is_idle => return,
        };
        sleep(GATHER).await;
        let (released, renewed) = state.leases.take_due(renews);
        state.run_script(RELEASE, &released, &[]).await;
        state.run_script(RENEW, &renewed, &[millis(LIFE)]).await;
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn what_the_server_refuses_is_tried_by_one_at_a_time_after_a_while_and_told_once() {
        let mut refusal = Refusal::default();
        assert!(refusal.may_try() && refusal.may_try());
        assert!(refusal.refused(), "news");
        for _ in 0..3 {
            assert!(!refusal.may_try());
            advance(REFUSED).await;
            assert!(refusal.may_try(), "one tries");
            assert!(!refusal.may_try(), "and the others do without");
            assert!(!refusal.refused(), "no news");
        }
        refusal.granted();
        assert!(refusal.may_try() && refusal.may_try());
        assert!(refusal.refused(), "news again");
    }
}
