//! What is held at a time, in all, of one kind: bytes of bodies, or requests. Each has its own limit; a limit on their
//! number does not bound their sum.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body::Body as _;
use http_body_util::BodyExt;
use tokio::time::timeout;

use crate::error::{Error, Limit};
use crate::message::body::Body;
use crate::telemetry::metrics::Metrics;

/// How much is held. Outlasts configurations.
#[derive(Clone, Debug, Default)]
pub struct Usage(Arc<AtomicUsize>);

impl Usage {
    /// As of now.
    pub fn now(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

/// All that is counted so.
#[derive(Clone, Debug, Default)]
pub struct Usages {
    /// Requests on other routes, from their head to the end of their answer.
    pub exchanges: Usage,
    /// Bytes of batches' bodies, until they are answered.
    pub batch_bodies: Usage,
    /// Bytes of bodies that are signed again, until the endpoint answers.
    pub signed_bodies: Usage,
}

/// A total and the most that it may be.
pub struct Budget {
    total: Usage,
    most: usize,
    limit: Limit,
    metrics: Arc<Metrics>,
}

/// A share of a total, given back when dropped.
#[derive(Debug)]
pub struct Reservation {
    total: Usage,
    amount: usize,
}

impl Budget {
    /// Of `most` in all. Who is refused is counted as shed by `limit`.
    pub fn new(total: Usage, most: usize, limit: Limit, metrics: Arc<Metrics>) -> Self {
        Self { total, most, limit, metrics }
    }

    /// One more.
    ///
    /// # Errors
    /// If the limit is reached.
    pub fn one(&self) -> Result<Reservation, Error> {
        let mut held = self.none();
        self.grow(&mut held, 1)?;
        Ok(held)
    }

    /// The whole of `body`, of `longest` bytes, and its share. Bytes count as they come, not as they are announced: who only
    /// announces them takes nobody's room.
    ///
    /// # Errors
    /// `too_long`; the limit is reached; it broke off, or did not come within `patience`.
    pub async fn read(
        &self,
        body: &mut Body,
        longest: usize,
        too_long: Error,
        patience: Duration,
    ) -> Result<(Bytes, Reservation), Error> {
        // What is announced need not be sent to be refused.
        if usize::try_from(body.size_hint().lower()).is_ok_and(|length| length > longest) {
            return Err(too_long);
        }
        let read = timeout(patience, self.read_on(body, longest, too_long)).await;
        read.unwrap_or(Err(Error::Malformed("the request's body did not come in time")))
    }

    async fn read_on(&self, body: &mut Body, longest: usize, too_long: Error) -> Result<(Bytes, Reservation), Error> {
        let mut held = self.none();
        let mut read = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Error::Malformed("the request's body broke off"))?;
            let Some(piece) = frame.data_ref() else { continue };
            if read.len() + piece.len() > longest {
                return Err(too_long);
            }
            self.grow(&mut held, piece.len())?;
            read.extend_from_slice(piece);
        }
        Ok((read.freeze(), held))
    }

    fn none(&self) -> Reservation {
        Reservation { total: self.total.clone(), amount: 0 }
    }

    fn grow(&self, held: &mut Reservation, amount: usize) -> Result<(), Error> {
        held.amount += amount;
        if self.total.0.fetch_add(amount, Ordering::Relaxed) + amount <= self.most {
            return Ok(());
        }
        self.metrics.shed.of(self.limit).inc();
        Err(Error::Shed(self.limit))
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.total.0.fetch_sub(self.amount, Ordering::Relaxed);
    }
}
