//! The plain bytes of sealed values: a link, an acceptance, or a record of the journal, with fields at fixed places.

use std::sync::Arc;

use bytes::{Buf, BufMut};

use crate::api::envelope::Envelope;
use crate::cache::purges::Mark;
use crate::cache::{Countdown, ItemDetails};

/// A link's bytes are padded to a multiple of this, so that a value's length tells little of its content.
const PAD: usize = 64;

const LINK: u8 = 1;
const ABSENCE: u8 = 2;
const ACCEPTANCE: u8 = 3;
const JOURNAL: u8 = 4;
/// A link, or an absence, with details.
const DETAILED: u8 = 5;

/// A position in the fleet's journal. A value carries the position that its writer knew when it *asked* the endpoint: events
/// from there on may void it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stamp {
    /// A keyed hash of the journal up to there: journals with one beginning may differ later.
    pub(super) chain_hash: u128,
    pub(super) position: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LinkRecord {
    pub(super) stamp: Stamp,
    /// When the call was sent, in milliseconds since the Unix epoch on the writer's clock.
    pub(super) sent: u64,
    /// Milliseconds from there that it is fresh, that it is usable, and until its URL expires.
    pub(super) spans: [u32; 3],
    /// `None`: the endpoint left the id out.
    pub(super) text: Option<Arc<str>>,
    pub(super) details: Option<Arc<ItemDetails>>,
}

/// Which journal a record is of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Epoch {
    /// A random number, the same for a journal and those that continue it.
    pub(super) number: u64,
    /// The position at which this journal begins: the length of those that it continues.
    pub(super) base: u64,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum JournalEvent {
    /// The first record, with [`Stamp::chain_hash`] at the end of the journal that this one continues; 0 if it continues none.
    Begin(u128),
    /// Voids the links that the mark covers.
    Purge(Mark),
    /// Voids all values of a caller.
    Caller(u128),
    /// Voids one caller's link.
    Link(u128),
}

/// Bytes of a record of the journal: all have the same.
pub(super) const JOURNAL_RECORD: usize = 1 + 16 + 1 + 16;

impl LinkRecord {
    pub(super) fn write(&self) -> Vec<u8> {
        let text = self.text.as_deref().unwrap_or_default().as_bytes();
        let mut bytes = Vec::with_capacity((64 + text.len()).next_multiple_of(PAD));
        bytes.put_u8(match (&self.details, &self.text) {
            (Some(_), _) => DETAILED,
            (None, Some(_)) => LINK,
            (None, None) => ABSENCE,
        });
        self.stamp.write(&mut bytes);
        bytes.put_u64(self.sent);
        self.spans.iter().for_each(|span| bytes.put_u32(*span));
        // No text that fits in a value is longer than 32 bits can tell.
        bytes.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        bytes.put_slice(text);
        if let Some(details) = &self.details {
            write_details(details, &mut bytes);
        }
        bytes.resize(bytes.len().next_multiple_of(PAD), 0);
        bytes
    }

    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
        let kind = bytes.try_get_u8().ok()?;
        let (stamp, sent) = (Stamp::read(&mut bytes)?, bytes.try_get_u64().ok()?);
        let mut span = || bytes.try_get_u32().ok();
        let (spans, length) = ([span()?, span()?, span()?], span()?);
        let text = take(&mut bytes, length)?;
        let (text, details) = match kind {
            LINK => (Some(Arc::from(text)), None),
            ABSENCE if text.is_empty() => (None, None),
            DETAILED => {
                (Some(text).filter(|text| !text.is_empty()).map(Arc::from), Some(read_details(text, &mut bytes)?))
            }
            _ => return None,
        };
        Some(Self { stamp, sent, spans, text, details: details.map(Arc::new) })
    }

    pub(super) fn is_absent(&self) -> bool {
        self.text.is_none() || self.details.as_ref().is_some_and(|details| details.is_absent)
    }
}

