//! A long run of a real sidelink under mixed traffic and faults: `make soak`, an hour; `make soak TIME=20m` for less.
//!
//! Starts `sidelink origin` and `sidelink serve` as processes of their own (and a Redis, where there is one, as the shared
//! tier), sends them all that clients send, good and bad, lets endpoint, Redis and configuration fail and come back,
//! and watches what must not grow. Ends with 0 only if every answer kept the laws and nothing grew:
//! every link is its caller's, its group's and its id's own, and none that came from memory was near its end.

#![allow(clippy::print_stdout, reason = "a program that reports")]

mod processes;
mod traffic;
mod watch;

use std::error::Error;
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

use processes::Stage;
use traffic::Traffic;
use watch::Watch;

/// Between one fault and the next, and how long each lasts.
const CALM: Duration = Duration::from_secs(12);
const FAULT: Duration = Duration::from_secs(6);
/// Between one look at the process and the next.
const LOOK: Duration = Duration::from_secs(5);
/// How long what is in flight gets to end once there is no more traffic: more than `limits.idle_timeout` of the run.
const SETTLE: Duration = Duration::from_secs(25);

fn main() -> Result<(), Box<dyn Error>> {
    let time = std::env::args().nth(1).unwrap_or_else(|| "1h".to_owned());
    let time = sidelink::config::parse_duration(&time).map_err(|error| format!("{time}: {error}"))?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let right = runtime.block_on(soak(time));
    runtime.shutdown_background();
    if right? { Ok(()) } else { Err("not everything held: see above".into()) }
}

async fn soak(time: Duration) -> Result<bool, Box<dyn Error>> {
    let mut stage = Stage::set().await?;
    println!("{} for {time:?}", stage.describe());
    let traffic = Traffic::start(stage.address, stage.admin);
    let mut watch = Watch::new(stage.pid(), stage.admin);
    let mut random = StdRng::seed_from_u64(1);
    let began = Instant::now();
    let (mut next_fault, mut fault) = (began + CALM, None);
    while began.elapsed() < time {
        tokio::time::sleep(LOOK.min(time.saturating_sub(began.elapsed()))).await;
        if let Some(line) = watch.look(began.elapsed()).await? {
            println!("{line}  {}", traffic.line());
        }
        if Instant::now() >= next_fault {
            // One fault at a time, so that what it does can be told.
            next_fault = Instant::now() + if fault.is_some() { CALM } else { FAULT };
            fault = match fault.take() {
                Some(over) => stage.mend(over).await.map(|()| None)?,
                None => Some(stage.break_something(random.random_range(0..processes::FAULTS)).await?),
            };
        }
    }
    if let Some(over) = fault {
        stage.mend(over).await?;
    }
    let traffic = traffic.stop().await;
    tokio::time::sleep(SETTLE).await;
    let settled = watch.settled().await?;
    let exit = stage.end().await?;
    println!("\n{}\n{}\n{}\n{exit}", traffic.report(), watch.report(), settled.report());
    Ok(traffic.held() && watch.held() && settled.held() && exit.success())
}
