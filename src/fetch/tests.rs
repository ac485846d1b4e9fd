use prometheus::Registry;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::shared_lookup::SharedLookup;
use super::*;
use crate::api;
use crate::api::call::CallTemplate;
use crate::api::id::Group;
use crate::api::request::Batch;
use crate::auth::{CallerStates, LastToken};
use crate::cache::freshness::Deadlines;
use crate::cache::purges::Purges;
use crate::config::Endpoint;
use crate::error::NoAnswer;
use crate::shared::{Leases, TierResult};
use crate::telemetry::trace::{RequestSpan, TraceContext};

/// A fetcher whose endpoint refuses every connection.
fn fetch() -> (Arc<Fetcher>, Arc<FetchContext>) {
    let config = Arc::new(Config::for_endpoint(Endpoint::parse("http://h").unwrap()));
    let clock = Clock::simulated(1_000_000);
    let metrics = Arc::new(Metrics::new(&Registry::new()).unwrap());
    let api_metrics = metrics.apis.of("huawei-osm").unwrap();
    let (accept, _) = mpsc::unbounded_channel();
    let upstream = Arc::new(Upstream::in_memory(accept.into(), &config.upstream, clock.clone(), Arc::clone(&metrics)));
    let (caller_states, endpoint) = (Arc::new(CallerStates::new([7; 16])), &config.upstream.endpoint);
    let callers = Arc::new(Callers::new(
        Arc::new(api::BatchApi::preset("huawei-osm").unwrap()),
        &config.callers,
        Arc::default(),
        caller_states,
        endpoint,
        clock.clone(),
    ));
    let purges = Arc::new(Purges::new([7; 16], config.upstream.deadline));
    let cache = Arc::new(Cache::new(&config.cache, purges, &metrics));
    let (head, ()) = http::Request::get("/").header(api::TOKEN, "t").body(()).unwrap().into_parts();
    let credential = callers.credential(&head.headers).ok().unwrap();
    let identity = callers.identify(&credential, &LastToken::default(), &head, b"", clock.now()).ok().unwrap();
    let batch = Batch::read(callers.api(), Some("accessory_ids=1"), &head.headers, b"").unwrap();
    let template = CallTemplate::new("/", &batch);
    let context = FetchContext {
        refetches: false,
        headers: callers.carried(&identity, &head.headers),
        scope: callers.scope(&identity, (&head.headers).into(), &head.uri).of_group(&Group::Absent),
        identity,
        group: Group::Absent,
        request_id: None,
        has_cookies: false,
        was_accepted: false,
        template,
        deadline: Instant::now() + config.upstream.deadline,
        hops: 0,
        trace: RequestSpan::default(),
        trace_context: TraceContext::default(),
        requirements: CacheRequirements::default(),
        tier_scope: None,
        body: None,
    };
    let state = Arc::new(FetchState::new(config.upstream.calls));
    (
        Arc::new(Fetcher::new(upstream, callers, cache, state, None, metrics, api_metrics, config, clock)),
        Arc::new(context),
    )
}

fn keyed(context: &FetchContext, id: &str) -> KeyedId {
    KeyedId { id: id.into(), key: context.scope.key(id), written: id.into(), is_qualified: false }
}

/// A flight for `id` that nobody waits for.
fn start(fetch: &Arc<Fetcher>, context: &Arc<FetchContext>, id: &KeyedId) -> PendingId {
    let permit = fetch.permits(1, &context.identity).unwrap().remove(0);
    let pending = PendingId::new(fetch, context, id, permit);
    fetch.flights().add(&pending);
    pending
}

/// Starts a flight for `id`, and queues it for a call.
fn queue(fetch: &Arc<Fetcher>, context: &Arc<FetchContext>, id: &KeyedId) -> Arc<Flight> {
    let pending = start(fetch, context, id);
    let flight = Arc::clone(&pending.flight);
    fetch.flights().queues.entry(context.queue_key()).or_default().pending.push_back(pending);
    flight
}

