//! Which fleets use this server, database and prefix. Sidecars that differ in their secret, endpoint or scope headers never see
//! each other's values, and each of them works: only a key that all of them know can tell their operators.
//!
//! That key has an entry for each fleet: its fingerprint, and a random number that changes whenever one of its sidecars writes
//! the key. A fleet is there while its number changes, so no clocks are compared, and what a sidecar finds at its start does not
//! count before it changes. The key is not sealed: who can write to the server can add fleets or hide them, and no more.

use std::fmt::{self, Write};
use std::time::Duration;

use tokio::time::Instant;

use crate::clock::Moment;

/// How long a fleet counts after its number was last seen to change.
pub(super) const ALIVE: Duration = Duration::from_secs(15);
/// How long an entry is remembered that no longer counts: another sidecar may still write it back.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Most entries that are read or written at a time.
const MOST_ENTRIES: usize = 8;
/// Most entries that are remembered.
const MOST_REMEMBERED: usize = 4 * MOST_ENTRIES;
/// Characters of an entry, with the comma after it.
const ENTRY: usize = 8 + 1 + 8 + 1;
/// Most characters that are read.
pub(super) const MOST_CHARS: usize = MOST_ENTRIES * ENTRY;

/// A keyed hash of all on which sharing depends besides the server: sidecars with different ones share nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Fingerprint(pub(super) u32);

impl fmt::Display for Fingerprint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:08x}", self.0)
    }
}

/// This sidecar's fleet, and the others that use the same server, database and prefix.
#[derive(Debug, PartialEq, Eq)]
pub struct FleetStatus {
    /// Of its secret in use.
    pub fingerprint: Fingerprint,
    /// Those of the other fleets.
    pub others: Vec<Fingerprint>,
    /// Since when there have been others.
    pub since: Option<Moment>,
}

/// The fleets, as far as this sidecar has seen them.
pub(super) struct Fleets {
    /// The fingerprint under each of the fleet's secrets. The first one is written.
    own: Vec<Fingerprint>,
    seen: Vec<Seen>,
    since: Option<Moment>,
}

struct Seen {
    fleet: Fingerprint,
    number: u32,
    /// When the number was first seen.
    at: Instant,
    /// It has changed since the first look.
    has_changed: bool,
}

impl Fleets {
    pub(super) fn new(own: Vec<Fingerprint>) -> Self {
        Self { own, seen: Vec::new(), since: None }
    }

    /// Reads the key's text; returns the text to write, unless a sidecar of this fleet has written it since the last look.
    pub(super) fn read(&mut self, text: &[u8], now: Instant) -> Option<String> {
        for (fleet, number) in entries(text) {
            match self.seen.iter_mut().find(|seen| seen.fleet == fleet) {
                Some(seen) if seen.number == number => {}
                Some(seen) => *seen = Seen { fleet, number, at: now, has_changed: true },
                None => self.seen.push(Seen { fleet, number, at: now, has_changed: false }),
            }
        }
        let own = *self.own.first()?;
        let is_renewed = self.seen.iter().any(|seen| seen.fleet == own && seen.at == now);
        if !is_renewed {
            self.seen.retain(|seen| seen.fleet != own);
            self.seen.push(Seen { fleet: own, number: rand::random(), at: now, has_changed: true });
        }
        // Latest first, and this fleet before all.
        self.seen.sort_by_key(|seen| (seen.fleet != own, now - seen.at));
        self.seen.retain(|seen| now - seen.at < REMEMBERED);
        self.seen.truncate(MOST_REMEMBERED);
        if is_renewed {
            return None;
        }
        let mut text = String::with_capacity(MOST_CHARS);
        for Seen { fleet, number, .. } in self.seen.iter().filter(|seen| now - seen.at < ALIVE).take(MOST_ENTRIES) {
            let comma = if text.is_empty() { "" } else { "," };
            let _ = write!(text, "{comma}{fleet}.{number:08x}");
        }
        Some(text)
    }

    /// The other fleets: those that none of this fleet's secrets yields.
    fn others(&self, now: Instant) -> Vec<Fingerprint> {
        let is_other = |seen: &&Seen| seen.has_changed && now - seen.at < ALIVE && !self.own.contains(&seen.fleet);
        self.seen.iter().filter(is_other).map(|seen| seen.fleet).collect()
    }

    /// Notes since when there have been other fleets; called after each look.
    pub(super) fn update_since(&mut self, now: Instant, moment: Moment) {
        self.since = if self.others(now).is_empty() { None } else { self.since.or(Some(moment)) };
    }

    /// `None` without a secret.
    pub(super) fn status(&self, now: Instant) -> Option<FleetStatus> {
        let others = self.others(now);
        let since = self.since.filter(|_| !others.is_empty());
        Some(FleetStatus { fingerprint: *self.own.first()?, others, since })
    }
}

/// The entries of a key's text; what is no entry is skipped.
fn entries(text: &[u8]) -> impl Iterator<Item = (Fingerprint, u32)> {
    let text = text.get(..MOST_CHARS).unwrap_or(text);
    text.split(|byte| *byte == b',').filter_map(|entry| {
        let (fleet, number) = std::str::from_utf8(entry).ok()?.split_once('.')?;
        Some((Fingerprint(hex(fleet)?), hex(number)?))
    })
}

