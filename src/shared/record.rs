//! What is sealed: a link, an acceptance, or a record of the journal, as bytes of fixed places.

use std::sync::Arc;

/// A link's bytes are filled up to a multiple of this, so that a value's length tells little of what is in it.
const PAD: usize = 64;

const LINK: u8 = 1;
const ABSENCE: u8 = 2;
const ACCEPTANCE: u8 = 3;
const JOURNAL: u8 = 4;

/// A place in the fleet's journal. What is sealed bears the one that its writer knew when it *asked* the endpoint: what the
/// journal says from there on concerns it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Stamp {
    /// A keyed hash of the journal up to there: two that have one beginning may have gone on in different ways.
    pub(super) story: u128,
    /// Characters of it that were known.
    pub(super) position: u64,
}

/// A link as it is shared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Link {
    pub(super) stamp: Stamp,
    /// When its call was sent, in milliseconds since the Unix epoch on the writer's clock.
    pub(super) sent: u64,
    /// Milliseconds from there that it is fresh, that it is usable, and until its URL expires.
    pub(super) spans: [u32; 3],
    /// `None`: the endpoint left the id out.
    pub(super) text: Option<Arc<str>>,
}

/// The endpoint's acceptance of a caller.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Acceptance {
    pub(super) stamp: Stamp,
    /// When the call was sent that showed it, as in [`Link`].
    pub(super) sent: u64,
}

/// One record of the journal.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct JournalRecord {
    pub(super) epoch: u128,
    pub(super) says: Event,
}

/// What a record says.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Event {
    /// Here the journal begins.
    Begin,
    /// Everything from before is void.
    All,
    /// So are an id's links, or a group's: a keyed hash of it.
    Over(u128),
    /// So is everything of a caller.
    Caller(u128),
}

/// Bytes of a record of the journal: all have the same.
pub(super) const ENTRY: usize = 1 + 16 + 1 + 16;

impl Link {
    pub(super) fn write(&self) -> Vec<u8> {
        let text = self.text.as_deref().unwrap_or_default().as_bytes();
        let mut bytes = Vec::with_capacity((64 + text.len()).next_multiple_of(PAD));
        bytes.push(if self.text.is_some() { LINK } else { ABSENCE });
        self.stamp.write(&mut bytes);
        bytes.extend_from_slice(&self.sent.to_be_bytes());
        for span in self.spans {
            bytes.extend_from_slice(&span.to_be_bytes());
        }
        // No text that fits in a value is longer than this can say.
        bytes.extend_from_slice(&u32::try_from(text.len()).unwrap_or(u32::MAX).to_be_bytes());
        bytes.extend_from_slice(text);
        bytes.resize(bytes.len().next_multiple_of(PAD), 0);
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        let kind = rest.byte()?;
        let stamp = Stamp::read(&mut rest)?;
        let sent = rest.u64()?;
        let spans = [rest.u32()?, rest.u32()?, rest.u32()?];
        let length = usize::try_from(rest.u32()?).ok()?;
        let text = std::str::from_utf8(rest.0.get(..length)?).ok()?;
        let text = match kind {
            LINK => Some(Arc::from(text)),
            ABSENCE if text.is_empty() => None,
            _ => return None,
        };
        Some(Self { stamp, sent, spans, text })
    }
}

impl Acceptance {
    pub(super) fn write(&self) -> Vec<u8> {
        let mut bytes = vec![ACCEPTANCE];
        self.stamp.write(&mut bytes);
        bytes.extend_from_slice(&self.sent.to_be_bytes());
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        (rest.byte()? == ACCEPTANCE).then_some(())?;
        Some(Self { stamp: Stamp::read(&mut rest)?, sent: rest.u64()? })
    }
}

impl JournalRecord {
    pub(super) fn write(&self) -> [u8; ENTRY] {
        let (kind, hash) = match self.says {
            Event::Begin => (0, 0),
            Event::All => (1, 0),
            Event::Over(hash) => (2, hash),
            Event::Caller(hash) => (3, hash),
        };
        let mut bytes = [0; ENTRY];
        let fields = [&[JOURNAL][..], &self.epoch.to_be_bytes(), &[kind], &hash.to_be_bytes()];
        for (to, from) in bytes.iter_mut().zip(fields.into_iter().flatten()) {
            *to = *from;
        }
        bytes
    }

    pub(super) fn read(bytes: &[u8]) -> Option<Self> {
        let mut rest = Rest(bytes);
        (rest.byte()? == JOURNAL).then_some(())?;
        let epoch = rest.u128()?;
        let (kind, hash) = (rest.byte()?, rest.u128()?);
        let says = match kind {
            0 => Event::Begin,
            1 => Event::All,
            2 => Event::Over(hash),
            3 => Event::Caller(hash),
            _ => return None,
        };
        Some(Self { epoch, says })
    }
}

impl Stamp {
    fn write(self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(&self.story.to_be_bytes());
        bytes.extend_from_slice(&self.position.to_be_bytes());
    }

    fn read(rest: &mut Rest<'_>) -> Option<Self> {
        Some(Self { story: rest.u128()?, position: rest.u64()? })
    }
}

/// What is yet to be read.
struct Rest<'b>(&'b [u8]);

impl Rest<'_> {
    fn take<const N: usize>(&mut self) -> Option<[u8; N]> {
        let (taken, rest) = self.0.split_first_chunk::<N>()?;
        self.0 = rest;
        Some(*taken)
    }

    fn byte(&mut self) -> Option<u8> {
        self.take::<1>().map(|[byte]| byte)
    }

    fn u32(&mut self) -> Option<u32> {
        self.take().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Option<u64> {
        self.take().map(u64::from_be_bytes)
    }

    fn u128(&mut self) -> Option<u128> {
        self.take().map(u128::from_be_bytes)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_written_reads_back(
            epoch in any::<u128>(), position in any::<u64>(), sent in any::<u64>(), spans in any::<[u32; 3]>(),
            text in proptest::option::of(".{0,200}"), hash in any::<u128>(),
        ) {
            let stamp = Stamp { story: epoch, position };
            let link = Link { stamp, sent, spans, text: text.map(Arc::from) };
            let bytes = link.write();
            prop_assert_eq!(bytes.len() % PAD, 0);
            prop_assert_eq!(Link::read(&bytes), Some(link));
            let acceptance = Acceptance { stamp, sent };
            prop_assert_eq!(Acceptance::read(&acceptance.write()), Some(acceptance));
            for says in [Event::Begin, Event::All, Event::Over(hash), Event::Caller(hash)] {
                let entry = JournalRecord { epoch, says };
                prop_assert_eq!(JournalRecord::read(&entry.write()), Some(entry));
                prop_assert_eq!(Link::read(&entry.write()), None);
            }
            prop_assert_eq!(Acceptance::read(&bytes), None);
        }

        #[test]
        fn anything_may_be_read(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = (Link::read(&bytes), Acceptance::read(&bytes), JournalRecord::read(&bytes));
        }
    }
}