fn is_lost(result: &FetchResult) -> bool {
    let Err(failure) = &result.entry else { return false };
    matches!(failure.cause, Cause::NoAnswer(Error::NoAnswer(NoAnswer::Lost)))
}

#[tokio::test(start_paused = true)]
async fn a_flight_whose_task_panics_frees_its_waiters_and_its_permit() {
    let (fetch, context) = fetch();
    let id = keyed(&context, "1");
    let (flight, mut ready) = {
        let pending = queue(&fetch, &context, &id);
        pending.waiters.fetch_add(1, Ordering::Relaxed);
        let ready = fetch.take_ready_calls(&mut fetch.flights(), context.queue_key());
        (pending, ready)
    };
    let batch = ready.remove(0);
    let waiter = tokio::spawn({
        let flight = Arc::clone(&flight);
        async move { flight.wait().await }
    });
    let call = tokio::spawn(async move {
        let _batch = batch;
        panic!("planted");
    });
    assert!(call.await.unwrap_err().is_panic());
    assert!(is_lost(&waiter.await.unwrap()));
    drop(flight);
    assert!(fetch.flights().by_key.is_empty() && fetch.flights().queues.is_empty());
    assert_eq!(fetch.state.in_flight.load(Ordering::Relaxed), 0);
    assert_eq!(context.identity.owner().flights.load(Ordering::Relaxed), 0);
}

#[tokio::test(start_paused = true)]
async fn a_queued_id_without_waiters_is_dropped() {
    let (fetch, context) = fetch();
    for id in ["left", "stays"] {
        let flight = queue(&fetch, &context, &keyed(&context, id));
        flight.waiters.fetch_add(usize::from(id == "stays"), Ordering::Relaxed);
    }
    let ready = fetch.take_ready_calls(&mut fetch.flights(), context.queue_key());
    assert_eq!(ready.len(), 1);
    assert!(fetch.flights().by_key.contains_key(&keyed(&context, "stays").key));
    assert!(!fetch.flights().by_key.contains_key(&keyed(&context, "left").key));
}

#[tokio::test(start_paused = true)]
async fn a_batch_that_is_shed_leaves_no_flight_and_no_permit() {
    let (fetch, context) = fetch();
    let most = fetch.config.limits.in_flight;
    let many: Vec<KeyedId> = (0..=most / 2).map(|id| keyed(&context, &id.to_string())).collect();
    let shed = fetch.fetch(&context, &many).await;
    assert_eq!(shed.err(), Some(Error::Shed(Limit::CallerInFlight)));
    assert!(fetch.flights().by_key.is_empty() && fetch.flights().queues.is_empty());
    assert_eq!(fetch.state.in_flight.load(Ordering::Relaxed), 0);
    assert_eq!(fetch.state.waiters.load(Ordering::Relaxed), 0);
}

/// Regression: an entry of the shared tier, found before the endpoint refused the caller an id, was stored after it.
#[tokio::test(start_paused = true)]
async fn an_entry_found_before_an_invalidation_is_not_stored_after_it() {
    for invalidated in [false, true] {
        let (fetch, context) = fetch();
        let (fetcher, now) = (&fetch, fetch.clock.now());
        fetcher.callers.accept(&context.identity, now, context.identity.caller_state.invalidations());
        let id = keyed(&context, "1");
        let mut lookup = SharedLookup::new(fetcher, &context, vec![start(fetcher, &context, &id)], false);
        if invalidated {
            fetcher.callers.invalidate(&context.identity);
            // And is accepted again, by a call for something else.
            fetcher.callers.accept(&context.identity, now, context.identity.caller_state.invalidations());
        }
        let link = Entry::new(Some("{}"), Deadlines::absent(now, std::time::Duration::from_secs(60)));
        let found = TierResult { entries: vec![Some(link)], ..TierResult::default() };
        lookup.take(found, Leases::Ignore);
        assert_eq!(fetcher.flights().by_key.is_empty(), !invalidated);
        let marks = fetcher.cache.purges().of(&fetcher.callers.api().name, None);
        assert_eq!(fetcher.cache.look_up(id.key, "1", &marks).is_none(), invalidated);
    }
}
