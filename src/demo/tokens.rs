//! The demonstration of `[callers.identity]`: clients that have a token each, all of one user, ask two sidelinks, of which one knows
//! whose the tokens are.

use std::fmt::Write as _;
use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use super::origin::Origin;
use super::origin::iam::Iam;
use super::origin::shapes::Shape;
use super::replay::{BATCH_IDS, Draws, EXPONENT, IDS, Outcome, Replay};
use super::{ENDPOINT_DELAY, LOOPBACK, Sidelink, grouped, print, progress_bar, rounded};
use crate::config::{IdentityConfig, Url};

/// Clients, with as many tokens.
const CLIENTS: usize = 8;
const TOKEN_LIFE: Duration = Duration::from_secs(24 * 3600);

/// A sidelink with an endpoint of its own, and what became of its clients.
struct Side {
    origin: Origin,
    sidelink: Sidelink,
    outcomes: Vec<Outcome>,
    /// Ids sent to the endpoint, for each client.
    sent: Vec<usize>,
}

/// Runs it over so many batches, and returns whether every answer was right. Without `once` it stays up until it is interrupted.
///
/// # Errors
/// If a socket cannot be opened, or standard output is closed.
pub async fn run(shape: &'static Shape, batches: usize, once: bool) -> io::Result<bool> {
    let iam = Iam::start(LOOPBACK).await?;
    let mut sides = [Side::start(shape, &iam, false).await?, Side::start(shape, &iam, true).await?];
    let each = (batches / CLIENTS).max(1);
    print(&format!(
        "{CLIENTS} clients with {CLIENTS} tokens of one user ask one after another,\n\
         each for {} batches of {BATCH_IDS} ids out of {}\n(Zipf {EXPONENT}); the endpoint is {} ms away.\n\n",
        grouped(each),
        grouped(IDS),
        ENDPOINT_DELAY.as_millis(),
    ))?;
    let mut draws = Draws::new(shape)?;
    let progress = progress_bar(CLIENTS * each * sides.len());
    let mut replayed = Vec::new();
    for _ in 0..CLIENTS {
        let token = iam.issue("demo", "demo", &["reader"], TOKEN_LIFE);
        let owner = iam.owner(&token).unwrap_or_default();
        let asked: Vec<_> = draws.by_ref().take(each).collect();
        for side in &mut sides {
            let replay = Replay::new(shape, side.address(), asked.clone()).with_token(&token, &owner);
            let before = side.origin.ids_asked();
            side.outcomes.push(replay.run(|| progress.inc(1)).await);
            side.sent.push(side.origin.ids_asked() - before);
        }
        replayed.extend(asked);
    }
    progress.finish_and_clear();
    let distinct = Replay::new(shape, LOOPBACK, replayed).distinct_ids();
    print(&table(&sides, each, distinct, iam.requests()))?;
    let wrong = sides.iter().flat_map(|side| &side.outcomes).any(|outcome| !outcome.wrong.is_empty());
    if !once {
        let [without, with] = sides.each_ref().map(|side| side.sidelink.app.admin_address());
        print(&format!(
            "\nStatus pages: without http://{without}/\n              with    http://{with}/\nCtrl-C ends it.\n"
        ))?;
        tokio::signal::ctrl_c().await?;
    }
    for side in sides {
        side.sidelink.app.drain().await;
        side.origin.stop().await;
    }
    iam.stop().await;
    Ok(!wrong)
}

impl Side {
    async fn start(shape: &'static Shape, iam: &Iam, knows_users: bool) -> io::Result<Self> {
        let (origin, mut config) = super::endpoint(shape, Some(iam.clone())).await?;
        if knows_users {
            let introspect = Url::parse(&iam.keystone_url()).map_err(io::Error::other)?;
            // However busy this machine is.
            let timeout = Duration::from_secs(30);
            config.callers.identity =
                Some(IdentityConfig { introspect: Some(introspect), timeout, ..IdentityConfig::blank() });
        }
        let sidelink = Sidelink::start(config).await?;
        Ok(Self { origin, sidelink, outcomes: Vec::new(), sent: Vec::new() })
    }

    fn address(&self) -> SocketAddr {
        self.sidelink.address
    }
}

/// At most 60 columns wide, as all that is printed.
fn table(sides: &[Side; 2], each: usize, distinct: usize, introspections: usize) -> String {
    let asked = each * BATCH_IDS;
    let of_sides = |cell: &dyn Fn(&Side) -> String| sides.each_ref().map(cell);
    let sent = |side: &Side| side.sent.iter().sum::<usize>();
    let median = |side: &Side, client: usize| {
        side.outcomes.get(client).map(|outcome| rounded(outcome.median)).unwrap_or_default()
    };
    let mut rows = vec![
        ("[callers.identity]".to_owned(), ["without", "with"].map(str::to_owned)),
        ("ids answered without the endpoint".to_owned(), [(); 2].map(|()| String::new())),
    ];
    for client in 0..CLIENTS {
        let share = |side: &Side| {
            let sent = side.sent.get(client).copied().unwrap_or_default();
            format!("{:.1} %", 100.0 * asked.saturating_sub(sent) as f64 / asked as f64)
        };
        rows.push((format!("  client {}", client + 1), of_sides(&share)));
    }
    let wrong = |side: &Side| side.outcomes.iter().map(|outcome| outcome.wrong.len()).sum::<usize>();
    rows.extend([
        ("ids sent to the endpoint".to_owned(), of_sides(&|side| grouped(sent(side)))),
        ("distinct ids (the floor)".to_owned(), [(); 2].map(|()| grouped(distinct))),
        (
            "ids sent / distinct ids".to_owned(),
            of_sides(&|side| format!("{:.2}", sent(side) as f64 / distinct.max(1) as f64)),
        ),
        ("answer, median, of the first client".to_owned(), of_sides(&|side| median(side, 0))),
        ("answer, median, of the last client".to_owned(), of_sides(&|side| median(side, CLIENTS - 1))),
        ("introspections".to_owned(), ["-".to_owned(), grouped(introspections)]),
        ("answers checked right".to_owned(), of_sides(&|side| grouped(CLIENTS * each - wrong(side)))),
    ]);
    let mut table = String::new();
    for (name, [without, with]) in rows {
        let _ = writeln!(table, "{}", format!("{name:<36}{without:>12}{with:>12}").trim_end());
    }
    if let Some(first) = sides.iter().flat_map(|side| &side.outcomes).find_map(|outcome| outcome.wrong.first()) {
        let _ = writeln!(table, "\nAnswers were WRONG; the first:\n{first}");
    }
    table
}
