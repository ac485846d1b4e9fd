//! Two sidecars, and a shared tier that is in wrong hands.

use std::sync::{Arc, LazyLock};
use std::time::Duration;

use http::header::DATE;
use http::{HeaderMap, HeaderValue};
use prometheus::Registry;
use sidelink::api::answer::AnswerItem;
use sidelink::cache::Entry;
use sidelink::cache::freshness::{AnswerFreshness, Expiry, expiry, judge};
use sidelink::cache::purges::Target;
use sidelink::clock::Clock;
use sidelink::config::{Config, Endpoint, Secret};
use sidelink::shared::testing::Trial;
use sidelink::shared::{Stamp, TierScope, TierUpdate};
use sidelink::telemetry::metrics::Metrics;

use super::{EPOCH, runtime};

/// What a shared tier hands back counts only where it was written, for whom it was written and before its end, and not where
/// it is known that it was purged or its caller revoked since; whoever alters, moves or brings back values or the journal
/// gains nothing by it.
pub fn shared(data: &[u8]) {
    let runtime = runtime();
    let _entered = runtime.enter();
    let mut steps = data.iter().copied();
    let mut fleet = Fleet::new(steps.next().unwrap_or(0));
    // So that one input takes no more than a moment.
    for _ in 0..64 {
        let Some(step) = steps.next() else { break };
        let (kind, argument) = (step >> 5, usize::from(step & 31));
        let mut next = || usize::from(steps.next().unwrap_or(0));
        match kind {
            0 | 1 => fleet.write(argument % 2, argument / 2 % 8, next(), kind == 1),
            2 => fleet.stamp(argument % 2),
            3 => fleet.look(argument % 2, false),
            4 => fleet.say(argument % 2, argument / 2),
            5 => fleet.tell(argument % 2),
            6 => fleet.read(argument % 2),
            _ => match argument % 8 {
                0 => {
                    fleet.journal.truncate(next() * fleet.journal.len() / 256);
                    fleet.withheld = true;
                }
                1 => {
                    let at = next() * fleet.journal.len() / 256;
                    if let Some(byte) = fleet.journal.get_mut(at) {
                        *byte ^= 1 << (argument / 8);
                    }
                }
                2 => fleet.journal.extend((0..next()).map(|at| if at % 9 == 0 { b'-' } else { b'A' })),
                3 => fleet.copies.push(fleet.journal.clone()),
                4 => fleet.bring_back(next()),
                5 => fleet.alter(next(), next(), argument / 8),
                6 => {
                    let length = next();
                    fleet.altered.push(steps.by_ref().take(length).collect());
                }
                _ => runtime.block_on(tokio::time::advance(Duration::from_secs(1 << (argument / 8 + next() % 8)))),
            },
        }
    }
    (0..2).for_each(|who| {
        fleet.look(who, false);
        fleet.read(who);
        fleet.look(who, true);
    });
}

/// Two sidecars, and what stands in the tier between them.
struct Fleet {
    sidecars: [Trial; 2],
    clocks: [Clock; 2],
    endpoint_clock: Clock,
    shares: [Vec<TierScope>; 2],
    journal: Vec<u8>,
    copies: Vec<Vec<u8>>,
    /// The journal of another time was brought back: of what others said, some may be unsaid.
    unsaid: bool,
    /// Its end was cut off: until it begins anew, what others have said may not be there to be read.
    withheld: bool,
    values: Vec<Written>,
    altered: Vec<Vec<u8>>,
    /// What was purged or revoked, in order.
    said: Vec<Said>,
    /// Stamp of each sidecar, with how much had been said by then.
    stamps: [Vec<(Stamp, usize)>; 2],
    config: sidelink::config::Freshness,
}

/// A value that was written.
struct Written {
    scope: usize,
    /// `None`: an acceptance.
    id: Option<usize>,
    value: Vec<u8>,
    url: String,
    /// How much had been said when it was asked for.
    said: usize,
}

struct Said {
    what: Fact,
    who: usize,
    /// It stands in the journal.
    told: bool,
    /// Which of the sidecars know.
    known: [bool; 2],
}

#[derive(Clone, Copy, PartialEq)]
enum Fact {
    All,
    Id(usize),
    /// An id of the API, or of another one.
    OfApi(usize, bool),
    Group,
    Caller(&'static str),
}

impl Fleet {
    /// Token, user and group.
    const SCOPES: [(&str, Option<&str>, Option<&str>); 8] = [
        ("alice", None, None),
        ("alice", None, Some("g")),
        ("alic", None, None),
        ("bob", None, Some("g")),
        ("carol", Some("u"), None),
        ("carl", Some("u"), None),
        ("dave", Some("v"), None),
        // Named as the user is.
        ("u", None, None),
    ];
    const IDS: [&str; 4] = ["1", "2", "12", "g"];
    const REVALIDATE: u64 = 300_000;
    const MOST_VALUES: usize = 24;

