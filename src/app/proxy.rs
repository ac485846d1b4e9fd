//! Everything between a client's request and the endpoint: what one configuration comes to, over what outlasts it.

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
use crate::shared::Tier;
use crate::telemetry::metrics::Metrics;
use crate::telemetry::trace::{ExportTasks, Tracer};
use crate::upstream::{MemoryEndpoint, SetupError, Upstream, trusted_client};

/// Everything between a client's request and the endpoint, without listeners.
pub struct Proxy {
    lasting: SharedState,
    /// A request takes one and is answered by it to its end, whatever is loaded meanwhile.
    current: ArcSwap<Generation>,
}

/// What one configuration comes to. It does not change.
pub struct Generation {
    /// Answers clients.
    pub router: Router,
    /// Answers operators.
    pub admin: Admin,
    /// What it was built from.
    pub config: Arc<Config>,
    upstream: Arc<Upstream>,
    tier: Option<Arc<Tier>>,
    tracer: Option<Tracer>,
}

/// What outlasts a configuration: what is kept, what is in flight, what is counted.
pub(super) struct SharedState {
    pub(super) cache: Arc<Cache>,
    purges: Arc<Purges>,
    caller_states: Arc<CallerStates>,
    flights: Arc<Flights>,
    totals: Usages,
    registry: Registry,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ready: Arc<AtomicBool>,
    reloads: ReloadState,
    pub(super) history: Arc<History>,
    pub(super) clock: Clock,
    pub(super) exports: ExportTasks,
    reach: Reach,
}

/// How the endpoint is reached.
enum Reach {
    Network,
    Memory(MemoryEndpoint),
}

impl Proxy {
    /// Builds everything, to reach the endpoint over the network. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the endpoint's client cannot be built.
    pub fn new(config: Config, clock: Clock) -> Result<Self, StartError> {
        Self::build(config, clock, Reach::Network)
    }

    /// Builds everything, to reach the endpoint in memory.
    ///
    /// # Errors
    /// If the metrics cannot be registered.
    pub fn in_memory(config: Config, clock: Clock, endpoint: impl Into<MemoryEndpoint>) -> Result<Self, StartError> {
        Self::build(config, clock, Reach::Memory(endpoint.into()))
    }

    fn build(config: Config, clock: Clock, reach: Reach) -> Result<Self, StartError> {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry).map_err(StartError::Metrics)?);
        metrics.reload.succeeded(clock.now().unix_seconds());
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process)).map_err(StartError::Metrics)?;
        let purges = Arc::new(Purges::new(purge_key(&config).unwrap_or_else(rand::random), purges::span_of(&config)));
        let history = Arc::new(History::new(Arc::clone(&metrics), clock.clone()));
        let lasting = SharedState {
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
            reach,
        };
        let upstream = lasting.upstream(&config, None).map_err(StartError::Upstream)?;
        let tier = lasting.tier(&config, None).map_err(StartError::Upstream)?;
        let tracer = lasting.tracer(&config, None).map_err(StartError::Upstream)?;
        let current = ArcSwap::from_pointee(lasting.assemble(Arc::new(config), upstream, tier, tracer));
        Ok(Self { lasting, current })
    }

    /// What answers now.
    pub fn current(&self) -> Arc<Generation> {
        self.current.load_full()
    }

    /// Puts `config` in force for whatever is asked from now on. What is kept stays, what is in flight is joined; under
    /// another endpoint, neither is to be found.
    ///
    /// # Errors
    /// If the endpoint's client cannot be built. Nothing has changed then.
    pub fn reload(&self, config: Config) -> Result<(), SetupError> {
        let before = self.current();
        let upstream = self.lasting.upstream(&config, Some(&before))?;
        let tracer = self.lasting.tracer(&config, Some(&before))?;
        let tier = self.lasting.tier(&config, Some(&before))?;
        if config.freshness.min_remaining > before.config.freshness.min_remaining {
            // What is kept was judged by the lower floor, and so would be what batches of before are yet to bring.
            self.lasting.flights.set_min_remaining(config.freshness.min_remaining);
            self.lasting.purges.mark(Mark::All, self.lasting.clock.now());
        }
        self.lasting.purges.lengthen(purges::span_of(&config));
        self.lasting.cache.resize(config.cache.capacity);
        self.lasting.flights.resize(config.upstream.calls);
        let floor = config.freshness.min_remaining;
        self.current.store(Arc::new(self.lasting.assemble(Arc::new(config), upstream, tier, tracer)));
        self.lasting.flights.set_min_remaining(floor);
        self.lasting.metrics.reload.succeeded(self.lasting.clock.now().unix_seconds());
        self.note(Vec::new());
        Ok(())
    }

    /// Notes that a configuration was refused, for what is wrong with it; what is in force stays.
    pub fn refuse(&self, errors: Vec<String>) {
        self.lasting.metrics.reload.failed();
        self.note(errors);
    }

    /// How reloading has gone.
    pub fn reloads(&self) -> &ReloadState {
        &self.lasting.reloads
    }

    fn note(&self, errors: Vec<String>) {
        self.lasting.reloads.note(Reload { at: self.lasting.clock.now().wall_time(), errors });
    }

    pub(super) fn lasting(&self) -> &SharedState {
        &self.lasting
    }
}

