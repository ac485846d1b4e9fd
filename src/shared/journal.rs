//! The fleet's journal: purges and revocations, in the order in which they were appended.
//!
//! It is one string of sealed records of one length, to which sidecars append; its first record gives it a random number, its
//! *epoch*. A sealed value carries the length of the journal that its writer knew when it asked the endpoint, and a hash of
//! the journal up to there, so the events from there on may void it: no clock is involved, and a missed message does not
//! matter. News are read from the last known record on, which must be unchanged.
//!
//! A journal that is missing, shorter, altered, or another one has lost events (an eviction, a flush, an old copy): it begins
//! anew, values with another hash count no more, and each sidecar announces its own events again.

use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher24};

use super::record::{JOURNAL_RECORD, JournalEvent, Stamp};
use super::sealing::{FleetKey, sealed_len};
use crate::cache::purges::Mark;
use crate::clock::{Moment, millis};

/// Characters of a record.
pub(super) const RECORD: usize = sealed_len(JOURNAL_RECORD);
/// Records after which a journal begins anew.
const MOST_RECORDS: usize = 10_000;
/// Most characters of a journal, with room for what is appended meanwhile.
pub(super) const MOST: usize = (MOST_RECORDS + 1000) * RECORD;
/// Most pending events, and most announced ones; beyond that, one event voids everything.
const MOST_EVENTS: usize = 4096;

const EVERYTHING: JournalEvent = JournalEvent::Purge(Mark::All);

/// The journal under one of the fleet's secrets, as far as this process has read it.
#[derive(Default)]
pub(super) struct Journal {
    /// `None`: not read yet.
    epoch: Option<u128>,
    first_record: Vec<u8>,
    /// The last known record.
    last_record: Vec<u8>,
    /// [`Stamp::chain_hash`] at the end of each record.
    chain_hashes: Vec<u128>,
    /// The position of each event's last record.
    last: HashMap<JournalEvent, u64>,
    /// Events of this process that are not seen in the journal yet. They count here already.
    pending: Vec<Pending>,
    /// Events of this process that were seen in the journal: announced again if the journal is lost.
    announced: VecDeque<(JournalEvent, Moment)>,
}

struct Pending {
    event: JournalEvent,
    record: Option<String>,
}

impl Journal {
    /// The position up to which the journal is known.
    fn position(&self) -> u64 {
        (self.chain_hashes.len() * RECORD) as u64
    }

