//! The fleet's journal: what was purged and who was revoked, in the order in which it was told.
//!
//! It is one string of sealed records, all of one length, that sidecars append to and that only grows; its first record
//! gives it a number of its own, its *epoch*. Whatever is sealed bears the length that its writer knew when it asked the
//! endpoint, and a hash of the journal up to there, so what concerns a value is what the journal says from there on: no clock
//! has a say, and a message that was missed does not matter. Reading on is reading from the last known record, which has to be there unchanged.
//!
//! A journal that is missing, shorter, altered, or another one means that what was said is lost (an eviction, a flush, an old
//! copy): it begins anew, what bears another hash counts no more, and everyone says again what it had said itself.

use std::collections::{HashMap, VecDeque};
use std::hash::Hasher;
use std::time::Duration;

use siphasher::sip128::{Hasher128, SipHasher24};

use super::record::{ENTRY, Event, JournalRecord, Stamp};
use super::sealing::{FleetKey, sealed_len};
use crate::clock::{Moment, millis};

/// Characters of a record.
pub(super) const RECORD: usize = sealed_len(ENTRY);
/// Records at most; then it begins anew.
const MOST_RECORDS: usize = 10_000;
/// Characters at most, with room for what is appended meanwhile.
pub(super) const MOST: usize = (MOST_RECORDS + 1000) * RECORD;
/// What is yet to be told, and what was told lately, at most: beyond, all is void.
const MOST_SAID: usize = 4096;

/// What this process knows of the journal under one of the fleet's secrets.
pub(super) struct Journal {
    /// `None`: not read yet.
    epoch: Option<u128>,
    /// Characters known.
    position: u64,
    /// The first record as it stands there.
    first: Vec<u8>,
    /// The last one known.
    last: Vec<u8>,
    /// The stamp's hash at the end of each record.
    stories: Vec<u128>,
    /// What was said last where.
    marks: HashMap<Event, u64>,
    /// Told, or to be told, and not yet seen in the journal: it counts here already.
    pending: Vec<Pending>,
    /// What was said from here and seen there, to be said again if the journal is lost.
    said: VecDeque<(Event, Moment)>,
}

struct Pending {
    says: Event,
    /// The record that was appended, if it was.
    record: Option<String>,
}

/// What reading the journal has shown.
pub(super) enum Read {
    /// This is new, from others.
    News(Vec<Event>),
    /// What was known does not stand there any more, or what stands there is nobody's: it has to begin anew.
    Lost,
}

impl Journal {
    pub(super) fn new() -> Self {
        Self {
            epoch: None,
            position: 0,
            first: Vec::new(),
            last: Vec::new(),
            stories: Vec::new(),
            marks: HashMap::new(),
            pending: Vec::new(),
            said: VecDeque::new(),
        }
    }

    /// The place up to which it is known.
    pub(super) fn stamp(&self) -> Option<Stamp> {
        let story = *self.stories.last()?;
        self.epoch.map(|_| Stamp { story, position: self.position })
    }

    /// Its first record, if one is known.
    pub(super) fn first(&self) -> Option<&[u8]> {
        self.epoch.map(|_| self.first.as_slice())
    }

    /// Where to read on: the beginning of the last record known.
    pub(super) fn read_from(&self) -> u64 {
        self.position.saturating_sub(RECORD as u64)
    }

    /// Whether it is so long that it is to begin anew.
    pub(super) fn is_full(&self) -> bool {
        self.position >= (MOST_RECORDS * RECORD) as u64
    }

    /// Whether this journal stood just as `stamp` says, then.
    fn has(&self, stamp: Stamp) -> bool {
        let records = usize::try_from(stamp.position).unwrap_or(usize::MAX) / RECORD;
        let story = records.checked_sub(1).and_then(|last| self.stories.get(last));
        story == Some(&stamp.story) && stamp.position == (records * RECORD) as u64
    }

    /// Takes in one record more.
    fn add(&mut self, key: &FleetKey, record: &[u8]) {
        let mut hash = SipHasher24::new_with_key(&key.marks);
        hash.write(b"story");
        hash.write(&self.stories.last().unwrap_or(&0).to_be_bytes());
        hash.write(record);
        self.stories.push(hash.finish128().as_u128());
        self.position += RECORD as u64;
        self.last = record.to_vec();
    }

    /// Whether what bears `stamp` is concerned by nothing that was said since, about everything or about `whom`.
    pub(super) fn upholds(&self, stamp: Stamp, whom: &[Event]) -> bool {
        let concerns = |says: &Event| *says == Event::All || whom.contains(says);
        self.epoch.is_some()
            && self.has(stamp)
            && !self.pending.iter().any(|pending| concerns(&pending.says))
            && !whom
                .iter()
                .chain([&Event::All])
                .any(|says| self.marks.get(says).is_some_and(|at| *at >= stamp.position))
    }

    /// Takes in the text from [`Journal::read_from`] on, of a journal that begins with `first`.
    pub(super) fn read(&mut self, key: &FleetKey, first: &[u8], text: &[u8], now: Moment) -> Read {
        let known = self.epoch.is_some() && self.first == first;
        if !known {
            return Read::Lost;
        }
        let Some(news) = text.strip_prefix(self.last.as_slice()) else { return Read::Lost };
        self.take_in(key, news, now)
    }

