//! Entries: what the cache contains for an id.

use std::ops::Range;
use std::sync::Arc;

use triomphe::ThinArc;

use super::freshness::Deadlines;
use crate::api::answer::AnswerItem;
use crate::api::envelope::Envelope;
use crate::api::expiry::StatedExpiry;
use crate::clock::Moment;

/// What the cache contains for an id: its text, deadlines and details, side by side in one allocation.
#[derive(Clone)]
pub struct Entry(ThinArc<Header, u8>);

struct Header {
    deadlines: Deadlines,
    /// `None` where there is nothing to say, as for each item of an API that has one envelope.
    details: Option<Arc<ItemDetails>>,
}

/// What is known of an item besides its text and deadlines. Items of one answer share it, unless it has spans.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ItemDetails {
    /// The envelope of the answer that brought the item; `None` if the API names an envelope of its own.
    pub envelope: Option<Arc<Envelope>>,
    /// Whether the item says that there is no link.
    pub is_absent: bool,
    /// The numbers in its text that say in how many seconds the link expires, in their order: the place, and the seconds when the
    /// call was sent.
    pub spans: Box<[(Range<usize>, u64)]>,
}

/// An item as it is answered: its text, with what is left of its spans.
#[derive(Clone, Copy)]
pub(crate) struct Item<'e> {
    text: &'e [u8],
    spans: &'e [(Range<usize>, u64)],
    /// Seconds since its call was sent.
    age: u64,
}

impl Item<'_> {
    /// Bytes that it has.
    pub(crate) fn len(&self) -> usize {
        let change = |length: usize, (place, seconds): &(Range<usize>, u64)| {
            length.saturating_sub(place.len()) + itoa::Buffer::new().format(self.left(*seconds)).len()
        };
        self.spans.iter().fold(self.text.len(), change)
    }

    /// Appends it to a body.
    pub(crate) fn write(&self, body: &mut Vec<u8>) {
        let mut from = 0;
        for (place, seconds) in self.spans {
            body.extend_from_slice(self.text.get(from..place.start).unwrap_or_default());
            body.extend_from_slice(itoa::Buffer::new().format(self.left(*seconds)).as_bytes());
            from = place.end;
        }
        body.extend_from_slice(self.text.get(from..).unwrap_or_default());
    }

    fn left(&self, seconds: u64) -> u64 {
        seconds.saturating_sub(self.age)
    }
}

impl ItemDetails {
    /// The details of `item`, or of an id without one, in this envelope; `None` if there is nothing to say.
    pub fn of(item: Option<&AnswerItem>, envelope: Option<&Arc<Envelope>>) -> Option<Self> {
        let span = |expiry: &StatedExpiry| match expiry {
            StatedExpiry::In { seconds, place } => Some((place.clone(), *seconds)),
            StatedExpiry::At(_) | StatedExpiry::Unreadable => None,
        };
        let mut spans: Vec<_> = item.into_iter().flat_map(|item| item.expiries.iter().filter_map(span)).collect();
        spans.sort_unstable_by_key(|(place, _)| place.start);
        spans.dedup();
        let is_absent = item.is_some_and(|item| item.is_absent);
        let details = Self { envelope: envelope.cloned(), is_absent, spans: spans.into() };
        (details != Self::default()).then_some(details)
    }
}

impl Entry {
    /// An item's JSON text; `None`: the endpoint left the id out.
    pub fn new(text: Option<&str>, deadlines: Deadlines) -> Self {
        Self::with_details(text, deadlines, None)
    }

    /// As [`Self::new`], with details.
    pub fn with_details(text: Option<&str>, deadlines: Deadlines, details: Option<Arc<ItemDetails>>) -> Self {
        // No item is empty: JSON never is.
        Self(ThinArc::from_header_and_slice(Header { deadlines, details }, text.unwrap_or_default().as_bytes()))
    }

    /// The item's JSON text; `None`: the endpoint left the id out.
    pub fn text(&self) -> Option<&[u8]> {
        Some(&self.0.slice).filter(|text| !text.is_empty())
    }

    /// Whether it has no link: the endpoint left the id out, or said so in the item.
    pub fn is_absent(&self) -> bool {
        self.text().is_none() || self.details().is_some_and(|details| details.is_absent)
    }

    /// What is known of the item besides.
    pub fn details(&self) -> Option<&Arc<ItemDetails>> {
        self.0.header.header.details.as_ref()
    }

    /// Its envelope; `None` if the API names an envelope of its own.
    pub fn envelope(&self) -> Option<&Arc<Envelope>> {
        self.details()?.envelope.as_ref()
    }

    /// Whether its text says in how many seconds the link expires, so that it has to be rewritten.
    pub fn has_spans(&self) -> bool {
        self.details().is_some_and(|details| !details.spans.is_empty())
    }

    /// Its item as it is answered at `now`. What is left of its spans is without the seconds since its call was sent, the one that has
    /// begun included, unless the item `is_new`, and goes to those who made the call. `None`: the endpoint left the id out.
    pub(crate) fn item(&self, now: Moment, is_new: bool) -> Option<Item<'_>> {
        let text = self.text()?;
        let spans = self.details().map_or(&[][..], |details| &details.spans);
        let age = if spans.is_empty() { 0 } else { self.deadlines().age(now) };
        Some(Item { text, spans, age: if is_new { age / 1000 } else { age.div_ceil(1000) } })
    }

    /// The same item, to be answered once and not stored.
    pub(crate) fn not_stored(&self) -> Self {
        let deadlines = Deadlines::not_stored(self.deadlines().sent());
        let header = Header { deadlines, details: self.details().cloned() };
        Self(ThinArc::from_header_and_slice(header, &self.0.slice))
    }

    /// Bytes of its text, and of details that it does not share.
    pub(super) fn bytes(&self) -> usize {
        let own = self.details().filter(|details| details.is_absent || !details.spans.is_empty());
        self.0.slice.len() + own.map_or(0, |details| size_of::<ItemDetails>() + size_of_val(&*details.spans))
    }

    /// Until when the entry is fresh, and until when it is usable.
    pub fn deadlines(&self) -> &Deadlines {
        &self.0.header.header.deadlines
    }
}
