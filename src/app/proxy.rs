//! Everything between a client's request and the endpoint: what one configuration builds ([`Generation`]), over what
//! outlasts it ([`SharedState`]).

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::ArcSwap;
use http::uri::Scheme;
use prometheus::Registry;

use super::StartError;
use crate::admin::{Admin, AdminState, History};
use crate::auth::signature::Keys;
use crate::auth::{CallerStates, Callers};
use crate::batch::BatchRoute;
use crate::cache::Cache;
use crate::cache::purges::{self, Mark, Purges};
use crate::clock::Clock;
use crate::config::{Config, Reload, ReloadState};
use crate::error::Limit;
use crate::fetch::{Fetch, Flights};
use crate::limits::budget::{Budget, Usage, Usages};
use crate::proxy::passthrough::{Deletions, Passthrough, Resign};
use crate::proxy::router::Router;
use crate::shared::{Tier, TierState};
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{ExportTasks, Tracer};
use crate::upstream::{MemoryEndpoint, SetupError, Upstream, trusted_client};

/// Everything between a client's request and the endpoint, without listeners.
pub struct Proxy {
    pub(super) shared: SharedState,
    /// A request takes one and is answered by it to its end, whatever is loaded meanwhile.
    current: ArcSwap<Generation>,
}

/// What one configuration builds. It does not change.
pub struct Generation {
    /// Answers clients.
    pub router: Router,
    /// Answers operators.
    pub admin: Admin,
    /// What this was built from.
    pub config: Arc<Config>,
    upstream: Arc<Upstream>,
    tier: Option<Arc<Tier>>,
    tracer: Option<Tracer>,
}

/// What outlasts a configuration: the cache, flights, counters.
pub(super) struct SharedState {
    pub(super) cache: Arc<Cache>,
    purges: Arc<Purges>,
    caller_states: Arc<CallerStates>,
    flights: Arc<Flights>,
    totals: Usages,
    registry: Registry,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ready: Arc<AtomicBool>,
    pub(super) reloads: ReloadState,
    pub(super) history: Arc<History>,
    pub(super) clock: Clock,
    pub(super) exports: ExportTasks,
    /// The endpoint, where it is in memory and not in the network.
    memory_endpoint: Option<MemoryEndpoint>,
}

impl Proxy {
    /// Builds everything, to reach the endpoint over the network. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// The endpoint's client cannot be built.
    pub fn new(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::build(config, clock, None)
    }

    /// Builds everything, to reach the endpoint in memory.
    ///
    /// # Errors
    /// The metrics cannot be registered.
    pub fn in_memory(config: Config, clock: Clock, endpoint: impl Into<MemoryEndpoint>) -> Result<Self, StartError> {
        Self::build(config, clock, Some(endpoint.into()))
    }

