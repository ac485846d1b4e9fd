//! stub
use std::sync::Arc;
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
#[derive(Clone, Copy)]
pub struct Limits;
impl From<&crate::config::Limits> for Limits {
    fn from(_: &crate::config::Limits) -> Self {
        Limits
    }
}
pub async fn run<S>(
    _l: TcpListener,
    _li: Limits,
    _s: Arc<Semaphore>,
    _g: prometheus::IntGauge,
    _c: CancellationToken,
    _svc: S,
) {
}
pub fn drain(_b: hyper::body::Incoming) {}
