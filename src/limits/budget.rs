//! Budgets: how much of one kind there may be at a time, over all requests. A limit of each body's size, or of their number,
//! does not bound the sum of their bytes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;

use crate::error::{Error, Limit};
use crate::message::body::{Body, drain};
use crate::telemetry::metrics::Metrics;

/// The amount of every budget that is used. Outlasts configurations.
#[derive(Clone, Debug, Default)]
pub struct Usages {
    /// Requests on other routes, from their head to the end of their answer.
    pub exchanges: Arc<AtomicUsize>,
    /// Bytes of batches' bodies, until they are answered and their calls have ended.
    pub batch_bodies: Arc<AtomicUsize>,
    /// Bytes of bodies that are signed again, until the endpoint answers.
    pub signed_bodies: Arc<AtomicUsize>,
}

/// A bounded resource.
pub struct Budget {
    used: Arc<AtomicUsize>,
    size: usize,
    limit: Limit,
    metrics: Arc<Metrics>,
}

/// A share of a budget, which is returned when this is dropped.
#[derive(Debug)]
pub struct Reservation {
    used: Arc<AtomicUsize>,
    amount: usize,
}

impl Budget {
    /// A budget of `size`. What it refuses is counted as shed by `limit`.
    pub fn new(used: &Arc<AtomicUsize>, size: usize, limit: Limit, metrics: &Arc<Metrics>) -> Self {
        Self { used: Arc::clone(used), size, limit, metrics: Arc::clone(metrics) }
    }

    /// Reserves one.
    ///
    /// # Errors
    /// The budget is used up.
    pub fn one(&self) -> Result<Reservation, Error> {
        let mut reservation = self.none();
        self.grow(&mut reservation, 1)?;
        Ok(reservation)
    }

    /// Reads `body`, of `max_bytes` at most, and reserves as much. Bytes count as they arrive, not as they are announced: an
    /// announcement alone takes no share. If `drains`, the rest of a body that is refused is read and discarded for a while, so
    /// that its client gets to read the refusal.
    ///
    /// # Errors
    /// `too_long`; the budget is used up; the body breaks off, or does not arrive within `timeout`.
    pub async fn read(
        &self,
        mut body: Body,
        max_bytes: usize,
        too_long: Error,
        timeout: Duration,
        drains: bool,
    ) -> Result<(Bytes, Reservation), Error> {
        let read = async {
            // A body that announces too much is refused before it is sent.
            if usize::try_from(body.size_hint().lower()).is_ok_and(|length| length > max_bytes) {
                return Err(too_long);
            }
            let mut reservation = self.none();
            let mut read = BytesMut::new();
            while let Some(frame) = body.frame().await {
                let frame = frame.map_err(|_| Error::Malformed("the request's body broke off"))?;
                let Some(chunk) = frame.data_ref() else { continue };
                if read.len() + chunk.len() > max_bytes {
                    return Err(too_long);
                }
                self.grow(&mut reservation, chunk.len())?;
                read.extend_from_slice(chunk);
            }
            Ok((read.freeze(), reservation))
        };
        let late = Err(Error::Malformed("the request's body did not come in time"));
        let read = tokio::time::timeout(timeout, read).await.unwrap_or(late);
        if drains && read.as_ref().is_err_and(|error| *error == too_long || matches!(error, Error::Shed(_))) {
            drain(body);
        }
        read
    }

    fn none(&self) -> Reservation {
        Reservation { used: Arc::clone(&self.used), amount: 0 }
    }

    fn grow(&self, reservation: &mut Reservation, amount: usize) -> Result<(), Error> {
        reservation.amount += amount;
        if self.used.fetch_add(amount, Ordering::Relaxed) + amount <= self.size {
            return Ok(());
        }
        self.metrics.shed.of(self.limit).inc();
        Err(Error::Shed(self.limit))
    }
}

impl Reservation {
    /// One of `used`, where less than `size` is used.
    pub(crate) fn one_of(used: &Arc<AtomicUsize>, size: usize) -> Option<Self> {
        let before = used.fetch_add(1, Ordering::Relaxed);
        // Made in any case: dropping it takes the addition back.
        let reservation = Self { used: Arc::clone(used), amount: 1 };
        (before < size).then_some(reservation)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.used.fetch_sub(self.amount, Ordering::Relaxed);
    }
}