    /// Takes in a whole journal in place of what was known of another one.
    pub(super) fn adopt(&mut self, key: &FleetKey, text: &[u8], now: Moment) -> Read {
        let Some((first, rest)) = text.split_at_checked(RECORD) else { return Read::Lost };
        let Some(JournalRecord { epoch, says: Event::Begin }) = open(key, first) else { return Read::Lost };
        if self.epoch != Some(epoch) {
            // Said again: it may have been lost before all had read it.
            for pending in &mut self.pending {
                pending.record = None;
            }
            let lost: Vec<Event> = self.said.drain(..).map(|(says, _)| says).collect();
            for says in lost {
                self.say(says);
            }
        }
        self.marks.clear();
        self.epoch = Some(epoch);
        self.first = first.to_vec();
        self.stories.clear();
        self.position = 0;
        self.add(key, first);
        self.take_in(key, rest, now)
    }

    fn take_in(&mut self, key: &FleetKey, text: &[u8], now: Moment) -> Read {
        let records = text.chunks_exact(RECORD);
        if !records.remainder().is_empty() {
            return Read::Lost;
        }
        let mut news = Vec::new();
        for record in records {
            let Some(JournalRecord { epoch, says }) = open(key, record) else { return Read::Lost };
            if Some(epoch) != self.epoch || says == Event::Begin {
                return Read::Lost;
            }
            self.marks.insert(says, self.position);
            self.add(key, record);
            let own = |pending: &Pending| pending.record.as_ref().is_some_and(|own| own.as_bytes() == record);
            match self.pending.iter().position(own) {
                Some(at) => {
                    self.pending.swap_remove(at);
                    if self.said.len() >= MOST_SAID {
                        self.said.clear();
                        self.said.push_back((Event::All, now));
                    }
                    self.said.push_back((says, now));
                }
                None => news.push(says),
            }
        }
        Read::News(news)
    }

    /// Event something. It counts here at once, and elsewhere once it was appended.
    pub(super) fn say(&mut self, says: Event) {
        let waits = |pending: &Pending| pending.says == says && pending.record.is_none();
        if self.pending.iter().any(waits) {
            return;
        }
        if self.pending.len() >= MOST_SAID {
            self.pending.clear();
            self.pending.push(Pending { says: Event::All, record: None });
        }
        self.pending.push(Pending { says, record: None });
    }

    /// What is to be appended now, in one piece. What was appended before and is still not to be seen is not there: it is
    /// appended again.
    pub(super) fn take_pending(&mut self, key: &FleetKey) -> Option<String> {
        let epoch = self.epoch?;
        let mut text = String::new();
        for pending in &mut self.pending {
            let entry = JournalRecord { epoch, says: pending.says };
            let record = key.seal.seal(&key.journal, &entry.write())?;
            text.push_str(&record);
            pending.record = Some(record);
        }
        (!text.is_empty()).then_some(text)
    }

    /// Forgets what was said longer ago than `span`: nothing can be that old any more.
    pub(super) fn sweep(&mut self, now: Moment, span: Duration) {
        while self.said.front().is_some_and(|(_, at)| now.since(*at) > millis(span)) {
            self.said.pop_front();
        }
    }
}

/// The first record of a journal with a number of its own.
pub(super) fn begin(key: &FleetKey) -> Option<String> {
    key.seal.seal(&key.journal, &JournalRecord { epoch: rand::random(), says: Event::Begin }.write())
}