    fn new(skew: u8) -> Self {
        static METRICS: LazyLock<Arc<Metrics>> =
            LazyLock::new(|| Arc::new(Metrics::new(&Registry::new()).expect("the first of their names")));
        let config = Config::for_endpoint(Endpoint::parse("http://endpoint").unwrap());
        let mut shared = sidelink::config::Shared::at(Vec::new(), vec![Secret::new(vec![b'x'; 32])]);
        shared.prefix = "p:".into();
        // The fleet's clocks agree within two seconds.
        let clocks = [Clock::simulated(EPOCH), Clock::simulated(EPOCH + (i64::from(skew) - 128) * 15)];
        let sidecars = clocks.each_ref().map(|clock| Trial::new(&shared, &config, METRICS.clone(), clock.clone()));
        let shares = sidecars.each_ref().map(|sidecar| {
            Self::SCOPES
                .iter()
                .map(|(token, user, group)| sidecar.scope_of_user(token, *user, *group))
                .collect::<Vec<_>>()
        });
        let mut fleet = Self {
            sidecars,
            clocks,
            endpoint_clock: Clock::simulated(EPOCH),
            shares,
            journal: Vec::new(),
            copies: Vec::new(),
            unsaid: false,
            withheld: false,
            values: Vec::new(),
            altered: Vec::new(),
            said: Vec::new(),
            stamps: Default::default(),
            config: config.freshness,
        };
        (0..2).for_each(|who| fleet.read(who));
        fleet
    }

    fn stamp(&mut self, who: usize) {
        if let Some(stamp) = self.sidecars[who].stamp() {
            self.stamps[who].push((stamp, self.said.len()));
        }
    }

    /// What a call brings that was sent when its sidecar took its last stamp, or now.
    fn write(&mut self, who: usize, scope: usize, how: usize, late: bool) {
        if !late {
            self.stamp(who);
        }
        let Some((stamp, said)) = self.stamps[who].last().cloned() else { return };
        if self.values.len() >= Self::MOST_VALUES {
            return;
        }
        let now = self.endpoint_clock.now().unix_millis();
        let life = [30, 90, 200, 900][how / 4 % 4];
        let (id, url) = (how % 4, format!("u?n={}&Expires={}&Signature=s", self.values.len(), now / 1000 + life));
        let date = httpdate(now);
        let headers = HeaderMap::from_iter([(DATE, HeaderValue::from_str(&date).expect("a date"))]);
        let sent = self.clocks[who].now();
        let mut brought = TierUpdate { accepted: (how & 16 == 0).then_some(sent), ..TierUpdate::default() };
        if let Ok(deadlines) =
            judge(&AnswerItem::of_link(&url, Some(&url)), &AnswerFreshness::read(&headers, sent), &self.config)
        {
            brought.entries.push((Self::IDS[id].into(), Entry::new(Some(&url), deadlines)));
        }
        let written = self.sidecars[who].write(&self.shares[who][scope], &stamp, &brought);
        let at_most = brought.entries.len() + usize::from(brought.accepted.is_some());
        assert!(written.len() <= at_most);
        for (name, value) in written {
            let id = name.starts_with("p:l.").then_some(id);
            assert!(id.is_some() || name.starts_with("p:c."), "{name}");
            self.values.push(Written { scope, id, value, url: url.clone(), said });
        }
    }

    fn say(&mut self, who: usize, what: usize) {
        let what = match what {
            0 => Fact::All,
            1 => Fact::Group,
            2..=3 => Fact::Caller(Self::SCOPES[2 * (what - 2)].0),
            4..=7 => Fact::Id(what - 4),
            8..=11 => Fact::OfApi(what - 8, what.is_multiple_of(2)),
            _ => Fact::Caller(Self::SCOPES[what - 8].0),
        };
        let sidecar = &self.sidecars[who];
        match what {
            Fact::All => sidecar.purge(Target::All),
            Fact::Group => sidecar.purge(Target::Group("g")),
            Fact::Id(id) => sidecar.purge(Target::Id(Self::IDS[id])),
            Fact::OfApi(id, is_ours) => {
                let api = if is_ours { "huawei-osm" } else { "other" };
                sidecar.purge(Target::OfApi { api, id: Self::IDS[id] });
            }
            Fact::Caller(token) => {
                let scope = Self::SCOPES.iter().position(|scope| scope.0 == token).expect("it has a scope");
                sidecar.revoke(&self.shares[who][scope]);
            }
        }
        let mut known = [false; 2];
        known[who] = true;
        self.said.push(Said { what, who, told: false, known });
    }