    /// The same as a stamp; `None`: nothing is known.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        Some(Stamp { chain_hash: *self.chain_hashes.last()?, position: self.position() })
    }

    pub(super) fn first(&self) -> Option<&[u8]> {
        self.epoch.map(|_| self.first_record.as_slice())
    }

    /// The position to read on from: the beginning of the last known record.
    pub(super) fn read_from(&self) -> u64 {
        self.position().saturating_sub(RECORD as u64)
    }

    pub(super) fn is_full(&self) -> bool {
        self.chain_hashes.len() >= MOST_RECORDS
    }

    /// Whether `stamp` is a position in this journal.
    fn has(&self, stamp: Stamp) -> bool {
        let records = usize::try_from(stamp.position).unwrap_or(usize::MAX) / RECORD;
        let hash = records.checked_sub(1).and_then(|last| self.chain_hashes.get(last));
        hash == Some(&stamp.chain_hash) && stamp.position == (records * RECORD) as u64
    }

    fn add(&mut self, key: &FleetKey, record: &[u8]) {
        let mut hash = SipHasher24::new_with_key(&key.purge_key);
        hash.write(b"story"); // Part of the format.
        hash.write(&self.chain_hashes.last().unwrap_or(&0).to_be_bytes());
        hash.write(record);
        self.chain_hashes.push(hash.finish128().as_u128());
        self.last_record = record.to_vec();
    }

    /// Whether a value with `stamp` counts: neither one of `events` nor [`EVERYTHING`] came after it.
    pub(super) fn is_valid(&self, stamp: Stamp, events: &[JournalEvent]) -> bool {
        let is_pending = |event: &JournalEvent| self.pending.iter().any(|pending| pending.event == *event);
        let is_later = |event: &JournalEvent| self.last.get(event).is_some_and(|at| *at >= stamp.position);
        self.has(stamp) && !events.iter().chain([&EVERYTHING]).any(|event| is_pending(event) || is_later(event))
    }

    /// Reads the text from [`Journal::read_from`] on, of a journal that begins with `first`, if that was read too; returns the new
    /// events of other sidecars. `None` if the known records are gone, or the text is no journal: it has to begin anew.
    pub(super) fn read(
        &mut self,
        key: &FleetKey,
        first: Option<&[u8]>,
        text: &[u8],
        now: Moment,
    ) -> Option<Vec<JournalEvent>> {
        let news = text.strip_prefix(self.last_record.as_slice()).filter(|_| first.is_none() || self.first() == first);
        self.read_records(key, news?, now)
    }

    /// Reads a whole journal in place of the known one; returns as [`Journal::read`].
    pub(super) fn adopt(&mut self, key: &FleetKey, text: &[u8], now: Moment) -> Option<Vec<JournalEvent>> {
        let (first, rest) = text.split_at_checked(RECORD)?;
        let (epoch, JournalEvent::Begin) = open(key, first)? else { return None };
        if self.epoch != Some(epoch) {
            // Announced again: the other journal may have been lost before all had read it.
            self.pending.iter_mut().for_each(|pending| pending.record = None);
            for (event, _) in std::mem::take(&mut self.announced) {
                self.announce(event);
            }
        }
        self.last.clear();
        self.epoch = Some(epoch);
        self.first_record = first.to_vec();
        self.chain_hashes.clear();
        self.add(key, first);
        self.read_records(key, rest, now)
    }

    fn read_records(&mut self, key: &FleetKey, text: &[u8], now: Moment) -> Option<Vec<JournalEvent>> {
        let records = text.chunks_exact(RECORD);
        if !records.remainder().is_empty() {
            return None;
        }
        let mut news = Vec::new();
        for record in records {
            let (epoch, event) = open(key, record)?;
            if Some(epoch) != self.epoch || event == JournalEvent::Begin {
                return None;
            }
            self.last.insert(event, self.position());
            self.add(key, record);
            let is_this = |pending: &Pending| pending.record.as_ref().is_some_and(|this| this.as_bytes() == record);
            let Some(at) = self.pending.iter().position(is_this) else {
                news.push(event);
                continue;
            };
            self.pending.swap_remove(at);
            if self.announced.len() >= MOST_EVENTS {
                self.announced.clear();
                self.announced.push_back((EVERYTHING, now));
            }
            self.announced.push_back((event, now));
        }
        Some(news)
    }

    /// Announces an event. It counts here at once, and elsewhere once it was appended.
    pub(super) fn announce(&mut self, event: JournalEvent) {
        let is_waiting = |pending: &Pending| pending.event == event && pending.record.is_none();
        if self.pending.iter().any(is_waiting) {
            return;
        }
        if self.pending.len() >= MOST_EVENTS {
            self.pending.clear();
            self.pending.push(Pending { event: EVERYTHING, record: None });
        }
        self.pending.push(Pending { event, record: None });
    }

    /// The records to append now, in one piece. Records that were appended before and are not seen yet are lost: they are
    /// appended again.
    pub(super) fn take_pending(&mut self, key: &FleetKey) -> Option<String> {
        let epoch = self.epoch?;
        let mut text = String::new();
        for pending in &mut self.pending {
            let record = seal(key, epoch, pending.event)?;
            text.push_str(&record);
            pending.record = Some(record);
        }
        (!text.is_empty()).then_some(text)
    }

    /// Forgets events announced longer than `span` ago: no value is that old any more.
    pub(super) fn sweep(&mut self, now: Moment, span: Duration) {
        while self.announced.front().is_some_and(|(_, at)| now.since(*at) > millis(span)) {
            self.announced.pop_front();
        }
    }
}

pub(super) fn begin(key: &FleetKey) -> Option<String> {
    seal(key, rand::random(), JournalEvent::Begin)
}

fn seal(key: &FleetKey, epoch: u128, event: JournalEvent) -> Option<String> {
    key.seal.seal(&key.journal, &event.write(epoch))
}

