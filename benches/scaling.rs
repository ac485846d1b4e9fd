//! Whether the hit path keeps its pace with more links in memory and with more cores: batches of 20 that are all in memory,
//! answered in this process. Prints ratios of one run.

#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use support::{Form, Warm, ids, request};
use tokio::runtime::Builder;

const SIZE: usize = 20;
const SPAN: Duration = Duration::from_secs(2);
const TURNS: usize = 5;

fn main() {
    let (few, many) = (2_000, 400_000);
    let (small, large) = (Warm::new(few), Warm::new(many));
    let mut rates = [const { Vec::new() }; 3];
    // In turn, so that a slow minute slows all.
    for _ in 0..TURNS {
        for (rates, (warm, links, threads)) in
            rates.iter_mut().zip([(&small, few, 1), (&small, few, 2), (&large, many, 1)])
        {
            rates.push(rate(warm, links, threads));
        }
    }
    let [one, two, wide] = rates.map(|mut rates| {
        rates.sort_by(f64::total_cmp);
        rates.get(TURNS / 2).copied().unwrap_or_default()
    });
    println!("one thread, {few} links: {one:.0} batches of {SIZE} a second");
    println!("two threads: {:.2} times as many", two / one);
    println!("{many} links: {:.2} times as many", wide / one);
}

/// Batches a second, on so many threads at once.
fn rate(warm: &Warm, links: usize, threads: usize) -> f64 {
    let over = AtomicBool::new(false);
    let answered: usize = thread::scope(|scope| {
        let workers: Vec<_> = (0..threads)
            .map(|thread| {
                scope.spawn({
                    let over = &over;
                    move || work(warm, links, thread, over)
                })
            })
            .collect();
        thread::sleep(SPAN);
        over.store(true, Ordering::Relaxed);
        workers.into_iter().map(|worker| worker.join().unwrap()).sum()
    });
    answered as f64 / SPAN.as_secs_f64()
}

fn work(warm: &Warm, links: usize, thread: usize, over: &AtomicBool) -> usize {
    // Spread over all links, some shared by both threads.
    let first = |number: usize| (number * 7919 + thread * 31) % (links - SIZE);
    let requests: Vec<_> = (0..1000).map(|number| request(Form::Query, &ids(first(number), SIZE))).collect();
    Builder::new_current_thread().enable_all().build().unwrap().block_on(async {
        let (connection, mut answered) = (Arc::default(), 0);
        while !over.load(Ordering::Relaxed) {
            for request in requests.iter().cycle().skip(answered % 1000).take(50) {
                warm.hit_over(&connection, request.clone()).await;
                answered += 1;
            }
        }
        answered
    })
}
