//! The fleet's journal: purges and revocations, in the order in which they were appended.
//!
//! It is one string of sealed records of one length, to which sidecars append; its first record gives it a random number, its
//! *epoch*. A sealed value carries the length of the journal that its writer knew when it asked the endpoint, and a hash of
//! the journal up to there, so the events from there on may void it: no clock is involved, and a missed message does not
//! matter. News are read from the last known record on, which must be unchanged.
//!
//! A full journal is renamed, and another begins that *continues* it: positions and hashes go on, so values count as before, and
//! who had not read the full one to its end reads the rest of it under its other name. Who has missed more than that, has missed
//! events: everything in memory counts as purged.
//!
//! A journal that is missing, shorter, altered, or another one that does not continue the known one has lost events (an eviction, a
//! flush, an old copy): it begins anew, values with another hash count no more, and each sidecar announces again those of its own
//! events that nobody else has announced in the new journal yet.

use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher24};

use super::record::{Epoch, JOURNAL_RECORD, JournalEvent, Stamp};
use super::sealing::{FleetKey, sealed_len};
use crate::cache::purges::Mark;
use crate::clock::{Moment, millis};

/// Characters of a record.
pub(super) const RECORD: usize = sealed_len(JOURNAL_RECORD);
/// Records after which another journal continues.
const MOST_RECORDS: usize = 10_000;
/// Most records that are appended in one piece.
const MOST_APPENDED: usize = 1000;
/// Most characters of a journal: one that is not full has room for a piece.
pub(super) const MOST: usize = (MOST_RECORDS + MOST_APPENDED) * RECORD;
/// Most pending events; beyond that, one event voids everything.
const MOST_PENDING: usize = 4096;
/// Most lost journals that are known again.
const MOST_LOST: usize = 64;
/// Most announced events that are remembered for the loss of the journal; beyond that, one event stands for all.
const MOST_ANNOUNCED: usize = 1 << 14;

pub(super) const EVERYTHING: JournalEvent = JournalEvent::Purge(Mark::All);

/// The journal under one of the fleet's secrets, as far as this process has read it.
#[derive(Default)]
pub(super) struct Journal {
    /// `None`: not read yet.
    epoch: Option<Epoch>,
    /// The numbers of journals that were known and are lost, the last one last.
    lost: VecDeque<u64>,
    first_record: Vec<u8>,
    /// The last known record.
    last_record: Vec<u8>,
    /// The position before the first of `chain_hashes`.
    oldest: u64,
    /// [`Stamp::chain_hash`] at the end of each record of this journal, and of the one that it continues if that is known.
    chain_hashes: Vec<u128>,
    /// The position of each event's last record, from `oldest` on.
    last: HashMap<JournalEvent, u64>,
    /// Events of this process that are not seen in the journal yet. They count here already.
    pending: HashMap<JournalEvent, Pending>,
    /// When each event of this process that was seen in the journal was announced: announced again if the journal is lost.
    announced: HashMap<JournalEvent, Moment>,
    /// Counts announcements.
    announcements: u64,
    /// How often pending events, or missed ones, were merged into [`EVERYTHING`].
    merged: u64,
}

struct Pending {
    /// The number of its first announcement that is not seen in the journal yet.
    number: u64,
    /// When it was announced, not when it was announced again.
    since: Moment,
    /// It was in a journal that is lost: another sidecar's record of the same event will do.
    again: bool,
    record: Option<String>,
}

/// What was read of a known journal.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct News {
    /// New events of other sidecars.
    pub(super) events: Vec<JournalEvent>,
    /// False if the known records are gone, or if what follows the events is no part of the journal: it has to begin anew.
    pub(super) is_whole: bool,
}

/// What a sidecar finds in another journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Adoption {
    /// The first that it reads.
    First,
    /// It continues the known one, all of which is known.
    Continued,
    /// It continues the known one, whose end is not known.
    Missed,
    /// The known one is lost.
    Lost,
}

/// The beginning of a journal in place of a known text.
pub(super) struct Beginning {
    pub(super) first_record: String,
    /// The length of the text, and its end: another text stays.
    pub(super) length: usize,
    pub(super) end: Vec<u8>,
    /// Whether the text is a full journal, which is renamed.
    pub(super) continues: bool,
}

impl Beginning {
    /// Of a journal that continues none, in place of `text`.
    pub(super) fn anew(key: &FleetKey, text: &[u8]) -> Option<Self> {
        let end = text.get(text.len().saturating_sub(RECORD)..).unwrap_or_default().to_vec();
        Some(Self { first_record: begin(key)?, length: text.len(), end, continues: false })
    }
}

impl Journal {
    /// The position up to which the journal is known.
    fn position(&self) -> u64 {
        self.oldest.saturating_add((self.chain_hashes.len() * RECORD) as u64)
    }