    fn build(config: Config, clock: Clock, memory_endpoint: Option<MemoryEndpoint>) -> Result<Self, StartError> {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry)?);
        metrics.reload.succeeded(clock.now().unix_seconds());
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process))?;
        let purges = Arc::new(Purges::new(purge_key(&config).unwrap_or_else(rand::random), purges::span_of(&config)));
        let history = Arc::new(History::new(Arc::clone(&metrics), clock.clone()));
        let shared = SharedState {
            cache: Arc::new(Cache::new(&config.cache, Arc::clone(&purges), &metrics)),
            purges,
            caller_states: Arc::new(CallerStates::new(rand::random())),
            flights: Arc::new(Flights::new(config.upstream.calls)),
            totals: Usages::default(),
            registry,
            metrics,
            ready: Arc::new(AtomicBool::new(false)),
            reloads: ReloadState::started(clock.now().wall_time()),
            history,
            clock,
            exports: ExportTasks::default(),
            memory_endpoint,
        };
        let upstream = shared.upstream(&config, None)?;
        let tier = shared.tier(&config, None)?;
        let tracer = shared.tracer(&config, None)?;
        let current = ArcSwap::from_pointee(shared.build(Arc::new(config), upstream, tier, tracer));
        Ok(Self { shared, current })
    }

    /// The generation that answers now.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Applies `config` to requests from now on. Links stay in the cache, and flights are joined; under another endpoint,
    /// neither is found.
    ///
    /// # Errors
    /// The endpoint's client cannot be built. Nothing has changed then.
    pub fn reload(&self, config: Config) -> Result<(), SetupError> {
        let before = self.current();
        let upstream = self.shared.upstream(&config, Some(&before))?;
        let tracer = self.shared.tracer(&config, Some(&before))?;
        let tier = self.shared.tier(&config, Some(&before))?;
        if config.freshness.min_remaining > before.config.freshness.min_remaining {
            // Links in the cache were judged by the lower floor, and so are those of batches that are in flight.
            self.shared.flights.set_min_remaining(config.freshness.min_remaining);
            self.shared.purges.mark(Mark::All, self.shared.clock.now());
        }
        self.shared.purges.lengthen(purges::span_of(&config));
        self.shared.cache.resize(config.cache.capacity);
        self.shared.flights.resize(config.upstream.calls);
        let floor = config.freshness.min_remaining;
        self.current.store(Arc::new(self.shared.build(Arc::new(config), upstream, tier, tracer)));
        self.shared.flights.set_min_remaining(floor);
        self.shared.metrics.reload.succeeded(self.shared.clock.now().unix_seconds());
        self.note(Vec::new());
        Ok(())
    }

    /// Notes that a configuration was refused because of `errors`.
    pub fn refuse(&self, errors: Vec<String>) {
        self.shared.metrics.reload.failed();
        self.note(errors);
    }

    fn note(&self, errors: Vec<String>) {
        self.shared.reloads.note(Reload { at: self.shared.clock.now().wall_time(), errors });
    }
}

impl SharedState {
    /// The endpoint's client: that of `before`, with its connections, where it would be the same.
    fn upstream(&self, config: &Config, before: Option<&Generation>) -> Result<Arc<Upstream>, SetupError> {
        if let Some(before) = before
            && before.config.upstream == config.upstream
            && before.upstream.trust_is_unchanged(&config.upstream)
        {
            return Ok(Arc::clone(&before.upstream));
        }
        let (clock, metrics) = (self.clock.clone(), Arc::clone(&self.metrics));
        let upstream = match &self.memory_endpoint {
            None => Upstream::new(&config.upstream, clock, metrics)?,
            Some(endpoint) => Upstream::in_memory(endpoint.clone(), &config.upstream, clock, metrics),
        };
        Ok(Arc::new(upstream))
    }

    /// The shared tier, if there is one: that of `before`, with its state, where it would be the same.
    fn tier(&self, config: &Config, before: Option<&Generation>) -> Result<Option<Arc<Tier>>, SetupError> {
        let is_same = |before: &Config| {
            before.shared == config.shared
                && before.upstream.endpoint == config.upstream.endpoint
                && before.freshness == config.freshness
                && before.callers.revalidate == config.callers.revalidate
        };
        if let Some(before) = before.filter(|before| is_same(&before.config)) {
            return Ok(before.tier.clone());
        }
        let Some(shared) = &config.shared else {
            self.purges.set_listener(None);
            return Ok(None);
        };
        let tls = if shared.tls { Some(trusted_client("shared.ca_file", shared.ca_file.as_deref())?) } else { None };
        if let Some(key) = purge_key(config) {
            self.purges.rename(key, || self.clock.now());
        }
        let (caller_states, purges) = (Arc::clone(&self.caller_states), Arc::clone(&self.purges));
        let metrics = Arc::clone(&self.metrics);
        let state = TierState::new(shared, config, tls, caller_states, purges, metrics, self.clock.clone());
        let tier = Arc::new(Tier::start(state));
        let weak = Arc::downgrade(&tier);
        self.purges.set_listener(Some(Box::new(move |target| {
            if let Some(tier) = weak.upgrade() {
                tier.purge(target);
            }
        })));
        Ok(Some(tier))
    }

