//! The demonstration: a simulated endpoint, a sidelink before it, and a replay of overlapping batches, every answer
//! checked.

pub mod origin;
mod replay;

use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};
use std::net::SocketAddr;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use crate::api;
use crate::app::App;
use crate::config::{Config, Endpoint};
use origin::Origin;
use replay::{Plan, Replay};

/// How many batches are replayed, of how many ids, drawn from how many, by Zipf's law with which exponent, over how
/// many connections.
const PLAN: Plan = Plan { batches: 20_000, batch_ids: 20, ids: 10_000, exponent: 0.99, connections: 64 };
/// A WAN round trip, more or less.
const ENDPOINT_DELAY: Duration = Duration::from_millis(20);

/// Runs the demonstration; whether every answer was right. With `once` it returns then, otherwise it stays up until it
/// is interrupted.
///
/// # Errors
/// If sockets cannot be had, or standard output is gone.
pub async fn run(once: bool) -> io::Result<bool> {
    let origin = Origin::start(origin::Options {
        address: SocketAddr::from(([127, 0, 0, 1], 0)),
        delay: ENDPOINT_DELAY,
        record: false,
        ..origin::Options::default()
    })
    .await?;
    let endpoint = Endpoint::parse(&format!("http://{}", origin.address())).map_err(io::Error::other)?;
    let mut config = Config::for_endpoint(endpoint);
    config.listen.address = vec![SocketAddr::from(([127, 0, 0, 1], 0)).into()];
    config.admin.address = SocketAddr::from(([127, 0, 0, 1], 0));
    config.log.access = false;
    let app = App::start(config).await.map_err(io::Error::other)?;
    let Some(address) = app.addresses().first().copied() else {
        return Err(io::Error::other("sidelink listens nowhere"));
    };

    say(&format!(
        "{} batches of {} ids, drawn by Zipf {} from {}, over {} connections; the endpoint is {} ms away.\n",
        PLAN.batches,
        PLAN.batch_ids,
        PLAN.exponent,
        PLAN.ids,
        PLAN.connections,
        ENDPOINT_DELAY.as_millis(),
    ))?;
    let progress = progress_bar(PLAN.batches as u64);
    let replay = replay::run(&PLAN, address, |done| progress.set_position(done)).await?;
    progress.finish_and_clear();
    say(&table(&PLAN, &replay, &origin))?;
    if !once {
        say(&invitation(address, app.admin_address()))?;
        tokio::signal::ctrl_c().await?;
    }
    app.drain().await;
    origin.stop().await;
    Ok(replay.wrong == 0)
}

fn say(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

fn progress_bar(length: u64) -> ProgressBar {
    let bar = ProgressBar::new(length);
    if !io::stderr().is_terminal() {
        bar.set_draw_target(ProgressDrawTarget::hidden());
    }
    if let Ok(style) = ProgressStyle::with_template("{bar:40} {pos}/{len} batches  {per_sec}") {
        bar.set_style(style);
    }
    bar
}

fn table(plan: &Plan, replay: &Replay, origin: &Origin) -> String {
    let asked = plan.batches * plan.batch_ids;
    let (calls, upstream) = (origin.batch_calls(), origin.ids_asked());
    let distinct = replay.distinct_ids;
    let mut table = String::new();
    let mut row = |name: &str, sidelink: String, whole: String| {
        let _ = writeln!(table, "{name:<34}{sidelink:>14}{whole:>24}");
    };
    row("", "sidelink".into(), "a whole-request cache".into());
    row("ids asked by clients", grouped(asked), grouped(asked));
    row("distinct ids (the floor)", grouped(distinct), grouped(distinct));
    row("ids sent to the endpoint", grouped(upstream), grouped(replay.distinct_batches * plan.batch_ids));
    row("calls to the endpoint", grouped(calls), grouped(replay.distinct_batches));
    let amplification = |ids: usize| format!("{:.2}", ids as f64 / distinct.max(1) as f64);
    row("ids sent / distinct ids", amplification(upstream), amplification(replay.distinct_batches * plan.batch_ids));
    let from_memory =
        |upstream: usize| format!("{:.1} %", 100.0 * (asked.saturating_sub(upstream)) as f64 / asked as f64);
    row(
        "ids answered without the endpoint",
        from_memory(upstream),
        from_memory(replay.distinct_batches * plan.batch_ids),
    );
    row("answer, median", milliseconds(replay.median), "-".into());
    row("answer, 99th percentile", milliseconds(replay.p99), "-".into());
    row("answers checked right", grouped(plan.batches - replay.wrong), "-".into());
    if replay.wrong > 0 {
        let _ = writeln!(table, "\n{} answers were WRONG; the first: {}", replay.wrong, replay.first_wrong);
    }
    table
}

fn milliseconds(duration: Duration) -> String {
    format!("{:.2} ms", duration.as_secs_f64() * 1000.0)
}

/// Digits in groups of three.
fn grouped(number: usize) -> String {
    let digits = number.to_string();
    let mut text = String::new();
    for (at, digit) in digits.chars().enumerate() {
        if at > 0 && (digits.len() - at).is_multiple_of(3) {
            text.push(' ');
        }
        text.push(digit);
    }
    text
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
