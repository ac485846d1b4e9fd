//! A build without the feature `otlp`: there is no exporter, and none of this can be called.

use std::marker::PhantomData;
use std::ops::{Deref, DerefMut};
use std::sync::Arc;

use rustls::ClientConfig;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::Record;
use crate::config;
use crate::metrics::Metrics;

#[derive(Clone)]
enum Never {}

/// There is none.
#[derive(Clone)]
pub(super) struct Exporter(Never);

/// What only a build with the feature has: here, no value and no room for one.
#[derive(Clone)]
pub(super) struct Built<T>(Never, PhantomData<T>);

impl<T> Deref for Built<T> {
    type Target = T;

    fn deref(&self) -> &T {
        match self.0 {}
    }
}

impl<T> DerefMut for Built<T> {
    fn deref_mut(&mut self) -> &mut T {
        match self.0 {}
    }
}

impl Exporter {
    pub(super) fn start(
        _config: &config::Trace,
        _tls: Option<ClientConfig>,
        _metrics: &Arc<Metrics>,
        _tasks: &TaskTracker,
        _stop: CancellationToken,
    ) -> Option<Self> {
        None
    }

    pub(super) fn built<T>(&self, _value: T) -> Built<T> {
        match self.0 {}
    }

    pub(super) fn take(&self, _record: Record) {
        match self.0 {}
    }
}