fn open(key: &FleetKey, record: &[u8]) -> Option<JournalRecord> {
    JournalRecord::read(&key.seal.open(&key.journal, record)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Endpoint, Secret};

    const NOW: Moment = Moment { monotonic: 0, wall: 0 };

    fn key() -> FleetKey {
        FleetKey::new(Secret::new(vec![b'x'; 32]), &Endpoint::parse("http://h").unwrap(), "p:")
    }

    /// Reads what has been appended, as the keeper does.
    fn sync(journal: &mut Journal, key: &FleetKey, text: &str) -> Option<Vec<Event>> {
        let at = usize::try_from(journal.read_from()).unwrap();
        let first = text.as_bytes().get(..RECORD).unwrap_or_default();
        let read = if journal.stamp().is_none() {
            journal.adopt(key, text.as_bytes(), NOW)
        } else {
            journal.read(key, first, text.as_bytes().get(at..).unwrap_or_default(), NOW)
        };
        if let Read::News(news) = read { Some(news) } else { None }
    }

    #[test]
    fn what_is_said_voids_what_was_sealed_before_and_nothing_else() {
        let key = key();
        let (mut one, mut other) = (Journal::new(), Journal::new());
        let mut text = begin(&key).unwrap();
        assert_eq!(sync(&mut one, &key, &text), Some(vec![]));
        assert_eq!(sync(&mut other, &key, &text), Some(vec![]));
        let before = other.stamp().unwrap();
        assert!(other.upholds(before, &[Event::Over(1)]));

        one.say(Event::Over(1));
        assert!(!one.upholds(before, &[Event::Over(1)]), "at once where it is said");
        assert!(one.upholds(before, &[Event::Over(2)]));
        text.push_str(&one.take_pending(&key).unwrap());
        assert_eq!(sync(&mut one, &key, &text), Some(vec![]), "it is no news to who said it");
        assert_eq!(sync(&mut other, &key, &text), Some(vec![Event::Over(1)]));
        for journal in [&one, &other] {
            assert!(journal.pending.is_empty());
            assert!(!journal.upholds(before, &[Event::Over(2), Event::Over(1)]));
            assert!(journal.upholds(before, &[Event::Over(2)]));
            assert!(journal.upholds(journal.stamp().unwrap(), &[Event::Over(1)]), "what was asked for afterwards");
        }

        other.say(Event::All);
        text.push_str(&other.take_pending(&key).unwrap());
        assert_eq!(sync(&mut one, &key, &text), Some(vec![Event::All]));
        assert!(!one.upholds(before, &[Event::Over(2)]));
    }

    #[test]
    fn a_journal_that_is_not_what_it_was_is_lost() {
        let key = key();
        let mut journal = Journal::new();
        let mut text = begin(&key).unwrap();
        sync(&mut journal, &key, &text);
        for number in 1..=2 {
            journal.say(Event::Over(number));
            text.push_str(&journal.take_pending(&key).unwrap());
            sync(&mut journal, &key, &text);
        }
        assert_eq!(sync(&mut journal, &key, &text), Some(vec![]));
        let another = begin(&key).unwrap();
        let mut grown_anew = text[..2 * RECORD].to_owned();
        let mut writer = Journal::new();
        writer.adopt(&key, grown_anew.as_bytes(), NOW);
        writer.say(Event::Over(9));
        grown_anew.push_str(&writer.take_pending(&key).unwrap());
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

    /// Regression: an old copy that had grown again passed for what it had been, and what was sealed by the other one counted.
    #[test]
    fn a_copy_that_was_brought_back_and_has_grown_in_another_way_upholds_nothing_of_the_first() {
        let key = key();
        let copy = begin(&key).unwrap();
        let (mut journal, mut text) = (Journal::new(), copy.clone());
        sync(&mut journal, &key, &text);
        journal.say(Event::Over(1));
        text.push_str(&journal.take_pending(&key).unwrap());
        sync(&mut journal, &key, &text);
        let stamp = journal.stamp().unwrap();
        assert!(journal.upholds(stamp, &[Event::Over(1)]));
        journal.say(Event::Over(1));
        text.push_str(&journal.take_pending(&key).unwrap());
        sync(&mut journal, &key, &text);

        // Another journal, and then the copy: what was said is said again, where the first had other things.
        journal.adopt(&key, begin(&key).unwrap().as_bytes(), NOW);
        let mut grown = copy;
        journal.adopt(&key, grown.as_bytes(), NOW);
        grown.push_str(&journal.take_pending(&key).unwrap());
        sync(&mut journal, &key, &grown);
        assert_eq!(journal.stamp().unwrap().position, stamp.position);
        assert!(!journal.upholds(stamp, &[Event::Over(1)]));
        assert!(!journal.upholds(stamp, &[]));
    }

    #[test]
    fn a_journal_that_begins_anew_voids_all_and_is_told_again_what_was_said() {
        let key = key();
        let mut journal = Journal::new();
        let mut text = begin(&key).unwrap();
        sync(&mut journal, &key, &text);
        let old = journal.stamp().unwrap();
        for says in [Event::Over(1), Event::Caller(2)] {
            journal.say(says);
        }
        text.push_str(&journal.take_pending(&key).unwrap());
        sync(&mut journal, &key, &text);
        journal.say(Event::Over(3));
        journal.take_pending(&key).unwrap();

        let mut text = begin(&key).unwrap();
        assert!(matches!(journal.adopt(&key, text.as_bytes(), NOW), Read::News(news) if news.is_empty()));
        assert!(!journal.upholds(old, &[]));
        let new = journal.stamp().unwrap();
        for says in [Event::Over(1), Event::Caller(2), Event::Over(3)] {
            assert!(!journal.upholds(new, &[says]), "it counts until it is there again");
        }
        text.push_str(&journal.take_pending(&key).unwrap());
        assert_eq!(text.len(), 4 * RECORD);
        let mut other = Journal::new();
        assert_eq!(sync(&mut other, &key, &text).map(|news| news.len()), Some(3));
    }

    #[test]
    fn what_is_yet_to_be_said_is_bounded() {
        let key = key();
        let mut journal = Journal::new();
        let text = begin(&key).unwrap();
        sync(&mut journal, &key, &text);
        let before = journal.stamp().unwrap();
        for number in 0..3 * MOST_SAID {
            journal.say(Event::Over(number as u128));
        }
        assert!(journal.pending.len() <= MOST_SAID + 1);
        for number in 0..3 * MOST_SAID {
            assert!(!journal.upholds(before, &[Event::Over(number as u128)]));
        }
    }
}
