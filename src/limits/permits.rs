//! A semaphore whose size may change while its permits are held: a limit that a reload may move.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore, SemaphorePermit};

/// So many permits, and no more, but for those that were held when the size shrank.
pub struct Permits {
    semaphore: Arc<Semaphore>,
    size: AtomicUsize,
}

impl Permits {
    /// `size` permits, all of them free.
    pub fn new(size: usize) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(size)), size: AtomicUsize::new(size) }
    }

    /// Changes how many there are. Where permits that are held would have to go, nobody gets one until enough are back.
    /// Must be called within a tokio runtime.
    pub fn resize(&self, size: usize) {
        if self.size.load(Ordering::Relaxed) == size {
            return;
        }
        let before = self.size.swap(size, Ordering::Relaxed);
        if size > before {
            self.semaphore.add_permits(size - before);
            return;
        }
        let mut surplus = before - size;
        surplus -= self.semaphore.forget_permits(surplus);
        if surplus > 0 {
            let semaphore = Arc::clone(&self.semaphore);
            // It is ahead of later waiters in the queue, and takes permits as they are returned.
            tokio::spawn(async move {
                let surplus = u32::try_from(surplus).unwrap_or(u32::MAX);
                if let Ok(taken) = semaphore.acquire_many(surplus).await {
                    taken.forget();
                }
            });
        }
    }

    /// A permit, in turn.
    ///
    /// # Errors
    /// Never: it is not closed.
    pub async fn acquire(&self) -> Result<SemaphorePermit<'_>, AcquireError> {
        self.semaphore.acquire().await
    }

    /// A permit, in turn, that outlives a borrow.
    ///
    /// # Errors
    /// Never: it is not closed.
    pub async fn acquire_owned(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.semaphore).acquire_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn more_permits_are_there_at_once() {
        let permits = Permits::new(1);
        let _held = permits.acquire().await.unwrap();
        let mut waiting = Box::pin(permits.acquire());
        assert!((&mut waiting).now_or_never().is_none());
        permits.resize(2);
        drop(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn fewer_permits_count_those_that_are_held() {
        let permits = Permits::new(4);
        let mut held: Vec<_> = Vec::new();
        for _ in 0..3 {
            held.push(permits.acquire_owned().await.unwrap());
        }
        permits.resize(1);
        tokio::task::yield_now().await;
        let mut waiting = Box::pin(permits.acquire());
        for _ in 0..2 {
            held.pop();
            tokio::task::yield_now().await;
            assert!((&mut waiting).now_or_never().is_none(), "one is held, and one there is");
        }
        held.pop();
        drop(waiting.await.unwrap());
        // And back, also before the surplus is in.
        let held = [permits.acquire_owned().await.unwrap()];
        permits.resize(3);
        permits.resize(1);
        permits.resize(2);
        tokio::task::yield_now().await;
        let _second = permits.acquire().now_or_never().unwrap().unwrap();
        assert!(permits.acquire().now_or_never().is_none());
        drop(held);
    }
}