    /// What begins spans, if anything does: that of `before`, with its queue, where it would be the same.
    fn tracer(&self, config: &Config, before: Option<&Generation>) -> Result<Option<Tracer>, SetupError> {
        if let Some(before) = before.filter(|before| before.config.trace == config.trace) {
            return Ok(before.tracer.clone());
        }
        let Some(trace) = &config.trace else { return Ok(None) };
        let is_https = trace.endpoint.scheme == Scheme::HTTPS;
        let tls = if is_https { Some(trusted_client("trace.ca_file", trace.ca_file.as_deref())?) } else { None };
        let tracer = Tracer::start(trace, tls, &self.metrics, &self.exports);
        tracer.map(Some).map_err(|error| SetupError::Exporter(error.to_string()))
    }

    fn build(
        &self,
        config: Arc<Config>,
        upstream: Arc<Upstream>,
        tier: Option<Arc<Tier>>,
        tracer: Option<Tracer>,
    ) -> Generation {
        let (clock, metrics) = (&self.clock, &self.metrics);
        let keys = Arc::new(Keys::new(config.callers.keys.iter().map(|key| &key.pair)));
        let callers = Arc::new(Callers::new(
            &config.callers,
            Arc::clone(&keys),
            Arc::clone(&self.caller_states),
            &config.upstream.endpoint,
            clock.clone(),
        ));
        let fetch = Fetch::new(
            Arc::clone(&upstream),
            Arc::clone(&callers),
            Arc::clone(&self.cache),
            Arc::clone(&self.flights),
            tier.clone(),
            Arc::clone(metrics),
            Arc::clone(&config),
            clock.clone(),
        );
        let budget = |usage: &Usage, size, limit| Budget::new(usage.clone(), size, limit, Arc::clone(metrics));
        let resign = Resign::new(
            keys,
            Arc::clone(&callers),
            Arc::clone(&upstream),
            &config.limits,
            budget(&self.totals.signed_bodies, config.limits.signed_bodies, Limit::SignedBodies),
            clock.clone(),
        );
        let deletions = Deletions::new(Arc::clone(&self.purges), clock.clone(), Arc::clone(metrics));
        let idle_timeout = config.upstream.idle_timeout;
        let exchanges = budget(&self.totals.exchanges, config.limits.exchanges, Limit::Exchanges);
        let passthrough = Arc::new(Passthrough::new(Arc::clone(&upstream), resign, deletions, idle_timeout, exchanges));
        let batch_route = Arc::new(BatchRoute::new(
            callers,
            Arc::clone(&self.cache),
            fetch,
            Arc::clone(&passthrough),
            budget(&self.totals.batch_bodies, config.limits.batch_bodies, Limit::BatchBodies),
            Arc::clone(&config),
            Arc::clone(metrics),
            clock.clone(),
        ));
        metrics.limits.show(&config);
        let admin_state = AdminState {
            registry: self.registry.clone(),
            metrics: Arc::clone(metrics),
            cache: Arc::clone(&self.cache),
            upstream: Arc::clone(&upstream),
            access_urls: Arc::clone(&batch_route),
            history: Arc::clone(&self.history),
            config: Arc::clone(&config),
            reloads: self.reloads.clone(),
            flights: Arc::clone(&self.flights),
            totals: self.totals.clone(),
            ready: Arc::clone(&self.ready),
            clock: clock.clone(),
        };
        let admin = Admin::new(&config.admin, admin_state);
        let router = Router::new(
            batch_route,
            passthrough,
            Arc::clone(&upstream),
            Arc::clone(metrics),
            config.log.access,
            tracer.clone(),
        );
        Generation { router, admin, config, upstream, tier, tracer }
    }
}

/// The key with which purges hash their targets: the fleet's, where there is one.
fn purge_key(config: &Config) -> Option<[u8; 16]> {
    config.shared.as_ref().and_then(|shared| Tier::purge_key(shared, &config.upstream.endpoint))
}
