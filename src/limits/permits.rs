//! A semaphore whose size can change while permits are in use: a limit that a reload changes.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::{AcquireError, OwnedSemaphorePermit, Semaphore};

/// Permits of a number that can change. Those in use when it shrinks stay until they are returned.
pub struct Permits {
    semaphore: Arc<Semaphore>,
    size: AtomicUsize,
}

impl Permits {
    /// `size` permits, all of them free.
    pub fn new(size: usize) -> Self {
        Self { semaphore: Arc::new(Semaphore::new(size)), size: AtomicUsize::new(size) }
    }

    /// Changes the number of permits. Where more are in use, none is given until enough are returned. Must be called within
    /// a tokio runtime.
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
            // Ahead of later waiters in the queue; takes permits as they are returned.
            tokio::spawn(async move {
                let surplus = u32::try_from(surplus).unwrap_or(u32::MAX);
                if let Ok(taken) = semaphore.acquire_many(surplus).await {
                    taken.forget();
                }
            });
        }
    }

    /// Waits for a permit, in turn.
    ///
    /// # Errors
    /// Never: the semaphore is not closed.
    pub async fn acquire(&self) -> Result<OwnedSemaphorePermit, AcquireError> {
        Arc::clone(&self.semaphore).acquire_owned().await
    }
}

#[cfg(test)]
mod tests {
    use futures_util::FutureExt;

    use super::*;

    #[tokio::test]
    async fn more_permits_are_available_at_once() {
        let permits = Permits::new(1);
        let _used = permits.acquire().await.unwrap();
        let mut waiting = Box::pin(permits.acquire());
        assert!((&mut waiting).now_or_never().is_none());
        permits.resize(2);
        drop(waiting.await.unwrap());
    }

    #[tokio::test]
    async fn fewer_permits_count_those_in_use() {
        let permits = Permits::new(4);
        let mut used: Vec<_> = Vec::new();
        for _ in 0..3 {
            used.push(permits.acquire().await.unwrap());
        }
        permits.resize(1);
        tokio::task::yield_now().await;
        let mut waiting = Box::pin(permits.acquire());
        for _ in 0..2 {
            used.pop();
            tokio::task::yield_now().await;
            assert!((&mut waiting).now_or_never().is_none(), "the only permit is in use");
        }
        used.pop();
        drop(waiting.await.unwrap());
        // And back, also before the surplus is in.
        let used = [permits.acquire().await.unwrap()];
        permits.resize(3);
        permits.resize(1);
        permits.resize(2);
        tokio::task::yield_now().await;
        let _second = permits.acquire().now_or_never().unwrap().unwrap();
        assert!(permits.acquire().now_or_never().is_none());
        drop(used);
    }
}
