//! A sidelink whose memory is warm, in this process, and requests that it answers from there.

#![allow(clippy::unwrap_used, clippy::panic, dead_code, unreachable_pub)]

use std::sync::Arc;

use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt, Full};
use sidelink::api::BatchApi;
use sidelink::app::Generations;
use sidelink::clock::Clock;
use sidelink::config::{Config, Endpoint};
use sidelink::demo::origin::interface as api;
use sidelink::demo::origin::shapes::Shape;
use sidelink::demo::origin::{Options, Origin};
use sidelink::proxy::router::Connection;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;

/// How a batch is asked: of the built-in API in the repeated form or in the body form, or of git-lfs by POST.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Form {
    Query,
    Body,
    Lfs,
}

pub const SIZES: [usize; 3] = [1, 20, 100];

/// Ids as they are in life: `first`, and those after it.
pub fn ids(first: usize, count: usize) -> Vec<String> {
    (first..first + count).map(|number| format!("attachment-{number:07}")).collect()
}

/// A batch's query.
pub fn query(ids: &[String]) -> String {
    let pairs: Vec<String> = ids.iter().map(|id| format!("{}={id}", api::IDS)).collect();
    format!("{}&{}=g1", pairs.join("&"), api::GROUP)
}

/// A batch's body.
pub fn body(ids: &[String]) -> String {
    let ids: Vec<String> = ids.iter().map(|id| format!("\"{id}\"")).collect();
    format!("{{\"{}\":\"g1\",\"{}\":[{}]}}", api::GROUP, api::IDS, ids.join(","))
}

/// The simulated git-lfs server.
pub fn lfs() -> &'static Shape {
    Shape::of("git-lfs").unwrap()
}

pub fn request(form: Form, ids: &[String]) -> Request<Full<Bytes>> {
    let (target, body) = match form {
        Form::Lfs => {
            let (target, body) = lfs().batch(ids);
            let request = Request::post(target).header("host", "127.0.0.1:8080").header("user-agent", "bench");
            let request = lfs().headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
            return request.body(Full::from(body)).unwrap();
        }
        Form::Query => (format!("{}?{}", api::PATH, query(ids)), String::new()),
        Form::Body => (api::PATH.to_owned(), body(ids)),
    };
    let request = Request::get(target).header("host", "127.0.0.1:8080").header(api::TOKEN, "a-token");
    let request = request.header("accept", "*/*").header("user-agent", "bench").header("x-language", "en-us");
    request.body(Full::from(body)).unwrap()
}

/// A proxy in front of an endpoint in memory.
pub struct Warm {
    pub runtime: Runtime,
    pub proxy: Generations,
    connection: Arc<Connection>,
}

impl Warm {
    /// With the links of the ids 0 to `links` in memory.
    pub fn new(links: usize) -> Self {
        Self::of(Form::Query, links)
    }

    /// As [`Self::new`], of the API that has `form`.
    pub fn of(form: Form, links: usize) -> Self {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let proxy = runtime.block_on(async {
            let mut config = Config::for_endpoint(Endpoint::parse("http://endpoint").unwrap());
            config.log.access = sidelink::config::AccessLines::Off;
            config.cache.capacity = 1 << 30;
            let (accept, connections) = mpsc::unbounded_channel();
            let clock = Clock::system();
            let mut options = Options::default();
            if form == Form::Lfs {
                options.api = lfs();
                config.batch = vec![BatchApi::preset(options.api.name).unwrap()];
            }
            // Leaked with the runtime: it ends with the process.
            let _origin = Origin::in_memory(options, clock.clone(), connections);
            let proxy = Generations::in_memory(config, clock, accept).unwrap();
            for first in (0..links).step_by(100) {
                let request = request(form, &ids(first, 100.min(links - first)));
                assert_eq!(proxy.answer(request, &Arc::default()).await.status(), 200);
            }
            proxy
        });
        Self { runtime, proxy, connection: Arc::default() }
    }

    /// Answers a request over its one connection, which must be a hit, to its last byte.
    pub async fn hit(&self, request: Request<Full<Bytes>>) -> Bytes {
        self.hit_over(&self.connection, request).await
    }

    /// As [`Self::hit`], over another connection.
    pub async fn hit_over(&self, connection: &Arc<Connection>, request: Request<Full<Bytes>>) -> Bytes {
        let response = self.proxy.answer(request, connection).await;
        assert_eq!(response.headers()["cache-status"], "sidelink; hit");
        match response.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => panic!("{error}"),
        }
    }
}