fn open(key: &FleetKey, record: &[u8]) -> Option<(u128, JournalEvent)> {
    JournalEvent::read(&key.seal.open(&key.journal, record)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Endpoint, Secret};

    const NOW: Moment = Moment { monotonic: 0, wall: 0 };

    fn key() -> FleetKey {
        FleetKey::new(Secret::new(vec![b'x'; 32]), &Endpoint::parse("http://h").unwrap(), "p:")
    }

    fn named(name: u128) -> JournalEvent {
        JournalEvent::Purge(Mark::Named(name))
    }

    /// Reads what was appended, as the background task does.
    fn sync(journal: &mut Journal, key: &FleetKey, text: &str) -> Option<Vec<JournalEvent>> {
        let at = usize::try_from(journal.read_from()).unwrap();
        let first = text.as_bytes().get(..RECORD).unwrap_or_default();
        if journal.stamp().is_none() {
            journal.adopt(key, text.as_bytes(), NOW)
        } else {
            journal.read(key, Some(first), text.as_bytes().get(at..).unwrap_or_default(), NOW)
        }
    }

    /// Announces events, appends them, and reads them back; returns the news.
    fn append(journal: &mut Journal, key: &FleetKey, text: &mut String, events: &[JournalEvent]) -> Vec<JournalEvent> {
        events.iter().for_each(|event| journal.announce(*event));
        text.push_str(&journal.take_pending(key).unwrap());
        sync(journal, key, text).unwrap()
    }

    /// A new journal, which has been read.
    fn begun(key: &FleetKey) -> (Journal, String) {
        let (mut journal, text) = (Journal::default(), begin(key).unwrap());
        assert_eq!(sync(&mut journal, key, &text), Some(vec![]));
        (journal, text)
    }

    #[test]
    fn an_event_voids_earlier_values_that_it_concerns_and_nothing_else() {
        let key = key();
        let ((mut one, mut text), mut other) = (begun(&key), Journal::default());
        assert_eq!(sync(&mut other, &key, &text), Some(vec![]));
        let before = other.stamp().unwrap();
        assert!(other.is_valid(before, &[named(1)]));

        one.announce(named(1));
        assert!(!one.is_valid(before, &[named(1)]), "at once where it is announced");
        assert!(one.is_valid(before, &[named(2)]));
        text.push_str(&one.take_pending(&key).unwrap());
        assert_eq!(sync(&mut one, &key, &text), Some(vec![]), "no news for the sidecar that announced it");
        assert_eq!(sync(&mut other, &key, &text), Some(vec![named(1)]));
        for journal in [&one, &other] {
            assert!(journal.pending.is_empty());
            assert!(!journal.is_valid(before, &[named(2), named(1)]));
            assert!(journal.is_valid(before, &[named(2)]));
            assert!(journal.is_valid(journal.stamp().unwrap(), &[named(1)]), "a later value");
        }

        append(&mut other, &key, &mut text, &[EVERYTHING]);
        assert_eq!(sync(&mut one, &key, &text), Some(vec![EVERYTHING]));
        assert!(!one.is_valid(before, &[named(2)]));
    }

    #[test]
    fn a_changed_journal_is_lost() {
        let key = key();
        let (mut journal, mut text) = begun(&key);
        for number in 1..=2 {
            append(&mut journal, &key, &mut text, &[named(number)]);
        }
        assert_eq!(sync(&mut journal, &key, &text), Some(vec![]));
        let another = begin(&key).unwrap();
        let mut grown_anew = text[..2 * RECORD].to_owned();
        let mut writer = Journal::default();
        sync(&mut writer, &key, &grown_anew);
        append(&mut writer, &key, &mut grown_anew, &[named(9)]);
        for lost in [
            "",
            &text[..2 * RECORD],
            &text[..3 * RECORD - 1],
            &grown_anew,
            &another,
            &text.replace(&text[..RECORD], &another),
            &format!("{text}x"),
            &format!("{text}{another}"),
            &format!("{text}{}", "A".repeat(RECORD)),
        ] {
            assert_eq!(sync(&mut journal, &key, lost), None, "{lost}");
        }
    }

    /// Regression: an old copy with new records was taken for the journal that it was copied from, and values of that one
    /// counted.
    #[test]
    fn a_restored_copy_with_other_records_validates_no_value_of_the_first_journal() {
        let key = key();
        let (mut journal, copy) = begun(&key);
        let mut text = copy.clone();
        append(&mut journal, &key, &mut text, &[named(1)]);
        let stamp = journal.stamp().unwrap();
        assert!(journal.is_valid(stamp, &[named(1)]));
        append(&mut journal, &key, &mut text, &[named(1)]);

        // Another journal, and then the copy: events are announced again, at positions where the first had other events.
        journal.adopt(&key, begin(&key).unwrap().as_bytes(), NOW);
        let mut grown = copy;
        journal.adopt(&key, grown.as_bytes(), NOW);
        grown.push_str(&journal.take_pending(&key).unwrap());
        sync(&mut journal, &key, &grown);
        assert_eq!(journal.stamp().unwrap().position, stamp.position);
        assert!(!journal.is_valid(stamp, &[named(1)]));
        assert!(!journal.is_valid(stamp, &[]));
    }

    #[test]
    fn a_new_journal_voids_all_values_and_events_are_announced_again() {
        let key = key();
        let (mut journal, mut text) = begun(&key);
        let old = journal.stamp().unwrap();
        append(&mut journal, &key, &mut text, &[named(1), JournalEvent::Caller(2)]);
        journal.announce(named(3));
        journal.take_pending(&key).unwrap();

        let mut text = begin(&key).unwrap();
        assert_eq!(journal.adopt(&key, text.as_bytes(), NOW), Some(vec![]));
        assert!(!journal.is_valid(old, &[]));
        let new = journal.stamp().unwrap();
        for event in [named(1), JournalEvent::Caller(2), named(3)] {
            assert!(!journal.is_valid(new, &[event]), "an event counts until it is in the journal again");
        }
        text.push_str(&journal.take_pending(&key).unwrap());
        assert_eq!(text.len(), 4 * RECORD);
        let mut other = Journal::default();
        assert_eq!(sync(&mut other, &key, &text).map(|news| news.len()), Some(3));
    }

    #[test]
    fn pending_events_are_bounded() {
        let key = key();
        let (mut journal, _) = begun(&key);
        let before = journal.stamp().unwrap();
        for number in 0..3 * MOST_EVENTS {
            journal.announce(named(number as u128));
        }
        assert!(journal.pending.len() <= MOST_EVENTS + 1);
        for number in 0..3 * MOST_EVENTS {
            assert!(!journal.is_valid(before, &[named(number as u128)]));
        }
    }
}
