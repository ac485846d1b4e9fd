//! Entries: what the cache contains for an id.

use std::ops::Range;
use std::sync::Arc;

use triomphe::ThinArc;

use super::countdown::{self, Countdown};
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

/// What is known of an item besides its text and deadlines. Items of one answer share it, unless it has countdowns.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ItemDetails {
    /// The envelope of the answer that brought the item; `None` if the API names an envelope of its own.
    pub envelope: Option<Arc<Envelope>>,
    /// Whether the item says that there is no link.
    pub is_absent: bool,
    /// The numbers in its text that say in how many seconds the link expires, in their order.
    pub countdowns: Box<[Countdown]>,
    /// Bytes that each entry with these details counts for them: items of one answer share the envelope.
    bytes: u32,
}

/// An item as it is answered: its text, with what is left of its countdowns.
#[derive(Clone, Copy)]
pub(crate) struct Item<'e> {
    text: &'e [u8],
    countdowns: &'e [Countdown],
    /// Milliseconds since its call was sent.
    age: u64,
    is_new: bool,
}

impl<'e> Item<'e> {
    /// Bytes that it has.
    pub(crate) fn len(&self) -> usize {
        countdown::length(self.text, self.numbers())
    }

    /// Appends it to a body.
    pub(crate) fn write(&self, body: &mut Vec<u8>) {
        countdown::write(self.text, 0..self.text.len(), self.numbers(), body);
    }

    fn numbers(&self) -> impl Iterator<Item = (&'e Range<usize>, u64)> {
        let (age, is_new) = (self.age, self.is_new);
        self.countdowns.iter().map(move |countdown| (&countdown.place, countdown.left(age, is_new)))
    }
}

impl ItemDetails {
    /// The details of `item`, or of the ids without one, in an answer that has spent `age` seconds in caches, and whose envelope
    /// `sharing` items have; `None` if there is nothing to say.
    pub fn of(item: Option<&AnswerItem>, age: u64, envelope: Option<&Arc<Envelope>>, sharing: usize) -> Option<Self> {
        let countdown = |expiry: &StatedExpiry| match expiry {
            StatedExpiry::In { seconds, place } => {
                Some(Countdown { place: place.clone(), seconds: seconds.saturating_sub(age) })
            }
            StatedExpiry::At(_) | StatedExpiry::Unreadable => None,
        };
        let countdowns = item.into_iter().flat_map(|item| item.expiries.iter().filter_map(countdown));
        let mut countdowns: Vec<_> = countdowns.collect();
        countdowns.sort_unstable_by_key(|countdown| countdown.place.start);
        countdowns.dedup();
        let is_absent = item.is_some_and(|item| item.is_absent);
        let says_nothing = envelope.is_none() && !is_absent && countdowns.is_empty();
        (!says_nothing).then(|| Self::new(envelope.cloned(), is_absent, countdowns.into(), sharing))
    }

    /// These details, whose envelope `sharing` items have.
    pub(crate) fn new(
        envelope: Option<Arc<Envelope>>,
        is_absent: bool,
        countdowns: Box<[Countdown]>,
        sharing: usize,
    ) -> Self {
        let unshared = size_of::<Self>() + size_of_val(&*countdowns);
        let shared = envelope.as_ref().map_or(0, |envelope| envelope.bytes());
        let (are_shared, sharing) = (!is_absent && countdowns.is_empty(), sharing.max(1));
        let bytes =
            if are_shared { (unshared + shared).div_ceil(sharing) } else { unshared + shared.div_ceil(sharing) };
        Self { envelope, is_absent, countdowns, bytes: u32::try_from(bytes).unwrap_or(u32::MAX) }
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

    /// The numbers in its text that say in how many seconds the link expires.
    pub(super) fn countdowns(&self) -> &[Countdown] {
        self.details().map_or(&[], |details| &details.countdowns)
    }

    /// Whether each answer rewrites numbers in its text.
    pub(crate) fn has_countdowns(&self) -> bool {
        !self.countdowns().is_empty()
    }

    /// Its item as it is answered at `now`; `is_new` as in [`Countdown::left`]. `None`: the endpoint left the id out.
    pub(crate) fn item(&self, now: Moment, is_new: bool) -> Option<Item<'_>> {
        let (text, countdowns) = (self.text()?, self.countdowns());
        let age = if countdowns.is_empty() { 0 } else { self.deadlines().age(now) };
        Some(Item { text, countdowns, age, is_new })
    }

    /// The same item, to be answered once and not stored.
    pub(crate) fn not_stored(&self) -> Self {
        let deadlines = Deadlines::not_stored(self.deadlines().sent());
        let header = Header { deadlines, details: self.details().cloned() };
        Self(ThinArc::from_header_and_slice(header, &self.0.slice))
    }

    /// Bytes of its text, and of its part of its details.
    pub(super) fn bytes(&self) -> usize {
        self.0.slice.len() + self.details().map_or(0, |details| details.bytes as usize)
    }

    /// Until when the entry is fresh, and until when it is usable.
    pub fn deadlines(&self) -> &Deadlines {
        &self.0.header.header.deadlines
    }
}