/// Takes a text of this many bytes.
fn take<'b>(bytes: &mut &'b [u8], length: u32) -> Option<&'b str> {
    let (text, rest) = bytes.split_at_checked(usize::try_from(length).ok()?)?;
    *bytes = rest;
    std::str::from_utf8(text).ok()
}

fn write_details(ItemDetails { envelope, is_absent, countdowns, .. }: &ItemDetails, bytes: &mut Vec<u8>) {
    // No text that fits in a value is longer than 32 bits can tell.
    let length = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
    bytes.put_u8(u8::from(*is_absent));
    bytes.put_u32(length(countdowns.len()));
    for Countdown { place, seconds } in countdowns {
        bytes.put_u32(length(place.start));
        bytes.put_u32(length(place.end));
        bytes.put_u64(*seconds);
    }
    bytes.put_u8(u8::from(envelope.is_some()));
    if let Some((before, after, media_type)) = envelope.as_ref().map(|envelope| envelope.parts()) {
        for part in [before.as_bytes(), after.as_bytes(), media_type] {
            bytes.put_u32(length(part.len()));
            bytes.put_slice(part);
        }
    }
}

/// The details of an item of this text.
fn read_details(text: &str, bytes: &mut &[u8]) -> Option<ItemDetails> {
    let is_absent = bytes.try_get_u8().ok()? != 0;
    let (count, mut countdowns, mut end) = (bytes.try_get_u32().ok()?, Vec::new(), 0);
    for _ in 0..count {
        let start = usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        let place = start..usize::try_from(bytes.try_get_u32().ok()?).ok()?;
        let seconds = bytes.try_get_u64().ok()?;
        let is_number = |digits: &&str| digits.bytes().all(|byte| byte.is_ascii_digit());
        let stated: u64 = text.get(place.clone()).filter(is_number)?.parse().ok()?;
        if place.start < end || seconds > stated {
            return None;
        }
        end = place.end;
        countdowns.push(Countdown { place, seconds });
    }
    let has_envelope = bytes.try_get_u8().ok()? != 0;
    let mut part = || {
        let length = bytes.try_get_u32().ok()?;
        take(bytes, length)
    };
    let envelope = match has_envelope {
        true => Some(Arc::new(Envelope::from_parts(part()?, part()?, part()?.as_bytes())?)),
        false => None,
    };
    Some(ItemDetails::new(envelope, is_absent, countdowns.into(), 1))
}

/// The endpoint's acceptance of a caller, shown by a call sent at `sent` (as in [`LinkRecord`]).
pub(super) fn write_acceptance(stamp: Stamp, sent: u64) -> Vec<u8> {
    let mut bytes = vec![ACCEPTANCE];
    stamp.write(&mut bytes);
    bytes.put_u64(sent);
    bytes
}

pub(super) fn read_acceptance(mut bytes: &[u8]) -> Option<(Stamp, u64)> {
    (bytes.try_get_u8().ok()? == ACCEPTANCE).then_some(())?;
    Some((Stamp::read(&mut bytes)?, bytes.try_get_u64().ok()?))
}

impl JournalEvent {
    pub(super) fn write(self, epoch: Epoch) -> Vec<u8> {
        let (kind, hash) = match self {
            Self::Begin(hash) => (0, hash),
            Self::Purge(Mark::All) => (1, 0),
            Self::Purge(Mark::Named(hash)) => (2, hash),
            Self::Caller(hash) => (3, hash),
            Self::Link(hash) => (4, hash),
        };
        let mut bytes = Vec::with_capacity(JOURNAL_RECORD);
        bytes.put_u8(JOURNAL);
        bytes.put_u64(epoch.number);
        bytes.put_u64(epoch.base);
        bytes.put_u8(kind);
        bytes.put_u128(hash);
        bytes
    }

