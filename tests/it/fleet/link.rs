//! A network between sidecars and a server: what new connections lead to can be changed, and how fast replies come.

use std::sync::Arc;
use std::sync::atomic::{AtomicU16, AtomicU64, Ordering};
use std::time::Duration;

use sidelink::config::NodeAddress;
use tokio::io::{AsyncReadExt, AsyncWriteExt, copy};
use tokio::net::{TcpListener, TcpStream};

use crate::support::LOOPBACK;

/// How often a slow link takes bytes.
const TICKS_A_SECOND: u32 = 200;

pub struct Link {
    port: u16,
    server: Arc<AtomicU16>,
    /// Bytes a second of replies.
    rate: Arc<AtomicU64>,
}

impl Link {
    pub async fn to(server: u16) -> Self {
        let listener = TcpListener::bind(LOOPBACK).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (server, rate) = (Arc::new(AtomicU16::new(server)), Arc::new(AtomicU64::new(u64::MAX)));
        let link = Self { port, server: Arc::clone(&server), rate: Arc::clone(&rate) };
        tokio::spawn(async move {
            while let Ok((client, _)) = listener.accept().await {
                let server = server.load(Ordering::SeqCst);
                tokio::spawn(carry(client, server, Arc::clone(&rate)));
            }
        });
        link
    }

    pub fn address(&self) -> NodeAddress {
        NodeAddress::tcp("127.0.0.1", self.port)
    }

    /// New connections lead there; others stay.
    pub fn lead_to(&self, server: u16) {
        self.server.store(server, Ordering::SeqCst);
    }

    pub fn limit(&self, bytes_a_second: u64) {
        self.rate.store(bytes_a_second, Ordering::SeqCst);
    }
}

async fn carry(client: TcpStream, server: u16, rate: Arc<AtomicU64>) {
    let Ok(server) = TcpStream::connect(("127.0.0.1", server)).await else { return };
    let ((mut from_client, mut to_client), (mut from_server, mut to_server)) =
        (client.into_split(), server.into_split());
    let replies = async {
        let mut bytes = vec![0; 64 << 10];
        while let Ok(count @ 1..) = from_server.read(&mut bytes).await {
            let mut rest = &bytes[..count];
            while !rest.is_empty() {
                let a_tick = (rate.load(Ordering::SeqCst) / u64::from(TICKS_A_SECOND)).max(1);
                let now = usize::try_from(a_tick).unwrap().min(rest.len());
                if to_client.write_all(&rest[..now]).await.is_err() {
                    return;
                }
                rest = &rest[now..];
                if !rest.is_empty() {
                    tokio::time::sleep(Duration::from_secs(1) / TICKS_A_SECOND).await;
                }
            }
        }
    };
    tokio::select! {
        () = replies => {}
        _ = copy(&mut from_client, &mut to_server) => {}
    }
}