    /// The same as a stamp; `None`: nothing is known.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        Some(Stamp { chain_hash: *self.chain_hashes.last()?, position: self.position() })
    }

    pub(super) fn first(&self) -> Option<&[u8]> {
        self.epoch.map(|_| self.first_record.as_slice())
    }

    /// The known characters of the journal.
    pub(super) fn len(&self) -> u64 {
        self.epoch.map_or(0, |epoch| self.position().saturating_sub(epoch.base))
    }

    /// Where to read on from: the beginning of the last known record.
    pub(super) fn read_from(&self) -> u64 {
        self.len().saturating_sub(RECORD as u64)
    }

    /// The beginning of the journal that continues this one, if this one is full.
    pub(super) fn next(&self, key: &FleetKey) -> Option<Beginning> {
        let (stamp, epoch) = (self.stamp()?, self.epoch?);
        let length = usize::try_from(self.len()).ok().filter(|length| *length >= MOST_RECORDS * RECORD)?;
        let next = Epoch { base: stamp.position, ..epoch };
        let first_record = seal(key, next, JournalEvent::Begin(stamp.chain_hash))?;
        Some(Beginning { first_record, length, end: self.last_record.clone(), continues: true })
    }

    /// Whether `stamp` is a known position.
    fn has(&self, stamp: Stamp) -> bool {
        let Some(known) = stamp.position.checked_sub(self.oldest) else { return false };
        let records = usize::try_from(known).unwrap_or(usize::MAX) / RECORD;
        let hash = records.checked_sub(1).and_then(|last| self.chain_hashes.get(last));
        hash == Some(&stamp.chain_hash) && known == (records * RECORD) as u64
    }

    /// Adds a record; `before`: the hash up to there.
    fn add(&mut self, key: &FleetKey, before: u128, record: &[u8]) {
        let mut hash = SipHasher24::new_with_key(&key.purge_key);
        hash.write(b"story"); // Part of the format.
        hash.write(&before.to_be_bytes());
        hash.write(record);
        self.chain_hashes.push(hash.finish128().as_u128());
        self.last_record = record.to_vec();
    }

    /// Whether this event is known.
    pub(super) fn has_event(&self, event: &JournalEvent) -> bool {
        self.last.contains_key(event) || self.pending.contains_key(event)
    }

    /// Whether a value with `stamp` counts: neither one of `events` nor [`EVERYTHING`] came after it.
    pub(super) fn is_valid(&self, stamp: Stamp, events: &[JournalEvent]) -> bool {
        let is_later = |event: &JournalEvent| self.last.get(event).is_some_and(|at| *at >= stamp.position);
        let voids = |event: &JournalEvent| self.pending.contains_key(event) || is_later(event);
        self.has(stamp) && !events.iter().chain([&EVERYTHING]).any(voids)
    }

    /// Reads the text from [`Journal::read_from`] on.
    pub(super) fn read(&mut self, key: &FleetKey, text: &[u8]) -> News {
        let mut news = News::default();
        let Some(unread) = text.strip_prefix(self.last_record.as_slice()) else { return news };
        let records = unread.chunks_exact(RECORD);
        let is_cut = !records.remainder().is_empty();
        for record in records {
            let Some((epoch, event)) = open(key, record) else { return news };
            let Some(Stamp { chain_hash, position }) = self.stamp() else { return news };
            if Some(epoch) != self.epoch || matches!(event, JournalEvent::Begin(_)) {
                return news;
            }
            self.last.insert(event, position);
            self.add(key, chain_hash, record);
            let pending = self.pending.get(&event);
            let is_own = pending.is_some_and(|pending| pending.record.as_deref().map(str::as_bytes) == Some(record));
            if !is_own {
                news.events.push(event);
            }
            if is_own || pending.is_some_and(|pending| pending.again) {
                self.remember_announced(event);
            }
        }
        news.is_whole = !is_cut;
        news
    }

    /// Takes the journal that begins with `first` in place of the known one; its other records are then [read](Self::read).
    /// `None` if it is no journal, one that was lost before, an older one than the known one, or another continuation of the same: events since are missing
    /// there, while values of before count. It has to begin anew.
    pub(super) fn adopt(&mut self, key: &FleetKey, first: &[u8]) -> Option<Adoption> {
        let (epoch, JournalEvent::Begin(before)) = open(key, first)? else { return None };
        let end = Stamp { chain_hash: before, position: epoch.base };
        let adoption = match self.epoch {
            None => Adoption::First,
            Some(_) if self.stamp() == Some(end) => Adoption::Continued,
            Some(known) if known.number == epoch.number => {
                (epoch.base > self.position()).then_some(Adoption::Missed)?
            }
            // An older copy: values of before count there, without what was announced since.
            Some(_) if self.lost.contains(&epoch.number) => return None,
            Some(known) => {
                self.lost.push_back(known.number);
                self.lost.drain(..self.lost.len().saturating_sub(MOST_LOST));
                Adoption::Lost
            }
        };
        let oldest = match self.epoch {
            Some(known) if adoption == Adoption::Continued => known.base,
            _ => {
                self.chain_hashes.clear();
                self.last.clear();
                self.oldest = epoch.base;
                epoch.base
            }
        };
        let forgotten = usize::try_from(oldest.saturating_sub(self.oldest)).unwrap_or(usize::MAX) / RECORD;
        self.chain_hashes.drain(..forgotten.min(self.chain_hashes.len()));
        self.oldest = oldest;
        self.last.retain(|_, at| *at >= oldest);
        // Not in the known journal, and not written to another one.
        self.pending.values_mut().for_each(|pending| pending.record = None);
        if adoption == Adoption::Lost {
            for (event, since) in std::mem::take(&mut self.announced) {
                self.add_pending(event, since, true);
            }
        }
        self.merged += u64::from(adoption == Adoption::Missed);
        self.epoch = Some(epoch);
        self.first_record = first.to_vec();
        self.add(key, before, first);
        Some(adoption)
    }

    fn remember_announced(&mut self, event: JournalEvent) {
        let Some(Pending { since, .. }) = self.pending.remove(&event) else { return };
        let is_full = self.announced.len() >= MOST_ANNOUNCED;
        if is_full || event == EVERYTHING {
            let since = latest(self.announced.values().copied(), since);
            self.announced.clear();
            self.announced.insert(EVERYTHING, since);
        } else {
            self.announced.insert(event, since);
        }
    }

    /// Announces an event. It counts here at once, and elsewhere once it was appended. Returns whether [`EVERYTHING`] is announced in
    /// its place.
    pub(super) fn announce(&mut self, event: JournalEvent, now: Moment) -> bool {
        self.add_pending(event, now, false)
    }

    fn add_pending(&mut self, event: JournalEvent, since: Moment, again: bool) -> bool {
        self.announcements += 1;
        let is_to_be_appended = |everything: &Pending| everything.record.is_none() && !everything.again;
        let is_covered = self.pending.get(&EVERYTHING).is_some_and(is_to_be_appended);
        let known = self.pending.get(&event);
        if is_covered || again && known.is_some() {
            return is_covered && event != EVERYTHING;
        }
        let number = known.map_or(self.announcements, |known| known.number);
        if self.pending.len() < MOST_PENDING {
            self.pending.insert(event, Pending { number, since, again, record: None });
            return false;
        }
        let number = self.pending.values().map(|pending| pending.number).min().unwrap_or(number);
        let since = latest(self.pending.values().map(|pending| pending.since), since);
        self.pending.clear();
        self.pending.insert(EVERYTHING, Pending { number, since, again: false, record: None });
        self.merged += 1;
        event != EVERYTHING
    }

    /// Records to append now, in one piece. Records that were appended before and are not seen yet are lost: they are
    /// appended again.
    pub(super) fn take_pending(&mut self, key: &FleetKey) -> Option<String> {
        let epoch = self.epoch?;
        let mut text = String::new();
        for (event, pending) in self.pending.iter_mut().take(MOST_APPENDED) {
            let record = seal(key, epoch, *event)?;
            text.push_str(&record);
            pending.record = Some(record);
        }
        (!text.is_empty()).then_some(text)
    }

    /// Takes the events that are not seen in the journal yet, with when each was announced.
    pub(super) fn take_untold(&mut self) -> Vec<(JournalEvent, Moment)> {
        self.pending.drain().map(|(event, pending)| (event, pending.since)).collect()
    }

    /// Events that are not seen in the journal yet.
    pub(super) fn untold(&self) -> usize {
        self.pending.len()
    }

    /// When the oldest of them was announced.
    pub(super) fn untold_since(&self) -> Option<Moment> {
        self.pending.values().map(|pending| pending.since).min_by_key(|since| since.monotonic)
    }

    /// The number of announcements so far.
    pub(super) fn announcements(&self) -> u64 {
        self.announcements
    }

    /// Whether the first `announcements` are all seen in the journal.
    pub(super) fn is_told(&self, announcements: u64) -> bool {
        self.pending.values().all(|pending| pending.number > announcements)
    }

    /// How often events were merged since this was called last.
    pub(super) fn take_merged(&mut self) -> u64 {
        std::mem::take(&mut self.merged)
    }

    /// Forgets events announced longer than `span` ago: no value is that old any more.
    pub(super) fn sweep(&mut self, now: Moment, span: Duration) {
        let is_young = |since: Moment| now.since(since) <= millis(span);
        self.announced.retain(|_, since| is_young(*since));
        self.pending.retain(|_, pending| is_young(pending.since));
    }
}

fn latest(moments: impl Iterator<Item = Moment>, other: Moment) -> Moment {
    moments.chain([other]).max_by_key(|moment| moment.monotonic).unwrap_or(other)
}

/// The first record of a journal that continues none.
pub(super) fn begin(key: &FleetKey) -> Option<String> {
    seal(key, Epoch { number: rand::random(), base: 0 }, JournalEvent::Begin(0))
}

fn seal(key: &FleetKey, epoch: Epoch, event: JournalEvent) -> Option<String> {
    key.seal.seal(&key.journal, &event.write(epoch))
}

fn open(key: &FleetKey, record: &[u8]) -> Option<(Epoch, JournalEvent)> {
    JournalEvent::read(&key.seal.open(&key.journal, record)?)
}

#[cfg(test)]
mod tests;