    pub(super) fn read(mut bytes: &[u8]) -> Option<(Epoch, Self)> {
        (bytes.try_get_u8().ok()? == JOURNAL).then_some(())?;
        let epoch = Epoch { number: bytes.try_get_u64().ok()?, base: bytes.try_get_u64().ok()? };
        let event = match (bytes.try_get_u8().ok()?, bytes.try_get_u128().ok()?) {
            (0, hash) => Self::Begin(hash),
            (1, _) => Self::Purge(Mark::All),
            (2, hash) => Self::Purge(Mark::Named(hash)),
            (3, hash) => Self::Caller(hash),
            (4, hash) => Self::Link(hash),
            _ => return None,
        };
        Some((epoch, event))
    }
}

impl Stamp {
    fn write(self, bytes: &mut Vec<u8>) {
        bytes.put_u128(self.chain_hash);
        bytes.put_u64(self.position);
    }

    fn read(bytes: &mut &[u8]) -> Option<Self> {
        Some(Self { chain_hash: bytes.try_get_u128().ok()?, position: bytes.try_get_u64().ok()? })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn records_read_back_as_written(
            number in any::<u64>(), position in any::<u64>(), sent in any::<u64>(), spans in any::<[u32; 3]>(),
            text in proptest::option::of(".{0,200}"), hash in any::<u128>(),
            details in proptest::option::of((any::<bool>(), proptest::option::of((".{0,20}", ".{0,20}", "[a-z/]{1,9}")), any::<u32>())),
        ) {
            let details = details.map(|(is_absent, envelope, seconds)| {
                let envelope = envelope.map(|(before, after, media_type)| {
                    Arc::new(Envelope::from_parts(&before, &after, media_type.as_bytes()).unwrap())
                });
                let digits = text.as_deref().and_then(|text| {
                    text.char_indices().find_map(|(at, char)| Some((at, char.to_digit(10)?)))
                });
                let countdowns = digits.map(|(at, digit)| {
                    Countdown { place: at..at + 1, seconds: u64::from(seconds % (digit + 1)) }
                });
                Arc::new(ItemDetails::new(envelope, is_absent, countdowns.into_iter().collect(), 1))
            });
            let text = text.filter(|text| !text.is_empty() || details.is_none());
            let stamp = Stamp { chain_hash: hash, position };
            let link = LinkRecord { stamp, sent, spans, text: text.map(Arc::from), details };
            let bytes = link.write();
            prop_assert_eq!(bytes.len() % PAD, 0);
            prop_assert_eq!(LinkRecord::read(&bytes), Some(link));
            prop_assert_eq!(read_acceptance(&write_acceptance(stamp, sent)), Some((stamp, sent)));
            for event in [
                JournalEvent::Begin(hash),
                JournalEvent::Purge(Mark::All),
                JournalEvent::Purge(Mark::Named(hash)),
                JournalEvent::Caller(hash),
                JournalEvent::Link(hash),
            ] {
                let epoch = Epoch { number, base: position };
                let bytes = event.write(epoch);
                prop_assert_eq!(JournalEvent::read(&bytes), Some((epoch, event)));
                prop_assert_eq!(LinkRecord::read(&bytes), None);
            }
            prop_assert_eq!(read_acceptance(&bytes), None);
        }

        #[test]
        fn a_record_that_states_a_longer_life_than_its_text_does_is_not_read(text in "[0-9]{1,7}", seconds in any::<u64>()) {
            let countdown = Countdown { place: 0..text.len(), seconds };
            let stated: u64 = text.parse().unwrap();
            let details = ItemDetails::new(None, false, Box::new([countdown]), 1);
            let (stamp, details) = (Stamp { chain_hash: 0, position: 0 }, Some(Arc::new(details)));
            let link = LinkRecord { stamp, sent: 0, spans: [1; 3], text: Some(text.into()), details };
            prop_assert_eq!(LinkRecord::read(&link.write()).is_some(), seconds <= stated);
        }

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (LinkRecord::read(&bytes), read_acceptance(&bytes), JournalEvent::read(&bytes));
        }
    }
}
