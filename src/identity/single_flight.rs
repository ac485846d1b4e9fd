//! One task for all that ask for the same at a time. It goes on when they leave.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::watch;

pub(super) struct SingleFlight<K, V> {
    flights: Mutex<HashMap<K, watch::Receiver<Option<V>>>>,
}

/// The result of a task, to wait for.
pub(super) struct Flight<V> {
    result: watch::Receiver<Option<V>>,
    /// The task was started for this one.
    pub(super) is_own: bool,
}

impl<K, V> Default for SingleFlight<K, V> {
    fn default() -> Self {
        Self { flights: Mutex::default() }
    }
}

impl<K, V> SingleFlight<K, V>
where
    K: Eq + Hash + Clone + Send + 'static,
    V: Clone + Send + Sync + 'static,
{
    /// Joins the task for `key`, or starts the one that `start` makes. `start` gets the number of tasks.
    ///
    /// # Errors
    /// Why `start` makes none.
    pub(super) fn join_or_start<F, E>(
        self: &Arc<Self>,
        key: &K,
        start: impl FnOnce(usize) -> Result<F, E>,
    ) -> Result<Flight<V>, E>
    where
        F: Future<Output = V> + Send + 'static,
    {
        let mut flights = self.flights.lock();
        if let Some(result) = flights.get(key) {
            return Ok(Flight { result: result.clone(), is_own: false });
        }
        let task = start(flights.len())?;
        let (sender, result) = watch::channel(None);
        flights.insert(key.clone(), result.clone());
        let landing = RemoveOnDrop { flights: Arc::clone(self), key: key.clone() };
        tokio::spawn(async move {
            let value = task.await;
            // First: who comes after the result starts another task.
            drop(landing);
            let _ = sender.send(Some(value));
        });
        Ok(Flight { result, is_own: true })
    }
}

impl<V: Clone> Flight<V> {
    /// The result; `None` where the task was lost: it panicked, or the runtime ends.
    pub(super) async fn result(mut self) -> Option<V> {
        self.result.wait_for(Option::is_some).await.ok()?.clone()
    }
}

/// Removes a task when it has ended, also by a panic.
struct RemoveOnDrop<K: Eq + Hash, V> {
    flights: Arc<SingleFlight<K, V>>,
    key: K,
}

impl<K: Eq + Hash, V> Drop for RemoveOnDrop<K, V> {
    fn drop(&mut self) {
        self.flights.flights.lock().remove(&self.key);
    }
}
