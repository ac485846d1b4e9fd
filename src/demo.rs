//! The demonstration: a simulated endpoint, a sidelink in front of it, and a replay of overlapping batches whose every answer is
//! checked; or `tokens`, the same for clients of one user. The simulated endpoint, `origin`, also runs alone and in tests.

pub mod origin;
mod replay;
pub mod tokens;

use std::fmt::{self, Write as _};
use std::io::{self, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use http::Method;
use indicatif::{ProgressBar, ProgressState, ProgressStyle};

use crate::app::App;
use crate::config::batch::BatchApi;
use crate::config::{AccessLines, Config, Endpoint};
use origin::Origin;
use origin::iam::Iam;
use origin::shapes::{Shape, TOKEN};
use replay::{BATCH_IDS, CONNECTIONS, Draws, EXPONENT, IDS, Outcome, Replay};

/// About a WAN round trip.
const ENDPOINT_DELAY: Duration = Duration::from_millis(20);
const LOOPBACK: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0);

/// Runs the demonstration over so many batches of the API of `shape`, and returns whether every answer was right. Without `once` it stays up after the
/// replay, under a light load, until it is interrupted.
///
/// # Errors
/// If a socket cannot be opened, or standard output is closed.
pub async fn run(shape: &'static Shape, batches: usize, once: bool) -> io::Result<bool> {
    let (origin, config) = endpoint(shape, None).await?;
    let Sidelink { app, address } = Sidelink::start(config).await?;

    print(&format!(
        "{} batches of {BATCH_IDS} ids out of {} (Zipf {EXPONENT}),\nover {CONNECTIONS} connections; the endpoint is {} ms away.\n\n",
        grouped(batches),
        grouped(IDS),
        ENDPOINT_DELAY.as_millis(),
    ))?;
    let mut draws = Draws::new(shape)?;
    let replay = Replay::new(shape, address, draws.by_ref().take(batches).collect());
    let progress = progress_bar(batches);
    let outcome = replay.run(|| progress.inc(1)).await;
    progress.finish_and_clear();
    print(&table(&replay, &outcome, &origin))?;
    let mut wrong = !outcome.wrong.is_empty();
    if !once {
        print(&invitation(shape, address, app.admin_address(), &replay.popular()))?;
        tokio::select! {
            interrupted = tokio::signal::ctrl_c() => interrupted?,
            why = replay.keep_asking(draws) => {
                print(&format!("\nAn answer was WRONG: {why}\n"))?;
                wrong = true;
            }
        }
    }
    app.drain().await;
    origin.stop().await;
    Ok(!wrong)
}

/// An endpoint, and the configuration of a sidelink in front of it.
async fn endpoint(shape: &'static Shape, iam: Option<Iam>) -> io::Result<(Origin, Config)> {
    let options =
        origin::Options { api: shape, address: LOOPBACK, delay: ENDPOINT_DELAY, iam, ..origin::Options::default() };
    let origin = Origin::start(options).await?;
    let endpoint = Endpoint::parse(&format!("http://{}", origin.address())).map_err(io::Error::other)?;
    let mut config = Config::for_endpoint(endpoint);
    config.listen.address = vec![LOOPBACK.into()];
    config.admin.address = LOOPBACK;
    config.log.access = AccessLines::Off;
    config.batch = vec![BatchApi::preset(shape.name).ok_or_else(|| io::Error::other("there is no such preset"))?];
    Ok((origin, config))
}

/// A running sidelink.
struct Sidelink {
    app: App,
    address: SocketAddr,
}

impl Sidelink {
    async fn start(config: Config) -> io::Result<Self> {
        let app = App::start(config).await.map_err(io::Error::other)?;
        let address = *app.addresses().first().ok_or_else(|| io::Error::other("sidelink has no listener"))?;
        Ok(Self { app, address })
    }
}

/// Hidden where standard error is no terminal.
fn progress_bar(batches: usize) -> ProgressBar {
    let progress = ProgressBar::new(batches as u64);
    if let Ok(style) = ProgressStyle::with_template("{bar:20} {pos}/{len} batches, {rate} a second") {
        let rate = |state: &ProgressState, text: &mut dyn fmt::Write| {
            let _ = text.write_str(&grouped(format_args!("{:.0}", state.per_sec())));
        };
        progress.set_style(style.with_key("rate", rate));
    }
    progress
}

fn print(text: &str) -> io::Result<()> {
    io::stdout().lock().write_all(text.as_bytes())
}

