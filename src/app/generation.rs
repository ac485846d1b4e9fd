//! Builds everything between a client's request and the endpoint: a [`Generation`] for each configuration that is applied.
//! [`GenerationBuilder`] has the state that outlasts them.

use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use arc_swap::{ArcSwap, Guard};
use bytes::Bytes;
use futures_util::future::{Either, ready};
use http::uri::Scheme;
use http::{Request, Response};
use prometheus::Registry;

use super::StartError;
use crate::admin::{Admin, AdminState, History, ProcessState, Reload};
use crate::api::BatchApi;
use crate::auth::signature::Keys;
use crate::auth::{CallerStates, Callers};
use crate::batch::BatchRoute;
use crate::cache::Cache;
use crate::cache::answers::WholeAnswers;
use crate::cache::purges::{self, Mark, Purges};
use crate::clock::Clock;
use crate::config::{CallerKey, Config};
use crate::error::Limit;
use crate::fetch::{FetchState, Fetcher};
use crate::identity::IdentityProvider;
use crate::limits::budget::{Budget, Usages};
use crate::message::body::{Body, BodyError};
use crate::proxy::passthrough::Passthrough;
use crate::proxy::router::{Connection, Router};
use crate::shared::{Tier, TierState};
use crate::telemetry::log::events;
use crate::telemetry::metrics::{ApiMetrics, Metrics};
use crate::telemetry::trace::{ExportTasks, Tracer};
use crate::upstream::{MemoryNetwork, SetupError, Upstream, trusted_client};

/// The generation that answers now, and the builder of the next one.
pub struct Generations {
    pub(super) builder: GenerationBuilder,
    /// A request is answered to its end by the generation that it finds here, whatever is applied meanwhile.
    current: ArcSwap<Generation>,
}

/// The components that one configuration builds. They do not change.
pub struct Generation {
    /// Answers clients.
    pub router: Router,
    /// Answers operators.
    pub admin: Admin,
    /// The configuration that they were built from.
    pub config: Arc<Config>,
    upstream: Arc<Upstream>,
    tier: Option<Arc<Tier>>,
    identity_provider: Option<Arc<IdentityProvider>>,
    tracer: Option<Tracer>,
    /// The whole answers in memory.
    pub(super) answers: Arc<WholeAnswers>,
}

/// Builds generations, over the state that outlasts a reload: the cache, flights, counters.
pub(super) struct GenerationBuilder {
    pub(super) process: ProcessState,
    purges: Arc<Purges>,
    pub(super) exports: ExportTasks,
    /// Connections in memory, in place of the network, in tests.
    memory: Option<MemoryNetwork>,
}

impl Generation {
    /// Ends what works in the background, once nothing is in flight.
    pub(super) async fn end(&self) {
        if let Some(tier) = &self.tier {
            tier.end().await;
        }
    }
}

impl Generations {
    /// Builds everything, to reach the endpoint in memory, and the identity provider.
    pub fn in_memory(config: Config, clock: Clock, network: impl Into<MemoryNetwork>) -> Result<Self, StartError> {
        Self::new(config, clock, Some(network.into()))
    }

    /// Builds everything, to reach the endpoint over the network unless it is in memory. Must be called within a tokio
    /// runtime.
    pub(super) fn new(config: Config, clock: Clock, memory: Option<MemoryNetwork>) -> Result<Self, StartError> {
        let registry = Registry::new();
        let metrics = Arc::new(Metrics::new(&registry)?);
        metrics.reloaded(clock.now().unix_seconds());
        let process = prometheus::process_collector::ProcessCollector::for_self();
        registry.register(Box::new(process))?;
        let purges = Arc::new(Purges::new(purge_key(&config).unwrap_or_else(rand::random), purges::span_of(&config)));
        let history = Arc::new(History::new(Arc::clone(&metrics), clock.clone()));
        let process = ProcessState {
            cache: Arc::new(Cache::new(&config.cache, Arc::clone(&purges), &metrics)),
            fetch: Arc::new(FetchState::new(config.upstream.calls)),
            caller_states: Arc::new(CallerStates::new(rand::random())),
            usages: Usages::default(),
            registry,
            metrics,
            ready: Arc::new(AtomicBool::new(false)),
            draining: Arc::default(),
            descriptors_short: Arc::default(),
            last_reload: Arc::new(ArcSwap::from_pointee(Reload::succeeded(clock.now()))),
            history,
            clock,
        };
        let builder = GenerationBuilder { process, purges, exports: ExportTasks::default(), memory };
        let current = ArcSwap::from_pointee(builder.build(config, None)?);
        Ok(Self { builder, current })
    }