    fn tell(&mut self, who: usize) {
        if let Some(text) = self.sidecars[who].tell() {
            self.journal.extend(text.into_bytes());
            self.said.iter_mut().filter(|said| said.who == who).for_each(|said| said.told = true);
        }
    }

    /// Reads the journal as a sidecar does: one that is none begins anew.
    fn read(&mut self, who: usize) {
        if !self.sidecars[who].read(&self.journal) {
            self.journal = self.sidecars[who].begin().expect("it can be sealed").into_bytes();
            assert!(self.sidecars[who].read(&self.journal), "its own beginning");
            // What it says is to be told again.
            self.said.iter_mut().for_each(|said| said.told = false);
            self.withheld = false;
            return;
        }
        if self.withheld {
            return;
        }
        self.said.iter_mut().filter(|said| said.told).for_each(|said| said.known[who] = true);
    }

    fn bring_back(&mut self, which: usize) {
        if self.copies.is_empty() {
            return;
        }
        self.journal = self.copies[which % self.copies.len()].clone();
        self.unsaid = true;
    }

    fn alter(&mut self, which: usize, at: usize, bit: usize) {
        if self.values.is_empty() {
            return;
        }
        let mut value = self.values[which % self.values.len()].value.clone();
        let at = at * value.len() / 256;
        value[at] ^= 1 << bit;
        self.altered.push(value);
    }

    /// A sidecar is handed each value where it belongs, or in each place.
    fn look(&self, who: usize, everywhere: bool) {
        let (sidecar, now) = (&self.sidecars[who], self.clocks[who].now());
        let opened = |scope: usize, id: Option<usize>, value: &[u8]| {
            let share = &self.shares[who][scope];
            match id {
                Some(id) => sidecar.link(share, Self::IDS[id], value).map(|kept| {
                    assert!(kept.deadlines().usable(now));
                    kept.text().expect("a link").to_vec()
                }),
                None => sidecar.acceptance(share, value).map(|sent| {
                    assert!(now.since(sent) < Self::REVALIDATE);
                    Vec::new()
                }),
            }
        };
        let ids = || (0..Self::IDS.len()).map(Some).chain([None]);
        for value in &self.altered {
            if !self.values.iter().any(|written| written.value == *value) {
                let anywhere = (0..Self::SCOPES.len()).flat_map(|scope| ids().map(move |id| (scope, id)));
                anywhere.for_each(|(scope, id)| assert!(opened(scope, id, value).is_none(), "altered, and it opens"));
            }
        }
        for written in &self.values {
            let (token, user, group) = Self::SCOPES[written.scope];
            // Links are the user's, where there is one; acceptances are the token's.
            let is_owner = |scope: usize| match user {
                Some(_) => Self::SCOPES[scope].1 == user,
                None => scope == written.scope,
            };
            for scope in 0..Self::SCOPES.len() {
                for id in ids() {
                    let here =
                        id == written.id && if id.is_none() { Self::SCOPES[scope].0 == token } else { is_owner(scope) };
                    if !here && !everywhere {
                        continue;
                    }
                    let Some(text) = opened(scope, id, &written.value) else { continue };
                    assert!(here, "of {:?} and found for {:?}", Self::SCOPES[written.scope], Self::SCOPES[scope]);
                    if id.is_some() {
                        assert_eq!(text, written.url.as_bytes());
                        let Expiry::At(end) = expiry(&written.url) else { panic!("an end") };
                        let left = end.saturating_sub(self.endpoint_clock.now().unix_millis());
                        assert!(left >= 60_000, "a link with {left} ms to live");
                    }
                    let concerns = |said: &Said| match said.what {
                        Fact::All => true,
                        Fact::Caller(whom) => whom == token && (id.is_none() || user.is_none()),
                        Fact::Id(which) | Fact::OfApi(which, true) => id == Some(which),
                        Fact::OfApi(_, false) => false,
                        Fact::Group => id.is_some() && group.is_some(),
                    };
                    let knows = |said: &Said| if self.unsaid { said.who == who } else { said.known[who] };
                    let void = self.said[written.said..].iter().any(|said| concerns(said) && knows(said));
                    assert!(!void, "it was purged or revoked");
                }
            }
        }
    }
}

fn httpdate(millis: u64) -> String {
    httpdate::fmt_http_date(std::time::UNIX_EPOCH + Duration::from_millis(millis))
}
