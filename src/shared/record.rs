//! The plain bytes of sealed values: a link, an acceptance, or a record of the journal, with fields at fixed places.

use std::sync::Arc;

use bytes::{Buf, BufMut};

use crate::cache::purges::Mark;

/// A link's bytes are padded to a multiple of this, so that a value's length tells little of its content.
const PAD: usize = 64;

const LINK: u8 = 1;
const ABSENCE: u8 = 2;
const ACCEPTANCE: u8 = 3;
const JOURNAL: u8 = 4;

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
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum JournalEvent {
    Begin,
    /// Voids the links that the mark covers.
    Purge(Mark),
    /// Voids all values of a caller.
    Caller(u128),
}

/// Bytes of a record of the journal: all have the same.
pub(super) const JOURNAL_RECORD: usize = 1 + 16 + 1 + 16;

impl LinkRecord {
    pub(super) fn write(&self) -> Vec<u8> {
        let text = self.text.as_deref().unwrap_or_default().as_bytes();
        let mut bytes = Vec::with_capacity((64 + text.len()).next_multiple_of(PAD));
        bytes.put_u8(if self.text.is_some() { LINK } else { ABSENCE });
        self.stamp.write(&mut bytes);
        bytes.put_u64(self.sent);
        self.spans.iter().for_each(|span| bytes.put_u32(*span));
        // No text that fits in a value is longer than 32 bits can tell.
        bytes.put_u32(u32::try_from(text.len()).unwrap_or(u32::MAX));
        bytes.put_slice(text);
        bytes.resize(bytes.len().next_multiple_of(PAD), 0);
        bytes
    }

    pub(super) fn read(mut bytes: &[u8]) -> Option<Self> {
        let kind = bytes.try_get_u8().ok()?;
        let (stamp, sent) = (Stamp::read(&mut bytes)?, bytes.try_get_u64().ok()?);
        let mut span = || bytes.try_get_u32().ok();
        let (spans, length) = ([span()?, span()?, span()?], span()?);
        let text = std::str::from_utf8(bytes.get(..usize::try_from(length).ok()?)?).ok()?;
        let text = match kind {
            LINK => Some(Arc::from(text)),
            ABSENCE if text.is_empty() => None,
            _ => return None,
        };
        Some(Self { stamp, sent, spans, text })
    }
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
    pub(super) fn write(self, epoch: u128) -> Vec<u8> {
        let (kind, hash) = match self {
            Self::Begin => (0, 0),
            Self::Purge(Mark::All) => (1, 0),
            Self::Purge(Mark::Named(hash)) => (2, hash),
            Self::Caller(hash) => (3, hash),
        };
        let mut bytes = Vec::with_capacity(JOURNAL_RECORD);
        bytes.put_u8(JOURNAL);
        bytes.put_u128(epoch);
        bytes.put_u8(kind);
        bytes.put_u128(hash);
        bytes
    }

    pub(super) fn read(mut bytes: &[u8]) -> Option<(u128, Self)> {
        (bytes.try_get_u8().ok()? == JOURNAL).then_some(())?;
        let epoch = bytes.try_get_u128().ok()?;
        let event = match (bytes.try_get_u8().ok()?, bytes.try_get_u128().ok()?) {
            (0, _) => Self::Begin,
            (1, _) => Self::Purge(Mark::All),
            (2, hash) => Self::Purge(Mark::Named(hash)),
            (3, hash) => Self::Caller(hash),
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
            epoch in any::<u128>(), position in any::<u64>(), sent in any::<u64>(), spans in any::<[u32; 3]>(),
            text in proptest::option::of(".{0,200}"), hash in any::<u128>(),
        ) {
            let stamp = Stamp { chain_hash: epoch, position };
            let link = LinkRecord { stamp, sent, spans, text: text.map(Arc::from) };
            let bytes = link.write();
            prop_assert_eq!(bytes.len() % PAD, 0);
            prop_assert_eq!(LinkRecord::read(&bytes), Some(link));
            prop_assert_eq!(read_acceptance(&write_acceptance(stamp, sent)), Some((stamp, sent)));
            for event in [
                JournalEvent::Begin,
                JournalEvent::Purge(Mark::All),
                JournalEvent::Purge(Mark::Named(hash)),
                JournalEvent::Caller(hash),
            ] {
                let bytes = event.write(epoch);
                prop_assert_eq!(JournalEvent::read(&bytes), Some((epoch, event)));
                prop_assert_eq!(LinkRecord::read(&bytes), None);
            }
            prop_assert_eq!(read_acceptance(&bytes), None);
        }

        #[test]
        fn any_bytes_can_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (LinkRecord::read(&bytes), read_acceptance(&bytes), JournalEvent::read(&bytes));
        }
    }
}