    /// The generation that answers now. The guard counts no references: threads that take one write no memory in common.
    pub fn current(&self) -> Guard<Arc<Generation>> {
        self.current.load()
    }

    /// Answers a request of `connection`, counts it, writes its line into the access log, and ends its
    /// span. What takes more than memory is boxed: a future is moved as a whole.
    pub fn answer<B>(
        &self,
        request: Request<B>,
        connection: &Arc<Connection>,
    ) -> impl Future<Output = Response<Body>> + Send + use<B>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BodyError> + Send,
    {
        let current = self.current();
        match current.router.look_up(request, connection) {
            Ok(response) => Either::Left(ready(response)),
            Err(unanswered) => {
                let connection = Arc::clone(connection);
                Either::Right(Box::pin(async move { current.router.answer(unanswered, &connection).await }))
            }
        }
    }

    /// Applies `config` to requests that come from now on. Entries stay in the cache, and batches still join flights; whole answers
    /// end. A higher `freshness.min_remaining` purges all entries. If the endpoint changes, the new configuration finds neither
    /// entries nor flights, since keys depend on the endpoint.
    ///
    /// # Errors
    /// A client cannot be built. Nothing has changed then.
    pub fn apply(&self, config: Config) -> Result<(), SetupError> {
        let before = self.current();
        let GenerationBuilder { process, purges, .. } = &self.builder;
        let next = self.builder.build(config, Some(&before))?;
        let config = Arc::clone(&next.config);
        if let (Some(tier), Some(replaced)) = (&next.tier, &before.tier)
            && !Arc::ptr_eq(tier, replaced)
        {
            tier.take_over(replaced);
        }
        let floor = config.freshness.min_remaining;
        if floor > before.config.freshness.min_remaining {
            // The deadlines of entries in the cache were computed with the lower value, and calls under way still compute theirs
            // with it. So all entries are purged, and those calls store nothing.
            process.fetch.set_min_remaining(floor);
            purges.mark(Mark::All, process.clock.now());
        }
        purges.lengthen(purges::span_of(&config));
        process.cache.resize(config.cache.capacity);
        process.fetch.resize(config.upstream.calls);
        self.current.store(Arc::new(next));
        before.answers.clear();
        process.fetch.set_min_remaining(floor);
        for api in &config.batch {
            let known = before.config.batch.iter().find(|known| known.name == api.name);
            if known.is_some_and(|known| known.fingerprint() != api.fingerprint()) {
                events::DescriptionChanged { api: &api.name }.log();
            }
        }
        let at = process.clock.now();
        process.metrics.reloaded(at.unix_seconds());
        process.last_reload.store(Arc::new(Reload::succeeded(at)));
        Ok(())
    }

    /// Notes that a configuration was refused because of `errors`.
    pub fn refuse(&self, errors: Vec<String>) {
        let process = &self.builder.process;
        process.metrics.reload_successful.set(0);
        let (at, before) = (process.clock.now(), process.last_reload.load());
        let since = if before.errors == errors { before.since } else { at };
        process.last_reload.store(Arc::new(Reload { at, since, errors }));
    }
}