/// At most 60 columns wide, as all that is printed.
fn table(replay: &Replay, outcome: &Outcome, origin: &Origin) -> String {
    let batches = replay.batches.len();
    let asked = batches * BATCH_IDS;
    let (distinct_ids, distinct_batches) = (replay.distinct_ids(), replay.distinct_batches());
    let upstream = [origin.ids_asked(), distinct_batches * BATCH_IDS];
    let calls = [origin.batch_calls(), distinct_batches];
    let amplification = |ids: usize| format!("{:.2}", ids as f64 / distinct_ids.max(1) as f64);
    let from_memory = |ids: usize| format!("{:.1} %", 100.0 * asked.saturating_sub(ids) as f64 / asked.max(1) as f64);
    let only = |sidelink: String| [sidelink, "-".to_owned()];
    let rows = [
        ("", ["sidelink", "whole-request"].map(str::to_owned)),
        ("", ["", "cache"].map(str::to_owned)),
        ("ids asked by clients", [asked; 2].map(grouped)),
        ("distinct ids (the floor)", [distinct_ids; 2].map(grouped)),
        ("ids sent to the endpoint", upstream.map(grouped)),
        ("calls to the endpoint", calls.map(grouped)),
        ("ids sent / distinct ids", upstream.map(amplification)),
        ("ids answered without the endpoint", upstream.map(from_memory)),
        ("answer, median", only(rounded(outcome.median))),
        ("answer, 99th percentile", only(rounded(outcome.p99))),
        ("answers checked right", only(grouped(batches - outcome.wrong.len()))),
    ];
    let mut table = String::new();
    for (name, [sidelink, whole]) in rows {
        let _ = writeln!(table, "{name:<33}{sidelink:>11}{whole:>15}");
    }
    if let Some(first) = outcome.wrong.first() {
        let _ = writeln!(table, "\n{} answers were WRONG; the first:\n{first}", outcome.wrong.len());
    }
    table
}

/// Two digits of a short time, whole milliseconds of a longer one: the rest differs from run to run.
fn rounded(time: Duration) -> String {
    let milliseconds = time.as_secs_f64() * 1000.0;
    match milliseconds {
        ..0.0995 => format!("{milliseconds:.3} ms"),
        ..0.995 => format!("{milliseconds:.2} ms"),
        ..9.95 => format!("{milliseconds:.1} ms"),
        _ => format!("{milliseconds:.0} ms"),
    }
}

/// Digits in groups of three.
fn grouped(number: impl fmt::Display) -> String {
    let digits = number.to_string();
    let groups: Vec<_> = digits.as_bytes().rchunks(3).rev().map(String::from_utf8_lossy).collect();
    groups.join(" ")
}

/// Commands that ask again, in a shell.
fn invitation(shape: &Shape, address: SocketAddr, admin: SocketAddr, [a, b]: &[String; 2]) -> String {
    let header = |(name, value): &(&str, &str)| {
        format!(" \\\n      -H \"{name}: {}\"", value.replace(TOKEN, &format!("${{TOKEN:-{TOKEN}}}")))
    };
    let headers: String = shape.headers.iter().map(header).collect();
    let is_get = shape.method == Method::GET;
    let body = if is_get { "" } else { " \\\n      -d \"$1\"" };
    let query = if is_get { "\"$1\"" } else { "" };
    let target = shape.target;
    let batch = |ids: &[&str]| {
        let (target, body) = shape.batch(&ids.iter().map(|id| (*id).to_owned()).collect::<Vec<_>>());
        if is_get { target.replacen(shape.target, "", 1) } else { body }
    };
    let (hit, partial) = (batch(&[a, b]), batch(&[b, a, &shape.id("new")]));
    format!(
        "
Still up, under a light load. In another terminal, define

  ask() {{
    curl -si{headers}{body} \\
      http://{address}\\
{target}{query}
  }}

and try

  # hit: both links are in memory
  ask '{hit}'
  # partial, then a hit: the new one is fetched once
  ask '{partial}'
  # miss, then a hit: another caller has links of its own
  TOKEN=other ask '{hit}'

The status page: http://{admin}/
The metrics:     http://{admin}/metrics
Ctrl-C ends it.
"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_rounded_to_what_a_second_run_would_show_too() {
        let shown = |microseconds| rounded(Duration::from_micros(microseconds));
        assert_eq!([42, 437, 994, 995, 5_774].map(shown), ["0.042 ms", "0.44 ms", "0.99 ms", "1.0 ms", "5.8 ms"]);
        assert_eq!([9_949, 9_950, 43_884, 198_630].map(shown), ["9.9 ms", "10 ms", "44 ms", "199 ms"]);
    }

    #[test]
    fn digits_are_grouped_by_three() {
        assert_eq!([0, 999, 20_000, 1_234_567].map(grouped), ["0", "999", "20 000", "1 234 567"]);
    }
}
