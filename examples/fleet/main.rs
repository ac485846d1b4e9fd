//! The load of a fleet on the endpoint and on its shared tier: the model behind `docs/SCALE.md`.
//!
//! `cargo run --release --example fleet` prints the page's tables. Nothing is measured here and nothing is awaited: time is a number,
//! chance has a seed, and the same tables come out each time.

#![allow(clippy::cast_possible_truncation, reason = "the numbers of this model are small")]

mod journal;
mod misses;
mod server;
mod sharing;

use std::io::{self, Write};

use server::{MILLISECOND, SECOND};
use sharing::{Behind, MAX_FRESH, MIN_REMAINING, simulate};

type Result = std::result::Result<(), Box<dyn std::error::Error>>;

fn main() -> Result {
    let mut out = io::stdout().lock();
    sharing_tables(&mut out)?;
    journal_table(&mut out)?;
    misses_table(&mut out, false)?;
    misses_table(&mut out, true)
}

fn seconds(micros: u64) -> String {
    format!("{:.2}", micros as f64 / SECOND as f64)
}

fn journal_table(out: &mut impl Write) -> Result {
    writeln!(out, "Purges and revocations.\n")?;
    writeln!(
        out,
        "| sidecars | what happens | records | journals continued | merged | missed | outages | all told after s | read by all \
         after s | MB |"
    )?;
    writeln!(out, "|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|")?;
    for sidecars in [3, 20, 1000] {
        for (what, announcements) in [
            ("one is told to purge 1,000 ids", journal::purges(1, 1000)),
            ("each is told to purge the same 10 ids", journal::purges(sidecars, 10)),
            ("each the same 100 ids", journal::purges(sidecars, 100)),
            ("each the same 1,000 ids", journal::purges(sidecars, 1000)),
            ("each the same 5,000 ids", journal::purges(sidecars, 5000)),
            ("100 callers are revoked", journal::revocations(sidecars, 100)),
            ("10 made-up tokens /s at each, and a purge", journal::made_up_tokens(sidecars, 10)),
        ] {
            let outcome = journal::storm(sidecars, &announcements);
            let after = |time: Option<u64>| time.map_or_else(|| "over 600".to_owned(), seconds);
            writeln!(
                out,
                "| {sidecars} | {what} | {} | {} | {} | {} | {} | {} | {} | {:.1} |",
                outcome.records,
                outcome.continued,
                outcome.merged,
                outcome.missed,
                outcome.outages,
                after(outcome.all_told),
                after(outcome.all_read),
                outcome.bytes as f64 / 1e6,
            )?;
        }
    }
    Ok(writeln!(out)?)
}

fn misses_table(out: &mut impl Write, dies: bool) -> Result {
    let what = if dies { "The sidecar that calls dies halfway in its call" } else { "A batch that all miss at once" };
    writeln!(out, "{what}.\n")?;
    writeln!(
        out,
        "| a call takes s | sidecars | calls | links in the tier after s | last answer after s | unanswered | looks into the tier |"
    )?;
    writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|")?;
    for call in [60, 600, 3_000, 6_000, 10_000] {
        for sidecars in [3, 5, 20, 40, 1000] {
            let outcome = misses::misses(sidecars, call * MILLISECOND, dies);
            writeln!(
                out,
                "| {} | {sidecars} | {} | {} | {} | {} | {} |",
                call as f64 / 1000.0,
                outcome.calls,
                outcome.shared.map_or_else(|| "never".to_owned(), seconds),
                outcome.last_answer.map_or_else(|| "none".to_owned(), seconds),
                outcome.unanswered,
                outcome.looks,
            )?;
        }
    }
    Ok(writeln!(out)?)
}

fn sharing_tables(out: &mut impl Write) -> Result {
    for life in [300.0, 900.0] {
        let period = (life - MIN_REMAINING).min(MAX_FRESH);
        writeln!(out, "Links live {:.0} minutes and are fresh for {period:.0} s.\n", life / 60.0)?;
        writeln!(
            out,
            "| sidelinks | ids asked by clients /s | hit rate alone | with the tier | ids asked of the endpoint /s: alone \
             | tier, no leases | tier | floor | tier: round trips /s | keys /s | MB/s |"
        )?;
        writeln!(out, "|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|")?;
        for sidelinks in [1, 10, 100, 1000] {
            let (alone, seconds) = simulate(sidelinks, period, Behind::Endpoint)?;
            let (unleased, _) = simulate(sidelinks, period, Behind::Tier)?;
            let (tier, _) = simulate(sidelinks, period, Behind::TierWithLeases)?;
            writeln!(
                out,
                "| {sidelinks} | {:.0} | {:.1} % | {:.1} % | {:.1} | {:.1} | {:.1} | {:.1} | {:.0} | {:.0} | {:.2} |",
                alone.ids as f64 / seconds,
                alone.hit_rate(),
                tier.hit_rate(),
                alone.asked as f64 / seconds,
                unleased.asked as f64 / seconds,
                tier.asked as f64 / seconds,
                tier.floor as f64 / seconds,
                tier.round_trips as f64 / seconds,
                tier.keys as f64 / seconds,
                (tier.read + tier.written) / seconds / 1e6,
            )?;
        }
        writeln!(out)?;
    }
    Ok(())
}
