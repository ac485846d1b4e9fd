//! A batch that all sidecars miss at the same time, by the rules of `src/fetch/shared_lookup.rs` and `src/shared/leases.rs`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use crate::server::{MILLISECOND, ROUND_TRIP, SECOND, Server};

/// `upstream.deadline` and `shared.lease_wait` as they are by default, in microseconds.
const DEADLINE: u64 = 10 * SECOND;
const LEASE_WAIT: u64 = 5 * SECOND;
/// Clients ask all sidecars within this time.
const SPREAD: u64 = 50 * MILLISECOND;
/// Between two looks of a waiter: at first, at most, and how much longer each is.
const FIRST_PAUSE: f64 = 4_000.0;
const LONGEST_PAUSE: f64 = 200_000.0;
const PAUSE_GROWTH: f64 = 1.25;
/// The time that is left for the last look, and as much for the call to leave.
const LAST_LOOK: u64 = 100 * MILLISECOND;
/// Of a lease that is not renewed, and between two renewals.
const LIFE: u64 = 1_500 * MILLISECOND;
const RENEWAL: u64 = 500 * MILLISECOND;
/// The least fair time of a call.
const LEAST_FAIR: u64 = 100 * MILLISECOND;
/// Bytes of the names, and of the values, of 20 ids.
const NAMES: usize = 20 * 35;
const VALUES: usize = 20 * 681;

/// The result.
#[derive(Default)]
pub(crate) struct Outcome {
    pub(crate) calls: usize,
    /// Clients without an answer at their deadline, besides the one of a sidecar that dies.
    pub(crate) unanswered: usize,
    /// When the first link was in the tier, and the last client had its answer, after the first one asked.
    pub(crate) shared: Option<u64>,
    pub(crate) last_answer: Option<u64>,
    /// Looks and tries for leases.
    pub(crate) looks: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Step {
    /// Looks without a lease.
    Look,
    Acquire,
    Check,
}

struct Sidecar {
    asked: u64,
    until: u64,
    pause: f64,
}

/// Clients ask `sidecars` for the same ids, and a call takes `call`; where `dies`, the first owner of the lease dies halfway in its call.
pub(crate) fn misses(sidecars: usize, call: u64, dies: bool) -> Outcome {
    let mut random = StdRng::seed_from_u64(5);
    // Earlier calls took as long, or none was answered.
    let fair = if call < DEADLINE { call.clamp(LEAST_FAIR, DEADLINE / 2) } else { LEAST_FAIR };
    let mut fleet = Vec::new();
    let mut plan = BinaryHeap::new();
    for sidecar in 0..sidecars {
        let asked = random.random_range(0..SPREAD);
        fleet.push(Sidecar { asked, until: 0, pause: FIRST_PAUSE });
        plan.push(Reverse((asked, sidecar, Step::Look)));
    }
    let (mut outcome, mut server) = (Outcome::default(), Server::default());
    let first = fleet.iter().map(|sidecar| sidecar.asked).min().unwrap_or_default();
    // When the lease ends, and when the link is there.
    let (mut lease, mut link) = (0, u64::MAX);
    let mut owner_dies = dies;
    while let Some(Reverse((now, at, step))) = plan.pop() {
        let Some(sidecar) = fleet.get_mut(at) else { break };
        outcome.looks += 1;
        let is_there = link <= now;
        let reply = server.answers(now, if is_there { NAMES + VALUES } else { NAMES });
        let deadline = sidecar.asked + DEADLINE;
        if is_there {
            outcome.last_answer = outcome.last_answer.max(Some(reply - first));
            continue;
        }
        let is_free = lease <= now;
        let mut calls = false;
        match step {
            Step::Look => {
                let left = deadline.saturating_sub(reply);
                let most = if fair * 2 >= DEADLINE { left } else { left.saturating_sub(fair) };
                let wait = if LEASE_WAIT * 3 <= left { LEASE_WAIT } else { most };
                sidecar.until = reply + most.saturating_sub(2 * LAST_LOOK).min(wait);
                plan.push(Reverse((reply, at, Step::Acquire)));
                continue;
            }
            Step::Acquire if is_free => {
                calls = true;
                // It is renewed until the link is written, the call has failed, or its owner is dead.
                lease = (reply + call).min(deadline) + ROUND_TRIP;
            }
            Step::Check if is_free => {
                plan.push(Reverse((reply, at, Step::Acquire)));
                continue;
            }
            Step::Acquire | Step::Check if reply >= sidecar.until => calls = true,
            Step::Acquire | Step::Check => {
                let pause = sidecar.pause * random.random_range(0.75..1.25);
                let pause = (pause as u64).min(sidecar.until - reply);
                sidecar.pause = (sidecar.pause * PAUSE_GROWTH).min(LONGEST_PAUSE);
                plan.push(Reverse((reply + pause, at, Step::Check)));
            }
        }
        if !calls {
            continue;
        }
        outcome.calls += 1;
        if std::mem::take(&mut owner_dies) {
            lease = reply + call / 2 / RENEWAL * RENEWAL + LIFE;
        } else if reply + call < deadline {
            link = link.min(reply + call + ROUND_TRIP);
            outcome.last_answer = outcome.last_answer.max(Some(reply + call - first));
        } else {
            outcome.unanswered += 1;
        }
    }
    outcome.shared = (link < u64::MAX).then(|| link - first);
    outcome
}
