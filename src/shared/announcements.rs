//! Tells the fleet what holds everywhere: purges, revocations of callers, and withdrawals of links. They are announced in the journal,
//! which the background task appends to (`sync`).

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use redis::Value;
use tokio::time::timeout;

use super::record::JournalEvent;
use super::sealing::ScopeKeys;
use super::store::RedisCommand;
use super::{FleetSecret, TierId, TierScope, TierState};
use crate::cache::purges::Target;
use crate::clock::Moment;
use crate::telemetry::metrics::Operation;

/// How long a purge waits until the fleet is told.
const TELL_WAIT: Duration = Duration::from_millis(500);

impl TierState {
    /// Voids all of a caller's values, anywhere in the fleet. If the endpoint is not known here to have accepted the caller
    /// (`was_accepted`), the tier is asked, in the background: without an acceptance no sidecar has brought values of the caller, so a
    /// made-up token leaves no record.
    pub(crate) fn revoke(self: &Arc<Self>, scope: &Arc<TierScope>, was_accepted: bool) {
        if was_accepted {
            self.announce_revocation(scope);
            return;
        }
        if !self.is_usable() {
            return;
        }
        let (state, scope) = (Arc::clone(self), Arc::clone(scope));
        tokio::spawn(async move {
            let names: Vec<Box<str>> = scope.0.iter().map(|keys| keys.acceptance.clone()).collect();
            let (store, limit) = (&state.store, state.config.timeout);
            let (_, found, _) = store.get(Vec::new(), &names, Vec::new(), Operation::Revoke, limit).await;
            let mut acceptances = state.of_scope(&scope).zip(found);
            let counts = |((fleet, keys), value): ((&FleetSecret, &ScopeKeys), Option<Vec<u8>>)| {
                value.is_some_and(|value| state.acceptance_sent(fleet, keys, &value).is_some())
            };
            if acceptances.any(counts) {
                state.announce_revocation(&scope);
            }
        });
    }

    /// Voids all values of the caller with these names, one for each of the fleet's secrets, anywhere in the fleet.
    pub(crate) fn revoke_named(&self, names: &[u128]) {
        self.announce(self.secrets.iter().zip(names).map(|(fleet, name)| (fleet, JournalEvent::Caller(*name))));
    }

    pub(super) fn announce_revocation(&self, scope: &TierScope) {
        self.announce(self.of_scope(scope).map(|(fleet, keys)| (fleet, keys.revocation())));
    }

    /// Ends a caller's acceptance, and deletes its values of `ids`, in the background, and announces which values there were: they are
    /// void also where an older copy of the data brings them back. If that fails, all values of the caller, and of its user, are voided.
    pub(crate) fn withdraw(self: &Arc<Self>, scope: &Arc<TierScope>, ids: Vec<TierId>) {
        let (state, scope) = (Arc::clone(self), Arc::clone(scope));
        tokio::spawn(async move {
            let mut links = Vec::new();
            for (fleet, keys) in state.of_scope(&scope) {
                links.extend(ids.iter().map(|id| (fleet, keys, keys.link(id))));
            }
            let deletions = links.iter().map(|(.., name)| RedisCommand::new("DEL", name));
            let ended = state.of_scope(&scope).map(|(fleet, keys)| state.end_acceptance(fleet, keys));
            let commands = deletions.chain(ended).collect();
            let replies = state.store.run(Operation::Revoke, commands, state.config.timeout).await;
            if !replies.iter().all(|reply| matches!(reply, Some(Value::Int(_) | Value::Okay | Value::Nil))) {
                state.announce_revocation(&scope);
                state.announce(state.of_scope(&scope).map(|(fleet, keys)| (fleet, keys.revocation_of_owner())));
                return;
            }
            let deleted = links.iter().zip(&replies).filter(|(_, reply)| matches!(reply, Some(Value::Int(1))));
            let events: Vec<_> = deleted.map(|((fleet, keys, name), _)| (*fleet, keys.withdrawal(name))).collect();
            if !events.is_empty() {
                state.announce(events.into_iter());
            }
        });
    }

    pub(crate) fn purge(&self, target: Target<'_>) {
        let event = |fleet: &FleetSecret| JournalEvent::Purge(target.mark(fleet.key.purge_key));
        self.announce(self.secrets.iter().map(|fleet| (fleet, event(fleet))));
    }

    fn announce<'s>(&self, events: impl Iterator<Item = (&'s FleetSecret, JournalEvent)>) {
        let now = self.clock.now();
        events.for_each(|(fleet, event)| {
            let is_covered = fleet.journal.lock().announce(event, now);
            self.covered.fetch_add(u64::from(is_covered), Ordering::Relaxed);
            self.tell_merged(fleet);
        });
        self.show_untold();
        self.wake.notify_one();
    }

    /// This tier replaces `before`: it announces the events that `before` has not told the fleet yet, for each secret that both have.
    pub(crate) fn take_over(&self, before: &TierState) {
        for FleetSecret { key, journal } in &self.secrets {
            let Some(known) = before.secrets.iter().find(|known| known.key.journal == key.journal) else { continue };
            let untold = known.journal.lock().take_untold();
            let mut journal = journal.lock();
            for (event, since) in untold {
                journal.announce(event, since);
            }
        }
        self.show_untold();
        self.wake.notify_one();
    }

    /// Waits until the fleet is told all that was announced before, for [`TELL_WAIT`] at most; returns whether it is.
    pub(crate) async fn is_told(&self) -> bool {
        let announcements = |fleet: &FleetSecret| fleet.journal.lock().announcements();
        let announced: Vec<u64> = self.secrets.iter().map(announcements).collect();
        let is_told =
            || self.secrets.iter().zip(&announced).all(|(fleet, number)| fleet.journal.lock().is_told(*number));
        let told = async {
            loop {
                let told = self.told.notified();
                if is_told() {
                    return;
                }
                told.await;
            }
        };
        is_told() || self.is_usable() && timeout(TELL_WAIT, told).await.is_ok()
    }

    /// How many events so far were announced as one purge of everything.
    pub(crate) fn covered(&self) -> u64 {
        self.covered.load(Ordering::Relaxed)
    }

    /// When the oldest event was announced that the fleet is not told yet.
    pub(crate) fn untold_since(&self) -> Option<Moment> {
        let since = self.secrets.iter().filter_map(|fleet| fleet.journal.lock().untold_since());
        since.min_by_key(|since| since.unix_millis())
    }

    /// How many purges and revocations the fleet is not told yet.
    pub(crate) fn untold(&self) -> usize {
        self.secrets.iter().map(|fleet| fleet.journal.lock().untold()).sum()
    }

    /// Shows that number.
    pub(super) fn show_untold(&self) {
        self.metrics.shared.untold.set(i64::try_from(self.untold()).unwrap_or(i64::MAX));
        self.told.notify_waiters();
    }
}
