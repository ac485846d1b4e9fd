//! The journal in a storm of purges and revocations, by the rules of `src/shared/journal.rs` and `src/shared/sync.rs`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::server::{MILLISECOND, ROUND_TRIP, SECOND, Server};

/// Bytes of a record.
const RECORD: usize = 100;
/// Bytes of a look for a caller's acceptance that is not there: its name.
const ACCEPTANCE: usize = 35;
/// Records of a full journal, the most that are appended at once, and the most that wait without being merged into one.
const MOST_RECORDS: usize = 10_000;
const MOST_APPENDED: usize = 1_000;
const MOST_PENDING: usize = 4_096;
/// Times in microseconds: between two synchronizations, or less if there is something to tell; of a request; between retries.
const SYNC_INTERVAL: u64 = 400 * MILLISECOND;
const MIN_INTERVAL: u64 = 20 * MILLISECOND;
const JOURNAL_TIMEOUT: u64 = SECOND;
const FIRST_RETRY: u64 = 250 * MILLISECOND;
const MAX_RETRY: u64 = 2 * SECOND;
/// Reads of a journal that changes meanwhile, and pieces that are appended, in one synchronization.
const ATTEMPTS: u32 = 5;
const MOST_PIECES: u32 = 16;
/// From a call's start until its 401 is here, and the batches that one caller sends through one sidecar in a second.
const CALL: f64 = 0.060;
const BATCHES_A_SECOND: f64 = 2.0;
/// Events that happen "at once" are spread over this time.
const SPREAD: u64 = 50 * MILLISECOND;
/// The model gives up after this time.
const PATIENCE: u64 = 600 * SECOND;

/// So many events that a sidecar announces at a time; none: a 401 of a caller that it did not know, and the tier neither.
#[derive(Clone, Copy)]
pub(crate) struct Announcement {
    sidecar: usize,
    at: u64,
    events: usize,
}

/// `told` sidecars are told to purge the same `ids`, at once.
pub(crate) fn purges(told: usize, ids: usize) -> Vec<Announcement> {
    let mut random = StdRng::seed_from_u64(2);
    let at = |random: &mut StdRng| random.random_range(0..SPREAD);
    (0..told).map(|sidecar| Announcement { sidecar, at: at(&mut random), events: ids }).collect()
}

/// The endpoint refuses `callers` from now on, all of whose batches have ids that are missing. A sidecar announces a caller if its call
/// was sent before it could read that another one has.
pub(crate) fn revocations(sidecars: usize, callers: usize) -> Vec<Announcement> {
    let mut random = StdRng::seed_from_u64(3);
    let mut all = Vec::new();
    for _ in 0..callers {
        let mut sent = || -(1.0 - random.random::<f64>()).ln() / BATCHES_A_SECOND;
        let calls: Vec<f64> = (0..sidecars).map(|_| sent()).collect();
        let first = calls.iter().copied().fold(f64::INFINITY, f64::min);
        let is_read = first + CALL + (MIN_INTERVAL + 2 * ROUND_TRIP) as f64 / SECOND as f64;
        let announced = calls.into_iter().enumerate().filter(|(_, sent)| *sent <= is_read);
        let at = |sent| ((sent + CALL) * SECOND as f64) as u64;
        all.extend(announced.map(|(sidecar, sent)| Announcement { sidecar, at: at(sent), events: 1 }));
    }
    all
}

/// Each of `sidecars` is asked with `rate` made-up tokens a second, for ten seconds, and then one is told to purge one id.
pub(crate) fn made_up_tokens(sidecars: usize, rate: usize) -> Vec<Announcement> {
    let mut random = StdRng::seed_from_u64(6);
    let token = |at| Announcement { sidecar: at % sidecars, at: random.random_range(0..10 * SECOND), events: 0 };
    let tokens = (0..10 * rate * sidecars).map(token);
    tokens.chain([Announcement { sidecar: 0, at: 10 * SECOND, events: 1 }]).collect()
}

