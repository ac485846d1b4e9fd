//! The tier without its server: what it would write, and what it makes of any bytes that stand there. Tests over any bytes
//! have no other way in.

use std::sync::Arc;

use super::journal::{self, RECORD, Read};
use super::record::Event;
use super::{Brought, CallerKeys, Inner, Share, Stamps};
use crate::auth::CallerStates;
use crate::cache::Entry;
use crate::cache::purges::{Purges, Target};
use crate::clock::{Clock, Moment};
use crate::config::{self, Config};
use crate::telemetry::metrics::Metrics;

/// One sidecar's side of the tier. Of the fleet's secrets it knows the first.
pub struct Trial {
    inner: Inner,
}

impl Trial {
    /// Of a sidecar that has read nothing yet.
    pub fn new(shared: &config::Shared, config: &Config, metrics: Arc<Metrics>, clock: Clock) -> Self {
        let purges = Arc::new(Purges::new(rand::random(), config.callers.revalidate));
        let caller_states = Arc::new(CallerStates::new(rand::random()));
        Self { inner: Inner::new(shared, config, None, caller_states, purges, metrics, clock) }
    }

    /// The scope of `group` and the caller who shows `token`.
    pub fn share(&self, token: &str, group: Option<&str>) -> Share {
        let keys = self.inner.keys.iter().map(|key| key.caller("token", &[Some(token.as_bytes())])).collect();
        let keys = Arc::new(CallerKeys { tier: self.inner.number, keys });
        self.inner.share(keys, &[group.map(str::as_bytes)], group)
    }

    /// The first record of another journal.
    pub fn begin(&self) -> Option<String> {
        self.inner.keys.first().and_then(journal::begin)
    }

    /// Reads the journal that stands there, on from what is known or, where that is another one, anew. Whether it is one;
    /// if not, it is to begin anew.
    pub fn read(&self, text: &[u8]) -> bool {
        let now = self.inner.clock.now();
        let mut journals = self.inner.journals();
        let (Some(key), Some(journal)) = (self.inner.keys.first(), journals.first_mut()) else { return false };
        let first = text.get(..RECORD).unwrap_or_default();
        let rest = usize::try_from(journal.read_from()).ok().and_then(|from| text.get(from..)).unwrap_or_default();
        let same = journal.first() == Some(first);
        let read = if same { journal.read(key, first, rest, now) } else { journal.adopt(key, text, now) };
        matches!(read, Read::News(_))
    }

    /// What the journal says, as far as it is known.
    pub fn stamp(&self) -> Option<Stamps> {
        self.inner.journals().first()?.stamp().map(Stamps)
    }

    /// Purges `target`.
    pub fn purge(&self, target: Target<'_>) {
        self.inner.say(|_, key| Some(key.says(target)));
    }

    /// Revokes the caller of `share`.
    pub fn revoke(&self, share: &Share) {
        self.inner.say(|at, _| share.keys.keys.get(at).map(|key| Event::Caller(key.hash)));
    }

    /// What is to be appended to the journal now.
    pub fn tell(&self) -> Option<String> {
        let key = self.inner.keys.first()?;
        self.inner.journals().first_mut()?.take_pending(key)
    }

    /// Names and values to be written for what a call brought that was sent when the journal said `stamp`.
    pub fn write(&self, share: &Share, stamp: &Stamps, brought: &Brought) -> Vec<(Box<str>, String)> {
        let sealed = self.inner.sealed(share, stamp.0, brought);
        sealed.into_iter().map(|sealed| (sealed.name, sealed.value)).collect()
    }

    /// What is made of `value` where the link of `id` should stand.
    pub fn link(&self, share: &Share, id: &str, value: &[u8]) -> Option<Entry> {
        let (key, scope) = (share.keys.keys.first()?, share.names.first()?);
        self.inner.link(0, key, share, id, &scope.link(id), value, self.inner.clock.now())
    }

    /// What is made of `value` where the caller's acceptance should stand: when the call was sent that showed it.
    pub fn acceptance(&self, share: &Share, value: &[u8]) -> Option<Moment> {
        let key = share.keys.keys.first()?;
        self.inner.acceptance(0, key, &key.acceptance, value, self.inner.clock.now())
    }
}