impl GenerationBuilder {
    /// The endpoint's client. If `config` and its files would build the same client again, the client of `before` is kept with its
    /// connections.
    fn upstream(&self, config: &Config, before: Option<&Generation>) -> Result<Arc<Upstream>, SetupError> {
        if let Some(before) = before
            && before.config.upstream == config.upstream
            && before.upstream.trust_is_unchanged(&config.upstream)
        {
            return Ok(Arc::clone(&before.upstream));
        }
        let (clock, metrics) = (self.process.clock.clone(), Arc::clone(&self.process.metrics));
        let upstream = match &self.memory {
            None => Upstream::new(&config.upstream, clock, metrics)?,
            Some(network) => Upstream::in_memory(network.endpoint.clone(), &config.upstream, clock, metrics),
        };
        Ok(Arc::new(upstream))
    }

    /// The shared tier, if one is configured. If `config` would build the same tier again, the tier of `before` is kept with its
    /// state.
    fn tier(&self, config: &Config, before: Option<&Generation>) -> Result<Option<Arc<Tier>>, SetupError> {
        let is_same = |before: &Config| {
            before.shared == config.shared
                && before.upstream.endpoint == config.upstream.endpoint
                && before.freshness == config.freshness
                && before.callers.revalidate == config.callers.revalidate
                && before.callers.scope_headers == config.callers.scope_headers
                && before.batch == config.batch
        };
        if let Some(before) = before.filter(|before| is_same(&before.config)) {
            return Ok(before.tier.clone());
        }
        let Some(shared) = &config.shared else {
            self.purges.set_listener(None);
            return Ok(None);
        };
        let tls = if shared.tls() { Some(trusted_client("shared.ca_file", shared.ca_file.as_deref())?) } else { None };
        if let Some(key) = purge_key(config) {
            self.purges.set_name_key(key, || self.process.clock.now());
        }
        let (caller_states, purges) = (Arc::clone(&self.process.caller_states), Arc::clone(&self.purges));
        let metrics = Arc::clone(&self.process.metrics);
        let state = TierState::new(shared, config, tls, caller_states, purges, metrics, self.process.clock.clone());
        let tier = Arc::new(Tier::start(state));
        let weak = Arc::downgrade(&tier);
        self.purges.set_listener(Some(Box::new(move |target| {
            if let Some(tier) = weak.upgrade() {
                tier.purge(target);
            }
        })));
        Ok(Some(tier))
    }

    /// Who says which callers are one user, if anybody does. If `config` would build the same again, that of `before` is kept with its
    /// connections, and what it knows of failures.
    fn identity_provider(
        &self,
        config: &Config,
        before: Option<&Generation>,
    ) -> Result<Option<Arc<IdentityProvider>>, SetupError> {
        let Some(identity) = &config.callers.identity else { return Ok(None) };
        if let Some(before) = before.filter(|before| before.config.callers.identity.as_ref() == Some(identity))
            && let Some(known) = before.identity_provider.as_ref().filter(|known| known.trust_is_unchanged(identity))
        {
            return Ok(Some(Arc::clone(known)));
        }
        let memory = self.memory.as_ref().and_then(|network| network.identity_provider.as_ref());
        let (clock, metrics) = (self.process.clock.clone(), Arc::clone(&self.process.metrics));
        Ok(Some(Arc::new(IdentityProvider::over(memory, identity, clock, metrics)?)))
    }

    /// The tracer, if one is configured. If `config` would build the same tracer again, the tracer of `before` is kept with its
    /// queue.
    fn tracer(&self, config: &Config, before: Option<&Generation>) -> Result<Option<Tracer>, SetupError> {
        if let Some(before) = before.filter(|before| before.config.trace == config.trace) {
            return Ok(before.tracer.clone());
        }
        let Some(trace) = &config.trace else { return Ok(None) };
        let is_https = trace.endpoint.server.scheme == Scheme::HTTPS;
        let tls = if is_https { Some(trusted_client("trace.ca_file", trace.ca_file.as_deref())?) } else { None };
        let tracer = Tracer::start(trace, tls, &self.process.metrics, &self.exports);
        tracer.map(Some).map_err(|error| SetupError::Exporter(error.to_string()))
    }

