//! Numbers in a text that say in how many seconds a link expires. Each is written anew for whoever is answered: as what is left.

use std::ops::Range;

use crate::clock::Moment;

/// A number in a text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Countdown {
    /// Its place in the text, in bytes.
    pub place: Range<usize>,
    /// The seconds that it said when the call was sent.
    pub seconds: u64,
}

impl Countdown {
    /// What is left of it `age` milliseconds after the call was sent, in whole seconds. A second that has begun is over, unless the
    /// item `is_new`, and goes to those who made the call.
    pub(super) fn left(&self, age: u64, is_new: bool) -> u64 {
        self.seconds.saturating_sub(if is_new { age / 1000 } else { age.div_ceil(1000) })
    }
}

/// A number of a merged body, whose items were fetched by different calls.
pub(super) struct MergedCountdown {
    countdown: Countdown,
    /// When its call was sent.
    sent: Moment,
}

impl MergedCountdown {
    /// `countdown` of an item that begins at `offset` in the body, and whose call was sent at `sent`.
    pub(super) fn new(countdown: &Countdown, offset: usize, sent: Moment) -> Self {
        let Range { start, end } = countdown.place;
        Self { countdown: Countdown { place: offset + start..offset + end, ..*countdown }, sent }
    }

    fn place(&self) -> &Range<usize> {
        &self.countdown.place
    }

    /// Its place, and the number to write there.
    fn at(&self, now: Moment) -> (&Range<usize>, u64) {
        (self.place(), self.countdown.left(now.since(self.sent), false))
    }
}

/// A merged body as it is answered at a moment.
#[derive(Clone, Copy)]
pub(crate) struct CountedDown<'a> {
    text: &'a [u8],
    /// In their order.
    countdowns: &'a [MergedCountdown],
    now: Moment,
}

impl<'a> CountedDown<'a> {
    pub(super) fn new(text: &'a [u8], countdowns: &'a [MergedCountdown], now: Moment) -> Self {
        Self { text, countdowns, now }
    }

    /// Bytes that it has.
    pub(crate) fn len(self) -> usize {
        length(self.text, self.countdowns.iter().map(|countdown| countdown.at(self.now)))
    }

    /// Whether `from`, an offset in the text, is its end.
    pub(crate) fn ends_at(self, from: usize) -> bool {
        from >= self.text.len()
    }

    /// The part that begins at `from`, an offset in the text, of about `most` bytes; and the offset of the next part.
    pub(crate) fn part(self, from: usize, most: usize) -> (Vec<u8>, usize) {
        let first = self.countdowns.partition_point(|countdown| countdown.place().start < from);
        let later = self.countdowns.get(first..).unwrap_or_default();
        let end = from.saturating_add(most).min(self.text.len());
        // No number is cut: one that begins in this part ends in it.
        let begun = later.partition_point(|countdown| countdown.place().start < end);
        let (countdowns, _) = later.split_at_checked(begun).unwrap_or_default();
        let end = countdowns.last().map_or(end, |last| end.max(last.place().end));
        let mut part = Vec::with_capacity(end.saturating_sub(from));
        write(self.text, from..end, countdowns.iter().map(|countdown| countdown.at(self.now)), &mut part);
        (part, end)
    }
}

/// Bytes of `text` with these numbers in their places.
pub(super) fn length<'a>(text: &[u8], numbers: impl Iterator<Item = (&'a Range<usize>, u64)>) -> usize {
    let digits = |number: u64| number.checked_ilog10().map_or(1, |digits| digits as usize + 1);
    numbers.fold(text.len(), |length, (place, number)| length.saturating_sub(place.len()) + digits(number))
}

/// Appends a part of `text` to a body, with `numbers`, which lie in that part, in their places.
pub(super) fn write<'a>(
    text: &[u8],
    part: Range<usize>,
    numbers: impl Iterator<Item = (&'a Range<usize>, u64)>,
    body: &mut Vec<u8>,
) {
    let mut from = part.start;
    for (place, number) in numbers {
        body.extend_from_slice(text.get(from..place.start).unwrap_or_default());
        body.extend_from_slice(itoa::Buffer::new().format(number).as_bytes());
        from = place.end;
    }
    body.extend_from_slice(text.get(from..part.end).unwrap_or_default());
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::clock::Clock;

    proptest! {
        #[test]
        fn the_parts_of_a_body_are_the_body_with_each_number_counted_down(
            pieces in proptest::collection::vec(("[a-z]{0,9}", 0..1_000_000_u64, 0..2_000_000_u64), 0..20),
            end in "[a-z]{0,9}", most in 1..40_usize,
        ) {
            let sent = Clock::simulated(0).now();
            let now = sent.after(2_000_000);
            let (mut text, mut expected, mut countdowns) = (String::new(), String::new(), Vec::new());
            for (before, seconds, age) in pieces {
                let offset = text.len();
                text.push_str(&before);
                let countdown = Countdown { place: before.len()..before.len() + seconds.to_string().len(), seconds };
                text.push_str(&seconds.to_string());
                countdowns.push(MergedCountdown::new(&countdown, offset, now.before(age)));
                expected.push_str(&before);
                expected.push_str(&seconds.saturating_sub(age.div_ceil(1000)).to_string());
            }
            text.push_str(&end);
            expected.push_str(&end);
            let body = CountedDown::new(text.as_bytes(), &countdowns, now);
            prop_assert_eq!(body.len(), expected.len());
            let (mut from, mut whole) = (0, Vec::new());
            while !body.ends_at(from) {
                let (part, next) = body.part(from, most);
                prop_assert!(next > from && next - from <= most + 6);
                whole.extend_from_slice(&part);
                from = next;
            }
            prop_assert_eq!(String::from_utf8(whole).unwrap(), expected);
        }
    }
}
