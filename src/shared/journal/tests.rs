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
    if journal.stamp().is_none() {
        journal.adopt(key, text.as_bytes().get(..RECORD)?)?;
    }
    if journal.first() != text.as_bytes().get(..RECORD) {
        return None;
    }
    let at = usize::try_from(journal.read_from()).unwrap();
    let News { events, is_whole } = journal.read(key, text.as_bytes().get(at..).unwrap_or_default());
    is_whole.then_some(events)
}

/// Adopts another journal, and reads it.
fn adopt(journal: &mut Journal, key: &FleetKey, text: &str) -> (Adoption, Vec<JournalEvent>) {
    let adoption = journal.adopt(key, &text.as_bytes()[..RECORD]).unwrap();
    let News { events, is_whole } = journal.read(key, text.as_bytes());
    assert!(is_whole);
    (adoption, events)
}

/// Announces events, appends them, and reads them back; returns the news.
fn append(journal: &mut Journal, key: &FleetKey, text: &mut String, events: &[JournalEvent]) -> Vec<JournalEvent> {
    for event in events {
        journal.announce(*event, NOW);
    }
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

    one.announce(named(1), NOW);
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

/// Regression: purges were lost to memory that stood before what is no record.
#[test]
fn news_before_what_is_no_record_are_kept() {
    let key = key();
    let (mut journal, text) = begun(&key);
    for garbage in ["x".to_owned(), "A".repeat(RECORD), begin(&key).unwrap()] {
        let (mut writer, mut grown) = (Journal::default(), text.clone());
        sync(&mut writer, &key, &grown);
        append(&mut writer, &key, &mut grown, &[named(1)]);
        let mut journal = std::mem::take(&mut journal);
        sync(&mut journal, &key, &text);
        let news = journal.read(&key, format!("{grown}{garbage}").as_bytes());
        assert_eq!(news, News { events: vec![named(1)], is_whole: false }, "{garbage}");
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

    // Another journal, and then the copy.
    adopt(&mut journal, &key, &begin(&key).unwrap());
    assert_eq!(journal.adopt(&key, &copy.as_bytes()[..RECORD]), None, "it was lost");

    // A sidecar that does not know it announces events at positions where the first had others.
    let (mut younger, mut grown) = (Journal::default(), copy);
    sync(&mut younger, &key, &grown);
    append(&mut younger, &key, &mut grown, &[named(2)]);
    assert_eq!(younger.stamp().unwrap().position, stamp.position);
    assert!(!younger.is_valid(stamp, &[named(1)]));
    assert!(!younger.is_valid(stamp, &[]));
}

/// Regression: the purges of sidecars that had ended meanwhile were missing in the copy, and values of before counted.
#[test]
fn a_copy_of_a_journal_that_was_lost_before_is_not_adopted() {
    let key = key();
    let (mut journal, copy) = begun(&key);
    for _ in 0..MOST_LOST {
        adopt(&mut journal, &key, &begin(&key).unwrap());
        assert_eq!(journal.adopt(&key, &copy.as_bytes()[..RECORD]), None);
    }
    adopt(&mut journal, &key, &begin(&key).unwrap());
    assert_eq!(journal.lost.len(), MOST_LOST);
}

#[test]
fn a_new_journal_voids_all_values_and_events_are_announced_again() {
    let key = key();
    let (mut journal, mut text) = begun(&key);
    let old = journal.stamp().unwrap();
    append(&mut journal, &key, &mut text, &[named(1), JournalEvent::Caller(2)]);
    journal.announce(named(3), NOW);
    journal.take_pending(&key).unwrap();

    let mut text = begin(&key).unwrap();
    assert_eq!(adopt(&mut journal, &key, &text), (Adoption::Lost, vec![]));
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
    for number in 0..3 * MOST_PENDING {
        journal.announce(named(number as u128), NOW);
    }
    assert!(journal.pending.len() <= MOST_PENDING);
    assert_eq!(journal.take_merged(), 1, "what comes after it and before it is appended is part of it");
    for number in 0..3 * MOST_PENDING {
        assert!(!journal.is_valid(before, &[named(number as u128)]));
    }
}

/// Fills the journal, one piece after the other; returns the text.
fn fill(journal: &mut Journal, key: &FleetKey, text: &mut String, from: u128) {
    for number in from.. {
        if journal.next(key).is_some() {
            return;
        }
        let piece: Vec<_> = (0..1000).map(|at| named(number * 1000 + at)).collect();
        append(journal, key, text, &piece);
    }
}

#[test]
fn a_journal_that_continues_a_full_one_loses_and_repeats_nothing() {
    let key = key();
    let (mut one, mut text) = begun(&key);
    let (mut other, mut behind, mut far_behind) = (Journal::default(), Journal::default(), Journal::default());
    for journal in [&mut other, &mut behind, &mut far_behind] {
        assert_eq!(sync(journal, &key, &text), Some(vec![]));
    }
    append(&mut one, &key, &mut text, &[named(7)]);
    let before = one.stamp().unwrap();
    fill(&mut one, &key, &mut text, 1);
    let known = sync(&mut other, &key, &text).unwrap().len();
    let last = one.stamp().unwrap();
    let Beginning { mut first_record, length, continues: true, .. } = one.next(&key).unwrap() else { panic!() };
    assert_eq!((length, known), (text.len(), text.len() / RECORD - 1));

    for journal in [&mut one, &mut other] {
        assert_eq!(adopt(journal, &key, &first_record), (Adoption::Continued, vec![]));
        assert!(journal.pending.is_empty(), "nothing is announced again");
    }
    // The rest of the full one, and then the one that continues it.
    assert_eq!(sync(&mut behind, &key, &text).map(|news| news.len()), Some(known));
    assert_eq!(adopt(&mut behind, &key, &first_record), (Adoption::Continued, vec![]));
    let mut fresh = Journal::default();
    assert_eq!(adopt(&mut fresh, &key, &first_record), (Adoption::First, vec![]));
    for journal in [&one, &other, &behind] {
        assert!(journal.is_valid(before, &[named(7)]), "values of before count");
        assert!(journal.is_valid(before, &[named(3)]));
        assert!(!journal.is_valid(before, &[named(1500)]), "unless they were purged since");
        assert!(journal.is_valid(last, &[named(1500)]));
    }
    assert!(!fresh.is_valid(last, &[]), "who cannot know that does without");
    append(&mut one, &key, &mut first_record, &[named(7)]);
    for journal in [&mut other, &mut behind, &mut fresh] {
        assert_eq!(sync(journal, &key, &first_record), Some(vec![named(7)]));
        assert_eq!(journal.stamp(), one.stamp());
        assert!(!journal.is_valid(before, &[named(7)]));
    }

    assert_eq!(adopt(&mut far_behind, &key, &first_record), (Adoption::Missed, vec![named(7)]));
    assert_eq!(far_behind.take_merged(), 1);
    assert!(!far_behind.is_valid(last, &[]));
    assert_eq!(far_behind.stamp(), one.stamp());
}

/// Regression: a copy of before the journal was continued was adopted, and its values counted without the events since.
#[test]
fn an_older_copy_or_another_continuation_of_a_known_journal_is_not_adopted() {
    let key = key();
    let (mut journal, mut older) = begun(&key);
    fill(&mut journal, &key, &mut older, 0);
    let mut other = Journal::default();
    sync(&mut other, &key, &older);
    let mut text = journal.next(&key).unwrap().first_record;
    adopt(&mut journal, &key, &text);
    append(&mut journal, &key, &mut text, &[named(1 << 64)]);
    let known = journal.stamp();
    for another in [older, other.next(&key).unwrap().first_record] {
        assert_eq!(journal.adopt(&key, &another.as_bytes()[..RECORD]), None);
        assert_eq!(journal.stamp(), known);
    }
}

#[test]
fn what_is_known_of_journals_is_bounded_however_many_follow() {
    let key = key();
    let (mut journal, mut text) = begun(&key);
    for round in 0..3 {
        fill(&mut journal, &key, &mut text, round * 100);
        text = journal.next(&key).unwrap().first_record;
        assert_eq!(adopt(&mut journal, &key, &text).0, Adoption::Continued);
        assert!(journal.chain_hashes.len() <= MOST_RECORDS + MOST_APPENDED, "{}", journal.chain_hashes.len());
        assert!(journal.last.len() <= MOST_RECORDS + MOST_APPENDED);
        assert!(journal.announced.len() <= MOST_ANNOUNCED);
    }
}

#[test]
fn after_a_loss_an_event_is_announced_by_one_sidecar_of_those_that_know_it() {
    let key = key();
    let (mut one, mut text) = begun(&key);
    let mut other = Journal::default();
    sync(&mut other, &key, &text).unwrap();
    append(&mut one, &key, &mut text, &[named(1), named(2)]);
    sync(&mut other, &key, &text).unwrap();
    append(&mut other, &key, &mut text, &[named(1), named(3)]);
    sync(&mut one, &key, &text).unwrap();

    let mut text = begin(&key).unwrap();
    assert_eq!(adopt(&mut one, &key, &text).0, Adoption::Lost);
    text.push_str(&one.take_pending(&key).unwrap());
    sync(&mut one, &key, &text).unwrap();
    adopt(&mut other, &key, &text);
    assert!(!other.is_valid(other.stamp().unwrap(), &[named(3)]));
    text.push_str(&other.take_pending(&key).unwrap());
    assert_eq!(text.len(), 4 * RECORD);
    assert_eq!(sync(&mut other, &key, &text), Some(vec![]));
    // But one that is purged once more is announced.
    other.announce(named(1), NOW);
    assert_eq!(other.take_pending(&key).map(|text| text.len()), Some(RECORD));
}

#[test]
fn events_keep_the_moment_at_which_they_were_announced_first() {
    let key = key();
    let (mut journal, mut text) = begun(&key);
    append(&mut journal, &key, &mut text, &[named(1)]);
    adopt(&mut journal, &key, &begin(&key).unwrap());
    let later = Moment { monotonic: 1001, wall: 1001 };
    journal.announce(named(2), later);
    journal.sweep(later, Duration::from_secs(1));
    assert_eq!(journal.pending.keys().collect::<Vec<_>>(), [&named(2)], "no value is older than the first");
}