    /// Builds a generation, which replaces `before` if there is one.
    ///
    /// # Errors
    /// A client cannot be built. Nothing has changed then.
    fn build(&self, config: Config, before: Option<&Generation>) -> Result<Generation, SetupError> {
        let config = Arc::new(config);
        let upstream = self.upstream(&config, before)?;
        let tracer = self.tracer(&config, before)?;
        let identity_provider = self.identity_provider(&config, before)?;
        let (clock, metrics) = (&self.process.clock, &self.process.metrics);
        let api_metrics = config.batch.iter().map(|api| metrics.apis.of(&api.name)).collect::<Result<Vec<_>, _>>();
        let api_metrics = api_metrics.map_err(|error| SetupError::Metrics(error.to_string()))?;
        // Last: it changes the purges' listener.
        let tier = self.tier(&config, before)?;
        let keys = Arc::new(Keys::new(&config.callers.keys.iter().map(CallerKey::pair).collect::<Vec<_>>()));
        let answers = Arc::new(WholeAnswers::new(&config.cache));
        let callers_of = |api: &BatchApi| {
            let (api, endpoint) = (Arc::new(api.clone()), &config.upstream.endpoint);
            let (keys, states) = (Arc::clone(&keys), Arc::clone(&self.process.caller_states));
            Arc::new(Callers::new(api, &config.callers, keys, states, endpoint, clock.clone()))
        };
        let callers: Box<[Arc<Callers>]> = config.batch.iter().map(callers_of).collect();
        let (usages, limits) = (&self.process.usages, &config.limits);
        let passthrough = Arc::new(Passthrough {
            upstream: Arc::clone(&upstream),
            keys,
            callers: callers.clone(),
            cache: Arc::clone(&self.process.cache),
            exchanges: Budget::new(&usages.exchanges, limits.exchanges, Limit::Exchanges, metrics),
            signed_bodies: Budget::new(&usages.signed_bodies, limits.signed_bodies, Limit::SignedBodies, metrics),
            config: Arc::clone(&config),
            metrics: Arc::clone(metrics),
            clock: clock.clone(),
            warned_of_key: AtomicBool::new(false),
        });
        let batch_route = |(callers, api_metrics): (&Arc<Callers>, Arc<ApiMetrics>)| {
            let fetch = Fetcher::new(
                Arc::clone(&upstream),
                Arc::clone(callers),
                Arc::clone(&self.process.cache),
                Arc::clone(&self.process.fetch),
                tier.clone(),
                Arc::clone(metrics),
                Arc::clone(&api_metrics),
                Arc::clone(&config),
                clock.clone(),
            );
            Arc::new(BatchRoute::new(
                Arc::clone(callers),
                identity_provider.clone(),
                Arc::clone(&self.process.cache),
                Arc::new(fetch),
                Arc::clone(&passthrough),
                Budget::new(&usages.batch_bodies, limits.batch_bodies, Limit::BatchBodies, metrics),
                Arc::clone(&answers),
                Arc::clone(&config),
                api_metrics,
                clock.clone(),
            ))
        };
        let batches: Box<[Arc<BatchRoute>]> = callers.iter().zip(api_metrics).map(batch_route).collect();
        let admin_state = AdminState {
            process: self.process.clone(),
            upstream: Arc::clone(&upstream),
            tier: tier.clone(),
            identity_provider: identity_provider.clone(),
            batches: batches.clone(),
            answers: Arc::clone(&answers),
            config: Arc::clone(&config),
        };
        let admin = Admin::new(&config.admin, admin_state);
        let router = Router {
            batches,
            passthrough,
            upstream: Arc::clone(&upstream),
            metrics: Arc::clone(metrics),
            access_lines: config.log.access,
            tracer: tracer.clone(),
        };
        Ok(Generation { router, admin, config, upstream, tier, identity_provider, tracer, answers })
    }
}

/// The key with which purges hash their targets: the fleet's, where there is one.
fn purge_key(config: &Config) -> Option<[u8; 16]> {
    config.shared.as_ref().and_then(|shared| Tier::purge_key(shared, &config.upstream.endpoint))
}
