//! The load of a fleet when nothing fails. Each sidelink gets batches of one service account, keeps links until they are no longer fresh, and asks
//! the tier, if there is one, before the endpoint.

use std::error::Error;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};
use rand_distr::{Distribution, Exp, Zipf};

/// Ids that are asked for, the more often the lower; the draws are those of the demonstration.
const IDS: usize = 10_000;
const EXPONENT: f64 = 0.99;
/// Batches that one sidelink answers in a second, and their distinct ids.
const BATCHES_A_SECOND: f64 = 2.0;
const BATCH_IDS: usize = 20;
/// From a call's start until its links are in the tier, in seconds: a WAN round trip and what the endpoint takes.
const CALL: f64 = 0.060;
/// Between one look of a waiter at the tier and the next, in seconds at first, and how much longer each pause is (`fetch`).
const FIRST_PAUSE: f64 = 0.004;
const PAUSE_GROWTH: f64 = 1.25;
/// `freshness.min_remaining` and `freshness.max`, in seconds.
pub(crate) const MIN_REMAINING: f64 = 60.0;
pub(crate) const MAX_FRESH: f64 = 600.0;
/// Bytes of a key, and of a value: an item of 568 bytes, its deadlines and its stamp, sealed.
const KEY_BYTES: f64 = 35.0;
const VALUE_BYTES: f64 = 681.0;

/// What stands behind a sidelink's memory.
#[derive(Clone, Copy, PartialEq)]
pub(crate) enum Behind {
    /// The endpoint alone.
    Endpoint,
    /// A shared tier without leases: whoever finds nothing there asks the endpoint.
    Tier,
    /// The shared tier as it is: who holds an id's lease asks, the others wait.
    TierWithLeases,
}

/// What is counted once the first period is over.
#[derive(Default)]
pub(crate) struct Counts {
    pub(crate) ids: usize,
    pub(crate) asked: usize,
    /// What one memory for the whole fleet would have asked.
    pub(crate) floor: usize,
    pub(crate) round_trips: usize,
    pub(crate) keys: usize,
    pub(crate) read: f64,
    pub(crate) written: f64,
}

/// An id as the tier has it.
#[derive(Clone, Copy)]
struct Entry {
    /// When its link is there to be read.
    readable: f64,
    /// Until when it is fresh.
    fresh: f64,
}

/// A fleet of `sidelinks` whose links are fresh for `period` seconds, for three periods; the first one is not counted.
pub(crate) fn simulate(sidelinks: usize, period: f64, behind: Behind) -> Result<(Counts, f64), Box<dyn Error>> {
    let mut random = StdRng::seed_from_u64(1);
    let popularity = Zipf::new(IDS as f64, EXPONENT)?;
    let between = Exp::new(BATCHES_A_SECOND * sidelinks as f64)?;
    // Seconds since the start, until which a sidelink serves an id from memory.
    let mut memory = vec![0_f64; sidelinks * IDS];
    let mut tier = vec![Entry { readable: f64::INFINITY, fresh: 0.0 }; IDS];
    let mut one_memory = vec![0_f64; IDS];
    let (mut counts, mut now, end) = (Counts::default(), 0.0, 3.0 * period);
    let (mut batch, mut lacking) = (Vec::with_capacity(BATCH_IDS), Vec::with_capacity(BATCH_IDS));
    loop {
        now += between.sample(&mut random);
        if now >= end {
            return Ok((counts, end - period));
        }
        let sidelink = random.random_range(0..sidelinks);
        batch.clear();
        while batch.len() < BATCH_IDS {
            // From 1 to IDS.
            let id = popularity.sample(&mut random) as usize - 1;
            if !batch.contains(&id) {
                batch.push(id);
            }
        }
        let mine = memory.get_mut(sidelink * IDS..(sidelink + 1) * IDS).unwrap_or_default();
        lacking.clear();
        lacking.extend(batch.iter().copied().filter(|id| mine.get(*id).is_none_or(|fresh| *fresh <= now)));
        let mut step = Counts { ids: BATCH_IDS, ..Counts::default() };
        for id in &batch {
            if let Some(fresh) = one_memory.get_mut(*id).filter(|fresh| **fresh <= now) {
                *fresh = now + period;
                step.floor += 1;
            }
        }
        if behind != Behind::Endpoint && !lacking.is_empty() {
            step.get(lacking.len());
        }
        let (mut owned, mut longest_wait) = (0, 0_f64);
        for id in &lacking {
            let (Some(kept), Some(entry)) = (mine.get_mut(*id), tier.get_mut(*id)) else { continue };
            let (there, in_flight) = (entry.fresh > now && entry.readable <= now, entry.fresh > now);
            match behind {
                Behind::Tier | Behind::TierWithLeases if there => {
                    step.read += VALUE_BYTES;
                    *kept = entry.fresh;
                    continue;
                }
                Behind::TierWithLeases if in_flight => {
                    longest_wait = longest_wait.max(entry.readable - now);
                    step.read += VALUE_BYTES;
                    *kept = entry.fresh;
                    owned += 1; // It has tried to get the lease, too.
                    continue;
                }
                // A second writer's link replaces the first's; both are good.
                Behind::Tier if in_flight => entry.fresh = now + period,
                _ => *entry = Entry { readable: now + CALL, fresh: now + period },
            }
            *kept = now + period;
            step.asked += 1;
            owned += 1;
        }
        if behind == Behind::TierWithLeases && owned > 0 {
            step.get(owned);
            // The pauses are a geometric series.
            let polls = (1.0 + longest_wait / FIRST_PAUSE * (PAUSE_GROWTH - 1.0)).log(PAUSE_GROWTH).ceil() as usize;
            // Of the lease and of the link.
            (0..polls).for_each(|_| step.get(2 * (owned - step.asked)));
            if step.asked > 0 {
                step.get(step.asked); // The release.
            }
        }
        if behind != Behind::Endpoint && step.asked > 0 {
            step.get(step.asked);
            step.written += step.asked as f64 * VALUE_BYTES;
        }
        if now >= period {
            counts.add(&step);
        }
    }
}

impl Counts {
    /// One round trip for `keys` keys.
    fn get(&mut self, keys: usize) {
        self.round_trips += 1;
        self.keys += keys;
        self.written += keys as f64 * KEY_BYTES;
    }

    fn add(&mut self, step: &Counts) {
        self.ids += step.ids;
        self.asked += step.asked;
        self.floor += step.floor;
        self.round_trips += step.round_trips;
        self.keys += step.keys;
        self.read += step.read;
        self.written += step.written;
    }

    pub(crate) fn hit_rate(&self) -> f64 {
        100.0 * (self.ids - self.asked) as f64 / self.ids as f64
    }
}