/// The result of a storm.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) records: usize,
    pub(crate) continued: usize,
    /// Sidecars whose events became one purge of everything.
    pub(crate) merged: usize,
    /// How often a sidecar missed more than a journal, and purged its memory.
    pub(crate) missed: usize,
    /// Synchronizations that fail, each of which takes the tier away from a sidecar for a while.
    pub(crate) outages: usize,
    /// Microseconds since the first announcement; `None`: not within [`PATIENCE`].
    pub(crate) all_told: Option<u64>,
    pub(crate) all_read: Option<u64>,
    pub(crate) bytes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    Announce(usize),
    /// A synchronization begins, unless another one has begun since it was planned.
    Sync(u64),
    Read,
    ReadWhole,
    Begin,
    Append,
}

#[derive(Default)]
struct Sidecar {
    /// The journal that it knows, and how many records of it.
    journal: usize,
    known: usize,
    pending: usize,
    /// Where its last piece ends, and the records in it.
    appended: Option<(usize, usize, usize)>,
    attempts: u32,
    pieces: u32,
    retry: u64,
    /// When it may synchronize again; `None`: it does now.
    idle: Option<u64>,
    woken: bool,
    plans: u64,
}

/// Plays `announcements` in a fleet of `sidecars` that all know the journal.
pub(crate) fn storm(sidecars: usize, announcements: &[Announcement]) -> Outcome {
    let mut random = StdRng::seed_from_u64(4);
    let mut fleet: Vec<Sidecar> = (0..sidecars).map(|_| Sidecar { known: 1, ..Sidecar::default() }).collect();
    let mut plan = BinaryHeap::new();
    for sidecar in 0..sidecars {
        plan.push(Reverse((random.random_range(0..SYNC_INTERVAL), sidecar, Step::Sync(0))));
    }
    for Announcement { sidecar, at, events } in announcements {
        // All have synchronized once.
        plan.push(Reverse((at + SECOND, *sidecar, Step::Announce(*events))));
    }
    // The records of each journal: only the last two are still there.
    let (mut journals, mut server, mut outcome) = (vec![1_usize], Server::default(), Outcome::default());
    let mut to_announce = announcements.iter().filter(|announcement| announcement.events > 0).count();
    let mut first = None;
    while let Some(Reverse((now, at, step))) = plan.pop() {
        let (Some(sidecar), Some(length)) = (fleet.get_mut(at), journals.last().copied()) else { break };
        let current = journals.len() - 1;
        let previous = current.checked_sub(1).and_then(|previous| journals.get(previous)).copied().unwrap_or_default();
        if now > PATIENCE {
            break;
        }
        let piece = sidecar.pending.min(MOST_APPENDED);
        // Characters that the server receives or sends, besides names and commands.
        let characters = match step {
            Step::Announce(0) => {
                server.answers(now, ACCEPTANCE);
                outcome.bytes += ACCEPTANCE;
                continue;
            }
            Step::Announce(events) => {
                first.get_or_insert(now);
                to_announce -= 1;
                let is_merged = sidecar.pending + events > MOST_PENDING;
                outcome.merged += usize::from(is_merged);
                sidecar.appended = sidecar.appended.filter(|_| !is_merged);
                sidecar.pending = if is_merged { 1 } else { sidecar.pending + events };
                sidecar.woken = true;
                if let Some(idle) = sidecar.idle {
                    sidecar.plans += 1;
                    plan.push(Reverse((now.max(idle), at, Step::Sync(sidecar.plans))));
                }
                continue;
            }
            Step::Sync(planned) => {
                if planned == sidecar.plans {
                    (sidecar.idle, sidecar.woken, sidecar.attempts, sidecar.pieces) = (None, false, 0, 0);
                    plan.push(Reverse((now, at, Step::Read)));
                }
                continue;
            }
            Step::Read => (length + 1).saturating_sub(sidecar.known) * RECORD,
            Step::ReadWhole => {
                let rest =
                    if sidecar.journal + 1 == current { previous.saturating_sub(sidecar.known) } else { previous };
                (length + rest) * RECORD
            }
            Step::Begin => 2 * RECORD,
            Step::Append => (piece + 1) * RECORD,
        };
        outcome.bytes += characters;
        let reply = server.answers(now, characters);
        let in_time = reply <= now + JOURNAL_TIMEOUT;
        let is_current = sidecar.journal == current;
        // The server still does the work when the sidecar no longer waits for the answer.
        match step {
            Step::Begin if is_current && sidecar.known == length => {
                journals.push(1);
                outcome.continued += 1;
            }
            Step::Append if is_current && length + piece <= MOST_RECORDS + MOST_APPENDED => {
                journals.pop();
                journals.push(length + piece);
                outcome.records += piece;
                sidecar.appended = Some((current, length + piece, piece));
            }
            _ => {}
        }
        if !in_time {
            outcome.outages += 1;
            sidecar.retry = (2 * sidecar.retry).clamp(FIRST_RETRY, MAX_RETRY);
            let pause = sidecar.retry * random.random_range(80..100) / 100;
            sidecar.plans += 1;
            plan.push(Reverse((now + JOURNAL_TIMEOUT + MIN_INTERVAL + pause, at, Step::Sync(sidecar.plans))));
            continue;
        }
        let reads = matches!(step, Step::Read | Step::ReadWhole);
        if step == Step::ReadWhole {
            if sidecar.journal + 1 < current {
                outcome.missed += 1;
                sidecar.appended = None;
            }
            sidecar.journal = current;
        }
        if reads && sidecar.journal == current {
            sidecar.known = length;
            if let Some((journal, end, records)) = sidecar.appended.take() {
                if (journal, end) <= (current, length) {
                    sidecar.pending -= records;
                } else {
                    sidecar.appended = Some((journal, end, records));
                }
            }
        }
        let is_full = sidecar.known >= MOST_RECORDS;
        let mut fails = false;
        let next = match step {
            Step::Read if !is_current => Some(Step::ReadWhole),
            Step::Read if is_full => Some(Step::Begin),
            Step::Read | Step::ReadWhole if sidecar.pending > 0 && sidecar.pieces < MOST_PIECES => {
                sidecar.pieces += 1;
                Some(Step::Append)
            }
            Step::Begin => {
                sidecar.attempts += 1;
                fails = sidecar.attempts >= ATTEMPTS;
                (!fails).then_some(Step::Read)
            }
            Step::Append => {
                sidecar.attempts = 0;
                Some(Step::Read)
            }
            _ => None,
        };
        if let Some(next) = next {
            plan.push(Reverse((reply, at, next)));
        } else {
            sidecar.retry = if fails { (2 * sidecar.retry).clamp(FIRST_RETRY, MAX_RETRY) } else { 0 };
            outcome.outages += usize::from(fails);
            let pause = if fails { sidecar.retry } else { SYNC_INTERVAL };
            sidecar.idle = (!fails).then_some(reply + MIN_INTERVAL);
            sidecar.plans += 1;
            let pause = if sidecar.woken && !fails { 0 } else { pause };
            plan.push(Reverse((reply + MIN_INTERVAL + pause, at, Step::Sync(sidecar.plans))));
        }
        if reads && to_announce == 0 && fleet.iter().all(|sidecar| sidecar.pending == 0) {
            let since = reply - first.unwrap_or_default();
            outcome.all_told.get_or_insert(since);
            let (journal, length) = (journals.len() - 1, journals.last().copied().unwrap_or_default());
            if fleet.iter().all(|sidecar| (sidecar.journal, sidecar.known) == (journal, length)) {
                outcome.all_read = Some(since);
                break;
            }
        }
    }
    outcome
}