impl SharedState {
    /// The endpoint's client: that of `before`, with its connections, where it would be the same again.
    fn upstream(&self, config: &Config, before: Option<&Generation>) -> Result<Arc<Upstream>, SetupError> {
        if let Some(before) = before
            && before.config.upstream == config.upstream
            && before.upstream.trust_is_unchanged(&config.upstream)
        {
            return Ok(Arc::clone(&before.upstream));
        }
        let (clock, metrics) = (self.clock.clone(), Arc::clone(&self.metrics));
        let upstream = match &self.reach {
            Reach::Network => Upstream::new(&config.upstream, clock, metrics)?,
            Reach::Memory(endpoint) => Upstream::in_memory(endpoint.clone(), &config.upstream, clock, metrics),
        };
        Ok(Arc::new(upstream))
    }

    /// The shared tier, if there is one: that of `before`, with all that it knows, where it would be the same again.
    fn tier(&self, config: &Config, before: Option<&Generation>) -> Result<Option<Arc<Tier>>, SetupError> {
        let alike = |before: &Config| {
            before.shared == config.shared
                && before.upstream.endpoint == config.upstream.endpoint
                && before.freshness == config.freshness
                && before.callers.revalidate == config.callers.revalidate
        };
        if let Some(before) = before.filter(|before| alike(&before.config)) {
            return Ok(before.tier.clone());
        }
        let Some(shared) = &config.shared else {
            self.purges.tell(None);
            return Ok(None);
        };
        let tls = if shared.tls { Some(trusted_client("shared.ca_file", shared.ca_file.as_deref())?) } else { None };
        if let Some(key) = purge_key(config) {
            self.purges.rename(key, || self.clock.now());
        }
        let (caller_states, purges) = (Arc::clone(&self.caller_states), Arc::clone(&self.purges));
        let metrics = Arc::clone(&self.metrics);
        let tier = Arc::new(Tier::new(shared, config, tls, caller_states, purges, metrics, self.clock.clone()));
        let told = Arc::downgrade(&tier);
        self.purges.tell(Some(Box::new(move |target| {
            if let Some(tier) = told.upgrade() {
                tier.purge(target);
            }
        })));
        Ok(Some(tier))
    }

    /// What begins spans, if anything does: that of `before`, with what it has queued, where it would be the same again.
    fn tracer(&self, config: &Config, before: Option<&Generation>) -> Result<Option<Tracer>, SetupError> {
        if let Some(before) = before.filter(|before| before.config.trace == config.trace) {
            return Ok(before.tracer.clone());
        }
        let Some(trace) = &config.trace else { return Ok(None) };
        let secured = trace.endpoint.scheme == Scheme::HTTPS;
        let tls = if secured { Some(trusted_client("trace.ca_file", trace.ca_file.as_deref())?) } else { None };
        let tracer = Tracer::start(trace, tls, &self.metrics, &self.exports);
        tracer.map(Some).map_err(|error| SetupError::Exporter(error.to_string()))
    }

    fn assemble(
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
        let bound = |total: &Usage, most, limit| Budget::new(total.clone(), most, limit, Arc::clone(metrics));
        let resign = Resign::new(
            keys,
            Arc::clone(&callers),
            Arc::clone(&upstream),
            &config.limits,
            bound(&self.totals.signed_bodies, config.limits.signed_bodies, Limit::SignedBodies),
            clock.clone(),
        );
        let deletions = Deletions::new(Arc::clone(&self.purges), clock.clone(), Arc::clone(metrics));
        let idle_timeout = config.upstream.idle_timeout;
        let exchanges = bound(&self.totals.exchanges, config.limits.exchanges, Limit::Exchanges);
        let passthrough = Arc::new(Passthrough::new(Arc::clone(&upstream), resign, deletions, idle_timeout, exchanges));
        let access_urls = Arc::new(BatchRoute::new(
            callers,
            Arc::clone(&self.cache),
            fetch,
            Arc::clone(&passthrough),
            bound(&self.totals.batch_bodies, config.limits.batch_bodies, Limit::BatchBodies),
            Arc::clone(&config),
            Arc::clone(metrics),
            clock.clone(),
        ));
        metrics.limits.show(&config);
        let workings = AdminState {
            registry: self.registry.clone(),
            metrics: Arc::clone(metrics),
            cache: Arc::clone(&self.cache),
            upstream: Arc::clone(&upstream),
            access_urls: Arc::clone(&access_urls),
            history: Arc::clone(&self.history),
            config: Arc::clone(&config),
            reloads: self.reloads.clone(),
            flights: Arc::clone(&self.flights),
            totals: self.totals.clone(),
            ready: Arc::clone(&self.ready),
            clock: clock.clone(),
        };
        let admin = Admin::new(&config.admin, workings);
        let router = Router::new(
            access_urls,
            passthrough,
            Arc::clone(&upstream),
            Arc::clone(metrics),
            config.log.access,
            tracer.clone(),
        );
        Generation { router, admin, config, upstream, tier, tracer }
    }
}

/// The key by which purges name their targets: the fleet's, where there is one.
fn purge_key(config: &Config) -> Option<[u8; 16]> {
    config.shared.as_ref().and_then(|shared| Tier::purge_key(shared, &config.upstream.endpoint))
}