/// Eight hex digits.
fn hex(text: &str) -> Option<u32> {
    let is_hex = text.len() == 8 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hex.then(|| u32::from_str_radix(text, 16).ok())?
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: Moment = Moment { monotonic: 7, wall: 7 };
    const LOOK: Duration = Duration::from_secs(3);

    /// Sidecars that look at one key in turn.
    struct Key {
        text: String,
        now: Instant,
    }

    impl Key {
        fn new() -> Self {
            Self { text: String::new(), now: Instant::now() }
        }

        /// One look of each sidecar; returns whether each has written.
        fn looks(&mut self, sidecars: &mut [&mut Fleets]) -> Vec<bool> {
            self.now += LOOK;
            let each = sidecars.iter_mut().map(|sidecar| {
                let written = sidecar.read(self.text.as_bytes(), self.now);
                sidecar.update_since(self.now, NOW);
                self.now += Duration::from_millis(1);
                written.inspect(|text| self.text.clone_from(text)).is_some()
            });
            each.collect()
        }

        fn others(&self, sidecar: &Fleets) -> Vec<u32> {
            sidecar.status(self.now).unwrap().others.iter().map(|other| other.0).collect()
        }
    }

    fn sidecar(own: &[u32]) -> Fleets {
        Fleets::new(own.iter().copied().map(Fingerprint).collect())
    }

    #[test]
    fn fleets_see_each_other_while_both_are_there_and_one_sidecar_among_many_is_seen_by_all() {
        let mut key = Key::new();
        let (mut one, mut two, mut three, mut alone) = (sidecar(&[1]), sidecar(&[1]), sidecar(&[1]), sidecar(&[2]));
        for _ in 0..4 {
            key.looks(&mut [&mut one, &mut two, &mut three, &mut alone]);
        }
        for sidecar in [&one, &two, &three] {
            assert_eq!(key.others(sidecar), [2]);
        }
        let status = alone.status(key.now).unwrap();
        assert_eq!(status, FleetStatus { fingerprint: Fingerprint(2), others: vec![Fingerprint(1)], since: Some(NOW) });
        assert_eq!((key.text.len(), key.text.matches("00000002.").count()), (2 * ENTRY - 1, 1));

        // It stops.
        let end = key.now + ALIVE;
        while key.now < end {
            key.looks(&mut [&mut one, &mut two, &mut three]);
        }
        key.looks(&mut [&mut one, &mut two, &mut three]);
        for sidecar in [&one, &two, &three] {
            assert_eq!((key.others(sidecar), sidecar.since), (vec![], None));
        }
        assert_eq!(key.text.len(), ENTRY - 1, "its entry is gone: {}", key.text);
    }

    #[test]
    fn of_one_fleet_one_sidecar_writes_at_a_time() {
        let mut key = Key::new();
        let (mut one, mut two) = (sidecar(&[1]), sidecar(&[1]));
        for _ in 0..5 {
            assert_eq!(key.looks(&mut [&mut one, &mut two]), [true, false]);
        }
        assert_eq!(key.looks(&mut [&mut two]), [true], "the one that wrote is gone");
        assert_eq!((key.others(&one), key.others(&two)), (vec![], vec![]));
    }

    #[test]
    fn in_each_step_of_a_change_of_the_secret_no_sidecar_sees_another_fleet() {
        let mut key = Key::new();
        for (before, after) in [(vec![1], vec![1, 2]), (vec![1, 2], vec![2, 1]), (vec![2, 1], vec![2])] {
            // The entries of the step before are still there.
            let (mut before, mut after) = (sidecar(&before), sidecar(&after));
            for _ in 0..5 {
                key.looks(&mut [&mut before, &mut after]);
                assert_eq!((key.others(&before), key.others(&after)), (vec![], vec![]));
            }
        }
        // Skipping the step with both secrets splits the fleet for those that know only the old one.
        let (mut old, mut new) = (sidecar(&[1]), sidecar(&[2, 1]));
        for _ in 0..5 {
            key.looks(&mut [&mut old, &mut new]);
        }
        assert_eq!((key.others(&old), key.others(&new)), (vec![2], vec![]));
    }

    #[test]
    fn a_text_that_is_no_entry_is_ignored_and_any_number_of_fleets_is_bounded() {
        let mut one = sidecar(&[1]);
        let mut now = Instant::now();
        for text in ["", "nothing", "00000002", "00000002.0000000g", "+0000002.00000001", ",,.", "2.1", "\u{e9}.,"] {
            now += LOOK;
            let written = one.read(text.as_bytes(), now).unwrap();
            assert_eq!(written.len(), ENTRY - 1, "{text}: {written}");
        }
        for look in 0..100_u32 {
            now += Duration::from_millis(100);
            let fleet = |at: u32| format!("{:08x}.{look:08x}", 100 + look * 20 + at);
            let text = (0..20).map(fleet).collect::<Vec<_>>().join(",");
            let written = one.read(text.as_bytes(), now).unwrap();
            assert!(written.len() < MOST_CHARS && written.starts_with("00000001."), "{written}");
            assert!(one.seen.len() <= MOST_REMEMBERED);
        }
        assert_eq!(one.status(now).unwrap().others, [], "none of them was seen to change");
    }

    proptest! {
        #[test]
        fn any_bytes_can_be_read(texts in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..300), 1..5)) {
            let (mut one, mut now) = (sidecar(&[1]), Instant::now());
            for text in texts {
                now += LOOK;
                let written = one.read(&text, now);
                prop_assert!(written.is_none_or(|written| written.len() < MOST_CHARS && written.is_ascii()));
            }
        }
    }
}
