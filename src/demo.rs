//! The demonstration: a simulated endpoint, a sidelink in front of it, and a replay of overlapping batches whose every answer is
//! checked. The simulated endpoint, `origin`, also runs alone and in tests.

pub mod origin;
mod replay;

use std::fmt::Write as _;
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::api;
use crate::app::App;
use crate::config::{AccessLines, Config, Endpoint};
use origin::Origin;
use replay::{BATCH_IDS, BATCHES, CONNECTIONS, EXPONENT, IDS, Replay};

/// About a WAN round trip.
const ENDPOINT_DELAY: Duration = Duration::from_millis(20);
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Runs the demonstration, and returns whether every answer was right. Without `once` it stays up after the replay, until it is
/// interrupted.
///
/// # Errors
/// If a socket cannot be opened, or standard output is closed.
pub async fn run(once: bool) -> io::Result<bool> {
    let options = origin::Options { address: LOOPBACK, delay: ENDPOINT_DELAY, ..origin::Options::default() };
    let origin = Origin::start(options).await?;
    let endpoint = Endpoint::parse(&format!("http://{}", origin.address())).map_err(io::Error::other)?;
    let mut config = Config::for_endpoint(endpoint);
    config.listen.address = vec![LOOPBACK.into()];
    config.admin.address = LOOPBACK;
    config.log.access = AccessLines::Off;
    let app = App::start(config).await.map_err(io::Error::other)?;
    let address = *app.addresses().first().ok_or_else(|| io::Error::other("sidelink has no listener"))?;

    let delay = ENDPOINT_DELAY.as_millis();
    print(&format!(
        "{BATCHES} batches of {BATCH_IDS} ids, drawn by Zipf {EXPONENT} from {IDS}, over {CONNECTIONS} connections; the endpoint is {delay} ms away.\n"
    ))?;
    // Hidden where standard error is no terminal.
    let progress = ProgressBar::new(BATCHES as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} batches  {per_sec}") {
        progress.set_style(style);
    }
    let replay = replay::run(address, || progress.inc(1)).await?;
    progress.finish_and_clear();
    print(&table(&replay, &origin))?;
    if !once {
        print(&invitation(address, app.admin_address()))?;
        tokio::signal::ctrl_c().await?;
    }
    app.drain().await;
    origin.stop().await;
    Ok(replay.wrong.is_empty())
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

fn table(replay: &Replay, origin: &Origin) -> String {
    let asked = BATCHES * BATCH_IDS;
    let upstream = [origin.ids_asked(), replay.distinct_batches * BATCH_IDS];
    let calls = [origin.batch_calls(), replay.distinct_batches];
    let amplification = |ids: usize| format!("{:.2}", ids as f64 / replay.distinct_ids.max(1) as f64);
    let from_memory = |ids: usize| format!("{:.1} %", 100.0 * asked.saturating_sub(ids) as f64 / asked as f64);
    let only = |sidelink: String| [sidelink, "-".to_owned()];
    let milliseconds = |duration: Duration| format!("{:.2} ms", duration.as_secs_f64() * 1000.0);
    let rows = [
        ("", ["sidelink", "a whole-request cache"].map(str::to_owned)),
        ("ids asked by clients", [asked; 2].map(grouped)),
        ("distinct ids (the floor)", [replay.distinct_ids; 2].map(grouped)),
        ("ids sent to the endpoint", upstream.map(grouped)),
        ("calls to the endpoint", calls.map(grouped)),
        ("ids sent / distinct ids", upstream.map(amplification)),
        ("ids answered without the endpoint", upstream.map(from_memory)),
        ("answer, median", only(milliseconds(replay.median))),
        ("answer, 99th percentile", only(milliseconds(replay.p99))),
        ("answers checked right", only(grouped(BATCHES - replay.wrong.len()))),
    ];
    let mut table = String::new();
    for (name, [sidelink, whole]) in rows {
        let _ = writeln!(table, "{name:<34}{sidelink:>14}{whole:>24}");
    }
    if let Some(first) = replay.wrong.first() {
        let _ = writeln!(table, "\n{} answers were WRONG; the first: {first}", replay.wrong.len());
    }
    table
}

/// Digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(" ")
}

fn invitation(address: SocketAddr, admin: SocketAddr) -> String {
    let batch =
        |ids: &str| format!("  curl -si -H 'X-Auth-Token: {}' 'http://{address}{}?{ids}'\n", replay::TOKEN, api::PATH);
    format!(
        "\nStill up. Try, in another terminal:\n{}{}{}The status page is at http://{admin}/, the metrics at http://{admin}/metrics\nCtrl-C ends it.\n",
        batch("accessory_ids=1&accessory_ids=2"),
        batch("accessory_ids=2,1,new-one"),
        batch("accessory_ids=new-one&group_id=another"),
    )
}
