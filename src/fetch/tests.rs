use prometheus::Registry;
use tokio::sync::mpsc;

use super::sharing::Seekers;
use super::*;
use crate::api;
use crate::auth::CallerStates;
use crate::cache::freshness::Deadlines;
use crate::cache::purges::Purges;
use crate::config::Endpoint;
use crate::shared::Found;

/// A fetcher whose endpoint refuses every connection.
fn fetch() -> (Fetch, Arc<FetchContext>) {
    let config = Arc::new(Config::for_endpoint(Endpoint::parse("http://h").unwrap()));
    let clock = Clock::simulated(1_000_000);
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let (accept, _) = mpsc::unbounded_channel();
    let upstream = Arc::new(Upstream::in_memory(accept.into(), &config.upstream, clock.clone(), Arc::clone(&metrics)));
    let (caller_states, endpoint) = (Arc::new(CallerStates::new([7; 16])), &config.upstream.endpoint);
    let callers = Arc::new(Callers::new(&config.callers, Arc::default(), caller_states, endpoint, clock.clone()));
    let purges = Arc::new(Purges::new([7; 16], config.upstream.deadline));
    let cache = Arc::new(Cache::new(&config.cache, purges, &metrics));
    let (head, ()) = http::Request::get("/").header(api::TOKEN, "t").body(()).unwrap().into_parts();
    let credential = callers.credential(&head.headers).ok().unwrap();
    let requester = callers.identify(&credential, &head, b"").ok().unwrap();
    let terms = FetchContext {
        headers: callers.carried(&requester, &head.headers),
        scope: callers.scope(&requester, &head.headers, &Group::Absent),
        requester,
        group: Group::Absent,
        request_id: None,
        has_cookies: false,
        was_accepted: false,
        form: Form::Repeated,
        deadline: Instant::now() + config.upstream.deadline,
        hops: 0,
        trace: RequestSpan::default(),
        context: TraceContext::default(),
        demand: CacheRequirements::default(),
        share: None,
    };
    let flights = Arc::new(Flights::new(config.upstream.calls));
    (Fetch::new(upstream, callers, cache, flights, None, metrics, config, clock), Arc::new(terms))
}

fn wanted(terms: &FetchContext, id: &str) -> Wanted {
    Wanted { id: id.into(), key: terms.scope.key(id) }
}

fn is_lost(landed: &FlightResult) -> bool {
    let ItemResult::Failed(failure) = &landed.result else { return false };
    matches!(failure.cause, Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost)))
}

#[tokio::test(start_paused = true)]
async fn a_flight_whose_task_panics_frees_its_waiters_and_its_permit() {
    let (fetch, terms) = fetch();
    let wanted = wanted(&terms, "1");
    let (flight, mut departing) = {
        let mut state = fetch.0.state();
        let permit = fetch.0.permits(1, &terms.requester.caller_state).unwrap().remove(0);
        let passenger = state.begin(&fetch.0, &terms, &wanted, permit);
        let flight = Arc::clone(&passenger.flight);
        flight.awaited.fetch_add(1, Ordering::Relaxed);
        state.queue(terms.lane(), vec![passenger]);
        let departing = fetch.0.departures(&mut state, terms.lane());
        (flight, departing)
    };
    let manifest = departing.remove(0);
    let waiter = tokio::spawn({
        let flight = Arc::clone(&flight);
        async move { flight.land().await }
    });
    let call = tokio::spawn(async move {
        let _manifest = manifest;
        panic!("planted");
    });
    assert!(call.await.unwrap_err().is_panic());
    assert!(is_lost(&waiter.await.unwrap()));
    drop(flight);
    assert!(fetch.0.state().flights.is_empty() && fetch.0.state().lanes.is_empty());
    assert_eq!(fetch.0.flights.in_flight.load(Ordering::Relaxed), 0);
    assert_eq!(terms.requester.caller_state.flights.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_queued_id_that_nobody_awaits_any_more_is_dropped() {
    let (fetch, terms) = fetch();
    let mut state = fetch.0.state();
    for id in ["left", "stays"] {
        let permit = fetch.0.permits(1, &terms.requester.caller_state).unwrap().remove(0);
        let passenger = state.begin(&fetch.0, &terms, &wanted(&terms, id), permit);
        passenger.flight.awaited.fetch_add(usize::from(id == "stays"), Ordering::Relaxed);
        state.queue(terms.lane(), vec![passenger]);
    }
    let departing = fetch.0.departures(&mut state, terms.lane());
    assert_eq!(departing.len(), 1);
    assert!(state.flights.contains_key(&wanted(&terms, "stays").key));
    assert!(!state.flights.contains_key(&wanted(&terms, "left").key));
    drop(state);
    drop(departing);
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_shed_leaves_nothing_behind() {
    let (fetch, terms) = fetch();
    let most = fetch.0.config.limits.in_flight;
    let many: Vec<Wanted> = (0..=most / 2).map(|id| wanted(&terms, &id.to_string())).collect();
    let shed = fetch.fetch(&terms, &many).await;
    assert_eq!(shed.err(), Some(Error::Shed(Limit::CallerInFlight)));
    assert!(fetch.0.state().flights.is_empty() && fetch.0.state().lanes.is_empty());
    assert_eq!(fetch.0.flights.in_flight.load(Ordering::Relaxed), 0);
    assert_eq!(fetch.0.flights.waiters.load(Ordering::Relaxed), 0);
}

/// Regression: what the shared tier had said before the endpoint refused the caller an id was kept after it.
#[tokio::test(start_paused = true)]
async fn what_was_found_before_a_doubt_is_not_kept_after_it() {
    for invalidated in [false, true] {
        let (fetch, terms) = fetch();
        let (inner, now) = (&fetch.0, fetch.0.clock.now());
        inner.callers.accept(&terms.requester, now, terms.requester.caller_state.invalidations());
        let wanted = wanted(&terms, "1");
        let permit = inner.permits(1, &terms.requester.caller_state).unwrap().remove(0);
        let passenger = inner.state().begin(inner, &terms, &wanted, permit);
        let mut seekers = Seekers::new(inner, &terms, vec![passenger], false);
        if invalidated {
            inner.callers.invalidate(&terms.requester);
            // And is accepted again, by a call for something else.
            inner.callers.accept(&terms.requester, now, terms.requester.caller_state.invalidations());
        }
        let link = Entry::new(Some("{}"), Deadlines::absent(now, std::time::Duration::from_secs(60)));
        let found = Found { links: vec![Some(link)], ..Found::default() };
        assert_eq!(seekers.take(&found), [!invalidated]);
        let marks = inner.cache.purges().of_group(None);
        assert_eq!(inner.cache.look_up(wanted.key, "1", &marks).is_none(), invalidated);
    }
}
